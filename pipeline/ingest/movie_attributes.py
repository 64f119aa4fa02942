"""The ``tdenoise`` attributes of a movie store: where it comes from, what was done, what to know before use."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tdenoise.noise.brightness import Brightness
from tdenoise.noise.noise import NoiseStatistics

from ..readers import MovieInfo
from ..settings.ingest_settings import IngestConfig
from ..store.store_attributes import (
    BrightnessRange,
    DoseAttributes,
    DriftAttributes,
    MovieDescription,
    TimingAttributes,
)
from ..version import VERSION
from .corrections import Corrections, summed_type
from .fingerprint import Source
from .ingest_plan import IngestPlan
from .measurements import NOISE_LIMIT, Drift

MAX_NAMED = 1000  # pixels and X-ray hits that are named one by one
GAIN_NEAR_1 = 0.1  # a gain reference whose mean is further from 1 rescales the movie


@dataclass(frozen=True)
class Findings:
    """What was seen and measured on a movie. Frames are counted in the store, pixels and hits in the raw movie."""

    corrections: Corrections
    frame_means: list[float | None]
    low: float | None
    high: float | None
    not_finite: list[int]
    blank: list[int]  # frames without any contrast
    repeated: list[int]  # equal to the frame before, bit by bit
    torn: list[int]  # without their first or last rows
    brightness: Brightness
    hits: list[tuple[float, ...]]  # frame, row, column, value
    n_hits: int
    noise: NoiseStatistics | None
    drift: Drift | None  # [pixels of the store]
    timestamps: NDArray[np.float64] | None  # (n_frames,) [s]
    timing: TimingAttributes | None


def describe(
    config: IngestConfig, info: MovieInfo, plan: IngestPlan, source: Source, sha256: str, found: Findings
) -> MovieDescription:
    """All that a movie store says about itself."""
    known = [m for m in found.frame_means if m is not None]
    mean = float(np.mean(known)) if known else None
    selection = plan.selection
    corrections = found.corrections
    return {
        "kind": "movie",
        "source": {
            "name": config.raw.name,
            "n_files": len(source.files),
            "bytes": source.n_bytes,
            "sha256": sha256,
            "format": info.format,
            "reader": info.reader,
            "shape": list(info.shape),
            "selection": [list(selection.frames), list(selection.rows), list(selection.columns)],
            "missing_frames": info.missing_frames,
            "metadata": _without_seals(info.metadata),
        },
        "detector": {
            "counts_per_electron": config.counts_per_electron,
            "camera": config.camera or info.camera,
            "exposure_s": _scaled(config.exposure or info.exposure_s, config.group),
            "voltage_kv": config.voltage or info.voltage_kv,
        },
        "dose": _dose(config, info, plan, mean),
        "mean": mean,
        "range": [found.low, found.high],
        "frame_means": found.frame_means,
        "noise": None if found.noise is None else found.noise.to_json(),
        "not_finite_frames": found.not_finite,
        "blank_frames": found.blank,
        "repeated_frames": found.repeated,
        "torn_frames": found.torn,
        "brightness": _brightness(found.brightness),
        "timing": found.timing,
        "hot_pixels": _places(corrections.hot, plan),
        "dead_pixels": _places(corrections.dead, plan),
        "lost_pixels": _places(corrections.lost, plan),
        "n_bad_pixels": int(corrections.bad.sum()),
        "xray_hits": {
            "n": found.n_hits,
            "replaced": corrections.replace_hits,
            "hits": [[int(f), int(y), int(x), v] for f, y, x, v in found.hits[:MAX_NAMED]],
        },
        "drift": None if found.drift is None else _drift(found.drift, plan),
        "references": plan.references.sources,
        "corrections": _corrections(config, plan, found),
        "warnings": [*info.warnings, *plan.left_out, *plan.doubts, *_warnings(config, info, plan, found)],
        "software": VERSION,
    }


def _without_seals(value: Any) -> Any:
    """Metadata in which no entry can be taken for the seal of the store that it is kept in, as that of a store can."""
    if isinstance(value, dict):
        return {
            "seal of the source" if key == "seal" else key: _without_seals(inner)
            for key, inner in value.items()
        }
    return [_without_seals(inner) for inner in value] if isinstance(value, list) else value


def _scaled(value: float | None, factor: float) -> float | None:
    return None if value is None else value * factor


def _dose(config: IngestConfig, info: MovieInfo, plan: IngestPlan, mean: float | None) -> DoseAttributes:
    """Electrons in a stored pixel and frame, as measured; and the dose rate that the file or the user states."""
    counted = config.counts_per_electron
    dose = None if counted is None or mean is None else mean / counted
    size = plan.coordinates.pixel_size_nm
    area = None if size is None else size[0] * size[1] * 100
    return {
        "per_pixel": dose,
        "per_square_angstrom": None if dose is None or area is None else dose / area,
        "stated_e_per_nm2_s": config.dose_rate or info.dose_rate_e_per_nm2_s,
    }


def _places(pixels: NDArray[np.bool_], plan: IngestPlan) -> list[list[int]]:
    """Row and column of some pixels in the raw movie."""
    origin = (plan.selection.rows[0], plan.selection.columns[0])
    named: list[list[int]] = (np.argwhere(pixels)[:MAX_NAMED] + origin).tolist()
    return named


def _drift(drift: Drift, plan: IngestPlan) -> DriftAttributes:
    steps = plan.coordinates.pixel_size_nm
    moved = drift.moved * (1.0 if steps is None else np.asarray(steps))
    return {
        "units": "pixel" if steps is None else "nm",
        "end": moved[-1].round(6).tolist(),
        "largest": float(np.hypot(*moved.T).max().round(6)),
        "applied": False,
        "every_n_frames": drift.every_n_frames,
    }


def _corrections(config: IngestConfig, plan: IngestPlan, found: Findings) -> list[str]:
    """What was done to the counts, in order, in words."""
    sources, corrections = plan.references.sources, found.corrections
    done = []
    if "dark" in sources:
        done.append(f"dark reference {sources['dark']['name']} subtracted")
    if "gain" in sources:
        done.append(f"multiplied by gain reference {sources['gain']['name']} ({config.gain_orientation})")
    listed = int(corrections.listed.sum())
    if listed:
        done.append(f"{listed} pixels of the references replaced by sound neighbours")
    n_hot, n_dead, n_lost = (int(p.sum()) for p in (corrections.hot, corrections.dead, corrections.lost))
    if (n_hot or n_dead) and not config.keep_defects:
        done.append(f"{n_hot} hot and {n_dead} dead pixels replaced by sound neighbours")
    if n_lost and not config.keep_defects:
        done.append(f"{n_lost} pixels without counts replaced by sound neighbours")
    if found.n_hits and corrections.replace_hits:
        done.append(f"{found.n_hits} X-ray hits replaced by sound neighbours")
    if config.bin > 1:
        done.append(f"{config.bin} x {config.bin} pixels summed")
    if config.group > 1:
        done.append(f"{config.group} frames summed")
    return done


def _lowest(found: Findings) -> list[str]:
    """What is said where numbers are the least that their type holds: a mark, or what ran out of it."""
    made = found.corrections
    dtype = summed_type(made.dtype, made.bin**2 * made.group)
    if dtype.kind != "i" or found.low != np.iinfo(dtype).min:
        return []
    return [
        f"its lowest number is {found.low:.0f}, the least that its type ({dtype}) holds: it may mark missing data. "
        "--defects names the pixels to leave out."
    ]


def _warnings(config: IngestConfig, info: MovieInfo, plan: IngestPlan, found: Findings) -> list[str]:
    said = []
    if info.missing_frames:
        said.append(f"{info.missing_frames} frames that the header lists are missing.")
    if found.not_finite:
        said.append(
            f"frames {_some(found.not_finite)} hold NaN, Inf or numbers beyond 1e30, which are not counts."
        )
    if found.blank:
        said.append(f"frames {_some(found.blank)} are blank: all their pixels have the same value.")
    if found.repeated:
        said.append(f"frames {_some(found.repeated)} repeat the frame before, bit by bit.")
    if found.torn:
        said.append(
            f"frames {_some(found.torn)} are torn: rows at their border are empty or of the frame before."
        )
    if not found.brightness.valid.all():
        n = int((~found.brightness.valid).sum())
        said.append(
            f"{n} incomplete or faulty frames are not used; they are predicted from the frames around them "
            "and marked in 'frame_valid'."
        )
    said += _about_brightness(found.brightness)
    said += _about_time(found.timing)
    said += _about_pixels(config, plan, found)
    said += _lowest(found)
    noise = found.noise
    if noise is None:
        said.append(
            "the noise could not be measured, so no model can be trained on this movie: it has too few sound frames "
            f"that follow one another with counts below {NOISE_LIMIT:.0e}. If its unit is not counts, convert it first."
        )
    if noise is not None and noise.noise_variance > 0 and not noise.is_poisson:
        known = math.isfinite(noise.fano)
        fano = f"Fano factor {noise.fano:.3f}" if known else "no Fano factor, because the mean is not above 0"
        said.append(
            f"the noise is not that of single electrons: {fano}, correlation of neighbours "
            f"{noise.correlation_x:+.3f} along x, {noise.correlation_y:+.3f} along y. "
            "The blind radius is chosen accordingly unless --blind-radius says otherwise."
        )
    return said


def _brightness(found: Brightness) -> BrightnessRange:
    """How much the frames differ in brightness."""
    levels = found.levels[found.valid]
    if not len(levels):
        return {"steady": True, "lowest": 1.0, "highest": 1.0, "flicker": 0.0, "across": 0.0}
    return {
        "steady": found.is_even,
        "lowest": float(levels.min()),
        "highest": float(levels.max()),
        "flicker": float(np.std(np.diff(np.log(levels))) / np.sqrt(2)) if len(levels) > 1 else 0.0,
        "across": found.across,
    }


def _about_brightness(found: Brightness) -> list[str]:
    """What is said of a beam that is not steady."""
    described = _brightness(found)
    if described["steady"]:
        return []
    low, high = described["lowest"], described["highest"]
    told = []
    if low < high:
        said = f"the brightness of the frames varies from {low:.3g} to {high:.3g} of its mean"
        if described["flicker"] > 0.005:
            said += f", by {100 * described['flicker']:.2g} % from frame to frame"
        told.append(
            f"{said}. It is measured, taken out of what a model sees, and put back into the result ('frame_level')."
        )
    if described["across"]:
        told.append(
            "the beam moves across the field: the brightness at its edges changes by up to "
            f"{100 * described['across']:.2g} %. It is taken out and put back ('frame_tilt')."
        )
    return told


def _about_time(timing: TimingAttributes | None) -> list[str]:
    if timing is None:
        return []
    if timing["n_dropped"]:
        return [
            f"the time stamps say that about {timing['n_dropped']} frames were lost, after frames "
            f"{_some(timing['dropped_after'])}."
        ]
    if timing["uneven"] and timing["interval_s"] is not None:
        return ["the time between frames varies by over a tenth; the array 'timestamp' has the true times."]
    return []


def _about_pixels(config: IngestConfig, plan: IngestPlan, found: Findings) -> list[str]:
    corrections, said = found.corrections, []
    done = "left as they are" if config.keep_defects else "replaced by sound neighbours"
    advice = "" if config.keep_defects else " --keep-defects leaves them."
    for what, why, pixels in (
        ("hot", "far brighter than their neighbours in all frames", corrections.hot),
        ("dead", "without any change in all frames", corrections.dead),
        ("without counts", "NaN, or an end of the range of their type, in all frames", corrections.lost),
    ):
        if pixels.any():
            y, x = _places(pixels, plan)[0]
            said.append(
                f"{int(pixels.sum())} pixels are {what} ({why}; the first in row {y}, column {x} of the raw "
                f"movie) and were {done}.{advice}"
            )
    if corrections.clipped is not None:
        value, n_pixels = corrections.clipped
        said.append(
            f"{n_pixels} pixels reach the value {value:g}, and none exceeds it: the counts were cut off there "
            "(clipped), so the brightest places are brighter than they look."
        )
    if corrections.n_suspect:
        said.append(
            f"{corrections.n_suspect} pixels look hot or dead, too many to be the camera's: they are left as they are. "
            "Name them with --defects if they are."
        )
    if found.n_hits:
        frame, row, column, value = found.hits[0]
        done = "replaced" if corrections.replace_hits else "kept; --xray replace removes them"
        said.append(
            f"{found.n_hits} X-ray hits, single pixels of single frames that electrons cannot explain (the first in "
            f"raw frame {int(frame)}, row {int(row)}, column {int(column)}: {value:g} counts), were {done}."
        )
    gain = corrections.linear.gain
    if gain is not None and abs(float(gain.mean()) - 1) > GAIN_NEAR_1:
        said.append(
            f"the gain reference has a mean of {float(gain.mean()):.4g}: the counts are rescaled by it, so "
            "--counts-per-electron must be that of the corrected movie."
        )
    return said


def _some(numbers: list[int]) -> str:
    shown = ", ".join(map(str, numbers[:5]))
    return shown if len(numbers) <= 5 else f"{shown} and {len(numbers) - 5} more"
