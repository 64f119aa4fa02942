"""What the readers of all formats share: checks of a header's sizes, and frames stored uncompressed."""

from __future__ import annotations

from collections.abc import Sequence
from importlib.metadata import version
from types import TracebackType
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray

from ..errors import InputError
from . import MovieInfo
from .rawfile import RawFile, RawFolder

MAX_FRAME_BYTES = 2**31  # far above any camera; a header that says more is damaged or hostile


class FrameReader:
    """Base of the readers: checks the arguments of ``read``; a subclass fills the array."""

    def __init__(self, file: RawFile | RawFolder, info: MovieInfo) -> None:
        self.info = info
        self._file = file

    def read(self, start: int, stop: int, out: NDArray[Any]) -> None:
        """Decode frames ``[start, stop)`` into ``out``, C-contiguous, (stop - start, height, width)."""
        n_frames, height, width = self.info.shape
        if not 0 <= start <= stop <= n_frames:
            raise ValueError(f"frames {start} to {stop} are not in a movie of {n_frames}")
        expected = (stop - start, height, width)
        if out.shape != expected or out.dtype != self.info.dtype or not out.flags.c_contiguous:
            raise ValueError(
                f"out must be C-contiguous {self.info.dtype} of shape {expected}, not {out.dtype} {out.shape}"
            )
        if start < stop:
            self._fill(start, stop, out)

    def _fill(self, start: int, stop: int, out: NDArray[Any]) -> None:
        raise NotImplementedError

    def close(self) -> None:
        """Close the file; harmless if done twice."""
        self._file.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


class FlatReader(FrameReader):
    """Frames stored uncompressed, each one unbroken run of bytes.

    Parameters
    ----------
    file : RawFile
        The open file.
    info : MovieInfo
        What it holds; ``info.dtype`` is ``stored`` in native byte order.
    stored : dtype
        Of the pixels in the file, with its byte order.
    offsets : sequence of int
        Where each frame starts [bytes].
    bottom_up : bool, optional
        The rows are stored from the bottom of the image to its top.
    """

    def __init__(
        self,
        file: RawFile,
        info: MovieInfo,
        stored: np.dtype[Any],
        offsets: Sequence[int],
        *,
        bottom_up: bool = False,
    ) -> None:
        super().__init__(file, info)
        self.stored = stored
        self.offsets = offsets
        self._bottom_up = bottom_up

    def _fill(self, start: int, stop: int, out: NDArray[Any]) -> None:
        frame_bytes = frame_size(self.info.shape, self.stored)
        first = start
        for k in range(start + 1, stop + 1):  # neighbours in the file are read in one go
            if k == stop or self.offsets[k] != self.offsets[k - 1] + frame_bytes:
                self._file.read_into(out[first - start : k - start], self.offsets[first])
                first = k
        if not self.stored.isnative:
            out.byteswap(inplace=True)
        if self._bottom_up:
            turn(out)


def turn(frames: NDArray[Any]) -> None:
    """Put the last row of each frame first, in place."""
    for frame in frames:
        frame[...] = frame[::-1].copy()


def check_movie(
    file: RawFile | RawFolder, shape: tuple[int, ...], dtype: np.dtype[Any], *, single: bool = False
) -> tuple[int, int, int]:
    """Refuse what is not a movie; return its (n_frames, height, width).

    Parameters
    ----------
    file : RawFile
        For the error message.
    shape : tuple of int
        As the header gives it, slowest axis first.
    dtype : dtype
        Of the pixels.
    single : bool, optional
        The file holds one frame of a movie in many files: one image is wanted, and no more.

    Raises
    ------
    InputError
        Naming what the file holds instead.
    """
    size = " x ".join(str(n) for n in shape)
    if dtype.kind == "c":
        raise InputError(file.path, f"holds complex numbers ({size}), not a movie of counts.")
    if dtype.kind not in "uif" or dtype.itemsize > 8:
        raise InputError(file.path, f"holds values of type {dtype}, not a movie of counts.")
    if any(n <= 0 for n in shape):
        raise InputError(file.path, f"its header gives the size {size}: there is no frame in it.")
    one = len(shape) == 2 or (len(shape) == 3 and shape[0] == 1)
    if single and not one:
        raise InputError(
            file.path, f"holds an array of {size}, not one frame as the other files; ingest it by itself."
        )
    if single:
        shape = (1, *shape[-2:])
    elif one:
        raise InputError(file.path, f"holds a single image of {size} pixels, not a movie.")
    if len(shape) != 3:
        raise InputError(
            file.path, f"holds an array of {len(shape)} dimensions ({size}), not (frame, row, column)."
        )
    n_frames, height, width = shape
    if frame_size((n_frames, height, width), dtype) > MAX_FRAME_BYTES:
        raise InputError(
            file.path, f"its header gives frames of {height} x {width} {dtype}, over 2 GiB each: damaged."
        )
    return n_frames, height, width


def whole_frames(
    file: RawFile | RawFolder, announced: int, present: int, allow_truncated: bool, *, at_least: bool = False
) -> int:
    """Number of frames to read, where ``present`` of ``announced`` frames are whole.

    ``at_least`` says that the file was cut before it could say how many frames it has.

    Raises
    ------
    InputError
        If frames are missing and ``allow_truncated`` is false, or if no frame is whole.
    """
    total = f"at least {announced}" if at_least else f"{announced}"
    if present >= announced:
        return announced
    if present < 1:
        raise InputError(
            file.path, f"cut short or damaged: not one whole frame is in it, of {total}. Copy it again."
        )
    if not allow_truncated:
        raise InputError(
            file.path,
            f"cut short: {present} of {total} frames are complete. "
            "Copy it again, or keep these frames with --allow-truncated.",
        )
    return present


def announced_frames(
    file: RawFile, told: int, room: int, allow_truncated: bool, *, single: bool = False
) -> int:
    """How many frames a file announces, where a program that was killed may never have written the number.

    Parameters
    ----------
    file : RawFile
        For the error message.
    told : int
        What the header says.
    room : int
        Whole frames that the file has room for.
    allow_truncated : bool
        Take the room where the header says 0 or 1.
    single : bool, optional
        The file holds one frame of a movie in many files.

    Raises
    ------
    InputError
        If the header says 0 or 1 and the file has room for more.
    """
    if single or told not in (0, 1) or room < 2:
        return told
    if not allow_truncated:
        raise InputError(
            file.path,
            f"its header names {told} frames, but the file has room for {room}: the program that wrote it ended "
            f"before it recorded how many. Take the {room} frames with --allow-truncated.",
        )
    return room


def balance(
    file: RawFile,
    announced: int,
    allow_truncated: bool,
    *,
    first: int,
    step: int,
    tail: int = 0,
    optional: int = 0,
) -> tuple[int, tuple[str, ...]]:
    """Number of frames to read, once the size of a file is compared with what its header explains.

    Parameters
    ----------
    file : RawFile
        Frames at a constant distance, up to its end.
    announced : int
        Frames that the header names.
    allow_truncated : bool
        Keep the whole frames if some are missing.
    first, step : int
        Where the first frame begins, and from each to the next one [bytes].
    tail : int, optional
        Bytes behind the pixels of a frame that the last one may lack.
    optional : int, optional
        Bytes before the first frame that are there only if the header is right about them.

    Returns
    -------
    n_frames : int
    warnings : tuple of str
        What the header does not explain.

    Raises
    ------
    InputError
        If frames are missing and are not to be, or if size and header contradict each other: frames kept from
        such a file would be shifted.
    """
    present = max(file.size - first + tail, 0) // step
    without = file.size - first + optional  # bytes of frames if the optional ones are absent
    fits = without % step == 0 != (without - optional) % step or without == announced * step
    if present < announced and optional and without >= step and fits:
        raise InputError(
            file.path,
            f"its header announces {optional} bytes before the frames that are not there: {without // step} frames fit "
            "exactly without them, so header and size contradict each other. Copy it again; if it is whole, set the "
            "size of the extended header (NSYMBT in MRC) to 0 in a copy.",
        )
    n_frames = whole_frames(file, announced, present, allow_truncated)
    return n_frames, unexplained(file.size - first - announced * step, step, tail)


def unexplained(n_bytes: int, step: int, tail: int = 0) -> tuple[str, ...]:
    """A warning for bytes behind the frames that no header explains."""
    if n_bytes <= 0:
        return ()
    more, rest = divmod(n_bytes + tail, step)
    room = f" There is room for {more} more frames, which are not read." if more else ""
    if not more or rest > tail:
        room += " If a header before the frames is longer than it says, all frames are shifted: look at one."
    return (f"{n_bytes} bytes behind its frames are not explained by its header.{room}",)


def frame_size(shape: tuple[int, int, int], dtype: np.dtype[Any]) -> int:
    """Size of one frame of a movie of this shape [bytes]."""
    return shape[1] * shape[2] * dtype.itemsize


def library(name: str) -> str:
    """Name and version of the package that decodes a file, for the record."""
    return f"{name} {version(name)}"
