"""Coarser copies of a movie, so that viewers show a large frame at once: means over squares of pixels, and over frames.

Each level is made of the one before. Those of counts are written with the counts, by whoever has them in memory
(`of_slab`); those of a denoised movie once all its shards are there (`build`). Each shard has one writer, is read back,
and is named by a marker, so that whoever is killed here goes on where it was. A box that is cut by the edge of the
movie is the mean of what it is made of in the level before, each point of which counts the same.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import zarr
from numpy.typing import NDArray

from tdenoise.files.atomic import make_folder

from ..files.sealed_json import read_sealed, write_sealed
from . import shards, store
from .blocks import Region

SMALLEST = 192  # pixels that the longer side of a level has, at least
PIXELS, FRAMES = (2, 4, 8), (4, 16)  # sides of squares, and numbers of frames, that are averaged
COUNT_PIXELS = (4, 8)  # the same of counts: squares of 2 would take half of their disk again
BASE_PIXELS = 4  # of the level that means over frames are made of, where it is there
MEAN_STEP = 4  # from one level to the next, in time
SHARD_FRAMES = 64


@dataclass(frozen=True)
class Level:
    """One coarser copy of a movie."""

    path: str  # of the array in the store
    frames: int  # that one of its frames is the mean of
    pixels: int  # side of the square that one of its pixels is the mean of
    source: str  # the array that it is made of
    steps: tuple[int, int, int]  # frames, rows and columns of that array in one point of this one
    shape: tuple[int, int, int]
    shard_frames: int = SHARD_FRAMES  # at most

    @property
    def geometry(self) -> store.Geometry:
        return store.Geometry.of(self.shape, self.shard_frames)


def levels_of(name: str, shape: tuple[int, int, int], slab_frames: int | None = None) -> list[Level]:
    """The pyramid of an array; none where a frame is small anyway.

    Parameters
    ----------
    name : str
        Of the array.
    shape : tuple of int
        (n_frames, height, width).
    slab_frames : int, optional
        Of counts: frames that are written together. They own whole shards of every level, and there is no mean over
        more frames.

    Examples
    --------
    >>> [(level.frames, level.pixels, level.shape) for level in levels_of("denoised", (64, 1024, 900))]
    [(1, 2, (64, 512, 450)), (1, 4, (64, 256, 225)), (4, 4, (16, 256, 225)), (16, 4, (4, 256, 225))]
    >>> levels_of("denoised", (64, 256, 256))
    []
    >>> counts = levels_of("counts", (64, 1024, 900), slab_frames=32)
    >>> [(level.frames, level.pixels, level.geometry.shard) for level in counts]
    [(1, 4, (32, 256, 225)), (4, 4, (8, 256, 225)), (16, 4, (2, 256, 225))]
    """
    found: list[Level] = []
    one_slab = slab_frames is not None and slab_frames >= shape[0]

    def add(frames: int, pixels: int, source: str, steps: tuple[int, int, int]) -> None:
        size = tuple(-(-n // step) for n, step in zip(shape, (frames, pixels, pixels), strict=True))
        path = f"{store.PYRAMID}/{len(found) + 1}/{name}"
        length = SHARD_FRAMES if slab_frames is None else _whole_chunks(-(-slab_frames // frames))
        found.append(Level(path, frames, pixels, source, steps, (size[0], size[1], size[2]), length))

    for pixels in PIXELS if slab_frames is None else COUNT_PIXELS:
        if max(shape[1:]) >= SMALLEST * pixels:
            step = pixels // found[-1].pixels if found else pixels
            add(1, pixels, found[-1].path if found else name, (1, step, step))
    if found:
        # Of a level that has a sixteenth of the pixels: means of full frames would take a third of the disk again.
        base = max((level for level in found if level.pixels <= BASE_PIXELS), key=lambda level: level.pixels)
        for frames in FRAMES:
            if shape[0] >= 2 * frames and (slab_frames is None or one_slab or slab_frames % frames == 0):
                source = base.path if frames == FRAMES[0] else found[-1].path
                add(frames, base.pixels, source, (MEAN_STEP, 1, 1))
    return found


def _whole_chunks(length: int) -> int:
    """A length of shards that chunks fill: of one slab, at most, which has no others after it."""
    return length if length <= store.CHUNK_FRAMES else -(-length // store.CHUNK_FRAMES) * store.CHUNK_FRAMES


def levels_in(path: Path, levels: list[Level]) -> list[Level]:
    """The levels of a store that is being made; none where an earlier version began it, without the arrays."""
    return levels if (path / store.PYRAMID).is_dir() else []


def of_slab(
    levels: Sequence[Level],
    name: str,
    frames: NDArray[Any],
    finished: Callable[[NDArray[np.float32]], NDArray[np.float32]],
) -> Iterator[tuple[Level, NDArray[np.float32]]]:
    """What every level holds of some successive frames, which begin where a shard of it does.

    Parameters
    ----------
    levels : sequence of Level
    name : str
        Of the array.
    frames : ndarray, shape (n_frames, height, width)
        Of the array.
    finished : callable
        What is done to values before they are written, such as rounding.
    """
    made: dict[str, NDArray[Any]] = {}
    for level in levels:
        if level.source == name:  # much larger than the level: a few frames at a time
            parts = [
                mean(frames[first : first + store.CHUNK_FRAMES], level.steps)
                for first in range(0, len(frames), store.CHUNK_FRAMES)
            ]
            values = np.concatenate(parts)
        else:
            values = mean(made[level.source], level.steps)
        made[level.path] = finished(values)
        yield level, made[level.path]


def build(
    path: Path,
    levels: Sequence[Level],
    folder: Path,
    finished: Callable[[NDArray[np.float32]], NDArray[np.float32]],
    check: Callable[[], None],
    allowed: Callable[[], None],
    n_threads: int,
) -> dict[str, dict[str, str]]:
    """Write what is missing of a pyramid whose arrays are there.

    Parameters
    ----------
    path : Path
        The store that is being made; all shards of the array at its root are there.
    levels : sequence of Level
    folder : Path
        Where markers lie.
    finished : callable
        What is done to values before they are written, such as rounding.
    check, allowed : callable
        Raise where the work must stop, and where a shard must not get its name any more.
    n_threads : int
        Shards at once.

    Returns
    -------
    dict
        Of every level, by its path: hashes of its shards, by grid position.
    """
    hashes: dict[str, dict[str, str]] = {}
    with ThreadPoolExecutor(n_threads, thread_name_prefix="pyramid") as pool:
        for number, level in enumerate(levels, start=1):
            marks = folder / store.PYRAMID / str(number)
            make_folder(marks)
            make = functools.partial(_make, path, level, marks, finished, check, allowed)
            whole = Region(*((0, n) for n in level.shape))
            hashes[level.path] = dict(pool.map(make, shards.shards_in(whole, level.geometry.shard)))
    return hashes


def mean(values: NDArray[Any], steps: tuple[int, int, int]) -> NDArray[np.float32]:
    """Means over boxes of so many frames, rows and columns; a box at the end holds what is left.

    Sums go from one point to the next, so that the result is the same on every machine.

    Examples
    --------
    >>> mean(np.arange(6, dtype=np.float32).reshape(1, 2, 3), (1, 2, 2)).tolist()
    [[[2.0, 3.5]]]
    """
    if steps[0] == 1 and values.dtype.kind == "u" and values.dtype.itemsize <= 2:
        return _mean_of_counts(values, steps[1:])
    result = np.asarray(values, dtype=np.float32)
    for axis, step in enumerate(steps):
        if step == 1:
            continue
        size = result.shape[axis]
        whole = size // step * step

        def every(first: int, last: int, step: int, axis: int = axis) -> tuple[slice, ...]:
            return (slice(None),) * axis + (slice(first, last, step),)

        parts = []
        if whole:
            parts.append(_mean_of([result[every(k, whole, step)] for k in range(step)]))
        if whole < size:
            parts.append(_mean_of([result[every(k, k + 1, 1)] for k in range(whole, size)]))
        result = parts[0] if len(parts) == 1 else np.concatenate(parts, axis=axis)
    return result


def _mean_of_counts(values: NDArray[Any], steps: tuple[int, int]) -> NDArray[np.float32]:
    """The same of small whole numbers, summed as such where boxes are whole: several times as fast."""
    (height, width), (down, right) = values.shape[1:], steps
    whole = height // down * down, width // right * right
    if whole != (height, width) or max(steps) > 2**8:
        return mean(values.astype(np.float32), (1, down, right))
    rows = np.zeros(
        (len(values), height // down, width), np.uint16 if values.dtype.itemsize == 1 else np.uint32
    )
    for k in range(down):
        rows += values[:, k::down]
    boxes = np.zeros((*rows.shape[:2], width // right), np.uint32)
    for k in range(right):
        boxes += rows[:, :, k::right]
    return boxes.astype(np.float32) / np.float32(down * right)


def _mean_of(parts: list[NDArray[np.float32]]) -> NDArray[np.float32]:
    total = parts[0].copy()
    for part in parts[1:]:
        total += part
    total *= np.float32(1 / len(parts))
    return total


def _make(
    path: Path,
    level: Level,
    marks: Path,
    finished: Callable[[NDArray[np.float32]], NDArray[np.float32]],
    check: Callable[[], None],
    allowed: Callable[[], None],
    shard: Region,
) -> tuple[str, str]:
    """One shard of a level; its grid position and hash. Nothing is done where it is there."""
    check()
    geometry, target = level.geometry, path / level.path
    key = shards.shard_key(shard, geometry.shard)
    file, marker = target.joinpath("c", *key.split(".")), marks / f"{key}.json"
    used = shards.n_chunks(shard, geometry.chunk)
    before = (read_sealed(marker) or {}).get("shard")
    if before is not None and shards.shard_damage(file, geometry.shard, geometry.chunk, used) is None:
        return key, str(before)
    source = zarr.open_array(path / level.source, mode="r")
    writer = shards.ShardWriter(shards.Layout.of(zarr.open_array(target, mode="r")))
    for first in range(*shard.frames, geometry.chunk[0]):
        part = Region((first, min(first + geometry.chunk[0], shard.frames[1])), shard.rows, shard.columns)
        writer.append(finished(mean(source[_covered(part, level.steps, source.shape)], level.steps)))
    digest = writer.write(target, shards.shard_index(key), allowed)
    write_sealed(marker, {"shard": digest})
    return key, digest


def _covered(part: Region, steps: tuple[int, int, int], shape: tuple[int, ...]) -> tuple[slice, ...]:
    """What a part of a level is the mean of, in the array that it is made of."""
    sides = zip((part.frames, part.rows, part.columns), steps, shape, strict=True)
    return tuple(slice(first * step, min(last * step, size)) for (first, last), step, size in sides)
