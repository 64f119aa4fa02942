"""Loaded by every worker in a batch job: leave ahead of the time limit, with nothing in hand.

Dask's own ``--lifetime`` gives the running block to another worker at once while it is still computed here, and one
that takes longer than the lifetime never ends. Here a worker stops taking blocks, finishes the one it has, and goes.
"""

from __future__ import annotations

import asyncio
import os
import time
from typing import Any

from distributed import Worker, WorkerPlugin

END = "TDENOISE_JOB_END"  # environment: when the job ends [s since 1970]
MARGIN = "TDENOISE_DRAIN_S"  # environment: no new block later than so long before [s]
TOKEN = "block"  # a block asks for one of these, and a worker has one
SAFETY = 1.5  # times the longest block seen so far, where that is more than the margin
LOOK_S = 1.0


class Durations(WorkerPlugin):  # type: ignore[misc]
    """Remembers how long the longest block took."""

    name = "tdenoise-durations"

    def __init__(self) -> None:
        self.longest_s = 0.0
        self._began: dict[Any, float] = {}

    def transition(self, key: Any, start: str, finish: str, **kwargs: Any) -> None:
        """Called by Dask when a task changes its state."""
        if finish == "executing":
            self._began[key] = time.monotonic()
        elif start == "executing" and key in self._began:
            self.longest_s = max(self.longest_s, time.monotonic() - self._began.pop(key))


async def dask_setup(worker: Worker) -> None:
    """Called by ``dask worker --preload``."""
    end, margin = float(os.environ[END]), float(os.environ[MARGIN])
    durations = Durations()
    await worker.plugin_add(durations)
    worker.tdenoise_drain = asyncio.create_task(_leave_in_time(worker, durations, end, margin))


async def _leave_in_time(worker: Worker, durations: Durations, end: float, margin: float) -> None:
    while time.time() < end - max(margin, SAFETY * durations.longest_s):
        await asyncio.sleep(LOOK_S)
    await worker.set_resources(**{TOKEN: 0})
    while worker.state.executing_count:
        await asyncio.sleep(LOOK_S / 5)
    await worker.close_gracefully()
