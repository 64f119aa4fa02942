"""A cell of a study: its part of the movie, a model that learns from it alone, and what the judged frames say of it.

A cell has a folder of its own, and its sealed result is written last. One that was killed goes on from what is there;
one that is finished is not touched again.
"""

from __future__ import annotations

import hashlib
import io
import math
import shutil
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tdenoise.files.atomic import make_folder, write_atomically

from ..files.sealed_json import read_sealed, write_sealed
from ..ingest.ingest import ingest
from ..inputs.bad_pixels import named_at_ingest
from ..inputs.model_fit import open_model
from ..settings.config import IngestConfig, StudyConfig, TrainConfig
from ..settings.results import WORDS
from ..step_control import Control
from ..store import store
from ..train.train import train_model
from .judge import Judge
from .study_plan import Cell, Plan, folder_of

RESULT, FRAME, MODEL, PART, DEFECTS = "result.json", "frame.npy", "model", "movie.zarr", "defects.npy"


@dataclass(frozen=True)
class Result:
    """What is known of a finished cell."""

    cell: Cell
    squares: NDArray[np.float64]  # sums of the squared difference to the counts over blocks
    frame: NDArray[np.float32]
    facts: dict[str, Any]  # model, steps, times, fringes


def read_result(output: Path, plan: Plan, cell: Cell) -> Result | None:
    """The result of a cell; None where it is not finished, or belongs to another study."""
    folder = folder_of(output, cell)
    if not (folder / RESULT).exists():
        return None
    found = read_sealed(folder / RESULT)
    if found is None or found.get("study") != plan.id or found.get("cell") != cell.number:
        return None
    try:
        data = (folder / FRAME).read_bytes()
    except OSError:
        return None
    if hashlib.sha256(data).hexdigest() != found["frame_sha256"]:
        return None
    frame = np.load(io.BytesIO(data), allow_pickle=False)
    return Result(cell, np.asarray(found["squares"], np.float64), frame, found["facts"])


def run_cell(config: StudyConfig, plan: Plan, cell: Cell, judge: Judge, control: Control) -> Result:
    """Train a cell and judge it, unless that is done already.

    Raises
    ------
    LockedError
        If another process trains it.
    Stopped
        If a signal came.
    """
    if (known := read_result(config.output, plan, cell)) is not None:
        return known
    folder = folder_of(config.output, cell)
    make_folder(folder)
    settings = _training(config, plan, cell, folder)
    ingest(_part(plan, cell, folder), control)
    began = time.perf_counter()
    card = train_model(settings, control)
    assert card is not None  # this process leads
    taken = card["metrics"].get("elapsed_s", time.perf_counter() - began)
    model = open_model(folder / MODEL)
    control.check("study")
    judged = judge.judge(model, control)
    data = io.BytesIO()
    np.save(data, judged.frame)
    write_atomically(folder / FRAME, data.getvalue())
    n_frames, *field = plan.looked.shape
    facts = {
        "model": card["sha256"],
        "steps": card["steps"],
        "best_step": card["best_step"],
        "device": card["device"],
        "held_out_error": card["metrics"]["held_out_error"],
        "kept_share": card["metrics"].get("share"),
        "training_s": round(taken, 2),
        "inference_s_per_megapixel": round(judged.seconds / (n_frames * math.prod(field) / 1e6), 3),
        "fringes": None if judged.fringes is None else judged.fringes._asdict(),
    }
    document = {
        "study": plan.id,
        "cell": cell.number,
        "name": cell.name,
        "squares": judged.squares.tolist(),
        "frame_sha256": hashlib.sha256(data.getvalue()).hexdigest(),
        "facts": facts,
    }
    write_sealed(folder / RESULT, document)
    _tidy(folder)
    return Result(cell, judged.squares, judged.frame, facts)


def _part(plan: Plan, cell: Cell, folder: Path) -> IngestConfig:
    """The frames of a cell as a movie of their own, measured as if there were no others."""
    movie, region = plan.movie, cell.region
    bad = named_at_ingest(movie)
    if bad is not None and bad.any():
        data = io.BytesIO()
        np.save(data, bad.astype(np.uint8)[None])
        write_atomically(folder / DEFECTS, data.getvalue())
    return IngestConfig(
        raw=movie.path,
        output=folder / PART,
        dataset=store.MOVIE,
        frames=region.frames,
        roi=(region.rows, region.columns),
        counts_per_electron=movie.attributes["detector"]["counts_per_electron"],
        # What is left of bad pixels and X-rays was decided when the movie was ingested.
        defects=folder / DEFECTS if bad is not None and bad.any() else None,
        keep_defects=True,
        xray="keep",
    )


def _training(config: StudyConfig, plan: Plan, cell: Cell, folder: Path) -> TrainConfig:
    """The same for all cells, but for the movie and the seed: also the blind spot, which the whole movie asks for."""
    return TrainConfig(
        movie=(folder / PART,),
        output=folder / MODEL,
        steps=config.steps,
        time_limit=config.time_limit,
        from_model=plan.start,
        # A model of an archive keeps its own, which is wide enough.
        blind_radius="auto"
        if plan.start not in WORDS
        else "frame"
        if plan.blind_radius is None
        else plan.blind_radius,
        seed=cell.seed,
        device=config.device,
    )


def _tidy(folder: Path) -> None:
    """Take the copy of the frames away: the movie has them."""
    shutil.rmtree(folder / PART, ignore_errors=True)
    (folder / DEFECTS).unlink(missing_ok=True)
