"""Export: what is written is read back by other programs, whole or not at all, and never over something else."""

from __future__ import annotations

import json
import os
import re
import signal
import struct
import subprocess
import sys
from collections.abc import Callable, Iterator
from fractions import Fraction
from pathlib import Path
from typing import Any

import h5netcdf
import h5py
import mrcfile
import numpy as np
import pytest
import tifffile
import xarray
from PIL import Image
from small import counts
from stores import denoised_store, movie_store
from tdenoise_pipeline.cli import main
from tdenoise_pipeline.errors import InputError, ResourceError, Stopped, UsageError
from tdenoise_pipeline.export import kinds, tiff, unfinished
from tdenoise_pipeline.export.export import describe_plan, export
from tdenoise_pipeline.export.values import Axis, Values
from tdenoise_pipeline.ingest.ingest import ingest
from tdenoise_pipeline.settings import showing
from tdenoise_pipeline.settings.config import ExportConfig, IngestConfig
from tdenoise_pipeline.settings.setting import SettingError
from tdenoise_pipeline.step_control import Control

SHAPE = (21, 36, 50)
FRAME_TIME_S, PIXEL_NM = 0.0133, 0.014
DATA = ("a.npy", "a.tif", "a.imagej.tif", "a.mrc", "a.hspy", "a.nc")
PICTURES = ("a.mp4", "a.gif", "a.webp", "a.png")
SLOW_PICTURES = ("a.webp", "a.png")  # the code is that of an MP4


def make_run(folder: Path, shape: tuple[int, int, int] = SHAPE, **calibration: Any) -> Path:
    """The folder of a run, with a movie store and what stands for its denoised store."""
    folder.mkdir(exist_ok=True)
    movie = movie_store(folder / "movie.zarr", counts(shape), **calibration)
    t, y, x = np.ogrid[: shape[0], : shape[1], : shape[2]]
    smooth = 2 + 0.6 * np.sin((x + 0.2 * t) / 3.0) * np.cos(y / 4.0)
    denoised_store(folder / "denoised.zarr", movie, smooth)
    return folder


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_run(tmp_path_factory.mktemp("run"), frame_time=FRAME_TIME_S, pixel_size=PIXEL_NM)


@pytest.fixture(scope="module")
def uncalibrated(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_run(tmp_path_factory.mktemp("plain"))


def stored(run: Path, name: str = "denoised") -> np.ndarray:
    """What a store of a run holds, read by xarray."""
    path = run / ("denoised.zarr" if name == "denoised" else "movie.zarr")
    return xarray.open_zarr(path)[name].values


def write(run: Path, output: Path, **settings: Any) -> dict[str, Any]:
    return export(ExportConfig(store=run, output=output, **settings))


def imagej(file: Path) -> tuple[np.memmap, dict[str, str], tuple[float, float]]:
    """Frames, description and pixels per unit of a TIFF, read as ImageJ does: by its first directory."""
    with file.open("rb") as handle:
        order = {b"II": "<", b"MM": ">"}[handle.read(2)]
        magic, at = struct.unpack(f"{order}HI", handle.read(6))
        assert magic == 42  # ImageJ knows no BigTIFF
        handle.seek(at)
        (n_tags,) = struct.unpack(f"{order}H", handle.read(2))
        tags = {}
        for _ in range(n_tags):
            tag, kind, count, value = struct.unpack(f"{order}HHI4s", handle.read(12))
            short = kind == 3 and count == 1
            tags[tag] = count, struct.unpack(f"{order}{'H' if short else 'I'}", value[: 2 if short else 4])[0]

        def text(tag: int) -> str:
            handle.seek(tags[tag][1])
            return handle.read(tags[tag][0]).decode().rstrip("\0")

        def ratio(tag: int) -> float:
            handle.seek(tags[tag][1])
            above, below = struct.unpack(f"{order}ii", handle.read(8))  # with a sign: Java has no other
            return above / below

        lines = text(270).splitlines()
        scale = ratio(282), ratio(283)
    assert lines[0].startswith("ImageJ=")
    assert tags[273][0] == 1 and tags[259][1] == 1  # one strip, not compressed
    described = dict(line.split("=", 1) for line in lines)
    kind = {(8, 1): "u1", (16, 1): "u2", (16, 2): "i2", (32, 3): "f4"}[tags[258][1], tags.get(339, (1, 1))[1]]
    shape = (int(described["images"]), tags[257][1], tags[256][1])
    return np.memmap(file, f"{order}{kind}", "r", tags[273][1], shape), described, scale


def hyperspy(file: Path) -> np.ndarray:
    """The data of a HyperSpy file by the layout that HyperSpy documents."""
    with h5py.File(file) as opened:
        assert opened.attrs["file_format"] == "HyperSpy"
        (signal,) = opened["Experiments"].values()
        assert {"metadata", "original_metadata", "axis-0", "axis-1", "axis-2"} <= set(signal)
        data: np.ndarray = signal["data"][:]
    return data


READ: dict[str, Callable[[Path], np.ndarray]] = {
    "a.npy": np.load,
    "a.tif": tifffile.imread,
    "a.imagej.tif": lambda file: np.array(imagej(file)[0]),
    "a.mrc": lambda file: mrcfile.read(file),
    "a.hspy": hyperspy,
    "a.nc": lambda file: next(iter(xarray.load_dataset(file, engine="h5netcdf").data_vars.values())).values,
}


@pytest.mark.parametrize("name", DATA)
def test_data_hold_the_values_of_the_store(name: str, run: Path, tmp_path: Path) -> None:
    told = write(run, tmp_path / name)
    found = READ[name](tmp_path / name)
    assert np.array_equal(found, stored(run))
    assert found.dtype == np.float32 and told["dtype"] == "float32"
    assert told["bytes"] == (tmp_path / name).stat().st_size
    assert [p.name for p in tmp_path.iterdir()] == [name]


@pytest.mark.parametrize("name", DATA)
def test_data_of_a_movie_store_are_its_counts(name: str, run: Path, tmp_path: Path) -> None:
    write(run / "movie.zarr", tmp_path / name)
    found = READ[name](tmp_path / name)
    assert np.array_equal(found, stored(run, "counts"))
    # MRC has no unsigned bytes; what it has instead holds them all.
    assert found.dtype == (np.int16 if name == "a.mrc" else np.uint8)


@pytest.mark.parametrize("name", [*DATA, *PICTURES])
def test_the_same_export_gives_the_same_bytes(name: str, run: Path, tmp_path: Path) -> None:
    several = name == "a.png"
    for place in ("one", "two"):
        write(run, tmp_path / place / name, **({"columns": 5} if several else {}))
    assert (tmp_path / "one" / name).read_bytes() == (tmp_path / "two" / name).read_bytes()


def test_a_part_keeps_its_place_in_time_and_space(run: Path, tmp_path: Path) -> None:
    write(run, tmp_path / "a.nc", frames="5:12", roi="4:20,10:")
    found = xarray.open_dataset(tmp_path / "a.nc")["denoised"]
    whole = xarray.open_zarr(run / "denoised.zarr")["denoised"].isel(
        t=slice(5, 12), y=slice(4, 20), x=slice(10, None)
    )
    assert np.array_equal(found.values, whole.values)
    for axis in "tyx":
        np.testing.assert_allclose(found[axis], whole[axis], rtol=1e-12)
    assert found.t.attrs["units"] == "s" and found.y.attrs["units"] == found.x.attrs["units"] == "nm"


@pytest.mark.parametrize("panel", ["mean9", "difference"])
def test_panels_that_are_computed_are_written_unscaled(panel: str, run: Path, tmp_path: Path) -> None:
    write(run, tmp_path / "a.npy", panels=panel)
    raw, smooth = stored(run, "counts").astype(np.float32), stored(run)
    expected = raw - smooth
    if panel == "mean9":
        expected = np.stack([raw[max(0, k - 4) : k + 5].mean(axis=0) for k in range(len(raw))])
    np.testing.assert_allclose(np.load(tmp_path / "a.npy"), expected, rtol=1e-6)


def test_mean9_leaves_out_frames_that_were_not_recorded(tmp_path: Path) -> None:
    frames = np.random.default_rng(0).poisson(30, (40, 32, 32)).astype(np.uint8)
    frames[20] = 0
    movie_store(tmp_path / "movie.zarr", frames)
    write(tmp_path / "movie.zarr", tmp_path / "a.npy", panels="mean9")
    found = np.load(tmp_path / "a.npy")
    assert np.all(np.abs(found.mean(axis=(1, 2)) - 30) < 0.5)
    around = np.delete(frames[16:25], 4, axis=0).astype(float)
    np.testing.assert_allclose(found[20], around.mean(axis=0), rtol=1e-6)


def test_a_raw_file_whose_name_is_no_text_can_be_exported(tmp_path: Path) -> None:
    raw = Path(os.fsdecode(os.fsencode(tmp_path) + b"/M\xfcnchen.npy"))
    np.save(raw, counts((6, 16, 16)))
    ingest(IngestConfig(raw=raw, output=tmp_path / "movie.zarr"))
    for name in (*DATA, *PICTURES):
        write(tmp_path / "movie.zarr", tmp_path / "out" / name, **({"columns": 3} if name == "a.png" else {}))
        assert (tmp_path / "out" / name).stat().st_size > 0


def test_mean9_of_a_part_averages_frames_outside_of_it(run: Path, tmp_path: Path) -> None:
    write(run, tmp_path / "whole.npy", panels="mean9")
    write(run, tmp_path / "part.npy", panels="mean9", frames="6:9", roi="3:11,5:9")
    assert np.array_equal(np.load(tmp_path / "part.npy"), np.load(tmp_path / "whole.npy")[6:9, 3:11, 5:9])


# ---- what files say of themselves --------------------------------------------------------------------------


def test_tiff_is_an_ome_bigtiff_with_size_of_pixels_and_time_of_frames(run: Path, tmp_path: Path) -> None:
    write(run, tmp_path / "a.tif")
    with tifffile.TiffFile(tmp_path / "a.tif") as file:
        assert file.is_bigtiff and file.is_ome and len(file.pages) == SHAPE[0]
        assert file.series[0].axes == "TYX"
        pixels = tifffile.xml2dict(file.ome_metadata)["OME"]["Image"]["Pixels"]
        up, across = (file.pages[0].tags[name].value for name in ("YResolution", "XResolution"))
    assert (pixels["PhysicalSizeX"], pixels["PhysicalSizeXUnit"]) == (
        pytest.approx(PIXEL_NM, rel=1e-12),
        "nm",
    )
    assert (pixels["TimeIncrement"], pixels["TimeIncrementUnit"]) == (pytest.approx(FRAME_TIME_S), "s")
    assert (pixels["SizeT"], pixels["SizeZ"]) == (SHAPE[0], 1)
    assert Fraction(*up) == Fraction(*across) == pytest.approx(1e7 / PIXEL_NM)  # per centimetre


def test_imagej_finds_size_of_pixels_and_time_of_frames(run: Path, tmp_path: Path) -> None:
    write(run, tmp_path / "a.imagej.tif")
    _, described, scale = imagej(tmp_path / "a.imagej.tif")
    assert described["frames"] == str(SHAPE[0]) and described["unit"] == "nm"
    assert 1 / scale[0] == pytest.approx(PIXEL_NM) and 1 / scale[1] == pytest.approx(PIXEL_NM)
    assert float(described["finterval"]) == pytest.approx(FRAME_TIME_S)


def test_mrc_is_valid_with_size_of_pixels_and_statistics(run: Path, tmp_path: Path) -> None:
    write(run, tmp_path / "a.mrc")
    assert mrcfile.validate(tmp_path / "a.mrc")
    expected = stored(run).astype(np.float64)
    with mrcfile.open(tmp_path / "a.mrc") as file:
        assert file.is_image_stack() and file.data.shape == SHAPE
        assert file.voxel_size.x == file.voxel_size.y == pytest.approx(10 * PIXEL_NM)  # angstrom
        header = file.header
        assert (header.dmin, header.dmax) == (expected.min().astype("f4"), expected.max().astype("f4"))
        assert header.dmean == pytest.approx(expected.mean()) and header.rms == pytest.approx(expected.std())
        labels = b"\n".join(header.label[: header.nlabl]).decode()
    assert "frame time 0.0133 s" in labels and "20" + "26" not in labels.split("raw movie")[0]


def test_hspy_has_axes_and_units(run: Path, tmp_path: Path) -> None:
    write(run, tmp_path / "a.hspy", frames="3:")
    with h5py.File(tmp_path / "a.hspy") as file:
        (signal,) = file["Experiments"].values()
        axes = [dict(signal[f"axis-{k}"].attrs) for k in range(3)]
    assert [a["name"] for a in axes] == ["time", "y", "x"]
    assert [a["units"] for a in axes] == ["s", "nm", "nm"]
    assert [a["scale"] for a in axes] == pytest.approx([FRAME_TIME_S, PIXEL_NM, PIXEL_NM])
    assert [bool(a["navigate"]) for a in axes] == [True, False, False]
    assert axes[0]["offset"] == pytest.approx(3 * FRAME_TIME_S)


def test_hyperspy_opens_it(run: Path, tmp_path: Path) -> None:
    api = pytest.importorskip(
        "hyperspy.api", reason="HyperSpy is under the GPL, so tdenoise does not depend on it"
    )
    write(run, tmp_path / "a.hspy")
    signal = api.load(tmp_path / "a.hspy")
    assert np.array_equal(signal.data, stored(run))
    assert signal.axes_manager.navigation_axes[0].units == "s"
    assert signal.axes_manager.signal_axes[0].scale == pytest.approx(PIXEL_NM)


def test_netcdf_follows_its_rules(run: Path, tmp_path: Path) -> None:
    write(run, tmp_path / "a.nc")
    # Without invalid_netcdf h5netcdf refuses what netCDF does not know.
    with h5netcdf.File(tmp_path / "a.nc", "r") as file:
        assert file.attrs["Conventions"].startswith("CF-1.")
        variable = file.variables["denoised"]
        assert variable.dimensions == ("t", "y", "x") and variable.attrs["units"] == "count"
        assert file.variables["t"].attrs["axis"] == "T"
        assert not any(d.isunlimited() for d in file.dimensions.values())


def test_an_unknown_calibration_is_not_made_up(uncalibrated: Path, tmp_path: Path) -> None:
    for name in DATA:
        write(uncalibrated, tmp_path / name)
    with tifffile.TiffFile(tmp_path / "a.tif") as file:
        pixels = tifffile.xml2dict(file.ome_metadata)["OME"]["Image"]["Pixels"]
    assert not [key for key in pixels if key.startswith(("PhysicalSize", "TimeIncrement"))]
    _, described, scale = imagej(tmp_path / "a.imagej.tif")
    assert not {"unit", "finterval"} & set(described) and scale == (1, 1)
    with mrcfile.open(tmp_path / "a.mrc") as file:
        assert file.voxel_size.x == 0
    with h5py.File(tmp_path / "a.hspy") as file:
        (signal,) = file["Experiments"].values()
        assert signal["axis-1"].attrs["units"] == "_None_"  # which HyperSpy reads as undefined
    found = xarray.open_dataset(tmp_path / "a.nc")
    assert found.t.attrs["units"] == "1" and found.x.values.tolist() == list(range(SHAPE[2]))


def test_a_single_frame_and_a_name_of_any_characters_pass(tmp_path: Path) -> None:
    movie = movie_store(tmp_path / "größe <&\"'> µ\n日本.zarr", counts((8, 16, 20)), pixel_size=0.1)
    for name in DATA:
        write(movie.path, tmp_path / name, frames="3:4")
        assert np.array_equal(READ[name](tmp_path / name).reshape(16, 20), movie.array[3]), name
    with tifffile.TiffFile(tmp_path / "a.tif") as file:
        image = tifffile.xml2dict(file.ome_metadata)["OME"]["Image"]
    assert image["Name"].startswith("größe <&\"'> µ") and image["Pixels"]["SizeT"] == 1
    assert xarray.open_dataset(tmp_path / "a.nc").attrs["raw_movie"] == "größe <&\"'> µ\n日本.npy"


# ---- more than 4 GB ----------------------------------------------------------------------------------------

LARGE = (1100, 1024, 1024)  # of float32: 4.6 GB


def large() -> Values:
    """A movie of more than 4 GB."""

    def frames(first: int) -> Iterator[Any]:
        raise AssertionError("only room is made for them")

    axes = (
        Axis("t", LARGE[0], 0.02, 0, "s"),
        Axis("y", LARGE[1], 0.05, 0, "nm"),
        Axis("x", LARGE[2], 0.05, 0, "nm"),
    )
    return Values("denoised", "large", LARGE, np.dtype("f4"), "count", axes, {"raw movie": "large"}, frames)


@pytest.mark.parametrize("name", ["a.tif", "a.imagej.tif"])
def test_tiff_of_more_than_four_gigabytes_is_read_back(name: str, tmp_path: Path) -> None:
    file = tmp_path / name
    told = {k: np.random.default_rng(k).random(LARGE[1:], np.float32) for k in (0, 1023, 1024, LARGE[0] - 1)}
    begins = (tiff.begin_ome if name == "a.tif" else tiff.begin_imagej)(file, large())
    with file.open("r+b") as handle:  # the other frames are holes
        for k, frame in told.items():
            handle.seek(begins + k * frame.nbytes)
            handle.write(frame.data)
    size = file.stat()
    assert size.st_size > 2**32 and size.st_blocks * 512 < 2**26  # of holes
    if name == "a.imagej.tif":
        found, described, _ = imagej(file)
        assert described["frames"] == str(LARGE[0])
        for k, frame in told.items():
            assert np.array_equal(found[k], frame)
        assert not found[500].any()
    with tifffile.TiffFile(file) as opened:
        assert opened.series[0].shape == LARGE
        assert opened.is_bigtiff == (name == "a.tif")
        for k, frame in told.items():
            assert np.array_equal(opened.asarray(out="memmap")[k], frame)


# ---- pictures ----------------------------------------------------------------------------------------------


def drawn(run: Path, folder: Path, **settings: Any) -> list[np.ndarray]:
    """The pictures of a movie, which PNG keeps as they are."""
    told = write(run, folder / "drawn.png", **settings)
    return [np.array(Image.open(file)) for file in told["files"]]


def boxes(file: Path) -> list[str]:
    """The boxes of an MP4, in order."""
    data, at, found = file.read_bytes(), 0, []
    while at < len(data):
        size, name = struct.unpack(">I4s", data[at : at + 8])
        found.append(name.decode())
        at += size
    return found


def test_mp4_plays_everywhere(run: Path, tmp_path: Path) -> None:
    av = pytest.importorskip("av")
    told = write(run, tmp_path / "a.mp4", roi="0:35,0:49")
    with av.open(str(tmp_path / "a.mp4")) as file:
        (stream,) = file.streams
        context = stream.codec_context
        assert (context.name, context.pix_fmt, context.profile) == ("h264", "yuv420p", "High")
        assert stream.frames == SHAPE[0] and stream.average_rate == 25
        assert [context.height, context.width] == told["picture"] and not any(n % 2 for n in told["picture"])
        assert "raw movie: movie.npy" in file.metadata["comment"]
        pictures = list(file.decode(stream))
        assert [p.pts * p.time_base for p in pictures] == [Fraction(k, 25) for k in range(SHAPE[0])]
        shades = [p.to_ndarray(format="gray").astype(float) for p in pictures]
    assert boxes(tmp_path / "a.mp4").index("moov") < boxes(tmp_path / "a.mp4").index("mdat")
    for shade, picture in zip(shades, drawn(run, tmp_path, roi="0:35,0:49"), strict=True):
        height, width = picture.shape
        assert np.abs(shade[:height, :width] - picture).mean() < 6
        assert (shade[height:] > 250).all() and (
            shade[:, width:] > 250
        ).all()  # paper, where the size was odd


def test_gif_keeps_every_shade_and_the_time(run: Path, tmp_path: Path) -> None:
    pytest.importorskip("av")
    told = write(run, tmp_path / "a.gif", speed="30fps")
    assert told["frames_per_second"] == 30
    expected = drawn(run, tmp_path)
    lengths = []
    with Image.open(tmp_path / "a.gif") as file:
        assert getattr(file, "n_frames", 1) == SHAPE[0] and file.info["loop"] == 0
        for k, picture in enumerate(expected):
            file.seek(k)
            lengths.append(file.info["duration"])
            assert np.array_equal(np.array(file.convert("L")), picture)
    assert set(lengths) == {30, 40} and sum(lengths) == pytest.approx(1000 * SHAPE[0] / 30, abs=10)


def test_webp_shows_every_frame_for_its_time(run: Path, tmp_path: Path) -> None:
    pytest.importorskip("av")
    write(run, tmp_path / "a.webp", speed="20fps")
    with Image.open(tmp_path / "a.webp") as file:
        assert getattr(file, "n_frames", 1) == SHAPE[0] and file.info["loop"] == 0
        for k, picture in enumerate(drawn(run, tmp_path)):
            file.seek(k)
            shown = np.array(file.convert("L")).astype(float)
            assert file.info["duration"] == 50
            assert (
                abs(shown.mean() - picture.mean()) < 2 and np.corrcoef(shown.flat, picture.flat)[0, 1] > 0.97
            )


def test_speed_is_that_of_the_recording_where_it_is_asked_for(run: Path, tmp_path: Path) -> None:
    av = pytest.importorskip("av")
    write(run, tmp_path / "a.mp4", speed="0.5x")
    with av.open(str(tmp_path / "a.mp4")) as file:
        assert float(file.streams.video[0].average_rate) == pytest.approx(0.5 / FRAME_TIME_S, rel=1e-4)


@pytest.mark.parametrize(
    ("name", "speed", "says"),
    [
        (
            "a.mp4",
            "2x",
            r"that is 150\.4 frames per second, and MP4 \(H\.264\) plays at most 120\. Write --speed 1x",
        ),
        ("a.gif", "1x", r"GIF plays at most 50\. Write --speed 0\.5x"),
        ("a.gif", "60fps", r"Write --speed 50fps"),
        ("a.mp4", "1e-9fps", "less than one frame in a million seconds"),
    ],
)
def test_a_speed_that_no_player_shows_is_refused(
    name: str, speed: str, says: str, run: Path, tmp_path: Path
) -> None:
    pytest.importorskip("av")
    with pytest.raises(UsageError, match=says):
        write(run, tmp_path / name, speed=speed)


def test_real_time_needs_the_time_of_a_frame(uncalibrated: Path, tmp_path: Path) -> None:
    pytest.importorskip("av")
    with pytest.raises(UsageError, match="the time of a frame is not known"):
        write(uncalibrated, tmp_path / "a.mp4", speed="1x")


def test_numbered_pictures_have_the_numbers_of_their_frames(run: Path, tmp_path: Path) -> None:
    told = write(run, tmp_path / "a.png", frames="9:12")
    names = ["a-0009.png", "a-0010.png", "a-0011.png"]
    assert [Path(f).name for f in told["files"]] == names == sorted(p.name for p in tmp_path.iterdir())
    write(run, tmp_path / "b.png", frames="9:10")
    with Image.open(tmp_path / "a-0009.png") as one, Image.open(tmp_path / "b.png") as other:
        # Of a single frame the contrast is its own.
        assert one.size == other.size and one.mode == "L"


def test_a_montage_holds_all_frames_row_by_row(run: Path, tmp_path: Path) -> None:
    write(run, tmp_path / "m.png", columns=4)
    single = drawn(run, tmp_path)
    whole = np.array(Image.open(tmp_path / "m.png"))
    height, width = single[0].shape
    assert whole.shape == (6 * height, 4 * width)
    for k, picture in enumerate(single):
        row, column = divmod(k, 4)
        assert np.array_equal(
            whole[row * height : (row + 1) * height, column * width : (column + 1) * width], picture
        )
    assert (whole[5 * height :, width:] == 255).all()
    with pytest.raises(UsageError, match="there are only 21 frames"):
        write(run, tmp_path / "n.png", columns=22)


def test_a_montage_that_is_too_large_is_refused(
    run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("tdenoise_pipeline.export.png.MOST_PIXELS", 10**6)
    with pytest.raises(ResourceError, match="Choose fewer frames"):
        write(run, tmp_path / "m.png", columns=4)


def test_contrast_is_one_for_all_frames_and_told(run: Path, tmp_path: Path) -> None:
    told = write(run, tmp_path / "a.png", panels="raw,mean9,denoised,difference")
    limits = told["contrast"]
    assert limits["mean9"] == limits["denoised"] != limits["raw"]
    assert limits["difference"][0] == -limits["difference"][1]
    assert limits["denoised"] == pytest.approx(np.percentile(stored(run), [0.3, 99.7]), abs=0.02)
    told = write(run, tmp_path / "b.png", contrast="0,8", panels="raw,denoised,difference")
    assert told["contrast"] == {"raw": [0, 8], "denoised": [0, 8], "difference": [-4, 4]}


def test_a_picture_without_text_is_the_frame_itself(run: Path, tmp_path: Path) -> None:
    settings = {"panels": "raw", "scale_bar": False, "clock": False, "contrast": "0,255"}
    pictures = drawn(run, tmp_path, **settings)
    for picture, frame in zip(pictures, stored(run, "counts"), strict=True):
        assert np.array_equal(picture[::7, ::7], frame)  # each pixel is shown 7 x 7
        assert np.array_equal(picture, frame.repeat(7, axis=0).repeat(7, axis=1))


# ---- drift -------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def drifting(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, np.ndarray]:
    """A scene that moves down by a pixel in three frames and right by one in two, and where it is in each frame."""
    folder = tmp_path_factory.mktemp("drift")
    rng = np.random.default_rng(5)
    n, size = 48, 96
    scene = np.zeros((size + 16, size + 24))
    for y, x in rng.uniform(4, [size + 12, size + 20], (90, 2)):
        yy, xx = np.ogrid[: scene.shape[0], : scene.shape[1]]
        scene += np.exp(-((yy - y) ** 2 + (xx - x) ** 2) / 6)
    shifts = np.array([(k // 3, k // 2) for k in range(n)])
    clean = np.stack(
        [20 + 60 * scene[16 - dy : 16 - dy + size, 24 - dx : 24 - dx + size] for dy, dx in shifts]
    )
    movie = movie_store(folder / "movie.zarr", rng.poisson(clean).astype(np.uint16), pixel_size=0.1)
    assert movie.attributes["drift"] is not None
    denoised_store(folder / "denoised.zarr", movie, clean)
    return folder, shifts


def test_a_scene_that_is_followed_stands_still(drifting: tuple[Path, np.ndarray], tmp_path: Path) -> None:
    folder, _ = drifting
    write(folder, tmp_path / "still.npy", follow_drift=True)
    write(folder, tmp_path / "moving.npy")
    still, moving = np.load(tmp_path / "still.npy"), np.load(tmp_path / "moving.npy")
    assert np.ptp(moving, axis=0).mean() > 20
    # Whole pixels, measured every 8 frames: one pixel off now and then.
    assert np.ptp(still[::8], axis=0).mean() < 0.5 * np.ptp(moving[::8], axis=0).mean()
    n, height, width = still.shape
    assert n == 48 and height <= 96 - 14 and width <= 96 - 22  # what all frames show; nothing is filled in
    assert np.isfinite(still).all()


def test_what_is_followed_is_a_part_of_each_frame(drifting: tuple[Path, np.ndarray], tmp_path: Path) -> None:
    folder, _ = drifting
    write(folder, tmp_path / "still.npy", follow_drift=True, frames="10:30", roi="30:60,20:50")
    still, whole = np.load(tmp_path / "still.npy"), stored(folder)
    assert still.shape == (20, 30, 30)
    assert np.array_equal(still[0], whole[10, 30:60, 20:50])
    places = [(y, x) for y in range(26, 50) for x in range(16, 50)]
    for k in range(20):
        assert any(np.array_equal(still[k], whole[10 + k, y : y + 30, x : x + 30]) for y, x in places), k


def test_a_drift_that_leaves_nothing_is_refused(drifting: tuple[Path, np.ndarray], tmp_path: Path) -> None:
    folder, _ = drifting
    with pytest.raises(UsageError, match="no part of it is in all of these frames"):
        write(folder, tmp_path / "a.npy", follow_drift=True, roi="90:96,:")


def test_following_needs_a_measured_drift(run: Path, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="no drift was measured in movie.zarr"):
        write(run, tmp_path / "a.npy", follow_drift=True)


# ---- what is refused ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", [*DATA, *PICTURES])
def test_a_file_that_is_there_stays_unless_asked(name: str, run: Path, tmp_path: Path) -> None:
    one = {"frames": "3:4"} if name == "a.png" else {}
    (tmp_path / name).write_text("mine")
    with pytest.raises(UsageError, match=r"exists already\. Choose another name, or --force"):
        write(run, tmp_path / name, **one)
    assert (tmp_path / name).read_text() == "mine"
    write(run, tmp_path / name, force=True, **one)
    assert (tmp_path / name).read_bytes() != b"mine" and len(list(tmp_path.iterdir())) == 1


def test_any_of_several_pictures_that_is_there_stays(run: Path, tmp_path: Path) -> None:
    (tmp_path / "a-0007.png").write_text("mine")
    with pytest.raises(UsageError, match="a-0007.png: exists already"):
        write(run, tmp_path / "a.png")
    assert [p.name for p in tmp_path.iterdir()] == ["a-0007.png"]


def test_a_file_that_somebody_writes_meanwhile_stays(run: Path, tmp_path: Path) -> None:
    output = tmp_path / "a.npy"

    def meanwhile(what: str, done: int, total: int) -> None:
        output.write_text("mine")

    with pytest.raises(UsageError, match="was written meanwhile"):
        export(ExportConfig(store=run, output=output), Control(progress=meanwhile))
    assert output.read_text() == "mine" and len(list(tmp_path.iterdir())) == 1


@pytest.mark.parametrize(
    ("settings", "says"),
    [
        ({"output": "a.doc"}, "its name must end in .mp4"),
        ({"output": "a.npy", "panels": "raw,denoised"}, "holds the values of one panel"),
        ({"output": "a.tif", "speed": "25fps"}, "holds values and no pictures"),
        ({"output": "a.nc", "contrast": "0,3"}, "holds values and no pictures"),
        ({"output": "a.png", "speed": "25fps"}, "pictures do not play"),
        ({"output": "a.mp4", "columns": 3}, "it is for .png only"),
        ({"output": "a.mp4", "panels": "raw,raw"}, "named twice"),
        ({"output": "a.mp4", "panels": "row"}, "one of raw, mean9, denoised, difference"),
        ({"output": "a.mp4", "speed": "25"}, "frames per second such as 25fps"),
        ({"output": "a.mp4", "speed": "0fps"}, "frames per second such as 25fps"),
        ({"output": "a.mp4", "contrast": "5,3"}, "the second number must be larger"),
        ({"output": "a.mp4", "contrast": "5,103%"}, "two counts such as"),
        ({"output": "a.mp4", "contrast": "5%,103%"}, "percentiles lie in 0 to 100"),
    ],
)
def test_settings_without_a_meaning_are_refused(settings: dict[str, Any], says: str) -> None:
    with pytest.raises(SettingError, match=re.escape(says)):
        ExportConfig(store="a.zarr", **settings)


@pytest.mark.parametrize(
    ("store", "settings", "says"),
    [
        ("movie.zarr", {"panels": "denoised"}, "is a movie store, which has no denoised frames"),
        ("", {"frames": "5:50"}, "frames 5:50 are not all in the movie, which has 21 frames"),
        ("", {"roi": ":,40:60"}, "columns 40:60 are not all in the movie"),
    ],
)
def test_what_is_not_in_the_store_is_refused(
    store: str, settings: dict[str, Any], says: str, run: Path, tmp_path: Path
) -> None:
    with pytest.raises(UsageError, match=says):
        write(run / store, tmp_path / "a.npy", **settings)
    assert not list(tmp_path.iterdir())


def test_the_recording_is_needed_for_what_shows_it(run: Path, tmp_path: Path) -> None:
    alone = tmp_path / "alone.zarr"
    alone.symlink_to(run / "denoised.zarr")
    with pytest.raises(UsageError, match=r"need the movie store that it was made from. Give it with --movie"):
        write(alone, tmp_path / "a.npy", panels="raw")
    write(alone, tmp_path / "a.npy", panels="raw", movie=run / "movie.zarr")
    assert np.array_equal(np.load(tmp_path / "a.npy"), stored(run, "counts"))
    assert describe_plan(ExportConfig(store=alone, output=tmp_path / "b.png"))["panels"] == ["denoised"]
    assert describe_plan(ExportConfig(store=run, output=tmp_path / "b.png"))["panels"] == ["raw", "denoised"]


def test_another_recording_is_refused(run: Path, uncalibrated: Path, tmp_path: Path) -> None:
    movie_store(tmp_path / "other.zarr", counts(SHAPE, seed=1))
    with pytest.raises(InputError, match="was made from another movie"):
        write(run, tmp_path / "a.npy", panels="raw", movie=tmp_path / "other.zarr")


def test_nothing_is_written_into_a_store(run: Path) -> None:
    with pytest.raises(UsageError, match="lies in the store denoised.zarr"):
        write(run, run / "denoised.zarr" / "a.npy")


def test_a_type_that_a_file_cannot_hold_is_refused_and_not_rounded(tmp_path: Path) -> None:
    large_counts = counts((8, 16, 16)).astype(np.uint32) * 2**24
    movie_store(tmp_path / "movie.zarr", large_counts)
    for name in ("a.mrc", "a.imagej.tif"):
        with pytest.raises(
            UsageError, match=r"cannot hold uint32 without loss\. Choose another kind of file"
        ):
            write(tmp_path / "movie.zarr", tmp_path / name)
    for name in ("a.tif", "a.npy", "a.nc", "a.hspy"):
        write(tmp_path / "movie.zarr", tmp_path / name)
        assert np.array_equal(READ[name](tmp_path / name), large_counts)


def test_a_video_without_its_encoder_says_what_to_install(
    run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("tdenoise_pipeline.pictures.video.find_spec", lambda name: None)
    with pytest.raises(UsageError, match=r"MP4, GIF and WebP need the package av.*pip install '\.\[video\]'"):
        write(run, tmp_path / "a.mp4")
    write(run, tmp_path / "a.png", frames="0:2")


# ---- whole or not at all -----------------------------------------------------------------------------------


def stop_in(k: int) -> Control:
    """A control that is asked to stop when frame ``k`` is written."""
    control = Control()

    def progress(what: str, done: int, total: int) -> None:
        if done == k:
            control.stop.set()

    control.progress = progress
    return control


@pytest.mark.parametrize("name", [*DATA, *PICTURES])
@pytest.mark.parametrize("force", [False, True])
def test_an_export_that_is_stopped_leaves_nothing(name: str, force: bool, run: Path, tmp_path: Path) -> None:
    kept = tmp_path / ("a-0003.png" if name == "a.png" else name)
    if force:
        kept.write_text("before")
    with pytest.raises(Stopped, match="run the same command again"):
        export(ExportConfig(store=run, output=tmp_path / name, force=force), stop_in(SHAPE[0] // 2))
    assert [p.name for p in tmp_path.iterdir()] == ([kept.name] if force else [])
    if force:
        assert kept.read_text() == "before"


LAID_OUT = ("a.npy", "a.tif", "a.imagej.tif", "a.mrc", "a.png")


@pytest.mark.parametrize("name", LAID_OUT)
def test_an_export_that_was_stopped_is_gone_on_with(
    name: str, run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(unfinished, "BLOCK_BYTES", 3 * SHAPE[1] * SHAPE[2] * 4)
    monkeypatch.setattr(unfinished, "BLOCK_PICTURES", 3)
    whole, output = tmp_path / "whole" / name, tmp_path / name
    write(run, whole)
    for k in (8, 16):
        with pytest.raises(Stopped, match="run the same command again"):
            export(ExportConfig(store=run, output=output), stop_in(k))
        assert not output.exists() and not list(tmp_path.glob("*.png"))
    with pytest.raises(UsageError, match="started with other settings"):
        write(run, output, frames=":20")
    seen: list[int] = []
    export(
        ExportConfig(store=run, output=output), Control(progress=lambda what, done, total: seen.append(done))
    )
    assert seen[0] == 15, "five blocks of three frames were done"
    expected = {file.name: file.read_bytes() for file in whole.parent.iterdir()}
    assert {file.name: file.read_bytes() for file in tmp_path.iterdir() if file.is_file()} == expected
    assert {file.name for file in tmp_path.iterdir()} == {"whole", *expected}


def test_an_unfinished_export_whose_file_is_gone_begins_again(
    run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(unfinished, "BLOCK_BYTES", 1)
    with pytest.raises(Stopped):
        export(ExportConfig(store=run, output=tmp_path / "a.npy"), stop_in(9))
    (tmp_path / "a.npy-partial/a.npy").unlink()
    write(run, tmp_path / "a.npy")
    assert np.array_equal(np.load(tmp_path / "a.npy"), stored(run))


@pytest.mark.parametrize("name", [*DATA, *PICTURES])
def test_a_damaged_store_is_told_and_leaves_nothing(name: str, tmp_path: Path) -> None:
    folder = make_run(tmp_path / "run", (40, 24, 24))
    shard = folder / "denoised.zarr/denoised/c/1/0/0"
    data = bytearray(shard.read_bytes())
    data[len(data) // 3] ^= 4
    shard.write_bytes(data)
    (tmp_path / "out").mkdir()
    with pytest.raises(InputError, match=r"cannot be read|holds other data"):
        write(folder, tmp_path / "out" / name)
    assert not list((tmp_path / "out").iterdir())


@pytest.mark.chaos
@pytest.mark.parametrize(("number", "code"), [(signal.SIGTERM, 75), (signal.SIGKILL, -9)])
@pytest.mark.parametrize("name", ["a.tif", "a.mp4", "a.nc", "a.png"])
def test_a_killed_export_leaves_nothing_that_looks_finished(
    name: str, number: int, code: int, run: Path, tmp_path: Path
) -> None:
    # The process stops itself in the middle, so that nothing depends on how fast it is.
    program = (
        "import os, signal, sys\n"
        "from tdenoise_pipeline.cli import main, terminal\n"
        "from tdenoise_pipeline.cli import command_line\n"
        "class Kill(terminal.Silence):\n"
        "    def __call__(self, what, done, total):\n"
        f"        if done == 11: os.kill(os.getpid(), {int(number)})\n"
        "command_line.shown_progress = lambda options: Kill()\n"
        "sys.exit(main(sys.argv[1:]))"
    )
    output = tmp_path / "out" / name
    done = subprocess.run(
        [sys.executable, "-c", program, "export", str(run), "-o", str(output)],
        capture_output=True, text=True, timeout=300,
    )  # fmt: skip
    assert done.returncode == code, done.stderr
    left = [p.name for p in output.parent.iterdir()]
    hidden = {f"{name}-partial", ".tdenoise"} if name in LAID_OUT else set()
    assert all(p in hidden or (p.startswith(".") and p.endswith(".partial")) for p in left)
    assert left == [] or number == signal.SIGKILL
    write(run, output)  # with nothing in its way
    assert not hidden & {p.name for p in output.parent.iterdir()}


def test_a_file_that_cannot_grow_ends_the_export_with_one_sentence(run: Path, tmp_path: Path) -> None:
    """What the system refuses in the middle, as on a full disk: no crash in HDF5 or FFmpeg, and nothing left."""
    program = (
        "import resource, sys\n"
        "from tdenoise_pipeline.cli import main\n"
        "resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, 20_000))\n"
        "run, folder, *names = sys.argv[1:]\n"
        "for name in names:\n"
        "    words = ['export', run, '-o', f'{folder}/{name}', '-q']\n"
        "    words += ['--columns', '5'] if name == 'a.png' else []\n"
        "    print(name, main(words), flush=True)"
    )
    names = [*DATA, *PICTURES]
    done = subprocess.run(
        [sys.executable, "-c", program, str(run), str(tmp_path), *names],
        capture_output=True, text=True, timeout=600,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines() == [f"{name} 1" for name in names]
    told = done.stderr.splitlines()
    assert len(told) == len(names)
    for name, line in zip(names, told, strict=True):
        assert f"/{name}: file too large" in line and "partial" not in line, line
    assert not list(tmp_path.iterdir())


# ---- the command -------------------------------------------------------------------------------------------


def test_the_command_tells_what_it_wrote(
    run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["export", str(run), "-o", str(tmp_path / "a.tif"), "-q"]) == 0
    assert capsys.readouterr().out.startswith(f"{tmp_path}/a.tif: 21 frames of 36 x 50 pixels, float32, ")
    assert main(["export", str(run), "-o", str(tmp_path / "a.png"), "-q", "--frames", "2:4"]) == 0
    assert f"{tmp_path}/a-0002.png to a-0003.png: 2 frames, pictures of" in capsys.readouterr().out
    assert main(["export", str(run), "-o", str(tmp_path / "a.tif")]) == 2
    assert "exists already" in capsys.readouterr().err


def test_a_dry_run_writes_nothing(run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["export", str(run), "-o", str(tmp_path / "b/a.mp4"), "-n", "--json"]) == 0
    told = json.loads(capsys.readouterr().out)
    assert told["frames"] == [0, 21] and told["frames_per_second"] == 25 and told["n_files"] == 1
    assert not list(tmp_path.iterdir())


def test_every_kind_that_a_name_may_ask_for_is_there() -> None:
    for suffix in showing.DATA:
        assert kinds.data_file(Path(f"a{suffix}")).name
        assert kinds.data_file(Path(f"A{suffix.upper()}")).name
    assert {*kinds.VIDEOS, ".png"} == set(showing.PICTURES)
    assert {"." + end.rpartition(".")[2] for end in kinds.DATA} == set(showing.DATA)


# ---- memory ------------------------------------------------------------------------------------------------


def peak_bytes(*words: object) -> int:
    """The largest resident memory of a command, as its own process tells it: that of a child counts its parent's."""
    program = (
        "import sys\n"
        "from pathlib import Path\n"
        "from tdenoise_pipeline.cli import main\n"
        "code = main(sys.argv[1:])\n"
        "print(Path('/proc/self/status').read_text())\n"
        "sys.exit(code)"
    )
    done = subprocess.run(
        [sys.executable, "-c", program, *map(str, words)], capture_output=True, text=True, timeout=600
    )
    assert done.returncode == 0, done.stderr
    (peak,) = re.findall(r"^VmHWM:\s+(\d+) kB$", done.stdout, flags=re.M)
    return int(peak) * 1024


@pytest.fixture(scope="module")
def lengths(tmp_path_factory: pytest.TempPathFactory) -> dict[int, Path]:
    """Runs of a short and a long movie."""
    return {n: make_run(tmp_path_factory.mktemp(f"long{n}"), (n, 64, 96)) for n in (100, 1600)}


@pytest.mark.slow
@pytest.mark.parametrize(
    "name", [*DATA, *(pytest.param(n, marks=pytest.mark.long) if n in SLOW_PICTURES else n for n in PICTURES)]
)
def test_memory_does_not_grow_with_the_length_of_the_movie(
    name: str, lengths: dict[int, Path], tmp_path: Path
) -> None:
    peaks = {}
    for n_frames, folder in lengths.items():
        words = ["export", folder, "-o", tmp_path / str(n_frames) / name, "-q"]
        if name not in DATA:
            words += ["--panels", "raw,mean9,denoised", "--roi", "0:16,0:64"]
        peaks[n_frames] = peak_bytes(*words)
    values = 1500 * 64 * 96 * 4  # bytes that the long movie has more: 37 MB
    assert peaks[1600] - peaks[100] < values / 3, peaks
