"""Decodes a video to plain frames with FFmpeg (PyAV), in a process of its own."""

from __future__ import annotations

import errno
import os
import sys
import tempfile
from dataclasses import dataclass, field
from typing import Any

import av
import numpy as np
from numpy.typing import NDArray

from .child import answer, write

try:
    import resource
except ImportError:  # Windows
    resource = None  # type: ignore[assignment]

_DECODERS = {
    "av1", "dvvideo", "ffv1", "ffvhuff", "h264", "hevc", "huffyuv", "libdav1d", "mjpeg", "mpeg1video", "mpeg2video",
    "mpeg4", "msmpeg4v2", "msmpeg4v3", "msrle", "png", "prores", "qtrle", "rawvideo", "utvideo", "vp8", "vp9", "wmv1",
    "wmv2",
}  # fmt: skip
_MAX_PIXELS = 2**26  # of one picture
_CPU_S = 4  # for one picture
_COLOURED = 24  # difference of red, green and blue that is more than rounding


def decode(path: str, container: str, descriptor: str, max_bytes: str, channel: str) -> None:
    """Write every picture as a frame to an open file, and tell what they are."""
    spool = int(descriptor)
    wanted = int(channel) if channel else None
    if wanted is not None and not 0 <= wanted < 3:
        raise ValueError("a video has the channels 0 (red), 1 (green) and 2 (blue).")
    # No other container, no other file: a video can name both.
    options = {"protocol_whitelist": "file"} | ({"enable_drefs": "0"} if container == "mov" else {})
    try:
        opened = av.open(path, format=container, options=options)
    except av.error.FFmpegError as error:
        raise ValueError(
            f"cut short or damaged: FFmpeg finds no video in it ({error.strerror}). Copy it again."
        ) from error
    with opened:
        stream = _checked_stream(opened)
        context = stream.codec_context
        seen = _Seen()
        try:
            _spool_all(opened, stream, seen, spool, wanted, int(max_bytes))
        except av.error.FFmpegError as error:
            seen.damage = " ".join(str(error).split())[:200]
        rate, first = stream.average_rate, seen.first
        write(
            {
                "shape": [len(seen.seconds), *(first.shape if first is not None else (1, 1))],
                "dtype": (first.dtype if first is not None else np.dtype("u1")).str,
                "announced": max(stream.frames - seen.n_hidden, 0),
                "damage": seen.damage,
                "seconds": seen.seconds,
                "rate": float(rate) if rate else None,
                "codec": context.name,
                "pixels": context.pix_fmt or "",
                "coloured": seen.coloured,
                "metadata": {"container": dict(opened.metadata), "stream": dict(stream.metadata)},
                "library": f"av {av.__version__}",
            }
        )


@dataclass
class _Seen:
    """What was seen of a video, also of one that breaks off."""

    seconds: list[float | None] = field(default_factory=list)  # of every picture [s]
    first: NDArray[Any] | None = None  # frame
    coloured: bool = False
    n_hidden: int = 0  # packets that are not to be shown
    damage: str | None = None  # why it broke off


def _checked_stream(opened: Any) -> Any:
    """The pictures of a video that can be decoded, one thread at a time."""
    if not opened.streams.video:
        raise ValueError("holds no frames.")
    stream = opened.streams.video[0]
    context = stream.codec_context
    if context.name not in _DECODERS:
        raise ValueError(
            f"its video codec {context.name} is not read; export it as H.264, FFV1 or Motion-JPEG."
        )
    if not 0 < context.width * context.height <= _MAX_PIXELS:
        raise ValueError(f"its header gives pictures of {context.height} x {context.width}: damaged.")
    context.thread_count = 1
    context.options = {"err_detect": "explode", "max_pixels": str(_MAX_PIXELS)}
    return stream


def _spool_all(
    opened: Any, stream: Any, seen: _Seen, spool: int, channel: int | None, max_bytes: int
) -> None:
    """Write every picture, and note what is seen."""
    for packet in opened.demux(stream):
        seen.n_hidden += packet.is_discard
        if packet.is_corrupt:
            raise av.error.InvalidDataError(0, "a packet is cut")
        for picture in packet.decode():
            if picture.is_corrupt:
                raise av.error.InvalidDataError(0, "a picture is damaged")
            frame = _frame(picture, channel)
            if seen.first is None:
                seen.first, seen.coloured = frame, _is_coloured(picture)
            elif frame.shape != seen.first.shape or frame.dtype != seen.first.dtype:
                raise ValueError(f"its frame size changes at frame {len(seen.seconds)}: not a movie.")
            seen.seconds.append(None if picture.time is None else float(picture.time))
            if len(seen.seconds) * frame.nbytes > max_bytes:
                raise ValueError("decodes to over 10000 times its size: refused as a decompression bomb.")
            _spool(spool, frame)
            _limit_time()


def _frame(picture: av.VideoFrame, channel: int | None) -> NDArray[Any]:
    """The luminance of a picture, or one of its colours."""
    if channel is not None:
        return np.ascontiguousarray(picture.to_ndarray(format="rgb24")[..., channel])
    if picture.format.is_rgb or picture.format.name == "pal8":
        red_green_blue = picture.to_ndarray(format="rgb24")
        if np.ptp(red_green_blue, axis=2).any():
            raise ValueError(
                "holds colour pictures, not a movie of counts. Choose one of 3 channels with --channel."
            )
        return np.ascontiguousarray(red_green_blue[..., 0])
    deep = picture.format.components[0].bits > 8
    luminance: NDArray[Any] = picture.to_ndarray(format="gray16le" if deep else "gray")
    return luminance


def _is_coloured(picture: av.VideoFrame) -> bool:
    return bool(np.ptp(picture.to_ndarray(format="rgb24"), axis=2).max() > _COLOURED)


def _spool(descriptor: int, frame: NDArray[Any]) -> None:
    view = memoryview(np.ascontiguousarray(frame).tobytes())
    try:
        while view:
            view = view[os.write(descriptor, view) :]
    except OSError as error:
        if error.errno != errno.ENOSPC:
            raise
        raise ValueError(
            f"its frames need more room than {tempfile.gettempdir()} has. Name another folder in TMPDIR."
        ) from error


def _limit_time() -> None:
    """Allow a few more seconds of computing: a video may be long, one picture may not."""
    if resource is None:
        return
    used = resource.getrusage(resource.RUSAGE_SELF)
    _, hard = resource.getrlimit(resource.RLIMIT_CPU)
    resource.setrlimit(resource.RLIMIT_CPU, (int(used.ru_utime + used.ru_stime) + 1 + _CPU_S, hard))


if __name__ == "__main__":
    av.logging.set_level(None)
    answer(decode, sys.argv[1:], cpu_s=_CPU_S + 1, memory_bytes=600 * 2**20)
