"""Do a movie and a model fit together? What both must be for training and for apply."""

from __future__ import annotations

import logging
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from tdenoise.network import checkpoint
from tdenoise.network.card import ModelCard
from tdenoise.network.registry import Architecture, architecture_of, kind, kind_of, scale_for
from tdenoise.network.split_blind import Architecture as SplitBlindArchitecture
from tdenoise.noise import thinning
from tdenoise.noise.drift import largest_shift
from tdenoise.noise.noise import NoiseStatistics, Scale, choose

from ..errors import InputError
from ..store import store
from .movie_facts import measured_drift as measured_drift
from .movie_facts import movie_brightness as movie_brightness
from .movie_facts import movie_noise as movie_noise
from .movie_facts import movie_pixel_size_nm as movie_pixel_size_nm

log = logging.getLogger(__name__)


def open_model(folder: Path) -> checkpoint.Model:
    """A model whose bytes are the ones in its card, or a sentence what is wrong with it."""
    try:
        return checkpoint.load_model(folder)
    except checkpoint.ModelError as error:
        raise InputError(*str(error).split(": ", 1)) from None


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
    if not kind(kind_of(architecture)).follows_drift:
        return None
    moved = measured_drift(movie)
    return moved if largest_shift(moved, architecture.reach) else None


def tell_drift(movie: store.Store, drift: NDArray[np.float64] | None, architecture: Architecture) -> None:
    """Say, once in a command, that windows follow the drift."""
    if drift is not None:
        largest = largest_shift(drift, architecture.reach)
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
