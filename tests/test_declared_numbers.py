"""What a file declares about its numbers is applied, or the file is refused: in every format that can declare it."""

from __future__ import annotations

import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest
import tifffile
import xarray as xr
import zarr
from array_files import ask_forked, write_ncem, write_zarr
from numpy.typing import NDArray
from raw_files import movie, write_dm, write_folder, write_mrc
from tdenoise_pipeline.errors import InputError
from tdenoise_pipeline.readers import MovieInfo, hdf5, open_raw
from tdenoise_pipeline.readers.declared import Declared, packed

SHAPE = (5, 18, 20)
NM = ("nm", 0.02)


@pytest.fixture(autouse=True)
def quick_child(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(hdf5, "ask", ask_forked)


def read(path: Path, **options: Any) -> tuple[NDArray[Any], MovieInfo]:
    with open_raw(path, **options) as reader:
        out = np.empty(reader.info.shape, reader.info.dtype)
        reader.read(0, len(out), out)
        part = np.empty((2, *out.shape[1:]), out.dtype)
        reader.read(2, 4, part)
        np.testing.assert_array_equal(part, out[2:4])
        return out, reader.info


def write_netcdf(path: Path, data: NDArray[Any], **attributes: Any) -> None:
    """As netCDF's library writes it: attributes are arrays of one value."""
    with h5py.File(path, "w") as file:
        array = file.create_dataset("counts", data=data, chunks=(1, *data.shape[1:]), compression="gzip")
        for name, value in attributes.items():
            array.attrs[name] = value if isinstance(value, str) else np.atleast_1d(value)


def write_ncem_packed(path: Path, data: NDArray[Any], **attributes: Any) -> None:
    write_ncem(path, data, [("time", "s", 0.1), ("y", *NM), ("x", *NM)])
    with h5py.File(path, "r+") as file:
        file["data/movie/data"].attrs.update(attributes)


def write_zarr_packed(version: int) -> Callable[..., None]:
    def write(path: Path, data: NDArray[Any], **attributes: Any) -> None:
        write_zarr(path, data, zarr_format=version)
        zarr.open_array(path, mode="r+").attrs.update(attributes)

    return write


@pytest.mark.parametrize(
    ("name", "write"),
    [
        ("a.h5", write_netcdf),
        ("a.emd", write_ncem_packed),
        ("v2.zarr", write_zarr_packed(2)),
        ("v3.zarr", write_zarr_packed(3)),
    ],
)
@pytest.mark.parametrize(
    ("dtype", "attributes", "gives"),
    [
        ("<i2", {"scale_factor": 1.5, "add_offset": 10.0}, "float32"),
        (">i2", {"scale_factor": np.float32(0.25)}, "float32"),
        ("<u2", {"add_offset": -32768}, "int16"),
        ("<u2", {"_FillValue": 7}, "float32"),
        ("<i4", {"missing_value": -9, "scale_factor": 0.5}, "float64"),
        ("<f4", {"_FillValue": -9999.0}, "float32"),
        ("<i2", {"_Unsigned": "true"}, "uint16"),
    ],
)
def test_packed_counts_are_those_that_xarray_gives(
    tmp_path: Path,
    name: str,
    write: Callable[..., None],
    dtype: str,
    attributes: dict[str, Any],
    gives: str,
) -> None:
    stored = movie(dtype, SHAPE)
    stored[1, 2, 3], stored[4, 5, 6] = 7 if dtype == "<u2" else -9, -9999 if dtype == "<f4" else 1
    told = {k: v.item() if isinstance(v, np.generic) and name != "a.h5" else v for k, v in attributes.items()}
    write(tmp_path / name, stored, **told)
    data, _ = read(tmp_path / name)
    expected = xr.conventions.decode_cf_variable("counts", xr.Variable(("t", "y", "x"), stored, attributes))
    assert data.dtype == gives
    np.testing.assert_allclose(data, expected.values, rtol=1e-5)
    assert np.isnan(data).sum() == np.isnan(expected.values.astype(float)).sum()


@pytest.mark.parametrize("version", [2, 3])
def test_a_fill_value_of_xarray_is_no_count(tmp_path: Path, version: int) -> None:
    counts = movie("<u1", SHAPE).astype("f4")
    counts[1, 2, 3] = np.nan
    xr.Dataset({"counts": (("t", "y", "x"), counts)}).to_zarr(
        tmp_path / "a.zarr",
        zarr_format=version,
        consolidated=False,
        encoding={"counts": {"dtype": "int16", "scale_factor": 0.5, "_FillValue": -7}},
    )
    np.testing.assert_array_equal(read(tmp_path / "a.zarr")[0], counts)


def test_a_fill_value_of_zero_stays_a_count_and_is_told(tmp_path: Path) -> None:
    counts = movie("<u1", SHAPE) // 100
    write_zarr(tmp_path / "a.zarr", counts, zarr_format=2)
    zarr.open_array(tmp_path / "a.zarr", mode="r+").attrs["_ARRAY_DIMENSIONS"] = ["t", "y", "x"]
    data, info = read(tmp_path / "a.zarr")
    np.testing.assert_array_equal(data, counts)
    assert "a stored 0 is a count of 0" in info.warnings[0]


@pytest.mark.parametrize(
    "attributes",
    [
        {"scale_factor": "many"},
        {"scale_factor": 0.0},
        {"add_offset": [1.0, 2.0]},
        {"add_offset": float("inf")},
    ],
)
def test_a_declaration_that_makes_no_sense_is_refused_by_name(
    tmp_path: Path, attributes: dict[str, Any]
) -> None:
    write_netcdf(tmp_path / "a.h5", movie(shape=SHAPE), **attributes)
    with pytest.raises(InputError, match=next(iter(attributes))):
        read(tmp_path / "a.h5")


def test_a_valid_range_is_told_and_values_outside_it_are_kept(tmp_path: Path) -> None:
    write_netcdf(tmp_path / "a.h5", movie(shape=SHAPE), valid_range=[0, 100])
    data, info = read(tmp_path / "a.h5")
    np.testing.assert_array_equal(data, movie(shape=SHAPE))
    assert "valid_range = [0, 100]" in info.warnings[0]


@pytest.mark.parametrize("beside", ["scaling_factor", "frames_scaling_factor"])
def test_the_scaling_factor_of_nexus_is_applied(tmp_path: Path, beside: str) -> None:
    stored = movie("<i2", SHAPE)
    with h5py.File(tmp_path / "a.nxs", "w") as file:
        group = file.create_group("entry/data")
        group.attrs.update({"NX_class": "NXdata", "signal": "frames"})
        group["frames"], group[beside] = stored, 0.5
    np.testing.assert_allclose(read(tmp_path / "a.nxs")[0], stored * 0.5)
    with h5py.File(tmp_path / "a.nxs", "r+") as file:
        file["entry/data/offset"] = 3.0
    with pytest.raises(InputError, match="does not define which comes first"):
        read(tmp_path / "a.nxs")


# TIFF


def write_imagej(path: Path, data: NDArray[Any], axes: str = "TYX", **entries: Any) -> None:
    tifffile.imwrite(path, data, imagej=True, metadata={"axes": axes, **entries})


@pytest.mark.parametrize("axes", ["TYX", "ZYX"])
def test_signed_counts_that_imagej_saved_are_what_they_were(tmp_path: Path, axes: str) -> None:
    counts = movie("<i2", SHAPE)
    write_imagej(
        tmp_path / "a.tif", (counts.astype("i4") + 32768).astype("u2"), axes, cf=0, c0=-32768.0, c1=1.0
    )
    data, _ = read(tmp_path / "a.tif")
    assert data.dtype == np.int16
    np.testing.assert_array_equal(data, counts)


@pytest.mark.parametrize(("dtype", "gives"), [("u1", "float32"), ("u2", "float32")])
def test_a_straight_line_of_imagej_is_applied(tmp_path: Path, dtype: str, gives: str) -> None:
    stored = movie(dtype, SHAPE)
    write_imagej(tmp_path / "a.tif", stored, cf=0, c0=-2.5, c1=0.125, vunit="electrons")
    data, _ = read(tmp_path / "a.tif")
    assert data.dtype == gives
    np.testing.assert_allclose(data, stored * 0.125 - 2.5, rtol=1e-6, atol=1e-4)


def test_imagej_without_a_calibration_changes_nothing(tmp_path: Path) -> None:
    stored = movie(shape=SHAPE)
    for entries in ({"cf": 20}, {"cf": 0, "c0": 0.0, "c1": 1.0}, {"cf": 0}):
        write_imagej(tmp_path / "a.tif", stored, **entries)
        data, info = read(tmp_path / "a.tif")
        assert data.dtype == stored.dtype and "stored_numbers" not in info.metadata
        np.testing.assert_array_equal(data, stored)


@pytest.mark.parametrize(
    "entries",
    [
        {"cf": 1, "c0": 0.0, "c1": 1.0, "c2": 0.1},
        {"cf": 21},
        {"cf": 0, "c0": 3.0, "c1": 0.0},
        {"cf": "odd", "c0": 0.0, "c1": 1.0},
    ],
)
def test_another_function_of_imagej_is_refused_by_name(tmp_path: Path, entries: dict[str, Any]) -> None:
    write_imagej(tmp_path / "a.tif", movie(shape=SHAPE), **entries)
    with pytest.raises(InputError, match=f"not a straight line .cf={entries['cf']}"):
        read(tmp_path / "a.tif")


def test_imagej_passes_over_a_calibration_of_floats_and_so_do_we(tmp_path: Path) -> None:
    stored = movie("f4", SHAPE)
    write_imagej(tmp_path / "a.tif", stored, cf=0, c0=1.0, c1=2.0)
    data, info = read(tmp_path / "a.tif")
    np.testing.assert_array_equal(data, stored)
    assert "is not applied" in info.warnings[0]


def test_frames_in_files_of_their_own_are_calibrated_one_by_one(tmp_path: Path) -> None:
    counts = movie("<i2", SHAPE)
    (tmp_path / "f").mkdir()
    for number, frame in enumerate((counts.astype("i4") + 32768).astype("u2")):
        tifffile.imwrite(
            tmp_path / f"f/frame_{number}.tif",
            frame,
            imagej=True,
            metadata={"cf": 0, "c0": -32768.0, "c1": 1.0},
        )
    np.testing.assert_array_equal(read(tmp_path / "f")[0], counts)
    write_folder(tmp_path / "f", (counts[:1].astype("i4") + 32768).astype("u2"))  # one without a calibration
    with pytest.raises(InputError, match="are alike"):
        read(tmp_path / "f")


def test_the_tags_of_gdal_are_applied(tmp_path: Path) -> None:
    stored = movie("<u2", SHAPE)
    stored[1, 2, 3] = 9
    scale = '<GDALMetadata><Item name="SCALE" sample="0" role="scale">0.5</Item></GDALMetadata>'
    tags = [(42112, "s", 0, scale, True), (42113, "s", 0, "9", True)]
    tifffile.imwrite(tmp_path / "a.tif", stored, photometric="minisblack", extratags=tags)
    data, _ = read(tmp_path / "a.tif")
    assert np.isnan(data[1, 2, 3]) and data[0, 0, 0] == stored[0, 0, 0] * 0.5


@pytest.mark.parametrize("compression", [None, "zlib"])
def test_numbers_of_a_tiff_file_in_which_0_is_white_are_as_stored_and_told(
    tmp_path: Path, compression: str | None
) -> None:
    stored = movie("<u2", SHAPE)
    tifffile.imwrite(tmp_path / "a.tif", stored, photometric="miniswhite", compression=compression)
    data, info = read(tmp_path / "a.tif")
    np.testing.assert_array_equal(data, stored)
    assert "0 is white" in info.warnings[0] and len(info.warnings) == 1


# MRC


def imod(path: Path, flags: int, label: str = "", order: str = "<") -> None:
    """IMOD's stamp and flags, and a label, in the header of an MRC file."""
    header = bytearray(path.read_bytes())
    header[152:160] = (b"IMOD" if order == "<" else b"DOMI") + struct.pack(f"{order}i", flags)
    if label:
        header[220:304] = struct.pack(f"{order}i", 1) + label.encode().ljust(80)
    path.write_bytes(header)


@pytest.mark.parametrize("order", ["<", ">"])
@pytest.mark.parametrize(
    ("flags", "label"), [(16, ""), (24, ""), (0, "SerialEMCCD: Dose frac. image, 4 bits packed  r/f 0")]
)
def test_two_pixels_in_a_byte_are_two_pixels(tmp_path: Path, order: str, flags: int, label: str) -> None:
    counts = movie("u1", SHAPE) & 15
    both = counts[:, :, 0::2] | counts[:, :, 1::2] << 4
    write_mrc(tmp_path / "a.mrc", both, 0)
    if order == ">":
        content = (tmp_path / "a.mrc").read_bytes()
        words = np.frombuffer(content[:96], "<i4").byteswap().tobytes()
        (tmp_path / "a.mrc").write_bytes(words + content[96:212] + b"\x11\x11" + content[214:])
    imod(tmp_path / "a.mrc", flags, label, order)
    data, info = read(tmp_path / "a.mrc")
    np.testing.assert_array_equal(data, counts)
    assert info.warnings == () and info.pixel_size_nm == (0.2, 0.2)


def test_packed_pixels_that_are_said_to_be_signed_are_refused(tmp_path: Path) -> None:
    write_mrc(tmp_path / "a.mrc", movie("u1", SHAPE), 0)
    imod(tmp_path / "a.mrc", 17)
    with pytest.raises(InputError, match="signed"):
        read(tmp_path / "a.mrc")


def test_bytes_of_imod_are_signed_only_where_it_says_so(tmp_path: Path) -> None:
    stored = movie("i1", SHAPE)
    for flags, dtype in ((0, "u1"), (1, "i1"), (8, "u1"), (9, "i1")):
        write_mrc(tmp_path / "a.mrc", stored, 0)
        imod(tmp_path / "a.mrc", flags)
        np.testing.assert_array_equal(read(tmp_path / "a.mrc")[0], stored.view(dtype))


@pytest.mark.parametrize(
    ("lowest", "highest"), [(0, 255), (-128, 127), (0, 0), (0, 127), (3, 200), (-3, 200)]
)
def test_bytes_without_a_stamp_are_unsigned_where_the_range_in_their_header_is(
    tmp_path: Path, lowest: float, highest: float
) -> None:
    stored, unsigned = movie("i1", SHAPE), lowest >= 0 and highest > 127
    write_mrc(tmp_path / "a.mrc", stored, 0)
    header = bytearray((tmp_path / "a.mrc").read_bytes())
    header[76:84] = struct.pack("<2f", lowest, highest)
    (tmp_path / "a.mrc").write_bytes(header)
    data, info = read(tmp_path / "a.mrc")
    np.testing.assert_array_equal(data, stored.view("u1") if unsigned else stored)
    assert ["as unsigned" in said for said in info.warnings] == [True] * unsigned


def test_a_label_of_packed_bytes_among_others_is_told(tmp_path: Path) -> None:
    write_mrc(tmp_path / "a.mrc", movie("u1", SHAPE), 0)
    imod(tmp_path / "a.mrc", 0, "SerialEMCCD: Dose frac. image, 4 bits packed  r/f 0")
    content = (tmp_path / "a.mrc").read_bytes()
    (tmp_path / "a.mrc").write_bytes(content[:220] + struct.pack("<i", 2) + content[224:])
    data, info = read(tmp_path / "a.mrc")
    assert data.shape == SHAPE and "Check that its width" in info.warnings[0]


@pytest.mark.parametrize("kind", ["12 of 16 bits", "shifted", "bfloat16", "excess"])
@pytest.mark.parametrize("chunks", [None, (1, 18, 20)])
def test_numbers_that_are_not_all_of_their_bytes_are_refused(
    tmp_path: Path, kind: str, chunks: tuple[int, ...] | None
) -> None:
    if kind in ("12 of 16 bits", "shifted"):
        stored = h5py.h5t.STD_U16LE.copy()
        stored.set_precision(12)
        stored.set_offset(4 if kind == "shifted" else 0)
    else:
        stored = h5py.h5t.IEEE_F32LE.copy()
        if kind == "bfloat16":
            stored.set_fields(15, 7, 8, 0, 7)
            stored.set_size(2)
        stored.set_ebias(127 if kind == "bfloat16" else 100)
    settings = h5py.h5p.create(h5py.h5p.DATASET_CREATE)
    if chunks:
        settings.set_chunk(chunks)
    counts = movie("<u2", SHAPE) & 7
    with h5py.File(tmp_path / "a.h5", "w") as file:
        array = h5py.h5d.create(file.id, b"frames", stored, h5py.h5s.create_simple(SHAPE), settings)
        array.write(
            h5py.h5s.ALL, h5py.h5s.ALL, counts if kind in ("12 of 16 bits", "shifted") else counts * 1.0
        )
    with pytest.raises(InputError, match="store it again as plain numbers"):
        read(tmp_path / "a.h5")


def test_packed_bytes_in_a_tiff_file_of_serialem_are_refused(tmp_path: Path) -> None:
    tifffile.imwrite(
        tmp_path / "a.tif",
        movie("u1", SHAPE),
        photometric="minisblack",
        description="SerialEMCCD: Dose frac. image, 4 bits packed  r/f 0",
        metadata=None,
    )
    with pytest.raises(InputError, match="two pixels of 4 bits"):
        read(tmp_path / "a.tif")


def test_what_is_a_unit_and_no_part_of_the_counts_is_told(tmp_path: Path) -> None:
    write_mrc(tmp_path / "a.mrc", movie(shape=SHAPE), 6)
    imod(tmp_path / "a.mrc", 0, "SerialEMCCD: Dose frac. image, scaled by 16.00  r/f 0")
    assert "--counts-per-electron 16" in read(tmp_path / "a.mrc")[1].warnings[0]
    tags = [(65009, "d", 1, 0.5, False), (65022, "s", 0, "e-", False), (65025, "d", 1, 0.1, False)]
    for name, options in (
        ("a.tif", {"metadata": None}),
        ("b.tif", {"imagej": True, "metadata": {"axes": "TYX"}}),
    ):
        options |= {} if "imagej" in options else {"photometric": "minisblack"}
        tifffile.imwrite(
            tmp_path / name, movie(shape=SHAPE), extratags=tags, **options
        )  # DigitalMicrograph's
        assert "--counts-per-electron 10" in read(tmp_path / name)[1].warnings[0]
    write_dm(tmp_path / "a.dm4", movie(shape=SHAPE), 4, brightness=(0.0, 0.125, "e-"))
    data, info = read(tmp_path / "a.dm4")
    np.testing.assert_array_equal(data, movie(shape=SHAPE))
    assert "number x 0.125 e-, which is not applied" in info.warnings[0]
    assert "--counts-per-electron 8" in info.warnings[0]
    write_dm(tmp_path / "b.dm4", movie(shape=SHAPE), 4, brightness=(0.0, 1.0, "e-"))
    assert read(tmp_path / "b.dm4")[1].warnings == ()


# The arithmetic


@pytest.mark.parametrize(
    ("dtype", "declared", "gives"),
    [
        ("u2", Declared(offset=-32768), "i2"),
        ("u1", Declared(factor=-2, offset=5), "i2"),
        ("u4", Declared(offset=-70_000), "i8"),
        ("i4", Declared(other_sign=True), "u4"),
        ("i8", Declared(offset=1), "f8"),
        ("i1", Declared(other_sign=True, no_value=(-1,)), "f4"),
        ("u1", Declared(no_value=(-9999.0, float("nan"), 0.5)), "u1"),  # none of which can be there
    ],
)
def test_whole_numbers_stay_whole_in_a_type_that_holds_them_all(
    dtype: str, declared: Declared, gives: str
) -> None:
    stored = movie(dtype, (3, 4, 5))
    assert declared.dtype(stored.dtype) == gives
    out = np.empty(stored.shape, gives)
    declared.apply(stored, out)
    true = stored.view(dtype.translate(str.maketrans("iu", "ui"))) if declared.other_sign else stored
    expected = true.astype("f8") * declared.factor + declared.offset
    np.testing.assert_allclose(np.where(np.isnan(out), expected, out), expected)
    assert declared.changes(stored.dtype) == (declared.no_value[:1] != (-9999.0,))


def test_a_fill_value_as_xarray_writes_floats_to_zarr_is_understood() -> None:
    assert (
        packed(Path("a"), "b", np.dtype("f8"), {"_FillValue": "AAAAAAAA+H8="}).changes(np.dtype("f8"))
        is False
    )
    assert packed(Path("a"), "b", np.dtype("f8"), {"_FillValue": "AAAAAICHw8A="}).no_value == (-9999.0,)


def test_what_data_files_declare_is_applied_in_the_movie_that_their_master_makes_of_them(
    tmp_path: Path,
) -> None:
    stored = movie("u2", (4, 18, 20))
    with h5py.File(tmp_path / "run_master.h5", "w") as master:
        for number, at in ((1, 0), (2, 3)):
            with h5py.File(tmp_path / f"run_data_{number:06d}.h5", "w") as file:
                array = file.create_dataset("entry/data/data", data=stored[at : at + 3], chunks=(1, 18, 20))
                array.attrs.update({"image_nr_low": at + 1, "image_nr_high": min(at + 3, 4)})
                array.attrs["scale_factor"] = np.float32(0.5)
            name = f"entry/data/data_{number:06d}"
            master[name] = h5py.ExternalLink(f"run_data_{number:06d}.h5", "entry/data/data")
    out, info = read(tmp_path / "run_master.h5")
    np.testing.assert_array_equal(out, stored * np.float32(0.5))
    assert info.metadata["stored_numbers"]["factor"] == 0.5


def test_the_chosen_channel_of_a_hyperstack_is_calibrated(tmp_path: Path) -> None:
    values = movie("i2", (5, 2, 18, 20))
    stored = (values.astype("i4") + 32768).astype("u2")
    told = {"cf": 0, "c0": -32768.0, "c1": 1.0, "axes": "TCYX"}
    tifffile.imwrite(tmp_path / "a.tif", stored, imagej=True, metadata=told)
    out, _ = read(tmp_path / "a.tif", channel=1)
    assert out.dtype == np.int16
    np.testing.assert_array_equal(out, values[:, 1])


def test_a_tiff_that_does_not_say_what_its_numbers_are_is_read_with_a_warning(tmp_path: Path) -> None:
    path = tmp_path / "undefined.tif"
    data = (movie("<u2", SHAPE) // 2).astype(np.int16)
    tifffile.imwrite(path, data, photometric="minisblack", metadata=None)
    with tifffile.TiffFile(path) as tif:
        places = [page.tags["SampleFormat"].valueoffset for page in tif.pages]
    assert not read(path)[1].warnings
    with path.open("r+b") as file:
        for place in places:
            file.seek(place)
            file.write(struct.pack("<H", 4))
    found, info = read(path)
    np.testing.assert_array_equal(found, data)
    [warning] = info.warnings
    assert "SampleFormat 4" in warning and "uint16" in warning
