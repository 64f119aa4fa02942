"""The states of columns, from their traces: how many, how strong, and when a column changes.

Each trace is compared with three explanations: it is constant, it wanders slowly, or it jumps between two or three
levels (a hidden Markov model [1]_). What a trace tells is the probability of each, and for the last one how the column
may have gone through its levels: paths drawn from all that agree with the counts [2]_. The probability of a change is
the share of paths that have it, times the probability that the column jumps at all.

References
----------
.. [1] Rabiner, "A tutorial on hidden Markov models", Proc. IEEE 77, 257 (1989).
.. [2] Scott, "Bayesian methods for hidden Markov models", J. Am. Stat. Assoc. 97, 337 (2002).
"""

from __future__ import annotations

import itertools
import math
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage, special

from .traces import Traces

Array = NDArray[Any]

N_LEVELS = 48  # that a trace is compared with
USUAL_RATE = 1 / 60  # jumps per frame, before a column is looked at; weighs as much as one jump
SPREAD_WEIGHT = 2.0  # jumps that are spread over all levels, before a column is looked at
EM_STEPS = 12
LEAST_FRAMES = 4  # in which a column must be seen
MOST_STATES = 2**24  # columns, frames and levels that are held at a time
LEAST_STEP = 0.2  # of what the column's levels span; a smaller step is no change
LEAST_COLUMNS = 4  # to tell what all of them do
COMMON_FRAMES = 6.0  # over which what all columns do together is averaged
N_PATHS = 400
SHARE_PRIOR = (0.5, 1.0)  # columns counted beforehand as jumping and not
WANDER_SIGMAS = tuple(
    0.5**n for n in range(4, 10)
)  # steps per frame that are tried, in units of the error: slow ones
LEAST_PROBABILITY = 0.1  # of a change that is listed


@dataclass(frozen=True)
class ColumnChange:
    """A column that changes."""

    column: int
    frame: int  # the first one wholly or mostly after it
    earliest: int  # frames between which it lies with 90 % probability, if it happened
    latest: int
    before: float  # intensity
    after: float
    probability: float


@dataclass(frozen=True)
class States:
    """What the traces tell about N columns in T frames."""

    jumps: Array  # (N,) probability that the column jumps between levels
    expected: Array  # (T, N) mean intensity, of the best explanation
    changes: list[ColumnChange]  # in order of time
    excess: float  # the traces' noise over what the noise law expects; 1 if they agree


def find_states(traces: Traces, seed: int = 0) -> States:
    """The states of columns, and when they change.

    Parameters
    ----------
    traces : Traces
    seed : int
        Of the paths that are drawn.

    Returns
    -------
    States
    """
    n_frames, n = traces.intensity.shape
    seen = np.isfinite(traces.intensity) & (traces.error > 0)
    steady, _ = traces.means()
    jumps, expected, changes, excess = np.zeros(n), np.tile(steady, (n_frames, 1)), [], 1.0
    enough = np.flatnonzero(seen.sum(axis=0) >= LEAST_FRAMES)
    if not len(enough):
        return States(jumps, expected, [], excess)
    seen = seen[:, enough]
    common = _common(np.where(seen, traces.intensity[:, enough], np.nan))[:, None]
    y, error = traces.intensity[:, enough] / common, traces.error[:, enough] / common
    excess = _excess(np.where(seen, y, np.nan), error)
    typical = np.nanmedian(np.where(seen, error * excess, np.nan), axis=0)
    middle = np.nanmedian(np.where(seen, y, np.nan), axis=0)
    y = (np.where(seen, y, middle) / typical).T  # (N, T), in units of a typical error
    error = np.where(seen, error * excess / typical, np.inf).T
    rng = np.random.default_rng(seed)
    several = max(1, MOST_STATES // (n_frames * N_LEVELS))  # columns that memory has room for at a time
    parts = [slice(first, first + several) for first in range(0, len(enough), several)]
    found = _jumps(y[parts[0]], error[parts[0]])
    evidence = [found.evidence, *(_jumps(y[part], error[part]).evidence for part in parts[1:])]
    jumping = _shares(np.stack([_flat(y, error), _wander(y, error), np.concatenate(evidence)]))[2]
    for part in parts:
        if part != parts[0]:
            found = _jumps(y[part], error[part])
        for i in np.flatnonzero(jumping[part] > LEAST_PROBABILITY):
            c = part.start + int(i)
            path = found.levels[i][_paths(found, int(i), rng)] * typical[c]
            if jumping[c] > 0.5:
                expected[:, enough[c]] = path.mean(axis=0) * common[:, 0]
            changes += _changes(int(enough[c]), path, float(jumping[c]))
    jumps[enough] = jumping
    changes.sort(key=lambda change: (change.frame, change.column))
    return States(jumps, expected, changes, excess)


def _common(intensity: Array) -> Array:
    """What all columns do together, as a factor around 1, shape (T,): tilt, focus, a wandering dose.

    It is taken from the columns that change least: what one of them does alone must not be told of the others.
    """
    mean = np.nanmean(intensity, axis=0)
    weight = np.where(np.isfinite(intensity), mean, 0.0)
    spread = np.nanstd(intensity, axis=0)
    steady = spread <= np.nanquantile(spread, 0.25, method="lower") * 1.5
    if intensity.shape[1] < LEAST_COLUMNS or steady.sum() < 2:
        return np.ones(len(intensity))
    weight = np.where(steady, weight, 0.0)
    up = ndimage.gaussian_filter1d(np.sum(weight * np.nan_to_num(intensity), axis=1), COMMON_FRAMES)
    down = ndimage.gaussian_filter1d(np.sum(weight * mean, axis=1), COMMON_FRAMES)
    if not np.all(down > 0) or not np.all(up > 0.2 * down):
        return np.ones(len(intensity))
    factor: Array = up / down
    return factor


def _excess(y: Array, error: Array) -> float:
    """Spread of neighbouring frames over the one expected, of the median column; not below 1."""
    steps = np.diff(y, axis=0) / np.sqrt(error[1:] ** 2 + error[:-1] ** 2)
    spreads = 1.4826 * np.nanmedian(np.abs(steps), axis=0)
    return max(1.0, float(np.nanmedian(spreads)))


def _means(y: Array, error: Array) -> Array:
    weight = 1 / error**2
    mean: Array = np.sum(weight * y, axis=1) / np.maximum(weight.sum(axis=1), 1e-12)
    return mean


def _range(y: Array) -> Array:
    """The width of the prior of a level: it may be anywhere within twice what the trace covers, or a few errors."""
    covered = np.quantile(y, 0.98, axis=1) - np.quantile(y, 0.02, axis=1)
    width: Array = np.maximum(2 * covered, 4.0)
    return width


def _density(y: Array, error: Array, level: Array) -> Array:
    with np.errstate(invalid="ignore"):
        z = np.where(np.isfinite(error), (y - level) / np.where(np.isfinite(error), error, 1.0), 0.0)
        norm = np.where(np.isfinite(error), np.log(np.where(np.isfinite(error), error, 1.0)), 0.0)
    density: Array = -0.5 * z**2 - norm
    return density


def _flat(y: Array, error: Array) -> Array:
    """Log evidence of a constant, with a uniform prior of its level (exact but for the ends of the prior)."""
    weight = np.sum(1 / error**2, axis=1)
    fit: Array = np.sum(_density(y, error, _means(y, error)[:, None]), axis=1)
    return fit - _occam(y, weight)


def _occam(y: Array, weight: Array) -> Array:
    """What a level costs that was fitted: log of the prior's width over the width that the trace leaves."""
    cost: Array = np.log(_range(y)) - 0.5 * np.log(2 * math.pi / np.maximum(weight, 1e-12))
    return np.maximum(cost, 0.0)


def _wander(y: Array, error: Array) -> Array:
    """Log evidence of a random walk (Kalman filter), with all sizes of its step alike beforehand."""
    found = []
    width = _range(y)
    for size in WANDER_SIGMAS:
        mean, variance = y.mean(axis=1), width**2 / 12
        log = np.zeros(len(y))
        for t in range(y.shape[1]):
            total = variance + error[:, t] ** 2
            seen = np.isfinite(total)
            gain = np.where(seen, variance / np.where(seen, total, 1.0), 0.0)
            step = y[:, t] - mean
            log += np.where(
                seen,
                -0.5 * step**2 / np.where(seen, total, 1.0) - 0.5 * np.log(np.where(seen, total, 1.0)),
                0.0,
            )
            mean = mean + gain * step
            variance = (1 - gain) * variance + size**2
        found.append(log)
    evidence: Array = special.logsumexp(found, axis=0) - math.log(len(found))
    return evidence


@dataclass(frozen=True)
class _Jumps:
    """A column that rests at a level until it jumps to another, which is drawn from those that it has."""

    evidence: Array  # (N,) log
    levels: Array  # (N, K) evenly spaced
    often: Array  # (N, K) how often it jumps to each level, of sum 1
    rate: Array  # (N, 1) jumps per frame
    ahead: Array  # (N, T, K) probabilities given the frames so far
    density: Array  # (N, T, K) relative likelihood of each frame


def _jumps(y: Array, error: Array) -> _Jumps:
    """The rate, and how often a column jumps to each level, by expectation and maximisation with weak priors."""
    levels = _levels(y)
    n, n_levels = levels.shape
    log_density = _density(y[:, :, None], error[:, :, None], levels[:, None, :])
    top = log_density.max(axis=2, keepdims=True)
    density = np.exp(log_density - top)
    often, rate = np.full((n, n_levels), 1 / n_levels), np.full((n, 1), USUAL_RATE)
    for _ in range(EM_STEPS):
        _, ahead = _forward(density, often, rate)
        hops, first = _hops(density, ahead, often, rate)
        often = (hops + first + SPREAD_WEIGHT / n_levels) / (
            hops.sum(axis=1, keepdims=True) + 1 + SPREAD_WEIGHT
        )
        rate = (hops.sum(axis=1, keepdims=True) + 1) / (y.shape[1] + 1 / USUAL_RATE)
    log, ahead = _forward(density, often, rate)
    # Levels were learned, two at least, each in half of the frames.
    cost = 2 * _occam(y, np.sum(1 / error**2, axis=1) / 2)
    return _Jumps(log + top[:, :, 0].sum(axis=1) - cost, levels, often, rate, ahead, density)


def _levels(y: Array) -> Array:
    """Evenly spaced levels that cover a trace, shape (N, K)."""
    rough = ndimage.gaussian_filter1d(y, 1.0, axis=1, mode="nearest")
    low, high = np.quantile(rough, 0.01, axis=1) - 0.5, np.quantile(rough, 0.99, axis=1) + 0.5
    levels: Array = low[:, None] + (high - low)[:, None] * np.linspace(0, 1, N_LEVELS)
    return levels


def _forward(density: Array, often: Array, rate: Array) -> tuple[Array, Array]:
    """Log likelihood (N,), and probabilities of the levels given the frames so far (N, T, K)."""
    log = np.zeros(len(density))
    ahead = np.empty_like(density)
    share = often
    for t in range(density.shape[1]):
        joint = share * density[:, t]
        total = joint.sum(axis=1, keepdims=True)
        ahead[:, t] = joint / total
        log += np.log(total[:, 0])
        share = (1 - rate) * ahead[:, t] + rate * often
    return log, ahead


def _hops(density: Array, ahead: Array, often: Array, rate: Array) -> tuple[Array, Array]:
    """Expected number of jumps to each level, and probabilities of the level in the first frame, (N, K) each."""
    hops = np.zeros_like(often)
    posterior = ahead[:, -1]
    for t in range(density.shape[1] - 2, -1, -1):
        ratio = posterior / np.maximum((1 - rate) * ahead[:, t] + rate * often, 1e-300)
        hops += rate * often * ratio
        back = (1 - rate) * ratio + rate * np.sum(often * ratio, axis=1, keepdims=True)
        posterior = ahead[:, t] * back
    return hops, posterior


def _paths(found: _Jumps, column: int, rng: np.random.Generator) -> Array:
    """Levels of paths that agree with the trace of a column, shape (N_PATHS, T), drawn backwards."""
    ahead, often, rate = found.ahead[column], found.often[column], float(found.rate[column, 0])
    n_frames = len(ahead)
    paths = np.empty((N_PATHS, n_frames), np.int16)
    take = np.arange(N_PATHS)
    cumulative = np.cumsum(ahead, axis=1)
    draws = rng.uniform(size=(2, n_frames, N_PATHS))
    last = np.searchsorted(cumulative[-1], draws[0, -1] * cumulative[-1, -1])
    paths[:, -1] = np.minimum(last, N_LEVELS - 1)
    for t in range(n_frames - 2, -1, -1):
        after = paths[take, t + 1]
        stays = (1 - rate) * ahead[t, after]
        stay = draws[0, t] * (stays + rate * often[after]) < stays
        jumped = np.minimum(np.searchsorted(cumulative[t], draws[1, t] * cumulative[t, -1]), N_LEVELS - 1)
        paths[:, t] = np.where(stay, after, jumped)
    return paths


def _changes(column: int, path: Array, jumps: float) -> list[ColumnChange]:
    """Changes that enough paths (n_paths, T) have: maxima of their number per frame, each with the frames around it."""
    steps = np.diff(path, axis=1)
    least = LEAST_STEP * (np.quantile(path, 0.95) - np.quantile(path, 0.05))
    found: list[ColumnChange] = []
    for hit in (steps > least, steps < -least):
        for first, stop in _stretches(hit.mean(axis=0)):
            inside = hit[:, first:stop]
            share = float(inside.any(axis=1).mean())
            if share * jumps < LEAST_PROBABILITY:
                continue
            rows, at = np.nonzero(inside)
            low, mid, high = np.quantile(at + first, [0.05, 0.5, 0.95], method="nearest")
            before, after = (float(np.median(path[rows, at + first + k])) for k in (0, 1))
            found.append(
                ColumnChange(column, int(mid) + 1, int(low) + 1, int(high) + 1, before, after, share * jumps)
            )
    return found


def _stretches(rate: Array) -> list[tuple[int, int]]:
    """Frames that belong to one change: around each maximum, down to the lowest place between two."""
    smooth = ndimage.gaussian_filter1d(rate, 1.5, mode="constant")
    peaks = np.flatnonzero((smooth >= np.roll(smooth, 1)) & (smooth > np.roll(smooth, -1)) & (smooth > 1e-3))
    if not len(peaks):
        return [(0, len(rate))] if smooth.max(initial=0) > 1e-3 else []
    cuts = [0]
    for one, other in itertools.pairwise(peaks):
        cuts.append(int(one + np.argmin(smooth[one : other + 1])))
    cuts.append(len(rate))
    return [(a, b) for a, b in itertools.pairwise(cuts) if b > a]


def _shares(evidence: Array) -> Array:
    """Probability of each explanation for each column; how many columns jump is learned from all of them."""
    share = 0.3
    for _ in range(50):
        prior = np.log([0.5 * (1 - share), 0.5 * (1 - share), share])[:, None]
        posterior: Array = special.softmax(evidence + prior, axis=0)
        share = (float(np.sum(posterior[2])) + SHARE_PRIOR[0]) / (evidence.shape[1] + sum(SHARE_PRIOR))
    return posterior
