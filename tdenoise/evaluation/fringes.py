"""Lattice fringes where there is no lattice: the artefact of networks that saw too few frames.

A network that has learned a lattice by heart continues it into the vacuum (Crozier et al. 2025, figure 1: faint fringes
after 400 frames, none after 1,124). Real fringes may reach into the vacuum too, for a lens spreads them. Two questions
tell these apart: is there more power at the lattice's spots than elsewhere at the same fineness; and do the counts,
which the prediction never saw, show the fringes that it draws?
"""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

from .residuals import near_spots, spot_power

Array = NDArray[Any]

EDGE = 6  # pixels over which the window falls at the edge of the vacuum
LEAST_PIXELS = 200.0  # of vacuum, weighted by the window
ROTATIONS = 180  # of the spots, to see what chance gives: over half a turn, for the other half is the same
LEAST_ROTATIONS = 12
APART = 2.0  # [cycles per field] from every spot, for a rotated one


class Found(NamedTuple):
    """What was found in the vacuum of some frames."""

    ratio: float  # power at the spots, over that elsewhere at the same fineness; 1 where there are no fringes
    chance: float  # which 95 of 100 rotated lattices stay below
    supported: (
        float  # share of the fringes drawn that the counts show: 1 where they are real, 0 where invented
    )
    supported_error: float  # standard error, from the noise of the counts
    amplitude: float  # root mean square of what the spots show in vacuum [counts]
    n_pixels: float  # of vacuum


class Fringes:
    """Fringes in the vacuum of denoised frames, frame after frame; memory is a few frames.

    Parameters
    ----------
    vacuum : ndarray of bool, shape (height, width)
    spots : ndarray, shape (n, 2)
        Of the lattice, rows and columns [cycles per pixel]; see `tdenoise.evaluation.residuals.lattice_spots`.
    variance : float
        Of the noise of a pixel in vacuum [counts^2].

    Examples
    --------
    >>> y, x = np.mgrid[:64, :64]
    >>> vacuum, wave = x < 40, 0.1 * np.cos(2 * np.pi * y / 8)
    >>> looked = Fringes(vacuum, np.array([[1 / 8, 0.0]]), 2.0)
    >>> rng = np.random.default_rng(0)
    >>> for _ in range(40):
    ...     looked.add(rng.poisson(2.0, wave.shape), 2 + wave + 0.01 * rng.standard_normal(wave.shape))
    >>> found = looked.result()
    >>> bool(found.ratio > found.chance), bool(found.supported < 4 * found.supported_error)
    (True, True)
    """

    def __init__(self, vacuum: NDArray[np.bool_], spots: Array, variance: float) -> None:
        framed = np.pad(vacuum, 1)
        depth = ndimage.distance_transform_edt(framed)[1:-1, 1:-1]
        self._window = np.sin(np.pi / 2 * np.minimum(1, depth / EDGE)) ** 2
        self._n_pixels = float(self._window.sum())
        self._shape = (vacuum.shape[0], vacuum.shape[1])
        self._spots = np.reshape(np.asarray(spots, np.float64), (-1, 2))
        self._near = near_spots(self._spots, self._shape)
        self._variance = variance
        self._power: Any = 0.0
        self._shown = self._common = self._noise = 0.0
        self._n_frames = 0

    @property
    def possible(self) -> bool:
        """Whether there is a lattice to look for, and a vacuum to look in."""
        return len(self._spots) > 0 and self._n_pixels >= LEAST_PIXELS

    def add(self, counts: Array, denoised: Array) -> None:
        """Take in a frame, shape (height, width), and what was predicted for it without it [counts]."""
        window = self._window
        y, f = (window * (a - np.average(a, weights=window)) for a in (counts, denoised))
        spectrum = np.fft.rfft2(f)
        self._power = self._power + np.abs(spectrum) ** 2
        drawn = np.fft.irfft2(np.where(self._near, spectrum, 0), s=self._shape)
        self._shown += float(np.vdot(drawn, f))
        self._common += float(np.vdot(drawn, y))
        # Of the sum, from independent noise in every pixel of the counts.
        self._noise += self._variance * float(np.square(drawn * window).sum())
        self._n_frames += 1

    def result(self) -> Found | None:
        """What was found; None where there is no lattice, no vacuum, or nothing to compare with."""
        if not self.possible or not self._n_frames or self._shown <= 0:
            return None
        at, around, _ = spot_power(self._power, self._spots, self._shape)
        others = [r for r in map(self._ratio, _rotated(self._spots, self._shape)) if math.isfinite(r)]
        if around <= 0 or len(others) < LEAST_ROTATIONS:
            return None
        return Found(
            at / around,
            float(np.quantile(others, 0.95)),
            self._common / self._shown,
            # Predictions of neighbouring frames hold each other's noise, which at most doubles the variance.
            math.sqrt(2 * self._noise) / self._shown,
            math.sqrt(self._shown / (self._n_frames * self._n_pixels)),
            self._n_pixels,
        )

    def _ratio(self, spots: Array) -> float:
        at, around, _ = spot_power(self._power, spots, self._shape)
        return at / around if around > 0 else math.nan


def _rotated(spots: Array, shape: tuple[int, int]) -> list[Array]:
    """The spots of the lattice turned in all directions, without those that meet a spot."""
    found = []
    both = np.concatenate([spots, -spots])
    for angle in np.pi * (np.arange(ROTATIONS) + 0.5) / ROTATIONS:
        turn = np.array([[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]])
        turned = spots @ turn
        turned = np.where(turned[:, 1:] < 0, -turned, turned)  # the half that is stored
        apart = np.abs((turned[:, None] - both[None]) * np.array(shape)).max(axis=-1).min()
        if apart > APART and np.abs(turned).max() < 0.48:
            found.append(turned)
    return found
