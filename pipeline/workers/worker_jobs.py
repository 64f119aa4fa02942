"""A worker job in each batch system: what it asks for, how it is handed in, listed and ended.

dask-jobqueue writes the scripts. Ours in them: the log, which only the shell of the job names where the batch system's
own lines could not hold any file name; and a clean environment. PBS and LSF were never tried on a real one, only on
stand-ins for their commands.
"""

from __future__ import annotations

import os
import pwd
import re
import shlex
import subprocess
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

from dask_jobqueue.core import Job
from dask_jobqueue.lsf import LSFJob
from dask_jobqueue.pbs import PBSJob
from dask_jobqueue.slurm import SLURMJob
from distributed.core import Status

from ..slurm.batch_script import clean_environment, log_folder, output_option, site_options
from ..slurm.site_profile import JobProfile

OWN_CHUNK = ("-l select=", "-l nodes=")  # lines of extra that stand in for our request to PBS


class WorkerJob(Job):  # type: ignore[misc]
    """One job with one worker in it."""

    system: str  # its name
    refusal: str | None = None  # the batch system's words

    @classmethod
    def options(cls, profile: JobProfile, log_dir: Path, name: str) -> dict[str, Any]:
        """What dask-jobqueue is to write, beyond what is the same for all batch systems."""
        raise NotImplementedError

    @classmethod
    def log_lines(cls, log_dir: Path, name: str) -> list[str]:
        """Shell lines that begin the log."""
        raise NotImplementedError

    @classmethod
    async def listing(cls, name: str) -> dict[str, str]:
        """State of each job that is not over, by job id; among them all that bear the name."""
        raise NotImplementedError

    @classmethod
    def cancel_all(cls, name: str) -> None:
        """End what bears the name: a timed-out submission may have left a job whose number nobody knows."""
        raise NotImplementedError

    async def start(self) -> None:
        try:
            await super().start()
        except (RuntimeError, ValueError) as error:
            # Raised, it would be logged as a traceback, and the cluster would neither retry nor close.
            self.refusal = str(error).partition("stderr:\n")[2].strip() or str(error)
            self.status = Status.running

    async def _submit_job(self, script_filename: str) -> str:
        with Path(script_filename).open("rb") as script:
            return await ask([self.submit_command], stdin=script)

    async def close(self) -> None:
        await super().close()
        self.status = Status.closed


class SlurmWorkerJob(WorkerJob, SLURMJob):  # type: ignore[misc]
    """A worker job of Slurm."""

    system = "Slurm"

    @classmethod
    def options(cls, profile: JobProfile, log_dir: Path, name: str) -> dict[str, Any]:
        return {
            "account": profile.account,
            "walltime": profile.time,
            "job_cpu": profile.cpus,
            "job_mem": f"{profile.memory_gib}G",
            "job_extra_directives": [
                output_option(log_dir, f"{name}-%j.log"),
                "--export=NONE",
                "--no-requeue",  # a lost job is replaced; requeued, it would come back as a second one
                *site_options(profile),
            ],
        }

    @classmethod
    def log_lines(cls, log_dir: Path, name: str) -> list[str]:
        return []  # Slurm writes it from the first line on

    @classmethod
    async def listing(cls, name: str) -> dict[str, str]:
        mine = ["--user", str(os.getuid()), "--name", name]
        lines = (await ask(["squeue", "--noheader", "--format=%A %T %r", *mine])).splitlines()
        return dict(line.split(" ", 1) for line in lines)

    @classmethod
    def cancel_all(cls, name: str) -> None:
        run(["scancel", "--user", str(os.getuid()), "--name", name])


class PBSWorkerJob(WorkerJob, PBSJob):  # type: ignore[misc]
    """A worker job of PBS."""

    system = "PBS"

    @classmethod
    def options(cls, profile: JobProfile, log_dir: Path, name: str) -> dict[str, Any]:
        minutes, seconds = divmod(profile.time_s, 60)
        gpus = f":ngpus={profile.n_gpus}" if profile.n_gpus else ""
        return {
            "account": profile.account,
            "walltime": f"{minutes // 60:02d}:{minutes % 60:02d}:{seconds:02d}",
            "resource_spec": f"select=1:ncpus={profile.cpus}:mem={profile.memory_gib}gb{gpus}",
            "job_directives_skip": ["select="] if _has(profile.extra, OWN_CHUNK) else [],
            "job_extra_directives": ["-S /bin/bash", "-j oe", "-o /dev/null", "-r n", *profile.extra],
        }

    @classmethod
    def log_lines(cls, log_dir: Path, name: str) -> list[str]:
        return [f'exec >>{shlex.quote(f"{log_folder(log_dir)}/{name}-")}"${{PBS_JOBID%%.*}}".log 2>&1']

    @classmethod
    async def listing(cls, name: str) -> dict[str, str]:
        # By user, not by id: of an id that is over, qstat says no more than that something failed.
        rows = [line.split() for line in (await ask(["qstat", "-u", _user()])).splitlines()]
        jobs = [(re.match("[0-9]+", row[0]), row[-2]) for row in rows if len(row) > 3]
        return {id[0]: state for id, state in jobs if id and state not in ("C", "F", "X")}

    @classmethod
    def cancel_all(cls, name: str) -> None:
        if ids := run(["qselect", "-u", _user(), "-N", name]).split():
            run(["qdel", *ids])


class LSFWorkerJob(WorkerJob, LSFJob):  # type: ignore[misc]
    """A worker job of LSF."""

    system = "LSF"
    job_id_regexp = r"Job <(?P<job_id>\d+)>"

    @classmethod
    def options(cls, profile: JobProfile, log_dir: Path, name: str) -> dict[str, Any]:
        minutes = -(-profile.time_s // 60)
        return {
            "project": profile.account,
            "walltime": f"{minutes // 60:02d}:{minutes % 60:02d}",
            "ncpus": profile.cpus,
            "mem": profile.memory_gib * 2**30,  # in the units of the site's lsf.conf
            "job_extra_directives": [
                "-o /dev/null",
                "-rn",
                "-env none",
                *([f'-gpu "num={profile.n_gpus}"'] if profile.n_gpus else []),
                *profile.extra,
            ],
        }

    @classmethod
    def log_lines(cls, log_dir: Path, name: str) -> list[str]:
        return [f'exec >>{shlex.quote(f"{log_folder(log_dir)}/{name}-")}"$LSB_JOBID".log 2>&1']

    @classmethod
    async def listing(cls, name: str) -> dict[str, str]:
        try:
            lines = (await ask(["bjobs", "-noheader", "-o", "jobid stat"])).splitlines()
        except RuntimeError as error:
            if "No unfinished job found" not in str(error):
                raise
            return {}
        return dict(line.split()[:2] for line in lines if line[:1].isdecimal())

    @classmethod
    def cancel_all(cls, name: str) -> None:
        run(["bkill", "-J", name, "0"])


CLASSES: dict[str, type[WorkerJob]] = {"slurm": SlurmWorkerJob, "pbs": PBSWorkerJob, "lsf": LSFWorkerJob}


async def ask(command: Sequence[str], **options: Any) -> str:
    """Output of a command of the batch system; RuntimeError where it fails."""
    output: str = await Job._call(list(command), env=clean_environment(os.environ), **options)
    return output


def run(command: Sequence[str]) -> str:
    """Output of a command of which nobody minds whether it works."""
    with suppress(OSError, subprocess.TimeoutExpired):
        done = subprocess.run(
            command,
            env=clean_environment(os.environ),
            capture_output=True,
            text=True,
            timeout=60,
            check=False,
        )
        return done.stdout
    return ""


def _user() -> str:
    return pwd.getpwuid(os.getuid()).pw_name


def _has(lines: Sequence[str], beginnings: tuple[str, ...]) -> bool:
    return any(line.startswith(beginnings) for line in lines)
