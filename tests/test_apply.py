"""The main job, and everything that can happen to it on the way."""

from __future__ import annotations

import dataclasses
import json
import os
import re
import signal
import subprocess
import sys
import threading
import time
import warnings
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import xarray as xr
from hypothesis import given
from hypothesis import strategies as st
from small import counts, model_folder, movie_store, network
from tdenoise_pipeline.apply import apply_plan, block_work
from tdenoise_pipeline.apply.apply import _shard_file, apply
from tdenoise_pipeline.apply.apply_plan import describe_plan, lay_out
from tdenoise_pipeline.archive.verify import verify
from tdenoise_pipeline.errors import (
    InputError,
    PipelineError,
    ResourceError,
    Stopped,
    UsageError,
    VerificationError,
)
from tdenoise_pipeline.inputs.model_fit import (
    movie_brightness,
    movie_drift,
    movie_scale,
    tell_drift,
)
from tdenoise_pipeline.runs import markers, paths
from tdenoise_pipeline.settings.config import (
    ApplyConfig,
    ApplyManyConfig,
    TrainConfig,
    VerifyConfig,
)
from tdenoise_pipeline.settings.workers import Workers
from tdenoise_pipeline.step_control import Control
from tdenoise_pipeline.store import store, writing
from tdenoise_pipeline.store.blocks import Halo, Region, plan_blocks
from tdenoise_pipeline.train.train import train_model
from tdenoise_pipeline.workers import cluster, driver, job_array
from tdenoise_pipeline.workflow.apply_many import describe_plans

from tdenoise.inference.denoising import denoise
from tdenoise.inference.tile import Tile
from tdenoise.network.split_blind import Architecture


@pytest.fixture(scope="session")
def sources(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """A movie store of 8 blocks (32 frames each) and a model."""
    folder = tmp_path_factory.mktemp("sources")
    return movie_store(folder, counts((250, 30, 44)), frame_time=0.01), model_folder(folder / "model")


def config(sources: tuple[Path, Path], output: Path, **settings: object) -> ApplyConfig:
    return ApplyConfig(movie=sources[0], model=sources[1], output=output, **settings)  # type: ignore[arg-type]


@pytest.fixture(scope="session")
def expected(sources: tuple[Path, Path]) -> np.ndarray:
    """The same movie denoised whole, in this process."""
    frames = counts((250, 30, 44))
    movie, made = store.open_store(sources[0], store.MOVIE), network()
    drift = movie_drift(movie, made.architecture)
    assert drift is not None
    whole = Tile.whole(frames.shape)
    result = denoise(made, frames, whole, movie_scale(movie), range(len(frames)), drift=drift)
    return np.stack([writing.round_mantissa(f) for f in result])


def tree(path: Path) -> dict[str, bytes]:
    """All bytes of a denoised store's array."""
    array = path / "denoised"
    return {str(p.relative_to(array)): p.read_bytes() for p in sorted(array.rglob("*")) if p.is_file()}


def test_the_denoised_store_opens_with_xarray_and_holds_what_the_model_says(
    sources: tuple[Path, Path], expected: np.ndarray, workers: str, tmp_path: Path
) -> None:
    result = apply(
        config(sources, tmp_path / "d.zarr", workers=workers, draft_only=True, precision="float32")
    )
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        dataset = xr.open_zarr(tmp_path / "d.zarr")
    assert dataset["denoised"].dims == ("t", "y", "x")
    assert dataset["denoised"].dtype == np.float32
    assert dataset["denoised"].chunks is not None
    assert dataset["t"].attrs["units"] == "s"
    np.testing.assert_allclose(dataset["t"], np.arange(250) * 0.01)
    # 2**-8 is the rounding to 7 bits, where the last bit of float32 may tip it over
    np.testing.assert_allclose(dataset["denoised"], expected, rtol=2.0**-7)
    assert np.mean(dataset["denoised"].values == expected) > 0.999
    assert result["status"] == "complete"
    assert dataset.attrs["tdenoise"]["movie"]["id"] == store.open_store(sources[0], store.MOVIE).id
    verify(VerifyConfig(store=tmp_path / "d.zarr", deep=True))
    assert [p.name for p in tmp_path.iterdir()] == ["d.zarr"]


def test_one_plan_gives_the_same_bytes_with_one_worker_or_three(
    sources: tuple[Path, Path], workers: str, tmp_path: Path
) -> None:
    apply(config(sources, tmp_path / "a.zarr", workers=workers))
    apply(config(sources, tmp_path / "b.zarr", workers="local:1"))
    apply(config(sources, tmp_path / "c.zarr", workers="local:3"))
    assert tree(tmp_path / "a.zarr") == tree(tmp_path / "b.zarr") == tree(tmp_path / "c.zarr")


def test_tiles_with_halos_give_the_same_movie(
    sources: tuple[Path, Path], expected: np.ndarray, workers: str, tmp_path: Path
) -> None:
    plan = describe_plan(config(sources, tmp_path / "d.zarr", workers=workers, tile=16))
    assert plan["n_blocks"] == 8 * 2 * 3
    apply(config(sources, tmp_path / "d.zarr", workers=workers, tile=16, lossless=True, draft_only=True))
    result = xr.open_zarr(tmp_path / "d.zarr")["denoised"].values
    np.testing.assert_allclose(result, expected, rtol=2.0**-8)
    with pytest.raises(UsageError, match="--tile 20"):
        describe_plan(config(sources, tmp_path / "e.zarr", tile=18))


@pytest.fixture(scope="session")
def drifting_movie(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A movie store of a scene that moves by 25 rows and 20 columns."""
    y, x = np.mgrid[:64, :72]
    rng = np.random.default_rng(3)
    places = rng.uniform((-30, -25), (70, 78), (110, 2))
    frames = [
        1 + sum(np.exp(-((y - r - 0.25 * t) ** 2 + (x - c - 0.2 * t) ** 2) / 8) for r, c in places)
        for t in range(100)
    ]
    return movie_store(tmp_path_factory.mktemp("drifting"), rng.poisson(frames).astype(np.uint8))


@pytest.mark.parametrize("tile", [None, 32])
def test_windows_follow_the_drift_that_ingest_measured(
    drifting_movie: Path, sources: tuple[Path, Path], tmp_path: Path, tile: int | None, workers: str
) -> None:
    drift = xr.open_zarr(drifting_movie)["drift"].values
    np.testing.assert_allclose(drift[90] - drift[10], (20, 16), atol=1)
    movie, made = store.open_store(drifting_movie, store.MOVIE), network()
    frames = xr.open_zarr(drifting_movie)["counts"].values
    output, found = tmp_path / "d.zarr", {}
    for name, moved in (("followed", drift), ("ignored", None)):
        chosen = {"lossless": True, "ensemble": 1, "tile": tile, "workers": workers, "draft_only": True}
        settings = config((drifting_movie, sources[1]), output, **chosen)
        apply(replace(settings, ignore_drift=moved is None, force=True))
        found[name] = xr.open_zarr(output)["denoised"].values
        shown = {"ensemble": 1, "drift": moved, "brightness": movie_brightness(movie)}
        whole = denoise(made, frames, Tile.whole(frames.shape), movie_scale(movie), range(100), **shown)
        np.testing.assert_allclose(found[name], np.stack(list(whole)), rtol=1e-4, atol=1e-4)
    assert np.abs(found["followed"] - found["ignored"]).max() > 0.01
    with pytest.raises(UsageError, match="other settings|--force"):
        apply(config((drifting_movie, sources[1]), output, lossless=True, ensemble=1, tile=tile))


def test_a_drift_that_windows_follow_is_told(drifting_movie: Path, caplog: pytest.LogCaptureFixture) -> None:
    movie, architecture = store.open_store(drifting_movie, store.MOVIE), network().architecture
    with caplog.at_level("INFO", logger="tdenoise_pipeline"):
        tell_drift(movie, movie_drift(movie, architecture), architecture)
    assert "windows follow it by up to" in caplog.messages[-1]


def test_a_model_that_learned_without_following_the_drift_is_applied_without(
    drifting_movie: Path, tmp_path: Path
) -> None:
    model, output = tmp_path / "model", tmp_path / "d.zarr"
    learning = TrainConfig(movie=(drifting_movie,), output=model, steps=1, ignore_drift=True)
    assert train_model(learning)["ignore_drift"]
    plan = describe_plan(ApplyConfig(movie=drifting_movie, model=model, output=output))
    assert "drift" not in plan and "drift" in describe_plan(ApplyConfig(movie=drifting_movie, output=output))


@pytest.mark.parametrize("shift", [1, 16])
def test_a_drift_takes_little_more_memory_however_fast_it_is(shift: int) -> None:
    still, moving = (
        lay_out(None, 16, False, (1000, 4096, 4096), 32, 1, Architecture(), shift=n) for n in (0, shift)
    )
    assert still.core == moving.core
    assert still.worker_bytes < moving.worker_bytes < 1.2 * still.worker_bytes


def test_the_plan_of_several_movies_counts_their_drift(
    drifting_movie: Path, sources: tuple[Path, Path], tmp_path: Path
) -> None:
    movies, needed = (drifting_movie, tmp_path / "missing.zarr"), []
    for ignored in (True, False):
        asked = config((drifting_movie, sources[1]), tmp_path / "out", ignore_drift=ignored)
        several = describe_plans(ApplyManyConfig(**{**vars(asked), "movie": movies}))
        assert several["n_movies_drift_not_counted"] == 0
        needed.append(several["worker_memory_bytes"])
        assert needed[-1] == describe_plan(asked)["worker_memory_bytes"]
    assert needed[0] < needed[1]


def test_long_shards_hold_the_same_frames_in_fewer_files(
    sources: tuple[Path, Path],
    expected: np.ndarray,
    workers: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(store, "MANY_SHARDS", 1)  # as if the movie were large
    settings = config(sources, tmp_path / "d.zarr", workers=workers, lossless=True, draft_only=True)
    plan = describe_plan(settings)
    assert (plan["shard"], plan["n_files"], plan["n_blocks"]) == ([128, 30, 44], 2, 2)
    apply(settings)
    opened = store.open_store(tmp_path / "d.zarr", store.DENOISED)
    np.testing.assert_allclose(opened.array[:], expected, rtol=2.0**-8)
    assert len(list((tmp_path / "d.zarr/denoised/c").rglob("*/0/0"))) == 2
    verify(VerifyConfig(store=tmp_path / "d.zarr", deep=True))
    file = tmp_path / "d.zarr/denoised/c/1/0/0"
    damaged = bytearray(file.read_bytes())
    damaged[100] ^= 1
    file.write_bytes(damaged)
    with pytest.raises(VerificationError, match="frames 128 to 249"):
        verify(VerifyConfig(store=tmp_path / "d.zarr", deep=True))


@given(n_frames=st.integers(3, 90), core=st.integers(1, 5), shard=st.integers(1, 12), halo=st.integers(0, 25))
def test_rows_that_are_read_ahead_hold_their_frames_and_halo(
    n_frames: int, core: int, shard: int, halo: int
) -> None:
    movie = np.arange(n_frames * 6).reshape(n_frames, 2, 3)
    seen = []
    for block in plan_blocks(movie.shape, (core * shard, 2, 3), Halo(halo, 0)):  # type: ignore[arg-type]
        for start, stop, first, held in block_work._rows_of_frames(
            lambda r: movie[r.slices], block, halo, shard
        ):
            np.testing.assert_array_equal(held, movie[first : min(n_frames, stop + halo)])
            assert first == max(0, start - halo)
            seen += range(start, stop)
    assert seen == list(range(n_frames))


def test_the_next_row_is_read_while_one_is_denoised() -> None:
    movie = np.zeros((64, 2, 3), np.uint8)
    read, computed = threading.Event(), threading.Event()

    def slowly(region: Region) -> np.ndarray:
        """The second row comes only once the first is in use."""
        if region.frames[0] > 0:
            assert computed.wait(60)
            read.set()
        return movie[region.slices]

    (block,) = plan_blocks(movie.shape, (64, 2, 3), Halo(0, 0))  # type: ignore[arg-type]
    rows = block_work._rows_of_frames(slowly, block, 0, 32)
    next(rows)
    computed.set()
    assert read.wait(60), "nobody has asked for the second row"
    assert next(rows)[:2] == (32, 64)


def test_every_worker_has_its_own_gpu_and_keeps_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(apply_plan.checkpoint, "default_device", lambda: "cuda")
    monkeypatch.setattr(apply_plan.torch.cuda, "device_count", lambda: 3)
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "2,5,GPU-7")
    assert apply_plan.usable_gpus("auto") == apply_plan.usable_gpus("cuda") == ["2", "5", "GPU-7"]
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES")
    gpus = apply_plan.usable_gpus("auto")
    assert [block_work.own_gpu(worker, gpus) for worker in (0, 1, 2, 3)] == ["0", "1", "2", "0"]
    chosen = ApplyConfig(movie=Path("m"), output=Path("d"))
    assert apply_plan.workers_of(chosen) == Workers("local", 3)
    assert apply_plan.workers_of(replace(chosen, workers="local:5")) == Workers("local", 5)
    assert apply_plan.workers_of(replace(chosen, device="cpu")) == Workers("local")
    assert apply_plan.usable_gpus("cpu") == []


def test_a_worker_hides_the_other_gpus_before_it_loads_the_model(
    sources: tuple[Path, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "0,1")
    model_id = apply_plan.open_model(sources[1]).card["sha256"]
    started = cluster.connect(
        Workers("local", 2), scratch=tmp_path, worker_memory_bytes=None, profile=None, log_dir=tmp_path
    )
    with started as client:
        client.register_plugin(block_work.ModelPlugin(sources[1], model_id, "cpu", ["4", "7"]))
        found = client.run(os.getenv, "CUDA_VISIBLE_DEVICES")
    assert sorted(found.values()) == ["4", "7"]


def test_running_it_again_does_nothing_and_other_settings_are_refused(
    sources: tuple[Path, Path], workers: str, tmp_path: Path
) -> None:
    apply(config(sources, tmp_path / "d.zarr", workers=workers, ensemble=1))
    written = (tmp_path / "d.zarr/zarr.json").stat().st_mtime_ns
    apply(config(sources, tmp_path / "d.zarr", workers=workers, ensemble=1))
    assert (tmp_path / "d.zarr/zarr.json").stat().st_mtime_ns == written
    with pytest.raises(UsageError, match="exists already"):
        apply(config(sources, tmp_path / "d.zarr", workers=workers, ensemble=2))
    with pytest.raises(UsageError, match="nothing to resume"):
        apply(config(sources, tmp_path / "new.zarr", workers=workers, resume=True))


def test_a_stop_finishes_the_blocks_in_hand_and_the_next_run_does_only_the_rest(
    sources: tuple[Path, Path], workers: str, tmp_path: Path
) -> None:
    control = Control()

    def stop_after_two(what: str, done: int, total: int) -> None:
        if done >= 2:
            control.stop.set()

    control.progress = stop_after_two
    with pytest.raises(Stopped):
        apply(config(sources, tmp_path / "d.zarr", workers=workers, draft_only=True), control)
    assert not (tmp_path / "d.zarr").exists()
    done = list((tmp_path / ".tdenoise/d.zarr/done").glob("*.json"))
    assert 2 <= len(done) < 8
    before = {
        p: p.stat().st_mtime_ns for p in (tmp_path / "d.zarr-partial/denoised/c").rglob("*") if p.is_file()
    }
    apply(config(sources, tmp_path / "d.zarr", workers=workers, resume=True, draft_only=True))
    for path, written in before.items():
        assert (
            tmp_path / "d.zarr" / path.relative_to(tmp_path / "d.zarr-partial")
        ).stat().st_mtime_ns == written
    verify(VerifyConfig(store=tmp_path / "d.zarr", deep=True))


def test_resume_recomputes_a_block_whose_shard_is_torn(
    sources: tuple[Path, Path], workers: str, tmp_path: Path
) -> None:
    control = Control()

    def stop_after_two(what: str, done: int, total: int) -> None:
        if done >= 2:
            control.stop.set()

    control.progress = stop_after_two
    with pytest.raises(Stopped):
        apply(config(sources, tmp_path / "d.zarr", workers=workers, draft_only=True), control)
    shard = next(p for p in (tmp_path / "d.zarr-partial/denoised/c").rglob("*") if p.is_file())
    shard.write_bytes(shard.read_bytes()[:-9])
    apply(config(sources, tmp_path / "d.zarr", workers=workers, draft_only=True))
    verify(VerifyConfig(store=tmp_path / "d.zarr", deep=True))


def test_nan_from_the_model_fails_the_block_and_commits_nothing(
    sources: tuple[Path, Path], workers: str, tmp_path: Path
) -> None:
    broken = network()
    broken.head.weight.data[:] = 3e38  # NaN itself is refused when the model is opened; this overflows
    model = model_folder(tmp_path / "model", broken)
    with pytest.raises(PipelineError, match="8 of 8 blocks failed.*NaN or Inf in frame"):
        apply(config((sources[0], model), tmp_path / "d.zarr", workers=workers))
    assert not (tmp_path / "d.zarr").exists()


def test_a_damaged_model_is_refused(sources: tuple[Path, Path], tmp_path: Path, workers: str) -> None:
    model = model_folder(tmp_path / "model")
    weights = bytearray((model / "weights.safetensors").read_bytes())
    weights[-5] ^= 1
    (model / "weights.safetensors").write_bytes(weights)
    with pytest.raises(InputError, match="was changed or damaged"):
        apply(config((sources[0], model), tmp_path / "d.zarr", workers=workers))
    (model / "card.json").unlink()
    with pytest.raises(InputError, match="not a \\(finished\\) model"):
        apply(config((sources[0], model), tmp_path / "d.zarr", workers=workers))


def test_a_movie_that_no_model_can_work_on_is_refused(sources: tuple[Path, Path], tmp_path: Path) -> None:
    constant = movie_store(tmp_path / "constant", np.ones((5, 16, 16), np.uint8))
    with pytest.raises(InputError, match="do not differ"):
        apply(config((constant, sources[1]), tmp_path / "d.zarr"))
    frames = counts((5, 16, 16)).astype(np.float32)
    frames[1:4, 0, 0] = np.inf
    with pytest.raises(InputError, match="noise could not be measured"):
        apply(config((movie_store(tmp_path / "inf", frames), sources[1]), tmp_path / "d.zarr"))


def test_a_block_too_large_for_a_worker_is_refused_before_anything_starts(
    sources: tuple[Path, Path], tmp_path: Path
) -> None:
    with pytest.raises(ResourceError, match="--worker-memory"):
        apply(config(sources, tmp_path / "d.zarr", worker_memory=100 * 2**20))
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("workers", ["local:4", "local:1"])
@pytest.mark.parametrize("share", [1.2, 0.98])
def test_every_remedy_for_lack_of_memory_works_when_followed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, workers: str, share: float
) -> None:
    """``share``: of what one worker needs, that the machine has beside the driver."""
    movie, model = movie_store(tmp_path, counts((8, 64, 2048))), model_folder(tmp_path / "model")
    asked = ApplyConfig(movie=movie, model=model, output=tmp_path / "d.zarr", workers=workers)
    opened, card = store.open_store(movie, store.MOVIE), apply_plan.open_model(model).card
    needed = apply_plan._with_margin(apply_plan.make_plan(asked, opened, card))
    memory = apply_plan.DRIVER_BYTES + int(needed * share)
    monkeypatch.setattr(apply_plan.budget, "machine_memory_bytes", lambda: memory)
    plan = apply_plan.make_plan(asked, opened, card)
    if workers == "local:1" and share > 1:
        apply_plan.check_budget(asked, plan, opened, card)
        return
    with pytest.raises(ResourceError) as told:
        apply_plan.check_budget(asked, plan, opened, card)
    remedies = re.findall(r"--(workers|tile) (local:\d|\d+)", str(told.value))
    assert ("workers", "local:1") in remedies or share < 1
    assert any(name == "tile" for name, _ in remedies) or workers == "local:4"
    for name, value in remedies:
        changed = dataclasses.replace(asked, **{name: int(value) if name == "tile" else value})
        apply_plan.check_budget(changed, apply_plan.make_plan(changed, opened, card), opened, card)


def test_a_full_disk_is_said_and_the_run_goes_on_once_there_is_space(
    sources: tuple[Path, Path], workers: str, tmp_path: Path
) -> None:
    mount = tmp_path / "small"
    mount.mkdir()
    if subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=4m", "tmpfs", mount], capture_output=True
    ).returncode:
        pytest.skip("mounting a small file system needs root")
    try:
        (mount / "ballast").write_bytes(bytes(3_900_000))
        with pytest.raises(ResourceError, match=r"disk is full|has .* free"):
            apply_plan.budget.check_disk, check = (lambda *a: None), apply_plan.budget.check_disk
            try:
                apply(config(sources, mount / "d.zarr", workers=workers))
            finally:
                apply_plan.budget.check_disk = check
        assert not (mount / "d.zarr").exists()
        (mount / "ballast").unlink()
        apply(config(sources, mount / "d.zarr", workers=workers))
        verify(VerifyConfig(store=mount / "d.zarr", deep=True))
    finally:
        subprocess.run(["umount", "-l", mount], check=True)


def run_cli(sources: tuple[Path, Path], output: Path) -> subprocess.Popen[bytes]:
    command = [
        sys.executable,
        "-m",
        "tdenoise_pipeline.cli",
        "apply",
        str(sources[0]),
        "--model",
        str(sources[1]),
    ]
    return subprocess.Popen(
        [*command, "-o", str(output), "--workers", "local:2", "-q"],
        start_new_session=True,
        stderr=subprocess.PIPE,
    )


def n_done(output: Path) -> int:
    return len(list((output.parent / ".tdenoise" / output.name / "done").glob("*.json")))


def wait_until(condition: object, process: subprocess.Popen[bytes], timeout_s: float = 90) -> None:
    deadline = time.monotonic() + timeout_s
    while not condition() and process.poll() is None:  # type: ignore[operator]
        assert time.monotonic() < deadline
        time.sleep(0.005)


def test_a_block_that_is_asked_for_again_after_it_was_marked_is_not_done_again(
    sources: tuple[Path, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A worker that is killed between its marker and its answer leaves such a block behind."""
    output = tmp_path / "d.zarr"
    files: dict[Path, tuple[int, int]] = {}

    def twice(_c: object, _p: object, function: Any, items: list[Any], *_: object) -> Iterator[Any]:
        for number, item in enumerate(items):
            for _ in range(2):
                function(item)
                for path in (tmp_path / "d.zarr-partial/denoised/c").rglob("*"):
                    state = path.stat()
                    assert path.is_dir() or files.setdefault(path, (state.st_ino, state.st_mtime_ns)) == (
                        state.st_ino,
                        state.st_mtime_ns,
                    )
            yield driver.Outcome(item, None, len(items) - number - 1)

    monkeypatch.setattr(driver, "drive", twice)
    apply(config(sources, output, draft_only=True))
    assert len(files) == 8
    assert output.exists()


def test_a_block_that_is_marked_while_the_markers_are_looked_at_stays_marked(
    sources: tuple[Path, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A worker that was taken for lost may go on."""
    output, aside = tmp_path / "d.zarr", tmp_path / "aside"
    late = markers.marker_path(paths.work_folder(output), 1)
    read = markers.marker

    def read_slowly(folder: Path, number: int) -> dict[str, Any] | None:
        if aside.exists():
            aside.rename(late)
        return read(folder, number)

    def look(
        _c: object, _p: object, function: Any, items: list[Any], remaining: Any, *_: object
    ) -> Iterator[Any]:
        for item in items[:2]:
            function(item)
        late.rename(aside)
        with monkeypatch.context() as patch:
            patch.setattr(markers, "marker", read_slowly)
            remaining()
        assert late.exists()
        for item in items[2:]:
            function(item)
        yield driver.Outcome(items[-1], None, 0)

    monkeypatch.setattr(driver, "drive", look)
    apply(config(sources, output))
    assert output.exists()


@pytest.mark.parametrize("what", ["the shard is cut", "the marker is cut"])
def test_a_marker_does_not_count_when_what_it_says_cannot_be_found(
    what: str, sources: tuple[Path, Path], workers: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    apply(config(sources, tmp_path / "undisturbed.zarr", workers=workers, draft_only=True))
    output = tmp_path / "d.zarr"

    def some(_c: object, _p: object, function: Any, items: list[Any], *_: object) -> Iterator[Any]:
        for item in items[:3]:
            function(item)
            yield driver.Outcome(item, None, 5)
        raise Stopped("enough")

    with monkeypatch.context() as patch, pytest.raises(Stopped):
        patch.setattr(driver, "drive", some)
        apply(config(sources, output, draft_only=True))
    marker = markers.marker_path(paths.work_folder(output), 1)
    shard = _shard_file(
        tmp_path / "d.zarr-partial/denoised", next(iter(json.loads(marker.read_text())["shards"]))
    )
    cut = marker if what == "the marker is cut" else shard
    cut.write_bytes(cut.read_bytes()[:20])
    apply(config(sources, output, workers=workers, draft_only=True))
    assert tree(output) == tree(tmp_path / "undisturbed.zarr")


@pytest.mark.chaos
@pytest.mark.slow
def test_a_killed_worker_changes_nothing_but_the_clock(
    sources: tuple[Path, Path], workers: str, tmp_path: Path
) -> None:
    import psutil

    apply(config(sources, tmp_path / "undisturbed.zarr", workers=workers))
    process = run_cli(sources, tmp_path / "d.zarr")
    wait_until(lambda: n_done(tmp_path / "d.zarr") >= 1, process)
    started = psutil.Process(process.pid).children(recursive=True)
    victims = [p for p in started if "spawn_main" in " ".join(p.cmdline())]
    assert victims
    victims[0].kill()
    _, errors = process.communicate(timeout=120)
    assert process.returncode == 0, errors.decode()
    assert tree(tmp_path / "d.zarr") == tree(tmp_path / "undisturbed.zarr")


@pytest.mark.chaos
@pytest.mark.slow
def test_a_driver_killed_with_everything_and_started_again_gives_the_same_bytes(
    sources: tuple[Path, Path], workers: str, tmp_path: Path
) -> None:
    apply(config(sources, tmp_path / "undisturbed.zarr", workers=workers))
    output = tmp_path / "d.zarr"
    process = run_cli(sources, output)
    wait_until(lambda: n_done(output) >= 2, process)
    os.killpg(process.pid, signal.SIGKILL)
    process.communicate()
    assert not output.exists()
    finished = {p: p.stat().st_mtime_ns for p in (tmp_path / ".tdenoise/d.zarr/done").glob("*.json")}
    assert 2 <= len(finished) < 8
    draft = tmp_path / ".tdenoise/d.zarr/done/draft.zarr/draft"
    shards = {
        key: _shard_file(draft, key).stat().st_mtime_ns
        for marker in finished
        for key in json.loads(marker.read_text())["shards"]
    }
    seen = {}

    def look(what: str, done: int, total: int) -> None:
        """The draft goes when the output is whole."""
        seen.update({k: _shard_file(draft, k).stat().st_mtime_ns for k in shards if what == "apply"})

    control = Control()
    control.progress = look
    apply(config(sources, output, workers=workers), control)
    assert seen == shards, "a finished block is not done again"
    assert tree(output) == tree(tmp_path / "undisturbed.zarr")


@pytest.mark.chaos
@pytest.mark.slow
def test_sigterm_ends_with_75_and_the_same_command_goes_on(
    sources: tuple[Path, Path], tmp_path: Path
) -> None:
    output = tmp_path / "d.zarr"
    process = run_cli(sources, output)
    wait_until(lambda: n_done(output) >= 1, process)
    process.send_signal(signal.SIGTERM)
    _, errors = process.communicate(timeout=60)
    assert process.returncode == 75, errors.decode()
    assert b"Traceback" not in errors
    process = run_cli(sources, output)
    _, errors = process.communicate(timeout=120)
    assert process.returncode == 0, errors.decode()
    verify(VerifyConfig(store=output, deep=True))


@pytest.mark.parametrize(
    ("workers", "command"), [("slurm:2", "sbatch"), ("pbs:2", "qsub"), ("lsf:2", "bsub")]
)
def test_workers_of_a_batch_system_that_is_not_here_are_refused_before_anything_is_begun(
    workers: str, command: str, sources: tuple[Path, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    profile = tmp_path / "profile.yaml"
    profile.write_text(f"scheduler: {workers.partition(':')[0]}\nworkers:\n  memory_gib: 4\n")
    with pytest.raises(UsageError, match=f"needs {command}, which this machine does not have"):
        apply(config(sources, tmp_path / "d.zarr", workers=workers, profile=profile))
    assert list(tmp_path.iterdir()) == [profile]


def test_an_output_that_is_there_needs_no_batch_system(
    sources: tuple[Path, Path], workers: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = apply(config(sources, tmp_path / "d.zarr", workers=workers))
    monkeypatch.setenv("PATH", str(tmp_path))
    assert apply(config(sources, tmp_path / "d.zarr", workers="slurm:2"))["id"] == made["id"]


def test_an_array_has_no_more_tasks_than_there_are_blocks(
    sources: tuple[Path, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Asked(Exception):
        pass

    def asked(_: object, count: int, *__: object) -> None:
        raise Asked(count)

    monkeypatch.setattr(job_array, "apply_array", asked)
    with pytest.raises(Asked) as caught:
        apply(config(sources, tmp_path / "d.zarr", workers="array:500"))
    assert caught.value.args == (8,)
