"""Hand out blocks to Dask workers, a bounded number at a time, and survive the loss of workers."""

from __future__ import annotations

import copy
import functools
import gc
import logging
import pickle
import queue
import time
import traceback
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, suppress
from dataclasses import dataclass
from typing import Any, Generic, Protocol, TypeVar

from ..errors import ResourceError, Stopped
from ..step_control import Control
from . import cluster

log = logging.getLogger(__name__)

IN_FLIGHT_PER_WORKER = 2  # one that runs and one that waits
REBUILDS = 3  # fresh clusters after all workers were lost
TELL_PAUSES_S = (0.2, 1.0, 5.0)  # before the workers are told the model once more
NO_WORKERS_S = 90.0  # without a worker before the cluster is built anew
NO_PROGRESS_S = 3600.0  # with workers but no block finished, before the cluster is built anew
PATIENCE = 20  # times the longest wait for a block so far, where that is more
KILLED = "it ended every worker that tried it, most likely for lack of memory"


class Numbered(Protocol):
    """Work that is told apart by its number."""

    @property
    def number(self) -> int: ...


Item = TypeVar("Item", bound=Numbered)


@dataclass(frozen=True)
class Outcome(Generic[Item]):
    """What became of one item."""

    item: Item
    error: BaseException | None
    n_left: int  # items that are not done yet


class _WorkersLost(Exception):
    """No worker is left, or the scheduler does not answer."""


def drive(
    connect: Callable[[], AbstractContextManager[Any]],
    plugin: Any,
    function: Callable[[Item], Any],
    items: Sequence[Item],
    remaining: Callable[[], list[Item]],
    control: Control,
    no_workers_s: float = NO_WORKERS_S,
    resources: dict[str, float] | None = None,
    end: Callable[[], None] | None = None,
) -> Iterator[Outcome[Item]]:
    """Run ``function`` on every item on a cluster.

    Parameters
    ----------
    connect : callable
        Returns a context manager that gives a ``distributed.Client``.
    plugin : WorkerPlugin or None
        Registered on every worker, also those that join late.
    function : callable
        Importable on the workers; does its own output and may run twice for one item.
    items : sequence
    remaining : callable
        The items that are not done, read from disk; asked after workers were lost.
    control : Control
    no_workers_s : float
        Time without any worker before the cluster is built anew [s]; long where workers wait in a queue.
    resources : dict, optional
        What an item takes of a worker's Dask resources.
    end : callable, optional
        Called in every worker once a stop is asked for, while it is at work: what it has in hand raises `Stopped`.

    Yields
    ------
    Outcome
        In the order of completion. Failed items are not tried again.

    Raises
    ------
    Stopped
        After a stop request, once the items in hand are finished or ended, or when workers are lost too often.
    """
    with _little_garbage():
        yield from _drive(connect, plugin, function, items, remaining, control, no_workers_s, resources, end)


@contextmanager
def _little_garbage() -> Iterator[None]:
    """Keep the collector from going through all blocks of a large movie again and again."""
    before = gc.get_freeze_count()
    gc.freeze()
    try:
        yield
    finally:
        if before == 0:  # else somebody else's objects would be let go, too
            gc.unfreeze()


def _drive(
    connect: Callable[[], AbstractContextManager[Any]],
    plugin: Any,
    function: Callable[[Item], Any],
    items: Sequence[Item],
    remaining: Callable[[], list[Item]],
    control: Control,
    no_workers_s: float,
    resources: dict[str, float] | None,
    end: Callable[[], None] | None,
) -> Iterator[Outcome[Item]]:
    failed: set[int] = set()
    todo = list(items)
    for attempt in range(REBUILDS + 1):
        if not todo:
            return
        try:
            with connect() as client:
                if plugin is not None:
                    _tell(client, plugin, control)
                for outcome in _drive_once(client, function, todo, control, no_workers_s, resources, end):
                    if outcome.error is not None:
                        failed.add(outcome.item.number)
                    yield outcome
            return
        except (_WorkersLost, OSError) as error:
            if isinstance(error, OSError) and not _of_connection(error):
                raise
            control.check("apply")  # the signal that ended the workers may have been meant for all of us
            todo = [item for item in remaining() if item.number not in failed]
            log.warning(
                "%s; %d blocks are left, starting new workers (%d of %d)",
                error,
                len(todo),
                attempt + 1,
                REBUILDS,
            )
    raise Stopped(
        f"all workers were lost {REBUILDS + 1} times. Look at their memory and their logs, then run the same "
        "command again to continue."
    )


def _tell(client: Any, plugin: Any, control: Control) -> None:
    """Register a plugin on all workers; again where one dies meanwhile, whose successor is told as it joins."""
    for pause_s in TELL_PAUSES_S:
        try:
            client.register_plugin(plugin)
            return
        except OSError as error:
            if not _of_connection(error):
                raise
            control.check("apply")
            log.info("a worker was lost while it received the model (%s)", error)
            time.sleep(pause_s)
    client.register_plugin(plugin)


def _drive_once(
    client: Any,
    function: Callable[[Item], Any],
    items: list[Item],
    control: Control,
    no_workers_s: float,
    resources: dict[str, float] | None,
    end: Callable[[], None] | None,
) -> Iterator[Outcome[Item]]:
    task = functools.partial(_on_worker, function)
    waiting = list(reversed(items))
    finished: queue.SimpleQueue[Any] = queue.SimpleQueue()
    running: dict[str, tuple[Any, Item]] = {}
    watch = _Watch(client, no_workers_s)
    width, n_left = 2, len(items)
    suspects: list[Item] = []
    alone = stopped = False
    while waiting or running or suspects:
        if end is not None and control.stop.is_set():
            _end_all(client, end)
            end = None
        if n_workers := watch.look(at_work=bool(running)):
            width = 1 if alone else IN_FLIGHT_PER_WORKER * n_workers
        while waiting and len(running) < width and not control.stop.is_set():
            item = waiting.pop()
            future = client.submit(task, item, pure=False, resources=resources)
            running[future.key] = (future, item)
            future.add_done_callback(finished.put)
        if not running:
            control.check("apply")
            # Dask blames all that a lost worker had in hand. If that is more than one, each is tried by itself.
            alone, width = len(suspects) > 1, 1
            waiting, suspects = suspects, []
            if not alone:
                yield from (Outcome(item, RuntimeError(KILLED), n_left) for item in waiting)
                return
            continue
        try:
            future = finished.get(timeout=0.5)
        except queue.Empty:
            continue
        watch.note_finished()
        _, item = running.pop(future.key)
        if future.status in ("cancelled", "lost"):
            raise _WorkersLost("the scheduler was lost")
        error = future.exception() if future.status == "error" else None
        future.release()
        if isinstance(error, Stopped) and control.stop.is_set():
            stopped = True
            continue
        if error is None:
            n_left -= 1
        elif type(error).__name__ == "KilledWorker":
            if not alone:
                suspects.append(item)
                continue
            error = RuntimeError(KILLED)
        yield Outcome(item, error, n_left)
    if stopped:  # of what was in hand, not all is done
        control.check("apply")


def _end_all(client: Any, end: Callable[[], None]) -> None:
    """Tell all workers, while they compute; one that does not hear it finishes what it has in hand."""
    with suppress(OSError, TimeoutError, RuntimeError, ValueError):
        client.run(end, on_error="ignore")


class _Watch:
    """Tells when workers are lost: none is there, or none finishes anything, for too long."""

    def __init__(self, client: Any, no_workers_s: float) -> None:
        self._client = client
        self._no_workers_s = no_workers_s
        self._heard = self._moved = time.monotonic()  # of a worker, and that a block was finished
        self._longest = self._looked = 0.0

    def look(self, at_work: bool) -> int:
        """Number of workers; 0 also where it was asked for just now.

        Raises
        ------
        ResourceError
            If workers that were lost are not replaced any more.
        _WorkersLost
        """
        now = time.monotonic()
        if now - self._looked <= 1.0:  # not per item: it asks the scheduler
            return 0
        self._looked = now
        n_workers = _count_workers(self._client)
        if n_workers > 0:
            self._heard = now
        elif (why := cluster.given_up(self._client)) is not None:
            raise ResourceError(why)
        elif now - self._heard > self._no_workers_s:
            raise _WorkersLost(f"there has been no worker for {self._no_workers_s:.0f} s")
        if at_work and n_workers > 0 and now - self._moved > max(NO_PROGRESS_S, PATIENCE * self._longest):
            raise _WorkersLost(f"no block was finished for {now - self._moved:.0f} s")
        return n_workers

    def note_finished(self) -> None:
        """A block was finished."""
        self._heard = time.monotonic()
        self._longest = max(self._longest, self._heard - self._moved)
        self._moved = self._heard


def _on_worker(function: Callable[[Item], Any], item: Item) -> None:
    """Call it, and let an error leave the worker in a form that arrives, its traceback as a note.

    Dask sends an error with its traceback. Where one of them cannot be packed or unpacked, nothing arrives, and the
    driver would wait for ever.
    """
    try:
        function(item)
        return
    except Exception as error:  # noqa: BLE001  (whatever it is, the driver is told)
        note = traceback.format_exc()
        portable = _portable(error)
    portable.add_note(note)
    logging.getLogger("distributed.worker").addFilter(_is_news)
    raise portable  # not above, where the old error would become its context, and go with it


def _portable(error: Exception) -> Exception:
    """The same error on its own, or what it says where it cannot be packed."""
    error.__cause__ = error.__context__ = error.__traceback__ = None
    try:
        pickle.dumps(error)
        same = copy.copy(error)  # as it is made anew where it is unpacked
    except Exception:  # noqa: BLE001  (whatever its own methods raise)
        same = None
    if type(same) is type(error) and str(same) == str(error):
        return error
    return RuntimeError(f"{type(error).__name__}: {error}")


def _of_connection(error: OSError) -> bool:
    """Whether a connection broke, to a worker that died or to the scheduler: Dask's errors are `OSError` too."""
    from distributed.comm import CommClosedError
    from distributed.core import RPCClosed

    broken = (CommClosedError, RPCClosed, ConnectionError, TimeoutError)
    return isinstance(error, broken) or str(error).startswith("Timed out trying to connect")


def _is_news(record: logging.LogRecord) -> bool:
    """Not what Dask logs of an error that the driver is told, too."""
    return not record.getMessage().startswith("Compute Failed")


def _count_workers(client: Any) -> int:
    try:
        return cluster.n_workers(client)
    except (OSError, TimeoutError, RuntimeError):
        return 0
