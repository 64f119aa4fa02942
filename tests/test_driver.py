"""What the driver makes of errors and deaths of its workers."""

from __future__ import annotations

import errno
import os
import signal
import threading
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NoReturn

import pytest
from tdenoise_pipeline import cluster, driver
from tdenoise_pipeline.control import Control
from tdenoise_pipeline.errors import InputError


@dataclass(frozen=True)
class Item:
    number: int


def workers(folder: Path) -> Callable[[], Any]:
    return lambda: cluster.connect(
        "local:1", scratch=folder, worker_memory_bytes=None, profile=None, log_dir=folder
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
