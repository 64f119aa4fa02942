from __future__ import annotations

import dataclasses
import hashlib
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import mrcfile
import numpy as np
import pytest
import tifffile
import xarray as xr
import zarr
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from small import counts, movie_store
from tdenoise_pipeline.archive.verify import verify
from tdenoise_pipeline.errors import (
    InputError,
    ResourceError,
    Stopped,
    UsageError,
    VerificationError,
)
from tdenoise_pipeline.ingest import copying, measurements
from tdenoise_pipeline.ingest import fingerprint as source_module
from tdenoise_pipeline.ingest import ingest as module
from tdenoise_pipeline.ingest.fingerprint import Digest, Source
from tdenoise_pipeline.ingest.ingest import describe_plan, ingest
from tdenoise_pipeline.ingest.measurements import timing
from tdenoise_pipeline.readers import MovieInfo
from tdenoise_pipeline.resources import budget
from tdenoise_pipeline.settings.config import IngestConfig, VerifyConfig
from tdenoise_pipeline.step_control import Control
from tdenoise_pipeline.store import store


def test_tiff_and_mrc_become_the_same_counts(tmp_path: Path) -> None:
    frames = counts((40, 30, 20)).astype(np.uint16)
    tifffile.imwrite(
        tmp_path / "a.tif", frames, imagej=True, metadata={"axes": "TYX", "finterval": 0.1, "unit": "nm"}
    )
    with mrcfile.new(tmp_path / "b.mrc") as file:
        file.set_data(frames)
        file.set_image_stack()
        file.voxel_size = 0.5
    for name in ("a.tif", "b.mrc"):
        ingest(IngestConfig(raw=tmp_path / name, output=tmp_path / f"{name}.zarr"))
        np.testing.assert_array_equal(xr.open_zarr(tmp_path / f"{name}.zarr")["counts"], frames)
    assert store.open_store(tmp_path / "a.tif.zarr", store.MOVIE).coordinates.frame_time_s == pytest.approx(
        0.1
    )
    assert store.open_store(tmp_path / "b.mrc.zarr", store.MOVIE).coordinates.pixel_size_nm == pytest.approx(
        (0.05, 0.05)
    )


@pytest.mark.parametrize("dtype", ["u1", "i2", "u2", "i4", "f4", "f8"])
def test_no_value_is_changed_whatever_the_type(tmp_path: Path, dtype: str) -> None:
    frames = (
        np.random.default_rng(0)
        .normal(0, 60, (9, 33, 31))
        .clip(0 if dtype[0] == "u" else -100, 120)
        .astype(dtype)
    )
    np.testing.assert_array_equal(xr.open_zarr(movie_store(tmp_path, frames))["counts"], frames)


def test_a_frame_of_the_fill_value_is_stored_like_any_other(tmp_path: Path) -> None:
    frames = counts((8, 16, 16))
    frames[:4] = 255
    path = movie_store(tmp_path, frames)
    verify(VerifyConfig(store=path))
    np.testing.assert_array_equal(xr.open_zarr(path)["counts"], frames)


def test_frames_and_field_can_be_chosen(tmp_path: Path) -> None:
    frames = counts((20, 30, 40))
    path = movie_store(tmp_path, frames, frames=(3, 15), roi=((5, 25), (0, None)), frame_time=0.5)
    kept = xr.open_zarr(path)["counts"]
    np.testing.assert_array_equal(kept, frames[3:15, 5:25])
    assert float(kept["t"][0]) == 1.5, "time still counts from the start of the raw movie"
    assert float(kept["y"][0]) == 5
    assert store.open_store(path, store.MOVIE).coordinates == store.Coordinates(0.5, None, (3, 5, 0))
    with pytest.raises(UsageError, match="frames 3:99 are not all in the movie, which has 20"):
        describe_plan(IngestConfig(raw=tmp_path / "raw.npy", output=tmp_path / "x", frames=(3, 99)))


def test_the_store_says_where_the_movie_comes_from_and_how_noisy_it_is(tmp_path: Path) -> None:
    path = movie_store(tmp_path, counts((60, 128, 128), dose=0.5), counts_per_electron=1.0, pixel_size=0.02)
    attributes = store.read_attributes(path)
    raw = (tmp_path / "raw.npy").read_bytes()
    assert attributes["source"]["sha256"] == hashlib.sha256(raw).hexdigest()
    assert attributes["source"]["bytes"] == len(raw)
    noise = attributes["noise"]
    assert noise["fano"] == pytest.approx(1, abs=0.03)
    assert abs(noise["correlation_x"]) < 0.02 and abs(noise["correlation_y"]) < 0.02
    assert attributes["dose"]["per_pixel"] == pytest.approx(0.5, rel=0.02)
    assert attributes["dose"]["per_square_angstrom"] == pytest.approx(0.5 / 0.04, rel=0.02)
    assert len(attributes["frame_means"]) == 60
    assert attributes["warnings"] == []


def test_correlated_noise_is_measured_and_told(tmp_path: Path) -> None:
    from scipy.ndimage import uniform_filter

    noise = uniform_filter(np.random.default_rng(0).poisson(2.0, (20, 64, 64)).astype(np.float32), (0, 1, 2))
    attributes = store.read_attributes(movie_store(tmp_path, noise))
    assert attributes["noise"]["correlation_x"] == pytest.approx(0.5, abs=0.05)
    assert abs(attributes["noise"]["correlation_y"]) < 0.05
    assert any("not that of single electrons" in said for said in attributes["warnings"])


@settings(max_examples=20, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.data())
def test_frames_field_sums_and_groups_are_those_of_numpy(tmp_path: Path, data: st.DataObject) -> None:
    bin, group = data.draw(st.integers(1, 4)), data.draw(st.integers(1, 5))
    kept = [data.draw(st.integers(3 * group, 75)), *(data.draw(st.integers(2 * bin, 20)) for _ in "yx")]
    before, after = (data.draw(st.tuples(*3 * [st.integers(0, 5)])) for _ in range(2))
    shape = tuple(sum(part) for part in zip(before, kept, after, strict=True))
    (t0, t1), (y0, y1), (x0, x1) = ((b, b + k) for b, k in zip(before, kept, strict=True))
    n, height, width = (t1 - t0) // group, (y1 - y0) // bin, (x1 - x0) // bin
    dtype = data.draw(st.sampled_from(["u1", "i2", "u2", "f4"]))
    frames = np.random.default_rng(0).integers(0, 120, shape).astype(dtype)
    shutil.rmtree(tmp_path)
    chosen = {"frames": (t0, t1), "roi": ((y0, y1), (x0, x1)), "bin": bin, "group": group}
    path = movie_store(
        tmp_path, frames, **chosen, keep_defects=True, xray="keep", frame_time=0.5, pixel_size=2.0
    )
    part = frames[t0 : t0 + n * group, y0 : y0 + height * bin, x0 : x0 + width * bin].astype(np.float64)
    expected = part.reshape(n, group, height, bin, width, bin).sum(axis=(1, 3, 5))
    dataset = xr.open_zarr(path)
    np.testing.assert_array_equal(dataset["counts"], expected)
    centres = np.arange(t0, t0 + n * group).reshape(n, group).mean(axis=1)
    np.testing.assert_allclose(dataset["t"], 0.5 * centres)
    np.testing.assert_allclose(
        dataset["y"], 2 * np.arange(y0, y0 + height * bin).reshape(-1, bin).mean(axis=1)
    )
    attributes = store.read_attributes(path)
    left = (t1 - t0) % group, (y1 - y0) % bin, (x1 - x0) % bin
    assert sum("are left out" in warning for warning in attributes["warnings"]) == sum(n > 0 for n in left)
    assert attributes["mean"] == pytest.approx(expected.mean())


def test_sums_that_leave_nothing_are_refused(tmp_path: Path) -> None:
    np.save(tmp_path / "raw.npy", counts((20, 16, 16)))
    with pytest.raises(InputError, match=r"2 frame\(s\) of 8"):
        describe_plan(IngestConfig(raw=tmp_path / "raw.npy", output=tmp_path / "x", group=8))
    with pytest.raises(UsageError, match="--bin 17"):
        describe_plan(IngestConfig(raw=tmp_path / "raw.npy", output=tmp_path / "x", bin=17))


def test_settings_win_over_the_file_and_unknown_stays_unknown(tmp_path: Path) -> None:
    frames = counts((5, 8, 9))
    attributes = store.read_attributes(movie_store(tmp_path / "a", frames))
    assert attributes["detector"] == dict.fromkeys(
        ["counts_per_electron", "camera", "exposure_s", "voltage_kv"]
    )
    given = {"camera": "K3", "voltage": 300.0, "exposure": 0.01, "dose_rate": 5.0, "group": 1}
    attributes = store.read_attributes(movie_store(tmp_path / "b", frames, **given))
    assert attributes["detector"] == {
        "counts_per_electron": None, "camera": "K3", "exposure_s": 0.01, "voltage_kv": 300.0
    }  # fmt: skip
    assert attributes["dose"]["stated_e_per_nm2_s"] == 5.0


def test_blank_and_repeated_frames_are_named_across_the_borders_of_slabs(tmp_path: Path) -> None:
    frames = counts((100, 24, 24))
    frames[[5, 40, 41]] = 0
    frames[7] = frames[6]
    frames[64] = frames[63]  # the first of its slab
    attributes = store.read_attributes(movie_store(tmp_path / "a", frames, frames=(2, None)))
    assert attributes["blank_frames"] == [3, 38, 39]
    assert attributes["repeated_frames"] == [5, 62]
    assert attributes["noise"]["fano"] == pytest.approx(1, abs=0.1)
    assert [w for w in attributes["warnings"] if "blank" in w or "repeat" in w] == [
        "frames 3, 38, 39 are blank: all their pixels have the same value.",
        "frames 5, 62 repeat the frame before, bit by bit.",
    ]
    attributes = store.read_attributes(movie_store(tmp_path / "b", frames, group=3, roi=((0, 20), (0, None))))
    assert attributes["blank_frames"] == [1, 13]
    assert attributes["repeated_frames"] == [2, 21]


def test_time_stamps_are_kept_and_gaps_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    stamps = 100 + 0.1 * np.arange(40)
    stamps[12:] += 0.31  # three frames were lost
    opened = module.open_movie

    def open_with_stamps(config: IngestConfig) -> object:
        reader = opened(config)
        reader.info = dataclasses.replace(reader.info, timestamps_s=stamps)
        return reader

    monkeypatch.setattr(module, "open_movie", open_with_stamps)
    path = movie_store(tmp_path, counts((40, 16, 16)), frames=(2, None), group=2)
    found = xr.open_zarr(path)["timestamp"]
    np.testing.assert_allclose(found, stamps[2:].reshape(-1, 2).mean(axis=1))
    assert (found.dims, found.attrs["units"]) == (("t",), "s")
    attributes = store.read_attributes(path)
    assert attributes["timing"]["n_dropped"] in (1, 2)  # of the groups' intervals
    assert attributes["timing"]["dropped_after"] == [4]
    assert "frames were lost, after frames 4" in attributes["warnings"][0]


@pytest.mark.parametrize(
    ("steps", "expected"),
    [
        ([1.0] * 20, (1.0, False, [], 0)),
        ([1.0] * 10 + [1.3] * 3, (1.0, True, [], 0)),
        ([1.0] * 4 + [4.0] + [1.0] * 8, (1.0, True, [4], 3)),
        ([1.0] * 4 + [float("nan")], (1.0, True, [], 0)),
        ([0.0] * 4, (None, True, [], 0)),
    ],
)
def test_intervals_say_what_was_lost(steps: list[float], expected: tuple[object, ...]) -> None:
    found = timing(np.cumsum([0.0, *steps]))
    assert found is not None
    assert (found["interval_s"], found["uneven"], found["dropped_after"], found["n_dropped"]) == expected


def drifting_scene(n_frames: int = 160) -> np.ndarray:
    """Counts of a scene that moves by 0.05 rows and -0.03 columns per frame."""
    y, x = np.mgrid[:96, :96]
    scene = np.random.default_rng(3).uniform(0, 96, (60, 2))
    frames = np.empty((n_frames, 96, 96), dtype=np.uint8)
    for t, frame in enumerate(frames):
        clean = 0.5 + sum(
            2 * np.exp(-((y - r - 0.05 * t) ** 2 + (x - c + 0.03 * t) ** 2) / 8) for r, c in scene
        )
        frame[:] = np.random.default_rng(t).poisson(clean)
    return frames


def test_drift_is_measured_stored_and_not_applied(tmp_path: Path) -> None:
    frames = drifting_scene()
    path = movie_store(tmp_path, frames, pixel_size=0.5)
    dataset = xr.open_zarr(path)
    np.testing.assert_array_equal(dataset["counts"], frames)
    assert (dataset["drift"].shape, dataset["drift"].attrs["units"]) == ((160, 2), "nm")
    np.testing.assert_allclose(dataset["drift"][-8], [0.5 * 0.05 * 152, -0.5 * 0.03 * 152], atol=0.3)
    assert store.read_attributes(path)["drift"]["largest"] == pytest.approx(4.5, abs=0.5)
    noise = movie_store(tmp_path / "noise", np.random.default_rng(0).poisson(2.0, (64, 64, 64)).astype("u1"))
    assert "drift" not in xr.open_zarr(noise)


def test_a_scene_that_jumps_from_frame_to_frame_is_followed(tmp_path: Path) -> None:
    jumps = np.random.default_rng(5).normal(0, 1.5, (64, 2))
    y, x = np.mgrid[:64, :64].astype(float)
    places = np.random.default_rng(6).uniform(8, 56, (24, 2))
    frames = []
    for row, column in jumps:
        columns = [np.exp(-((y - a - row) ** 2 + (x - b - column) ** 2) / 9) for a, b in places]
        frames.append(2 + 6 * sum(columns))
    path = movie_store(tmp_path, np.random.default_rng(7).poisson(frames).astype(np.uint8))
    found = xr.open_zarr(path)["drift"].values
    assert np.std(found - jumps - (found - jumps).mean(axis=0)) < 0.5
    assert store.read_attributes(path)["drift"]["every_n_frames"] == 1


def test_hot_pixels_that_are_kept_do_not_hold_the_drift(tmp_path: Path) -> None:
    frames = drifting_scene(80)
    places = np.random.default_rng(0).integers(2, 94, (12, 2))
    frames[:, places[:, 0], places[:, 1]] += np.random.default_rng(1).poisson(60, (80, 12)).astype(np.uint8)
    dataset = xr.open_zarr(movie_store(tmp_path, frames, keep_defects=True))
    np.testing.assert_array_equal(dataset["counts"], frames)
    np.testing.assert_allclose(dataset["drift"][76] - dataset["drift"][4], [3.6, -2.16], atol=0.4)


@pytest.mark.parametrize("lost", [slice(80, 120), slice(0, 48), slice(152, 200)])
def test_where_the_scene_is_lost_no_drift_is_made_up(tmp_path: Path, lost: slice) -> None:
    frames = drifting_scene(200)
    frames[lost] = np.random.default_rng(5).poisson(frames.mean(), frames[lost].shape)
    found = xr.open_zarr(movie_store(tmp_path, frames))["drift"].values
    speed = np.diff(found, axis=0)
    assert np.abs(speed).max() < 0.15
    inner = slice(lost.start + 12 if lost.start else 0, lost.stop - 12 if lost.stop < 200 else 199)
    np.testing.assert_allclose(speed[inner], 0, atol=1e-9)


def test_a_changed_small_array_is_found_by_verify(tmp_path: Path) -> None:
    frames = counts((40, 32, 32))
    frames[:, 3, 4] = 99
    path = movie_store(tmp_path, frames, frame_time=0.1)
    verify(VerifyConfig(store=path))
    for name in ("bad_pixels", "t"):
        array = zarr.open_group(path, mode="r+", use_consolidated=False)[name]
        sound = array[:]
        array[0] = 1 - sound[0].astype(int)
        with pytest.raises(VerificationError, match=f"array '{name}' holds other data"):
            verify(VerifyConfig(store=path))
        array[:] = sound
    shutil.rmtree(path / "bad_pixels/c")
    with pytest.raises(VerificationError, match="bad_pixels"):
        verify(VerifyConfig(store=path))


def test_the_hash_of_several_files_is_that_of_their_list(tmp_path: Path) -> None:
    (tmp_path / "x").mkdir()
    files = (tmp_path / "x/2.bin", tmp_path / "10.bin")
    for k, file in enumerate(files):
        file.write_bytes(bytes([k]) * (3_000_000 + k))
    info = MovieInfo((3, 4, 4), np.dtype("u1"), "made up", "none", files=files)
    source = Source.of(tmp_path, info)
    assert source.n_bytes == 6_000_001
    listed = subprocess.run(["sha256sum", "x/2.bin", "10.bin"], cwd=tmp_path, capture_output=True, check=True)
    assert Digest(source).result(Control()) == hashlib.sha256(listed.stdout).hexdigest()
    source.check_unchanged()
    files[1].write_bytes(b"else")
    with pytest.raises(InputError, match="10.bin: changed while it was read"):
        source.check_unchanged()


def test_the_hash_waits_for_the_copy(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(source_module, "AHEAD_BYTES", 2**21)
    (tmp_path / "raw").write_bytes(bytes(2**24))
    source = Source.of(tmp_path / "raw", MovieInfo((3, 4, 4), np.dtype("u1"), "made up", "none"))
    digest = Digest(source)
    time.sleep(0.2)
    assert digest._thread.is_alive(), "it is no further ahead than allowed"
    assert digest.result(Control()) == hashlib.sha256(bytes(2**24)).hexdigest()


def test_a_movie_too_large_for_the_memory_is_refused_with_a_remedy(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(budget, "machine_memory_bytes", lambda: 2**29)
    np.save(tmp_path / "raw.npy", counts((40, 64, 64)))
    config = IngestConfig(raw=tmp_path / "raw.npy", output=tmp_path / "m.zarr")
    describe_plan(config)
    monkeypatch.setattr(budget, "machine_memory_bytes", lambda: 2**26)
    with pytest.raises(ResourceError, match="frames of 64 x 64 uint8 needs .* --roi"):
        ingest(config)
    assert not (tmp_path / "m.zarr-partial").exists()


def test_ingest_needs_no_torch() -> None:
    code = "import sys; import tdenoise_pipeline.ingest.ingest_many; print('torch' in sys.modules)"
    shown = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert shown == "False\n"


def test_non_finite_frames_are_kept_and_named(tmp_path: Path) -> None:
    frames = counts((10, 16, 16)).astype(np.float32)
    frames[4, 3, 3] = np.nan
    path = movie_store(tmp_path, frames)
    assert store.read_attributes(path)["not_finite_frames"] == [4]
    np.testing.assert_array_equal(xr.open_zarr(path)["counts"], frames)


@pytest.mark.parametrize("n_frames", [1, 2])
def test_one_or_two_frames_are_refused(tmp_path: Path, n_frames: int) -> None:
    np.save(tmp_path / "raw.npy", counts((n_frames, 16, 16)))
    with pytest.raises(InputError):
        ingest(IngestConfig(raw=tmp_path / "raw.npy", output=tmp_path / "m.zarr"))
    assert [p.name for p in tmp_path.iterdir()] == ["raw.npy"]


def test_the_raw_file_is_not_touched(tmp_path: Path) -> None:
    np.save(tmp_path / "raw.npy", counts((10, 16, 16)))
    (tmp_path / "raw.npy").chmod(0o444)
    before = (tmp_path / "raw.npy").stat()
    ingest(IngestConfig(raw=tmp_path / "raw.npy", output=tmp_path / "m.zarr"))
    after = (tmp_path / "raw.npy").stat()
    assert (before.st_mtime_ns, before.st_size) == (after.st_mtime_ns, after.st_size)


def test_a_raw_file_that_grows_while_it_is_read_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    np.save(tmp_path / "raw.npy", counts((40, 16, 16)))
    copy = copying.copy_slabs

    def copy_and_grow(*arguments: object) -> object:
        with (tmp_path / "raw.npy").open("ab") as file:
            file.write(b"more")
        return copy(*arguments)  # type: ignore[arg-type]

    monkeypatch.setattr(module, "copy_slabs", copy_and_grow)
    with pytest.raises(InputError, match="changed while it was read"):
        ingest(IngestConfig(raw=tmp_path / "raw.npy", output=tmp_path / "m.zarr"))
    assert not (tmp_path / "m.zarr").exists()


def test_a_stop_keeps_what_is_done_and_the_next_run_goes_on(tmp_path: Path) -> None:
    np.save(tmp_path / "raw.npy", counts((200, 16, 16)))
    config = IngestConfig(raw=tmp_path / "raw.npy", output=tmp_path / "m.zarr")
    control = Control()

    def stop_after_two(what: str, done: int, total: int) -> None:
        if done >= 2:
            control.stop.set()

    control.progress = stop_after_two
    with pytest.raises(Stopped):
        ingest(config, control)
    done = {p: p.stat().st_mtime_ns for p in (tmp_path / ".tdenoise/m.zarr/done").iterdir()}
    assert 2 <= len(done) < 7
    shards = {
        p: p.stat().st_mtime_ns for p in (tmp_path / "m.zarr-partial/counts/c").rglob("0") if p.is_file()
    }
    ingest(config)
    for path, written in shards.items():
        final = tmp_path / "m.zarr" / path.relative_to(tmp_path / "m.zarr-partial")
        assert final.stat().st_mtime_ns == written, "a finished block is not done again"
    np.testing.assert_array_equal(xr.open_zarr(tmp_path / "m.zarr")["counts"], counts((200, 16, 16)))
    assert sorted(p.name for p in tmp_path.iterdir()) == ["m.zarr", "raw.npy"]


@pytest.mark.chaos
def test_ingest_killed_at_random_and_started_again_gives_the_same_store(tmp_path: Path) -> None:
    frames = counts((640, 128, 128))
    np.save(tmp_path / "raw.npy", frames)
    command = [sys.executable, "-m", "tdenoise_pipeline.cli", "ingest", "raw.npy", "-o", "m.zarr", "-q"]
    rng = np.random.default_rng(0)
    for _ in range(3):
        process = subprocess.Popen(command, cwd=tmp_path, env={**os.environ, "OMP_NUM_THREADS": "1"})
        while process.poll() is None and not list(tmp_path.glob(".tdenoise/m.zarr/done/*.json")):
            time.sleep(0.01)
        time.sleep(float(rng.uniform(0, 0.2)))
        process.send_signal(signal.SIGKILL)
        process.wait()
    subprocess.run(command, cwd=tmp_path, check=True)
    np.testing.assert_array_equal(xr.open_zarr(tmp_path / "m.zarr")["counts"], frames)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["m.zarr", "raw.npy"]


@pytest.mark.parametrize("value", [3e38, 1e20])
def test_no_number_in_a_movie_keeps_ingest_from_ending(tmp_path: Path, value: float) -> None:
    frames = counts((64, 32, 32)).astype(np.float32)
    if value == 3e38:
        frames[20, 5, 6] = value  # one pixel of one frame
    else:
        frames *= np.float32(value)
    attributes = store.read_attributes(movie_store(tmp_path, frames))
    assert attributes["status"] == "complete"
    assert attributes["not_finite_frames"] == ([20] if value == 3e38 else [])
    assert (attributes["noise"] is None) == (value == 1e20)
    said = " ".join(attributes["warnings"])
    assert ("the noise could not be measured" in said) == (value == 1e20)


@pytest.mark.parametrize("keep", [False, True])
@pytest.mark.parametrize(
    ("value", "dtype"), [(3e38, "f4"), (-3.4e38, "f4"), (9.96921e36, "f8"), (np.inf, "f4"), (np.inf, "f2")]
)
def test_a_number_that_is_no_count_is_no_x_ray_and_its_frame_is_told(
    tmp_path: Path, value: float, dtype: str, keep: bool
) -> None:
    frames = counts((64, 32, 32)).astype(dtype)
    sound = frames.copy()
    frames[20, 5, 6] = value
    path = movie_store(tmp_path, frames, keep_defects=keep)
    attributes = store.read_attributes(path)
    assert attributes["not_finite_frames"] == [20] and attributes["xray_hits"]["n"] == 0
    assert any("beyond 1e30" in warning for warning in attributes["warnings"])
    assert attributes["range"][1] == sound.max() and attributes["mean"] == pytest.approx(
        sound.mean(), rel=0.01
    )
    frames[20, 5, 6] = value if keep else np.nan
    np.testing.assert_array_equal(xr.open_zarr(path)["counts"], frames)


@pytest.mark.parametrize("value", [np.nan, 1e200])
def test_a_movie_without_one_frame_of_counts_is_refused(tmp_path: Path, value: float) -> None:
    frames = counts((24, 16, 16)).astype(np.float64)
    frames[np.arange(24), np.arange(24) % 16, 3] = value  # another pixel in each frame
    np.save(tmp_path / "raw.npy", frames)
    with pytest.raises(InputError, match="no frame is usable"):
        ingest(IngestConfig(raw=tmp_path / "raw.npy", output=tmp_path / "m.zarr"))
    assert not (tmp_path / "m.zarr").exists()


def test_what_is_not_known_is_not_told_as_if_it_were(tmp_path: Path) -> None:
    """The Fano factor of a movie with a mean below 0, and times that tell no frames apart."""
    signed = store.read_attributes(
        movie_store(tmp_path / "signed", counts((24, 16, 16)).astype(np.int32) - 1000)
    )
    assert any("the mean is not above 0" in warning for warning in signed["warnings"])
    assert not any("nan" in warning for warning in signed["warnings"])
    frames = xr.Dataset(
        {"a": (("t", "y", "x"), counts((24, 16, 16)))}, {"t": ("t", np.zeros(24), {"units": "s"})}
    )
    frames.to_zarr(tmp_path / "raw.zarr", consolidated=False)
    still = ingest(IngestConfig(raw=tmp_path / "raw.zarr", output=tmp_path / "still.zarr"))
    assert not any("true times" in warning for warning in still["warnings"])


@pytest.mark.parametrize("what", ["drift", "NoiseAccumulator"])
def test_a_stop_ends_the_measurement_of_noise_and_drift(
    tmp_path: Path, what: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    np.save(tmp_path / "raw.npy", counts((600, 32, 32)))
    config = IngestConfig(raw=tmp_path / "raw.npy", output=tmp_path / "movie.zarr")
    control, function = Control(), getattr(measurements, what)

    def begun(*given: Any) -> Any:
        control.stop.set()
        return function(*given)

    with monkeypatch.context() as patched:
        patched.setattr(measurements, what, begun)
        with pytest.raises(Stopped) as stopped:
            ingest(config, control)
    assert stopped.value.exit_code == 75 and not config.output.exists()
    assert ingest(config)["status"] == "complete"


def test_a_stop_ends_verify(tmp_path: Path) -> None:
    control = Control()
    control.stop.set()
    with pytest.raises(Stopped):
        verify(VerifyConfig(store=movie_store(tmp_path, counts((8, 16, 16))), deep=True), control)


def test_noise_that_neighbours_share_is_no_flicker(tmp_path: Path) -> None:
    """A sum over a frame varies more than its independent electrons would."""
    rng = np.random.default_rng(5)
    wide = rng.poisson(1.0, (64, 132, 132)).astype(np.float32)
    shared = sum(wide[:, y : y + 128, x : x + 128] for y in range(3) for x in range(3))
    np.save(tmp_path / "movie.npy", shared.astype(np.uint8))
    told = ingest(IngestConfig(raw=tmp_path / "movie.npy", output=tmp_path / "m.zarr"))
    assert told["brightness"]["steady"]
