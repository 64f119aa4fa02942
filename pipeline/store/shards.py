"""Shard files of Zarr v3, written in one go and proved by reading them back.

A shard is its chunks one after another, then an index with the offset and length of each, then the index's
crc32c (https://zarr-specs.readthedocs.io, codec ``sharding_indexed``). Written here rather than through
zarr-python, which spends as long on a shard as its compression takes. Any reader of Zarr v3 opens the result.
"""

from __future__ import annotations

import math
import os
import struct
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

import google_crc32c
import numpy as np
import xxhash
from numcodecs.blosc import BITSHUFFLE, Blosc
from numpy.typing import NDArray

from tdenoise.files.atomic import fsync, patiently, unique_partial

from ..errors import VerificationError
from ..files.fault_points import maybe_crash
from .blocks import Region, spans

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
    for_each : callable
        Calls a function on every chunk: `map`, or that of a pool of threads, which packs them side by side.
    """

    def __init__(self, layout: Layout, for_each: Callable[..., Iterable[Any]] = map) -> None:
        self._layout, self._for_each = layout, for_each
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

        def packed(chunk: tuple[int, Region]) -> tuple[int, bytes, bytes, int]:
            number, region = chunk
            padded = _padded(values[region.slices], self._layout)
            content = _BLOSC.encode(padded)
            return number, content, _checksum(content), xxhash.xxh3_128_intdigest(padded.data)

        for number, content, checksum, digest in self._for_each(packed, _chunks(values.shape, self._layout)):
            self._parts += [content, checksum]
            self._digests[first + number] = digest
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
    return look_at(file, shard, chunk, used)[0]


def look_at(
    file: Path, shard: tuple[int, int, int], chunk: tuple[int, int, int], used: int
) -> tuple[str | None, int]:
    """What is wrong with a shard file, as `shard_damage` says, and what tells it from others, from the same read.

    Returns
    -------
    damage : str or None
    mark : int
        xxh3_64 of the end of the file: the checksum of its last chunk, and the place and length of every chunk.
        0 where the file is damaged.
    """
    n_chunks = math.prod(s // c for s, c in zip(shard, chunk, strict=True))
    table = 16 * n_chunks + 4
    try:
        with file.open("rb") as handle:
            size = os.fstat(handle.fileno()).st_size
            if size < table:
                return f"is cut: {size} bytes", 0
            handle.seek(-min(size, table + 4), os.SEEK_END)
            end = handle.read()
    except FileNotFoundError:
        return "is missing", 0
    index = _index(end[-table:])
    if index is None:
        return "has a damaged index", 0
    present = index[index[:, 0] != EMPTY]
    if len(present) < used:
        return f"lacks {used - len(present)} of {used} chunks", 0
    if int(present.sum(axis=1).max()) != size - table:
        return "has the wrong size", 0
    return None, xxhash.xxh3_64_intdigest(end)


def content_of(file: Path, layout: Layout, extent: tuple[int, int, int]) -> str | None:
    """Decode a shard, a few frames at a time, and hash its values.

    Parameters
    ----------
    file : Path
    layout : Layout
    extent : tuple of int
        Frames, rows and columns of the shard that lie in the movie.

    Returns
    -------
    str or None
        xxh3_128 of the values in C order, little-endian; None where a chunk does not decode.
    """
    content = xxhash.xxh3_128()
    room = np.empty(layout.chunk, dtype=layout.dtype)
    per_chunk = layout.chunk[0]
    with file.open("rb") as handle:
        index = _read_index(handle, layout)
        if index is None:
            return None
        for first in range(0, extent[0], per_chunk):
            part = np.empty((min(per_chunk, extent[0] - first), *extent[1:]), dtype=layout.dtype)
            before = first // per_chunk * layout.grid[1] * layout.grid[2]
            for number, region in _chunks(part.shape, layout):
                if not _decode(handle, index[before + number], room):
                    return None
                part[region.slices] = room[tuple(slice(n) for n in region.shape)]
            content.update(part.data)
    return content.hexdigest()


def _holds(file: BinaryIO, digests: dict[int, int], layout: Layout) -> bool:
    """Whether a shard decodes to chunks with these hashes, with every checksum right."""
    index = _read_index(file, layout)
    if index is None:
        return False
    room = np.empty(layout.chunk, dtype=layout.dtype)
    return all(
        _decode(file, index[number], room) and xxhash.xxh3_128_intdigest(room.data) == digest
        for number, digest in digests.items()
    )


def _read_index(file: BinaryIO, layout: Layout) -> NDArray[np.uint64] | None:
    table = 16 * math.prod(layout.grid) + 4
    if file.seek(0, os.SEEK_END) < table:
        return None
    file.seek(-table, os.SEEK_END)
    return _index(file.read())


def _decode(file: BinaryIO, place: NDArray[np.uint64], room: NDArray[Any]) -> bool:
    """Read one chunk of a shard into ``room``; whether its checksum is right and it decodes."""
    start, length = (int(n) for n in place)
    if start == EMPTY:
        return False
    file.seek(start)
    data = file.read(length)
    content = data[:-4]
    if len(data) != length or _checksum(content) != data[-4:]:
        return False
    try:
        _BLOSC.decode(content, room)
    except (RuntimeError, ValueError):
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


def shard_index(key: str) -> tuple[int, ...]:
    """Position in the grid of shards as numbers."""
    return tuple(map(int, key.split(".")))


def shard_key(region: Region, shard: tuple[int, int, int]) -> str:
    """Grid position of a shard, such as ``"0.1.2"``, from its extent."""
    starts = (region.frames[0], region.rows[0], region.columns[0])
    return ".".join(str(start // n) for start, n in zip(starts, shard, strict=True))


def n_chunks(region: Region, chunk: tuple[int, int, int]) -> int:
    """Number of chunks of a shard that lie in the movie."""
    return int(np.prod([-(-n // c) for n, c in zip(region.shape, chunk, strict=True)]))


def shards_in(region: Region, shard: tuple[int, int, int]) -> Iterator[Region]:
    """The shards of a region that begins on shard borders."""
    for frames in spans(region.shape[0], shard[0]):
        for rows in spans(region.shape[1], shard[1]):
            for columns in spans(region.shape[2], shard[2]):
                yield Region(
                    (region.frames[0] + frames[0], region.frames[0] + frames[1]),
                    (region.rows[0] + rows[0], region.rows[0] + rows[1]),
                    (region.columns[0] + columns[0], region.columns[0] + columns[1]),
                )


def shards_touching(
    region: Region, shape: tuple[int, int, int], shard: tuple[int, int, int]
) -> Iterator[Region]:
    """The shards, clipped at the movie's edge, that hold a part of a region."""
    grown = [
        (s // n * n, min(-(-e // n) * n, size))
        for (s, e), n, size in zip((region.frames, region.rows, region.columns), shard, shape, strict=True)
    ]
    return shards_in(Region(*grown), shard)


def hash_of(recorded: NDArray[np.uint64]) -> str:
    """The hash of a shard's content, from its two halves."""
    return f"{int(recorded[0]):016x}{int(recorded[1]):016x}"
