from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tifffile
import xarray as xr
from small import counts
from tdenoise_pipeline.cli.command_line import main
from tdenoise_pipeline.errors import InputError, UsageError
from tdenoise_pipeline.ingest.ingest_many import movies_in, plan_jobs
from tdenoise_pipeline.settings.config import IngestManyConfig


def run(*words: Any) -> int:
    return main([*map(str, words), "-q"])


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Three movies and something else."""
    made = tmp_path / "day1"
    made.mkdir()
    for number in (2, 10, 1):
        np.save(made / f"movie{number}.npy", counts((6, 16, 16), seed=number))
    (made / "notes.txt").write_text("sample 7")
    return made


def test_a_folder_of_movies_is_many_and_each_gets_its_own_name(folder: Path, tmp_path: Path) -> None:
    assert [p.name for p in movies_in(folder)] == ["movie1.npy", "movie2.npy", "movie10.npy"]
    assert run("ingest", folder, "-o", tmp_path / "out") == 0
    for number in (1, 2, 10):
        found = xr.open_zarr(tmp_path / f"out/movie{number}.zarr")["counts"]
        np.testing.assert_array_equal(found, counts((6, 16, 16), seed=number))


def test_a_pattern_is_the_movies_that_fit_it(folder: Path) -> None:
    assert [p.name for p in movies_in(folder / "movie1*.npy")] == ["movie1.npy", "movie10.npy"]
    with pytest.raises(InputError, match="matches no file"):
        movies_in(folder / "*.mrc")


def test_a_folder_or_pattern_of_single_frames_is_one_movie(tmp_path: Path) -> None:
    (tmp_path / "frames").mkdir()
    frames = counts((12, 16, 16))
    for number, frame in enumerate(frames):
        tifffile.imwrite(tmp_path / f"frames/f{number}.tif", frame)
    for path in (tmp_path / "frames", tmp_path / "frames/*.tif"):
        assert movies_in(path) == [path]
        config = IngestManyConfig(raw=(path,), output=tmp_path / "m.zarr")
        assert [job.output for job in plan_jobs(config)] == [tmp_path / "m.zarr"]


def test_one_that_fails_does_not_keep_the_others_from_being_done(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (folder / "movie2.npy").write_bytes((folder / "movie2.npy").read_bytes()[:-500])
    files = [folder / f"movie{k}.npy" for k in (1, 2, 10)]
    assert run("ingest", *files, "-o", tmp_path / "out", "--json") == 3
    result = json.loads(capsys.readouterr().out)
    assert [movie["exit_code"] for movie in result["movies"]] == [0, 3, 0]
    assert "--allow-truncated" in result["movies"][1]["error"]
    assert result["movies"][0]["shape"] == [6, 16, 16]
    assert sorted(p.name for p in (tmp_path / "out").iterdir() if p.suffix == ".zarr") == [
        "movie1.zarr",
        "movie10.zarr",
    ]

    assert run("ingest", folder, "-o", tmp_path / "out", "--allow-truncated") == 0, "what is done is kept"
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].split() == ["movie", "frames", "size", "type", "mean", "Fano", "warnings", "result"]
    assert [line.split()[0] for line in lines[1:]] == ["movie1.npy", "movie2.npy", "movie10.npy"]
    assert lines[2].split()[1:6] == ["4", "16", "x", "16", "uint8"]


def test_movies_that_would_have_the_same_name_are_refused_before_the_first(
    folder: Path, tmp_path: Path
) -> None:
    tifffile.imwrite(tmp_path / "movie1.tif", counts((6, 16, 16)))
    config = IngestManyConfig(raw=(folder / "movie1.npy", tmp_path / "movie1.tif"), output=tmp_path / "out")
    with pytest.raises(UsageError, match="movie1.npy and .*movie1.tif would both become .*movie1.zarr"):
        plan_jobs(config)
    with pytest.raises(UsageError, match="this names one store, but there are 3 movies"):
        plan_jobs(IngestManyConfig(raw=(folder,), output=tmp_path / "out.zarr"))


def test_the_plans_of_several_are_shown(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run("ingest", folder, "-o", tmp_path / "out", "-n", "--json", "--bin", 2) == 0
    plans = json.loads(capsys.readouterr().out)
    assert [plan["shape"] for plan in plans.values()] == [[6, 8, 8]] * 3
    assert not (tmp_path / "out").exists()


def test_movies_may_have_any_name_that_a_file_system_holds(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    names = [
        b"with space",
        b"new\nline",
        "µ²".encode(),
        b"-dash",
        b"b[1]",
        b"q*",
        b"$(x)'\"",
        b"not \xff text",
    ]
    folder = tmp_path / "raw"
    folder.mkdir()
    for name in names:
        np.save(folder / f"{os.fsdecode(name)}.npy", counts((3, 16, 16)))
    too_long = "a" * 251
    np.save(folder / f"{too_long}.npy", counts((3, 16, 16)))
    assert run("ingest", folder, "-o", tmp_path / "out") == 2, "the worst: a store cannot have so long a name"
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == 1 + len(names) + 2 and "Give a shorter one" in lines[-1]
    made = {os.fsencode(p.stem) for p in (tmp_path / "out").glob("*.zarr")}
    assert made == set(names)
    assert run("ingest", folder / f"{too_long}.npy", "-o", tmp_path / "short.zarr") == 0
    xr.open_zarr(tmp_path / "short.zarr").close()
