"""Held-out frames: how good a network is, told from noisy counts alone that it never learned from."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from ..evaluation.metrics import block_sums
from ..evaluation.places import KINDS, kinds_of_place
from ..network.registry import Architecture, Network
from ..network.split_blind import stack_window
from ..network.windows import normalise, put_stand_ins
from ..noise.drift import largest_shift, window_shifts
from ..noise.gamma_poisson import LOG_SPREADS, likelihood_terms
from ..noise.thinning import thin
from .patches import Split
from .training_movie import TrainingMovie

VALIDATION_FRAMES = 24
VALIDATION_PIXELS = 256
MEAN_FRAMES = 64  # at most, of the mean that tells kinds of place
BLOCK = 8  # rows and columns of what `compare` takes as independent: noise is correlated over few pixels

# Of output, target, contrast and `Batch.electrons`, for every pixel of a frame.
Terms = Callable[[Tensor, Tensor, "float | Tensor", Tensor], Tensor]


class Sums(NamedTuple):
    """Over blocks of pixels; see `HeldOut.by_block`."""

    errors: NDArray[np.float64]  # of all sound pixels of a block
    weights: NDArray[np.float64]  # their number


def mean_of(sums: Sums) -> float:
    """Mean over all sound pixels."""
    return float(sums.errors.sum() / sums.weights.sum())


def compare(one: Sums, other: Sums) -> tuple[float, float]:
    """By how much the error of one network exceeds that of another, and the standard error of this difference.

    Over the same pixels: most of their noise is the same in both errors and cancels. Of what is left, that of
    neighbouring pixels is alike where the noise is correlated, and where the networks differ by what is smooth. So
    blocks are taken as independent, not pixels (the standard error of a ratio; Cochran 1977, chapter 6).

    Parameters
    ----------
    one, other : Sums
        From the same held-out frames.

    Returns
    -------
    tuple of float
        In units of the noise variance; of gamma heads, of the negative logarithm of the likelihood per pixel.
    """
    difference, weights = one.errors - other.errors, one.weights
    total = float(weights.sum())
    mean = float(difference.sum()) / total
    n_blocks = int((weights > 0).sum())
    squares = float(np.square(difference - mean * weights).sum())
    return mean, math.sqrt(squares * n_blocks / max(1, n_blocks - 1)) / total


class HeldOut:
    """Error of a prediction on held-out frames, from noisy counts alone that it never saw.

    For a prediction ``f`` that never saw the counts ``y``, ``mean((y - f)^2)`` exceeds the true error by the
    noise variance, the same for every network; so it is called with networks that are compared, and the lowest
    wins (design, section 6). A network that is not blind is shown a part of the counts of a frame and compared
    with the rest, by ``split``. With ``least_dose``, two of three frames are thinned, to that share of the dose
    and half of the way there.
    """

    def __init__(
        self,
        movies: Sequence[TrainingMovie],
        architecture: Architecture,
        device: str,
        mixed_precision: bool,
        split: Split | None = None,
        least_dose: float = 1.0,
    ) -> None:
        self._samples: list[tuple[Tensor, Tensor, float, Tensor]] = []
        self._device = device
        self._mixed = mixed_precision
        n_each = max(1, VALIDATION_FRAMES // max(1, len(movies)))
        self._places: list[tuple[int, int, int]] = []  # movie, row and column of every one of them
        for index, movie in enumerate(movies):
            sound = movie.seen.valid
            held = [t for t in movie.held_out if sound[t]] or np.flatnonzero(sound).tolist()
            chosen = [held[i] for i in np.unique(np.linspace(0, len(held) - 1, n_each).round().astype(int))]
            for number, frame in enumerate(chosen):
                share = least_dose ** (number % 3 / 2)
                self._samples.append(_validation_sample(movie, architecture, frame, number, split, share))
                self._places.append((index, *_corner(movie, architecture, number)))

    def kinds(self, movies: Sequence[TrainingMovie]) -> NDArray[np.intp]:
        """Kind of place of every block that `by_block` sums over; see `tdenoise.evaluation.places`."""
        found = []
        maps = {number: _kinds_of_movie(movie) for number, movie in enumerate(movies)}
        for (movie, row, column), (_, weighted, *_) in zip(self._places, self._samples, strict=True):
            height, width = weighted.shape[1:]
            kinds = maps[movie][row : row + height, column : column + width]
            kinds = np.pad(kinds, ((0, height - kinds.shape[0]), (0, width - kinds.shape[1])), mode="edge")
            shares = [
                block_sums((kinds == k)[None].astype(float), (1, BLOCK, BLOCK))[0] for k in range(len(KINDS))
            ]
            found.append(np.argmax(shares, axis=0))
        return np.concatenate(found)

    @property
    def resolution(self) -> float:
        """Difference of two networks that differ by a few percent of the noise, which chance alone explains."""
        n_pixels = sum(float(weighted[2].sum()) for _, weighted, *_ in self._samples)
        return 0.03 / math.sqrt(n_pixels)

    def __call__(self, network: Network) -> float:
        """Mean square of ``noisy - predicted`` in units of the noise variance."""
        return float(self._means(network, _square)[0])

    def look(self, network: Network) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
        """One held-out frame as it was recorded and as a network predicts it, in units of the noise, (height, width).

        Of a large frame, a part.
        """
        network.eval()
        neighbours, weighted, contrast, _ = self._samples[0]
        kind = torch.device(self._device).type
        with torch.inference_mode(), torch.autocast(kind, torch.bfloat16, enabled=self._mixed):
            output = network(neighbours[None].to(self._device), weighted[None, :1].to(self._device))
        # Without what fills the sample up to a multiple of the stride.
        rows, columns = (int(weighted[2].any(dim=axis).nonzero().max()) + 1 for axis in (1, 0))
        predicted = contrast * output[0, 0].float().cpu()
        return weighted[1, :rows, :columns].numpy(), predicted[:rows, :columns].numpy()

    def likelihood(self, network: Network) -> float:
        """Mean negative logarithm of the likelihood of the counts of a pixel, for a gamma head."""
        return float(self._means(network, likelihood_terms)[0])

    def by_block(self, network: Network, *, squares: bool = False) -> Sums:
        """Sums of the error, of a gamma head of the likelihood, over blocks of every frame; see `compare`.

        With ``squares``, of a gamma head the squared error, too: to compare it with others.
        """
        terms = _square if squares else _deciding
        found = [
            [block_sums(part.double().numpy(), (1, BLOCK, BLOCK))[0] for part in (weight * error, weight)]
            for error, weight in self._found(network, terms)
        ]
        errors, weights = (np.concatenate(parts) for parts in zip(*found, strict=True))
        return Sums(errors, weights)

    def constant_spread(self, network: Network) -> float:
        """The second output of a gamma head that is likeliest if it is the same everywhere.

        Not below what these frames can tell: the error of a good prediction is a thousandth of the noise variance,
        and its estimate may be less than nothing. A head that began there would learn no more: the likelihood of an
        uncertainty so small does not depend on it.
        """
        n_pixels = sum(float(weighted[2].sum()) for _, weighted, *_ in self._samples)
        contrast = self._samples[0][2]
        least = math.log((2 / n_pixels) ** 0.25 / contrast)
        levels = torch.linspace(max(least, LOG_SPREADS[0]), LOG_SPREADS[1], 37)

        def terms(output: Tensor, target: Tensor, contrast: float | Tensor, electrons: Tensor) -> Tensor:
            heads = (torch.cat([output[:1], level.expand_as(output[:1])]) for level in levels)
            return torch.cat([likelihood_terms(head, target, contrast, electrons) for head in heads])

        return float(levels[self._means(network, terms).argmin()])

    def _means(self, network: Network, terms: Terms) -> Tensor:
        """Means of terms over all sound pixels, one for each channel that ``terms`` returns."""
        total, n_pixels = torch.zeros(1, dtype=torch.float64), 0.0
        for found, weight in self._found(network, terms):
            total = total + (weight * found).sum(dim=(1, 2), dtype=torch.float64)
            n_pixels += float(weight.sum(dtype=torch.float64))
        return total / n_pixels

    def _found(self, network: Network, terms: Terms) -> Iterator[tuple[Tensor, Tensor]]:
        """Terms and their weights, frame by frame."""
        network.eval()
        kind = torch.device(self._device).type
        for neighbours, weighted, contrast, electrons in self._samples:
            centre, target, weight = weighted[:1], weighted[1:2], weighted[2:]
            with torch.inference_mode(), torch.autocast(kind, torch.bfloat16, enabled=self._mixed):
                output = network(neighbours[None].to(self._device), centre[None].to(self._device))
            yield terms(output[0].float().cpu(), target, contrast, electrons), weight


def _square(output: Tensor, target: Tensor, contrast: float | Tensor, electrons: Tensor) -> Tensor:
    return (target - contrast * output[:1]).square()


def _deciding(output: Tensor, target: Tensor, contrast: float | Tensor, electrons: Tensor) -> Tensor:
    gamma = output.shape[0] == 2
    return (likelihood_terms if gamma else _square)(output, target, contrast, electrons)


def _extent(movie: TrainingMovie, architecture: Architecture) -> tuple[int, int]:
    """Rows and columns of a sample, whole multiples of the stride."""
    rows, columns = (-(-n // architecture.stride) * architecture.stride for n in movie.frames.shape[1:])
    return min(VALIDATION_PIXELS, rows), min(VALIDATION_PIXELS, columns)


def _corner(movie: TrainingMovie, architecture: Architecture, number: int) -> tuple[int, int]:
    """Row and column at which a sample begins."""
    rng = np.random.default_rng(number)
    sizes = zip(movie.frames.shape[1:], _extent(movie, architecture), strict=True)
    row, column = (int(rng.integers(max(1, n - size + 1))) for n, size in sizes)
    return row, column


def _kinds_of_movie(movie: TrainingMovie) -> NDArray[np.intp]:
    """Kinds of place in the mean of frames that are spread over a movie."""
    sound = np.flatnonzero(movie.seen.valid)
    chosen = sound[np.unique(np.linspace(0, len(sound) - 1, MEAN_FRAMES).round().astype(int))]
    height, width = movie.frames.shape[1:]
    mean, seen = np.zeros((height, width)), movie.seen
    for frame in chosen.tolist():
        level = seen.at(slice(frame, frame + 1), (0, height), (0, width))[0]
        mean += np.asarray(movie.frames[frame], np.float64) / level
    mean /= len(chosen)
    if movie.stand_ins is not None:
        mean = np.where(np.isfinite(movie.stand_ins), movie.stand_ins, mean)
    return kinds_of_place(mean, movie.scale.noise**2 / len(chosen))


def _validation_sample(
    movie: TrainingMovie,
    architecture: Architecture,
    frame: int,
    number: int,
    split: Split | None,
    share: float = 1.0,
) -> tuple[Tensor, Tensor, float, Tensor]:
    """Window of a held-out frame; what is shown of it, its target and the weight of that; `Batch.electrons`.

    Of a large frame, a part that differs from frame to frame.
    """
    size_y, size_x = _extent(movie, architecture)
    row, column = _corner(movie, architecture, number)
    rng = np.random.default_rng([number, 1])
    seen = movie.seen
    indices, _ = seen.window(frame, architecture.window)
    bright = float(seen.around(architecture.window)[frame])
    first, last = min(indices.min(), frame), max(indices.max(), frame)
    # With the pixels around that frames are shifted by.
    shift = largest_shift(movie.drift, architecture.window)
    top, left = max(0, row - shift), max(0, column - shift)
    around = slice(top, row + size_y + shift), slice(left, column + size_x + shift)
    inner = slice(row - top, row - top + size_y), slice(column - left, column - left + size_x)
    wide = np.asarray(movie.frames[first : last + 1, *around])
    if share < 1:
        wide = thin(wide, share, rng)
    counts = wide[frame - first, *inner][None]
    place = (top, top + wide.shape[1]), (left, left + wide.shape[2])
    factors = np.asarray(bright / seen.at(slice(first, last + 1), *place), np.float32)
    if not seen.is_even:
        wide = wide * factors
    factor, share = factors[frame - first][None], share * bright
    if factor.size > 1:
        factor = factor[:, *inner]
    scale = movie.scale.at_share(share)
    extent = (max(n, part.stop) for n, part in zip(wide.shape[1:], inner, strict=True))
    frames = normalise(wide, scale, *extent)
    weight = torch.zeros((1, size_y, size_x))
    weight[:, : counts.shape[1], : counts.shape[2]] = torch.from_numpy(1 / factor)
    if movie.stand_ins is not None:
        put_stand_ins(frames, np.float32(share) * movie.stand_ins[around], scale)
        levels = np.float32(share) * movie.stand_ins[row : row + size_y, column : column + size_x]
        rows, columns = np.nonzero(np.isfinite(levels))
        weight[:, rows, columns] = 0
    shifts = window_shifts(movie.drift, frame, indices)
    neighbours = stack_window(frames, indices - first, architecture.bins, shifts)[:, inner[0], inner[1]]
    neighbours = movie.with_far(neighbours, frame, (row, column), architecture.far_bins)
    frames = frames[:, inner[0], inner[1]]
    centre = target = frames[frame - first][None]
    if split is not None:
        shown, held, worth = split(counts, rng)
        centre, target = (normalise(factor * part, scale, size_y, size_x) for part in (shown, held))
        if movie.stand_ins is not None:
            put_stand_ins(centre, levels, scale)
        weight *= worth
    contrast = scale.contrast / scale.noise
    return neighbours, torch.cat([centre, target, weight]), contrast, movie.electrons(share)
