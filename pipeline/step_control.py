"""What a step is told from outside while it runs: stop requests in, progress out."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field

from .errors import Stopped


def _silent(what: str, done: int, total: int) -> None:
    return None


def _unsaid(what: str, text: str) -> None:
    return None


@dataclass
class Control:
    """Shared by the command line and the step it runs.

    ``progress(what, done, total)`` is called as work goes on, and before it ``note(what, text)`` where there is more to
    say of it, such as the loss of a training. ``stop`` is set by a signal: the step finishes
    what it has in hand and raises `Stopped`.
    """

    progress: Callable[[str, int, int], None] = _silent
    stop: threading.Event = field(default_factory=threading.Event)
    started: float = field(default_factory=time.monotonic)
    note: Callable[[str, str], None] = _unsaid

    def check(self, where: str) -> None:
        """Raise `Stopped` if a stop was asked for."""
        if self.stop.is_set():
            raise Stopped(f"stopped in {where}; run the same command again to continue")
