"""What a file of data is written from: the frames of one panel as they are, and what they mean."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..errors import UsageError

Array = NDArray[Any]


@dataclass(frozen=True)
class Axis:
    """One axis of a movie."""

    name: str  # t, y or x
    size: int
    step: float | None  # distance of its points [s or nm]; None where it is unknown
    first: float  # where its first point lies, in steps from the first of the raw movie
    unit: str  # of its coordinate: "s" or "nm"; "frame" or "pixel" where the step is unknown

    @property
    def coordinate(self) -> NDArray[np.float64]:
        """Where its points lie [`unit`]."""
        steps = np.arange(self.size, dtype=np.float64) + self.first
        return steps if self.step is None else steps * self.step


@dataclass(frozen=True)
class Values:
    """A movie of one panel, frame by frame, in the type that a file holds."""

    name: str  # of the array: counts, denoised, ...
    title: str  # for people
    shape: tuple[int, int, int]
    dtype: np.dtype[Any]
    units: str  # of the values
    axes: tuple[Axis, Axis, Axis]  # t, y, x
    notes: dict[str, str]  # where it comes from
    frames: Callable[[int], Iterator[Array]]  # one after the other, from this one on

    @property
    def frame_time_s(self) -> float | None:
        return self.axes[0].step

    @property
    def pixel_size_nm(self) -> tuple[float, float] | None:
        """Height and width of a pixel."""
        _, rows, columns = self.axes
        return None if rows.step is None or columns.step is None else (rows.step, columns.step)

    @property
    def n_bytes(self) -> int:
        """Size of all values."""
        n_frames, height, width = self.shape
        return n_frames * height * width * self.dtype.itemsize

    @property
    def words(self) -> str:
        """Where it comes from, in one text."""
        return "; ".join(f"{key}: {value}" for key, value in self.notes.items())


class Statistics:
    """Smallest, largest and mean value, and deviation, of what was seen; pixels without a number do not count.

    Parameters
    ----------
    state : list of float, optional
        Of what was seen before.
    """

    def __init__(self, state: list[float] | None = None) -> None:
        self._n, self._sum, self._squares, self._about, self._low, self._high = state or [0.0] * 6

    @property
    def state(self) -> list[float]:
        """For whoever goes on."""
        return [self._n, self._sum, self._squares, self._about, self._low, self._high]

    def add(self, frame: Array) -> None:
        """Look at a frame."""
        sound = frame[np.isfinite(frame)].astype(np.float64)
        if not sound.size:
            return
        low, high = float(sound.min()), float(sound.max())
        if not self._n:
            self._about = float(sound.mean())  # squares of large numbers would lose the small ones
            self._low, self._high = low, high
        self._n += sound.size
        self._sum += float((sound - self._about).sum())
        self._squares += float(np.square(sound - self._about).sum())
        self._low, self._high = min(self._low, low), max(self._high, high)

    @property
    def known(self) -> tuple[float, float, float, float] | None:
        """Smallest, largest, mean value, and deviation; None where there was no number."""
        if not self._n:
            return None
        mean = self._sum / self._n
        return self._low, self._high, self._about + mean, max(0.0, self._squares / self._n - mean**2) ** 0.5


@dataclass(frozen=True)
class DataFile:
    """A kind of file that holds the values of a movie; it says how to write it as a whole, or how it begins."""

    name: str  # for people
    write: Callable[[Path, Values], None] | None = None
    # All but the values, which lie one behind the other from the byte on that it returns: such a file is gone on with.
    begin: Callable[[Path, Values], int] | None = None
    end: Callable[[Path, Statistics], None] | None = None  # that tells of the values when all are there
    types: tuple[str, ...] | None = None  # that it can hold, the best first; None: all
    packed: bool = False  # whether it is compressed

    def type_for(self, stored: np.dtype[Any], file: Path) -> np.dtype[Any]:
        """The type in which the file holds values, each of them unchanged.

        Raises
        ------
        UsageError
            If it cannot hold them.
        """
        native = stored.newbyteorder("=")
        if self.types is None or native.str[1:] in self.types:
            return native
        for code in self.types:
            if np.can_cast(native, code, "safe"):
                return np.dtype(code)
        raise UsageError(
            f"{file}: {self.name} cannot hold {native} without loss. Choose another kind of file, such as "
            f"{file.stem}.npy."
        )
