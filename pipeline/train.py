"""Train: movie stores become a model folder; checkpoints on the way, so that it can be stopped at any time."""

from __future__ import annotations

import json
import logging
import math
import time
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import SafetensorError
from safetensors.torch import load as load_tensors
from safetensors.torch import save as save_tensors

from tdenoise import checkpoint, runtime, thinning
from tdenoise.atomic import write_atomically
from tdenoise.kinds import Architecture, Network, architecture_of, build, kind_of, scale_for
from tdenoise.network import Architecture as SplitBlindArchitecture
from tdenoise.noise import NoiseStatistics, choose, persistence_warning, widest
from tdenoise.patches import PatchLoader, TrainingMovie, hold_out
from tdenoise.train import HeldOut, TrainingSettings, TrainingState, train
from tdenoise.udvd import UdvdArchitecture

from . import budget, progress, store
from .apply import movie_noise, open_model, signal_to_noise
from .config import SCRATCH, TrainConfig
from .control import Control
from .errors import InputError, PipelineError, Stopped, UsageError
from .heads import check_gamma, electron_counts, has_gamma_head
from .pixels import measure, movie_stand_ins
from .version import VERSION

log = logging.getLogger(__name__)

CHECKPOINT_S = 120.0  # time between checkpoints
UNLIMITED = 10**9  # steps, where the time limit ends the training
GAIN_SHARE = 0.15  # of the time, when a model is adapted
LEARNING_RATES = {"udvd": 5e-4}  # peak, of kinds of network that need another


def train_model(config: TrainConfig, control: Control | None = None) -> dict[str, Any]:
    """Train a model on one or several movies; safe to stop and start again.

    Parameters
    ----------
    config : TrainConfig
    control : Control, optional

    Returns
    -------
    dict
        The model's card.

    Raises
    ------
    InputError
        If a movie is missing, or cannot be learned from.
    Stopped
        If a signal came; the next run goes on from the checkpoint.
    """
    control = control or Control()
    plan = make_plan(config)
    if _already_trained(config.output, progress.plan_id(plan.identity)) and not config.force:
        return checkpoint.read_card(config.output)
    log.info("%s", plan.reason)
    if has_gamma_head(plan.architecture):
        log.warning(
            "a few noisy movies hardly show how uncertain a good prediction is: take the variance that this model "
            "states for a rough one, and compare it with the errors by 'evaluate' (docs/models.md)."
        )
    training = [_training_movie(movie, plan.architecture) for movie in plan.movies]
    inputs = [*config.movie, *([] if plan.start is None else [plan.start])]
    with progress.OutputRun(config.output, plan.identity, inputs, force=config.force) as run:
        run.prepare(lambda path: path.mkdir(parents=True))
        state = _start(plan, run.partial)
        _train(state, training, plan, run.partial, control)
        card = _save(run, plan, training, state)
        run.commit()
    log.info("model %s: %d steps, best at %d", card["sha256"][:12], state.step, state.best_step)
    return card


def _training_movie(movie: store.Store, architecture: Architecture) -> TrainingMovie:
    """A movie to learn from; says what of it cannot be learned from."""
    noise = movie_noise(movie)
    pixels = measure(movie)
    bad = movie_stand_ins(movie, pixels)
    if bad is not None:
        n_bad = int(np.isfinite(bad).sum())
        log.info("%s: %d bad pixels are hidden from the network and take no part", movie.path, n_bad)
    if (pattern := pixels.fixed_pattern()).matters:
        log.warning(
            "%s: the gains of neighbouring pixels differ by %.1f %% (standard deviation), the same in every frame. "
            "The model will keep this pattern as if it were signal: give ingest a gain reference (--gain FILE).",
            movie.path,
            100 * pattern.spread,
        )
    if (warning := persistence_warning(noise)) is not None:
        log.warning("%s: %s", movie.path, warning)
    return TrainingMovie(
        movie.array,
        scale_for(architecture, noise),
        hold_out(movie.shape[0]),
        stand_ins=bad,
        gain=electron_counts(movie),
    )


@dataclass(frozen=True)
class Plan:
    """Everything that decides the model, known before training starts."""

    movies: list[store.Store]
    architecture: Architecture
    reason: str  # why it is blind as it is
    settings: TrainingSettings
    device: str
    start: Path | None  # the model whose weights are adapted
    parent: dict[str, Any] | None  # its card
    identity: dict[str, Any]


def make_plan(config: TrainConfig) -> Plan:
    """Check the movies and choose what the settings leave open."""
    movies = [store.open_store(path, store.MOVIE) for path in config.movie]
    if len({movie.id for movie in movies}) < len(movies):
        raise UsageError("the same movie is given twice. Name every movie once.")
    device = checkpoint.default_device() if config.device == "auto" else config.device
    if device == "cuda" and not torch.cuda.is_available():
        raise UsageError("--device cuda, but no GPU is usable here. Use --device cpu, or ask for a GPU node.")
    given = config.from_model if config.from_model not in (None, SCRATCH) else None
    architecture, reason = choose_architecture(
        config, movies, None if given is None else open_model(given).card
    )
    start = given
    if config.from_model is None and kind_of(architecture) == "split-blind":
        start = checkpoint.BASE
    parent = None if start is None else open_model(start).card
    if kind_of(architecture) == "thinned":
        _check_thinning(movies, "--model thinned", "Use --model split-blind.")
    if config.least_dose < 1:
        _check_thinning(movies, "--least-dose", "Leave it away.")
    if has_gamma_head(architecture):
        for movie in movies:
            check_gamma(movie, "--head gamma", "Use --head mean.")
    learning_rate = LEARNING_RATES.get(kind_of(architecture), TrainingSettings.learning_rate)
    settings = TrainingSettings(
        steps=config.steps or (TrainingSettings.steps if config.time_limit is None else UNLIMITED),
        time_limit_s=config.time_limit,
        seed=config.seed,
        learning_rate=learning_rate / (4 if parent else 1),
        gain_share=GAIN_SHARE if parent else None,
        mixed_precision=device == "cuda" or _fast_bfloat16(),
        least_dose=config.least_dose,
    )
    decisive = {k: v for k, v in asdict(settings).items() if k != "mixed_precision"}
    if settings.least_dose == 1:
        del decisive["least_dose"]  # as in plans of versions that did not know it
    identity = {
        "step": "train",
        "movies": [movie.id for movie in movies],
        "architecture": architecture.to_json(),
        # Not the precision and the device: a job that is queued again may land on another kind of node.
        "settings": decisive,
        "parent": None if parent is None else parent["sha256"],
    }
    return Plan(movies, architecture, reason, settings, device, start, parent, identity)


def describe_plan(config: TrainConfig) -> dict[str, Any]:
    """What ``--dry-run`` prints."""
    plan = make_plan(config)
    for movie in plan.movies:
        movie_noise(movie)
    return {
        **plan.identity,
        "reason": plan.reason,
        "device": plan.device,
        "n_parameters": sum(p.numel() for p in build(plan.architecture).parameters()),
        "held_out": [list(hold_out(m.shape[0])) for m in plan.movies],
    }


def choose_architecture(
    config: TrainConfig, movies: list[store.Store], parent: dict[str, Any] | None
) -> tuple[Architecture, str]:
    """The parent's architecture, or the standard one with a blind spot that fits the noise; and why.

    UDVD has the blind spot of the script that is used for it, 3 x 3 pixels, whatever the noise. The head may be
    another one than the parent's.
    """
    architecture, reason = _choose_blindness(config, movies, parent)
    if config.head is None:
        return architecture, reason
    if isinstance(architecture, SplitBlindArchitecture) and architecture.centre == "blind":
        return replace(architecture, head=config.head), reason
    if config.head == "gamma":
        raise UsageError(f"--head gamma: only a split-blind model can have it, not {kind_of(architecture)}.")
    return architecture, reason


def _choose_blindness(
    config: TrainConfig, movies: list[store.Store], parent: dict[str, Any] | None
) -> tuple[Architecture, str]:
    if parent is not None:
        inherited = architecture_of(parent)
        if config.model not in (None, kind_of(inherited)):
            raise UsageError(f"--model {config.model}: the model given with --from is {kind_of(inherited)}.")
        if config.blind_radius not in (
            "auto",
            "frame" if inherited.blind_radius is None else inherited.blind_radius,
        ):
            raise UsageError("--blind-radius cannot change the blind spot of the model given with --from.")
        return inherited, "blind as the model given with --from"
    if config.model == "udvd":
        if config.blind_radius not in ("auto", 0, 1):
            raise UsageError(
                f"--blind-radius {config.blind_radius}: of udvd it is 0, 1 or auto (which is 1)."
            )
        radius = 0 if config.blind_radius == 0 else 1
        return UdvdArchitecture(radius), "udvd hides the same pixels of all its frames"
    if config.model == "thinned":
        if config.blind_radius != "auto":
            raise UsageError("--blind-radius: a thinned model has no blind spot. Leave it away.")
        reason = "not blind: single electrons (Fano factor 1, no correlations) can be split at random"
        return SplitBlindArchitecture(centre="seen"), reason
    measured = [NoiseStatistics.from_json(m.attributes["noise"]) for m in movies if m.attributes["noise"]]
    choices = [choose(statistics) for statistics in measured]
    fitting = widest(choice.blind_radius for choice in choices)
    if config.blind_radius != "auto":
        wanted = None if config.blind_radius == "frame" else int(config.blind_radius)
        reason = f"--blind-radius {config.blind_radius}"
        if widest([wanted, fitting]) != wanted:
            advised = "frame" if fitting is None else fitting
            reason += f", less than the {advised} that the measured noise asks for"
        return SplitBlindArchitecture(blind_radius=wanted), reason
    deciding = [choice.reason for choice in choices if choice.blind_radius == fitting]
    return SplitBlindArchitecture(blind_radius=fitting), deciding[0] if deciding else "the noise is not known"


def _check_thinning(movies: list[store.Store], what: str, instead: str) -> None:
    """Refuse movies whose counts cannot be split into independent frames."""
    for movie in movies:
        refused = thinning.refusal(movie_noise(movie), movie.attributes["detector"]["counts_per_electron"])
        if refused is not None:
            raise InputError(movie.path, f"{what} is not valid here: {refused}. {instead}")


def _fast_bfloat16() -> bool:
    """Whether this processor multiplies bfloat16 in hardware; elsewhere it is slower than float32."""
    try:
        flags = Path("/proc/cpuinfo").read_text()
    except OSError:
        return False
    return "avx512_bf16" in flags or "amx_bf16" in flags


def _already_trained(output: Path, plan: str) -> bool:
    try:
        return bool(checkpoint.read_card(output).get("plan") == plan)
    except checkpoint.ModelError:
        return False


def _start(plan: Plan, folder: Path) -> TrainingState:
    """A fresh state, or the one of the last checkpoint."""
    weights = None if plan.start is None else open_model(plan.start).network.state_dict()
    if weights is not None and plan.start == checkpoint.BASE and has_gamma_head(plan.architecture):
        # One noisy movie is too small to tell how large the error of a good prediction is.
        weights = checkpoint.base_spread() | weights
    state = TrainingState.start(plan.architecture, plan.settings, plan.device, weights)
    if (folder / "checkpoint.safetensors").exists():
        restore(state, folder / "checkpoint.safetensors")
        log.info("going on from step %d", state.step)
    return state


def _train(
    state: TrainingState, movies: list[TrainingMovie], plan: Plan, folder: Path, control: Control
) -> None:
    """Run the loop; write metrics and checkpoints as it goes."""
    runtime.prepare(n_threads=1)
    architecture, settings, device = plan.architecture, plan.settings, plan.device
    thinned = kind_of(architecture) == "thinned"
    loader = PatchLoader(
        movies,
        architecture,
        patch=settings.patch,
        batch=settings.batch,
        seed=settings.seed,
        split=thinning.split if thinned else None,
        least_dose=settings.least_dose,
    )
    split = thinning.split_for_validation if thinned else None
    validation = HeldOut(movies, architecture, device, settings.mixed_precision, split, settings.least_dose)
    likelihood = validation.likelihood if has_gamma_head(architecture) else None
    if not state.history and not state.step:
        state.start_spread(validation)
    n_threads = budget.n_cores()
    saved = time.monotonic()
    _write_metrics(folder, state)
    _show(control, state, settings)
    records = train(
        state,
        loader,
        validation,
        settings,
        device,
        control.stop.is_set,
        n_threads,
        validation.resolution,
        likelihood,
    )
    for _ in records:
        _write_metrics(folder, state)
        _show(control, state, settings)
        if time.monotonic() - saved > CHECKPOINT_S:
            snapshot(state, folder / "checkpoint.safetensors")
            saved = time.monotonic()
    if control.stop.is_set():
        snapshot(state, folder / "checkpoint.safetensors")
        raise Stopped(f"stopped at step {state.step}; run the same command again to continue")


def _show(control: Control, state: TrainingState, settings: TrainingSettings) -> None:
    done = state.step / settings.steps
    if settings.time_limit_s is not None:
        done = max(done, state.elapsed_s / settings.time_limit_s)
    control.progress("train", min(1000, math.floor(1000 * done)), 1000)


def _write_metrics(folder: Path, state: TrainingState) -> None:
    lines = "".join(json.dumps(record) + "\n" for record in state.history)
    write_atomically(folder / "metrics.jsonl", lines.encode())


def _save(
    run: progress.OutputRun, plan: Plan, training: list[TrainingMovie], state: TrainingState
) -> dict[str, Any]:
    """Write the model folder's weights and card, and take the checkpoint away."""
    details = {
        "plan": run.id,
        "movies": [
            {
                "id": movie.id,
                "source": movie.attributes["source"]["sha256"],
                "name": movie.path.name,
                "shape": list(movie.shape),
                "scale": asdict(trained.scale),
                "snr": signal_to_noise(movie_noise(movie)),
                "held_out": list(trained.held_out),
            }
            for movie, trained in zip(plan.movies, training, strict=True)
        ],
        **({"imported": plan.parent["imported"]} if plan.parent and "imported" in plan.parent else {}),
        "ancestors": [] if plan.parent is None else [*plan.parent["movies"], *plan.parent["ancestors"]],
        "settings": asdict(plan.settings),
        "reason": plan.reason,
        "steps": state.step,
        "best_step": state.best_step,
        "seed": plan.settings.seed,
        "device": plan.device,
        "parent": None if plan.parent is None else plan.parent["sha256"],
        "metrics": {
            "held_out_error": _kept(state)["held_out"],
            **({"held_out_nll": _kept(state)["held_out_nll"]} if "held_out_nll" in _kept(state) else {}),
            "elapsed_s": state.elapsed_s,
        },
        "software": VERSION,
    }
    card = checkpoint.save_model(run.partial, state.best, details)
    (run.partial / "checkpoint.safetensors").unlink(missing_ok=True)
    return card


def _kept(state: TrainingState) -> dict[str, float]:
    """What was measured of the weights that are kept."""
    return next(r for r in state.history if r["step"] == state.best_step)


def snapshot(state: TrainingState, path: Path) -> None:
    """Write a checkpoint; a crash while writing leaves the previous one."""
    tensors: dict[str, torch.Tensor] = {}
    networks = {"network": state.network, "averaged": state.averaged, "best": state.best}
    for prefix, network in networks.items():
        tensors |= {f"{prefix}.{k}": v.detach().cpu().contiguous() for k, v in network.state_dict().items()}
    moments = state.optimizer.state_dict()["state"]
    for number, values in moments.items():
        tensors |= {
            f"optimizer.{number}.{k}": v.detach().cpu().contiguous().clone() for k, v in values.items()
        }
    rest = {
        "step": state.step,
        "elapsed_s": state.elapsed_s,
        "best_step": state.best_step,
        "best_error": state.best_error if math.isfinite(state.best_error) else None,
        "history": state.history,
    }
    write_atomically(path, save_tensors(tensors, {"state": json.dumps(rest)}))


def restore(state: TrainingState, path: Path) -> None:
    """Fill a fresh state from a checkpoint.

    Raises
    ------
    PipelineError
        If the checkpoint is damaged.
    """
    try:
        data = path.read_bytes()
        tensors = load_tensors(data)
        header = json.loads(data[8 : 8 + int.from_bytes(data[:8], "little")])
        rest = json.loads(header["__metadata__"]["state"])
        networks: dict[str, Network] = {
            "network": state.network,
            "averaged": state.averaged,
            "best": state.best,
        }
        for prefix, network in networks.items():
            network.load_state_dict(_under(tensors, prefix))
        moments: dict[int, dict[str, torch.Tensor]] = {}
        for name, value in _under(tensors, "optimizer").items():
            number, _, key = name.partition(".")
            moments.setdefault(int(number), {})[key] = value
        optimizer = state.optimizer.state_dict()
        state.optimizer.load_state_dict({"state": moments, "param_groups": optimizer["param_groups"]})
    except (OSError, SafetensorError, KeyError, ValueError, RuntimeError) as error:
        raise PipelineError(
            f"{path}: the checkpoint is damaged ({error}). Remove {path.parent} to start over."
        ) from None
    state.step = rest["step"]
    state.elapsed_s = rest["elapsed_s"]
    state.best_step = rest["best_step"]
    state.best_error = math.inf if rest["best_error"] is None else rest["best_error"]
    state.history = rest["history"]


def _under(tensors: dict[str, torch.Tensor], prefix: str) -> dict[str, torch.Tensor]:
    return {k.removeprefix(prefix + "."): v for k, v in tensors.items() if k.startswith(prefix + ".")}
