"""Where the work runs: Dask workers on this machine, as jobs of a batch system, or behind a running scheduler."""

from __future__ import annotations

import logging
import os
import shutil
import signal
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from multiprocessing import resource_tracker
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..errors import ResourceError, Stopped, UsageError
from ..files import ownership
from ..resources import budget
from ..settings.workers import Workers
from ..slurm.site_profile import SUBMIT, worker_profile
from .main_guard import check_main_guard

if TYPE_CHECKING:
    from distributed import Client

log = logging.getLogger(__name__)

START_TIMEOUT_S = 120  # for workers that wait in no queue: this machine, a running scheduler
CONNECT_TIMEOUT_S = 30
START_TRIES = 3  # of all workers of this machine together
STOPPED = "stopped while waiting for workers; run the same command again to continue"

# What every worker is told. Blocks return small receipts and write their own output, so there is nothing
# to spill; a worker paused for memory that torch keeps would stall the run without a word, whereas one
# that is stopped at 95 % is replaced and named.
WORKER_SETTINGS = {
    "distributed.worker.memory.target": False,
    "distributed.worker.memory.spill": False,
    "distributed.worker.memory.pause": False,
    "distributed.worker.profile.enabled": False,
    # Measurements of itself that nobody looks at: an idle scheduler and worker took 5 and 2 % of a core.
    "distributed.admin.tick.interval": "1s",
    "distributed.admin.system-monitor.interval": "10s",
    "distributed.worker.http.routes": [],  # its little web server cannot be left out, but has nothing to say
}
SETTINGS = WORKER_SETTINGS | {
    "distributed.worker.multiprocessing-method": "spawn",  # CUDA and threads do not survive a fork
    "distributed.scheduler.http.routes": [],
    "distributed.scheduler.allowed-failures": 3,  # a block that ends four workers is given up
    # How long a lost worker job may take to come back. A worker that its nanny starts anew needs seconds.
    "distributed.deploy.lost-worker-timeout": "10s",
}


@contextmanager
def connect(
    workers: Workers,
    *,
    scratch: Path,
    worker_memory_bytes: int | None,
    profile: Path | None,
    log_dir: Path,
    stop: threading.Event | None = None,
) -> Iterator[Client]:
    """Start workers (or find running ones) and give a Dask client to them; stop them afterwards.

    Each worker is one process with one compute thread. A worker that dies is replaced. On this machine
    only loopback addresses are opened; between machines everything is TLS with keys made for this run.

    Parameters
    ----------
    workers : Workers
    scratch : Path
        Folder for the workers' temporary files.
    worker_memory_bytes : int or None
        Memory limit of one worker [bytes]; None gives local workers equal shares of the machine's, and
        worker jobs what `JobProfile.worker_memory_bytes` says.
    profile : Path or None
        Describes the worker jobs, for ``slurm:N``, ``pbs:N`` and ``lsf:N``.
    log_dir : Path
        Folder for the logs of worker jobs; on a file system that all machines share.
    stop : threading.Event, optional
        Ends the wait for a worker, which may take hours in a queue.

    Yields
    ------
    distributed.Client

    Raises
    ------
    UsageError
        If the profile is wrong, or a package or the batch system itself is missing.
    ResourceError
        If no worker starts in time, with what the workers left behind.
    Stopped
        If ``stop`` was set before a worker was there.
    """
    stop = stop or threading.Event()
    scratch, log_dir = scratch.absolute(), log_dir.absolute()
    import dask
    import distributed  # noqa: F401  (loaded inside config.set, its defaults would go when that ends)

    ownership.make_own_folder(scratch)
    # Else the scheduler makes a folder of its own in /tmp, which stays.
    settings = SETTINGS | {"temporary-directory": str(scratch)}
    with dask.config.set(settings), _environment_restored():
        if workers.kind == "address":
            clients = _running(workers.address, stop)
        elif workers.kind == "local":
            clients = _local(workers.count, scratch, worker_memory_bytes, stop)
        else:
            clients = _jobs(workers, scratch, worker_memory_bytes, profile, log_dir, stop)
        with clients as client:
            yield client


def n_workers(client: Client) -> int:
    """Number of workers that are there now.

    Parameters
    ----------
    client : distributed.Client
        From `connect`.

    Returns
    -------
    int
    """
    return len(client.nthreads())  # asks the scheduler; client.scheduler_info() may be seconds old


def given_up(client: Client) -> str | None:
    """Why worker jobs that were lost are not replaced any more; None while they are."""
    reason: str | None = getattr(client.cluster, "given_up", None)  # as `job_cluster.WorkerCluster` has it
    return reason


@contextmanager
def _local(count: int, scratch: Path, memory_bytes: int | None, stop: threading.Event) -> Iterator[Client]:
    from distributed import Client, LocalCluster
    from distributed.security import Security

    check_main_guard()
    count = count or budget.n_cores()
    logging.getLogger("distributed.nanny").addFilter(_is_news)
    for attempt in range(1, START_TRIES + 1):
        try:
            with _deaf_to_interrupts():
                cluster = LocalCluster(
                    n_workers=count,
                    threads_per_worker=1,
                    processes=True,
                    host="127.0.0.1",
                    # Without a port of its own, the second run on a machine finds 8787 taken and warns.
                    scheduler_kwargs={"dashboard": False, "dashboard_address": "127.0.0.1:0"},
                    memory_limit=memory_bytes or budget.machine_memory_bytes() // count,
                    local_directory=str(scratch),
                    death_timeout=START_TIMEOUT_S,
                    # TLS here too: others on this machine could reach a bare loopback port, and run code as us.
                    security=Security.temporary(),
                )
            break
        except (RuntimeError, OSError, TimeoutError) as error:
            # An interrupt that came with the failure may have gone to a thread that has yet to wake.
            time.sleep(0.1)
            if stop.is_set():
                raise Stopped(STOPPED) from error
            if attempt < START_TRIES:  # Dask replaces a worker that was killed, but not while all are started
                log.warning("the workers did not start (%s); trying again", error)
                continue
            raise ResourceError(
                f"{count} worker processes could not be started on this machine: {str(error).rstrip('.')}. Use fewer "
                "workers "
                f"(--workers local:{max(1, count // 2)}), or check memory and open files (ulimit -a)."
            ) from error
    with cluster:
        if stop.is_set():
            raise Stopped(STOPPED)
        with Client(cluster, set_as_default=False) as client:
            yield client


def _is_news(record: logging.LogRecord) -> bool:
    """Not that a worker took long to end: it is done with its work, and ended by force."""
    return not record.getMessage().startswith("Worker process still alive")


def check_jobs(workers: Workers, memory_bytes: int | None, profile_path: Path | None) -> None:
    """Refuse workers that this machine cannot ask for, before anything is begun.

    Parameters
    ----------
    workers : Workers
        Of other kinds than batch jobs nothing is said.
    memory_bytes : int, optional
        That a worker may use.
    profile_path : Path, optional

    Raises
    ------
    UsageError
        If the batch system is not here, or the jobs of the profile are too small.
    """
    if workers.kind not in SUBMIT:
        return
    profile = worker_profile(profile_path, workers)
    if memory_bytes is not None and memory_bytes > profile.memory_gib * 2**30:
        raise UsageError(
            f"a worker may use {memory_bytes / 2**30:.1f} GiB, but its job requests "
            f"{profile.memory_gib} GiB. Raise memory_gib under workers: in {profile_path or 'a profile'}."
        )
    if shutil.which(SUBMIT[workers.kind]) is None:
        raise UsageError(
            f"--workers {workers} needs {SUBMIT[workers.kind]}, which this machine does not have: use local:N."
        )


@contextmanager
def _jobs(
    workers: Workers,
    scratch: Path,
    memory_bytes: int | None,
    profile_path: Path | None,
    log_dir: Path,
    stop: threading.Event,
) -> Iterator[Client]:
    check_jobs(workers, memory_bytes, profile_path)
    profile = worker_profile(profile_path, workers)
    try:
        import cryptography  # noqa: F401  (for the keys)
        from distributed import Client

        from .job_cluster import Wanted, wait_for_first, worker_jobs
    except ImportError as error:
        raise UsageError(
            f"--workers {workers} needs the package {error.name}. In a checkout of tdenoise: pip install '.[slurm]'."
        ) from error

    wanted = Wanted(
        workers.kind,
        workers.count,
        profile=profile,
        memory_bytes=memory_bytes or profile.worker_memory_bytes,
        scratch=scratch,
        log_dir=log_dir,
        settings=WORKER_SETTINGS,
    )
    with worker_jobs(wanted) as cluster, Client(cluster, set_as_default=False) as client:
        wait_for_first(cluster, timeout_s=60 * profile.queue_wait_min, stop=stop)
        yield client


@contextmanager
def _running(address: str, stop: threading.Event) -> Iterator[Client]:
    from distributed import Client
    from distributed.security import Security

    security: Any = None
    if address.startswith("tls://"):
        security = Security(require_encryption=True)
        if security.tls_ca_file is None or security.tls_client_cert is None:
            raise UsageError(
                f"{address} needs certificates: set distributed.comm.tls.ca-file, .client.cert and "
                ".client.key in Dask's configuration (or DASK_DISTRIBUTED__COMM__TLS__CA_FILE and so on)."
            )
    try:
        client = Client(address, security=security, timeout=CONNECT_TIMEOUT_S, set_as_default=False)
    except Exception as error:
        said = " ".join(str(error).split())[:200]
        raise ResourceError(f"no Dask scheduler answers at {address} ({said}). Is it running?") from error
    with client:
        deadline = time.monotonic() + START_TIMEOUT_S
        while n_workers(client) == 0:
            if time.monotonic() > deadline:
                raise ResourceError(
                    f"the scheduler at {address} has had no worker for {START_TIMEOUT_S} s: "
                    f"start some with 'dask worker {address}'."
                )
            # Not stop.wait: the signal handler sets stop in this same thread, and could find it locked.
            time.sleep(0.5)
            if stop.is_set():
                raise Stopped(STOPPED)
        yield client


@contextmanager
def _deaf_to_interrupts() -> Iterator[None]:
    """Let whatever is started meanwhile never see a SIGINT; one that comes meanwhile is kept for afterwards.

    A Ctrl-C in a terminal reaches the whole process group, and what becomes of it is the driver's to decide.
    Threads and processes inherit the signal mask of the thread that starts them: a worker is deaf from its first
    instruction, and so is one that takes its place later, for Dask's thread that starts it is deaf too.
    """
    resource_tracker.ensure_running()  # else the first worker's start does it, and that lifts the mask
    if not hasattr(signal, "pthread_sigmask"):  # Windows
        yield
        return
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


@contextmanager
def _environment_restored() -> Iterator[None]:
    """Undo what Dask's nanny leaves in this process (OMP_NUM_THREADS=1 and others)."""
    import dask

    names = [*dask.config.get("distributed.nanny.pre-spawn-environ"), "PYTHONHASHSEED", "__DASK_PARENT_PID"]
    before = {name: os.environ.get(name) for name in names}
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                os.environ.pop(name, None)
            else:
                os.environ[name] = value
