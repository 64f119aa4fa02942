"""Notes of users on cards: what no file tells, such as the sample and the gas."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from ..errors import UsageError
from ..settings.archive_settings import ArchiveTagConfig
from ..settings.notes import RECORDED, parse_notes
from .archive import one_card
from .card import write_card
from .index import cards
from .query import KEYS


def check_notes(words: Iterable[str]) -> dict[str, str]:
    """Notes from words such as ``sample=Pt/CeO2``.

    Raises
    ------
    UsageError
        If one has no value, or a name that a card has itself.
    """
    notes = parse_notes(words)
    for name in notes:
        if name in KEYS and name != RECORDED:
            raise UsageError(
                f"{name!r} is what a card says itself: {KEYS[name].about}. Choose another name for the note."
            )
    return notes


def tag(config: ArchiveTagConfig) -> dict[str, Any]:
    """Write notes on a card, as a new card of the same thing; an empty value takes a note away.

    Raises
    ------
    UsageError
        If the id fits no card or several, or a note cannot be understood.
    """
    known = one_card(list(cards(config.archive, metadata=False)), config.id, config.archive)
    (card,) = cards(config.archive, [known["id"]])
    noted = card.get("notes", {}) | check_notes(config.note)
    card = card | {
        "notes": {name: value for name, value in noted.items() if value},
        "number": card["number"] + 1,
    }
    write_card(config.archive, card)
    return card
