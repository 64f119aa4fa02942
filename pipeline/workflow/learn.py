"""``train ARCHIVE``: the next version of its base model, accepted only if nothing that was known is forgotten."""

from __future__ import annotations

import logging
from typing import Any

from tdenoise.network import checkpoint
from tdenoise.network.card import ModelCard
from tdenoise.network.registry import Network, architecture_of
from tdenoise.training.acceptance import Difference, accept, interval_factor

from ..archive.add import add
from ..archive.index import cards
from ..errors import UsageError
from ..files.sealed_json import read_sealed, write_sealed
from ..inputs.model_fit import open_model
from ..runs import choices
from ..settings.archive_settings import ArchiveAddConfig
from ..settings.denoise_settings import TrainConfig
from ..settings.results import SHIPPED, is_archive
from ..step_control import Control
from ..store import store
from ..train.judging import Judged, judge
from ..train.material import Material
from ..train.train import train_model
from ..train.train_plan import describe_plan
from .chosen import chosen, train_chosen
from .material import LEARNED as LEARNED
from .material import Parent, select

log = logging.getLogger(__name__)


def train(
    config: TrainConfig, control: Control | None = None
) -> tuple[ModelCard | None, dict[str, Any] | None]:
    """Train on movies, or on those of an archive.

    Returns
    -------
    ModelCard or None
        None in a process that follows another.
    dict or None
        Of a version of an archive's model: whether it was ``accepted``, the ``reason``, and the errors of all versions
        on all movies.

    Raises
    ------
    PipelineError
        See `tdenoise_pipeline.train.train.train_model` and `tdenoise_pipeline.workflow.material.select`.
    """
    control = control or Control()
    if not is_archive(config.movie[0]):
        return train_chosen(config, control), None
    resolved, material, parent = _selected(config)
    try:
        card = train_model(resolved, control, material)
    finally:
        choices.forget(config.output)
    if card is None:
        return None, None
    report = read_sealed(config.output / LEARNED)
    if report is None or report["model"] != card["sha256"]:
        report = _report(resolved, material, parent, card, control)
        write_sealed(config.output / LEARNED, report)
    if report["accepted"]:
        add(ArchiveAddConfig(store=(config.output,), archive=config.movie[0]))
    (log.info if report["accepted"] else log.warning)("%s: %s", config.output, report["reason"])
    return card, report


def describe(config: TrainConfig) -> dict[str, Any]:
    """What ``--dry-run`` prints."""
    if not is_archive(config.movie[0]):
        with chosen(config, Control()) as decided:
            return describe_plan(decided)
    resolved, material, _ = select(config, {} if config.force else _known(config))
    return {**describe_plan(resolved, material), **material.told}


def _selected(config: TrainConfig) -> tuple[TrainConfig, Material, Parent]:
    """The movies and the model to start from; those of a run that goes on stay what they were."""
    asked = " ".join(config.where)
    known = {} if config.force else _known(config)
    _check_where(config, known)
    if config.force:
        _check_replaced(config)
    found = select(config, known)
    if known:
        return found
    resolved, _, parent = found
    ids = [str(store.read_attributes(path)["id"]) for path in resolved.movie]
    mine = {"parent": parent.card["sha256"], "movies": ids, "where": asked}
    agreed = choices.remember(config.output, mine, force=config.force)
    _check_where(config, agreed)
    return found if agreed == mine else select(config, agreed)


def _check_replaced(config: TrainConfig) -> None:
    """Refuse to replace an accepted version: the next one may be refused, and it is what others go on from."""
    try:
        id = checkpoint.read_card(config.output)["sha256"]
    except checkpoint.ModelError:
        return
    if any(card["id"] == id and card.get("version") for card in cards(config.movie[0])):
        raise UsageError(
            f"{config.output}: is an accepted version of {config.movie[0]}. Choose another name."
        )


def _known(config: TrainConfig) -> dict[str, Any]:
    """What this output was begun with, or made of; empty where it is new."""
    if begun := choices.recall(config.output):
        return begun
    try:
        card = checkpoint.read_card(config.output)
    except checkpoint.ModelError:
        return {}
    if "learned" not in card:
        return {}
    movies = [movie["id"] for movie in card["movies"]]
    return {"parent": card["parent"], "movies": movies, "where": card["learned"].get("where", "")}


def _check_where(config: TrainConfig, known: dict[str, Any]) -> None:
    """Refuse to go on with other movies than those that were asked for."""
    asked = " ".join(config.where)
    if known.get("where", asked) != asked:
        raise UsageError(
            f"{config.output}: was begun with --where {known['where']!r}. Give the same, choose another name, or "
            "start over with --force."
        )


def _report(
    config: TrainConfig, material: Material, parent: Parent, card: ModelCard, control: Control
) -> dict[str, Any]:
    """How a version compares with its parent and with the first of all, on every movie."""
    name = f"version {material.told['version']}"
    networks = _networks(parent, card) | {name: open_model(config.output).network}
    first = next(iter(networks))
    movies = list(judge(config, material, networks, control))
    over_old = {m.id: m.over[parent.name, name] for m in movies}
    earlier = {m.id for m in movies if m.earlier}
    found = accept(over_old, earlier)
    n_known = material.told["n_known"]
    blind = n_known > 0 and not earlier  # nothing tells whether it forgets
    names = {m.id: m.name for m in movies}
    return {
        "model": card["sha256"],
        "parent": card["parent"],
        "accepted": found.accepted and not blind,
        "reason": _reason(
            name, parent.name, found.mean, over_old, found.forgotten, names, len(earlier), n_known
        ),
        "mean": list(found.mean),
        "factor": found.factor,
        "first": first,
        "movies": [
            {"id": m.id, "name": m.name, "earlier": m.earlier, "over_old": list(over_old[m.id])}
            for m in movies
        ],
        "versions": [*_rows_before(parent, first), *_rows(movies, first, parent.name, name)],
    }


def _networks(parent: Parent, card: ModelCard) -> dict[str, Network]:
    """The networks to compare with: the model that comes with tdenoise where it is alike, and the parent."""
    found = {}
    base = open_model(checkpoint.BASE)
    if architecture_of(base.card) == architecture_of(card):
        found["base"] = base.network
    if parent.path != SHIPPED:
        found[parent.name] = open_model(parent.path).network
    return found


def _rows(movies: list[Judged], first: str, old: str, new: str) -> list[dict[str, Any]]:
    """The versions' errors over that of the first, by movies."""
    return [
        {"name": name, "over_first": {m.id: list(m.over[first, name]) for m in movies}}
        for name in dict.fromkeys((old, new))
        if name != first
    ]


def _rows_before(parent: Parent, first: str) -> list[dict[str, Any]]:
    """What the parent's report says of the versions before it."""
    before = {} if parent.path == SHIPPED else read_sealed(parent.path / LEARNED) or {}
    rows = before.get("versions", []) if before.get("first") == first else []
    return [row for row in rows if row["name"] != parent.name]


def _reason(
    new: str,
    old: str,
    mean: Difference,
    over_old: dict[str, Difference],
    forgotten: list[str],
    names: dict[str, str],
    n_earlier: int,
    n_known: int,
) -> str:
    """In a sentence, why a version is accepted or not."""
    width = interval_factor(1) * mean.error
    told = (
        f"over {len(over_old)} movies its mean error differs from that of {old} by {mean.excess:+.2g} ± {width:.2g} "
        "of the noise variance"
    )
    if forgotten:
        worst = max(forgotten, key=lambda id: over_old[id].excess / over_old[id].error)
        excess, error = over_old[worst]
        others = f" ({len(forgotten) - 1} more are forgotten, too)" if len(forgotten) > 1 else ""
        return (
            f"{new} is not accepted: it forgets {names[worst]}, where its error rises by {excess:.2g} ± "
            f"{interval_factor(n_earlier) * error:.2g} of the noise variance{others}; {told}"
        )
    if mean.excess >= -width:
        return f"{new} is not accepted: it is not clearly better; {told}"
    before = f"movies that {old} learned from"
    if n_known and not n_earlier:
        return f"{new} is not accepted: none of the {n_known} {before} is there to judge it; {told}"
    unseen = f"; {n_known - n_earlier} more are not there to judge it" if n_known > n_earlier else ""
    return f"{new} is accepted: {told}, and it forgets none of the {n_earlier} {before}{unseen}"
