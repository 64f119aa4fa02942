"""Binomial thinning: pure counts split into two independent frames of the same scene.

If ``y`` counts single electrons (Poisson with mean ``x``), giving each of them to one of two frames by the throw of
a coin makes these independent, Poisson with means ``(1 - q) x`` and ``q x``. So an ordinary network, with no blind
spot, can learn to predict one from the other (Krull et al. 2023, GAP), and its error can be measured on a part of
the counts that it never saw. If a count is not one electron, or neighbours share electrons, the two frames are not
independent and the network learns noise: `refusal` says so.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from .noise import NoiseStatistics

Array = NDArray[Any]

TRAINING_SHARES = (0.1, 0.5)  # of the electrons that are held back as the target, drawn anew for every patch
VALIDATION_SHARES = (0.25, 0.25)
FANO_BOUND = 0.03
CORRELATION_BOUND = 0.01
FEW = 8.0  # electrons per pixel up to which it is quickest to ask every single one


def thin(counts: Array, share: float, rng: np.random.Generator) -> Array:
    """Counts of the same scene at a share of the dose: every electron is kept with that probability.

    What is left of Poisson counts is exactly Poisson.

    Parameters
    ----------
    counts : ndarray of whole numbers
        Electrons.
    share : float
        From 0 to 1.
    rng : numpy.random.Generator

    Returns
    -------
    ndarray, same shape and type

    Examples
    --------
    >>> thin(np.array([0, 1, 4]), 1.0, np.random.default_rng(0))
    array([0, 1, 4])
    """
    ends = np.cumsum(counts, dtype=np.int64)
    n_electrons = int(ends[-1]) if ends.size else 0
    if n_electrons > FEW * counts.size:
        return rng.binomial(np.asarray(counts, dtype=np.int64), share).astype(counts.dtype)
    # Of few electrons, a throw for each is several times quicker than numpy's binomial numbers.
    kept = np.zeros(n_electrons + 1, dtype=np.int64)
    np.cumsum(rng.random(n_electrons, dtype=np.float32) < share, out=kept[1:])
    left: Array = np.diff(kept[ends], prepend=0).reshape(counts.shape).astype(counts.dtype)
    return left


def split(
    counts: Array, rng: np.random.Generator, shares: tuple[float, float] = TRAINING_SHARES
) -> tuple[NDArray[np.float32], NDArray[np.float32], float]:
    """Hold back a random share of the electrons of a frame.

    Both parts are divided by their share, so each is an unbiased picture of the frame at its own dose: the
    centre frame then stands among its neighbour frames with the same contrast, as it does when the whole of it is
    shown in use. That its noise was larger in training (by 1 / (1 - q), random) the network sees in the frame
    itself; it has neither bias nor normalisation, so it follows the noise level to the q = 0 of use.

    Parameters
    ----------
    counts : ndarray of whole numbers
        Electrons.
    rng : numpy.random.Generator
    shares : tuple of float
        Between which the share ``q`` is drawn.

    Returns
    -------
    shown : ndarray of float32, same shape
        Input of the network [counts].
    target : ndarray of float32, same shape
        What it has to predict [counts].
    worth : float
        Weight of the target, ``q``: its variance is that of the counts over ``q``.

    Examples
    --------
    >>> shown, target, q = split(np.full(5, 40), np.random.default_rng(0))
    >>> np.allclose((1 - q) * shown + q * target, 40)
    True
    """
    q = float(rng.uniform(*shares))
    held = rng.binomial(np.asarray(counts, dtype=np.int64), q)
    shown = np.asarray(counts - held, dtype=np.float32) / np.float32(1 - q)
    return shown, held.astype(np.float32) / np.float32(q), q


def split_for_validation(
    counts: Array, rng: np.random.Generator
) -> tuple[NDArray[np.float32], NDArray[np.float32], float]:
    """`split` with one fixed share, so that all networks are compared on the same frames."""
    return split(counts, rng, VALIDATION_SHARES)


def unbiased_error_terms(target: Array, predicted: Array, q: float) -> Array:
    """Terms whose mean is the mean squared error of a network that saw the rest of the counts.

    ``(a / q - f)^2 - a / q^2`` for ``a`` electrons held back: the first term exceeds the squared error by the
    variance of ``a / q``, which is ``x / q``, and ``a / q^2`` is that on average. The error is the one at the dose
    that was shown, (1 - q) of the whole, so that in use is a little smaller.

    Parameters
    ----------
    target : ndarray
        ``a / q`` as `split` gives it [counts].
    predicted : ndarray, same shape
        ``f`` [counts].
    q : float

    Returns
    -------
    ndarray of float64, same shape
    """
    a = np.asarray(target, dtype=np.float64)
    terms: Array = (a - predicted) ** 2 - a / q
    return terms


def refusal(statistics: NoiseStatistics, counts_per_electron: float | None = None) -> str | None:
    """Why thinning is not valid for a movie, with the figures; None where it is.

    The counts must be whole and one electron each, with a Fano factor within 0.97 to 1.03 and no correlation of
    1 % between pixels or frames; and both must be known that well.
    """
    if counts_per_electron not in (None, 1.0):
        return f"an electron makes {counts_per_electron:g} counts, not one"
    if statistics.whole is None or not statistics.correlations:
        return "an old version wrote the movie store, which does not record enough about the noise. Ingest it again"
    if not statistics.whole:
        return "the values are not whole numbers, so they are no counts of electrons"
    fano, error = statistics.fano, statistics.fano_error
    if not abs(fano - 1) <= FANO_BOUND:
        return f"the Fano factor is {fano:.3f} +- {error:.3f}, not within 0.97 to 1.03 as of single electrons"
    if not error <= FANO_BOUND:
        return f"the Fano factor, {fano:.3f} +- {error:.3f}, is not known to 0.03: the movie is too small to tell"
    for where in ("between pixels", "between frames"):
        worst = statistics.strongest(in_time=where == "between frames")
        if worst is None or not worst.error <= CORRELATION_BOUND:
            return f"the correlation of the noise {where} is not known to 1 %: the movie is too small to tell"
        if not abs(worst.value) <= CORRELATION_BOUND:
            return (
                f"the noise is correlated {where} ({100 * worst.value:+.1f} % +- {100 * worst.error:.1f} % at "
                f"{worst.y} rows, {worst.x} columns, {worst.t} frames), and may be by 1 % at most"
            )
    return None
