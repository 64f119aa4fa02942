"""2 and 4 workers against 1, on both executors, with blocks that sleep: what the executors cost, not the cores.

Dask: the scheduler and the worker processes of ``--workers local:N``, blocks handed out by `driver.drive` with the same
settings as for worker jobs. Shares: N processes as ``--share I/N``, which meet in a folder. The clock starts when all
workers are there. Efficiency is the time that the sleeping alone takes on N workers, over the time it took. The load of
one block on the Dask scheduler (CPU seconds of the driver's process) is extrapolated to 200 workers.

    python benchmarks/workers.py [--seconds 2] [--blocks 40] [--save] [--quick]
"""

from __future__ import annotations

import multiprocessing
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from common import parser, save, scratch
from tdenoise_pipeline.runs import markers
from tdenoise_pipeline.runs.shared_run import SharedRun
from tdenoise_pipeline.settings.workers import Workers
from tdenoise_pipeline.step_control import Control
from tdenoise_pipeline.workers import cluster
from tdenoise_pipeline.workers.driver import drive
from tdenoise_pipeline.workers.shares import Share, work

WORKERS = (1, 2, 4)
MANY = 200  # workers to extrapolate to
TARGET = 0.95
PLAN = {"step": "benchmark"}


@dataclass(frozen=True)
class Nap:
    """A block that computes nothing."""

    number: int
    seconds: float


def main() -> None:
    options = parser(__doc__ or "")
    options.add_argument("--seconds", type=float, default=2.0, help="that a block takes")
    options.add_argument("--blocks", type=int, default=40)
    chosen = options.parse_args()
    seconds, n_blocks = (0.2, 8) if chosen.quick else (chosen.seconds, chosen.blocks)
    counts = WORKERS[:2] if chosen.quick else WORKERS
    naps = [Nap(number, seconds) for number in range(n_blocks)]
    results: dict[str, Any] = {"block_seconds": seconds, "blocks": n_blocks, "target": TARGET}
    with scratch(chosen.folder) as folder:
        for name, measure in (("dask", dask), ("shares", shares)):
            results[name] = {}
            for count in counts:
                took, cpu = measure(folder / f"{name}{count}", count, naps)
                ideal = seconds * -(-n_blocks // count)
                results[name][str(count)] = {
                    "seconds": round(took, 3),
                    "efficiency": round(ideal / took, 3),
                    "cpu_milliseconds_per_block": round(1e3 * cpu / n_blocks, 2),
                }
                print(f"{name}, {count} workers: {took:.2f} s, efficiency {ideal / took:.3f}", flush=True)
    short = dask_load(chosen.folder, 50 if chosen.quick else 2000)
    results["scheduler"] = {
        "cpu_milliseconds_per_block": round(1e3 * short, 3),
        "seconds_per_block_that_keep_200_workers_busy": round(MANY * short, 3),
        "load_of_200_workers_at_60_s_per_block": round(MANY / 60 * short, 5),
    }
    print(results["scheduler"])
    if chosen.save:
        save("workers", results)


def connected(folder: Path, count: int) -> Any:
    """Workers of this machine."""
    return cluster.connect(
        Workers("local", count),
        scratch=folder / "scratch",
        worker_memory_bytes=2**30,
        profile=None,
        log_dir=folder / "logs",
    )


def dask(folder: Path, count: int, naps: list[Nap]) -> tuple[float, float]:
    """Wall time on Dask workers, and CPU time of the driver with its scheduler [s]."""
    with connected(folder, count) as client:
        client.wait_for_workers(count)
        client.gather(client.map(time.sleep, [0.01] * 8 * count, pure=False))  # all imports done

        class Running:  # drive opens and closes what it is given; these workers stay
            def __enter__(self) -> Any:
                return client

            def __exit__(self, *_: object) -> None:
                return None

        began, cpu = time.perf_counter(), time.process_time()
        for outcome in drive(Running, None, nap, naps, lambda: naps, Control()):
            assert outcome.error is None
        return time.perf_counter() - began, time.process_time() - cpu


def dask_load(folder: Path | None, n_blocks: int) -> float:
    """CPU seconds of driver and scheduler per block, from many short ones."""
    with scratch(folder) as place:
        _, cpu = dask(place, 2, [Nap(number, 0.0) for number in range(n_blocks)])
    return cpu / n_blocks


def nap(item: Nap) -> int:
    """Take as long as a block."""
    time.sleep(item.seconds)
    return item.number


def shares(folder: Path, count: int, naps: list[Nap]) -> tuple[float, float]:
    """Wall time of processes that share the work, and their CPU time together [s]."""
    folder.mkdir()
    context = multiprocessing.get_context("spawn")
    ready = context.Barrier(count + 1)
    used = context.Queue()
    tasks = [context.Process(target=share, args=(folder, i, count, naps, ready, used)) for i in range(count)]
    for task in tasks:
        task.start()
    ready.wait()
    began = time.perf_counter()
    cpu = sum(used.get() for _ in tasks)  # one after the other ends
    took = time.perf_counter() - began
    for task in tasks:
        task.join()
    return took, cpu


def share(folder: Path, number: int, count: int, naps: list[Nap], ready: Any, used: Any) -> None:
    """One of the processes."""
    with SharedRun(folder / "out", PLAN, group="benchmark") as run:
        run.prepare(lambda path: path.mkdir())

        def function(item: Nap) -> None:
            nap(item)
            markers.mark(run.folder, item.number, {"shards": {}}, run.token, run.member)

        ready.wait()
        cpu = time.process_time()
        for outcome in work(run, Share(number, count, "benchmark"), naps, function, Control()):
            assert outcome.error is None
        used.put(time.process_time() - cpu)


if __name__ == "__main__":
    main()
