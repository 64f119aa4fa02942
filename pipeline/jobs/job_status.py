"""How a batch run stands: from its folder, its outputs, and what Slurm says. And its logs; and its end."""

from __future__ import annotations

import re
import signal
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from ..files.sealed_json import read_json
from ..runs import paths
from ..settings.job_settings import CancelConfig, LogsConfig
from ..settings.results import STUDY
from ..slurm import job_queue, job_reasons
from ..slurm.batch_script import NoAnswer
from ..step_control import Control
from . import run_folder

ENDS = {
    "TIMEOUT": "it reached its time limit before it could stop cleanly: raise stop_early_s in the profile, then resume",
    "OUT_OF_MEMORY": "it needed more memory than it requested: raise memory_gib in the profile, then resume",
    "NODE_FAIL": "its node failed: resume",
    "PREEMPTED": "a job of higher priority took its place: resume",
    "DEADLINE": "its deadline passed",
    "BOOT_FAIL": "its node did not start: resume",
}
ASK_S = 30.0  # between two questions to Slurm
TAIL = 20  # lines of a log


def describe(path: Path) -> dict[str, Any]:
    """State of a batch run.

    Parameters
    ----------
    path : Path
        Its folder, or what it writes.

    Returns
    -------
    dict
        ``run``, ``folder``, ``output``, ``state``, ``jobs`` (of every step ``kind``, ``id``, ``state``, ``why``,
        ``log``, ``percent``, ``left``), ``blocks`` (``done``, ``total``, ``per_hour``, ``left_s``), ``gpu_hours`` and
        ``cpu_hours``, None where they are not known.
    """
    folder, run = run_folder.open_run(path)
    latest = run_folder.latest(folder, run["id"])
    everything: list[job_queue.Queued] = []
    known: dict[str, job_queue.Queued] = {}
    queue: dict[str, job_queue.Queued] | None = None
    unanswered = None
    try:
        # One of each name: the tasks of an array bear the same, and so does one that was handed in twice.
        everything = run_folder.jobs(folder, run["id"])
        known = {job.name: job for job in sorted(everything, key=_liveliness)}
        queue = known
    except NoAnswer as error:
        unanswered = str(error)
    accounts = job_queue.accounting(run["id"], run["submitted"])
    jobs: list[dict[str, Any]] = []
    for step in run["steps"]:
        job = latest.get(step["kind"])
        before = jobs[-1]["state"] if jobs else "done"
        whole = run["command"] != "study" or (Path(run["output"]) / STUDY).exists()
        state, why = _state(job, queue, accounts, before, unanswered, whole)
        jobs.append({"kind": step["kind"], "id": None, "log": None, "state": state, "why": why, **_idle()})
        if job is not None:
            found = known.get(job.name)
            jobs[-1] |= {"id": job.id or (found.id if found else None), "log": str(job.newest_log)}
            if state == "running":
                jobs[-1] |= _last_progress(job.newest_log)
    return {
        "run": run["id"],
        "command": run["command"],
        "folder": str(folder),
        "output": run["output"],
        "state": _overall([job["state"] for job in jobs]),
        "jobs": jobs,
        "workers": _workers(run, latest, everything),
        "blocks": _blocks(run),
        **{
            cost: round(sum(job[cost] for job in accounts.values()), 3) if accounts else None
            for cost in ("gpu_hours", "cpu_hours")
        },
    }


def _workers(
    run: dict[str, Any], latest: dict[str, run_folder.JobRecord], everything: list[job_queue.Queued]
) -> dict[str, int]:
    """How many jobs compute blocks for a step, or wait to."""
    alone = {
        latest[step["kind"]].name for step in run["steps"] if not step.get("array") and step["kind"] in latest
    }
    workers = [job for job in everything if job.name not in alone and job.live]
    return {
        "running": sum(job.state == "RUNNING" for job in workers),
        "pending": sum(job.state == "PENDING" for job in workers),
    }


def cancel(config: CancelConfig) -> dict[str, Any]:
    """End all jobs of a run. Doing it twice is the same as doing it once.

    Returns
    -------
    dict
        ``run`` and the ids of the jobs that were ``cancelled``.
    """
    folder, run = run_folder.open_run(config.output, obey=True)
    cancelled = run_folder.cancel(folder, run["id"])
    if cancelled:
        run_folder.append(folder, event="cancelled", ids=cancelled)
    return {"run": run["id"], "cancelled": cancelled}


def logs(config: LogsConfig, control: Control) -> Iterator[str]:
    """Lines of the logs of a run's jobs, the oldest job first.

    Yields
    ------
    str
    """
    folder, run = run_folder.open_run(config.output)
    if config.follow:
        yield from _follow(folder, run["id"], control)
        return
    failed = (
        {job["kind"] for job in describe(folder)["jobs"] if job["state"] == "failed"}
        if config.failed
        else None
    )
    for job in run_folder.latest(folder, run["id"]).values():
        if failed is not None and job.kind not in failed:
            continue
        for log in filter(Path.exists, job.logs):
            lines = _lines(log)
            cut = 0 if config.failed else max(0, len(lines) - TAIL)
            yield f"==> {log} <==" + (f" (the last {TAIL} of {len(lines)} lines)" if cut else "")
            yield from lines[cut:]


def last_error(log: Path) -> str | None:
    """What a log says last, our own words before others."""
    lines = [line for line in _lines(log) if line.strip()]
    ours = [line for line in lines if line.startswith("tdenoise-pipeline: ")]
    found = ours or lines
    return found[-1] if found else None


def _state(
    job: run_folder.JobRecord | None,
    queue: dict[str, job_queue.Queued] | None,
    accounts: dict[str, dict[str, Any]],
    before: str,
    unanswered: str | None,
    whole: bool = True,
) -> tuple[str, str | None]:
    """State of a step in one word, and why, in many. A task may end well before all of it is ``whole``."""
    if job is None:
        return "missing", "it was never submitted: resume"
    listed = (queue or {}).get(job.name)
    if listed is not None and listed.live:
        if listed.state == "PENDING":
            return "pending", job_reasons.in_words(listed.reason)
        if listed.state in ("REQUEUED", "REQUEUE_HOLD", "SPECIAL_EXIT"):
            return "pending", f"queued again ({listed.state.lower()})"
        return "running", None
    code = job.exit_code
    if code == 0 and whole:
        return "done", None
    if queue is None and code in (None, 0):
        return "unknown", f"no answer ({unanswered}): it may be running"
    if code == 0:
        return "failed", "not all of its tasks finished: see its logs, then resume"
    ended = listed.state if listed else accounts.get(job.name, {}).get("state")
    if ended == "CANCELLED":
        if before not in ("done", "running", "pending"):
            return "cancelled", "the step before it did not finish: resume"
        return "cancelled", "it was cancelled: resume"
    if ended in ENDS:
        return "failed", ENDS[ended]
    if code == 128 + signal.SIGTERM:  # before it had begun to listen
        return "cancelled", "it was cancelled: resume"
    if code == 75:
        return "stopped", "it stopped cleanly, but is not queued again: resume"
    if code is None and before not in ("done", "running", "pending"):
        return "cancelled", "the step before it did not finish: resume"
    return "failed", last_error(job.newest_log) or "it ended without a message: resume"


def _liveliness(job: job_queue.Queued) -> int:
    """What of several jobs of one name speaks for them: one that runs, else one that will."""
    return 2 if job.state == "RUNNING" else int(job.live)


def _overall(states: list[str]) -> str:
    """One word for a chain."""
    for word in ("running", "unknown", "failed", "pending"):
        if word in states:
            return word
    return "done" if set(states) == {"done"} else "interrupted"


def _idle() -> dict[str, Any]:
    return {"percent": None, "left": None}


def _last_progress(log: Path) -> dict[str, Any]:
    """What the last line of progress in a log says."""
    for line in reversed(_lines(log)):
        if match := re.fullmatch(r"[\d:]{8} \w+ ([\d.]+) %(?:, (\S+) left)?(?:; .*)?", line):
            return {"percent": float(match[1]), "left": match[2]}
    return _idle()


def _blocks(run: dict[str, Any]) -> dict[str, Any] | None:
    """Blocks of the denoised store that is being made, and how fast they come."""
    output = Path(run["output"])
    output = output / "denoised.zarr" if run["command"] == "run" else output
    folder = paths.work_folder(output)
    plan = read_json(folder / "plan.json").get("plan")
    if not isinstance(plan, dict) or not isinstance(plan.get("n_blocks"), int):
        return None
    times = sorted(marker.stat().st_mtime for marker in (folder / "done").glob("*.json"))
    recent = times[-50:]
    span = recent[-1] - recent[0] if len(recent) > 1 else 0.0
    per_hour = 3600 * (len(recent) - 1) / span if span > 0 else None
    left_s = None if per_hour is None else round(3600 * (plan["n_blocks"] - len(times)) / per_hour)
    return {
        "done": len(times),
        "total": plan["n_blocks"],
        "per_hour": None if per_hour is None else round(per_hour, 1),
        "left_s": left_s,
    }


def _lines(log: Path) -> list[str]:
    try:
        return log.read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        return []


def _follow(folder: Path, run: str, control: Control) -> Iterator[str]:
    """New lines of all logs, until no job of the run is left."""
    read: dict[Path, int] = {}
    shown: Path | None = None
    asked = 0.0
    over = False
    while True:
        for log in (log for job in run_folder.latest(folder, run).values() for log in job.logs):
            lines = _lines(log)
            if len(lines) > read.get(log, 0):
                if log != shown:
                    shown = log
                    yield f"==> {log} <=="
                yield from lines[read.get(log, 0) :]
                read[log] = len(lines)
        if over or control.stop.is_set():
            return
        if time.monotonic() - asked > ASK_S:
            asked = time.monotonic()
            try:
                over = not any(job.live for job in run_folder.jobs(folder, run))
            except NoAnswer:
                over = False
        if not over:
            time.sleep(1.0)
