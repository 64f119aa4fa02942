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
from ..inputs.paired import open_pair, slabs
from ..resources import memory
from ..settings.result_settings import EvaluateConfig
from ..step_control import Control
from . import frame_checks, model_checks
from .estimates import Estimates, Residual, error_terms, headline, noise_law
from .explained_signal import explained
from .refutation import Refutation
from .sentences import notes
from .truth import REGIONS, AgainstTruth, baseline, load_truth
from .uncertainty import Uncertainty

Array = NDArray[Any]


def evaluate(config: EvaluateConfig, control: Control | None = None) -> dict[str, Any]:
    """Measure a denoised movie.

    The stores may be of any length. A truth is held in memory as a whole,
    with ``baseline`` the counts too.

    Parameters
    ----------
    config : EvaluateConfig
    control : Control, optional

    Returns
    -------
    dict
        JSON-able; numbers that could not be measured are None. Errors are in counts squared. The estimated
        ``mse`` and ``nmse`` are those of ``frames``, "all" or "held_out"; both are given in full
        under ``all_frames`` and ``held_out`` (None where no frame was held out). ``uncertainty`` compares the stated
        variance, where there is one, with the errors. With a truth, every ``mse`` has
        the true error of its own frames and ``regions`` beside it, and ``events`` tells what became of them.
        ``explained`` is the share of the signal that is shown, beside that of a filter; ``refuted`` names the
        places where the counts, summed over time, do not bear out what is shown.
        ``evidence`` and ``knowable`` look at single frames; ``model_checks`` are made with ``model`` only.

    Raises
    ------
    InputError
        If a store or the truth is missing or damaged, or they do not belong together.
    """
    return measure(config, control)[0]


@dataclass(frozen=True)
class Pictures:
    """Maps that are measured beside the figures."""

    mean: Array  # frame of the raw movie, (height, width) [counts]
    refuted: Array  # mean residual over its noise, in the frame of the scene


def measure(config: EvaluateConfig, control: Control | None = None) -> tuple[dict[str, Any], Pictures]:
    """What `evaluate` returns, and maps for a report."""
    control = control or Control()
    if config.baseline and config.truth is None:
        raise UsageError("--baseline needs the truth to tune a filter. Add --truth FILE.npz.")
    movie, denoised = open_pair(config.movie, config.denoised)
    memory.check_evaluate(movie, truth=config.truth is not None, report=False)
    checked = None if config.model is None else model_checks.open_checked(config.model, movie, denoised)
    noise = noise_law(movie)
    truth = None if config.truth is None else load_truth(config.truth, movie)
    held_out = frozenset(denoised.attributes["held_out_frames"])
    blind = denoised.attributes["model"]["blind_radius"] != "seen"
    masks = {} if truth is None else {name: truth.masks[name] for name in REGIONS}
    estimates = Estimates(noise, held_out, movie.shape, masks, blind)
    uncertainty = Uncertainty(noise.variance)
    residual = Residual(noise, movie.shape)
    against = None if truth is None else AgainstTruth(truth)
    refutation = Refutation(movie, denoised)
    total, n_sound = np.zeros(movie.shape[1:]), 0
    for slab in slabs(movie, denoised, control):
        total += slab.counts[slab.own][slab.sound[slab.own]].sum(axis=0, dtype=np.float64)
        n_sound += int(slab.sound[slab.own].sum())
        estimates.add(slab)
        residual.add(slab)
        refutation.add(slab)
        if against is not None:
            against.add(slab)
        if slab.variance is not None and noise.estimator == "poisson":
            true = (
                None if truth is None or not truth.exact else truth.level * truth.clean[slice(*slab.frames)]
            )
            error = None if true is None else slab.denoised[slab.own] - true
            uncertainty.add(slab.variance, error_terms(slab, noise), error)
    mean_frame = total / max(1, n_sound)
    refuted, refuted_map = refutation.result()
    result = {
        "kind": "evaluation",
        "movie": {"id": movie.id, "name": movie.path.name, "source": movie.attributes["source"]["name"]},
        "denoised": {"id": denoised.id, "name": denoised.path.name},
        "model": denoised.attributes["model"],
        "shape": list(movie.shape),
        "units": movie.units,
        "mean": float(mean_frame.mean()),
        **estimates.result(mean_frame),
        **residual.result(),
        "uncertainty": uncertainty.result(),
        "brightness": movie.attributes.get("brightness"),
        # Where the counts, summed over time, refute what is shown; see `refutation`.
        "refuted": refuted,
    }
    stated = estimates.frames["held_out" if result["frames"] == "held_out" else "all_frames"]
    result["explained"] = explained(movie, denoised, noise, blind, stated)
    spots = np.reshape(result["lattice"]["spots"], (-1, 2))
    result |= frame_checks.check(movie, denoised, noise, spots)
    result["model_checks"] = None if checked is None else model_checks.check(checked, noise, spots, control)
    result["notes"] = notes(movie, denoised, noise, result)
    if truth is not None and against is not None:
        for name, frames in estimates.frames.items():
            result[name] = against.compared(result[name], frames)
        result["regions"] = against.compared_regions(result["regions"])
        result |= headline(result["all_frames"], result["held_out"])
        result |= against.result(movie, denoised)
        result["baseline"] = baseline(truth, movie) if config.baseline else None
    return plain(result), Pictures(mean_frame, refuted_map)


def plain(value: Any) -> Any:
    """A result as JSON knows it: no NaN, no Inf, no NumPy."""
    if isinstance(value, dict):
        return {key: plain(v) for key, v in value.items()}
    if isinstance(value, list | tuple):
        return [plain(v) for v in value]
    if isinstance(value, np.generic):
        value = value.item()
    return None if isinstance(value, float) and not math.isfinite(value) else value
