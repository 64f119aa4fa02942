"""Compressed video (MP4, QuickTime, AVI): decoded once, in a process of its own, to a temporary file of frames."""

from __future__ import annotations

import tempfile
from importlib.util import find_spec

import numpy as np

from ..errors import InputError
from . import MovieInfo, Reader
from .child import ask, split
from .chunked import MAX_RATIO
from .frames import FlatReader, check_movie, frame_size, whole_frames
from .rawfile import RawFile
from .timestamps import frame_time
from .units import bounded_json, to_seconds

_LOSSLESS = ("rawvideo", "ffv1", "huffyuv", "ffvhuff", "utvideo", "png", "qtrle", "msrle")
_PATIENCE_S = 86_400


def open_movie(file: RawFile, allow_truncated: bool, *, channel: int | None = None) -> Reader:
    """Open a video whose pictures are frames: its luminance, or one of the channels red, green and blue."""
    if find_spec("av") is None:
        raise InputError(
            file.path,
            "video needs the package av. In a checkout of tdenoise: pip install '.[video]'.",
        )
    container = "avi" if file.read_at(8, 4) == b"AVI " else "mov"
    if container == "mov":
        _check_index(file)
    with tempfile.NamedTemporaryFile(prefix="tdenoise-video-") as spool:
        words = (str(file.path), container, str(spool.fileno()), str(MAX_RATIO * file.size))
        told, _ = split(
            ask(
                file.path,
                "video_child",
                *words,
                "" if channel is None else str(channel),
                pass_fds=[spool.fileno()],
                patience_s=_PATIENCE_S,
            )
        )
        frames = RawFile(spool.name)  # stays open when the name goes
    stored = np.dtype(told["dtype"])
    n_decoded, height, width = told["shape"]
    announced = max(told["announced"], n_decoded + (told["damage"] is not None), 1)
    try:
        if n_decoded:
            check_movie(file, (announced, height, width), stored)
        n_frames = whole_frames(
            file, announced, n_decoded, allow_truncated, at_least=told["announced"] < announced
        )
    except InputError:
        frames.close()
        raise
    file.close()
    seconds = told["seconds"]
    timestamps = np.array(seconds, np.float64) if None not in seconds else None
    rate_s = to_seconds(1 / told["rate"], "s") if told["rate"] else None  # on average, with all pauses
    time, uneven = frame_time(timestamps, 1e-3, rate_s)
    info = MovieInfo(
        shape=(n_frames, height, width),
        dtype=stored,
        format=f"{'AVI' if container == 'avi' else 'MP4'}, {told['codec']}",
        reader=told["library"],
        frame_time_s=time,
        timestamps_s=timestamps,
        missing_frames=announced - n_frames,
        warnings=_warnings(told["codec"], told["pixels"], told["coloured"], channel) + uneven,
        metadata=bounded_json({"pixels": told["pixels"], "damage": told["damage"], **told["metadata"]}),
    )
    n_bytes = frame_size(info.shape, stored)
    return FlatReader(frames, info, stored, range(0, n_frames * n_bytes, n_bytes))


def _check_index(file: RawFile) -> None:
    """Refuse a file whose index, the box "moov", is cut: FFmpeg would make do with what is left of it."""
    at = 0
    while at + 16 <= file.size:
        head = file.read_at(at, 16)
        size, name = int.from_bytes(head[:4], "big"), head[4:8]
        if size == 1:
            size = int.from_bytes(head[8:], "big")
        end = file.size if size == 0 else at + size
        if name == b"moov" and end <= file.size:
            return
        if size != 0 and size < 8:
            break
        at = end
    raise InputError(
        file.path,
        "cut short or damaged: the index of its frames is incomplete, so no frame can be kept. "
        "Copy it again.",
    )


def _warnings(codec: str, pixels: str, coloured: bool, channel: int | None) -> tuple[str, ...]:
    """What a video is not: counts of a detector."""
    said = []
    if codec not in _LOSSLESS:
        said.append(
            f"compressed video ({codec}): compression correlates the noise of neighbouring pixels, which breaks the "
            "noise model of the denoiser; use the detector's own file if there is one."
        )
    said.append(
        f"its values are brightnesses of a picture ({pixels}), scaled and maybe clipped on export, and its frame "
        "rate is that of the playback."
    )
    if coloured and channel is None:
        said.append(
            "its pictures are coloured: only their luminance is read; --channel takes red, green or blue."
        )
    return tuple(said)
