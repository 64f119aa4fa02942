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

from .ideal_observer import detection_index, observer_error

Array = NDArray[Any]
Frames = Array | Callable[[int], Array]  # a movie, or a function that gives its frame k
OFFSETS = (-4, -3, -2, -1, 0, 1, 2, 3, 4)  # frames; 0 is the first after the change
RADIUS_PX = 5.0  # of the disc around a column
ISOLATION_FRAMES = 5  # before and after a change, without another of the same column


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
        pixels = disc_around(positions[k, column], shape[1:], radius_px)
        if pixels is not None:
            changes.append(Change(k, column, pixels))
    return changes


def disc_around(centre: Array, shape: Sequence[int], radius_px: float) -> tuple[Array, Array] | None:
    """Rows and columns of the pixels of a disc; None if it leaves the field."""
    row, column = (float(c) for c in centre)
    low, high = (radius_px, radius_px), (shape[0] - 1 - radius_px, shape[1] - 1 - radius_px)
    if not (low[0] <= row <= high[0] and low[1] <= column <= high[1]):
        return None
    span = np.arange(-math.ceil(radius_px) - 1, math.ceil(radius_px) + 2)
    rows, columns = np.meshgrid(span + round(row), span + round(column), indexing="ij")
    inside = (rows - row) ** 2 + (columns - column) ** 2 <= radius_px**2
    return rows[inside], columns[inside]


def frame_reader(frames: Frames) -> Callable[[int], Array]:
    """Frame number to frame; a function is asked once for frames that several events share."""
    if callable(frames):
        return functools.lru_cache(maxsize=16)(frames)
    return frames.__getitem__


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
    denoised_frame, clean_frame = frame_reader(denoised), frame_reader(clean)
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
    return pooled_bleed(offsets, pooled, norm)


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
    clean_frame = frame_reader(clean)
    changes = _changes(clean_frame, truth, offsets, radius_px, isolation_frames)
    pooled, norm = np.zeros((len(offsets), len(changes))), np.zeros(len(changes))
    for i, change in enumerate(changes):
        before, after = _states(clean_frame, change)
        norm[i] = np.sum((after - before) ** 2)
        index = detection_index(before, after, dose)
        for row, offset in zip(pooled, offsets, strict=True):
            row[i] = norm[i] * observer_error(index, offset + 1 if offset >= 0 else -offset, mixed_frame)
    return pooled_bleed(offsets, pooled, norm)


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


def pooled_bleed(offsets: Sequence[int], pooled: Array, norm: Array) -> Bleed:
    values = pooled.sum(axis=1) / norm.sum() if norm.sum() else np.full(len(offsets), np.nan)
    return Bleed(tuple(offsets), tuple(map(float, values)), len(norm), pooled, norm)
