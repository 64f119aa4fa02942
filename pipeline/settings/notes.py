"""Notes of users: what no file tells, such as the sample and the gas; from words, or from a file beside a raw movie."""

from __future__ import annotations

import errno
import re
from collections.abc import Iterable, Mapping
from pathlib import Path

from ..errors import InputError, UsageError
from .yaml_file import read_yaml

MOST_LETTERS = 1000  # of a note
ENDING = ".notes.yaml"  # of the file beside a raw movie
RECORDED = "recorded"  # a note that stands for what many raw files do not tell


def parse_notes(words: Iterable[str]) -> dict[str, str]:
    """Notes from words such as ``sample=Pt/CeO2``.

    Raises
    ------
    UsageError
        If one cannot be understood, or is given twice.
    """
    notes: dict[str, str] = {}
    for word in words:
        name, equals, value = word.partition("=")
        name, value = name.strip().lower(), value.strip()
        if not equals or not re.fullmatch("[a-z][a-z0-9_]{0,40}", name):
            raise UsageError(
                f"{word!r} is no note. Write NAME=VALUE, such as sample=Pt/CeO2; a name has letters, digits, _."
            )
        if name in notes:
            raise UsageError(f"the note {name!r} is given twice.")
        if len(value) > MOST_LETTERS or not value.isprintable():
            raise UsageError(f"the note {name!r} must be one line of at most {MOST_LETTERS} letters.")
        if (
            name == RECORDED
            and value
            and not re.fullmatch(r"\d{4}(-\d\d){0,2}([Tt ]\d\d(:\d\d){0,2})?", value)
        ):
            raise UsageError(
                f"the note 'recorded' cannot be {value!r}: write 2026-11-30, or 2026-11-30T18:00."
            )
        notes[name] = value
    return notes


def notes_beside(raw: Path) -> dict[str, str]:
    """The notes in ``movie.notes.yaml`` beside ``movie.tif`` or a folder ``movie``; none where there is no such file.

    Raises
    ------
    InputError
        If the file holds something else than notes.
    """
    file = raw.with_name((raw.name if raw.is_dir() else raw.stem) + ENDING) if raw.name else None
    try:
        if file is None or not file.is_file():
            return {}
    except OSError as error:
        if error.errno != errno.ENAMETOOLONG:
            raise
        return {}  # no file can have that name
    values: Mapping[str, object] = read_yaml(file)
    wrong = [name for name, value in values.items() if not isinstance(value, str | None)]
    if wrong:
        raise InputError(file, f"the note {wrong[0]!r} must be one line of text")
    try:
        notes = parse_notes(f"{name}={value or ''}" for name, value in values.items())
    except UsageError as error:
        raise InputError(file, str(error).rstrip(".")) from None
    return {name: value for name, value in notes.items() if value}
