"""Movies stored as an array in chunks, its axes in any order (HDF5, Zarr)."""

from __future__ import annotations

import itertools
import math
import threading
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..errors import InputError
from . import MovieInfo
from .frames import FrameReader
from .rawfile import RawFile, RawFolder

MAX_CHUNK_BYTES = 2**28  # decoded; more only where a single frame is larger
MAX_CHUNKS = 2**22
MAX_RATIO = 10_000  # of decoded to stored bytes; movies of counts stay below 100
_SLAB_BYTES = 2**25  # pieces in which an array without chunks is read
_CACHE_BYTES = 2**27


@dataclass(frozen=True)
class Layout:
    """Where a movie is in an array of two or more dimensions.

    Attributes
    ----------
    shape, chunk : tuple of int
        Of the array as it is stored; a chunk at the end of an axis may stick out.
    movie_axes : tuple of int
        Which of the array's axes are time, row and column.
    fixed : dict of int to int
        The index taken on each other axis.
    """

    shape: tuple[int, ...]
    chunk: tuple[int, ...]
    movie_axes: tuple[int, int, int]
    fixed: dict[int, int] = field(default_factory=dict)

    @property
    def grid(self) -> tuple[int, ...]:
        """Number of chunks along each axis."""
        return tuple(-(-n // c) for n, c in zip(self.shape, self.chunk, strict=True))

    @property
    def movie_shape(self) -> tuple[int, ...]:
        return tuple(self.shape[axis] for axis in self.movie_axes)

    def chunks_of(self, start: int, stop: int) -> itertools.product[tuple[int, ...]]:
        """The chunks that hold some of the frames ``[start, stop)``."""
        time = self.movie_axes[0]
        along = [range(n) for n in self.grid]
        along[time] = range(start // self.chunk[time], -(-stop // self.chunk[time]))
        for axis, index in self.fixed.items():
            place = index // self.chunk[axis]
            along[axis] = range(place, place + 1)
        return itertools.product(*along)


def slabs(shape: tuple[int, ...], item_bytes: int) -> tuple[int, ...]:
    """Chunks of bounded size that are unbroken runs of an array stored without chunks."""
    chunk = list(shape)
    for axis in range(len(shape)):
        row_bytes = math.prod(shape[axis + 1 :]) * item_bytes
        chunk[axis] = max(1, min(shape[axis], _SLAB_BYTES // max(row_bytes, 1)))
        if row_bytes <= _SLAB_BYTES:
            break
    return tuple(chunk)


def check_chunks(file: RawFile | RawFolder, layout: Layout, dtype: np.dtype[Any]) -> None:
    """Refuse chunks whose size or number only a damaged or hostile header gives."""
    frame_bytes = layout.movie_shape[1] * layout.movie_shape[2] * dtype.itemsize
    chunk_bytes = math.prod(layout.chunk) * dtype.itemsize
    size = " x ".join(str(n) for n in layout.chunk)
    one_frame = layout.chunk[layout.movie_axes[0]] == 1 and chunk_bytes <= 2 * frame_bytes
    if min(layout.chunk) < 1 or (chunk_bytes > MAX_CHUNK_BYTES and not one_frame):
        raise InputError(
            file.path,
            f"is stored in chunks of {size} {dtype}, {chunk_bytes / 2**20:.0f} MiB each; at most "
            f"{MAX_CHUNK_BYTES >> 20} MiB or one frame are read at once. Rewrite it in smaller chunks.",
        )
    if math.prod(layout.grid) > MAX_CHUNKS:
        raise InputError(
            file.path,
            f"is stored in {math.prod(layout.grid)} chunks of {size}; at most {MAX_CHUNKS} are read. "
            "Rewrite it in larger chunks.",
        )


class Run:
    """An array stored as one run of bytes, read in pieces."""

    def __init__(self, file: RawFile, first: int, layout: Layout, stored: np.dtype[Any]) -> None:
        end = first + math.prod(layout.shape) * stored.itemsize
        if end > file.size:
            raise InputError(
                file.path, f"damaged: its frames should end at byte {end} of {file.size}. Copy it again."
            )
        self._file = file
        self._first = first
        self._layout = layout
        self._stored = stored

    def fetch(self, place: tuple[int, ...]) -> NDArray[Any]:
        """The piece at a place of the grid, cut off at the end of the array."""
        layout = self._layout
        corner = [p * c for p, c in zip(place, layout.chunk, strict=True)]
        sizes = [min(c, n - at) for c, n, at in zip(layout.chunk, layout.shape, corner, strict=True)]
        before = sum(at * math.prod(layout.shape[k + 1 :]) for k, at in enumerate(corner))
        piece = np.empty(sizes, self._stored)
        self._file.read_into(piece, self._first + before * self._stored.itemsize)
        return piece


class ChunkedReader(FrameReader):
    """Frames put together from chunks.

    Chunks that reach beyond the frames asked for are kept for the next call, up to a bounded size.

    Parameters
    ----------
    file : RawFile or RawFolder
    info : MovieInfo
    layout : Layout
    fetch : callable
        Gives the chunk at a place of the grid, of shape ``layout.chunk``; called from several threads.
    """

    def __init__(
        self,
        file: RawFile | RawFolder,
        info: MovieInfo,
        layout: Layout,
        fetch: Callable[[tuple[int, ...]], NDArray[Any]],
    ) -> None:
        super().__init__(file, info)
        self._layout = layout
        self._fetch = fetch
        self._kept: OrderedDict[tuple[int, ...], NDArray[Any]] = OrderedDict()
        self._lock = threading.Lock()

    def _fill(self, start: int, stop: int, out: NDArray[Any]) -> None:
        layout = self._layout
        for place in layout.chunks_of(start, stop):
            corner = [p * c for p, c in zip(place, layout.chunk, strict=True)]
            first = corner[layout.movie_axes[0]]
            last = first + layout.chunk[layout.movie_axes[0]]
            chunk = self._chunk(place, keep=first < start or stop < min(last, self.info.shape[0]))
            inside: list[slice | int] = [slice(None)] * len(layout.shape)
            for axis, index in layout.fixed.items():
                inside[axis] = index - corner[axis]
            # What is left are time, row and column, in the order of the file.
            stored_order = sorted(layout.movie_axes)
            piece = chunk[tuple(inside)].transpose([stored_order.index(axis) for axis in layout.movie_axes])
            target, source = [], []
            window = ((start, stop), (0, out.shape[1]), (0, out.shape[2]))
            for axis, size, (low, high) in zip(layout.movie_axes, piece.shape, window, strict=True):
                begin, end = max(corner[axis], low), min(corner[axis] + size, high)
                target.append(slice(begin - low, end - low))
                source.append(slice(begin - corner[axis], end - corner[axis]))
            out[tuple(target)] = piece[tuple(source)]

    def _chunk(self, place: tuple[int, ...], keep: bool) -> NDArray[Any]:
        with self._lock:
            if (found := self._kept.get(place)) is not None:
                self._kept.move_to_end(place)
                return found
        chunk = self._fetch(place)
        if keep and chunk.nbytes <= _CACHE_BYTES:
            with self._lock:
                self._kept[place] = chunk
                while sum(kept.nbytes for kept in self._kept.values()) > _CACHE_BYTES:
                    self._kept.popitem(last=False)
        return chunk
