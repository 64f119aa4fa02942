"""One node that may die at any moment: commands in forked processes, which start at once.

Blocks are computed in the process of the command itself: when it is killed, everything is gone at once, as in a power
cut. Whoever imports this must not have started threads.
"""

from __future__ import annotations

import hashlib
import os
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import psutil
import tdenoise_pipeline.apply.apply
import tdenoise_pipeline.archive.verify
import tdenoise_pipeline.ingest.ingest_many  # noqa: F401  (imported once, and not in every forked command)
import torch
import torch._dynamo  # an optimiser imports it, which takes two seconds
from small import TINY, counts, model_folder, movie_store, network
from tdenoise_pipeline.cli import command_line
from tdenoise_pipeline.files import fault_points
from tdenoise_pipeline.runs import paths
from tdenoise_pipeline.step_control import Control
from tdenoise_pipeline.train import training_session
from tdenoise_pipeline.workers import driver

SHAPE = (130, 12, 14)  # 5 shards


def drive_here(
    connect: Any, plugin: Any, function: Any, items: Sequence[Any], remaining: Any, control: Control, *_: Any
) -> Iterator[driver.Outcome[Any]]:
    """In place of `driver.drive`: every block in this very process."""
    for number, item in enumerate(items):
        control.check("apply")
        error: Exception | None = None
        try:
            function(item)
        except Exception as caught:  # noqa: BLE001  (as a worker does)
            error = caught
        yield driver.Outcome(item, error, len(items) - number - 1)


def fork(function: Callable[[], Any], log: Path | None = None) -> int:
    """Call a function in a process of its own; its pid. Its exit code is the result, or 1 after an error."""
    pid = os.fork()
    if pid:
        return pid
    code = 1
    try:
        os.setsid()
        if log is not None:
            handle = os.open(log, os.O_CREAT | os.O_WRONLY | os.O_APPEND)
            os.dup2(handle, 1)
            os.dup2(handle, 2)
        code = int(function() or 0)
    finally:
        os._exit(code)


def ended(pid: int) -> int:
    """Wait for a process: its exit code, or minus the signal that ended it."""
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])


def start(*words: object, fault: str | None = None, log: Path | None = None) -> int:
    """Start ``tdenoise-pipeline WORDS`` on one node; its pid."""

    def run() -> int:
        fault_points.armed = None if fault is None else fault_points.Fault.of(fault)
        return here(*words)

    return fork(run, log)


def here(*words: object) -> int:
    """Run ``tdenoise-pipeline WORDS`` in this process, which does nothing else afterwards."""
    driver.drive = drive_here  # type: ignore[assignment]
    training_session.CHECKPOINT_S = -1.0  # at every validation
    return command_line.main([*map(str, words), "-q"])


def command(*words: object, fault: str | None = None, log: Path | None = None) -> int:
    """The same, and wait for it."""
    return ended(start(*words, fault=fault, log=log))


def stopped(pid: int) -> bool:
    """Wait until a process has stopped (True) or ended (False), which is still to be waited for."""
    while (status := psutil.Process(pid).status()) != psutil.STATUS_STOPPED:
        if status == psutil.STATUS_ZOMBIE:
            return False
        time.sleep(0.005)
    return True


class Node:
    """A folder with a raw movie, and the commands of every step with their undisturbed results."""

    def __init__(self, folder: Path, shape: tuple[int, int, int] = SHAPE) -> None:
        self.folder = folder
        folder.mkdir(parents=True, exist_ok=True)

        def make() -> None:
            movie_store(folder, counts(shape), frame_time=0.01)
            model_folder(folder / "random")
            gamma = network(replace(TINY, head="gamma"))
            assert gamma.spread is not None
            torch.nn.init.normal_(gamma.spread.weight)  # a variance that differs from pixel to pixel
            model_folder(folder / "gamma", gamma)

        assert ended(fork(make)) == 0
        self.raw, self.movie = folder / "raw.npy", folder / "movie.zarr"
        self.random, self.gamma = folder / "random", folder / "gamma"
        self.expected: dict[str, dict[str, str]] = {}
        for step in ("ingest", "apply"):
            assert command(*self.words(step, folder / f"undisturbed-{step}")) == 0
            self.expected[step] = contents(folder / f"undisturbed-{step}")

    def words(self, step: str, output: Path) -> list[object]:
        """The command of a step."""
        if step == "ingest":
            return ["ingest", self.raw, "-o", output, "--frame-time", "10ms"]
        if step in ("apply", "share", "variance"):
            model = self.gamma if step == "variance" else self.random
            more = {"apply": [], "share": ["--share", "0/1"], "variance": ["--variance"]}[step]
            return ["apply", self.movie, "--model", model, "-o", output, "--ensemble", "1", *more]
        start = ["--from", self.random, "--device", "cpu", "--seed", "1"]
        return ["train", self.movie, "-o", output, "--steps", "3", *start]

    def expect(self, step: str) -> dict[str, str]:
        """What the undisturbed step gives; all but ingest and apply only where they are asked for."""
        if step not in self.expected:
            output = self.folder / f"undisturbed-{step}"
            assert command(*self.words(step, output)) == 0
            self.expected[step] = contents(output)
        return self.expected[step]

    def problem(self, step: str, output: Path) -> str | None:
        """What is wrong with an output that should be as the undisturbed one, with nothing left beside it."""
        if not output.exists():
            return "there is no output"
        if contents(output) != self.expect(step):
            return "another content"
        left = paths.partial_path(output).exists() or paths.work_folder(output).exists()
        return "something is left over" if left else None


def contents(path: Path) -> dict[str, str]:
    """sha256 of every file of an output; of a model only the weights, for its card tells the time it took."""
    files = [p for p in path.rglob("*") if p.is_file()]
    if (path / "card.json").exists():
        assert {p.name for p in files} == {"card.json", "metrics.jsonl", "weights.safetensors"}, files
        files = [path / "weights.safetensors"]
    return {p.relative_to(path).as_posix(): hashlib.sha256(p.read_bytes()).hexdigest() for p in sorted(files)}
