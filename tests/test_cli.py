"""What a user types, and what they read when it is wrong."""

from __future__ import annotations

import json
import os
import pty
import select
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import psutil
import pytest
import zarr
from small import counts, model_folder, movie_store
from tdenoise_pipeline.cli import command_line
from tdenoise_pipeline.cli.command_line import main

from tdenoise.network.checkpoint import BASE


def run(*words: object) -> int:
    return main([str(w) for w in words])


def states(printed: str) -> dict[str, str]:
    """What status --json said, by the output's name."""
    return {Path(o["output"]).name: o["state"] for o in json.loads(printed)["outputs"]}


def one_line(text: str) -> str:
    """The error message: one line that begins with the program's name."""
    lines = [line for line in text.strip().splitlines() if line.startswith("tdenoise-pipeline: ")]
    assert len(lines) == 1, text
    assert "Traceback" not in text
    return lines[0].removeprefix("tdenoise-pipeline: ")


@pytest.fixture
def raw(tmp_path: Path) -> Path:
    np.save(tmp_path / "raw.npy", counts((12, 20, 24)))
    return tmp_path / "raw.npy"


def test_ingest_prints_what_it_found_and_json_on_request(
    raw: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run("ingest", raw, "-o", raw.with_name("m.zarr")) == 0
    assert "mean" in capsys.readouterr().out
    assert run("ingest", raw, "-o", raw.with_name("n.zarr"), "--frame-time", "100ms", "--json") == 0
    assert json.loads(capsys.readouterr().out)["kind"] == "movie"


def test_a_dry_run_prints_the_plan_and_writes_nothing(raw: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run("ingest", raw, "-o", raw.with_name("m.zarr"), "-n", "--json") == 0
    assert json.loads(capsys.readouterr().out)["shape"] == [12, 20, 24]
    movie = movie_store(raw.parent / "movie", counts((12, 20, 24)))
    model = model_folder(raw.parent / "model")
    for words in (
        ["apply", movie, "--model", model, "-o", raw.with_name("d.zarr")],
        ["train", movie, "-o", raw.with_name("t")],
    ):
        assert run(*words, "--dry-run", "--json") == 0
        assert json.loads(capsys.readouterr().out)["step"] == words[0]
    assert sorted(p.name for p in raw.parent.iterdir()) == ["model", "movie", "raw.npy"]


def test_the_model_that_comes_with_tdenoise_is_shown(capsys: pytest.CaptureFixture[str]) -> None:
    assert run("models", "show", BASE) == 0
    said = capsys.readouterr().out
    assert "128 pixels away, 16 more where the scene drifts" in said and "simulated movies" in said


@pytest.mark.parametrize(
    ("words", "code", "says"),
    [
        (["ingest", "nothing.tif", "-o", "m.zarr"], 3, "nothing.tif"),
        (["ingest", "text.dm4", "-o", "m.zarr"], 3, "text.dm4"),
        (["ingest", "cut.npy", "-o", "m.zarr"], 3, "--allow-truncated"),
        (["ingest", "two.npy", "-o", "m.zarr"], 3, "at least 3"),
        (["ingest", "raw.npy"], 2, "needs --output"),
        (["ingest", "-o", "m.zarr"], 2, "needs RAW"),
        (["ingest", "raw.npy", "-o", "m.zarr", "--frame-tme", "2"], 2, "Did you mean --frame-time?"),
        (["ingest", "raw.npy", "-o", "m.zarr", "--frame-time", "fast"], 2, "--frame-time 'fast'"),
        (["ingest", "raw.npy", "-o", "m.zarr", "--frames", "9"], 2, "A:B"),
        (["ingest", "raw.npy", "-o", "m.zarr", "--frames", "2:99"], 2, "which has 12"),
        (["ingest", "raw.npy", "-o", "m.zarr", "-c", "unknown.yaml"], 2, "unknown setting 'fps'"),
        (["ingest", "raw.npy", "-o", "m.zarr", "-c", "broken.yaml"], 2, "not valid YAML"),
        (["ingest", "raw.npy", "-o", "m.zarr", "-c", "evil.yaml"], 2, "line 1 has the tag"),
        (["ingest", "raw.npy", "-o", "m.zarr", "-c", "absent.yaml"], 2, "absent.yaml"),
        (["ingest", "raw.npy", "-o", "m.zarr", "-c", "list.yaml"], 2, "list.yaml: frame-time is a list of 2"),
        (["ingest", "raw.npy", "-o", "m.zarr", "-c", "twice.yaml"], 2, "frame-time is set twice"),
        (["ingest", "raw.npy", "-o", "m.zarr", "-c", "nested.yaml"], 2, "frames holds names and values"),
        (["ingest", "raw.npy", "-o", "m.zarr", "-c", "items.yaml"], 2, "lines of the form 'name: value'"),
        (["ingest", "raw.npy", "-o", "there"], 2, "exists already"),
        (["ingest", "raw.npy", "-o", "."], 2, "must end in the name"),
        (["ingest", "raw.npy", "-o", "/"], 2, "must end in the name"),
        (["ingest", "raw.npy", "-o", ""], 2, "must end in the name"),
        (["train", "none.zarr", "-o", "there/.."], 2, "must end in the name"),
        (["run", "raw.npy", "-o", ""], 2, "must name a folder"),
        (["simulate", "-o", ""], 2, "must name a folder"),
        (["apply", "none.zarr", "--model", "m", "-o", "/"], 2, "must end in the name"),
        (["report", "none.zarr", "--movie", "m", "-o", "."], 2, "must end in the name"),
        (["train", "none.zarr", "-o", "model", "--seed", "-1"], 2, "between 0 and 2**63"),
        (["simulate", "-o", "sim", "--seed", "99999999999999999999"], 2, "between 0 and 2**63"),
        (["run", "raw.npy", "-o", "out", "--seed", str(2**63)], 2, "between 0 and 2**63"),
        (["frobnicate"], 2, "there is no command 'frobnicate'. It is one of run, ingest"),
        (["--bogus"], 2, "'--bogus'"),
        (["--bogus=3", "verify", "none.zarr"], 2, "'--bogus'"),
        (["--data", "raw.npy"], 2, "run RAW -o FOLDER"),
        (["run", "raw.npy", "-o", "f", "--num-epochs", "50"], 2, "use --steps"),
        (["train", "raw.npy", "-o", "model"], 3, "raw.npy"),
        (["train", "none.zarr", "-o", "model"], 3, "no such store"),
        (["train", "none.zarr", "-o", "model", "--blind-radius", "7"], 2, "0, 1, 2, frame or auto"),
        (["apply", "none.zarr", "--model", "m", "-o", "d.zarr"], 3, "no such store"),
        (["apply", "none.zarr", "--model", "m", "-o", "d.zarr", "--workers", "cloud:3"], 2, "cloud:3"),
        (["verify", "none.zarr"], 3, "no such store"),
        (["status", "nowhere"], 3, "nothing was started"),
        (["submit", "verify", "x"], 2, "submit needs one of"),
        (["submit", "run", "raw.npy"], 2, "needs --output"),
        (["submit", "run", "raw.npy", "-o", "out", "--workers", "cloud:3", "--print"], 2, "cloud:3"),
        (
            ["submit", "apply", "m", "--model", "m", "-o", "d", "--workers", "cloud:3", "--print"],
            2,
            "cloud:3",
        ),
        (["submit", "--profile", "nowhere", "run", "raw.npy", "-o", "out"], 2, "no profile 'nowhere'"),
        (["submit", "--set", "tme=3", "run", "raw.npy", "-o", "out"], 2, "Did you mean 'time'"),
        (["submit", "--set", "time", "run", "raw.npy", "-o", "out"], 2, "KEY=VALUE"),
        (["submit", "--set"], 2, "--set: expected one argument"),
        (["resume", "raw.npy"], 3, "nothing was started or finished here"),
        (["cancel", "raw.npy"], 3, "no batch run"),
        (["logs", "raw.npy"], 3, "no batch run"),
    ],
)
def test_errors_are_one_sentence_with_the_right_exit_code(
    raw: Path,
    words: list[str],
    code: int,
    says: str,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.chdir(raw.parent)
    Path("text.dm4").write_text("not a movie")
    Path("cut.npy").write_bytes(raw.read_bytes()[:-100])
    np.save("two.npy", counts((2, 8, 8)))
    Path("unknown.yaml").write_text("fps: 3\n")
    Path("broken.yaml").write_text("a: [\n")
    Path("evil.yaml").write_text("frames: !!python/object/apply:os.system ['touch evil']\n")
    Path("list.yaml").write_text("frame-time: [1, 2]\n")
    Path("twice.yaml").write_text("frame_time: 1\nframe-time: 2\n")
    Path("nested.yaml").write_text("force: true\nframes:\n  a: 1\n")
    Path("items.yaml").write_text("- frames\n")
    Path("there").mkdir()
    before = sorted(p.name for p in raw.parent.iterdir())
    assert run(*words) == code
    assert says in one_line(capsys.readouterr().err)
    assert sorted(p.name for p in raw.parent.iterdir()) == before, "nothing half-made is left"


def test_a_model_and_a_movie_that_do_not_fit_are_refused(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    movie = movie_store(tmp_path, counts((12, 20, 24)))
    (tmp_path / "model").mkdir()
    (tmp_path / "model/card.json").write_text('{"profile": 99, "kind": "something else"}')
    assert run("apply", movie, "--model", tmp_path / "model", "-o", tmp_path / "d.zarr") == 3
    assert "is not a split-blind or" in one_line(capsys.readouterr().err)


def test_a_movie_unlike_the_training_movies_is_told(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    movie = movie_store(tmp_path, counts((12, 20, 24), dose=200))
    assert (
        run("apply", movie, "--model", model_folder(tmp_path / "model"), "-o", tmp_path / "d.zarr", "-n") == 0
    )
    assert "adapt the model with 'train --from'" in capsys.readouterr().err


def test_settings_come_from_a_file_and_flags_win(raw: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = raw.with_name("settings.yaml")
    file.write_text(f"raw: {raw}\nframe-time: 500ms\npixel_size: 0.02\nallow-truncated: true\n")
    assert (
        run("ingest", "-c", file, "-o", raw.with_name("m.zarr"), "--frame-time", "250ms", "-n", "--json") == 0
    )
    plan = json.loads(capsys.readouterr().out)
    assert plan["frame_time_s"] == 0.25
    assert plan["pixel_size_nm"] == [0.02, 0.02]


def test_a_settings_file_means_what_the_same_words_mean_as_flags(
    raw: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = raw.with_name("settings.yaml")
    file.write_text("frames: 2:10\nframe-time: null\npixel-size:\nroi: 0:16,0:20\nallow-truncated: true\n")
    assert run("ingest", raw, "-c", file, "-o", raw.with_name("m.zarr"), "-n", "--json") == 0
    plan = json.loads(capsys.readouterr().out)
    assert plan["shape"] == [8, 16, 20]
    assert plan["frame_time_s"] is None and plan["pixel_size_nm"] is None
    file.write_text("frames: 2:10\nforce: yes\n")
    assert run("ingest", raw, "-c", file, "-o", raw.with_name("m.zarr"), "-n") == 2
    assert "force 'yes' is not valid: it must be true or false" in one_line(capsys.readouterr().err)


def test_a_settings_file_may_name_several_movies(raw: Path, capsys: pytest.CaptureFixture[str]) -> None:
    movies = [movie_store(raw.parent / name, counts((12, 20, 24), seed=ord(name))) for name in "ab"]
    file = raw.with_name("settings.yaml")
    file.write_text(f"movie: [{movies[0]}, {movies[1]}]\n")
    assert run("train", "-c", file, "-o", raw.with_name("model"), "-n", "--json") == 0
    assert len(json.loads(capsys.readouterr().out)["movies"]) == 2
    file.write_text("movie: []\n")
    assert run("train", "-c", file, "-o", raw.with_name("model"), "-n") == 2
    assert "needs MOVIE.zarr" in one_line(capsys.readouterr().err)


def test_without_a_command_the_help_is_shown(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as end:
        run()
    assert end.value.code == 2
    assert "usage: tdenoise-pipeline" in capsys.readouterr().out


def test_a_damaged_tiff_is_told_in_one_sentence_of_ours(tmp_path: Path) -> None:
    import tifffile

    raw = tmp_path / "raw.tif"
    tifffile.imwrite(raw, counts((12, 20, 24)), compression="zlib")
    with tifffile.TiffFile(raw) as tiff:
        first_tag = tiff.pages[0].offset + 2
    damaged = bytearray(raw.read_bytes())
    damaged[first_tag + 2 : first_tag + 4] = b"\x63\x00"  # a type that there is not
    raw.write_bytes(damaged)
    # In a process of its own: pytest catches what is logged.
    answer = subprocess.run(
        [sys.executable, "-m", "tdenoise_pipeline.cli", "ingest", raw, "-o", tmp_path / "m.zarr"],
        capture_output=True,
        text=True,
    )
    assert answer.returncode == 3
    assert answer.stderr.startswith("tdenoise-pipeline: ") and answer.stderr.count("\n") == 1


def test_an_unexpected_error_has_no_traceback_unless_asked_for(
    raw: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    from tdenoise_pipeline.ingest import ingest

    monkeypatch.setattr(ingest, "select", lambda *a: 1 / 0)
    assert run("ingest", raw, "-o", raw.with_name("m.zarr")) == 1
    assert "--debug" in one_line(capsys.readouterr().err)
    with pytest.raises(ZeroDivisionError):
        run("ingest", raw, "-o", raw.with_name("m.zarr"), "--debug")


def test_submit_prints_a_script_that_bash_accepts(raw: Path, capsys: pytest.CaptureFixture[str]) -> None:
    odd = raw.rename(raw.with_name("a $(touch evil) 'b'.npy"))
    assert run("submit", "run", odd, "-o", raw.parent / "out", "--print") == 0
    script = capsys.readouterr().out
    assert script.startswith("#!/bin/bash") and "#SBATCH --requeue" in script
    subprocess.run(["bash", "-n"], input=script, text=True, check=True)
    assert sorted(p.name for p in raw.parent.iterdir()) == [odd.name]


def test_submit_of_an_array_queues_the_array_and_no_job_that_only_watches(
    raw: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = raw.parent / "out"
    assert run("submit", "run", raw, "-o", out, "--workers", "array:3", "--print", "--json") == 0
    jobs = {job["kind"]: job for job in json.loads(capsys.readouterr().out)["jobs"]}
    script, name = jobs["apply"]["script"], jobs["apply"]["name"]
    assert "#SBATCH --array=0-2\n" in script and f"--share array@{name} &" in script
    for words in (f"--model {out}/model", f"--output {out}/denoised.zarr", f" {out}/movie.zarr --share"):
        assert words in script
    assert f'/exit/{name}-"$SLURM_ARRAY_TASK_ID"' in script
    assert jobs["apply"]["after"].startswith("--dependency=afterok:JOB-ID")
    # Some tasks may fail, and the output be whole all the same.
    assert jobs["report"]["after"].startswith("--dependency=afterany:JOB-ID")
    assert run("submit", "run", raw, "-o", out, "--workers", "array:3", "--force", "--print") == 0
    assert "--array" not in capsys.readouterr().out  # somebody has to begin


def test_submit_without_slurm_says_what_to_do(
    raw: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PATH", "")
    assert run("submit", "ingest", raw, "-o", raw.with_name("m.zarr")) == 2
    assert "--print" in one_line(capsys.readouterr().err)


def test_verify_ends_with_4_on_damage(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    movie = movie_store(tmp_path, counts((12, 20, 24)))
    assert run("verify", movie, "--deep") == 0
    (movie / "counts/c/0/0/0").unlink()
    assert run("verify", movie) == 4
    assert "is missing" in one_line(capsys.readouterr().err)


def test_a_locked_output_ends_with_6(raw: Path, capsys: pytest.CaptureFixture[str]) -> None:
    from tdenoise_pipeline.runs.progress import OutputRun

    with OutputRun(raw.with_name("m.zarr"), {"step": "test"}):
        assert run("ingest", raw, "-o", raw.with_name("m.zarr")) == 6
    assert "another run holds it" in one_line(capsys.readouterr().err)


def test_status_tells_what_is_done_and_what_is_not(raw: Path, capsys: pytest.CaptureFixture[str]) -> None:
    from tdenoise_pipeline.runs.progress import OutputRun

    run("ingest", raw, "-o", raw.with_name("m.zarr"))
    with OutputRun(raw.with_name("d.zarr"), {"step": "apply", "n_blocks": 7}) as held:
        held.prepare(lambda path: path.mkdir())
        capsys.readouterr()
        assert run("status", raw.parent, "--json") == 0
        assert states(capsys.readouterr().out) == {"m.zarr": "complete", "d.zarr": "running"}
    assert run("status", raw.with_name("d.zarr")) == 0
    assert "interrupted, 0 of 7 blocks done" in capsys.readouterr().out


def test_status_of_the_folder_one_is_in(
    raw: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    run("ingest", raw, "-o", raw.with_name("m.zarr"))
    model_folder(raw.with_name("model"))
    (raw.parent / ".tdenoise/jobs").mkdir(parents=True)
    monkeypatch.chdir(raw.parent)
    capsys.readouterr()
    assert run("status", ".", "--json") == 0
    assert states(capsys.readouterr().out) == {"m.zarr": "complete", "model": "complete"}
    monkeypatch.chdir("m.zarr")
    assert run("status", ".", "--json") == 0
    assert states(capsys.readouterr().out) == {"m.zarr": "complete"}
    assert run("status", "/") in (0, 3)


@pytest.mark.parametrize("lost", ["counts/c/0/0/0", "counts/c", "counts/zarr.json", "zarr.json"])
def test_a_store_that_lacks_files_is_not_called_complete(
    raw: Path, capsys: pytest.CaptureFixture[str], lost: str
) -> None:
    path = raw.with_name("m.zarr")
    run("ingest", raw, "-o", path)
    gone = path / lost
    shutil.rmtree(gone) if gone.is_dir() else gone.unlink()
    capsys.readouterr()
    assert run("status", path) == 0
    (said,) = capsys.readouterr().out.splitlines()
    assert (
        ": damaged, " in said
        and "missing" in said
        and "verify m.zarr --repair" in said
        and "complete" not in said
    )


def test_a_store_whose_metadata_were_changed_is_not_called_complete_nor_never_begun(
    raw: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = raw.with_name("m.zarr")
    run("ingest", raw, "-o", path)
    content = bytearray((path / "zarr.json").read_bytes())
    content[200] ^= 4
    (path / "zarr.json").write_bytes(content)
    for asked in (path, path.parent):
        capsys.readouterr()
        assert run("status", asked) == 0
        assert "m.zarr: damaged, its zarr.json" in capsys.readouterr().out


def test_only_what_is_finished_is_called_complete(raw: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run("ingest", raw, "-o", raw.with_name("m.zarr"))
    (raw.parent / "m.zarr").rename(raw.parent / "m.zarr-partial")
    zarr.create_group(raw.with_name("foreign.zarr"))
    model_folder(raw.with_name("model-partial"))
    capsys.readouterr()
    for path in (raw.parent, raw.with_name("m.zarr-partial")):
        assert run("status", path) == 3
        assert "nothing was started or finished" in one_line(capsys.readouterr().err)


def test_an_output_whose_run_was_killed_before_it_tidied_up_is_complete(
    raw: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run("ingest", raw, "-o", raw.with_name("m.zarr"))
    work = raw.parent / ".tdenoise/m.zarr"
    (work / "done").mkdir(parents=True)
    (work / "plan.json").write_text('{"id": "0", "plan": {"n_blocks": 7}}')
    capsys.readouterr()
    assert run("status", raw.parent, "--json") == 0
    assert states(capsys.readouterr().out) == {"m.zarr": "complete"}
    (raw.parent / "m.zarr-partial").mkdir()  # a run with --force was killed in its midst
    assert run("status", raw.with_name("m.zarr")) == 0
    assert "interrupted, 0 of 7 blocks done" in capsys.readouterr().out


@pytest.mark.parametrize("damage", ["", "[1]", "{}", '{"plan": 3}', '{"plan": {"n_blocks": "x"}}', "\udcff"])
def test_a_damaged_record_does_not_keep_status_from_answering(
    tmp_path: Path, damage: str, capsys: pytest.CaptureFixture[str]
) -> None:
    work = tmp_path / ".tdenoise/d.zarr"
    (work / "lease").mkdir(parents=True)
    (work / "done").mkdir()
    for name in ("plan.json", "lease/owner.json", "done/00000001.json", "done/x.json"):
        (work / name).write_bytes(damage.encode(errors="surrogateescape"))
        os.utime(work / name, (0, 0))  # long ago: whoever wrote it is gone
    assert run("status", tmp_path, "--json") == 0
    [found] = json.loads(capsys.readouterr().out)["outputs"]
    assert (found["state"], found["done"], found["total"]) == ("interrupted", None, None)


def on_a_terminal(folder: Path, *words: str, until: Callable[[psutil.Process, str], bool]) -> tuple[int, str]:
    """Exit code and screen of a command whose terminal sends Ctrl-C once ``until(process, screen)``."""
    ours, theirs = pty.openpty()
    process = subprocess.Popen(
        [sys.executable, "-m", "tdenoise_pipeline.cli", *words],
        cwd=folder,
        stderr=theirs,
        start_new_session=True,
        env={**os.environ, "OMP_NUM_THREADS": "1", "TERM": "xterm"},
    )
    os.close(theirs)
    screen, pressed, watched = "", False, psutil.Process(process.pid)
    try:
        while True:
            if select.select([ours], [], [], 0.005)[0]:
                try:
                    screen += os.read(ours, 65536).decode()
                except OSError:  # the other end is closed
                    break
            if not pressed and until(watched, screen):
                os.killpg(process.pid, signal.SIGINT)  # as a terminal does: to all of the group
                pressed = True
        return process.wait(timeout=60), screen
    finally:
        process.kill()
        os.close(ours)


HIDE, SHOW = "\x1b[?25l", "\x1b[?25h"


def test_ctrl_c_leaves_the_terminal_with_its_cursor(tmp_path: Path) -> None:
    movie_store(tmp_path, counts((30, 64, 64)))
    words = ["train", "movie.zarr", "-o", "model", "--steps", "100000"]
    code, screen = on_a_terminal(tmp_path, *words, until=lambda process, screen: HIDE in screen)
    assert code == 75, screen
    assert screen.count(HIDE) == screen.count(SHOW) == 1


def test_ctrl_c_while_workers_start_is_a_clean_stop(tmp_path: Path) -> None:
    movie_store(tmp_path, counts((12, 20, 24)))
    model_folder(tmp_path / "model")

    def worker_is_born(process: psutil.Process, screen: str) -> bool:
        return any("spawn_main" in " ".join(child.cmdline()) for child in process.children())

    words = ["apply", "movie.zarr", "--model", "model", "-o", "d.zarr", "--workers", "local:2"]
    code, screen = on_a_terminal(tmp_path, *words, until=worker_is_born)
    assert code == 75, screen
    assert "run the same command again" in one_line(screen[screen.rindex("tdenoise-pipeline") :])
    assert "Traceback" not in screen
    assert screen.count(HIDE) == screen.count(SHOW)


def test_ctrl_c_stops_cleanly_and_the_next_run_goes_on(tmp_path: Path) -> None:
    np.save(tmp_path / "raw.npy", counts((30, 64, 64)))
    command = [sys.executable, "-m", "tdenoise_pipeline.cli"]
    subprocess.run([*command, "ingest", "raw.npy", "-o", "m.zarr", "-q"], cwd=tmp_path, check=True)
    process = subprocess.Popen(
        [*command, "train", "m.zarr", "-o", "model", "--steps", "100000"],
        cwd=tmp_path,
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )
    assert process.stderr is not None
    while "train" not in process.stderr.readline():
        pass
    time.sleep(1.0)
    process.send_signal(signal.SIGINT)
    _, errors = process.communicate(timeout=60)
    assert process.returncode == 75, errors
    assert "run the same command again" in one_line(errors[errors.index("tdenoise-pipeline") :])
    assert not (tmp_path / "model").exists()
    assert list((tmp_path / "model-partial").glob("*.safetensors"))


def test_a_second_ctrl_c_ends_at_once(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def press_twice(config: object, control: object) -> dict[str, object]:
        os.kill(os.getpid(), signal.SIGINT)
        os.kill(os.getpid(), signal.SIGINT)
        raise AssertionError("it went on")

    before = signal.getsignal(signal.SIGINT)
    monkeypatch.setitem(
        command_line.COMMANDS, "status", replace(command_line.COMMANDS["status"], run=press_twice)
    )
    try:
        assert run("status", tmp_path) == 130
    finally:
        signal.signal(signal.SIGINT, before)
    assert "interrupted twice" in one_line(capsys.readouterr().err)


def test_nodes_that_share_a_training_count_in_its_cost(
    raw: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    profile = tmp_path / "p.yaml"
    profile.write_text("gpus: 'a100:2'\ntime: '02:00:00'\ntrain:\n  nodes: 3\n")
    words = ["submit", "--profile", profile, "run", raw, "-o", tmp_path / "out", "--time-limit", "30m"]
    assert run(*words, "--print") == 0
    shown = capsys.readouterr().out
    assert "3 nodes with a100:2 GPU" in shown and "about 3 GPU-hours" in shown
    assert not (tmp_path / "out").exists()
