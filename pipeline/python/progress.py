"""How far a step is, in a notebook, on a terminal or nowhere."""

from __future__ import annotations

import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from ..cli.terminal import Silence, remaining, shown_progress
from ..step_control import Control

REDRAW_S = 0.5


@contextmanager
def shown(progress: bool) -> Iterator[Control]:
    """A control whose progress is seen: under the cell of a notebook, or as a bar on a terminal.

    Parameters
    ----------
    progress : bool
        Without, nothing is shown.
    """
    seen = _Cell() if progress and _in_notebook() else shown_progress({"quiet": not progress})
    try:
        yield Control(progress=seen, note=seen.note)
    finally:
        seen.close()


def _in_notebook() -> bool:
    """Whether this process is the kernel of a notebook."""
    ipython: Any = sys.modules.get("IPython")
    shell = None if ipython is None else ipython.get_ipython()
    return getattr(shell, "kernel", None) is not None


class _Cell(Silence):
    """One line of text under the cell, which is drawn anew; it needs no widgets."""

    def __init__(self) -> None:
        super().__init__()
        self._display: Any = None
        self._began: dict[str, tuple[float, int]] = {}
        self._done: dict[str, str] = {}
        self._drawn = 0.0

    def __call__(self, what: str, done: int, total: int) -> None:
        now = time.monotonic()
        began, first = self._began.setdefault(what, (now, done))
        if done < total and now - self._drawn < REDRAW_S and now != began:
            return
        self._drawn = now
        if done >= total:
            self._done.setdefault(what, f"{what}: done in {now - began:.0f} s")
            self._draw("")
        else:
            left = remaining(now - began, done - first, total - done)
            note = f"; {self.notes[what]}" if what in self.notes else ""
            self._draw(f"{what}: {100 * done / total:.0f} %{left}{note}")

    def _draw(self, current: str) -> None:
        ipython: Any = sys.modules["IPython"]
        text = {"text/plain": "\n".join(filter(None, [*self._done.values(), current]))}
        if self._display is None:
            self._display = ipython.display.display(text, raw=True, display_id=True)
        else:
            self._display.update(text, raw=True)
