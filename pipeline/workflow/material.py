"""Which movies of an archive a version of its base model learns from, and which version it goes on from."""

from __future__ import annotations

import logging
import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from tdenoise.network import checkpoint
from tdenoise.network.card import ModelCard
from tdenoise.training.many_movies import Mix

from ..archive.card import Card
from ..archive.index import cards
from ..archive.place import place_of
from ..archive.query import matching
from ..errors import InputError, UsageError
from ..files.sealed_json import read_sealed
from ..inputs.model_fit import open_model
from ..inputs.movie_facts import valid_frames
from ..settings.denoise_settings import TrainConfig
from ..settings.results import SCRATCH, SHIPPED
from ..store import store
from ..train.material import Material, held_out_of
from .suggest import refusal

log = logging.getLogger(__name__)

LEARNED = "learned.json"  # in the folder of a version: how it compares with the one before, and what follows
DOSE_STEP, PIXEL_STEP = 4.0, math.sqrt(2)  # ratios that a stratum spans


@dataclass(frozen=True)
class Parent:
    """The model that a version goes on from."""

    path: Path  # or `SHIPPED`
    card: ModelCard
    version: int  # 0 where it is none of the archive's versions

    @property
    def name(self) -> str:
        """As reports call it."""
        if self.version:
            return f"version {self.version}"
        return "base" if self.path == SHIPPED else self.path.name


@dataclass(frozen=True)
class _Found:
    """A movie that fits."""

    place: Path
    id: str
    stratum: str
    earlier: bool
    held_out: tuple[int, ...]
    extent: int


def select(config: TrainConfig, only: Mapping[str, Any]) -> tuple[TrainConfig, Material, Parent]:
    """The settings of the training of a version, with the movies to learn from.

    Parameters
    ----------
    config : TrainConfig
        Whose movie is an archive.
    only : mapping
        What was selected before for this output: ``parent`` and ``movies``, ids; or nothing.

    Raises
    ------
    InputError
        If no movie fits, or the model to start from is not there.
    UsageError
        If the settings are not for the movies of an archive.
    """
    _check(config)
    archive = config.movie[0]
    everything = list(cards(archive))
    parent = _parent(config, everything, only)
    _check_drift(config, parent)
    left_out: list[str] = []
    found = _ordered(_fitting(config, everything, parent, only, left_out))
    if not found:
        raise InputError(
            archive, f"holds no movie to learn from that fits {parent.name}. Add movies with 'archive add'"
        )
    strata = sorted({movie.stratum for movie in found})
    mix = Mix(
        tuple(strata.index(movie.stratum) for movie in found),
        tuple(movie.earlier for movie in found),
        config.replay,
    )
    told = {
        "archive": archive.resolve().name,
        "version": parent.version + 1,
        "from": parent.name,
        "where": " ".join(config.where),
        "replay": config.replay,
        "n_earlier": sum(mix.earlier),
        # A version answers for all that those before it learned from; another model is only where it starts.
        "n_known": len(_known(parent)) if parent.version else sum(mix.earlier),
        "strata": strata,
        "left_out": left_out,
    }
    log.info(
        "%d movies to learn from in %d strata, of which %s has learned from %d",
        len(found),
        len(strata),
        parent.name,
        sum(mix.earlier),
    )
    resolved = replace(config, movie=tuple(m.place for m in found), where=(), from_model=parent.path)
    largest = max(movie.extent for movie in found)
    return resolved, Material(tuple(m.held_out for m in found), mix, largest, told, config), parent


def _check(config: TrainConfig) -> None:
    if config.from_model == SCRATCH:
        raise UsageError("train ARCHIVE starts from base or from a version. Remove --from scratch.")
    for name, usual in (("model", None), ("head", None), ("blind_radius", "auto")):
        if getattr(config, name) != usual:
            flag = "--" + name.replace("_", "-")
            raise UsageError(
                f"{flag}: a version has the network of the model that it starts from. Remove it."
            )


def _check_drift(config: TrainConfig, parent: Parent) -> None:
    """Two networks are compared as both are meant to be used."""
    if bool(parent.card.get("ignore_drift")) == config.ignore_drift:
        return
    raise UsageError(
        f"{parent.name} follows the drift of the scene, so the two could not be compared. Remove --ignore-drift."
        if config.ignore_drift
        else f"{parent.name} does not follow the drift of the scene. Add --ignore-drift."
    )


def _parent(config: TrainConfig, everything: list[Card], only: Mapping[str, Any]) -> Parent:
    """What the settings name, or the newest version that was accepted, or the model that comes with tdenoise."""
    archive = config.movie[0]
    base = checkpoint.read_card(checkpoint.BASE)
    if config.from_model == SHIPPED or only.get("parent") == base["sha256"]:
        return Parent(SHIPPED, base, 0)
    path = config.from_model
    if path is None:
        versions = [c for c in everything if c["kind"] == "model" and c.get("version") is not None]
        wanted = only.get("parent")
        for card in sorted(versions, key=lambda c: (c["version"], c["added"]), reverse=True):
            place = place_of(card, archive) if wanted in (None, card["id"]) else None
            if place is not None and (wanted is not None or _accepted(place, card["id"])):
                path = place
                break
        else:
            if wanted is not None:
                raise InputError(
                    archive, f"no longer holds model {wanted[:12]}, which this training began with"
                )
            return Parent(SHIPPED, base, 0)
    return _named(path)


def _accepted(place: Path, id: str) -> bool:
    """Whether a model was accepted: an archive may hold refused ones, which somebody added."""
    report = read_sealed(place / LEARNED) or {}
    return report.get("accepted") is True and report.get("model") == id


def _named(path: Path) -> Parent:
    card = open_model(path).card
    return Parent(path, card, int(card.get("learned", {}).get("version", 0)))


def _known(parent: Parent) -> dict[str, Any]:
    """The movies that a model learned from, by their ids."""
    return {movie["id"]: movie for movie in [*parent.card["ancestors"], *parent.card["movies"]]}


def _fitting(
    config: TrainConfig,
    everything: list[Card],
    parent: Parent,
    only: Mapping[str, Any],
    left_out: list[str],
) -> Iterator[_Found]:
    """Movies that the parent knows, and new ones that are asked for; every recording once."""
    archive = config.movie[0]
    known = _known(parent)
    taken = {movie["source"] for movie in known.values()}
    movies = [card for card in everything if card["kind"] == "movie"]
    wanted = {card["id"] for card in (matching(movies, config.where) if config.where else movies)}
    if only:
        wanted = set(only["movies"])
    for card in sorted(movies, key=lambda c: (-c["shape"][0], c["id"])):
        earlier = card["id"] in known
        if not earlier and card["id"] not in wanted:
            continue
        try:
            place = place_of(card, archive)
            opened = store.open_store(place, store.MOVIE)
            source = opened.attributes["source"]["sha256"]
            reason = refusal(opened, parent.card)
            held_out = held_out_of(opened, known[card["id"]]["held_out"] if earlier else None)
            if not earlier and source in taken:
                reason = "it is another cut of a recording that is learned from already"
            elif reason is None and not _can_judge(opened, held_out):
                reason = (
                    "too few of its frames were recorded to hold out some that choose and others that judge"
                )
        except InputError as error:
            reason = str(error)
        if reason is not None:
            say = log.warning if earlier else log.info
            say("%s is left out%s: %s", card["name"], " and cannot be judged" if earlier else "", reason)
            left_out.append(card["name"])
            continue
        taken.add(source)
        yield _Found(place, card["id"], _stratum(card), earlier, held_out, max(opened.shape[1:]))


def _can_judge(movie: store.Store, held_out: tuple[int, ...]) -> bool:
    """Whether there are frames that were recorded among those that choose, and among those that judge."""
    n, valid = movie.shape[0], valid_frames(movie)
    if len(held_out) >= n or not all(0 <= t < n for t in held_out):
        return False
    return all(any(valid is None or valid[t] for t in part) for part in (held_out[::2], held_out[1::2]))


def _stratum(card: Card) -> str:
    """What movies of one stratum have in common: about the dose, about the pixel size, and the camera."""
    pixel = card.get("pixel_size_nm")
    size = None if pixel is None else math.sqrt(pixel[0] * pixel[1])
    level = _rounded(card.get("dose"), DOSE_STEP)
    parts = [
        f"mean {_rounded(card.get('mean'), DOSE_STEP)}" if level is None else f"dose {level}",
        f"pixel {_rounded(size, PIXEL_STEP)} nm",
        f"camera {card.get('camera')}",
    ]
    return ", ".join(part for part in parts if "None" not in part)


def _rounded(value: float | None, step: float) -> str | None:
    return f"{step ** round(math.log(value, step)):.2g}" if value and value > 0 else None


def _ordered(found: Iterator[_Found]) -> list[_Found]:
    """Strata and earlier and new movies in turn, so that the first few of them are of all kinds."""
    groups: dict[tuple[bool, str], list[_Found]] = {}
    for movie in found:
        groups.setdefault((movie.earlier, movie.stratum), []).append(movie)
    turns = [
        (position, key, movie) for key, movies in groups.items() for position, movie in enumerate(movies)
    ]
    return [movie for _, _, movie in sorted(turns, key=lambda turn: turn[:2])]
