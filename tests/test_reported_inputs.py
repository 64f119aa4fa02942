"""Inputs of the kinds that public bug reports name give what their index says: the right value, or a refusal."""

from __future__ import annotations

import json
import tarfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import xarray as xr
from numpy.typing import NDArray
from tdenoise_pipeline.errors import InputError
from tdenoise_pipeline.ingest.ingest import ingest
from tdenoise_pipeline.readers import MovieInfo, open_raw
from tdenoise_pipeline.settings.config import IngestConfig
from tdenoise_pipeline.store import store

REPORTS = Path(__file__).parents[1].parent / "shared/data/reports"


def read(path: Path, allow_truncated: bool = False) -> tuple[NDArray[np.generic], MovieInfo]:
    with open_raw(path, allow_truncated=allow_truncated) as reader:
        out = np.empty(reader.info.shape, reader.info.dtype)
        reader.read(0, len(out), out)
        return out, reader.info


def refused(path: Path, *words: str, allow_truncated: bool = False) -> None:
    with pytest.raises(InputError) as error:
        read(path, allow_truncated)
    for word in words:
        assert word in str(error.value)


def two_pixels_in_a_byte(path: Path) -> None:
    data, info = read(path)
    assert (data.shape, data.dtype) == ((6, 30, 64), np.uint8)
    packed = np.frombuffer(path.read_bytes()[1024:], np.uint8).reshape(6, 30, 32)
    np.testing.assert_array_equal(data[:, :, 0::2], packed & 15)
    np.testing.assert_array_equal(data[:, :, 1::2], packed >> 4)
    assert info.warnings == ()


def signed_counts_of_imagej(path: Path) -> None:
    data, info = read(path)
    assert data.dtype == np.int16 and data.mean() == pytest.approx(1.0034, abs=1e-4)
    assert info.metadata["stored_numbers"]["offset"] == -32768


def packed_numbers_of_xarray(path: Path) -> None:
    data, info = read(path)
    np.testing.assert_allclose(data, xr.open_zarr(path)["counts"], rtol=1e-6)
    assert data.mean() == pytest.approx(12.97985, abs=1e-5)
    assert info.frame_time_s == pytest.approx(0.0133)


def a_pause_is_no_frame_time(path: Path) -> None:
    output = path.with_name("store.zarr")
    ingest(IngestConfig(raw=path, output=output))
    attributes = store.read_attributes(output)
    assert float(xr.open_zarr(output)["t"].diff("t")[0]) == pytest.approx(0.01)
    assert attributes["timing"]["interval_s"] == pytest.approx(0.01)
    assert attributes["timing"]["n_dropped"] == 500
    assert any("about 500 frames were lost" in warning for warning in attributes["warnings"])


def frames_beyond_the_header(path: Path) -> None:
    data, info = read(path)
    assert len(data) == 3 and "room for 3 more frames" in info.warnings[0]


def an_extended_header_that_is_not_there(path: Path) -> None:
    refused(path, "3072 bytes", "20 frames fit", "NSYMBT")
    refused(path, "3072 bytes", allow_truncated=True)


def still_open_at_the_camera(path: Path) -> None:
    refused(path, "still open for writing", "h5clear")


def a_recorder_that_was_killed(path: Path) -> None:
    refused(path, "names 0 frames", "room for 12", "--allow-truncated")
    assert len(read(path, allow_truncated=True)[0]) == 12


# What the index says of each file, as code. Those that are missing here are in tests/test_reported_files.py.
EXPECTED: dict[str, Callable[[Path], None]] = {
    "k3_4bit_flag16.mrc": two_pixels_in_a_byte,
    "ij_signed16.tif": signed_counts_of_imagej,
    "cfpacked.zarr.tar.gz": packed_numbers_of_xarray,
    "xr_pause.zarr.tar.gz": a_pause_is_no_frame_time,
    "nzless.mrc": frames_beyond_the_header,
    "ext_missing.mrc": an_extended_header_that_is_not_there,
    "swmr.h5": still_open_at_the_camera,
    "n0.seq": a_recorder_that_was_killed,
}
INDEX = json.loads((REPORTS / "index.json").read_text()) if REPORTS.is_dir() else []


@pytest.mark.skipif(not INDEX, reason="the collection of reported inputs is absent")
@pytest.mark.parametrize(
    "entry", [pytest.param(e, id=e["file"]) for e in INDEX if e["file"] in EXPECTED] or [None]
)
def test_a_reported_input_gives_what_its_index_says(entry: dict[str, str], tmp_path: Path) -> None:
    path = REPORTS / entry["file"]
    if path.name.endswith(".tar.gz"):  # of one store
        with tarfile.open(path) as archive:
            archive.extractall(tmp_path, filter="data")
        (path,) = tmp_path.iterdir()
    EXPECTED[entry["file"]](path)
