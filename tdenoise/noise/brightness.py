"""How bright every frame is, and which frames were recorded at all.

The beam flickers, steps and decays, and cameras drop frames. A network that expects one brightness takes such changes
for the scene. So the level of each frame is measured from its own counts before anything else: it is divided out of
what a network sees, and multiplied back into what it predicts. Frames that were not recorded are left out of every
window.

The level of a frame holds each of its pixels with a weight of one over the number of pixels; this is all that a
blind-spot prediction learns about its own pixel.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.fft import dct, idct
from scipy.ndimage import uniform_filter1d

from .neighbour_frames import window_indices

Array = NDArray[Any]

AROUND = 20  # frames before and after, with which a part of the field is compared
ROUNDS = 4  # of comparing
OUTLIER = 4.7  # standard deviations, beyond which a part of the field has changed by itself
JUMP = 4.0  # standard deviations from its smooth course, beyond which a level is taken as it is measured
FARTHEST = 1.5  # standard deviations that a level may be moved from its measured value


@dataclass(frozen=True)
class Brightness:
    """Level of every frame, relative to the mean of the movie; and whether the frame was recorded whole."""

    levels: NDArray[np.float64]  # (n_frames,), above 0
    valid: NDArray[np.bool_]  # (n_frames,)

    @classmethod
    def steady(cls, n_frames: int) -> Brightness:
        """Of a movie whose frames are all there and equally bright."""
        return cls(np.ones(n_frames), np.ones(n_frames, dtype=bool))

    @property
    def is_steady(self) -> bool:
        """Whether no frame has to be treated otherwise than the others."""
        return bool(self.valid.all() and (self.levels == 1).all())

    def window(self, centre: int, window: int) -> tuple[NDArray[np.intp], int]:
        """Frames that stand around a centre frame, and the frame that stands for the centre itself.

        Frames that are not valid are passed over: those further away take their places, but none further than
        ``window``. In place of a centre frame that is not valid stands the nearest valid one.

        Parameters
        ----------
        centre : int
            Number of the frame to predict, from 0.
        window : int
            Neighbours on each side.

        Returns
        -------
        indices : ndarray of int, shape (2 * window,)
            As from `tdenoise.network.split_blind.window_indices`.
        own : int
            Number of the frame that is shown as the centre.

        Raises
        ------
        LookupError
            If fewer than three valid frames lie within ``window`` of the centre.
        """
        if self.valid.all():
            return window_indices(centre, len(self.valid), window), centre
        first = max(0, centre - window)
        near = first + np.flatnonzero(self.valid[first : centre + window + 1])
        if len(near) < 3:
            raise LookupError(f"fewer than three sound frames lie within {window} frames of frame {centre}")
        rank = int(np.abs(near - centre).argmin())
        return near[window_indices(rank, len(near), window)], int(near[rank])

    def around(self, window: int) -> NDArray[np.float64]:
        """Mean level of the valid frames around each frame, itself included, shape (n_frames,).

        It is the share of the movie's dose at which a frame is seen.
        """
        if (self.levels == 1).all():
            return np.ones(len(self.levels))
        n = len(self.levels)
        weights = self.valid.astype(float)
        sums = np.concatenate([[0.0], np.cumsum(self.levels * weights)])
        numbers = np.concatenate([[0.0], np.cumsum(weights)])
        first = np.clip(np.arange(n) - window, 0, n)
        last = np.clip(np.arange(n) + window + 1, 0, n)
        total = numbers[last] - numbers[first]
        mean = (sums[last] - sums[first]) / np.maximum(total, 1)
        return np.asarray(np.where(total > 0, mean, 1.0))


def measure(means: Array, n_pixels: Array, fano: float, valid: NDArray[np.bool_]) -> Brightness:
    """Level of every frame, from the means of parts of the field.

    A particle that flashes is no flicker of the beam: where a few parts of the field differ from their own course
    and the others do not, those few do not count (the biweight of Beaton & Tukey 1974).

    Parameters
    ----------
    means : ndarray, shape (n_frames, n_parts)
        Mean of every part of a frame, without bad pixels [counts]. The parts cover the field.
    n_pixels : ndarray, shape (n_parts,)
        Pixels in each mean.
    fano : float
        Variance of a pixel over its mean [counts].
    valid : ndarray of bool, shape (n_frames,)
        Frames that were recorded whole; the others get the level of the frames around them.

    Returns
    -------
    Brightness
        With levels whose mean over the valid frames is 1. They are moved towards a smooth course as far as their
        counting error allows: a steady movie gets levels of exactly 1.
    """
    n_frames = len(means)
    used = np.flatnonzero(valid)
    seen = np.asarray(means, np.float64)[used][:, np.asarray(n_pixels) > 0]
    weight = np.asarray(n_pixels, np.float64)[np.asarray(n_pixels) > 0]
    total = seen @ weight / weight.sum() if seen.size else np.zeros(len(used))
    if len(used) < 3 or not (np.isfinite(seen).all() and total.mean() > 0 and (total > 0).all()):
        # Without counts there is no level; negative ones are not from a beam alone.
        return Brightness(np.ones(n_frames), valid.copy())
    course = total / total.mean()
    error = np.sqrt(max(fano, 0.0) / (weight.sum() * total.mean() * course))  # relative, of each frame
    course = course * np.exp(_common_change(seen, weight, course, max(fano, 0.0)))
    logs = np.log(course)
    smooth = _shrunk(logs - np.average(logs, weights=course), error)
    levels = np.exp(smooth)
    if np.allclose(levels, levels[0], rtol=1e-6):
        levels = np.ones(len(used))
    everywhere = np.interp(np.arange(n_frames), used, levels / levels.mean())
    return Brightness(everywhere, valid.copy())


def _common_change(seen: Array, weight: Array, course: Array, fano: float) -> Array:
    """By how much the logarithm of a level must change, so that it is that of most parts of the field."""
    change = np.zeros(len(course))
    if seen.shape[1] < 4:
        return change
    span = min(2 * AROUND + 1, len(course) // 2 * 2 - 1)
    for _ in range(ROUNDS):
        level = course * np.exp(change)
        own = uniform_filter1d(seen / level[:, None], span, axis=0, mode="nearest")  # of each part, over time
        sound = own > 0
        expected = np.where(sound, own, 1.0) * level[:, None]
        ratio = np.where(sound, seen / expected - 1, 0.0)
        scatter = np.sqrt(fano / (expected * weight))
        common = np.median(ratio, axis=1)
        for _ in range(ROUNDS):
            away = np.abs(ratio - common[:, None]) / np.maximum(scatter, 1e-12)
            trust = np.square(1 - np.square(np.minimum(away / OUTLIER, 1))) / np.square(scatter.clip(1e-12))
            trust = np.where(sound, trust, 0)
            common = (trust * ratio).sum(axis=1) / np.maximum(trust.sum(axis=1), 1e-300)
        # The course of the whole field over long times is that of the mean of all pixels.
        common -= uniform_filter1d(common, span, mode="nearest")
        change += np.log1p(common.clip(-0.9, None))
    return change


def _shrunk(course: Array, error: Array) -> Array:
    """A course over time without what its own counting error explains.

    Frequencies are kept by the share of their power that is not noise (Wiener 1949), which is measured in bands of
    frequencies. What jumps out of the smooth course is kept as it is.
    """
    jumps = np.zeros(len(course), dtype=bool)
    smooth = course
    for _ in range(ROUNDS):
        smooth = _wiener(np.where(jumps, smooth, course), error)
        found = np.abs(course - smooth) > JUMP * error
        if (found == jumps).all():
            break
        jumps |= found
    near = np.clip(smooth, course - FARTHEST * error, course + FARTHEST * error)
    steady = not jumps.any() and np.ptp(smooth) < 1e-12
    return np.asarray(np.zeros(len(course)) if steady else np.where(jumps, course, near))


def _wiener(course: Array, error: Array) -> Array:
    n = len(course)
    noise = float(np.mean(np.square(error)))
    spectrum = np.asarray(dct(course, norm="ortho"))
    kept = np.zeros(n)
    kept[0] = 1
    first = 1
    while first < n:
        last = min(n, max(first + 1, int(np.ceil(1.5 * first))))
        power = float(np.mean(np.square(spectrum[first:last])))
        # More than chance makes of noise, with a margin for the number of bands.
        chance = noise * (1 + 4.5 * np.sqrt(2 / (last - first)))
        if power > chance:
            kept[first:last] = 1 - noise / power
        first = last
    return np.asarray(idct(spectrum * kept, norm="ortho"))
