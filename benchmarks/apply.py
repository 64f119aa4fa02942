"""Apply on workers against the bare loop of the model over the same frames.

Times the function ``apply`` with one worker, and with two, against `tdenoise.inference.denoising.denoise` over all
frames in one fresh process (imports not counted), one thread each, in turn. What is compared is the steady state:
the time of the same call on three frames of 32 x 32 pixels (start of scheduler and workers, import of torch)
is measured in the same round and subtracted. The CPU time of apply includes driver and scheduler. Apply
writes with a second thread, so that its wall time gains where a core is free. Random weights; the time does
not depend on them. Prints medians of the ratios within each round.

    python benchmarks/apply.py [--size 192] [--frames 192] [--repeats 3] [--save] [--quick]
"""

from __future__ import annotations

import shutil
from collections import deque
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import numpy as np
from common import (
    Spent,
    at_both_ensembles,
    frames,
    interleaved,
    median,
    random_model,
    ratio,
    rounded,
    spent,
)
from tdenoise_pipeline.apply.apply import apply
from tdenoise_pipeline.apply.block_work import load
from tdenoise_pipeline.ingest.ingest import ingest
from tdenoise_pipeline.inputs.model_fit import movie_scale
from tdenoise_pipeline.settings.config import ApplyConfig, IngestConfig
from tdenoise_pipeline.store import store

from tdenoise.inference.denoising import denoise
from tdenoise.inference.tile import Tile

TARGET = 1.1  # times the bare loop


def measure(folder: Path, shape: tuple[int, int, int], ensemble: int, repeats: int) -> dict[str, Any]:
    """Denoise one movie in all ways, in turn."""
    movie, few = movie_store(folder / "all", shape), movie_store(folder / "few", (3, 32, 32))
    model = random_model(folder / "model", movie)
    print(f"ensemble {ensemble}: {shape[0]} frames of {shape[1]} x {shape[2]}")

    def bare() -> Spent:
        # A fresh process, as a worker is: memory that is touched for the first time costs it, too.
        with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as pool:
            return pool.submit(bare_loop, movie, model, ensemble).result()

    def workers(source: Path, count: int) -> Spent:
        output = folder / "denoised.zarr"
        shutil.rmtree(output, ignore_errors=True)
        config = ApplyConfig(
            movie=source,
            model=model,
            output=output,
            workers=f"local:{count}",
            ensemble=ensemble,
            device="cpu",
        )
        return spent(lambda: apply(config))

    taken = interleaved(
        {
            "start 1": lambda: workers(few, 1),
            "bare": bare,
            "1 worker": lambda: workers(movie, 1),
            "start 2": lambda: workers(few, 2),
            "2 workers": lambda: workers(movie, 2),
        },
        repeats,
    )
    steady = {
        n: [t - s for t, s in zip(taken[name], taken[f"start {n}"], strict=True)]
        for n, name in ((1, "1 worker"), (2, "2 workers"))
    }
    result: dict[str, Any] = {
        "shape": shape,
        "seconds": rounded(taken),
        "milliseconds_per_frame_bare": round(1e3 * median(taken["bare"]) / shape[0], 2),
        "steady_ratio": ratio(steady[1], taken["bare"]),
        "whole_ratio": ratio(taken["1 worker"], taken["bare"]),
        "target": TARGET,
        "speed_up_2_workers": ratio(steady[1], steady[2])["wall"],
    }
    steady_ratio = result["steady_ratio"]
    print(
        f"  one worker takes {steady_ratio['wall']} x the bare loop (CPU time: {steady_ratio['cpu']} x; "
        f"target {TARGET}); two workers are {result['speed_up_2_workers']} x as fast"
    )
    return result


def bare_loop(path: Path, model: Path, ensemble: int) -> Spent:
    """Denoise a movie that lies in memory and drop the result; the time of this alone."""
    loaded, device = load(model, None, "cpu")  # as a worker does: runtime.prepare(1), channels last
    movie = store.open_store(path, store.MOVIE)
    counts, scale, whole = movie.array[:], movie_scale(movie), Tile.whole(movie.shape)
    frames = denoise(
        loaded.network, counts, whole, scale, range(len(counts)), ensemble=ensemble, device=device
    )
    return spent(lambda: deque(frames, maxlen=0))


def movie_store(folder: Path, shape: tuple[int, int, int]) -> Path:
    """Ingest made-up counts."""
    folder.mkdir(parents=True)
    np.save(folder / "movie.npy", np.stack(list(frames(shape, "uint8"))))
    ingest(IngestConfig(raw=folder / "movie.npy", output=folder / "movie.zarr"))
    return folder / "movie.zarr"


if __name__ == "__main__":
    at_both_ensembles("apply", __doc__ or "", measure)
