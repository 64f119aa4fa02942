from __future__ import annotations

import json
import warnings
from pathlib import Path

import numpy as np
import pytest
import xarray as xr
import zarr
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from small import counts, movie_store
from tdenoise_pipeline.apply import apply_plan
from tdenoise_pipeline.archive.verify import verify
from tdenoise_pipeline.errors import InputError, VerificationError
from tdenoise_pipeline.ingest import ingest_plan
from tdenoise_pipeline.settings.config import VerifyConfig
from tdenoise_pipeline.store import store, writing
from tdenoise_pipeline.store.blocks import n_blocks


@pytest.fixture
def movie(tmp_path: Path) -> Path:
    return movie_store(tmp_path, counts((70, 40, 50)), frame_time=0.02, pixel_size=0.05)


def test_xarray_opens_a_movie_store_with_no_argument_and_no_warning(movie: Path) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        dataset = xr.open_zarr(movie)
    assert dataset["counts"].dims == ("t", "y", "x")
    assert dataset["counts"].chunks is not None, "lazy"
    assert dataset["counts"].dtype == np.uint8
    assert [dataset[axis].attrs["units"] for axis in "tyx"] == ["s", "nm", "nm"]
    np.testing.assert_allclose(dataset["t"], np.arange(70) * 0.02)
    np.testing.assert_allclose(dataset["x"], np.arange(50) * 0.05)
    np.testing.assert_array_equal(dataset["counts"], counts((70, 40, 50)))


def test_ome_viewers_find_axes_and_scale(movie: Path) -> None:
    (image,) = xr.open_zarr(movie).attrs["ome"]["multiscales"]
    assert [axis["name"] for axis in image["axes"]] == ["t", "y", "x"]
    assert [axis["unit"] for axis in image["axes"]] == ["second", "nanometer", "nanometer"]
    (level,) = image["datasets"]
    assert level["path"] == "counts"
    scale, shift = level["coordinateTransformations"]
    assert scale == {"type": "scale", "scale": [0.02, 0.05, 0.05]}
    assert shift == {"type": "translation", "translation": [0.0, 0.0, 0.0]}


def test_an_unknown_calibration_stays_unknown(tmp_path: Path) -> None:
    path = movie_store(tmp_path, counts((5, 8, 9)))
    dataset = xr.open_zarr(path)
    assert [dataset[axis].attrs["units"] for axis in "tyx"] == ["frame", "pixel", "pixel"]
    opened = store.open_store(path, store.MOVIE)
    assert opened.coordinates == store.Coordinates(None, None)


def test_open_gives_chunks_of_whole_shards(movie: Path) -> None:
    import tdenoise_pipeline

    dataset = tdenoise_pipeline.open(movie)
    assert dataset["counts"].chunks == ((32, 32, 6), (40,), (50,))


def test_a_missing_shard_never_reads_as_counts(movie: Path) -> None:
    (movie / "counts/c/1/0/0").unlink()
    assert (xr.open_zarr(movie)["counts"].values[32:64] == 255).all()
    with pytest.raises(VerificationError, match="frames 32 to 63.*is missing"):
        verify(VerifyConfig(store=movie))


def test_a_flipped_bit_never_reads_as_data(movie: Path) -> None:
    rng = np.random.default_rng(0)
    file = movie / "counts/c/0/0/0"
    sound = file.read_bytes()
    for position in rng.integers(0, len(sound), 60):
        damaged = bytearray(sound)
        damaged[position] ^= 1 << int(rng.integers(8))
        file.write_bytes(damaged)
        with pytest.raises(VerificationError, match="frames 0 to 31"):
            verify(VerifyConfig(store=movie, deep=True))
    file.write_bytes(sound)
    assert verify(VerifyConfig(store=movie, deep=True))["n_shards"] == 3


def test_a_cut_or_swapped_shard_is_found(movie: Path) -> None:
    first, second = movie / "counts/c/0/0/0", movie / "counts/c/1/0/0"
    a, b = first.read_bytes(), second.read_bytes()
    first.write_bytes(a[: len(a) // 2])
    with pytest.raises(VerificationError):
        verify(VerifyConfig(store=movie))
    first.write_bytes(b)
    second.write_bytes(a)
    for deep in (False, True):  # each is whole
        with pytest.raises(VerificationError, match="2 of 3 shards.*other data"):
            verify(VerifyConfig(store=movie, deep=deep))


def test_a_changed_record_of_hashes_is_found(movie: Path) -> None:
    table = zarr.open_group(movie, mode="r+", use_consolidated=False)["integrity/counts"]
    table[0, 0, 0, 0] = 1
    with pytest.raises(VerificationError, match="record of hashes.* was changed"):
        verify(VerifyConfig(store=movie))


def test_only_stores_of_this_project_are_opened(movie: Path, tmp_path: Path) -> None:
    zarr.create_group(tmp_path / "foreign.zarr")
    for path, reason in [
        (tmp_path / "none.zarr", "no such store"),
        (tmp_path / "foreign.zarr", "ingest the movie"),
    ]:
        with pytest.raises(InputError, match=reason):
            store.open_store(path, store.MOVIE)
    with pytest.raises(InputError, match="not a denoised movie"):
        store.open_store(movie, store.DENOISED)


def test_a_foreign_codec_is_refused_before_zarr_sees_it(movie: Path) -> None:
    file = movie / "counts/zarr.json"
    metadata = json.loads(file.read_text())
    metadata["codecs"][0]["configuration"]["codecs"].append({"name": "numcodecs.pickle"})
    file.write_text(json.dumps(metadata))
    with pytest.raises(InputError, match="not one that tdenoise writes"):
        store.open_store(movie, store.MOVIE)


@given(arrays(np.float32, 50, elements=st.floats(width=32, allow_nan=True, allow_infinity=True)))
def test_rounding_keeps_values_to_half_a_percent_and_nan_and_inf(values: np.ndarray) -> None:
    rounded = writing.round_mantissa(values)
    finite = np.isfinite(values) & (np.abs(values) > 1e-30) & (np.abs(values) < 1e38)
    assert (np.abs(rounded[finite] - values[finite]) <= np.abs(values[finite]) * 2.0**-8).all()
    np.testing.assert_array_equal(rounded[~np.isfinite(values)], values[~np.isfinite(values)])
    np.testing.assert_array_equal(writing.round_mantissa(rounded)[finite], rounded[finite])


@given(st.tuples(st.integers(1, 5000), st.integers(1, 9000), st.integers(1, 9000)))
def test_shards_are_whole_numbers_of_chunks(shape: tuple[int, int, int]) -> None:
    for pixels in (store.SHARD_PIXELS, store.MOVIE_SHARD_PIXELS):
        geometry = store.Geometry.of(shape, shard_pixels=pixels)
        assert all(s % c == 0 for s, c in zip(geometry.shard, geometry.chunk, strict=True))
        assert np.prod(geometry.shard) <= 32 * pixels**2


@given(
    st.tuples(st.integers(1, 100_000), st.integers(1, 9000), st.integers(1, 9000)),
    st.sampled_from([4, 16, 32]),
)
def test_shards_of_a_denoised_movie_are_long_only_where_many_are_left(
    shape: tuple[int, int, int], frames: int
) -> None:
    long = apply_plan._long(shape, frames)
    assert frames <= long <= store.LONG_SHARD_FRAMES
    assert long == frames or n_blocks(shape, (long, 1024, 1024)) >= store.MANY_SHARDS


def test_a_hundred_terabytes_are_hundreds_of_thousands_of_files() -> None:
    shape = (4470, 4096, 4096)  # 75 GB of uint8
    n_movies = 1e14 / (4470 * 4096**2)
    movie = ingest_plan.plan_geometry(shape, np.dtype("u1")).shard
    denoised = store.Geometry.of(shape, apply_plan._long(shape, movie[0])).shard
    assert n_movies * n_blocks(shape, movie) < 1e6
    assert n_movies * n_blocks(shape, denoised) < 1e6
