"""A raw file that is only ever read, at positions, so that threads need no lock."""

from __future__ import annotations

import os
import stat
import threading
from bisect import bisect_right
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..errors import InputError

# O_NONBLOCK: a named pipe without a writer must not hold the command for ever. Windows needs O_BINARY alone.
_FLAGS = os.O_RDONLY | sum(getattr(os, f"O_{name}", 0) for name in ("CLOEXEC", "NONBLOCK", "BINARY"))
_POSITION = threading.Lock()  # of the one that a descriptor has


def _read(descriptor: int, view: memoryview, offset: int) -> int:
    """Bytes that were read at a position into a buffer."""
    if hasattr(os, "preadv"):
        return os.preadv(descriptor, [view], offset)
    with _POSITION:
        os.lseek(descriptor, offset, os.SEEK_SET)
        data = os.read(descriptor, min(len(view), 2**24))
    view[: len(data)] = data
    return len(data)


class RawFile:
    """An open raw file and its size; every read is whole or an ``InputError``.

    Attributes
    ----------
    path : Path
        Where it is.
    size : int
        Its size when it was opened [bytes].
    """

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)
        self._descriptor = -1
        try:
            self._descriptor = os.open(self.path, _FLAGS)
            status = os.fstat(self._descriptor)
        except FileNotFoundError:
            raise InputError(path, "no such file.") from None
        except OSError as error:
            self.close()
            raise InputError(path, f"cannot be opened: {error.strerror}.") from error
        if not stat.S_ISREG(status.st_mode):
            self.close()
            what = "a folder" if stat.S_ISDIR(status.st_mode) else "not a regular file"
            raise InputError(path, f"it is {what}; name one raw file.")
        self.size = status.st_size

    def read_into(self, out: NDArray[Any], offset: int) -> None:
        """Fill a C-contiguous array with the bytes that start at ``offset``."""
        view = out.reshape(-1).view(np.uint8).data
        done = 0
        while done < view.nbytes:  # one call stops short of 2 GiB
            try:
                n = _read(self._descriptor, view[done:], offset + done)
            except OSError as error:
                raise InputError(self.path, f"reading failed: {error.strerror}.") from error
            if n == 0:
                raise InputError(
                    self.path, f"the file ends at byte {offset + done}, within a frame or header."
                )
            done += n

    def read_at(self, offset: int, n_bytes: int) -> bytes:
        """The ``n_bytes`` bytes at ``offset``; checked against the file size before memory is taken."""
        if offset < 0 or n_bytes < 0 or offset + n_bytes > self.size:
            raise InputError(
                self.path,
                f"damaged or cut short: its header points to bytes {offset} to {offset + n_bytes} "
                f"of {self.size}. Copy it again.",
            )
        out = np.empty(n_bytes, np.uint8)
        self.read_into(out, offset)
        return out.tobytes()

    def close(self) -> None:
        """Close the file; harmless if done twice."""
        if self._descriptor >= 0:
            os.close(self._descriptor)
            self._descriptor = -1

    def __del__(self) -> None:
        self.close()  # what an error left open


class RawFolder(RawFile):
    """A folder that holds one movie; its files are opened when frames are read.

    Attributes
    ----------
    path : Path
        Where it is.
    """

    def __init__(self, path: str | Path) -> None:
        self._descriptor = -1  # nothing is held open, and nothing can be read
        self.path = Path(path)
        self.size = 0


def is_pattern(path: str | Path) -> bool:
    """Whether a path stands for several files ("frames/*.tif") and is not itself the name of one."""
    return any(sign in Path(path).name for sign in "*?[") and not Path(path).exists()


class JoinedFile(RawFile):
    """Several raw files read as one, end to end.

    Parameters
    ----------
    parts : sequence of RawFile
        Open files, in order; they are closed with this one. The first one gives the name.
    """

    def __init__(self, parts: Sequence[RawFile]) -> None:
        self._parts = parts
        self.path = parts[0].path
        self.paths = tuple(part.path for part in parts)
        self.sizes = [part.size for part in parts]
        self._starts = np.cumsum([0, *self.sizes]).tolist()
        self.size = self._starts[-1]

    def read_into(self, out: NDArray[Any], offset: int) -> None:
        """Fill a C-contiguous array with the bytes that start at ``offset``."""
        view = out.reshape(-1).view(np.uint8)
        done = 0
        while done < view.size:
            number = bisect_right(self._starts, offset + done) - 1
            if number >= len(self._parts):
                raise InputError(self._parts[-1].path, "the file ends within a frame or header.")
            end = min(view.size, self._starts[number + 1] - offset)
            self._parts[number].read_into(view[done:end], offset + done - self._starts[number])
            done = end

    def close(self) -> None:
        """Close all parts; harmless if done twice."""
        for part in self._parts:
            part.close()
