"""Which frames stand around the one that is predicted."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray


def window_indices(centre: int, n_frames: int, window: int) -> NDArray[np.intp]:
    """Frames that stand around a centre frame, never the centre frame itself.

    Where the movie ends, the missing neighbour at distance ``d`` is replaced by the one at distance ``d`` on
    the other side. Mirroring about the movie's end would, for some distances, show the network its own
    target. Where neither side has a frame at that distance, the distance is folded back into the reach.

    Parameters
    ----------
    centre : int
        Number of the frame to predict, from 0.
    n_frames : int
        Length of the movie, at least 3 frames.
    window : int
        Neighbours on each side.

    Returns
    -------
    ndarray of int, shape (2 * window,)
        Frame numbers for the offsets ``-window..-1, 1..window``.

    Examples
    --------
    >>> window_indices(0, 30, 2).tolist()
    [2, 1, 1, 2]
    >>> window_indices(1, 3, 3).tolist()
    [0, 0, 0, 2, 2, 2]
    """
    if n_frames < 3:
        raise ValueError(
            f"a movie needs at least 3 frames to be denoised from its neighbours, it has {n_frames}"
        )
    reach = max(centre, n_frames - 1 - centre)
    distance = np.arange(1, window + 1)
    if reach == 1:
        distance = np.ones_like(distance)
    else:
        fold = (distance - 1) % (2 * reach - 2)
        distance = 1 + np.where(fold < reach, fold, 2 * reach - 2 - fold)
    before, after = centre - distance, centre + distance
    left = np.where(before >= 0, before, after)
    right = np.where(after < n_frames, after, before)
    return np.concatenate([left[::-1], right])
