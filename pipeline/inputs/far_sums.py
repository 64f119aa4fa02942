"""Sums of the sections of a movie, for networks that see far frames; made once, in files, and read in parts."""

from __future__ import annotations

import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tdenoise.files.atomic import patiently, written_whole
from tdenoise.network.registry import Architecture
from tdenoise.noise.brightness import Brightness
from tdenoise.noise.far_frames import FarFrames, n_sections, sum_section

from ..store import store
from ..store.blocks import spans
from .movie_facts import movie_brightness

SUMS, NUMBERS = "far-sums.npy", "far-numbers.npy"
BYTES = 5  # of a pixel of a section: a float32 and a byte

Array = NDArray[Any]


@dataclass(frozen=True)
class _File:
    """An array in a file, of which only what is asked for comes into memory."""

    path: Path
    shape: tuple[int, ...]

    def __getitem__(self, key: Any) -> Array:
        return patiently(lambda: np.array(np.load(self.path, mmap_mode="r")[key]))


def disk_bytes(shape: tuple[int, int, int]) -> int:
    """Of the files of a movie of this shape."""
    return BYTES * n_sections(shape[0]) * shape[1] * shape[2]


def write_far_sums(
    folder: Path,
    movie: store.Store,
    drift: NDArray[np.float64] | None,
    bad: NDArray[np.float32] | None,
    check: Callable[[], None],
) -> None:
    """Write the sums into a folder, unless they are there; both files are whole when the second has its name."""
    shape = n_sections(movie.shape[0]), *movie.shape[1:]
    if (folder / SUMS).exists():
        return
    with written_whole(folder / NUMBERS) as second, written_whole(folder / SUMS) as first:
        sums = np.lib.format.open_memmap(first, mode="w+", dtype=np.float32, shape=shape)
        numbers = np.lib.format.open_memmap(second, mode="w+", dtype=np.uint8, shape=shape)
        _fill(movie, drift, bad, sums, numbers, check)
        for array in (sums, numbers):
            array.flush()


def read_far_sums(
    folder: Path,
    shape: tuple[int, ...],
    drift: NDArray[np.float64] | None,
    brightness: Brightness | None,
) -> FarFrames:
    """What `write_far_sums` wrote of a movie of this shape."""
    extent = n_sections(shape[0]), *shape[1:]
    sums, numbers = (_File(folder / name, extent) for name in (SUMS, NUMBERS))
    return FarFrames.summed(sums, numbers, shape[0], drift, brightness)


def movie_far_frames(
    movie: store.Store,
    architecture: Architecture,
    drift: NDArray[np.float64] | None,
    bad: NDArray[np.float32] | None,
    check: Callable[[], None] = lambda: None,
) -> FarFrames | None:
    """Far frames of a movie, in temporary files without a name; None for a network that sees none."""
    if not architecture.far_bins:
        return None
    shape = n_sections(movie.shape[0]), *movie.shape[1:]
    arrays = []
    for dtype in (np.float32, np.uint8):
        with tempfile.TemporaryFile() as file:
            arrays.append(np.memmap(file, dtype=dtype, mode="w+", shape=shape))
    sums, numbers = arrays
    _fill(movie, drift, bad, sums, numbers, check)
    return FarFrames.summed(sums, numbers, movie.shape[0], drift, movie_brightness(movie))


def _fill(
    movie: store.Store,
    drift: NDArray[np.float64] | None,
    bad: NDArray[np.float32] | None,
    sums: Array,
    numbers: Array,
    check: Callable[[], None],
) -> None:
    """Sum section after section, one band of rows at a time."""
    brightness = movie_brightness(movie)
    for section in range(len(sums)):
        check()
        for rows in spans(movie.shape[1], store.MOVIE_SHARD_PIXELS):
            found = sum_section(movie.array, section, rows, drift, brightness, bad)
            for array, part in zip((sums, numbers), found, strict=True):
                array[section, slice(*rows)] = part
