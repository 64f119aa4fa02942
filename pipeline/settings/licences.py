"""Licences by their SPDX names: those that are usual for data and models."""

from __future__ import annotations

LICENCES = (
    "CC0-1.0",
    "CC-BY-4.0",
    "CC-BY-SA-4.0",
    "CC-BY-NC-4.0",
    "CC-BY-NC-SA-4.0",
    "CC-BY-ND-4.0",
    "CC-BY-NC-ND-4.0",
    "ODbL-1.0",
    "ODC-By-1.0",
    "PDDL-1.0",
    "MIT",
    "BSD-2-Clause",
    "BSD-3-Clause",
    "Apache-2.0",
)


def known_licence(words: str) -> str | None:
    """The SPDX name that is meant; None of any other words.

    Examples
    --------
    >>> known_licence("cc-by-4.0")
    'CC-BY-4.0'
    """
    return {name.lower(): name for name in LICENCES}.get(words.strip().lower())
