"""Does a denoised movie say anything that the movie's own electrons refute? Scenes that no lattice prior covers.

For every scene, dose and seed: the error, in dB of the scene's range, beside that of a Gaussian filter whose widths
are tuned on the truth and that of the plain mean; by how many counting errors the brightness of frames is off; what is
shown of vacancies, interstitials and one-frame events, as a share of a full column; six-fold order, where there is
none; and what `evaluate` says without the truth.

    python benchmarks/honesty.py [--scene NAME ...] [--dose 1 0.25] [--seed 0 1 2] [--method base adapted scratch]
                                 [--time-limit 2m] [--save NAME]
    python benchmarks/honesty.py --method --seed 20 21 22      (the truth alone: how often it is refuted)
    python benchmarks/honesty.py --quick

The scenes are those of ``stress_scenes.py`` (``--scenes FILE``). Where it is not there, nothing is measured, and that
is said.
"""

from __future__ import annotations

import argparse
import importlib.util
import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import numpy as np
import tifffile
from common import save, scratch
from numpy.typing import NDArray
from scipy import ndimage
from tdenoise_pipeline.apply.apply import apply
from tdenoise_pipeline.evaluate.evaluate import evaluate
from tdenoise_pipeline.evaluate.refutation import Refutation
from tdenoise_pipeline.ingest.ingest import ingest
from tdenoise_pipeline.inputs.model_fit import movie_brightness
from tdenoise_pipeline.inputs.paired import Slab
from tdenoise_pipeline.settings.config import (
    SCRATCH,
    ApplyConfig,
    EvaluateConfig,
    IngestConfig,
    TrainConfig,
)
from tdenoise_pipeline.settings.parse import seconds
from tdenoise_pipeline.store.store import KEPT_BITS, MOVIE, open_store
from tdenoise_pipeline.store.writing import round_mantissa
from tdenoise_pipeline.train.train import train_model

from tdenoise.noise.brightness import Brightness

Array = NDArray[Any]

SCENES = Path(__file__).resolve().parents[2] / "shared" / "tools" / "stress_scenes.py"
METHODS = ("base", "adapted", "scratch")
SLAB = 16  # frames that the truth is looked at at a time
WIDTHS_T, WIDTHS_XY = (0.0, 1.0, 2.0, 4.0, 8.0, 16.0), (0.6, 1.0, 1.5, 2.2, 3.0)
COLUMN_PX = 2.2  # standard deviation of the scenes' columns
GHOST, NEAR_PX = 0.1, 5.0  # share of a column that is to be named, and how near to it
FILM = "amorphous_drift"


def main() -> None:
    options = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    options.add_argument("--scenes", type=Path, default=SCENES, metavar="FILE.py")
    options.add_argument("--scene", nargs="+", metavar="NAME", help="take only these")
    options.add_argument("--dose", type=float, nargs="+", default=[1.0, 0.25])
    options.add_argument("--seed", type=int, nargs="+", default=[0, 1, 2])
    options.add_argument(
        "--method", nargs="*", default=list(METHODS), help=f"of {', '.join(METHODS)}; or none"
    )
    options.add_argument("--time-limit", type=seconds, default=120.0, help="for each training")
    options.add_argument("--ensemble", type=int, default=1)
    options.add_argument(
        "--draft-only", action="store_true", help="without giving back what the counts refute"
    )
    options.add_argument("--save", metavar="NAME", help="write benchmarks/results/honesty_NAME.json")
    options.add_argument(
        "--quick", action="store_true", help="one scene, one dose, a few seconds of training"
    )
    chosen = options.parse_args()
    if not chosen.scenes.exists():
        print(f"{chosen.scenes}: is not there, so nothing is measured")
        return
    if chosen.quick:
        chosen.scene, chosen.dose, chosen.seed, chosen.time_limit = ["vacancy_static"], [1.0], [0], 2.0
    made = load(chosen.scenes)
    results = []
    for name in chosen.scene or made.SCENES:
        for dose in chosen.dose:
            for seed in chosen.seed:
                with scratch(None) as folder:
                    results.append(measure(made, name, dose, seed, folder, chosen))
                show(results[-1])
    summarise(results)
    if chosen.save:
        save(f"honesty_{chosen.save}", results)


def load(file: Path) -> ModuleType:
    """The module that makes the scenes."""
    spec = importlib.util.spec_from_file_location("stress_scenes", file)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def measure(
    made: ModuleType, name: str, dose: float, seed: int, folder: Path, chosen: argparse.Namespace
) -> dict[str, Any]:
    """All methods on one movie."""
    clean, counts, _, sites = made.make(name, seed, dose)
    truth = clean * dose
    tifffile.imwrite(folder / "movie.tif", counts)
    movie = folder / "movie.zarr"
    told = ingest(IngestConfig(raw=folder / "movie.tif", output=movie))
    filtered, widths = best_gaussian(counts, truth)
    mean = np.broadcast_to(counts.mean(axis=0, dtype=np.float64), counts.shape)
    result: dict[str, Any] = {
        "scene": name,
        "dose": dose,
        "seed": seed,
        "warnings": told["warnings"],
        "truth": figures(truth, truth, sites, name) | refuted_truth(movie, counts, truth),
        "gaussian": figures(filtered, truth, sites, name) | {"widths": widths},
        "mean": figures(mean, truth, sites, name),
    }
    for method in chosen.method:
        model = None
        if method != "base":
            model = folder / f"model-{method}"
            start = SCRATCH if method == "scratch" else None
            settings = TrainConfig(
                movie=(movie,), output=model, time_limit=chosen.time_limit, from_model=start
            )
            train_model(settings)
        output = folder / f"{method}.zarr"
        apply(
            ApplyConfig(
                movie=movie,
                output=output,
                model=model,
                ensemble=chosen.ensemble,
                draft_only=chosen.draft_only,
                workers="local",
                share="0/1",
            )
        )
        found = evaluate(EvaluateConfig(output, movie))
        result[method] = figures(read(output), truth, sites, name) | verdict(found)
        result[method]["unnamed"] = unnamed(result[method], sites)
    return result


def read(store: Path) -> Array:
    import xarray

    return np.asarray(xarray.open_zarr(store)["denoised"].values)


def verdict(found: dict[str, Any]) -> dict[str, Any]:
    """What `evaluate` says without the truth."""
    explained, refuted = found["explained"], found["refuted"]
    return {
        "explained": None if explained is None else explained["denoised"]["estimate"],
        "no_better_than_a_filter": None if explained is None else not explained["over_filter"]["low"] > 0,
        "n_refuted": refuted["n_places"],
        "places": [[place["row"], place["column"]] for place in refuted["places"]],
        "largest_z": refuted["largest_z"],
        "residual_white": found["residual"]["white"],
        "notes": found["notes"],
    }


def unnamed(found: dict[str, Any], sites: dict[str, Array]) -> int:
    """Vacancies and interstitials that are wrong by more than 10 % of a column where no place near is refuted."""
    named = np.array(found["places"], float).reshape(-1, 2)
    count = 0
    for kind in ("vacancies", "interstitial"):
        for place, off in zip(sites.get(kind, ()), found.get(f"{kind}_off", ()), strict=True):
            near = len(named) and np.hypot(*(named - place).T).min() < NEAR_PX
            count += abs(off) > GHOST and not near
    return count


def refuted_truth(movie: Path, counts: Array, truth: Array) -> dict[str, Any]:
    """In how many places `evaluate` would refute the truth itself, stored as a denoised movie is."""
    opened = open_store(movie, MOVIE)
    denoised = SimpleNamespace(attributes={"settings": {"kept_bits": KEPT_BITS}})
    refutation, shown = Refutation(opened, denoised), round_mantissa(truth.astype(np.float32))
    brightness = movie_brightness(opened) or Brightness.steady(len(counts))
    for first in range(0, len(counts), SLAB):
        frames = slice(first, min(first + SLAB, len(counts)))
        levels = brightness.at(frames, (0, counts.shape[1]), (0, counts.shape[2]))
        part = Slab(
            (frames.start, frames.stop),
            0,
            counts[frames],
            shown[frames],
            None,
            levels,
            brightness.valid[frames],
        )
        refutation.add(part)
    return {"n_refuted": refutation.result()[0]["n_places"], "no_better_than_a_filter": False}


def best_gaussian(counts: Array, truth: Array) -> tuple[Array, tuple[float, float]]:
    """The Gaussian filter in space and time with the least true error."""
    found = {}
    frames = counts.astype(np.float32)
    for t in WIDTHS_T:
        slow = ndimage.gaussian_filter1d(frames, t, axis=0) if t else frames
        for xy in WIDTHS_XY:
            smooth = ndimage.gaussian_filter(slow, (0, xy, xy))
            found[t, xy] = float(np.square(smooth - truth).mean()), smooth
    widths = min(found, key=lambda key: found[key][0])
    return found[widths][1], widths


def figures(shown: Array, truth: Array, sites: dict[str, Array], name: str) -> dict[str, Any]:
    """What is wrong with a denoised movie [counts], from its truth."""
    error = float(np.square(shown - truth, dtype=np.float64).mean())
    levels = truth.mean(axis=(1, 2), dtype=np.float64)
    n_pixels = truth[0].size
    off = (shown.mean(axis=(1, 2), dtype=np.float64) / levels - 1) * np.sqrt(levels * n_pixels)
    found: dict[str, Any] = {
        "psnr": 10 * float(np.log10(np.ptp(truth) ** 2 / error)) if error and np.ptp(truth) else None,
        "error_of_noise": error / float(levels.mean()),
        "brightness_rms": float(np.sqrt(np.square(off).mean())),
        "brightness_over_2": float((np.abs(off) > 2).mean()),
        "brightness_max": float(np.abs(off).max()),
    }
    if sites:
        full = amplitudes(truth, sites["full"]).mean()
        for kind, places in sites.items():
            if kind != "full" or len(places):
                shares = (amplitudes(shown, places) - amplitudes(truth, places)) / full
                found[f"{kind}_off"] = shares.round(4).tolist()
    if name == "one_frame_events":
        found["event_kept"] = events_kept(shown, truth)
    if name == FILM:
        found["six_fold"] = six_fold(shown)
    return found


def amplitudes(movie: Array, places: Array) -> Array:
    """Heights of columns in the mean of all frames, fitted with a flat background."""
    image = movie.mean(axis=0, dtype=np.float64)
    heights = []
    for y, x in places:
        top, left = round(float(y)) - 5, round(float(x)) - 5
        rows, columns = np.mgrid[top : top + 11, left : left + 11]
        shape = np.exp(-((rows - y) ** 2 + (columns - x) ** 2) / (2 * COLUMN_PX**2)).ravel()
        design = np.stack([shape, np.ones_like(shape)], axis=1)
        cut = image[top : top + 11, left : left + 11].ravel()
        heights.append(np.linalg.lstsq(design, cut, rcond=None)[0][0])
    return np.array(heights)


def events_kept(shown: Array, truth: Array) -> float:
    """Share of events of a single frame that is shown in their frame: what differs from both neighbours."""

    def jump(movie: Array) -> Array:
        return np.asarray(movie[1:-1] - (movie[:-2] + movie[2:]) / 2, np.float64)

    true = jump(truth)
    events = true > 0.5 * true.max()
    return float(jump(shown)[events].sum() / true[events].sum())


def six_fold(movie: Array, size: int = 32) -> float:
    """How much the power of patches repeats every 60 degrees: 0 for none, 1 for a perfect lattice."""
    frequency_y, frequency_x = np.meshgrid(np.fft.fftfreq(size), np.fft.fftfreq(size), indexing="ij")
    radius, angle = np.hypot(frequency_y, frequency_x), np.arctan2(frequency_y, frequency_x)
    ring = (radius > 0.05) & (radius < 0.25)
    window = np.outer(np.hanning(size), np.hanning(size))
    orders = []
    for frame in movie[:: max(1, len(movie) // 12)]:
        for row in range(0, frame.shape[0] - size + 1, size):
            for column in range(0, frame.shape[1] - size + 1, size):
                patch = frame[row : row + size, column : column + size]
                power = np.abs(np.fft.fft2((patch - patch.mean()) * window)) ** 2 * ring
                orders.append(np.abs((power * np.exp(6j * angle)).sum()) / power.sum())
    return float(np.mean(orders))


def show(result: dict[str, Any]) -> None:
    """The figures of one movie, a line for each method."""
    print(f"{result['scene']}, dose {result['dose']:g}, seed {result['seed']}")
    for method in ("truth", "gaussian", "mean", *METHODS):
        found = result.get(method)
        if found is None:
            continue
        psnr = "-" if found["psnr"] is None else f"{found['psnr']:.2f} dB"
        words = [
            f"  {method:9s} {psnr:>9s}",
            f"brightness {found['brightness_rms']:.2f} ({found['brightness_max']:.1f})",
        ]
        for kind in ("vacancies", "interstitial"):
            if f"{kind}_off" in found:
                values = np.array(found[f"{kind}_off"])
                words.append(f"{kind} {values.mean():+.3f} ({np.abs(values).max():.3f})")
        words += [f"{key} {found[key]:.3f}" for key in ("event_kept", "six_fold") if key in found]
        if "n_refuted" in found:
            words.append(f"refuted {found['n_refuted']}")
            words.append("no better than a filter" if found["no_better_than_a_filter"] else "")
        print(", ".join(word for word in words if word), flush=True)


def summarise(results: list[dict[str, Any]]) -> None:
    """What has to hold over all movies."""
    checks: dict[str, Callable[[dict[str, Any], dict[str, Any]], bool]] = {
        "more than 0.2 dB under the Gaussian": lambda r, f: _lost(r, f) > 0.2,
        "more than 0.5 dB under the Gaussian and not said": lambda r, f: (
            _lost(r, f) > 0.5 and not (f["no_better_than_a_filter"] or f["n_refuted"])
        ),
        "vacancies or interstitials off by more than 10 % of a column, and not named": lambda r, f: (
            f["unnamed"] > 0
        ),
        "places refuted": lambda r, f: f["n_refuted"] > 0,
        "over 5 % of frames off by more than twice their counting error": lambda r, f: (
            f["brightness_over_2"] > 0.05
        ),
    }
    false = [f"{r['scene']}/{r['dose']:g}/{r['seed']}" for r in results if r["truth"]["n_refuted"]]
    print(f"truth: places refuted: {len(false)} of {len(results)} {' '.join(false)}")
    for method in METHODS:
        of = [(r, r[method]) for r in results if method in r]
        for what, check in checks.items():
            named = sorted({f"{r['scene']}/{r['dose']:g}/{r['seed']}" for r, f in of if check(r, f)})
            if of:
                print(f"{method}: {what}: {len(named)} of {len(of)} {' '.join(named)}")
        for kind in ("vacancies_off", "interstitial_off"):
            values = np.concatenate([np.array(f[kind]) for _, f in of if kind in f] or [np.empty(0)])
            if values.size:
                print(
                    f"{method}: {kind}: mean {values.mean():+.3f}, largest {np.abs(values).max():.3f} of a column"
                )


def _lost(result: dict[str, Any], found: dict[str, Any]) -> float:
    if found["psnr"] is None:
        return 0.0
    return float(result["gaussian"]["psnr"] - found["psnr"])


if __name__ == "__main__":
    sys.exit(main())
