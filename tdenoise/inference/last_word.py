"""The counts have the last word: long means of a denoised movie must equal those of the counts.

A network sees a few dozen frames and expects what it was trained on. Over all frames of a movie the counts say more:
where the sum of what was removed is not noise, the network has painted or erased something. That sum, taken in the
scene's own frame, is a test that needs no truth; and what it finds is given back.

What is given back to a frame comes from the other frames. These were predicted from frames among which it is, so a
pixel's own count comes back with a weight of about one over the number of frames times that of one pixel in a mean over
a few: far below what can be seen.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage, special

from .evidence import AROUND, Evidence, GivenBack
from .local_means import (
    FARTHEST,
    Array,
    Lags,
    kernel_of,
    mean_around,
    mean_over,
    noise_gain,
    of_few_counts,
    ratio,
    smoothed,
)

# What is given back: where the mean residual over a column stands out of its noise, what is as large as a column; and
# detail as fine as a pixel where there is much of it.
COLUMN = 2.0  # standard deviation of the mean over a column [pixels]
REACH = 1  # pixels around a place that belong to it
BLUR = 1.7  # standard deviation of the smoothing of what is given back there [pixels]
RULE = (
    3  # raised with every change of what is given back, so that nothing made by another rule is gone on with
)
FINE_DOUBT = 2.4  # mean square of fine detail over its noise, at which giving back begins

STRETCH = 64  # frames over which what the whole movie does not ask for is looked for once more
BRIEF = 1, 4, 16  # frames over which it is looked for after that
SPIKE = 8.0  # standard deviations that a single count is believed to lie above what is shown, at most
BY_CHANCE = 0.05  # places so far off in a whole movie of noise, at which giving back begins


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
    mean, variance, level = evidence.mean, evidence.variance, evidence.level
    seen = level > 0
    column, noise = mean_around(mean, variance, level, COLUMN, correlations)
    sure, coarse = _widened(_no_chance(ratio(column, np.sqrt(noise)), seen)), _coarse(mean, level)
    fine = -_twice(BLUR)
    fine[fine.shape[0] // 2, fine.shape[1] // 2] += 1
    detail, noise = mean - coarse, variance * noise_gain(fine, correlations)
    # At the border of a scene that moves, places were seen in a few frames only: their squares say little of others.
    weight = np.square(level)
    found, chance = (mean_over(values, weight, AROUND) for values in (np.square(detail), noise))
    signal = np.clip(found - FINE_DOUBT * chance, 0, None) * seen
    share = ratio(signal, signal + noise)
    own = _own_share(level)
    given, own = sure * coarse + share * detail, sure * own + share * (1 - own)
    return GivenBack(*(values.astype(np.float32) for values in (given * seen, own * seen, level)))


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
    mean, level = evidence.mean, evidence.level
    seen = level > 0
    known = evidence.variance if variance is None else variance
    column, noise = mean_around(mean, known, level, COLUMN, correlations)
    deviation = np.sqrt(noise)
    z = of_few_counts(ratio(column, deviation), mean_over(evidence.image, level, COLUMN), deviation)
    by_chance = 2 * n_looks * seen.sum() * special.ndtr(-np.abs(z))
    sure = _widened((1 - by_chance / BY_CHANCE).clip(0, 1) * seen)
    given, own = sure * _coarse(mean, level), sure * _own_share(level)
    return GivenBack(*(values.astype(np.float32) for values in (given * seen, own * seen, level)))


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
    gain = noise_gain(kernel_of(COLUMN), lags)
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
    off, limit = smoothed(total[0], COLUMN), least * np.sqrt(gain * smoothed(total[1], COLUMN))
    # Of few counts, what is missing is less likely than its deviation says; see `of_few_counts`.
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
    given = give_back_what_stands_out(sums, correlations, looks, ratio(variance, np.square(sums.level)))
    for k, (row, column) in enumerate(at.tolist()):
        shown[k] = given.to_frame(counts[k], shown[k], levels[k], (row, column), sound=sound)


def _widened(sure: Array) -> Array:
    """A place and what belongs to it."""
    around = ndimage.maximum_filter(sure, 2 * REACH + 1)
    return np.asarray(ndimage.gaussian_filter(around, 1.0, mode="nearest", truncate=FARTHEST))


def _coarse(mean: Array, level: Array) -> Array:
    """Without detail that is finer than a column; places that were seen in more frames weigh more."""
    once = mean_over(mean, level, BLUR)
    return np.asarray(2 * once - mean_over(once, level, BLUR))


def _own_share(level: Array) -> Array:
    """Share of its own residual that a place has in `_coarse`, nearly: its neighbours may have been seen more often."""
    return float(_twice(BLUR).max()) * ratio(level, smoothed(level, BLUR))


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
    once = kernel_of(sigma)
    wide = np.pad(once, once.shape[0] // 2)
    return 2 * wide - smoothed(wide, sigma)
