"""Single frames of a denoised movie: do the raw counts support them, and what could be known from so few electrons?"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from tdenoise.evaluation.columns import find_columns, plane_distance
from tdenoise.evaluation.ideal_observer import DATED_INDEX, told_dwell, told_index
from tdenoise.evaluation.likelihood import Evidence, likelihood_ratio, without_columns

from ..inputs.model_fit import movie_brightness
from ..store import store
from .estimates import NoiseLaw
from .evaluation_result import EvidenceFigures, FrameChecks, KnowableFigures

Array = NDArray[Any]

CHECKED_FRAMES = 16  # evenly spread over the movie
WINDOW_SHARE = 0.6  # side of a window of evidence, over the distance of lattice planes: about one column
FAR = 3.0  # standard deviations


def check(movie: store.Store, denoised: store.Store, noise: NoiseLaw, spots: Array) -> FrameChecks:
    """Evidence for the denoised frames, and what can be told at all at this dose.

    Parameters
    ----------
    movie, denoised : Store
    noise : NoiseLaw
    spots : ndarray, shape (n, 2)
        Of the movie's lattice [cycles per pixel].

    Returns
    -------
    FrameChecks
    """
    distance = plane_distance(spots)
    if distance is None or noise.estimator != "poisson":
        return {"evidence": None, "knowable": None}
    brightness = movie_brightness(movie)
    sound = np.arange(movie.shape[0]) if brightness is None else np.flatnonzero(brightness.valid)
    numbers = sound[np.unique(np.linspace(0, len(sound) - 1, CHECKED_FRAMES).round().astype(int))]
    found, windows = [], []
    for k in map(int, numbers):
        counts, smooth = (store.read_frames(s, k, k + 1)[0] / noise.gain for s in (movie, denoised))
        found.append(find_columns(smooth, distance).indices)
        windows.append(evidence_of(counts, smooth, distance))
    return {
        "evidence": _evidence(windows, numbers, window_pixels(distance)),
        "knowable": knowable(np.concatenate(found), distance, len(numbers)),
    }


def window_pixels(distance_px: float) -> int:
    """Side of the windows of evidence."""
    return max(1, round(WINDOW_SHARE * distance_px))


def evidence_of(counts: Array, smooth: Array, distance_px: float) -> Evidence:
    """Evidence for the columns of a denoised frame, against the frame without them [electrons]."""
    return likelihood_ratio(counts, smooth, without_columns(smooth, distance_px), window_pixels(distance_px))


def _evidence(windows: list[Evidence], numbers: Array, side: int) -> EvidenceFigures | None:
    misfit = np.stack([w.misfit for w in windows])
    if not misfit.size:
        return None
    support = np.stack([w.support for w in windows])
    far = np.unravel_index(int(np.abs(misfit).argmax()), misfit.shape)
    return {
        "window_pixels": side,
        "n_windows": misfit.size,
        "n_frames": len(numbers),
        "misfit_sd": float(misfit.std()),  # 1 if the denoised frames are right
        "misfit_far": float(np.mean(np.abs(misfit) > FAR)),  # 0.0027 of them by chance
        "support_mean": float(support.mean()),
        "farthest": {
            "frame": int(numbers[far[0]]),
            "row": int(far[1]) * side,
            "column": int(far[2]) * side,
            "misfit": float(misfit[far]),
        },
    }


def knowable(indices: Array, distance_px: float, n_frames: int) -> KnowableFigures | None:
    """From which step and dwell time on an ideal observer tells changes of columns such as these.

    Parameters
    ----------
    indices : ndarray
        Detection indices d' of columns in a single raw frame.
    distance_px : float
        Distance of the lattice planes.
    n_frames : int
        Number of frames that they are from.

    Returns
    -------
    KnowableFigures or None
        None without columns.
    """
    if not indices.size:
        return None
    typical = float(np.median(indices))
    return {
        "plane_distance_pixels": distance_px,
        "n_columns": indices.size / n_frames,
        "index": {
            "low": float(np.percentile(indices, 10)),
            "high": float(np.percentile(indices, 90)),
            "typical": typical,
        },
        "told_after_frames": {
            "whole_column": told_dwell(typical),
            "half_column": told_dwell(typical / 2),
            "quarter_column": told_dwell(typical / 4),
        },
        "dated_step": DATED_INDEX / typical,
        "single_frame_step": told_index(1) / typical,
        "dose_for_dated_column": (DATED_INDEX / typical) ** 2,
    }
