"""Speed and cost of the models on one CPU core, against UDVD, in one run.

Times `tdenoise.inference.denoising.denoise` over frames in memory, one thread, one pass (ensemble 1), random
weights, in turn. UDVD is timed twice: as tdenoise streams it, with the first stage kept between frames, and plain,
every frame on its own as its users' script does. Counts multiplications of the same calls: what one more frame
costs. Ratios are medians of the ratios within each round, of CPU times.

    python benchmarks/throughput.py [--size 128] [--repeats 3] [--save] [--quick]
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import torch
from common import Spent, frames, interleaved, median, parser, ratio, rounded, save, spent
from torch.utils.flop_counter import FlopCounterMode

from tdenoise.inference.denoising import denoise
from tdenoise.inference.memory import RUN
from tdenoise.inference.tile import Tile
from tdenoise.network import torch_setup
from tdenoise.network.registry import Network, build
from tdenoise.network.split_blind import Architecture
from tdenoise.network.udvd import UdvdArchitecture
from tdenoise.noise.noise import Scale

SCALE = Scale(2.0, 1.4, 0.4)
TARGETS = {"times_as_fast_as_udvd": 30, "share_of_multiplications": 1 / 50}
MODELS = {
    "split-blind": Architecture(),
    "thinned": Architecture(centre="seen"),
    "udvd": UdvdArchitecture(),
}
# Frames per round; whole runs of those that share their first layer, and few where each takes seconds.
N_FRAMES = {"split-blind": 2 * RUN, "thinned": 2 * RUN, "udvd": 8, "udvd plain": 4}


def main() -> None:
    options = parser(__doc__ or "")
    options.add_argument("--size", type=int, default=128, help="rows and columns [pixels]")
    options.add_argument("--repeats", type=int, default=3)
    chosen = options.parse_args()
    size, repeats = (32, 1) if chosen.quick else (chosen.size, chosen.repeats)
    torch_setup.prepare(n_threads=1)
    results = measure(size, repeats)
    for name, found in results["models"].items():
        faster = found["times_as_fast"]
        print(
            f"{name}: {found['frames_per_s']} frames/s, {found['megamac_per_pixel']} MMAC per pixel, "
            f"{faster['udvd']} x as fast as udvd, {faster['udvd plain']} x as plain udvd"
        )
    if chosen.save:
        save("throughput", results)


def measure(size: int, repeats: int) -> dict[str, Any]:
    """All models on frames of one size."""
    movie = np.stack(list(frames((2 * 20 + max(N_FRAMES.values()), size, size), "uint8")))
    networks = {name: made(architecture) for name, architecture in MODELS.items()}

    def run(name: str, n_frames: int) -> Callable[[], None]:
        network = networks[name.removesuffix(" plain")]
        if name.endswith("plain"):
            return lambda: plain(network, movie, n_frames)
        return lambda: _drop(network, movie, n_frames)

    calls = {name: run(name, n) for name, n in N_FRAMES.items()}
    for call in calls.values():
        call()  # memory that is touched for the first time costs more
    taken = interleaved({name: lambda call=call: spent(call) for name, call in calls.items()}, repeats)
    # Per frame, for the rounds differ in their number of frames.
    taken = {
        name: [Spent(v.wall / N_FRAMES[name], v.cpu / N_FRAMES[name]) for v in values]
        for name, values in taken.items()
    }
    models = {
        name: {
            "frames_per_s": float(f"{1 / median(values):.3g}"),
            "megamac_per_pixel": megamac_per_pixel(lambda n, name=name: run(name, n)(), RUN, size**2),
            "times_as_fast": {other: ratio(taken[other], values)["cpu"] for other in ("udvd", "udvd plain")},
        }
        for name, values in taken.items()
    }
    return {
        "size": size,
        "milliseconds_per_frame": rounded(
            {name: [Spent(1e3 * v.wall, 1e3 * v.cpu) for v in values] for name, values in taken.items()}
        ),
        "models": models,
        "targets": TARGETS,
    }


def made(architecture: Any) -> Network:
    """A network with random weights, as a worker holds it."""
    torch.manual_seed(0)
    network = build(architecture).eval().requires_grad_(False)
    return network.to(memory_format=torch.channels_last)  # type: ignore[call-overload]


def denoised(network: Network, movie: np.ndarray, n_frames: int, **settings: Any) -> Iterator[np.ndarray]:
    """Frames from the middle of a movie, whose windows do not reach its ends where it is long enough."""
    first = max(0, min(network.architecture.window, len(movie) - n_frames))
    wanted = range(first, first + n_frames)
    settings = {"ensemble": 1, **settings}
    return denoise(network, movie, Tile.whole(movie.shape), SCALE, wanted, **settings)


def _drop(network: Network, movie: np.ndarray, n_frames: int) -> None:
    deque(denoised(network, movie, n_frames), maxlen=0)


@torch.inference_mode()
def plain(network: Network, movie: np.ndarray, n_frames: int) -> None:
    """UDVD on every frame by itself."""
    counts = torch.from_numpy(movie).float()
    for centre in range(2, 2 + n_frames):
        around = counts[[centre - 2, centre - 1, centre + 1, centre + 2]]
        network(around[None], counts[centre][None, None])


def megamac_per_pixel(run: Callable[[int], None], n_frames: int, n_pixels: int) -> float:
    """Multiplications of ``n_frames`` more frames, per pixel and frame, in millions."""
    counted = []
    for n in (n_frames, 2 * n_frames):
        with FlopCounterMode(display=False) as counter:
            run(n)
        counted.append(counter.get_total_flops() / 2)
    return round((counted[1] - counted[0]) / n_frames / n_pixels / 1e6, 5)


if __name__ == "__main__":
    main()
