"""How fast shards of a denoised movie are packed: by one thread, and by several side by side.

The chunks of a shard are compressed and hashed as `apply` does; behind a GPU this, and not the network, may be what a
worker waits for. Ratios are those of the wall time within a round: run it on a quiet machine.

    python benchmarks/packing.py [--threads 2] [--size 1024] [--repeats 5] [--save]
"""

from __future__ import annotations

import argparse
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
from common import Spent, interleaved, median, ratio, rounded, save, spent
from scipy.ndimage import gaussian_filter
from tdenoise_pipeline.store.shards import Layout, ShardWriter
from tdenoise_pipeline.store.store import Geometry
from tdenoise_pipeline.store.writing import round_mantissa


def main() -> None:
    options = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    options.add_argument("--threads", type=int, default=2)
    options.add_argument("--size", type=int, default=1024, help="of a frame [pixels]")
    options.add_argument("--repeats", type=int, default=5)
    options.add_argument("--save", action="store_true", help="write benchmarks/results/packing.json")
    chosen = options.parse_args()
    shape = (32, chosen.size, chosen.size)
    frames = round_mantissa(smooth(shape))
    geometry = Geometry.of(shape)
    layout = Layout(geometry.shard, geometry.chunk, np.dtype("<f4"), float("nan"))

    def pack(for_each: Callable[..., Any]) -> Spent:
        return spent(lambda: ShardWriter(layout, for_each).append(frames))

    with ThreadPoolExecutor(chosen.threads) as pool:
        ways = {"one thread": lambda: pack(map), f"{chosen.threads} threads": lambda: pack(pool.map)}
        taken = interleaved(ways, chosen.repeats)
    one, several = taken.values()
    faster, megapixels = ratio(one, several), frames.size / 1e6
    print(f"{chosen.threads} threads are {faster['wall']} times as fast as one")
    for name, times in taken.items():
        print(f"{name}: {1000 * median(times) / megapixels:.1f} ms per megapixel")
    if chosen.save:
        save("packing", {"shape": shape, "faster": faster, "rounds": rounded(taken)})


def smooth(shape: tuple[int, int, int]) -> np.ndarray:
    """Frames that are as smooth as denoised ones, and differ as they do."""
    rng = np.random.default_rng(0)
    frames = gaussian_filter(rng.normal(size=(4, *shape[1:])), (1, 2, 2))
    return np.resize(2 + frames / frames.std() / 4, shape).astype(np.float32)


if __name__ == "__main__":
    main()
