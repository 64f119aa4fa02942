"""What the driver makes of errors and deaths of its workers."""

from __future__ import annotations

import errno
import logging
import os
import signal
import tempfile
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NoReturn

import pytest
from distributed import WorkerPlugin
from distributed.comm import CommClosedError
from distributed.core import RPCClosed
from tdenoise_pipeline.cli.command_line import _explain
from tdenoise_pipeline.errors import InputError, Stopped
from tdenoise_pipeline.settings.workers import Workers
from tdenoise_pipeline.step_control import Control
from tdenoise_pipeline.workers import cluster, driver


@dataclass(frozen=True)
class Item:
    number: int


def workers(folder: Path) -> Callable[[], Any]:
    return lambda: cluster.connect(
        Workers("local", 1), scratch=folder, worker_memory_bytes=None, profile=None, log_dir=folder
    )


class NeedsTwoError(Exception):
    """Can be packed but not unpacked: its own arguments are not those of its base."""

    def __init__(self, what: str, where: str) -> None:
        super().__init__(f"{what} at {where}")


class HoldsALockError(Exception):
    """Cannot be packed."""

    def __init__(self) -> None:
        super().__init__("busy")
        self.lock = threading.Lock()


def too_deep() -> NoReturn:
    too_deep()


def fail(item: Item) -> None:
    if item.number == 0:
        too_deep()
    if item.number == 1:
        raise NeedsTwoError("hot pixel", "3, 4")
    if item.number == 2:
        raise HoldsALockError
    if item.number == 3:
        raise OSError(errno.ENOSPC, "No space left on device")
    if item.number == 4:
        try:
            raise HoldsALockError
        except HoldsALockError as error:
            raise InputError("m.zarr", "is broken") from error


@dataclass(frozen=True)
class Deadly:
    number: int
    log: Path


def die(item: Deadly) -> None:
    if item.number == 0:
        with item.log.open("a") as file:
            file.write("x")
        os.kill(os.getpid(), signal.SIGKILL)


_ENDED: list[bool] = []  # in a worker


def end() -> None:
    _ENDED.append(True)


def wait_for_the_end(item: Item) -> None:
    while not _ENDED:
        time.sleep(0.02)
    raise Stopped("ended")


def test_a_stop_reaches_workers_while_they_compute_and_what_they_end_is_no_failure(tmp_path: Path) -> None:
    control = Control()
    timer = threading.Timer(1.0, control.stop.set)
    timer.start()
    outcomes = driver.drive(
        workers(tmp_path), None, wait_for_the_end, [Item(n) for n in range(5)], list, control, end=end
    )
    with pytest.raises(Stopped, match="run the same command again"):
        assert not list(outcomes)
    timer.join()


def test_only_the_block_that_ends_workers_is_given_up(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(driver, "IN_FLIGHT_PER_WORKER", 20)  # the more wait beside it, the more are blamed
    items = [Deadly(number, tmp_path / "deaths") for number in range(20)]
    outcomes = driver.drive(workers(tmp_path), None, die, items, list, Control())
    errors = {outcome.item.number: outcome.error for outcome in outcomes}

    assert str(errors.pop(0)) == driver.KILLED
    assert errors == dict.fromkeys(range(1, 20))


def test_every_error_of_a_worker_arrives_and_only_there(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    items = [Item(number) for number in range(6)]
    outcomes = driver.drive(workers(tmp_path), None, fail, items, list, Control())
    errors = {outcome.item.number: outcome.error for outcome in outcomes}

    assert len(errors) == 6
    assert isinstance(errors[0], RecursionError)
    assert str(errors[1]) == "NeedsTwoError: hot pixel at 3, 4"
    assert str(errors[2]) == "HoldsALockError: busy"
    assert isinstance(errors[3], OSError)
    assert errors[3].errno == errno.ENOSPC
    assert isinstance(errors[4], InputError)
    assert str(errors[4]) == "m.zarr: is broken"
    assert errors[5] is None
    assert "in too_deep" in errors[0].__notes__[0]
    assert "in fail" in errors[1].__notes__[0]
    assert "Traceback" not in capfd.readouterr().err


def test_a_worker_that_dies_while_it_is_told_the_model_is_replaced(tmp_path: Path) -> None:
    class Plugin(WorkerPlugin):  # type: ignore[misc]
        name = "deadly"

        def __init__(self, log: Path) -> None:
            self.log = log

        def setup(self, worker: object) -> None:
            if not self.log.exists():
                self.log.touch()
                os.kill(os.getpid(), signal.SIGKILL)

    items = [Item(5), Item(6)]
    outcomes = driver.drive(
        workers(tmp_path), Plugin(tmp_path / "told"), fail, items, lambda: items, Control(), resources=None
    )
    assert sorted((outcome.item.number, outcome.error) for outcome in outcomes) == [(5, None), (6, None)]
    assert (tmp_path / "told").exists()


class Told:
    """Stands in for a client whose worker cannot be told anything."""

    def __init__(self, error: Exception, before: Callable[[], None] = lambda: None) -> None:
        self.error, self.before = error, before

    def __enter__(self) -> Told:
        return self

    def __exit__(self, *_: object) -> None:
        return None

    def register_plugin(self, plugin: object) -> None:
        self.before()
        raise self.error


def test_a_signal_to_the_whole_group_stops_cleanly_also_while_workers_are_told_the_model() -> None:
    control = Control()
    closed = CommClosedError("in <TLS (closed) ConnectionPool.register_worker_plugin>: Stream is closed")
    client = Told(closed, control.stop.set)
    with pytest.raises(Stopped, match="run the same command again"):
        list(driver.drive(lambda: client, object(), fail, [Item(1)], lambda: [Item(1)], control))


def test_connections_that_break_again_and_again_end_the_run_and_do_not_fail_it(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(driver, "TELL_PAUSES_S", (0.0, 0.0))
    for error in (
        CommClosedError("closed"),
        RPCClosed("closed"),
        ConnectionResetError(104, "reset"),
        TimeoutError(),
    ):
        with pytest.raises(Stopped, match="all workers were lost"):
            list(
                driver.drive(lambda e=error: Told(e), object(), fail, [Item(1)], lambda: [Item(1)], Control())
            )
    assert _explain(CommClosedError("closed"))[0] == Stopped.exit_code
    assert "path" not in _explain(CommClosedError("closed"))[1]


def test_an_error_of_the_model_that_workers_are_told_is_not_taken_for_a_lost_worker() -> None:
    for error in (PermissionError(13, "Permission denied", "weights"), InputError("m", "is broken")):
        with pytest.raises(type(error)):
            list(driver.drive(lambda e=error: Told(e), object(), fail, [Item(1)], list, Control()))


def test_workers_leave_nothing_in_the_folder_for_temporary_files(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "tmp").mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "tmp"))
    outcomes = driver.drive(workers(tmp_path / "scratch"), None, fail, [Item(5)], list, Control())
    assert [outcome.error for outcome in outcomes] == [None]
    assert not list((tmp_path / "tmp").iterdir())
    logging.getLogger("distributed.nanny").warning("Worker process still alive after 4.0 seconds, killing")
    assert "killing" not in capfd.readouterr().err
