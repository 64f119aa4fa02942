"""Break runs in every way this machine can host, and count what went wrong.

Every case of the matrix is a function that takes a number of trials. Those named ``workers``, ``driver`` and
``everything`` kill real Dask workers and the processes of the real command; most others run a whole step in one
process that is forked, armed with a fault and killed, as in a power cut. Writes docs/notebook/reliability_counts.md.

    python benchmarks/reliability.py [--case F1 ...] [--trials N] [--minutes N] [--save] [--quick] [--seed N]
"""

from __future__ import annotations

import argparse
import contextlib
import json
import math
import os
import pickle
import random
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

os.environ.setdefault("OMP_NUM_THREADS", "1")
ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT / "tests"))

import common
import dask
import numpy as np
import psutil
import replay
from small import counts, model_folder, movie_store
from tdenoise_pipeline.cli import command_line
from tdenoise_pipeline.files import fault_points
from tdenoise_pipeline.files.sealed_json import read_json, read_sealed, write_sealed
from tdenoise_pipeline.runs import lease, paths
from trials import Node, command, contents, ended, fork, here, start

from tdenoise.network.split_blind import SplitBlind

STATE = ROOT / "benchmarks" / "results" / "reliability.json"
PAGE = ROOT / "docs" / "notebook" / "reliability_counts.md"
TRAINING = {p for p in fault_points.POINTS if p.startswith(("checkpoint", "model"))}
GIVING_BACK = {p for p in fault_points.POINTS if p.startswith("given_back")}
STORES = {p for p in fault_points.POINTS if p.startswith(("shard", "marker", "finish"))}
COMMON = STORES | {p for p in fault_points.POINTS if p.startswith("commit")}
# What each step passes on its way; "commit.replaced" only where an output is replaced. Of `apply --variance` and
# `apply --share` those that are about their own shards, markers and commit.
POINTS = {
    "ingest": [p for p in fault_points.POINTS if p not in TRAINING | GIVING_BACK | {"movie.read"}],
    "apply": [p for p in fault_points.POINTS if p not in TRAINING | {"raw.read"}],
    "train": [p for p in fault_points.POINTS if p not in STORES | GIVING_BACK | {"raw.read", "movie.read"}],
    "variance": [p for p in fault_points.POINTS if p in COMMON],
    # One that is told --force leaves an output of the same settings, which another may just have finished.
    "share": [
        p
        for p in fault_points.POINTS
        if p in (COMMON - {"commit.replaced"}) | {"output.created", "output.begun", "lease.released"}
    ],
}
assert {p for points in POINTS.values() for p in points} == set(fault_points.POINTS)
NOT_RUN = {
    "F9, F10": "needs a GPU (the fallback for a GPU that is short of memory has its own test)",
    "F14": "needs a Slurm with preemption; see the tests marked `slurm`",
    "S8": "needs two hosts and NFS; the lease is a rename of a folder, which NFS keeps atomic",
    "S13": "needs a slow file system (FUSE)",
    "B1 to B10": "bad input has its own fuzzers: `pytest tests/test_fuzz.py tests/test_array_files.py "
    "tests/test_camera_files.py tests/test_readers.py`",
    "X1 to X6, X8 to X10": "security has its own tests: `pytest tests/test_security.py tests/test_report.py "
    "tests/test_store.py tests/test_udvd.py`, and `make audit`",
}


@dataclass
class Result:
    """What came of the trials of a case."""

    name: str
    what: str
    trials: int = 0
    failures: list[str] = field(default_factory=list)
    counts: dict[str, int] = field(default_factory=dict)
    seconds: float = 0.0
    deadline: float = float("inf")

    @property
    def late(self) -> bool:
        """Whether the time of the case is over."""
        return time.monotonic() > self.deadline

    def rounds(self, trials: int) -> Iterator[int]:
        """Numbers of trials, until the time of the case is over."""
        for number in range(trials):
            if self.late:
                return
            yield number

    def check(self, holds: bool, why: str) -> None:
        """Count a trial."""
        self.trials += 1
        if not holds:
            self.failures.append(why)
            print(f"  {self.name}: {why}", flush=True)

    def count(self, name: str, n: int = 1) -> None:
        """Count something else."""
        self.counts[name] = self.counts.get(name, 0) + n


Case = Callable[[Result, Path, int, random.Random], None]
CASES: dict[str, tuple[str, int, Case]] = {}


def case(name: str, trials: int, what: str) -> Callable[[Case], Case]:
    """Put a function into the matrix."""

    def put(function: Case) -> Case:
        CASES[name] = (what, trials, function)
        return function

    return put


def main() -> int:
    """Run the cases that were asked for, and write the page."""
    options = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    options.add_argument("--case", nargs="+", choices=list(CASES), default=list(CASES))
    options.add_argument("--trials", type=int, help="instead of those of the matrix")
    options.add_argument("--minutes", type=float, default=float("inf"), help="of every case at most")
    options.add_argument("--seed", type=int, default=0)
    options.add_argument("--quick", action="store_true", help="a tenth of the trials")
    options.add_argument("--save", action="store_true", help="keep the counts and write the page")
    options.add_argument("--folder", type=Path, help="where it all happens (default: the system's)")
    chosen = options.parse_args()
    failed, first = 0, time.monotonic()
    for name in chosen.case:
        what, trials, function = CASES[name]
        trials = chosen.trials or (max(1, trials // 10) if chosen.quick else trials)
        began = time.monotonic()
        result = Result(name, what, deadline=began + 60 * chosen.minutes)
        with tempfile.TemporaryDirectory(prefix=f"tdenoise-{name}-", dir=chosen.folder) as folder:
            function(result, Path(folder), trials, random.Random(f"{chosen.seed} {name}"))
        result.seconds = round(time.monotonic() - began, 1)
        failed += len(result.failures)
        print(
            f"{name}: {result.trials} trials, {len(result.failures)} failures {result.counts or ''} "
            f"({result.seconds:.0f} s)",
            flush=True,
        )
        for why in result.failures:
            print(f"  {why}", flush=True)
        if chosen.save and result.trials:
            _keep(result)
    print(f"{len(chosen.case)} cases, {failed} failures, {(time.monotonic() - first) / 60:.1f} minutes")
    return 1 if failed else 0


def _keep(result: Result) -> None:
    """Save the counts of one case, beside those of the others, and write the page anew."""
    lock = STATE.with_suffix(".lock")
    while True:
        with contextlib.suppress(FileExistsError):
            lock.mkdir()
            break
        time.sleep(0.05)
    try:
        known: dict[str, Any] = json.loads(STATE.read_text()) if STATE.exists() else {}
        counts = {k: v for k, v in asdict(result).items() if k != "deadline"}
        known[result.name] = counts | common.circumstances()
        STATE.write_text(json.dumps(known, indent=1, sort_keys=True) + "\n")
        PAGE.write_text(page(known))
    finally:
        lock.rmdir()


def page(known: dict[str, Any]) -> str:
    """The page of counts, after its own hand-written first part."""
    head = PAGE.read_text().partition("<!-- counts -->")[0]
    lines = [
        "| case | what is done | trials | failures | also counted | command |",
        "|---|---|---|---|---|---|",
    ]
    for name, (what, _, _) in CASES.items():
        if name in known:
            r = known[name]
            also = ", ".join(f"{n} {k}" for k, n in r["counts"].items())
            again = f"`benchmarks/reliability.py --case {name}`"
            lines.append(f"| {name} | {what} | {r['trials']} | {len(r['failures'])} | {also} | {again} |")
    missing = [f"| {name} | not run here: {why} |" for name, why in NOT_RUN.items()]
    missing += [f"| {name} | not run yet |" for name in CASES if name not in known]
    table = "\n".join([*lines, "", "| case | why not |", "|---|---|", *missing])
    return f"{head}<!-- counts -->\n\n{table}\n"


# ---- real processes ------------------------------------------------------------------------------------------


class Cluster:
    """`apply` on real workers, as the command does it, on a movie of many blocks."""

    def __init__(self, folder: Path, n_frames: int = 32 * 40, workers: int = 2) -> None:
        self.folder, self.workers = folder, workers

        def make() -> None:
            movie_store(folder, counts((n_frames, 40, 44)), frame_time=0.01)
            model_folder(folder / "model")

        assert ended(fork(make)) == 0
        self.output = folder / "d.zarr"
        self.log = folder / "log"
        assert ended(self.start()) == 0, self.log.read_text()
        self.expected = contents(self.output)
        shutil.rmtree(self.output)
        self.seen: dict[str, tuple[int, int]] = {}

    def words(self) -> list[str]:
        """The command."""
        given = ["--model", str(self.folder / "model"), "-o", str(self.output)]
        return ["apply", str(self.folder / "movie.zarr"), *given, "--workers", f"local:{self.workers}", "-q"]

    def start(self, preload: Path | None = None) -> int:
        """Start it in a session of its own, its workers with a script that they run first; the pid of the driver."""

        def run() -> int:
            with dask.config.set({"distributed.worker.preload": [] if preload is None else [str(preload)]}):
                return command_line.main(self.words())

        return fork(run, self.log)

    def remember(self) -> None:
        """Note the files of all blocks that are marked now."""
        partial = paths.partial_path(self.output)
        for marker in (paths.work_folder(self.output) / "done").glob("*.json"):
            for key in read_json(marker).get("shards", {}):
                name = "denoised/c/" + key.replace(".", "/")
                with contextlib.suppress(FileNotFoundError):
                    state = (partial / name).stat()
                    self.seen.setdefault(name, (state.st_ino, state.st_mtime_ns))

    def n_marked(self) -> int:
        """Number of blocks that are marked."""
        return len(list((paths.work_folder(self.output) / "done").glob("*.json")))

    def computed_twice(self) -> int:
        """How many files of marked blocks were written again."""
        return sum(
            (s.st_ino, s.st_mtime_ns) != state
            for name, state in self.seen.items()
            if (s := (self.output / name).stat())
        )

    def judge(self, result: Result, n_kills: int) -> None:
        """Count the kills of an output that is complete now."""
        right = self.output.exists() and contents(self.output) == self.expected
        tidy = not paths.work_folder(self.output).exists()
        twice = self.computed_twice() if self.output.exists() else -1
        result.count("marked shards, remembered at kills", len(self.seen))
        result.count("of them computed twice", max(twice, 0))
        result.count("outputs compared")
        for _ in range(n_kills):
            result.check(right and tidy and twice == 0, f"right {right}, tidy {tidy}, twice {twice}")
        shutil.rmtree(self.output, ignore_errors=True)
        self.seen = {}


def workers_of(pid: int) -> list[psutil.Process]:
    """Worker processes of a driver."""
    with contextlib.suppress(psutil.Error):
        inner = psutil.Process(pid).children(recursive=True)
        return [p for p in inner if "spawn_main" in " ".join(p.cmdline())]
    return []


def alive(pid: int) -> bool:
    """Whether a child still runs; it is not waited for."""
    return psutil.Process(pid).status() != psutil.STATUS_ZOMBIE


@case("F1", 100, "kill -9 a random worker at a random time")
def workers(result: Result, folder: Path, trials: int, rng: random.Random) -> None:
    cluster = Cluster(folder)
    while result.trials < trials and not result.late:
        kills, code = 0, 75
        while code != 0:
            pid = cluster.start()
            while alive(pid):
                time.sleep(rng.uniform(0.5, 4))
                victims = workers_of(pid)
                if victims and alive(pid) and result.trials + kills < trials:
                    cluster.remember()
                    with contextlib.suppress(psutil.Error):
                        rng.choice(victims).kill()
                        kills += 1
            code = ended(pid)
            result.count(f"runs that ended with {code}")
            if code not in (0, 1, 5, 75):  # 5: a worker was killed while all were being started
                break
        cluster.judge(result, kills)


def _kill_drivers(result: Result, folder: Path, trials: int, rng: random.Random, everything: bool) -> None:
    cluster = Cluster(folder, workers=1)
    while result.trials < trials and not result.late:
        kills, code = 0, None
        while code is None:
            pid = cluster.start()
            enough = result.trials + kills >= trials or result.late
            if rng.random() < 0.7:  # while blocks are computed; else most often while workers start
                before = cluster.n_marked()
                while alive(pid) and cluster.n_marked() <= before:
                    time.sleep(0.01)
            until = time.monotonic() + rng.expovariate(1 / 1.5)
            while alive(pid) and (time.monotonic() < until or enough):
                time.sleep(0.02)
            if alive(pid):
                cluster.remember()
                if everything:
                    os.killpg(pid, signal.SIGKILL)
                else:
                    os.kill(pid, signal.SIGKILL)
                cluster.remember()
                kills += 1
                ended(pid)
            else:
                code = ended(pid)
        result.count(f"last runs that ended with {code}")
        cluster.judge(result, kills)


@case(
    "F3", 100, "kill -9 the driver (with it the scheduler, F2) at a random time; its workers live on a while"
)
def drivers(result: Result, folder: Path, trials: int, rng: random.Random) -> None:
    _kill_drivers(result, folder, trials, rng, everything=False)


@case("F4", 100, "kill -9 the driver, the scheduler and all workers at once, at a random time")
def everything(result: Result, folder: Path, trials: int, rng: random.Random) -> None:
    _kill_drivers(result, folder, trials, rng, everything=True)


@case("F5", 3, "kill -9 every worker as it starts, for 20 s")
def starting(result: Result, folder: Path, trials: int, rng: random.Random) -> None:
    cluster = Cluster(folder, 32 * 4)
    for _ in result.rounds(trials):
        pid = cluster.start()
        until, kills = time.monotonic() + 20, 0
        while time.monotonic() < until and alive(pid):
            for victim in workers_of(pid):
                with contextlib.suppress(psutil.Error):
                    victim.kill()
                    kills += 1
            time.sleep(rng.uniform(0.05, 1))
        result.count("workers killed", kills)
        code = ended(pid)
        result.count(f"runs that ended with {code}")
        while code in (5, 75):
            code = ended(cluster.start())
        cluster.judge(result, 1)


@case(
    "F8", 5, "one block kills every worker that tries it: it is named, the others are done, nothing is shown"
)
def poisonous(result: Result, folder: Path, trials: int, rng: random.Random) -> None:
    cluster = Cluster(folder, 32 * 8)
    deaths, script = folder / "deaths", folder / "poison.py"
    for _ in result.rounds(trials):
        deaths.write_text("")
        cluster.log.write_text("")
        number = rng.randrange(8)
        script.write_text(POISON.format(number=number, deaths=str(deaths)))
        code = ended(cluster.start(script))
        cluster.remember()
        named = f"first block {number}: it ended every worker" in cluster.log.read_text()
        n_deaths, n_marked, hidden = len(deaths.read_text()), cluster.n_marked(), not cluster.output.exists()
        again = ended(cluster.start())
        if not (code == 1 and named and n_deaths in (4, 8) and n_marked == 7 and hidden and again == 0):
            result.failures.append(
                f"{code}, {named}, {n_deaths} deaths, {n_marked} marked, {hidden}, {again}"
            )
        cluster.judge(result, 1)


POISON = """
import os, signal
from tdenoise_pipeline.apply import block_work

healthy = getattr(block_work, "healthy", block_work.denoise_block)  # Dask runs this twice
block_work.healthy = healthy

def poisoned(model, source, job, block, *rest):
    if block.number == {number}:
        with open({deaths!r}, "a") as file:
            file.write("x")
        os.kill(os.getpid(), signal.SIGKILL)
    return healthy(model, source, job, block, *rest)

block_work.denoise_block = poisoned
"""


@case("F6", 12, "SIGTERM, SIGUSR1 or SIGINT at a random time, every fourth time SIGINT twice")
def signals(result: Result, folder: Path, trials: int, rng: random.Random) -> None:
    cluster = Cluster(folder)
    for number in result.rounds(trials):
        which = (signal.SIGTERM, signal.SIGUSR1, signal.SIGINT, signal.SIGINT)[number % 4]
        pid = cluster.start()
        while alive(pid) and cluster.n_marked() == 0:
            time.sleep(0.05)
        time.sleep(rng.uniform(0, 1))
        cluster.remember()
        os.kill(pid, which)
        if number % 4 == 3:
            time.sleep(0.2)
            os.kill(pid, which)
        code = ended(pid)
        result.count(f"runs that ended with {code}")
        again = ended(cluster.start())
        if code not in ((130, 75, 0) if number % 4 == 3 else (75, 0)) or again != 0:
            result.failures.append(f"{which.name}: exit codes {code}, {again}")
        cluster.judge(result, 1)


@case("X7", 1, "all listening sockets of a run: loopback only, TLS, no dashboard port")
def sockets(result: Result, folder: Path, trials: int, rng: random.Random) -> None:
    cluster = Cluster(folder)
    for _ in result.rounds(trials):
        pid = cluster.start()
        while alive(pid) and cluster.n_marked() == 0:
            time.sleep(0.05)
        listening = set()
        for process in [psutil.Process(pid), *workers_of(pid)]:
            with contextlib.suppress(psutil.Error):
                listening |= {c.laddr for c in process.net_connections() if c.status == psutil.CONN_LISTEN}
        plain = []
        for address in listening:
            with contextlib.suppress(OSError), socket.create_connection(tuple(address), timeout=2) as s:
                s.settimeout(1)
                with contextlib.suppress(OSError):
                    s.sendall(b"GET / HTTP/1.0\r\n\r\n")
                    if s.recv(8)[:5] == b"HTTP/":
                        plain.append(address)
        result.count("listening sockets", len(listening))
        result.count("that answer plain HTTP on loopback (health of Dask)", len(plain))
        outside = [a for a in listening if a.ip not in ("127.0.0.1", "::1")]
        ended(pid)
        shutil.rmtree(cluster.output)
        result.check(len(listening) > 0 and not outside, f"{outside} of {listening}")


# ---- one node ------------------------------------------------------------------------------------------------


def _clear(output: Path) -> None:
    for path in (output, paths.partial_path(output), paths.work_folder(output)):
        shutil.rmtree(path, ignore_errors=True)


def _none_or_all(node: Node, step: str, output: Path) -> bool:
    return not output.exists() or node.problem(step, output) != "another content"


@case(
    "S3",
    150,
    "kill -9 at every named point of ingest, apply (also --variance, --share) and train, then again",
)
def points(result: Result, folder: Path, trials: int, rng: random.Random) -> None:
    node, output = Node(folder), folder / "out"
    log = folder / "log"
    every = [(step, point) for step in POINTS for point in POINTS[step]]
    rng.shuffle(every)
    # First every point in one step or another, then in all the others.
    first = {point: (step, point) for step, point in every}
    planned = [*first.values(), *(e for e in every if e not in first.values())]
    for number in result.rounds(trials):
        step, point = planned[number % len(planned)]
        k = 1 if number < len(planned) or not point.startswith(("shard", "marker")) else rng.randint(1, 5)
        words = node.words(step, output)
        if point == "commit.replaced":
            assert command(*words, log=log) == 0
            words = [*words, "--force"]
        code = command(*words, fault=f"{point}:{k}", log=log)
        seen = _none_or_all(node, step, output)
        again = command(*words, log=log)
        problem = node.problem(step, output)
        good = code == -signal.SIGKILL and seen and again == 0 and problem is None
        result.check(good, f"{step} {point}:{k}: {code}, {again}, {seen}, {problem}")
        _clear(output)
    result.counts["different points"] = min(result.trials, len(planned))


@case("F7", 20, "SIGSTOP a writer just before it commits, let another run take over and finish, then SIGCONT")
def zombies(result: Result, folder: Path, trials: int, rng: random.Random) -> None:
    node, output, log = Node(folder), folder / "out", folder / "log"
    chosen = ["shard.opened", "shard.synced", "marker.synced", "marker.written", "finish.sealed"]
    chosen += ["commit.checked", "commit.staged"]
    for number in result.rounds(trials):
        step = ("apply", "ingest")[number % 2]
        point = chosen[number // 2 % len(chosen)]
        pid = start(*node.words(step, output), fault=f"{point}:1:stop", log=log)
        while psutil.Process(pid).status() != psutil.STATUS_STOPPED:
            time.sleep(0.01)
        _abandon(output)
        with _impatient():
            code = command(*node.words(step, output), log=log)
        before = node.problem(step, output)
        os.kill(pid, signal.SIGCONT)
        late = ended(pid)
        result.count(f"late writers that ended with {late}")
        after = node.problem(step, output)
        good = code == 0 and before is None and after is None and late in (1, 6)
        result.check(good, f"{step} {point}: {code}, late {late}, {before}, {after}")
        _clear(output)


def _abandon(output: Path) -> None:
    """Make a lease look like that of another host, which shows no sign of life any more."""
    file = paths.work_folder(output) / "lease" / "owner.json"
    write_sealed(file, (read_sealed(file) or {}) | {"host": "elsewhere"})


@contextlib.contextmanager
def _impatient(stale_s: float = 0.5) -> Iterator[None]:
    """Take another host for dead soon."""
    kept = lease.STALE_S, lease.LOOK_S
    lease.STALE_S, lease.LOOK_S = stale_s, 0.05
    try:
        yield
    finally:
        lease.STALE_S, lease.LOOK_S = kept


@case("F11", 10, "the network gives NaN or Inf in some frame: its block fails, nothing is shown")
def not_finite(result: Result, folder: Path, trials: int, rng: random.Random) -> None:
    node, output, log = Node(folder), folder / "out", folder / "log"
    healthy = SplitBlind.from_looks
    for number in result.rounds(trials):
        left, value = rng.randint(1, 100), (math.nan, math.inf)[number % 2]

        def sick(network: SplitBlind, *inputs: Any, value: float = value) -> Any:
            nonlocal left
            left -= 1
            frames = healthy(network, *inputs)
            if left == 0:
                frames[0, 0, 0, 0] = value
            return frames

        SplitBlind.from_looks = sick  # type: ignore[method-assign]
        log.write_text("")
        try:
            code = command(*node.words("apply", output), log=log)
        finally:
            SplitBlind.from_looks = healthy  # type: ignore[method-assign]
        told, hidden = "returned NaN or Inf in frame" in log.read_text(), not output.exists()
        again = command(*node.words("apply", output), log=log)
        problem = node.problem("apply", output)
        good = code == 1 and told and hidden and again == 0 and problem is None
        result.check(good, f"{code}, {told}, {hidden}, {again}, {problem}")
        _clear(output)


@case("F12", 30, "kill -9 training at a random time or while it saves (F13), then the same command")
def training(result: Result, folder: Path, trials: int, rng: random.Random) -> None:
    node, output, log = Node(folder), folder / "out", folder / "log"
    began = time.monotonic()
    node.expect("train")
    took = time.monotonic() - began
    kills = 0
    while result.trials < trials and not result.late:
        if rng.random() < 0.5:
            pid = start(*node.words("train", output), log=log)
            time.sleep(rng.uniform(0.1, took))
            os.kill(pid, signal.SIGKILL)
            ended(pid)
        else:
            point = rng.choice(["checkpoint.synced", "checkpoint.written", "model.saved"])
            command(*node.words("train", output), fault=f"{point}:1", log=log)
        kills += 1
        if kills % 3 == 0 or output.exists():
            code = command(*node.words("train", output), log=log)
            problem = node.problem("train", output)
            for _ in range(kills):
                result.check(code == 0 and problem is None, f"{code}, {problem}")
            kills = 0
            _clear(output)


@case(
    "F15", 3, "the clock of the machine jumps by an hour: a living run keeps its lease, a dead one loses it"
)
def clocks(result: Result, folder: Path, trials: int, rng: random.Random) -> None:
    node, output, log = Node(folder), folder / "out", folder / "log"
    for number in result.rounds(trials):
        jump = (3600, -3600, 86400)[number % 3]
        pid = start(*node.words("ingest", output), fault="marker.synced:1:stop", log=log)
        while psutil.Process(pid).status() != psutil.STATUS_STOPPED:
            time.sleep(0.01)
        for file in (paths.work_folder(output) / "lease").iterdir():
            os.utime(file, (time.time() + jump, time.time() + jump))
        refused = command(*node.words("ingest", output), log=log)
        os.kill(pid, signal.SIGKILL)
        ended(pid)
        code = command(*node.words("ingest", output), log=log)
        problem = node.problem("ingest", output)
        result.check((refused, code, problem) == (6, 0, None), f"{refused}, {code}, {problem}")
        _clear(output)


@case("S1", 30, "disk full at a random byte of ingest and apply (tmpfs), then space is made")
def full_disk(result: Result, folder: Path, trials: int, rng: random.Random) -> None:
    node, log, mount = Node(folder), folder / "log", folder / "mount"
    mount.mkdir()
    output = mount / "out"
    for number in result.rounds(trials):
        step = ("ingest", "apply")[number % 2]
        kilobytes = 4 * rng.randint(1, 70)
        options = ["-t", "tmpfs", "-o", f"size={kilobytes}k", "tmpfs", mount]
        if subprocess.run(["mount", *options], capture_output=True).returncode:
            print("  S1 needs the right to mount a tmpfs")
            return
        try:
            code = command(*node.words(step, output), log=log)
            seen = _none_or_all(node, step, output)
            subprocess.run(["mount", "-o", "remount,size=64m", mount], check=True)
            again = command(*node.words(step, output), log=log)
            problem = node.problem(step, output)
            result.count(f"runs that ended with {code}")
            good = code in (0, 5) and seen and again == 0 and problem is None
            result.check(good, f"{step} {kilobytes} kB: {code}, {again}, {problem}")
        finally:
            subprocess.run(["umount", "-l", mount], check=True)


@case("S2", 40, "EIO or ESTALE once, EIO for ever, quota exceeded; while reading or writing")
def errors(result: Result, folder: Path, trials: int, rng: random.Random) -> None:
    node, output, log = Node(folder), folder / "out", folder / "log"
    for number in result.rounds(trials):
        step = ("ingest", "apply")[number % 2]
        read = "raw.read" if step == "ingest" else "movie.read"
        point = rng.choice(["shard.opened", "shard.synced", "marker.synced", read])
        what, expected = (("EIO", 0), ("ESTALE", 0), ("EIO+", 1), ("EDQUOT+", 5))[number // 2 % 4]
        code = command(*node.words(step, output), fault=f"{point}:{rng.randint(1, 4)}:{what}", log=log)
        seen = _none_or_all(node, step, output)
        again = command(*node.words(step, output), log=log)
        problem = node.problem(step, output)
        result.count(f"{what}: exit code {code}")
        good = code == expected and seen and again == 0 and problem is None
        result.check(good, f"{step} {point} {what}: {code}, {again}, {problem}")
        _clear(output)


def _repaired(node: Node, step: str, store: Path, log: Path) -> tuple[int, int, str | None]:
    """Verify a damaged store, repair it: exit codes and what is wrong still."""
    found = command("verify", store, "--deep", log=log)
    given = ["--raw", node.raw] if step == "ingest" else ["--movie", node.movie, "--model", node.random]
    code = command("verify", store, "--repair", *given, log=log)
    return found, code, node.problem(step, store)


@case("S5", 400, "flip one bit in any file of a store, each file as likely; verify --deep, verify --repair")
def flips(result: Result, folder: Path, trials: int, rng: random.Random) -> None:
    node, log = Node(folder), folder / "log"
    stores = {step: folder / f"undisturbed-{step}" for step in ("ingest", "apply")}
    for number in result.rounds(trials):
        step = ("apply", "ingest")[number % 2]
        file = rng.choice(sorted(p for p in stores[step].rglob("*") if p.is_file()))
        data = bytearray(file.read_bytes())
        position, bit = rng.randrange(len(data)), rng.randrange(8)
        data[position] ^= 1 << bit
        file.write_bytes(data)
        found, code, problem = _repaired(node, step, stores[step], log)
        where = f"{file.relative_to(folder)} byte {position} bit {bit}"
        result.count("found", found == 4)
        result.count("repaired and identical", code == 0 and problem is None)
        result.check((found, code, problem) == (4, 0, None), f"{where}: {found}, {code}, {problem}")


@case(
    "S6", 200, "delete, cut, empty or swap a shard, or put one of another store in its place; verify, repair"
)
def shards(result: Result, folder: Path, trials: int, rng: random.Random) -> None:
    node, log = Node(folder), folder / "log"
    foreign = folder / "foreign"

    def make() -> None:
        movie_store(foreign, counts((130, 12, 14), seed=5), frame_time=0.01)

    assert ended(fork(make)) == 0
    other = [*node.words("apply", foreign / "d.zarr")]
    other[1] = foreign / "movie.zarr"
    assert command(*other, log=log) == 0
    stores = {"ingest": folder / "undisturbed-ingest", "apply": folder / "undisturbed-apply"}
    arrays = {"ingest": "counts", "apply": "denoised"}
    strangers = {"ingest": foreign / "movie.zarr", "apply": foreign / "d.zarr"}
    for number in result.rounds(trials):
        step, how = (
            ("apply", "ingest")[number % 2],
            ("delete", "cut", "empty", "swap", "foreign")[number // 2 % 5],
        )
        grid = stores[step] / arrays[step] / "c"
        a, b = rng.sample(sorted(p for p in grid.rglob("*") if p.is_file()), 2)
        data = a.read_bytes()
        if how == "delete":
            a.unlink()
        elif how == "cut":
            a.write_bytes(data[: rng.randrange(1, len(data))])
        elif how == "empty":
            a.write_bytes(b"")
        elif how == "swap":
            a.write_bytes(b.read_bytes())
            b.write_bytes(data)
        else:
            shutil.copyfile(strangers[step] / a.relative_to(stores[step]), a)
        found, code, problem = _repaired(node, step, stores[step], log)
        result.count("found", found == 4)
        result.count("repaired and identical", code == 0 and problem is None)
        result.check((found, code, problem) == (4, 0, None), f"{how} {a.name}: {found}, {code}, {problem}")


@case("S7", 50, "two commands on one output at the same moment: one works, the other exits with 6")
def races(result: Result, folder: Path, trials: int, rng: random.Random) -> None:
    node, output, log = Node(folder), folder / "out", folder / "log"
    for number in result.rounds(trials):
        step = ("ingest", "apply")[number % 2]
        # Both hold on after their first marker, so that neither is done before the other has begun.
        racers = [start(*node.words(step, output), fault="marker.written:1:stop", log=log) for _ in range(2)]
        codes: dict[int, int] = {}
        while len(codes) < 1:
            pid, status = os.waitpid(-1, os.WNOHANG)
            if pid:
                codes[pid] = os.waitstatus_to_exitcode(status)
            time.sleep(0.005)
        (winner,) = set(racers) - set(codes)
        while psutil.Process(winner).status() != psutil.STATUS_STOPPED:
            time.sleep(0.005)
        os.kill(winner, signal.SIGCONT)
        answers = sorted([*codes.values(), ended(winner)])
        problem = node.problem(step, output)
        result.count("exactly one worked, the other exited with 6", answers == [0, 6])
        result.check(answers == [0, 6] and problem is None, f"{step}: {answers}, {problem}")
        _clear(output)


@case("S9", 20, "the lease of a dead host is taken over, that of a living one with any clock is not")
def leases(result: Result, folder: Path, trials: int, rng: random.Random) -> None:
    node, output, log = Node(folder), folder / "out", folder / "log"
    for number in result.rounds(trials):
        command(*node.words("ingest", output), fault="marker.written:1", log=log)
        _abandon(output)
        ahead = rng.choice([0, 700, -700, 2 * 86400, -2 * 86400])
        os.utime(paths.work_folder(output) / "lease" / "owner.json", (time.time() + ahead,) * 2)
        with _impatient(2.0):
            pid = start(*node.words("ingest", output), log=log)
            beat = time.time() + ahead
            while number % 2 and alive(pid):
                beat += 0.1
                with contextlib.suppress(FileNotFoundError):  # if it is taken over, which is found below
                    os.utime(paths.work_folder(output) / "lease" / "owner.json", (beat, beat))
                time.sleep(0.1)
            code = ended(pid)
        problem = node.problem("ingest", output) if number % 2 == 0 else None
        result.check(code == (6 if number % 2 else 0) and problem is None, f"{number % 2}: {code}, {problem}")
        _clear(output)


# Where a run is killed, so that each kind of small file is left behind.
LEFT_AT = ("output.created", "output.begun", "marker.written:2", "marker.written:4", "finish.consolidated")
LEFT_AT = (*LEFT_AT, "finish.sealed", "commit.staged", "commit.renamed")


@case(
    "S14", 500, "flip one bit in any small file that a killed run left (marker, plan, lease, metadata); go on"
)
def left_behind(result: Result, folder: Path, trials: int, rng: random.Random) -> None:
    node, log = Node(folder), folder / "log"
    left: dict[tuple[str, str], Path] = {}
    for number in result.rounds(trials):
        step = ("ingest", "apply", "variance", "share", "train")[number % 5]
        points = [p for p in LEFT_AT if p.partition(":")[0] in POINTS["apply" if step != "train" else step]]
        point = (
            points[number // 5 % len(points)]
            if step != "train"
            else rng.choice([*points, "checkpoint.written"])
        )
        kept = left.setdefault((step, point), folder / f"left-{step}-{point}")
        output, whole = kept / "out", kept.with_name(kept.name + "-whole")
        if not kept.exists():
            kept.mkdir()
            assert command(*node.words(step, output), fault=point, log=log) == -signal.SIGKILL
            shutil.copytree(kept, whole)
        files = sorted(f for f in kept.rglob("*") if f.is_file() and f.stat().st_size and not _is_shard(f))
        if number % 2:  # rather one of those that matter most than one of many
            files = [f for f in files if ".tdenoise" in f.parts] or files
        file = rng.choice(files)
        data, bit = bytearray(file.read_bytes()), rng.randrange(8 * file.stat().st_size)
        data[bit // 8] ^= 1 << bit % 8
        file.write_bytes(data)
        with _impatient():
            codes = [command(*node.words(step, output), log=log)]
            while codes[-1] != 0 and len(codes) < 3:
                codes.append(command(*node.words(step, output), log=log))
        problem = node.problem(step, output)
        name = f"{step} {point} {file.relative_to(kept)} bit {bit}"
        if output in file.parents:  # damage of what is finished: for verify to find
            problem = None
            codes = [0] if command("verify", output, "--deep", log=log) == 4 else [1]
        result.count(f"went on after {len(codes)} command" + "s" * (len(codes) > 1))
        result.check(codes[-1] == 0 and problem is None, f"{name}: {codes}, {problem}")
        shutil.rmtree(kept)
        shutil.copytree(whole, kept)


def _is_shard(file: Path) -> bool:
    return any(part in file.parts for part in ("counts", "denoised", "variance")) and "c" in file.parts


@case("S4", 300, "lose power at any moment (recorded operations, replayed as journal and POSIX allow); go on")
def power_cuts(result: Result, folder: Path, trials: int, rng: random.Random) -> None:
    node, log, disk, file = Node(folder), folder / "log", folder / "disk", folder / "operations"
    output = disk / "out"
    known: dict[str, replay.Recording] = {}
    for number in result.rounds(trials):
        step = ("ingest", "apply", "variance", "share", "train")[number % 5]
        if step not in known:
            shutil.rmtree(disk, ignore_errors=True)
            disk.mkdir()

            def record(step: str = step) -> int:
                code, found = replay.recorded(disk, lambda: here(*node.words(step, output)))
                file.write_bytes(pickle.dumps((found, replay.on_disk(disk))))
                return code

            assert ended(fork(record, log)) == 0, log.read_text()
            known[step], end = pickle.loads(file.read_bytes())  # noqa: S301  (what this process has written)
            everything = len(known[step].operations)
            assert replay.after_power_cut(known[step], everything, "whole", rng) == end, (
                "operations are missing"
            )
            result.count("operations", everything)
        model = replay.MODELS[number // 5 % len(replay.MODELS)]
        moment = rng.randint(0, len(known[step].operations))
        replay.put(replay.after_power_cut(known[step], moment, model, rng), disk)
        shown = not output.exists() or contents(output) == node.expect(step)
        with _impatient(), _rebooted():
            code = command(*node.words(step, output), log=log)
        problem = node.problem(step, output)
        good = shown and code == 0 and problem is None
        result.count(f"{model}: went on")
        result.check(good, f"{step} {model} {moment}: shown {shown}, {code}, {problem}")


@contextlib.contextmanager
def _rebooted() -> Iterator[None]:
    """Be a machine that was started again, and watch what may be left of before for a moment only."""
    kept = lease._boot, lease.QUIET_S
    lease._boot, lease.QUIET_S = (lambda: "after the power cut"), 0.3
    try:
        yield
    finally:
        lease._boot, lease.QUIET_S = kept


@case("S10", 10, "the unfinished output is deleted while it is written")
def deleted(result: Result, folder: Path, trials: int, rng: random.Random) -> None:
    node, output, log = Node(folder), folder / "out", folder / "log"
    for number in result.rounds(trials):
        step = ("ingest", "apply")[number % 2]
        pid = start(*node.words(step, output), fault=f"marker.written:{rng.randint(1, 4)}:stop", log=log)
        while psutil.Process(pid).status() != psutil.STATUS_STOPPED:
            time.sleep(0.005)
        shutil.rmtree(paths.partial_path(output))
        os.kill(pid, signal.SIGCONT)
        code = ended(pid)
        hidden = not output.exists()
        again = command(*node.words(step, output), log=log)
        problem = node.problem(step, output)
        result.count(f"runs that ended with {code}")
        good = code in (1, 3, 4, 6) and hidden and again == 0 and problem is None
        result.check(good, f"{step}: {code}, {hidden}, {again}, {problem}")
        _clear(output)


@case("S11", 10, "the raw file is changed while it is ingested, or cannot be written to")
def raw_changed(result: Result, folder: Path, trials: int, rng: random.Random) -> None:
    node, output, log = Node(folder), folder / "out", folder / "log"
    sound = node.raw.read_bytes()
    times = node.raw.stat().st_mtime_ns
    for number in result.rounds(trials):
        how = ("grown", "touched", "read-only")[number % 3]
        if how == "read-only":
            node.raw.chmod(0o444)
            code = command(*node.words("ingest", output), log=log)
            good = code == 0 and node.problem("ingest", output) is None
            node.raw.chmod(0o644)
        else:
            pid = start(*node.words("ingest", output), fault="marker.written:2:stop", log=log)
            while psutil.Process(pid).status() != psutil.STATUS_STOPPED:
                time.sleep(0.005)
            if how == "grown":
                node.raw.write_bytes(sound + b"more")
            else:
                os.utime(node.raw)
            os.kill(pid, signal.SIGCONT)
            code = ended(pid)
            good = code == 3 and not output.exists()
        node.raw.write_bytes(sound)
        os.utime(node.raw, ns=(times, times))
        result.check(good and node.raw.read_bytes() == sound, f"{how}: {code}")
        _clear(output)


@case("S12", 30, "movies whose last shard is short, odd sizes, one-frame tails: as numpy has them")
def shapes(result: Result, folder: Path, trials: int, rng: random.Random) -> None:
    import xarray

    for number in result.rounds(trials):
        shape = (
            rng.choice([3, 31, 32, 33, 64, 65, rng.randint(3, 140)]),
            rng.randint(9, 70),
            rng.randint(9, 70),
        )

        def compare(shape: tuple[int, int, int] = shape, number: int = number) -> int:
            frames = counts(shape, seed=number)
            path = movie_store(folder / str(number), frames)
            return int(not np.array_equal(xarray.open_zarr(path)["counts"].values, frames))

        code = ended(fork(compare, folder / "log"))
        result.check(code == 0, f"{shape}")


if __name__ == "__main__":
    sys.exit(main())
