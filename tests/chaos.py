"""Anything that can happen to a run, in any order; `test_reliability` runs this in a process without threads.

The invariant: a reader sees nothing, or the content of the undisturbed run.
"""

from __future__ import annotations

import os
import shutil
import signal
import tempfile
from pathlib import Path

from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule
from tdenoise_pipeline.files import fault_points
from tdenoise_pipeline.runs import paths
from trials import Node, command, contents, ended, start, stopped

FOLDER = tempfile.TemporaryDirectory(prefix="tdenoise-chaos-")
NODE = Node(Path(FOLDER.name))
LOG = NODE.folder / "log"
EXAMPLES = int(os.environ.get("TDENOISE_CHAOS", "4"))
ANY = st.sampled_from([p for p in fault_points.POINTS if not p.startswith(("checkpoint", "model", "raw"))])
WHAT = {"kill": {-signal.SIGKILL, 0}, "ENOSPC": {0, 1, 5}, "EIO": {0, 1}}


class Chaos(RuleBasedStateMachine):
    """One output, which somebody wants made; ``damaged`` while it is finished and broken."""

    @initialize(step=st.sampled_from(["ingest", "apply", "variance"]))
    def choose(self, step: str) -> None:
        self.step, self.damaged, self.paused = step, False, None
        self.expected = NODE.expect(step)
        self.output = Path(tempfile.mkdtemp(dir=NODE.folder)) / "out"
        self.words = NODE.words(step, self.output)
        source = ["--raw", NODE.raw]
        if step != "ingest":
            source = ["--movie", NODE.movie, "--model", NODE.gamma if step == "variance" else NODE.random]
        self.repair = ["verify", self.output, "--repair", *source]

    def teardown(self) -> None:
        if getattr(self, "output", None) is None:
            return
        self.end_paused()
        if not self.damaged:
            assert command(*self.words, log=LOG) == 0
            assert NODE.problem(self.step, self.output) is None
        shutil.rmtree(self.output.parent)

    def end_paused(self, how: int = signal.SIGKILL) -> int | None:
        if self.paused is None:
            return None
        os.kill(self.paused, how)
        code, self.paused = ended(self.paused), None
        return code

    @precondition(lambda self: self.paused is None and not self.damaged)
    @rule(point=ANY, k=st.integers(1, 5), what=st.sampled_from(["kill", "kill", "ENOSPC", "EIO"]))
    def start(self, point: str, k: int, what: str) -> None:
        there = self.output.exists()
        if what != "kill":  # errors of the disk, where the disk is touched
            point = "shard.synced" if k % 2 else "marker.synced"
        code = command(*self.words, fault=f"{point}:{k}:{what}", log=LOG)
        assert code in WHAT[what] and (not there or self.output.exists()), code

    @precondition(lambda self: self.paused is None and not self.damaged and not self.output.exists())
    @rule(k=st.integers(1, 4))
    def pause(self, k: int) -> None:
        pid = start(*self.words, fault=f"marker.synced:{k}:stop", log=LOG)
        if stopped(pid):
            self.paused = pid
        else:
            assert ended(pid) == 0, "its markers were there already"

    @precondition(lambda self: self.paused is not None)
    @rule()
    def second_driver(self) -> None:
        assert command(*self.words, log=LOG) == 6
        assert command(*self.repair, log=LOG) == 6

    @precondition(lambda self: self.paused is not None)
    @rule()
    def kill(self) -> None:
        assert self.end_paused() == -signal.SIGKILL

    @precondition(lambda self: self.paused is not None)
    @rule()
    def go_on(self) -> None:
        assert self.end_paused(signal.SIGCONT) == 0

    @precondition(lambda self: self.paused is None and not self.damaged)
    @rule()
    def resume(self) -> None:
        begun = paths.work_folder(self.output) / "command.json"
        code = command("resume", self.output, log=LOG)
        if begun.exists() or code:
            assert code == 3 and not self.output.exists(), code

    @precondition(lambda self: self.output.exists() and not self.damaged and self.paused is None)
    @rule(how=st.sampled_from(["flip", "delete", "cut", "swap"]), n=st.integers(0, 10**6))
    def corrupt(self, how: str, n: int) -> None:
        shards = sorted(p for p in self.output.glob("*/c/*/*/*") if p.is_file())
        file = shards[n % len(shards)]
        data = file.read_bytes()
        if how == "delete":
            file.unlink()
        elif how == "cut":
            file.write_bytes(data[: n % len(data)])
        elif how == "swap":
            other = shards[(n + 1) % len(shards)]
            file.write_bytes(other.read_bytes())
            other.write_bytes(data)
        else:
            file.write_bytes(
                data[: n % len(data)] + bytes([data[n % len(data)] ^ 1]) + data[n % len(data) + 1 :]
            )
        self.damaged = True

    @precondition(lambda self: self.output.exists())
    @rule()
    def verify(self) -> None:
        assert command("verify", self.output, "--deep", log=LOG) == (4 if self.damaged else 0)

    @precondition(lambda self: self.damaged)
    @rule(point=ANY, k=st.integers(1, 3))
    def repair_killed(self, point: str, k: int) -> None:
        code = command(*self.repair, fault=f"{point}:{k}", log=LOG)
        assert code in (0, -signal.SIGKILL), code
        # Killed between the two renames, nothing is there to read; killed behind them, the store is whole.
        if not self.output.exists() or self.content() == self.expected:
            assert command(*self.repair, log=LOG) == 0
            self.damaged = False

    @precondition(lambda self: self.damaged)
    @rule()
    def repaired(self) -> None:
        assert command(*self.repair, log=LOG) == 0
        self.damaged = False
        assert NODE.problem(self.step, self.output) is None

    def content(self) -> dict[str, str]:
        return contents(self.output)

    @invariant()
    def none_or_all(self) -> None:
        if getattr(self, "output", None) is not None and self.output.exists() and not self.damaged:
            assert self.content() == self.expected


TestChaos = Chaos.TestCase
TestChaos.settings = settings(
    max_examples=EXAMPLES,
    stateful_step_count=8,
    deadline=None,
    database=None,
    derandomize=EXAMPLES < 10,
    suppress_health_check=list(HealthCheck),
)
