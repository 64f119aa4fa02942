"""Quality of the whole pipeline on a simulated movie, beside the Gaussian filter that knows the truth.

Runs ``tdenoise-pipeline run RAW --truth TRUTH.npz`` into a temporary folder (or ``--output``, which keeps it)
and prints PSNR against the truth [dB]: of the noisy movie, of the best Gaussian filter (its widths chosen by
the truth), and of the denoised movie, with what the pipeline itself estimates without the truth.

    python benchmarks/quality.py RAW TRUTH.npz [--time-limit 5m] [--steps N] [--save NAME] [--quick]
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

from common import command_line, save, scratch

CURVES = ("map", "frequency", "power", "spots")


def main() -> None:
    options = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    options.add_argument("raw", type=Path, nargs="?", help="raw movie; --quick simulates one")
    options.add_argument("truth", type=Path, nargs="?", help="its truth, NPZ")
    options.add_argument("--time-limit", default="5m", help="for the training: 90s, 20m, 2h")
    options.add_argument("--steps", type=int, help="optimiser steps at most")
    options.add_argument("--ensemble", type=int, default=16, help="symmetries to average over")
    options.add_argument("--seed", type=int, default=0)
    options.add_argument("--workers", default="local")
    options.add_argument("--output", type=Path, help="keep what the run writes, in this folder")
    options.add_argument("--save", metavar="NAME", help="write benchmarks/results/quality_NAME.json")
    options.add_argument("--quick", action="store_true", help="a few seconds on a small simulated movie")
    chosen = options.parse_args()
    if not chosen.quick and chosen.truth is None:
        options.error("RAW and TRUTH.npz are needed, or --quick")
    with scratch(None) as folder:
        raw, truth, limit = chosen.raw, chosen.truth, chosen.time_limit
        if chosen.quick:
            command_line("simulate", "-o", folder / "made", "--size", 48, "--n-frames", 24)
            raw, truth, limit = folder / "made" / "movie.tif", folder / "made" / "truth.npz", "3s"
        output = chosen.output or folder / "run"
        words = ["--time-limit", limit, "--ensemble", chosen.ensemble, "--seed", chosen.seed]
        if chosen.steps is not None:
            words += ["--steps", chosen.steps]
        done = command_line(
            "run", raw, "-o", output, "--truth", truth, "--workers", chosen.workers, *words, "--quiet"
        )
        metrics = json.loads((output / "metrics.json").read_text())
        card = json.loads((output / "model" / "card.json").read_text())
    result = {
        "movie": raw.name,
        "time_limit": limit,
        "ensemble": chosen.ensemble,
        "steps": card["steps"],
        "best_step": card["best_step"],
        "training_s": round(card["metrics"]["elapsed_s"], 1),
        "whole_run_s": round(done.time.wall, 1),
        "peak_megabytes": round(done.peak_bytes / 1e6),
        "metrics": _without_curves(metrics),
    }
    show(result)
    if chosen.save:
        save(f"quality_{chosen.save}", result)


def _without_curves(value: Any) -> Any:
    """Metrics less the maps and curves that are drawn in the report."""
    if isinstance(value, dict):
        return {k: _without_curves(v) for k, v in value.items() if k not in CURVES}
    return value


def show(result: dict[str, Any]) -> None:
    """A table of PSNR, then the figures that need no truth."""
    metrics = result["metrics"]
    rows = {
        "noisy": metrics["psnr_noisy"],
        "best Gaussian filter": metrics["baseline"]["psnr"],
        "denoised": metrics["psnr"],
    }
    columns = list(metrics["psnr"])
    print(f"{result['movie']}: {result['steps']} steps in {result['training_s']} s")
    print(f"{'PSNR [dB]':<22}" + "".join(f"{name:>18}" for name in columns))
    for name, values in rows.items():
        cells = ("-" if values.get(c) is None else f"{values[c]:.2f}" for c in columns)
        print(f"{name:<22}" + "".join(f"{cell:>18}" for cell in cells))
    print(f"estimated without the truth: {json.dumps(metrics['nmse'])}")


if __name__ == "__main__":
    main()
