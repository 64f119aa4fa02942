"""Batch runs on this machine: submit --profile local, and what status, logs, cancel and resume make of them."""

from __future__ import annotations

import json
import os
import re
import signal
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import xarray as xr
from small import counts
from tdenoise_pipeline.cli.command_line import main
from tdenoise_pipeline.jobs import job_status

HOSTILE = 'it\'s "a movie" $(touch pwned).npy'


@pytest.fixture
def tool(tmp_path, monkeypatch, capsys) -> Callable[..., tuple[int, str]]:
    """tool("status", "out") gives exit code and output; it runs where the test's files are."""
    monkeypatch.chdir(tmp_path)
    np.save(tmp_path / "plain.npy", counts((12, 32, 32)))
    (tmp_path / "plain.npy").rename(tmp_path / HOSTILE)

    def run(*words: object) -> tuple[int, str]:
        capsys.readouterr()
        code = main([str(word) for word in words])
        shown = capsys.readouterr()
        return code, shown.out + shown.err

    return run


def status(tool) -> dict[str, Any]:
    code, shown = tool("status", "out", "--json")
    assert code == 0, shown
    return json.loads(shown)["batch"]


def states(run: dict[str, Any]) -> list[str]:
    return [job["state"] for job in run["jobs"]]


def wait_for(tool, true: Callable[[dict[str, Any]], object]) -> dict[str, Any]:
    deadline = time.monotonic() + 300
    while not true(run := status(tool)):
        assert time.monotonic() < deadline, run
        time.sleep(0.2)
    return run


def ended(run: dict[str, Any]) -> bool:
    return not {"running", "pending"} & set(states(run))


@pytest.mark.slow
def test_a_run_goes_on_in_the_background_and_its_log_is_followed_to_the_end(tool, tmp_path, monkeypatch):
    words = ("submit", "--profile", "local", "run", HOSTILE, "-o", "out", "--steps", 2)
    code, shown = tool(*words, "--print")
    assert code == 0 and "SBATCH" not in shown and not (tmp_path / "out").exists()
    assert tool(*words)[0] == 0
    code, shown = tool(*words)
    assert code == 6 and "jobs of this run are still" in shown
    monkeypatch.setattr(job_status, "ASK_S", 0.5)
    code, shown = tool("logs", "out", "--follow")  # comes back when the run is over
    assert code == 0
    run = status(tool)
    assert run["state"] == "done", shown
    assert [line.split("-")[-4] for line in shown.splitlines() if line.startswith("==>")][-1:] == ["report"]
    for job in run["jobs"]:
        log = Path(job["log"])
        assert job["id"] in log.name and all(line in shown for line in log.read_text().splitlines())
    assert xr.open_zarr(tmp_path / "out/denoised.zarr")["denoised"].shape == (12, 32, 32)
    assert tool("resume", "out")[1].rstrip().endswith("nothing is missing")
    assert tool("cancel", "out") == (0, "there was no job to cancel\n")
    assert not list(tmp_path.rglob("pwned"))


@pytest.mark.slow
def test_what_was_cancelled_or_killed_goes_on_with_resume(tool, tmp_path):
    words = (
        "submit",
        "--profile",
        "local",
        "run",
        HOSTILE,
        "-o",
        "out",
        "--time-limit",
        "60s",
        "--ensemble",
        1,
    )
    assert tool(*words)[0] == 0
    run = wait_for(tool, lambda run: states(run)[1] == "running")
    assert states(run) == ["done", "running", "pending", "pending"]
    assert run["jobs"][2]["why"] == "waits for the step before it"
    code, shown = tool("cancel", "out")
    assert code == 0 and shown == f"cancelled: {run['jobs'][1]['id']}\n"
    run = status(tool)
    assert ended(run) and run["jobs"][1]["why"].endswith("resume")
    assert tool("resume", "out")[0] == 0
    run = wait_for(tool, lambda run: states(run)[1] == "running")
    assert states(run)[0] == "done"
    os.killpg(int(run["jobs"][1]["id"].removeprefix("pid-")), signal.SIGKILL)
    run = wait_for(tool, ended)
    assert states(run) == ["done", "failed", "cancelled", "cancelled"]


def test_a_step_that_fails_is_the_last_and_its_log_says_why(tool, tmp_path):
    assert tool("submit", "--profile", "local", "run", HOSTILE, "-o", "out", "--steps", 2)[0] == 0
    (tmp_path / HOSTILE).unlink()
    run = wait_for(tool, ended)
    assert states(run) == ["failed", "cancelled", "cancelled", "cancelled"]
    assert "No such file" in run["jobs"][0]["why"] or "no such file" in run["jobs"][0]["why"]
    code, shown = tool("logs", "out", "--failed")
    assert code == 0 and shown.count("==>") == 1


def test_a_run_of_another_machine_is_unknown_here_and_not_begun_again(tool, tmp_path):
    from tdenoise_pipeline.files.sealed_json import unsealed, write_sealed
    from tdenoise_pipeline.jobs import local_queue

    assert tool("submit", "--profile", "local", "run", HOSTILE, "-o", "out", "--time-limit", "60s")[0] == 0
    file = tmp_path / "out/batch" / local_queue.PROCESS
    record = file.read_bytes()
    write_sealed(file, unsealed(record) | {"host": "elsewhere"})
    assert status(tool)["state"] == "unknown"
    for words in (("resume", "out"), ("cancel", "out")):
        code, shown = tool(*words)
        assert code == 1 and "it was submitted on elsewhere" in shown
    file.write_bytes(record)
    assert tool("cancel", "out")[0] == 0


def test_following_a_log_can_be_stopped(tool, tmp_path, monkeypatch):
    from tdenoise_pipeline.settings.config import LogsConfig
    from tdenoise_pipeline.step_control import Control

    assert tool("submit", "--profile", "local", "run", HOSTILE, "-o", "out", "--time-limit", "60s")[0] == 0
    control = Control()
    threading.Timer(1.0, control.stop.set).start()
    list(job_status.logs(LogsConfig(output=tmp_path / "out", follow=True), control))
    assert not ended(status(tool))
    assert tool("cancel", "out")[0] == 0


@pytest.mark.parametrize(
    "profile, words, message",
    [
        (
            "pbs",
            ["run", HOSTILE, "-o", "out"],
            "submit supports only Slurm and this machine, but .* scheduler: pbs",
        ),
        (
            "lsf",
            ["run", HOSTILE, "-o", "out", "--print"],
            "Write a job script that runs 'tdenoise-pipeline run",
        ),
        (
            "local",
            ["apply", "m", "-o", "d", "--workers", "slurm:2"],
            "slurm:N does not fit .* scheduler: local",
        ),
        ("slurm", ["apply", "m", "-o", "d", "--workers", "pbs:2"], "pbs:N does not fit .* scheduler: slurm"),
    ],
)
def test_what_submit_cannot_do_is_refused_in_one_sentence(tool, tmp_path, profile, words, message):
    code, shown = tool("submit", "--profile", profile, *words)
    assert code == 2 and shown.count("\n") == 1
    assert re.search(message, shown), shown
    assert not (tmp_path / "out").exists()
