"""What a run shows on the terminal while it works, and the signals it takes from there."""

from __future__ import annotations

import contextlib
import logging
import os
import signal
import sys
import time
from typing import Any

from ..step_control import Control

LOG_LINE_S = 30.0  # between progress lines where there is no terminal


def one_line(text: str) -> str:
    """A text with what would break a line or a terminal spelled out: file names may hold anything."""
    return "".join(c if c.isprintable() else repr(c)[1:-1] for c in text)


def say(text: str) -> None:
    """Print to standard output; end quietly if whoever reads it has seen enough, as in ``| head``.

    Raises
    ------
    SystemExit
        With 0, when nobody reads any more.
    """
    try:
        print(text, flush=True)
    except BrokenPipeError:
        # Else Python complains at its end, when it writes what is left.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        raise SystemExit(0) from None


def tell(text: str) -> None:
    """Print to standard error; a reader that has gone must not end the work."""
    with contextlib.suppress(BrokenPipeError):
        print(text, file=sys.stderr, flush=True)


class _Harmless(logging.Formatter):
    """Messages name files of others, whose names may hold anything."""

    def format(self, record: logging.LogRecord) -> str:
        return one_line(super().format(record))


def log_to_stderr(options: dict[str, Any]) -> None:
    """Show what the package logs, as much of it as was asked for."""
    level = logging.INFO if options.get("verbose") else logging.WARNING
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(_Harmless("%(message)s"))
    # Our own loggers only: Dask and Zarr tell their inner life.
    for package in ("tdenoise", "tdenoise_pipeline"):
        logger = logging.getLogger(package)
        logger.handlers = [handler]
        logger.setLevel(logging.ERROR if options.get("quiet") else level)
    logging.getLogger("tifffile").setLevel(logging.CRITICAL)  # it logs what it also raises


def shown_progress(options: dict[str, Any]) -> Silence:
    """A bar on a terminal, else lines; nothing if it is to be quiet."""
    if options.get("quiet"):
        return Silence()
    return _Bar() if sys.stderr.isatty() else _Lines()


class Silence:
    """No progress. Also what every progress has: a call, and a close that leaves the terminal as it was."""

    def __init__(self) -> None:
        self.notes: dict[str, str] = {}

    def __call__(self, what: str, done: int, total: int) -> None:
        return None

    def note(self, what: str, text: str) -> None:
        """What is shown beside the progress from its next call on."""
        self.notes[what] = text

    def close(self) -> None:
        return None


class _Lines(Silence):
    """One line every half minute, for logs."""

    def __init__(self) -> None:
        super().__init__()
        self._began: dict[str, tuple[float, int]] = {}
        self._last = 0.0

    def __call__(self, what: str, done: int, total: int) -> None:
        now = time.monotonic()
        began, first = self._began.setdefault(what, (now, done))
        if done < total and now - self._last < LOG_LINE_S and now != began:
            return
        self._last = now
        left = remaining(now - began, done - first, total - done)
        note = f"; {self.notes[what]}" if what in self.notes else ""
        tell(f"{time.strftime('%H:%M:%S')} {what} {100 * done / total:.1f} %{left}{note}")


class _Bar(Silence):
    """A bar with the time that is left, on a terminal."""

    def __init__(self) -> None:
        super().__init__()
        from rich.console import Console
        from rich.progress import (
            BarColumn,
            Progress,
            TaskID,
            TaskProgressColumn,
            TextColumn,
            TimeRemainingColumn,
        )

        self._bars = Progress(
            TextColumn("{task.description}"),
            BarColumn(),
            TaskProgressColumn(),
            TimeRemainingColumn(elapsed_when_finished=True),
            TextColumn("{task.fields[note]}"),
            console=Console(stderr=True),
        )
        self._tasks: dict[str, TaskID] = {}

    def __call__(self, what: str, done: int, total: int) -> None:
        if what not in self._tasks:
            self._bars.start()
            self._tasks[what] = self._bars.add_task(what, total=total, completed=done, note="")
        note = self.notes.get(what, "")
        self._bars.update(self._tasks[what], completed=done, total=total, note=note)
        if all(task.finished for task in self._bars.tasks):
            self._bars.stop()

    def close(self) -> None:
        self._bars.stop()  # shows the cursor again


def remaining(elapsed_s: float, done: int, left: int) -> str:
    """The time that is left, with a comma in front; empty where nobody can know."""
    if done <= 0 or left <= 0:
        return ""
    return f", {duration(elapsed_s / done * left)} left"


def duration(seconds: float) -> str:
    """Hours, minutes and seconds.

    Examples
    --------
    >>> duration(3725.4)
    '1:02:05'
    """
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes // 60}:{minutes % 60:02d}:{rest:02d}"


def say_anew(text: str) -> None:
    """Print in place of what the terminal shows; where there is none, below it."""
    say(f"\x1b[H\x1b[2J{text}" if sys.stdout.isatty() else text)


class Signals:
    """Turn the first signal into a stop request, and a second Ctrl-C into an end at once."""

    def __init__(self, control: Control) -> None:
        self._control = control
        self._before: dict[int, Any] = {}

    def __enter__(self) -> None:
        # Windows has no SIGUSR1.
        for number in (getattr(signal, name, None) for name in ("SIGINT", "SIGTERM", "SIGUSR1")):
            if number is None:
                continue
            self._before[number] = signal.signal(number, self._handle)

    def __exit__(self, *_: object) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)
        if self._control.stop.is_set():
            signal.signal(signal.SIGINT, signal.SIG_IGN)  # an impatient Ctrl-C must not change the exit code

    def _handle(self, number: int, frame: object) -> None:
        if number == signal.SIGINT and self._control.stop.is_set():
            raise KeyboardInterrupt
        self._control.stop.set()
        tell("stopping as soon as the current work is done; press Ctrl-C again to stop now")
