"""Times that are told before a step: measured on a part of the movie, and scaled to what there is to do."""

from __future__ import annotations

import json
import logging
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from small import counts, model_folder, movie_store
from tdenoise_pipeline import cli
from tdenoise_pipeline.settings.config import ApplyConfig, ApplyManyConfig, TrainConfig
from tdenoise_pipeline.train.pace import Pace
from tdenoise_pipeline.train.train_plan import make_plan
from tdenoise_pipeline.workflow import forecast
from tdenoise_pipeline.workflow.forecast import apply_s, forecast_apply, with_times
from tdenoise_pipeline.workflow.trial import Denoised

from tdenoise.network.checkpoint import BASE, read_card


def test_a_dry_run_of_run_tells_the_time_of_every_step_and_leaves_nothing(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    scratch = tmp_path / "scratch"
    scratch.mkdir()
    monkeypatch.setattr("tempfile.tempdir", str(scratch))
    np.save(tmp_path / "raw.npy", counts((24, 40, 48)))
    words = [
        "run",
        str(tmp_path / "raw.npy"),
        "-o",
        str(tmp_path / "out"),
        "--steps",
        "50",
        "-n",
        "--json",
        "--device=cpu",
    ]
    assert cli.main(words) == 0
    told, said = capsys.readouterr()
    plan = json.loads(told)
    assert "times_unknown" not in plan and said == ""
    steps = [plan[f"time_{name}_s"] for name in ("ingest", "train", "apply", "report")]
    assert all(seconds > 0 for seconds in steps) and plan["time_run_s"] == pytest.approx(
        plan["time_start_s"] + sum(steps)
    )
    assert [row["ensemble"] for row in plan["times"]] == [1, 2, 4, 8, 16]
    assert all(row["worker_memory_bytes"] > 1e8 for row in plan["times"])
    assert plan["faster"]
    assert sorted(p.name for p in tmp_path.iterdir()) == ["raw.npy", "scratch"]
    assert not list(scratch.glob("tdenoise*")), "torch may keep a folder of its own there"
    assert logging.getLogger("tdenoise_pipeline").level == logging.WARNING, "as the command sets it"


FOUND = Denoised(fixed_s=0.0, pass_s=1e-6, written_s=1e-8, start_s=2.0)


def test_the_time_of_apply_follows_pixels_passes_and_rounds_of_workers(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(forecast.budget, "n_cores", lambda: 4)
    movie = forecast.store.open_store(movie_store(tmp_path, counts((24, 40, 48))), forecast.store.MOVIE)
    config = ApplyConfig(movie=movie.path, output=tmp_path / "d.zarr", device="cpu", workers="local:2")
    card = read_card(BASE)

    def of(shape: tuple[int, int, int], ensemble: int, n_workers: int) -> float:
        laid = forecast._laid(config, ensemble, shape, movie, card)
        return apply_s(FOUND, shape, laid, card, ensemble, n_workers, True) - 2 * FOUND.start_s

    one = of((960, 256, 256), 1, 1)
    assert one == pytest.approx(960 * 256**2 * (1e-6 + 2 * 8 / 7 * 1e-8), rel=0.01)
    assert of((960, 256, 256), 4, 1) == pytest.approx(4 * one, rel=0.1)
    assert of((1920, 256, 256), 1, 1) == pytest.approx(2 * one, rel=0.01)
    assert of((960, 256, 256), 1, 2) == pytest.approx(one / 2, rel=0.05), "10 blocks in 5 rounds"
    assert of((960, 256, 256), 1, 8) > one / 6, "10 blocks in 2 rounds, however many workers"


def test_what_cannot_be_tried_is_said_and_the_plan_is_still_told(tmp_path: Path) -> None:
    movie, model = movie_store(tmp_path / "m", counts((24, 40, 48))), model_folder(tmp_path / "model")
    config = ApplyManyConfig(movie=(movie,), model=model, output=tmp_path / "d.zarr", device="xpu")
    assert with_times({"step": "apply"}, config) == {
        "step": "apply",
        "times_unknown": "--device xpu is not usable here",
    }
    told = forecast_apply(ApplyConfig(movie=movie, model=model, output=tmp_path / "d.zarr", device="cpu"))
    assert told["time_apply_s"] > 0


def test_the_time_of_a_training_is_its_limit_or_its_steps_and_what_follows(tmp_path: Path) -> None:
    movie = movie_store(tmp_path, counts((24, 40, 48)))
    plan = make_plan(
        TrainConfig(movie=(movie,), output=tmp_path / "t", steps=1000, from_model="base", device="cpu")
    )
    pace = Pace(prepare_s=1.0, first_s=2.0, step_s=0.5, validate_s=3.0, compare_s=4.0, device="cpu")
    assert pace.training_s(plan) == pytest.approx(1 + 2 + 500 + 6 * 3 + 6 * 4)
    limited = replace(plan, settings=replace(plan.settings, time_limit_s=60.0))
    assert pace.training_s(limited) == pytest.approx(1 + 62 + 24)


def test_the_cheapest_way_to_halve_costs_nothing_where_there_is_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = ApplyConfig(movie=tmp_path / "m.zarr", output=tmp_path / "d.zarr", workers="local:2")
    own = {"device": "cpu", "workers": 2, "ensemble": 4, "apply_s": 100.0}
    rows = [own, own | {"ensemble": 2, "apply_s": 52.0}, own | {"ensemble": 1, "apply_s": 27.0}]
    monkeypatch.setattr(forecast.budget, "n_cores", lambda: 8)
    assert "--workers local:4" in forecast._faster(config, own, rows, 100)
    monkeypatch.setattr(forecast.budget, "n_cores", lambda: 2)
    assert "--ensemble 2 takes 52%" in forecast._faster(config, own, rows, 100)
    gpu = own | {"device": "cuda", "apply_s": 5.0}
    assert "--device cuda takes 5%" in forecast._faster(config, own, [*rows, gpu], 100)
    assert "slurm" in forecast._faster(config, rows[2], rows, 100)


def test_settings_of_several_movies_have_no_times(tmp_path: Path) -> None:
    movies = tuple(tmp_path / f"{n}.zarr" for n in "ab")
    config = ApplyManyConfig(movie=movies, output=tmp_path / "out", device="cpu")
    assert with_times({"n_movies": 2}, config) == {"n_movies": 2}
