"""Memory and disk that a step will need, checked before it starts."""

from __future__ import annotations

import contextlib
import os
import shutil
from collections.abc import Callable
from pathlib import Path

import psutil

from ..errors import ResourceError

ROOT = Path("/")  # of the machine's files
WORKER_BASE_BYTES = 325_000_000  # Python, torch, Zarr and Dask in one worker


def machine_memory_bytes() -> int:
    """Memory that this process may use: that of the machine, its control group or its batch job."""
    limits = [int(psutil.virtual_memory().total)]
    limits += _control_group("memory", "memory.max", _memory_max)
    limits += _control_group("memory", "memory.limit_in_bytes", _memory_max)
    per_node, per_core = (_from_slurm(name) for name in ("SLURM_MEM_PER_NODE", "SLURM_MEM_PER_CPU"))  # [MiB]
    if per_node:
        limits.append(per_node * 2**20)
    elif per_core:
        limits.append(per_core * (_job_cores() or 1) * 2**20)
    return min(limits)


def n_cores() -> int:
    """Cores that this process may use: those of the machine, its control group or its batch job."""
    process = psutil.Process()
    fenced = hasattr(process, "cpu_affinity")  # macOS has none
    limits = [len(process.cpu_affinity()) if fenced else psutil.cpu_count() or 1]
    limits += _control_group("cpu", "cpu.max", _cpu_max)
    limits += _control_group("cpu", "cpu.cfs_quota_us", _cpu_quota)
    if job := _job_cores():
        limits.append(job)
    return max(1, min(limits))


def _job_cores() -> int | None:
    """Cores of the Slurm job on this node, which not every site fences in."""
    return _from_slurm("SLURM_CPUS_PER_TASK") or _from_slurm("SLURM_CPUS_ON_NODE")


def _from_slurm(name: str) -> int | None:
    """A number that Slurm set for the job; None where there is none, or where it stands for no limit (0)."""
    text = os.environ.get(name, "")
    return int(text) or None if text.isdigit() else None


def _control_group(controller: str, file: str, read: Callable[[Path], int]) -> list[int]:
    """The limits in one kind of file of this process's control group and of those around it.

    Version 2 of control groups has one tree, version 1 one for each controller.
    """
    try:
        lines = (ROOT / "proc/self/cgroup").read_text().splitlines()
    except OSError:
        return []
    found = []
    for line in lines:
        _, names, path = line.split(":", 2)
        if names and controller not in names.split(","):
            continue
        top = ROOT / "sys/fs/cgroup" / (controller if names else "")
        folder = top / path.lstrip("/")
        for each in (folder, *folder.parents):
            with contextlib.suppress(OSError, ValueError):  # not there, or "max"
                found.append(read(each / file))
            if each == top:
                break
    return found


def _memory_max(file: Path) -> int:
    return int(file.read_text())


def _cpu_max(file: Path) -> int:
    quota, period = file.read_text().split()
    return int(quota) // int(period)


def _cpu_quota(file: Path) -> int:
    quota, period = int(file.read_text()), int(file.with_name("cpu.cfs_period_us").read_text())
    if quota < 0:
        raise ValueError("no limit")
    return quota // period


def check_memory(needed: int, limit: int, what: str, remedy: str) -> None:
    """Refuse a plan that a worker could not hold."""
    if needed > limit:
        raise ResourceError(
            f"{what} needs {in_words(needed)} of memory, but only {in_words(limit)} is available. {remedy}"
        )


def free_bytes(folder: Path) -> int:
    """Free space on the disk of a folder, which may not exist yet."""
    while not folder.exists():
        folder = folder.parent
    return shutil.disk_usage(folder).free


def check_disk(folder: Path, needed: int, what: str) -> None:
    """Refuse a plan that the disk could not hold. ``folder`` may not exist yet."""
    free = free_bytes(folder)
    if needed > free:
        raise ResourceError(
            f"{what} will take about {in_words(needed)}, but the disk there has {in_words(free)} free. "
            "Free some space or write somewhere else."
        )


def in_words(n_bytes: float) -> str:
    """A size for people.

    Examples
    --------
    >>> in_words(3.2e9)
    '3.2 GB'
    """
    for unit in ("B", "kB", "MB", "GB"):
        if n_bytes < 1000:
            return f"{n_bytes:.0f} {unit}" if unit == "B" else f"{n_bytes:.1f} {unit}"
        n_bytes /= 1000
    return f"{n_bytes:.1f} TB"
