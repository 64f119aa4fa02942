"""``auto``: the model of an archive that suits a movie takes its place, and the output says why."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from small import counts, model_folder, movie_store
from tdenoise_pipeline import cli
from tdenoise_pipeline.archive.add import add
from tdenoise_pipeline.archive.index import cards
from tdenoise_pipeline.cli.command_line import main
from tdenoise_pipeline.errors import UsageError
from tdenoise_pipeline.runs import choices, paths
from tdenoise_pipeline.settings.config import (
    ApplyConfig,
    ArchiveAddConfig,
    ArchiveSuggestConfig,
    RunConfig,
    TrainConfig,
)
from tdenoise_pipeline.step_control import Control
from tdenoise_pipeline.store import store
from tdenoise_pipeline.workflow import chosen as module
from tdenoise_pipeline.workflow.chosen import chosen

from tdenoise.network import checkpoint


@pytest.fixture
def movie(tmp_path: Path) -> Path:
    return movie_store(tmp_path / "m", counts((24, 32, 32)))


@pytest.fixture
def archive(tmp_path: Path) -> Path:
    """With one model, of random weights: worse than the base for any movie."""
    add(ArchiveAddConfig(store=(model_folder(tmp_path / "random"),), archive=tmp_path / "archive"))
    return tmp_path / "archive"


@pytest.fixture
def better(tmp_path: Path, archive: Path, movie: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The archive, once the random model is found to be the best: who measures is tested elsewhere."""
    real = module.suggest

    def suggest(*given: object) -> dict[str, object]:
        found = real(*given)  # type: ignore[arg-type]
        found["models"].reverse()
        return found | {"suggested": found["models"][0]["model"], "reason": "it is clearly better"}

    monkeypatch.setattr(module, "suggest", suggest)
    return archive


def test_auto_without_an_archive_and_an_archive_without_auto_are_refused(tmp_path: Path) -> None:
    movie, output = tmp_path / "m.zarr", tmp_path / "o"
    for kind, given in (
        (ApplyConfig, {"movie": movie, "model": "auto"}),
        (TrainConfig, {"movie": movie, "from_model": "auto"}),
        (RunConfig, {"raw": movie, "from_model": "auto"}),
    ):
        with pytest.raises(UsageError, match="auto chooses a model of an archive: name it with --archive"):
            kind(output=output, **given)
        if kind is RunConfig:
            continue  # its results are added to the archive
        named = {name: value for name, value in given.items() if value != "auto"}
        with pytest.raises(UsageError, match="--archive is where .* auto chooses"):
            kind(output=output, archive=tmp_path, **named)
    with pytest.raises(UsageError, match="chooses for one movie"):
        TrainConfig(movie=(movie, output), output=output, from_model="auto", archive=tmp_path)


def test_apply_takes_the_base_where_no_model_of_the_archive_is_better(
    tmp_path: Path, movie: Path, archive: Path, workers: str, capsys: pytest.CaptureFixture[str]
) -> None:
    output = tmp_path / "d.zarr"
    words = ["apply", str(movie), "--model", "auto", "-A", str(archive), "-o", str(output), "--ensemble", "1"]
    assert main([*words, "--workers", workers]) == 0
    printed = capsys.readouterr().out
    assert "auto chose base: no model of the archive predicts this movie better" in printed
    found = store.read_attributes(output)
    assert found["model"]["id"] == checkpoint.read_card(checkpoint.BASE)["sha256"]
    assert [c["name"] for c in found["chosen"]["candidates"]] == ["base", "random"]
    assert str(tmp_path) not in json.dumps(found["chosen"]), "places are nobody's business"
    assert not paths.work_folder(output).exists()


def test_apply_takes_the_winner_and_stays_with_it(
    tmp_path: Path, movie: Path, better: Path, workers: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    output = tmp_path / "d.zarr"
    words = ["apply", str(movie), "--model", "auto", "-A", str(better), "-o", str(output), "--ensemble", "1"]
    words += ["--workers", workers, "-q"]
    assert cli.main(words) == 0
    found = store.read_attributes(output)
    assert found["model"]["id"] == checkpoint.read_card(tmp_path / "random")["sha256"]
    assert found["chosen"]["model"] == "random" and found["chosen"]["reason"] == "it is clearly better"

    def asked(*_: object) -> None:
        raise AssertionError("chosen again")

    monkeypatch.setattr(module, "suggest", asked)
    assert cli.main(words) == 0, "what is there stays, whatever came into the archive"
    with pytest.raises(AssertionError, match="chosen again"):
        cli.main([*words, "--force", "--debug"])


def test_what_was_chosen_for_an_unfinished_output_is_not_chosen_again(
    tmp_path: Path, movie: Path, better: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = ApplyConfig(movie=movie, output=tmp_path / "d.zarr", model=Path("auto"), archive=better)
    plan = paths.work_folder(config.output) / "plan.json"
    with chosen(config, Control()) as decided:
        assert decided.model == tmp_path / "random" and decided.archive is None
        plan.write_text("{}")  # as one that was begun and stopped
    monkeypatch.setattr(module, "suggest", lambda *_: pytest.fail("chosen again"))
    with chosen(config, Control()) as decided:
        assert decided.model == tmp_path / "random"
        plan.unlink()
    assert not plan.parent.exists(), "nothing is left where nothing was begun"


def test_run_denoises_with_the_winner_and_trains_nothing_and_the_archive_gets_the_results(
    tmp_path: Path,
    better: Path,
    workers: str,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    np.save(tmp_path / "raw.npy", counts((24, 32, 32)))
    out = tmp_path / "out"
    words = ["run", str(tmp_path / "raw.npy"), "--model", "auto", "-A", str(better), "-o", str(out)]
    words += ["--ensemble", "1", "--workers", workers]
    assert main([*words, "--dry-run"]) == 0
    assert "none; the model of" in capsys.readouterr().out
    assert main(words) == 0
    assert "auto chose random: it is clearly better" in capsys.readouterr().out
    id = checkpoint.read_card(tmp_path / "random")["sha256"]
    assert store.read_attributes(out / "denoised.zarr")["model"]["id"] == id
    assert checkpoint.read_card(out / "model")["sha256"] == id
    found = {card["kind"]: card for card in cards(better)}
    assert sorted(found) == ["denoised", "model", "movie"]
    assert found["model"]["path"] == str(tmp_path / "random"), "the copy does not take its place"
    monkeypatch.setattr(module, "suggest", lambda *_: pytest.fail("chosen again"))
    before = (out / "denoised.zarr/zarr.json").stat().st_mtime_ns
    assert main(words) == 0 and (out / "denoised.zarr/zarr.json").stat().st_mtime_ns == before
    assert main([*words[:2], "--model", str(checkpoint.BASE), "-o", str(out), "--workers", workers]) == 2
    assert "another model lies there" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("given", "told"),
    [
        ({"steps": 5}, "--steps is about a training"),
        ({"from_model": "base"}, "--from is about a training"),
        ({"step": "train"}, "nothing is trained"),
        ({"model": "scratch"}, "random weights denoise nothing"),
    ],
)
def test_settings_of_a_training_are_refused_where_there_is_none(
    tmp_path: Path, given: dict[str, object], told: str
) -> None:
    with pytest.raises(UsageError, match=told):
        RunConfig(raw=tmp_path / "m.mrc", output=tmp_path / "o", **({"model": "base"} | given))


def test_who_has_seen_a_recording_is_not_chosen_where_it_is_judged(
    movie: Path, better: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = ArchiveSuggestConfig(movie=movie, archive=better)
    assert module.choose(asked, Control())["model"] == "random"
    real = module.suggest

    def seen(*given: object) -> dict[str, object]:
        found = real(*given)  # type: ignore[arg-type]
        found["models"][0]["learned_from_it"] = True
        return found

    monkeypatch.setattr(module, "suggest", seen)
    choice = module.choose(asked, Control(), unseen=True)
    assert choice["model"] == "base" and "nothing would be left to judge" in choice["reason"]


def test_a_study_starts_from_what_the_archive_has(
    movie: Path, better: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = [
        "study",
        str(movie),
        "--from",
        "auto",
        "-o",
        str(tmp_path / "s"),
        "--frames",
        "8",
        "--sizes",
        "full",
    ]
    assert main([*words, "--dry-run"]) == 2
    assert "name it with --archive" in capsys.readouterr().err
    words += ["-A", str(better), "--steps", "2", "-q"]
    assert main([*words, "--dry-run"]) == 0
    assert "from random" in capsys.readouterr().out
    assert main(words) == 0
    told = json.loads((tmp_path / "s/study.json").read_text())
    assert told["chosen"]["model"] == "random"
    assert "from the model random of the archive archive" in (tmp_path / "s/report.html").read_text()
    (cell,) = (tmp_path / "s/cells").iterdir()
    assert (
        checkpoint.read_card(cell / "model")["parent"] == checkpoint.read_card(tmp_path / "random")["sha256"]
    )


def test_of_two_that_choose_at_once_both_take_what_the_first_chose(tmp_path: Path) -> None:
    output = tmp_path / "o"
    assert choices.remember(output, {"id": "a"}, force=False) == {"id": "a"}
    assert choices.remember(output, {"id": "b"}, force=False) == {"id": "a"}
    assert choices.remember(output, {"id": "c"}, force=True) == {"id": "c"} == choices.recall(output)


def test_train_starts_from_the_winner(tmp_path: Path, movie: Path, better: Path) -> None:
    output = tmp_path / "model"
    words = [
        "train",
        str(movie),
        "--from",
        "auto",
        "-A",
        str(better),
        "-o",
        str(output),
        "--steps",
        "2",
        "-q",
    ]
    assert cli.main([*words, "--dry-run"]) == 0 and not (tmp_path / ".tdenoise").exists()
    assert cli.main(words) == 0
    card = checkpoint.read_card(output)
    assert card["parent"] == checkpoint.read_card(tmp_path / "random")["sha256"]
    assert card["chosen"]["model"] == "random" and len(card["chosen"]["candidates"]) == 2


def test_train_does_what_it_does_without_an_archive_where_no_model_of_it_is_better(
    tmp_path: Path, movie: Path, archive: Path
) -> None:
    config = TrainConfig(movie=movie, output=tmp_path / "model", from_model=Path("auto"), archive=archive)
    with chosen(config, Control()) as decided:
        assert decided.from_model is None


def test_apply_refuses_a_movie_that_no_model_fits(tmp_path: Path, archive: Path) -> None:
    clean = counts((24, 32, 32), dose=20).astype(np.float32)
    blurred = movie_store(tmp_path / "b", (clean + np.roll(clean, 1, axis=2)) / 2)
    words = ["apply", str(blurred), "--model", "auto", "-A", str(archive), "-o", str(tmp_path / "d.zarr")]
    assert cli.main([*words, "-q"]) == 3
    assert not (tmp_path / ".tdenoise").exists() and not (tmp_path / "d.zarr").exists()


def test_run_starts_its_training_from_the_winner(
    tmp_path: Path, movie: Path, better: Path, workers: str
) -> None:
    words = [
        "run",
        str(movie.parent / "raw.npy"),
        "-o",
        str(tmp_path / "r"),
        "--from",
        "auto",
        "-A",
        str(better),
    ]
    assert cli.main([*words, "--dry-run", "-q"]) == 0
    assert cli.main([*words, "--steps", "2", "--ensemble", "1", "--workers", workers, "-q"]) == 0
    assert checkpoint.read_card(tmp_path / "r" / "model")["chosen"]["model"] == "random"
    assert cli.main([*words[:-1], str(tmp_path), "--dry-run", "-q"]) == 3, "not an archive: found at once"
