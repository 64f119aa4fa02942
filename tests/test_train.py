from __future__ import annotations

import copy
import json
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st
from small import TINY, counts, drifting, movie_store, network
from tdenoise_pipeline.archive.verify import verify
from tdenoise_pipeline.archive.verify_run import verify_all
from tdenoise_pipeline.errors import Stopped, UsageError, VerificationError
from tdenoise_pipeline.settings.config import TrainConfig, VerifyConfig
from tdenoise_pipeline.step_control import Control
from tdenoise_pipeline.store import store
from tdenoise_pipeline.train.train import train_model
from tdenoise_pipeline.train.train_plan import choose_architecture
from tdenoise_pipeline.train.training_state import restore, snapshot

import tdenoise.training.train as training
from tdenoise.network.checkpoint import BASE, load_model, read_card
from tdenoise.network.split_blind import Architecture, stack_window
from tdenoise.network.windows import normalise, put_stand_ins, summed_window, transform
from tdenoise.noise.drift import window_shifts
from tdenoise.noise.neighbour_frames import window_indices
from tdenoise.noise.noise import Scale
from tdenoise.noise.noise_measurement import NoiseAccumulator
from tdenoise.training.patches import PatchLoader
from tdenoise.training.regions import regions_of
from tdenoise.training.train import TrainingSettings, TrainingState, train
from tdenoise.training.training_movie import TrainingMovie, hold_out
from tdenoise.training.validation import HeldOut

SCALE = Scale(2.0, 1.4, 0.3)


def training_movie(shape: tuple[int, int, int] = (40, 64, 48)) -> TrainingMovie:
    frames = counts(shape)
    accumulator = NoiseAccumulator()
    accumulator.add(frames)
    return TrainingMovie(frames, Scale.of(accumulator.result()), hold_out(shape[0]))


@given(n_frames=st.integers(3, 5000))
def test_held_out_frames_come_in_blocks_and_leave_most_of_the_movie(n_frames: int) -> None:
    held = np.array(hold_out(n_frames))
    assert len(np.unique(held)) == len(held)
    assert held.min() >= 0 and held.max() < n_frames
    assert 1 <= len(held) <= max(1, 0.12 * n_frames + 1)
    if n_frames >= 30:
        runs = np.split(held, np.flatnonzero(np.diff(held) > 1) + 1)
        assert min(map(len, runs)) >= 3


@settings(deadline=None, max_examples=25)
@given(
    shape=st.tuples(st.integers(3, 150), st.integers(20, 1300), st.integers(20, 1300)),
    patch=st.sampled_from([16, 96]),
)
def test_regions_leave_no_place_out(shape: tuple[int, int, int], patch: int) -> None:
    class Shape:
        def __init__(self) -> None:
            self.shape = shape

    regions = regions_of([TrainingMovie(Shape(), SCALE, hold_out(shape[0]))], patch)  # type: ignore[arg-type]
    frames = {t for r in regions for t in range(r.first, r.last)}
    assert frames == set(range(shape[0]))
    for axis in (1, 2):
        starts = set()
        for region in regions:
            first, last = region.rows if axis == 1 else region.columns
            starts |= set(range(first, max(first, last - patch) + 1))
        assert starts >= set(range(max(0, shape[axis] - patch) + 1)), "a patch can begin anywhere"


def test_a_batch_depends_on_the_seed_and_the_step_alone() -> None:
    movie = training_movie((200, 64, 64))
    first = PatchLoader([movie], TINY, patch=32, batch=4, seed=5, pool_bytes=1)
    second = PatchLoader([movie], TINY, patch=32, batch=4, seed=5, pool_bytes=1)
    straight = {step: first.draw(step) for step in range(0, 200, 20)}
    for step in (180, 60, 0):  # in another order, so with other regions in memory before
        assert torch.equal(second.draw(step).neighbours, straight[step].neighbours)
        assert torch.equal(second.draw(step).centre, straight[step].centre)
    assert len(first._cache) <= first._pool_size < 4
    other = PatchLoader([movie], TINY, patch=32, batch=4, seed=6)
    assert not torch.equal(other.draw(0).centre, straight[0].centre)


def test_held_out_frames_are_never_a_target() -> None:
    frames = np.zeros((40, 32, 32), np.uint8)
    held = hold_out(40)
    frames[list(held)] = 200
    loader = PatchLoader([TrainingMovie(frames, SCALE, held)], TINY, patch=16, batch=8)
    assert max(float(loader.draw(step).centre.max()) for step in range(60)) < 0


def test_a_patch_that_sticks_out_of_a_small_frame_carries_no_weight_there() -> None:
    batch = PatchLoader([training_movie((9, 13, 21))], TINY, patch=96, batch=6).draw(0)
    assert batch.centre.shape[-2:] == (24, 24)
    assert batch.weight.sum() == 6 * 13 * 21
    assert (batch.centre * (1 - batch.weight)).abs().max() == 0


def test_an_error_in_the_reading_thread_reaches_the_training() -> None:
    class Broken:
        shape, dtype = (40, 64, 64), np.dtype(np.uint8)

        def __getitem__(self, key: object) -> None:
            raise OSError("the disk is gone")

    loader = PatchLoader([TrainingMovie(Broken(), SCALE, hold_out(40))], TINY)
    with pytest.raises(OSError, match="disk is gone"):
        next(loader.batches(0, 5))


def fresh(steps: int) -> tuple[TrainingState, PatchLoader, HeldOut, TrainingSettings]:
    chosen = TrainingSettings(steps=steps, validate_every=10, batch=2, patch=32, seed=1)
    movie = training_movie()
    return (
        TrainingState.start(TINY, chosen, "cpu"),
        PatchLoader([movie], TINY, patch=32, batch=2, seed=1),
        HeldOut([movie], TINY, "cpu", False),
        chosen,
    )


def test_training_goes_on_from_a_checkpoint_as_if_nothing_had_happened(tmp_path: Path) -> None:
    state, loader, validation, chosen = fresh(60)
    list(train(state, loader, validation, chosen))
    halved, loader, validation, chosen = fresh(60)
    for record in train(halved, loader, validation, chosen):
        if record["step"] == 30:
            snapshot(halved, tmp_path / "checkpoint.safetensors")
            break
    resumed, loader, validation, chosen = fresh(60)
    restore(resumed, tmp_path / "checkpoint.safetensors")
    assert resumed.step == 30
    list(train(resumed, loader, validation, chosen))
    for name in ("network", "averaged", "best"):
        a, b = getattr(state, name).state_dict(), getattr(resumed, name).state_dict()
        assert all(torch.equal(a[k], b[k]) for k in a)
    assert [r["held_out"] for r in state.history] == [r["held_out"] for r in resumed.history]


def test_the_best_weights_are_a_true_copy() -> None:
    state, loader, _, chosen = fresh(40)
    errors = iter([3.0, 1.0, 2.0, 2.0])
    kept = None
    for record in train(state, loader, lambda network: next(errors), chosen):
        if record["step"] == 20:
            kept = copy.deepcopy(state.averaged.state_dict())
    assert kept is not None and state.best_step == 20
    assert all(torch.equal(kept[k], v) for k, v in state.best.state_dict().items())
    assert any(not torch.equal(kept[k], v) for k, v in state.averaged.state_dict().items())


def test_training_anneals_and_stops_when_the_held_out_error_no_longer_falls(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(training, "ANNEAL_STEPS", 20)
    state, loader, _, chosen = fresh(10_000)
    rates = [
        state.optimizer.param_groups[0]["lr"]
        for _ in train(state, loader, lambda network: 1.0, replace(chosen, patience=3))
    ]
    assert len(rates) == 6 and state.step == 60 and state.annealing_since == 40
    assert rates[0] < rates[1] < rates[2] < rates[3]  # warm-up
    assert rates[5] < 0.05 * rates[3]


def test_annealing_begins_at_the_best_weights(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(training, "ANNEAL_STEPS", 20)
    state, loader, _, chosen = fresh(10_000)
    errors = iter([3.0, 1.0, *[2.0] * 20])
    for record in train(state, loader, lambda network: next(errors), replace(chosen, patience=3)):
        if record["step"] in (40, 50):
            best = state.best.state_dict()
            same = [torch.equal(value, best[name]) for name, value in state.network.state_dict().items()]
            assert all(same) == (record["step"] == 50)
    assert state.best_step == 20


def test_an_error_that_gains_alone_cannot_lower_ends_no_training(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(training, "ANNEAL_STEPS", 20)
    _, loader, _, chosen = fresh(100)
    chosen = replace(chosen, patience=3, gain_share=0.6)
    state = TrainingState.start(TINY, chosen, "cpu", network().state_dict())
    records = list(train(state, loader, lambda network: 1.0, chosen))
    assert state.annealing_since == 90 and records[-1]["step"] == 100


def test_annealing_goes_on_from_a_checkpoint_as_if_nothing_had_happened(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(training, "ANNEAL_STEPS", 40)
    states = []
    for stop in (None, 50):
        state, loader, _, chosen = fresh(1000)
        chosen = replace(chosen, patience=3)
        for record in train(state, loader, lambda network: 1.0, chosen):
            if record["step"] == stop:
                snapshot(state, tmp_path / "checkpoint.safetensors")
                break
        states.append(state)
    resumed, loader, _, chosen = fresh(1000)
    restore(resumed, tmp_path / "checkpoint.safetensors")
    list(train(resumed, loader, lambda network: 1.0, replace(chosen, patience=3)))
    assert resumed.step == states[0].step == 80
    a, b = states[0].network.state_dict(), resumed.network.state_dict()
    assert all(torch.equal(a[k], b[k]) for k in a)


def test_training_lowers_the_held_out_error() -> None:
    state, loader, validation, chosen = fresh(200)
    before = validation(state.network)
    list(train(state, loader, validation, chosen))
    assert state.best_error < before
    assert state.best_error < 1.2  # in units of the noise variance, which no prediction can beat by much


def test_gain_tuning_changes_one_factor_per_channel_and_nothing_else() -> None:
    _, loader, validation, chosen = fresh(8)
    state = TrainingState.start(TINY, chosen, "cpu", network().state_dict())
    before = {name: value.clone() for name, value in state.network.state_dict().items()}
    list(train(state, loader, validation, replace(chosen, gain_share=1.0)))
    changed = 0
    for name, after in state.network.state_dict().items():
        if after.ndim < 2:
            assert torch.equal(after, before[name]), name
            continue
        factors = (after / before[name]).flatten(1)
        torch.testing.assert_close(factors, factors[:, :1].expand_as(factors), rtol=1e-3, atol=1e-4)
        changed += int((factors[:, 0] - 1).abs().max() > 1e-4)
    assert changed > 5


def test_weights_whose_gains_alone_were_adapted_may_be_the_best() -> None:
    _, loader, _, chosen = fresh(40)
    state = TrainingState.start(TINY, chosen, "cpu", network().state_dict())
    chosen = replace(chosen, gain_share=0.4, validate_every=100)
    errors = iter([2.0, 1.0, 3.0])
    records = list(train(state, loader, lambda network: next(errors), chosen))
    assert [(r["step"], r.get("gains_only")) for r in records] == [(0, None), (16, 1.0), (40, None)]
    assert state.best_step == 16


def test_given_weights_are_kept_if_training_makes_them_worse() -> None:
    state, loader, _, chosen = fresh(20)
    given_weights = copy.deepcopy(state.network.state_dict())
    errors = iter([1.0, 2.0, 2.0])
    list(train(state, loader, lambda network: next(errors), replace(chosen, gain_share=0.5)))
    assert state.best_step == 0
    assert all(torch.equal(given_weights[k], v) for k, v in state.best.state_dict().items())


def test_weights_of_another_blind_spot_are_taken_where_they_fit() -> None:
    given_weights = network(replace(TINY, blind_radius=0)).state_dict()
    state = TrainingState.start(replace(TINY, blind_radius=2), TrainingSettings(), "cpu", given_weights)
    taken = state.network.state_dict()
    assert torch.equal(taken["squeeze.weight"], given_weights["squeeze.weight"])
    assert taken["centre.ring.weight"].shape != given_weights["centre.ring.weight"].shape


def test_a_clean_target_is_used_where_it_is_known() -> None:
    frames = counts((30, 48, 48))
    clean = np.full(frames.shape, 3.0, np.float32)
    loader = PatchLoader([TrainingMovie(frames, SCALE, (), clean=clean)], TINY, patch=32, batch=2)
    batch = loader.draw(0)
    torch.testing.assert_close(batch.target, torch.full_like(batch.target, (3.0 - SCALE.mean) / SCALE.noise))
    assert not torch.equal(batch.centre, batch.target)


def test_a_clean_target_may_be_in_another_unit() -> None:
    frames = counts((30, 48, 48))
    places = np.random.default_rng(0).random(frames.shape).astype(np.float16)
    one, other = (
        PatchLoader([TrainingMovie(frames, SCALE, (), clean, unit)], TINY, patch=32, batch=2).draw(0)
        for clean, unit in ((places, 4.0), (4 * places, 1.0))
    )
    torch.testing.assert_close(one.target, other.target)


@settings(deadline=None, max_examples=20)
@given(centre=st.integers(0, 29), seed=st.integers(0, 9))
def test_the_fast_window_of_a_patch_is_that_of_inference(centre: int, seed: int) -> None:
    frames = counts((30, 16, 16), seed)
    indices = window_indices(centre, 30, 20)
    bins = Architecture().bins
    expected = stack_window(normalise(frames, SCALE, 16, 16), indices, bins)
    torch.testing.assert_close(
        summed_window(frames, indices, bins, SCALE, 16), expected, rtol=1e-4, atol=1e-4
    )


@settings(deadline=None, max_examples=30)
@given(
    shape=st.tuples(st.integers(3, 30), st.integers(5, 40), st.integers(5, 40)),
    step=st.sampled_from([0.3, 4.0]),
    bad=st.booleans(),
    number=st.integers(0, 99),
)
@example(shape=(7, 5, 5), step=4.0, bad=False, number=2)  # shifted by more than the frame
def test_the_window_of_a_patch_follows_the_scene_as_that_of_inference(
    shape: tuple[int, int, int], step: float, bad: bool, number: int
) -> None:
    frames, drift = counts(shape), drifting(shape[0], step=step)
    levels = np.full(shape[1:], np.nan, np.float32)
    if bad:
        levels[1:4:2, 2] = 1.5
    movie = TrainingMovie(frames, SCALE, (), stand_ins=levels if bad else None, drift=drift)
    loader = PatchLoader([movie], TINY, patch=16, batch=1, seed=number)
    place, batch = loader._places(0)[0], loader.draw(0)
    extent = [max(16 + 16, n) for n in shape[1:]]
    shown = normalise(frames, SCALE, *extent)
    put_stand_ins(shown, levels, SCALE)
    indices = window_indices(place.centre, shape[0], TINY.window)
    window = stack_window(shown, indices, TINY.bins, window_shifts(drift, place.centre, indices))
    size = loader.patch
    part = window[:, place.row : place.row + size, place.column : place.column + size]
    expected = transform(part, place.turn, place.mirror, place.reverse)
    torch.testing.assert_close(batch.neighbours[0], expected, rtol=1e-4, atol=1e-4)


def test_every_flipped_bit_of_a_checkpoint_is_found(tmp_path: Path) -> None:
    state, *_ = fresh(10)
    snapshot(state, tmp_path / "c")
    whole = (tmp_path / "c").read_bytes()
    assert restore(fresh(10)[0], tmp_path / "c")
    for bit in np.random.default_rng(0).integers(8 * len(whole), size=100).tolist():
        damaged = bytearray(whole)
        damaged[bit // 8] ^= 1 << bit % 8
        (tmp_path / "c").write_bytes(damaged)
        assert not restore(state, tmp_path / "c")
    (tmp_path / "c").write_bytes(whole[:-100])
    assert not restore(state, tmp_path / "c")


@pytest.fixture
def movie(tmp_path: Path) -> Path:
    return movie_store(tmp_path / "movie", counts((30, 40, 33)))


@pytest.mark.parametrize("n_frames", [3, 30])
def test_short_movies_can_be_learned_from(tmp_path: Path, n_frames: int) -> None:
    path = movie_store(tmp_path, counts((n_frames, 37, 29)))
    card = train_model(TrainConfig(movie=(path,), output=tmp_path / "model", steps=3))
    assert load_model(tmp_path / "model").id == card["sha256"]
    assert card["blind_radius"] == 0
    assert card["halo"] == {"frames": 20, "pixels": 128}
    assert card["parent"] == read_card(BASE)["sha256"]
    steps = [json.loads(line)["step"] for line in (tmp_path / "model/metrics.jsonl").read_text().splitlines()]
    assert steps == [0, 1, 3], "given weights and adapted gains are candidates, too"
    assert sorted(p.name for p in (tmp_path / "model").iterdir()) == [
        "card.json",
        "metrics.jsonl",
        "weights.safetensors",
    ]


def test_a_changed_training_curve_is_found(tmp_path: Path, movie: Path) -> None:
    train_model(TrainConfig(movie=(movie,), output=tmp_path / "model", steps=2))
    config = VerifyConfig(store=tmp_path / "model")
    assert "is whole" in verify_all(config, Control(), verify)["models"][0]
    curve = tmp_path / "model/metrics.jsonl"
    curve.write_text(curve.read_text().replace("1", "2", 1))
    with pytest.raises(VerificationError, match=r"metrics\.jsonl: was changed"):
        verify_all(config, Control(), verify)


def test_a_model_is_adapted_to_another_movie(tmp_path: Path, movie: Path) -> None:
    other = movie_store(tmp_path / "other", counts((12, 40, 33), seed=1))
    first = train_model(TrainConfig(movie=(movie,), output=tmp_path / "a", steps=3, blind_radius=1))
    second = train_model(
        TrainConfig(movie=(movie, other), output=tmp_path / "b", steps=2, from_model=tmp_path / "a")
    )
    assert second["parent"] == first["sha256"] and second["blind_radius"] == 1
    assert len(second["movies"]) == 2
    assert [m["id"] for m in second["ancestors"]] == [first["movies"][0]["id"]]
    with pytest.raises(UsageError, match="same movie twice"):
        train_model(TrainConfig(movie=(movie, movie), output=tmp_path / "d", steps=2))
    with pytest.raises(UsageError, match="cannot change the blind spot"):
        train_model(
            TrainConfig(
                movie=(movie,), output=tmp_path / "c", steps=2, from_model=tmp_path / "a", blind_radius=0
            )
        )


def test_correlated_noise_gets_a_larger_blind_spot(tmp_path: Path) -> None:
    from scipy.ndimage import gaussian_filter

    noise = gaussian_filter(
        np.random.default_rng(0).poisson(2.0, (20, 64, 64)).astype(np.float32), (0, 0.6, 0.6)
    )
    opened = store.open_store(movie_store(tmp_path, noise), store.MOVIE)
    chosen, reason = choose_architecture(TrainConfig(movie=(opened.path,), output=tmp_path), [opened], None)
    assert chosen.blind_radius == 2 and "5 x 5 pixels are hidden" in reason


@pytest.mark.parametrize("damaged", [False, True])
def test_a_stop_leaves_a_checkpoint_and_the_next_run_finishes(
    tmp_path: Path,
    movie: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
    damaged: bool,
) -> None:
    config = TrainConfig(movie=(movie,), output=tmp_path / "model", steps=4)
    control = Control()
    drawn = PatchLoader.draw

    def stop_at_step_2(loader: PatchLoader, step: int) -> object:
        if step == 2:
            control.stop.set()
        return drawn(loader, step)

    monkeypatch.setattr(PatchLoader, "draw", stop_at_step_2)
    with pytest.raises(Stopped, match="at step [012]"):
        train_model(config, control)
    assert not (tmp_path / "model").exists()
    monkeypatch.undo()
    checkpoint = tmp_path / "model-partial/checkpoint.safetensors"
    if damaged:
        checkpoint.write_bytes(checkpoint.read_bytes()[:-1] + b"?")
    caplog.set_level("WARNING", logger="tdenoise_pipeline")
    train_model(config)
    assert ("starting from the first step" in caplog.text) == damaged
    undisturbed = train_model(TrainConfig(movie=(movie,), output=tmp_path / "again", steps=4))
    assert load_model(tmp_path / "model").id == undisturbed["sha256"]


KILLED = """
import os, signal, sys
from pathlib import Path
from tdenoise_pipeline.train import train_plan, training_session as module
from tdenoise_pipeline.train.train import train_model
from tdenoise_pipeline.apply.apply import apply
from tdenoise_pipeline.settings.config import ApplyConfig, TrainConfig
module.CHECKPOINT_S = 0.0
settings = train_plan.TrainingSettings
class Short(settings):
    def __init__(self, **given):
        super().__init__(**{**given, "validate_every": 3, "batch": 2, "patch": 32})
train_plan.TrainingSettings = Short
kill_at = int(sys.argv[3])
save, seen = module.snapshot, [0]
def counted(state, path, *rest):
    save(state, path, *rest)
    seen[0] += 1
    if seen[0] == kill_at:
        os.kill(os.getpid(), signal.SIGKILL)
module.snapshot = counted
train_model(TrainConfig(movie=(Path(sys.argv[1]),), output=Path(sys.argv[2]), steps=12))
"""


@pytest.mark.chaos
@pytest.mark.slow
def test_training_killed_again_and_again_gives_the_weights_of_an_undisturbed_run(
    tmp_path: Path, movie: Path
) -> None:
    def run(output: str, kill_at: int) -> int:
        command = [sys.executable, "-c", KILLED, str(movie), str(tmp_path / output), str(kill_at)]
        return subprocess.run(command, env={**os.environ}).returncode

    assert run("undisturbed", 0) == 0
    codes = [run("killed", kill_at) for kill_at in (2, 1, 0)]
    assert codes == [-9, -9, 0]
    assert load_model(tmp_path / "killed").id == load_model(tmp_path / "undisturbed").id


def test_the_module_needs_no_gpu(movie: Path) -> None:
    if torch.cuda.is_available():
        pytest.skip("there is a GPU")
    with pytest.raises(UsageError, match="no such GPU is usable"):
        train_model(TrainConfig(movie=(movie,), output=Path("x"), device="cuda"))
