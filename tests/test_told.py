"""What is told of a training while it goes on, and how soon a stop is heard."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from PIL import Image
from small import counts, model_folder, movie_store
from tdenoise_pipeline import cli
from tdenoise_pipeline.apply.apply import apply
from tdenoise_pipeline.errors import Stopped
from tdenoise_pipeline.jobs.status import status
from tdenoise_pipeline.settings.config import ApplyConfig, StatusConfig, TrainConfig
from tdenoise_pipeline.step_control import Control
from tdenoise_pipeline.train.train import train_model

from tdenoise.inference import batches


def test_a_training_tells_step_loss_error_time_and_a_picture_while_it_goes_on(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    movie = movie_store(tmp_path / "movie", counts((30, 40, 33)))
    said: list[str] = []
    control = Control(note=lambda what, text: said.append(f"{what} {text}"))

    def stop_after_three(what: str, done: int, total: int) -> None:
        if "step 3" in said[-1]:
            control.stop.set()

    control.progress = stop_after_three
    config = TrainConfig(movie=(movie,), output=tmp_path / "model", steps=60)
    with pytest.raises(Stopped):
        train_model(config, control)
    assert any("loss" in text and "held-out error" in text for text in said)
    found = status(StatusConfig(output=tmp_path / "model"))["outputs"][0]
    training = found["training"]
    assert found["state"] == "interrupted" and training["steps"] == 60
    assert [step for step, _ in training["curve"]] == [0, 3] and training["step"] == 3
    assert training["left_s"] == pytest.approx(19 * training["elapsed_s"], rel=0.5, abs=30)
    with Image.open(training["preview"]) as picture:
        assert picture.size == (2 * 33 + 4, 40), "raw beside denoised"
    assert cli.main(["status", str(tmp_path / "model"), "--watch"]) == 0, "nothing runs, so it ends"
    shown = capsys.readouterr().out
    assert "step 3 of at most 60, loss" in shown and "|*" in shown and "step\n" in shown
    train_model(config)
    assert not (tmp_path / "model/preview.png").exists()


def test_a_curve_that_is_damaged_is_not_told(tmp_path: Path) -> None:
    (tmp_path / ".tdenoise/model").mkdir(parents=True)
    (tmp_path / ".tdenoise/model/plan.json").write_text(json.dumps({"plan": {}}))
    (tmp_path / "model-partial").mkdir()
    (tmp_path / "model-partial/metrics.jsonl").write_text('{"step": 1, "held')
    assert status(StatusConfig(output=tmp_path / "model"))["outputs"][0]["training"] is None


def test_a_stop_ends_a_block_before_its_next_batch(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    movie, model = movie_store(tmp_path / "movie", counts((40, 16, 16))), model_folder(tmp_path / "model")
    control, n_batches = Control(), 0
    usual = batches._Run.predict

    def counted(*given):  # type: ignore[no-untyped-def]
        nonlocal n_batches
        n_batches += 1
        if n_batches == 3:
            control.stop.set()
        return usual(*given)

    monkeypatch.setattr(batches._Run, "predict", counted)
    config = ApplyConfig(movie=movie, model=model, output=tmp_path / "out.zarr", share="0/1")
    with pytest.raises(Stopped):
        apply(config, control)
    assert n_batches == 3
    monkeypatch.undo()
    assert apply(config)["status"] == "complete"
