"""Settings of a study: what a movie teaches with fewer and with smaller frames."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

from ..errors import UsageError
from .denoise_settings import Choosing, check_archive_of_auto
from .fields import CLUSTER, MODEL, OUTPUT, WHAT, WHERE, setting
from .parse import Count, Device, Duration, FrameNumbers, FrameSizes, MovieStore, NewFolder, WorkersSetting
from .setting import settings
from .workers import LOCAL


@settings(kw_only=True)
class StudyConfig(Choosing):
    """Train on fewer and on smaller frames of a movie, and compare what each model makes of the same frames."""

    movie: MovieStore = setting(
        help="movie store, or the folder of a run", metavar="MOVIE.zarr", positional=True
    )
    output: NewFolder = setting(
        help="folder for models, figures and report", group=OUTPUT, metavar="FOLDER", short="-o"
    )
    frames: FrameNumbers | None = setting(
        None,
        "numbers of frames to train on, such as 25,100,400,all",
        group=WHAT,
        metavar="N,N,...",
        default_text="25, 50, 100, ... and all",
    )
    sizes: FrameSizes | None = setting(
        None,
        "rows and columns of the frames to train on, such as 128,256,full",
        group=WHAT,
        metavar="N,N,...",
        default_text="128, 256, 512, ... and full",
    )
    from_model: Literal["scratch", "base", "auto"] = setting(
        "scratch",
        "weights to start from: scratch for random ones, so that the movie alone teaches, base for the model "
        "that comes with tdenoise, or auto for the one of --archive that predicts the movie best",
        group=MODEL,
        flag="--from",
    )
    seeds: Count = setting(
        1, "trainings of every kind, which differ by their random numbers only", group=MODEL, metavar="N"
    )
    steps: Count | None = setting(
        None,
        "steps of each training",
        group=MODEL,
        metavar="N",
        default_text="12000, or what fits into --time-limit",
    )
    time_limit: Duration | None = setting(
        None, "finish each training within this time, such as 20m", group=MODEL, metavar="TIME"
    )
    device: Device = setting(
        "auto",
        "cpu, cuda (a GPU), mps (of Apple), xpu (of Intel), or auto: whichever of these there is, else cpu",
        group=WHERE,
    )
    workers: WorkersSetting = setting(
        LOCAL,
        "where to train: local, or array:N for a job array with N tasks (with submit)",
        group=CLUSTER,
        metavar="WHERE",
        default_text="local",
    )
    share: str | None = setting(
        None,
        "do part I of N of the trainings (counted from 0) in this process; array in a job array",
        group=CLUSTER,
        metavar="I/N",
    )

    def __post_init__(self) -> None:
        check_archive_of_auto(Path(self.from_model), self.archive, "from_model", "--from")
        if self.workers.kind not in ("local", "array"):
            raise UsageError(
                f"--workers {self.workers}: a study trains here, or in a job array: array:N, with submit."
            )
