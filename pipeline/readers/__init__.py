"""Readers of raw movies: one small module per file format, one way to use them all.

A reader opens a file read-only, checks every size in its header against the size of the file before it
allocates anything, and then fills arrays of frames that the caller owns.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from importlib import import_module
from pathlib import Path
from types import TracebackType
from typing import Any, NamedTuple, Protocol

import numpy as np
from numpy.typing import NDArray

from ..errors import InputError
from .rawfile import RawFile


@dataclass(frozen=True)
class MovieInfo:
    """What a raw file says about itself; unknown stays None."""

    shape: tuple[int, int, int]  # (n_frames, height, width) [pixels]
    dtype: np.dtype[Any]  # of the frames that read() delivers, native byte order
    format: str  # for example "MRC mode 6"
    reader: str  # library and version that decodes it, for example "mrcfile 1.5.4"
    frame_time_s: float | None = None  # time from frame to frame [s]
    pixel_size_nm: tuple[float, float] | None = None  # (row, column) distance of pixel centres [nm]
    missing_frames: int = 0  # frames the header announces and the file lacks (--allow-truncated)
    metadata: dict[str, Any] = field(default_factory=dict)  # the original metadata, JSON-able


class Reader(Protocol):
    """An open raw movie. ``read`` may be called from several threads at once."""

    info: MovieInfo

    def read(self, start: int, stop: int, out: NDArray[Any]) -> None:
        """Decode frames ``[start, stop)`` into ``out``, C-contiguous, (stop - start, height, width)."""

    def close(self) -> None: ...

    def __enter__(self) -> Reader: ...

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None: ...


class Format(NamedTuple):
    """How one file format is recognised, and the module whose ``open_movie`` reads it."""

    name: str
    module: str
    magic: tuple[tuple[int, bytes], ...]  # any of these (position, bytes) in the first KiB
    suffixes: tuple[str, ...]


# Modules are imported when a file needs them: tifffile alone takes longer to import than --help may.
FORMATS = (
    Format("NumPy", "npy", ((0, b"\x93NUMPY"),), (".npy",)),
    Format(
        "TIFF",
        "tiff",
        ((0, b"II*\0"), (0, b"MM\0*"), (0, b"II+\0"), (0, b"MM\0+")),
        (".tif", ".tiff", ".btf", ".tf8"),
    ),
    Format("MRC", "mrc", ((208, b"MAP"),), (".mrc", ".mrcs", ".map", ".st", ".ccp4")),
    Format("DigitalMicrograph", "dm", ((0, b"\0\0\0\3"), (0, b"\0\0\0\4")), (".dm3", ".dm4")),
)


def open_raw(path: str | Path, *, allow_truncated: bool = False) -> Reader:
    """Open a raw movie of any supported format, recognised by its content rather than its name.

    Parameters
    ----------
    path : str or Path
        The raw file. It is opened read-only.
    allow_truncated : bool, optional
        Keep the whole frames of a file that is cut short, and count the others in ``missing_frames``.

    Returns
    -------
    Reader
        The open movie; close it, or use it in a ``with`` statement.

    Raises
    ------
    InputError
        If the file is missing, damaged, cut short, of no supported format, or not a movie.
    """
    file = RawFile(path)
    try:
        module = import_module(f".{_recognise(file).module}", __name__)
        reader: Reader = module.open_movie(file, allow_truncated)
    except BaseException as error:
        file.close()
        if isinstance(error, InputError) or not isinstance(error, Exception):
            raise
        # Damaged headers make libraries fail in every possible way; the user needs one sentence.
        raise InputError(path, f"damaged, it cannot be read ({_one_line(error)}). Copy it anew.") from error
    return reader


def _recognise(file: RawFile) -> Format:
    if file.size == 0:
        raise InputError(file.path, "the file is empty (0 bytes). Copy it anew.")
    head = file.read_at(0, min(file.size, 1024))
    suffix = file.path.suffix.lower()
    named = next((f for f in FORMATS if suffix in f.suffixes), None)
    found = next((f for f in FORMATS if any(head.startswith(m, at) for at, m in f.magic)), None)
    if found is None and named is not None and named.module == "mrc":
        found = named  # writers before MRC2000 put no identifier; the header is checked for sense later
    if found is None:
        readable = ", ".join(f"{f.name} ({' '.join(f.suffixes)})" for f in FORMATS)
        raise InputError(file.path, f"its content is of no format that is read here: {readable}.")
    if named is not None and named is not found:
        raise InputError(
            file.path,
            f"its name says {named.name} ({suffix}) but its content is {found.name}. "
            f"Rename it to {found.suffixes[0]} if that is what it is.",
        )
    return found


def _one_line(error: BaseException) -> str:
    text = " ".join(str(error).split())
    return f"{type(error).__name__}: {text[:200]}" if text else type(error).__name__
