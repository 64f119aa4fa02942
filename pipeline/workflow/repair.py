"""Repair: make a damaged store again from what it was made of, and keep what is sound of it.

The step that made the store runs once more with the recorded settings, under the same protocol: built beside the
store, verified, and put in its place by a rename. Sound shards of a denoised store are linked, not computed. A movie
store is read from the raw file whole, which has to be read anyway to know that it is still the same.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from tdenoise.network.checkpoint import BASE

from ..apply.apply import Known, apply, content_ids
from ..apply.apply_plan import make_plan
from ..apply.given_back import MAPS, STRETCHES, Given
from ..archive.verify import Findings, in_words, inspect
from ..errors import InputError, LockedError, UsageError, VerificationError
from ..ingest.ingest import ingest
from ..inputs.bad_pixels import movie_stand_ins
from ..inputs.model_fit import open_model
from ..runs import lease, paths, plans
from ..settings import recorded_settings
from ..settings.result_settings import VerifyConfig
from ..step_control import Control
from ..store import integrity, store, writing
from .resume import resume


def repair(config: VerifyConfig, control: Control | None = None) -> dict[str, Any]:
    """Find what is wrong with a store, mend it, and verify it.

    Parameters
    ----------
    config : VerifyConfig
    control : Control, optional

    Returns
    -------
    dict
        As of `verify`.

    Raises
    ------
    InputError
        If the raw file, the movie or the model are not those that the store was made from.
    VerificationError
        If it cannot be mended.
    LockedError
        If another run holds the store.
    """
    control = control or Control()
    path = config.store
    holder = lease.lease_holder(paths.work_folder(path), stop=control.stop)
    if holder is not None:
        raise LockedError(f"{path}: another run holds it ({holder}). Wait for it, or stop it first.")
    if not path.exists() and paths.partial_path(path).exists():
        resume(path, control, workers=config.workers)  # a repair that was killed between its two renames
    found = inspect(path, True, control)
    if found.damage:
        command = _command(config, found)
        if found.kind == "movie":
            ingest(command, control, expected=found.attributes["id"])
        else:
            _apply(command, found, control)
    again = inspect(path, True, control)
    if again.damage:
        raise VerificationError(in_words(path, again))
    return {
        "store": str(path),
        "n_shards": again.n_shards,
        "deep": True,
        "repaired": len(found.damage),
    }


def _apply(command: Any, found: Findings, control: Control) -> None:
    movie = store.open_store(command.movie, store.MOVIE)
    plan = make_plan(command, movie, open_model(command.model).card, movie_stand_ins(movie))
    if plans.plan_id(plan.identity) != found.attributes["plan"]:
        raise InputError(
            command.output,
            f"was not made from {command.movie} with {command.model}. Give the ones it was made from.",
        )
    devices = found.attributes["devices"]
    given = _maps(command.output, found.attributes)
    # Of several kinds of device nobody knows which computed what; without the maps, nothing fits what was given back.
    kept = len(devices) == 1 and (given is not None or not plan.gives_back)
    ids = content_ids(found.attributes)
    known = Known(command.output, ids, found.sound if kept else {}, devices[0], given if kept else None)
    apply(command, control, known=known)


def _maps(path: Path, attributes: dict[str, Any]) -> Any:
    """What the counts gave back to a denoised store; None if nothing, or if what is recorded of it is damaged."""
    recorded = {name: attributes["arrays"].get(name) for name in (*MAPS, *STRETCHES)}
    try:
        given = Given.read(path)
        sound = given is not None and given.hashes() == {k: v for k, v in recorded.items() if v is not None}
    except integrity.UNREADABLE:
        return None
    return given if sound else None


def _command(config: VerifyConfig, found: Findings) -> Any:
    """Settings to make the store again."""
    document = found.attributes.get("command")
    if not isinstance(document, dict):
        raise VerificationError(f"{in_words(config.store, found)} It does not say how it was made.")
    if found.kind == "movie":
        if config.raw is None:
            raise UsageError(
                f"{config.store}: is a movie, and its repair needs the raw movie: add --raw RAW."
            )
        # Their names are recorded: references are looked for beside the raw movie.
        given: dict[str, Any] = {
            name: config.raw.parent / Path(document["settings"][name]).name
            for name in ("dark", "gain", "defects")
            if document["settings"].get(name) is not None
        }
        given |= {"raw": config.raw}
    else:
        if config.movie is None:
            raise UsageError(f"verify --repair of a denoised store needs --movie MOVIE.zarr. {config.store}")
        given = {"movie": config.movie, "model": config.model or BASE, "workers": config.workers}
    try:
        # The store may be anybody's: where to compute is for this user to say.
        kept = {k: v for k, v in document["settings"].items() if k not in (*writing.WHERE, "resume")}
        return recorded_settings.recall(
            document | {"settings": kept}, output=config.store, force=True, **given
        )
    except ValueError as error:
        raise VerificationError(
            f"{config.store}: its record of how it was made is damaged ({error})."
        ) from None
