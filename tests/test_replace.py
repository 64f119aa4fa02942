"""An output that is replaced while others read it."""

from __future__ import annotations

import subprocess
import sys
import threading
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tdenoise_pipeline
from small import counts, model_folder, movie_store
from tdenoise_pipeline.apply import block_work
from tdenoise_pipeline.apply.apply import apply
from tdenoise_pipeline.archive.verify import verify
from tdenoise_pipeline.errors import InputError
from tdenoise_pipeline.ingest.ingest import ingest
from tdenoise_pipeline.runs import paths, progress
from tdenoise_pipeline.settings.config import ApplyConfig, IngestConfig, VerifyConfig

from tdenoise.files.atomic import exchange

SHAPE = (70, 40, 50)
OLD, NEW = counts(SHAPE, seed=1), counts(SHAPE, seed=2)

# Opens the store again and again; tells when it finds what is neither the old movie nor the new one.
READER = """
import sys
import numpy as np, xarray as xr
known = [np.load(name) for name in sys.argv[2:]]
print("reading", flush=True)
while True:
    try:
        seen = xr.open_zarr(sys.argv[1], chunks=None)["counts"].values
    except ValueError:  # the index of a shard of one and a chunk of the other: the checksum is wrong
        continue
    for first in range(0, len(seen), 32):
        frames = slice(first, first + 32)
        if not any((seen[frames] == movie[frames]).all() for movie in known):
            print("frames", first, "hold", seen[frames].min(), "to", seen[frames].max(), flush=True)
"""


def replace(movie: Path, frames: np.ndarray) -> None:
    np.save(movie.with_name("raw.npy"), frames)
    ingest(IngestConfig(raw=movie.with_name("raw.npy"), output=movie, force=True))


@pytest.fixture
def movie(tmp_path: Path) -> Path:
    return movie_store(tmp_path, OLD)


def test_two_folders_change_names_in_one_step(tmp_path: Path) -> None:
    for name in ("a", "b"):
        (tmp_path / name / name).mkdir(parents=True)
    if exchange(tmp_path / "a", tmp_path / "b"):
        assert (tmp_path / "a/b").exists()
        assert (tmp_path / "b/a").exists()
    with pytest.raises(FileNotFoundError):
        exchange(tmp_path / "a", tmp_path / "c")


def test_another_process_finds_whole_shards_at_any_moment_of_a_replacement(
    movie: Path, tmp_path: Path
) -> None:
    for name, frames in (("old.npy", OLD), ("new.npy", NEW)):
        np.save(tmp_path / name, frames)
    words = [str(tmp_path / name) for name in ("movie.zarr", "old.npy", "new.npy")]
    reader = subprocess.Popen(
        [sys.executable, "-c", READER, *words], stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    )
    with reader:
        assert reader.stdout is not None
        assert reader.stdout.readline() == "reading\n"
        for number in range(8):
            replace(movie, (NEW, OLD)[number % 2])
        reader.kill()
        assert reader.stdout.read() == ""


@pytest.mark.parametrize("in_one_step", [True, False])
def test_a_reader_that_holds_a_store_open_sees_the_old_bytes_or_fails(
    movie: Path, in_one_step: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    if not in_one_step:  # as on a file system that cannot
        monkeypatch.setattr(progress, "exchange", lambda one, other: False)
    held, half = (tdenoise_pipeline.open(movie)["counts"] for _ in range(2))
    assert (half[:32].values == OLD[:32]).all()
    done = threading.Event()
    seen: list[str] = []

    def read() -> None:
        while not done.is_set():
            for lazy in (held, half[32:]):
                first = len(OLD) - len(lazy)
                try:
                    seen.append("old" if (lazy.values == OLD[first:]).all() else "neither")
                except InputError as error:
                    seen.append(str(error))

    reader = threading.Thread(target=read)
    reader.start()
    try:
        replace(movie, NEW)
    finally:
        done.set()
        reader.join()
    with pytest.raises(InputError, match="was replaced while it was being read"):
        half[32:].compute()
    assert "neither" not in seen
    assert (tdenoise_pipeline.open(movie)["counts"].values == NEW).all()


@pytest.mark.parametrize("moment", ["commit.staged", "commit.replaced", "commit.renamed"])
def test_a_replacement_that_was_cut_off_is_finished_and_leaves_nothing(
    movie: Path, moment: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    class PowerCutError(BaseException):
        pass

    def cut(point: str) -> None:
        if point == moment:
            raise PowerCutError

    with monkeypatch.context() as patched:
        patched.setattr(progress, "maybe_crash", cut)
        with pytest.raises(PowerCutError):
            replace(movie, NEW)
    left = sorted(path.name.partition("-")[0] for path in paths.work_folder(movie).iterdir())
    assert ("ready" in left) == (moment != "commit.renamed")
    old_or_new = (OLD, NEW)[moment != "commit.staged"]
    assert (tdenoise_pipeline.open(movie)["counts"].values == old_or_new).all()
    ingest(IngestConfig(raw=movie.with_name("raw.npy"), output=movie, force=moment == "commit.staged"))
    assert (tdenoise_pipeline.open(movie)["counts"].values == NEW).all()
    assert not paths.work_folder(movie).exists()
    assert not paths.partial_path(movie).exists()
    verify(VerifyConfig(store=movie, deep=True))


def test_apply_notices_that_its_movie_was_replaced(movie: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    original = block_work.run_block
    folder = movie.parent

    def run_block(job: block_work.Job, block: Any, **stop: Any) -> int:
        if block.number == 1:
            replace(movie, NEW)
            block_work.movie_counts.cache_clear()  # as in a worker that has read nothing yet
        return original(job, block, **stop)

    monkeypatch.setattr("tdenoise_pipeline.apply.apply.run_block", run_block)
    with pytest.raises(InputError, match="was replaced while it was being denoised"):
        apply(
            ApplyConfig(
                movie=movie, model=model_folder(folder / "model"), output=folder / "out.zarr", share="0/1"
            )
        )
    assert not (folder / "out.zarr").exists()
