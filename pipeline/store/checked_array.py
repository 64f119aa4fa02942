"""Read an array of a store, and believe nothing: every shard must be the one that was written in its place.

A shard that is missing reads as the fill value, and one that lies in the place of another as its values; Zarr raises
for neither. So whoever reads the array of a `store.Store` reads it through here.
"""

from __future__ import annotations

import functools
import hashlib
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tdenoise.files.atomic import patiently

from ..errors import InputError
from . import shards
from .blocks import Region

DOOR_THREADS = 8  # that look at all shards of a movie: they wait for a file server

# What zarr-python raises on a chunk that does not decode. Errors of the disk are none of these, and may pass.
NOT_DECODED = (LookupError, TypeError, ValueError, RuntimeError, ArithmeticError)


class CheckedArray:
    """An array of a finished store, read-only.

    After a read, the shards that it touched are compared with what was recorded when they were written: each time by
    the end of the file (about 30 microseconds), and the first time in a process by the hash of all their content, which
    decodes a few frames of the shard at a time. A store that is replaced while someone reads it thus makes the reader
    fail, and never gives it parts of both. Has all else that a ``zarr.Array`` has.

    Parameters
    ----------
    array : zarr.Array
    store : Path
    name : str
        Of the array.
    record : ndarray of uint64, shape (*grid, 2 or 3), or None
        Of every shard, the two halves of the hash of its content, and, in stores of newer versions, the mark of
        `shards.look_at`. None where the store has no such record.
    origin : str
        `seal_of` the store when it was opened.
    reopen : callable
        Opens the array again, in another process.
    deep : bool
        Compare the content. Without, its chunks are still compared with their checksums.
    """

    def __init__(
        self,
        array: Any,
        store: Path,
        name: str,
        record: NDArray[np.uint64] | None,
        origin: str,
        reopen: Callable[[], CheckedArray],
        deep: bool = True,
    ) -> None:
        self._array = array
        self._store = store
        self._folder = store / name
        self._record = record
        self.origin = origin
        self._reopen = reopen
        self._deep = deep
        self._sound: dict[str, int] = {}  # mark of the shards that were compared, by grid position

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):  # also while it is unpickled, before there is an array
            raise AttributeError(name)
        return getattr(self._array, name)

    def __reduce__(self) -> tuple[Any, ...]:
        return self._reopen, ()

    def __dask_tokenize__(self) -> tuple[str, str]:
        return str(self._folder), self.origin

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> NDArray[Any]:
        return np.asarray(self[...], dtype)

    def __getitem__(self, key: Any) -> NDArray[Any]:
        region = self._touched(key)
        try:
            values = np.asarray(self._array[key])
        except NOT_DECODED as error:
            self.check(region)  # which names the shard
            raise InputError(self._folder, f"cannot be read ({error}). {self._advice()}") from None
        self.check(region)
        return values

    def check(self, region: Region) -> None:
        """Compare all shards that hold a part of a region.

        Raises
        ------
        InputError
            If one is missing, damaged, or not the one that was written there.
        """
        if 0 in region.shape:
            return
        for shard in shards.shards_touching(region, self._array.shape, self._array.shards):
            self._check(shard, self._deep)

    def check_all(self) -> None:
        """Look at the end of every shard file, at the door of a step that will read them.

        Raises
        ------
        InputError
            Of the first that is missing, damaged, or not the one that was written there.
        """
        whole = Region(*((0, n) for n in self._array.shape))
        look = functools.partial(self._check, deep=False)
        with ThreadPoolExecutor(DOOR_THREADS, thread_name_prefix="look") as pool:
            try:
                for _ in pool.map(look, shards.shards_in(whole, self._array.shards)):
                    pass
            except BaseException:
                pool.shutdown(wait=False, cancel_futures=True)
                raise

    def _check(self, shard: Region, deep: bool) -> None:
        key = shards.shard_key(shard, self._array.shards)
        index = shards.shard_index(key)
        file = self._folder.joinpath("c", *map(str, index))
        used = shards.n_chunks(shard, self._array.chunks)
        look = functools.partial(shards.look_at, file, self._array.shards, self._array.chunks, used)
        damage, mark = patiently(look)
        if damage is not None:
            raise InputError(file, f"{damage}. {self._advice()}")
        if self._record is None or self._sound.get(key) == mark:
            return
        recorded = self._record[index]
        sound = len(recorded) < 3 or int(recorded[2]) == mark
        if sound and deep:
            layout = shards.Layout.of(self._array)
            content = patiently(functools.partial(shards.content_of, file, layout, shard.shape))
            sound = content == shards.hash_of(recorded)
        if not sound:
            raise InputError(file, f"holds other data than was written there. {self._advice()}")
        if deep:
            self._sound[key] = mark

    def _advice(self) -> str:
        if seal_of(self._store) != self.origin:
            return f"{self._store.name} was replaced while it was being read. Open it, or start the command, again."
        return advice(self._store)

    def _touched(self, key: Any) -> Region:
        """The smallest region that holds all of what a key selects."""
        keys = list(key) if isinstance(key, tuple) else [key]
        if Ellipsis in [k for k in keys if not isinstance(k, np.ndarray)]:
            at = next(i for i, k in enumerate(keys) if k is Ellipsis)
            keys[at : at + 1] = [slice(None)] * (self._array.ndim - len(keys) + 1)
        keys += [slice(None)] * (self._array.ndim - len(keys))
        bounds = []
        for part, size in zip(keys, self._array.shape, strict=True):
            picked = np.arange(size)[part]
            first, last = (int(picked.min()), int(picked.max())) if picked.size else (0, -1)
            bounds.append((first, last + 1))
        return Region(*bounds)


def advice(store: Path) -> str:
    """What to do about a damaged store."""
    return f"Run 'verify {store.name} --repair' to repair it."


def seal_of(store: Path) -> str:
    """sha256 of the metadata at the root of a store: another one as soon as the store is another; empty if missing."""
    try:
        return hashlib.sha256((store / "zarr.json").read_bytes()).hexdigest()
    except OSError:
        return ""
