from __future__ import annotations

import contextlib
import os
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from tdenoise_pipeline.errors import LockedError, Stopped, UsageError
from tdenoise_pipeline.files.sealed_json import write_sealed
from tdenoise_pipeline.runs import lease, markers, progress
from tdenoise_pipeline.runs.lease import holds_lease, lease_holder, this_process
from tdenoise_pipeline.runs.progress import OutputRun

PLAN = {"step": "test", "n": 1}

# Holds the output for a moment and says whether it got it; as a program, so that it can race and die.
HOLDER = """
import sys, time
from pathlib import Path
from tdenoise_pipeline.runs.progress import OutputRun
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
    for trial in range(2):
        start = time.time() + 2.5
        racers = [hold(tmp_path / f"out{trial}", start, 1.5) for _ in range(3)]
        answers = sorted(said(r) for r in racers)
        for racer in racers:
            racer.communicate()
        assert answers == ["locked", "locked", "works"]


def test_the_lease_of_a_killed_run_is_taken_over_by_exactly_one(tmp_path: Path) -> None:
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
        assert holds_lease(run.folder, run.token)
        assert not holds_lease(run.folder, "another token")


ELSEWHERE = {"token": "t", "host": "elsewhere", "pid": 1, "process_start": "1", "job": "77"}


def foreign_lease(run: OutputRun, **owner: object) -> Path:
    """A lease that a process of another machine holds."""
    run.lease.mkdir(parents=True)
    write_sealed(run.lease / "owner.json", ELSEWHERE | owner)
    return run.lease


def quick(monkeypatch: pytest.MonkeyPatch, stale_s: float, quiet_s: float = 600.0) -> None:
    monkeypatch.setattr(lease, "LOOK_S", 0.01)
    monkeypatch.setattr(lease, "STALE_S", stale_s)
    monkeypatch.setattr(lease, "QUIET_S", quiet_s)


@pytest.mark.parametrize("shared", [False, True])
@pytest.mark.parametrize("here", [False, True])
def test_what_a_power_cut_left_beside_a_finished_output_is_removed_by_the_same_command(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, here: bool, shared: bool
) -> None:
    quick(monkeypatch, stale_s=600, quiet_s=0.1)
    run = OutputRun(tmp_path / "out", {"step": "test"})
    held = lease.this_process() | {"boot": "before the power cut"} | ({} if here else {"host": "elsewhere"})
    (run.lease / "members").mkdir(parents=True)
    write_sealed(run.lease / "owner.json", {"token": "t", "group": "g"} if shared else held | {"token": "t"})
    if shared:
        write_sealed(run.lease / "members" / "m.json", held)
    else:
        (run.lease / "members").rmdir()
    run.output.mkdir()
    progress.tidy_up(run.output)
    assert sorted(path.name for path in tmp_path.iterdir()) == (["out"] if here else [".tdenoise", "out"])


@contextlib.contextmanager
def beating(file: Path, ahead_s: float) -> Iterator[None]:
    """Give a file signs of life, by a clock that is so much ahead."""
    over = threading.Event()

    def beat() -> None:
        while not over.wait(0.02):
            file.touch()
            os.utime(file, (time.time() + ahead_s,) * 2)

    thread = threading.Thread(target=beat)
    thread.start()
    try:
        yield
    finally:
        over.set()
        thread.join()


@pytest.mark.parametrize("ahead_s", [0, 700, -700, 2 * 86400, -2 * 86400])
def test_a_run_elsewhere_that_lives_keeps_its_lease_whatever_the_clocks_say(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, ahead_s: float
) -> None:
    quick(monkeypatch, 1.0)
    run = OutputRun(tmp_path / "out", PLAN)
    file = foreign_lease(run) / "heartbeat"
    with beating(file, ahead_s):
        with pytest.raises(LockedError, match="process 1 on elsewhere, Slurm job 77"):
            run.__enter__()
        assert lease_holder(run.folder) == "process 1 on elsewhere, Slurm job 77"


@pytest.mark.parametrize("ahead_s", [0, -7 * 86400, 7 * 86400])
def test_a_run_elsewhere_that_shows_no_sign_of_life_while_we_look_is_dead(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, ahead_s: float, caplog: pytest.LogCaptureFixture
) -> None:
    quick(monkeypatch, 0.2)
    caplog.set_level("WARNING", logger="tdenoise_pipeline")
    run = OutputRun(tmp_path / "out", PLAN)
    os.utime(foreign_lease(run) / "owner.json", (time.time() + ahead_s,) * 2)
    begun = time.monotonic()
    assert lease_holder(run.folder, 0.0) is not None, "one look does not tell"
    with run:
        assert time.monotonic() - begun > 0.2
    assert "Watching for a sign of life" in caplog.text


def test_a_stop_ends_the_watch_for_a_sign_of_life(tmp_path: Path) -> None:
    stop = threading.Event()
    stop.set()
    run = OutputRun(tmp_path / "out", PLAN, stop=stop)
    foreign_lease(run)
    with pytest.raises(Stopped, match="run the same command again"):
        run.__enter__()


@pytest.mark.parametrize("changed", [{"boot": "before the power cut"}, {"pids": "pid:[1]"}])
def test_a_run_in_another_container_or_before_a_reboot_is_watched_and_not_looked_up(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, changed: dict[str, str]
) -> None:
    run = OutputRun(tmp_path / "out", PLAN)
    file = foreign_lease(run, **(this_process() | {"pid": 2**22 + 1} | changed)) / "heartbeat"
    quick(monkeypatch, 600.0, quiet_s=0.2)
    with beating(file, 0), pytest.raises(LockedError, match="process 4194305 on"):
        run.__enter__()
    with run:
        pass


@pytest.mark.parametrize("owner", [b"", b"{", b"[]", b"{}", b'{"token": "a/../../b"}', None, "flipped"])
def test_a_lease_that_does_not_say_whose_it_is_holds_nothing(
    tmp_path: Path, owner: bytes | str | None
) -> None:
    for _ in range(2):  # its grave is no hindrance to the next
        run = OutputRun(tmp_path / "out", PLAN)
        run.lease.mkdir(parents=True)
        if owner == "flipped":
            write_sealed(run.lease / "owner.json", ELSEWHERE)
            flip(run.lease / "owner.json", 99)
        elif isinstance(owner, bytes):
            (run.lease / "owner.json").write_bytes(owner)
        with run:
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
    foreign_lease(run, job=job)
    if freed:
        with run:
            return
    assert str(lease_holder(run.folder, 0.0)).startswith("process 1 on elsewhere")


def test_other_settings_do_not_continue_an_unfinished_output(tmp_path: Path) -> None:
    with OutputRun(tmp_path / "out", PLAN) as run:
        run.prepare(lambda path: path.mkdir())
        markers.mark(run.folder, 3, {"shards": {}}, run.token)
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
    with pytest.raises(UsageError, match="does not belong to a run"):
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


def flip(file: Path, bit: int) -> None:
    """Change one bit of a file, if it is there."""
    if file.exists():
        data = bytearray(file.read_bytes())
        data[bit // 8 % len(data)] ^= 1 << bit % 8
        file.write_bytes(data)


def test_damaged_progress_files_lose_nothing_but_the_block(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    with OutputRun(tmp_path / "out", PLAN) as run:
        run.prepare(lambda path: path.mkdir())
        for number in range(3):
            markers.mark(run.folder, number, {"shards": {}}, run.token)
        folder = run.folder
    (folder / "done/00000000.json").write_text("{")
    (folder / "done/00000001.json").write_text('{"shards": {}}')  # as an earlier version wrote it
    (folder / "done/x.json").write_text("{}")
    caplog.set_level("WARNING", logger="tdenoise_pipeline")
    with OutputRun(tmp_path / "out", PLAN) as run:
        assert list(run.done()) == [2]
    assert "00000000.json: is damaged" in caplog.text and "00000001.json: is damaged" in caplog.text
    for damage in (b"{", b"[]", b'{"id": 1}', None):
        with OutputRun(tmp_path / "out", PLAN) as run:
            run.prepare(lambda path: path.mkdir())
            markers.mark(run.folder, 0, {"shards": {}}, run.token)
        if damage is None:
            flip(folder / "plan.json", 77)
        else:
            (folder / "plan.json").write_bytes(damage)
        caplog.clear()
        with OutputRun(tmp_path / "out", PLAN) as run:
            assert not run.begun and not run.done()
        assert "starting over" in caplog.text


def test_files_that_were_damaged_or_half_completed_since_are_what_they_were_at_the_start(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    def create(path: Path) -> None:
        (path / "t").mkdir(parents=True)
        (path / "zarr.json").write_text("metadata")
        (path / "t/zarr.json").write_text("axis")

    with OutputRun(tmp_path / "out", PLAN) as run:
        run.prepare(create)
        (run.partial / "t/shard").write_text("counts")
        (run.partial / "integrity").mkdir()
        flip(run.partial / "zarr.json", 3)
        (run.partial / "t/zarr.json").unlink()
    caplog.set_level("WARNING", logger="tdenoise_pipeline")
    with OutputRun(tmp_path / "out", PLAN) as run:
        run.prepare(create)
        assert "written again: t/zarr.json, zarr.json" in caplog.text
        found = {f.relative_to(run.partial).as_posix(): f.read_text() for f in run.partial.rglob("*.*")}
        assert found == {"zarr.json": "metadata", "t/zarr.json": "axis"}
        assert (run.partial / "t/shard").exists() and not (run.partial / "integrity").exists()
        flip(run.folder / "created", 9)
    with OutputRun(tmp_path / "out", PLAN) as run:
        run.prepare(create)
        assert not (run.partial / "t/shard").exists(), "nothing says what it was"


@pytest.mark.chaos
def test_runs_that_come_and_go_never_hold_an_output_together(tmp_path: Path) -> None:
    code = """
import os, random, sys, time
from pathlib import Path
from tdenoise_pipeline.runs import lease, progress
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
            assert lease.holds_lease(run.folder, run.token)
            os.unlink(folder / "alone")
            if rng.random() < 0.5:
                run.commit()
            held += 1
    except LockedError:
        pass
print(held)
"""
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
