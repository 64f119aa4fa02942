"""The command `events`: tables of columns and of their changes, from a movie store and its denoised version."""

from __future__ import annotations

import csv
import json
import threading
from pathlib import Path

import numpy as np
import pytest
import xarray as xr
from scipy import ndimage
from stores import denoised_store, movie_store
from tdenoise_pipeline.cli.command_line import main
from tdenoise_pipeline.errors import Stopped
from tdenoise_pipeline.events import find_events
from tdenoise_pipeline.events.find_events import events
from tdenoise_pipeline.settings.config import EventsConfig
from tdenoise_pipeline.step_control import Control

from tdenoise.simulation.nanoparticle import Simulation, simulate
from tdenoise.simulation.particle import SimulationSettings


@pytest.fixture(scope="module")
def simulation() -> Simulation:
    return simulate(
        SimulationSettings(seed=6, dose=4.0, n_frames=64, height=96, width=96, dwell_frames=(15, 60))
    )


@pytest.fixture(scope="module")
def stores(simulation, tmp_path_factory) -> Path:
    """A movie store with its calibration, and a smooth version of it."""
    folder = tmp_path_factory.mktemp("events")
    movie = movie_store(folder / "movie.zarr", simulation.counts, frame_time=0.02, pixel_size=0.014)
    smooth = ndimage.gaussian_filter(simulation.counts.astype(np.float32), (3, 1.2, 1.2))
    denoised_store(folder / "denoised.zarr", movie, smooth)
    return folder


def run(stores: Path, output: Path, *more: object) -> int:
    words = ("events", stores / "denoised.zarr", "--movie", stores / "movie.zarr", "-o", output, *more)
    return main([str(word) for word in words])


def table(file: Path) -> list[dict[str, str]]:
    with file.open(newline="") as opened:
        return list(csv.DictReader(opened))


def test_the_tables_tell_columns_and_changes_that_are_true(simulation, stores, tmp_path, capsys):
    assert run(stores, tmp_path / "events", "--json") == 0
    told = json.loads(capsys.readouterr().out)
    columns, changes = table(tmp_path / "events/columns.csv"), table(tmp_path / "events/events.csv")
    assert told["n_columns"] == len(columns) and told["n_changes"] == len(changes) and told["n_sure"] > 0
    places = np.array([[float(c["row_px"]), float(c["column_px"])] for c in columns])
    apart = np.hypot(*(places[:, None] - simulation.col_pos[0][None]).transpose(2, 0, 1))
    assert np.all(apart.min(axis=0)[simulation.col_kind < 2] < 3)
    np.testing.assert_allclose([float(c["row_nm"]) for c in columns], places[:, 0] * 0.014, atol=1e-4)
    sure = [c for c in changes if float(c["probability"]) > 0.98]
    true = [
        any(
            int(column) == apart[int(c["column"])].argmin()
            and int(c["earliest_frame"]) - 3 <= time <= int(c["latest_frame"]) + 2
            and (after - before) * (float(c["after"]) - float(c["before"])) > 0
            for time, column, before, after in simulation.events
        )
        for c in sure
    ]
    assert len(sure) >= 3 and np.mean(true) >= 0.8
    assert all(abs(float(c["time_s"]) - 0.02 * int(c["frame"])) < 1e-6 for c in changes)


def test_the_traces_open_with_xarray_and_have_every_column_in_every_frame(stores, tmp_path):
    assert run(stores, tmp_path / "events", "-q") == 0
    with xr.open_zarr(tmp_path / "events/traces.zarr") as traces:
        n = len(table(tmp_path / "events/columns.csv"))
        assert traces["intensity"].dims == ("frame", "column") and traces["intensity"].shape == (64, n)
        assert {"error", "expected", "row_px", "column_px"} <= set(traces)


def test_the_folder_of_a_run_is_enough(stores, tmp_path):
    for name in ("movie.zarr", "denoised.zarr"):
        (tmp_path / name).symlink_to(stores / name)
    assert main(["events", str(tmp_path)]) == 0
    assert (tmp_path / "events/events.csv").exists()


def test_nothing_is_replaced_that_is_not_a_folder_of_events(stores, tmp_path, capsys):
    output = tmp_path / "mine"
    output.mkdir()
    (output / "thesis.tex").write_text("years of work")
    assert run(stores, output) == 2 and run(stores, output, "--force") == 2
    assert "is not a folder that 'events' made" in capsys.readouterr().err
    assert (output / "thesis.tex").read_text() == "years of work"
    assert run(stores, tmp_path / "events", "-q") == 0
    assert run(stores, tmp_path / "events", "-q") == 2
    assert run(stores, tmp_path / "events", "-q", "--force") == 0
    assert sorted(p.name for p in tmp_path.iterdir()) == ["events", "mine"]


def test_nothing_is_written_into_a_store_or_over_what_came_meanwhile(stores, tmp_path, monkeypatch, capsys):
    assert run(stores, stores / "denoised.zarr/events") == 2
    assert "lies in the store denoised.zarr" in capsys.readouterr().err
    output, measured = tmp_path / "mine", find_events.look

    def slow(*words):
        output.mkdir()
        (output / "notes.txt").write_text("written meanwhile")
        return measured(*words)

    monkeypatch.setattr(find_events, "look", slow)
    assert run(stores, output, "-q") == 2
    assert (output / "notes.txt").read_text() == "written meanwhile"
    assert [p.name for p in tmp_path.iterdir()] == ["mine"]


def test_a_stop_leaves_nothing_behind(stores, tmp_path):
    stop = threading.Event()
    stop.set()
    config = EventsConfig(
        denoised=stores / "denoised.zarr", movie=stores / "movie.zarr", output=tmp_path / "events"
    )
    with pytest.raises(Stopped):
        events(config, Control(stop=stop))
    assert list(tmp_path.iterdir()) == []


def test_parquet_without_its_package_is_one_sentence_before_any_work(stores, tmp_path, capsys, monkeypatch):
    import importlib.util

    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    assert run(stores, tmp_path / "events", "--parquet") == 2
    assert "extra 'parquet'" in capsys.readouterr().err and not list(tmp_path.iterdir())


def test_parquet_holds_what_the_csv_holds(stores, tmp_path):
    pytest.importorskip("pyarrow")
    import pandas as pd

    assert run(stores, tmp_path / "events", "--parquet", "-q") == 0
    for name in ("events", "columns"):
        one = pd.read_parquet(tmp_path / f"events/{name}.parquet")
        other = pd.read_csv(tmp_path / f"events/{name}.csv")
        pd.testing.assert_frame_equal(one, other, check_dtype=False, rtol=1e-5)


def test_a_movie_that_shows_no_columns_says_so(tmp_path):
    counts = np.random.default_rng(0).poisson(1.0, (24, 64, 64)).astype(np.uint8)
    movie = movie_store(tmp_path / "movie.zarr", counts)
    denoised_store(tmp_path / "denoised.zarr", movie, np.ones((24, 64, 64), np.float32))
    found = events(
        EventsConfig(
            denoised=tmp_path / "denoised.zarr", movie=tmp_path / "movie.zarr", output=tmp_path / "events"
        )
    )
    assert found["n_columns"] == 0 and "No atomic column" in found["notes"][0]
    assert table(tmp_path / "events/events.csv") == []
