"""A real, throw-away Slurm for the tests in this folder."""

from __future__ import annotations

import fcntl
import os
import random
import shutil
import socket
import subprocess
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import closing, contextmanager
from dataclasses import dataclass
from pathlib import Path

import pytest

SLURM_UP = Path(__file__).with_name("slurm_up.sh")
NODES = 2
ACCOUNTING_PORTS = (90, 91)  # above the first, as in slurm_up.sh
OVER = {"COMPLETED", "FAILED", "CANCELLED", "TIMEOUT", "NODE_FAIL", "OUT_OF_MEMORY", "BOOT_FAIL", "DEADLINE"}


@dataclass(frozen=True)
class Slurm:
    """A running Slurm; its commands find it by SLURM_CONF, which is set while the tests run."""

    folder: Path

    def jobs(self) -> dict[str, str]:
        """Name of every job that is queued or running, by job id."""
        listing = self.run("squeue", "--noheader", "--states=PENDING,RUNNING", "--format=%A %j")
        return dict(line.split(maxsplit=1) for line in listing.splitlines())

    def state(self, job_id: str) -> str:
        """State of a job, also of one that is over."""
        shown = dict(part.split("=", 1) for part in self.show(job_id).split() if "=" in part)
        return shown["JobState"]

    def show(self, job_id: str) -> str:
        """Everything Slurm knows of a job."""
        return self.run("scontrol", "show", "job", job_id)

    def cancel(self, *arguments: str) -> None:
        self.run("scancel", *arguments)

    def wait_for_job(self, job_id: str, timeout: float = 60.0) -> str:
        """Wait until a job is over; its last state."""
        return self.wait_for_state(job_id, OVER, timeout)

    def wait_for_state(self, job_id: str, states: set[str], timeout: float = 60.0) -> str:
        deadline = time.monotonic() + timeout
        while (state := self.state(job_id)) not in states:
            assert time.monotonic() < deadline, f"job {job_id} is still {state}:\n{self.show(job_id)}"
            time.sleep(0.2)
        return state

    def wait_for_log(self, file: Path, text: str, timeout: float = 60.0) -> str:
        """Wait until a log holds a text; all of the log."""
        deadline = time.monotonic() + timeout
        while text not in (log := file.read_text() if file.exists() else ""):
            assert time.monotonic() < deadline, f"{file} does not say {text!r}, but:\n{log}"
            time.sleep(0.1)
        return log

    def run(self, *command: str) -> str:
        return subprocess.run(command, capture_output=True, text=True, check=True, timeout=30).stdout


@pytest.fixture(scope="session")
def slurm() -> Iterator[Slurm]:
    """Start Slurm on free ports of this machine; install it first where that is possible."""
    with _alone():
        _install()
    with _running() as started:
        yield started


@contextmanager
def _alone() -> Iterator[None]:
    """One process at a time: two that install packages get into each other's way."""
    with (Path(tempfile.gettempdir()) / "tdenoise-slurm-install.lock").open("a") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield


def _install() -> None:
    if shutil.which("sinfo") is None:
        if os.geteuid() != 0 or shutil.which("apt-get") is None:
            _missing("Slurm is not installed, and only root on Debian or Ubuntu can install it")
        installed = subprocess.run(
            [SLURM_UP, "install"], capture_output=True, text=True, timeout=600, check=False
        )
        if installed.returncode != 0:
            _missing(f"Slurm cannot be installed: {installed.stderr[-500:]}")


@pytest.fixture
def accounted() -> Iterator[Slurm]:
    """Another Slurm, with accounts and limits: sacct answers, and jobs over a limit wait."""
    if not all(map(shutil.which, ("sinfo", "slurmdbd", "mariadbd"))):
        pytest.skip("no accounting here: SLURM_CI_ACCT=1 tests/slurm/slurm_up.sh install")
    with _running(SLURM_CI_ACCT="1") as started:
        yield started


@contextmanager
def _running(**more: str) -> Iterator[Slurm]:
    # A short path: sockets lie in it, and their names are limited to 107 characters.
    folder = Path(tempfile.mkdtemp(prefix="slurm-ci-"))
    folder.chmod(0o755)
    state = folder / "state"
    settings = {
        "SLURM_CI_DIR": str(state),
        "SLURM_CI_PORT": str(_free_ports([*range(NODES + 1), *ACCOUNTING_PORTS])),
        "SLURM_CI_NODES": str(NODES),
    }
    environment = {**os.environ, **settings, **more}
    up = subprocess.run(
        [SLURM_UP, "up"], env=environment, capture_output=True, text=True, timeout=120, check=False
    )
    with pytest.MonkeyPatch.context() as patch:
        try:
            if up.returncode != 0:
                _missing(f"Slurm does not start: {up.stderr[-1000:]}")
            patch.setenv("SLURM_CONF", str(state / "etc" / "slurm.conf"))
            yield Slurm(state)
        finally:
            subprocess.run([SLURM_UP, "down"], env=environment, capture_output=True, timeout=120, check=False)
            shutil.rmtree(folder, ignore_errors=True)


def _missing(reason: str) -> None:
    """Skip, except where Slurm is promised: a CI job that silently skips would prove nothing."""
    if os.environ.get("TDENOISE_REQUIRE_SLURM"):
        pytest.fail(reason)
    pytest.skip(reason)


def _free_ports(offsets: Sequence[int]) -> int:
    """A port such that nobody listens on those so far above it; below those that the kernel hands out."""
    for first in random.sample(range(15000, 32000, 10), 100):
        if all(_is_free(first + offset) for offset in offsets):
            return first
    raise RuntimeError("no free ports")


def _is_free(port: int) -> bool:
    with closing(socket.socket()) as probe:
        try:
            probe.bind(("127.0.0.1", port))
        except OSError:
            return False
    return True
