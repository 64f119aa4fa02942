"""Dask workers as jobs of a batch system: dask-jobqueue, with some of its gaps closed.

One job is one worker with one compute thread, and one GPU where the profile asks for it. Closed here: a job
that is cancelled, or ends before its worker is ready, is replaced (dask-jobqueue #611, #620); a refused
submission is reported in the words of the batch system; ``SBATCH_*`` of the caller steers nothing; keys and
certificates live in a private folder and go with the run, or with the next one where the driver was killed; jobs left
behind are found by name; a worker finishes its block and leaves ahead of its time limit (`leave_early`); other
versions than the driver's end a job before it works; a job that Slurm lets wait behind a limit it can never meet is
told at once. What differs from one batch system to the other is in `worker_jobs`.
"""

from __future__ import annotations

import copy
import logging
import os
import shlex
import shutil
import sys
import threading
import time
import uuid
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import dask
from dask_jobqueue.core import JobQueueCluster
from distributed.core import Status
from distributed.deploy.adaptive import Adaptive
from distributed.security import Security

from ..errors import ResourceError, Stopped, UsageError
from ..files import ownership
from ..slurm.job_reasons import Pending, hopeless, newest_log
from ..slurm.site_profile import JobProfile
from . import leave_early, preflight
from .worker_jobs import CLASSES, WorkerJob

logger = logging.getLogger(__name__)

# Operators ask for no more. Longer than distributed.deploy.lost-worker-timeout: see forget_ended.
CHECK_INTERVAL_S = 30.0
STILLBORN = (
    4  # worker jobs in a row, and as many as were asked for, that end before a worker is ready: give up
)
PASSING = ("timed out", "Unable to contact", "Connection refused")  # refusals of a controller that is away
KEYS = ".keys-"  # and the name of the jobs: a private folder among the logs


class WorkerCluster(JobQueueCluster):  # type: ignore[misc]
    """A scheduler here, and worker jobs that all bear one name."""

    job_cls: type[WorkerJob]

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
            key = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW, 0o600)
            with os.fdopen(key, "w", encoding="ascii") as file:
                file.write(texts[role])
            setattr(on_disk, f"tls_{field}", shlex.quote(str(path)))
        return on_disk

    async def queue(self) -> dict[str, str]:
        """State (and Slurm's reason) of each job that the batch system still has, by job id."""
        return await self.job_cls.listing(self.job_name)

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
                    f"{self.job_cls.system} refused the worker jobs: {job.refusal}"
                    if job.refusal
                    else f"{self.stillborn} worker jobs in a row ended before a worker was ready; {self.newest_log()}"
                )
                logger.error("no more jobs are submitted: %s", self.given_up)
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


@dataclass(frozen=True)
class Wanted:
    """The worker jobs of a run, as they are asked for."""

    system: str  # slurm, pbs or lsf
    count: int
    profile: JobProfile  # what each of them asks for
    memory_bytes: int  # limit of a worker, below that of its job
    scratch: Path  # folder for temporary files, unless the profile names one on the node
    # Folder of this run alone for logs and, in a private folder, keys; on a file system that all machines share.
    log_dir: Path
    settings: Mapping[str, object]  # of Dask, for the workers

    @property
    def job_cls(self) -> type[WorkerJob]:
        """What the batch system needs."""
        return CLASSES[self.system]


@contextmanager
def worker_jobs(wanted: Wanted) -> Iterator[WorkerCluster]:
    """A scheduler in this process and worker jobs that join it; cancelled at the end.

    Keys and jobs of a driver that was killed are swept from the folder of the logs.

    Yields
    ------
    WorkerCluster
    """
    ownership.make_own_folder(wanted.log_dir)
    # Of a batch run: its own name first, so that status, cancel and the costs find the workers too. PBS takes 15
    # characters.
    name = f"{os.environ.get('TDENOISE_RUN', 'tdn')}-{uuid.uuid4().hex[:8]}"
    options = _options(wanted, name)
    dask_settings = {
        "distributed.scheduler.no-workers-timeout": f"{wanted.profile.queue_wait_min}m",
        f"jobqueue.{wanted.system}.log-directory": None,  # where a site sets one: our logs have one place
    }
    count = wanted.count
    with _keys_folder(wanted.log_dir, name, wanted.job_cls) as tls_dir, dask.config.set(dask_settings):
        try:
            cluster = WorkerCluster(
                job_cls=wanted.job_cls,
                tls_dir=tls_dir,
                log_dir=wanted.log_dir,
                size=count,
                security=Security.temporary(),
                **options,
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
                wanted.job_cls.cancel_all(name)


def _options(wanted: Wanted, name: str) -> dict[str, Any]:
    """What dask-jobqueue is told of the jobs, which all bear one name."""
    system, profile, job_cls = wanted.system, wanted.profile, wanted.job_cls
    own = job_cls.options(profile, wanted.log_dir, name)
    return {
        "cores": 1,
        "processes": 1,
        "memory": f"{wanted.memory_bytes}B",
        "queue": profile.partition,
        "interface": profile.interface,
        "job_name": name,
        # exec: signals to the job's shell reach the worker. -P: no yaml.py of the user's is imported.
        "python": f"exec {shlex.quote(sys.executable)} -P",
        "local_directory": f'"{profile.local_directory}"'
        if profile.local_directory
        else shlex.quote(str(wanted.scratch)),
        "worker_extra_args": [
            *_site(system, "worker-extra-args"),
            "--no-dashboard",
            "--dashboard-address=127.0.0.1:0",
            "--resources",
            f"{leave_early.TOKEN}=1",
            "--preload",
            leave_early.__name__,
        ],
        "scheduler_options": {
            **(dask.config.get(f"jobqueue.{system}.scheduler-options") or {}),
            "dashboard": False,
            "dashboard_address": "127.0.0.1:0",
        },
        **own,
        "job_extra_directives": [*_site(system, "job-extra-directives"), *own["job_extra_directives"]],
        "job_script_prologue": [
            *job_cls.log_lines(wanted.log_dir, name),
            *_site(system, "job-script-prologue"),
            *_prologue(profile, wanted.settings),
        ],
    }


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
        If the batch system refuses the jobs or never will start them, if one after the other ends before a worker
        is ready, or if time is up; with its words and the end of the newest log.
    Stopped
        If ``stop`` was set.
    """
    system = cluster.job_cls.system
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
            raise ResourceError(f"{system} refused the worker jobs: {'; '.join(words)}")
        if cluster.given_up is not None:
            raise ResourceError(cluster.given_up)
        with suppress(RuntimeError):  # it does not answer: that says nothing about the jobs
            reason = hopeless(cluster.sync(cluster.queue))
            if reason is not None and reason == never_before:
                raise ResourceError(f"the worker jobs would wait forever ({reason}).")
            never_before = reason  # twice: Slurm's first reason may be a passing one
        if time.monotonic() > deadline:
            raise ResourceError(
                f"no worker started within {timeout_s / 60:g} minutes; {system} says: {_reasons(cluster)}. "
                "Request less, use another partition, or raise queue_wait_min in the profile; "
                f"{cluster.newest_log()}"
            )


def _reasons(cluster: WorkerCluster) -> str:
    try:
        states = cluster.sync(cluster.queue)
    except RuntimeError:
        return "nothing, it does not answer"
    return ", ".join(sorted(set(states.values()))) or "the jobs are not in the queue"


def _prologue(profile: JobProfile, settings: Mapping[str, object]) -> list[str]:
    """Shell lines before the worker starts; they end the job where it could only fail later."""
    exports = [
        f"export DASK_{key.upper().replace('.', '__').replace('-', '_')}={shlex.quote(str(value))}"
        for key, value in settings.items()
    ]
    end = [f"export {leave_early.END}=$(( $(date +%s) + {profile.time_s} ))"]
    margin = [f"export {leave_early.MARGIN}={profile.stop_early_s}"]
    return [*end, *margin, *exports, *profile.setup, f"{shlex.join(preflight.command())} || exit 1"]


@contextmanager
def _keys_folder(log_dir: Path, name: str, job_cls: type[WorkerJob]) -> Iterator[Path]:
    """A private folder for keys; what a driver that was killed left is removed first, its jobs included."""
    for stale in log_dir.glob(f"{KEYS}*"):
        if ownership.stranger(stale) is not None:
            continue  # no reason to cancel jobs of ours
        job_cls.cancel_all(stale.name.removeprefix(KEYS))
        shutil.rmtree(stale, ignore_errors=True)
    folder = log_dir / f"{KEYS}{name}"
    folder.mkdir(mode=0o700)
    try:
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def _site(system: str, key: str) -> list[str]:
    """What the site's or the user's jobqueue.yaml already asks for."""
    return list(dask.config.get(f"jobqueue.{system}.{key}") or [])
