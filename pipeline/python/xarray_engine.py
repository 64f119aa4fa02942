"""``xarray.open_dataset("movie.dm4", engine="tdenoise")``: raw movies of every format, read when they are needed.

Stores and runs, too, with attributes that every kind of file holds: those of a Zarr store must be nested for OME-Zarr.
"""

from __future__ import annotations

import os
from collections.abc import Iterable
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import xarray
from numpy.typing import NDArray
from xarray.backends import BackendArray, BackendEntrypoint, CachingFileManager
from xarray.core import indexing

from ..errors import UsageError
from ..ingest.own_store import is_ours, open_movie_of
from ..readers import CAMERA_SUFFIXES, MovieInfo, Reader
from ..settings.results import is_run_folder, part_of_run
from ..store.netcdf import plain_attributes
from . import accessor  # noqa: F401  (so that what it opens has it)

COUNTS = "counts"
CHUNK_BYTES, CHUNK_FRAMES = 2**26, 32  # of what `chunks={}` gives, at most
PIECE_BYTES = 2**26  # of frames, of which only a part is wanted, read at once
# Of other formats (.tif, .h5, .nc, .zarr, .mp4, ...), engine="tdenoise" says it.
OWN_SUFFIXES = (*CAMERA_SUFFIXES, ".hspy", ".npy")
# What a file may say, as attributes of ``counts``.
FACTS = ("exposure_s", "voltage_kv", "dose_rate_e_per_nm2_s", "camera", "format", "reader", "missing_frames")


class Engine(BackendEntrypoint):  # type: ignore[misc, no-any-unimported, unused-ignore]
    """Raw movies of electron microscopes, stores and runs, as `xarray.open_dataset` opens them."""

    description: ClassVar[str] = (
        "Open raw movies of electron microscopes (DM4, MRC, SER, TVIPS, MIB, SEQ, EMD, ...) and stores of tdenoise"
    )
    supports_groups: ClassVar[bool] = True
    open_dataset_parameters: ClassVar[tuple[str, ...] | None] = (
        "filename_or_obj",
        "drop_variables",
        "dataset",
        "channel",
        "allow_truncated",
    )

    def open_dataset(  # type: ignore[override, unused-ignore]
        self,
        filename_or_obj: str | os.PathLike[str],
        *,
        drop_variables: str | Iterable[str] | None = None,
        dataset: str | None = None,
        channel: int | None = None,
        allow_truncated: bool = False,
    ) -> xarray.Dataset:
        """Open a raw movie, or a store; frames are read when they are needed.

        Parameters
        ----------
        filename_or_obj : str or Path
            A file, a folder with one file for each frame, or a pattern. Or a store, or the folder of a run, for its
            denoised store: it is opened as by `tdenoise_pipeline.open`.
        drop_variables : str or iterable of str, optional
        dataset : str, optional
            Array to read, if a file contains several.
        channel : int, optional
            Channel to read, counted from 0.
        allow_truncated : bool, optional
            Read the complete frames of a file that was cut short.

        Returns
        -------
        xarray.Dataset
            ``counts(t, y, x)`` with coordinates in seconds and nanometres, where the file tells them; else they count
            frames and pixels. ``to_netcdf`` writes it.
        """
        dropped = [drop_variables] if isinstance(drop_variables, str) else list(drop_variables or ())
        if is_store(filename_or_obj):
            if dataset is not None or channel is not None or allow_truncated:
                raise UsageError(
                    f"{filename_or_obj}: is a store. Leave out dataset, channel and allow_truncated."
                )
            from .opening import open_lazily  # zarr and Dask take a second

            opened = open_lazily(Path(filename_or_obj), _lazily)
            return opened.drop_vars(dropped, errors="ignore")
        choices = {"dataset": dataset, "channel": channel, "allow_truncated": allow_truncated}
        path = str(Path(filename_or_obj).absolute())  # the working folder may be another one later
        manager = CachingFileManager(_open, path, mode="r", kwargs=choices)
        info = manager.acquire().info
        values = indexing.LazilyIndexedArray(_Counts(manager, info))
        known = {name: getattr(info, name) for name in FACTS if getattr(info, name) not in (None, 0)}
        if info.warnings:
            known["warnings"] = list(info.warnings)
        counts = xarray.Variable(("t", "y", "x"), values, {"units": "count", **known})
        counts.encoding = {"source": path, "preferred_chunks": {"t": _frames_of_chunk(info)}}
        opened = xarray.Dataset({COUNTS: counts}, _coordinates(info))
        opened.encoding["source"] = path
        opened.set_close(manager.close)
        return opened.drop_vars(dropped, errors="ignore")

    def open_groups_as_dict(  # type: ignore[override, unused-ignore]
        self,
        filename_or_obj: str | os.PathLike[str],
        *,
        drop_variables: str | Iterable[str] | None = None,
    ) -> dict[str, xarray.Dataset]:
        """Open a store and the record of its hashes, a group in it, without its coarser copies. A raw movie is one."""
        groups = {"/": self.open_dataset(filename_or_obj, drop_variables=drop_variables)}
        if is_store(filename_or_obj):
            from ..store.store import PYRAMID

            place = part_of_run(Path(filename_or_obj), "apply")
            for name, group in xarray.open_groups(
                place, engine="zarr", drop_variables=drop_variables
            ).items():
                if name != "/" and not name.startswith(f"/{PYRAMID}"):
                    groups[name] = group.assign_attrs(plain_attributes(group.attrs))
        return groups

    def open_datatree(  # type: ignore[override, unused-ignore]
        self,
        filename_or_obj: str | os.PathLike[str],
        *,
        drop_variables: str | Iterable[str] | None = None,
    ) -> xarray.DataTree:
        """The groups of `open_groups_as_dict` as a tree."""
        groups = self.open_groups_as_dict(filename_or_obj, drop_variables=drop_variables)
        return xarray.DataTree.from_dict(groups)

    def guess_can_open(self, filename_or_obj: Any) -> bool:
        """Whether a file is of a format that only cameras write."""
        if not isinstance(filename_or_obj, str | os.PathLike):
            return False
        return Path(filename_or_obj).suffix.lower() in OWN_SUFFIXES


def is_store(path: str | os.PathLike[str]) -> bool:
    """Whether a path is a store of tdenoise, be it damaged, or the folder of a run."""
    return is_run_folder(Path(path)) or is_ours(Path(path))


def _open(path: str, mode: str, **choices: Any) -> Reader:
    """Open a raw movie, as a file manager wants it: in another process it always names a mode."""
    return open_movie_of(Path(path), **choices)


def _frames_of_chunk(info: MovieInfo) -> int:
    frame = max(1, info.shape[1] * info.shape[2] * info.dtype.itemsize)
    return max(1, min(CHUNK_FRAMES, CHUNK_BYTES // frame, info.shape[0]))


def _coordinates(info: MovieInfo) -> dict[str, xarray.Variable]:
    """As in a movie store."""
    rows, columns = info.pixel_size_nm or (None, None)
    found = {}
    axes = (("t", info.frame_time_s, "s", "frame"), ("y", rows, "nm", "pixel"), ("x", columns, "nm", "pixel"))
    for size, (axis, step, unit, index_unit) in zip(info.shape, axes, strict=True):
        values = np.arange(size, dtype=np.float64) * (1.0 if step is None else step)
        found[axis] = xarray.Variable((axis,), values, {"units": index_unit if step is None else unit})
    if info.timestamps_s is not None:
        found["timestamp"] = xarray.Variable(("t",), info.timestamps_s, {"units": "s"})
    return found


def _lazily(opened: Any) -> Any:
    return indexing.LazilyIndexedArray(_Stored(opened.array))


class _Stored(BackendArray):  # type: ignore[misc, no-any-unimported, unused-ignore]
    """An array of a store, every shard of which is compared with what was written."""

    def __init__(self, array: Any) -> None:
        self._array = array
        self.shape, self.dtype = array.shape, array.dtype

    def __getitem__(self, key: Any) -> Any:
        return indexing.explicit_indexing_adapter(
            key, self.shape, indexing.IndexingSupport.BASIC, self._array.__getitem__
        )


class _Counts(BackendArray):  # type: ignore[misc, no-any-unimported, unused-ignore]
    """The frames of a raw movie, as xarray asks for them; opened again in another process."""

    def __init__(self, manager: Any, info: MovieInfo) -> None:
        self._manager = manager
        self.shape, self.dtype = info.shape, info.dtype

    def __getitem__(self, key: Any) -> Any:
        return indexing.explicit_indexing_adapter(key, self.shape, indexing.IndexingSupport.BASIC, self._read)

    def _read(self, key: tuple[Any, ...]) -> NDArray[Any]:
        """Some frames, or parts of them: never more whole frames at once than fit into a piece."""
        time, *field = key
        frames = range(self.shape[0])[time]
        single = isinstance(frames, int)
        wanted = range(frames, frames + 1) if single else frames
        reader = self._manager.acquire()
        part = (slice(None), *(k if isinstance(k, slice) else slice(k, k + 1) for k in field))
        height, width = (len(range(n)[k]) for n, k in zip(self.shape[1:], part[1:], strict=True))
        out = np.empty((len(wanted), height, width), self.dtype)
        whole = (height, width) == self.shape[1:]
        if whole and wanted.step == 1 and len(wanted):
            reader.read(wanted.start, wanted.stop, out)
        else:
            self._read_pieces(reader, wanted, part, out)
        index = (0 if single else slice(None), *(slice(None) if isinstance(k, slice) else 0 for k in field))
        return out[index]

    def _read_pieces(self, reader: Any, wanted: range, part: tuple[Any, ...], out: NDArray[Any]) -> None:
        frame = max(1, self.shape[1] * self.shape[2] * self.dtype.itemsize)
        n = 1 if wanted.step != 1 else max(1, PIECE_BYTES // frame)
        for first in range(0, len(wanted), n):
            some = wanted[first : first + n]
            piece = np.empty((len(some), *self.shape[1:]), self.dtype)
            reader.read(some[0], some[-1] + 1, piece)
            out[first : first + len(some)] = piece[part]
