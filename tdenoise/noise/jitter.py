"""How the scene jumps from frame to frame: measured in every frame, against those around it."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from .drift import Array, Images, Spectra, Spectrum, stands_out

AROUND = 24  # frames on each side that a frame is compared with
FOLDS = 4  # parts of the frames, each of which is predicted from the others
ROUNDS, HELD = 14, 10  # of comparing; so many of them before the width of the jumps is measured
FURTHER = 1.6  # of a step, that is gone: the mean of frames that are not yet in place shows too small ones
FARTHEST = 8  # pixels of the images that a frame is looked for around where the course puts it
FIRST_GUESS = 1.0  # standard deviation of the jumps along an axis, to begin with [pixels of the images]
LEAST = 0.01  # of the pixels of a frame that hold counts: the noise of fewer is not normal
STRETCH = 128  # frames that are in memory at once
LOOKS = 4  # stretches that tell whether the scene jumps at all


def jitter(frames: Images, course: Array) -> NDArray[np.float64] | None:
    """Displacement of every frame from a smooth course, new in every frame.

    A frame alone shows little, but how much it shows is known: the likelihood of every shift against the mean of the
    frames around, each moved to where it belongs, with the noise that the frames have at every frequency. With a normal
    prior whose width is that of all jumps (empirical Bayes; Morris 1983), it gives the expected shift, which is near
    zero where the frame does not tell.

    Frames of noise can be moved so that they look alike. So jumps are believed only if three quarters of the frames,
    moved by theirs, predict the other quarter better than they do without (cross-validation; Stone 1974).

    Parameters
    ----------
    frames : array or anything that is sliced like one, shape (n, height, width)
        Counts; some are read at a time. Constant frames show nothing.
    course : ndarray, shape (n, 2)
        Where the scene is in every frame, as far as is known; see `tdenoise.noise.drift.drift` [pixels].

    Returns
    -------
    ndarray, shape (n, 2), or None
        Rows and columns, besides the course [pixels]; None if there are no jumps that the frames show.
    """
    n = frames.shape[0]
    starts = list(range(0, n, STRETCH))
    looks = sorted({starts[int(k)] for k in np.linspace(0, len(starts) - 1, min(LOOKS, len(starts))).round()})
    if not stands_out(np.concatenate([_gains(frames, course, start) for start in looks])):
        return None
    jumps = np.zeros((n, 2))
    for start in starts:
        stretch = _read(frames, course, start)
        moved = _fitted(stretch.seen, stretch.waves, stretch.numbers)[0]
        own = stretch.own(start)
        jumps[stretch.numbers[own]] = moved[own]
    return jumps


class _Stretch(NamedTuple):
    """Spectra of successive frames that show something, each moved back by the course."""

    seen: Spectrum  # (n, rows, columns)
    waves: tuple[Array, Array]  # along rows and columns [1/pixel]
    numbers: NDArray[np.intp]  # of the frames

    def own(self, start: int) -> NDArray[np.bool_]:
        """Which frames are those of the stretch, and not of those around it."""
        return np.asarray((self.numbers >= start) & (self.numbers < start + STRETCH))

    def gains(self) -> NDArray[np.float64]:
        """How much better frames are predicted by the others when these jump than when they stay [nats]."""
        n = len(self.numbers)
        gains = np.full(n, np.nan)
        for first in range(FOLDS):
            left_out = np.arange(first, n, FOLDS)
            others = np.setdiff1d(np.arange(n), left_out)
            if len(others) <= AROUND:
                break
            moved, spread = _fitted(self.seen[others], self.waves, self.numbers[others])
            jump, stay = (
                self._likelihood(left_out, self._shown(others, left_out, so_far), width)
                for so_far, width in ((moved, spread), (np.zeros_like(moved), 0.0))
            )
            gains[left_out] = jump - stay
        return gains

    def _shown(self, others: NDArray[np.intp], left_out: NDArray[np.intp], moved: Array) -> Spectrum:
        """What frames should show by the mean of others, shrunk by how well these predict one another."""
        back = _shifted(self.seen[others], self.waves, moved)
        among = _means_around(back, self.numbers[others], self.numbers[others])
        signal = np.maximum(np.mean((back * among.conj()).real, axis=0), 0)
        share = (signal / np.maximum(np.square(np.abs(among)).mean(axis=0), 1e-30)).clip(0, 1)
        return np.asarray(share * _means_around(back, self.numbers[others], self.numbers[left_out]))

    def _likelihood(self, which: NDArray[np.intp], shown: Spectrum, spread: float) -> Array:
        """Log likelihood of some frames if they show this, and jump by so much; up to a constant [nats]."""
        power = np.maximum(np.square(np.abs(self.seen)).mean(axis=0), 1e-30)
        own = (np.square(np.abs(shown)) * _twice(self.waves) / power).sum(axis=(1, 2)) / 2
        likelihood = _likelihood(self.seen[which] * shown.conj() / power, self.waves)
        stays = likelihood[:, FARTHEST, FARTHEST] - own
        return np.asarray(stays + _expected(likelihood, spread)[1] if spread else stays)


def _gains(frames: Images, course: Array, start: int) -> NDArray[np.float64]:
    """By which the frames of a stretch are predicted better if they jump."""
    stretch = _read(frames, course, start)
    return np.asarray(stretch.gains()[stretch.own(start)])


def _read(frames: Images, course: Array, start: int) -> _Stretch:
    """Of a stretch of frames and those around it."""
    part = slice(max(0, start - AROUND), min(frames.shape[0], start + STRETCH + AROUND))
    images = np.asarray(frames[part], dtype=np.float32)
    with np.errstate(over="ignore", invalid="ignore"):  # of a pixel that is no count
        spectra = Spectra(images)
    shows = np.flatnonzero(spectra.shows & ((images != 0).mean(axis=(1, 2)) >= LEAST))
    seen, waves = spectra.coarse(shows)
    return _Stretch(_shifted(seen, waves, course[part][shows]), waves, shows + part.start)


def _fitted(seen: Spectrum, waves: tuple[Array, Array], numbers: NDArray[np.intp]) -> tuple[Array, float]:
    """Jumps that bring frames together, and their standard deviation along an axis [pixels]."""
    moved: Array = np.zeros((len(seen), 2))
    spread = FIRST_GUESS
    for number in range(ROUNDS if len(seen) > 1 else 0):
        back = _shifted(seen, waves, moved)
        scenes = _means_around(back, numbers, numbers)
        signal = np.maximum(np.mean((back * scenes.conj()).real, axis=0), 0)
        noise = np.maximum(np.square(np.abs(back)).mean(axis=0) - signal, 1e-30)
        # What the mean of so many frames shows of the scene, and what of a frame it leaves open.
        share = signal / (signal + noise / min(2 * AROUND, len(seen)))
        weighed = seen * scenes.conj() * (share / (noise + signal * (1 - share)))
        found, _, square = _expected(_likelihood(weighed, waves), spread)
        moved = found if number >= HELD else moved + FURTHER * (found - moved)
        if number >= HELD:
            spread = max(square, 1e-6) ** 0.5
    return moved, spread


def _shifted(seen: Spectrum, waves: tuple[Array, Array], moved: Array) -> Spectrum:
    """Images moved back by so much."""
    rows, columns = (
        np.exp(2j * np.pi * moved[:, axis, None] * waves[axis]).astype(np.complex64) for axis in (0, 1)
    )
    return np.asarray(seen * rows[:, :, None] * columns[:, None, :])


def _means_around(back: Spectrum, numbers: NDArray[np.intp], places: NDArray[np.intp]) -> Spectrum:
    """For frames at some places, the mean of those around without the frame itself."""
    total = np.concatenate([np.zeros_like(back[:1]), np.cumsum(back, axis=0, dtype=np.complex128)])
    first = np.searchsorted(numbers, places - AROUND)
    last = np.searchsorted(numbers, places + AROUND, side="right")
    sums, counted = total[last] - total[first], last - first
    own = np.isin(places, numbers)
    sums[own] -= back[np.searchsorted(numbers, places[own])]
    return np.asarray((sums / np.maximum(counted - own, 1)[:, None, None]).astype(np.complex64))


def _likelihood(weighed: Spectrum, waves: tuple[Array, Array]) -> Array:
    """Of every shift by whole pixels, up to a constant [nats]; shape (n, 2 * FARTHEST + 1, 2 * FARTHEST + 1)."""
    steps = np.arange(-FARTHEST, FARTHEST + 1)
    rows, columns = (
        np.exp(2j * np.pi * steps[:, None] * waves[axis]).astype(np.complex64) for axis in (0, 1)
    )
    return np.asarray((rows @ (weighed * _twice(waves)) @ columns.T).real)


def _twice(waves: tuple[Array, Array]) -> Array:
    """How often a real image has each wave of its spectrum."""
    return np.where(waves[1] == 0, 1.0, 2.0)


def _expected(likelihood: Array, spread: float) -> tuple[Array, Array, float]:
    """Expected shifts, evidence against none [nats], and mean square along an axis."""
    steps = np.arange(-FARTHEST, FARTHEST + 1)
    square = np.square(steps[:, None]) + np.square(steps[None])
    prior = -square / (2 * spread**2)
    joint = likelihood + prior - np.log(np.exp(prior).sum())
    highest = joint.max(axis=(1, 2), keepdims=True)
    chance = np.exp(joint - highest)
    total = chance.sum(axis=(1, 2), keepdims=True)
    chance /= total
    evidence = (highest + np.log(total))[:, 0, 0] - likelihood[:, FARTHEST, FARTHEST]
    means = np.stack([(chance.sum(axis=2 - axis) * steps).sum(axis=1) for axis in (0, 1)], axis=1)
    # To a fraction of a pixel, as far as the place is sure.
    numbers, inside = np.arange(len(joint)), np.arange(1, len(steps) - 1)
    tops = [
        part[0] for part in np.unravel_index(joint.reshape(len(joint), 1, -1).argmax(axis=2).T, square.shape)
    ]
    for axis, top in enumerate(tops):
        middle = np.clip(top, inside[0], inside[-1])
        at = [tops[0], tops[1]]
        before, here, after = (
            joint[(numbers, *(middle + k if a == axis else at[a] for a in (0, 1)))] for k in (-1, 0, 1)
        )
        bend = before - 2 * here + after
        peak = (bend < 0) & (middle == top)
        exact = np.where(
            peak, steps[middle] + 0.5 * (before - after) / np.where(peak, bend, 1.0), means[:, axis]
        )
        sure = chance[(numbers, *at)]
        means[:, axis] += sure * (exact - means[:, axis])
    return means, evidence, float((chance * square).sum() / (2 * len(joint)))
