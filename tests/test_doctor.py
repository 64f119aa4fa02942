"""Doctor: what it finds wrong when something is wrong."""

from __future__ import annotations

import json
import os
import time
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from tdenoise_pipeline.cli.command_line import main
from tdenoise_pipeline.jobs import doctor
from tdenoise_pipeline.jobs.doctor import examine, lines
from tdenoise_pipeline.settings.config import DoctorConfig


def found(result: dict, what: str) -> dict:
    return next(f for f in result["findings"] if f["what"] == what)


def test_a_sound_machine_is_all_green_and_the_folder_is_left_as_it_was(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    if torch.cuda.is_available():
        pytest.skip("what a GPU says depends on the GPU")
    assert main(["doctor", str(tmp_path)]) == 0
    screen = capsys.readouterr().out.splitlines()
    assert 8 <= len(screen) <= 25 and all(line.startswith("ok  ") for line in screen)
    assert list(tmp_path.iterdir()) == []
    assert main(["doctor", str(tmp_path), "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["versions"]["torch"] == torch.__version__
    assert main(["doctor", str(tmp_path / "nowhere")]) == 2


def test_a_driver_that_torch_cannot_use_is_red_and_says_what_to_do(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    if torch.cuda.is_available():
        pytest.skip("here torch can use it")
    tool = tmp_path / "nvidia-smi"
    tool.write_text("#!/bin/sh\necho 'NVIDIA A100-SXM4-80GB, 470.57'\n")
    tool.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    monkeypatch.setattr(torch.version, "cuda", None)
    finding = doctor._gpu()
    assert not finding.ok and "A100-SXM4-80GB, 470.57 is there" in finding.says
    assert "CUDA build" in finding.remedy
    monkeypatch.setattr(torch.version, "cuda", "12.8")
    assert "newer driver" in doctor._gpu().remedy
    tool.write_text("#!/bin/sh\nexit 9\n")
    assert doctor._gpu().ok
    monkeypatch.setenv("SLURM_JOB_GPUS", "0")
    assert "no driver answers" in doctor._gpu().says


def test_what_is_wrong_gives_exit_code_1(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    profile = tmp_path / "profile.yaml"
    profile.write_text("interface: ib77\n")
    monkeypatch.setenv("PATH", str(tmp_path))  # without Slurm
    monkeypatch.setenv("SLURM_MEM_PER_NODE", "2048")
    monkeypatch.setattr(doctor, "OPEN_FILES", 10**9)
    monkeypatch.setattr(doctor, "DISK_BYTES", 10**18)
    monkeypatch.setattr(doctor, "SKEW_S", -1.0)
    assert main(["doctor", str(tmp_path), "--profile", str(profile)]) == 1
    red = [line.split()[1] for line in capsys.readouterr().out.splitlines() if line.startswith("!!")]
    assert red == ["processor", "open", "disk", "clock", "network", "slurm"]


def test_a_file_system_that_lets_two_make_one_folder_is_red(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(doctor, "race", careless_race)
    finding = doctor._folder(tmp_path)
    assert not finding.ok
    assert "several processes could make the same folder" in finding.says
    assert "half replaced" in finding.says


def careless_race(probe: Path, number: int) -> None:
    """What a file system without atomic mkdir and rename would let happen."""
    for i in range(doctor.RACES):
        (probe / f"won-{i}-{number}").touch()
    with (probe / "replaced").open("wb") as file:
        file.write(b"half")
        file.flush()
        time.sleep(0.5)
        file.write(bytes(9_996))


def test_another_version_on_a_node_is_named() -> None:
    answer = {"host": "n1", "versions": {**doctor.VERSION, "zarr": "2.0"}, "findings": []}
    [finding] = doctor._of_node(answer)
    assert not finding.ok and finding.says == "zarr 2.0, unlike here"


def test_every_red_line_says_what_to_do(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(doctor.resource, "getrlimit", lambda _: (64, 64))
    monkeypatch.setattr(doctor.shutil, "disk_usage", lambda _: SimpleNamespace(free=5))
    screen = lines(examine(DoctorConfig(folder=tmp_path)))
    red = [line for line in screen if line.startswith("!!")]
    assert len(red) == 2 and all(line.rstrip().endswith(".") or "ulimit" in line for line in red)
