"""Apply as a Slurm job array: every task does a share of the blocks, and no task listens on the network.

The tasks meet in the work folder of the output only (`shared_run`). The command that submitted them looks at the
markers until the output is there; it may be stopped and started again meanwhile, the tasks go on.
"""

from __future__ import annotations

import dataclasses
import logging
import os
import shlex
import time
import uuid
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from tdenoise.files.atomic import write_atomically

from ..errors import PipelineError, Stopped
from ..files import ownership
from ..files.sealed_json import write_sealed
from ..runs import paths, plans
from ..runs.shared_run import SharedRun
from ..settings.denoise_settings import ApplyConfig
from ..settings.fields import flag_of
from ..settings.results import WORDS
from ..slurm.batch_script import BatchJob, pipeline_command, queue, render_script, submit_script
from ..slurm.job_reasons import Pending, newest_log
from ..slurm.site_profile import JobProfile, worker_profile
from ..step_control import Control
from . import preflight

log = logging.getLogger(__name__)

LOOK_S = 2.0  # between two looks at the markers
ASK_S = 30.0  # between two questions to Slurm; its operators ask for no more


def render(words: Sequence[str], count: int, *, name: str, profile: JobProfile, **options: Any) -> str:
    """The batch script of a job array whose tasks share the work of one ``apply`` command.

    Parameters
    ----------
    words : sequence of str
        ``apply`` and its arguments, without ``--workers`` and ``--share``.
    count : int
        Number of tasks; each is requeued by itself where it stopped cleanly.
    name : str
        Of the job, which no other one has; the tasks know each other by it.
    profile : JobProfile
        What each task asks for.
    options
        Of `BatchJob`.

    Returns
    -------
    str
    """
    check = shlex.join(preflight.command())
    job = BatchJob(
        pipeline_command([*words, "--share", f"array@{name}"]),
        name=name,
        profile=dataclasses.replace(profile, setup=(*profile.setup, f"{check} || exit 1")),
        array=count,
        **options,
    )
    return render_script(job)


def apply_array(
    config: ApplyConfig,
    count: int,
    plan: dict[str, Any],
    inputs: Sequence[Path],
    create: Callable[[Path], None],
    control: Control,
) -> None:
    """Submit a job array that makes the output, unless it is queued already, and wait for it.

    Parameters
    ----------
    config : ApplyConfig
    count : int
        Number of tasks.
    plan : dict
        All that decides the bytes.
    inputs : sequence of Path
        What is read: the output must not lie in it.
    create : callable
        Makes the empty output.
    control : Control
        A stop ends the wait, not the array.

    Raises
    ------
    Stopped
        If the wait was ended.
    PipelineError
        If Slurm refuses the array, or all its tasks ended and blocks are left.
    """
    profile = worker_profile(config.profile, config.workers)
    folder = paths.work_folder(config.output).absolute()
    before = ownership.read_own(folder / "array.json")
    known = before.get("plan") == plans.plan_id(plan) and _is_queued(before["name"])
    # Of a batch run: its own name first, so that status, cancel and the costs find the array too.
    name = before["name"] if known else f"{os.environ.get('TDENOISE_RUN', 'tdn')}-{uuid.uuid4().hex[:8]}"
    with SharedRun(
        config.output,
        plan,
        inputs,
        group=name,
        force=config.force,
        afresh=config.force and not known,
        stop=control.stop,
    ) as run:
        run.prepare(create)
        if known:
            log.warning("array job %s is already working on this; waiting for it", before["job"])
            record = before
        else:
            record = _submit(config, min(count, plan["n_blocks"]), name, profile, run)
        _wait(run, record, plan["n_blocks"], control)


def _submit(
    config: ApplyConfig, count: int, name: str, profile: JobProfile, run: SharedRun
) -> dict[str, Any]:
    log_dir = run.folder.absolute() / "logs"
    ownership.make_own_folder(log_dir)  # what lies there runs as this user
    script = log_dir / f"{name}.sh"
    text = render(task_words(config), count, name=name, profile=profile, log_dir=log_dir, work_dir=Path.cwd())
    write_atomically(script, text.encode())
    record = {"plan": run.id, "name": name, "job": None}
    # Before the job is: a submission that was cut short is found by the name.
    write_sealed(run.folder / "array.json", record, mode=0o600)
    record["job"] = submit_script(script)
    write_sealed(run.folder / "array.json", record, mode=0o600)
    log.info("array job %s with %d tasks is queued", record["job"], count)
    return record


def task_words(config: ApplyConfig) -> list[str]:
    """The command line of one task: that of ``config``, with absolute paths, without what submits."""
    words, positional = ["apply"], []
    for field in dataclasses.fields(config):
        value = getattr(config, field.name)
        if field.name in ("workers", "profile", "share", "resume") or value == field.default:
            continue
        text = str(value.absolute()) if isinstance(value, Path) and value not in WORDS else str(value)
        if field.metadata["positional"]:
            positional.append(text)
            continue
        words += [flag_of(field)] if value is True else [flag_of(field), text]
    return [*words, *positional]


def _is_queued(name: str) -> bool:
    try:
        return bool(queue(name))
    except PipelineError:
        return True  # nobody knows; waiting is the safe guess


def _wait(run: SharedRun, record: dict[str, Any], n_blocks: int, control: Control) -> None:
    pending = Pending()
    asked = time.monotonic()
    gone = 0
    while not _finished(run):
        control.progress("apply", min(len(run.done_numbers()), n_blocks - 1), n_blocks)
        if control.stop.is_set():
            raise Stopped(
                f"the array job {record['job']} continues without this command, which only watched it: run the same "
                f"command again to watch, or 'scancel --name {record['name']}' to stop it"
            )
        # Not stop.wait: the signal handler sets stop in this same thread, and could find it locked.
        time.sleep(LOOK_S)
        if time.monotonic() - asked < ASK_S:
            continue
        asked = time.monotonic()
        try:
            states = queue(record["name"])
        except PipelineError:
            continue  # squeue does not answer: that says nothing about the jobs
        pending.tell(states)
        gone = 0 if states else gone + 1
        if gone > 1 and not _finished(run):  # twice: the last task may just be giving the output its name
            left = n_blocks - len(run.done_numbers())
            raise PipelineError(
                f"array job {record['job']} has ended, and {left} of {n_blocks} blocks are not done. Run the same "
                f"command again to submit the rest; {newest_log(run.folder / 'logs', record['name'])}"
            )
    control.progress("apply", n_blocks, n_blocks)


def _finished(run: SharedRun) -> bool:
    """Whether the output is there; an older one may be, while its successor is made."""
    return run.output.exists() and not (run.folder / "created").exists()
