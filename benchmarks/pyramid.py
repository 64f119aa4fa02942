"""What a pyramid costs: of a denoised movie, time against all of `apply --ensemble 1`; of both stores, disk.

Disk is set against the array at full resolution; that of counts for Poisson noise of several doses. The same denoised
store is finished several times; the time within `pyramid.build` is set against that of all of `apply`, in one process
and on one core, with the model that comes with tdenoise.

    python benchmarks/pyramid.py [--sizes 512 1024] [--frames 32] [--doses 0.5 2 10] [--save] [--quick]
"""

from __future__ import annotations

import shutil
import statistics
from pathlib import Path
from typing import Any

import numpy as np
from common import Spent, frames, parser, save, scratch, spent
from tdenoise_pipeline.apply import apply as step
from tdenoise_pipeline.ingest.ingest import ingest
from tdenoise_pipeline.settings.config import ApplyConfig, IngestConfig
from tdenoise_pipeline.store import pyramid

TIME, DISK = 0.10, 0.35  # targets


def main() -> None:
    options = parser(__doc__ or "")
    options.add_argument("--sizes", type=int, nargs="+", default=[512, 1024])
    options.add_argument("--frames", type=int, default=32)
    options.add_argument("--repeats", type=int, default=3)
    options.add_argument("--doses", type=float, nargs="*", default=[0.5, 2, 10])
    chosen = options.parse_args()
    if chosen.quick:
        chosen.sizes, chosen.frames, chosen.repeats, chosen.doses = [384], 8, 1, []
    results: dict[str, Any] = {}
    for size in chosen.sizes:
        with scratch(chosen.folder) as folder:
            found = measure(folder, (chosen.frames, size, size), chosen.repeats)
        results[f"{size} x {size}"] = found
        print(
            f"{size} x {size}, {chosen.frames} frames: {found['time']:.1%} of the time of apply "
            f"(CPU: {found['cpu']:.1%}; target {TIME:.0%}), {found['disk']:.1%} of the disk (target {DISK:.0%})",
            flush=True,
        )
    for dose in chosen.doses:
        with scratch(chosen.folder) as folder:
            share = counts_share(folder, dose)
        results[f"counts, {dose:g} electrons"] = {"disk": share}
        print(f"counts, {dose:g} electrons per pixel and frame: {share:.1%} of the disk", flush=True)
    if chosen.save:
        save("pyramid", results)


def measure(folder: Path, shape: tuple[int, int, int], repeats: int) -> dict[str, float]:
    """Shares of time and disk that the pyramid takes."""
    np.save(folder / "movie.npy", np.stack(list(frames(shape, "uint8"))))
    ingest(IngestConfig(raw=folder / "movie.npy", output=folder / "movie.zarr"))
    output, build = folder / "denoised.zarr", pyramid.build
    ratios: list[tuple[float, float]] = []
    for _ in range(repeats):
        shutil.rmtree(output, ignore_errors=True)
        inner: list[Spent] = []

        def timed(*given: Any, inner: list[Spent] = inner, **named: Any) -> Any:
            made: list[Any] = []
            inner.append(spent(lambda: made.append(build(*given, **named))))
            return made[0]

        pyramid.build = timed
        try:
            config = ApplyConfig(
                movie=folder / "movie.zarr", output=output, ensemble=1, share="0/1", device="cpu"
            )
            whole = spent(lambda config=config: step.apply(config))
        finally:
            pyramid.build = build
        ratios.append((inner[0].wall / whole.wall, inner[0].cpu / whole.cpu))
    disk = size_of(output / "pyramid") / size_of(output / "denoised")
    wall, cpu = (statistics.median(values) for values in zip(*ratios, strict=True))
    return {"time": wall, "cpu": cpu, "disk": disk}


def counts_share(folder: Path, dose: float) -> float:
    """Share of the disk of counts that their pyramid takes."""
    np.save(folder / "movie.npy", np.random.default_rng(0).poisson(dose, (32, 256, 2048)).astype(np.uint8))
    ingest(IngestConfig(raw=folder / "movie.npy", output=folder / "movie.zarr"))
    return size_of(folder / "movie.zarr/pyramid") / size_of(folder / "movie.zarr/counts")


def size_of(folder: Path) -> int:
    return sum(file.stat().st_size for file in folder.rglob("*") if file.is_file())


if __name__ == "__main__":
    main()
