"""Is the variance that a denoised store states that of its errors? Pixel by pixel in sums, with or without a truth."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tdenoise.evaluation import metrics

from ..inputs.paired import SLAB_FRAMES
from .estimates import interval
from .evaluation_result import UncertaintyFigures

Array = NDArray[Any]

OCTAVES = (
    -24,
    8,
)  # of the stated variance over that of the noise: pixels are compared in groups of one octave
LEAST_SHARE = 0.01  # of all pixels, in a group that is shown
NORMAL_95 = 1.96  # standard deviations


class Uncertainty:
    """Stated variances beside errors, slab by slab.

    Parameters
    ----------
    noise_variance : float
        Of the movie [counts^2].
    """

    def __init__(self, noise_variance: float) -> None:
        self._noise_variance = noise_variance
        n_groups = OCTAVES[1] - OCTAVES[0]
        self._n, self._stated, self._measured, self._true = (np.zeros(n_groups) for _ in range(4))
        self._blocks: list[tuple[Array, Array]] = []
        self._covered = self._standardised = 0.0
        self._has_truth = False

    def add(self, variance: Array, terms: Array, error: Array | None = None) -> None:
        """Take in some frames.

        Parameters
        ----------
        variance : ndarray, shape (n, height, width)
            As stated [counts^2].
        terms : ndarray, same shape
            Whose mean is the mean squared error.
        error : ndarray, same shape, optional
            Denoised less true [counts].
        """
        stated = np.maximum(np.asarray(variance, np.float64), np.finfo(np.float32).tiny)
        extent = 32 * max(1, round(max(stated.shape[1:]) / 1024))
        block = (SLAB_FRAMES, extent, extent)
        self._blocks.append((metrics.block_sums(terms, block)[0], metrics.block_sums(stated, block)[0]))
        octave = np.clip(np.floor(np.log2(stated / self._noise_variance)), OCTAVES[0], OCTAVES[1] - 1)
        group = (octave - OCTAVES[0]).astype(int).ravel()
        self._n += np.bincount(group, minlength=len(self._n))
        self._stated += np.bincount(group, stated.ravel(), len(self._n))
        self._measured += np.bincount(group, np.asarray(terms, np.float64).ravel(), len(self._n))
        if error is not None:
            square = np.square(error, dtype=np.float64)
            self._has_truth = True
            self._true += np.bincount(group, square.ravel(), len(self._n))
            self._covered += float((square <= NORMAL_95**2 * stated).sum())
            self._standardised += float((square / stated).sum())

    def result(self) -> UncertaintyFigures | None:
        """Stated variances beside measured errors, over all pixels and by how uncertain they are said to be."""
        if not self._n.sum():
            return None
        measured, stated = (np.concatenate(sums) for sums in zip(*self._blocks, strict=True))
        n_pixels = self._n.sum()
        shown = np.flatnonzero(self._n >= LEAST_SHARE * n_pixels)
        return {
            "stated": float(self._stated.sum() / n_pixels),
            # Mean squared error over the mean of the stated variance: 1 if that is right on the whole.
            "ratio": interval(metrics.bootstrap_interval(measured, stated)),
            "groups": [
                {
                    "share": float(self._n[i] / n_pixels),
                    "stated": float(self._stated[i] / self._n[i]),
                    "measured": float(self._measured[i] / self._n[i]),
                    "true": float(self._true[i] / self._n[i]) if self._has_truth else None,
                }
                for i in shown
            ],
            "true_ratio": float(self._true.sum() / self._stated.sum()) if self._has_truth else None,
            "covered_95": self._covered / n_pixels if self._has_truth else None,
            "standardised_error": math.sqrt(self._standardised / n_pixels) if self._has_truth else None,
        }
