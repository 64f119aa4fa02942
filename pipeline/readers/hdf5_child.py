"""What is in an HDF5 file, listed by h5py in a process of its own; it never decodes a pixel.

Nothing foreign is followed or run: no external or soft link, no external storage, no virtual data set, no
filter but HDF5's own three, and of references only those to dimension scales, for their names.
"""

from __future__ import annotations

import math
import re
import sys
from collections.abc import Callable, Iterator
from typing import Any

import h5py
import numpy as np

from .child import answer, write

_MAX_OBJECTS = 20_000
_MAX_DEPTH = 40
_MAX_CHUNKS = 2**22
_MAX_ATTRIBUTES = 1_000  # of one object
_MAX_ATTRIBUTE = 65_536  # bytes
_MAX_TEXT = 100_000  # characters
_MAX_VALUE = 2**21  # bytes: a time axis of 250,000 frames
_MAX_VALUES = 2**24  # bytes of all values together
_MAX_RECORD = 2**20  # bytes of Velox's metadata of one frame
_MAX_RECORDS = 20_000  # frames whose time stamps are read
_OWN_FILTERS = {h5py.h5z.FILTER_DEFLATE, h5py.h5z.FILTER_SHUFFLE, h5py.h5z.FILTER_FLETCHER32}
_LAYOUTS = {h5py.h5d.COMPACT: "compact", h5py.h5d.CONTIGUOUS: "contiguous", h5py.h5d.CHUNKED: "chunked"}
_TIME_STAMP = re.compile(rb'\.TimeStamp"\s*:\s*\{[^{}]*"value"\s*:\s*"(\d{1,18})"')


def catalogue(path: str) -> None:
    """List every group and array: attributes, sizes, and the values of small arrays."""
    left = _MAX_VALUES
    objects: list[dict[str, Any]] = []
    links: dict[str, str] = {}
    external: dict[str, tuple[str, str]] = {}
    with h5py.File(path, "r", locking=False) as file:
        for name, found in _walk(file, links, external):
            if len(objects) == _MAX_OBJECTS:
                raise ValueError(f"holds over {_MAX_OBJECTS} groups and arrays: not a movie.")
            entry: dict[str, Any] = {"name": name, "attributes": _attributes(found)}
            if isinstance(found, h5py.Dataset):
                entry |= _array(found)
                size = _value_size(found, entry)
                if name.startswith("Data/") and name.endswith("/Metadata") and _is_velox_record(found):
                    entry["value"] = bytes(found[:, 0]).rstrip(b"\0").decode(errors="replace")
                elif size is not None and size <= min(_MAX_VALUE, left):
                    left -= size
                    entry["value"] = _plain(found[()])
            objects.append(entry)
    write({"objects": objects, "links": links, "external": external, "library": f"h5py {h5py.__version__}"})


def chunks(path: str, name: str) -> None:
    """List where the chunks of one array are, and the time stamps beside it in a Velox file."""
    with h5py.File(path, "r", locking=False) as file:
        array = file[name]
        grid = [-(-size // chunk) for size, chunk in zip(array.shape, array.chunks, strict=True)]
        n_chunks = math.prod(grid)
        if n_chunks > _MAX_CHUNKS:
            raise ValueError(
                f"its array {name} has {n_chunks} chunks, over {_MAX_CHUNKS}: rewrite it in larger ones."
            )
        table = np.zeros((n_chunks, 3), "<i8")  # offset, size, filters left out
        strides = [math.prod(grid[k + 1 :]) for k in range(len(grid))]
        sizes = array.chunks

        def note(chunk: Any) -> None:
            place = [at // size for at, size in zip(chunk.chunk_offset, sizes, strict=True)]
            if any(not 0 <= p < n for p, n in zip(place, grid, strict=True)):
                return  # left over from a larger array
            number = sum(p * s for p, s in zip(place, strides, strict=True))
            table[number] = chunk.byte_offset, chunk.size, chunk.filter_mask

        array.id.chunk_iter(note)
        beside = name.rpartition("/")[0] + "/Metadata"
        stamps = None
        if name.startswith("Data/") and isinstance(file.get(beside, getlink=True), h5py.HardLink):
            records = file[beside]
            stamps = _time_stamps(records) if isinstance(records, h5py.Dataset) else None
    write({"time_stamps_us": stamps}, table.data.cast("B"))


def _walk(
    file: h5py.File, links: dict[str, str], external: dict[str, tuple[str, str]]
) -> Iterator[tuple[str, h5py.Group | h5py.Dataset]]:
    """Every object once, by hard links alone, breadth first; other links are only noted."""
    seen = {h5py.h5o.get_info(file.id).addr}
    todo: list[tuple[str, h5py.Group]] = [("", file)]
    yield "", file
    while todo:
        prefix, group = todo.pop(0)
        for number, key in enumerate(group):
            if number > _MAX_OBJECTS:
                raise ValueError(f"holds over {_MAX_OBJECTS} groups and arrays: not a movie.")
            name = f"{prefix}{key}"
            link = group.get(key, getlink=True)
            if not isinstance(link, h5py.HardLink):
                links[name] = str(link.path)
                if isinstance(link, h5py.ExternalLink):
                    external[name] = (str(link.filename), str(link.path))
                    links[name] = f"{link.filename}:{link.path}"
                continue
            kind = group.get(key, getclass=True)
            if kind not in (h5py.Group, h5py.Dataset):
                continue
            found = group[key]
            address = h5py.h5o.get_info(found.id).addr
            if address in seen:
                continue
            seen.add(address)
            yield name, found
            if isinstance(found, h5py.Group) and name.count("/") < _MAX_DEPTH:
                todo.append((f"{name}/", found))


def _attributes(found: h5py.Group | h5py.Dataset) -> dict[str, Any]:
    record: dict[str, Any] = {}
    for number, key in enumerate(found.attrs):
        if number == _MAX_ATTRIBUTES:
            record["left out"] = f"the attributes after {number}"
            break
        attribute = found.attrs.get_id(key)
        if not _is_plain(attribute.dtype):
            record[key] = f"left out: type {attribute.dtype}"
        elif attribute.get_storage_size() > _MAX_ATTRIBUTE:
            record[key] = f"left out: {attribute.get_storage_size()} bytes"
        else:
            value = found.attrs[key]
            if isinstance(value, np.ndarray) and value.shape == (1,):
                value = value[0]  # as netCDF writes every number
            record[key] = None if isinstance(value, h5py.Empty) else _plain(value)
    return record


def _array(array: h5py.Dataset) -> dict[str, Any]:
    plist = array.id.get_create_plist()
    layout = _LAYOUTS.get(plist.get_layout(), "virtual")
    if plist.get_external_count():
        layout = "external"
    filters = [plist.get_filter(k) for k in range(plist.get_nfilters())]
    simple = array.dtype.kind in "iufbc" and array.dtype.names is None and array.dtype.subdtype is None
    return {
        "shape": None if array.shape is None else list(array.shape),
        "dtype": array.dtype.str if simple else None,
        "type": str(array.dtype)[:200],
        "plain": simple and _is_whole(array.id.get_type()),
        "layout": layout,
        "chunks": None if array.chunks is None else list(array.chunks),
        "filters": [
            [int(code), [int(v) for v in values], name.decode(errors="replace")[:80]]
            for code, _, values, name in filters
        ],
        "offset": array.id.get_offset() if layout == "contiguous" else None,
        "scales": _scales(array) if simple and len(array.shape or ()) > 2 else [],
    }


def _is_whole(kind: Any) -> bool:
    """Whether the bytes of a number are the number: HDF5 allows for one of 12 bits somewhere in two bytes."""
    if isinstance(kind, h5py.h5t.TypeEnumID):
        kind = kind.get_super()
    if not isinstance(kind, h5py.h5t.TypeIntegerID | h5py.h5t.TypeFloatID):
        return True
    if (kind.get_precision(), kind.get_offset()) != (8 * kind.get_size(), 0):
        return False
    if isinstance(kind, h5py.h5t.TypeIntegerID):
        return True
    usual = h5py.h5t.py_create(kind.dtype)
    return (kind.get_fields(), kind.get_ebias()) == (usual.get_fields(), usual.get_ebias())


def _scales(array: h5py.Dataset) -> list[str]:
    """Name of the first dimension scale of every axis, empty where it has none."""
    if "DIMENSION_LIST" not in array.attrs:
        return []
    names = [axis[0].name if len(axis) else None for axis in array.dims]
    return [(name or "").strip("/") for name in names]


def _is_plain(dtype: np.dtype[Any]) -> bool:
    return dtype.kind in "iufbcSU" or h5py.check_string_dtype(dtype) is not None


def _value_size(array: h5py.Dataset, entry: dict[str, Any]) -> int | None:
    """Bytes of an array whose values are safe to read here; None for the others."""
    if entry["shape"] is None or entry["layout"] in ("virtual", "external") or array.ndim > 2:
        return None
    if not _is_plain(array.dtype) or {code for code, *_ in entry["filters"]} - _OWN_FILTERS:
        return None
    size = array.size * array.dtype.itemsize
    if array.dtype.kind == "O":  # strings of any length
        return 65_536 * array.size if array.size <= 16 else None
    if array.ndim == 2 and size > 65_536:
        return None
    return int(size)


def _plain(value: Any) -> Any:
    """As JSON has it, strings bounded."""
    if isinstance(value, np.ndarray | np.generic):
        value = value.tolist()
    if isinstance(value, bytes):
        value = value.decode(errors="replace")
    if isinstance(value, str):
        return value[:_MAX_TEXT]
    if isinstance(value, complex):
        return str(value)
    if isinstance(value, list):
        return [_plain(item) for item in value]
    return value


def _is_velox_record(array: h5py.Dataset) -> bool:
    """Velox keeps one column of text, JSON padded with zeros, for every frame."""
    return (
        array.ndim == 2
        and array.dtype == np.uint8
        and 0 < array.shape[0] <= _MAX_RECORD
        and array.shape[1] > 0
        and array.chunks is not None
        and math.prod(array.chunks) <= 16 * _MAX_RECORD
        and not {
            array.id.get_create_plist().get_filter(k)[0]
            for k in range(array.id.get_create_plist().get_nfilters())
        }
        - _OWN_FILTERS
    )


def _time_stamps(records: h5py.Dataset) -> list[int] | None:
    """When each frame was taken [us], if every frame's metadata say so."""
    if not _is_velox_record(records) or records.shape[1] > _MAX_RECORDS:
        return None
    stamps = []
    for k in range(records.shape[1]):
        match = _TIME_STAMP.search(bytes(records[:, k]))
        if match is None:
            return None
        stamps.append(int(match[1]))
    return stamps


if __name__ == "__main__":
    task, *words = sys.argv[1:]
    # Listing a large movie takes longer, and only a large file can be a large movie.
    tasks: dict[str, Callable[..., None]] = {"catalogue": catalogue, "chunks": chunks}
    answer(
        tasks[task],
        words[:-1],
        cpu_s=3 + int(words[-1]) // 2**24,
        memory_bytes=400 * 2**20,
    )
