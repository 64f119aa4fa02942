"""Dask workers as Slurm jobs: dask-jobqueue, with some of its gaps closed.

One job is one worker with one compute thread, and one GPU where the profile asks for it. Closed here: a job
that is cancelled, or ends before its worker is ready, is replaced (dask-jobqueue #611, #620); a refused
``sbatch`` is reported in Slurm's words; ``SBATCH_*`` of the caller steers nothing; keys and certificates
live in a private folder and go with the run, or with the next one where the driver was killed; jobs left behind
are found by name; a worker finishes its block and leaves ahead of its time limit (`drain`); other versions than
the driver's end a job before it works; a job that waits behind a limit it can never meet is told at once.
"""

from __future__ import annotations

import copy
import logging
import os
import shlex
import shutil
import subprocess
import sys
import threading
import time
import uuid
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import dask
from dask_jobqueue import SLURMCluster
from dask_jobqueue.slurm import SLURMJob
from distributed.core import Status
from distributed.deploy.adaptive import Adaptive
from distributed.security import Security

from . import drain, preflight
from .errors import ResourceError, Stopped, UsageError
from .reasons import Pending, hopeless, newest_log
from .site_profile import SlurmProfile
from .slurm import clean_environment, output_option, site_options, time_limit_s

logger = logging.getLogger(__name__)

# Slurm's operators ask for no more. Longer than distributed.deploy.lost-worker-timeout: see forget_ended.
CHECK_INTERVAL_S = 30.0
STILLBORN = (
    4  # worker jobs in a row, and as many as were asked for, that end before a worker is ready: give up
)
PASSING = ("timed out", "Unable to contact", "Connection refused")  # refusals of a controller that is away
KEYS = ".keys-"  # and the name of the jobs: a private folder among the logs


class WorkerJob(SLURMJob):  # type: ignore[misc]
    """One job with one worker in it."""

    refusal: str | None = None  # sbatch's words

    async def start(self) -> None:
        try:
            await super().start()
        except RuntimeError as error:
            # Raised, it would be logged as a traceback, and the cluster would neither retry nor close.
            self.refusal = str(error).partition("stderr:\n")[2].strip() or str(error)
            self.status = Status.running

    async def _submit_job(self, script_filename: str) -> str:
        output: str = await self._call(["sbatch", script_filename], env=clean_environment(os.environ))
        return output

    async def close(self) -> None:
        await super().close()
        self.status = Status.closed


class WorkerCluster(SLURMCluster):  # type: ignore[misc]
    """A scheduler here, and worker jobs that all bear one name."""

    job_cls = WorkerJob

    def __init__(self, *, tls_dir: Path, log_dir: Path, size: int, **options: Any) -> None:
        self.tls_dir = tls_dir
        self.log_dir = log_dir
        self.size = size
        self.stillborn = 0  # since a worker joined
        self._joined = 0
        self._ended_before: set[tuple[str, str | None]] = set()
        self.given_up: str | None = None  # why no job is replaced any more
        self._known: set[str] = set()  # workers that have joined
        self._pending = Pending()
        super().__init__(**options)

    def _get_worker_security(self, security: Security) -> Security:
        """Keys and certificates as files, whose quoted names dask-jobqueue puts on a command line."""
        texts = security.get_tls_config_for_role("worker")
        on_disk = copy.copy(security)
        for role, field in (("ca_file", "ca_file"), ("cert", "worker_cert"), ("key", "worker_key")):
            path = self.tls_dir / f"{role}.pem"
            path.touch(mode=0o600)
            path.write_text(texts[role], encoding="ascii")
            setattr(on_disk, f"tls_{field}", shlex.quote(str(path)))
        return on_disk

    async def queue(self) -> dict[str, str]:
        """State and reason of each job of this run that Slurm still has, by job id."""
        mine = ["--user", str(os.getuid()), "--name", self.job_name]
        command = ["squeue", "--noheader", "--format=%A %T %r", *mine]
        listing: str = await WorkerJob._call(command, env=clean_environment(os.environ))
        return dict(line.split(" ", 1) for line in listing.splitlines())

    async def ended(self) -> set[tuple[str, str | None]]:
        """Worker names and job ids of jobs that are over (or were refused) and have no worker."""
        with_worker = {worker.name for worker in self.scheduler.workers.values()}
        self._known |= with_worker
        silent = {(name, job.job_id) for name, job in self.workers.items() if name not in with_worker}
        if not silent:
            return set()
        alive = await self.queue()  # asked for after the job ids were read: a job just submitted is listed
        self._pending.tell(alive)
        return {(name, job_id) for name, job_id in silent if job_id not in alive}

    async def forget_ended(self) -> None:
        """Give up jobs that ended before their worker was ready, so that adapting replaces them."""
        joined = len(self._known)
        if joined > self._joined:
            self._joined, self.stillborn = joined, 0
        try:
            ended = await self.ended()
        except RuntimeError:
            return
        # Twice in a row: dask itself takes care of a worker that was there, within lost-worker-timeout.
        for name, job_id in ended & self._ended_before if self._joined else ended:
            job = self.workers.get(name)
            if job is None or job.job_id != job_id:
                continue
            if self.given_up is not None:
                break
            self.stillborn += 1
            if self.stillborn >= max(STILLBORN, self.size):
                self.given_up = (
                    f"Slurm refused the worker jobs: {job.refusal}"
                    if job.refusal
                    else f"{self.stillborn} worker jobs in a row ended before a worker was ready; {self.newest_log()}"
                )
                logger.error("none is replaced any more: %s", self.given_up)
                break
            del self.workers[name]
            job.status = Status.closed
            logger.warning(
                "worker job %s ended before it was ready, asking for another", job_id or job.refusal
            )
        self._ended_before = ended

    async def replace_ended(self) -> None:
        """Ask for jobs in place of those that ended, now."""
        if self._adaptive is not None:
            await self._adaptive.adapt()

    def newest_log(self) -> str:
        """Name and last lines of the newest worker log."""
        return newest_log(self.log_dir, self.job_name)


class Replacing(Adaptive):  # type: ignore[misc]
    """Keeps the number of worker jobs up."""

    cluster: WorkerCluster

    async def adapt(self) -> None:
        await self.cluster.forget_ended()
        await super().adapt()


@contextmanager
def worker_jobs(
    count: int,
    *,
    profile: SlurmProfile,
    memory_bytes: int,
    scratch: Path,
    log_dir: Path,
    settings: Mapping[str, object],
) -> Iterator[WorkerCluster]:
    """A scheduler in this process and ``count`` worker jobs that join it; cancelled at the end.

    Parameters
    ----------
    count : int
        Number of worker jobs.
    profile : SlurmProfile
        What each of them asks for.
    memory_bytes : int
        Memory limit of a worker [bytes], below that of its job.
    scratch : Path
        Folder for temporary files, unless the profile names one on the node.
    log_dir : Path
        Folder of this run alone for logs and, in a private folder, keys; on a file system that all machines
        share. Keys and jobs of a driver that was killed are swept from it.
    settings : mapping
        Dask settings of the workers.

    Yields
    ------
    WorkerCluster
    """
    log_dir.mkdir(parents=True, exist_ok=True)
    local_directory = f'"{profile.local_directory}"' if profile.local_directory else shlex.quote(str(scratch))
    # Of a batch run: its own name first, so that status, cancel and the costs find the workers too.
    name = f"{os.environ.get('TDENOISE_RUN', 'tdenoise')}-{uuid.uuid4().hex[:8]}"
    options = {
        "cores": 1,
        "processes": 1,
        "memory": f"{memory_bytes}B",
        "job_cpu": profile.cpus,
        "job_mem": f"{profile.memory_gib}G",
        "queue": profile.partition,
        "account": profile.account,
        "walltime": profile.time,
        "interface": profile.interface,
        "job_name": name,
        # exec: signals to the job's shell reach the worker. -P: no yaml.py of the user's is imported.
        "python": f"exec {shlex.quote(sys.executable)} -P",
        "local_directory": local_directory,
        "worker_extra_args": [
            *_site("worker-extra-args"),
            "--no-dashboard",
            "--dashboard-address=127.0.0.1:0",
            "--resources",
            f"{drain.TOKEN}=1",
            "--preload",
            drain.__name__,
        ],
        "job_script_prologue": [*_site("job-script-prologue"), *_prologue(profile, settings)],
        "job_extra_directives": [
            *_site("job-extra-directives"),
            output_option(log_dir, f"{name}-%j.log"),
            "--export=NONE",
            "--no-requeue",  # a lost job is replaced; requeued, it would come back as a second one
            *site_options(profile),
        ],
        "scheduler_options": {
            **(dask.config.get("jobqueue.slurm.scheduler-options") or {}),
            "dashboard": False,
            "dashboard_address": "127.0.0.1:0",
        },
    }
    dask_settings = {
        "distributed.scheduler.no-workers-timeout": f"{profile.queue_wait_min}m",
        "jobqueue.slurm.log-directory": None,  # where a site sets one: our logs have one place
    }
    with _keys_folder(log_dir, name) as tls_dir, dask.config.set(dask_settings):
        try:
            cluster = WorkerCluster(
                tls_dir=tls_dir, log_dir=log_dir, size=count, security=Security.temporary(), **options
            )
        except (RuntimeError, OSError, ValueError) as error:
            raise UsageError(f"the Dask scheduler does not start on this machine: {error}") from error
        try:
            cluster.scale(jobs=count)
            cluster.adapt(
                Adaptive=Replacing, minimum_jobs=count, maximum_jobs=count, interval=f"{CHECK_INTERVAL_S}s"
            )
            yield cluster
        finally:
            try:
                cluster.close()
            finally:
                _cancel(name)


def wait_for_first(cluster: WorkerCluster, *, timeout_s: float, stop: threading.Event) -> None:
    """Wait until one worker is ready.

    Parameters
    ----------
    cluster : WorkerCluster
        From `worker_jobs`.
    timeout_s : float
        Longest wait [s].
    stop : threading.Event
        Ends the wait.

    Raises
    ------
    ResourceError
        If Slurm refuses the jobs or never will start them, if one after the other ends before a worker is ready,
        or if time is up; with Slurm's words and the end of the newest log.
    Stopped
        If ``stop`` was set.
    """
    deadline = time.monotonic() + timeout_s
    pause_s = 1.0
    never_before: str | None = None
    next_look = time.monotonic() + pause_s
    while not cluster.scheduler.workers:
        # Not stop.wait: the signal handler sets stop in this same thread, and could find it locked.
        time.sleep(0.2)
        if stop.is_set():
            raise Stopped("stopped while waiting for a worker; run the same command again to continue")
        if time.monotonic() < next_look:
            continue
        pause_s = min(2 * pause_s, CHECK_INTERVAL_S)
        next_look = time.monotonic() + pause_s
        cluster.sync(cluster.replace_ended)
        jobs = list(cluster.workers.values())
        if jobs and all(job.refusal and not any(w in job.refusal for w in PASSING) for job in jobs):
            words = sorted({str(job.refusal) for job in jobs})
            raise ResourceError(f"Slurm refused the worker jobs: {'; '.join(words)}")
        if cluster.given_up is not None:
            raise ResourceError(cluster.given_up)
        with suppress(RuntimeError):  # squeue does not answer: that says nothing about the jobs
            reason = hopeless(cluster.sync(cluster.queue))
            if reason is not None and reason == never_before:
                raise ResourceError(f"the worker jobs would wait for ever ({reason}).")
            never_before = reason  # twice: Slurm's first reason may be a passing one
        if time.monotonic() > deadline:
            raise ResourceError(
                f"no worker started within {timeout_s / 60:g} minutes; Slurm says: {_reasons(cluster)}. "
                "Ask for less, use another partition, or raise queue_wait_min in the profile; "
                f"{cluster.newest_log()}"
            )


def _reasons(cluster: WorkerCluster) -> str:
    try:
        states = cluster.sync(cluster.queue)
    except RuntimeError:
        return "nothing, squeue does not answer"
    return ", ".join(sorted(set(states.values()))) or "the jobs are not in the queue"


def _cancel(name: str) -> None:
    """Cancel what bears the name: a timed-out sbatch may have submitted a job whose number nobody knows."""
    command = ["scancel", "--user", str(os.getuid()), "--name", name]
    with suppress(OSError, subprocess.TimeoutExpired):
        subprocess.run(
            command, env=clean_environment(os.environ), capture_output=True, timeout=60, check=False
        )


def _prologue(profile: SlurmProfile, settings: Mapping[str, object]) -> list[str]:
    """Shell lines before the worker starts; they end the job where it could only fail later."""
    exports = [
        f"export DASK_{key.upper().replace('.', '__').replace('-', '_')}={shlex.quote(str(value))}"
        for key, value in settings.items()
    ]
    end = [f"export {drain.END}=$(( $(date +%s) + {time_limit_s(profile.time)} ))"]
    margin = [f"export {drain.MARGIN}={profile.stop_early_s}"]
    return [*end, *margin, *exports, *profile.setup, f"{shlex.join(preflight.command())} || exit 1"]


@contextmanager
def _keys_folder(log_dir: Path, name: str) -> Iterator[Path]:
    """A private folder for keys; what a driver that was killed left is removed first, its jobs included."""
    for stale in log_dir.glob(f"{KEYS}*"):
        _cancel(stale.name.removeprefix(KEYS))
        shutil.rmtree(stale, ignore_errors=True)
    folder = log_dir / f"{KEYS}{name}"
    folder.mkdir(mode=0o700)
    try:
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def _site(key: str) -> list[str]:
    """What the site's or the user's jobqueue.yaml already asks for."""
    return list(dask.config.get(f"jobqueue.slurm.{key}") or [])
