"""Resume: continue what was interrupted, from what is recorded beside the output."""

from __future__ import annotations

import logging
import os
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from ..apply.apply import apply
from ..errors import InputError, UsageError
from ..files import ownership
from ..ingest.ingest import ingest
from ..jobs.status import status
from ..runs import paths
from ..settings import recorded_settings
from ..settings.denoise_settings import RunConfig
from ..settings.job_settings import StatusConfig
from ..settings.recorded_settings import COMMAND, RUN
from ..settings.workers import Workers
from ..step_control import Control
from .learn import train
from .run import run

log = logging.getLogger(__name__)


def resume(
    path: Path,
    control: Control | None = None,
    *,
    force: bool = False,
    workers: Workers | None = None,
    insecure: bool = False,
) -> dict[str, Any]:
    """Continue the step that makes an output, or all that is unfinished in a folder.

    What was recorded is obeyed only if it is this user's own. Even then it is no reason to write anywhere else than
    to ``path``, to replace anything, or to talk to a Dask scheduler: that has to be said again.

    Parameters
    ----------
    path : Path
        As it was given with ``-o``.
    control : Control, optional
    force : bool
        Replace what is there, where the interrupted command was to.
    workers : Workers, optional
        Instead of the recorded ones; needed where these are behind a running scheduler.
    insecure : bool
        Of ``workers``, see `Workers.check_secure`.

    Returns
    -------
    dict
        ``resumed``: the outputs that are complete now and were not; empty if nothing was unfinished.

    Raises
    ------
    InputError
        If nothing was begun here, or its record is damaged.
    UsageError
        If a record may be somebody else's doing, or asks for what has to be said again.
    PipelineError
        Of the steps.
    """
    control = control or Control()
    now = _Now(force, workers, insecure)
    path = path.resolve()  # "." has no name
    run = path / ".tdenoise" / RUN
    if os.path.lexists(run):
        _call(run, path, now, control)
        return {"resumed": [str(path)]}
    begun = _begun(path)
    for output in begun:
        _call(_file(output), output, now, control)
    if not begun:
        status(StatusConfig(output=path))  # raises where nothing was begun or finished
    return {"resumed": [str(output) for output in begun]}


@dataclass(frozen=True)
class _Now:
    """What is said with the command itself, and is never taken from a record."""

    force: bool
    workers: Workers | None
    insecure: bool


def _begun(path: Path) -> list[Path]:
    """An output and what lies in it as a folder, as far as it was begun, in the order of the steps."""
    inner = sorted(f.parent.name for f in (path / ".tdenoise").glob(f"*/{COMMAND}"))
    # os.path.exists: the work folder of another user is closed, which pathlib takes for an error.
    begun = [p for p in (path, *(path / name for name in inner)) if os.path.lexists(_file(p))]
    if len(begun) > 1:
        strange = {p: why for p in begun if (why := ownership.stranger(_file(p))) is not None}
        for output, why in strange.items():
            log.warning("%s: its record %s, so it is skipped", output, why)
        begun = [p for p in begun if p not in strange] or begun
    order = list(recorded_settings.STEPS)
    return sorted(begun, key=lambda p: order.index(step) if (step := _step(p)) in order else 0)


def _file(output: Path) -> Path:
    return paths.work_folder(output) / COMMAND


def _step(output: Path) -> str:
    return str(ownership.read_own(_file(output)).get("step"))


def _call(file: Path, output: Path, now: _Now, control: Control) -> None:
    """Run a step with the settings in a file."""
    try:
        config = _settings(ownership.read_own(file), output, now)
    except ValueError as error:
        raise InputError(
            file, f"does not say how to continue ({error}). Run the same command again instead."
        ) from None
    if isinstance(config, RunConfig):
        run(config, control)
    elif type(config) is recorded_settings.STEPS["ingest"]:
        ingest(config, control)
    elif type(config) is recorded_settings.STEPS["train"]:
        train(config, control)
    else:
        apply(config, control)


def _settings(document: dict[str, Any], output: Path, now: _Now) -> Any:
    """The recorded settings, as far as they are obeyed.

    Raises
    ------
    ValueError
        If they are not those of any step.
    UsageError
        If they ask for what has to be said again.
    """
    config = recorded_settings.recall(document, output=output, force=now.force)
    there = isinstance(config, RunConfig) or os.path.lexists(output)
    if document["settings"].get("force") and there and not now.force:
        raise UsageError(
            f"{output}: the interrupted command was to replace what is there. Confirm it: resume --force."
        )
    if hasattr(config, "workers"):
        if config.workers.kind == "address" and now.workers is None:
            raise UsageError(
                f"{output}: was begun on the scheduler {config.workers}. Name the one to use now: resume --workers "
                "tls://HOST:PORT, or local:N."
            )
        config = replace(config, workers=now.workers or config.workers, insecure=now.insecure)
    return config
