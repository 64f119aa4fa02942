"""How far the scene has moved, from the correlation of images with one another."""

from __future__ import annotations

import numpy as np
from numpy.fft import irfft2, rfft2
from numpy.typing import NDArray

MIN_SIGNIFICANCE = 6.0  # correlation of two noise images: at most about 5 over all shifts
MAX_SHARE = 0.125  # of the field, after which a later image becomes the one to compare with


def drift(images: NDArray[np.floating]) -> NDArray[np.float64]:
    """Displacement of a scene in a series of images, relative to the first.

    Cross-correlation under a Hann window, without whitening, which would weigh all frequencies alike and so
    mostly noise; the peak is refined by a parabola. Where the scene has moved far, a later image takes the place
    of the first one, so that the two always overlap.

    Parameters
    ----------
    images : ndarray, shape (n, height, width)
        Means of groups of frames.

    Returns
    -------
    ndarray, shape (n, 2)
        Rows and columns that the scene has moved by [pixels]; NaN where the correlation is not significant.

    Examples
    --------
    >>> scene = np.random.default_rng(0).normal(size=(64, 64))
    >>> drift(np.stack([scene, np.roll(scene, (3, -2), axis=(0, 1))])).round().tolist()
    [[0.0, 0.0], [3.0, -2.0]]
    """
    shape = images.shape[1:]
    window = np.outer(*(np.hanning(n + 2)[1:-1] for n in shape)).astype(np.float32)
    n_pixels = float(np.square(window).sum() ** 2 / (window**4).sum())  # that count under the window

    def transform(image: NDArray[np.floating]) -> tuple[NDArray[np.complexfloating], float]:
        flat = (image - (image * window).sum() / window.sum()).astype(np.float32) * window
        norm = float(np.linalg.norm(flat))
        # What rounding leaves of a constant image is no contrast.
        return rfft2(flat), norm if norm > 1e-5 * float(np.linalg.norm(image * window)) else 0.0

    moved = np.full((len(images), 2), np.nan)
    moved[0] = 0
    anchor, anchor_norm = transform(images[0])
    anchor_at = last = np.zeros(2)
    for number, image in enumerate(images[1:], start=1):
        spectrum, norm = transform(image)
        correlation = irfft2(spectrum * anchor.conj(), shape)
        if not anchor_norm * norm > 0:
            continue
        # In units of its standard deviation for two images of white noise.
        significance = correlation.max() / (anchor_norm * norm) * np.sqrt(n_pixels)
        if significance < MIN_SIGNIFICANCE:
            continue
        last = anchor_at + _peak(correlation)
        moved[number] = last
        if (abs(last - anchor_at) > MAX_SHARE * np.asarray(shape)).any():
            anchor, anchor_norm, anchor_at = spectrum, norm, last
    return moved


def _peak(correlation: NDArray[np.floating]) -> NDArray[np.float64]:
    """Position of the maximum (row, column), to a fraction of a pixel, as a shift of either sign."""
    top = np.unravel_index(int(correlation.argmax()), correlation.shape)
    found = np.empty(2)
    for axis, (size, position) in enumerate(zip(correlation.shape, top, strict=True)):
        line = np.take(correlation, top[1 - axis], axis=1 - axis)
        before, here, after = (float(line[(position + k) % size]) for k in (-1, 0, 1))
        bend = before - 2 * here + after
        shift = position + (0.5 * (before - after) / bend if bend < 0 else 0.0)
        found[axis] = shift - size if shift > size / 2 else shift
    return found
