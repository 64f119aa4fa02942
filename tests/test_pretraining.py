"""The scenes that the base model learns from, and the base model itself."""

from __future__ import annotations

import logging
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import xarray as xr
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors import safe_open
from scipy import ndimage
from small import movie_store
from tdenoise_pipeline.apply.apply import apply
from tdenoise_pipeline.errors import InputError
from tdenoise_pipeline.settings.config import ApplyConfig

from tdenoise.network import checkpoint
from tdenoise.network.card import WEIGHTS
from tdenoise.network.split_blind import Architecture, SplitBlind
from tdenoise.simulation.nanoparticle import simulate
from tdenoise.simulation.particle import SimulationSettings
from tdenoise.training import pretraining
from tdenoise.training.patches import PatchLoader
from tdenoise.training.pretraining import (
    BESIDE,
    CHANGE_IMPORTANCE,
    CHANGING_IMPORTANCE,
    _transferred,
    noisy,
    scene,
)


@pytest.mark.parametrize("at_events", [False, True])
def test_a_scene_is_fixed_by_its_seed_and_lights_every_pixel(at_events: bool) -> None:
    first, again = (scene(3, n_frames=6, size=40, at_events=at_events) for _ in range(2))
    assert first.clean.shape == (6, 40, 40) and first.clean.dtype == np.float16
    assert np.array_equal(first.clean, again.clean) and np.array_equal(first.importance, again.importance)
    assert first.clean.min() > 0 and first.clean.max() < 4
    assert not np.array_equal(first.clean, scene(4, n_frames=6, size=40, at_events=at_events).clean)


@given(seed=st.integers(0, 2**32 - 1))
@settings(max_examples=20, deadline=None)
def test_another_lens_moves_nothing_and_keeps_the_strength_of_the_contrast(seed: int) -> None:
    movie = np.random.default_rng(seed).normal(1, 0.1, (2, 40, 32))
    seen, moved = (
        _transferred(np.random.default_rng(seed), m, 0.014) for m in (movie, np.roll(movie, (3, 5), (1, 2)))
    )
    np.testing.assert_allclose(np.roll(seen, (3, 5), (1, 2)), moved, atol=1e-5)
    assert abs(seen.mean() - movie.mean()) < 1e-4 and abs(seen.std() - movie.std()) < 1e-4


def test_most_scenes_are_seen_through_another_lens(monkeypatch: pytest.MonkeyPatch) -> None:
    seen = [scene(seed, n_frames=2, size=40).clean for seed in range(12)]
    monkeypatch.setattr(pretraining, "TRANSFERRED", 0.0)
    same = [np.array_equal(scene(seed, n_frames=2, size=40).clean, clean) for seed, clean in enumerate(seen)]
    assert 2 <= sum(same) <= 8


def test_errors_weigh_more_where_columns_come_and_go_and_most_when_they_do() -> None:
    made = scene(5, n_frames=40, size=64, at_events=True)
    weights = made.importance
    assert weights.shape == made.clean.shape
    assert set(np.unique(weights)) == {1, CHANGING_IMPORTANCE, CHANGE_IMPORTANCE}
    # The weights were turned with the scene.
    clean = ndimage.gaussian_filter(made.clean.astype(float), (0, 1, 1))
    swing, changing = np.ptp(clean, axis=0), (weights > 1).any(axis=0)
    assert swing[changing].mean() > 1.3 * swing[~changing].mean()
    step = np.abs(clean[BESIDE:] - clean[:-BESIDE])
    beside = (weights == CHANGE_IMPORTANCE)[BESIDE // 2 : -BESIDE // 2]
    assert step[beside].mean() > 1.3 * step[changing & ~beside].mean()


def test_weights_are_cut_and_turned_as_the_targets_are() -> None:
    made = scene(5, n_frames=40, size=64, at_events=True)
    movie = replace(noisy(made, seed=1), clean=made.importance.astype(np.float32))
    batch = PatchLoader([movie], Architecture(), patch=48, batch=4).draw(0)
    assert set(batch.weight.unique().tolist()) == {1.0, CHANGING_IMPORTANCE, CHANGE_IMPORTANCE}
    for low, high in ((1, CHANGING_IMPORTANCE), (CHANGING_IMPORTANCE, CHANGE_IMPORTANCE)):
        assert batch.target[batch.weight == high].min() > batch.target[batch.weight == low].max()


@pytest.mark.parametrize("at_events", [False, True])
@pytest.mark.parametrize("seed", [0, 1, 4])  # of the six, some are turned
def test_a_scene_moves_as_its_drift_says(seed: int, at_events: bool) -> None:
    made = scene(seed, n_frames=40, size=64, at_events=at_events)
    first, last = made.clean[0].astype(float), made.clean[-1].astype(float)
    back = ndimage.shift(last, made.drift[0] - made.drift[-1], order=1)
    inside = slice(14, -14)

    def difference(image: np.ndarray) -> float:
        return float(np.abs(image - first)[inside, inside].mean())

    assert np.abs(made.drift[-1] - made.drift[0]).max() > 1
    assert difference(back) < 0.8 * difference(last)  # columns change, and the particle turns


def test_most_noisy_movies_come_with_their_drift_and_its_errors() -> None:
    made = scene(0, n_frames=40, size=40)
    drifts = [noisy(made, seed=seed).drift for seed in range(60)]
    errors = [drift - made.drift for drift in drifts if drift is not None]
    assert 45 <= len(errors) < 60
    assert 0.05 < np.std(errors) < 0.3
    assert np.abs(np.diff(errors, axis=1)).max() < 0.3, "from one frame to the next it is nearly the same"


def test_the_target_of_a_noisy_movie_is_what_its_counts_are_on_average() -> None:
    movie = noisy(scene(0, n_frames=20, size=40), seed=1)
    assert movie.clean is not None
    expected = movie.clean_unit * np.asarray(movie.clean[:], np.float32)
    difference = (movie.frames[:] - expected) / np.sqrt(expected)
    assert abs(difference.mean()) < 4 / np.sqrt(expected.size)
    assert abs(difference.std() - 1) < 0.05


def test_the_base_model_as_it_is_beats_the_best_gaussian_and_says_what_it_is(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, workers: str
) -> None:
    from tdenoise.evaluation.metrics import best_gaussian

    made = simulate(SimulationSettings(n_frames=24, height=96, width=96, dose=1.0, seed=4711))
    movie = movie_store(tmp_path, made.counts)
    with caplog.at_level(logging.WARNING, logger="tdenoise_pipeline"):  # "-q" leaves another level behind
        apply(ApplyConfig(movie=movie, output=tmp_path / "out.zarr", workers=workers, ensemble=1))
    assert "no --model" in caplog.text
    with xr.open_zarr(tmp_path / "out.zarr") as opened:
        denoised = opened["denoised"].to_numpy()
    error = float(np.square(denoised - made.clean).mean())
    peak = float(made.clean.max() - made.clean.min())
    assert 10 * np.log10(peak**2 / error) > best_gaussian(made.counts, made.clean, 1.0).psnr + 1


def test_the_base_model_is_refused_where_neighbours_share_noise(tmp_path: Path) -> None:
    made = simulate(SimulationSettings(n_frames=20, height=64, width=64, dose=2.0, blur_px=0.7))
    movie = movie_store(tmp_path, made.counts)
    with pytest.raises(InputError, match="Train a model on this movie"):
        apply(ApplyConfig(movie=movie, output=tmp_path / "out.zarr", workers="local:1"))


def test_the_base_model_is_small_enough_to_come_with_the_package() -> None:
    assert (checkpoint.BASE / WEIGHTS).stat().st_size < 10 * 2**20
    assert checkpoint.load_model(checkpoint.BASE).card["simulated"]["scenes"] > 0


def test_the_spread_layer_belongs_to_the_base_model() -> None:
    with safe_open(checkpoint.SPREAD, "pt") as file:
        assert file.metadata()["base"] == checkpoint.read_card(checkpoint.BASE)["sha256"]
    base = checkpoint.load_model(checkpoint.BASE).network
    assert isinstance(base, SplitBlind)
    head = SplitBlind(replace(base.architecture, head="gamma"))
    layer = checkpoint.base_spread()
    head.load_state_dict(base.state_dict() | layer)  # names and shapes fit
    assert layer["spread.weight"].abs().max() > 1, "it tells pixels apart"
