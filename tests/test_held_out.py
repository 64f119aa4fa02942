"""Comparing networks on held-out frames, and how much of an adaptation is kept."""

from __future__ import annotations

import copy
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from scipy.ndimage import uniform_filter
from small import TINY, counts, model_folder, movie_store, network
from tdenoise_pipeline.errors import Stopped
from tdenoise_pipeline.settings.config import TrainConfig
from tdenoise_pipeline.step_control import Control
from tdenoise_pipeline.train.train import train_model

from tdenoise.network.checkpoint import BASE, load_model
from tdenoise.network.registry import Network
from tdenoise.noise.noise import Scale
from tdenoise.training.patches import PatchLoader
from tdenoise.training.train import TrainingSettings, TrainingState, turn_back
from tdenoise.training.training_movie import TrainingMovie, hold_out
from tdenoise.training.validation import HeldOut, Sums, compare


def held_out(seed: int, blurred: bool) -> HeldOut:
    frames = counts((24, 64, 64), seed).astype(np.float32)
    if blurred:
        frames = uniform_filter(frames, (0, 3, 3))
    movie = TrainingMovie(frames, Scale(2.0, 1.4, 0.4), hold_out(24, 0.5))
    return HeldOut([movie], TINY, "cpu", False)


@pytest.mark.parametrize("blurred", [False, True])
def test_the_difference_of_two_networks_is_that_of_their_errors_and_its_error_is_right(blurred: bool) -> None:
    one, other = network(seed=0), network(seed=1)
    found = []
    for seed in range(40):
        validation = held_out(seed, blurred)
        sums = validation.by_block(one), validation.by_block(other)
        difference, error = compare(*sums)
        if seed < 3:
            assert difference == pytest.approx(validation(one) - validation(other), rel=1e-3, abs=1e-6)
        assert compare(sums[0], sums[0]) == (0.0, 0.0)
        found.append((difference, error))
    differences, errors = np.array(found).T
    assert 0.7 < differences.std() / errors.mean() < 1.4


def adapted() -> tuple[TrainingState, dict[str, torch.Tensor]]:
    """A state whose best weights are not those that it began with."""
    given = network(seed=0).state_dict()
    state = TrainingState.start(TINY, TrainingSettings(), "cpu", given)
    state.best.load_state_dict(network(seed=1).state_dict())
    return state, given


@pytest.mark.parametrize(("error", "share"), [(0.0, 1.0), (0.05, 1.0), (0.15, 0.75), (0.6, 0.5), (2.1, 0.0)])
def test_the_weights_nearest_to_the_given_ones_that_are_no_worse_are_kept(error: float, share: float) -> None:
    state, given = adapted()
    best = copy.deepcopy(state.best.state_dict())
    whole = sum(float((best[k] - given[k]).square().sum()) for k in given)

    def errors(one: Network) -> Sums:
        """An error that is lowest at the best weights, and rises with the square of the way from there."""
        way = sum(float((v - best[k]).square().sum()) for k, v in one.state_dict().items())
        # Two blocks, whose differences from the best scatter by twice `error`: that of their mean is `error`.
        return Sums(np.array([way / whole + error, way / whole - error]) * (way > 0), np.ones(2))

    assert turn_back(state, given, (errors,)) == share
    for name, value in state.best.state_dict().items():
        torch.testing.assert_close(value, given[name] + share * (best[name] - given[name]))


def test_of_a_movie_that_teaches_nothing_nothing_is_kept(tmp_path: Path) -> None:
    flat = np.random.default_rng(0).poisson(2.0, (30, 64, 64)).astype(np.uint8)
    movie = movie_store(tmp_path, flat)
    card = train_model(TrainConfig(movie=(movie,), output=tmp_path / "model", steps=20))
    assert card["metrics"]["share"] == 0 and card["best_step"] > 0
    kept, given = (load_model(folder).network.state_dict() for folder in (tmp_path / "model", BASE))
    assert all(torch.equal(kept[name], given[name]) for name in given)


def test_layers_that_are_new_stay_as_they_were_learned() -> None:
    state, given = adapted()
    learned = copy.deepcopy(state.best.state_dict())
    state.new = frozenset({"look.weight"})
    given["look.weight"] = torch.zeros(3)  # of another blind spot
    assert (
        turn_back(state, given | {"of another head": torch.zeros(1)}, [lambda _: Sums(*np.ones((2, 1)))]) == 0
    )
    for name, value in state.best.state_dict().items():
        assert torch.equal(value, learned[name] if name in state.new else given[name])


def test_a_model_is_adapted_without_its_head(tmp_path: Path) -> None:
    parent = model_folder(tmp_path / "parent", network(replace(TINY, head="gamma")))
    movie = movie_store(tmp_path, counts((30, 64, 64)))
    settings = TrainConfig(
        movie=(movie,), output=tmp_path / "model", from_model=parent, head="mean", steps=30
    )
    card = train_model(settings)
    assert card["architecture"]["head"] == "mean" and card["best_step"] > 0 and card["metrics"]["share"] > 0


def test_a_stop_while_weights_are_compared_loses_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    movie = movie_store(tmp_path, counts((30, 64, 64)))
    settings = TrainConfig(movie=(movie,), output=tmp_path / "model", steps=20)
    control, by_block = Control(), HeldOut.by_block

    def stop(validation: HeldOut, network: Network) -> Sums:
        control.stop.set()
        return by_block(validation, network)

    with monkeypatch.context() as patch, pytest.raises(Stopped, match="run the same command again"):
        patch.setattr(HeldOut, "by_block", stop)
        train_model(settings, control)
    assert not settings.output.exists()
    with monkeypatch.context() as patch:
        patch.setattr(PatchLoader, "draw", None)  # nothing is left to learn
        card = train_model(settings)
    assert card["sha256"] == train_model(replace(settings, output=tmp_path / "undisturbed"))["sha256"]
