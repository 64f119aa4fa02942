"""Doctor asks the nodes of a real Slurm."""

from __future__ import annotations

import pytest
from tdenoise_pipeline.cli.command_line import main
from tdenoise_pipeline.jobs.doctor import examine
from tdenoise_pipeline.settings.config import DoctorConfig

pytestmark = [pytest.mark.slurm, pytest.mark.slow]


def test_nodes_see_the_folder_and_use_the_same_software(slurm, tmp_path, capsys):
    folder = tmp_path / "shared $HOME"
    folder.mkdir()
    profile = tmp_path / "profile.yaml"
    profile.write_text("cpus: 1\nmemory_gib: 4\n")
    assert main(["doctor", str(folder), "--profile", str(profile), "--nodes", "2"]) == 0
    screen = capsys.readouterr().out.splitlines()
    assert len([line for line in screen if line.startswith("ok  node ")]) == 2
    assert any("partitions" in line for line in screen)
    assert list(folder.iterdir()) == []


def test_nodes_without_the_python_are_red(slurm, tmp_path):
    profile = tmp_path / "profile.yaml"
    profile.write_text("cpus: 1\nmemory_gib: 1\nsetup: ['echo no such environment >&2; exit 1']\n")
    result = examine(DoctorConfig(folder=tmp_path, profile=profile, nodes=1))
    last = result["findings"][-1]
    assert result["exit_code"] == 1 and last["what"] == "nodes"
    assert "0 of 1 answered" in last["says"] and "no such environment" in last["says"]
