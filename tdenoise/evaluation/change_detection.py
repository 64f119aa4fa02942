"""Can the changes of columns be detected: by what a denoised movie shows, and by an ideal observer of the counts?"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

from .events import (
    ISOLATION_FRAMES,
    OFFSETS,
    RADIUS_PX,
    Array,
    Bleed,
    Frames,
    disc_around,
    frame_reader,
    isolated_changes,
    pooled_bleed,
)
from .ideal_observer import SWITCH_RATE, forward_backward


@dataclass(frozen=True)
class Column:
    """A column that changes, as the ideal observer knows it."""

    number: int
    levels: Array  # (n_levels,) numbers of atoms that it takes, ascending
    # (n_levels, 2 reach + 1, 2 reach + 1) mean image around the column at each level, vacuum = 1
    images: Array
    marks: Array  # (n_levels,) the score of each level: 0 for the emptiest, 1 for the fullest


def changing_columns(clean: Frames, truth: Mapping[str, Array], radius_px: float = RADIUS_PX) -> list[Column]:
    """Columns whose occupancy changes, with their mean image at each occupancy.

    Images are means over the frames with that occupancy throughout, moved to the centre of the column (cubic
    spline). Left out are occupancies without such a frame, and columns that ever come too near to the edge.

    Parameters
    ----------
    clean : ndarray of shape (n_frames, height, width), or function of the frame number
        Vacuum = 1.
    truth : mapping of str to ndarray
        ``events`` (K, 4), ``col_pos`` (T, N, 2) and ``col_occ`` (T, N), as in the benchmark files.
    """
    clean_frame = frame_reader(clean)
    positions, occupancy = np.asarray(truth["col_pos"], np.float64), np.asarray(truth["col_occ"], np.float64)
    shape = clean_frame(0).shape
    numbers = [
        int(c)
        for c in np.unique(np.asarray(truth["events"])[:, 1])
        if all(disc_around(p, shape, radius_px) is not None for p in positions[:, int(c)])
    ]
    reach = math.ceil(radius_px) + 2  # room for the spline
    grid = np.indices((2 * reach + 1, 2 * reach + 1)) - reach
    whole = _whole_frames(truth)
    totals: dict[tuple[int, float], Any] = {}
    n_frames: dict[tuple[int, float], int] = {}
    for k in range(len(positions)):
        frame = ndimage.spline_filter(clean_frame(k).astype(np.float64), mode="mirror")
        for c in numbers:
            if whole[k, c]:
                at = positions[k, c][:, None, None] + grid
                state = c, float(occupancy[k, c])
                image = ndimage.map_coordinates(frame, at, mode="mirror", prefilter=False)
                totals[state] = totals.get(state, 0.0) + image
                n_frames[state] = n_frames.get(state, 0) + 1
    columns = []
    for c in numbers:
        levels = sorted(level for column, level in totals if column == c)
        if len(levels) > 1:
            images = np.stack([totals[c, level] / n_frames[c, level] for level in levels])
            inner = images[:, np.hypot(*grid) <= radius_px]
            columns.append(Column(c, np.array(levels), images, _share(inner, inner)))
    return columns


def _whole_frames(truth: Mapping[str, Array]) -> NDArray[np.bool_]:
    """Frames and columns without a change within the exposure, shape (n_frames, n_columns)."""
    whole = np.ones(np.shape(truth["col_occ"]), bool)
    events = np.asarray(truth["events"], np.float64)
    frames = np.floor(events[:, 0]).astype(int)
    inside = (frames >= 0) & (frames < len(whole))
    whole[frames[inside], events[inside, 1].astype(int)] = False
    return whole


def _share(seen: Array, images: Array) -> Array:
    """How far from the first to the last image something is: projection on their difference."""
    step = images[-1] - images[0]
    share: Array = (seen - images[0]) @ step / (step @ step)
    return share


def _expected(
    column: Column, clean: Array, centre: Array, occupancy: float, radius_px: float
) -> tuple[tuple[Array, Array], Array]:
    """Pixels around a column in a frame, and what each state would show there, shape (n_levels, n_pixels).

    The clean frame, with the column's state replaced: neighbours, tilt and focus are those of the frame.
    """
    pixels = disc_around(centre, clean.shape, radius_px)
    if pixels is None:
        raise ValueError(f"the disc around {tuple(centre)} leaves the field of {clean.shape} pixels.")
    reach = column.images.shape[1] // 2
    at = [p - c + reach for p, c in zip(pixels, centre, strict=True)]
    images = np.stack([ndimage.map_coordinates(image, at, mode="mirror") for image in column.images])
    # An occupancy between two levels is that of a change within the exposure.
    upper = int(np.clip(np.searchsorted(column.levels, occupancy), 1, len(images) - 1))
    share = (occupancy - column.levels[upper - 1]) / (column.levels[upper] - column.levels[upper - 1])
    own = (1 - share) * images[upper - 1] + share * images[upper]
    return pixels, clean[pixels] + images - own


def state_scores(
    denoised: Frames,
    clean: Frames,
    columns: Sequence[Column],
    truth: Mapping[str, Array],
    radius_px: float = RADIUS_PX,
) -> Array:
    """Intensity of columns in each frame, as a share of the step from the emptiest to the fullest state.

    ``<x - image_0, image_n - image_0> / |image_n - image_0|**2`` over the disc around the column, where the
    images are what the clean frame would be with the column in these states.

    Parameters
    ----------
    denoised, clean : ndarray of shape (n_frames, height, width), or function of the frame number
        Vacuum = 1. Any movie will do as the first, also a noisy one.
    columns : sequence of Column
        From `changing_columns`.
    truth : mapping of str to ndarray
        ``col_pos`` (T, N, 2) and ``col_occ`` (T, N).

    Returns
    -------
    ndarray of float64, shape (n_frames, len(columns))
    """
    frame_of, clean_frame = frame_reader(denoised), frame_reader(clean)
    positions, occupancy = np.asarray(truth["col_pos"], np.float64), np.asarray(truth["col_occ"], np.float64)
    scores = np.empty((len(positions), len(columns)))
    for k in range(len(positions)):
        seen, x = frame_of(k), clean_frame(k)
        for i, column in enumerate(columns):
            state = positions[k, column.number], occupancy[k, column.number]
            pixels, expected = _expected(column, x, *state, radius_px)
            scores[k, i] = _share(seen[pixels], expected)
    return scores


def observed_states(
    counts: Frames,
    clean: Frames,
    columns: Sequence[Column],
    truth: Mapping[str, Array],
    dose: float,
    rate: float = SWITCH_RATE,
    radius_px: float = RADIUS_PX,
) -> Array:
    """What the ideal observer makes of the raw counts: the limit of `state_scores`.

    It knows the clean movie in all but the state of the column, and expects Poisson counts.

    Parameters
    ----------
    counts : ndarray of shape (n_frames, height, width), or function of the frame number
        Raw frames [electrons].
    clean, columns, truth
        As in `state_scores`.
    dose : float
        Electrons per pixel and frame in vacuum.
    rate : float
        As in `forward_backward`.

    Returns
    -------
    ndarray of float64, shape (n_frames, len(columns))
        Expected score.
    """
    counts_of, clean_frame = frame_reader(counts), frame_reader(clean)
    positions, occupancy = np.asarray(truth["col_pos"], np.float64), np.asarray(truth["col_occ"], np.float64)
    n_frames = len(positions)
    evidence = [np.empty((n_frames, len(column.levels))) for column in columns]
    for k in range(n_frames):
        y, x = counts_of(k), clean_frame(k)
        for column, found in zip(columns, evidence, strict=True):
            state = positions[k, column.number], occupancy[k, column.number]
            pixels, expected = _expected(column, x, *state, radius_px)
            mean = dose * np.maximum(expected, 1e-3)
            found[k] = np.sum(y[pixels] * np.log(mean) - mean, axis=-1)
    scores = np.empty((n_frames, len(columns)))
    for i, (column, found) in enumerate(zip(columns, evidence, strict=True)):
        scores[:, i] = forward_backward(found, rate) @ column.marks
    return scores


def bleed_of_scores(
    scores: Array,
    columns: Sequence[Column],
    truth: Mapping[str, Array],
    shape: Sequence[int],
    offsets: Sequence[int] = OFFSETS,
    radius_px: float = RADIUS_PX,
    isolation_frames: int = ISOLATION_FRAMES,
) -> Bleed:
    """The `bleed` of one score per column and frame, in place of a movie.

    Of `observed_states` it is what the ideal observer reaches on the very counts. `bleed_limit` takes every change for
    the only one of its column; here the column may have changed a few frames more than ``isolation_frames`` earlier
    or later, which leaves less to tell its state from, and the noise is that of the movie at hand.

    Parameters
    ----------
    scores : ndarray, shape (n_frames, len(columns))
    columns : sequence of Column
        Changes of other columns are left out.
    truth : mapping of str to ndarray
        ``events`` (K, 4), ``col_pos`` (T, N, 2) and ``col_occ`` (T, N).
    shape : sequence of int
        (n_frames, height, width) of the movie.
    offsets, radius_px, isolation_frames
        As in `bleed`.
    """
    occupancy = np.asarray(truth["col_occ"], np.float64)
    number = {column.number: i for i, column in enumerate(columns)}
    changes = [c for c in isolated_changes(truth, shape, radius_px, isolation_frames) if c.column in number]
    pooled, norm = np.zeros((len(offsets), len(changes))), np.zeros(len(changes))
    for i, change in enumerate(changes):
        column = columns[number[change.column]]
        true = np.interp(occupancy[:, change.column], column.levels, column.marks)
        step = true[change.at(0)] - true[change.at(-1)]
        size = float(np.sum((column.images[-1] - column.images[0]) ** 2))
        norm[i] = size * step**2
        for row, offset in zip(pooled, offsets, strict=True):
            k = change.at(offset)
            error = scores[k, number[change.column]] - true[k]
            row[i] = size * error * step * (1 if offset < 0 else -1)
    return pooled_bleed(offsets, pooled, norm)


@dataclass(frozen=True)
class Detection:
    """How well states and changes are told from one score per column and frame; see `detection`."""

    auc: float  # NaN without pairs
    n_pairs: int
    delay: float  # mean of the changes that are seen [frames]; NaN if none is
    missed: float  # share of the changes; NaN without changes
    n_changes: int


def detection(
    scores: Array,
    columns: Sequence[Column],
    truth: Mapping[str, Array],
    shape: Sequence[int],
    radius_px: float = RADIUS_PX,
) -> Detection:
    """Detection of states, and of changes, from `state_scores` or `observed_states`.

    The AUC is the area under the curve of hits against false alarms for a threshold on the score: the
    probability that of two frames of one column with different occupancy the fuller one has the larger score,
    ties counting half. Frames with a change within the exposure are left out.

    A change is seen where the score steps: the frame border, of those around the change, at which a step
    between the two states fits the scores best, with `ISOLATION_FRAMES` frames on either side of the change. Its
    distance from the change is the delay, early or late; the change is missed if no step at all fits best. The
    changes are the `isolated_changes`.

    Parameters
    ----------
    scores : ndarray, shape (n_frames, len(columns))
    columns : sequence of Column
    truth : mapping of str to ndarray
        ``events`` (K, 4), ``col_pos`` (T, N, 2) and ``col_occ`` (T, N).
    shape : sequence of int
        (n_frames, height, width) of the movie.

    Returns
    -------
    Detection
    """
    won, n_pairs = _pairs_won(scores, columns, truth)
    index = {column.number: i for i, column in enumerate(columns)}
    changes = [c for c in isolated_changes(truth, shape, radius_px) if c.column in index]
    occupancy = np.asarray(truth["col_occ"], np.float64)
    delays: list[int] = []
    for change in changes:
        i = index[change.column]
        before, after = (
            np.interp(occupancy[change.at(o), change.column], columns[i].levels, columns[i].marks)
            for o in (-1, 0)
        )
        around = [change.at(o) for o in range(-ISOLATION_FRAMES, ISOLATION_FRAMES)]
        towards = (scores[around, i] - (before + after) / 2) * (after - before)
        # The best step has the old state while this sum falls, and the new one while it rises.
        delays.append(int(np.argmin(np.cumsum([0.0, *towards]))) - ISOLATION_FRAMES)
    seen = [abs(delay) for delay in delays if abs(delay) < ISOLATION_FRAMES]
    return Detection(
        won / n_pairs if n_pairs else math.nan,
        n_pairs,
        float(np.mean(seen)) if seen else math.nan,
        1 - len(seen) / len(changes) if changes else math.nan,
        len(changes),
    )


def _pairs_won(scores: Array, columns: Sequence[Column], truth: Mapping[str, Array]) -> tuple[float, int]:
    """Of pairs of frames of one column, those whose fuller one has the larger score; and how many pairs there are."""
    occupancy, whole = np.asarray(truth["col_occ"], np.float64), _whole_frames(truth)
    won, n_pairs = 0.0, 0
    for i, column in enumerate(columns):
        used = whole[:, column.number]
        found = [scores[used & (occupancy[:, column.number] == level), i] for level in column.levels]
        for n, fuller in enumerate(found):
            for emptier in found[:n]:
                ranks = [np.searchsorted(np.sort(emptier), fuller, side) for side in ("left", "right")]
                won += float(np.sum(ranks)) / 2
                n_pairs += len(fuller) * len(emptier)
    return won, n_pairs


@dataclass(frozen=True)
class PartOccupied:
    """Contrast of steady columns that hold some of their atoms; see `part_occupied`."""

    ratio: float  # denoised over clean, all columns together; NaN without columns
    columns: dict[int, float]  # the same for each column
    n_frames: int  # frames looked at, summed over columns


def part_occupied(
    denoised: Frames,
    clean: Frames,
    truth: Mapping[str, Array],
    radius_px: float = RADIUS_PX,
    isolation_frames: int = ISOLATION_FRAMES,
) -> PartOccupied:
    """Strength of columns that hold some of their atoms and keep them, relative to the truth.

    Looked at are frames around which the column keeps the same occupancy, neither empty nor full, for
    `isolation_frames` before and after. There the denoised frame, less its mean, is regressed on the clean
    one, in a disc of 1.5 radii: column and local background.

    Parameters
    ----------
    denoised, clean : ndarray of shape (n_frames, height, width), or function of the frame number
        Vacuum = 1.
    truth : mapping of str to ndarray
        ``col_pos`` (T, N, 2), ``col_occ`` (T, N) and ``col_n_full`` (N,).

    Returns
    -------
    PartOccupied
        A ratio of 1 is perfect, 0 means that nothing is seen of the columns.
    """
    frame_of, clean_frame = frame_reader(denoised), frame_reader(clean)
    positions, occupancy = np.asarray(truth["col_pos"], np.float64), np.asarray(truth["col_occ"], np.float64)
    shape = clean_frame(0).shape
    window = 2 * isolation_frames + 1
    products: dict[int, float] = {}
    squares: dict[int, float] = {}
    n_frames = 0
    part = (occupancy > 0) & (occupancy < truth["col_n_full"])
    kept = ndimage.maximum_filter1d(occupancy, window, axis=0) == ndimage.minimum_filter1d(
        occupancy, window, axis=0
    )
    kept[:isolation_frames] = kept[len(kept) - isolation_frames :] = False
    for k, c in np.argwhere(part & kept):
        pixels = disc_around(positions[k, c], shape, 1.5 * radius_px)
        if pixels is not None:
            true = clean_frame(k)[pixels].astype(np.float64)
            true -= true.mean()
            products[int(c)] = products.get(int(c), 0.0) + float(frame_of(k)[pixels] @ true)
            squares[int(c)] = squares.get(int(c), 0.0) + float(true @ true)
            n_frames += 1
    ratio = sum(products.values()) / sum(squares.values()) if n_frames else math.nan
    return PartOccupied(ratio, {c: products[c] / squares[c] for c in sorted(products)}, n_frames)
