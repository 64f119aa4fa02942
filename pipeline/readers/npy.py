"""NumPy arrays (.npy), C or Fortran order; nothing is ever unpickled."""

from __future__ import annotations

import io
import warnings
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..errors import InputError
from . import MovieInfo, Reader
from .frames import (
    FlatReader,
    FrameReader,
    balance,
    check_movie,
    frame_size,
    library,
    whole_frames,
)
from .rawfile import RawFile

_MAX_HEADER = 10_000  # bytes; a plain array needs about 100
_SLAB_BYTES = 2**26


def open_movie(file: RawFile, allow_truncated: bool, *, single: bool = False) -> Reader:
    """Open a .npy file whose array is (frame, row, column); or (row, column), if ``single``."""
    header = io.BytesIO(file.read_at(0, min(file.size, _MAX_HEADER + 12)))
    major, minor = np.lib.format.read_magic(header)
    if (major, minor) not in {(1, 0), (2, 0), (3, 0)}:
        raise InputError(file.path, f"its header says .npy version {major}.{minor}, which does not exist.")
    read_header = np.lib.format.read_array_header_1_0 if major == 1 else np.lib.format.read_array_header_2_0
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=".*additional header parsing")  # written by Python 2
        warnings.filterwarnings("ignore", message=".*invalid escape sequence")  # in a damaged header
        full_shape, fortran, stored = read_header(header, max_header_size=_MAX_HEADER)
    if stored.hasobject:
        raise InputError(file.path, "holds pickled Python objects, which are never unpickled here.")

    announced, height, width = shape = check_movie(file, full_shape, stored, single=single)
    first = header.tell()
    frame_bytes = frame_size(shape, stored)
    if fortran and (file.size - first) // frame_bytes < announced:
        # Every frame is spread over the whole file: cut short, no frame is whole.
        whole_frames(file, announced, 0, allow_truncated)
    n_frames, unexplained = balance(file, announced, allow_truncated, first=first, step=frame_bytes)
    info = MovieInfo(
        shape=(n_frames, height, width),
        dtype=stored.newbyteorder("="),
        format=f"NumPy {major}.{minor}{' Fortran order' if fortran else ''}",
        reader=library("numpy"),
        missing_frames=announced - n_frames,
        warnings=unexplained,
        metadata={"descr": stored.str, "fortran_order": fortran, "shape": list(full_shape)},
    )
    if fortran:
        return FortranReader(file, info, stored, first)
    return FlatReader(file, info, stored, range(first, first + n_frames * frame_bytes, frame_bytes))


class FortranReader(FrameReader):
    """Frames spread over the file: time is the fastest axis, columns the slowest.

    Any read passes over the whole file, in slabs of bounded size.
    """

    def __init__(self, file: RawFile, info: MovieInfo, stored: np.dtype[Any], first: int) -> None:
        super().__init__(file, info)
        self._stored = stored
        self._first = first

    def _fill(self, start: int, stop: int, out: NDArray[Any]) -> None:
        n_frames, height, width = self.info.shape
        pixel_bytes = n_frames * self._stored.itemsize
        rows = max(1, min(height, _SLAB_BYTES // pixel_bytes))
        columns = max(1, _SLAB_BYTES // (pixel_bytes * height)) if rows == height else 1
        for x in range(0, width, columns):
            for y in range(0, height, rows):
                slab = np.empty((min(columns, width - x), min(rows, height - y), n_frames), self._stored)
                self._file.read_into(slab, self._first + (x * height + y) * pixel_bytes)
                part = slab[:, :, start:stop].transpose(2, 1, 0)
                out[:, y : y + slab.shape[1], x : x + slab.shape[0]] = part
