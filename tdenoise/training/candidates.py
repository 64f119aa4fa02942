"""Ways to a model for a movie, tried for a short time each: who is honest with the movie goes on.

What simulated scenes taught helps where the movie is like them and misleads where it is not. Nobody knows beforehand,
so the base model adapted beside scenes, adapted to the movie alone, and a network without any past are compared on
counts that none of them was trained on, and on the sum over time of what they remove, in every kind of place that the
movie shows.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from ..evaluation.places import KINDS
from .validation import Sums, compare

WORSE = 2.5  # standard errors, beyond which a candidate is worse than another in some kind of place
LEAST_BLOCKS = 20  # of a kind of place, to compare in it


@dataclass(frozen=True)
class Candidate:
    """A way to a model."""

    name: str
    rehearses: bool  # simulated scenes beside the movie
    adapts: bool  # begins with given weights, not with new ones


CANDIDATES = (
    Candidate("adapted with scenes", rehearses=True, adapts=True),
    Candidate("adapted without scenes", rehearses=False, adapts=True),
    Candidate("from scratch", rehearses=False, adapts=False),
)
SHARE = 0.2  # of the time, that each of them is trained for; the rest is the chosen one's


class Measured(NamedTuple):
    """What a candidate makes of counts that it was not trained on."""

    held_out: Sums
    kinds: NDArray[np.intp]  # of place, of every block of these; see `tdenoise.evaluation.places`
    contradiction: Sums  # see `tdenoise.training.contradiction`


def choose(measured: Mapping[str, Measured]) -> tuple[str, dict[str, dict[str, float]]]:
    """The candidate that is nowhere worse than another.

    Of those that are not, the first; if every one is worse than some other somewhere, the one that is so by the least.

    Parameters
    ----------
    measured : mapping of str to Measured
        By name, the preferred first; all of the same frames.

    Returns
    -------
    name : str
    excess : dict
        Of every candidate in every kind of place that the movie shows, and in the sum over time (``over time``): by
        how many standard errors it is worse than the best there.
    """
    excess: dict[str, dict[str, float]] = {name: {} for name in measured}
    for place in (*KINDS, "over time"):
        sums = {name: _in_place(m, place) for name, m in measured.items()}
        if min(int((s.weights > 0).sum()) for s in sums.values()) < LEAST_BLOCKS:
            continue
        best = min(sums, key=lambda name: float(sums[name].errors.sum() / sums[name].weights.sum()))
        for name, own in sums.items():
            more, error = compare(own, sums[best])
            excess[name][place] = more / error if error > 0 else 0.0
    worst = {name: max(found.values(), default=0.0) for name, found in excess.items()}
    honest = [name for name, value in worst.items() if value <= WORSE]
    return (honest[0] if honest else min(worst, key=lambda name: worst[name])), excess


def _in_place(measured: Measured, place: str) -> Sums:
    if place == "over time":
        return measured.contradiction
    chosen = measured.kinds == KINDS.index(place)
    return Sums(measured.held_out.errors[chosen], measured.held_out.weights[chosen])
