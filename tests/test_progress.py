from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
from tdenoise_pipeline import progress
from tdenoise_pipeline.errors import LockedError, UsageError
from tdenoise_pipeline.progress import OutputRun

PLAN = {"step": "test", "n": 1}

# Holds the output for a moment and says whether it got it; as a program, so that it can race and die.
HOLDER = """
import sys, time
from pathlib import Path
from tdenoise_pipeline.progress import OutputRun
from tdenoise_pipeline.errors import LockedError
output, until, hold = Path(sys.argv[1]), float(sys.argv[2]), float(sys.argv[3])
while time.time() < until:
    pass
try:
    with OutputRun(output, {"step": "test", "n": 1}):
        print("works", flush=True)
        time.sleep(hold)
except LockedError:
    print("locked", flush=True)
"""


def hold(output: Path, until: float = 0, seconds: float = 60) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-c", HOLDER, str(output), str(until), str(seconds)],
        stdout=subprocess.PIPE,
        text=True,
    )


def said(process: subprocess.Popen[str]) -> str:
    assert process.stdout is not None
    return process.stdout.readline().strip()


def test_a_second_run_on_the_same_output_is_refused(tmp_path: Path) -> None:
    with OutputRun(tmp_path / "out", PLAN), pytest.raises(LockedError, match="another run holds it"):
        OutputRun(tmp_path / "out", PLAN).__enter__()
    with OutputRun(tmp_path / "out", PLAN):
        pass


def test_of_runs_that_start_together_exactly_one_works(tmp_path: Path) -> None:
    import time

    for trial in range(2):
        start = time.time() + 2.5
        racers = [hold(tmp_path / f"out{trial}", start, 1.5) for _ in range(3)]
        answers = sorted(said(r) for r in racers)
        for racer in racers:
            racer.communicate()
        assert answers == ["locked", "locked", "works"]


def test_the_lease_of_a_killed_run_is_taken_over_by_exactly_one(tmp_path: Path) -> None:
    import time

    first = hold(tmp_path / "out")
    assert said(first) == "works"
    first.kill()
    first.communicate()
    start = time.time() + 2.5
    racers = [hold(tmp_path / "out", start, 1.5) for _ in range(3)]
    answers = sorted(said(r) for r in racers)
    for racer in racers:
        racer.communicate()
    assert answers == ["locked", "locked", "works"]


def test_a_run_that_lost_its_lease_is_told(tmp_path: Path) -> None:
    run = OutputRun(tmp_path / "out", PLAN)
    with run:
        assert progress.holds_lease(run.folder, run.token)
        assert not progress.holds_lease(run.folder, "another token")


def test_an_old_lease_of_another_host_is_dead_and_a_fresh_one_is_not(tmp_path: Path) -> None:
    import os
    import time

    run = OutputRun(tmp_path / "out", PLAN)
    run.lease.mkdir(parents=True)
    owner = {"token": "t", "host": "elsewhere", "pid": 1, "process_start": "1", "job": "77"}
    (run.lease / "owner.json").write_text(json.dumps(owner))
    with pytest.raises(LockedError, match="on elsewhere, Slurm job 77"):
        OutputRun(tmp_path / "out", PLAN).__enter__()
    old = time.time() - progress.STALE_S - 1
    os.utime(run.lease / "owner.json", (old, old))
    with OutputRun(tmp_path / "out", PLAN):
        pass


@pytest.mark.parametrize(
    "job, surroundings, freed",
    [
        ("17", {}, False),
        ("17", {"SLURM_JOB_ID": "17"}, True),  # it was queued again, and runs elsewhere now
        ("17", {"TDENOISE_ENDED_JOBS": "16 17"}, True),  # 'resume' has asked Slurm
        ("17", {"TDENOISE_ENDED_JOBS": "1 170"}, False),
        ("17_3", {"TDENOISE_ENDED_JOBS": "17"}, True),  # a task of an array that is over
        ("17_3", {"SLURM_JOB_ID": "20", "SLURM_ARRAY_JOB_ID": "17", "SLURM_ARRAY_TASK_ID": "3"}, True),
        # The last task of an array has the number of the array: that says nothing about the others.
        ("17_3", {"SLURM_JOB_ID": "17", "SLURM_ARRAY_JOB_ID": "17", "SLURM_ARRAY_TASK_ID": "4"}, False),
        (None, {"TDENOISE_ENDED_JOBS": "17"}, False),
    ],
)
def test_the_lease_of_a_job_that_has_surely_ended_on_another_host_is_free(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    job: str | None,
    surroundings: dict[str, str],
    freed: bool,
) -> None:
    for name, value in surroundings.items():
        monkeypatch.setenv(name, value)
    run = OutputRun(tmp_path / "out", PLAN)
    run.lease.mkdir(parents=True)
    owner = {"token": "t", "host": "elsewhere", "pid": 1, "process_start": "1", "job": job}
    (run.lease / "owner.json").write_text(json.dumps(owner))
    if freed:
        with run:
            return
    with pytest.raises(LockedError, match="process 1 on elsewhere"):
        run.__enter__()


def test_other_settings_do_not_continue_an_unfinished_output(tmp_path: Path) -> None:
    with OutputRun(tmp_path / "out", PLAN) as run:
        run.prepare(lambda path: path.mkdir())
        progress.mark(run.folder, 3, {"shards": {}}, run.token)
    with pytest.raises(UsageError, match="n was 1, is 2"):
        OutputRun(tmp_path / "out", {"step": "test", "n": 2}).__enter__()
    with OutputRun(tmp_path / "out", PLAN) as run:
        run.prepare(lambda path: pytest.fail("it is there already"))
        assert list(run.done()) == [3]
    with OutputRun(tmp_path / "out", {"step": "test", "n": 2}, force=True) as run:
        run.prepare(lambda path: path.mkdir())
        assert not run.done()


def test_an_output_appears_whole_and_nothing_is_left_beside_it(tmp_path: Path) -> None:
    with OutputRun(tmp_path / "out", PLAN) as run:
        run.prepare(lambda path: path.mkdir())
        (run.partial / "data").write_text("all of it")
        assert not run.output.exists()
        run.commit()
    assert (tmp_path / "out/data").read_text() == "all of it"
    assert [p.name for p in tmp_path.iterdir()] == ["out"]


def test_an_existing_output_is_replaced_only_with_force(tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    (tmp_path / "out/card.json").write_text('{"architecture": {}}')
    (tmp_path / "out/old").touch()
    with pytest.raises(UsageError, match="--force"):
        OutputRun(tmp_path / "out", PLAN).__enter__()
    with OutputRun(tmp_path / "out", PLAN, force=True) as run:
        run.prepare(lambda path: path.mkdir())
        assert (tmp_path / "out/old").exists(), "the old one stays until the new one is complete"
        run.commit()
    assert not (tmp_path / "out/old").exists()


def test_what_tdenoise_did_not_make_is_never_replaced(tmp_path: Path) -> None:
    (tmp_path / "folder").mkdir()
    (tmp_path / "folder/thesis.txt").write_text("years of work")
    (tmp_path / "raw.tif").write_bytes(b"the only copy")
    (tmp_path / "link").symlink_to(tmp_path / "folder")
    (tmp_path / "dangling").symlink_to(tmp_path / "nowhere")
    for name in ("folder", "raw.tif", "link", "dangling"):
        with pytest.raises(UsageError, match="is not replaced"):
            OutputRun(tmp_path / name, PLAN, force=True).__enter__()
    (tmp_path / "new-partial").mkdir()
    with pytest.raises(UsageError, match="belongs to no run"):
        OutputRun(tmp_path / "new", PLAN, force=True).__enter__()
    assert (tmp_path / "folder/thesis.txt").exists() and (tmp_path / "raw.tif").exists()
    assert not (tmp_path / ".tdenoise").exists()


def test_an_output_that_is_or_holds_an_input_is_refused(tmp_path: Path) -> None:
    (tmp_path / "inputs").mkdir()
    movie = tmp_path / "inputs/movie.zarr"
    movie.mkdir()
    for output in (movie, tmp_path / "inputs", tmp_path / "inputs/../inputs/movie.zarr"):
        with pytest.raises(UsageError, match="is, or holds, the input"):
            OutputRun(output, PLAN, [movie], force=True).__enter__()


def test_damaged_progress_files_lose_nothing_but_the_block(tmp_path: Path) -> None:
    with OutputRun(tmp_path / "out", PLAN) as run:
        run.prepare(lambda path: path.mkdir())
        for number in range(3):
            progress.mark(run.folder, number, {"shards": {}}, run.token)
        folder = run.folder
    (folder / "done/00000000.json").write_text("{")
    (folder / "done/00000001.json").write_text("[]")
    (folder / "done/x.json").write_text("{}")
    with OutputRun(tmp_path / "out", PLAN) as run:
        assert list(run.done()) == [2]
    for damage in ("{", "[]", '{"id": 1}'):
        (folder / "plan.json").write_text(damage)
        with pytest.raises(UsageError, match="--force"):
            OutputRun(tmp_path / "out", PLAN).__enter__()
    with OutputRun(tmp_path / "out", PLAN, force=True) as run:
        run.prepare(lambda path: path.mkdir())
        assert not run.done()


@pytest.mark.chaos
def test_runs_that_come_and_go_never_hold_an_output_together(tmp_path: Path) -> None:
    code = """
import os, random, sys, time
from pathlib import Path
from tdenoise_pipeline import progress
from tdenoise_pipeline.errors import LockedError
folder, seed, until = Path(sys.argv[1]), int(sys.argv[2]), float(sys.argv[3])
progress.HEARTBEAT_S = 0.01
rng, held = random.Random(seed), 0
while time.time() < until:
    try:
        with progress.OutputRun(folder / "out", {"step": "test"}, force=True) as run:
            os.close(os.open(folder / "alone", os.O_CREAT | os.O_EXCL))
            run.prepare(lambda path: path.mkdir())
            time.sleep(rng.random() * 0.003)
            assert progress.holds_lease(run.folder, run.token)
            os.unlink(folder / "alone")
            if rng.random() < 0.5:
                run.commit()
            held += 1
    except LockedError:
        pass
print(held)
"""
    import time

    until = str(time.time() + 6)
    racers = [
        subprocess.Popen(
            [sys.executable, "-c", code, str(tmp_path), str(seed), until], stdout=subprocess.PIPE
        )
        for seed in range(3)
    ]
    answers = [racer.communicate()[0] for racer in racers]
    assert [racer.returncode for racer in racers] == [0, 0, 0]
    assert sum(map(int, answers)) > 10


def test_a_creation_that_was_cut_short_is_done_again(tmp_path: Path) -> None:
    with OutputRun(tmp_path / "out", PLAN) as run:
        run.partial.mkdir()
        (run.partial / "half").touch()
    with OutputRun(tmp_path / "out", PLAN) as run:
        run.prepare(lambda path: path.mkdir())
        assert not (run.partial / "half").exists()
