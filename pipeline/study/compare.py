"""What the cells of a study say together: errors with intervals, what fewer frames lose, and where more bring nothing.

All cells are judged on the same counts, so most of the noise is the same in all errors and cancels in differences.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any, TypedDict

import numpy as np
from numpy.typing import NDArray
from scipy import special

from tdenoise.evaluation.metrics import Interval, bootstrap_interval, bootstrap_ratio

from .cells import Result
from .judge import Judge

Array = NDArray[Any]

NOTHING_DB = 0.2  # a loss that does not count
WRONG = 0.05  # chance that one interval or more of all differences misses what is true (Bonferroni)
DRAWS = 4000  # of the bootstrap, for intervals of more than 99 %
STATES = ("as good", "worse", "not resolved")


class Loss(TypedDict):
    """By how much an error exceeds another one; the intervals of all of them together hold in 95 of 100 studies."""

    estimate: float
    low: float
    high: float


class Compared(TypedDict):
    """Trainings against others."""

    difference: Loss  # of the noise variance
    decibels: Loss | None  # None where the error of the others may be nothing
    state: str  # one of `STATES`


class Point(TypedDict):
    """All trainings on one number of frames of one size."""

    frames: int
    size: str
    error: float  # mean squared error, of the noise variance
    low: float
    high: float
    resolvable: bool  # whether the error is clearly above zero
    fewer: Compared | None  # against all frames of this size; None of these
    smaller: Compared | None  # against the largest frames, with as many of them
    above: Loss | None  # error above that of all of the largest frames, of the noise variance; None of these
    fringes: dict[str, float] | None  # mean over the seeds
    training_s: float
    inference_s_per_megapixel: float


class Conclusion(TypedDict):
    """What a figure says."""

    # Beyond which nothing is gained; None where there is none, or nobody can tell.
    knee: int | None  # number of frames
    size_knee: str | None
    sentence: str


def points(results: Sequence[Result], judge: Judge) -> list[Point]:
    """Every number of frames and size with its error, compared with the most frames and with the largest ones."""
    groups: dict[tuple[int, str], list[Result]] = {}
    for result in results:
        groups.setdefault((result.cell.n_frames, result.cell.size), []).append(result)
    sizes = list(dict.fromkeys(size for _, size in groups))  # the smallest first
    most = max(n for n, _ in groups)
    found: list[Point] = []
    best = groups[most, sizes[-1]]
    fewer, smaller = {k for k in groups if k[0] != most}, {k for k in groups if k[1] != sizes[-1]}
    level = 1 - WRONG / max(
        1, len(fewer) + len(smaller) + len(fewer & smaller)
    )  # for all comparisons together
    for (n, size), members in groups.items():
        error = _error(members, judge)
        fringes = [f for r in members if (f := r.facts["fringes"]) is not None]
        found.append(
            {
                "frames": n,
                "size": size,
                "error": error.estimate,
                "low": error.low,
                "high": error.high,
                "resolvable": error.low > 0,
                "fewer": None if n == most else _compared(members, groups[most, size], judge, level),
                "smaller": None
                if size == sizes[-1]
                else _compared(members, groups[n, sizes[-1]], judge, level),
                "above": None if members is best else _compared(members, best, judge, level)["difference"],
                "fringes": _mean(fringes),
                "training_s": float(np.mean([r.facts["training_s"] for r in members])),
                "inference_s_per_megapixel": float(
                    np.mean([r.facts["inference_s_per_megapixel"] for r in members])
                ),
            }
        )
    return sorted(found, key=lambda p: (sizes.index(p["size"]), p["frames"]))


def _error(members: Sequence[Result], judge: Judge) -> Interval:
    """Mean squared error over the trainings, in units of the noise variance."""
    unit = judge.law.variance
    found = bootstrap_interval(_excess(members, judge), judge.weights)
    estimate, low, high = (value / unit for value in found)
    wide = _wider(Interval(estimate, low, high), _luck(_errors(members, judge)))
    return Interval(wide["estimate"], wide["low"], wide["high"])


def _excess(members: Sequence[Result], judge: Judge) -> Array:
    """Sums over blocks of the squared error, the mean over the trainings: what exceeds the noise of the counts."""
    return np.asarray(np.mean([r.squares for r in members], axis=0) - judge.noise)


def _errors(members: Sequence[Result], judge: Judge) -> list[float]:
    total = float(judge.weights.sum()) * judge.law.variance
    return [float((r.squares - judge.noise).sum()) / total for r in members]


def _luck(errors: Sequence[float]) -> float:
    """Half of the 95 % interval that the luck of trainings gives their mean; 0 of one training, which tells nothing."""
    n = len(errors)
    if n < 2:
        return 0.0
    return float(special.stdtrit(n - 1, 0.975) * np.std(errors, ddof=1) / math.sqrt(n))


def _compared(members: Sequence[Result], best: Sequence[Result], judge: Judge, level: float) -> Compared:
    """What some trainings lose against others, and whether that counts."""
    one, other = _excess(members, judge), _excess(best, judge)
    unit = judge.law.variance
    luck = math.hypot(_luck(_errors(members, judge)), _luck(_errors(best, judge)))
    paired = bootstrap_interval(one - other, judge.weights, DRAWS, level=level)
    difference = _wider(Interval(*(value / unit for value in paired)), luck)
    # Of an error that may be nothing, no ratio can be told.
    ratio = bootstrap_ratio(one, other, DRAWS, level=level) if _error(best, judge).low > 0 else None
    if ratio is None or not ratio.low > 0:
        state = STATES[1] if difference["low"] > 0 else STATES[0] if difference["high"] <= 0 else STATES[2]
        return {"difference": difference, "decibels": None, "state": state}
    error = float(one.sum()) / float(judge.weights.sum()) / unit
    decibels = _wider(
        Interval(*(10 * math.log10(value) for value in ratio)), 10 / math.log(10) * luck / error
    )
    state = STATES[0] if decibels["high"] < NOTHING_DB else STATES[1] if decibels["low"] > 0 else STATES[2]
    return {"difference": difference, "decibels": decibels, "state": state}


def _wider(found: Interval, luck: float) -> Loss:
    """An interval with the luck of trainings added to it."""
    estimate, low, high = found
    return {
        "estimate": estimate,
        "low": estimate - math.hypot(estimate - low, luck),
        "high": estimate + math.hypot(high - estimate, luck),
    }


def _mean(found: Sequence[Mapping[str, float]]) -> dict[str, float] | None:
    return {key: float(np.mean([f[key] for f in found])) for key in found[0]} if found else None


def conclude(found: Sequence[Point], dose: str) -> Conclusion:
    """The knee of the largest frames, and all of it in one sentence.

    Parameters
    ----------
    found : sequence of Point
        The smallest frames first, and of each size the fewest frames first.
    dose : str
        Of the movie, in words.
    """
    largest = [p for p in found if p["size"] == found[-1]["size"]]
    parts, at = [], f"at this dose ({dose})" if dose else "at this dose"
    at_knee = knee(largest, lambda p: p["fewer"])
    place = None if at_knee is None else at_knee["frames"]
    if len(largest) > 1:
        parts.append(_of_frames(largest, place, at))
    by_size = [p for p in found if p["frames"] == found[-1]["frames"]]
    parts += [_of_size(p) for p in by_size[:-1]]
    smallest = knee(by_size, lambda p: p["smaller"])
    if not parts:
        parts.append("one cell compares nothing")
    text = "; ".join(parts)
    return {
        "knee": place,
        "size_knee": None if smallest is None else smallest["size"],
        "sentence": f"{text[0].upper()}{text[1:]}.",
    }


def knee(curve: Sequence[Point], against: Callable[[Point], Compared | None]) -> Point | None:
    """The first point from which on every one is as good as the last; None where there is none."""
    place = None
    for point in reversed(curve[:-1]):
        if _state(against(point)) != STATES[0]:
            break
        place = point
    return place


def _state(compared: Compared | None) -> str:
    return STATES[0] if compared is None else compared["state"]


def _of_frames(curve: Sequence[Point], place: int | None, at: str) -> str:
    last, before = curve[-1], curve[-2]
    worse = [p for p in curve if _state(p["fewer"]) == "worse"]
    if place is not None:
        fewer = [p for p in curve if p["frames"] < place]
        text = f"beyond about {place} frames nothing is gained {at}"
        if not fewer:
            return f"{text}, and fewer were not tried"
        if fewer[-1] not in worse:
            return f"{text}; whether {fewer[-1]['frames']} are enough is not resolved"
        return f"{text}; {fewer[-1]['frames']} frames lose {_amount(fewer[-1]['fewer'])}"
    if before in worse:
        return (
            f"the error still falls with the number of frames {at}: {before['frames']} instead of {last['frames']} "
            f"frames lose {_amount(before['fewer'])}"
        )
    text = f"whether more than {before['frames']} frames gain anything is not resolved {at}"
    return text + (f"; {worse[-1]['frames']} frames lose {_amount(worse[-1]['fewer'])}" if worse else "")


def _of_size(point: Point) -> str:
    size, compared = point["size"], point["smaller"]
    if _state(compared) == "not resolved":
        return f"what frames of {size} pixels lose is not resolved"
    if _state(compared) == "as good":
        return f"frames of {size} pixels lose nothing"
    return f"frames of {size} pixels lose {_amount(compared)}"


def _amount(compared: Compared | None) -> str:
    """What is lost, in words."""
    if compared is None:
        return "nothing"
    if (loss := compared["decibels"]) is not None:
        return f"{loss['estimate']:.1f} dB"
    return f"{100 * compared['difference']['estimate']:.2g} % of the noise variance"


def warnings(found: Sequence[Point], results: Sequence[Result], n_seeds: int) -> list[str]:
    """What a reader must know to take the figures for what they are."""
    notes = []
    if all(r.facts["kept_share"] == 0 for r in results):
        notes.append("No training improved on the model that it began with, so all cells are the same model.")
    better = [p for p in found if p["fewer"] is not None and _is_better(p["fewer"])]
    if better:
        best = min(better, key=lambda p: p["error"])
        notes.append(
            f"{best['frames']} frames of {best['size']} pixels did better than all frames. With this effort the "
            "training, not the movie, sets the limit: give more --steps or a longer --time-limit."
        )
    if n_seeds == 1:
        notes.append(
            "One training for every point: the intervals hold the noise of the counts, not the luck of a training. "
            "--seeds 3 shows that, too."
        )
    if any(np.isnan(p["low"]) for p in found):
        notes.append("The judged part is too small for any interval. Leave out the smallest --sizes.")
    elif not all(p["resolvable"] for p in found):
        notes.append(
            "Some errors are too small to tell from zero with so few judged pixels. Differences between cells are told "
            "with much more certainty, for most of the noise is the same in both."
        )
    shown = [p["fringes"] for p in found if p["fringes"] is not None]
    if not shown:
        notes.append(
            "Fringes in the vacuum were not looked for: the judged field shows no vacuum, or no lattice that would "
            "reach into it."
        )
    elif all(f["ratio"] <= f["chance"] for f in shown):
        notes.append("No model draws more fringes into the vacuum than chance would.")
    return notes


def _is_better(compared: Compared) -> bool:
    decibels = compared["decibels"]
    return compared["difference"]["high"] < 0 if decibels is None else decibels["high"] < -NOTHING_DB
