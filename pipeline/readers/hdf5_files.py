"""A movie in several HDF5 files, named by a pattern such as "run_data_*.h5" or found among others in a folder."""

from __future__ import annotations

import re
from collections.abc import Sequence
from contextlib import closing
from pathlib import Path

from ..errors import InputError
from . import HDF5_FILES, Reader, open_raw
from .hdf5 import contents_of, open_part
from .hdf5_detector import NUMBERS, join, parts_of
from .hdf5_profiles import Contents
from .rawfile import RawFile, RawFolder
from .sequence import find_frames

_MASTERS = 16  # files beside the others that are looked at: a master is one of few


def open_movie(folder: RawFolder, allow_truncated: bool) -> Reader:
    """Open HDF5 files that each hold a stretch of one movie; by their master, where it is beside them."""
    files, _ = find_frames(folder.path)
    beside = sorted(p for p in folder.path.parent.iterdir() if _is_hdf5(p) and p not in files)
    if (master := _master(files, beside[:_MASTERS])) is not None:
        return open_raw(master, allow_truncated=allow_truncated)
    return join(folder, [open_part(path, None, allow_truncated) for path in files], 0, allow_truncated)


def joined(movies: Sequence[Path]) -> list[Path]:
    """Movies, those in several HDF5 files as one: their master, or the pattern that stands for them."""
    kinds: dict[tuple[Path, str], list[Path]] = {}
    for path in movies:
        if _is_hdf5(path) and re.search("[0-9]$", path.stem):
            kinds.setdefault((path.parent, re.sub("[0-9]+$", "*", path.stem) + path.suffix), []).append(path)
    result = list(movies)
    for (folder, pattern), files in kinds.items():
        if len(files) < 2 or not _is_part(files[0]):
            continue
        others = [p for p in result if _is_hdf5(p) and p.parent == folder and p not in files]
        whole = _master(files, others[:_MASTERS]) or folder / pattern
        at = result.index(files[0])
        kept = [p for p in result[:at] if p not in files and p != whole]
        result = [*kept, whole, *(p for p in result[at:] if p not in files and p != whole)]
    return result


def _is_hdf5(path: Path) -> bool:
    return path.suffix.lower() in HDF5_FILES.suffixes and path.is_file()


def _is_part(path: Path) -> bool:
    """Whether an array of a file says which images of a recording it holds."""
    found = _contents(path)
    return found is not None and any(
        all(isinstance(found.attributes(name).get(key), int) for key in NUMBERS) for name in found.objects
    )


def _master(files: Sequence[Path], others: Sequence[Path]) -> Path | None:
    """The one of some files that links to just these parts."""
    for path in others:
        found = _contents(path)
        if found is not None and {part for part, _ in parts_of(found)} == set(files):
            return path
    return None


def _contents(path: Path) -> Contents | None:
    """What is in a file; None where it cannot be read."""
    try:
        with closing(RawFile(path)) as file:
            return contents_of(file)[0]
    except InputError:
        return None
