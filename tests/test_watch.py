"""`watch`: real writers, kills, folders that go, disks that are full, and the page in a browser."""

from __future__ import annotations

import contextlib
import errno
import http.client
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import chromium
import numpy as np
import pytest
import tifffile
from hypothesis import given, settings
from hypothesis import strategies as st
from raw_files import write_mrc, write_seq, write_tvips
from small import model_folder
from tdenoise_pipeline.cli.command_line import main
from tdenoise_pipeline.errors import InputError, LockedError, UsageError
from tdenoise_pipeline.watch import session as sessions
from tdenoise_pipeline.watch.newest_frames import Newest, NotYet, opened
from tdenoise_pipeline.watch.recordings import Folder, Recording, Signature
from tdenoise_pipeline.watch.watch import run_settings
from writers import frame

SIZE = (32, 40)
NAMES = {"mrc": "a.mrc", "tvips": "a_000.tvips", "seq": "a.seq", "tiff": "frames", "gatan": "capture"}
PATIENCE_S = 120.0
WRITER = Path(__file__).with_name("writers.py")
in_browser = pytest.mark.skipif(chromium.PROGRAM is None, reason="needs Chromium")


def start_writer(kind: str, path: Path, *words: object) -> subprocess.Popen[bytes]:
    """A process that writes frames of `SIZE`."""
    command = [sys.executable, WRITER, kind, path, "--size", *SIZE, *words]
    return subprocess.Popen([str(word) for word in command], stdout=subprocess.DEVNULL)


def endless(folder: Path) -> list[object]:
    """Words for a writer that goes on until `end`, or for so long that a test has failed."""
    return ["--frames", 10_000, "--rate", 20, "--until", folder / "enough"]


def end(writer: subprocess.Popen[bytes], folder: Path) -> None:
    """Let an endless writer finish its recording."""
    (folder / "enough").touch()
    assert writer.wait(60) == 0


def write(kind: str, path: Path, n_frames: int, *words: object) -> None:
    """A recording as the writer leaves it."""
    assert start_writer(kind, path, "--frames", n_frames, "--rate", 10_000, *words).wait(60) == 0


def snapshot(folder: Path) -> dict[str, tuple[int, int]]:
    """Everything in a folder, with the time it was last written."""
    return {
        str(p.relative_to(folder)): (p.stat().st_mtime_ns, p.stat().st_size)
        for p in [folder, *folder.rglob("*")]
    }


# ---- whole frames -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", NAMES)
def test_every_frame_that_is_shown_while_it_grows_is_whole(kind: str, tmp_path: Path) -> None:
    folder, seen = Folder(tmp_path, 1.0), set()
    writer = start_writer(kind, tmp_path / NAMES[kind], "--frames", 60, "--rate", 40, "--wait", 0.01)
    deadline = time.monotonic() + PATIENCE_S
    while not any(r.state == "finished" for r in folder.recordings.values()):
        assert time.monotonic() < deadline
        time.sleep(0.02)
        folder.look()
        recording = folder.newest()
        if recording is None or recording.state != "growing":
            continue
        with contextlib.suppress(InputError, NotYet), opened(recording.path, finished=False) as frames:
            for number in (frames.n_frames - 1, max(0, frames.n_frames - 3)):
                np.testing.assert_array_equal(frames.read(number), frame(number, SIZE))
                seen.add(number)
    assert writer.wait(60) == 0
    assert folder.problems == [] and list(folder.recordings) == [NAMES[kind]]
    assert len(seen) > 5, "it was not shown while it grew"
    with opened(tmp_path / NAMES[kind], finished=True) as frames:
        assert frames.n_frames == 60
        np.testing.assert_array_equal(frames.read(59), frame(59, SIZE))


WRITE = {"mrc": lambda p, d: write_mrc(p, d, 6), "tvips": write_tvips, "seq": write_seq}


@pytest.mark.parametrize("kind", WRITE)
@settings(max_examples=30)
@given(share=st.floats(0, 1))
def test_a_file_that_is_cut_anywhere_shows_its_whole_frames_or_nothing(
    kind: str, share: float, tmp_path_factory: pytest.TempPathFactory
) -> None:
    path = tmp_path_factory.mktemp("cut") / NAMES[kind]
    data = np.stack([frame(k, SIZE) for k in range(6)])
    WRITE[kind](path, data)
    n_bytes = int(share * path.stat().st_size)
    os.truncate(path, n_bytes)
    whole = sum(bytes(path.read_bytes()).find(one.tobytes()) >= 0 for one in data)
    try:
        with opened(path, finished=False) as frames:
            assert frames.n_frames == whole
            np.testing.assert_array_equal([frames.read(k) for k in range(frames.n_frames)], data[:whole])
    except InputError:
        assert whole <= 1  # one image is no movie yet


def test_space_that_was_set_aside_is_no_frame(tmp_path: Path) -> None:
    path = tmp_path / "a.mrc"
    data = np.stack([frame(k, SIZE) for k in range(6)])
    write_mrc(path, data, 6)
    os.truncate(path, path.stat().st_size - 3 * data[0].nbytes)
    os.truncate(path, path.stat().st_size + 2**20)
    with pytest.raises(NotYet, match="set its space aside"), opened(path, finished=False):
        pass
    with opened(path, finished=True) as frames:
        assert frames.n_frames == 6


def test_what_is_written_in_place_is_not_shown_before_it_rests(tmp_path: Path) -> None:
    path, folder = tmp_path / "a.mrc", Folder(tmp_path, 0.2)
    data = np.stack([frame(k, SIZE) for k in range(6)])
    write_mrc(path, np.zeros_like(data), 6)
    with path.open("r+b", buffering=0) as file:
        file.seek(1024)
        for k, one in enumerate(data):
            file.write(one.tobytes())
            os.utime(path, ns=(0, k + 1))
            folder.look()
            assert folder.recordings["a.mrc"].state == "new" and folder.newest() is None
    time.sleep(0.3)
    folder.look()
    assert folder.newest() is folder.recordings["a.mrc"]


def test_the_newest_frames_in_memory_are_few_and_those_of_the_recording(tmp_path: Path) -> None:
    path, newest = tmp_path / "a.mrc", Newest(part=16)
    for n_frames in (5, 20, 130, 131, 131, 7):  # the last one is another recording of the same name
        data = np.stack([frame(k, SIZE) for k in range(n_frames)])
        write_mrc(path, data, 6)
        first = newest.n_frames
        recording = Recording("a.mrc", path, Signature(1, 1, 1, 1), 0.0, "growing")
        assert newest.update(recording) == (n_frames != first)
        assert newest.n_frames == n_frames
        np.testing.assert_array_equal(newest.frames, data[-40:, 8:24, 12:28])


# ---- the list ------------------------------------------------------------------------------------------------


def test_a_folder_that_goes_and_comes_back_is_told_and_changes_nothing(tmp_path: Path) -> None:
    place = tmp_path / "camera"
    place.mkdir()
    write("mrc", place / "a.mrc", 5)
    folder = Folder(place, 0.1)
    folder.look()
    time.sleep(0.2)
    folder.look()
    assert folder.recordings["a.mrc"].state == "finished"
    place.rename(tmp_path / "away")
    folder.look()
    assert re.fullmatch(r".*camera: cannot be read \(No such file.*\)\. Waiting.*\.", folder.problems[0])
    assert folder.recordings["a.mrc"].state == "finished"
    (tmp_path / "away").rename(place)
    folder.look()
    assert folder.problems == [] and folder.recordings["a.mrc"].state in ("new", "finished")
    (place / "a.mrc").unlink()
    folder.look()
    assert folder.recordings["a.mrc"].state == "gone"


def test_each_recording_is_listed_once_with_all_its_files(tmp_path: Path) -> None:
    data = np.stack([frame(k, SIZE) for k in range(6)])
    write_tvips(tmp_path / "t_000.tvips", data, parts=3)
    write_mrc(tmp_path / "m.mrc", data, 6)
    write("tiff", tmp_path / "day/frames", 4)
    write("gatan", tmp_path / "day/capture", 30)
    (tmp_path / "notes.txt").write_text("no movie")
    (tmp_path / ".hidden.mrc").write_bytes(b"x")
    folder = Folder(tmp_path, 0.0)
    folder.look()
    assert set(folder.recordings) == {"t_000.tvips", "m.mrc", "day/frames", "day/capture"}
    assert folder.recordings["t_000.tvips"].signature.n_files == 3
    assert folder.recordings["day/capture"].signature.n_files == 30


def test_snapshots_beside_movies_hide_none_of_them(tmp_path: Path) -> None:
    for number in (1, 2):
        tifffile.imwrite(tmp_path / f"Image_{number}.tif", frame(number, SIZE))
    for name in ("movie.mrc", "run_000.mrc"):
        write_mrc(tmp_path / name, np.stack([frame(k, SIZE) for k in range(4)]), 4)
    folder = Folder(tmp_path, 0.0)
    folder.look()
    assert {"movie.mrc", "run_000.mrc"} <= set(folder.recordings)


def test_a_dark_image_beside_frames_is_no_frame(tmp_path: Path) -> None:
    write("tiff", tmp_path / "frames", 5)
    tifffile.imwrite(tmp_path / "frames" / "dark.tif", frame(0, SIZE))
    folder = Folder(tmp_path, 0.0)
    folder.look()
    assert folder.recordings["frames"].signature.n_files == 5


def test_a_file_that_vanishes_between_two_questions_takes_no_other_with_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    data = np.stack([frame(k, SIZE) for k in range(4)])
    for name in ("a.mrc", "b.mrc", "c.mrc"):
        write_mrc(tmp_path / name, data, 4)
    folder = Folder(tmp_path, 0.0)
    folder.look()
    asked = Signature.of

    def of(files: list[os.DirEntry[str]]) -> Signature:
        if files[0].name == "a.mrc":
            raise FileNotFoundError(files[0].path)
        return asked(files)

    monkeypatch.setattr(Signature, "of", of)
    folder.look()
    assert set(folder.recordings) == {"a.mrc", "b.mrc", "c.mrc"}
    assert not any(recording.state == "gone" for recording in folder.recordings.values())


def test_a_link_that_leads_nowhere_stops_nothing(tmp_path: Path) -> None:
    (tmp_path / "loop.mrc").symlink_to("loop.mrc")
    (tmp_path / "away.mrc").symlink_to(tmp_path / "not" / "there.mrc")
    write_mrc(tmp_path / "movie.mrc", np.stack([frame(k, SIZE) for k in range(4)]), 4)
    folder = Folder(tmp_path, 0.0)
    folder.look()
    assert list(folder.recordings) == ["movie.mrc"] and folder.problems == []


# ---- the session -----------------------------------------------------------------------------------------------


@contextlib.contextmanager
def session_of(path: Path, folder: Path) -> Iterator[sessions.Session]:
    with sessions.opened(path, folder, threading.Event()) as made:
        yield made


def test_decisions_and_notes_are_there_again(tmp_path: Path) -> None:
    folder, path = tmp_path / "in", tmp_path / "session"
    folder.mkdir()
    hostile = "<b>\udcff'; $(touch x)/a.mrc"
    with session_of(path, folder) as session:
        record = session.add(hostile)
        session.decide(record.id, {"decision": "accepted"})
        session.decide(record.id, {"note": "Pt on CeO2, 300 °C"})
        session.change(hostile, shape=(5, 6, 7), finished=True)
        for wrong in ({"decision": "perhaps"}, {"decision": 3}):
            with pytest.raises(ValueError, match="no decision"):
                session.decide(record.id, wrong)
        with pytest.raises(LookupError):
            session.decide("0" * 16, {"decision": None})
        before = dict(session.records)
    with session_of(path, folder) as session:
        assert session.records == before and session.damaged == []
    assert not (path / ".tdenoise").exists()
    assert re.fullmatch(r"[\w-]+", before[hostile].run_name, flags=re.ASCII)
    (file,) = (path / "recordings").iterdir()
    file.write_bytes(file.read_bytes()[:-9])
    with session_of(path, folder) as session:
        assert session.records == {} and "is damaged" in session.damaged[0]


def test_a_session_is_for_one_watch_and_one_folder_and_never_in_that_folder(tmp_path: Path) -> None:
    folder, other, path = tmp_path / "in", tmp_path / "other", tmp_path / "session"
    folder.mkdir()
    other.mkdir()
    with session_of(path, folder), pytest.raises(LockedError, match="another watch has this session"):
        session_of(path, folder).__enter__()
    with pytest.raises(UsageError, match=r"is the session of .*in, not of .*other"):
        session_of(path, other).__enter__()
    for inside in (folder, folder / "session", folder / "x/../session", tmp_path):
        with pytest.raises(UsageError, match="where nothing is ever written"):
            session_of(inside, folder).__enter__()
    (other / "thesis.tex").write_text("mine")
    with pytest.raises(UsageError, match="is no session, and holds something"):
        session_of(other, folder).__enter__()
    with pytest.raises(InputError, match="no such folder"):
        session_of(path, tmp_path / "nothing").__enter__()
    assert list(folder.iterdir()) == []


def test_a_run_that_was_handed_in_is_not_undecided(tmp_path: Path) -> None:
    (tmp_path / "in").mkdir()
    with session_of(tmp_path / "session", tmp_path / "in") as session:
        record = session.change(session.add("a.mrc").name, decision="accepted", run="running")
        with pytest.raises(UsageError, match="tdenoise-pipeline cancel"):
            session.decide(record.id, {"decision": "rejected"})
        session.change("a.mrc", run="refused", why="x")
        assert session.decide(record.id, {"decision": "accepted"}).run is None


def test_wrong_settings_of_the_runs_are_found_at_once(tmp_path: Path) -> None:
    file = tmp_path / "runs.yaml"
    for text, told in (
        ("stepz: 3", "stepz"),
        ("steps: -3", "steps"),
        ("output: x", "differs from recording"),
    ):
        file.write_text(text)
        with pytest.raises(UsageError, match=told) as error:
            run_settings(file)
        assert str(file) in str(error.value)
    file.write_text("counts-per-electron: 2\nsteps: 5\n")
    assert run_settings(file).counts_per_electron == 2


# ---- the command ---------------------------------------------------------------------------------------------------


@dataclass
class Watching:
    """A `watch` that runs."""

    process: subprocess.Popen[str]
    address: str

    def __post_init__(self) -> None:
        port, self.token = re.fullmatch(r"http://127.0.0.1:(\d+)/#(\S+)", self.address).groups()  # type: ignore[union-attr]
        self.port = int(port)

    def ask(self, name: str, document: object = None, token: str | None = None) -> tuple[int, bytes]:
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=60)
        body = None if document is None else json.dumps(document)
        headers = {"X-Token": self.token if token is None else token}
        connection.request("GET" if body is None else "POST", f"/{name}", body, headers)
        answer = connection.getresponse()
        found = answer.status, answer.read()
        connection.close()
        return found

    def wait_for(self, true: Callable[[dict[str, Any]], object]) -> dict[str, Any]:
        """The first state that is told and for which something is true."""
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=60)
        connection.request("GET", "/events", headers={"X-Token": self.token})
        answer = connection.getresponse()
        deadline, state = time.monotonic() + PATIENCE_S, None
        while time.monotonic() < deadline:
            line = answer.readline()
            assert line, f"it ended: {state}"
            if line.startswith(b"data: "):
                state = json.loads(line[6:])
                if true(state):
                    connection.close()
                    return state  # type: ignore[no-any-return]
        raise AssertionError(f"never true; the last state: {state}")

    def end(self) -> tuple[int, str]:
        self.process.send_signal(signal.SIGINT)
        said = self.process.communicate(timeout=60)[0]
        return self.process.returncode, said


def recording(state: dict[str, Any], name: str) -> dict[str, Any]:
    return next((r for r in state["recordings"] if r["name"] == name), {"state": None, "run": None})


Start = Callable[..., Watching]


@pytest.fixture
def start(tmp_path: Path) -> Iterator[Start]:
    """start(folder, session) gives a `watch` with a small model; all end with the test."""
    model, running = model_folder(tmp_path / "model"), []
    (tmp_path / "runs.yaml").write_text("steps: 2\nensemble: 1\nworkers: local:1\n")

    def begin(folder: Path, session: Path, *words: object) -> Watching:
        command = [
            sys.executable,
            "-m",
            "tdenoise_pipeline.cli",
            "watch",
            folder,
            "-o",
            session,
            "--no-browser",
        ]
        command += ["--model", model, "--rest", "1s", "--run-config", tmp_path / "runs.yaml", *words]
        process = subprocess.Popen([str(w) for w in command], stdout=subprocess.PIPE, text=True)
        running.append(process)
        assert process.stdout is not None
        found = re.search(r"http://\S+", process.stdout.readline())
        assert found is not None
        return Watching(process, found[0])

    yield begin
    for process in running:
        if process.poll() is None:
            process.kill()
        process.wait()
        process.stdout.close()


def test_what_was_decided_survives_a_kill_and_the_run_is_queued_once(start: Start, tmp_path: Path) -> None:
    folder, session = tmp_path / "in", tmp_path / "session"
    folder.mkdir()
    write("mrc", folder / "old.mrc", 12)
    writer = start_writer("tvips", folder / "a_000.tvips", *endless(tmp_path))
    watching = start(folder, session)
    seen = watching.wait_for(lambda s: s["look"] and s["look"]["recording"] == "a_000.tvips")
    assert recording(seen, "a_000.tvips")["state"] == "growing"
    assert seen["look"]["delay_s"] > 0 and seen["look"]["figures"]["dose"] == pytest.approx(2, rel=0.05)
    number = recording(seen, "a_000.tvips")["id"]
    assert watching.ask("decide", {"id": number, "decision": "accepted"})[0] == 200
    assert watching.ask("decide", {"id": number, "note": "look here"})[0] == 200
    for document in ({"id": number, "decision": "x"}, {"id": "no"}, {}, [], "text"):
        assert watching.ask("decide", document)[0] == 400
    for token in ("", "wrong"):
        assert watching.ask("decide", {"id": number, "decision": "rejected"}, token)[0] == 403
        assert watching.ask("events", token=token)[0] == 403
    watching.process.kill()
    watching.process.wait()
    end(writer, tmp_path)
    before = snapshot(folder)
    watching = start(folder, session)
    told = watching.wait_for(lambda s: recording(s, "a_000.tvips")["run"] in ("pending", "running", "done"))
    kept = recording(told, "a_000.tvips")
    assert (kept["decision"], kept["note"], kept["shape"][1:]) == ("accepted", "look here", [*SIZE])
    (run,) = (session / "runs").iterdir()
    assert main(["status", str(run)]) == 0 and (run / "batch/run.json").exists()
    main(["cancel", str(run)])
    code, said = watching.end()
    assert code == 0 and "2 recordings, 1 accepted, 0 rejected." in said
    assert snapshot(folder) == before, "something was written into the folder of the microscope"
    assert not (session / ".tdenoise").exists()


def test_a_second_watch_of_a_session_ends_with_one_sentence(
    start: Start, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder, session = tmp_path / "in", tmp_path / "session"
    folder.mkdir()
    watching = start(folder, session)
    assert main(["watch", str(folder), "-o", str(session), "--no-browser"]) == 6
    told = capsys.readouterr().err
    assert f"process {watching.process.pid}" in told and told.count("\n") == 1
    assert watching.end()[0] == 0


def test_a_folder_that_is_away_is_told_on_the_page_and_survived(start: Start, tmp_path: Path) -> None:
    folder, away = tmp_path / "in", tmp_path / "away"
    folder.mkdir()
    write("seq", folder / "a.seq", 12)
    watching = start(folder, tmp_path / "session")
    watching.wait_for(lambda s: recording(s, "a.seq")["state"] == "finished")
    folder.rename(away)
    watching.wait_for(lambda s: any("Waiting until it is there again" in p for p in s["problems"]))
    away.rename(folder)
    watching.wait_for(lambda s: s["problems"] == [] and recording(s, "a.seq")["state"] == "finished")
    assert watching.end()[0] == 0


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A disk of 256 KiB."""
    place = tmp_path / "disk"
    place.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=256k", "tmpfs", str(place)]
    if (
        os.geteuid() != 0
        or shutil.which("mount") is None
        or subprocess.run(mount, stderr=subprocess.DEVNULL).returncode
    ):
        pytest.skip("only root may mount a disk")
    yield place
    subprocess.run(["umount", "--lazy", str(place)], check=True)


def test_a_full_disk_is_told_and_what_was_clicked_is_not_taken_for_kept(
    start: Start, tmp_path: Path, small_disk: Path
) -> None:
    folder, session = tmp_path / "in", small_disk / "session"
    folder.mkdir()
    write("mrc", folder / "a.mrc", 12)
    watching = start(folder, session)
    number = recording(watching.wait_for(lambda s: recording(s, "a.mrc")["state"] == "finished"), "a.mrc")[
        "id"
    ]
    with (small_disk / "filler").open("wb", buffering=0) as file:
        try:
            while True:
                file.write(b"x" * 4096)
        except OSError as error:
            assert error.errno == errno.ENOSPC
    status, sentence = watching.ask("decide", {"id": number, "decision": "rejected"})
    assert status == 500 and b"disk is full" in sentence
    write("mrc", folder / "b.mrc", 12)
    watching.wait_for(lambda s: any("disk is full" in p for p in s["problems"]))
    assert recording(watching.wait_for(bool), "a.mrc")["decision"] is None
    (small_disk / "filler").unlink()
    told = watching.wait_for(lambda s: s["problems"] == [] and recording(s, "b.mrc")["state"] == "finished")
    assert watching.ask("decide", {"id": number, "decision": "rejected"})[0] == 200
    assert told["recordings"] and watching.end()[0] == 0


@pytest.mark.slow
def test_on_this_machine_one_run_is_under_way_at_a_time(start: Start, tmp_path: Path) -> None:
    folder, session = tmp_path / "in", tmp_path / "session"
    folder.mkdir()
    for name in ("a", "b"):
        write("mrc", folder / f"{name}.mrc", 12)
    watching = start(folder, session)
    told = watching.wait_for(lambda s: [r["state"] for r in s["recordings"]] == ["finished"] * 2)
    for each in told["recordings"]:
        assert watching.ask("decide", {"id": each["id"], "decision": "accepted"})[0] == 200
    under_way = ("pending", "running")
    told = watching.wait_for(lambda s: any(r["run"] in under_way for r in s["recordings"]))
    assert sum(r["run"] in (*under_way, "submitting") for r in told["recordings"]) == 1
    (first,) = (session / "runs").iterdir()

    def over(state: dict[str, Any]) -> bool:
        return any(r["run"] in ("interrupted", "failed") for r in state["recordings"])

    assert main(["cancel", str(first)]) == 0
    watching.wait_for(lambda s: over(s) and any(r["run"] in under_way for r in s["recordings"]))
    (second,) = {*(session / "runs").iterdir()} - {first}
    assert main(["cancel", str(second)]) == 0
    assert watching.end()[0] == 0


@in_browser
@pytest.mark.browser
def test_a_browser_sees_the_newest_frame_and_its_delay_and_accepts(start: Start, tmp_path: Path) -> None:
    folder, session = tmp_path / "in", tmp_path / "session"
    hostile = "<img src=x onerror='document.title=1'>"
    (folder / hostile).mkdir(parents=True)
    writer = start_writer("mrc", folder / hostile / "a.mrc", *endless(tmp_path))
    watching = start(folder, session)
    with chromium.Page() as page:
        page.go(watching.address)
        page.wait_for("typeof state !== 'undefined' && state.shown > 1")
        told = page.value("document.getElementById('behind').textContent")
        assert re.search(r"Frame \d+\. \d+\.\d s behind when it was shown, \d s ago\.", told)
        first = int(re.search(r"Frame (\d+)", told)[1])  # type: ignore[index]
        for canvas in ("raw", "denoised"):
            shades = f"""(() => {{ const c = document.getElementById('{canvas}');
                const data = c.getContext('2d').getImageData(0, 0, c.width, c.height).data;
                return [c.height, c.width, new Set(data.filter((_, i) => i % 4 === 0)).size]; }})()"""
            height, width, n_shades = page.value(shades)
            assert (height, width) == SIZE and n_shades > 3
        page.wait_for(
            f"Number(/Frame (\\d+)/.exec(document.getElementById('behind').textContent)[1]) > {first + 5}"
        )
        page.click(".accept")
        page.wait_for("document.querySelector('.accept').getAttribute('aria-pressed') === 'true'")
        assert hostile in page.value("document.querySelector('.name').textContent")
        assert page.value("document.images.length") == 0 and page.value("document.title") == "tdenoise watch"
        end(writer, tmp_path)
        page.wait_for("/run is (queued|under way|done)/.test(document.querySelector('.state').textContent)")
        (run,) = (session / "runs").iterdir()
        assert (run / "batch/run.json").exists()
        main(["cancel", str(run)])
        assert page.errors == []
        assert watching.end()[0] == 0
        page.wait_for("document.getElementById('message').textContent.includes('has ended')")


@in_browser
@pytest.mark.browser
@pytest.mark.parametrize("width", [400, 1280])
def test_the_page_fits_the_window(start: Start, tmp_path: Path, width: int) -> None:
    folder = tmp_path / "in"
    folder.mkdir()
    write("mrc", folder / f"{'a_long_name_' * 12}.mrc", 12)
    watching = start(folder, tmp_path / "session")
    with chromium.Page(width, 800) as page:
        page.go(watching.address)
        page.wait_for("typeof state !== 'undefined' && state.shown > 0")
        assert page.value("document.documentElement.scrollWidth") <= width
        assert page.errors == []
