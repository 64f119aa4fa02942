"""Memory and disk that a step will need, checked before it starts."""

from __future__ import annotations

import os
import re
import shutil
from pathlib import Path

from .errors import ResourceError

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


def parse_size(text: str) -> int:
    """Bytes from text such as ``4GiB``, ``500M`` or ``2e9``.

    Examples
    --------
    >>> parse_size("4GiB"), parse_size("1.5G"), parse_size("1000")
    (4294967296, 1500000000, 1000)
    """
    match = re.fullmatch(r"\s*([0-9.]+(?:[eE][0-9]+)?)\s*([KMGT]?)(I?)B?\s*", text, re.IGNORECASE)
    if match is None:
        raise ValueError(f"{text!r} is not a size such as 4GiB or 500M")
    power = " KMGT".index(match[2].upper() or " ")
    return int(float(match[1]) * (1024 if match[3] else 1000) ** power)


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
