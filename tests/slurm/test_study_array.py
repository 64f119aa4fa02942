"""A study as a job array on a real Slurm says what it says on one machine."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from small import movie_store
from tdenoise_pipeline.cli.command_line import main

pytestmark = [pytest.mark.slurm, pytest.mark.slow]

FLAGS = ["--frames", "8,all", "--sizes", "32,full", "--steps", "2", "--device", "cpu"]


def figures(folder: Path) -> tuple[str, list[float]]:
    told = json.loads((folder / "study.json").read_text())
    return told["sentence"], [cell["error_of_noise_variance"] for cell in told["cells"]]


def test_two_tasks_of_an_array_find_what_one_process_finds(
    slurm, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    _, y, x = np.ogrid[:44, :48, :48]
    clean = 2 + np.where(x < 20, 0, np.cos(2 * np.pi * y / 6) * np.cos(2 * np.pi * x / 6))
    frames = np.random.default_rng(0).poisson(np.broadcast_to(clean, (44, 48, 48))).astype(np.uint8)
    movie = str(movie_store(tmp_path / "m", frames))
    (tmp_path / "small.yaml").write_text("cpus: 1\nmemory_gib: 3\ntime: '00:20:00'\n")
    assert main(["study", movie, "-o", "here", *FLAGS, "-q"]) == 0
    words = ["submit", "--profile", "small.yaml", "study", movie, "-o", "there", *FLAGS]
    capsys.readouterr()
    assert main([*words, "--workers", "array:2", "--json"]) == 0
    (job,) = json.loads(capsys.readouterr().out)["jobs"]
    for task in range(2):
        assert slurm.wait_for_job(f"{job['id']}_{task}", timeout=600) == "COMPLETED"
    assert figures(tmp_path / "there")[0] == figures(tmp_path / "here")[0]
    assert figures(tmp_path / "there")[1] == pytest.approx(figures(tmp_path / "here")[1], rel=1e-3, abs=1e-6)
    assert (tmp_path / "there/report.html").is_file()
