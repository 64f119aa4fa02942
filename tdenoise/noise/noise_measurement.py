"""Measure the noise of a movie, a few frames at a time; see `noise` for what follows from it."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.ndimage import uniform_filter

from .median import median_of_nine
from .noise import FEWEST_BLOCKS, REACH, Array, Correlation, NoiseStatistics

BLOCK = 16  # pixels on a side whose sums count as one independent sample
BLOCK_FRAMES = 8  # frames in it, an even number
_LAGS = [(y, x) for y in range(REACH + 1) for x in range(-REACH, REACH + 1) if (y, x) > (0, 0)]
_N, _SUM, _N_E, _E, _N_D, _D, _SIGNAL, _N_T1, _T1, _N_T2, _T2, _FRACTIONS = range(12)
_LAG = slice(12, 12 + len(_LAGS))
_TRANSFER = slice(_LAG.stop, _LAG.stop + 6)
_SIZE = _TRANSFER.stop
_UPPER = np.triu_indices(_SIZE)


class NoiseAccumulator:
    """Collect `NoiseStatistics` from groups of successive frames, a few at a time.

    Every statistic is a ratio of sums over the movie. Beside the sums of all blocks of pixels stand the sums of
    the products of any two of them, from which the scatter of every statistic between blocks follows (the delta
    method), so the state has a fixed size and those of two parts of a movie simply add up.

    Examples
    --------
    >>> accumulator = NoiseAccumulator()
    >>> accumulator.add(np.random.default_rng(0).poisson(1.0, (4, 64, 64)))
    >>> abs(accumulator.result().fano - 1) < 0.1
    True
    """

    def __init__(self) -> None:
        self._n_blocks = 0
        self._sums = np.zeros(_SIZE)
        self._products = np.zeros((_SIZE, _SIZE))

    def add(self, frames: Array, levels: Array | None = None) -> None:
        """Add successive frames, shape (n, height, width) [counts]; fewer than three say nothing.

        Pixels that are far brighter than their neighbours are left out: two of them can be all of the variance.

        Parameters
        ----------
        frames : ndarray, shape (n, height, width)
            [counts]
        levels : ndarray, shape (n, 1, 1) or (n, height, width), optional
            Brightness of the frames, which is divided out; see `tdenoise.noise.brightness`. They are then measured
            at their harmonic mean, at which the variance of counted electrons equals the mean.
        """
        n_frames, height, width = np.shape(frames)
        if n_frames < 3:
            return
        n_rows, n_columns = -(-height // BLOCK), -(-width // BLOCK)
        padded = (n_rows * BLOCK + REACH, n_columns * BLOCK + REACH)
        movie, good = np.zeros((n_frames, *padded), np.float32), np.zeros(padded, np.float32)
        field = movie[:, :height, :width]
        field[...] = frames
        good[:height, :width] = 1
        good[tuple(find_hot_pixels(field).T)] = 0
        if frames.dtype.kind not in "iub":
            self._sums[_FRACTIONS] += int((field != np.round(field)).sum())
        if levels is not None:
            field *= (1 / (levels * np.mean(1 / levels))).astype(np.float32)
        n_good = float(good.sum(dtype=np.float64))
        level = np.float32(movie.sum(axis=0, dtype=np.float64)[good > 0].sum() / (n_good * n_frames))
        movie -= level
        movie *= good
        everything = movie.sum(axis=0)
        # Groups overlap by the two frames that a second difference needs before it.
        for first in range(0, n_frames - 2, BLOCK_FRAMES):
            group = movie[first : first + BLOCK_FRAMES + 2]
            last = first + BLOCK_FRAMES + 2 >= n_frames
            self._add_group(group, len(group) if last else BLOCK_FRAMES, good, level, everything, n_frames)

    def _add_group(
        self, frames: Array, n_own: int, good: Array, level: np.float32, everything: Array, n_frames: int
    ) -> None:
        """Block sums of one group of frames, counted from ``level`` and padded with zeros."""
        height, width = int(good.any(axis=1).sum()), int(good.any(axis=0).sum())
        blocks = good.shape[0] // BLOCK, good.shape[1] // BLOCK

        def in_blocks(values: Array, y: int = 0, x: int = 0) -> Array:
            return _in_blocks(values, blocks, y, x)

        d = np.diff(frames, axis=0)
        if good.sum() >= BLOCK**2:  # of fewer pixels, the mean is noise itself
            # The dose may differ from frame to frame: a difference has mean zero in every one.
            d -= (d.sum(axis=(1, 2), keepdims=True) / good.sum()) * good
        # Second differences, in which steady motion of the scene cancels too. Those in between would tell next to
        # nothing more (the error falls by 3 %), for they are made of the same frames.
        e = np.diff(d, axis=0)[::2]
        one = in_blocks(good[None])
        area = _product(one, one)
        s = np.zeros((len(area), _SIZE))
        s[:, _N] = n_own * area
        s[:, _SUM] = _product(one, in_blocks(frames[:n_own].sum(axis=0)[None])) + float(level) * s[:, _N]
        s[:, _N_E], s[:, _E] = len(e) * area, _product(in_blocks(e), in_blocks(e))
        s[:, _N_D], s[:, _D] = len(d) * area, _product(in_blocks(d), in_blocks(d))
        s[:, _SIGNAL] = _product(in_blocks(frames[1:]), in_blocks(frames[:-1]))
        s[:, _N_T1], s[:, _T1] = (len(d) - 1) * area, _product(in_blocks(d[1:]), in_blocks(d[:-1]))
        s[:, _N_T2], s[:, _T2] = max(0, len(d) - 2) * area, _product(in_blocks(d[2:]), in_blocks(d[:-2]))
        for column, (y, x) in enumerate(_LAGS, _LAG.start):
            if y < height and abs(x) < width:
                pairs = height * width / ((height - y) * (width - abs(x)))
                s[:, column] = pairs * _product(in_blocks(e, 0, max(-x, 0)), in_blocks(e, y, max(x, 0)))
        if n_frames > 3:
            for terms in _transfer(frames, e, good, level, everything, n_frames - 3):
                s[:, _TRANSFER] += terms
        self._n_blocks += len(s)
        self._sums += s.sum(axis=0)
        self._products += s.T @ s

    def sums(self) -> list[float]:
        """The running sums, to be added to those of other parts of the movie."""
        return [float(self._n_blocks), *self._sums.tolist(), *self._products[_UPPER].tolist()]

    def merge(self, sums: list[float]) -> None:
        """Add the sums of another part."""
        self._n_blocks += int(sums[0])
        self._sums += np.asarray(sums[1 : 1 + _SIZE])
        upper = np.zeros((_SIZE, _SIZE))
        upper[_UPPER] = sums[1 + _SIZE :]
        self._products += upper + np.triu(upper, 1).T

    def result(self) -> NoiseStatistics:
        """Statistics of everything added so far.

        Raises
        ------
        ValueError
            If nothing was added.
        """
        sums = self._sums
        if sums[_N_E] == 0:
            raise ValueError("no three successive frames were added")
        with np.errstate(divide="ignore", invalid="ignore"):
            values, errors = self._with_errors()
        names = ("mean", "variance", "fano", "signal", "t1", "t2", "gain", "read")
        value, error = (dict(zip(names, v, strict=False)) for v in (values, errors))
        # Without structure there is no slope to fit.
        seen = value["signal"] > 0 and np.isfinite(error["gain"])
        correlations = [Correlation(t, 0, 0, value[f"t{t}"], error[f"t{t}"]) for t in (1, 2)]
        lags = zip(_LAGS, values[len(names) :], errors[len(names) :], strict=True)
        correlations += [Correlation(0, y, x, float(v), float(w)) for (y, x), v, w in lags]
        nearest = {(c.y, c.x): c.value for c in correlations if c.t == 0}
        nan = float("nan")
        return NoiseStatistics(
            mean=value["mean"],
            noise_variance=value["variance"],
            signal_variance=value["signal"],
            fano=value["fano"] if value["mean"] > 0 else nan,
            correlation_x=nearest[0, 1],
            correlation_y=nearest[1, 0],
            correlation_t=value["t1"],
            n_pixels=int(sums[_N_E]),
            fano_error=error["fano"] if value["mean"] > 0 else nan,
            gain=value["gain"] if seen else nan,
            gain_error=error["gain"] if seen else nan,
            read_variance=value["read"] if seen else nan,
            read_variance_error=error["read"] if seen else nan,
            whole=bool(sums[_FRACTIONS] == 0),
            correlations=tuple(correlations),
        )

    def _with_errors(self) -> tuple[list[float], list[float]]:
        """All ratios, and half the widths of their 95 % intervals."""
        sums = self._sums
        values = _ratios(sums)
        # The derivative of a ratio by a complex step is exact to rounding.
        step = 1e-30
        slopes = np.stack([_ratios(sums + 1j * step * unit).imag / step for unit in np.eye(_SIZE)], axis=1)
        # Ratios do not change when all sums grow alike, so the mean over blocks of slope * sums is zero.
        variances = np.einsum("ij,jk,ik->i", slopes, self._products, slopes)
        free = self._n_blocks - 1
        if free < FEWEST_BLOCKS:
            return values.tolist(), [float("inf")] * len(values)
        student = 1.96 + 2.4 / free + 2.8 / free**2
        return values.tolist(), (student * np.sqrt(variances * (1 + 1 / free))).tolist()


def _in_blocks(values: Array, blocks: tuple[int, int], y: int = 0, x: int = 0) -> Array:
    """A view of frames, from row y and column x on, as (frame, block, row, block, column)."""
    n_rows, n_columns = blocks
    shifted = values[:, y : y + n_rows * BLOCK, x : x + n_columns * BLOCK]
    along_t, along_y, along_x = shifted.strides
    return np.lib.stride_tricks.as_strided(
        shifted,
        (len(values), n_rows, BLOCK, n_columns, BLOCK),
        (along_t, BLOCK * along_y, along_y, BLOCK * along_x, along_x),
        writeable=False,
    )


def _product(a: Array, b: Array) -> Array:
    """Sum of the products of two views, for every block."""
    summed: Array = np.einsum("taibj,taibj->ab", a, b)
    return summed.astype(np.float64).ravel()


def _transfer(
    frames: Array, e: Array, good: Array, level: np.float32, everything: Array, others: int
) -> Iterator[Array]:
    """Photon transfer, per second difference: its variance v over 6 against the mean m of its three frames.

    By way of an instrument z from all other frames. A fit of v on m itself would be wrong, for both hold the same
    noise; that of z is another.
    """
    blocks = good.shape[0] // BLOCK, good.shape[1] // BLOCK
    one = _in_blocks(good[None], blocks)
    area = _product(one, one)
    for k, (a, b, c) in enumerate(zip(frames[0::2], frames[1::2], frames[2::2], strict=False)):
        z = uniform_filter(everything - a - b - c, 3, mode="constant") * (good / np.float32(others))
        parts = (z, (a + 4 * b + c) / 6 + level * good, e[k] ** 2 / 6)
        z, m, v = (_in_blocks(part[None], blocks) for part in parts)
        terms = (
            area,
            _product(one, z),
            _product(one, m),
            _product(one, v),
            _product(z, m),
            _product(z, v),
        )
        yield np.stack(terms, axis=1)


def _ratios(s: Array) -> Array:
    """The statistics from the sums: mean, variance, fano, signal, t1, t2, gain, read variance, and the lags."""
    mean, variance = s[_SUM] / s[_N], s[_E] / s[_N_E] / 6
    per_change = s[_D] / s[_N_D]
    # Successive differences share a frame, which white noise shows as -1/2. With c1 and c2 the noise's
    # correlations in time, those of the differences are (2 c1 - 1 - c2) and (2 c2 - c1) over 2 (1 - c1).
    one = s[_T1] / s[_N_T1] / per_change
    if s[_N_T2] != 0:
        two = s[_T2] / s[_N_T2] / per_change
        t1 = (1 + 2 * one + two) / (1.5 + 2 * one + two)
        t2 = t1 / 2 + two * (1 - t1)
    else:
        t1, t2 = (1 + 2 * one) / (2 + 2 * one), np.nan * one
    n, z, m, v, zm, zv = s[_TRANSFER]
    gain = (zv - z * v / n) / (zm - z * m / n)
    read = (v - gain * m) / n
    return np.array(
        [mean, variance, variance / mean, s[_SIGNAL] / s[_N_D], t1, t2, gain, read, *(s[_LAG] / s[_E])]
    )


def find_hot_pixels(frames: NDArray[Any]) -> NDArray[np.intp]:
    """Pixels that are far brighter than their neighbours in the mean of some frames.

    Parameters
    ----------
    frames : ndarray, shape (n, height, width)
        Raw frames [counts]; some ten or more.

    Returns
    -------
    ndarray, shape (n_hot, 2)
        Row and column of each.
    """
    mean = frames.mean(axis=0, dtype=np.float64)
    excess = mean - median_of_nine(mean)
    # A robust standard deviation, so that the hot pixels do not hide themselves.
    spread = max(1.4826 * float(np.median(np.abs(excess))), 1e-9 * float(np.abs(mean).max()))
    return np.argwhere(excess > 20 * spread) if spread > 0 else np.empty((0, 2), dtype=np.intp)
