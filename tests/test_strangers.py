"""A second user, who may write to the same folder, cannot make us run, write or replace anything."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import socket
import ssl
import tempfile
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from tdenoise_pipeline.cli import command_line
from tdenoise_pipeline.errors import PipelineError, ResourceError, UsageError
from tdenoise_pipeline.files import ownership
from tdenoise_pipeline.jobs import run_folder
from tdenoise_pipeline.runs import paths
from tdenoise_pipeline.runs.progress import OutputRun
from tdenoise_pipeline.settings import recorded_settings
from tdenoise_pipeline.settings.config import (
    ApplyConfig,
    CancelConfig,
    IngestConfig,
    ResumeConfig,
    RunConfig,
)
from tdenoise_pipeline.settings.workers import Workers
from tdenoise_pipeline.workflow.resume import resume

STRANGER = 54321


@contextlib.contextmanager
def stranger() -> Iterator[None]:
    """What is done inside is done by another user."""
    os.setegid(STRANGER)
    os.seteuid(STRANGER)
    try:
        yield
    finally:
        os.seteuid(0)
        os.setegid(0)


@pytest.fixture
def shared() -> Iterator[Path]:
    """A folder to which everybody may write."""
    if os.geteuid() != 0:
        pytest.skip("only root can act as a second user")
    folder = Path(tempfile.mkdtemp(prefix="tdenoise-shared-"))
    folder.chmod(0o777)
    yield folder
    shutil.rmtree(folder)


@pytest.fixture
def listener() -> Iterator[tuple[str, list[Any]]]:
    """Address of a scheduler, and who has called it."""
    callers: list[Any] = []
    with socket.create_server(("127.0.0.1", 0)) as server:

        def accept() -> None:
            with contextlib.suppress(OSError):
                while True:
                    callers.append(server.accept())

        threading.Thread(target=accept, daemon=True).start()
        yield f"tcp://127.0.0.1:{server.getsockname()[1]}", callers
        server.shutdown(socket.SHUT_RDWR)
    for connection, _ in callers:
        connection.close()


def apply_config(folder: Path, **changes: Any) -> ApplyConfig:
    return ApplyConfig(**{"movie": folder / "movie.zarr", "output": folder / "x.zarr", **changes})


def plant(folder: Path, config: Any, name: str = "x.zarr") -> Path:
    """Put a record of an interrupted command into a folder."""
    file = folder / ".tdenoise" / name / recorded_settings.COMMAND
    file.parent.mkdir(parents=True, exist_ok=True)
    recorded_settings.write(file, config)
    file.chmod(0o644)
    return file


@pytest.mark.parametrize("named", ["folder", "output"])
def test_resume_obeys_no_record_of_a_stranger(
    shared: Path, listener: tuple[str, list[Any]], named: str, capsys: pytest.CaptureFixture[str]
) -> None:
    address, callers = listener
    with stranger():
        plant(shared, apply_config(shared, workers=address, insecure=True, force=True))
    asked = shared if named == "folder" else shared / "x.zarr"
    assert command_line.main(["resume", str(asked)]) == 2
    assert "is ignored" in capsys.readouterr().err
    assert not callers and not (shared / "x.zarr").exists()


def test_resume_of_a_folder_passes_over_the_records_of_strangers(
    shared: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    ours: list[Any] = []
    monkeypatch.setattr(
        "tdenoise_pipeline.workflow.resume.apply", lambda config, control: ours.append(config)
    )
    plant(shared, apply_config(shared, output=shared / "ours.zarr"), "ours.zarr")
    (shared / ".tdenoise").chmod(0o777)
    with stranger():
        plant(shared, apply_config(shared))
    assert resume(shared) == {"resumed": [str(shared / "ours.zarr")]}
    assert [config.output for config in ours] == [shared / "ours.zarr"]
    assert "x.zarr" in caplog.text and "it is skipped" in caplog.text


def test_a_record_of_run_that_a_stranger_made_is_not_obeyed(shared: Path) -> None:
    with stranger():
        file = shared / ".tdenoise" / recorded_settings.RUN
        file.parent.mkdir()
        recorded_settings.write(file, RunConfig(raw=shared / "raw.npy", output=shared / "elsewhere"))
    with pytest.raises(UsageError, match=f"belongs to user {STRANGER}"):
        resume(shared)


@pytest.mark.parametrize("how", ["group", "link", "pipe"])
def test_a_record_that_others_may_change_is_not_obeyed(tmp_path: Path, how: str) -> None:
    file = plant(tmp_path, apply_config(tmp_path))
    file.rename(tmp_path / "elsewhere")
    if how == "group":
        shutil.copy(tmp_path / "elsewhere", file)
        file.chmod(0o664)
    elif how == "link":
        file.symlink_to(tmp_path / "elsewhere")
    else:
        os.mkfifo(file)
    with pytest.raises(PipelineError, match=r"is ignored|does not say how to continue"):
        resume(tmp_path / "x.zarr")


def test_a_record_is_written_so_that_nobody_else_can_change_it(tmp_path: Path) -> None:
    before = os.umask(0)
    try:
        file = tmp_path / recorded_settings.COMMAND
        recorded_settings.write(file, apply_config(tmp_path))
    finally:
        os.umask(before)
    assert file.stat().st_mode & 0o777 == 0o600
    assert ownership.read_own(file) == recorded_settings.record(apply_config(tmp_path))


def keys(folder: Path, role: str) -> dict[str, str]:
    """Certificates and a key of one more authority, as files."""
    from distributed import Security

    folder.mkdir()
    found = {}
    for name, text in Security.temporary().get_tls_config_for_role(role).items():
        if name in ("ca_file", "cert", "key"):
            (folder / name).write_text(text)
            found[name] = str(folder / name)
    return found


def test_a_scheduler_with_the_keys_of_another_is_told_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import dask
    from tdenoise_pipeline.workers import cluster

    ours, theirs = keys(tmp_path / "ours", "client"), keys(tmp_path / "theirs", "scheduler")
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(theirs["cert"], theirs["key"])
    said: list[bytes] = []
    with socket.create_server(("127.0.0.1", 0)) as server:

        def accept() -> None:
            with contextlib.suppress(OSError):
                while True:
                    caller, _ = server.accept()
                    with (
                        caller,
                        contextlib.suppress(OSError),
                        context.wrap_socket(caller, server_side=True) as tls,
                    ):
                        said.append(tls.recv(1))

        threading.Thread(target=accept, daemon=True).start()
        names = {"ca_file": "ca-file", "cert": "client.cert", "key": "client.key"}
        monkeypatch.setattr(cluster, "CONNECT_TIMEOUT_S", 2)
        places = {"scratch": tmp_path, "log_dir": tmp_path, "worker_memory_bytes": None, "profile": None}
        with (
            dask.config.set({f"distributed.comm.tls.{names[name]}": file for name, file in ours.items()}),
            pytest.raises(ResourceError, match="no Dask scheduler answers"),
            cluster.connect(Workers.of(f"tls://127.0.0.1:{server.getsockname()[1]}"), **places),
        ):
            pass
        server.shutdown(socket.SHUT_RDWR)
    assert not any(said)


@pytest.mark.parametrize("scheme", ["tcp", "tls"])
def test_a_record_of_ones_own_is_no_reason_to_call_a_scheduler(
    tmp_path: Path, listener: tuple[str, list[Any]], scheme: str
) -> None:
    address, callers = listener
    plant(tmp_path, apply_config(tmp_path, workers=address.replace("tcp", scheme), insecure=True))
    with pytest.raises(UsageError, match="resume --workers"):
        resume(tmp_path / "x.zarr")
    with pytest.raises(UsageError, match="--insecure"):
        resume(tmp_path / "x.zarr", workers=Workers.of(address))
    assert not callers


def test_a_record_of_ones_own_is_no_reason_to_replace_or_to_write_elsewhere(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    begun: list[Any] = []
    monkeypatch.setattr(
        "tdenoise_pipeline.workflow.resume.apply", lambda config, control: begun.append(config)
    )
    plant(tmp_path, apply_config(tmp_path, output=tmp_path / "y.zarr", force=True))
    resume(tmp_path / "x.zarr")
    assert begun[0].output == tmp_path / "x.zarr" and not begun[0].force
    (tmp_path / "x.zarr").mkdir()
    with pytest.raises(UsageError, match="resume --force"):
        resume(tmp_path / "x.zarr")
    resume(tmp_path / "x.zarr", force=True)
    assert begun[1].force


@pytest.mark.parametrize("act", ["resume", "cancel"])
def test_a_batch_run_of_a_stranger_is_shown_but_not_handed_in_or_cancelled(shared: Path, act: str) -> None:
    from tdenoise_pipeline.jobs import job_status, submit

    folder = shared / "x.zarr-batch"
    with stranger():
        folder.mkdir()
        run = {"id": "tdn-1", "command": "apply", "words": [], "output": str(shared / "x.zarr")}
        run |= {"steps": [], "profile": {"setup": ["touch pwned"]}, "work_dir": str(shared)}
        (folder / run_folder.RUN_FILE).write_text(json.dumps(run))
    assert run_folder.open_run(folder)[1]["id"] == "tdn-1"
    with pytest.raises(UsageError, match="is ignored"):
        if act == "resume":
            submit.resume(ResumeConfig(output=folder))
        else:
            job_status.cancel(CancelConfig(output=folder))
    with pytest.raises(UsageError, match="no jobs are submitted"), run_folder.locked(folder):
        pass


def link_partial(output: Path) -> None:
    (output.parent / "victim").mkdir()
    paths.partial_path(output).symlink_to(output.parent / "victim")
    own_folder(output)


def own_partial(output: Path) -> None:
    paths.partial_path(output).mkdir(mode=0o777)
    own_folder(output)


def own_folder(output: Path) -> None:
    paths.work_folder(output).mkdir(parents=True, mode=0o777)
    paths.work_folder(output).chmod(0o777)
    (paths.work_folder(output) / "plan.json").write_text('{"id": "other", "plan": {}}')


def link_above(output: Path) -> None:
    (output.parent / "victim").mkdir()
    (output.parent / ".tdenoise").symlink_to(output.parent / "victim")


@pytest.mark.parametrize("prepare", [link_partial, own_partial, own_folder, link_above])
@pytest.mark.parametrize("force", [False, True])
def test_nothing_is_written_into_what_a_stranger_has_prepared(
    shared: Path, prepare: Callable[[Path], None], force: bool
) -> None:
    output = shared / "x.zarr"
    with stranger():
        prepare(output)
    before = sorted(shared.rglob("*"))
    with (
        pytest.raises(UsageError, match="belongs to|not yours"),
        OutputRun(output, {"step": "test"}, force=force) as run,
    ):
        run.prepare(lambda path: path.mkdir())
    assert sorted(shared.rglob("*")) == before


@pytest.mark.parametrize("kind", ["link", "file"])
def test_a_partial_output_that_is_no_folder_is_never_followed(tmp_path: Path, kind: str) -> None:
    output = tmp_path / "x.zarr"
    with OutputRun(output, {"a": 1}) as run:
        run.prepare(lambda path: path.mkdir())
    run.partial.rmdir()
    (tmp_path / "victim").mkdir()
    run.partial.symlink_to(tmp_path / "victim") if kind == "link" else run.partial.touch()
    with (
        pytest.raises(UsageError, match="symbolic link|in the way"),
        OutputRun(output, {"a": 2}, force=True) as again,
    ):
        again.prepare(lambda path: path.mkdir())
    assert not any((tmp_path / "victim").iterdir())


def test_an_interrupted_run_of_ones_own_goes_on_in_a_shared_folder(shared: Path) -> None:
    command = IngestConfig(raw=shared / "raw.npy", output=shared / "x.zarr")
    before = os.umask(0)
    try:
        for _ in range(2):
            with OutputRun(command.output, {"a": 1}, command=command) as run:
                run.prepare(lambda path: path.mkdir())
            assert (
                run.begun and ownership.read_own(run.folder / recorded_settings.COMMAND)["step"] == "ingest"
            )
    finally:
        os.umask(before)
