"""Where columns go: a particle turns and moves within its scene, and a drift may not have been measured."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage, spatial

from .finding import DISC_SIGMAS, Columns

Array = NDArray[Any]

CENTRE_SIGMAS, CENTRE_STEPS = 1.5, 3  # radius of the centre of mass, and how often it is looked for
NEIGHBOURS = 7  # columns that move together, with the column itself
TRACK_FRAMES = 3.0  # standard deviation of the mean over time
FOLLOWED = 0.2  # share by which the place that is expected follows the one that is found, in each frame


class Tracks:
    """Places of columns, from the frames of a denoised movie in order.

    The place of a column in a frame is the centre of mass of what stands out there. What is followed is its mean over
    neighbouring columns and frames, weighted by how much they stand out: one that is gone moves as those around it.

    Parameters
    ----------
    columns : Columns
    n_frames : int
    """

    def __init__(self, columns: Columns, n_frames: int) -> None:
        n = len(columns.positions)
        self.columns = columns
        self.found = np.full((n_frames, n, 2), np.nan)  # (row, column) in the frame; NaN: nothing stands out
        self._weight = np.zeros((n_frames, n))
        self._rest = np.zeros((n_frames, n, 2))  # where the columns would be if the scene were rigid
        self._moved = np.zeros(2)

    def add(self, frame: int, denoised: Array, corner: Array) -> None:
        """The next frame.

        Parameters
        ----------
        frame : int
        denoised : ndarray, shape (height, width)
        corner : ndarray, shape (2,)
            Row and column of the frame's first pixel in the frame of the scene; need not be whole.
        """
        self._rest[frame] = self.columns.positions - corner
        places = self._rest[frame] + self._moved
        sign = 1.0 if self.columns.bright else -1.0
        self.found[frame], self._weight[frame] = _centres(sign * denoised, places, self.columns.sigma_px)
        seen = self._weight[frame] > 0
        if seen.sum() >= 3:
            step = np.median((self.found[frame] - places)[seen], axis=0)
            self._moved = self._moved + FOLLOWED * step

    def moved(self) -> Array:
        """By how much each column lies away from its place in a rigid scene, shape (T, N, 2) [pixels]."""
        n = len(self.columns.positions)
        if n == 0:
            return np.zeros_like(self.found)
        away = np.where(self._weight[..., None] > 0, self.found - self._rest, 0.0)
        _, near = spatial.cKDTree(self.columns.positions).query(
            self.columns.positions, np.arange(1, min(NEIGHBOURS, n) + 1)
        )

        def around(values: Array) -> Array:
            total = np.zeros_like(values)
            for k in range(near.shape[1]):
                total += values[:, near[:, k]]
            summed: Array = ndimage.gaussian_filter1d(total, TRACK_FRAMES, axis=0, mode="nearest")
            return summed

        weight = around(self._weight)
        total = np.stack([around(self._weight * away[..., axis]) for axis in (0, 1)], axis=-1)
        moved: Array = total / np.maximum(weight, 1e-12)[..., None]
        return moved

    def places(self) -> Array:
        """Where the columns are looked at, shape (T, N, 2) [pixels of the frame]."""
        places: Array = self._rest + self.moved()
        return places


def _centres(image: Array, places: Array, sigma: float) -> tuple[Array, Array]:
    """Centres of mass of what stands out around places, and by how much it does; NaN and 0 where nothing is near."""
    reach = math.ceil(DISC_SIGMAS * sigma)
    span = np.arange(-reach, reach + 1)
    rows, cols = (d.ravel() for d in np.meshgrid(span, span, indexing="ij"))
    at = places.copy()
    limit = np.array(image.shape) - 1
    height = np.zeros(len(places))
    for _ in range(CENTRE_STEPS):
        whole = np.rint(np.nan_to_num(at)).astype(np.int64)
        r = np.clip(whole[:, :1] + rows, 0, limit[0])
        c = np.clip(whole[:, 1:] + cols, 0, limit[1])
        values = image[r, c]
        square = (r - at[:, :1]) ** 2 + (c - at[:, 1:]) ** 2
        near = square <= (CENTRE_SIGMAS * sigma) ** 2
        around = (square > (CENTRE_SIGMAS * sigma) ** 2) & (square <= (DISC_SIGMAS * sigma) ** 2)
        level = np.sum(values * around, axis=1, keepdims=True) / np.maximum(
            around.sum(axis=1, keepdims=True), 1
        )
        mass = np.where(near, np.maximum(values - level, 0.0), 0.0)
        total = mass.sum(axis=1)
        height = total / np.maximum(near.sum(axis=1), 1)
        centre = np.stack([np.sum(mass * r, axis=1), np.sum(mass * c, axis=1)], axis=1)
        at = centre / np.where(total > 0, total, np.nan)[:, None]
    inside = np.all((places >= reach) & (places <= limit - reach), axis=1)
    with np.errstate(invalid="ignore"):
        kept = inside & (np.hypot(*(at - places).T) <= sigma)
    at[~kept] = np.nan
    return at, np.where(kept, height, 0.0)
