"""Comparing networks on held-out frames, and how much of an adaptation is kept."""

from __future__ import annotations

import copy
from pathlib import Path

import numpy as np
import pytest
import torch
from small import TINY, counts, movie_store, network
from tdenoise_pipeline.config import TrainConfig
from tdenoise_pipeline.train import train_model

from tdenoise.checkpoint import BASE, load_model
from tdenoise.held_out import HeldOut
from tdenoise.kinds import Network
from tdenoise.noise import Scale
from tdenoise.patches import TrainingMovie, hold_out
from tdenoise.train import TrainingSettings, TrainingState, turn_back


def held_out(seed: int) -> HeldOut:
    frames = counts((24, 32, 32), seed)
    movie = TrainingMovie(frames, Scale(2.0, 1.4, 0.4), hold_out(24, 0.5))
    return HeldOut([movie], TINY, "cpu", False)


def test_the_difference_of_two_networks_is_that_of_their_errors_and_its_error_is_right() -> None:
    one, other = network(seed=0), network(seed=1)
    found = []
    for seed in range(40):
        validation = held_out(seed)
        difference, error = validation.compare(one, other)
        assert difference == pytest.approx(validation(one) - validation(other), rel=1e-3, abs=1e-6)
        assert validation.compare(one, one) == (0.0, 0.0)
        found.append((difference, error))
    differences, errors = np.array(found).T
    # New noise changes the predictions as well, so it scatters a little more than the error of one set of frames.
    assert 0.7 < differences.std() / errors.mean() < 1.6


def adapted() -> tuple[TrainingState, dict[str, torch.Tensor]]:
    """A state whose best weights are not those that it began with."""
    given = network(seed=0).state_dict()
    state = TrainingState.start(TINY, TrainingSettings(), "cpu", given)
    state.best.load_state_dict(network(seed=1).state_dict())
    return state, given


@pytest.mark.parametrize(("error", "share"), [(0.0, 1.0), (0.01, 1.0), (0.07, 0.75), (0.3, 0.5), (1.0, 0.0)])
def test_the_weights_nearest_to_the_given_ones_that_are_no_worse_are_kept(error: float, share: float) -> None:
    state, given = adapted()
    best = copy.deepcopy(state.best.state_dict())
    whole = sum(float((best[k] - given[k]).square().sum()) for k in given)

    def compare(one: Network, other: Network) -> tuple[float, float]:
        """An error that is lowest at the best weights, and rises with the square of the way from there."""
        assert all(torch.equal(v, best[k]) for k, v in other.state_dict().items())
        way = sum(float((v - best[k]).square().sum()) for k, v in one.state_dict().items())
        return way / whole, error

    assert turn_back(state, given, compare) == share
    for name, value in state.best.state_dict().items():
        torch.testing.assert_close(value, given[name] + share * (best[name] - given[name]))


def test_of_a_movie_that_teaches_nothing_nothing_is_kept(tmp_path: Path) -> None:
    flat = np.random.default_rng(0).poisson(2.0, (30, 64, 64)).astype(np.uint8)
    movie = movie_store(tmp_path, flat)
    card = train_model(TrainConfig(movie=(movie,), output=tmp_path / "model", steps=20))
    assert card["metrics"]["share"] == 0 and card["best_step"] > 0
    kept, given = (load_model(folder).network.state_dict() for folder in (tmp_path / "model", BASE))
    assert all(torch.equal(kept[name], given[name]) for name in given)
