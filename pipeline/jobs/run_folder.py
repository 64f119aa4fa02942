"""The folder of a batch run: what was asked for, the scripts, every job that was handed in, and the logs.

``run.json`` says what the run is. ``jobs.jsonl`` only ever grows: a line before a job is handed in, with its name,
and a line after, with its id. What is done is read from the outputs, what is queued from Slurm (or the process that
works through the steps on this machine); the folder holds neither.
"""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import time
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tdenoise.files.atomic import SEAL, fsync, seal

from ..errors import InputError, UsageError
from ..files import ownership
from ..files.sealed_json import unbroken
from ..runs import lease
from ..slurm import job_queue
from . import local_queue

RUN_FILE = "run.json"
_NEEDED = {"submitting": {"time", "name", "kind", "run"}, "submitted": {"name", "id", "submitted"}}


@dataclass(frozen=True)
class JobRecord:
    """A job that was handed in, or was about to be."""

    name: str  # no other job has it
    kind: str  # the step
    run: str
    id: str | None  # None: Slurm gave no answer
    submitted: str  # UTC
    log: Path
    exit_file: Path

    @property
    def logs(self) -> list[Path]:
        """Its log, or those of the tasks of an array."""
        tasks = self.log.parent.glob(f"{self.log.stem}_*.log")
        return sorted(tasks, key=lambda log: int(log.stem.rpartition("_")[2])) or [self.log]

    @property
    def newest_log(self) -> Path:
        """The log that was written to last."""
        return max(self.logs, key=lambda log: log.stat().st_mtime if log.exists() else 0.0)

    @property
    def exit_code(self) -> int | None:
        """The exit code that it left; None while it runs, or if it ended without a word.

        Of an array it is that of its luckiest task: who ends well has seen the output whole.
        """
        codes = []
        for file in (self.exit_file, *self.exit_file.parent.glob(f"{self.name}-*")):
            with contextlib.suppress(OSError, ValueError):
                codes.append(int(file.read_text()))
        return min(codes, default=None)


def folder_of(command: str, output: Path) -> Path:
    """Where the folder of a run lies."""
    output = output.absolute()
    return output / "batch" if command == "run" else output.with_name(f"{output.name}-batch")


def find(path: Path) -> Path | None:
    """The run folder that a user means by it, or by what the run writes; None if there is none."""
    path = path.absolute()
    candidates = (path, path / "batch", path.parent / f"{path.name}-batch")
    return next((folder for folder in candidates if (folder / RUN_FILE).is_file()), None)


def open_run(path: Path, *, obey: bool = False) -> tuple[Path, dict[str, Any]]:
    """The run folder and what the run is.

    Parameters
    ----------
    path : Path
    obey : bool
        What the folder holds is to be done, and not only to be shown.

    Raises
    ------
    InputError
        If there is none, or its record is damaged.
    UsageError
        If it is to be obeyed and may be somebody else's doing.
    """
    folder = find(path)
    if folder is None:
        raise InputError(path, "no batch run was submitted here. Give the folder that 'submit' named.")
    if obey and (why := ownership.stranger(folder)) is not None:
        raise UsageError(f"{folder}: {why}, so it is ignored.")
    file = folder / RUN_FILE
    run = ownership.read_own(file, unbroken) if obey else unbroken(file.read_bytes()) or {}
    if not {"id", "command", "output", "steps", "profile", "work_dir"} <= set(run):
        raise InputError(folder / RUN_FILE, "is damaged. Submit the run again; what is done stays done.")
    return folder, run


def jobs(folder: Path, run: str) -> list[job_queue.Queued]:
    """The jobs of a run that are there, and those that are over but still known.

    Raises
    ------
    NoAnswer
        If that cannot be found out.
    """
    return local_queue.jobs(folder) if local_queue.has(folder, run) else job_queue.jobs(run)


def cancel(folder: Path, run: str) -> list[str]:
    """End all jobs of a run; the ids of those that were there."""
    return local_queue.cancel(folder) if local_queue.has(folder, run) else job_queue.cancel(run)


def append(folder: Path, **event: Any) -> None:
    """Add a line to the record of jobs, durably."""
    line = seal(json.dumps({"time": now(), **event, "seal": SEAL}).encode()) + b"\n"
    with (folder / "jobs.jsonl").open("ab") as file:
        file.write(line)
        file.flush()
        os.fsync(file.fileno())
    fsync(folder)


def records(folder: Path) -> list[JobRecord]:
    """All jobs that were handed in, the oldest first. A line that was cut or damaged counts as not there."""
    found: dict[str, dict[str, Any]] = {}
    with contextlib.suppress(OSError):
        for line in (folder / "jobs.jsonl").read_bytes().split(b"\n"):
            event = unbroken(line) or {}
            if not _NEEDED.get(str(event.get("event")), set()) <= set(event):
                continue
            if not isinstance(event.get("name"), str):
                continue
            if event.get("event") == "submitting":
                found[event["name"]] = {**event, "id": None, "submitted": event["time"]}
            elif event.get("event") == "submitted" and event.get("name") in found:
                found[event["name"]] |= {"id": event["id"], "submitted": event["submitted"]}
            elif event.get("event") == "refused":
                found.pop(str(event.get("name")), None)
    return [
        JobRecord(
            name=job["name"],
            kind=job["kind"],
            run=job["run"],
            id=job["id"],
            submitted=job["submitted"],
            log=_log(folder, job["name"], job["id"]),
            exit_file=folder / "exit" / job["name"],
        )
        for job in found.values()
    ]


def latest(folder: Path, run: str) -> dict[str, JobRecord]:
    """The last job of every step of a run."""
    return {job.kind: job for job in records(folder) if job.run == run}


@contextmanager
def locked(folder: Path) -> Iterator[None]:
    """Keep a second submit of the same run out while this one hands in jobs.

    Raises
    ------
    LockedError
        If another one is at it.
    UsageError, ResourceError
        If the folder cannot be written to.
    """
    folder.parent.mkdir(parents=True, exist_ok=True)
    folder.mkdir(mode=0o755, exist_ok=True)  # whatever the umask: scripts lie here that run as this user
    if (why := ownership.stranger(folder)) is not None:
        raise UsageError(
            f"{folder}: {why}, so no jobs are submitted from there. Remove it or choose another output."
        )
    token = uuid.uuid4().hex
    lease.take(
        folder,
        token,
        lambda fresh: lease.write_owner(fresh, token),
        lambda holder: f"{folder}: another submit is running here ({holder}).",
    )
    try:
        yield
    finally:
        lease.release(folder, token)
        for left in folder.glob("dead-*"):  # of submits that were killed
            shutil.rmtree(left, ignore_errors=True)


def now() -> str:
    """The time, UTC."""
    return time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())


def _log(folder: Path, name: str, number: str | None) -> Path:
    if number is not None:
        return folder / "logs" / f"{name}-{number}.log"
    return next(iter(sorted((folder / "logs").glob(f"{name}-*.log"))), folder / "logs" / f"{name}.log")
