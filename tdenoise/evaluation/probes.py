"""Hallucination probes: give a denoiser what is known, and look at what it makes of it.

All work on a function ``denoise(counts, share)`` that returns the denoised movie for counts [electrons] that hold a
share of the dose of the movie that the model is for. What is put in, is put into real counts, by Poisson statistics
alone: adding independent Poisson counts, or dropping electrons by coin, gives exactly the counts of the other scene.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from .ideal_observer import detection_index
from .residuals import spot_power

Array = NDArray[Any]
Denoise = Callable[[Array, float], Array]

ADATOM_SHARE = 0.15  # standard deviation of an atom's image, over the distance of lattice planes
FLASH_OFFSETS = (-4, -3, -2, -1, 0, 1, 2, 3, 4)


# Vacuum ---------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class VacuumProbe:
    """What a denoiser makes of a movie of nothing but noise."""

    std: float  # of the denoised movie, as a share of its level; 0 is perfect
    spot_ratio: (
        float  # power at the lattice's spots, over that of the rings around; 1 where nothing is invented
    )
    spot_sd: float  # standard deviation of that ratio by chance
    fringes: (
        float  # amplitude of the invented lattice, as a share of the level; 0 where not clearly above chance
    )


def vacuum_probe(
    denoise: Denoise, shape: tuple[int, int, int], dose: float, spots: Array, seed: int = 0
) -> VacuumProbe:
    """Denoise a movie of white Poisson noise and look for the lattice of the real movie in it.

    Parameters
    ----------
    denoise : function
    shape : tuple of int
        (n_frames, height, width) of the noise.
    dose : float
        [electrons per pixel and frame]
    spots : ndarray, shape (n, 2)
        Rows and columns of the real movie's lattice [cycles per pixel]; without spots, only ``std`` is known.
    seed : int
    """
    counts = np.random.default_rng(seed).poisson(dose, shape)
    smooth = np.asarray(denoise(counts, 1.0), np.float64)
    std = float(smooth.std() / dose)
    power = np.sum([np.abs(np.fft.rfft2(frame - frame.mean())) ** 2 for frame in smooth], axis=0)
    at, around, n_near = spot_power(power, spots, shape[1:])
    if not around:
        return VacuumProbe(std, math.nan, math.nan, math.nan)
    # Frames of a denoised movie are alike, so only the coefficients of a single frame are taken as independent.
    sd = 1 / math.sqrt(n_near)
    excess = max(0.0, at - around) if at / around > 1 + 4 * sd else 0.0
    n_pixels = math.prod(shape)
    # By Parseval, each coefficient of the half plane stands for two.
    fringes = math.sqrt(2 * excess / n_pixels / (shape[1] * shape[2])) / dose
    return VacuumProbe(std, at / around, sd, fringes)


# Atoms that were not there, or are no more -----------------------------------------------------------------


def atom_image(shape: Sequence[int], sites: Array, sigma_px: float) -> Array:
    """Gaussians of height 1 at some sites, shape ``shape``; sites are (row, column), apart by several sigma."""
    rows, columns = np.ogrid[: shape[0], : shape[1]]
    image = np.zeros(tuple(shape))
    for row, column in sites:
        image += np.exp(-((rows - row) ** 2 + (columns - column) ** 2) / (2 * sigma_px**2))
    return image


def level_at(movie: Array, frame: int, drift: Array | None = None) -> Array:
    """The mean of a movie over time, shifted to where the scene is in one of its frames.

    Parameters
    ----------
    movie : ndarray, shape (n_frames, height, width)
    frame : int
    drift : ndarray, shape (n_frames, 2), optional
        Rows and columns that the scene has moved by [pixels]; where a frame does not show a place, its nearest pixel
        stands in: see `always_seen`.

    Returns
    -------
    ndarray, shape (height, width)
    """
    if drift is None:
        return np.asarray(movie.mean(axis=0, dtype=np.float64))
    total = np.zeros(movie.shape[1:])
    for other, shift in zip(movie, _shifts(drift, frame), strict=True):
        rows, columns = ((np.arange(n) + s).clip(0, n - 1) for n, s in zip(other.shape, shift, strict=True))
        total += other[np.ix_(rows, columns)]
    return total / len(movie)


def always_seen(shape: Sequence[int], frame: int, drift: Array | None = None) -> tuple[slice, slice]:
    """Rows and columns of one frame whose place in the scene all frames show.

    Parameters
    ----------
    shape : sequence of int
        (height, width) of the frames.
    frame : int
    drift : ndarray, shape (n_frames, 2), optional
        Rows and columns that the scene has moved by [pixels].

    Returns
    -------
    tuple of 2 slice
        Empty where the scene moves by more than the frame's size.

    Examples
    --------
    >>> always_seen((10, 10), 0, np.array([[0, 0], [2, -3]]))
    (slice(0, 8, None), slice(3, 10, None))
    """
    shifts = np.zeros((1, 2), int) if drift is None else _shifts(drift, frame)
    rows, columns = (
        slice(max(0, -low), max(0, -low, n - max(0, high)))
        for n, low, high in zip(shape, shifts.min(0).tolist(), shifts.max(0).tolist(), strict=True)
    )
    return rows, columns


def flat_sites(frame: Array, distance_px: float, n_sites: int) -> Array:
    """The places of a denoised frame that are most like vacuum, apart from each other and from the edges.

    Parameters
    ----------
    frame : ndarray, shape (height, width)
    distance_px : float
        Distance of the lattice planes; sites are two of them apart.
    n_sites : int
        At most.

    Returns
    -------
    ndarray, shape (n, 2)
        Rows and columns, the flattest first.
    """
    step = max(1, round(distance_px))
    rows, columns = (np.arange(step, n - step, max(1, step // 2)) for n in frame.shape)
    places = [
        (float(np.std(frame[r - step : r + step + 1, c - step : c + step + 1])), r, c)
        for r in rows
        for c in columns
    ]
    chosen: list[tuple[int, int]] = []
    for _, row, column in sorted(places):
        if all(math.hypot(row - r, column - c) >= 2 * distance_px for r, c in chosen):
            chosen.append((row, column))
        if len(chosen) == n_sites:
            break
    return np.array(chosen, int).reshape(-1, 2)


@dataclass(frozen=True)
class AdatomProbe:
    """What is left of atoms that were put in, or taken out, for some frames."""

    strength: float  # of the change, at its centre, as a share of the local level; below 0: taken out
    index: float  # detection index d' of a single raw frame
    recovered: float  # share of the change that the denoised movie shows in the middle of its dwell
    # How often a site in a frame of the dwell looks more like the change with it than without; 0.5 is chance.
    auc: float
    n_sites: int  # that stay in the field


def adatom_probe(
    denoise: Denoise,
    counts: Array,
    reference: Array,
    sites: Array,
    strengths: Sequence[float],
    sigma_px: float,
    dwell: int,
    seed: int = 0,
    drift: Array | None = None,
) -> list[AdatomProbe]:
    """Put atoms into a movie, or take them out, for some frames in its middle: are they seen, and how strong?

    Parameters
    ----------
    denoise : function
    counts : ndarray of int, shape (n_frames, height, width)
        [electrons]
    reference : ndarray, same shape
        The denoised movie of these counts; its mean over time is the level that changes refer to [electrons].
    sites : ndarray, shape (n, 2)
        Rows and columns in the movie's middle frame.
    strengths : sequence of float
        Changes at the centre of an atom, as shares of the local level: above 0 added, below 0 dropped.
    sigma_px : float
        Standard deviation of an atom's Gaussian image [pixels].
    dwell : int
        Frames for which it is there, or away.
    seed : int
    drift : ndarray, shape (n_frames, 2), optional
        Rows and columns that the scene has moved by [pixels]; atoms and the level move along.

    Returns
    -------
    list of AdatomProbe
        One for each strength; empty if no site stays in the field, with what an atom reaches, for the dwell.
    """
    rng = np.random.default_rng(seed)
    during = _middle(len(counts), dwell)
    places = _staying(_places(sites, len(counts), drift)[during], counts.shape[1:], sigma_px)
    if not places.size:
        return []
    expected = _level(reference, drift)[during]
    profile = np.stack([atom_image(counts.shape[1:], now, sigma_px) for now in places])
    without = _scores(reference[during], expected, places, sigma_px)
    near = _near(places[dwell // 2, 0], counts.shape[1:], sigma_px)
    level, shape = np.maximum(expected[dwell // 2][near], 1e-3), profile[dwell // 2][near]
    found = []
    for strength in strengths:
        changed = counts.copy()
        changed[during] = _changed(counts[during], expected, strength * profile, rng)
        scores = _scores(denoise(changed, 1.0)[during], expected, places, sigma_px)
        index = detection_index(level, level * (1 + strength * shape), 1.0)
        recovered = float(np.mean((scores - without)[dwell // 2])) / strength
        auc = _auc(np.sign(strength) * scores.ravel(), np.sign(strength) * without.ravel())
        found.append(AdatomProbe(strength, index, recovered, auc, places.shape[1]))
    return found


@dataclass(frozen=True)
class FlashProbe:
    """How far an event of a single frame reaches into the frames around."""

    offsets: tuple[int, ...]  # frames from the event
    response: tuple[
        float, ...
    ]  # share of the event that each frame shows; ideal is 1 at offset 0, and 0 elsewhere
    strength: float


def flash_probe(
    denoise: Denoise,
    counts: Array,
    reference: Array,
    sites: Array,
    strength: float,
    sigma_px: float,
    seed: int = 0,
    drift: Array | None = None,
) -> FlashProbe | None:
    """Put atoms into a single frame in the middle of a movie, and look for them in the frames around.

    Parameters
    ----------
    strength : float
        As in `adatom_probe`; strong enough to be seen in a single frame, so that what is measured is the smearing.
    denoise, counts, reference, sites, sigma_px, seed, drift
        As in `adatom_probe`.

    Returns
    -------
    FlashProbe or None
        None if no site stays in the field, with what an atom reaches, for the frames that are looked at.
    """
    rng = np.random.default_rng(seed)
    middle = len(counts) // 2
    offsets = tuple(o for o in FLASH_OFFSETS if 0 <= middle + o < len(counts))
    shown = slice(middle + offsets[0], middle + offsets[-1] + 1)
    places = _staying(_places(sites, len(counts), drift)[shown], counts.shape[1:], sigma_px)
    if not places.size:
        return None
    expected = _level(reference, drift)[shown]
    changed = counts.copy()
    at = offsets.index(0)
    profile = atom_image(counts.shape[1:], places[at], sigma_px)
    changed[middle] = _changed(counts[middle], expected[at], strength * profile, rng)
    difference = np.asarray(denoise(changed, 1.0)[shown], np.float64) - reference[shown]
    scores = _scores(expected + difference, expected, places, sigma_px)
    response = scores.mean(axis=1) / strength
    return FlashProbe(offsets, tuple(map(float, response)), strength)


def _middle(n_frames: int, length: int) -> slice:
    first = (n_frames - length) // 2
    return slice(first, first + length)


def _shifts(drift: Array, frame: int) -> NDArray[np.intp]:
    """Whole pixels by which the scene lies further on in each frame than in one of them.

    Unlike those of a network's windows, they have no limit: far frames would show another place.
    """
    return np.asarray(np.rint(drift - drift[frame]), dtype=np.intp)


def _level(reference: Array, drift: Array | None) -> Array:
    if drift is None:
        return np.broadcast_to(level_at(reference, 0), reference.shape)
    return np.stack([level_at(reference, frame, drift) for frame in range(len(reference))])


def _places(sites: Array, n_frames: int, drift: Array | None) -> Array:
    """Where sites of the middle frame are in every frame, shape (n_frames, n_sites, 2)."""
    moved = np.zeros((n_frames, 2)) if drift is None else drift - drift[n_frames // 2]
    return sites + moved[:, None]


def _staying(places: Array, shape: Sequence[int], sigma_px: float) -> Array:
    """Of places in some frames, shape (n_frames, n_sites, 2), those that are well inside in all of them."""
    reach, whole = _reach(sigma_px), np.rint(places)
    inside = (whole >= reach) & (whole < np.asarray(shape) - reach)
    return places[:, inside.all(axis=(0, 2))]


def _changed(counts: Array, expected: Array, change: Array, rng: np.random.Generator) -> Array:
    """Counts of the scene whose level is changed by a share of itself."""
    more = rng.poisson(np.maximum(change, 0) * np.maximum(expected, 0), counts.shape)
    kept = rng.binomial(counts, np.clip(1 + np.minimum(change, 0), 0, 1))
    return (kept + more).astype(counts.dtype)


def _reach(sigma_px: float) -> int:
    return math.ceil(2.5 * sigma_px)


def _near(site: Array, shape: Sequence[int], sigma_px: float) -> tuple[slice, slice]:
    """Pixels around a place in the field that an atom reaches."""
    reach = _reach(sigma_px)
    rows, columns = (
        slice(*np.clip([round(float(s)) - reach, round(float(s)) + reach + 1], 0, n).tolist())
        for s, n in zip(site, shape, strict=True)
    )
    return rows, columns


def _scores(frames: Array, expected: Array, places: Array, sigma_px: float) -> Array:
    """Strength of an atom at each site of frames: regression of what differs from the level on its image there.

    Shape (n_frames, n_sites).
    """
    scores = np.empty(places.shape[:2])
    for t, sites in enumerate(places):
        for number, site in enumerate(sites):
            near = _near(site, expected.shape[1:], sigma_px)
            level = expected[t][near]
            image = atom_image(expected.shape[1:], site[None], sigma_px)[near] * level
            scores[t, number] = np.sum((frames[t][near] - level) * image) / np.sum(image**2)
    return scores


def _auc(hits: Array, others: Array) -> float:
    """How often one of the first is larger than one of the second, ties counting half."""
    larger = np.mean(hits[:, None] > others) + np.mean(hits[:, None] == others) / 2
    return float(larger)
