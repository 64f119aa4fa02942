"""Movies in the files of cameras, in several files, and in one file for each frame."""

from __future__ import annotations

import bz2
import gzip
import json
import os
import struct
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tifffile
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from raw_files import (
    COUNT_WRITERS,
    movie,
    write_capture,
    write_clock,
    write_dm,
    write_folder,
    write_mib,
    write_mrc,
    write_seq,
    write_ser,
    write_tvips,
)
from tdenoise_pipeline.errors import InputError
from tdenoise_pipeline.readers import MovieInfo, open_raw
from tdenoise_pipeline.readers.timestamps import frame_time


def info_of(path: Path, **options: Any) -> MovieInfo:
    with open_raw(path, **options) as reader:
        assert len(json.dumps(reader.info.metadata, allow_nan=False)) < 1_000_000
        return reader.info


def read_all(path: Path, **options: Any) -> NDArray[Any]:
    with open_raw(path, **options) as reader:
        out = np.empty(reader.info.shape, reader.info.dtype)
        reader.read(0, len(out), out)
    return out


def overwrite(path: Path, position: int, content: bytes) -> None:
    with path.open("r+b") as file:
        file.seek(position)
        file.write(content)


@pytest.mark.parametrize("kind", COUNT_WRITERS)
@pytest.mark.parametrize("dtype", ["u1", "<u2"])
def test_counts_come_out_as_they_went_in(tmp_path: Path, kind: str, dtype: str) -> None:
    if kind.startswith("MRC") and dtype == "u1":
        pytest.skip("these are written as 16 bit")
    name, write = COUNT_WRITERS[kind]
    data = movie(dtype, (5, 6, 8))
    write(tmp_path / name, data)
    read = read_all(tmp_path / name)
    np.testing.assert_array_equal(read, data)
    assert read.dtype == data.dtype and read.dtype.isnative


def test_a_ser_series_has_its_pixel_size_but_no_frame_time_from_whole_seconds(tmp_path: Path) -> None:
    write_ser(tmp_path / "a.ser", movie())
    info = info_of(tmp_path / "a.ser")
    assert info.pixel_size_nm == (0.2, 0.1)
    assert info.frame_time_s is None
    np.testing.assert_array_equal(info.timestamps_s, np.arange(5))


def test_a_reciprocal_pixel_of_a_ser_series_is_no_pixel_size(tmp_path: Path) -> None:
    write_ser(tmp_path / "a.ser", movie(), pixel_m=4.2e7)
    assert info_of(tmp_path / "a.ser").pixel_size_nm is None


def test_the_emi_file_beside_a_series_names_voltage_and_camera(tmp_path: Path) -> None:
    write_ser(tmp_path / "a_1.ser", movie())
    (tmp_path / "a.emi").write_bytes(
        b"\0\1binary<ObjectInfo><A><AcceleratingVoltage>200000</AcceleratingVoltage>"
        b"<CameraNamePath>WA-Orius</CameraNamePath><DwellTimePath>0.0625</DwellTimePath></A></ObjectInfo>\0"
    )
    info = info_of(tmp_path / "a_1.ser")
    assert (info.voltage_kv, info.camera, info.exposure_s) == (200, "WA-Orius", 0.0625)


def test_an_emi_file_that_defines_entities_is_not_expanded(tmp_path: Path) -> None:
    write_ser(tmp_path / "a_1.ser", movie())
    (tmp_path / "a.emi").write_bytes(
        b'<ObjectInfo><!DOCTYPE x [<!ENTITY a "aa">]><AcceleratingVoltage>1</AcceleratingVoltage></ObjectInfo>'
    )
    assert info_of(tmp_path / "a_1.ser").voltage_kv is None


@pytest.mark.parametrize(
    ("position", "content", "says"),
    [
        (4, b"\0\3", "version"),
        (6, b"\x20\x41", "spectra"),
        (14, struct.pack("<ii", 5, 0), "names 0 frames"),
        (26, struct.pack("<i", 2), "scan of 2 dimensions"),
    ],
)
def test_a_series_that_is_no_movie_is_refused_by_name(
    tmp_path: Path, position: int, content: bytes, says: str
) -> None:
    write_ser(tmp_path / "a.ser", movie())
    overwrite(tmp_path / "a.ser", position, content)
    with pytest.raises(InputError, match=says):
        open_raw(tmp_path / "a.ser")


def test_images_of_a_series_that_share_bytes_are_refused(tmp_path: Path) -> None:
    write_ser(tmp_path / "a.ser", movie())
    raw = (tmp_path / "a.ser").read_bytes()
    table = struct.unpack("<i", raw[22:26])[0]
    overwrite(tmp_path / "a.ser", table + 8, raw[table + 4 : table + 8])
    with pytest.raises(InputError, match="overlap"):
        open_raw(tmp_path / "a.ser")


def test_a_tvips_recording_goes_on_in_its_later_parts(tmp_path: Path) -> None:
    data = movie(shape=(7, 6, 8))
    write_tvips(tmp_path / "a_000.tvips", data, parts=3)
    np.testing.assert_array_equal(read_all(tmp_path / "a_000.tvips"), data)
    info = info_of(tmp_path / "a_000.tvips")
    assert [path.name for path in info.files] == ["a_000.tvips", "a_001.tvips", "a_002.tvips"]
    assert (info.frame_time_s, info.voltage_kv) == (0.025, 300)


def test_a_later_part_of_a_tvips_recording_is_not_taken_for_the_whole(tmp_path: Path) -> None:
    write_tvips(tmp_path / "a_000.tvips", movie())
    (tmp_path / "a_000.tvips").rename(tmp_path / "a_001.tvips")
    with pytest.raises(InputError, match=r"part 1 .*a_000\.tvips"):
        open_raw(tmp_path / "a_001.tvips")


def test_a_counter_that_jumps_tells_of_lost_frames(tmp_path: Path) -> None:
    write_tvips(tmp_path / "a_000.tvips", movie())
    overwrite(tmp_path / "a_000.tvips", 256 + 3 * (64 + 84), struct.pack("<I", 7))
    assert "the first after frame 2" in info_of(tmp_path / "a_000.tvips").warnings[0]


def test_a_missing_or_cut_part_of_a_tvips_recording_is_named(tmp_path: Path) -> None:
    data = movie(shape=(7, 6, 8))
    write_tvips(tmp_path / "a_000.tvips", data, parts=3)
    os.truncate(tmp_path / "a_001.tvips", (tmp_path / "a_001.tvips").stat().st_size - 3)
    with pytest.raises(InputError, match=r"4 of at least 7 .*--allow-truncated"):
        open_raw(tmp_path / "a_000.tvips")
    np.testing.assert_array_equal(read_all(tmp_path / "a_000.tvips", allow_truncated=True), data[:4])
    (tmp_path / "a_001.tvips").unlink()
    with pytest.raises(InputError, match=r"a_001\.tvips is missing"):
        open_raw(tmp_path / "a_000.tvips")


@pytest.mark.parametrize(("bits", "high"), [(1, 2), (6, 64), (12, 4096)])
def test_raw_merlin_pixels_are_put_in_order(tmp_path: Path, bits: int, high: int) -> None:
    data = np.random.default_rng(1).integers(0, high, (3, 5, 64)).astype("u2" if bits == 12 else "u1")
    write_mib(tmp_path / "a.mib", data, raw_bits=bits)
    np.testing.assert_array_equal(read_all(tmp_path / "a.mib"), data)
    assert info_of(tmp_path / "a.mib").format == f"MIB R64 {bits} bit"


def test_a_merlin_movie_has_times_and_knows_from_the_hdr_file_how_long_it_is(tmp_path: Path) -> None:
    data = movie(shape=(5, 6, 8))
    write_mib(tmp_path / "a.mib", data)
    info = info_of(tmp_path / "a.mib")
    assert (info.frame_time_s, info.exposure_s) == (0.01, 0.01)
    write_mib(tmp_path / "a.mib", data, announced=9)
    with pytest.raises(InputError, match=r"5 of 9 .*--allow-truncated"):
        open_raw(tmp_path / "a.mib")
    assert info_of(tmp_path / "a.mib", allow_truncated=True).missing_frames == 4
    (tmp_path / "a.hdr").unlink()
    with pytest.raises(InputError, match=r"a\.hdr.*5 frames .*--allow-truncated"):
        open_raw(tmp_path / "a.mib")
    np.testing.assert_array_equal(read_all(tmp_path / "a.mib", allow_truncated=True), data)


def test_lost_frames_and_two_counters_of_a_merlin_movie_are_told(tmp_path: Path) -> None:
    write_mib(tmp_path / "a.mib", movie(shape=(4, 6, 8)))
    step = 384 + 6 * 8 * 2
    overwrite(tmp_path / "a.mib", 3 * step + 4, b"000009")
    overwrite(tmp_path / "a.mib", step + (tmp_path / "a.mib").read_bytes().index(b"0.010000,0") + 9, b"1")
    first, second = info_of(tmp_path / "a.mib").warnings
    assert "jump 1 times, the first after frame 2" in first
    assert "two counters" in second


def test_the_time_stamps_of_a_norpix_movie_are_believed_before_its_playing_rate(tmp_path: Path) -> None:
    write_seq(tmp_path / "a.seq", movie(), step_s=0.05, rate=25)
    info = info_of(tmp_path / "a.seq")
    assert info.frame_time_s == 0.05
    np.testing.assert_allclose(info.timestamps_s, np.arange(5) * 0.05, atol=1e-6)
    assert "its header says 0.04 s" in info.warnings[0]


def test_references_beside_a_norpix_movie_are_mentioned(tmp_path: Path) -> None:
    write_seq(tmp_path / "a.seq", movie())
    (tmp_path / "a.seq.gain.mrc").touch()
    assert "a.seq.gain.mrc" in info_of(tmp_path / "a.seq").warnings[0]


@pytest.mark.parametrize(
    ("position", "content", "says"),
    [
        (620, struct.pack("<I", 1), "compressed"),
        (568, struct.pack("<I", 101), "colour or packed"),
        (556, struct.pack("<I", 24), "24 bits"),
        (564, struct.pack("<I", 7), "damaged"),
    ],
)
def test_a_norpix_movie_of_another_kind_is_refused(
    tmp_path: Path, position: int, content: bytes, says: str
) -> None:
    write_seq(tmp_path / "a.seq", movie())
    overwrite(tmp_path / "a.seq", position, content)
    with pytest.raises(InputError, match=says):
        open_raw(tmp_path / "a.seq")


def test_half_of_a_split_sensor_is_refused(tmp_path: Path) -> None:
    write_seq(tmp_path / "a_Top.seq", movie())
    with pytest.raises(InputError, match="half of a sensor"):
        open_raw(tmp_path / "a_Top.seq")


@settings(max_examples=30, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(cuts=st.lists(st.integers(1, 5 * 84 - 1), max_size=3, unique=True))
def test_a_gatan_capture_is_read_across_the_ends_of_its_raw_files(tmp_path: Path, cuts: list[int]) -> None:
    data = movie()
    for raw in tmp_path.glob("*.raw*"):
        raw.unlink()
    director = write_capture(tmp_path, data, tuple(sorted(cuts)))
    np.testing.assert_array_equal(read_all(director), data)
    info = info_of(director)
    assert [path.name for path in info.files[:2]] == ["cap 1.dm4", "cap 1.raw"]
    assert len(info.files) == 2 + len(cuts)
    assert (info.pixel_size_nm, info.exposure_s, info.voltage_kv, info.camera) == (
        (0.25, 0.5),
        0.0125,
        300,
        "K3",
    )


def test_a_gatan_capture_that_lacks_frames_or_files_says_so(tmp_path: Path) -> None:
    data = movie()
    director = write_capture(tmp_path, data, (100, 200))
    (tmp_path / "cap 1.raw_2").unlink()
    with pytest.raises(InputError, match=r"2 of 5 .*--allow-truncated"):
        open_raw(director)
    np.testing.assert_array_equal(read_all(director, allow_truncated=True), data[:2])
    write_capture(tmp_path, data, (200, 400))
    os.truncate(tmp_path / "cap 1.raw", 190)  # what follows is not where it should be
    np.testing.assert_array_equal(read_all(director, allow_truncated=True), data[:2])
    (tmp_path / "cap 1.raw").unlink()
    with pytest.raises(InputError, match=r"neither cap 1\.raw nor the folder Hour_00"):
        open_raw(director)


def test_a_gatan_capture_with_more_frames_than_its_director_names_says_so(tmp_path: Path) -> None:
    data = movie()
    director = write_capture(tmp_path, data)
    write_dm(director, data[0], 4, recorded=3)
    np.testing.assert_array_equal(read_all(director), data[:3])
    assert "2 more frames" in info_of(director).warnings[0]


def test_folders_of_hours_minutes_and_seconds_are_read_in_order(tmp_path: Path) -> None:
    data = movie(shape=(25, 6, 7))
    write_clock(tmp_path, data, per_second=12, start_s=3599)  # over the full hour
    np.testing.assert_array_equal(read_all(tmp_path), data)
    np.testing.assert_array_equal(read_all(tmp_path / "Hour_01"), data[12:])
    info = info_of(tmp_path)
    assert (len(info.files), info.warnings, info.camera) == (25, (), "K3")


def test_a_director_counts_the_frames_in_its_folders(tmp_path: Path) -> None:
    data = movie(shape=(6, 6, 7))
    write_clock(tmp_path, data, per_second=4)
    write_dm(tmp_path / "cap.dm4", data[0], 4, recorded=6)
    np.testing.assert_array_equal(read_all(tmp_path / "cap.dm4"), data)
    assert info_of(tmp_path / "cap.dm4").files[0].name == "cap.dm4"
    write_dm(tmp_path / "cap.dm4", data[0], 4, recorded=8)
    with pytest.raises(InputError, match=r"6 of 8 .*--allow-truncated"):
        open_raw(tmp_path / "cap.dm4")


def test_lost_frames_and_seconds_of_a_capture_are_told(tmp_path: Path) -> None:
    write_clock(tmp_path, movie(shape=(12, 6, 7)), per_second=4)
    second = tmp_path / "Hour_00/Minute_00/Second_01"
    next(second.glob("*_0002.dm4")).unlink()
    (warning,) = info_of(tmp_path).warnings
    assert "jump 1 times" in warning and "Second_01_Frame_0001.dm4" in warning
    for path in second.iterdir():
        path.unlink()
    (warning,) = info_of(tmp_path).warnings
    assert "Second_02_Frame_0000.dm4" in warning


@pytest.mark.parametrize("name", ["f{}.tif", "f{}.dm4", "f{}.npy"])
def test_a_folder_with_a_file_for_each_frame_is_read_in_natural_order(tmp_path: Path, name: str) -> None:
    data = movie(shape=(12, 6, 7))
    folder = write_folder(tmp_path / "frames", data, name)
    np.testing.assert_array_equal(read_all(folder), data)
    np.testing.assert_array_equal(read_all(folder / name.format("*")), data)
    np.testing.assert_array_equal(read_all(folder / name.format("[0-4]")), data[:5])
    assert [path.name for path in info_of(folder).files][9:] == [name.format(k) for k in (9, 10, 11)]


def test_compressed_frames_in_files_of_their_own_are_read(tmp_path: Path) -> None:
    data = movie(shape=(4, 18, 19))
    folder = write_folder(tmp_path / "frames", data, compression="lzw")
    np.testing.assert_array_equal(read_all(folder), data)
    os.truncate(folder / "frame_2.tif", 300)
    np.testing.assert_array_equal(read_all(folder, allow_truncated=True), data[:2])


def test_dm_frames_with_other_tags_than_the_first_are_read_at_their_own_place(tmp_path: Path) -> None:
    data = movie(shape=(4, 6, 7))
    folder = write_folder(tmp_path / "frames", data, "f{}.dm4")
    write_dm(folder / "f2.dm4", data[2], 4, name="a longer name")
    write_dm(folder / "f1.dm4", data[1].T, 4)  # of the same length, but another shape
    with pytest.raises(InputError, match=r"f1\.dm4: holds 7 x 6"):
        read_all(folder)
    write_dm(folder / "f1.dm4", data[1], 4)
    np.testing.assert_array_equal(read_all(folder), data)


@pytest.mark.parametrize(
    ("spoil", "says"),
    [
        (lambda path: tifffile.imwrite(path, np.zeros((6, 8), "u2")), "holds 6 x 8 uint16"),
        (lambda path: tifffile.imwrite(path, np.zeros((6, 7), "f4")), "holds 6 x 7 float32"),
        (lambda path: tifffile.imwrite(path, np.zeros((2, 6, 7), "u2"), metadata=None), "2 x 6 x 7"),
        (lambda path: os.truncate(path, path.stat().st_size - 1), "frame"),
        (lambda path: os.truncate(path, 0), "empty"),
    ],
)
def test_a_frame_unlike_the_others_is_named_and_ends_what_can_be_kept(
    tmp_path: Path, spoil: Any, says: str
) -> None:
    data = movie(shape=(5, 6, 7))
    folder = write_folder(tmp_path, data)
    spoil(folder / "frame_3.tif")
    with pytest.raises(InputError, match=rf"frame_3\.tif: .*{says}"):
        open_raw(folder)
    info = info_of(folder, allow_truncated=True)
    assert (info.shape, info.missing_frames, len(info.files)) == ((3, 6, 7), 2, 3)
    np.testing.assert_array_equal(read_all(folder, allow_truncated=True), data[:3])


def test_missing_numbers_in_a_folder_are_told_and_even_steps_are_not(tmp_path: Path) -> None:
    write_folder(tmp_path, movie(shape=(9, 6, 7)))
    for k in (1, 3, 5, 7):
        (tmp_path / f"frame_{k}.tif").unlink()
    assert info_of(tmp_path).warnings == ()
    (tmp_path / "frame_4.tif").unlink()
    assert "between frame_2.tif and frame_6.tif" in info_of(tmp_path).warnings[0]


def test_a_reference_among_the_frames_is_not_taken_for_one(tmp_path: Path) -> None:
    data = movie(shape=(3, 6, 7))
    write_folder(tmp_path, data)
    tifffile.imwrite(tmp_path / "average.tif", data[0])
    with pytest.raises(InputError, match=r"average\.tif.* not numbered alike; .*'.*frame_\*\.tif'"):
        open_raw(tmp_path)
    np.testing.assert_array_equal(read_all(tmp_path / "frame_*.tif"), data)


def test_a_folder_or_pattern_without_a_movie_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="no file matches"):
        open_raw(tmp_path / "*.tif")
    write_folder(tmp_path, movie(shape=(1, 6, 7)))
    with pytest.raises(InputError, match="holds one file, frame_0.tif"):
        open_raw(tmp_path)


@pytest.mark.parametrize("suffix", [".gz", ".bz2"])
def test_a_packed_movie_that_is_cut_gives_its_whole_frames(tmp_path: Path, suffix: str) -> None:
    data = movie(shape=(200, 64, 64))
    path = tmp_path / f"a.mrc{suffix}"
    COUNT_WRITERS["MRC, gzip"][1](path, data)
    os.truncate(path, path.stat().st_size * 2 // 3)
    with pytest.raises(InputError, match="cannot be unpacked beyond byte"):
        open_raw(path)
    read = read_all(path, allow_truncated=True)
    assert 50 < len(read) < 200
    np.testing.assert_array_equal(read, data[: len(read)])


def test_what_is_packed_but_no_mrc_is_refused(tmp_path: Path) -> None:
    (tmp_path / "a.tif.gz").write_bytes(gzip.compress(b"II*\0" + bytes(5000)))
    with pytest.raises(InputError, match="only MRC is read"):
        open_raw(tmp_path / "a.tif.gz")


def test_a_packed_file_that_never_ends_is_refused(tmp_path: Path) -> None:
    (tmp_path / "a.mrc.bz2").write_bytes(bz2.compress(bytes(20_000_000)))
    with pytest.raises(InputError, match="decompression bomb"):
        open_raw(tmp_path / "a.mrc.bz2")


@pytest.mark.parametrize("order", "<>")
def test_an_fei_header_gives_calibration_voltage_and_times(tmp_path: Path, order: str) -> None:
    records = b""
    for k in range(5):
        record = bytearray(768)
        for at, kind, value in [
            (0, "i", 768), (12, "d", 40_000 + k * 0.5 / 86_400), (84, "d", 200_000.0), (156, "d", 1e-10),
            (164, "d", 2e-10), (419, "d", 0.4),
        ]:  # fmt: skip
            struct.pack_into(order + kind, record, at, value)
        record[435:439] = b"Ceta"
        records += record
    data = movie(f"{order}u2")
    write_mrc(tmp_path / "a.mrc", data, 6, cell=0, kind=b"FEI1", content=records)
    np.testing.assert_array_equal(read_all(tmp_path / "a.mrc"), data)
    info = info_of(tmp_path / "a.mrc")
    assert (info.pixel_size_nm, info.voltage_kv, info.camera, info.exposure_s) == (
        (0.2, 0.1),
        200,
        "Ceta",
        0.4,
    )
    assert info.frame_time_s == pytest.approx(0.5, abs=1e-4)
    np.testing.assert_allclose(info.timestamps_s, np.arange(5) * 0.5, atol=1e-4)


def test_an_agard_header_gives_pixel_size_and_exposure(tmp_path: Path) -> None:
    record = struct.pack("<13f", *[0.0] * 8, 0.5, 0.0, 0.0, 3e-10, 1e5).ljust(128, b"\0")
    write_mrc(tmp_path / "a.mrc", movie(), 6, cell=0, content=record * 1024)
    overwrite(tmp_path / "a.mrc", 128, struct.pack("<2h", 0, 32))
    info = info_of(tmp_path / "a.mrc")
    assert (info.pixel_size_nm, info.exposure_s) == ((0.3, 0.3), 0.5)


def test_the_text_of_direct_electron_gives_frame_time_and_voltage(tmp_path: Path) -> None:
    write_mrc(tmp_path / "a_movie.mrc", movie(), 6, cell=-1)
    (tmp_path / "a_info.txt").write_text(
        "Frames Per Second  = 100\nAutosave Movie Sum Count = 4\nSpecimen Pixel Size X (nanometers) = 0.02\n"
        "Specimen Pixel Size Y (nanometers) = 0.03\nInstrument Accelerating Voltage (V) = 300000\n"
        "Camera Model = DE16\nScan - Enable = Enable\n"
    )
    info = info_of(tmp_path / "a_movie.mrc")
    assert (info.frame_time_s, info.pixel_size_nm) == (0.04, (0.03, 0.02))
    assert (info.voltage_kv, info.camera) == (300, "DE16")
    assert "scanned" in info.warnings[0]


def test_uneven_times_are_told_and_coarse_ones_not_believed() -> None:
    even = np.arange(10) * 0.1
    assert frame_time(even, 1e-6) == (0.1, ())
    pause = np.concatenate([even, even + 2])
    assert frame_time(pause, 1e-6)[0] == 0.1
    assert "1 of 19 intervals" in frame_time(pause, 1e-6)[1][0]
    assert "after frame 9 (1.1 s)" in frame_time(pause, 1e-6)[1][0]
    assert "backwards" in frame_time(even[::-1], 1e-6)[1][0]
    assert frame_time(np.floor(even), 1.0) == (None, ())
    assert frame_time(even[:1], 1e-6) == (None, ())
    assert "no two intervals" in frame_time(np.array([0.0, 1.0, 900.0]), 1e-6)[1][0]
