"""Bad pixels of a movie store: those named at ingest, else those that its frames show."""

from __future__ import annotations

import logging
from typing import Any

import numpy as np
import zarr
from numpy.typing import NDArray

from tdenoise.noise.camera_pattern import PixelAccumulator, stand_ins

from ..errors import InputError
from ..store import store

log = logging.getLogger(__name__)

BAD_PIXELS = "bad_pixels"  # array of a movie store: True where the camera does not measure
GROUPS = 16  # read of a movie, evenly spread
GROUP_FRAMES = store.CHUNK_FRAMES


def measure(movie: store.Store) -> PixelAccumulator:
    """Mean and noise of every pixel of a movie, from 64 frames spread over it, a few at a time."""
    n_frames = movie.shape[0]
    pixels = PixelAccumulator(movie.shape[1:])
    last = max(0, n_frames - GROUP_FRAMES)
    # On chunk borders, so that every chunk is decoded once.
    starts = {GROUP_FRAMES * round(float(s) / GROUP_FRAMES) for s in np.linspace(0, last, GROUPS)}
    for start in sorted(starts):
        pixels.add(movie.array[start : min(start + GROUP_FRAMES, n_frames)])
    return pixels


def movie_stand_ins(movie: store.Store, pixels: PixelAccumulator | None = None) -> NDArray[np.float32] | None:
    """What networks are shown in place of the bad pixels of a movie; see `tdenoise.noise.camera_pattern.stand_ins`.

    Parameters
    ----------
    movie : Store
    pixels : PixelAccumulator, optional
        From `measure`, which is called where it is needed and not given.

    Returns
    -------
    ndarray of float32, shape (height, width), or None
        None where all pixels are sound.

    Raises
    ------
    InputError
        If no pixel is sound, or those named at ingest are not those of this movie.
    """
    bad = named_at_ingest(movie)
    if bad is not None and not bad.any():
        return None
    pixels = pixels or measure(movie)
    if bad is None:
        bad = pixels.bad_pixels()
        if not bad.any():
            return None
    try:
        return stand_ins(pixels.mean(), bad)
    except ValueError as error:
        raise InputError(movie.path, f"{error}.") from None


def named_at_ingest(movie: store.Store) -> NDArray[np.bool_] | None:
    """The bad pixels that the store names; None where it names none, as stores of old versions do."""
    if not (movie.path / BAD_PIXELS / "zarr.json").exists():
        return None
    array: Any = zarr.open_array(movie.path / BAD_PIXELS, mode="r")
    if array.shape != movie.shape[1:]:
        raise InputError(
            movie.path / BAD_PIXELS, f"has the shape {array.shape}, the frames {movie.shape[1:]}."
        )
    return np.asarray(array[:], dtype=bool)
