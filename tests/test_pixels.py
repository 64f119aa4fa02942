"""Bad pixels are shown to no network and asked of none; the pattern of gains is measured."""

from __future__ import annotations

import copy
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from small import TINY, movie_store, network
from tdenoise_pipeline.apply.apply import apply
from tdenoise_pipeline.inputs.bad_pixels import movie_stand_ins
from tdenoise_pipeline.settings.config import ApplyConfig, TrainConfig
from tdenoise_pipeline.store import store, writing
from tdenoise_pipeline.store.blocks import Halo, plan_blocks
from tdenoise_pipeline.train.train import train_model

from tdenoise.inference.denoising import denoise
from tdenoise.inference.tile import Tile
from tdenoise.network.checkpoint import load_model
from tdenoise.network.split_blind import stack_window
from tdenoise.network.windows import normalise, put_stand_ins
from tdenoise.noise.camera_pattern import PixelAccumulator, stand_ins
from tdenoise.noise.neighbour_frames import window_indices
from tdenoise.noise.noise import Scale
from tdenoise.noise.noise_measurement import NoiseAccumulator
from tdenoise.training.patches import PatchLoader
from tdenoise.training.train import TrainingSettings, TrainingState, train
from tdenoise.training.training_movie import TrainingMovie, hold_out
from tdenoise.training.validation import HeldOut

SCALE = Scale(0.5, 0.7, 0.15)
HOT = ((9, 20), (30, 7))


def clean(shape: tuple[int, int, int], dose: float) -> np.ndarray:
    y, x = np.mgrid[: shape[1], : shape[2]]
    return np.broadcast_to(dose * (1 + 0.5 * np.sin(x / 3.0) * np.cos(y / 4.0)), shape)


def poisson(shape: tuple[int, int, int], dose: float = 0.5, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).poisson(clean(shape, dose)).astype(np.uint16)


def accumulated(frames: np.ndarray) -> PixelAccumulator:
    pixels = PixelAccumulator(frames.shape[1:])
    for first in range(0, len(frames), 8):
        pixels.add(frames[first : first + 8])
    return pixels


def with_hot_pixels(frames: np.ndarray) -> np.ndarray:
    spoilt = frames.copy()
    for place in HOT:
        spoilt[:, *place] = np.random.default_rng(1).poisson(4000, len(frames))
    return spoilt


def scale_of_all_pixels(frames: np.ndarray) -> Scale:
    change = np.diff(frames.astype(float), axis=0)
    centred = frames - frames.mean()
    signal = (centred[1:] * centred[:-1]).mean()
    return Scale(float(frames.mean()), float(np.sqrt(change.var() / 2)), float(2 * np.sqrt(signal)))


def learnt_from(frames: np.ndarray) -> TrainingMovie:
    accumulator = NoiseAccumulator()
    accumulator.add(frames)
    pixels = accumulated(frames)
    bad = pixels.bad_pixels()
    levels = stand_ins(pixels.mean(), bad) if bad.any() else None
    return TrainingMovie(frames, Scale.of(accumulator.result()), hold_out(len(frames)), stand_ins=levels)


@pytest.mark.parametrize("spread", [0.0, 0.03, 0.1])
def test_the_spread_of_the_gains_is_measured(spread: float) -> None:
    rng = np.random.default_rng(0)
    t, y, x = np.ogrid[:64, :96, :96]
    scene = 20 * (1 + 0.5 * np.sin((x + 0.1 * t) / 3.0) * np.cos(y / 4.0))
    gains = 1 + spread * rng.standard_normal((96, 96))
    frames = rng.poisson(scene * gains)
    frames[:, 5, 5] = 3000
    pattern = accumulated(frames).fixed_pattern()
    assert pattern.variance == pytest.approx(spread**2, abs=2 * pattern.error)
    assert 2 * pattern.error < 0.1 * spread + 3e-4
    assert pattern.matters == (spread > 0)


@settings(max_examples=30, deadline=None)
@given(seed=st.integers(0, 999), share=st.floats(0.01, 0.9))
def test_every_bad_pixel_gets_a_level_of_the_sound_ones(seed: int, share: float) -> None:
    rng = np.random.default_rng(seed)
    mean = rng.uniform(1, 2, (13, 17))
    bad = rng.random(mean.shape) < share
    bad[0, 0] = False
    levels = stand_ins(np.where(bad, 4000, mean), bad)
    np.testing.assert_array_equal(np.isfinite(levels), bad)
    assert np.all((levels[bad] >= 0.999) & (levels[bad] <= 2.001))
    with pytest.raises(ValueError, match="no pixel"):
        stand_ins(mean, np.ones_like(bad))


def test_stand_ins_of_damaged_numbers_stay_in_their_type() -> None:
    largest = float(np.finfo(np.float32).max)
    for value in (1e39, -1e300, largest):
        levels = stand_ins(np.full((16, 16), value), np.eye(16, dtype=bool))
        assert (np.abs(levels[np.eye(16, dtype=bool)]) >= 0.999 * largest).all()


def test_stand_ins_are_the_same_before_and_after_frames_are_summed() -> None:
    frames = poisson((9, 16, 16))
    levels = stand_ins(frames.mean(axis=0), np.eye(16, dtype=bool))
    indices = window_indices(4, 9, TINY.window)
    before = normalise(frames, SCALE, 16, 16)
    put_stand_ins(before, levels, SCALE)
    after = stack_window(normalise(frames, SCALE, 16, 16), indices, TINY.bins)
    put_stand_ins(after, levels, SCALE, TINY.bins)
    torch.testing.assert_close(stack_window(before, indices, TINY.bins), after, rtol=1e-5, atol=1e-5)


def test_bad_pixels_are_neither_shown_nor_asked_for() -> None:
    made = learnt_from(with_hot_pixels(poisson((40, 48, 48))))
    other = copy.copy(made.frames)
    for place in HOT:
        other[:, *place] = 7  # type: ignore[index]
    changed = TrainingMovie(other, made.scale, made.held_out, stand_ins=made.stand_ins)
    first, second = (PatchLoader([m], TINY, patch=48, batch=4) for m in (made, changed))
    for step in range(3):
        one, two = first.draw(step), second.draw(step)
        assert torch.equal(one.neighbours, two.neighbours) and torch.equal(one.centre, two.centre)
        assert torch.equal(one.weight, two.weight) and int((one.weight == 0).sum()) == 4 * len(HOT)
    assert HeldOut([made], TINY, "cpu", False)(network()) == HeldOut([changed], TINY, "cpu", False)(network())


@settings(max_examples=5, deadline=None)
@given(
    shape=st.tuples(st.integers(3, 5), st.integers(20, 70), st.integers(20, 70)),
    tile=st.integers(4, 12),
    seed=st.integers(0, 99),
)
def test_bad_pixels_do_not_show_where_a_movie_was_cut(
    shape: tuple[int, int, int], tile: int, seed: int
) -> None:
    made, frames = network(), poisson(shape, seed=seed)
    bad = np.random.default_rng(seed).random(shape[1:]) < 0.02
    bad[0, 0] = True
    frames[:, bad] = 4000
    levels = stand_ins(frames.mean(axis=0), bad)
    whole = np.stack(
        list(denoise(made, frames, Tile.whole(shape), SCALE, range(shape[0]), ensemble=1, stand_ins=levels))
    )
    architecture = made.architecture
    core = (shape[0], tile * architecture.stride, tile * architecture.stride)
    for block in plan_blocks(
        shape, core, Halo(architecture.window, architecture.spatial_halo), architecture.stride
    ):
        rows, columns = block.padded.rows, block.padded.columns
        wanted = tuple(
            (a[0] - b[0], a[1] - b[0]) for a, b in ((block.core.rows, rows), (block.core.columns, columns))
        )
        part = denoise(
            made,
            frames[block.padded.slices],
            Tile(shape[0], block.padded.frames[0], *wanted),
            SCALE,
            range(*block.core.frames),
            ensemble=1,
            stand_ins=levels[slice(*rows), slice(*columns)],
        )
        np.testing.assert_allclose(np.stack(list(part)), whole[block.core.slices], atol=1e-5)


def test_two_hot_pixels_no_longer_ruin_a_low_dose_movie() -> None:
    """A short training on the same counts with and without them, and with them but unprotected."""
    shape = (40, 48, 48)
    counts, truth = poisson(shape), clean(shape, 0.5)
    far = np.ones(shape[1:], dtype=bool)
    for row, column in HOT:
        far[row, column] = False

    def error(made: TrainingMovie) -> float:
        chosen = TrainingSettings(steps=100, validate_every=50, batch=2, patch=32)
        state = TrainingState.start(TINY, chosen, "cpu")
        loader = PatchLoader([made], TINY, patch=32, batch=2)
        list(train(state, loader, HeldOut([made], TINY, "cpu", False), chosen))
        state.best.eval()
        frames = np.asarray(made.frames)
        result = np.stack(
            list(
                denoise(
                    state.best,
                    frames,
                    Tile.whole(shape),
                    made.scale,
                    range(0, 40, 10),
                    ensemble=1,
                    stand_ins=made.stand_ins,
                )
            )
        )
        return float(np.square(result - truth[::10])[:, far].mean())

    sound, spoilt = learnt_from(counts), learnt_from(with_hot_pixels(counts))
    assert sound.stand_ins is None and spoilt.stand_ins is not None
    unprotected = TrainingMovie(spoilt.frames, scale_of_all_pixels(spoilt.frames), spoilt.held_out)
    expected = error(sound)
    assert error(spoilt) < 1.15 * expected
    assert error(unprotected) > 3 * expected


def test_the_bad_pixels_of_a_store_are_hidden_from_train_and_apply(tmp_path: Path, workers: str) -> None:
    frames = with_hot_pixels(poisson((12, 48, 48)))
    path = movie_store(tmp_path, frames, keep_defects=True)
    movie = store.open_store(path, store.MOVIE)
    levels = movie_stand_ins(movie)
    assert levels is not None
    np.testing.assert_array_equal(np.argwhere(np.isfinite(levels)), HOT)
    assert np.nanmax(levels) < 1.5
    card = train_model(TrainConfig(movie=(path,), output=tmp_path / "model", steps=2))
    assert "the pixel alone is hidden" in card["reason"]
    scale = card["movies"][0]["scale"]
    assert scale["mean"] == pytest.approx(0.5, abs=0.05), "4000 counts would make it 4"
    chosen = {"workers": workers, "ensemble": 1, "precision": "float32"}
    apply(ApplyConfig(movie=path, model=tmp_path / "model", output=tmp_path / "out.zarr", **chosen))
    denoised = np.asarray(store.open_store(tmp_path / "out.zarr", store.DENOISED).array)
    made = load_model(tmp_path / "model").network
    expected = denoise(
        made, frames, Tile.whole(frames.shape), Scale(**scale), range(12), ensemble=1, stand_ins=levels
    )
    np.testing.assert_allclose(denoised, np.stack(list(expected)), rtol=0.01, atol=1e-4)
    assert not (tmp_path / ".tdenoise" / "out.zarr" / "done").exists()


def test_a_store_may_name_bad_pixels_that_the_frames_do_not_show(tmp_path: Path) -> None:
    path = movie_store(tmp_path, poisson((12, 24, 24)))
    assert movie_stand_ins(store.open_store(path, store.MOVIE)) is None
    bad = np.zeros((24, 24), dtype=bool)
    bad[3, 4] = True
    shutil.rmtree(path / "bad_pixels", ignore_errors=True)
    writing.add_array(path, "bad_pixels", bad, ("y", "x"), {})
    levels = movie_stand_ins(store.open_store(path, store.MOVIE))
    assert levels is not None and np.argwhere(np.isfinite(levels)).tolist() == [[3, 4]]


def test_blank_and_broken_frames_tell_nothing_of_the_pixels_and_repeated_ones_nothing_of_the_noise() -> None:
    frames = np.random.default_rng(0).poisson(50.0, (8, 16, 16)).astype(np.float32)
    sound = PixelAccumulator((16, 16))
    sound.add(frames[:6])
    mixed = PixelAccumulator((16, 16))
    mixed.add(frames[:6])
    mixed.add(np.stack([np.zeros((16, 16), np.float32), frames[6]]))
    mixed.add(np.stack([frames[6], np.full((16, 16), np.nan, np.float32)]))
    np.testing.assert_array_equal(mixed.mean(), sound.mean())
    mixed.add(np.stack([frames[7], frames[7]]))
    found, expected = mixed.statistics(), sound.statistics()
    assert found is not None and expected is not None
    np.testing.assert_array_equal(found.variance, expected.variance)
    assert abs(found.mean - expected.mean).max() > 0
