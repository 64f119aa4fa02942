"""Verify all that a run made, given its folder; or one store."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

from ..errors import UsageError, VerificationError
from ..files.sealed_json import read_json
from ..settings.result_settings import VerifyConfig
from ..settings.results import OUTPUTS, is_run_folder, parts_of_run
from ..step_control import Control

Look = Callable[[VerifyConfig, Control], dict[str, Any]]


def verify_all(config: VerifyConfig, control: Control, look: Look) -> dict[str, Any]:
    """Check one store, or the stores and the model in the folder of a run.

    Parameters
    ----------
    config : VerifyConfig
    control : Control
    look : callable
        Checks one store: `verify.verify`, or `repair`, which also mends it.

    Returns
    -------
    dict
        Of ``look``; for a run ``store``, its folder, ``stores``, what ``look`` says of each, and ``models``, a
        sentence for each.

    Raises
    ------
    VerificationError
        If anything is damaged; for a run, after all of it was looked at.
    """
    if not is_run_folder(config.store):
        return look(config, control)
    found: dict[str, Any] = {"store": str(config.store), "stores": [], "models": []}
    damage = []
    for part in parts_of_run(config.store):
        try:
            if part.name == OUTPUTS["train"]:
                found["models"].append(_verify_model(part))
            else:
                found["stores"].append(look(_of_part(config, part), control))
        except (VerificationError, UsageError) as error:  # a repair may lack the raw movie
            damage.append(str(error))
    if damage:
        raise VerificationError(" ".join(damage))
    return found


def _of_part(config: VerifyConfig, part: Path) -> VerifyConfig:
    """The settings for one store of a run, which was made from its neighbours."""
    if part.name == OUTPUTS["ingest"]:
        return replace(config, store=part)
    movie, model = config.movie or config.store, config.model or config.store
    return replace(config, store=part, movie=movie, model=model)


def _verify_model(path: Path) -> str:
    """Compare the weights with the card. Without torch, which takes seconds to load."""
    try:
        with (path / "weights.safetensors").open("rb") as file:
            digest = hashlib.file_digest(file, "sha256").hexdigest()
    except FileNotFoundError:
        raise VerificationError(f"{path}: its weights are missing. Train the model again.") from None
    if digest != read_json(path / "card.json").get("sha256"):
        raise VerificationError(
            f"{path}: its weights or its card were changed or damaged. Train the model again."
        )
    return f"{path}: model {digest[:12]} is whole"
