"""Which pages of a TIFF hyperstack are the frames of a movie: one axis runs, the others stay at one place."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from ..errors import InputError, UsageError

AXES = {"T": "frames", "Z": "slices", "C": "channels"}  # as ImageJ calls them


class Wanted(NamedTuple):
    """What the user says: ``dataset`` as "slices" or "frames,slices=2", and the index of a channel."""

    dataset: str | None = None
    channel: int | None = None


def choose_planes(path: Path, axes: Sequence[tuple[str, int]], wanted: Wanted) -> range:
    """Numbers of the pages to read, among all in the order of the file.

    Parameters
    ----------
    path : Path
        For the error message.
    axes : sequence of (str, int)
        Name and length of every axis beside rows and columns, the slowest first.
    wanted : Wanted

    Raises
    ------
    InputError
        If several axes could run, or only channels: the sentence says how one is chosen.
    UsageError
        If an axis or a place on it that is asked for is not there.

    Examples
    --------
    >>> choose_planes(Path("a.tif"), [("frames", 5), ("channels", 2)], Wanted(channel=1))
    range(1, 11, 2)
    >>> choose_planes(Path("a.tif"), [("frames", 1), ("channels", 7)], Wanted("channels"))
    range(0, 7)
    """
    lengths = dict(axes)
    long = {name: n for name, n in lengths.items() if n > 1}
    found = " x ".join(f"{n} {name}" for name, n in long.items())
    running, fixed = _parse(path, lengths, wanted, found)
    free = [name for name in long if name not in fixed]
    if running is None and (len(free) > 1 or free == ["channels"]):
        raise InputError(path, _how_to_choose(long, fixed, found))
    running = running or (free[0] if free else next(iter(lengths), None))
    left = [name for name in free if name != running]
    if left:
        raise UsageError(
            f"{path}: holds {found}; say which one of its {' and '.join(left)} is meant, "
            f"--dataset {','.join([str(running), *(f'{name}=0' for name in left)])}."
        )
    strides, stride = {}, 1
    for name, n in reversed(axes):
        strides[name], stride = stride, stride * n
    first = sum(strides[name] * index for name, index in fixed.items())
    step, n_frames = (strides[running], lengths[running]) if running is not None else (1, 1)
    return range(first, first + step * n_frames, step)


def n_planes(axes: Sequence[tuple[str, int]]) -> int:
    """Number of pages that the axes need."""
    return math.prod(n for _, n in axes)


def _parse(
    path: Path, lengths: dict[str, int], wanted: Wanted, found: str
) -> tuple[str | None, dict[str, int]]:
    """The axis that runs, where it is named, and the places on others."""
    running, fixed = None, {}
    words = [word.strip() for word in wanted.dataset.split(",")] if wanted.dataset else []
    if wanted.channel is not None:
        words.append(f"channels={wanted.channel}")
    for word in words:
        name, given, index = word.partition("=")
        if lengths.get(name, 1) == 1:
            several = sum(n > 1 for n in lengths.values()) > 1
            has = f"it holds {found}" if several else "all its pages are frames"
            option = "--channel" if wanted.dataset is None else "--dataset"
            raise UsageError(f"{path}: has no {name} to choose from: {has}. Leave {option} out.")
        if not given:
            running = name
        elif not (index.isdecimal() and len(index) < 10 and int(index) < lengths[name]):
            raise UsageError(f"{path}: has {lengths[name]} {name}, counted from 0; {index} is none of them.")
        else:
            fixed[name] = int(index)
    if running in fixed:
        raise UsageError(f"{path}: {running} cannot be both the axis of frames and fixed; it holds {found}.")
    return running, fixed


def _how_to_choose(long: dict[str, int], fixed: dict[str, int], found: str) -> str:
    """The sentence for a hyperstack in which nothing is chosen."""
    if list(long) == ["channels"]:
        return (
            f"holds {found}, not frames over time. If they are the frames of a movie, as "
            "tifffile.imwrite(imagej=True) writes them, add --dataset channels."
        )
    running = (
        "frames" if "frames" in long else max((n for n in long if n not in fixed), key=lambda n: long[n])
    )
    others = [name for name in long if name != running]
    if others == ["channels"] and running == "frames":
        return f"holds {found}. Choose one of its channels with --channel, counted from 0."
    example = ",".join([running, *(f"{name}={fixed.get(name, 0)}" for name in others)])
    return (
        f"holds {found}, not one axis of frames. Say which one runs and which place on the others is meant, for "
        f"example --dataset {example}."
    )
