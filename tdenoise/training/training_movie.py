"""A movie to learn from, and which of its frames are kept for validation."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from ..noise.brightness import Brightness
from ..noise.far_frames import FarFrames
from ..noise.noise import Scale


class FrameSource(Protocol):
    """Anything that can be sliced like an array of frames: NumPy, Zarr, a memory map."""

    @property
    def shape(self) -> tuple[int, ...]: ...

    @property
    def dtype(self) -> np.dtype[Any]: ...

    def __getitem__(self, key: Any) -> Any: ...


@dataclass(frozen=True)
class TrainingMovie:
    """A movie to learn from."""

    frames: FrameSource  # shape (n_frames, height, width) [counts]
    scale: Scale
    held_out: tuple[int, ...]  # frames that are never a target, kept for validation
    clean: FrameSource | None = None  # expected counts, same shape, where they are known: a better target
    clean_unit: float = 1.0  # counts that 1 of ``clean`` stands for
    stand_ins: NDArray[np.float32] | None = (
        None  # shown at bad pixels; see `tdenoise.noise.camera_pattern.stand_ins`
    )
    gain: float = 1.0  # counts per electron; used by a gamma head only
    drift: NDArray[np.float64] | None = None  # of the scene [pixels], (n_frames, 2), which the windows follow
    pixel_size_nm: float | None = None  # where it is known; for the simulated scenes that are shown beside it
    importance: NDArray[Any] | None = None  # weight of an error, same shape as the frames; None: equal
    brightness: Brightness | None = None  # None: all frames are there and equally bright

    far: FarFrames | None = None  # for networks that see them

    @property
    def seen(self) -> Brightness:
        """Brightness of the frames, also where they are all alike."""
        return self.brightness or Brightness.steady(self.frames.shape[0])

    @property
    def not_targets(self) -> frozenset[int]:
        """Frames that nothing is learned from: held out, or not recorded whole."""
        return frozenset(self.held_out) | frozenset(np.flatnonzero(~self.seen.valid).tolist())

    def with_far(self, near: Tensor, centre: int, corner: tuple[int, int], bins: tuple[int, ...]) -> Tensor:
        """A window, as a part of the field at a corner shows it, between what its centre frame sees of far frames."""
        if not bins:
            return near
        assert self.far is not None
        rows, columns = ((start, start + n) for start, n in zip(corner, near.shape[1:], strict=True))
        found = self.far.channels(self.far.key(centre), rows, columns, bins, self.scale)
        n, seen = len(bins), torch.from_numpy(found)
        return torch.cat([seen[:n], near, seen[n:]])

    def electrons(self, share: float = 1.0) -> Tensor:
        """Mean and noise of the scale in electrons at a share of the dose, shape (2, 1, 1)."""
        scale = self.scale.at_share(share)
        return torch.tensor([scale.mean, scale.noise]).reshape(2, 1, 1) / self.gain


def hold_out(n_frames: int, fraction: float = 0.1) -> tuple[int, ...]:
    """Frames kept for validation, in contiguous blocks spread evenly over the movie.

    Single frames would be no test: their neighbours in time are training targets and see the same scene.

    Examples
    --------
    >>> hold_out(30)
    (14, 15, 16)
    """
    total = min(max(1, round(fraction * n_frames)), 64)
    n_blocks = max(1, total // 8)
    sizes = [total // n_blocks + (i < total % n_blocks) for i in range(n_blocks)]
    held: list[int] = []
    for i, size in enumerate(sizes):
        middle = (2 * i + 1) * n_frames // (2 * n_blocks)
        start = min(max(0, middle - size // 2), n_frames - size)
        held.extend(range(start, start + size))
    return tuple(held)
