"""Changes are found where they are, only if the counts confirm them, and noise is never one."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from scipy.ndimage import gaussian_filter
from stores import denoised_store, movie_store
from tdenoise_pipeline.evaluate.evaluate import measure
from tdenoise_pipeline.settings.config import EvaluateConfig


def changes(folder: Path, clean: np.ndarray, shown: np.ndarray | None = None, seed: int = 0):
    """The changes of a movie with a given expectation, whose denoised movie is that, or another."""
    counts = np.random.default_rng(seed).poisson(clean).astype(np.uint8)
    movie = movie_store(folder / "m.zarr", counts)
    denoised = denoised_store(folder / "d.zarr", movie, clean if shown is None else shown)
    return measure(EvaluateConfig(denoised.path, movie.path))[1].changes.result(3)


def steady(n_frames: int = 60) -> np.ndarray:
    rows, columns = np.indices((64, 80))
    return np.repeat(2 + 0.4 * np.sin(rows / 4) * np.sin(columns / 4)[None], n_frames, axis=0)


def test_a_column_that_appears_is_found_where_and_when(tmp_path):
    clean = steady()
    clean[24:, 36:42, 50:56] += 3
    found = changes(tmp_path, clean)
    assert found and found[0].step > 0 and found[0].confirmed
    assert found[0].frame == 24
    assert abs(found[0].row - 39) <= 4 and abs(found[0].column - 53) <= 4
    assert found[0].counts_z > 5


def test_a_faint_change_that_lasts_is_found(tmp_path):
    clean = steady(80)
    clean[40:, 20:28, 20:28] -= 0.8
    found = changes(tmp_path, clean)
    assert found and found[0].step < 0 and found[0].group == 4 and found[0].confirmed
    assert abs(found[0].frame - 40) <= 4


def test_a_change_that_the_network_invented_is_none(tmp_path):
    clean = steady()
    invented = clean.copy()
    invented[24:, 36:42, 50:56] += 3
    assert not any(change.confirmed for change in changes(tmp_path, clean, invented))


def test_a_change_that_the_network_erased_is_not_shown_as_one(tmp_path):
    clean = steady()
    changed = clean.copy()
    changed[24:, 36:42, 50:56] += 3
    assert changes(tmp_path, changed, clean) == []


@pytest.mark.parametrize("seed", range(4))
def test_noise_is_never_a_confirmed_change(tmp_path, seed):
    clean = steady()
    counts = np.random.default_rng(seed).poisson(clean)
    # Even where the "denoised" movie is the noise itself.
    assert not any(change.confirmed for change in changes(tmp_path, clean, counts.astype(float), seed))


def drifting(n_frames: int) -> np.ndarray:
    """A random crystal that moves by a quarter of a pixel from frame to frame."""
    scene = gaussian_filter(np.random.default_rng(3).normal(size=(120, 80)), 2.5)
    scene = 2 + 1.2 * scene / scene.std() * 0.4
    return np.stack([scene[k // 4 : k // 4 + 80] for k in range(n_frames)])


def test_a_scene_that_drifts_does_not_change(tmp_path):
    clean = drifting(120)
    counts = np.random.default_rng(0).poisson(clean).astype(np.uint8)
    movie = movie_store(tmp_path / "m.zarr", counts)
    assert movie.attributes["drift"] is not None
    denoised = denoised_store(tmp_path / "d.zarr", movie, clean)
    found = measure(EvaluateConfig(denoised.path, movie.path))[1].changes.result(3)
    assert not any(change.confirmed for change in found)


@pytest.mark.parametrize("shape", [(3, 40, 40), (9, 1, 1), (20, 2, 60)])
def test_a_movie_too_small_to_look_at_has_no_changes(tmp_path, shape):
    assert changes(tmp_path, np.full(shape, 2.0)) == []
