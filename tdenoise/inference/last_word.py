"""The counts have the last word: long means of a denoised movie must equal those of the counts.

A network sees a few dozen frames and expects what it was trained on. Over all frames of a movie the counts say more:
where the sum of what was removed is not noise, the network has painted or erased something. That sum, taken in the
scene's own frame, is a test that needs no truth; and what it finds is given back.

What is given back to a frame comes from the other frames. These were predicted from frames among which it is, so a
pixel's own count comes back with a weight of about one over the number of frames times that of one pixel in a mean over
a few: far below what can be seen.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage, special

Array = NDArray[Any]
Lags = Iterable[tuple[int, int, float]]  # rows, columns and correlation of the noise of pixels so far apart

# What is given back: where the mean residual over a column stands out of its noise, what is as large as a column; and
# detail as fine as a pixel where there is much of it.
COLUMN = 2.0  # standard deviation of the mean over a column [pixels]
REACH = 1  # pixels around a place that belong to it
BLUR = 1.7  # standard deviation of the smoothing of what is given back there [pixels]
RULE = (
    2  # raised with every change of what is given back, so that nothing made by another rule is gone on with
)
AROUND = 4.0  # over which squares are averaged [pixels]; over fewer frames than these, over more pixels
ENOUGH_FRAMES = 64
FINE_DOUBT = 2.4  # mean square of fine detail over its noise, at which giving back begins

STRETCH = 64  # frames over which what the whole movie does not ask for is looked for once more
BRIEF = 1, 4, 16  # frames over which it is looked for after that
SPIKE = 8.0  # standard deviations that a single count is believed to lie above what is shown, at most
BY_CHANCE = 0.05  # places so far off in a whole movie of noise, at which giving back begins

# What is tested.
SIZES = {"pixel": 0.0, "column": 2.0, "patch": 6.0}  # standard deviation of a mean [pixels]
CHANCE = 0.01  # that a perfect movie is refuted somewhere
LEAST_Z = 3.5  # standard deviations: what is nearer is noise wherever there are many places
MATTERS = 0.1  # of the contrast of the movie: less is not worth a word
FARTHEST = 4.0  # standard deviations of a Gaussian kernel


def corners(
    drift: NDArray[np.floating] | None, n_frames: int, field: tuple[int, int]
) -> tuple[NDArray[np.intp], tuple[int, int]]:
    """Where every frame lies in the frame of the scene, which holds them all.

    Parameters
    ----------
    drift : ndarray, shape (n_frames, 2), or None
        How the scene moves [pixels]; see `tdenoise.noise.drift`.
    n_frames : int
    field : (int, int)
        Rows and columns of a frame.

    Returns
    -------
    corners : ndarray of int, shape (n_frames, 2)
        Row and column of the first pixel of every frame.
    shape : (int, int)
        Rows and columns of the frame of the scene.
    """
    if drift is None:
        return np.zeros((n_frames, 2), dtype=np.intp), field
    moved = np.rint(drift).astype(np.intp)
    found = moved.max(axis=0) - moved
    extent = found.max(axis=0)
    return found, (field[0] + int(extent[0]), field[1] + int(extent[1]))


@dataclass
class Evidence:
    """Sums over time of what was removed, in the frame of the scene; those of parts of a movie add up.

    Rows and columns are counted from ``origin``, which lies above and to the left of the field where the scene drifts.
    """

    residual: NDArray[np.float64]  # (rows, columns), counts less denoised [counts]
    square: NDArray[np.float64]  # of the residuals [counts^2]
    shown: NDArray[np.float64]  # what was denoised [counts]
    level: NDArray[np.float64]  # of the frames that show this place

    @classmethod
    def empty(cls, shape: tuple[int, int]) -> Evidence:
        """Of no frames yet."""
        return cls(*(np.zeros(shape) for _ in range(4)))

    def add(
        self,
        counts: Array,
        denoised: Array,
        level: float | Array,
        corner: tuple[int, int],
        sound: Array | None = None,
    ) -> None:
        """Take in one frame, or a part of it.

        Parameters
        ----------
        counts, denoised : ndarray, shape (height, width)
            [counts]
        level : float or ndarray, shape (height, width)
            Of the frame, or of its pixels; see `tdenoise.noise.brightness`.
        corner : (int, int)
            Row and column of its first pixel, from the origin.
        sound : ndarray of bool, shape (height, width), optional
            Pixels that count; all of them if not given.
        """
        residual = np.subtract(counts, denoised, dtype=np.float32)
        shown = denoised
        if sound is not None:
            residual, shown = (np.where(sound, values, np.float32(0)) for values in (residual, shown))
        here = tuple(slice(c, c + n) for c, n in zip(corner, residual.shape, strict=True))
        self.residual[here] += residual
        self.square[here] += np.square(residual)
        self.shown[here] += shown
        self.level[here] += level if sound is None else level * sound

    @property
    def arrays(self) -> tuple[NDArray[np.float64], ...]:
        """All sums, in the order in which they are given to make another one."""
        return self.residual, self.square, self.shown, self.level

    def merge(self, part: Evidence, corner: tuple[int, int]) -> None:
        """Add the sums over a part of the field, or over other frames."""
        here = tuple(slice(c, c + n) for c, n in zip(corner, part.residual.shape, strict=True))
        for own, other in zip(self.arrays, part.arrays, strict=True):
            own[here] += other

    def after(self, given: GivenBack) -> Evidence:
        """The sums as they are when something has been given back to all frames."""
        change = given.mean * self.level
        return Evidence(self.residual - change, self.square, self.shown + change, self.level)

    @property
    def mean(self) -> NDArray[np.float64]:
        """Mean residual at a level of 1 [counts]."""
        return _ratio(self.residual, self.level)

    @property
    def image(self) -> NDArray[np.float64]:
        """Mean of what was denoised at a level of 1 [counts]; where nothing was, the mean of all."""
        everywhere = float(self.shown.sum() / max(self.level.sum(), 1e-12))
        return np.where(self.level > 0, _ratio(self.shown, self.level), everywhere)

    @property
    def variance(self) -> NDArray[np.float64]:
        """Of the mean residual if it is nothing but noise [counts^2].

        The squares of few residuals say little: what they are over the counts, and that changes little from place to
        place, is taken from the pixels around.
        """
        floor = 0.05 * float(self.shown.sum() / max(self.level.sum(), 1e-12))
        expected = np.maximum(self.shown, max(floor, 1e-12) * self.level)
        seen = self.level > 0
        n_frames = float(self.level.sum() / max(1, seen.sum()))
        around = AROUND * max(1.0, np.sqrt(ENOUGH_FRAMES / max(n_frames, 1.0)))
        factor = _ratio(_over(self.square, seen, around), _over(expected, seen, around))
        return _ratio(factor * expected, np.square(self.level))


@dataclass(frozen=True)
class GivenBack:
    """What is added to every frame, at a level of 1; linear in the residuals, so that a frame's own can be left out."""

    mean: NDArray[np.float32]  # (rows, columns), from all frames [counts]
    own: NDArray[np.float32]  # share of its own residual that a pixel has in it
    level: NDArray[np.float32]  # sum over the frames that show this place

    def to_frame(
        self,
        counts: Array,
        denoised: Array,
        level: float | Array,
        corner: tuple[int, int],
        valid: bool = True,
        sound: Array | None = None,
    ) -> NDArray[np.float32]:
        """A frame, or a part of it, with what the other frames give back to it.

        Parameters
        ----------
        counts, denoised : ndarray, shape (height, width)
            [counts]
        level : float or ndarray, shape (height, width)
        corner : (int, int)
            Row and column of the first pixel, as in `Evidence.add`.
        valid : bool
            Whether the frame was one of those that were summed.
        sound : ndarray of bool, shape (height, width), optional
            Pixels that were summed; all of them if not given.
        """
        here = tuple(slice(c, c + n) for c, n in zip(corner, denoised.shape, strict=True))
        others: Array = self.level[here]
        level = np.asarray(level, np.float32)
        total: Array = self.mean[here] * others
        if valid:
            own = self.own[here] if sound is None else self.own[here] * sound
            total = total - own * np.subtract(counts, denoised, dtype=np.float32)
            others = others - level * own
        mean = np.divide(total, others, out=np.zeros_like(total), where=others > 0.5 * level)
        return np.asarray(denoised + level * mean, np.float32)


def n_stretches(n_frames: int) -> int:
    """Into how many stretches a movie is cut; 0 where one would be all of it."""
    return n_frames // STRETCH if n_frames >= 2 * STRETCH else 0


def stretch_of(number: int, n_frames: int) -> int:
    """Number of the stretch that a frame lies in; the last one is longer where the frames do not come out even."""
    return max(0, min(number // STRETCH, n_stretches(n_frames) - 1))


def give_back(evidence: Evidence, correlations: Lags = ()) -> GivenBack:
    """What the counts of a whole movie ask for.

    The mean residual is kept where it holds more than noise, and by as much: of a mean over a column the share of
    deviations so large that are no chance (one less the false discovery rate; Storey 2002), of finer detail what a
    local Wiener filter keeps (Lee 1980). What is kept is smoothed twice, so that the top of a column is not cut
    (twicing; Tukey 1977).

    Parameters
    ----------
    evidence : Evidence
        Of all frames of a movie.
    correlations : iterable of (int, int, float)
        Of the noise of neighbouring pixels.
    """
    mean, variance, seen = evidence.mean, evidence.variance, evidence.level > 0
    column, noise = _mean_around(mean, variance, seen, COLUMN, correlations)
    sure, coarse = _widened(_no_chance(_ratio(column, np.sqrt(noise)), seen)), _coarse(mean, seen)
    kernel = _twice(BLUR)
    middle = float(kernel.max())
    fine = -kernel
    fine[fine.shape[0] // 2, fine.shape[1] // 2] += 1
    detail, noise = mean - coarse, variance * _noise_gain(fine, correlations)
    found = _over(np.square(detail), seen, AROUND)
    share = np.clip(1 - FINE_DOUBT * _ratio(noise, found, 1.0), 0, None) * seen
    given, own = sure * coarse + share * detail, sure * middle + share * (1 - middle)
    return GivenBack(*(values.astype(np.float32) for values in (given * seen, own * seen, evidence.level)))


def give_back_what_stands_out(
    evidence: Evidence, correlations: Lags = (), n_looks: float = 1.0, variance: Array | None = None
) -> GivenBack:
    """What the counts of some frames ask for beyond what the whole movie does.

    There are many such stretches, and most places are right: only those count that are as far off as noise has hardly
    any in the whole movie.

    Parameters
    ----------
    evidence : Evidence
        Of the frames, with what was given back before.
    correlations : iterable of (int, int, float)
        Of the noise of neighbouring pixels.
    n_looks : float
        Pixels of all that is looked at, over those of this evidence.
    variance : ndarray, optional
        Of the mean residual; otherwise as the squares tell [counts^2].
    """
    mean, seen = evidence.mean, evidence.level > 0
    known = evidence.variance if variance is None else variance
    column, noise = _mean_around(mean, known, seen, COLUMN, correlations)
    deviation = np.sqrt(noise)
    z = _of_few_counts(_ratio(column, deviation), _over(evidence.image, seen, COLUMN), deviation)
    by_chance = 2 * n_looks * seen.sum() * special.ndtr(-np.abs(z))
    sure = _widened((1 - by_chance / BY_CHANCE).clip(0, 1) * seen)
    given, own = sure * _coarse(mean, seen), sure * float(_twice(BLUR).max())
    return GivenBack(*(values.astype(np.float32) for values in (given * seen, own * seen, evidence.level)))


@dataclass(frozen=True)
class NoiseOfShown:
    """Variance of a count about what is shown of it: ``factor * (shown + offset)``."""

    factor: float  # [counts]
    offset: float  # of the camera, as if so many counts more had come [counts]

    @classmethod
    def of(cls, evidence: Evidence, offset: float = 0.0) -> NoiseOfShown:
        """As the squares over a whole movie tell."""
        n_frames = evidence.level.sum()
        expected = float(evidence.shown.sum() + offset * n_frames)
        return cls(float(evidence.square.sum()) / expected if expected > 0 else 1.0, offset)

    def __call__(self, shown: Array) -> Array:
        """[counts^2]; not less than that of a twentieth of the mean."""
        least = 0.05 * max(float(shown.mean()), 1e-12)
        return self.factor * (np.maximum(shown, least) + self.offset)


def give_back_briefly(
    counts: Array,
    shown: NDArray[np.float32],
    levels: Array,
    places: NDArray[np.intp],
    noise: NoiseOfShown,
    correlations: Lags = (),
    n_looks: float = 1.0,
    sound: Array | None = None,
) -> None:
    """Give back, in place, what is there for a few frames only: an atom that passes, a column that flashes.

    Of means over a column in single frames, then in 4 and 16, those that noise has in hardly any movie of this length.
    What a single frame is given back comes from the pixels around, never from the own one.

    Parameters
    ----------
    counts : ndarray, shape (n_frames, height, width)
        Successive frames that were recorded whole [counts].
    shown : ndarray of float32, shape (n_frames, height, width)
        What is shown of them [counts]; changed in place.
    levels : ndarray, shape (n_frames, 1, 1) or that of the counts
        Of every frame, or of its pixels; see `tdenoise.noise.brightness`.
    places : ndarray of int, shape (n_frames, 2)
        Where the frames lie in the frame of the scene; see `corners`.
    noise : NoiseOfShown
    correlations : iterable of (int, int, float)
        Of the noise of neighbouring pixels.
    n_looks : float
        Pixels of all frames of the movie, over those of one.
    sound : ndarray of bool, shape (height, width), optional
        Pixels that count; all of them if not given.
    """
    lags = list(correlations)
    gain = _noise_gain(_kernel(COLUMN), lags)
    # One pixel alone is no event: X-rays and cosmic rays hit single pixels.
    counts = np.minimum(counts, shown + np.float32(SPIKE) * np.sqrt(noise(shown)))
    for length in BRIEF:
        looks = n_looks * len(BRIEF) / length
        least = -special.ndtri(0.5 * BY_CHANCE / (looks * shown[0].size))
        for first in range(0, len(counts), length):
            part = slice(first, min(first + length, len(counts)))
            if _stands_out(counts[part], shown[part], places[part], noise, gain, least, sound):
                _give_back_to(
                    counts[part], shown[part], levels[part], places[part], noise, lags, looks, sound
                )


def _stands_out(
    counts: Array,
    shown: Array,
    places: NDArray[np.intp],
    noise: NoiseOfShown,
    gain: float,
    least: float,
    sound: Array | None,
) -> bool:
    """Whether a mean over a column anywhere in some frames is that many standard deviations off; a quick look."""
    at = places - places.min(axis=0)
    height, width = shown.shape[1:]
    total = np.zeros((2, *(at.max(axis=0) + (height, width))), np.float32)
    for k, (row, column) in enumerate(at.tolist()):
        residual = np.subtract(counts[k], shown[k], dtype=np.float32)
        if sound is not None:
            residual *= sound
        here = total[:, row : row + height, column : column + width]
        here[0] += residual
        here[1] += noise(shown[k])
    # The square of a Gaussian is one, too, and the noise changes little over it.
    off, limit = _smooth(total[0], COLUMN), least * np.sqrt(gain * _smooth(total[1], COLUMN))
    # Of few counts, what is missing is less likely than its deviation says; see `_of_few_counts`.
    return bool((off > limit).any() or (off < -limit / np.sqrt(2)).any())


def _give_back_to(
    counts: Array,
    shown: NDArray[np.float32],
    levels: Array,
    places: NDArray[np.intp],
    noise: NoiseOfShown,
    correlations: Lags,
    looks: float,
    sound: Array | None,
) -> None:
    """Give back to some frames what stands out of their sum."""
    at = places - places.min(axis=0)
    height, width = shown.shape[1:]
    sums = Evidence.empty(tuple((at.max(axis=0) + (height, width)).tolist()))
    variance = np.zeros(sums.residual.shape)
    for k, (row, column) in enumerate(at.tolist()):
        sums.add(counts[k], shown[k], levels[k], (row, column), sound)
        here = slice(row, row + height), slice(column, column + width)
        variance[here] += noise(shown[k]) if sound is None else noise(shown[k]) * sound
    given = give_back_what_stands_out(sums, correlations, looks, _ratio(variance, np.square(sums.level)))
    for k, (row, column) in enumerate(at.tolist()):
        shown[k] = given.to_frame(counts[k], shown[k], levels[k], (row, column), sound=sound)


@dataclass(frozen=True)
class Refuted:
    """Where a denoised movie says something that its counts do not."""

    size: str  # one of `SIZES`
    row: int  # from the origin of the evidence
    column: int
    z: float  # mean residual in units of its noise; positive where the counts hold more than the movie shows
    amount: float  # mean residual over the size, at a level of 1 [counts]
    chance: float  # how many places of a perfect movie are as far off


def significance(evidence: Evidence, size: str, correlations: Lags = (), floor: float = 0.0) -> Array:
    """Map of the time-summed residual over its noise, shape (rows, columns).

    Parameters
    ----------
    evidence : Evidence
    size : str
        One of `SIZES`: what a mean is taken over.
    correlations : iterable of (int, int, float)
        Of the noise of neighbouring pixels.
    floor : float
        Standard deviation of the rounding of stored values, which does not get less in a mean over time [counts].
    """
    sigma, seen = SIZES[size], evidence.level > 0
    smooth, variance = _mean_around(evidence.mean, evidence.variance, seen, sigma, correlations)
    deviation = np.sqrt(variance + floor**2)
    z = _ratio(smooth, deviation)
    return _of_few_counts(z, _over(evidence.image, seen, sigma), deviation)


def refuted(
    evidence: Evidence,
    sizes: Sequence[str] = tuple(SIZES),
    correlations: Sequence[tuple[int, int, float]] = (),
    floor: float = 0.0,
    n_looks: float = 1.0,
) -> list[Refuted]:
    """Places where the time-summed residual is no noise, the least likely first.

    Each test is as many times stricter as noise has peaks so high in all that is looked at, and of the places that are
    named one in a hundred is due to chance (Benjamini & Hochberg 1995). So about one of a hundred perfect movies is
    refuted somewhere; and where there are several ghosts, fainter ones are named, too.

    Parameters
    ----------
    evidence : Evidence
    sizes : sequence of str
        Of `SIZES`.
    correlations : sequence of (int, int, float)
    floor : float
        See `significance`.
    n_looks : float
        Number of such maps that are looked at, for all sizes and stretches of time.
    """
    found: list[Refuted] = []
    seen = evidence.level > 0
    for size in sizes:
        sigma = SIZES[size]
        z = significance(evidence, size, correlations, floor)
        beyond = np.abs(z) > LEAST_Z
        if not beyond.any():
            continue
        peaks = (ndimage.maximum_filter(np.abs(z), 2 * max(1, round(1.5 * sigma)) + 1) == np.abs(z)) & beyond
        smooth = _over(evidence.mean, seen, sigma)
        for row, column in np.argwhere(peaks).tolist():
            height = float(z[row, column])
            chance = n_looks * _peaks_of_noise(abs(height), int(seen.sum()), sigma)
            found.append(Refuted(size, row, column, height, float(smooth[row, column]), chance))
    found.sort(key=lambda place: place.chance)
    enough = [k for k, place in enumerate(found, start=1) if place.chance <= CHANCE * k]
    return found[: max(enough, default=0)]


def _peaks_of_noise(height: float, n_pixels: int, sigma: float) -> float:
    """How many peaks, up or down, of smoothed noise are higher than this; in units of its standard deviation.

    The expected Euler characteristic of a Gaussian random field (Worsley et al. 1992, J. Cereb. Blood Flow Metab. 12,
    900-918), and no more than all pixels would give if they were independent.
    """
    at_most = 2 * n_pixels * float(special.ndtr(-height))
    if not sigma:
        return at_most
    # A Gaussian kernel of this width leaves 1 / (2 sigma^2) as the variance of the slope.
    side = np.sqrt(n_pixels / 2) / sigma
    surface = side**2 * height / (2 * np.pi) ** 1.5 + 2 * side / (2 * np.pi)
    return min(at_most, 2 * float(surface * np.exp(-(height**2) / 2) + special.ndtr(-height)))


def contrasts(mean: Array) -> dict[str, float]:
    """What a mean image varies by at every one of `SIZES`: from its 1st to its 99th percentile [counts]."""
    spans = {}
    for size, sigma in SIZES.items():
        low, high = np.percentile(
            _over(np.asarray(mean, np.float64), np.ones(np.shape(mean), bool), sigma), (1, 99)
        )
        spans[size] = float(high - low)
    return spans


def _of_few_counts(z: Array, shown: Array, deviation: Array) -> Array:
    """Deviations of means of few counts, as those of a normal distribution that are as unlikely.

    The root of the deviance of counts is nearly normal (McCullagh & Nelder 1989, section 2.4).
    """
    root = np.sqrt(np.square(_ratio(shown.clip(0), deviation)).clip(1e-9))
    excess = np.maximum(z / root, -1.0)
    deviance = special.xlog1py(1 + excess, excess) - excess
    return np.asarray(np.sign(z) * np.sqrt(2 * np.square(root) * deviance.clip(0)))


def _ratio(values: Array, over: Array, otherwise: float = 0.0) -> Array:
    """``values / over``, and something else where there is nothing to divide by."""
    out = np.full(np.shape(values), otherwise)
    return np.asarray(np.divide(values, over, out=out, where=over > 0))


def _over(values: Array, seen: Array, sigma: float) -> Array:
    """Mean of values around every place, of those places that were seen."""
    return _ratio(_smooth(values * seen, sigma), _smooth(seen.astype(float), sigma)) if sigma else values


def _mean_around(
    values: Array, variance: Array, seen: Array, sigma: float, correlations: Lags
) -> tuple[Array, Array]:
    """Means of values around every place that was seen, and their variance."""
    if not sigma:
        return values, variance
    weight = _smooth(seen.astype(float), sigma)
    # The square of a Gaussian is one, too; its sum is that of the squared weights.
    squares = _noise_gain(_kernel(sigma), correlations) * _smooth(variance * seen, sigma / np.sqrt(2))
    return _ratio(_smooth(values * seen, sigma), weight), _ratio(squares, np.square(weight))


def _smooth(image: Array, sigma: float) -> Array:
    if sigma == 0:
        return image
    return np.asarray(ndimage.gaussian_filter(image, sigma, mode="constant", truncate=FARTHEST))


def _kernel(sigma: float) -> Array:
    reach = int(FARTHEST * sigma + 0.5)
    impulse = np.zeros((2 * reach + 1, 2 * reach + 1))
    impulse[reach, reach] = 1
    return _smooth(impulse, sigma) if sigma else impulse


def _widened(sure: Array) -> Array:
    """A place and what belongs to it."""
    around = ndimage.maximum_filter(sure, 2 * REACH + 1)
    return np.asarray(ndimage.gaussian_filter(around, 1.0, mode="nearest", truncate=FARTHEST))


def _coarse(mean: Array, seen: Array) -> Array:
    """Without detail that is finer than a column."""
    once = _over(mean, seen, BLUR)
    return np.asarray(2 * once - _over(once, seen, BLUR))


def _no_chance(z: Array, seen: Array) -> Array:
    """Of deviations at least as large as that of a place, the share that is more than noise explains."""
    if not seen.any():
        return np.zeros(z.shape)
    size = np.sort(np.abs(z[seen]))
    expected, n_found = len(size) * 2 * special.ndtr(-size), len(size) - np.arange(len(size))
    by_chance = np.minimum.accumulate(np.minimum(1.0, expected / n_found))
    return np.asarray((1 - np.interp(np.abs(z), size, by_chance)).clip(0, 1) * seen)


def _twice(sigma: float) -> Array:
    """Kernel of smoothing, and of smoothing what that leaves."""
    once = _kernel(sigma)
    wide = np.pad(once, once.shape[0] // 2)
    return 2 * wide - _smooth(wide, sigma)


def _noise_gain(kernel: Array, correlations: Lags) -> float:
    """Variance of noise after a convolution, over its variance before."""
    gain = float(np.square(kernel).sum())
    height, width = kernel.shape
    for rows, columns, value in correlations:
        if rows < height and abs(columns) < width:
            one = kernel[rows:, max(0, columns) : width + min(0, columns)]
            other = kernel[: height - rows, max(0, -columns) : width - max(0, columns)]
            gain += 2 * value * float((one * other).sum())
    return max(gain, 1e-6)
