"""Means over places around: of values, of their noise, and how far off such a mean is."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage, special

Array = NDArray[Any]
Lags = Iterable[tuple[int, int, float]]  # rows, columns and correlation of the noise of pixels so far apart

FARTHEST = 4.0  # standard deviations of a Gaussian kernel


def ratio(values: Array, over: Array, otherwise: float = 0.0) -> Array:
    """``values / over``, and something else where there is nothing to divide by."""
    out = np.full(np.shape(values), otherwise)
    return np.asarray(np.divide(values, over, out=out, where=over > 0))


def mean_over(values: Array, weight: Array, sigma: float) -> Array:
    """Mean of values around every place; those of no weight are left out."""
    return ratio(smoothed(values * weight, sigma), smoothed(weight.astype(float), sigma)) if sigma else values


def mean_around(
    values: Array, variance: Array, weight: Array, sigma: float, correlations: Lags
) -> tuple[Array, Array]:
    """Means of values around every place, and their variance; those of no weight are left out."""
    if not sigma:
        return values, variance
    total = smoothed(weight.astype(float), sigma)
    # The square of a Gaussian is one, too; its sum is that of the squared weights.
    squares = noise_gain(kernel_of(sigma), correlations) * smoothed(
        variance * np.square(weight), sigma / np.sqrt(2)
    )
    return ratio(smoothed(values * weight, sigma), total), ratio(squares, np.square(total))


def smoothed(image: Array, sigma: float) -> Array:
    """An image after a Gaussian filter; nothing lies outside of it."""
    if sigma == 0:
        return image
    return np.asarray(ndimage.gaussian_filter(image, sigma, mode="constant", truncate=FARTHEST))


def kernel_of(sigma: float) -> Array:
    """The Gaussian that `smoothed` weighs with, as an image."""
    reach = int(FARTHEST * sigma + 0.5)
    impulse = np.zeros((2 * reach + 1, 2 * reach + 1))
    impulse[reach, reach] = 1
    return smoothed(impulse, sigma) if sigma else impulse


def of_few_counts(z: Array, shown: Array, deviation: Array) -> Array:
    """Deviations of means of few counts, as those of a normal distribution that are as unlikely.

    The root of the deviance of counts is nearly normal (McCullagh & Nelder 1989, section 2.4).
    """
    root = np.sqrt(np.square(ratio(shown.clip(0), deviation)).clip(1e-9))
    excess = np.maximum(z / root, -1.0)
    deviance = special.xlog1py(1 + excess, excess) - excess
    return np.asarray(np.sign(z) * np.sqrt(2 * np.square(root) * deviance.clip(0)))


def noise_gain(kernel: Array, correlations: Lags) -> float:
    """Variance of noise after a convolution, over its variance before."""
    gain = float(np.square(kernel).sum())
    height, width = kernel.shape
    for rows, columns, value in correlations:
        if rows < height and abs(columns) < width:
            one = kernel[rows:, max(0, columns) : width + min(0, columns)]
            other = kernel[: height - rows, max(0, -columns) : width - max(0, columns)]
            gain += 2 * value * float((one * other).sum())
    return max(gain, 1e-6)
