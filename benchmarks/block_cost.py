"""What a block costs besides its work, against the scheduler's own floor.

Hands out real blocks with a function that does nothing, in turn on the same two workers: through
``pipeline.driver.drive`` (``drive``: two blocks in flight per worker, so this is the latency of Dask, which
hides behind the work of a real block), again with as many in flight as 1,000 workers have (``wide``: what the
driver itself costs), and with a bare ``client.map`` (``map``). Prints microseconds per block, ratios, and how
much the memory of the driver (and of the scheduler, which lives in the same process) grew.

    python benchmarks/block_cost.py [--blocks 100 1000 10000] [--only drive wide map] [--repeats 3] [--save] [--quick]
"""

from __future__ import annotations

import contextlib
import gc
import statistics
from collections.abc import Callable
from functools import partial
from typing import Any

from common import Spent, interleaved, median, parser, ratio, resident_bytes, rounded, save, scratch, spent
from tdenoise_pipeline.settings.workers import Workers
from tdenoise_pipeline.step_control import Control
from tdenoise_pipeline.store.blocks import Block, Halo, plan_blocks
from tdenoise_pipeline.workers import driver
from tdenoise_pipeline.workers.cluster import connect

WIDE = 2_000  # blocks in flight: two for each of 1,000 workers


def nothing(block: Block) -> int:
    """The work: none. Returns what a real block returns."""
    return block.number


def main() -> None:
    options = parser(__doc__ or "")
    options.add_argument("--blocks", type=int, nargs="+", default=[100, 1_000, 10_000])
    options.add_argument("--only", choices=list(WAYS), nargs="+", default=list(WAYS))
    options.add_argument("--repeats", type=int, default=3)
    chosen = options.parse_args()
    sizes, repeats = ([100, 1_000], 1) if chosen.quick else (chosen.blocks, chosen.repeats)
    results = {}
    with (
        scratch(chosen.folder) as folder,
        connect(
            Workers("local", 2),
            scratch=folder,
            worker_memory_bytes=None,
            profile=None,
            log_dir=folder / "logs",
        ) as client,
    ):
        by_map(client, plan(20))  # the first tasks also load modules
        for number in sizes:
            results[str(number)] = measure(client, plan(number), repeats, chosen.only)
    if chosen.save:
        save("block_cost" if chosen.only == list(WAYS) else f"block_cost_{'_'.join(chosen.only)}", results)


def plan(number: int) -> list[Block]:
    """Blocks of a long movie."""
    return plan_blocks((96 * number, 256, 256), (96, 256, 256), Halo(20, 0))


def measure(client: Any, blocks: list[Block], repeats: int, ways: list[str]) -> dict[str, Any]:
    """Hand out the same blocks in some ways, in turn."""
    print(f"{len(blocks)} blocks")
    growth: dict[str, list[int]] = {name: [] for name in ways}

    def timed(name: str) -> Spent:
        gc.collect()
        before = resident_bytes()
        took = spent(lambda: WAYS[name](client, blocks))
        growth[name].append(resident_bytes() - before)
        return took

    taken = interleaved({name: partial(timed, name) for name in ways}, repeats)
    result: dict[str, Any] = {
        "microseconds_per_block": {
            name: round(1e6 * median(values) / len(blocks), 1) for name, values in taken.items()
        },
        "cpu_microseconds_per_block": {  # of driver and scheduler, not of the workers
            name: round(1e6 * statistics.median(v.cpu for v in values) / len(blocks), 1)
            for name, values in taken.items()
        },
        "ratio": {name: ratio(taken[name], taken["map"]) for name in ways if name != "map" and "map" in ways},
        "seconds": rounded(taken),
        "driver_growth_megabytes": {name: round(max(values) / 1e6, 1) for name, values in growth.items()},
    }
    print(f"  us per block: {result['microseconds_per_block']}; times client.map: {result['ratio']}")
    print(f"  of the CPU of driver and scheduler: {result['cpu_microseconds_per_block']}")
    print(f"  memory of the driver grew by {result['driver_growth_megabytes']} MB")
    return result


def by_drive(client: Any, blocks: list[Block]) -> None:
    """As `apply` does."""
    outcomes = driver.drive(lambda: contextlib.nullcontext(client), None, nothing, blocks, list, Control())
    n_done = 0
    for outcome in outcomes:
        if outcome.error is not None:
            raise outcome.error
        n_done += 1
    if n_done != len(blocks):
        raise RuntimeError(f"{n_done} of {len(blocks)} blocks came back")


def by_wide_drive(client: Any, blocks: list[Block]) -> None:
    """As `apply` does on many workers."""
    usual, driver.IN_FLIGHT_PER_WORKER = driver.IN_FLIGHT_PER_WORKER, WIDE // 2
    try:
        by_drive(client, blocks)
    finally:
        driver.IN_FLIGHT_PER_WORKER = usual


def by_map(client: Any, blocks: list[Block]) -> None:
    """As little as Dask can do."""
    if client.gather(client.map(nothing, blocks, pure=False)) != [b.number for b in blocks]:
        raise RuntimeError("some blocks did not come back")


WAYS: dict[str, Callable[[Any, list[Block]], None]] = {
    "drive": by_drive,
    "wide": by_wide_drive,
    "map": by_map,
}


if __name__ == "__main__":
    main()
