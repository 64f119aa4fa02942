"""Where the things of an archive lie."""

from __future__ import annotations

from pathlib import Path

from tdenoise.network.card import CARD as MODEL_CARD

from ..errors import InputError
from ..files.sealed_json import read_json
from ..store import store
from .card import Card


def place_of(card: Card, archive: Path) -> Path:
    """Where a thing lies, once it is seen to be what its card says.

    Raises
    ------
    InputError
        If it is not there, or is another.
    """
    path = archive / str(card["path"])  # an absolute path stays what it is
    if ".." in Path(card["path"]).parts or path.is_symlink():
        raise InputError(path, "is not a path that an archive may contain")
    if card["kind"] == "model":
        found = read_json(path / MODEL_CARD).get("sha256")
    else:
        found = store.read_attributes(path).get("id")
    if found != card["id"]:
        raise InputError(path, f"is not the {card['kind']} {card['id'][:12]} of the archive")
    return path
