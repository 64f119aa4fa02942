"""Movies kept as arrays in HDF5 files, Zarr stores and videos: read as written, or refused in a sentence."""

from __future__ import annotations

import json
import os
import random
import re
import shutil
import subprocess
import sys
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import h5py
import imagecodecs
import numcodecs
import numpy as np
import pytest
import xarray
import zarr
from array_files import (
    HDF5,
    SHAPE,
    ZARR,
    ask_forked,
    bitshuffled,
    lz4_blocks,
    write_filtered,
    write_hdf5,
    write_hyperspy,
    write_ncem,
    write_scales,
    write_velox,
    write_video,
    write_zarr,
)
from numpy.typing import NDArray
from raw_files import movie
from tdenoise_pipeline.errors import InputError, UsageError
from tdenoise_pipeline.readers import MovieInfo, child, hdf5, open_raw, video


@pytest.fixture(autouse=True)
def quick_children(monkeypatch: pytest.MonkeyPatch) -> None:
    """Parsers in copies of this process, which start ten times as fast as new ones."""
    monkeypatch.setattr(hdf5, "ask", ask_forked)
    monkeypatch.setattr(video, "ask", ask_forked)


def read_all(path: Path, **options: Any) -> NDArray[Any]:
    with open_raw(path, **options) as reader:
        out = np.empty(reader.info.shape, reader.info.dtype)
        reader.read(0, len(out), out)
        middle = np.empty((2, *out.shape[1:]), out.dtype)
        if len(out) > 3:
            reader.read(1, 3, middle)  # chunks of more frames than are asked for
            np.testing.assert_array_equal(middle, out[1:3])
    return out


def info_of(path: Path, **options: Any) -> MovieInfo:
    with open_raw(path, **options) as reader:
        assert len(json.dumps(reader.info.metadata, allow_nan=False)) < 1_000_000
        return reader.info


def refusal(path: Path, **options: Any) -> str:
    with pytest.raises(InputError) as caught:
        read_all(path, **options)
    assert "\n" not in str(caught.value) and str(caught.value).startswith(str(path))
    return str(caught.value)


@pytest.mark.parametrize("kind", HDF5)
def test_hdf5_is_read_back_as_it_was_written(tmp_path: Path, kind: str) -> None:
    data = movie(random.Random(kind).choice(["u1", "<u2", ">i2", "<f4", ">u4", "<f8"]), SHAPE)
    write_hdf5(tmp_path / "a.h5", data, **HDF5[kind])
    read = read_all(tmp_path / "a.h5")
    np.testing.assert_array_equal(read, data)
    assert read.dtype == data.dtype.newbyteorder("=")


@pytest.mark.parametrize(
    ("number", "values", "encode"),
    [
        (32008, (0, 3, 2, 64, 2), bitshuffled(lambda part: imagecodecs.lz4_encode(part, header=False))),
        (32008, (0, 3, 2, 64, 3, 1), bitshuffled(imagecodecs.zstd_encode)),
        (32004, (200,), lz4_blocks),
        (32015, (), lambda frame: imagecodecs.zstd_encode(frame.tobytes())),
        (32001, (2, 2, 2, 684), lambda frame: bytes(numcodecs.Blosc().encode(frame))),
        (32000, (), lambda frame: imagecodecs.lzf_encode(frame.tobytes())),
    ],
)
def test_filters_of_detectors_are_decoded_without_any_plugin(
    tmp_path: Path, number: int, values: tuple[int, ...], encode: Any
) -> None:
    data = np.random.default_rng(0).poisson(1, SHAPE).astype("u2")
    write_filtered(tmp_path / "a.h5", data, number, values, encode)
    np.testing.assert_array_equal(read_all(tmp_path / "a.h5"), data)


def test_a_filter_that_is_not_known_is_named_and_never_loaded(tmp_path: Path) -> None:
    write_filtered(tmp_path / "a.h5", movie(shape=SHAPE), 32013, (1,), lambda frame: frame.tobytes())
    assert "32013" in refusal(tmp_path / "a.h5") and "h5repack" in refusal(tmp_path / "a.h5")


def test_velox_stores_frames_last_and_tells_everything_for_each(tmp_path: Path) -> None:
    data = movie("<i2", SHAPE)
    write_velox(tmp_path / "a.emd", data)
    np.testing.assert_array_equal(read_all(tmp_path / "a.emd"), data)
    info = info_of(tmp_path / "a.emd")
    assert (info.format, info.frame_time_s, info.pixel_size_nm) == ("Velox EMD", 0.8, (0.01, 0.008))
    assert (info.exposure_s, info.voltage_kv, info.camera) == (0.8, 300, "BM-Ceta")
    np.testing.assert_allclose(info.timestamps_s, np.arange(7) * 0.8)
    write_velox(tmp_path / "a.emd", data, step_us=25_000)  # the exposure is then of something else
    assert info_of(tmp_path / "a.emd").frame_time_s == 0.025


NM, S = ("nm", 0.2), ("[s]", 0.5)


@pytest.mark.parametrize(
    ("order", "axes"),
    [
        ((2, 1, 0), [("x", *NM), ("y", "[n_m]", 0.1), ("time", *S)]),
        ((1, 2, 0), [("y", "[n_m]", 0.1), ("x", *NM), ("t", *S)]),
        ((0, 1, 2), [("time", *S), ("y", "nm", 0.1), ("x", *NM)]),
        ((0, 2, 1), [("time", *S), ("x", *NM), ("y", "nm", 0.1)]),
    ],
)
def test_ncem_axes_say_which_is_time_row_and_column(
    tmp_path: Path, order: tuple[int, ...], axes: Any
) -> None:
    data = movie(shape=SHAPE)
    write_ncem(tmp_path / "a.emd", data.transpose(order), axes)
    np.testing.assert_array_equal(read_all(tmp_path / "a.emd"), data)
    info = info_of(tmp_path / "a.emd")
    assert (info.frame_time_s, info.pixel_size_nm, info.voltage_kv) == (0.5, (0.1, 0.2), 300)
    np.testing.assert_allclose(info.timestamps_s, np.arange(7) * 0.5)


def test_the_fourier_transform_beside_a_velox_movie_is_not_taken_for_one(tmp_path: Path) -> None:
    data = movie("<u2", SHAPE)
    write_velox(tmp_path / "a.emd", data)
    with h5py.File(tmp_path / "a.emd", "a") as file:
        kind = np.dtype([("realFloatHalfEven", "<f4"), ("imagFloatHalfEven", "<f4")])
        file["Data/Image/aa/Data"] = np.zeros((*data.shape[1:], len(data)), kind)
    np.testing.assert_array_equal(read_all(tmp_path / "a.emd"), data)


def test_ncem_axes_without_names_are_column_row_time(tmp_path: Path) -> None:
    data = movie(shape=SHAPE)
    write_ncem(tmp_path / "a.de5", data.T, [("", "[]", 1)] * 3)
    np.testing.assert_array_equal(read_all(tmp_path / "a.de5"), data)
    info = info_of(tmp_path / "a.de5")
    assert (info.format, info.frame_time_s, info.pixel_size_nm) == ("DE5", None, None)


def test_uneven_times_are_kept_and_told(tmp_path: Path) -> None:
    times = np.array([0.0, 0.1, 0.2, 0.3, 0.4, 0.5, 9.0])
    write_ncem(tmp_path / "a.emd", movie(shape=SHAPE).T, [("x", *NM), ("y", *NM), ("time", "s", times)])
    info = info_of(tmp_path / "a.emd")
    np.testing.assert_allclose(info.timestamps_s, times)
    assert info.frame_time_s == pytest.approx(0.1) and "after frame 5" in info.warnings[0]


@pytest.mark.parametrize("kind", ["dimension scales", "NeXus"])
def test_axes_of_plain_hdf5_are_those_that_the_file_attaches(tmp_path: Path, kind: str) -> None:
    data = movie("<u2", SHAPE)
    write_scales(tmp_path / "a.h5", data, nexus=kind == "NeXus")
    with open_raw(tmp_path / "a.h5") as reader:
        info = reader.info
    assert (info.frame_time_s, info.pixel_size_nm) == (0.02, (0.5, 0.25))
    np.testing.assert_array_equal(read_all(tmp_path / "a.h5"), data)


def test_a_stack_over_something_else_than_time_is_refused_unless_it_is_named(tmp_path: Path) -> None:
    data = movie(shape=SHAPE)
    axes = [("angle", "[mrad]", 1.0), ("y", *NM), ("x", *NM)]
    write_ncem(tmp_path / "a.emd", data, axes)
    assert "stack over angle [mrad]" in refusal(tmp_path / "a.emd")
    np.testing.assert_array_equal(read_all(tmp_path / "a.emd", dataset="data/movie"), data)


def test_hyperspy_signals_are_movies_if_images_lie_along_one_axis(tmp_path: Path) -> None:
    data = movie(shape=SHAPE)
    write_hyperspy(tmp_path / "a.hspy", data, (True, False, False), ("s", "nm", "µm"))
    np.testing.assert_array_equal(read_all(tmp_path / "a.hspy"), data)
    info = info_of(tmp_path / "a.hspy")
    assert (info.frame_time_s, info.pixel_size_nm) == (0.5, (0.5, 500))
    assert (info.exposure_s, info.voltage_kv) == (0.4, 80)
    write_hyperspy(tmp_path / "a.hspy", data, (True, True, False), ("nm", "nm", "nm"))
    assert "stack over" in refusal(tmp_path / "a.hspy")  # a spectrum of wavelengths at every point
    write_hyperspy(tmp_path / "a.hspy", movie(shape=(6, 4, 90))[None], (True, True, False, False), ("",) * 4)
    np.testing.assert_array_equal(read_all(tmp_path / "a.hspy"), movie(shape=(6, 4, 90)))
    scan = np.zeros((3, 4, 5, 6), "u2")
    write_hyperspy(tmp_path / "a.hspy", scan, (True, True, False, False), ("",) * 4)
    assert "4 dimensions" in refusal(tmp_path / "a.hspy")


def test_one_of_several_arrays_is_chosen_by_its_path(tmp_path: Path) -> None:
    data = movie(shape=SHAPE)
    with h5py.File(tmp_path / "a.h5", "w") as file:
        file["run/first"], file["run/second"] = data, data + 1
        file["run/second"].attrs.update(
            {"frame_time_s": 0.1, "pixel_size_nm": [0.3, 0.2], "voltage_kv": 200.0}
        )
        file["dark"] = data[0]
    assert "2 movies; name one with --dataset: run/first (7 x 18 x 19), run/second" in refusal(
        tmp_path / "a.h5"
    )
    np.testing.assert_array_equal(read_all(tmp_path / "a.h5", dataset="/run/second"), data + 1)
    info = info_of(tmp_path / "a.h5", dataset="run/second")
    assert (info.frame_time_s, info.pixel_size_nm, info.voltage_kv) == (0.1, (0.3, 0.2), 200)
    assert "single image" in refusal(tmp_path / "a.h5", dataset="dark")
    with pytest.raises(UsageError, match=r"no array third.*run/first"):
        open_raw(tmp_path / "a.h5", dataset="third")


def test_colours_are_refused_or_chosen(tmp_path: Path) -> None:
    data = np.stack([movie(shape=SHAPE) + k for k in range(3)], axis=-1)
    write_hdf5(tmp_path / "a.h5", data, chunks=(2, 18, 19, 3))
    assert "3 channels with --channel" in refusal(tmp_path / "a.h5")
    np.testing.assert_array_equal(read_all(tmp_path / "a.h5", channel=2), data[..., 2])
    for options in ({"channel": 3}, {"channel": -1}):
        with pytest.raises(UsageError, match="3 channels, counted from 0"):
            open_raw(tmp_path / "a.h5", **options)
    write_hdf5(tmp_path / "a.h5", data[0])
    assert "one colour image (18 x 19 x 3)" in refusal(tmp_path / "a.h5")
    assert read_all(tmp_path / "a.h5", dataset="entry/data/frames").shape == (18, 19, 3)
    write_hdf5(tmp_path / "a.h5", data[..., 0])
    with pytest.raises(UsageError, match="leave --channel out"):
        open_raw(tmp_path / "a.h5", channel=0)
    np.save(tmp_path / "a.npy", data[..., 0])
    with pytest.raises(UsageError, match="NumPy files have no datasets"):
        open_raw(tmp_path / "a.npy", dataset="x")


@pytest.mark.parametrize(
    ("make", "says"),
    [
        (lambda f: f.create_dataset("a", data=np.zeros((3, 4, 5), "c8")), "complex"),
        (lambda f: f.create_dataset("a", data=np.zeros((3, 4, 5), "?")), "bool"),
        (lambda f: f.create_dataset("a", (3, 4, 5), h5py.ref_dtype), "no array of"),
        (lambda f: f.create_dataset("a", (3, 4, 5), h5py.vlen_dtype("u2")), "no array of"),
        (lambda f: f.create_dataset("a", (3, 4, 5), [("r", "u1"), ("g", "u1")]), "no array of"),
        (lambda f: f.create_dataset("a", (0, 4, 5), "u2", maxshape=(None, 4, 5)), "no frame"),
        (lambda f: f.create_dataset("a", (3, 4, 5), "u2"), "no frame was ever written"),
        (lambda f: f.create_dataset("a", (3, 4, 5), "u2", external=[("/etc/passwd", 0, 120)]), "external"),
        (
            lambda f: f.__setitem__("a", h5py.ExternalLink("/etc/passwd", "b")),
            "links, which are not followed",
        ),
        (lambda f: f.__setitem__("a", h5py.SoftLink("/b")), "links, which are not followed"),
        (lambda f: f.create_group("empty"), "holds no array"),
        (lambda f: f.create_dataset("a", (2**40, 4, 5), "u2", chunks=(2**20, 4, 5)), "chunks|bomb"),
        (lambda f: f.create_dataset("a", (3, 2**15, 2**15), "u2", chunks=(3, 2**14, 2**14)), "chunks of"),
        (lambda f: f.create_dataset("a", (10**9, 4, 5), "u2", chunks=(1, 4, 5)), "chunks"),
    ],
)
def test_what_is_no_movie_in_hdf5_is_refused_by_name(tmp_path: Path, make: Any, says: str) -> None:
    with h5py.File(tmp_path / "a.h5", "w", libver="latest") as file:
        make(file)
    assert re.search(says, refusal(tmp_path / "a.h5"))


def test_the_records_of_velox_are_not_sought_in_another_file(tmp_path: Path) -> None:
    data = movie(shape=SHAPE)
    write_velox(tmp_path / "other.emd", data)
    write_velox(tmp_path / "a.emd", data)
    with h5py.File(tmp_path / "a.emd", "r+") as file:
        del file["Data/Image/26f6/Metadata"]
        file["Data/Image/26f6/Metadata"] = h5py.ExternalLink("other.emd", "Data/Image/26f6/Metadata")
    np.testing.assert_array_equal(read_all(tmp_path / "a.emd"), data)
    info = info_of(tmp_path / "a.emd")
    assert (info.timestamps_s, info.frame_time_s, info.camera) == (None, None, None)


def test_a_virtual_data_set_is_not_followed(tmp_path: Path) -> None:
    write_hdf5(tmp_path / "other.h5", movie(shape=SHAPE))
    layout = h5py.VirtualLayout(SHAPE, "u2")
    layout[:] = h5py.VirtualSource(str(tmp_path / "other.h5"), "entry/data/frames", SHAPE)
    with h5py.File(tmp_path / "a.h5", "w", libver="latest") as file:
        file.create_virtual_dataset("frames", layout)
    assert "other files (virtual storage)" in refusal(tmp_path / "a.h5")


def test_a_bomb_in_hdf5_is_refused_before_it_is_decoded(tmp_path: Path) -> None:
    with h5py.File(tmp_path / "a.h5", "w") as file:
        array = file.create_dataset("a", (4096, 1024, 4096), "u2", chunks=(4, 1024, 4096), compression="gzip")
        array[:4] = 0
    assert "bomb" in refusal(tmp_path / "a.h5")


def test_groups_in_circles_and_crowds_end(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    data = movie(shape=SHAPE)
    with h5py.File(tmp_path / "a.h5", "w") as file:
        file["a/frames"] = data
        file["a/b"] = file["/"]
        file["a/same"] = file["a/frames"]
    np.testing.assert_array_equal(read_all(tmp_path / "a.h5"), data)
    with h5py.File(tmp_path / "a.h5", "w", libver="latest") as file:
        for k in range(60):
            file[f"{k}"] = h5py.SoftLink("/x")
    monkeypatch.setattr("tdenoise_pipeline.readers.hdf5_child._MAX_OBJECTS", 50)
    assert "over 50 groups and arrays" in refusal(tmp_path / "a.h5")


def test_frames_that_were_never_written_are_missing_and_not_zero(tmp_path: Path) -> None:
    data = movie(shape=SHAPE)
    with h5py.File(tmp_path / "a.h5", "w") as file:
        array = file.create_dataset("frames", SHAPE, "u2", chunks=(2, 18, 19))
        array[:4] = data[:4]
    assert "4 of 7 frames" in refusal(tmp_path / "a.h5")
    info = info_of(tmp_path / "a.h5", allow_truncated=True)
    assert (info.shape[0], info.missing_frames) == (4, 3)
    np.testing.assert_array_equal(read_all(tmp_path / "a.h5", allow_truncated=True), data[:4])


@pytest.mark.parametrize("kind", ["contiguous", "one frame per chunk, all filters", "newest, growing"])
@pytest.mark.parametrize("keep", [0.0001, 0.3, 0.8, 0.999])
def test_hdf5_cut_anywhere_is_refused_with_its_sizes(tmp_path: Path, kind: str, keep: float) -> None:
    write_hdf5(tmp_path / "a.h5", movie(shape=SHAPE), **HDF5[kind])
    size = (tmp_path / "a.h5").stat().st_size
    os.truncate(tmp_path / "a.h5", max(9, int(size * keep)))
    assert "cut short" in refusal(tmp_path / "a.h5", allow_truncated=True)


@pytest.mark.parametrize("kind", ["one frame per chunk, all filters", "chunks that divide nothing"])
def test_a_damaged_chunk_is_named_by_its_frame(tmp_path: Path, kind: str) -> None:
    data = movie(shape=SHAPE)
    write_hdf5(tmp_path / "a.h5", data, **HDF5[kind])
    with h5py.File(tmp_path / "a.h5") as file:
        chunk = file["entry/data/frames"].id.get_chunk_info_by_coord((3, 0, 0))
    raw = bytearray((tmp_path / "a.h5").read_bytes())
    raw[chunk.byte_offset + 2 : chunk.byte_offset + 22] = bytes(20)
    (tmp_path / "a.h5").write_bytes(raw)
    assert "chunk of frame 3 is damaged" in refusal(tmp_path / "a.h5")


def test_files_are_parsed_by_new_processes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    data = movie("u1", (5, 48, 64))
    write_velox(tmp_path / "a.emd", data)
    write_video(tmp_path / "a.avi", list(data), "ffv1", "gray", "gray")
    monkeypatch.chdir(tmp_path)
    (tmp_path / "h5py.py").write_text("raise SystemExit('a file of the user was imported')")
    for module in (hdf5, video):
        monkeypatch.setattr(module, "ask", child.ask)
    np.testing.assert_array_equal(read_all(Path("a.emd")), data)
    np.testing.assert_array_equal(read_all(Path("a.avi")), data)
    (tmp_path / "a.emd").write_bytes((tmp_path / "a.emd").read_bytes()[:-1])
    assert "cut short" in refusal(Path("a.emd"))


def test_a_parser_that_crashes_runs_away_or_floods_the_memory_ends_alone() -> None:
    def run(main: str) -> subprocess.CompletedProcess[bytes]:
        code = f"from tdenoise_pipeline.readers.child import answer\ndef main():\n {main}\n"
        code += "answer(main, [], cpu_s=1, memory_bytes=10**8)"
        return subprocess.run([sys.executable, "-c", code], capture_output=True, timeout=60)

    for main, code, says in [
        ("import ctypes; ctypes.string_at(0)", -11, b""),
        ("while True: pass", -24, b""),
        ("bytearray(10**9)", 3, b"more memory"),
        ("raise ValueError('holds\\nnothing')", 3, b"holds nothing"),
        ("raise OSError('bad object header')", 3, b"damaged, it cannot be read (OSError: bad object header)"),
    ]:
        done = run(main)
        assert done.returncode == code and says in done.stdout and done.stdout.count(b"\n") <= 1


def test_four_threads_read_what_one_reads(tmp_path: Path) -> None:
    data = movie(shape=(40, 32, 33))
    write_hdf5(tmp_path / "a.h5", data, chunks=(7, 20, 9), compression="gzip")
    write_velox(tmp_path / "a.emd", data)
    write_ncem(tmp_path / "b.emd", data.T, [("", "", 1)] * 3)
    zarr.create_array(tmp_path / "a.zarr", data=data, chunks=(3, 16, 33), shards=(9, 32, 33))
    parts = [(k, min(k + 3, 40)) for k in range(0, 40, 3)] * 3
    for name in ("a.h5", "a.emd", "b.emd", "a.zarr"):
        with open_raw(tmp_path / name) as reader, ThreadPoolExecutor(4) as pool:

            def part(bounds: tuple[int, int], reader: Any = reader) -> NDArray[Any]:
                out = np.empty((bounds[1] - bounds[0], 32, 33), reader.info.dtype)
                reader.read(*bounds, out)
                return out

            for (start, stop), out in zip(parts, pool.map(part, parts), strict=True):
                np.testing.assert_array_equal(out, data[start:stop])


@pytest.mark.parametrize("dtype", ["u1", "<u2", ">i2", "<f4"])
@pytest.mark.parametrize("kind", ZARR)
def test_zarr_is_read_back_as_its_own_library_wrote_it(tmp_path: Path, kind: str, dtype: str) -> None:
    data = movie(dtype, SHAPE)
    write_zarr(tmp_path / "a.zarr", data, **ZARR[kind])
    read = read_all(tmp_path / "a.zarr")
    np.testing.assert_array_equal(read, data)
    assert read.dtype == data.dtype.newbyteorder("=")


@pytest.mark.parametrize("version", [2, 3])
def test_an_xarray_data_set_gives_its_coordinates(tmp_path: Path, version: int) -> None:
    data = movie(shape=SHAPE)
    sizes = dict(zip(("time", "y", "x"), SHAPE, strict=True))
    steps = {"time": ("ms", 25.0), "y": ("nm", 0.3), "x": ("angstrom", 2.0)}
    coordinates = {
        name: (name, np.arange(sizes[name]) * step, {"units": unit}) for name, (unit, step) in steps.items()
    }
    dataset = xarray.Dataset({"frames": (tuple(sizes), data)}, coordinates)
    dataset.to_zarr(tmp_path / "a.zarr", zarr_format=version, consolidated=False)
    np.testing.assert_array_equal(read_all(tmp_path / "a.zarr"), data)
    info = info_of(tmp_path / "a.zarr")
    assert (info.frame_time_s, info.pixel_size_nm) == (0.025, (0.3, 0.2))
    np.testing.assert_allclose(info.timestamps_s, np.arange(7) * 0.025)


@pytest.mark.parametrize("version", [2, 3])
def test_an_ome_image_gives_its_finest_level_and_one_channel(tmp_path: Path, version: int) -> None:
    data = np.stack([movie(shape=SHAPE), movie(shape=SHAPE) + 1], axis=1)[:, :, None]
    axes = [
        {"name": "t", "type": "time", "unit": "millisecond"}, {"name": "c", "type": "channel"},
        {"name": "z", "type": "space"}, {"name": "y", "type": "space", "unit": "micrometer"},
        {"name": "x", "type": "space", "unit": "nanometer"},
    ]  # fmt: skip
    scale = [{"type": "scale", "scale": [20, 1, 1, 0.001, 2]}]
    levels = [{"path": "0", "coordinateTransformations": scale}, {"path": "1"}]
    ome = {"multiscales": [{"axes": axes, "datasets": levels}]}
    attributes = ome if version == 2 else {"ome": {"version": "0.5", **ome}}
    group = zarr.create_group(tmp_path / "a.zarr", zarr_format=version, attributes=attributes)
    group.create_array("0", shape=data.shape, dtype="u2", chunks=(3, 1, 1, 18, 19))[:] = data
    group.create_array("1", shape=(7, 2, 1, 9, 9), dtype="u2", chunks=(3, 1, 1, 9, 9))[:] = 1
    assert "2 channels" in refusal(tmp_path / "a.zarr")
    np.testing.assert_array_equal(read_all(tmp_path / "a.zarr", channel=1), data[:, 1, 0])
    info = info_of(tmp_path / "a.zarr", channel=0)
    assert (info.frame_time_s, info.pixel_size_nm) == (0.02, (1, 2))
    assert info_of(tmp_path / "a.zarr", channel=0, dataset="1").shape == (7, 9, 9)


def edit_json(path: Path, change: Callable[[dict[str, Any]], object]) -> None:
    told = json.loads(path.read_text())
    change(told)
    path.write_text(json.dumps(told))


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (lambda m: m.update(filters=[{"id": "pickle"}], dtype="|O"), "type |O"),
        (lambda m: m.update(filters=[{"id": "pickle"}]), "codec pickle"),
        (lambda m: m.update(compressor={"id": "os.system", "command": "touch canary"}), "codec os.system"),
        (lambda m: m.update(dtype=[["a", "<u2"]]), "not numbers"),
        (lambda m: m.update(dtype="<c8"), "complex"),
        (lambda m: m.update(shape=[7, 18]), "do not fit"),
        (lambda m: m.update(shape=[7, -18, 19]), "make no sense"),
        (lambda m: m.update(shape=[10**9, 18, 19]), "is stored in 1333333336 chunks"),
        (lambda m: m.update(chunks=[3, 10**6, 10**6]), "chunks of"),
        (lambda m: m.update(chunks=[0, 10, 16]), "do not fit"),
        (lambda m: m.update(order="X"), "order"),
        (lambda m: m.pop("chunks"), "chunks"),
    ],
)
def test_zarr_metadata_outside_the_allow_list_are_refused_and_nothing_is_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, change: Any, says: str
) -> None:
    write_zarr(tmp_path / "a.zarr", movie(shape=SHAPE), zarr_format=2)
    edit_json(tmp_path / "a.zarr/.zarray", change)
    monkeypatch.chdir(tmp_path)
    assert says in refusal(tmp_path / "a.zarr")
    assert not (tmp_path / "canary").exists()


def test_links_and_paths_out_of_a_zarr_store_are_not_followed(tmp_path: Path) -> None:
    write_zarr(tmp_path / "a.zarr", movie(shape=SHAPE), zarr_format=3)
    chunk = tmp_path / "a.zarr/c/0/1/0"
    chunk.rename(tmp_path / "elsewhere")
    chunk.symlink_to(tmp_path / "elsewhere")
    assert "is a link" in refusal(tmp_path / "a.zarr")
    group = zarr.create_group(
        tmp_path / "b.zarr", attributes={"multiscales": [{"datasets": [{"path": "../a.zarr"}]}]}
    )
    (tmp_path / "b.zarr/a").symlink_to(tmp_path / "a.zarr")
    assert group.path == "" and "holds no array" in refusal(tmp_path / "b.zarr")
    with pytest.raises(UsageError, match="no array"):
        open_raw(tmp_path / "b.zarr", dataset="../a.zarr")


def test_missing_chunks_are_blank_only_where_the_store_says_so(tmp_path: Path) -> None:
    data = movie(shape=SHAPE)
    data[3:6, :10] = 0
    write_zarr(tmp_path / "a.zarr", data, fill_value=0, config={"write_empty_chunks": False})
    assert not (tmp_path / "a.zarr/c/1/0/0").exists()
    np.testing.assert_array_equal(read_all(tmp_path / "a.zarr"), data)
    assert "2 of 12 files" in info_of(tmp_path / "a.zarr").warnings[0]
    edit_json(tmp_path / "a.zarr/zarr.json", lambda m: m.update(fill_value=65535))
    assert "is missing" in refusal(tmp_path / "a.zarr")


def test_a_zarr_store_without_its_last_files_is_cut_short(tmp_path: Path) -> None:
    data = movie(shape=SHAPE)
    write_zarr(tmp_path / "a.zarr", data)
    shutil.rmtree(tmp_path / "a.zarr/c/2")
    assert "6 of 7 frames" in refusal(tmp_path / "a.zarr")
    np.testing.assert_array_equal(read_all(tmp_path / "a.zarr", allow_truncated=True), data[:6])
    shutil.rmtree(tmp_path / "a.zarr/c")
    assert "not one whole frame" in refusal(tmp_path / "a.zarr", allow_truncated=True)


@pytest.mark.parametrize("kind", ["v3, Blosc, checksum", "v3, shards", "v2, bzip2"])
def test_a_damaged_zarr_chunk_is_an_error_and_never_other_numbers(tmp_path: Path, kind: str) -> None:
    data = movie(shape=SHAPE)
    write_zarr(tmp_path / "a.zarr", data, **ZARR[kind])
    chunks = [
        p for p in (tmp_path / "a.zarr").rglob("*") if p.is_file() and not p.name.startswith((".", "zarr"))
    ]
    raw = chunks[0].read_bytes()
    for broken in (raw[: len(raw) // 2], raw[:20] + bytes([raw[20] ^ 4]) + raw[21:], b""):
        chunks[0].write_bytes(broken)
        try:
            np.testing.assert_array_equal(read_all(tmp_path / "a.zarr"), data)
        except InputError as error:
            assert "\n" not in str(error)


def test_a_chunk_that_decodes_to_more_than_its_size_is_refused_in_little_memory(tmp_path: Path) -> None:
    bombs = {
        "v3": imagecodecs.zstd_encode(bytes(2**25)),
        "v2, Fortran order": imagecodecs.zlib_encode(bytes(2**25)),
        "v2, bzip2": imagecodecs.bz2_encode(bytes(2**25)),
    }
    for kind, bomb in bombs.items():
        write_zarr(tmp_path / "a.zarr", movie(shape=SHAPE), **ZARR[kind])
        for path in (tmp_path / "a.zarr").rglob("*"):
            if path.is_file() and not path.name.startswith((".", "zarr")):
                path.write_bytes(bomb)
        assert "bytes for a chunk" in refusal(tmp_path / "a.zarr") or "damaged" in refusal(
            tmp_path / "a.zarr"
        )


@pytest.mark.parametrize(
    ("name", "codec", "pixels", "dtype"),
    [
        ("a.avi", "ffv1", "gray", "u1"),
        ("a.avi", "rawvideo", "gray", "u1"),
        ("a.avi", "ffv1", "gray16le", "<u2"),
    ],
)
def test_video_that_loses_nothing_is_read_as_it_was(
    tmp_path: Path, name: str, codec: str, pixels: str, dtype: str
) -> None:
    data = movie(dtype, (9, 48, 64))
    write_video(tmp_path / name, list(data), codec, pixels, pixels)
    np.testing.assert_array_equal(read_all(tmp_path / name), data)
    info = info_of(tmp_path / name)
    assert info.frame_time_s == 0.04 and not any("compress" in w for w in info.warnings)


def test_lossy_video_is_read_with_a_warning_and_cut_where_it_ends(tmp_path: Path) -> None:
    data = movie("u1", (12, 48, 64))
    write_video(tmp_path / "a.avi", list(data), "mjpeg", "yuvj420p", "gray")
    info = info_of(tmp_path / "a.avi")
    assert (info.shape, info.frame_time_s) == ((12, 48, 64), 0.04)
    assert "breaks the noise model" in info.warnings[0]
    os.truncate(tmp_path / "a.avi", (tmp_path / "a.avi").stat().st_size // 2)
    assert "of 12 frames" in refusal(tmp_path / "a.avi")
    info = info_of(tmp_path / "a.avi", allow_truncated=True)
    assert 0 < info.shape[0] < 12 and info.missing_frames == 12 - info.shape[0]


def test_an_mp4_whose_index_is_cut_is_refused_whole(tmp_path: Path) -> None:
    write_video(tmp_path / "a.mp4", list(movie("u1", (12, 48, 64))), "mpeg4", "yuv420p", "gray")
    assert len(read_all(tmp_path / "a.mp4")) == 12
    raw = (tmp_path / "a.mp4").read_bytes()
    for missing in (1, 200, 500):
        (tmp_path / "a.mp4").write_bytes(raw[:-missing])
        assert "index of its frames" in refusal(tmp_path / "a.mp4", allow_truncated=True)


def test_a_colour_video_is_refused_or_one_colour_is_chosen(tmp_path: Path) -> None:
    data = np.random.default_rng(0).integers(0, 256, (5, 48, 64, 3), np.uint8)
    write_video(tmp_path / "a.avi", list(data), "ffv1", "bgr0", "rgb24")
    assert "--channel" in refusal(tmp_path / "a.avi")
    np.testing.assert_array_equal(read_all(tmp_path / "a.avi", channel=1), data[..., 1])
    with pytest.raises(UsageError, match="no datasets"):
        open_raw(tmp_path / "a.avi", dataset="x")


def test_without_the_package_that_reads_video_the_extra_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_video(tmp_path / "a.avi", list(movie("u1", (4, 48, 64))), "ffv1", "gray", "gray")
    monkeypatch.setattr("tdenoise_pipeline.readers.video.find_spec", lambda name: None)
    assert "pip install '.[video]'" in refusal(tmp_path / "a.avi")
