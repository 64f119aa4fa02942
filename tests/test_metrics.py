"""Metrics: unbiased where they claim to be, the same in chunks as whole, and right on known cases."""

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.ndimage import gaussian_filter, uniform_filter1d

from tdenoise import metrics
from tdenoise.simulate import SimulationSettings, simulate, truth_arrays

SHAPE = (24, 96, 96)


def static_scene():
    """A clean frame with structure, its repetition, and a prediction with a known error."""
    rows, cols = np.indices(SHAPE[1:])
    clean = np.broadcast_to(1 + 0.3 * np.sin(rows / 5) * np.cos(cols / 7), SHAPE)
    return clean, clean + 0.2 * np.cos(rows / 9)


def standard_error(terms):
    return terms.std() / math.sqrt(terms.size)


# Without truth


@pytest.mark.parametrize("dose", [0.5, 2.0])
def test_poisson_estimator_is_unbiased(dose):
    clean, prediction = static_scene()
    counts = np.random.default_rng(0).poisson(dose * clean).astype(np.uint8)
    terms = metrics.unbiased_mse_terms(counts, (dose * prediction).astype(np.float32))
    truth = dose**2 * np.mean((prediction - clean) ** 2)
    assert abs(terms.mean() - truth) < 4 * standard_error(terms)
    assert 4 * standard_error(terms) < 0.1 * dose  # forgetting "- y" would be seen


def test_poisson_estimator_knows_gain_and_read_noise():
    gain, read, dose = 12.0, 5.0, 1.5
    clean, prediction = static_scene()
    rng = np.random.default_rng(1)
    counts = gain * rng.poisson(dose * clean) + rng.normal(0, read, SHAPE)
    predicted = gain * dose * prediction
    truth = np.mean((predicted - gain * dose * clean) ** 2)
    terms = metrics.unbiased_mse_terms(counts, predicted, gain, read**2)
    assert abs(terms.mean() - truth) < 4 * standard_error(terms)
    assert 4 * standard_error(terms) < min(read**2, (gain - 1) * gain * dose) / 2
    for wrong in ((1.0, read**2), (gain, 0.0)):
        assert abs(metrics.unbiased_mse_terms(counts, predicted, *wrong).mean() - truth) > 10


@pytest.mark.parametrize("offsets", [(1, 2, 3), (0, 1, -1)])
def test_umse_is_unbiased_for_any_independent_noise(offsets):
    clean, prediction = static_scene()
    noise = np.random.default_rng(2).laplace(0, 0.5, SHAPE) * clean  # nothing like Poisson
    terms = metrics.umse_terms(clean + noise, prediction, offsets)
    assert terms.shape == (SHAPE[0] - max(offsets) + min(0, *offsets), *SHAPE[1:])
    # Terms that share references are correlated: judge by the spread of whole frames, with room.
    error = 2 * terms.mean(axis=(1, 2)).std() / math.sqrt(len(terms))
    assert abs(terms.mean() - np.mean((prediction - clean) ** 2)) < 4 * error
    assert 4 * error < 0.1 * noise.var()


def test_temporal_estimator_pairs_each_frame_with_its_own_neighbours():
    counts = np.arange(5.0)[:, None, None] ** 2 * np.ones((5, 2, 2))
    terms = metrics.temporal_mse_terms(counts, np.zeros_like(counts))
    expected = [t**4 - ((t + 1) ** 2 - (t - 1) ** 2) ** 2 / 2 for t in (1, 2, 3)]
    np.testing.assert_allclose(terms[:, 0, 0], expected)


def test_estimators_do_not_wrap_around_in_unsigned_counts():
    counts = np.array([[[0]], [[200]], [[0]], [[200]]], np.uint8)
    assert metrics.umse_terms(counts, np.zeros(counts.shape), (0, 1, -1))[0, 0, 0] == 200**2
    assert metrics.unbiased_mse_terms(counts, np.full(counts.shape, 3, np.uint8))[0, 0, 0] == 9


def test_too_few_frames_for_the_references_are_refused():
    with pytest.raises(ValueError, match="2 frames are too few"):
        metrics.temporal_mse_terms(np.zeros((2, 4, 4)), np.zeros((2, 4, 4)))


def test_psnr_of_an_error_of_zero_or_less_is_infinite_and_of_nan_is_nan():
    assert metrics.psnr(0.01, 2.0) == pytest.approx(10 * math.log10(400))
    assert metrics.psnr(0.0, 1.0) == metrics.psnr(-1e-3, 1.0) == math.inf
    assert math.isnan(metrics.psnr(math.nan, 1.0)) and math.isnan(metrics.psnr(0.01, 0.0))


# Blocks and intervals


@settings(max_examples=30, deadline=None)
@given(
    shape=st.tuples(st.integers(1, 20), st.integers(1, 40), st.integers(1, 40)),
    block=st.tuples(st.integers(1, 9), st.integers(1, 50), st.integers(1, 50)),
    masked=st.booleans(),
)
def test_block_sums_account_for_every_pixel_once(shape, block, masked):
    rng = np.random.default_rng(0)
    values, mask = rng.normal(size=shape), rng.uniform(size=shape[1:]) < 0.5 if masked else None
    sums, counts = metrics.block_sums(values, block, mask)
    assert len(sums) == math.prod(math.ceil(n / b) for n, b in zip(shape, block, strict=True))
    used = values if mask is None else values[:, mask]
    assert counts.sum() == used.size
    assert sums.sum() == pytest.approx(used.sum(), abs=1e-9)
    first = tuple(slice(b) for b in block)
    inside = values[first] if mask is None else values[first][:, mask[first[1:]]]
    assert sums[0] == pytest.approx(inside.sum(), abs=1e-9)


def test_block_sums_of_chunks_are_those_of_the_movie():
    values = np.random.default_rng(0).normal(size=(24, 50, 40))
    whole = metrics.block_sums(values)
    parts = [metrics.block_sums(chunk) for chunk in (values[:16], values[16:])]
    for one, other in zip(whole, map(np.concatenate, zip(*parts, strict=True)), strict=True):
        np.testing.assert_allclose(one, other)


def test_block_sums_ignore_what_the_mask_hides():
    values = np.array([[[1.0, np.nan]]])
    sums, counts = metrics.block_sums(values, mask=np.array([[True, False]]))
    assert (sums.tolist(), counts.tolist()) == ([1.0], [1])


def test_bootstrap_interval_covers_the_truth():
    rng = np.random.default_rng(5)
    covered = 0
    for repeat in range(200):
        counts = rng.integers(50, 100, 60)
        sums = counts * 3.0 + rng.normal(0, 20, 60)
        estimate, low, high = metrics.bootstrap_interval(sums, counts, 300, seed=repeat)
        assert low < estimate < high
        covered += low <= 3.0 <= high
    assert 0.88 < covered / 200 < 0.99


def test_bootstrap_over_blocks_is_wider_than_over_pixels_that_move_together():
    common = np.repeat(np.random.default_rng(6).normal(size=100), 64)
    blocks = metrics.bootstrap_interval(common.reshape(100, 64).sum(axis=1), np.full(100, 64))
    pixels = metrics.bootstrap_interval(common, np.ones(common.size))
    assert blocks.high - blocks.low > 5 * (pixels.high - pixels.low)


def test_bootstrap_is_repeatable_and_leaves_out_empty_blocks():
    sums, counts = np.array([1.0, 2.0, 0.0, 4.0]), np.array([1, 2, 0, 2])
    assert metrics.bootstrap_interval(sums, counts) == metrics.bootstrap_interval(sums, counts)
    assert metrics.bootstrap_interval(sums, counts) == metrics.bootstrap_interval(
        sums[[0, 1, 3]], counts[[0, 1, 3]]
    )
    assert metrics.bootstrap_interval(sums, counts).estimate == 7 / 5
    with pytest.raises(ValueError, match="no block"):
        metrics.bootstrap_interval(np.zeros(3), np.zeros(3))


def test_one_block_has_no_interval():
    assert np.isnan(metrics.bootstrap_interval(np.array([2.0]), np.array([4]))[1:]).all()


def test_interval_from_few_blocks_still_covers_the_truth():
    rng = np.random.default_rng(15)
    counts = np.full(4, 10)
    intervals = [metrics.bootstrap_interval(rng.normal(30, 5, 4), counts, 200, seed=k) for k in range(300)]
    assert 0.9 < np.mean([low <= 3.0 <= high for _, low, high in intervals]) < 0.99


def test_ratio_of_the_same_blocks_resolves_what_two_intervals_cannot():
    rng = np.random.default_rng(7)
    counts = np.full(80, 100)
    hard = rng.normal(500, 100, 80)  # blocks differ far more than methods
    better = hard - rng.normal(5, 2, 80)
    one, other = (metrics.bootstrap_interval(s, counts) for s in (hard, better))
    assert one.low < other.high
    ratio = metrics.bootstrap_ratio(better, hard)
    assert ratio.high < 1 and ratio.estimate == pytest.approx(better.sum() / hard.sum())


# With truth


def test_truth_error_in_chunks_and_masks_equals_the_plain_formula():
    rng = np.random.default_rng(8)
    clean = rng.uniform(0.8, 1.4, (10, 30, 20)).astype(np.float16)
    denoised = (clean + rng.normal(0, 0.1, clean.shape)).astype(np.float32)
    mask = rng.uniform(size=(30, 20)) < 0.3
    sums = metrics.TruthErrorSums({"part": mask, "empty": np.zeros_like(mask)})
    for chunk in (slice(0, 3), slice(3, 10)):
        sums.add(denoised[chunk], clean[chunk])
    result = sums.result()
    squares = (denoised.astype(float) - clean.astype(float)) ** 2
    peak = float(clean.max()) - float(clean.min())
    assert result.peak == peak
    assert result.psnr["all"] == pytest.approx(10 * math.log10(peak**2 / squares.mean()))
    assert result.psnr["part"] == pytest.approx(10 * math.log10(peak**2 / squares[:, mask].mean()))
    assert result.pixels == {"all": 6000, "part": 10 * mask.sum(), "empty": 0}
    assert "empty" not in result.mse


def test_moments_in_chunks_are_those_of_all_values():
    values = np.random.default_rng(9).normal(1e4, 1.0, 10_000)  # the mean is large against the spread
    total = metrics.Moments()
    for chunk in np.split(values, [10, 11, 11, 4000]):
        total.add(chunk)
    assert total.count == values.size
    assert total.mean == pytest.approx(values.mean(), rel=1e-12)
    assert total.std == pytest.approx(values.std(), rel=1e-9)


def test_vacuum_std_is_relative_to_the_dose():
    denoised = 4.0 + 0.2 * np.random.default_rng(0).standard_normal((20, 40, 40))
    denoised[:, 20:] += 100
    vacuum = np.zeros((40, 40), bool)
    vacuum[:20] = True
    assert metrics.vacuum_std(denoised, 4.0, vacuum) == pytest.approx(0.05, rel=0.03)


# Residuals


def residual_report(counts, denoised, **options):
    check = metrics.ResidualCheck(**options)
    for chunk in (slice(0, 5), slice(5, None)):
        check.add(counts[chunk], denoised[chunk])
    return check.result()


def test_residual_of_a_perfect_prediction_is_white_with_unit_variance():
    clean, _ = static_scene()
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
    clean, _ = static_scene()
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
    clean, _ = static_scene()
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


# Events


@pytest.fixture(scope="module")
def still_movie():
    """Columns change, nothing moves: steps and nothing else."""
    movie = simulate(
        SimulationSettings(
            n_frames=400, height=112, width=112, seed=2, drift_share=0.0, rotation_sd_deg=(0.0, 0.0, 0.0)
        )
    )
    return movie.clean, truth_arrays(movie)


def test_the_clean_movie_does_not_bleed(still_movie):
    clean, truth = still_movie
    result = metrics.bleed(clean, clean, truth)
    assert result.n_events > 20
    assert result.values == (0.0, 0.0, 0.0, 0.0)


def test_a_prediction_blind_to_a_step_bleeds_by_a_half():
    clean = np.ones((21, 31, 31), np.float32)
    clean[10:, 12:19, 12:19] += 0.4
    clean[10, 12:19, 12:19] -= 0.1  # the event falls at 10.25
    middle = np.broadcast_to((clean[0] + clean[-1]) / 2, clean.shape)
    truth = {"events": np.array([[10.25, 0, 0, 2]]), "col_pos": np.full((21, 1, 2), 15.0)}
    result = metrics.bleed(middle, clean, truth)
    assert result.n_events == 1
    np.testing.assert_allclose(result.values, (0.5, 0.5, -0.5, -0.5), atol=1e-6)
    assert metrics.bleed(middle, clean, truth, offsets=(0,)).values[0] == pytest.approx(-0.25, abs=1e-6)


def test_moving_average_bleeds_as_theory_says(still_movie):
    clean, truth = still_movie
    dose = 20.0
    counts = np.random.default_rng(0).poisson(dose * clean)
    average = uniform_filter1d(counts / dose, 9, axis=0)
    result = metrics.bleed(average, clean, truth, isolation_frames=7)
    # One frame before the event's frame the window holds 3.5 of 9 frames from after it, on average.
    np.testing.assert_allclose(result.values, np.array([2.5, 3.5, -3.5, -2.5]) / 9, atol=0.05)
    interval = metrics.bootstrap_ratio(result.numerators[1], result.denominators)
    assert interval.estimate == pytest.approx(result.values[1]) and interval.low < 3.5 / 9 < interval.high


def test_bleed_reads_frames_from_a_function(still_movie):
    clean, truth = still_movie
    smooth = uniform_filter1d(clean, 5, axis=0)
    in_memory = metrics.bleed(smooth, clean, truth)
    on_disk = metrics.bleed(lambda k: smooth[k], lambda k: clean[k].astype(np.float16), truth)
    assert on_disk.values == pytest.approx(in_memory.values, abs=1e-3)
    assert on_disk.n_events == in_memory.n_events


def test_bleed_uses_isolated_events_well_inside_the_movie():
    clean = np.random.default_rng(0).uniform(0.9, 1.1, (40, 31, 31))
    inside, edge = [15.0, 15.0], [2.0, 15.0]
    truth = {
        "col_pos": np.tile([inside, edge, inside], (40, 1, 1)),
        "events": np.array([
            [0.5, 0, 0, 2],  # too early
            [10.0, 0, 2, 1], [13.9, 0, 1, 0],  # too near to each other
            [20.0, 0, 0, 2],  # good, though another column hops at the same time
            [20.0, 1, 2, 0],  # its disc leaves the field
            [30.2, 2, 2, 0],  # good
            [38.5, 0, 2, 1],  # too late
        ]),
    }  # fmt: skip
    assert metrics.bleed(clean, clean, truth).n_events == 2


def test_bleed_without_events_is_nan():
    truth = {"events": np.zeros((0, 4), np.float32), "col_pos": np.zeros((5, 0, 2), np.float32)}
    result = metrics.bleed(np.ones((5, 9, 9)), np.ones((5, 9, 9)), truth)
    assert result.n_events == 0 and np.isnan(result.values).all()


# Baseline


def test_best_gaussian_finds_the_best_widths():
    settings_ = SimulationSettings(n_frames=40, height=64, width=80, dose=2.0, seed=1)
    movie = simulate(settings_)
    best = metrics.best_gaussian(movie.counts, movie.clean, settings_.dose)
    noisy = movie.counts / np.float32(settings_.dose)
    peak = float(np.ptp(movie.clean))

    def psnr_at(sigma_t, sigma_xy):
        smooth = gaussian_filter(noisy, (sigma_t, sigma_xy, sigma_xy))
        return metrics.psnr(float(np.mean((smooth - movie.clean) ** 2)), peak)

    assert best.psnr == pytest.approx(psnr_at(best.sigma_t, best.sigma_xy), abs=1e-3)
    elsewhere = [psnr_at(t, xy) for t in (1, 2, 4, 6, 8, 12, 16, 32) for xy in (0.7, 1, 1.4, 1.8, 2.2, 3)]
    assert best.psnr > max(elsewhere) - 0.05
    assert best.psnr > psnr_at(0.01, 0.01) + 15
    assert best.filtered.shape == movie.clean.shape and best.filtered.dtype == np.float32
