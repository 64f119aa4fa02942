"""The index of an archive: one SQLite file with what all cards say, so that they need not be read one by one.

The cards are the truth; the index only ever repeats them, and is made anew whenever it does not. It is written in
memory, gets its name when it is whole, and is never changed: so it is read without any lock, also on file systems that
have none, and where an archive may only be read.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import sqlite3
from collections.abc import Collection, Iterator
from pathlib import Path

from tdenoise.files.atomic import write_atomically
from tdenoise.files.json_documents import parse_json

from ..errors import InputError
from ..settings.results import is_archive
from .card import CARDS, Card, card_order, check_entries, read_card

INDEX = "index.sqlite"
# What the raw file says of itself is most of a card, and seldom asked for.
TABLE = (
    "CREATE TABLE cards (id TEXT, number INTEGER, card TEXT, metadata TEXT, seal TEXT, PRIMARY KEY (id, number)) "
    "WITHOUT ROWID"
)


class _DamagedError(Exception):
    """The index says something else than was written."""


def cards(archive: Path, ids: Collection[str] | None = None, *, metadata: bool = True) -> Iterator[Card]:
    """The newest card of everything in an archive, in order of their ids.

    Parameters
    ----------
    archive : Path
    ids : collection of str, optional
        Of what is wanted; by default all.
    metadata : bool
        Whether the cards shall hold what the raw files say of themselves, too.

    Raises
    ------
    InputError
        If it is no archive, or a card is damaged.
    """
    check_archive(archive)
    try:
        found = _read(archive, ids, metadata, anew=False)
    except (sqlite3.Error, _DamagedError, InputError, ValueError, TypeError):
        found = _read(archive, ids, metadata, anew=True)
    yield from found


def check_archive(archive: Path) -> None:
    """Refuse what is no archive."""
    if not is_archive(archive):
        raise InputError(archive, "is not an archive. Create one with 'archive add STORE -A FOLDER'")


def _read(archive: Path, ids: Collection[str] | None, metadata: bool, *, anew: bool) -> list[Card]:
    with contextlib.closing(_index(archive, anew)) as index:
        chosen = (
            "SELECT id, max(number), card, metadata, seal FROM cards"  # the other columns are of that number
        )
        if ids is None:
            rows = index.execute(f"{chosen} GROUP BY id ORDER BY id").fetchall()
        else:
            rows = [
                row
                for id in sorted(set(ids))
                for row in index.execute(f"{chosen} WHERE id = ? GROUP BY id", (id,))
            ]
    found = []
    for id, number, text, more, seal in rows:
        if _seal(text, more) != seal:
            raise _DamagedError
        card = check_entries(parse_json(text), archive / CARDS / f"{id}.{number}.json")
        if metadata and more:
            card["source"]["metadata"] = parse_json(more)
        found.append(card)
    return found


def _index(archive: Path, anew: bool) -> sqlite3.Connection:
    """An index that has all cards: the file, or one in memory that was just brought up to date, and written."""
    names = {entry.name for entry in os.scandir(archive / CARDS) if not entry.name.startswith(".")}
    index = None if anew else _open(archive / INDEX)
    known = (
        set()
        if index is None
        else {f"{id}.{n}.json" for id, n in index.execute("SELECT id, number FROM cards")}
    )
    if index is not None and known == names:
        return index
    memory = sqlite3.connect(":memory:")
    if index is None:
        memory.execute(TABLE)
    else:
        index.backup(memory)
        index.close()
    for name in known - names:
        memory.execute("DELETE FROM cards WHERE id = ? AND number = ?", card_order(name))
    files = (archive / CARDS / name for name in sorted(names - known, key=card_order))
    # An empty one belongs to a process that is just writing it, or was killed then.
    fresh = (read_card(file) for file in files if file.lstat().st_size)
    memory.executemany("INSERT INTO cards VALUES (?, ?, ?, ?, ?)", map(_row, fresh))
    memory.commit()
    with contextlib.suppress(OSError):  # an archive that one may only read
        write_atomically(archive / INDEX, memory.serialize())
    return memory


def _open(file: Path) -> sqlite3.Connection | None:
    if file.is_symlink() or not file.is_file():
        return None
    index = sqlite3.connect(f"{file.absolute().as_uri()}?mode=ro&immutable=1", uri=True)
    index.execute("PRAGMA trusted_schema = OFF")
    return index


def _row(card: Card) -> tuple[str, int, str, str | None, str]:
    source = card.get("source") or {}
    more = json.dumps(source["metadata"]) if "metadata" in source else None
    if more is not None:
        card = {**card, "source": {k: v for k, v in source.items() if k != "metadata"}}
    text = json.dumps(card)
    return card["id"], card["number"], text, more, _seal(text, more)


def _seal(text: str, more: str | None) -> str:
    return hashlib.sha256(f"{text}\n{more}".encode()).hexdigest()
