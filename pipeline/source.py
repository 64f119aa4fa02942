"""The raw files of a movie: their identity, and the proof that reading left them as they were."""

from __future__ import annotations

import hashlib
import os
import threading
from dataclasses import dataclass
from pathlib import Path

from .control import Control
from .errors import InputError
from .readers import MovieInfo

READ_BYTES = 2**20  # at once, so that the part in hand stays in the processor's cache
AHEAD_BYTES = 2**30  # that the hash may be ahead of the copy: what it reads should still be in memory then


@dataclass(frozen=True)
class Source:
    """The files of one raw movie, in the order of their frames, as they were when it was opened."""

    raw: Path  # as the user named it
    files: tuple[Path, ...]
    states: tuple[tuple[int, int], ...]  # size [bytes] and time of the last change [ns] of each

    @classmethod
    def of(cls, raw: Path, info: MovieInfo) -> Source:
        """The files that a reader reads."""
        files = info.files
        if not files:
            files = tuple(sorted(p for p in raw.rglob("*") if p.is_file())) if raw.is_dir() else (raw,)
        return cls(raw, files, _states(files))

    @property
    def n_bytes(self) -> int:
        """Size of all files together."""
        return sum(size for size, _ in self.states)

    @property
    def changed_ns(self) -> int:
        """When one of them was last changed."""
        return max(changed for _, changed in self.states)

    def check_unchanged(self) -> None:
        """Refuse a movie that was written to while it was read.

        Raises
        ------
        InputError
        """
        for path, before, now in zip(self.files, self.states, _states(self.files), strict=True):
            if now != before:
                raise InputError(path, "changed while it was read. Ingest it again once it is complete.")


def _states(files: tuple[Path, ...]) -> tuple[tuple[int, int], ...]:
    return tuple((status.st_size, status.st_mtime_ns) for status in map(os.stat, files))


class Digest:
    """sha256 of a source, computed while it is copied, at the same pace: the disk is read once.

    Of one file: the sha256 of its bytes. Of several: the sha256 of the list that ``sha256sum FILE...`` prints in
    their common folder, a line ``HASH  NAME`` for each, so that it can be checked with
    ``sha256sum FILE... | sha256sum``.

    Parameters
    ----------
    source : Source
    """

    def __init__(self, source: Source) -> None:
        self._source = source
        self._allowed = AHEAD_BYTES
        self._more = threading.Condition()
        self._cancelled = False
        self._result = ""
        self._error: OSError | None = None
        self._thread = threading.Thread(target=self._run, name="sha256", daemon=True)
        self._thread.start()

    def advance(self, share: float) -> None:
        """Say how much of the source is copied by now."""
        with self._more:
            self._allowed = max(self._allowed, int(share * self._source.n_bytes) + AHEAD_BYTES)
            self._more.notify()

    def result(self, control: Control) -> str:
        """The hex digest, once all files are read."""
        self.advance(1.0)
        while self._thread.is_alive():
            self._thread.join(0.2)
            if control.stop.is_set():
                self.cancel()
                control.check("ingest")
        if self._error is not None:
            raise InputError(
                self._error.filename or self._source.raw, f"cannot be read ({self._error.strerror})."
            )
        return self._result

    def cancel(self) -> None:
        """Give up; nobody will ask for the result."""
        with self._more:
            self._cancelled = True
            self._more.notify()

    def _run(self) -> None:
        files = self._source.files
        folder = Path(os.path.commonpath([path.parent for path in files]))
        position, lines = 0, []
        try:
            for path in files:
                digest, position = self._hash(path, position)
                lines.append(f"{digest}  {path.relative_to(folder).as_posix()}\n")
        except OSError as error:
            self._error = error
            return
        self._result = digest if len(files) == 1 else hashlib.sha256("".join(lines).encode()).hexdigest()

    def _hash(self, path: Path, position: int) -> tuple[str, int]:
        """sha256 of one file, and the position behind it in the whole source."""
        found, buffer = hashlib.sha256(), memoryview(bytearray(READ_BYTES))
        with path.open("rb", buffering=0) as file:
            while n := file.readinto(buffer):
                found.update(buffer[:n])
                position += n
                with self._more:
                    while position > self._allowed and not self._cancelled:
                        self._more.wait()
                if self._cancelled:
                    break
        return found.hexdigest(), position
