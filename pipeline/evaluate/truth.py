"""The truth of a simulated movie, and how far a denoised movie is from it."""

from __future__ import annotations

import functools
import math
import zipfile
import zlib
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
from numpy.typing import NDArray

from tdenoise.evaluation import change_detection, events, metrics
from tdenoise.files.json_documents import parse_json

from ..errors import InputError
from ..inputs.paired import SLAB_FRAMES, Slab, slab_frames
from ..store import store
from ..store.blocks import spans
from .evaluation_result import ErrorEstimate, FramesError, PooledEstimate
from .truth_result import AgainstTruthFigures, Baseline, EventLimit, MovieEvents, Told

Array = NDArray[Any]

WRONG_DOSE = 0.05  # a truth whose dose is further off belongs to another movie
LEVEL_ELECTRONS = 100  # of a group of pixels; of fewer, the median is clearly below the mean
MOVING_AVERAGE = 9  # frames; its key in a result says so, too
REGIONS = {"particle": "particle_mask", "changing": "changing_mask"}
EVENTS = ("events", "col_pos", "col_occ", "col_n_full")


@dataclass(frozen=True)
class Truth:
    """A clean movie and what happens in it, of a file in the format of `tdenoise.simulation.nanoparticle`."""

    clean: Array  # (n_frames, height, width) float32, vacuum = 1
    masks: dict[str, Array]  # of the regions, and "vacuum"
    events: dict[str, Array]  # the arrays EVENTS, as `tdenoise.evaluation.events` takes them
    level: float  # counts in vacuum: the dose times the counts per electron
    dose: float
    exact: bool  # whether the counts are expected to be level * clean, without blur


def check_truth(path: Path, shape: tuple[int, int, int]) -> None:
    """Refuse a file that cannot be the truth of a movie of this shape; only headers are read, no movie.

    Whether the doses fit is seen by `load_truth`, which has the movie.

    Parameters
    ----------
    path : Path
    shape : tuple of int
        (n_frames, height, width) of the movie.

    Raises
    ------
    InputError
        If the file is missing or damaged, lacks arrays, or their shapes do not fit.
    """
    with _opened(path) as file:
        _check_arrays(path, file, shape)
        _doses(path, file)


def load_truth(path: Path, movie: store.Store) -> Truth:
    """Read a truth and check that it is that of the movie.

    Raises
    ------
    InputError
        If the file is damaged, lacks arrays, or its shapes or doses do not fit the movie.
    """
    with _opened(path) as file:
        _check_arrays(path, file, movie.shape)
        clean, masks, found, levels = _parse(path, file)
    if not all(np.isfinite(a).all() for a in (clean, *found.values())):
        raise InputError(path, f"holds NaN or Inf in clean, {', '.join(EVENTS[:-1])} or {EVENTS[-1]}.")
    columns, n_columns = found["events"][:, 1], found["col_pos"].shape[1]
    if len(columns) and (columns.min() < 0 or columns.max() >= n_columns):
        raise InputError(path, "its events name columns that col_pos does not hold.")
    if found["col_occ"].shape[1] != n_columns or len(found["col_n_full"]) != n_columns:
        raise InputError(path, "its col_pos, col_occ and col_n_full hold different numbers of columns.")
    observed = _observed_level(movie, clean, min(entry[1] for entry in levels))
    level, dose, exact = min(levels, key=lambda entry: abs(entry[0] - observed) / entry[0])
    if not abs(observed / level - 1) <= WRONG_DOSE:
        offered = ", ".join(f"{entry[0]:g}" for entry in levels)
        raise InputError(
            path,
            f"belongs to another movie: it was made for {offered} counts per pixel in vacuum, {movie.path} "
            f"has {observed:.4g}.",
        )
    return Truth(clean, masks, found, level, dose, exact)


@contextmanager
def _opened(path: Path) -> Iterator[Any]:
    """An NPZ file, nothing of which has been read but the list of its arrays."""
    try:
        with path.open("rb") as handle:
            if handle.read(len(np.lib.format.MAGIC_PREFIX)) == np.lib.format.MAGIC_PREFIX:
                raise InputError(path, "is a single array; a truth is an NPZ file with several.")
            handle.seek(0)
            with np.load(handle, allow_pickle=False) as file:
                yield file
    except FileNotFoundError:
        raise InputError(path, "no such file") from None
    except (
        OSError,
        ValueError,
        EOFError,
        MemoryError,
        RuntimeError,
        zipfile.BadZipFile,
        zlib.error,
    ) as error:
        raise InputError(path, f"is not a readable NPZ file of arrays ({error})") from None


def _check_arrays(path: Path, file: Any, shape: tuple[int, int, int]) -> None:
    """Names, types and shapes of all arrays, before anything of that size is allocated."""
    clean: dict[str, tuple[int | None, ...]] = {"clean": shape}
    if "clean.npy" not in file.zip.namelist():
        clean = {"clean_q": shape, "clean_scale": (), "clean_offset": ()}
    masks = dict.fromkeys([*REGIONS.values(), "vacuum_mask"], shape[1:])
    columns: dict[str, tuple[int | None, ...]] = {
        "events": (None, 4),
        "col_pos": (shape[0], None, 2),
        "col_occ": (shape[0], None),
        "col_n_full": (None,),
        "attrs": (),
    }
    for name, wanted in {**clean, **masks, **columns}.items():
        _check_array(path, file, name, wanted)


def _check_array(path: Path, file: Any, name: str, shape: tuple[int | None, ...]) -> None:
    """Type and shape of one array, from its header."""
    if f"{name}.npy" not in file.zip.namelist():
        raise InputError(path, f"holds no array {name!r}, so it is not the truth of a movie.")
    with file.zip.open(f"{name}.npy") as member:
        version = np.lib.format.read_magic(member)
        read_header = np.lib.format.read_array_header_1_0
        if version != (1, 0):
            read_header = np.lib.format.read_array_header_2_0
        found, _, dtype = read_header(member)
    fits = len(found) == len(shape) and all(n in (None, m) for n, m in zip(shape, found, strict=True))
    if not fits or dtype.kind not in ("U" if name == "attrs" else "fiub"):
        wanted = "x".join("any" if n is None else str(n) for n in shape) or "a single value"
        shown = "x".join(map(str, found)) or "a single value"
        raise InputError(path, f"its array {name!r} is {dtype} of {shown}, where the movie needs {wanted}.")


def _parse(
    path: Path, file: Any
) -> tuple[Array, dict[str, Array], dict[str, Array], list[tuple[float, float, bool]]]:
    """Clean movie, masks, events and doses."""
    if "clean" in file:
        clean = file["clean"].astype(np.float32)
    else:
        clean = file["clean_q"] * np.float32(file["clean_scale"]) + np.float32(file["clean_offset"])
    masks = {name: file[key].astype(bool) for name, key in {**REGIONS, "vacuum": "vacuum_mask"}.items()}
    return clean, masks, {name: file[name] for name in EVENTS}, _doses(path, file)


def _doses(path: Path, file: Any) -> list[tuple[float, float, bool]]:
    try:
        return _levels(parse_json(str(file["attrs"])))
    except (KeyError, TypeError, AttributeError):
        raise InputError(path, "its attrs do not list the doses under 'noise'") from None


def _observed_level(movie: store.Store, clean: Array, dose: float) -> float:
    """Counts in vacuum: the median over groups of pixels, which a few hot pixels do not move."""
    counts = np.zeros(movie.shape[1:])
    for span in spans(len(clean), slab_frames(movie.shape)):
        counts += store.read_frames(movie, *span).sum(axis=0, dtype=np.float64)
    size = min(counts.size, math.ceil(LEVEL_ELECTRONS / max(dose * len(clean), 1e-9)))
    starts = np.arange(0, counts.size, size)
    expected = clean.sum(axis=0, dtype=np.float64)
    seen, expected = (np.add.reduceat(a.ravel(), starts) for a in (counts, expected))
    lit = expected > 0
    return float(np.median(seen[lit] / expected[lit])) if lit.any() else math.nan


def _levels(attrs: dict[str, Any]) -> list[tuple[float, float, bool]]:
    """Counts in vacuum, dose, and whether the expectation is exact, of every noisy movie of a truth."""
    levels = []
    for entry in attrs["noise"]:
        dose = float(entry["dose"])
        level = dose * float(entry.get("counts_per_electron", 1.0))
        if not 0 < level < math.inf:
            raise ValueError(f"a dose of {dose}")
        levels.append((level, dose, "gaussian_filter" not in str(entry.get("expected_value", ""))))
    if not levels:
        raise KeyError("noise")
    return levels


class AgainstTruth:
    """Errors of the denoised and of the noisy movie, slab by slab."""

    def __init__(self, truth: Truth) -> None:
        self._truth = truth
        regions = {name: truth.masks[name] for name in REGIONS}
        self._denoised, self._noisy = (metrics.TruthErrorSums(regions) for _ in range(2))
        self._by_frame = np.zeros(len(truth.clean))  # mean squared error, vacuum = 1
        self._vacuum, self._vacuum_clean = metrics.Moments(), metrics.Moments()

    def add(self, slab: Slab) -> None:
        """Take in the next slab."""
        truth, vacuum = self._truth, self._truth.masks["vacuum"]
        # Frames that were not recorded may be NaN where there was nothing to predict them from.
        known = np.isfinite(slab.denoised[slab.own][:, 0, 0]) & slab.sound[slab.own]
        clean = truth.clean[slice(*slab.frames)][known]
        denoised = slab.denoised[slab.own][known] / truth.level
        self._denoised.add(denoised, clean)
        self._noisy.add(slab.counts[slab.own][known] / truth.level, clean)
        self._vacuum.add(denoised[:, vacuum])
        self._vacuum_clean.add(clean[:, vacuum])
        errors = np.square(denoised - clean, dtype=np.float64).mean(axis=(1, 2))
        self._by_frame[np.arange(*slab.frames)[known]] = errors

    def compared(self, estimate: FramesError, frames: list[int]) -> FramesError:
        """An estimate of the error in some frames, completed with the true one in the same frames."""
        if estimate["mse"] is None:
            return estimate
        true = float(self._by_frame[frames].mean()) * self._truth.level**2
        return {**estimate, "mse": self._beside(estimate["mse"], true)}

    def compared_regions(self, estimates: dict[str, ErrorEstimate]) -> dict[str, ErrorEstimate]:
        """Estimates of the error inside regions, completed with the true ones."""
        errors = self._denoised.result().mse
        compared: dict[str, ErrorEstimate] = {}
        for name, estimate in estimates.items():
            mse = estimate["mse"]
            if mse is not None:
                mse = self._beside(mse, errors[name] * self._truth.level**2)
            compared[name] = {"mse": mse, "nmse": estimate["nmse"]}
        return compared

    def _beside(self, mse: PooledEstimate, true: float) -> PooledEstimate:
        # Counts that a detector blurred do not estimate the sharp truth.
        agrees = mse["low"] <= true <= mse["high"] if self._truth.exact else None
        return {**mse, "true": true, "agrees": agrees}

    def result(self, movie: store.Store, denoised: store.Store) -> AgainstTruthFigures:
        """What only the truth can tell."""
        truth = self._truth
        error = self._denoised.result()
        columns = change_detection.changing_columns(truth.clean, truth.events)
        seen = Events(truth, columns)
        denoised_events = seen.of(_frames(denoised, truth.level))
        n_seen = denoised_events["n_changes"]
        return {
            "dose": truth.dose,
            "psnr": _by_region(error),
            "psnr_noisy": _by_region(self._noisy.result()),
            "range": error.peak,
            "vacuum_std": self._vacuum.std,
            "vacuum_std_clean": self._vacuum_clean.std,
            "n_events": len(truth.events["events"]),
            "n_events_isolated": n_seen,
            "events": {
                "limit": seen.limit(_frames(movie, truth.level / truth.dose)),
                "denoised": denoised_events,
                "moving_average_9": seen.of(_moving_average(movie, truth.level)),
            },
        }


def _by_region(error: metrics.TruthError) -> dict[str, float | None]:
    return {name: error.psnr.get(name) for name in ("all", *REGIONS)}


def _frames(movie: store.Store, level: float) -> Callable[[int], Array]:
    """Frames of a store in units of a level, of which a few are kept."""
    length = slab_frames(movie.shape)

    @functools.lru_cache(maxsize=3)
    def slab(number: int) -> Array:
        return store.read_frames(movie, number * length, min(movie.shape[0], (number + 1) * length))

    def frame(k: int) -> Array:
        found: Array = slab(k // length)[k % length] / level
        return found

    return frame


def _moving_average(movie: store.Store, level: float) -> Callable[[int], Array]:
    half = MOVING_AVERAGE // 2
    single = _frames(movie, level)

    def average(k: int) -> Array:
        around = range(max(0, k - half), min(movie.shape[0], k + half + 1))
        mean: Array = np.mean([single(i) for i in around], axis=0)
        return mean

    return average


class Events:
    """What becomes of the changes of columns in a movie, and what becomes of them at best."""

    def __init__(self, truth: Truth, columns: list[change_detection.Column]) -> None:
        self._truth, self._columns = truth, columns

    def of(self, frames: events.Frames) -> MovieEvents:
        """Of a movie in units of the vacuum."""
        truth = self._truth
        clean, known = truth.clean, truth.events
        smeared = events.bleed(frames, clean, known)
        intervals = [
            metrics.bootstrap_ratio(numerators, smeared.denominators)[1:] if smeared.n_events > 1 else None
            for numerators in smeared.numerators
        ]
        part = change_detection.part_occupied(frames, clean, known)
        return {
            "bleed": _by_offset(smeared.offsets, smeared.values),
            "bleed_interval": _by_offset(smeared.offsets, intervals),
            "n_changes": smeared.n_events,
            **self._told(change_detection.state_scores(frames, clean, self._columns, known)),
            "part_occupied": {"ratio": part.ratio, "n_columns": len(part.columns), "n_frames": part.n_frames},
        }

    def limit(self, electrons: events.Frames) -> EventLimit:
        """Of the ideal observer of the raw frames [electrons]."""
        truth = self._truth
        clean, known = truth.clean, truth.events
        sharp, mixed = (
            events.bleed_limit(clean, known, truth.dose, mixed_frame=mixed) for mixed in (False, True)
        )
        scores = change_detection.observed_states(electrons, clean, self._columns, known, truth.dose)
        reached = change_detection.bleed_of_scores(scores, self._columns, known, clean.shape)
        return {
            "bleed": _by_offset(sharp.offsets, sharp.values),
            "bleed_with_mixed_frame": _by_offset(mixed.offsets, mixed.values),
            "bleed_on_these_counts": _by_offset(reached.offsets, reached.values),
            **self._told(scores),
        }

    def _told(self, scores: Array) -> Told:
        truth = self._truth
        found = change_detection.detection(scores, self._columns, truth.events, truth.clean.shape)
        return {"auc": found.auc, "delay": found.delay, "missed": found.missed}


T = TypeVar("T")


def _by_offset(offsets: tuple[int, ...], values: Sequence[T]) -> dict[str, T]:
    return dict(zip([f"{o:+d}" if o else "0" for o in offsets], values, strict=True))


def baseline(truth: Truth, movie: store.Store) -> Baseline:
    """The best that a Gaussian in space and time can do on this movie."""
    counts = store.read_frames(movie, 0, movie.shape[0])
    best = metrics.best_gaussian(counts, truth.clean, truth.level)
    error = metrics.TruthErrorSums({name: truth.masks[name] for name in REGIONS})
    vacuum = metrics.Moments()
    for start, stop in spans(len(best.filtered), SLAB_FRAMES):
        error.add(best.filtered[start:stop], truth.clean[start:stop])
        vacuum.add(best.filtered[start:stop, truth.masks["vacuum"]])
    return {
        "filter": "3D Gaussian, widths chosen with the truth",
        "sigma_t_frames": best.sigma_t,
        "sigma_xy_pixels": best.sigma_xy,
        "psnr": _by_region(error.result()),
        "vacuum_std": vacuum.std,
        "events": Events(truth, change_detection.changing_columns(truth.clean, truth.events)).of(
            best.filtered
        ),
    }
