"""A movie denoised in blocks is the movie denoised whole."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from small import TINY, counts, drifting, network
from tdenoise_pipeline.store.blocks import Halo, plan_blocks
from tdenoise_pipeline.store.store import KEPT_BITS
from tdenoise_pipeline.store.writing import round_mantissa

from tdenoise.inference import batches, memory
from tdenoise.inference.denoising import denoise, symmetries
from tdenoise.inference.memory import halo_with_shift
from tdenoise.inference.tile import Tile, Window
from tdenoise.network.split_blind import Architecture, SplitBlind, stack_window
from tdenoise.network.windows import normalise, transform, transform_back
from tdenoise.noise.drift import largest_shift, window_shifts
from tdenoise.noise.neighbour_frames import window_indices
from tdenoise.noise.noise import Scale

SCALE = Scale(2.0, 1.4, 0.3)


def whole(made: SplitBlind, frames: np.ndarray, ensemble: int, drift: np.ndarray | None = None) -> np.ndarray:
    tile = Tile.whole(frames.shape)
    given = denoise(made, frames, tile, SCALE, range(len(frames)), ensemble=ensemble, drift=drift)
    return np.stack(list(given))


def in_blocks(
    made: SplitBlind,
    frames: np.ndarray,
    core: tuple[int, int, int],
    ensemble: int,
    drift: np.ndarray | None = None,
    precision: str = "float32",
) -> np.ndarray:
    arch = made.architecture
    out = np.full(frames.shape, np.nan, dtype=np.float32)
    halo = Halo(arch.window, halo_with_shift(arch, largest_shift(drift, arch.window)))
    for block in plan_blocks(frames.shape, core, halo, arch.stride):
        rows, columns = block.padded.rows, block.padded.columns
        tile = Tile(
            len(frames),
            block.padded.frames[0],
            (block.core.rows[0] - rows[0], block.core.rows[1] - rows[0]),
            (block.core.columns[0] - columns[0], block.core.columns[1] - columns[0]),
        )
        part, wanted = frames[block.padded.slices], range(*block.core.frames)
        chosen = {"ensemble": ensemble, "drift": drift, "precision": precision}
        result = denoise(made, part, tile, SCALE, wanted, **chosen)
        out[block.core.slices] = np.stack(list(result))
    return out


@settings(max_examples=25, deadline=None)
@given(
    shape=st.tuples(st.integers(3, 14), st.integers(1, 100), st.integers(1, 100)),
    frames=st.integers(1, 14),
    tile=st.tuples(st.integers(1, 20), st.integers(1, 20)),
    ensemble=st.sampled_from([1, 4, 16]),
    radius=st.sampled_from([0, 1, None]),
    step=st.sampled_from([0.0, 0.3, 4.0]),
)
def test_denoised_in_blocks_equals_denoised_whole(
    shape: tuple[int, int, int],
    frames: int,
    tile: tuple[int, int],
    ensemble: int,
    radius: int | None,
    step: float,
) -> None:
    made = network(Architecture(**{**TINY.to_json(), "blind_radius": radius}))
    movie = counts(shape)
    stride = made.architecture.stride
    drift = drifting(len(movie), step=step) if step else None
    expected = whole(made, movie, ensemble, drift)
    result = in_blocks(made, movie, (frames, tile[0] * stride, tile[1] * stride), ensemble, drift)
    assert np.abs(result - expected).max() <= 1e-5 * np.abs(expected).max()


@pytest.mark.parametrize("core", [(7, 64, 96), (25, 128, 400)])
def test_the_standard_network_does_too(core: tuple[int, int, int]) -> None:
    made = network(Architecture())
    movie = counts((10, 149, 301))
    expected = whole(made, movie, 1)
    result = in_blocks(made, movie, core, 1)
    assert np.abs(result - expected).max() <= 1e-5 * np.abs(expected).max()


@pytest.mark.parametrize("shape", [(3, 17, 23), (30, 40, 31), (5, 1, 64), (4, 3, 3)])
def test_short_movies_and_odd_frames_keep_their_shape(shape: tuple[int, int, int]) -> None:
    result = whole(network(Architecture()), counts(shape), 16)
    assert result.shape == shape
    assert np.isfinite(result).all()


@pytest.mark.parametrize("ensemble", [1, 4])
def test_in_bfloat16_what_is_kept_of_a_block_is_that_of_the_whole_to_one_unit(ensemble: int) -> None:
    made = network()
    frames = np.random.default_rng(4).poisson(2.0, (12, 72, 80)).astype(np.uint8)
    tile = Tile.whole(frames.shape)
    given = denoise(made, frames, tile, SCALE, range(12), ensemble=ensemble, precision="bfloat16")
    at_once = round_mantissa(np.stack(list(given)))
    in_parts = round_mantissa(in_blocks(made, frames, (5, 32, 40), ensemble, precision="bfloat16"))
    unit = 2.0 ** (np.floor(np.log2(np.abs(at_once))) - KEPT_BITS)
    assert (np.abs(in_parts - at_once) <= unit).all()
    exact = whole(made, frames, ensemble)
    assert np.sqrt(np.mean((at_once - exact) ** 2)) < 0.01 * exact.std() + unit.mean()


def test_all_16_symmetries_differ() -> None:
    assert len(set(symmetries(16))) == 16
    with pytest.raises(ValueError, match="1, 2, 4, 8 or 16"):
        symmetries(3)


def test_the_ensemble_turns_with_the_movie() -> None:
    made = network()
    movie = counts((7, 16, 24))
    turned = np.ascontiguousarray(np.rot90(movie, axes=(1, 2)))
    a, b = whole(made, movie, 16), whole(made, turned, 16)
    np.testing.assert_allclose(np.rot90(a, axes=(1, 2)), b, rtol=1e-4)
    reversed_ = whole(made, np.ascontiguousarray(movie[::-1]), 16)[::-1]
    np.testing.assert_allclose(reversed_, a, rtol=1e-4)


def test_nan_from_the_network_is_an_error() -> None:
    made = network()
    made.head.weight.data[:] = float("nan")
    with pytest.raises(FloatingPointError, match="frame 2"):
        list(denoise(made, counts((6, 16, 16)), Tile.whole((6, 16, 16)), SCALE, range(2, 4), ensemble=1))


@pytest.mark.parametrize("largest", [3 * 320 * 332, 320 * 332, 320 * 250])
def test_a_gpu_short_of_memory_gives_the_same_movie(largest: int, monkeypatch: pytest.MonkeyPatch) -> None:
    made = network()
    movie = counts((6, 320, 330))
    expected = whole(made, movie, 4)
    refused, passed = [], []
    from_looks = made.from_looks

    def short(looks: torch.Tensor, centre: torch.Tensor) -> torch.Tensor:
        if centre.numel() > largest:
            refused.append(centre.shape)
            raise torch.OutOfMemoryError("short of memory")
        passed.append(centre.shape)
        return from_looks(looks, centre)

    monkeypatch.setattr(made, "from_looks", short)
    monkeypatch.setattr(batches, "pixels_together", lambda *_: 4 * 320 * 332)
    result = whole(made, movie, 4)
    assert refused and passed
    assert np.abs(result - expected).max() <= 1e-5 * np.abs(expected).max()
    largest = 0
    with pytest.raises(torch.OutOfMemoryError, match="does not fit the free memory of the GPU"):
        whole(made, movie, 1)


@pytest.mark.parametrize("centre", ["blind", "seen"])
@pytest.mark.parametrize("ensemble", [1, 16])
@pytest.mark.parametrize("step", [0.0, 2.0])
def test_what_is_kept_between_frames_changes_nothing(centre: str, ensemble: int, step: float) -> None:
    made = network(Architecture(**{**TINY.to_json(), "centre": centre}))
    movie = counts((40, 20, 28))  # longer than a run of frames that share their first layer
    frames = normalise(movie, SCALE, 20, 28)
    drift = drifting(len(movie), step=step) if step else None
    expected = np.zeros(movie.shape, np.float32)
    for number in range(len(movie)):
        indices = window_indices(number, len(movie), TINY.window)
        window = stack_window(frames, indices, TINY.bins, window_shifts(drift, number, indices))
        for turn, mirror, reverse in symmetries(ensemble):
            output = made(
                transform(window, turn, mirror, reverse)[None],
                transform(frames[number][None], turn, mirror, 0)[None],
            )
            expected[number] += transform_back(output[0], turn, mirror)[0].numpy() / ensemble
    expected = SCALE.mean + SCALE.contrast * expected
    np.testing.assert_allclose(whole(made, movie, ensemble, drift), expected, rtol=1e-4, atol=1e-4)


def test_of_no_frames_nothing_is_denoised() -> None:
    frames = counts((6, 16, 16))
    assert list(denoise(network(), frames, Tile.whole(frames.shape), SCALE, range(0))) == []


@pytest.mark.parametrize("centre", ["blind", "seen"])
@pytest.mark.parametrize("step", [0.0, 0.3, 2.0])
def test_how_frames_are_divided_into_runs_changes_no_bit(centre: str, step: float) -> None:
    made = network(Architecture(**{**TINY.to_json(), "centre": centre}))
    movie = counts((36, 20, 28))
    drift = drifting(len(movie), step=step) if step else None
    expected = whole(made, movie, 4, drift)
    tile = Tile.whole(movie.shape)
    for first, last in ((5, 6), (5, 7), (3, 36)):
        frames = range(first, last)
        found = denoise(made, movie, tile, SCALE, frames, ensemble=4, drift=drift)
        np.testing.assert_array_equal(np.stack(list(found)), expected[first:last])


@given(
    n_frames=st.integers(3, 60),
    window=st.integers(1, 8),
    step=st.floats(0, 5),
    length=st.sampled_from([1, 16, 40]),
)
def test_runs_hold_no_more_looks_than_the_plan_says(
    n_frames: int, window: int, step: float, length: int
) -> None:
    drift = drifting(n_frames, step=step)
    windows = []
    for number in range(n_frames):
        indices = window_indices(number, n_frames, window)
        windows.append(Window(indices, window_shifts(drift, number, indices)))
    runs = list(batches.runs_of(windows, list(range(n_frames)), length))
    assert [number for run in runs for number in range(n_frames)[run]] == list(range(n_frames))
    drifts = largest_shift(drift, window) > 0
    for run in runs:
        looks = {(number, 0, 0) for number in range(n_frames)[run]}  # where the centre is seen
        looks |= {tuple(look) for w in windows[run] for look in np.column_stack(w).tolist()}
        assert len(looks) <= memory.most_looks(length, window, drifts)
        assert 1 <= len(windows[run]) <= length
    if not drifts:
        assert len(runs) == -(-n_frames // length)


def test_a_window_follows_the_scene() -> None:
    made = network()
    still, stride = counts((9, 160, 168)), made.architecture.stride  # on whose grid a network sees frames
    drift = stride * np.stack([np.arange(9) - 4, np.arange(9) % 3], axis=1)
    moved = np.stack([np.roll(f, d, axis=(0, 1)) for f, d in zip(still, drift, strict=True)])
    found, expected = whole(made, moved, 1, drift), whole(made, still, 1)
    # Far from the edges, where nothing that was shown came from outside.
    middle = (slice(76, 84), slice(80, 88))
    for number, (rows, columns) in enumerate(drift):
        back = np.roll(found[number], (-rows, -columns), axis=(0, 1))
        np.testing.assert_allclose(back[middle], expected[number][middle], rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("precision", ["tf32", "bfloat16"])
def test_coarser_arithmetic_gives_nearly_the_same_movie_in_float32(precision: str) -> None:
    made = network()
    movie = counts((6, 16, 24))
    result = np.stack(
        list(denoise(made, movie, Tile.whole(movie.shape), SCALE, range(6), ensemble=2, precision=precision))
    )
    expected = whole(made, movie, 2)
    assert result.dtype == np.float32
    assert np.abs(result - expected).max() <= 0.03 * np.abs(expected).max()


def test_who_takes_only_some_frames_can_train_afterwards() -> None:
    made = network()
    frames = counts((12, 32, 32))
    some = denoise(made, frames, Tile.whole(frames.shape), Scale(2.0, 1.4, 0.5), range(12), ensemble=1)
    next(some)
    assert not torch.is_inference_mode_enabled()
