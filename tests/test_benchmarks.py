"""Benchmarks that need a machine we do not have at hand run here on a small scale, so that they run there."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tdenoise.network import checkpoint

BENCHMARKS = Path(__file__).parents[1] / "benchmarks"


def run(*words: str) -> str:
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        [sys.executable, *words], cwd=BENCHMARKS, env=environment, capture_output=True, text=True, timeout=300
    )
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    return done.stdout


def test_the_benchmark_of_a_gpu_runs_through_and_finds_the_networks_blind() -> None:
    printed = run("gpu.py", "--device", "cpu", "--quick")
    text = printed.split("correct: ", 1)[1]
    correct, _ = json.JSONDecoder().raw_decode(text)
    for name in ("split-blind", "udvd"):
        assert (
            correct[name]["blind"]
            and correct[name]["block_equals_whole"]
            and correct[name]["same_bits_again"]
        )


@pytest.mark.long
def test_apply_with_and_without_its_protocol_writes_the_same_files() -> None:
    assert "with the protocol" in run("protocol.py", "--quick")  # it compares them


@pytest.mark.long
@pytest.mark.parametrize("name", ["study", "block_cost", "scale", "pyramid", "workers"])
def test_the_benchmarks_of_what_grows_run_through(name: str) -> None:
    run(f"{name}.py", "--quick")


@pytest.mark.long
def test_predicted_and_measured_times_are_compared_for_every_step() -> None:
    printed = run("times.py", "--quick")
    assert all(f"{step}" in printed for step in ("ingest", "train", "apply", "report")) and "ratio" in printed


@pytest.mark.long
def test_the_benchmark_of_events_compares_with_the_truth() -> None:
    assert "still seed 0 dose 2: " in run("events.py", "--quick")


@pytest.mark.long
def test_the_benchmark_of_drift_tells_scenes_that_stay_from_those_that_move() -> None:
    printed = run("drift.py", "--quick")
    assert "are left out" in printed or "0 of 8 scenes that stay have a drift" in printed


@pytest.mark.long
@pytest.mark.browser
@pytest.mark.skipif(shutil.which("chromium") is None, reason="needs Chromium")
def test_the_benchmark_of_the_viewer_runs_through() -> None:
    assert "first picture after" in run("view.py", "--quick")


def test_a_section_that_fails_does_not_take_the_others_along(tmp_path: Path) -> None:
    words = ["gpu.py", "--device", "cpu", "--quick", "--apart", "--movie", str(tmp_path / "none")]
    words += ["--section", "training", "variants"]
    done = subprocess.run(
        [sys.executable, *words], cwd=BENCHMARKS, capture_output=True, text=True, timeout=300
    )
    assert done.returncode == 1 and "these sections failed: training" in done.stderr
    assert "No such file" in done.stdout and "channels_last, float32" in done.stdout


def test_quality_measures_movies_whose_files_have_one_name(tmp_path: Path) -> None:
    truths = []
    for seed in ("1", "2"):
        simulate = [
            "simulate",
            "-o",
            str(tmp_path / seed),
            "--seed",
            seed,
            "--size",
            "48",
            "--n-frames",
            "24",
        ]
        run("-m", "tdenoise_pipeline.cli", *simulate, "-q")
        truths.append(str(tmp_path / seed / "truth.npz"))
    rows = [
        line for line in run("quality.py", *truths, "--model", "base").splitlines() if line.startswith("base")
    ]
    assert len(rows) == 2 and rows[0] != rows[1]


def test_pretraining_goes_on_from_a_model(tmp_path: Path) -> None:
    words = ["pretrain.py", "--from", str(checkpoint.BASE), "--seed", "9", "--scenes", "0.001"]
    run(*words, "--time-limit", "1s", "-o", str(tmp_path / "child"))
    parent, child = (checkpoint.load_model(folder) for folder in (checkpoint.BASE, tmp_path / "child"))
    assert child.card["parent"] == parent.id != child.id
    assert child.card["steps"] > 0


@pytest.mark.long
def test_the_benchmark_of_learning_runs_through() -> None:
    printed = run("learn.py", "--quick")
    assert "version 1 is" in printed and "replay 0.0: version 2 is" in printed
    assert printed.count("dB over the shipped model") == 2


@pytest.mark.long
def test_the_benchmark_of_honesty_measures_every_method() -> None:
    printed = run("honesty.py", "--quick")
    if "is not there" in printed:
        pytest.skip("the stress scenes are not beside the checkout")
    for method in ("truth", "gaussian", "mean", "base", "adapted", "scratch"):
        assert f"\n  {method}" in printed
    assert "base: vacancies_off: mean" in printed
