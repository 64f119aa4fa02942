"""Where an output lies while it is built, and what belongs to it."""

from __future__ import annotations

from pathlib import Path


def partial_path(output: Path) -> Path:
    """Where an output lies while it is built."""
    return output.with_name(output.name + "-partial")


def work_folder(output: Path) -> Path:
    """Where the progress of an output is kept while it is built."""
    return output.parent / ".tdenoise" / output.name
