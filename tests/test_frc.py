"""Fourier ring correlation: the values that signal and noise of known power must give."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.ndimage import gaussian_filter

from tdenoise.evaluation.frc import (
    RingCorrelation,
    RingSums,
    binomial_halves,
    truth_correlation,
)


def correlate(one, other):
    sums = RingSums()
    sums.add(one[:3], other[:3])
    sums.add(one[3:], other[3:])
    return sums.result()


@settings(max_examples=20, deadline=None)
@given(shape=st.tuples(st.integers(8, 40), st.integers(8, 40)), scale=st.floats(0.1, 10))
def test_movie_correlates_with_itself_and_with_its_negative(shape, scale):
    movie = np.random.default_rng(0).normal(size=(4, *shape))
    for sign in (1, -1):
        result = correlate(movie, sign * scale * movie + 3)
        np.testing.assert_allclose(result.correlation, sign)
    assert result.frequency[-1] == 0.5 and len(result.frequency) == min(shape) // 2


def test_correlation_of_halves_is_signal_over_signal_and_noise():
    rng = np.random.default_rng(1)
    signal, noise = rng.normal(0, 1, (40, 64, 64)), rng.normal(0, 2, (2, 40, 64, 64))
    result = correlate(signal + noise[0], signal + noise[1])
    z = (result.correlation - 0.2) * np.sqrt(result.n_values)
    assert 0.6 < z.std() < 1.4 and abs(z.mean()) < 0.6


def test_linear_filter_of_both_halves_changes_nothing():
    rng = np.random.default_rng(2)
    movie = gaussian_filter(rng.normal(size=(20, 64, 64)), (0, 2, 2))
    noise = 0.2 * rng.normal(size=(2, 20, 64, 64))
    raw = correlate(*(movie + noise))
    smooth = correlate(*(gaussian_filter(movie + n, (0, 1.5, 1.5)) for n in noise))
    np.testing.assert_allclose(smooth.correlation[:12], raw.correlation[:12], atol=0.05)


def test_invention_shows_against_the_other_raw_half_only():
    """A denoiser that adds the same picture to whatever it gets."""
    rng = np.random.default_rng(3)
    scene = 4 + gaussian_filter(rng.normal(0, 4, (30, 64, 64)), (0, 3, 3))
    invented = gaussian_filter(rng.normal(0, 2, (64, 64)), 1)
    halves = binomial_halves(rng.poisson(scene), rng)
    raw = correlate(*halves)
    honest = [gaussian_filter(h.astype(float), (0, 2, 2)) for h in halves]
    for denoised, lies in ((honest, False), ([h + invented for h in honest], True)):
        both, cross = correlate(*denoised), correlate(denoised[0], halves[1])
        truth = truth_correlation(cross, raw)
        # Both denoised halves have noise, the truth has none: honest halves agree with it better than with each other.
        gap = (both.correlation - truth)[2:4]
        assert gap.min() > 0.3 if lies else gap.max() < 0


def test_correlation_with_the_truth_is_estimated_without_it():
    rng = np.random.default_rng(4)
    scene = 8 + gaussian_filter(rng.normal(0, 12, (40, 64, 64)), (0, 2, 2))
    halves = binomial_halves(rng.poisson(np.maximum(scene, 0.1)), rng)
    denoised = gaussian_filter(halves[0].astype(float), (0, 1.5, 1.5))
    estimated = truth_correlation(correlate(denoised, halves[1]), correlate(*halves))
    np.testing.assert_allclose(estimated[1:8], correlate(denoised, scene).correlation[1:8], atol=0.05)
    assert np.isnan(estimated[-8:]).any()


@settings(max_examples=30, deadline=None)
@given(seed=st.integers(0, 2**32 - 1))
def test_halves_add_up_to_the_counts(seed):
    counts = np.random.default_rng(seed).integers(0, 256, (3, 4, 5)).astype(np.uint8)
    one, other = binomial_halves(counts, np.random.default_rng(seed))
    assert one.dtype == counts.dtype and np.array_equal(one + other, counts)
    assert one.max(initial=0) <= counts.max(initial=0)


def test_halves_of_poisson_counts_are_independent():
    counts = np.random.default_rng(5).poisson(3.0, 200_000)
    one, other = binomial_halves(counts, np.random.default_rng(6))
    assert abs(np.corrcoef(one, other)[0, 1]) < 0.01
    assert one.var() / one.mean() == pytest.approx(1, abs=0.02)


def test_limit_is_where_the_curve_crosses_the_threshold():
    frequency = np.array([0.1, 0.2, 0.3, 0.4])
    curve = RingCorrelation(frequency, np.array([1.0, 0.5, 0.1, 0.6]), np.ones(4))
    assert curve.limit(0.3) == pytest.approx(0.25)
    assert curve.limit(0.05) is None
    assert RingCorrelation(frequency, np.full(4, np.nan), np.ones(4)).limit() == 0.1
    with pytest.raises(ValueError, match="no frames"):
        RingSums().result()
