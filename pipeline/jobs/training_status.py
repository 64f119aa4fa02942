"""How far an unfinished training has come, read from what it writes at every validation."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

from tdenoise.files.json_documents import parse_json
from tdenoise.network.card import CURVE

from ..files.sealed_json import read_json
from ..runs import paths

UNLIMITED = 10**9  # steps, of a training that its time limit ends; as `train` plans it


def describe(output: Path) -> dict[str, Any] | None:
    """The training of a model that is not finished yet.

    Returns
    -------
    dict or None
        ``step``, ``steps`` (at most; None where only the time ends it), ``loss``, ``held_out``, ``best``,
        ``elapsed_s``, ``left_s`` (at most: it ends sooner where the error has stopped to fall), ``curve``
        (``[step, held-out error]`` of every validation) and ``preview`` (a picture, or None). None where nothing was
        validated yet.
    """
    folder = paths.partial_path(output)
    try:
        records = [parse_json(line) for line in (folder / CURVE).read_text().splitlines()]
        age_s = max(0.0, time.time() - (folder / CURVE).stat().st_mtime)
        curve = [[int(r["step"]), float(r["held_out"])] for r in records]
        times = [float(r["elapsed_s"]) for r in records]
        losses = [float(r["loss"]) for r in records]
    except (OSError, ValueError, KeyError, TypeError):
        return None  # no training, or one that is not ours to read
    if not records:
        return None
    try:
        settings = read_json(paths.work_folder(output) / "plan.json")["plan"]["settings"]
        steps, limit = int(settings["steps"]), settings["time_limit_s"]
    except (KeyError, TypeError):
        steps, limit = None, None
    elapsed = _elapsed(times)
    step, held_out = curve[-1]
    done = max(step / steps if steps else 0.0, elapsed / limit if limit else 0.0)
    left = None if not 0 < done <= 1 or elapsed <= 0 else max(0.0, elapsed * (1 - done) / done - age_s)
    picture = folder / "preview.png"
    return {
        "step": step,
        "steps": None if steps == UNLIMITED else steps,
        "loss": losses[-1],
        "held_out": held_out,
        "best": min(error for _, error in curve),
        "elapsed_s": elapsed,
        "left_s": left,
        "curve": curve,
        "preview": str(picture) if picture.exists() else None,
    }


def _elapsed(times: list[float]) -> float:
    """Time of all stages: the clock of each begins at nothing."""
    total = 0.0
    for before, now in zip([0.0, *times], times, strict=False):
        total += now - before if now >= before else now
    return total
