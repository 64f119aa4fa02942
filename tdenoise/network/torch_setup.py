"""How a process that computes with torch is set up, and in which precision it is fast."""

from __future__ import annotations

import ctypes
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import torch

M_TRIM_THRESHOLD, M_MMAP_THRESHOLD = -1, -3  # <malloc.h>


@contextmanager
def restored() -> Iterator[None]:
    """Undo afterwards what `prepare` sets: a step may be called from a program that computes with torch, too."""
    cudnn = torch.backends.cudnn
    before = torch.get_num_threads(), cudnn.benchmark, cudnn.allow_tf32
    random = torch.get_rng_state()  # a network begins with random weights, also one that is loaded
    on_gpus = torch.cuda.get_rng_state_all() if torch.cuda.is_initialized() else []  # type: ignore[no-untyped-call]
    try:
        yield
    finally:
        torch.set_num_threads(before[0])
        cudnn.benchmark, cudnn.allow_tf32 = before[1:]
        torch.set_rng_state(random)
        if on_gpus:
            torch.cuda.set_rng_state_all(on_gpus)


def prepare(n_threads: int) -> None:
    """Fix the number of threads, and let the allocator keep memory that tensors give back.

    The C library returns every large tensor to the kernel at once, and the next one costs a page fault per
    4 KiB: two thirds of the time of a small network. Dask's workers are told to trim even more eagerly.

    Parameters
    ----------
    n_threads : int
        Threads of one operation; on a worker 1, so that workers do not fight for cores and sums are always
        taken in the same order.
    """
    torch.set_num_threads(n_threads)
    torch.backends.cudnn.benchmark = False  # the choice of an algorithm must not depend on the moment
    torch.backends.cudnn.allow_tf32 = False
    if sys.platform == "linux":
        mallopt = getattr(ctypes.CDLL(None), "mallopt", None)  # musl has none
        if mallopt is not None:
            mallopt(M_MMAP_THRESHOLD, 1 << 30)
            mallopt(M_TRIM_THRESHOLD, 1 << 30)


def fast_bfloat16(device: str = "cpu") -> bool:
    """Whether a device multiplies bfloat16 in hardware; elsewhere it is slower than float32."""
    if device.startswith("cuda"):
        return torch.cuda.get_device_capability(device)[0] >= 8
    if torch.device(device).type != "cpu":
        return False  # not known of other accelerators
    try:
        flags = Path("/proc/cpuinfo").read_text()
    except OSError:
        return False
    return "avx512_bf16" in flags or "amx_bf16" in flags
