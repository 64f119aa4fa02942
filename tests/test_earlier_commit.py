"""What an earlier commit wrote is opened, verified and gone on with.

``data/before_the_rooms.tar.xz`` was made at cf8cdbd, before the modules moved into rooms: a raw movie, its store, a
model, the store denoised with it, and what killed runs of ingest and apply left after two blocks.
"""

from __future__ import annotations

import tarfile
from pathlib import Path

import numpy as np
import pytest
import xarray as xr
from tdenoise_pipeline.cli.command_line import main
from tdenoise_pipeline.files.sealed_json import read_sealed
from tdenoise_pipeline.runs import lease
from trials import contents

INGEST = ["ingest", "raw.npy", "--frame-time", "10ms", "-o"]
APPLY = ["apply", "movie.zarr", "--model", "model", "--ensemble", "1", "--share", "0/1", "-o"]


@pytest.fixture
def earlier(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    with tarfile.open(Path(__file__).parent / "data/before_the_rooms.tar.xz") as archive:
        archive.extractall(tmp_path, filter="data")
    monkeypatch.chdir(tmp_path)
    # It ran on another machine, which counts as dead when nothing moves there for a while.
    monkeypatch.setattr(lease, "STALE_S", 0.5)
    monkeypatch.setattr(lease, "QUIET_S", 0.5)  # or on one of the same name
    monkeypatch.setattr(lease, "LOOK_S", 0.05)
    return tmp_path


def test_stores_and_models_of_an_earlier_commit_are_whole_and_open(earlier: Path) -> None:
    for name in ("movie.zarr", "denoised.zarr", "model"):
        assert main(["verify", name, "--deep", "-q"]) == 0
    np.testing.assert_array_equal(xr.open_zarr("movie.zarr")["counts"], np.load("raw.npy"))
    denoised = xr.open_zarr("denoised.zarr")["denoised"]
    assert denoised.shape == (70, 12, 14) and np.isfinite(denoised).all()


def test_the_next_ingest_finishes_what_a_killed_one_of_an_earlier_commit_left(earlier: Path) -> None:
    done = sorted((earlier / ".tdenoise/left_movie.zarr/done").iterdir())
    assert len(done) == 2 and all(read_sealed(file) for file in done)
    kept = [
        (p, p.stat().st_mtime_ns) for p in sorted((earlier / "left_movie.zarr-partial/counts/c").rglob("0"))
    ]
    assert main([*INGEST, "left_movie.zarr", "-q"]) == 0
    for file, written in kept:
        if file.is_file():
            moved = earlier / "left_movie.zarr" / file.relative_to(earlier / "left_movie.zarr-partial")
            assert moved.stat().st_mtime_ns == written, "a shard that was done is written again"
    assert contents(earlier / "left_movie.zarr/counts") == contents(earlier / "movie.zarr/counts")
    assert main(["verify", "left_movie.zarr", "--deep", "-q"]) == 0


def test_a_killed_apply_of_another_rule_is_told_and_started_over(
    earlier: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """What is given back has changed since, so drafts of then and now must not become one movie."""
    assert main([*APPLY, "left_denoised.zarr", "-q"]) == 2
    assert "was started with other settings" in capsys.readouterr().err
    assert main([*APPLY, "left_denoised.zarr", "-q", "--force"]) == 0
    assert main(["verify", "left_denoised.zarr", "--deep", "-q"]) == 0
