"""Denoise a block of frames with a trained network."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from .network import Architecture, SplitBlind, stack_window, window_indices
from .noise import Scale
from .patches import normalise, transform, transform_back

# Symmetries of a frame go through the network together while they hold at most this many pixels.
BATCH_PIXELS = 512 * 512


@dataclass(frozen=True)
class Tile:
    """Where a block lies in its movie, so that its result does not depend on how the movie was cut."""

    n_frames: int  # of the whole movie
    first_frame: int  # of the movie, that the block's first frame is
    core_rows: tuple[int, int]  # rows of the block's array that are wanted
    core_columns: tuple[int, int]

    @classmethod
    def whole(cls, shape: tuple[int, ...]) -> Tile:
        """The whole movie as one block."""
        return cls(n_frames=shape[0], first_frame=0, core_rows=(0, shape[1]), core_columns=(0, shape[2]))


def symmetries(number: int) -> list[tuple[int, int, int]]:
    """The first ``number`` (1, 2, 4, 8 or 16) symmetries to average over, as (turn, mirror, reverse).

    Averaging over the symmetries of the training patches (self-ensemble, Timofte et al. 2016) lowers the error
    of the network by about 0.6 to 1.2 dB. It stays blind, because every pass is.
    """
    order = [(turn, mirror, reverse) for turn in (0, 2, 1, 3) for mirror in (0, 1) for reverse in (0, 1)]
    if number not in (1, 2, 4, 8, 16):
        raise ValueError(f"an ensemble has 1, 2, 4, 8 or 16 members, not {number}")
    return order[:number]


def denoise(
    network: SplitBlind,
    block: NDArray[Any],
    tile: Tile,
    scale: Scale,
    frames: range,
    *,
    ensemble: int = 16,
    device: str | torch.device = "cpu",
) -> Iterator[NDArray[np.float32]]:
    """Denoised frames of a block, one at a time.

    Parameters
    ----------
    network : SplitBlind
        In evaluation mode, on ``device``.
    block : ndarray, shape (n, height, width)
        Raw frames [counts] with their halo. Rows and columns must begin on multiples of the network's stride
        in the movie, and end on one or at the movie's edge.
    tile : Tile
        Where the block lies.
    scale : Scale
        Of the whole movie.
    frames : range
        Frames of the movie to denoise; their windows, as far as the movie goes, must lie in ``block``.
    ensemble : int
        Number of symmetries to average over: 1, 2, 4, 8 or 16.
    device : str or torch.device

    Yields
    ------
    ndarray, shape (core rows, core columns), float32
        Expected counts.

    Raises
    ------
    FloatingPointError
        If the network returns NaN or Inf.
    """
    architecture = network.architecture
    stride = architecture.stride
    height, width = (-(-n // stride) * stride for n in block.shape[1:])
    padded = normalise(block, scale, height, width).to(device)
    members = symmetries(ensemble)
    rows, columns = slice(*tile.core_rows), slice(*tile.core_columns)
    with torch.inference_mode():
        for centre in frames:
            indices = window_indices(centre, tile.n_frames, architecture.window) - tile.first_frame
            neighbours = stack_window(padded, indices, architecture.bins)
            target = padded[centre - tile.first_frame][None]
            total = torch.zeros((height, width), device=device)
            for group in _groups(members, height * width):
                inputs = torch.stack([transform(neighbours, *member) for member in group])
                centres = torch.stack([transform(target, turn, mirror, 0) for turn, mirror, _ in group])
                outputs = network(
                    inputs.contiguous(memory_format=torch.channels_last),
                    centres.contiguous(memory_format=torch.channels_last),
                )
                for output, (turn, mirror, _) in zip(outputs, group, strict=True):
                    total += transform_back(output[0], turn, mirror)
            predicted = scale.mean + (scale.contrast / len(members)) * total[rows, columns]
            result: NDArray[np.float32] = predicted.cpu().numpy()
            if not np.isfinite(result).all():
                raise FloatingPointError(f"the network returned NaN or Inf in frame {centre}")
            yield result


def memory_bytes(architecture: Architecture, n_frames: int, height: int, width: int) -> int:
    """Memory that `denoise` takes for a block beyond the block itself, on the high side [bytes]."""
    group = next((n for n in (8, 4, 2) if n * height * width <= BATCH_PIXELS), 1)
    a = architecture
    # Window and its folded copy, what the branches hand to the fusion, the fusion; twice for scratch space,
    # and a margin: measured peaks are 0.91 to 1.05 of this without it.
    maps = 2.3 * (4 * len(a.bins) + 2 * a.features + 3 * a.centre_width + 2 * a.fusion_width)
    return int(4 * height * width * (n_frames + group * maps))


def _groups(members: list[tuple[int, int, int]], n_pixels: int) -> list[list[tuple[int, int, int]]]:
    """Symmetries that go through the network together: those that keep, or turn, height and width."""
    size = next((n for n in (8, 4, 2) if n * n_pixels <= BATCH_PIXELS), 1)
    groups = []
    for odd in (0, 1):
        chosen = [m for m in members if m[0] % 2 == odd]
        groups += [chosen[i : i + size] for i in range(0, len(chosen), size)]
    return groups
