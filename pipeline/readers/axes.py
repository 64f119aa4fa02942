"""Which axes of a stored array are time, row and column: by their names and units, else by a format's custom."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..errors import InputError, UsageError
from .frames import check_movie
from .rawfile import RawFile, RawFolder
from .units import pixel_size, to_nanometres, to_seconds

_ROLES = {
    **dict.fromkeys(("t", "time", "frame", "frames", "timepoint", "image number"), "time"),
    **dict.fromkeys(("y", "row", "rows", "height", "r_y", "ry"), "row"),
    **dict.fromkeys(("x", "column", "columns", "width", "r_x", "rx"), "column"),
    **dict.fromkeys(("c", "channel", "channels", "color", "colour", "rgb"), "channel"),
}
_NOT_TIME = ("ev", "kev", "mev", "rad", "mrad", "urad", "1/nm", "1/a", "1/å", "nm^-1", "a^-1", "å^-1", "1/m")
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
        """Time, row, column or channel; "other" for what is none of them, such as an energy."""
        if self.told_role is not None:
            return self.told_role
        if self.seconds is not None:
            return "time"
        if clean_unit(self.unit).lower() in _NOT_TIME:
            return "other"
        return _ROLES.get(self.name.strip().lower())

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
    def nanometres(self) -> float | None:
        return to_nanometres(self.step, clean_unit(self.unit))


@dataclass(frozen=True)
class Place:
    """Where a movie is in an array: its axes (time, row, column) and the index on each other one."""

    movie_axes: tuple[int, int, int]
    fixed: dict[int, int]


def clean_unit(unit: str) -> str:
    """A unit without the brackets and underscores of the EMD format: "[n_m]" is nm."""
    return unit.strip().removeprefix("[").removesuffix("]").replace("_", "")


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
) -> Place:
    """Find the movie in an array, or refuse what is none.

    Parameters
    ----------
    file : RawFile or RawFolder
        For the error message.
    name : str
        Of the array, likewise.
    shape : sequence of int
        Of the array as stored.
    dtype : dtype
        Of the array.
    axes : sequence of Axis
        One for each, without name and unit where nothing is known.
    custom : tuple of int, optional
        Which axes are time, row and column in this format where nothing else is known.
    channel : int, optional
        The index on an axis of channels or colours.
    chosen : bool, optional
        The user has named this array: an axis that does not look like time is then taken for time.

    Raises
    ------
    InputError
        If the array is not a movie, in words.
    UsageError
        If ``channel`` is not there.
    """
    left = list(range(len(shape)))
    fixed: dict[int, int] = {}
    for axis in range(len(shape)):
        if len(left) > 3 and shape[axis] == 1:
            left.remove(axis)
            fixed[axis] = 0
    size = " x ".join(str(n) for n in shape)
    colour = _channel_axis(left, shape, axes)
    if channel is not None:
        if colour is None:
            raise UsageError(f"{file.path}: its array {name} ({size}) has no channels; leave --channel out.")
        if not 0 <= channel < shape[colour]:
            raise UsageError(f"{file.path}: its array {name} has {shape[colour]} channels, counted from 0.")
        left.remove(colour)
        fixed[colour] = channel
    elif colour is not None:
        kind = "colour images" if shape[colour] in (3, 4) else "several channels"
        raise InputError(
            file.path,
            f"holds {kind} ({size}) in {name}, not a movie of counts. Choose one of its {shape[colour]} channels "
            "with --channel, counted from 0.",
        )
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
    time = axes[places[0]]
    if time.role == "other" and not chosen:
        raise InputError(
            file.path,
            f"holds a stack over {time.name or 'an axis'} [{clean_unit(time.unit)}] in {name} ({size}), not a movie: "
            f"each image is another measurement. To read it all the same, add --dataset {name}.",
        )
    return Place(places, fixed)


def pixel_size_of(axes: Sequence[Axis], place: Place) -> tuple[float, float] | None:
    """(row, column) distance of the pixels [nm], where both are known."""
    _, row, column = place.movie_axes
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
    rest = [axis for axis in order if axis not in found.values()]
    for position, role in enumerate(("time", "row", "column")):
        if found[role] is None:
            wanted = order[position]
            found[role] = wanted if wanted in rest else rest[0]
            rest.remove(found[role])  # type: ignore[arg-type]
    return found["time"], found["row"], found["column"]  # type: ignore[return-value]
