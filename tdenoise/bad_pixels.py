"""Pixels that do not show the scene: hot and dead ones, and hits of X-rays; and what takes their place."""

from __future__ import annotations

import functools
import math
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from .noise import median_of_nine

HOT_SIGMA = 20.0  # standard deviations above the neighbours
HOT_COUNTS = 10.0  # electrons above them, too: where there are few, the normal law does not hold
HOT_RELIEF = 4.0  # times the relief of the neighbours: the peak of an atomic column stays below 3.5
DEAD_ELECTRONS = 100.0  # expected in all frames of a pixel that never changes: by chance once in e^100
MIN_PAIRS = 4  # of frames, for a pixel to be called hot or dead
FALSE_HITS = 1e-3  # X-ray hits that pure Poisson noise would show in a whole movie

_RING = [(y, x) for y in (-1, 0, 1) for x in (-1, 0, 1) if (y, x) != (0, 0)]


@dataclass(frozen=True)
class PixelStatistics:
    """Mean and noise of every pixel, from pairs of successive frames that are spread over a movie.

    The variance is that of the differences within pairs, so that a scene that changes slowly does not count.
    """

    mean: NDArray[np.float64]  # (height, width) [counts]
    steady: NDArray[
        np.float64
    ]  # the same without each pixel's brightest pair: without what occurs once [counts]
    variance: NDArray[np.float64]  # (height, width) [counts^2]
    n_pairs: int

    @functools.cached_property
    def typical(self) -> tuple[float, float]:
        """Mean and variance averaged over the field, without the brightest thousandth of the pixels."""
        used = max(1, math.ceil(0.999 * self.mean.size))
        kept = np.argpartition(self.mean, used - 1, axis=None)[:used]
        return float(self.mean.ravel()[kept].mean()), float(self.variance.ravel()[kept].mean())

    @property
    def counts_per_electron(self) -> float:
        """Variance over mean, at least 1: what one electron gives at most, if the noise is that of electrons."""
        mean, variance = self.typical
        return max(1.0, variance / mean) if mean > 0 else 1.0

    @property
    def counts_electrons(self) -> bool:
        """Whether the noise is that of single electrons, each one count."""
        mean, variance = self.typical
        return mean > 0 and 0.8 < variance / mean < 1.25


def hot_pixels(statistics: PixelStatistics) -> NDArray[np.bool_]:
    """Pixels far brighter than all around them, in the mean of some frames.

    Parameters
    ----------
    statistics : PixelStatistics

    Returns
    -------
    ndarray of bool, shape (height, width)
        True where the mean, without the brightest pair of frames, in which an X-ray may have hit, lies above the
        median of its 3 x 3 surroundings by 20 standard deviations of the noise of that mean and 10 electrons,
        and by 4 times the relief of its 8 neighbours (sixth largest less smallest, so that a pair of hot pixels
        does not hide itself). An optical image sampled with less than 2 pixels per resolved distance would be
        needed to pass the last one.
    """
    hot = np.zeros(statistics.mean.shape, dtype=bool)
    if statistics.n_pairs < MIN_PAIRS:
        return hot
    mean, n_frames = statistics.steady, 2 * (statistics.n_pairs - 1)
    excess = mean - median_of_nine(mean.astype(np.float32))
    noise = np.maximum(median_of_nine(statistics.variance.astype(np.float32)), statistics.typical[1])
    floor = HOT_COUNTS * statistics.counts_per_electron / n_frames
    rows, columns = np.nonzero(excess > HOT_SIGMA * np.sqrt(noise / n_frames) + floor)
    if rows.size:
        ring = np.sort(_neighbours(mean, rows, columns), axis=0)
        kept = excess[rows, columns] > HOT_RELIEF * (ring[5] - ring[0])
        hot[rows[kept], columns[kept]] = True
    return hot


def dead_pixels(statistics: PixelStatistics) -> NDArray[np.bool_]:
    """Pixels that never change although their neighbours do.

    Parameters
    ----------
    statistics : PixelStatistics

    Returns
    -------
    ndarray of bool, shape (height, width)
        True where two frames never differed, at least 6 of the 8 neighbours did, and the neighbours saw so
        many electrons that this is no chance. The edge of a region that is masked out does not count.
    """
    dead = np.zeros(statistics.mean.shape, dtype=bool)
    still = statistics.variance == 0
    if statistics.n_pairs < MIN_PAIRS or not 0 < still.sum() <= 0.05 * still.size:
        return dead
    rows, columns = np.nonzero(still)
    variance = _neighbours(statistics.variance, rows, columns)
    level = np.median(_neighbours(statistics.mean, rows, columns), axis=0)
    noise = np.median(variance, axis=0)
    # Counts of gain g: variance g^2 n, mean g n. Neither a gain nor a pedestal may feign electrons.
    with np.errstate(divide="ignore", invalid="ignore"):
        electrons = np.nan_to_num(np.minimum(noise, level**2 / noise))
    kept = ((variance > 0).sum(axis=0) >= 6) & (2 * statistics.n_pairs * electrons >= DEAD_ELECTRONS)
    dead[rows[kept], columns[kept]] = True
    return dead


def _neighbours(image: NDArray[Any], rows: NDArray[np.intp], columns: NDArray[np.intp]) -> NDArray[Any]:
    """The 8 neighbours of some pixels, mirrored at the edge, shape (8, n)."""
    padded = np.pad(image, 1, mode="reflect" if min(image.shape) > 1 else "edge")
    return np.stack([padded[rows + 1 + y, columns + 1 + x] for y, x in _RING])


def _brightest(image: NDArray[Any], radius: int) -> NDArray[Any]:
    """Maximum over the square around every pixel."""
    for axis in (0, 1):
        padded = np.pad(image, [(radius, radius) if a == axis else (0, 0) for a in (0, 1)], mode="edge")
        size = image.shape[axis]
        parts = (np.take(padded, range(k, k + size), axis=axis) for k in range(2 * radius + 1))
        image = functools.reduce(np.maximum, parts)
    return image


class Patches:
    """What takes the place of bad pixels: in every frame the value of a sound neighbour, each in its turn.

    A median or a mean would not be a count, or would be biased at few electrons; a neighbour has the right mean,
    the right noise, and stays a whole number. Only the nearest sound neighbours take part.

    Parameters
    ----------
    bad : ndarray of bool, shape (height, width)

    Raises
    ------
    ValueError
        If more than a tenth of the pixels are bad.
    """

    def __init__(self, bad: NDArray[np.bool_]) -> None:
        if bad.mean() > 0.1:
            raise ValueError(f"{100 * bad.mean():.0f} % of the pixels would be replaced by their neighbours")
        self._places = np.flatnonzero(bad)
        width = bad.shape[1]
        self._donors = [_nearest(bad, *divmod(int(place), width)) for place in self._places]

    def apply(self, frames: NDArray[Any], first: int) -> None:
        """Replace the bad pixels in successive frames, in place.

        Parameters
        ----------
        frames : ndarray, shape (n, height, width)
            C-contiguous.
        first : int
            Number of the first one in the movie; it says whose turn it is.
        """
        if not self._places.size:
            return
        flat = frames.reshape(len(frames), -1)
        for number, frame in enumerate(flat, start=first):
            donors = [around[number % len(around)] for around in self._donors]
            frame[self._places] = frame[donors]


def _nearest(bad: NDArray[np.bool_], row: int, column: int) -> list[int]:
    """Flat indices of the sound pixels in the smallest square around a pixel that has any."""
    height, width = bad.shape
    for radius in range(1, max(height, width)):
        rows = range(max(0, row - radius), min(height, row + radius + 1))
        columns = range(max(0, column - radius), min(width, column + radius + 1))
        found = [y * width + x for y in rows for x in columns if not bad[y, x]]
        if found:
            return found
    raise ValueError("no sound pixel is left")


class HitFinder:
    """Find X-ray hits: single pixels of single frames that are brighter than electrons can make them.

    A pixel's expectation is taken as twice the mean of the brightest place within 2 pixels, and twice its third
    brightest neighbour in the same frame, whichever is more, so that neither a moving object nor a flash over
    several pixels counts. A Poisson variable of mean ``m`` exceeds ``m + x`` with a probability of at most
    ``exp(-x^2 / (2 (m + x / 3)))`` (Bernstein's inequality); ``x`` is chosen so that noise alone shows less than
    0.001 hits in the whole movie. With ``g`` counts per electron, ``m`` and ``x`` are in units of ``g``.

    Parameters
    ----------
    statistics : PixelStatistics
    n_pixels : int
        Of the whole movie, all frames together.
    apart : ndarray of bool, shape (height, width)
        Pixels that are not looked at: hot ones that are kept.
    """

    def __init__(self, statistics: PixelStatistics, n_pixels: int, apart: NDArray[np.bool_]) -> None:
        self._gain = statistics.counts_per_electron
        self._exponent = math.log(n_pixels / FALSE_HITS)
        level = _brightest(median_of_nine(statistics.mean.astype(np.float32)), 2)
        self._limit = self._bound(np.maximum(level, np.float32(statistics.typical[0])))
        self._limit[apart] = np.inf
        self._lowest = float(self._limit.min())

    def _bound(self, level: NDArray[Any]) -> NDArray[Any]:
        """The largest count that electrons can make where their mean is ``level`` [counts]."""
        expected, third = 2 * np.maximum(level, 0) / self._gain, self._exponent / 3
        excess = third + np.sqrt(third**2 + 2 * self._exponent * expected)
        return np.asarray(self._gain * (expected + excess))

    def find(self, frame: NDArray[Any]) -> NDArray[np.intp]:
        """Row and column of the hits in a frame (height, width), shape (n, 2)."""
        none = np.empty((0, 2), dtype=np.intp)
        if not float(frame.max()) > self._lowest:
            return none
        rows, columns = np.nonzero(frame > self._limit)
        if not rows.size:
            return none
        ring = np.sort(_neighbours(frame, rows, columns), axis=0)
        alone = frame[rows, columns] > self._bound(ring[5].astype(np.float64))
        return np.stack([rows[alone], columns[alone]], axis=1)
