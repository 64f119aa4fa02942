"""How much of a movie's signal is explained, told without a truth, and whether a plain filter explains as much.

An error that is a small share of the noise says little where the signal is a small share of it, too: a blank image then
has a small error. So the error is compared with the signal, whose variance shows in products of independent frames, and
with the errors of a blank image and of a Gaussian filter on the same frames.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

from tdenoise.evaluation import metrics
from tdenoise.noise.brightness import Brightness

from ..inputs.model_fit import movie_brightness
from ..inputs.paired import SLAB_FRAMES
from ..store import store
from .estimates import NoiseLaw, interval
from .evaluation_result import Estimate, ExplainedFigures

Array = NDArray[Any]

PARTS, FRAMES, PIXELS = (
    4,
    32,
    256,
)  # that are looked at: stretches of so many frames and an extent in the middle
WIDTHS_T, WIDTHS_XY = (0.0, 1.0, 2.0, 4.0, 8.0), (0.7, 1.2, 2.0, 3.5)  # of the filters, standard deviations
FARTHEST = 4.0
LAGS = 4  # frames apart, at most, whose products show the signal
BLOCK = (SLAB_FRAMES, 16, 16)  # whose sums are taken as independent


def explained(
    movie: store.Store, denoised: store.Store, noise: NoiseLaw, blind: bool, frames: Sequence[int]
) -> ExplainedFigures | None:
    """Share of the signal's variance that is explained.

    Parameters
    ----------
    movie, denoised : Store
    noise : NoiseLaw
    blind : bool
        Whether the prediction of a pixel has not seen its own count; of others nothing can be said.
    frames : sequence of int
        That are looked at, as far as they lie in a few stretches: those whose error is stated.

    Returns
    -------
    ExplainedFigures or None
        None where the noise of a pixel is not known, or no signal is seen.
    """
    if noise.estimator != "poisson" or not blind or movie.shape[0] < 3 or not frames:
        return None
    parts = [_part(movie, denoised, first, set(frames)) for first in _starts(movie.shape[0], frames)]
    parts = [part for part in parts if len(part.counts) >= 3 and part.chosen.any()]
    if not parts:
        return None
    signal = _sums(parts, lambda part: _signal_terms(part.counts))
    n_pixels = sum(int(part.chosen.sum()) * part.counts[0].size for part in parts)
    if not metrics.bootstrap_interval(signal, np.full(len(signal), n_pixels / len(signal))).low > 0:
        return None

    def gained(part: _Part, predicted: Array, own: Array | float = 0.0) -> Array:
        """Terms whose mean is by how much the squared error is less than that of a blank image.

        Most of the noise is the same in both errors and cancels. ``own`` is the weight of the own count.
        """
        blank = part.counts.mean()
        own_noise = (noise.gain * part.counts + noise.read_variance / part.levels) / part.levels
        less = (predicted - blank) * (2 * part.counts - predicted - blank)
        return np.asarray(less - 2 * own * own_noise)

    def filtered(t: float, xy: float) -> Array:
        return _sums(parts, lambda part: gained(part, *_gaussian(part.counts, (t, xy, xy))))

    own = _sums(parts, lambda part: gained(part, part.smooth))
    filters = {(t, xy): filtered(t, xy) for t in WIDTHS_T for xy in WIDTHS_XY}
    best = max(filters, key=lambda widths: float(filters[widths].sum()))
    return {
        "signal_variance": float(signal.sum() / n_pixels),
        "denoised": _ratio(own, signal),
        "gaussian": {**_ratio(filters[best], signal), "sigma_t_frames": best[0], "sigma_xy_pixels": best[1]},
        "over_filter": _ratio(own - filters[best], signal),
        "n_pixels": n_pixels,
    }


def _starts(n_frames: int, frames: Sequence[int]) -> list[int]:
    """First frames of a few stretches that hold some of those asked for."""
    chosen = np.linspace(0, len(frames) - 1, max(1, min(PARTS, n_frames // FRAMES))).round().astype(int)
    last = max(0, n_frames - FRAMES)
    starts = sorted({min(last, max(0, sorted(frames)[i] - FRAMES // 2)) for i in chosen.tolist()})
    # They do not overlap.
    return [start for k, start in enumerate(starts) if k == 0 or start >= starts[k - 1] + FRAMES]


class _Part(NamedTuple):
    """A part of a movie at one brightness; sound frames only."""

    counts: Array
    smooth: Array
    levels: Array  # (n, 1, 1), or of every pixel
    chosen: NDArray[np.bool_]  # frames that were asked for


def _part(movie: store.Store, denoised: store.Store, first: int, frames: set[int]) -> _Part:
    stop = min(movie.shape[0], first + FRAMES)
    middle = tuple(
        slice((n - min(n, PIXELS)) // 2, (n - min(n, PIXELS)) // 2 + min(n, PIXELS)) for n in movie.shape[1:]
    )
    counts, smooth = (
        store.read_frames(s, first, stop)[:, *middle].astype(np.float64) for s in (movie, denoised)
    )
    brightness = movie_brightness(movie) or Brightness.steady(movie.shape[0])
    valid = brightness.valid[first:stop]
    levels = brightness.at(slice(first, stop), *((part.start, part.stop) for part in middle))[valid]
    chosen = np.array([number in frames for number in range(first, stop)])[valid]
    return _Part(counts[valid] / levels, smooth[valid] / levels, levels, chosen)


def _signal_terms(counts: Array) -> Array:
    """Products of frames close to each other about their means: their noise is independent, and the signal remains."""
    flat = counts - counts.mean(axis=(1, 2), keepdims=True)
    total, number = np.zeros(counts.shape), np.zeros((len(counts), 1, 1))
    for lag in range(1, min(LAGS, len(counts) - 1) + 1):
        products = flat[lag:] * flat[:-lag]
        for frames in (slice(None, -lag), slice(lag, None)):
            total[frames] += products
            number[frames] += 1
    return np.asarray(total / number)


def _sums(parts: Iterable[_Part], terms: Callable[[_Part], Array]) -> Array:
    """Sums of terms over blocks of pixels of the chosen frames, of one part of the movie after the other."""
    return np.concatenate([metrics.block_sums(terms(part)[part.chosen], BLOCK)[0] for part in parts])


def _gaussian(counts: Array, widths: tuple[float, float, float]) -> tuple[Array, Array]:
    """Frames after a Gaussian filter, and the weight that a pixel's own count has in each; no frame is made up."""
    norm, middle = np.ones((1, 1, 1)), 1.0
    for axis, (size, sigma) in enumerate(zip(counts.shape, widths, strict=True)):
        shape = [1, 1, 1]
        shape[axis] = size
        norm = norm * _line(np.ones(size), sigma).reshape(shape)
        impulse = np.zeros(2 * int(FARTHEST * sigma + 0.5) + 1)
        impulse[len(impulse) // 2] = 1
        middle *= float(_line(impulse, sigma).max())
    smooth = ndimage.gaussian_filter(counts, widths, mode="constant", truncate=FARTHEST)
    return np.asarray(smooth / norm), np.asarray(middle / norm)


def _line(values: Array, sigma: float) -> Array:
    if sigma == 0:
        return values
    return np.asarray(ndimage.gaussian_filter1d(values, sigma, mode="constant", truncate=FARTHEST))


def _ratio(sums: Array, signal: Array) -> Estimate:
    return interval(metrics.bootstrap_ratio(sums, signal))
