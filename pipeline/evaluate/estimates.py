"""Estimates of the error that need no truth, and what the residual shows, slab by slab.

A model that is trained on the frames it denoises may learn their noise by heart, which makes the error estimated
there too small. So the error is estimated apart for the frames that were held out, and where these contradict, they
are the ones whose error is stated.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tdenoise.evaluation import metrics, residuals
from tdenoise.noise import noise
from tdenoise.noise.noise import NoiseStatistics

from ..errors import InputError
from ..inputs.paired import SLAB_FRAMES, Slab, slab_frames
from ..store import store
from ..store.blocks import spans
from .evaluation_result import (
    ErrorEstimate,
    Errors,
    Estimate,
    FramesError,
    PeakRatio,
    PooledEstimate,
    RemovedFigures,
    StatedError,
)

Array = NDArray[Any]

BAND_PIXELS = 2**21  # of a slab whose terms are computed at once, in float64
RESIDUAL_PIXELS = 2**28  # looked at in the residual: shows correlations of 0.0002
# Of some 25 lags one lies outside two standard deviations by chance; none outside four, which is twice the bound.
WHITE_LIMIT = 2.0


@dataclass(frozen=True)
class NoiseLaw:
    """How large the noise of a pixel is, and with that how the error is estimated."""

    estimator: str  # "poisson": variance = gain * counts; "temporal": from the neighbouring frames
    gain: float  # variance per count
    variance: float  # of the noise of the whole movie, on average [counts squared]
    read_variance: float = 0.0  # that does not depend on the signal [counts squared]

    def residual_check(self) -> residuals.ResidualCheck:
        """For residuals divided by the noise of every pixel; by that of the movie where only it is known."""
        if self.gain > 0:
            return residuals.ResidualCheck(gain=self.gain, read_variance=self.read_variance)
        return residuals.ResidualCheck(gain=0.0, read_variance=self.variance)


def noise_law(movie: store.Store) -> NoiseLaw:
    """The law that fits the noise measured at ingest; the temporal one fits any noise."""
    if movie.attributes["noise"] is None:
        raise InputError(movie.path, "its noise could not be measured, so no error can be estimated.")
    measured = NoiseStatistics.from_json(movie.attributes["noise"])
    if not measured.noise_variance > 0:
        raise InputError(movie.path, "holds no noise, so there is no error of a denoised movie to estimate.")
    law = noise.noise_law(measured, movie.attributes["detector"]["counts_per_electron"])
    mean = movie.attributes["mean"]
    if law is not None and mean is not None:
        variance = law.gain * mean + law.read_variance
        return NoiseLaw("poisson", law.gain, variance, law.read_variance)
    gain = measured.fano if math.isfinite(measured.fano) else 0.0
    return NoiseLaw("temporal", gain, measured.noise_variance)


def error_terms(slab: Slab, noise: NoiseLaw) -> Array:
    """Terms whose mean is the mean squared error of a blind prediction of a slab's own frames."""
    counts, denoised = slab.counts[slab.own], slab.denoised[slab.own]
    return metrics.unbiased_mse_terms(counts, denoised, noise.gain, noise.read_variance)


class Blocks:
    """Block sums of one kind of term, collected over slabs."""

    def __init__(self, extent: int) -> None:
        self._block = (SLAB_FRAMES, extent, extent)
        self._sums: list[Array] = []
        self._counts: list[Array] = []

    def add(self, terms: Array, mask: Array | None = None) -> None:
        """Take in one term per pixel of successive frames, or of those pixels that a mask shows."""
        if terms.size:
            sums, counts = metrics.block_sums(terms, self._block, mask)
            self._sums.append(sums)
            self._counts.append(counts)

    def interval(self) -> metrics.Interval | None:
        """Mean and its 95 % interval; None from fewer than two blocks, which say nothing of their spread."""
        if sum(np.count_nonzero(c) for c in self._counts) < 2:
            return None
        sums, counts = np.concatenate(self._sums), np.concatenate(self._counts)
        return metrics.bootstrap_interval(sums, counts)

    def n_pixels(self) -> int:
        """Number of terms."""
        return int(sum(c.sum() for c in self._counts))


class Estimates:
    """Every estimate of the error that needs no truth, slab by slab."""

    def __init__(
        self,
        noise: NoiseLaw,
        held_out: frozenset[int],
        shape: tuple[int, int, int],
        regions: Mapping[str, Array] | None = None,
        blind: bool = True,
    ) -> None:
        # About 1000 blocks per slab at most: of a large frame they are larger.
        extent = 32 * max(1, round(max(shape[1:]) / 1024))
        self._noise = noise
        # The temporal estimator needs both neighbours of a frame.
        known = range(shape[0]) if noise.estimator == "poisson" else range(1, shape[0] - 1)
        self.frames = {"all_frames": list(known), "held_out": sorted(held_out.intersection(known))}
        self._held_out = held_out
        self._band = extent * max(1, BAND_PIXELS // (SLAB_FRAMES * shape[2] * extent))
        self.error, self.held_error, self.umse, self.excess = (Blocks(extent) for _ in range(4))
        self._regions = dict(regions or {})
        self._of_regions = {name: Blocks(extent) for name in self._regions}
        self._blind = blind

    def add(self, slab: Slab) -> None:
        """Take in the next slab."""
        for rows in spans(slab.counts.shape[1], self._band):
            counts, denoised = (a[:, slice(*rows)] for a in (slab.counts, slab.denoised))
            variance = None if slab.variance is None else slab.variance[:, slice(*rows)]
            levels = slab.levels
            if levels is not None and levels.shape[1] > 1:
                levels = levels[:, slice(*rows)]
            band = replace(slab, counts=counts, denoised=denoised, variance=variance, levels=levels)
            self._add_band(band, slice(*rows))

    def _add_band(self, band: Slab, rows: slice) -> None:
        n_frames = len(band.counts)
        sound = band.sound
        between, inner = np.empty((0, 0, 0)), np.empty(0, dtype=bool)
        if n_frames > 2:
            # Neighbours are compared at one brightness.
            inner = sound[2:] & sound[1:-1] & sound[:-2]
            levels = np.ones((n_frames, 1, 1)) if band.levels is None else band.levels
            y = band.counts / levels
            smooth = band.denoised / levels[: len(band.denoised)]
            between = metrics.temporal_mse_terms(y, smooth)
            if self._blind:
                self.umse.add(between[inner[: len(between)]])
        if self._noise.estimator == "poisson":
            terms = error_terms(band, self._noise)
            self._add_terms(terms, band.frames[0], rows, sound[band.own])
            # The noise between neighbouring frames, less what the law says: the prediction plays no part.
            if n_frames > 2:
                own = (1 / levels[2:] + 1 / levels[:-2]) / 2
                law = self._noise.gain * y[1:-1] * own + self._noise.read_variance * np.square(own)
                self.excess.add(((y[2:] - y[:-2]) ** 2 / 2 - law)[inner])
        elif n_frames > 2:
            self._add_terms(between, band.frames[0] + 1 - band.before, rows, inner[: len(between)])

    def _add_terms(self, terms: Array, first: int, rows: slice, sound: Array) -> None:
        if not self._blind:
            return  # of a prediction that has seen its own pixel, they are too small by an unknown amount
        held = np.array([first + k in self._held_out for k in range(len(terms))], dtype=bool)
        self.held_error.add(terms[held & sound])
        terms = terms[sound]
        self.error.add(terms)
        for name, mask in self._regions.items():
            self._of_regions[name].add(terms, mask[rows])

    def result(self, mean_frame: Array) -> Errors:
        """The estimates as plain values."""
        peak = float(np.percentile(mean_frame, 99.9))
        every = self._of_frames("all_frames", self.error)
        held_out = self._of_frames("held_out", self.held_error) if self._held_out else None
        excess, umse = _estimate(self.excess), _estimate(self.umse)
        upsnr: PeakRatio | None = None
        if umse is not None and umse["resolvable"]:
            # The ratio falls where the error grows.
            upsnr = {
                "estimate": metrics.psnr(umse["estimate"], peak),
                "low": metrics.psnr(umse["high"], peak),
                "high": metrics.psnr(umse["low"], peak),
            }
        return {
            "estimator": self._noise.estimator,
            "gain": self._noise.gain,
            "noise_variance": self._noise.variance,
            "noise_excess": None if excess is None else _scaled(excess, 1 / self._noise.variance),
            **headline(every, held_out),
            "all_frames": every,
            "held_out": held_out,
            "regions": {name: self._in_words(blocks) for name, blocks in self._of_regions.items()},
            "blind": self._blind,
            # A model that sees the frames around cannot be tested on them: its own frame is the reference.
            "umse": umse,
            "umse_references": [0, 1, -1],
            "upsnr": upsnr,
            "peak": peak,
            "peak_is": "99.9th percentile of the mean frame [counts]",
        }

    def _of_frames(self, name: str, blocks: Blocks) -> FramesError:
        return {"n_frames": len(self.frames[name]), **self._in_words(blocks)}

    def _in_words(self, blocks: Blocks) -> ErrorEstimate:
        """An error, and as a share of the noise."""
        mse = _estimate(blocks)
        nmse = None if mse is None else _scaled(mse, 1 / self._noise.variance)
        return {"mse": mse, "nmse": nmse}


def _estimate(blocks: Blocks) -> PooledEstimate | None:
    found = blocks.interval()
    if found is None:
        return None
    return {
        "estimate": found.estimate,
        "low": found.low,
        "high": found.high,
        "resolvable": bool(found.low > 0),
        "n_pixels": blocks.n_pixels(),
    }


def interval(found: metrics.Interval) -> Estimate:
    """A figure with its interval as it is told."""
    return {"estimate": found.estimate, "low": found.low, "high": found.high}


def _scaled(found: PooledEstimate, factor: float) -> PooledEstimate:
    return {
        **found,
        "estimate": factor * found["estimate"],
        "low": factor * found["low"],
        "high": factor * found["high"],
    }


def headline(all_frames: FramesError, held_out: FramesError | None) -> StatedError:
    """The error to state: of all frames, which is the more precise, unless the held-out ones contradict it."""
    if held_out is not None and learnt_by_heart(all_frames, held_out):
        return {"frames": "held_out", "mse": held_out["mse"], "nmse": held_out["nmse"]}
    return {"frames": "all", "mse": all_frames["mse"], "nmse": all_frames["nmse"]}


def learnt_by_heart(all_frames: ErrorEstimate, held_out: ErrorEstimate) -> bool:
    """Whether all frames look better than an error can be, or clearly better than the held-out ones."""
    if all_frames["mse"] is None or held_out["mse"] is None:
        return False
    return all_frames["mse"]["high"] < 0 or clearly_less(all_frames["mse"], held_out["mse"])


def clearly_less(one: Estimate, other: Estimate) -> bool:
    """Whether one estimate lies below another by more than both intervals together explain."""
    explained = math.hypot(one["high"] - one["estimate"], other["estimate"] - other["low"])
    return bool(other["estimate"] - one["estimate"] > explained)


class Residual:
    """What was removed, on evenly spread slabs: is it noise and nothing else?"""

    def __init__(self, noise: NoiseLaw, shape: tuple[int, int, int]) -> None:
        self._noise = noise
        length = slab_frames(shape)
        n_slabs = -(-shape[0] // length)
        wanted = max(1, RESIDUAL_PIXELS // (length * shape[1] * shape[2]))
        chosen = np.linspace(0, n_slabs - 1, min(n_slabs, wanted)).round()
        self._starts = {length * int(number) for number in chosen}
        self._reports: list[residuals.ResidualReport] = []
        self._lattice = residuals.LatticeCheck()

    def add(self, slab: Slab) -> None:
        """Take in the next slab, if it is one of those chosen."""
        if slab.frames[0] in self._starts:
            check = self._noise.residual_check()
            sound = slab.sound[slab.own]
            if not sound.any():
                return
            pair = slab.counts[slab.own][sound], slab.denoised[slab.own][sound]
            check.add(*pair)
            self._reports.append(check.result())
            self._lattice.add(*pair)

    def result(self) -> RemovedFigures:
        """Averages over the slabs."""
        reports = self._reports
        weights = [r.n_pixels for r in reports]

        def pooled(value: Callable[[residuals.ResidualReport], Any]) -> Any:
            values = np.array([value(r) for r in reports])
            known = np.isfinite(values)
            shares = known * np.reshape(weights, (-1,) + (1,) * (values.ndim - 1))
            total = np.asarray(shares.sum(axis=0), float)
            return np.where(known, shares * values, 0).sum(axis=0) / np.where(total > 0, total, math.nan)

        lags = pooled(lambda r: r.autocorrelation)
        middle = lags.shape[1] // 2
        t = float(pooled(lambda r: r.temporal_autocorrelation))
        others = np.append(np.delete(lags.ravel(), middle), t)  # all but lag zero
        others = np.abs(others[np.isfinite(others)])
        bound = 2 / math.sqrt(sum(weights))
        largest = float(others.max()) if others.size else None
        lattice = self._lattice.result()
        return {
            "residual": {
                "mean": float(pooled(lambda r: r.mean)),
                "variance": float(pooled(lambda r: r.variance)),
                "autocorrelation": {
                    "y": lags[1:, middle].tolist(),
                    "x": lags[0, middle + 1 :].tolist(),
                    "t": t,
                },
                "map": lags.tolist(),
                "bound": bound,
                "limit": WHITE_LIMIT * bound,
                "largest": largest,
                "white": None if largest is None else largest <= WHITE_LIMIT * bound,
                "frequency": reports[0].frequency.tolist(),
                "power": pooled(lambda r: r.power).tolist(),
                "n_pixels": sum(weights),
            },
            "lattice": {
                "n_spots": len(lattice.spots),
                "spots": lattice.spots.tolist(),
                "ratio": lattice.ratio,
                "sd": lattice.sd,
                "amplitude_lost": lattice.lost,
                "removed": lattice.lost > 0,
                "noise_kept": bool(lattice.ratio < 1 - 4 * lattice.sd),
            },
        }
