"""Metrics: unbiased where they claim to be, the same in chunks as whole, and right on known cases."""

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.ndimage import gaussian_filter

from tdenoise.evaluation import metrics
from tdenoise.simulation.nanoparticle import simulate
from tdenoise.simulation.particle import SimulationSettings

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
