"""Folders that several people share: who may begin an output there, and what is told to who may not."""

from __future__ import annotations

import errno
import os
import shutil
import tempfile
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from tdenoise_pipeline.errors import LockedError, PipelineError, ResourceError, UsageError
from tdenoise_pipeline.runs.progress import OutputRun

from tdenoise.files.atomic import make_shared_folder

PLAN = {"step": "test"}
ALICE, BOB, GROUP = 51_001, 51_002, 51_100


@pytest.fixture
def archive() -> Iterator[Path]:
    """A folder that others can reach, which those of pytest are not."""
    folder = Path(tempfile.mkdtemp(prefix="tdenoise-archive-"))
    folder.chmod(0o755)
    yield folder
    shutil.rmtree(folder)


def begin(output: Path) -> None:
    """Begin an output, and be interrupted."""
    with OutputRun(output, PLAN) as run:
        run.prepare(lambda path: path.mkdir())


def as_user(user: int, function: Callable[[], None], groups: tuple[int, ...] = (GROUP,)) -> tuple[int, str]:
    """Call a function as another user: its exit code, and what it told."""
    if os.getuid() != 0:
        pytest.skip("only root can be another user")
    reading, writing = os.pipe()
    with warnings.catch_warnings():
        warnings.simplefilter(
            "ignore", DeprecationWarning
        )  # of a fork beside threads: this one only touches files
        pid = os.fork()
    if pid == 0:
        code = 1
        try:
            os.setgroups(groups)
            os.setgid(user)
            os.setuid(user)
            os.umask(0o022)
            function()
            code = 0
        except PipelineError as error:
            os.write(writing, str(error).encode())
            code = error.exit_code
        except BaseException as error:  # noqa: BLE001  (what should not have happened)
            os.write(writing, repr(error).encode())
        finally:
            os._exit(code)
    os.close(writing)
    with os.fdopen(reading) as told:
        said = told.read()
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]), said


def shared(folder: Path, mode: int) -> Path:
    os.chown(folder, 0, GROUP)
    folder.chmod(mode)
    return folder


def test_what_one_of_a_group_leaves_unfinished_locks_no_other_out(archive: Path) -> None:
    if os.getuid() != 0:
        pytest.skip("only root can be another user")
    shared(archive, 0o2775)
    assert as_user(ALICE, lambda: begin(archive / "a")) == (0, "")
    for folder in (".tdenoise", ".tdenoise/a", ".tdenoise/a/done"):
        state = (archive / folder).stat()
        assert (oct(state.st_mode & 0o7777), state.st_gid) == ("0o2775", GROUP), folder
    assert as_user(BOB, lambda: begin(archive / "b")) == (0, "")
    code, said = as_user(12, lambda: begin(archive / "c"), ())
    assert code == 2 and f"{archive}" in said and "you may not write here" in said


@pytest.mark.parametrize("mode", [0o2775, 0o775, 0o2770, 0o755, 0o700, 0o1777])
def test_a_work_folder_never_allows_more_than_the_folder_it_lies_in(archive: Path, mode: int) -> None:
    if os.getuid() != 0:
        pytest.skip("only root can be another user")
    shared(archive, 0o1777 if mode == 0o1777 else mode | 0o020)  # alice may make her folder
    if mode in (0o755, 0o700):
        os.chown(archive, ALICE, GROUP)
    archive.chmod(mode)
    groups = () if mode == 0o1777 else (GROUP,)
    assert as_user(ALICE, lambda: make_shared_folder(archive / "x/y"), groups) == (0, "")
    for folder in (archive / "x", archive / "x/y"):
        state = folder.stat()
        assert state.st_mode & 0o7777 & ~mode == 0
        if state.st_gid != GROUP:  # she is no member: her own group may do what all may
            expected = 0o1777 if folder.name == "x" else 0o1775  # in what is made there, only she may write
            assert mode == 0o1777 and state.st_mode & 0o7777 == expected


def test_a_folder_of_a_colleague_that_is_closed_is_named_with_its_owner(archive: Path) -> None:
    if os.getuid() != 0:
        pytest.skip("only root can be another user")
    shared(archive, 0o2775)
    (archive / ".tdenoise").mkdir()  # as earlier versions made it
    os.chown(archive / ".tdenoise", ALICE, GROUP)
    (archive / ".tdenoise").chmod(0o2755)
    code, said = as_user(BOB, lambda: begin(archive / "b"))
    assert code == 2 and f"{archive / '.tdenoise'}: you may not write here" in said, said
    assert f"user {ALICE}" in said and "chmod" in said


def test_an_output_of_a_colleague_is_not_replaced_and_that_is_said_before_the_work(archive: Path) -> None:
    if os.getuid() != 0:
        pytest.skip("only root can be another user")
    shared(archive, 0o2775)

    def replace() -> None:
        with OutputRun(archive / "a", PLAN, force=True) as run:
            run.prepare(lambda path: path.mkdir())
            run.commit()

    assert as_user(ALICE, replace) == (0, "")
    made = (archive / "a").stat().st_ino
    code, said = as_user(BOB, replace)
    assert code == 2 and f"you may not replace it; it belongs to user {ALICE}" in said, said
    assert as_user(ALICE, replace) == (0, "") and (archive / "a").stat().st_ino != made
    assert [path.name for path in archive.iterdir()] == ["a"]


def test_a_run_of_a_colleague_is_seen_and_not_disturbed(archive: Path) -> None:
    if os.getuid() != 0:
        pytest.skip("only root can be another user")
    shared(archive, 0o2775)
    with OutputRun(archive / "out", PLAN) as run:
        code, said = as_user(BOB, lambda: begin(archive / "out"))
        assert code == LockedError.exit_code and f"process {os.getpid()} on" in said, said
        run.check()


@pytest.mark.parametrize(
    ("number", "kind", "words"),
    [
        (errno.EACCES, UsageError, "you may not write here"),
        (errno.EPERM, UsageError, "you may not write here"),
        (errno.EROFS, UsageError, "read-only"),
        (errno.ENOSPC, ResourceError, "can hold no more files"),
        (errno.EDQUOT, ResourceError, "quota"),
        (errno.EMFILE, ResourceError, "ulimit"),
        (errno.ENAMETOOLONG, UsageError, "another name"),
        (errno.ENOTDIR, UsageError, "a file is in the way"),
    ],
)
@pytest.mark.parametrize("operation", ["mkdir", "rename", "fsync"])
def test_every_reason_why_no_output_can_be_begun_is_named(
    archive: Path,
    monkeypatch: pytest.MonkeyPatch,
    number: int,
    kind: type[PipelineError],
    words: str,
    operation: str,
) -> None:
    def failing(*_: object, **__: object) -> None:
        raise OSError(number, os.strerror(number), str(archive / "x"))

    with monkeypatch.context() as patch:
        patch.setattr(os, operation, failing)
        with pytest.raises(kind, match=words) as told:
            begin(archive / "out")
    assert "keeps changing hands" not in str(told.value) and str(archive) in str(told.value) + str(archive)
    begin(archive / "out")  # nothing is left that would be in the way


def test_an_error_that_is_not_about_the_place_stays_what_it_is(
    archive: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def failing(*_: object, **__: object) -> None:
        raise OSError(errno.EIO, "Input/output error")

    monkeypatch.setattr("tdenoise.files.atomic.WAIT_S", 0.0)
    monkeypatch.setattr(os, "fsync", failing)
    with pytest.raises(OSError, match="Input/output error"):
        begin(archive / "out")


def test_a_file_where_the_work_folder_should_be_is_named(archive: Path) -> None:
    (archive / ".tdenoise").write_text("mine")
    with pytest.raises(UsageError, match=r"\.tdenoise.*a file is in the way"):
        begin(archive / "out")
    assert (archive / ".tdenoise").read_text() == "mine"
