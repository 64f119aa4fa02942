"""What ingest measures on a movie: its pixels before the copy; noise, drift and lost frames after it."""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from tdenoise.noise.bad_pixels import PixelStatistics
from tdenoise.noise.brightness import Brightness, measure
from tdenoise.noise.camera_pattern import PixelAccumulator, stand_ins
from tdenoise.noise.drift import drift
from tdenoise.noise.jitter import jitter
from tdenoise.noise.noise import NoiseStatistics
from tdenoise.noise.noise_measurement import NoiseAccumulator

from ..readers import Reader
from ..readers.timestamps import intervals
from ..store.store_attributes import TimingAttributes
from .corrections import bin_pixels
from .ingest_plan import Selection

SAMPLE_PAIRS = 16  # of successive frames, looked at before the copy
MOST_PAIRS = 2000  # small frames take their time, too
LONGER_PAIRS = 8  # between two looks whether they are enough
# Read on top of it where the dose is low, at most: so much, or this share of the movie.
LONGER_BYTES, LONGER_SHARE = 2**30, 0.05
NOISE_LIMIT = 1e9  # counts whose squares of squares float32 still holds; no electron gives more
NOISE_PIXELS = 20_000_000  # that the noise is measured on, about: errors of correlations below 0.001
NOISE_PLACES = (8, 32)  # in time, evenly spread: at least, at most
WINDOW = 512  # rows and columns looked at for noise and drift, at most [pixels]
STRETCH = (8, 32)  # successive frames looked at for the noise: at least, at most
DRIFT_FRAMES, DRIFT_PIXELS = 8, 256  # frames averaged for an image that is correlated, and its extent
DRIFT_BIN = 2  # pixels that are joined for it: atomic columns are larger than four
READ_FRAMES = 64  # that are read for it at once
UNEVEN = 0.1  # of the usual interval

Window = tuple[slice, slice, slice]


def sample_pixels(
    reader: Reader, selection: Selection, n_threads: int, check: Callable[[], None]
) -> PixelStatistics | None:
    """Mean and noise of every pixel from some pairs of frames; None if no pair is sound.

    From more of them where the dose is so low that a pixel may not have changed by chance.
    """
    first, n_frames = selection.frames[0], selection.shape[0]
    n_pairs = min(SAMPLE_PAIRS, n_frames // 2)
    starts = [first + int(i) for i in np.linspace(0, n_frames - 2, n_pairs)]
    pair_bytes = 2 * reader.info.dtype.itemsize * math.prod(reader.info.shape[1:])
    budget = max(LONGER_BYTES, LONGER_SHARE * n_frames * pair_bytes / 2)
    longer = _between(starts, first, first + n_frames)[: min(MOST_PAIRS, int(budget / pair_bytes))]
    pixels = PixelAccumulator(selection.shape[1:])

    def read(start: int) -> NDArray[Any]:
        check()
        frames = np.empty((2, *reader.info.shape[1:]), dtype=reader.info.dtype)
        reader.read(start, start + 2, frames)
        return frames[:, slice(*selection.rows), slice(*selection.columns)]

    with ThreadPoolExecutor(n_threads) as pool:

        def look(starts: list[int]) -> None:
            for group in range(0, len(starts), n_threads):  # no more pairs in memory than threads
                for pair in pool.map(read, starts[group : group + n_threads]):
                    pixels.add(pair)

        look(starts)
        # As many at a time whatever the machine has: how many are read decides what is found.
        for group in range(0, len(longer), LONGER_PAIRS):
            if not pixels.undecided:
                break
            look(longer[group : group + LONGER_PAIRS])
    return pixels.statistics()


def _between(starts: list[int], first: int, last: int) -> list[int]:
    """Pairs of frames that none of these holds, in an order in which any number of them is spread over the movie."""
    taken = {frame for start in starts for frame in (start, start + 1)}
    free = [start for start in range(first, last - 1, 2) if not {start, start + 1} & taken]
    return [free[i] for i in np.argsort(np.arange(len(free)) * 0.618034 % 1)]


def measure_noise(
    array: Any,
    unsound: Collection[int],
    n_threads: int,
    brightness: Brightness | None = None,
    check: Callable[[], None] = lambda: None,
) -> NoiseStatistics | None:
    """The noise of a movie, measured on stretches of frames spread over its length and its field.

    Parameters
    ----------
    array : zarr.Array, shape (n_frames, height, width)
        The movie; what is read lies on its chunks.
    unsound : collection of int
        Frames that do not count: blank, repeated, torn, not finite.
    n_threads : int
    brightness : Brightness, optional
        Which is divided out.
    check : callable
        Raises an error if a stop was asked for; asked in every thread.

    Returns
    -------
    NoiseStatistics or None
        None where there are no three sound frames in succession.
    """

    def sums(window: Window) -> list[float] | None:
        check()
        part = array[window]
        if not max(abs(float(part.max())), abs(float(part.min()))) < NOISE_LIMIT:  # nor is NaN
            return None
        accumulator = NoiseAccumulator()
        levels = None
        if brightness is not None:
            rows, columns = ((axis.start, axis.stop) for axis in window[1:])
            levels = brightness.at(window[0], rows, columns)
        accumulator.add(part, levels)
        return accumulator.sums()

    total = NoiseAccumulator()
    with ThreadPoolExecutor(n_threads) as pool:
        for found in pool.map(sums, noise_windows(array.shape, array.chunks, unsound)):
            if found is not None:
                total.merge(found)
    try:
        return total.result()
    except ValueError:
        return None


def measure_brightness(
    part_means: NDArray[np.float64],
    edges: tuple[NDArray[np.intp], NDArray[np.intp]],
    valid: NDArray[np.bool_],
    array: Any,
    n_threads: int,
    check: Callable[[], None] = lambda: None,
) -> tuple[Brightness, NoiseStatistics | None]:
    """Level of every frame of a movie, and the noise that is left without its changes.

    Each needs the other: the counting error of a level follows from the noise, and changes of the level look like
    noise. So both are measured twice where the beam is not steady.

    Parameters
    ----------
    part_means : ndarray, shape (n_frames, n_parts)
        Mean of every part of a frame [counts].
    edges : (ndarray of int, ndarray of int)
        Borders of the parts along rows and columns [pixels].
    valid : ndarray of bool, shape (n_frames,)
    array : zarr.Array, shape (n_frames, height, width)
    n_threads : int
    check : callable
        Raises an error if a stop was asked for.
    """
    unsound = set(np.flatnonzero(~valid).tolist())
    noise = measure_noise(array, unsound, n_threads, check=check)
    brightness = Brightness(np.ones(len(valid)), valid)
    for _ in range(2):
        if noise is None or not np.isfinite(noise.fano):
            break
        brightness = measure(part_means, edges, noise.fano * _of_sums(noise), valid)
        if brightness.is_even:
            break
        noise = measure_noise(array, unsound, n_threads, brightness, check)
    return brightness, noise


def _of_sums(noise: NoiseStatistics) -> float:
    """Variance of a sum over many pixels, over that of independent ones: more where neighbours share noise."""
    shared = sum(c.value for c in noise.correlations if c.t == 0 and c.matters)
    return max(1 + 2 * shared, 0.1)


def noise_windows(
    shape: tuple[int, int, int], chunk: tuple[int, int, int], unsound: Collection[int]
) -> list[Window]:
    """Parts of a movie to measure the noise on, in order of time, of whole chunks."""
    area = min(WINDOW, shape[1]) * min(WINDOW, shape[2])
    wanted = -(-NOISE_PIXELS // (NOISE_PLACES[1] * area))
    length = min(max(STRETCH[0], -(-wanted // chunk[0]) * chunk[0]), STRETCH[1])
    n_places = min(max(NOISE_PLACES[0], NOISE_PIXELS // (length * area)), NOISE_PLACES[1])
    starts = _starts(shape[0], length, n_places, chunk[0])
    windows = []
    for number, start in enumerate(starts):
        # Steps by the golden ratio and its square spread over the field, however many places there are.
        rows = _chunk_at(number * 0.618034 + 0.5, shape[1], chunk[1])
        columns = _chunk_at(number * 0.381966 + 0.5, shape[2], chunk[2])
        for sound in _sound(start, min(start + length, shape[0]), unsound):
            windows.append((sound, rows, columns))
    return windows


class Drift(NamedTuple):
    """How a scene moves."""

    moved: NDArray[np.float64]  # (n_frames, 2), since the first frame [pixels]
    every_n_frames: int  # that it was measured at; 1 where it jumps from frame to frame


class _Middle:
    """Frames of a part in the middle of the field, pixels joined; frames that are not sound are zero."""

    def __init__(
        self,
        array: Any,
        unsound: Collection[int],
        bad: NDArray[np.bool_] | None = None,
        check: Callable[[], None] = lambda: None,
    ) -> None:
        self._array, self._unsound, self.check = array, unsound, check
        self._part = tuple(
            _middle(n, chunk) for n, chunk in zip(array.shape[1:], array.chunks[1:], strict=True)
        )
        self._bad = np.zeros(array.shape[1:], bool)[self._part] if bad is None else bad[self._part]
        self.shape = (array.shape[0], *((part.stop - part.start) // DRIFT_BIN for part in self._part))

    def is_sound(self, frame: int) -> bool:
        return frame not in self._unsound

    def __getitem__(self, key: slice) -> NDArray[np.float32]:
        frames = range(*key.indices(self.shape[0]))
        out = np.zeros((len(frames), *self.shape[1:]), np.float32)
        # A few at a time: as they are stored they take more memory.
        for first in range(frames.start, frames.stop, READ_FRAMES):
            self.check()
            last = min(first + READ_FRAMES, frames.stop)
            read = np.array(self._array[first:last, *self._part], np.float32)
            sound = [frame for frame in range(first, last) if self.is_sound(frame)]
            kept = read[[frame - first for frame in sound]]
            with np.errstate(over="ignore", invalid="ignore"):  # what is not finite is left out later
                if sound and self._bad.any() and not self._bad.all():
                    kept[:, self._bad] = stand_ins(kept.mean(axis=0), self._bad)[self._bad]
                # Others stay zero: a constant image shows nothing.
                out[[frame - frames.start for frame in sound]] = bin_pixels(kept, DRIFT_BIN)
        return out


class _Groups:
    """Means of one and the other half of every few successive frames."""

    def __init__(self, frames: _Middle) -> None:
        self._frames, self.n_frames, self.check = frames, frames.shape[0], frames.check
        self.shape = (self.n_frames // DRIFT_FRAMES, 2, *frames.shape[1:])

    @property
    def times(self) -> NDArray[np.float64]:
        """Middle of every group [frames]."""
        return np.asarray(np.arange(self.shape[0]) * DRIFT_FRAMES + (DRIFT_FRAMES - 1) / 2)

    def __getitem__(self, key: slice) -> NDArray[np.float32]:
        groups = range(*key.indices(self.shape[0]))
        out = np.zeros((len(groups), *self.shape[1:]), np.float32)
        # A few groups at a time: their frames take more memory than their means.
        step = max(1, READ_FRAMES // DRIFT_FRAMES)
        for first in range(groups.start, groups.stop, step):
            last = min(first + step, groups.stop)
            begin = first * DRIFT_FRAMES
            frames = self._frames[begin : last * DRIFT_FRAMES]
            for group in range(first, last):
                for half in (0, 1):
                    wanted = range(group * DRIFT_FRAMES + half, (group + 1) * DRIFT_FRAMES, 2)
                    sound = [frame - begin for frame in wanted if self._frames.is_sound(frame)]
                    if sound:
                        with np.errstate(over="ignore", invalid="ignore"):
                            out[group - groups.start, half] = frames[sound].mean(axis=0, dtype=np.float32)
        return out


def measure_drift(
    array: Any,
    unsound: Collection[int],
    bad: NDArray[np.bool_] | None = None,
    check: Callable[[], None] = lambda: None,
) -> Drift | None:
    """How the scene moves; None where it does not show.

    From the mean of some frames at a time in the middle of the field; between these, along straight lines, unless
    single frames show that they jump. Pixels that are bad, shape (height, width), would hold it at zero: those around
    stand in for them. ``check`` raises an error if a stop was asked for.
    """
    middle = _Middle(array, unsound, bad, check)
    if min(middle.shape[1:]) < 8:
        return None
    course = _course(_Groups(middle))
    still = np.zeros((array.shape[0], 2))
    jumps = jitter(middle, still if course is None else course / DRIFT_BIN)
    if jumps is None:
        return None if course is None else Drift(course, DRIFT_FRAMES)
    moved = DRIFT_BIN * jumps + (0 if course is None else course)
    return Drift(np.asarray(moved - moved[0]), 1)


def _course(groups: _Groups) -> NDArray[np.float64] | None:
    """Where means of some frames lie, and between these along straight lines; None where the scene does not show."""
    if groups.shape[0] < 2:
        return None
    moved = DRIFT_BIN * drift(groups, groups.check)
    known = np.isfinite(moved[:, 0])
    if known.sum() < max(2, len(moved) / 2):
        return None
    at, moved = groups.times[known], moved[known]
    # Before the first and after the last group it goes on as between these and the next, for as long as a group; where
    # more is not known, it stays.
    ends = np.array([at[0] - DRIFT_FRAMES, at[-1] + DRIFT_FRAMES])
    slopes = (moved[[1, -1]] - moved[[0, -2]]) / (at[[1, -1]] - at[[0, -2]])[:, None]
    beyond = moved[[0, -1]] + slopes * (ends - at[[0, -1]])[:, None]
    at, moved = np.r_[ends[0], at, ends[1]], np.r_[beyond[:1], moved, beyond[1:]]
    frames = np.arange(groups.n_frames)
    return np.stack(
        [np.interp(frames, at, moved[:, k]) - np.interp(0, at, moved[:, k]) for k in (0, 1)], axis=1
    )


def _middle(size: int, chunk: int) -> slice:
    """At most `DRIFT_PIXELS` in the middle of an axis; of a large frame, within one chunk."""
    part = _chunk_at(0.5, size, chunk)
    extent = min(DRIFT_PIXELS, part.stop - part.start)
    start = part.start + (part.stop - part.start - extent) // 2
    return slice(start, start + extent)


def timing(stamps: NDArray[np.float64] | None) -> TimingAttributes | None:
    """What time stamps [s] say: the usual interval, whether it is kept, and after which frames some are lost."""
    if stamps is None or len(stamps) < 2:
        return None
    found, steps = intervals(stamps), np.diff(stamps)
    usual = found.usual_s
    even = usual is not None and bool((abs(steps - usual) <= UNEVEN * usual).all())
    return {
        "interval_s": usual if usual is None else float(f"{usual:.9g}"),
        "uneven": not even,
        "dropped_after": found.longer.tolist(),
        "n_dropped": found.n_lost,
    }


def _starts(n_frames: int, length: int, n_places: int, step: int) -> list[int]:
    """First frames of at most ``n_places`` stretches that do not overlap, on the borders of chunks."""
    n = max(1, min(n_places, n_frames // length))
    last = max(0, n_frames - length) // step
    return sorted({int(i) * step for i in np.linspace(0, last, n).round()})


def _chunk_at(position: float, size: int, chunk: int) -> slice:
    """The whole chunk at a relative position (modulo 1) along an axis."""
    n = max(1, size // chunk)
    start = int(position % 1 * n) * chunk
    return slice(start, min(start + chunk, size))


def _sound(start: int, stop: int, unsound: Collection[int]) -> Iterator[slice]:
    """Runs of at least three frames without an unsound one."""
    begin = start
    for frame in range(start, stop + 1):
        if frame == stop or frame in unsound:
            if frame - begin >= 3:
                yield slice(begin, frame)
            begin = frame + 1
