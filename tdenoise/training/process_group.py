"""Processes that share the batches of one training: few, small messages, and never a pickled object."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
import torch.distributed as dist
from torch import Tensor


@dataclass(frozen=True)
class Team:
    """Which of the processes this one is. Every method is called by all of them, in the same order.

    Alone, nothing is sent. In a team, the default process group of torch must have been made.

    Raises
    ------
    ConnectionError
        From every method, if another process has ended.
    """

    rank: int = 0
    size: int = 1
    local_rank: int = 0  # among those on this machine
    local_size: int = 1

    def of_first(self, compute: Callable[[], float]) -> float:
        """A number that only the first process computes, and all are told."""
        if self.size == 1:
            return compute()
        number = torch.tensor([compute() if self.rank == 0 else 0.0], dtype=torch.float64)
        _sent(lambda: dist.broadcast(number, 0))
        return float(number)

    def any(self, flag: bool) -> bool:
        """Whether it is true in one of the processes."""
        if self.size == 1:
            return flag
        flags = torch.tensor([int(flag)])
        _sent(lambda: dist.all_reduce(flags, dist.ReduceOp.MAX))
        return bool(flags)

    def gather(self, values: Tensor, shares: Sequence[int]) -> Tensor:
        """Values of all patches of a batch along the last axis, of which every process has its share."""
        if self.size == 1:
            return values
        own = torch.zeros((*values.shape[:-1], max(shares)))  # messages have one size
        own[..., : values.shape[-1]] = values
        parts = [torch.empty_like(own) for _ in shares]
        _sent(lambda: dist.all_gather(parts, own))
        return torch.cat([part[..., :size] for part, size in zip(parts, shares, strict=True)], dim=-1)

    def sum(self, tensors: Sequence[Tensor]) -> Sequence[Tensor]:
        """Sums over the processes; all of them are given the same bytes."""
        if self.size == 1:
            return tensors
        flat = torch.cat([tensor.flatten() for tensor in tensors])
        _sent(lambda: dist.all_reduce(flat))
        parts = torch.split(flat, [tensor.numel() for tensor in tensors])
        return [part.view_as(tensor) for part, tensor in zip(parts, tensors, strict=True)]

    def broadcast(self, data: bytes) -> bytes:
        """What the first process has; the others give nothing."""
        if self.size == 1:
            return data
        size = int(self.of_first(lambda: len(data)))
        buffer = torch.frombuffer(bytearray(data or bytes(size)), dtype=torch.uint8)
        _sent(lambda: dist.broadcast(buffer, 0))
        return buffer.numpy().tobytes()


ALONE = Team()


def _sent(send: Callable[[], object]) -> None:
    try:
        send()
    except RuntimeError as error:  # what torch makes of a closed connection
        raise ConnectionError(f"another process of the training has ended: {error}") from error
