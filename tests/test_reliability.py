"""Crashes, damage, repair and resume; benchmarks/reliability.py does the same at length."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from small import TINY, counts, model_folder, movie_store, network
from tdenoise_pipeline.apply.apply import apply
from tdenoise_pipeline.archive.verify import verify
from tdenoise_pipeline.cli import command_line
from tdenoise_pipeline.errors import (
    InputError,
    LockedError,
    Stopped,
    UsageError,
    VerificationError,
)
from tdenoise_pipeline.files import fault_points
from tdenoise_pipeline.files.sealed_json import read_json
from tdenoise_pipeline.runs import paths
from tdenoise_pipeline.runs.progress import OutputRun
from tdenoise_pipeline.settings.config import ApplyConfig, RunConfig, VerifyConfig
from tdenoise_pipeline.settings.workers import Workers
from tdenoise_pipeline.step_control import Control
from tdenoise_pipeline.workflow.repair import repair as mend
from tdenoise_pipeline.workflow.resume import resume
from tdenoise_pipeline.workflow.run import run

ROOT = Path(__file__).parents[1]
SHAPE = (70, 12, 14)  # 3 shards


def apart(*words: str) -> str:
    """Run Python in a process of its own, which may be forked; what it printed."""
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        [sys.executable, *words], cwd=ROOT, env=environment, capture_output=True, text=True, timeout=3600
    )
    assert done.returncode == 0, done.stdout[-5000:] + done.stderr[-2000:]
    return done.stdout


@pytest.mark.chaos
def test_a_crash_at_any_point_shows_nothing_or_all_and_is_made_good_by_the_same_command() -> None:
    # The case begins with every one of faults.POINTS, in one step or another.
    n_points = len(fault_points.POINTS)
    printed = apart("benchmarks/reliability.py", "--case", "S3", "--trials", str(n_points))
    assert f"S3: {n_points} trials, 0 failures" in printed


@pytest.mark.chaos
@pytest.mark.parametrize(
    "trials", [4]
)  # `make reliability` tries more; tests/test_power_cut.py 600 in a tiny step
def test_a_flipped_bit_in_what_a_killed_run_left_is_neither_silent_nor_in_the_way(trials: int) -> None:
    printed = apart("benchmarks/reliability.py", "--case", "S14", "--trials", str(trials))
    assert f"S14: {trials} trials, 0 failures" in printed


@pytest.mark.chaos
@pytest.mark.parametrize("trials", [5])
def test_after_a_power_cut_at_any_moment_the_same_command_goes_on(trials: int) -> None:
    printed = apart("benchmarks/reliability.py", "--case", "S4", "--trials", str(trials))
    assert f"S4: {trials} trials, 0 failures" in printed


@pytest.mark.chaos
def test_late_writers_races_errors_of_the_disk_and_dead_leases_do_no_harm() -> None:
    cases = ("F7", "F11", "S2", "S7", "S9", "S10")
    printed = apart("benchmarks/reliability.py", "--case", *cases, "--trials", "2")
    for case in cases:
        assert f"{case}: 2 trials, 0 failures" in printed


@pytest.mark.chaos
def test_whatever_happens_in_any_order_a_reader_sees_nothing_or_all() -> None:
    apart("-m", "pytest", "-q", "-p", "no:cacheprovider", "tests/chaos.py")


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory, workers: str) -> Path:
    """A folder with a movie, two models, and denoised stores without and with variance."""
    folder = tmp_path_factory.mktemp("made")
    movie_store(folder, counts(SHAPE), frame_time=0.01)
    gamma = network(replace(TINY, head="gamma"))
    assert gamma.spread is not None
    torch.nn.init.normal_(gamma.spread.weight)
    model_folder(folder / "gamma", gamma)
    model_folder(folder / "other", network(seed=1))
    for name in ("denoised", "uncertain"):
        apply(
            ApplyConfig(
                movie=folder / "movie.zarr",
                model=folder / "gamma",
                output=folder / f"{name}.zarr",
                ensemble=1,
                workers=workers,
                variance=name == "uncertain",
            )
        )
    return folder


def contents(path: Path) -> dict[str, bytes]:
    return {p.relative_to(path).as_posix(): p.read_bytes() for p in sorted(path.rglob("*")) if p.is_file()}


def copied(made: Path, name: str, tmp_path: Path) -> Path:
    shutil.copytree(made / f"{name}.zarr", tmp_path / f"{name}.zarr")
    return tmp_path / f"{name}.zarr"


def repair(made: Path, store: Path, workers: str, **given: Path) -> VerifyConfig:
    sources = {"raw": made / "raw.npy"}
    if store.name != "movie.zarr":
        sources = {"movie": made / "movie.zarr", "model": made / "gamma"}
    return VerifyConfig(store=store, repair=True, workers=workers, **{**sources, **given})


def flip(file: Path) -> None:
    data = bytearray(file.read_bytes())
    data[len(data) // 3] ^= 4
    file.write_bytes(data)


def cut(file: Path) -> None:
    file.write_bytes(file.read_bytes()[:-1])


def swap(file: Path) -> None:
    other = file.parents[2] / "0" / "0" / "0"
    mine = file.read_bytes()
    file.write_bytes(other.read_bytes())
    other.write_bytes(mine)


@pytest.mark.parametrize("name", ["movie", "denoised", "uncertain"])
@pytest.mark.parametrize(
    ("damage", "frames"),
    [
        (flip, "frames 32 to 63"),
        (cut, "frames 32 to 63"),
        (Path.unlink, "frames 32 to 63"),
        (swap, "frames 0 to 31"),
    ],
)
def test_damage_of_a_shard_is_told_with_its_frames_and_repaired(
    made: Path,
    workers: str,
    tmp_path: Path,
    name: str,
    damage: Callable[[Path], None],
    frames: str,
) -> None:
    store = copied(made, name, tmp_path)
    before = contents(store)
    array = {"movie": "counts", "denoised": "denoised", "uncertain": "variance"}[name]
    damage(store / array / "c" / "1" / "0" / "0")
    with pytest.raises(VerificationError, match=f"{array}.*{frames}"):
        verify(VerifyConfig(store=store, deep=True))
    result = mend(repair(made, store, workers))
    assert result["repaired"] == (2 if damage is swap else 1)
    assert contents(store) == before
    assert [p.name for p in tmp_path.iterdir()] == [store.name]


@pytest.mark.parametrize("name", ["movie", "denoised", "uncertain"])
def test_damage_of_any_other_file_is_told_and_repaired(
    made: Path, workers: str, tmp_path: Path, name: str
) -> None:
    store = copied(made, name, tmp_path)
    before = contents(store)
    small = [f for f in before if not f.startswith(("counts/c/", "denoised/c/", "variance/c/"))]
    assert {"zarr.json", "integrity/zarr.json"} <= set(small)
    for file in small:
        flip(store / file)
        with pytest.raises(VerificationError, match=store.name):
            verify(VerifyConfig(store=store))
    # All of them at once cannot be mended once neither copy of what made the store can be read.
    cut(store / "zarr.json")
    cut(store / "integrity/zarr.json")
    with pytest.raises(VerificationError, match="copy"):
        mend(repair(made, store, workers))
    (store / "integrity/zarr.json").write_bytes(before["integrity/zarr.json"])
    (store / "stranger").write_text("x")
    mend(repair(made, store, workers))
    assert contents(store) == before


def test_a_bit_that_makes_metadata_nonsense_is_damage_and_no_crash(made: Path, tmp_path: Path) -> None:
    store = copied(made, "movie", tmp_path)
    for name in (
        "integrity/counts/zarr.json",
        "counts/zarr.json",
        "t/zarr.json",
        "integrity/zarr.json",
        "zarr.json",
    ):
        file = store / name
        sound = file.read_bytes()
        for position in range(0, len(sound), max(1, len(sound) // 12)):
            data = bytearray(sound)
            data[position] ^= 2  # names of settings become others
            file.write_bytes(data)
            with pytest.raises((VerificationError, InputError)):
                verify(VerifyConfig(store=store, deep=True))
        file.write_bytes(sound)
    verify(VerifyConfig(store=store, deep=True))


def test_repair_refuses_another_source_and_leaves_the_store_alone(
    made: Path, workers: str, tmp_path: Path
) -> None:
    np.save(tmp_path / "raw.npy", counts(SHAPE, seed=9))
    for name, given, kind in (
        ("movie", {"raw": tmp_path / "raw.npy"}, (InputError, VerificationError)),
        ("denoised", {"model": made / "other"}, (InputError,)),
        ("denoised", {"movie": None}, (UsageError,)),
        ("movie", {"raw": None}, (UsageError,)),
    ):
        store = copied(made, name, tmp_path)
        cut(store / {"movie": "counts", "denoised": "denoised"}[name] / "c" / "2" / "0" / "0")
        before = contents(store)
        with pytest.raises(kind):
            mend(repair(made, store, workers, **given))  # type: ignore[arg-type]
        assert contents(store) == before
        shutil.rmtree(store)
        shutil.rmtree(paths.work_folder(store), ignore_errors=True)
        shutil.rmtree(paths.partial_path(store), ignore_errors=True)


def test_repair_waits_for_no_other_run(made: Path, workers: str, tmp_path: Path) -> None:
    store = copied(made, "denoised", tmp_path)
    cut(store / "denoised" / "c" / "0" / "0" / "0")
    with OutputRun(store, {"step": "test"}, force=True), pytest.raises(LockedError, match="another run"):
        mend(repair(made, store, workers))


def stop_after_the_first(what: str) -> Control:
    control = Control()

    def progressed(step: str, done: int, total: int) -> None:
        if step == what and done:
            control.stop.set()

    control.progress = progressed
    return control


def test_resume_goes_on_with_the_settings_the_output_was_begun_with(
    made: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    output = tmp_path / "out.zarr"
    config = ApplyConfig(
        movie=made / "movie.zarr",
        model=made / "gamma",
        output=output,
        ensemble=1,
        workers="local:1",
        variance=True,
    )
    with pytest.raises(Stopped):
        apply(config, stop_after_the_first("apply"))
    done = len(list((paths.work_folder(output) / "done").glob("*.json")))
    assert 0 < done < 3 and not output.exists()
    assert command_line.main(["resume", str(output), "-q"]) == 0
    for name in ("denoised", "variance"):
        assert contents(output / name) == contents(made / "uncertain.zarr" / name)
    capsys.readouterr()
    assert command_line.main(["resume", str(output)]) == 0
    assert "nothing is unfinished" in capsys.readouterr().out
    assert command_line.main(["resume", str(tmp_path / "none"), "-q"]) == 3


def test_resume_of_a_folder_goes_on_with_all_steps_of_run(made: Path, tmp_path: Path, workers: str) -> None:
    config = RunConfig(
        raw=made / "raw.npy", output=tmp_path / "out", steps=2, ensemble=2, frame_time=0.01, workers=workers
    )
    with pytest.raises(Stopped) as stopped:
        run(config, stop_after_the_first("train"))
    assert stopped.value.exit_code == 75 and not (tmp_path / "out" / "denoised.zarr").exists()
    assert resume(tmp_path / "out", workers=Workers.of(workers)) == {"resumed": [str(tmp_path / "out")]}
    assert (tmp_path / "out" / "report.html").exists()
    settings = read_json(tmp_path / "out" / "denoised.zarr" / "zarr.json")["attributes"]["tdenoise"]
    assert settings["settings"]["ensemble"] == 2
    assert not (tmp_path / "out" / ".tdenoise").exists()


def test_a_record_that_is_damaged_is_no_reason_to_guess(made: Path, tmp_path: Path) -> None:
    output = tmp_path / "out.zarr"
    folder = paths.work_folder(output)
    folder.mkdir(parents=True)
    (folder / "command.json").write_text('{"step": "apply", "settings": {"none": 1}}')
    with pytest.raises(InputError, match="Run the same command again"):
        resume(output)
