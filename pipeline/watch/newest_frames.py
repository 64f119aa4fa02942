"""The newest frames of a recording, also while it grows: whole ones only."""

from __future__ import annotations

import contextlib
import errno
import heapq
import os
import time
from collections import OrderedDict
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from ..errors import InputError
from ..readers import MovieInfo, Reader, open_raw, recognise
from ..readers.numbering import in_order, natural
from ..readers.rawfile import RawFile
from ..readers.sequence import CAPTURE, FRAME_SUFFIXES, find_frames
from .recordings import Recording, Signature, files_below

KEPT = 40  # frames: what a network sees before the newest one, and five means of eight to see a drift in
STILL_S = 1.0  # for which a folder stands still, and its last file is taken for whole
# Formats of which header and size tell how many whole frames there are, however little of a file is there.
GROWING = {"dm", "mrc", "seq", "tiff", "tvips"}


class NotYet(Exception):
    """Nothing can be shown of a recording before it is finished; a sentence why."""


class Frames(Protocol):
    """The whole frames of a recording at one moment."""

    n_frames: int
    n_there: int  # with one that may still be written
    info: MovieInfo

    def read(self, number: int) -> NDArray[Any]:
        """One of them, shape (height, width)."""


@dataclass
class _OfFile:
    reader: Reader

    def __post_init__(self) -> None:
        self.info = self.reader.info
        self.n_frames = self.n_there = self.info.shape[0]

    def read(self, number: int) -> NDArray[Any]:
        out = np.empty((1, *self.info.shape[1:]), self.info.dtype)
        self.reader.read(number, number + 1, out)
        return np.asarray(out[0])


@dataclass
class _OfFolder:
    files: list[Path]  # of the newest frames, or of all
    n_frames: int
    n_there: int

    def __post_init__(self) -> None:
        with open_raw(self.files[-1], single=True) as first:
            self.info = first.info

    def read(self, number: int) -> NDArray[Any]:
        file = self.files[number - self.n_frames]
        with open_raw(file, single=True) as reader:
            if reader.info.shape != self.info.shape:
                raise InputError(file, "is not of the size of the newest frame.")
            return _OfFile(reader).read(0)


@contextlib.contextmanager
def opened(path: Path, finished: bool, still: bool = False) -> Iterator[Frames]:
    """The whole frames that are there now.

    Parameters
    ----------
    path : Path
    finished : bool
        It has rested for long enough that nobody writes it any more.
    still : bool, optional
        It has not changed for a moment: whoever writes a file for each frame is between two of them.

    Raises
    ------
    NotYet
        If only a finished recording of its format shows which frames are whole.
    InputError
        If it cannot be read, or there is no whole frame yet.
    """
    if path.is_dir() and not any((path / name).is_file() for name in ("zarr.json", ".zarray", ".zgroup")):
        if finished:
            files, _ = find_frames(path)
            yield _OfFolder(files, len(files), len(files))
            return
        files, n_files = _newest_files(path)
        # The last file may still be written; whoever has begun the next one has finished it.
        if still and not _has_hole(files[-1]):
            yield _OfFolder(files, n_files, n_files)
        else:
            yield _OfFolder(files[:-1], n_files - 1, n_files)
        return
    if not finished:
        _check_growing(path)
    with open_raw(path, allow_truncated=True) as reader:
        if not finished and any(_has_hole(file) for file in (path, *reader.info.files)):
            raise NotYet(
                "The program that writes it has set its space aside, so it is shown when it is finished."
            )
        yield _OfFile(reader)


def _newest_files(folder: Path) -> tuple[list[Path], int]:
    """The last files of a folder with a file for each frame, and how many there are.

    To put all in order by their numbers, as `find_frames` does, takes four times as long.
    """
    with os.scandir(folder) as entries:
        inside = list(entries)
    capture = any(CAPTURE.fullmatch(entry.name) for entry in inside)
    suffixes = (".dm3", ".dm4") if capture else FRAME_SUFFIXES
    files = files_below(folder) if capture else inside
    found = [Path(e.path) for e in files if e.name.lower().endswith(suffixes) and not e.name.startswith(".")]
    if capture:
        found = [path for path in found if path.parent != folder]  # the file that directs to them
    if len(found) < 2:
        raise InputError(folder, "holds fewer than two frames yet.")
    newest = heapq.nlargest(KEPT + 2, found, key=natural)[::-1]
    return in_order(folder, newest, clock=capture)[0], len(found)


def _check_growing(path: Path) -> None:
    if path.is_dir():
        raise NotYet("A Zarr store is shown when it is finished.")
    with contextlib.closing(RawFile(path)) as file:
        form = recognise(file)
    if form.module not in GROWING:
        raise NotYet(f"A {form.name} file is shown when it is finished.")


def _has_hole(path: Path) -> bool:
    """Whether a part of a file was never written, though its size says that it is there."""
    with path.open("rb") as file:
        try:
            return os.lseek(file.fileno(), 0, os.SEEK_HOLE) < os.fstat(file.fileno()).st_size
        except OSError as error:
            if error.errno in (errno.EINVAL, errno.ENXIO, errno.ENOTSUP):  # a file system that does not tell
                return False
            raise


@dataclass
class Newest:
    """The newest frames of the recording that is looked at, of a part in the middle of the field.

    Attributes
    ----------
    part : int
        Rows and columns of the part, at most [pixels].
    """

    part: int
    info: MovieInfo | None = None
    n_frames: int = 0
    seen_at: float = 0.0  # when the newest frame was first there, by the monotonic clock [s]
    _there: int = 0
    _done: tuple[str, Signature] | None = None  # the finished recording that was looked at last
    _of: tuple[str, int] = ("", 0)
    _kept: OrderedDict[int, NDArray[Any]] = field(default_factory=OrderedDict)

    def update(self, recording: Recording) -> bool:
        """Read what is new.

        Returns
        -------
        bool
            Whether there is anything new.

        Raises
        ------
        NotYet, InputError, OSError
        """
        of = recording.name, recording.signature.first
        if recording.state == "finished" and self._done == (recording.name, recording.signature):
            return False
        # Another thread looks at the folder, and may change them meanwhile.
        finished, signature, self._done = recording.state == "finished", recording.signature, None
        began = time.monotonic()
        still = began - recording.since > STILL_S
        try:
            with opened(recording.path, finished, still) as frames:
                is_new = self._take(frames, of, began)
        except InputError as error:
            if finished and not isinstance(error.__cause__, OSError):
                self._done = (recording.name, signature)  # it does not get better before it changes
            raise
        self._done = (recording.name, signature) if finished else None
        return is_new

    def _take(self, frames: Frames, of: tuple[str, int], began: float) -> bool:
        """Read what is new of some frames; whether anything is."""
        known = self.info.shape[1:] if self.info is not None else None
        if of != self._of or frames.n_frames < self.n_frames or frames.info.shape[1:] != known:
            self._kept.clear()
            self._of, self.n_frames, self._there = of, 0, 0
        if frames.n_there > self._there:
            self._there, self.seen_at = frames.n_there, began
        if frames.n_frames == self.n_frames:
            return False
        rows, columns = self.middle(frames.info)
        for number in range(max(0, frames.n_frames - KEPT), frames.n_frames):
            if number not in self._kept:
                self._kept[number] = frames.read(number)[rows, columns].copy()
        self.info, self.n_frames = frames.info, frames.n_frames
        while len(self._kept) > KEPT:
            self._kept.popitem(last=False)
        return True

    @property
    def frames(self) -> NDArray[Any]:
        """Shape (n, rows, columns), the newest frame last [counts]."""
        return np.stack(list(self._kept.values()))

    def middle(self, info: MovieInfo) -> tuple[slice, slice]:
        """The part that is looked at."""
        starts = [max(0, (n - self.part) // 2) for n in info.shape[1:]]
        rows, columns = (slice(s, min(n, s + self.part)) for s, n in zip(starts, info.shape[1:], strict=True))
        return rows, columns
