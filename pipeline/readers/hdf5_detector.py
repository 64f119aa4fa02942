"""What NeXus' detector group says of a movie, and movies in several HDF5 files, as DECTRIS writes them.

A master file has the settings, and external links to the data files beside it. Each of these says which images of
the recording it holds. They may also be named by a pattern.
"""

from __future__ import annotations

import re
from bisect import bisect_right
from collections.abc import Sequence
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from ..errors import InputError
from . import MovieInfo, Reader
from .frames import FrameReader, whole_frames
from .hdf5_profiles import Contents, Movie
from .numbering import natural
from .rawfile import RawFile, RawFolder
from .units import single, to_seconds

NUMBERS = ("image_nr_low", "image_nr_high")  # attributes: the first and the last image of a file, from 1


def with_detector(contents: Contents, movie: Movie) -> Movie:
    """A movie with the frame time, exposure and camera of the only detector of its file, where it lacks them."""
    groups = {
        name.rpartition("/")[0] for name in contents.objects if name.endswith(("/frame_time", "/count_time"))
    }
    if len(groups) != 1:
        return movie
    (group,) = groups
    camera = single(contents.value(f"{group}/description"))
    return replace(
        movie,
        frame_time_s=movie.frame_time_s or _seconds(contents, f"{group}/frame_time"),
        exposure_s=movie.exposure_s or _seconds(contents, f"{group}/count_time"),
        camera=movie.camera or (camera if isinstance(camera, str) else None),
    )


def not_applied(contents: Contents) -> tuple[str, ...]:
    """A warning for each correction that the files of a detector hold, or name, and that its counts lack."""

    def is_there(word: str) -> bool:
        return any(contents.is_array(name) and name.rpartition("/")[2] == word for name in contents.objects)

    def is_applied(*words: str) -> bool | None:
        found = [
            single(contents.value(name)) for name in contents.objects if name.rpartition("/")[2] in words
        ]
        said = {bool(value) for value in found if isinstance(value, bool | int)}
        return said.pop() if len(said) == 1 else None

    said = []
    if is_there("pixel_mask") and not is_applied("pixel_mask_applied"):
        said.append("the pixel mask of its detector is not applied: what is bad is looked for in the frames.")
    if is_there("flatfield") and not is_applied("flatfield_correction_applied", "flatfield_applied"):
        said.append(
            "it holds a flat field of its detector and does not say that its counts were corrected with it. If they "
            "were not, save the array flatfield as a file and give it with --gain."
        )
    if is_applied("countrate_correction_applied") is False:
        said.append(
            "its counts are not corrected for electrons that came too fast to be counted: bright places are too dark."
        )
    return tuple(said)


def _seconds(contents: Contents, name: str) -> float | None:
    return to_seconds(contents.value(name), contents.attributes(name).get("units", "s"))


class Part(NamedTuple):
    """A file that holds a stretch of a movie."""

    path: Path
    reader: Reader
    numbers: tuple[int, int] | None  # of its first and last image


def parts_of(contents: Contents) -> list[tuple[Path, str]]:
    """The data files that a master links to, and the array in each; empty where it is no master.

    Only links to plain names count: a file beside the master, never one elsewhere.
    """
    own = (name for name in contents.objects if contents.is_array(name) and contents.holds_counts(name))
    if any(sum(n > 1 for n in contents.shape(name)) > 2 for name in own):
        return []
    groups: dict[str, list[str]] = {}
    for name, (file, _) in contents.external.items():
        kind = re.sub("[0-9]+$", "", name)
        if kind != name and Path(file).name == file:
            groups.setdefault(kind, []).append(name)
    if len(groups) != 1:
        return []
    (names,) = groups.values()
    ordered = sorted(names, key=lambda name: int(re.findall("[0-9]+$", name)[0]))
    targets = [contents.external[name] for name in ordered]
    return [(contents.path.parent / file, inside.strip("/")) for file, inside in targets]


def announced_by(contents: Contents) -> int:
    """Number of images that a master says were recorded; 0 where it does not."""
    images, triggers = _recorded(contents)
    return images * max(triggers, 1)


def check_series(contents: Contents) -> None:
    """Refuse images that were each triggered from outside: the scan that did so is no movie.

    Raises
    ------
    InputError
    """
    images, triggers = _recorded(contents)
    modes = [single(contents.value(name)) for name in contents.objects if name.endswith("/trigger_mode")]
    if images == 1 < triggers and any(str(mode).startswith("ext") for mode in modes):
        group = next(iter(contents.external)).rpartition("/")[0]
        raise InputError(
            contents.path,
            f"holds a scan: each of its {triggers} images waited for a trigger of its own. To read it as a "
            f"movie anyway, add --dataset {group}.",
        )


def _recorded(contents: Contents) -> tuple[int, int]:
    """Images for each trigger, and triggers; 0 where a master does not say so."""
    found = [name for name in contents.objects if name.endswith("/nimages")]
    names = (found[0], found[0].removesuffix("nimages") + "ntrigger") if len(found) == 1 else ()
    counts = [value if isinstance(value := single(contents.value(name)), int) else 0 for name in names]
    return (counts[0], counts[1]) if counts else (0, 0)


def join(
    file: RawFile | RawFolder, parts: Sequence[Part], announced: int, allow_truncated: bool
) -> PartsReader:
    """One movie of the frames of several files, in the order of their image numbers, else of their names.

    Raises
    ------
    InputError
        If the files do not fit together, or if frames are missing.
    """
    if all(part.numbers is not None for part in parts):
        parts = sorted(parts, key=lambda part: part.numbers or (0, 0))
    # Behind a hole the frames are at another time than their number says: the rest is not read.
    hole = next((k for k, part in enumerate(parts) if part.reader.info.missing_frames), len(parts) - 1)
    announced = max(announced, sum(sum(_extent(part)) for part in parts))
    parts = parts[: hole + 1]
    first = parts[0].reader.info
    for part in parts:
        info = part.reader.info
        if (info.shape[1:], info.dtype) != (first.shape[1:], first.dtype):
            raise InputError(
                part.path,
                f"holds frames of {info.shape[1]} x {info.shape[2]} {info.dtype}, {parts[0].path.name} of "
                f"{first.shape[1]} x {first.shape[2]} {first.dtype}: the files of a movie are alike.",
            )
    told = {part.path.name: part.reader.info.metadata.get("stored_numbers") for part in parts}
    differ = any(numbers != told[parts[0].path.name] for numbers in told.values())
    warnings = _gaps(parts)
    if differ:
        factors = [1.0 if numbers is None else numbers["factor"] for numbers in told.values()]
        warnings += (
            "its files declare different things of their numbers (factors from "
            f"{min(factors):g} to {max(factors):g}): each was applied to its own file.",
        )
    present = sum(part.reader.info.shape[0] for part in parts)
    n_frames = whole_frames(file, announced, present, allow_truncated)
    info = replace(
        first,
        shape=(n_frames, *first.shape[1:]),
        format=f"{first.format}, {len(parts)} files",
        timestamps_s=None,
        missing_frames=announced - n_frames,
        warnings=tuple(dict.fromkeys(w for part in parts for w in part.reader.info.warnings)) + warnings,
        files=tuple(part.path for part in parts),
        metadata=first.metadata | ({"stored_numbers": told} if differ else {}),
    )
    return PartsReader(file, info, [part.reader for part in parts])


def _extent(part: Part) -> tuple[int, int]:
    """Frames that a file has, and those that it lacks."""
    return part.reader.info.shape[0], part.reader.info.missing_frames


def _gaps(parts: Sequence[Part]) -> tuple[str, ...]:
    """A warning where image numbers are left out; an error where a file holds those of another one."""
    lost, where = 0, ""
    for one, other in pairwise(parts):
        if one.numbers is None or other.numbers is None:
            continue
        if other.numbers[0] <= one.numbers[1]:
            raise InputError(
                other.path,
                f"holds images {other.numbers[0]} to {other.numbers[1]}, {one.path.name} those from "
                f"{one.numbers[0]} to {one.numbers[1]}: they are not parts of one movie.",
            )
        if other.numbers[0] > one.numbers[1] + 1:
            lost += other.numbers[0] - one.numbers[1] - 1
            where = where or f"between {one.path.name} and {other.path.name}"
    if parts[0].numbers is not None and parts[0].numbers[0] > 1:
        lost += parts[0].numbers[0] - 1
        where = f"before {parts[0].path.name}"
    return (f"{lost} images of the recording are missing, the first {where}.",) if lost else ()


class PartsReader(FrameReader):
    """Frames of several files, one after the other.

    Parameters
    ----------
    file : RawFile or RawFolder
        For error messages; closed with the others.
    info : MovieInfo
    readers : sequence of Reader
        Of frames of one shape and type; closed with this one.
    """

    def __init__(self, file: RawFile | RawFolder, info: MovieInfo, readers: Sequence[Reader]) -> None:
        super().__init__(file, info)
        self._readers = readers
        self._starts = np.cumsum([0, *(reader.info.shape[0] for reader in readers)]).tolist()

    def _fill(self, start: int, stop: int, out: NDArray[Any]) -> None:
        at = start
        while at < stop:
            number = bisect_right(self._starts, at) - 1
            begin = self._starts[number]
            end = min(stop, self._starts[number + 1])
            self._readers[number].read(at - begin, end - begin, out[at - start : end - start])
            at = end

    def close(self) -> None:
        """Close all files; harmless if done twice."""
        for reader in self._readers:
            reader.close()
        super().close()


def series_of(path: Path) -> list[Path]:
    """The files beside one, and itself, whose names differ from its own in the last number alone."""
    kind = re.fullmatch(r"(.*?)[0-9]+", path.stem)
    if kind is None:
        return [path]
    found = (p for p in path.parent.iterdir() if p.suffix.lower() == path.suffix.lower())
    alike = [p for p in found if re.fullmatch(re.escape(kind[1]) + "[0-9]+", p.stem) and p.is_file()]
    return sorted(alike, key=natural)
