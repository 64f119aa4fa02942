"""Jumps from frame to frame: followed where the frames show them, and nowhere else."""

from __future__ import annotations

import numpy as np
import pytest
from test_drift import moved

from tdenoise.noise.jitter import jitter


def shaken(n: int, jumps: np.ndarray, dose: float, seed: int = 0) -> np.ndarray:
    clean = np.stack([1 + 2 * moved(*jump) for jump in jumps]).clip(0)
    return np.random.default_rng(seed).poisson(dose * clean).astype(np.float32)


@pytest.mark.parametrize("n", [80, 200])
def test_jumps_that_are_new_in_every_frame_are_followed(n: int) -> None:
    jumps = np.random.default_rng(1).normal(0, 1.2, (n, 2))
    found = jitter(shaken(n, jumps, 4.0), np.zeros((n, 2)))
    assert found is not None and found.shape == (n, 2)
    off = found - jumps
    assert (off - off.mean(axis=0)).std() < 0.4


def test_jumps_are_found_beside_a_course() -> None:
    n = 96
    course = np.stack([np.arange(n) / 12, np.sin(np.arange(n) / 15)], axis=1)
    jumps = np.random.default_rng(2).normal(0, 1.0, (n, 2))
    found = jitter(shaken(n, course + jumps, 4.0), course)
    assert found is not None
    off = found - jumps
    assert (off - off.mean(axis=0)).std() < 0.4


@pytest.mark.parametrize("dose", [0.1, 1.0, 10.0])
def test_a_scene_that_stays_has_no_jumps(dose: float) -> None:
    still = np.zeros((96, 2))
    for seed in range(3):
        assert jitter(shaken(96, still, dose, seed), still) is None


def test_noise_has_no_jumps() -> None:
    still = np.zeros((96, 2))
    for seed in range(3):
        noise = np.random.default_rng(seed).poisson(1.0, (96, 64, 64)).astype(np.float32)
        assert jitter(noise, still) is None


def test_noise_that_a_row_of_the_detector_shares_is_no_jump() -> None:
    still = np.zeros((96, 2))
    for seed in range(3):
        rng = np.random.default_rng(seed)
        frames = rng.poisson(1.0, (96, 64, 64)) + rng.normal(0, 1.0, (96, 64, 1))
        assert jitter(frames.astype(np.float32), still) is None


def test_frames_of_a_few_counts_have_no_jumps() -> None:
    still = np.zeros((256, 2))
    for seed in range(3):
        frames = np.random.default_rng(seed).poisson(0.001, (256, 32, 32)).astype(np.float32)
        assert jitter(frames, still) is None


@pytest.mark.parametrize("n", [1, 3, 20, 40])
def test_a_short_movie_has_no_jumps_that_could_be_known(n: int) -> None:
    jumps = np.random.default_rng(3).normal(0, 2, (n, 2))
    found = jitter(shaken(n, jumps, 1.0), np.zeros((n, 2)))
    assert found is None or n > 24


def test_frames_that_show_nothing_stay_where_the_course_puts_them() -> None:
    jumps = np.random.default_rng(4).normal(0, 1.2, (96, 2))
    frames = shaken(96, jumps, 4.0)
    frames[[5, 40, 41]] = 0
    frames[60] = 3e38
    found = jitter(frames, np.zeros((96, 2)))
    assert found is not None and not found[[5, 40, 41, 60]].any()
    off = np.delete(found - jumps, [5, 40, 41, 60], axis=0)
    assert (off - off.mean(axis=0)).std() < 0.4
