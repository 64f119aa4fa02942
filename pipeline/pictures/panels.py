"""Frames of a movie as they are shown side by side: raw, averaged, denoised and what was removed, in bounded memory."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal, TypeAlias

import numpy as np
from numpy.typing import NDArray

from ..errors import UsageError
from ..step_control import Control
from ..store import store
from ..store.blocks import Region

Array = NDArray[Any]

Panel: TypeAlias = Literal["raw", "mean9", "denoised", "difference"]
AVERAGED = 9  # frames of the panel mean9
HALF = AVERAGED // 2
TITLES: dict[Panel, str] = {
    "raw": "raw counts",
    "mean9": f"mean of {AVERAGED} frames",
    "denoised": "denoised",
    "difference": "raw less denoised",
}


@dataclass(frozen=True)
class Footage:
    """A part of a movie, and of the denoised movie that was made from it.

    Frames are read one chunk at a time, whatever the length of the movie.
    """

    movie: store.Store | None  # the recording; None where only the denoised movie is there
    denoised: store.Store | None
    region: Region  # frames that are shown, and rows and columns of the first of them
    # Rows and columns by which the scene lies further on than in the first frame shown, for every frame of the movie.
    shifts: NDArray[np.intp] | None = None  # None: it is not followed
    valid: NDArray[np.bool_] | None = None  # frames that were recorded whole; None: all

    @property
    def shape(self) -> tuple[int, int, int]:
        """Frames, height and width of what is shown."""
        return self.region.shape

    @property
    def one(self) -> store.Store:
        """A store that tells of axes and units."""
        found = self.denoised or self.movie
        assert found is not None
        return found

    def frames(self, panels: Sequence[Panel]) -> Iterator[tuple[int, dict[Panel, Array]]]:
        """Every frame with its number in the movie and its panels [counts], in order.

        ``raw`` and ``denoised`` are what the stores hold, in their own type; the others are float32. At the ends of the
        movie ``mean9`` averages over as many frames as there are, and always over those alone that were recorded whole;
        where none of them was, it holds NaN.
        """
        first, last = self.region.frames
        half = HALF if "mean9" in panels else 0
        earliest, latest = max(0, first - half), min(self.one.shape[0], last + half)
        raw = self._crops(self.movie, earliest, latest) if needs_movie(panels) else None
        smooth = self._crops(self.denoised, first, last) if needs_denoised(panels) else None
        window: deque[Array] = deque()  # of raw frames, from number `begins` on
        begins = upto = earliest
        for k in range(first, last):
            shown: dict[Panel, Array] = {}
            if raw is not None:
                while upto < min(latest, k + half + 1):
                    window.append(next(raw))
                    upto += 1
                while begins < k - half:
                    window.popleft()
                    begins += 1
                shown["raw"] = window[k - begins]
            if half:
                shown["mean9"] = _mean(
                    [frame for number, frame in enumerate(window, begins) if self._is_valid(number)],
                    window[0].shape,
                )
            if smooth is not None:
                shown["denoised"] = next(smooth)
            if "difference" in panels:
                shown["difference"] = np.subtract(shown["raw"], shown["denoised"], dtype=np.float32)
            yield k, {name: shown[name] for name in panels}

    def after(self, n_frames: int) -> Footage:
        """The same without its first frames; what is shown of the others stays as it is."""
        first, last = self.region.frames
        return replace(self, region=replace(self.region, frames=(first + n_frames, last)))

    def samples(self, panels: Sequence[Panel], at_most: int) -> Iterator[dict[Panel, Array]]:
        """The panels of some frames that are spread over all that are shown."""
        first, last = self.region.frames
        for k in np.unique(np.linspace(first, last - 1, min(at_most, last - first)).round().astype(int)):
            here = Region((int(k), int(k) + 1), self.region.rows, self.region.columns)
            # The same shifts as in the whole, which may begin at another frame.
            yield from (shown for _, shown in replace(self, region=here).frames(panels))

    def _is_valid(self, number: int) -> bool:
        return self.valid is None or bool(self.valid[number])

    def _crops(self, opened: store.Store | None, first: int, last: int) -> Iterator[Array]:
        """The part of every frame that is shown; every chunk is decoded once."""
        assert opened is not None  # asked for at the door
        step = opened.geometry.chunk[0]
        for start in range(first // step * step, last, step):
            inner = range(max(first, start), min(last, start + step))
            boxes = [self._box(k) for k in inner]
            around = Region(
                (inner.start, inner.stop),
                (min(b.rows[0] for b in boxes), max(b.rows[1] for b in boxes)),
                (min(b.columns[0] for b in boxes), max(b.columns[1] for b in boxes)),
            )
            values = store.read_region(opened, around)
            for box in boxes:
                # A copy, so that what is kept of a frame does not keep the whole chunk.
                yield values[box.within(around).slices][0].copy()

    def _box(self, k: int) -> Region:
        """Where what is shown lies in a frame."""
        down, right = (0, 0) if self.shifts is None else self.shifts[k].tolist()
        (top, bottom), (left, side) = self.region.rows, self.region.columns
        return Region((k, k + 1), (top + down, bottom + down), (left + right, side + right))


def follow(
    moved: NDArray[np.floating], region: Region, shape: tuple[int, int, int], averaged: bool = False
) -> tuple[Region, NDArray[np.intp]]:
    """Hold the scene still: whole pixels for every frame, and the part of the scene that all of them show.

    Parameters
    ----------
    moved : ndarray, shape (n_frames, 2)
        Rows and columns by which the scene has moved since the first frame of the movie [pixels].
    region : Region
        Frames, and rows and columns of the first of them.
    shape : tuple of int
        Of the movie.
    averaged : bool
        Whether frames around those shown are averaged with them.

    Returns
    -------
    region : Region
        The largest part of it that lies in every frame.
    shifts : ndarray of int, shape (n_frames, 2)
        By which the scene lies further on than in the first frame of the region.

    Raises
    ------
    UsageError
        If no pixel of it lies in every frame.
    """
    shifts = np.rint(moved - moved[region.frames[0]]).astype(np.intp)
    half = HALF if averaged else 0
    seen = shifts[max(0, region.frames[0] - half) : region.frames[1] + half]
    found = []
    for axis, (start, stop) in enumerate((region.rows, region.columns)):
        low, high = int(seen[:, axis].min()), int(seen[:, axis].max())
        found.append((max(start, -low), min(stop, shape[axis + 1] - high)))
    if any(start >= stop for start, stop in found):
        raise UsageError(
            "the scene drifts so far that no part of it is in all of these frames. Choose fewer frames "
            "(--frames A:B), another part (--roi), or leave out --follow-drift."
        )
    rows, columns = found
    return Region(region.frames, rows, columns), shifts


def needs_movie(panels: Sequence[Panel]) -> bool:
    """Whether the recording is needed for these panels."""
    return bool({"raw", "mean9", "difference"} & set(panels))


def needs_denoised(panels: Sequence[Panel]) -> bool:
    """Whether the denoised movie is needed for these panels."""
    return bool({"denoised", "difference"} & set(panels))


def shrink(frame: Array, factor: int) -> Array:
    """A frame averaged down by a whole number; rows and columns that do not fill a pixel are left out.

    Examples
    --------
    >>> shrink(np.array([[1, 2, 9], [3, 4, 9]]), 2).tolist()
    [[2.5]]
    """
    if factor == 1:
        return frame
    height, width = (n // factor for n in frame.shape)
    parts = frame[: height * factor, : width * factor].reshape(height, factor, width, factor)
    averaged: Array = parts.mean(axis=(1, 3), dtype=np.float32)
    return averaged


def checked(
    frames: Iterator[Any], n_frames: int, what: str, control: Control, first: int = 0
) -> Iterator[Any]:
    """The same frames, the first of which has a number, with progress told and a stop heeded at each of them."""
    for number, frame in enumerate(frames, first):
        control.check(what)
        control.progress(what, number, n_frames)
        yield frame
    control.progress(what, n_frames, n_frames)


def _mean(frames: Sequence[Array], shape: tuple[int, ...]) -> Array:
    if not frames:
        return np.full(shape, np.nan, np.float32)
    total = np.zeros(shape, np.float64)
    for frame in frames:
        total += frame
    return (total / len(frames)).astype(np.float32)
