"""Does `study` put its cells into the right order, though it knows no truth? Rank correlation with the true error.

The frames that judge are compared with the noise-free movie, too: the true error of every cell, and the fringes that
the truth itself shows in the vacuum, for a lens spreads them.

    python benchmarks/study.py FILE.npz [--dose 2] [--frames 30,100,300,all] [--sizes 64,128] [--steps 600] [--seeds N]
                                        [--from scratch|base] [--save NAME]
    python benchmarks/study.py --quick
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

import numpy as np
from common import command_line, save, scratch
from quality import raw_movies
from scipy.stats import spearmanr
from tdenoise_pipeline.evaluate.truth import load_truth
from tdenoise_pipeline.inputs.model_fit import open_model
from tdenoise_pipeline.settings.config import StudyConfig
from tdenoise_pipeline.store import store
from tdenoise_pipeline.study.judge import Judge
from tdenoise_pipeline.study.study_plan import folder_of, make_plan

from tdenoise.evaluation.fringes import Fringes


def main() -> None:
    options = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    options.add_argument("truth", type=Path, nargs="?", metavar="FILE.npz")
    options.add_argument("--dose", type=float, help="take only this dose of the file")
    options.add_argument("--frames", default="30,100,300,all")
    options.add_argument("--sizes", default="64,128")
    options.add_argument("--steps", type=int, default=600)
    options.add_argument("--seeds", type=int, default=1)
    options.add_argument("--from", dest="start", choices=("scratch", "base"), default="scratch")
    options.add_argument(
        "--output", type=Path, help="folder to keep the study in; goes on from what is there"
    )
    options.add_argument("--save", metavar="NAME", help="write benchmarks/results/study_NAME.json")
    options.add_argument("--quick", action="store_true", help="a few seconds on a small simulated movie")
    chosen = options.parse_args()
    if chosen.truth is None and not chosen.quick:
        options.error("FILE.npz is needed, or --quick")
    results = []
    with scratch(None) as folder:
        if chosen.quick:
            command_line("simulate", "-o", folder / "made", "--size", 64, "--n-frames", 60)
            chosen.truth, chosen.dose = folder / "made" / "truth.npz", None
            chosen.frames, chosen.sizes, chosen.steps = "10,all", "32,full", 10
        for raw, dose, pixel_size_nm in raw_movies(chosen.truth, folder):
            if chosen.dose in (None, dose):
                results.append(measure(raw, dose, pixel_size_nm, folder, chosen))
                show(results[-1])
    if chosen.save:
        save(f"study_{chosen.save}", results)


def measure(
    raw: Path, dose: float, pixel_size_nm: float, folder: Path, chosen: argparse.Namespace
) -> dict[str, Any]:
    """A study of one movie, and the true error of every cell."""
    movie, output = folder / f"{raw.stem}.zarr", chosen.output or folder / f"study-{dose:g}"
    command_line("ingest", raw, "-o", movie, "--pixel-size", pixel_size_nm, "--quiet")
    words = [
        "--frames",
        chosen.frames,
        "--sizes",
        chosen.sizes,
        "--steps",
        chosen.steps,
        "--seeds",
        chosen.seeds,
    ]
    command_line("study", movie, "-o", output, *words, "--from", chosen.start, "--device", "cpu", "--quiet")
    told = json.loads((output / "study.json").read_text())
    plan = make_plan(
        StudyConfig(
            movie=movie,
            output=output,
            frames=chosen.frames,
            sizes=chosen.sizes,
            steps=chosen.steps,
            seeds=chosen.seeds,
            from_model=chosen.start,
        )
    )
    judge = Judge(plan, "cpu")
    truth = load_truth(chosen.truth, store.open_store(movie, store.MOVIE))
    clean = truth.level * truth.clean[plan.looked.slices]
    cells = []
    for cell, row in zip(plan.cells, told["cells"], strict=True):
        model = open_model(folder_of(output, cell) / "model")
        predicted = np.stack(list(judge.predictions(model)))
        true = float(np.square(judge.inner(predicted - clean), dtype=np.float64).mean()) / judge.law.variance
        cells.append({**row, "true_error_of_noise_variance": true})
    points = [{**p, "true_error": mean_of(cells, p)} for p in told["points"]]
    estimated, true = (
        [c[key] for c in cells] for key in ("error_of_noise_variance", "true_error_of_noise_variance")
    )
    looked = Fringes(plan.vacuum, judge.spots, judge.law.variance)
    for counts, frame in zip(judge.counts, clean, strict=True):
        if looked.possible:
            looked.add(counts.astype(float), frame.astype(float))
    shown = looked.result()
    return {
        "movie": chosen.truth.name,
        "dose": dose,
        "judged": told["judged"],
        "settings": told["settings"],
        "sentence": told["sentence"],
        "warnings": told["warnings"],
        "spearman": float(spearmanr(estimated, true).statistic),
        "spearman_of_points": float(
            spearmanr([p["error"] for p in points], [p["true_error"] for p in points]).statistic
        ),
        "fringes_of_the_truth": None if shown is None else shown._asdict(),
        "points": points,
        "cells": cells,
        "training_s": round(sum(c["training_s"] for c in cells), 1),
    }


def mean_of(cells: list[dict[str, Any]], point: dict[str, Any]) -> float:
    """True error of a point, over its trainings."""
    own = [c for c in cells if (c["frames"], c["size"]) == (point["frames"], point["size"])]
    return float(np.mean([c["true_error_of_noise_variance"] for c in own]))


def show(result: dict[str, Any]) -> None:
    """A line for every point."""
    print(f"\n{result['movie']}, dose {result['dose']:g}: {result['sentence']}")
    print(
        f"rank correlation with the true error: {result['spearman']:.3f} of cells, "
        f"{result['spearman_of_points']:.3f} of points"
    )
    print(f"{'frames':>7} {'size':>5} {'error':>8} {'true':>8} [% of the noise]  fringes (chance)  supported")
    for p in result["points"]:
        f = p["fringes"]
        told = (
            "not looked for"
            if f is None
            else f"{f['ratio']:.2f} ({f['chance']:.2f})  {f['supported']:.2f} ± {f['supported_error']:.2f}"
        )
        print(f"{p['frames']:>7} {p['size']:>5} {100 * p['error']:8.3f} {100 * p['true_error']:8.3f}  {told}")
    if (f := result["fringes_of_the_truth"]) is not None:
        print(f"the truth itself shows fringes of {f['ratio']:.2f} ({f['chance']:.2f})")


if __name__ == "__main__":
    main()
