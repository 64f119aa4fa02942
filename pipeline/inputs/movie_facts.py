"""What is known of a movie besides its counts: noise, brightness, drift, size of pixels. Read without torch."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import zarr
from numpy.typing import NDArray

from tdenoise.noise.brightness import Brightness
from tdenoise.noise.noise import NoiseStatistics, Scale

from ..errors import InputError
from ..store import store


def movie_noise(movie: store.Store) -> NoiseStatistics:
    """The noise of a movie as measured at ingest; refuses movies that no model can work on."""
    attributes = movie.attributes
    try:
        if attributes["noise"] is None:
            raise ValueError("its noise could not be measured")
        noise = NoiseStatistics.from_json(attributes["noise"])
        Scale.of(noise)  # refuses a movie without noise
    except ValueError as error:
        raise InputError(movie.path, f"{error}.") from None
    return noise


def movie_brightness(movie: store.Store) -> Brightness | None:
    """Level of every frame, and which were recorded whole; None where all are there and equally bright.

    Stores of old versions do not tell the level; they name the frames that were not recorded.
    """
    attributes, n_frames = movie.attributes, movie.shape[0]
    names = ("frame_level", "frame_valid")
    if all((movie.path / name).is_dir() for name in names):
        levels, valid = (np.asarray(zarr.open_array(movie.path / name, mode="r")[:]) for name in names)
        if levels.shape != (n_frames,) or valid.shape != (n_frames,) or not (levels > 0).all():
            raise InputError(
                movie.path / names[0],
                "is not the brightness of this movie. Verify the store, or ingest it again.",
            )
        found = Brightness(levels.astype(np.float64), valid.astype(bool))
        if (movie.path / "frame_tilt").is_dir():
            tilts = np.asarray(zarr.open_array(movie.path / "frame_tilt", mode="r")[:], np.float64)
            if tilts.shape != (n_frames, 2) or not np.isfinite(tilts).all():
                raise InputError(
                    movie.path / "frame_tilt",
                    "is not how the beam moves in this movie. Verify the store, or ingest it again.",
                )
            found = replace(found, tilts=tilts, field=movie.shape[1:])
    else:
        found = Brightness.steady(n_frames)
        for frames in (
            attributes.get("not_finite_frames", []),
            attributes.get("blank_frames", []),
            attributes.get("repeated_frames", []),
        ):
            found.valid[frames] = False
        if found.valid.sum() < 3:
            found = Brightness.steady(n_frames)
    if found.valid.sum() < 3:
        raise InputError(movie.path, "fewer than three of its frames are complete, so it cannot be denoised.")
    return None if found.is_steady else found


def valid_frames(movie: store.Store) -> NDArray[np.bool_] | None:
    """Which frames were recorded whole, shape (n_frames,); None where a store does not tell or too few were."""
    try:
        brightness = movie_brightness(movie)
    except InputError:
        return None
    return None if brightness is None else brightness.valid


def measured_drift(movie: store.Store) -> NDArray[np.float64] | None:
    """Rows and columns by which the scene has moved since the first frame [pixels], shape (n_frames, 2).

    None where it was not measured.

    Raises
    ------
    InputError
        If what the store holds is no drift of this movie.
    """
    described = movie.attributes["drift"]
    if described is None:
        return None
    steps = movie.coordinates.pixel_size_nm
    moved = np.asarray(zarr.open_array(movie.path / "drift", mode="r")[:], dtype=np.float64)
    if moved.shape != (movie.shape[0], 2) or not np.isfinite(moved).all():
        raise InputError(
            movie.path / "drift", "is not a drift of this movie. Verify the store, or ingest it again."
        )
    if described["units"] == "nm":
        moved = moved / np.asarray(steps)
    return moved


def movie_pixel_size_nm(movie: store.Store) -> float | None:
    """Distance of pixels, of rectangular ones the mean; None where the raw movie does not tell it."""
    size = movie.coordinates.pixel_size_nm
    return None if size is None else math.sqrt(size[0] * size[1])
