"""The time-summed residual: a test that a perfect movie passes, and what is given back where one fails."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.ndimage import gaussian_filter

from tdenoise.inference.evidence import Evidence, corners
from tdenoise.inference.last_word import NoiseOfShown, give_back, give_back_briefly, give_back_what_stands_out
from tdenoise.inference.refutation import SIZES, contrasts, refuted, significance


def column(height: float, place: tuple[int, int], size: int = 64, sigma: float = 2.2) -> np.ndarray:
    y, x = np.ogrid[:size, :size]
    return np.asarray(height * np.exp(-((y - place[0]) ** 2 + (x - place[1]) ** 2) / (2 * sigma**2)))


def summed(counts: np.ndarray, shown: np.ndarray) -> Evidence:
    sums = Evidence.empty(counts.shape[1:])
    for y, f in zip(counts, shown, strict=True):
        sums.add(y, f, 1.0, (0, 0))
    return sums


@pytest.mark.parametrize("dose", [0.05, 1.0])
def test_a_perfect_movie_is_refuted_nowhere(dose: float) -> None:
    y, x = np.mgrid[:64, :64]
    scene = 1 + 0.4 * np.sin(x / 2.0) * np.cos(y / 2.5)
    n_refuted, values = 0, {size: [] for size in SIZES}
    for seed in range(60):
        clean = np.broadcast_to(dose * scene, (24, 64, 64)).astype(np.float32)
        sums = summed(np.random.default_rng(seed).poisson(clean), clean)
        n_refuted += bool(refuted(sums, n_looks=len(SIZES)))
        for size in SIZES:
            values[size].append(significance(sums, size).std())
    assert n_refuted <= 3  # of 60 at a chance of one in a hundred
    # The larger the size, the fewer independent places are in a field, and the more their scatter varies.
    assert all(0.85 < np.mean(values[size]) < 1.15 for size in SIZES)


def test_a_ghost_and_a_lost_column_are_found_where_they_are_and_given_back() -> None:
    dose, n = 2.0, 120
    truth = 1 + column(0.35, (20, 20)) + column(0.2, (44, 40))
    shown = 1 + column(0.35, (20, 20)) + column(0.12, (20, 44))  # the second is gone, a third is made up
    rng = np.random.default_rng(0)
    counts = rng.poisson(np.broadcast_to(dose * truth, (n, 64, 64)))
    movie = np.broadcast_to(dose * shown, counts.shape).astype(np.float32)
    sums = summed(counts, movie)
    found = refuted(sums, ("column",))
    assert [(place.z > 0) for place in found[:2]] == [True, False]
    for place, at in zip(found, ((44, 40), (20, 44)), strict=False):
        assert np.hypot(place.row - at[0], place.column - at[1]) < 3 and place.chance < 0.01
    given = give_back(sums)
    after = np.stack([given.to_frame(y, f, 1.0, (0, 0)) for y, f in zip(counts, movie, strict=True)]).mean(
        axis=0
    )
    left = gaussian_filter(after / dose - truth, 1.5)
    before = gaussian_filter(shown - truth, 1.5)
    for at in ((44, 40), (20, 44)):
        assert abs(left[at]) < 0.35 * abs(before[at])
    assert not refuted(summed(counts, np.broadcast_to(after, counts.shape)))


def test_a_good_movie_is_hardly_changed() -> None:
    truth = np.full((96, 64, 64), 1.0, np.float32)
    counts = np.random.default_rng(1).poisson(truth)
    given = give_back(summed(counts, truth))
    change = given.to_frame(counts[0], truth[0], 1.0, (0, 0)) - 1
    # What a blur over a column alone would leave of the noise of the mean.
    noise = np.sqrt(1 / 96 / (4 * np.pi * 1.2**2))
    assert np.sqrt(np.mean(change**2)) < 0.6 * noise


def test_places_that_few_frames_show_spoil_no_other_place() -> None:
    rng = np.random.default_rng(5)
    drift = rng.normal(0, 2, (96, 2))
    places, scene = corners(drift, 96, (64, 64))
    truth = np.full((96, 64, 64), 1.0, np.float32)
    counts, sums = rng.poisson(truth), Evidence.empty(scene)
    for y, f, place in zip(counts, truth, places.tolist(), strict=True):
        sums.add(y, f, 1.0, tuple(place))
    given = give_back(sums)
    frames = zip(counts, truth, places.tolist(), strict=True)
    change = np.stack([given.to_frame(y, f, 1.0, tuple(place)) - f for y, f, place in frames])
    # Less than the noise of the mean over a column in the whole movie, at the border, too.
    assert np.sqrt(np.mean(change**2)) < 0.02 and np.sqrt(np.mean(change[:, :3] ** 2)) < 0.04


def test_fine_detail_of_a_bright_place_is_given_back_beside_a_dark_one() -> None:
    y, x = np.mgrid[:64, :64]
    shown = np.where(x < 32, 0.2, 20.0)
    truth = shown * (1 + 0.05 * np.where(x < 32, 0, (-1.0) ** (x + y)))
    counts = np.random.default_rng(9).poisson(truth, (200, 64, 64))
    given = give_back(summed(counts, np.broadcast_to(shown, counts.shape).astype(np.float32)))
    asked = truth - shown
    for first in (33, 40):  # beside the border, and away from it
        part = np.s_[8:56, first : first + 6]
        assert np.mean((given.mean[part] - asked[part]) ** 2) < 0.15 * np.mean(asked[part] ** 2)


def test_what_is_given_back_to_a_pixel_does_not_depend_on_its_own_count() -> None:
    rng = np.random.default_rng(2)
    counts = rng.poisson(2.0, (40, 32, 32))
    shown = np.full(counts.shape, 1.7, np.float32)
    before = give_back(summed(counts, shown)).to_frame(counts[5], shown[5], 1.0, (0, 0))
    changed = counts.copy()
    changed[5, 10, 12] += 3
    after = give_back(summed(changed, shown)).to_frame(changed[5], shown[5], 1.0, (0, 0))
    direct = 3 / 40 * 0.11  # of the residual, had it not been left out
    assert abs(after[10, 12] - before[10, 12]) < 0.2 * direct


@given(
    drift=st.lists(st.tuples(st.floats(-9, 9), st.floats(-9, 9)), min_size=3, max_size=12).map(np.array),
    cut=st.integers(1, 11),
)
@settings(max_examples=60, deadline=None)
def test_sums_of_parts_add_up_and_follow_the_scene(drift: np.ndarray, cut: int) -> None:
    n, rng = len(drift), np.random.default_rng(0)
    counts, shown = rng.poisson(2.0, (n, 12, 14)), np.full((n, 12, 14), 2.0, np.float32)
    places, scene = corners(drift, n, (12, 14))
    assert (places >= 0).all() and (places.max(axis=0) + (12, 14) == scene).all()
    # A place of the scene lies where the frame has moved away from it.
    moved = np.rint(drift).astype(int)
    assert ((places - places[0]) == -(moved - moved[0])).all()
    whole, parts = Evidence.empty(scene), Evidence.empty(scene)
    for y, f, place in zip(counts, shown, places, strict=True):
        whole.add(y, f, 1.0, tuple(place))
    for first, last in ((0, min(cut, n)), (min(cut, n), n)):
        for rows in (slice(0, 5), slice(5, 12)):
            part = Evidence.empty(scene)
            for t in range(first, last):
                row, column_ = places[t]
                part.add(counts[t, rows], shown[t, rows], 1.0, (row + rows.start, column_))
            parts.merge(part, (0, 0))
    for one, other in zip(whole.arrays, parts.arrays, strict=True):
        np.testing.assert_allclose(one, other)
    assert whole.level.sum() == counts.size


def test_nothing_is_refuted_where_no_frame_shows_the_scene() -> None:
    sums = Evidence.empty((90, 90))
    rng = np.random.default_rng(8)
    for _ in range(4):
        sums.add(rng.poisson(1.0, (64, 64)), np.ones((64, 64), np.float32), 1.0, (13, 13))
    for size in SIZES:
        assert not significance(sums, size)[sums.level == 0].any()
    assert not refuted(sums)


def test_noise_that_neighbours_share_is_no_evidence() -> None:
    rng = np.random.default_rng(3)
    shown = np.full((60, 64, 64), 4.0, np.float32)
    kernel = np.array([0.25, 0.5, 0.25])
    n_naive, n_told, sums = 0, 0, []
    for _ in range(12):
        noise = rng.normal(0, 2, shown.shape)
        for axis in (1, 2):
            noise = np.apply_along_axis(np.convolve, axis, noise, kernel, "same")
        sums.append(summed(shown + noise, shown))
    line = np.correlate(kernel, kernel, "full") / np.sum(kernel**2)
    lags = [
        (dy, dx, line[2 + dy] * line[2 + dx]) for dy in range(3) for dx in range(-2, 3) if (dy, dx) > (0, 0)
    ]
    for each in sums:
        n_naive += bool(refuted(each, ("column",)))
        n_told += bool(refuted(each, ("column",), lags))
    assert n_naive >= 6 and n_told <= 1


def test_the_contrast_of_a_movie_is_that_of_its_mean_at_every_size() -> None:
    image = 1 + 0.2 * np.sin(np.arange(64) / 1.5)[None, :] * np.ones((64, 1))
    found = contrasts(image)
    assert found["pixel"] > found["column"] > found["patch"] > 0


NOISE = NoiseOfShown(1.0, 0.0)


def steady(counts: np.ndarray, shown: np.ndarray, n_looks: float, **others: Any) -> np.ndarray:
    changed = shown.copy()
    places = np.zeros((len(counts), 2), dtype=np.intp)
    give_back_briefly(counts, changed, np.ones((len(counts), 1, 1)), places, NOISE, (), n_looks, **others)
    return changed


@pytest.mark.parametrize("length", [1, 4, 16])
def test_what_is_there_for_a_few_frames_only_is_given_back_to_these(length: int) -> None:
    rng = np.random.default_rng(length)
    shown = np.full((32, 64, 64), 1.0, np.float32)
    truth = shown.astype(np.float64)
    there = slice(16, 16 + length)
    truth[there] += column(6 / np.sqrt(length), (30, 34))
    counts = rng.poisson(truth)
    changed = steady(counts, shown, n_looks=100)
    height = changed[:, 28:33, 32:37].mean(axis=(1, 2)) - 1
    true = truth[:, 28:33, 32:37].mean(axis=(1, 2)) - 1
    assert abs(height[there].mean() / true[there].mean() - 1) < 0.25
    outside = np.delete(height, range(16, 16 + length))
    assert np.abs(outside).max() < 0.1 * true.max()
    far = np.ones((64, 64), bool)
    far[10:50, 14:54] = False
    assert (changed[:, far] == 1).all()


def test_nothing_is_given_back_briefly_to_a_right_movie() -> None:
    shown = np.full((32, 64, 64), 0.3, np.float32)
    changed = [
        (steady(np.random.default_rng(seed).poisson(shown), shown, n_looks=32) != shown).any()
        for seed in range(20)
    ]
    assert sum(changed) <= 1


def test_what_a_single_frame_is_given_back_does_not_come_from_the_own_pixel() -> None:
    shown = np.full((1, 64, 64), 1.0, np.float32)
    counts = np.random.default_rng(3).poisson(shown + 6 * column(1.0, (30, 30)))
    counts[0, 30, 30] = 5
    before = steady(counts, shown, 10.0)
    assert before[0, 30, 30] > 4
    counts[0, 30, 30] += 3
    after = steady(counts, shown, 10.0)
    # All of it is certain before and after, so that nothing but the mean itself could change.
    assert after[0, 30, 30] == pytest.approx(before[0, 30, 30], rel=1e-6)
    assert after[0, 30, 31] > before[0, 30, 31]


def test_bad_pixels_are_no_event() -> None:
    shown = np.full((8, 64, 64), 1.0, np.float32)
    counts = np.random.default_rng(4).poisson(shown)
    counts[:, 30, 30] = 5000
    sound = np.ones((64, 64), bool)
    sound[30, 30] = False
    assert (steady(counts, shown, 10.0, sound=sound) == shown).all()


def test_the_noise_about_what_is_shown_follows_from_the_squares_of_a_movie() -> None:
    rng = np.random.default_rng(5)
    shown = np.broadcast_to(1 + column(2.0, (32, 32)), (48, 64, 64)).astype(np.float32)
    counts = 3 * rng.poisson(shown / 3) + rng.normal(0, 1.5, shown.shape)
    noise = NoiseOfShown.of(summed(counts, shown), offset=1.5**2 / 3)
    assert noise.factor == pytest.approx(3, rel=0.02)


@pytest.mark.parametrize("n_frames", [2, 3, 4, 16])
def test_what_few_frames_lack_is_given_back_in_full_and_not_more(n_frames: int) -> None:
    sums = Evidence.empty((64, 64))
    counts, shown = np.full((64, 64), 3.0), np.full((64, 64), 2.0, np.float32)
    for _ in range(n_frames):
        sums.add(counts, shown, 1.0, (0, 0))
    given = give_back_what_stands_out(sums)
    np.testing.assert_allclose(given.to_frame(counts, shown, 1.0, (0, 0)), 3.0, rtol=1e-3)


def test_a_pixel_that_does_not_count_is_given_back_what_its_neighbours_show() -> None:
    sums, sound = Evidence.empty((64, 70)), np.ones((64, 64), bool)
    sound[30, 30] = False
    counts, shown = np.full((64, 64), 3.0), np.full((64, 64), 2.0, np.float32)
    counts[30, 30] = 20_000
    for k in range(96):
        sums.add(counts, shown, 1.0, (0, k % 6), sound)
    changed = give_back(sums).to_frame(counts, shown, 1.0, (0, 2), sound=sound)
    assert changed[30, 30] == pytest.approx(3.0, rel=0.05)


def test_one_pixel_alone_is_no_event() -> None:
    shown = np.full((16, 64, 64), 2.0, np.float32)
    counts = np.random.default_rng(6).poisson(shown)
    counts[5, 30, 30] = 500
    assert (steady(counts, shown, 16.0) == shown).all()
