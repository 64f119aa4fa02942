"""Put stores and models into an archive: a card for each; what lies on the disk stays where it is."""

from __future__ import annotations

import contextlib
import datetime
import hashlib
import json
import logging
from pathlib import Path
from typing import Any

from tdenoise.files.atomic import make_shared_folder, write_atomically
from tdenoise.network import checkpoint
from tdenoise.network.card import CARD

from ..errors import InputError, UsageError
from ..settings.archive_settings import ArchiveAddConfig
from ..settings.results import ARCHIVE_MARK, is_archive, parts_of_run
from ..step_control import Control
from ..store import foreign, store
from .card import CARDS, PROFILE, Card, write_card
from .facts import denoised_facts, model_facts, movie_facts
from .index import cards
from .look import keep_picture, kept_picture, picture_of, seen
from .notes import check_notes
from .place import place_of

log = logging.getLogger(__name__)


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
    notes = check_notes(config.note)
    parts = [part for path in config.store for part in parts_of_run(path)]
    pictures: dict[str, bytes] = {}
    found = [describe(part, archive, pictures) for part in parts]  # all of them, before the first is written
    make_shared_folder(archive / CARDS)
    if not is_archive(archive):
        write_atomically(archive / ARCHIVE_MARK, json.dumps({"profile": PROFILE, "kind": "archive"}).encode())
    latest = {card["id"]: card for card in cards(archive, [card["id"] for card in found])}
    added, known = [], []
    for card in found:
        before = latest.get(card["id"])
        # Notes of the store are those that lay beside the raw movie; later ones are of the archive.
        card["notes"] = (card.pop("notes", {}) if before is None else before.get("notes", {})) | notes
        picture = pictures.get(card["id"])
        if before is not None and kept_picture(archive, card["id"], before.get("picture")) is not None:
            card["picture"], picture = before["picture"], None  # another version may draw it otherwise
        if picture is not None:
            keep_picture(archive, card["id"], picture)
        if before is not None and _says(before) == _says(card):
            known.append(card["id"])
            continue
        if before is not None and before["path"] != card["path"]:
            with contextlib.suppress(InputError):
                log.warning(
                    "%s: is the same, to the last bit, as %s; from now on the archive names only this place.",
                    card["path"],
                    place_of(before, archive),
                )
        card["number"] = (
            0 if before is None else before["number"] + 1
        )  # moved, noted, or measured since: the newest card says it
        write_card(archive, card)
        latest[card["id"]] = card
        added.append(card)
    return {"archive": str(archive), "added": added, "known": known}


def _says(card: Card) -> Card:
    """What a card says of a thing, but for when it was written."""
    plain: Card = json.loads(json.dumps(card))
    return {key: value for key, value in plain.items() if key not in ("added", "number", "sha256")}


def describe(path: Path, archive: Path, pictures: dict[str, bytes]) -> Card:
    """The card of a store or a model; its picture is put beside the others, by its id.

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
    if (path / CARD).exists():
        try:
            model = checkpoint.load_model(path).card
        except checkpoint.ModelError as error:
            raise InputError(*str(error).split(": ", 1)) from None
        movies = [movie["id"] for movie in model["movies"]]
        parents = [*movies, *([model["parent"]] if model.get("parent") else [])]
        return card | {
            "kind": "model",
            "id": model["sha256"],
            "parents": parents,
            **model_facts(model, path),
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
    pictures[opened.id] = picture_of(opened)
    card["picture"] = hashlib.sha256(pictures[opened.id]).hexdigest()
    if kind == "movie":
        variance = (attributes.get("noise") or {}).get("noise_variance")
        facts = {**movie_facts(attributes, path), **seen(opened, variance)}
        return card | {"parents": [], "notes": attributes.get("notes", {}), **facts}
    parents = [attributes["movie"]["id"], attributes["model"]["id"]]
    return card | {"parents": parents, **denoised_facts(opened.id, path)}
