"""One output made by several processes that share nothing but the file system."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import signal
import subprocess
import sys
import threading
import time
from dataclasses import dataclass
from pathlib import Path

import psutil
import pytest
from small import counts, model_folder, movie_store
from tdenoise_pipeline.apply.apply import apply
from tdenoise_pipeline.archive.verify import verify
from tdenoise_pipeline.errors import LockedError, Stopped, UsageError
from tdenoise_pipeline.files.sealed_json import write_sealed
from tdenoise_pipeline.runs import lease, markers, paths, shared_run
from tdenoise_pipeline.runs.lease import holds_lease, this_process
from tdenoise_pipeline.runs.progress import OutputRun, tidy_up
from tdenoise_pipeline.runs.shared_run import SharedRun
from tdenoise_pipeline.settings.config import ApplyConfig, VerifyConfig
from tdenoise_pipeline.settings.steps import single
from tdenoise_pipeline.slurm.batch_script import JobProfile
from tdenoise_pipeline.slurm.job_reasons import Pending, hopeless
from tdenoise_pipeline.step_control import Control
from tdenoise_pipeline.workers import shares
from tdenoise_pipeline.workers.job_array import render, task_words
from tdenoise_pipeline.workers.preflight import command, difference, versions
from tdenoise_pipeline.workers.shares import Share, parse_share, work

PLAN = {"step": "test", "n": 1}


@dataclass(frozen=True)
class Piece:
    number: int


PIECES = [Piece(n) for n in range(7)]


def shared(folder: Path, group: str = "g", **options: object) -> SharedRun:
    return SharedRun(folder / "out", PLAN, group=group, **options)  # type: ignore[arg-type]


def begin(run: SharedRun) -> None:
    run.prepare(lambda path: path.mkdir())


def numbers(run: SharedRun, share: Share, pieces: list[Piece] = PIECES, stop: int = 99) -> list[int]:
    """Do the work of a share, at most so many pieces; what was done."""
    found = []

    def function(piece: Piece) -> None:
        markers.mark(run.folder, piece.number, {"shards": {}}, run.token, run.member)
        found.append(piece.number)

    for _ in work(run, share, pieces, function, Control()):
        if len(found) >= stop:
            break
    return found


@pytest.mark.parametrize(
    "text, share",
    [
        ("0/1", Share(0, 1, "1-shares")),
        ("7/8", Share(7, 8, "8-shares")),
        ("3/4@run.1", Share(3, 4, "run.1")),
        ("array", Share(1, 4, "job-70")),
        ("array@mine", Share(1, 4, "mine")),
    ],
)
def test_a_share_is_understood(text: str, share: Share) -> None:
    task = {
        "SLURM_ARRAY_JOB_ID": "70",
        "SLURM_ARRAY_TASK_ID": "3",
        "SLURM_ARRAY_TASK_MIN": "2",
        "SLURM_ARRAY_TASK_COUNT": "4",
    }
    assert parse_share(text, task) == share


@pytest.mark.parametrize(
    "text", ["", "4/4", "-1/4", "1", "1/0", "array", "0/4@", "0/4@a b", "0/4@../x", "a/b"]
)
def test_other_shares_are_refused(text: str) -> None:
    if text == "0/4@":
        assert parse_share(text, {}) == Share(0, 4, "4-shares")
        return
    with pytest.raises(UsageError, match="--share"):
        parse_share(text, {})


def test_shares_cover_everything_once() -> None:
    for count in (1, 2, 3, 7, 9):
        parts = [Share(i, count, "g").of(PIECES) for i in range(count)]
        assert [p for part in parts for p in part] == PIECES


def test_who_shares_works_together_and_strangers_are_refused(tmp_path: Path) -> None:
    with shared(tmp_path) as one, shared(tmp_path) as two:
        begin(one)
        (one.partial / "a file").touch()
        begin(two)
        assert (two.partial / "a file").exists(), "begun once"
        with pytest.raises(LockedError, match="another run holds it"):
            OutputRun(tmp_path / "out", PLAN).__enter__()
        with pytest.raises(LockedError, match="another run holds it"):
            shared(tmp_path, "another").__enter__()
        with pytest.raises(UsageError, match="other settings"):
            SharedRun(tmp_path / "out", {"n": 2}, group="g").__enter__()
        with pytest.raises(UsageError, match="other settings"):
            SharedRun(tmp_path / "out", {"n": 2}, group="g", force=True).__enter__()
        assert one.take("1") and not two.take("1") and one.holds() and two.holds()
    with OutputRun(tmp_path / "out", PLAN) as alone:
        assert alone.begun
        with pytest.raises(LockedError, match="another run holds it"):
            shared(tmp_path).__enter__()


def test_every_piece_is_done_once_and_the_rest_is_made_up_by_whoever_comes(tmp_path: Path) -> None:
    with shared(tmp_path) as one, shared(tmp_path) as two:
        begin(one)
        assert numbers(one, Share(0, 2, "g"), stop=2) == [0, 1]
        assert numbers(two, Share(1, 2, "g")) == [3, 4, 5, 6, 2]
        assert numbers(one, Share(0, 2, "g")) == []


def test_a_piece_that_fails_is_tried_once_by_each_and_stops_no_other(tmp_path: Path) -> None:
    def function(piece: Piece) -> None:
        if piece.number == 3:
            raise ValueError("three")
        markers.mark(run.folder, piece.number, {"shards": {}}, run.token, run.member)

    with shared(tmp_path) as run:
        begin(run)
        outcomes = list(work(run, Share(0, 1, "g"), PIECES, function, Control()))
    assert [o.item.number for o in outcomes] == [0, 1, 2, 3, 4, 5, 6]
    assert [str(o.error) for o in outcomes if o.error] == ["three"]


def test_a_stop_ends_after_the_piece_in_hand(tmp_path: Path) -> None:
    control = Control()

    def function(piece: Piece) -> None:
        markers.mark(run.folder, piece.number, {"shards": {}}, run.token, run.member)
        control.stop.set()

    with shared(tmp_path) as run:
        begin(run)
        with pytest.raises(Stopped):
            list(work(run, Share(0, 1, "g"), PIECES, function, control))
        assert run.done_numbers() == {0}


def dead_member(run: SharedRun, number: int) -> str:
    """A process that died on this machine with a piece in hand."""
    name = f"dead{number}"
    record = this_process() | {"pid": 2**22 + 1}
    (run._members / f"{name}.json").write_text(json.dumps(record))
    (run._claims / f"{number:08d}").mkdir()
    (run._claims / f"{number:08d}" / name).touch()
    return name


def test_what_a_dead_process_had_in_hand_is_taken_over_and_it_can_write_no_more(tmp_path: Path) -> None:
    with shared(tmp_path) as run:
        begin(run)
        name = dead_member(run, 3)
        assert holds_lease(run.folder, run.token, name)
        assert sorted(numbers(run, Share(0, 1, "g"))) == list(range(7))
        assert not holds_lease(run.folder, run.token, name)
        assert run.deaths("00000003") == 1


def test_a_piece_that_ends_every_process_is_given_up(tmp_path: Path) -> None:
    with shared(tmp_path) as run:
        begin(run)
        for trial in range(shares.DEATHS):
            (run._claims / f"dead-00000003-{trial}").mkdir()
        outcomes = list(work(run, Share(0, 1, "g"), PIECES[3:4], lambda piece: None, Control()))
        assert "ended every process" in str(outcomes[0].error)


def test_a_process_elsewhere_is_lost_when_its_sign_of_life_stands_still(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with shared(tmp_path) as run:
        begin(run)
        name = dead_member(run, 3)
        record = this_process() | {"host": "elsewhere"}
        (run._members / f"{name}.json").write_text(json.dumps(record))
        for hours in (-5, 5):  # its clock may be wrong
            os.utime(run._members / f"{name}.json", (time.time() + 3600 * hours,) * 2)
            assert not run.take("00000003") and not run.deaths("00000003")
        monkeypatch.setattr(shared_run, "LOST_S", 0.0)
        run.take("00000003")
        assert run.deaths("00000003") == 1


def test_where_all_processes_died_the_next_one_looks_at_everything_again(tmp_path: Path) -> None:
    run = shared(tmp_path)
    run.__enter__()
    begin(run)
    run.once("markers", lambda: None)
    assert run.take("00000003")
    run._stop_heartbeat.set()
    write_sealed(run._members / f"{run.member}.json", this_process() | {"pid": 2**22 + 1})
    (run.folder / "plan.json").write_text("damaged")
    looked: list[int] = []
    with shared(tmp_path) as again:
        begin(again)
        again.once("markers", lambda: looked.append(1))
        assert looked and again.token != run.token and not run.holds()
        assert (again.deaths("00000003"), again.deaths("00000002")) == (1, 0)
        assert again.take("00000003")


def test_a_process_that_others_took_for_dead_stops_and_may_come_again(tmp_path: Path) -> None:
    with shared(tmp_path) as run:
        begin(run)
        (run._members / f"{run.member}.json").unlink()
        with pytest.raises(Stopped, match="run the same command again"):
            numbers(run, Share(0, 1, "g"))


def test_a_process_whose_sign_of_life_is_damaged_stops_and_keeps_nothing_from_others(tmp_path: Path) -> None:
    """A flipped bit in it, of a process of unknown host, kept what it held for ten minutes, or a folder for ever."""
    with shared(tmp_path) as run:
        begin(run)
        name = dead_member(run, 3)
        damaged = run._members / f"{name}.json"
        write_sealed(damaged, this_process())  # it lives
        assert not run.take("00000003") and not run.deaths("00000003")
        data = bytearray(damaged.read_bytes())
        data[40] ^= 1
        damaged.write_bytes(data)
        assert not holds_lease(run.folder, run.token, name)
        run.take("00000003")
        assert run.deaths("00000003") == 1


def test_what_is_left_of_a_finished_output_goes_although_its_sign_of_life_is_damaged(tmp_path: Path) -> None:
    run = shared(tmp_path)
    run.__enter__()
    begin(run)
    run.partial.rename(run.output)  # and killed
    run._stop_heartbeat.set()
    file = run._members / f"{run.member}.json"
    file.write_bytes(file.read_bytes()[:-9])
    tidy_up(run.output)
    assert [p.name for p in tmp_path.iterdir()] == ["out"]


def test_a_shared_lease_of_which_only_the_owner_is_left_is_nobodys(tmp_path: Path) -> None:
    """A power cut may undo a removal in part; found by replaying power cuts."""
    run = shared(tmp_path)
    run.__enter__()
    begin(run)
    run.partial.rename(run.output)  # and killed
    run._stop_heartbeat.set()
    shutil.rmtree(run._members)
    tidy_up(run.output)
    assert [p.name for p in tmp_path.iterdir()] == ["out"]


def test_who_leaves_before_there_is_a_plan_takes_no_lease_from_those_who_stay(tmp_path: Path) -> None:
    """A task that was stopped while another one wrote the plan took the lease away under it."""
    one, two = shared(tmp_path), shared(tmp_path)
    for run in (one, two):
        run._take_lease()
    two._release_lease()
    assert one.holds() and not two.holds()
    one._release_lease()
    assert not one.lease.exists()


def test_what_must_be_done_once_is_done_once(tmp_path: Path) -> None:
    done: list[int] = []
    with shared(tmp_path) as one, shared(tmp_path) as two:

        def act(run: SharedRun) -> None:
            run.once("it", lambda: (time.sleep(0.3), done.append(1)))

        threads = [threading.Thread(target=act, args=(run,)) for run in (one, two)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    assert done == [1]


def test_a_process_that_waits_for_another_hears_a_stop(tmp_path: Path) -> None:
    stop = threading.Event()
    with shared(tmp_path) as first, shared(tmp_path, stop=stop) as second:
        begin(first)
        begin(second)
        with first.alone("commit"):
            stop.set()
            with pytest.raises(Stopped, match="while another process"), second.alone("commit"):
                pass


def test_the_end_leaves_nothing_behind_and_latecomers_are_told(tmp_path: Path) -> None:
    with shared(tmp_path) as one, shared(tmp_path) as two:
        begin(one)
        with one.alone("commit"):
            one.commit()
        with pytest.raises(LockedError, match="finished"):
            numbers(two, Share(1, 2, "g"))
    assert [p.name for p in tmp_path.iterdir()] == ["out"]


# ---- apply ---------------------------------------------------------------------------------------------------


def start(sources: tuple[Path, Path], output: Path, share: str) -> subprocess.Popen[str]:
    command = [sys.executable, "-m", "tdenoise_pipeline.cli", "apply", sources[0], "--model", sources[1]]
    return subprocess.Popen(
        [*map(str, command), "-o", str(output), "--share", share, "-q"], stderr=subprocess.PIPE, text=True
    )


def tree(path: Path) -> dict[str, bytes]:
    return {str(p.relative_to(path)): p.read_bytes() for p in sorted(path.rglob("*")) if p.is_file()}


def test_of_two_that_begin_at_once_the_later_joins(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    first, second = shared(tmp_path), shared(tmp_path)
    begin = contextlib.ExitStack()

    def too_late(path: Path) -> None:
        monkeypatch.undo()
        begin.enter_context(first)  # between the second's look and its rename

    monkeypatch.setattr(lease, "fsync", too_late)
    with begin, second:
        assert first.token == second.token and first.holds() and second.holds()


@pytest.mark.slow
def test_shares_without_any_socket_give_the_bytes_of_local_workers_although_one_is_killed(
    tmp_path: Path, workers: str
) -> None:
    sources = movie_store(tmp_path, counts((400, 30, 44))), model_folder(tmp_path / "model")  # 13 blocks
    output = tmp_path / "shared.zarr"
    tasks = [start(sources, output, f"{i}/3") for i in range(3)]
    done = paths.work_folder(output) / "done"
    listening = set()
    killed = False
    deadline = time.monotonic() + 300
    while any(t.poll() is None for t in tasks):
        assert time.monotonic() < deadline
        for task in tasks:
            try:
                family = [psutil.Process(task.pid), *psutil.Process(task.pid).children(recursive=True)]
                listening |= {c for p in family for c in p.net_connections("inet")}
            except psutil.Error:
                continue
        if not killed and len(list(done.glob("*.json"))) > 1:
            tasks[2].send_signal(signal.SIGKILL)
            killed = True
        time.sleep(0.05)
    assert killed and not listening
    errors = [t.communicate()[1] for t in tasks]
    assert [t.returncode for t in tasks[:2]] == [0, 0], errors
    apply(ApplyConfig(movie=sources[0], model=sources[1], output=tmp_path / "local.zarr", workers=workers))
    assert tree(output) == tree(tmp_path / "local.zarr")
    apply(ApplyConfig(movie=sources[0], model=sources[1], output=output, share="1/3", force=True))
    assert not (tmp_path / ".tdenoise").exists(), "a late task finds all done, --force or not"


@pytest.mark.parametrize(
    "lost", ["integrity/zarr.json", "given_back/zarr.json", "frame_level/zarr.json", "zarr.json"]
)
def test_what_a_share_that_lost_power_left_of_a_completion_is_made_anew(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, lost: str
) -> None:
    sources = movie_store(tmp_path, counts((70, 12, 14))), model_folder(tmp_path / "model")
    output = tmp_path / "shared.zarr"
    with monkeypatch.context() as armed:
        armed.setenv("TDENOISE_CRASH", "finish.sealed")
        task = start(sources, output, "0/1")
    task.communicate()
    assert task.returncode == -signal.SIGKILL
    (paths.partial_path(output) / lost).write_bytes(b"")  # written, but not yet on the disk
    apply(ApplyConfig(movie=sources[0], model=sources[1], output=output, share="0/1"))
    assert verify(VerifyConfig(store=output, deep=True))["n_shards"] == 3


def test_an_output_that_waits_for_its_name_is_found_on_another_disk_too(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Replayed power cuts found it: copied, a folder has another number, and was taken for an output replaced."""
    sources = movie_store(tmp_path, counts((70, 12, 14))), model_folder(tmp_path / "model")
    output = tmp_path / "shared.zarr"
    with monkeypatch.context() as armed:
        armed.setenv("TDENOISE_CRASH", "commit.staged")
        task = start(sources, output, "0/1")
    task.communicate()
    assert task.returncode == -signal.SIGKILL and not output.exists()
    (ready,) = paths.work_folder(output).glob("ready-*")
    ready.rename(ready.with_name(ready.name.rpartition("-")[0] + "-1"))
    apply(ApplyConfig(movie=sources[0], model=sources[1], output=output, share="0/1"))
    assert verify(VerifyConfig(store=output, deep=True))["n_shards"] == 3
    assert not paths.work_folder(output).exists()


def test_a_share_takes_no_workers(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="Remove --workers local:2"):
        apply(ApplyConfig(movie=tmp_path, output=tmp_path / "d", share="0/2", workers="local:2"))


# ---- the script of a job array, what is checked before work, what Slurm says ---------------------------------


def test_the_words_of_a_task_make_the_same_output(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from tdenoise_pipeline.cli import command_line

    config = ApplyConfig(
        movie=tmp_path / "it's $(a) movie.zarr",
        output=tmp_path / "o",
        workers="array:4",
        profile=Path("p"),
        ensemble=4,
        lossless=True,
        worker_memory=2**30,
    )
    name, options = command_line._parse(command_line.build_parser(), [*task_words(config), "--share", "0/2"])
    assert single(command_line._configure(command_line.COMMANDS[name], options, name)) == ApplyConfig(
        movie=config.movie, output=config.output, share="0/2", ensemble=4, lossless=True, worker_memory=2**30
    )


def test_the_script_of_an_array_names_its_tasks_and_checks_versions_first(tmp_path: Path) -> None:
    script = render(
        ["apply", "a b.zarr"], 4, name="g", profile=JobProfile(), log_dir=tmp_path, work_dir=tmp_path
    )
    assert "#SBATCH --array=0-3\n" in script and "-%A_%a.log" in script
    # Not by SLURM_JOB_ID: that of the last task is the whole array's.
    assert 'scontrol requeue "${SLURM_ARRAY_JOB_ID}_${SLURM_ARRAY_TASK_ID}"' in script
    assert script.index("preflight") < script.index("apply 'a b.zarr' --share array@g")


def test_other_versions_are_told_and_end_the_job_before_it_works() -> None:
    assert difference(versions(), versions()) is None
    assert subprocess.run(command(), check=False).returncode == 0
    words = command()[:-1]
    done = subprocess.run([*words, '{"torch": "1.0"}'], capture_output=True, text=True, check=False)
    assert done.returncode == 1
    assert "but 1.0 where the run was started" in done.stderr


def test_reasons_that_waiting_never_helps_against_are_told_once(caplog: pytest.LogCaptureFixture) -> None:
    states = {"1": "PENDING QOSMaxWallDurationPerJobLimit", "2": "PENDING Resources"}
    pending = Pending()
    caplog.set_level("WARNING", logger="tdenoise_pipeline")  # other tests leave another behind
    pending.tell(states)
    pending.tell(states)
    assert len(caplog.records) == 1 and "lower time" in caplog.text
    assert hopeless(states) is None
    assert "lower time" in str(hopeless({"1": "PENDING QOSMaxWallDurationPerJobLimit"}))
    assert hopeless({"1": "RUNNING None"}) is None and hopeless({}) is None
