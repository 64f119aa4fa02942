"""The order of frames from the numbers in the names of their files.

One number runs through the frames of a movie. Where several do, or none, the names do not say which files belong
together and in which order, and a person has to.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Sequence
from datetime import UTC, datetime
from fnmatch import fnmatchcase
from fractions import Fraction
from itertools import pairwise
from pathlib import Path
from typing import NamedTuple

import numpy as np

from ..errors import InputError

# A date with a time of day is one number.
_MOMENT = (
    r"(?<![0-9])(?:19|20)[0-9]{2}([-_.]?)(?:0[1-9]|1[0-2])\1(?:0[1-9]|[12][0-9]|3[01])[-_.T ]+"
    r"(?:[01][0-9]|2[0-3])[-_.h]?[0-5][0-9][-_.m]?[0-5][0-9](?:[.,][0-9]+)?(?![0-9])"
)
_SIGN = "[-+\u2212]"
_DECIMAL = re.compile("[0-9][.,][0-9]")
_CLOCK = re.compile(r"(?:Hour|Minute|Second)_([0-9]+)", re.IGNORECASE)
_EVEN = 1.5  # times the smallest step, beyond which a step is a gap


class _Number(NamedTuple):
    """A number in a name."""

    start: int
    stop: int
    value: Fraction | int


class _Name(NamedTuple):
    """A name cut into its numbers and, with # for each of them, all the rest."""

    path: Path
    kind: str
    numbers: tuple[_Number, ...]


_Order = list[tuple[_Name, Fraction | int]]  # names in order, each with the value of its running number


def in_order(path: Path, files: Sequence[Path], *, clock: bool = False) -> tuple[list[Path], tuple[str, ...]]:
    """Files in the order of the one number that runs through their names, and a warning where it has gaps.

    Parameters
    ----------
    path : Path
        The folder or pattern, for the error message.
    files : sequence of Path
        Of the frames of one movie, in any order.
    clock : bool, optional
        They lie in the folders of a Gatan capture, Hour_00/Minute_00/Second_00; else the names may say the same.

    Raises
    ------
    InputError
        If the names are not alike, if a number comes twice, or if several numbers run through them.

    Examples
    --------
    >>> files, gaps = in_order(Path("a"), [Path("a/t_10.tif"), Path("a/t_-1.tif"), Path("a/t_0.tif")])
    >>> [file.name for file in files], len(gaps)
    (['t_-1.tif', 't_0.tif', 't_10.tif'], 1)
    """
    for signs in (False, True):
        whole = [_parse(file, decimals=False, signs=signs) for file in files]
        readings = [whole]
        if any(_DECIMAL.search(file.stem) for file in files):
            readings.append([_parse(file, decimals=True, signs=signs) for file in files])
        readings = [names for names in readings if len({name.kind for name in names}) == 1]
        if readings:
            break
    else:
        raise InputError(path, _unlike(whole))
    if clock or all(len(_CLOCK.findall(file.stem)) == 3 for file in files):
        return _by_clock(path, files)
    found, problem = _run(readings[0])
    if len(readings) == 2:
        found, problem = _whole_or_decimal(readings, found, problem)
    if problem:
        raise InputError(path, problem)
    ordered = [name.path for name, _ in found]
    steps = np.diff([float(value) for _, value in found])
    # A counter steps evenly; a time in a name does so only about.
    usual = np.median(steps) if any(isinstance(value, Fraction) for _, value in found) else steps.min()
    return ordered, _gap_warning(ordered, np.flatnonzero(steps > usual * _EVEN).tolist())


def natural(path: Path) -> tuple[list[str | int], str]:
    """Key that sorts frame_9 before frame_10."""
    parts = re.split("([0-9]+)", path.as_posix().lower())
    return [int(part) if k % 2 else part for k, part in enumerate(parts)], path.as_posix()


def _gap_warning(files: Sequence[Path], gaps: Sequence[int]) -> tuple[str, ...]:
    if not gaps:
        return ()
    return (
        f"the numbers of its files jump {len(gaps)} times, the first between {files[gaps[0]].name} and "
        f"{files[gaps[0] + 1].name}: frames are missing, and the time steps are uneven.",
    )


def _by_clock(path: Path, files: Sequence[Path]) -> tuple[list[Path], tuple[str, ...]]:
    """Files whose names or folders give hour, minute, second and the frame within it."""
    ordered = sorted(files, key=_clock)
    places = [_clock(file) for file in ordered]
    base, gaps = places[0][1], []
    for k, ((second, frame), following) in enumerate(pairwise(places)):
        if following == (second, frame):
            raise InputError(path, _twice(ordered[k], ordered[k + 1]))
        if following not in {(second, frame + 1), (second + 1, base)}:
            gaps.append(k)
    return ordered, _gap_warning(ordered, gaps)


def _clock(file: Path) -> tuple[int, int]:
    """Second of a capture, and number of the frame in it."""
    clock = _CLOCK.findall(file.stem)
    if len(clock) != 3:
        clock = _CLOCK.findall(file.parent.as_posix())[-3:]
    seconds = sum(int(n) * 60**k for k, n in enumerate(reversed(clock)))
    return seconds, int((re.findall("[0-9]+", file.stem) or ["0"])[-1])


def _parse(file: Path, *, decimals: bool, signs: bool) -> _Name:
    """Cut a name into numbers; ``signs`` takes a dash behind a letter for a minus, too."""
    number = r"[0-9]+(?:[.,][0-9]+)?" if decimals else "[0-9]+"
    sign = f"{_SIGN}?" if signs else f"(?:(?<![A-Za-z0-9]){_SIGN})?"
    numbers, kind, end = [], "", 0
    for match in re.finditer(f"{_MOMENT}|{sign}{number}", file.stem):
        value = _value(match[0]) if match[1] is None else _moment(match[0])
        numbers.append(_Number(*match.span(), value))
        kind += file.stem[end : match.start()] + "#"
        end = match.end()
    return _Name(file, (kind + file.stem[end:] + file.suffix).lower(), tuple(numbers))


def _value(text: str) -> Fraction | int:
    plain = text.replace("\u2212", "-").replace(",", ".")
    return Fraction(plain) if "." in plain else int(plain)


def _moment(text: str) -> Fraction | int:
    """Seconds of a date with a time of day; the digits behind its seconds are a fraction."""
    digits = re.sub("[^0-9]", "", text)
    try:
        second = datetime.strptime(digits[:14], "%Y%m%d%H%M%S").replace(tzinfo=UTC).timestamp()
    except ValueError:  # the 30th of February is a number like any other
        second = int(digits[:14])
    return int(second) + Fraction(int(digits[14:] or 0), 10 ** len(digits[14:]))


def _whole_or_decimal(readings: Sequence[Sequence[_Name]], found: _Order, problem: str) -> tuple[_Order, str]:
    """Which of two readings holds: "0.5" may be a time, and "1.10" the tenth frame of a first run.

    Whole numbers that count by one are taken first; decimals if their steps are even, or if no counter can be seen.
    """
    if not problem and {b - a for (_, a), (_, b) in pairwise(found)} == {1}:
        return found, ""
    decimal, no_decimal = _run(readings[1])
    if not no_decimal:
        steps = np.diff([float(value) for _, value in decimal])
        if steps.max() <= _EVEN * steps.min() or not _counts(readings[0]):
            return decimal, ""
        if not problem and [name.path for name, _ in found] != [name.path for name, _ in decimal]:
            one, other = (name.path.name for name, _ in decimal[:2])
            return [], (
                f"the numbers in the names of its files ({one}, {other}) give one order as decimals and another "
                "as whole numbers. Rename the files with one whole number."
            )
    return found, problem


def _counts(names: Sequence[_Name]) -> bool:
    """Whether the last number counts in the same steps wherever those before it stay the same."""
    series: dict[tuple[Fraction | int, ...], list[Fraction | int]] = {}
    for name in names:
        *before, last = (number.value for number in name.numbers)
        series.setdefault(tuple(before), []).append(last)
    return len({b - a for values in series.values() for a, b in pairwise(sorted(values))}) < 2


def _run(names: Sequence[_Name]) -> tuple[_Order, str]:
    """Names in order, each with the value of its running number; or what is wrong with them, in words."""
    columns = list(zip(*([number.value for number in name.numbers] for name in names), strict=True))
    running = [k for k, values in enumerate(columns) if len(set(values)) > 1]
    steady: dict[tuple[int, ...], int] = {}  # by order, the column that gives it
    counters: dict[tuple[int, ...], int] = {}
    for k in (k for k in running if len(set(columns[k])) == len(names)):
        order = tuple(sorted(range(len(names)), key=columns[k].__getitem__))
        # A time that grows with the counter makes no second movie; what goes its own way beside a counter neither.
        if all(columns[j][a] <= columns[j][b] for j in running for a, b in pairwise(order)):
            steady.setdefault(order, k)
        if len({columns[k][b] - columns[k][a] for a, b in pairwise(order)}) == 1:
            counters.setdefault(order, k)
    for orders in (steady, counters):
        if len(orders) == 1:
            ((order, k),) = orders.items()
            return [(names[i], columns[k][i]) for i in order], ""
    first, *others = sorted(names, key=lambda name: natural(name.path))
    if len(running) < 2:
        seen: dict[tuple[Fraction | int, ...], Path] = {}
        for name in (first, *others):
            one = seen.setdefault(tuple(number.value for number in name.numbers), name.path)
            if one != name.path:
                return [], _twice(one, name.path)
    other = next(n for n in others if any(n.numbers[k].value != first.numbers[k].value for k in running[:-1]))
    return [], (
        f"{len(running)} numbers run through the names of its files ({first.path.name}, {other.path.name}): several "
        "movies, or an order that the names do not show. Name the frames of one movie by a pattern, for example "
        f"'{_example(first, first.numbers[running[-1]], [])}'."
    )


def _twice(one: Path, other: Path) -> str:
    return (
        f"its files {one.name} and {other.name} have the same number, so their order is unclear. Move the "
        "one that is not a frame to another folder."
    )


def _unlike(names: Sequence[_Name]) -> str:
    """An average or a reference among the frames, or several series."""
    ((usual, _),) = Counter(name.kind for name in names).most_common(1)
    one = next(name for name in names if name.kind == usual)
    others = [name for name in names if name.kind != usual]
    files = f"its files {others[0].path.name} and {one.path.name} are not numbered alike"
    if not one.numbers:
        return f"{files}: their names do not show their order. Number them, frame_0001 and so on."
    return f"{files}; name the frames by a pattern, for example '{_example(one, one.numbers[-1], others)}'."


def _example(name: _Name, number: _Number, others: Sequence[_Name]) -> Path:
    """A pattern for all names that differ from this one in one number, and for none of the others."""
    plain = name.path.name
    before, after = (re.sub(r"[\[*]", "?", t) for t in (plain[: number.start], plain[number.stop :]))
    narrow = any(fnmatchcase(other.path.name, f"{before}*{after}") for other in others)
    return name.path.parent / f"{before}{'[0-9]' if narrow else ''}*{after}"
