"""Find atomic columns in the mean images of a denoised movie."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage, spatial

Array = NDArray[Any]

SIGMAS_PX = tuple(1.2 * 1.15**n for n in range(14))  # widths that are tried, up to 7.4 pixels
LEAST_CONTRAST = 0.005  # of the mean of the image: rounded and computed numbers make less
LEAST_SHARE = 0.15  # of a strong column's contrast; a weaker maximum is no column
LEAST_DEVIATIONS = 6.0  # of the contrast in the flat parts of the image
STRONG_QUANTILE = 0.9
DISC_SIGMAS = 2.5  # radius of the pixels that tell of a column, in its widths


@dataclass(frozen=True)
class Columns:
    """Columns of a scene, at rest in its own frame."""

    positions: (
        Array  # (N, 2) float64, (row, column) in pixels of the frame of the scene, centres at whole numbers
    )
    sigma_px: float  # of the Gaussian that a column is taken for
    bright: bool  # whether a column is brighter than what is around it


class ColumnSearch:
    """Columns that stand out in any of some mean images of one scene.

    A column is a maximum of the difference between a Gaussian mean and one of twice its width. The width is the
    one at which the image has the most contrast for its size (scale space [1]_); whether columns are bright or dark
    is told by the tail of the contrast that is longer.

    Parameters
    ----------
    mean : ndarray, shape (height, width)
        Of the denoised movie, in the frame of the scene; NaN where nothing was seen.

    References
    ----------
    .. [1] Lindeberg, "Feature detection with automatic scale selection", Int. J. Comput. Vis. 30, 79 (1998).
    """

    def __init__(self, mean: Array) -> None:
        self._seen = np.isfinite(mean)
        self._sigma, self._bright = _width(_filled(mean))
        self._strongest = self._contrast(mean)
        self._level = float(np.nanmean(np.abs(mean)))

    def _contrast(self, image: Array) -> Array:
        contrast = _contrast(_filled(image), self._sigma)
        return contrast if self._bright else -contrast

    def add(self, image: Array) -> None:
        """The mean over a stretch of time: a column that is there for this stretch only is found, too."""
        self._strongest = np.maximum(self._strongest, self._contrast(image))

    def columns(self) -> Columns:
        """What was found, sorted by row; nothing in flat images."""
        sigma, strongest, seen = self._sigma, self._strongest, self._seen
        peaks = strongest == ndimage.maximum_filter(strongest, footprint=_disc(1.5 * sigma))
        margin = math.ceil(DISC_SIGMAS * math.sqrt(2) * sigma)
        inner = np.zeros_like(seen)
        middle = (slice(margin, -margin), slice(margin, -margin))
        inner[middle] = ndimage.binary_erosion(seen, _disc(2 * sigma), border_value=1)[middle]
        peaks &= inner & (strongest > LEAST_CONTRAST * self._level)
        nothing = Columns(np.empty((0, 2)), math.sqrt(2) * sigma, self._bright)
        if not peaks.any():
            return nothing
        strong = float(np.quantile(strongest[peaks], STRONG_QUANTILE))
        flat = 1.4826 * float(np.median(np.abs(strongest[seen] - np.median(strongest[seen]))))
        peaks &= strongest > max(LEAST_SHARE * strong, min(LEAST_DEVIATIONS * flat, 0.5 * strong))
        rows, columns = np.nonzero(peaks)
        if not len(rows):
            return nothing
        positions = np.array([_centre(strongest, int(r), int(c)) for r, c in zip(rows, columns, strict=True)])
        return Columns(
            _apart(positions, strongest[rows, columns], 2 * sigma), math.sqrt(2) * sigma, self._bright
        )


def _filled(image: Array) -> Array:
    return np.where(np.isfinite(image), image, np.nanmean(image))


def _contrast(image: Array, sigma: float) -> Array:
    """Difference of Gaussians."""
    narrow: Array = ndimage.gaussian_filter(image, sigma, mode="nearest")
    wide: Array = ndimage.gaussian_filter(image, 2 * sigma, mode="nearest")
    return narrow - wide


def _width(image: Array) -> tuple[float, bool]:
    """The narrower width of `_contrast` at which columns stand out most, and whether they are bright.

    It is the columns' own over the root of 2: there the contrast of a Gaussian is largest.
    """
    widest = min(image.shape) / 12
    sigmas = [s for s in SIGMAS_PX if s <= widest] or [SIGMAS_PX[0]]
    maps = [_contrast(image, sigma) for sigma in sigmas]
    tails = [np.quantile(m, 0.995) + np.quantile(m, 0.005) for m in maps]
    bright = float(np.sum(tails)) >= 0
    sign = 1.0 if bright else -1.0
    scores = [float(np.quantile(sign * m, 0.995)) for m in maps]
    return sigmas[int(np.argmax(scores))], bright


def _disc(radius: float) -> NDArray[np.bool_]:
    reach = math.ceil(radius)
    rows, columns = np.ogrid[-reach : reach + 1, -reach : reach + 1]
    disc: NDArray[np.bool_] = rows**2 + columns**2 <= max(radius, 1.0) ** 2
    return disc


def _centre(image: Array, row: int, column: int) -> tuple[float, float]:
    """The top of a parabola through a maximum and its neighbours, along each axis."""
    found = []
    for low, mid, high, at in (
        (image[row - 1, column], image[row, column], image[row + 1, column], row),
        (image[row, column - 1], image[row, column], image[row, column + 1], column),
    ):
        bend = low - 2 * mid + high
        found.append(at + float(np.clip((low - high) / (2 * bend), -0.5, 0.5) if bend < 0 else 0.0))
    return found[0], found[1]


def _apart(positions: Array, heights: Array, distance: float) -> Array:
    """The stronger of any two that lie nearer than a distance."""
    kept: list[int] = []
    tree = spatial.cKDTree(positions)
    dropped = np.zeros(len(positions), bool)
    for i in np.argsort(-heights):
        if not dropped[i]:
            kept.append(int(i))
            dropped[tree.query_ball_point(positions[i], distance)] = True
    return positions[sorted(kept, key=lambda i: (positions[i, 0], positions[i, 1]))]
