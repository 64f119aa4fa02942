"""What was removed from a movie, summed over time in the scene's own frame, and what is given back of it."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from .local_means import Array, mean_over, ratio

AROUND = 4.0  # over which squares are averaged [pixels]; over fewer frames than these, over more pixels
ENOUGH_FRAMES = 64


def corners(
    drift: NDArray[np.floating] | None, n_frames: int, field: tuple[int, int]
) -> tuple[NDArray[np.intp], tuple[int, int]]:
    """Where every frame lies in the frame of the scene, which holds them all.

    Parameters
    ----------
    drift : ndarray, shape (n_frames, 2), or None
        How the scene moves [pixels]; see `tdenoise.noise.drift`.
    n_frames : int
    field : (int, int)
        Rows and columns of a frame.

    Returns
    -------
    corners : ndarray of int, shape (n_frames, 2)
        Row and column of the first pixel of every frame.
    shape : (int, int)
        Rows and columns of the frame of the scene.
    """
    if drift is None:
        return np.zeros((n_frames, 2), dtype=np.intp), field
    moved = np.rint(drift).astype(np.intp)
    found = moved.max(axis=0) - moved
    extent = found.max(axis=0)
    return found, (field[0] + int(extent[0]), field[1] + int(extent[1]))


@dataclass
class Evidence:
    """Sums over time of what was removed, in the frame of the scene; those of parts of a movie add up.

    Rows and columns are counted from ``origin``, which lies above and to the left of the field where the scene drifts.
    """

    residual: NDArray[np.float64]  # (rows, columns), counts less denoised [counts]
    square: NDArray[np.float64]  # of the residuals [counts^2]
    shown: NDArray[np.float64]  # what was denoised [counts]
    level: NDArray[np.float64]  # of the frames that show this place

    @classmethod
    def empty(cls, shape: tuple[int, int]) -> Evidence:
        """Of no frames yet."""
        return cls(*(np.zeros(shape) for _ in range(4)))

    def add(
        self,
        counts: Array,
        denoised: Array,
        level: float | Array,
        corner: tuple[int, int],
        sound: Array | None = None,
    ) -> None:
        """Take in one frame, or a part of it.

        Parameters
        ----------
        counts, denoised : ndarray, shape (height, width)
            [counts]
        level : float or ndarray, shape (height, width)
            Of the frame, or of its pixels; see `tdenoise.noise.brightness`.
        corner : (int, int)
            Row and column of its first pixel, from the origin.
        sound : ndarray of bool, shape (height, width), optional
            Pixels that count; all of them if not given.
        """
        residual = np.subtract(counts, denoised, dtype=np.float32)
        shown = denoised
        if sound is not None:
            residual, shown = (np.where(sound, values, np.float32(0)) for values in (residual, shown))
        here = tuple(slice(c, c + n) for c, n in zip(corner, residual.shape, strict=True))
        self.residual[here] += residual
        self.square[here] += np.square(residual)
        self.shown[here] += shown
        self.level[here] += level if sound is None else level * sound

    @property
    def arrays(self) -> tuple[NDArray[np.float64], ...]:
        """All sums, in the order in which they are given to make another one."""
        return self.residual, self.square, self.shown, self.level

    def merge(self, part: Evidence, corner: tuple[int, int]) -> None:
        """Add the sums over a part of the field, or over other frames."""
        here = tuple(slice(c, c + n) for c, n in zip(corner, part.residual.shape, strict=True))
        for own, other in zip(self.arrays, part.arrays, strict=True):
            own[here] += other

    def after(self, given: GivenBack) -> Evidence:
        """The sums as they are when something has been given back to all frames."""
        change = given.mean * self.level
        return Evidence(self.residual - change, self.square, self.shown + change, self.level)

    @property
    def mean(self) -> NDArray[np.float64]:
        """Mean residual at a level of 1 [counts]."""
        return ratio(self.residual, self.level)

    @property
    def image(self) -> NDArray[np.float64]:
        """Mean of what was denoised at a level of 1 [counts]; where nothing was, the mean of all."""
        everywhere = float(self.shown.sum() / max(self.level.sum(), 1e-12))
        return np.where(self.level > 0, ratio(self.shown, self.level), everywhere)

    @property
    def variance(self) -> NDArray[np.float64]:
        """Of the mean residual if it is nothing but noise [counts^2].

        The squares of few residuals say little: what they are over the counts, and that changes little from place to
        place, is taken from the pixels around.
        """
        floor = 0.05 * float(self.shown.sum() / max(self.level.sum(), 1e-12))
        expected = np.maximum(self.shown, max(floor, 1e-12) * self.level)
        seen = self.level > 0
        n_frames = float(self.level.sum() / max(1, seen.sum()))
        around = AROUND * max(1.0, np.sqrt(ENOUGH_FRAMES / max(n_frames, 1.0)))
        factor = ratio(mean_over(self.square, seen, around), mean_over(expected, seen, around))
        return ratio(factor * expected, np.square(self.level))


@dataclass(frozen=True)
class GivenBack:
    """What is added to every frame, at a level of 1; linear in the residuals, so that a frame's own can be left out."""

    mean: NDArray[np.float32]  # (rows, columns), from all frames [counts]
    own: NDArray[np.float32]  # share of its own residual that a pixel has in it
    level: NDArray[np.float32]  # sum over the frames that show this place

    def to_frame(
        self,
        counts: Array,
        denoised: Array,
        level: float | Array,
        corner: tuple[int, int],
        valid: bool = True,
        sound: Array | None = None,
    ) -> NDArray[np.float32]:
        """A frame, or a part of it, with what the other frames give back to it.

        Parameters
        ----------
        counts, denoised : ndarray, shape (height, width)
            [counts]
        level : float or ndarray, shape (height, width)
        corner : (int, int)
            Row and column of the first pixel, as in `Evidence.add`.
        valid : bool
            Whether the frame was one of those that were summed.
        sound : ndarray of bool, shape (height, width), optional
            Pixels that were summed; all of them if not given.
        """
        here = tuple(slice(c, c + n) for c, n in zip(corner, denoised.shape, strict=True))
        others: Array = self.level[here]
        level = np.asarray(level, np.float32)
        total: Array = self.mean[here] * others
        if valid:
            own = self.own[here] if sound is None else self.own[here] * sound
            total = total - own * np.subtract(counts, denoised, dtype=np.float32)
            others = others - level * own
        mean = np.divide(total, others, out=np.zeros_like(total), where=others > 0.5 * level)
        return np.asarray(denoised + level * mean, np.float32)
