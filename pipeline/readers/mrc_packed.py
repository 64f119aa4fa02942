"""MRC movies packed with gzip or bzip2, unpacked in a stream of bounded memory."""

from __future__ import annotations

import bz2
import gzip
import threading
import zlib
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..errors import InputError
from . import Reader, mrc
from .rawfile import RawFile

_MAX_RATIO = 1000  # of unpacked to packed bytes, about what gzip makes of zeros
_SUFFIXES = {".mrc", ".mrcs", ".map", ".st", ".ccp4"}  # of files that may lack the identifier
_STEP = 2**22  # unpacked at once while skipping [bytes]
_MAX_STREAMS = 8  # kept open for threads that read different parts


def open_movie(file: RawFile, allow_truncated: bool) -> Reader:
    """Open a packed MRC file. It is unpacked once to see that it is whole, and again while it is read."""
    _check_content(file)
    packed = PackedFile(file, allow_truncated)
    try:
        return mrc.open_movie(packed, allow_truncated)
    except BaseException:
        packed.close()
        raise


def _check_content(file: RawFile) -> None:
    """Refuse what is packed but no MRC file, before all of it is unpacked."""
    stream = _Stream(file.path)
    header = bytearray(1024)
    try:
        stream.read_into(memoryview(header))
    finally:
        stream.close()
    if header[208:211] != b"MAP" and Path(file.path.stem).suffix.lower() not in _SUFFIXES:
        raise InputError(
            file.path, "is packed, and what is in it is not MRC. Of packed files only MRC is read: unpack it."
        )


class PackedFile(RawFile):
    """A packed file that is read as if it were not.

    A position is reached by unpacking all before it, so each thread that reads forwards keeps a stream of
    its own, and all together take about as long as one pass.
    """

    def __init__(self, file: RawFile, allow_truncated: bool) -> None:
        self._file = file
        self.path = file.path
        self._lock = threading.Lock()
        self._streams: list[_Stream] = []
        self.size = self._measure(allow_truncated)

    def _measure(self, allow_truncated: bool) -> int:
        limit = _MAX_RATIO * self._file.size
        stream = _Stream(self.path)
        try:
            while stream.position <= limit:
                if stream.skip(_STEP) < _STEP:
                    return stream.position
        except InputError:
            if not allow_truncated:
                raise
            return stream.position
        finally:
            stream.close()
        raise InputError(
            self.path, f"unpacks to more than {_MAX_RATIO} times its size: refused as a decompression bomb."
        )

    def read_into(self, out: NDArray[Any], offset: int) -> None:
        """Fill a C-contiguous array with the unpacked bytes that start at ``offset``."""
        view = out.reshape(-1).view(np.uint8).data
        stream = self._take(offset)
        try:
            stream.skip(offset - stream.position)
            if stream.read_into(view) < view.nbytes:
                raise InputError(self.path, "the packed file ends within a frame or header.")
        except BaseException:
            stream.close()
            raise
        with self._lock:
            self._streams.append(stream)
            spare = self._streams.pop(0) if len(self._streams) > _MAX_STREAMS else None
        if spare:
            spare.close()

    def _take(self, offset: int) -> _Stream:
        """The free stream that is nearest before ``offset``, or a new one."""
        with self._lock:
            behind = [stream for stream in self._streams if stream.position <= offset]
            if behind:
                nearest = max(behind, key=lambda stream: stream.position)
                self._streams.remove(nearest)
                return nearest
        return _Stream(self.path)

    def close(self) -> None:
        """Close the file and all streams; harmless if done twice."""
        while self._streams:
            self._streams.pop().close()
        self._file.close()


class _Stream:
    """One pass through a packed file, forwards only."""

    def __init__(self, path: Path) -> None:
        with path.open("rb") as raw:
            packing = raw.read(2)
        self._path = path
        self._file: gzip.GzipFile | bz2.BZ2File = (
            gzip.GzipFile(path) if packing == b"\x1f\x8b" else bz2.BZ2File(path)
        )
        self.position = 0  # in the unpacked bytes

    def read_into(self, view: memoryview) -> int:
        """Fill the view; return how much there was."""
        done = 0
        try:
            while done < view.nbytes and (part := self._file.read1(min(_STEP, view.nbytes - done))):
                view[done : done + len(part)] = part
                done += len(part)
                self.position += len(part)
        except (OSError, EOFError, zlib.error) as error:
            raise InputError(
                self._path,
                f"damaged or cut short: it cannot be unpacked beyond byte {self.position} ({error}). "
                "Copy it again.",
            ) from error
        return done

    def skip(self, n_bytes: int) -> int:
        """Unpack and drop up to ``n_bytes``; return how many there were."""
        target = self.position + n_bytes
        scratch = memoryview(bytearray(min(_STEP, max(n_bytes, 0))))
        while self.position < target:
            wanted = min(len(scratch), target - self.position)
            if self.read_into(scratch[:wanted]) < wanted:
                break
        return n_bytes - (target - self.position)

    def close(self) -> None:
        with suppress(OSError):
            self._file.close()
