"""Every command of docs/sol.md, run as it stands there on a real Slurm.

What stands for what: the jobs ask for less by the user's own profile, as the page tells; the movie is a small one
in another format; the training is short; the installation has been made, so its line is not run here
(tests/test_deploy.py looks at it).
"""

from __future__ import annotations

import os
import re
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from small import counts

pytestmark = [pytest.mark.slurm, pytest.mark.slow]

PAGE = Path(__file__).parents[2] / "docs/sol.md"
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
driver: {memory_gib: 4}
workers: {memory_gib: 4}
"""


def commands() -> list[str]:
    """The lines of all code blocks of the page."""
    blocks = re.findall(r"^```bash\n(.*?)^```", PAGE.read_text(), flags=re.M | re.S)
    return [line for block in blocks for line in block.splitlines()]


def test_the_commands_of_the_page_lead_from_movie_to_picture(slurm, tmp_path):
    mine = tmp_path / "config/tdenoise/profiles"
    mine.mkdir(parents=True)
    (mine / "sol.yaml").write_text(SMALL)
    np.save(tmp_path / "movie.npy", counts((12, 32, 32)))
    environment = {
        **os.environ,
        "HOME": str(tmp_path),
        "XDG_CONFIG_HOME": str(tmp_path / "config"),
        "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}",
    }
    lines = commands()
    assert lines[0].startswith(INSTALLS) and len(lines) == 13
    waited = False
    for line in lines[1:]:
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
