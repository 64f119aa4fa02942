"""Peak memory of every step: predicted against measured, and against the length of the movie.

Runs the commands and measures the resident memory of the process and all its children together; of apply also
that of the largest worker, which is what its plan predicts. Prints measured over predicted for frames of several
sizes (target 0.8 to 1.2), and the peak of a long movie over that of a short one (target 1.1 at most, while the
raw movie grows 16 times). Train is short, but long enough to fill its pool of patches; apply averages over one
symmetry.

    python benchmarks/memory.py [--sizes 128 256 512 1024] [--frames 200 3200] [--side 256] [--save] [--quick]
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from common import command_line, parser, random_model, save, scratch, write_mrc
from tdenoise_pipeline.apply import apply_plan
from tdenoise_pipeline.export.export import describe_plan as describe_export
from tdenoise_pipeline.ingest import ingest_plan
from tdenoise_pipeline.resources import budget, memory
from tdenoise_pipeline.settings.config import ApplyConfig, ExportConfig, IngestConfig
from tdenoise_pipeline.store import store
from tdenoise_pipeline.train.train_plan import memory_bytes

GROWTH, OFF = 1.1, 0.2  # targets: longest movie to shortest; measured to predicted
STEPS = ("ingest", "train", "apply", "evaluate", "report", "export", "verify")
LENGTH = 128  # frames of the movies of several sizes: two blocks for two workers, four slabs of ingest


def main() -> None:
    options = parser(__doc__ or "")
    options.add_argument("--sizes", type=int, nargs="+", default=[128, 256, 512, 1024])
    options.add_argument(
        "--frames", type=int, nargs="+", default=[200, 3200], help="of a short and a long movie"
    )
    options.add_argument("--side", type=int, default=256, help="rows and columns of the long movies")
    options.add_argument("--steps", type=int, default=40, help="of the training")
    options.add_argument("--only", choices=STEPS, nargs="+", default=list(STEPS))
    chosen = options.parse_args()
    sizes, lengths, steps, length, side = chosen.sizes, chosen.frames, chosen.steps, LENGTH, chosen.side
    if chosen.quick:
        sizes, lengths, steps, length, side = [32, 48], [16, 48], 2, 16, 32
    predicted: dict[str, Any] = {}
    for size in sizes:
        with scratch(chosen.folder) as folder:
            predicted[f"{size} x {size}"] = found = measure(folder, (length, size, size), steps, chosen.only)
        for name, values in found.items():
            print(f"{size} x {size}, {name}: {values}", flush=True)
    peaks: dict[str, dict[int, int]] = {name: {} for name in STEPS if name in chosen.only}
    for n_frames in lengths:
        with scratch(chosen.folder) as folder:
            for name, values in measure(folder, (n_frames, side, side), steps, chosen.only).items():
                if name in peaks:
                    peaks[name][n_frames] = values["measured"]
        print(f"{n_frames} frames: { ({k: v[n_frames] for k, v in peaks.items()}) } MB", flush=True)
    growth = {name: round(values[lengths[-1]] / values[lengths[0]], 3) for name, values in peaks.items()}
    ratios = [v["ratio"] for found in predicted.values() for v in found.values() if "ratio" in v]
    print(f"measured over predicted: {min(ratios)} to {max(ratios)} (target {1 - OFF} to {1 + OFF})")
    print(f"{lengths[-1]} frames against {lengths[0]}: {growth} (target {GROWTH})")
    if chosen.save:
        results = {
            "predicted_and_measured_megabytes": predicted,
            "length_megabytes": peaks,
            "growth": growth,
            "target": {"growth": GROWTH, "off": OFF},
        }
        save("memory", results)


def measure(
    folder: Path, shape: tuple[int, int, int], steps: int, wanted: list[str]
) -> dict[str, dict[str, float]]:
    """Peak memory of the steps on one movie, measured and predicted [MB]."""
    raw, movie, denoised = write_mrc(folder / "movie.mrc", shape), folder / "movie.zarr", folder / "d.zarr"
    found: dict[str, dict[str, float]] = {}

    def note(name: str, measured: int, expected: int | None) -> None:
        if name.partition(" ")[0] in wanted:
            found[name] = {"measured": round(measured / 1e6)}
            if expected is not None:
                found[name] |= {
                    "predicted": round(expected / 1e6),
                    "ratio": round(measured / expected, 3),
                }

    planned = ingest_plan.describe_plan(IngestConfig(raw=raw, output=movie))
    note("ingest", command_line("ingest", raw, "-o", movie, "--quiet").peak_bytes, planned["memory_bytes"])
    opened = store.open_store(movie, store.MOVIE)
    if "train" in wanted:
        words = ["--steps", steps, "--device", "cpu", "--quiet"]
        done = command_line("train", movie, "-o", folder / "trained", *words)
        note("train", done.peak_bytes, memory_bytes([opened], rehearses=True))
    if {"apply", "evaluate", "report", "export"} & set(wanted):
        model = random_model(folder / "model", movie)
        plan = apply_plan.describe_plan(
            ApplyConfig(movie=movie, model=model, output=denoised, workers="local:2", ensemble=1)
        )
        words = ["--workers", "local:2", "--ensemble", 1, "--device", "cpu", "--quiet"]
        done = command_line("apply", movie, "--model", model, "-o", denoised, *words)
        note("apply worker", done.child_bytes, plan["worker_memory_bytes"])
        note("apply", done.peak_bytes, plan["memory_bytes"])
    if "evaluate" in wanted:
        done = command_line("evaluate", denoised, "--movie", movie, "--quiet")
        note("evaluate", done.peak_bytes, memory.evaluate_bytes(opened))
    if "report" in wanted:
        done = command_line("report", denoised, "--movie", movie, "-o", folder / "report.html", "--quiet")
        note("report", done.peak_bytes, memory.report_bytes(opened))
    if "export" in wanted:
        for name, file, panels in (
            ("export", "e.mp4", "raw,mean9,denoised"),
            ("export data", "e.tif", "denoised"),
        ):
            settings = {"store": denoised, "movie": movie, "output": folder / file, "panels": panels}
            expected = describe_export(ExportConfig(**settings))["memory_bytes"]
            words = ["--movie", movie, "--panels", panels, "-o", folder / file, "--quiet"]
            note(name, command_line("export", denoised, *words).peak_bytes, expected)
    if "verify" in wanted:
        done = command_line("verify", movie, "--deep", "--quiet")
        n_shards = number_of_shards(shape, opened.geometry.shard)
        note("verify", done.peak_bytes, memory.verify_bytes(opened, min(budget.n_cores(), n_shards)))
    return found


def number_of_shards(shape: tuple[int, ...], shard: tuple[int, ...]) -> int:
    """Number of shards of a movie."""
    number = 1
    for n, s in zip(shape, shard, strict=True):
        number *= -(-n // s)
    return number


if __name__ == "__main__":
    main()
