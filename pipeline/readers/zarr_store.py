"""Existing Zarr stores (v2, v3): plain arrays, xarray data sets, OME-Zarr images, and the stores made here."""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from dataclasses import replace
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from ..errors import InputError, UsageError
from . import MovieInfo, Reader
from .axes import Axis, pixel_size_of, place_movie
from .chunked import MAX_RATIO, ChunkedReader, Layout, check_chunks
from .declared import Declared, as_declared, packed
from .frames import check_movie, library, whole_frames
from .hdf5_profiles import Contents, Movie, find_movie
from .rawfile import RawFolder
from .timestamps import frame_time, usual_step
from .units import bounded_json
from .zarr_arrays import ChunkReader, Folder, ZarrArray, parse_array

_LISTED = 8  # arrays named in an error message
_MAX_COORDINATES = 2**21  # bytes
_LISTED_AXIS = re.compile(r"/axis-\d+/axis$")  # of HyperSpy, where an axis is not uniform


class Node(NamedTuple):
    """A group or array of the store."""

    version: int
    metadata: dict[str, Any]
    attributes: dict[str, Any]

    @property
    def is_array(self) -> bool:
        return "shape" in self.metadata


def open_movie(
    folder: RawFolder, allow_truncated: bool, *, dataset: str | None = None, channel: int | None = None
) -> Reader:
    """Open a Zarr store: the one movie in it, or the array that ``dataset`` names."""
    store = Folder(folder.path)
    nodes = {name: Node(version, told, attributes) for name, version, told, attributes in store.nodes()}
    name = _choose(folder, nodes, None if dataset is None else dataset.strip("/"))
    array = parse_array(folder.path, name, *nodes[name])
    coordinates = _coordinates(folder, store, nodes, array)
    movie = find_movie(_contents(folder, store, nodes), name)
    axes = _axes(nodes, array, coordinates, movie)
    place = place_movie(
        folder,
        name or "/",
        array.shape,
        array.dtype,
        axes,
        channel=channel,
        chosen=dataset is not None,
    )
    layout = Layout(array.shape, array.chunk, place.movie_axes, place.fixed)
    announced, height, width = check_movie(folder, layout.movie_shape, array.dtype)
    check_chunks(folder, layout, array.dtype)
    files = store.files(name)
    _check_size(folder, array, sum(files.values()), layout.movie_shape)
    shards = Layout(array.shape, array.shard, place.movie_axes, place.fixed)
    present, n_missing, n_wanted, n_beyond = _present(array, shards, files)
    n_frames = whole_frames(folder, announced, present, allow_truncated)
    time = axes[place.movie_axes[0]]
    timestamps = None if time.times_s is None else time.times_s[:n_frames]
    time_s, uneven = frame_time(timestamps, 1e-9, movie.frame_time_s or time.seconds)
    info = MovieInfo(
        shape=(n_frames, height, width),
        dtype=array.dtype.newbyteorder("="),
        format=f"Zarr v{array.version}" + ("" if movie.format == "HDF5" else f", {movie.format}"),
        reader=library("tdenoise"),
        frame_time_s=time_s,
        pixel_size_nm=pixel_size_of(axes, place),
        exposure_s=movie.exposure_s,
        dose_rate_e_per_nm2_s=movie.dose_rate_e_per_nm2_s,
        voltage_kv=movie.voltage_kv,
        camera=movie.camera,
        timestamps_s=timestamps,
        missing_frames=announced - n_frames,
        warnings=_warnings(array, n_missing, n_wanted, n_beyond) + uneven + movie.warnings + place.warnings,
        metadata=bounded_json(
            {
                "array": array.attributes,
                "group": nodes[""].attributes if name else {},
                "dataset": name,
                **({} if movie.format == "HDF5" else movie.metadata),
            }
        ),
    )
    reader = ChunkedReader(folder, info, layout, ChunkReader(store, array).fetch)
    last = np.empty((1, height, width), info.dtype)
    reader.read(n_frames - 1, n_frames, last)  # what cannot be decoded should show now, not at the end
    return as_declared(reader, _declared(folder, array))


def _check_size(folder: RawFolder, array: ZarrArray, n_bytes: int, shape: tuple[int, ...]) -> None:
    """Refuse an array whose files are far too small for it."""
    n_frames, height, width = shape
    if math.prod(array.shape) * array.dtype.itemsize > MAX_RATIO * n_bytes:
        raise InputError(
            folder.path,
            f"its {n_bytes} bytes claim to hold {n_frames} frames of {height} x {width}, over "
            f"{MAX_RATIO} times as much: chunks are missing, or it is a decompression bomb.",
        )


def _choose(folder: RawFolder, nodes: dict[str, Node], dataset: str | None) -> str:
    """The name of the array to read."""
    arrays = [name for name, node in nodes.items() if node.is_array]
    if dataset is not None:
        if dataset in arrays:
            return dataset
        raise UsageError(
            f"{folder.path}: has no array {dataset}; its arrays are {_list(nodes, arrays) or 'none'}."
        )
    images = [name for name in _ome_images(nodes) if name in arrays]
    stacks = [name for name in images or arrays if _is_stack(nodes[name].metadata["shape"])]
    if len(stacks) == 1:
        return stacks[0]
    if stacks:
        raise InputError(
            folder.path, f"holds {len(stacks)} movies; name one with --dataset: {_list(nodes, stacks)}."
        )
    if len(arrays) == 1:
        return arrays[0]  # to be refused by what it is
    what = f"; its arrays are {_list(nodes, arrays)}" if arrays else ""
    raise InputError(folder.path, f"holds no array of (frame, row, column){what}.")


def _contents(folder: RawFolder, store: Folder, nodes: dict[str, Node]) -> Contents:
    """The store as the profiles of HDF5 see a file: HyperSpy and others write the same groups into both."""
    objects: dict[str, dict[str, Any]] = {}
    for name, node in nodes.items():
        told = node.metadata.get("dtype", node.metadata.get("data_type"))
        objects[name] = {"name": name, "attributes": node.attributes}
        if node.is_array and isinstance(node.metadata["shape"], list):
            objects[name] |= {
                "shape": node.metadata["shape"],
                "dtype": told if isinstance(told, str) else None,
            }
        if _LISTED_AXIS.search(name) and (listed := _listed(folder, store, nodes, name)) is not None:
            objects[name]["value"] = listed[0].tolist()
    detector = _group(_group(nodes[""].attributes, "tdenoise"), "detector")
    objects[""]["attributes"] = {**detector, **nodes[""].attributes}  # of a movie store made here
    return Contents(folder.path, objects, {})


def _group(told: Any, name: str) -> dict[str, Any]:
    found = told.get(name) if isinstance(told, dict) else None
    return found if isinstance(found, dict) else {}


def _is_stack(shape: Any) -> bool:
    return isinstance(shape, list) and sum(isinstance(n, int) and n > 1 for n in shape) > 2


def _list(nodes: dict[str, Node], names: list[str]) -> str:
    words = [
        f"{name} ({' x '.join(str(n) for n in nodes[name].metadata['shape'])})" for name in names[:_LISTED]
    ]
    more = len(names) - _LISTED
    return ", ".join(words) + (f" and {more} more" if more > 0 else "")


# OME-Zarr (0.3 to 0.5)


def _multiscales(node: Node) -> dict[str, Any]:
    ome = node.attributes.get("ome")
    listed = (ome if isinstance(ome, dict) else node.attributes).get("multiscales")
    return listed[0] if isinstance(listed, list) and listed and isinstance(listed[0], dict) else {}


def _levels(node: Node) -> list[dict[str, Any]]:
    """The resolution levels of an image, the finest first."""
    listed = _multiscales(node).get("datasets")
    return [level for level in listed if isinstance(level, dict)] if isinstance(listed, list) else []


def _ome_images(nodes: dict[str, Node]) -> list[str]:
    """Names of the arrays that hold the finest level of each OME image."""
    images = {
        name: _join(name, levels[0].get("path")) for name, node in nodes.items() if (levels := _levels(node))
    }
    # Masks of what someone marked in an image lie in its group "labels".
    plain = [array for name, array in images.items() if not _is_label(name, nodes[name])]
    return plain or list(images.values())


def _is_label(name: str, node: Node) -> bool:
    ome = node.attributes.get("ome")
    return "labels" in name.split("/") or "image-label" in (ome if isinstance(ome, dict) else node.attributes)


def _join(group: str, path: Any) -> str:
    return "/".join(part for part in (group, str(path)) if part)


def _ome_axes(nodes: dict[str, Node], array: ZarrArray) -> list[Axis] | None:
    group = array.name.rpartition("/")[0]
    node = nodes.get(group)
    level = (
        next((lv for lv in _levels(node) if _join(group, lv.get("path")) == array.name), None)
        if node
        else None
    )
    if node is None or level is None:
        return None
    told = _multiscales(node).get("axes")
    if not isinstance(told, list) or len(told) != len(array.shape):
        return None
    steps = _scale(level.get("coordinateTransformations"), len(told))
    whole = _scale(_multiscales(node).get("coordinateTransformations"), len(told))
    axes = []
    for axis, own, all_levels in zip(told, steps, whole, strict=True):
        described = axis if isinstance(axis, dict) else {"name": axis}
        role = "time" if described.get("type") == "time" else None
        axes.append(
            Axis(str(described.get("name", "")), str(described.get("unit", "")), own * all_levels, role)
        )
    return axes


def _scale(transformations: Any, n_axes: int) -> list[float]:
    for told in transformations if isinstance(transformations, list) else []:
        scale = told.get("scale") if isinstance(told, dict) else None
        if (
            isinstance(scale, list)
            and len(scale) == n_axes
            and all(isinstance(v, int | float) for v in scale)
        ):
            return [float(v) for v in scale]
    return [1.0] * n_axes


# Coordinates as xarray writes them: an array for each dimension, of its name


def _coordinates(
    folder: RawFolder, store: Folder, nodes: dict[str, Node], array: ZarrArray
) -> dict[int, tuple[NDArray[np.float64], str]]:
    """Values and unit of the coordinate of each axis that has one."""
    group = array.name.rpartition("/")[0]
    found = {}
    for axis, dimension in enumerate(array.dimensions):
        name = _join(group, dimension)
        if not dimension or name not in nodes or nodes[name].metadata.get("shape") != [array.shape[axis]]:
            continue
        if (listed := _listed(folder, store, nodes, name)) is None:
            continue
        stored, coordinate = listed
        values = _declared(folder, coordinate).values(stored)
        unit = coordinate.attributes.get("units", "")
        found[axis] = (values, unit if isinstance(unit, str) else "")
    return found


def _listed(
    folder: RawFolder, store: Folder, nodes: dict[str, Node], name: str
) -> tuple[NDArray[Any], ZarrArray] | None:
    """The numbers of a small array of one dimension, as they are stored; None where it is none."""
    array = parse_array(folder.path, name, *nodes[name])
    if array.dtype.kind not in "iuf" or len(array.shape) != 1 or array.shape[0] == 0:
        return None
    if 8 * array.shape[0] > _MAX_COORDINATES or array.chunk[0] > 2**18:
        return None
    fetch = ChunkReader(store, array).fetch
    parts = [fetch((k,)) for k in range(-(-array.shape[0] // array.chunk[0]))]
    return np.concatenate(parts)[: array.shape[0]].astype(array.dtype.newbyteorder("=")), array


def _declared(folder: RawFolder, array: ZarrArray) -> Declared:
    """What xarray has written of the numbers: in attributes, and in Zarr v2 in the fill value.

    A fill value of 0 stands for no value only where the counts are packed: else it is what a count of 0 looks like.
    """
    told, fill = array.attributes, array.fill_value
    of_xarray = array.version == 2 and "_ARRAY_DIMENSIONS" in told and fill is not None
    is_count = fill == 0 and not {"scale_factor", "add_offset"} & set(told)
    if of_xarray and not is_count:
        told = {"_FillValue": fill, **told}
    declared = packed(folder.path, array.name or "the root", array.dtype, told)
    if of_xarray and is_count and "_FillValue" not in told:
        said = "its fill value in Zarr v2 is 0, for which xarray shows NaN: here a stored 0 is a count of 0."
        declared = replace(declared, warnings=(*declared.warnings, said))
    return declared


def _axes(
    nodes: dict[str, Node],
    array: ZarrArray,
    coordinates: dict[int, tuple[NDArray[np.float64], str]],
    movie: Movie,
) -> Sequence[Axis]:
    axes = []
    described = _ome_axes(nodes, array)
    for axis, dimension in enumerate(array.dimensions):
        if axis in coordinates:
            values, unit = coordinates[axis]
            axes.append(Axis(dimension, unit, usual_step(values), values=values))
        elif described is not None:
            axes.append(described[axis])
        elif movie.axes[axis] != Axis():
            axes.append(movie.axes[axis])
        else:
            axes.append(Axis(dimension))
    return axes


def _present(array: ZarrArray, shards: Layout, files: dict[str, int]) -> tuple[int, int, int, int]:
    """Frames before the end of which no file is left, missing files among these, how many there should be.

    The last number is that of files beyond the shape that the metadata give.
    """
    time = shards.movie_axes[0]
    prefix = re.escape(f"{array.name}/" if array.name else "") + re.escape(array.prefix)
    pattern = re.compile(prefix + re.escape(array.separator).join([r"(\d{1,15})"] * len(array.shape)))
    places = {tuple(map(int, m.groups())) for key in files if (m := pattern.fullmatch(key))}
    n_all = len(places)
    places = {p for p in places if all(k < n for k, n in zip(p, shards.grid, strict=True))}
    last = max((place[time] for place in places), default=-1)
    n_wanted = (last + 1) * math.prod(shards.grid) // shards.grid[time]
    n_found = sum(place[time] <= last for place in places)
    whole = min((last + 1) * array.shard[time], array.shape[time])
    return whole, n_wanted - n_found, n_wanted, n_all - len(places)


def _warnings(array: ZarrArray, n_missing: int, n_wanted: int, n_beyond: int) -> tuple[str, ...]:
    said = []
    if n_missing:
        said.append(
            f"{n_missing} of {n_wanted} files of its array are missing and read as {array.fill_value}: writers of "
            "Zarr leave out what is blank, but a copy that is not complete looks the same."
        )
    if n_beyond:
        said.append(
            f"{n_beyond} files of its array lie beyond the shape that its metadata give ("
            f"{' x '.join(map(str, array.shape))}): what is in them is not read."
        )
    return tuple(said)
