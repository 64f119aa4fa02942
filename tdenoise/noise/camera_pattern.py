"""What a camera leaves on every frame: bad pixels, and what stands in for them; the pattern of gains.

Both stay in place while the sample moves, so a network that sees neighbour frames would take them for signal.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.ndimage import binary_dilation, uniform_filter

from .bad_pixels import DEAD_ELECTRONS, PixelStatistics, dead_pixels, hot_pixels, is_lost, lost_in
from .noise import FEWEST_BLOCKS

Array = NDArray[Any]

DARKER = 3.0  # times as many electrons as needed are waited for on average: some parts of a field are darker
PATTERN_BLOCK = 32  # pixels on a side whose sums count as one independent sample
# Passes what differs from pixel to pixel, next to nothing of a scene that the lens has blurred.
_FINEST = np.array([[1.0, -2.0, 1.0], [-2.0, 4.0, -2.0], [1.0, -2.0, 1.0]]) / 6.0


@dataclass(frozen=True)
class FixedPattern:
    """Spread of the pixels' gains, as a share of the mean counts."""

    spread: float  # standard deviation of gain / mean gain; NaN where the mean counts are not positive
    variance: float  # its square as estimated, which chance can make negative (the spread is 0 then)
    error: float  # half the width of the 95 % interval of the variance

    @property
    def matters(self) -> bool:
        """True where the pattern is beyond chance and above 1 % of the counts."""
        return bool(self.variance > max(2 * self.error, 1e-4))


class PixelAccumulator:
    """Mean and noise of every pixel, from groups of successive frames spread over the movie.

    Memory is that of some float64 frames, however many are added.

    Examples
    --------
    >>> frames = np.random.default_rng(0).poisson(2.0, (40, 32, 32))
    >>> frames[:, 5, 7] = 4000
    >>> pixels = PixelAccumulator((32, 32))
    >>> pixels.add(frames)
    >>> np.argwhere(pixels.bad_pixels()).tolist()
    [[5, 7]]
    """

    def __init__(self, shape: tuple[int, int]) -> None:
        self._totals = np.zeros((2, *shape))  # of the first and the second frames of all pairs
        self._changes = np.zeros(shape)
        self._brightest = np.full(shape, -np.inf)  # pair of every pixel
        self._peak: Array | None = None  # of every pixel
        self._lost = np.ones(shape, dtype=bool)  # in all frames
        self._absent = np.zeros(shape, dtype=np.int32)  # pairs without a number
        self._n_pairs = 0
        self._n_still = 0  # pairs of frames that are the same bit by bit

    def add(self, frames: Array) -> None:
        """Add successive frames, shape (n, height, width) [counts]; they are taken in pairs.

        Pairs with a frame that is blank or all lost tell nothing of the pixels and are passed over; one that
        repeats its first frame tells of the mean, and nothing of the noise.
        """
        # Exact for the sum of two 16-bit counts, and twice as fast.
        wide = np.float32 if frames.dtype.itemsize <= 2 else np.float64
        for one, other in zip(frames[0:-1:2], frames[1::2], strict=True):
            lost = [lost_in(frame) for frame in (one, other)]
            if any(_is_blank(frame, where) for frame, where in zip((one, other), lost, strict=True)):
                continue
            self._lost &= False if lost[0] is None or lost[1] is None else lost[0] & lost[1]
            absent = None
            if frames.dtype.kind == "f" and any(where is not None for where in lost):
                absent = is_lost(one) | is_lost(other)
                one, other = (np.where(absent, 0, frame) for frame in (one, other))
                self._absent += absent
            sums = np.add(one, other, dtype=wide)
            changes = np.subtract(other, one, dtype=wide)
            self._n_pairs += 1
            self._n_still += not changes.any()
            self._totals[0] += one
            self._totals[1] += other
            self._changes += np.square(changes, out=changes)
            if absent is not None:
                sums[absent] = -np.inf
            np.maximum(self._brightest, sums, out=self._brightest)
            peak = np.maximum(one, other)
            self._peak = peak if self._peak is None else np.maximum(self._peak, peak, out=self._peak)

    @property
    def undecided(self) -> bool:
        """Whether some pixel has not changed yet, and more frames would tell if that is chance."""
        if self._n_pairs == self._n_still:
            return False
        still = (self._changes == 0) & ~self._lost & (self._absent == 0)
        if not still.any():
            return False
        noise, mean = (
            float(self._changes.mean()) / (2 * self._n_pairs),
            float(self._totals.mean()) / self._n_pairs,
        )
        seen = 2 * self._n_pairs * min(noise, mean**2 / noise if noise > 0 else 0.0)
        return seen < DARKER * DEAD_ELECTRONS

    def mean(self) -> Array:
        """Mean of every pixel [counts]; of one without counts, that of those around it."""
        return self._filled(self._totals.sum(axis=0) / np.maximum(1, 2 * (self._n_pairs - self._absent)))

    def statistics(self) -> PixelStatistics | None:
        """What tells sound pixels from others; None where no two frames differ, or no pixel has counts."""
        moving = self._n_pairs - self._n_still
        if moving == 0 or self._unknown.all():
            return None
        mean, n_pairs = self.mean(), self._n_pairs - self._absent
        steady = (2 * n_pairs * mean - self._brightest) / np.maximum(1, 2 * (n_pairs - 1))
        steady = self._filled(np.where(n_pairs > 1, steady, mean))
        variance = self._filled(self._changes / (2 * np.maximum(1, moving - self._absent)))
        return PixelStatistics(mean, steady, variance, moving, self._lost.copy(), self._peak)

    @property
    def _unknown(self) -> NDArray[np.bool_]:
        """Pixels that have no counts in most of the frames."""
        return np.asarray(self._lost | (2 * self._absent > self._n_pairs))

    def _filled(self, values: Array) -> Array:
        """The same, with the level around them where pixels have no counts: those must not look like anything."""
        unknown = self._unknown
        if not unknown.any() or unknown.all():
            return values
        return np.where(unknown, stand_ins(values, unknown), values)

    def bad_pixels(self) -> NDArray[np.bool_]:
        """Hot, dead and lost pixels, a bool array of shape (height, width)."""
        found = self.statistics()
        if found is None:
            return np.zeros(self._changes.shape, dtype=bool)
        return hot_pixels(found) | dead_pixels(found) | self._lost

    def fixed_pattern(self) -> FixedPattern:
        """Spread of the gains of neighbouring pixels.

        The finest differences between pixels (second differences in both directions) of the mean of the first
        frames of all pairs, times those of the second frames: shot noise is independent in the two and drops out
        on average, the sample is too smooth to pass, and gains that differ from pixel to pixel remain. Bad pixels
        are left out.

        Raises
        ------
        ValueError
            If no pair of frames was added.
        """
        if self._n_pairs == 0:
            raise ValueError("a fixed pattern shows in two frames or more")
        bad = self.bad_pixels()
        mean = self.mean()
        level = float(mean[~bad].mean())
        if not level > 0:
            return FixedPattern(np.nan, np.nan, np.nan)
        values = np.where(bad, stand_ins(mean, bad), mean)
        sound = ~_near(bad)
        n_pairs = np.maximum(1, self._n_pairs - self._absent)
        halves = [np.where(bad | self._unknown, values, total / n_pairs) for total in self._totals]
        fine = [_finest(half) for half in halves]
        product = fine[0] * fine[1] * sound[1:-1, 1:-1] / level**2
        weight = sound[1:-1, 1:-1].astype(np.float64)
        rows, columns = (range(0, n, PATTERN_BLOCK) for n in product.shape)
        sums, counts = (
            np.add.reduceat(np.add.reduceat(a, rows, axis=0), columns, axis=1).ravel()
            for a in (product, weight)
        )
        variance = float(sums.sum() / counts.sum())
        n = len(sums)
        scatter = np.square(sums - variance * counts).sum() * n / (n - 1) if n > FEWEST_BLOCKS else np.inf
        return FixedPattern(
            spread=float(np.sqrt(max(variance, 0.0))),
            variance=variance,
            error=float(1.96 * np.sqrt(scatter) / counts.sum()),
        )


def _is_blank(frame: Array, lost: NDArray[np.bool_] | None) -> bool:
    """Whether all pixels of a frame that hold a count hold the same, or none does."""
    values = frame if lost is None else frame[~lost]
    return bool(values.size == 0 or values.min() == values.max())


def _finest(image: Array) -> Array:
    """What differs from pixel to pixel, one pixel smaller on every side; white noise keeps its variance."""
    height, width = image.shape[0] - 2, image.shape[1] - 2
    out: Array = np.zeros((height, width))
    for (y, x), weight in np.ndenumerate(_FINEST):
        out += weight * image[y : y + height, x : x + width]
    return out


def _near(mask: NDArray[np.bool_]) -> NDArray[np.bool_]:
    """Pixels of a mask and those around them."""
    found: NDArray[np.bool_] = binary_dilation(mask, np.ones((3, 3)))
    return found


def stand_ins(mean: Array, bad: NDArray[np.bool_]) -> NDArray[np.float32]:
    """What a network is shown in place of bad pixels: one level per pixel, the same in every frame.

    The level is the mean over time of the sound pixels around it. It must not be taken from the frame itself:
    that would show the noise of a pixel to its own prediction, by way of the bad pixel beside it.

    Parameters
    ----------
    mean : ndarray, shape (height, width)
        Mean of every pixel over many frames [counts].
    bad : ndarray of bool, same shape

    Returns
    -------
    ndarray of float32, same shape
        [counts]; NaN where the pixel is sound.

    Raises
    ------
    ValueError
        If no pixel is sound.
    """
    if bad.all():
        raise ValueError("no pixel of the movie measures anything")
    levels = np.full(mean.shape, np.nan, dtype=np.float32)
    room = float(np.finfo(np.float32).max)  # damaged numbers are larger, and their means, too
    sound = np.where(bad, 0.0, np.clip(mean, -room, room))
    size = 3
    while (missing := bad & np.isnan(levels)).any():
        if size > 2 * max(mean.shape):
            levels[missing] = sound[~bad].mean()
            break
        share = uniform_filter((~bad).astype(np.float64), size, mode="constant")
        near = missing & (share > 0.5 / size**2)
        levels[near] = (uniform_filter(sound, size, mode="constant")[near] / share[near]).astype(np.float32)
        size = 2 * size - 1
    return levels
