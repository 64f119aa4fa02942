"""Export: a movie as a file that other programs open. Frames go through one by one, so its length does not matter."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from tdenoise.files.atomic import written_whole

from ..errors import UsageError
from ..files.write_errors import named_failures
from ..pictures import rendering
from ..pictures.panels import TITLES, checked
from ..pictures.sheet import Grey
from ..settings.export_settings import ExportConfig
from ..settings.showing import PERCENTILES
from ..step_control import Control
from ..store import store
from ..version import VERSION
from . import png
from .export_plan import ExportPlan, axes_of, notes_of, plan_export
from .unfinished import BLOCK_PICTURES, UnfinishedFiles, frames_of_block, write_data, write_pictures
from .values import Values


def export(config: ExportConfig, control: Control | None = None) -> dict[str, Any]:
    """Write a movie store or a denoised store as a video, as pictures, or as data for other programs.

    The file gets its name when it is whole; one that was not finished is gone on with, if its kind allows. Data are the
    values of the store, unscaled; pictures are drawn.

    Parameters
    ----------
    config : ExportConfig
    control : Control, optional

    Returns
    -------
    dict
        As `describe` gives it, with ``files``, ``bytes`` and, of pictures, ``contrast``.

    Raises
    ------
    UsageError
        If the file is there already, or cannot hold what was asked for.
    InputError
        If a store is missing or damaged.
    ResourceError
        If memory or disk do not suffice.
    """
    control = control or Control()
    plan = plan_export(config)
    result = describe(config, plan)
    with named_failures(config.output.parent):
        config.output.parent.mkdir(parents=True, exist_ok=True)
        if plan.data is not None:
            _write_data(config, plan, control)
        else:
            result["contrast"] = _write_pictures(config, plan, control)
    files = [str(file) for file in plan.files]
    return {**result, "files": files, "bytes": sum(file.stat().st_size for file in plan.files)}


def describe(config: ExportConfig, plan: ExportPlan) -> dict[str, Any]:
    """A plan in plain values.

    Returns
    -------
    dict
        ``file``, ``kind``, ``panels``, ``frames``, ``rows`` and ``columns`` (the first and the one after the last),
        ``memory_bytes``; of data ``dtype``; of pictures ``picture`` (height and width), ``averaged`` and ``enlarged``
        (pixels of the movie for one of the picture along each side, and the reverse), ``frames_per_second``.
    """
    region, drawn = plan.footage.region, plan.sheet
    found: dict[str, Any] = {
        "file": str(config.output),
        "kind": plan.kind,
        "panels": list(plan.panels),
        "frames": list(region.frames),
        "rows": list(region.rows),
        "columns": list(region.columns),
        "dtype": None if plan.dtype is None else str(plan.dtype),
        "memory_bytes": plan.memory_bytes,
    }
    if drawn is None:
        return found
    size = drawn.shape
    if config.columns is not None:
        size = png.montage_size(size, plan.footage.shape[0], config.columns, config.output)
    rate = None if plan.rate is None else round(float(plan.rate), 6)
    shown = {"picture": list(size), "averaged": drawn.averaged, "enlarged": drawn.enlarged}
    return {**found, **shown, "frames_per_second": rate}


def describe_plan(config: ExportConfig) -> dict[str, Any]:
    """What `export` would write."""
    plan = plan_export(config)
    return {**describe(config, plan), "n_files": len(plan.files)}


def _write_data(config: ExportConfig, plan: ExportPlan, control: Control) -> None:
    assert plan.data is not None and plan.dtype is not None
    (panel,) = plan.panels
    footage, dtype = plan.footage, plan.dtype

    def frames(first: int) -> Iterator[Any]:
        shown_frames = footage.after(first).frames(plan.panels)
        for _, shown in checked(shown_frames, footage.shape[0], "export", control, first):
            yield np.ascontiguousarray(shown[panel], dtype)

    source = footage.movie if panel in ("raw", "mean9") else footage.one
    assert source is not None
    name = {"raw": store.MOVIE, "denoised": store.DENOISED}.get(panel, panel)
    notes = notes_of(footage, panel)
    values = Values(
        name=name,
        title=f"{Path(notes['raw movie']).stem}, {TITLES[panel]}",
        shape=footage.shape,
        dtype=dtype,
        units=source.units,
        axes=axes_of(footage),
        notes=notes,
        frames=frames,
    )
    if plan.data.write is None:
        several = frames_of_block(values.n_bytes // values.shape[0])
        with _unfinished(config, plan, several, {"dtype": str(dtype), **notes}, control) as run:
            write_data(config.output, plan.data, values, run)
            _check_still_free(plan, config)
            run.give_names(plan.files)
    else:
        with written_whole(config.output) as partial:
            plan.data.write(partial, values)
            _check_still_free(plan, config)


def _unfinished(
    config: ExportConfig, plan: ExportPlan, several: int, settings: dict[str, Any], control: Control
) -> UnfinishedFiles:
    """The right to write the files; with it, all that decides their bytes."""
    footage = plan.footage
    decides = {
        "step": "export",
        "kind": plan.kind,
        "panels": list(plan.panels),
        "region": [list(footage.region.frames), list(footage.region.rows), list(footage.region.columns)],
        "follow_drift": config.follow_drift,
        **{opened.name: opened.id for opened in (footage.movie, footage.denoised) if opened is not None},
        "axes": [[axis.name, axis.step, axis.first, axis.unit] for axis in axes_of(footage)],
        "n_blocks": -(-footage.shape[0] // several),
        "software": VERSION["tdenoise"],
        **settings,
    }
    return UnfinishedFiles(config.output, decides, force=config.force, control=control)


def _write_pictures(config: ExportConfig, plan: ExportPlan, control: Control) -> dict[str, list[float]]:
    """Draw and write; the counts that are black and white in each panel."""
    assert plan.sheet is not None
    chosen = config.contrast or PERCENTILES
    if chosen.percent:
        made = rendering.render(plan.footage, plan.panels, plan.sheet, percent=(chosen.low, chosen.high))
    else:
        made = rendering.render(plan.footage, plan.panels, plan.sheet, (chosen.low, chosen.high))

    def pictures(first: int = 0) -> Iterator[Grey]:
        drawn = replace(made, footage=plan.footage.after(first)).pictures()
        for _, picture in checked(drawn, plan.footage.shape[0], "export", control, first):
            yield picture

    limits: dict[str, list[float]] = {name: [found.low, found.high] for name, found in made.limits.items()}
    if plan.video is not None and plan.rate is not None:
        notes = notes_of(plan.footage, None)
        title = f"{Path(notes['raw movie']).stem}: {', '.join(TITLES[name] for name in plan.panels)}"
        notes["black and white [counts]"] = ", ".join(f"{n} {a:.4g} {b:.4g}" for n, (a, b) in limits.items())
        comment = "; ".join(f"{key}: {value}" for key, value in notes.items())
        with written_whole(config.output) as partial:
            plan.video.write(partial, pictures(), plan.rate, title, comment)
            _check_still_free(plan, config)
    elif config.columns is not None:
        png.write_montage(config.output, pictures(), config.columns)
    else:
        drawn = {"limits": limits, "scale_bar": config.scale_bar, "clock": config.clock}
        with _unfinished(config, plan, BLOCK_PICTURES, drawn, control) as run:
            write_pictures(plan.files, pictures, png.save, run)
            _check_still_free(plan, config)
            run.give_names(plan.files)
        png.tell_others(plan.files)
    return limits


def _check_still_free(plan: ExportPlan, config: ExportConfig) -> None:
    """Nobody may have written there meanwhile."""
    for file in plan.files:
        if file.exists() and not config.force:
            raise UsageError(f"{file}: was written meanwhile by somebody else. Choose another name.")
