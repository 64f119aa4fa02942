"""One frame time in every format: the usual step, whatever pauses, jumps and dates the time stamps hold."""

from __future__ import annotations

import json
from collections.abc import Callable
from fractions import Fraction
from pathlib import Path
from typing import Any

import av
import h5py
import numpy as np
import pytest
import tifffile
import xarray as xr
from array_files import ask_forked, write_ncem, write_velox
from numpy.typing import NDArray
from raw_files import movie, write_dm, write_mib, write_mrc, write_npy, write_seq, write_tvips
from tdenoise_pipeline.errors import InputError, UsageError
from tdenoise_pipeline.ingest import fingerprint
from tdenoise_pipeline.ingest.ingest import ingest
from tdenoise_pipeline.ingest.ingest_plan import describe_plan
from tdenoise_pipeline.ingest.measurements import timing
from tdenoise_pipeline.readers import MovieInfo, hdf5, open_raw, video
from tdenoise_pipeline.readers.timestamps import frame_time, intervals, usual_step
from tdenoise_pipeline.settings.config import IngestConfig
from tdenoise_pipeline.settings.parse import frame_seconds, nanometres, seconds
from tdenoise_pipeline.store import store

N = 12
COUNTS = movie("<u2", (N, 18, 20))
EVEN = 0.01 * np.arange(N)  # [s]
PAUSE = EVEN + 5.0 * (np.arange(N) > 7)
BACK = EVEN - 0.05 * (np.arange(N) > 7)
NM = ("nm", 0.02)


@pytest.fixture(autouse=True)
def quick_child(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(hdf5, "ask", ask_forked)
    monkeypatch.setattr(video, "ask", ask_forked)


def info_of(path: Path) -> MovieInfo:
    with open_raw(path) as reader:
        assert json.dumps(reader.info.metadata, allow_nan=False)
        return reader.info


def write_xarray(path: Path, times: NDArray[np.float64], version: int = 3) -> None:
    found = xr.Dataset({"counts": (("time", "y", "x"), COUNTS)}, {"time": ("time", times, {"units": "s"})})
    found.to_zarr(path, zarr_format=version, consolidated=False, mode="w")


def write_netcdf(path: Path, times: NDArray[Any], unit: str = "s") -> None:
    with h5py.File(path, "w") as file:
        array = file.create_dataset("counts", data=COUNTS)
        file["time"] = times
        file["time"].attrs["units"] = unit
        file["time"].make_scale("time")
        array.dims[0].attach_scale(file["time"])


def write_ome(path: Path, times: NDArray[np.float64]) -> None:
    planes = {"DeltaT": times.tolist(), "DeltaTUnit": ["s"] * N}
    described = {"axes": "TYX", "Plane": planes, "TimeIncrement": 0.01, "TimeIncrementUnit": "s"}
    tifffile.imwrite(path, COUNTS, ome=True, metadata=described, photometric="minisblack")


def write_mp4(path: Path, times: NDArray[np.float64]) -> None:
    with av.open(str(path), "w") as container:
        stream = container.add_stream("mpeg4", rate=100)
        stream.height, stream.width, stream.pix_fmt = 32, 32, "yuv420p"
        stream.codec_context.time_base = stream.time_base = (tick := Fraction(1, 1000))
        for k, time in enumerate(times):
            frame = av.VideoFrame.from_ndarray(np.full((32, 32), 10 * k, "u1"), format="gray")
            frame.pts, frame.time_base = round(time * 1000), tick
            container.mux(stream.encode(frame.reformat(format="yuv420p")))
        container.mux(stream.encode())


def restamp(
    step_bytes: int, place: int, layout: Callable[[float], bytes]
) -> Callable[[Path, NDArray[np.float64]], None]:
    """Writes new time stamps into a file with one at a constant distance."""

    def write(path: Path, times: NDArray[np.float64]) -> None:
        content = bytearray(path.read_bytes())
        for k, time in enumerate(times):
            new = layout(time)
            content[place + k * step_bytes : place + k * step_bytes + len(new)] = new
        path.write_bytes(content)

    return write


def write_seq_times(path: Path, times: NDArray[np.float64]) -> None:
    write_seq(path, COUNTS, rate=100.0)
    n_bytes = COUNTS[0].nbytes

    def stamp(time: float) -> bytes:
        seconds, us = divmod(1_400_000_000_000_000 + round(time * 1e6), 10**6)
        return np.array([seconds], "<u4").tobytes() + np.array([us // 1000, us % 1000], "<u2").tobytes()

    restamp(n_bytes + 32, 8192 + n_bytes, stamp)(path, times)


def write_tvips_times(path: Path, times: NDArray[np.float64]) -> None:
    write_tvips(path, COUNTS)

    def stamp(time: float) -> bytes:
        return np.array(divmod(1_400_000_000_000 + round(time * 1e3), 1000), "<u4").tobytes()

    restamp(64 + COUNTS[0].nbytes, 256 + 4, stamp)(path, times)


FORMATS: dict[str, Callable[[Path, NDArray[np.float64]], None]] = {
    "a.zarr": write_xarray,
    "v2.zarr": lambda path, times: write_xarray(path, times, 2),
    "a.h5": write_netcdf,
    "a.emd": lambda path, times: write_ncem(path, COUNTS, [("time", "s", times), ("y", *NM), ("x", *NM)]),
    "a.ome.tif": write_ome,
    "a.seq": write_seq_times,
    "a_000.tvips": write_tvips_times,
}


@pytest.mark.parametrize("name", [*FORMATS, "a.mp4"])
def test_a_pause_does_not_change_the_frame_time_and_is_counted_as_lost_frames(
    tmp_path: Path, name: str
) -> None:
    (FORMATS | {"a.mp4": write_mp4})[name](tmp_path / name, PAUSE)
    info = info_of(tmp_path / name)
    assert info.frame_time_s == pytest.approx(0.01)
    said = [w for w in info.warnings if "intervals between frames" in w]
    assert len(said) == 1 and "about 500 frames were lost" in said[0] and "after frame 7 (5.01 s)" in said[0]
    found = timing(info.timestamps_s)
    assert found is not None
    assert (found["dropped_after"], found["n_dropped"]) == ([7], 500)
    assert found["interval_s"] == pytest.approx(0.01)


@pytest.mark.parametrize("name", FORMATS)
def test_a_clock_that_runs_back_once_leaves_the_frame_time_and_the_warning_says_so(
    tmp_path: Path, name: str
) -> None:
    FORMATS[name](tmp_path / name, BACK)
    info = info_of(tmp_path / name)
    assert info.frame_time_s == pytest.approx(0.01)
    assert "run backwards after frame 7; 0.01 s from frame to frame is used" in info.warnings[0]
    assert not any("unknown" in warning for warning in info.warnings)


@pytest.mark.parametrize("name", FORMATS)
def test_even_times_are_the_frame_time_and_nothing_is_said(tmp_path: Path, name: str) -> None:
    FORMATS[name](tmp_path / name, EVEN)
    info = info_of(tmp_path / name)
    assert info.frame_time_s == pytest.approx(0.01) and info.warnings == ()


@pytest.mark.parametrize("version", [2, 3])
@pytest.mark.parametrize("how", ["xarray", "native"])
def test_dates_are_times(tmp_path: Path, version: int, how: str) -> None:
    dates = np.datetime64("2024-05-07T12:00:00", "ns") + (np.arange(N) * 13_333_333).astype("m8[ns]")
    if how == "xarray":
        found = xr.Dataset({"counts": (("time", "y", "x"), COUNTS)}, {"time": dates})
        found.to_zarr(tmp_path / "a.zarr", zarr_format=version, consolidated=False)
    else:
        write_native_dates(tmp_path / "a.zarr", dates, version)
    info = info_of(tmp_path / "a.zarr")
    assert info.frame_time_s == pytest.approx(0.013333333)
    assert info.timestamps_s is not None
    np.testing.assert_allclose(
        info.timestamps_s - info.timestamps_s[0], np.arange(N) * 0.013333333, atol=1e-9
    )
    assert info.warnings == ()


def write_native_dates(path: Path, dates: NDArray[np.datetime64], version: int) -> None:
    """Dates as Zarr's own type; one of them is not a time."""
    write_xarray(path, np.arange(N) * 13_333_333.0 + 1, version)
    array = path / "time" / ("zarr.json" if version == 3 else ".zarray")
    told = json.loads(array.read_text())
    if version == 3:
        settings = {"unit": "ns", "scale_factor": 1}
        told |= {"data_type": {"name": "numpy.datetime64", "configuration": settings}, "fill_value": 0}
        told |= {"attributes": {}, "codecs": [{"name": "bytes", "configuration": {"endian": "little"}}]}
        (path / "time/c/0").write_bytes(dates.astype("<i8").tobytes())
    else:
        told |= {"dtype": "<M8[ns]", "fill_value": 0, "compressor": None, "filters": None}
        (path / "time/.zattrs").write_text(json.dumps({"_ARRAY_DIMENSIONS": ["time"]}))
        (path / "time/0").write_bytes(dates.astype("<i8").tobytes())
    array.write_text(json.dumps(told))


@pytest.mark.parametrize(
    ("unit", "step"),
    [
        ("milliseconds since 2024-05-07 12:00:00", 10),
        ("nanoseconds since 1970-01-01", 10_000_000),
        ("ms", 10),
    ],
)
def test_netcdf_times_since_a_moment_are_times(tmp_path: Path, unit: str, step: int) -> None:
    first = 1_715_083_200_000_000_000 if unit.startswith("nano") else 0
    write_netcdf(tmp_path / "a.h5", first + step * np.arange(N, dtype="<i8"), unit)
    info = info_of(tmp_path / "a.h5")
    assert info.frame_time_s == pytest.approx(0.01) and info.timestamps_s is not None


def test_a_packed_axis_of_time_is_unpacked(tmp_path: Path) -> None:
    write_netcdf(tmp_path / "a.h5", np.arange(N, dtype="<i2"), "s")
    with h5py.File(tmp_path / "a.h5", "r+") as file:
        file["time"].attrs.update({"scale_factor": 0.01, "add_offset": 3.0})
    assert info_of(tmp_path / "a.h5").frame_time_s == pytest.approx(0.01)


def test_a_frame_without_a_time_is_told(tmp_path: Path) -> None:
    times = EVEN.copy()
    times[4] = np.nan
    write_netcdf(tmp_path / "a.h5", times)
    info = info_of(tmp_path / "a.h5")
    assert info.frame_time_s == pytest.approx(0.01) and "1 frames have no time stamp" in info.warnings[0]


def test_velox_and_merlin_stamps_go_the_same_way(tmp_path: Path) -> None:
    write_velox(tmp_path / "a.emd", COUNTS, step_us=10_000)
    assert info_of(tmp_path / "a.emd").frame_time_s == 0.01
    write_mib(tmp_path / "a.mib", COUNTS)
    assert info_of(tmp_path / "a.mib").frame_time_s == 0.01


def test_what_the_header_says_is_used_where_the_stamps_agree_and_overruled_where_they_do_not() -> None:
    assert frame_time(EVEN, 1e-6, told_s=0.0100004) == (0.0100004, ())
    assert frame_time(EVEN, 1e-6, told_s=0.0103) == (0.01, ())
    used, (said,) = frame_time(EVEN, 1e-6, told_s=0.04)
    assert used == 0.01 and "header says 0.04 s" in said and "0.01 s, which is used" in said
    assert frame_time(EVEN[::-1], 1e-6, told_s=0.04)[0] == 0.04
    assert "0.04 s from frame to frame is used" in frame_time(EVEN[::-1], 1e-6, told_s=0.04)[1][0]
    assert "the frame time is unknown" in frame_time(EVEN[::-1], 1e-6)[1][0]


def test_steps_of_an_axis_are_the_usual_ones_in_either_direction() -> None:
    assert usual_step(np.array([0.0, 0.5, 1.0, 1.5, 9.0])) == 0.5
    assert usual_step(np.array([9.0, 1.5, 1.0, 0.5, 0.0])) == 0.5
    assert usual_step(np.array([1.0, 1.0, 1.0])) is None and usual_step(np.array([np.nan, np.nan])) is None
    assert intervals(np.array([0.0, 1.0, 2.5, 3.5])).usual_s == 1.0


# What the user says


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("90s", 90.0), ("20m", 1200.0), ("1h30m", 5400.0), ("1h 30m", 5400.0), ("13ms", 0.013),
        ("13.3 ms", 0.0133), ("250us", 2.5e-4), ("250µs", 2.5e-4), ("2d", 172_800.0), ("1.5h", 5400.0),
    ],
)  # fmt: skip
def test_durations_are_written_as_people_write_them(text: str, value: float) -> None:
    assert seconds(text) == value


@pytest.mark.parametrize("text", ["", "fast", "13 sheep", "1h30", "-3s", "0s", "s", "1h2h", "nan", "1:30"])
def test_what_is_no_duration_is_refused_with_an_example(text: str) -> None:
    with pytest.raises(ValueError, match="1h30m or 13ms|must be a positive number"):
        seconds(text)


@pytest.mark.parametrize("text", ["75", "40", "1e-9", "13.3"])
def test_a_bare_frame_time_is_asked_for_its_unit(text: str) -> None:
    with pytest.raises(
        ValueError, match=f"needs a unit, such as {text}s or {text}ms; {text} frames per second"
    ):
        frame_seconds(text)
    assert frame_seconds(f"{text}s") == float(text)


@pytest.mark.parametrize("text", ["500", "1e-5"])
def test_a_bare_pixel_size_that_no_microscope_has_is_asked_about(text: str) -> None:
    with pytest.raises(ValueError, match=f"Write {text}nm if you mean it"):
        nanometres(text)
    assert nanometres(f"{text}nm") == float(text)
    assert (nanometres("0.2Å"), nanometres("2 pm"), nanometres("0.02")) == (0.02, 0.002, 0.02)


@pytest.mark.parametrize("told", [75.0, None])
def test_settings_that_contradict_the_file_are_told(tmp_path: Path, told: float | None) -> None:
    write_dm(tmp_path / "a.dm4", COUNTS, 4)  # 2.5 ms, 0.25 x 0.5 nm
    config = IngestConfig(
        raw=tmp_path / "a.dm4", output=tmp_path / "a.zarr", frame_time=told, pixel_size=0.375
    )
    warnings = describe_plan(config)["warnings"]
    if told is None:
        assert warnings == []
    else:
        assert "gives a frame time of 0.0025 s; --frame-time 75 s is used instead" in warnings[0]


def test_a_calibration_of_the_file_that_hardly_any_movie_has_is_told(tmp_path: Path) -> None:
    write_mrc(tmp_path / "a.mrc", COUNTS, 6, cell=2e5)
    ingest(IngestConfig(raw=tmp_path / "a.mrc", output=tmp_path / "a.zarr"))
    assert "pixel size of 20000 nm" in store.read_attributes(tmp_path / "a.zarr")["warnings"][0]


# A raw file that changes


def test_a_file_that_changed_while_it_was_read_is_begun_anew_by_the_same_command(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    raw = tmp_path / "a.npy"
    write_npy(raw, COUNTS[:6])
    config = IngestConfig(raw=raw, output=tmp_path / "a.zarr")
    check = fingerprint.Source.check_unchanged

    def grow(self: fingerprint.Source) -> None:
        write_npy(raw, COUNTS)
        check(self)

    with monkeypatch.context() as patched:
        patched.setattr(fingerprint.Source, "check_unchanged", grow)
        with pytest.raises(InputError, match="changed while it was read"):
            ingest(config)
    ingest(config)
    np.testing.assert_array_equal(xr.open_zarr(tmp_path / "a.zarr")["counts"], COUNTS)


def test_another_file_under_the_name_of_an_unfinished_output_is_refused_and_the_difference_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "b").mkdir()
    write_npy(tmp_path / "a.npy", COUNTS)
    write_npy(tmp_path / "b/a.npy", COUNTS[:8])

    def fail(self: fingerprint.Source) -> None:
        raise InputError(self.raw, "changed")

    with monkeypatch.context() as patched:
        patched.setattr(fingerprint.Source, "check_unchanged", fail)
        with pytest.raises(InputError):
            ingest(IngestConfig(raw=tmp_path / "a.npy", output=tmp_path / "m.zarr"))
    with pytest.raises(UsageError, match=r"raw bytes was \d+, is \d+") as error:
        ingest(IngestConfig(raw=tmp_path / "b/a.npy", output=tmp_path / "m.zarr"))
    assert "{" not in str(error.value)
