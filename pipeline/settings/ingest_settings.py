"""Settings of what reads and makes raw movies: ingest and simulate."""

from __future__ import annotations

from pathlib import Path
from typing import Literal, get_args

from .fields import CALIBRATION, CORRECTIONS, OUTPUT, WHAT, setting
from .parse import (
    Box,
    Count,
    FrameTime,
    Index,
    Interval,
    Nanometres,
    NewFolder,
    NewStore,
    Number,
    Positive,
    RawPath,
    RawPaths,
    Seed,
    Whole,
    YesNo,
)
from .setting import Settings, settings

Orientation = Literal["as-is", "rot90", "rot180", "rot270", "flip-y", "flip-x", "transpose", "anti-transpose"]


ORIENTATIONS: tuple[str, ...] = get_args(Orientation)


@settings(kw_only=True)
class Preparation(Settings):
    """How a raw movie is read, calibrated and corrected; the same for ``ingest`` and ``run``."""

    frame_time: FrameTime | None = setting(
        None, "time from one frame to the next, such as 13ms", group=CALIBRATION, metavar="TIME"
    )
    pixel_size: Nanometres | None = setting(
        None, "pixel size in nanometres, or with a unit, such as 14pm", group=CALIBRATION, metavar="NM"
    )
    counts_per_electron: Positive | None = setting(
        None, "counts per electron", group=CALIBRATION, metavar="G"
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
    dataset: str | None = setting(
        None, "array to read, if a file contains several", group=WHAT, metavar="PATH"
    )
    channel: Index | None = setting(
        None, "channel to read, counted from 0, if a file contains several", group=WHAT, metavar="N"
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
    allow_truncated: YesNo = setting(
        False, "read the complete frames of a file that was cut short", group=WHAT
    )


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
