"""Describe an archive for others as an RO-Crate 1.2: what there is, what was made from what, and with which settings.

The specification: https://www.researchobject.org/ro-crate/specification/1.2/. Settings are written as Process Run Crate
does, as objects of the action.
"""

from __future__ import annotations

import datetime
import hashlib
import json
import os
import re
from collections import Counter
from collections.abc import Iterable
from importlib.metadata import metadata
from pathlib import Path
from typing import Any
from urllib.parse import quote_from_bytes

from tdenoise.files.atomic import write_atomically
from tdenoise.network.card import CARD as MODEL_CARD

from ..errors import InputError, UsageError
from ..files.sealed_json import read_json
from ..files.write_errors import named_failures
from ..settings.archive_settings import ArchiveCrateConfig
from ..settings.licences import known_licence
from ..step_control import Control
from ..store import store
from .card import Card
from .index import cards
from .place import place_of
from .query import KEYS
from .works import all_works

FILE = "ro-crate-metadata.json"
SPECIFICATION = "https://w3id.org/ro/crate/1.2"
MADE_BY = {"movie": "ingest", "model": "train", "denoised": "apply"}
KIND = {"movie": "movie store", "model": "model", "denoised": "denoised store"}
# Of a card, what others may want to know; the names are those of `archive find`.
FACTS = (
    ("frames", "height", "width", "pixel_size", "frame_time", "mean", "dose", "fano", "correlation", "flicker", "drift")
    + ("voltage", "camera", "model_kind", "steps", "signal_shown", "refuted_places")
)  # fmt: skip
UNITS = {"pixel_size": "nm", "frame_time": "s", "voltage": "kV", "dose": "electrons per pixel and frame"}
LICENCE_NOTES = ("license", "licence")

Entity = dict[str, Any]


def write_crate(config: ArchiveCrateConfig, control: Control | None = None) -> dict[str, Any]:
    """Write ``ro-crate-metadata.json`` into the folder that holds the stores of an archive.

    What lies in that folder is part of the crate, by its relative path; anything else is only described. No path of
    this machine is written.

    Returns
    -------
    dict
        ``crate``, the file; ``n_parts``; ``described``, names of what lies elsewhere; ``missing``, a sentence for each
        thing that is not where its card says; ``license``, of the whole.

    Raises
    ------
    UsageError
        If the folder is itself a store or a model, the file exists, or the archive is empty.
    """
    control = control or Control()
    root, file = config.output, config.output / FILE
    if config.license is not None and not (config.license.strip() and config.license.isprintable()):
        raise UsageError("--license: must be one line of readable text.")
    if not root.is_dir():
        raise UsageError(f"{root}: is no folder. Name the folder that holds the stores.")
    if (root / "zarr.json").exists() or (root / MODEL_CARD).exists():
        raise UsageError(f"{root}: is itself a store or a model. Name the folder that holds it.")
    if file.exists() and not config.force:
        raise UsageError(f"{file}: exists already. Use --force to replace it.")
    found = list(cards(config.archive))
    if not found:
        raise UsageError(f"{config.archive}: is empty. Add something first: archive add STORE -A ARCHIVE")
    crate = _Crate(root, config.archive, found, config.license)
    for number, card in enumerate(found):
        control.check("archive crate")
        control.progress("archive crate", number, len(found))
        crate.add(card)
    if not crate.parts:
        raise UsageError(f"{root}: holds nothing of {config.archive}. Name the folder that holds its stores.")
    document = crate.document()
    with named_failures(file):
        write_atomically(file, (json.dumps(document, indent=1) + "\n").encode())
    return {
        "crate": str(file),
        "n_parts": len(crate.parts),
        "described": crate.described,
        "missing": crate.missing,
        "license": crate.licence,
    }


class _Crate:
    """The entities of a crate while it is put together, by their ids."""

    def __init__(self, root: Path, archive: Path, everything: list[Card], licence: str | None) -> None:
        self.graph: dict[str, Entity] = {}
        self.parts: list[str] = []
        self.described: list[str] = []
        self.missing: list[str] = []
        self._actions: list[str] = []
        self._root, self._archive, self._cards = root.resolve(), archive, everything
        self._title = all_works()[0].fields["title"]
        self._places = {card["id"]: self._place(card) for card in everything}
        self._ids = {card["id"]: self._id(card) for card in everything}
        noted = {_noted_licence(card) for card in everything}
        self.licence = licence or (noted.pop() if len(noted) == 1 else None)  # of the whole

    def _place(self, card: Card) -> Path | None:
        """Where it lies, if it is there and is what the card says."""
        try:
            return place_of(card, self._archive).resolve()
        except (InputError, OSError) as error:
            self.missing.append(str(error))
            return None

    def _id(self, card: Card) -> str:
        place = self._places[card["id"]]
        if place is not None and self._root in place.parents:
            return f"{_address(place.relative_to(self._root))}/"
        return f"#{card['kind']}-{card['id']}"

    def add(self, card: Card) -> None:
        """Add a thing, and how it was made."""
        entity: Entity = {
            "@id": self._ids[card["id"]],
            "@type": "Dataset",
            "name": readable(card["name"]),
            "description": _description(card),
            "identifier": card["id"],
            "contentSize": str(card["bytes"]),
            "additionalProperty": [*self._facts(card), *self._notes(card)],
        }
        licence = _noted_licence(card)
        if licence is not None and licence != self.licence:  # which holds for all parts
            entity["license"] = self._licence(licence)
        if entity["@id"].startswith("#"):
            self.described.append(entity["name"])
        else:
            self.parts.append(entity["@id"])
            self._report(card)
        self._put(entity)
        self._made(card)

    def _put(self, entity: Entity) -> Entity:
        """Add an entity; what refers to it."""
        self.graph[entity["@id"]] = entity
        return {"@id": entity["@id"]}

    def _facts(self, card: Card) -> Iterable[Entity]:
        for name in FACTS:
            key = KEYS[name]
            value = card.get(name) if key.of is None else key.of(card)
            if value is not None:
                told = card.get("drift_units") if name == "drift" else UNITS.get(name)
                unit = {"unitText": told} if told else {}
                yield self._value(f"#{card['id'][:16]}-{name}", name, value, **unit)

    def _notes(self, card: Card) -> Iterable[Entity]:
        for name, value in sorted(card.get("notes", {}).items()):
            if name not in LICENCE_NOTES:
                yield self._value(
                    f"#{card['id'][:16]}-note-{name}", name, value, description="noted by the user"
                )

    def _value(self, identifier: str, name: str, value: Any, **about: str) -> Entity:
        plain = value if isinstance(value, bool | int | float) else _text(value)
        return self._put({"@id": identifier, "@type": "PropertyValue", "name": name, "value": plain, **about})

    def _report(self, card: Card) -> None:
        """The report beside a denoised store: the file that people read."""
        place = self._places[card["id"]]
        if place is None or "report" not in card:
            return
        report = place.parent / "report.html"
        if self._root in report.parents and report.is_file():
            self.parts.append(_address(report.relative_to(self._root)))
            self._put(
                {
                    "@id": self.parts[-1],
                    "@type": "File",
                    "name": f"report of {readable(card['name'])}",
                    "description": "Pictures, figures and verdicts, to be opened in a browser",
                    "encodingFormat": "text/html",
                    "contentSize": str(report.stat().st_size),
                    "about": {"@id": self._ids[card["id"]]},
                }
            )

    def _made(self, card: Card) -> None:
        """The action that made a thing: by which program, from what, with which settings."""
        software, settings, imported = _how(card, self._places[card["id"]])
        made_by, note = _who(card, self._places[card["id"]])
        step, short = "models import" if imported else MADE_BY[card["kind"]], card["id"][:16]
        sources = [self._source(parent) for parent in card["parents"] if parent != card["id"]]
        if "source" in card:
            about = f"Raw movie, {readable(card['source']['format'])}; its identifier is its sha256"
            sources.append(self._file(card["source"], about))
        if imported:
            sources.append(self._file(imported, "Weights of UDVD; its identifier is its sha256"))
        values = [
            self._value(f"#{short}-setting-{name}", name, value)
            for name, value in sorted(settings.items())
            if value is not None
        ]
        action: Entity = {
            "@id": f"#made-{short}",
            "@type": "CreateAction",
            "name": made_by or f"tdenoise-pipeline {step}",
            "description": f"{made_by or step} made {readable(card['name'])}{note}",
            "instrument": self._software(software),
            "object": [*sources, *values],
            "result": {"@id": self._ids[card["id"]]},
        }
        self._put(action)
        self._actions.append(action["@id"])

    def _source(self, identifier: str) -> Entity:
        """What a thing was made from; of that which is not in the archive, only the id is known."""
        if identifier in self._ids:
            return {"@id": self._ids[identifier]}
        about = "Not in the archive; its identifier is the sha256 of its content"
        return self._put(
            {
                "@id": f"#elsewhere-{identifier}",
                "@type": "CreativeWork",
                "name": identifier[:12],
                "description": about,
                "identifier": identifier,
            }
        )

    def _file(self, file: dict[str, Any], about: str) -> Entity:
        """A file that is no part of an archive, such as that of the camera."""
        size = {"contentSize": str(file["bytes"])} if "bytes" in file else {}
        return self._put(
            {
                "@id": f"#file-{file['sha256']}",
                "@type": "CreativeWork",
                "name": readable(file["name"]),
                "description": about,
                "identifier": file["sha256"],
                **size,
            }
        )

    def _software(self, versions: dict[str, str]) -> Entity:
        version = versions.get("tdenoise", "unknown")
        told = ", ".join(f"{name} {versions[name]}" for name in sorted(versions))
        key = hashlib.sha256(told.encode()).hexdigest()[:8]
        address = project_address()
        entity: Entity = {
            "@id": f"#tdenoise-{key}",
            # A SoftwareApplication must have an address.
            "@type": "SoftwareApplication" if address else "CreativeWork",
            "name": f"tdenoise {version}",
            "description": f"{self._title}. Versions: {told or 'not known'}",
            "version": version,
            **({"url": address} if address else {}),
        }
        return self._put(entity)

    def _licence(self, words: str | None) -> Entity:
        if words is None:
            about = "No licence was stated for the whole. Ask the owners before you use it."
            return self._put(
                {
                    "@id": "#no-licence",
                    "@type": "CreativeWork",
                    "name": "No licence stated",
                    "description": about,
                }
            )
        address, name = _licence_address(words)
        return self._put(
            {"@id": address, "@type": "CreativeWork", "name": name, "description": f"Licence: {name}"}
        )

    def document(self) -> dict[str, Any]:
        """The whole crate as JSON-LD."""
        counted = Counter(card["kind"] for card in self._cards)
        told = ", ".join(f"{counted[kind]} x {word}" for kind, word in KIND.items() if counted[kind])
        whole = {
            "@id": "./",
            "@type": "Dataset",
            "name": f"{readable(self._archive.resolve().name)}, an archive of electron microscopy movies",
            "description": f"In situ electron microscopy movies and what tdenoise made of them: {told}.",
            "datePublished": datetime.datetime.now(datetime.UTC).date().isoformat(),
            "license": self._licence(self.licence),
            "hasPart": [{"@id": part} for part in self.parts],
            "mentions": [{"@id": action} for action in self._actions],
        }
        descriptor = {
            "@id": FILE,
            "@type": "CreativeWork",
            "conformsTo": {"@id": SPECIFICATION},
            "about": {"@id": "./"},
        }
        return {
            "@context": f"{SPECIFICATION}/context",
            "@graph": [descriptor, *map(_compact, (whole, *self.graph.values()))],
        }


def _compact(entity: Entity) -> Entity:
    """As RO-Crate recommends it: a list of one thing is that thing, and an empty one is left out."""
    plain = {
        key: value[0] if isinstance(value, list) and len(value) == 1 else value
        for key, value in entity.items()
    }
    return {key: value for key, value in plain.items() if value != []}


def project_address() -> str | None:
    """Where tdenoise is to be found, if this installation says so."""
    told = (word.split(", ", 1) for word in metadata("tdenoise").get_all("Project-URL") or [])
    return next((address for name, address in told if name == "Source"), None)


def _how(card: Card, place: Path | None) -> tuple[dict[str, str], dict[str, Any], dict[str, Any] | None]:
    """Versions and settings that made a thing, and the file it was imported from, if it was, as it says itself.

    Nothing where it is not at hand.
    """
    if place is None:
        return {}, {}, None
    if card["kind"] == "model":
        told = read_json(place / MODEL_CARD)
        settings = {**(told.get("settings") or {}), **(told.get("simulated") or {}), "seed": told.get("seed")}
        imported = None if told.get("movies") else told.get("imported")  # and not trained since
        return told.get("software") or {}, settings, imported
    attributes = store.read_attributes(place)
    return attributes.get("software") or {}, (attributes.get("command") or {}).get("settings") or {}, None


def _who(card: Card, place: Path | None) -> tuple[str | None, str]:
    """What made a model if it was not `train`, and a word if a training left no trace."""
    if place is None or card["kind"] != "model":
        return None, ""
    told = read_json(place / MODEL_CARD)
    if not told.get("movies"):
        made_by = (told.get("simulated") or {}).get("made_by")
        return None if made_by is None else readable(made_by), ""
    if (told.get("metrics") or {}).get("share") == 0:
        return None, "; nothing of its change was kept: the weights are those that it began with"
    return None, ""


def _description(card: Card) -> str:
    size = " x ".join(map(str, card.get("shape", [])))
    words = f"{KIND[card['kind']]} of tdenoise"
    return f"{words}, Zarr v3, {size} (frames, rows, columns), {card['dtype']}" if size else words


def _noted_licence(card: Card) -> str | None:
    notes = card.get("notes", {})
    return next((notes[name] for name in LICENCE_NOTES if name in notes), None)


def _licence_address(words: str) -> tuple[str, str]:
    """Where a licence is to be read, and its name; one that we do not know keeps its words."""
    if (known := known_licence(words)) is not None:
        return f"https://spdx.org/licenses/{known}", known
    if re.fullmatch(r"https?://[\w.~:/?#@!$&()*+,;=%-]+", words, flags=re.ASCII):
        return words, words
    return f"#licence-{hashlib.sha256(words.encode()).hexdigest()[:12]}", words


def _address(path: Path) -> str:
    """A relative path as an address: letters of any language as they are, any other byte escaped."""
    letters = path.as_posix()
    return "".join(c if c > "\x7f" and c.isprintable() else quote_from_bytes(os.fsencode(c)) for c in letters)


def readable(name: Any) -> str:
    """A name as text; what is no text in it is replaced."""
    return os.fsencode(str(name)).decode(errors="replace")


def _text(value: Any) -> str:
    return readable(value) if isinstance(value, str) else json.dumps(value)
