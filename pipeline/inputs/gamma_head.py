"""Which movies a gamma head is valid for: those that count single electrons, each pixel on its own."""

from __future__ import annotations

from tdenoise.network.card import ModelCard
from tdenoise.network.registry import Architecture, architecture_of, kind_of
from tdenoise.noise import gamma_poisson

from ..errors import InputError, UsageError
from ..store import store
from .model_fit import movie_noise

SAMPLE_FRAMES = 4  # looked at for whole electrons, in the middle of the movie


def has_gamma_head(architecture: Architecture) -> bool:
    """Whether the network also tells how uncertain it is."""
    return getattr(architecture, "head", "mean") == "gamma"


def check_uncertainty(card: ModelCard, movie: store.Store) -> None:
    """Refuse to write a variance that the model does not know.

    Parameters
    ----------
    card : ModelCard
        Of the model.
    movie : Store

    Raises
    ------
    UsageError, InputError
    """
    architecture = architecture_of(card)
    if not has_gamma_head(architecture):
        raise UsageError(
            f"--variance: the model ({kind_of(architecture)}) does not estimate how uncertain it is. Train one "
            "that does with 'train --head gamma', and give it with --model."
        )
    check_gamma(movie, "--variance", "Remove it.")


def electron_counts(movie: store.Store) -> float:
    """Counts per electron; 1 where nobody said anything else."""
    return float(movie.attributes["detector"]["counts_per_electron"] or 1.0)


def check_gamma(movie: store.Store, what: str, instead: str) -> None:
    """Refuse a movie whose counts are no single electrons of independent pixels.

    Parameters
    ----------
    movie : Store
    what : str
        The setting that asks for it.
    instead : str
        What to do, a sentence.

    Raises
    ------
    InputError
        With the figures.
    """
    first = max(0, movie.shape[0] - SAMPLE_FRAMES) // 2
    some = store.read_frames(movie, first, min(movie.shape[0], first + SAMPLE_FRAMES))
    refused = gamma_poisson.refusal(movie_noise(movie), electron_counts(movie), some)
    if refused is not None:
        raise InputError(movie.path, f"{what} is not valid here: {refused}. {instead}")
