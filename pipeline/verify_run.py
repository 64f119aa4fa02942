"""Verify all that a run made, given its folder; or one store."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

from .config import VerifyConfig
from .control import Control
from .errors import UsageError, VerificationError
from .run_folder import OUTPUTS, is_run_folder, parts_of_run
from .verify import verify


def verify_all(config: VerifyConfig, control: Control) -> dict[str, Any]:
    """Check one store, or the stores and the model in the folder of a run.

    Parameters
    ----------
    config : VerifyConfig
    control : Control

    Returns
    -------
    dict
        Of `verify.verify`; for a run ``store``, its folder, ``stores``, what it says of each, and ``models``, a
        sentence for each.

    Raises
    ------
    VerificationError
        If anything is damaged; for a run, after all of it was looked at.
    """
    if not is_run_folder(config.store):
        return verify(config, control)
    found: dict[str, Any] = {"store": str(config.store), "stores": [], "models": []}
    damage = []
    for part in parts_of_run(config.store):
        try:
            if part.name == OUTPUTS["train"]:
                found["models"].append(_verify_model(part))
            else:
                found["stores"].append(verify(_of_part(config, part), control))
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
    from tdenoise import checkpoint

    try:
        return f"{path}: model {checkpoint.load_model(path).id[:12]} is whole"
    except checkpoint.ModelError as error:
        raise VerificationError(str(error)) from None
