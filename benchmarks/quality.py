"""Quality of models and filters on simulated movies with a known truth, one table per movie and dose.

Each model is trained on the movie alone, from its raw counts, for the same time; what denoises it is measured with
``tdenoise-pipeline evaluate --truth``. Movies are files in the format of ``tdenoise-pipeline simulate``; all doses in a
file are used. Files that are absent are named and left out.

    python benchmarks/quality.py FILE.npz ... [--model base split-blind udvd:0 thinned] [--dose 2] [--time-limit 5m]
                                              [--save NAME]
    python benchmarks/quality.py --quick

A model may be followed by a blind radius, as in ``udvd:0``, by ``scratch`` (random weights), or by ``base`` (the base
model adapted, and nothing else tried). ``base`` alone is the model that comes with the package, as it is; ``far`` is
split-blind with ``--far-frames``.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
from common import command_line, save, scratch

from tdenoise.network.checkpoint import BASE, load_model

CURVES = ("map", "frequency", "power", "spots")
STARTS = ("base", "scratch")
MODELS = ("base", "split-blind", "udvd:0", "udvd:1", "thinned")
SHOWN = ("-2", "-1", "0", "+1")
REGIONS = ("all", "particle", "changing")


def main() -> None:
    options = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    options.add_argument(
        "movies", type=Path, nargs="*", metavar="FILE.npz", help="simulated movies; --quick makes one"
    )
    options.add_argument(
        "--model", nargs="+", default=list(MODELS), metavar="NAME[:RADIUS]", help="models to train"
    )
    options.add_argument("--dose", type=float, nargs="+", help="take only these doses of the files")
    options.add_argument("--time-limit", default="5m", help="for each training: 90s, 20m, 2h")
    options.add_argument("--steps", type=int, help="of each training, in place of a time")
    options.add_argument("--least-dose", help="of training: see `train --least-dose`; pure counts only")
    options.add_argument("--ignore-drift", action="store_true", help="in train and apply, as their option")
    options.add_argument("--ensemble", type=int, default=1, help="symmetries to average over in apply")
    options.add_argument("--seed", type=int, default=0)
    options.add_argument("--workers", default="local:1")
    options.add_argument("--save", metavar="NAME", help="write benchmarks/results/quality_NAME.json")
    options.add_argument("--quick", action="store_true", help="a few seconds on a small simulated movie")
    chosen = options.parse_args()
    if not chosen.movies and not chosen.quick:
        options.error("FILE.npz is needed, or --quick")
    results = []
    with scratch(None) as folder:
        movies = list(chosen.movies)
        if chosen.quick:
            command_line("simulate", "-o", folder / "made", "--size", 48, "--n-frames", 24)
            movies, chosen.time_limit = [folder / "made" / "truth.npz"], "3s"
        for number, file in enumerate(movies):
            if not file.exists():
                print(f"{file}: is not there, so it is left out")
                continue
            own = folder / str(number)  # `simulate` calls every truth the same
            own.mkdir()
            for raw, dose, pixel_size_nm in raw_movies(file, own):
                if chosen.dose and dose not in chosen.dose:
                    continue
                results.append(measure(raw, file, dose, pixel_size_nm, own, chosen))
                show(results[-1])
    if chosen.save:
        save(f"quality_{chosen.save}", results)


def raw_movies(file: Path, folder: Path) -> list[tuple[Path, float, float]]:
    """The counts of every dose in a file, as raw movies; their doses and the size of their pixels [nm]."""
    movies = []
    with np.load(file, allow_pickle=False) as arrays:
        told = json.loads(str(arrays["attrs"]))
        for entry in told["noise"]:
            raw = folder / f"{file.stem}_{entry['key']}.npy"
            np.save(raw, arrays[entry["key"]])
            movies.append((raw, float(entry["dose"]), float(told["px_nm"])))
    return movies


def measure(
    raw: Path, truth: Path, dose: float, pixel_size_nm: float, folder: Path, chosen: argparse.Namespace
) -> dict[str, Any]:
    """All models and filters on one movie."""
    movie = folder / f"{raw.stem}.zarr"
    command_line("ingest", raw, "-o", movie, "--pixel-size", pixel_size_nm, "--quiet")
    methods: dict[str, Any] = {}
    result: dict[str, Any] = {"movie": truth.name, "dose": dose}
    result |= {"time_limit": chosen.time_limit, "ensemble": chosen.ensemble, "least_dose": chosen.least_dose}
    result |= {"ignore_drift": chosen.ignore_drift, "steps": chosen.steps}
    for name in chosen.model:
        kind, _, variant = name.partition(":")
        model, denoised = folder / "model", folder / "denoised.zarr"
        words = [
            "--model",
            "split-blind" if kind == "far" else kind,
            *(["--time-limit", chosen.time_limit] if chosen.steps is None else ["--steps", chosen.steps]),
            *(["--far-frames"] if kind == "far" else []),
            "--seed",
            chosen.seed,
            "--force",
            "--quiet",
        ]
        still = ["--ignore-drift"] if chosen.ignore_drift else []
        if chosen.least_dose:
            words += ["--least-dose", chosen.least_dose]
        if variant:
            words += ["--from", variant] if variant in STARTS else ["--blind-radius", variant]
        try:
            if kind == "base":
                trained, used, model = None, [], BASE
            else:
                trained, used = command_line("train", movie, "-o", model, *words, *still), ["--model", model]
            applied = command_line(
                "apply", movie, *used, *still, "-o", denoised, "--force", "--quiet",
                "--ensemble", chosen.ensemble, "--workers", chosen.workers,
            )  # fmt: skip
        except RuntimeError as error:
            methods[name] = {"failed": str(error).splitlines()[-1]}
            continue
        metrics = evaluate(denoised, movie, truth, baseline="noisy" not in methods)
        methods |= _filters(metrics, methods)
        card = json.loads((model / "card.json").read_text())
        methods[name] = {
            "psnr": metrics["psnr"],
            "vacuum_std": metrics["vacuum_std"],
            **metrics["events"]["denoised"],
            "nmse": metrics["nmse"],
            "mse": metrics["mse"],
            "regions": metrics["regions"],
            "megamac_per_pixel": megamac_per_pixel(model),
            "steps": card.get("steps"),
            "training_s": 0.0 if trained is None else round(trained.time.wall, 1),
            "apply_s": round(applied.time.wall, 1),
        }
        result |= {"knowable": metrics["knowable"], "n_changes": metrics["events"]["denoised"]["n_changes"]}
    return {**result, "methods": methods}


def evaluate(denoised: Path, movie: Path, truth: Path, *, baseline: bool) -> dict[str, Any]:
    """What ``tdenoise-pipeline evaluate`` prints, less what is drawn in a report."""
    words = ["evaluate", denoised, "--movie", movie, "--truth", truth, "--json", "--quiet"]
    words += ["--baseline"] if baseline else []
    command = [sys.executable, "-m", "tdenoise_pipeline.cli", *map(str, words)]
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True)
    return _without_curves(json.loads(done.stdout))


def _filters(metrics: dict[str, Any], known: dict[str, Any]) -> dict[str, Any]:
    """The noisy movie and the filters, once; the limit of the ideal observer last."""
    if "noisy" in known:
        return {}
    gaussian = metrics["baseline"]
    return {
        "noisy": {"psnr": metrics["psnr_noisy"]},
        "moving average 9": metrics["events"]["moving_average_9"],
        "best 3D Gaussian": {
            "psnr": gaussian["psnr"],
            "vacuum_std": gaussian["vacuum_std"],
            **gaussian["events"],
        },
        "ideal observer": metrics["events"]["limit"],
        "ideal, these counts": {"bleed": metrics["events"]["limit"]["bleed_on_these_counts"]},
    }


def megamac_per_pixel(folder: Path) -> float:
    """Multiply-accumulates for one pixel of one frame in one pass, in millions; nothing is kept between frames."""
    import torch
    from torch.utils.flop_counter import FlopCounterMode

    network = load_model(folder).network
    extent = 16 * network.architecture.stride
    bins = len(network.architecture.bins) + len(network.architecture.far_bins)
    neighbours = torch.zeros(1, 2 * bins, extent, extent)
    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        network(neighbours, torch.zeros(1, 1, extent, extent))
    return round(counter.get_total_flops() / 2 / extent**2 / 1e6, 4)


def _without_curves(value: Any) -> Any:
    """Metrics less the maps and curves that are drawn in the report."""
    if isinstance(value, dict):
        return {k: _without_curves(v) for k, v in value.items() if k not in CURVES}
    return value


def show(result: dict[str, Any]) -> None:
    """One line per method."""
    print(
        f"\n{result['movie']}, {result['dose']:g} electrons per pixel and frame, {result['time_limit']} each"
    )
    columns = [
        "PSNR all/particle/changing",
        "vacuum",
        "AUC",
        "bleed -2 -1 0 +1",
        "part",
        "MMAC",
        "train",
        "apply",
    ]
    columns.append("error without and with truth")
    widths = [28, 8, 7, 26, 6, 8, 7, 7, 40]
    print(f"{'':<20}" + "".join(f"{c:>{w}}" for c, w in zip(columns, widths, strict=True)))
    for name, found in result["methods"].items():
        if "failed" in found:
            print(f"{name:<20}{found['failed']}")
            continue
        mse = found.get("mse")
        cells = [
            " / ".join(_fixed(found["psnr"][part], ".2f") for part in REGIONS) if "psnr" in found else "-",
            _fixed(found.get("vacuum_std"), ".4f"),
            _fixed(found.get("auc"), ".3f"),
            " ".join(_fixed(found["bleed"][at], ".2f") for at in SHOWN) if "bleed" in found else "-",
            _fixed(found.get("part_occupied", {}).get("ratio"), ".2f"),
            _fixed(found.get("megamac_per_pixel"), ".4g"),
            _fixed(found.get("training_s"), ".0f"),
            _fixed(found.get("apply_s"), ".0f"),
            "-"
            if mse is None
            else f"{mse['estimate']:.3g} ({mse['low']:.2g} to {mse['high']:.2g}), {mse['true']:.3g}",
        ]
        print(f"{name:<20}" + "".join(f"{c:>{w}}" for c, w in zip(cells, widths, strict=True)))


def _fixed(value: float | None, form: str) -> str:
    return "-" if value is None else format(value, form)


if __name__ == "__main__":
    main()
