"""How good is a denoised movie: with ground truth, and without it.

Nothing here needs a whole movie at once. Functions work on a chunk of frames and return terms or sums per
block, which are concatenated and given to a bootstrap; the small accumulator classes take chunks with
``add`` and answer with ``result``.

Without truth, the mean squared error is estimated without bias from the counts themselves, because their
noise is independent of a prediction that never saw them [1]_. With truth, movies are in units of the clean
movie (vacuum = 1): divide denoised counts by the dose first.

References
----------
.. [1] Marcos-Morales et al., "Evaluating unsupervised denoising requires unsupervised metrics", ICML 2023.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage, special

Array = NDArray[Any]


class Interval(NamedTuple):
    """An estimate with its confidence limits (NaN where fewer than two blocks leave them undefined)."""

    estimate: float
    low: float
    high: float


# Sums per block, and intervals from them ---------------------------------------------------------------


def block_sums(
    values: Array, block: tuple[int, int, int] = (8, 32, 32), mask: Array | None = None
) -> tuple[Array, Array]:
    """Sum values over blocks of space-time, the independent units of a bootstrap.

    Pixels of one block share structure and errors, so a bootstrap over pixels would be far too confident.

    Parameters
    ----------
    values : ndarray, shape (n_frames, height, width)
        One term per pixel. Chunks of a longer movie should be whole multiples of ``block[0]`` frames.
    block : tuple of int
        Frames, rows and columns of a block; the last ones may be smaller.
    mask : ndarray of bool, shape (height, width) or that of values, optional
        Pixels to use.

    Returns
    -------
    sums, counts : ndarray, shape (n_blocks,)
        Sum of the values and number of pixels. Concatenate those of successive chunks.
    """
    used = np.broadcast_to(True if mask is None else mask, values.shape)
    sums, counts = np.where(used, values, 0), used
    for axis, step in enumerate(block):
        starts = np.arange(0, values.shape[axis], step)
        sums = np.add.reduceat(sums, starts, axis, dtype=np.float64)
        counts = np.add.reduceat(counts, starts, axis, dtype=np.int64)
    return sums.ravel(), counts.ravel()


def bootstrap_interval(
    sums: Array, counts: Array, n_draws: int = 1000, seed: int = 0, level: float = 0.95
) -> Interval:
    """Mean over pixels, with a percentile interval from resampling blocks with replacement.

    From few blocks, resampling alone gives too narrow an interval: it is widened by Student's correction.

    Parameters
    ----------
    sums, counts : ndarray, shape (n_blocks,)
        From `block_sums`. Any pair of sums per block will do: the estimate is the ratio of their totals.
    n_draws, seed, level
        Number of resamples, their seed, and the coverage.

    Returns
    -------
    Interval
    """
    sums, counts = (np.asarray(a, np.float64)[np.asarray(counts) != 0] for a in (sums, counts))
    n_blocks = len(sums)
    if n_blocks == 0:
        raise ValueError("no block holds a pixel: the mask is empty, or there are no frames.")
    estimate = float(sums.sum() / counts.sum())
    if n_blocks == 1:
        return Interval(estimate, math.nan, math.nan)
    rng = np.random.default_rng(seed)
    draws = np.empty(n_draws)
    for i in range(n_draws):  # one at a time: all indices at once would not fit for a long movie
        chosen = rng.integers(n_blocks, size=n_blocks)
        draws[i] = sums[chosen].sum() / counts[chosen].sum()
    upper = (1 + level) / 2
    student = special.stdtrit(n_blocks - 1, upper) / special.ndtri(upper)
    widening = student * math.sqrt(n_blocks / (n_blocks - 1))
    low, high = estimate + widening * (np.quantile(draws, [1 - upper, upper]) - estimate)
    return Interval(estimate, float(low), float(high))


def bootstrap_ratio(
    sums_a: Array, sums_b: Array, n_draws: int = 1000, seed: int = 0, level: float = 0.95
) -> Interval:
    """Ratio a / b of two methods' errors on the same blocks, resampled together.

    Unbiased errors of good models are negative in many blocks; where their total may be near zero, the
    ratio means nothing and the difference should be reported.
    """
    return bootstrap_interval(sums_a, sums_b, n_draws, seed, level)


# Error without ground truth -----------------------------------------------------------------------------


def unbiased_mse_terms(
    counts: Array, denoised: Array, gain: float = 1.0, read_variance: float = 0.0
) -> Array:
    """Terms whose mean is the mean squared error of a blind prediction, for a known noise law.

    ``(y - f)**2 - gain * y - read_variance``: the first term exceeds the squared error by the variance of
    the noise, and gain * y is that variance, on average, for Poisson counts.

    Parameters
    ----------
    counts : ndarray
        What the detector gave, y.
    denoised : ndarray, same shape
        Prediction f [counts] that never saw the pixel it predicts.
    gain : float
        Counts per electron.
    read_variance : float
        Variance of the signal-independent noise [counts squared].

    Returns
    -------
    ndarray of float64, same shape
        Single terms are often negative; only their mean over many pixels means something.
    """
    y = np.asarray(counts, np.float64)
    terms: Array = (y - denoised) ** 2 - gain * y - read_variance
    return terms


def umse_terms(counts: Array, denoised: Array, offsets: tuple[int, int, int] = (1, 2, 3)) -> Array:
    """Terms of the uMSE of Marcos-Morales et al. (2023), with frames of the movie as noisy references.

    ``(a - f)**2 - (b - c)**2 / 2``, for any independent noise. It takes the scene of the frames used to be
    the same: motion between b and c makes the result too small, between a and f too large.

    Parameters
    ----------
    counts : ndarray, shape (n_frames, height, width)
    denoised : ndarray, same shape
        Prediction f of each frame [counts].
    offsets : tuple of int
        Frames of a, b and c relative to the predicted frame. The prediction must not have seen a. The
        published multiple-image variant, for a denoiser of single frames, is (1, 2, 3).

    Returns
    -------
    ndarray of float64, shape (n_frames - span, height, width)
        For the frames that have all three references; span is 3 for (1, 2, 3).
    """
    first, stop = max(0, -min(offsets)), len(counts) - max(0, max(offsets))
    if stop <= first:
        raise ValueError(f"{len(counts)} frames are too few for references at {offsets}.")
    a, b, c = (np.asarray(counts[first + o : stop + o], np.float64) for o in offsets)
    terms: Array = (a - denoised[first:stop]) ** 2 - (b - c) ** 2 / 2
    return terms


def temporal_mse_terms(counts: Array, denoised: Array) -> Array:
    """Like `unbiased_mse_terms`, with the noise taken from the two neighbouring frames.

    ``(y[t] - f[t])**2 - (y[t+1] - y[t-1])**2 / 2`` holds for any noise that is independent between frames.
    Motion makes it too small. Chunks of a longer movie must overlap by two frames.

    Returns
    -------
    ndarray of float64, shape (n_frames - 2, height, width)
        For all frames but the first and the last.
    """
    return umse_terms(counts, denoised, (0, 1, -1))


def psnr(mse: float, peak: float) -> float:
    """Peak signal-to-noise ratio [dB]: ``10 log10(peak**2 / mse)``.

    Give an unbiased error (uMSE) to get the uPSNR. The peak is a fixed property of the clean signal, the
    same for all methods, never a maximum of noisy frames. An error of zero or below gives infinity:
    "not resolvable" for an unbiased estimate. A peak of zero (a constant truth) gives NaN.

    Examples
    --------
    >>> psnr(0.01, peak=1.0)
    20.0
    """
    if mse <= 0:
        return math.inf
    return 10 * math.log10(peak**2 / mse) if peak else math.nan


# Accumulators ---------------------------------------------------------------------------------------------


class Moments:
    """Mean and variance of values that arrive in chunks, stable for any number of them (Chan et al. 1979).

    ``Moments().add(denoised[:, vacuum_mask] / dose)`` over all chunks: its ``std`` is the vacuum standard
    deviation, in which noise left and structure invented both show.
    """

    def __init__(self) -> None:
        self.count, self.mean, self._squares = 0, math.nan, 0.0

    def add(self, values: Array) -> Moments:
        """Take in a chunk of any shape."""
        n = values.size
        if n:
            mean = float(values.mean(dtype=np.float64))
            delta = mean - self.mean if self.count else 0.0
            total = self.count + n
            self._squares += float(np.square(values - mean, dtype=np.float64).sum())
            self._squares += delta**2 * self.count * n / total
            self.mean = self.mean + delta * n / total if self.count else mean
            self.count = total
        return self

    @property
    def variance(self) -> float:
        """Population variance; NaN before the first value."""
        return self._squares / self.count if self.count else math.nan

    @property
    def std(self) -> float:
        """Population standard deviation."""
        return math.sqrt(self.variance)


def vacuum_std(denoised: Array, dose: float, vacuum_mask: Array) -> float:
    """Standard deviation of a denoised movie in vacuum, as a share of the vacuum level.

    Parameters
    ----------
    denoised : ndarray, shape (n_frames, height, width)
        [counts]. For a movie larger than memory use `Moments` chunk by chunk.
    dose : float
        Counts per pixel and frame in vacuum.
    vacuum_mask : ndarray of bool, shape (height, width)
    """
    total = Moments()
    for frame in denoised:
        total.add(frame[vacuum_mask] / dose)
    return total.std


@dataclass(frozen=True)
class TruthError:
    """Errors against the truth, overall (``"all"``) and inside masks."""

    peak: float  # max - min of the whole clean movie
    mse: dict[str, float]
    psnr: dict[str, float]  # dB
    pixels: dict[str, int]


class TruthErrorSums:
    """Squared error against a clean movie, overall and inside masks, chunk by chunk.

    Parameters
    ----------
    masks : mapping of str to ndarray of bool, shape (height, width), optional
        Regions to report apart, such as ``{"particle": particle_mask}``.
    """

    def __init__(self, masks: Mapping[str, Array] | None = None) -> None:
        self._masks = dict(masks or {})
        self._sums = dict.fromkeys(["all", *self._masks], 0.0)
        self._pixels = dict.fromkeys(self._sums, 0)
        self._low, self._high = math.inf, -math.inf

    def add(self, denoised: Array, clean: Array) -> None:
        """Take in successive frames, shape (n, height, width), both with vacuum = 1."""
        clean = np.asarray(clean, np.float64)
        squares = ((denoised - clean) ** 2).sum(axis=0)
        for name in self._sums:
            chosen = squares if name == "all" else squares[self._masks[name]]
            self._sums[name] += float(chosen.sum())
            self._pixels[name] += chosen.size * len(clean)
        self._low, self._high = min(self._low, float(clean.min())), max(self._high, float(clean.max()))

    def result(self) -> TruthError:
        """Errors so far; masks without pixels are left out."""
        peak = self._high - self._low
        mse = {name: total / self._pixels[name] for name, total in self._sums.items() if self._pixels[name]}
        return TruthError(
            peak, mse, {name: psnr(error, peak) for name, error in mse.items()}, self._pixels.copy()
        )


# Baseline -------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class GaussianBaseline:
    """The best that Gaussian smoothing can do, with widths chosen by the truth."""

    sigma_t: float  # frames
    sigma_xy: float  # pixels
    psnr: float  # dB, of the whole movie
    filtered: Array  # (n_frames, height, width) float32, vacuum = 1


def best_gaussian(counts: Array, clean: Array, dose: float, search_frames: int = 24) -> GaussianBaseline:
    """Smooth in space and time with the Gaussian of highest PSNR: the bar that a denoiser must clear.

    The truth chooses the widths, which flatters the filter. The search evaluates some frames only; these
    are exact, as the temporal filter is a matrix of one row per frame.

    Parameters
    ----------
    counts : ndarray, shape (n_frames, height, width)
        Raw frames [counts].
    clean : ndarray, same shape
        The truth, vacuum = 1.
    dose : float
        Counts per pixel and frame in vacuum.
    search_frames : int
        Number of evenly spaced frames on which widths are compared.

    Returns
    -------
    GaussianBaseline
    """
    noisy = np.asarray(counts, np.float32) / np.float32(dose)
    n_frames = len(noisy)
    frames = np.unique(np.linspace(0, n_frames - 1, search_frames).round().astype(int))
    target = np.asarray(clean[frames], np.float32)

    @functools.cache
    def smooth_in_time(sigma_t: float) -> Array:
        response = ndimage.gaussian_filter1d(np.eye(n_frames, dtype=np.float32), sigma_t, axis=0)
        return np.tensordot(response[frames], noisy, 1)

    @functools.cache
    def error(log_t: float, log_xy: float) -> float:
        smooth = ndimage.gaussian_filter(smooth_in_time(2**log_t), (0, 2**log_xy, 2**log_xy))
        return float(np.mean((smooth - target) ** 2, dtype=np.float64))

    # Widths as powers of two: steps of an octave, then finer around the best.
    octaves_t = np.arange(-2, math.ceil(math.log2(max(2, n_frames))) + 1)
    candidates = [(float(t), float(xy)) for t in octaves_t for xy in np.arange(-2, 4)]
    best = min(candidates, key=lambda c: error(*c))
    for step in (0.5, 0.25, 0.125):
        smooth_in_time.cache_clear()
        around = [(best[0] + i * step, best[1] + j * step) for i in (-1, 0, 1) for j in (-1, 0, 1)]
        best = min(around, key=lambda c: error(*c))

    sigma_t, sigma_xy = 2 ** best[0], 2 ** best[1]
    filtered = ndimage.gaussian_filter(noisy, (sigma_t, sigma_xy, sigma_xy))
    total = TruthErrorSums()
    for frame, true_frame in zip(filtered, clean, strict=True):
        total.add(frame[None], true_frame[None])
    return GaussianBaseline(sigma_t, sigma_xy, total.result().psnr["all"], filtered)
