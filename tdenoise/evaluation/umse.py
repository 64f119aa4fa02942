"""The published estimate of the error of an image denoiser from a single noisy image, and how a script computes it.

Every square of 2 x 2 pixels gives one pixel to the image that is denoised, and three to noisy references of the same
scene [1]_. The denoiser runs at half the resolution, so the figure is not that of the movie it is used for: it is given
for comparison with the literature. `tdenoise.evaluation.metrics` has estimates at full resolution.

References
----------
.. [1] Marcos-Morales et al., "Evaluating unsupervised denoising requires unsupervised metrics", ICML 2023.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from .metrics import psnr

Array = NDArray[Any]


def quarters(frames: Array, rng: np.random.RandomState) -> tuple[Array, Array, Array, Array]:
    """Deal the pixels of every 2 x 2 square to four images of half the size, in random order.

    Parameters
    ----------
    frames : ndarray, shape (n, height, width)
        An odd last row or column is left out.
    rng : numpy.random.RandomState
        The order is drawn square by square, frame after frame.

    Returns
    -------
    tuple of 4 ndarray, shape (n, height // 2, width // 2)
    """
    height, width = (2 * (n // 2) for n in frames.shape[1:])
    cut = frames[:, :height, :width]
    squares = np.stack([cut[:, i::2, j::2] for i in (0, 1) for j in (0, 1)], axis=-1)
    flat = squares.reshape(-1, 4)
    for square in flat:
        rng.shuffle(square)
    one, two, three, four = (flat[:, i].reshape(squares.shape[:-1]) for i in range(4))
    return one, two, three, four


@dataclass(frozen=True)
class SingleImageError:
    """Error of a denoiser at half the resolution."""

    umse: float
    upsnr: float  # [dB]; infinite where the estimate is zero or below: not resolvable
    legacy_umse: float  # of images divided by their largest count; NaN from a single window
    legacy_upsnr: float  # NaN where a window gives an estimate below zero
    n_windows: int


def single_image_error(
    denoise: Callable[[Array], Array], windows: Iterable[Array], peak: float, seed: int = 0
) -> SingleImageError:
    """uMSE and uPSNR as published, and as the script computes them that users of UDVD have.

    Published: ``uMSE = mean((a - f(y))**2 - (b - c)**2 / 2)`` over all pixels of all images, and
    ``uPSNR = 10 log10(peak**2 / uMSE)`` of that mean with one peak for all.

    Legacy: each window is divided by the largest count in it; uPSNR is the mean of the logarithms of single
    images; and both sums are divided by one less than the number of images. The order of pixels is drawn anew from
    the same seed for each window. So it is larger, depends on the noise, and is undefined where one image gives an
    estimate below zero.

    Parameters
    ----------
    denoise : function of an ndarray, shape (n, height, width), that returns one of shape (height, width)
        A window of frames [counts] to its denoised middle frame.
    windows : iterable of ndarray, shape (n, height, width)
        Windows of the movie [counts]; n is odd.
    peak : float
        Of the clean movie [counts].
    seed : int
        Of the order of the pixels in a square.

    Returns
    -------
    SingleImageError
    """
    pooled, scaled = [], []
    for window in windows:
        y, *references = quarters(np.asarray(window, np.float64), np.random.RandomState(seed))
        a, b, c = (r[len(window) // 2] for r in references)
        error = float(np.mean((denoise(y) - a) ** 2 - (b - c) ** 2 / 2))
        pooled.append(error)
        scaled.append(error / float(window.max()) ** 2)
    n = len(pooled)
    legacy = [-10 * math.log10(e) if e > 0 else math.nan for e in scaled]
    umse = float(np.mean(pooled))
    return SingleImageError(
        umse,
        psnr(umse, peak),
        sum(scaled) / (n - 1) if n > 1 else math.nan,
        sum(legacy) / (n - 1) if n > 1 else math.nan,
        n,
    )
