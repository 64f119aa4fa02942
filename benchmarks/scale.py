"""What grows with the number of blocks, movies and workers, and whether it grows in proportion.

``blocks``: planning, marking (fsync included), scanning the markers as a resumed run does, joining the hashes, the
id of the content and the record of hashes, per block. ``movies``: an archive of so many cards is read (with and
without its index), planned and scheduled for one model. ``workers``: blocks that do nothing through the driver on
so many workers that live in this process, with the share of the time that is the scheduler's and the client's own.

    python benchmarks/scale.py [--blocks 100 1000 10000 100000] [--movies 100 10000] [--workers 10 100 1000]
                               [--save] [--quick]
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import shutil
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import zarr
from common import parser, random_model, resident_bytes, save, scratch, write_mrc
from tdenoise_pipeline import apply_many, archive, driver, progress, store
from tdenoise_pipeline.blocks import Block, Halo, plan_blocks
from tdenoise_pipeline.config import ApplyManyConfig, ArchiveAddConfig, IngestConfig
from tdenoise_pipeline.control import Control
from tdenoise_pipeline.ingest import ingest

MARKED = 2_000  # blocks that are marked through the real function; the other markers are only put there


def main() -> None:
    options = parser(__doc__ or "")
    options.add_argument("--blocks", type=int, nargs="*", default=[100, 1_000, 10_000, 100_000])
    options.add_argument("--movies", type=int, nargs="*", default=[100, 10_000])
    options.add_argument("--workers", type=int, nargs="*", default=[10, 100, 1_000])
    chosen = options.parse_args()
    if chosen.quick:
        chosen.blocks, chosen.movies, chosen.workers = [100, 1_000], [20], [4]
    results: dict[str, Any] = {"blocks": {}, "movies": {}, "workers": {}}
    for kind, measure in (("blocks", of_blocks), ("movies", of_movies), ("workers", of_workers)):
        for number in getattr(chosen, kind):
            with scratch(chosen.folder) as folder:
                results[kind][str(number)] = measure(folder, number)
            print(f"{number} {kind}: {results[kind][str(number)]}", flush=True)
    if chosen.save:
        save("scale", results)


def of_blocks(folder: Path, number: int) -> dict[str, float]:
    """Microseconds per block of everything but the work."""
    took: dict[str, float] = {}
    spent_cpu = 0.0  # suffers less than the wall time where others use the machine and its disk

    def timed(name: str, function: Callable[[], Any], n: int = number) -> Any:
        nonlocal spent_cpu
        start, cpu = time.perf_counter(), time.process_time()
        result = function()
        took[name] = round(1e6 * (time.perf_counter() - start) / n, 1)
        spent_cpu += 1e6 * (time.process_time() - cpu) / n
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
                progress.mark(run.folder, block.number, record)

        timed("mark", mark, marked)  # in the folder that holds all the others already
        done = timed("scan", run.done)
        hashes = timed("join", lambda: progress.hashes(done.values()))
        path = folder / "store"
        geometry = store.Geometry((32, 8, 8), (4, 8, 8))
        kind = np.dtype("float32")
        store.create(path, store.DENOISED, shape, kind, geometry, store.Coordinates(None, None), "count")
        array = zarr.open_array(path / store.DENOISED)
        timed("id", lambda: store.content_id(store.DENOISED, array, hashes))
        timed("record", lambda: store.record_hashes(path, store.DENOISED, hashes))
        record = path / "integrity" / store.DENOISED
        n_bytes = sum(f.stat().st_size for f in record.rglob("*") if f.is_file())
        timed("remove", lambda: shutil.rmtree(run.folder / "done"))
    took |= {"sum": round(sum(took.values()), 1), "cpu": round(spent_cpu, 1)}
    return took | {"record_bytes_per_block": round(n_bytes / number, 2)}


def of_movies(folder: Path, number: int) -> dict[str, float]:
    """Seconds to read, plan and schedule an archive, whose cards are those of one real movie under other ids."""
    movie = folder / "movie.zarr"
    ingest(IngestConfig(raw=write_mrc(folder / "movie.mrc", (32, 64, 64)), output=movie))
    model = random_model(folder / "model", movie)
    root = folder / "archive"
    archive.add(ArchiveAddConfig(store=(movie,), archive=root))
    (card,) = archive.cards(root)
    for k in range(number - 1):
        identity = hashlib.sha256(str(k).encode()).hexdigest()
        other = {
            **card,
            "id": identity,
            "name": f"m{k}",
            "shape": [4470, 4096, 4096],
            "shard": [32, 1024, 1024],
        }
        (root / "cards" / f"{identity}.0.json").write_bytes(archive._sealed(other))
    before = resident_bytes()
    config = ApplyManyConfig(movie=(root,), model=model, output=folder / "out")
    took: dict[str, float] = {}

    def timed(name: str, function: Callable[[], Any]) -> Any:
        start = time.perf_counter()
        result = function()
        took[name] = round(time.perf_counter() - start, 3)
        return result

    if timed("cards_s", lambda: sum(1 for _ in archive.cards(root))) != number:
        raise RuntimeError("some cards are missing")
    timed("index_s", lambda: sum(1 for _ in archive.cards(root)))
    plan = timed("plan_s", lambda: apply_many.describe_plans(config))
    timed("jobs_s", lambda: sum(1 for _ in apply_many.jobs(config)))
    took |= {"n_blocks": plan["n_blocks"], "n_files": plan["n_files"]}
    return took | {"growth_megabytes": round((resident_bytes() - before) / 1e6, 1)}


def nothing(block: Block) -> int:
    """The work: none."""
    return block.number


def of_workers(folder: Path, number: int) -> dict[str, float]:
    """Blocks that do nothing on workers in this process; all of what it takes is the scheduler's and theirs."""
    import dask
    from distributed import Client, LocalCluster

    n_blocks = max(1_000, 5 * number)
    blocks = plan_blocks((32 * n_blocks, 8, 8), (32, 8, 8), Halo(20, 0))
    settings = {
        "distributed.worker.profile.enabled": False,
        "distributed.admin.system-monitor.interval": "60s",
    }
    with dask.config.set(settings):
        start = time.perf_counter()
        with (
            LocalCluster(
                n_workers=number,
                threads_per_worker=1,
                processes=False,
                dashboard_address=None,
                memory_limit=0,
                local_directory=str(folder),
            ) as cluster,
            Client(cluster, set_as_default=False) as client,
        ):
            client.wait_for_workers(number, timeout=300)
            started = time.perf_counter() - start
            wall, cpu = time.perf_counter(), time.process_time()
            outcomes = driver.drive(
                lambda: contextlib.nullcontext(client), None, nothing, blocks, list, Control()
            )
            if sum(o.error is None for o in outcomes) != n_blocks:
                raise RuntimeError("some blocks did not come back")
            wall, cpu = time.perf_counter() - wall, time.process_time() - cpu
    per_block = wall / n_blocks
    return {
        "n_blocks": n_blocks,
        "start_s": round(started, 1),
        "wall_us_per_block": round(1e6 * per_block),
        "cpu_us_per_block": round(1e6 * cpu / n_blocks),
        # Where a block takes a minute: blocks per second times what one costs, of one core.
        "share_at_60_s_per_block": round(number / 60 * cpu / n_blocks, 4),
    }


if __name__ == "__main__":
    main()
