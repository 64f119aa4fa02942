"""How much the counts of a movie, summed over time, contradict a network: told without a truth, for choosing weights.

The held-out error is an average over all pixels and frames. A column that is painted into a vacancy for the whole movie
hardly changes it, and is plain to see in the sum over time of what was removed.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from ..evaluation.metrics import block_sums
from ..inference.denoising import denoise
from ..inference.evidence import Evidence, corners
from ..inference.refutation import significance
from ..inference.tile import Tile
from ..network.registry import Network
from .training_movie import TrainingMovie
from .validation import Sums

FRAMES, STRETCHES = 48, 3  # that are summed, in stretches that are spread over the movie
PIXELS = 192  # extent of the part that is looked at, in the middle of the field
BLOCK = (
    16  # rows and columns that are taken as independent: means over a column are alike over several pixels
)
SIZE = "column"  # see `tdenoise.inference.refutation.SIZES`


class Contradiction:
    """Squares of the time-summed residual over its noise: 1 on average for a network that paints and erases nothing.

    Parameters
    ----------
    movies : sequence of TrainingMovie
    device : str
    """

    def __init__(self, movies: Sequence[TrainingMovie], device: str) -> None:
        self._movies, self._device = movies, device

    def __call__(self, network: Network) -> Sums:
        """Sums of these squares over blocks of pixels; see `tdenoise.training.validation.compare`."""
        network.eval()
        found = [self._of_movie(network, movie) for movie in self._movies]
        errors, weights = (np.concatenate(parts) for parts in zip(*found, strict=True))
        # Noise contradicts anyone by 1. Who is contradicted by less has learnt some of it, and is no better for that.
        return Sums(errors if errors.sum() > weights.sum() else weights.copy(), weights)

    def _of_movie(
        self, network: Network, movie: TrainingMovie
    ) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        n_frames, height, width = movie.frames.shape
        stride, window = network.architecture.stride, network.architecture.window
        rows, columns = (_middle(size, stride) for size in (height, width))
        seen = movie.seen
        places, scene = corners(movie.drift, n_frames, (rows.stop - rows.start, columns.stop - columns.start))
        levels = None if movie.stand_ins is None else movie.stand_ins[rows, columns]
        sound = None if levels is None else ~np.isfinite(levels)
        evidence = Evidence.empty(scene)
        for start, stop in _stretches(n_frames):
            first, last = max(0, start - window), min(n_frames, stop + window)
            counts = np.asarray(movie.frames[first:last, rows, columns])
            part = seen.part(slice(first, last), (rows.start, rows.stop), (columns.start, columns.stop))
            frames = denoise(
                network,
                counts,
                Tile.whole(counts.shape),
                movie.scale,
                range(start - first, stop - first),
                ensemble=1,
                device=self._device,
                stand_ins=levels,
                drift=None if movie.drift is None else movie.drift[first:last],
                brightness=None if part.is_steady else part,
                far=None if movie.far is None else movie.far.part(first, rows.start, columns.start),
            )
            for number, shown in zip(range(start, stop), frames, strict=True):
                if seen.valid[number] and np.isfinite(shown[0, 0]):
                    row, column = places[number].tolist()
                    k = number - first
                    level = part.at(slice(k, k + 1), (0, counts.shape[1]), (0, counts.shape[2]))[0]
                    evidence.add(counts[k], shown, level, (row, column), sound)
        z = significance(evidence, SIZE)
        squares, numbers = block_sums(np.square(z)[None], (1, BLOCK, BLOCK), evidence.level > 0)
        return squares, numbers.astype(np.float64)


def _middle(size: int, stride: int) -> slice:
    """A part in the middle of an axis, which begins on the network's grid."""
    extent = min(PIXELS, size)
    start = (size - extent) // 2 // stride * stride
    return slice(start, start + extent)


def _stretches(n_frames: int) -> list[tuple[int, int]]:
    """First and last (excluded) frames of stretches that do not overlap."""
    if n_frames <= FRAMES:
        return [(0, n_frames)]
    length = FRAMES // STRETCHES
    starts = np.linspace(0, n_frames - length, STRETCHES).astype(int).tolist()
    return [(start, start + length) for start in starts]
