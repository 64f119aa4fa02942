"""Batch runs on a real Slurm: chains of jobs, and everything that may happen to them."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pytest
import xarray as xr
from small import counts, model_folder, movie_store
from tdenoise_pipeline.apply.apply import apply
from tdenoise_pipeline.archive.verify import verify
from tdenoise_pipeline.cli.command_line import main
from tdenoise_pipeline.settings.config import ApplyConfig, VerifyConfig
from tdenoise_pipeline.slurm import job_queue

pytestmark = [pytest.mark.slurm, pytest.mark.slow]

PATIENCE_S = 600.0  # nothing timed is asserted: a busy machine may take long
SMALL = "cpus: 1\nmemory_gib: 2\ntime: '00:10:00'\n"
HOSTILE = 'it\'s a "movie"\n#SBATCH --mem=2T $(touch pwned) `touch pwned`;.npy'


@pytest.fixture
def tool(slurm, tmp_path, monkeypatch, capsys) -> Iterator[Callable[..., tuple[int, str]]]:
    """tool("status", "out") gives exit code and output; it runs where the test's files are."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "small.yaml").write_text(SMALL)

    def run(*words: object) -> tuple[int, str]:
        capsys.readouterr()
        code = main([str(word) for word in words])
        shown = capsys.readouterr()
        return code, shown.out + shown.err

    yield run
    if live := list(slurm.jobs()):
        slurm.cancel(*live)


def status(tool, path: object) -> dict[str, Any]:
    code, shown = tool("status", path, "--json")
    assert code == 0, shown
    return json.loads(shown)["batch"]


def wait_until(true: Callable[[], object], pause_s: float = 0.2) -> None:
    deadline = time.monotonic() + PATIENCE_S
    while not true():
        assert time.monotonic() < deadline
        time.sleep(pause_s)


def wait_for_end(tool, path: object, expected: str = "done") -> dict[str, Any]:
    """Wait until a run is over; how it stands then."""
    ended: list[dict[str, Any]] = []

    def over() -> bool:
        ended[:] = [status(tool, path)]
        return not {job["state"] for job in ended[0]["jobs"]} & {"running", "pending", "unknown"}

    wait_until(over)
    logs = "".join(f"\n{log}\n{log.read_text()}" for log in Path.cwd().rglob("*.log"))
    assert ended[0]["state"] == expected, f"{ended[0]}{logs}"
    return ended[0]


def ids(run: dict[str, Any]) -> dict[str, str]:
    return {job["kind"]: job["id"] for job in run["jobs"]}


def restarts(slurm, job: str) -> int:
    return int(slurm.show(job).partition("Restarts=")[2].split()[0])


def markers(output: Path) -> list[Path]:
    return list((output.parent / ".tdenoise" / output.name / "done").glob("*.json"))


def test_a_run_outlives_a_frozen_controller_its_time_limit_and_a_requeue(slurm, tool, tmp_path, monkeypatch):
    np.save(tmp_path / "plain.npy", counts((480, 32, 32)))
    (tmp_path / "plain.npy").rename(tmp_path / HOSTILE)
    monkeypatch.setenv("SBATCH_PARTITION", "htc")  # would beat the scripts
    (tmp_path / "short.yaml").write_text(SMALL + "train:\n  time: '00:01:00'\n  stop_early_s: 5\n")
    # The training takes a minute of computing: that cannot fit into a job that is warned after 55 s at the latest.
    words = ("run", HOSTILE, "-o", "out", "--time-limit", "60s", "--ensemble", 1)
    code, shown = tool("submit", "--profile", "short.yaml", *words, "--json")
    assert code == 0, shown
    jobs = {job["kind"]: job["id"] for job in json.loads(shown)["jobs"]}
    assert list(jobs) == ["ingest", "train", "apply", "report"]
    code, shown = tool("submit", "--profile", "short.yaml", *words)
    assert code == 6 and "jobs of this run are still" in shown  # two submits of one run

    assert all("Partition=public" in slurm.show(job) for job in jobs.values())
    submitting = while_frozen(slurm, tool)
    shown, _ = submitting.communicate(timeout=PATIENCE_S)
    assert submitting.returncode == 0, shown
    other = wait_for_end(tool, "other.zarr")  # neither lost nor queued twice
    queued = [(job.id, job.name) for job in job_queue.jobs(other["run"])]
    assert queued == [(other["jobs"][0]["id"], f"{other['run']}-ingest-1")]

    denoised = tmp_path / "out/denoised.zarr"
    wait_until(lambda: markers(denoised) or status(tool, "out")["state"] == "failed")
    slurm.run("scontrol", "requeue", jobs["apply"])  # in the middle of a block
    run = wait_for_end(tool, "out")
    assert ids(run) == jobs
    # From the logs: Slurm forgets its jobs after five minutes.
    log = {job["kind"]: Path(job["log"]).read_text() for job in run["jobs"]}
    assert "is queued again and continues from here" in log["train"]
    assert "DUE TO JOB REQUEUE" in log["apply"]
    verify(VerifyConfig(store=denoised, deep=True))
    assert xr.open_zarr(denoised)["denoised"].shape == (480, 32, 32)
    assert (tmp_path / "out/report.html").exists()
    assert not (tmp_path / "pwned").exists()
    assert tool("resume", "out")[1].rstrip().endswith("nothing is missing")


def while_frozen(slurm, tool) -> subprocess.Popen[str]:
    """Half a minute without an answer from Slurm, while one run is queued and another one is being submitted."""
    controller = int((slurm.folder / "run/slurmctld.ci-pid").read_text())
    command = [sys.executable, "-m", "tdenoise_pipeline.cli", "submit", "--profile", "small.yaml", "ingest"]
    os.kill(controller, signal.SIGSTOP)
    try:
        frozen = time.monotonic()
        submitting = subprocess.Popen(
            [*command, HOSTILE, "-o", "other.zarr"],
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        assert status(tool, "out")["state"] == "unknown"
        code, shown = tool("resume", "out")
        assert code == 1 and "no answer" in shown
        time.sleep(max(0.0, 30 - (time.monotonic() - frozen)))
    finally:
        os.kill(controller, signal.SIGCONT)
    return submitting


def held_up(lease: Path) -> None:
    """Let the workers of a run sleep, until Slurm wakes them up to end them."""
    for worker in psutil.Process(json.loads(lease.read_text())["pid"]).children(recursive=True):
        with contextlib.suppress(psutil.NoSuchProcess):
            worker.suspend()


def test_a_killed_driver_and_a_preempted_job_lose_no_block(slurm, tool, tmp_path):
    movie = movie_store(tmp_path, counts((1440, 30, 44)))  # 45 blocks
    model = model_folder(tmp_path / "model")
    apply(ApplyConfig(movie=movie, model=model, output=tmp_path / "local.zarr", workers="local:1"))
    words = ("apply", movie, "--model", model, "-o", "d.zarr", "--workers", "local:1")
    code, shown = tool("submit", "--profile", "small.yaml", "--set", "partition=general", *words)
    assert code == 0, shown
    output = tmp_path / "d.zarr"
    wait_until(lambda: markers(output))
    held_up(
        tmp_path / ".tdenoise/d.zarr/lease/owner.json"
    )  # or it would be over before Slurm has made up its mind
    # Jobs of a higher tier take both nodes; ours is put back and goes on when they are gone.
    job = ids(status(tool, output))["apply"]
    slurm.run(
        "sbatch", "--partition=public", "--nodes=2", "--exclusive", "--output=none", "--wrap", "sleep 1"
    )
    wait_until(lambda: restarts(slurm, job) >= 1)
    wait_until(lambda: status(tool, output)["state"] == "running" and slurm.state(job) == "RUNNING")
    lease = tmp_path / ".tdenoise/d.zarr/lease/owner.json"
    wait_until(lambda: lease.exists() and Path(f"/proc/{json.loads(lease.read_text())['pid']}").exists())
    os.kill(json.loads(lease.read_text())["pid"], signal.SIGKILL)
    run = wait_for_end(tool, output, "failed")
    assert "kill" in run["jobs"][0]["why"].lower() or run["jobs"][0]["log"]
    kept = {marker: marker.stat().st_mtime_ns for marker in markers(output)}
    code, shown = tool("resume", output)
    assert code == 0, shown
    code, shown = tool("resume", output)
    assert code in (0, 6)
    assert code == 6 or "nothing is missing" in shown
    wait_until(lambda: all(m.stat().st_mtime_ns == t for m, t in kept.items() if m.exists()))
    wait_for_end(tool, output)
    np.testing.assert_array_equal(
        xr.open_zarr(output)["denoised"], xr.open_zarr(tmp_path / "local.zarr")["denoised"]
    )


def is_warned(pid: int) -> bool:
    """Whether a process that sleeps has been told to stop."""
    pending = Path(f"/proc/{pid}/status").read_text().partition("ShdPnd:")[2].split()[0]
    return bool(int(pending, 16) & 1 << signal.SIGTERM - 1)


def test_apply_that_reaches_its_time_limit_is_queued_again_and_changes_no_byte(slurm, tool, tmp_path):
    """As a job with workers of its own, and as a job array; both at the same time."""
    movie = movie_store(tmp_path, counts((1440, 30, 44)))  # 45 blocks
    model = model_folder(tmp_path / "model")
    apply(
        ApplyConfig(
            movie=movie, model=model, output=tmp_path / "undisturbed.zarr", workers="local:2", ensemble=1
        )
    )
    # Slurm looks every half minute: the warning comes 10 to 40 s after the start.
    limit = ("--set", "time=00:01:00", "--set", "stop_early_s=20")
    for output, workers in (("one.zarr", "local:1"), ("array.zarr", "array:2")):
        words = ("apply", movie, "--model", model, "-o", output, "--workers", workers, "--ensemble", 1)
        code, shown = tool("submit", "--profile", "small.yaml", *limit, *words)
        assert code == 0, shown
    leases = [tmp_path / ".tdenoise" / name / "lease" for name in ("one.zarr", "array.zarr")]
    asleep: set[int] = set()
    woken: set[int] = set()

    def all_woken() -> bool:
        """Each sleeps until it is told to stop, or it would be done before its time is up.

        A slow machine may start the last one when the first one's time is up.
        """
        for file in (leases[0] / "owner.json", *(leases[1] / "members").glob("*.json")):
            with contextlib.suppress(OSError, ValueError):
                pid = json.loads(file.read_text())["pid"]
                started = file.parent != leases[0] or markers(tmp_path / "one.zarr")
                if started and len(asleep | woken) < 3 and pid not in asleep | woken:
                    os.kill(pid, signal.SIGSTOP)
                    asleep.add(pid)
        for pid in {pid for pid in asleep if is_warned(pid)}:
            os.kill(pid, signal.SIGCONT)
            asleep.remove(pid)
            woken.add(pid)
        return len(woken) == 3

    wait_until(all_woken, 0.01)
    for output in (tmp_path / "one.zarr", tmp_path / "array.zarr"):
        run = wait_for_end(tool, output)
        logs = sorted((tmp_path / f"{output.name}-batch/logs").glob("*.log"))
        for log in logs:
            assert "is queued again and continues from here" in log.read_text(), log.read_text()
        assert len(logs) == 1 + (output.name == "array.zarr") and run["blocks"] is None
        assert tree(output) == tree(tmp_path / "undisturbed.zarr")


def tree(path: Path) -> dict[str, bytes]:
    return {str(p.relative_to(path)): p.read_bytes() for p in sorted(path.rglob("*")) if p.is_file()}


def test_a_step_that_fails_ends_the_chain_and_says_why(slurm, tool, tmp_path):
    np.save(tmp_path / "raw.npy", counts((12, 32, 32)))
    held = ("--profile", "small.yaml", "--set", "ingest.extra=--hold")
    code, shown = tool("submit", *held, "run", "raw.npy", "-o", "out", "--steps", 2)
    assert code == 0, shown
    run = status(tool, "out")
    assert [job["why"] for job in run["jobs"]] == ["held by you: scontrol release"] + [
        "waits for the step before it"
    ] * 3
    (tmp_path / "raw.npy").rename(tmp_path / "elsewhere.npy")
    slurm.run("scontrol", "release", ids(run)["ingest"])
    run = wait_for_end(tool, "out", "failed")
    assert "raw.npy" in run["jobs"][0]["why"]
    assert [job["state"] for job in run["jobs"]] == ["failed", "cancelled", "cancelled", "cancelled"]
    assert not slurm.jobs()
    code, shown = tool("logs", "out", "--failed")
    assert shown.count("==>") == 1 and "raw.npy" in shown

    (tmp_path / "elsewhere.npy").rename(tmp_path / "raw.npy")
    code, shown = tool("resume", "out", "--json")  # held again, as it was submitted
    assert [job["kind"] for job in json.loads(shown)["jobs"]] == ["ingest", "train", "apply", "report"]
    code, shown = tool("cancel", "out")
    assert code == 0 and shown.startswith("cancelled: ")
    assert tool("cancel", "out") == (0, "there was no job to cancel\n")
    assert {job["state"] for job in status(tool, "out")["jobs"]} == {"cancelled"}
    assert not slurm.jobs()


def test_a_profile_over_its_limits_is_explained_and_not_queued(slurm, tool, tmp_path):
    np.save(tmp_path / "raw.npy", counts((12, 32, 32)))
    (tmp_path / "site.yaml").write_text(
        SMALL
        + "partition: htc\ntrain:\n  time: '08:00:00'\napply:\n  gpus: a100:9\nreport:\n  partition: gone\n"
        "driver:\n  stop_early_s: 600\n"
    )
    code, shown = tool("profiles", "check", "site.yaml")
    lines = {line.split()[0]: line for line in shown.splitlines()}
    assert code == 2
    assert "accepted" in lines["ingest"]
    assert "partition htc allows 04:00:00, so it would never start" in lines["train"]
    assert "a100:9 GPU; the nodes have at most" in lines["apply"]
    assert "there is no partition gone here" in lines["report"]
    assert "raise time" in lines["driver"]
    code, shown = tool("submit", "--profile", "site.yaml", "run", "raw.npy", "-o", "out")
    assert code == 2 and "train: it requests 08:00:00, but partition htc" in shown
    # What only Slurm itself can know is refused by Slurm, and then nothing is left of the chain.
    (tmp_path / "big.yaml").write_text(SMALL + "train:\n  memory_gib: 900\n")
    code, shown = tool("submit", "--profile", "big.yaml", "run", "raw.npy", "-o", "out")
    assert code == 1 and "Slurm refused" in shown
    assert not slurm.jobs()
    assert tool("profiles", "check", "small.yaml")[0] == 0
