"""Settings of what makes a denoised movie: train, apply and run."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Literal

from tdenoise.network.kinds import KindName

from .fields import CLUSTER, MODEL, OUTPUT, WHAT, WHERE, flag_of, setting
from .ingest_settings import Preparation
from .parse import (
    Count,
    Device,
    DoseShare,
    Duration,
    Model,
    MoviePaths,
    MovieStore,
    NewFolder,
    NewPath,
    NewStore,
    OptionalWords,
    Processes,
    Radius,
    RawPath,
    Seed,
    Share,
    Size,
    Symmetries,
    WorkersSetting,
    YesNo,
)
from .results import AUTO, SCRATCH, is_archive
from .setting import SettingError, Settings, settings
from .workers import LOCAL


@settings(kw_only=True)
class Following(Settings):
    """Whether windows follow the scene; the same for ``train`` and ``apply``."""

    ignore_drift: YesNo = setting(
        False,
        "do not follow the drift of the scene; use it for apply if you used it for train",
        group=MODEL,
    )


@settings(kw_only=True)
class Choosing(Settings):
    """Where ``auto`` chooses from; the same for ``train``, ``apply`` and ``run``."""

    archive: Path | None = setting(
        None, "archive whose models auto chooses from", group=MODEL, metavar="ARCHIVE", short="-A"
    )


@settings(kw_only=True)
class Learning(Following, Choosing):
    """How a model is trained; the same for ``train`` and ``run``."""

    steps: Count | None = setting(
        None, "training steps", group=MODEL, metavar="N", default_text="12000, or what fits into --time-limit"
    )
    time_limit: Duration | None = setting(
        None, "finish the training within this time, such as 20m or 1h30m", group=MODEL, metavar="TIME"
    )
    blind_radius: Radius = setting(
        "auto",
        "radius around a pixel that the model must not see in its own frame: 0, 1, 2, frame (the whole frame), or "
        "auto (as large as the noise of the movie needs)",
        group=MODEL,
        metavar="R",
    )
    from_model: Model | None = setting(
        None,
        "model to start from, base for the one that comes with tdenoise, scratch for random weights, or auto for the "
        "one of --archive that predicts the movie best",
        group=MODEL,
        metavar="MODEL",
        flag="--from",
        default_text="base and scratch are tried for a short time each, and the better one goes on",
    )
    movie_only: YesNo = setting(
        False,
        "learn from the movie alone, without the simulated scenes that help the model to keep fast changes",
        group=MODEL,
    )
    far_frames: YesNo = setting(
        False,
        "let the network also see sums of the frames up to 320 frames away; for movies of 100 frames or more",
        group=MODEL,
    )
    seed: Seed = setting(0, "seed of the random numbers", group=MODEL, metavar="N")
    processes: Processes | None = setting(
        None,
        "processes that train together, or slurm for the tasks of this job step",
        group=WHERE,
        metavar="N",
        default_text="one for each GPU of this machine",
    )


@settings(kw_only=True)
class Placement(Following):
    """Where blocks are computed; the same for ``apply`` and ``run``."""

    workers: WorkersSetting = setting(
        LOCAL,
        "where to compute: local:N, slurm:N, pbs:N, lsf:N, array:N, or the address of a Dask scheduler",
        group=CLUSTER,
        metavar="WHERE",
        default_text="local, one worker for each core",
    )
    worker_memory: Size | None = setting(
        None,
        "memory of one worker, such as 4GiB",
        group=CLUSTER,
        metavar="SIZE",
        default_text="an equal part of this machine's memory, or that of the profile",
    )
    insecure: YesNo = setting(
        False, "accept a scheduler without TLS, in a network where you trust everyone", group=CLUSTER
    )
    profile: Path | None = setting(
        None, "name or YAML file of the profile that describes the cluster", group=CLUSTER, metavar="NAME"
    )
    device: Device = setting(
        "auto",
        "cpu, cuda (a GPU), mps (of Apple), xpu (of Intel), or auto: whichever of these there is, else cpu",
        group=WHERE,
    )
    ensemble: Symmetries = setting(
        4,
        "number of turned and mirrored copies to average, from 1 (fast) to 16 (best)",
        group=MODEL,
        metavar="N",
    )
    precision: Literal["auto", "float32", "bfloat16"] = setting(
        "auto",
        "arithmetic of the network: float32, or bfloat16, which is faster where the hardware has it; auto: bfloat16 "
        "there, but float32 for --lossless and --variance",
        group=MODEL,
    )
    draft_only: YesNo = setting(
        False,
        "keep the output of the network even where the counts of the whole movie refute it",
        group=MODEL,
    )

    def __post_init__(self) -> None:
        self.workers.check_secure(self.insecure)


@settings(kw_only=True)
class TrainConfig(Learning):
    """Train a model on one or several noisy movies."""

    movie: MoviePaths = setting(
        help="movie stores, or an archive for the next version of its base model",
        metavar="MOVIE.zarr",
        positional=True,
    )
    where: OptionalWords = setting(
        (),
        "of an archive, only the movies that fit, as for archive find",
        group=WHAT,
        metavar="QUERY",
        default_text="all its movies",
    )
    replay: Share = setting(
        0.5,
        "of an archive, share of the patches that are of movies which the model has learned from before",
        group=MODEL,
        metavar="FRACTION",
    )
    output: NewPath = setting(help="model folder to write", group=OUTPUT, metavar="MODEL", short="-o")
    model: KindName | None = setting(
        None, "kind of network", group=MODEL, default_text="split-blind, or the kind of --from"
    )
    head: Literal["mean", "gamma"] | None = setting(
        None,
        "what the network estimates: the mean, or gamma: the mean and its uncertainty",
        group=MODEL,
        default_text="mean, or that of --from",
    )
    least_dose: DoseShare = setting(
        1.0,
        "also learn from thinned counts, down to this fraction of the dose, to denoise movies of lower dose",
        group=MODEL,
        metavar="FRACTION",
    )
    device: Device = setting(
        "auto",
        "cpu, cuda (a GPU), mps (of Apple), xpu (of Intel), or auto: whichever of these there is, else cpu",
        group=WHERE,
    )
    force: YesNo = setting(False, "replace the output if it exists", group=OUTPUT)

    def __post_init__(self) -> None:
        several = is_archive(self.movie[0])
        if len(self.movie) > 1 and any(map(is_archive, self.movie)):
            raise SettingError.of("name one archive, and nothing beside it.", "movie")
        if self.where and not several:
            raise SettingError.of("--where chooses movies of an archive: name one to train on.", "where")
        if self.from_model == AUTO and (len(self.movie) > 1 or several):
            raise SettingError.of(
                "--from auto chooses for one movie. Name one, or a model to start from.", "from_model"
            )
        check_archive_of_auto(self.from_model, self.archive, "from_model", "--from")


@settings(kw_only=True)
class Denoising(Placement, Choosing):
    """Settings of apply that are the same for one movie and for several."""

    model: Model | None = setting(
        None,
        "model folder, or auto for the one of --archive that predicts the movie best",
        group=MODEL,
        metavar="MODEL",
        default_text="the model that comes with tdenoise, not adapted to the movie",
    )
    share: str | None = setting(
        None,
        "compute part I of N (counted from 0) in this process, without connections to other processes; array in "
        "a job array",
        group=CLUSTER,
        metavar="I/N",
    )
    tile: Count | None = setting(None, "rows and columns of a block, in pixels", group=WHERE, metavar="N")
    lossless: YesNo = setting(
        False, "keep all digits of the result; the files are 4 times larger", group=OUTPUT
    )
    variance: YesNo = setting(
        False, "also write how uncertain each pixel is (the model needs a gamma head)", group=OUTPUT
    )
    resume: YesNo = setting(
        False, "only continue unfinished work; never start from the beginning", group=OUTPUT
    )
    force: YesNo = setting(False, "replace the output if it exists", group=OUTPUT)

    def __post_init__(self) -> None:
        super().__post_init__()
        check_archive_of_auto(self.model, self.archive, "model", "--model")


@settings(kw_only=True)
class ApplyConfig(Denoising):
    """Denoise a movie, block by block; safe to stop and start again."""

    movie: MovieStore = setting(help="movie store", metavar="MOVIE.zarr", positional=True)
    output: NewStore = setting(
        help="denoised store to write", group=OUTPUT, metavar="DENOISED.zarr", short="-o"
    )


@settings(kw_only=True)
class ApplyManyConfig(Denoising):
    """Denoise movies with a model; safe to stop and start again."""

    movie: MoviePaths = setting(
        help="movie stores, or an archive for all its movies", metavar="MOVIE.zarr", positional=True
    )
    output: NewStore = setting(
        help="denoised store to write, or a folder for the stores of several movies",
        group=OUTPUT,
        metavar="DENOISED.zarr",
        short="-o",
    )


@settings(kw_only=True)
class RunConfig(Preparation, Learning, Placement):
    """From a raw movie to a denoised movie and a report, in one folder: ingest, train, apply, report."""

    raw: RawPath = setting(
        help="raw movie: a file, a folder with one file for each frame, or a pattern in quotes",
        metavar="RAW",
        positional=True,
    )
    output: NewFolder = setting(
        help="folder for all results of the run", group=OUTPUT, metavar="FOLDER", short="-o"
    )
    model: Model | None = setting(
        None,
        "denoise with this model and train none: a model folder, base for the one that comes with tdenoise, or auto "
        "for the one of --archive that predicts the movie best",
        group=MODEL,
        metavar="MODEL",
        default_text="one is trained on the movie",
    )
    archive: NewPath | None = setting(
        None,
        "archive that the results are added to, and whose models auto chooses from",
        group=OUTPUT,
        metavar="ARCHIVE",
        short="-A",
    )
    variance: YesNo = setting(False, "also learn and write how uncertain each pixel is", group=OUTPUT)
    truth: Path | None = setting(
        None, "clean movie to compare with, for simulated data", group=WHAT, metavar="FILE.npz"
    )
    step: Literal["ingest", "train", "apply", "report"] | None = setting(
        None, "do only this step; the steps before it must be done", group=WHAT
    )
    force: YesNo = setting(False, "replace what is there", group=OUTPUT)

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.model is not None:
            self._check_untrained()
        for name, value in (("model", self.model), ("from_model", self.from_model)):
            if value == AUTO:
                check_archive_of_auto(value, self.archive, name, f"--{name.removesuffix('_model')}")

    def _check_untrained(self) -> None:
        """Without a training, its settings mean nothing."""
        if self.model == SCRATCH:
            raise SettingError.of("--model scratch: random weights denoise nothing. Name a model.", "model")
        for field in dataclasses.fields(Learning):
            flag = flag_of(field)
            shared = ("archive", "ignore_drift")
            if field.name not in shared and getattr(self, field.name) != field.default:
                raise SettingError.of(
                    f"{flag} is about a training, and with --model none is done. Remove one of the two.",
                    field.name,
                )
        if self.step == "train":
            raise SettingError.of(
                "--step train: with --model nothing is trained. Remove one of the two.", "step"
            )


def check_archive_of_auto(model: Path | None, archive: Path | None, name: str, flag: str) -> None:
    """``auto`` and an archive belong together."""
    if model == AUTO and archive is None:
        raise SettingError.of(
            f"{flag} auto chooses a model of an archive: name it with --archive FOLDER.", name
        )
    if model != AUTO and archive is not None:
        raise SettingError.of(
            f"--archive is where {flag} auto chooses. Add {flag} auto, or remove it.", "archive"
        )
