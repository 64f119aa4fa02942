"""Evaluation: right without a truth where it can be known, and deaf to files that are not what they claim."""

from __future__ import annotations

import json
import pickle
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from scipy.ndimage import gaussian_filter
from stores import blind_gaussian, denoised_store, movie_store, truth_file
from tdenoise_pipeline.errors import InputError, Stopped, UsageError
from tdenoise_pipeline.evaluate import evaluate as evaluation
from tdenoise_pipeline.evaluate.estimates import headline
from tdenoise_pipeline.evaluate.evaluate import evaluate
from tdenoise_pipeline.evaluate.sentences import _contradictions, events_of, summary
from tdenoise_pipeline.evaluate.truth import check_truth, load_truth
from tdenoise_pipeline.inputs import paired
from tdenoise_pipeline.settings.config import EvaluateConfig
from tdenoise_pipeline.step_control import Control

from tdenoise.evaluation import metrics
from tdenoise.simulation.nanoparticle import simulate
from tdenoise.simulation.particle import SimulationSettings

SCENE = SimulationSettings(n_frames=28, height=72, width=64, dose=2.0, seed=5, dwell_frames=(4.0, 12.0))
SIGMA = (1.0, 1.0, 1.0)


@pytest.fixture(scope="module")
def scene():
    return simulate(SCENE)


@pytest.fixture(scope="module")
def movie(scene, tmp_path_factory):
    return movie_store(tmp_path_factory.mktemp("movie") / "movie.zarr", scene.counts)


@pytest.fixture(scope="module")
def truth(scene, tmp_path_factory):
    return truth_file(tmp_path_factory.mktemp("truth") / "truth.npz", scene)


@pytest.fixture(scope="module")
def blind(scene, movie, tmp_path_factory):
    path = tmp_path_factory.mktemp("blind") / "denoised.zarr"
    return denoised_store(path, movie, blind_gaussian(scene.counts, SIGMA), held_out=tuple(range(10, 16)))


@pytest.fixture(scope="module")
def measured(movie, blind, truth):
    return evaluate(EvaluateConfig(blind.path, movie.path, truth, baseline=True))


def line_of(result: dict, name: str) -> str:
    """The line of the summary that begins with a name."""
    [line] = [line for line in summary(result) if line.startswith(f"{name}: ")]
    return line


# Without truth


def test_error_of_a_blind_prediction_is_known_without_the_truth(measured):
    assert measured["estimator"] == "poisson" and measured["gain"] == 1
    assert measured["mse"]["resolvable"] and measured["mse"]["agrees"]
    assert measured["mse"]["high"] - measured["mse"]["low"] < measured["mse"]["true"]
    assert measured["nmse"]["estimate"] == pytest.approx(measured["mse"]["estimate"] / measured["mean"])


def test_error_of_a_prediction_that_saw_its_pixel_is_underrated(scene, movie, truth, tmp_path):
    seen = denoised_store(tmp_path / "d.zarr", movie, gaussian_filter(scene.counts.astype(float), SIGMA))
    result = evaluate(EvaluateConfig(seen.path, movie.path, truth))
    assert not result["mse"]["agrees"] and result["mse"]["high"] < result["mse"]["true"]


def test_perfect_prediction_is_called_not_resolvable(scene, movie, truth, tmp_path):
    perfect = denoised_store(tmp_path / "d.zarr", movie, 1.0001 * SCENE.dose * scene.clean)
    result = evaluate(EvaluateConfig(perfect.path, movie.path, truth))
    assert not result["mse"]["resolvable"] and result["mse"]["agrees"]
    assert "not resolvable" in line_of(result, "error")
    assert result["psnr"]["all"] > 70 and result["vacuum_std"] < 1e-6
    assert max(map(abs, result["events"]["denoised"]["bleed"].values())) < 0.01
    assert result["residual"]["white"] and not result["lattice"]["removed"]


@pytest.mark.parametrize("n_frames", [3, 8, 9, 17, 20])
def test_slabs_leave_no_trace_in_the_estimates(scene, tmp_path, n_frames):
    counts, prediction = scene.counts[:n_frames], blind_gaussian(scene.counts[:n_frames], SIGMA)
    prediction = prediction.astype(np.float32)
    movie = movie_store(tmp_path / "m.zarr", counts)
    result = evaluate(EvaluateConfig(denoised_store(tmp_path / "d.zarr", movie, prediction).path, movie.path))
    assert result["mean"] == pytest.approx(counts.mean())
    assert result["mse"]["estimate"] == pytest.approx(metrics.unbiased_mse_terms(counts, prediction).mean())
    assert result["mse"]["n_pixels"] == counts.size
    published = metrics.temporal_mse_terms(counts, prediction)
    assert result["umse"]["estimate"] == pytest.approx(published.mean())
    assert result["umse"]["n_pixels"] == published.size

    foreign = movie_store(tmp_path / "m2.zarr", 3 * counts.astype(np.uint16))  # Fano factor 3
    pair = EvaluateConfig(denoised_store(tmp_path / "d2.zarr", foreign, 3 * prediction).path, foreign.path)
    result = evaluate(pair)
    temporal = metrics.temporal_mse_terms(3 * counts.astype(float), 3 * prediction)
    assert result["estimator"] == "temporal"
    assert result["mse"]["estimate"] == pytest.approx(temporal.mean(), rel=1e-5)
    assert result["mse"]["n_pixels"] == temporal.size


def test_gain_is_used_where_it_is_known_and_not_needed_where_it_is_not(scene, truth, tmp_path):
    bright = replace(SCENE, counts_per_electron=20.0)
    simulation = simulate(bright)
    prediction = blind_gaussian(simulation.counts, SIGMA)
    file = truth_file(tmp_path / "truth.npz", simulation)
    results = {}
    for name, settings in {"known": {"counts_per_electron": 20.0}, "unknown": {}}.items():
        movie = movie_store(tmp_path / f"{name}.zarr", simulation.counts, **settings)
        denoised = denoised_store(tmp_path / f"{name}-d.zarr", movie, prediction)
        results[name] = evaluate(EvaluateConfig(denoised.path, movie.path, file))
    assert (results["known"]["estimator"], results["known"]["gain"]) == ("poisson", 20.0)
    assert results["unknown"]["estimator"] == "temporal"
    assert any("neighbouring frames" in note for note in results["unknown"]["notes"])
    for result in results.values():
        assert result["mse"]["agrees"] and result["mse"]["resolvable"]
        assert result["residual"]["variance"] == pytest.approx(1.03, abs=0.03)


def test_held_out_frames_are_measured_apart(scene, movie, tmp_path):
    prediction = blind_gaussian(scene.counts, SIGMA)
    prediction[[7, 8, 20]] += 1.0
    denoised = denoised_store(tmp_path / "d.zarr", movie, prediction, held_out=(7, 8, 20))
    held_out = evaluate(EvaluateConfig(denoised.path, movie.path))["held_out"]
    terms = metrics.unbiased_mse_terms(scene.counts[[7, 8, 20]], prediction[[7, 8, 20]])
    assert held_out["n_frames"] == 3 and held_out["mse"]["n_pixels"] == terms.size
    assert held_out["mse"]["estimate"] == pytest.approx(terms.mean(), rel=1e-4)


def test_held_out_error_is_compared_with_its_own_truth(measured):
    assert measured["held_out"]["n_frames"] == 6
    assert measured["held_out"]["mse"]["agrees"]
    assert measured["held_out"]["mse"]["true"] != measured["mse"]["true"]


@pytest.mark.parametrize(
    ("share", "offset"), [(0.1, 0.5), (0.1, 0.0)]
)  # only with an offset is it above zero
def test_model_that_learnt_noise_by_heart_is_judged_by_its_held_out_frames(
    scene, movie, truth, tmp_path, share, offset
):
    held_out = list(range(8, 20))
    prediction = blind_gaussian(scene.counts, SIGMA) + offset
    trained = np.delete(np.arange(len(prediction)), held_out)
    # As an overfitted network does: the noise of the frames it was trained on comes back in its prediction.
    prediction[trained] += share * (scene.counts - SCENE.dose * scene.clean.astype(float))[trained]
    denoised = denoised_store(tmp_path / "d.zarr", movie, prediction, held_out=held_out)
    result = evaluate(EvaluateConfig(denoised.path, movie.path, truth))
    assert not result["all_frames"]["mse"]["agrees"]
    assert (result["all_frames"]["mse"]["high"] < 0) == (offset == 0)
    assert result["frames"] == "held_out" and result["mse"]["agrees"]
    assert all(result[name] == result["held_out"][name] for name in ("mse", "nmse"))
    true = np.mean((prediction - SCENE.dose * scene.clean.astype(float))[held_out] ** 2)
    assert result["mse"]["true"] == pytest.approx(true, rel=1e-3)
    assert any("by heart" in note for note in result["notes"])
    assert line_of(result, "error, held-out frames") and line_of(result, "all frames (28)")


def test_all_frames_are_stated_where_the_held_out_ones_agree(measured):
    assert measured["frames"] == "all" and measured["all_frames"]["n_frames"] == 28
    assert all(measured[name] == measured["all_frames"][name] for name in ("mse", "nmse"))
    assert not any("by heart" in note or "easier" in note for note in measured["notes"])


def of_frames(estimate: float, half_width: float) -> dict[str, object]:
    limits = {"estimate": estimate, "low": estimate - half_width, "high": estimate + half_width}
    return {"mse": limits, "nmse": None}


@pytest.mark.parametrize(
    ("all_frames", "held_out", "stated", "words"),
    [
        (of_frames(1.0, 0.3), of_frames(1.4, 0.4), "all", None),
        (of_frames(1.0, 0.3), of_frames(1.6, 0.4), "held_out", "clearly smaller than that of the held-out"),
        (of_frames(-1.0, 0.3), of_frames(-0.9, 1.0), "held_out", "below zero. The stated error"),
        (of_frames(-1.0, 0.3), {"mse": None}, "all", "The size of the error is unknown"),
        (of_frames(-1.0, 0.3), None, "all", "The size of the error is unknown"),
        (
            of_frames(-1.0, 0.3),
            of_frames(-1.0, 0.5),
            "held_out",
            "their noise differs from the measured noise",
        ),
        # Of frames that happen to be easy a smaller error is true, but not of the movie.
        (of_frames(1.0, 0.3), of_frames(0.2, 0.4), "all", "do not represent the movie"),
        ({"mse": None, "nmse": None}, {"mse": None}, "all", None),
    ],
)
def test_error_is_stated_of_the_frames_that_can_be_believed(all_frames, held_out, stated, words):
    assert headline(all_frames, held_out)["frames"] == stated
    said = _contradictions(all_frames, held_out)
    assert words in " ".join(said) if words else said == []


def test_true_error_is_that_of_the_frames_of_the_estimate(scene, tmp_path):
    bright = simulate(replace(SCENE, counts_per_electron=20.0))
    movie = movie_store(tmp_path / "m.zarr", bright.counts)  # gain unknown: no estimate for the end frames
    prediction = blind_gaussian(bright.counts, SIGMA)
    prediction[[0, -1]] += 1000
    denoised = denoised_store(tmp_path / "d.zarr", movie, prediction, held_out=(0, 1, 2))
    file = truth_file(tmp_path / "truth.npz", bright)
    result = evaluate(EvaluateConfig(denoised.path, movie.path, file))
    assert result["estimator"] == "temporal"
    assert result["all_frames"]["n_frames"] == 26 and result["held_out"]["n_frames"] == 2
    assert result["mse"]["agrees"] and result["held_out"]["mse"]["agrees"]


@pytest.mark.parametrize(
    ("trained", "words"),
    [
        ({}, "It is not known whether the model has seen these frames"),
        ({"trained_on_this": None}, "It is not known whether the model has seen these frames"),
        ({"trained_on_this": False}, "was not trained on this movie"),
        ({"trained_on_this": True}, "was trained on this movie"),
    ],
)
def test_frames_are_called_unseen_only_if_that_is_known(movie, blind, monkeypatch, trained, words):
    attributes = {**blind.attributes, "held_out_frames": [], **trained}
    pair = movie, replace(blind, attributes=attributes)
    monkeypatch.setattr(evaluation, "open_pair", lambda *paths: pair)
    notes = evaluate(EvaluateConfig(blind.path, movie.path))["notes"]
    assert any(words in note for note in notes)
    assert any("unseen" in note for note in notes) == (trained == {"trained_on_this": False})


def test_noise_below_that_of_electrons_is_pointed_out(scene, tmp_path):
    rng = np.random.default_rng(0)
    counts = rng.binomial(50, np.full(scene.counts.shape, 0.04))  # Fano factor 0.96
    movie = movie_store(tmp_path / "m.zarr", counts.astype(np.uint8))
    denoised = denoised_store(tmp_path / "d.zarr", movie, np.full(counts.shape, 2.0))
    result = evaluate(EvaluateConfig(denoised.path, movie.path))
    assert result["estimator"] == "poisson"
    assert any("differ less than single electrons" in note for note in result["notes"])


def test_lattice_in_the_residual_is_found(tmp_path):
    # A field of ten lattice planes: in a smaller one, spots fill the rings with which they are compared.
    clean = 4 * simulate(replace(SCENE, height=160, width=160)).clean.astype(np.float64)
    movie = movie_store(tmp_path / "m.zarr", np.random.default_rng(0).poisson(clean).astype(np.uint8))
    results = {}
    for name, prediction in {"good": clean, "washed out": gaussian_filter(clean, (0, 5, 5))}.items():
        denoised = denoised_store(tmp_path / name, movie, prediction)
        results[name] = evaluate(EvaluateConfig(denoised.path, movie.path))
    lattice = results["washed out"]["lattice"]
    assert lattice["removed"] and lattice["amplitude_lost"] > 0.3
    assert not results["washed out"]["residual"]["white"]
    assert any("lattice's amplitude was removed" in line for line in summary(results["washed out"]))
    assert not results["good"]["lattice"]["removed"] and results["good"]["residual"]["white"]


# With truth


def test_psnr_is_that_of_the_definition(scene, measured):
    prediction = blind_gaussian(scene.counts, SIGMA) / SCENE.dose
    errors = (prediction - scene.clean) ** 2
    peak = float(np.ptp(scene.clean))
    expected = {
        "all": errors.mean(),
        "particle": errors[:, scene.particle_mask].mean(),
        "changing": errors[:, scene.changing_mask].mean(),
    }
    for name, error in expected.items():
        assert measured["psnr"][name] == pytest.approx(10 * np.log10(peak**2 / error), abs=0.01)
    noisy = 10 * np.log10(peak**2 / np.mean((scene.counts / SCENE.dose - scene.clean) ** 2))
    assert measured["psnr_noisy"]["all"] == pytest.approx(noisy, abs=0.01)
    spread = prediction[:, scene.vacuum_mask].std()
    assert measured["vacuum_std"] == pytest.approx(spread, rel=0.01)
    assert measured["mse"]["true"] == pytest.approx(errors.mean() * SCENE.dose**2, rel=0.01)


def test_events_are_reported_beside_their_limit_and_filters(measured):
    of = events_of(measured)
    assert list(of) == ["ideal observer", "denoised", "best 3D Gaussian", "9-frame moving average"]
    for found in of.values():
        assert list(found["bleed"]) == ["-4", "-3", "-2", "-1", "0", "+1", "+2", "+3", "+4"]
        assert 0.5 < found["auc"] <= of["ideal observer"]["auc"] + 0.1  # of few frames
    # Nine frames smear an event over more frames than a Gaussian of one frame does.
    smeared = of["9-frame moving average"]["bleed"]["-2"], of["denoised"]["bleed"]["-2"]
    assert smeared[0] > smeared[1] + 0.05
    assert 0 < measured["n_events_isolated"] <= measured["n_events"]
    assert measured["baseline"]["psnr"]["all"] > measured["psnr"]["all"] > measured["psnr_noisy"]["all"]
    limit = measured["events"]["limit"]
    assert limit["bleed_with_mixed_frame"]["0"] < limit["bleed"]["0"] < 0.5


def test_error_inside_regions_is_known_without_the_truth(measured):
    assert list(measured["regions"]) == ["particle", "changing"]
    for region in measured["regions"].values():
        assert (
            region["mse"]["agrees"] and region["mse"]["n_pixels"] < measured["all_frames"]["mse"]["n_pixels"]
        )


def test_prediction_that_has_seen_its_pixel_has_no_estimate(scene, movie, truth, tmp_path):
    seen = denoised_store(
        tmp_path / "d.zarr", movie, blind_gaussian(scene.counts, SIGMA), blind_radius="seen"
    )
    result = evaluate(EvaluateConfig(seen.path, movie.path, truth))
    assert result["mse"] is result["umse"] is result["regions"]["particle"]["mse"] is None
    assert "sees the pixels" in line_of(result, "error") and not result["blind"]


def test_result_is_json_without_nan(measured, movie, blind):
    for result in (measured, evaluate(EvaluateConfig(blind.path, movie.path))):
        assert json.loads(json.dumps(result, allow_nan=False)) == result
        assert summary(result)


def test_quantised_truth_is_understood(scene, movie, blind, measured, tmp_path):
    scale = np.float32(0.004)
    code = np.round(scene.clean / scale).astype(np.uint16)
    file = truth_file(
        tmp_path / "t.npz", scene, clean=None, clean_q=code, clean_scale=scale, clean_offset=np.float32(0)
    )
    result = evaluate(EvaluateConfig(blind.path, movie.path, file))
    assert result["psnr"]["all"] == pytest.approx(measured["psnr"]["all"], abs=0.05)


@pytest.mark.parametrize("dose", [0.1, 2.0])
def test_hot_pixels_do_not_make_a_truth_another_movies(dose, tmp_path):
    scene = simulate(replace(SCENE, dose=dose))
    counts = scene.counts.astype(np.uint16)
    counts[:, [3, 30, 60], [5, 40, 63]] = 300
    movie = movie_store(tmp_path / "m.zarr", counts, keep_defects=True)
    assert abs(movie.attributes["mean"] / (dose * scene.clean.mean()) - 1) > 0.08
    assert load_truth(truth_file(tmp_path / "t.npz", scene), movie).dose == dose
    for wrong in (0.9 * dose, 1.1 * dose):
        with pytest.raises(InputError, match="another movie"):
            load_truth(truth_file(tmp_path / "t.npz", scene, attrs=attrs(wrong)), movie)


# What is refused


def test_denoised_movie_of_another_movie_is_refused(scene, blind, tmp_path):
    other = movie_store(tmp_path / "other.zarr", scene.counts[::-1].copy())
    with pytest.raises(InputError, match="another movie"):
        evaluate(EvaluateConfig(blind.path, other.path))


def test_baseline_without_truth_is_refused(movie, blind):
    with pytest.raises(UsageError, match="--truth"):
        evaluate(EvaluateConfig(blind.path, movie.path, baseline=True))


def test_store_with_a_lost_shard_is_refused(movie, blind, tmp_path):
    shutil.copytree(blind.path, tmp_path / "d.zarr")
    shutil.rmtree(tmp_path / "d.zarr" / "denoised" / "c")
    with pytest.raises(InputError, match="is missing"):
        evaluate(EvaluateConfig(tmp_path / "d.zarr", movie.path))


def test_damaged_shard_is_refused(movie, blind, tmp_path):
    shutil.copytree(blind.path, tmp_path / "d.zarr")
    file = next(f for f in (tmp_path / "d.zarr" / "denoised" / "c").rglob("*") if f.is_file())
    content = bytearray(file.read_bytes())
    content[100] ^= 0x10
    file.write_bytes(content)
    with pytest.raises(InputError, match="verify"):
        evaluate(EvaluateConfig(tmp_path / "d.zarr", movie.path))


def attrs(dose: object) -> np.ndarray:
    return np.array(json.dumps({"noise": [{"key": "counts", "dose": dose}]}))


HOSTILE = {
    "no clean movie": ({"clean": None}, "clean_q"),
    "no mask": ({"vacuum_mask": None}, "vacuum_mask"),
    "no events": ({"events": None}, "events"),
    "no attrs": ({"attrs": None}, "attrs"),
    "a pickled object": ({"events": np.array([{"a": 1}], dtype=object)}, "events"),
    "a pickled attrs": ({"attrs": np.array({"noise": []}, dtype=object)}, "attrs"),
    "another length": ({"clean": np.ones((4, 72, 64), np.float16)}, "4x72x64"),
    "another mask": ({"particle_mask": np.ones((3, 3), bool)}, "particle_mask"),
    "NaN": ({"clean": np.full((28, 72, 64), np.nan, np.float16)}, "NaN"),
    "an unknown column": ({"events": np.array([[3, 1e6, 0, 1]], np.float32)}, "columns"),
    "no occupancies": ({"col_occ": None}, "col_occ"),
    "occupancies of other columns": ({"col_n_full": np.array([3])}, "different numbers of columns"),
    "a negative column": ({"events": np.array([[3, -5, 0, 1]], np.float32)}, "columns"),
    "a foreign dose": ({"attrs": attrs(0.5)}, "another movie"),
    "a dose of zero": ({"attrs": attrs(0)}, "dose"),
    "a dose in words": ({"attrs": attrs("much")}, "much"),
    "attrs that are no JSON": ({"attrs": np.array("{")}, "readable"),
    "attrs without doses": ({"attrs": np.array("[]")}, "doses"),
}


@pytest.mark.parametrize("name", HOSTILE)
def test_truth_is_refused_that_holds(name, scene, movie, blind, tmp_path):
    changes, message = HOSTILE[name]
    file = truth_file(tmp_path / "truth.npz", scene, **changes)
    with pytest.raises(InputError, match=message):
        evaluate(EvaluateConfig(blind.path, movie.path, file))


@pytest.mark.parametrize("content", ["missing", "text", "array", "pickle", "cut"])
def test_truth_that_is_no_file_of_arrays_is_refused(content, truth, movie, blind, tmp_path):
    file = tmp_path / "truth.npz"
    if content == "text":
        file.write_text("no arrays")
    elif content == "array":
        with file.open("wb") as out:
            np.save(out, np.zeros(3))
    elif content == "pickle":
        file.write_bytes(pickle.dumps({"clean": 1}))
    elif content == "cut":
        file.write_bytes(Path(truth).read_bytes()[:-2000])
    with pytest.raises(InputError, match=r"truth\.npz"):
        evaluate(EvaluateConfig(blind.path, movie.path, file))


SEEN_BY_CHECK = [
    name
    for name in HOSTILE
    if name
    not in ("NaN", "an unknown column", "a negative column", "a foreign dose", "occupancies of other columns")
]


@pytest.mark.parametrize("name", SEEN_BY_CHECK)
def test_truth_is_refused_before_hours_of_work_that_holds(name, scene, tmp_path):
    changes, message = HOSTILE[name]
    with pytest.raises(InputError, match=message):
        check_truth(truth_file(tmp_path / "truth.npz", scene, **changes), scene.counts.shape)


def test_check_of_a_truth_reads_no_movie(scene, truth, tmp_path, monkeypatch):
    read = []
    original = np.lib.npyio.NpzFile.__getitem__
    monkeypatch.setattr(
        np.lib.npyio.NpzFile, "__getitem__", lambda file, name: (read.append(name), original(file, name))[1]
    )
    check_truth(truth, scene.counts.shape)
    assert read == ["attrs"]
    np.save(tmp_path / "single.npy", scene.clean)
    for file, message in {"single.npy": "single array", "none.npz": "no such file"}.items():
        with pytest.raises(InputError, match=message):
            check_truth(tmp_path / file, scene.counts.shape)
    with pytest.raises(InputError, match="28x72x64"):
        check_truth(truth, (28, 72, 65))


def test_evaluation_stops_when_asked_to(movie, blind):
    control = Control()
    control.stop.set()
    with pytest.raises(Stopped):
        evaluate(EvaluateConfig(blind.path, movie.path), control)


def test_large_frames_give_the_same_figures_from_shorter_slabs(movie, blind, measured, monkeypatch):
    monkeypatch.setattr(paired, "SLAB_PIXELS", 1)
    result = evaluate(EvaluateConfig(blind.path, movie.path))
    for name in ("mse", "umse"):
        assert result[name]["estimate"] == pytest.approx(measured[name]["estimate"])
        assert result[name]["n_pixels"] == measured[name]["n_pixels"]
    assert result["residual"]["variance"] == pytest.approx(measured["residual"]["variance"], rel=1e-3)
