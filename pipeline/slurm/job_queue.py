"""What Slurm says about jobs: state, reason, cost; and how to end them."""

from __future__ import annotations

import datetime
import os
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..errors import PipelineError
from .batch_script import NoAnswer, ask, submit_script

LIVE = {
    "PENDING", "CONFIGURING", "RUNNING", "SUSPENDED", "COMPLETING", "REQUEUED", "REQUEUE_HOLD", "REQUEUE_FED",
    "SPECIAL_EXIT", "RESIZING", "SIGNALING", "STAGE_OUT", "STOPPED", "RESV_DEL_HOLD",
}  # fmt: skip
PATIENCE_S = 600.0  # for a controller that does not answer while a job is being submitted
SURE_S = 5.0  # a job that is not listed twice, so far apart, was never queued


@dataclass(frozen=True)
class Queued:
    """A job as Slurm lists it."""

    id: str  # of a task, that of its array
    name: str
    state: str  # such as PENDING
    reason: str  # Slurm's word for why it waits

    @property
    def live(self) -> bool:
        """Whether it runs or will run."""
        return self.state in LIVE


def jobs(run: str) -> list[Queued]:
    """All jobs of a run that Slurm still knows, also those that are over; the tasks of an array one by one.

    Parameters
    ----------
    run : str
        What the names of its jobs begin with.

    Raises
    ------
    NoAnswer
        If Slurm does not answer. That says nothing about the jobs.
    """
    try:
        # Not by id: of a job it has forgotten squeue says the same as of an outage. Not by name: a job that
        # a run has started by itself has a name that only begins like this.
        listing = ask(
            [
                "squeue",
                "--noheader",
                "--array",
                "--states=all",
                f"--user={os.getuid()}",
                "--format=%F|%T|%j|%r",
            ]
        )
    except FileNotFoundError:
        raise NoAnswer("there is no squeue on this machine") from None
    except PipelineError as error:
        raise NoAnswer(str(error)) from None
    rows = [line.split("|", 3) for line in listing.splitlines() if line.count("|") >= 3]
    found = [Queued(number, name, state, reason) for number, state, name, reason in rows]
    return [job for job in found if job.name == run or job.name.startswith(f"{run}-")]


def submit_once(script: Path, name: str, after: list[str], stop: Callable[[float], None] = time.sleep) -> str:
    """Hand in a job, exactly once, even if Slurm does not answer in between.

    An ``sbatch`` that got no answer may have queued its job, or may do so yet: the job is looked for by its
    name, which no other job has, and is handed in again only when it is surely not there.

    Raises
    ------
    NoAnswer
        If Slurm does not answer for `PATIENCE_S`.
    PipelineError
        If Slurm refuses the job.
    """
    deadline = time.monotonic() + PATIENCE_S
    while True:
        try:
            number = submit_script(script, after)
        except NoAnswer as error:
            known = _look_for(name, deadline, str(error), stop)
            if not known:
                continue
            number = known[0]
            for double in known[1:]:
                ask(["scancel", double])
        return number


def _look_for(name: str, deadline: float, why: str, stop: Callable[[float], None]) -> list[str]:
    """Ids of the jobs of a name, the oldest first, once Slurm answers again; empty if there is surely none."""
    absent = 0
    while absent < 2:
        if time.monotonic() > deadline:
            raise NoAnswer(
                f"Slurm has not answered for {PATIENCE_S / 60:g} minutes ({why}). The job {name} may be queued "
                "anyway: when Slurm answers again, 'tdenoise-pipeline resume' finds out and does the rest."
            )
        try:
            found = sorted({job.id for job in jobs(name)}, key=int)
        except NoAnswer as error:
            absent, why = 0, str(error)
            stop(1.0)  # the command itself has waited already
            continue
        if found:
            return found
        absent += 1
        if absent < 2:
            stop(SURE_S)
    return []


def cancel(run: str, timeout_s: float = 60.0) -> list[str]:
    """End all jobs of a run, and wait until Slurm says that they are over.

    Returns
    -------
    list of str
        Ids of the jobs that were cancelled.

    Raises
    ------
    NoAnswer
        If Slurm does not answer.
    PipelineError
        If some are still there after the time.
    """
    cancelled: dict[str, None] = {}
    deadline = time.monotonic() + timeout_s
    while live := [job for job in jobs(run) if job.live]:
        if time.monotonic() > deadline:
            raise PipelineError(
                f"{', '.join(f'{job.id} ({job.state})' for job in live)}: still there {timeout_s:g} s after "
                "scancel. Try again in a moment."
            )
        # Again each time round: a job that was just being queued again comes back after the first.
        wanted = dict.fromkeys(job.id for job in live if job.state != "COMPLETING")
        cancelled |= wanted
        if wanted:
            ask(["scancel", *wanted])
        time.sleep(1.0)
    return list(cancelled)


def accounting(run: str, since: str) -> dict[str, dict[str, Any]]:
    """Last state and cost of the jobs of a run by name, from the accounting database; empty where there is none.

    Parameters
    ----------
    run : str
        What the names of its jobs begin with.
    since : str
        ``YYYY-MM-DD...``, when the first of them was submitted.

    Returns
    -------
    dict
        By job name: ``state``, ``gpu_hours``, ``cpu_hours``.
    """
    # sacct takes it for local time, where it may have been the day before.
    first = (datetime.date.fromisoformat(since[:10]) - datetime.timedelta(days=1)).isoformat()
    command = ["sacct", "-X", "-n", "-P", "--duplicates", "--user", str(os.getuid()), "-S", first]
    try:
        listing = ask([*command, "--format=JobName,State,ElapsedRaw,AllocTRES"], 30.0)
    except (FileNotFoundError, PipelineError):
        return {}
    found: dict[str, dict[str, Any]] = {}
    for line in listing.splitlines():
        name, state, elapsed, resources = [*line.split("|"), "", "", ""][:4]
        if not name.startswith(f"{run}-") or not elapsed.isdecimal():
            continue
        hours = int(elapsed) / 3600
        job = found.setdefault(name, {"gpu_hours": 0.0, "cpu_hours": 0.0})
        job["state"] = state.split(" ")[0]  # CANCELLED by 1000
        job["gpu_hours"] += hours * _amount(resources, "gres/gpu")
        job["cpu_hours"] += hours * _amount(resources, "cpu")
    return found


def _amount(resources: str, kind: str) -> int:
    """How much of a kind is in ``cpu=4,gres/gpu=1``."""
    amounts: Mapping[str, str] = dict(part.split("=", 1) for part in resources.split(",") if "=" in part)
    value = amounts.get(kind, "0")
    return int(value) if value.isdecimal() else 0
