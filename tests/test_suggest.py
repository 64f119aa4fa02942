"""`archive suggest`: the model that predicts a movie best, and none where none is clearly better or fits."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from small import TINY, counts, model_folder, movie_store, network
from tdenoise_pipeline.archive.add import add
from tdenoise_pipeline.cli.command_line import main
from tdenoise_pipeline.settings.config import ArchiveAddConfig, ArchiveSuggestConfig
from tdenoise_pipeline.workflow.suggest import decide, distance, rank, suggest

from tdenoise.network import checkpoint
from tdenoise.training.validation import Sums


def archive_of(folder: Path, **models: Path) -> Path:
    """An archive of models."""
    add(ArchiveAddConfig(store=tuple(models.values()), archive=folder / "archive"))
    return folder / "archive"


def sums(rng: np.random.Generator, more: float) -> Sums:
    """Errors over blocks whose noise is the same for every model, as long as the generator is."""
    return Sums(64 * (1 + 0.1 * rng.standard_normal(2000) + more), np.full(2000, 64.0))


def test_models_are_ranked_by_their_error_on_the_same_pixels() -> None:
    errors = {
        name: sums(np.random.default_rng(1), more) for name, more in (("b", 0.02), ("a", 0.0), ("c", 0.05))
    }
    ranked = rank(errors)
    assert [id for id, *_ in ranked] == ["a", "b", "c"]
    assert [above for _, above, _ in ranked] == pytest.approx([0, 0.02, 0.05])
    assert all(error < 1e-9 for *_, error in ranked), "what all have alike cancels"


def test_the_base_is_left_for_a_model_that_is_clearly_better_and_for_no_other() -> None:
    base = sums(np.random.default_rng(1), 0.0)
    chance = sums(np.random.default_rng(2), -0.001)  # better by less than a standard error
    better = sums(np.random.default_rng(1), -0.001)
    worse = sums(np.random.default_rng(1), 0.001)
    assert decide({"base": base, "other": worse}, "base")[0] == "base"
    assert decide({"base": base, "other": better}, "base")[0] == "other"
    name, reason = decide({"base": base, "other": chance}, "base")
    assert name == "base" and ("not clearly better" in reason or "predicts this movie better" in reason)
    assert decide({"other": worse}, "base")[0] == "other"


def test_movies_are_alike_by_what_is_known_of_both() -> None:
    here = {"dose": 1.0, "pixel_size_nm": 0.01, "fano": 1.0, "snr": 0.3}
    assert distance(here, here) == 0
    assert distance(here, {"dose": 2.0}) == pytest.approx(1)
    assert distance(here, {"dose": None, "snr": 0.6, "pixel_size_nm": 0.0}) == pytest.approx(1)
    assert distance(here, {"dose": float("nan")}) is None


def test_a_worse_model_of_the_archive_comes_after_the_base(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    movie = movie_store(tmp_path / "m", counts((24, 48, 48)))
    archive = archive_of(tmp_path, random=model_folder(tmp_path / "random"))
    found = suggest(ArchiveSuggestConfig(movie=movie, archive=archive))
    assert [m["name"] for m in found["models"]] == ["base", "random"]
    worse = found["models"][1]
    assert worse["error_above_best"] > 3 * worse["standard_error"] > 0
    assert found["suggested"] == "base" and not worse["learned_from_it"]
    assert main(["archive", "suggest", str(movie), "-A", str(archive)]) == 0
    shown = capsys.readouterr().out
    assert shown.startswith("1. base") and "Use no --model" in shown
    assert main(["archive", "suggest", str(movie), "-A", str(archive), "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["models"] == found["models"]


def test_a_model_whose_blind_spot_is_too_small_is_left_out(tmp_path: Path) -> None:
    clean = counts((24, 48, 48), dose=20).astype(np.float32)
    blurred = (clean + np.roll(clean, 1, axis=2)) / 2  # neighbours share their noise
    movie = movie_store(tmp_path / "m", blurred)
    wide = model_folder(tmp_path / "wide", network(replace(TINY, blind_radius=1)))
    archive = archive_of(tmp_path, wide=wide, narrow=model_folder(tmp_path / "narrow"))
    found = suggest(ArchiveSuggestConfig(movie=movie, archive=archive))
    assert {m["name"] for m in found["left_out"]} == {"base", "narrow"}
    assert all("blind spot is too small" in m["reason"] for m in found["left_out"])
    assert found["suggested"] == str(wide) and [m["name"] for m in found["models"]] == ["wide"]


def test_only_the_models_of_the_most_similar_movies_are_tried(tmp_path: Path) -> None:
    movie = movie_store(tmp_path / "m", counts((24, 48, 48)), pixel_size=0.01)
    models = {}
    for seed, snr in enumerate((0.2, 3.0, 40.0)):
        made = network(seed=seed)
        known = {"id": "none", "source": "none", "snr": snr, "held_out": []}
        folder = tmp_path / f"snr{snr}"
        checkpoint.save_model(folder, made, {"movies": [known], "ancestors": [], "plan": "none"})
        models[folder.name] = folder
    archive = archive_of(tmp_path, **models)
    found = suggest(ArchiveSuggestConfig(movie=movie, archive=archive, try_models=1))
    assert {m["name"] for m in found["models"]} == {"base", "snr0.2"}
    assert [m["name"] for m in found["not_tried"]] == ["snr3.0", "snr40.0"]


def test_a_model_that_was_moved_away_is_told(tmp_path: Path) -> None:
    movie = movie_store(tmp_path / "m", counts((24, 48, 48)))
    archive = archive_of(tmp_path, gone=model_folder(tmp_path / "gone"))
    (tmp_path / "gone").rename(tmp_path / "elsewhere")
    found = suggest(ArchiveSuggestConfig(movie=movie, archive=archive))
    assert [m["name"] for m in found["left_out"]] == ["gone"] and found["suggested"] == "base"
