"""What an export will write, decided before it writes anything."""

from __future__ import annotations

from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np

from ..errors import UsageError
from ..pictures import video
from ..pictures.opening import open_footage
from ..pictures.panels import TITLES, Footage, Panel
from ..pictures.rendering import plan_sheet
from ..pictures.sheet import Sheet
from ..resources import budget, memory
from ..settings.export_settings import ExportConfig
from ..settings.showing import Speed, is_picture
from ..store import store
from . import png
from .kinds import VIDEOS, VideoFile, data_file
from .unfinished import bytes_there
from .values import Axis, DataFile

STANDARD_SPEED = Speed(25, "fps")
MOST_DENOMINATOR = 1_000_000  # of a number of pictures per second


@dataclass(frozen=True)
class ExportPlan:
    """All that is known before the first frame is read; of pictures or of data, the other is None."""

    footage: Footage
    panels: tuple[Panel, ...]
    files: list[Path]  # that will be there
    sheet: Sheet | None  # of pictures
    video: VideoFile | None  # None for PNG and data
    rate: Fraction | None  # pictures per second of a video
    data: DataFile | None
    dtype: np.dtype[Any] | None  # of data, as the file holds them
    memory_bytes: int  # peak, predicted

    @property
    def kind(self) -> str:
        """Of the file, for people."""
        made = self.video or self.data
        return "PNG" if made is None else made.name


def plan_export(config: ExportConfig) -> ExportPlan:
    """Decide what will be written.

    Raises
    ------
    UsageError, InputError, ResourceError
        If it cannot be, or something is in the way.
    """
    panels = config.panels or _usual_panels(config)
    footage = open_footage(config.store, config.movie, panels, config.frames, config.roi, config.follow_drift)
    sheet = kind = rate = data = dtype = None
    files = [config.output]
    if not is_picture(config.output):
        data = data_file(config.output)
        dtype = data.type_for(panel_type(footage, panels[0]), config.output)
    else:
        kind = VIDEOS.get(config.output.suffix.lower())
        sheet = plan_sheet(
            footage,
            panels,
            scale_bar=config.scale_bar,
            clock=config.clock,
            at_most=None if kind is None else kind.at_most,
            even=kind is not None and kind.even,
        )
        if kind is not None:
            video.check_encoder()
            rate = _rate(config.speed or STANDARD_SPEED, footage, kind)
        elif config.columns is None:
            files = png.numbered(config.output, footage.region.frames)
        else:
            png.montage_size(sheet.shape, footage.shape[0], config.columns, config.output)
    _check_free(config, files)
    needed = _memory_bytes(footage, sheet, config.columns)
    budget.check_memory(
        needed, budget.machine_memory_bytes(), "the export", "Choose a part of the frames with --roi."
    )
    if dtype is not None and data is not None and not data.packed:
        size = int(np.prod(footage.shape, dtype=np.int64)) * dtype.itemsize
        budget.check_disk(
            config.output.absolute().parent, size - bytes_there(config.output), str(config.output)
        )
    return ExportPlan(footage, panels, files, sheet, kind, rate, data, dtype, needed)


def panel_type(footage: Footage, panel: Panel) -> np.dtype[Any]:
    """The type of the values of a panel."""
    opened = {"raw": footage.movie, "denoised": footage.denoised}.get(panel)
    return np.dtype(np.float32) if opened is None else np.dtype(opened.array.dtype)


def axes_of(footage: Footage) -> tuple[Axis, Axis, Axis]:
    """The axes t, y, x of what is shown; where the scene is followed, rows and columns are those of the first frame."""
    region, known = footage.region, footage.one.coordinates
    spans = (region.frames, region.rows, region.columns)
    t, y, x = (
        Axis(
            name,
            last - start,
            None if step is None else float(f"{step:.12g}"),  # 0.0133 and not 0.013299999999999998
            first + start,
            ("s" if name == "t" else "nm") if step is not None else ("frame" if name == "t" else "pixel"),
        )
        for (name, step, first), (start, last) in zip(known.axes, spans, strict=True)
    )
    return t, y, x


def notes_of(footage: Footage, panel: Panel | None) -> dict[str, str]:
    """Where a file comes from, in words."""
    opened = footage.one
    made = opened.attributes
    source = made["source"]["name"] if made["kind"] == "movie" else made["movie"]["source"]
    notes = {"raw movie": source, f"{made['kind']} store": f"{opened.path.name}, id {opened.id}"}
    if made["kind"] == "denoised":
        notes["model"] = made["model"]["id"]
    if panel is not None:
        notes["values"] = TITLES[panel]
    if footage.shifts is not None:
        notes["drift"] = "followed by whole pixels"
    # The name of a file may be no text; what a file holds must be.
    return {key: text.encode("utf-8", "replace").decode() for key, text in notes.items()}


def _usual_panels(config: ExportConfig) -> tuple[Panel, ...]:
    """Raw and denoised side by side where both are known; of data the one that a store is for."""
    if store.read_attributes(config.store)["kind"] == "movie":
        return ("raw",)
    return ("raw", "denoised") if is_picture(config.output) and config.movie is not None else ("denoised",)


def _rate(speed: Speed, footage: Footage, kind: VideoFile) -> Fraction:
    """Pictures per second."""
    exact = speed.value
    frame_time = footage.one.coordinates.frame_time_s
    if speed.unit == "x":
        if frame_time is None:
            raise UsageError(
                f"--speed {speed}: the time of a frame is not known. Write frames per second, such as 25fps."
            )
        exact = speed.value / frame_time
    if exact > kind.most_per_second * (1 + 1e-9):
        slower = f"{kind.most_per_second}fps"
        if speed.unit == "x":
            slower = f"{float(f'{0.8 * kind.most_per_second * speed.value / exact:.1g}'):g}x"
        raise UsageError(
            f"--speed {speed}: that is {exact:.4g} frames per second, and {kind.name} plays at most "
            f"{kind.most_per_second}. Write --speed {slower}, for example."
        )
    rate = Fraction(exact).limit_denominator(MOST_DENOMINATOR)
    if not rate:
        raise UsageError(f"--speed {speed}: that is less than one frame in a million seconds. Write more.")
    return rate


def _memory_bytes(footage: Footage, sheet: Sheet | None, columns: int | None) -> int:
    """Peak memory, predicted."""
    n_stores = (footage.movie is not None) + (footage.denoised is not None)
    pixels = 0 if sheet is None else sheet.shape[0] * sheet.shape[1]
    whole = 0 if columns is None else footage.shape[0] * pixels
    return memory.export_bytes(footage.shape, n_stores, pixels, whole)


def _check_free(config: ExportConfig, files: list[Path]) -> None:
    """Refuse to write over a file, unless asked to, and into a store in any case."""
    for folder in config.output.absolute().parents:
        if (folder / "zarr.json").exists():
            raise UsageError(f"{config.output}: lies in the store {folder.name}. Choose another place.")
    for file in files:
        if file.is_dir():
            raise UsageError(f"{file}: is a folder. Choose another name.")
        if file.exists() and not config.force:
            raise UsageError(f"{file}: exists already. Choose another name, or --force to replace it.")
