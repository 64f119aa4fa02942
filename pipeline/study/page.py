"""The page of a study: one file that loads nothing and runs no script."""

from __future__ import annotations

import base64
import hashlib
import io
import json
from collections.abc import Mapping, Sequence
from importlib import resources
from typing import Any

import jinja2
import numpy as np
from numpy.typing import NDArray
from PIL import Image

from ..evaluate.page import decimals, number, percent
from ..pictures.contrast import Limits, grey
from ..pictures.panels import shrink
from .cells import Result
from .judge import Judge
from .study_plan import Plan

Array = NDArray[Any]

PERCENT = (0.5, 99.5)  # shown black and white
PICTURE_PIXELS = 256  # longer side of a picture
POLICY = "default-src 'none'; img-src data:; style-src {style}; base-uri 'none'; form-action 'none'"


def render(
    plan: Plan,
    judge: Judge,
    results: Sequence[Result],
    told: Mapping[str, Any],
    charts: Mapping[str, bytes],
    dose: str,
) -> str:
    """The page, as text; every word from a store stays a word."""
    source = resources.files(__package__)
    style = (source / "study.css").read_text(encoding="utf-8")
    policy = POLICY.format(
        style=f"'sha256-{base64.b64encode(hashlib.sha256(style.encode()).digest()).decode()}'"
    )
    environment = jinja2.Environment(autoescape=True, undefined=jinja2.StrictUndefined, trim_blocks=True)
    environment.filters |= {"number": number, "percent": percent, "decimals": decimals}
    template = environment.from_string((source / "study.html.jinja").read_text(encoding="utf-8"))
    return template.render(
        policy=policy,
        style=style,
        name=plan.movie.attributes["source"]["name"],
        shape=plan.movie.shape,
        dose=dose,
        told=told,
        charts={name: _source(data) for name, data in charts.items()},
        pictures=_pictures(plan, judge, results),
        shown=judge.shown,
        everything=json.dumps(told, indent=1),
    )


def _pictures(plan: Plan, judge: Judge, results: Sequence[Result]) -> list[dict[str, Any]]:
    """The same frame as recorded, averaged, and as the cells of the first seed predict it, with one contrast."""
    first = [r for r in results if r.cell.seed == 0]
    place = judge.shown - plan.judged.frames[0]
    near = [k for k in range(max(0, place - 4), min(len(judge.counts), place + 5)) if judge.sound[k]]
    around = judge.counts[near].mean(axis=0, dtype=np.float64)
    low, high = np.percentile(np.stack([r.frame for r in first]), PERCENT)
    limits = Limits(float(low), float(high) if high > low else float(low) + 1)
    rows: list[dict[str, Any]] = [
        {
            "title": "As recorded",
            "pictures": [
                (_picture(judge.counts[place], limits), "raw counts"),
                (_picture(around, limits), f"mean of {len(near)} frames"),
            ],
        }
    ]
    for size in dict.fromkeys(r.cell.size for r in first):
        own = [r for r in first if r.cell.size == size]
        height, width = own[0].cell.region.shape[1:]
        rows.append(
            {
                "title": f"Trained on frames of {height} × {width} pixels",
                "pictures": [(_picture(r.frame, limits), f"{r.cell.n_frames} frames") for r in own],
            }
        )
    return rows


def _picture(frame: Array, limits: Limits) -> str:
    small = shrink(np.asarray(frame, np.float32), max(1, -(-max(frame.shape) // PICTURE_PIXELS)))
    file = io.BytesIO()
    Image.fromarray(grey(small, limits)).save(file, "PNG", optimize=True)
    return _source(file.getvalue())


def _source(data: bytes) -> str:
    return f"data:image/png;base64,{base64.b64encode(data).decode()}"
