"""Grey pictures become a video that plays everywhere (H.264 in MP4), or an animated GIF or WebP, as they come."""

from __future__ import annotations

import contextlib
from collections.abc import Iterable, Iterator
from fractions import Fraction
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..errors import UsageError

QUALITY = 20  # constant rate factor of x264: 0 is lossless, 51 the worst
THREADS = 1  # of the encoder
# With the code for AVX-512, x264 encodes the same pictures to other bytes at one run in some fifty.
SAME_EVERYWHERE = "cpu-independent=1"
LOOKAHEAD = 16  # pictures that the encoder holds before it writes one
GIF_TICK = Fraction(1, 100)  # of the clock of a GIF [s]
WEBP_QUALITY = 25  # 0 is the worst, 100 the best
MOST_FPS, MOST_GIF_FPS = 120, 50  # pictures per second that players show


def check_encoder() -> None:
    """Refuse to write a video where its encoder is missing.

    Raises
    ------
    UsageError
    """
    if find_spec("av") is None:
        raise UsageError(
            "MP4, GIF and WebP need the package av. In a checkout of tdenoise: pip install '.[video]'. "
            "Or write numbered pictures: -o FILE.png."
        )


def write_h264(
    file: Path,
    pictures: Iterable[NDArray[np.uint8]],
    rate: Fraction,
    *,
    quality: int = QUALITY,
    key_every: int | None = None,
    title: str = "",
    comment: str = "",
) -> int:
    """Write grey pictures as H.264 in MP4: yuv420p, High profile, index in front; PowerPoint and browsers play it.

    Parameters
    ----------
    file : Path
        Whatever its name, it becomes an MP4.
    pictures : iterable of ndarray of uint8, shape (height, width)
        Of the same shape, both numbers even.
    rate : Fraction
        Pictures per second.
    quality : int
        0 is lossless, 51 the worst.
    key_every : int, optional
        Pictures from one that can be jumped to to the next; about a second if not given.
    title, comment : str
        Metadata.

    Returns
    -------
    int
        Number of pictures.
    """
    import av

    options = {
        "crf": str(quality),
        "preset": "medium",
        "profile": "high",
        "rc-lookahead": str(LOOKAHEAD),
        "x264-params": SAME_EVERYWHERE,
        "g": str(key_every or max(1, round(rate))),
        # Colours as televisions and browsers expect them where nothing is said.
        "color_primaries": "bt709",
        "color_trc": "bt709",
        "colorspace": "bt709",
        "color_range": "tv",
    }
    settings = {"movflags": "+faststart"}
    with _plain_errors(file), av.open(str(file), "w", format="mp4", options=settings) as container:
        for key, text in (("title", title), ("comment", comment)):
            if text:
                container.metadata[key] = text
        return _encode(container, "libx264", "yuv420p", pictures, rate, options)


def write_gif(file: Path, pictures: Iterable[NDArray[np.uint8]], rate: Fraction) -> int:
    """Write grey pictures as an animated GIF that plays for ever; every shade is kept.

    Parameters
    ----------
    file : Path
    pictures : iterable of ndarray of uint8, shape (height, width)
    rate : Fraction
        Pictures per second, on average: the clock of a GIF ticks 100 times a second.

    Returns
    -------
    int
        Number of pictures.
    """
    import av

    with _plain_errors(file), av.open(str(file), "w", format="gif", options={"loop": "0"}) as container:
        return _encode(container, "gif", "gray", pictures, rate, {})


def write_webp(file: Path, pictures: Iterable[NDArray[np.uint8]], rate: Fraction) -> int:
    """Write grey pictures as an animated WebP that plays for ever: small, for web pages.

    Parameters
    ----------
    file : Path
    pictures : iterable of ndarray of uint8, shape (height, width)
    rate : Fraction
        Pictures per second.

    Returns
    -------
    int
        Number of pictures.
    """
    import av

    options = {"quality": str(WEBP_QUALITY), "compression_level": "4"}
    with _plain_errors(file), av.open(str(file), "w", format="webp", options={"loop": "0"}) as container:
        return _encode(container, "libwebp", "yuv420p", pictures, rate, options)


@contextlib.contextmanager
def _plain_errors(file: Path) -> Iterator[None]:
    """Errors of the disk as Python has them: those of FFmpeg have no file name that could be changed."""
    import av

    try:
        yield
    except av.error.FFmpegError as error:
        if isinstance(error, OSError):
            raise OSError(error.errno, error.strerror, str(file)) from error
        raise


def _encode(
    container: Any,
    codec: str,
    pixels: str,
    pictures: Iterable[NDArray[np.uint8]],
    rate: Fraction,
    options: dict[str, str],
) -> int:
    import av

    stream: Any = None
    number = 0
    for picture in pictures:
        if stream is None:
            stream = container.add_stream(codec, rate=rate, options=options)
            stream.height, stream.width = picture.shape
            stream.pix_fmt = pixels
            stream.codec_context.thread_count = THREADS
        frame = av.VideoFrame.from_ndarray(picture, format="gray")
        if codec == "gif":
            frame.pts, frame.time_base = round(number / rate / GIF_TICK), GIF_TICK
        else:
            frame.pts, frame.time_base = number, 1 / rate
            frame = frame.reformat(format=pixels, dst_color_range="MPEG")
        container.mux(stream.encode(frame))
        number += 1
    if stream is None:
        raise ValueError("a video needs a picture")
    container.mux(stream.encode(None))
    return number
