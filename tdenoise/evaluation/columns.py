"""Columns in a denoised frame, and how well a single raw frame shows them: no truth is needed."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

from .ideal_observer import detection_index

Array = NDArray[Any]

DISC_SHARE = 0.3  # radius of a column's disc, over the distance of lattice planes
BACKGROUND_SHARE = 0.6  # radius within which its background is looked for
BACKGROUND_PERCENT = 10  # of the values there: the bottom between the columns around
LEAST_CONTRAST = 0.1  # of the strongest column; weaker extremes are no columns


def plane_distance(spots: Array) -> float | None:
    """Distance of the lattice planes that show most [pixels]; None without a lattice.

    Parameters
    ----------
    spots : ndarray, shape (n, 2)
        Rows and columns [cycles per pixel], the strongest first, as in `tdenoise.evaluation.residuals.LatticeReport`.

    Examples
    --------
    >>> plane_distance(np.array([[0.03, 0.04]]))
    20.0
    """
    return 1 / math.hypot(*spots[0]) if len(spots) else None


@dataclass(frozen=True)
class ColumnsSeen:
    """Columns of a frame, the strongest first."""

    sites: Array  # (n, 2) row and column [pixels]
    indices: Array  # (n,) detection index d' of the column, there or not there, in one raw frame
    contrasts: Array  # (n,) at the centre, as a share of the local background; below 0 for dark columns


def find_columns(frame: Array, distance_px: float) -> ColumnsSeen:
    """Columns of a denoised frame, and how well one raw frame shows each of them.

    Columns are the local maxima of the frame, or its minima if those stand out further from the median. The
    index is that of two images in a disc of 0.3 plane distances, the frame itself and its local background.

    Parameters
    ----------
    frame : ndarray, shape (height, width)
        Denoised frame [electrons].
    distance_px : float
        From `plane_distance`.

    Returns
    -------
    ColumnsSeen
        Blur that the denoiser has left makes indices and contrasts too small.
    """
    radius = DISC_SHARE * distance_px
    frame = np.asarray(frame, np.float64)
    smooth = ndimage.gaussian_filter(frame, radius / 3)
    low, middle, high = np.percentile(smooth, [0.5, 50, 99.5])
    sign = 1 if high - middle >= middle - low else -1
    span = np.arange(
        -math.ceil(BACKGROUND_SHARE * distance_px), math.ceil(BACKGROUND_SHARE * distance_px) + 1
    )
    apart = np.hypot(span[:, None], span)
    peak = sign * smooth == ndimage.maximum_filter(sign * smooth, footprint=apart <= distance_px / 2)
    reach = len(span) // 2
    peak[:reach] = peak[-reach:] = peak[:, :reach] = peak[:, -reach:] = False
    disc, around = apart <= radius, apart <= BACKGROUND_SHARE * distance_px
    found = []
    for row, column in np.argwhere(peak):
        cut = frame[row - reach : row + reach + 1, column - reach : column + reach + 1]
        background = sign * np.percentile(sign * cut[around], BACKGROUND_PERCENT)
        if cut[disc].min() > 0 and background > 0:
            index = detection_index(np.full(disc.sum(), background), cut[disc], 1.0)
            found.append((row, column, index, frame[row, column] / background - 1))
    rows, columns, indices, contrasts = np.array(found, np.float64).reshape(-1, 4).T
    kept = np.abs(contrasts) > LEAST_CONTRAST * np.abs(contrasts).max(initial=0)
    order = np.flatnonzero(kept)[np.argsort(-indices[kept])]
    sites = np.stack([rows, columns], axis=-1).astype(int)
    return ColumnsSeen(sites[order], indices[order], contrasts[order])
