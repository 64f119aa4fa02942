"""Crash on purpose: every step between two states of the disk has a name, and a test ends the process there.

``TDENOISE_CRASH=POINT[:K[:WHAT[:FILE]]]`` arms one point: the K-th time that a process passes it, it is killed, or
what else WHAT says: an error by name (``EIO``), the same from then on (``EIO+``), or ``stop`` (SIGSTOP). With a FILE,
which is made then, only the first process that comes there suffers. Unset, a point costs one comparison.
"""

from __future__ import annotations

import errno
import os
import signal
from dataclasses import dataclass
from pathlib import Path

POINTS = (
    "lease.taken",
    "plan.written",
    "output.created",
    "output.begun",
    "shard.opened",
    "shard.synced",
    "shard.renamed",
    "shard.checked",
    "marker.synced",
    "marker.written",
    "checkpoint.synced",
    "checkpoint.written",
    "model.saved",
    "model.tidied",
    "given_back.known",
    "given_back.marked",
    "finish.hashes",
    "finish.attributes",
    "finish.consolidated",
    "finish.sealed",
    "commit.checked",
    "commit.staged",
    "commit.replaced",
    "commit.renamed",
    "commit.tidied",
    "lease.released",
    "raw.read",
    "movie.read",
)


@dataclass
class Fault:
    """What shall happen at one point."""

    point: str
    left: int = 1  # passes until it does
    what: str = "kill"
    file: Path | None = None

    @classmethod
    def of(cls, text: str) -> Fault:
        """Read ``POINT[:K[:WHAT[:FILE]]]``."""
        point, count, what, file = (text.split(":", 3) + ["", "", ""])[:4]
        if point not in POINTS:
            raise ValueError(f"TDENOISE_CRASH: there is no point {point!r}")
        return cls(point, int(count or 1), what or "kill", Path(file) if file else None)

    def happen(self) -> None:
        """Count down, and strike."""
        self.left -= 1
        if self.left > 0 or (self.left < 0 and not self.what.endswith("+")):
            return
        if self.file is not None:
            try:
                os.close(os.open(self.file, os.O_CREAT | os.O_EXCL))
            except FileExistsError:
                return
        if self.what == "kill":
            os.kill(os.getpid(), signal.SIGKILL)
        if self.what == "stop":
            os.kill(os.getpid(), signal.SIGSTOP)
            return
        number = getattr(errno, self.what.removesuffix("+"))
        raise OSError(number, os.strerror(number))


_text = os.environ.get("TDENOISE_CRASH")
armed: Fault | None = Fault.of(_text) if _text else None


def maybe_crash(point: str) -> None:
    """A place where a process may end."""
    if armed is not None and armed.point == point:
        armed.happen()
