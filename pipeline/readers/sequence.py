"""Movies of one file for each frame: a folder, or a pattern such as "frames/*.tif", in the order of their numbers."""

from __future__ import annotations

import re
from collections.abc import Sequence
from contextlib import closing
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple, cast

import numpy as np
from numpy.typing import NDArray

from ..errors import InputError
from . import MovieInfo, open_raw
from .frames import FlatReader, FrameReader, check_movie, frame_size, whole_frames
from .numbering import in_order
from .rawfile import RawFile, RawFolder, is_pattern

FRAME_SUFFIXES = (".tif", ".tiff", ".dm3", ".dm4", ".mrc", ".npy")
CAPTURE = re.compile(r"(Hour|Minute|Second)_[0-9]+", re.IGNORECASE)
# Of a DM file: the type and number of pixels lie before them, the size of the image before or behind them.
_PROOF_BEFORE, _PROOF_AFTER = 256, 144  # [bytes]
_MAX_PROOF = 2**16  # of other formats all that is not pixels is compared [bytes]


def open_movie(folder: RawFolder, allow_truncated: bool) -> FrameReader:
    """Open the movie whose frames are the files of a folder, or those that match a pattern."""
    return open_frames(folder, allow_truncated)


def open_frames(folder: RawFolder, allow_truncated: bool, *, announced: int | None = None) -> FrameReader:
    """Open the frames of a folder, of a pattern, or of a Gatan capture's Hour_00/Minute_00/Second_00 folders.

    Parameters
    ----------
    folder : RawFolder
        The folder, or a path whose last part is a pattern.
    allow_truncated : bool
        Keep the frames before the first one that is damaged, or of another size.
    announced : int, optional
        How many frames there should be, if that is known.

    Raises
    ------
    InputError
        If there are no frames, if names do not tell which files belong together, or if one is damaged.
    """
    files, warnings = find_frames(folder.path)
    reader = SequenceReader(folder, files)
    info = reader.info
    total = max(len(files), announced or 0)
    check_movie(folder, (total, *info.shape[1:]), info.dtype)
    n_frames = whole_frames(folder, total, reader.count_whole(allow_truncated), allow_truncated)
    reader.info = replace(
        info,
        shape=(n_frames, *info.shape[1:]),
        format=f"{info.format}, one file per frame",
        missing_frames=total - n_frames,
        warnings=info.warnings + warnings + _lost(info, total),
        files=tuple(files[:n_frames]),
        metadata=info.metadata | {"first_file": files[0].name, "last_file": files[n_frames - 1].name},
    )
    return reader


def _lost(info: MovieInfo, total: int) -> tuple[str, ...]:
    """A warning if the tags of a Gatan capture name more frames than there are files."""
    recorded = info.metadata.get("In-situ", {})
    recorded = recorded.get("Recorded", {}) if isinstance(recorded, dict) else {}
    number = recorded.get("# Frames") if isinstance(recorded, dict) else None
    if not isinstance(number, int) or number <= total:
        return ()
    return (f"its tags say that {number} frames were recorded, and {total} are there.",)


class SequenceReader(FrameReader):
    """Frames in files of their own, each opened when it is read.

    Parameters
    ----------
    folder : RawFolder
        For error messages.
    files : sequence of Path
        In order of the frames.
    """

    def __init__(self, folder: RawFolder, files: Sequence[Path]) -> None:
        self._files = files
        with _open(files[0]) as first:
            super().__init__(folder, first.info)
            self._flat = isinstance(first, FlatReader)
            self._layout = _Layout.of(first, files[0]) if isinstance(first, FlatReader) else None
        self._size = files[0].stat().st_size
        self._frame_shape, self._dtype = first.info.shape[1:], first.info.dtype

    def count_whole(self, allow_truncated: bool) -> int:
        """Number of leading frames that look whole; of plain frames, those of another size are opened."""
        last = len(self._files) - 1
        for number, path in enumerate(self._files):
            # Packed frames all differ in size, and decoding them takes long: only where it is asked for.
            suspect = path.stat().st_size != self._size if self._flat else allow_truncated
            if not suspect and number != last:
                continue
            try:
                with self._open_alike(path) as reader:
                    if not self._flat:
                        reader.read(0, 1, np.empty((1, *self._frame_shape), self._dtype))
            except InputError:
                if not allow_truncated:
                    raise
                return number
        return len(self._files)

    def _fill(self, start: int, stop: int, out: NDArray[Any]) -> None:
        for number in range(start, stop):
            path, frame = self._files[number], out[number - start : number - start + 1]
            if self._layout is None or not self._layout.read(path, frame):
                with self._open_alike(path) as reader:
                    reader.read(0, 1, frame)

    def _open_alike(self, path: Path) -> FrameReader:
        reader = _open(path)
        info = reader.info
        if (info.shape[1:], info.dtype) != (self._frame_shape, self._dtype):
            reader.close()
            raise InputError(
                path,
                f"holds {info.shape[1]} x {info.shape[2]} {info.dtype}, the first frame "
                f"{self._frame_shape[0]} x {self._frame_shape[1]} {self._dtype}: the frames of a movie are "
                "alike.",
            )
        return reader


class _Layout(NamedTuple):
    """Where the pixels of the first file are, to be read in others of the same layout without parsing them.

    With tags as cameras write them, parsing a DM file takes ten times as long as reading the frame.
    """

    offset: int
    file_bytes: int
    stored: np.dtype[Any]
    proofs: tuple[tuple[int, bytes], ...]  # (position, bytes) that a file of the same layout has

    @classmethod
    def of(cls, first: FlatReader, path: Path) -> _Layout | None:
        """The layout of the first file; None where nothing short proves that another one has the same."""
        start = first.offsets[0]
        end = start + frame_size(first.info.shape, first.stored)
        with closing(RawFile(path)) as file:
            before, after = (0, start), (end, file.size)
            if first.info.format.startswith("DM"):
                before, after = (start - _PROOF_BEFORE, start), (end, end + _PROOF_AFTER)
            n_bytes = sum(stop - begin for begin, stop in (before, after))
            if before[0] < 0 or after[1] > file.size or n_bytes > _MAX_PROOF:
                return None
            proofs = tuple((begin, file.read_at(begin, stop - begin)) for begin, stop in (before, after))
            return cls(start, file.size, first.stored, proofs)

    def read(self, path: Path, frame: NDArray[Any]) -> bool:
        """Read the frame of a file if it is laid out like the first one; say whether it is."""
        with closing(RawFile(path)) as file:
            if file.size != self.file_bytes:
                return False
            if any(file.read_at(at, len(proof)) != proof for at, proof in self.proofs):
                return False
            file.read_into(frame, self.offset)
        if not self.stored.isnative:
            frame.byteswap(inplace=True)
        return True


def _open(path: Path) -> FrameReader:
    return cast(FrameReader, open_raw(path, single=True))


def find_frames(path: Path) -> tuple[list[Path], tuple[str, ...]]:
    """The files of a movie in the order of their numbers, and a warning where these have gaps.

    Parameters
    ----------
    path : Path
        A folder; of a Gatan capture the top, or one of its hours, minutes or seconds; or a pattern.

    Raises
    ------
    InputError
        If there are fewer than two frames, or if their names do not tell the order.
    """
    if is_pattern(path):
        files = sorted(p for p in path.parent.glob(path.name) if p.is_file())
        return in_order(path, _at_least_two(path, files))
    entries = [p for p in path.iterdir() if not p.name.startswith(".")]
    parts = [p for p in entries if CAPTURE.fullmatch(p.name) and p.is_dir()]
    if parts:
        found = (p for part in parts for p in part.rglob("*") if p.suffix.lower() in {".dm3", ".dm4"})
        files = sorted(p for p in found if not p.name.startswith("."))
        return in_order(path, _at_least_two(path, files), clock=True)
    files = sorted(p for p in entries if p.suffix.lower() in FRAME_SUFFIXES and p.is_file())
    return in_order(path, _at_least_two(path, files))


def _at_least_two(path: Path, files: list[Path]) -> list[Path]:
    if not files and is_pattern(path):
        raise InputError(path, "no file matches this pattern.")
    if not files:
        raise InputError(
            path,
            f"holds no movie: neither a Zarr store nor frames in files ({' '.join(FRAME_SUFFIXES)}) are in it.",
        )
    if len(files) == 1:
        raise InputError(path, f"holds one file, {files[0].name}; if that is the movie, name that file.")
    return files
