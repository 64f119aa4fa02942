"""Evaluate: how good is a denoised movie, from the counts alone and, for simulated movies, against the truth.

Both stores are read once (with a truth, the movie twice), a few frames at a time, however long they are. The
estimators are those of ``tdenoise.metrics``.

A model that is trained on the frames it denoises may learn their noise by heart, which makes the error estimated
there too small. So the error is estimated apart for the frames that were held out, and where these contradict, they
are the ones whose error is stated.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tdenoise import metrics
from tdenoise.noise import NoiseStatistics

from . import store
from .blocks import spans
from .config import EvaluateConfig
from .control import Control
from .errors import InputError, UsageError
from .pairs import SLAB_FRAMES, Slab, open_pair, slab_frames, slabs
from .truth import AgainstTruth, baseline, load_truth

Array = NDArray[Any]

BAND_PIXELS = 2**21  # of a slab whose terms are computed at once, in float64
RESIDUAL_PIXELS = 2**28  # looked at in the residual: shows correlations of 0.0002


def evaluate(config: EvaluateConfig, control: Control | None = None) -> dict[str, Any]:
    """Measure a denoised movie.

    The stores may be of any length. A truth is held in memory as a whole,
    with ``baseline`` the counts too.

    Parameters
    ----------
    config : EvaluateConfig
    control : Control, optional

    Returns
    -------
    dict
        JSON-able; numbers that could not be measured are None. Errors are in counts squared. The estimated
        ``mse``, ``nmse`` and ``dose_gain`` are those of ``frames``, "all" or "held_out"; both are given in full
        under ``all_frames`` and ``held_out`` (None where no frame was held out). With a truth, every ``mse`` has
        the true error of its own frames beside it.

    Raises
    ------
    InputError
        If a store or the truth is missing or damaged, or they do not belong together.
    """
    return measure(config, control)[0]


def measure(config: EvaluateConfig, control: Control | None = None) -> tuple[dict[str, Any], Array]:
    """What `evaluate` returns, and the mean frame of the raw movie [counts]."""
    control = control or Control()
    if config.baseline and config.truth is None:
        raise UsageError("--baseline tunes a filter on the truth. Give it with --truth FILE.npz.")
    movie, denoised = open_pair(config.movie, config.denoised)
    noise = noise_law(movie)
    truth = None if config.truth is None else load_truth(config.truth, movie)
    held_out = frozenset(denoised.attributes["held_out_frames"])
    estimates = Estimates(noise, held_out, movie.shape)
    residual = Residual(noise, movie.shape)
    against = None if truth is None else AgainstTruth(truth)
    total = np.zeros(movie.shape[1:])
    for slab in slabs(movie, denoised, control):
        total += slab.counts[slab.own].sum(axis=0, dtype=np.float64)
        estimates.add(slab)
        residual.add(slab)
        if against is not None:
            against.add(slab)
    mean_frame = total / movie.shape[0]
    result = {
        "kind": "evaluation",
        "movie": {"id": movie.id, "name": movie.path.name, "source": movie.attributes["source"]["name"]},
        "denoised": {"id": denoised.id, "name": denoised.path.name},
        "model": denoised.attributes["model"],
        "shape": list(movie.shape),
        "units": movie.units,
        "mean": float(mean_frame.mean()),
        **estimates.result(mean_frame),
        **residual.result(),
    }
    result["notes"] = notes(movie, denoised, noise, result)
    if truth is not None and against is not None:
        for name, frames in estimates.frames.items():
            result[name] = against.compared(result[name], frames)
        result |= headline(result["all_frames"], result["held_out"])
        result |= against.result(movie, denoised)
        result["baseline"] = baseline(truth, movie) if config.baseline else None
    return plain(result), mean_frame


@dataclass(frozen=True)
class NoiseLaw:
    """How large the noise of a pixel is, and with that how the error is estimated."""

    estimator: str  # "poisson": variance = gain * counts; "temporal": from the neighbouring frames
    gain: float  # variance per count
    variance: float  # of the noise of the whole movie, on average [counts squared]

    def residual_check(self) -> metrics.ResidualCheck:
        """For residuals divided by the noise of every pixel; by that of the movie where only it is known."""
        if self.gain > 0:
            return metrics.ResidualCheck(gain=self.gain)
        return metrics.ResidualCheck(gain=0.0, read_variance=self.variance)


def noise_law(movie: store.Store) -> NoiseLaw:
    """The law that fits the noise measured at ingest; the temporal one fits any noise."""
    if movie.attributes["noise"] is None:
        raise InputError(movie.path, "its noise could not be measured, so no error can be estimated.")
    measured = NoiseStatistics.from_json(movie.attributes["noise"])
    if not measured.noise_variance > 0:
        raise InputError(movie.path, "holds no noise, so there is no error of a denoised movie to estimate.")
    for gain in (1.0, movie.attributes["detector"]["counts_per_electron"]):
        if gain is not None and replace(measured, fano=measured.fano / gain).is_poisson:
            return NoiseLaw("poisson", gain, gain * movie.attributes["mean"])
    gain = measured.fano if math.isfinite(measured.fano) else 0.0
    return NoiseLaw("temporal", gain, measured.noise_variance)


class Blocks:
    """Block sums of one kind of term, collected over slabs."""

    def __init__(self, extent: int) -> None:
        self._block = (SLAB_FRAMES, extent, extent)
        self._sums: list[Array] = []
        self._counts: list[Array] = []

    def add(self, terms: Array) -> None:
        """Take in one term per pixel of successive frames."""
        if terms.size:
            sums, counts = metrics.block_sums(terms, self._block)
            self._sums.append(sums)
            self._counts.append(counts)

    def interval(self) -> metrics.Interval | None:
        """Mean and its 95 % interval; None from fewer than two blocks, which say nothing of their spread."""
        if sum(map(len, self._sums)) < 2:
            return None
        sums, counts = np.concatenate(self._sums), np.concatenate(self._counts)
        return metrics.bootstrap_interval(sums, counts)

    def n_pixels(self) -> int:
        """Number of terms."""
        return int(sum(c.sum() for c in self._counts))


class Estimates:
    """Every estimate of the error that needs no truth, slab by slab."""

    def __init__(self, noise: NoiseLaw, held_out: frozenset[int], shape: tuple[int, int, int]) -> None:
        # About 1000 blocks per slab at most: of a large frame they are larger.
        extent = 32 * max(1, round(max(shape[1:]) / 1024))
        self._noise = noise
        # The temporal estimator needs both neighbours of a frame.
        known = range(shape[0]) if noise.estimator == "poisson" else range(1, shape[0] - 1)
        self.frames = {"all_frames": list(known), "held_out": sorted(held_out.intersection(known))}
        self._held_out = held_out
        self._band = extent * max(1, BAND_PIXELS // (SLAB_FRAMES * shape[2] * extent))
        self.error, self.held_error, self.umse, self.excess = (Blocks(extent) for _ in range(4))

    def add(self, slab: Slab) -> None:
        """Take in the next slab."""
        for rows in spans(slab.counts.shape[1], self._band):
            counts, denoised = (a[:, slice(*rows)] for a in (slab.counts, slab.denoised))
            self._add_band(replace(slab, counts=counts, denoised=denoised))

    def _add_band(self, band: Slab) -> None:
        n_frames = len(band.counts)
        if n_frames > 2:
            between = metrics.temporal_mse_terms(band.counts, band.denoised)
            self.umse.add(between)
        if self._noise.estimator == "poisson":
            own = band.counts[band.own], band.denoised[band.own]
            self._add_terms(metrics.unbiased_mse_terms(*own, gain=self._noise.gain), band.frames[0])
            # The noise between neighbouring frames, less what the law says: the prediction plays no part.
            y = band.counts.astype(np.float64)
            self.excess.add((y[2:] - y[:-2]) ** 2 / 2 - self._noise.gain * y[1:-1])
        elif n_frames > 2:
            self._add_terms(between, band.frames[0] + 1 - band.before)

    def _add_terms(self, terms: Array, first: int) -> None:
        self.error.add(terms)
        self.held_error.add(terms[[first + k in self._held_out for k in range(len(terms))]])

    def result(self, mean_frame: Array) -> dict[str, Any]:
        """The estimates as plain values."""
        peak = float(np.percentile(mean_frame, 99.9))
        every, held = (
            {"n_frames": len(self.frames[name]), **self._in_words(blocks)}
            for name, blocks in {"all_frames": self.error, "held_out": self.held_error}.items()
        )
        held_out = held if self._held_out else None
        excess, umse = _as_dict(self.excess), _as_dict(self.umse)
        upsnr = None
        if umse is not None and umse["resolvable"]:
            upsnr = {k: metrics.psnr(umse[v], peak) for k, v in _FLIPPED.items()}
        return {
            "estimator": self._noise.estimator,
            "gain": self._noise.gain,
            "noise_variance": self._noise.variance,
            "noise_excess": None if excess is None else _scaled(excess, 1 / self._noise.variance),
            **headline(every, held_out),
            "all_frames": every,
            "held_out": held_out,
            # A model that sees the frames around cannot be tested on them: its own frame is the reference.
            "umse": umse,
            "umse_references": [0, 1, -1],
            "upsnr": upsnr,
            "peak": peak,
            "peak_is": "99.9th percentile of the mean frame [counts]",
        }

    def _in_words(self, blocks: Blocks) -> dict[str, Any]:
        """An error, as a share of the noise, and as the dose that would give raw counts of this quality."""
        mse = _as_dict(blocks)
        nmse = None if mse is None else _scaled(mse, 1 / self._noise.variance)
        gain: dict[str, Any] | None = None
        if nmse is not None:
            # An error that may be zero still bounds the gain from below.
            known = {"estimate": nmse["resolvable"], "low": nmse["high"] > 0, "high": nmse["resolvable"]}
            gain = {k: 1 / nmse[v] if known[k] else None for k, v in _FLIPPED.items()}
        return {"mse": mse, "nmse": nmse, "dose_gain": gain}


_FLIPPED = {"estimate": "estimate", "low": "high", "high": "low"}  # limits of a falling function


def _as_dict(blocks: Blocks) -> dict[str, Any] | None:
    interval = blocks.interval()
    if interval is None:
        return None
    return {**interval._asdict(), "resolvable": bool(interval.low > 0), "n_pixels": blocks.n_pixels()}


def _scaled(values: dict[str, Any], factor: float) -> dict[str, Any]:
    return {**values, **{name: factor * values[name] for name in _FLIPPED}}


def headline(all_frames: dict[str, Any], held_out: dict[str, Any] | None) -> dict[str, Any]:
    """The error to state: of all frames, which is the more precise, unless the held-out ones contradict it."""
    frames, stated = "all", all_frames
    if held_out is not None and learnt_by_heart(all_frames, held_out):
        frames, stated = "held_out", held_out
    return {"frames": frames, **{name: stated[name] for name in ("mse", "nmse", "dose_gain")}}


def learnt_by_heart(all_frames: dict[str, Any], held_out: dict[str, Any]) -> bool:
    """Whether all frames look better than an error can be, or clearly better than the held-out ones."""
    if all_frames["mse"] is None or held_out["mse"] is None:
        return False
    return all_frames["mse"]["high"] < 0 or _clearly_less(all_frames["mse"], held_out["mse"])


def _clearly_less(one: dict[str, Any], other: dict[str, Any]) -> bool:
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
        self._reports: list[metrics.ResidualReport] = []
        self._lattice = metrics.LatticeCheck()

    def add(self, slab: Slab) -> None:
        """Take in the next slab, if it is one of those chosen."""
        if slab.frames[0] in self._starts:
            check = self._noise.residual_check()
            pair = slab.counts[slab.own], slab.denoised[slab.own]
            check.add(*pair)
            self._reports.append(check.result())
            self._lattice.add(*pair)

    def result(self) -> dict[str, Any]:
        """Averages over the slabs."""
        reports = self._reports
        weights = [r.n_pixels for r in reports]

        def pooled(value: Callable[[metrics.ResidualReport], Any]) -> Any:
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
                "largest": largest,
                # Of some 25 lags one lies outside two standard deviations by chance; none outside four.
                "white": None if largest is None else largest <= 2 * bound,
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


def notes(movie: store.Store, denoised: store.Store, noise: NoiseLaw, result: dict[str, Any]) -> list[str]:
    """What a reader must know to take the estimates for what they are."""
    found = _contradictions(result["all_frames"], result["held_out"])
    excess = result["noise_excess"]
    measured = NoiseStatistics.from_json(movie.attributes["noise"])
    if noise.estimator == "temporal":
        found.append(
            "The noise is not that of single electrons, so it was taken from the neighbouring frames. "
            "Motion makes the estimated error too small."
        )
    if abs(measured.correlation_t) > 0.03:
        found.append(
            f"Noise persists from frame to frame (correlation {measured.correlation_t:+.3f}): "
            "the estimated error is too small."
        )
    radius = denoised.attributes["model"]["blind_radius"]
    spatial = max(abs(measured.correlation_x), abs(measured.correlation_y))
    if spatial > 0.03 and radius == 0:
        found.append(
            f"The noise of neighbouring pixels is correlated ({spatial:.3f}) and the model sees them: "
            "the estimated error is too small. Train with --blind-radius 1."
        )
    if excess is not None:
        share = f"{percent(excess['estimate'])} in variance"
        if excess["high"] < 0:
            found.append(
                f"Neighbouring frames differ less than single electrons would ({share}, as with coincidence "
                "losses): the estimated error is too small by that share of the noise."
            )
        if excess["low"] > 0:
            found.append(
                f"Neighbouring frames differ more than single electrons would ({share}): that is motion, or "
                "excess noise, which makes the estimated error too large by at most that share of the noise."
            )
    if not denoised.attributes["held_out_frames"]:
        found.append(_SEEN[denoised.attributes.get("trained_on_this")])
    return found


_SEEN = {
    False: "The model was not trained on this movie, so all frames are unseen.",
    True: "The model was trained on frames of this movie and none is known to be held out: "
    "the estimated error may be too small.",
    None: "It is not known whether the model has seen these frames in training; if it has, "
    "the estimated error may be too small.",
}


def _contradictions(all_frames: dict[str, Any], held_out: dict[str, Any] | None) -> list[str]:
    """What is said where an estimate cannot be right, or the two do not go together."""
    every, held = all_frames["mse"], None if held_out is None else held_out["mse"]
    found = []
    if held_out is not None and learnt_by_heart(all_frames, held_out):
        how = "below zero" if every["high"] < 0 else "clearly smaller than that of the held-out frames"
        found.append(
            "The model seems to have learnt noise of its training frames by heart: the error estimated from all "
            f"frames is {how}. The error stated is that of the held-out frames."
        )
    elif every is not None and every["high"] < 0:
        found.append(
            "The estimated error is below zero, where no error can be: the model seems to have learnt noise of "
            "these frames by heart, or their noise is not as it was measured. How large the error is cannot be said."
        )
    if held is not None and held["high"] < 0:
        found.append(
            "The estimated error of the held-out frames is below zero, where no error can be: "
            "their noise is not as it was measured."
        )
    elif held is not None and _clearly_less(held, every):
        found.append(
            "The held-out frames have a clearly smaller error than all frames: they are easier to predict, "
            "so they do not stand for the movie."
        )
    return found


def plain(value: Any) -> Any:
    """A result as JSON knows it: no NaN, no Inf, no NumPy."""
    if isinstance(value, dict):
        return {key: plain(v) for key, v in value.items()}
    if isinstance(value, list | tuple):
        return [plain(v) for v in value]
    if isinstance(value, np.generic):
        value = value.item()
    return None if isinstance(value, float) and not math.isfinite(value) else value


def summary(result: dict[str, Any]) -> list[str]:
    """The main figures of an evaluation, a line each."""
    of_held_out = result["frames"] == "held_out"
    lines = [f"error{', held-out frames' if of_held_out else ''}: {error_in_words(result)}"]
    if result["held_out"] is not None:
        name, other = ("all", "all_frames") if of_held_out else ("held-out", "held_out")
        lines.append(f"{name} frames ({result[other]['n_frames']}): {error_in_words(result[other])}")
    residual, lattice = result["residual"], result["lattice"]
    verdict = {True: "white", False: "not white", None: "too few pixels to tell"}[residual["white"]]
    strongest = f"correlations up to {_fixed(residual['largest'])} (chance: {residual['bound']:.4f})"
    lines.append(f"residual: {verdict}, {strongest}; {lattice_in_words(lattice)}")
    if "psnr" in result:
        filters = {"noisy": result["psnr_noisy"]}
        if result["baseline"] is not None:
            filters["best 3D Gaussian"] = result["baseline"]["psnr"]
        compared = filters | {"denoised": result["psnr"]}
        names = {"all": "PSNR", "particle": "in the particle", "changing": "where it changes"}
        for region, name in names.items():
            found = {what: values[region] for what, values in compared.items() if values[region] is not None}
            if found:
                values = ", ".join(f"{what} {value:.2f} dB" for what, value in found.items())
                lines.append(f"{name}: {values}")
        vacuum, clean = _fixed(result["vacuum_std"]), _fixed(result["vacuum_std_clean"])
        lines.append(f"vacuum: standard deviation {vacuum} (truth {clean})")
        lines += _bleed_in_words(result)
    return lines + [f"note: {note}" for note in result["notes"]]


def _bleed_in_words(result: dict[str, Any]) -> list[str]:
    """How far occupancy changes are smeared over time, beside a moving average."""
    if not result["n_events_isolated"]:
        return ["bleed: the movie has no change of occupancy that stands alone"]

    def values(bleed: dict[str, float | None]) -> str:
        return ", ".join(_fixed(bleed[at], "+.2f") for at in ("-2", "-1", "+1", "+2"))

    return [
        f"bleed of {result['n_events_isolated']} occupancy changes at -2, -1, +1, +2 frames (0: none, 0.5: all): "
        f"{values(result['bleed'])}; 9-frame moving average: {values(result['bleed_moving_average_9'])}"
    ]


def _fixed(value: float | None, form: str = ".4f") -> str:
    return "unknown" if value is None else format(value, form)


def error_in_words(result: dict[str, Any]) -> str:
    """An estimated error and what it means: the one stated, or that of all or of the held-out frames."""
    nmse, gain = result["nmse"], result["dose_gain"]
    if nmse is None:
        return "not estimated, there are too few pixels"
    limits = f"95 %: {percent(nmse['low'])} to {percent(nmse['high'])} of the noise variance"
    if nmse["resolvable"]:
        low, high = number(gain["low"]), number(gain["high"])
        times = f"{number(gain['estimate'])} times the dose ({low} to {high})"
        return f"{percent(nmse['estimate'])} ({limits}), as with {times}"
    if gain["low"] is not None:
        below = f"below {percent(nmse['high'])} ({limits})"
        return f"not resolvable, {below}, as with more than {number(gain['low'])} times the dose"
    return f"not resolvable, below zero ({limits}), where no error can be"


def lattice_in_words(lattice: dict[str, Any]) -> str:
    """Whether lattice was removed with the noise."""
    if lattice["ratio"] is None:
        return "no lattice in the movie"
    if lattice["removed"]:
        return f"{percent(lattice['amplitude_lost'], 2)} of the lattice's amplitude was removed"
    if lattice["noise_kept"]:
        return f"noise was kept as lattice (power ratio {lattice['ratio']:.2f})"
    return f"no lattice removed (power ratio {lattice['ratio']:.2f})"


def percent(share: float, digits: int = 3) -> str:
    """A share in percent.

    Examples
    --------
    >>> percent(-0.0123456)
    '-1.23 %'
    """
    return f"{number(100 * share, digits)} %"


def number(value: float, digits: int = 3) -> str:
    """A number for people.

    Examples
    --------
    >>> number(0.0123456), number(1384.2), number(1.5e6)
    ('0.0123', '1,384', '1.5e+06')
    """
    return f"{value:,.0f}" if 1e3 <= abs(value) < 1e6 else f"{value:.{digits}g}"
