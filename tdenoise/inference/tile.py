"""A block as it is denoised: where it lies, which of its frames are wanted, and what each of them is made from."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from ..network.registry import Network
from ..noise.brightness import Brightness, Span
from ..noise.drift import window_shifts
from ..noise.far_frames import FarFrames, Key
from ..noise.noise import Scale

Array = NDArray[Any]


@dataclass(frozen=True)
class Tile:
    """Where a block lies in its movie, so that its result does not depend on how the movie was cut."""

    n_frames: int  # of the whole movie
    first_frame: int  # of the movie, that the block's first frame is
    core_rows: tuple[int, int]  # rows of the block's array that are wanted
    core_columns: tuple[int, int]
    corner: tuple[int, int] = (0, 0)  # row and column of the movie that the block's array begins at

    @classmethod
    def whole(cls, shape: tuple[int, ...]) -> Tile:
        """The whole movie as one block."""
        return cls(n_frames=shape[0], first_frame=0, core_rows=(0, shape[1]), core_columns=(0, shape[2]))

    def in_movie(self, rows: tuple[int, int], columns: tuple[int, int]) -> tuple[Span, Span]:
        """Where rows and columns of the block's array lie in the movie."""
        row, column = self.corner
        return (rows[0] + row, rows[1] + row), (columns[0] + column, columns[1] + column)


@dataclass(frozen=True)
class Wanted:
    """The frames to denoise, and what each of them is made from."""

    frames: range  # all that were asked for
    numbers: list[int]  # those of them that there are frames to denoise from
    windows: list[Window]
    centres: list[int]  # shown as the centre frame, counted from the first frame of the block
    levels: tuple[Array, Array]  # of the core of every one of them; see `Brightness.along`
    around: NDArray[
        np.float64
    ]  # mean level of the frames around, the share of the dose that they are seen at
    far: SeenFar | None = None  # for a network that sees far frames

    @classmethod
    def of(
        cls,
        network: Network,
        tile: Tile,
        frames: range,
        scale: Scale,
        drift: NDArray[np.floating] | None,
        brightness: Brightness | None,
        far: FarFrames | None = None,
    ) -> Wanted:
        window = network.architecture.window
        known = brightness or Brightness.steady(tile.n_frames)
        numbers, windows, centres = [], [], []
        for frame in frames:
            try:
                indices, own = known.window(frame, window)
            except LookupError:
                continue
            numbers.append(frame)
            windows.append(Window(indices - tile.first_frame, window_shifts(drift, frame, indices)))
            centres.append(own - tile.first_frame)
        wanted = np.array(numbers, dtype=np.intp)
        levels = known.along(wanted, *tile.in_movie(tile.core_rows, tile.core_columns))
        seen = None
        if far is not None:
            keys = [far.key(number) for number in numbers]
            seen = SeenFar(far, scale, network.architecture.far_bins, keys)
        return cls(frames, numbers, windows, centres, levels, known.around(window)[wanted], seen)

    @property
    def gains(self) -> NDArray[np.float32] | None:
        """What normalised frames are multiplied by, so that their noise is that of the dose they are seen at."""
        return None if (self.around == 1).all() else np.sqrt(self.around).astype(np.float32)

    def back(self, scale: Scale, part: slice, like: Tensor) -> tuple[Tensor, Tensor]:
        """Levels of some frames, and the unit of their outputs [counts], for a tensor of frames."""
        down, right = self.levels
        level = torch.tensor(down[part], dtype=like.dtype, device=like.device)
        if (right != 1).any():
            level = level * torch.tensor(right[part], dtype=like.dtype, device=like.device)
        gain = torch.tensor(np.sqrt(self.around[part]), dtype=like.dtype, device=like.device)
        return level, level * scale.contrast / gain[:, None, None]

    def in_order(
        self, found: Iterator[NDArray[np.float32]], nothing: Callable[[], NDArray[np.float32]]
    ) -> Iterator[NDArray[np.float32]]:
        """All frames that were asked for, ``nothing`` in place of those that could not be denoised."""
        known = set(self.numbers)
        for frame in self.frames:
            yield next(found) if frame in known else nothing()
        next(found, None)  # so that what it holds is released


@dataclass(frozen=True)
class SeenFar:
    """What the wanted frames see of far ones."""

    frames: FarFrames
    scale: Scale
    bins: tuple[int, ...]
    keys: list[Key]  # of every wanted frame

    def channels(self, key: Key, like: Tensor) -> Tensor:
        """Of the whole block, (channels, height, width) as frames of it are."""
        rows, columns = ((0, n) for n in like.shape[-2:])
        return torch.from_numpy(self.frames.channels(key, rows, columns, self.bins, self.scale)).to(
            like.device
        )


class Window(NamedTuple):
    """What a wanted frame is predicted from."""

    frames: NDArray[np.intp]  # counted from the first frame of the block
    shifts: NDArray[np.intp]  # rows and columns, (n, 2)
