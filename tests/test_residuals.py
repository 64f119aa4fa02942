"""Residuals: white where only noise was removed, and telling where more was."""

import math

import numpy as np
import pytest

from tdenoise.evaluation import residuals

SHAPE = (24, 96, 96)


def static_scene():
    """A clean frame with structure, repeated."""
    rows, cols = np.indices(SHAPE[1:])
    return np.broadcast_to(1 + 0.3 * np.sin(rows / 5) * np.cos(cols / 7), SHAPE)


def residual_report(counts, denoised, **options):
    check = residuals.ResidualCheck(**options)
    for chunk in (slice(0, 5), slice(5, None)):
        check.add(counts[chunk], denoised[chunk])
    return check.result()


def test_residual_of_a_perfect_prediction_is_white_with_unit_variance():
    clean = static_scene()
    counts = np.random.default_rng(10).poisson(2 * clean)
    report = residual_report(counts, 2 * clean)
    tolerance = 5 / math.sqrt(counts.size)
    assert report.n_pixels == counts.size
    assert abs(report.mean) < tolerance
    assert abs(report.variance - 1) < 2 * tolerance
    assert report.autocorrelation[0, 3] == pytest.approx(1)
    others = np.delete(report.autocorrelation.ravel(), 3)
    assert np.abs(others).max() < tolerance
    assert abs(report.temporal_autocorrelation) < tolerance
    assert np.abs(report.power[4:] - 1).max() < 0.15  # the first rings have few members
    assert report.frequency[-1] == 0.5


def test_lattice_left_in_the_residual_stands_out_at_its_frequency():
    clean = static_scene()
    lattice = np.broadcast_to(0.3 * np.cos(2 * np.pi * np.arange(96) / 8), SHAPE)
    counts = np.random.default_rng(11).poisson(2 * (clean + lattice))
    report = residual_report(counts, 2 * clean)
    assert report.frequency[report.power.argmax()] == pytest.approx(1 / 8)
    assert report.power.max() > 1.5
    assert report.temporal_autocorrelation > 0.02
    assert report.autocorrelation[0, 3 + 3] < -0.005 < 0.005 < report.autocorrelation[1, 3]


def test_residual_lags_have_the_right_direction():
    rng = np.random.default_rng(12)
    noise = rng.normal(size=(12, 64, 65))
    diagonal = noise + np.roll(noise, (1, -2), (1, 2))
    ones = np.ones_like(noise)
    report = residual_report(ones + diagonal, ones)
    expected = np.zeros((4, 7))
    expected[0, 3], expected[1, 3 - 2] = 1, 0.5
    np.testing.assert_allclose(report.autocorrelation, expected, atol=0.03)
    assert report.variance == pytest.approx(2, rel=0.03)


def test_residual_uses_gain_and_read_noise():
    clean = static_scene()
    rng = np.random.default_rng(13)
    counts = 7 * rng.poisson(2 * clean) + rng.normal(0, 4, SHAPE)
    report = residual_report(counts, 14 * clean, gain=7.0, read_variance=16.0)
    assert report.variance == pytest.approx(1, abs=0.02)


@pytest.mark.parametrize("size", [(1, 1), (1, 40), (40, 1), (2, 40), (2, 2), (3, 1)])
def test_residual_of_narrow_frames_has_the_lags_that_fit(size):
    noise = np.random.default_rng(16).normal(size=(200, *size))
    report = residual_report(1 + noise, np.ones_like(noise))
    rows, columns = np.indices(report.autocorrelation.shape)
    fits = (rows < size[0]) & (np.abs(columns - 3) < size[1])
    np.testing.assert_array_equal(np.isfinite(report.autocorrelation), fits)
    assert report.autocorrelation[0, 3] == pytest.approx(1)
    assert len(report.power) == len(report.frequency) == min(size) // 2


def test_residual_of_zero_prediction_is_finite():
    report = residual_report(np.zeros(SHAPE), np.zeros(SHAPE), floor=0.01)
    assert report.mean == 0 and report.variance == 0 and np.isnan(report.autocorrelation).all()


@pytest.mark.parametrize("shape", [(32, 32), (33, 40), (40, 33)])
def test_power_is_the_ring_mean_of_the_full_spectrum_for_even_and_odd_sizes(shape):
    noise = np.random.default_rng(14).normal(size=(9, *shape))
    report = residual_report(1 + noise, np.ones_like(noise))
    radius = np.hypot(np.fft.fftfreq(shape[0])[:, None], np.fft.fftfreq(shape[1]))
    power = np.mean(np.abs(np.fft.fft2(noise)) ** 2, axis=0) / noise[0].size
    width = report.frequency[0]
    expected = [power[np.rint(radius / width) == ring].mean() for ring in range(1, len(report.power) + 1)]
    np.testing.assert_allclose(report.power, expected)
    assert report.frequency[-1] == 0.5
