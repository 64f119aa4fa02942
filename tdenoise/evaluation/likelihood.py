"""Do the counts support what a denoised frame shows? A likelihood ratio per window (after Vincent et al. 2021).

A picture that looks convincing may still be invented. Where it shows structure, the raw counts must be more likely
under it than under an alternative without that structure [1]_.

References
----------
.. [1] Vincent et al., "Developing and evaluating deep neural network-based denoising for nanoparticle TEM images
   with ultra-low signal-to-noise", Microsc. Microanal. 27, 1431 (2021).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

Array = NDArray[Any]

LEAST_RATE = 1e-3  # electrons per pixel: a prediction of none at all would be refuted by a single one


@dataclass(frozen=True)
class Evidence:
    """Log-likelihood ratio of windows, and how it compares with what either image leads to expect."""

    ratio: Array  # natural logarithm; above 0 the counts speak for the denoised image
    support: Array  # standard deviations above what the alternative would give; noise alone gives 0 +- 1
    misfit: Array  # standard deviations from what the denoised image would give; 0 +- 1 if it is right


def likelihood_ratio(counts: Array, denoised: Array, alternative: Array, window_px: int) -> Evidence:
    """Evidence of Poisson counts for a denoised image and against an alternative, in windows.

    ``sum(y log(f / v) - (f - v))`` over a window, for counts y, denoised image f and alternative v. Under either
    image its mean and variance are known: ``sum(x log(f / v) - (f - v))`` and ``sum(x log(f / v)**2)`` with x = f
    or v. The prediction of a pixel must not have seen it.

    Parameters
    ----------
    counts : ndarray, shape (..., height, width)
        [electrons]
    denoised, alternative : ndarray, same shape
        [electrons]
    window_px : int
        Side of the square windows, which tile the frame from its upper left; what is left over is left out.

    Returns
    -------
    Evidence
        Arrays of shape (..., height // window_px, width // window_px); where both images agree, 0.
    """
    y = np.asarray(counts, np.float64)
    f, v = (np.maximum(np.asarray(a, np.float64), LEAST_RATE) for a in (denoised, alternative))
    log = np.log(f / v)

    def total(terms: Array) -> Array:
        height, width = (n // window_px for n in terms.shape[-2:])
        cut = terms[..., : height * window_px, : width * window_px]
        blocks = cut.reshape(*terms.shape[:-2], height, window_px, width, window_px)
        summed: Array = blocks.sum(axis=(-3, -1))
        return summed

    ratio = total(y * log - (f - v))
    expected = {name: (total(x * log - (f - v)), total(x * log**2)) for name, x in (("f", f), ("v", v))}
    support, misfit = (
        np.divide(ratio - mean, np.sqrt(variance), out=np.zeros_like(ratio), where=variance > 0)
        for mean, variance in (expected["v"], expected["f"])
    )
    return Evidence(ratio, support, misfit)


def without_columns(denoised: Array, distance_px: float) -> Array:
    """The same frame with its columns smoothed away: the alternative that there are none.

    Parameters
    ----------
    denoised : ndarray, shape (..., height, width)
    distance_px : float
        Distance of the lattice planes; a Gaussian of half of it leaves less than 1 % of them.
    """
    sigma = (0,) * (np.ndim(denoised) - 2) + (distance_px / 2,) * 2
    smooth: Array = ndimage.gaussian_filter(np.asarray(denoised, np.float64), sigma, mode="nearest")
    return smooth
