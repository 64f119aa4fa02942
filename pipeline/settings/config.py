"""Settings of every command: one frozen dataclass each, the same names as the flags. Light to import."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from .parse import (
    box,
    count,
    ensemble,
    flag,
    frame_seconds,
    index,
    interval,
    nanometres,
    new_folder,
    new_path,
    positive,
    processes,
    radius,
    seconds,
    seed,
    share,
    size,
    udvd_radius,
)

SCRATCH = Path("scratch")  # --from scratch: random weights


def setting(
    default: Any = dataclasses.MISSING,
    help: str = "",
    *,
    parse: Callable[[str], Any] = str,
    metavar: str | None = None,
    short: str | None = None,
    choices: tuple[str, ...] | None = None,
    positional: bool = False,
    flag: str | None = None,
) -> Any:
    """A field with what the command line needs to know about it."""
    meta = {
        "help": help,
        "parse": parse,
        "metavar": metavar,
        "short": short,
        "choices": choices,
        "positional": positional,
        "flag": flag,
    }
    return field(default=default, metadata=meta)


ORIENTATIONS = (
    "as-is",
    "rot90",
    "rot180",
    "rot270",
    "flip-y",
    "flip-x",
    "transpose",
    "anti-transpose",
)


@dataclass(frozen=True, kw_only=True)
class Preparation:
    """How a raw movie is read, calibrated and corrected; the same for ``ingest`` and ``run``."""

    frame_time: float | None = setting(
        None, "time from frame to frame [s], or 13ms", parse=frame_seconds, metavar="S"
    )
    pixel_size: float | None = setting(
        None, "distance of pixels [nm], or 14pm", parse=nanometres, metavar="NM"
    )
    counts_per_electron: float | None = setting(None, "gain of the camera", parse=positive, metavar="G")
    exposure: float | None = setting(
        None, "time that a frame collects electrons [s], or 13ms", parse=frame_seconds, metavar="S"
    )
    dose_rate: float | None = setting(None, "electrons per nm^2 and s", parse=positive, metavar="E")
    voltage: float | None = setting(None, "of the microscope [kV]", parse=positive, metavar="KV")
    camera: str | None = setting(None, "name of the camera", metavar="NAME")
    dataset: str | None = setting(None, "array to read, where a file holds several", metavar="PATH")
    channel: int | None = setting(None, "channel to read, counted from 0", parse=index, metavar="N")
    dark: Path | None = setting(
        None, "dark reference, subtracted: one image or a movie", parse=Path, metavar="FILE"
    )
    gain: Path | None = setting(
        None, "gain reference, multiplied: one image or a movie", parse=Path, metavar="FILE"
    )
    gain_orientation: str = setting(
        "as-is", "how the gain reference is turned to lie as the movie", choices=ORIENTATIONS
    )
    defects: Path | None = setting(
        None,
        "defect map: an image, not 0 where bad, or text 'x y [width height]'",
        parse=Path,
        metavar="FILE",
    )
    keep_defects: bool = setting(False, "leave hot and dead pixels that are found as they are", parse=flag)
    xray: str = setting(
        "auto",
        "X-ray hits: replaced, or kept and named; auto: replaced if electrons are counted",
        choices=("auto", "replace", "keep"),
    )
    frames: tuple[int, int | None] | None = setting(None, "keep these frames", parse=interval, metavar="A:B")
    roi: tuple[tuple[int, int | None], tuple[int, int | None]] | None = setting(
        None, "keep this part of the field", parse=box, metavar="Y0:Y1,X0:X1"
    )
    bin: int = setting(1, "sum squares of N x N pixels", parse=count, metavar="N")
    group: int = setting(1, "sum groups of N successive frames", parse=count, metavar="N")
    allow_truncated: bool = setting(False, "keep the whole frames of a file that was cut", parse=flag)


@dataclass(frozen=True, kw_only=True)
class IngestConfig(Preparation):
    """Turn a raw movie into a movie store."""

    raw: Path = setting(help="raw movie", parse=Path, metavar="RAW", positional=True)
    output: Path = setting(help="movie store to write", parse=new_path, metavar="MOVIE.zarr", short="-o")
    force: bool = setting(False, "replace the output, or start it over", parse=flag)


@dataclass(frozen=True, kw_only=True)
class IngestManyConfig(Preparation):
    """Turn raw movies into movie stores."""

    raw: tuple[Path, ...] = setting(
        help="raw movies, folders of them, or patterns such as 'day1/*.mrc'",
        parse=Path,
        metavar="RAW",
        positional=True,
    )
    output: Path = setting(
        help="movie store to write, or the folder for several",
        parse=new_path,
        metavar="MOVIE.zarr",
        short="-o",
    )
    force: bool = setting(False, "replace the output, or start it over", parse=flag)


@dataclass(frozen=True, kw_only=True)
class Following:
    """Whether windows follow the scene; the same for ``train`` and ``apply``."""

    ignore_drift: bool = setting(
        False,
        "look at the same pixels of all frames, though the scene drifts; a model that was trained so is applied so",
        parse=flag,
    )


@dataclass(frozen=True, kw_only=True)
class Learning(Following):
    """How a model is trained; the same for ``train`` and ``run``."""

    steps: int | None = setting(
        None, "optimiser steps (default: 12000, or what fits the time limit)", parse=count, metavar="N"
    )
    time_limit: float | None = setting(None, "anneal and finish in this time: 90s, 20m, 1h30m", parse=seconds)
    blind_radius: int | str = setting(
        "auto", "pixels around the centre that the model never sees: 0, 1, 2, frame, or auto", parse=radius
    )
    from_model: Path | None = setting(
        None,
        "model to adapt (default: the one that comes with tdenoise), or scratch",
        parse=Path,
        metavar="MODEL",
        flag="--from",
    )
    movie_only: bool = setting(
        False,
        "adapt to the movie alone, without the simulated scenes that keep what the model knows of changes",
        parse=flag,
    )
    seed: int = setting(0, "of weights and patches", parse=seed, metavar="N")
    processes: int | str | None = setting(
        None,
        "processes that share the training (default: one for each GPU here); slurm: the tasks of this job step",
        parse=processes,
        metavar="N",
    )


@dataclass(frozen=True, kw_only=True)
class Placement(Following):
    """Where blocks are computed; the same for ``apply`` and ``run``."""

    workers: str = setting(
        "local",
        "local:N, slurm:N, pbs:N, lsf:N, array:N, or the address of a Dask scheduler",
        metavar="WHERE",
    )
    worker_memory: int | None = setting(None, "memory of one worker: 4GiB", parse=size, metavar="SIZE")
    insecure: bool = setting(False, "take a scheduler without TLS, among people you trust", parse=flag)
    profile: Path | None = setting(
        None, "name or YAML file of a profile of the cluster", parse=Path, metavar="NAME"
    )
    device: str = setting("auto", "where to compute", choices=("auto", "cpu", "cuda"))
    ensemble: int = setting(
        16, "symmetries to average over: 1 (fast) to 16 (best)", parse=ensemble, metavar="N"
    )
    draft_only: bool = setting(
        False, "keep what the network says, even where the counts of the whole movie refute it", parse=flag
    )


@dataclass(frozen=True, kw_only=True)
class TrainConfig(Learning):
    """Train a model on one or several noisy movies."""

    movie: tuple[Path, ...] = setting(help="movie stores", parse=Path, metavar="MOVIE.zarr", positional=True)
    output: Path = setting(help="model folder to write", parse=new_path, metavar="MODEL", short="-o")
    model: str | None = setting(
        None,
        "kind of network (default: split-blind, or that of --from)",
        choices=("split-blind", "thinned", "udvd"),
    )
    head: str | None = setting(
        None,
        "what the network tells: the mean, or gamma: also how uncertain it is (default: mean, or that of --from)",
        choices=("mean", "gamma"),
    )
    least_dose: float = setting(
        1.0,
        "also learn from thinned counts, down to this share of the movie's dose, to denoise movies of lower dose",
        parse=share,
        metavar="SHARE",
    )
    device: str = setting("auto", "where to compute", choices=("auto", "cpu", "cuda"))
    force: bool = setting(False, "replace the output, or start it over", parse=flag)


@dataclass(frozen=True, kw_only=True)
class Denoising(Placement):
    """Settings of apply that are the same for one movie and for several."""

    model: Path | None = setting(
        None,
        "model folder (default: the one that comes with tdenoise, as it is)",
        parse=Path,
        metavar="MODEL",
    )
    share: str | None = setting(
        None, "do one of N shares, here, without any network: I/N, or array in a job array", metavar="I/N"
    )
    tile: int | None = setting(None, "rows and columns of a block [pixels]", parse=count, metavar="N")
    lossless: bool = setting(False, "keep all 23 bits of the mantissa", parse=flag)
    variance: bool = setting(
        False, "also write how uncertain every pixel is (of a model with a gamma head)", parse=flag
    )
    resume: bool = setting(False, "refuse to start afresh: only continue", parse=flag)
    force: bool = setting(False, "replace the output, or start it over", parse=flag)


@dataclass(frozen=True, kw_only=True)
class ApplyConfig(Denoising):
    """Denoise a movie, block by block; safe to stop and start again."""

    movie: Path = setting(help="movie store", parse=Path, metavar="MOVIE.zarr", positional=True)
    output: Path = setting(
        help="denoised store to write", parse=new_path, metavar="DENOISED.zarr", short="-o"
    )


@dataclass(frozen=True, kw_only=True)
class ApplyManyConfig(Denoising):
    """Denoise movies with a model."""

    movie: tuple[Path, ...] = setting(
        help="movie stores, or an archive: all its movies",
        parse=Path,
        metavar="MOVIE.zarr",
        positional=True,
    )
    output: Path = setting(
        help="denoised store to write, or the folder for several",
        parse=new_path,
        metavar="DENOISED.zarr",
        short="-o",
    )


@dataclass(frozen=True)
class ArchiveAddConfig:
    """Add finished stores and models to an archive."""

    store: tuple[Path, ...] = setting(
        help="movie stores, denoised stores, models", parse=Path, metavar="STORE", positional=True
    )
    archive: Path = setting(
        help="archive; made where there is none", parse=new_path, metavar="ARCHIVE", short="-A"
    )


@dataclass(frozen=True)
class ArchiveConfig:
    """Say what an archive holds."""

    archive: Path = setting(help="archive", parse=Path, metavar="ARCHIVE", short="-A")


@dataclass(frozen=True)
class ArchiveIndexConfig(ArchiveConfig):
    """Make the index of an archive anew from its cards."""


@dataclass(frozen=True)
class ArchiveFindConfig:
    """Find what an archive knows."""

    query: tuple[str, ...] = setting(
        help="words that must occur, or KEY=VALUE, such as kind=movie", metavar="QUERY", positional=True
    )
    archive: Path = setting(help="archive", parse=Path, metavar="ARCHIVE", short="-A")


@dataclass(frozen=True)
class ArchiveShowConfig:
    """Show a card, what it was made from and what was made from it."""

    id: str = setting(help="id, its beginning, or a name", metavar="ID", positional=True)
    archive: Path = setting(help="archive", parse=Path, metavar="ARCHIVE", short="-A")


@dataclass(frozen=True)
class ArchiveVerifyConfig:
    """Check all cards of an archive and all that they name."""

    archive: Path = setting(help="archive", parse=Path, metavar="ARCHIVE", short="-A")
    deep: bool = setting(False, "decode everything and compare it with the recorded hashes", parse=flag)


@dataclass(frozen=True, kw_only=True)
class RunConfig(Preparation, Learning, Placement):
    """Raw movie to denoised store and report: ingest, train, apply, evaluate, report."""

    raw: Path = setting(help="raw movie", parse=Path, metavar="RAW", positional=True)
    output: Path = setting(help="folder for everything", parse=new_folder, metavar="FOLDER", short="-o")
    variance: bool = setting(False, "also learn and write how uncertain every pixel is", parse=flag)
    truth: Path | None = setting(None, "clean movie, for simulated data", parse=Path, metavar="FILE.npz")
    step: str | None = setting(
        None, "do only this step, after those before it", choices=("ingest", "train", "apply", "report")
    )
    force: bool = setting(False, "replace what is there", parse=flag)


@dataclass(frozen=True)
class EvaluateConfig:
    """Measure how good a denoised movie is, with or without a truth."""

    denoised: Path = setting(help="denoised store", parse=Path, metavar="DENOISED.zarr", positional=True)
    movie: Path = setting(help="movie store it was made from", parse=Path, metavar="MOVIE.zarr")
    truth: Path | None = setting(None, "clean movie, for simulated data", parse=Path, metavar="FILE.npz")
    baseline: bool = setting(False, "with --truth: also tune the best 3D Gaussian filter", parse=flag)
    model: Path | None = setting(
        None, "model that made it, to test it with probes", parse=Path, metavar="MODEL"
    )


@dataclass(frozen=True)
class ReportConfig:
    """Write a page with pictures and figures of a denoised movie."""

    denoised: Path = setting(help="denoised store", parse=Path, metavar="DENOISED.zarr", positional=True)
    movie: Path = setting(help="movie store it was made from", parse=Path, metavar="MOVIE.zarr")
    output: Path = setting(help="HTML file to write", parse=new_path, metavar="REPORT.html", short="-o")
    model: Path | None = setting(
        None, "model that made it: training curve and probes", parse=Path, metavar="MODEL"
    )
    truth: Path | None = setting(None, "clean movie, for simulated data", parse=Path, metavar="FILE.npz")
    baseline: bool = setting(False, "with --truth: also tune the best 3D Gaussian filter", parse=flag)
    force: bool = setting(False, "replace the output", parse=flag)


@dataclass(frozen=True)
class VerifyConfig:
    """Check that a store is whole."""

    store: Path = setting(
        help="movie store or denoised store", parse=Path, metavar="STORE.zarr", positional=True
    )
    deep: bool = setting(False, "decode everything and compare it with the recorded hashes", parse=flag)
    repair: bool = setting(
        False, "compute what is damaged again (needs --raw, or --movie and --model), then verify", parse=flag
    )
    raw: Path | None = setting(
        None, "for --repair of a movie store: the raw movie", parse=Path, metavar="RAW"
    )
    movie: Path | None = setting(
        None, "for --repair of a denoised store: its movie store", parse=Path, metavar="MOVIE.zarr"
    )
    model: Path | None = setting(
        None, "for --repair of a denoised store: its model", parse=Path, metavar="MODEL"
    )
    workers: str = setting("local", "for --repair: where to compute, as for apply", metavar="WHERE")


@dataclass(frozen=True)
class ModelsImportConfig:
    """Make a model of UDVD weights that the users' script saved."""

    weights: Path = setting(
        help="state dict, as the script saves it", parse=Path, metavar="FILE.pth", positional=True
    )
    output: Path = setting(help="model folder to write", parse=new_path, metavar="MODEL", short="-o")
    blind_radius: int = setting(
        1,
        "1, the script's default, or 0 for weights of its --include-neighbor",
        parse=udvd_radius,
        metavar="N",
    )
    force: bool = setting(False, "replace the output", parse=flag)


@dataclass(frozen=True)
class ModelsShowConfig:
    """Say what a model is."""

    model: Path = setting(help="model folder", parse=Path, metavar="MODEL", positional=True)


@dataclass(frozen=True)
class StatusConfig:
    """Say how far a run has come."""

    output: Path = setting(
        help="store, model or folder that a command writes", parse=Path, metavar="OUTPUT", positional=True
    )


@dataclass(frozen=True)
class ResumeConfig:
    """Go on with what was interrupted; of a batch run, queue again what is missing."""

    output: Path = setting(
        help="run folder, or what a command writes", parse=Path, metavar="OUTPUT", positional=True
    )
    profile: Path | None = setting(
        None, "profile for the new jobs (default: as submitted)", parse=Path, metavar="NAME"
    )
    force: bool = setting(
        False,
        "although jobs of the run are queued, or Slurm does not answer; replace what is there, where the "
        "interrupted command was to",
        parse=flag,
    )
    workers: str | None = setting(
        None, "where to compute (default: as begun, unless that was a scheduler)", metavar="WHERE"
    )
    insecure: bool = setting(False, "take a scheduler without TLS", parse=flag)


@dataclass(frozen=True)
class CancelConfig:
    """Cancel the jobs of a batch run; what is done stays."""

    output: Path = setting(
        help="run folder, or what the run writes", parse=Path, metavar="FOLDER", positional=True
    )


@dataclass(frozen=True)
class LogsConfig:
    """Show the logs of the jobs of a batch run."""

    output: Path = setting(
        help="run folder, or what the run writes", parse=Path, metavar="FOLDER", positional=True
    )
    failed: bool = setting(False, "only of jobs that failed, in full", parse=flag)
    follow: bool = setting(False, "go on as they are written, until the run is over", parse=flag)


@dataclass(frozen=True)
class ProfilesListConfig:
    """Name the profiles that --profile knows."""


@dataclass(frozen=True)
class ProfilesShowConfig:
    """Show what every kind of job asks for with a profile."""

    profile: Path = setting(help="name or file of a profile", parse=Path, metavar="NAME", positional=True)


@dataclass(frozen=True)
class ProfilesCheckConfig:
    """Ask the cluster whether it would take the jobs of a profile."""

    profile: Path = setting(help="name or file of a profile", parse=Path, metavar="NAME", positional=True)


@dataclass(frozen=True)
class SimulateConfig:
    """Write a raw movie with known truth."""

    output: Path = setting(help="folder to write", parse=new_folder, metavar="FOLDER", short="-o")
    size: int = setting(128, "rows and columns [pixels]", parse=count, metavar="N")
    n_frames: int = setting(64, "length of the movie", parse=count, metavar="N")
    dose: float = setting(2.0, "electrons per pixel and frame", parse=positive, metavar="E")
    format: str = setting("tiff", "of the raw movie", choices=("tiff", "mrc"))
    blur: float = setting(
        0.0, "standard deviation of the detector's blur [pixels]", parse=float, metavar="PX"
    )
    hot_pixels: int = setting(0, "number of hot pixels", parse=int, metavar="N")
    seed: int = setting(0, "of scene and noise", parse=seed, metavar="N")
    force: bool = setting(False, "replace the output", parse=flag)


@dataclass(frozen=True)
class DoctorConfig:
    """Check whether this machine, a shared folder and the nodes of a cluster are fit for work."""

    folder: Path = setting(
        Path(),
        "folder that results will go to, shared with the nodes (default: here)",
        parse=Path,
        metavar="FOLDER",
        positional=True,
    )
    profile: Path | None = setting(None, "YAML file that describes the cluster", parse=Path, metavar="FILE")
    nodes: int | None = setting(
        None, "also check so many nodes, in a small Slurm job that is waited for", parse=count, metavar="N"
    )
    answer: Path | None = setting(
        None, "write what was found to this file, too; how nodes answer", parse=new_path, metavar="FILE"
    )
