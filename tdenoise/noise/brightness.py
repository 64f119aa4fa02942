"""How bright every frame is, and which frames were recorded at all.

The beam flickers, steps and decays, and cameras drop frames. A network that expects one brightness takes such changes
for the scene. So the level of each frame is measured from its own counts before anything else: it is divided out of
what a network sees, and multiplied back into what it predicts. Frames that were not recorded are left out of every
window.

A beam that moves changes the brightness across the field. For a Gaussian beam whose width stays, the logarithm of the
level is then a plane whose slope changes from frame to frame, and so it is described here. The level of a frame is its
mean over the field.

The level of a frame holds each of its pixels with a weight of one over the number of pixels, and up to seven times as
much where a slope is fitted, too; this is all that a blind-spot prediction learns about its own pixel.
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
LEAST_TILT = 0.02  # change at the edges of the field, rms over time: a network follows what is less
UNEXPLAINED = 0.2  # of what tilts explain of the changes of parts: where more is left, the scene moves
FEWEST_PARTS = 3  # along an axis, that tell a slope from parts that change by themselves

Span = tuple[int, int]  # first and last (excluded) row or column [pixels]


Frames = slice | NDArray[np.intp]


@dataclass(frozen=True)
class Brightness:
    """Level of every frame, relative to the mean of the movie; and whether the frame was recorded whole."""

    levels: NDArray[np.float64]  # (n_frames,), above 0: means over the field
    valid: NDArray[np.bool_]  # (n_frames,)
    # Slope of the logarithm of the level along rows and columns [1/pixel], (n_frames, 2); None: alike everywhere.
    tilts: NDArray[np.float64] | None = None
    field: tuple[int, int] = (0, 0)  # rows and columns, where there are tilts

    @classmethod
    def steady(cls, n_frames: int) -> Brightness:
        """Of a movie whose frames are all there and equally bright."""
        return cls(np.ones(n_frames), np.ones(n_frames, dtype=bool))

    @property
    def is_steady(self) -> bool:
        """Whether no frame has to be treated otherwise than the others."""
        return bool(self.valid.all() and self.is_even)

    @property
    def is_even(self) -> bool:
        """Whether all frames are equally bright, and everywhere."""
        return self.tilts is None and bool((self.levels == 1).all())

    @property
    def across(self) -> float:
        """By how much the level changes at most within the field, relative to that of the frame: at its corners."""
        if self.tilts is None:
            return 0.0
        rows, columns = ([(0, 1), (n - 1, n)] for n in self.field)
        corners = [self.at(slice(None), row, column)[:, 0, 0] for row in rows for column in columns]
        return float(np.abs(np.stack(corners)[:, self.valid] / self.levels[self.valid] - 1).max(initial=0.0))

    @property
    def stacked(self) -> NDArray[np.float64]:
        """Levels, validity and, where there are any, tilts: as one array, (2 or 4, n_frames)."""
        return np.stack([self.levels, self.valid, *(() if self.tilts is None else self.tilts.T)])

    @classmethod
    def of_stacked(cls, stacked: Array, field: tuple[int, int]) -> Brightness:
        """What `stacked` gave, of a movie with such a field."""
        levels, valid, *tilts = stacked
        return cls(levels, valid > 0, np.stack(tilts, axis=1) if tilts else None, field if tilts else (0, 0))

    def along(self, frames: Frames, rows: Span, columns: Span) -> tuple[Array, Array]:
        """Two factors whose product is `at`: one along rows, (n, h or 1, 1), one along columns, (n or 1, 1, w or 1)."""
        levels = self.levels[frames][:, None, None]
        if self.tilts is None:
            return levels, np.ones((1, 1, 1))
        down, right = (
            _profile(tilts, size, span)
            for tilts, size, span in zip(self.tilts[frames].T, self.field, (rows, columns), strict=True)
        )
        return levels * down[:, :, None], right[:, None, :]

    def at(self, frames: Frames, rows: Span, columns: Span) -> Array:
        """Level of every pixel of a part of some frames.

        Parameters
        ----------
        frames : slice or ndarray of int
            Of the movie.
        rows, columns : (int, int)
            First and last (excluded) of the part [pixels of the movie].

        Returns
        -------
        ndarray, shape (n, 1, 1); where there are tilts (n, h, w), float32
        """
        down, right = self.along(frames, rows, columns)
        return down if self.tilts is None else down.astype(np.float32) * right.astype(np.float32)

    def part(self, frames: Frames, rows: Span, columns: Span) -> Brightness:
        """Of a part of the movie, as a movie of its own."""
        levels, valid = self.levels[frames], self.valid[frames]
        if self.tilts is None:
            return Brightness(levels, valid)
        down, right = self.along(frames, rows, columns)
        levels = down.mean(axis=(1, 2)) * right.mean(axis=(1, 2))
        return Brightness(levels, valid, self.tilts[frames], (rows[1] - rows[0], columns[1] - columns[0]))

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

        It is the share of the movie's dose at which a frame is seen, the same everywhere in the field.
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


def measure(means: Array, edges: tuple[Array, Array], fano: float, valid: NDArray[np.bool_]) -> Brightness:
    """Level of every frame, and its slope across the field, from the means of parts of the field.

    A particle that flashes is no flicker of the beam: where a few parts of the field differ from their own course
    and the others do not, those few do not count (the biweight of Beaton & Tukey 1974).

    Parameters
    ----------
    means : ndarray, shape (n_frames, n_parts)
        Mean of every part of a frame, without bad pixels [counts], row of parts by row.
    edges : (ndarray of int, ndarray of int)
        Borders of the parts along rows and along columns, from 0 to the size of the field [pixels].
    fano : float
        Variance of a pixel over its mean [counts].
    valid : ndarray of bool, shape (n_frames,)
        Frames that were recorded whole; the others get the level of the frames around them.

    Returns
    -------
    Brightness
        With levels whose mean over the valid frames is 1, and tilts whose mean is 0. They are moved towards a smooth
        course as far as their counting error allows: a steady movie gets levels of exactly 1, and no tilts.
    """
    n_frames = len(means)
    used = np.flatnonzero(valid)
    seen = np.asarray(means, np.float64)[used]
    weight = np.outer(*map(np.diff, edges)).ravel().astype(np.float64)
    total = seen @ weight / weight.sum()
    if len(used) < 3 or not (np.isfinite(seen).all() and total.mean() > 0 and (total > 0).all()):
        # Without counts there is no level; negative ones are not from a beam alone.
        return Brightness(np.ones(n_frames), valid.copy())
    fano = max(fano, 0.0)
    tilts = _tilts(seen, weight, edges, fano)
    if tilts is not None:
        down, right = (_over_parts(slopes, borders) for slopes, borders in zip(tilts.T, edges, strict=True))
        seen = seen / (down[:, :, None] * right[:, None, :]).reshape(seen.shape)
        total = seen @ weight / weight.sum()
    course = total / total.mean()
    error = np.sqrt(fano / (weight.sum() * total.mean() * course))  # relative, of each frame
    course = course * np.exp(_common_change(seen, weight, course, fano))
    logs = np.log(course)
    smooth = _shrunk(logs - np.average(logs, weights=course), error)
    levels = np.exp(smooth)
    if np.allclose(levels, levels[0], rtol=1e-6):
        levels = np.ones(len(used))
    frames = np.arange(n_frames)
    everywhere = np.interp(frames, used, levels / levels.mean())
    if tilts is None:
        return Brightness(everywhere, valid.copy())
    slopes = np.stack([np.interp(frames, used, slope) for slope in tilts.T], axis=1)
    return Brightness(everywhere, valid.copy(), slopes, (int(edges[0][-1]), int(edges[1][-1])))


def _tilts(seen: Array, weight: Array, edges: tuple[Array, Array], fano: float) -> Array | None:
    """Slope of the logarithm of the level along rows and columns [1/pixel], (n_frames, 2); None if there is none.

    A plane is fitted to what the parts of a frame are of their own mean over time, each weighted by its counting error
    and not at all where it lies far from the plane. If the scene moves, the parts change too, but not as a plane.
    """
    if min(map(len, edges)) <= FEWEST_PARTS or not (seen.sum(axis=0) > 0).all():
        return None
    half = np.array([borders[-1] / 2 for borders in edges])
    down, right = ((b[1:] + b[:-1]) / b[-1] - 1 for b in edges)  # of the middles, 1 at the edge of the field
    places = np.stack(np.broadcast_arrays(1.0, down[:, None], right), axis=-1).reshape(-1, 3)
    total = seen @ weight / weight.sum()

    def compare(planes: Array) -> tuple[Array, Array]:
        """What every part is off the plane, and its counting error; both relative."""
        level = total[:, None] * np.exp(planes @ places.T)
        expected = level * seen.sum(axis=0) / level.sum(axis=0)
        return seen / expected - 1, np.sqrt(fano / (expected * weight)).clip(1e-12)

    planes = np.zeros((len(seen), 3))
    for number in range(2 * ROUNDS):
        off, error = compare(planes)
        if number < ROUNDS:  # by the sum of deviations: no few parts decide what the others are compared with
            trust = 1 / (error * np.maximum(np.abs(off), error))
        else:
            scale = np.maximum(error, 1.4826 * np.median(np.abs(off), axis=1, keepdims=True))
            away = np.minimum(np.abs(off) / (OUTLIER * scale), 1)
            trust = np.square((1 - np.square(away)) / error)
        planes += _plane(trust, places, off)
    information = np.einsum("tp,pi,pj->tij", 1 / np.square(error), places, places)
    errors = np.sqrt(np.diagonal(np.linalg.inv(information), axis1=1, axis2=2))
    for k in (1, 2):
        slopes = _shrunk(planes[:, k] - planes[:, k].mean(), errors[:, k])
        planes[:, k] = slopes - slopes.mean()
    if np.sqrt(np.square(planes[:, 1:]).sum(axis=1).mean()) < LEAST_TILT:
        return None
    off, error = compare(planes)
    plane = np.square(planes[:, 1:] @ places[:, 1:].T / error)
    # A flash is left, too; it counts for no more than the largest of what is explained.
    left = np.minimum(np.square(off / error), plane.max() + OUTLIER**2).mean() - 1
    return planes[:, 1:] / half if left < UNEXPLAINED * plane.mean() else None


def _plane(trust: Array, places: Array, values: Array) -> Array:
    """Weighted fit of a plane to values at places, for every frame."""
    normal = np.einsum("tp,pi,pj->tij", trust, places, places)
    # So that parts on one line give no slope rather than an error.
    normal += 1e-9 * np.trace(normal, axis1=1, axis2=2)[:, None, None] * np.eye(3) + 1e-300 * np.eye(3)
    found = np.linalg.solve(normal, np.einsum("tp,pi,tp->ti", trust, places, values)[..., None])[..., 0]
    return np.asarray(found.clip(-1, 1))


def _profile(slopes: Array, size: int, span: Span) -> Array:
    """Level along an axis, of mean 1 over its whole length, shape (n, pixels of the span)."""
    places = np.arange(*span) - (size - 1) / 2
    return np.asarray(np.exp(slopes[:, None] * places) / _mean_of_slope(slopes, size)[:, None])


def _over_parts(slopes: Array, edges: Array) -> Array:
    """Means of such a profile over parts of the axis, shape (n, parts)."""
    size, sizes = int(edges[-1]), np.diff(edges)
    middles = edges[:-1] + (sizes - 1) / 2 - (size - 1) / 2
    means = np.stack([_mean_of_slope(slopes, int(n)) for n in sizes], axis=1)
    return np.asarray(np.exp(slopes[:, None] * middles) * means / _mean_of_slope(slopes, size)[:, None])


def _mean_of_slope(slopes: Array, size: int) -> Array:
    """Mean of ``exp(slope * place)`` over so many pixels around 0."""
    half = np.where(np.abs(slopes) < 1e-9, 1e-9, slopes) / 2
    return np.asarray(np.sinh(half * size) / (size * np.sinh(half)))


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
