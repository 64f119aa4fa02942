"""What tells that a store is as it was written: hashes of its files, of its arrays and of every shard."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import xxhash
import zarr
from numpy.typing import NDArray

from tdenoise.files.json_documents import parse_json

from . import shards

# What Zarr raises on metadata with a bit flipped somewhere: an unknown keyword, a division by zero, a shape of 2^60.
UNREADABLE = (
    OSError, LookupError, TypeError, ValueError, RuntimeError, AttributeError, ArithmeticError, AssertionError,
    MemoryError,
)  # fmt: skip


def small_files(path: Path) -> Iterator[str]:
    """All files of a store but those in the folders of its sharded arrays."""
    sharded = [array.parent / "c" for array in sharded_metadata(path)]
    for folder, folders, names in os.walk(path):
        here = Path(folder)
        folders[:] = sorted(f for f in folders if here / f not in sharded)
        yield from sorted((here / name).relative_to(path).as_posix() for name in names)


def sharded_metadata(path: Path) -> Iterator[Path]:
    """The ``zarr.json`` of every sharded array of a store, none of them opened by Zarr."""
    for folder, folders, names in os.walk(path):
        folders[:] = sorted(f for f in folders if f != "c")
        if "zarr.json" in names:
            file = Path(folder) / "zarr.json"
            if b"sharding_indexed" in file.read_bytes() and Path(folder) != path:
                yield file


def small_arrays(group: Any) -> Iterator[tuple[str, Any]]:
    """Name and array of what lies beside the movie at the root of a store: coordinates, maps, drift."""
    for key, array in sorted(group.arrays()):
        if array.shards is None:
            yield key, array


def file_hash(file: Path) -> str:
    """sha256 of a file."""
    return hashlib.sha256(file.read_bytes()).hexdigest()


def grid_of(array: Any) -> tuple[int, ...]:
    """Shards of an array in every direction."""
    return tuple(-(-n // s) for n, s in zip(array.shape, array.shards, strict=True))


def recorded_grid(file: Path) -> tuple[int, ...] | None:
    """Number of shards in every direction, from the metadata of an array; None where they cannot be read."""
    try:
        document = parse_json(file.read_bytes())
        shard = document["chunk_grid"]["configuration"]["chunk_shape"]
        return tuple(-(-n // s) for n, s in zip(document["shape"], shard, strict=True))
    except UNREADABLE:
        return None


def content_hash(values: NDArray[Any]) -> str:
    """xxh3_128 of the decoded bytes in C order, little-endian."""
    return xxhash.xxh3_128_hexdigest(np.ascontiguousarray(values).data)


def array_hash(array: Any) -> str:
    """`content_hash` of the values of an array, of which those of one index are in memory at a time."""
    if array.ndim < 3:
        return content_hash(array[:])
    digest = xxhash.xxh3_128()
    for values in array:
        digest.update(np.ascontiguousarray(values).data)
    return digest.hexdigest()


def content_id(name: str, array: Any, hashes: dict[str, str]) -> str:
    """Identity of a store's content, from its shape, type and shard hashes."""
    parts = [name, str(array.dtype), *map(str, array.shape), *(f"{k}={hashes[k]}" for k in sorted(hashes))]
    return hashlib.sha256("\n".join(parts).encode()).hexdigest()


def recorded_hashes(path: Path, name: str) -> dict[str, str]:
    """Shard hashes that a finished store carries, by grid position."""
    table = recorded_table(path, name)
    return {".".join(map(str, index)): shards.hash_of(table[index]) for index in np.ndindex(table.shape[:-1])}


def recorded_marks(path: Path, name: str) -> dict[str, int]:
    """What tells the shard files of a finished store from each other, by grid position; stores of old versions do not.

    See `shards.look_at`.
    """
    table = recorded_table(path, name)
    if table.shape[-1] < 3:
        return {}
    return {".".join(map(str, index)): int(table[(*index, 2)]) for index in np.ndindex(table.shape[:-1])}


def recorded_table(path: Path, name: str) -> NDArray[np.uint64]:
    """What is recorded of every shard of an array: the two halves of its hash, and the mark of its file."""
    table: NDArray[np.uint64] = np.asarray(zarr.open_array(path / "integrity" / name, mode="r")[:])
    return table
