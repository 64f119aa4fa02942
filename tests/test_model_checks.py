"""Checks of a model: of the model that was used, blind where it must be, and complete."""

from __future__ import annotations

import json
from dataclasses import replace

import numpy as np
import pytest
import torch
from small import TINY, model_folder, network
from stores import denoised_store, movie_store
from tdenoise_pipeline.errors import InputError, Stopped
from tdenoise_pipeline.evaluate import model_checks
from tdenoise_pipeline.evaluate.estimates import noise_law
from tdenoise_pipeline.evaluate.evaluate import plain
from tdenoise_pipeline.evaluate.sentences import checks_in_words
from tdenoise_pipeline.settings.config import EvaluateConfig
from tdenoise_pipeline.step_control import Control

from tdenoise.evaluation.umse import single_image_error
from tdenoise.inference.denoising import denoise
from tdenoise.inference.tile import Tile
from tdenoise.network.checkpoint import read_card

SPOTS = np.array([[0.0, 1 / 12], [1 / 12, 0.0]])


def lattice_counts():
    rows, columns = np.indices((64, 72))
    clean = (
        1.5 + 0.5 * np.cos(2 * np.pi * rows / 12) * (columns > 30) + 0.5 * np.cos(2 * np.pi * columns / 12)
    )
    return np.random.default_rng(0).poisson(clean, (30, 64, 72)).astype(np.uint8)


@pytest.fixture(scope="module")
def pair(tmp_path_factory):
    folder = tmp_path_factory.mktemp("checks")
    movie = movie_store(folder / "m.zarr", lattice_counts())
    model_folder(folder / "model")
    made_by = read_card(folder / "model")["sha256"]
    denoised = denoised_store(folder / "d.zarr", movie, np.full((30, 64, 72), 1.5), model_id=made_by)
    return folder / "model", movie, denoised


@pytest.fixture(scope="module")
def found(pair):
    model, movie, denoised = pair
    checked = model_checks.open_checked(model, movie, denoised)
    return model_checks.check(checked, noise_law(movie), SPOTS, Control())


def test_all_checks_are_made_and_go_into_json(found):
    assert json.loads(json.dumps(plain(found), allow_nan=False))
    assert found["vacuum"]["std"] >= 0 and len(found["atoms"]["put_in"]) == len(model_checks.ATOMS)
    assert found["held_back"]["mse"]["low"] < found["held_back"]["mse"]["high"]
    assert found["single_image"]["n_windows"] > 1
    assert set(found["filters"]) == {"flat", "column"}
    assert all(filtered["own"] == 0 for filtered in found["filters"].values())
    words = checks_in_words(plain(found))
    assert len(words) >= 6
    without = checks_in_words(plain(found | {"atoms": None}))
    assert not any("no atoms" in line for line in words) and any("no atoms" in line for line in without)


def drifts(checked, pixels_per_frame):
    """The part with a scene that moves to the right, and a model that is told so."""
    steps = pixels_per_frame * np.arange(len(checked.counts))
    counts = np.stack(
        [np.roll(frame, step, axis=1) for frame, step in zip(checked.counts, steps, strict=True)]
    )
    return replace(checked, counts=counts, drift=np.stack([0.0 * steps, 1.0 * steps], axis=-1))


def test_places_are_where_the_part_shows_a_drifting_scene_at_all_times(pair):
    checked = drifts(model_checks.open_checked(*pair), 1)
    # Frame 15 of 30: the scene comes from 15 columns further left and goes on for 14.
    flat, columns = model_checks._places(checked, checked.counts, 12.0, 6)
    assert len(flat) and len(columns.sites)
    assert flat[:, 1].min() >= 15 + 12 and flat[:, 1].max() < 72 - 14 - 12
    assert columns.sites[:, 1].min() >= 15 + 7 and columns.sites[:, 1].max() < 72 - 14 - 7
    found = model_checks._filters(checked, SPOTS)
    assert 15 <= found["flat"]["pixel"][2] < 58 and 15 <= found["column"]["pixel"][2] < 58
    atoms = model_checks._atoms(checked, checked.denoise(checked.counts), SPOTS)
    assert all(probe["n_sites"] and np.isfinite(probe["recovered"]) for probe in atoms["put_in"])
    assert np.isfinite(atoms["flash"]["response"]).all()


def test_scene_that_leaves_the_part_is_not_probed(pair):
    checked = drifts(model_checks.open_checked(*pair), 3)
    found = model_checks.check(checked, noise_law(pair[1]), SPOTS, Control())
    assert found["atoms"] is None and found["filters"] == {} and found["vacuum"]
    assert json.loads(json.dumps(plain(found), allow_nan=False)) and checks_in_words(plain(found))


def test_filter_predicts_how_the_denoised_pixel_answers_to_a_count(pair):
    checked = model_checks.open_checked(*pair)
    filtered = model_checks.filter_at(checked, (15, 20, 30))
    changed = checked.counts.astype(np.float32)
    changed[16, 22, 31] += 0.01
    moved = (
        checked.denoise(changed)[15, 20, 30] - checked.denoise(checked.counts.astype(np.float32))[15, 20, 30]
    )
    assert moved == pytest.approx(0.01 * filtered.weights[16, 22, 31], rel=0.05, abs=1e-6)


def with_bad_pixels(checked):
    """The part with a hot and a dead pixel, in an odd size, of a scene that moves."""
    checked = drifts(checked, 1)
    counts = checked.counts[:, :63, :71].copy()
    counts[:, 21, 31], counts[:, 40, 5] = 200, 0
    levels = np.full(counts.shape[1:], np.nan, np.float32)
    levels[21, 31], levels[40, 5] = 1.4, 1.6
    return replace(checked, counts=counts, stand_ins=levels)


def test_what_filters_are_taken_of_is_the_denoised_frame(pair):
    checked = with_bad_pixels(model_checks.open_checked(*pair))
    denoised = checked.denoise(checked.counts)
    for frame in (0, 15, 29):
        predicted = checked.predict(frame)(torch.from_numpy(checked.counts.astype(np.float32)))
        np.testing.assert_allclose(predicted[:63, :71].numpy(), denoised[frame], rtol=1e-4, atol=1e-4)


def test_filter_gives_no_weight_to_bad_pixels(pair):
    checked = with_bad_pixels(model_checks.open_checked(*pair))
    weights = model_checks.filter_at(checked, (15, 22, 30)).weights
    assert weights[14, 21, 30] != 0
    assert not weights[:, 21, 31].any() and not weights[:, 40, 5].any()


def test_no_check_depends_on_what_bad_pixels_count(pair):
    hot = with_bad_pixels(model_checks.open_checked(*pair))
    counts = hot.counts.copy()
    counts[:, 21, 31] = counts[:, 40, 5] = 1
    same = replace(hot, counts=counts)
    assert model_checks._vacuum(hot) == model_checks._vacuum(same)
    filters = [json.dumps(plain(model_checks._filters(each, SPOTS))) for each in (hot, same)]
    assert filters[0] == filters[1]
    errors = [model_checks._held_back(each)["mse"]["estimate"] for each in (hot, same)]
    assert errors[0] == pytest.approx(errors[1], abs=0.1)  # electrons are dealt anew
    raw, expected = (np.array(model_checks._ring_correlation(each, SPOTS)["raw"]) for each in (hot, same))
    np.testing.assert_allclose(raw, expected, atol=0.1)


def test_half_size_images_are_denoised_along_half_the_drift(pair):
    checked = drifts(model_checks.open_checked(*pair), 2)
    network, n_frames = checked.network, 2 * checked.network.architecture.window + 1

    def error(drift):
        def middle(window):
            tile, frame = Tile.whole(window.shape), range(n_frames // 2, n_frames // 2 + 1)
            return next(denoise(network, window, tile, checked.scale, frame, ensemble=1, drift=drift))

        starts = np.linspace(0, len(checked.counts) - n_frames, model_checks.SINGLE_IMAGES).round()
        windows = [checked.counts[int(start) :][:n_frames] for start in starts]
        return single_image_error(middle, windows, 1.0).umse

    # At an even speed, all windows move alike.
    steps = np.stack([np.zeros(n_frames), np.arange(n_frames)], axis=-1)
    found = model_checks._single_image(checked)
    assert found["umse"] == pytest.approx(error(steps), rel=1e-6)
    assert found["umse"] != pytest.approx(error(None), rel=1e-3)


def test_no_error_of_half_size_images_is_told_where_pixels_are_bad(pair):
    checked = with_bad_pixels(model_checks.open_checked(*pair))
    assert model_checks._single_image(checked) is None
    sound = replace(checked, stand_ins=np.full_like(checked.stand_ins, np.nan))
    assert model_checks._single_image(sound)["n_windows"] > 1


def test_share_of_the_dose_is_denoised_at_its_own_level(pair):
    checked = model_checks.open_checked(*pair)
    half = checked.denoise(checked.counts / 2, 0.5)
    assert half.mean() == pytest.approx(checked.denoise(checked.counts).mean() / 2, rel=0.2)


def test_error_on_held_back_electrons_is_that_of_a_known_prediction(pair, monkeypatch):
    checked = model_checks.open_checked(*pair)
    level = float(checked.counts.mean())
    monkeypatch.setattr(
        model_checks.Checked, "denoise", lambda self, counts, share=1.0: np.full(counts.shape, share * level)
    )
    mse = model_checks._held_back(checked)["mse"]
    truth = 0.5 * 0.25 + 0.5 * 0.25 * (72 - 31) / 72  # variance of the two waves
    assert mse["low"] < truth < mse["high"] and mse["resolvable"]


def test_another_model_is_refused(pair, tmp_path):
    _, movie, denoised = pair
    model_folder(tmp_path / "other", network(replace(TINY, features=3)))
    with pytest.raises(InputError, match="is not the model that made"):
        model_checks.open_checked(tmp_path / "other", movie, denoised)
    with pytest.raises(InputError):
        model_checks.open_checked(tmp_path / "none", movie, denoised)


def test_counts_that_are_no_electrons_are_not_dealt_to_halves(pair):
    model, movie, denoised = pair
    checked = model_checks.open_checked(model, movie, denoised)
    law = replace(noise_law(movie), estimator="temporal")
    found = model_checks.check(checked, law, SPOTS, Control())
    assert found["ring_correlation"] is found["vacuum"] is found["atoms"] is found["held_back"] is None
    assert found["filters"] and checks_in_words(plain(found))


def test_checks_stop_when_asked_to(pair):
    control = Control()
    control.stop.set()
    with pytest.raises(Stopped):
        model_checks.check(model_checks.open_checked(*pair), noise_law(pair[1]), SPOTS, control)


def test_evaluation_with_a_model_holds_its_checks(pair):
    from tdenoise_pipeline.evaluate.evaluate import evaluate

    model, movie, denoised = pair
    result = evaluate(EvaluateConfig(denoised.path, movie.path, model=model))
    assert result["model_checks"]["size"] == [64, 72]
    assert evaluate(EvaluateConfig(denoised.path, movie.path))["model_checks"] is None
