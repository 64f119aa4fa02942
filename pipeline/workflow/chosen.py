"""``--model auto`` and ``--from auto``: the model of an archive that predicts the movie best takes its place."""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any, TypeVar

from tdenoise.network import checkpoint
from tdenoise.network.card import ModelCard

from ..archive.index import cards
from ..archive.place import place_of
from ..errors import InputError, UsageError
from ..runs import choices
from ..settings.archive_settings import ArchiveSuggestConfig
from ..settings.denoise_settings import ApplyConfig, TrainConfig
from ..settings.results import AUTO, SHIPPED
from ..step_control import Control
from ..store import store
from ..train.train import train_model
from .suggest import suggest

log = logging.getLogger(__name__)

Step = TypeVar("Step", ApplyConfig, TrainConfig)


@contextlib.contextmanager
def chosen(config: Step, control: Control) -> Iterator[Step]:
    """The settings of a step, with the model that ``auto`` stands for.

    What was chosen for an output stays chosen until it is made anew by force, also where the archive has grown since.
    The output says what it was, and from which candidates.

    Parameters
    ----------
    config : ApplyConfig or TrainConfig
    control : Control

    Raises
    ------
    InputError
        If the movie or the archive is missing or damaged, or no model at all fits the movie.
    """
    named, flag = (
        (config.model, "--model") if isinstance(config, ApplyConfig) else (config.from_model, "--from")
    )
    if named != AUTO:
        yield config
        return
    movie = config.movie if isinstance(config, ApplyConfig) else config.movie[0]
    known = {} if config.force else _known(config)
    mine = store.read_attributes(movie)["id"]
    if known.get("movie", mine) != mine:
        raise UsageError(
            f"{config.output}: a model was chosen for it and another movie. Choose another name, or start over with "
            "--force."
        )
    archive = config.archive
    assert archive is not None  # as the settings say
    model = place_of_choice(known, archive)
    if model is None:
        choice = choose(ArchiveSuggestConfig(movie=movie, archive=archive, device=config.device), control)
        choice = choices.remember(config.output, choice, force=config.force)
        model = place_of_choice(choice, archive)
        log.info("%s: %s auto takes %s: %s", movie, flag, choice["model"] or "no model", choice["reason"])
    try:
        if isinstance(config, ApplyConfig):
            if model is None:
                raise InputError(
                    movie, f"no model fits the noise of this movie: train one on it, not {flag} auto."
                )
            yield replace(config, model=None if model == SHIPPED else model, archive=None)
        else:
            # Where none of the archive is better, what `train` does without it: the base model and a new one compete.
            yield replace(config, from_model=None if model in (None, SHIPPED) else model, archive=None)
    finally:
        choices.forget(config.output)


def train_chosen(config: TrainConfig, control: Control) -> ModelCard | None:
    """Train a model, from what ``--from`` says or chooses; see `tdenoise_pipeline.train.train.train_model`."""
    with chosen(config, control) as decided:
        return train_model(decided, control)


def _known(config: ApplyConfig | TrainConfig) -> dict[str, Any]:
    """What was chosen for this output before; empty where nothing was."""
    if begun := choices.recall(config.output):
        return begun
    with contextlib.suppress(InputError, checkpoint.ModelError):
        if isinstance(config, ApplyConfig):
            return store.read_attributes(config.output).get("chosen") or {}
        return checkpoint.read_card(config.output).get("chosen") or {}
    return {}


def place_of_choice(choice: dict[str, Any], archive: Path) -> Path | None:
    """Where the model lies that was chosen; None where it is not there, or none was."""
    if choice.get("id") is None:
        return None
    if choice["id"] == checkpoint.read_card(checkpoint.BASE)["sha256"]:
        return SHIPPED
    for card in cards(archive):
        if card["id"] == choice["id"] and card["kind"] == "model":
            return place_of(card, archive)
    return None


def choose(config: ArchiveSuggestConfig, control: Control, *, unseen: bool = False) -> dict[str, Any]:
    """What is recorded of a suggestion: nothing that depends on where things lie.

    Parameters
    ----------
    config : ArchiveSuggestConfig
    control : Control
    unseen : bool
        Whether no frame of the movie may have been seen: instead of a model that learned from this recording, it is
        the one that comes with tdenoise.
    """
    found = suggest(config, control)
    best = next((m for m in found["models"] if m["model"] == found["suggested"]), None)
    if unseen and best is not None and best["learned_from_it"]:
        name = best["name"]
        best = next((m for m in found["models"] if m["model"] == str(SHIPPED)), None)
        found["reason"] = (
            f"{name} predicts this movie best, but it learned from it, so nothing would be left to judge"
        )
    told = ("name", "id", "distance", "error_above_best", "standard_error", "learned_from_it")
    return {
        "archive": config.archive.resolve().name,
        "movie": store.read_attributes(config.movie)["id"],
        "model": None if best is None else best["name"],
        "id": None if best is None else best["id"],
        "reason": found["reason"],
        "candidates": [{key: model[key] for key in told} for model in found["models"]],
        "not_tried": found["not_tried"],
        "left_out": [{"name": m["name"]} for m in found["left_out"]],
    }
