"""Archive: cards of movies, denoised movies and models, and what was made from what.

A card is a JSON file that is written once and never changed; it says what a store or a model is, where it lies,
and carries a hash of itself. The cards are the truth. The index beside them only saves reading them one by one.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from ..errors import UsageError
from ..settings.archive_settings import ArchiveConfig, ArchiveFindConfig, ArchiveShowConfig
from .card import Card
from .index import INDEX, cards, check_archive
from .query import matching, parse


def index(config: ArchiveConfig) -> dict[str, Any]:
    """Make the index anew from the cards."""
    check_archive(config.archive)
    (config.archive / INDEX).unlink(missing_ok=True)
    return {"archive": str(config.archive), "n_cards": sum(1 for _ in cards(config.archive))}


def list_all(config: ArchiveConfig) -> dict[str, Any]:
    """All cards, the newest of each thing."""
    return {"archive": str(config.archive), "cards": list(cards(config.archive, metadata=False))}


def find(config: ArchiveFindConfig) -> dict[str, Any]:
    """Cards that fit a query; see `query`. ``exit_code`` is 1 where none does."""
    words = parse(list(config.query)).words  # which may stand anywhere
    found = matching(cards(config.archive, metadata=words), config.query)
    return {"archive": str(config.archive), "cards": found, "exit_code": 0 if found else 1}


def show(config: ArchiveShowConfig) -> dict[str, Any]:
    """One card, what it was made from, and what was made from it."""
    everything = list(cards(config.archive, metadata=False))
    card = one_card(everything, config.id, config.archive)
    return next(cards(config.archive, [card["id"]])) | {
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
