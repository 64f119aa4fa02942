"""One training on two nodes of a real Slurm."""

from __future__ import annotations

import json
import re

import numpy as np
import pytest
from small import counts, movie_store
from tdenoise_pipeline.cli.command_line import main
from tdenoise_pipeline.settings.config import TrainConfig
from tdenoise_pipeline.train.train import train_model

pytestmark = [pytest.mark.slurm, pytest.mark.slow]


def test_a_training_on_two_nodes_is_requeued_and_gives_what_one_process_gives(slurm, tmp_path, capsys):
    movie = movie_store(tmp_path / "a movie", counts((60, 40, 33)))
    train_model(TrainConfig(movie=(movie,), output=tmp_path / "alone", steps=40, processes=1))
    profile = tmp_path / "profile.yaml"
    profile.write_text("cpus: 1\nmemory_gib: 2\ntime: '00:10:00'\nnodes: 2\n")
    words = ["submit", "--profile", profile, "train", movie, "-o", tmp_path / "two", "--steps", "40"]
    assert main([str(w) for w in words]) == 0
    [job] = re.findall(r"train: job (\d+)", capsys.readouterr().out)
    metrics = tmp_path / "two-partial/metrics.jsonl"
    slurm.wait_for_log(metrics, "held_out", timeout=180)  # both are in the loop
    [log] = tmp_path.rglob(f"*-{job}.log")
    slurm.cancel("--batch", "--signal=USR1", job)  # what --signal=B:USR1@120 sends
    slurm.wait_for_log(log, "is queued again and continues from here", timeout=120)
    assert "Requeue=1" in slurm.show(job) and "Restarts=1" in slurm.show(job)
    assert slurm.wait_for_job(job, timeout=240) == "COMPLETED", log.read_text()
    assert "NumNodes=2" in slurm.show(job)
    assert log.read_text().count(" 40 steps") == 1
    one, two = (
        [json.loads(line)["held_out"] for line in (tmp_path / m / "metrics.jsonl").read_text().splitlines()]
        for m in ("alone", "two")
    )
    np.testing.assert_allclose(one, two, rtol=1e-4)
    assert not list(tmp_path.glob("two-partial"))
