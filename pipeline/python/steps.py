"""The steps as functions: the words of the command line, with underscores.

What a function gives back has a path, so the next one takes it as it is.
"""

from __future__ import annotations

import dataclasses
import inspect
import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Generic, TypeVar, cast

import xarray

from tdenoise.network import torch_setup
from tdenoise.network.card import ModelCard

from ..apply.apply import apply as apply_model
from ..archive.verify import verify as verify_store
from ..archive.verify_run import verify_all
from ..errors import UsageError
from ..evaluate.evaluate import evaluate as evaluate_store
from ..evaluate.evaluation_result import Evaluation
from ..evaluate.report import write_report
from ..events.find_events import events as find_events
from ..export.export import export as export_movie
from ..ingest.ingest import ingest as ingest_movie
from ..settings.denoise_settings import ApplyConfig, RunConfig, TrainConfig
from ..settings.export_settings import ExportConfig
from ..settings.ingest_settings import IngestConfig
from ..settings.result_settings import EvaluateConfig, EventsConfig, ReportConfig, VerifyConfig
from ..settings.setting import Settings
from ..settings.study_settings import StudyConfig
from ..store.store_attributes import DenoisedAttributes, MovieAttributes
from ..study.study import study as study_movie
from ..workflow.chosen import chosen
from ..workflow.learn import train as train_all
from ..workflow.repair import repair as repair_store
from ..workflow.run import run as run_all
from .opening import open_lazily
from .progress import shown

Facts = TypeVar("Facts", bound=Mapping[str, Any])
Function = TypeVar("Function", bound=Callable[..., Any])
AnyPath = str | os.PathLike[str]


@dataclass(frozen=True)
class Made(os.PathLike[str], Generic[Facts]):
    """What a step made.

    It stands for its path wherever a path is wanted.

    Attributes
    ----------
    path : Path
        The store or the model.
    facts : mapping
        All that it says about itself: `tdenoise_pipeline.store.store_attributes` and `tdenoise.network.card` list the
        fields.
    """

    path: Path
    facts: Facts = dataclasses.field(repr=False)

    def __fspath__(self) -> str:
        return str(self.path)

    def open(self) -> xarray.Dataset:
        """Open a store, lazily; see `tdenoise_pipeline.open`."""
        return open_lazily(self.path)


@dataclass(frozen=True)
class Ran(os.PathLike[str]):
    """What a run made.

    It stands for its folder wherever a path is wanted.

    Attributes
    ----------
    folder, movie, model, denoised, report : Path
    metrics : Evaluation
        The figures of the report.
    """

    folder: Path
    movie: Path
    model: Path
    denoised: Path
    report: Path
    metrics: Evaluation = dataclasses.field(repr=False)

    def __fspath__(self) -> str:
        return str(self.folder)

    def open(self) -> xarray.Dataset:
        """Open the denoised store, lazily; see `tdenoise_pipeline.open`."""
        return open_lazily(self.denoised)


@dataclass(frozen=True)
class Verified:
    """What was found whole.

    Attributes
    ----------
    n_shards : int
        Files of data that were looked at.
    deep : bool
        Whether they were decoded and compared with their hashes.
    repaired : int
        Files that were made anew.
    models : tuple of str
        Models that were looked at.
    """

    n_shards: int
    deep: bool
    repaired: int
    models: tuple[str, ...]


def _takes(kind: type[Settings], *first: str) -> Callable[[Function], Function]:
    """Show the settings of a class as the keyword arguments of a function, in help and completion."""

    def decorate(function: Function) -> Function:
        def parameter(name: str, default: Any, kind: Any) -> inspect.Parameter:
            return inspect.Parameter(name, kind, default=default)

        fields = dataclasses.fields(cast("Any", kind))
        named = {field.name: field for field in fields}
        shown = [
            parameter(n, inspect.Parameter.empty, inspect.Parameter.POSITIONAL_OR_KEYWORD) for n in first
        ]
        shown.append(parameter("progress", True, inspect.Parameter.KEYWORD_ONLY))
        for name in named.keys() - set(first):
            missing = named[name].default is dataclasses.MISSING
            default = inspect.Parameter.empty if missing else named[name].default
            shown.append(parameter(name, default, inspect.Parameter.KEYWORD_ONLY))
        order = {name: number for number, name in enumerate(named)}
        shown[len(first) + 1 :] = sorted(shown[len(first) + 1 :], key=lambda p: order[p.name])
        cast("Any", function).__signature__ = inspect.Signature(shown)
        return function

    return decorate


def _plain(value: Any) -> Any:
    """What stands for a path, as one."""
    if isinstance(value, os.PathLike):
        return Path(value)
    if isinstance(value, list | tuple):
        return type(value)(map(_plain, value))
    return value


def _given(**settings: Any) -> dict[str, Any]:
    return {name: _plain(value) for name, value in settings.items()}


@_takes(IngestConfig, "raw", "output")
def ingest(raw: AnyPath, output: AnyPath, *, progress: bool = True, **settings: Any) -> Made[MovieAttributes]:
    """Turn a raw movie into a movie store, and measure it; safe to stop and start again.

    Parameters
    ----------
    raw : str or Path
        A file, a folder with one file for each frame, or a pattern.
    output : str or Path
        Movie store to write.
    progress : bool, optional
        Show how far it is.
    **settings
        Those of ``tdenoise-pipeline ingest``.

    Returns
    -------
    Made
        The movie store.
    """
    config = IngestConfig(**_given(raw=raw, output=output, **settings))
    with shown(progress) as control:
        return Made(config.output, cast("MovieAttributes", ingest_movie(config, control)))


@_takes(TrainConfig, "movie", "output")
def train(movie: Any, output: AnyPath, *, progress: bool = True, **settings: Any) -> Made[ModelCard]:
    """Train a model on one or several movies; safe to stop and start again.

    Parameters
    ----------
    movie : str, Path or list
        Movie store, or several; or an archive, for the next version of its base model.
    output : str or Path
        Model folder to write.
    progress : bool, optional
        Show how far it is.
    **settings
        Those of ``tdenoise-pipeline train``.

    Returns
    -------
    Made
        The model; of an archive's version, ``versions`` says whether it was accepted, and why.
    """
    config = TrainConfig(**_given(movie=movie, output=output, **settings))
    if config.processes == "slurm":
        raise UsageError("processes='slurm' is for the command line, in a job step. Give a number.")
    with shown(progress) as control:
        card, report = train_all(config, control)
    assert card is not None  # this process leads
    return Made(config.output, card if report is None else cast("ModelCard", {**card, "versions": report}))


@_takes(ApplyConfig, "movie", "output")
def apply(
    movie: AnyPath, output: AnyPath, *, progress: bool = True, **settings: Any
) -> Made[DenoisedAttributes]:
    """Denoise a movie, block by block; safe to stop and start again.

    Parameters
    ----------
    movie : str or Path
        Movie store.
    output : str or Path
        Denoised store to write.
    progress : bool, optional
        Show how far it is.
    **settings
        Those of ``tdenoise-pipeline apply``, such as ``model=``.

    Returns
    -------
    Made
        The denoised store.
    """
    config = ApplyConfig(**_given(movie=movie, output=output, **settings))
    with shown(progress) as control, chosen(config, control) as decided:
        return Made(config.output, cast("DenoisedAttributes", apply_model(decided, control)))


@_takes(RunConfig, "raw", "output")
def run(raw: AnyPath, output: AnyPath, *, progress: bool = True, **settings: Any) -> Ran:
    """From a raw movie to a denoised movie and a report, in one folder; safe to stop and start again.

    Parameters
    ----------
    raw : str or Path
        A file, a folder with one file for each frame, or a pattern.
    output : str or Path
        Folder for all results.
    progress : bool, optional
        Show how far it is.
    **settings
        Those of ``tdenoise-pipeline run``.

    Returns
    -------
    Ran
        Where everything is, and the figures.
    """
    config = RunConfig(**_given(raw=raw, output=output, **settings))
    if config.step is not None:
        raise UsageError(f"step={config.step!r}: call {config.step} instead of run, or leave it out.")
    with torch_setup.restored(), shown(progress) as control:
        made = run_all(config, control)
    parts = {name: Path(made[name]) for name in ("movie", "model", "denoised", "report")}
    return Ran(config.output, **parts, metrics=made["metrics"])


@_takes(EvaluateConfig, "denoised")
def evaluate(denoised: AnyPath, *, progress: bool = True, **settings: Any) -> Evaluation:
    """Measure how good a denoised movie is, with or without a truth.

    Parameters
    ----------
    denoised : str or Path
        Denoised store, or the folder of a run.
    progress : bool, optional
        Show how far it is.
    **settings
        Those of ``tdenoise-pipeline evaluate``.

    Returns
    -------
    Evaluation
        A dictionary; `tdenoise_pipeline.evaluate.evaluation_result` lists the fields.
    """
    config = EvaluateConfig(**_given(denoised=denoised, **settings))
    with torch_setup.restored(), shown(progress) as control:
        return evaluate_store(config, control)


@_takes(ReportConfig, "denoised")
def report(denoised: AnyPath, *, progress: bool = True, **settings: Any) -> Made[Evaluation]:
    """Write a page with pictures and figures of a denoised movie.

    Parameters
    ----------
    denoised : str or Path
        Denoised store, or the folder of a run.
    progress : bool, optional
        Show how far it is.
    **settings
        Those of ``tdenoise-pipeline report``.

    Returns
    -------
    Made
        The page, and its figures.
    """
    config = ReportConfig(**_given(denoised=denoised, **settings))
    with torch_setup.restored(), shown(progress) as control:
        return Made(config.output, write_report(config, control))


@_takes(EventsConfig, "denoised")
def events(denoised: AnyPath, *, progress: bool = True, **settings: Any) -> Made[dict[str, Any]]:
    """Find the atomic columns of a movie, and list when they change and how sure that is.

    Parameters
    ----------
    denoised : str or Path
        Denoised store, or the folder of a run.
    progress : bool, optional
        Show how far it is.
    **settings
        Those of ``tdenoise-pipeline events``.

    Returns
    -------
    Made
        The folder of tables, and the summary.
    """
    config = EventsConfig(**_given(denoised=denoised, **settings))
    with torch_setup.restored(), shown(progress) as control:
        return Made(config.output, find_events(config, control))


@_takes(StudyConfig, "movie", "output")
def study(movie: AnyPath, output: AnyPath, *, progress: bool = True, **settings: Any) -> Made[dict[str, Any]]:
    """Find out how many frames a movie needs, and how large they must be; safe to stop and start again.

    Parameters
    ----------
    movie : str or Path
        Movie store, or the folder of a run.
    output : str or Path
        Folder for models, figures and report.
    progress : bool, optional
        Show how far it is.
    **settings
        Those of ``tdenoise-pipeline study``, such as ``frames=(25, 100, "all")``.

    Returns
    -------
    Made
        The folder, and what its ``study.json`` holds.
    """
    config = StudyConfig(**_given(movie=movie, output=output, **settings))
    with shown(progress) as control:
        return Made(config.output, study_movie(config, control))


@_takes(ExportConfig, "store", "output")
def export(
    store: AnyPath, output: AnyPath, *, progress: bool = True, **settings: Any
) -> Made[dict[str, Any]]:
    """Write a movie as a video, as pictures, or as data for other programs.

    Parameters
    ----------
    store : str or Path
        Denoised store, movie store, or the folder of a run.
    output : str or Path
        File to write; its ending says what it is.
    progress : bool, optional
        Show how far it is.
    **settings
        Those of ``tdenoise-pipeline export``.

    Returns
    -------
    Made
        The file, and what is in it.
    """
    config = ExportConfig(**_given(store=store, output=output, **settings))
    with torch_setup.restored(), shown(progress) as control:
        return Made(config.output, export_movie(config, control))


@_takes(VerifyConfig, "store")
def verify(store: AnyPath, *, progress: bool = True, **settings: Any) -> Verified:
    """Check that a store, a model or a whole run is complete and undamaged.

    Parameters
    ----------
    store : str or Path
        Movie store, denoised store, model, or the folder of a run.
    progress : bool, optional
        Show how far it is.
    **settings
        Those of ``tdenoise-pipeline verify``, such as ``deep=True``.

    Returns
    -------
    Verified
        What was looked at.

    Raises
    ------
    VerificationError
        If something is missing or damaged.
    """
    config = VerifyConfig(**_given(store=store, **settings))
    with shown(progress) as control:
        found = verify_all(config, control, repair_store if config.repair else verify_store)
    stores = found.get("stores", [found])
    return Verified(
        n_shards=sum(part["n_shards"] for part in stores),
        deep=config.deep,
        repaired=sum(part["repaired"] for part in stores),
        models=tuple(found.get("models", ())),
    )
