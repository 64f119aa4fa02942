"""The kinds of network that a model can hold."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, TypeAlias

from ..noise.noise import NoiseStatistics, Scale
from .split_blind import Architecture as SplitBlindArchitecture
from .split_blind import SplitBlind
from .udvd import Udvd, UdvdArchitecture

# Of a split-blind network, in units of the noise. Not of the contrast: one network is to serve many doses, and
# whether a column has changed depends on how far its counts stand out of the noise.
OUTPUT_UNIT = 0.3

Architecture: TypeAlias = SplitBlindArchitecture | UdvdArchitecture
Network: TypeAlias = SplitBlind | Udvd


@dataclass(frozen=True)
class Kind:
    """What is fixed by the name of a kind; the name stands in the model's card."""

    architecture: type[Any]
    network: type[Any]


KINDS = {
    "split-blind": Kind(SplitBlindArchitecture, SplitBlind),
    "thinned": Kind(SplitBlindArchitecture, SplitBlind),  # with the centre frame seen
    "udvd": Kind(UdvdArchitecture, Udvd),
}


def kind_of(architecture: Architecture) -> str:
    """Name of the kind that an architecture belongs to."""
    if isinstance(architecture, UdvdArchitecture):
        return "udvd"
    return "thinned" if architecture.centre == "seen" else "split-blind"


def blind_radius(architecture: Architecture) -> int | str | None:
    """The blind radius as cards tell it: of a network that is not blind, "seen"."""
    return "seen" if kind_of(architecture) == "thinned" else architecture.blind_radius


def architecture_of(card: dict[str, Any]) -> Architecture:
    """The architecture in a model's card.

    Raises
    ------
    KeyError, TypeError, ValueError
        If the card holds none of a known kind.
    """
    made: Architecture = KINDS[card["kind"]].architecture.from_json(card["architecture"])
    if kind_of(made) != card["kind"]:
        raise ValueError(f"the architecture is not that of {card['kind']}")
    return made


def build(architecture: Architecture) -> Network:
    """A network with random weights."""
    made: Network = KINDS[kind_of(architecture)].network(architecture)
    return made


def scale_for(architecture: Architecture, statistics: NoiseStatistics) -> Scale:
    """How counts of a movie with these statistics become inputs of a network, and outputs counts.

    Raises
    ------
    ValueError
        If the movie has no noise at all; see `Scale.of`.
    """
    scale = Scale.of(statistics)
    if isinstance(architecture, UdvdArchitecture):
        # Its output is never negative, so the counts keep their zero. What they are divided by plays no part: the
        # weights of the users' script, which takes counts as they are, give the same prediction in counts.
        return Scale(mean=0.0, noise=scale.noise, contrast=scale.noise)
    return Scale(scale.mean, scale.noise, OUTPUT_UNIT * scale.noise)
