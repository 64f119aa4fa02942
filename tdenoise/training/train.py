"""Train a network on noisy movies alone."""

from __future__ import annotations

import copy
import math
import time
from collections.abc import Callable, Generator, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, fields
from functools import partial

import torch
from torch import Tensor, nn

from ..network.registry import Architecture, Network, build
from ..noise.gamma_poisson import likelihood_terms
from .patches import Batch, BatchLoader
from .process_group import ALONE, Team
from .validation import Sums, compare

BETAS = (0.9, 0.999)  # 0.99 for the second let the loss collapse now and then
WARM_UP_STEPS = 100
MAX_GRADIENT = 0.25  # norm; about five times the usual one. Without it a rare step undoes hundreds.
SHARES = (0.0, 0.25, 0.5, 0.75)  # of the way from given weights to adapted ones, at which it may turn back
NO_WORSE = 0.5  # standard errors of a difference that does not count
ANNEAL_STEPS = 2000  # in which the learning rate falls to nothing once the held-out error has stopped falling


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
    patience: int = 16  # validations without improvement before it anneals and stops
    seed: int = 0
    mixed_precision: bool = False  # bfloat16 in the convolutions
    # Of the training of given weights, the first share: only one factor per channel is adapted (Mohan et al. 2021,
    # GainTuning), which cannot learn a movie by heart. None: the weights are new.
    gain_share: float | None = None
    least_dose: float = 1.0  # share of the movie's electrons that the most thinned patches hold


@dataclass
class TrainingState:
    """All that changes while training; enough to go on exactly from here."""

    network: Network
    averaged: Network  # moving average of the weights: what is validated and kept
    best: Network  # a true copy of the averaged weights at the lowest held-out error
    optimizer: torch.optim.AdamW
    step: int = 0
    elapsed_s: float = 0.0
    best_step: int = 0
    best_error: float = math.inf
    history: list[dict[str, float]] = field(default_factory=list)
    annealing_since: int | None = None  # step at which it went back to its best weights, to anneal and stop
    new: frozenset[str] = frozenset()  # names of the weights that were not given
    done: bool = False  # whether the training has come to its end

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
        network = build(architecture)
        own = network.state_dict()
        # With another blind spot, the layers around it have other shapes, and begin anew; with another head too.
        fitting = {k: v for k, v in (weights or {}).items() if k in own and own[k].shape == v.shape}
        network.load_state_dict(own | fitting)
        network.to(device, memory_format=torch.channels_last)  # type: ignore[call-overload]
        optimizer = torch.optim.AdamW(
            network.parameters(), lr=settings.learning_rate, betas=BETAS, weight_decay=settings.weight_decay
        )
        state = cls(network, copy.deepcopy(network), copy.deepcopy(network), optimizer)
        state.new = frozenset(own) - frozenset(fitting)
        return state

    def anneal(self) -> None:
        """Go back to the best weights; from now on the learning rate falls."""
        for network in (self.network, self.averaged):
            network.load_state_dict(self.best.state_dict())
        self.annealing_since = self.step

    @property
    def spread_is_new(self) -> bool:
        """Whether this is a gamma head before its first step."""
        return "spread.bias" in self.new and not self.step and not self.history

    def start_spread(self, level: float) -> None:
        """Let a gamma head begin with one uncertainty everywhere; see `HeldOut.constant_spread`."""
        for network in (self.network, self.averaged, self.best):
            nn.init.constant_(network.spread.bias, level)  # type: ignore[union-attr, arg-type]


def train(
    state: TrainingState,
    loader: BatchLoader,
    validation: Callable[[Network], float],
    settings: TrainingSettings,
    device: str = "cpu",
    stopped: Callable[[], bool] = lambda: False,
    n_threads: int = 1,
    resolution: float = 0.0,
    likelihood: Callable[[Network], float] | None = None,
    team: Team = ALONE,
) -> Iterator[dict[str, float]]:
    """Train in place, yielding a record after every validation; `_loop` is what happens step by step.

    Parameters
    ----------
    state : TrainingState
        Changed in place; may come from a checkpoint.
    loader : BatchLoader
    validation : callable
        Held-out error of a network; see `tdenoise.training.validation`.
    settings : TrainingSettings
    device : str
    stopped : callable
        Asked before every step; True ends the loop at once, with a state that can be saved.
    n_threads : int
        Shares of a batch that are computed at once on a CPU. Each uses one core; see `tdenoise.network.torch_setup`.
    resolution : float
        Held-out errors that differ by less are equal; of equal weights the later ones are kept, whose learning
        rate was lower.
    likelihood : callable, optional
        Of a gamma head, the negative logarithm by which the best weights are chosen: the held-out error does not
        tell whether the uncertainty is right. See `tdenoise.training.validation.HeldOut.likelihood`.
    team : Team, optional
        Processes that share every batch, each with a loader of its own share; ``stopped``, ``validation`` and
        ``likelihood`` must give all of them the same answer.

    Yields
    ------
    dict
        ``step``, ``loss`` (mean since the last record), ``held_out``, ``best``, ``elapsed_s``,
        ``patches_per_s``, ``gains_only`` (0 or 1); with ``likelihood`` also ``held_out_nll``.

    Raises
    ------
    FloatingPointError
        If the loss is NaN or Inf.
    """
    clock = _Clock(time.monotonic() - state.elapsed_s, settings, team)
    batches = loader.batches(state.step, settings.steps)
    gradients = _Gradients(state.network, settings, device, n_threads, team, loader.shares)
    validate = partial(_validate, state, validation=validation, resolution=resolution, likelihood=likelihood)
    yield from _loop(state, settings, batches, gradients, validate, stopped, clock)


@dataclass(frozen=True)
class _Clock:
    """How long a training has taken, also before it was stopped."""

    began: float  # `time.monotonic`
    settings: TrainingSettings
    team: Team

    def elapsed_s(self) -> float:
        return time.monotonic() - self.began

    def share(self, step: int) -> float:
        """Of the training that is over: of its steps, or of its time."""
        share = step / self.settings.steps
        if self.settings.time_limit_s is not None:
            share = max(share, self.team.of_first(self.elapsed_s) / self.settings.time_limit_s)
        return share


def _loop(
    state: TrainingState,
    settings: TrainingSettings,
    batches: Generator[Batch, None, None],
    gradients: _Gradients,
    validate: Callable[[list[Tensor]], dict[str, float]],
    stopped: Callable[[], bool],
    clock: _Clock,
) -> Iterator[dict[str, float]]:
    """A step for every batch, and a record after every validation."""
    losses: list[Tensor] = []
    last = time.monotonic()
    if settings.gain_share is not None and not state.history:
        # Given weights may be the best there are.
        yield validate([])
    share = clock.share(state.step)
    for batch in batches:
        since = state.annealing_since
        annealed = 0.0 if since is None else (state.step - since) / ANNEAL_STEPS
        if max(share, annealed) >= 1:
            break
        if stopped():
            losses = []  # nothing is recorded; the next run goes on from this very step
            state.elapsed_s = clock.elapsed_s()
            break
        warm_up = min(1.0, (state.step + 1) / WARM_UP_STEPS)
        for group in state.optimizer.param_groups:
            group["lr"] = settings.learning_rate * warm_up * _cosine(share) * _cosine(annealed)
        gains_only = share < (settings.gain_share or 0)
        losses.append(_step(state, gradients, batch, settings, gains_only))
        state.step += 1
        share = clock.share(state.step)
        # Weights of which the gains alone were adapted are a candidate, too.
        gains_end = gains_only and share >= (settings.gain_share or 0)
        if gains_end or state.step % settings.validate_every == 0:
            state.elapsed_s = clock.elapsed_s()
            record = validate(losses)
            record["patches_per_s"] = settings.batch * len(losses) / (time.monotonic() - last)
            record["gains_only"] = float(gains_only)
            losses, last = [], time.monotonic()
            # Before the yield: a checkpoint that is written there goes on from here.
            if since is None and _stale(state) >= settings.patience:
                state.anneal()
            yield record
    batches.close()
    gradients.close()
    if losses:
        state.elapsed_s = clock.elapsed_s()
        yield validate(losses)


def _cosine(share: float) -> float:
    """From 1 to 0."""
    return 0.5 + 0.5 * math.cos(math.pi * share)


def _stale(state: TrainingState) -> int:
    """Validations since the lowest held-out error; those in which only gains could be adapted do not count."""
    lowest = min(state.history, key=lambda r: r.get("held_out_nll", r["held_out"]))["step"]
    return sum(r["step"] > lowest and not r.get("gains_only") for r in state.history)


class _Gradients:
    """Loss and gradients of a batch, its patches shared out to threads that each compute with one core.

    Threads inside every operation meet hundreds of times per step; whenever another program has one of the
    cores, all of them wait. These meet once.
    """

    def __init__(
        self,
        network: Network,
        settings: TrainingSettings,
        device: str,
        n_threads: int,
        team: Team,
        shares: Sequence[int],
    ) -> None:
        self._network = network
        self._parameters = list(network.parameters())
        self._device = device
        self._mixed = settings.mixed_precision
        self._team = team
        self._shares = shares  # patches of every process
        most = min(shares)
        self._n_parts = 1 if torch.device(device).type != "cpu" else max(1, min(n_threads, most))
        self._pool = ThreadPoolExecutor(self._n_parts, "gradients", lambda: torch.set_num_threads(1))

    def __call__(self, batch: Batch) -> Tensor:
        """Leave the gradients in the parameters; the loss in units of the noise variance."""
        # Of the whole batch, of which this process has a share.
        sums = torch.stack([batch.weight.sum((1, 2, 3)), batch.contrast.flatten()])
        weights, contrasts = self._team.gather(sums, self._shares)
        # Over the contrast, so that gradients have the same size at every dose.
        scale = 1 / (weights.sum() * contrasts.mean())
        tensors = (getattr(batch, field.name) for field in fields(batch))
        parts = zip(*(t.tensor_split(self._n_parts) for t in tensors), strict=True)
        results = list(self._pool.map(lambda part: self._part(Batch(*part), scale), parts))
        # Summed in a fixed order, whichever thread was first.
        own = [sum(parts[1:], start=parts[0]) for parts in zip(*results, strict=True)]
        loss, *gradients = self._team.sum(own)
        for parameter, gradient in zip(self._parameters, gradients, strict=True):
            parameter.grad = gradient
        return torch.mul(loss.cpu(), contrasts.mean())

    def _part(self, batch: Batch, scale: Tensor) -> tuple[Tensor, ...]:
        device = self._device
        neighbours = batch.neighbours.to(device, memory_format=torch.channels_last, non_blocking=True)
        centre, target, contrast, weight, electrons = (
            t.to(device) for t in (batch.centre, batch.target, batch.contrast, batch.weight, batch.electrons)
        )
        with torch.autocast(torch.device(device).type, torch.bfloat16, enabled=self._mixed):
            output = self._network(neighbours, centre)
        if output.shape[1] == 2:
            # Twice, so that where counts are many it changes with the mean as the mean square does.
            terms = 2 * likelihood_terms(output, target, contrast, electrons)
        else:
            # The mean square is lowest at the expected counts, whatever the noise; a mean absolute error is not.
            terms = (target - contrast * output.float()).square()
        loss = (weight * terms).sum() * scale.to(device)
        return loss.detach(), *torch.autograd.grad(loss, self._parameters)

    def close(self) -> None:
        """End the threads."""
        self._pool.shutdown()


def _step(
    state: TrainingState,
    gradients: _Gradients,
    batch: Batch,
    settings: TrainingSettings,
    gains_only: bool,
) -> Tensor:
    """One optimiser step; the loss in units of the noise variance."""
    state.network.train()
    loss = gradients(batch)
    given: list[nn.Parameter] = []
    fixed: list[Tensor] = []
    if gains_only:
        # Layers that are new have no gains to adapt yet: they learn in full from the start.
        given = [p for name, p in state.network.named_parameters() if name not in state.new]
        fixed = [parameter.detach().clone() for parameter in given]
        for parameter, before in zip(given, fixed, strict=True):
            parameter.grad = _along(before, parameter.grad)
    nn.utils.clip_grad_norm_(state.network.parameters(), MAX_GRADIENT, error_if_nonfinite=True)
    _tame(state.optimizer)
    state.optimizer.step()
    with torch.no_grad():
        for parameter, before in zip(given, fixed, strict=True):
            parameter.copy_(before + _along(before, parameter - before))
        keep = min(settings.average, (state.step + 1) / (state.step + 10))
        for mean, value in zip(state.averaged.parameters(), state.network.parameters(), strict=True):
            mean.lerp_(value, 1 - keep)
    return loss


def _along(weights: Tensor, change: Tensor | None) -> Tensor:
    """The part of a change that multiplies all weights of an output channel by one factor; biases stay."""
    if change is None or weights.ndim < 2:
        return torch.zeros_like(weights)
    inner = tuple(range(1, weights.ndim))
    factor = (change * weights).sum(inner, keepdim=True) / weights.square().sum(inner, keepdim=True)
    return weights * factor.nan_to_num()  # a channel of zeros has no direction


@torch.no_grad()
def _tame(optimizer: torch.optim.AdamW) -> None:
    """Shrink gradients that are far above what Adam expects of them, one tensor at a time.

    Adam divides by the usual size of a gradient; after a quiet time, a large one makes a step that undoes
    hundreds. Update clipping (Shazeer & Stern 2018, AdaFactor) bounds the root mean square of the step.
    """
    for group in optimizer.param_groups:
        for parameter in group["params"]:
            known = optimizer.state[parameter]
            if known and parameter.grad is not None:
                share = 1 - group["betas"][1] ** float(known["step"])
                usual = (known["exp_avg_sq"] / share).add_(1e-20)
                excess = (parameter.grad.square() / usual).mean().sqrt().clamp_(min=1.0)
                parameter.grad.div_(excess)


def _validate(
    state: TrainingState,
    losses: list[Tensor],
    validation: Callable[[Network], float],
    resolution: float,
    likelihood: Callable[[Network], float] | None,
) -> dict[str, float]:
    """Measure the averaged weights on the held-out frames; keep a copy of the best."""
    error = validation(state.averaged)
    chosen_by = error if likelihood is None else likelihood(state.averaged)
    if not math.isfinite(error + chosen_by):
        raise FloatingPointError(f"the held-out error is {error + chosen_by} at step {state.step}")
    if chosen_by <= state.best_error + resolution:
        state.best_error, state.best_step = min(chosen_by, state.best_error), state.step
        # A copy: state_dict() returns views that go on changing.
        state.best = copy.deepcopy(state.averaged)
    record = {
        "step": float(state.step),
        # Before the first step there is no loss; given weights have but the held-out error.
        "loss": float(torch.stack(losses).mean()) if losses else error,
        "held_out": error,
        "best": state.best_error,
        "elapsed_s": state.elapsed_s,
    }
    if likelihood is not None:
        record["held_out_nll"] = chosen_by
    state.history.append(record)
    return record


def turn_back(
    state: TrainingState,
    given: dict[str, Tensor],
    errors: Sequence[Callable[[Network], Sums]],
) -> float:
    """Keep of an adaptation no more than the movie asks for.

    What a movie does not teach, given weights know from the many that they were trained on; what it teaches by
    chance, they do not know. Between them and the best adapted ones, the error changes smoothly (Wortsman et al.
    2022, robust fine-tuning). Kept are the weights nearest to the given ones that are no worse than the
    best, in every respect: by no more than a part of the standard error of the difference, for in a short movie this
    error is larger than all that there is to gain.

    Parameters
    ----------
    state : TrainingState
        Its best weights are changed, but for those that are new.
    given : dict
        The weights that it started from; those that the network does not have do not matter.
    errors : sequence of callable
        What is compared: the error of held-out frames (`tdenoise.training.validation.HeldOut.by_block`), and how
        much the counts contradict the weights (`tdenoise.training.contradiction`).

    Returns
    -------
    float
        Share of the way from the given weights, 1 at the best ones.
    """
    adapted = state.best.state_dict()
    old = {k: given[k].to(v) for k, v in adapted.items() if k in given and k not in state.new}
    lowest = [measured(state.best) for measured in errors]
    for share in SHARES:
        between = copy.deepcopy(state.best)
        between.load_state_dict(adapted | {k: v.lerp(adapted[k], share) for k, v in old.items()})
        found = (compare(measured(between), least) for measured, least in zip(errors, lowest, strict=True))
        if all(excess <= NO_WORSE * error for excess, error in found):
            state.best = between
            return share
    return 1.0
