"""Stand-ins for the commands of PBS and LSF: qsub and bsub really run the job, in the background, on this machine.

A job has a folder in the one that FAKE_BATCH names: the script as it was handed in, its name, and its process.
"""

from __future__ import annotations

import os
import re
import signal
import stat
import subprocess
import sys
from pathlib import Path

COMMANDS = {
    "pbs": ("qsub", "qstat", "qdel", "qselect"),
    "lsf": ("bsub", "bjobs", "bkill"),
}
DIRECTIVE = {"qsub": "#PBS", "bsub": "#BSUB"}


def install(system: str, folder: Path, jobs: Path) -> None:
    """Put the commands of a batch system into a folder; their jobs into another one."""
    folder.mkdir(exist_ok=True)
    jobs.mkdir(exist_ok=True)
    for name in COMMANDS[system]:
        file = folder / name
        file.write_text(
            f'#!/bin/sh\nFAKE_BATCH={jobs} exec {sys.executable} {Path(__file__).absolute()} {name} "$@"\n'
        )
        file.chmod(file.stat().st_mode | stat.S_IXUSR)


def alive(job: Path) -> bool:
    """Whether the process of a job runs."""
    try:
        state = Path(f"/proc/{(job / 'pid').read_text()}/stat").read_text().rpartition(")")[2].split()[0]
    except OSError:
        return False
    return state not in "ZX"


def _submit(command: str, jobs: Path, script: str) -> str:
    if (jobs / "refuse").exists():
        sys.exit(f"{command}: the queue is closed")
    number = 100 + sum(1 for _ in jobs.glob("[0-9]*"))
    job = jobs / str(number)
    job.mkdir()
    (job / "script").write_text(script)
    name = re.search(rf"(?m)^{DIRECTIVE[command]} -[NJ] (\S+)$", script)
    (job / "name").write_text(name[1] if name else "")
    # As a login shell would have it, and nothing of the one that submits.
    environment = {"HOME": os.environ["HOME"], "PATH": "/usr/bin:/bin"}
    environment |= {"PBS_JOBID": f"{number}.server"} if command == "qsub" else {"LSB_JOBID": str(number)}
    process = subprocess.Popen(
        ["bash", str(job / "script")],
        env=environment,
        cwd="/",
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        start_new_session=True,
    )
    (job / "pid").write_text(str(process.pid))
    process.returncode = 0  # it is not ours to wait for
    return f"{number}.server" if command == "qsub" else f"Job <{number}> is submitted to queue <normal>."


def _end(job: Path) -> None:
    if alive(job):
        os.killpg(int((job / "pid").read_text()), signal.SIGTERM)


def main(command: str, *words: str) -> None:
    """Do what the command would."""
    jobs = Path(os.environ["FAKE_BATCH"])
    there = [job for job in sorted(jobs.glob("[0-9]*")) if alive(job)]
    named = [job for job in there if words and job.joinpath("name").read_text() == words[-1]]
    if command in DIRECTIVE:
        print(_submit(command, jobs, sys.stdin.read()))
    elif command == "qstat":
        print("\nserver:\nJob ID  Username Queue Jobname SessID NDS TSK Memory Time S Time")
        for job in there:
            print(f"{job.name}.server me workq {job.joinpath('name').read_text()} 1 1 1 2gb 00:10 R 00:00")
    elif command == "qselect":
        print("\n".join(f"{job.name}.server" for job in named))
    elif command == "bjobs":
        if not there:
            sys.exit("No unfinished job found")
        print("\n".join(f"{job.name} RUN" for job in there))
    elif command == "bkill" and words[0] == "-J":
        for job in there:
            if job.joinpath("name").read_text() == words[1]:
                _end(job)
    else:  # qdel, bkill
        for word in words:
            _end(jobs / word.partition(".")[0])


if __name__ == "__main__":
    main(*sys.argv[1:])
