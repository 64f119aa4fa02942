"""What a setting says about itself: its help, its flag, its place. Light, for ``--help`` needs no more."""

from __future__ import annotations

import dataclasses
from typing import Any

# Headings of the help.
WHAT = "what to read"
CALIBRATION = "calibration of the movie"
CORRECTIONS = "corrections of the detector"
MODEL = "model"
WHERE = "where to compute"
CLUSTER = "cluster"
OUTPUT = "output"
PICTURE = "how it looks"


def setting(
    default: Any = dataclasses.MISSING,
    help: str = "",
    *,
    group: str = "",
    metavar: str | None = None,
    short: str | None = None,
    positional: bool = False,
    flag: str | None = None,
    default_text: str | None = None,
) -> Any:
    """A field with what the command line and the reference say about it.

    Parameters
    ----------
    default : optional
        Without one, the setting must be given.
    help : str
        What it is, as a phrase without a full stop.
    group : str
        Heading under which the help lists it.
    metavar : str, optional
        What stands for its value in the help.
    short : str, optional
        A flag of one letter.
    positional : bool
        Whether it is given without a flag.
    flag : str, optional
        Where it is not ``--NAME``.
    default_text : str, optional
        The default in words, where its value says too little.
    """
    about = {
        "description": help,
        "group": group,
        "metavar": metavar,
        "short": short,
        "positional": positional,
        "flag": flag,
        "default_text": default_text,
    }
    return dataclasses.field(default=default, metadata=about)


def flag_of(field: dataclasses.Field[Any]) -> str:
    """The flag of a setting on the command line."""
    return field.metadata["flag"] or "--" + field.name.replace("_", "-")


def is_required(field: dataclasses.Field[Any]) -> bool:
    """Whether a setting has to be given."""
    return field.default is dataclasses.MISSING


def takes_several(field: dataclasses.Field[Any]) -> bool:
    """Whether a setting is a list of names."""
    return "Paths" in str(field.type) or "Words" in str(field.type)
