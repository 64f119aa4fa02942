"""Thinned counts are two independent frames, and thinning is refused where they would not be."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from small import movie_store
from tdenoise_pipeline.errors import InputError, UsageError
from tdenoise_pipeline.settings.config import TrainConfig
from tdenoise_pipeline.train.train import train_model

from tdenoise.network.checkpoint import load_model
from tdenoise.network.registry import architecture_of, blind_radius, kind_of
from tdenoise.network.split_blind import Architecture
from tdenoise.noise import thinning
from tdenoise.noise.noise import NoiseStatistics, Scale
from tdenoise.noise.noise_measurement import NoiseAccumulator
from tdenoise.training.patches import PatchLoader
from tdenoise.training.train import TrainingSettings, TrainingState, train
from tdenoise.training.training_movie import TrainingMovie, hold_out
from tdenoise.training.validation import HeldOut

SEEN = Architecture(
    window=3, bins=(1, 2), unshuffle=2, widths=(4, 6), features=2, fusion_width=4, centre="seen"
)


def poisson(shape: tuple[int, int, int], dose: float = 2.0, seed: int = 0) -> np.ndarray:
    y, x = np.mgrid[: shape[1], : shape[2]]
    clean = dose * (1 + 0.3 * np.sin(x / 3.0) * np.cos(y / 4.0))
    return np.random.default_rng(seed).poisson(np.broadcast_to(clean, shape)).astype(np.uint8)


def measured(frames: np.ndarray) -> NoiseStatistics:
    accumulator = NoiseAccumulator()
    accumulator.add(frames)
    return accumulator.result()


def movie(frames: np.ndarray) -> TrainingMovie:
    return TrainingMovie(frames, Scale.of(measured(frames)), hold_out(len(frames)))


@given(seed=st.integers(0, 2**32), low=st.floats(0.05, 0.9), dose=st.floats(0.1, 40))
def test_no_electron_is_lost_or_made(seed: int, low: float, dose: float) -> None:
    counts = np.random.default_rng(seed).poisson(dose, (5, 7)).astype(np.uint8)
    shown, target, q = thinning.split(counts, np.random.default_rng(seed), (low, 0.95))
    held, rest = np.round(q * target), np.round((1 - q) * shown)
    np.testing.assert_array_equal(held + rest, counts)
    np.testing.assert_allclose(q * target, held, atol=1e-4)
    assert (held >= 0).all() and (rest >= 0).all() and low <= q <= 0.95


def test_both_parts_are_unbiased_poisson_and_independent() -> None:
    counts = np.random.default_rng(0).poisson(3.0, 400_000)
    shown, target, q = thinning.split(counts, np.random.default_rng(1))
    assert shown.mean() == pytest.approx(3, rel=0.01) and target.mean() == pytest.approx(3, rel=0.01)
    assert shown.var() == pytest.approx(3 / (1 - q), rel=0.01)
    assert target.var() == pytest.approx(3 / q, rel=0.01)
    assert abs(np.corrcoef(shown, target)[0, 1]) < 0.006


def test_the_error_estimate_is_unbiased() -> None:
    rng = np.random.default_rng(0)
    clean = rng.uniform(0.5, 4.0, 500_000)
    shown, target, q = thinning.split_for_validation(rng.poisson(clean), rng)
    predicted = 0.3 * shown + 0.7 * clean.mean()  # a poor network that sees what it predicts
    true = np.square(predicted - clean).mean()
    assert thinning.unbiased_error_terms(target, predicted, q).mean() == pytest.approx(true, rel=0.03)


def test_a_thinned_batch_depends_on_the_seed_and_the_step_alone() -> None:
    made = movie(poisson((40, 64, 48)))
    first, second = (
        PatchLoader([made], SEEN, patch=32, batch=4, seed=5, split=thinning.split) for _ in range(2)
    )
    one, again = first.draw(7), second.draw(7)
    assert torch.equal(one.centre, again.centre) and torch.equal(one.target, again.target)
    assert not torch.equal(one.centre, one.target)
    blind = PatchLoader([made], SEEN, patch=32, batch=4, seed=5).draw(7)
    assert torch.equal(one.neighbours, blind.neighbours), "the neighbour frames are shown whole"
    shares = one.weight.amax((1, 2, 3))
    assert ((shares >= 0.1) & (shares <= 0.5)).all() and len(shares.unique()) == 4
    together = (1 - one.weight) * one.centre + one.weight * one.target
    assert torch.allclose(together, blind.centre, atol=1e-4)


def test_a_network_that_repeats_its_input_gains_nothing() -> None:
    class Repeat(torch.nn.Module):
        def forward(self, neighbours: torch.Tensor, centre: torch.Tensor) -> torch.Tensor:
            return centre / contrast

    class Mean(Repeat):
        def forward(self, neighbours: torch.Tensor, centre: torch.Tensor) -> torch.Tensor:
            return torch.zeros_like(centre)

    made = movie(poisson((40, 64, 48)))
    contrast = made.scale.contrast / made.scale.noise
    blind = HeldOut([made], SEEN, "cpu", False)
    split = HeldOut([made], SEEN, "cpu", False, thinning.split_for_validation)
    assert blind(Repeat()) == pytest.approx(0, abs=1e-9), "which is why a blind estimate is not valid here"  # type: ignore[arg-type]
    # In units of the noise, for q = 0.25: the target's 1 / q and the input's 1 / (1 - q), or the signal's.
    assert split(Repeat()) == pytest.approx(4 + 4 / 3, abs=0.2)  # type: ignore[arg-type]
    assert split(Mean()) == pytest.approx(4 + contrast**2 / 4, abs=0.15)  # type: ignore[arg-type]
    assert split(Mean()) == split(Mean())  # type: ignore[arg-type]


def test_a_thinned_network_learns() -> None:
    made = movie(poisson((30, 48, 48), 8.0))
    chosen = TrainingSettings(steps=160, validate_every=80, batch=2, patch=32)
    state = TrainingState.start(SEEN, chosen, "cpu")
    loader = PatchLoader([made], SEEN, patch=32, batch=2, split=thinning.split)
    validation = HeldOut([made], SEEN, "cpu", False, thinning.split_for_validation)
    before = validation(state.network)
    list(train(state, loader, validation, chosen))
    assert state.best_error < before - 0.05


def test_the_kind_stands_in_the_card() -> None:
    assert kind_of(SEEN) == "thinned" and blind_radius(SEEN) == "seen"
    card = {"kind": "thinned", "architecture": SEEN.to_json()}
    assert architecture_of(card) == SEEN
    with pytest.raises(ValueError, match="not that of split-blind"):
        architecture_of({**card, "kind": "split-blind"})


def test_pure_counts_may_be_thinned() -> None:
    noise = measured(poisson((24, 128, 128), 0.5))
    assert thinning.refusal(noise) is None
    assert thinning.refusal(noise, 1.0) is None


@pytest.mark.parametrize(
    ("what", "reason"),
    [
        ("gain", "Fano factor is 2.0"),
        ("float", "not whole numbers"),
        ("point spread", "correlated between pixels"),
        ("afterglow", "correlated between frames"),
        ("coincidence", "Fano factor is 0.7"),
        ("small", "too small to tell"),
    ],
)
def test_other_counts_are_refused_with_the_figures(what: str, reason: str) -> None:
    rng = np.random.default_rng(0)
    counts = poisson((24, 128, 128)).astype(np.int64)
    neighbour = rng.binomial(counts, 0.03)
    frames = {
        "gain": 2 * counts,
        "float": 0.9 * counts,
        "point spread": counts
        - neighbour
        + np.roll(neighbour, 1, axis=2)
        + np.roll(rng.binomial(counts, 0.03), 1, 2),
        "afterglow": counts + np.roll(rng.binomial(counts, 0.015), 1, axis=0),
        "coincidence": np.minimum(counts, 4),
        "small": counts[:, :24, :24],
    }[what]
    assert reason in (thinning.refusal(measured(frames)) or "")


def test_a_camera_of_several_counts_per_electron_and_an_old_store_are_refused() -> None:
    noise = measured(poisson((24, 128, 128)))
    assert "an electron makes 30 counts" in (thinning.refusal(noise, 30.0) or "")
    assert "Ingest it again" in (thinning.refusal(replace(noise, correlations=(), whole=None)) or "")


def test_thinned_models_are_trained_on_pure_counts_only(tmp_path: Path) -> None:
    pure = movie_store(tmp_path / "pure", poisson((24, 96, 96)))
    doubled = movie_store(tmp_path / "doubled", 2 * poisson((24, 96, 96)))
    card = train_model(TrainConfig(movie=(pure,), output=tmp_path / "model", model="thinned", steps=1))
    assert card["kind"] == "thinned" and card["blind_radius"] == "seen" and "not blind" in card["reason"]
    assert load_model(tmp_path / "model").network.architecture.centre == "seen"
    with pytest.raises(InputError, match=r"doubled.*Fano factor is 1\.99.*Use --model split-blind"):
        train_model(TrainConfig(movie=(doubled,), output=tmp_path / "other", model="thinned", steps=1))
    with pytest.raises(UsageError, match="has no blind spot"):
        train_model(TrainConfig(movie=(pure,), output=tmp_path / "o", model="thinned", blind_radius=1))
    assert [p.name for p in tmp_path.iterdir() if p.name in ("other", "o")] == []
