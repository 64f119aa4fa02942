"""What was removed: is it noise and nothing else?

For a perfect prediction the residual, divided by the noise, is white with unit variance and holds no lattice. The
classes take successive frames with ``add`` and answer with ``result``; memory is a few frames.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

from .metrics import Moments

Array = NDArray[Any]


@dataclass(frozen=True)
class ResidualReport:
    """Is what was removed nothing but noise? For white residuals all but the zero lag vanish."""

    mean: float
    variance: float  # 1 for a perfect prediction; larger by its error in units of the noise
    # (max_lag + 1, 2 max_lag + 1): row lags from 0, column lags from -max_lag; NaN where no pixels are so far apart
    autocorrelation: Array
    temporal_autocorrelation: float  # of the same pixel in successive frames; NaN for one frame
    frequency: Array  # (n,) [cycles per pixel]; empty for frames one pixel wide or high
    power: Array  # (n,) radial mean of the power; 1 for white noise of unit variance
    n_pixels: int


class ResidualCheck:
    """Statistics of the normalised residual ``(y - f) / sqrt(gain * f + read_variance)``, chunk by chunk.

    Memory is a few frames. Chunks are successive frames; their borders leave no trace in the result.

    Parameters
    ----------
    gain, read_variance : float
        The noise law, as in `unbiased_mse_terms`.
    max_lag : int
        Largest lag of the spatial autocorrelation [pixels].
    floor : float
        Smallest variance to divide by [counts squared].
    """

    def __init__(
        self, gain: float = 1.0, read_variance: float = 0.0, max_lag: int = 3, floor: float = 1e-3
    ) -> None:
        self._gain, self._read_variance, self._floor, self._max_lag = gain, read_variance, floor, max_lag
        self._moments = Moments()
        self._products = np.zeros((max_lag + 1, 2 * max_lag + 1))
        self._pairs = np.zeros_like(self._products)
        self._temporal, self._temporal_pairs = 0.0, 0
        self._power: Array | None = None
        self._n_frames = 0
        self._previous: Array | None = None

    def add(self, counts: Array, denoised: Array) -> None:
        """Take in successive frames, shape (n, height, width) [counts]."""
        for y, f in zip(counts, denoised, strict=True):
            f = np.asarray(f, np.float64)
            noise = np.maximum(self._gain * f + self._read_variance, self._floor)
            self._add_residual((y - f) / np.sqrt(noise))

    def _add_residual(self, e: Array) -> None:
        self._moments.add(e)
        height, width = e.shape
        for dy, dx in np.ndindex(*self._products.shape):
            shift = dx - self._max_lag
            # A lag beyond a narrow frame leaves no pair; a negative stop would count from the end.
            here = e[: max(0, height - dy), max(0, -shift) : max(0, width - max(0, shift))]
            there = e[dy:, max(0, shift) : max(0, width - max(0, -shift))]
            self._products[dy, dx] += np.einsum("ij,ij->", here, there)  # `vdot` would copy both
            self._pairs[dy, dx] += here.size
        if self._previous is not None:
            self._temporal += float(np.vdot(self._previous, e))
            self._temporal_pairs += e.size
        power = np.abs(np.fft.rfft2(e - e.mean())) ** 2 / e.size
        self._power = power if self._power is None else self._power + power
        self._previous, self._n_frames = e, self._n_frames + 1

    def result(self) -> ResidualReport:
        """Statistics of all frames so far."""
        if self._power is None or self._previous is None:
            raise ValueError("no frames were added.")
        mean, variance = self._moments.mean, self._moments.variance
        scale = variance or math.nan  # a residual of constant value has no correlation
        temporal = math.nan
        if self._temporal_pairs:
            temporal = (self._temporal / self._temporal_pairs - mean**2) / scale
        frequency, power = _radial_mean(self._power / self._n_frames, self._previous.shape)
        return ResidualReport(
            mean,
            variance,
            (self._products / np.where(self._pairs, self._pairs, math.nan) - mean**2) / scale,
            temporal,
            frequency,
            power,
            self._moments.count,
        )


def _radial_mean(power: Array, shape: tuple[int, ...]) -> tuple[Array, Array]:
    """Mean of a half-plane power spectrum over rings, up to the Nyquist frequency and without zero."""
    radius = np.hypot(np.fft.fftfreq(shape[0])[:, None], np.fft.rfftfreq(shape[1]))
    weight = np.full(power.shape, 2.0)  # each stored frequency stands for two, but for the first column
    weight[:, 0] = 1
    if shape[1] % 2 == 0:
        weight[:, -1] = 1
    n_rings = min(shape) // 2
    ring = np.rint(radius * 2 * n_rings).astype(int)
    total, members = (
        np.bincount(ring.ravel(), w.ravel(), n_rings + 1)[1 : n_rings + 1] for w in (weight * power, weight)
    )
    return np.arange(1, n_rings + 1) / (2 * n_rings), total / members


# Lattice --------------------------------------------------------------------------------------------------

SPOT_OVER_NOISE = 30.0  # power of a spot, over that of noise; the largest of 1e6 noise values reaches 14
SPOT_OVER_LEVEL = 10.0  # and over the median of the frequencies around
SPOT_MIN_CYCLES = 4  # per field: what is slower is the shape of the scene
SPOT_MAX_NUMBER = 16


@dataclass(frozen=True)
class LatticeReport:
    """Does the residual hold lattice? Its power at the lattice's spots, compared with the rings around."""

    spots: Array  # (n, 2), the strongest first: rows and columns [cycles per pixel]
    ratio: float  # 1 if nothing but white noise was removed; below 1 noise was kept as lattice
    sd: float  # standard deviation of the ratio for white noise
    lost: float  # share of the lattice's amplitude that was removed; 0 where the ratio is not clearly above 1


class LatticeCheck:
    """Power of the residual at the Bragg spots of the movie, chunk by chunk.

    The spots are those of the mean raw frame, so that the denoiser has no say in where to look. Memory is
    a few frames.
    """

    def __init__(self) -> None:
        self._n_frames = 0
        self._mean: Any = 0.0
        self._removed: Any = 0.0
        self._kept: Any = 0.0

    def add(self, counts: Array, denoised: Array) -> None:
        """Take in frames, shape (n, height, width) [counts]."""
        for y, f in zip(counts, denoised, strict=True):
            f = np.asarray(f, np.float64)
            self._mean = self._mean + y
            self._removed = self._removed + np.abs(np.fft.rfft2(y - f)) ** 2
            self._kept = self._kept + np.abs(np.fft.rfft2(f - f.mean())) ** 2
            self._n_frames += 1

    def result(self) -> LatticeReport:
        """Comparison over all frames so far; NaN where the movie shows no lattice."""
        if not self._n_frames:
            raise ValueError("no frames were added.")
        height, width = self._mean.shape
        ring = _ring((height, width))
        found = _spots(self._mean / self._n_frames, self._removed / self._n_frames**2, ring)
        spots = _frequencies(found, (height, width))
        if not len(spots):
            return LatticeReport(spots, math.nan, math.nan, math.nan)

        near = _near(found, ring.shape)
        removed, around = _at_and_around(self._removed, near, ring)
        if not around:
            return LatticeReport(spots, math.nan, math.nan, math.nan)
        sd = 1 / math.sqrt(int(near.sum()) * self._n_frames)
        lost = 0.0
        # Not 3: the spots were found in the same noise, which adds about one.
        if removed / around > 1 + 4 * sd:
            kept, base = _at_and_around(self._kept, near, ring)
            amplitudes = math.sqrt(removed - around), math.sqrt(max(0.0, kept - base))
            lost = amplitudes[0] / sum(amplitudes)
        return LatticeReport(spots, removed / around, sd, lost)


def lattice_spots(mean: Array, variance: float) -> Array:
    """Bragg spots of a mean frame with white noise of a known variance.

    Parameters
    ----------
    mean : ndarray, shape (height, width)
        Of frames between which the scene hardly moves.
    variance : float
        Of the noise of this mean.

    Returns
    -------
    ndarray, shape (n, 2)
        Rows and columns [cycles per pixel], the strongest first; see `tdenoise.evaluation.columns.plane_distance`.
    """
    ring = _ring((mean.shape[0], mean.shape[1]))
    return _frequencies(_spots(mean, np.full(ring.shape, mean.size * variance), ring), mean.shape)


def _frequencies(found: tuple[Array, Array], shape: tuple[int, ...]) -> Array:
    """Coefficients of the half-plane spectrum as rows and columns [cycles per pixel]."""
    return np.stack([np.fft.fftfreq(shape[0])[found[0]], np.fft.rfftfreq(shape[1])[found[1]]], axis=-1)


def _spots(mean: Array, noise: Array, ring: Array) -> tuple[Array, Array]:
    """Rows and columns of the Bragg spots in the half-plane spectrum of a mean frame, strongest first."""
    # Without a window, what differs at opposite edges of the field makes a cross of false spots.
    window = np.hanning(mean.shape[0])[:, None] * np.hanning(mean.shape[1])
    power = np.abs(np.fft.rfft2((mean - mean.mean()) * window)) ** 2
    rings = np.arange(int(ring.max()) + 1)
    floor = np.asarray(ndimage.median(noise, ring, rings)) * np.mean(window**2)
    medians = np.asarray(ndimage.median(power, ring, rings))
    # Over two octaves: in a small field the spots of several crystals fill the rings they lie on.
    level = np.array([np.median(medians[r // 2 : 2 * r + 1]) for r in rings])
    least = np.maximum(SPOT_OVER_NOISE * floor, SPOT_OVER_LEVEL * level)
    peak = (power == ndimage.maximum_filter(power, 5)) & (power > least[ring])
    peak &= (ring >= SPOT_MIN_CYCLES) & (ring <= min(mean.shape) // 2)
    rows, columns = np.nonzero(peak)
    order = np.argsort(power[rows, columns])[::-1][:SPOT_MAX_NUMBER]
    return rows[order], columns[order]


def spot_power(power: Array, spots: Array, shape: tuple[int, int]) -> tuple[float, float, int]:
    """Power at the spots of a lattice, what the rest of their rings would give there, and how many values that is.

    Parameters
    ----------
    power : ndarray, shape (height, width // 2 + 1)
        Of frames, as ``abs(rfft2)**2``.
    spots : ndarray, shape (n, 2)
        Rows and columns [cycles per pixel]; those of another field are looked for at the nearest frequencies.
    shape : tuple of int
        (height, width) of the frames.
    """
    near = near_spots(spots, shape)
    at, around = _at_and_around(power, near, _ring(shape))
    return at, around, int(near.sum())


def near_spots(spots: Array, shape: tuple[int, int]) -> NDArray[np.bool_]:
    """The coefficients of the half-plane spectrum at spots [cycles per pixel] and next to them."""
    found = [
        np.rint(np.asarray(s) * n).astype(int)
        for s, n in zip(np.reshape(spots, (-1, 2)).T, shape, strict=True)
    ]
    return _near((found[0] % shape[0], found[1]), (shape[0], shape[1] // 2 + 1))


def _ring(shape: tuple[int, int]) -> Array:
    """Ring of every coefficient of the half-plane spectrum [cycles per field]."""
    rows, columns = np.fft.fftfreq(shape[0])[:, None], np.fft.rfftfreq(shape[1])[None]
    ring: Array = np.rint(np.hypot(rows, columns) * min(shape)).astype(int)
    return ring


def _near(found: tuple[Array, Array], shape: tuple[int, ...]) -> NDArray[np.bool_]:
    """The coefficients at some spots and next to them."""
    near = np.zeros(shape, bool)
    near[found] = True
    grown: NDArray[np.bool_] = ndimage.binary_dilation(near, np.ones((3, 3)))
    return grown


def _at_and_around(power: Array, near: Array, ring: Array) -> tuple[float, float]:
    """Total power near the spots, and what the rest of their rings would give there."""
    n_rings = int(ring.max()) + 1
    away = ~near
    total = np.bincount(ring[away], power[away], n_rings)
    level = total / np.maximum(np.bincount(ring[away], minlength=n_rings), 1)
    return float(power[near].sum()), float(level[ring[near]].sum())
