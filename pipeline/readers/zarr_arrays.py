"""Arrays of foreign Zarr stores (v2, v3), described by their own metadata and decoded by an allow-list of codecs.

Nothing that a store names is imported or run, no link is followed, and a chunk decodes to its own size or to an
error.
"""

from __future__ import annotations

import math
import os
import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tdenoise.files.json_documents import parse_json

from ..errors import InputError
from . import codecs
from .rawfile import RawFile

METADATA = ("zarr.json", ".zarray", ".zgroup")
_MAX_JSON = 2**24  # bytes
_MAX_NODES = 10_000
_MAX_DEPTH = 10
_DTYPES = {"bool", *(f"{kind}int{bits}" for kind in ("", "u") for bits in (8, 16, 32, 64))} | {
    "float16", "float32", "float64", "complex64", "complex128",
}  # fmt: skip
_BYTES_CODECS = {
    "blosc": codecs.unblosc,
    "bz2": codecs.bunzip,
    "gzip": codecs.inflate,
    "lz4": codecs.unlz4,
    "zlib": codecs.inflate,
    "zstd": codecs.unzstd,
}
_CHECKS = {"crc32c": codecs.check_crc32c, "fletcher32": codecs.check_fletcher32}
_ROOM = 64  # bytes that a codec inside another one may add
_EMPTY = 2**64 - 1  # where a shard has no chunk


@dataclass(frozen=True)
class Step:
    """One codec from bytes to bytes."""

    name: str
    item_bytes: int = 0  # of shuffle


@dataclass(frozen=True)
class ZarrArray:
    """What the metadata of an array say, checked.

    ``chunk`` is the unit of compression; ``shard`` is the part in one file, and equal to it without sharding.
    """

    name: str  # path within the store; "" at its root
    version: int
    shape: tuple[int, ...]
    dtype: np.dtype[Any]  # as stored
    shard: tuple[int, ...]
    chunk: tuple[int, ...]
    order: tuple[int, ...]  # of the axes in the bytes of a chunk, the slowest first
    steps: tuple[Step, ...]  # in the order in which they were applied
    index_steps: tuple[Step, ...] | None  # of a shard's index; None without sharding
    index_at_end: bool
    prefix: str  # before the places in the name of a chunk's file
    separator: str
    fill_value: Any
    dimensions: tuple[str, ...]
    attributes: dict[str, Any] = field(default_factory=dict)

    def key(self, place: tuple[int, ...]) -> str:
        """Name of the file at a place of the grid of shards, within the store."""
        words = self.separator.join(str(p) for p in place)
        return "/".join(w for w in (self.name, f"{self.prefix}{words}") if w)


class Folder:
    """A store's folder: only its own plain files are ever opened."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._root = os.path.realpath(path)

    def open(self, key: str) -> RawFile:
        """The file of this name, which must not be or lie behind a link."""
        path = f"{self._root}/{key}"
        if os.path.realpath(path) != path:
            raise InputError(self.path / key, "is a link; the links in a Zarr store are not followed.")
        return RawFile(path)

    def has(self, key: str) -> bool:
        return os.path.lexists(f"{self._root}/{key}")  # a dangling link is there, and refused

    def json(self, key: str) -> dict[str, Any]:
        """A metadata file; empty where it is missing."""
        if not self.has(key):
            return {}
        file = self.open(key)
        try:
            if file.size > _MAX_JSON:
                raise InputError(
                    self.path / key, f"has {file.size} bytes; Zarr's metadata have far fewer: damaged."
                )
            found = parse_json(file.read_at(0, file.size))
        except ValueError as error:
            raise InputError(self.path / key, "damaged: it is not JSON. Copy the store again.") from error
        finally:
            file.close()
        if not isinstance(found, dict):
            raise InputError(self.path / key, "damaged: it is not a JSON object. Copy the store again.")
        return found

    def nodes(self) -> Iterator[tuple[str, int, dict[str, Any], dict[str, Any]]]:
        """Name, Zarr version, metadata and attributes of every group and array."""
        todo = [("", 0)]
        n_nodes = 0
        while todo:
            name, depth = todo.pop(0)
            n_nodes += 1
            if n_nodes > _MAX_NODES:
                raise InputError(self.path, f"holds over {_MAX_NODES} groups and arrays: not a movie.")
            prefix = f"{name}/" if name else ""
            if found := self.json(f"{prefix}zarr.json"):
                attributes = found.get("attributes")
                version, is_array = 3, found.get("node_type") == "array"
            elif found := self.json(f"{prefix}.zarray"):
                attributes, version, is_array = self.json(f"{prefix}.zattrs"), 2, True
            elif found := self.json(f"{prefix}.zgroup"):
                attributes, version, is_array = self.json(f"{prefix}.zattrs"), 2, False
            else:
                continue
            yield name, version, found, attributes if isinstance(attributes, dict) else {}
            if is_array or depth == _MAX_DEPTH:
                continue
            with os.scandir(f"{self._root}/{name}") as entries:
                names = sorted(e.name for e in entries if e.is_dir(follow_symlinks=False))
            todo += [(f"{prefix}{child}", depth + 1) for child in names]

    def files(self, name: str) -> dict[str, int]:
        """Names within the store and sizes [bytes] of all files of an array."""
        found: dict[str, int] = {}
        todo = [name]
        while todo:
            folder = todo.pop()
            with os.scandir(f"{self._root}/{folder}") as entries:
                for entry in entries:
                    key = f"{folder}/{entry.name}" if folder else entry.name
                    if entry.is_dir(follow_symlinks=False):
                        todo.append(key)
                    else:
                        found[key] = entry.stat(follow_symlinks=False).st_size
        return found


class ChunkReader:
    """Decodes the chunks of one array."""

    def __init__(self, folder: Folder, array: ZarrArray) -> None:
        self._folder = folder
        self._array = array
        self._n_bytes = math.prod(array.chunk) * array.dtype.itemsize
        self._index = lru_cache(maxsize=64)(self._read_index)

    def fetch(self, place: tuple[int, ...]) -> NDArray[Any]:
        """The chunk at a place of the grid of chunks."""
        array = self._array
        per_shard = [s // c for s, c in zip(array.shard, array.chunk, strict=True)]
        key = array.key(tuple(p // n for p, n in zip(place, per_shard, strict=True)))
        if not self._folder.has(key):
            return self._blank(key)
        file = self._folder.open(key)
        try:
            if array.index_steps is None:
                offset, size = 0, file.size
            else:
                inside = tuple(p % n for p, n in zip(place, per_shard, strict=True))
                offset, size = self._index(key)[inside].tolist()
                if offset == size == _EMPTY:
                    return self._blank(key)
            if size > 2 * self._n_bytes + 2**16:
                raise ValueError(f"{size} bytes for a chunk of {self._n_bytes}")
            data = _decode(file.read_at(offset, size), array.steps, self._n_bytes)
            if len(data) != self._n_bytes:
                raise ValueError(f"{len(data)} bytes in place of {self._n_bytes}")
        except ValueError as error:
            raise InputError(
                self._folder.path / key,
                f"damaged, its chunk {place} cannot be decoded ({error}). Copy it again.",
            ) from error
        finally:
            file.close()
        stored = np.frombuffer(data, array.dtype).reshape([array.chunk[axis] for axis in array.order])
        return stored.transpose(np.argsort(array.order))

    def _read_index(self, key: str) -> NDArray[np.uint64]:
        """Offset and size of every chunk of a shard."""
        array = self._array
        grid = [s // c for s, c in zip(array.shard, array.chunk, strict=True)]
        steps = array.index_steps or ()
        n_bytes = 16 * math.prod(grid)
        stored_bytes = n_bytes + 4 * len(steps)
        file = self._folder.open(key)
        try:
            data = file.read_at(file.size - stored_bytes if array.index_at_end else 0, stored_bytes)
        finally:
            file.close()
        return np.frombuffer(_decode(data, steps, n_bytes), "<u8").reshape(*grid, 2)

    def _blank(self, key: str) -> NDArray[Any]:
        """A chunk that was not written, as writers leave out what is only the fill value."""
        if self._array.fill_value != 0:
            raise InputError(
                self._folder.path / key,
                f"is missing or lacks a chunk, and its fill value {self._array.fill_value} is not a count. Copy "
                "the store again.",
            )
        return np.zeros(self._array.chunk, self._array.dtype)


def parse_array(
    path: Path, name: str, version: int, told: dict[str, Any], attributes: dict[str, Any]
) -> ZarrArray:
    """The metadata of an array as checked values.

    Raises
    ------
    InputError
        Naming what is wrong, or what is not in the allow-list.
    """
    try:
        return (_parse_v3 if version == 3 else _parse_v2)(name, told, attributes)
    except (KeyError, TypeError, AttributeError, IndexError, ValueError) as error:
        why = str(error) if type(error) is ValueError else f"{type(error).__name__}: {error}"
        raise InputError(
            path / name, f"its Zarr metadata cannot be read ({' '.join(why.split())[:200]})."
        ) from error


def _parse_v2(name: str, told: dict[str, Any], attributes: dict[str, Any]) -> ZarrArray:
    shape, chunk = _sizes(told["shape"]), _sizes(told["chunks"], len(told["shape"]))
    descr = told["dtype"]
    if not isinstance(descr, str) or not re.fullmatch(
        r"[<>|][biufc]\d{1,2}|[<>][mM]8\[\d*[a-zA-Z]{1,2}\]", descr
    ):
        raise ValueError(f"its values are of type {descr}, not numbers")
    stored = np.dtype(descr)
    if stored.kind in "mM":
        attributes = attributes | _of_dates(*np.datetime_data(stored))
        stored = np.dtype(f"{descr[0]}i8")
    steps = [_step_v2(f, stored) for f in told.get("filters") or []]
    if told.get("compressor") is not None:
        steps.append(_step_v2(told["compressor"], stored))
    separator = told.get("dimension_separator", ".")
    axes = tuple(range(len(shape)))
    if told.get("order", "C") not in ("C", "F") or separator not in (".", "/"):
        raise ValueError("its order or its separator makes no sense")
    names = attributes.get("_ARRAY_DIMENSIONS")
    return ZarrArray(
        name, 2, shape, stored, chunk, chunk, axes if told.get("order", "C") == "C" else axes[::-1], tuple(steps),
        None, True, "", separator, told.get("fill_value"), _names(names, len(shape)), attributes,
    )  # fmt: skip


def _parse_v3(name: str, told: dict[str, Any], attributes: dict[str, Any]) -> ZarrArray:
    shape = _sizes(told["shape"])
    if told["chunk_grid"]["name"] != "regular":
        raise ValueError(f"its chunk grid is {told['chunk_grid']['name']}, not regular")
    shard = _sizes(told["chunk_grid"]["configuration"]["chunk_shape"], len(shape))
    data_type = told["data_type"]
    if isinstance(data_type, dict) and data_type["name"] in ("numpy.datetime64", "numpy.timedelta64"):
        settings = data_type["configuration"]
        attributes = attributes | _of_dates(settings["unit"], settings["scale_factor"])
        data_type = "int64"
    if data_type not in _DTYPES:
        raise ValueError(f"its values are of type {data_type}, not numbers")
    if told.get("storage_transformers"):
        raise ValueError("its storage transformers are not supported")
    stored = np.dtype(data_type)
    chain, chunk, index_steps, index_at_end = told["codecs"], shard, None, True
    if [codec["name"] for codec in chain] == ["sharding_indexed"]:
        sharding = chain[0]["configuration"]
        chunk = _sizes(sharding["chunk_shape"], len(shape))
        if (
            any(s % c for s, c in zip(shard, chunk, strict=True))
            or math.prod(shard) // math.prod(chunk) > 2**20
        ):
            raise ValueError("its shards are not whole chunks")
        chain, index_chain = sharding["codecs"], sharding["index_codecs"]
        _, index_order, index_steps = _chain_v3(index_chain, np.dtype("u8"), len(shape) + 1)
        if any(step.name != "crc32c" for step in index_steps) or list(index_order) != sorted(index_order):
            raise ValueError("the index of its shards is compressed")
        index_at_end = sharding.get("index_location", "end") == "end"
    stored, order, steps = _chain_v3(chain, stored, len(shape))
    encoding = told.get("chunk_key_encoding", {"name": "default"})
    settings = encoding.get("configuration") or {}
    is_default = encoding["name"] == "default"
    separator = settings.get("separator", "/" if is_default else ".")
    if encoding["name"] not in ("default", "v2") or separator not in (".", "/"):
        raise ValueError(f"its chunk names follow {encoding['name']}, which is not supported")
    return ZarrArray(
        name, 3, shape, stored, shard, chunk, order, steps, index_steps, index_at_end,
        f"c{separator}" if is_default else "", separator, told["fill_value"],
        _names(told.get("dimension_names"), len(shape)), attributes,
    )  # fmt: skip


def _of_dates(unit: str, step: int) -> dict[str, Any]:
    """The attributes that make whole numbers of NumPy's dates and spans of time."""
    return {
        "units": {"m": "min"}.get(unit, unit),
        "scale_factor": step,
        "missing_value": -(2**63),
    }  # the last one is "not a time"


def _chain_v3(
    chain: list[dict[str, Any]], dtype: np.dtype[Any], n_axes: int
) -> tuple[np.dtype[Any], tuple[int, ...], tuple[Step, ...]]:
    """Type and order of the axes in the bytes of a chunk, and the codecs from bytes to bytes."""
    order, steps, has_bytes = tuple(range(n_axes)), [], False
    for codec in chain:
        name = codec["name"].removeprefix("numcodecs.")
        settings = codec.get("configuration") or {}
        if name == "transpose" and not has_bytes:
            wanted = settings["order"]
            if sorted(wanted) != list(range(n_axes)):
                raise ValueError("its transpose codec makes no sense")
            order = tuple(order[axis] for axis in wanted)
        elif name == "bytes" and not has_bytes:
            has_bytes = True
            if dtype.itemsize > 1:
                dtype = dtype.newbyteorder(">" if settings["endian"] == "big" else "<")
        elif has_bytes and (name in _BYTES_CODECS or name in _CHECKS):
            steps.append(Step(name))
        elif has_bytes and name == "shuffle":
            steps.append(Step(name, _item_bytes(settings)))
        else:
            raise ValueError(_not_read(codec["name"]))
    if not has_bytes:
        raise ValueError("it has no codec from numbers to bytes")
    return dtype, order, tuple(steps)


def _step_v2(codec: dict[str, Any], dtype: np.dtype[Any]) -> Step:
    name = codec["id"]
    if name == "shuffle":
        return Step(name, _item_bytes(codec))
    if name in _BYTES_CODECS or name == "fletcher32":
        return Step(name)
    raise ValueError(_not_read(name))


def _not_read(name: str) -> str:
    known = ", ".join(sorted([*_BYTES_CODECS, *_CHECKS, "shuffle"]))
    return f"its codec {name} is not among those that are read: {known}"


def _item_bytes(settings: dict[str, Any]) -> int:
    size = settings.get("elementsize", 4)
    if not isinstance(size, int) or not 0 < size <= 16:
        raise ValueError("its shuffle codec makes no sense")
    return size


def _decode(data: bytes, steps: tuple[Step, ...], n_bytes: int) -> bytes:
    for step in reversed(steps):
        if step.name == "shuffle":
            data = codecs.unshuffle(data, step.item_bytes)
        elif step.name in _CHECKS:
            data = _CHECKS[step.name](data)
        else:
            data = _BYTES_CODECS[step.name](data, n_bytes + _ROOM)
    return data


def _sizes(values: Any, n_axes: int | None = None) -> tuple[int, ...]:
    if not isinstance(values, list) or not all(type(v) is int and 0 <= v < 2**48 for v in values):
        raise ValueError("its shape or its chunks make no sense")
    if n_axes is not None and (len(values) != n_axes or min(values, default=1) < 1):
        raise ValueError("its chunks do not fit its shape")
    return tuple(values)


def _names(names: Any, n_axes: int) -> tuple[str, ...]:
    if not isinstance(names, list) or len(names) != n_axes:
        return ("",) * n_axes
    return tuple(name if isinstance(name, str) else "" for name in names)
