"""TVIPS camera movies (.tvips): a recording in one or more files, with a header and a time per frame."""

from __future__ import annotations

import re
import struct
from pathlib import Path
from typing import Any

import numpy as np

from ..errors import InputError
from . import MovieInfo, Reader
from .frames import FlatReader, check_movie, frame_size, library, whole_frames
from .rawfile import JoinedFile, RawFile
from .timestamps import frame_time, told_apart
from .units import bounded_json

_HEADER = 256
_NAMES = (
    "size", "version", "width", "height", "bits_per_pixel", "x_offset", "y_offset", "x_binning", "y_binning",
    "pixel_size_nm", "high_tension_kv", "magnification", "frame_header_bytes",
)  # fmt: skip
_FRAME_NAMES = (
    "counter", "time_s", "time_ms", "lut", "faraday", "magnification", "mode", "stage_x_nm", "stage_y_nm",
    "stage_z_nm", "stage_alpha_deg", "stage_beta_deg",
)  # fmt: skip
_FRAME = struct.Struct("<4If2I5f")
_STAMP = struct.Struct("<3I")  # all that a frame of version 1 has
_MAX_FRAME_HEADER = 2**16  # bytes; real ones have 12 to some hundred
_PART = re.compile(r"(.*_)([0-9]{3})")


def open_movie(file: RawFile, allow_truncated: bool) -> Reader:
    """Open a TVIPS recording by its first file; those that follow are found beside it."""
    words = struct.unpack("<13i", file.read_at(0, _HEADER)[:52])
    header = dict(zip(_NAMES, words, strict=True))
    bits, width, height = header["bits_per_pixel"], header["width"], header["height"]
    if bits not in {8, 16}:
        raise InputError(file.path, f"its header says {bits} bits per pixel; only 8 and 16 are supported.")
    stored = np.dtype("<u2" if bits == 16 else "u1")
    lead = header["frame_header_bytes"] if header["version"] == 2 else _STAMP.size
    if not _STAMP.size <= lead <= _MAX_FRAME_HEADER:
        raise InputError(file.path, f"its header says {lead} header bytes for each frame: damaged.")
    check_movie(file, (2, height, width), stored)
    step = lead + frame_size((1, height, width), stored)

    parts = _parts(file)
    sizes = [part.size - (_HEADER if k == 0 else 0) for k, part in enumerate(parts)]
    whole = next((k for k, size in enumerate(sizes) if size % step), None)
    announced = sum(-(-size // step) for size in sizes)
    present = announced if whole is None else sum(size // step for size in sizes[: whole + 1])
    joined = JoinedFile(parts)
    check_movie(file, (announced, height, width), stored)
    n_frames = whole_frames(file, announced, present, allow_truncated, at_least=True)
    starts = [_HEADER + k * step for k in range(n_frames)]  # the only gap is the header of the first part

    heads = [_STAMP.unpack(joined.read_at(at, _STAMP.size)) for at in starts]
    strange = sum(ms >= 1000 for _, _, ms in heads)
    if heads[0][2] < 1000 and strange > (len(heads) - 1) / 2:
        raise InputError(
            file.path,
            f"its second frame does not begin at byte {starts[1]}, where its header puts it: damaged, or each has "
            f"a header of other than {lead} bytes. Copy it again.",
        )
    started = heads[0][1]  # Unix time; taken off before milliseconds would be lost in rounding
    stamps = np.array([seconds - started + ms / 1000 for _, seconds, ms in heads])
    time, warnings = frame_time(stamps, 1e-3)
    info = MovieInfo(
        shape=(n_frames, height, width),
        dtype=stored.newbyteorder("="),
        format=f"TVIPS version {header['version']}",
        reader=library("tdenoise"),
        frame_time_s=time,
        voltage_kv=float(header["high_tension_kv"]) if 0 < header["high_tension_kv"] < 10_000 else None,
        timestamps_s=told_apart(stamps),
        missing_frames=announced - n_frames,
        warnings=warnings + _lost([counter for counter, _, _ in heads]),
        files=tuple(part.path for part in parts),
        metadata=bounded_json(
            {
                **header,
                "started_unix_s": started + stamps[0],
                "first_frame": _first_frame(joined, starts[0], lead),
                "files": [part.path.name for part in parts],
            }
        ),
    )
    return FlatReader(joined, info, stored, [at + lead for at in starts])


def belongs_to(path: Path) -> Path | None:
    """The first file of the recording that a later file continues, by its name; None of any other file."""
    named = _PART.fullmatch(path.stem)
    if path.suffix.lower() != ".tvips" or named is None or int(named.group(2)) == 0:
        return None
    return path.with_name(f"{named.group(1)}000{path.suffix}")


def _lost(counters: list[int]) -> tuple[str, ...]:
    """A warning if the counter of the frames, where it is kept, leaves any out."""
    gaps = np.flatnonzero(np.diff(counters) != 1)
    if len(set(counters)) == 1 or not gaps.size:
        return ()
    return (f"the counter of its frames jumps {gaps.size} times, the first after frame {gaps[0]}.",)


def _first_frame(file: RawFile, start: int, lead: int) -> dict[str, Any]:
    if lead < _FRAME.size:
        return {}
    return dict(zip(_FRAME_NAMES, _FRAME.unpack(file.read_at(start, _FRAME.size)), strict=True))


def _parts(file: RawFile) -> list[RawFile]:
    """The open files of a recording in order, the given one first."""
    named = _PART.fullmatch(file.path.stem)
    if named is None:
        return [file]
    base, number = named.group(1), int(named.group(2))
    if number:
        first = f"{base}000{file.path.suffix}"
        raise InputError(file.path, f"is part {number} of a recording; name its first file, {first}.")
    later = sorted(
        path
        for path in file.path.parent.glob(f"*{file.path.suffix}")
        if (found := _PART.fullmatch(path.stem)) and found.group(1) == base and path != file.path
    )
    for number, path in enumerate(later, 1):
        expected = f"{base}{number:03d}{file.path.suffix}"
        if path.name != expected:
            raise InputError(file.path, f"its part {expected} is missing: {path.name} is there. Copy it too.")
    return [file, *(RawFile(path) for path in later)]
