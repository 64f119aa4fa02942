"""Verify all that a run made, given its folder; or one store, or one model."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

from tdenoise.files.atomic import is_sealed
from tdenoise.network.card import CARD, CURVE, WEIGHTS

from ..errors import UsageError, VerificationError
from ..files.sealed_json import unbroken
from ..settings.result_settings import VerifyConfig
from ..settings.results import OUTPUTS, is_run_folder, parts_of_run
from ..step_control import Control

Look = Callable[[VerifyConfig, Control], dict[str, Any]]


def verify_all(config: VerifyConfig, control: Control, look: Look) -> dict[str, Any]:
    """Check one store, one model, or the stores and the model in the folder of a run.

    Parameters
    ----------
    config : VerifyConfig
    control : Control
    look : callable
        Checks one store: `verify.verify`, or `repair`, which also mends it.

    Returns
    -------
    dict
        Of ``look``; for a model or a run ``store``, its folder, ``stores``, what ``look`` says of each, and
        ``models``, a sentence for each.

    Raises
    ------
    VerificationError
        If anything is damaged; for a run, after all of it was looked at.
    """
    if (config.store / CARD).exists() and not (config.store / "zarr.json").exists():
        return {"store": str(config.store), "stores": [], "models": [_verify_model(config.store)]}
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
    """Compare the card with its seal and the files with the card. Without torch, which takes seconds to load."""
    try:
        document = (path / CARD).read_bytes()
        if not is_sealed(document):
            raise VerificationError(f"{path / CARD}: was changed or damaged. Train the model again.")
        card = unbroken(document) or {}
        for name, key in ((WEIGHTS, "sha256"), (CURVE, "curve_sha256")):
            if key in card and _sha256(path / name) != card[key]:
                raise VerificationError(f"{path / name}: was changed or damaged. Train the model again.")
    except FileNotFoundError as error:
        raise VerificationError(f"{error.filename}: is missing. Train the model again.") from None
    return f"{path}: model {card['sha256'][:12]} is whole"


def _sha256(file: Path) -> str:
    with file.open("rb") as handle:
        return hashlib.file_digest(handle, "sha256").hexdigest()
