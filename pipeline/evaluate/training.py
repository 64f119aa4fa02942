"""What is known of the training of the model that denoised a movie."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tdenoise.files.json_documents import parse_json
from tdenoise.network.card import CURVE, ModelCard
from tdenoise.network.checkpoint import ModelError, read_card

from ..errors import InputError
from ..store import store
from .verdict import Finding

FLOOR = 0.98  # of the noise variance: a mean squared difference to noisy counts is hardly less
RISEN = 0.001  # of the noise variance, from the lowest point to the last one of the held-out error


@dataclass(frozen=True)
class Training:
    """What is known of the training of a model."""

    card: ModelCard
    history: list[dict[str, Any]]  # a record for each validation

    @property
    def rehearsed(self) -> bool:
        """Whether some of the patches were simulated scenes, whose target has no noise."""
        return bool(self.card.get("rehearsed"))


def read_training(folder: Path, denoised: store.Store) -> Training:
    """The card of the model and its history, checked to be that of the denoised movie.

    Raises
    ------
    InputError
        If it is another model, or its history is damaged.
    """
    try:
        card = read_card(folder)
    except ModelError as error:
        raise InputError(*str(error).split(": ", 1)) from None
    if card["sha256"] != denoised.attributes["model"]["id"]:
        raise InputError(folder, f"is not the model that made {denoised.path}.")
    file = folder / CURVE
    try:
        history = [parse_json(line) for line in file.read_text().splitlines()]
        history = [
            {k: float(r[k]) for k in ("step", "loss", "held_out")}
            | ({"candidate": str(r["candidate"])} if "candidate" in r else {})
            for r in history
        ]
    except FileNotFoundError:
        history = []  # a model from elsewhere may come without
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise InputError(file, f"is not a history of a training ({error})") from None
    return Training(card, history)


def training_in_words(training: Training) -> Finding:
    """What the curve of a training means, also where it lies below what noise allows."""
    history, section = training.history, "training"
    held = [record["held_out"] for record in history]
    best = training.card.get("best_step", 0)
    said = f"The held-out error went from {held[0]:.4f} to {min(held):.4f} times the noise. Step {best:,} is kept."
    lowest = min(record["loss"] for record in history)
    below = ""
    if lowest < FLOOR and training.rehearsed:
        below = (
            f" The training patches go down to {lowest:.2f}, below the noise floor of 1: a third of them are simulated "
            "scenes, whose target has no noise. Compare only the held-out curve with 1."
        )
    elif lowest < FLOOR:
        below = (
            f" The training patches go down to {lowest:.2f}, below the noise floor of 1, which a prediction cannot "
            "reach: the network learnt noise by heart, or the noise differs from the measured noise."
        )
        return Finding("doubt", "", said + below, section)
    if not min(held) < held[0]:
        return Finding("unknown", "", f"The training did not lower the held-out error.{below}", section)
    if held[-1] > min(held) + RISEN:
        said += " After that it rose again: the network began to learn noise by heart."
    return Finding("sound", "", said + below, section)
