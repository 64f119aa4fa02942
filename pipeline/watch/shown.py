"""What the page shows now: written by the looks and the list, read by every tab."""

from __future__ import annotations

import threading
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from .recordings import Folder, Recording


@dataclass(frozen=True)
class Look:
    """One frame as a page shows it."""

    number: int
    recording: str  # name
    frame: int  # counted from 0
    n_frames: int  # whole ones that were there
    finished: bool  # the recording, and so this is its last frame
    every: int  # frames from the one that was shown before to this one
    delay_s: float  # from the moment at which it was first seen to this look's end
    part: tuple[int, int]  # corner [pixels]
    shape: tuple[int, int]  # of the field [pixels]
    raw: NDArray[np.uint8]
    denoised: NDArray[np.uint8] | None
    problem: str | None  # why there is no denoised frame
    figures: dict[str, Any]

    def to_json(self) -> dict[str, Any]:
        """All but the pictures."""
        plain = (
            "number",
            "recording",
            "frame",
            "n_frames",
            "finished",
            "every",
            "part",
            "shape",
            "problem",
            "figures",
        )
        return {name: getattr(self, name) for name in plain} | {
            "delay_s": round(self.delay_s, 2),
            "size": self.raw.shape,
        }


class Shown:
    """What all threads know together; every change wakes those who wait for one."""

    def __init__(self) -> None:
        self._changed = threading.Condition()
        self._version = 0
        self._ended = False
        self._newest: Recording | None = None
        self._chosen: str | None = None
        self._known: dict[str, Recording] = {}
        self._why: dict[str, str] = {}
        self._listed: list[dict[str, Any]] = []
        self._problems: list[str] = []
        self.look: Look | None = None

    def wanted(self) -> Recording | None:
        """The recording to look at: the one that was chosen, else the newest."""
        with self._changed:
            chosen = None if self._chosen is None else self._known.get(self._chosen)
            if chosen is not None and chosen.state in ("growing", "finished"):
                return chosen
            return self._newest

    def choose(self, name: str | None) -> None:
        """Look at one recording; None: at the newest."""
        with self._changed:
            if name is not None and name not in self._known:
                raise LookupError(name)
            self._chosen = name
            self._tell()

    def publish(self, look: Look) -> None:
        """Show a look."""
        with self._changed:
            self.look = look
            self._why.pop(look.recording, None)
            self._tell()

    def told(self, name: str, why: str) -> None:
        """Say why a recording cannot be shown."""
        with self._changed:
            if self._why.get(name) != why:
                self._why[name] = why
                self._tell()

    def list(self, folder: Folder, listed: list[dict[str, Any]], problems: list[str]) -> None:
        """Show what there is."""
        with self._changed:
            self._known = dict(folder.recordings)
            self._newest = folder.newest()
            if (listed, problems) != (self._listed, self._problems):
                self._listed, self._problems = listed, problems
                self._tell()

    def end(self) -> None:
        """Let the tabs know that there will be nothing more."""
        with self._changed:
            self._ended = True
            self._tell()

    def _tell(self) -> None:
        self._version += 1
        self._changed.notify_all()

    def wait(self, version: int, patience_s: float) -> tuple[int, dict[str, Any] | None]:
        """The state, once it is another one than that of a version; None where it is the same for so long."""
        with self._changed:
            self._changed.wait_for(lambda: self._version != version, patience_s)
            return self._version, None if self._version == version else self._state()

    def _state(self) -> dict[str, Any]:
        wanted = self._chosen if self._chosen is not None else self._newest.name if self._newest else None
        return {
            "ended": self._ended,
            "chosen": self._chosen,
            "why": None if wanted is None else self._why.get(wanted),
            "look": None if self.look is None else self.look.to_json(),
            "recordings": self._listed,
            "problems": self._problems,
        }
