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


def test_the_variance_of_an_ensemble_is_the_error_of_its_mean() -> None:
    errors = 2.0 * np.random.default_rng(0).standard_normal((4, 200_000)) + np.random.default_rng(
        1
    ).standard_normal(200_000)
    single, between = torch.tensor((errors**2).mean()), torch.tensor(errors.var(axis=0).mean())
    assert float(pool(single, between, 4)) == pytest.approx((errors.mean(axis=0) ** 2).mean())
