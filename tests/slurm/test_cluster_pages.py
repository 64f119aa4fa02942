"""Every command of the pages on Slurm and on ASU Sol, run as it stands there on a real Slurm.

What stands for what: the jobs ask for less by the user's own profile, as the pages tell; the movie is a small one
in another format; the training is short; the installation has been made, so its line is not run here
(tests/test_deploy.py looks at it).
"""

from __future__ import annotations

import os
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from pages import CLUSTER_PAGES, blocks, name_of
from small import counts, model_folder, movie_store

pytestmark = [pytest.mark.slurm, pytest.mark.slow]

INSTEAD = {"movie.dm4": "movie.npy", "--time-limit 20m": "--time-limit 2s"}
INSTALLS = "module load mamba/latest && bash tdenoise/deploy/install.sh"
SMALL = """
cpus: 1
memory_gib: 4
time: "00:10:00"
ingest: {cpus: 1}
train: {cpus: 2, memory_gib: 4}
apply: {cpus: 2, memory_gib: 4}
report: {memory_gib: 4, time: "00:10:00"}
driver: {cpus: 1, memory_gib: 4}
workers: {memory_gib: 4, time: "00:10:00"}
"""


@pytest.mark.parametrize("page", CLUSTER_PAGES, ids=name_of)
def test_the_commands_of_the_page_lead_from_movie_to_picture(page: Path, slurm, tmp_path):
    mine = tmp_path / "config/tdenoise/profiles"
    mine.mkdir(parents=True)
    for profile in ("sol", "slurm"):
        (mine / f"{profile}.yaml").write_text(SMALL)
    np.save(tmp_path / "movie.npy", counts((12, 32, 32)))
    movie_store(tmp_path / "made", counts((12, 32, 32)))
    (tmp_path / "made/movie.zarr").rename(tmp_path / "movie.zarr")
    model_folder(tmp_path / "model")
    environment = {
        **os.environ,
        "HOME": str(tmp_path),
        "XDG_CONFIG_HOME": str(tmp_path / "config"),
        "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}",
    }
    lines = [line for _, text in blocks(page, "bash") for line in text.splitlines()]
    assert len(lines) > 10
    waited = False
    for line in lines:
        if line.startswith(INSTALLS):
            continue
        for there, here in INSTEAD.items():
            line = line.replace(there, here)
        done = subprocess.run(
            ["bash", "-c", line], cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=300
        )
        assert done.returncode == 0, f"{line}\n{done.stdout}\n{done.stderr}"
        if "status" in line and not waited:
            deadline = time.monotonic() + 400
            while slurm.jobs():
                assert time.monotonic() < deadline, slurm.jobs()
                time.sleep(1)
            waited = True
            logs = "".join(p.read_text() for p in tmp_path.rglob("*.log"))
            assert (tmp_path / "results/report.html").exists(), logs
    assert waited
