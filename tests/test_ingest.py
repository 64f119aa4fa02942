from __future__ import annotations

import hashlib
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import mrcfile
import numpy as np
import pytest
import tifffile
import xarray as xr
from small import counts, movie_store
from tdenoise_pipeline import ingest as module
from tdenoise_pipeline import store
from tdenoise_pipeline.config import IngestConfig
from tdenoise_pipeline.control import Control
from tdenoise_pipeline.errors import InputError, Stopped, UsageError
from tdenoise_pipeline.ingest import describe_plan, ingest


def test_tiff_and_mrc_become_the_same_counts(tmp_path: Path) -> None:
    frames = counts((40, 30, 20)).astype(np.uint16)
    tifffile.imwrite(
        tmp_path / "a.tif", frames, imagej=True, metadata={"axes": "TYX", "finterval": 0.1, "unit": "nm"}
    )
    with mrcfile.new(tmp_path / "b.mrc") as file:
        file.set_data(frames)
        file.set_image_stack()
        file.voxel_size = 0.5
    for name in ("a.tif", "b.mrc"):
        ingest(IngestConfig(raw=tmp_path / name, output=tmp_path / f"{name}.zarr"))
        np.testing.assert_array_equal(xr.open_zarr(tmp_path / f"{name}.zarr")["counts"], frames)
    assert store.open_store(tmp_path / "a.tif.zarr", store.MOVIE).coordinates.frame_time_s == pytest.approx(
        0.1
    )
    assert store.open_store(tmp_path / "b.mrc.zarr", store.MOVIE).coordinates.pixel_size_nm == pytest.approx(
        (0.05, 0.05)
    )


@pytest.mark.parametrize("dtype", ["u1", "i2", "u2", "i4", "f4", "f8"])
def test_no_value_is_changed_whatever_the_type(tmp_path: Path, dtype: str) -> None:
    frames = (
        np.random.default_rng(0)
        .normal(0, 60, (9, 33, 31))
        .clip(0 if dtype[0] == "u" else -100, 120)
        .astype(dtype)
    )
    np.testing.assert_array_equal(xr.open_zarr(movie_store(tmp_path, frames))["counts"], frames)


def test_a_frame_of_the_fill_value_is_stored_like_any_other(tmp_path: Path) -> None:
    frames = counts((8, 16, 16))
    frames[:4] = 255
    path = movie_store(tmp_path, frames)
    from tdenoise_pipeline.config import VerifyConfig
    from tdenoise_pipeline.verify import verify

    verify(VerifyConfig(store=path))
    np.testing.assert_array_equal(xr.open_zarr(path)["counts"], frames)


def test_frames_and_field_can_be_chosen(tmp_path: Path) -> None:
    frames = counts((20, 30, 40))
    path = movie_store(tmp_path, frames, frames=(3, 15), roi=((5, 25), (0, None)), frame_time=0.5)
    kept = xr.open_zarr(path)["counts"]
    np.testing.assert_array_equal(kept, frames[3:15, 5:25])
    assert float(kept["t"][0]) == 1.5, "time still counts from the start of the raw movie"
    assert float(kept["y"][0]) == 5
    assert store.open_store(path, store.MOVIE).coordinates == store.Coordinates(0.5, None, (3, 5, 0))
    with pytest.raises(UsageError, match="frames 3:99 are not all in the movie, which has 20"):
        describe_plan(IngestConfig(raw=tmp_path / "raw.npy", output=tmp_path / "x", frames=(3, 99)))


def test_the_store_says_where_the_movie_comes_from_and_how_noisy_it_is(tmp_path: Path) -> None:
    path = movie_store(tmp_path, counts((60, 128, 128), dose=0.5), counts_per_electron=1.0, pixel_size=0.02)
    attributes = store.read_attributes(path)
    raw = (tmp_path / "raw.npy").read_bytes()
    assert attributes["source"]["sha256"] == hashlib.sha256(raw).hexdigest()
    assert attributes["source"]["bytes"] == len(raw)
    noise = attributes["noise"]
    assert noise["fano"] == pytest.approx(1, abs=0.03)
    assert abs(noise["correlation_x"]) < 0.02 and abs(noise["correlation_y"]) < 0.02
    assert attributes["dose"]["per_pixel"] == pytest.approx(0.5, rel=0.02)
    assert attributes["dose"]["per_square_angstrom"] == pytest.approx(0.5 / 0.04, rel=0.02)
    assert len(attributes["frame_means"]) == 60
    assert attributes["warnings"] == []


def test_correlated_noise_is_measured_and_told(tmp_path: Path) -> None:
    from scipy.ndimage import uniform_filter

    noise = uniform_filter(np.random.default_rng(0).poisson(2.0, (20, 64, 64)).astype(np.float32), (0, 1, 2))
    attributes = store.read_attributes(movie_store(tmp_path, noise))
    assert attributes["noise"]["correlation_x"] == pytest.approx(0.5, abs=0.05)
    assert abs(attributes["noise"]["correlation_y"]) < 0.05
    assert "not that of single electrons" in attributes["warnings"][0]


def test_hot_pixels_are_found_and_told(tmp_path: Path) -> None:
    frames = counts((40, 64, 64), dose=0.5)
    assert store.read_attributes(movie_store(tmp_path / "sound", frames))["hot_pixels"] == []
    frames[:, 20, 31] = 60
    frames[:, 50, 3] = np.random.default_rng(1).poisson(30, 40)
    attributes = store.read_attributes(movie_store(tmp_path / "hot", frames))
    assert attributes["hot_pixels"] == [[20, 31], [50, 3]]
    assert "row 20, column 31" in attributes["warnings"][0]


def test_non_finite_frames_are_kept_and_named(tmp_path: Path) -> None:
    frames = counts((10, 16, 16)).astype(np.float32)
    frames[4, 3, 3] = np.nan
    path = movie_store(tmp_path, frames)
    assert store.read_attributes(path)["not_finite_frames"] == [4]
    np.testing.assert_array_equal(xr.open_zarr(path)["counts"], frames)


@pytest.mark.parametrize("n_frames", [1, 2])
def test_one_or_two_frames_are_refused(tmp_path: Path, n_frames: int) -> None:
    np.save(tmp_path / "raw.npy", counts((n_frames, 16, 16)))
    with pytest.raises(InputError):
        ingest(IngestConfig(raw=tmp_path / "raw.npy", output=tmp_path / "m.zarr"))
    assert [p.name for p in tmp_path.iterdir()] == ["raw.npy"]


def test_the_raw_file_is_not_touched(tmp_path: Path) -> None:
    np.save(tmp_path / "raw.npy", counts((10, 16, 16)))
    (tmp_path / "raw.npy").chmod(0o444)
    before = (tmp_path / "raw.npy").stat()
    ingest(IngestConfig(raw=tmp_path / "raw.npy", output=tmp_path / "m.zarr"))
    after = (tmp_path / "raw.npy").stat()
    assert (before.st_mtime_ns, before.st_size) == (after.st_mtime_ns, after.st_size)


def test_a_raw_file_that_grows_while_it_is_read_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    np.save(tmp_path / "raw.npy", counts((40, 16, 16)))
    copy = module._copy

    def copy_and_grow(*arguments: object) -> object:
        with (tmp_path / "raw.npy").open("ab") as file:
            file.write(b"more")
        return copy(*arguments)  # type: ignore[arg-type]

    monkeypatch.setattr(module, "_copy", copy_and_grow)
    with pytest.raises(InputError, match="changed while it was read"):
        ingest(IngestConfig(raw=tmp_path / "raw.npy", output=tmp_path / "m.zarr"))
    assert not (tmp_path / "m.zarr").exists()


def test_a_stop_keeps_what_is_done_and_the_next_run_goes_on(tmp_path: Path) -> None:
    np.save(tmp_path / "raw.npy", counts((200, 16, 16)))
    config = IngestConfig(raw=tmp_path / "raw.npy", output=tmp_path / "m.zarr")
    control = Control()

    def stop_after_two(what: str, done: int, total: int) -> None:
        if done >= 2:
            control.stop.set()

    control.progress = stop_after_two
    with pytest.raises(Stopped):
        ingest(config, control)
    done = {p: p.stat().st_mtime_ns for p in (tmp_path / ".tdenoise/m.zarr/done").iterdir()}
    assert 2 <= len(done) < 7
    shards = {
        p: p.stat().st_mtime_ns for p in (tmp_path / "m.zarr-partial/counts/c").rglob("0") if p.is_file()
    }
    ingest(config)
    for path, written in shards.items():
        final = tmp_path / "m.zarr" / path.relative_to(tmp_path / "m.zarr-partial")
        assert final.stat().st_mtime_ns == written, "a finished block is not done again"
    np.testing.assert_array_equal(xr.open_zarr(tmp_path / "m.zarr")["counts"], counts((200, 16, 16)))
    assert sorted(p.name for p in tmp_path.iterdir()) == ["m.zarr", "raw.npy"]


@pytest.mark.chaos
def test_ingest_killed_at_random_and_started_again_gives_the_same_store(tmp_path: Path) -> None:
    frames = counts((640, 128, 128))
    np.save(tmp_path / "raw.npy", frames)
    command = [sys.executable, "-m", "tdenoise_pipeline.cli", "ingest", "raw.npy", "-o", "m.zarr", "-q"]
    rng = np.random.default_rng(0)
    for _ in range(3):
        process = subprocess.Popen(command, cwd=tmp_path, env={**os.environ, "OMP_NUM_THREADS": "1"})
        while process.poll() is None and not list(tmp_path.glob(".tdenoise/m.zarr/done/*.json")):
            time.sleep(0.01)
        time.sleep(float(rng.uniform(0, 0.2)))
        process.send_signal(signal.SIGKILL)
        process.wait()
    subprocess.run(command, cwd=tmp_path, check=True)
    np.testing.assert_array_equal(xr.open_zarr(tmp_path / "m.zarr")["counts"], frames)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["m.zarr", "raw.npy"]
