"""The settings of the steps of a run, and of one movie of several: known without any of the steps."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any, TypeVar

from .denoise_settings import ApplyConfig, ApplyManyConfig, RunConfig, TrainConfig
from .ingest_settings import IngestConfig
from .results import OUTPUTS, is_archive

StepConfig = TypeVar("StepConfig", IngestConfig, TrainConfig, ApplyConfig)


def apply_settings(config: RunConfig, force: bool) -> ApplyConfig:
    """The settings of the step that denoises."""
    movie, model, denoised = (config.output / OUTPUTS[step] for step in ("ingest", "train", "apply"))
    return step_settings(
        ApplyConfig, config, movie=movie, model=model, archive=None, output=denoised, force=force
    )


def step_settings(kind: type[StepConfig], config: RunConfig, **own: Any) -> StepConfig:
    """Settings of one step: its own, and those that `RunConfig` has under the same name."""
    names = {f.name for f in dataclasses.fields(kind)} & {f.name for f in dataclasses.fields(RunConfig)}
    return kind(**({name: getattr(config, name) for name in names} | own))


def is_single(config: ApplyManyConfig) -> bool:
    """Whether it is one movie, named as such."""
    return len(config.movie) == 1 and not is_archive(config.movie[0])


def single(config: ApplyManyConfig) -> ApplyConfig:
    """The settings for the one movie that there is."""
    return one_movie(config, config.movie[0], config.output)


def one_movie(config: ApplyManyConfig, movie: Path, output: Path) -> ApplyConfig:
    """The settings for one movie of several."""
    values = {f.name: getattr(config, f.name) for f in dataclasses.fields(ApplyConfig)}
    return ApplyConfig(**{**values, "movie": movie, "output": output})
