"""What grows with the number of blocks, movies and workers, and whether it grows in proportion.

``blocks``: planning, marking (fsync included), scanning the markers as a resumed run does, joining the hashes, the
id of the content and the record of hashes, per block. All sizes in turn, several times over; the medians of the slopes
(what every further block costs, between one size and the next) tell growth apart from what a run costs once.
``movies``: an archive of so many cards is read (with and without its index), planned and scheduled for one model.
``workers``: blocks that do nothing through the driver, by TLS, on so many workers. Scheduler and client live in this
process, whose CPU time is what one driver costs; the workers, at most 100 together, in others.

    python benchmarks/scale.py [--blocks 100 1000 10000 100000] [--movies 100 10000] [--workers 10 100 1000]
                               [--repeats 3] [--save] [--quick]
"""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import itertools
import json
import logging
import multiprocessing
import shutil
import statistics
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import zarr
from common import Spent, parser, random_model, resident_bytes, save, scratch, write_mrc
from tdenoise_pipeline.archive import index
from tdenoise_pipeline.archive.add import add
from tdenoise_pipeline.archive.card import sealed_card
from tdenoise_pipeline.ingest.ingest import ingest
from tdenoise_pipeline.runs import markers, progress
from tdenoise_pipeline.settings.config import ApplyManyConfig, ArchiveAddConfig, IngestConfig
from tdenoise_pipeline.step_control import Control
from tdenoise_pipeline.store import integrity, store, writing
from tdenoise_pipeline.store.blocks import Block, Halo, plan_blocks
from tdenoise_pipeline.workers import cluster, driver
from tdenoise_pipeline.workflow import apply_many

MARKED = 2_000  # blocks that are marked through the real function; the other markers are only put there
FLAT = 1.2  # target: largest slope over smallest
PER_PROCESS = (
    100  # workers: what Dask does for each, such as counting open files, takes as long as there are others
)
BATCH = 50  # workers that start at the same time in one process
CALM = {  # of a process of many workers; each would do it for itself, 50 times a second or for seconds
    "distributed.admin.tick.interval": "1h",
    "distributed.admin.system-monitor.interval": "1h",
    "distributed.worker.use-file-locking": False,
}


def main() -> None:
    options = parser(__doc__ or "")
    options.add_argument("--blocks", type=int, nargs="*", default=[100, 1_000, 10_000, 100_000])
    options.add_argument("--movies", type=int, nargs="*", default=[100, 10_000])
    options.add_argument("--workers", type=int, nargs="*", default=[10, 100, 1_000])
    options.add_argument("--repeats", type=int, default=3)
    chosen = options.parse_args()
    if chosen.quick:
        chosen.blocks, chosen.movies, chosen.workers, chosen.repeats = [100, 1_000], [20], [4], 1
    results: dict[str, Any] = {"blocks": {}, "movies": {}, "workers": {}}
    if chosen.blocks:
        results["blocks"] = of_blocks(chosen.folder, sorted(chosen.blocks), chosen.repeats)
    for number in chosen.movies:
        with scratch(chosen.folder) as folder:
            results["movies"][str(number)] = found = of_movies(folder, number)
        print(f"{number} movies: {found}", flush=True)
    for number in chosen.workers:
        with scratch(chosen.folder) as folder:
            results["workers"][str(number)] = found = of_workers(folder, number, chosen.repeats, chosen.quick)
        print(f"{number} workers: {found}", flush=True)
    if chosen.save:
        save("scale", results)


# ---- blocks ------------------------------------------------------------------------------------------------


def of_blocks(place: Path | None, sizes: list[int], repeats: int) -> dict[str, Any]:
    """Microseconds per block, of each size on average, and of the blocks that a size has more than the one before."""
    rounds: list[dict[int, dict[str, Spent]]] = []
    for repeat in range(repeats):
        rounds.append({})
        for number in sizes:
            with scratch(place) as folder:
                rounds[-1][number] = took = parts_of_blocks(folder, number)
            took["all"] = Spent(sum(s.wall for s in took.values()), sum(s.cpu for s in took.values()))
        shown = ", ".join(f"{n}: {1e6 * r['all'].wall / n:.0f}" for n, r in rounds[-1].items())
        print(f"  round {repeat + 1} of {repeats}, us per block: {shown}", flush=True)
    names = list(rounds[0][sizes[0]])

    def medians(spent: Callable[[dict[int, dict[str, Spent]], str], Spent], per: int) -> dict[str, Any]:
        return {
            clock: {
                name: round(1e6 * statistics.median(getattr(spent(r, name), clock) for r in rounds) / per, 1)
                for name in names
            }
            for clock in ("wall", "cpu")
        }

    average = {str(n): medians(lambda r, name, n=n: r[n][name], n) for n in sizes}  # type: ignore[misc]
    slopes = {
        f"{a} to {b}": medians(lambda r, name, a=a, b=b: r[b][name] - r[a][name], b - a)  # type: ignore[misc]
        for a, b in itertools.pairwise(sizes)
    }
    for title, found in (("on average", average), ("slope", slopes)):
        for between, values in found.items():
            print(f"{between} blocks, {title}: {values}", flush=True)
    result: dict[str, Any] = {"us_per_block": average, "us_per_further_block": slopes, "repeats": repeats}
    if slopes:
        totals = {clock: [s[clock]["all"] for s in slopes.values()] for clock in ("wall", "cpu")}
        result["largest_slope_over_smallest"] = {k: round(max(v) / min(v), 2) for k, v in totals.items()}
        result["target"] = FLAT
        print(f"largest slope over smallest: {result['largest_slope_over_smallest']} (target {FLAT})")
    return result


def parts_of_blocks(folder: Path, number: int) -> dict[str, Spent]:
    """Time of everything but the work, of all blocks together."""
    took: dict[str, Spent] = {}

    def timed(name: str, function: Callable[[], Any], factor: float = 1.0) -> Any:
        wall, cpu = time.perf_counter(), time.process_time()
        result = function()
        took[name] = Spent(
            factor * (time.perf_counter() - wall),
            factor * (time.process_time() - cpu),
        )
        return result

    shape = (32 * number, 8, 8)
    blocks = timed("plan", lambda: plan_blocks(shape, (32, 8, 8), Halo(20, 0)))
    run = progress.OutputRun(folder / "out", {"n_blocks": number})
    with run:
        records = [{"shards": {f"{b.number}.0.0": f"{b.number:032x}"}, "device": "cpu"} for b in blocks]
        marked = min(number, MARKED)
        for record, block in zip(records[marked:], blocks[marked:], strict=True):
            file = run.folder / "done" / f"{block.number:08d}.json"
            file.write_text(json.dumps(record))

        def mark() -> None:
            for block, record in zip(blocks[:marked], records, strict=False):
                markers.mark(run.folder, block.number, record, run.token)

        timed("mark", mark, number / marked)  # in the folder that holds all the others already
        done = timed("scan", run.done)
        hashes = timed("join", lambda: markers.hashes(done.values()))
        path = folder / "store"
        geometry = store.Geometry((32, 8, 8), (4, 8, 8))
        kind = np.dtype("float32")
        writing.create(path, store.DENOISED, shape, kind, geometry, store.Coordinates(None, None), "count")
        array = zarr.open_array(path / store.DENOISED)
        timed("id", lambda: integrity.content_id(store.DENOISED, array, hashes))
        timed("record", lambda: writing.record_hashes(path, store.DENOISED, hashes))
        timed("remove", lambda: shutil.rmtree(run.folder / "done"))
    return took


# ---- movies ------------------------------------------------------------------------------------------------


def of_movies(folder: Path, number: int) -> dict[str, float]:
    """Seconds to read, plan and schedule an archive, whose cards are those of one real movie under other ids."""
    movie = folder / "movie.zarr"
    ingest(IngestConfig(raw=write_mrc(folder / "movie.mrc", (32, 64, 64)), output=movie))
    model = random_model(folder / "model", movie)
    root = folder / "archive"
    add(ArchiveAddConfig(store=(movie,), archive=root))
    (card,) = index.cards(root)
    for k in range(number - 1):
        identity = hashlib.sha256(str(k).encode()).hexdigest()
        other = {
            **card,
            "id": identity,
            "name": f"m{k}",
            "shape": [4470, 4096, 4096],
            "shard": [32, 1024, 1024],
        }
        (root / "cards" / f"{identity}.0.json").write_bytes(sealed_card(other))
    before = resident_bytes()
    config = ApplyManyConfig(movie=(root,), model=model, output=folder / "out")
    took: dict[str, float] = {}

    def timed(name: str, function: Callable[[], Any]) -> Any:
        start = time.perf_counter()
        result = function()
        took[name] = round(time.perf_counter() - start, 3)
        return result

    if timed("cards_s", lambda: sum(1 for _ in index.cards(root))) != number:
        raise RuntimeError("some cards are missing")
    timed("index_s", lambda: sum(1 for _ in index.cards(root)))
    plan = timed("plan_s", lambda: apply_many.describe_plans(config))
    timed("jobs_s", lambda: sum(1 for _ in apply_many.jobs(config)))
    took |= {"n_blocks": plan["n_blocks"], "n_files": plan["n_files"]}
    return took | {"growth_megabytes": round((resident_bytes() - before) / 1e6, 1)}


# ---- workers -----------------------------------------------------------------------------------------------


def nothing(block: Block) -> int:
    """The work: none."""
    return block.number


def of_workers(folder: Path, number: int, repeats: int, quick: bool) -> dict[str, Any]:
    """What driver and scheduler take for blocks that do nothing, and for workers that only tell that they live."""
    from distributed import Client

    n_blocks, waiting_s = (100, 2) if quick else (max(1_000, 3 * number), 20)
    blocks = plan_blocks((32 * n_blocks, 8, 8), (32, 8, 8), Halo(20, 0))
    with (
        scheduler_and_workers(folder, number) as (made, processes, begun),
        Client(made, set_as_default=False) as client,
    ):
        client.wait_for_workers(number, timeout=600)
        started_s = time.perf_counter() - begun

        def drive() -> tuple[Spent, float]:
            """Time of all blocks with the CPU time of this process, and the CPU time of the workers [s]."""
            wall, cpu, theirs = time.perf_counter(), time.process_time(), cpu_seconds(processes)
            outcomes = driver.drive(
                lambda: contextlib.nullcontext(client), None, nothing, blocks, list, Control()
            )
            if sum(o.error is None for o in outcomes) != n_blocks:
                raise RuntimeError("some blocks did not come back")
            while made.scheduler.tasks:  # to forget them is work, too
                time.sleep(0.05)
            spent = Spent(time.perf_counter() - wall, time.process_time() - cpu)
            return spent, cpu_seconds(processes) - theirs

        drive()  # the first tasks also load modules and start threads
        taken = [drive() for _ in range(repeats)]
        time.sleep(1)
        cpu = time.process_time()
        time.sleep(waiting_s)
        waiting = (time.process_time() - cpu) / waiting_s
    us = {
        "wall": statistics.median(t.wall for t, _ in taken),
        "cpu_of_driver_and_scheduler": statistics.median(t.cpu for t, _ in taken),
        "cpu_of_workers": statistics.median(theirs for _, theirs in taken),
    }
    return {
        "n_blocks": n_blocks,
        "start_s": round(started_s, 1),
        "us_per_block": {name: round(1e6 * seconds / n_blocks) for name, seconds in us.items()},
        # Of one core. Where a block takes a minute: blocks per second times what one costs, and the waiting.
        "share_waiting": round(waiting, 4),
        "share_at_60_s_per_block": round(
            waiting + number / 60 * us["cpu_of_driver_and_scheduler"] / n_blocks, 4
        ),
    }


@contextlib.contextmanager
def scheduler_and_workers(folder: Path, number: int) -> Iterator[tuple[Any, list[Any], float]]:
    """A scheduler in this process and workers in others, and when those began to start, their modules loaded."""
    import dask
    from distributed import LocalCluster
    from distributed.security import Security

    security = Security.temporary()
    counts = [min(PER_PROCESS, number - k) for k in range(0, number, PER_PROCESS)]
    context = multiprocessing.get_context("spawn")
    ready = context.Barrier(len(counts) + 1)
    with (
        dask.config.set(cluster.SETTINGS),
        LocalCluster(
            n_workers=0,
            processes=False,
            protocol="tls://",
            host="127.0.0.1",
            scheduler_kwargs={"dashboard": False, "dashboard_address": "127.0.0.1:0"},
            security=security,
            silence_logs=logging.CRITICAL,
        ) as made,
    ):
        arguments = [(made.scheduler_address, count, security, str(folder), ready) for count in counts]
        processes = [context.Process(target=host, args=words) for words in arguments]
        for process in processes:
            process.start()
        try:
            ready.wait()
            yield made, processes, time.perf_counter()
        finally:
            for process in processes:
                process.kill()
                process.join()


def host(address: str, count: int, security: Any, folder: str, ready: Any) -> None:
    """A process of many workers, until it is killed."""
    import dask
    from distributed import Worker

    async def start() -> None:
        for begun in range(0, count, BATCH):
            options = {"nthreads": 1, "memory_limit": 0, "dashboard": False, "local_directory": folder}
            n = min(BATCH, count - begun)
            workers.extend([Worker(address, security=security, **options) for _ in range(n)])
            await asyncio.gather(*workers[begun:])
        await asyncio.Event().wait()

    workers: list[Any] = []
    logging.getLogger("distributed").setLevel(logging.CRITICAL)
    ready.wait()
    with dask.config.set(cluster.WORKER_SETTINGS | CALM):
        asyncio.run(start())


def cpu_seconds(processes: list[Any]) -> float:
    """CPU time of processes so far [s]."""
    return float(sum(sum(psutil.Process(p.pid).cpu_times()[:2]) for p in processes))


if __name__ == "__main__":
    main()
