"""Archive: cards of movies, denoised movies and models, and what was made from what.

A card is a JSON file that is written once and never changed; it says what a store or a model is, where it lies,
and carries a hash of itself. The cards are the truth. The index beside them only saves reading them one by one:
it is made anew from them whenever cards were added.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from tdenoise.files.atomic import fsync, write_atomically
from tdenoise.files.json_documents import parse_json
from tdenoise.network.card import CARD as MODEL_CARD

from ..errors import InputError, PipelineError, UsageError
from ..files.sealed_json import read_json
from ..settings.archive_settings import ArchiveConfig, ArchiveFindConfig, ArchiveShowConfig
from ..settings.results import is_archive
from ..store import store
from .query import matching

PROFILE = 1
CARDS, INDEX = "cards", "index.jsonl"

Card = dict[str, Any]


def cards(archive: Path) -> Iterator[Card]:
    """The newest card of everything in an archive, in order of their ids.

    Raises
    ------
    InputError
        If it is no archive, or a card is damaged.
    """
    check_archive(archive)
    known = _read_index(archive)
    latest: dict[str, Card] = {}
    fresh = False
    names = {entry.name for entry in os.scandir(archive / CARDS) if not entry.name.startswith(".")}
    for name in sorted(names, key=card_order):
        card = known.get(name)
        if card is None:
            card, fresh = read_card(archive / CARDS / name), True
        latest[card["id"]] = card
    if fresh or len(known) > len(names):
        write_index(archive, latest.values(), names)
    yield from latest.values()


def check_archive(archive: Path) -> None:
    """Refuse what is no archive."""
    if not is_archive(archive):
        raise InputError(archive, "is not an archive. Create one with 'archive add STORE -A FOLDER'")


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
    body = "\n".join(lines).encode()
    with contextlib.suppress(OSError):  # an archive that one may only read
        write_atomically(archive / INDEX, hashlib.sha256(body).hexdigest().encode() + b"\n" + body)


def index(config: ArchiveConfig) -> dict[str, Any]:
    """Make the index anew from the cards."""
    (config.archive / INDEX).unlink(missing_ok=True)
    return {"archive": str(config.archive), "n_cards": sum(1 for _ in cards(config.archive))}


def list_all(config: ArchiveConfig) -> dict[str, Any]:
    """All cards, the newest of each thing."""
    return {"archive": str(config.archive), "cards": list(cards(config.archive))}


def find(config: ArchiveFindConfig) -> dict[str, Any]:
    """Cards that fit a query; see `query`. ``exit_code`` is 1 where none does."""
    found = matching(cards(config.archive), config.query)
    return {"archive": str(config.archive), "cards": found, "exit_code": 0 if found else 1}


def show(config: ArchiveShowConfig) -> dict[str, Any]:
    """One card, what it was made from, and what was made from it."""
    everything = list(cards(config.archive))
    card = one_card(everything, config.id, config.archive)
    return card | {
        "made_from": [c for c in everything if c["id"] in card["parents"]],
        "missing": sorted(set(card["parents"]) - {c["id"] for c in everything}),
        "made_of_it": [c for c in everything if card["id"] in c["parents"]],
    }


def one_card(everything: list[Card], wanted: str, archive: Path) -> Card:
    """The card of which an id, the beginning of one, or a name is given.

    Raises
    ------
    UsageError
        If that fits none or several.
    """
    fitting = [c for c in everything if c["id"].startswith(wanted) or c["name"] == wanted]
    if len(fitting) != 1:
        more = " Give more of the id." if fitting else " 'archive list' shows them."
        raise UsageError(f"{wanted!r} fits {len(fitting)} cards of {archive}.{more}")
    return fitting[0]


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
        found = read_json(path / MODEL_CARD).get("sha256")
    else:
        found = store.read_attributes(path).get("id")
    if found != card["id"]:
        raise InputError(path, f"is not the {card['kind']} {card['id'][:12]} of the archive")
    return path


def card_order(name: str) -> tuple[str, int]:
    stem, _, number = name.removesuffix(".json").partition(".")
    return stem, int(number) if number.isdigit() else -1


def _hash(card: Card) -> str:
    rest = {key: value for key, value in card.items() if key != "sha256"}
    return hashlib.sha256(json.dumps(rest, sort_keys=True).encode()).hexdigest()


def sealed_card(card: Card) -> bytes:
    card = json.loads(json.dumps(card))
    return (json.dumps(card | {"sha256": _hash(card)}, indent=1, sort_keys=True) + "\n").encode()


def write_once(file: Path, data: bytes) -> None:
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
        seal, _, body = (archive / INDEX).read_bytes().partition(b"\n")
        if seal.decode() != hashlib.sha256(body).hexdigest():
            return {}
        found = [parse_json(line) for line in body.decode().splitlines()]
        return {f"{c['id']}.{c['number']}.json": c for c in found}
    except (OSError, ValueError, KeyError, TypeError):
        return {}
