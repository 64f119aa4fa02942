"""A beam that moves across the field: its slope is measured, taken out of what is seen, and put back."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import xarray as xr
import zarr
from hypothesis import given, settings
from hypothesis import strategies as st
from small import TINY, counts, model_folder, movie_store, network
from tdenoise_pipeline.apply.apply import apply
from tdenoise_pipeline.errors import InputError
from tdenoise_pipeline.evaluate.evaluate import evaluate
from tdenoise_pipeline.ingest.copying import edges_of
from tdenoise_pipeline.inputs.model_fit import movie_brightness
from tdenoise_pipeline.settings.config import ApplyConfig, EvaluateConfig
from tdenoise_pipeline.store import store

from tdenoise.inference.denoising import denoise, denoise_with_variance
from tdenoise.inference.evidence import Evidence
from tdenoise.inference.last_word import give_back
from tdenoise.inference.tile import Tile
from tdenoise.network.split_blind import Architecture
from tdenoise.noise.brightness import Brightness, measure
from tdenoise.noise.noise import Scale
from tdenoise.noise.noise_measurement import NoiseAccumulator
from tdenoise.training.patches import PatchLoader
from tdenoise.training.training_movie import TrainingMovie
from tdenoise.training.validation import HeldOut

SCALE = Scale(2.0, 1.4, 0.4)
FIELD = (40, 48)


def moving(n_frames: int, field: tuple[int, int] = FIELD, change: float = 0.3, seed: int = 0) -> Brightness:
    """A beam that goes around once and flickers; its level changes by so much at the edges of the field."""
    t = 2 * np.pi * np.arange(n_frames) / n_frames
    tilts = change * np.stack([np.sin(t), np.cos(t)], axis=1) / (np.array(field) / 2)
    levels = np.random.default_rng(seed).uniform(0.8, 1.2, n_frames)
    return Brightness(levels / levels.mean(), np.ones(n_frames, bool), tilts, field)


def everywhere(known: Brightness) -> np.ndarray:
    """Level of every pixel and frame."""
    return np.asarray(known.at(slice(None), (0, known.field[0]), (0, known.field[1])))


def parts(frames: np.ndarray) -> tuple[np.ndarray, tuple[np.ndarray, np.ndarray]]:
    """Means of parts of frames, and their borders."""
    edges = edges_of(frames.shape[1]), edges_of(frames.shape[2])
    sums = np.add.reduceat(np.add.reduceat(frames.astype(float), edges[0][:-1], 1), edges[1][:-1], 2)
    return (sums / np.outer(*map(np.diff, edges))).reshape(len(frames), -1), edges


def measured(frames: np.ndarray) -> Brightness:
    return measure(*parts(frames), 1.0, np.ones(len(frames), bool))


@given(
    change=st.floats(0, 1),
    field=st.tuples(st.integers(2, 60), st.integers(2, 60)),
    data=st.data(),
)
@settings(max_examples=60, deadline=None)
def test_a_part_is_as_bright_as_the_same_part_of_the_whole(
    change: float, field: tuple[int, int], data: st.DataObject
) -> None:
    known = moving(7, field, change)
    whole = everywhere(known)
    # The level of a frame is its mean over the field.
    np.testing.assert_allclose(whole.mean(axis=(1, 2)), known.levels, rtol=1e-5)
    (top, bottom), (left, right) = (
        sorted(data.draw(st.lists(st.integers(0, n), min_size=2, max_size=2, unique=True))) for n in field
    )
    frames = data.draw(st.sampled_from([slice(2, 5), slice(None), np.array([6, 0, 3])]))
    expected = whole[frames, top:bottom, left:right]
    np.testing.assert_allclose(known.at(frames, (top, bottom), (left, right)), expected, rtol=1e-5)
    part = known.part(frames, (top, bottom), (left, right))
    np.testing.assert_allclose(everywhere(part), expected, rtol=1e-5)
    np.testing.assert_allclose(part.levels, expected.mean(axis=(1, 2)), rtol=1e-5)
    again = Brightness.of_stacked(known.stacked, field)
    np.testing.assert_array_equal(everywhere(again), whole)


def scene(n_frames: int, size: int = 96) -> np.ndarray:
    """A particle that lies off the middle of the field."""
    y, x = np.mgrid[:size, :size]
    spots = 1 + 0.3 * np.sin(x / 2.0) * np.sin(y / 2.0)
    image = 1 + 0.8 * (np.hypot(y - 30, x - 40) < 24) * spots
    return np.repeat(image[None], n_frames, axis=0)


@pytest.mark.parametrize("dose", [0.3, 4.0])
def test_slopes_are_known_to_their_counting_error(dose: float) -> None:
    clean, true = scene(80), moving(80, (96, 96))
    for seed in range(3):
        found = measured(np.random.default_rng(seed).poisson(dose * clean * everywhere(true)))
        assert found.tilts is not None and found.field == (96, 96)
        # The error of a slope over the field: a third of the squared distances, in units of the edge, is their mean.
        error = np.sqrt(3 / (dose * clean[0].sum() * true.levels))[:, None]
        off = (found.tilts - true.tilts) * 48 / error
        assert np.sqrt(np.square(off).mean()) < 1.1
        # The scene lies off the middle, and its sum changes with the slope: the level is that of the beam.
        assert np.abs(found.levels / true.levels - 1).max() < 5 / np.sqrt(dose * clean[0].sum())


def test_one_part_that_flashes_does_not_tilt_the_beam() -> None:
    clean, true = scene(80), moving(80, (96, 96))
    bright = clean * everywhere(true)
    bright[30:33, :24, :24] *= 3
    frames = np.random.default_rng(0).poisson(2 * bright)
    found = measured(frames)
    assert found.tilts is not None
    assert np.abs(found.tilts - true.tilts)[30:33].max() * 48 < 0.04


@pytest.mark.parametrize("dose", [0.3, 2.0, 20.0])
@pytest.mark.parametrize("what", ["still", "flash", "drift", "crossing", "growth", "flicker"])
def test_a_scene_that_changes_is_no_beam_that_moves(what: str, dose: float) -> None:
    t, y, x = np.ogrid[:80, :96, :96]
    row, radius, clean = 40 + 0 * t, 20 + 0 * t, 1.0
    if what == "drift":
        row = 30 + 0.3 * t
    elif what == "crossing":
        row = -20 + 1.6 * t
    elif what == "growth":
        radius = 8 + 0.3 * t
    clean = 1 + 1.5 / (1 + np.exp((np.hypot(y - row, x - 36) - radius) / 2))
    if what == "flash":
        clean[40:42, 60:80, 60:80] *= 4
    elif what == "flicker":
        clean = clean * np.random.default_rng(1).uniform(0.7, 1.3, (80, 1, 1))
    assert measured(np.random.default_rng(0).poisson(dose * clean)).tilts is None


def test_a_slope_that_hardly_shows_counts_as_none() -> None:
    clean = scene(80)
    for change, found in ((0.01, False), (0.05, True)):
        frames = np.random.default_rng(0).poisson(20 * clean * everywhere(moving(80, (96, 96), change)))
        assert (measured(frames).tilts is not None) == found


def test_a_moving_beam_does_not_look_like_noise_or_contrast() -> None:
    true = moving(64, (96, 96), 0.5)
    image = 1 + 0.1 * np.sin(np.arange(96) / 3.0)[None, :] * np.ones((96, 1))
    frames = np.random.default_rng(2).poisson(2 * everywhere(true) * image)
    accumulator = NoiseAccumulator()
    for first in range(0, 64, 16):
        part = slice(first, first + 16)
        accumulator.add(frames[part], everywhere(true)[part])
    told = accumulator.result()
    assert told.is_poisson and abs(told.fano - 1) < 0.02
    assert abs(told.signal_variance / (told.mean**2 * np.var(image)) - 1) < 0.1


@pytest.mark.parametrize("head", ["mean", "gamma"])
def test_blocks_equal_the_whole_under_a_moving_beam(head: str) -> None:
    made = network(TINY if head == "mean" else Architecture(**{**TINY.__dict__, "head": "gamma"}))
    frames, known = counts((30, 72, 80)), moving(30, (72, 80))

    def run(block: np.ndarray, tile: Tile, wanted: range) -> np.ndarray:
        given = (made, block, tile, SCALE, wanted)
        chosen = {"ensemble": 2, "brightness": known}
        if head == "mean":
            return np.stack(list(denoise(*given, **chosen)))[:, None]
        return np.stack([np.stack(pair) for pair in denoise_with_variance(*given, **chosen)])

    whole = run(frames, Tile.whole(frames.shape), range(30))
    halo, first = made.architecture.spatial_halo, 10 - TINY.window
    # A core from row 36 and column 40 to the ends of the field.
    tile = Tile(30, first, (halo, 72 - 36 + halo), (halo, 80 - 40 + halo), (36 - halo, 40 - halo))
    part = run(frames[first:, 36 - halo :, 40 - halo :], tile, range(10, 30))
    np.testing.assert_allclose(part, whole[10:, :, 36:, 40:], rtol=2e-5, atol=2e-5)


def test_the_same_scene_is_shown_under_a_beam_that_moves_and_one_that_stands_still() -> None:
    made, known = network(), moving(30, change=0.4)
    clean = np.repeat(counts((1, *FIELD)).astype(float) + 1, 30, axis=0)
    whole, even = Tile.whole(clean.shape), Brightness(known.levels, known.valid)
    still = denoise(made, clean * known.levels[:, None, None], whole, SCALE, range(30), brightness=even)
    moved = denoise(made, clean * everywhere(known), whole, SCALE, range(30), brightness=known)
    for number, (shown, one) in enumerate(zip(moved, still, strict=True)):
        np.testing.assert_allclose(
            shown, one * everywhere(known)[number] / known.levels[number], rtol=1e-3, atol=1e-3
        )


def test_patches_and_held_out_frames_are_those_of_an_even_beam() -> None:
    known = moving(60, (64, 64), 0.5)
    frames = np.random.default_rng(0).poisson(4.0 * everywhere(known)).astype(np.uint8)
    movie = TrainingMovie(frames, Scale(4.0, 2.0, 0.6), (30, 31), brightness=known)
    loader = PatchLoader([movie], TINY, patch=32, batch=8)
    found = [loader.draw(step) for step in range(12)]
    weighted, targets = (np.zeros((32, 32)) for _ in range(2))
    for batch in found:
        weight, target = batch.weight[:, 0].numpy(), batch.target[:, 0].numpy()
        # In units of the noise, and weighed by one over its variance, every pixel counts the same.
        assert 0.85 < float((weight * target**2).mean()) < 1.15
        # A pixel in the dark has less weight, and more noise.
        bright = weight > np.quantile(weight, 0.7)
        dark = weight < np.quantile(weight, 0.3)
        assert target[dark].var() > 1.2 * target[bright].var()
        weighted += (weight * target).sum(axis=0)
        targets += weight.sum(axis=0)
    assert np.abs(weighted / targets).max() < 0.5
    assert np.isfinite(HeldOut([movie], TINY, "cpu", False)(network()))


def test_what_is_given_back_follows_the_beam() -> None:
    known, rng = moving(60, change=0.4), np.random.default_rng(0)
    levels, shown = everywhere(known), np.ones(FIELD)
    hidden = 1.0 * (np.hypot(*np.ogrid[-20:20, -10:38]) < 4)  # a column that the draft lacks
    frames = rng.poisson(4 * levels * (shown + hidden))
    sums = Evidence.empty(FIELD)
    for y, level in zip(frames, levels, strict=True):
        sums.add(y, 4 * level * shown, level, (0, 0))
    np.testing.assert_allclose(sums.level, levels.sum(axis=0), rtol=1e-5)
    given_back = give_back(sums)
    at = hidden > 0
    for k in (0, 15, 30, 45):
        result = given_back.to_frame(frames[k], 4 * levels[k] * shown, levels[k], (0, 0))
        expected = 4 * levels[k] * (shown + hidden)
        assert abs(result[at].mean() / expected[at].mean() - 1) < 0.06


@pytest.fixture(scope="module")
def sources(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """A movie under a beam that moves, and a model whose weights are random."""
    folder = tmp_path_factory.mktemp("sources")
    true = moving(60, (96, 96), 0.35)
    frames = np.random.default_rng(1).poisson(6 * scene(60) * everywhere(true)).astype(np.uint8)
    return movie_store(folder, frames), model_folder(folder / "model")


def test_the_denoised_movie_keeps_the_beam_of_the_counts(sources: tuple[Path, Path], tmp_path: Path) -> None:
    output = tmp_path / "d.zarr"
    settings = {"ensemble": 1, "share": "0/1", "lossless": True}
    apply(ApplyConfig(movie=sources[0], model=sources[1], output=output, **settings))  # type: ignore[arg-type]
    movie, result = xr.open_zarr(sources[0]), xr.open_zarr(output)
    np.testing.assert_array_equal(result["frame_tilt"].values, movie["frame_tilt"].values)
    assert result["frame_tilt"].attrs["units"] == "1/pixel"
    recorded, shown = movie["counts"].values.astype(float), result["denoised"].values
    for corner in ((slice(0, 16), slice(0, 16)), (slice(-16, None), slice(-16, None))):
        # What is shown there, over its mean in time, goes up and down as the counts do.
        ours, theirs = (a[:, *corner].mean(axis=(1, 2)) for a in (shown, recorded))
        ours, theirs = ours / ours.mean(), theirs / theirs.mean()
        assert np.ptp(theirs) > 0.5 and np.sqrt(np.square(ours - theirs).mean()) < 0.06
    attributes = store.read_attributes(sources[0])
    assert any("moves across the field" in warning for warning in attributes["warnings"])
    found = evaluate(EvaluateConfig(output, sources[0]))
    assert any("moves across the field" in note for note in found["notes"])
    assert 0.3 < found["brightness"]["across"] < 1.5
    assert abs(found["noise_excess"]["estimate"]) < 0.05


def test_a_tilted_movie_in_tiles_is_the_same_movie(sources: tuple[Path, Path], tmp_path: Path) -> None:
    shown = []
    for name, tile in (("whole", None), ("tiles", 48)):
        settings = {"ensemble": 1, "share": "0/1", "lossless": True, "tile": tile}
        apply(ApplyConfig(movie=sources[0], model=sources[1], output=tmp_path / name, **settings))  # type: ignore[arg-type]
        shown.append(xr.open_zarr(tmp_path / name)["denoised"].values)
    np.testing.assert_allclose(*shown, rtol=1e-3, atol=1e-3)


def test_slopes_that_are_not_of_the_movie_are_refused(sources: tuple[Path, Path], tmp_path: Path) -> None:
    movie = movie_store(tmp_path, xr.open_zarr(sources[0])["counts"].values)
    opened = store.open_store(movie, store.MOVIE)
    known = movie_brightness(opened)
    assert known is not None and known.tilts is not None
    zarr.open_array(movie / "frame_tilt", mode="r+")[3, 0] = np.nan
    with pytest.raises(InputError, match="how the beam moves"):
        movie_brightness(opened)
