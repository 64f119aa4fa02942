"""What runs as this user, and its keys, lies in folders that nobody else may change, also where a group works."""

from __future__ import annotations

import os
import stat
from pathlib import Path

import pytest
from tdenoise_pipeline.errors import UsageError
from tdenoise_pipeline.files.ownership import make_own_folder
from tdenoise_pipeline.settings.workers import Workers
from tdenoise_pipeline.workers import cluster, job_cluster

COLLEAGUE = 54_322


@pytest.mark.parametrize("what", ["folder", "link", "file"])
def test_nothing_is_started_from_where_a_colleague_may_put_scripts_and_keys(
    tmp_path: Path, what: str
) -> None:
    if os.geteuid() != 0:
        pytest.skip("only root can make files of another user")
    logs = tmp_path / "work" / "logs"
    (tmp_path / "elsewhere").mkdir()
    logs.parent.mkdir()
    if what == "link":
        logs.symlink_to(tmp_path / "elsewhere")
    elif what == "file":
        logs.touch()
    else:
        logs.mkdir()
        os.chown(logs, COLLEAGUE, -1)
    places = {"scratch": logs, "log_dir": logs, "worker_memory_bytes": None, "profile": None}
    with pytest.raises(UsageError, match="nothing is started from there"):
        make_own_folder(logs)
    with (
        pytest.raises(UsageError, match="nothing is started from there"),
        cluster.connect(Workers.of("local:1"), **places),  # type: ignore[arg-type]
    ):
        pass
    assert not any((tmp_path / "elsewhere").iterdir())


def test_a_folder_for_scripts_is_closed_to_the_group_whatever_the_umask(tmp_path: Path) -> None:
    before = os.umask(0)
    try:
        (tmp_path / "open").mkdir()
        for name in ("open", "new"):
            make_own_folder(tmp_path / name)
            assert not stat.S_IMODE((tmp_path / name).stat().st_mode) & 0o022
    finally:
        os.umask(before)


def test_keys_that_a_colleague_has_put_cancel_none_of_our_jobs(tmp_path: Path) -> None:
    pytest.importorskip("dask_jobqueue")
    if os.geteuid() != 0:
        pytest.skip("only root can make files of another user")
    cancelled: list[str] = []

    class Job:
        cancel_all = staticmethod(cancelled.append)

    for name in ("theirs", "ours"):
        (tmp_path / f"{job_cluster.KEYS}{name}").mkdir(mode=0o700)
    os.chown(tmp_path / f"{job_cluster.KEYS}theirs", COLLEAGUE, -1)
    with job_cluster._keys_folder(tmp_path, "new", Job) as folder:  # type: ignore[arg-type]
        assert stat.S_IMODE(folder.stat().st_mode) == 0o700
    assert cancelled == ["ours"]
