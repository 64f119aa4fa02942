"""Where and when a denoised movie changes most, with the counts as witness: what a report shows.

A change is a step of the mean over 4 to 16 frames, before and after, in squares about as large as a column. It is
confirmed only if the counts of these frames step the same way by more than noise does anywhere in the movie. Where
the scene drifts, the squares drift with it, by whole pixels.
"""

from __future__ import annotations

import math
from collections import deque
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.special import ndtri

from ..inputs.paired import Slab
from .estimates import NoiseLaw

Array = NDArray[Any]

WINDOW = 4  # groups of frames before and after a change
GROUPS = (1, 2, 4)  # frames of a group: for short and for lasting changes
SIDE = 4  # of the squares [pixels]
SIZES = (1, 2)  # sides of what may change, in squares
EDGE = 1  # squares at the border of the frame, where the scene comes and goes, that are not looked at
CHANCE = 0.01  # that noise alone is taken for a change anywhere in the movie
LIKELY_Z = 3.5  # standard deviations from which on a step is shown, although noise may explain it
PER_FRAME = 4  # changes that are kept of a frame, until it is known which are the largest
KEPT = 256  # of all frames


@dataclass(frozen=True)
class Change:
    """A step in time, at one place."""

    frame: int  # the first after the step
    row: int  # of its middle [pixels]
    column: int
    step: float  # in the denoised movie, after less before [counts per pixel]
    shown_z: float  # the same over the noise of the counts
    counts_z: float  # step of the counts over their noise
    group: int  # frames before and after, over `WINDOW`
    confirmed: bool = False  # by the counts: noise makes such a step in one movie of a hundred


class Changes:
    """The largest steps of a movie, slab by slab; memory is that of a few frames of squares."""

    def __init__(self, noise: NoiseLaw, corners: NDArray[np.intp], scene: tuple[int, int]) -> None:
        self._corners = corners
        self._side = max(1, min(SIDE, *scene))
        self._shape = (scene[0] // self._side, scene[1] // self._side)
        self._scales = [_Scale(noise, self._side, group) for group in GROUPS]

    def add(self, slab: Slab) -> None:
        """Take in the next slab."""
        for number, k in zip(range(*slab.frames), range(slab.own.start, slab.own.stop), strict=True):
            if slab.sound[k]:
                level = 1.0 if slab.levels is None else slab.levels[k]
                corner = self._corners[number].tolist()
                counts, shown = (self._squares(a[k] / level, corner) for a in (slab.counts, slab.denoised))
                for scale in self._scales:
                    scale.add(number, counts, shown)

    def _squares(self, frame: Array, corner: list[int]) -> Array:
        """Sums over squares of the scene; NaN where the frame does not show all of one."""
        side, squares = self._side, np.full(self._shape, np.nan, np.float32)
        inside = []
        for n, first, most in zip(frame.shape, corner, self._shape, strict=True):
            start = -(-first // side)
            stop = max(start, min(most, (first + n) // side))
            inside.append((slice(start, stop), slice(start * side - first, stop * side - first)))
        (rows, shown_rows), (columns, shown_columns) = inside
        height, width = rows.stop - rows.start, columns.stop - columns.start
        cut = frame[shown_rows, shown_columns].reshape(height, side, width, side)
        squares[rows, columns] = cut.sum(axis=(1, 3), dtype=np.float64)
        return squares

    def result(self, n_most: int, apart: int = 4 * SIDE) -> list[Change]:
        """The largest changes, the largest first; those that the counts confirm are marked.

        Parameters
        ----------
        n_most : int
            How many, at most.
        apart : int
            Changes at less than this distance [pixels] whose frames overlap are the same.

        Returns
        -------
        list of Change
            Empty where no step stands out.
        """
        n_looks = sum(scale.n_looks for scale in self._scales)
        if not n_looks:
            return []
        least = -float(ndtri(CHANCE / (2 * n_looks)))
        chosen: list[Change] = []
        for change in sorted((c for s in self._scales for c in s.found), key=size_of, reverse=True):
            if size_of(change) < min(least, LIKELY_Z) or len(chosen) == n_most:
                break
            if all(
                math.hypot(change.row - other.row, change.column - other.column) >= apart
                or abs(change.frame - other.frame) >= WINDOW * (change.group + other.group)
                for other in chosen
            ):
                chosen.append(change)
        return [self._in_frame(change, size_of(change) >= least) for change in chosen]

    def _in_frame(self, change: Change, confirmed: bool) -> Change:
        """The same, at its place in its own frame."""
        row, column = self._corners[change.frame].tolist()
        return replace(change, row=change.row - row, column=change.column - column, confirmed=confirmed)


def size_of(change: Change) -> float:
    """How far a change stands out of the noise, both as shown and in the counts [standard deviations]."""
    return min(abs(change.shown_z), abs(change.counts_z))


class _Scale:
    """Steps between groups of frames."""

    def __init__(self, noise: NoiseLaw, side: int, group: int) -> None:
        self._noise, self._side, self._group = noise, side, group
        self._recent: deque[tuple[int, Array, Array]] = deque(
            maxlen=2 * WINDOW
        )  # first frame, counts, denoised
        self._sums: list[tuple[int, Array, Array]] = []  # of the group that is not yet full
        self._n = 0  # its frames
        self.found: list[Change] = []
        self.n_looks = 0

    def add(self, number: int, counts: Array, shown: Array) -> None:
        """Take in the squares of a frame."""
        if not self._sums:
            self._sums = [(number, counts.copy(), shown.copy())]
            self._n = 1
        else:
            _, all_counts, all_shown = self._sums[0]
            all_counts += counts
            all_shown += shown
            self._n += 1
        if self._n == self._group:
            self._recent.append(self._sums.pop())
            if len(self._recent) == 2 * WINDOW:
                self._look()

    def _look(self) -> None:
        """Compare what was before and after the middle of the recent frames."""
        numbers, counts, shown = zip(*self._recent, strict=True)
        counts_step, shown_step = (
            np.sum(a[WINDOW:], axis=0) - np.sum(a[:WINDOW], axis=0) for a in (counts, shown)
        )
        n_pixels = 2 * WINDOW * self._group * self._side**2
        variance = np.full(shown_step.shape, n_pixels * self._noise.variance)
        if self._noise.estimator == "poisson":
            expected = np.maximum(np.sum(shown, axis=0), 0)
            variance = self._noise.gain * expected + n_pixels * self._noise.read_variance
        for size in SIZES:
            found, witness, noise = (_boxes(a, size) for a in (shown_step, counts_step, variance))
            if found.size:
                self._keep(int(numbers[WINDOW]), size, found, witness, np.sqrt(np.maximum(noise, 1e-12)))
        if len(self.found) > 2 * KEPT:
            self.found = sorted(self.found, key=size_of)[-KEPT:]

    def _keep(self, frame: int, size: int, shown: Array, counts: Array, deviation: Array) -> None:
        """The largest steps of one size."""
        shown_z, counts_z = shown / deviation, counts / deviation
        score = np.minimum(np.abs(shown_z), np.abs(counts_z)) * (shown_z * counts_z > 0)
        score = np.nan_to_num(score, nan=0.0)
        edge = min(EDGE, *((n - 1) // 2 for n in score.shape))
        inner = score[edge : score.shape[0] - edge, edge : score.shape[1] - edge]
        self.n_looks += int(
            np.isfinite(shown[edge : score.shape[0] - edge, edge : score.shape[1] - edge]).sum()
        )
        most = min(PER_FRAME, inner.size)
        highest = np.argpartition(inner, inner.size - most, axis=None)[inner.size - most :]
        n_pixels = WINDOW * self._group * (self._side * size) ** 2
        for row, column in np.transpose(np.unravel_index(highest, inner.shape)) + edge:
            if not score[row, column] > 0:
                continue
            self.found.append(
                Change(
                    frame=frame,
                    row=int((row + size / 2) * self._side),
                    column=int((column + size / 2) * self._side),
                    step=float(shown[row, column]) / n_pixels,
                    shown_z=float(shown_z[row, column]),
                    counts_z=float(counts_z[row, column]),
                    group=self._group,
                )
            )


def _boxes(squares: Array, size: int) -> Array:
    """Sums over so many squares on each side, at every place."""
    height, width = (max(0, n - size + 1) for n in squares.shape)
    total = np.zeros((height, width))
    for row, column in np.ndindex(size, size):
        total += squares[row : row + height, column : column + width]
    return total
