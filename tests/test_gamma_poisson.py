"""What a gamma head says of its uncertainty, against distributions worked out by other means."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from tdenoise.noise.gamma_poisson import (
    negative_log_likelihood,
    pool,
    posterior,
    unbiased_error_terms,
)


def tensor(*values: float) -> torch.Tensor:
    return torch.tensor(values, dtype=torch.float64)


@given(y=st.integers(0, 300), mean=st.floats(0.01, 200), alpha=st.floats(0.05, 1e4))
def test_the_likelihood_is_that_of_the_negative_binomial_distribution(
    y: int, mean: float, alpha: float
) -> None:
    found = float(negative_log_likelihood(tensor(y), tensor(mean), tensor(mean**2 / alpha)))
    assert found == pytest.approx(-stats.nbinom.logpmf(y, alpha, alpha / (alpha + mean)), rel=1e-3, abs=1e-4)


@given(y=st.integers(0, 300), mean=st.floats(0.1, 200), variance=st.floats(0, 1e-9))
def test_without_uncertainty_it_is_that_of_the_poisson_distribution(
    y: int, mean: float, variance: float
) -> None:
    found = float(negative_log_likelihood(tensor(y), tensor(mean), tensor(variance)))
    assert found == pytest.approx(-stats.poisson.logpmf(y, mean), rel=1e-3, abs=1e-4)


@pytest.mark.parametrize(("y", "mean", "variance"), [(0, 0.5, 0.1), (7, 2.0, 1.5), (30, 25.0, 9.0)])
def test_the_posterior_is_that_of_bayes_on_a_grid(y: int, mean: float, variance: float) -> None:
    x = np.linspace(1e-4, 20 * mean + 20, 400_000)
    weight = stats.gamma.pdf(x, mean**2 / variance, scale=variance / mean) * stats.poisson.pmf(y, x)
    expected = (x * weight).sum() / weight.sum()
    scatter = ((x - expected) ** 2 * weight).sum() / weight.sum()
    found = [float(part) for part in posterior(tensor(y), tensor(mean), tensor(variance))]
    np.testing.assert_allclose(found, [expected, scatter], rtol=1e-3)


@pytest.mark.parametrize("gain", [1.0, 3.0])
def test_the_error_of_a_posterior_mean_is_estimated_without_bias(gain: float) -> None:
    rng = np.random.default_rng(0)
    truth = rng.gamma(4.0, 0.5, 400_000)
    y = rng.poisson(truth)
    # The prior is wrong on purpose: the estimate holds for any.
    mean, variance = posterior(torch.from_numpy(y), tensor(2.5), tensor(2.0))
    terms = unbiased_error_terms(gain * y, gain * mean.numpy(), gain**2 * variance.numpy(), gain)
    true = gain**2 * np.mean((mean.numpy() - truth) ** 2)
    assert terms.mean() == pytest.approx(true, abs=4 * terms.std() / np.sqrt(len(y)))
    blind_terms = (gain * y - gain * mean.numpy()) ** 2 - gain**2 * y
    assert blind_terms.mean() < 0.7 * true, "as if it were blind, it would look far too good"


def test_the_variance_of_an_ensemble_is_the_error_of_its_mean() -> None:
    errors = 2.0 * np.random.default_rng(0).standard_normal((4, 200_000)) + np.random.default_rng(
        1
    ).standard_normal(200_000)
    single, between = torch.tensor((errors**2).mean()), torch.tensor(errors.var(axis=0).mean())
    assert float(pool(single, between, 4)) == pytest.approx((errors.mean(axis=0) ** 2).mean())
