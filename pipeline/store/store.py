"""The movie store and the denoised store: Zarr v3 groups that ``xarray.open_zarr`` opens as they are.

One array ``(t, y, x)`` with coordinates at the root, in shards that have one writer each. A missing shard reads
as NaN or as the type's maximum, never as a plausible count; every chunk carries a crc32c, and the hash of every
shard's decoded content lies in ``integrity``.
"""

from __future__ import annotations

import functools
import hashlib
import math
import os
import re
import shutil
import warnings
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import xxhash
import zarr
from numpy.typing import NDArray
from zarr.codecs import BloscCodec, Crc32cCodec

from tdenoise.files.atomic import SEAL, fsync, is_sealed, seal, unique_partial, write_atomically
from tdenoise.files.json_documents import parse_json

from ..errors import InputError
from ..files.fault_points import maybe_crash
from . import shards
from .blocks import Region
from .checked_array import DOOR_THREADS, CheckedArray, advice, seal_of
from .shards import n_chunks as n_chunks  # these are also used through this module
from .shards import shard_damage as shard_damage
from .shards import shard_index as shard_index
from .shards import shard_key as shard_key
from .shards import shards_in as shards_in
from .shards import shards_touching as shards_touching

PROFILE = 1  # version of the store layout
MOVIE, DENOISED = "counts", "denoised"  # the array that each kind of store holds
VARIANCE = "variance"  # of the expected counts, beside `DENOISED` where it was asked for
SHARD_FRAMES, SHARD_PIXELS = 32, 1024
DASK_CHUNK = (SHARD_FRAMES, SHARD_PIXELS, SHARD_PIXELS)  # of what `tdenoise_pipeline.open` returns, at most
MOVIE_SHARD_PIXELS = 2048  # of a movie store, whose counts are small: fewer files
LONG_SHARD_FRAMES, MANY_SHARDS = 128, 64  # of a denoised store that has at least so many of them: fewer files
CHUNK_FRAMES, CHUNK_PIXELS = 4, 512
DRAFT = "draft"  # what a network says, in a denoised store that is being made, before the counts have the last word
DRAFT_BITS = 12  # of the mantissa of a draft: so many that rounding it leaves no trace in the result
REPLACED_TRIES = 5  # to open a store that is replaced meanwhile
KEPT_BITS = 7  # of 23 in the mantissa of float32: +0.02 % error, 4 times smaller

MOST_FILES = 10_000_000  # of an array; whoever lists more of them runs out of memory

WHERE = ("workers", "worker_memory", "insecure", "profile", "share", "device")  # settings that change no byte

# What Zarr raises on metadata with a bit flipped somewhere: an unknown keyword, a division by zero, a shape of 2^60.
UNREADABLE = (
    OSError, LookupError, TypeError, ValueError, RuntimeError, AttributeError, ArithmeticError, AssertionError,
    MemoryError,
)  # fmt: skip

# "Not written" and "equal to the fill value" must stay different things.
WRITE_ALL = {"write_empty_chunks": True}


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


def create(
    path: Path,
    name: str,
    shape: tuple[int, int, int],
    dtype: np.dtype[Any],
    geometry: Geometry,
    coordinates: Coordinates,
    units: str,
) -> None:
    """Create an empty store: one array ``name(t, y, x)`` and its coordinates."""
    attributes = {"Conventions": "CF-1.12", "ome": ome_metadata(name, coordinates)}
    zarr.create_group(path, attributes=attributes)
    described = {"units": units, "long_name": f"{name} per pixel and frame"}
    # By the CF conventions: xarray makes these arrays coordinates of this one.
    described |= {"coordinates": "frame_level frame_valid"}
    add_sharded(path, name, shape, dtype, geometry, described)
    for size, (axis, step, first) in zip(shape, coordinates.axes, strict=True):
        unit, index_unit = ("s", "frame") if axis == "t" else ("nm", "pixel")
        values = (first + np.arange(size, dtype=np.float64)) * (1.0 if step is None else step)
        described = {"units": index_unit if step is None else unit, "axis": axis.upper()}
        add_array(path, axis, values, (axis,), described)


def add_sharded(
    path: Path,
    name: str,
    shape: tuple[int, int, int],
    dtype: np.dtype[Any],
    geometry: Geometry,
    attributes: dict[str, Any],
) -> None:
    """Add an empty array of the size of the movie to a store that is being made."""
    zarr.open_group(path, mode="r+", use_consolidated=False).create_array(
        name,
        shape=shape,
        dtype=dtype,
        chunks=geometry.chunk,
        shards=geometry.shard,
        fill_value=np.nan if dtype.kind == "f" else np.iinfo(dtype).max,
        dimension_names=("t", "y", "x"),
        compressors=[BloscCodec(cname="zstd", clevel=shards.LEVEL, shuffle="bitshuffle"), Crc32cCodec()],
        attributes=attributes,
    )


def add_array(
    path: Path, name: str, values: NDArray[Any], dims: tuple[str, ...], attributes: dict[str, Any]
) -> None:
    """Add a small array, such as a map of the field or a value per frame, to a store that is being made."""
    create_array(path, name, values.shape, values.dtype, values.shape, dims, attributes)[:] = values


def create_array(
    path: Path,
    name: str,
    shape: tuple[int, ...],
    dtype: np.dtype[Any],
    chunks: tuple[int, ...],
    dims: tuple[str, ...],
    attributes: dict[str, Any],
) -> Any:
    """Add an array without shards to a store that is being made, and leave its values to the caller."""
    group = zarr.open_group(path, mode="r+", use_consolidated=False)
    fill = {"f": np.nan, "b": False}.get(dtype.kind)
    return group.create_array(
        name,
        shape=shape,
        dtype=dtype,
        chunks=chunks,
        fill_value=np.iinfo(dtype).max if fill is None else fill,
        dimension_names=dims,
        overwrite=True,
        config=WRITE_ALL,
        compressors=[BloscCodec(cname="zstd", clevel=shards.LEVEL, shuffle="bitshuffle"), Crc32cCodec()],
        attributes=attributes,
    )


def add_brightness(path: Path, levels: NDArray[np.float64], valid: NDArray[np.bool_]) -> None:
    """Store the level of every frame, and whether it was recorded whole."""
    described = {"units": "1", "long_name": "brightness of the frame over the mean of the movie"}
    add_array(path, "frame_level", levels, ("t",), described)
    add_array(path, "frame_valid", valid, ("t",), {"long_name": "the frame was recorded whole"})


def ome_metadata(name: str, coordinates: Coordinates) -> dict[str, Any]:
    """OME-Zarr 0.5 metadata for the root group, so that OME viewers open the store too."""
    steps = [1.0 if step is None else step for _, step, _ in coordinates.axes]
    starts = [step * first for step, (*_, first) in zip(steps, coordinates.axes, strict=True)]
    return {
        "version": "0.5",
        "multiscales": [
            {
                "name": name,
                "axes": [
                    {"name": axis, "type": "time" if axis == "t" else "space"}
                    | ({} if step is None else {"unit": "second" if axis == "t" else "nanometer"})
                    for axis, step, _ in coordinates.axes
                ],
                "datasets": [
                    {
                        "path": name,
                        "coordinateTransformations": [
                            {"type": "scale", "scale": steps},
                            {"type": "translation", "translation": starts},
                        ],
                    }
                ],
            }
        ],
    }


def finish(
    path: Path,
    name: str,
    attributes: dict[str, Any],
    hashes: dict[str, str],
    command: dict[str, Any] | None = None,
) -> None:
    """Complete a store whose shards are all written: integrity, attributes, and the metadata last.

    Every other file is named with its sha256 in the metadata of the root, which carry a seal, their own sha256.

    Parameters
    ----------
    path : Path
    name : str
        Of the array.
    attributes : dict
    hashes : dict
        Of all shards, by grid position.
    command : dict, optional
        What made the store, from `recorded_settings.record`; kept without its paths, for a repair.
    """
    for orphan in path.rglob("*.partial"):
        orphan.unlink(missing_ok=True)
    record_hashes(path, name, hashes)
    maybe_crash("finish.hashes")
    group = zarr.open_group(path, mode="r+", use_consolidated=False)
    arrays = {key: array_hash(small) for key, small in small_arrays(group)}
    complete = {"profile": PROFILE, **attributes, "arrays": arrays, "status": "complete"}
    if command is not None:
        complete["command"] = _without_paths(command)
    # Twice, in two files: whichever is damaged, the other still says how the store can be repaired.
    group["integrity"].attrs["tdenoise"] = complete
    files = {file: _sha256(path / file) for file in small_files(path) if file != "zarr.json"}
    group.attrs["tdenoise"] = {**complete, "files": files, "seal": SEAL}
    maybe_crash("finish.attributes")
    with warnings.catch_warnings():
        # Consolidated metadata is what xarray looks for first; Zarr warns that version 3 does not name it yet.
        warnings.filterwarnings("ignore", "Consolidated metadata", UserWarning)
        zarr.consolidate_metadata(path)
    maybe_crash("finish.consolidated")
    root = path / "zarr.json"
    write_atomically(root, seal(root.read_bytes()))
    for file in files:
        fsync(path / file)
        fsync((path / file).parent)
    maybe_crash("finish.sealed")


def _without_paths(command: dict[str, Any]) -> dict[str, Any]:
    """Settings that mean the same in any folder; files are told by their names."""
    settings = {
        key: Path(value).name if isinstance(value, str) and value.startswith("/") else value
        for key, value in command["settings"].items()
        if key not in ("raw", "movie", "model", "output", "force", "resume", *WHERE)
    }
    return {"step": command["step"], "settings": settings}


def _sha256(file: Path) -> str:
    return hashlib.sha256(file.read_bytes()).hexdigest()


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


def record_hashes(path: Path, name: str, hashes: dict[str, str]) -> None:
    """Write the hashes of all shards of an array beside it."""
    group = zarr.open_group(path, mode="r+", use_consolidated=False)
    array = group[name]
    table = np.zeros((*_grid(array), 3), dtype=np.uint64)
    whole = Region(*((0, n) for n in array.shape))

    def mark(region: Region) -> None:
        index = shard_index(shard_key(region, array.shards))
        file = path.joinpath(name, "c", *map(str, index))
        table[(*index, 2)] = shards.look_at(file, array.shards, array.chunks, n_chunks(region, array.chunks))[
            1
        ]

    for key, digest in hashes.items():
        table[shard_index(key)][:2] = int(digest[:16], 16), int(digest[16:], 16)
    with ThreadPoolExecutor(DOOR_THREADS) as pool:
        list(pool.map(mark, shards_in(whole, array.shards)))
    record = group.require_group("integrity").create_array(
        name,
        shape=table.shape,
        dtype=table.dtype,
        chunks=table.shape,
        fill_value=0,
        overwrite=True,
        config=WRITE_ALL,
        compressors=[BloscCodec(cname="zstd", clevel=shards.LEVEL, shuffle="bitshuffle"), Crc32cCodec()],
        attributes={
            "long_name": f"xxh3_128 of the decoded bytes of every shard of {name}, high and low half; and xxh3_64 "
            "of the end of its file, from the checksum of the last chunk on"
        },
    )
    record[:] = table


def small_arrays(group: Any) -> Iterator[tuple[str, Any]]:
    """Name and array of what lies beside the movie at the root of a store: coordinates, maps, drift."""
    for key, array in sorted(group.arrays()):
        if array.shards is None:
            yield key, array


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
    attributes: dict[str, Any]
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
        return str((self.attributes[VARIANCE] if self.name == VARIANCE else self.attributes)["id"])


def open_store(path: Path, name: str, *, deep: bool = True) -> Store:
    """Open a finished movie store (``counts``) or denoised store (``denoised``, or its ``variance``).

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


def _open_once(path: Path, name: str, origin: str, deep: bool) -> Store:
    attributes = read_attributes(path)
    try:
        if not (path / name).is_dir():
            raise FileNotFoundError(path / name)
        check_nodes(path)
        _check_small_files(path, attributes)
        group = zarr.open_group(path, mode="r", zarr_format=3)
        array = group[name]
        units = str(array.attrs["units"])
        (frame_time, t0), (height, y0), (width, x0) = (_step(group[axis]) for axis in "tyx")
        table = _recorded(path, name) if (path / "integrity" / name).is_dir() else None
        if table is not None and table.shape[:-1] != _grid(array):
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


def _check_small_files(path: Path, attributes: dict[str, Any]) -> None:
    """Refuse a store whose metadata, coordinates or maps are not those that were written."""
    for file, digest in attributes.get("files", {}).items():
        try:
            found = _sha256(path / file)
        except FileNotFoundError:
            raise InputError(path / file, f"is missing. {advice(path)}") from None
        if found != digest:
            raise InputError(path / file, f"was changed since the store was written. {advice(path)}")


def _grid(array: Any) -> tuple[int, ...]:
    """Shards of an array in every direction."""
    return tuple(-(-n // s) for n, s in zip(array.shape, array.shards, strict=True))


def check_nodes(path: Path) -> None:
    """Refuse a store that holds anything but what this project writes: a foreign codec could run code on opening.

    Raises
    ------
    ValueError, KeyError, TypeError
        With what is wrong.
    """
    root = _read_node(path)
    if not all(re.fullmatch(r"\w+", name) for name in root["attributes"]["tdenoise"].get("arrays", {})):
        raise ValueError("it names arrays that lie outside of it")
    consolidated = root.get("consolidated_metadata") or {}
    for node in consolidated.get("metadata", {}).values():
        _check_node(node)
    groups = [path]
    while groups:
        for child in groups.pop().iterdir():
            if child.is_symlink():
                raise ValueError(f"{child.name} is a symbolic link")
            if child.is_dir():
                node = _read_node(child)
                _check_node(node)
                if node["node_type"] == "group":
                    groups.append(child)


def links_in(path: Path) -> list[Path]:
    """Symbolic links inside a folder: what they lead to is not part of it."""
    return [
        Path(folder) / name
        for folder, folders, files in os.walk(path)
        for name in (*folders, *files)
        if (Path(folder) / name).is_symlink()
    ]


def _read_node(folder: Path) -> dict[str, Any]:
    file = folder / "zarr.json"
    if file.is_symlink():
        raise ValueError(f"{folder.name}/zarr.json is a symbolic link")
    node = parse_json(file.read_bytes())
    if not isinstance(node, dict):
        raise ValueError(f"{folder.name}/zarr.json is no object")
    return node


def _check_node(node: dict[str, Any]) -> None:
    if node["zarr_format"] != 3 or node["node_type"] not in ("group", "array"):
        raise ValueError("it is not Zarr v3")
    if node["node_type"] == "array":
        grid = zip(node["shape"], node["chunk_grid"]["configuration"]["chunk_shape"], strict=True)
        if (n_files := math.prod(-(-size // step) for size, step in grid)) > MOST_FILES:
            raise ValueError(f"an array announces {n_files:.3g} files")
        if not re.fullmatch(r"bool|u?int(8|16|32|64)|float(16|32|64)", str(node["data_type"])):
            raise ValueError(f"an array holds {str(node['data_type'])[:40]!r} and no numbers")
        if node.get("storage_transformers"):
            raise ValueError("storage transformers are not what tdenoise writes")
        check_codecs(node["codecs"])


def check_codecs(codecs: list[dict[str, Any]]) -> None:
    """Refuse codecs that this project does not write; such a one could run code when the array is opened."""
    for codec in codecs:
        if codec["name"] not in {"bytes", "blosc", "crc32c", "sharding_indexed"}:
            raise ValueError(f"codec {codec['name']!r} is not one that tdenoise writes")
        for key in ("codecs", "index_codecs"):
            check_codecs(codec.get("configuration", {}).get(key, []))


def _step(coordinate: Any) -> tuple[float | None, float]:
    """Distance of the points of a coordinate (None for a mere index), and the index of the first."""
    values = coordinate[:]
    if coordinate.attrs["units"] in ("frame", "pixel"):
        return None, float(values[0])
    # A single point has no distance; no calibrated axis is that short but in tests.
    step = float(values[-1] - values[0]) / (len(values) - 1) if len(values) > 1 else None
    return step, 0 if step is None else round(float(values[0]) / step, 6)


def round_mantissa(values: NDArray[np.float32], bits: int = KEPT_BITS) -> NDArray[np.float32]:
    """Round float32 to ``bits`` of mantissa, half away from zero, so that it compresses.

    Examples
    --------
    >>> round_mantissa(np.array([1.0, 1.003], dtype=np.float32)).tolist()
    [1.0, 1.0]
    """
    drop = 23 - bits
    integers = np.ascontiguousarray(values).view(np.uint32)
    rounded = (integers + np.uint32(1 << (drop - 1))) & np.uint32(0xFFFFFFFF ^ ((1 << drop) - 1))
    # Inf and NaN have no mantissa to round.
    return np.where(np.isfinite(values), rounded.view(np.float32), values)


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


def write_shard(
    path: Path, array: Any, region: Region, values: NDArray[Any], allowed: Callable[[], None] | None = None
) -> tuple[str, str]:
    """Write one whole shard, make it durable and read it back.

    Parameters
    ----------
    path : Path
        Of the array's folder.
    array : zarr.Array
        Opened for writing.
    region : Region
        A shard, clipped at the movie's edge.
    values : ndarray
        What it holds.
    allowed : callable, optional
        Asked before the shard gets its name; raises if it must not.

    Returns
    -------
    key, digest : str
        Grid position such as ``"0.1.2"``, and the hash of the content.

    Raises
    ------
    VerificationError
        If what was read back is not what was written.
    """
    writer = shards.ShardWriter(shards.Layout.of(array))
    writer.append(values)
    key = shard_key(region, array.shards)
    return key, writer.write(path, shard_index(key), allowed)


def adopt_shard(sound: Path, file: Path) -> None:
    """Give a shard of another store, known to be sound, a place in this one; its bytes are copied only if need be."""
    file.parent.mkdir(parents=True, exist_ok=True)
    partial = unique_partial(file)
    try:
        os.link(sound, partial)
    except OSError:  # not on this file system
        shutil.copyfile(sound, partial)
        fsync(partial)
    partial.replace(file)
    partial.unlink(missing_ok=True)  # a rename onto the same inode does nothing
    fsync(file.parent)


def recorded_hashes(store: Store) -> dict[str, str]:
    """Shard hashes that a finished store carries, by grid position."""
    table = _recorded(store.path, store.name)
    return {".".join(map(str, index)): shards.hash_of(table[index]) for index in np.ndindex(table.shape[:-1])}


def recorded_marks(store: Store) -> dict[str, int]:
    """What tells the shard files of a finished store from each other, by grid position; stores of old versions do not.

    See `shards.look_at`.
    """
    table = _recorded(store.path, store.name)
    if table.shape[-1] < 3:
        return {}
    return {".".join(map(str, index)): int(table[(*index, 2)]) for index in np.ndindex(table.shape[:-1])}


def _recorded(path: Path, name: str) -> NDArray[np.uint64]:
    table: NDArray[np.uint64] = np.asarray(zarr.open_array(path / "integrity" / name, mode="r")[:])
    return table
