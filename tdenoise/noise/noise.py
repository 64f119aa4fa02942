"""The noise of a raw movie, measured on the movie itself, and what follows from it for a model."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import asdict, dataclass, fields, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.ndimage import uniform_filter

Array = NDArray[Any]

MIN_SNR = 0.02  # floor of Scale.contrast / Scale.noise, for movies in which nothing is seen
REACH = 3  # largest distance at which the noise of two pixels is compared [pixels]
WIDEST = 2  # largest blind radius below the whole frame [pixels]
CORRELATED = 0.01  # a correlation that costs a blind-spot network quality; see docs/noise.md
BLOCK = 16  # pixels on a side whose sums count as one independent sample
BLOCK_FRAMES = 8  # frames in it, an even number
FEWEST_BLOCKS = 7  # whose scatter is trusted

_LAGS = [(y, x) for y in range(REACH + 1) for x in range(-REACH, REACH + 1) if (y, x) > (0, 0)]
_N, _SUM, _N_E, _E, _N_D, _D, _SIGNAL, _N_T1, _T1, _N_T2, _T2, _FRACTIONS = range(12)
_LAG = slice(12, 12 + len(_LAGS))
_TRANSFER = slice(_LAG.stop, _LAG.stop + 6)
_SIZE = _TRANSFER.stop
_UPPER = np.triu_indices(_SIZE)


@dataclass(frozen=True)
class Correlation:
    """How alike the noise of two samples is that lie this far apart."""

    t: int  # distance [frames]
    y: int  # [pixels]
    x: int
    value: float
    error: float  # half the width of its 95 % interval

    @property
    def matters(self) -> bool:
        """True where it costs quality and is no chance: twice the interval, for many distances are tested."""
        return bool(np.isfinite(self.error) and abs(self.value) > max(CORRELATED, 2 * self.error))


@dataclass(frozen=True)
class NoiseStatistics:
    """Noise from differences of successive frames, in which the scene cancels.

    A counting camera has ``fano`` 1 and all correlations 0. ``fano`` above 1 means an integrating camera or a
    gain; correlation between neighbours means charge spread or resampling, and asks for a larger blind spot.
    Errors are half the width of 95 % intervals, from the scatter of blocks of 16 x 16 pixels.
    """

    mean: float  # [counts per pixel and frame]
    noise_variance: float  # [counts^2]
    signal_variance: float  # covariance of successive frames: what is not noise [counts^2]
    fano: float  # noise_variance / mean; NaN where the mean is not positive
    correlation_x: float  # of the noise of neighbours along a row
    correlation_y: float  # along a column
    correlation_t: float  # of successive noise samples in time
    n_pixels: int  # differences measured
    fano_error: float = float("nan")
    gain: float = float("nan")  # g of variance = g * mean + s^2; NaN where too uniform to fit
    gain_error: float = float("nan")
    read_variance: float = float("nan")  # s^2 [counts^2]
    read_variance_error: float = float("nan")
    whole: bool | None = None  # all values are whole numbers; None: not known
    correlations: tuple[Correlation, ...] = ()  # at every distance; empty in stores of old versions

    def to_json(self) -> dict[str, Any]:
        """Plain values; numbers that could not be measured are None."""
        values = asdict(self)
        values["correlations"] = [
            {k: _finite_or_none(v) for k, v in asdict(c).items()} for c in self.correlations
        ]
        return {k: _finite_or_none(v) for k, v in values.items()}

    @classmethod
    def from_json(cls, values: dict[str, Any]) -> NoiseStatistics:
        """Inverse of `to_json`; what a store of an old version does not tell is left unknown."""
        known = {f.name for f in fields(cls)} - {"correlations", "whole"}
        filled: dict[str, Any] = {k: _number(v) for k, v in values.items() if k in known}
        correlations = tuple(
            Correlation(**{k: _number(v) for k, v in c.items()}) for c in values.get("correlations", ())
        )
        return cls(**filled, whole=values.get("whole"), correlations=correlations)

    @property
    def is_poisson(self) -> bool:
        """True where the counts behave as independent electrons, so that variance equals mean."""
        white = max(abs(self.correlation_x), abs(self.correlation_y), abs(self.correlation_t))
        return bool(abs(self.fano - 1.0) < 0.05 + self.uncertainty and white < 0.03 + self.uncertainty)

    @property
    def uncertainty(self) -> float:
        """Three standard deviations of a correlation that is measured on this many pixels."""
        return float(3 / np.sqrt(self.n_pixels)) if self.n_pixels else float("inf")

    @property
    def calibrated(self) -> bool:
        """True where gain and read noise are known well enough to say how noisy a pixel is.

        A negative read variance that is more than chance means that another law holds, such as the one of a
        camera that loses coincident electrons.
        """
        return bool(
            self.gain > 0
            and self.gain_error < 0.1 * self.gain
            and self.read_variance > -max(2 * self.read_variance_error, 0.01 * self.noise_variance)
        )

    def strongest(self, *, in_time: bool) -> Correlation | None:
        """The strongest correlation, between pixels of one frame or of a pixel with itself in other frames."""
        chosen = [c for c in self.correlations if (c.t > 0) == in_time and np.isfinite(c.value)]
        return max(chosen, key=lambda c: abs(c.value), default=None)


def _finite_or_none(value: Any) -> Any:
    return None if isinstance(value, float) and not np.isfinite(value) else value


def _number(value: Any) -> Any:
    return float("nan") if value is None else value


@dataclass(frozen=True)
class Scale:
    """How counts of one movie become numbers near 1 for the network, and back.

    Inputs are ``(counts - mean) / noise``; the prediction is ``mean + contrast * output``. Fixed for a whole
    movie: a scale per block or per patch would make seams and would show a pixel to itself.
    """

    mean: float
    noise: float
    contrast: float

    @classmethod
    def of(cls, statistics: NoiseStatistics) -> Scale:
        """The scale of a movie with these statistics.

        Raises
        ------
        ValueError
            If the movie has no noise at all: it is constant, or was denoised before.
        """
        if not statistics.noise_variance > 0:
            raise ValueError(
                "successive frames do not differ anywhere: a constant movie has nothing to learn from"
            )
        noise = float(np.sqrt(statistics.noise_variance))
        contrast = 2.0 * float(np.sqrt(max(statistics.signal_variance, 0.0)))
        return cls(mean=float(statistics.mean), noise=noise, contrast=max(contrast, MIN_SNR * noise))

    def at_share(self, share: float) -> Scale:
        """Of counts that hold a share of the dose: their noise, and with it the unit of the output, is smaller."""
        return Scale(self.mean * share, self.noise * share**0.5, self.contrast * share**0.5)


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
        levels : ndarray, shape (n,), optional
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
            field *= (1 / (levels * np.mean(1 / levels))).astype(np.float32)[:, None, None]
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
        n_rows, n_columns = good.shape[0] // BLOCK, good.shape[1] // BLOCK
        height, width = int(good.any(axis=1).sum()), int(good.any(axis=0).sum())

        def in_blocks(values: Array, y: int = 0, x: int = 0) -> Array:
            """A view of frames, from row y and column x on, as (frame, block, row, block, column)."""
            shifted = values[:, y : y + n_rows * BLOCK, x : x + n_columns * BLOCK]
            along_t, along_y, along_x = shifted.strides
            return np.lib.stride_tricks.as_strided(
                shifted,
                (len(values), n_rows, BLOCK, n_columns, BLOCK),
                (along_t, BLOCK * along_y, along_y, BLOCK * along_x, along_x),
                writeable=False,
            )

        def product(a: Array, b: Array) -> Array:
            summed: Array = np.einsum("taibj,taibj->ab", a, b)
            return summed.astype(np.float64).ravel()

        d = np.diff(frames, axis=0)
        if good.sum() >= BLOCK**2:  # of fewer pixels, the mean is noise itself
            # The dose may differ from frame to frame: a difference has mean zero in every one.
            d -= (d.sum(axis=(1, 2), keepdims=True) / good.sum()) * good
        # Second differences, in which steady motion of the scene cancels too. Those in between would tell next to
        # nothing more (the error falls by 3 %), for they are made of the same frames.
        e = np.diff(d, axis=0)[::2]
        one = in_blocks(good[None])
        area = product(one, one)
        s = np.zeros((n_rows * n_columns, _SIZE))
        s[:, _N] = n_own * area
        s[:, _SUM] = product(one, in_blocks(frames[:n_own].sum(axis=0)[None])) + float(level) * s[:, _N]
        s[:, _N_E], s[:, _E] = len(e) * area, product(in_blocks(e), in_blocks(e))
        s[:, _N_D], s[:, _D] = len(d) * area, product(in_blocks(d), in_blocks(d))
        s[:, _SIGNAL] = product(in_blocks(frames[1:]), in_blocks(frames[:-1]))
        s[:, _N_T1], s[:, _T1] = (len(d) - 1) * area, product(in_blocks(d[1:]), in_blocks(d[:-1]))
        s[:, _N_T2], s[:, _T2] = max(0, len(d) - 2) * area, product(in_blocks(d[2:]), in_blocks(d[:-2]))
        for column, (y, x) in enumerate(_LAGS, _LAG.start):
            if y < height and abs(x) < width:
                pairs = height * width / ((height - y) * (width - abs(x)))
                s[:, column] = pairs * product(in_blocks(e, 0, max(-x, 0)), in_blocks(e, y, max(x, 0)))
        others = n_frames - 3
        if others > 0:
            # Photon transfer, per second difference: its variance v over 6 against the mean m of its three
            # frames, by way of an instrument z from all other frames. A fit of v on m itself would be wrong, for
            # both hold the same noise; that of z is another.
            for k, (a, b, c) in enumerate(zip(frames[0::2], frames[1::2], frames[2::2], strict=False)):
                z = uniform_filter(everything - a - b - c, 3, mode="constant") * (good / np.float32(others))
                parts = (z, (a + 4 * b + c) / 6 + level * good, e[k] ** 2 / 6)
                z, m, v = (in_blocks(part[None]) for part in parts)
                terms = (
                    area,
                    product(one, z),
                    product(one, m),
                    product(one, v),
                    product(z, m),
                    product(z, v),
                )
                s[:, _TRANSFER] += np.stack(terms, axis=1)
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


def median_of_nine(image: Array) -> Array:
    """Median over 3 x 3 pixels, the frame's edge repeated; a few times faster than a general median filter.

    The columns are sorted first: the median is that of the largest minimum, the median median and the smallest
    maximum of the three columns.
    """
    rows = np.pad(image, 1, mode="edge")
    a, b, c = rows[:-2], rows[1:-1], rows[2:]
    low, high = np.minimum(np.minimum(a, b), c), np.maximum(np.maximum(a, b), c)
    middle = _median(a, b, c)
    largest = np.maximum(np.maximum(low[:, :-2], low[:, 1:-1]), low[:, 2:])
    smallest = np.minimum(np.minimum(high[:, :-2], high[:, 1:-1]), high[:, 2:])
    return _median(largest, _median(middle[:, :-2], middle[:, 1:-1], middle[:, 2:]), smallest)


def _median(a: Array, b: Array, c: Array) -> Array:
    found: Array = np.maximum(np.minimum(a, b), np.minimum(np.maximum(a, b), c))
    return found


@dataclass(frozen=True)
class NoiseLaw:
    """How the variance of a pixel grows with its expected counts: ``gain * mean + read_variance``."""

    gain: float  # [counts per electron]
    read_variance: float  # [counts^2]


def noise_law(statistics: NoiseStatistics, counts_per_electron: float | None = None) -> NoiseLaw | None:
    """The law that the measured noise follows.

    That of single electrons where the Fano factor is 1, or the gain of the camera as given; else the one
    measured by photon transfer; None where that could not be measured well.

    The error of a blind prediction ``f`` is then ``mean((y - f)^2 - gain * y - read_variance)``.

    Examples
    --------
    >>> frames = np.random.default_rng(0).poisson(3.0, (5, 64, 64))
    >>> accumulator = NoiseAccumulator()
    >>> accumulator.add(frames)
    >>> noise_law(accumulator.result())
    NoiseLaw(gain=1.0, read_variance=0.0)
    """
    for gain in (1.0, counts_per_electron):
        if gain is not None and replace(statistics, fano=statistics.fano / gain).is_poisson:
            return NoiseLaw(gain, 0.0)
    if statistics.calibrated:
        return NoiseLaw(statistics.gain, statistics.read_variance)
    return None


@dataclass(frozen=True)
class Choice:
    """What the noise asks of a blind-spot model, and why."""

    blind_radius: int | None  # None hides the whole centre frame
    counting: bool  # every count is one electron, so likelihoods of counts and thinning are valid
    reason: str  # one line


def choose(statistics: NoiseStatistics) -> Choice:
    """Blind radius and law of the noise that fit what was measured.

    The radius is the smallest that hides every pixel whose noise goes with that of the predicted one, at any of
    the 24 distances up to three pixels; noise that reaches three pixels or more hides the whole centre frame.
    A correlation of 5 % between neighbours already costs a one-pixel blind spot more than 1 dB, for it lets the
    network predict noise; see docs/noise.md.

    Stores of old versions know the nearest neighbours alone; a strong correlation of these is answered with a
    radius of 2.
    """
    near = _neighbours(statistics)
    counting = statistics.is_poisson
    reach = max((max(abs(c.y), abs(c.x)) for c in near if c.matters), default=0)
    if not statistics.correlations and reach and max(abs(c.value) for c in near) > 0.2:
        reach = WIDEST
    radius = reach if reach <= WIDEST else None
    if reach == 0:
        text = f"the noise of neighbouring pixels is independent ({_worst(near)}): the pixel alone is hidden"
    else:
        hidden = (
            "the whole centre frame is hidden"
            if radius is None
            else f"{2 * radius + 1} x {2 * radius + 1} pixels are hidden"
        )
        counted = [c for c in near if c.matters]
        text = f"the noise of neighbouring pixels is correlated ({_worst(counted)}): {hidden}"
    if counting:
        text += f"; single electrons (Fano factor {_with_error(statistics.fano, statistics.fano_error)})"
    elif statistics.calibrated:
        text += (
            f"; variance = {_with_error(statistics.gain, statistics.gain_error)} x mean "
            f"+ {_with_error(statistics.read_variance, statistics.read_variance_error)}"
        )
    else:
        text += f"; not single electrons (Fano factor {_with_error(statistics.fano, statistics.fano_error)})"
    # The lowest mean square is at the expected counts for any of these laws.
    return Choice(radius, counting, f"{text}; loss: mean square, head: expected counts")


def widest(radii: Iterable[int | None]) -> int | None:
    """The blind radius that covers all of these: a model of several movies must suit each.

    Examples
    --------
    >>> widest([0, 2, 1]), widest([1, None]), widest([])
    (2, None, 0)
    """
    found = list(radii)
    known = [radius for radius in found if radius is not None]
    return None if len(known) < len(found) else max(known, default=0)


def persistence_warning(statistics: NoiseStatistics) -> str | None:
    """What must be said where noise goes on from frame to frame: the neighbour frames would show it."""
    strongest = statistics.strongest(in_time=True)
    if strongest is None or not (strongest.matters and strongest.value > 0):
        return None
    return (
        f"frames that are {strongest.t} apart share noise, or the sample moves fast (correlation "
        f"{_with_error(strongest.value, strongest.error)}). A model sees the frames around and will keep "
        "what they share as if it were signal; sum such frames before ingest if the camera has afterglow."
    )


def _neighbours(statistics: NoiseStatistics) -> list[Correlation]:
    if statistics.correlations:
        return [c for c in statistics.correlations if c.t == 0 and np.isfinite(c.value)]
    error = 2 / 3 * statistics.uncertainty
    nearest = ((0, 1, statistics.correlation_x), (1, 0, statistics.correlation_y))
    return [Correlation(0, y, x, value, error) for y, x, value in nearest if np.isfinite(value)]


def _worst(correlations: list[Correlation]) -> str:
    if not correlations:
        return "not measured"
    c = max(correlations, key=lambda c: abs(c.value))
    return f"at most {_with_error(c.value, c.error, sign=True)} at {c.y} rows and {c.x} columns"


def _with_error(value: float, error: float, *, sign: bool = False) -> str:
    form = "+.3f" if sign else ".3f"
    return f"{value:{form}}" if not np.isfinite(error) else f"{value:{form}} +- {error:.3f}"
