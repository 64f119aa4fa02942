"""Fourier ring correlation: up to which frequency is a denoised movie more than noise, and more than invention?

Two independent halves of the same movie agree where there is signal [1]_. Electrons that are dealt to two halves
by coin are independent, so one movie gives both (as in one-image FRC [2]_). Halves that were denoised by the same
network also agree in what the network invents; a raw half knows nothing of that. So the correlation that counts is
that of a denoised half with the *other* raw half, set in relation to the most that noise allows.

References
----------
.. [1] van Heel and Schatz, "Fourier shell correlation threshold criteria", J. Struct. Biol. 151, 250 (2005).
.. [2] Koho et al., "Fourier ring correlation simplifies image restoration in fluorescence microscopy",
   Nat. Commun. 10, 3103 (2019).
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

Array = NDArray[Any]

SEVENTH = 1 / 7  # the fixed threshold for halves of a data set


def binomial_halves(counts: Array, rng: np.random.Generator) -> tuple[Array, Array]:
    """Deal every electron to one of two halves; of Poisson counts, these are independent.

    Parameters
    ----------
    counts : ndarray of int
        [electrons]
    rng : numpy.random.Generator

    Examples
    --------
    >>> one, other = binomial_halves(np.array([4, 0]), np.random.default_rng(0))
    >>> (one + other).tolist()
    [4, 0]
    """
    one = rng.binomial(counts, 0.5).astype(counts.dtype)
    return one, counts - one


@dataclass(frozen=True)
class RingCorrelation:
    """Correlation of two movies on rings of spatial frequency."""

    frequency: Array  # (n_rings,) [cycles per pixel], up to 0.5
    correlation: Array  # (n_rings,) -1 to 1; NaN where one of them has no power
    n_values: Array  # (n_rings,) independent Fourier coefficients, of all frames

    def limit(self, threshold: float = SEVENTH) -> float | None:
        """Frequency at which the correlation first falls below a threshold [cycles per pixel]; None if never."""
        below = np.flatnonzero(~(self.correlation >= threshold))
        if not below.size:
            return None
        i = int(below[0])
        if i == 0 or not math.isfinite(self.correlation[i]):
            return float(self.frequency[i])
        share = (self.correlation[i - 1] - threshold) / (self.correlation[i - 1] - self.correlation[i])
        return float(self.frequency[i - 1] + share * (self.frequency[i] - self.frequency[i - 1]))


class RingSums:
    """``Re sum(A B*) / sqrt(sum(|A|**2) sum(|B|**2))`` over rings and frames, a few frames at a time.

    Frames are weighed by a Hann window: opposite edges of a field differ, which would make a cross of false signal.
    """

    def __init__(self) -> None:
        self._sums: Any = 0.0
        self._shape: tuple[int, int] | None = None
        self._n_frames = 0

    def add(self, one: Array, other: Array) -> None:
        """Take in frames of both movies, shape (n, height, width)."""
        for a, b in zip(one, other, strict=True):
            self._shape = a.shape
            window = np.hanning(a.shape[0])[:, None] * np.hanning(a.shape[1])
            fa, fb = (np.fft.rfft2((x - np.mean(x, dtype=np.float64)) * window) for x in (a, b))
            products = np.stack([(fa * fb.conj()).real, np.abs(fa) ** 2, np.abs(fb) ** 2])
            ring, weight, n_rings = _rings(a.shape)
            flat = [np.bincount(ring, (p * weight).ravel(), n_rings + 1)[1 : n_rings + 1] for p in products]
            self._sums = self._sums + np.stack(flat)
            self._n_frames += 1

    def result(self) -> RingCorrelation:
        """The correlation over all frames so far."""
        if self._shape is None:
            raise ValueError("no frames were added.")
        ring, weight, n_rings = _rings(self._shape)
        members = np.bincount(ring, weight.ravel(), n_rings + 1)[1 : n_rings + 1]
        cross, one, other = self._sums
        with np.errstate(invalid="ignore", divide="ignore"):
            correlation = cross / np.sqrt(one * other)
        frequency = np.arange(1, n_rings + 1) / (2 * n_rings)
        # Of a real frame, two coefficients are one.
        return RingCorrelation(frequency, correlation, members / 2 * self._n_frames)


def _rings(shape: tuple[int, ...]) -> tuple[Array, Array, int]:
    """Ring of every coefficient of the half-plane spectrum, how many it stands for, and the number of rings."""
    radius = np.hypot(np.fft.fftfreq(shape[0])[:, None], np.fft.rfftfreq(shape[1]))
    weight = np.full(radius.shape, 2.0)
    weight[:, 0] = 1
    if shape[1] % 2 == 0:
        weight[:, -1] = 1
    n_rings = min(shape) // 2
    return np.rint(radius * 2 * n_rings).astype(int).ravel(), weight, n_rings


def truth_correlation(cross: RingCorrelation, raw: RingCorrelation) -> Array:
    """Correlation of a denoised half with the noise-free movie, as estimated from raw halves.

    ``FRC(denoised 1, raw 2) / sqrt(FRC(raw 1, raw 2))``: the raw halves share the signal alone, so the root of their
    correlation is that of a raw half with the noise-free movie, and the most that any movie could correlate with it.

    Returns
    -------
    ndarray, shape (n_rings,)
        NaN where the raw halves do not agree by more than three standard deviations, so that nothing is known.
    """
    known = raw.correlation > 3 / np.sqrt(raw.n_values)
    ceiling = np.sqrt(np.where(known, raw.correlation, np.nan))
    correlation: Array = cross.correlation / ceiling
    return correlation
