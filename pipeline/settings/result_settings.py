"""Settings of what looks at a result: evaluate, report, events, verify and models."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Literal

from .fields import MODEL, OUTPUT, WHAT, WHERE, setting
from .parse import (
    DenoisedStore,
    Model,
    MovieStore,
    NewPath,
    OptionalWords,
    Paths,
    Port,
    UdvdRadius,
    WorkersSetting,
    YesNo,
)
from .results import beside_in_run, was_compared
from .setting import SettingError, Settings, settings
from .workers import LOCAL


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


@settings()
class EventsConfig(Settings):
    """Find the atomic columns of a movie, and when they change; the raw counts are the witness."""

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
        "folder of tables to write",
        group=OUTPUT,
        metavar="FOLDER",
        short="-o",
        default_text="'events' in the run, if you give the folder of a run",
    )
    parquet: YesNo = setting(
        False, "write the tables as Parquet, too; needs the extra [parquet]", group=OUTPUT
    )
    force: YesNo = setting(False, "replace the output if it exists", group=OUTPUT)

    def __post_init__(self) -> None:
        beside = beside_in_run(self.denoised, "ingest")
        for name, value in (
            ("movie", beside),
            ("output", None if beside is None else self.denoised.parent / "events"),
        ):
            if getattr(self, name) is None:
                if value is None:
                    raise SettingError.missing(type(self), name)
                object.__setattr__(self, name, value)


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
    """Check that a store, a model or a whole run is complete and undamaged."""

    store: Path = setting(
        help="movie store, denoised store, model, or the folder of a run",
        metavar="STORE.zarr",
        positional=True,
    )
    deep: YesNo = setting(False, "decode everything and compare it with the recorded hashes", group=WHAT)
    repair: YesNo = setting(
        False,
        "recompute what is damaged, then check; a store needs --raw, or --movie and --model",
        group="repair",
    )
    raw: Path | None = setting(None, "raw movie, to repair a movie store", group="repair", metavar="RAW")
    movie: MovieStore | None = setting(
        None, "movie store, to repair a denoised store", group="repair", metavar="MOVIE.zarr"
    )
    model: Model | None = setting(None, "model, to repair a denoised store", group="repair", metavar="MODEL")
    workers: WorkersSetting = setting(
        LOCAL, "where to compute the repair, as for apply", group="repair", metavar="WHERE"
    )

    def __post_init__(self) -> None:
        self.workers.check_secure(insecure=False)


@settings()
class CiteConfig(Settings):
    """Write the paragraph for the methods section of a paper, and the works to cite."""

    store: Path = setting(
        help="denoised store, movie store, or the folder of a run", metavar="STORE", positional=True
    )
    format: Literal["text", "bibtex", "json"] = setting(
        "text", "text (paragraph and BibTeX), bibtex, or json", group=OUTPUT
    )


@settings()
class ModelsImportConfig(Settings):
    """Make a model of a file that 'models export' wrote, or of UDVD weights that the original script saved."""

    weights: Path = setting(
        help="package of bioimage.io that 'models export' wrote; or file of weights (a state dict) of UDVD",
        metavar="FILE",
        positional=True,
    )
    output: NewPath = setting(help="model folder to write", group=OUTPUT, metavar="MODEL", short="-o")
    blind_radius: UdvdRadius | None = setting(
        None,
        "of UDVD weights: 1, or 0 if the script ran with --include-neighbor",
        group=MODEL,
        metavar="N",
        default_text="1",
    )
    force: YesNo = setting(False, "replace the output if it exists", group=OUTPUT)


@settings()
class ModelsExportConfig(Settings):
    """Write a model as a file that other programs open: a package of bioimage.io."""

    model: Model = setting(help="model folder, or the folder of a run", metavar="MODEL", positional=True)
    output: NewPath = setting(help="ZIP file to write", group=OUTPUT, metavar="FILE.zip", short="-o")
    to: Literal["bioimageio"] = setting("bioimageio", "kind of file", group=OUTPUT)
    license: str | None = setting(
        None, "licence of the model by its SPDX name, such as CC-BY-4.0", group=WHAT, metavar="LICENCE"
    )
    author: OptionalWords = setting(
        (), "who made the model; can be repeated", group=WHAT, metavar="NAME", default_text="nobody"
    )
    force: YesNo = setting(False, "replace the output if it exists", group=OUTPUT)


@settings()
class ViewConfig(Settings):
    """Look at movies of any size in your browser."""

    stores: Paths = setting(
        help="movie stores, denoised stores, or folders of runs", metavar="STORE.zarr", positional=True
    )
    movie: MovieStore | None = setting(
        None,
        "movie store that the denoised store was made from",
        group=WHAT,
        metavar="MOVIE.zarr",
        default_text="the one beside it",
    )
    port: Port | None = setting(
        None, "port of this machine to listen on", group=WHERE, metavar="N", default_text="any that is free"
    )
    browser: YesNo = setting(True, "open the page, where this machine has a screen", group=WHERE)


@settings()
class ModelsShowConfig(Settings):
    """Show the architecture, training and figures of a model."""

    model: Model = setting(help="model folder", metavar="MODEL", positional=True)
