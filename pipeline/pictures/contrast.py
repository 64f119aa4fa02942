"""Which counts are shown black and which white: given, or percentiles of frames that are spread over the movie."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from .panels import Footage, Panel, shrink

Array = NDArray[Any]

SAMPLE_FRAMES, SAMPLE_PIXELS = 16, 2**16  # that percentiles are taken of: frames, and pixels of each
PERCENT = (0.3, 99.7)  # shown black and white
HATCH = 8  # pixels from one line to the next where there is no number


@dataclass(frozen=True)
class Limits:
    """What is shown black and what white [counts]."""

    low: float
    high: float


def measure(
    footage: Footage,
    panels: Sequence[Panel],
    percent: tuple[float, float] = PERCENT,
    averaged: int = 1,
) -> dict[Panel, Limits]:
    """Limits for every panel, the same for all frames.

    The mean of nine frames and the denoised frame share theirs, so that they can be compared. Single counts reach much
    further and have their own; those of the difference lie as far below zero as above it.

    Parameters
    ----------
    footage : Footage
    panels : sequence of str
    percent : tuple of float
        Percentiles that are shown black and white.
    averaged : int
        Number of pixels, along each side, whose mean is shown as one.
    """
    seen: dict[Panel, list[Array]] = {name: [] for name in panels}
    for shown in footage.samples(panels, SAMPLE_FRAMES):
        for name, whole in shown.items():
            frame = shrink(whole, averaged)
            stride = -(-frame.size // SAMPLE_PIXELS)
            # A stride that divides the width would see some columns only.
            some = frame.ravel()[:: stride + (stride > 1 and frame.shape[1] % stride == 0)]
            seen[name].append(some[np.isfinite(some)])
    found: dict[Panel, Limits] = {}
    for name in panels:
        values = np.concatenate(seen["denoised" if name == "mean9" and "denoised" in panels else name])
        if not values.size:
            found[name] = Limits(0.0, 1.0)
        elif name == "difference":
            extent = _apart(0.0, float(np.abs(np.percentile(values, percent)).max()))
            found[name] = Limits(-extent.high, extent.high)
        else:
            low, high = np.percentile(values, percent)
            found[name] = _apart(float(low), float(high))
    return found


def given(panels: Sequence[Panel], low: float, high: float) -> dict[Panel, Limits]:
    """The same limits for all panels; for the difference as far apart, with zero in the middle."""
    half = (high - low) / 2
    return {name: Limits(-half, half) if name == "difference" else Limits(low, high) for name in panels}


def grey(frame: Array, limits: Limits) -> NDArray[np.uint8]:
    """A frame as shades from 0 (black) to 255 (white); pixels without a number are hatched.

    Examples
    --------
    >>> grey(np.array([[0.0, 1.0, 2.0, 5.0]]), Limits(0.0, 2.0)).tolist()
    [[0, 128, 255, 255]]
    """
    values = frame.astype(np.float32)
    missing = ~np.isfinite(values)
    values -= np.float32(limits.low)
    values *= np.float32(255 / (limits.high - limits.low))
    np.clip(values, 0, 255, out=values)
    if missing.any():
        rows, columns = np.nonzero(missing)
        values[missing] = np.where((rows + columns) % HATCH == 0, 96, 224)
    return np.rint(values).astype(np.uint8)


def _apart(low: float, high: float) -> Limits:
    """Limits that differ."""
    return Limits(low, high if high > low else low + 1)
