"""Is a new version of a model better than the old one, and on no earlier movie worse? Told from held-out frames."""

from __future__ import annotations

import math
from collections.abc import Mapping, Set
from dataclasses import dataclass
from statistics import NormalDist
from typing import NamedTuple

CONFIDENCE = 0.95  # of all intervals together


class Difference(NamedTuple):
    """By how much the error of one network exceeds that of another on the same pixels; see `validation.compare`."""

    excess: float  # [noise variance]
    error: float  # its standard error


@dataclass(frozen=True)
class Acceptance:
    """What a comparison of two versions gave.

    Attributes
    ----------
    accepted : bool
    mean : Difference
        Over movies, each counted once.
    factor : float
        Standard errors that the interval of a movie extends to each side.
    forgotten : list of str
        Earlier movies whose error rose beyond their interval.
    """

    accepted: bool
    mean: Difference
    factor: float
    forgotten: list[str]


def interval_factor(n_intervals: int) -> float:
    """Standard errors to each side of so many intervals that hold together (Bonferroni).

    Examples
    --------
    >>> round(interval_factor(1), 2), round(interval_factor(10), 2)
    (1.96, 2.81)
    """
    return NormalDist().inv_cdf(1 - (1 - CONFIDENCE) / 2 / max(1, n_intervals))


def accept(differences: Mapping[str, Difference], earlier: Set[str]) -> Acceptance:
    """Whether a new version may take the place of the old one.

    It may if the mean error over movies falls, by more than its interval, and that of no earlier movie rises by
    more than its own. Among many movies some would rise by chance, so their intervals are as wide as it takes for
    all of them to hold together.

    Parameters
    ----------
    differences : mapping of str to Difference
        Of every movie, the new version's error over the old one's.
    earlier : set of str
        Movies that the old version learned from.
    """
    n = len(differences)
    mean = Difference(
        sum(d.excess for d in differences.values()) / n,
        math.sqrt(sum(d.error**2 for d in differences.values())) / n,
    )
    factor = interval_factor(len(earlier & differences.keys()))
    forgotten = [name for name, d in differences.items() if name in earlier and d.excess > factor * d.error]
    falls = mean.excess < -interval_factor(1) * mean.error
    return Acceptance(falls and not forgotten, mean, factor, forgotten)
