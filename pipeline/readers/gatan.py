"""Gatan in situ captures: an image that directs to the frames, which lie in raw files or in folders.

Three layouts occur: NAME.dm4 (the director, one image) with NAME.raw, NAME.raw_1, ... that follow each other
without regard to frames; a director with folders Hour_00/Minute_00/Second_00 that hold one file for each
frame; and these folders alone.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from ..errors import InputError
from . import MovieInfo, Reader
from .frames import FlatReader, frame_size, unexplained, whole_frames
from .rawfile import JoinedFile, RawFile, RawFolder
from .sequence import open_frames

_ELECTRONS = {"e", "e-", "electron", "electrons"}


def open_capture(director: RawFile, info: MovieInfo, stored: np.dtype[Any], allow_truncated: bool) -> Reader:
    """Open a capture by its director.

    Parameters
    ----------
    director : RawFile
        The open DM3 or DM4 file with one image.
    info : MovieInfo
        What its tags say; ``info.shape[0]`` is the number of frames that were recorded.
    stored : dtype
        Of the director's pixels, with its byte order; the raw files have the same.
    allow_truncated : bool
        Keep the whole frames if some are missing.
    """
    raw = director.path.with_suffix(".raw")
    if raw.is_file():
        return _open_raw_files(director, raw, info, stored, allow_truncated)
    if any(path.is_dir() for path in director.path.parent.glob("Hour_*")):
        announced = info.shape[0]
        reader = open_frames(RawFolder(director.path.parent), allow_truncated, announced=announced)
        reader.info = replace(reader.info, files=(director.path, *reader.info.files))
        director.close()
        return reader
    raise InputError(
        director.path,
        f"holds a single image that refers to {info.shape[0]} recorded frames, but neither {raw.name} nor "
        "the folder Hour_00 is beside it; put them there.",
    )


def calibrated_brightness(told: Mapping[str, Any], unit: str) -> tuple[str, ...]:
    """A warning where the numbers are calibrated in another unit: that is no part of the counts."""
    scale, origin = told.get("Scale"), told.get("Origin", 0.0)
    if not isinstance(scale, float) or not isinstance(origin, float) or not 0 < scale < math.inf:
        return ()
    if (scale, origin) == (1.0, 0.0):
        return ()
    counted = unit.strip().lower() in _ELECTRONS
    advice = f" --counts-per-electron {1 / scale:.6g} says the same." if counted and origin == 0 else ""
    number = f"(number - {origin:g})" if origin else "number"
    value = f"{number} x {scale:.6g} {unit}".rstrip()
    return (
        f"its brightness is calibrated, {value}, which is not applied: the numbers are kept as counts.{advice}",
    )


def _open_raw_files(
    director: RawFile, raw: Path, info: MovieInfo, stored: np.dtype[Any], allow_truncated: bool
) -> Reader:
    announced = info.shape[0]
    if announced < 2:
        raise InputError(director.path, f"its tags say that {announced} frames were recorded: not a movie.")
    joined = JoinedFile([RawFile(path) for path in _parts(raw)])
    frame_bytes = frame_size(info.shape, stored)
    n_bytes = joined.size
    if n_bytes < announced * frame_bytes:
        n_bytes = _before_the_hole(joined.sizes)
    n_frames = whole_frames(joined, announced, n_bytes // frame_bytes, allow_truncated)
    spare = n_bytes - n_frames * frame_bytes
    more = unexplained(joined.size - announced * frame_bytes, frame_bytes)
    info = replace(
        info,
        shape=(n_frames, *info.shape[1:]),
        format=f"Gatan capture, {info.format} and raw",
        missing_frames=announced - n_frames,
        warnings=info.warnings + more,
        files=(director.path, *joined.paths),
        metadata=info.metadata | {"files": [path.name for path in joined.paths], "trailing_bytes": spare},
    )
    director.close()
    return FlatReader(joined, info, stored, range(0, n_frames * frame_bytes, frame_bytes))


def _before_the_hole(sizes: Sequence[int]) -> int:
    """Bytes up to where some are missing: all raw files but the last one should be of one size."""
    hole = next((k for k, size in enumerate(sizes[:-1]) if size < max(sizes)), len(sizes) - 1)
    return sum(sizes[: hole + 1])


def _parts(raw: Path) -> Iterator[Path]:
    """The raw files of a capture in order: NAME.raw, NAME.raw_1, NAME.raw_2 and so on."""
    part, number = raw, 0
    while part.is_file():
        yield part
        number += 1
        part = raw.with_name(f"{raw.name}_{number}")
