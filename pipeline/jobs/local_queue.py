"""A batch run on this machine, without a batch system: its steps one after the other, in the background."""

from __future__ import annotations

import contextlib
import os
import shlex
import signal
import subprocess
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from ..errors import PipelineError
from ..files.sealed_json import read_unbroken, write_sealed
from ..runs.lease import is_here, process_start, this_process
from ..slurm.batch_script import NoAnswer, clean_environment
from ..slurm.job_queue import Queued

PROCESS = "process.json"  # in the run folder: what works through the steps
PATIENCE_S = 60.0  # for the block in hand, when a run is cancelled
GONE_S = 10.0  # for what was killed


def render_script(
    command: Sequence[str],
    *,
    work_dir: Path,
    exports: Mapping[str, str],
    setup: Sequence[str],
    exit_file: Path,
) -> str:
    """The script of one step; it leaves its exit code, also when it is told to stop."""
    lines = [*(f"export {key}={shlex.quote(value)}" for key, value in exports.items()), *setup]
    return _SCRIPT.format(
        work_dir=shlex.quote(str(work_dir)),
        setup="\n".join(lines),
        command=shlex.join(command),
        exit_file=shlex.quote(str(exit_file)),
    )


_SCRIPT = """\
#!/bin/bash
trap : TERM  # the command was told as well: wait for it
cd -- {work_dir} || exit 1
{setup}

{command}
code=$?
echo "$code" >{exit_file}
exit "$code"
"""


def start(folder: Path, run: str, names: Sequence[str]) -> str:
    """Begin to work through the scripts of some steps; it goes on without this process.

    Parameters
    ----------
    folder : Path
        The run folder, with ``scripts/NAME.sh`` and the folder ``logs``.
    run : str
        Id of the run.
    names : sequence of str
        Of the jobs, in their order; the first that fails is the last.

    Returns
    -------
    str
        ``pid-PROCESS``, which is the id of all these jobs.
    """
    loop = (
        f"trap : TERM; for name in {shlex.join(names)}; do "
        f'bash scripts/"$name".sh >>logs/"$name-pid-$$".log 2>&1 || exit; done'
    )
    process = subprocess.Popen(
        ["bash", "-c", loop],
        cwd=folder,
        env=clean_environment(os.environ),
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        start_new_session=True,  # it outlives the terminal
    )
    record = this_process() | {
        "pid": process.pid,
        "process_start": process_start(process.pid),
        "run": run,
        "names": list(names),
    }
    write_sealed(folder / PROCESS, record)
    process.returncode = 0  # nobody here waits for it
    return f"pid-{process.pid}"


def has(folder: Path, run: str) -> bool:
    """Whether the last jobs of a run were for this machine."""
    return (folder / PROCESS).exists() and _record(folder).get("run", run) == run


def _record(folder: Path) -> dict[str, Any]:
    """What works through the steps; empty where that is not known."""
    record = read_unbroken(folder / PROCESS)
    return record if {"host", "pid", "process_start", "run", "names"} <= set(record) else {}


def jobs(folder: Path) -> list[Queued]:
    """The jobs that run or will run.

    Raises
    ------
    NoAnswer
        If they are on another machine.
    """
    if not (record := _record(folder)):
        return []  # it is told; what still runs holds the lease of its output
    here = this_process()["host"]
    if record["host"] != here:
        raise NoAnswer(f"it was submitted on {record['host']}, but this is {here}")
    if not is_here(record) or process_start(record["pid"]) != record["process_start"]:
        return []
    left = [name for name in record["names"] if not (folder / "exit" / name).exists()]
    states = ["RUNNING", *["PENDING"] * len(left)]
    return [
        Queued(f"pid-{record['pid']}", name, state, "Dependency")
        for name, state in zip(left, states, strict=False)
    ]


def cancel(folder: Path) -> list[str]:
    """End the jobs: they may finish the block in hand, but not for longer than `PATIENCE_S`.

    Returns
    -------
    list of str
        ``pid-PROCESS``; nothing if they were over.
    """
    if not (ended := jobs(folder)):
        return []
    for number, patience in ((signal.SIGTERM, PATIENCE_S), (signal.SIGKILL, GONE_S)):
        with contextlib.suppress(ProcessLookupError):
            os.killpg(int(ended[0].id.removeprefix("pid-")), number)
        deadline = time.monotonic() + patience
        while jobs(folder) and time.monotonic() < deadline:
            time.sleep(0.1)
        if not jobs(folder):
            return [ended[0].id]
    raise PipelineError(f"{ended[0].id} did not stop.")
