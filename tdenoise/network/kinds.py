"""The kinds of network by name, and where each is defined: a new kind is a module of its own and a line here."""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal, TypeAlias

KINDS = {
    "split-blind": "tdenoise.network.split_blind:KIND",
    "thinned": "tdenoise.network.split_blind:THINNED",  # with the centre frame seen
    "udvd": "tdenoise.network.udvd:KIND",
}

if TYPE_CHECKING:
    KindName: TypeAlias = str
else:
    KindName = Literal[tuple(KINDS)]  # what settings accept
