"""A page of an archive: what is in it, what was made from what, and how it looks; one file that loads nothing."""

from __future__ import annotations

import base64
import hashlib
import os
from collections.abc import Mapping
from importlib import resources
from pathlib import Path
from typing import Any

import jinja2

from tdenoise.files.atomic import make_folder, write_atomically

from ..errors import InputError, PipelineError, UsageError
from ..files.write_errors import named_failures
from ..settings.archive_settings import ArchiveHtmlConfig
from ..step_control import Control
from ..store import store
from .card import Card
from .index import cards
from .look import kept_picture, picture_of
from .place import place_of
from .query import KEYS, matching, parse

MOST_PICTURES = 500  # so that the page stays of a size that a browser opens at once
SHOWN = (
    *(
        "frames",
        "width",
        "height",
        "size",
        "dose",
        "dose_rate",
        "pixel_size",
        "frame_time",
        "fano",
        "lattice",
    ),
    *("signal_shown", "error", "smallest_event", "version", "steps"),
)
UNITS = {
    "pixel_size": "nm",
    "frame_time": "s",
    "dose": "e/px/frame",
    "dose_rate": "e/nm²/s",
    "lattice": "nm",
    "size": "MB",
}


def write_html(config: ArchiveHtmlConfig, control: Control | None = None) -> dict[str, Any]:
    """Write the page.

    Returns
    -------
    dict
        ``page``, ``n_cards``, ``n_pictures``; ``exit_code`` 1 where nothing fits the query.

    Raises
    ------
    UsageError
        If the page exists, or the query cannot be understood.
    """
    control = control or Control()
    if config.output.exists() and not config.force:
        raise UsageError(f"{config.output}: exists already. Choose another name, or --force to replace it.")
    everything = list(cards(config.archive, metadata=bool(config.query) and parse(list(config.query)).words))
    chosen = matching(everything, config.query) if config.query else everything
    chosen = sorted(chosen, key=lambda card: str(card["added"]), reverse=True)
    pictures: dict[str, str] = {}
    for number, card in enumerate(chosen[:MOST_PICTURES]):
        control.check("archive html")
        control.progress("archive html", number, min(len(chosen), MOST_PICTURES))
        if (picture := _picture(card, config.archive)) is not None:
            pictures[card["id"]] = picture
    page = render(chosen, everything, pictures, config.archive, config.output)
    with named_failures(config.output):
        make_folder(config.output.parent)
        write_atomically(config.output, page.encode())
    return {
        "page": str(config.output),
        "n_cards": len(chosen),
        "n_pictures": len(pictures),
        "exit_code": 0 if chosen or not config.query else 1,
    }


def render(
    chosen: list[Card], everything: list[Card], pictures: Mapping[str, str], archive: Path, page: Path
) -> str:
    """The page, as text; every word from a card stays a word."""
    source = resources.files(__package__)
    style, script = ((source / f"page.{kind}").read_text() for kind in ("css", "js"))
    policy = f"default-src 'none'; img-src data:; style-src {_hash(style)}; script-src {_hash(script)}"
    environment = jinja2.Environment(autoescape=True, undefined=jinja2.StrictUndefined, trim_blocks=True)
    template = environment.from_string((source / "page.html.jinja").read_text())
    names = {card["id"]: str(card["name"]) for card in everything}
    shown = {card["id"] for card in chosen}
    used_for: dict[str, list[str]] = {}
    for card in everything:
        for parent in card["parents"]:
            used_for.setdefault(parent, []).append(card["id"])
    return template.render(
        archive=archive.resolve().name,
        policy=policy,
        style=style,
        script=script,
        n_all=len(everything),
        n_pictures=len(pictures),
        items=[
            {
                "card": card,
                "facts": _facts(card),
                "notes": [*_recording(card), *sorted(card.get("notes", {}).items())],
                "picture": pictures.get(card["id"]),
                "link": _link(card, archive, page),
                "parents": [(p, names.get(p, p[:12]), p in shown) for p in card["parents"]],
                "used_for": [(c, names[c], c in shown) for c in used_for.get(card["id"], [])],
            }
            for card in chosen
        ],
    )


def _recording(card: Card) -> list[tuple[str, str]]:
    """What the raw movie was called: most stores of runs have the same name."""
    name = (card.get("source") or {}).get("name")
    return [] if name is None else [("recording", str(name))]


def _hash(text: str) -> str:
    return f"'sha256-{base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()}'"


def _facts(card: Card) -> list[tuple[str, str]]:
    found = []
    for name in SHOWN:
        key = KEYS[name]
        value = key.of(card) if key.of is not None else card.get(name)
        values = [v for v in (value if isinstance(value, list) else [value]) if v is not None]
        if values:
            numbers = ", ".join(f"{v / 1e6 if name == 'size' else v:.4g}" for v in values)
            found.append((name.replace("_", " "), f"{numbers} {UNITS.get(name, '')}".strip()))
    return found


def _link(card: Card, archive: Path, page: Path) -> str | None:
    """Where the report of a denoised movie lies, from the page; None where there is none."""
    if "report" not in card:
        return None
    report = (archive / str(card["path"])).parent / "report.html"
    return Path(os.path.relpath(report, page.parent.resolve())).as_posix() if report.is_file() else None


def _picture(card: Card, archive: Path) -> str | None:
    """A small picture, as an address of data; None of a model, or where neither picture nor store is there."""
    if card["kind"] not in ("movie", "denoised"):
        return None
    data = kept_picture(archive, card["id"], card.get("picture"))
    if data is None:
        try:
            kind = store.MOVIE if card["kind"] == "movie" else store.DENOISED
            data = picture_of(store.open_store(place_of(card, archive), kind))
        except (InputError, PipelineError, OSError):
            return None
    return f"data:image/png;base64,{base64.b64encode(data).decode()}"
