"""Bytes that a header does not explain are named, and a header that the size contradicts is never believed."""

from __future__ import annotations

import gzip
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tifffile
import zarr
from array_files import write_zarr
from numpy.typing import NDArray
from raw_files import (
    COUNT_WRITERS,
    WRITERS,
    movie,
    write_capture,
    write_dm,
    write_mib,
    write_mrc,
    write_npy,
    write_seq,
    write_ser,
    write_tvips,
)
from tdenoise_pipeline.errors import InputError
from tdenoise_pipeline.readers import MovieInfo, open_raw

SHAPE = (5, 18, 20)
FRAME = 18 * 20 * 2  # bytes
COUNTS = movie("<u2", SHAPE)


def read(path: Path, **options: Any) -> tuple[NDArray[Any], MovieInfo]:
    with open_raw(path, **options) as reader:
        out = np.empty(reader.info.shape, reader.info.dtype)
        reader.read(0, len(out), out)
        return out, reader.info


def refusal(path: Path, **options: Any) -> str:
    with pytest.raises(InputError) as error:
        read(path, **options)
    return str(error.value)


def overwrite(path: Path, position: int, content: bytes) -> None:
    with path.open("r+b") as file:
        file.seek(position)
        file.write(content)


def append(path: Path, n_bytes: int) -> None:
    with path.open("ab") as file:
        file.write(b"\7" * n_bytes)


@pytest.mark.parametrize("kind", [*WRITERS, *COUNT_WRITERS])
def test_of_a_file_that_adds_up_nothing_is_said(tmp_path: Path, kind: str) -> None:
    name, write = (WRITERS | COUNT_WRITERS)[kind]
    write(tmp_path / name, COUNTS)
    assert read(tmp_path / name)[1].warnings == ()


@pytest.mark.parametrize("order", ["<", ">"])
@pytest.mark.parametrize(
    ("n_bytes", "kind"), [(3072, b"SERI"), (768, b"FEI1"), (1000, b""), (2 * FRAME, b"")]
)
def test_an_extended_header_that_is_not_there_is_named_and_never_salvaged(
    tmp_path: Path, order: str, n_bytes: int, kind: bytes
) -> None:
    path = tmp_path / "a.mrc"
    write_mrc(path, COUNTS.astype(f"{order}u2"), 6, kind=kind)
    overwrite(path, 92, struct.pack(f"{order}i", n_bytes))
    for options in ({}, {"allow_truncated": True}):
        assert f"announces {n_bytes} bytes before the frames that are not there" in refusal(path, **options)


def test_that_holds_for_a_packed_file_too(tmp_path: Path) -> None:
    write_mrc(tmp_path / "a.mrc", COUNTS, 6)
    overwrite(tmp_path / "a.mrc", 92, struct.pack("<i", 3072))
    (tmp_path / "a.mrc.gz").write_bytes(gzip.compress((tmp_path / "a.mrc").read_bytes()))
    assert "3072 bytes" in refusal(tmp_path / "a.mrc.gz", allow_truncated=True)


@pytest.mark.parametrize("extended", [0, 3072])
def test_a_file_that_is_cut_short_is_still_salvaged(tmp_path: Path, extended: int) -> None:
    path = tmp_path / "a.mrc"
    write_mrc(path, COUNTS, 6, extended=extended)
    path.write_bytes(path.read_bytes()[:-100])
    assert "4 of 5 frames" in refusal(path)
    np.testing.assert_array_equal(read(path, allow_truncated=True)[0], COUNTS[:4])


@pytest.mark.parametrize("n_bytes", [128, 500])
def test_an_extended_header_that_is_not_announced_is_told(tmp_path: Path, n_bytes: int) -> None:
    write_mrc(tmp_path / "a.mrc", COUNTS, 6, extended=n_bytes)
    overwrite(tmp_path / "a.mrc", 92, struct.pack("<i", 0))
    (warning,) = read(tmp_path / "a.mrc")[1].warnings
    assert f"{n_bytes} bytes behind its frames are not explained" in warning and "shifted" in warning


def grown_mrc(path: Path) -> None:
    write_mrc(path, COUNTS, 6)
    overwrite(path, 8, struct.pack("<i", 3))


def grown_npy(path: Path) -> None:
    write_npy(path, COUNTS[:3])
    with path.open("ab") as file:
        file.write(COUNTS[3:].tobytes())


def grown_seq(path: Path) -> None:
    write_seq(path, COUNTS)
    overwrite(path, 572, struct.pack("<I", 3))


def grown_capture(path: Path) -> None:
    made = write_capture(path.parent, COUNTS)
    write_dm(made, COUNTS[0], 4, recorded=3)
    made.rename(path)
    made.with_suffix(".raw").rename(path.with_suffix(".raw"))


def grown_tiff(path: Path) -> None:
    tifffile.imwrite(path, COUNTS[:3], imagej=True, metadata={"axes": "TYX"})
    content = path.read_bytes()
    with tifffile.TiffFile(path) as file:
        first = file.pages[0].dataoffsets[0]
    path.write_bytes(content[:first] + COUNTS.tobytes())


@pytest.mark.parametrize(
    ("name", "write"),
    [
        ("a.mrc", grown_mrc),
        ("a.npy", grown_npy),
        ("a.seq", grown_seq),
        ("a.dm4", grown_capture),
        ("a.tif", grown_tiff),
    ],
)
def test_frames_beyond_those_of_the_header_are_told(
    tmp_path: Path, name: str, write: Callable[[Path], None]
) -> None:
    write(tmp_path / name)
    data, info = read(tmp_path / name)
    np.testing.assert_array_equal(data, COUNTS[:3])
    assert "room for 2 more frames, which are not read" in info.warnings[-1]


@pytest.mark.parametrize("told", [0, 1])
@pytest.mark.parametrize(("name", "write", "place"), [("a.mrc", grown_mrc, 8), ("a.seq", grown_seq, 572)])
def test_a_number_of_frames_that_was_never_written_is_named(
    tmp_path: Path, name: str, write: Callable[[Path], None], place: int, told: int
) -> None:
    write(tmp_path / name)
    overwrite(tmp_path / name, place, struct.pack("<i", told))
    said = refusal(tmp_path / name)
    assert f"names {told} frames, but the file has room for 5" in said and "--allow-truncated" in said
    np.testing.assert_array_equal(read(tmp_path / name, allow_truncated=True)[0], COUNTS)


def test_images_of_a_series_that_its_header_does_not_count_are_told(tmp_path: Path) -> None:
    path = tmp_path / "a.ser"
    write_ser(path, COUNTS)
    overwrite(path, 18, struct.pack("<i", 3))
    data, info = read(path)
    assert len(data) == 3 and "2 images more" in info.warnings[0]
    overwrite(path, 18, struct.pack("<i", 0))
    assert "room for 5" in refusal(path)
    np.testing.assert_array_equal(read(path, allow_truncated=True)[0], COUNTS)


def test_bytes_behind_all_that_the_table_of_a_series_names_are_told(tmp_path: Path) -> None:
    write_ser(tmp_path / "a.ser", COUNTS)
    append(tmp_path / "a.ser", 7000)
    data, info = read(tmp_path / "a.ser")
    np.testing.assert_array_equal(data, COUNTS)
    (warning,) = info.warnings
    assert "bytes behind its frames are not explained" in warning


@pytest.mark.parametrize(
    ("name", "write"),
    [
        ("a.mrc", lambda path: write_mrc(path, COUNTS, 6)),
        ("a.npy", lambda path: write_npy(path, COUNTS)),
        ("a.seq", lambda path: write_seq(path, COUNTS)),
        ("a.mib", lambda path: write_mib(path, COUNTS)),
    ],
)
def test_a_few_bytes_behind_the_frames_are_named(
    tmp_path: Path, name: str, write: Callable[[Path], None]
) -> None:
    write(tmp_path / name)
    append(tmp_path / name, 77)
    data, info = read(tmp_path / name)
    np.testing.assert_array_equal(data, COUNTS)
    assert info.warnings[-1].startswith("77 bytes behind its frames")


def test_frames_of_a_merlin_movie_that_its_hdr_file_does_not_count_are_read_and_told(tmp_path: Path) -> None:
    write_mib(tmp_path / "a.mib", COUNTS, announced=3)
    data, info = read(tmp_path / "a.mib")
    np.testing.assert_array_equal(data, COUNTS)
    assert "names 3 frames, and 5 are there" in info.warnings[-1]


def test_a_pixel_block_that_is_larger_than_its_frames_is_told(tmp_path: Path) -> None:
    path = tmp_path / "a.dm4"
    write_dm(path, COUNTS, 4)
    sizes = [struct.pack("<I", n) for n in (20, 18, 5)]
    content = path.read_bytes()
    at = content.rindex(sizes[2], 0, content.index(b"ImageTags"))
    overwrite(path, at, struct.pack("<I", 3))
    data, info = read(path)
    np.testing.assert_array_equal(data, COUNTS[:3])
    assert "room for 2 more frames" in info.warnings[0]


def test_frames_that_are_not_where_their_header_puts_them_are_never_salvaged(tmp_path: Path) -> None:
    write_tvips(tmp_path / "a_000.tvips", COUNTS)
    overwrite(tmp_path / "a_000.tvips", 48, struct.pack("<i", 32))
    assert "second frame does not begin" in refusal(tmp_path / "a_000.tvips", allow_truncated=True)
    write_seq(tmp_path / "a.seq", COUNTS)
    overwrite(tmp_path / "a.seq", 580, struct.pack("<I", FRAME + 16))
    assert "second frame does not begin" in refusal(tmp_path / "a.seq", allow_truncated=True)


@pytest.mark.parametrize("version", [2, 3])
def test_files_beyond_the_shape_of_a_zarr_array_are_told(tmp_path: Path, version: int) -> None:
    write_zarr(tmp_path / "a.zarr", COUNTS, zarr_format=version)
    array = zarr.open_array(tmp_path / "a.zarr", mode="r+")
    kept = {
        p: p.read_bytes() for p in (tmp_path / "a.zarr").rglob("*") if p.is_file() and p.suffix != ".json"
    }
    array.resize((3, *SHAPE[1:]))
    for path, content in kept.items():
        if path.name not in (".zarray", ".zattrs"):
            path.write_bytes(content)
    data, info = read(tmp_path / "a.zarr")
    np.testing.assert_array_equal(data, COUNTS[:3])
    assert "4 files of its array lie beyond the shape" in info.warnings[0]


@pytest.mark.parametrize("strips", [None, 5])
@pytest.mark.parametrize("how", ["missing", "zero"])
def test_strips_without_byte_counts_are_found_by_their_size(
    tmp_path: Path, how: str, strips: int | None
) -> None:
    path = tmp_path / "a.tif"
    tifffile.imwrite(path, COUNTS, photometric="minisblack", metadata=None, rowsperstrip=strips)
    spoil_byte_counts(path, how)
    np.testing.assert_array_equal(read(path)[0], COUNTS)


def test_compressed_strips_without_byte_counts_are_refused_by_name(tmp_path: Path) -> None:
    tifffile.imwrite(tmp_path / "a.tif", COUNTS, photometric="minisblack", metadata=None, compression="lzw")
    spoil_byte_counts(tmp_path / "a.tif", "missing")
    assert "StripByteCounts" in refusal(tmp_path / "a.tif")


def spoil_byte_counts(path: Path, how: str) -> None:
    """Make the tag StripByteCounts of every page another one, or its values 0."""
    with tifffile.TiffFile(path) as file:
        tags = [page.tags["StripByteCounts"] for page in file.pages]
    for tag in tags:
        if how == "missing":
            overwrite(path, tag.offset, struct.pack("<H", 65_000))
        else:
            overwrite(path, tag.valueoffset, bytes(tag.valuebytecount))
