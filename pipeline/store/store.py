"""The movie store and the denoised store: Zarr v3 groups that ``xarray.open_zarr`` opens as they are.

One array ``(t, y, x)`` with coordinates at the root, in shards that have one writer each. A missing shard reads
as NaN or as the type's maximum, never as a plausible count; every chunk carries a crc32c, and the hash of every
shard's decoded content lies in ``integrity``.
"""

from __future__ import annotations

import functools
import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, cast

import numpy as np
import zarr
from numpy.typing import NDArray

from tdenoise.files.atomic import is_sealed
from tdenoise.files.json_documents import parse_json

from ..errors import InputError
from .blocks import Region
from .checked_array import CheckedArray, advice, seal_of
from .foreign import check_nodes
from .integrity import UNREADABLE, file_hash, grid_of, recorded_grid, recorded_table, sharded_metadata
from .store_attributes import StoreAttributes

PROFILE = 1  # version of the store layout
MOVIE, DENOISED = "counts", "denoised"  # the array that each kind of store holds
PYRAMID: Final = "pyramid"  # the coarser copies of an array, in a group of this name
VARIANCE: Final = "variance"  # of the expected counts, beside `DENOISED` where it was asked for
SHARD_FRAMES, SHARD_PIXELS = 32, 1024
DASK_CHUNK = (SHARD_FRAMES, SHARD_PIXELS, SHARD_PIXELS)  # of what `tdenoise_pipeline.open` returns, at most
MOVIE_SHARD_PIXELS = 2048  # of a movie store, whose counts are small: fewer files
LONG_SHARD_FRAMES, MANY_SHARDS = 128, 64  # of a denoised store that has at least so many of them: fewer files
CHUNK_FRAMES, CHUNK_PIXELS = 4, 512
DRAFT = "draft"  # what a network says, in a denoised store that is being made, before the counts have the last word
DRAFT_BITS = 12  # of the mantissa of a draft: so many that rounding it leaves no trace in the result
REPLACED_TRIES = 5  # to open a store that is replaced meanwhile
PYRAMID_BITS = 6  # of a pyramid, which is to look at: it takes under 35 % of the disk of the array
KEPT_BITS = 7  # of 23 in the mantissa of float32: +0.02 % error, 4 times smaller


@dataclass(frozen=True)
class Geometry:
    """How an array is cut into files (shards) and units of compression (chunks), in (t, y, x)."""

    shard: tuple[int, int, int]
    chunk: tuple[int, int, int]

    @classmethod
    def of(
        cls,
        shape: tuple[int, int, int],
        shard_frames: int = SHARD_FRAMES,
        shard_pixels: int = SHARD_PIXELS,
    ) -> Geometry:
        """The standard geometry for a movie of this shape; shards of at most so many frames, rows and columns.

        Examples
        --------
        >>> Geometry.of((1000, 4096, 300))
        Geometry(shard=(32, 1024, 300), chunk=(4, 512, 300))
        """
        pairs = [
            (CHUNK_PIXELS, min(shard_pixels, -(-n // CHUNK_PIXELS) * CHUNK_PIXELS))
            if n > CHUNK_PIXELS
            else (n, n)
            for n in shape[1:]
        ]
        frames = min(shard_frames, -(-shape[0] // CHUNK_FRAMES) * CHUNK_FRAMES)
        (chunk_y, shard_y), (chunk_x, shard_x) = pairs
        return cls((frames, shard_y, shard_x), (min(CHUNK_FRAMES, frames), chunk_y, chunk_x))


@dataclass(frozen=True)
class Coordinates:
    """Calibration of the axes; None where it is unknown."""

    frame_time_s: float | None
    pixel_size_nm: tuple[float, float] | None  # (row, column)
    first: tuple[float, float, float] = (0, 0, 0)  # where the first point lies, in steps from the raw movie's

    @property
    def axes(self) -> list[tuple[str, float | None, float]]:
        """Name, step and first index of every axis."""
        pixel = self.pixel_size_nm or (None, None)
        return list(zip("tyx", (self.frame_time_s, *pixel), self.first, strict=True))


def n_absent(path: Path) -> int:
    """How many files of a finished store are not there. What is in the others is for `verify` to say."""
    recorded = read_attributes(path).get("files", {})
    absent = sum(not (path / name).is_file() for name in recorded)
    for file in sharded_metadata(path):
        if (grid := recorded_grid(file)) is not None:
            absent += max(0, math.prod(grid) - sum(1 for _ in (file.parent / "c").glob("*/*/*")))
    return absent


def read_attributes(path: Path) -> dict[str, Any]:
    """The ``tdenoise`` attributes of a finished store, without opening any array.

    Raises
    ------
    InputError
        If the path is not a finished store of this profile.
    """
    try:
        data = (path / "zarr.json").read_bytes()
        document = parse_json(data)
        attributes = document["attributes"]["tdenoise"]
    except FileNotFoundError:
        hint = "no such store" if not path.exists() else "this is not a Zarr v3 store"
        if path.with_name(path.name + "-partial").exists():
            hint = "the run that writes it has not finished; run the same command again to continue it"
        raise InputError(path, hint) from None
    except NotADirectoryError:
        raise InputError(path, "it is a file and not a Zarr store; ingest a raw movie first") from None
    except (KeyError, TypeError):
        raise InputError(path, "a Zarr store, but not one of tdenoise; ingest the movie first") from None
    except (ValueError, OSError) as error:
        raise InputError(path / "zarr.json", f"cannot be read ({error})") from None
    if not isinstance(attributes, dict) or attributes.get("profile") != PROFILE:
        raise InputError(path, f"its layout is not profile {PROFILE} of tdenoise, which this version reads")
    # Stores of old versions have neither.
    if ("files" in attributes or "seal" in attributes) and not is_sealed(data):
        raise InputError(path / "zarr.json", f"was changed since the store was written. {advice(path)}")
    return attributes


def already_done(output: Path, plan: str) -> bool:
    """Whether an output is there and was made by this very plan."""
    try:
        return bool(read_attributes(output).get("plan") == plan)
    except InputError:
        return False


@dataclass(frozen=True)
class Store:
    """A finished store, opened read-only."""

    path: Path
    name: str  # of the array: counts or denoised
    array: Any  # CheckedArray, or in `verify` a zarr.Array, shape (n_frames, height, width)
    attributes: StoreAttributes
    units: str
    coordinates: Coordinates

    @property
    def shape(self) -> tuple[int, int, int]:
        n_frames, height, width = self.array.shape
        return n_frames, height, width

    @property
    def geometry(self) -> Geometry:
        return Geometry(self.array.shards, self.array.chunks)

    @property
    def id(self) -> str:
        """sha256 that stands for the content: shape, type and the hash of every shard."""
        found = self.attributes
        if self.name in found.get(PYRAMID, {}):
            return found[PYRAMID][self.name]["id"]
        return found[VARIANCE]["id"] if self.name == VARIANCE else found["id"]


def open_store(path: Path, name: str, *, deep: bool = True) -> Store:
    """Open a finished movie store (``counts``) or denoised store (``denoised``, its ``variance``, a level).

    Everything in it but the shards is compared with its recorded sha256; the shards when they are read.

    Parameters
    ----------
    path : Path
    name : str
        Of the array.
    deep : bool
        Compare the content of every shard that is read; see `checked_array.CheckedArray`.

    Raises
    ------
    InputError
        If it is missing, unfinished, damaged or of another kind.
    """
    for _ in range(REPLACED_TRIES):
        origin = seal_of(path)
        try:
            opened = _open_once(path, name, origin, deep)
        except InputError:
            if seal_of(path) == origin:
                raise
        else:
            if seal_of(path) == origin:
                return opened
    raise InputError(path, "is being replaced while it is opened. Try again in a moment.")


def read_frames(opened: Store, start: int, stop: int) -> NDArray[Any]:
    """Some frames of a store.

    Raises
    ------
    InputError
        If they are damaged.
    """
    _, height, width = opened.shape
    return read_region(opened, Region((start, stop), (0, height), (0, width)))


def read_region(opened: Store, region: Region) -> NDArray[Any]:
    """A part of some frames of a store.

    Raises
    ------
    InputError
        If it is damaged.
    """
    try:
        return np.asarray(opened.array[region.slices])
    except (OSError, ValueError, RuntimeError) as error:
        start, stop = region.frames
        raise InputError(
            opened.path,
            f"frames {start} to {stop - 1} cannot be read ({error}). Check the store with 'verify'.",
        ) from None


def _open_once(path: Path, name: str, origin: str, deep: bool) -> Store:
    attributes = cast(StoreAttributes, read_attributes(path))
    try:
        if not (path / name).is_dir():
            raise FileNotFoundError(path / name)
        check_nodes(path)
        _check_small_files(path, attributes)
        group = zarr.open_group(path, mode="r", zarr_format=3)
        # In the consolidated metadata, levels of a pyramid have axes of other names, or are not there at all.
        array = zarr.open_array(path / name, mode="r", zarr_format=3) if "/" in name else group[name]
        units = str(array.attrs["units"])
        (frame_time, t0), (height, y0), (width, x0) = (_step(group[axis]) for axis in "tyx")
        table = recorded_table(path, name) if (path / "integrity" / name).is_dir() else None
        if table is not None and table.shape[:-1] != grid_of(array):
            raise ValueError("its record of hashes is that of another array")
    except FileNotFoundError:
        kind = "movie" if name == MOVIE else "denoised movie"
        raise InputError(path, f"holds no array {name!r}, so it is not a {kind}") from None
    except UNREADABLE as error:
        raise InputError(path, f"its metadata are damaged ({error})") from None
    pixel = None if height is None or width is None else (height, width)
    checked = CheckedArray(
        array, path, name, table, origin, functools.partial(_reopen, path, name, origin, deep), deep
    )
    return Store(path, name, checked, attributes, units, Coordinates(frame_time, pixel, (t0, y0, x0)))


def _reopen(path: Path, name: str, origin: str, deep: bool) -> CheckedArray:
    """The array of a store that another process has opened, if it is still the same."""
    if seal_of(path) != origin:
        raise InputError(path, "was replaced while it was being read. Open it again.")
    return _opened_again(path, name, origin, deep)


@functools.lru_cache(maxsize=4)  # Dask unpacks an array again for every task
def _opened_again(path: Path, name: str, origin: str, deep: bool) -> CheckedArray:
    array: CheckedArray = open_store(path, name, deep=deep).array
    return array


def _check_small_files(path: Path, attributes: StoreAttributes) -> None:
    """Refuse a store whose metadata, coordinates or maps are not those that were written."""
    for file, digest in attributes.get("files", {}).items():
        try:
            found = file_hash(path / file)
        except FileNotFoundError:
            raise InputError(path / file, f"is missing. {advice(path)}") from None
        if found != digest:
            raise InputError(path / file, f"was changed since the store was written. {advice(path)}")


def _step(coordinate: Any) -> tuple[float | None, float]:
    """Distance of the points of a coordinate (None for a mere index), and the index of the first."""
    values = coordinate[:]
    if coordinate.attrs["units"] in ("frame", "pixel"):
        return None, float(values[0])
    # A single point has no distance; no calibrated axis is that short but in tests.
    step = float(values[-1] - values[0]) / (len(values) - 1) if len(values) > 1 else None
    return step, 0 if step is None else round(float(values[0]) / step, 6)
