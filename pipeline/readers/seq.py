"""NorPix StreamPix movies (SEQ), as Direct Electron's DE-16 and older in situ cameras write them.

A header of 1024 bytes (8192 since version 5), then frames at a constant distance, each with its time behind
the pixels.
"""

from __future__ import annotations

import re
import struct
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..errors import InputError
from . import MovieInfo, Reader
from .frames import FlatReader, announced_frames, balance, check_movie, frame_size, library
from .rawfile import RawFile
from .timestamps import frame_time, told_apart
from .units import bounded_json

_FIELDS = (
    "width", "height", "bit_depth", "bit_depth_real", "image_bytes", "image_format", "allocated_frames",
    "origin", "frame_distance_bytes", "suggested_frame_rate", "description_format", "reference_frame",
    "fixed_size", "flags", "bayer_pattern", "time_offset_us", "extended_header_bytes", "compression",
)  # fmt: skip
_HEADER = struct.Struct("<9Id i3I 3iI")
_HEADER_AT = 548  # [bytes]
_MONOCHROME = {0, 100}
_MAX_SETTINGS = 2**20  # bytes of the settings beside a movie that are looked at
_STAMP = struct.Struct("<IHH")  # s, ms, us
_COARSE_STAMP = struct.Struct("<IH")  # s, ms


def open_movie(file: RawFile, allow_truncated: bool) -> Reader:
    """Open a SEQ file of uncompressed monochrome frames."""
    if _is_half(file.path):
        raise InputError(
            file.path,
            "holds one half of a sensor that is read out in two (Direct Electron Celeritas), with several "
            "frames in each buffer, which is not read; export it as MRC with the software of the camera.",
        )
    version = struct.unpack("<i", file.read_at(28, 4))[0]
    header = dict(zip(_FIELDS, _HEADER.unpack(file.read_at(_HEADER_AT, _HEADER.size)), strict=True))
    width, height, distance = (header[name] for name in ("width", "height", "frame_distance_bytes"))
    stored, frame_bytes = _check_images(file, header)
    first = 8192 if version >= 5 else 1024
    tail = distance - frame_bytes  # time stamp and padding
    room = max(file.size - first + tail, 0) // distance
    announced = announced_frames(file, header["allocated_frames"], room, allow_truncated)
    check_movie(file, (announced, height, width), stored)
    n_frames, unexplained = balance(file, announced, allow_truncated, first=first, step=distance, tail=tail)
    offsets = range(first, first + n_frames * distance, distance)

    started, stamps = _stamps(file, offsets, frame_bytes, distance)
    rate = header["suggested_frame_rate"]  # for playing
    time, warnings = frame_time(stamps, 1e-6, float(f"{1 / rate:.7g}") if 1e-6 < rate < 1e9 else None)
    info = MovieInfo(
        shape=(n_frames, height, width),
        dtype=stored.newbyteorder("="),
        format=f"NorPix SEQ version {version}",
        reader=library("tdenoise"),
        frame_time_s=time,
        timestamps_s=told_apart(stamps),
        missing_frames=announced - n_frames,
        warnings=warnings + _references(file) + unexplained,
        metadata=bounded_json(
            {
                "version": version,
                "description": file.read_at(36, 512).decode("utf-16-le", "replace").partition("\0")[0],
                **header,
                "started_unix_s": started,
            }
        ),
    )
    return FlatReader(file, info, stored, offsets)


def _check_images(file: RawFile, header: dict[str, Any]) -> tuple[np.dtype[Any], int]:
    """Type of the pixels and bytes of an image; refuses images that are not plain counts."""
    if header["compression"] != 0:
        raise InputError(
            file.path,
            f"its frames are compressed (NorPix method {header['compression']}), which is not read.",
        )
    if header["image_format"] not in _MONOCHROME:
        raise InputError(
            file.path, f"holds colour or packed images (NorPix format {header['image_format']}), not counts."
        )
    width, height, bits, distance = (
        header[name] for name in ("width", "height", "bit_depth", "frame_distance_bytes")
    )
    if bits not in {8, 16}:
        raise InputError(file.path, f"its header says {bits} bits per pixel; only 8 and 16 are supported.")
    stored = np.dtype("u1" if bits == 8 else "<u2")
    check_movie(file, (2, height, width), stored)
    frame_bytes = frame_size((2, height, width), stored)
    if header["image_bytes"] != frame_bytes or distance < frame_bytes:
        raise InputError(
            file.path,
            f"damaged: its header gives {header['image_bytes']} bytes for an image of {height} x {width} "
            f"pixels of {bits} bits, and {distance} bytes from frame to frame.",
        )
    return stored, frame_bytes


def _is_half(path: Path) -> bool:
    """Whether a file is one of the two of a Celeritas, by its name or the settings beside it."""
    if re.search(r"(?<![A-Za-z])(top|bottom)(?![A-Za-z])", path.stem, re.IGNORECASE):
        return True
    for settings in path.parent.glob("*.Config.Metadata.xml"):
        try:
            with settings.open("rb") as file:
                buffered = re.search(rb'<SegmentPreBuffer\s+Value="([0-9]+)"', file.read(_MAX_SETTINGS))
        except OSError:
            continue
        same = path.name.startswith(settings.name.partition(".")[0])
        if same and buffered is not None and int(buffered[1][:9]) > 1:
            return True
    return False


def _stamps(
    file: RawFile, offsets: range, frame_bytes: int, distance: int
) -> tuple[int | None, NDArray[np.float64] | None]:
    """Unix time of the first second [s] and the time of each frame from it on [s]; None without stamps."""
    layout = _STAMP if distance - frame_bytes >= _STAMP.size else _COARSE_STAMP
    if distance - frame_bytes < layout.size or offsets[-1] + frame_bytes + layout.size > file.size:
        return None, None
    clock = [layout.unpack(file.read_at(offset + frame_bytes, layout.size)) for offset in offsets]
    first = clock[0][0]  # Unix time; taken off before microseconds would be lost in rounding
    if first == 0:
        return None, None
    strange = sum(max(parts) >= 1000 for _, *parts in clock)
    if max(clock[0][1:]) < 1000 and strange > (len(clock) - 1) / 2:
        raise InputError(
            file.path,
            f"its second frame does not begin at byte {offsets[1]}, where its header puts it: damaged, or frames are "
            f"not {distance} bytes apart. Copy it again.",
        )
    stamps = [
        seconds - first + sum(part / 1000 ** (k + 1) for k, part in enumerate(parts))
        for seconds, *parts in clock
    ]
    return first, np.array(stamps)


def _references(file: RawFile) -> tuple[str, ...]:
    """A hint at the dark and gain references that the camera wrote beside the movie."""
    found = [
        path.name
        for kind in ("dark", "gain")
        if (path := file.path.with_name(f"{file.path.name}.{kind}.mrc")).is_file()
    ]
    if not found:
        return ()
    return (f"the references {' and '.join(found)} beside the movie are not applied automatically.",)
