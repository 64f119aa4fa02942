"""From a raw movie to a denoised Zarr store: readers, stores, plans, steps and the command line."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import xarray


def open(path: str | Path) -> xarray.Dataset:
    """Open a movie store or a denoised store, with one Dask chunk per shard.

    ``xarray.open_zarr(path)`` opens the same data; its Dask chunks are Zarr's small inner chunks, which makes
    large graphs.

    Parameters
    ----------
    path : str or Path
        A finished store.

    Returns
    -------
    xarray.Dataset
        ``counts(t, y, x)``, or ``denoised(t, y, x)`` and, if written, ``variance(t, y, x)``, lazily loaded; and
        the small arrays beside it.
    """
    import xarray

    from .store import DASK_CHUNK, DENOISED, MOVIE, VARIANCE, open_store, read_attributes

    path = Path(path)
    name = MOVIE if read_attributes(path)["kind"] == "movie" else DENOISED
    chunks = dict(zip("tyx", map(min, open_store(path, name).geometry.shard, DASK_CHUNK), strict=True))
    dataset: xarray.Dataset = xarray.open_zarr(path, chunks=None)
    sharded = [key for key in (name, VARIANCE) if key in dataset]
    return dataset.assign({key: dataset[key].chunk(chunks) for key in sharded})
