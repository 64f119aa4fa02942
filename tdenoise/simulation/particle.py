"""The settings of a simulated movie, and the columns that it is made of."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

from numpy.typing import NDArray

Array = NDArray[Any]

PT_LATTICE_NM = 0.39242
MASK_RADIUS_NM = 0.16
INNER, SURFACE, CHANGING_SURFACE, ADATOM = 0, 1, 2, 3


@dataclass(frozen=True)
class SimulationSettings:
    """What to simulate. The same settings give the same movie, bit for bit."""

    n_frames: int = 64
    height: int = 128  # pixels
    width: int = 128  # pixels
    dose: float = 0.5  # electrons per pixel and frame in vacuum
    pixel_size_nm: float = 0.014
    frame_time_s: float = 1 / 75
    seed: int = 0
    changing_share: float = 0.4  # of the surface columns and adatom sites
    dwell_frames: tuple[float, float] = (6.0, 60.0)  # range of the columns' mean dwell times
    hop_fraction: float = 0.5  # of the events; a nearby column changes the opposite way
    rotation_every_frames: tuple[float, float] = (25.0, 60.0)  # time between two rotations
    rotation_sd_deg: tuple[float, float, float] = (1.2, 0.7, 0.7)  # in the plane, tilt x, tilt y
    drift_share: float = 0.04  # of the shorter side; the drift stays within plus or minus this
    drift_speed_px: float = 0.3  # per frame, at most, along each axis
    counts_per_electron: float = 1.0
    blur_px: float = 0.0  # sigma of the detector's point spread; correlates the noise of neighbours
    gain: float = 0.0  # relative pixel-to-pixel spread of the counts per electron
    hot_pixels: int = 0

    def __post_init__(self) -> None:
        if self.n_frames < 1:
            raise ValueError(f"n_frames must be at least 1, not {self.n_frames}.")
        for name in ("dose", "pixel_size_nm", "frame_time_s", "counts_per_electron"):
            if not getattr(self, name) > 0:
                raise ValueError(f"{name} must be positive, not {getattr(self, name)}.")
        for name in ("blur_px", "gain", "hot_pixels", "drift_share", "drift_speed_px", "seed"):
            if not getattr(self, name) >= 0:
                raise ValueError(f"{name} must not be negative, not {getattr(self, name)}.")
        field_nm = min(self.height, self.width) * self.pixel_size_nm
        if field_nm < 0.4:
            raise ValueError(
                f"a field of {field_nm:.2g} nm cannot hold an atomic column and vacuum. "
                f"Use at least {math.ceil(0.4 / self.pixel_size_nm)} pixels along each side."
            )
        if self.dwell_frames[0] < 1 or self.dwell_frames[1] < self.dwell_frames[0]:
            raise ValueError(f"dwell_frames must be a rising range from 1 frame up, not {self.dwell_frames}.")

    @property
    def drift_range_px(self) -> float:
        """Bound of the drift along each axis."""
        return self.drift_share * min(self.height, self.width)


@dataclass(frozen=True)
class Structure:
    """Columns before drift and rotation; the particle's rows come first from its base upwards."""

    particle: Array  # (N, 2) pixels
    n_full: Array
    kind: Array
    centre: Array  # (2,) the point about which the particle turns
    support: Array  # (S, 2) pixels
    support_peak: Array  # (S,)
