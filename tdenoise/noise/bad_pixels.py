"""Pixels that do not show the scene: hot, dead and lost ones, and hits of X-rays; and what takes their place."""

from __future__ import annotations

import functools
import math
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.ndimage import distance_transform_cdt

from .median import median_of_nine

HOT_SIGMA = 20.0  # standard deviations above the neighbours
HOT_COUNTS = 10.0  # electrons above them, too: where there are few, the normal law does not hold
HOT_RELIEF = 4.0  # times the relief of the neighbours: the peak of an atomic column stays below 3.5
DEAD_ELECTRONS = 60.0  # expected in all frames of a pixel that never changes: by chance once in e^60
DEAD_LINES = (
    4  # rows or columns side by side that are taken for dead ones; more are a part that was masked out
)
LARGEST_COUNT = 1e30  # what lies beyond it is no count, whatever the unit
CLIPPED = 20  # pixels whose largest count is the same, and 3 times as many as reach the one below: counts are cut off
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
    lost: NDArray[np.bool_] | None = (
        None  # (height, width); pixels without a count in any frame, see `is_lost`
    )
    peak: NDArray[Any] | None = None  # (height, width); the largest count in any frame

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


def is_lost(frame: NDArray[Any]) -> NDArray[np.bool_]:
    """Where a frame holds no count: NaN, Inf, or an end of its type, which cameras mark such pixels with.

    The end is the largest value, and of signed numbers also the smallest; the 0 of unsigned ones is a count.

    Parameters
    ----------
    frame : ndarray
        As the camera stored it.

    Examples
    --------
    >>> is_lost(np.array([3.0, np.nan, 3e38])), is_lost(np.array([3, 65535], dtype=np.uint16))
    (array([False,  True,  True]), array([False,  True]))
    """
    if frame.dtype.kind == "f":
        return np.asarray(~(np.abs(frame) < min(LARGEST_COUNT, float(np.finfo(frame.dtype).max))))
    limits = np.iinfo(frame.dtype)
    lost = frame == limits.max
    return np.asarray(lost | (frame == limits.min) if limits.min < 0 else lost)


def lost_in(frame: NDArray[Any]) -> NDArray[np.bool_] | None:
    """As `is_lost`; None where every pixel holds a count, which is faster to see."""
    low, high = frame.min(), frame.max()
    return is_lost(frame) if is_lost(np.array([low, high])).any() else None


def single_pixels(mask: NDArray[np.bool_]) -> NDArray[np.bool_]:
    """The pixels of a mask (height, width) that touch no other one of it."""
    single = np.zeros(mask.shape, dtype=bool)
    rows, columns = np.nonzero(mask)
    kept = ~_neighbours(mask, rows, columns).any(axis=0)
    single[rows[kept], columns[kept]] = True
    return single


def clipping(statistics: PixelStatistics, apart: NDArray[np.bool_]) -> tuple[float, int] | None:
    """Value at which the counts are cut off, and how many pixels reach it; None if they are not.

    Parameters
    ----------
    statistics : PixelStatistics
        Of frames as the camera stored them.
    apart : ndarray of bool, shape (height, width)
        Pixels that do not count: bad ones.
    """
    if statistics.peak is None or (peaks := statistics.peak[~apart]).size == 0:
        return None
    top = peaks.max()
    below = peaks[peaks < top]
    # Where a count is 0 or 1 there is nothing to compare with.
    if not top > 1:
        return None
    if below.size == 0:  # where all are cut off; in a movie that never changes nothing is
        changes = bool((statistics.variance[~apart] > 0).any())
        return (float(top), peaks.size) if changes and peaks.size >= CLIPPED else None
    n_top, n_below = int((peaks == top).sum()), int((below == below.max()).sum())
    return (float(top), n_top) if n_top >= CLIPPED and n_top > 3 * n_below else None


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
    excess = mean - _median(mean)
    noise = np.maximum(_median(statistics.variance), statistics.typical[1])
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
        many electrons that this is no chance; and in `dead_lines`. The edge of a region that is masked out does not
        count.
    """
    dead = dead_lines(statistics)
    still = (statistics.variance == 0) & ~dead
    if statistics.n_pairs < MIN_PAIRS or not 0 < still.sum() <= 0.05 * still.size:
        return dead
    rows, columns = np.nonzero(still)
    moving = _neighbours(~still, rows, columns).sum(axis=0)
    level = np.median(_neighbours(statistics.mean, rows, columns), axis=0)
    noise = np.median(_neighbours(statistics.variance, rows, columns), axis=0)
    kept = (moving >= 6) & (2 * statistics.n_pairs * _electrons(level, noise) >= DEAD_ELECTRONS)
    dead[rows[kept], columns[kept]] = True
    return dead


def dead_lines(statistics: PixelStatistics) -> NDArray[np.bool_]:
    """Whole rows and columns that never change although those beside them do.

    Parameters
    ----------
    statistics : PixelStatistics

    Returns
    -------
    ndarray of bool, shape (height, width)
        True in at most `DEAD_LINES` rows or columns side by side, where the lines next to them saw so many electrons
        that this is no chance.
    """
    dead = np.zeros(statistics.mean.shape, dtype=bool)
    if statistics.n_pairs < MIN_PAIRS:
        return dead
    still = statistics.variance == 0
    for axis in (0, 1):
        lines = np.moveaxis(dead, axis, 0)
        share = still.mean(axis=1 - axis)
        electrons = still.shape[1 - axis] * _electrons(
            statistics.mean.mean(axis=1 - axis), statistics.variance.mean(axis=1 - axis)
        )
        enough = 2 * statistics.n_pairs * electrons >= DEAD_ELECTRONS
        first = 0
        for line in np.flatnonzero(share < 1).tolist() + [len(share)]:
            beside = [enough[n] for n in (first - 1, line) if 0 <= n < len(share)]
            if 0 < line - first <= DEAD_LINES and beside and all(beside):
                lines[first:line] = True
            first = line + 1
    return dead


def _electrons(level: NDArray[np.float64], noise: NDArray[np.float64]) -> NDArray[np.float64]:
    """Electrons in a frame, from mean and variance of the counts.

    Of gain g: variance g^2 n, mean g n. Neither a gain nor a pedestal may feign electrons.
    """
    with np.errstate(divide="ignore", invalid="ignore"):
        return np.asarray(np.nan_to_num(np.minimum(noise, level**2 / noise), posinf=0.0))


def _median(image: NDArray[np.float64]) -> NDArray[Any]:
    """Median of 3 x 3 pixels in float32, which is fast, or in float64 where float32 cannot hold the values."""
    fits = float(np.abs(image).max()) < 1e37
    return median_of_nine(image.astype(np.float32) if fits else image)


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
    lost : ndarray of bool, same shape, optional
        Those of them that hold no count at all, so that there is no doubt about them.

    Raises
    ------
    ValueError
        If more than a tenth of the pixels are bad, those apart that are lost; or all.
    """

    def __init__(self, bad: NDArray[np.bool_], lost: NDArray[np.bool_] | None = None) -> None:
        doubtful = bad if lost is None else bad & ~lost
        if doubtful.mean() > 0.1:
            raise ValueError(
                f"{100 * doubtful.mean():.0f} % of the pixels would be replaced by their neighbours"
            )
        if bad.all():
            raise ValueError("no sound pixel is left")
        self._places = np.flatnonzero(bad)
        self._donors, self._first, self._n = _donors(bad, self._places)

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
            frame[self._places] = frame[self._donors[self._first + number % self._n]]


Indices = NDArray[np.intp]


def _donors(bad: NDArray[np.bool_], places: Indices) -> tuple[Indices, Indices, Indices]:
    """Flat indices of the sound pixels around some bad ones, and where those of each begin, and how many they are.

    They are those in the smallest square around a bad pixel that has any, up to 5 x 5 pixels; of what is further away,
    the nearest.
    """
    found: list[Indices] = [np.empty(0, np.intp)]
    first, n, total = np.zeros(len(places), np.intp), np.zeros(len(places), np.intp), 0
    left = np.arange(len(places))
    for radius in (1, 2):
        steps = range(-radius, radius + 1)
        square = np.array([(y, x) for y in steps for x in steps], dtype=np.intp)
        rows, columns = (
            at[:, None] + step
            for at, step in zip(np.divmod(places[left], bad.shape[1]), square.T, strict=True)
        )
        inside = (rows >= 0) & (rows < bad.shape[0]) & (columns >= 0) & (columns < bad.shape[1])
        flat = np.where(inside, rows * bad.shape[1] + columns, 0)
        sound = inside & ~bad.ravel()[flat]
        count = sound.sum(axis=1)
        n[left], first[left] = count, total + np.cumsum(count) - count
        found.append(flat[sound])
        total += int(count.sum())
        left = left[count == 0]
    if left.size:
        # In the middle of a region that is lost there is no choice.
        nearest = distance_transform_cdt(bad, "chessboard", return_distances=False, return_indices=True)
        rows, columns = (axis.ravel()[places[left]] for axis in nearest)
        n[left], first[left] = 1, total + np.arange(left.size)
        found.append(rows.astype(np.intp) * bad.shape[1] + columns)
    return np.concatenate(found), first, n


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
        level = _brightest(_median(statistics.mean), 2)
        self._limit = self._bound(np.maximum(level, level.dtype.type(statistics.typical[0])))
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
        # What is no count is told with its frame. The bound itself has no room in float16.
        rows, columns = np.nonzero((frame > self._limit) & (frame < np.float64(LARGEST_COUNT)))
        if not rows.size:
            return none
        ring = np.sort(_neighbours(frame, rows, columns), axis=0)
        alone = frame[rows, columns] > self._bound(ring[5].astype(np.float64))
        return np.stack([rows[alone], columns[alone]], axis=1)
