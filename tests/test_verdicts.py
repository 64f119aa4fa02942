"""Verdicts: plain words, the worst first, and never a confident one from a figure that cannot be one."""

from __future__ import annotations

import copy
from typing import Any

import numpy as np
import pytest
from stores import blind_gaussian, denoised_store, movie_store
from tdenoise_pipeline.evaluate.evaluate import measure
from tdenoise_pipeline.evaluate.training import Training, training_in_words
from tdenoise_pipeline.evaluate.verdict import Recording
from tdenoise_pipeline.evaluate.verdict_loss import loss
from tdenoise_pipeline.evaluate.verdict_next import next_step
from tdenoise_pipeline.evaluate.verdict_trust import trust
from tdenoise_pipeline.evaluate.verdicts import verdicts
from tdenoise_pipeline.settings.config import EvaluateConfig

CALIBRATED = Recording(frame_time_s=0.025, pixel_size_nm=0.014)
PLACE = {"frames": [0, 8], "size": "column", "row": 4, "column": 9, "z": 7.0, "share": 0.4, "amount": 1.0}
PLACE |= {"chance": 1e-6}


def estimate(value: float, half: float, **others: Any) -> dict[str, Any]:
    return {"estimate": value, "low": value - half, "high": value + half, **others}


def atoms(columns: float, recovered: float, auc: float, n_sites: int = 6) -> dict[str, Any]:
    return {
        "columns": columns,
        "recovered": recovered,
        "auc": auc,
        "n_sites": n_sites,
        "strength": 1,
        "index": 2,
    }


def residual(white: bool | None, largest: float) -> dict[str, Any]:
    lags = {"x": [largest, 0.0], "y": [0.0, None], "t": 0.0}
    return {
        "white": white,
        "largest": abs(largest),
        "bound": 0.0009,
        "limit": 0.0018,
        "autocorrelation": lags,
    }


def good() -> Any:
    """An evaluation against which nothing speaks."""
    error = estimate(0.01, 0.004, resolvable=True, n_pixels=10**6)
    return {
        "shape": [200, 128, 128],
        "blind": True,
        "estimator": "poisson",
        "nmse": error,
        "all_frames": {"mse": error, "nmse": error, "n_frames": 200},
        "held_out": None,
        "explained": {
            "denoised": estimate(0.9, 0.05),
            "gaussian": estimate(0.8, 0.05),
            "over_filter": estimate(0.1, 0.04),
        },
        "refuted": {"n_places": 0, "n_missing": 0, "places": [], "largest_z": 3.0, "corner": [0, 0]},
        "evidence": {"misfit_sd": 1.0, "misfit_far": 0.003, "n_windows": 5000},
        "knowable": {
            "plane_distance_pixels": 14.0,
            "n_columns": 60.0,
            "told_after_frames": {"whole_column": 8, "half_column": 23, "quarter_column": None},
            "dose_for_dated_column": 1.2,
        },
        "model_checks": {
            "frames": [76, 124],
            "corner": [0, 0],
            "size": [128, 128],
            "vacuum": {"std": 0.004, "fringes": 0.0},
            "atoms": {
                "dwell_frames": 8,
                "put_in": [atoms(0.5, 0.8, 0.95), atoms(1, 0.95, 0.99), atoms(2, 0.97, 1.0)],
                "flash": {"offsets": [-1, 0, 1], "response": [0.1, 0.4, 0.1]},
            },
        },
        "residual": residual(True, 0.0013),
        "lattice": {"ratio": 1.0, "n_spots": 6, "removed": False, "noise_kept": False, "amplitude_lost": 0.0},
        "level": {"ratio": 1.0, "worst_frame": 3, "worst_ratio": 1.001, "worst_z": 2.0, "kept": True},
        "brightness": {"steady": True, "lowest": 1.0, "highest": 1.0, "flicker": 0.0},
    }


def changed(*path: str, to: Any) -> Any:
    """The good evaluation with one value replaced."""
    result = copy.deepcopy(good())
    inner = result
    for key in path[:-1]:
        inner = inner[key]
    inner[path[-1]] = to
    return result


def words(verdict: Any) -> str:
    """All that a verdict says."""
    return " ".join([verdict.headline, verdict.detail, *(f.text for f in verdict.findings)])


def test_a_movie_against_which_nothing_speaks_is_trusted():
    said = verdicts(good(), CALIBRATED)
    assert [v.state for v in said] == ["sound"] * 3
    assert [v.word for v in said] == ["Trust it", "Nothing found", "Go on"]


def test_trust_names_the_smallest_event_by_size_and_duration_and_where_it_was_measured():
    said = trust(good(), CALIBRATED)
    assert (
        said.headline
        == "One column, about 8.4 pixels (0.12 nm) wide, that comes or goes for 8 frames (0.2 s) or longer."
    )
    assert said.detail == "Measured in 16 frames, on about 60 columns in each."
    assert "Tested in frames 76 to 123, rows 0 to 127, columns 0 to 127." in words(said)


def test_without_calibration_sizes_and_times_are_in_pixels_and_frames():
    assert (
        "about 8.4 pixels wide, that comes or goes for 8 frames or longer"
        in trust(good(), Recording()).headline
    )
    assert "--frame-time and --pixel-size" in words(next_step(good(), Recording()))


def test_states_are_told_by_words_and_not_by_colour_alone():
    doubtful = changed(
        "refuted", to={"n_places": 2, "n_missing": 1, "places": [PLACE, PLACE], "largest_z": 7.0}
    )
    unknown = changed("knowable", to=None)
    for verdict in (trust, loss, next_step):
        states = [verdict(result, CALIBRATED) for result in (good(), doubtful)]
        assert len({s.word for s in states}) == len({s.state for s in states}) == 2
    assert trust(unknown, CALIBRATED).word == "Cannot tell"


def test_where_the_counts_refute_the_movie_it_is_not_trusted():
    result = changed(
        "refuted",
        to={"n_places": 2, "n_missing": 1, "places": [PLACE, PLACE | {"z": -7.0}], "largest_z": 7.0},
    )
    said, lost, after = verdicts(result, CALIBRATED)
    assert said.state == "doubt" and "refute the movie in 2 places" in said.headline
    assert "The smallest event at this dose: one column" in said.detail
    assert lost.state == "doubt"
    assert "one place with more counts than shown and one place with fewer counts" in words(lost)
    assert after.state == "doubt" and "--from scratch" in after.headline
    many = changed("refuted", to={"n_places": 5000, "n_missing": 400, "places": [PLACE], "largest_z": 7.0})
    assert "400 places with more counts than shown and 4600 places with fewer counts" in words(
        loss(many, CALIBRATED)
    )


def test_no_better_than_a_filter_is_said_first():
    said = trust(changed("explained", "over_filter", to=estimate(0.01, 0.02)), CALIBRATED)
    assert said.state == "doubt" and said.headline == "No better than a filter here."


def test_a_share_of_the_signal_above_100_percent_is_never_shown_as_good():
    said = trust(changed("explained", "denoised", to=estimate(1.3, 0.1)), CALIBRATED)
    assert said.state == "doubt" and "cannot be true" in said.headline
    bounded = trust(changed("explained", "denoised", to=estimate(0.95, 0.2)), CALIBRATED)
    assert "At least 75 % of the signal" in words(bounded) and "95 % of the signal" not in words(bounded)


def test_an_error_below_zero_cannot_be_true():
    below = estimate(-0.02, 0.01, resolvable=False, n_pixels=10**6)
    result = changed("nmse", to=below)
    result["all_frames"] = {"mse": below, "nmse": below, "n_frames": 200}
    assert "cannot be true" in trust(result, CALIBRATED).headline
    assert "learnt noise by heart" in words(next_step(result, CALIBRATED))


def test_an_error_too_small_to_measure_is_no_figure():
    said = trust(changed("nmse", to=estimate(0.001, 0.004, resolvable=False, n_pixels=10**6)), CALIBRATED)
    assert "too small to measure" in words(said) and "0.1 %" not in words(said)


@pytest.mark.parametrize("n_frames", [9, 15])
def test_few_frames_tell_nothing(n_frames):
    said, _, after = verdicts(changed("shape", to=[n_frames, 64, 64]), CALIBRATED)
    assert said.state == "unknown" and said.word == "Cannot tell"
    assert after.state == "unknown" and f"Record more frames: {n_frames} are too few." in after.headline


def test_an_event_that_lasts_half_the_movie_cannot_be_told():
    result = changed("knowable", "told_after_frames", "whole_column", to=40)
    result["shape"] = [79, 64, 64]
    assert trust(result, CALIBRATED).state == "unknown" and "too short" in trust(result, CALIBRATED).headline
    assert trust({**result, "shape": [80, 64, 64]}, CALIBRATED).state == "sound"


def test_nothing_shorter_is_promised_than_the_model_was_tested_with():
    result = changed("knowable", "told_after_frames", "whole_column", to=3)
    assert "for 8 frames (0.2 s) or longer" in trust(result, CALIBRATED).headline
    assert "at best if that lasts 3 frames" in words(trust(result, CALIBRATED))
    longer = changed("knowable", "told_after_frames", "whole_column", to=12)
    assert "for 12 frames (0.3 s) or longer" in trust(longer, CALIBRATED).headline


def test_where_no_column_is_recognised_none_is_promised():
    told = {"whole_column": None, "half_column": None, "quarter_column": None}
    said = trust(changed("knowable", "told_after_frames", to=told), CALIBRATED)
    assert said.state == "doubt" and "no change of a single column" in said.headline


def test_a_model_that_was_not_tested_is_not_vouched_for():
    said, lost, after = verdicts(changed("model_checks", to=None), CALIBRATED)
    assert {said.state, lost.state, after.state} == {"unknown"}
    assert (
        said.headline.startswith("At best: one column, about") and "The model was not tested." in said.detail
    )
    assert "--model" in after.headline and "not tested" in words(lost)


def test_atoms_at_two_places_prove_nothing():
    result = changed("model_checks", "atoms", "put_in", to=[atoms(1, 0.95, 1.0, n_sites=2)])
    said, lost, _ = verdicts(result, CALIBRATED)
    assert said.state == "unknown" and "Too few places" in said.detail
    assert lost.state == "unknown" and "2 places" in lost.headline


def test_contrast_lost_at_changes_is_said_where_it_is_seen():
    said = loss(changed("model_checks", "atoms", "put_in", to=[atoms(1, 0.61, 0.97)]), CALIBRATED)
    assert said.state == "doubt"
    assert said.headline == "A column that is there for 8 frames (0.2 s) is shown with 61 % of its contrast."
    assert loss(good(), CALIBRATED).detail.endswith("95 % of its contrast.")


def test_columns_that_the_model_misses_are_not_to_be_trusted():
    said = trust(changed("model_checks", "atoms", "put_in", to=[atoms(1, 0.4, 0.7)]), CALIBRATED)
    assert said.state == "doubt" and "may be missed" in said.headline


@pytest.mark.parametrize(
    ("path", "value", "said"),
    [
        (("lattice", "removed"), True, "of the lattice was removed"),
        (("lattice", "noise_kept"), True, "Noise was kept as lattice"),
        (("model_checks", "vacuum", "fringes"), 0.02, "invents a lattice of 2 %"),
        (("residual",), residual(False, 0.02), "More than noise was removed"),
        (("residual",), residual(False, -0.02), "Some noise was kept"),
        (("level", "kept"), False, "Frame 3 is 0.1 % brighter than recorded"),
    ],
)
def test_what_was_lost_or_invented_is_named(path, value, said):
    found = loss(changed(*path, to=value), CALIBRATED)
    assert found.state == "doubt" and said in found.headline


@pytest.mark.parametrize(
    ("path", "value"),
    [
        (("lattice", "ratio"), None),
        (("model_checks", "vacuum"), None),
        (("residual", "white"), None),
        (("level",), None),
    ],
)
def test_what_could_not_be_tested_is_not_called_kept(path, value):
    assert loss(changed(*path, to=value), CALIBRATED).state == "unknown"


def test_white_is_said_with_the_limit_that_was_tested():
    text = words(loss(good(), CALIBRATED))
    assert "largest correlation 0.0013, limit of the test 0.0018" in text


def test_a_correlation_that_is_no_chance_but_too_small_to_matter_is_no_loss():
    said = loss(changed("residual", to=residual(False, 0.0033)), CALIBRATED)
    assert said.state == "sound" and "Almost only noise was removed: largest correlation 0.0033" in words(
        said
    )


def test_next_steps_name_what_was_found_in_the_recording():
    recording = Recording(0.025, 0.014, ["one"], "up to 3 nm", False, 4, "noise reaches 2 pixels")
    said = next_step(good(), recording)
    assert said.state == "doubt" and said.headline == "Train again with --blind-radius auto."
    text = words(said)
    assert "up to 3 nm" in text and "4 frames are missing" in text
    unsteady = {"steady": False, "lowest": 0.8, "highest": 1.2, "flicker": 0.01}
    assert "0.8 to 1.2 times" in words(next_step(changed("brightness", to=unsteady), CALIBRATED))


def test_a_drift_that_the_model_ignored_is_to_be_mended():
    assert (
        "--ignore-drift"
        in next_step(good(), Recording(0.025, 0.014, drift="up to 3 nm", ignores_drift=True)).headline
    )
    followed = next_step(good(), Recording(0.025, 0.014, drift="up to 3 nm"))
    assert followed.state == "sound" and "follows it" in words(followed)


@pytest.mark.parametrize("verdict", [trust, loss, next_step])
def test_headlines_are_short_sentences(verdict):
    results = [good(), changed("knowable", to=None), changed("model_checks", to=None)]
    results.append(
        changed("refuted", to={"n_places": 1, "n_missing": 1, "places": [PLACE], "largest_z": 7.0})
    )
    for result in results:
        for finding in verdict(result, CALIBRATED).findings:
            assert finding.short.endswith(".") and len(finding.short) <= 100
            assert finding.text.endswith(".")


def history(*losses: float) -> list[dict[str, float]]:
    return [{"step": 100.0 * k, "loss": loss, "held_out": 1.02 - 0.002 * k} for k, loss in enumerate(losses)]


def test_a_training_below_the_noise_floor_is_explained():
    rehearsed = training_in_words(Training({"rehearsed": True, "best_step": 200}, history(1.0, 0.6, 0.4)))  # type: ignore[arg-type]
    assert rehearsed.state == "sound" and "simulated scenes" in rehearsed.text and "0.40" in rehearsed.text
    alone = training_in_words(Training({"best_step": 200}, history(1.0, 0.6, 0.4)))  # type: ignore[arg-type]
    assert alone.state == "doubt" and "by heart" in alone.text
    usual = training_in_words(Training({"best_step": 200}, history(1.02, 1.01, 1.01)))  # type: ignore[arg-type]
    assert "noise floor" not in usual.text


def test_verdicts_on_a_measured_movie_of_nine_frames_promise_nothing(tmp_path):
    counts = np.random.default_rng(0).poisson(2.0, (9, 48, 48)).astype(np.uint8)
    movie = movie_store(tmp_path / "m.zarr", counts)
    denoised = denoised_store(tmp_path / "d.zarr", movie, blind_gaussian(counts, (1.0, 1.0, 1.0)))
    result, _ = measure(EvaluateConfig(denoised.path, movie.path))
    assert all(verdict.state != "sound" for verdict in verdicts(result, Recording()))


def test_a_frame_that_is_shown_too_bright_is_found(tmp_path):
    counts = np.random.default_rng(0).poisson(5.0, (20, 64, 64)).astype(np.uint8)
    movie = movie_store(tmp_path / "m.zarr", counts)
    shown = np.full(counts.shape, 5.0)
    shown[11] *= 1.1
    denoised = denoised_store(tmp_path / "d.zarr", movie, shown)
    level = measure(EvaluateConfig(denoised.path, movie.path))[0]["level"]
    assert level is not None and not level["kept"] and level["worst_frame"] == 11
    assert level["worst_ratio"] == pytest.approx(1.1, abs=0.02)
