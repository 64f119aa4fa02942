"""How fast a training goes on this machine: a few of its real steps, and one of its validations."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise
from typing import Any

from tdenoise.network import torch_setup
from tdenoise.network.registry import kind_of
from tdenoise.noise import thinning
from tdenoise.training.contradiction import Contradiction
from tdenoise.training.patches import PatchLoader
from tdenoise.training.rehearsal import RehearsedLoader
from tdenoise.training.train import SHARES, TrainingState, train
from tdenoise.training.training_movie import TrainingMovie
from tdenoise.training.validation import HeldOut

from ..resources import budget
from ..settings.denoise_settings import TrainConfig
from .train import opened
from .train_plan import UNLIMITED, Plan, make_plan

N_STEPS = 6  # the first of which also reads, and does not count
STAGES = 3  # of a training that compares two ways


@dataclass(frozen=True)
class Pace:
    """What a training takes."""

    prepare_s: float  # to read the movie and choose the frames that are held out
    first_s: float  # the first step beyond a usual one
    step_s: float
    validate_s: float
    compare_s: float  # one look at weights, when those that are kept are chosen
    device: str

    def training_s(self, plan: Plan) -> float:
        """How long a training takes at most: it ends sooner where the error no longer falls."""
        settings = plan.settings
        stages = STAGES if plan.compares else 1
        n_validations = settings.steps / settings.validate_every + 2 * stages
        whole = stages * self.first_s + settings.steps * self.step_s + n_validations * self.validate_s
        if settings.time_limit_s is not None:
            limit = settings.time_limit_s + stages * self.first_s
            whole = limit if settings.steps >= UNLIMITED else min(whole, limit)
        n_looks = 2 + (len(SHARES) if plan.start is not None else 0) + (2 if plan.compares else 0)
        return self.prepare_s + whole + n_looks * self.compare_s


@torch_setup.restored()
def try_training(config: TrainConfig, clock: Callable[[], float] = time.perf_counter) -> tuple[Plan, Pace]:
    """Do the first steps of a training and forget them.

    Parameters
    ----------
    config : TrainConfig
        Of one movie or several, not of an archive.
    clock : callable
        Seconds.

    Returns
    -------
    Plan, Pace

    Raises
    ------
    InputError
        As the training would.
    """
    begun = clock()
    plan = make_plan(config)
    torch_setup.prepare(n_threads=1)
    movies = opened(plan, quiet=True)
    settings = replace(plan.settings, steps=N_STEPS, time_limit_s=None, validate_every=1, gain_share=None)
    thinned = kind_of(plan.architecture) == "thinned"
    held = HeldOut(
        movies,
        plan.architecture,
        plan.device,
        settings.mixed_precision,
        thinning.split_for_validation if thinned else None,
        settings.least_dose,
    )
    contradiction = Contradiction(movies, plan.device)
    state = TrainingState.start(plan.architecture, settings, plan.device)
    loader = _loader(plan, movies)
    prepared = clock()
    times = [prepared]
    # A validation that takes no time, after every step: its clock is what is wanted.
    for _ in train(state, loader, lambda _: 1.0, settings, plan.device, n_threads=budget.n_cores()):
        times.append(clock())
    steps = [after - before for before, after in pairwise(times)]
    usual = statistics.median(steps[1:])
    before = clock()
    held(state.best)
    validated = clock()
    held.by_block(state.best)
    contradiction(state.best)
    compared = clock()
    pace = Pace(
        prepared - begun,
        max(0.0, steps[0] - usual),
        usual,
        validated - before,
        compared - validated,
        plan.device,
    )
    return plan, pace


def _loader(plan: Plan, movies: Sequence[TrainingMovie]) -> Any:
    """What draws patches, as in the training."""
    kind: Any = RehearsedLoader if plan.rehearses else PatchLoader
    settings = plan.settings
    return kind(
        movies,
        plan.architecture,
        patch=settings.patch,
        batch=settings.batch,
        seed=settings.seed,
        split=thinning.split if kind_of(plan.architecture) == "thinned" else None,
        least_dose=settings.least_dose,
    )
