"""Scenes for the base model beside those of the simulator: whatever else a microscope may show.

A network that has only seen perfect crystals takes every vacancy for noise, and paints lattices into films. These
scenes hold what must not be taken for granted: other lattices, grains that grow, vacancies and adatoms that stay for
one frame or for ever, films without any lattice, edges and gratings, particles that diffuse; bright or dark, still,
drifting or shaken.
"""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

Array = NDArray[Any]

SPACINGS_PX = 6.0, 30.0  # of lattices
WIDTHS = 0.13, 0.24  # of columns, standard deviation over the spacing
NARROWEST_PX = 0.9  # standard deviation of a column
FAINTEST = 0.02  # of the vacuum level: no pixel is darker
# Weight of errors at columns that change, beside their changes, and at places that break the order of a lattice.
CHANGING, CHANGE, ODD = 4, 40, 30
BESIDE = 4  # frames before a change, and from it on
KINDS = {"lattice": 0.6, "film": 0.12, "shapes": 0.14, "particles": 0.14}


class Scene(NamedTuple):
    """What a scene looks like without noise."""

    clean: NDArray[np.float16]  # (n_frames, size, size); vacuum is about 1
    importance: NDArray[np.uint8]  # (n_frames, size, size), weight of an error
    drift: NDArray[np.float64]  # (n_frames, 2), rows and columns, without what shakes it [pixels]


def varied_scene(seed: int, *, n_frames: int = 80, size: int = 96) -> Scene:
    """Clean movie of a scene that is fixed by its seed.

    Parameters
    ----------
    seed : int
    n_frames : int
    size : int
        Height and width [pixels].

    Returns
    -------
    Scene
    """
    rng = np.random.default_rng([seed, 79])
    drift, shaken = _motion(rng, n_frames)
    moved = drift + shaken
    kind = str(rng.choice(list(KINDS), p=list(KINDS.values())))
    importance = np.ones((n_frames, size, size), np.uint8)
    image = np.zeros((n_frames, size, size), np.float32)
    if kind == "lattice":
        image += _lattices(rng, moved, size, importance)
    elif kind == "shapes":
        image += _moving(_shapes(rng, _canvas(size, moved)), moved, size)
    elif kind == "particles":
        image += _particles(rng, moved, size)
    if kind == "film" or rng.uniform() < 0.45:
        strength = rng.uniform(0.03, 0.15) if kind == "film" else rng.uniform(0.005, 0.06)
        image += strength * _moving(_film(rng, _canvas(size, moved)), moved, size)
    if rng.uniform() < 0.3:
        image += rng.uniform(0.02, 0.15) * _moving(_smooth(rng, _canvas(size, moved)), moved, size)
    clean = 1 + rng.choice([1, 1, 1, -1]) * image
    return Scene(np.maximum(clean, FAINTEST).astype(np.float16), importance, drift)


def _motion(rng: np.random.Generator, n_frames: int) -> tuple[Array, Array]:
    """Drift, which can be followed, and shaking, which is new in every frame: (n_frames, 2) [pixels]."""
    drift, shaken = np.zeros((n_frames, 2)), np.zeros((n_frames, 2))
    how = rng.uniform()
    if how < 0.35:
        drift += np.arange(n_frames)[:, None] * rng.normal(0, 0.15, 2)
    elif how < 0.6:
        drift += np.cumsum(rng.normal(0, rng.uniform(0.05, 0.3), (n_frames, 2)), axis=0)
    if rng.uniform() < 0.15:
        shaken = rng.normal(0, rng.uniform(0.3, 2.0), (n_frames, 2))
    return drift - drift[0], shaken


def _log_uniform(rng: np.random.Generator, low: float, high: float) -> float:
    return float(np.exp(rng.uniform(math.log(low), math.log(high))))


def _canvas(size: int, moved: Array) -> int:
    """Side of a square that a field of this size never leaves while it moves."""
    return size + 2 * (math.ceil(float(np.abs(moved).max())) + 2)


def _moving(image: Array, moved: Array, size: int) -> Array:
    """A still image as the field sees it, frame by frame; moved by whole and by parts of pixels."""
    n = len(image)
    margin = (n - size) // 2
    if not moved.any():
        return np.broadcast_to(
            image[margin : margin + size, margin : margin + size], (len(moved), size, size)
        )
    rows, columns = np.fft.fftfreq(n)[:, None], np.fft.rfftfreq(n)
    spectrum = np.fft.rfft2(image)
    frames = np.empty((len(moved), size, size), np.float32)
    for frame, (dy, dx) in zip(frames, moved, strict=True):
        turned = spectrum * np.exp(-2j * np.pi * (rows * dy + columns * dx))
        frame[...] = np.fft.irfft2(turned, (n, n))[margin : margin + size, margin : margin + size]
    return frames


def _film(rng: np.random.Generator, n: int) -> Array:
    """An amorphous film: white noise in a band of frequencies, of variance 1."""
    frequency = np.hypot(np.fft.fftfreq(n)[:, None], np.fft.rfftfreq(n))
    middle, width = rng.uniform(0.02, 0.28), rng.uniform(0.02, 0.12)
    band = np.exp(-(((frequency - middle) / width) ** 2))
    if rng.uniform() < 0.5:  # as a lens out of focus transfers it
        band *= np.abs(np.sin(rng.uniform(10, 80) * frequency**2 + rng.uniform(0, 3)))
    film = np.fft.irfft2(np.fft.rfft2(rng.standard_normal((n, n))) * band, (n, n))
    return np.asarray((film - film.mean()) / film.std(), np.float32)


def _smooth(rng: np.random.Generator, n: int) -> Array:
    """Thickness that varies over tens of pixels, of variance 1."""
    frequency = np.hypot(np.fft.fftfreq(n)[:, None], np.fft.rfftfreq(n))
    blur = np.exp(-((frequency * rng.uniform(10, 50)) ** 2))
    image = np.fft.irfft2(np.fft.rfft2(rng.standard_normal((n, n))) * blur, (n, n))
    return np.asarray((image - image.mean()) / image.std(), np.float32)


def _edge(distance: Array, sharpness: float) -> Array:
    """1 inside, where the distance is negative; 0 outside [pixels]."""
    return np.asarray(1 / (1 + np.exp(np.clip(distance / sharpness, -30, 30))), np.float32)


def _shapes(rng: np.random.Generator, n: int) -> Array:
    """Half-planes, discs, boxes, ramps and gratings over one another."""
    y, x = np.mgrid[:n, :n].astype(np.float32)
    image = np.zeros((n, n), np.float32)
    for _ in range(rng.integers(2, 9)):
        centre, angle = rng.uniform(0, n, 2), rng.uniform(0, np.pi)
        u = (y - centre[0]) * math.sin(angle) + (x - centre[1]) * math.cos(angle)
        v = (y - centre[0]) * math.cos(angle) - (x - centre[1]) * math.sin(angle)
        extent = rng.uniform(4, 35, 2)
        box = _edge(np.maximum(np.abs(u) - extent[0], np.abs(v) - extent[1]), rng.uniform(0.2, 1.2))
        what = rng.uniform()
        if what < 0.15:
            box = _edge(u, rng.uniform(0.2, 2.0))
        elif what < 0.35:
            box = _edge(np.hypot(u, v) - extent[0], rng.uniform(0.2, 2.0))
        elif what < 0.5:
            box = box * np.clip(u / extent[0], -1, 1)
        elif what < 0.8:
            wave = np.sin(2 * np.pi * u / rng.uniform(3, 16) + rng.uniform(0, 6))
            box = box * (wave if rng.uniform() < 0.4 else (wave > 0) - 0.5)
        image += rng.uniform(-0.35, 0.35) * box
    return image


def _particles(rng: np.random.Generator, moved: Array, size: int) -> Array:
    """Discs at low magnification that diffuse, come and go."""
    n_frames = len(moved)
    image = np.zeros((n_frames, size, size), np.float32)
    y, x = np.mgrid[:size, :size].astype(np.float32)
    radius = _log_uniform(rng, 1.5, 10)
    strength = rng.uniform(0.1, 0.6)
    for _ in range(rng.integers(3, max(4, int(0.15 * size**2 / (4 * radius**2) + 4)))):
        step = rng.choice([0.0, rng.uniform(0.05, 1.5)])
        way = rng.uniform(0, size, 2) + np.cumsum(rng.normal(0, step, (n_frames, 2)), axis=0) + moved
        own = radius * rng.uniform(0.7, 1.3)
        first, last = 0, n_frames
        if rng.uniform() < 0.4:
            first = int(rng.integers(0, n_frames))
            last = first + int(_log_uniform(rng, 1, n_frames))
        height = strength * rng.uniform(0.6, 1.2)
        for t in range(first, min(last, n_frames)):
            image[t] += height * _edge(np.hypot(y - way[t, 0], x - way[t, 1]) - own, max(0.6, 0.15 * own))
    return image


def _lattices(rng: np.random.Generator, moved: Array, size: int, importance: Array) -> Array:
    """One or two crystals, with what breaks their order."""
    n_frames = len(moved)
    reach = size / 2 + float(np.abs(moved).max()) + 16
    spacing = _log_uniform(rng, *SPACINGS_PX)
    width = max(NARROWEST_PX, spacing * rng.uniform(*WIDTHS))
    height = rng.uniform(0.12, 0.6)
    inside = _boundary(rng, n_frames, size)
    grains = [_sites(rng, spacing, reach)]
    if rng.uniform() < 0.25:
        grains.append(_sites(rng, spacing * rng.uniform(0.8, 1.3), reach))
    angle, offset = rng.uniform(0, 2 * np.pi), rng.uniform(-0.3, 0.3) * size
    places, heights, odd = [], [], []
    for number, (grain, share) in enumerate(grains):
        if len(grains) > 1:
            side = grain[:, 0] * math.sin(angle) + grain[:, 1] * math.cos(angle) - offset
            keep = side > 0 if number else side <= 0
            grain, share = grain[keep], share[keep]
        places.append(grain)
        occupied, broken = _occupancy(rng, grain, n_frames, spacing)
        scatter = 1 + rng.normal(0, rng.choice([0.0, 0.1, 0.25]), len(grain))
        heights.append(height * share * scatter * occupied * inside(grain))
        odd.append(broken)
    adatoms, there = _adatoms(rng, size, n_frames)
    places.append(adatoms)
    heights.append(height * rng.uniform(0.3, 1.2, len(adatoms)) * there)
    odd.append(np.ones(len(adatoms), bool))
    sites, amounts = np.concatenate(places), np.concatenate(heights, axis=1)
    _weigh(importance, sites, amounts, np.concatenate(odd), moved, max(3.0, 1.5 * width))
    image = _draw(sites, amounts, moved, size, width)
    if rng.uniform() < 0.3:  # a dark fringe around every column, or a bright one
        image += rng.uniform(-0.25, 0.15) * _draw(sites, amounts, moved, size, 1.8 * width)
    return image


def _sites(rng: np.random.Generator, spacing: float, reach: float) -> tuple[Array, Array]:
    """Columns of a lattice around the middle of the field, and the strength of each."""
    n = math.ceil(2 * reach / spacing) + 2
    ratio, between = (
        rng.choice([1.0, 1.0, rng.uniform(0.7, 1.5)]),
        rng.choice([60.0, 90.0, rng.uniform(55, 100)]),
    )
    turn = rng.uniform(0, 2 * np.pi)
    one = spacing * np.array([math.sin(turn), math.cos(turn)])
    second = turn + math.radians(between)
    other = ratio * spacing * np.array([math.sin(second), math.cos(second)])
    i, j = np.mgrid[-n : n + 1, -n : n + 1]
    grid = (i[..., None] * one + j[..., None] * other).reshape(-1, 2) + rng.uniform(-0.5, 0.5, 2) * spacing
    strength = np.ones(len(grid))
    if rng.uniform() < 0.35:  # two kinds of columns
        grid = np.concatenate([grid, grid + one * rng.uniform(0.3, 0.7) + other * rng.uniform(0.3, 0.7)])
        strength = np.concatenate([strength, np.full(len(strength), rng.uniform(0.2, 1.0))])
    near = (np.abs(grid) <= reach).all(axis=1)
    return grid[near], strength[near]


def _boundary(rng: np.random.Generator, n_frames: int, size: int) -> Any:
    """Of places, shape (n, 2), how much they belong to a crystal that may end, and grow, in the field."""
    how, growing = rng.uniform(), rng.uniform() < 0.25
    growth = np.arange(n_frames)[:, None] * rng.uniform(-0.4, 0.4) * growing
    if how < 0.35:
        return lambda places: np.ones((n_frames, len(places)))
    if how < 0.7:
        centre, radius = rng.uniform(-0.2, 0.2, 2) * size, rng.uniform(0.2, 0.6) * size
        return lambda places: _edge(np.hypot(*(places - centre).T)[None] - radius - growth, 0.5)
    angle, offset = rng.uniform(0, 2 * np.pi), rng.uniform(-0.3, 0.3) * size
    return lambda places: _edge((places @ [math.sin(angle), math.cos(angle)])[None] - offset - growth, 0.5)


def _occupancy(rng: np.random.Generator, places: Array, n_frames: int, spacing: float) -> tuple[Array, Array]:
    """How full every column is in every frame, shape (n_frames, n); and which columns break the order for ever."""
    n = len(places)
    full, broken = np.ones((n_frames, n)), np.zeros(n, bool)
    if rng.uniform() < 0.65:  # vacancies that stay
        broken = rng.uniform(size=n) < rng.uniform(0.01, 0.15)
        full[:, broken] = rng.choice([0.0, 0.0, 0.0, 0.3, 0.6], size=broken.sum())
    if rng.uniform() < 0.6:  # columns that come and go, each side as long as it happens to be
        dwell = _log_uniform(rng, 1.0, 60.0), _log_uniform(rng, 1.0, 60.0)
        for column in np.flatnonzero(~broken & (rng.uniform(size=n) < rng.uniform(0.02, 0.4))):
            t, on = -int(rng.integers(0, 40)), bool(rng.integers(2))
            while t < n_frames:
                last = t + 1 + int(rng.exponential(dwell[int(on)]))
                full[max(0, t) : max(0, last), column] *= on
                t, on = last, not on
    if rng.uniform() < 0.35 and n > 8:  # vacancies that hop to a neighbour
        longest = _log_uniform(rng, 1.0, 30.0)
        for _ in range(rng.integers(1, max(2, n // 15) + 1)):
            here, t = int(rng.integers(n)), 0
            while t < n_frames:
                stay = 1 + int(rng.exponential(longest))
                full[t : t + stay, here] = 0
                away = np.hypot(*(places - places[here]).T)
                near = np.flatnonzero((away > 0) & (away < 1.3 * spacing))
                here, t = int(rng.choice(near)) if len(near) else here, t + stay
    return full, broken


def _adatoms(rng: np.random.Generator, size: int, n_frames: int) -> tuple[Array, Array]:
    """Columns at any place, and in which frames they are there, shape (n_frames, n)."""
    n = int(rng.poisson(rng.choice([0.5, 3.0, 6.0])))
    there = np.zeros((n_frames, n))
    for column in range(n):
        if rng.uniform() < 0.4:
            there[:, column] = 1
            continue
        for _ in range(rng.integers(1, 4)):
            first = int(rng.integers(0, n_frames))
            there[first : first + int(_log_uniform(rng, 1, n_frames)), column] = 1
    return rng.uniform(-size / 2, size / 2, (n, 2)), there


def _draw(sites: Array, amounts: Array, moved: Array, size: int, width: float) -> Array:
    """Gaussian columns around the middle of the field, each as strong as its amount in every frame."""
    along = np.arange(size) - (size - 1) / 2
    frames = np.empty((len(moved), size, size), np.float32)
    for frame, amount, way in zip(frames, amounts, moved, strict=True):
        there = np.flatnonzero(amount)
        y, x = (sites[there] + way).T
        rows = np.exp(-((along - y[:, None]) ** 2) / (2 * width**2)) * amount[there, None]
        columns = np.exp(-((along - x[:, None]) ** 2) / (2 * width**2))
        frame[...] = rows.T.astype(np.float32) @ columns.astype(np.float32)
    return frames


def _weigh(importance: Array, sites: Array, amounts: Array, odd: Array, moved: Array, radius: float) -> None:
    """Put weights where the order of a lattice is broken, where columns change, and most when they do."""
    size = importance.shape[1]
    along = np.arange(size) - (size - 1) / 2
    threshold = 0.3 * float(amounts.max(initial=0))
    changes = np.abs(np.diff(amounts, axis=0, prepend=amounts[:1])) > threshold
    changing = changes.any(axis=0)
    for t, (weights, way) in enumerate(zip(importance, moved, strict=True)):
        beside = changes[max(0, t - BESIDE + 1) : t + BESIDE + 1].any(axis=0)
        for chosen, weight in ((changing, CHANGING), (odd, ODD), (beside, CHANGE)):
            y, x = (sites[chosen] + way).T
            near = (np.abs(along - y[:, None]) <= radius).T.astype(np.float32) @ (
                np.abs(along - x[:, None]) <= radius
            ).astype(np.float32)
            np.maximum(weights, np.where(near > 0, weight, 1).astype(np.uint8), out=weights)
