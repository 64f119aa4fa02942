"""What is found in a movie: its columns, and when they change."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from numpy.typing import NDArray

from tdenoise.columns.finding import Columns
from tdenoise.columns.states import States
from tdenoise.columns.traces import Traces

Array = NDArray[Any]


@dataclass(frozen=True)
class Found:
    """Everything that was found in a movie."""

    columns: Columns
    traces: Traces
    states: States
    corner: Array  # (T, 2) of every frame in the frame of the scene
    centres: Array  # (T, N, 2) where the denoised frames show the columns; NaN where they show none
    moved: Array  # (T, N, 2) how far each lies from its place in a rigid scene [pixels]
    shown: Array  # (rows, columns) mean of the denoised movie, in the frame of the scene

    @property
    def places(self) -> Array:
        """Columns in pixels of the first frame, shape (N, 2)."""
        places: Array = self.columns.positions - self.corner[0]
        return places
