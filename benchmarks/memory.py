"""Peak memory of ingest, train and apply against the length of the movie.

Runs the commands on movies of growing length and measures the resident memory of the process and all its
children together. Prints the peak of the longest movie over that of the shortest; the target is 1.1 at most,
while the raw movie grows 16 times. Train is short, but long enough to fill its pool of patches; apply
averages over one symmetry.

    python benchmarks/memory.py [--frames 200 400 800 1600 3200] [--size 256] [--steps 60] [--save] [--quick]
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from common import command_line, parser, random_model, save, scratch, write_mrc

TARGET = 1.1  # longest movie to shortest
STEPS = ("ingest", "train", "apply")


def main() -> None:
    options = parser(__doc__ or "")
    options.add_argument("--frames", type=int, nargs="+", default=[200, 400, 800, 1600, 3200])
    options.add_argument("--size", type=int, default=256, help="rows and columns [pixels]")
    options.add_argument("--steps", type=int, default=60, help="of the training")
    options.add_argument("--only", choices=STEPS, nargs="+", default=list(STEPS))
    chosen = options.parse_args()
    lengths, size, steps = chosen.frames, chosen.size, chosen.steps
    if chosen.quick:
        lengths, size, steps = [16, 48], 32, 2
    peaks: dict[str, dict[int, float]] = {name: {} for name in STEPS if name in chosen.only}
    for n_frames in lengths:
        with scratch(chosen.folder) as folder:
            for name, peak in measure(folder, (n_frames, size, size), steps, chosen.only).items():
                peaks[name][n_frames] = peak
        shown = ", ".join(f"{name} {values[n_frames]:.0f}" for name, values in peaks.items())
        raw_size = n_frames * size * size * 2 / 1e6
        print(f"{n_frames} frames, raw {raw_size:.0f} MB: peak {shown} MB", flush=True)
    growth = {name: round(values[lengths[-1]] / values[lengths[0]], 3) for name, values in peaks.items()}
    print(f"{lengths[-1]} frames against {lengths[0]}: {growth} (target {TARGET})")
    if chosen.save:
        results: dict[str, Any] = {
            "frame_shape": [size, size],
            "raw_megabytes": {n: round(n * size * size * 2 / 1e6, 1) for n in lengths},
            "peak_megabytes": {name: {n: round(v) for n, v in p.items()} for name, p in peaks.items()},
            "growth": growth,
            "target": TARGET,
        }
        save("memory", results)


def measure(folder: Path, shape: tuple[int, int, int], steps: int, wanted: list[str]) -> dict[str, float]:
    """Peak memory of the steps on one movie [MB]."""
    raw, movie = write_mrc(folder / "movie.mrc", shape), folder / "movie.zarr"
    found = {"ingest": command_line("ingest", raw, "-o", movie, "--quiet")}
    if "train" in wanted:
        found["train"] = command_line(
            "train", movie, "-o", folder / "trained", "--steps", steps, "--device", "cpu", "--quiet"
        )
    if "apply" in wanted:
        model = random_model(folder / "model", movie)
        words = ["--workers", "local:2", "--ensemble", 1, "--device", "cpu", "--quiet"]
        found["apply"] = command_line(
            "apply", movie, "--model", model, "-o", folder / "denoised.zarr", *words
        )
    return {name: done.peak_bytes / 1e6 for name, done in found.items() if name in wanted}


if __name__ == "__main__":
    main()
