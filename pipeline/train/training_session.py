"""A training in one process: one stage, or candidates and then the chosen one, each with its checkpoints."""

from __future__ import annotations

import json
import logging
import math
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import torch

from tdenoise.files.atomic import write_atomically
from tdenoise.network import checkpoint, torch_setup
from tdenoise.network.card import CURVE, CandidatesCompared, KeptMetrics
from tdenoise.network.registry import Network, kind_of
from tdenoise.noise import thinning
from tdenoise.training.candidates import CANDIDATES, SHARE, Measured, choose
from tdenoise.training.contradiction import Contradiction
from tdenoise.training.many_movies import BalancedLoader
from tdenoise.training.patches import PatchLoader
from tdenoise.training.process_group import Team
from tdenoise.training.rehearsal import RehearsedBalancedLoader, RehearsedLoader
from tdenoise.training.train import TrainingSettings, TrainingState, train, turn_back
from tdenoise.training.training_movie import TrainingMovie
from tdenoise.training.validation import HeldOut, Sums, mean_of

from ..errors import Stopped
from ..inputs.gamma_head import has_gamma_head
from ..inputs.model_fit import open_model
from ..resources import budget
from ..runs import progress
from ..step_control import Control
from .material import for_choosing
from .preview import PREVIEW, preview
from .train_plan import Plan
from .training_state import fill, restore, snapshot, state_bytes

log = logging.getLogger(__name__)

CHECKPOINT = "checkpoint.safetensors"
CHECKPOINT_S = 120.0  # time between checkpoints
TELL_S = 1.0  # between two signs of how far it is
# Of the movies of an archive, those that choose the weights to keep, and in sums over time.
LOOKED_AT, SUMMED = 24, 2


@dataclass(frozen=True)
class Stage:
    """A part of a training: a candidate's, or what the chosen one goes on with."""

    settings: TrainingSettings
    rehearses: bool
    adapts: bool  # the parent's weights, or such as were adapted before
    weights: dict[str, torch.Tensor] | None  # that it begins with
    file: str  # of its checkpoint
    candidate: str | None = None
    begins: float = 0.0  # share of the time before it
    share: float = 1.0  # of the time, its own


class Session:
    """A training in one process: its stages one after the other. The first process of a team validates and writes."""

    def __init__(
        self,
        movies: Sequence[TrainingMovie],
        plan: Plan,
        run: progress.OutputRun | None,
        control: Control,
        team: Team,
    ) -> None:
        torch_setup.prepare(n_threads=1)
        self._movies, self._plan, self._run, self._control, self._team = movies, plan, run, control, team
        self._device = _device(plan, team)
        self._thinned = kind_of(plan.architecture) == "thinned"
        known: Sequence[TrainingMovie] = movies if team.rank == 0 else []
        if (
            plan.material is not None
        ):  # the frames that judge the version have no part in choosing its weights
            known = [replace(m, held_out=for_choosing(m.held_out)) for m in known[:LOOKED_AT]]
        self._validation = HeldOut(
            known,
            plan.architecture,
            self._device,
            plan.settings.mixed_precision,
            thinning.split_for_validation if self._thinned else None,
            plan.settings.least_dose,
        )
        self._contradiction = Contradiction(known if plan.material is None else known[:SUMMED], self._device)
        self._records: list[dict[str, Any]] = []  # of the stages before
        self._told_at = self._recorded_at = -math.inf
        self.stage: Stage  # the latest
        self.n_steps, self.elapsed_s = 0, 0.0  # of all stages so far
        self.best_step = 0  # of all, whose weights are kept

    def train(self) -> tuple[TrainingState, KeptMetrics]:
        """The trained state, and for the first process what was measured of the weights that are kept."""
        plan, given = self._plan, _given(self._plan)
        kept: KeptMetrics = {}
        stage = Stage(plan.settings, plan.rehearses, plan.start is not None, given, CHECKPOINT)
        if plan.compares:
            stage, kept["candidates"] = self._compare(given)
        if not stage.adapts:
            given = None
        before = self.n_steps
        state = self._train_stage(stage)
        if self._team.rank > 0:
            return state, {}
        if given is not None:
            unchanged = state.best_step == 0 and not plan.compares
            measures = (self._errors, self._contradictions)
            kept["share"] = 0.0 if unchanged else turn_back(state, given, measures)
        kept["held_out_error"] = self._validation(state.best)
        kept["contradiction"] = mean_of(self._contradictions(state.best))
        if has_gamma_head(plan.architecture):
            kept["held_out_nll"] = self._validation.likelihood(state.best)
        self.best_step = before + state.best_step
        return state, kept

    def _compare(self, given: dict[str, torch.Tensor] | None) -> tuple[Stage, CandidatesCompared]:
        """Train every candidate for a short time; what the chosen one goes on with, and what decided."""
        trained: dict[str, TrainingState] = {}
        for number, candidate in enumerate(CANDIDATES):
            settings = replace(
                _shortened(self._plan.settings, SHARE),
                gain_share=self._plan.settings.gain_share if candidate.adapts else None,
            )
            stage = Stage(
                settings,
                candidate.rehearses,
                candidate.adapts,
                given if candidate.adapts else None,
                f"candidate-{number}.safetensors",
                candidate.name,
                number * SHARE,
                SHARE,
            )
            trained[candidate.name] = self._train_stage(stage)
        excess: dict[str, dict[str, float]] = {}

        def chosen_by_first() -> int:
            nonlocal excess
            kinds = self._validation.kinds(self._movies)
            name, excess = choose(
                {
                    name: Measured(self._errors(state.best), kinds, self._contradictions(state.best))
                    for name, state in trained.items()
                }
            )
            return list(trained).index(name)

        number = int(self._team.of_first(chosen_by_first))
        candidate = CANDIDATES[number]
        log.info(
            "of %d candidate models, the one %s predicts the movie best", len(CANDIDATES), candidate.name
        )
        rest = 1 - SHARE * len(CANDIDATES)
        stage = Stage(
            replace(_shortened(self._plan.settings, rest), gain_share=0.0, seed=self._plan.settings.seed + 1),
            candidate.rehearses,
            candidate.adapts,
            trained[candidate.name].best.state_dict(),
            f"chosen-{number}.safetensors",  # of nobody else: another machine may choose another one
            candidate.name,
            1 - rest,
            rest,
        )
        return stage, {"chosen": candidate.name, "worse_by": excess}

    def _train_stage(self, stage: Stage) -> TrainingState:
        """Train for one stage, or go on from where it was stopped."""
        team = self._team
        state = self._started(stage)
        if team.size > 1:
            data = team.broadcast(state_bytes(state) if team.rank == 0 else b"")
            if team.rank > 0:
                fill(state, data)
        if state.spread_is_new:
            state.start_spread(team.of_first(lambda: self._validation.constant_spread(state.network)))
        if not state.done:
            self._loop(state, stage)
        self._records += self._told(stage, state)
        self.n_steps += state.step
        self.elapsed_s += state.elapsed_s
        self.stage = stage
        return state

    def _started(self, stage: Stage) -> TrainingState:
        """A fresh state, or the one of the last checkpoint."""

        def fresh() -> TrainingState:
            return TrainingState.start(self._plan.architecture, stage.settings, self._device, stage.weights)

        state = fresh()
        if self._run is not None and (file := self._run.partial / stage.file).exists():
            if restore(state, file):
                log.info("continuing from step %d", state.step)
            else:
                log.warning(
                    "%s: is damaged, or an earlier version wrote it; starting from the first step", file
                )
                state = fresh()
        return state

    def _loop(self, state: TrainingState, stage: Stage) -> None:
        plan, team, settings = self._plan, self._team, stage.settings
        kind: Any = RehearsedLoader if stage.rehearses else PatchLoader
        if plan.material is not None:
            kind = RehearsedBalancedLoader if stage.rehearses else BalancedLoader
            kind = partial(kind, mix=plan.material.mix)
        loader = kind(
            self._movies,
            plan.architecture,
            patch=settings.patch,
            batch=settings.batch,
            seed=settings.seed,
            split=thinning.split if self._thinned else None,
            least_dose=settings.least_dose,
            share=(team.rank, team.size),
        )
        stopping = False

        def likelihood(network: Network) -> float:
            return team.of_first(lambda: self._validation.likelihood(network))

        def stopped() -> bool:
            nonlocal stopping
            self._tell(state, stage)
            stopping = team.any(self._control.stop.is_set())  # a signal to one stops all, at the same step
            return stopping

        records = train(
            state,
            loader,
            lambda network: team.of_first(lambda: self._validation(network)),
            settings,
            self._device,
            stopped,
            max(1, budget.n_cores() // team.local_size),
            team.of_first(lambda: self._validation.resolution),
            likelihood if has_gamma_head(plan.architecture) else None,
            team=team,
        )
        if self._run is None:
            for _ in records:
                pass
        else:
            checkpoint_file, allowed = self._run.partial / stage.file, self._run.check
            saved = time.monotonic()
            self._record(state, stage)
            for _ in records:
                self._record(state, stage)
                if time.monotonic() - saved > CHECKPOINT_S:
                    snapshot(state, checkpoint_file, allowed)
                    saved = time.monotonic()
            # What follows takes as long as some validations, and begins anew after a stop.
            state.done = not stopping
            snapshot(state, checkpoint_file, allowed)
        if stopping:
            raise Stopped(
                f"stopped at step {self.n_steps + state.step}; run the same command again to continue"
            )

    def _errors(self, network: Network) -> Sums:
        self._control.check("compare models")
        return self._validation.by_block(network)

    def _contradictions(self, network: Network) -> Sums:
        self._control.check("compare models")
        return self._contradiction(network)

    def _told(self, stage: Stage, state: TrainingState) -> list[dict[str, Any]]:
        """Records of a stage, their steps counted from the beginning of the training."""
        name = {} if stage.candidate is None else {"candidate": stage.candidate}
        return [{**name, **record, "step": self.n_steps + record["step"]} for record in state.history]

    def _tell(self, state: TrainingState, stage: Stage, *, always: bool = False) -> None:
        """Show how far it has come, now and then."""
        now = time.monotonic()
        if self._run is None or not (always or now - self._told_at > TELL_S):
            return
        self._told_at = now
        settings, done = stage.settings, state.step / stage.settings.steps
        if settings.time_limit_s is not None:
            done = max(done, (state.elapsed_s + now - self._recorded_at) / settings.time_limit_s)
        done = stage.begins + stage.share * min(1.0, done)
        said = [f"step {self.n_steps + state.step}"]
        if state.history:
            latest = state.history[-1]
            said += [f"loss {latest['loss']:.4f}", f"held-out error {latest['held_out']:.5f}"]
        self._control.note("train", ", ".join(said))
        self._control.progress("train", min(1000, math.floor(1000 * done)), 1000)

    def _record(self, state: TrainingState, stage: Stage) -> None:
        """Show how far it has come, and write the metrics and a picture."""
        assert self._run is not None
        self._recorded_at = time.monotonic()
        self._tell(state, stage, always=True)
        records = self._records + self._told(stage, state)
        lines = "".join(json.dumps(record) + "\n" for record in records)
        write_atomically(self._run.partial / CURVE, lines.encode())
        if state.history:
            picture = preview(*self._validation.look(state.averaged))
            write_atomically(self._run.partial / PREVIEW, picture)


def _given(plan: Plan) -> dict[str, torch.Tensor] | None:
    """The weights to adapt."""
    weights = None if plan.start is None else open_model(plan.start).network.state_dict()
    if weights is not None and plan.start == checkpoint.BASE and has_gamma_head(plan.architecture):
        # One noisy movie is too small to tell how large the error of a good prediction is.
        weights = checkpoint.base_spread() | weights
    return weights


def _device(plan: Plan, team: Team) -> str:
    if plan.device != "cuda" or team.size == 1:
        return plan.device
    return f"cuda:{team.local_rank % torch.cuda.device_count()}"


def _shortened(settings: TrainingSettings, share: float) -> TrainingSettings:
    """Settings of a part of a training."""
    limit = settings.time_limit_s
    return replace(
        settings,
        steps=max(1, round(share * settings.steps)),
        time_limit_s=None if limit is None else share * limit,
    )
