"""The main job on a real Slurm."""

from __future__ import annotations

import re
import subprocess
import sys
import time

import numpy as np
import pytest
import xarray as xr
from small import counts, model_folder, movie_store
from tdenoise_pipeline.apply.apply import apply
from tdenoise_pipeline.archive.verify import verify
from tdenoise_pipeline.cli.command_line import main
from tdenoise_pipeline.settings.config import ApplyConfig, VerifyConfig

pytestmark = [pytest.mark.slurm, pytest.mark.slow]


def test_submit_run_queues_jobs_and_an_array_that_leave_the_denoised_store(slurm, tmp_path, capsys):
    np.save(tmp_path / "a movie.npy", counts((12, 32, 32)))
    profile = tmp_path / "profile.yaml"
    profile.write_text("cpus: 2\nmemory_gib: 4\ntime: '00:10:00'\n")
    words = [
        "submit",
        "--profile",
        profile,
        "run",
        tmp_path / "a movie.npy",
        "-o",
        tmp_path / "out",
        "--steps",
        "2",
        "--workers",
        "array:2",
    ]
    assert main([str(w) for w in words]) == 0
    jobs = dict(re.findall(r"(?m)^(\w+): job (\d+)$", capsys.readouterr().out))
    assert list(jobs) == ["ingest", "train", "apply", "report"]
    state = slurm.wait_for_job(jobs["report"], timeout=240)
    log = "".join(p.read_text() for p in tmp_path.rglob("*.log"))
    assert state == "COMPLETED", log
    assert xr.open_zarr(tmp_path / "out/denoised.zarr")["denoised"].shape == (12, 32, 32)
    assert (tmp_path / "out/report.html").exists()


def test_apply_on_worker_jobs_finishes_although_one_is_cancelled(slurm, tmp_path):
    movie = movie_store(tmp_path, counts((480, 30, 44)))  # 15 blocks
    model = model_folder(tmp_path / "model")
    apply(ApplyConfig(movie=movie, model=model, output=tmp_path / "local.zarr", workers="local:2"))
    profile = tmp_path / "profile.yaml"
    profile.write_text("cpus: 1\nmemory_gib: 2\ntime: '00:10:00'\n")
    command = [
        sys.executable,
        "-m",
        "tdenoise_pipeline.cli",
        "apply",
        movie,
        "--model",
        model,
        "--workers",
        "slurm:2",
    ]
    process = subprocess.Popen(
        [*map(str, command), "--profile", str(profile), "-o", str(tmp_path / "d.zarr"), "-q"],
        stderr=subprocess.PIPE,
        text=True,
    )
    done = tmp_path / ".tdenoise/d.zarr/done"
    deadline = time.monotonic() + 120
    while not list(done.glob("*.json")) and process.poll() is None:
        assert time.monotonic() < deadline
        time.sleep(0.02)
    slurm.cancel(next(iter(slurm.jobs())))
    _, errors = process.communicate(timeout=240)
    assert process.returncode == 0, errors
    verify(VerifyConfig(store=tmp_path / "d.zarr", deep=True))
    files = {p.relative_to(tmp_path / "d.zarr") for p in (tmp_path / "d.zarr").rglob("*") if p.is_file()}
    assert files == {
        p.relative_to(tmp_path / "local.zarr") for p in (tmp_path / "local.zarr").rglob("*") if p.is_file()
    }
    for file in files:
        assert (tmp_path / "d.zarr" / file).read_bytes() == (tmp_path / "local.zarr" / file).read_bytes()
    assert slurm.jobs() == {}
