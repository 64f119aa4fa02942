"""Simulated scenes among the patches of an adaptation."""

from __future__ import annotations

from dataclasses import fields, replace
from pathlib import Path

import numpy as np
import pytest
import torch
from small import counts, movie_store
from tdenoise_pipeline.settings.config import TrainConfig
from tdenoise_pipeline.train.train import train_model
from tdenoise_pipeline.train.train_plan import make_plan

from tdenoise.network import checkpoint
from tdenoise.network.registry import Network
from tdenoise.noise.noise import Scale
from tdenoise.simulation.nanoparticle import simulate
from tdenoise.simulation.particle import SimulationSettings
from tdenoise.training import rehearsal
from tdenoise.training.patches import Batch, PatchLoader
from tdenoise.training.pretraining import DRIFT_SPEEDS_PX, PIXEL_SIZES_NM, noisy, scene
from tdenoise.training.rehearsal import RehearsedLoader
from tdenoise.training.train import TrainingSettings, TrainingState, train
from tdenoise.training.training_movie import TrainingMovie

ARCHITECTURE = checkpoint.load_model(checkpoint.BASE).network.architecture


@pytest.fixture(autouse=True)
def small_scenes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(rehearsal, "N_FRAMES", 8)
    monkeypatch.setattr(rehearsal, "SIZE", 48)


def movie(dose: float, gain: float = 1.0) -> TrainingMovie:
    frames = np.random.default_rng(1).poisson(dose, (30, 48, 48)).astype(np.uint16) * gain
    noise = gain * np.sqrt(dose)
    return TrainingMovie(frames, Scale(gain * dose, noise, 0.3 * noise), (3, 4))


def equal(a: Batch, b: Batch) -> bool:
    return all(torch.equal(getattr(a, field.name), getattr(b, field.name)) for field in fields(Batch))


def rows(batch: Batch, which: slice) -> Batch:
    return Batch(*(getattr(batch, field.name)[which] for field in fields(Batch)))


def test_scenes_come_after_the_patches_of_the_movie_which_stay_as_they_were() -> None:
    alone, rehearsed = (kind([movie(2.0)], ARCHITECTURE, patch=48) for kind in (PatchLoader, RehearsedLoader))
    for step in (0, rehearsal.STEPS_PER_SCENE):
        batch = rehearsed.draw(step)
        assert batch.target.shape == (12, 1, 48, 48)
        assert equal(rows(batch, slice(8)), alone.draw(step))
        scenes = rows(batch, slice(8, None))
        assert scenes.target.std() < 0.5 * batch.target[:8].std(), "the target is the clean frame"
        assert len(scenes.weight.unique()) > 1, "some errors weigh more"


def test_what_is_drawn_depends_on_the_step_alone() -> None:
    first, again = (RehearsedLoader([movie(2.0)], ARCHITECTURE, patch=32, seed=5) for _ in range(2))
    batches = [first.draw(step) for step in (0, 1, rehearsal.STEPS_PER_SCENE)]
    steps = (rehearsal.STEPS_PER_SCENE, 1, 0)
    assert all(equal(again.draw(step), batch) for step, batch in zip(steps, batches[::-1], strict=True))
    assert not any(equal(batches[0], other) for other in batches[1:])


@pytest.mark.parametrize("gain", [1.0, 25.0])
@pytest.mark.parametrize("dose", [0.3, 4.0])
def test_scenes_have_the_dose_of_the_movie_whatever_the_gain(dose: float, gain: float) -> None:
    batch = RehearsedLoader([movie(dose, gain)], ARCHITECTURE, patch=48).draw(0)
    of_scenes = batch.electrons[8:, 0].mean()
    assert 0.79 * dose < of_scenes < 1.26 * dose


@pytest.mark.parametrize("n_processes", [2, 3, 6])
def test_processes_share_what_one_would_draw(n_processes: int) -> None:
    whole = RehearsedLoader([movie(2.0)], ARCHITECTURE, patch=32)
    parts = [
        RehearsedLoader([movie(2.0)], ARCHITECTURE, patch=32, share=(i, n_processes))
        for i in range(n_processes)
    ]
    batches = [part.draw(7) for part in parts]
    assert [len(batch.target) for batch in batches] == parts[0].shares == parts[-1].shares
    assert sum(parts[0].shares) == 12
    own = np.array_split(np.arange(8), n_processes)
    joined = [rows(b, slice(len(o))) for b, o in zip(batches, own, strict=True)]
    joined += [rows(b, slice(len(o), None)) for b, o in zip(batches, own, strict=True)]
    together = Batch(*(torch.cat([getattr(b, field.name) for b in joined]) for field in fields(Batch)))
    assert equal(together, whole.draw(7))


def test_only_models_that_scenes_have_taught_rehearse(tmp_path: Path) -> None:
    stored = movie_store(tmp_path, counts((40, 40, 33)))

    def rehearses(**settings: object) -> bool:
        return make_plan(TrainConfig(movie=(stored,), output=tmp_path / "m", **settings)).rehearses  # type: ignore[arg-type]

    assert rehearses()
    assert not rehearses(movie_only=True)
    assert not rehearses(from_model=Path("scratch"))
    assert not rehearses(head="gamma")
    assert not rehearses(blind_radius=1)
    assert not rehearses(model="udvd")
    for name, settings in (("of the base", {}), ("of the movie", {"from_model": Path("scratch")})):
        train_model(TrainConfig(movie=(stored,), output=tmp_path / name, steps=4, processes=1, **settings))  # type: ignore[arg-type]
        assert checkpoint.read_card(tmp_path / name)["rehearsed"] == (not settings)
        assert rehearses(from_model=tmp_path / name) == (not settings)


@pytest.mark.parametrize("pixel_size_nm", [0.012, 0.02])
@pytest.mark.parametrize("n_hot", [0, 20])
def test_scenes_show_a_lattice_about_as_large_as_the_movie(pixel_size_nm: float, n_hot: int) -> None:
    made = simulate(
        SimulationSettings(n_frames=20, height=128, width=120, dose=2.0, pixel_size_nm=pixel_size_nm)
    )
    frames = made.counts.astype(np.uint16)
    stand_ins = np.full(frames.shape[1:], np.nan, np.float32)
    places = np.random.default_rng(2).integers(0, 120, (2, n_hot))
    stand_ins[*places] = 2.0
    frames[:, *places] = 60_000
    seen = TrainingMovie(frames, Scale(2.0, np.sqrt(2), 0.3), (), stand_ins=stand_ins)
    low, high = rehearsal.pixel_sizes_nm(seen)
    assert low < pixel_size_nm < high < 1.5 * low


@pytest.mark.parametrize("error", [0.93, 1.0, 1.08])
def test_scenes_have_pixels_as_large_as_a_movie_says(error: float) -> None:
    made = simulate(SimulationSettings(n_frames=20, height=128, width=120, dose=2.0, pixel_size_nm=0.016))
    seen = TrainingMovie(made.counts, Scale(2.0, np.sqrt(2), 0.3), (), pixel_size_nm=error * 0.016)
    low, high = rehearsal.pixel_sizes_nm(seen)
    assert low < 0.016 < high < 1.22 * low
    assert rehearsal.pixel_sizes_nm(replace(movie(2.0), pixel_size_nm=0.016))[1] == pytest.approx(0.0176)


@pytest.mark.parametrize("told", [0.004, 0.05, 1.0])
def test_scenes_look_like_the_movie_where_it_says_another_size_of_its_pixels(told: float) -> None:
    made = simulate(SimulationSettings(n_frames=20, height=128, width=120, dose=2.0, pixel_size_nm=0.016))
    seen = TrainingMovie(made.counts, Scale(2.0, np.sqrt(2), 0.3), ())
    assert rehearsal.pixel_sizes_nm(replace(seen, pixel_size_nm=told)) == rehearsal.pixel_sizes_nm(seen)
    assert rehearsal.pixel_sizes_nm(replace(movie(2.0), pixel_size_nm=told)) == PIXEL_SIZES_NM


def test_a_movie_without_a_lattice_is_learnt_beside_scenes_of_any_size() -> None:
    assert rehearsal.pixel_sizes_nm(movie(2.0)) == PIXEL_SIZES_NM


def test_training_knows_the_pixels_of_every_movie(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    frames = counts((40, 40, 33))
    stored = (
        movie_store(tmp_path / "told", frames, pixel_size=0.015),
        movie_store(tmp_path / "untold", frames),
    )
    configs = [
        TrainConfig(movie=(path,), output=tmp_path / "m", steps=2, seed=1, processes=1) for path in stored
    ]
    plans = [make_plan(config) for config in configs]
    assert plans[0].movies[0].id == plans[1].movies[0].id
    assert plans[0].identity != plans[1].identity, "one is not a checkpoint of the other"
    known: list[float | None] = []
    monkeypatch.setattr(
        rehearsal, "pixel_sizes_nm", lambda movie: known.append(movie.pixel_size_nm) or (0.01, 0.02)
    )
    for config in configs:
        train_model(replace(config, force=True))
    assert known == [pytest.approx(0.015), None]


@pytest.mark.parametrize("speed", [0.0, 0.05, 0.4, 5.0])
def test_scenes_drift_no_faster_than_the_movie(speed: float) -> None:
    drift = np.random.default_rng(3).choice([-1, 1], (30, 2)).cumsum(0) * speed
    low, high = rehearsal.drift_speeds_px(replace(movie(2.0), drift=drift))
    assert DRIFT_SPEEDS_PX[0] <= low <= high <= DRIFT_SPEEDS_PX[1]
    assert rehearsal.MEAN_SPEED * high <= max(speed, DRIFT_SPEEDS_PX[0]) * 1.001
    assert rehearsal.drift_speeds_px(movie(2.0)) == DRIFT_SPEEDS_PX, "nobody knows"


def test_scenes_of_every_movie_have_the_size_that_was_found_in_it(monkeypatch: pytest.MonkeyPatch) -> None:
    made: list[object] = []
    monkeypatch.setattr(rehearsal, "pixel_sizes_nm", lambda movie: (movie.scale.mean, movie.scale.mean))
    monkeypatch.setattr(
        rehearsal,
        "scene",
        lambda seed, **settings: made.append(settings["pixel_sizes_nm"]) or scene(seed, size=48),
    )
    loader = RehearsedLoader([movie(2.0), movie(3.0)], ARCHITECTURE, patch=32, seed=5)
    for step in range(100_000, 100_008):  # when all scenes are there
        loader.draw(step)
    assert set(made) == {(2.0, 2.0), (3.0, 3.0)}


def test_who_rehearses_learns_as_fast_as_from_scratch(tmp_path: Path) -> None:
    stored = movie_store(tmp_path, counts((40, 40, 33)))
    scratch, alone, rehearsed = (
        make_plan(TrainConfig(movie=(stored,), output=tmp_path / "m", **settings)).settings  # type: ignore[arg-type]
        for settings in ({"from_model": Path("scratch")}, {"movie_only": True}, {})
    )
    assert rehearsed.learning_rate == scratch.learning_rate == 4 * alone.learning_rate
    assert scratch.gain_share is None
    assert 0 < rehearsed.gain_share < alone.gain_share  # type: ignore[operator]


def test_another_plan_with_and_without_scenes(tmp_path: Path) -> None:
    stored = movie_store(tmp_path, counts((40, 40, 33)))
    plans = [
        make_plan(TrainConfig(movie=(stored,), output=tmp_path / "m", movie_only=only))
        for only in (False, True)
    ]
    assert plans[0].identity != plans[1].identity
    assert "rehearses" not in plans[1].identity, "plans of older versions stay what they were"


def test_who_rehearses_forgets_less_of_what_scenes_have_taught() -> None:
    """A movie of nothing but noise, learnt for far too long at a dose at which scenes are plain to see."""
    settings = TrainingSettings(steps=60, validate_every=60, batch=4, patch=48, learning_rate=2e-3)
    weights = checkpoint.load_model(checkpoint.BASE).network.state_dict()
    made = [scene(5 * 10**7 + seed, n_frames=8, size=48, at_events=True) for seed in range(12)]
    others = [noisy(each, seed, doses=(3.2, 5.0)) for seed, each in enumerate(made)]
    scenes = PatchLoader(others, ARCHITECTURE, batch=24, patch=48, seed=99).draw(0)

    def error_after(kind: type[PatchLoader]) -> float:
        state = TrainingState.start(ARCHITECTURE, settings, "cpu", weights)
        loader = kind([movie(4.0)], ARCHITECTURE, batch=4, patch=48)
        for _ in train(state, loader, lambda network: 0.0, settings):
            pass
        return error(state.network)

    @torch.inference_mode()
    def error(network: Network) -> float:
        output = network.eval()(scenes.neighbours, scenes.centre)
        return float((scenes.weight * (scenes.target - scenes.contrast * output).square()).mean())

    rehearsed, alone = error_after(RehearsedLoader), error_after(PatchLoader)
    assert rehearsed < 0.9 * alone
