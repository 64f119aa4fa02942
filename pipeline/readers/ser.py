"""TIA series (SER) of FEI microscopes: images with a time stamp each, calibrated in metres.

The layout is the one that P. Boothroyd published for series version 0x210; 0x220 widened offsets to 64 bit.
"""

from __future__ import annotations

import re
import struct
from typing import Any
from xml.etree import ElementTree

import numpy as np
from numpy.typing import NDArray

from ..errors import InputError
from . import MovieInfo, Reader
from .frames import FlatReader, announced_frames, check_movie, frame_size, library, whole_frames
from .rawfile import RawFile
from .timestamps import frame_time, told_apart
from .units import bounded_json, pixel_size, to_nanometres

_TYPES = {1: "u1", 2: "u2", 3: "u4", 4: "i1", 5: "i2", 6: "i4", 7: "f4", 8: "f8", 9: "c8", 10: "c16"}
_IMAGES = 0x4122
_STAMPED = {0x4152, 0x4142}  # kinds of tag: time; time and position
_VERSIONS = {0x200: "<i4", 0x210: "<i4", 0x220: "<i8"}  # type of an offset
_ELEMENT = struct.Struct("<ddiddihii")
_MAX_PIXEL_M = 1e-3  # a larger step is the reciprocal pixel of a diffraction pattern [m]
_LONGEST_TAG = 24  # bytes: kind, time, and a position
_MAX_EMI_BYTES = 2**28


def open_movie(file: RawFile, allow_truncated: bool) -> Reader:
    """Open a SER file that holds a series of images."""
    version, word, tag_kind, total, valid, start = _header(file)
    table = np.frombuffer(file.read_at(start, 2 * max(total, 0) * word.itemsize), word).astype(np.int64)
    written = int(np.argmin(np.append(table[:total] > 0, False)))  # offsets of images that were not are 0
    valid = announced_frames(file, valid, written, allow_truncated)
    if not 0 < valid <= total:
        raise InputError(
            file.path, f"its header says that {valid} of {total} images are valid: there is no frame in it."
        )
    offsets, tags = table[:valid], table[total : total + valid]

    element = _ELEMENT.unpack(file.read_at(int(offsets[0]), _ELEMENT.size))
    code, width, height = element[6:]
    if code not in _TYPES:
        raise InputError(file.path, f"its pixels are of the unknown SER type {code}.")
    stored = np.dtype(_TYPES[code]).newbyteorder("<")
    check_movie(file, (valid, height, width), stored)
    frame_bytes = frame_size((valid, height, width), stored)
    present = _present(file, offsets, element[6:], frame_bytes)
    n_frames = whole_frames(file, valid, present, allow_truncated)

    conditions = _conditions(file)
    stamps = _stamps(file, tags[:n_frames]) if tag_kind in _STAMPED else None
    time, warnings = frame_time(stamps, 1.0)
    voltage = _number(conditions.get("AcceleratingVoltage"))
    info = MovieInfo(
        shape=(n_frames, height, width),
        dtype=stored.newbyteorder("="),
        format="SER",
        reader=library("tdenoise"),
        frame_time_s=time,
        pixel_size_nm=_pixel_size(element, conditions),
        exposure_s=_number(conditions.get("FrameTime") or conditions.get("DwellTimePath")),
        voltage_kv=None if voltage is None else voltage / 1000,
        camera=conditions.get("CameraNamePath"),
        timestamps_s=told_apart(stamps),
        missing_frames=valid - n_frames,
        warnings=warnings
        + _beyond(file, table[valid:total], frame_bytes)
        + _behind(file, start + table.nbytes, table, total, frame_bytes),
        metadata=bounded_json(
            {
                "version": hex(version),
                "announced_images": total,
                "valid_images": valid,
                "time_stamps_unix_s": stamps,
                "calibration_x": element[:3],
                "calibration_y": element[3:6],
                "emi": conditions,
            }
        ),
    )
    starts = (offsets[:n_frames] + _ELEMENT.size).tolist()
    return FlatReader(file, info, stored, starts, bottom_up=True)


def _header(file: RawFile) -> tuple[int, np.dtype[Any], int, int, int, int]:
    """Version, type of offsets, kind of tags, images in all and valid ones, and where the table of offsets begins."""
    _, _, version, kind, tag_kind, total, valid = struct.unpack("<3h4i", file.read_at(0, 22))
    if version not in _VERSIONS:
        raise InputError(file.path, f"its header says SER version {version:#x}, which is not supported.")
    word = np.dtype(_VERSIONS[version])
    position = file.read_at(22, word.itemsize + 4)
    start = int(np.frombuffer(position, word, 1)[0])
    n_dimensions = int(np.frombuffer(position, "<i4", 1, word.itemsize)[0])
    if kind != _IMAGES:
        raise InputError(file.path, "holds a series of spectra, not a movie.")
    if n_dimensions > 1:
        raise InputError(
            file.path, f"holds a scan of {n_dimensions} dimensions with an image at each point, not a movie."
        )
    return version, word, tag_kind, total, valid, start


def _pixel_size(element: tuple[Any, ...], conditions: dict[str, str]) -> tuple[float, float] | None:
    """Of an image [nm]; None in diffraction."""
    mode = conditions.get("Mode", "").lower()
    if "diffraction" in mode and "stem" not in mode:  # scanning, the lenses stand so for images
        return None
    return pixel_size(_nanometres(element[4]), _nanometres(element[1]))


def _beyond(file: RawFile, offsets: Any, frame_bytes: int) -> tuple[str, ...]:
    """A warning for images that the table lists and the file has, but the header does not count."""
    ends = offsets[offsets > 0] + _ELEMENT.size + frame_bytes
    n_more = int((ends <= file.size).sum())
    if not n_more:
        return ()
    return (f"its table lists {n_more} images more than its header says are valid; they are not read.",)


def _behind(
    file: RawFile, table_end: int, table: NDArray[np.int64], total: int, frame_bytes: int
) -> tuple[str, ...]:
    """A warning for bytes behind all that the table names; each image has a place of its own, so none is shifted."""
    images, tags = table[:total], table[total:]
    ends = (table_end, int(images.max()) + _ELEMENT.size + frame_bytes, int(tags.max()) + _LONGEST_TAG)
    n_bytes = file.size - max(ends)
    return (f"{n_bytes} bytes behind its frames are not explained by its header.",) if n_bytes > 0 else ()


def _present(file: RawFile, offsets: Any, layout: tuple[int, ...], frame_bytes: int) -> int:
    """Number of leading frames that lie whole in the file and are of one kind."""
    whole_bytes = _ELEMENT.size + frame_bytes
    for number, offset in enumerate(offsets.tolist()):
        if number and offset < offsets[number - 1] + whole_bytes:
            if offset <= 0:  # never written
                return number
            raise InputError(file.path, f"damaged: its images {number - 1} and {number} overlap.")
        if offset < 0 or offset + whole_bytes > file.size:
            return number
        found = _ELEMENT.unpack(file.read_at(offset, _ELEMENT.size))[6:]
        if found != layout:
            raise InputError(
                file.path,
                f"its image {number} has {found[2]} x {found[1]} pixels of SER type {found[0]}, the first "
                f"one {layout[2]} x {layout[1]} of type {layout[0]}: damaged, or not one movie.",
            )
    return len(offsets)


def _stamps(file: RawFile, tags: Any) -> np.ndarray[Any, np.dtype[np.float64]] | None:
    """Unix time of each frame [s], or None where the tags are not all there."""
    seconds = []
    for offset in tags.tolist():
        if not 0 < offset <= file.size - 8:
            return None
        kind, second = struct.unpack("<Ii", file.read_at(offset, 8))
        if kind & 0xFFFF not in _STAMPED:
            return None
        seconds.append(second)
    return np.array(seconds, np.float64)


def _conditions(file: RawFile) -> dict[str, str]:
    """What the EMI file beside the series says of microscope and camera; empty if there is none."""
    emi = file.path.with_name(re.sub(r"_\d+$", "", file.path.stem) + ".emi")
    try:
        if emi == file.path or not emi.is_file() or emi.stat().st_size > _MAX_EMI_BYTES:
            return {}
        content = emi.read_bytes()
    except OSError:
        return {}
    text = content.partition(b"<ObjectInfo>")[2].partition(b"</ObjectInfo>")[0].decode("utf-8", "replace")
    if not text or "<!" in text:  # no entity definitions: they can expand without end
        return {}
    try:
        root = ElementTree.fromstring(f"<ObjectInfo>{text}</ObjectInfo>")
    except ElementTree.ParseError:
        return {}
    found = {node.tag: node.text.strip() for node in root.iter() if node.text and node.text.strip()}
    for item in root.iter("Data"):
        found[item.findtext("Label", "")] = (
            f"{item.findtext('Value', '')} {item.findtext('Unit', '')}".strip()
        )
    return {name: value for name, value in found.items() if name not in {"", "Label", "Value", "Unit"}}


def _nanometres(metres: float) -> float | None:
    value = to_nanometres(metres, "m") if 0 < metres < _MAX_PIXEL_M else None
    return None if value is None else float(f"{value:.7g}")


def _number(text: str | None) -> float | None:
    try:
        value = float(text or "")
    except ValueError:
        return None
    return value if 0 < value < float("inf") else None
