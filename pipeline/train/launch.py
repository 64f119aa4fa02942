"""Processes that train together: those started here for the GPUs of a machine, by Slurm, or by torchrun.

They exchange gradients through sockets that nobody else needs to reach. On one machine these are on loopback and
find each other by a file; between machines, the first process listens at its node's address.
"""

from __future__ import annotations

import contextlib
import logging
import multiprocessing
import os
import signal
import socket
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from datetime import timedelta
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import torch.distributed as dist
from torch.distributed import FileStore, TCPStore  # type: ignore[attr-defined]

from tdenoise.training.process_group import ALONE, Team

from ..errors import PipelineError, Stopped, UsageError
from ..step_control import Control

log = logging.getLogger(__name__)

TIMEOUT = timedelta(minutes=30)  # a validation, or a file system that hangs for a while
LEAVE_S = 20.0  # for a process to say why it ended
FIRST_PORT, N_PORTS = 15000, 15000  # below those that kernels hand out

Work = Callable[[Control, Team], Any]


@contextlib.contextmanager
def team(n_processes: int | str, most: int, work: Work) -> Iterator[Team]:
    """Join the processes that train together, after starting the others where that is ours to do.

    Parameters
    ----------
    n_processes : int or str
        Processes on this machine; ``"slurm"`` if every task of this job step runs the same command. Under torchrun
        it is not looked at.
    most : int
        Patches of a batch; more processes would have nothing to do.
    work : callable
        What the other processes that are started here do. Pickled, for its new process alone.

    Yields
    ------
    Team

    Raises
    ------
    UsageError
        If there are more processes than patches, or no Slurm step.
    PipelineError
        If another process fails, with what it said.
    """
    if "TORCHELASTIC_RUN_ID" in os.environ:
        names = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE")
        joined: AbstractContextManager[Team] = _joined(
            Team(*(int(os.environ[name]) for name in names)), None, most
        )
    elif n_processes == "slurm":
        joined = _slurm(most)
    elif int(n_processes) > 1:
        joined = _local(int(n_processes), most, work)
    else:
        joined = contextlib.nullcontext(ALONE)
    with joined as member:
        yield member


@contextlib.contextmanager
def _joined(member: Team, store: Any, most: int) -> Iterator[Team]:
    if member.size > most:
        raise UsageError(
            f"{member.size} processes cannot share a batch of {most} patches: use at most {most}."
        )
    backend = "cpu:gloo,cuda:nccl" if dist.is_nccl_available() else "gloo"
    place = {} if store is None else {"store": store, "rank": member.rank, "world_size": member.size}
    dist.init_process_group(backend, timeout=TIMEOUT, **place)
    try:
        yield member
    except ConnectionError as error:
        raise PipelineError(f"process {member.rank} of the training is alone: {error}") from error
    finally:
        dist.destroy_process_group()


@contextlib.contextmanager
def _slurm(most: int) -> Iterator[Team]:
    """The tasks of a job step; the first listens on its node, for tasks of the job alone."""
    try:
        number, total, local = (
            int(os.environ[n]) for n in ("SLURM_PROCID", "SLURM_STEP_NUM_TASKS", "SLURM_LOCALID")
        )
        address, job = os.environ["SLURM_LAUNCH_NODE_IPADDR"], int(os.environ["SLURM_JOB_ID"])
    except (KeyError, ValueError) as error:
        raise UsageError(
            f"--processes slurm is for commands that srun starts ({error}). Use submit, or --processes N."
        ) from None
    # Another port after each requeue, should one be taken.
    restarts = int(os.environ.get("SLURM_RESTART_COUNT", 0))
    port = FIRST_PORT + (job + 7919 * restarts) % N_PORTS
    with contextlib.ExitStack() as stack:
        listener: Any = {}
        if number == 0:
            server = stack.enter_context(socket.create_server((address, port)))
            listener = {"master_listen_fd": os.dup(server.fileno())}  # the store closes its own
        store = TCPStore(address, port, total, number == 0, TIMEOUT, **listener)
        yield stack.enter_context(_joined(Team(number, total, local), store, most))


@contextlib.contextmanager
def _local(n_processes: int, most: int, work: Work) -> Iterator[Team]:
    """This process and others that it starts; when it ends, so do they."""
    spawn = multiprocessing.get_context("spawn")
    with _on_loopback(), tempfile.TemporaryDirectory(prefix="tdenoise-team-") as folder:
        file = str(Path(folder) / "store")
        others, pipes = [], []
        for rank in range(1, n_processes):
            receiver, sender = spawn.Pipe(duplex=False)
            member = Team(rank, n_processes, rank, n_processes)
            other = spawn.Process(target=_other, args=(member, file, most, work, sender), daemon=True)
            with _deaf_to_interrupts():
                other.start()
            sender.close()
            others.append(other)
            pipes.append(receiver)
        try:
            first = Team(0, n_processes, 0, n_processes)
            with _joined(first, FileStore(file, n_processes), most):
                yield first
        except PipelineError as error:
            if isinstance(error.__cause__, ConnectionError):
                raise _reason(others, pipes) or error from None
            raise
        else:
            for other in others:
                other.join(LEAVE_S)
        finally:
            for other in others:
                other.kill()  # it holds nothing and writes nothing
                other.join()


def _other(member: Team, file: str, most: int, work: Work, pipe: Connection) -> None:
    """Life of a process that was started here. What goes wrong, it tells the first."""
    control = Control()
    for name in ("SIGTERM", "SIGUSR1"):
        if (number := getattr(signal, name, None)) is None:
            continue  # Windows
        signal.signal(number, lambda *_: control.stop.set())
    threading.Thread(target=_end_with_parent, daemon=True).start()
    try:
        with _on_loopback(), _joined(member, FileStore(file, member.size), most):
            work(control, member)
    except Stopped as error:
        raise SystemExit(error.exit_code) from None
    except Exception as error:  # noqa: BLE001 - whatever it is, the first process says it and ends
        lost = isinstance(error.__cause__, ConnectionError)
        told = str(error) if isinstance(error, PipelineError) else f"{type(error).__name__}: {error}"
        if not lost:
            pipe.send_bytes(told.encode())
        raise SystemExit(getattr(error, "exit_code", 1)) from None


def _reason(others: list[Any], pipes: list[Connection]) -> PipelineError | None:
    """What the process that failed had to say."""
    deadline = time.monotonic() + LEAVE_S
    while time.monotonic() < deadline:
        for number, (other, pipe) in enumerate(zip(others, pipes, strict=True), start=1):
            with contextlib.suppress(EOFError):
                if pipe.poll():
                    said = pipe.recv_bytes().decode()
                    other.join(LEAVE_S)
                    error = PipelineError(f"process {number} of the training: {said}")
                    error.exit_code = other.exitcode or 1
                    return error
            if other.exitcode is not None and other.exitcode < 0:
                return PipelineError(
                    f"process {number} of the training was killed by signal {-other.exitcode}; memory may have "
                    "run out. Run the same command again to continue."
                )
        time.sleep(0.1)
    return None


def _end_with_parent() -> None:
    parent = os.getppid()
    while os.getppid() == parent:
        time.sleep(1)
    os._exit(1)  # the main thread may wait in a message that never comes


@contextlib.contextmanager
def _on_loopback() -> Iterator[None]:
    """Let torch listen where only this machine can connect."""
    names = ("GLOO_SOCKET_IFNAME", "NCCL_SOCKET_IFNAME")
    before = {name: os.environ.get(name) for name in names}
    loopback = next(name for _, name in socket.if_nameindex() if name in ("lo", "lo0"))
    os.environ |= dict.fromkeys(names, loopback)
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                del os.environ[name]
            else:
                os.environ[name] = value


@contextlib.contextmanager
def _deaf_to_interrupts() -> Iterator[None]:
    """A Ctrl-C is for the first process to handle; processes inherit the mask they are started with."""
    if not hasattr(signal, "pthread_sigmask"):  # Windows
        yield
        return
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)
