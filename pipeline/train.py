"""Train: movie stores become a model folder; checkpoints on the way, so that it can be stopped at any time."""

from __future__ import annotations

import json
import logging
import math
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from safetensors import SafetensorError
from safetensors.torch import load as load_tensors
from safetensors.torch import save as save_tensors

from tdenoise import checkpoint, runtime, thinning
from tdenoise.atomic import write_atomically
from tdenoise.held_out import HeldOut, Sums
from tdenoise.kinds import Architecture, Network, architecture_of, build, kind_of, scale_for
from tdenoise.network import Architecture as SplitBlindArchitecture
from tdenoise.noise import NoiseStatistics, choose, persistence_warning, widest
from tdenoise.patches import PatchLoader, TrainingMovie, hold_out
from tdenoise.team import Team
from tdenoise.train import TrainingSettings, TrainingState, train, turn_back
from tdenoise.udvd import UdvdArchitecture

from . import budget, memory, processes, progress, store
from .config import SCRATCH, TrainConfig
from .control import Control
from .errors import InputError, PipelineError, Stopped, UsageError
from .faults import maybe_crash
from .fit import movie_drift, movie_noise, open_model, signal_to_noise
from .heads import check_gamma, electron_counts, has_gamma_head
from .pixels import measure, movie_stand_ins
from .version import VERSION

log = logging.getLogger(__name__)

CHECKPOINT_S = 120.0  # time between checkpoints
UNLIMITED = 10**9  # steps, where the time limit ends the training
GAIN_SHARE = 0.15  # of the time, when a model is adapted
LEARNING_RATES = {"udvd": 5e-4}  # peak, of kinds of network that need another
# Patches per step and their size on a CPU, where a step of the usual size takes 10 s and more.
CPU_BATCHES = {"udvd": (2, 64)}


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
    known = progress.plan_id(plan.identity)
    if config.processes != "slurm" and _already_trained(config, known):
        progress.tidy_up(config.output)
        return checkpoint.read_card(config.output)
    memory.check_train(plan.movies)
    n_local = config.processes or min(plan.n_devices, plan.settings.batch)
    with processes.team(n_local, plan.settings.batch, partial(train_in_team, config)) as team:
        return train_in_team(config, control, team)


def train_in_team(config: TrainConfig, control: Control, team: Team) -> dict[str, Any]:
    """The share of one process; the first leads, and alone holds the output and writes."""
    plan = make_plan(config)
    if team.rank > 0:
        _follow(plan, control, team)
        return {}
    known = progress.plan_id(plan.identity)
    if _already_trained(config, known):
        progress.tidy_up(config.output)
        team.broadcast(b"{}")
        return checkpoint.read_card(config.output)
    log.info("%s", plan.reason)
    if has_gamma_head(plan.architecture):
        log.warning(
            "a few noisy movies hardly show how uncertain a good prediction is: take the variance that this model "
            "states for a rough one, and compare it with the errors by 'evaluate' (docs/models.md)."
        )
    training = [_looked_at(movie, plan) for movie in plan.movies]
    inputs = [path for path in (*config.movie, plan.start, config.distill) if path is not None]
    with progress.OutputRun(config.output, plan.identity, inputs, force=config.force, command=config) as run:
        run.prepare(lambda path: path.mkdir(parents=True))
        state = _start(plan, run.partial, _device(plan, team))
        orders = {"plan": run.id, "mixed_precision": plan.settings.mixed_precision, "software": VERSION}
        team.broadcast(json.dumps(orders).encode())
        team.broadcast(state_bytes(state) if team.size > 1 else b"")
        kept = _train(state, training, plan, run, control, team)
        card = _save(run, plan, training, state, kept)
        run.commit()
    log.info("model %s: %d steps, best at %d", card["sha256"][:12], state.step, state.best_step)
    if kept.get("share", 1.0) < 1:
        log.info("of its difference from the given weights, %.0f %% are kept", 100 * kept["share"])
    return card


def _follow(plan: Plan, control: Control, team: Team) -> None:
    """Do a share of the work of the first process, from the state that it has; write nothing."""
    orders = json.loads(team.broadcast(b""))
    if not orders:
        return  # the model is there
    own = {"plan": progress.plan_id(plan.identity), "software": VERSION}
    for name, value in own.items():
        if orders[name] != value:
            raise PipelineError(
                f"process {team.rank} of the training has another {name} than the first: {value}, not "
                f"{orders[name]}. All nodes must use one installation and see the same files."
            )
    plan = replace(plan, settings=replace(plan.settings, mixed_precision=orders["mixed_precision"]))
    training = [
        _training_movie(movie, plan, movie_noise(movie), movie_stand_ins(movie)) for movie in plan.movies
    ]
    state = _fresh(plan, _device(plan, team))
    _fill(state, team.broadcast(b""))
    _train(state, training, plan, None, control, team)


def _device(plan: Plan, team: Team) -> str:
    if plan.device != "cuda" or team.size == 1:
        return plan.device
    return f"cuda:{team.local_rank % torch.cuda.device_count()}"


def _looked_at(movie: store.Store, plan: Plan) -> TrainingMovie:
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
    return _training_movie(movie, plan, noise, bad)


def _training_movie(
    movie: store.Store, plan: Plan, noise: NoiseStatistics, bad: NDArray[np.float32] | None
) -> TrainingMovie:
    return TrainingMovie(
        movie.array,
        scale_for(plan.architecture, noise),
        hold_out(movie.shape[0]),
        clean=None if plan.teacher is None else plan.teacher.array,
        stand_ins=bad,
        drift=plan.drifts[movie.id],
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
    teacher: store.Store | None  # the movie as another model denoised it: the target instead of the counts
    parent: dict[str, Any] | None  # its card
    drifts: dict[str, NDArray[np.float64] | None]  # that windows follow, of every movie by its id
    ignore_drift: bool  # as `apply` then does, too
    identity: dict[str, Any]

    @property
    def n_devices(self) -> int:
        """GPUs to use here, or 1 for the processor, of which one process uses all cores."""
        return torch.cuda.device_count() if self.device == "cuda" else 1


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
    teacher = None if config.distill is None else _teacher(config.distill, movies, architecture)
    learning_rate = LEARNING_RATES.get(kind_of(architecture), TrainingSettings.learning_rate)
    usual = TrainingSettings.batch, TrainingSettings.patch
    batch, patch = CPU_BATCHES.get(kind_of(architecture), usual) if device == "cpu" else usual
    settings = TrainingSettings(
        batch=batch,
        patch=patch,
        steps=config.steps or (TrainingSettings.steps if config.time_limit is None else UNLIMITED),
        time_limit_s=config.time_limit,
        seed=config.seed,
        learning_rate=learning_rate / (4 if parent else 1),
        gain_share=GAIN_SHARE if parent else None,
        mixed_precision=device == "cuda" or fast_bfloat16(),
        least_dose=config.least_dose,
    )
    drifts = {movie.id: None if config.ignore_drift else movie_drift(movie, architecture) for movie in movies}
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
        **({} if teacher is None else {"teacher": teacher.id}),
    }
    if any(drift is not None for drift in drifts.values()):
        identity["drifts"] = [None if d is None else store.content_hash(d) for d in drifts.values()]
    return Plan(
        movies,
        architecture,
        reason,
        settings,
        device,
        start,
        teacher,
        parent,
        drifts,
        config.ignore_drift,
        identity,
    )


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
        "memory_bytes": memory.train_bytes(plan.movies),
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


def _teacher(path: Path, movies: list[store.Store], architecture: Architecture) -> store.Store:
    """The denoised movie whose values are to be learnt.

    It is blind itself, so its value of a pixel has nothing of that pixel's noise, and a network that learns it
    learns no noise either.
    """
    if len(movies) > 1:
        raise UsageError("--distill takes one movie at a time. Name one.")
    if kind_of(architecture) == "thinned" or has_gamma_head(architecture):
        raise UsageError("--distill is for blind models with the mean head. Leave --model or --head away.")
    teacher = store.open_store(path, store.DENOISED)
    if teacher.attributes["movie"]["id"] != movies[0].id:
        raise InputError(
            path, f"is not denoised from {movies[0].path}. Give the store that was made from it."
        )
    if teacher.attributes.get("posterior"):
        raise InputError(path, "holds the own count of every pixel. Denoise the movie without --posterior.")
    return teacher


def _check_thinning(movies: list[store.Store], what: str, instead: str) -> None:
    """Refuse movies whose counts cannot be split into independent frames."""
    for movie in movies:
        refused = thinning.refusal(movie_noise(movie), movie.attributes["detector"]["counts_per_electron"])
        if refused is not None:
            raise InputError(movie.path, f"{what} is not valid here: {refused}. {instead}")


def fast_bfloat16() -> bool:
    """Whether this processor multiplies bfloat16 in hardware; elsewhere it is slower than float32."""
    try:
        flags = Path("/proc/cpuinfo").read_text()
    except OSError:
        return False
    return "avx512_bf16" in flags or "amx_bf16" in flags


def _already_trained(config: TrainConfig, plan: str) -> bool:
    try:
        return not config.force and bool(checkpoint.read_card(config.output).get("plan") == plan)
    except checkpoint.ModelError:
        return False


def _fresh(plan: Plan, device: str) -> TrainingState:
    return TrainingState.start(plan.architecture, plan.settings, device, _given(plan))


def _given(plan: Plan) -> dict[str, torch.Tensor] | None:
    """The weights to adapt."""
    weights = None if plan.start is None else open_model(plan.start).network.state_dict()
    if weights is not None and plan.start == checkpoint.BASE and has_gamma_head(plan.architecture):
        # One noisy movie is too small to tell how large the error of a good prediction is.
        weights = checkpoint.base_spread() | weights
    return weights


def _start(plan: Plan, folder: Path, device: str) -> TrainingState:
    """A fresh state, or the one of the last checkpoint."""
    state = _fresh(plan, device)
    if (folder / "checkpoint.safetensors").exists():
        restore(state, folder / "checkpoint.safetensors")
        log.info("going on from step %d", state.step)
    return state


def _train(
    state: TrainingState,
    movies: list[TrainingMovie],
    plan: Plan,
    run: progress.OutputRun | None,
    control: Control,
    team: Team,
) -> dict[str, float]:
    """Run the loop; the first process of a team validates, and writes metrics and checkpoints as it goes.

    What was measured of the weights that are kept, for the first process.
    """
    runtime.prepare(n_threads=1)
    architecture, settings, device = plan.architecture, plan.settings, _device(plan, team)
    thinned = kind_of(architecture) == "thinned"
    loader = PatchLoader(
        movies,
        architecture,
        patch=settings.patch,
        batch=settings.batch,
        seed=settings.seed,
        split=thinning.split if thinned else None,
        least_dose=settings.least_dose,
        share=(team.rank, team.size),
    )
    split = thinning.split_for_validation if thinned else None
    validation = HeldOut(
        movies if team.rank == 0 else [],
        architecture,
        device,
        settings.mixed_precision,
        split,
        settings.least_dose,
    )
    if state.spread_is_new:
        state.start_spread(team.of_first(lambda: validation.constant_spread(state.network)))
    stopping = False

    def errors(network: Network) -> Sums:
        control.check("compare with the given weights")
        return validation.by_block(network)

    def likelihood(network: Network) -> float:
        return team.of_first(lambda: validation.likelihood(network))

    def stopped() -> bool:
        nonlocal stopping
        stopping = team.any(control.stop.is_set())  # a signal to one stops all, at the same step
        return stopping

    records = train(
        state,
        loader,
        lambda network: team.of_first(lambda: validation(network)),
        settings,
        device,
        stopped,
        max(1, budget.n_cores() // team.local_size),
        team.of_first(lambda: validation.resolution),
        likelihood if has_gamma_head(architecture) else None,
        team=team,
    )
    if run is None:
        for _ in records:
            pass
    else:
        folder, checkpoint_file, allowed = run.partial, run.partial / "checkpoint.safetensors", run.check

        def keep() -> None:
            snapshot(state, checkpoint_file, allowed)

        saved = time.monotonic()
        _write_metrics(folder, state)
        _show(control, state, settings)
        for _ in records:
            _write_metrics(folder, state)
            _show(control, state, settings)
            if time.monotonic() - saved > CHECKPOINT_S:
                keep()
                saved = time.monotonic()
        # What follows takes as long as some validations, and begins anew after a stop.
        keep()
    if stopping:
        raise Stopped(f"stopped at step {state.step}; run the same command again to continue")
    if team.rank > 0:
        return {}
    kept: dict[str, float] = {}
    given = _given(plan)
    if given is not None:
        kept["share"] = 0.0 if state.best_step == 0 else turn_back(state, given, errors)
    kept["held_out_error"] = validation(state.best)
    if has_gamma_head(architecture):
        kept["held_out_nll"] = validation.likelihood(state.best)
    return kept


def _show(control: Control, state: TrainingState, settings: TrainingSettings) -> None:
    done = state.step / settings.steps
    if settings.time_limit_s is not None:
        done = max(done, state.elapsed_s / settings.time_limit_s)
    control.progress("train", min(1000, math.floor(1000 * done)), 1000)


def _write_metrics(folder: Path, state: TrainingState) -> None:
    lines = "".join(json.dumps(record) + "\n" for record in state.history)
    write_atomically(folder / "metrics.jsonl", lines.encode())


def _save(
    run: progress.OutputRun,
    plan: Plan,
    training: list[TrainingMovie],
    state: TrainingState,
    kept: dict[str, float],
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
        "ignore_drift": plan.ignore_drift,
        "reason": plan.reason,
        "steps": state.step,
        "best_step": state.best_step,
        "seed": plan.settings.seed,
        "device": plan.device,
        "parent": None if plan.parent is None else plan.parent["sha256"],
        **({} if plan.teacher is None else {"teacher": plan.teacher.attributes["model"]["id"]}),
        "metrics": {**kept, "elapsed_s": state.elapsed_s},
        "software": VERSION,
    }
    run.check()
    card = checkpoint.save_model(run.partial, state.best, details)
    maybe_crash("model.saved")
    (run.partial / "checkpoint.safetensors").unlink(missing_ok=True)
    maybe_crash("model.tidied")
    return card


def snapshot(state: TrainingState, path: Path, allowed: Callable[[], None] = lambda: None) -> None:
    """Write a checkpoint, unless ``allowed`` raises; a crash while writing leaves the previous one."""

    def before() -> None:
        maybe_crash("checkpoint.synced")
        allowed()

    write_atomically(path, state_bytes(state), before)
    maybe_crash("checkpoint.written")


def state_bytes(state: TrainingState) -> bytes:
    """A training state as safetensors."""
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
        "annealing_since": state.annealing_since,
        "history": state.history,
    }
    return save_tensors(tensors, {"state": json.dumps(rest)})


def restore(state: TrainingState, path: Path) -> None:
    """Fill a fresh state from a checkpoint.

    Raises
    ------
    PipelineError
        If the checkpoint is damaged.
    """
    try:
        _fill(state, path.read_bytes())
    except (OSError, SafetensorError, KeyError, ValueError, RuntimeError) as error:
        raise PipelineError(
            f"{path}: the checkpoint is damaged ({error}). Remove {path.parent} to start over."
        ) from None


def _fill(state: TrainingState, data: bytes) -> None:
    """Fill a fresh state from what `state_bytes` gave."""
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
    state.step = rest["step"]
    state.elapsed_s = rest["elapsed_s"]
    state.best_step = rest["best_step"]
    state.best_error = math.inf if rest["best_error"] is None else rest["best_error"]
    state.annealing_since = rest.get("annealing_since")  # not in checkpoints of old versions
    state.history = rest["history"]


def _under(tensors: dict[str, torch.Tensor], prefix: str) -> dict[str, torch.Tensor]:
    return {k.removeprefix(prefix + "."): v for k, v in tensors.items() if k.startswith(prefix + ".")}
