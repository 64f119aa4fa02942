"""Run: from a raw movie to a denoised store and a report, every step skipped when it is done."""

from __future__ import annotations

import contextlib
import hashlib
import logging
import os
from pathlib import Path
from typing import Any

from tdenoise.files.atomic import make_folder, make_shared_folder

from ..apply.apply import apply
from ..archive.add import add
from ..archive.card import CARDS
from ..archive.index import check_archive
from ..errors import UsageError
from ..evaluate.report import write_report
from ..evaluate.truth import check_truth, load_truth
from ..files.sealed_json import read_sealed, read_unbroken, write_sealed
from ..files.write_errors import named_failures
from ..ingest.corrections import References
from ..ingest.ingest import ingest
from ..ingest.ingest_many import movies_meant
from ..ingest.ingest_plan import open_movie, stored_shape
from ..inputs.model_fit import open_model
from ..resources import memory
from ..settings import recorded_settings
from ..settings.archive_settings import ArchiveAddConfig
from ..settings.denoise_settings import RunConfig, TrainConfig
from ..settings.ingest_settings import IngestConfig
from ..settings.recorded_settings import RUN
from ..settings.result_settings import ReportConfig
from ..settings.results import AUTO, OUTPUTS, WORDS
from ..settings.steps import step_settings
from ..slurm.site_profile import load_profile
from ..step_control import Control
from ..store import store
from ..version import VERSION
from .chosen import train_chosen
from .given_model import to_apply

log = logging.getLogger(__name__)


def run(config: RunConfig, control: Control | None = None) -> dict[str, Any]:
    """Ingest, train, apply, evaluate and report, into one folder.

    Parameters
    ----------
    config : RunConfig
    control : Control, optional

    Returns
    -------
    dict
        Paths of ``movie``, ``model``, ``denoised``, ``report``, and the ``metrics``.

    Raises
    ------
    PipelineError
        Of any step; wrong settings are found before the first.
    """
    control = control or Control()
    check(config)
    folder = config.output
    movie, model, denoised, page = (folder / name for name in OUTPUTS.values())
    begun = folder / ".tdenoise" / RUN
    if config.step is None:  # of the steps of a batch run, its folder knows
        with named_failures(folder):
            make_folder(folder)
            make_shared_folder(begun.parent)
            recorded_settings.write(begun, config)
    forced = _Forced(folder / ".tdenoise" / "forced.json", config.force)
    if config.step in (None, "ingest"):
        ingest(step_settings(IngestConfig, config, output=movie, force=forced("ingest")), control)
        forced.done("ingest")
        # A job for one step may be too small for a report.
        if config.step is None and config.truth is not None:
            _check_truth(config.truth, store.open_store(movie, store.MOVIE))
    told = None
    if config.step in (None, "train") and config.model is None:
        if not train_chosen(_training(config, forced("train")), control):
            return {}  # the first of the processes that train together says it
        forced.done("train")
    if config.step in (None, "apply"):
        with to_apply(config, forced("apply"), control) as settings:
            told = apply(settings, control).get("chosen")
        forced.done("apply")
    if config.step in ("ingest", "train", "apply"):
        return {config.step: str(folder / OUTPUTS[config.step])}
    metrics = _report(config, denoised, movie, model, control)
    forced.finish()
    _keep(config, control)
    begun.unlink(missing_ok=True)
    with contextlib.suppress(OSError):
        begun.parent.rmdir()
    return {
        "movie": str(movie),
        "model": str(model),
        "denoised": str(denoised),
        "report": str(page),
        "metrics": metrics,
        **({"chosen": told} if told else {}),
    }


def _training(config: RunConfig, force: bool) -> TrainConfig:
    """The settings of the step that trains."""
    return step_settings(
        TrainConfig,
        config,
        movie=(config.output / OUTPUTS["ingest"],),
        output=config.output / OUTPUTS["train"],
        head="gamma" if config.variance else None,
        archive=config.archive if config.from_model == AUTO else None,
        force=force,
    )


def _keep(config: RunConfig, control: Control) -> None:
    """Add the results to an archive, where one is named; a model that was not made here has its card, if any."""
    if config.archive is None:
        return
    if not _may_add(config.archive):
        log.warning(
            "%s: you may not write into this archive, so the results are not added to it.", config.archive
        )
        return
    steps = ("ingest", "train", "apply") if config.model is None else ("ingest", "apply")
    made = tuple(config.output / OUTPUTS[step] for step in steps)
    add(ArchiveAddConfig(store=made, archive=config.archive), control)


def _may_add(archive: Path) -> bool:
    """Whether cards may be written; one that is not there yet is made."""
    return not (archive / CARDS).exists() or os.access(archive / CARDS, os.W_OK)


def check(config: RunConfig) -> None:
    """Find wrong settings and unreadable inputs before hours of work.

    Raises
    ------
    UsageError, InputError
    """
    if config.processes == "slurm" and config.step != "train":
        raise UsageError("--processes slurm is for --step train: several nodes share a training only.")
    load_profile(config.profile, "workers")
    if config.from_model is not None and config.from_model not in WORDS:
        open_model(config.from_model)
    if config.model not in (None, *WORDS):
        open_model(config.model)
    if config.archive is not None and (AUTO in (config.model, config.from_model) or config.archive.exists()):
        check_archive(config.archive)
        if AUTO not in (config.model, config.from_model) and not _may_add(config.archive):
            raise UsageError(f"{config.archive}: you may not write into this archive. Leave out --archive.")
    if config.step not in (None, "ingest"):
        return  # it was checked before the first step, and the raw file may be gone by now
    movies = movies_meant([config.raw])
    if len(movies) > 1:
        names = ", ".join(movie.name for movie in movies[:3]) + (", ..." if len(movies) > 3 else "")
        raise UsageError(
            f"{config.raw}: holds {len(movies)} movies ({names}), and one run makes one result. Name one of them; for "
            "all of them use ingest, train and apply, which take several movies."
        )
    if config.raw.is_dir() and movies[0].is_file():
        raise UsageError(f"{config.raw}: holds one movie, {movies[0].name}. Name that file.")
    with open_movie(config) as reader:
        shape = stored_shape(reader.info, config)
        References.of(config, (reader.info.shape[1], reader.info.shape[2]))
    if config.truth is not None:
        check_truth(config.truth, shape)


def _check_truth(truth: Path, movie: store.Store) -> None:
    """Find before the training what the report would find after it: too little memory, another movie's truth."""
    memory.check_evaluate(movie, truth=True, report=True)
    load_truth(truth, movie)


def _report(config: RunConfig, denoised: Path, movie: Path, model: Path, control: Control) -> dict[str, Any]:
    """Evaluate and report, unless that was done for these very data."""
    file, page = config.output / "metrics.json", config.output / "report.html"
    truth = None if config.truth is None else hashlib.sha256(config.truth.read_bytes()).hexdigest()
    made_from = {"denoised": store.read_attributes(denoised)["id"], "truth": truth, "software": VERSION}
    known = read_unbroken(file)
    if page.exists() and known.get("made_from") == made_from:
        return known
    settings = ReportConfig(
        denoised=denoised,
        movie=movie,
        output=page,
        model=model,
        truth=config.truth,
        baseline=config.truth is not None,
        force=True,
    )
    metrics = write_report(settings, control) | {"made_from": made_from}
    write_sealed(file, metrics)
    return metrics


class _Forced:
    """Which steps ``--force`` has done over: a job that is queued again must not begin with the first."""

    def __init__(self, file: Path, force: bool) -> None:
        self._file = file
        self._force = force
        self._steps = set((read_sealed(file) or {}).get("done", [])) if force else set()

    def __call__(self, step: str) -> bool:
        return self._force and step not in self._steps

    def done(self, step: str) -> None:
        """Remember that a step is done over."""
        if self._force:
            self._steps.add(step)
            make_shared_folder(self._file.parent)
            write_sealed(self._file, {"done": sorted(self._steps)})

    def finish(self) -> None:
        """Forget it; the next ``--force`` begins with the first step."""
        if self._force:
            self._file.unlink(missing_ok=True)
            if not any(self._file.parent.iterdir()):
                self._file.parent.rmdir()
