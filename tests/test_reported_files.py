"""Inputs of the kinds that public bug reports name: several files, axes and calibrations; with more of each kind."""

from __future__ import annotations

import json
import re
import shutil
import struct
import tarfile
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest
import test_reported_inputs
import tifffile
import xarray
import zarr
from array_files import ask_forked, write_hyperspy, write_ncem, write_scales
from numpy.typing import NDArray
from raw_files import (
    movie,
    write_capture,
    write_clock,
    write_dm,
    write_folder,
    write_mrc,
    write_seq,
    write_tvips,
)
from tdenoise_pipeline.cli import command_line
from tdenoise_pipeline.errors import InputError, UsageError
from tdenoise_pipeline.ingest.fingerprint import Source
from tdenoise_pipeline.ingest.ingest_many import plan_jobs
from tdenoise_pipeline.readers import MovieInfo, hdf5, open_raw
from tdenoise_pipeline.settings.config import IngestManyConfig

REPORTS = Path(__file__).parents[2] / "shared/data/reports"
SHAPE = (12, 40, 56)


@pytest.fixture(autouse=True)
def forked(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(hdf5, "ask", ask_forked)


def read(path: Path, **options: Any) -> tuple[MovieInfo, NDArray[Any]]:
    with open_raw(path, **options) as reader:
        out = np.empty(reader.info.shape, reader.info.dtype)
        reader.read(0, len(out), out)
        return reader.info, out


def refusal(path: Path, **options: Any) -> str:
    with pytest.raises((InputError, UsageError)) as error:
        read(path, **options)
    said = str(error.value)
    assert "\n" not in said and "damaged" not in said
    return said


# What the index says of each input: options, and the parts of a MovieInfo or the words of a refusal.
HELD = {"frame_time_s": 0.0133, "exposure_s": 0.0133, "voltage_kv": 300}
EXPECTED: dict[str, tuple[str, dict[str, Any], dict[str, Any] | str]] = {
    "f_runs": ("f_runs", {}, r"run1_0000.*run2_0000.*pattern.*run1_\*\.tif"),
    "f_neg": (
        "f_neg/frame_*.tif",
        {},
        {"shape": (12, 24, 32), "first": "frame_-3.tif", "last": "frame_8.tif"},
    ),
    "f_dup": ("f_dup", {}, r"img_005\.tif and img_5\.tif have the same number"),
    "celeritas/run_Top_14-04-59.396.seq": ("celeritas/run_Top_14-04-59.396.seq", {}, "Celeritas"),
    "hs.zspy.tar.gz": ("hs.zspy", {}, {"shape": SHAPE, "pixel_size_nm": (0.02, 0.02), **HELD}),
    "movie.dm5": ("movie.dm5", {}, {"shape": SHAPE, "pixel_size_nm": (0.0181, 0.0181), **HELD}),
    "dectris/run_master.h5": (
        "dectris/run_master.h5",
        {},
        {"shape": SHAPE, "dtype": np.dtype("u4"), "frame_time_s": 0.0133, "sum": 53944},
    ),
    "movie.eer": ("movie.eer", {}, {"shape": (10, 64, 96), "sum": 1308}),
    "ij_default.tif": ("ij_default.tif", {"dataset": "channels"}, {"shape": SHAPE, "sum": 53850}),
    "ome_lab.zarr.tar.gz": ("ome_lab.zarr", {}, {"shape": SHAPE}),
    "real/nexus_dls_example.nxs": (
        "real/nexus_dls_example.nxs",
        {},
        "spectrum image.*10 x 10 x 15.*not a movie",
    ),
    "real/simple_signal.nxs": ("real/simple_signal.nxs", {}, "a scan.*not a movie"),
    "real/movie.stk": (
        "real/movie.stk",
        {},
        {"shape": (2, 20, 20), "frame_time_s": 0.864, "exposure_s": 0.2},
    ),
    "tilt.h5": ("tilt.h5", {}, r"stack over angle \[deg\].*not a movie"),
}


def reported() -> list[str]:
    index = REPORTS / "index.json"
    if not index.is_file():
        return ["the inputs are not here"]
    return [entry["file"] for entry in json.loads(index.read_text()) if entry["file"] in EXPECTED]


@pytest.mark.parametrize("name", reported())
def test_a_reported_input_gives_what_the_index_says(tmp_path: Path, name: str) -> None:
    if not REPORTS.is_dir():
        pytest.skip("../shared/data/reports is not here")
    path, options, expected = EXPECTED[name]
    folder = REPORTS
    if name.endswith(".tar.gz"):
        with tarfile.open(REPORTS / name) as archive:
            archive.extractall(tmp_path, filter="data")
        folder = tmp_path
    if isinstance(expected, str):
        assert re.search(expected, refusal(folder / path, **options))
        return
    info, data = read(folder / path, **options)
    found: dict[str, Any] = {"sum": int(data.sum())}
    if info.files:
        found |= {"first": info.files[0].name, "last": info.files[-1].name}
    for key, value in expected.items():
        got = found[key] if key in found else getattr(info, key)
        assert got == (pytest.approx(value) if isinstance(value, float) else value), key


def test_every_reported_input_is_tried() -> None:
    index = REPORTS / "index.json"
    if not index.is_file():
        pytest.skip("../shared/data/reports is not here")
    tried = {*EXPECTED, *test_reported_inputs.EXPECTED}
    assert {entry["file"] for entry in json.loads(index.read_text())} <= tried


# Several files, one movie


def touch(folder: Path, names: list[str], suffix: str) -> NDArray[Any]:
    """A frame for each name, in this order."""
    data = movie(shape=(len(names), 6, 7))
    folder.mkdir(exist_ok=True)
    for name, frame in zip(names, data, strict=True):
        if suffix == ".dm4":
            write_dm(folder / f"{name}{suffix}", frame, 4)
        elif suffix == ".npy":
            np.save(folder / f"{name}{suffix}", frame)
        else:
            tifffile.imwrite(folder / f"{name}{suffix}", frame)
    return data


@pytest.mark.parametrize("suffix", [".tif", ".dm4", ".npy"])
@pytest.mark.parametrize(
    "names",
    [
        [f"t_{k}" for k in range(-3, 9)],
        [f"t{k}" for k in range(-11, 3)],
        ["t_-2", "t_-1", "t_0", "t_+1", "t_+2"],
        [f"frame-{k}" for k in range(12)],  # a dash, no minus
        [f"{t:g}s" for t in (0, 0.25, 0.5, 0.75, 1, 1.25)],
        [f"e {t:.1f} s" for t in np.arange(0.5, 2.5, 0.1)],
        [f"a{t}" for t in ("12,345", "12,401", "13,002", "13,1", "15,7")],
        [f"m1.{k}" for k in range(1, 13)],  # the tenth file of a first run, no decimal
        [f"f_{k}_{12 + 0.3 * k:.1f}s" for k in range(12)],  # a counter, and the time that goes with it
        [f"f_{k}_{t}C" for k, t in enumerate((23.4, 23.2, 23.7, 23.1))],  # a counter beside something else
        [f"n 20240230 1200{s:02d}" for s in range(3)],  # looks like a date, and is none
        [f"scan 2024-01-02 {h:02d}-{m:02d}-07.{m}" for h in (9, 10) for m in (5, 15, 25)],
        [f"c_Hour_00_Minute_00_Second_{k // 4:02d}_Frame_{k % 4:04d}" for k in range(12)],
    ],
)
def test_frames_come_in_the_order_of_the_one_number_in_their_names(
    tmp_path: Path, names: list[str], suffix: str
) -> None:
    data = touch(tmp_path / "f", names, suffix)
    for path in (tmp_path / "f", tmp_path / f"f/*{suffix}"):
        info, found = read(path)
        assert [file.stem for file in info.files] == names
        np.testing.assert_array_equal(found, data)


@pytest.mark.parametrize("suffix", [".tif", ".dm4", ".npy"])
@pytest.mark.parametrize(
    ("names", "says"),
    [
        ([f"P{p}_T{t}" for p in (1, 2) for t in range(10)], r"P1_T0.*P2_T0.*P1_T\*"),
        ([f"run{r}.{k:04d}" for r in (1, 2) for k in range(8)], r"pattern.*run1\.\*"),
        ([f"r{r}_c{c}" for r in range(3) for c in range(3)], r"2 numbers run.*r0_c\*"),
        ([f"x_20240102_{h}0000_{k}" for h in (10, 11) for k in range(4)], r"x_20240102_100000_\*"),
        ([f"tilt_{k}_{v}" for k, v in enumerate((0, 3, -3, 6, -6))], "do not show"),
        (["img_005", "img_5", "img_6"], "img_005.* and img_5.* same number"),
        (["img_1", "img_1.0", "img_2"], "not numbered alike|same number"),
        (["a_1", "a_2", "b_1", "b_2"], r"not numbered alike.*a_\*"),
        (["1", "2", "average"], r"not numbered alike.*\[0-9\]\*"),
        (["before", "after"], "do not show their order"),
    ],
)
def test_names_that_do_not_tell_one_movie_or_its_order_are_refused_with_a_way_out(
    tmp_path: Path, names: list[str], says: str, suffix: str
) -> None:
    touch(tmp_path / "f", names, suffix)
    for path in (tmp_path / "f", tmp_path / f"f/*{suffix}"):
        assert re.search(says, refusal(path))


def test_the_pattern_that_a_refusal_proposes_gives_one_of_the_movies(tmp_path: Path) -> None:
    data = touch(tmp_path / "f", [f"run{r}_{k:04d}" for r in (1, 2, 11) for k in range(4)], ".npy")
    proposed = re.findall("'([^']+)'", refusal(tmp_path / "f"))[-1]
    np.testing.assert_array_equal(read(Path(proposed))[1], data[:4])


def test_a_clock_in_names_tells_lost_frames_and_seconds(tmp_path: Path) -> None:
    write_clock(tmp_path / "deep", movie(shape=(12, 6, 7)), per_second=4)
    flat = tmp_path / "flat"
    flat.mkdir()
    for file in (tmp_path / "deep").rglob("*.dm4"):
        shutil.copy(file, flat / file.name)
    assert read(flat)[0].warnings == ()
    next(flat.glob("*Second_01_Frame_0002.dm4")).unlink()
    assert "Second_01_Frame_0001.dm4" in read(flat)[0].warnings[0]


@pytest.mark.parametrize("pattern", [False, True])
def test_a_folder_that_grew_while_it_was_read_is_not_taken_for_the_movie(
    tmp_path: Path, pattern: bool
) -> None:
    folder = write_folder(tmp_path / "f", movie(shape=(5, 6, 7)))
    raw = folder / "frame_*.tif" if pattern else folder
    with open_raw(raw) as reader:
        source = Source.of(raw, reader.info)
    (folder / "notes.txt").write_text("sample 7")
    source.check_unchanged()
    shutil.copy(folder / "frame_4.tif", folder / "frame_5.tif")
    with pytest.raises(InputError, match=r"1 more file.*frame_5\.tif.*once it is complete"):
        source.check_unchanged()


@pytest.mark.parametrize(
    ("made", "raw", "comes", "other"),
    [
        ("tvips", "a_000.tvips", "a_001.tvips", "b_000.tvips"),
        ("capture", "cap 1.dm4", "cap 1.raw_2", "cap 2.raw"),
        ("clock", "cap 1.dm4", "Hour_00/Minute_00/Second_09/cap_1.dm4", "cap 2.dm4"),
        ("parts", "d/run_master.h5", "d/run_data_000004.h5", "d/next_data_000001.h5"),
    ],
)
def test_a_recording_that_gets_another_part_while_it_is_read_is_not_taken_for_the_movie(
    tmp_path: Path, made: str, raw: str, comes: str, other: str
) -> None:
    data = movie("<u2", (9, 18, 19))
    if made == "tvips":
        write_tvips(tmp_path / raw, data)
    elif made == "parts":
        write_parts(tmp_path / "d", data, (4, 4, 1), master=TOLD)
        (tmp_path / "d/run_data_000007.h5").write_bytes(b"of another run")
    elif made == "capture":
        write_capture(tmp_path, data, (500,))
    else:
        write_clock(tmp_path, data, per_second=4)
        write_dm(tmp_path / raw, data[0], 4, recorded=9)
    with open_raw(tmp_path / raw) as reader:
        source = Source.of(tmp_path / raw, reader.info)
    (tmp_path / other).write_bytes(b"another recording")
    source.check_unchanged()
    (tmp_path / comes).parent.mkdir(exist_ok=True)
    (tmp_path / comes).write_bytes(b"more of this one")
    with pytest.raises(InputError, match=r"1 more file.*once it is complete"):
        source.check_unchanged()


def test_frames_that_the_shell_made_of_a_pattern_are_one_movie(tmp_path: Path) -> None:
    folder = write_folder(tmp_path / "f [2024]", movie(shape=(12, 6, 7)))
    assert [
        job.raw for job in plan_jobs(IngestManyConfig(raw=(folder / "*.tif",), output=tmp_path / "m"))
    ] == [folder / "*.tif"]
    files = tuple(sorted(folder.iterdir()))
    (job,) = plan_jobs(IngestManyConfig(raw=files, output=tmp_path / "m.zarr"))
    assert (job.raw, job.output) == (folder / "frame_*.tif", tmp_path / "m.zarr")
    (job,) = plan_jobs(IngestManyConfig(raw=files[1:4], output=tmp_path / "m.zarr"))
    assert sorted(job.raw.parent.glob(job.raw.name)) == list(files[1:4]), "1, 10 and 11"
    with pytest.raises(InputError, match="pattern in quotes"):
        plan_jobs(IngestManyConfig(raw=files[4:6] + files[7:9], output=tmp_path / "m.zarr"))


def test_a_command_for_one_movie_says_what_the_shell_did(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = write_folder(tmp_path / "f", movie(shape=(3, 6, 7)))
    assert command_line.main(["run", *map(str, sorted(folder.iterdir())), "-o", str(tmp_path / "out")]) == 2
    assert "in quotes" in capsys.readouterr().err


@pytest.mark.parametrize("command", ["verify", "train", "apply"])
def test_a_raw_file_where_a_store_is_wanted_is_named_as_such(
    tmp_path: Path, command: str, capsys: pytest.CaptureFixture[str]
) -> None:
    write_dm(tmp_path / "a.dm4", movie(), 4)
    output = [] if command == "verify" else ["-o", str(tmp_path / "out")]
    assert command_line.main([command, str(tmp_path / "a.dm4"), *output]) == 3
    said = capsys.readouterr().err
    assert "ingest a raw movie first" in said and "Errno" not in said


def write_parts(
    folder: Path, data: NDArray[Any], sizes: tuple[int, ...], *, master: dict[str, Any] | None = None
) -> Path:
    """Data files in the way of DECTRIS, and their master, with what it says of the recording."""
    folder.mkdir()
    at = 0
    for number, size in enumerate(sizes, start=1):
        with h5py.File(folder / f"run_data_{number:06d}.h5", "w") as file:
            array = file.create_dataset(
                "entry/data/data", data=data[at : at + size], chunks=(1, *data.shape[1:])
            )
            array.attrs.update({"image_nr_low": at + 1, "image_nr_high": at + size})
        at += size
    with h5py.File(folder / "run_master.h5", "w") as file:
        for number in range(1, len(sizes) + 1):
            link = h5py.ExternalLink(f"run_data_{number:06d}.h5", "entry/data/data")
            file[f"entry/data/data_{number:06d}"] = link
        for name, value in (master or {}).items():
            file[f"entry/instrument/detector/{name}"] = value
    return folder / "run_master.h5"


TOLD = {"frame_time": 0.01, "count_time": 0.009, "description": "EIGER", "detectorSpecific/nimages": 9}


def test_data_files_are_one_movie_by_their_master_their_pattern_or_their_folder(tmp_path: Path) -> None:
    data = movie("<u4", (9, 18, 19))
    master = write_parts(tmp_path / "d", data, (4, 4, 1), master=TOLD)
    for path in (master, tmp_path / "d/run_data_*.h5"):
        info, found = read(path)
        np.testing.assert_array_equal(found, data)
        assert (info.frame_time_s, info.exposure_s, info.camera) == (0.01, 0.009, "EIGER")
        assert [file.name for file in info.files] == [
            "run_master.h5", "run_data_000001.h5", "run_data_000002.h5", "run_data_000003.h5",
        ]  # fmt: skip
    files = sorted((tmp_path / "d").iterdir())
    for raw in ((tmp_path / "d",), (tmp_path / "d/*.h5",), tuple(files)):
        jobs = plan_jobs(IngestManyConfig(raw=raw, output=tmp_path / "m.zarr"))
        assert [job.raw for job in jobs] == [master]
    with open_raw(master) as reader:
        part = np.empty((3, 18, 19), "u4")
        reader.read(3, 6, part)
    np.testing.assert_array_equal(part, data[3:6])


def test_corrections_that_a_detector_holds_and_its_counts_lack_are_told(tmp_path: Path) -> None:
    data, field = movie("<u4", (4, 18, 19)), np.ones((18, 19), "f4")
    of_camera = {"pixel_mask": np.zeros((18, 19), "u4"), "flatfield": field}
    cases: list[tuple[dict[str, Any], list[str]]] = [
        ({}, []),
        (of_camera, ["pixel mask", "flat field"]),
        (
            of_camera
            | {
                "flatfield_correction_applied": 0,
                "pixel_mask_applied": 0,
                "countrate_correction_applied": 0,
            },
            ["pixel mask", "flat field", "too fast"],
        ),
        (
            of_camera
            | {
                "flatfield_correction_applied": 1,
                "pixel_mask_applied": 1,
                "countrate_correction_applied": 1,
            },
            [],
        ),
    ]
    for number, (told, words) in enumerate(cases):
        master = write_parts(
            tmp_path / f"{number}", data, (2, 2), master=TOLD | {"detectorSpecific/nimages": 4} | told
        )
        with h5py.File(tmp_path / f"{number}.nxs", "w") as file:  # the same in one file
            file["entry/data/data"] = data
            for name, value in told.items():
                file[f"entry/instrument/detector/{name}"] = value
        for path in (master, tmp_path / f"{number}.nxs"):
            said = read(path)[0].warnings
            assert len(said) == len(words) and all(w in s for w, s in zip(words, said, strict=True)), said


def test_files_of_one_movie_that_declare_different_factors_are_told_and_each_is_applied(
    tmp_path: Path,
) -> None:
    data = movie("<u2", (6, 18, 19))
    master = write_parts(tmp_path / "d", data, (2, 2, 2), master=TOLD | {"detectorSpecific/nimages": 6})
    for number, factor in ((1, 0.5), (2, 0.5), (3, 0.25)):
        with h5py.File(tmp_path / f"d/run_data_00000{number}.h5", "a") as file:
            file["entry/data/data"].attrs["scale_factor"] = factor
    info, found = read(master)
    np.testing.assert_array_equal(found, data * np.repeat([0.5, 0.5, 0.25], 2)[:, None, None])
    told = info.metadata["stored_numbers"]
    assert {name: numbers["factor"] for name, numbers in told.items()} == {
        "run_data_000001.h5": 0.5, "run_data_000002.h5": 0.5, "run_data_000003.h5": 0.25,
    }  # fmt: skip
    assert "factors from 0.25 to 0.5" in info.warnings[0] and len(info.warnings) == 1


def test_data_files_without_a_master_are_joined_by_the_numbers_of_their_images(tmp_path: Path) -> None:
    data = movie("<u4", (9, 18, 19))
    write_parts(tmp_path / "d", data, (4, 4, 1)).unlink()
    for old, new in (("1", "9"), ("2", "1"), ("9", "2")):  # names in another order
        (tmp_path / f"d/run_data_00000{old}.h5").rename(tmp_path / f"d/run_data_00000{new}.h5")
    np.testing.assert_array_equal(read(tmp_path / "d/run_data_*.h5")[1], data)
    (job,) = plan_jobs(IngestManyConfig(raw=(tmp_path / "d",), output=tmp_path / "m.zarr"))
    assert job.raw == tmp_path / "d/run_data_*.h5"
    assert "read on its own" in read(tmp_path / "d/run_data_000001.h5")[0].warnings[0]


def test_data_files_that_lack_images_or_do_not_fit_together_are_told(tmp_path: Path) -> None:
    data = movie("<u4", (12, 18, 19))
    master = write_parts(tmp_path / "d", data, (4, 4, 4), master=TOLD | {"detectorSpecific/nimages": 12})
    (tmp_path / "d/run_data_000002.h5").rename(tmp_path / "d/elsewhere")
    assert "run_data_000002.h5, which is not beside it" in refusal(master)
    info, found = read(master, allow_truncated=True)
    assert (len(found), info.missing_frames) == (4, 8)
    info, found = read(tmp_path / "d/run_data_*.h5")
    assert len(found) == 8 and "4 images of the recording are missing" in info.warnings[0]
    shutil.copy(tmp_path / "d/run_data_000001.h5", tmp_path / "d/run_data_000002.h5")
    assert "not parts of one movie" in refusal(tmp_path / "d/run_data_*.h5")


def test_a_master_leads_to_files_beside_it_alone_and_a_scan_is_named(tmp_path: Path) -> None:
    data = movie("<u4", (4, 18, 19))
    told = {
        "detectorSpecific/nimages": 1,
        "detectorSpecific/ntrigger": 4,
        "detectorSpecific/trigger_mode": "exts",
    }
    master = write_parts(tmp_path / "d", data, (2, 2), master=told)
    assert "trigger of its own" in refusal(master)
    np.testing.assert_array_equal(read(master, dataset="entry/data")[1], data)
    with h5py.File(tmp_path / "away.h5", "w") as file:
        file["data_1"] = h5py.ExternalLink("d/run_data_000001.h5", "entry/data/data")
    assert "not followed" in refusal(tmp_path / "away.h5")


def test_halves_of_a_celeritas_are_known_by_their_names_or_their_settings(tmp_path: Path) -> None:
    data = movie("<u2", (5, 18, 19))
    for name in ("a_top.seq", "Movie_00785_Bottom_13-49-04.160.seq"):
        write_seq(tmp_path / name, data)
        assert "Celeritas" in refusal(tmp_path / name)
    write_seq(tmp_path / "desktop.seq", data)
    np.testing.assert_array_equal(read(tmp_path / "desktop.seq")[1], data)
    settings = '<Configuration><SegmentPreBuffer Value="64"/></Configuration>'
    (tmp_path / "desktop.seq.Config.Metadata.xml").write_text(settings)
    assert "Celeritas" in refusal(tmp_path / "desktop.seq")


# Axes and roles


def test_a_dm_movie_with_time_as_its_fastest_axis_is_turned(tmp_path: Path) -> None:
    data = movie("<u2", (40, 56, 12))
    write_dm(tmp_path / "a.dm4", data, 4, units=(("s", 0.0133), ("nm", 0.02), ("nm", 0.03)))
    info, found = read(tmp_path / "a.dm4")
    np.testing.assert_array_equal(found, data.transpose(2, 0, 1))
    assert (info.frame_time_s, info.pixel_size_nm) == (0.0133, (0.03, 0.02))
    raw = (tmp_path / "a.dm4").read_bytes()
    (tmp_path / "a.dm4").write_bytes(raw[: len(raw) // 2])
    with pytest.raises(InputError, match="cut short"):
        open_raw(tmp_path / "a.dm4", allow_truncated=True)


@pytest.mark.parametrize("unit", ["deg", "°", "degrees", "mrad"])
def test_a_stack_over_an_angle_is_named_in_every_format(tmp_path: Path, unit: str) -> None:
    data = movie(shape=(5, 18, 19))
    write_dm(tmp_path / "a.dm4", data, 4, units=(("nm", 1.0), ("nm", 1.0), (unit, 2.0)))
    assert f"[{unit}]" in read(tmp_path / "a.dm4")[0].warnings[0]
    write_hyperspy(tmp_path / "a.hspy", data, (True, False, False), (unit, "nm", "nm"))
    write_ncem(
        tmp_path / "a.emd", data, [("tilt", f"[{unit}]", 2.0), ("y", "[n_m]", 1.0), ("x", "[n_m]", 1.0)]
    )
    dataset = xarray.Dataset(
        {"a": (("tilt", "y", "x"), data)}, {"tilt": ("tilt", np.arange(5.0), {"units": unit})}
    )
    dataset.to_zarr(tmp_path / "a.zarr", consolidated=False)
    for name in ("a.hspy", "a.emd", "a.zarr"):
        said = refusal(tmp_path / name)
        assert f"[{unit}]" in said and "not a movie" in said
        dataset_named = re.findall("--dataset (.*)\\.$", said)[0]
        np.testing.assert_array_equal(read(tmp_path / name, dataset=dataset_named)[1], data)


@pytest.mark.parametrize("name", ["Tilt angle", "energy_loss", "alpha"])
def test_axes_that_are_no_time_are_known_by_their_names_where_they_have_no_unit(
    tmp_path: Path, name: str
) -> None:
    data = movie(shape=(5, 18, 19))
    write_ncem(tmp_path / "a.emd", data, [(name, "", 2.0), ("y", "nm", 1.0), ("x", "nm", 1.0)])
    assert f"stack over {name}" in refusal(tmp_path / "a.emd")


@pytest.mark.parametrize(
    ("interpretation", "axes", "shape", "says"),
    [
        ("spectrum", ["y", "x", "."], (5, 6, 7), "spectrum image"),
        ("spectrum", "y:x:energy", (5, 6, 7), "spectrum image"),
        ("image", ["yaxis", "xaxis", ".", "."], (5, 1, 18, 19), "a scan"),
        ("image", ["y", ".", "."], (5, 18, 19), "a scan"),
        ("image", ["time", ".", "."], (5, 18, 19), None),
        ("image", [".", ".", "."], (5, 18, 19), None),
        (None, ["time", "y", "x"], (5, 18, 19), None),
    ],
)
def test_what_nexus_says_of_its_axes_is_believed(
    tmp_path: Path, interpretation: str | None, axes: Any, shape: tuple[int, ...], says: str | None
) -> None:
    with h5py.File(tmp_path / "a.nxs", "w") as file:
        group = file.create_group("entry/frames")
        group["data"] = np.ones(shape, "u2")
        group.attrs.update({"NX_class": "NXdata", "signal": "data", "axes": axes})
        if interpretation:
            group.attrs["interpretation"] = interpretation
    if says is None:
        assert read(tmp_path / "a.nxs")[0].shape == shape
    else:
        assert says in refusal(tmp_path / "a.nxs")


def test_a_volume_is_read_and_told(tmp_path: Path) -> None:
    write_dm(tmp_path / "a.dm4", movie(), 4, units=(("nm", 1.0),) * 3)
    write_ncem(tmp_path / "a.emd", movie(), [(name, "nm", 1.0) for name in "zyx"])
    for name in ("a.dm4", "a.emd"):
        assert "a volume or a scan" in read(tmp_path / name)[0].warnings[0]


def write_ome_zarr(path: Path, data: NDArray[Any], version: int) -> zarr.Group:
    axes = [
        {"name": "t", "type": "time", "unit": "millisecond"},
        {"name": "y", "type": "space", "unit": "nanometer"},
        {"name": "x", "type": "space", "unit": "nanometer"},
    ]
    levels = [{"path": "0", "coordinateTransformations": [{"type": "scale", "scale": [2.5, 0.25, 0.5]}]}]
    ome = {"multiscales": [{"axes": axes, "datasets": levels}]}
    attributes = ome if version == 2 else {"ome": {"version": "0.5", **ome}}
    group = zarr.create_group(path, zarr_format=version, attributes=attributes)
    group.create_array("0", shape=data.shape, dtype=data.dtype, chunks=data.shape)[:] = data
    return group


@pytest.mark.parametrize("order", [(1, 2, 0), (1, 0, 2), (2, 1, 0)])
def test_axes_are_found_by_their_units_in_every_format(tmp_path: Path, order: tuple[int, int, int]) -> None:
    data = movie(shape=(5, 18, 19)).transpose(order)
    steps = [(("s", 0.01), ("nm", 0.25), ("nm", 0.5))[k] for k in order]
    write_dm(tmp_path / "a.dm4", np.ascontiguousarray(data), 4, units=tuple((u, s) for u, s in steps[::-1]))
    names = list("uvw")
    with h5py.File(tmp_path / "a.h5", "w") as file:
        file["frames"] = data
        for k, (name, (unit, step)) in enumerate(zip(names, steps, strict=True)):
            file[name] = np.arange(data.shape[k]) * step
            file[name].attrs["units"] = unit
            file[name].make_scale(name)
            file["frames"].dims[k].attach_scale(file[name])
    coordinates = {
        name: (name, np.arange(n) * step, {"units": unit})
        for name, n, (unit, step) in zip(names, data.shape, steps, strict=True)
    }
    xarray.Dataset({"frames": (names, data)}, coordinates).to_zarr(tmp_path / "a.zarr", consolidated=False)
    wanted = np.moveaxis(data, order.index(0), 0)  # rows and columns as they follow each other in the file
    for name in ("a.dm4", "a.h5", "a.zarr"):
        info, found = read(tmp_path / name)
        np.testing.assert_array_equal(found, wanted, err_msg=name)
        assert info.frame_time_s == pytest.approx(0.01)


@pytest.mark.parametrize("version", [2, 3])
def test_labels_are_not_a_second_movie(tmp_path: Path, version: int) -> None:
    data = movie(shape=(5, 18, 19))
    write_ome_zarr(tmp_path / "a.zarr", data, version)
    zarr.create_group(tmp_path / "a.zarr/labels", zarr_format=version, attributes={"labels": ["cells"]})
    write_ome_zarr(tmp_path / "a.zarr/labels/cells", np.ones_like(data), version)
    np.testing.assert_array_equal(read(tmp_path / "a.zarr")[1], data)
    assert read(tmp_path / "a.zarr", dataset="labels/cells/0")[1].max() == 1


PLANES = np.stack(
    [movie(shape=(4, 18, 19)), 1 + movie(shape=(4, 18, 19))], axis=1
)  # (frame, other, row, column)


@pytest.mark.parametrize("packed", [None, "lzw"])
@pytest.mark.parametrize(
    ("name", "axes", "order", "options"),
    [
        ("a.tif", "TCYX", (0, 1), {"channel": 1}),
        ("a.tif", "TZYX", (0, 1), {"dataset": "frames,slices=1"}),
        ("a.tif", "CTYX", (1, 0), {"channel": 1}),
        ("a.ome.tif", "TCYX", (0, 1), {"channel": 1}),
        ("a.ome.tif", "CTYX", (1, 0), {"channel": 1}),
        ("a.ome.tif", "ZTYX", (1, 0), {"dataset": "slices=1"}),
    ],
)
def test_a_hyperstack_is_refused_with_a_way_in_that_works(
    tmp_path: Path, name: str, axes: str, order: tuple[int, int], options: dict[str, Any], packed: str | None
) -> None:
    data = PLANES.transpose(*order, 2, 3)
    tifffile.imwrite(
        tmp_path / name, data, photometric="minisblack", metadata={"axes": axes}, compression=packed
    )
    said = refusal(tmp_path / name)
    assert f"--{next(iter(options))}" in said
    np.testing.assert_array_equal(read(tmp_path / name, **options)[1], PLANES[:, 1])


@pytest.mark.parametrize("axes", ["TCYX", "TZYX", "TZCYX"])
def test_imagej_hyperstacks_have_a_way_in(tmp_path: Path, axes: str) -> None:
    data = PLANES if len(axes) == 4 else np.stack([PLANES, PLANES + 9], axis=1)
    tifffile.imwrite(tmp_path / "a.tif", data, imagej=True, metadata={"axes": axes})
    proposed = re.findall(r"--(dataset|channel) ?([\w,=]*)", refusal(tmp_path / "a.tif"))[0]
    assert proposed[0] == ("channel" if axes == "TCYX" else "dataset")
    options = {"channel": 0} if axes == "TCYX" else {"dataset": proposed[1]}
    np.testing.assert_array_equal(read(tmp_path / "a.tif", **options)[1], data.reshape(4, -1, 18, 19)[:, 0])
    for wrong in ({"channel": 2}, {"dataset": "lambda"}, {"dataset": "frames=9"}):
        with pytest.raises(UsageError):
            open_raw(tmp_path / "a.tif", **wrong)


def test_frames_that_were_saved_as_channels_are_read_when_asked_for(tmp_path: Path) -> None:
    data = movie(shape=(12, 18, 19))
    tifffile.imwrite(tmp_path / "a.tif", data, imagej=True)
    assert "--dataset channels" in refusal(tmp_path / "a.tif")
    np.testing.assert_array_equal(read(tmp_path / "a.tif", dataset="channels")[1], data)
    tifffile.imwrite(tmp_path / "b.tif", data, photometric="minisblack")
    assert "Leave --channel out" in refusal(tmp_path / "b.tif", channel=0)


# Calibration: one signal, in every format that can hold it

SIGNAL = movie("<u2", (5, 18, 19))
CALIBRATION = {
    "frame_time_s": 0.0025,
    "pixel_size_nm": (0.25, 0.5),
    "exposure_s": 0.0125,
    "voltage_kv": 300.0,
}
ALL = tuple(CALIBRATION)
STEPS = (("s", 0.0025), ("nm", 0.25), ("nm", 0.5))


def write_dm5(path: Path, data: NDArray[Any], recorded: int | None = None) -> None:
    """The tags of ``write_dm`` as HDF5, behind a small copy of the first frame."""
    with h5py.File(path, "w") as file:
        file.create_group("Thumbnails/[0]").attrs["ImageIndex"] = 0
        for number, image in enumerate((data[..., ::6, ::6][:1].copy(), data)):
            group = file.create_group(f"ImageList/[{number}]")
            group["ImageData/Data"] = image
            for k, (unit, step) in enumerate(reversed(STEPS)):
                told = {"Scale": np.float32(step), "Origin": np.float32(0), "Units": unit}
                group.create_group(f"ImageData/Calibrations/Dimension/[{k}]").attrs.update(told)
            high = group.create_group("ImageTags/Acquisition/Parameters/High Level")
            high.attrs["Exposure (s)"] = np.float32(0.0125)
            group.create_group("ImageTags/Microscope Info").attrs["Voltage"] = 300_000.0
            if recorded is not None:
                group.create_group("ImageTags/In-situ/Recorded").attrs["# Frames"] = recorded


def hyperspy_groups(root: Any) -> None:
    """What HyperSpy writes into HDF5 and Zarr alike."""
    group = root.create_group("Experiments/rain")
    if isinstance(root, h5py.Group):
        group["data"] = SIGNAL
    else:
        group.create_array("data", shape=SIGNAL.shape, dtype="u2", chunks=(1, 18, 19))[:] = SIGNAL
    for k, (unit, step) in enumerate(STEPS):
        told = {"name": "", "units": unit, "scale": step, "navigate": k == 0, "size": SIGNAL.shape[k]}
        group.create_group(f"axis-{k}").attrs.update(told)
    instrument = group.create_group("metadata/Acquisition_instrument/TEM")
    instrument.attrs["beam_energy"] = 300.0
    instrument.create_group("Detector/Camera").attrs["exposure"] = 0.0125


def write_hspy(path: Path) -> None:
    with h5py.File(path, "w") as file:
        file.attrs.update({"file_format": "HyperSpy", "file_format_version": "3.3"})
        hyperspy_groups(file)


def write_zspy(path: Path, version: int) -> None:
    told = {"file_format": "ZSpy", "file_format_version": "3.3"}
    hyperspy_groups(zarr.create_group(path, zarr_format=version, attributes=told))


def write_attributes(path: Path, of: str) -> None:
    """HDF5 with attributes whose names have the unit, of the array, its group or the file."""
    with h5py.File(path, "w") as file:
        file["run/frames"] = SIGNAL
        file[of].attrs.update(
            {"frame_time_s": 0.0025, "pixel_size_nm": [0.25, 0.5], "exposure_s": 0.0125, "voltage_kv": 300}
        )


def write_nexus(path: Path) -> None:
    write_scales(path, SIGNAL, nexus=True)
    with h5py.File(path, "a") as file:
        for name, step in (("time", 2.5), ("y", 0.25), ("x", 0.5)):
            file[f"entry/{name}"][...] = np.arange(len(file[f"entry/{name}"])) * step
        file["entry/instrument/detector/count_time"] = 12.5
        file["entry/instrument/detector/count_time"].attrs["units"] = "ms"


def write_netcdf(path: Path) -> None:
    """As h5netcdf and netCDF4 do it: every number of an attribute is an array of one."""
    write_xarray(path.with_suffix(".zarr"), 3)
    xarray.open_zarr(path.with_suffix(".zarr"), consolidated=False).to_netcdf(path, engine="h5netcdf")


def write_xarray(path: Path, version: int, *, dates: bool = False, of: str = "array") -> None:
    t = np.arange(5) * 0.0025
    times: Any = ("t", t, {"units": "s"})
    if dates:
        times = np.datetime64("2024-01-02T14:04:59.123", "ns") + (t * 1e9).round().astype("m8[ns]")
    coordinates = {
        "t": times,
        "y": ("y", np.arange(18) * 0.25, {"units": "nm"}),
        "x": ("x", np.arange(19) * 5.0, {"units": "Å"}),
    }
    told = {"exposure_s": 0.0125, "voltage_kv": 300.0}
    array = (("t", "y", "x"), SIGNAL, told if of == "array" else {})
    dataset = xarray.Dataset({"frames": array}, coordinates, told if of == "group" else {})
    dataset.to_zarr(path, zarr_format=version, consolidated=False)


def write_imagej(path: Path, unit: str, factor: float, *, hyperspy: bool = False) -> None:
    """ImageJ's TIFF; HyperSpy adds DigitalMicrograph's tags, and leaves the time out of the description."""
    metadata = {"axes": "TYX", "unit": unit} | ({} if hyperspy else {"finterval": 2.5, "tunit": "ms"})
    tags = []
    if hyperspy:
        for number, (name, step) in enumerate((("nm", 0.5), ("nm", 0.25), ("s", 0.0025))):
            tags += [(65003 + number, "s", 0, name, False), (65009 + number, "d", 1, step, False)]
    resolution = (1 / (0.5 / factor), 1 / (0.25 / factor))
    tifffile.imwrite(path, SIGNAL, imagej=True, metadata=metadata, resolution=resolution, extratags=tags)


def write_ome_tiff(path: Path) -> None:
    metadata = {
        "axes": "TYX", "TimeIncrement": 2.5, "TimeIncrementUnit": "ms", "PhysicalSizeX": 0.5,
        "PhysicalSizeXUnit": "nm", "PhysicalSizeY": 2.5, "PhysicalSizeYUnit": "Å",
        "Plane": {"ExposureTime": [12.5] * 5, "ExposureTimeUnit": ["ms"] * 5},
    }  # fmt: skip
    tifffile.imwrite(path, SIGNAL, photometric="minisblack", metadata=metadata)


NO_VOLTAGE = ("frame_time_s", "pixel_size_nm", "exposure_s")
STEPS_ONLY = ("frame_time_s", "pixel_size_nm")
FORMATS: dict[str, tuple[str, Callable[[Path], object], tuple[str, ...]]] = {
    "DM3": ("a.dm3", lambda p: write_dm(p, SIGNAL, 3), ALL),
    "DM4": ("a.dm4", lambda p: write_dm(p, SIGNAL, 4), ALL),
    "DM4, seconds and angstrom": (
        "a.dm4",
        lambda p: write_dm(p, SIGNAL, 4, units=(("Å", 5.0), ("\u00b5m", 0.00025), ("s", 0.0025))),
        ALL,
    ),
    "DM5": ("a.dm5", lambda p: write_dm5(p, SIGNAL), ALL),
    "HyperSpy HDF5": ("a.hspy", write_hspy, ALL),
    "HyperSpy Zarr v2": ("a.zspy", lambda p: write_zspy(p, 2), ALL),
    "HyperSpy Zarr v3": ("a.zspy", lambda p: write_zspy(p, 3), ALL),
    "HDF5, attributes of the array": ("a.h5", lambda p: write_attributes(p, "run/frames"), ALL),
    "HDF5, attributes of the group": ("a.h5", lambda p: write_attributes(p, "run"), ALL),
    "HDF5, attributes of the file": ("a.h5", lambda p: write_attributes(p, "/"), ALL),
    "NeXus": ("a.nxs", write_nexus, NO_VOLTAGE),
    "NCEM EMD": (
        "a.emd",
        lambda p: write_ncem(p, SIGNAL, [("t", "[m_s]", 2.5), ("y", "[n_m]", 0.25), ("x", "[n_m]", 0.5)]),
        (*STEPS_ONLY, "voltage_kv"),
    ),
    "netCDF": ("a.nc", write_netcdf, ALL),
    "xarray Zarr v2": ("a.zarr", lambda p: write_xarray(p, 2), ALL),
    "xarray Zarr v3": ("a.zarr", lambda p: write_xarray(p, 3), ALL),
    "xarray, dates v2": ("a.zarr", lambda p: write_xarray(p, 2, dates=True), ALL),
    "xarray, dates v3, of the group": ("a.zarr", lambda p: write_xarray(p, 3, dates=True, of="group"), ALL),
    "OME-Zarr v2": ("a.zarr", lambda p: write_ome_zarr(p, SIGNAL, 2), STEPS_ONLY),
    "OME-Zarr v3": ("a.zarr", lambda p: write_ome_zarr(p, SIGNAL, 3), STEPS_ONLY),
    "ImageJ, nm": ("a.tif", lambda p: write_imagej(p, "nm", 1), STEPS_ONLY),
    "ImageJ, escaped angstrom": ("a.tif", lambda p: write_imagej(p, "\\u00C5", 0.1), STEPS_ONLY),
    "ImageJ, escaped micrometre": ("a.tif", lambda p: write_imagej(p, "\\u00B5m", 1000), STEPS_ONLY),
    "HyperSpy TIFF": ("a.tif", lambda p: write_imagej(p, "nm", 1, hyperspy=True), STEPS_ONLY),
    "OME-TIFF": ("a.ome.tif", write_ome_tiff, NO_VOLTAGE),
    "DM4, one file per frame": (
        "a",
        lambda p: [(p.mkdir(exist_ok=True), write_dm(p / f"f{k}.dm4", f, 4)) for k, f in enumerate(SIGNAL)],
        ("pixel_size_nm", "exposure_s", "voltage_kv"),
    ),
}


@pytest.mark.parametrize("kind", FORMATS)
def test_one_signal_has_the_same_calibration_in_every_format_that_can_hold_it(
    tmp_path: Path, kind: str
) -> None:
    name, write, fields = FORMATS[kind]
    write(tmp_path / name)
    info, data = read(tmp_path / name)
    np.testing.assert_array_equal(data, SIGNAL)
    for field in fields:
        assert getattr(info, field) == pytest.approx(CALIBRATION[field], rel=1e-6), field
    assert info.warnings == ()


def write_listed(path: Path, listed: dict[int, NDArray[Any]], expression: str | None = None) -> None:
    """HyperSpy's file, of either kind, with axes that are not uniform."""
    with_zarr = path.suffix == ".zspy"
    write_zspy(path, 3) if with_zarr else write_hspy(path)
    root: Any = zarr.open_group(path, mode="a") if with_zarr else h5py.File(path, "a")
    for k, values in listed.items():
        axis = root[f"Experiments/rain/axis-{k}"]
        del axis.attrs["scale"]
        if expression is not None:
            axis.attrs["expression"] = expression
        elif with_zarr:
            axis.create_array("axis", shape=values.shape, dtype=values.dtype, chunks=values.shape)[:] = values
        else:
            axis["axis"] = values
    if not with_zarr:
        root.close()


@pytest.mark.parametrize("name", ["a.hspy", "a.zspy"])
def test_an_axis_of_hyperspy_that_is_not_uniform_gives_times_and_no_single_pixel_size(
    tmp_path: Path, name: str
) -> None:
    paused = np.array([0.0, 0.0025, 0.005, 1.0075, 1.01])
    write_listed(tmp_path / name, {0: paused, 2: 0.5 * np.arange(19) ** 1.5})
    info, data = read(tmp_path / name)
    np.testing.assert_array_equal(data, SIGNAL)
    assert info.frame_time_s == pytest.approx(0.0025) and info.pixel_size_nm is None
    np.testing.assert_allclose(info.timestamps_s, paused)
    assert "about 400 frames were lost" in info.warnings[0] and "unevenly spaced" in info.warnings[1]


@pytest.mark.parametrize("name", ["a.hspy", "a.zspy"])
def test_an_axis_of_hyperspy_that_is_a_formula_is_told(tmp_path: Path, name: str) -> None:
    write_listed(tmp_path / name, {0: np.empty(0), 1: np.empty(0)}, "a * x + b")
    info, data = read(tmp_path / name)
    np.testing.assert_array_equal(data, SIGNAL)
    assert info.frame_time_s is None and info.pixel_size_nm is None
    assert len(info.warnings) == 1 and "a * x + b" in info.warnings[0]


@pytest.mark.parametrize("of", ["netcdf", "zarr"])
def test_pixels_at_unequal_distances_have_no_pixel_size(tmp_path: Path, of: str) -> None:
    columns = np.r_[np.arange(10) * 0.5, 9 + np.arange(9) * 1.0]
    coordinates = {"y": ("y", np.arange(18) * 0.25, {"units": "nm"}), "x": ("x", columns, {"units": "nm"})}
    dataset = xarray.Dataset({"frames": (("t", "y", "x"), SIGNAL)}, coordinates)
    path = tmp_path / ("a.nc" if of == "netcdf" else "a.zarr")
    if of == "zarr":
        dataset.to_zarr(path, consolidated=False)
    else:
        with h5py.File(path, "w") as file:
            file["frames"] = SIGNAL
            for k, (axis, (_, values, told)) in enumerate(coordinates.items(), start=1):
                file[axis] = values
                file[axis].attrs.update(told)
                file[axis].make_scale(axis)
                file["frames"].dims[k].attach_scale(file[axis])
    info, _ = read(path)
    assert info.pixel_size_nm is None and "unevenly spaced" in info.warnings[0]


def test_coordinates_stored_as_dates_give_the_frame_time(tmp_path: Path) -> None:
    for version, stored in ((2, "M8[ms]"), (3, "m8[us]"), (3, "M8[ns]")):
        path = tmp_path / f"{version}{stored[0]}.zarr"
        group = zarr.create_group(path, zarr_format=version)
        options = {"dimension_names": ("t", "y", "x")} if version == 3 else {}
        array = group.create_array("frames", shape=SIGNAL.shape, dtype="u2", chunks=SIGNAL.shape, **options)
        array[:] = SIGNAL
        if version == 2:
            array.attrs["_ARRAY_DIMENSIONS"] = ["t", "y", "x"]
        kind, unit = stored[0], stored[3:5]
        step = {"ms": 20, "us": 20_000, "ns": 20_000_000}[unit]
        times = (np.arange(5) * step + (1_700_000_000_123 if unit == "ms" else 0)).astype("i8")
        if unit == "ns":
            times += 1_700_000_000_123_456_789
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # Zarr says that version 3 does not name dates yet
            group.create_array("t", shape=(5,), dtype=f"{kind}8[{unit}]", chunks=(5,))[:] = times.view(
                f"{kind}8[{unit}]"
            )
        info, _ = read(path)
        assert info.frame_time_s == pytest.approx(0.02, rel=1e-9)
        np.testing.assert_allclose(np.diff(info.timestamps_s), 0.02, rtol=1e-6)


def test_a_dm5_director_leads_to_the_frames_of_its_capture(tmp_path: Path) -> None:
    write_dm5(tmp_path / "cap.dm5", SIGNAL[0], recorded=5)
    (tmp_path / "cap.raw").write_bytes(SIGNAL.tobytes())
    info, data = read(tmp_path / "cap.dm5")
    np.testing.assert_array_equal(data, SIGNAL)
    for field in ALL:
        assert getattr(info, field) == pytest.approx(CALIBRATION[field]), field


@pytest.mark.parametrize("recorded", [None, 5], ids=["series", "director"])
def test_a_calibration_of_brightness_in_dm5_is_told(tmp_path: Path, recorded: int | None) -> None:
    write_dm5(tmp_path / "cap.dm5", SIGNAL if recorded is None else SIGNAL[0], recorded)
    (tmp_path / "cap.raw").write_bytes(SIGNAL.tobytes())
    with h5py.File(tmp_path / "cap.dm5", "a") as file:
        brightness = file.create_group("ImageList/[1]/ImageData/Calibrations/Brightness")
        brightness.attrs.update({"Scale": np.float32(0.5), "Origin": np.float32(0), "Units": "e-"})
    (said,) = read(tmp_path / "cap.dm5")[0].warnings
    assert "number x 0.5 e-" in said and "--counts-per-electron 2" in said


def test_one_of_several_images_of_a_dm_file_is_chosen_by_its_name(tmp_path: Path) -> None:
    write_dm(tmp_path / "a.dm4", SIGNAL, 4)
    np.testing.assert_array_equal(read(tmp_path / "a.dm4", dataset="ImageList/0")[1], SIGNAL)
    assert "its images are ImageList/0 (5 x 18 x 19)" in refusal(tmp_path / "a.dm4", dataset="freezing")


def test_a_movie_of_metamorph_has_its_planes_and_their_times(tmp_path: Path) -> None:
    tifffile.imwrite(tmp_path / "a.stk", SIGNAL[0], photometric="minisblack", metadata=None, byteorder="<")
    raw = bytearray((tmp_path / "a.stk").read_bytes())
    (first,) = struct.unpack("<I", raw[4:8])
    (n_tags,) = struct.unpack("<H", raw[first : first + 2])
    entries = raw[first + 2 : first + 2 + 12 * n_tags]
    at = next(k for k in range(0, len(entries), 12) if entries[k : k + 2] == b"\x11\x01")
    pixels = len(raw)
    entries[at + 8 : at + 12] = struct.pack("<I", pixels)
    raw += SIGNAL.tobytes()
    entries += struct.pack("<HHII", 33629, 5, len(SIGNAL), len(raw))
    raw += b"".join(
        struct.pack("<6I", 0, 1, 2_459_809, 49_774_528 + 200 * k, 0, 0) for k in range(len(SIGNAL))
    )
    raw[4:8] = struct.pack("<I", len(raw))
    raw += struct.pack("<H", n_tags + 1) + entries + bytes(4)
    (tmp_path / "a.stk").write_bytes(raw)
    info, data = read(tmp_path / "a.stk")
    np.testing.assert_array_equal(data, SIGNAL)
    assert info.frame_time_s == pytest.approx(0.2)


OTHER_UNITS = ["1/nm", "mrad", "furlong", "K", "arcsec", "degrees_north"]


def write_units(folder: Path, unit: str, *, of_time: bool) -> list[Path]:
    """A movie in several formats, its frames or its pixels in a unit of another kind."""
    time, length = (unit, "nm") if of_time else ("s", unit)
    write_dm(folder / "a.dm4", SIGNAL, 4, units=((length, 0.5), (length, 0.5), (time, 2.0)))
    write_hyperspy(folder / "a.hspy", SIGNAL, (True, False, False), (time, length, length))
    axes = [(name, u, step) for name, u, step in (("", time, 2.0), ("", length, 0.5), ("", length, 0.5))]
    write_ncem(folder / "a.emd", SIGNAL, axes)
    coordinates = {
        name: (name, np.arange(n) * 0.5, {"units": u})
        for name, n, u in zip("uyx", SIGNAL.shape, (time, length, length), strict=True)
    }
    dataset = xarray.Dataset({"frames": (tuple("uyx"), SIGNAL)}, coordinates)
    dataset.to_zarr(folder / "a.zarr", consolidated=False)
    ome = {"axes": "TYX", "TimeIncrement": 2.5, "TimeIncrementUnit": time}
    ome |= {f"PhysicalSize{axis}": 0.5 for axis in "XY"} | {
        f"PhysicalSize{axis}Unit": length for axis in "XY"
    }
    tifffile.imwrite(folder / "a.ome.tif", SIGNAL, photometric="minisblack", metadata=ome)
    imagej = {"axes": "TYX", "finterval": 2.5, "tunit": time, "unit": length}
    tifffile.imwrite(folder / "a.tif", SIGNAL, imagej=True, metadata=imagej, resolution=(2.0, 2.0))
    return [folder / name for name in ("a.dm4", "a.hspy", "a.emd", "a.zarr", "a.ome.tif", "a.tif")]


@pytest.mark.parametrize("unit", OTHER_UNITS)
@pytest.mark.parametrize("of_time", [True, False])
def test_no_calibration_in_another_unit_is_lost_without_a_word(
    tmp_path: Path, unit: str, of_time: bool
) -> None:
    for path in write_units(tmp_path, unit, of_time=of_time):
        try:
            info, _ = read(path)
        except InputError as error:
            assert "not a movie" in str(error)  # of an angle, for example
            continue
        assert (info.frame_time_s if of_time else info.pixel_size_nm) is None
        said = " ".join(info.warnings)
        assert (
            "not a movie over time" in said
            or f"{'--frame-time' if of_time else '--pixel-size'} gives it" in said
        )


@pytest.mark.parametrize("unit", ["", "px", "pixels", "frames", "<undefined>", "t.u."])
def test_of_what_is_no_calibration_nothing_is_said(tmp_path: Path, unit: str) -> None:
    for of_time in (True, False):
        folder = tmp_path / str(of_time)
        folder.mkdir()
        for path in write_units(folder, unit, of_time=of_time):
            assert read(path)[0].warnings == ()


def test_an_axis_that_runs_down_has_a_pixel_size_and_time_that_does_is_told(tmp_path: Path) -> None:
    write_dm(tmp_path / "a.dm4", SIGNAL, 4, units=(("nm", -0.5), ("nm", 0.25), ("s", 2.0)))
    assert read(tmp_path / "a.dm4")[0].pixel_size_nm == (0.25, 0.5)
    write_dm(tmp_path / "a.dm4", SIGNAL, 4, units=(("nm", 0.5), ("nm", 0.25), ("s", -2.0)))
    assert "--frame-time gives it" in read(tmp_path / "a.dm4")[0].warnings[0]


@pytest.mark.parametrize("version", [2, 3])
def test_frames_that_an_array_holds_as_channels_are_read_when_asked_for(tmp_path: Path, version: int) -> None:
    dataset = xarray.Dataset({"a": (("c", "y", "x"), SIGNAL)})
    dataset.to_zarr(tmp_path / "a.zarr", zarr_format=version, consolidated=False)
    dataset.to_netcdf(tmp_path / "a.nc", engine="h5netcdf")
    for name in ("a.zarr", "a.nc"):
        assert refusal(tmp_path / name).endswith("add --dataset a.")
        info, data = read(tmp_path / name, dataset="a")
        np.testing.assert_array_equal(data, SIGNAL)
        assert "a stack of channels" in info.warnings[0]
        with pytest.raises(InputError, match="single image"):
            open_raw(tmp_path / name, channel=1)


@pytest.mark.parametrize("kind", [b"SERI", b"FEI1", b"AGAR"])
@pytest.mark.parametrize("step", [0.0, 0.01, 3.0])
def test_a_tilt_series_in_mrc_is_named(tmp_path: Path, kind: bytes, step: float) -> None:
    tilts = -6 + step * np.arange(len(SIGNAL))
    if kind == b"SERI":
        content, numbers = (tilts * 100).round().astype("<i2").tobytes(), (2, 1)
    elif kind == b"FEI1":
        records = [struct.pack("<i96xd", 768, tilt).ljust(768, b"\0") for tilt in tilts]
        content, numbers = b"".join(records), (0, 0)
    else:
        content, numbers = b"".join(struct.pack("<32f", tilt, *[0.0] * 31) for tilt in tilts), (0, 32)
    write_mrc(tmp_path / "a.st", SIGNAL, 6, kind=kind, content=content)
    raw = bytearray((tmp_path / "a.st").read_bytes())
    raw[128:132] = struct.pack("<2h", *numbers)
    (tmp_path / "a.st").write_bytes(raw)
    info, data = read(tmp_path / "a.st")
    np.testing.assert_array_equal(data, SIGNAL)
    assert any("from -6 to 6 degrees: it is a tilt series" in said for said in info.warnings) == (step == 3.0)


def test_what_a_tiff_file_says_of_other_axes_and_of_other_tags_is_told(tmp_path: Path) -> None:
    tifffile.imwrite(tmp_path / "a.tif", SIGNAL, photometric="minisblack", metadata={"axes": "AYX"})
    assert "a stack over an angle" in read(tmp_path / "a.tif")[0].warnings[0]
    tags = [(37706, "B", 4, b"\2\0\0\0", False)]
    tifffile.imwrite(tmp_path / "b.tif", SIGNAL, photometric="minisblack", metadata=None, extratags=tags)
    assert "tags of TVIPS, which are not read" in read(tmp_path / "b.tif")[0].warnings[0]


def test_a_netcdf_file_of_version_3_is_named(tmp_path: Path) -> None:
    (tmp_path / "a.nc").write_bytes(b"CDF\1" + bytes(500))
    assert "netCDF file of version 3" in refusal(tmp_path / "a.nc")
