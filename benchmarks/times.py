"""Are the times that --dry-run tells true? Predicted and measured seconds of ingest, train, apply and report.

For movies of four sizes: the prediction of `run --dry-run` (a trial of some seconds on the same file), then the steps
themselves, each as a command of its own. The target is a ratio of 0.8 to 1.25 on a quiet machine. ``--clock cpu``: both
sides are seconds of processors, which other work on the machine changes little.

    python benchmarks/times.py [--sizes 64x128 192x128 96x256 96x512] [--steps 200] [--ensemble 1] [--workers 2]
                               [--clock wall|cpu] [--save] [--quick]
"""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import mrcfile
import numpy as np
from common import parser, save, scratch
from tdenoise_pipeline.settings.config import RunConfig
from tdenoise_pipeline.workflow.forecast import forecast_run

SIZES = ("64x128", "192x128", "96x256", "96x512")  # frames x pixels
STEPS = ("ingest", "train", "apply", "report")


def cpu_s() -> float:
    """Seconds of processors that this process and its children have used."""
    used = os.times()
    return used.user + used.system + used.children_user + used.children_system


CLOCKS: dict[str, Callable[[], float]] = {"wall": time.perf_counter, "cpu": cpu_s}


def main() -> None:
    options = parser(__doc__ or "")
    options.add_argument("--sizes", nargs="+", default=list(SIZES), help="frames x rows and columns")
    options.add_argument("--steps", type=int, default=200, help="of the training")
    options.add_argument("--ensemble", type=int, default=1)
    options.add_argument("--workers", type=int, default=2)
    options.add_argument("--clock", choices=list(CLOCKS), default="wall")
    chosen = options.parse_args()
    sizes = ["24x64"] if chosen.quick else chosen.sizes
    steps = 4 if chosen.quick else chosen.steps
    results = {}
    for size in sizes:
        n, side = map(int, size.split("x"))
        with scratch(chosen.folder) as folder:
            results[size] = measure(
                folder, n, side, steps, chosen.ensemble, chosen.workers, CLOCKS[chosen.clock]
            )
        for step, found in results[size].items():
            print(
                f"{size:>8} {step:<7} " + "  ".join(f"{name} {value:.2f}" for name, value in found.items()),
                flush=True,
            )
    if chosen.save:
        save("times", {"clock": chosen.clock, "sizes": results})


def measure(
    folder: Path, n: int, side: int, steps: int, ensemble: int, workers: int, clock: Callable[[], float]
) -> dict[str, dict[str, float]]:
    """Predicted and measured seconds of every step, and their ratio."""
    raw, output = folder / "movie.mrc", folder / "run"
    write_movie(raw, n, side)
    config = RunConfig(raw=raw, output=output, steps=steps, ensemble=ensemble, workers=f"local:{workers}")
    before = clock()
    told = forecast_run(config, clock)
    trial = clock() - before
    found: dict[str, dict[str, float]] = {}
    for step in STEPS:
        words = [
            f"--steps={steps}",
            f"--ensemble={ensemble}",
            f"--workers=local:{workers}",
            f"--step={step}",
            "-q",
        ]
        before = clock()
        command = [
            sys.executable,
            "-P",
            "-m",
            "tdenoise_pipeline.cli",
            "run",
            str(raw),
            "-o",
            str(output),
            *words,
        ]
        subprocess.run(command, check=True)
        measured, predicted = clock() - before, told[f"time_{step}_s"] + told["time_start_s"]
        found[step] = {"predicted": predicted, "measured": measured, "ratio": predicted / measured}
    found["trial"] = {"measured": trial}
    return found


def write_movie(path: Path, n: int, side: int) -> None:
    """A lattice that moves a little, one electron per pixel and frame."""
    rng: Any = np.random.default_rng(0)
    y, x = np.ogrid[:side, :side]
    with mrcfile.new_mmap(path, (n, side, side), mrc_mode=6) as file:
        for k in range(n):
            file.data[k] = rng.poisson(1 + 0.5 * np.sin((x + 0.1 * k) / 2) * np.sin(y / 2))
        file.set_image_stack()
        file.voxel_size = 0.2


if __name__ == "__main__":
    main()
