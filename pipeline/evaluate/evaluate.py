"""Evaluate: how good is a denoised movie, from the counts alone and, for simulated movies, against the truth.

Both stores are read once (with a truth, the movie twice), a few frames at a time, however long they are. The
estimators are those of ``tdenoise.evaluation.metrics``. What needs the model itself is looked at in a part of the
movie.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..errors import UsageError
from ..inputs.paired import Slab, open_pair, slabs
from ..resources import memory
from ..settings.result_settings import EvaluateConfig
from ..step_control import Control
from ..store import store
from . import frame_checks, model_checks
from .changes import Changes
from .estimates import Estimates, NoiseLaw, Residual, error_terms, headline, noise_law
from .evaluation_result import Evaluation, WithoutTruth
from .explained_signal import explained
from .levels import Levels
from .refutation import Refutation, scene_corners
from .sentences import notes
from .truth import REGIONS, AgainstTruth, Truth, baseline, load_truth
from .truth_result import Baseline
from .uncertainty import Uncertainty

Array = NDArray[Any]


def evaluate(config: EvaluateConfig, control: Control | None = None) -> Evaluation:
    """Measure a denoised movie.

    The stores may be of any length. A truth is held in memory as a whole,
    with ``baseline`` the counts too.

    Parameters
    ----------
    config : EvaluateConfig
    control : Control, optional

    Returns
    -------
    Evaluation
        JSON-able; numbers that could not be measured are None.

    Raises
    ------
    InputError
        If a store or the truth is missing or damaged, or they do not belong together.
    """
    return measure(config, control)[0]


@dataclass(frozen=True)
class Pictures:
    """What is measured beside the figures, for a report to show."""

    mean: Array  # frame of the raw movie, (height, width) [counts]
    refuted: Array  # mean residual over its noise, in the frame of the scene
    changes: Changes  # where and when the denoised movie changes most


def measure(config: EvaluateConfig, control: Control | None = None) -> tuple[Evaluation, Pictures]:
    """What `evaluate` returns, and maps for a report."""
    control = control or Control()
    if config.baseline and config.truth is None:
        raise UsageError("--baseline needs the truth to tune a filter. Add --truth FILE.npz.")
    movie, denoised = open_pair(config.movie, config.denoised)
    memory.check_evaluate(movie, truth=config.truth is not None, report=False)
    checked = None if config.model is None else model_checks.open_checked(config.model, movie, denoised)
    noise = noise_law(movie)
    truth = None if config.truth is None else load_truth(config.truth, movie)
    sums = _Sums(movie, denoised, noise, truth)
    for slab in slabs(movie, denoised, control):
        sums.add(slab)
    result, pictures = _without_truth(movie, denoised, noise, sums)
    if checked is not None:
        spots = np.reshape(result["lattice"]["spots"], (-1, 2))
        result["model_checks"] = model_checks.check(checked, noise, spots, control)
    result["notes"] = notes(movie, denoised, noise, result)
    if truth is None:
        return plain(result), pictures
    best = baseline(truth, movie) if config.baseline else None
    return plain(_with_truth(result, sums, movie, denoised, best)), pictures


class _Sums:
    """All that is summed up while both stores are read once, slab by slab."""

    def __init__(
        self, movie: store.Store, denoised: store.Store, noise: NoiseLaw, truth: Truth | None
    ) -> None:
        self._noise, self._truth = noise, truth
        held_out = frozenset(denoised.attributes["held_out_frames"])
        self.blind = denoised.attributes["model"]["blind_radius"] != "seen"
        masks = {} if truth is None else {name: truth.masks[name] for name in REGIONS}
        self.estimates = Estimates(noise, held_out, movie.shape, masks, self.blind)
        self.uncertainty = Uncertainty(noise.variance)
        self.residual = Residual(noise, movie.shape)
        self.against = None if truth is None else AgainstTruth(truth)
        self.refutation = Refutation(movie, denoised)
        self.levels = Levels(noise)
        self.changes = Changes(noise, *scene_corners(movie))
        self._total, self._n_sound = np.zeros(movie.shape[1:]), 0

    def add(self, slab: Slab) -> None:
        """Take in the next slab."""
        sound = slab.sound[slab.own]
        self._total += slab.counts[slab.own][sound].sum(axis=0, dtype=np.float64)
        self._n_sound += int(sound.sum())
        self.estimates.add(slab)
        self.residual.add(slab)
        self.refutation.add(slab)
        self.levels.add(slab)
        self.changes.add(slab)
        if self.against is not None:
            self.against.add(slab)
        if slab.variance is not None and self._noise.estimator == "poisson":
            self.uncertainty.add(slab.variance, error_terms(slab, self._noise), self._error(slab))

    def _error(self, slab: Slab) -> Array | None:
        """Of the denoised frames against the truth [counts]."""
        truth = self._truth
        if truth is None or not truth.exact:
            return None
        return np.asarray(slab.denoised[slab.own] - truth.level * truth.clean[slice(*slab.frames)])

    def mean_frame(self) -> Array:
        """Mean of the sound raw frames [counts]."""
        return np.asarray(self._total / max(1, self._n_sound))


def _without_truth(
    movie: store.Store, denoised: store.Store, noise: NoiseLaw, sums: _Sums
) -> tuple[WithoutTruth, Pictures]:
    """What the counts alone tell; checks of the model and notes are still to come."""
    mean_frame = sums.mean_frame()
    refuted, refuted_map = sums.refutation.result()
    errors = sums.estimates.result(mean_frame)
    stated = sums.estimates.frames["held_out" if errors["frames"] == "held_out" else "all_frames"]
    removed = sums.residual.result()
    spots = np.reshape(removed["lattice"]["spots"], (-1, 2))
    result: WithoutTruth = {
        "kind": "evaluation",
        "movie": {"id": movie.id, "name": movie.path.name, "source": movie.attributes["source"]["name"]},
        "denoised": {"id": denoised.id, "name": denoised.path.name},
        "model": denoised.attributes["model"],
        "shape": list(movie.shape),
        "units": movie.units,
        "mean": float(mean_frame.mean()),
        **errors,
        **removed,
        "uncertainty": sums.uncertainty.result(),
        "brightness": movie.attributes.get("brightness"),
        "level": sums.levels.result(),
        # Where the counts, summed over time, refute what is shown; see `refutation`.
        "refuted": refuted,
        "explained": explained(movie, denoised, noise, sums.blind, stated),
        **frame_checks.check(movie, denoised, noise, spots),
        "model_checks": None,
        "notes": [],
    }
    return result, Pictures(mean_frame, refuted_map, sums.changes)


def _with_truth(
    result: WithoutTruth,
    sums: _Sums,
    movie: store.Store,
    denoised: store.Store,
    best: Baseline | None,
) -> Evaluation:
    """A result, completed with what the truth tells."""
    against, frames = sums.against, sums.estimates.frames
    assert against is not None
    every, held_out = against.compared(result["all_frames"], frames["all_frames"]), result["held_out"]
    if held_out is not None:
        held_out = against.compared(held_out, frames["held_out"])
    return {
        **result,
        "all_frames": every,
        "held_out": held_out,
        "regions": against.compared_regions(result["regions"]),
        **headline(every, held_out),
        **against.result(movie, denoised),
        "baseline": best,
    }


def plain(value: Any) -> Any:
    """A result as JSON knows it: no NaN, no Inf, no NumPy."""
    if isinstance(value, dict):
        return {key: plain(v) for key, v in value.items()}
    if isinstance(value, list | tuple):
        return [plain(v) for v in value]
    if isinstance(value, np.generic):
        value = value.item()
    return None if isinstance(value, float) and not math.isfinite(value) else value
