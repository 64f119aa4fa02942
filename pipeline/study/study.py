"""Study: train on fewer and on smaller frames of a movie, and compare what the models make of frames that none saw."""

from __future__ import annotations

import csv
import io
import json
import logging
import math
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from tdenoise.files.atomic import make_folder, write_atomically
from tdenoise.network import torch_setup
from tdenoise.network.registry import architecture_of
from tdenoise.training.train import TrainingSettings

from ..errors import InputError, LockedError, UsageError
from ..files.sealed_json import read_sealed, write_sealed
from ..files.write_errors import named_failures
from ..inputs.model_fit import open_model
from ..runs.plans import plan_difference
from ..settings.archive_settings import ArchiveSuggestConfig
from ..settings.config import StudyConfig
from ..settings.results import AUTO, STUDY
from ..step_control import Control
from ..version import VERSION
from ..workers.shares import parse_share
from ..workflow.chosen import choose, place_of_choice
from . import compare, figures, page
from .cells import Result, read_result, run_cell
from .judge import Judge
from .study_plan import Cell, Plan, make_plan

log = logging.getLogger(__name__)

PLAN, REPORT, FIGURES, TABLE, CELLS = "plan.json", "report.html", STUDY, "cells.csv", "cells"


@torch_setup.restored()
def study(config: StudyConfig, control: Control | None = None) -> dict[str, Any]:
    """Train every cell, judge it, and write figures and report; safe to stop and start again.

    Parameters
    ----------
    config : StudyConfig
    control : Control, optional

    Returns
    -------
    dict
        What ``study.json`` holds, and ``report``, the page. Of a share of the work: ``done`` and ``total``, where other
        cells are missing yet.

    Raises
    ------
    InputError
        If the movie is missing, damaged, or too short.
    UsageError
        If the folder holds something else, or a study with other settings.
    Stopped
        If a signal came.
    """
    control = control or Control()
    share = None if config.share is None else parse_share(config.share, os.environ)
    if share is None and config.workers.kind == "array":
        raise UsageError(f"--workers {config.workers} needs submit: 'tdenoise-pipeline submit study ...'.")
    start, choice = _start(config, control)
    plan = make_plan(config, start, choice.get("id"))
    _begin(config.output, plan, choice)
    judge = Judge(plan, config.device)
    own = plan.cells if share is None else plan.cells[share.number :: share.count]
    for number, cell in enumerate(own):
        log.info("cell %d of %d: %s", number + 1, len(own), cell.name)
        try:
            run_cell(config, plan, cell, judge, _part_of(control, number, len(own)))
        except LockedError:
            if share is None:
                raise
            log.warning("%s: another process has it in hand", cell.name)
        control.check("study")
    control.progress("study", len(own), len(own))
    results = [r for c in plan.cells if (r := read_result(config.output, plan, c)) is not None]
    if len(results) < len(plan.cells):
        return {"folder": str(config.output), "done": len(results), "total": len(plan.cells)}
    return _write(config, plan, results, judge, choice)


def describe_plan(config: StudyConfig) -> dict[str, Any]:
    """What ``--dry-run`` prints: every cell, and whether it is done."""
    start, choice = _start(config, Control())
    plan = make_plan(config, start, choice.get("id"))
    frames, rows, columns = plan.judged.frames, plan.judged.rows, plan.judged.columns
    effort = f"{config.steps or TrainingSettings.steps} steps"
    if config.time_limit is not None:
        effort = (
            f"{config.time_limit:g} s" if config.steps is None else f"{effort}, or {config.time_limit:g} s"
        )
    return {
        "step": "study",
        "movie": str(config.movie),
        "output": str(config.output),
        "judged_frames": f"{frames[0]} to {frames[1] - 1}",
        "judged_field": f"rows {rows[0]} to {rows[1] - 1}, columns {columns[0]} to {columns[1] - 1}",
        "vacuum_around": f"{100 * plan.vacuum.mean():.0f} % of {plan.looked.shape[1]} x {plan.looked.shape[2]} pixels",
        "effort": f"{effort} for each of {len(plan.cells)} trainings, from {choice.get('model', config.from_model)}",
        "cells": [_described(config.output, plan, cell) for cell in plan.cells],
    }


def _described(output: Path, plan: Plan, cell: Cell) -> str:
    first, last = cell.region.frames
    rows, columns = (f"{start}:{stop}" for start, stop in (cell.region.rows, cell.region.columns))
    state = "to do" if read_result(output, plan, cell) is None else "done"
    return f"{cell.name}: frames {first}:{last}, rows {rows}, columns {columns}, {state}"


def _start(config: StudyConfig, control: Control) -> tuple[Path | None, dict[str, Any]]:
    """The model that ``--from auto`` stands for, and why; a study that was begun stays with its own.

    A model that learned from this recording is none: nobody could judge what it has seen.
    """
    if config.from_model != str(AUTO):
        return None, {}
    assert config.archive is not None  # as the settings say
    choice = (read_sealed(config.output / PLAN) or {}).get("chosen")
    if choice is None:
        asked = ArchiveSuggestConfig(movie=config.movie, archive=config.archive, device=config.device)
        choice = choose(asked, control, unseen=True)
    start = place_of_choice(choice, config.archive)
    if start is None:
        gone = choice["id"] is not None
        why = (
            f"{choice['model']}, which the study began with, is not there"
            if gone
            else "no model fits its noise"
        )
        raise InputError(config.movie, f"{why}. Use --from base or --from scratch, and another folder")
    if architecture_of(open_model(start).card).far_bins:
        why = f"{choice['model']} sees far frames, which a study does not"
        raise InputError(config.movie, f"{why}. Use --from base or --from scratch")
    log.info("%s: --from auto takes %s: %s", config.movie, choice["model"], choice["reason"])
    return start, choice


def _begin(output: Path, plan: Plan, choice: dict[str, Any]) -> None:
    """Make the folder, or see that it is that of this very study."""
    file = output / PLAN
    with named_failures(output):
        # Looked at first: of several processes that begin at once, none writes here before there is a plan.
        known = {f.name for f in output.iterdir()} if output.exists() else set()
        begun = read_sealed(file)
        if begun is None and any(name != PLAN and not name.startswith(".") for name in known):
            raise UsageError(f"{output}: holds something else than a study. Choose another folder.")
        if begun is not None and begun.get("id") != plan.id:
            raise UsageError(
                f"{output}: is a study with {plan_difference(begun.get('plan'), plan.identity)}. Give the same "
                "settings to go on, or choose another folder."
            )
        make_folder(output)
        if begun is None:
            chosen = {"chosen": choice} if choice else {}
            write_sealed(file, {"id": plan.id, "plan": plan.identity, "software": VERSION, **chosen})


def _part_of(control: Control, number: int, total: int) -> Control:
    """A control that shows how far the study is, not a step of it."""

    def progress(what: str, done: int, of: int) -> None:
        if what == "train":
            control.progress("study", 1000 * number + 1000 * done // max(1, of), 1000 * total)

    return Control(progress, control.stop, control.started)


def _write(
    config: StudyConfig, plan: Plan, results: Sequence[Result], judge: Judge, choice: dict[str, Any]
) -> dict[str, Any]:
    """The figures, the table, the numbers and the page."""
    found = compare.points(results, judge)
    dose = _dose(plan)
    conclusion = compare.conclude(found, dose)
    extents = {c.size: c.region.shape[1:] for c in plan.cells}
    drawn = figures.draw(found, extents, conclusion)
    told = {
        "movie": {"id": plan.movie.id, "name": plan.movie.path.name, "shape": list(plan.movie.shape)},
        "settings": plan.identity["settings"],
        "judged": {
            "frames": list(plan.judged.frames),
            "rows": list(plan.judged.rows),
            "columns": list(plan.judged.columns),
            "looked_rows": list(plan.looked.rows),
            "looked_columns": list(plan.looked.columns),
            "vacuum": float(plan.vacuum.mean()),
            "lattice_spots": judge.spots.tolist(),
            "estimator": judge.law.estimator,
            "noise_variance": judge.law.variance,
        },
        **({"chosen": choice} if choice else {}),
        **conclusion,
        "warnings": compare.warnings(found, results, config.seeds),
        "points": found,
        "cells": [_row(r, judge) for r in results],
        "software": VERSION,
    }
    output = config.output
    with named_failures(output):
        write_atomically(
            output / FIGURES,
            (json.dumps(_finite(told), indent=1, sort_keys=True, allow_nan=False) + "\n").encode(),
        )
        write_atomically(output / TABLE, _table(told["cells"]))
        for name, files in drawn.items():
            for ending, data in files.items():
                write_atomically(output / f"{name}.{ending}", data)
        text = page.render(
            plan, judge, results, told, {name: files["png"] for name, files in drawn.items()}, dose
        )
        write_atomically(output / REPORT, text.encode("utf-8", "replace"))
    return {**told, "report": str(output / REPORT)}


def _dose(plan: Plan) -> str:
    """What the movie got, in words; empty where it is not known."""
    counts = plan.movie.attributes["mean"]
    per_electron = plan.movie.attributes["detector"]["counts_per_electron"]
    if counts is None:
        return ""
    if per_electron:
        return f"{counts / per_electron:.3g} electrons per pixel and frame"
    return f"{counts:.3g} counts per pixel and frame"


def _row(result: Result, judge: Judge) -> dict[str, Any]:
    """A cell in the table."""
    cell, facts = result.cell, result.facts
    fringes = facts["fringes"] or {}
    total = float(judge.weights.sum()) * judge.law.variance
    return {
        "frames": cell.n_frames,
        "size": cell.size,
        "rows": cell.region.shape[1],
        "columns": cell.region.shape[2],
        "seed": cell.seed,
        "error_of_noise_variance": float((result.squares - judge.noise).sum()) / total,
        "fringes_ratio": fringes.get("ratio"),
        "fringes_chance": fringes.get("chance"),
        "fringes_supported": fringes.get("supported"),
        "fringes_supported_error": fringes.get("supported_error"),
        "fringes_amplitude_counts": fringes.get("amplitude"),
        "training_s": facts["training_s"],
        "inference_s_per_megapixel": facts["inference_s_per_megapixel"],
        "steps": facts["steps"],
        "best_step": facts["best_step"],
        "device": facts["device"],
        "model": facts["model"],
        "folder": f"{CELLS}/{cell.name}",
    }


def _table(rows: Sequence[dict[str, Any]]) -> bytes:
    text = io.StringIO()
    writer = csv.DictWriter(text, list(rows[0]), lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    return text.getvalue().encode()


def _finite(value: Any) -> Any:
    """NaN, which JSON does not have, as null."""
    if isinstance(value, dict):
        return {key: _finite(entry) for key, entry in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(entry) for entry in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
