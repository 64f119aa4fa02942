"""How the scene moves: measured by correlation, and followed by the windows that a network sees.

A frame is denoised from those around it. Where the scene drifts, they show a pixel's place elsewhere; shifted by whole
pixels, they show it where it is, and stay as noisy and as independent as they were, as nothing is interpolated.
"""

from __future__ import annotations

from collections.abc import Callable
from itertools import pairwise
from typing import Any, Protocol

import numpy as np
from numpy.fft import fftfreq, irfft2, rfft2, rfftfreq
from numpy.typing import NDArray

AGREEMENT = 1.0  # of the halves within the reach: standard deviation of what they differ by [pixels]
REACH = 3  # images on each side that an image is compared with
NEAR = 2  # pixels that the scene usually moves by from one image to the next, at most
ODD = 1e6  # times the usual contrast: no image of the scene
JUMP = 2.0  # a peak further away is taken if it is so many times as high: those of a lattice are all alike
SURE = 3.5  # standard errors by which images have to fit better where a course puts them
COARSE = 0.25  # waves per pixel that a single frame shows, at most
ROUNDS = 6  # of comparing every image with those around it
STRETCH = 64  # images that are in memory at once
FOLD, MANY = (
    8,
    4096,
)  # images that are joined to one that is compared over longer times; a stretch of them if more
MAX_SHIFT = 16  # pixels that a frame is shifted by in a window, at most


class Images(Protocol):
    """Sliced along the first axis like an array."""

    @property
    def shape(self) -> tuple[int, ...]: ...

    def __getitem__(self, key: slice) -> Any: ...


Array = NDArray[np.floating]
Spectrum = NDArray[np.complexfloating]


def drift(images: Images, check: Callable[[], None] = lambda: None) -> NDArray[np.float64]:
    """Displacement of a scene in a series of groups of frames, relative to the first group.

    Each image is first compared with those before it, then, in rounds, with those on both sides, all moved to where
    they are known to belong (as movies are aligned in cryo-electron microscopy; Zheng et al. 2017, MotionCor2). The
    correlation weighs every frequency by the share of signal in it, which is measured from products of different
    images. Only images near one another in time are compared, so a scene may change and leave the field.

    Noise, too, has a highest peak somewhere. So it is done for two halves of the frames apart, and believed where they
    agree, in four images or more. The scene stays if the course of one half does not bring the images of the other half
    closer to all others than they are without it.
    What lies between images too far apart to be compared is not known: the scene is taken to stay.

    Parameters
    ----------
    images : array or anything that is sliced like one, shape (n, 2, height, width)
        Means of one and the other half of each group of successive frames. Some are read at a time.
    check : callable
        Called now and then; raises an error if a stop was asked for.

    Returns
    -------
    ndarray, shape (n, 2)
        Rows and columns that the scene has moved by [pixels]; NaN where the halves do not agree.

    Examples
    --------
    >>> scene = np.random.default_rng(0).normal(size=(24, 24)).repeat(4, 0).repeat(4, 1)
    >>> images = np.stack([np.roll(scene, (2 * n, -n), axis=(0, 1)) for n in range(4)])
    >>> drift(np.stack([images, images], axis=1)).round().tolist()
    [[0.0, 0.0], [2.0, -1.0], [4.0, -2.0], [6.0, -3.0]]
    """
    n, (tracks, sure) = images.shape[0], _tracks(images, check)
    moved, difference = tracks[0], tracks[1] - tracks[2]
    for i in range(n):
        around = difference[max(0, i - REACH) : i + REACH + 1]
        around = around[np.isfinite(around[:, 0])]
        # Of fewer, the first of which is zero in both halves, those of noise agree now and then.
        if len(around) <= REACH or (np.std(around, axis=0) > AGREEMENT).any():
            moved[i] = np.nan
    believed = np.flatnonzero(np.isfinite(moved[:, 0]))
    for before, after in pairwise(believed.tolist()):
        if after - before > REACH:  # they were not compared
            moved[after:] += moved[before] - moved[after]
    if not sure:
        moved[believed] = 0
    return np.asarray(moved - moved[believed[0]] if len(believed) else moved)


def _tracks(
    images: Images, check: Callable[[], None], guesses: Array | None = None, still: Array | None = None
) -> tuple[NDArray[np.float64], bool]:
    """Course of the scene by all frames, and by the halves, shape (3, n, 2), and whether it is more than noise.

    Of images that were joined, ``still`` are the same without their frames moved: those tell whether to follow.
    """
    n, field = images.shape[0], images.shape[2:]
    tracks, gains = np.empty((3, n, 2)), np.full((2, n), np.nan)
    margin = REACH * ROUNDS  # further images have no influence
    fold = FOLD if n <= MANY else STRETCH
    joined, joined_still = (np.zeros((n // fold, 2, *field), np.float32) for _ in range(2))
    for first in range(0, n, STRETCH):
        check()
        before, last = max(0, first - margin), min(first + STRETCH, n)
        near, own = slice(before, min(n, last + margin)), slice(first - before, last - before)
        part = np.asarray(images[near], dtype=np.float32)
        with np.errstate(over="ignore", invalid="ignore"):  # of a pixel that is no count
            stretches = [Spectra(some) for some in (part.mean(axis=1), part[:, 0], part[:, 1])]
            tested = stretches[1:] if still is None else [Spectra(still[near, half]) for half in (0, 1)]
        courses = [
            stretch.drift(None if guesses is None else guesses[k, near])
            for k, stretch in enumerate(stretches)
        ]
        for track, found in zip(tracks, courses, strict=True):
            # Joined to what is known by the images that both have.
            shared = track[before:first] - found[: first - before]
            known = shared[np.isfinite(shared[:, 0])]
            track[first:last] = found[own] + (known.mean(axis=0) if len(known) else 0)
        gains[0, first:last] = tested[1].gain(courses[1], tested[0])[own]
        gains[1, first:last] = tested[0].gain(courses[2], tested[1])[own]
        for start in range(first, last - fold + 1, fold):
            group, number = slice(start, start + fold), start // fold
            for half in (0, 1):  # by its own course: that of the other half is to be tested on it
                images_of = part[start - before : start - before + fold, half]
                joined[number, half] = _joined(images_of, tracks[1 + half, group])
            unmoved = part[own] if still is None else still[first:last]
            with np.errstate(over="ignore", invalid="ignore"):
                joined_still[number] = unmoved[start - first : start - first + fold].mean(axis=0)
    sure = stands_out(gains)
    if len(joined) > REACH:
        sure |= _hold_over_time(tracks, joined, joined_still, fold, check)
    return tracks, sure


def stands_out(gains: Array) -> bool:
    """Whether the mean of some gains is more than chance."""
    known = gains[np.isfinite(gains)]
    if len(known) < 2:
        return False
    return bool(known.mean() > SURE * known.std(ddof=1) / np.sqrt(len(known)))


def _joined(images: Array, moved: Array) -> Array:
    """Mean of successive images where their mean place is; zero where nothing is known."""
    known = np.isfinite(moved[:, 0])
    if not known.any():
        return np.zeros(images.shape[1:], np.float32)
    steps = moved[known] - moved[known].mean(axis=0)
    spectra = rfft2(images[known])
    ky, kx = fftfreq(images.shape[-2])[:, None], rfftfreq(images.shape[-1])
    phases = np.exp(2j * np.pi * (ky * steps[:, 0, None, None] + kx * steps[:, 1, None, None]))
    return np.asarray(irfft2((spectra * phases).mean(axis=0), images.shape[-2:]), dtype=np.float32)


def _hold_over_time(tracks: Array, joined: Array, still: Array, fold: int, check: Callable[[], None]) -> bool:
    """Correct courses, in place, by that of means of ``fold`` images; whether that one is more than noise."""
    cut = tracks[:, : len(joined) * fold].reshape(3, len(joined), fold, 2)
    shown: NDArray[np.bool_] = np.all(np.isfinite(cut[..., 0]), axis=0)
    # Where the halves do not agree, the scene was lost, and nothing is known of how the two sides lie to each other.
    enough: NDArray[np.bool_] = np.sum(shown, axis=1) > fold // 2
    places = np.zeros((3, len(joined), 2))
    places[:, enough] = np.nanmean(np.where(shown[..., None], cut, np.nan)[:, enough], axis=2)
    apart = np.where(shown[..., None], cut[1] - cut[2], np.nan)
    known = np.zeros(len(joined), dtype=bool)
    known[enough] = np.all(np.nanstd(apart[enough], axis=1) <= AGREEMENT, axis=1)
    places[:, ~known] = 0
    longer, sure = _tracks(joined, check, places, still)
    known &= np.isfinite(longer[..., 0]).all(axis=0)
    if not sure or known.sum() <= REACH:
        return False
    numbers, images = np.flatnonzero(known), np.arange(tracks.shape[1])
    runs = np.split(numbers, np.flatnonzero(np.diff(numbers) > 1) + 1)
    borders = [(before[-1] + after[0] + 1) * fold / 2 for before, after in pairwise(runs)]
    run_of = np.searchsorted(borders, images, side="right")
    for track, change in zip(tracks, longer - places, strict=True):
        for number, run in enumerate(runs):
            here, middles = images[run_of == number], run * fold + (fold - 1) / 2
            track[here] += np.stack([np.interp(here, middles, change[run, k]) for k in (0, 1)], axis=1)
    return True


def window_shifts(
    moved: NDArray[np.floating] | None, centre: int, indices: NDArray[np.intp]
) -> NDArray[np.intp]:
    """Whole pixels by which the scene in the frames of a window lies further on than in their centre frame.

    Parameters
    ----------
    moved : ndarray, shape (n_frames, 2), or None
        From `drift`, for every frame of the movie; None: the scene stays.
    centre : int
        Frame of the movie.
    indices : ndarray, shape (n,)
        Frames of the movie around it.

    Returns
    -------
    ndarray of int, shape (n, 2)
        Rows and columns, at most `MAX_SHIFT`.
    """
    if moved is None:
        return np.zeros((len(indices), 2), dtype=np.intp)
    return np.asarray(np.rint(moved[indices] - moved[centre]).clip(-MAX_SHIFT, MAX_SHIFT), dtype=np.intp)


def largest_shift(moved: NDArray[np.floating] | None, window: int) -> int:
    """Largest of all `window_shifts` of a movie [pixels]; ``window`` frames are seen on each side."""
    if moved is None:
        return 0
    steps = range(1, min(window, len(moved) - 1) + 1)
    largest = max((float(np.abs(moved[step:] - moved[:-step]).max()) for step in steps), default=0.0)
    return min(MAX_SHIFT, int(np.rint(largest)))


def tapered(n: int) -> Array:
    """A window of ``n`` points that falls to zero, by a cosine, over a tenth of its width at either end.

    The Tukey window (Harris 1978) without its zeros, as ``scipy.signal.windows.tukey(n + 2, 0.2)[1:-1]`` gives it; to
    import that takes a second, in every worker.
    """
    from_end = np.minimum(np.arange(1, n + 1), np.arange(n, 0, -1)) / (0.1 * (n + 1))
    return 0.5 - 0.5 * np.cos(np.pi * np.minimum(from_end, 1.0))  # type: ignore[no-any-return, unused-ignore]


class Spectra:
    """Images that are compared with one another, as spectra."""

    def __init__(self, images: Array) -> None:
        self.shape = images.shape[1:]
        window = np.outer(*map(tapered, self.shape)).astype(np.float32)
        with np.errstate(over="ignore", invalid="ignore"):  # of images that are left out below
            means = (images * window).sum((1, 2), keepdims=True) / window.sum()
            flat = ((images - means) * window).astype(np.float32)
            norms = np.sqrt(np.square(flat, dtype=np.float64).sum((1, 2)))
            # What rounding leaves of a constant image is no contrast.
            levels = np.sqrt(np.square(images * window, dtype=np.float64).sum((1, 2)))
            shows = (norms > 1e-5 * levels) & np.isfinite(norms)
            usual = float(np.median(norms[shows])) if shows.any() else 1.0
            # One pixel that is no count at all, such as 3e38, would drown the others.
            shows &= norms < ODD * usual
        # A power of two changes no digit, and keeps squares of squares within what float32 holds.
        flat *= np.float32(2.0 ** -np.clip(np.rint(np.log2(usual)), -120, 120))
        flat[~shows] = 0
        self.shows = shows
        self._fy, self._fx = fftfreq(self.shape[0])[:, None], rfftfreq(self.shape[1])[None]
        self._spectra = rfft2(flat).astype(np.complex64)
        steps = [np.minimum(np.arange(n), n - np.arange(n)) for n in self.shape]
        self._near = (steps[0][:, None] <= NEAR) & (steps[1][None] <= NEAR)

    def drift(self, guess: Array | None = None) -> NDArray[np.float64]:
        """NaN where an image is constant, or shows nothing but a pixel that is no count.

        With a guess of where they lie, the images are looked for near it only.
        """
        n = len(self._spectra)
        moved = np.zeros((n, 2))
        shows = self.shows
        weight = np.ones(self._spectra.shape[1:], np.float32)
        for i in range(1, n):
            moved[i] = moved[i - 1] + (0 if guess is None else guess[i] - guess[i - 1])
            reference = sum(self.back(j, moved[j]) for j in range(max(0, i - REACH), i) if shows[j])
            if shows[i] and isinstance(reference, np.ndarray):
                moved[i] += self._peak(self.back(i, moved[i]), reference, weight, jump=guess is None)
        for _ in range(ROUNDS):
            back = np.stack([self.back(i, moved[i]) for i in range(n)])
            weight = self._weight(back)
            step = np.zeros((n, 2))
            for i in np.flatnonzero(shows).tolist():
                around = [j for j in range(max(0, i - REACH), min(n, i + REACH + 1)) if shows[j] and j != i]
                if around:
                    step[i] = self._peak(back[i], back[around].sum(0), weight)
            # Not by all of it: both of two images would make the same step.
            moved += 0.7 * step.clip(-1, 1)
        moved[~shows] = np.nan
        return moved

    def gain(self, course: Array, found_on: Spectra) -> Array:
        """How much better every image fits all others when they follow a course than when they stay; NaN if unknown.

        It has to be found on images whose noise is not that of these.
        """
        gains = np.full(len(course), np.nan)
        numbers = np.flatnonzero(np.isfinite(course[:, 0]) & self.shows & found_on.shows).tolist()
        if len(numbers) < 2:
            return gains
        own, others = (np.stack([images.back(i, course[i]) for i in numbers]) for images in (self, found_on))
        weight = found_on._weight(others)
        follow = own.sum(axis=0) + others.sum(axis=0)
        stay = self._spectra[numbers].sum(axis=0) + found_on._spectra[numbers].sum(axis=0)
        for k, i in enumerate(numbers):
            moved = own[k] * (follow - own[k] - others[k]).conj()
            still = self._spectra[i] * (stay - self._spectra[i] - found_on._spectra[i]).conj()
            gains[i] = float((weight * (moved - still).real).sum())
        return gains

    def back(self, number: int, moved: Array) -> Spectrum:
        """An image moved back by so much."""
        phase = np.exp(2j * np.pi * (self._fy * moved[0] + self._fx * moved[1])).astype(np.complex64)
        return np.asarray(self._spectra[number] * phase)

    def coarse(self, numbers: NDArray[np.intp]) -> tuple[Spectrum, tuple[Array, Array]]:
        """Spectra of some images, without detail finer than four pixels, and their waves along rows and columns [1/px].

        All have a mean square of one: brighter ones do not count more. Waves along rows or columns alone are left out,
        for noise that a whole row of the detector shares has no others.
        """
        rows, columns = (np.flatnonzero(np.abs(waves) <= COARSE) for waves in (self._fy[:, 0], self._fx[0]))
        found = self._spectra[np.ix_(numbers, rows, columns)]
        waves = self._fy[rows, 0], self._fx[0, columns]
        least = [1.5 / n for n in self.shape]  # the window spreads the first wave over the second
        found[:, np.abs(waves[0]) < least[0]] = 0
        found[:, :, np.abs(waves[1]) < least[1]] = 0
        power = np.square(np.abs(found)).mean(axis=(1, 2), keepdims=True)
        return np.asarray(found / np.sqrt(np.maximum(power, 1e-30))), waves

    def _weight(self, back: Spectrum) -> Array:
        """Share of signal at every frequency of what an image is compared with."""
        pairs = [
            np.mean((back[k:] * back[:-k].conj()).real, axis=0) for k in range(1, REACH + 1) if k < len(back)
        ]
        signal = np.maximum(np.mean(pairs, axis=0), 0) if pairs else np.zeros(back.shape[1:])
        noise = np.median(np.square(np.abs(back)).mean(axis=0) - signal) / (2 * REACH)
        return np.asarray(signal / np.maximum(signal + max(noise, 0), 1e-30), dtype=np.float32)

    def _peak(
        self, image: Spectrum, reference: Spectrum, weight: Array, jump: bool = False
    ) -> NDArray[np.float64]:
        """Shift of the image against the reference, to a fraction of a pixel."""
        correlation = irfft2(image * reference.conj() * weight, self.shape)
        near = np.where(self._near, correlation, -np.inf)
        far = jump and correlation.max() > JUMP * near.max()
        highest = int((correlation if far else near).argmax())
        top = divmod(highest, self.shape[1])
        for _ in range(sum(self.shape)):  # uphill, should that lead further away
            rows, columns = (np.arange(p - 1, p + 2) % n for p, n in zip(top, correlation.shape, strict=True))
            around = correlation[np.ix_(rows, columns)]
            if around.argmax() == 4 or around.max() <= correlation[top]:
                break
            row, column = divmod(int(around.argmax()), 3)
            top = int(rows[row]), int(columns[column])
        found = np.empty(2)
        for axis, (size, position) in enumerate(zip(correlation.shape, top, strict=True)):
            line = np.take(correlation, top[1 - axis], axis=1 - axis)
            before, here, after = (float(line[(position + k) % size]) for k in (-1, 0, 1))
            bend = before - 2 * here + after
            shift = position + (0.5 * (before - after) / bend if bend < 0 else 0.0)
            found[axis] = shift - size if shift > size / 2 else shift
        return found
