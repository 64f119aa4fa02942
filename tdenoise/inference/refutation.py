"""Where the counts of a movie, summed over time, refute what a denoised movie shows."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from scipy import ndimage, special

from .evidence import Evidence
from .local_means import Array, Lags, mean_around, mean_over, of_few_counts, ratio

SIZES = {"pixel": 0.0, "column": 2.0, "patch": 6.0}  # standard deviation of a mean [pixels]
CHANCE = 0.01  # that a perfect movie is refuted somewhere
LEAST_Z = 3.5  # standard deviations: what is nearer is noise wherever there are many places
MATTERS = 0.1  # of the contrast of the movie: less is not worth a word


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
    """Map of the time-summed residual over its noise, shape (rows, columns); 0 where no frame shows the scene.

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
    smooth, variance = mean_around(evidence.mean, evidence.variance, seen, sigma, correlations)
    deviation = np.sqrt(variance + floor**2)
    z = ratio(smooth, deviation)
    return of_few_counts(z, mean_over(evidence.image, seen, sigma), deviation) * seen


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
        smooth = mean_over(evidence.mean, seen, sigma)
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
            mean_over(np.asarray(mean, np.float64), np.ones(np.shape(mean), bool), sigma), (1, 99)
        )
        spans[size] = float(high - low)
    return spans
