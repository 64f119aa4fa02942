"""Are the changes that `events` lists true, and as often as it says? Simulated movies, whose truth is known.

For every movie: precision and recall at stated probabilities, a calibration table over all movies, false changes where
nothing changes, the error of the columns' places beside the Cramer-Rao bound of one frame, and the same beside a plain
analysis: a threshold half-way between the levels of raw frames, and of means over nine.

    python benchmarks/events.py [FILE.npz ...] [--seed 0 1 2] [--dose 2 0.5] [--save NAME]
    python benchmarks/events.py --quick

FILE.npz are benchmark files; every dose in them is used. Without files, the package's own simulator makes the movies,
one for each seed and dose, and as many in which nothing changes. The model is the shipped one, as it is.
"""

from __future__ import annotations

import argparse
import itertools
import json
import math
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from common import save, scratch
from numpy.typing import NDArray
from scipy import ndimage
from tdenoise_pipeline.apply.apply import apply
from tdenoise_pipeline.events.find_events import look
from tdenoise_pipeline.events.found import Found
from tdenoise_pipeline.ingest.ingest import ingest
from tdenoise_pipeline.inputs.paired import open_pair
from tdenoise_pipeline.settings.config import ApplyConfig, IngestConfig
from tdenoise_pipeline.step_control import Control

from tdenoise.simulation.nanoparticle import simulate, truth_arrays
from tdenoise.simulation.particle import SimulationSettings

Array = NDArray[Any]

NEAR_PX = 4.0  # a column found is the true one that is so near, in the middle of the movie
LATE = 2  # frames by which a true change may lie outside the frames that are given for it
STATED = (0.1, 0.3, 0.5, 0.7, 0.9, 0.98, 1.01)
STILL = {"changing_share": 0.0, "rotation_sd_deg": (0.0, 0.0, 0.0)}


def main() -> None:
    options = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    options.add_argument("files", type=Path, nargs="*", metavar="FILE.npz")
    options.add_argument("--seed", type=int, nargs="+", default=[0, 1, 2])
    options.add_argument("--dose", type=float, nargs="+", default=[2.0, 0.5])
    options.add_argument("--frames", type=int, default=240)
    options.add_argument("--size", type=int, default=160)
    options.add_argument("--save", metavar="NAME", help="write benchmarks/results/NAME.json")
    options.add_argument("--quick", action="store_true", help="one small movie: does it run")
    chosen = options.parse_args()
    if chosen.quick:
        chosen.seed, chosen.dose, chosen.frames, chosen.size = [0], [2.0], 24, 80
    movies = from_files(chosen.files) if chosen.files else simulated(chosen)
    results = []
    for name, truth, key, dose in movies:
        with scratch(None) as folder:
            result = measured(folder, truth, key, dose)
        print(f"{name}: {told(result)}", flush=True)
        results.append({"name": name, "dose": dose, **result})
    table = calibration(results)
    for row in table:
        print(
            f"said {row['from']:.2f} to {min(row['to'], 1):.2f}: {row['n']:4d}, mean {row['said']}, true {row['true']}"
        )
    if chosen.save:
        for result in results:
            del result["listed"]
        save(f"events_{chosen.save}", {"movies": results, "calibration": table})


def simulated(chosen: argparse.Namespace) -> Iterator[tuple[str, Mapping[str, Array], str, float]]:
    for seed in chosen.seed:
        for dose in chosen.dose:
            for kind, more in (("changing", {"dwell_frames": (10.0, 90.0)}), ("still", STILL)):
                settings = SimulationSettings(
                    seed=seed,
                    dose=dose,
                    n_frames=chosen.frames,
                    height=chosen.size,
                    width=chosen.size,
                    **more,
                )
                truth = truth_arrays(simulate(settings))
                key = json.loads(str(truth["attrs"]))["noise"][0]["key"]
                yield f"{kind} seed {seed} dose {dose:g}", truth, key, dose


def from_files(files: list[Path]) -> Iterator[tuple[str, Mapping[str, Array], str, float]]:
    for file in files:
        with np.load(file) as opened:
            truth = {name: opened[name] for name in opened}
        if "clean" not in truth:
            truth["clean"] = truth["clean_q"] * truth["clean_scale"] + truth["clean_offset"]
        for noise in json.loads(str(truth["attrs"]))["noise"]:
            yield f"{file.stem} dose {noise['dose']:g}", truth, noise["key"], noise["dose"]


def measured(folder: Path, truth: Mapping[str, Array], key: str, dose: float) -> dict[str, Any]:
    np.save(folder / "raw.npy", truth[key])
    movie, output = folder / "movie.zarr", folder / "denoised.zarr"
    ingest(IngestConfig(raw=folder / "raw.npy", output=movie, frame_time=1 / 75, pixel_size=0.014))
    apply(ApplyConfig(movie=movie, output=output))
    found = look(*open_pair(movie, output), Control())
    true_of = matched(found, truth)
    listed = [
        (c.probability, true_change(c, true_of[c.column], truth["events"])) for c in found.states.changes
    ]
    return {
        "n_columns": len(found.columns.positions),
        "n_true_columns": truth["col_pos"].shape[1],
        "n_true_columns_found": len({c for c in true_of if c >= 0}),
        "n_events": len(truth["events"]),
        "column_frames": int(np.isfinite(found.traces.intensity).sum()),
        "listed": [(p, event is not None) for p, event in listed],
        "at_0.5": at(0.5, listed, truth["events"]),
        "at_0.9": at(0.9, listed, truth["events"]),
        "plain_raw": plain(found, true_of, truth["events"], 1),
        "plain_mean9": plain(found, true_of, truth["events"], 9),
        **places(found, true_of, truth, dose),
    }


def matched(found: Found, truth: Mapping[str, Array]) -> list[int]:
    """The true column of every column found; -1: none, such as one of the support."""
    middle = len(truth["col_pos"]) // 2
    places = found.columns.positions - found.corner[middle] + found.moved[middle]
    apart = np.hypot(*(places[:, None] - truth["col_pos"][middle][None]).transpose(2, 0, 1))
    if not apart.size:
        return []
    return [int(row.argmin()) if row.min() < NEAR_PX else -1 for row in apart]


def true_change(change: Any, column: int, events: Array) -> int | None:
    """Number of the true event that a listed change is; of several, the nearest."""
    fits = [
        (abs(float(time) - change.frame), i)
        for i, (time, where, before, after) in enumerate(events)
        if int(where) == column
        and (after - before) * (change.after - change.before) > 0
        and change.earliest - 1 - LATE <= time <= change.latest + LATE
    ]
    return min(fits)[1] if fits else None


def at(least: float, listed: list[tuple[float, int | None]], events: Array) -> dict[str, Any]:
    """Precision and recall of the changes listed with a probability and more."""
    sure = [event for probability, event in listed if probability >= least]
    right = {event for event in sure if event is not None}
    return score(len(sure), sum(event is not None for event in sure), len(right), len(events))


def score(n_listed: int, n_right: int, n_hit: int, n_events: int) -> dict[str, Any]:
    return {
        "n": n_listed,
        "false": n_listed - n_right,
        "precision": round(n_right / n_listed, 3) if n_listed else None,
        "recall": round(n_hit / n_events, 3) if n_events else None,
    }


def plain(found: Found, true_of: list[int], events: Array, n_frames: int) -> dict[str, Any]:
    """A threshold half-way between the 10 and 90 percent quantiles of each column, on means of some frames."""
    n_listed, right, hit = 0, 0, set()
    for trace, column in zip(found.traces.intensity.T, true_of, strict=True):
        smooth = ndimage.uniform_filter1d(np.nan_to_num(trace), n_frames)
        low, high = np.quantile(smooth, [0.1, 0.9])
        above = smooth > (low + high) / 2
        for k in np.flatnonzero(np.diff(above.astype(int))):
            n_listed += 1
            fits = [
                i
                for i, (time, where, before, after) in enumerate(events)
                if int(where) == column and (after > before) == above[k + 1] and abs(time - k - 1) <= 2 + LATE
            ]
            right += bool(fits)
            hit |= set(fits[:1])
    return score(n_listed, right, len(hit), len(events))


def places(found: Found, true_of: list[int], truth: Mapping[str, Array], dose: float) -> dict[str, Any]:
    """Error of the places of columns that never change, beside what one frame allows [pixels, along one axis]."""
    changing = {int(c) for c in truth["events"][:, 1]}
    errors, bounds = [], []
    for n, column in enumerate(true_of):
        if column >= 0 and column not in changing:
            apart = found.centres[:, n] - truth["col_pos"][:, column]
            if not np.isfinite(apart).any():
                continue
            errors.append(np.nanmean(np.square(apart - np.nanmean(apart, axis=0))))
            height = float(np.nanmean(found.traces.intensity[:, n])) / dose
            # Of a Gaussian of this height on a level of 1, from Poisson counts; its width cancels.
            bounds.append(2 / (math.pi * dose * height**2))
    return {
        "place_error_px": round(math.sqrt(np.nanmean(errors)), 3) if errors else None,
        "bound_of_one_frame_px": round(math.sqrt(np.nanmedian(bounds)), 3) if bounds else None,
    }


def told(result: Mapping[str, Any]) -> str:
    sure, likely = result["at_0.9"], result["at_0.5"]
    return (
        f"{result['n_true_columns_found']} of {result['n_true_columns']} columns; {result['n_events']} changes; "
        f"at 0.9 precision {sure['precision']} recall {sure['recall']}, "
        f"at 0.5 {likely['precision']} {likely['recall']}; "
        f"plain 9-frame mean {result['plain_mean9']['precision']} {result['plain_mean9']['recall']}, "
        f"raw {result['plain_raw']['precision']} {result['plain_raw']['recall']}; "
        f"false at 0.5 per 1000 column-frames {1000 * likely['false'] / max(1, result['column_frames']):.2f}; "
        f"place {result['place_error_px']} px (one frame allows {result['bound_of_one_frame_px']})"
    )


def calibration(results: list[dict[str, Any]]) -> list[dict[str, Any]]:
    listed = [pair for result in results for pair in result["listed"]]
    table = []
    for low, high in itertools.pairwise(STATED):
        some = [(p, true) for p, true in listed if low <= p < high]
        means = [round(float(np.mean([s[i] for s in some])), 3) if some else None for i in (0, 1)]
        table.append({"from": low, "to": high, "n": len(some), "said": means[0], "true": means[1]})
    return table


if __name__ == "__main__":
    main()
