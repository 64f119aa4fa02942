"""What a program that calls the steps from Python keeps: its own settings, and the right advice."""

from __future__ import annotations

import gc
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from small import counts, model_folder, movie_store
from tdenoise_pipeline.apply.apply import apply
from tdenoise_pipeline.resources import budget
from tdenoise_pipeline.settings.config import ApplyConfig, TrainConfig
from tdenoise_pipeline.store import shards, writing
from tdenoise_pipeline.train.train import train_model


def test_opening_a_store_changes_no_setting_of_zarr_or_blosc(tmp_path: Path) -> None:
    movie = movie_store(tmp_path, counts((12, 20, 24)))
    code = (
        "import sys, zarr\n"
        "from numcodecs import blosc\n"
        "before = zarr.config.get('array'), zarr.config.get('threading'), blosc.get_nthreads(), blosc.use_threads\n"
        "import tdenoise_pipeline\n"
        "tdenoise_pipeline.open(sys.argv[1])['counts'][0].load()\n"
        "after = zarr.config.get('array'), zarr.config.get('threading'), blosc.get_nthreads(), blosc.use_threads\n"
        "assert before == after, (before, after)\n"
    )
    subprocess.run([sys.executable, "-c", code, movie], check=True)


def test_the_bytes_of_a_shard_do_not_depend_on_the_threads_of_blosc(tmp_path: Path) -> None:
    from numcodecs import blosc

    frames = counts((4, 512, 512))
    layout = shards.Layout((4, 512, 512), (4, 512, 512), frames.dtype, 255)
    before = blosc.get_nthreads()
    try:
        for n_threads in (1, 8):
            blosc.set_nthreads(n_threads)
            (tmp_path / str(n_threads)).mkdir()
            writer = shards.ShardWriter(layout)
            writer.append(frames)
            writer.write(tmp_path / str(n_threads), (0, 0, 0))
    finally:
        blosc.set_nthreads(before)
    one, eight = ((tmp_path / n / "c/0/0/0").read_bytes() for n in "18")
    assert one == eight


def test_a_small_array_that_equals_its_fill_value_is_written_all_the_same(tmp_path: Path) -> None:
    movie = movie_store(tmp_path, counts((12, 20, 24)))
    writing.add_array(movie, "nothing", np.zeros(12, dtype=bool), ("t",), {})
    assert (movie / "nothing/c/0").exists()


def test_training_and_applying_leave_the_threads_and_the_garbage_collector_as_they_were(
    tmp_path: Path,
) -> None:
    movie = movie_store(tmp_path, counts((12, 20, 24)))
    before = torch.get_num_threads()
    try:
        torch.set_num_threads(2)
        train_model(TrainConfig(movie=(movie,), output=tmp_path / "model", steps=1, device="cpu"))
        model = model_folder(tmp_path / "small")
        settings = {"movie": movie, "model": model, "device": "cpu", "ensemble": 1}
        apply(ApplyConfig(**settings, output=tmp_path / "d.zarr", workers="local:1"))
        apply(ApplyConfig(**settings, output=tmp_path / "shared.zarr", share="0/1"))
        assert torch.get_num_threads() == 2
        assert gc.get_freeze_count() == 0
    finally:
        torch.set_num_threads(before)
    assert (tmp_path / "d.zarr/denoised/c/0/0/0").read_bytes() == (
        tmp_path / "shared.zarr/denoised/c/0/0/0"
    ).read_bytes()


@pytest.mark.parametrize("guarded", [False, True])
def test_a_script_without_a_guard_is_told_to_have_one(tmp_path: Path, guarded: bool) -> None:
    movie, model = movie_store(tmp_path, counts((12, 20, 24))), model_folder(tmp_path / "model")
    call = (
        f"apply(ApplyConfig(movie=Path({str(movie)!r}), model=Path({str(model)!r}), ensemble=1, device='cpu', "
        f"output=Path({str(tmp_path / 'd.zarr')!r}), workers='local:1'))\n"
    )
    script = tmp_path / "denoise.py"
    script.write_text(
        "from pathlib import Path\n"
        "from tdenoise_pipeline.apply.apply import apply\n"
        "from tdenoise_pipeline.settings.config import ApplyConfig\n"
        + (f"if __name__ == '__main__':\n    {call}" if guarded else call)
    )
    answer = subprocess.run([sys.executable, script], capture_output=True, text=True)
    if guarded:
        assert answer.returncode == 0, answer.stderr
        return
    last = answer.stderr.splitlines()[-1]
    assert answer.returncode == 1
    assert "denoise.py: line 4 starts worker processes" in last and "if __name__ == '__main__'" in last


GIB = 2**30


@pytest.mark.parametrize(
    ("cgroup", "files", "memory", "cores"),
    [
        ("0::/a/b\n", {"a/b/memory.max": "max", "a/memory.max": f"{2 * GIB}"}, 2 * GIB, 4),
        ("0::/a\n", {"a/cpu.max": "150000 100000"}, 64 * GIB, 1),
        ("0::/a\n", {"a/cpu.max": "50000 100000"}, 64 * GIB, 1),
        ("0::/\n", {"cpu.max": "max 100000", "memory.max": "max"}, 64 * GIB, 4),
        (
            "5:cpu,cpuacct:/j\n4:memory:/j\n",
            {
                "memory/j/memory.limit_in_bytes": f"{3 * GIB}",
                "cpu/j/cpu.cfs_quota_us": "200000",
                "cpu/j/cpu.cfs_period_us": "100000",
            },
            3 * GIB,
            2,
        ),
        ("4:cpu:/\n", {"cpu/cpu.cfs_quota_us": "-1", "cpu/cpu.cfs_period_us": "100000"}, 64 * GIB, 4),
        (None, {}, 64 * GIB, 4),
    ],
)
def test_memory_and_cores_are_those_of_the_control_group(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    cgroup: str | None,
    files: dict[str, str],
    memory: int,
    cores: int,
) -> None:
    machine(tmp_path, monkeypatch)
    if cgroup is not None:
        (tmp_path / "proc/self").mkdir(parents=True)
        (tmp_path / "proc/self/cgroup").write_text(cgroup)
    for name, text in files.items():
        file = tmp_path / "sys/fs/cgroup" / name
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(text)
    assert (budget.machine_memory_bytes(), budget.n_cores()) == (memory, cores)


@pytest.mark.parametrize(
    ("job", "memory", "cores"),
    [
        ({"SLURM_MEM_PER_NODE": "4096", "SLURM_CPUS_PER_TASK": "2"}, 4 * GIB, 2),
        ({"SLURM_MEM_PER_CPU": "2048", "SLURM_CPUS_ON_NODE": "2"}, 4 * GIB, 2),
        ({"SLURM_MEM_PER_CPU": "2048"}, 2 * GIB, 4),
        ({"SLURM_MEM_PER_NODE": "0"}, 64 * GIB, 4),  # all of the node
        ({"SLURM_CPUS_PER_TASK": "many"}, 64 * GIB, 4),
    ],
)
def test_memory_and_cores_are_those_of_the_batch_job(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, job: dict[str, str], memory: int, cores: int
) -> None:
    machine(tmp_path, monkeypatch)
    for name, text in job.items():
        monkeypatch.setenv(name, text)
    assert (budget.machine_memory_bytes(), budget.n_cores()) == (memory, cores)


@pytest.mark.parametrize("fenced", [True, False])
def test_a_machine_without_affinity_has_all_its_cores(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, fenced: bool
) -> None:
    machine(tmp_path, monkeypatch)
    if not fenced:  # as on macOS
        monkeypatch.setattr(budget.psutil, "Process", lambda: object())
    assert budget.n_cores() == (4 if fenced else 6)


def machine(files: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A machine of 64 GiB and 6 cores, 4 of them for this process."""

    class Process:
        def cpu_affinity(self) -> list[int]:
            return [0, 1, 2, 3]

    for name in ("MEM_PER_NODE", "MEM_PER_CPU", "CPUS_PER_TASK", "CPUS_ON_NODE"):
        monkeypatch.delenv(f"SLURM_{name}", raising=False)
    monkeypatch.setattr(budget, "ROOT", files)
    monkeypatch.setattr(budget.psutil, "Process", Process)
    monkeypatch.setattr(budget.psutil, "cpu_count", lambda: 6)
    total = type("Memory", (), {"total": 64 * GIB})
    monkeypatch.setattr(budget.psutil, "virtual_memory", lambda: total)
