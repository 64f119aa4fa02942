"""``run --model``: a model that is there denoises the movie, and none is trained on it."""

from __future__ import annotations

import contextlib
import shutil
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

from tdenoise.files.atomic import fsync_tree, unique_partial
from tdenoise.network import checkpoint
from tdenoise.network.card import CARD, CURVE, WEIGHTS

from ..errors import UsageError
from ..inputs.model_fit import check_as_it_is, open_model
from ..settings.denoise_settings import ApplyConfig, RunConfig
from ..settings.results import AUTO, SHIPPED
from ..settings.steps import apply_settings
from ..step_control import Control
from ..store import store
from .chosen import chosen


@contextlib.contextmanager
def to_apply(config: RunConfig, force: bool, control: Control) -> Iterator[ApplyConfig]:
    """The settings of the step that denoises, once its model lies in the folder of the run.

    Raises
    ------
    UsageError
        If another model lies there.
    InputError
        If there is no such model, or ``auto`` finds none.
    """
    own = apply_settings(config, force)
    if config.model is None:
        yield own
        return
    archive = config.archive if config.model == AUTO else None
    with chosen(replace(own, model=config.model, archive=archive), control) as decided:
        assert own.model is not None
        if decided.model in (None, SHIPPED):
            check_as_it_is(store.open_store(own.movie, store.MOVIE))
        _copy(checkpoint.BASE if decided.model in (None, SHIPPED) else decided.model, own.model, config.force)
        yield replace(decided, model=own.model)


def _copy(model: Path, place: Path, force: bool) -> None:
    """Put a copy of a model into the folder of a run, so that the folder can be kept and moved as any other."""
    wanted = open_model(model).card["sha256"]
    if place.exists():
        with contextlib.suppress(checkpoint.ModelError):
            if checkpoint.read_card(place)["sha256"] == wanted:
                return
        if not force:
            raise UsageError(
                f"{place}: another model lies there than the one to denoise with. Choose another folder for the run, "
                "or start over with --force."
            )
    partial = unique_partial(place)
    try:
        partial.mkdir()
        for name in (CARD, WEIGHTS, CURVE):
            if (model / name).is_file():
                shutil.copyfile(model / name, partial / name)
        fsync_tree(partial)
        if place.exists():
            shutil.rmtree(place)
        partial.rename(place)
    finally:
        shutil.rmtree(partial, ignore_errors=True)
