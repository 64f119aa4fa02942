"""Train: movie stores become a model folder; checkpoints on the way, so that it can be stopped at any time."""

from __future__ import annotations

import json
import logging
import math
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load as load_tensors
from safetensors.torch import save as save_tensors

from tdenoise import checkpoint, runtime
from tdenoise.checkpoint import write_atomically
from tdenoise.network import Architecture, SplitBlind
from tdenoise.noise import NoiseStatistics, choose_blind_radius
from tdenoise.patches import PatchLoader, TrainingMovie, hold_out
from tdenoise.train import HeldOut, TrainingSettings, TrainingState, train

from . import budget, progress, store
from .apply import movie_scale, open_model
from .config import TrainConfig
from .control import Control
from .errors import PipelineError, Stopped, UsageError
from .version import VERSION

log = logging.getLogger(__name__)

CHECKPOINT_S = 120.0  # time between checkpoints
UNLIMITED = 10**9  # steps, where the time limit ends the training


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
    training = [TrainingMovie(m.array, movie_scale(m), hold_out(m.shape[0])) for m in plan.movies]
    inputs = [*config.movie, *([] if config.from_model is None else [config.from_model])]
    with progress.OutputRun(config.output, plan.identity, inputs, force=config.force) as run:
        run.prepare(lambda path: path.mkdir(parents=True))
        state = _start(config, plan, run.partial)
        _train(state, training, plan, run.partial, control)
        card = _save(run, plan, training, state)
        run.commit()
    log.info("model %s: %d steps, best at %d", card["sha256"][:12], state.step, state.best_step)
    return card


@dataclass(frozen=True)
class Plan:
    """Everything that decides the model, known before training starts."""

    movies: list[store.Store]
    architecture: Architecture
    settings: TrainingSettings
    device: str
    parent: dict[str, Any] | None
    identity: dict[str, Any]


def make_plan(config: TrainConfig) -> Plan:
    """Check the movies and choose what the settings leave open."""
    movies = [store.open_store(path, store.MOVIE) for path in config.movie]
    if len({movie.id for movie in movies}) < len(movies):
        raise UsageError("the same movie is given twice. Name every movie once.")
    device = checkpoint.default_device() if config.device == "auto" else config.device
    if device == "cuda" and not torch.cuda.is_available():
        raise UsageError("--device cuda, but no GPU is usable here. Use --device cpu, or ask for a GPU node.")
    parent = None if config.from_model is None else open_model(config.from_model).card
    architecture = choose_architecture(config, movies, parent)
    settings = TrainingSettings(
        steps=config.steps or (TrainingSettings.steps if config.time_limit is None else UNLIMITED),
        time_limit_s=config.time_limit,
        seed=config.seed,
        learning_rate=TrainingSettings.learning_rate / (4 if parent else 1),
        mixed_precision=device == "cuda" or _fast_bfloat16(),
    )
    identity = {
        "step": "train",
        "movies": [movie.id for movie in movies],
        "architecture": architecture.to_json(),
        # Not the precision and the device: a job that is queued again may land on another kind of node.
        "settings": {k: v for k, v in asdict(settings).items() if k != "mixed_precision"},
        "parent": None if parent is None else parent["sha256"],
    }
    return Plan(movies, architecture, settings, device, parent, identity)


def describe_plan(config: TrainConfig) -> dict[str, Any]:
    """What ``--dry-run`` prints."""
    plan = make_plan(config)
    for movie in plan.movies:
        movie_scale(movie)
    return {
        **plan.identity,
        "device": plan.device,
        "n_parameters": sum(p.numel() for p in SplitBlind(plan.architecture).parameters()),
        "held_out": [list(hold_out(m.shape[0])) for m in plan.movies],
    }


def choose_architecture(
    config: TrainConfig, movies: list[store.Store], parent: dict[str, Any] | None
) -> Architecture:
    """The parent's architecture, or the standard one with a blind spot that fits the noise."""
    if parent is not None:
        inherited = Architecture.from_json(parent["architecture"])
        if config.blind_radius not in (
            "auto",
            "frame" if inherited.blind_radius is None else inherited.blind_radius,
        ):
            raise UsageError("--blind-radius cannot change the blind spot of the model given with --from.")
        return inherited
    if config.blind_radius == "frame":
        return Architecture(blind_radius=None)
    if isinstance(config.blind_radius, int):
        return Architecture(blind_radius=config.blind_radius)
    measured = [NoiseStatistics.from_json(m.attributes["noise"]) for m in movies if m.attributes["noise"]]
    return Architecture(blind_radius=max((choose_blind_radius(s) for s in measured), default=0))


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


def _start(config: TrainConfig, plan: Plan, folder: Path) -> TrainingState:
    """A fresh state, or the one of the last checkpoint."""
    weights = None
    if config.from_model is not None:
        weights = open_model(config.from_model).network.state_dict()
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
    loader = PatchLoader(movies, architecture, patch=settings.patch, batch=settings.batch, seed=settings.seed)
    validation = HeldOut(movies, architecture, device, settings.mixed_precision)
    n_threads = budget.n_cores()
    saved = time.monotonic()
    _write_metrics(folder, state)
    _show(control, state, settings)
    for _ in train(
        state, loader, validation, settings, device, control.stop.is_set, n_threads, validation.resolution
    ):
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
                "snr": trained.scale.contrast / trained.scale.noise,
                "held_out": list(trained.held_out),
            }
            for movie, trained in zip(plan.movies, training, strict=True)
        ],
        "ancestors": [] if plan.parent is None else [*plan.parent["movies"], *plan.parent["ancestors"]],
        "settings": asdict(plan.settings),
        "steps": state.step,
        "best_step": state.best_step,
        "seed": plan.settings.seed,
        "device": plan.device,
        "parent": None if plan.parent is None else plan.parent["sha256"],
        "metrics": {"held_out_error": _kept_error(state), "elapsed_s": state.elapsed_s},
        "software": VERSION,
    }
    card = checkpoint.save_model(run.partial, state.best, details)
    (run.partial / "checkpoint.safetensors").unlink(missing_ok=True)
    return card


def _kept_error(state: TrainingState) -> float:
    """Held-out error of the weights that are kept."""
    return next(r["held_out"] for r in state.history if r["step"] == state.best_step)


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
        networks: dict[str, SplitBlind] = {
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
