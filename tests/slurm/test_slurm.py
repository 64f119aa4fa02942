"""Worker jobs and batch jobs on a real Slurm."""

from __future__ import annotations

import os
import stat
import sys
import threading
import time
from pathlib import Path
from types import SimpleNamespace

import pytest
from tdenoise_pipeline.errors import PipelineError, ResourceError, Stopped
from tdenoise_pipeline.settings.workers import Workers
from tdenoise_pipeline.slurm.batch_script import BatchJob, render_script, submit_script
from tdenoise_pipeline.slurm.site_profile import JobProfile
from tdenoise_pipeline.step_control import Control
from tdenoise_pipeline.workers import cluster
from tdenoise_pipeline.workers.driver import drive

pytestmark = [pytest.mark.slurm, pytest.mark.slow]

SMALL = JobProfile(cpus=1, memory_gib=1, time="00:10:00")


@pytest.fixture
def connect(slurm, tmp_path, monkeypatch):
    """connect("slurm:N") with a small profile, quick checks, and a log folder whose name needs quoting."""
    pytest.importorskip("dask_jobqueue")
    from tdenoise_pipeline.workers import job_cluster

    monkeypatch.setattr(job_cluster, "CHECK_INTERVAL_S", 3.0)
    monkeypatch.setitem(cluster.SETTINGS, "distributed.deploy.lost-worker-timeout", "2s")
    profile = tmp_path / "profile.yaml"

    def start(workers: str, extra_settings: str = "", stop: threading.Event | None = None):
        profile.write_text(f"cpus: 1\nmemory_gib: 1\ntime: '00:10:00'\n{extra_settings}\n")
        return cluster.connect(
            Workers.of(workers),
            scratch=tmp_path / "scratch $HOME",
            worker_memory_bytes=None,
            profile=profile,
            log_dir=tmp_path / "logs 100% 'new'",
            stop=stop,
        )

    return start


@pytest.fixture
def slow_square():
    return lambda i: (time.sleep(0.2), i * i)[1]  # a lambda travels by value: workers lack this file


def test_worker_jobs_do_the_work_and_leave_nothing(slurm, connect, slow_square, tmp_path):
    with connect("slurm:2") as client:
        results = client.gather(client.map(slow_square, range(20), pure=False))
        assert client.scheduler.address.startswith("tls://")
        keys = list(tmp_path.rglob("*.pem"))
        assert keys and all(stat.S_IMODE(key.stat().st_mode) == 0o600 for key in keys)
        assert all(stat.S_IMODE(key.parent.stat().st_mode) == 0o700 for key in keys)
        client.wait_for_workers(2, timeout=60)
        assert cluster.n_workers(client) == len(slurm.jobs()) == 2
        # As after an sbatch that timed out and submitted all the same: a job nobody knows the number of.
        slurm.run("sbatch", "--job-name", client.cluster.job_name, "--mem=10M", "--wrap", "sleep 60")
    assert results == [i * i for i in range(20)]
    assert not slurm.jobs()
    assert not list(tmp_path.rglob("*.pem"))
    assert len(list(tmp_path.glob("logs*/*.log"))) == 2


def test_a_cancelled_worker_job_is_replaced_and_no_task_is_lost(slurm, connect, slow_square):
    with connect("slurm:2") as client:
        client.wait_for_workers(2, timeout=60)
        futures = client.map(slow_square, range(60), pure=False, retries=3)
        before = set(client.run(lambda: os.environ["SLURM_JOB_ID"]).values())
        victim = before.pop()
        slurm.cancel(victim)
        assert client.gather(futures) == [i * i for i in range(60)]
        client.wait_for_workers(2, timeout=60)
        assert len(set(client.run(lambda: os.environ["SLURM_JOB_ID"]).values()) - before) == 1


def test_a_worker_job_that_dies_before_it_is_ready_is_replaced(slurm, connect, tmp_path):
    flag = tmp_path / "bad node"
    setup = f"setup: ['mkdir \"{flag}\" 2>/dev/null && exit 3 || true']"
    with connect("slurm:2", setup) as client:
        client.wait_for_workers(2, timeout=60)
        assert flag.is_dir()


def test_worker_jobs_that_cannot_run_are_an_error_with_their_log(slurm, connect):
    with (
        pytest.raises(ResourceError, match=r"(?s)ended before a worker was ready.*no such environment"),
        connect("slurm:2", "setup: ['echo no such environment; exit 1']"),
    ):
        pass
    assert not slurm.jobs()


def test_the_only_worker_job_dies_on_arrival_once_and_the_run_recovers(slurm, connect, slow_square, tmp_path):
    setup = f"setup: ['mkdir {tmp_path}/bad 2>/dev/null && exit 3 || true']"
    with connect("slurm:1", setup) as client:
        assert client.submit(slow_square, 3).result(timeout=60) == 9


def test_workers_that_are_lost_and_never_come_again_end_the_run_with_their_log(slurm, connect, tmp_path):
    """The first worker does its part, then every job dies on arrival."""
    setup = (
        f"setup: ['mkdir {tmp_path}/once 2>/dev/null || {{ echo the disk of this node is full; exit 3; }}']"
    )

    def connected():
        return connect("slurm:1", setup)

    items = [SimpleNamespace(number=n) for n in range(200)]
    outcomes = drive(connected, None, lambda item: time.sleep(0.5), items, lambda: items, Control(), 600)
    next(outcomes)
    slurm.cancel(next(iter(slurm.jobs())))
    with pytest.raises(ResourceError, match=r"(?s)4 worker jobs in a row ended.*disk of this node is full"):
        list(outcomes)
    assert not slurm.jobs()


def test_a_time_limit_that_is_never_granted_is_told_soon_and_in_words(slurm, connect):
    with (
        pytest.raises(ResourceError, match=r"wait forever \(PartitionTimeLimit: .*lower time"),
        connect("slurm:1", "partition: htc\nextra: [--time=05:00:00]"),
    ):
        pass
    assert not slurm.jobs()


def test_workers_leave_before_their_time_limit_and_no_block_is_begun_twice(slurm, connect, tmp_path):
    folder = tmp_path / "seen"
    folder.mkdir()

    def block(item):
        (folder / f"begin-{item.number}-{time.time_ns()}").touch()
        time.sleep(2)
        (folder / f"end-{item.number}").touch()

    def connected():  # the workers leave 20 s after their jobs began
        return connect("slurm:2", "extra: [--time=00:01:00]\nstop_early_s: 580")

    items = [SimpleNamespace(number=n) for n in range(32)]
    outcomes = drive(connected, None, block, items, lambda: items, Control(), 600, {"block": 1.0})
    assert [outcome.error for outcome in outcomes] == [None] * 32
    assert len(list(tmp_path.glob("logs*/*.log"))) > 2, "jobs were replaced"
    assert len(list(folder.glob("begin-*"))) == len(list(folder.glob("end-*"))) == 32


def test_strangers_are_refused(slurm, connect):
    import distributed
    from distributed.security import Security

    with connect("slurm:1") as client:
        address = client.scheduler.address
        plain = {"address": address.replace("tls://", "tcp://")}
        for other in (plain, {"address": address, "security": Security.temporary()}):
            with pytest.raises(OSError):
                distributed.Client(**other, timeout=3, set_as_default=False)


def test_two_workers_on_one_node_use_different_gpus(slurm, connect):
    with connect("slurm:2", "gpus: 'a100:1'\nextra: [--nodelist=node1]") as client:
        client.wait_for_workers(2, timeout=60)
        seen = client.run(lambda: (os.environ["SLURMD_NODENAME"], os.environ["CUDA_VISIBLE_DEVICES"]))
    assert {node for node, _ in seen.values()} == {"node1"}
    assert sorted(device for _, device in seen.values()) == ["0", "1"]


def test_a_worker_of_other_versions_says_so(slurm, connect, tmp_path):
    other = tmp_path / "other" / "torch-1.0.dist-info"
    other.mkdir(parents=True)
    (other / "METADATA").write_text("Metadata-Version: 2.1\nName: torch\nVersion: 1.0\n")
    with (
        pytest.raises(ResourceError, match=r"torch is 1\.0 here, but .* where the run was started"),
        connect("slurm:2", f"setup: ['export PYTHONPATH={other.parent}']"),
    ):
        pass


def test_keys_and_jobs_of_a_driver_that_was_killed_go_with_the_next_start(slurm, connect, tmp_path):
    stale = tmp_path / "logs 100% 'new'" / ".keys-tdenoise-killed"
    stale.mkdir(parents=True)
    (stale / "key.pem").touch()
    slurm.run("sbatch", "--job-name", "tdenoise-killed", "--mem=10M", "-o", "/dev/null", "--wrap", "sleep 60")
    with connect("slurm:1"):
        assert not stale.exists()
        assert "tdenoise-killed" not in slurm.jobs().values()


def test_a_refused_worker_job_is_an_error_in_slurms_words(slurm, connect):
    with (
        pytest.raises(ResourceError, match=r"invalid partition specified: nowhere"),
        connect("slurm:2", "partition: nowhere"),
    ):
        pass


def test_a_wait_that_never_ends_is_an_error_with_slurms_reason(slurm, connect, monkeypatch):
    from tdenoise_pipeline.workers import job_cluster

    wait = job_cluster.wait_for_first
    monkeypatch.setattr(
        job_cluster, "wait_for_first", lambda jobs, *, timeout_s, stop: wait(jobs, timeout_s=2, stop=stop)
    )
    with (
        pytest.raises(ResourceError, match=r"no worker started .*PENDING .*BeginTime"),
        connect("slurm:1", "extra: [--begin=now+1hour]"),
    ):
        pass
    assert not slurm.jobs()


def test_a_stop_request_ends_the_wait_in_the_queue(slurm, connect):
    stop = threading.Event()
    threading.Timer(1.0, stop.set).start()
    workers = connect("slurm:1", "extra: [--begin=now+1hour]", stop)
    with pytest.raises(Stopped), workers:
        pass
    assert not slurm.jobs()


def batch_job(tmp_path: Path, code: str, *arguments: str, profile: JobProfile = SMALL) -> tuple[str, Path]:
    """Submit a Python program; job id and log."""
    logs = tmp_path / "batch logs"
    logs.mkdir()
    command = [sys.executable, "-c", code, *arguments]
    script = tmp_path / "job.sh"
    script.write_text(
        render_script(BatchJob(command, name="test", profile=profile, log_dir=logs, work_dir=tmp_path))
    )
    job_id = submit_script(script)
    return job_id, logs / f"test-{job_id}.log"


def test_a_batch_job_runs_where_and_what_it_was_told(slurm, tmp_path, monkeypatch):
    monkeypatch.setenv("SBATCH_PARTITION", "htc")  # would beat the script
    monkeypatch.setenv("A_SECRET", "hidden")
    code = "import os, sys; print(sys.argv[1:], os.getcwd(), os.environ.get('A_SECRET'))"
    hostile = "it's $(date)\n#SBATCH --mem=2T"
    job_id, log = batch_job(tmp_path, code, hostile, "")
    assert slurm.wait_for_job(job_id) == "COMPLETED"
    assert log.read_text() == f"{[hostile, '']} {tmp_path} None\n"
    assert "Partition=public" in slurm.show(job_id)


STOP_IN_GOOD_ORDER = """
import os, signal, sys, time
run = int(os.environ.get("SLURM_RESTART_COUNT", 0))
signal.signal(signal.SIGTERM, lambda *_: sys.exit(75))
print("run", run, flush=True)
time.sleep(0 if run else 60)
"""


def test_a_job_that_stops_before_its_time_limit_is_requeued_and_goes_on(slurm, tmp_path):
    job_id, log = batch_job(tmp_path, STOP_IN_GOOD_ORDER)
    slurm.wait_for_log(log, "run 0")
    slurm.cancel("--batch", "--signal=USR1", job_id)  # what --signal=B:USR1@120 sends
    slurm.wait_for_log(log, "run 1")
    assert slurm.wait_for_job(job_id) == "COMPLETED"
    assert log.read_text().splitlines()[0] == "run 0"  # one log, nothing overwritten


def test_a_cancelled_job_does_not_come_back(slurm, tmp_path):
    job_id, log = batch_job(tmp_path, STOP_IN_GOOD_ORDER)
    slurm.wait_for_log(log, "run 0")
    slurm.cancel(job_id)
    assert slurm.wait_for_job(job_id) == "CANCELLED"
    time.sleep(1)
    assert not slurm.jobs()
    assert "Restarts=0" in slurm.show(job_id)


def test_a_refused_batch_job_is_an_error_in_slurms_words(slurm, tmp_path):
    profile = JobProfile(cpus=1, memory_gib=1, partition="nowhere")
    with pytest.raises(PipelineError, match="invalid partition specified: nowhere"):
        batch_job(tmp_path, "pass", profile=profile)
