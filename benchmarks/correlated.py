"""Correlated noise: does the blind spot that is chosen automatically win, on a detector that spreads electrons?

Simulates a movie whose counts are spread over neighbouring pixels, and predicts it with several blind spots: the one
that the measured noise needs, radius 0, 3 x 3 pixels hidden in all frames (as UDVD does), and the whole centre
frame hidden. Prints PSNR against the truth (the spread clean movie) [dB], and the error on the noisy counts, which
radius 0 makes small by predicting the noise.

The predictors are the best linear filters of 7 x 7 pixels in 9 frames, fitted to the noisy movie alone: they are
found in seconds and exactly, so nothing but the blind spot tells them apart. With ``--time-limit`` networks are
trained too, each for that time, as `train` does on a CPU.

    python benchmarks/correlated.py [--blur 0.5] [--dose 2] [--time-limit 600] [--save NAME] [--quick]
"""

from __future__ import annotations

import argparse
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from common import save
from scipy.ndimage import gaussian_filter
from tdenoise_pipeline.resources import budget

from tdenoise.inference.denoising import denoise
from tdenoise.inference.tile import Tile
from tdenoise.network import torch_setup
from tdenoise.network.registry import Architecture, kind, kind_of, scale_for
from tdenoise.network.split_blind import Architecture as SplitBlindArchitecture
from tdenoise.network.udvd import UdvdArchitecture
from tdenoise.noise.noise import NoiseStatistics, choose
from tdenoise.noise.noise_measurement import NoiseAccumulator
from tdenoise.simulation.nanoparticle import simulate
from tdenoise.simulation.particle import SimulationSettings
from tdenoise.training.patches import PatchLoader
from tdenoise.training.train import TrainingSettings, TrainingState, train
from tdenoise.training.training_movie import TrainingMovie, hold_out
from tdenoise.training.validation import HeldOut

SCORED_FRAMES = 8  # evenly spread over the movie
FRAMES, PIXELS = 4, 3  # that a linear filter sees on each side


@dataclass(frozen=True)
class Movie:
    """What the detector gave, and what it would have given without noise."""

    counts: np.ndarray
    expected: np.ndarray
    noise: NoiseStatistics


def main() -> None:
    options = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    options.add_argument("--blur", type=float, default=0.5, help="point spread, standard deviation [pixels]")
    options.add_argument("--dose", type=float, default=2.0, help="electrons per pixel and frame")
    options.add_argument("--time-limit", type=float, help="also train networks, each for this time [s]")
    options.add_argument("--save", metavar="NAME", help="write benchmarks/results/correlated_NAME.json")
    options.add_argument("--quick", action="store_true", help="a few seconds; the figures mean nothing")
    chosen = options.parse_args()
    torch_setup.prepare(n_threads=1)
    movie = simulated(chosen.blur, chosen.dose, 48 if chosen.quick else 128)
    choice = choose(movie.noise)
    print(choice.reason)
    results = {}
    for name, blind in blind_spots(choice.blind_radius):
        results[f"linear filter, {name}"] = score_of_filter(movie, blind)
        show(results)
    if chosen.time_limit is not None:
        for name, architecture in architectures(choice.blind_radius):
            results[name] = score_of_network(movie, architecture, chosen.time_limit)
            show(results)
    if chosen.save:
        save(f"correlated_{chosen.save}", {**vars(chosen), "reason": choice.reason, "results": results})


def simulated(blur: float, dose: float, size: int) -> Movie:
    """A movie whose electrons are spread over neighbouring pixels after they were counted."""
    settings = SimulationSettings(n_frames=96, height=size, width=size, dose=dose, blur_px=blur)
    made = simulate(settings)
    accumulator = NoiseAccumulator()
    for first in range(0, len(made.counts), 32):
        accumulator.add(made.counts[first : first + 32])
    expected = dose * gaussian_filter(made.clean, (0, blur, blur))
    return Movie(made.counts, expected, accumulator.result())


def show(results: dict[str, dict[str, float]]) -> None:
    """Print the last result."""
    name, values = list(results.items())[-1]
    print(f"{name}: {', '.join(f'{key} {value:.4g}' for key, value in values.items())}", flush=True)


def psnr(movie: Movie, predicted: np.ndarray, frames: Sequence[int]) -> float:
    """Against the truth, for its range as peak [dB]."""
    error = float(np.square(predicted - movie.expected[list(frames)]).mean())
    return 10 * math.log10(float(np.ptp(movie.expected)) ** 2 / error)


def blind_spots(automatic: int | None) -> Iterator[tuple[str, np.ndarray]]:
    """Pixels of 9 frames of 7 x 7 pixels that a filter never sees, by name."""
    t, y, x = np.abs(np.mgrid[-FRAMES : FRAMES + 1, -PIXELS : PIXELS + 1, -PIXELS : PIXELS + 1])
    reach = np.maximum(y, x)
    shown = "whole frame" if automatic is None else automatic
    yield f"automatic: {shown}", (t == 0) & (reach <= (PIXELS if automatic is None else automatic))
    yield "radius 0", (t == 0) & (reach == 0)
    yield "3 x 3 in all frames", reach <= 1
    yield "whole frame", t == 0


def score_of_filter(movie: Movie, blind: np.ndarray) -> dict[str, float]:
    """Fit the best linear filter on every fourth frame, predict some others."""
    counts = movie.counts.astype(np.float32) - np.float32(movie.noise.mean)
    seen = np.argwhere(~blind) - (FRAMES, PIXELS, PIXELS)
    n_frames, height, width = counts.shape
    rows, columns = (slice(PIXELS, n - PIXELS) for n in (height, width))

    def inputs(t: int) -> np.ndarray:
        shifted = [
            counts[t + dt, PIXELS + dy : height - PIXELS + dy, PIXELS + dx : width - PIXELS + dx].ravel()
            for dt, dy, dx in seen
        ]
        return np.stack(shifted)

    inner = range(FRAMES, n_frames - FRAMES)
    products, moments = np.zeros((len(seen), len(seen))), np.zeros(len(seen))
    for t in inner[::4]:
        a = inputs(t)
        products += a @ a.T
        moments += a @ counts[t, rows, columns].ravel()
    weights = np.linalg.solve(products, moments)
    scored = inner[1 :: 2 * (len(inner) // (2 * SCORED_FRAMES) or 1)]
    predicted = np.stack([weights @ inputs(t) for t in scored]).reshape(len(scored), height - 2 * PIXELS, -1)
    on_counts = np.square(predicted - counts[scored][:, rows, columns]).mean() / movie.noise.noise_variance
    inside = Movie(movie.counts, movie.expected[:, rows, columns], movie.noise)
    return {
        "psnr": psnr(inside, predicted + movie.noise.mean, scored),
        "error_on_counts": float(on_counts),
    }


def architectures(automatic: int | None) -> Iterator[tuple[str, Architecture]]:
    """Networks that are compared, by name."""
    names: dict[int | None, str] = {0: "split-blind, radius 0", None: "split-blind, whole frame hidden"}
    names[automatic] = f"split-blind, automatic: {'whole frame' if automatic is None else automatic}"
    for radius, name in names.items():
        yield name, SplitBlindArchitecture(blind_radius=radius)
    yield "udvd, 3 x 3 in all frames", UdvdArchitecture(1)


def score_of_network(movie: Movie, architecture: Architecture, time_limit_s: float) -> dict[str, float]:
    """Train on the noisy movie alone, then compare with the truth."""
    scale = scale_for(architecture, movie.noise)
    training = TrainingMovie(movie.counts, scale, hold_out(len(movie.counts)))
    own = kind(kind_of(architecture))
    batch, patch = own.cpu_batch or (TrainingSettings.batch, TrainingSettings.patch)
    settings = TrainingSettings(
        steps=10**9,
        time_limit_s=time_limit_s,
        learning_rate=own.learning_rate or TrainingSettings.learning_rate,
        batch=batch,
        patch=patch,
        mixed_precision=torch_setup.fast_bfloat16(),
    )
    state = TrainingState.start(architecture, settings, "cpu")
    loader = PatchLoader([training], architecture, patch=settings.patch, batch=settings.batch)
    validation = HeldOut([training], architecture, "cpu", settings.mixed_precision)
    for _ in train(state, loader, validation, settings, n_threads=budget.n_cores()):
        pass
    network = state.best.eval().requires_grad_(False)
    wanted = np.linspace(0, len(movie.counts) - 1, SCORED_FRAMES).round().astype(int)
    tile = Tile.whole(movie.counts.shape)
    predicted = [
        next(denoise(network, movie.counts, tile, scale, range(t, t + 1), ensemble=1)) for t in wanted
    ]
    return {
        "psnr": psnr(movie, np.stack(predicted), wanted.tolist()),
        "error_on_counts": state.best_error,
        "steps": state.step,
        "seconds": state.elapsed_s,
    }


if __name__ == "__main__":
    main()
