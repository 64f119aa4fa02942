"""The time from frame to frame, from the time stamps that some formats keep: one way for all of them."""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

_PRECISION = 0.01  # relative error above which a frame time is left unknown
_APART = 0.5  # of the usual interval; one that differs by more is of another kind
_NEAR = 0.2  # of it; the mean of those that differ by less is the frame time
_DISAGREE = 0.05  # of what a header says, beyond which the user is told that the stamps are believed


class Intervals(NamedTuple):
    """What successive time stamps say of the time between them."""

    usual_s: float | None  # mean of the intervals near the median [s]; None where it is not above 0
    n_alike: int
    odd: NDArray[np.intp]  # frames after which an interval of another length follows
    backwards: NDArray[np.intp]  # frames after which the clock ran back
    longer: NDArray[np.intp]  # frames after which others are missing
    n_lost: int  # frames that would have filled the longer intervals


def intervals(stamps: NDArray[np.float64], resolution_s: float = 0.0) -> Intervals:
    """The usual interval between time stamps, which neither a pause nor a jump of the clock changes.

    Parameters
    ----------
    stamps : ndarray, shape (n_frames,)
        When each frame began [s]; NaN where that is not known.
    resolution_s : float, optional
        The smallest step that the stamps can tell [s].

    Examples
    --------
    >>> found = intervals(np.array([0.0, 0.1, 0.2, 5.2, 5.3]))
    >>> round(found.usual_s, 6), found.longer.tolist(), found.n_lost
    (0.1, [2], 49)
    """
    with np.errstate(invalid="ignore", over="ignore"):  # of damaged stamps
        steps = np.diff(stamps)
    known = steps[np.isfinite(steps)]
    typical = float(np.median(known)) if known.size else 0.0
    apart, jitter = abs(steps - typical), 1.5 * resolution_s
    alike = (apart <= max(typical * _APART, jitter)) & (steps >= 0)
    # A median of 33 and 34 ms is neither of a movie with 30 frames a second.
    near = (apart <= max(typical * _NEAR, jitter)) & alike
    mean = float(steps[near].mean()) if near.any() else 0.0
    odd, backwards = np.flatnonzero(~alike & (steps >= 0)), np.flatnonzero(steps < 0)
    if mean <= 0:
        return Intervals(None, int(alike.sum()), odd, backwards, odd[:0], 0)
    longer = odd[steps[odd] > mean]
    n_lost = int((np.rint(steps[longer] / mean) - 1).clip(1).sum())
    return Intervals(mean, int(alike.sum()), odd, backwards, longer, n_lost)


def told_apart(stamps: NDArray[np.float64] | None) -> NDArray[np.float64] | None:
    """Times from the first frame on [s], or None where the clock is too coarse to tell frames apart.

    Examples
    --------
    >>> told_apart(np.array([5.0, 7.0])), told_apart(np.array([5.0, 5.0]))
    (array([0., 2.]), None)
    """
    if stamps is None or (np.diff(stamps) == 0).any():
        return None
    return np.asarray(stamps - stamps[0], np.float64)


def frame_time(
    stamps: NDArray[np.float64] | None, resolution_s: float, told_s: float | None = None
) -> tuple[float | None, tuple[str, ...]]:
    """The usual time from frame to frame, and a warning where some are further apart.

    Parameters
    ----------
    stamps : ndarray, shape (n_frames,), or None
        When each frame began [s].
    resolution_s : float
        The smallest step that the stamps can tell [s].
    told_s : float, optional
        What the file gives in so many words [s]: exact, unless the stamps say that it is wrong.

    Returns
    -------
    frame_time_s : float or None
        The mean of the intervals that are alike [s]; ``told_s`` where the stamps are too coarse or contradict
        one another.
    warnings : tuple of str
        What is wrong with the stamps, with the frame time that is used all the same.

    Examples
    --------
    >>> frame_time(np.array([0.0, 0.1, 0.2, 0.3]), 1e-6)
    (0.1, ())
    >>> frame_time(np.array([0.0, 0.0, 1.0]), 1.0, told_s=0.4)
    (0.4, ())
    """
    if stamps is None or len(stamps) < 2:
        return told_s, ()
    found = intervals(stamps, resolution_s)
    usual, measured = found.usual_s, None
    if usual is not None and resolution_s / (usual * found.n_alike) <= _PRECISION:
        measured = float(f"{usual:.7g}")
    used, said = told_s if measured is None else measured, []
    if measured is not None and told_s is not None:
        apart = abs(measured / told_s - 1)
        used = told_s if apart <= _PRECISION else measured
        if apart > _DISAGREE:
            said.append(
                f"its header says {told_s} s from frame to frame, its time stamps {measured} s, which is used; "
                "--frame-time overrides it."
            )
    return used, (*said, *_wrong(stamps, found, measured, used))


def _wrong(
    stamps: NDArray[np.float64], found: Intervals, measured: float | None, used: float | None
) -> Iterator[str]:
    """What is wrong with the stamps themselves, in words."""
    outcome = "the frame time is unknown" if used is None else f"{used} s from frame to frame is used"
    unknown = np.flatnonzero(~np.isfinite(stamps))
    if unknown.size:
        yield (f"{unknown.size} frames have no time stamp, the first is frame {unknown[0]}; {outcome}.")
    if found.backwards.size:
        yield (f"the time stamps run backwards after frame {found.backwards[0]}; {outcome}.")
    elif found.n_alike == 0 and not unknown.size:
        yield (f"no two intervals between its time stamps are alike; {outcome}.")
    if measured is not None and found.odd.size:
        first = int((found.longer if found.longer.size else found.odd)[0])
        why = (
            f"about {found.n_lost} frames were lost, or the recording paused"
            if found.n_lost
            else "others are shorter"
        )
        yield (
            f"{found.odd.size} of {len(stamps) - 1} intervals between frames differ from {measured} s by over half, "
            f"the first after frame {first} ({stamps[first + 1] - stamps[first]:.7g} s): {why}."
        )


def usual_step(values: NDArray[np.float64], digits: int = 9) -> float | None:
    """The usual distance of the values of an axis, of either direction; None where there is none.

    Examples
    --------
    >>> usual_step(np.array([3.0, 2.5, 2.0])), usual_step(np.array([1.0]))
    (0.5, None)
    """
    values = np.asarray(values, np.float64)
    if len(values) < 2:
        return None
    rising = values if values[-1] >= values[0] else -values
    usual = intervals(rising).usual_s
    return None if usual is None else float(f"{usual:.{digits}g}")
