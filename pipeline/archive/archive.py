"""Archive: cards of movies, denoised movies and models, and what was made from what.

A card is a JSON file that is written once and never changed; it says what a store or a model is, where it lies,
and carries a hash of itself. The cards are the truth. The index beside them only saves reading them one by one:
it is made anew from them whenever cards were added.
"""

from __future__ import annotations

import contextlib
import datetime
import hashlib
import json
import os
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from tdenoise.files.atomic import fsync, write_atomically
from tdenoise.files.json_documents import parse_json
from tdenoise.network import checkpoint

from ..errors import InputError, PipelineError, UsageError, VerificationError
from ..files.sealed_json import read_json
from ..settings.archive_settings import (
    ArchiveAddConfig,
    ArchiveConfig,
    ArchiveFindConfig,
    ArchiveShowConfig,
    ArchiveVerifyConfig,
)
from ..settings.result_settings import VerifyConfig
from ..settings.results import ARCHIVE_MARK, is_archive, parts_of_run
from ..step_control import Control
from ..store import foreign, store
from .verify import verify

PROFILE = 1
CARDS, INDEX = "cards", "index.jsonl"

Card = dict[str, Any]


def add(config: ArchiveAddConfig, control: Control | None = None) -> dict[str, Any]:
    """Write a card for each store or model; what lies on the disk stays where it is.

    Returns
    -------
    dict
        ``added``: the new cards; ``known``: ids that had a card for this very place.

    Raises
    ------
    InputError
        If something is no finished store or model of tdenoise, or holds symbolic links.
    """
    archive = config.archive
    if archive.exists() and not is_archive(archive) and any(archive.iterdir()):
        raise UsageError(f"{archive}: is a folder, but not an archive. Name an archive, or a new folder.")
    parts = [part for path in config.store for part in parts_of_run(path)]
    found = [describe(part, archive) for part in parts]  # all of them, before the first is written
    (archive / CARDS).mkdir(parents=True, exist_ok=True)
    if not is_archive(archive):
        write_atomically(archive / ARCHIVE_MARK, json.dumps({"profile": PROFILE, "kind": "archive"}).encode())
    latest = {card["id"]: card for card in cards(archive)}
    added, known = [], []
    for card in found:
        before = latest.get(card["id"])
        if before is not None and before["path"] == card["path"]:
            known.append(card["id"])
            continue
        card["number"] = 0 if before is None else before["number"] + 1  # moved: the newest card says where to
        _write_once(archive / CARDS / f"{card['id']}.{card['number']}.json", _sealed(card))
        latest[card["id"]] = card
        added.append(card)
    return {"archive": str(archive), "added": added, "known": known}


def describe(path: Path, archive: Path) -> Card:
    """The card of a store or a model.

    Raises
    ------
    InputError
        If it is neither, or not whole.
    """
    if links := [path] if path.is_symlink() else foreign.links_in(path):
        raise InputError(links[0], "is a symbolic link, and its target may change. Add the folder itself")
    place, root = path.resolve(), archive.resolve()
    card: Card = {
        "profile": PROFILE,
        "name": path.name,
        "path": str(place.relative_to(root)) if place.is_relative_to(root) else str(place),
        "added": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
    }
    if (path / checkpoint.CARD).exists():
        try:
            model = checkpoint.load_model(path).card
        except checkpoint.ModelError as error:
            raise InputError(*str(error).split(": ", 1)) from None
        movies = [movie["id"] for movie in model["movies"]]
        parents = [*movies, *([model["parent"]] if model.get("parent") else [])]
        return card | {
            "kind": "model",
            "id": model["sha256"],
            "model_kind": model["kind"],
            "parents": parents,
        }
    attributes = store.read_attributes(path)
    kind = "movie" if attributes["kind"] == "movie" else "denoised"
    opened = store.open_store(path, store.MOVIE if kind == "movie" else store.DENOISED)
    opened.array.check_all()
    card |= {
        "kind": kind,
        "id": opened.id,
        "shape": list(opened.shape),
        "dtype": str(opened.array.dtype),
        "shard": list(opened.geometry.shard),
        "units": opened.units,
        "frame_time_s": opened.coordinates.frame_time_s,
        "pixel_size_nm": opened.coordinates.pixel_size_nm,
    }
    if kind == "movie":
        return card | {"source": attributes["source"], "mean": attributes["mean"], "parents": []}
    return card | {"parents": [attributes["movie"]["id"], attributes["model"]["id"]]}


def cards(archive: Path) -> Iterator[Card]:
    """The newest card of everything in an archive, in order of their ids.

    Raises
    ------
    InputError
        If it is no archive, or a card is damaged.
    """
    if not is_archive(archive):
        raise InputError(archive, "is not an archive. Create one with 'archive add STORE -A FOLDER'")
    known = _read_index(archive)
    latest: dict[str, Card] = {}
    fresh = False
    names = {entry.name for entry in os.scandir(archive / CARDS) if not entry.name.startswith(".")}
    for name in sorted(names, key=_order):
        card = known.get(name)
        if card is None:
            card, fresh = read_card(archive / CARDS / name), True
        latest[card["id"]] = card
    if fresh or len(known) > len(names):
        write_index(archive, latest.values(), names)
    yield from latest.values()


def read_card(file: Path) -> Card:
    """One card, checked to be as it was written.

    Raises
    ------
    InputError
        If it is damaged or changed.
    """
    card = read_json(file) if not file.is_symlink() else {}
    name = f"{card.get('id')}.{card.get('number')}.json"
    if (
        card.get("sha256") != _hash(card)
        or file.name != name
        or not re.fullmatch("[0-9a-f]{32,64}", card["id"])
    ):
        raise InputError(
            file, "was changed since it was written. Add its store again from a copy of the archive"
        )
    return card


def write_index(archive: Path, latest: Any, names: set[str]) -> None:
    """Write the index anew; it only ever says what cards say."""
    lines = [
        json.dumps(card, sort_keys=True) for card in latest if f"{card['id']}.{card['number']}.json" in names
    ]
    with contextlib.suppress(OSError):  # an archive that one may only read
        write_atomically(archive / INDEX, ("\n".join(lines) + "\n").encode())


def index(config: ArchiveConfig) -> dict[str, Any]:
    """Make the index anew from the cards."""
    (config.archive / INDEX).unlink(missing_ok=True)
    return {"archive": str(config.archive), "n_cards": sum(1 for _ in cards(config.archive))}


def list_all(config: ArchiveConfig) -> dict[str, Any]:
    """All cards, the newest of each thing."""
    return {"archive": str(config.archive), "cards": list(cards(config.archive))}


def find(config: ArchiveFindConfig) -> dict[str, Any]:
    """Cards that hold every word; ``KEY=VALUE`` asks one entry."""
    matching = [c for c in cards(config.archive) if all(_holds(c, word) for word in config.query)]
    return {"archive": str(config.archive), "cards": matching}


def show(config: ArchiveShowConfig) -> dict[str, Any]:
    """One card, what it was made from, and what was made from it."""
    everything = list(cards(config.archive))
    fitting = [c for c in everything if c["id"].startswith(config.id) or c["name"] == config.id]
    if len(fitting) != 1:
        raise UsageError(f"{config.id!r} fits {len(fitting)} cards of {config.archive}. Give more of the id.")
    (card,) = fitting
    return card | {
        "made_from": [c for c in everything if c["id"] in card["parents"]],
        "missing": sorted(set(card["parents"]) - {c["id"] for c in everything}),
        "made_of_it": [c for c in everything if card["id"] in c["parents"]],
    }


def place_of(card: Card, archive: Path) -> Path:
    """Where a thing lies, once it is seen to be what its card says.

    Raises
    ------
    InputError
        If it is not there, or is another.
    """
    path = archive / str(card["path"])  # an absolute path stays what it is
    if ".." in Path(card["path"]).parts or path.is_symlink():
        raise InputError(path, "is not a path that an archive may contain")
    if card["kind"] == "model":
        found = read_json(path / checkpoint.CARD).get("sha256")
    else:
        found = store.read_attributes(path).get("id")
    if found != card["id"]:
        raise InputError(path, f"is not the {card['kind']} {card['id'][:12]} of the archive")
    return path


def check(config: ArchiveVerifyConfig, control: Control | None = None) -> dict[str, Any]:
    """Check all cards, and all that they name; every fault is told, not only the first.

    Raises
    ------
    VerificationError
    """
    control = control or Control()
    archive, faults, n_cards = config.archive, [], 0
    if not is_archive(archive):
        raise InputError(archive, "is no archive")
    files = sorted((archive / CARDS).glob("[!.]*"), key=lambda file: _order(file.name))
    latest: dict[str, Card] = {}
    for file in files:
        try:
            card = read_card(file)
            latest[card["id"]] = card
        except InputError as error:
            faults.append(str(error))
    for card in latest.values():
        control.check("archive verify")
        control.progress("archive verify", n_cards, len(latest))
        n_cards += 1
        try:
            path = place_of(card, archive)
            if links := foreign.links_in(path):
                raise InputError(links[0], "is a symbolic link")
            if card["kind"] == "model":
                checkpoint.load_model(path, card["id"])
            else:
                verify(VerifyConfig(store=path, deep=config.deep))
        except (PipelineError, checkpoint.ModelError) as error:
            faults.append(str(error))
    if faults:
        raise VerificationError(f"{archive}: {len(faults)} faults. " + " ".join(faults[:20]))
    return {"archive": str(archive), "n_cards": n_cards, "deep": config.deep}


def _holds(card: Card, word: str) -> bool:
    key, equals, value = word.partition("=")
    if equals:
        return key in card and value.lower() in json.dumps(card[key]).lower()
    return word.lower() in json.dumps(card).lower()


def _order(name: str) -> tuple[str, int]:
    stem, _, number = name.removesuffix(".json").partition(".")
    return stem, int(number) if number.isdigit() else -1


def _hash(card: Card) -> str:
    rest = {key: value for key, value in card.items() if key != "sha256"}
    return hashlib.sha256(json.dumps(rest, sort_keys=True).encode()).hexdigest()


def _sealed(card: Card) -> bytes:
    card = json.loads(json.dumps(card))
    return (json.dumps(card | {"sha256": _hash(card)}, indent=1, sort_keys=True) + "\n").encode()


def _write_once(file: Path, data: bytes) -> None:
    """Write a file that was not there; never over another."""
    partial = file.with_name(f".{file.name}.{os.getpid()}")
    write_atomically(partial, data)
    try:
        os.link(partial, file)  # fails if it is there
    except FileExistsError:
        raise PipelineError(f"{file}: another run has just added it. Run the command again.") from None
    finally:
        partial.unlink()
    fsync(file.parent)


def _read_index(archive: Path) -> dict[str, Card]:
    """Cards by file name, as the index has them; none where it is missing or damaged."""
    try:
        lines = (archive / INDEX).read_text().splitlines()
        found = [parse_json(line) for line in lines]
        return {f"{c['id']}.{c['number']}.json": c for c in found if c["sha256"] == _hash(c)}
    except (OSError, ValueError, KeyError, TypeError):
        return {}
