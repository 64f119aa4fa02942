"""Open a store as xarray knows it, every shard being compared with what was written when it is read."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import dask.array
import xarray

from ..errors import InputError
from ..settings.results import part_of_run
from ..store.checked_array import seal_of
from ..store.netcdf import plain_attributes
from ..store.store import DASK_CHUNK, DENOISED, MOVIE, VARIANCE, Store, open_store, read_attributes


def dask_of(opened: Store) -> dask.array.Array:
    """The array of a store that was opened, with one chunk for each shard."""
    chunks = tuple(map(min, opened.geometry.shard, DASK_CHUNK))
    return dask.array.from_array(opened.array, chunks=chunks, asarray=False)


def open_lazily(path: str | Path, lazily: Callable[[Store], Any] = dask_of) -> xarray.Dataset:
    """See `tdenoise_pipeline.open`. ``lazily`` says what stands for an array until it is read."""
    path = part_of_run(Path(path), "apply")
    name = MOVIE if read_attributes(path)["kind"] == "movie" else DENOISED
    opened = open_store(path, name, deep=False)
    dataset: xarray.Dataset = xarray.open_zarr(path, chunks=None)
    lazy = {}
    for key in (name, VARIANCE):
        if key in dataset:
            values = lazily(opened if key == name else open_store(path, key, deep=False))
            known = dataset[key].variable
            lazy[key] = xarray.Variable(known.dims, values, known.attrs, known.encoding)
    for small in set(dataset.variables) - set(lazy):
        dataset[small].load()  # later it might be that of a store which has replaced this one
    if seal_of(path) != opened.array.origin:
        raise InputError(path, "was replaced while it was opened. Open it again.")
    opened_lazily = dataset.assign(lazy)
    opened_lazily.attrs = plain_attributes(dataset.attrs)
    return opened_lazily
