"""Networks by the name of their kind: what cards and settings ask for; see `kind` for what a kind must offer."""

from __future__ import annotations

from importlib import import_module
from typing import Literal, TypeAlias

from ..noise.noise import NoiseStatistics, Scale
from .card import ModelCard
from .kind import Kind
from .kinds import KINDS
from .split_blind import Architecture as SplitBlindArchitecture
from .split_blind import SplitBlind
from .udvd import Udvd, UdvdArchitecture

Architecture: TypeAlias = SplitBlindArchitecture | UdvdArchitecture
Network: TypeAlias = SplitBlind | Udvd


def kind(name: str) -> Kind:
    """What a kind is made of.

    Raises
    ------
    KeyError
        If there is none of this name.
    """
    module, _, attribute = KINDS[name].partition(":")
    found: Kind = getattr(import_module(module), attribute)
    return found


def kind_of(architecture: Architecture) -> str:
    """Name of the kind that an architecture belongs to."""
    return architecture.kind


def blind_radius(architecture: Architecture) -> int | Literal["seen"] | None:
    """The blind radius as cards tell it: of a network that is not blind, "seen"."""
    return "seen" if kind_of(architecture) == "thinned" else architecture.blind_radius


def architecture_of(card: ModelCard) -> Architecture:
    """The architecture in a model's card.

    Raises
    ------
    KeyError, TypeError, ValueError
        If the card holds none of a known kind.
    """
    made: Architecture = kind(card["kind"]).architecture.from_json(card["architecture"])
    if kind_of(made) != card["kind"]:
        raise ValueError(f"the architecture is not that of {card['kind']}")
    return made


def build(architecture: Architecture) -> Network:
    """A network with random weights."""
    made: Network = kind(kind_of(architecture)).network(architecture)
    return made


def scale_for(architecture: Architecture, statistics: NoiseStatistics) -> Scale:
    """How counts of a movie with these statistics become inputs of a network, and outputs counts.

    Raises
    ------
    ValueError
        If the movie has no noise at all; see `Scale.of`.
    """
    return architecture.scale(Scale.of(statistics))
