"""The raw files of a movie: their identity, and the proof that reading left them as they were."""

from __future__ import annotations

import hashlib
import math
import os
import re
import threading
import time
from dataclasses import dataclass
from pathlib import Path

from ..errors import InputError
from ..readers import MovieInfo
from ..readers.rawfile import is_pattern
from ..step_control import Control

READ_BYTES = 2**20  # at once, so that the part in hand stays in the processor's cache
AHEAD_BYTES = 2**30  # that the hash may be ahead of the copy: what it reads should still be in memory then


@dataclass(frozen=True)
class Source:
    """The files of one raw movie, in the order of their frames, as they were when it was opened."""

    raw: Path  # as the user named it
    files: tuple[Path, ...]
    states: tuple[tuple[int, int], ...]  # size [bytes] and time of the last change [ns] of each
    listed: frozenset[Path] = frozenset()  # of a folder or pattern: the files that are known, read or not

    @classmethod
    def held(cls, raw: Path, info: MovieInfo) -> Source:
        """A movie that a program holds: without files, and another one each time it is given."""
        n_bytes = math.prod(info.shape) * info.dtype.itemsize
        return cls(raw, (), ((n_bytes, time.time_ns()),))

    @classmethod
    def of(cls, raw: Path, info: MovieInfo) -> Source:
        """The files that a reader reads."""
        files = info.files
        if not files:
            files = tuple(sorted(p for p in raw.rglob("*") if p.is_file())) if raw.is_dir() else (raw,)
        # A file that came between the first look and this one is not known; what is left out of a cut movie is.
        flat = info.files and not info.missing_frames and {path.parent for path in files} <= {raw, raw.parent}
        flat = flat and (raw.is_dir() or is_pattern(raw))
        return cls(raw, files, _states(files), frozenset(files) if flat else _listed(raw, files))

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
        if not self.files:
            return
        more = _listed(self.raw, self.files) - self.listed
        if more:
            one = min(more).name
            raise InputError(
                self.raw,
                f"{len(more)} more file(s) came while it was read ({one}). Ingest it again once it is complete.",
            )
        for path, before, now in zip(self.files, self.states, _states(self.files), strict=True):
            if now != before:
                raise InputError(path, "changed while it was read. Ingest it again once it is complete.")


def _listed(raw: Path, files: tuple[Path, ...]) -> frozenset[Path]:
    """What is in a folder of the kind of these files, or fits a pattern, now; nothing of a single file."""
    if is_pattern(raw):
        return frozenset(path for path in raw.parent.glob(raw.name) if path.is_file())
    if not raw.is_dir():
        return _parts(raw, files)
    if any((raw / name).is_file() for name in ("zarr.json", ".zarray", ".zgroup")):
        return frozenset(path for path in raw.rglob("*") if path.is_file())
    kinds = {path.suffix for path in files}  # the store that is written may lie in the same folder
    found = raw.rglob("*") if any(path.parent not in (raw, raw.parent) for path in files) else raw.iterdir()
    return frozenset(p for p in found if p.suffix in kinds and not p.name.startswith(".") and p.is_file())


def _parts(raw: Path, files: tuple[Path, ...]) -> frozenset[Path]:
    """Files that are, or may be, parts of a recording that is named by its first file, its master or its director."""
    if any(path.parent != raw.parent for path in files):
        frames = (path for hour in raw.parent.glob("Hour_*") for path in hour.rglob(f"*{files[-1].suffix}"))
        return frozenset(path for path in frames if not path.name.startswith("."))
    alike = {_without_number(path) for path in (files if raw.suffix.lower() == ".tvips" else files[1:])}
    beside = raw.parent.iterdir() if alike else ()
    return frozenset(path for path in beside if _without_number(path) in alike and path.is_file())


def _without_number(path: Path) -> tuple[str, str]:
    """What the names of the parts of a recording have in common: "a_000.tvips", "a.raw_1", "a_data_000001.h5"."""
    suffix = re.sub("_[0-9]+$", "", path.suffix)
    return path.stem if suffix == ".raw" else re.sub("[0-9]+$", "", path.stem), suffix


def _states(files: tuple[Path, ...]) -> tuple[tuple[int, int], ...]:
    return tuple((status.st_size, status.st_mtime_ns) for status in map(os.stat, files))


class Digest:
    """sha256 of a source, computed while it is copied, at the same pace: the disk is read once.

    Of one file: the sha256 of its bytes. Of several: the sha256 of the list that ``sha256sum FILE...`` prints in
    their common folder, a line ``HASH  NAME`` for each, so that it can be checked with
    ``sha256sum FILE... | sha256sum``.

    A movie without files has none.

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
        if source.files:
            self._thread.start()

    def advance(self, share: float) -> None:
        """Say how much of the source is copied by now."""
        with self._more:
            self._allowed = max(self._allowed, int(share * self._source.n_bytes) + AHEAD_BYTES)
            self._more.notify()

    def result(self, control: Control) -> str:
        """The hex digest, once all files are read; empty without files."""
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
