from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from tdenoise.noise.bad_pixels import (
    HitFinder,
    Patches,
    PixelStatistics,
    clipping,
    dead_lines,
    dead_pixels,
    hot_pixels,
)
from tdenoise.noise.camera_pattern import PixelAccumulator


def statistics(frames: np.ndarray) -> PixelStatistics:
    """What `pipeline.survey.sample_pixels` makes of frames that are taken in pairs."""
    pairs = frames.reshape(-1, 2, *frames.shape[1:]).astype(np.float64)
    sums = pairs.sum(axis=1)
    steady = (sums.sum(axis=0) - sums.max(axis=0)) / (2 * len(pairs) - 2)
    variance = np.square(np.diff(pairs, axis=1)).mean(axis=(0, 1)) / 2
    return PixelStatistics(sums.mean(axis=0) / 2, steady, variance, len(pairs))


def lattice(fwhm: float, dose: float, seed: int = 0) -> np.ndarray:
    """32 frames of a lattice of peaks, Poisson noise included."""
    y, x = np.mgrid[:96, :96]
    clean = np.zeros((96, 96))
    for row in np.arange(4.3, 96, 7.7):
        for column in np.arange(3.6, 96, 6.1):
            clean += np.exp(-4 * np.log(2) * ((y - row) ** 2 + (x - column) ** 2) / fwhm**2)
    return np.random.default_rng(seed).poisson(dose * (0.3 + 2 * clean), (32, 96, 96))


@pytest.mark.parametrize("dose", [0.01, 0.1, 1.0, 10.0, 1000.0])
@pytest.mark.parametrize("fwhm", [2.0, 4.0])
def test_no_atomic_column_is_taken_for_a_hot_pixel(fwhm: float, dose: float) -> None:
    measured = statistics(lattice(fwhm, dose))
    assert not hot_pixels(measured).any()
    assert not dead_pixels(measured).any()


@pytest.mark.parametrize("dose", [0.01, 1.0, 100.0])
def test_hot_pixels_are_found_alone_in_pairs_and_at_the_edge(dose: float) -> None:
    frames = lattice(4.0, dose)
    places = [(20, 31), (50, 3), (50, 4), (0, 0), (95, 40)]
    for y, x in places:
        frames[:, y, x] = np.random.default_rng(y).poisson(30 + 20 * dose, 32)
    assert sorted(map(tuple, np.argwhere(hot_pixels(statistics(frames))))) == sorted(places)


def test_what_hits_once_makes_no_hot_pixel() -> None:
    frames = lattice(4.0, 1.0)
    frames[9, 20, 31] = 60_000
    assert not hot_pixels(statistics(frames)).any()


def test_dead_pixels_are_found_but_no_masked_region() -> None:
    frames = lattice(4.0, 20.0)
    frames[:, 30, 40] = 0
    frames[:, 60, :] = 7  # a dead row
    frames[:, 80:, 80:] = 0  # a beam stop
    found = {tuple(p) for p in np.argwhere(dead_pixels(statistics(frames)))}
    assert found == {(30, 40), *((60, x) for x in range(96))}


def test_a_pixel_without_a_count_is_not_dead_where_there_are_few() -> None:
    assert not dead_pixels(statistics(lattice(4.0, 0.05))).any()


@given(arrays(bool, (7, 9), elements=st.sampled_from([False] * 15 + [True])), st.integers(0, 50))
def test_bad_pixels_take_the_value_of_a_sound_neighbour_and_no_other_pixel_changes(
    bad: np.ndarray, first: int
) -> None:
    if bad.mean() > 0.1:
        return
    frames = np.random.default_rng(0).integers(0, 1000, (6, 7, 9))
    frames[:, bad] = -1
    before = frames.copy()
    Patches(bad).apply(frames, first)
    np.testing.assert_array_equal(frames[:, ~bad], before[:, ~bad])
    for y, x in np.argwhere(bad):
        for radius in range(1, 9):
            around = (slice(max(0, y - radius), y + radius + 1), slice(max(0, x - radius), x + radius + 1))
            if not bad[around].all():
                break
        for frame, old in zip(frames, before, strict=True):
            assert frame[y, x] in old[around][~bad[around]]


def test_patches_have_the_mean_and_the_noise_of_their_neighbours() -> None:
    frames = np.random.default_rng(0).poisson(0.4, (20_000, 4, 4))
    bad = np.zeros((4, 4), dtype=bool)
    bad[1, 1] = True
    Patches(bad).apply(frames, 0)
    assert frames[:, 1, 1].mean() == pytest.approx(0.4, abs=0.02)
    assert frames[:, 1, 1].var() == pytest.approx(0.4, abs=0.03)


def test_most_pixels_cannot_be_bad() -> None:
    with pytest.raises(ValueError, match="100 % of the pixels"):
        Patches(np.ones((4, 4), dtype=bool))


@pytest.mark.parametrize("dose", [0.02, 1.0, 30.0])
def test_noise_alone_is_no_x_ray_and_a_hit_is_found(dose: float) -> None:
    frames = lattice(3.0, dose)
    finder = HitFinder(statistics(frames), frames.size, np.zeros((96, 96), dtype=bool))
    assert sum(len(finder.find(frame)) for frame in lattice(3.0, dose, seed=1)) == 0
    frame = frames[5]
    frame[40, 41] = frame[70, 20] = frame[70, 21] = 3000 + 100 * dose
    assert finder.find(frame).tolist() == [[40, 41], [70, 20], [70, 21]]


def test_a_flash_over_several_pixels_is_no_x_ray() -> None:
    frames = lattice(3.0, 1.0)
    finder = HitFinder(statistics(frames), frames.size, np.zeros((96, 96), dtype=bool))
    frames[3, 20:24, 20:24] = 400
    assert len(finder.find(frames[3])) == 0


def test_a_hot_pixel_that_is_kept_is_no_x_ray() -> None:
    frames = lattice(3.0, 1.0)
    frames[:, 5, 6] = 900
    apart = hot_pixels(statistics(frames))
    assert apart[5, 6]
    assert len(HitFinder(statistics(frames), frames.size, apart).find(frames[0])) == 0


def accumulated(frames: np.ndarray) -> PixelStatistics:
    pixels = PixelAccumulator(frames.shape[1:])
    pixels.add(frames)
    found = pixels.statistics()
    assert found is not None
    return found


def mask(*places: tuple[slice | int, slice | int], shape: tuple[int, int] = (96, 96)) -> np.ndarray:
    marked = np.zeros(shape, dtype=bool)
    for place in places:
        marked[place] = True
    return marked


COLUMNS = mask((slice(None), slice(30, 32)), (5, 6))


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16, np.uint32, np.float32, np.float64])
@pytest.mark.parametrize("value", ["largest", "nan", "3e38"])
def test_pixels_without_a_count_are_found_whatever_their_share_and_change_nothing_else(
    dtype: type, value: str
) -> None:
    frames = lattice(4.0, 1.0).astype(dtype)
    sound = accumulated(frames)
    largest = np.finfo(dtype).max if frames.dtype.kind == "f" else np.iinfo(dtype).max
    if value != "largest" and frames.dtype.kind != "f":
        return
    frames[:, COLUMNS] = {"largest": largest, "nan": np.nan, "3e38": 3e38}[value]
    found = accumulated(frames)
    assert found.lost is not None and (found.lost == COLUMNS).all()
    assert not hot_pixels(found).any() and not dead_pixels(found).any()
    assert (found.mean == sound.mean)[~COLUMNS].all() and (found.variance == sound.variance)[~COLUMNS].all()
    assert found.typical == pytest.approx(sound.typical, rel=0.05)
    assert found.mean[COLUMNS].max() < 2 * sound.mean.max()


def test_a_nan_or_a_saturated_count_now_and_then_makes_no_lost_pixel() -> None:
    frames = lattice(4.0, 1.0).astype(np.float32)
    sound = accumulated(frames).mean[5, 6]
    frames[:8, 5, 6] = np.nan  # 4 of 16 pairs
    frames[10] = np.nan  # a frame that was lost
    frames[::2, 40, 40] = np.finfo(np.float32).max  # half of a pixel's frames: no pair is whole
    found = accumulated(frames)
    assert found.lost is not None and not found.lost.any()
    assert found.mean[5, 6] == pytest.approx(sound, abs=0.6) and found.mean[40, 40] < 10
    assert not hot_pixels(found).any() and not dead_pixels(found).any()


def test_nothing_is_known_of_a_movie_without_any_count() -> None:
    pixels = PixelAccumulator((8, 8))
    pixels.add(np.full((6, 8, 8), np.nan))
    pixels.add(np.full((6, 8, 8), 65535, dtype=np.uint16))
    assert pixels.statistics() is None and not pixels.undecided and not pixels.bad_pixels().any()


@pytest.mark.parametrize("dose", [0.05, 1.0])
def test_dead_rows_and_columns_are_found_but_no_band_that_was_masked_out(dose: float) -> None:
    frames = lattice(4.0, dose)
    frames[:, 20:22] = 0
    frames[:, :, 70] = 7
    frames[:, 0] = 0
    frames[:, 50:60] = 0  # masked out
    frames[:, :, 90:] = 0
    expected = mask((slice(20, 22), slice(None)), (slice(None), 70), (0, slice(None)))
    expected[:, 90:] = False
    found = dead_lines(accumulated(frames))
    assert (found[:, :90] == expected[:, :90]).all()
    assert not dead_lines(accumulated(lattice(4.0, dose))).any()


@pytest.mark.parametrize("dose", [0.01, 1.0, 30.0])
def test_no_sound_movie_is_taken_for_a_clipped_one(dose: float) -> None:
    for frames in (lattice(3.0, dose), np.random.default_rng(0).poisson(dose, (32, 96, 96))):
        assert clipping(accumulated(frames), mask()) is None
        noisy = frames * 12.7 + np.random.default_rng(1).normal(100, 3, frames.shape)
        assert clipping(accumulated(noisy.astype(np.float32)), mask()) is None
        assert clipping(accumulated(noisy.clip(0).astype(np.uint16)), mask()) is None


def test_counts_that_are_cut_off_are_told_but_not_for_bad_pixels() -> None:
    frames = (lattice(3.0, 30.0) * 12.7 + np.random.default_rng(1).normal(100, 3, (32, 96, 96))).astype(
        np.uint16
    )
    value = int(np.quantile(frames, 0.995))
    clipped = accumulated(frames.clip(max=value))
    found = clipping(clipped, mask())
    assert found is not None and found[0] == value and found[1] > 100
    low = accumulated(frames.clip(max=int(np.quantile(frames, 0.01))))  # every pixel reaches it
    assert clipping(low, mask()) == (float(np.quantile(frames, 0.01)), 96 * 96)
    still = np.full((96, 96), 255.0)
    assert clipping(PixelStatistics(still, still, np.zeros_like(still), 16, peak=still), mask()) is None
    frames[:, COLUMNS] = 60_000
    assert clipping(accumulated(frames), COLUMNS) is None


@pytest.mark.parametrize("lost", [0.3, 0.9])
def test_a_large_region_that_is_lost_is_filled_from_its_border(lost: float) -> None:
    bad = np.zeros((64, 64), dtype=bool)
    bad[:, : int(64 * lost)] = True
    frames = np.random.default_rng(0).integers(0, 9, (4, 64, 64))
    frames[:, bad] = -1
    with pytest.raises(ValueError, match="would be replaced"):
        Patches(bad)
    Patches(bad, bad).apply(frames, 0)
    assert frames.min() >= 0
    with pytest.raises(ValueError, match="no sound pixel"):
        Patches(np.ones((4, 4), dtype=bool), np.ones((4, 4), dtype=bool))


def test_inf_is_no_x_ray() -> None:
    frames = lattice(3.0, 1.0).astype(np.float32)
    finder = HitFinder(accumulated(frames), frames.size, mask())
    frames[5, 40, 41], frames[5, 10, 11] = np.inf, 3000
    assert finder.find(frames[5]).tolist() == [[10, 11]]
