"""Whether the denoised frames are as bright as the recorded ones."""

from __future__ import annotations

import math

import numpy as np

from ..inputs.paired import Slab
from .estimates import NoiseLaw
from .evaluation_result import LevelFigures

SHARE, Z = (
    0.01,
    5.0,
)  # of the brightness of a frame, and standard deviations of its noise: off by more than both


class Levels:
    """Mean of every sound frame, recorded and shown, slab by slab; memory is a few numbers."""

    def __init__(self, noise: NoiseLaw) -> None:
        self._noise = noise
        self._counts = self._shown = 0.0
        self._worst: tuple[int, float, float] | None = None  # frame, ratio, standard deviations off

    def add(self, slab: Slab) -> None:
        """Take in the next slab."""
        for number, k in zip(range(*slab.frames), range(slab.own.start, slab.own.stop), strict=True):
            if not slab.sound[k]:
                continue
            counts, shown = (float(np.mean(a[k], dtype=np.float64)) for a in (slab.counts, slab.denoised))
            self._counts += counts
            self._shown += shown
            variance = self._noise.variance
            if self._noise.estimator == "poisson":
                variance = self._noise.gain * max(shown, 0.0) + self._noise.read_variance
            deviation = math.sqrt(variance / slab.counts[k].size)
            if deviation > 0 and counts > 0:
                found = (number, shown / counts, (shown - counts) / deviation)
                if self._worst is None or _off(*found[1:]) > _off(*self._worst[1:]):
                    self._worst = found

    def result(self) -> LevelFigures | None:
        """What was found; None where no frame could be compared."""
        if self._worst is None or not self._counts > 0:
            return None
        frame, ratio, z = self._worst
        return {
            "ratio": self._shown / self._counts,
            "worst_frame": frame,
            "worst_ratio": ratio,
            "worst_z": z,
            "kept": _off(ratio, z) <= 1,
        }


def _off(ratio: float, z: float) -> float:
    """How far off a frame is: above 1 by more than `SHARE` of its brightness and by more than chance."""
    return min(abs(ratio - 1) / SHARE, abs(z) / Z)
