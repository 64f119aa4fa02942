"""How the files that are HDF5 inside are cut and packed: chunks of about a megabyte, written one after the other."""

from __future__ import annotations

import contextlib
import io
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from .values import Values

CHUNK_PIXELS = 1024  # of a chunk, along each side, at most
CHUNK_BYTES = 2**20  # of a chunk, about: small frames share one
LEVEL = 1  # of gzip: levels above take much longer for little


def packing(values: Values) -> dict[str, Any]:
    """Settings of a dataset that every reader of HDF5 can unpack; those of h5py and h5netcdf alike."""
    _, height, width = values.shape
    return {
        "chunks": (_frames(values), min(height, CHUNK_PIXELS), min(width, CHUNK_PIXELS)),
        "compression": "gzip",
        "compression_opts": LEVEL,
        "shuffle": True,
    }


class Target(io.FileIO):
    """A file for the HDF5 library, which crashes where it cannot write: it is told that all is well.

    What went wrong is raised between two chunks, and when the library has closed the file.
    """

    def __init__(self, file: Path) -> None:
        super().__init__(file, "x+")
        self._failed: OSError | None = None

    def write(self, data: Any) -> int:
        view = memoryview(data).cast("B")
        done = 0
        try:
            while done < len(view) and self._failed is None:
                done += super().write(view[done:]) or 0
        except OSError as error:
            self._failed = error
        return len(view)

    def truncate(self, size: int | None = None) -> int:
        try:
            return super().truncate(size)
        except OSError as error:
            self._failed = self._failed or error
        return size or 0

    def check(self) -> None:
        """Raise what went wrong."""
        if self._failed is not None:
            raise self._failed


@contextlib.contextmanager
def opened(file: Path) -> Iterator[Target]:
    """A new file to give to h5py or h5netcdf instead of its name."""
    with Target(file) as target:
        yield target
        target.check()


def fill(dataset: Any, values: Values, target: Target) -> None:
    """Write all frames, so many at a time as a chunk holds: each is packed once."""
    step = _frames(values)
    held = np.empty((step, *values.shape[1:]), values.dtype)
    for k, frame in enumerate(values.frames(0)):
        held[k % step] = frame
        if k % step == step - 1 or k == values.shape[0] - 1:
            first = k // step * step
            dataset[first : k + 1] = held[: k + 1 - first]
            target.check()


def _frames(values: Values) -> int:
    """Frames of a chunk."""
    n_frames, height, width = values.shape
    return max(1, min(n_frames, CHUNK_BYTES // (height * width * values.dtype.itemsize)))
