"""Sums of successive frames: what a network sees of frames that lie far from the one it predicts.

A movie is cut into sections of `SECTION` frames, counted from its first frame. The frames of a section are summed
once, in the scene's place at the section, and whoever looks far takes the sums of whole sections: hundreds of frames at
the cost of reading a few. The section that holds the centre frame is never among them, so no pixel sees itself.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from .brightness import Brightness, Span
from .neighbour_frames import window_indices
from .noise import Scale

SECTION = 20  # frames

Array = NDArray[Any]
Key = tuple[
    int, int, int
]  # number of a section; rows and columns by which its scene lies further on than in a frame


class Frames(Protocol):
    """Sliced like an array of frames."""

    @property
    def shape(self) -> tuple[int, ...]: ...

    def __getitem__(self, key: Any) -> Any: ...


@dataclass(frozen=True)
class FarFrames:
    """The sections of a movie, summed."""

    sums: Frames  # (n_sections, height, width) float32, counts over the levels of their frames
    numbers: Frames  # (n_sections, height, width) uint8, frames that show this place
    places: NDArray[np.float64]  # (n_sections, 2), where the scene lies in each [pixels]
    gains: NDArray[np.float64]  # (n_sections,), root of the level of its frames
    drift: NDArray[np.floating] | None  # of every frame of the movie [pixels]
    origin: tuple[int, int, int] = (0, 0, 0)  # frame, row and column of the movie that are called 0

    @classmethod
    def of(
        cls,
        frames: Frames,
        *,
        drift: NDArray[np.floating] | None = None,
        brightness: Brightness | None = None,
        stand_ins: NDArray[np.float32] | None = None,
    ) -> FarFrames:
        """Of a movie whose sums fit in memory; the parameters are those of `sum_section`."""
        n_frames, height, _ = frames.shape
        found = [
            sum_section(frames, section, (0, height), drift, brightness, stand_ins)
            for section in range(n_sections(n_frames))
        ]
        sums, numbers = (np.stack(arrays) for arrays in zip(*found, strict=True))
        return cls.summed(sums, numbers, n_frames, drift, brightness)

    @classmethod
    def summed(
        cls,
        sums: Frames,
        numbers: Frames,
        n_frames: int,
        drift: NDArray[np.floating] | None,
        brightness: Brightness | None,
    ) -> FarFrames:
        """Of a movie whose sections are summed already."""
        places = np.stack([section_place(section, drift) for section in range(n_sections(n_frames))])
        return cls(sums, numbers, places, section_gains(brightness, n_frames), drift)

    def part(self, frame: int, row: int, column: int) -> FarFrames:
        """The same for one who counts frames, rows and columns from these."""
        return replace(self, origin=(frame, row, column))

    def key(self, centre: int) -> Key:
        """What a centre frame sees: all of one key see the same."""
        frame = self.origin[0] + centre
        if self.drift is None:
            return frame // SECTION, 0, 0
        row, column = np.rint(self.places[frame // SECTION] - self.drift[frame]).astype(int).tolist()
        return frame // SECTION, row, column

    def channels(
        self, key: Key, rows: Span, columns: Span, bins: tuple[int, ...], scale: Scale
    ) -> NDArray[np.float32]:
        """Means of other sections, each shifted by whole pixels to where the scene lies in a centre frame.

        Parameters
        ----------
        key : Key
            Of the centre frame.
        rows, columns : (int, int)
            First and last (excluded); they may lie outside of the field.
        bins : tuple of int
            Sections per channel, from the centre outwards.
        scale : Scale
            Of the whole movie.

        Returns
        -------
        ndarray, shape (2 * len(bins), rows, columns)
            In order of time, in units of the noise of a mean of `SECTION` frames; 0, the mean level, where no frame
            shows a place. Where the movie ends, sections of the other side stand in for those that are missing.
        """
        section, *offset = key
        sections = far_sections(section, len(self.places), sum(bins))
        steps = np.rint(self.places[sections] - self.places[section]).astype(int) + np.array(offset)
        rows, columns = (
            (first + start, last + start)
            for (first, last), start in zip((rows, columns), self.origin[1:], strict=True)
        )
        sizes = (*bins[::-1], *bins)
        shape = len(sizes), rows[1] - rows[0], columns[1] - columns[0]
        sums, numbers = np.zeros(shape, np.float32), np.zeros(shape, np.float32)
        height, width = self.sums.shape[1:]
        of = np.repeat(np.arange(len(sizes)), sizes)[: len(sections)].tolist()
        for channel, number, (down, right) in zip(of, sections.tolist(), steps.tolist(), strict=True):
            (here_y, there_y), (here_x, there_x) = overlap(rows, down, height), overlap(columns, right, width)
            sums[channel, here_y, here_x] += self.sums[number, there_y, there_x]
            numbers[channel, here_y, here_x] += self.numbers[number, there_y, there_x]
        mean = np.float32(scale.mean)
        means = np.divide(sums, numbers, out=np.full(shape, mean), where=numbers > 0)
        return (means - mean) * np.float32(self.gains[section] * np.sqrt(SECTION) / scale.noise)


def n_sections(n_frames: int) -> int:
    """Sections of a movie; the last one may be shorter."""
    return -(-n_frames // SECTION)


def far_sections(section: int, n: int, reach: int) -> NDArray[np.intp]:
    """Sections around one of ``n``, never that one, as `window_indices` has frames; none if there is no other."""
    if n < 3:
        return np.full(2 * reach if n == 2 else 0, 1 - section, dtype=np.intp)
    return window_indices(section, n, reach)


def section_place(section: int, drift: NDArray[np.floating] | None) -> NDArray[np.float64]:
    """Where the scene lies in a section: its mean place [pixels]."""
    if drift is None:
        return np.zeros(2)
    return np.asarray(drift[section * SECTION : (section + 1) * SECTION].mean(axis=0), np.float64)


def section_gains(brightness: Brightness | None, n_frames: int) -> NDArray[np.float64]:
    """Root of the mean level of every section: its frames are seen at that share of the dose, and so are others."""
    n = n_sections(n_frames)
    if brightness is None:
        return np.ones(n)
    levels, valid = (_padded(a, n) for a in (brightness.levels * brightness.valid, brightness.valid))
    means = np.divide(levels.sum(axis=1), valid.sum(axis=1), out=np.ones(n), where=valid.any(axis=1))
    return np.asarray(np.sqrt(means))


def sum_section(
    frames: Frames,
    section: int,
    rows: Span,
    drift: NDArray[np.floating] | None = None,
    brightness: Brightness | None = None,
    stand_ins: NDArray[np.float32] | None = None,
) -> tuple[NDArray[np.float32], NDArray[np.uint8]]:
    """Sum of the frames of a section, and how many of them show a place.

    Parameters
    ----------
    frames : Frames
        Of the movie [counts].
    section : int
    rows : (int, int)
        First and last (excluded) to sum.
    drift : ndarray, shape (n_frames, 2), optional
        Of the scene [pixels], which the frames are shifted by, in whole pixels.
    brightness : Brightness, optional
        What frames are divided by; those that are not valid are left out.
    stand_ins : ndarray, shape (height, width), optional
        Shown in place of bad pixels; NaN where a pixel is sound.

    Returns
    -------
    sums, numbers : ndarray, shape (rows, width)
    """
    n_frames, height, width = frames.shape
    first, last = section * SECTION, min((section + 1) * SECTION, n_frames)
    steps = np.zeros((last - first, 2), int)
    if drift is not None:
        steps = np.rint(drift[first:last] - section_place(section, drift)).astype(int)
    top = min(height, max(0, rows[0] + int(steps[:, 0].min())))
    bottom = max(top, min(height, rows[1] + int(steps[:, 0].max())))
    counts = np.asarray(frames[first:last, top:bottom])
    bad = None if stand_ins is None else stand_ins[top:bottom]
    shape = rows[1] - rows[0], width
    sums, numbers = np.zeros(shape, np.float32), np.zeros(shape, np.uint8)
    for values, frame, (down, right) in zip(counts, range(first, last), steps.tolist(), strict=True):
        seen = values.astype(np.float32)
        if brightness is not None:
            if not brightness.valid[frame]:
                continue
            if not brightness.is_even:
                level = brightness.at(slice(frame, frame + 1), (top, bottom), (0, width))[0]
                seen /= level.astype(np.float32)
        if bad is not None:
            seen = np.where(np.isfinite(bad), bad, seen)
        (here_y, there_y), (here_x, there_x) = overlap(rows, down, height), overlap((0, width), right, width)
        sums[here_y, here_x] += seen[there_y.start - top : there_y.stop - top, there_x]
        numbers[here_y, here_x] += 1
    return sums, numbers


def overlap(span: Span, step: int, size: int) -> tuple[slice, slice]:
    """Where a span that is moved by a step meets an axis: in the span, and on the axis.

    Examples
    --------
    >>> overlap((0, 4), -1, 4), overlap((2, 4), 9, 4)
    ((slice(1, 4, None), slice(0, 3, None)), (slice(0, 0, None), slice(4, 4, None)))
    """
    first, last = (min(size, max(0, edge + step)) for edge in span)
    start = min(span[1], max(0, -span[0] - step)) if first < last else 0
    return slice(start, start + last - first), slice(first, last)


def _padded(values: Array, n: int) -> Array:
    """Of every frame, as rows of sections; 0 beyond the last."""
    out = np.zeros(n * SECTION)
    out[: len(values)] = values
    return out.reshape(n, SECTION)
