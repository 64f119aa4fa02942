"""Raw movies come out as they went in, and what is damaged, hostile or no movie is refused in a sentence."""

from __future__ import annotations

import hashlib
import json
import math
import resource
import struct
import subprocess
import sys
import time
import zlib
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tifffile
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from raw_files import COUNT_WRITERS, WRITERS, movie, write_dm, write_mrc
from tdenoise_pipeline.errors import InputError
from tdenoise_pipeline.readers import open_raw, tiff
from tdenoise_pipeline.readers.units import bounded_json, to_nanometres, to_seconds

REAL = Path(__file__).parents[1].parent / "shared/data/formats"
SUFFIXES = (
    ".tif", ".tiff", ".mrc", ".mrcs", ".map", ".st", ".ccp4", ".mrc.gz", ".npy", ".dm3", ".dm4", ".ser", ".tvips",
    ".mib", ".seq", ".emd", ".h5", ".hspy", ".mp4", ".avi",
)  # fmt: skip
FOLDERS = ("gatan_is/hour_minute_second/cap2", "tiff/frame_per_file", "bad/empty_folder")
NOT_A_MOVIE = ("bad", "not a movie", "single frame", "ragged", "truncated", "4D scan stored as frames")

needs_real_files = pytest.mark.skipif(not REAL.is_dir(), reason="the collection of real raw files is absent")


def real_entries(*kinds: str, but: tuple[str, ...] = ()) -> list[Any]:
    """Entries of the collection whose kind starts with one of these, of formats that are read."""
    if not REAL.is_dir():
        return []
    return [
        pytest.param(entry, id=entry["file"])
        for entry in json.loads((REAL / "index.json").read_text())
        if (entry["file"].endswith(SUFFIXES) or entry["file"] in FOLDERS)
        and entry["kind"].startswith(kinds)
        and not (but and entry["kind"].startswith(but))
    ]


def read_all(path: Path, **options: Any) -> NDArray[Any]:
    with open_raw(path, **options) as reader:
        out = np.empty(reader.info.shape, reader.info.dtype)
        reader.read(0, len(out), out)
    return out


@needs_real_files
@pytest.mark.parametrize("entry", real_entries("", but=(*NOT_A_MOVIE, "odd")))
def test_a_real_movie_decodes_to_the_array_two_libraries_agree_on(entry: dict[str, Any]) -> None:
    expected = entry["data"][0]
    data = read_all(REAL / entry["file"])
    *frames, height, width = expected["shape"]
    assert data.shape == (math.prod(frames), height, width)  # a scan is read as the frames it is stored as
    assert data.dtype == expected["dtype"] and data.dtype.isnative
    assert hashlib.sha256(data.astype(data.dtype.newbyteorder("<"))).hexdigest() == expected["sha256"]


@needs_real_files
@pytest.mark.parametrize("entry", real_entries(*NOT_A_MOVIE, "odd"))
def test_a_damaged_file_or_one_that_is_no_movie_is_refused_quickly_and_in_little_memory(
    entry: dict[str, Any],
) -> None:
    memory, start = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss, time.perf_counter()
    refused = None
    try:
        read_all(REAL / entry["file"])
    except InputError as error:
        refused = str(error)
    assert time.perf_counter() - start < 8
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - memory < 500_000  # [KiB]
    if not entry["kind"].startswith("odd"):
        assert refused is not None
        assert (
            refused.startswith(str(REAL / entry["file"]))
            and "\n" not in refused
            and "Traceback" not in refused
        )


@needs_real_files
@pytest.mark.parametrize("entry", real_entries("truncated"))
def test_allow_truncated_keeps_the_sound_frames_and_counts_the_others(entry: dict[str, Any]) -> None:
    whole = next(
        whole["data"][0]
        for whole in json.loads((REAL / "index.json").read_text())
        if not whole["file"].startswith("bad/") and whole["file"] in entry["note"]
    )
    try:
        with open_raw(REAL / entry["file"], allow_truncated=True) as reader:
            info = reader.info
            data = np.empty(info.shape, info.dtype)
            reader.read(0, len(data), data)
    except InputError as error:
        assert "whole frame" in str(error) or "no frame can be kept" in str(error)
        return
    n_frames = math.prod(whole["shape"][:-2])
    # Where only tags behind the pixels are missing, all frames are there.
    assert 0 < len(data) < n_frames or not info.metadata["tags_complete"]
    assert 0 <= info.missing_frames <= n_frames - len(data)


@needs_real_files
@pytest.mark.parametrize(
    ("name", "frame_time_s", "pixel_size_nm"),
    [
        ("dm/insitu_time.dm4", 0.0125, (0.0181, 0.0181)),
        ("dm/insitu_frames_unit.dm3", None, (0.0181, 0.0181)),
        ("dm/etspy_haadf_tilt.dm3", None, (17.99492, 17.99492)),
        ("dm/ncem_3d_int16.dm4", None, (3.0, 0.002)),
        ("dm/nion_sequence.dm4", None, None),
        ("mrc/mode6_seri.mrcs", None, (0.2, 0.2)),
        ("mrc/de_roi_movie/ROI_Random_Scan_movie.mrc", 0.004589899, None),
        ("gatan_is/director_raw/cap1.dm4", None, (0.0181, 0.0181)),
        ("gatan_is/hour_minute_second/cap2", None, (0.0181, 0.0181)),
        ("mrc/mode6.mrc.gz", None, (0.2, 0.2)),
        ("ser/scanning_preview_1.ser", None, (0.3843525, 0.3843525)),
        ("ser/tem_preview_1.ser", None, (6.281834, 6.281834)),
        ("tvips/rec_000.tvips", None, None),
        ("mib/single_9_6bit.mib", 0.001, None),
        ("video/norpix6.seq", 0.0337886, None),
        ("mrc/griddata_small.ccp4", None, (0.05, 0.075)),
        ("tiff/dm_export_stack.tif", 2.5, (1686.74, 168.674)),
        ("tiff/imagej_stack.tif", None, (168.674710989, 168.674710989)),
        ("tiff/imagej_time.tif", 0.0125, (0.0181, 0.0181)),
        ("tiff/ome_time.ome.tif", 0.0125, (0.0181, 0.0181)),
        ("tiff/time_series.ome.tif", None, None),
        ("tiff/bigtiff_lzw.tif", None, None),
        ("emd/velox_tem_stack.emd", 0.8, (0.0081728831923, 0.0081728831923)),
        ("emd/ncem_movie_xyt.emd", 0.0125, (0.0181, 0.0181)),
        ("emd/ncem_3d.emd", None, None),
        ("hdf5/movie.hspy", 0.0125, (0.0181, 0.0181)),
        ("hdf5/generic.h5", 0.0125, None),
        ("video/export_h264.mp4", 0.05, None),
        ("video/export_mjpeg.avi", 0.05, None),
        ("numpy/c_order.npy", None, None),
    ],
)
def test_calibrations_come_from_the_file_or_stay_unknown(
    name: str, frame_time_s: float | None, pixel_size_nm: tuple[float, float] | None
) -> None:
    with open_raw(REAL / name) as reader:
        assert reader.info.frame_time_s == frame_time_s
        assert reader.info.pixel_size_nm == pixel_size_nm
        assert len(json.dumps(reader.info.metadata, allow_nan=False)) < 1_000_000


@needs_real_files
def test_a_tiff_named_mrc_is_refused_with_both_names() -> None:
    with pytest.raises(InputError, match=r"MRC.*TIFF"):
        open_raw(REAL / "bad/really_a_tiff.mrc")


@pytest.mark.parametrize("kind", WRITERS)
@pytest.mark.parametrize("dtype", ["u1", "<u2", "<i2", "<f4"])
def test_what_was_written_is_read_back(tmp_path: Path, kind: str, dtype: str) -> None:
    if kind == "ImageJ TIFF" and dtype == "<i2":
        pytest.skip("ImageJ has no signed 16-bit type")
    if kind == "deflate, predictor" and dtype == "<f4":
        pytest.skip("tifffile writes another predictor for floats")
    name, write = WRITERS[kind]
    data = movie(dtype, (5, 18, 19))
    write(tmp_path / name, data)
    read = read_all(tmp_path / name)
    assert read.dtype.isnative
    np.testing.assert_array_equal(read, data)
    assert read.dtype == data.dtype


@pytest.mark.parametrize("order", "<>")
@pytest.mark.parametrize(("mode", "kind"), [(0, "i1"), (1, "i2"), (2, "f4"), (6, "u2"), (12, "f2")])
def test_mrc_modes_are_read_in_both_byte_orders(tmp_path: Path, order: str, mode: int, kind: str) -> None:
    data = movie(kind).astype(order + kind)
    write_mrc(tmp_path / "a.mrc", data, mode, extended=320)
    np.testing.assert_array_equal(read_all(tmp_path / "a.mrc"), data)
    with open_raw(tmp_path / "a.mrc") as reader:
        assert reader.info.pixel_size_nm == (0.2, 0.2)


def test_mrc_frames_of_four_bits_are_unpacked_low_half_first(tmp_path: Path) -> None:
    write_mrc(tmp_path / "a.mrc", np.array([[[0x21, 0x03]], [[0x54, 0x06]]], "u1"), 101)
    raw = bytearray((tmp_path / "a.mrc").read_bytes())
    raw[:4] = struct.pack("<i", 3)  # an odd row is padded to a whole byte
    (tmp_path / "a.mrc").write_bytes(raw)
    assert read_all(tmp_path / "a.mrc").tolist() == [[[1, 2, 3]], [[4, 5, 6]]]


def test_mrc_bytes_are_unsigned_only_with_the_stamp_of_imod(tmp_path: Path) -> None:
    write_mrc(tmp_path / "a.mrc", np.full((2, 2, 2), 200, "u1"), 0)
    assert read_all(tmp_path / "a.mrc").max() == 200 - 256
    raw = bytearray((tmp_path / "a.mrc").read_bytes())
    raw[152:156] = b"IMOD"
    (tmp_path / "a.mrc").write_bytes(raw)
    assert read_all(tmp_path / "a.mrc").min() == 200


def test_an_mrc_voxel_of_zero_or_below_is_unknown(tmp_path: Path) -> None:
    for cell in (0.0, -10.0, float("nan")):
        write_mrc(tmp_path / "a.mrc", movie(), 6, cell=cell)
        with open_raw(tmp_path / "a.mrc") as reader:
            assert reader.info.pixel_size_nm is None


@pytest.mark.parametrize("version", [3, 4])
def test_a_dm_axis_is_time_only_if_its_unit_is_a_time(tmp_path: Path, version: int) -> None:
    write_dm(tmp_path / "a.dm4", movie(), version)
    with open_raw(tmp_path / "a.dm4") as reader:
        assert (reader.info.frame_time_s, reader.info.pixel_size_nm) == (0.0025, (0.25, 0.5))
        assert reader.info.metadata["Name"] == "made up"
    write_dm(tmp_path / "a.dm4", movie(), version, time_unit="deg")
    with open_raw(tmp_path / "a.dm4") as reader:
        assert reader.info.frame_time_s is None
    write_dm(tmp_path / "a.dm4", movie(), version, time_unit="eV")
    with pytest.raises(InputError, match="spectrum image"):
        open_raw(tmp_path / "a.dm4")


def test_imagej_calibrations_are_read(tmp_path: Path) -> None:
    metadata = {"axes": "TYX", "unit": "um", "finterval": 25.0, "tunit": "ms"}
    tifffile.imwrite(tmp_path / "a.tif", movie(), imagej=True, resolution=(4, 2), metadata=metadata)
    with open_raw(tmp_path / "a.tif") as reader:
        assert (reader.info.frame_time_s, reader.info.pixel_size_nm) == (0.025, (500.0, 250.0))


def test_ome_calibrations_are_read(tmp_path: Path) -> None:
    metadata = {
        "axes": "TYX", "TimeIncrement": 25.0, "TimeIncrementUnit": "ms", "PhysicalSizeX": 2.0,
        "PhysicalSizeXUnit": "Å", "PhysicalSizeY": 0.5,
    }  # fmt: skip
    tifffile.imwrite(tmp_path / "a.ome.tif", movie(), metadata=metadata)
    with open_raw(tmp_path / "a.ome.tif") as reader:
        assert (reader.info.frame_time_s, reader.info.pixel_size_nm) == (0.025, (500.0, 0.2))


def test_dots_per_inch_are_not_a_pixel_size(tmp_path: Path) -> None:
    tifffile.imwrite(tmp_path / "a.tif", movie(), photometric="minisblack", resolution=(300, 300))
    with open_raw(tmp_path / "a.tif") as reader:
        assert reader.info.pixel_size_nm is None


def test_an_imagej_stack_with_one_directory_has_all_its_frames(tmp_path: Path) -> None:
    data = movie(">u2", (9, 6, 7))
    tifffile.imwrite(tmp_path / "a.tif", data, imagej=True, metadata={"axes": "TYX"})
    raw = bytearray((tmp_path / "a.tif").read_bytes())
    order = "<" if raw[:2] == b"II" else ">"
    first = struct.unpack(f"{order}I", raw[4:8])[0]
    n_tags = struct.unpack(f"{order}H", raw[first : first + 2])[0]
    raw[first + 2 + 12 * n_tags : first + 6 + 12 * n_tags] = bytes(4)  # as ImageJ writes above 4 GB
    (tmp_path / "a.tif").write_bytes(raw)
    np.testing.assert_array_equal(read_all(tmp_path / "a.tif"), data)

    pixels = struct.unpack(f"{order}I", raw[first + 2 :][_value_of_tag(raw, first, order, 273)][:4])[0]
    (tmp_path / "a.tif").write_bytes(raw[: pixels + 4 * 84 + 50])
    with pytest.raises(InputError, match=r"4 of 9 .*--allow-truncated"):
        open_raw(tmp_path / "a.tif")
    with open_raw(tmp_path / "a.tif", allow_truncated=True) as reader:
        assert (reader.info.shape, reader.info.missing_frames) == ((4, 6, 7), 5)
    np.testing.assert_array_equal(read_all(tmp_path / "a.tif", allow_truncated=True), data[:4])


def _value_of_tag(raw: bytes, first: int, order: str, code: int) -> slice:
    n_tags = struct.unpack(f"{order}H", raw[first : first + 2])[0]
    for k in range(n_tags):
        if struct.unpack(f"{order}H", raw[first + 2 + 12 * k :][:2])[0] == code:
            return slice(12 * k + 8, 12 * k + 12)
    raise KeyError(code)


ALL_WRITERS = {**WRITERS, **COUNT_WRITERS}
# Nothing in a TVIPS recording says how many frames it has: cut between two, it is a shorter one.
COUNTED = [kind for kind in ALL_WRITERS if kind != "TVIPS"]


@pytest.mark.parametrize("kind", COUNTED)
@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(keep=st.floats(0, 1, exclude_max=True))
def test_a_file_cut_anywhere_is_never_a_shorter_or_a_wrong_movie(
    tmp_path: Path, kind: str, keep: float
) -> None:
    name, write = ALL_WRITERS[kind]
    data = movie("<u2", (6, 18, 19))
    write(tmp_path / name, data)
    raw = (tmp_path / name).read_bytes()
    (tmp_path / name).write_bytes(raw[: int(keep * len(raw))])
    with suppress(InputError):
        # If only bytes without meaning are gone, the movie is whole.
        np.testing.assert_array_equal(read_all(tmp_path / name), data)
    with suppress(InputError):
        with open_raw(tmp_path / name, allow_truncated=True) as reader:
            n_frames, missing = reader.info.shape[0], reader.info.missing_frames
        np.testing.assert_array_equal(read_all(tmp_path / name, allow_truncated=True), data[:n_frames])
        assert n_frames + missing <= len(data) and (missing > 0 or n_frames == len(data))


@pytest.mark.parametrize("kind", ALL_WRITERS)
@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(changes=st.lists(st.tuples(st.integers(0, 511), st.integers(0, 255)), min_size=1, max_size=6))
def test_changed_header_bytes_end_in_a_movie_or_one_sentence(
    tmp_path: Path, kind: str, changes: list[tuple[int, int]]
) -> None:
    name, write = ALL_WRITERS[kind]
    write(tmp_path / name, movie("<u2", (4, 18, 19)))
    raw = bytearray((tmp_path / name).read_bytes())
    for position, byte in changes:
        raw[position] = byte
    (tmp_path / name).write_bytes(raw)
    try:
        read_all(tmp_path / name)
    except InputError as error:
        assert "\n" not in str(error)


def test_truncated_files_say_how_many_frames_they_have(tmp_path: Path) -> None:
    data = movie("<u2", (6, 8, 8))
    write_mrc(tmp_path / "a.mrc", data, 6)
    np.save(tmp_path / "a.npy", data)
    for name in ("a.mrc", "a.npy"):
        raw = (tmp_path / name).read_bytes()
        (tmp_path / name).write_bytes(raw[:-129])
        with pytest.raises(InputError, match=r"4 of 6 .*--allow-truncated"):
            open_raw(tmp_path / name)
        np.testing.assert_array_equal(read_all(tmp_path / name, allow_truncated=True), data[:4])


def test_a_tiff_cut_between_two_frames_is_not_taken_for_a_shorter_movie(tmp_path: Path) -> None:
    data = movie("<u2", (6, 18, 19))
    WRITERS["LZW, no description"][1](tmp_path / "a.tif", data)
    with tifffile.TiffFile(tmp_path / "a.tif") as tif:
        end = tif.pages[3].dataoffsets[0] + tif.pages[3].databytecounts[0]
    (tmp_path / "a.tif").write_bytes((tmp_path / "a.tif").read_bytes()[:end])
    with pytest.raises(InputError, match=r"4 of at least 5 .*--allow-truncated"):
        open_raw(tmp_path / "a.tif")
    np.testing.assert_array_equal(read_all(tmp_path / "a.tif", allow_truncated=True), data[:4])


def test_a_file_that_shrinks_while_it_is_read_gives_an_error_and_no_numbers(tmp_path: Path) -> None:
    np.save(tmp_path / "a.npy", movie())
    with open_raw(tmp_path / "a.npy") as reader:
        with (tmp_path / "a.npy").open("r+b") as file:
            file.truncate(300)
        with pytest.raises(InputError, match="ends at byte 300"):
            reader.read(0, 5, np.empty((5, 6, 7), "u2"))


@pytest.mark.parametrize("kind", ALL_WRITERS)
def test_the_raw_file_is_left_as_it_was(tmp_path: Path, kind: str) -> None:
    name, write = ALL_WRITERS[kind]
    write(tmp_path / name, movie(shape=(4, 18, 19)))
    before = (tmp_path / name).read_bytes(), (tmp_path / name).stat().st_mtime_ns
    (tmp_path / name).chmod(0o444)
    read_all(tmp_path / name)
    assert ((tmp_path / name).read_bytes(), (tmp_path / name).stat().st_mtime_ns) == before


@pytest.mark.parametrize(
    "kind",
    ["npy, Fortran order", "TIFF, big-endian", "zstd, tiles, big-endian", "DM4", "SER", "MIB", "MRC, bzip2"],
)
def test_four_threads_read_what_one_reads(tmp_path: Path, kind: str) -> None:
    name, write = ALL_WRITERS[kind]
    data = movie(shape=(40, 32, 33))
    write(tmp_path / name, data)
    parts = [(k, min(k + 3, 40)) for k in range(0, 40, 3)] * 3
    with open_raw(tmp_path / name) as reader, ThreadPoolExecutor(4) as pool:

        def part(bounds: tuple[int, int]) -> NDArray[Any]:
            out = np.empty((bounds[1] - bounds[0], 32, 33), reader.info.dtype)
            reader.read(*bounds, out)
            return out

        for (start, stop), out in zip(parts, pool.map(part, parts), strict=True):
            np.testing.assert_array_equal(out, data[start:stop])


def test_a_wrong_output_array_is_a_mistake_of_the_caller(tmp_path: Path) -> None:
    np.save(tmp_path / "a.npy", movie())
    with open_raw(tmp_path / "a.npy") as reader:
        for out in (
            np.empty((2, 6, 7), "u1"),
            np.empty((3, 6, 7), "u2"),
            np.empty((2, 6, 14), "u2")[:, :, ::2],
        ):
            with pytest.raises(ValueError, match="C-contiguous"):
                reader.read(0, 2, out)
        with pytest.raises(ValueError, match="not in a movie of 5"):
            reader.read(4, 6, np.empty((2, 6, 7), "u2"))


@pytest.mark.parametrize(
    ("array", "says"),
    [
        (np.zeros((4, 4), "u2"), "single image"),
        (np.zeros((1, 4, 4), "u2"), "single image"),
        (np.zeros((2, 3, 4, 4), "u2"), "4 dimensions"),
        (np.zeros((0, 4, 4), "u2"), "no frame"),
        (np.zeros((2, 4, 4), "c8"), "complex"),
        (np.zeros((2, 4, 4), "?"), "bool"),
        (np.array([[[None]], [[{}]]]), "never unpickled"),
    ],
)
def test_arrays_that_are_no_movie_are_refused_by_name(tmp_path: Path, array: Any, says: str) -> None:
    np.save(tmp_path / "a.npy", array, allow_pickle=True)
    with pytest.raises(InputError, match=says):
        open_raw(tmp_path / "a.npy")


def test_tiff_pages_of_different_sizes_are_refused(tmp_path: Path) -> None:
    with tifffile.TiffWriter(tmp_path / "a.tif") as tif:
        for height in (8, 8, 9):
            tif.write(np.zeros((height, 8), "u2"), photometric="minisblack", metadata=None)
    with pytest.raises(InputError, match=r"page 2 differs .*height"):
        open_raw(tmp_path / "a.tif")


def test_tiff_directories_in_a_circle_are_refused(tmp_path: Path) -> None:
    tifffile.imwrite(tmp_path / "a.tif", movie(), photometric="minisblack", byteorder="<", metadata=None)
    raw = bytearray((tmp_path / "a.tif").read_bytes())
    first = struct.unpack("<I", raw[4:8])[0]
    end = first + 2 + 12 * struct.unpack("<H", raw[first : first + 2])[0]
    raw[end : end + 4] = struct.pack("<I", first)
    (tmp_path / "a.tif").write_bytes(raw)
    with pytest.raises(InputError, match="loop"):
        open_raw(tmp_path / "a.tif")


def test_a_decompression_bomb_is_refused_before_it_is_decoded(tmp_path: Path) -> None:
    strip = zlib.compress(bytes(4096 * 4096), 9)
    tags = [(256, 4096), (257, 4096), (258, 8), (259, 8), (262, 1), (273, 8), (278, 4096), (279, len(strip))]
    raw = struct.pack("<2sHI", b"II", 42, 8 + len(strip)) + strip
    entries = b"".join(struct.pack("<HHII", code, 4, 1, value) for code, value in tags)
    for k in range(400):  # all pages share one strip, so that 7 GB fit into 60 kB
        following = len(raw) + 6 + len(entries) if k < 399 else 0
        raw += struct.pack("<H", len(tags)) + entries + struct.pack("<I", following)
    (tmp_path / "a.tif").write_bytes(raw)
    with pytest.raises(InputError, match="decompression bomb"):
        open_raw(tmp_path / "a.tif")


def test_a_damaged_frame_in_the_middle_is_named_when_it_is_read(tmp_path: Path) -> None:
    data = movie(shape=(6, 32, 32))
    tifffile.imwrite(tmp_path / "a.tif", data, photometric="minisblack", compression="zlib", metadata=None)
    with tifffile.TiffFile(tmp_path / "a.tif") as tif:
        offset = tif.pages[3].dataoffsets[0]
    raw = bytearray((tmp_path / "a.tif").read_bytes())
    raw[offset : offset + 40] = bytes(40)
    (tmp_path / "a.tif").write_bytes(raw)
    with open_raw(tmp_path / "a.tif") as reader:
        out = np.empty((3, 32, 32), "u2")
        reader.read(0, 3, out)
        np.testing.assert_array_equal(out, data[:3])
        with pytest.raises(InputError, match="frame 3 is damaged"):
            reader.read(3, 6, out)


def test_what_is_no_file_or_of_no_known_format_is_refused(tmp_path: Path) -> None:
    (tmp_path / "empty.mrc").touch()
    (tmp_path / "nothing").mkdir()
    (tmp_path / "text.dm4").write_text("frames, honestly" * 100)
    for name, says in [
        ("absent.tif", "no such file"),
        ("nothing", "holds no movie"),
        ("empty.mrc", "empty"),
        ("text.dm4", r"format is not supported.*DigitalMicrograph"),
    ]:
        with pytest.raises(InputError, match=says):
            open_raw(tmp_path / name)


def test_units_are_understood_or_left_unknown() -> None:
    lengths = {
        "pm": 1e-3,
        "A": 0.1,
        "Å": 0.1,
        "nm": 1.0,
        "um": 1e3,
        "µm": 1e3,
        "μm": 1e3,
        "micron": 1e3,
        "m": 1e9,
    }
    assert {unit: to_nanometres(1, unit) for unit in lengths} == lengths
    times = {"us": 1e-6, "µs": 1e-6, "ms": 1e-3, "s": 1.0, "sec": 1.0, "seconds": 1.0, "minutes": 60.0}
    assert {unit: to_seconds("1", unit) for unit in times} == times
    for value, unit in [
        (0, "nm"),
        (-1, "nm"),
        ("nan", "nm"),
        (1, ""),
        (1, "1/nm"),
        (1, "inch"),
        (None, "nm"),
    ]:
        assert to_nanometres(value, unit) is None


def test_metadata_fit_into_a_json_record() -> None:
    record = bounded_json(
        {
            "array": np.zeros(10**6),
            "few": np.arange(3),
            "nan": float("nan"),
            "raw": b"abc",
            "long": dict.fromkeys(range(2000), "x" * 1000),
        }
    )
    assert len(json.dumps(record, allow_nan=False)) < 1_000_000
    assert record["few"] == [0, 1, 2]
    assert record["long"].startswith("left out")


def test_the_planes_of_an_ome_file_give_times_and_exposure(tmp_path: Path) -> None:
    data = movie("<u2", (4, 6, 7))
    times = [0.0, 100.0, 200.0, 700.0]
    planes = {
        "DeltaT": times,
        "DeltaTUnit": ["ms"] * 4,
        "ExposureTime": [0.09] * 4,
        "ExposureTimeUnit": ["s"] * 4,
    }
    described = {"axes": "TYX", "Plane": planes}
    tifffile.imwrite(tmp_path / "a.ome.tif", data, ome=True, metadata=described, photometric="minisblack")
    with open_raw(tmp_path / "a.ome.tif") as reader:
        info = reader.info
    assert (info.frame_time_s, info.exposure_s) == (0.1, 0.09)
    np.testing.assert_allclose(info.timestamps_s, [0, 0.1, 0.2, 0.7])
    assert "differ from 0.1 s" in info.warnings[0]


def test_pages_beyond_those_that_a_tiff_file_names_are_read_and_told(tmp_path: Path) -> None:
    data = movie("<u2", (7, 6, 7))
    with tifffile.TiffWriter(tmp_path / "a.tif") as file:
        for part in (data[:3], data[3:]):
            file.write(part, photometric="minisblack")
    with open_raw(tmp_path / "a.tif") as reader:
        assert "names 3 frames, and 7 pages" in reader.info.warnings[0]
    np.testing.assert_array_equal(read_all(tmp_path / "a.tif"), data)


def test_the_escape_sequence_of_a_damaged_npy_header_is_no_warning(tmp_path: Path) -> None:
    np.save(tmp_path / "a.npy", movie())
    raw = (tmp_path / "a.npy").read_bytes()
    (tmp_path / "a.npy").write_bytes(raw.replace(b"'shape'", rb"'\Rape'"))
    with pytest.raises(InputError, match="damaged"):
        open_raw(tmp_path / "a.npy")


# Runs commands, each in a process of its own, forked so that libraries are imported once. Writes processor time [s] and
# peak memory [kB] of the command and its children into a file. Not by wait4: that counts what the process held when it
# made the child.
COMMANDS = """
import json, os, resource, sys
import tdenoise_pipeline.ingest.ingest_many
from tdenoise_pipeline.cli.command_line import main
for line in sys.stdin:
    folder, *words = json.loads(line)
    pid = os.fork()
    if pid == 0:
        for number, name in ((1, "out"), (2, "err")):
            os.dup2(os.open(f"{folder}/{name}", os.O_CREAT | os.O_WRONLY), number)
        code = main(words)
        own, children = (resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN))
        [peak] = (line.split()[1] for line in open("/proc/self/status") if line.startswith("VmHWM"))
        seconds = own.ru_utime + own.ru_stime + children.ru_utime + children.ru_stime
        open(f"{folder}/spent", "w").write(f"{seconds} {max(int(peak), children.ru_maxrss)}")
        sys.stdout.flush(), sys.stderr.flush()
        os._exit(code)
    print(os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]), flush=True)
"""


@pytest.fixture(scope="module")
def commands() -> Iterator[Callable[[Path, list[str]], int]]:
    """Runs a command, which leaves files ``out``, ``err`` and ``spent`` in a folder; its exit code."""
    with subprocess.Popen(
        [sys.executable, "-c", COMMANDS], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as process:
        assert process.stdin is not None and process.stdout is not None

        def run(folder: Path, words: list[str]) -> int:
            assert process.stdin is not None and process.stdout is not None
            print(json.dumps([str(folder), *words]), file=process.stdin, flush=True)
            return int(process.stdout.readline())

        yield run
        process.stdin.close()


@needs_real_files
@pytest.mark.slow
@pytest.mark.parametrize("path", sorted((REAL / "bad").glob("*")), ids=lambda path: path.name)
def test_what_must_be_refused_is_refused_at_the_command_line(
    path: Path, tmp_path: Path, commands: Callable[[Path, list[str]], int]
) -> None:
    code = commands(tmp_path, ["ingest", str(path), "-o", str(tmp_path / "made/out.zarr"), "--quiet"])
    said = (tmp_path / "err").read_text()
    assert (code, (tmp_path / "out").read_text()) == (3, "")
    assert len(said.splitlines()) == 1 and path.name in said
    seconds, kilobytes = map(float, (tmp_path / "spent").read_text().split())
    assert seconds < 8
    assert kilobytes < 500 * 1024
    assert not list(tmp_path.glob("made/**/*.zarr*"))


def test_strips_are_read_in_one_go_and_gaps_between_them_do_not_matter(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    data = movie("<u2", (3, 40, 30))
    tifffile.imwrite(tmp_path / "a.tif", data, rowsperstrip=1, compression="lzw", photometric="minisblack")
    asked: list[int] = []
    whole = tiff.RawFile.read_at

    def read_at(self: Any, offset: int, n_bytes: int) -> bytes:
        asked.append(n_bytes)
        return whole(self, offset, n_bytes)

    with open_raw(tmp_path / "a.tif") as reader:
        out = np.empty(data.shape, data.dtype)
        monkeypatch.setattr(tiff.RawFile, "read_at", read_at)
        reader.read(0, 3, out)
        monkeypatch.setattr(tiff, "_RUN", 200)
        parts = np.empty(data.shape, data.dtype)
        reader.read(0, 3, parts)
    np.testing.assert_array_equal(out, data)
    np.testing.assert_array_equal(parts, data)
    assert len(asked) < 3 * 40
