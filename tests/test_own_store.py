"""A movie store that is ingested again, or opened by the engine, is believed as little as by every other reader."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import xarray as xr
from small import counts, movie_store
from tdenoise_pipeline.errors import InputError
from tdenoise_pipeline.ingest.ingest import ingest
from tdenoise_pipeline.settings.config import IngestConfig

FRAMES = counts((70, 12, 14))


def swap(store: Path) -> None:
    one, other = store / "counts/c/0/0/0", store / "counts/c/1/0/0"
    before = one.read_bytes()
    one.write_bytes(other.read_bytes())
    other.write_bytes(before)


def lie(store: Path) -> None:
    for file in (store / "zarr.json", store / "counts/zarr.json"):
        file.write_text(file.read_text().replace('"fill_value": 255', '"fill_value": 0'))
    (store / "counts/c/1/0/0").unlink()


def miscalibrate(store: Path) -> None:
    data = bytearray((store / "t/c/0").read_bytes())
    data[30] ^= 1
    (store / "t/c/0").write_bytes(data)


def forget(store: Path) -> None:
    lie(store)
    (store / "zarr.json").write_text((store / "zarr.json").read_text().replace('"tdenoise"', '"tdenoisf"'))


@pytest.mark.parametrize("damage", [swap, lie, miscalibrate, forget])
def test_a_store_that_is_not_what_was_written_is_not_read_as_a_raw_movie(
    tmp_path: Path, damage: Callable[[Path], None]
) -> None:
    store = movie_store(tmp_path, FRAMES, frame_time=0.01)
    again = IngestConfig(raw=store, output=tmp_path / "again.zarr", frames=(0, 40))
    # A copy: what a process has compared once it does not compare again.
    whole = movie_store(tmp_path / "whole", FRAMES, frame_time=0.01)
    with xr.open_dataset(whole, engine="tdenoise") as opened:
        np.testing.assert_array_equal(opened["counts"], FRAMES)
    ingest(again)
    np.testing.assert_array_equal(xr.open_zarr(again.output)["counts"], FRAMES[:40])
    damage(store)
    with pytest.raises(InputError, match=r"movie\.zarr"):
        ingest(IngestConfig(raw=store, output=tmp_path / "wrong.zarr"))
    assert not (tmp_path / "wrong.zarr").exists()
    other = movie_store(tmp_path / "other", FRAMES, frame_time=0.01)
    damage(other)
    with (
        pytest.raises(InputError, match=r"movie\.zarr"),
        xr.open_dataset(other, engine="tdenoise", cache=False) as opened,
    ):
        opened["counts"].load()


def test_what_xarray_cut_out_of_a_store_is_a_raw_movie_like_any_other(tmp_path: Path) -> None:
    store = movie_store(tmp_path, FRAMES, frame_time=0.01)
    xr.open_zarr(store)[["counts"]].isel(t=slice(0, 30)).drop_encoding().to_zarr(
        tmp_path / "cut.zarr", consolidated=False
    )
    ingest(IngestConfig(raw=tmp_path / "cut.zarr", output=tmp_path / "again.zarr"))
    np.testing.assert_array_equal(xr.open_zarr(tmp_path / "again.zarr")["counts"], FRAMES[:30])
    with xr.open_dataset(tmp_path / "cut.zarr", engine="tdenoise") as opened:
        np.testing.assert_array_equal(opened["counts"], FRAMES[:30])
