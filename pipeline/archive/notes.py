"""Notes of users on cards: what no file tells, such as the sample and the gas."""

from __future__ import annotations

import re
from collections.abc import Iterable
from typing import Any

from ..errors import UsageError
from ..settings.archive_settings import ArchiveTagConfig
from .archive import CARDS, cards, one_card, sealed_card, write_once
from .query import KEYS

MOST_LETTERS = 1000  # of a note


def check_notes(words: Iterable[str]) -> dict[str, str]:
    """Notes from words such as ``sample=Pt/CeO2``.

    Raises
    ------
    UsageError
        If one has no value, or a name that a card has itself.
    """
    notes: dict[str, str] = {}
    for word in words:
        name, equals, value = word.partition("=")
        name, value = name.strip().lower(), value.strip()
        if not equals or not re.fullmatch("[a-z][a-z0-9_]{0,40}", name):
            raise UsageError(
                f"{word!r} is no note. Write NAME=VALUE, such as sample=Pt/CeO2; a name has letters, digits, _."
            )
        if name in KEYS:
            raise UsageError(
                f"{name!r} is what a card says itself: {KEYS[name].about}. Choose another name for the note."
            )
        if name in notes:
            raise UsageError(f"the note {name!r} is given twice.")
        if len(value) > MOST_LETTERS or not value.isprintable():
            raise UsageError(f"the note {name!r} must be one line of at most {MOST_LETTERS} letters.")
        notes[name] = value
    return notes


def tag(config: ArchiveTagConfig) -> dict[str, Any]:
    """Write notes on a card, as a new card of the same thing; an empty value takes a note away.

    Raises
    ------
    UsageError
        If the id fits no card or several, or a note cannot be understood.
    """
    card = one_card(list(cards(config.archive)), config.id, config.archive)
    noted = card.get("notes", {}) | check_notes(config.note)
    card = card | {
        "notes": {name: value for name, value in noted.items() if value},
        "number": card["number"] + 1,
    }
    write_once(config.archive / CARDS / f"{card['id']}.{card['number']}.json", sealed_card(card))
    return card
