"""How many passes of the self-ensemble are worth their time, and what bfloat16 costs: error, events and time of each.

Every number of passes in either precision denoises the same movies with the same model, as ``tdenoise-pipeline apply``
does, and is measured with ``evaluate --truth``. The time is the processor time of the network on the same frames, in
turn with the others; it is printed as a ratio to 16 passes in float32.

    python benchmarks/passes.py FILE.npz ... [--model FOLDER] [--dose 2] [--ensemble 1 2 4 16] [--save NAME]
    python benchmarks/passes.py --quick
"""

from __future__ import annotations

import argparse
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from common import Spent, command_line, interleaved, median, ratio, save, scratch, spent
from quality import REGIONS, SHOWN, evaluate, raw_movies
from tdenoise_pipeline.inputs.model_fit import movie_scale
from tdenoise_pipeline.store import store

from tdenoise.inference.denoising import denoise
from tdenoise.inference.tile import Tile
from tdenoise.network import torch_setup
from tdenoise.network.checkpoint import BASE, Model, load_model

PRECISIONS = ("float32", "bfloat16")
TIMED_FRAMES = 8


def main() -> None:
    options = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    options.add_argument("movies", type=Path, nargs="*", metavar="FILE.npz", help="simulated movies")
    options.add_argument("--model", type=Path, default=BASE, help="default: the base model as it is")
    options.add_argument("--dose", type=float, nargs="+", help="take only these doses of the files")
    options.add_argument("--ensemble", type=int, nargs="+", default=[1, 2, 4, 16])
    options.add_argument("--repeats", type=int, default=3)
    options.add_argument("--save", metavar="NAME", help="write benchmarks/results/passes_NAME.json")
    options.add_argument("--quick", action="store_true", help="a small simulated movie, one round")
    chosen = options.parse_args()
    if not chosen.movies and not chosen.quick:
        options.error("FILE.npz is needed, or --quick")
    torch_setup.prepare(n_threads=1)
    results = []
    with scratch(None) as folder:
        if chosen.quick:
            command_line("simulate", "-o", folder / "made", "--size", 48, "--n-frames", 24)
            chosen.movies, chosen.ensemble, chosen.repeats = [folder / "made" / "truth.npz"], [1, 4], 1
        for number, file in enumerate(chosen.movies):
            own = folder / str(number)
            own.mkdir()
            for raw, dose, pixel_size_nm in raw_movies(file, own):
                if not chosen.dose or dose in chosen.dose:
                    results.append(measure(raw, file, dose, pixel_size_nm, own, chosen))
                    show(results[-1])
    if chosen.save:
        save(f"passes_{chosen.save}", results)


def measure(
    raw: Path, truth: Path, dose: float, pixel_size_nm: float, folder: Path, chosen: argparse.Namespace
) -> dict[str, Any]:
    """All numbers of passes in both precisions on one movie."""
    movie = folder / f"{raw.stem}.zarr"
    command_line("ingest", raw, "-o", movie, "--pixel-size", pixel_size_nm, "--quiet")
    ways: dict[str, dict[str, Any]] = {}
    timed: dict[str, Callable[[], Spent]] = {}
    opened, model = store.open_store(movie, store.MOVIE), load_model(chosen.model)
    for precision in PRECISIONS:
        for ensemble in chosen.ensemble:
            name, denoised = f"{ensemble} {precision}", folder / "denoised.zarr"
            command_line(
                "apply", movie, "--model", chosen.model, "-o", denoised, "--force", "--quiet", "--workers", "local:1",
                "--ensemble", ensemble, "--precision", precision,
            )  # fmt: skip
            found = evaluate(denoised, movie, truth, baseline=False)
            events = found["events"]["denoised"]
            ways[name] = {"psnr": found["psnr"], "auc": events["auc"], "bleed": events["bleed"]}
            timed[name] = lambda e=ensemble, p=precision: time_of(opened, model, e, p)
    taken = interleaved(timed, chosen.repeats)
    slowest = f"{max(chosen.ensemble)} float32"
    for name, way in ways.items():
        way["ms_per_frame"] = round(1000 * median(taken[name]) / TIMED_FRAMES, 2)
        way["faster"] = ratio(taken[slowest], taken[name])
    return {"movie": truth.name, "dose": dose, "shape": list(opened.shape), "than": slowest, "ways": ways}


def time_of(movie: store.Store, model: Model, ensemble: int, precision: str) -> Spent:
    """Of the network on frames in the middle of a movie."""
    window = model.network.architecture.window
    middle = movie.shape[0] // 2
    frames = range(middle, min(middle + TIMED_FRAMES, movie.shape[0]))
    first, last = max(0, frames.start - window), min(movie.shape[0], frames.stop + window)
    block, (_, height, width) = np.asarray(movie.array[first:last]), movie.shape
    tile = Tile(movie.shape[0], first, (0, height), (0, width))
    scale = movie_scale(movie, model.card)

    def run() -> None:
        for _ in denoise(model.network, block, tile, scale, frames, ensemble=ensemble, precision=precision):
            pass

    return spent(run)


def show(result: dict[str, Any]) -> None:
    """One line for each way."""
    print(f"\n{result['movie']}, dose {result['dose']:g}; times as fast as {result['than']}, processor time")
    heads = f"{'PSNR ' + '/'.join(REGIONS):>28}{'AUC':>8}{'bleed ' + ' '.join(SHOWN):>28}"
    print(f"{'passes':<14}{heads}{'ms':>9}{'faster':>8}")
    for name, way in result["ways"].items():
        psnr = " / ".join(
            f"{way['psnr'][part]:.2f}" if way["psnr"][part] is not None else "-" for part in REGIONS
        )
        bleed = " ".join("-" if way["bleed"][at] is None else f"{way['bleed'][at]:.2f}" for at in SHOWN)
        auc = "-" if way["auc"] is None else f"{way['auc']:.3f}"
        print(
            f"{name:<14}{psnr:>28}{auc:>8}{bleed:>28}{way['ms_per_frame']:>9.1f}{way['faster']['cpu']:>8.2f}"
        )


if __name__ == "__main__":
    main()
