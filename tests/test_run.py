"""All steps in one command."""

from __future__ import annotations

import re
from dataclasses import replace
from pathlib import Path

import h5py
import numpy as np
import pytest
import tifffile
from small import counts
from tdenoise_pipeline.errors import InputError, Stopped, UsageError
from tdenoise_pipeline.settings.config import RunConfig, SimulateConfig
from tdenoise_pipeline.step_control import Control
from tdenoise_pipeline.workflow.run import check, run
from tdenoise_pipeline.workflow.simulate import write_simulation


@pytest.fixture
def raw(tmp_path: Path) -> Path:
    np.save(tmp_path / "raw.npy", counts((12, 24, 32)))
    return tmp_path / "raw.npy"


def written(folder: Path) -> dict[str, int]:
    return {
        name: (folder / name).stat().st_mtime_ns
        for name in ("movie.zarr/zarr.json", "model/card.json", "denoised.zarr/zarr.json", "report.html")
    }


def test_every_step_is_skipped_when_it_is_done(raw: Path, tmp_path: Path, workers: str) -> None:
    config = RunConfig(raw=raw, output=tmp_path / "out", steps=2, ensemble=1, workers=workers)
    first = run(config)
    before = written(tmp_path / "out")
    assert run(config) == first
    assert written(tmp_path / "out") == before
    names = ["denoised.zarr", "metrics.json", "model", "movie.zarr", "report.html", "report.png"]
    assert sorted(p.name for p in (tmp_path / "out").iterdir()) == names


def test_force_does_every_step_over_once_although_it_is_stopped_between(
    raw: Path, tmp_path: Path, workers: str
) -> None:
    config = RunConfig(raw=raw, output=tmp_path / "out", steps=2, ensemble=1, workers=workers)
    run(config)
    before = written(tmp_path / "out")
    control = Control()

    def stop_in_apply(what: str, done: int, total: int) -> None:
        if what == "apply":
            control.stop.set()

    control.progress = stop_in_apply
    with pytest.raises(Stopped):
        run(replace(config, force=True), control)
    between = written(tmp_path / "out")
    assert between["model/card.json"] > before["model/card.json"]
    run(replace(config, force=True))
    after = written(tmp_path / "out")
    assert after["model/card.json"] == between["model/card.json"], "it was done over already"
    assert after["denoised.zarr/zarr.json"] > before["denoised.zarr/zarr.json"]
    run(replace(config, force=True))
    assert written(tmp_path / "out")["model/card.json"] > after["model/card.json"], "a new wish"


def test_wrong_settings_are_found_before_the_first_step(raw: Path, tmp_path: Path) -> None:
    def config(**settings: object) -> RunConfig:
        return RunConfig(raw=raw, output=tmp_path / "out", **settings)  # type: ignore[arg-type]

    with pytest.raises(UsageError, match="foo:1"):
        run(config(workers="foo:1"))
    for wrong in ({"truth": tmp_path / "none.npz"}, {"from_model": tmp_path / "none"}):
        with pytest.raises(InputError):
            run(config(**wrong))
    with pytest.raises(UsageError, match="which has 12"):
        check(config(frames=(0, 99)))
    assert not (tmp_path / "out").exists()


def test_the_truth_of_a_brighter_movie_is_refused_before_the_training(tmp_path: Path) -> None:
    write_simulation(SimulateConfig(output=tmp_path / "sim", size=48, n_frames=12))
    np.save(tmp_path / "raw.npy", 2 * tifffile.imread(tmp_path / "sim" / "movie.tif"))
    config = RunConfig(
        raw=tmp_path / "raw.npy", output=tmp_path / "out", truth=tmp_path / "sim" / "truth.npz"
    )
    with pytest.raises(InputError, match="belongs to another movie"):
        run(config)
    assert not (tmp_path / "out" / "model").exists()
    # A batch job that only ingests may be too small to hold a truth: the job of the report looks at it.
    alone = tmp_path / "alone"
    assert run(replace(config, output=alone, step="ingest")) == {"ingest": str(alone / "movie.zarr")}


@pytest.mark.parametrize("ending", ["npy", "h5"])
def test_a_folder_of_movies_is_not_one_run_and_the_error_names_them(ending: str, tmp_path: Path) -> None:
    folder = tmp_path / "day1"
    folder.mkdir()
    for number, name in enumerate("ab"):
        frames = counts((6, 24, 24), seed=number)
        if ending == "npy":
            np.save(folder / f"{name}.npy", frames)
        else:
            with h5py.File(folder / f"{name}.h5", "w") as file:
                file["data"] = frames
        holds = f"holds 2 movies (a.{ending}, b.{ending})" if number else f"holds one movie, a.{ending}"
        with pytest.raises(UsageError, match=re.escape(holds)):
            check(RunConfig(raw=folder, output=tmp_path / "out"))
