"""How long steps will take and how much memory, told ahead from a trial on this movie and this machine."""

from __future__ import annotations

import contextlib
import logging
import math
import subprocess
import tempfile
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from tdenoise.network import checkpoint
from tdenoise.network.card import ModelCard
from tdenoise.network.registry import architecture_of
from tdenoise.noise.drift import largest_shift

from ..apply.apply import apply
from ..apply.apply_plan import Layout, followed_drift, lay_out, usable_gpus
from ..errors import PipelineError, UsageError
from ..ingest.ingest import ingest
from ..ingest.ingest_many import plan_jobs
from ..ingest.ingest_plan import open_movie, plan_geometry, stored_shape
from ..inputs.model_fit import open_model
from ..resources import budget
from ..settings.denoise_settings import ApplyConfig, ApplyManyConfig, RunConfig, TrainConfig
from ..settings.ingest_settings import IngestConfig, IngestManyConfig
from ..settings.results import AUTO, SHIPPED, WORDS, is_archive
from ..settings.steps import is_single, single, step_settings
from ..settings.workers import LOCAL
from ..store import blocks, store
from ..train.pace import try_training
from .trial import Clock, Denoised, Ingested, start_s, try_denoise, try_ingest, try_report

ENSEMBLES = (1, 2, 4, 8, 16)
PYRAMID = 8 / 7  # of what is written: with its coarser levels
REPORT_FIELD, REPORT_FRAMES = 128, 48  # of the short movie that a report is tried on


def with_times(planned: dict[str, Any], config: Any, clock: Clock = time.perf_counter) -> dict[str, Any]:
    """A plan with the times that this machine would take for it; of several movies, and of an archive, without.

    Where the trial itself fails, the plan says why under ``times_unknown``.
    """
    try:
        with _quiet():
            return planned | _times(config, clock)
    except (
        PipelineError,
        OSError,
        RuntimeError,
        ValueError,
        MemoryError,
        subprocess.SubprocessError,
    ) as error:
        return planned | {"times_unknown": str(error) or type(error).__name__}


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """What is said of a part of the movie is said of the movie once its step runs."""
    loggers = [logging.getLogger(name) for name in ("tdenoise", "tdenoise_pipeline")]
    before = [logger.level for logger in loggers]
    for logger in loggers:
        logger.setLevel(logging.ERROR)
    try:
        yield
    finally:
        for logger, level in zip(loggers, before, strict=True):
            logger.setLevel(level)


def _times(config: Any, clock: Clock) -> dict[str, Any]:
    if isinstance(config, RunConfig):
        return forecast_run(config, clock)
    if isinstance(config, IngestManyConfig):
        jobs = plan_jobs(config)
        return forecast_ingest(jobs[0], clock) if len(jobs) == 1 else {}
    if isinstance(config, TrainConfig):
        plain = config.from_model != AUTO and not is_archive(config.movie[0])
        return forecast_train(config, clock) if plain else {}
    if isinstance(config, ApplyManyConfig) and is_single(config) and config.model != AUTO:
        return forecast_apply(single(config), clock)
    return {}


def forecast_ingest(config: IngestConfig, clock: Clock = time.perf_counter) -> dict[str, Any]:
    """Seconds that an ingest takes, as ``time_ingest_s``."""
    with tempfile.TemporaryDirectory(prefix="tdenoise-trial-") as folder:
        found, _ = try_ingest(config, Path(folder), clock)
        return {"time_ingest_s": ingest_s(config, found)}


def ingest_s(config: IngestConfig | RunConfig, found: Ingested) -> float:
    """Seconds of a whole ingest; the raw file is hashed beside it where there is a second core."""
    with open_movie(config) as reader:
        n = stored_shape(reader.info, config)[0]
        n_bytes = math.prod(reader.info.shape) * reader.info.dtype.itemsize
    copied = found.first_s + found.frame_s * max(0, n - found.n_frames)
    hashed = found.hash_byte_s * n_bytes
    return copied + hashed if budget.n_cores() == 1 else max(copied, hashed)


def forecast_train(config: TrainConfig, clock: Clock = time.perf_counter) -> dict[str, Any]:
    """Seconds that a training takes at most, as ``time_train_s``; the ``device``, and how to halve them."""
    plan, pace = try_training(config, clock)
    seconds = pace.training_s(plan)
    return {
        "time_train_s": seconds,
        "time_step_s": pace.step_s,
        "device": pace.device,
        "faster": f"--time-limit {_limit(seconds / 2)} halves it: the best weights until then are kept",
    }


def forecast_apply(config: ApplyConfig, clock: Clock = time.perf_counter) -> dict[str, Any]:
    """Of every device here and every ensemble, seconds and memory; and the cheapest way to halve the time.

    Returns
    -------
    dict
        ``time_apply_s``, and ``times``: dictionaries with ``device``, ``workers``, ``ensemble``, ``apply_s`` and
        ``worker_memory_bytes``; ``faster``.
    """
    movie = store.open_store(config.movie, store.MOVIE)
    card = open_model(config.model or checkpoint.BASE).card
    with tempfile.TemporaryDirectory(prefix="tdenoise-trial-") as folder:
        return _of_apply(config, movie.shape, movie, card, Path(folder), clock)


def _of_apply(
    config: ApplyConfig,
    shape: tuple[int, int, int],
    movie: store.Store,
    card: ModelCard,
    folder: Path,
    clock: Clock,
) -> dict[str, Any]:
    """Of a movie of some shape, of which ``movie`` is all or a part."""
    rows = []
    gpus = usable_gpus(config.device)
    best = checkpoint.default_device()
    devices = [best] if best != "cpu" and config.device in ("auto", best) else []
    devices += ["cpu"] if config.device in ("auto", "cpu") else []
    if not devices:
        raise UsageError(f"--device {config.device} is not usable here")
    for device in devices:
        count = (
            max(1, len(gpus))
            if device != "cpu"
            else config.workers.count
            if config.workers.kind == "local"
            else 0
        )
        n_workers = count or budget.n_cores()
        laid = _laid(config, config.ensemble, shape, movie, card)
        n_blocks = blocks.n_blocks(shape, laid.core)
        busy = 1 if device != "cpu" else min(n_workers, n_blocks, budget.n_cores())
        found = try_denoise(config, card, folder, device, busy, clock)
        for ensemble in sorted({*ENSEMBLES, config.ensemble}):
            needed = _laid(config, ensemble, shape, movie, card)
            rows.append(
                {
                    "device": device,
                    "workers": n_workers,
                    "ensemble": ensemble,
                    "apply_s": apply_s(
                        found, shape, needed, card, ensemble, n_workers, not config.draft_only
                    ),
                    "worker_memory_bytes": needed.worker_bytes,
                }
            )
    own = next(row for row in rows if row["ensemble"] == config.ensemble)
    return {"time_apply_s": own["apply_s"], "times": rows, "faster": _faster(config, own, rows, n_blocks)}


def _laid(
    config: ApplyConfig, ensemble: int, shape: tuple[int, int, int], movie: store.Store, card: ModelCard
) -> Layout:
    architecture = architecture_of(card)
    dtype = movie.array.dtype
    return lay_out(
        config.tile,
        ensemble,
        config.lossless,
        shape,
        plan_geometry(shape, dtype).shard[0],
        dtype.itemsize,
        architecture,
        2 if config.variance else 1,
        largest_shift(followed_drift(config, movie, card), architecture.window),
    )


def apply_s(
    found: Denoised,
    shape: tuple[int, int, int],
    laid: Layout,
    card: ModelCard,
    ensemble: int,
    n_workers: int,
    gives_back: bool,
) -> float:
    """Seconds of a whole movie: its blocks with their halo on so many workers, and what is written after them."""
    planned = blocks.plan_blocks(shape, laid.core, laid.halo, architecture_of(card).stride)
    pixels = sum(b.core.shape[0] * b.padded.shape[1] * b.padded.shape[2] for b in planned)
    rounds = math.ceil(len(planned) / min(n_workers, budget.n_cores()))  # more would only share them
    computed = pixels / len(planned) * rounds * found.pixel_s(ensemble)
    n_written = (1 + gives_back) * PYRAMID
    written = n_written * math.prod(shape) * found.written_s / min(n_workers, len(planned), budget.n_cores())
    return 2 * found.start_s + computed + written


def forecast_run(config: RunConfig, clock: Clock = time.perf_counter) -> dict[str, Any]:
    """Seconds of every step of a run, and what `forecast_apply` gives, of a short piece of the raw movie."""
    with tempfile.TemporaryDirectory(prefix="tdenoise-trial-") as temporary:
        folder = Path(temporary)
        own = step_settings(IngestConfig, config, output=folder / "m.zarr", force=False)
        ingested, cut = try_ingest(own, folder, clock)
        with open_movie(config) as reader:
            shape = stored_shape(reader.info, config)
        movie = store.open_store(cut, store.MOVIE)
        told: dict[str, Any] = {"time_ingest_s": ingest_s(config, ingested)}
        head = "gamma" if config.variance else None
        given = None if config.model in (None, *WORDS) else config.model  # `auto` takes as long as another
        start = SHIPPED if config.from_model == AUTO else config.from_model
        learning = step_settings(
            TrainConfig,
            config,
            movie=(cut,),
            output=folder / "t",
            head=head,
            from_model=start,
            far_frames=False,  # the piece is too short for them
            model=None,
            archive=None,
            force=False,
        )
        if config.model is None:
            told |= forecast_train(learning, clock)
        own_apply = step_settings(
            ApplyConfig,
            config,
            movie=cut,
            model=given,
            archive=None,
            output=folder / "d.zarr",
            variance=False,
            force=False,
        )
        denoising = _of_apply(
            own_apply, shape, movie, open_model(given or checkpoint.BASE).card, folder, clock
        )
        told |= {**denoising, "time_report_s": _report_s(own, own_apply, shape, folder, clock)}
        names = [n for n in ("ingest", "train", "apply", "report") if f"time_{n}_s" in told]
        steps = {name: told[f"time_{name}_s"] for name in names}
        if max(steps, key=lambda name: steps[name]) == "train":
            told["faster"] = (
                f"--time-limit {_limit(steps['train'] / 2)} halves the training, the longest step"
            )
        begins = start_s(clock, "workflow.run")
        return {**told, "time_start_s": begins, "time_run_s": begins + sum(steps.values())}


def _report_s(
    config: IngestConfig, denoising: ApplyConfig, shape: tuple[int, int, int], folder: Path, clock: Clock
) -> float:
    """Seconds of a report, from that of a small piece of the movie, which is denoised in one pass."""
    (top, _), (left, _) = config.roi or ((0, None), (0, None))
    height, width = (min(REPORT_FIELD, n) * config.bin for n in shape[1:])
    piece = (top, top + height), (left, left + width)
    first = (config.frames or (0, None))[0] or 0
    frames = (first, first + min(REPORT_FRAMES, shape[0]) * config.group)
    small = replace(config, roi=piece, frames=frames, output=folder / "small.zarr")
    ingest(small, held=open_movie(small))
    output = folder / "small_denoised.zarr"
    short = replace(denoising, movie=small.output, model=checkpoint.BASE, output=output, ensemble=1)
    apply(replace(short, share="0/1", workers=LOCAL))
    found = try_report(small.output, output, checkpoint.BASE, folder, clock)
    return found.rest_s + found.pixel_s * float(np.prod(shape))


def _faster(config: ApplyConfig, own: dict[str, Any], rows: list[dict[str, Any]], n_blocks: int) -> str:
    """The cheapest way to halve the time: first what costs nothing, then what costs quality, then machines."""

    def share(row: dict[str, Any]) -> float:
        return float(row["apply_s"] / own["apply_s"])

    for row in rows:
        if row["device"] != own["device"] and row["ensemble"] == own["ensemble"] and share(row) <= 0.5:
            return f"--device {row['device']} takes {share(row):.0%} of the time"
    count = 2 * own["workers"]
    if own["device"] == "cpu" and config.workers.kind == "local" and count <= min(n_blocks, budget.n_cores()):
        return f"--workers local:{count} halves it, for the same result"
    for row in sorted(rows, key=lambda row: -row["ensemble"]):
        if row["device"] == own["device"] and row["ensemble"] < own["ensemble"] and share(row) <= 0.6:
            return (
                f"--ensemble {row['ensemble']} takes {share(row):.0%} of the time; the error rises a little"
            )
    return (
        "only more machines halve it: --workers slurm:N" if n_blocks > own["workers"] else "nothing halves it"
    )


def _limit(seconds: float) -> str:
    """A duration as the flags take it."""
    return f"{max(1, round(seconds / 60))}m" if seconds >= 60 else f"{max(1, round(seconds))}s"
