"""MRC movies (MRC2014 and its older relatives), from a 1024-byte header and frames back to back."""

from __future__ import annotations

import re
import struct
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..errors import InputError
from . import MovieInfo, Reader
from .frames import FlatReader, FrameReader, announced_frames, balance, check_movie, library
from .mrc_notes import direct_electron, extended_header
from .rawfile import RawFile
from .units import bounded_json, pixel_size, to_nanometres

_HEADER = 1024
_TYPES = {0: "i1", 1: "i2", 2: "f4", 6: "u2", 12: "f2", 101: "u1"}
_COMPLEX = {3, 4}
_NAMES = (
    "nx", "ny", "nz", "mode", "nxstart", "nystart", "nzstart", "mx", "my", "mz", "xlen", "ylen", "zlen",
    "alpha", "beta", "gamma", "mapc", "mapr", "maps", "dmin", "dmax", "dmean", "ispg", "nsymbt",
)  # fmt: skip
_PACKED = 101  # two 4-bit pixels in a byte, the first in the low half
_IMOD_STAMPS = {b"IMOD", b"DOMI"}
_SIGNED_FLAG, _PACKED_FLAG = 1, 16  # of IMOD, for mode 0
_PACKED_LABEL = "4 bits packed"  # of SerialEM
_SCALED_LABEL = re.compile(r"Dose frac(?:\.|tionation) image, scaled by +([0-9.]+)")


def open_movie(file: RawFile, allow_truncated: bool, *, single: bool = False) -> Reader:
    """Open an MRC file whose sections are frames; just one, if ``single``."""
    if file.size < _HEADER:
        raise InputError(file.path, f"cut short: {file.size} bytes, but an MRC header alone has {_HEADER}.")
    header = file.read_at(0, _HEADER)
    order = _byte_order(header)
    words = struct.unpack(f"{order}10i6f3i3f2i", header[:96])
    width, height, announced, mode = words[:4]
    extended = words[23]
    if mode in _COMPLEX:
        raise InputError(file.path, f"MRC mode {mode} holds complex numbers, not a movie of counts.")
    if mode not in _TYPES:
        known = "0, 1, 2, 6, 12 and 101"
        raise InputError(file.path, f"its header says MRC mode {mode}; the supported modes are {known}.")
    first = _HEADER + extended
    if extended < 0 or first > file.size:
        raise InputError(
            file.path, f"its header announces {extended} more header bytes in a file of {file.size}: damaged."
        )

    stored = np.dtype(order + _TYPES[mode])
    packed, labels = mode == _PACKED, _labels(header, order)
    doubts: tuple[str, ...] = ()
    row_bytes = (width + 1) // 2 if packed else width * stored.itemsize
    if mode == 0:
        packed, is_signed, doubts = _bytes_of(file, header, order, labels)
        width = 2 * width if packed else width  # of a packed movie, the header gives the bytes of a row
        stored = stored if is_signed else np.dtype("u1")
    frame_bytes = max(height * row_bytes, 1)
    room = max(file.size - first, 0) // frame_bytes
    announced = announced_frames(file, announced, room, allow_truncated, single=single)
    check_movie(file, (announced, height, width), stored, single=single)
    n_frames, unexplained = balance(
        file, announced, allow_truncated, first=first, step=frame_bytes, optional=extended
    )
    notes = direct_electron(file) or extended_header(file, header, order, extended, n_frames)
    info = MovieInfo(
        shape=(n_frames, height, width),
        dtype=stored.newbyteorder("="),
        format=f"MRC mode {mode}",
        reader=library("tdenoise"),
        frame_time_s=notes.frame_time_s,
        pixel_size_nm=_pixel_size(words) or notes.pixel_size_nm,
        exposure_s=notes.exposure_s,
        voltage_kv=notes.voltage_kv,
        camera=notes.camera,
        timestamps_s=notes.timestamps_s,
        missing_frames=announced - n_frames,
        warnings=notes.warnings + unexplained + doubts + _scaled(labels),
        metadata=_metadata(header, words, order, file.size - first - n_frames * frame_bytes) | notes.metadata,
    )
    offsets = range(first, first + n_frames * frame_bytes, frame_bytes)
    if packed:
        return PackedReader(file, info, offsets, row_bytes)
    return FlatReader(file, info, stored, offsets)


def _bytes_of(
    file: RawFile, header: bytes, order: str, labels: list[str]
) -> tuple[bool, bool, tuple[str, ...]]:
    """Whether the bytes of mode 0 hold two pixels each, as of a K2 or K3, whether they are signed, and doubts."""
    imod_stamp, imod_flags = struct.unpack(f"{order}4si", header[152:160])
    said: tuple[str, ...] = ()
    if imod_stamp not in _IMOD_STAMPS:
        lowest, highest = struct.unpack(f"{order}2f", header[76:84])
        # Everyone else's bytes are signed, but for old files; IMOD goes by what their header gives as the range.
        imod_flags = 0 if lowest >= 0 and 128 <= highest < 256 else _SIGNED_FLAG
        if not imod_flags:
            said = (
                f"its header gives values from {lowest:g} to {highest:g}, which signed bytes do not reach: its bytes "
                "are read as unsigned, as IMOD does.",
            )
    packed = bool(imod_flags & _PACKED_FLAG or (len(labels) == 1 and _PACKED_LABEL in labels[0]))
    if packed and imod_flags & _SIGNED_FLAG and imod_stamp in _IMOD_STAMPS:
        raise InputError(
            file.path,
            "its header says that its pixels are packed, two in a byte, and signed: IMOD has no such mode.",
        )
    if not packed and any(_PACKED_LABEL in label for label in labels):
        said += (
            "one of its labels says that two pixels were packed in a byte; there are others, so it is taken for a copy "
            "in which each byte is a pixel. Check that its width is right.",
        )
    return packed, bool(imod_flags & _SIGNED_FLAG) and not packed, said


class PackedReader(FrameReader):
    """Frames of 4-bit pixels, two in a byte; an odd row is padded to a whole byte."""

    def __init__(self, file: RawFile, info: MovieInfo, offsets: range, row_bytes: int) -> None:
        super().__init__(file, info)
        self._offsets = offsets
        self._row_bytes = row_bytes

    def _fill(self, start: int, stop: int, out: NDArray[Any]) -> None:
        _, height, width = self.info.shape
        packed = np.empty((height, self._row_bytes), np.uint8)
        for frame, offset in zip(out, self._offsets[start:stop], strict=True):
            self._file.read_into(packed, offset)
            frame[:, 0::2] = packed & 15
            frame[:, 1::2] = packed[:, : width // 2] >> 4


def _byte_order(header: bytes) -> str:
    """The byte order in which the header makes sense; the machine stamp decides where both do."""
    orders = "><" if header[212:214] == b"\x11\x11" else "<>"

    def sensible(order: str) -> bool:
        width, height, _, mode = struct.unpack(f"{order}4i", header[:16])
        return 0 < width < 2**24 and 0 < height < 2**24 and (mode in _TYPES or mode in _COMPLEX)

    return next((order for order in orders if sensible(order)), orders[0])


def _labels(header: bytes, order: str) -> list[str]:
    n_labels = min(max(struct.unpack(f"{order}i", header[220:224])[0], 0), 10)
    labels = (header[224 + 80 * k : 304 + 80 * k] for k in range(n_labels))
    return [label.decode("latin-1").strip("\0 ") for label in labels]


def _scaled(labels: list[str]) -> tuple[str, ...]:
    """A hint where SerialEM says that it multiplied the counts of a counting camera."""
    found = next((match[1] for label in labels if (match := _SCALED_LABEL.search(label))), "1")
    if not re.fullmatch(r"[0-9]+\.?[0-9]*", found) or float(found) in (0.0, 1.0):
        return ()
    return (
        f"its label says that the counts were scaled by {float(found):g}, which is kept; if the camera counted "
        f"electrons, --counts-per-electron {float(found):g} says so.",
    )


def _pixel_size(words: tuple[Any, ...]) -> tuple[float, float] | None:
    """(row, column) distance [nm]: cell length over sampling of the axes that rows and columns run along."""
    sampling, cell, axes = words[7:10], words[10:13], words[16:19]
    column_axis, row_axis = axes[:2] if sorted(axes) == [1, 2, 3] else (1, 2)

    def along(axis: int) -> float | None:
        if sampling[axis - 1] <= 0:
            return None
        # The header has single precision: 7 digits say what was meant, 181 and not 181.0000032.
        return to_nanometres(float(f"{cell[axis - 1] / sampling[axis - 1]:.7g}"), "A")

    return pixel_size(along(row_axis), along(column_axis))


def _metadata(header: bytes, words: tuple[Any, ...], order: str, trailing_bytes: int) -> dict[str, Any]:
    return bounded_json(
        {
            **dict(zip(_NAMES, words, strict=True)),
            "byte_order": "big" if order == ">" else "little",
            "exttyp": header[104:108].decode("latin-1").strip("\0 "),
            "labels": _labels(header, order),
            "trailing_bytes": trailing_bytes,
        }
    )
