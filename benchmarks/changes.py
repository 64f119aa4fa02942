"""How early and how fully can a change be told by one who does not know the scene?

The ideal observer of `tdenoise.evaluation.ideal_observer` knows the two states of a column; a denoiser has to find
them out. This compares it, on simulated movies, with two that are told nothing: the base model, and a small network
that is trained on nothing but places near changing columns. The latter sees one number per frame, what a Gaussian of
the size of a column gathers there (which keeps all that tells two states apart: its index d' is that of the whole
image), in the 41 frames around the one that is asked for, and learns its clean value. If more training on changes
could teach a network to follow them better, this one would.

The bleed is that of the gathered numbers, pooled over the changes whose step has a certain size in units of the noise
of one frame; it stands for frames at -4, -2, -1, 0, +1 and +3 from the change (0 is the first after it).

    python benchmarks/changes.py [--time-limit 90] [--scenes 150] [--save] [--quick]
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from typing import NamedTuple

import numpy as np
import torch
from common import parser, save
from numpy.typing import NDArray
from scipy import ndimage
from torch import Tensor, nn

from tdenoise.evaluation.events import Change, isolated_changes
from tdenoise.evaluation.ideal_observer import observer_error
from tdenoise.inference.denoising import denoise
from tdenoise.inference.tile import Tile
from tdenoise.network import checkpoint
from tdenoise.network.split_blind import OUTPUT_UNIT, Architecture
from tdenoise.noise.neighbour_frames import window_indices
from tdenoise.noise.noise import Scale
from tdenoise.simulation.nanoparticle import simulate
from tdenoise.simulation.particle import SimulationSettings
from tdenoise.training.pretraining import scene

Array = NDArray[np.float32]

COLUMN_PX = 2.4  # standard deviation of the Gaussian
OFFSETS = (-4, -2, -1, 0, 1, 3)
STEPS = ((0.0, 1.3), (1.3, 2.2), (2.2, 9.0))  # groups of changes, by their step over the noise of a frame
ARCHITECTURE = Architecture()
DOSE = 2.0
PLACES = 2048  # per optimiser step


class Case(NamedTuple):
    """A movie whose truth is known."""

    noisy: Array  # (n_frames, height, width), gathered, noise variance about 1
    clean: Array  # the same without noise
    base: Array  # the same of what the base model gives
    changes: list[Change]


def main() -> None:
    options = parser(__doc__ or "")
    options.add_argument("--time-limit", type=float, default=90.0, help="of the training on changes [s]")
    options.add_argument("--scenes", type=int, default=150, help="to learn from")
    chosen = options.parse_args()
    if chosen.quick:
        chosen.time_limit, chosen.scenes = 2.0, 4
    with ProcessPoolExecutor() as pool:
        found = list(pool.map(series_of_scene, range(chosen.scenes)))
    noisy, clean = (np.concatenate(parts) for parts in zip(*found, strict=True))
    network, n_steps = trained(noisy, clean, chosen.time_limit)
    results = {"places": len(noisy), "optimiser_steps": n_steps, "offsets": OFFSETS, "movies": {}}
    for pixel_size, seed in ((0.014, 9001), (0.018, 9002)):
        case = made(pixel_size, seed, 100 if chosen.quick else 400)
        results["movies"][f"{pixel_size} nm"] = rows = list(compared(case, network))
        for row in rows:
            print(f"{pixel_size} nm, step {row['step'][0]} to {row['step'][1]}, {row['n_changes']} changes")
            for name in ("limit", "base", "changes_only"):
                print(f"  {name:<14}", *(f"{value:.2f}" for value in row[name]), flush=True)
    if chosen.save:
        save("changes", results)


def gathered(frames: NDArray[np.generic], level: float) -> Array:
    """What a Gaussian gathers around every pixel, in units of its noise where ``level`` counts are expected."""
    point = np.zeros((41, 41))
    point[20, 20] = 1
    noise = np.sqrt(level * np.square(ndimage.gaussian_filter(point, COLUMN_PX)).sum())
    return np.asarray(ndimage.gaussian_filter(frames.astype(np.float32), (0, COLUMN_PX, COLUMN_PX)) / noise)


def series_of_scene(number: int) -> tuple[Array, Array]:
    """Numbers gathered near the changing columns of a scene, noisy and clean, shape (n_places, n_frames)."""
    made = scene(5 * 10**7 + number, n_frames=120, size=96, at_events=True)
    rng = np.random.default_rng([number, 79])
    expected = made.clean.astype(np.float32) * np.exp(rng.uniform(np.log(0.5), np.log(6)))
    level = float(expected.mean())
    rows, columns = (2 * index for index in np.nonzero(made.importance.max(axis=0)[::2, ::2] > 1))
    inside = (rows > 8) & (rows < 88) & (columns > 8) & (columns < 88)
    noisy, clean = gathered(rng.poisson(expected), level), gathered(expected, level)
    return tuple(movie[:, rows[inside], columns[inside]].T for movie in (noisy, clean))  # type: ignore[return-value]


def windows(series: Array) -> Tensor:
    """The frames around the middle one, binned as the network sees them, less their mean; shape (n, 18)."""
    n = series.shape[1]
    around = series[:, window_indices(n // 2, n, ARCHITECTURE.window)]
    sizes = np.array([*ARCHITECTURE.bins[::-1], *ARCHITECTURE.bins])
    sums = np.add.reduceat(around, np.cumsum([0, *sizes[:-1]]), axis=1)
    return torch.from_numpy((sums / np.sqrt(sizes)).astype(np.float32))


def trained(noisy: Array, clean: Array, time_limit_s: float) -> tuple[nn.Module, int]:
    """A network that knows changes and nothing else, and its number of optimiser steps."""
    torch.manual_seed(0)
    rng = np.random.default_rng(0)
    width, reach = 64, ARCHITECTURE.window
    network = nn.Sequential(
        nn.Linear(2 * len(ARCHITECTURE.bins), width),
        nn.LeakyReLU(0.1),
        nn.Linear(width, width),
        nn.LeakyReLU(0.1),
        nn.Linear(width, 1),
    )
    optimizer = torch.optim.Adam(network.parameters())
    means = noisy.mean(axis=1, keepdims=True)
    noisy, clean = noisy - means, clean - means
    began, n_steps = time.monotonic(), 0
    while (share := (time.monotonic() - began) / time_limit_s) < 1:
        for group in optimizer.param_groups:
            group["lr"] = 3e-3 * (0.5 + 0.5 * np.cos(np.pi * share))
        place = rng.integers(len(noisy), size=PLACES)
        frame = rng.integers(reach, noisy.shape[1] - reach, size=PLACES)
        seen = noisy[place[:, None], frame[:, None] + np.arange(-reach, reach + 1)]
        loss = (network(windows(seen))[:, 0] - torch.from_numpy(clean[place, frame])).square().mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        n_steps += 1
    return network, n_steps


def made(pixel_size: float, seed: int, n_frames: int) -> Case:
    """A movie that neither network has seen, and what the base model makes of it in one pass."""
    settings = SimulationSettings(n_frames, 128, 128, seed=seed, pixel_size_nm=pixel_size)
    movie = simulate(settings)
    counts = np.random.default_rng(seed).poisson(DOSE * movie.clean).astype(np.uint8)
    level = float(counts.mean())
    scale = Scale(level, level**0.5, OUTPUT_UNIT * level**0.5)
    network = checkpoint.load_model(checkpoint.BASE).network
    frames = denoise(network, counts, Tile.whole(counts.shape), scale, range(n_frames), ensemble=1)
    truth = {"events": movie.events, "col_pos": movie.col_pos}
    reach = ARCHITECTURE.window + max(OFFSETS) + 1
    changes = [c for c in isolated_changes(truth, counts.shape) if reach <= c.frame < n_frames - reach]
    three = (counts, DOSE * movie.clean, np.stack(list(frames)))
    return Case(*(gathered(each, level) for each in three), changes)


def compared(case: Case, network: nn.Module) -> Iterator[dict[str, object]]:
    """Bleed of the limit and of both networks, for every group of steps that occurs."""
    errors: dict[str, list[list[float]]] = {"limit": [], "base": [], "changes_only": []}
    steps = []
    for change in case.changes:
        row, column = (round(float(np.mean(axis))) for axis in change.pixels)
        noisy, clean, base = (movie[:, row, column] for movie in (case.noisy, case.clean, case.base))
        step = float(clean[change.at(0)] - clean[change.at(-1)])
        steps.append(step)
        for of_method in errors.values():
            of_method.append([])
        for offset in OFFSETS:
            k = change.at(offset)
            around = noisy[None, k - ARCHITECTURE.window : k + ARCHITECTURE.window + 1]
            with torch.no_grad():
                told = float(network(windows(around - around.mean()))) + float(around.mean())
            sign = 1 if offset < 0 else -1
            distance = -offset if offset < 0 else offset + 1
            errors["limit"][-1].append(float(observer_error(abs(step), distance, mixed_frame=True)))
            errors["base"][-1].append(sign * float(base[k] - clean[k]) / step)
            errors["changes_only"][-1].append(sign * (told - float(clean[k])) / step)
    size = np.abs(steps)
    for low, high in STEPS:
        group = (low <= size) & (size < high)
        if group.any():
            weights = size[group] ** 2
            pooled = {
                name: np.average(np.array(values)[group], axis=0, weights=weights).round(3).tolist()
                for name, values in errors.items()
            }
            yield {"step": (low, high), "n_changes": int(group.sum()), **pooled}


if __name__ == "__main__":
    main()
