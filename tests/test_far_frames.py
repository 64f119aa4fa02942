"""What a network sees of frames far from the one it predicts: sums of sections, never the own one."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
import xarray as xr
from hypothesis import example, given, settings
from hypothesis import strategies as st
from small import TINY, counts, drifting, model_folder, movie_store, network
from tdenoise_pipeline.apply.apply import apply
from tdenoise_pipeline.archive.bioimageio import export_model
from tdenoise_pipeline.errors import InputError, UsageError
from tdenoise_pipeline.inputs.model_fit import movie_drift, movie_scale
from tdenoise_pipeline.settings.config import ApplyConfig, ModelsExportConfig, TrainConfig
from tdenoise_pipeline.store import store
from tdenoise_pipeline.train.train import train_model
from tdenoise_pipeline.train.train_plan import make_plan

from tdenoise.inference.denoising import denoise
from tdenoise.inference.memory import halo_with_shift
from tdenoise.inference.tile import Tile
from tdenoise.network.split_blind import Architecture, SplitBlind, stack_window
from tdenoise.network.windows import far_window, normalise, transform
from tdenoise.noise.brightness import Brightness
from tdenoise.noise.drift import largest_shift, window_shifts
from tdenoise.noise.far_frames import SECTION, FarFrames, far_sections, sum_section
from tdenoise.noise.neighbour_frames import window_indices
from tdenoise.noise.noise import Scale
from tdenoise.training.patches import PatchLoader
from tdenoise.training.train import TrainingSettings, TrainingState
from tdenoise.training.training_movie import TrainingMovie

SCALE = Scale(2.0, 1.4, 0.3)
FAR = replace(TINY, far_bins=(1, 2))


def seeing(architecture: Architecture = FAR) -> SplitBlind:
    """A network that has learned to use far frames."""
    made = network(architecture)
    assert made.far is not None
    made.far.weight.data.normal_(0, 0.3, generator=torch.Generator().manual_seed(5))
    return made


def window_of(
    frames: torch.Tensor, centre: int, drift: np.ndarray | None, arch: Architecture
) -> torch.Tensor:
    indices = window_indices(centre, len(frames), arch.window)
    far, n = far_window(frames, centre, arch.far_bins, drift), len(arch.far_bins)
    near = stack_window(frames, indices, arch.bins, window_shifts(drift, centre, indices))
    return torch.cat([far[:n], near, far[n:]])


@settings(max_examples=25)
@given(
    n_frames=st.integers(1, 130),
    step=st.sampled_from([0.0, 0.3, 4.0]),
    centre=st.integers(0, 129),
    seed=st.integers(0, 9),
)
@example(n_frames=21, step=0.0, centre=20, seed=0)
def test_sums_are_those_of_the_frames_that_they_hold(
    n_frames: int, step: float, centre: int, seed: int
) -> None:
    frames, centre = counts((n_frames, 9, 11), seed), min(centre, n_frames - 1)
    drift = drifting(n_frames, seed, step) if step else None
    far = FarFrames.of(frames, drift=drift)
    found = far.channels(far.key(centre), (0, 9), (0, 11), (1, 3), SCALE)
    expected = far_window(normalise(frames, SCALE, 9, 11), centre, (1, 3), drift)
    np.testing.assert_allclose(found, expected, atol=2e-5)
    part = far.part(0, 2, 3)
    inner = part.channels(part.key(centre), (1, 6), (-1, 4), (1, 3), SCALE)
    np.testing.assert_array_equal(inner, found[:, 3:8, 2:7])
    section = centre // SECTION
    bands = [sum_section(frames, section, rows, drift) for rows in ((0, 4), (4, 9))]
    for number, whole in enumerate(sum_section(frames, section, (0, 9), drift)):
        np.testing.assert_array_equal(np.concatenate([band[number] for band in bands]), whole)


@given(n=st.integers(2, 40), reach=st.integers(1, 15), data=st.data())
def test_the_own_section_is_never_seen_and_others_stand_where_they_lie(
    n: int, reach: int, data: st.DataObject
) -> None:
    section = data.draw(st.integers(0, n - 1))
    found = far_sections(section, n, reach)
    assert len(found) == 2 * reach and section not in found and found.min() >= 0 and found.max() < n
    for offset, number in zip([*range(-reach, 0), *range(1, reach + 1)], found.tolist(), strict=True):
        if 0 <= section + offset < n:
            assert number == section + offset


@pytest.mark.parametrize("step", [0.0, 0.3])
@pytest.mark.parametrize("centre", [0, 33, 69])
def test_no_pixel_depends_on_itself_by_way_of_far_frames(centre: int, step: float) -> None:
    made = seeing().double()
    made.head.float()
    drift = drifting(70, step=step) if step else None
    frames = torch.randn((70, 24, 24), dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    frames.requires_grad_()
    made(window_of(frames, centre, drift, FAR)[None], frames[centre][None, None])[0, 0, 11, 13].backward()
    assert frames.grad is not None
    slope = frames.grad.abs()
    assert slope[centre, 11, 13] == 0
    seen = slope.amax(dim=(1, 2)) > 0
    sections, near = far_sections(centre // SECTION, 4, 3), window_indices(centre, 70, FAR.window)
    wanted = {*near.tolist(), centre, *(f for f in range(70) if f // SECTION in sections)}
    assert set(np.flatnonzero(seen.numpy()).tolist()) == wanted
    own = [f for f in range(70) if f // SECTION == centre // SECTION and f not in (*near, centre)]
    assert own and not seen[own].any()


@pytest.mark.parametrize(("ensemble", "step"), [(1, 0.0), (4, 0.4)])
def test_a_part_of_a_movie_is_denoised_as_in_the_whole(ensemble: int, step: float) -> None:
    made, frames = seeing(), counts((75, 24, 96))
    drift = drifting(75, step=step) if step else None
    levels = np.linspace(0.8, 1.2, 75)
    seen = Brightness(levels / levels.mean(), np.arange(75) != 31)
    bad = np.full((24, 96), np.nan, np.float32)
    bad[12, 90] = 2.5
    shown, wanted = {"ensemble": ensemble, "drift": drift, "brightness": seen}, range(37, 42)
    whole = list(denoise(made, frames, Tile.whole(frames.shape), SCALE, wanted, stand_ins=bad, **shown))
    far = FarFrames.of(frames, drift=drift, brightness=seen, stand_ins=bad)
    halo = halo_with_shift(made.architecture, largest_shift(drift, made.architecture.window))
    left = 88 - halo
    assert left > 0
    tile = Tile(75, 30, (0, 24), (halo, 96 - left), (0, left))
    shown |= {"stand_ins": bad[:, left:], "far": far.part(0, 0, left)}
    part = denoise(made, frames[30:50, :, left:], tile, SCALE, wanted, **shown)
    np.testing.assert_allclose(np.stack(list(part)), np.stack(whole)[:, :, 88:], rtol=1e-4, atol=1e-5)
    with pytest.raises(ValueError, match="a part of a movie does not tell"):
        next(denoise(made, frames[30:50], tile, SCALE, wanted))


def test_inference_sees_what_the_network_is_called_with() -> None:
    made, frames, drift = seeing(), counts((75, 24, 24)), drifting(75, step=0.3)
    shown = normalise(frames, SCALE, 24, 24)
    for centre in (0, 33, 74):
        output = made(window_of(shown, centre, drift, FAR)[None], shown[centre][None, None])[0, 0]
        tile, wanted = Tile.whole(frames.shape), range(centre, centre + 1)
        (found,) = denoise(made, frames, tile, SCALE, wanted, ensemble=1, drift=drift)
        np.testing.assert_allclose(found, SCALE.mean + SCALE.contrast * output, atol=1e-5)


@pytest.mark.parametrize("number", range(4))
def test_a_patch_shows_what_inference_does(number: int) -> None:
    frames, drift = counts((75, 40, 40)), drifting(75, step=0.3)
    movie = TrainingMovie(frames, SCALE, (), drift=drift, far=FarFrames.of(frames, drift=drift))
    loader = PatchLoader([movie], FAR, patch=16, batch=1, seed=number)
    place, batch = loader._places(0)[0], loader.draw(0)
    window = window_of(normalise(frames, SCALE, 56, 56), place.centre, drift, FAR)
    part = window[:, place.row : place.row + 16, place.column : place.column + 16]
    seen = transform(part, place.turn, place.mirror, place.reverse)
    torch.testing.assert_close(batch.neighbours[0], seen, rtol=1e-4, atol=1e-4)


def test_a_network_that_gets_far_frames_starts_as_it_was() -> None:
    given, frames = network(), counts((60, 24, 24))
    state = TrainingState.start(FAR, TrainingSettings(), "cpu", given.state_dict())
    before, after = (
        next(denoise(made.eval(), frames, Tile.whole(frames.shape), SCALE, range(30, 31)))
        for made in (given, state.network)
    )
    np.testing.assert_allclose(before, after, rtol=1e-6)
    assert state.new == {"far.weight"}
    assert "far_bins" not in TINY.to_json() and Architecture.from_json(TINY.to_json()) == TINY
    assert Architecture.from_json(FAR.to_json()) == FAR and FAR.reach == 4 * SECTION


@pytest.fixture(scope="module")
def long_movie(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return movie_store(tmp_path_factory.mktemp("long"), counts((130, 30, 44)))


def test_blocks_read_sums_and_give_the_movie_also_after_a_stop(
    long_movie: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = seeing()
    model, movie = model_folder(tmp_path / "model", made), store.open_store(long_movie, store.MOVIE)
    settings = {"movie": long_movie, "model": model, "ensemble": 1, "lossless": True, "draft_only": True}
    settings |= {"share": "0/1", "tile": 16}
    apply(ApplyConfig(output=tmp_path / "a.zarr", **settings))
    frames, drift = counts((130, 30, 44)), movie_drift(movie, made.architecture)
    whole = denoise(
        made, frames, Tile.whole(frames.shape), movie_scale(movie), range(130), ensemble=1, drift=drift
    )
    found = xr.open_zarr(tmp_path / "a.zarr")["denoised"].values
    np.testing.assert_allclose(found, np.stack(list(whole)), rtol=1e-4, atol=1e-5)
    here = {"output": tmp_path / "b.zarr", **settings}
    with monkeypatch.context() as patched:
        patched.setattr("tdenoise_pipeline.apply.block_work.denoise_block", _killed)
        with pytest.raises(KeyboardInterrupt):
            apply(ApplyConfig(**here))
    (sums,) = tmp_path.rglob("far-sums.npy")
    data = bytearray(sums.read_bytes())
    data[len(data) // 2] ^= 64  # a flipped bit: they are summed again
    sums.write_bytes(data)
    apply(ApplyConfig(**here))
    np.testing.assert_array_equal(xr.open_zarr(tmp_path / "b.zarr")["denoised"].values, found)
    assert not list(tmp_path.rglob("far-*"))


def _killed(*_: object) -> None:
    raise KeyboardInterrupt


def test_training_learns_from_far_frames_and_says_where_it_cannot(long_movie: Path, tmp_path: Path) -> None:
    config = TrainConfig(
        movie=(long_movie,), output=tmp_path / "m", steps=1, far_frames=True, movie_only=True
    )
    card = train_model(config)
    assert card is not None and card["architecture"]["far_bins"] == [1, 2, 4, 8]
    adapted = make_plan(replace(config, far_frames=False, from_model=tmp_path / "m"))
    assert adapted.architecture.far_bins == (1, 2, 4, 8)
    with pytest.raises(UsageError, match="far"):
        export_model(ModelsExportConfig(model=tmp_path / "m", output=tmp_path / "m.zip"))
    with pytest.raises(UsageError, match="--least-dose"):
        make_plan(replace(config, least_dose=0.5))
    with pytest.raises(UsageError, match="--least-dose"):  # nor where the model given sees them
        make_plan(replace(config, far_frames=False, from_model=tmp_path / "m", least_dose=0.5))
    with pytest.raises(UsageError, match="not udvd"):
        make_plan(replace(config, model="udvd"))
    short = movie_store(tmp_path, counts((15, 30, 44)))
    with pytest.raises(InputError, match="15 frames"):
        make_plan(replace(config, movie=(short,)))
    with pytest.raises(InputError, match="15 frames"):
        apply(ApplyConfig(movie=short, model=tmp_path / "m", output=tmp_path / "d.zarr"))
