"""Shard files of Zarr v3, written whole in one go and proved by reading them back.

A shard is its chunks one after another, then an index with the offset and length of each, then the index's
crc32c (https://zarr-specs.readthedocs.io, codec ``sharding_indexed``). Written here rather than through
zarr-python, which spends as long on a shard as its compression takes. Any reader of Zarr v3 opens the result.
"""

from __future__ import annotations

import os
import struct
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

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


def write(
    array: Path,
    index: tuple[int, ...],
    values: NDArray[Any],
    layout: Layout,
    allowed: Callable[[], None] | None = None,
) -> None:
    """Write one whole shard, make it durable, and compare what the file then holds with ``values``.

    Parameters
    ----------
    array : Path
        Folder of the array; never made here: a writer that comes late finds it gone.
    index : tuple of int
        Position in the grid of shards. A reader sees the old shard or the new one, whole.
    values : ndarray
        What the shard holds; smaller than the shard at the edge of the movie.
    layout : Layout
    allowed : callable, optional
        Asked before the shard gets its name; raises if it must not.

    Raises
    ------
    VerificationError
        If what was read back is not what was written.
    """
    parts, digests = _encode(values, layout)
    file = array.joinpath("c", *map(str, index))
    patiently(lambda: _make_folders(array, file))
    patiently(lambda: _write(file, parts, allowed))
    if not _holds(patiently(file.read_bytes), digests, layout):
        raise VerificationError(f"{file}: what was read back differs from what was written. Check the disk.")
    maybe_crash("shard.checked")


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
    n_chunks = int(np.prod([s // c for s, c in zip(shard, chunk, strict=True)]))
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


def _encode(values: NDArray[Any], layout: Layout) -> tuple[list[bytes], dict[int, int]]:
    """The parts of a shard file in their order, and the hash of every chunk's content by its number."""
    index = np.full((int(np.prod(layout.grid)), 2), EMPTY, dtype="<u8")
    parts, digests, position = [], {}, 0
    for number, region in _chunks(values.shape, layout):
        chunk = _padded(values[region.slices], layout)
        content = _BLOSC.encode(chunk)
        parts += [content, _checksum(content)]
        digests[number] = xxhash.xxh3_128_intdigest(chunk.data)
        index[number] = position, len(content) + 4
        position += len(content) + 4
    table = index.tobytes()
    return [*parts, table, _checksum(table)], digests


def _holds(data: bytes, digests: dict[int, int], layout: Layout) -> bool:
    """Whether a shard file decodes to chunks with these hashes, with every checksum right."""
    index = _index(data[-(16 * int(np.prod(layout.grid)) + 4) :])
    if index is None:
        return False
    room = np.empty(layout.chunk, dtype=layout.dtype)
    for number, digest in digests.items():
        start, length = (int(n) for n in index[number])
        content = data[start : start + length - 4]
        if _checksum(content) != data[start + length - 4 : start + length]:
            return False
        try:
            _BLOSC.decode(content, room)
        except (RuntimeError, ValueError):
            return False
        if xxhash.xxh3_128_intdigest(room.data) != digest:
            return False
    return True


def _chunks(shape: tuple[int, ...], layout: Layout) -> Iterator[tuple[int, Region]]:
    """Number in the index, and extent, of the chunks that hold a part of the movie."""
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
