"""What `run` would do, without doing any of it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from tdenoise.training.train import TrainingSettings

from ..errors import InputError
from ..ingest.ingest_plan import open_movie, stored_shape
from ..resources import budget
from ..runs import paths
from ..settings.denoise_settings import RunConfig
from ..settings.results import AUTO, OUTPUTS, SCRATCH, SHIPPED
from ..store import store
from .costs import sizes
from .run import check


def describe_plan(config: RunConfig) -> dict[str, Any]:
    """The plan of a run for people; wrong settings and unreadable inputs are found as the run would find them.

    Returns
    -------
    dict
        What would be read, what every step would do, and what it takes.

    Raises
    ------
    PipelineError
    """
    check(config)
    with open_movie(config) as reader:
        info, shape = reader.info, stored_shape(reader.info, config)
    known = sizes(config)
    steps = {step: _state(config, step) for step in OUTPUTS if config.step in (None, step)}
    if "train" in steps:
        steps["train"] = (
            f"none; {_given(config)} denoises"
            if config.model is not None
            else f"{steps['train']}, {_training(config)}"
        )
    if "apply" in steps:
        steps["apply"] += f", {config.ensemble} passes on {config.workers}"
    return {
        "step": "run",
        "raw": str(config.raw),
        "output": str(config.output),
        "shape": list(shape),
        "dtype": str(info.dtype),
        "format": info.format,
        **steps,
        "n_blocks": known.get("n_blocks"),
        "worker_memory_bytes": known.get("block_bytes"),
        "disk_estimate_bytes": known.get("disk_bytes"),
        "free_bytes": budget.free_bytes(config.output),
    }


def _state(config: RunConfig, step: str) -> str:
    output = config.output / OUTPUTS[step]
    if config.force:
        return f"{output.name}: from the beginning"
    if _is_there(output):
        return f"{output.name}: done already"
    begun = paths.partial_path(output).exists()
    return f"{output.name}: begun, will continue" if begun else f"{output.name}: to do"


def _is_there(output: Path) -> bool:
    if output.suffix != ".zarr":
        return output.exists()
    try:
        return store.read_attributes(output).get("status") == "complete"
    except InputError:
        return False


def _given(config: RunConfig) -> str:
    if config.model == SHIPPED:
        return "the model that comes with tdenoise"
    return (
        f"the model of {config.archive} that predicts the movie best"
        if config.model == AUTO
        else str(config.model)
    )


def _training(config: RunConfig) -> str:
    start = str(config.from_model)
    if config.from_model in (None, SHIPPED):
        start = "the model that comes with tdenoise"
    elif config.from_model == SCRATCH:
        start = "random weights"
    elif config.from_model == AUTO:
        start = f"the model of {config.archive} that predicts the movie best"
    limit = None if config.time_limit is None else f"{config.time_limit / 60:.3g} minutes"
    steps = f"{config.steps or TrainingSettings.steps} steps" if config.steps or limit is None else None
    return f"at most {' or '.join(filter(None, (steps, limit)))}, from {start}"
