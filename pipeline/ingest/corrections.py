"""Corrections of raw frames: dark, gain, bad pixels, X-ray hits, sums of pixels and of frames, in this order."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from tdenoise.noise.bad_pixels import (
    HitFinder,
    Patches,
    PixelStatistics,
    clipping,
    dead_lines,
    dead_pixels,
    hot_pixels,
    lost_in,
    single_pixels,
)

from ..errors import InputError, UsageError
from ..settings.ingest_settings import Preparation
from .references import file_sha256, read_defects, read_reference

MAX_HITS = 1000  # per frame; more are no X-rays
MAX_FOUND = (
    10,
    0.002,
)  # hot and dead pixels: a number and a share; more than both are no fault of the camera

Map = NDArray[np.float64]


@dataclass(frozen=True)
class Hit:
    """An X-ray hit: where it was in the raw movie, and what the pixel said."""

    frame: int
    row: int
    column: int
    value: float


@dataclass(frozen=True)
class References:
    """What the files named in the settings say about the camera, for the whole field; None if not named."""

    dark: Map | None  # (height, width) [counts], subtracted
    gain: Map | None  # (height, width), multiplied
    bad: NDArray[np.bool_]  # (height, width), of the defect map, and where the gain is 0 or not finite
    sources: dict[str, dict[str, Any]]  # name, sha256 and orientation of each file

    @classmethod
    def of(cls, config: Preparation, shape: tuple[int, int]) -> References:
        """Read the references of a movie with frames of this shape (height, width).

        Raises
        ------
        InputError
            If one cannot be read, or does not fit the movie.
        """
        dark = gain = None
        bad = np.zeros(shape, dtype=bool)
        if config.dark is not None:
            dark = read_reference(config.dark, "dark reference", shape)
            if not np.isfinite(dark).all():
                raise InputError(config.dark, "the dark reference holds NaN or Inf. Record it again.")
        if config.gain is not None:
            gain = read_reference(config.gain, "gain reference", shape, config.gain_orientation)
            # Counting cameras mark pixels that they do not use so.
            bad |= ~np.isfinite(gain) | (gain <= 0)
            gain = np.where(bad, 1.0, gain)
        if config.defects is not None:
            bad |= read_defects(config.defects, shape)
        named = {"dark": config.dark, "gain": config.gain, "defects": config.defects}
        sources = {
            kind: {"name": p.name, "sha256": file_sha256(p)} for kind, p in named.items() if p is not None
        }
        if "gain" in sources:
            sources["gain"]["orientation"] = config.gain_orientation
        return cls(dark, gain, bad, sources)

    def linear(self, rows: slice, columns: slice) -> Linear:
        """The part for a part of the field."""
        parts = [None if m is None else m[rows, columns] for m in (self.dark, self.gain)]
        return Linear(*parts)


@dataclass(frozen=True)
class Linear:
    """``(raw - dark) * gain``, in a type that holds the result."""

    dark: Map | None
    gain: Map | None

    def result_type(self, raw: np.dtype[Any]) -> np.dtype[Any]:
        """Whole numbers stay whole where the references are; else float32, or float64 for 32-bit counts.

        Raises
        ------
        UsageError
            If no type holds all results.
        """
        maps = [m for m in (self.dark, self.gain) if m is not None]
        if not maps:
            return raw
        if raw.kind == "f" or not all(np.array_equal(m, np.rint(m)) for m in maps):
            return np.result_type(raw, np.float32)
        limits = np.iinfo(raw)
        low, high = int(limits.min), int(limits.max)
        if self.dark is not None:
            low, high = low - int(self.dark.max()), high - int(self.dark.min())
        if self.gain is not None:
            products = [bound * int(g) for bound in (low, high) for g in (self.gain.min(), self.gain.max())]
            low, high = min(products), max(products)
        return _integer_type(low, high, raw)

    def apply(self, raw: NDArray[Any], dtype: np.dtype[Any]) -> NDArray[Any]:
        """Corrected frames, of the type that `result_type` gives. Nothing is clipped: counts may be negative."""
        if self.dark is None and self.gain is None:
            return raw
        counts = raw.astype(dtype)
        if self.dark is not None:
            counts -= self.dark.astype(dtype)
        if self.gain is not None:
            counts *= self.gain.astype(dtype)
        return counts

    def statistics(self, raw: PixelStatistics) -> PixelStatistics:
        """What `apply` makes of mean and variance."""
        if self.dark is None and self.gain is None:
            return raw
        dark = 0.0 if self.dark is None else self.dark
        gain = 1.0 if self.gain is None else self.gain
        return replace(
            raw,
            mean=(raw.mean - dark) * gain,
            steady=(raw.steady - dark) * gain,
            variance=raw.variance * gain**2,
        )


@dataclass(frozen=True)
class Corrections:
    """All that happens to the pixels of one movie, decided before the first of them is written.

    Attributes
    ----------
    linear : Linear
    dtype : dtype
        Of frames that are corrected but not summed.
    hot, dead, lost, listed : ndarray of bool, shape (height, width)
        Pixels found to be hot or dead or without a count in any frame, and those that the references name.
    n_suspect : int
        Pixels that look hot or dead, but are so many that they are taken for a part of the scene.
    clipped : (float, int) or None
        Value at which the raw counts are cut off, and the number of pixels that reach it.
    patches : Patches
        Replaces those that are to be replaced.
    clears : bool
        What is no count in single frames becomes NaN.
    hits : HitFinder or None
    replace_hits : bool
    bin, group : int
        Pixels along each side, and frames, that are summed.
    """

    linear: Linear
    dtype: np.dtype[Any]
    hot: NDArray[np.bool_]
    dead: NDArray[np.bool_]
    lost: NDArray[np.bool_]
    listed: NDArray[np.bool_]
    n_suspect: int
    clipped: tuple[float, int] | None
    patches: Patches
    clears: bool
    hits: HitFinder | None
    replace_hits: bool
    bin: int
    group: int

    @property
    def bad(self) -> NDArray[np.bool_]:
        """All bad pixels (height, width), replaced or not."""
        return self.hot | self.dead | self.lost | self.listed

    @property
    def changes_nothing(self) -> bool:
        """Whether frames can go from the reader to the store as they are."""
        linear = self.linear.dark is not None or self.linear.gain is not None
        return not (linear or self.bin > 1 or self.group > 1)

    def apply(self, raw: NDArray[Any], first: int) -> tuple[NDArray[Any], list[Hit]]:
        """Correct successive raw frames; they may be changed in place.

        Parameters
        ----------
        raw : ndarray, shape (n, height, width)
            C-contiguous.
        first : int
            Number of the first one in the raw movie.

        Returns
        -------
        counts : ndarray, shape (n, height, width)
            Of type ``dtype``.
        hits : list of Hit
            X-ray hits that were seen, positions within these frames' field.
        """
        counts = self.linear.apply(raw, self.dtype)
        self.patches.apply(counts, first)
        if self.clears and counts.dtype.kind == "f":
            for frame in counts:
                if (where := lost_in(frame)) is not None:
                    frame[where] = np.nan
        hits: list[Hit] = []
        if self.hits is not None:
            for number, frame in enumerate(counts, start=first):
                hits += self._strike(self.hits, frame, number)
        return counts, hits

    def _strike(self, finder: HitFinder, frame: NDArray[Any], number: int) -> list[Hit]:
        """Find the X-ray hits in a frame, and replace them by a sound neighbour each."""
        places = finder.find(frame)
        if not 0 < len(places) <= MAX_HITS:
            return []
        hits = [Hit(number, int(y), int(x), float(frame[y, x])) for y, x in places]
        if self.replace_hits:
            struck = np.zeros(frame.shape, dtype=bool)
            struck[tuple(places.T)] = True
            Patches(struck).apply(frame[None], number)
        return hits


def plan_corrections(
    config: Preparation,
    references: References,
    raw: np.dtype[Any],
    field: tuple[slice, slice],
    n_frames: int,
    statistics: PixelStatistics | None,
) -> Corrections:
    """Decide on everything that is done to the pixels of a movie.

    Parameters
    ----------
    config : Preparation
    references : References
    raw : dtype
        Of the raw frames.
    field : (slice, slice)
        Rows and columns that are kept.
    n_frames : int
        That are kept.
    statistics : PixelStatistics or None
        Of raw frames in that part of the field; None where no sound frames were found.
    """
    linear = references.linear(*field)
    listed = references.bad[field]
    corrected = None if statistics is None else linear.statistics(statistics)
    bad = _bad_pixels(listed, statistics, corrected, raw)
    replaced = listed if config.keep_defects else listed | bad.hot | bad.dead | bad.lost
    hits = None
    if corrected is not None:
        hits = HitFinder(corrected, n_frames * listed.size, (bad.found | bad.hot | bad.lost) & ~replaced)
    counted = raw.kind in "ui" and statistics is not None and statistics.counts_electrons
    try:
        patches = Patches(replaced, bad.lost | bad.hot)
    except ValueError as error:
        culprit = config.defects or config.gain
        hint = "is the map inverted?" if culprit is not None else "keep them with --keep-defects."
        raise UsageError(f"{culprit or 'bad pixels'}: {error}; {hint}") from None
    return Corrections(
        linear=linear,
        dtype=linear.result_type(raw),
        hot=bad.hot,
        dead=bad.dead,
        lost=bad.lost,
        listed=listed,
        n_suspect=bad.n_suspect,
        clipped=bad.clipped,
        patches=patches,
        clears=not config.keep_defects,
        hits=hits,
        replace_hits=config.xray == "replace" or (config.xray == "auto" and counted),
        bin=config.bin,
        group=config.group,
    )


class _BadPixels(NamedTuple):
    """What the statistics of raw frames say of pixels; maps have shape (height, width)."""

    hot: NDArray[np.bool_]
    dead: NDArray[np.bool_]
    lost: NDArray[np.bool_]
    found: NDArray[np.bool_]  # hot or dead, also where these are too many to be the camera's
    n_suspect: int  # of those, where they are too many
    clipped: (
        tuple[float, int] | None
    )  # value at which counts were cut off, and the number of pixels that reach it


def _bad_pixels(
    listed: NDArray[np.bool_],
    statistics: PixelStatistics | None,
    corrected: PixelStatistics | None,
    raw: np.dtype[Any],
) -> _BadPixels:
    """Find pixels that are not those listed already, in raw and in corrected frames."""
    none = np.zeros(listed.shape, dtype=bool)
    if statistics is None or corrected is None:
        return _BadPixels(none, none, none, none, 0, None)
    lost = none if statistics.lost is None else statistics.lost & ~listed
    apart = listed | lost
    hot, dead = hot_pixels(corrected) & ~apart, dead_pixels(corrected) & ~apart
    lines = dead_lines(corrected) & ~apart  # whole ones are the camera's, however many pixels that makes
    clipped = clipping(statistics, apart | hot | dead)
    found = hot | dead
    n_suspect = int((found & ~lines).sum())
    if n_suspect > max(MAX_FOUND[0], MAX_FOUND[1] * listed.size):
        hot, dead = none, lines
    else:
        n_suspect = 0
    if raw.kind in "ui" and statistics.peak is not None:
        # A single pixel that always says the most is called what it is.
        stuck = single_pixels(lost) & (statistics.peak == np.iinfo(raw).max)
        hot, lost = hot | stuck, lost & ~stuck
    return _BadPixels(hot, dead, lost, found, n_suspect, clipped)


def bin_pixels(frames: NDArray[Any], n: int) -> NDArray[Any]:
    """Sum squares of ``n x n`` pixels; rows and columns that do not fill a square are left out.

    Examples
    --------
    >>> bin_pixels(np.ones((1, 5, 4), dtype=np.uint8), 2).tolist()
    [[[4, 4], [4, 4]]]
    """
    if n == 1:
        return frames
    n_frames, height, width = frames.shape[0], frames.shape[1] // n, frames.shape[2] // n
    squares = frames[:, : height * n, : width * n].reshape(n_frames, height, n, width, n)
    # Rows first: long runs of pixels are added, and only then short ones.
    dtype = summed_type(frames.dtype, n * n)
    rows: NDArray[Any] = squares.sum(axis=2, dtype=dtype)
    return np.asarray(rows.sum(axis=3, dtype=dtype))


def summed_type(dtype: np.dtype[Any], n: int) -> np.dtype[Any]:
    """A type that holds the sum of any ``n`` values.

    Raises
    ------
    UsageError
        If there is none.

    Examples
    --------
    >>> summed_type(np.dtype("uint8"), 4), summed_type(np.dtype("float32"), 4)
    (dtype('uint16'), dtype('float32'))
    """
    if n == 1 or dtype.kind == "f":
        return dtype
    limits = np.iinfo(dtype)
    return _integer_type(int(limits.min) * n, int(limits.max) * n, dtype)


def _integer_type(low: int, high: int, like: np.dtype[Any]) -> np.dtype[Any]:
    """The smallest integer type with room for a range; ``like`` itself if it has."""
    for name in (like.name, "uint8", "int8", "uint16", "int16", "uint32", "int32", "uint64", "int64"):
        limits = np.iinfo(name)
        if limits.min <= low and high <= limits.max:
            return np.dtype(name)
    raise UsageError(f"corrected or summed {like} counts may exceed 64 bits. Sum fewer pixels or frames.")
