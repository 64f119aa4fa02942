"""Memory and disk that a step will need, checked before it starts."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

from ..errors import ResourceError

WORKER_BASE_BYTES = 325_000_000  # Python, torch, Zarr and Dask in one worker


def machine_memory_bytes() -> int:
    """Memory that this process may use: of the machine, or of its control group or batch job."""
    total = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    for name in ("/sys/fs/cgroup/memory.max", "/sys/fs/cgroup/memory/memory.limit_in_bytes"):
        try:
            total = min(total, int(Path(name).read_text()))
        except (OSError, ValueError):
            continue
    job = os.environ.get("SLURM_MEM_PER_NODE")  # [MiB]
    return min(total, int(job) * 2**20) if job and job.isdigit() else total


def n_cores() -> int:
    """Cores that this process may use: of the machine, or of its batch job where those are not fenced in."""
    job = os.environ.get("SLURM_CPUS_PER_TASK", "")
    cores = len(os.sched_getaffinity(0))
    return min(cores, int(job)) if job.isdigit() else cores


def check_memory(needed: int, limit: int, what: str, remedy: str) -> None:
    """Refuse a plan that a worker could not hold."""
    if needed > limit:
        raise ResourceError(
            f"{what} needs {in_words(needed)} of memory, but {in_words(limit)} are there. {remedy}"
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
