"""The published error of a single image, and the figures of the script."""

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tdenoise.evaluation.umse import quarters, single_image_error


@settings(max_examples=20, deadline=None)
@given(shape=st.tuples(st.integers(1, 3), st.integers(2, 9), st.integers(2, 9)))
def test_quarters_hold_every_pixel_of_a_square_once(shape):
    frames = np.arange(math.prod(shape)).reshape(shape)
    parts = quarters(frames, np.random.RandomState(0))
    for k, i, j in np.ndindex(parts[0].shape):
        square = frames[k, 2 * i : 2 * i + 2, 2 * j : 2 * j + 2]
        assert sorted(int(p[k, i, j]) for p in parts) == sorted(square.ravel().tolist())


def test_quarters_are_drawn_as_the_script_draws_them():
    frames = np.random.default_rng(0).integers(0, 9, (2, 4, 6)).astype(float)
    state = np.random.RandomState(3)
    squares = np.stack([frames[:, i::2, j::2] for i in (0, 1) for j in (0, 1)]).transpose(1, 2, 3, 0)
    rows = squares.reshape(-1, 4).copy()
    for row in rows:
        state.shuffle(row)
    np.testing.assert_array_equal(quarters(frames, np.random.RandomState(3))[2].ravel(), rows[:, 2])


def windows(n=40, size=64):
    return np.random.default_rng(1).poisson(3.0, (n, 5, size, size))


def test_published_error_is_unbiased_on_a_flat_scene():
    result = single_image_error(lambda y: np.full(y.shape[1:], 3.5), windows(), peak=6.0)
    assert result.umse == pytest.approx(0.25, abs=0.04)
    assert result.upsnr == 10 * math.log10(36 / result.umse)


def test_legacy_figures_are_those_of_the_formula_of_the_script():
    few = windows(3)
    few[0, 0, 0, 0] = 20  # the peak of a window is that of its noise
    result = single_image_error(lambda y: y.mean(axis=0) + 1.0, few, peak=6.0, seed=5)
    errors = []
    for window in few:
        y, a, b, c = (q / window.max() for q in quarters(window.astype(float), np.random.RandomState(5)))
        f = y.mean(axis=0) + 1.0 / window.max()
        errors.append(np.mean((f - a[2]) ** 2) - np.mean((b[2] - c[2]) ** 2) / 2)
    assert result.legacy_umse == pytest.approx(sum(errors) / 2)  # not 3
    assert result.legacy_upsnr == pytest.approx(sum(-10 * np.log10(errors)) / 2)


def test_perfect_denoiser_is_not_resolvable_and_undefined_in_the_script():
    flat = 3.0 * np.ones((4, 5, 8, 8))
    result = single_image_error(lambda y: y[2], flat, peak=3.0)
    assert result.umse == 0 and result.upsnr == math.inf and math.isnan(result.legacy_upsnr)
    assert math.isnan(single_image_error(lambda y: y[2] + 1, flat[:1], peak=3.0).legacy_umse)
