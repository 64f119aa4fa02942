"""What a kind of network tells the rest of the program about itself.

Its architecture is a frozen dataclass with ``kind`` (the name in cards), ``blind_radius`` (None: the whole centre
frame), ``window`` and ``bins`` (frames seen on each side, and how they are summed), ``far_bins`` (sections of frames
seen beyond them, if any), ``reach`` (frames to each side that are seen in any way), ``stride`` and ``spatial_halo``
[pixels], ``to_json``, ``from_json``, ``scale`` (how counts become inputs and outputs counts) and ``memory_bytes``. Its
network is a torch module with ``architecture``, ``forward(neighbours, centre)`` for training, and ``stream(frames,
windows, turns)`` for whole frames; see `udvd`, which has them all.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Kind:
    """What is fixed by the name of a kind; the name stands in the model's card."""

    architecture: type[Any]
    network: type[Any]
    # From ``--blind-radius`` to an architecture and why it is blind as it is; ValueError where that cannot be.
    # None: the measured noise decides.
    choose: Callable[[int | str], tuple[Any, str]] | None = None
    learning_rate: float | None = None  # peak, where it needs another than the usual one
    cpu_batch: tuple[int, int] | None = (
        None  # patches per step and their size on a CPU, where the usual step is slow
    )
    follows_drift: bool = True  # whether its windows follow the scene
    checked_pixels: int | None = (
        None  # rows and columns that an evaluation looks at with the model, where it is slow
    )
