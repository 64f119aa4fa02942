"""Merlin (Medipix3) movies (MIB): a text header before every frame, with its number and time.

The number of frames is not in the file but in the HDR file that the camera writes beside it.
"""

from __future__ import annotations

import re
from datetime import datetime
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from ..errors import InputError
from . import MovieInfo, Reader
from .frames import FlatReader, FrameReader, check_movie, frame_size, library, turn, whole_frames
from .rawfile import RawFile
from .timestamps import frame_time, told_apart
from .units import bounded_json

_TYPES = {"U08": ">u1", "U16": ">u2", "U32": ">u4", "U64": ">u8"}
_RAW_TYPES = {1: "u1", 6: "u1", 12: ">u2"}  # of the words in a raw frame (R64), by bits per pixel
_WORD_BYTES = 8  # raw pixels come in words of 64 bits, the last pixel first
_MAX_HEADER = 2**14
_MAX_HDR_BYTES = 2**20


class Header(NamedTuple):
    """What is the same in all frames."""

    header_bytes: int
    n_chips: int
    width: int
    height: int
    type: str  # U08, U16, U32, U64, or R64 for raw
    bits: int  # per pixel of a raw frame; 0 else


class Frame(NamedTuple):
    """What each frame has for itself."""

    number: int
    time: str
    exposure_s: float
    counter: str  # which of the two counters, each with its own energy threshold


def open_movie(file: RawFile, allow_truncated: bool) -> Reader:
    """Open a MIB file whose frames are of one kind."""
    header, first_frame = _parse(file, 0)
    kind = f"MIB {header.type}" + (f" {header.bits} bit" if header.bits else "")
    if header.type == "R64" and (header.bits not in _RAW_TYPES or header.n_chips != 1):
        raise InputError(
            file.path,
            f"holds raw frames of {header.n_chips} chip(s) with {header.bits} bits; only raw frames of one chip "
            "with 1, 6 or 12 bits are supported. Save it as U08, U16 or U32 with the software of the camera.",
        )
    if header.type not in {*_TYPES, "R64"}:
        raise InputError(file.path, f"its pixels are of the unknown type {header.type}: damaged.")
    stored = np.dtype(_RAW_TYPES[header.bits] if header.type == "R64" else _TYPES[header.type])
    size = (header.height, header.width)
    check_movie(file, (2, *size), stored)
    frame_bytes = frame_size((1, *size), stored) // (8 if header.bits == 1 else 1)
    if header.type == "R64" and header.width * frame_bytes // (header.width * header.height) % _WORD_BYTES:
        raise InputError(file.path, f"damaged: raw rows of {header.width} pixels do not fill whole words.")
    step = header.header_bytes + frame_bytes

    notes = _hdr(file)
    announced = _announced(notes)
    whole = file.size // step
    if announced is None and not allow_truncated:
        raise InputError(
            file.path,
            f"{file.path.with_suffix('.hdr').name}, which says how many frames were recorded, is not beside "
            f"it; copy it too, or take the {whole} frames that are there with --allow-truncated.",
        )
    told = announced or 0
    # A part of a frame behind all those that are announced is no frame that was cut.
    announced = max(told, whole if 0 < told <= whole else -(-file.size // step))
    check_movie(file, (announced, *size), stored)
    n_frames = whole_frames(file, announced, whole, allow_truncated)
    offsets = range(header.header_bytes, header.header_bytes + n_frames * step, step)

    frames = [first_frame]
    for number in range(1, n_frames):
        found, frame = _parse(file, number * step)
        if found != header:
            raise InputError(file.path, f"damaged: the header of frame {number} differs from the first one.")
        frames.append(frame)
    stamps = _stamps(frames)
    time, warnings = frame_time(stamps, 1e-6)
    info = MovieInfo(
        shape=(n_frames, *size),
        dtype=stored.newbyteorder("="),
        format=kind,
        reader=library("tdenoise"),
        frame_time_s=time,
        exposure_s=first_frame.exposure_s or None,
        camera="Merlin",
        timestamps_s=told_apart(stamps),
        missing_frames=announced - n_frames,
        warnings=warnings + _warnings(frames, notes) + _beyond(told, n_frames, file.size - announced * step),
        metadata=bounded_json({**header._asdict(), **first_frame._asdict(), "hdr": notes}),
    )
    if header.type == "R64":
        return RawPixelReader(file, info, stored, offsets, header.bits)
    return FlatReader(file, info, stored, offsets, bottom_up=True)


class RawPixelReader(FrameReader):
    """Raw frames of one chip: within each word of 64 bits the last pixel comes first."""

    def __init__(
        self, file: RawFile, info: MovieInfo, stored: np.dtype[Any], offsets: range, bits: int
    ) -> None:
        super().__init__(file, info)
        self._stored = stored
        self._offsets = offsets
        self._bits = bits

    def _fill(self, start: int, stop: int, out: NDArray[Any]) -> None:
        pixels = out[0].size
        words = np.empty((pixels // 64, 8) if self._bits == 1 else (pixels, 1), self._stored)
        words = words.reshape(-1, _WORD_BYTES // self._stored.itemsize)
        for frame, offset in zip(out, self._offsets[start:stop], strict=True):
            self._file.read_into(words, offset)
            turned = words[:, ::-1]
            if self._bits == 1:
                turned = np.unpackbits(turned, axis=1, bitorder="little")
            frame.reshape(turned.shape)[...] = turned
        turn(out)


def _parse(file: RawFile, offset: int) -> tuple[Header, Frame]:
    """The header at ``offset``; it ends where its third field says."""
    start = file.read_at(offset, min(64, file.size - offset)).decode("latin-1").split(",")
    try:
        header_bytes = int(start[2])
        if start[0] != "MQ1" or not 64 < header_bytes <= _MAX_HEADER:
            raise ValueError
        text = file.read_at(offset, header_bytes).decode("latin-1").partition("\0")[0]
        fields = [field.strip() for field in text.split(",")]
        kind, bits = fields[6], 0
        if kind == "R64":
            bits = int(next(field for field in reversed(fields) if field))
        header = Header(header_bytes, int(fields[3]), int(fields[4]), int(fields[5]), kind, bits)
        return header, Frame(int(fields[1]), fields[9], float(fields[10]), fields[11])
    except (ValueError, IndexError, StopIteration):
        raise InputError(
            file.path,
            f"damaged: the frame header at byte {offset} cannot be understood. Copy the file again.",
        ) from None


def _hdr(file: RawFile) -> dict[str, str]:
    """The entries of the HDR file beside the movie; empty if there is none."""
    path = file.path.with_suffix(".hdr")
    try:
        if not path.is_file() or path.stat().st_size > _MAX_HDR_BYTES:
            return {}
        lines = path.read_text("latin-1").splitlines()
    except OSError:
        return {}
    pairs = (line.partition(":\t") for line in lines)
    return {name.strip(): value.strip() for name, found, value in pairs if found}


def _announced(notes: dict[str, str]) -> int | None:
    number = notes.get("Frames in Acquisition (Number)", "")
    return int(number) if re.fullmatch("[0-9]{1,12}", number) and int(number) else None


def _stamps(frames: list[Frame]) -> NDArray[np.float64] | None:
    """When each frame began [s]; None if a header does not say."""
    try:
        times = [datetime.fromisoformat(frame.time[:26]) for frame in frames]
        return np.array([(time - times[0]).total_seconds() for time in times])
    except (ValueError, TypeError):
        return None


def _beyond(told: int, n_frames: int, n_bytes: int) -> tuple[str, ...]:
    """Warnings for what the HDR file does not explain; each frame has a header of its own, so none can be shifted."""
    said = []
    if 0 < told < n_frames:
        said.append(f"its HDR file names {told} frames, and {n_frames} are there: all are read.")
    if n_bytes > 0:
        said.append(f"{n_bytes} bytes behind its frames are not a whole frame and are not read.")
    return tuple(said)


def _warnings(frames: list[Frame], notes: dict[str, str]) -> tuple[str, ...]:
    found = []
    steps = np.diff([frame.number for frame in frames])
    gaps = np.flatnonzero(steps > 1)
    if gaps.size:
        found.append(
            f"the numbers of its frames jump {gaps.size} times, the first after frame {gaps[0]}: frames were "
            "lost."
        )
    if len({frame.counter for frame in frames}) > 1:
        found.append("its frames come from two counters in turn, which have different energy thresholds.")
    per_trigger = notes.get("Frames per Trigger (Number)")
    if per_trigger == "1" and "Edge" in notes.get("Trigger Start (Positive, Negative, Internal)", ""):
        found.append("each frame was started by a trigger from outside: it may be a scan and not a movie.")
    return tuple(found)
