"""Frames as a page asks for them: a part of a frame, at the resolution of a screen, in few bytes."""

from __future__ import annotations

import threading
from collections import OrderedDict
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..inputs.shown import Shown, ShownLevel
from ..store import pyramid, store

CACHE_BYTES = 2**28
EMPTY = 2**16 - 1  # stands for NaN among 16-bit numbers


@dataclass(frozen=True)
class View:
    """What a page shows of a movie: rows and columns in pixels of the movie, and the side of what is one pixel here."""

    rows: tuple[int, int]
    columns: tuple[int, int]
    pixels: int


@dataclass(frozen=True)
class Packed:
    """A part of a frame: codes, which mean ``offset + scale * code``."""

    codes: NDArray[Any]  # of 8 or 16 bits, little-endian
    offset: float
    scale: float


class Frames:
    """Frames of one movie, of which those that were shown last stay in memory.

    A chunk of a store holds a few frames, and whoever needs one of them decodes all. So all of them are kept, as small
    as they are shown: the next frames of a movie that plays are there.

    Parameters
    ----------
    shown : Shown
    """

    def __init__(self, shown: Shown) -> None:
        self.shown = shown
        self._kept: OrderedDict[tuple[Any, ...], NDArray[Any]] = OrderedDict()
        self._lock = threading.Lock()
        self._busy: dict[tuple[Any, ...], threading.Lock] = {}

    def packed(self, frame: int, view: View) -> Packed:
        """A part of a frame, as few bytes.

        Raises
        ------
        InputError
            If it is damaged.
        """
        per_group = store.CHUNK_FRAMES
        return pack(self._group(frame // per_group, view)[frame % per_group])

    def _group(self, number: int, view: View) -> NDArray[Any]:
        key = (number, view)
        with self._lock:
            if key in self._kept:
                self._kept.move_to_end(key)
                return self._kept[key]
            busy = self._busy.setdefault(key, threading.Lock())
        with busy:  # one thread decodes, the others wait for it
            with self._lock:
                if key in self._kept:
                    return self._kept[key]
            first = number * store.CHUNK_FRAMES
            last = min(first + store.CHUNK_FRAMES, self.shown.store.shape[0])
            values = read_view(self.shown.levels, (first, last), view)
            with self._lock:
                self._kept[key] = values
                self._busy.pop(key, None)
                while len(self._kept) > 1 and sum(v.nbytes for v in self._kept.values()) > CACHE_BYTES:
                    self._kept.popitem(last=False)
        return values


def read_view(levels: list[ShownLevel], frames: tuple[int, int], view: View) -> NDArray[Any]:
    """Some frames of a movie at a resolution, from the coarsest level that has it, or a finer one.

    Parameters
    ----------
    levels : list of ShownLevel
        From full resolution down.
    frames : tuple of int
        The first, and the one after the last.
    view : View

    Returns
    -------
    ndarray, shape (n_frames, rows, columns)
        In the type of the store at full resolution, float32 elsewhere.
    """
    level = max((each for each in levels if view.pixels % each.pixels == 0), key=lambda each: each.pixels)
    rows, columns = (
        slice(first // level.pixels, -(-last // level.pixels)) for first, last in (view.rows, view.columns)
    )
    values = np.asarray(level.array[slice(*frames), rows, columns])
    step = view.pixels // level.pixels
    return values if step == 1 else pyramid.mean(values, (1, step, step))


def pack(values: NDArray[Any]) -> Packed:
    """A frame in codes: its counts where they fit into 8 bits, else 16 bits from its least to its largest value."""
    if values.dtype == np.uint8:
        return Packed(np.ascontiguousarray(values), 0.0, 1.0)
    finite = np.isfinite(values)
    seen = values[finite]
    if not seen.size:
        return Packed(np.full(values.shape, EMPTY, "<u2"), 0.0, 1.0)
    low, high = float(seen.min()), float(seen.max())
    scale = (high - low) / (EMPTY - 1) or 1.0
    with np.errstate(invalid="ignore"):
        codes = np.rint((values - low) / scale)
    return Packed(np.where(finite, np.clip(codes, 0, EMPTY - 1), EMPTY).astype("<u2"), low, scale)


@dataclass
class Disc:
    """Pixels about a place."""

    row: int
    column: int
    radius: int  # 0 is the pixel itself
    shape: tuple[int, int]
    rows: slice = field(init=False)
    columns: slice = field(init=False)

    def __post_init__(self) -> None:
        self.rows, self.columns = (
            slice(max(0, centre - self.radius), min(size, centre + self.radius + 1))
            for centre, size in zip((self.row, self.column), self.shape, strict=True)
        )

    @property
    def inside(self) -> NDArray[np.bool_]:
        """Which of the rows and columns belong to it."""
        y, x = np.ogrid[self.rows, self.columns]
        return np.asarray((y - self.row) ** 2 + (x - self.column) ** 2 <= self.radius**2)


def means_in(array: Any, frames: tuple[int, int], disc: Disc) -> NDArray[np.float64]:
    """Mean of the pixels of a disc in some frames; NaN where a pixel is."""
    values = np.asarray(array[slice(*frames), disc.rows, disc.columns])
    return np.asarray(values[:, disc.inside].mean(axis=1, dtype=np.float64))
