"""What a program calls: arrays in and out, with the values of the command line; steps as functions."""

from __future__ import annotations

import dataclasses
import gc
import inspect
import os
import pickle
import socket
import subprocess
import sys
import threading
import types
import weakref
from pathlib import Path
from typing import Any

import dask.array
import numpy as np
import psutil
import pytest
import tdenoise_pipeline
import xarray as xr
from raw_files import write_dm
from small import counts, model_folder
from tdenoise_pipeline.cli import command_line
from tdenoise_pipeline.errors import InputError, UsageError
from tdenoise_pipeline.ingest.ingest import ingest
from tdenoise_pipeline.python import array_reader
from tdenoise_pipeline.python.array_reader import hold
from tdenoise_pipeline.python.progress import shown
from tdenoise_pipeline.python.scratch import make_scratch
from tdenoise_pipeline.settings import config as settings

import tdenoise

SHAPE = (40, 20, 24)
HOT = (3, 5)
BLURRED = np.random.default_rng(0).poisson(
    2.0, (24, 49, 48)
)  # whose neighbours share electrons, once they are added


@pytest.fixture(scope="module")
def frames() -> np.ndarray:
    """A drifting scene with a hot pixel."""
    made = counts(SHAPE)
    made[:, *HOT] = 200
    return made


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return model_folder(tmp_path_factory.mktemp("model") / "model")


@pytest.fixture(autouse=True)
def scratch(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Where temporary folders lie."""
    folder = tmp_path / "scratch"
    folder.mkdir()
    monkeypatch.setattr("tempfile.tempdir", str(folder))
    return folder


@pytest.fixture(scope="module")
def typed(frames: np.ndarray, model: Path, workers: str, tmp_path_factory: pytest.TempPathFactory) -> Any:
    """What the command line makes of the same movie."""
    folder = tmp_path_factory.mktemp("typed")
    np.save(folder / "raw.npy", frames)
    lines = [
        f"ingest {folder}/raw.npy -o {folder}/movie.zarr",
        f"apply {folder}/movie.zarr --model {model} -o {folder}/denoised.zarr --workers {workers}",
    ]
    assert [command_line.main([*line.split(), "-q"]) for line in lines] == [0, 0]
    return np.asarray(xr.open_zarr(folder / "denoised.zarr")["denoised"])


def test_the_values_of_an_array_are_those_of_the_command_line_bit_for_bit(
    frames: np.ndarray, model: Path, typed: np.ndarray, workers: str, scratch: Path
) -> None:
    before = frames.copy()
    denoised = tdenoise.denoise(frames, model, workers=workers, progress=False)
    assert type(denoised) is np.ndarray and denoised.dtype == np.float32
    np.testing.assert_array_equal(denoised, typed)
    np.testing.assert_array_equal(frames, before)
    assert not list(scratch.iterdir())


@pytest.mark.parametrize("chunks", [(7, 20, 24), (16, 10, 12), (40, 20, 24)])
def test_a_dask_array_becomes_one_and_its_files_go_with_it(
    frames: np.ndarray, model: Path, typed: np.ndarray, workers: str, chunks: Any, scratch: Path
) -> None:
    movie = dask.array.from_array(frames, chunks=chunks)
    denoised = tdenoise.denoise(movie, model, workers=workers, progress=False)
    assert isinstance(denoised, dask.array.Array)
    np.testing.assert_array_equal(denoised.compute(), typed)
    part = denoised[3:5].mean()
    del denoised
    gc.collect()
    assert list(scratch.iterdir()), "a part of it is still there"
    assert float(part.compute()) == pytest.approx(float(typed[3:5].mean()), rel=1e-5)
    del part
    gc.collect()
    assert not list(scratch.iterdir())


def test_an_array_with_names_keeps_them_and_its_coordinates(
    frames: np.ndarray, model: Path, typed: np.ndarray, workers: str
) -> None:
    """Also where its axes lie in another order."""
    movie = xr.DataArray(
        np.moveaxis(frames, 0, 2),
        dims=("y", "x", "time"),
        coords={
            "y": ("y", np.arange(20) * 0.5, {"units": "pixel"}),
            "time": ("time", np.arange(40), {"units": "frame"}),
            "temperature": ("time", np.linspace(300, 700, 40)),
            "sample": "Pt on ceria",
        },
        name="counts",
    )
    denoised = tdenoise.denoise(movie, model, workers=workers, progress=False)
    assert denoised.dims == movie.dims and denoised.name == "denoised" and denoised.attrs["units"] == "count"
    xr.testing.assert_identical(denoised.coords.to_dataset(), movie.coords.to_dataset())
    np.testing.assert_array_equal(np.moveaxis(denoised.values, 2, 0), typed)
    (movie - denoised).sum()  # they fit together


def test_a_raw_file_is_opened_and_denoised_lazily(
    frames: np.ndarray, model: Path, workers: str, tmp_path: Path
) -> None:
    """With its calibration, which the command line reads from the same file."""
    raw = tmp_path / "m.dm4"
    write_dm(raw, frames.astype(np.uint16), 4)
    movie = xr.open_dataset(raw, engine="tdenoise", chunks={})
    denoised = movie.tdenoise.denoise(model, workers=workers, progress=False)
    assert isinstance(denoised, xr.Dataset) and denoised["denoised"].chunks is not None
    assert "denoised" in denoised and denoised["t"].attrs["units"] == "s"
    xr.testing.assert_identical(denoised.coords.to_dataset(), movie.coords.to_dataset())
    by_path = tdenoise.denoise(raw, model, workers=workers, progress=False)
    assert isinstance(by_path, xr.DataArray) and by_path.chunks is not None
    np.testing.assert_array_equal(denoised["denoised"].values, by_path.values)
    np.testing.assert_allclose(by_path["y"], movie["y"])
    ingested = tdenoise_pipeline.ingest(raw, tmp_path / "movie.zarr", progress=False)
    made = tdenoise_pipeline.apply(
        ingested, tmp_path / "d.zarr", model=model, workers=workers, progress=False
    )
    np.testing.assert_array_equal(denoised["denoised"].values, made.open()["denoised"].values)


@pytest.mark.parametrize("lazy", [False, True])
def test_only_what_is_lazy_stays_lazy(
    frames: np.ndarray, model: Path, workers: str, lazy: bool, tmp_path: Path
) -> None:
    np.save(tmp_path / "m.npy", frames)
    movie = xr.open_dataset(tmp_path / "m.npy", engine="tdenoise")["counts"]
    if not lazy:
        movie = movie.load()
    denoised = movie.tdenoise.denoise(model, workers=workers, progress=False)
    assert isinstance(denoised, xr.DataArray)
    assert (denoised.chunks is not None) == lazy
    assert movie.variable._in_memory != lazy, "a lazy movie is not loaded by being denoised"


@pytest.mark.slow
def test_a_model_can_be_adapted_to_an_array_as_the_command_line_does(
    frames: np.ndarray, workers: str, tmp_path: Path
) -> None:
    given = {"blind_radius": 0, "ensemble": 1, "workers": workers}
    denoised = tdenoise.denoise(
        frames, "adapt", steps=2, time_limit="10m", output=tmp_path / "kept", progress=False, **given
    )
    np.save(tmp_path / "raw.npy", frames)
    line = (
        f"run {tmp_path}/raw.npy -o {tmp_path}/typed --steps 2 --time-limit 10m --blind-radius 0 --ensemble 1"
    )
    assert command_line.main([*line.split(), "--workers", workers, "-q"]) == 0
    np.testing.assert_array_equal(denoised, xr.open_zarr(tmp_path / "typed/denoised.zarr")["denoised"])
    assert tdenoise_pipeline.verify(tmp_path / "kept", deep=True, progress=False).models
    with pytest.raises(UsageError, match="exists already"):
        tdenoise.denoise(frames, "adapt", steps=2, output=tmp_path / "kept", progress=False, **given)


def test_what_was_measured_is_given_too(frames: np.ndarray, model: Path, workers: str) -> None:
    fading = (frames * np.linspace(1, 3, 40)[:, None, None]).astype(np.uint8)
    denoised, found = tdenoise.denoise(
        fading, model, workers=workers, progress=False, counts_per_electron=1.0, return_measured=True
    )
    assert denoised.shape == SHAPE
    assert isinstance(found, tdenoise_pipeline.Measured)
    assert found.bad_pixels[HOT] and found.bad_pixels.sum() == 1
    assert found.frame_level.shape == (40,) and found.frame_level[-1] > 1.2 > 0.8 > found.frame_level[0]
    assert found.frame_valid.all() and found.dose == found.mean > 0
    assert found.drift is None or found.drift.shape == (40, 2)
    assert any("hot" in warning for warning in found.warnings)
    assert found.model == found.denoised["model"]["id"] and found.movie["kind"] == "movie"


def test_settings_of_ingest_hold_for_arrays(frames: np.ndarray, model: Path, workers: str) -> None:
    movie = xr.DataArray(frames, dims=("t", "y", "x"), coords={"sample": "Pt"})
    denoised = tdenoise.denoise(
        movie, model, frames="2:38", bin=2, pixel_size=0.1, workers=workers, progress=False
    )
    assert denoised.shape == (36, 10, 12)
    assert denoised["y"].attrs["units"] == "nm" and float(denoised["t"][0]) == 2
    np.testing.assert_allclose(np.diff(denoised["y"]), 0.2)


class Counted:
    """Makes frames, and counts how many chunks of them are alive."""

    def __init__(self) -> None:
        self.alive = self.most = self.made = 0
        self.lock = threading.RLock()

    def __call__(self, block_info: Any = None) -> np.ndarray:
        first, last = block_info[None]["array-location"][0]
        made = counts((last - first, 20, 24), seed=first)
        weakref.finalize(made, self.gone)
        with self.lock:
            self.alive += 1
            self.made += 1
            self.most = max(self.most, self.alive)
        return made

    def gone(self) -> None:
        with self.lock:
            self.alive -= 1


@pytest.mark.parametrize("n_frames", [160, 640])
def test_the_memory_for_a_dask_array_does_not_grow_with_its_length(
    n_frames: int, model: Path, monkeypatch: pytest.MonkeyPatch, scratch: Path
) -> None:
    source = Counted()
    chunks = ((16,) * (n_frames // 16), (20,), (24,))
    movie = dask.array.map_blocks(source, chunks=chunks, dtype=np.uint8, meta=np.empty((0, 0, 0), np.uint8))
    monkeypatch.setattr(array_reader, "KEPT_BYTES", 4 * 16 * 20 * 24)
    reader = array_reader.hold(movie).reader()
    ingest(settings.IngestConfig(raw=Path("array"), output=scratch / "m.zarr"), held=reader)
    assert source.most <= 6
    assert source.made <= 4 * len(chunks[0]), "each is computed a few times at most"
    stored = tdenoise_pipeline.open(scratch / "m.zarr")["counts"].values
    np.testing.assert_array_equal(stored, movie.compute())


def test_what_a_killed_process_has_left_goes_with_the_next_call(scratch: Path) -> None:
    killed = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"])
    began = int(psutil.Process(killed.pid).create_time())
    names = {
        "left": f"tdenoise-{socket.gethostname()}-{killed.pid}-{began}-abc",
        "of another machine": f"tdenoise-elsewhere.example-{killed.pid}-{began}-abc",
        "of a process before with the same number": f"tdenoise-{socket.gethostname()}-{os.getpid()}-12345-abc",
        "of this process": make_scratch().name,
        "of a user": "tdenoise-results",
    }
    for name in names.values():
        (scratch / name).mkdir(exist_ok=True)
        (scratch / name / "file").write_text("")
    make_scratch()
    assert all((scratch / names[what]).exists() for what in ("left", "of this process", "of a user"))
    assert not (scratch / names["of a process before with the same number"]).exists()
    killed.kill()
    killed.wait()
    make_scratch()
    assert not (scratch / names["left"]).exists()
    assert all(
        (scratch / names[what]).exists() for what in ("of another machine", "of this process", "of a user")
    )


FOUR_LINES = """
import numpy as np
import tdenoise
movie = np.random.default_rng(0).poisson(2.0, (40, 24, 24)).astype(np.uint8)
denoised = tdenoise.denoise(movie, ensemble=1)
"""


@pytest.mark.slow
def test_a_script_of_four_lines_without_a_guard_is_enough(tmp_path: Path) -> None:
    (tmp_path / "four.py").write_text(FOUR_LINES + "assert denoised.shape == movie.shape\n")
    answer = subprocess.run(
        [sys.executable, "four.py"], cwd=tmp_path, capture_output=True, text=True, timeout=300,
        env={**os.environ, "TMPDIR": str(tmp_path)},
    )  # fmt: skip
    assert answer.returncode == 0, answer.stderr
    assert "uses one core" in answer.stderr
    assert {path.name for path in tmp_path.iterdir()} == {"four.py", "scratch"}


SIDE_EFFECTS = """
import gc, logging, os, random, signal, sys, threading, warnings
import dask, numpy as np, torch, xarray, zarr
import tdenoise_pipeline

def state():
    loggers = ["", "tdenoise", "tdenoise_pipeline", "distributed", "dask"]
    return {
        "threads": torch.get_num_threads(),
        "environment": dict(os.environ),
        "folder": os.getcwd(),
        "signals": [signal.getsignal(s) for s in (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1)],
        "logging": [(logging.getLogger(n).level, list(logging.getLogger(n).handlers)) for n in loggers],
        "warnings": list(warnings.filters),
        "zarr": (zarr.config.get("threading"), zarr.config.get("array")),
        "dask": str(dask.config.config),
        "numpy": np.random.get_state()[1].tolist(),
        "torch": torch.random.get_rng_state().tolist(),
        "random": random.getstate(),
        "grad": torch.is_grad_enabled(), "default": torch.get_default_dtype(),
        "deterministic": torch.are_deterministic_algorithms_enabled(),
        "frozen": gc.get_freeze_count(),
        "errors": np.geterr(),
        "running": sorted(t.name for t in threading.enumerate() if t.name.startswith(("write", "read", "pack", "sha"))),
        "stdout": sys.stdout, "hook": sys.excepthook,
    }

def main():
    import distributed
    tdenoise_pipeline.denoise
    rng = np.random.default_rng(0)
    before = state()
    for shape, more in (((40, 24, 24), {"workers": "local:1"}), ((12, 24, 24), {})):
        movie = rng.poisson(2.0, shape).astype(np.uint8)
        tdenoise_pipeline.denoise(movie, sys.argv[1], ensemble=1, progress=False, **more)
    after = state()
    changed = [name for name in before if before[name] != after[name]]
    assert not changed, {name: (str(before[name])[:200], str(after[name])[:200]) for name in changed}

if __name__ == "__main__":
    main()
"""


@pytest.mark.slow
def test_a_call_has_no_side_effects_on_its_process(tmp_path: Path, model: Path) -> None:
    (tmp_path / "call.py").write_text(SIDE_EFFECTS)
    answer = subprocess.run(
        [sys.executable, "call.py", model], cwd=tmp_path, capture_output=True, text=True, timeout=300,
        env={**os.environ, "TMPDIR": str(tmp_path)},
    )  # fmt: skip
    assert answer.returncode == 0, answer.stderr
    assert {path.name for path in tmp_path.iterdir()} == {"call.py", "scratch"}


@pytest.mark.parametrize(
    ("movie", "given", "words"),
    [
        (np.zeros((4, 5)), {}, "single image of 4 x 5"),
        (np.zeros((4, 5, 6), bool), {}, "type bool"),
        (np.zeros((2, 5, 6)), {}, "2 frame"),
        (np.zeros((6, 20, 20)), {}, "no noise|noise"),
        (np.ma.zeros((4, 5, 6)), {}, "masked array"),
        (dask.array.ma.masked_equal(dask.array.zeros((4, 5, 6)), 3.0), {}, "masked array"),
        ([[[1]]], {}, "is a list. Give a NumPy array"),
        (xr.DataArray(np.zeros((1, 4, 5, 6)), dims=("c", "t", "y", "x")), {}, "4 dimensions .c: 1"),
        (
            xr.Dataset({"a": (("t", "y", "x"), np.zeros((4, 5, 6))), "b": ((), 1)}),
            {"typo": 1},
            "no setting 'typo'",
        ),
        (xr.Dataset({"b": ((), 1)}), {}, "it holds: none"),
        (np.zeros((4, 5, 6)), {"ensembel": 1}, "Did you mean ensemble"),
        (np.zeros((4, 5, 6)), {"steps": 5}, "Add model='adapt'"),
        (np.zeros((4, 5, 6)), {"dataset": "a"}, "is for files"),
        (np.zeros((4, 5, 6)), {"bin": 0}, "bin 0 is not valid"),
        (np.zeros((4, 5, 6)), {"ensemble": 3}, "ensemble 3 is not valid"),
        (np.zeros((4, 5, 6)), {"model": "adapt", "steps": 0}, "steps 0 is not valid"),
        (np.zeros((4, 5, 6)), {"model": "missing"}, "missing"),
        (BLURRED[:, 1:] + BLURRED[:, :-1], {}, "Use model='adapt'"),
        ("missing.dm4", {}, "no such file"),
    ],
)
def test_what_cannot_be_denoised_is_refused_in_a_sentence(
    movie: Any, given: dict[str, Any], words: str, scratch: Path
) -> None:
    with pytest.raises((InputError, UsageError), match=words) as caught:
        tdenoise.denoise(movie, progress=False, **given)
    assert "\n" not in str(caught.value)
    assert not list(scratch.iterdir())


def test_two_arrays_of_one_shape_are_never_taken_for_each_other(
    frames: np.ndarray, model: Path, tmp_path: Path
) -> None:
    few = frames[:12]
    first = tdenoise.denoise(few, model, output=tmp_path / "out", progress=False)
    with pytest.raises(UsageError, match="exists already"):
        tdenoise.denoise(few + 1, model, output=tmp_path / "out", progress=False)
    second = tdenoise.denoise(few + 1, model, output=tmp_path / "out", force=True, progress=False)
    assert not np.array_equal(first, second)


def test_the_package_is_light_until_something_is_asked_for() -> None:
    heavy = {"numpy", "torch", "xarray", "dask", "distributed", "zarr", "pydantic", "rich", "scipy"}
    code = (
        "import sys, tdenoise, tdenoise_pipeline\n"
        "dir(tdenoise), dir(tdenoise_pipeline), tdenoise_pipeline.open\n"
        f"assert not {heavy} & set(sys.modules), set(sys.modules) & {heavy}\n"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
    assert "denoise" in dir(tdenoise)
    assert {"open", "denoise", "ingest", "train", "apply", "run", "evaluate", "report", "verify"} <= set(
        dir(tdenoise_pipeline)
    )
    with pytest.raises(AttributeError):
        tdenoise_pipeline.nothing  # noqa: B018
    with pytest.raises(AttributeError):
        tdenoise.nothing  # type: ignore[attr-defined]  # noqa: B018


def test_steps_are_functions_and_the_rooms_of_their_names_stay_in_reach() -> None:
    import tdenoise_pipeline.ingest.ingest_many as by_name

    assert callable(tdenoise_pipeline.ingest)
    room = tdenoise_pipeline.ingest.ingest_many  # type: ignore[attr-defined]
    assert room is by_name and isinstance(room, types.ModuleType)
    assert pickle.loads(pickle.dumps(tdenoise_pipeline.ingest)) is tdenoise_pipeline.ingest  # noqa: S301
    assert "Parameters" in str(tdenoise_pipeline.ingest.__doc__)


STEPS = {
    "ingest": settings.IngestConfig,
    "train": settings.TrainConfig,
    "apply": settings.ApplyConfig,
    "run": settings.RunConfig,
    "evaluate": settings.EvaluateConfig,
    "report": settings.ReportConfig,
    "events": settings.EventsConfig,
    "export": settings.ExportConfig,
    "study": settings.StudyConfig,
    "verify": settings.VerifyConfig,
}


@pytest.mark.parametrize("step", STEPS)
def test_every_step_shows_all_its_settings(step: str) -> None:
    signature = inspect.signature(getattr(tdenoise_pipeline, step))
    own = {field.name for field in dataclasses.fields(STEPS[step])}
    assert set(signature.parameters) == own | {"progress"}


@pytest.mark.slow
def test_one_step_takes_what_the_step_before_made(frames: np.ndarray, workers: str, tmp_path: Path) -> None:
    np.save(tmp_path / "raw.npy", frames)
    quiet = {"progress": False}
    movie = tdenoise_pipeline.ingest(
        tmp_path / "raw.npy", tmp_path / "movie.zarr", frame_time="10ms", **quiet
    )
    model = tdenoise_pipeline.train([movie], tmp_path / "model", steps=1, blind_radius=0, **quiet)
    denoised = tdenoise_pipeline.apply(
        movie, output=tmp_path / "d.zarr", model=model, workers=workers, ensemble=1, **quiet
    )
    assert movie.facts["kind"] == "movie" and denoised.facts["model"]["id"] == model.facts["sha256"]
    assert denoised.open()["denoised"].shape == SHAPE
    figures = tdenoise_pipeline.evaluate(denoised, movie=movie, **quiet)
    page = tdenoise_pipeline.report(denoised, movie=movie, model=model, output=tmp_path / "r.html", **quiet)
    assert page.path.stat().st_size > 1000
    assert figures["all_frames"]["n_frames"] == page.facts["all_frames"]["n_frames"] == 40
    found = tdenoise_pipeline.events(denoised, movie=movie, output=tmp_path / "events", **quiet)
    assert (found.path / "events.csv").exists() and found.facts["n_frames"] == 40
    written = tdenoise_pipeline.export(denoised, tmp_path / "d.npy", **quiet)
    np.testing.assert_array_equal(np.load(written), denoised.open()["denoised"])
    assert tdenoise_pipeline.verify(denoised, deep=True, **quiet).n_shards > 0
    with pytest.raises(UsageError, match="Did you mean ensemble"):
        tdenoise_pipeline.apply(movie, output=tmp_path / "e.zarr", ensembel=1, **quiet)


@pytest.mark.slow
def test_a_run_gives_back_where_everything_is(frames: np.ndarray, workers: str, tmp_path: Path) -> None:
    np.save(tmp_path / "raw.npy", frames)
    made = tdenoise_pipeline.run(
        tmp_path / "raw.npy",
        tmp_path / "out",
        steps=1,
        blind_radius=0,
        workers=workers,
        ensemble=1,
        progress=False,
    )
    assert made.report.exists() and made.open()["denoised"].shape == SHAPE
    assert made.metrics["all_frames"]["n_frames"] == 40
    assert tdenoise_pipeline.verify(made, progress=False).n_shards > 0


class Kernel:
    """As much of IPython as a progress bar sees: a shell with a kernel, and displays that are updated."""

    def __init__(self) -> None:
        self.texts: list[str] = []
        self.kernel = self.display = self

    def get_ipython(self) -> Kernel:
        return self

    def __call__(self, data: dict[str, str], **_: Any) -> Kernel:
        return self

    def update(self, data: dict[str, str], raw: bool) -> None:
        assert raw
        self.texts.append(data["text/plain"])


def test_progress_in_a_notebook_is_one_line_for_each_step(monkeypatch: pytest.MonkeyPatch) -> None:
    kernel = Kernel()
    kernel.display = types.SimpleNamespace(display=kernel)  # type: ignore[assignment]
    monkeypatch.setitem(sys.modules, "IPython", kernel)  # type: ignore[arg-type]
    monkeypatch.setattr("tdenoise_pipeline.python.progress.REDRAW_S", 0.0)
    with shown(True) as control:
        for what in ("ingest", "apply"):
            for done in range(5):
                control.progress(what, done, 4)
    lines = kernel.texts[-1].splitlines()
    assert [line.partition(":")[0] for line in lines] == ["ingest", "apply"]
    assert all("done in" in line for line in lines)
    assert any("apply: 50 %" in text for text in kernel.texts)


@pytest.mark.parametrize(
    ("stamps", "attrs", "expected"),
    [
        (np.arange(8) * 0.02, {}, np.arange(8) * 0.02),
        (np.arange(8) * 20.0, {"units": "ms"}, np.arange(8) * 0.02),
        (np.datetime64("2026-01-01") + np.arange(8) * np.timedelta64(20, "ms"), {}, np.arange(8) * 0.02),
        (np.array(["early"] * 8), {}, None),
    ],
)
def test_time_stamps_are_read_in_their_unit(stamps, attrs, expected):
    movie = xr.DataArray(counts((8, 12, 14)), dims=("t", "y", "x"))
    found = hold(movie.assign_coords(timestamp=("t", stamps, attrs))).info.timestamps_s
    if expected is None:
        assert found is None
    else:
        np.testing.assert_allclose(found, expected, atol=1e-9)
    for other in (12.0, "2026-01-01T10:00", (("y", "x"), np.zeros((12, 14)))):
        assert hold(movie.assign_coords(timestamp=other)).info.timestamps_s is None
