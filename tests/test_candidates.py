"""Ways to a model: the one goes on that no kind of place speaks against."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from small import counts, movie_store
from tdenoise_pipeline.errors import Stopped
from tdenoise_pipeline.settings.config import TrainConfig
from tdenoise_pipeline.settings.results import SHIPPED
from tdenoise_pipeline.step_control import Control
from tdenoise_pipeline.train.train import train_model

from tdenoise.evaluation.places import KINDS, kinds_of_place
from tdenoise.network.checkpoint import BASE, read_card
from tdenoise.training.candidates import CANDIDATES, Measured, choose
from tdenoise.training.validation import Sums

NAMES = [candidate.name for candidate in CANDIDATES]
N_BLOCKS = 400


def measured(worse_in: dict[str, float], over_time: float = 0.0, seed: int = 0) -> Measured:
    """Errors of blocks, a hundred of each kind of place, whose differences scatter by 0.1."""
    rng = np.random.default_rng(seed)
    kinds = np.repeat(np.arange(len(KINDS)), N_BLOCKS // len(KINDS))
    noise = np.random.default_rng(99).exponential(64.0, N_BLOCKS)  # the same for all who look at these counts
    more = np.array([worse_in.get(name, 0.0) for name in KINDS])[kinds]
    weights = np.full(N_BLOCKS, 64.0)
    ones = np.ones(N_BLOCKS)
    contradiction = Sums(ones * (1.2 + over_time) + rng.normal(0, 0.1, N_BLOCKS), ones)
    return Measured(Sums(noise + more + rng.normal(0, 0.1, N_BLOCKS), weights), kinds, contradiction)


def test_of_candidates_that_are_equally_good_the_first_is_chosen() -> None:
    name, excess = choose({name: measured({}, seed=k) for k, name in enumerate(NAMES)})
    assert name == NAMES[0]
    assert set(excess[NAMES[0]]) == {*KINDS, "over time"}


@pytest.mark.parametrize("kind", KINDS)
def test_who_is_worse_in_one_kind_of_place_is_passed_over(kind: str) -> None:
    name, excess = choose({NAMES[0]: measured({kind: 0.1}), NAMES[1]: measured({}, seed=1)})
    assert name == NAMES[1]
    assert excess[NAMES[0]][kind] > 2.5 > excess[NAMES[1]][kind]


def test_who_is_contradicted_over_time_is_passed_over() -> None:
    name, _ = choose({NAMES[0]: measured({}, over_time=0.1), NAMES[1]: measured({}, seed=1)})
    assert name == NAMES[1]


def test_where_everyone_is_worse_somewhere_the_least_of_it_decides() -> None:
    bad = {"film": 0.3}
    name, _ = choose({NAMES[0]: measured({"edge": 1.0}), NAMES[1]: measured(bad, seed=1)})
    assert name == NAMES[1]


def test_kinds_of_place_are_told_from_a_noisy_mean() -> None:
    y, x = np.mgrid[:128, :128].astype(float)
    image = np.ones((128, 128))
    waves = [
        np.cos(2 * np.pi / 9 * (x * np.cos(a) + y * np.sin(a)))
        for a in (0.3, 0.3 + np.pi / 3, 0.3 - np.pi / 3)
    ]
    image[:64, :64] += 0.2 * np.sum(waves, axis=0)[:64, :64]
    image[64:, 64:] = np.where(x[64:, 64:] + 0.3 * y[64:, 64:] > 121, 1.6, 1.0)
    rng = np.random.default_rng(0)
    spectrum = np.fft.rfft2(rng.standard_normal((128, 128)))
    k = np.hypot(np.fft.fftfreq(128)[:, None], np.fft.rfftfreq(128))
    film = np.fft.irfft2(spectrum * np.exp(-(((k - 0.15) / 0.05) ** 2)), (128, 128))
    image[:64, 64:] += 0.15 * (film / film.std())[:64, 64:]
    kinds = kinds_of_place(rng.poisson(image * 100) / 100, 1 / 100)
    low, high = slice(12, 52), slice(76, 116)
    places = {
        "lattice": (low, low),
        "film": (low, high),
        "vacuum": (high, low),
        "edge": (high, slice(86, 98)),
    }
    for name, place in places.items():
        assert (kinds[place] == KINDS.index(name)).mean() > 0.6, name
    assert (kinds_of_place(rng.poisson(np.ones((96, 96)) * 50) / 50, 1 / 50) == KINDS.index("vacuum")).all()


def test_a_training_tries_all_candidates_and_goes_on_with_one(tmp_path: Path) -> None:
    movie = movie_store(tmp_path, counts((100, 48, 48)))
    # With far frames, which the base model has no weights for.
    config = TrainConfig(movie=(movie,), output=tmp_path / "model", steps=100, far_frames=True)
    stopping = Control()

    def stop_in_the_second(step: str, done: int, total: int) -> None:
        if done > 0.2 * total:
            stopping.stop.set()

    stopping.progress = stop_in_the_second  # type: ignore[method-assign]
    with pytest.raises(Stopped):
        train_model(config, stopping)
    names = sorted(p.name for p in (tmp_path / "model-partial").glob("*.safetensors"))
    assert names == ["candidate-0.safetensors", "candidate-1.safetensors"]
    card = train_model(config)
    told = card["metrics"]["candidates"]
    assert told["chosen"] in NAMES and set(told["worse_by"]) == set(NAMES)
    assert card["steps"] == 100
    records = [json.loads(line) for line in (tmp_path / "model" / "metrics.jsonl").read_text().splitlines()]
    assert {record["candidate"] for record in records} == set(NAMES)
    adapted = told["chosen"] != "from scratch"
    assert card["parent"] == (read_card(BASE)["sha256"] if adapted else None)
    assert not list((tmp_path / "model").glob("candidate*"))
    # Who names what to begin with gets that, and no comparison.
    assert (
        "candidates"
        not in train_model(
            TrainConfig(movie=(movie,), output=tmp_path / "named", steps=100, from_model=SHIPPED)
        )["metrics"]
    )
