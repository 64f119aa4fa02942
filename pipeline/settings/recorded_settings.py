"""The settings of a step as JSON, so that `resume` and `verify --repair` can call it again."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

from ..errors import UsageError
from ..files.sealed_json import write_sealed
from .denoise_settings import ApplyConfig, RunConfig, TrainConfig
from .ingest_settings import IngestConfig
from .results import WORDS
from .workers import Workers

COMMAND = "command.json"  # the settings of a step, in the work folder of its output
RUN = "run.json"  # those of `run`, in the folder `.tdenoise` of its output

STEPS: dict[str, type[Any]] = {
    "ingest": IngestConfig,
    "train": TrainConfig,
    "apply": ApplyConfig,
    "run": RunConfig,
}


def record(config: Any) -> dict[str, Any]:
    """A step and its settings, paths made absolute."""
    step = next(name for name, kind in STEPS.items() if type(config) is kind)
    values = {field.name: _plain(getattr(config, field.name)) for field in dataclasses.fields(config)}
    return {"step": step, "settings": values}


def write(file: Path, config: Any) -> None:
    """Record a step and its settings in a file that nobody else may change: it will be obeyed."""
    write_sealed(file, record(config), mode=0o600)


def recall(document: dict[str, Any], **changes: Any) -> Any:
    """The settings that were recorded, some of them changed.

    Raises
    ------
    ValueError
        If they are not those of any step of this version, or mean nothing.
    """
    kind = STEPS.get(str(document.get("step")))
    values = document.get("settings")
    if kind is None or not isinstance(values, dict):
        raise ValueError("no step of this version")
    known = {field.name for field in dataclasses.fields(kind)}
    # A setting that is no more, and was off, changed nothing.
    values = {name: value for name, value in values.items() if name in known or value not in (None, False)}
    try:
        return kind(**(values | changes))
    except UsageError as error:
        raise ValueError(str(error)) from None


def _plain(value: Any) -> Any:
    if isinstance(value, Path):
        return str(value if value in WORDS else value.absolute())
    if isinstance(value, Workers):
        return str(value)
    return [_plain(item) for item in value] if isinstance(value, tuple) else value
