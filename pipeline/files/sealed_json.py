"""Small files that say of themselves whether they are whole: JSON with a seal, its own sha256."""

from __future__ import annotations

import json
import logging
from collections.abc import Callable
from pathlib import Path
from typing import Any

from tdenoise.files.atomic import SEAL, is_sealed, patiently, seal, write_atomically
from tdenoise.files.json_documents import parse_json

log = logging.getLogger(__name__)


def sealed(document: dict[str, Any]) -> bytes:
    """A JSON object with its seal."""
    return seal(json.dumps({**document, "seal": SEAL}, indent=1).encode())


def write_sealed(
    file: Path,
    document: dict[str, Any],
    before: Callable[[], None] | None = None,
    mode: int = 0o666,
) -> None:
    """Write a JSON object with its seal, whole and durably; ``before`` and ``mode`` as of `write_atomically`."""
    write_atomically(file, sealed(document), before, mode)


def read_sealed(file: Path) -> dict[str, Any] | None:
    """The object in a sealed file; None where there is none that can be trusted.

    A file that is there but is not whole, or has no seal because an earlier version wrote it, counts as not there. That
    is logged, for something will be done again because of it.
    """
    try:
        data = patiently(file.read_bytes)
    except (FileNotFoundError, NotADirectoryError):
        return None
    except OSError as error:
        log.warning("%s: cannot be read (%s), so it is ignored", file, error.strerror)
        return None
    document = unsealed(data)
    if document is None:
        log.warning("%s: is damaged, or an earlier version wrote it, so it is ignored", file)
    return document


def unsealed(data: bytes) -> dict[str, Any] | None:
    """The object in the bytes of a sealed file, without its seal; None if they are not whole."""
    if not is_sealed(data):
        return None
    document = parse_json(data)
    if not isinstance(document, dict):
        return None
    return {key: value for key, value in document.items() if key != "seal"}


def unbroken(data: bytes) -> dict[str, Any] | None:
    """The object in the bytes of a file that may be from an earlier version, which did not seal it; None if damaged."""
    try:
        document = unsealed(data) if b'"seal"' in data else parse_json(data)
    except (ValueError, RecursionError):
        return None
    return document if isinstance(document, dict) else None


def read_unbroken(file: Path) -> dict[str, Any]:
    """The object in a file that is sealed, or that an earlier version wrote; empty where it is missing or damaged.

    Damage is logged.
    """
    try:
        data = patiently(file.read_bytes)
    except OSError:
        return {}
    document = unbroken(data)
    if document is None:
        log.warning("%s: is damaged, so it is ignored", file)
    return document or {}


def read_json(file: Path) -> dict[str, Any]:
    """The object in a JSON file; empty where the file is missing or damaged."""
    try:
        value = parse_json(file.read_bytes())
    except (OSError, ValueError):
        return {}
    return value if isinstance(value, dict) else {}
