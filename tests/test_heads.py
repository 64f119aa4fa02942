"""A gamma head from training to the variance in the denoised store."""

from __future__ import annotations

import dataclasses
import warnings
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
import xarray as xr
from small import TINY, counts, model_folder, movie_store, network
from tdenoise_pipeline import open as open_dataset
from tdenoise_pipeline.apply.apply import apply
from tdenoise_pipeline.apply.apply_plan import describe_plan
from tdenoise_pipeline.archive.verify import verify
from tdenoise_pipeline.errors import InputError, Stopped, UsageError, VerificationError
from tdenoise_pipeline.inputs.model_fit import movie_drift, movie_scale
from tdenoise_pipeline.settings.config import ApplyConfig, TrainConfig, VerifyConfig
from tdenoise_pipeline.step_control import Control
from tdenoise_pipeline.store import store
from tdenoise_pipeline.train.train import train_model

from tdenoise.inference.denoising import denoise, denoise_with_variance
from tdenoise.inference.tile import Tile
from tdenoise.network.checkpoint import BASE, load_model, read_card
from tdenoise.network.split_blind import SplitBlind
from tdenoise.noise.noise import Scale
from tdenoise.noise.noise_measurement import NoiseAccumulator
from tdenoise.training.patches import PatchLoader
from tdenoise.training.train import TrainingSettings, TrainingState, train
from tdenoise.training.training_movie import TrainingMovie, hold_out
from tdenoise.training.validation import HeldOut

GAMMA = replace(TINY, head="gamma")
SHAPE = (70, 30, 44)


def uncertain() -> SplitBlind:
    """A network whose second output differs from pixel to pixel."""
    made = network(GAMMA)
    assert made.spread is not None
    generator = torch.Generator().manual_seed(0)
    made.spread.weight.data[:] = torch.randn(made.spread.weight.shape, generator=generator)
    return made


@pytest.fixture(scope="session")
def sources(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """A movie store of three blocks of electrons, and a model with a gamma head."""
    folder = tmp_path_factory.mktemp("gamma")
    return movie_store(folder, counts(SHAPE)), model_folder(folder / "model", uncertain())


def config(sources: tuple[Path, Path], output: Path, **settings: object) -> ApplyConfig:
    return ApplyConfig(movie=sources[0], model=sources[1], output=output, ensemble=2, **settings)  # type: ignore[arg-type]


def whole(sources: tuple[Path, Path]) -> tuple[np.ndarray, np.ndarray]:
    """Denoised movie and variance, made in one piece in this process."""
    frames = counts(SHAPE)
    movie = store.open_store(sources[0], store.MOVIE)
    pairs = denoise_with_variance(
        uncertain(),
        frames,
        Tile.whole(SHAPE),
        movie_scale(movie),
        range(len(frames)),
        ensemble=2,
        drift=movie_drift(movie, GAMMA),
    )
    denoised, variance = (np.stack(part) for part in zip(*pairs, strict=True))
    return denoised, variance


def test_a_variance_store_made_in_blocks_is_the_one_made_whole(
    sources: tuple[Path, Path], workers: str, tmp_path: Path
) -> None:
    given = {"variance": True, "draft_only": True}
    apply(config(sources, tmp_path / "d.zarr", workers=workers, tile=16, lossless=True, **given))
    denoised, variance = whole(sources)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        dataset = xr.open_zarr(tmp_path / "d.zarr")
    assert dataset["variance"].dims == ("t", "y", "x") and dataset["variance"].dtype == np.float32
    assert dataset["variance"].attrs["units"] == f"{dataset['denoised'].attrs['units']}^2"
    np.testing.assert_allclose(dataset["denoised"], denoised, rtol=1e-5, atol=1e-5)
    np.testing.assert_allclose(dataset["variance"], variance, rtol=1e-4, atol=1e-5)
    assert variance.std() > 0.1 * variance.mean(), "it is not the same everywhere"
    assert open_dataset(tmp_path / "d.zarr")["variance"].chunks == ((32, 32, 6), (16, 14), (16, 16, 12))
    n_shards = verify(VerifyConfig(store=tmp_path / "d.zarr", deep=True))["n_shards"]
    assert n_shards == 2 * 3 * 2 * 3


def test_both_arrays_keep_seven_bits_and_the_blind_prediction_is_that_without_variance(
    sources: tuple[Path, Path], workers: str, tmp_path: Path
) -> None:
    apply(config(sources, tmp_path / "with.zarr", workers=workers, variance=True))
    apply(config(sources, tmp_path / "without.zarr", workers=workers))
    dataset, plain = xr.open_zarr(tmp_path / "with.zarr"), xr.open_zarr(tmp_path / "without.zarr")
    assert "variance" not in plain
    for name in ("denoised", "variance"):
        values = dataset[name].values
        assert (values.view(np.uint32) & 0xFFFF == 0).all(), "16 of the 23 bits of the mantissa are zero"
    np.testing.assert_allclose(dataset["denoised"], plain["denoised"], rtol=2.0**-6)
    np.testing.assert_allclose(dataset["variance"], whole(sources)[1], rtol=2.0**-7)


def test_damage_of_the_variance_is_found(sources: tuple[Path, Path], workers: str, tmp_path: Path) -> None:
    apply(config(sources, tmp_path / "d.zarr", workers=workers, variance=True))
    shard = tmp_path / "d.zarr/variance/c/1/0/0"
    shard.write_bytes(shard.read_bytes()[:-3])
    with pytest.raises(VerificationError, match="'variance' are damaged.*frames 32 to 63"):
        verify(VerifyConfig(store=tmp_path / "d.zarr"))


def test_a_stopped_run_goes_on_and_does_a_block_over_whose_variance_is_gone(
    sources: tuple[Path, Path], workers: str, tmp_path: Path
) -> None:
    control = Control()
    control.progress = lambda what, done, total: control.stop.set() if done else None
    stopped = config(sources, tmp_path / "d.zarr", workers=workers, variance=True)
    with pytest.raises(Stopped):
        apply(stopped, control)
    with pytest.raises(UsageError, match="variance"):
        apply(replace(stopped, variance=False))
    first = min(f for f in (tmp_path / "d.zarr-partial/variance/c").rglob("*") if f.is_file())
    first.unlink()
    apply(replace(stopped, resume=True))
    verify(VerifyConfig(store=tmp_path / "d.zarr", deep=True))
    np.testing.assert_allclose(xr.open_zarr(tmp_path / "d.zarr")["variance"], whole(sources)[1], rtol=2.0**-7)


def test_a_model_without_a_gamma_head_says_how_to_get_one(sources: tuple[Path, Path], tmp_path: Path) -> None:
    model = model_folder(tmp_path / "mean")
    given = replace(config(sources, tmp_path / "d.zarr"), variance=True)
    with pytest.raises(UsageError, match="--variance: .*'train --head gamma'"):
        apply(replace(given, model=model))
    with pytest.raises(UsageError, match="'train --head gamma'"):
        apply(replace(given, model=None))
    assert not (tmp_path / "d.zarr").exists()


def test_a_gamma_head_is_refused_where_electrons_are_not_single(
    sources: tuple[Path, Path], tmp_path: Path
) -> None:
    doubled = movie_store(tmp_path / "doubled", 2 * counts((20, 30, 44)))
    with pytest.raises(InputError, match=r"--variance is not valid here: .*Fano factor [12]\.\d"):
        describe_plan(replace(config(sources, tmp_path / "d.zarr", variance=True), movie=doubled))
    with pytest.raises(InputError, match="--head gamma is not valid here"):
        train_model(TrainConfig(movie=(doubled,), output=tmp_path / "m", head="gamma", steps=2))
    with pytest.raises(UsageError, match="only a split-blind model"):
        train_model(
            TrainConfig(movie=(sources[0],), output=tmp_path / "m", head="gamma", model="udvd", steps=2)
        )
    told = movie_store(tmp_path / "told", 2 * counts((20, 30, 44)), counts_per_electron=2.0)
    describe_plan(replace(config(sources, tmp_path / "d.zarr", variance=True), movie=told))


def test_a_gamma_head_is_put_on_the_base_model_and_predicts_the_same_at_first(
    sources: tuple[Path, Path], tmp_path: Path
) -> None:
    card = train_model(TrainConfig(movie=(sources[0],), output=tmp_path / "m", head="gamma", steps=2))
    assert card["architecture"]["head"] == "gamma" and card["parent"] == read_card(BASE)["sha256"]
    assert np.isfinite(card["metrics"]["held_out_nll"])
    again = train_model(
        TrainConfig(movie=(sources[0],), output=tmp_path / "n", from_model=tmp_path / "m", steps=1)
    )
    assert again["architecture"]["head"] == "gamma", "inherited"
    base = load_model(BASE).network
    state = TrainingState.start(
        replace(base.architecture, head="gamma"),  # type: ignore[type-var]
        TrainingSettings(),
        "cpu",
        base.state_dict(),
    )
    assert state.new == {"spread.weight", "spread.bias"}
    frames = counts((9, 32, 32))
    given = (frames, Tile.whole(frames.shape), Scale(2.0, 1.4, 0.4), range(4, 5))
    expected = next(denoise(base, *given, ensemble=1))
    np.testing.assert_allclose(next(denoise(state.network.eval(), *given, ensemble=1)), expected, rtol=1e-5)


def moving(shape: tuple[int, int, int]) -> TrainingMovie:
    frames = counts(shape)
    accumulator = NoiseAccumulator()
    accumulator.add(frames)
    return TrainingMovie(frames, Scale.of(accumulator.result()), hold_out(shape[0]))


def test_a_new_gamma_head_begins_with_the_likeliest_constant_and_learns_while_gains_are_adapted() -> None:
    movie = moving((40, 48, 48))
    chosen = TrainingSettings(steps=8, validate_every=8, batch=2, patch=32, gain_share=1.0)
    state = TrainingState.start(GAMMA, chosen, "cpu", network().state_dict())
    validation = HeldOut([movie], GAMMA, "cpu", False)
    assert state.spread_is_new
    state.start_spread(validation.constant_spread(state.network))
    found = float(state.network.spread.bias.detach())  # type: ignore[union-attr, arg-type]
    likely = validation.likelihood(state.best)
    for other in (found - 0.5, found + 0.5):
        state.network.spread.bias.data[:] = other  # type: ignore[union-attr, operator]
        assert validation.likelihood(state.network) > likely
    before = {name: value.clone() for name, value in state.network.state_dict().items()}
    loader = PatchLoader([movie], GAMMA, patch=32, batch=2)
    list(train(state, loader, validation, chosen, likelihood=validation.likelihood))
    after = state.network.state_dict()
    assert not torch.equal(after["spread.bias"], before["spread.bias"])
    assert after["spread.weight"].abs().max() > 0
    assert torch.equal(after["head.bias"], before["head.bias"]), "a given bias waits"


def test_thinned_patches_are_poisson_at_their_dose_with_the_scale_of_that_dose() -> None:
    frames = np.random.default_rng(0).poisson(2.0, (60, 48, 48)).astype(np.uint8)
    movie = TrainingMovie(frames, Scale(2.0, 2.0**0.5, 0.3 * 2.0**0.5), hold_out(60))
    loader = PatchLoader([movie], TINY, patch=48, batch=8, least_dose=0.1, seed=1)
    levels, pooled = [], []
    for step in range(20):
        batch = loader.draw(step)
        levels += batch.electrons[:, 0, 0, 0].tolist()
        for patch, electrons in zip(batch.centre, batch.electrons.flatten(1), strict=True):
            level, noise = map(float, electrons)
            seen = level + noise * patch.numpy()
            np.testing.assert_allclose(seen, np.round(seen), atol=1e-4)
            pooled.append((float(patch.mean()), float(patch.var())))
        assert torch.equal(batch.contrast, torch.full_like(batch.contrast, 0.3))
    shares = np.array(levels) / 2.0
    assert 0.35 < np.mean(shares == 1) < 0.65
    assert shares.min() >= 0.1 and shares.min() < 0.2
    means, variances = np.mean(pooled, axis=0)
    assert means == pytest.approx(0, abs=0.01) and variances == pytest.approx(1, abs=0.02)
    neighbours = torch.cat([loader.draw(step).neighbours for step in range(10)])
    assert float(neighbours.var()) == pytest.approx(1, abs=0.02)


def test_lower_doses_are_for_electrons_only_and_the_card_says_which(
    sources: tuple[Path, Path], tmp_path: Path
) -> None:
    doubled = movie_store(tmp_path / "doubled", 2 * counts((20, 30, 44)))
    with pytest.raises(InputError, match="--least-dose is not valid here: the Fano factor is 2"):
        train_model(TrainConfig(movie=(doubled,), output=tmp_path / "m", least_dose=0.25, steps=2))


def test_the_held_out_frames_hold_the_lower_doses_too() -> None:
    movie = moving((60, 48, 48))
    full, thinned = (HeldOut([movie], TINY, "cpu", False, least_dose=share) for share in (1.0, 0.25))
    level = [float(sample[3].flatten()[0]) for sample in thinned._samples]
    assert level[:3] == pytest.approx([movie.scale.mean * share for share in (1.0, 0.5, 0.25)])
    assert len({float(sample[3].flatten()[0]) for sample in full._samples}) == 1


def test_settings_of_old_plans_keep_their_identity(sources: tuple[Path, Path], tmp_path: Path) -> None:
    from tdenoise_pipeline.train.train_plan import make_plan

    plan = make_plan(TrainConfig(movie=(sources[0],), output=tmp_path / "m", steps=2))
    assert "least_dose" not in plan.identity["settings"]
    assert "least_dose" in dataclasses.asdict(plan.settings)
