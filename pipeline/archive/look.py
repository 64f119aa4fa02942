"""What a card says of how a movie looks: its picture, the power spectrum of its signal, the spacings of its lattice.

A few stretches of frames, and the middle of large frames, are looked at, so that the longest movie takes no longer.
"""

from __future__ import annotations

import hashlib
import io
import math
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from tdenoise.evaluation.residuals import lattice_spots
from tdenoise.files.atomic import make_shared_folder, write_atomically

from ..pictures.panels import shrink
from ..store import store
from ..store.blocks import Region

Array = NDArray[Any]

PICTURES = "pictures"  # folder of an archive, with a file for each movie
PICTURE_PIXELS = 96  # longer side of a picture
PERCENT = (0.5, 99.5)  # shown black and white
GROUPS, FRAMES, MIDDLE = 4, 16, 1024  # stretches, frames of each, rows and columns
RINGS = 16  # of the spectrum, from 0 to half a cycle per pixel
ALIKE, MOST_SPACINGS = 0.03, 6  # spacings that differ by less are one


def picture_of(opened: store.Store) -> bytes:
    """The mean of the first frames, as a small PNG."""
    frames = store.read_frames(opened, 0, min(FRAMES, opened.shape[0])).astype(np.float32)
    frame = np.nan_to_num(frames.mean(axis=0))
    frame = shrink(frame, max(1, -(-max(frame.shape) // PICTURE_PIXELS)))
    low, high = np.percentile(frame, PERCENT)
    grey = np.clip((frame - low) / max(float(high - low), 1e-12) * 255, 0, 255).astype(np.uint8)
    file = io.BytesIO()
    Image.fromarray(grey).save(file, "PNG", optimize=True)
    return file.getvalue()


def keep_picture(archive: Path, id: str, data: bytes) -> None:
    """Put a picture into an archive, in place of one that is damaged."""
    make_shared_folder(archive / PICTURES)
    write_atomically(archive / PICTURES / f"{id}.png", data)


def kept_picture(archive: Path, id: str, sha256: str | None) -> bytes | None:
    """The picture of a card; None where there is none that is as it was written."""
    file = archive / PICTURES / f"{id}.png"
    if sha256 is None or file.is_symlink():
        return None
    try:
        data = file.read_bytes()
    except OSError:
        return None
    return data if hashlib.sha256(data).hexdigest() == sha256 else None


def seen(opened: store.Store, noise_variance: float | None) -> dict[str, Any]:
    """``spectrum`` and ``lattice_nm`` of a movie.

    The spectrum is the product of those of the mean of the even and of the odd frames of a stretch: their noise is
    independent, so that on average only signal is left. It is given for `RINGS` rings from 0 to half a cycle per pixel,
    as a share of the squared mean, on average over the frequencies of a ring.

    Parameters
    ----------
    opened : Store
    noise_variance : float or None
        Of a pixel of a frame [counts^2].
    """
    means = list(_means(opened))
    powers = [power for even, odd in means if (power := _spectrum(even, odd)) is not None]
    found: dict[str, Any] = {"spectrum": None, "lattice_nm": []}
    if powers:
        found["spectrum"] = [float(f"{value:.4g}") for value in np.mean(powers, axis=0)]
    pixel = opened.coordinates.pixel_size_nm
    if pixel is not None and noise_variance and means:
        even, odd = means[0]
        spots = lattice_spots((even + odd) / 2, noise_variance / min(FRAMES, opened.shape[0]))
        found["lattice_nm"] = _spacings(spots, pixel)
    return found


def _means(opened: store.Store) -> Any:
    """Means of the even and of the odd frames of every stretch, without what is no number."""
    n_frames, *extent = opened.shape
    length = min(FRAMES, n_frames) // 2 * 2
    middle = [((n - min(n, MIDDLE)) // 2, (n + min(n, MIDDLE)) // 2) for n in extent]
    for start in np.unique(np.linspace(0, n_frames - length, GROUPS).astype(int)):
        region = Region((int(start), int(start) + length), middle[0], middle[1])
        frames = store.read_region(opened, region).astype(np.float32)
        yield tuple(np.nan_to_num(frames[k::2].mean(axis=0), posinf=0, neginf=0) for k in (0, 1))


def _spectrum(even: Array, odd: Array) -> Array | None:
    """Mean of the cross spectrum over every ring; None of frames that are blank or too small."""
    height, width = even.shape
    mean = float(even.mean() + odd.mean()) / 2
    if min(height, width) < 2 * RINGS or not mean > 0:
        return None
    window = np.hanning(height)[:, None] * np.hanning(width)
    one, other = (np.fft.rfft2((half - half.mean()) * window) for half in (even, odd))
    power = (one * other.conj()).real / (np.sum(window**2) * mean**2)
    frequency = np.hypot(np.fft.fftfreq(height)[:, None], np.fft.rfftfreq(width))
    ring = (frequency * 2 * RINGS).astype(int)
    inside = ring < RINGS
    sums, n = (np.bincount(ring[inside], weights, RINGS) for weights in (power[inside], None))
    return np.asarray(sums / np.maximum(n, 1))


def _spacings(spots: Array, pixel_nm: tuple[float, float]) -> list[float]:
    """Distances of the planes that make the spots [nm], the strongest first."""
    found: list[float] = []
    for row, column in spots:
        spacing = 1 / math.hypot(row / pixel_nm[0], column / pixel_nm[1])
        if all(abs(spacing / other - 1) > ALIKE for other in found):
            found.append(float(f"{spacing:.4g}"))
    return found[:MOST_SPACINGS]
