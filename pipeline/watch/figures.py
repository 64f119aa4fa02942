"""What the newest frames tell: dose, brightness, noise law, drift, and which event could be told at this dose."""

from __future__ import annotations

import math
import time
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tdenoise.evaluation.columns import find_columns, plane_distance
from tdenoise.evaluation.ideal_observer import told_index
from tdenoise.evaluation.residuals import lattice_spots
from tdenoise.noise import brightness
from tdenoise.noise.brightness import Brightness
from tdenoise.noise.noise import NoiseStatistics, noise_law

from ..evaluate.evaluation_result import KnowableFigures
from ..evaluate.frame_checks import knowable
from ..evaluate.verdict import Recording
from ..evaluate.verdict_trust import smallest_event
from ..ingest.measurements import measure_drift, measure_noise
from ..settings.denoise_settings import RunConfig

AGAIN_S = 5.0  # between two measurements of what changes slowly
WISHED_FRAMES = 3  # that a column stays, of which the dose to tell it is named


@dataclass(frozen=True)
class _Held:
    """Frames in memory, with what the measurements of `ingest` ask of an array of a store."""

    values: NDArray[Any]

    @property
    def shape(self) -> tuple[int, ...]:
        return self.values.shape

    @property
    def chunks(self) -> tuple[int, ...]:
        return self.values.shape

    def __getitem__(self, key: Any) -> Any:
        return self.values[key]


@dataclass
class Measured:
    """What was measured on the newest frames of one recording."""

    noise: NoiseStatistics | None
    spots: NDArray[Any]
    at: float  # by the monotonic clock [s]

    @classmethod
    def of(cls, frames: NDArray[Any]) -> Measured:
        """Measure some frames as ingest does, shape (n, height, width) [counts]."""
        noise = measure_noise(_Held(frames), (), 1) if len(frames) > 3 else None
        spots = np.empty((0, 2))
        if noise is not None and noise.noise_variance > 0 and np.isfinite(frames).all():
            some = frames[-8:]  # between which the scene hardly moves
            spots = lattice_spots(some.mean(axis=0, dtype=np.float64), noise.noise_variance / len(some))
        return cls(noise, spots, time.monotonic())

    @property
    def is_old(self) -> bool:
        """Whether it should be measured again."""
        return time.monotonic() - self.at > AGAIN_S

    def brightness(self, frames: NDArray[Any]) -> Brightness:
        """Level of every frame, as far as its electrons tell it."""
        means = frames.mean(axis=(1, 2), dtype=np.float64)
        valid = np.isfinite(means) & (frames.min(axis=(1, 2)) < frames.max(axis=(1, 2)))
        if self.noise is None or not math.isfinite(self.noise.fano) or valid.sum() < 3:
            return Brightness(np.ones(len(frames)), valid)
        edges = np.array([0, frames.shape[1]]), np.array([0, frames.shape[2]])
        return brightness.measure(means[:, None], edges, self.noise.fano, valid)


def course(frames: NDArray[Any]) -> NDArray[np.float64] | None:
    """How the scene moves in some frames [pixels], shape (n, 2); None where it does not show."""
    drift = measure_drift(_Held(frames), ())
    return None if drift is None else drift.moved


def figures(
    frames: NDArray[Any],
    denoised: NDArray[np.float32] | None,
    measured: Measured,
    moved: NDArray[np.float64] | None,
    calibration: RunConfig,
    frame_time_s: float | None,
) -> dict[str, Any]:
    """What a page shows of the newest frames.

    Parameters
    ----------
    frames : ndarray, shape (n, height, width)
        The newest one last [counts].
    denoised : ndarray, shape (height, width), or None
        The newest one [counts].
    measured : Measured
    moved : ndarray or None
        From `course`.
    calibration : RunConfig
        Whose counts per electron and pixel size hold.
    frame_time_s : float or None
        What the file says, where the calibration does not.

    Returns
    -------
    dict
        ``mean`` [counts per pixel and frame]; ``dose`` and ``dose_per_square_angstrom`` of a frame [electrons], or
        None; ``brightness`` of the newest frame over the mean of these; ``fano`` and ``fano_error``, or None; ``drift``
        [pixels per frame], or None; ``event``, a sentence; ``advice``, a sentence, or None.
    """
    noise, size = measured.noise, calibration.pixel_size
    gain = calibration.counts_per_electron or (1.0 if noise is not None and noise.is_poisson else None)
    mean = float(frames.mean(dtype=np.float64))
    dose = None if gain is None else mean / gain
    newest = float(frames[-1].mean(dtype=np.float64))
    before = float((frames[:-1] if len(frames) > 1 else frames).mean(dtype=np.float64))
    steps = None if moved is None else moved[-1] - moved[0]
    law = None if noise is None else noise_law(noise, calibration.counts_per_electron)
    known = None if law is None else _knowable(denoised, law.gain, measured.spots)
    recording = Recording(calibration.frame_time or frame_time_s, size)
    return {
        "mean": _finite(mean),
        "dose": _finite(dose),
        "dose_per_square_angstrom": None if dose is None or size is None else _finite(dose / (100 * size**2)),
        "brightness": _finite(newest / before if before > 0 else None),
        "fano": None if noise is None else _finite(noise.fano),
        "fano_error": None if noise is None else _finite(noise.fano_error),
        "drift": None if steps is None else _finite(float(np.hypot(*steps)) / max(1, len(frames) - 1)),
        "event": smallest_event(known, None, recording).short,
        "advice": advice(known, dose),
    }


def advice(known: KnowableFigures | None, dose: float | None) -> str | None:
    """The dose at which a column that stays for a few frames could be told; None where this one is enough.

    The detection index grows as the root of the dose.

    Examples
    --------
    >>> advice({"index": {"typical": 1.0}}, 2.0)
    'Record at 18 e/px/frame or more to see a column that stays for 3 frames.'
    """
    if known is None:
        return None
    factor = (told_index(WISHED_FRAMES) / known["index"]["typical"]) ** 2
    if not 1 < factor < math.inf:
        return None
    needed = f"{factor:.2g} times this dose" if dose is None else f"{factor * dose:.2g} e/px/frame"
    return f"Record at {needed} or more to see a column that stays for {WISHED_FRAMES} frames."


def _knowable(
    denoised: NDArray[np.float32] | None, gain: float, spots: NDArray[Any]
) -> KnowableFigures | None:
    distance = plane_distance(spots)
    if denoised is None or distance is None:
        return None
    return knowable(find_columns(denoised / gain, distance).indices, distance, 1)


def _finite(value: float | None) -> float | None:
    return float(f"{value:.6g}") if value is not None and math.isfinite(value) else None
