"""The noise that is measured is the noise that is there, and the model is blind accordingly."""

from __future__ import annotations

import json

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.ndimage import gaussian_filter, median_filter

from tdenoise.noise.median import median_of_nine
from tdenoise.noise.noise import NoiseLaw, NoiseStatistics, choose, noise_law, persistence_warning
from tdenoise.noise.noise_measurement import NoiseAccumulator, find_hot_pixels


def scene(shape: tuple[int, int, int], dose: float) -> np.ndarray:
    """A patch of bright fringes in an even surrounding, at rest."""
    y, x = np.mgrid[: shape[1], : shape[2]]
    bright = 1 + 0.8 * (x > shape[2] / 2) + 0.3 * np.sin(x / 3.0) * np.cos(y / 4.0)
    return np.broadcast_to(dose * bright, shape)


def measured(frames: np.ndarray, chunk: int = 6) -> NoiseStatistics:
    accumulator = NoiseAccumulator()
    for first in range(0, len(frames), chunk):
        accumulator.add(frames[first : first + chunk])
    return accumulator.result()


def poisson(shape: tuple[int, int, int], dose: float, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).poisson(scene(shape, dose))


def test_single_electrons_have_a_fano_factor_of_one_and_white_noise() -> None:
    noise = measured(poisson((24, 96, 128), 1.0))
    assert abs(noise.fano - 1) < 2 * noise.fano_error < 0.03
    assert len(noise.correlations) == 26
    assert not any(c.matters for c in noise.correlations)
    assert noise.whole and noise.is_poisson
    assert choose(noise).blind_radius == 0 and choose(noise).counting


def test_the_intervals_cover_the_truth_as_often_as_they_say() -> None:
    inside = []
    for seed in range(40):
        noise = measured(poisson((6, 64, 64), 1.0, seed))
        inside += [abs(noise.fano - 1) < noise.fano_error]
        inside += [abs(c.value) < c.error for c in noise.correlations]
    assert 0.92 < np.mean(inside) < 0.98


@settings(max_examples=10, deadline=None)
@given(gain=st.sampled_from([0.5, 3.0, 80.0]), read=st.sampled_from([0.0, 0.7]), seed=st.integers(0, 99))
def test_photon_transfer_finds_gain_and_read_noise(gain: float, read: float, seed: int) -> None:
    rng = np.random.default_rng(seed)
    electrons = poisson((24, 96, 96), 4.0, seed)
    frames = (gain * (electrons + read * rng.standard_normal(electrons.shape))).astype(np.float32)
    noise = measured(frames)
    assert abs(noise.gain - gain) < 2.5 * noise.gain_error < 0.25 * gain
    assert abs(noise.read_variance - (gain * read) ** 2) < 2.5 * noise.read_variance_error
    law = noise_law(noise)
    assert law is not None
    assert law.gain * noise.mean + law.read_variance == pytest.approx(noise.noise_variance, rel=0.01)


def test_a_pedestal_is_part_of_the_law() -> None:
    frames = 3.0 * poisson((24, 96, 96), 4.0) + 100
    noise = measured(frames)
    assert noise.gain == pytest.approx(3, abs=2 * noise.gain_error)
    assert noise.read_variance == pytest.approx(-300, abs=2 * noise.read_variance_error)
    assert noise_law(noise) is None, "counts of electrons have no negative read variance"


def test_an_even_movie_is_too_uniform_for_photon_transfer() -> None:
    noise = measured(3.0 * np.random.default_rng(0).poisson(2.0, (12, 64, 64)))
    assert not noise.calibrated and noise_law(noise) is None
    assert noise_law(noise, counts_per_electron=3.0) == NoiseLaw(3.0, 0.0)


def test_parts_of_a_movie_add_up_by_way_of_json() -> None:
    frames = poisson((30, 40, 50), 2.0)
    parts = [frames[:8], frames[8:20], frames[20:]]
    whole, merged = NoiseAccumulator(), NoiseAccumulator()
    for part in parts:
        whole.add(part)
        alone = NoiseAccumulator()
        alone.add(part)
        merged.merge(json.loads(json.dumps(alone.sums())))
    np.testing.assert_allclose(merged.sums(), whole.sums(), rtol=1e-12)
    assert merged.result().fano_error == pytest.approx(whole.result().fano_error, rel=1e-6)


def test_statistics_survive_json_and_those_of_old_stores_are_read() -> None:
    noise = measured(poisson((12, 64, 64), 2.0))
    assert NoiseStatistics.from_json(json.loads(json.dumps(noise.to_json()))) == noise
    names = ("mean", "noise_variance", "signal_variance", "fano", "correlation_x", "correlation_y")
    old = {k: v for k, v in noise.to_json().items() if k in (*names, "correlation_t", "n_pixels")}
    read = NoiseStatistics.from_json(old)
    assert read.fano == noise.fano and read.correlations == () and read.whole is None
    assert choose(read).blind_radius == 0
    assert choose(NoiseStatistics.from_json({**old, "correlation_x": 0.1})).blind_radius == 1
    assert choose(NoiseStatistics.from_json({**old, "correlation_x": 0.4})).blind_radius == 2


@pytest.mark.parametrize(
    ("reach", "radius"), [((0, 0), 0), ((0, 1), 1), ((1, 1), 1), ((2, 0), 2), ((-1, 2), 2), ((0, 3), None)]
)
def test_the_blind_radius_covers_every_pixel_that_shares_noise(
    reach: tuple[int, int], radius: int | None
) -> None:
    frames = poisson((12, 96, 96), 2.0).astype(np.float32)
    if reach != (0, 0):
        # A share of the electrons is counted twice, the second time this far away.
        frames += np.roll(np.random.default_rng(1).binomial(frames.astype(int), 0.2), reach, axis=(1, 2))
    choice = choose(measured(frames))
    assert choice.blind_radius == radius
    assert ("correlated" in choice.reason) == (reach != (0, 0))


def test_the_point_spread_of_a_detector_hides_more() -> None:
    frames = poisson((12, 96, 96), 2.0).astype(np.float32)
    radii = [choose(measured(gaussian_filter(frames, (0, s, s)))).blind_radius for s in (0.4, 0.6, 1.5)]
    assert radii == [1, 2, None]
    assert "\n" not in choose(measured(frames)).reason


@settings(max_examples=8, deadline=None)
@given(share=st.floats(0.05, 0.4), seed=st.integers(0, 99))
def test_afterglow_is_measured_and_told(share: float, seed: int) -> None:
    frames = poisson((40, 64, 64), 5.0, seed).astype(np.float64)
    glowing = frames[1:] + share * frames[:-1]
    noise = measured(glowing, chunk=13)
    first = next(c for c in noise.correlations if c.t == 1)
    assert first.value == pytest.approx(share / (1 + share**2), abs=3 * first.error + 0.01)
    assert "share noise" in (persistence_warning(noise) or "")
    assert persistence_warning(measured(frames)) is None


def test_steady_motion_is_not_taken_for_correlated_noise() -> None:
    t, y, x = np.ogrid[:24, :96, :96]
    moving = 40 * (1 + 0.3 * np.sin((x + 0.3 * t) / 3.0) * np.cos(y / 4.0))
    noise = measured(np.random.default_rng(0).poisson(moving))
    assert choose(noise).blind_radius == 0
    assert noise.fano == pytest.approx(1, abs=0.03)


def test_a_beam_that_flickers_is_not_taken_for_noise() -> None:
    beam = 1 + 0.1 * np.random.default_rng(1).standard_normal((24, 1, 1))
    noise = measured(np.random.default_rng(0).poisson(scene((24, 96, 96), 10.0) * beam))
    assert noise.fano == pytest.approx(1, abs=0.03)


def test_two_hot_pixels_do_not_spoil_the_noise_of_a_low_dose_movie() -> None:
    frames = poisson((24, 64, 64), 0.5)
    sound = measured(frames)
    frames[:, 10, 20] = frames[:, 40, 7] = 4000
    frames[5, 10, 20] += 300
    noise = measured(frames)
    assert noise.mean == pytest.approx(sound.mean, rel=1e-3)
    assert noise.noise_variance == pytest.approx(sound.noise_variance, rel=5e-3)
    assert noise.signal_variance == pytest.approx(sound.signal_variance, rel=0.1)
    assert choose(noise).blind_radius == 0


def test_what_is_too_short_or_empty_is_not_measured() -> None:
    accumulator = NoiseAccumulator()
    accumulator.add(poisson((2, 32, 32), 2.0))
    with pytest.raises(ValueError, match="no three successive frames"):
        accumulator.result()
    assert not measured(0.5 * poisson((4, 32, 32), 2.0)).whole
    accumulator.add(np.zeros((4, 32, 32), np.uint8))
    nothing = accumulator.result()
    assert nothing.noise_variance == 0 and np.isnan(nothing.fano)
    assert json.dumps(nothing.to_json(), allow_nan=False)


@pytest.mark.parametrize("shape", [(3, 1, 1), (3, 2, 40), (5, 17, 3), (40, 16, 16)])
def test_small_movies_are_measured_without_a_warning(shape: tuple[int, int, int]) -> None:
    noise = measured(poisson(shape, 2.0), chunk=40)
    assert noise.noise_variance >= 0
    read = NoiseStatistics.from_json(noise.to_json())
    for either in (noise, read):
        assert choose(either).blind_radius == 0, "what cannot be told from chance asks for nothing"


@given(shape=st.tuples(st.integers(1, 9), st.integers(1, 9)), seed=st.integers(0, 99))
def test_the_quick_median_is_the_median(shape: tuple[int, int], seed: int) -> None:
    image = np.random.default_rng(seed).integers(0, 5, shape)
    np.testing.assert_array_equal(median_of_nine(image), median_filter(image, 3, mode="nearest"))


def test_hot_pixels_are_found_and_sound_ones_are_not() -> None:
    frames = poisson((40, 64, 64), 0.5)
    assert len(find_hot_pixels(frames)) == 0
    frames[:, 20, 31] = 60
    assert find_hot_pixels(frames).tolist() == [[20, 31]]
