"""Do a movie and a model fit together? What both must be for training and for apply."""

from __future__ import annotations

import logging
import math
from dataclasses import replace
from pathlib import Path

import numpy as np
import zarr
from numpy.typing import NDArray

from tdenoise.network import checkpoint
from tdenoise.network.card import ModelCard
from tdenoise.network.registry import Architecture, architecture_of, kind, kind_of, scale_for
from tdenoise.network.split_blind import Architecture as SplitBlindArchitecture
from tdenoise.noise import thinning
from tdenoise.noise.brightness import Brightness
from tdenoise.noise.drift import largest_shift
from tdenoise.noise.noise import NoiseStatistics, Scale, choose

from ..errors import InputError
from ..store import store

log = logging.getLogger(__name__)


def open_model(folder: Path) -> checkpoint.Model:
    """A model whose bytes are the ones in its card, or a sentence what is wrong with it."""
    try:
        return checkpoint.load_model(folder)
    except checkpoint.ModelError as error:
        raise InputError(*str(error).split(": ", 1)) from None


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


def too_correlated(movie: store.Store) -> str | None:
    """Why the noise of a movie needs a larger blind spot than that of the model that comes with tdenoise."""
    choice = choose(movie_noise(movie))
    return None if choice.blind_radius == 0 else choice.reason


def check_as_it_is(movie: store.Store) -> None:
    """Say that the model was never adapted to this movie; refuse where it would take noise for signal."""
    if (reason := too_correlated(movie)) is not None:
        raise InputError(
            movie.path,
            f"the model that comes with tdenoise hides one pixel, and here that is not enough: {reason}. "
            "Train a model on this movie and give it with --model.",
        )
    log.warning(
        "no --model: %s is denoised with the model that comes with tdenoise, which knows only simulated movies. "
        "A model that 'train' has adapted to this movie does better.",
        movie.path,
    )


def movie_drift(movie: store.Store, architecture: Architecture) -> NDArray[np.float64] | None:
    """The drift of a movie, which the windows of a network follow [pixels], shape (n_frames, 2).

    None where none was measured or the scene stays within its pixels, and for UDVD, whose five frames show little.
    """
    described = movie.attributes["drift"]
    if described is None or not kind(kind_of(architecture)).follows_drift:
        return None
    steps = movie.coordinates.pixel_size_nm
    moved = np.asarray(zarr.open_array(movie.path / "drift", mode="r")[:], dtype=np.float64)
    if moved.shape != (movie.shape[0], 2) or not np.isfinite(moved).all():
        raise InputError(
            movie.path / "drift", "is not a drift of this movie. Verify the store, or ingest it again."
        )
    if described["units"] == "nm":
        moved = moved / np.asarray(steps)
    return moved if largest_shift(moved, architecture.window) else None


def movie_pixel_size_nm(movie: store.Store) -> float | None:
    """Distance of pixels, of rectangular ones the mean; None where the raw movie does not tell it."""
    size = movie.coordinates.pixel_size_nm
    return None if size is None else math.sqrt(size[0] * size[1])


def tell_drift(movie: store.Store, drift: NDArray[np.float64] | None, architecture: Architecture) -> None:
    """Say, once in a command, that windows follow the drift."""
    if drift is not None:
        largest = largest_shift(drift, architecture.window)
        log.info("%s: the scene drifts, and the windows follow it by up to %d pixels", movie.path, largest)


def signal_to_noise(noise: NoiseStatistics) -> float:
    """Contrast of a movie in units of its noise, per pixel."""
    scale = Scale.of(noise)
    return scale.contrast / scale.noise


def movie_scale(movie: store.Store, card: ModelCard | None = None) -> Scale:
    """How the counts of a movie become inputs of a model (without a card: of a split-blind network).

    Warns where the movie is unlike those the model was trained on; of an imported model nobody knows these.
    """
    noise = movie_noise(movie)
    if card is None:
        return scale_for(SplitBlindArchitecture(), noise)
    trained = [m["snr"] for m in card["movies"]]
    snr = signal_to_noise(noise)
    least_dose = card.get("settings", {}).get("least_dose", 1.0)  # which it has seen thinned counts of
    if trained and not min(trained) * least_dose**0.5 / 4 < snr < max(trained) * 4:
        log.warning(
            "the signal to noise ratio of %s is %.3g per pixel, the model was trained at %.3g. "
            "Train on this movie, or adapt the model with 'train --from'.",
            movie.path,
            snr,
            trained[0],
        )
    architecture = architecture_of(card)
    if kind_of(architecture) == "thinned":
        refused = thinning.refusal(noise, movie.attributes["detector"]["counts_per_electron"])
        if refused is not None:
            log.warning("%s: a thinned model is for pure counts, but %s.", movie.path, refused)
    return scale_for(architecture, noise)
