"""How strong each column is in each frame: weighted sums over the counts, freed from each other."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from .finding import DISC_SIGMAS, Columns

Array = NDArray[Any]


@dataclass(frozen=True)
class Traces:
    """The columns of a movie, frame by frame."""

    intensity: Array  # (T, N) float64, height over the surroundings, in units of the counts; NaN: not seen
    error: Array  # (T, N) float64, its standard deviation from the noise of the counts

    def means(self) -> tuple[Array, Array]:
        """Mean intensity of every column and its typical error in a frame, (N,) each; 0 of one that is never seen."""
        return _means(self.intensity), _means(self.error)


class TraceSums:
    """Collects the traces of columns from the frames of a movie, in any order of blocks.

    The intensity is the height of a Gaussian that fits the counts best, over a level of its own within a disc. Where
    discs overlap, the heights are those of all columns fitted together.

    Parameters
    ----------
    columns : Columns
    n_frames : int
    """

    def __init__(self, columns: Columns, n_frames: int) -> None:
        n = len(columns.positions)
        self.columns = columns
        self._sums = np.full((n_frames, n), np.nan)
        self._variances = np.full((n_frames, n), np.nan)

    def add(self, frame: int, counts: Array, denoised: Array, variance: Array, places: Array) -> None:
        """One frame.

        Parameters
        ----------
        frame : int
        counts : ndarray, shape (height, width)
            As recorded, over the level of the frame; NaN where a pixel tells nothing.
        denoised : ndarray, shape (height, width)
            Stands in for pixels that tell nothing.
        variance : ndarray, shape (height, width)
            Of the counts, as the noise law expects it.
        places : ndarray, shape (N, 2)
            Row and column of the columns in this frame; need not be whole.
        """
        index, weights, inside = _weights(places, self.columns.sigma_px, counts.shape)
        told = np.isfinite(counts)
        values = np.where(told, counts, denoised)
        self._sums[frame] = np.where(inside, np.sum(weights * values.ravel()[index], axis=1), np.nan)
        spread = np.where(told, variance, 0.0).ravel()[index]
        self._variances[frame] = np.where(inside, np.sum(weights**2 * spread, axis=1), np.nan)

    def traces(self) -> Traces:
        """What was collected; columns that ever leave the field have NaN in those frames."""
        mixing = _mixing(self.columns)
        freed = np.linalg.inv(mixing)
        sign = 1.0 if self.columns.bright else -1.0
        held = np.isfinite(self._sums)
        sums = np.where(held, self._sums, _means(self._sums))
        variances = np.where(held, self._variances, 0.0)
        intensity = sign * sums @ freed.T
        error = np.sqrt(variances @ (freed.T**2))
        return Traces(np.where(held, intensity, np.nan), np.where(held, error, np.nan))


def _means(values: Array) -> Array:
    """Over the frames in which a column is seen."""
    seen = np.isfinite(values)
    mean: Array = np.sum(np.where(seen, values, 0.0), axis=0) / np.maximum(seen.sum(axis=0), 1)
    return mean


def _grid(sigma: float) -> tuple[Array, Array]:
    reach = math.ceil(DISC_SIGMAS * sigma)
    span = np.arange(-reach, reach + 1)
    return np.meshgrid(span, span, indexing="ij")


def _weights(places: Array, sigma: float, shape: tuple[int, ...]) -> tuple[Array, Array, NDArray[np.bool_]]:
    """Flat pixel indices and weights (N, K) that give a Gaussian's height; and which discs lie inside."""
    rows, cols = (d.ravel() for d in _grid(sigma))
    whole = np.rint(places).astype(np.int64)
    reach = math.ceil(DISC_SIGMAS * sigma)
    inside = np.all((whole >= reach) & (whole < np.array(shape) - reach), axis=1)
    corner = np.clip(whole, reach, np.array(shape) - 1 - reach)
    index = (corner[:, :1] + rows) * shape[1] + corner[:, 1:] + cols
    rest = places - whole
    square = (rows - rest[:, :1]) ** 2 + (cols - rest[:, 1:]) ** 2
    disc = square <= (DISC_SIGMAS * sigma) ** 2
    shape_of = np.where(disc, np.exp(-0.5 * square / sigma**2), 0.0)
    mean = shape_of.sum(axis=1, keepdims=True) / disc.sum(axis=1, keepdims=True)
    weights = np.where(disc, shape_of - mean, 0.0)
    weights /= np.sum(weights * shape_of, axis=1, keepdims=True)
    return index, weights, inside


def _mixing(columns: Columns) -> Array:
    """(N, N): what the sum of one column makes of the Gaussian of another of height 1."""
    places, sigma = columns.positions, columns.sigma_px
    n = len(places)
    found = np.eye(n)
    rows, cols = (d.ravel() for d in _grid(sigma))
    square = rows**2 + cols**2
    disc = square <= (DISC_SIGMAS * sigma) ** 2
    shape_of = np.where(disc, np.exp(-0.5 * square / sigma**2), 0.0)
    weights = np.where(disc, shape_of - shape_of.sum() / disc.sum(), 0.0)
    weights /= weights @ shape_of
    for i in range(n):
        apart = places - places[i]
        for j in np.flatnonzero((np.hypot(*apart.T) < 2 * DISC_SIGMAS * sigma) & (np.arange(n) != i)):
            other = np.exp(-0.5 * ((rows - apart[j, 0]) ** 2 + (cols - apart[j, 1]) ** 2) / sigma**2)
            found[i, j] = weights @ other
    return found
