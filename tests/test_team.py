"""Several processes train one model: the same batches, the same result, each its own reading."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pytest
import torch
from small import TINY, counts, movie_store
from tdenoise_pipeline.errors import PipelineError, UsageError
from tdenoise_pipeline.settings.config import TrainConfig
from tdenoise_pipeline.train.train import train_model

from tdenoise.network.checkpoint import load_model
from tdenoise.noise.noise import Scale
from tdenoise.training.patches import PatchLoader
from tdenoise.training.training_movie import TrainingMovie, hold_out

SCALE = Scale(2.0, 1.4, 0.3)
PROGRAM = [sys.executable, "-m", "tdenoise_pipeline.cli"]


class Counted:
    """A movie that remembers which of its pixels were read."""

    def __init__(self, frames: np.ndarray) -> None:
        self.frames, self.shape, self.dtype = frames, frames.shape, frames.dtype
        self.n_read = 0
        self.read = np.zeros(frames.shape, bool)

    def __getitem__(self, key: Any) -> np.ndarray:
        self.n_read += self.frames[key].size
        self.read[key] = True
        return self.frames[key]


@pytest.mark.parametrize("size", [2, 3])
@pytest.mark.parametrize("pool_bytes", [1, 96 * 2**20], ids=["regions that come and go", "all in memory"])
def test_processes_share_the_batches_of_one_and_each_reads_its_part(size: int, pool_bytes: int) -> None:
    frames = counts((600, 48, 40))
    whole = PatchLoader(
        [TrainingMovie(frames, SCALE, hold_out(600))], TINY, patch=16, batch=6, pool_bytes=pool_bytes
    )
    movies = [Counted(frames) for _ in range(size)]
    loaders = [
        PatchLoader(
            [TrainingMovie(movie, SCALE, hold_out(600))],
            TINY,
            patch=16,
            batch=6,
            pool_bytes=pool_bytes,
            share=(rank, size),
        )
        for rank, movie in enumerate(movies)
    ]
    for step in range(0, 780, 3):
        expected = whole.draw(step)
        parts = [loader.draw(step) for loader in loaders]
        for name in ("neighbours", "centre", "target", "weight", "contrast"):
            assert torch.equal(torch.cat([getattr(p, name) for p in parts]), getattr(expected, name))
    # Every frame of the context is read with its neighbours; beyond that, nobody reads what another has read.
    assert np.logical_or.reduce([movie.read for movie in movies]).mean() > 0.99
    assert all(movie.read.mean() < 1 / size + 0.2 for movie in movies)


@pytest.fixture(scope="module")
def movie(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return movie_store(tmp_path_factory.mktemp("movie"), counts((60, 40, 33)))


def weights(model: Path) -> torch.Tensor:
    return torch.cat([v.flatten() for v in load_model(model).network.state_dict().values()])


@pytest.fixture(scope="module")
def alone(movie: Path) -> Path:
    output = movie.parent / "alone"
    train_model(TrainConfig(movie=(movie,), output=output, steps=4, processes=1))
    return output


def same_training(one: Path, other: Path) -> None:
    """The same to the rounding of sums that are taken in another order."""
    torch.testing.assert_close(weights(one), weights(other), rtol=1e-4, atol=8e-5)
    errors = [
        [json.loads(line)["held_out"] for line in (m / "metrics.jsonl").read_text().splitlines()]
        for m in (one, other)
    ]
    np.testing.assert_allclose(*errors, rtol=1e-4)


def test_two_processes_train_what_one_trains(movie: Path, alone: Path, tmp_path: Path) -> None:
    train_model(TrainConfig(movie=(movie,), output=tmp_path / "two", steps=4, processes=2))
    same_training(alone, tmp_path / "two")
    assert load_model(tmp_path / "two").card["plan"] == load_model(alone).card["plan"]


def test_torchrun_may_start_the_processes(movie: Path, alone: Path, tmp_path: Path) -> None:
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", "-m"]
    command += ["tdenoise_pipeline.cli", "train", str(movie), "-o", str(tmp_path / "two"), "--steps", "4"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("4 steps") == 1, "the first process alone reports"
    same_training(alone, tmp_path / "two")


def started(movie: Path, output: Path) -> tuple[subprocess.Popen[str], psutil.Process]:
    """A long training by two processes, once both are at work; and the second of them."""
    command = [*PROGRAM, "train", movie, "-o", output, "--processes", "2", "--steps", "100000", "-q"]
    first = subprocess.Popen([str(word) for word in command], stderr=subprocess.PIPE, text=True)
    metrics = output.with_name(output.name + "-partial") / "metrics.jsonl"
    deadline = time.monotonic() + 120
    while not (metrics.exists() and metrics.read_text()):  # the first validation; both are in the loop
        assert first.poll() is None and time.monotonic() < deadline
        time.sleep(0.1)
    children = psutil.Process(first.pid).children()
    second = next(c for c in children if "resource_tracker" not in " ".join(c.cmdline()))
    return first, second


def test_a_signal_to_any_process_stops_all_in_good_order(movie: Path, tmp_path: Path) -> None:
    first, second = started(movie, tmp_path / "model")
    listening = [
        connection.laddr.ip
        for process in (psutil.Process(first.pid), second)
        for connection in process.net_connections("inet")
        if connection.status == psutil.CONN_LISTEN
    ]
    assert listening and set(listening) == {"127.0.0.1"}
    second.send_signal(signal.SIGTERM)
    _, errors = first.communicate(timeout=120)
    assert first.returncode == 75, errors
    assert not second.is_running() or second.status() == psutil.STATUS_ZOMBIE
    assert list((tmp_path / "model-partial").glob("*.safetensors"))
    assert not (tmp_path / ".tdenoise/model/lease").exists()


def test_a_process_that_is_killed_ends_the_others_and_is_told(movie: Path, tmp_path: Path) -> None:
    first, second = started(movie, tmp_path / "model")
    second.kill()
    _, errors = first.communicate(timeout=120)
    assert first.returncode == 1
    assert "process 1 of the training was killed by signal 9" in errors
    assert "Traceback" not in errors


def test_processes_end_with_the_first(movie: Path, tmp_path: Path) -> None:
    first, second = started(movie, tmp_path / "model")
    first.kill()
    first.communicate()
    second.wait(timeout=60)


def test_what_another_process_says_is_the_error(
    movie: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from tdenoise_pipeline.train import launch

    monkeypatch.setattr(launch, "_other", _failing)
    with pytest.raises(PipelineError, match=r"process 1 of the training: .*no such device") as caught:
        train_model(TrainConfig(movie=(movie,), output=tmp_path / "model", steps=4, processes=2))
    assert caught.value.exit_code == 2
    assert not (tmp_path / "model").exists()


def _failing(member: Any, file: str, most: int, work: Any, pipe: Any) -> None:
    from tdenoise_pipeline.train import launch

    def fail(control: Any, team: Any) -> None:
        raise UsageError("no such device")

    launch._other(member, file, most, fail, pipe)


def test_more_processes_than_patches_are_refused(movie: Path, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="9 processes cannot share a batch of 8"):
        train_model(TrainConfig(movie=(movie,), output=tmp_path / "model", steps=4, processes=9))
    with pytest.raises(UsageError, match="is for commands that srun starts"):
        train_model(TrainConfig(movie=(movie,), output=tmp_path / "model", steps=4, processes="slurm"))
