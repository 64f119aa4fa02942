from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.ndimage import fourier_shift, gaussian_filter

from tdenoise.drift import drift

SCENE = gaussian_filter(np.random.default_rng(0).normal(size=(96, 80)), 2, mode="wrap")


def moved(rows: float, columns: float) -> np.ndarray:
    return np.fft.ifft2(fourier_shift(np.fft.fft2(SCENE), (rows, columns))).real


@settings(max_examples=30, deadline=None)
@given(st.floats(-8, 8), st.floats(-8, 8))
def test_a_shift_is_measured_to_a_tenth_of_a_pixel(rows: float, columns: float) -> None:
    found = drift(np.stack([SCENE, moved(rows, columns)]))
    np.testing.assert_allclose(found[1], (rows, columns), atol=0.1 + 0.02 * max(abs(rows), abs(columns)))


def test_a_scene_that_leaves_the_first_image_behind_is_followed() -> None:
    path = np.stack([np.linspace(0, 60, 25), np.linspace(0, -40, 25)], axis=1)
    found = drift(np.stack([moved(*step) for step in path]))
    np.testing.assert_allclose(found, path, atol=1.5)


def test_noise_has_no_drift_and_a_constant_image_none_either() -> None:
    noise = np.random.default_rng(1).poisson(2.0, (20, 64, 64)).astype(np.float32)
    assert np.isnan(drift(noise)[1:]).all()
    assert np.isnan(drift(np.ones((3, 32, 32)))[1:]).all()


def test_drift_shows_under_noise() -> None:
    rng = np.random.default_rng(2)
    clean = np.stack([1 + 2 * moved(k / 4, -k / 8) for k in range(12)]).clip(0)
    found = drift(rng.poisson(20 * clean).astype(np.float32))
    np.testing.assert_allclose(found, [(k / 4, -k / 8) for k in range(12)], atol=0.5)
    assert found[0] == pytest.approx(0)
