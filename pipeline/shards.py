"""Shard files of Zarr v3, written in one go and proved by reading them back.

A shard is its chunks one after another, then an index with the offset and length of each, then the index's
crc32c (https://zarr-specs.readthedocs.io, codec ``sharding_indexed``). Written here rather than through
zarr-python, which spends as long on a shard as its compression takes. Any reader of Zarr v3 opens the result.
"""

from __future__ import annotations

import math
import os
import struct
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

import google_crc32c
import numpy as np
import xxhash
from numcodecs.blosc import BITSHUFFLE, Blosc
from numpy.typing import NDArray

from tdenoise.atomic import fsync, patiently, unique_partial

from .blocks import Region
from .errors import VerificationError
from .faults import maybe_crash

EMPTY = 2**64 - 1  # offset of a chunk that the index lists as absent
LEVEL = 3  # of zstd: levels above cost time and gain little on counts

_BLOSC = Blosc(cname="zstd", clevel=LEVEL, shuffle=BITSHUFFLE)


@dataclass(frozen=True)
class Layout:
    """What a shard of an array looks like."""

    shard: tuple[int, int, int]
    chunk: tuple[int, int, int]
    dtype: np.dtype[Any]
    fill_value: float

    @classmethod
    def of(cls, array: Any) -> Layout:
        """The layout of a `zarr.Array` that this project made."""
        return cls(array.shards, array.chunks, np.dtype(array.dtype).newbyteorder("<"), array.fill_value)

    @property
    def grid(self) -> tuple[int, int, int]:
        """Chunks per shard in every direction."""
        (t, y, x), (ct, cy, cx) = self.shard, self.chunk
        return t // ct, y // cy, x // cx


class ShardWriter:
    """One shard, packed a few frames at a time, then written in one go and proved by reading it back.

    Only what is packed stays in memory, so a shard may hold many more frames than are computed at a time.

    Parameters
    ----------
    layout : Layout
    """

    def __init__(self, layout: Layout) -> None:
        self._layout = layout
        self._parts: list[bytes] = []
        self._size = 0
        self._index = np.full((math.prod(layout.grid), 2), EMPTY, dtype="<u8")
        self._digests: dict[int, int] = {}  # of every chunk's content, by its number
        self._content = xxhash.xxh3_128()
        self._n_frames = 0

    def append(self, values: NDArray[Any]) -> None:
        """Pack the next frames.

        Parameters
        ----------
        values : ndarray, shape (n_frames, rows, columns)
            Smaller than the shard at the edge of the movie. Only the last call may end within a chunk.
        """
        per_chunk = self._layout.chunk[0]
        if self._n_frames % per_chunk:
            raise ValueError(f"{self._n_frames} frames before these do not fill chunks of {per_chunk}")
        first = self._n_frames // per_chunk * self._layout.grid[1] * self._layout.grid[2]
        for number, region in _chunks(values.shape, self._layout):
            chunk = _padded(values[region.slices], self._layout)
            content = _BLOSC.encode(chunk)
            self._parts += [content, _checksum(content)]
            self._digests[first + number] = xxhash.xxh3_128_intdigest(chunk.data)
            self._index[first + number] = self._size, len(content) + 4
            self._size += len(content) + 4
        self._content.update(np.ascontiguousarray(values, dtype=self._layout.dtype).data)
        self._n_frames += len(values)

    def write(self, array: Path, index: tuple[int, ...], allowed: Callable[[], None] | None = None) -> str:
        """Write what was packed, make it durable, and compare what the file then holds with it.

        Parameters
        ----------
        array : Path
            Folder of the array; never made here: a writer that comes late finds it gone.
        index : tuple of int
            Position in the grid of shards. A reader sees the old shard or the new one, whole.
        allowed : callable, optional
            Asked before the shard gets its name; raises if it must not.

        Returns
        -------
        str
            xxh3_128 of the values in C order, little-endian.

        Raises
        ------
        VerificationError
            If what was read back is not what was written.
        """
        table = self._index.tobytes()
        file = array.joinpath("c", *map(str, index))
        patiently(lambda: _make_folders(array, file))
        patiently(lambda: _write(file, [*self._parts, table, _checksum(table)], allowed))
        if not patiently(lambda: self._is_in(file)):
            raise VerificationError(
                f"{file}: what was read back differs from what was written. Check the disk."
            )
        maybe_crash("shard.checked")
        return self._content.hexdigest()

    def _is_in(self, file: Path) -> bool:
        with file.open("rb") as handle:
            return _holds(handle, self._digests, self._layout)


def _make_folders(array: Path, file: Path) -> None:
    """The folders of a shard in the array's, which must be there."""
    missing = [folder for folder in file.parents if folder.is_relative_to(array) and folder != array]
    for folder in reversed(missing):
        try:
            folder.mkdir()
        except FileExistsError:
            continue
        fsync(folder.parent)


def _write(file: Path, parts: list[bytes], allowed: Callable[[], None] | None) -> None:
    partial = unique_partial(file)
    try:
        with partial.open("wb") as handle:
            maybe_crash("shard.opened")
            handle.writelines(parts)
            handle.flush()
            os.fsync(handle.fileno())
        maybe_crash("shard.synced")
        if allowed is not None:
            allowed()
        partial.replace(file)
    except BaseException:
        partial.unlink(missing_ok=True)
        raise
    maybe_crash("shard.renamed")
    fsync(file.parent)


def shard_damage(
    file: Path, shard: tuple[int, int, int], chunk: tuple[int, int, int], used: int
) -> str | None:
    """What is wrong with a shard file, judged by its index alone (about 20 microseconds); None if nothing.

    ``used`` is the number of chunks that lie in the movie.
    """
    n_chunks = math.prod(s // c for s, c in zip(shard, chunk, strict=True))
    try:
        with file.open("rb") as handle:
            size = os.fstat(handle.fileno()).st_size
            if size < 16 * n_chunks + 4:
                return f"is cut: {size} bytes"
            handle.seek(-(16 * n_chunks + 4), os.SEEK_END)
            tail = handle.read()
    except FileNotFoundError:
        return "is missing"
    index = _index(tail)
    if index is None:
        return "has a damaged index"
    present = index[index[:, 0] != EMPTY]
    if len(present) < used:
        return f"lacks {used - len(present)} of {used} chunks"
    if int(present.sum(axis=1).max()) != size - len(tail):
        return "has the wrong size"
    return None


def _holds(file: BinaryIO, digests: dict[int, int], layout: Layout) -> bool:
    """Whether a shard decodes to chunks with these hashes, with every checksum right."""
    table = 16 * math.prod(layout.grid) + 4
    if file.seek(0, os.SEEK_END) < table:
        return False
    file.seek(-table, os.SEEK_END)
    index = _index(file.read())
    if index is None:
        return False
    room = np.empty(layout.chunk, dtype=layout.dtype)
    for number, digest in digests.items():
        start, length = (int(n) for n in index[number])
        file.seek(start)
        data = file.read(length)
        content = data[:-4]
        if len(data) != length or _checksum(content) != data[-4:]:
            return False
        try:
            _BLOSC.decode(content, room)
        except (RuntimeError, ValueError):
            return False
        if xxhash.xxh3_128_intdigest(room.data) != digest:
            return False
    return True


def _chunks(shape: tuple[int, ...], layout: Layout) -> Iterator[tuple[int, Region]]:
    """Number in the index, and extent, of the chunks that hold a part of frames that begin where the shard does."""
    for number, index in enumerate(np.ndindex(layout.grid)):
        starts = [i * c for i, c in zip(index, layout.chunk, strict=True)]
        if all(start < n for start, n in zip(starts, shape, strict=True)):
            t, y, x = (
                (start, min(start + c, n)) for start, c, n in zip(starts, layout.chunk, shape, strict=True)
            )
            yield number, Region(t, y, x)


def _padded(part: NDArray[Any], layout: Layout) -> NDArray[Any]:
    """A chunk of full size; behind the edge of the movie lies the fill value."""
    if part.shape == layout.chunk:
        return np.ascontiguousarray(part, dtype=layout.dtype)
    whole = np.full(layout.chunk, layout.fill_value, dtype=layout.dtype)
    whole[tuple(slice(n) for n in part.shape)] = part
    return whole


def _checksum(data: bytes) -> bytes:
    return struct.pack("<I", google_crc32c.value(data))


def _index(tail: bytes) -> NDArray[np.uint64] | None:
    """The index at the end of a shard; None if its checksum is wrong."""
    if len(tail) < 4 or _checksum(tail[:-4]) != tail[-4:]:
        return None
    return np.frombuffer(tail[:-4], "<u8").reshape(-1, 2)
