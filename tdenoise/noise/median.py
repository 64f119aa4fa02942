"""A quick median over neighbouring pixels."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

Array = NDArray[Any]


def median_of_nine(image: Array) -> Array:
    """Median over 3 x 3 pixels, the frame's edge repeated; a few times faster than a general median filter.

    The columns are sorted first: the median is that of the largest minimum, the median median and the smallest
    maximum of the three columns.
    """
    rows = np.pad(image, 1, mode="edge")
    a, b, c = rows[:-2], rows[1:-1], rows[2:]
    low, high = np.minimum(np.minimum(a, b), c), np.maximum(np.maximum(a, b), c)
    middle = _median(a, b, c)
    largest = np.maximum(np.maximum(low[:, :-2], low[:, 1:-1]), low[:, 2:])
    smallest = np.minimum(np.minimum(high[:, :-2], high[:, 1:-1]), high[:, 2:])
    return _median(largest, _median(middle[:, :-2], middle[:, 1:-1], middle[:, 2:]), smallest)


def _median(a: Array, b: Array, c: Array) -> Array:
    found: Array = np.maximum(np.minimum(a, b), np.minimum(np.maximum(a, b), c))
    return found
