"""Draw the columns of a simulated particle and its support, frame by frame."""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from .particle import MASK_RADIUS_NM, PT_LATTICE_NM, SURFACE, Array, SimulationSettings, Structure

PEAK_SIGMA_NM = 0.056  # sets the finest detail, about 0.09 nm
PEAK_REACH = 4.5  # stamp radius in units of the peak's sigma; beyond it the peak is below 2e-4
PT_PEAK, PT_SATURATION_ATOMS = 0.62, 2.5  # peak height of a thick column; atoms to reach 63 % of it
CE_PEAK, O_PEAK = 0.42, 0.18
PT_OFFSET, SUPPORT_OFFSET = -0.08, 0.04  # net intensity of a column, as a share of its peak


def peak_height(atoms: Any) -> Any:
    return PT_PEAK * (1 - np.exp(-np.asarray(atoms) / PT_SATURATION_ATOMS))


def tilt_damping(n_full: Array, angles_deg: Array) -> Array:
    """A tilted column is a short line in projection: a lower, wider peak (here only lower). Shape (T, N)."""
    tilt = np.hypot(angles_deg[:, 1], angles_deg[:, 2])
    smear_nm = np.deg2rad(tilt)[:, None] * n_full[None, :] * PT_LATTICE_NM / math.sqrt(2)
    damping: Array = 1 / (1 + smear_nm**2 / 12 / PEAK_SIGMA_NM**2)
    return damping


def positions_of(structure: Structure, angles_deg: Array, drift: Array) -> Array:
    """Column positions in every frame, shape (T, N, 2)."""
    angle = np.deg2rad(angles_deg[:, 0])[:, None]
    rows, cols = (structure.particle - structure.centre).T
    turned = np.stack(
        [rows * np.cos(angle) - cols * np.sin(angle), rows * np.sin(angle) + cols * np.cos(angle)], -1
    )
    return np.asarray(turned + structure.centre + drift[:, None, :])


def render(
    settings: SimulationSettings,
    structure: Structure,
    positions: Array,
    peaks: Array,
    drift: Array,
    changed: Array,
) -> tuple[Array, dict[str, Array]]:
    shape = (settings.height, settings.width)
    sigma, radius = (length / settings.pixel_size_nm for length in (PEAK_SIGMA_NM, MASK_RADIUS_NM))
    static = structure.kind <= SURFACE
    clean = np.ones((settings.n_frames, *shape), np.float32)
    touched, changing = np.zeros(shape, bool), np.zeros(shape, bool)
    in_particle, in_support = np.ones(shape, bool), np.ones(shape, bool)
    for k in range(settings.n_frames):
        support = structure.support + drift[k]
        for places, peak, offset in (
            (positions[k], peaks[k], PT_OFFSET),
            (support, structure.support_peak, SUPPORT_OFFSET),
        ):
            image, reached = _add_peaks(shape, places, peak, sigma, offset)
            clean[k] += image
            touched |= reached
        in_particle &= near(shape, positions[k, static], radius)
        in_support &= near(shape, support, radius)
        changing |= near(shape, positions[k, changed], radius)
    masks = {
        "vacuum_mask": ~touched,
        "particle_mask": in_particle,
        "support_mask": in_support & ~in_particle,
        "changing_mask": changing,
    }
    # Rounded once, here: then the stored float16 movie is the exact expectation of the counts.
    return clean.astype(np.float16).astype(np.float32), masks


def _add_peaks(
    shape: tuple[int, int], places: Array, heights: Array, sigma: float, offset: float
) -> tuple[Array, Array]:
    """Sum of bright peaks with a dark ring, each drawn on a small stamp at its subpixel place.

    The peak is the negative Laplacian of a Gaussian (a phase object transfers no mean intensity) plus a
    weak Gaussian. Returns the image and where any stamp reached, also of columns of height 0.
    """
    index, inside, row, col = _stamps(shape, places, math.ceil(PEAK_REACH * sigma))
    gauss_row, gauss_col = (np.exp(-0.5 * (d / sigma) ** 2) for d in (row, col))
    radius = (row[:, :, None] ** 2 + col[:, None, :] ** 2) / (2 * sigma**2)
    inside &= radius <= PEAK_REACH**2 / 2
    stamp = heights[:, None, None] * gauss_row[:, :, None] * gauss_col[:, None, :] * (1 + offset - radius)
    size = shape[0] * shape[1]
    image = np.bincount(index[inside], stamp[inside], size).reshape(shape)
    return image, (np.bincount(index[inside], minlength=size) > 0).reshape(shape)


def near(shape: tuple[int, int], places: Array, radius: float) -> Array:
    """Pixels within a radius of places (row, column), shape ``shape``, bool."""
    index, inside, row, col = _stamps(shape, places, math.ceil(radius))
    inside &= row[:, :, None] ** 2 + col[:, None, :] ** 2 <= radius**2
    found = np.zeros(shape[0] * shape[1], bool)
    found[index[inside]] = True
    return found.reshape(shape)


def _stamps(shape: tuple[int, int], places: Array, reach: int) -> tuple[Array, Array, Array, Array]:
    """Squares around places: flat pixel indices, which lie inside the frame, distances along each axis."""
    offsets = np.arange(-reach, reach + 1)
    rows = np.rint(places[:, :1]).astype(int) + offsets
    cols = np.rint(places[:, 1:]).astype(int) + offsets
    index = rows[:, :, None] * shape[1] + cols[:, None, :]
    inside = ((rows >= 0) & (rows < shape[0]))[:, :, None] & ((cols >= 0) & (cols < shape[1]))[:, None, :]
    return index, inside, rows - places[:, :1], cols - places[:, 1:]
