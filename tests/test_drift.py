from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.ndimage import fourier_shift, gaussian_filter
from scipy.signal.windows import tukey

from tdenoise.noise.drift import drift, tapered

SCENE = gaussian_filter(np.random.default_rng(0).normal(size=(96, 80)), 2, mode="wrap")


def moved(rows: float, columns: float) -> np.ndarray:
    return np.fft.ifft2(fourier_shift(np.fft.fft2(SCENE), (rows, columns))).real


@settings(max_examples=30, deadline=None)
@given(st.floats(-8, 8), st.floats(-8, 8))
def test_a_shift_is_measured_to_a_tenth_of_a_pixel(rows: float, columns: float) -> None:
    there = moved(rows, columns)
    images = np.stack([SCENE, SCENE, there, there])
    found = drift(np.stack([images, images], axis=1))
    np.testing.assert_allclose(found[2], (rows, columns), atol=0.1 + 0.02 * max(abs(rows), abs(columns)))


def test_the_window_of_an_image_is_that_of_tukey() -> None:
    for n in (1, 2, 7, 48, 96, 1023):
        np.testing.assert_allclose(tapered(n), tukey(n + 2, 0.2)[1:-1], atol=1e-12)


def test_a_scene_that_leaves_the_first_image_behind_is_followed() -> None:
    path = np.stack([np.linspace(0, 60, 25), np.linspace(0, -40, 25)], axis=1)
    images = np.stack([moved(*step) for step in path])
    np.testing.assert_allclose(drift(np.stack([images, images], axis=1)), path, atol=1.5)


@pytest.mark.parametrize("n", [*range(2, 13), 20])
def test_noise_has_no_drift_however_short_it_is(n: int) -> None:
    for seed in range(4):
        noise = np.random.default_rng(seed).poisson(2.0, (n, 2, 48, 48)).astype(np.float32)
        assert np.isnan(drift(noise)).all()


def test_a_gap_says_nothing_about_the_other_side() -> None:
    rng = np.random.default_rng(4)
    path = np.stack([0.4 * np.arange(40), -0.3 * np.arange(40)], axis=1)
    clean = np.stack([1 + 2 * moved(*step) for step in path]).clip(0)
    clean[15:25] = clean.mean()
    first, second = rng.poisson(16 * clean, (2, *clean.shape)).astype(np.float32)
    found = drift(np.stack([first, second], axis=1))
    known = np.isfinite(found[:, 0])
    assert known[:12].all() and not known[16:24].any() and known[28:].all()
    for side in (slice(0, 12), slice(28, 40)):
        np.testing.assert_allclose(found[side] - found[side][0], path[side] - path[side][0], atol=0.5)
    before, after = (
        np.flatnonzero(known[part])[end] + part.start
        for part, end in ((slice(0, 20), -1), (slice(20, 40), 0))
    )
    np.testing.assert_allclose(found[after], found[before])


def test_a_constant_image_has_no_drift() -> None:
    assert np.isnan(drift(np.ones((3, 2, 32, 32)))).all()


def test_drift_shows_under_noise_and_in_a_series_of_any_length() -> None:
    rng = np.random.default_rng(2)
    path = np.stack([3 * np.sin(np.arange(200) / 9), np.arange(200) / 8], axis=1)
    clean = np.stack([1 + 2 * moved(*step) for step in path]).clip(0)
    first, second = rng.poisson(10 * clean, (2, *clean.shape)).astype(np.float32)
    found = drift(np.stack([first, second], axis=1))
    np.testing.assert_allclose(found[5:] - found[:-5], path[5:] - path[:-5], atol=0.5)
    assert found[0] == pytest.approx(0)


def test_errors_of_a_long_movie_do_not_add_up() -> None:
    rng = np.random.default_rng(6)
    path = np.stack([2 * np.sin(np.arange(256) / 40), np.arange(256) / 80], axis=1)
    clean = np.stack([1 + 2 * moved(*step) for step in path]).clip(0)
    first, second = rng.poisson(1.5 * clean, (2, *clean.shape)).astype(np.float32)
    off = drift(np.stack([first, second], axis=1)) - path
    assert (off - off.mean(axis=0)).std() < 0.15


@pytest.mark.parametrize("dose", [1, 4, 16])
def test_a_scene_that_stays_has_no_drift(dose: float) -> None:
    clean = dose * (1 + 2 * moved(0, 0)).clip(0)
    for seed in range(6):
        images = np.random.default_rng(seed).poisson(clean, (12, 2, *clean.shape)).astype(np.float32)
        assert not np.nan_to_num(drift(images)).any()


@pytest.mark.parametrize("seed", [0, 1])
def test_a_scene_that_stays_has_no_drift_however_long_it_is_looked_at(seed: int) -> None:
    rng = np.random.default_rng(seed)
    scene = gaussian_filter(rng.normal(size=(24, 24)), 2, mode="wrap")
    images = rng.normal(size=(512, 2, 24, 24)) + 0.3 * scene / scene.std()
    assert not np.nan_to_num(drift(images.astype(np.float32))).any()


def test_a_stop_that_is_asked_for_is_looked_at_between_stretches() -> None:
    calls: list[int] = []
    drift(np.random.default_rng(0).normal(size=(600, 2, 8, 8)), lambda: calls.append(1))
    assert len(calls) >= 10


def test_a_lattice_is_not_mistaken_for_itself_one_period_further() -> None:
    y, x = np.mgrid[:96, :96]
    rng = np.random.default_rng(3)
    path = np.stack([np.arange(40) / 4, -np.arange(40) / 5], axis=1)
    waves = [1 + 0.2 * np.cos(2 * np.pi * (y - a) / 12) * np.cos(2 * np.pi * (x - b) / 12) for a, b in path]
    first, second = rng.poisson(4 * np.stack(waves), (2, 40, 96, 96)).astype(np.float32)
    np.testing.assert_allclose(
        np.diff(drift(np.stack([first, second], axis=1)), axis=0), np.diff(path, axis=0), atol=1
    )


def drifting(n: int = 40) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(2)
    path = np.stack([3 * np.sin(np.arange(n) / 9), np.arange(n) / 8], axis=1)
    clean = np.stack([1 + 2 * moved(*step) for step in path]).clip(0)
    return np.stack(list(rng.poisson(10 * clean, (2, *clean.shape)).astype(np.float32)), axis=1), path


@pytest.mark.parametrize("value", [3e38, -3.4e38, 1e30, np.inf, np.nan])
def test_a_pixel_that_is_no_count_ends_no_measurement_and_spoils_one_image_only(value: float) -> None:
    images, _ = drifting()
    expected = drift(images)
    images[20, 0, 5, 6] = images[20, 0, 50, 40] = value
    found = drift(images)
    assert np.flatnonzero(np.isnan(found[:, 0])).tolist() == [20]
    np.testing.assert_allclose(np.delete(found, 20, axis=0), np.delete(expected, 20, axis=0), atol=0.1)


@pytest.mark.parametrize("value", [3e38, np.inf, np.nan])
def test_images_of_which_none_shows_a_scene_have_no_drift(value: float) -> None:
    images, _ = drifting(8)
    images[:, :, 5, 6] = value
    assert drift(images).shape == (8, 2)  # of one pixel that is always there: it stays
    images[:] = value
    assert np.isnan(drift(images)).all()


@pytest.mark.parametrize("unit", [1e-30, 1e-20, 1e20, 1e33])
def test_the_drift_does_not_depend_on_the_unit_of_the_counts(unit: float) -> None:
    images, _ = drifting()
    np.testing.assert_allclose(drift(images * np.float32(unit)), drift(images), atol=1e-4)
