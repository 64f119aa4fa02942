"""What was chosen by itself for an output: a run that goes on, or shares the work, chooses the same."""

from __future__ import annotations

import contextlib
from pathlib import Path
from typing import Any

from tdenoise.files.atomic import make_shared_folder, write_new

from ..files import ownership
from ..files.sealed_json import sealed, write_sealed
from .paths import work_folder

CHOICE = "choice.json"  # in the work folder of an output


def recall(output: Path) -> dict[str, Any]:
    """What was chosen; empty where nothing was.

    Raises
    ------
    UsageError
        If the record may be somebody else's doing.
    """
    return ownership.read_own(work_folder(output) / CHOICE)


def told(output: Path) -> dict[str, Any]:
    """What an output says of it: ``chosen``, or nothing."""
    found = recall(output)
    return {"chosen": found} if found else {}


def remember(output: Path, choice: dict[str, Any], *, force: bool) -> dict[str, Any]:
    """Record a choice; of several processes that choose at once, all get that of the first, unless forced."""
    folder = work_folder(output)
    make_shared_folder(folder)
    if force:
        write_sealed(folder / CHOICE, choice, mode=0o600)
        return choice
    return choice if write_new(folder / CHOICE, sealed(choice), 0o600) else recall(output)


def forget(output: Path) -> None:
    """Take a choice away where no run has begun with it."""
    folder = work_folder(output)
    if not (folder / "plan.json").exists():
        (folder / CHOICE).unlink(missing_ok=True)
        for place in (folder, folder.parent):  # only if empty
            with contextlib.suppress(OSError):
                place.rmdir()
