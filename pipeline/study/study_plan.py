"""The plan of a study: the frames that judge, the part of the field that is judged, and the cells, nested in both.

The frames that judge lie near the end of the movie. A cell of N frames trains on the N frames before them, and no cell
on one of those behind: so all cells learn from the frames next to the judged ones, and a larger cell from more of them.
Frames that judge are targets of no training. They are inputs of no training either, for every cell has its own copy of
its frames. When a frame is judged, the frames around it are shown to every model alike, whatever it was trained on.

The error is judged in the field that the smallest frames show, for all models have learned from it. Fringes and
pictures are of a larger field: in a small one, the spots of a lattice cannot be told apart.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.ndimage import binary_erosion

from tdenoise.evaluation.places import KINDS, kinds_of_place
from tdenoise.network.split_blind import Architecture
from tdenoise.noise.noise import choose

from ..errors import InputError, UsageError
from ..inputs.bad_pixels import GROUP_FRAMES, GROUPS, measure
from ..inputs.model_fit import movie_brightness, movie_noise
from ..runs.plans import plan_id
from ..settings.config import StudyConfig
from ..store import store
from ..store.blocks import Region

FEWEST_FRAMES, SMALLEST_SIZE = 8, 32  # of a cell
FRAMES = (25, 50, 100, 200, 400, 800, 1600, 3200)  # what is tried if nothing is asked for
SIZES = (128, 256, 512, 1024, 2048)
JUDGED_SHARE, FEWEST_JUDGED, MOST_JUDGED = 0.1, 6, 128  # frames of the movie
MOST_FIELD = 512  # rows and columns that are looked at
VACUUM, STRUCTURE = 0.25, 0.5  # of the judged field that should be the one and the other

MARGIN = 8  # pixels of vacuum beside structure that are left out

Span = tuple[int, int]


@dataclass(frozen=True)
class Cell:
    """One training of the study."""

    number: int
    n_frames: int
    size: str  # rows and columns, or "full"
    seed: int
    region: Region  # of the movie, that it trains on

    @property
    def name(self) -> str:
        """Of its folder."""
        return f"{self.n_frames}_frames_{self.size}_pixels_seed_{self.seed}"


@dataclass(frozen=True)
class Plan:
    """Everything that decides the study, known before the first training."""

    movie: store.Store
    judged: Region  # frames that no cell trains on, and the part of the field that all see
    looked: Region  # the same frames, and a larger part
    vacuum: NDArray[np.bool_]  # in the larger part
    blind_radius: int | None
    cells: list[Cell]
    identity: dict[str, Any]
    start: Path  # scratch, base, or a model

    @property
    def id(self) -> str:
        """sha256 of what decides the study."""
        return plan_id(self.identity)

    @property
    def n_left(self) -> int:
        """Frames that there are to train on."""
        return self.judged.frames[0]


def make_plan(config: StudyConfig, start: Path | None = None, start_id: str | None = None) -> Plan:
    """Decide on frames, field and cells.

    Parameters
    ----------
    config : StudyConfig
    start : Path, optional
        What ``--from auto`` stands for, and
    start_id : str, optional
        the id of that model.

    Raises
    ------
    InputError
        If the movie is missing, damaged or too short.
    UsageError
        If more frames or larger ones are asked for than there are.
    """
    movie = _opened(config.movie)
    noise, judged = movie_noise(movie), judged_frames(movie.shape[0])
    numbers = _numbers(config, movie, judged[0])
    extents = _extents(config, movie)
    smallest = min(extents.values())
    field_size = (min(smallest[0], MOST_FIELD), min(smallest[1], MOST_FIELD))
    n_seen = min(movie.shape[0], GROUPS * GROUP_FRAMES)
    kinds = kinds_of_place(measure(movie).mean(), noise.noise_variance / n_seen)
    vacuum = kinds == KINDS.index("vacuum")
    rows, columns = place(vacuum, field_size)
    # Kinds of place are known to half a cell; what lies at the edge of a crystal is no vacuum.
    inside = binary_erosion(vacuum, iterations=MARGIN, border_value=1)
    cells = _cells(extents, numbers, config.seeds, Region(judged, rows, columns), movie)
    looked = Region(
        judged,
        grown(rows, min(MOST_FIELD, movie.shape[1]), movie.shape[1]),
        grown(columns, min(MOST_FIELD, movie.shape[2]), movie.shape[2]),
    )
    radius = choose(noise).blind_radius
    identity = {
        "step": "study",
        "movie": movie.id,
        "judged": [list(judged), list(rows), list(columns)],
        "looked": [list(looked.rows), list(looked.columns)],
        "settings": {
            "frames": numbers,
            "sizes": list(extents),
            "from": config.from_model,
            "seeds": config.seeds,
            "steps": config.steps,
            "time_limit": config.time_limit,
            "blind_radius": radius,
        },
    }
    if start_id is not None:
        identity["start"] = start_id
    part, begin = inside[looked.slices[1:]], start or Path(config.from_model)
    return Plan(movie, Region(judged, rows, columns), looked, part, radius, cells, identity, begin)


def _opened(path: Path) -> store.Store:
    """The movie, if there are frames to train on, and others to judge."""
    movie = store.open_store(path, store.MOVIE)
    movie.array.check_all()
    first, last = judged_frames(movie.shape[0])
    if first < FEWEST_FRAMES:
        raise InputError(
            movie.path,
            f"has {movie.shape[0]} frames; a study needs at least {FEWEST_FRAMES} to train on beside "
            "those that judge.",
        )
    brightness = movie_brightness(movie)
    if brightness is not None and brightness.valid[first:last].sum() < 2:
        raise InputError(movie.path, f"frames {first} to {last - 1} were not recorded, which would judge.")
    return movie


def _cells(
    extents: dict[str, tuple[int, int]], numbers: list[int], n_seeds: int, judged: Region, movie: store.Store
) -> list[Cell]:
    """Every cell, the smallest frames first, around the judged field."""
    cells: list[Cell] = []
    first = judged.frames[0]
    for size, extent in sorted(extents.items(), key=lambda item: item[1]):
        rows, columns = (
            grown(span, n, whole)
            for span, n, whole in zip((judged.rows, judged.columns), extent, movie.shape[1:], strict=True)
        )
        for n in numbers:
            region = Region((first - n, first), rows, columns)
            cells += [Cell(len(cells) + seed, n, size, seed, region) for seed in range(n_seeds)]
    return cells


def judged_frames(n_frames: int) -> Span:
    """The frames that judge: a tenth of the movie, and behind them frames to be shown beside the last of them.

    Examples
    --------
    >>> judged_frames(1200), judged_frames(60)
    ((1060, 1180), (51, 57))
    """
    number = min(MOST_JUDGED, max(FEWEST_JUDGED, round(JUDGED_SHARE * n_frames)))
    behind = min(Architecture().window, number // 2)
    return n_frames - behind - number, n_frames - behind


def place(vacuum: NDArray[np.bool_], size: tuple[int, int]) -> tuple[Span, Span]:
    """Where a field of a size shows both vacuum and structure; the nearest to the middle of those that do.

    Parameters
    ----------
    vacuum : ndarray of bool, shape (height, width)
    size : tuple of int
        Rows and columns.
    """
    sums = np.pad(np.cumsum(np.cumsum(vacuum, axis=0, dtype=np.int64), axis=1), ((1, 0), (1, 0)))
    starts = [
        np.unique([*range(0, whole - n + 1, max(1, n // 8)), (whole - n) // 2, whole - n])
        for whole, n in zip(vacuum.shape, size, strict=True)
    ]
    top, left = (a.ravel() for a in np.meshgrid(*starts, indexing="ij"))
    bottom, right = top + size[0], left + size[1]
    share = (sums[bottom, right] - sums[top, right] - sums[bottom, left] + sums[top, left]) / (
        size[0] * size[1]
    )
    good = np.minimum(1, share / VACUUM) * np.minimum(1, (1 - share) / STRUCTURE)
    away = np.hypot(top + bottom - vacuum.shape[0], left + right - vacuum.shape[1])
    best = np.lexsort((away, -np.round(good, 3)))[0]
    return (int(top[best]), int(bottom[best])), (int(left[best]), int(right[best]))


def grown(span: Span, size: int, whole: int) -> Span:
    """An interval of a size around another one, within the movie.

    Examples
    --------
    >>> grown((0, 64), 128, 512), grown((100, 164), 128, 512)
    ((0, 128), (68, 196))
    """
    start = (span[0] + span[1] - size) // 2
    start = min(max(start, 0), whole - size)
    return start, start + size


def _numbers(config: StudyConfig, movie: store.Store, n_left: int) -> list[int]:
    """Frames of the cells, in ascending order."""
    asked = config.frames
    if asked is None:
        asked = (*(n for n in FRAMES if n < n_left), "all")
    found = sorted({n_left if n == "all" else int(n) for n in asked})
    if found[-1] > n_left:
        raise UsageError(
            f"--frames {found[-1]}: {movie.path} has {movie.shape[0]} frames, of which {n_left} are left to train on; "
            "the others judge. Write all for as many as there are."
        )
    if found[0] < FEWEST_FRAMES:
        raise UsageError(f"--frames {found[0]}: a training needs at least {FEWEST_FRAMES} frames.")
    return found


def _extents(config: StudyConfig, movie: store.Store) -> dict[str, tuple[int, int]]:
    """Rows and columns of the cells, by what they are called."""
    whole = movie.shape[1:]
    asked = config.sizes
    if asked is None:
        asked = (*(n for n in SIZES if n < min(whole)), "full")
    found: dict[str, tuple[int, int]] = {}
    for size in asked:
        extent = whole if size == "full" else (int(size), int(size))
        if min(extent) < SMALLEST_SIZE:
            raise UsageError(f"--sizes {size}: a training needs at least {SMALLEST_SIZE} rows and columns.")
        if extent[0] > whole[0] or extent[1] > whole[1]:
            raise UsageError(
                f"--sizes {size}: {movie.path} has frames of {whole[0]} x {whole[1]} pixels. Write full for all of it."
            )
        if extent not in found.values():
            found["full" if extent == whole else str(size)] = extent
    return found


def folder_of(output: Path, cell: Cell) -> Path:
    """Where all of a cell lies."""
    return output / "cells" / cell.name
