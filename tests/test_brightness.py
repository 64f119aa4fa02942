"""Brightness of frames: measured from their own counts, shrunk where it is chance, and taken out of what is seen."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from small import TINY, counts, network

from tdenoise.inference.denoising import denoise
from tdenoise.inference.tile import Tile
from tdenoise.noise.brightness import Brightness, measure
from tdenoise.noise.neighbour_frames import window_indices
from tdenoise.noise.noise import Scale
from tdenoise.noise.noise_measurement import NoiseAccumulator
from tdenoise.training.patches import PatchLoader
from tdenoise.training.training_movie import TrainingMovie
from tdenoise.training.validation import HeldOut

PIXELS = np.full(16, 1024)
EDGES = (np.arange(0, 129, 32), np.arange(0, 129, 32))
SCALE = Scale(2.0, 1.4, 0.4)


def parts(levels: np.ndarray, dose: float = 1.0, seed: int = 0) -> np.ndarray:
    """Means of 16 parts of a field of 128 x 128 pixels, of which every one has its own content."""
    rng = np.random.default_rng(seed)
    content = rng.uniform(0.8, 1.3, 16)
    return np.asarray(rng.poisson(dose * PIXELS * content * levels[:, None]) / PIXELS)


def off(found: Brightness, levels: np.ndarray, dose: float = 1.0) -> np.ndarray:
    """By how many counting errors levels are off."""
    true = levels / levels[found.valid].mean()
    return np.asarray((found.levels / true - 1) * np.sqrt(dose * 1.05 * levels * PIXELS.sum()))


def test_a_steady_beam_gets_levels_of_one() -> None:
    steady = [measure(parts(np.ones(96), seed=seed), EDGES, 1.0, np.ones(96, bool)) for seed in range(40)]
    assert sum(found.is_steady for found in steady) >= 34
    # Where chance looks like a change, it is hardly one.
    assert max(np.std(found.levels) for found in steady) < 0.6 / np.sqrt(PIXELS.sum())


@pytest.mark.parametrize("beam", ["flicker", "slight flicker", "step", "decay", "one flash"])
def test_every_level_is_known_to_its_counting_error(beam: str) -> None:
    rng = np.random.default_rng(1)
    levels = {
        "flicker": rng.uniform(0.7, 1.3, 96),
        "slight flicker": rng.uniform(0.95, 1.05, 96),
        "step": np.where(np.arange(96) < 48, 1.0, 0.4),
        "decay": np.linspace(1, 0.1, 96),
        "one flash": np.where(np.arange(96) == 40, 20.0, 1.0),
    }[beam]
    found = [
        off(measure(parts(levels, seed=seed), EDGES, 1.0, np.ones(96, bool)), levels) for seed in range(5)
    ]
    assert np.sqrt(np.square(found).mean()) < 1.15
    assert (np.abs(found) > 2).mean() < 0.1


def test_a_part_that_flashes_by_itself_is_no_flicker() -> None:
    means = parts(np.ones(96))
    means[40:43, :3] *= 1.5  # of 16 parts
    found = measure(means, EDGES, 1.0, np.ones(96, bool))
    assert np.abs(found.levels[38:46] - 1).max() < 0.01


def test_a_frame_that_is_not_valid_gets_the_level_of_those_around() -> None:
    levels = np.linspace(1, 0.5, 60)
    means, valid = parts(levels), np.ones(60, bool)
    means[[20, 21]] = 0
    valid[[20, 21]] = False
    found = measure(means, EDGES, 1.0, valid)
    assert found.levels[19] > found.levels[20] > found.levels[21] > found.levels[22]


@given(
    valid=st.lists(st.booleans(), min_size=3, max_size=70).map(np.array),
    window=st.integers(1, 25),
    data=st.data(),
)
@settings(max_examples=150, deadline=None)
def test_windows_hold_valid_frames_nearby_and_never_the_one_that_is_predicted(
    valid: np.ndarray, window: int, data: st.DataObject
) -> None:
    known = Brightness(np.ones(len(valid)), valid)
    centre = data.draw(st.integers(0, len(valid) - 1))
    near = np.flatnonzero(valid[max(0, centre - window) : centre + window + 1])
    if len(near) < 3 and not valid.all():
        with pytest.raises(LookupError):
            known.window(centre, window)
        return
    indices, own = known.window(centre, window)
    assert len(indices) == 2 * window and valid[indices].all() and valid[own]
    assert own not in indices and (not valid[centre] or own == centre)
    assert np.abs(indices - centre).max() <= window and abs(own - centre) <= window
    if valid.all():
        np.testing.assert_array_equal(indices, window_indices(centre, len(valid), window))


def test_a_movie_under_an_unsteady_beam_is_denoised_as_that_under_a_steady_one() -> None:
    made, rng = network(), np.random.default_rng(3)
    clean = np.broadcast_to(counts((1, 32, 40)).astype(float) + 1, (30, 32, 40))
    levels = rng.uniform(0.5, 1.5, 30)
    whole, known = Tile.whole(clean.shape), Brightness(levels, np.ones(30, bool))
    still = np.stack(list(denoise(made, clean, whole, SCALE, range(30), ensemble=2)))
    moved = denoise(
        made, clean * levels[:, None, None], whole, SCALE, range(30), ensemble=2, brightness=known
    )
    # At the dose that a frame is seen at, a network may say something else; here that dose is the same.
    flat = Brightness(levels, np.ones(30, bool))
    assert np.ptp(flat.around(TINY.window)) > 0
    for shown, frame, level in zip(moved, still, levels, strict=True):
        assert abs(np.mean(shown) / (level * np.mean(frame)) - 1) < 0.2


def test_levels_leave_a_pixel_blind_to_itself() -> None:
    made, frames = network(), counts((12, 24, 24)).astype(np.float32)
    known = Brightness(np.random.default_rng(0).uniform(0.6, 1.4, 12), np.arange(12) != 7)
    whole = Tile.whole(frames.shape)
    before = next(denoise(made, frames, whole, SCALE, range(5, 6), brightness=known))
    frames[5, 9, 13] += 50
    after = next(denoise(made, frames, whole, SCALE, range(5, 6), brightness=known))
    assert after[9, 13] == before[9, 13] and not np.array_equal(after, before)
    frames[7] = np.nan  # a frame that was not recorded is not looked at
    again = next(denoise(made, frames, whole, SCALE, range(5, 6), brightness=known))
    np.testing.assert_array_equal(again, after)


def test_blocks_equal_the_whole_under_an_unsteady_beam() -> None:
    made, frames = network(), counts((40, 24, 24))
    known = Brightness(
        np.random.default_rng(0).uniform(0.6, 1.4, 40), ~np.isin(np.arange(40), [0, 9, 10, 39])
    )
    whole = list(denoise(made, frames, Tile.whole(frames.shape), SCALE, range(40), brightness=known))
    window = TINY.window
    for start, stop in ((0, 10), (10, 23), (23, 40)):
        first, last = max(0, start - window), min(40, stop + window)
        tile = Tile(40, first, (0, 24), (0, 24))
        part = denoise(made, frames[first:last], tile, SCALE, range(start, stop), brightness=known)
        np.testing.assert_allclose(np.stack(list(part)), np.stack(whole[start:stop]), rtol=1e-5, atol=1e-5)


def test_patches_hold_the_noise_of_the_dose_that_they_are_seen_at() -> None:
    rng, levels = np.random.default_rng(0), np.exp(np.random.default_rng(1).normal(0, 0.4, 60))
    frames = rng.poisson(4.0 * levels[:, None, None], (60, 64, 64)).astype(np.uint8)
    known = Brightness(levels, np.arange(60) != 30)
    movie = TrainingMovie(frames, Scale(4.0, 2.0, 0.6), (), brightness=known)
    loader = PatchLoader([movie], TINY, patch=32, batch=8)
    assert 30 not in loader._targets(loader._regions[0])
    found = [loader.draw(step) for step in range(20)]
    target, weight = (torch.cat([getattr(b, name) for b in found]) for name in ("target", "weight"))
    assert abs(float((weight * target).sum() / weight.sum())) < 0.02
    # In units of the noise, and weighed by one over its variance, every target counts the same.
    scatter = (weight * target.square()).mean(dim=(1, 2, 3))
    assert 0.9 < float(scatter.mean()) < 1.1 and float(scatter.std()) < 0.15


def test_held_out_frames_that_were_not_recorded_are_not_validated_on() -> None:
    frames = counts((40, 32, 32)).astype(np.float32)
    frames[20] = np.nan
    known = Brightness(np.ones(40), np.arange(40) != 20)
    movie = TrainingMovie(frames, SCALE, (19, 20, 21), brightness=known)
    assert np.isfinite(HeldOut([movie], TINY, "cpu", False)(network()))


def test_flicker_does_not_look_like_noise_or_correlation() -> None:
    rng = np.random.default_rng(2)
    levels = rng.uniform(0.7, 1.3, 64)
    levels[30] = 20
    scene = 1 + 0.3 * np.sin(np.arange(96) / 3.0)[None, :] * np.ones((96, 1))
    frames = rng.poisson(levels[:, None, None] * scene)
    found = []
    for used in (None, levels):
        accumulator = NoiseAccumulator()
        for first in range(0, 64, 16):
            part = slice(first, first + 16)
            accumulator.add(frames[part], None if used is None else used[part, None, None])
        found.append(accumulator.result())
    fooled, told = found
    assert not fooled.is_poisson
    assert told.is_poisson and abs(told.fano - 1) < 0.02 and abs(told.correlation_x) < 0.01
