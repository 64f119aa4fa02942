"""Resume: continue what was interrupted, from what is recorded beside the output."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from . import progress, recorded
from .config import RunConfig, StatusConfig
from .control import Control
from .errors import InputError
from .recorded import COMMAND, RUN
from .sealed import read_sealed
from .status import status


def resume(path: Path, control: Control | None = None) -> dict[str, Any]:
    """Continue the step that makes an output, or all that is unfinished in a folder.

    Parameters
    ----------
    path : Path
        As it was given with ``-o``.
    control : Control, optional

    Returns
    -------
    dict
        ``resumed``: the outputs that are complete now and were not; empty if nothing was unfinished.

    Raises
    ------
    InputError
        If nothing was begun here, or its record is damaged.
    PipelineError
        Of the steps.
    """
    control = control or Control()
    path = path.resolve()  # "." has no name
    run = path / ".tdenoise" / RUN
    if run.exists():
        _call(run, control)
        return {"resumed": [str(path)]}
    inner = sorted(f.parent.name for f in (path / ".tdenoise").glob(f"*/{COMMAND}"))
    begun = [p for p in (path, *(path / name for name in inner)) if _file(p).exists()]
    order = list(recorded.STEPS)
    begun.sort(key=lambda p: order.index(step) if (step := _step(p)) in order else 0)
    for output in begun:
        _call(_file(output), control)
    if not begun:
        status(StatusConfig(output=path))  # raises where nothing was begun or finished
    return {"resumed": [str(output) for output in begun]}


def _file(output: Path) -> Path:
    return progress.work_folder(output) / COMMAND


def _step(output: Path) -> str:
    return str((read_sealed(_file(output)) or {}).get("step"))


def _call(file: Path, control: Control) -> None:
    """Run a step with the settings in a file."""
    try:
        config = recorded.recall(read_sealed(file) or {})
    except ValueError as error:
        raise InputError(
            file, f"does not say how to go on ({error}). Run the same command again instead."
        ) from None
    # Each step loads what takes seconds.
    if isinstance(config, RunConfig):
        from .run import run

        run(config, control)
    elif type(config) is recorded.STEPS["ingest"]:
        from .ingest import ingest

        ingest(config, control)
    elif type(config) is recorded.STEPS["train"]:
        from .train import train_model

        train_model(config, control)
    else:
        from .apply import apply

        apply(config, control)
