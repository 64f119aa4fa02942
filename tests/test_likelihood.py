"""Likelihood ratios: with the distribution they claim, for and against."""

import numpy as np
import pytest
from scipy.ndimage import gaussian_filter

from tdenoise.evaluation.likelihood import likelihood_ratio, without_columns

SHAPE = (60, 80, 80)


def images():
    rows, columns = np.indices(SHAPE[1:])
    flat = np.full(SHAPE, 2.0)
    return flat + 0.5 * np.sin(rows / 2) * np.sin(columns / 2), flat


@pytest.mark.parametrize("truth", [0, 1])
def test_z_scores_are_standard_where_an_image_is_true(truth):
    f, v = images()
    counts = np.random.default_rng(0).poisson((f, v)[truth])
    found = likelihood_ratio(counts, f, v, window_px=8)
    right, wrong = (found.misfit, found.support) if truth == 0 else (found.support, found.misfit)
    assert right.shape == (60, 10, 10)
    assert right.mean() == pytest.approx(0, abs=0.05) and right.std() == pytest.approx(1, abs=0.05)
    assert np.abs(wrong.mean()) > 0.5 and np.sign(wrong.mean()) == (1 if truth == 0 else -1)
    assert np.sign(found.ratio.mean()) == (1 if truth == 0 else -1)


def test_ratio_is_that_of_the_poisson_law():
    from scipy.stats import poisson

    rng = np.random.default_rng(1)
    f, v = rng.uniform(0.5, 3, (2, 12, 10))
    counts = rng.poisson(f)
    found = likelihood_ratio(counts, f, v, window_px=5)
    expected = (poisson.logpmf(counts, f) - poisson.logpmf(counts, v))[:10]
    np.testing.assert_allclose(found.ratio, expected.reshape(2, 5, 2, 5).sum(axis=(1, 3)))


def test_equal_images_give_no_evidence_and_empty_predictions_no_infinity():
    counts = np.random.default_rng(2).poisson(1.0, (16, 16))
    assert not likelihood_ratio(counts, np.ones((16, 16)), np.ones((16, 16)), 8).support.any()
    found = likelihood_ratio(counts, np.zeros((16, 16)), np.ones((16, 16)), 8)
    assert np.isfinite(found.misfit).all() and np.abs(found.misfit).min() > 100


def test_columns_are_smoothed_away_and_what_is_large_stays():
    columns = np.arange(128)
    lattice = 1 + 0.3 * np.cos(2 * np.pi * columns / 16) + np.zeros((128, 1))
    assert np.ptp(without_columns(lattice, 16.0)[40:-40, 40:-40]) < 0.01 * 0.6
    shape = gaussian_filter(np.eye(128), 30)
    np.testing.assert_allclose(without_columns(shape[None], 16.0)[0], shape, atol=0.05 * shape.max())
