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
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage, special

Array = NDArray[Any]
Frames = Array | Callable[[int], Array]  # a movie, or a function that gives its frame k


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
            self._products[dy, dx] += np.vdot(here, there)
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


# Events ---------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Bleed:
    """How much of a step in occupancy shows at the wrong side of it; see `bleed`."""

    offsets: tuple[int, ...]  # frames from the event
    values: tuple[float, ...]  # one per offset; NaN without events
    n_events: int
    numerators: Array  # (n_offsets, n_events): with the denominators, for an interval by `bootstrap_ratio`
    denominators: Array  # (n_events,)


def bleed(
    denoised: Frames,
    clean: Frames,
    truth: Mapping[str, Array],
    offsets: Sequence[int] = (-2, -1, 1, 2),
    radius_px: float = 5.0,
    isolation_frames: float = 4.0,
) -> Bleed:
    """Smearing of sudden changes in time: regression of the error on the step of a changing column.

    An event counts if no other event of its column lies within `isolation_frames` and the disc around the
    column is inside the field. Its step image is the clean frame after the event's frame minus the one
    before it. At each offset from the event's frame (0: the frame into which it falls), ``denoised -
    clean`` is regressed on the step image, pooled over events.

    Parameters
    ----------
    denoised, clean : ndarray of shape (n_frames, height, width), or function of the frame number
        Both with vacuum = 1. A function lets a movie stay on disk; events are visited in order of time.
    truth : mapping of str to ndarray
        ``events`` (K, 4) and ``col_pos`` (T, N, 2), as in the benchmark files.
    offsets : sequence of int
        Frames from the event at which to look.
    radius_px : float
        Radius of the disc [pixels].
    isolation_frames : float
        [frames]

    Returns
    -------
    Bleed
        0 is perfect; +0.5 before and -0.5 after an event mean that the step was not seen at all. Blur in
        space alone also gives values other than 0: compare methods of similar resolution.
    """
    denoised_frame, clean_frame = _frame_reader(denoised), _frame_reader(clean)
    events, positions = np.asarray(truth["events"], np.float64), truth["col_pos"]
    reach = max(1, *(abs(o) for o in offsets))
    rows, cols = np.indices(clean_frame(0).shape)
    inner = np.array(rows.shape) - 1 - radius_px

    numerators: list[list[float]] = []
    denominators: list[float] = []
    for time, column in events[np.argsort(events[:, 0], kind="stable"), :2]:
        k, column = int(time), int(column)
        others = events[(events[:, 1] == column) & (events[:, 0] != time), 0]
        isolated = not np.any(np.abs(others - time) <= isolation_frames)
        if not isolated or k < reach or k + reach >= len(positions):
            continue
        row, col = positions[k, column].astype(np.float64)
        if min(row, col) < radius_px or row > inner[0] or col > inner[1]:
            continue
        disc = (rows - row) ** 2 + (cols - col) ** 2 <= radius_px**2
        step = clean_frame(k + 1)[disc].astype(np.float64) - clean_frame(k - 1)[disc]
        errors = [denoised_frame(k + o)[disc] - clean_frame(k + o)[disc].astype(np.float64) for o in offsets]
        numerators.append([float(error @ step) for error in errors])
        denominators.append(float(step @ step))

    pooled = np.array(numerators, np.float64).reshape(-1, len(offsets)).T
    norm = np.array(denominators)
    values = pooled.sum(axis=1) / norm.sum() if norm.sum() else np.full(len(offsets), np.nan)
    return Bleed(tuple(offsets), tuple(map(float, values)), len(norm), pooled, norm)


def _frame_reader(frames: Frames) -> Callable[[int], Array]:
    """Frame number to frame; a function is asked once for frames that several events share."""
    if callable(frames):
        return functools.lru_cache(maxsize=16)(frames)
    return frames.__getitem__


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
        rows, columns = np.fft.fftfreq(height)[:, None], np.fft.rfftfreq(width)[None]
        ring = np.rint(np.hypot(rows, columns) * min(height, width)).astype(int)
        found = _spots(self._mean / self._n_frames, self._removed / self._n_frames**2, ring)
        spots = np.stack([rows[found[0], 0], columns[0, found[1]]], axis=-1)
        if not len(spots):
            return LatticeReport(spots, math.nan, math.nan, math.nan)

        near = np.zeros(ring.shape, bool)
        near[found] = True
        near = ndimage.binary_dilation(near, np.ones((3, 3)))
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


def _at_and_around(power: Array, near: Array, ring: Array) -> tuple[float, float]:
    """Total power near the spots, and what the rest of their rings would give there."""
    n_rings = int(ring.max()) + 1
    away = ~near
    total = np.bincount(ring[away], power[away], n_rings)
    level = total / np.maximum(np.bincount(ring[away], minlength=n_rings), 1)
    return float(power[near].sum()), float(level[ring[near]].sum())
