"""Train: movie stores become a model folder; checkpoints on the way, so that it can be stopped at any time."""

from __future__ import annotations

import json
import logging
import math
import time
from dataclasses import asdict, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from tdenoise import checkpoint, runtime, thinning
from tdenoise.atomic import write_atomically
from tdenoise.contradiction import Contradiction
from tdenoise.held_out import HeldOut, Sums, mean_of
from tdenoise.kinds import Network, kind_of, scale_for
from tdenoise.noise import NoiseStatistics, persistence_warning
from tdenoise.patches import PatchLoader, TrainingMovie, hold_out
from tdenoise.rehearsal import RehearsedLoader
from tdenoise.team import Team
from tdenoise.train import TrainingSettings, TrainingState, train, turn_back

from . import budget, memory, processes, progress, store
from .config import TrainConfig
from .control import Control
from .errors import PipelineError, Stopped
from .faults import maybe_crash
from .fit import movie_brightness, movie_noise, movie_pixel_size_nm, open_model, signal_to_noise, tell_drift
from .heads import electron_counts, has_gamma_head
from .pixels import measure, movie_stand_ins
from .train_plan import Plan, make_plan
from .training_state import fill, restore, snapshot, state_bytes
from .version import VERSION

log = logging.getLogger(__name__)

CHECKPOINT_S = 120.0  # time between checkpoints


@runtime.restored()
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
    memory.check_train(plan.movies, plan.rehearses)
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
    if not config.ignore_drift:
        for movie in plan.movies:
            tell_drift(movie, plan.drifts[movie.id], plan.architecture)
    if plan.rehearses:
        log.info("simulated scenes are shown beside the movie (--movie-only leaves them away)")
        for movie in plan.movies:
            if movie_pixel_size_nm(movie) is None:
                log.info(
                    "%s does not tell the size of its pixels: scenes would look more like it had ingest been told "
                    "(--pixel-size)",
                    movie.path,
                )
    if has_gamma_head(plan.architecture):
        log.warning(
            "a few noisy movies hardly show how uncertain a good prediction is: take the variance that this model "
            "states for a rough one, and compare it with the errors by 'evaluate' (docs/models.md)."
        )
    training = [_looked_at(movie, plan) for movie in plan.movies]
    inputs = [path for path in (*config.movie, plan.start, config.distill) if path is not None]
    with progress.OutputRun(
        config.output, plan.identity, inputs, force=config.force, command=config, stop=control.stop
    ) as run:
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
    fill(state, team.broadcast(b""))
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
        pixel_size_nm=movie_pixel_size_nm(movie),
        gain=electron_counts(movie),
        brightness=movie_brightness(movie),
    )


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
    state, file = _fresh(plan, device), folder / "checkpoint.safetensors"
    if file.exists():
        if restore(state, file):
            log.info("going on from step %d", state.step)
        else:
            log.warning("%s: is damaged, or an earlier version wrote it; starting from the first step", file)
            state = _fresh(plan, device)
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
    loader = (RehearsedLoader if plan.rehearses else PatchLoader)(
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
    contradiction = Contradiction(movies if team.rank == 0 else [], device)
    stopping = False

    def errors(network: Network) -> Sums:
        control.check("compare with the given weights")
        return validation.by_block(network)

    def contradictions(network: Network) -> Sums:
        control.check("compare with the given weights")
        return contradiction(network)

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
        kept["share"] = 0.0 if state.best_step == 0 else turn_back(state, given, (errors, contradictions))
    kept["held_out_error"] = validation(state.best)
    kept["contradiction"] = mean_of(contradictions(state.best))
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
        "rehearsed": plan.rehearses,
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
