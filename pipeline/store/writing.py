"""Make a store: its arrays, its shards, its record of hashes, and the metadata that complete it."""

from __future__ import annotations

import json
import os
import shutil
import warnings
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import zarr
from numpy.typing import NDArray
from zarr.codecs import BloscCodec, Crc32cCodec

from tdenoise.files.atomic import SEAL, fsync, seal, unique_partial, write_atomically
from tdenoise.files.json_documents import parse_json

from ..files.fault_points import maybe_crash
from . import ome, shards
from .blocks import Region
from .checked_array import DOOR_THREADS
from .integrity import array_hash, file_hash, grid_of, small_arrays, small_files
from .pyramid import Level
from .shards import n_chunks, shard_index, shard_key, shards_in
from .store import KEPT_BITS, PROFILE, PYRAMID, PYRAMID_BITS, Coordinates, Geometry

WHERE = ("workers", "worker_memory", "insecure", "profile", "share", "device")  # settings that change no byte

# "Not written" and "equal to the fill value" must stay different things.
WRITE_ALL = {"write_empty_chunks": True}


def create(
    path: Path,
    name: str,
    shape: tuple[int, int, int],
    dtype: np.dtype[Any],
    geometry: Geometry,
    coordinates: Coordinates,
    units: str,
    levels: Sequence[Level] = (),
) -> None:
    """Create an empty store: one array ``name(t, y, x)``, its coordinates, and the levels of its pyramid."""
    attributes = {"Conventions": "CF-1.12", "ome": ome.metadata(name, coordinates, levels)}
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
    for level in levels:
        described = {
            "units": units,
            "long_name": f"mean of {level.frames} frames and squares of {level.pixels} pixels",
        }
        add_sharded(path, level.path, level.shape, np.dtype(np.float32), level.geometry, described)


def add_sharded(
    path: Path,
    name: str,
    shape: tuple[int, int, int],
    dtype: np.dtype[Any],
    geometry: Geometry,
    attributes: dict[str, Any],
) -> None:
    """Add an empty array of the size of the movie to a store that is being made."""
    folder, _, leaf = name.rpartition("/")
    _group(path, folder).create_array(
        leaf,
        shape=shape,
        dtype=dtype,
        chunks=geometry.chunk,
        shards=geometry.shard,
        fill_value=np.nan if dtype.kind == "f" else np.iinfo(dtype).max,
        dimension_names=("t", "y", "x"),
        compressors=[BloscCodec(cname="zstd", clevel=shards.LEVEL, shuffle="bitshuffle"), Crc32cCodec()],
        attributes=attributes,
    )


def _group(path: Path, name: str) -> Any:
    """A group of a store that is being made, and all those above it, made where they are missing."""
    group = zarr.open_group(path, mode="r+", use_consolidated=False)
    for part in filter(None, name.split("/")):
        group = group.require_group(part)
    return group


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


def add_brightness(
    path: Path,
    levels: NDArray[np.float64],
    valid: NDArray[np.bool_],
    tilts: NDArray[np.float64] | None = None,
) -> None:
    """Store the level of every frame, its slope where there is one, and whether it was recorded whole."""
    described = {"units": "1", "long_name": "brightness of the frame over the mean of the movie"}
    add_array(path, "frame_level", levels, ("t",), described)
    add_array(path, "frame_valid", valid, ("t",), {"long_name": "the frame was recorded whole"})
    if tilts is not None:
        described = {
            "units": "1/pixel",
            "long_name": "slope of the logarithm of the brightness along rows and columns",
        }
        add_array(path, "frame_tilt", tilts, ("t", "yx"), described)


def finish(
    path: Path,
    name: str,
    attributes: Mapping[str, object],
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
    attributes : mapping
        See `store_attributes`.
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
    group.attrs["ome"] = {**group.attrs["ome"], "omero": ome.omero(name, group[name])}
    arrays = {key: array_hash(small) for key, small in small_arrays(group)}
    complete = {"profile": PROFILE, **attributes, "arrays": arrays, "status": "complete"}
    if command is not None:
        complete["command"] = _without_paths(command)
    # Twice, in two files: whichever is damaged, the other still says how the store can be repaired.
    group["integrity"].attrs["tdenoise"] = complete
    files = {file: file_hash(path / file) for file in small_files(path) if file != "zarr.json"}
    group.attrs["tdenoise"] = {**complete, "files": files, "seal": SEAL}
    maybe_crash("finish.attributes")
    with warnings.catch_warnings():
        # Consolidated metadata is what xarray looks for first; Zarr warns that version 3 does not name it yet.
        warnings.filterwarnings("ignore", "Consolidated metadata", UserWarning)
        zarr.consolidate_metadata(path)
    maybe_crash("finish.consolidated")
    root = path / "zarr.json"
    write_atomically(root, seal(_as_a_tree(root.read_bytes(), name)))
    for file in files:
        fsync(path / file)
        fsync((path / file).parent)
    maybe_crash("finish.sealed")


def _as_a_tree(metadata: bytes, name: str) -> bytes:
    """Metadata of the root whose consolidated part, which xarray goes by, is a data tree.

    That holds no two sizes of one axis, and OME-Zarr wants the axes of all levels named alike. So the axes of a level
    that are shorter have names of their own in the consolidated part, such as ``y_4``, and those of OME-Zarr in its own
    metadata. It must not be left out: napari-ome-zarr looks for levels in the consolidated part. Nobody does for the
    records of their hashes.

    Parameters
    ----------
    metadata : bytes
        Of the root.
    name : str
        Of the array.
    """
    document = parse_json(metadata)
    listed = document["consolidated_metadata"]["metadata"]
    for path in [path for path in listed if path.startswith(f"integrity/{PYRAMID}")]:
        del listed[path]
    whole = listed[name]["shape"]
    for path, node in listed.items():
        if path.startswith(f"{PYRAMID}/") and node["node_type"] == "array":
            node["dimension_names"] = [
                axis if size == n else f"{axis}_{round(n / size)}"
                for axis, size, n in zip("tyx", node["shape"], whole, strict=True)
            ]
    return json.dumps(document, indent=2).encode()


def _without_paths(command: dict[str, Any]) -> dict[str, Any]:
    """Settings that mean the same in any folder; files are told by their names."""
    settings = {
        key: Path(value).name if isinstance(value, str) and value.startswith("/") else value
        for key, value in command["settings"].items()
        if key not in ("raw", "movie", "model", "output", "force", "resume", *WHERE)
    }
    return {"step": command["step"], "settings": settings}


def record_hashes(path: Path, name: str, hashes: dict[str, str]) -> None:
    """Write the hashes of all shards of an array beside it."""
    group = zarr.open_group(path, mode="r+", use_consolidated=False)
    array = group[name]
    table = np.zeros((*grid_of(array), 3), dtype=np.uint64)
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
    folder, _, leaf = f"integrity/{name}".rpartition("/")
    record = _group(path, folder).create_array(
        leaf,
        shape=table.shape,
        dtype=table.dtype,
        chunks=table.shape,
        fill_value=0,
        dimension_names=("shard_t", "shard_y", "shard_x", "told"),
        overwrite=True,
        config=WRITE_ALL,
        compressors=[BloscCodec(cname="zstd", clevel=shards.LEVEL, shuffle="bitshuffle"), Crc32cCodec()],
        attributes={
            "long_name": f"xxh3_128 of the decoded bytes of every shard of {name}, high and low half; and xxh3_64 "
            "of the end of its file, from the checksum of the last chunk on"
        },
    )
    record[:] = table


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


def pyramid_values(values: NDArray[np.float32]) -> NDArray[np.float32]:
    """Means as a level of a pyramid holds them, which is to look at."""
    return round_mantissa(values, PYRAMID_BITS)


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
