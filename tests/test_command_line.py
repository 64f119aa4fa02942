"""The command line as a newcomer meets it: help, suggestions, shells, and a run's folder as the noun of every verb."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import tdenoise_pipeline
from small import counts, model_folder, movie_store
from tdenoise_pipeline.apply.apply import apply
from tdenoise_pipeline.cli import main
from tdenoise_pipeline.cli.commands import COMMANDS, GROUPS, PURPOSES, SUMMARIES
from tdenoise_pipeline.errors import UsageError
from tdenoise_pipeline.settings.config import ApplyConfig, EvaluateConfig, ReportConfig, TrainConfig

PROGRAM = [sys.executable, "-m", "tdenoise_pipeline"]


def run(*words: object) -> int:
    return main([str(word) for word in words])


def shown(capsys: pytest.CaptureFixture[str], *words: object) -> str:
    """The help that a command ends with."""
    capsys.readouterr()
    with pytest.raises(SystemExit) as end:
        run(*words)
    assert end.value.code in (0, None)
    return capsys.readouterr().out


def refusal(capsys: pytest.CaptureFixture[str], *words: object) -> str:
    capsys.readouterr()
    assert run(*words) == 2
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == 1, lines
    return lines[0]


def test_the_help_lists_every_command_once_under_what_it_is_for(capsys: pytest.CaptureFixture[str]) -> None:
    text = shown(capsys, "--help")
    for purpose, names in PURPOSES.items():
        assert f"\n{purpose}:\n" in text
        for name in names:
            assert sum(line.split()[:1] == [name] for line in text.splitlines()) == 1, name
    assert {name.split()[0] for name in COMMANDS} <= set(SUMMARIES)
    assert shown(capsys, "help") == text


@pytest.mark.parametrize("group", sorted(GROUPS))
def test_a_group_shows_its_commands(group: str, capsys: pytest.CaptureFixture[str]) -> None:
    text = shown(capsys, group)
    verbs = [name.split()[1] for name in COMMANDS if name.startswith(f"{group} ")]
    assert len(verbs) >= 2 and all(f"\n    {verb} " in text for verb in verbs)
    assert shown(capsys, group, "--help") == shown(capsys, "help", group) == text


def test_help_shows_the_help_of_a_command(capsys: pytest.CaptureFixture[str]) -> None:
    for name in ("ingest", "archive add", "submit"):
        words = name.split()
        assert shown(capsys, "help", *words) == shown(capsys, *words, "--help")


def test_options_are_grouped_and_those_that_are_needed_look_so(capsys: pytest.CaptureFixture[str]) -> None:
    text = shown(capsys, "run", "--help")
    assert text.startswith("usage: tdenoise-pipeline run RAW -o FOLDER [options]\n")
    titles = [line[:-1] for line in text.splitlines() if line and not line[0].isspace() and line[-1] == ":"]
    for title in (
        "what to read",
        "corrections of the detector",
        "model",
        "where to compute",
        "cluster",
        "output",
    ):
        assert title in titles
    assert "(required)" in text
    assert "usage: tdenoise-pipeline train MOVIE.zarr ... -o MODEL [options]" in shown(capsys, "train", "-h")
    assert "usage: tdenoise-pipeline doctor [FOLDER] [options]" in shown(capsys, "doctor", "-h")


def test_defaults_are_words(capsys: pytest.CaptureFixture[str]) -> None:
    text = " ".join(shown(capsys, "doctor", "--help").split())
    assert "(default: the current folder)" in text and text.count("default:") == 1
    for name in COMMANDS:
        text = shown(capsys, *name.split(), "--help")
        assert "None" not in text and "default: ." not in text and "PosixPath" not in text


@pytest.mark.parametrize(
    ("words", "meant"),
    [
        ("ingst x", "Did you mean ingest?"),
        ("INGEST x", "Did you mean ingest?"),
        ("denoise x", "Did you mean run (from a raw movie to a result) or apply"),
        ("aply x", "Did you mean apply?"),
        ("continue x", "Did you mean resume?"),
        ("archive lst", "Did you mean archive list?"),
        ("archive frobnicate", "one of add, list, find"),
        ("frobnicate", "one of run, ingest, train"),
        ("help ingst", "Did you mean ingest?"),
        ("train m.zarr -o model --gpu", "Did you mean --device cuda?"),
        ("apply m.zarr -o d.zarr --cuda", "Did you mean --device cuda?"),
        (
            "ingest m.tif -o m.zarr --gpu",
            "--device belongs to run, train, apply, watch, archive suggest and study",
        ),
        ("ingest --input m.tif -o m.zarr", "Write RAW without a flag: ingest RAW"),
        ("train m.zarr -o model --lr 0.1", "the learning rate is chosen for you"),
        ("train m.zarr -o model --patch-size 3", "patches are chosen automatically"),
        ("ingest m.tif -o m.zarr --frametime 3", "Did you mean --frame-time?"),
        ("ingest m.tif -o m.zarr --pixel_size 3", "Did you mean --pixel-size?"),
        ("verify m.zarr --steps 3", "--steps belongs to run, train and study"),
        ("ingest m.tif --overwrite -o m.zarr", "Did you mean --force?"),
        ("apply m.zarr --out d.zarr", "Did you mean --output?"),
        ("run m.tif -o f --num-epochs 3", "use --steps N"),
        ("run my movie.tif -o f", "'movie.tif' is another"),
        ("train a.zarr -o model b.zarr", "needs all names in one place"),
        (
            "apply m.zarr -o d.zarr --model auto",
            "--model auto chooses a model of an archive: name it with --archive",
        ),
        (
            "train m.zarr -o model --from auto",
            "--from auto chooses a model of an archive: name it with --archive",
        ),
        ("train m.zarr -o model -A archive", "--archive is where --from auto chooses"),
        ("train m.zarr -o model --where dose<1", "--where chooses movies of an archive"),
    ],
)
def test_what_is_wrong_is_answered_with_what_was_meant(
    words: str, meant: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert meant in refusal(capsys, *words.split())


def test_a_movie_in_the_place_of_a_command_is_answered_with_run(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "movie.tif").touch()
    assert f"run {tmp_path / 'movie.tif'} -o FOLDER" in refusal(capsys, tmp_path / "movie.tif")


def test_common_flags_may_stand_before_the_command(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    np.save(tmp_path / "raw.npy", counts((12, 20, 24)))
    assert run("-v", "--json", "ingest", tmp_path / "raw.npy", "-o", tmp_path / "m.zarr") == 0
    assert json.loads(capsys.readouterr().out)["kind"] == "movie"


def test_a_no_flag_undoes_what_a_settings_file_says(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    movie, model = movie_store(tmp_path, counts((12, 20, 24))), model_folder(tmp_path / "model")
    (tmp_path / "s.yaml").write_text("variance: true\nlossless: true\n")
    words = ["apply", movie, "--model", model, "-o", tmp_path / "d.zarr", "-c", tmp_path / "s.yaml", "-n"]
    assert "gamma" in refusal(capsys, *words)  # the model has no second output
    assert run(*words, "--no-variance") == 0
    assert run("apply", movie, "--model", model, "-o", tmp_path / "d.zarr", "-n", "--no-variance") == 0


@pytest.mark.parametrize("flag", ["--frame-time", "--exposure"])
def test_a_bare_number_is_no_time(flag: str, capsys: pytest.CaptureFixture[str]) -> None:
    said = refusal(capsys, "ingest", "m.tif", "-o", "m.zarr", flag, "0.5")
    assert f"{flag} '0.5' is not valid: it needs a unit, such as 0.5s or 0.5ms" in said
    assert "2s" in said  # of 0.5 frames per second


def test_a_bare_time_limit_is_refused_from_yaml_too(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "s.yaml").write_text("time-limit: 30\n")
    said = refusal(capsys, "train", "m.zarr", "-o", tmp_path / "model", "-c", tmp_path / "s.yaml")
    assert "s.yaml: time-limit '30' is not valid: it needs a unit, such as 30s, 30ms or 30m" in said
    assert TrainConfig(movie="m.zarr", output="model", time_limit="1h30m").time_limit == 5400


def test_no_help_imports_what_it_does_not_need() -> None:
    code = (
        "import sys\nfrom tdenoise_pipeline.cli import main\n"
        "try:\n    main(['--help'])\nexcept SystemExit:\n    pass\n"
        "sys.exit('pydantic' in sys.modules or 'ruamel' in sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code], check=True, stdout=subprocess.DEVNULL)


@pytest.mark.parametrize("words", ["--help", "ingest --help", "profiles show sol", "models"])
def test_a_reader_that_has_seen_enough_ends_the_program_quietly(words: str) -> None:
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
    with subprocess.Popen([*PROGRAM, *words.split()], text=True, **pipes) as process:
        assert process.stdout is not None and process.stderr is not None
        process.stdout.close()  # before anything was written
        errors = process.stderr.read()
    assert (process.returncode, errors) == (0, "")


def test_progress_that_nobody_reads_does_not_end_the_work(tmp_path: Path) -> None:
    np.save(tmp_path / "raw.npy", counts((12, 20, 24)))
    words = ["ingest", tmp_path / "raw.npy", "-o", tmp_path / "m.zarr"]
    pipes = {"stdout": subprocess.DEVNULL, "stderr": subprocess.PIPE}
    with subprocess.Popen([*PROGRAM, *words], **pipes) as process:
        assert process.stderr is not None
        process.stderr.close()
    assert process.returncode == 0
    assert (tmp_path / "m.zarr/zarr.json").exists()


@pytest.mark.parametrize("shell", ["bash", "zsh"])
def test_a_shell_completes_commands_and_options(shell: str, capsys: pytest.CaptureFixture[str]) -> None:
    script = shown(capsys, "completion", shell)
    for word in ("ingest", "archive", "add", "--frame-time", "--no-variance", "--gain-orientation"):
        assert word in script
    if shell == "bash":
        words = 'COMP_WORDS=(tdenoise-pipeline ing); COMP_CWORD=1; COMP_LINE="tdenoise-pipeline ing"'
        find = f'{words}; _shtab_tdenoise_pipeline; echo "${{COMPREPLY[@]}}"'
        answer = subprocess.run(["bash", "-c", f"{script}\n{find}"], capture_output=True, text=True)
        assert answer.stdout.split() == ["ingest"], answer.stderr


def test_a_dry_run_of_run_shows_what_each_step_will_do_and_writes_nothing(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    np.save(tmp_path / "raw.npy", counts((12, 20, 24)))
    words = ["run", tmp_path / "raw.npy", "-o", tmp_path / "out", "--time-limit", "20m", "-n"]
    assert run(*words, "--json") == 0
    plan = json.loads(capsys.readouterr().out)
    assert (plan["step"], plan["shape"]) == ("run", [12, 20, 24])
    assert plan["ingest"] == "movie.zarr: to do"
    assert "at most 20 minutes" in plan["train"] and "4 passes" in plan["apply"]
    assert not (tmp_path / "out").exists()
    movie_store(tmp_path / "out", counts((12, 20, 24)))
    assert run(*words) == 0
    said = capsys.readouterr().out
    assert "movie.zarr: done already" in said and "disk estimate  " in said and "_bytes" not in said
    assert run(*words, "--workers", "cloud:3") == 2


@pytest.fixture(scope="module")
def results(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a run, as far as its first three steps go."""
    folder = tmp_path_factory.mktemp("results") / "r"
    movie = movie_store(folder, counts((24, 64, 64)))
    model = model_folder(folder / "model")
    settings = {"output": folder / "denoised.zarr", "share": "0/1", "device": "cpu", "ensemble": 1}
    apply(ApplyConfig(movie=movie, model=model, **settings))
    return folder


def test_settings_take_the_folder_of_a_run_for_what_is_in_it(results: Path) -> None:
    config = ApplyConfig(movie=results, model=results, output="x.zarr")
    assert (config.movie, config.model) == (results / "movie.zarr", results / "model")
    config = EvaluateConfig(denoised=results)
    assert (config.denoised, config.movie) == (results / "denoised.zarr", results / "movie.zarr")
    assert config.model == results / "model"
    assert EvaluateConfig(results / "denoised.zarr", results / "movie.zarr").model is None
    page = ReportConfig(denoised=results)
    assert (page.output, page.force) == (results / "report.html", True)
    assert TrainConfig(movie=results, output="m", from_model=results).movie == (results / "movie.zarr",)
    assert "denoised" in tdenoise_pipeline.open(results)
    with pytest.raises(UsageError, match="needs movie"):
        EvaluateConfig(denoised="d.zarr")


def test_scratch_is_random_weights_whatever_lies_beside(
    results: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(results.parent)
    (results.parent / "scratch").symlink_to(results)
    assert TrainConfig(movie="m.zarr", output="m", from_model="scratch").from_model == Path("scratch")


def test_a_report_that_was_compared_with_a_truth_is_not_replaced_by_one_without(tmp_path: Path) -> None:
    (tmp_path / "denoised.zarr").mkdir()
    (tmp_path / "movie.zarr").mkdir()
    (tmp_path / "metrics.json").write_text('{"made_from": {"truth": "abc"}}')
    assert not ReportConfig(denoised=tmp_path).force
    assert ReportConfig(denoised=tmp_path, truth="t.npz").force


def test_every_verb_takes_the_folder_of_a_run(
    results: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run("verify", results, "--deep") == 0
    said = capsys.readouterr().out
    assert all(name in said for name in ("movie.zarr: 1 shards", "denoised.zarr: 1 shards", "is whole"))
    assert run("apply", results, "--model", results, "-o", tmp_path / "d.zarr", "-n", "--json") == 0
    assert json.loads(capsys.readouterr().out)["step"] == "apply"
    assert run("models", "show", results) == 0
    assert run("archive", "add", results, "-A", tmp_path / "archive", "--json") == 0
    capsys.readouterr()
    assert run("archive", "list", "-A", tmp_path / "archive", "--json") == 0
    kinds = {card["kind"] for card in json.loads(capsys.readouterr().out)["cards"]}
    assert kinds == {"movie", "model", "denoised"}


def test_evaluate_and_report_take_the_folder_of_a_run(
    results: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run("evaluate", results, "--json") == 0
    assert "held_out" in json.loads(capsys.readouterr().out)
    assert run("report", results) == 0
    assert (results / "report.html").exists()
    assert run("report", results) == 0  # the page is the run's to replace


def test_all_damage_in_the_folder_of_a_run_is_named(
    results: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    import shutil

    copy = tmp_path / "copy"
    shutil.copytree(results, copy)
    (copy / "movie.zarr/counts/c/0/0/0").unlink()
    (copy / "denoised.zarr/denoised/c/0/0/0").unlink()
    weights = copy / "model/weights.safetensors"
    weights.write_bytes(weights.read_bytes()[:-1] + b"\x00")
    assert run("verify", copy) == 4
    said = capsys.readouterr().err
    assert all(name in said for name in ("movie.zarr", "denoised.zarr", "model"))


def test_one_flipped_bit_of_a_model_is_found(
    results: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    import shutil

    for name in ("card.json", "weights.safetensors"):
        copy = tmp_path / name
        shutil.copytree(results / "model", copy)
        assert run("verify", copy) == 0 and "is whole" in capsys.readouterr().out
        data = bytearray((copy / name).read_bytes())
        data[len(data) // 2] ^= 4
        (copy / name).write_bytes(data)
        assert run("verify", copy, "--deep") == 4 and name in capsys.readouterr().err


def test_a_folder_that_is_no_run_is_taken_as_it_is(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run("verify", tmp_path) == 3
    assert str(tmp_path) in capsys.readouterr().err
    said = refusal(capsys, "evaluate", tmp_path)
    assert "evaluate needs --movie: movie store it was made from" in said
