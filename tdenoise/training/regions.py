"""A movie cut into regions that are read in one piece: some successive frames, over a part of the field."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from .training_movie import TrainingMovie

REGION_FRAMES = 32  # centre frames of a region
REGION_PIXELS = 512  # its extent in y and x


@dataclass(frozen=True)
class Region:
    """Part of a movie that is read in one piece."""

    movie: int
    first: int  # centre frames [first, last)
    last: int
    rows: tuple[int, int]
    columns: tuple[int, int]


def regions_of(movies: Sequence[TrainingMovie], patch: int) -> list[Region]:
    """Cut every movie into regions; neighbours overlap by one patch so that no place is left out."""
    regions = []
    for number, movie in enumerate(movies):
        n_frames, height, width = movie.frames.shape
        for first in range(0, n_frames, REGION_FRAMES):
            for rows in _spans(height, patch):
                for columns in _spans(width, patch):
                    last = min(first + REGION_FRAMES, n_frames)
                    if set(range(first, last)) - movie.not_targets:
                        regions.append(Region(number, first, last, rows, columns))
    return regions


def _spans(length: int, patch: int) -> list[tuple[int, int]]:
    step = max(REGION_PIXELS, patch)
    starts = range(0, max(1, length - patch), step)
    return [(start, min(length, start + step + patch)) for start in starts]
