"""The ideal observer of a column: what can be known of its state from noisy frames, by any method.

It knows the position, the images of the states and how often columns switch, and sees nothing but Poisson
counts: the forward-backward algorithm of a hidden Markov model [1]_. What it cannot tell, no denoiser can.

All depends on one number, the detection index d' of two states in a single frame [2]_, which grows as the root
of the dose.

References
----------
.. [1] Rabiner, "A tutorial on hidden Markov models", Proc. IEEE 77, 257 (1989).
.. [2] Barrett and Myers, "Foundations of Image Science", chapter 13 (2004).
"""

from __future__ import annotations

import functools
import math
from typing import Any

import numpy as np
from numpy.typing import NDArray

Array = NDArray[Any]

SWITCH_RATE = 1 / 20  # changes per frame and column, as the observer knows it
TABLE_INDICES = (0.0, 0.25, 0.5, 0.75, 1.0, 1.25, 1.5, 1.75, 2.0, 2.5, 3.0, 3.5, 4.0, 5.0, 6.0, 8.0)
TABLE_DISTANCES = 6  # frames from the change
TABLE_REACH = 20  # frames simulated on either side
TABLE_DRAWS = 8000

# A change is dated to the frame if at most a quarter of its step is on the wrong side in the frames next to it,
# half of what not knowing its moment gives; and the index at which `observer_error` is so large.
DATED_ERROR, DATED_INDEX = 0.25, 1.96
TOLD_POSTERIOR, TOLD_SHARE = 0.9, 0.9  # a visit is told if the observer is so sure, in so many cases
# The index by frames of the visit at which `told_share` is TOLD_SHARE.
TOLD_INDICES = {
    1: 5.5, 2: 3.82, 3: 3.03, 4: 2.56, 6: 2.02, 8: 1.7, 12: 1.32, 16: 1.1, 24: 0.86, 32: 0.74, 48: 0.61, 64: 0.53
}  # fmt: skip


def forward_backward(log_likelihood: Array, rate: float = SWITCH_RATE) -> Array:
    """Probability of each state in each frame, given all frames.

    Parameters
    ----------
    log_likelihood : ndarray, shape (..., n_frames, n_states)
        Of what is seen in a frame, for each state; constants that all states share do not matter.
    rate : float
        Probability that the state changes between two frames, to each other state alike.

    Returns
    -------
    ndarray of float64, same shape
        Sums to 1 over the states.

    Examples
    --------
    >>> forward_backward(np.log([[0.9, 0.1], [0.5, 0.5]]), rate=0.2)[1].round(2).tolist()
    [0.74, 0.26]
    """
    likelihood = np.exp(log_likelihood - np.max(log_likelihood, axis=-1, keepdims=True))
    n_frames, n_states = likelihood.shape[-2:]
    hop = rate / max(1, n_states - 1)

    def moved(share: Array) -> Array:
        """A frame later or earlier, for shares that sum to 1."""
        after: Array = hop + (1 - rate - hop) * share if n_states > 1 else share
        return after

    before = np.full(likelihood.shape, 1 / n_states)  # given the frames before
    after = np.full(likelihood.shape, 1 / n_states)  # likelihood of the frames behind, scaled
    for k in range(1, n_frames):
        past = before[..., k - 1, :] * likelihood[..., k - 1, :]
        before[..., k, :] = moved(past / past.sum(axis=-1, keepdims=True))
    for k in range(n_frames - 2, -1, -1):
        future = after[..., k + 1, :] * likelihood[..., k + 1, :]
        after[..., k, :] = moved(future / future.sum(axis=-1, keepdims=True))
    joint = before * likelihood * after
    posterior: Array = joint / joint.sum(axis=-1, keepdims=True)
    return posterior


def detection_index(one: Array, other: Array, dose: float) -> float:
    """How well a single frame tells two images apart: the index d' of the Poisson log-likelihood ratio.

    The ratio ``sum(y log(b / a) - (b - a))`` has means that differ by ``sum((b - a) log(b / a))`` and variances
    ``sum(a log(b / a)**2)`` and ``sum(b log(b / a)**2)``; d' is the difference over the root of the mean variance.

    Parameters
    ----------
    one, other : ndarray, same shape
        Images of the two states, positive, vacuum = 1.
    dose : float
        Counts per pixel and frame in vacuum.

    Examples
    --------
    >>> round(detection_index(np.full(100, 1.0), np.full(100, 1.1), dose=2.0), 2)
    1.38
    """
    a, b = np.asarray(one, np.float64), np.asarray(other, np.float64)
    ratio = np.log(b / a)
    spread = float(np.sum((a + b) / 2 * ratio**2))
    return math.sqrt(dose / spread) * float(np.sum((b - a) * ratio)) if spread else 0.0


def observer_error(index: float | Array, distance: int, mixed_frame: bool = False) -> Array:
    """Share of a step that the ideal observer expects on its wrong side.

    Between two known states, far from other changes, after all frames of the movie were seen.

    Parameters
    ----------
    index : float or ndarray
        `detection_index` of the two states.
    distance : int
        Frames from the change, from 1 to 6: 1 for those next to it.
    mixed_frame : bool
        Whether the change falls into the exposure of a frame that is not counted (but is seen by the
        observer), at any of its moments, or between two frames.

    Returns
    -------
    ndarray of float64, shape of `index`
        From 0.5, nothing is known, to 0. Interpolated from a table made by simulation, good to 0.005.

    Examples
    --------
    >>> observer_error(0.0, 1).item()
    0.5
    """
    if not 1 <= distance <= TABLE_DISTANCES:
        raise ValueError(f"a distance of {distance} frames: the table has 1 to {TABLE_DISTANCES}.")
    table = _observer_table(mixed_frame)[:, distance - 1]
    return np.asarray(np.interp(index, TABLE_INDICES, table))


@functools.cache
def _observer_table(mixed_frame: bool) -> Array:
    """Errors by index and distance, from simulated observers of one change in the middle."""
    rng = np.random.default_rng(0)
    noise = rng.standard_normal((TABLE_DRAWS, 2 * TABLE_REACH + mixed_frame))
    state = (np.arange(noise.shape[1]) >= TABLE_REACH).astype(float)  # 1: after the change
    states = np.broadcast_to(state, noise.shape).copy()
    if mixed_frame:
        states[:, TABLE_REACH] = rng.uniform(size=TABLE_DRAWS)
    table = np.empty((len(TABLE_INDICES), TABLE_DISTANCES))
    for row, index in zip(table, TABLE_INDICES, strict=True):
        evidence = index**2 * (states - 0.5) + index * noise
        after = forward_backward(np.stack([np.zeros_like(evidence), evidence], axis=-1))[..., 1].mean(axis=0)
        # Both sides are alike.
        row[:] = (after[:TABLE_REACH][::-1] + 1 - after[-TABLE_REACH:])[:TABLE_DISTANCES] / 2
    return table


# What can be told at all ----------------------------------------------------------------------------------


def told_share(index: float, dwell: int, n_draws: int = 2000, seed: int = 0) -> float:
    """Share of the visits to another state that the observer tells, by simulation.

    Told is a visit in one of whose frames the observer gives the visited state a probability above
    `TOLD_POSTERIOR`. As these probabilities are calibrated, at most one in ten of such alarms is false.

    Parameters
    ----------
    index : float
        `detection_index` of the two states.
    dwell : int
        Frames of the visit.
    n_draws, seed : int
        Number of visits simulated, and the seed of their noise.
    """
    noise = np.random.default_rng(seed).standard_normal((n_draws, 2 * TABLE_REACH + dwell))
    visit = slice(TABLE_REACH, TABLE_REACH + dwell)
    visited = np.zeros(noise.shape[1])
    visited[visit] = 1
    evidence = index**2 * (visited - 0.5) + index * noise
    sure = forward_backward(np.stack([np.zeros_like(evidence), evidence], axis=-1))[:, visit, 1]
    return float(np.mean(sure.max(axis=1) > TOLD_POSTERIOR))


def told_index(dwell: float) -> float:
    """The smallest index d' of a state that can be told from a visit of some frames.

    That is, of which `told_share` is `TOLD_SHARE`; interpolated in a table.

    Parameters
    ----------
    dwell : float
        Frames of the visit, from 1 to 64.

    Examples
    --------
    >>> round(told_index(1), 2)
    5.5
    """
    if not 1 <= dwell <= max(TOLD_INDICES):
        raise ValueError(f"a dwell of {dwell} frames: the table has 1 to {max(TOLD_INDICES)}.")
    log = np.log(list(TOLD_INDICES.items())).T
    return float(np.exp(np.interp(np.log(dwell), *log)))


def told_dwell(index: float) -> int | None:
    """The shortest visit of a state that can be told [frames]; None if even 64 frames are too few."""
    return next((n for n in range(1, max(TOLD_INDICES) + 1) if told_index(n) <= index), None)
