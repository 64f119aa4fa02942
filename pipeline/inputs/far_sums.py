"""Sums of the sections of a movie, for networks that see far frames; made once, in files, and read in parts."""

from __future__ import annotations

import contextlib
import hashlib
import math
import os
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

import numpy as np
from numpy.typing import NDArray

from tdenoise.files.atomic import patiently, written_whole
from tdenoise.network.registry import Architecture
from tdenoise.noise.brightness import Brightness
from tdenoise.noise.far_frames import FarFrames, n_sections, sum_section

from ..files.sealed_json import read_sealed, write_sealed
from ..resources import budget
from ..store import store
from ..store.blocks import spans
from .movie_facts import movie_brightness

SUMS, NUMBERS, HASHES = "far-sums.npy", "far-numbers.npy", "far-hashes.json"
RULE = "1"  # by which frames are summed; another one with every change of the sums
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
    """Write the sums into a folder, unless they are there as they were written."""
    shape = n_sections(movie.shape[0]), *movie.shape[1:]
    if read_sealed(folder / HASHES) == _hashes(folder):
        return
    with written_whole(folder / NUMBERS) as second, written_whole(folder / SUMS) as first:
        sums = np.lib.format.open_memmap(first, mode="w+", dtype=np.float32, shape=shape)
        numbers = np.lib.format.open_memmap(second, mode="w+", dtype=np.uint8, shape=shape)
        for path in (first, second):
            with path.open("r+b") as file:
                _take_room(file, path.stat().st_size)
        _fill(movie, drift, bad, sums, numbers, check)
        for array in (sums, numbers):
            array.flush()
        del sums, numbers, array
    write_sealed(folder / HASHES, _hashes(folder))


def _hashes(folder: Path) -> dict[str, str]:
    """sha256 of the files that are there, and the rule by which they were summed."""
    found = {"rule": RULE}
    for name in (SUMS, NUMBERS):
        with contextlib.suppress(FileNotFoundError), (folder / name).open("rb") as file:
            found[name] = hashlib.file_digest(file, "sha256").hexdigest()
    return found


def _take_room(file: IO[bytes], n_bytes: int) -> None:
    """Make a full disk an error now: to write a mapped file on one ends the process without a word."""
    if hasattr(os, "posix_fallocate"):
        os.posix_fallocate(file.fileno(), 0, n_bytes)


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
    budget.check_disk(Path(tempfile.gettempdir()), disk_bytes(movie.shape), "sums of far frames in TMPDIR")
    arrays = []
    for dtype in (np.float32, np.uint8):
        with tempfile.TemporaryFile() as file:
            _take_room(file, math.prod(shape) * np.dtype(dtype).itemsize)
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
