"""HDF5 movies: Velox and NCEM EMD, Direct Electron .de5, HyperSpy, DM5, DECTRIS, any file with a data set named.

HDF5's library is a large parser of a rich format: it lists the file in a process of its own (hdf5_child), and
the pixels are read here at the places that it names, by several threads at once.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..errors import InputError
from . import MovieInfo, Reader, codecs
from .axes import Place, pixel_size_of, place_movie
from .child import ask, split
from .chunked import MAX_RATIO, ChunkedReader, Layout, Run, check_chunks, slabs
from .declared import Declared, as_declared, packed
from .frames import FlatReader, check_movie, frame_size, whole_frames
from .hdf5_detector import (
    NUMBERS,
    Part,
    announced_by,
    check_series,
    join,
    not_applied,
    parts_of,
    series_of,
    with_detector,
)
from .hdf5_gatan import dm5, is_dm5, open_director
from .hdf5_profiles import Contents, Movie, find_movie
from .rawfile import RawFile
from .timestamps import frame_time
from .units import bounded_json

_SIGNATURE = b"\x89HDF\r\n\x1a\n"
_FILTERS = {
    1: "deflate", 2: "shuffle", 3: "Fletcher checksum", 32000: "LZF", 32001: "Blosc", 32004: "LZ4",
    32008: "bitshuffle", 32015: "zstd",
}  # fmt: skip
_OPEN, _OPEN_SWMR = 1, 4  # marks in the header of a file that a program has opened for writing
_ROOM = 64  # bytes that a filter inside another one may add


def open_movie(
    file: RawFile, allow_truncated: bool, *, dataset: str | None = None, channel: int | None = None
) -> Reader:
    """Open an HDF5 file: the one movie in it, or the array that ``dataset`` names.

    A master file that only links to data files beside it is the movie of these; a Gatan director that of its capture.
    """
    contents, library = contents_of(file)
    whole = {name.rpartition("/")[0] for name in contents.external} | {None}
    if channel is None and (dataset and dataset.strip("/")) in whole and (parts := parts_of(contents)):
        if dataset is None:
            check_series(contents)
        return _open_master(file, contents, parts, allow_truncated)
    plain = dataset is None and channel is None
    capture = open_director(file, contents, library, allow_truncated) if plain else None
    if capture is not None:
        return capture
    reader, numbers = _open_array(file, contents, library, allow_truncated, dataset, channel)
    if numbers is not None and len(series_of(file.path)) > 1:
        alone = f"it holds images {numbers[0]} to {numbers[1]} of a recording in several files, and is read on its own."
        reader.info = replace(reader.info, warnings=(*reader.info.warnings, alone))
    return reader


def contents_of(file: RawFile) -> tuple[Contents, str]:
    """What is in a file, and the library that says so."""
    _check_whole(file)
    listed, _ = split(ask(file.path, "hdf5_child", "catalogue", str(file.path), str(file.size)))
    objects = {o["name"]: o for o in listed["objects"]}
    return Contents(file.path, objects, listed["links"], listed["external"]), listed["library"]


def _open_master(
    file: RawFile, contents: Contents, targets: Sequence[tuple[Path, str]], allow_truncated: bool
) -> Reader:
    there = list(itertools.takewhile(lambda target: target[0].is_file(), targets))
    if not there or (len(there) < len(targets) and not allow_truncated):
        lacking = targets[len(there)][0].name
        keep = ", or keep the frames before it with --allow-truncated" if there else ""
        raise InputError(
            file.path, f"links to the frames in {lacking}, which is not beside it; put it there{keep}."
        )
    parts = [open_part(path, dataset, allow_truncated) for path, dataset in there]
    lost = 1 if len(there) < len(targets) else 0  # at least, where the master does not say how many
    present = sum(part.reader.info.shape[0] for part in parts)
    reader = join(file, parts, max(announced_by(contents), present + lost), allow_truncated)
    told, info = with_detector(contents, Movie("", "HDF5", ())), reader.info
    reader.info = replace(
        info,
        frame_time_s=told.frame_time_s or info.frame_time_s,
        exposure_s=told.exposure_s or info.exposure_s,
        camera=told.camera or info.camera,
        files=(file.path, *info.files),
        warnings=tuple(dict.fromkeys(info.warnings + not_applied(contents))),
        metadata=bounded_json(
            {**contents.tree("", but=""), "files": [path.name for path in info.files]}
            | {key: info.metadata[key] for key in ("stored_numbers",) if key in info.metadata}
        ),
    )
    return reader


def open_part(path: Path, dataset: str | None, allow_truncated: bool) -> Part:
    """One of several files of a movie, which may hold a single frame."""
    file = RawFile(path)
    contents, library = contents_of(file)
    reader, numbers = _open_array(file, contents, library, allow_truncated, dataset, None, part=True)
    if numbers is not None:
        wanted, info = numbers[1] - numbers[0] + 1, reader.info
        n_frames = whole_frames(file, wanted, info.shape[0], allow_truncated)
        missing = max(wanted - n_frames, info.missing_frames)
        reader.info = replace(info, shape=(n_frames, *info.shape[1:]), missing_frames=missing)
    return Part(path, reader, numbers)


def _open_array(
    file: RawFile,
    contents: Contents,
    library: str,
    allow_truncated: bool,
    dataset: str | None,
    channel: int | None,
    *,
    part: bool = False,
) -> tuple[Reader, tuple[int, int] | None]:
    """Open the one movie in this very file; with the numbers of its first and last image, where it has them."""
    movie = with_detector(contents, find_movie(contents, dataset, ((is_dm5, dm5),)))
    entry = contents.objects[movie.name]
    if entry["dtype"] is None:
        raise InputError(file.path, f"its array {movie.name} holds {entry['type']}, not a movie of counts.")
    stored, shape = np.dtype(entry["dtype"]), contents.shape(movie.name)
    place = place_movie(
        file,
        movie.name,
        shape,
        stored,
        movie.axes,
        custom=movie.custom,
        channel=channel,
        chosen=dataset is not None,
    )
    chunk = tuple(entry["chunks"]) if entry["layout"] == "chunked" else slabs(shape, stored.itemsize)
    layout = Layout(shape, chunk, place.movie_axes, place.fixed)
    announced, height, width = layout.movie_shape
    check_movie(file, (max(announced, 2) if part else announced, height, width), stored)
    check_chunks(file, layout, stored)
    _check_storage(file, movie.name, entry)
    declared = _declared(file, contents, movie.name, stored)
    if math.prod(shape) * stored.itemsize > MAX_RATIO * file.size:
        raise InputError(
            file.path,
            f"its {file.size} bytes claim to hold {announced} frames of {height} x {width}, over {MAX_RATIO} "
            "times as much: refused as a decompression bomb.",
        )
    stamps_us, present, fetch = _pieces(file, movie.name, entry, layout, stored)
    n_frames = whole_frames(file, announced, present, allow_truncated)
    movie = replace(movie, warnings=movie.warnings + not_applied(contents))
    info = _info(movie, place, stamps_us, stored, (n_frames, height, width), announced, library)
    low, high = (contents.attributes(movie.name).get(name) for name in NUMBERS)
    numbers = (low, high) if isinstance(low, int) and isinstance(high, int) and low <= high else None
    if entry["layout"] != "chunked" and _is_flat(layout):
        n_bytes = frame_size(info.shape, stored)
        first = entry["offset"]
        flat = FlatReader(file, info, stored, range(first, first + n_frames * n_bytes, n_bytes))
        return as_declared(flat, declared), numbers
    reader = ChunkedReader(file, info, layout, fetch)
    last = np.empty((1, height, width), info.dtype)
    reader.read(n_frames - 1, n_frames, last)  # what cannot be decoded should show now, not at the end
    return as_declared(reader, declared), numbers


def _pieces(
    file: RawFile, name: str, entry: dict[str, Any], layout: Layout, stored: np.dtype[Any]
) -> tuple[list[int] | None, int, Callable[[tuple[int, ...]], NDArray[Any]]]:
    """Time stamps of an array [us], the number of whole frames that are there, and what reads a piece of it."""
    if entry["layout"] != "chunked":
        return None, layout.movie_shape[0], Run(file, entry["offset"], layout, stored).fetch
    more, table = split(ask(file.path, "hdf5_child", "chunks", str(file.path), name, str(file.size)))
    chunks = Chunks(file, np.frombuffer(table, "<i8").reshape(-1, 3), layout, stored, entry["filters"])
    return more["time_stamps_us"], chunks.whole_frames(), chunks.fetch


def _declared(file: RawFile, contents: Contents, name: str, stored: np.dtype[Any]) -> Declared:
    """What attributes declare of the numbers of an array (netCDF), or values beside it (NeXus)."""
    told, group = dict(contents.attributes(name)), name.rpartition("/")[0]
    if contents.attributes(group).get("NX_class") == "NXdata":
        beside = {
            key: value
            for key, word in (("scale_factor", "scaling_factor"), ("add_offset", "offset"))
            for place in (f"{group}/{word}", f"{name}_{word}")
            if (value := contents.value(place)) is not None
        }
        if len(beside) == 2:
            raise InputError(
                file.path,
                f"gives both a scaling factor and an offset for its array {name}, and NeXus does not define "
                "which comes first. Store the final values, or remove both.",
            )
        told |= beside
    return packed(file.path, name, stored, told)


class Chunks:
    """The chunks of an array: where they are, and how they are decoded.

    Parameters
    ----------
    file : RawFile
    table : ndarray of int64, shape (n_chunks, 3)
        Offset [bytes], size [bytes] and bits of the filters left out; offset 0 where no chunk was written.
    layout : Layout
    stored : dtype
    filters : list
        (number, settings, name) of each filter, in the order in which they were applied.
    """

    def __init__(
        self,
        file: RawFile,
        table: NDArray[np.int64],
        layout: Layout,
        stored: np.dtype[Any],
        filters: list[tuple[int, list[int], str]],
    ) -> None:
        offsets, sizes, _ = table.T
        wrong = (offsets < 0) | (sizes < 0) | (offsets > file.size) | (sizes > file.size - offsets)
        if wrong.any():
            raise InputError(
                file.path,
                f"damaged: {wrong.sum()} of its chunks lie behind the end of the file. Copy it again.",
            )
        self._file = file
        self._table = table.reshape(*layout.grid, 3)
        self._layout = layout
        self._stored = stored
        self._filters = filters

    def whole_frames(self) -> int:
        """Number of frames before the first one that was not written completely."""
        time = self._layout.movie_axes[0]
        others = tuple(axis for axis in range(len(self._layout.shape)) if axis != time)
        whole = np.atleast_1d((self._table[..., 0] > 0).all(axis=others))
        n_chunks = len(whole) if whole.all() else int(whole.argmin())
        return min(n_chunks * self._layout.chunk[time], self._layout.shape[time])

    def fetch(self, place: tuple[int, ...]) -> NDArray[Any]:
        """The decoded chunk at a place of the grid."""
        offset, size, left_out = self._table[place].tolist()
        n_bytes = math.prod(self._layout.chunk) * self._stored.itemsize
        data = self._file.read_at(offset, size)
        try:
            for k, (number, values, _) in reversed(list(enumerate(self._filters))):
                if not left_out >> k & 1:
                    data = _decode(number, values, data, n_bytes + _ROOM, self._stored.itemsize)
            if len(data) != n_bytes:
                raise ValueError(f"{len(data)} bytes in place of {n_bytes}")
        except ValueError as error:
            at = place[self._layout.movie_axes[0]] * self._layout.chunk[self._layout.movie_axes[0]]
            raise InputError(
                self._file.path, f"the chunk of frame {at} is damaged and cannot be decoded ({error})."
            ) from error
        return np.frombuffer(data, self._stored).reshape(self._layout.chunk)


def _decode(number: int, values: list[int], data: bytes, n_bytes: int, item_bytes: int) -> bytes:
    match number:
        case 1:
            return codecs.inflate(data, n_bytes)
        case 2:
            return codecs.unshuffle(data, values[0] if values else item_bytes)
        case 3:
            return codecs.check_fletcher32(data)
        case 32000:
            return codecs.unlzf(data, n_bytes)
        case 32001:
            return codecs.unblosc(data, n_bytes)
        case 32004:
            return codecs.unlz4_hdf5(data, n_bytes)
        case 32008:
            return codecs.unbitshuffle_hdf5(data, n_bytes, values)
        case _:
            return codecs.unzstd(data, n_bytes)


def _check_whole(file: RawFile) -> None:
    """Refuse a file that is shorter than its superblock says: HDF5's index of the frames goes with its end."""
    start = next((at for at in (0, 512) if file.size >= at + 64 and file.read_at(at, 8) == _SIGNATURE), None)
    if start is None:
        raise InputError(
            file.path, f"cut short: {file.size} bytes are not even a whole HDF5 header. Copy it again."
        )
    block = file.read_at(start, 64)
    version = block[8]
    if version > 3:
        raise InputError(
            file.path, f"damaged: its header says HDF5 superblock version {version}; 3 is the newest."
        )
    offset_bytes = block[13] if version < 2 else block[9]
    before = {0: 24, 1: 28}.get(version, 12)
    if offset_bytes != 8:
        return  # of a small machine, long ago; the library knows
    if version >= 3 and block[11] & (_OPEN | _OPEN_SWMR):
        raise InputError(
            file.path,
            "is still open for writing, or the program that wrote it ended before it could close it. Wait until the "
            "camera has closed it; if nothing writes to it any more, run 'h5clear -s FILE' on a copy and read that.",
        )
    end = int.from_bytes(block[before + 16 : before + 24], "little")
    if end > file.size:
        raise InputError(
            file.path,
            f"cut short, or still being written: {file.size} of {end} bytes are there. An HDF5 file finds its frames "
            "by an index that goes missing with any part of it, so no frame can be kept. Copy it again.",
        )


def _check_storage(file: RawFile, name: str, entry: dict[str, Any]) -> None:
    """Refuse what is not stored in this very file, as bytes that are decoded here."""
    if entry["layout"] in ("virtual", "external"):
        raise InputError(
            file.path,
            f"its array {name} is put together from other files ({entry['layout']} storage), which is not followed. "
            "Name the file with the frames, or rewrite this one with h5repack.",
        )
    if entry["layout"] == "compact":
        raise InputError(
            file.path,
            f"its array {name} is kept in a header (compact storage). Rewrite it with h5repack -l CONTI.",
        )
    if entry["layout"] == "contiguous" and not entry["offset"]:
        raise InputError(file.path, f"its array {name} was created, but no frame was ever written.")
    if not entry["plain"]:
        raise InputError(
            file.path,
            f"its array {name} holds numbers that fill a part of their bytes, or reals of an unusual kind, which are "
            "not unpacked here. Read it with h5py and store it again as plain numbers.",
        )
    unknown = [
        f"{label or 'unnamed'} (number {number})"
        for number, _, label in entry["filters"]
        if number not in _FILTERS
    ]
    if unknown:
        raise InputError(
            file.path,
            f"its array {name} needs the HDF5 filter {', '.join(unknown)}, which is not supported; "
            f"{', '.join(_FILTERS.values())} are. Rewrite it with h5repack -f GZIP=4.",
        )


def _is_flat(layout: Layout) -> bool:
    """Whether each frame is one unbroken run of bytes, row after row."""
    return list(layout.movie_axes) == sorted(layout.movie_axes) and all(
        layout.shape[a] == 1 for a in layout.fixed
    )


def _info(
    movie: Movie,
    place: Place,
    stamps_us: list[int] | None,
    stored: np.dtype[Any],
    shape: tuple[int, int, int],
    announced: int,
    library: str,
) -> MovieInfo:
    time = movie.axes[place.movie_axes[0]]
    stamps = time.times_s if stamps_us is None else (np.array(stamps_us) - stamps_us[0]) / 1e6
    timestamps = stamps[: shape[0]] if stamps is not None and len(stamps) == announced > 1 else None
    time_s, warnings = frame_time(timestamps, 1e-9, movie.frame_time_s or time.seconds)
    return MovieInfo(
        shape=shape,
        dtype=stored.newbyteorder("="),
        format=movie.format,
        reader=library,
        frame_time_s=time_s,
        pixel_size_nm=pixel_size_of(movie.axes, place),
        exposure_s=movie.exposure_s,
        dose_rate_e_per_nm2_s=movie.dose_rate_e_per_nm2_s,
        voltage_kv=movie.voltage_kv,
        camera=movie.camera,
        timestamps_s=timestamps,
        missing_frames=announced - shape[0],
        warnings=warnings + movie.warnings + place.warnings,
        metadata=bounded_json(
            {**movie.metadata, "dataset": movie.name}
            | ({"first_time_stamp_us": stamps_us[0]} if stamps_us else {})
        ),
    )
