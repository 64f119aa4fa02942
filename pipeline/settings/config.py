"""Settings of every command: one frozen dataclass each, with the names of the flags. `setting` checks the values."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Literal, get_args

from .fields import setting
from .parse import (
    Box,
    Count,
    DenoisedStore,
    DoseShare,
    Duration,
    FrameTime,
    Index,
    Interval,
    Model,
    MoviePaths,
    MovieStore,
    Nanometres,
    NewFolder,
    NewPath,
    NewStore,
    Number,
    Paths,
    Positive,
    Processes,
    Radius,
    RawPath,
    RawPaths,
    Seed,
    Size,
    Symmetries,
    UdvdRadius,
    Whole,
    Words,
    YesNo,
)
from .results import beside_in_run, was_compared
from .setting import SettingError, Settings, settings

SCRATCH = Path("scratch")  # --from scratch: random weights

Orientation = Literal["as-is", "rot90", "rot180", "rot270", "flip-y", "flip-x", "transpose", "anti-transpose"]
ORIENTATIONS: tuple[str, ...] = get_args(Orientation)

# Headings of the help.
WHAT = "what to read"
CALIBRATION = "calibration of the movie"
CORRECTIONS = "corrections of the detector"
MODEL = "model"
WHERE = "where to compute"
CLUSTER = "cluster"
OUTPUT = "output"


@settings(kw_only=True)
class Preparation(Settings):
    """How a raw movie is read, calibrated and corrected; the same for ``ingest`` and ``run``."""

    frame_time: FrameTime | None = setting(
        None, "time from one frame to the next, such as 13ms", group=CALIBRATION, metavar="TIME"
    )
    pixel_size: Nanometres | None = setting(
        None, "how far apart pixels are, in nanometres, or such as 14pm", group=CALIBRATION, metavar="NM"
    )
    counts_per_electron: Positive | None = setting(
        None, "counts that one electron makes", group=CALIBRATION, metavar="G"
    )
    exposure: FrameTime | None = setting(
        None, "time that a frame collects electrons, such as 13ms", group=CALIBRATION, metavar="TIME"
    )
    dose_rate: Positive | None = setting(
        None, "electrons per square nanometre and second", group=CALIBRATION, metavar="E"
    )
    voltage: Positive | None = setting(
        None, "voltage of the microscope, in kilovolts", group=CALIBRATION, metavar="KV"
    )
    camera: str | None = setting(None, "name of the camera", group=CALIBRATION, metavar="NAME")
    dataset: str | None = setting(None, "array to read, if a file holds several", group=WHAT, metavar="PATH")
    channel: Index | None = setting(
        None, "channel to read, counted from 0, if a file holds several", group=WHAT, metavar="N"
    )
    dark: Path | None = setting(
        None, "dark reference to subtract: one image, or a movie", group=CORRECTIONS, metavar="FILE"
    )
    gain: Path | None = setting(
        None, "gain reference to multiply by: one image, or a movie", group=CORRECTIONS, metavar="FILE"
    )
    gain_orientation: Orientation = setting(
        "as-is", "how to turn the gain reference so that it fits the movie", group=CORRECTIONS
    )
    defects: Path | None = setting(
        None,
        "defect map: an image that is 0 where pixels are good, or text with lines 'x y [width height]'",
        group=CORRECTIONS,
        metavar="FILE",
    )
    keep_defects: YesNo = setting(False, "leave hot and dead pixels as they are", group=CORRECTIONS)
    xray: Literal["auto", "replace", "keep"] = setting(
        "auto",
        "what to do with X-ray hits: replace them, keep and list them, or auto: replace them if electrons are counted",
        group=CORRECTIONS,
    )
    frames: Interval | None = setting(
        None,
        "read frames A to B - 1 only, counted from 0; you can leave out A or B",
        group=WHAT,
        metavar="A:B",
    )
    roi: Box | None = setting(None, "read these rows and columns only", group=WHAT, metavar="Y0:Y1,X0:X1")
    bin: Count = setting(1, "sum squares of N x N pixels", group=WHAT, metavar="N")
    group: Count = setting(1, "sum groups of N successive frames", group=WHAT, metavar="N")
    allow_truncated: YesNo = setting(False, "read what is whole of a file that was cut off", group=WHAT)


@settings(kw_only=True)
class IngestConfig(Preparation):
    """Turn a raw movie into a movie store."""

    raw: RawPath = setting(help="raw movie", metavar="RAW", positional=True)
    output: NewStore = setting(help="movie store to write", group=OUTPUT, metavar="MOVIE.zarr", short="-o")
    force: YesNo = setting(False, "replace the output if it exists", group=OUTPUT)


@settings(kw_only=True)
class IngestManyConfig(Preparation):
    """Read raw movies, calibrate and correct them, and write each as a movie store."""

    raw: RawPaths = setting(
        help="raw movies, folders of them, or patterns such as 'day1/*.mrc'", metavar="RAW", positional=True
    )
    output: NewStore = setting(
        help="movie store to write, or a folder for the stores of several movies",
        group=OUTPUT,
        metavar="MOVIE.zarr",
        short="-o",
    )
    force: YesNo = setting(False, "replace the output if it exists", group=OUTPUT)


@settings(kw_only=True)
class Following(Settings):
    """Whether windows follow the scene; the same for ``train`` and ``apply``."""

    ignore_drift: YesNo = setting(
        False,
        "look at the same pixels of all frames even if the scene drifts; use it for apply if you used it for train",
        group=MODEL,
    )


@settings(kw_only=True)
class Learning(Following):
    """How a model is trained; the same for ``train`` and ``run``."""

    steps: Count | None = setting(
        None, "training steps", group=MODEL, metavar="N", default_text="12000, or what fits into --time-limit"
    )
    time_limit: Duration | None = setting(
        None, "finish the training within this time, such as 20m or 1h30m", group=MODEL, metavar="TIME"
    )
    blind_radius: Radius = setting(
        "auto",
        "how many pixels around a pixel the model must not see in its own frame: 0, 1, 2, frame (the whole frame), or "
        "auto (as many as the noise of the movie needs)",
        group=MODEL,
        metavar="R",
    )
    from_model: Model | None = setting(
        None,
        "model to start from, or scratch to start from random weights",
        group=MODEL,
        metavar="MODEL",
        flag="--from",
        default_text="the model that comes with tdenoise",
    )
    movie_only: YesNo = setting(
        False,
        "learn from the movie alone, without the simulated scenes that help the model to keep fast changes",
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

    workers: str = setting(
        "local",
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
        default_text="an equal part of this machine's, or what the profile says",
    )
    insecure: YesNo = setting(
        False, "accept a scheduler without TLS, in a network where you trust everyone", group=CLUSTER
    )
    profile: Path | None = setting(
        None, "name or YAML file of the profile that describes the cluster", group=CLUSTER, metavar="NAME"
    )
    device: Literal["auto", "cpu", "cuda"] = setting(
        "auto", "cpu, cuda (a GPU), or auto: a GPU if there is one", group=WHERE
    )
    ensemble: Symmetries = setting(
        16, "turned and mirrored copies to average over, from 1 (fast) to 16 (best)", group=MODEL, metavar="N"
    )
    draft_only: YesNo = setting(
        False, "keep what the network says even where the counts of the whole movie refute it", group=MODEL
    )


@settings(kw_only=True)
class TrainConfig(Learning):
    """Train a model on one or several noisy movies."""

    movie: MoviePaths = setting(help="movie stores", metavar="MOVIE.zarr", positional=True)
    output: NewPath = setting(help="model folder to write", group=OUTPUT, metavar="MODEL", short="-o")
    model: Literal["split-blind", "thinned", "udvd"] | None = setting(
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
    device: Literal["auto", "cpu", "cuda"] = setting(
        "auto", "cpu, cuda (a GPU), or auto: a GPU if there is one", group=WHERE
    )
    force: YesNo = setting(False, "replace the output if it exists", group=OUTPUT)


@settings(kw_only=True)
class Denoising(Placement):
    """Settings of apply that are the same for one movie and for several."""

    model: Model | None = setting(
        None,
        "model folder",
        group=MODEL,
        metavar="MODEL",
        default_text="the model that comes with tdenoise, not adapted to the movie",
    )
    share: str | None = setting(
        None,
        "compute part I of N (counted from 0) in this process, without any network; array in a job array",
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
    resume: YesNo = setting(False, "only continue what was begun, never start anew", group=OUTPUT)
    force: YesNo = setting(False, "replace the output if it exists", group=OUTPUT)


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


@settings()
class ArchiveAddConfig(Settings):
    """Add finished stores and models to an archive."""

    store: Paths = setting(
        help="movie stores, denoised stores, models, or folders of runs", metavar="STORE", positional=True
    )
    archive: NewPath = setting(
        help="archive folder; created if it does not exist", group=OUTPUT, metavar="ARCHIVE", short="-A"
    )


@settings()
class ArchiveConfig(Settings):
    """List all that an archive holds."""

    archive: Path = setting(help="archive folder", group=WHAT, metavar="ARCHIVE", short="-A")


@settings()
class ArchiveIndexConfig(ArchiveConfig):
    """Rebuild the index of an archive from its cards."""


@settings()
class ArchiveFindConfig(Settings):
    """Find movies, models and results in an archive."""

    query: Words = setting(
        help="words that must occur, or KEY=VALUE, such as kind=movie", metavar="QUERY", positional=True
    )
    archive: Path = setting(help="archive folder", group=WHAT, metavar="ARCHIVE", short="-A")


@settings()
class ArchiveShowConfig(Settings):
    """Show one item, what it was made from and what was made from it."""

    id: str = setting(help="id, the beginning of one, or a name", metavar="ID", positional=True)
    archive: Path = setting(help="archive folder", group=WHAT, metavar="ARCHIVE", short="-A")


@settings()
class ArchiveVerifyConfig(Settings):
    """Check every card of an archive and all that the cards name."""

    archive: Path = setting(help="archive folder", group=WHAT, metavar="ARCHIVE", short="-A")
    deep: YesNo = setting(False, "decode everything and compare it with the recorded hashes", group=WHAT)


@settings(kw_only=True)
class RunConfig(Preparation, Learning, Placement):
    """From a raw movie to a denoised movie and a report, in one folder: ingest, train, apply, report."""

    raw: RawPath = setting(help="raw movie", metavar="RAW", positional=True)
    output: NewFolder = setting(
        help="folder for everything that the run makes", group=OUTPUT, metavar="FOLDER", short="-o"
    )
    variance: YesNo = setting(False, "also learn and write how uncertain each pixel is", group=OUTPUT)
    truth: Path | None = setting(
        None, "clean movie to compare with, for simulated data", group=WHAT, metavar="FILE.npz"
    )
    step: Literal["ingest", "train", "apply", "report"] | None = setting(
        None, "do this step only; those before it must be done", group=WHAT
    )
    force: YesNo = setting(False, "replace what is there", group=OUTPUT)


@settings()
class EvaluateConfig(Settings):
    """Measure how good a denoised movie is, with or without a truth."""

    denoised: DenoisedStore = setting(
        help="denoised store, or the folder of a run", metavar="DENOISED.zarr", positional=True
    )
    movie: MovieStore = setting(
        None,
        "movie store it was made from",
        group=WHAT,
        metavar="MOVIE.zarr",
        default_text="that of the run, if you give the folder of a run",
    )
    truth: Path | None = setting(
        None, "clean movie to compare with, for simulated data", group=WHAT, metavar="FILE.npz"
    )
    baseline: YesNo = setting(False, "with --truth: also tune the best 3D Gaussian filter", group=WHAT)
    model: Model | None = setting(
        None,
        "model that made it, to test it with probes",
        group=WHAT,
        metavar="MODEL",
        default_text="that of the run, if you give the folder of a run",
    )

    def __post_init__(self) -> None:
        _take_from_run(self)


@settings()
class ReportConfig(Settings):
    """Write a page with pictures and figures of a denoised movie."""

    denoised: DenoisedStore = setting(
        help="denoised store, or the folder of a run", metavar="DENOISED.zarr", positional=True
    )
    movie: MovieStore = setting(
        None,
        "movie store it was made from",
        group=WHAT,
        metavar="MOVIE.zarr",
        default_text="that of the run, if you give the folder of a run",
    )
    output: NewPath = setting(
        None,
        "HTML file to write",
        group=OUTPUT,
        metavar="REPORT.html",
        short="-o",
        default_text="report.html of the run, if you give the folder of a run",
    )
    model: Model | None = setting(
        None,
        "model that made it, for its training curve and probes",
        group=WHAT,
        metavar="MODEL",
        default_text="that of the run, if you give the folder of a run",
    )
    truth: Path | None = setting(
        None, "clean movie to compare with, for simulated data", group=WHAT, metavar="FILE.npz"
    )
    baseline: YesNo = setting(False, "with --truth: also tune the best 3D Gaussian filter", group=WHAT)
    force: YesNo = setting(False, "replace the output if it exists", group=OUTPUT)

    def __post_init__(self) -> None:
        _take_from_run(self)


def _take_from_run(config: EvaluateConfig | ReportConfig) -> None:
    """What lies beside a denoised store in the folder of a run, where it was not given."""
    given: dict[str, Any] = dict(vars(config))
    of_run: dict[str, object] = {}
    if given["movie"] is None:
        of_run["movie"] = beside_in_run(config.denoised, "ingest")
        if config.model is None:
            of_run["model"] = beside_in_run(config.denoised, "train")
    if given.get("output", config) is None:
        of_run["output"] = beside_in_run(config.denoised, "report", exists=False)
        # The page is the run's to replace, unless it was compared with a truth and the new one would not be.
        of_run["force"] = given["force"] or not (
            config.truth is None and was_compared(config.denoised.parent)
        )
    for name, value in of_run.items():
        if value is None and name in ("movie", "output"):
            raise SettingError.missing(type(config), name)
        object.__setattr__(config, name, value)


@settings()
class VerifyConfig(Settings):
    """Check that a store, or all that a run made, is complete and undamaged."""

    store: Path = setting(
        help="movie store, denoised store, or the folder of a run", metavar="STORE.zarr", positional=True
    )
    deep: YesNo = setting(False, "decode everything and compare it with the recorded hashes", group=WHAT)
    repair: YesNo = setting(
        False,
        "compute what is damaged again, then check; a store needs --raw, or --movie and --model",
        group="repair",
    )
    raw: Path | None = setting(None, "raw movie, to repair a movie store", group="repair", metavar="RAW")
    movie: MovieStore | None = setting(
        None, "movie store, to repair a denoised store", group="repair", metavar="MOVIE.zarr"
    )
    model: Model | None = setting(None, "model, to repair a denoised store", group="repair", metavar="MODEL")
    workers: str = setting(
        "local", "where to compute the repair, as for apply", group="repair", metavar="WHERE"
    )


@settings()
class ModelsImportConfig(Settings):
    """Turn UDVD weights that the original script saved into a model."""

    weights: Path = setting(
        help="file of weights (a state dict) that the script saved", metavar="FILE.pth", positional=True
    )
    output: NewPath = setting(help="model folder to write", group=OUTPUT, metavar="MODEL", short="-o")
    blind_radius: UdvdRadius = setting(
        1,
        "1, or 0 if the script ran with --include-neighbor",
        group=MODEL,
        metavar="N",
    )
    force: YesNo = setting(False, "replace the output if it exists", group=OUTPUT)


@settings()
class ModelsShowConfig(Settings):
    """Show the architecture, training and figures of a model."""

    model: Model = setting(help="model folder", metavar="MODEL", positional=True)


@settings()
class StatusConfig(Settings):
    """Show how far a run has come."""

    output: Path = setting(
        help="store, model or folder that a command writes", metavar="OUTPUT", positional=True
    )


@settings()
class ResumeConfig(Settings):
    """Continue what was interrupted; of a batch run, queue again what is missing."""

    output: Path = setting(
        help="folder of a run, or whatever a command writes", metavar="OUTPUT", positional=True
    )
    profile: Path | None = setting(
        None,
        "profile for the new jobs",
        group=CLUSTER,
        metavar="NAME",
        default_text="that of the first submission",
    )
    force: YesNo = setting(
        False,
        "continue even if jobs of the run are queued or Slurm does not answer, and replace what is there if the "
        "interrupted command was to replace it",
        group=OUTPUT,
    )
    workers: str | None = setting(
        None,
        "where to compute",
        group=CLUSTER,
        metavar="WHERE",
        default_text="as before, unless that was the address of a scheduler",
    )
    insecure: YesNo = setting(
        False, "accept a scheduler without TLS, in a network where you trust everyone", group=CLUSTER
    )


@settings()
class CancelConfig(Settings):
    """Cancel the jobs of a batch run; what is done is kept."""

    output: Path = setting(
        help="folder of a run, or whatever the run writes", metavar="FOLDER", positional=True
    )


@settings()
class LogsConfig(Settings):
    """Show the logs of the jobs of a batch run."""

    output: Path = setting(
        help="folder of a run, or whatever the run writes", metavar="FOLDER", positional=True
    )
    failed: YesNo = setting(False, "show only jobs that failed, in full", group=WHAT)
    follow: YesNo = setting(False, "keep showing new lines until the run is over", group=WHAT)


@settings()
class ProfilesListConfig(Settings):
    """List the names that --profile accepts."""


@settings()
class ProfilesShowConfig(Settings):
    """Show what a profile asks for, for each kind of job."""

    profile: Path = setting(help="name or file of a profile", metavar="NAME", positional=True)


@settings()
class ProfilesCheckConfig(Settings):
    """Ask the cluster whether it would accept the jobs of a profile."""

    profile: Path = setting(help="name or file of a profile", metavar="NAME", positional=True)


@settings()
class SimulateConfig(Settings):
    """Write a simulated raw movie and its noise-free truth."""

    output: NewFolder = setting(help="folder to write into", group=OUTPUT, metavar="FOLDER", short="-o")
    size: Count = setting(128, "rows and columns, in pixels", group=WHAT, metavar="N")
    n_frames: Count = setting(64, "number of frames", group=WHAT, metavar="N")
    dose: Positive = setting(2.0, "electrons per pixel and frame", group=WHAT, metavar="E")
    format: Literal["tiff", "mrc"] = setting("tiff", "format of the raw movie", group=OUTPUT)
    blur: Number = setting(
        0.0, "standard deviation of the detector's blur, in pixels", group=WHAT, metavar="PX"
    )
    hot_pixels: Whole = setting(0, "number of hot pixels", group=WHAT, metavar="N")
    seed: Seed = setting(0, "seed of scene and noise", group=WHAT, metavar="N")
    force: YesNo = setting(False, "replace the output if it exists", group=OUTPUT)


@settings()
class DoctorConfig(Settings):
    """Check whether this machine, a shared folder and the nodes of a cluster are ready for work."""

    folder: Path = setting(
        Path(),
        "folder for the results, on a disk that the nodes share",
        metavar="FOLDER",
        positional=True,
        default_text="the current folder",
    )
    profile: Path | None = setting(
        None, "name or YAML file of the profile that describes the cluster", group=CLUSTER, metavar="NAME"
    )
    nodes: Count | None = setting(
        None, "also check N nodes, with a small Slurm job; waits for it to end", group=CLUSTER, metavar="N"
    )
    answer: NewPath | None = setting(
        None, "also write the findings to this file, as nodes do", group=OUTPUT, metavar="FILE"
    )
