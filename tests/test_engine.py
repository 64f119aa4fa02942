"""`xarray.open_dataset(file, engine="tdenoise")`: every format, read when it is needed, and nobody else's files."""

from __future__ import annotations

import pickle
import subprocess
import sys
from pathlib import Path
from typing import Any

import dask
import numpy as np
import pytest
import xarray as xr
from raw_files import COUNT_WRITERS, WRITERS, write_dm, write_folder
from small import counts
from tdenoise_pipeline.errors import InputError
from tdenoise_pipeline.python.xarray_engine import OWN_SUFFIXES, Engine

FORMATS = {**WRITERS, **COUNT_WRITERS}
FRAMES = counts((40, 24, 20)).astype(np.uint16)


@pytest.mark.parametrize("kind", FORMATS)
def test_a_raw_file_of_every_format_is_opened(kind: str, tmp_path: Path) -> None:
    name, write = FORMATS[kind]
    write(tmp_path / name, FRAMES)
    before = (tmp_path / name).read_bytes()
    with xr.open_dataset(tmp_path / name, engine="tdenoise") as opened:
        assert not opened["counts"].variable._in_memory
        assert opened["counts"].dims == ("t", "y", "x") and opened["counts"].attrs["units"] == "count"
        np.testing.assert_array_equal(opened["counts"], FRAMES)
        assert all(opened[axis].attrs["units"] in ("s", "nm", "frame", "pixel") for axis in "tyx")
    assert (tmp_path / name).read_bytes() == before


def test_a_folder_of_frames_is_opened_as_one_movie(tmp_path: Path) -> None:
    write_folder(tmp_path / "frames", FRAMES)
    np.testing.assert_array_equal(xr.open_dataset(tmp_path / "frames", engine="tdenoise")["counts"], FRAMES)


@pytest.mark.parametrize(
    "key",
    [
        np.s_[3],
        np.s_[-1, 2],
        np.s_[3:9:2, ::-1, 4],
        np.s_[::-1],
        np.s_[5:5],
        np.s_[:, 1:3, 2:9:3],
        np.s_[7, :, 3],
        np.s_[::-3, 20:2:-4],
    ],
)
def test_any_part_of_a_movie_can_be_read(key: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_dm(tmp_path / "m.dm4", FRAMES, 4)
    opened = xr.open_dataset(tmp_path / "m.dm4", engine="tdenoise")["counts"]
    np.testing.assert_array_equal(opened[key], FRAMES[key])
    monkeypatch.setattr("tdenoise_pipeline.python.xarray_engine.PIECE_BYTES", 3 * 24 * 20 * 2)
    np.testing.assert_array_equal(opened[key], FRAMES[key])
    picked = opened.isel(t=[4, 1, 1], y=[0, 23])
    np.testing.assert_array_equal(picked, FRAMES[[4, 1, 1]][:, [0, 23]])


def test_only_the_frames_that_are_needed_are_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from tdenoise_pipeline.readers.frames import FrameReader

    asked: list[tuple[int, int]] = []
    read = FrameReader.read

    def noting(self: FrameReader, start: int, stop: int, out: Any) -> None:
        asked.append((start, stop))
        read(self, start, stop, out)

    monkeypatch.setattr(FrameReader, "read", noting)
    write_dm(tmp_path / "m.dm4", FRAMES, 4)
    movie = xr.open_dataset(tmp_path / "m.dm4", engine="tdenoise")["counts"]
    later = movie[10:20].isel(t=slice(2, 4)).astype("float32")
    assert not movie.variable._in_memory
    assert later.shape == (2, 24, 20)
    assert set(asked) <= {(12, 14)}, "opening reads no frame"


def test_chunks_are_whole_frames_and_work_in_other_processes(tmp_path: Path, workers: str) -> None:
    from distributed import Client, Security

    write_dm(tmp_path / "m.dm4", FRAMES, 4)
    movie = xr.open_dataset(tmp_path / "m.dm4", engine="tdenoise", chunks={})["counts"]
    assert movie.chunks == ((32, 8), (24,), (20,))
    again = pickle.loads(pickle.dumps(movie))  # noqa: S301
    np.testing.assert_array_equal(again, FRAMES)
    with Client(workers, security=Security(require_encryption=True), set_as_default=False) as client:
        total = client.compute(movie.sum().data, sync=True)
    assert int(total) == int(FRAMES.sum())
    with dask.config.set(scheduler="synchronous"):
        assert int(movie.sum()) == int(FRAMES.sum())


def test_what_the_file_says_is_kept(tmp_path: Path) -> None:
    write_dm(tmp_path / "m.dm4", FRAMES, 4)
    opened = xr.open_dataset(tmp_path / "m.dm4", engine="tdenoise", drop_variables="x")
    assert "x" not in opened.coords
    assert opened["t"].attrs["units"] == "s" and opened["y"].attrs["units"] == "nm"
    assert opened["counts"].attrs["format"] == "DM4"
    opened.drop_encoding().load().to_zarr(
        tmp_path / "copy.zarr", consolidated=False
    )  # attributes that Zarr and netCDF can hold


def test_xarray_takes_the_engine_by_itself_where_no_other_is_at_home(tmp_path: Path) -> None:
    write_dm(tmp_path / "m.dm4", FRAMES, 4)
    assert xr.open_dataset(tmp_path / "m.dm4")["counts"].shape == FRAMES.shape
    engine = Engine()
    assert engine.guess_can_open("a/B.DM4") and engine.guess_can_open(tmp_path / "x.mrc")
    for other in (
        "a.zarr",
        "a.nc",
        "a.nc4",
        "a.h5",
        "a.hdf5",
        "a.tif",
        "a.grib",
        "a.mp4",
        "a",
        "http://x/a.zarr",
    ):
        assert not engine.guess_can_open(other), other
    assert not engine.guess_can_open(b"CDF") and not engine.guess_can_open({})
    mine = set(OWN_SUFFIXES)
    for name, other in xr.backends.list_engines().items():
        if name != "tdenoise":
            assert not [suffix for suffix in mine if other.guess_can_open(f"movie{suffix}")], name


def test_a_damaged_file_is_refused_in_a_sentence(tmp_path: Path) -> None:
    (tmp_path / "m.dm4").write_bytes(b"\0\0\0\4" + b"x" * 100)
    with pytest.raises(InputError, match=r"m\.dm4"):
        xr.open_dataset(tmp_path / "m.dm4", engine="tdenoise")
    with pytest.raises(InputError, match="no such file"):
        xr.open_dataset(tmp_path / "missing.dm4", engine="tdenoise")


def test_the_engine_brings_the_accessor_and_no_torch(tmp_path: Path) -> None:
    write_dm(tmp_path / "m.dm4", FRAMES, 4)
    code = (
        "import sys, xarray as xr\n"
        "movie = xr.open_dataset(sys.argv[1], engine='tdenoise')\n"
        "assert movie['counts'][3].sum() > 0\n"
        "movie.tdenoise.denoise, movie['counts'].tdenoise.denoise\n"
        "assert not {'torch', 'distributed'} & set(sys.modules)\n"
    )
    subprocess.run([sys.executable, "-c", code, tmp_path / "m.dm4"], check=True)


def test_the_accessor_comes_with_either_package_too() -> None:
    code = "import xarray as xr, tdenoise_pipeline; xr.DataArray([1]).tdenoise.denoise"
    subprocess.run([sys.executable, "-c", code], check=True)
