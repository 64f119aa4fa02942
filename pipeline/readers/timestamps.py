"""Frame times from the time stamps that some formats keep for every frame."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

_PRECISION = 0.01  # relative error above which a frame time is left unknown


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


def frame_time(stamps: NDArray[np.float64], resolution_s: float) -> tuple[float | None, tuple[str, ...]]:
    """The usual time from frame to frame, and a warning where some are further apart.

    Parameters
    ----------
    stamps : ndarray, shape (n_frames,)
        When each frame began [s].
    resolution_s : float
        The smallest step that the stamps can tell [s].

    Returns
    -------
    frame_time_s : float or None
        The mean of the intervals that are alike [s]; None where the stamps are too coarse, or run backwards.
    warnings : tuple of str
        One sentence if some intervals differ from the others.

    Examples
    --------
    >>> frame_time(np.array([0.0, 0.1, 0.2, 0.3]), 1e-6)
    (0.1, ())
    >>> frame_time(np.array([0.0, 0.0, 1.0]), 1.0)
    (None, ())
    """
    steps = np.diff(stamps)
    if steps.size == 0 or not np.isfinite(steps).all():
        return None, ()
    if (steps < 0).any():
        first = int(np.flatnonzero(steps < 0)[0])
        return None, (f"the time stamps run backwards after frame {first}, so the frame time is unknown.",)
    typical = float(np.median(steps))
    alike = abs(steps - typical) <= max(typical / 2, 1.5 * resolution_s)
    if not alike.any():
        return None, ("no two intervals between its time stamps are alike, so the frame time is unknown.",)
    mean = float(steps[alike].mean())
    if mean <= 0 or resolution_s / (mean * alike.sum()) > _PRECISION:
        return None, ()
    found = float(f"{mean:.7g}")
    if alike.all():
        return found, ()
    first = int(np.flatnonzero(~alike)[0])
    return found, (
        f"{int((~alike).sum())} of {steps.size} intervals between frames differ from {found} s by over half, "
        f"the first after frame {first} ({steps[first]:.7g} s): frames were dropped or the recording paused.",
    )
