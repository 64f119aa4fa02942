"""How uncertain a blind prediction is: the Gamma-Poisson model.

What a blind network knows of the expected electrons ``x`` of a pixel is described by a Gamma distribution of mean ``m``
and variance ``v``, so of shape ``alpha = m^2 / v``. The count ``y`` is Poisson around ``x``, so it is negative binomial
around ``m``: its likelihood trains both numbers. This holds only where the noise of a pixel is independent of all that
the network saw: `refusal` tells.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional as F

from .noise import NoiseStatistics, choose, noise_law

Array = NDArray[Any]

LOG_SPREADS = (
    -3.0,
    3.0,
)  # of the second output; below, it would know more than 41 frames of some 100 pixels tell
FLOOR = 0.01  # of the movie's mean: where predictions are bent to stay positive
NARROWEST = 1e-8  # v / m^2 that is added to every v: a Poisson distribution to eight digits
WHOLE = 1e-3  # electrons by which a count may miss a whole number


def prior_variance(log_spread: Tensor, contrast: float | Tensor) -> Tensor:
    """Variance of the expected electrons as the network puts it.

    Parameters
    ----------
    log_spread : Tensor
        Second output of the network: logarithm of the standard deviation in units of ``contrast``.
    contrast : float or Tensor
        `tdenoise.noise.noise.Scale.contrast` [electrons].

    Returns
    -------
    Tensor of float64
        [electrons^2]
    """
    spread: Tensor = log_spread.double().clamp(*LOG_SPREADS).exp()
    return (spread * contrast).square()


def positive(mean: Tensor, level: float | Tensor) -> Tensor:
    """A prediction bent to stay above zero: unchanged from some 20 % of the movie's mean ``level`` on [electrons]."""
    floor = FLOOR * level
    return floor * F.softplus(mean.double() / floor)


def negative_log_likelihood(counts: Tensor, mean: Tensor, variance: Tensor) -> Tensor:
    """Of Poisson counts whose expectation is Gamma distributed: the negative binomial distribution.

    Its variance is ``mean + variance``; with a variance of zero it is the Poisson distribution. In float64: the
    logarithms of Gamma functions that are subtracted are far larger than their difference.

    Parameters
    ----------
    counts, mean, variance : Tensor
        ``y``, ``m`` above 0, and ``v`` from 0 [electrons, electrons, electrons^2].

    Returns
    -------
    Tensor of float64
        Natural logarithm, per pixel.

    Examples
    --------
    >>> y, m = torch.tensor([0.0, 1.0]), torch.tensor([2.0, 2.0])
    >>> [round(value, 4) for value in negative_log_likelihood(y, m, torch.zeros(2)).tolist()]  # 2, 2 - log 2
    [2.0, 1.3069]
    """
    y, m = counts.double(), mean.double()
    alpha = m.square() / (variance.double() + NARROWEST * m.square())
    combinations = torch.lgamma(alpha) + torch.lgamma(y + 1) - torch.lgamma(alpha + y)
    return combinations + alpha * torch.log1p(m / alpha) + y * torch.log1p(alpha / m)


def pool(mean_of_variances: Tensor, variance_of_means: Tensor, n_members: int) -> Tensor:
    """Variance of the mean of an ensemble.

    The mean of several predictions is better than these are on average, by exactly their variance among each other
    (the ambiguity decomposition, Krogh & Vedelsby 1995), so that is subtracted; in a mixture of distributions it would
    be added, but a mixture tells how far a member lies from the truth, not the mean. The error of the mean is never
    less than that of members whose errors are independent.

    Parameters
    ----------
    mean_of_variances, variance_of_means : Tensor
        Over the members.
    n_members : int

    Returns
    -------
    Tensor
    """
    return torch.maximum(mean_of_variances - variance_of_means, mean_of_variances / n_members)


def refusal(statistics: NoiseStatistics, gain: float, some_counts: Array) -> str | None:
    """Why the model does not fit a movie, with the figures; None where it does.

    Parameters
    ----------
    statistics : NoiseStatistics
    gain : float
        [counts per electron]
    some_counts : ndarray
        Some frames of the movie [counts].
    """
    law, choice = noise_law(statistics, gain), choose(statistics)
    if law is None or law.gain != gain or law.read_variance != 0:
        return (
            f"the noise is not that of single electrons of {gain:g} counts each (Fano factor {statistics.fano:.3f}, "
            f"correlations {statistics.correlation_y:+.3f} along y, {statistics.correlation_x:+.3f} along x, "
            f"{statistics.correlation_t:+.3f} in time)"
        )
    if choice.blind_radius != 0:
        return choice.reason.partition(";")[0]
    electrons = np.asarray(some_counts, dtype=np.float64) / gain
    broken = np.abs(electrons - np.round(electrons)) > WHOLE
    if broken.any():
        return f"{100 * broken.mean():.3g} % of the values are not whole electrons of {gain:g} counts"
    return None


def likelihood_terms(output: Tensor, target: Tensor, contrast: float | Tensor, electrons: Tensor) -> Tensor:
    """Negative log-likelihood of the counts under both channels of a gamma head.

    Parameters
    ----------
    output, target : Tensor, shapes (..., 2, height, width) and (..., 1, height, width)
        Of the network, and the counts in units of the noise.
    contrast : float or Tensor
        `tdenoise.noise.noise.Scale.contrast` over the noise.
    electrons : Tensor
        `tdenoise.training.patches.Batch.electrons`.

    Returns
    -------
    Tensor of float64, shape (..., 1, height, width)
    """
    mean, log_spread = output[..., :1, :, :], output[..., 1:, :, :]
    level, noise = electrons.double()[..., :1, :, :], electrons.double()[..., 1:, :, :]
    predicted = positive(level + noise * contrast * mean, level)
    return negative_log_likelihood(
        level + noise * target, predicted, prior_variance(log_spread, noise * contrast)
    )
