from __future__ import annotations

from pathlib import Path
from typing import Any

import mrcfile
import numpy as np
import pytest
import tifffile
import xarray as xr
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import array_shapes, arrays, integer_dtypes
from small import counts, movie_store
from tdenoise_pipeline.errors import InputError, UsageError
from tdenoise_pipeline.ingest.corrections import Linear, bin_pixels, summed_type
from tdenoise_pipeline.ingest.ingest import ingest
from tdenoise_pipeline.ingest.references import orient
from tdenoise_pipeline.settings.config import ORIENTATIONS, IngestConfig
from tdenoise_pipeline.store import store

FRAMES = counts((20, 24, 32), dose=3.0)
RNG = np.random.default_rng(7)


def reference(path: Path, image: np.ndarray) -> Path:
    """A reference image in the format that the suffix says."""
    if path.suffix == ".npy":
        np.save(path, image)
    elif path.suffix == ".tif":
        tifffile.imwrite(path, image)
    else:
        with mrcfile.new(path) as file:
            file.set_data(image.astype(np.float32))
    return path


def stored(folder: Path, frames: np.ndarray = FRAMES, /, **settings: Any) -> np.ndarray:
    return xr.open_zarr(movie_store(folder, frames, **settings))["counts"].values


@pytest.mark.parametrize("suffix", [".npy", ".tif", ".mrc"])
def test_dark_is_subtracted_and_gain_multiplied_and_nothing_is_clipped(tmp_path: Path, suffix: str) -> None:
    dark = reference(tmp_path / f"dark{suffix}", RNG.uniform(0, 4, (24, 32)).astype(np.float32))
    image = RNG.uniform(0.8, 1.2, (24, 32)).astype(np.float32)
    gain = reference(tmp_path / f"gain{suffix}", image)
    found = stored(tmp_path, dark=dark, gain=gain)
    read = np.load(dark) if suffix == ".npy" else None
    assert found.dtype == np.float32
    assert (found < 0).any()
    if read is not None:
        np.testing.assert_allclose(found, (FRAMES - read) * image, rtol=1e-5, atol=1e-5)
    attributes = store.read_attributes(tmp_path / "movie.zarr")
    assert attributes["corrections"][:2] == [
        f"dark reference dark{suffix} subtracted",
        f"multiplied by gain reference gain{suffix} (as-is)",
    ]
    assert len(attributes["references"]["gain"]["sha256"]) == 64


def test_whole_dark_counts_leave_whole_counts_that_may_be_negative(tmp_path: Path) -> None:
    dark = RNG.integers(0, 9, (24, 32))
    np.save(tmp_path / "dark.npy", np.stack([dark - 1, dark + 1]).astype(np.int16))  # a movie of dark frames
    found = stored(tmp_path, dark=tmp_path / "dark.npy")
    assert found.dtype == np.int16, "uint8 less a positive dark has negative results"
    np.testing.assert_array_equal(found, FRAMES.astype(int) - dark)


@pytest.mark.parametrize("orientation", ORIENTATIONS)
def test_a_gain_reference_is_turned_to_lie_as_the_movie(tmp_path: Path, orientation: str) -> None:
    image = RNG.uniform(0.8, 1.2, (24, 32)).astype(np.float32)
    undo = {"rot90": "rot270", "rot270": "rot90"}.get(orientation, orientation)
    np.save(tmp_path / "gain.npy", orient(image, undo))
    found = stored(tmp_path, gain=tmp_path / "gain.npy", gain_orientation=orientation)
    np.testing.assert_allclose(found, FRAMES * image, rtol=1e-5)


def test_a_reference_that_does_not_fit_is_refused_with_what_would(tmp_path: Path) -> None:
    np.save(tmp_path / "gain.npy", np.ones((32, 24)))
    with pytest.raises(
        InputError, match=r"32 x 24 pixels, and .* 24 x 32\. It would fit .* rot90 or transpose"
    ):
        stored(tmp_path, gain=tmp_path / "gain.npy")
    with pytest.raises(InputError, match="24 x 32 pixels once turned|32 x 24 pixels once turned"):
        stored(tmp_path, gain=tmp_path / "gain.npy", gain_orientation="rot180")
    np.save(tmp_path / "dark.npy", np.full((24, 32), np.nan))
    with pytest.raises(InputError, match="dark reference holds NaN"):
        stored(tmp_path, dark=tmp_path / "dark.npy")
    with pytest.raises(InputError, match="no such file"):
        stored(tmp_path, dark=tmp_path / "nothing.npy")
    assert not (tmp_path / "movie.zarr-partial").exists()


def test_a_reference_is_cut_like_the_movie_and_0_in_the_gain_marks_a_bad_pixel(tmp_path: Path) -> None:
    gain = RNG.uniform(0.8, 1.2, (24, 32))
    gain[10, 20] = 0
    np.save(tmp_path / "gain.npy", gain)
    found = stored(tmp_path, gain=tmp_path / "gain.npy", roi=((5, 21), (3, None)))
    expected = (FRAMES * gain)[:, 5:21, 3:]
    bad = xr.open_zarr(tmp_path / "movie.zarr")["bad_pixels"].values
    assert np.argwhere(bad).tolist() == [[5, 17]]
    np.testing.assert_allclose(found[:, ~bad], expected[:, ~bad], rtol=1e-5)
    assert (found[:, 5, 17] > 0).any()


@pytest.mark.parametrize("as_text", [True, False])
def test_listed_defects_are_replaced_by_neighbours(tmp_path: Path, as_text: bool) -> None:
    bad = np.zeros((24, 32), dtype=bool)
    bad[4:6, 7:10] = bad[20, 0] = True
    file = tmp_path / ("defects.txt" if as_text else "defects.tif")
    if as_text:
        file.write_text("# x y width height\n7 4 3 2\n\n0 20\n")
    else:
        tifffile.imwrite(file, bad.astype(np.uint8))
    frames = FRAMES.copy()
    frames[:, bad] = 200
    found = stored(tmp_path, frames, defects=file, keep_defects=True)
    assert found.max() < 50
    np.testing.assert_array_equal(found[:, ~bad], FRAMES[:, ~bad])
    np.testing.assert_array_equal(xr.open_zarr(tmp_path / "movie.zarr")["bad_pixels"], bad)


@pytest.mark.parametrize("line", ["1 2 3", "a b", "40 2", "31 2 2 1", "-1 0"])
def test_a_wrong_line_of_a_defect_list_is_named(tmp_path: Path, line: str) -> None:
    (tmp_path / "defects.txt").write_text(f"1 1\n{line}\n")
    with pytest.raises(InputError, match="line 2"):
        stored(tmp_path, defects=tmp_path / "defects.txt")


def test_an_inverted_defect_map_is_refused(tmp_path: Path) -> None:
    np.save(tmp_path / "defects.npy", np.ones((24, 32), dtype=np.uint8))
    with pytest.raises(UsageError, match="100 % of the pixels.*inverted"):
        stored(tmp_path, defects=tmp_path / "defects.npy")


def test_hot_pixels_are_found_replaced_and_told(tmp_path: Path) -> None:
    frames = counts((40, 64, 64), dose=0.5)
    assert store.read_attributes(movie_store(tmp_path / "sound", frames))["hot_pixels"] == []
    assert "bad_pixels" not in xr.open_zarr(tmp_path / "sound/movie.zarr")
    hot = frames.copy()
    hot[:, 20, 31] = 60
    hot[:, 50, 3] = np.random.default_rng(1).poisson(30, 40)
    found = stored(tmp_path / "hot", hot)
    attributes = store.read_attributes(tmp_path / "hot/movie.zarr")
    assert attributes["hot_pixels"] == [[20, 31], [50, 3]]
    assert "row 20, column 31" in attributes["warnings"][0]
    assert attributes["noise"]["fano"] == pytest.approx(1, abs=0.05)
    bad = xr.open_zarr(tmp_path / "hot/movie.zarr")["bad_pixels"].values
    assert np.argwhere(bad).tolist() == [[20, 31], [50, 3]]
    np.testing.assert_array_equal(found[:, ~bad], frames[:, ~bad])
    assert found.max() < 20

    np.testing.assert_array_equal(stored(tmp_path / "kept", hot, keep_defects=True), hot)
    attributes = store.read_attributes(tmp_path / "kept/movie.zarr")
    assert attributes["hot_pixels"] == [[20, 31], [50, 3]]
    assert attributes["corrections"] == []
    assert "left as they are" in attributes["warnings"][0]


def test_so_many_that_they_cannot_be_the_cameras_are_left_alone_and_told(tmp_path: Path) -> None:
    frames = counts((40, 64, 64), dose=0.5)
    frames[:, 4::16, 4::16] = 60
    np.testing.assert_array_equal(stored(tmp_path, frames), frames)
    attributes = store.read_attributes(tmp_path / "movie.zarr")
    assert attributes["warnings"][0].startswith("16 pixels look hot or dead, too many")
    assert (attributes["hot_pixels"], attributes["n_bad_pixels"]) == ([], 0)


def test_an_x_ray_is_replaced_where_electrons_are_counted_and_its_value_is_kept(tmp_path: Path) -> None:
    frames = counts((40, 48, 48), dose=1.0).astype(np.uint16)
    struck = frames.copy()
    struck[7, 12, 40] = 4000
    found = stored(tmp_path / "auto", struck, frames=(2, None), roi=((8, None), (0, None)))
    attributes = store.read_attributes(tmp_path / "auto/movie.zarr")
    assert attributes["xray_hits"] == {"n": 1, "replaced": True, "hits": [[7, 12, 40, 4000.0]]}
    assert found.max() < 30
    np.testing.assert_array_equal(np.delete(found, 5, axis=0), np.delete(frames[2:, 8:], 5, axis=0))
    assert "raw frame 7, row 12, column 40: 4000 counts), were replaced" in attributes["warnings"][0]

    np.testing.assert_array_equal(stored(tmp_path / "kept", struck, xray="keep"), struck)
    assert not store.read_attributes(tmp_path / "kept/movie.zarr")["xray_hits"]["replaced"]


def test_without_counted_electrons_an_x_ray_is_only_named_unless_asked_for(tmp_path: Path) -> None:
    frames = (30 * np.random.default_rng(0).poisson(3.0, (40, 32, 32))).astype(np.uint16)
    frames[7, 12, 20] = 60_000
    np.testing.assert_array_equal(stored(tmp_path / "auto", frames), frames)
    attributes = store.read_attributes(tmp_path / "auto/movie.zarr")
    assert attributes["xray_hits"]["hits"] == [[7, 12, 20, 60_000.0]]
    assert any("--xray replace" in warning for warning in attributes["warnings"])
    assert stored(tmp_path / "replaced", frames, xray="replace").max() < 1000


@given(
    arrays(integer_dtypes(endianness="="), array_shapes(min_dims=3, max_dims=3, max_side=9)),
    st.integers(1, 4),
)
def test_binned_pixels_are_exact_sums(frames: np.ndarray, n: int) -> None:
    n_frames, height, width = frames.shape[0], frames.shape[1] // n, frames.shape[2] // n
    if frames.dtype.itemsize == 8 and n > 1:
        with pytest.raises(UsageError, match="64 bits"):
            bin_pixels(frames, n)
        return
    found = bin_pixels(frames, n)
    for y in range(height):
        for x in range(width):
            square = frames[:, y * n : (y + 1) * n, x * n : (x + 1) * n].astype(object)
            assert found[:, y, x].tolist() == square.sum(axis=(1, 2)).tolist()
    assert found.shape == (n_frames, height, width)


@given(integer_dtypes(endianness="="), st.integers(1, 1000))
def test_the_type_of_a_sum_has_room_for_the_extremes(dtype: np.dtype[Any], n: int) -> None:
    if dtype.itemsize == 8 and n > 1:
        return
    wide, narrow = np.iinfo(summed_type(dtype, n)), np.iinfo(dtype)
    assert int(wide.min) <= n * int(narrow.min) and n * int(narrow.max) <= int(wide.max)


@given(
    arrays(np.int16, (3, 2, 2)),
    arrays(np.int64, (2, 2), elements=st.integers(-70_000, 70_000)),
    arrays(np.int64, (2, 2), elements=st.integers(1, 5)),
)
def test_whole_references_are_applied_exactly(raw: np.ndarray, dark: np.ndarray, gain: np.ndarray) -> None:
    linear = Linear(dark.astype(float), gain.astype(float))
    found = linear.apply(raw, linear.result_type(raw.dtype))
    assert found.dtype.kind in "iu"
    np.testing.assert_array_equal(found, (raw.astype(np.int64) - dark) * gain)


def test_other_references_give_another_movie_and_are_no_continuation(tmp_path: Path) -> None:
    np.save(tmp_path / "raw.npy", FRAMES)
    np.save(tmp_path / "dark.npy", np.ones((24, 32)))
    config = IngestConfig(raw=tmp_path / "raw.npy", output=tmp_path / "m.zarr", dark=tmp_path / "dark.npy")
    ingest(config)
    np.save(tmp_path / "dark.npy", np.zeros((24, 32)))
    with pytest.raises(UsageError, match="exists already, made with other settings"):
        ingest(config)


@pytest.mark.parametrize("value", [np.nan, 3e38])
def test_pixels_without_counts_are_replaced_and_the_rest_is_as_without_them(
    tmp_path: Path, value: float
) -> None:
    frames = counts((40, 64, 64)).astype(np.float32)
    frames[:, 20, 30] = frames[:, 40:42, :] = value
    sound = store.read_attributes(movie_store(tmp_path / "sound", counts((40, 64, 64)).astype(np.float32)))
    attributes = store.read_attributes(movie_store(tmp_path, frames))
    assert attributes["not_finite_frames"] == [] and attributes["n_bad_pixels"] == 129
    assert attributes["lost_pixels"][0] == [20, 30] and len(attributes["lost_pixels"]) == 129
    assert any("129 pixels are without counts" in warning for warning in attributes["warnings"])
    assert attributes["mean"] == pytest.approx(sound["mean"], rel=0.05)
    assert attributes["noise"]["fano"] == pytest.approx(sound["noise"]["fano"], abs=0.05)


def test_two_columns_at_the_largest_value_are_no_part_of_the_scene(tmp_path: Path) -> None:
    frames = counts((40, 64, 64)).astype(np.uint32)
    frames[:, :, 30:32] = 2**32 - 1
    attributes = store.read_attributes(movie_store(tmp_path, frames))
    assert attributes["n_bad_pixels"] == 128 and attributes["mean"] < 10
    kept = store.read_attributes(movie_store(tmp_path / "kept", frames, keep_defects=True))
    assert kept["n_bad_pixels"] == 128 and kept["mean"] > 1e8 and kept["xray_hits"]["n"] == 0
    assert any("without counts" in w and "left as they are" in w for w in kept["warnings"])


def test_the_smallest_signed_number_in_every_frame_is_no_count(tmp_path: Path) -> None:
    frames = counts((40, 64, 64)).astype(np.int16)
    frames[:, :, 30:32] = frames[:, 20, 20] = -32768
    attributes = store.read_attributes(movie_store(tmp_path, frames))
    assert len(attributes["lost_pixels"]) == 129 and attributes["hot_pixels"] == []
    assert attributes["range"][0] == 0 and not any("lowest number" in w for w in attributes["warnings"])


def test_the_smallest_signed_number_now_and_then_is_told(tmp_path: Path) -> None:
    frames = counts((40, 64, 64)).astype(np.int16)
    frames[3, 20, 20] = frames[7, 30, 30] = -32768
    warnings = store.read_attributes(movie_store(tmp_path, frames))["warnings"]
    assert any("lowest number is -32768" in warning for warning in warnings)


@pytest.mark.parametrize(("dose", "n_frames"), [(0.2, 600), (0.5, 300), (2.0, 100)])
def test_dead_pixels_are_looked_for_in_as_many_frames_as_the_dose_asks_for(
    tmp_path: Path, dose: float, n_frames: int
) -> None:
    frames = np.random.default_rng(0).poisson(dose, (n_frames, 64, 64)).astype(np.uint8)
    places = [[5, 6], [20, 30], [33, 33], [50, 2], [63, 63]]
    for y, x in places:
        frames[:, y, x] = 0
    assert store.read_attributes(movie_store(tmp_path, frames))["dead_pixels"] == places


def test_dead_rows_are_replaced_however_many_pixels_they_hold(tmp_path: Path) -> None:
    frames = np.random.default_rng(0).poisson(2.1, (60, 64, 64)).astype(np.uint8)
    frames[:, [3, 20, 21, 44]] = 0
    attributes = store.read_attributes(movie_store(tmp_path, frames))
    assert attributes["n_bad_pixels"] == 256 and attributes["mean"] == pytest.approx(2.1, rel=0.02)


def test_clipped_counts_are_told(tmp_path: Path) -> None:
    frames = np.random.default_rng(0).normal(200, 30, (40, 64, 64)).clip(0, 260).astype(np.uint16)
    warnings = store.read_attributes(movie_store(tmp_path, frames))["warnings"]
    assert any("reach the value 260" in warning for warning in warnings)


def test_a_single_pixel_that_always_says_the_most_is_hot(tmp_path: Path) -> None:
    frames = counts((40, 64, 64)).astype(np.uint16)
    frames[:, 20, 30] = 65535
    frames[:, 40, 40:50] = 65535
    attributes = store.read_attributes(movie_store(tmp_path, frames))
    assert attributes["hot_pixels"] == [[20, 30]] and len(attributes["lost_pixels"]) == 10
    assert any("hot" in warning for warning in attributes["warnings"])
