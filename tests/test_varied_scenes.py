"""Scenes of all kinds for the base model."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tdenoise.network.split_blind import Architecture
from tdenoise.simulation.varied_scenes import CHANGE, CHANGING, ODD
from tdenoise.training.patches import PatchLoader
from tdenoise.training.pretraining import noisy, varied_scene


@given(seed=st.integers(0, 2**31 - 1))
@settings(max_examples=25, deadline=None)
def test_a_scene_is_fixed_by_its_seed_lights_every_pixel_and_shows_something(seed: int) -> None:
    made, again = (varied_scene(seed, n_frames=6, size=40) for _ in range(2))
    assert made.clean.shape == made.importance.shape == (6, 40, 40) and made.drift.shape == (6, 2)
    assert np.array_equal(made.clean, again.clean) and np.array_equal(made.importance, again.importance)
    clean = made.clean.astype(np.float32)
    assert np.isfinite(clean).all() and clean.min() >= 0.019 and clean.max() < 6
    assert set(np.unique(made.importance)) <= {1, CHANGING, ODD, CHANGE}


def test_scenes_are_of_many_kinds() -> None:
    scenes = [varied_scene(seed, n_frames=24, size=48) for seed in range(60)]
    clean = np.stack([np.asarray(s.clean, np.float32) for s in scenes])
    dark = (clean.mean(axis=(1, 2, 3)) < 0.98).mean()
    still = np.array([not s.drift.any() for s in scenes]).mean()
    odd, changing = (np.array([(s.importance == w).any() for s in scenes]).mean() for w in (ODD, CHANGE))
    assert 0.05 < dark < 0.5 and 0.2 < still < 0.7
    assert odd > 0.3 and changing > 0.2


@pytest.mark.parametrize("seed", range(3))
def test_counts_of_an_unsteady_beam_come_with_its_levels(seed: int) -> None:
    found = [noisy(varied_scene(n, n_frames=24, size=48), n) for n in range(30 * seed, 30 * seed + 12)]
    unsteady = [movie for movie in found if movie.brightness is not None]
    assert 0 < len(unsteady) < len(found)
    for movie in unsteady:
        levels = movie.seen.levels
        means = np.asarray(movie.frames).mean(axis=(1, 2)) / np.asarray(movie.clean).mean(axis=(1, 2))
        assert means.mean() == pytest.approx(movie.clean_unit, rel=0.1)
        # The clean frames are as bright as the counts; a patch has both at one brightness.
        assert np.corrcoef(np.asarray(movie.clean, float).mean(axis=(1, 2)), levels)[0, 1] > 0.7
    loader = PatchLoader(unsteady, Architecture(), patch=48, batch=8)
    batch = loader.draw(0)
    assert abs(float((batch.target - batch.centre).mean())) < 0.05
