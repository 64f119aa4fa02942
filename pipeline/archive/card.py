"""A card of an archive: a JSON file that is written once, says what a thing is, and carries a hash of itself.

Anybody may have written it. So the types of all entries that anything reads are checked where a card is read, and
nowhere else.
"""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BaseModel, Field, ValidationError

from tdenoise.files.atomic import write_new

from ..errors import InputError, PipelineError
from ..files.sealed_json import read_json

PROFILE = 1
CARDS = "cards"  # folder of the cards

Card = dict[str, Any]

Finite = Annotated[float, Field(allow_inf_nan=False)]
Number = Finite | None
Positive = Annotated[float, Field(gt=0, allow_inf_nan=False)]
Text = str | None
Natural = Annotated[int, Field(ge=0, le=2**62)]
Extent = Annotated[int, Field(ge=1, le=2**40)]
Id = Annotated[str, Field(pattern="^[0-9a-f]{32,64}$")]


class Entries(BaseModel, strict=True, extra="allow"):
    """The entries of a card that something reads; others are only looked through for words."""

    id: Id
    number: Natural
    kind: Literal["movie", "denoised", "model"]
    name: str
    path: str
    added: str
    parents: list[str]
    sha256: str
    notes: dict[str, str] = {}
    # Of a movie or a denoised movie
    shape: Annotated[list[Extent], Field(min_length=3, max_length=3)] | None = None
    shard: Annotated[list[Extent], Field(min_length=3, max_length=3)] | None = None
    dtype: Annotated[str, Field(pattern="^(u?int(8|16|32|64)|float(16|32|64))$")] | None = None
    units: Text = None
    pixel_size_nm: Annotated[list[Positive], Field(min_length=2, max_length=2)] | None = None
    frame_time_s: Positive | None = None
    bytes: Natural | None = None
    picture: Text = None  # sha256 of the file of its picture
    # Of a movie
    source: dict[str, Any] | None = None
    recorded: Text = None
    mean: Number = None
    dose: Number = None
    dose_per_area: Number = None
    gain: Number = None
    fano: Number = None
    correlation: Number = None
    correlations: list[list[Finite]] | None = None
    flicker: Number = None
    drift: Number = None
    drift_units: Text = None
    voltage_kv: Number = None
    camera: Text = None
    exposure_s: Number = None
    spectrum: list[Finite | None] | None = None
    lattice_nm: list[Positive] | None = None
    # Of a denoised movie
    signal_shown: Number = None
    signal_shown_interval: list[Finite] | None = None
    error: Number = None
    error_interval: list[Finite] | None = None
    smallest_event: Number = None
    refuted_places: Number = None
    report: Text = None
    # Of a model
    model_kind: Text = None
    version: Natural | None = None
    steps: Number = None
    held_out_error: Number = None
    learned_from: list[str] | None = None


def check_entries(card: Any, file: Path) -> Card:
    """A card whose entries are of the types that they should be.

    Raises
    ------
    InputError
        If one is not: tdenoise has not written it.
    """
    try:
        Entries.model_validate(card)
    except ValidationError as error:
        place = " ".join(map(str, error.errors(include_url=False, include_input=False)[0]["loc"]))
        raise InputError(
            file, f"is no card of tdenoise: its entry {place[:60]!r} is not what it should be. Move it away"
        ) from None
    if card["kind"] == "movie" and not {"shape", "shard", "dtype"} <= card.keys():
        raise InputError(file, "is no card of tdenoise: it does not say how large its movie is. Move it away")
    found: Card = card
    return found


def read_card(file: Path) -> Card:
    """One card, checked to be as it was written.

    Raises
    ------
    InputError
        If it is damaged or changed, or tdenoise has not written it.
    """
    card = read_json(file) if not file.is_symlink() else {}
    if card.get("sha256") != hash_of(card) or file.name != file_name(card):
        raise InputError(
            file, "was changed since it was written. Add its store again from a copy of the archive"
        )
    return check_entries(card, file)


def file_name(card: Card) -> str:
    """Of the file of a card."""
    return f"{card.get('id')}.{card.get('number')}.json"


def card_order(name: str) -> tuple[str, int]:
    """By which the files of cards are sorted: the newest of each thing last."""
    stem, _, number = name.removesuffix(".json").partition(".")
    return stem, int(number) if number.isdigit() and len(number) < 19 else -1


def hash_of(card: Card) -> str:
    """What a card says of itself."""
    rest = {key: value for key, value in card.items() if key != "sha256"}
    return hashlib.sha256(json.dumps(rest, sort_keys=True).encode()).hexdigest()


def sealed_card(card: Card) -> bytes:
    """The file of a card."""
    card = json.loads(json.dumps(card))
    return (json.dumps(card | {"sha256": hash_of(card)}, indent=1, sort_keys=True) + "\n").encode()


def write_card(archive: Path, card: Card) -> None:
    """Write a card that was not there; never over another.

    Raises
    ------
    PipelineError
        If another process has just written one of the same number.
    """
    file = archive / CARDS / file_name(card)
    if not write_new(file, sealed_card(card)):
        raise PipelineError(f"{file}: another run has just added it. Run the command again.")
