"""Which axes of a stored array are time, row and column: by their names and units, else by a format's custom."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..errors import InputError, UsageError
from .frames import check_movie
from .rawfile import RawFile, RawFolder
from .units import not_understood, pixel_size, to_nanometres, to_seconds

_ROLES = {
    **dict.fromkeys(("t", "time", "frame", "frames", "timepoint", "image number"), "time"),
    **dict.fromkeys(("y", "row", "rows", "height", "r_y", "ry"), "row"),
    **dict.fromkeys(("x", "column", "columns", "width", "r_x", "rx"), "column"),
    **dict.fromkeys(("c", "channel", "channels", "color", "colour", "rgb"), "channel"),
}
_NOT_TIME = {
    *("ev", "kev", "mev", "hz", "khz", "mhz", "ghz"),
    *("rad", "mrad", "urad", "µrad", "radian", "milliradian", "deg", "degree", "°", "º"),
    *("1/nm", "1/a", "1/å", "nm^-1", "a^-1", "å^-1", "1/m"),
}  # in the singular
_NOT_TIME_WORDS = re.compile(
    r"\b(tilt|angle|theta|alpha|energy|loss|wavelength|wavenumber|frequency|momentum|defocus)(s|es)?\b"
)
_COLOURS = (2, 3, 4)  # lengths of an axis without a name that look like colours or channels

_LARGE = 16  # pixels along both sides of an image that may be one in colour


@dataclass(frozen=True)
class Axis:
    """One axis of an array, as far as its file describes it."""

    name: str = ""
    unit: str = ""
    step: float | None = None  # distance of neighbours [unit]
    told_role: str | None = None  # where the format says it
    values: NDArray[np.float64] | None = field(default=None, compare=False)  # of each place along it [unit]

    @property
    def role(self) -> str | None:
        """Time, row, column or channel; for none of them "scan", "spectrum" or "other" (an angle)."""
        if self.told_role is not None:
            return self.told_role
        unit, name = clean_unit(self.unit), self.name.strip().lower()
        if to_seconds(1, unit) is not None:
            return "time"
        if {unit.lower(), unit.lower().removesuffix("s")} & _NOT_TIME:
            return "other"
        if _NOT_TIME_WORDS.search(re.sub("[^a-z]+", " ", name)):
            return "other"
        return _ROLES.get(name)

    @property
    def seconds(self) -> float | None:
        return to_seconds(self.step, clean_unit(self.unit))

    @property
    def times_s(self) -> NDArray[np.float64] | None:
        """When each frame along an axis of time began [s], where the file lists it."""
        unit_s = to_seconds(1, clean_unit(self.unit))
        if self.values is None or unit_s is None:
            return None
        with np.errstate(over="ignore"):
            return self.values * unit_s

    @property
    def is_length(self) -> bool:
        return to_nanometres(1, clean_unit(self.unit)) is not None

    @property
    def is_uneven(self) -> bool:
        """Whether the places that are listed along a length leave those at equal steps by over a step."""
        if self.values is None or len(self.values) < 2 or not self.is_length:
            return False
        step = np.copysign(self.step or 0.0, self.values[-1] - self.values[0])
        even = self.values[0] + step * np.arange(len(self.values))
        return not bool((np.abs(self.values - even) <= abs(step)).all())

    @property
    def nanometres(self) -> float | None:
        step = abs(self.step) if isinstance(self.step, float | int) else self.step  # an axis may run down
        return to_nanometres(step, clean_unit(self.unit))


@dataclass(frozen=True)
class Place:
    """Where a movie is in an array: its axes (time, row, column) and the index on each other one."""

    movie_axes: tuple[int, int, int]
    fixed: dict[int, int]
    warnings: tuple[str, ...] = ()


def clean_unit(unit: str) -> str:
    """A unit without the brackets and underscores of the EMD format: "[n_m]" is nm."""
    return unit.strip().removeprefix("[").removesuffix("]").replace("_", "")


def calibration_lost(time: Axis | None, row: Axis, column: Axis) -> tuple[str, ...]:
    """Warnings for what a file gives of frame time and pixel size in units that are not understood."""
    said: tuple[str, ...] = ()
    if time is not None and not time.is_length:
        said += not_understood(time.step, clean_unit(time.unit), "frame time")
    for axis in (row, column):
        if axis.nanometres is None:
            said += not_understood(axis.step, clean_unit(axis.unit), "pixel size")
    return tuple(dict.fromkeys(said))


def place_movie(
    file: RawFile | RawFolder,
    name: str,
    shape: Sequence[int],
    dtype: np.dtype[Any],
    axes: Sequence[Axis],
    *,
    custom: tuple[int, ...] = (0, 1, 2),
    channel: int | None = None,
    chosen: bool = False,
    lenient: bool = False,
) -> Place:
    """Find the movie in an array, or refuse what is none.

    Parameters
    ----------
    file, name : RawFile or RawFolder, str
        Of the array, for the error message.
    shape, dtype : sequence of int, dtype
        Of the array as stored.
    axes : sequence of Axis
        One for each, without name and unit where nothing is known.
    custom : tuple of int, optional
        Which axes are time, row and column in this format where nothing else is known.
    channel : int, optional
        The index on an axis of channels or colours.
    chosen, lenient : bool, optional
        The user has named this array, or the file holds nothing else: any axis may be time then.

    Raises
    ------
    InputError, UsageError
        If the array is not a movie, in words; if ``channel`` is not there.
    """
    left, fixed = _longer_axes(shape)
    size = " x ".join(str(n) for n in shape)
    colour = _channel_axis(left, shape, axes)
    _check_channel(file.path, name, shape, colour, channel, may_be_frames=len(left) == 3, chosen=chosen)
    if channel is not None and colour is not None:
        left.remove(colour)
        fixed[colour] = channel
    if len(left) != 3 or min(shape) < 1:
        check_movie(file, tuple(shape[axis] for axis in left), dtype)
        raise InputError(file.path, f"its array {name} ({size}) is not (frame, row, column).")
    *image, colours = (shape[axis] for axis in left)
    if colours in (3, 4) and min(image) > _LARGE and not chosen and not any(axes[axis].role for axis in left):
        raise InputError(
            file.path,
            f"holds what looks like one colour image ({size}) in {name}, not a movie. If it is a movie of frames "
            f"{colours} pixels wide, add --dataset {name}.",
        )
    places = _roles(left, axes, custom)
    what = _no_time(axes[places[0]])
    if what and not chosen and not lenient:
        raise InputError(
            file.path,
            f"holds {what} in {name} ({size}), not a movie: each image is another measurement. To read it "
            f"anyway, add --dataset {name}.",
        )
    return Place(places, fixed, _doubts(what, places, axes))


def _longer_axes(shape: Sequence[int]) -> tuple[list[int], dict[int, int]]:
    """Axes without those of length 1 beyond three, and the index on these."""
    left = list(range(len(shape)))
    fixed: dict[int, int] = {}
    for axis in range(len(shape)):
        if len(left) > 3 and shape[axis] == 1:
            left.remove(axis)
            fixed[axis] = 0
    return left, fixed


def _check_channel(
    path: Path,
    name: str,
    shape: Sequence[int],
    colour: int | None,
    channel: int | None,
    *,
    may_be_frames: bool,
    chosen: bool,
) -> None:
    """Refuse a channel that is not there, and channels of which none is chosen.

    Frames that were saved as channels are a movie if the user says so; the colours of an image are not.
    """
    size = " x ".join(str(n) for n in shape)
    if channel is not None:
        if colour is None:
            raise UsageError(f"{path}: its array {name} ({size}) has no channels; leave --channel out.")
        if not 0 <= channel < shape[colour]:
            raise UsageError(f"{path}: its array {name} has {shape[colour]} channels, counted from 0.")
    elif colour is not None and may_be_frames and (colour != len(shape) - 1 or shape[colour] not in (3, 4)):
        if chosen:
            return
        raise InputError(
            path,
            f"holds {shape[colour]} channels ({size}) in {name}, not frames over time. If they are the frames of a "
            f"movie, add --dataset {name}.",
        )
    elif colour is not None:
        kind = "colour images" if shape[colour] in (3, 4) else "several channels"
        raise InputError(
            path,
            f"holds {kind} ({size}) in {name}, not a movie of counts. Choose one of its {shape[colour]} channels "
            "with --channel, counted from 0.",
        )


def _doubts(what: str, places: tuple[int, int, int], axes: Sequence[Axis]) -> tuple[str, ...]:
    """What is said of a movie that may be none, or has no pixel size."""
    time = axes[places[0]]
    if not what and time.is_length and time.role != "time":
        what = f"a stack over {_named(time)}, a volume or a scan"
    said = [f"it holds {what}, not a movie over time."] if what else []
    said += calibration_lost(None if what else time, axes[places[1]], axes[places[2]])
    if any(axes[axis].is_uneven for axis in places[1:]):
        said.append(
            "its file lists unevenly spaced pixels, so it has no pixel size. If the spacing is even, give it "
            "with --pixel-size."
        )
    return tuple(said)


def interpreted(axes: Sequence[Axis], interpretation: Any) -> list[Axis]:
    """Axes with the roles that NeXus' ``interpretation`` gives the last ones; those before them are what is varied.

    Examples
    --------
    >>> [axis.role for axis in interpreted([Axis("y"), Axis("x"), Axis()], "spectrum")]
    ['row', 'column', 'spectrum']
    >>> [axis.role for axis in interpreted([Axis("x"), Axis(), Axis()], "image")]
    ['scan', 'row', 'column']
    """
    last = {
        "scalar": (), "spectrum": ("spectrum",), "image": ("row", "column"),
        "rgb-image": ("row", "column", "channel"), "rgba-image": ("row", "column", "channel"),
    }.get(str(interpretation).strip().lower())  # fmt: skip
    if last is None or len(last) > len(axes):
        return list(axes)
    before = list(axes[: len(axes) - len(last)])
    if len(last) > 1:
        scanned = len(before) > 1 or any(axis.is_length for axis in before)
        for k, axis in enumerate(before):
            if axis.role in ("row", "column") or (scanned and axis.role is None):
                before[k] = replace(axis, told_role="scan")
    after = (replace(axis, told_role=role) for axis, role in zip(axes[len(before) :], last, strict=True))
    return [*before, *after]


def _no_time(time: Axis) -> str:
    """What the images of a stack that is no movie were taken over; empty where it may be time."""
    match time.role:
        case "other":
            return f"a stack over {_named(time)}"
        case "spectrum":
            return "a spectrum image, a spectrum for each pixel,"
        case "channel":
            return f"a stack of channels over {_named(time)}"
        case "scan" | "row" | "column":
            return f"a scan, an image at each point of {_named(time)},"
    return ""


def _named(axis: Axis) -> str:
    unit = clean_unit(axis.unit)
    return (axis.name or "an axis") + (f" [{unit}]" if unit else "")


def pixel_size_of(axes: Sequence[Axis], place: Place) -> tuple[float, float] | None:
    """(row, column) distance of the pixels [nm], where both are known and the same everywhere."""
    _, row, column = place.movie_axes
    if axes[row].is_uneven or axes[column].is_uneven:
        return None
    return pixel_size(axes[row].nanometres, axes[column].nanometres)


def _channel_axis(left: list[int], shape: Sequence[int], axes: Sequence[Axis]) -> int | None:
    """The axis of channels or colours: by name, else the short one at the end or behind time of four."""
    named = [axis for axis in left if axes[axis].role == "channel"]
    if named:
        return named[0]
    if len(left) != 4 or any(axes[axis].role for axis in left):
        return None
    return next((axis for axis in (left[-1], left[1]) if shape[axis] in _COLOURS), None)


def _roles(left: list[int], axes: Sequence[Axis], custom: tuple[int, ...]) -> tuple[int, int, int]:
    """Time, row and column among three axes."""
    order = [left[k] for k in custom]
    found = {
        role: next((a for a in left if axes[a].role == role), None) for role in ("time", "row", "column")
    }
    if found["time"] is None and (found["row"] is None or found["column"] is None):
        lengths = [a for a in left if axes[a].nanometres is not None]
        strange = [a for a in left if a not in lengths]
        # Two lengths and something else: the something else is what the images are taken over.
        found["time"] = strange[0] if len(lengths) == 2 else None
    if found["time"] not in (None, order[0]):
        order = [found["time"], *(axis for axis in left if axis != found["time"])]
    rest = [axis for axis in order if axis not in found.values()]
    for position, role in enumerate(("time", "row", "column")):
        if found[role] is None:
            wanted = order[position]
            found[role] = wanted if wanted in rest else rest[0]
            rest.remove(found[role])  # type: ignore[arg-type]
    return found["time"], found["row"], found["column"]  # type: ignore[return-value]
