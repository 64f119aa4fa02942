"""Train a split-blind network on noisy movies alone."""

from __future__ import annotations

import copy
import math
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field

import numpy as np
import torch
from torch import Tensor, nn

from .network import Architecture, SplitBlind, stack_window, window_indices
from .patches import Batch, PatchLoader, TrainingMovie, normalise

BETAS = (0.9, 0.999)  # 0.99 for the second let the loss collapse now and then
WARM_UP_STEPS = 100
MAX_GRADIENT = 0.25  # norm; about five times the usual one. Without it a rare step undoes hundreds.
VALIDATION_FRAMES = 24
VALIDATION_PIXELS = 256


@dataclass(frozen=True)
class TrainingSettings:
    """What a training does, besides the architecture."""

    steps: int = 12_000  # optimiser steps
    time_limit_s: float | None = None  # anneal and stop after this time [s]
    learning_rate: float = 2e-3  # peak of a cosine after a warm-up
    weight_decay: float = 1e-4
    batch: int = 8  # patches per step
    patch: int = 96  # [pixels]
    average: float = 0.998  # of the weights, per step
    validate_every: int = 250  # steps
    patience: int = 16  # validations without improvement before it stops
    seed: int = 0
    mixed_precision: bool = False  # bfloat16 in the convolutions


@dataclass
class TrainingState:
    """All that changes while training; enough to go on exactly from here."""

    network: SplitBlind
    averaged: SplitBlind  # moving average of the weights: what is validated and kept
    best: SplitBlind  # a true copy of the averaged weights at the lowest held-out error
    optimizer: torch.optim.AdamW
    step: int = 0
    elapsed_s: float = 0.0
    best_step: int = 0
    best_error: float = math.inf
    history: list[dict[str, float]] = field(default_factory=list)

    @classmethod
    def start(
        cls,
        architecture: Architecture,
        settings: TrainingSettings,
        device: str,
        weights: dict[str, Tensor] | None = None,
    ) -> TrainingState:
        """A fresh state: random weights from the seed, or given ones to adapt."""
        torch.manual_seed(settings.seed)
        network = SplitBlind(architecture)
        if weights is not None:
            network.load_state_dict(weights)
        network.to(device, memory_format=torch.channels_last)  # type: ignore[call-overload]
        optimizer = torch.optim.AdamW(
            network.parameters(), lr=settings.learning_rate, betas=BETAS, weight_decay=settings.weight_decay
        )
        return cls(network, copy.deepcopy(network), copy.deepcopy(network), optimizer)


def train(
    state: TrainingState,
    loader: PatchLoader,
    validation: Callable[[SplitBlind], float],
    settings: TrainingSettings,
    device: str = "cpu",
    stopped: Callable[[], bool] = lambda: False,
    n_threads: int = 1,
    resolution: float = 0.0,
) -> Iterator[dict[str, float]]:
    """Train in place, yielding a record after every validation.

    Parameters
    ----------
    state : TrainingState
        Changed in place; may come from a checkpoint.
    loader : PatchLoader
    validation : callable
        Held-out error of a network; see `held_out_error`.
    settings : TrainingSettings
    device : str
    stopped : callable
        Asked before every step; True ends the loop at once, with a state that can be saved.
    n_threads : int
        Shares of a batch that are computed at once on a CPU. Each uses one core; see `tdenoise.runtime`.
    resolution : float
        Held-out errors that differ by less are equal; of equal weights the later ones are kept, whose learning
        rate was lower.

    Yields
    ------
    dict
        ``step``, ``loss`` (mean since the last record), ``held_out``, ``best``, ``elapsed_s``,
        ``patches_per_s``.

    Raises
    ------
    FloatingPointError
        If the loss is NaN or Inf.
    """
    began = time.monotonic() - state.elapsed_s
    losses: list[Tensor] = []
    last = time.monotonic()
    batches = loader.batches(state.step, settings.steps)
    gradients = _Gradients(state.network, settings, device, n_threads)
    for batch in batches:
        share = state.step / settings.steps
        if settings.time_limit_s is not None:
            share = max(share, (time.monotonic() - began) / settings.time_limit_s)
        if share >= 1:
            break
        if stopped():
            losses = []  # nothing is recorded; the next run goes on from this very step
            state.elapsed_s = time.monotonic() - began
            break
        for group in state.optimizer.param_groups:
            warm_up = min(1.0, (state.step + 1) / WARM_UP_STEPS)
            group["lr"] = settings.learning_rate * warm_up * (0.5 + 0.5 * math.cos(math.pi * share))
        losses.append(_step(state, gradients, batch, settings))
        state.step += 1
        if state.step % settings.validate_every == 0:
            state.elapsed_s = time.monotonic() - began
            record = _validate(state, validation, losses, resolution)
            record["patches_per_s"] = settings.batch * len(losses) / (time.monotonic() - last)
            losses, last = [], time.monotonic()
            yield record
            lowest = min(state.history, key=lambda r: r["held_out"])["step"]
            stale = (state.step - lowest) // settings.validate_every
            if stale >= settings.patience:
                break
    batches.close()
    gradients.close()
    if losses:
        state.elapsed_s = time.monotonic() - began
        yield _validate(state, validation, losses, resolution)


class _Gradients:
    """Loss and gradients of a batch, its patches shared out to threads that each compute with one core.

    Threads inside every operation meet hundreds of times per step; whenever another program has one of the
    cores, all of them wait. These meet once.
    """

    def __init__(self, network: SplitBlind, settings: TrainingSettings, device: str, n_threads: int) -> None:
        self._network = network
        self._parameters = list(network.parameters())
        self._device = device
        self._mixed = settings.mixed_precision
        self._n_parts = 1 if torch.device(device).type != "cpu" else max(1, min(n_threads, settings.batch))
        self._pool = ThreadPoolExecutor(self._n_parts, "gradients", lambda: torch.set_num_threads(1))

    def __call__(self, batch: Batch) -> Tensor:
        """Leave the gradients in the parameters; the loss in units of the noise variance."""
        # Over the contrast, so that gradients have the same size at every dose.
        scale = 1 / (batch.weight.sum() * batch.contrast.mean())
        tensors = (batch.neighbours, batch.centre, batch.contrast, batch.weight)
        parts = zip(*(t.tensor_split(self._n_parts) for t in tensors), strict=True)
        results = list(self._pool.map(lambda part: self._part(Batch(*part), scale), parts))
        # Summed in a fixed order, whichever thread was first.
        for parameter, *gradients in zip(self._parameters, *(g for _, g in results), strict=True):
            parameter.grad = sum(gradients[1:], start=gradients[0])
        return torch.stack([loss for loss, _ in results]).sum() * batch.contrast.mean()

    def _part(self, batch: Batch, scale: Tensor) -> tuple[Tensor, tuple[Tensor, ...]]:
        device = self._device
        neighbours = batch.neighbours.to(device, memory_format=torch.channels_last, non_blocking=True)
        centre, contrast, weight = (t.to(device) for t in (batch.centre, batch.contrast, batch.weight))
        with torch.autocast(torch.device(device).type, torch.bfloat16, enabled=self._mixed):
            output = self._network(neighbours, centre)
        # The mean square is lowest at the expected counts, whatever the noise; a mean absolute error is not.
        loss = (weight * (centre - contrast * output.float()).square()).sum() * scale.to(device)
        return loss.detach().cpu(), torch.autograd.grad(loss, self._parameters)

    def close(self) -> None:
        """End the threads."""
        self._pool.shutdown()


def _step(state: TrainingState, gradients: _Gradients, batch: Batch, settings: TrainingSettings) -> Tensor:
    """One optimiser step; the loss in units of the noise variance."""
    state.network.train()
    loss = gradients(batch)
    nn.utils.clip_grad_norm_(state.network.parameters(), MAX_GRADIENT, error_if_nonfinite=True)
    state.optimizer.step()
    with torch.no_grad():
        keep = min(settings.average, (state.step + 1) / (state.step + 10))
        for mean, value in zip(state.averaged.parameters(), state.network.parameters(), strict=True):
            mean.lerp_(value, 1 - keep)
    return loss


def _validate(
    state: TrainingState,
    validation: Callable[[SplitBlind], float],
    losses: list[Tensor],
    resolution: float,
) -> dict[str, float]:
    """Measure the averaged weights on the held-out frames; keep a copy of the best."""
    error = validation(state.averaged)
    if not math.isfinite(error):
        raise FloatingPointError(f"the held-out error is {error} at step {state.step}")
    if error <= state.best_error + resolution:
        state.best_error, state.best_step = min(error, state.best_error), state.step
        # A copy: state_dict() returns views that go on changing.
        state.best = copy.deepcopy(state.averaged)
    record = {
        "step": float(state.step),
        "loss": float(torch.stack(losses).mean()),
        "held_out": error,
        "best": state.best_error,
        "elapsed_s": state.elapsed_s,
    }
    state.history.append(record)
    return record


class HeldOut:
    """Error of a blind prediction on held-out frames, from the noisy counts alone.

    For a prediction ``f`` that never saw the counts ``y``, ``mean((y - f)^2)`` exceeds the true error by the
    noise variance, the same for every network; so it is called with networks that are compared, and the lowest
    wins (design, section 6).
    """

    def __init__(
        self, movies: Sequence[TrainingMovie], architecture: Architecture, device: str, mixed_precision: bool
    ) -> None:
        self._samples: list[tuple[Tensor, Tensor, float]] = []
        self._device = device
        self._mixed = mixed_precision
        share = max(1, VALIDATION_FRAMES // len(movies))
        for movie in movies:
            held = movie.held_out
            chosen = [held[i] for i in np.unique(np.linspace(0, len(held) - 1, share).round().astype(int))]
            for number, frame in enumerate(chosen):
                self._samples.append(_validation_sample(movie, architecture, frame, number))

    @property
    def resolution(self) -> float:
        """Difference of two networks that differ by a few percent of the noise, which chance alone explains."""
        n_pixels = sum(float(weighted[1].sum()) for _, weighted, _ in self._samples)
        return 0.03 / math.sqrt(n_pixels)

    def __call__(self, network: SplitBlind) -> float:
        """Mean square of ``noisy - predicted`` in units of the noise variance."""
        network.eval()
        total, n_pixels = 0.0, 0
        kind = torch.device(self._device).type
        with torch.inference_mode(), torch.autocast(kind, torch.bfloat16, enabled=self._mixed):
            for neighbours, weighted, contrast in self._samples:
                centre, weight = weighted[:1], weighted[1:]
                output = (
                    network(neighbours[None].to(self._device), centre[None].to(self._device)).float().cpu()
                )
                total += float((weight * (centre - contrast * output[0]).square()).sum(dtype=torch.float64))
                n_pixels += int(weight.sum())
        return total / n_pixels


def _validation_sample(
    movie: TrainingMovie, architecture: Architecture, frame: int, number: int
) -> tuple[Tensor, Tensor, float]:
    """Window and target of a held-out frame; of a large frame, a part that differs from frame to frame."""
    n_frames, height, width = movie.frames.shape
    stride = architecture.stride
    size_y, size_x = (min(VALIDATION_PIXELS, -(-n // stride) * stride) for n in (height, width))
    rng = np.random.default_rng(number)
    row = int(rng.integers(max(1, height - size_y + 1)))
    column = int(rng.integers(max(1, width - size_x + 1)))
    indices = window_indices(frame, n_frames, architecture.window)
    first, last = min(indices.min(), frame), max(indices.max(), frame)
    cut = np.asarray(movie.frames[first : last + 1, row : row + size_y, column : column + size_x])
    frames = normalise(cut, movie.scale, size_y, size_x)
    weight = torch.zeros((1, size_y, size_x))
    weight[:, : cut.shape[1], : cut.shape[2]] = 1
    neighbours = stack_window(frames, indices - first, architecture.bins)
    target = torch.cat([frames[frame - first][None], weight])
    return neighbours, target, movie.scale.contrast / movie.scale.noise
