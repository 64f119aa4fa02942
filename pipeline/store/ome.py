"""OME-Zarr 0.5: what viewers are told of a store, in the attribute ``ome`` of its root."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np

from .pyramid import Level
from .store import Coordinates

WINDOW_FRAMES = 8  # that are looked at for the contrast
WINDOW_PIXELS = 2**16  # of each, about
WINDOW_PERCENT = (0.3, 99.7)  # of the values are shown black and white


def metadata(name: str, coordinates: Coordinates, levels: Sequence[Level] = ()) -> dict[str, Any]:
    """The movie as an OME image, with its coarser copies.

    Means over several frames are images of their own, after that of the movie: a viewer goes through all frames of the
    first one, and must not skip frames where it zooms out.

    Parameters
    ----------
    name : str
        Of the array.
    coordinates : Coordinates
    levels : sequence of Level
        Its pyramid.
    """
    whole = [_dataset(name, coordinates, 1, 1)]
    whole += [_dataset(level.path, coordinates, 1, level.pixels) for level in levels if level.frames == 1]
    images = [_image(name, coordinates, whole)]
    for level in levels:
        if level.frames > 1:
            found = [_dataset(level.path, coordinates, level.frames, level.pixels)]
            images.append(_image(f"{name}, mean of {level.frames} frames", coordinates, found))
    return {"version": "0.5", "multiscales": images}


def omero(name: str, array: Any) -> dict[str, Any]:
    """Contrast limits, from percentiles of some frames.

    Parameters
    ----------
    name : str
        Of the array.
    array : zarr.Array, shape (n_frames, height, width)
    """
    n_frames, height, width = array.shape
    step = max(1, math.isqrt(height * width // WINDOW_PIXELS))
    frames = np.unique(np.linspace(0, n_frames - 1, WINDOW_FRAMES).astype(int)).tolist()
    values = np.concatenate([np.asarray(array[frame])[::step, ::step].ravel() for frame in frames])
    values = values[np.isfinite(values)].astype(np.float64)
    if not len(values):
        values = np.zeros(1)
    low, black, white, high = np.percentile(values, (0, *WINDOW_PERCENT, 100))
    if not black < white:
        black, white = low, max(high, low + 1)
    limits = {"min": low, "max": max(high, white), "start": black, "end": white}
    window = {key: float(f"{value:.6g}") for key, value in limits.items()}
    channel = {"label": name, "color": "FFFFFF", "active": True, "window": window}
    return {"channels": [channel], "rdefs": {"model": "greyscale"}}


def _image(name: str, coordinates: Coordinates, datasets: list[dict[str, Any]]) -> dict[str, Any]:
    axes = [
        {"name": axis, "type": "time" if axis == "t" else "space"}
        | ({} if step is None else {"unit": "second" if axis == "t" else "nanometer"})
        for axis, step, _ in coordinates.axes
    ]
    image = {"name": name, "axes": axes, "datasets": datasets}
    return image if len(datasets) == 1 else {**image, "type": "mean"}


def _dataset(path: str, coordinates: Coordinates, frames: int, pixels: int) -> dict[str, Any]:
    """An array, each of whose points is the mean of so many frames and of a square of so many pixels a side."""
    scale, shift = [], []
    for (_, step, first), factor in zip(coordinates.axes, (frames, pixels, pixels), strict=True):
        distance = 1.0 if step is None else step
        scale.append(distance * factor)
        shift.append(distance * (first + (factor - 1) / 2))
    return {
        "path": path,
        "coordinateTransformations": [
            {"type": "scale", "scale": scale},
            {"type": "translation", "translation": shift},
        ],
    }
