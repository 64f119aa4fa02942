"""From a raw movie to a denoised Zarr store: readers, stores, plans, steps and the command line."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import xarray


def open(path: str | Path) -> xarray.Dataset:
    """Open a movie store or a denoised store, with one Dask chunk per shard.

    ``xarray.open_zarr(path)`` opens the same data; its Dask chunks are Zarr's small inner chunks, which makes
    large graphs, and a shard that is lost reads as its fill value. Here every shard that is read is compared with
    the record of what was written, and a store that is replaced meanwhile (``--force``) cannot be read any more:
    open it again.

    Parameters
    ----------
    path : str or Path
        A finished store; or the folder of a run, for its denoised store.

    Returns
    -------
    xarray.Dataset
        ``counts(t, y, x)``, or ``denoised(t, y, x)`` and, if written, ``variance(t, y, x)``, lazily loaded; and
        the small arrays beside it. ``to_netcdf`` writes it: the attribute ``tdenoise``, which is nested in the store,
        is JSON text here, and ``ome``, which tells viewers of the Zarr store, is left out.

    Raises
    ------
    InputError
        If it is damaged; also later, when a shard is read that is not the one that was written.
    """
    import dask.array
    import xarray

    from .errors import InputError
    from .settings.results import part_of_run
    from .store.checked_array import seal_of
    from .store.netcdf import plain_attributes
    from .store.store import DASK_CHUNK, DENOISED, MOVIE, VARIANCE, open_store, read_attributes

    path = part_of_run(Path(path), "apply")
    name = MOVIE if read_attributes(path)["kind"] == "movie" else DENOISED
    opened = open_store(path, name, deep=False)
    chunks = tuple(map(min, opened.geometry.shard, DASK_CHUNK))
    dataset: xarray.Dataset = xarray.open_zarr(path, chunks=None)
    lazy = {}
    for key in (name, VARIANCE):
        if key in dataset:
            array = (opened if key == name else open_store(path, key, deep=False)).array
            known = dataset[key].variable
            values = dask.array.from_array(array, chunks=chunks, asarray=False)
            lazy[key] = xarray.Variable(known.dims, values, known.attrs, known.encoding)
    for small in set(dataset.variables) - set(lazy):
        dataset[small].load()  # later it might be that of a store which has replaced this one
    if seal_of(path) != opened.array.origin:
        raise InputError(path, "was replaced while it was opened. Open it again.")
    opened_lazily = dataset.assign(lazy)
    opened_lazily.attrs = plain_attributes(dataset.attrs)
    return opened_lazily
