"""Cut a movie into blocks: a core that the block writes, a halo that it reads around it. Pure arithmetic."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass

from ..errors import UsageError

ROW_FRAMES = 32  # of a block that are denoised, then packed, and then forgotten


@dataclass(frozen=True)
class Region:
    """A box of a movie, ends excluded [frames, pixels]."""

    frames: tuple[int, int]
    rows: tuple[int, int]
    columns: tuple[int, int]

    @property
    def shape(self) -> tuple[int, int, int]:
        """Its extent (n_frames, height, width)."""
        return (
            self.frames[1] - self.frames[0],
            self.rows[1] - self.rows[0],
            self.columns[1] - self.columns[0],
        )

    @property
    def slices(self) -> tuple[slice, slice, slice]:
        """For indexing an array of the whole movie."""
        return slice(*self.frames), slice(*self.rows), slice(*self.columns)

    def within(self, other: Region) -> Region:
        """The same box, counted from the beginning of another.

        Examples
        --------
        >>> Region((4, 6), (8, 9), (0, 3)).within(Region((4, 8), (5, 9), (0, 9)))
        Region(frames=(0, 2), rows=(3, 4), columns=(0, 3))
        """
        (frame, _), (row, _), (column, _) = other.frames, other.rows, other.columns
        return Region(
            (self.frames[0] - frame, self.frames[1] - frame),
            (self.rows[0] - row, self.rows[1] - row),
            (self.columns[0] - column, self.columns[1] - column),
        )


@dataclass(frozen=True)
class Block:
    """One unit of work. Cores tile the movie exactly once and end on shard borders, so a block owns every
    file it writes. ``padded`` is the core grown by the halo, clipped at the movie's edge: what it reads.
    """

    number: int
    core: Region
    padded: Region


@dataclass(frozen=True)
class Halo:
    """Context that a model needs around a core."""

    frames: int
    pixels: int  # a multiple of the model's stride


def core_frames(shard_frames: int, halo_frames: int) -> int:
    """Frames per core: as many whole shards as it takes for the halo to cost under a third of the reads.

    Examples
    --------
    >>> core_frames(32, 20)
    96
    >>> core_frames(32, 5)
    32
    """
    # 2h / (core + 2h) < 1/3  <=>  core > 4h
    return shard_frames * max(1, math.floor(4 * halo_frames / shard_frames) + 1)


def plan_blocks(
    shape: tuple[int, int, int], core_shape: tuple[int, int, int], halo: Halo, stride: int = 1
) -> list[Block]:
    """Blocks whose cores cover a movie exactly once.

    Parameters
    ----------
    shape : tuple of int
        (n_frames, height, width) of the movie.
    core_shape : tuple of int
        Of every core but the last in each direction; whole shards.
    halo : Halo
    stride : int
        The model samples the frame on this grid [pixels]; cores must begin on it.

    Returns
    -------
    list of Block
        In order of time, then rows, then columns.

    Raises
    ------
    UsageError
        If a core that is smaller than the frame does not begin on the grid.
    """
    for core, size, name in zip(core_shape[1:], shape[1:], ("rows", "columns"), strict=True):
        if core < size and core % stride:
            raise UsageError(
                f"a tile of {core} {name} is not a multiple of the model's stride {stride}. Use one."
            )
    blocks: list[Block] = []
    for frames in spans(shape[0], core_shape[0]):
        for rows in spans(shape[1], core_shape[1]):
            for columns in spans(shape[2], core_shape[2]):
                padded = Region(
                    _grow(frames, halo.frames, shape[0]),
                    _grow(rows, halo.pixels, shape[1]),
                    _grow(columns, halo.pixels, shape[2]),
                )
                blocks.append(Block(len(blocks), Region(frames, rows, columns), padded))
    return blocks


def n_blocks(shape: tuple[int, int, int], core_shape: tuple[int, int, int]) -> int:
    """Number of blocks that `plan_blocks` makes."""
    return math.prod(-(-size // core) for size, core in zip(shape, core_shape, strict=True))


def spans(length: int, step: int) -> Iterator[tuple[int, int]]:
    """Successive intervals of at most ``step`` that cover ``[0, length)``."""
    for start in range(0, length, step):
        yield start, min(start + step, length)


def _grow(interval: tuple[int, int], halo: int, length: int) -> tuple[int, int]:
    return max(0, interval[0] - halo), min(length, interval[1] + halo)
