"""Who does the blocks of an output: Dask workers, or this process as one of several that share the work."""

from __future__ import annotations

import functools
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

from ..runs.progress import OutputRun
from ..runs.shared_run import SharedRun
from ..settings.workers import Workers
from ..slurm.site_profile import load_profile
from ..step_control import Control
from . import cluster, driver, leave_early
from .driver import Item, Outcome
from .shares import Share, work

Connect = Callable[..., AbstractContextManager[Any]]  # starts workers; may be given the folder of their files


class Executor(Protocol):
    """Opens the run of an output, and does its blocks."""

    def open_run(
        self,
        output: Path,
        plan: dict[str, Any],
        inputs: Sequence[Path],
        *,
        force: bool,
        command: Any,
        stop: threading.Event,
    ) -> OutputRun:
        """The right to build the output; see `OutputRun`."""
        ...

    def do(
        self,
        run: OutputRun,
        items: Sequence[Item],
        remaining: Callable[[], list[Item]],
        task: Callable[..., Any],
        plugin: Any,
        control: Control,
        end: Callable[[], None],
    ) -> Iterator[Outcome[Item]]:
        """Do what has no marker yet.

        Parameters
        ----------
        run : OutputRun
            That of `open_run`, entered.
        items : sequence
            All of them.
        remaining : callable
            Those that are not done, read from the disk.
        task : callable
            Does one of them, and may run twice for it. Where this process does it, it is given ``stopping``, which says
            whether a stop was asked for.
        plugin : WorkerPlugin
            Tells the workers of Dask the model.
        control : Control
        end : callable
            Called in every worker when a stop is asked for: the item in hand ends by raising `Stopped`.

        Yields
        ------
        Outcome
        """
        ...


@dataclass(frozen=True)
class DaskWorkers:
    """Dask workers on this machine, as jobs of a batch system, or behind a running scheduler.

    ``reconnect`` is given what starts workers, and returns what is used instead, such as workers that are there.
    """

    workers: Workers
    worker_memory_bytes: int | None
    profile: Path | None
    reconnect: Callable[[Connect], Connect]

    def open_run(
        self,
        output: Path,
        plan: dict[str, Any],
        inputs: Sequence[Path],
        *,
        force: bool,
        command: Any,
        stop: threading.Event,
    ) -> OutputRun:
        """The right to build the output, of this driver alone."""
        return OutputRun(output, plan, inputs, force=force, command=command, stop=stop)

    def do(
        self,
        run: OutputRun,
        items: Sequence[Item],
        remaining: Callable[[], list[Item]],
        task: Callable[..., Any],
        plugin: Any,
        control: Control,
        end: Callable[[], None],
    ) -> Iterator[Outcome[Item]]:
        """Hand out what has no marker yet."""
        # Worker jobs that were preempted wait in the queue again; they must not lose their place in it.
        patience, resources = driver.NO_WORKERS_S, None
        if self.workers.system is not None:
            resources = {leave_early.TOKEN: 1.0}  # which a worker that is about to leave has no more
            patience = 60.0 * load_profile(self.profile, "workers").queue_wait_min

        def connect(folder: Path = run.folder) -> AbstractContextManager[Any]:
            return cluster.connect(
                self.workers,
                scratch=folder / "scratch",
                worker_memory_bytes=self.worker_memory_bytes,
                profile=self.profile,
                log_dir=folder / "logs",
                stop=control.stop,
            )

        done = run.done_numbers()
        todo = [item for item in items if item.number not in done]
        return driver.drive(
            self.reconnect(connect), plugin, task, todo, remaining, control, patience, resources, end
        )


@dataclass
class SharingProcess:
    """This process, beside others that do the rest: no network, only the folder of the output."""

    share: Share
    _run: SharedRun = field(init=False)

    def open_run(
        self,
        output: Path,
        plan: dict[str, Any],
        inputs: Sequence[Path],
        *,
        force: bool,
        command: Any,
        stop: threading.Event,
    ) -> OutputRun:
        """The right to build the output together with the others; they must not record one command each."""
        self._run = SharedRun(output, plan, inputs, group=self.share.group, force=force, stop=stop)
        return self._run

    def do(
        self,
        run: OutputRun,
        items: Sequence[Item],
        remaining: Callable[[], list[Item]],
        task: Callable[..., Any],
        plugin: Any,
        control: Control,
        end: Callable[[], None],
    ) -> Iterator[Outcome[Item]]:
        """Do the items of the share, then what others have not come to."""
        # A signal is heard in this very process.
        stoppable = functools.partial(task, stopping=control.stop.is_set)
        return work(self._run, self.share, items, stoppable, control)
