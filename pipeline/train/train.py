"""Train: movie stores become a model folder; checkpoints on the way, so that it can be stopped at any time."""

from __future__ import annotations

import hashlib
import json
import logging
from collections.abc import Callable, Sequence
from dataclasses import asdict, replace
from functools import partial

import numpy as np
from numpy.typing import NDArray

from tdenoise.network import checkpoint, torch_setup
from tdenoise.network.card import CURVE, CardDetails, KeptMetrics, ModelCard
from tdenoise.network.registry import Architecture, scale_for
from tdenoise.noise.noise import NoiseStatistics, persistence_warning
from tdenoise.training.many_movies import OpenedWhenNeeded
from tdenoise.training.process_group import Team
from tdenoise.training.train import TrainingState
from tdenoise.training.training_movie import TrainingMovie, hold_out

from ..errors import PipelineError
from ..files.fault_points import maybe_crash
from ..inputs.bad_pixels import measure, movie_stand_ins
from ..inputs.far_sums import movie_far_frames
from ..inputs.gamma_head import electron_counts, has_gamma_head
from ..inputs.model_fit import (
    movie_brightness,
    movie_noise,
    movie_pixel_size_nm,
    signal_to_noise,
    tell_drift,
)
from ..resources import memory
from ..runs import choices, plans, progress
from ..settings.denoise_settings import TrainConfig
from ..step_control import Control
from ..store import store
from ..version import VERSION
from . import launch
from .material import Material
from .preview import PREVIEW
from .train_plan import Plan, make_plan
from .training_session import CHECKPOINT, Session

log = logging.getLogger(__name__)


@torch_setup.restored()
def train_model(
    config: TrainConfig, control: Control | None = None, material: Material | None = None
) -> ModelCard | None:
    """Train a model on one or several movies; safe to stop and start again.

    Parameters
    ----------
    config : TrainConfig
    control : Control, optional
    material : Material, optional
        What is known of the movies where they are those of an archive.

    Returns
    -------
    ModelCard or None
        None in a process that follows another.

    Raises
    ------
    InputError
        If a movie is missing, or cannot be learned from.
    Stopped
        If a signal came; the next run goes on from the checkpoint.
    """
    control = control or Control()
    plan = make_plan(config, material)
    known = plans.plan_id(plan.identity)
    if config.processes != "slurm" and _already_trained(config, known):
        progress.tidy_up(config.output)
        return checkpoint.read_card(config.output)
    memory.check_train(plan.memory_bytes)
    n_local = config.processes or min(plan.n_devices, plan.settings.batch)
    with launch.team(n_local, plan.settings.batch, partial(_in_team, config, material)) as team:
        return train_in_team(config, control, team, material)


def _in_team(config: TrainConfig, material: Material | None, control: Control, team: Team) -> None:
    train_in_team(config, control, team, material)


def train_in_team(
    config: TrainConfig, control: Control, team: Team, material: Material | None = None
) -> ModelCard | None:
    """The share of one process; the first leads, and alone holds the output and writes."""
    plan = make_plan(config, material)
    if team.rank > 0:
        _follow(plan, control, team)
        return None
    known = plans.plan_id(plan.identity)
    if _already_trained(config, known):
        progress.tidy_up(config.output)
        team.broadcast(b"{}")
        return checkpoint.read_card(config.output)
    _tell(plan)
    training = opened(plan, quiet=False, check=lambda: control.check("train"))
    inputs = [path for path in (*config.movie, plan.start) if path is not None]
    with progress.OutputRun(
        config.output,
        plan.identity,
        inputs,
        force=config.force,
        command=config if material is None else material.command,
        stop=control.stop,
    ) as run:
        run.prepare(lambda path: path.mkdir(parents=True))
        orders = {"plan": run.id, "mixed_precision": plan.settings.mixed_precision, "software": VERSION}
        team.broadcast(json.dumps(orders).encode())
        session = Session(training, plan, run, control, team)
        state, kept = session.train()
        card = _save(run, plan, state, session, kept)
        run.commit()
    log.info("model %s: %d steps, best at %d", card["sha256"][:12], card["steps"], card["best_step"])
    if kept.get("share", 1.0) < 1:
        log.info("%.0f %% of its change from the given weights is kept", 100 * kept["share"])
    return card


def _tell(plan: Plan) -> None:
    """Say what is special about a training; of the movies of an archive, ingest has said it."""
    log.info("%s", plan.reason)
    for movie in () if plan.material else plan.movies:
        tell_drift(movie, plan.drift(movie), plan.architecture)
    if plan.rehearses:
        log.info("training also uses simulated scenes (--movie-only leaves them out)")
        for movie in () if plan.material else plan.movies:
            if movie_pixel_size_nm(movie) is None:
                log.info(
                    "%s has no pixel size: simulated scenes would resemble it more if you gave one to ingest "
                    "(--pixel-size)",
                    movie.path,
                )
    if has_gamma_head(plan.architecture):
        log.warning(
            "a model trained on a few noisy movies gives only a rough variance: compare it with the errors that "
            "'evaluate' measures (docs/explanation/uncertainty.md)."
        )


def opened(plan: Plan, *, quiet: bool, check: Callable[[], None] = lambda: None) -> Sequence[TrainingMovie]:
    """Movies as the network learns from them; of many, only those that are needed are open."""

    def open_movie(number: int) -> TrainingMovie:
        movie = plan.movies[number]
        if not quiet and plan.material is None:
            return _looked_at(movie, plan, plan.held_out(number), check)
        return training_movie(
            movie,
            plan.architecture,
            plan.drift(movie),
            movie_noise(movie),
            movie_stand_ins(movie),
            plan.held_out(number),
            check,
        )

    movies = OpenedWhenNeeded(len(plan.movies), open_movie)
    return list(movies) if plan.material is None else movies


def _follow(plan: Plan, control: Control, team: Team) -> None:
    """Do a share of the work of the first process, from the state that it has; write nothing."""
    orders = json.loads(team.broadcast(b""))
    if not orders:
        return  # the model is there
    own = {"plan": plans.plan_id(plan.identity), "software": VERSION}
    for name, value in own.items():
        if orders[name] != value:
            raise PipelineError(
                f"process {team.rank} of the training has a different {name} from the first: {value}, not "
                f"{orders[name]}. All nodes must use one installation and see the same files."
            )
    plan = replace(plan, settings=replace(plan.settings, mixed_precision=orders["mixed_precision"]))
    movies = opened(plan, quiet=True, check=lambda: control.check("train"))
    Session(movies, plan, None, control, team).train()


def _looked_at(
    movie: store.Store, plan: Plan, held_out: tuple[int, ...], check: Callable[[], None]
) -> TrainingMovie:
    """A movie to learn from; says what of it cannot be learned from."""
    noise = movie_noise(movie)
    pixels = measure(movie)
    bad = movie_stand_ins(movie, pixels)
    if bad is not None:
        n_bad = int(np.isfinite(bad).sum())
        log.info("%s: %d bad pixels are hidden from the network", movie.path, n_bad)
    if (pattern := pixels.fixed_pattern()).matters:
        log.warning(
            "%s: the gains of neighbouring pixels differ by %.1f %% (standard deviation), the same in every frame. "
            "The model will keep this pattern as if it were signal: give ingest a gain reference (--gain FILE).",
            movie.path,
            100 * pattern.spread,
        )
    if (warning := persistence_warning(noise)) is not None:
        log.warning("%s: %s", movie.path, warning)
    return training_movie(movie, plan.architecture, plan.drift(movie), noise, bad, held_out, check)


def training_movie(
    movie: store.Store,
    architecture: Architecture,
    drift: NDArray[np.float64] | None,
    noise: NoiseStatistics,
    bad: NDArray[np.float32] | None,
    held_out: tuple[int, ...] | None = None,
    check: Callable[[], None] = lambda: None,
) -> TrainingMovie:
    """A movie as networks of an architecture learn from it and are judged on it."""
    return TrainingMovie(
        movie.array,
        scale_for(architecture, noise),
        hold_out(movie.shape[0]) if held_out is None else held_out,
        stand_ins=bad,
        drift=drift,
        pixel_size_nm=movie_pixel_size_nm(movie),
        gain=electron_counts(movie),
        brightness=movie_brightness(movie),
        far=movie_far_frames(movie, architecture, drift, bad, check),
    )


def _already_trained(config: TrainConfig, plan: str) -> bool:
    try:
        return not config.force and bool(checkpoint.read_card(config.output).get("plan") == plan)
    except checkpoint.ModelError:
        return False


def _save(
    run: progress.OutputRun,
    plan: Plan,
    state: TrainingState,
    session: Session,
    kept: KeptMetrics,
) -> ModelCard:
    """Write the model folder's weights and card, and take the checkpoints away."""
    parent = plan.parent if session.stage.adapts else None
    details: CardDetails = {
        "plan": run.id,
        "movies": [
            {
                "id": movie.id,
                "source": movie.attributes["source"]["sha256"],
                "name": movie.path.name,
                "shape": list(movie.shape),
                "scale": asdict(scale_for(plan.architecture, movie_noise(movie))),
                "snr": signal_to_noise(movie_noise(movie)),
                "held_out": list(plan.held_out(number)),
            }
            for number, movie in enumerate(plan.movies)
        ],
        "ancestors": [] if parent is None else [*parent["movies"], *parent["ancestors"]],
        "settings": asdict(plan.settings),
        "ignore_drift": plan.ignore_drift,
        "rehearsed": session.stage.rehearses,
        "reason": plan.reason,
        "steps": session.n_steps,
        "best_step": session.best_step,
        "seed": plan.settings.seed,
        "device": plan.device,
        "parent": None if parent is None else parent["sha256"],
        "metrics": {**kept, "elapsed_s": session.elapsed_s},
        "software": VERSION,
    }
    if plan.material is not None:
        details["learned"] = plan.material.told
        own = {movie["id"] for movie in details["movies"]}
        details["ancestors"] = [movie for movie in details["ancestors"] if movie["id"] not in own]
    else:
        details.update(choices.told(run.output))  # type: ignore[typeddict-item]
    if parent is not None and "imported" in parent:
        details["imported"] = parent["imported"]
    if (curve := run.partial / CURVE).exists():
        details["curve_sha256"] = hashlib.sha256(curve.read_bytes()).hexdigest()
    run.check()
    card = checkpoint.save_model(run.partial, state.best, details)
    maybe_crash("model.saved")
    for pattern in (CHECKPOINT, "candidate-*.safetensors", "chosen-*.safetensors", PREVIEW):
        for file in run.partial.glob(pattern):
            file.unlink()
    maybe_crash("model.tidied")
    return card
