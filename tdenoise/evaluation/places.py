"""What kinds of place a movie shows: vacuum, lattice, film, edges. An average over all of them hides the rare ones."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

Array = NDArray[Any]

KINDS = ("vacuum", "lattice", "film", "edge")
CELL = 32  # rows and columns of what is looked at; neighbours overlap by half
SIGNIFICANT = 4.0  # standard deviations of its noise, that the power of a cell must exceed it by
SPOTS, MOST_PERIODIC = (
    3,
    0.65,
)  # spots that a hexagonal lattice has, and their share of the power of the signal
FINE = 2.0  # waves over a cell, of which a lattice has at least so many
COARSE, MOST_COARSE = (
    2.5,
    0.5,
)  # waves over a cell, and the share of the power that an edge has in longer ones


def kinds_of_place(mean: Array, variance: float) -> NDArray[np.intp]:
    """Kind of place that every pixel of a mean frame lies in.

    A cell whose power is that of its noise is vacuum. Otherwise the power above the noise tells: most of it in a few
    spots is a lattice, most of it in waves as long as the cell an edge; the rest is film.

    Parameters
    ----------
    mean : ndarray, shape (height, width)
        Of many frames [counts].
    variance : float
        Of the noise of this mean [counts^2].

    Returns
    -------
    ndarray of int, shape (height, width)
        Index into `KINDS`.
    """
    height, width = mean.shape
    size = min(CELL, height, width)
    window = np.outer(np.hanning(size + 2)[1:-1], np.hanning(size + 2)[1:-1])
    rows, columns = (_starts(n, size) for n in (height, width))
    whole = float(mean.mean())
    fold = np.rint(np.fft.fftfreq(size) * size)
    waves = np.hypot(
        fold[:, None], fold[: size // 2 + 1].clip(0) if size % 2 else np.abs(fold[: size // 2 + 1])
    )
    kinds = np.empty((len(rows), len(columns)), dtype=np.intp)
    for i, top in enumerate(rows):
        for j, left in enumerate(columns):
            cell = mean[top : top + size, left : left + size]
            flat = (cell - np.average(cell, weights=window)) * window
            # The noise of counts grows with their mean.
            brighter = max(float(np.average(cell, weights=window)) / whole, 0.05) if whole > 0 else 1.0
            kinds[i, j] = _kind(
                np.square(np.abs(np.fft.rfft2(flat))),
                waves,
                variance * brighter * float(np.square(window).sum()),
            )
    nearest = [
        np.abs(np.arange(n)[:, None] - (np.asarray(starts) + (size - 1) / 2)).argmin(axis=1)
        for n, starts in zip((height, width), (rows, columns), strict=True)
    ]
    return kinds[np.ix_(*nearest)]


def _kind(power: Array, waves: Array, noise: float) -> int:
    """Of a cell, from its power spectrum and the noise in each of its coefficients."""
    inner = (waves > 0) & (waves <= waves.shape[0] // 2)
    # The power of noise is exponential: its standard deviation is its mean. A window makes neighbours alike.
    excess = float((power[inner] - noise).sum())
    if excess < SIGNIFICANT * noise * np.sqrt(2.25 * inner.sum()):
        return KINDS.index("vacuum")
    signal = np.where(inner, power - noise, 0)
    coarse = float(signal[waves < COARSE].sum())
    fine, periodic = np.where(waves < FINE, 0, signal), 0.0
    for _ in range(SPOTS):
        row, column = np.unravel_index(int(fine.argmax()), fine.shape)
        spot = np.ix_(
            [(row + d) % len(fine) for d in (-1, 0, 1)],
            [c for c in (column - 1, column, column + 1) if 0 <= c < fine.shape[1]],
        )
        periodic += float(fine[spot].sum())
        fine[spot] = 0
    if periodic > MOST_PERIODIC * excess:
        return KINDS.index("lattice")
    return KINDS.index("edge" if coarse > MOST_COARSE * excess else "film")


def _starts(n: int, size: int) -> list[int]:
    """First pixels of cells that cover an axis and overlap by half."""
    number = max(1, -(-(n - size) // max(1, size // 2)) + 1)
    return [int(start) for start in np.linspace(0, n - size, number).round()]
