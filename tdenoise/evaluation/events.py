"""Sudden changes of columns: how faithful a denoised movie is to them, and how faithful any could be.

A column that gains or loses atoms is the event that a movie is recorded for, and what averaging over time
destroys without a trace in the PSNR. Three questions; the first two beside the answer of the ideal observer of
``tdenoise.evaluation.ideal_observer``:

- `bleed`: how much of the step shows on its wrong side, some frames before and after it; `bleed_limit` and
  `bleed_of_scores`.
- `state_scores` and `detection`: can the state of a column be told in each frame, and how late is a change
  seen; `observed_states`.
- `part_occupied`: are steady columns with some of their atoms there at all, and how strong.

Frames are numbered from 0, and an event at time t falls into the exposure of frame ``k = floor(t)``. That frame
shows a mixture of both states and is left out: offset -1 is the last frame wholly before the change, ``k - 1``,
and offset 0 the first wholly after it, ``k + 1``. Movies are in units of the clean movie (vacuum = 1).
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

from .ideal_observer import SWITCH_RATE, detection_index, forward_backward, observer_error

Array = NDArray[Any]
Frames = Array | Callable[[int], Array]  # a movie, or a function that gives its frame k

OFFSETS = (-4, -3, -2, -1, 0, 1, 2, 3, 4)  # frames; 0 is the first after the change
RADIUS_PX = 5.0  # of the disc around a column
ISOLATION_FRAMES = 5  # before and after a change, without another of the same column


# Changes --------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Change:
    """A change of a column that stands alone."""

    frame: int  # into whose exposure it falls
    column: int
    pixels: tuple[Array, Array]  # rows and columns of the disc

    def at(self, offset: int) -> int:
        """The frame at an offset from the change."""
        return self.frame + offset + (offset >= 0)


def isolated_changes(
    truth: Mapping[str, Array],
    shape: Sequence[int],
    radius_px: float = RADIUS_PX,
    isolation_frames: int = ISOLATION_FRAMES,
) -> list[Change]:
    """Changes without another one of the same column around, away from all edges, in order of time.

    Parameters
    ----------
    truth : mapping of str to ndarray
        ``events`` (K, 4) and ``col_pos`` (T, N, 2), as in the benchmark files.
    shape : sequence of int
        (n_frames, height, width) of the movie.
    radius_px : float
        Radius of the disc around the column, which must lie inside the field [pixels].
    isolation_frames : int
        Frames before and behind that of the change which the movie must have, and into which no other change
        of the column may fall.
    """
    events, positions = np.asarray(truth["events"], np.float64), truth["col_pos"]
    frames = np.floor(events[:, 0]).astype(int)
    changes = []
    for i in np.argsort(events[:, 0], kind="stable"):
        k, column = int(frames[i]), int(events[i, 1])
        others = np.delete(frames, i)[np.delete(events[:, 1], i) == column]
        if np.any(np.abs(others - k) <= isolation_frames):
            continue
        if k < isolation_frames or k + isolation_frames >= shape[0]:
            continue
        pixels = _disc(positions[k, column], shape[1:], radius_px)
        if pixels is not None:
            changes.append(Change(k, column, pixels))
    return changes


def _disc(centre: Array, shape: Sequence[int], radius_px: float) -> tuple[Array, Array] | None:
    """Rows and columns of the pixels of a disc; None if it leaves the field."""
    row, column = (float(c) for c in centre)
    low, high = (radius_px, radius_px), (shape[0] - 1 - radius_px, shape[1] - 1 - radius_px)
    if not (low[0] <= row <= high[0] and low[1] <= column <= high[1]):
        return None
    span = np.arange(-math.ceil(radius_px) - 1, math.ceil(radius_px) + 2)
    rows, columns = np.meshgrid(span + round(row), span + round(column), indexing="ij")
    inside = (rows - row) ** 2 + (columns - column) ** 2 <= radius_px**2
    return rows[inside], columns[inside]


def _frame_reader(frames: Frames) -> Callable[[int], Array]:
    """Frame number to frame; a function is asked once for frames that several events share."""
    if callable(frames):
        return functools.lru_cache(maxsize=16)(frames)
    return frames.__getitem__


# Bleed ----------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Bleed:
    """How much of a step in occupancy shows at the wrong side of it; see `bleed`."""

    offsets: tuple[int, ...]  # frames from the change; 0 is the first after it
    values: tuple[float, ...]  # one per offset; NaN without events
    n_events: int
    numerators: Array  # (n_offsets, n_events): with the denominators, for an interval by `bootstrap_ratio`
    denominators: Array  # (n_events,)


def bleed(
    denoised: Frames,
    clean: Frames,
    truth: Mapping[str, Array],
    offsets: Sequence[int] = OFFSETS,
    radius_px: float = RADIUS_PX,
    isolation_frames: int = ISOLATION_FRAMES,
) -> Bleed:
    """Smearing of sudden changes in time: regression of the error on the step of a changing column.

    The step image of a change is the first clean frame after it minus the last before it, in a disc around the
    column. At each offset, ``denoised - clean`` is regressed on it, pooled over the `isolated_changes`; the sign
    is turned behind the change, so that a value is the share of the step on the wrong side.

    Parameters
    ----------
    denoised, clean : ndarray of shape (n_frames, height, width), or function of the frame number
        Both with vacuum = 1. A function lets a movie stay on disk; events are visited in order of time.
    truth : mapping of str to ndarray
        ``events`` (K, 4) and ``col_pos`` (T, N, 2), as in the benchmark files.
    offsets : sequence of int
        Frames from the change at which to look.
    radius_px, isolation_frames
        As in `isolated_changes`.

    Returns
    -------
    Bleed
        0 is perfect; 0.5 on both sides means that the step was not seen at all. Loss of amplitude by blur in
        space gives values other than 0 too, and noise averages out: judge it beside the error and `detection`.
    """
    denoised_frame, clean_frame = _frame_reader(denoised), _frame_reader(clean)
    changes = _changes(clean_frame, truth, offsets, radius_px, isolation_frames)
    pooled, norm = np.zeros((len(offsets), len(changes))), np.zeros(len(changes))
    for i, change in enumerate(changes):
        before, after = _states(clean_frame, change)
        step = after - before
        norm[i] = step @ step
        for row, offset in zip(pooled, offsets, strict=True):
            k = change.at(offset)
            error = denoised_frame(k)[change.pixels] - clean_frame(k)[change.pixels].astype(np.float64)
            row[i] = (error @ step) * (1 if offset < 0 else -1)
    return _bleed(offsets, pooled, norm)


def bleed_limit(
    clean: Frames,
    truth: Mapping[str, Array],
    dose: float,
    offsets: Sequence[int] = OFFSETS,
    radius_px: float = RADIUS_PX,
    isolation_frames: int = ISOLATION_FRAMES,
    mixed_frame: bool = False,
) -> Bleed:
    """The `bleed` of the ideal observer: `observer_error` of every change, weighted by the step.

    Parameters
    ----------
    dose : float
        Counts per pixel and frame in vacuum.
    mixed_frame : bool
        As in `observer_error`. Changes fall anywhere in a frame, which puts the frames that are compared half
        a frame further away on average. False leaves this out, and gives a limit that a good observer can stay
        a little below; True is the limit of exactly what `bleed` measures.
    clean, truth, offsets, radius_px, isolation_frames
        As in `bleed`.
    """
    clean_frame = _frame_reader(clean)
    changes = _changes(clean_frame, truth, offsets, radius_px, isolation_frames)
    pooled, norm = np.zeros((len(offsets), len(changes))), np.zeros(len(changes))
    for i, change in enumerate(changes):
        before, after = _states(clean_frame, change)
        norm[i] = np.sum((after - before) ** 2)
        index = detection_index(before, after, dose)
        for row, offset in zip(pooled, offsets, strict=True):
            row[i] = norm[i] * observer_error(index, offset + 1 if offset >= 0 else -offset, mixed_frame)
    return _bleed(offsets, pooled, norm)


def _changes(
    clean_frame: Callable[[int], Array],
    truth: Mapping[str, Array],
    offsets: Sequence[int],
    radius_px: float,
    isolation_frames: int,
) -> list[Change]:
    reach = max(-min(offsets), max(offsets) + 1)
    if reach > isolation_frames:
        raise ValueError(f"offsets {tuple(offsets)} reach beyond {isolation_frames} frames of isolation.")
    shape = (len(truth["col_pos"]), *clean_frame(0).shape)
    return isolated_changes(truth, shape, radius_px, isolation_frames)


def _states(clean_frame: Callable[[int], Array], change: Change) -> tuple[Array, Array]:
    """The column before and after a change."""
    before, after = (clean_frame(change.at(o))[change.pixels].astype(np.float64) for o in (-1, 0))
    return before, after


def _bleed(offsets: Sequence[int], pooled: Array, norm: Array) -> Bleed:
    values = pooled.sum(axis=1) / norm.sum() if norm.sum() else np.full(len(offsets), np.nan)
    return Bleed(tuple(offsets), tuple(map(float, values)), len(norm), pooled, norm)


# States of columns ----------------------------------------------------------------------------------------


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
    clean_frame = _frame_reader(clean)
    positions, occupancy = np.asarray(truth["col_pos"], np.float64), np.asarray(truth["col_occ"], np.float64)
    shape = clean_frame(0).shape
    numbers = [
        int(c)
        for c in np.unique(np.asarray(truth["events"])[:, 1])
        if all(_disc(p, shape, radius_px) is not None for p in positions[:, int(c)])
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
    pixels = _disc(centre, clean.shape, radius_px)
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
    frame_of, clean_frame = _frame_reader(denoised), _frame_reader(clean)
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
    counts_of, clean_frame = _frame_reader(counts), _frame_reader(clean)
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
    return _bleed(offsets, pooled, norm)


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

    index = {column.number: i for i, column in enumerate(columns)}
    changes = [c for c in isolated_changes(truth, shape, radius_px) if c.column in index]
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


# Steady columns -------------------------------------------------------------------------------------------


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
    frame_of, clean_frame = _frame_reader(denoised), _frame_reader(clean)
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
        pixels = _disc(positions[k, c], shape, 1.5 * radius_px)
        if pixels is not None:
            true = clean_frame(k)[pixels].astype(np.float64)
            true -= true.mean()
            products[int(c)] = products.get(int(c), 0.0) + float(frame_of(k)[pixels] @ true)
            squares[int(c)] = squares.get(int(c), 0.0) + float(true @ true)
            n_frames += 1
    ratio = sum(products.values()) / sum(squares.values()) if n_frames else math.nan
    return PartOccupied(ratio, {c: products[c] / squares[c] for c in sorted(products)}, n_frames)
