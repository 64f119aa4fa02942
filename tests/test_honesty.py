"""What `evaluate` says, without a truth, of a movie that shows what the counts refute, or nothing at all."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from scipy.ndimage import gaussian_filter
from small import movie_store
from stores import denoised_store
from tdenoise_pipeline.evaluate import refutation
from tdenoise_pipeline.evaluate.evaluate import evaluate
from tdenoise_pipeline.evaluate.sentences import summary
from tdenoise_pipeline.settings.config import EvaluateConfig
from tdenoise_pipeline.store import store

from tdenoise.network.registry import scale_for
from tdenoise.network.split_blind import Architecture, SplitBlind
from tdenoise.noise.noise import NoiseStatistics
from tdenoise.training.contradiction import Contradiction
from tdenoise.training.training_movie import TrainingMovie
from tdenoise.training.validation import compare, mean_of

DOSE, N_FRAMES, SIZE = 2.0, 80, 72


def scene(*, without: int | None = None) -> np.ndarray:
    """A square lattice of columns, one of which may be missing."""
    y, x = np.mgrid[:SIZE, :SIZE]
    places = [(r, c) for r in range(12, SIZE - 8, 12) for c in range(12, SIZE - 8, 12)]
    image = np.ones((SIZE, SIZE))
    for number, (row, column) in enumerate(places):
        if number != without:
            image += 0.35 * np.exp(-((y - row) ** 2 + (x - column) ** 2) / (2 * 2.2**2))
    return image


@pytest.fixture(scope="module")
def movie(tmp_path_factory: pytest.TempPathFactory) -> store.Store:
    """Counts of a lattice with a vacancy that stays."""
    counts = np.random.default_rng(0).poisson(
        DOSE * np.broadcast_to(scene(without=7), (N_FRAMES, SIZE, SIZE))
    )
    return store.open_store(
        movie_store(tmp_path_factory.mktemp("movie"), counts.astype(np.uint8)), store.MOVIE
    )


def evaluated(movie: store.Store, shown: np.ndarray, folder: Path) -> dict:
    made = denoised_store(folder / "d.zarr", movie, np.broadcast_to(shown, movie.shape))
    return evaluate(EvaluateConfig(made.path, movie.path))


def test_a_vacancy_that_is_filled_is_named_and_the_truth_is_not(
    movie: store.Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    right = evaluated(movie, DOSE * scene(without=7), tmp_path / "right")
    assert right["refuted"]["n_places"] == 0 and not any("refute" in note for note in right["notes"])
    wrong = evaluated(movie, DOSE * scene(), tmp_path / "wrong")
    [first, *_] = wrong["refuted"]["places"]
    # The eighth of five in a row: the second row, the third column.
    assert np.hypot(first["row"] - 24, first["column"] - 36) < 3 and first["z"] < -5 and first["share"] < -0.1
    assert wrong["residual"]["variance"] == pytest.approx(1, abs=0.02), "the average does not show it"
    [note] = [note for note in wrong["notes"] if "refute" in note]
    assert "Do not trust" in note
    assert any(line.startswith("against the counts:") and "lower" in line for line in summary(wrong))
    # Of many places, only the clearest are kept one by one; all of them count.
    monkeypatch.setattr(refutation, "MAX_KEPT", 1)
    few = evaluate(EvaluateConfig(tmp_path / "wrong/d.zarr", movie.path))
    assert few["refuted"] == wrong["refuted"] | {"places": [first]} and wrong["refuted"]["n_places"] > 2


def test_the_share_of_the_signal_that_is_shown_is_known_without_the_truth(
    movie: store.Store, tmp_path: Path
) -> None:
    truth = DOSE * scene(without=7)
    for name, shown in (
        ("truth", truth),
        ("half", (truth + truth.mean()) / 2),
        ("blank", 0 * truth + truth.mean()),
    ):
        found = evaluated(movie, shown, tmp_path / name)["explained"]
        true = 1 - np.mean((shown - truth) ** 2) / truth.var()
        assert found["denoised"]["low"] < true < found["denoised"]["high"]
        assert found["denoised"]["high"] - found["denoised"]["low"] < 0.5
    assert abs(true) < 1e-9


def test_it_is_said_where_a_filter_does_as_well(movie: store.Store, tmp_path: Path) -> None:
    words = "No better than a filter"
    blank = evaluated(movie, np.full((SIZE, SIZE), DOSE * scene().mean()), tmp_path / "blank")
    assert any(words in note for note in blank["notes"])
    good = evaluated(movie, DOSE * scene(without=7), tmp_path / "good")
    assert not any(words in note for note in good["notes"])
    assert 0.3 < good["explained"]["gaussian"]["estimate"] < 1


def test_an_unsteady_beam_has_words_of_its_own(tmp_path: Path) -> None:
    levels = np.random.default_rng(1).uniform(0.7, 1.3, 48)
    clean = DOSE * levels[:, None, None] * scene()
    counts = np.random.default_rng(2).poisson(clean).astype(np.uint8)
    movie = store.open_store(movie_store(tmp_path / "movie", counts), store.MOVIE)
    assert movie.attributes["brightness"]["steady"] is False
    assert NoiseStatistics.from_json(movie.attributes["noise"]).is_poisson
    found = evaluated(movie, clean, tmp_path)
    assert any("The beam is not steady" in note for note in found["notes"])
    assert not any("motion" in note or "excess noise" in note for note in found["notes"])
    assert found["refuted"]["n_places"] == 0 and found["explained"]["denoised"]["estimate"] > 0.75


def test_counts_contradict_a_network_that_paints(movie: store.Store) -> None:
    """Of two networks without weights, one says the mean everywhere, one too much."""
    noise = NoiseStatistics.from_json(movie.attributes["noise"])
    small = replace(Architecture(), window=2, bins=(1, 1), widths=(4,), features=2)
    scale = scale_for(small, noise)
    flat = np.random.default_rng(0).poisson(DOSE, (60, 64, 64)).astype(np.uint8)
    known = TrainingMovie(flat, replace(scale, mean=DOSE), ())
    measured = []
    for bias in (0.0, 0.25):
        network = SplitBlind(small)
        for parameter in network.parameters():
            parameter.data.zero_()
        network.head.bias.data.fill_(bias)
        measured.append(Contradiction([known], "cpu")(network.requires_grad_(False)))
    assert 1 <= mean_of(measured[0]) < 1.4 < mean_of(measured[1])
    excess, error = compare(measured[1], measured[0])
    assert excess > 3 * error


def test_filters_know_the_weight_of_the_own_count() -> None:
    from tdenoise_pipeline.evaluate.explained_signal import _gaussian

    counts = np.zeros((9, 12, 12))
    for place in ((4, 6, 6), (0, 0, 0), (8, 11, 5)):
        moved = counts.copy()
        moved[place] = 1
        smooth, own = _gaussian(moved, (1.0, 0.7, 0.7))
        assert smooth[place] == pytest.approx(np.broadcast_to(own, counts.shape)[place])
    inner = gaussian_filter(np.pad(moved, 6), (1.0, 0.7, 0.7))
    assert inner.max() == pytest.approx(float(own.min()), rel=0.01)
