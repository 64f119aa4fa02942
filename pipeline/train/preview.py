"""A picture of one held-out frame as the training sees it so far, for whoever waits for it."""

from __future__ import annotations

import io
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from ..pictures.contrast import Limits, grey

PREVIEW = "preview.png"  # in the unfinished model; only the latest is kept, and none once the model is whole
GAP = 4  # pixels between the two
PERCENT = (0.3, 99.7)  # of the denoised frame that black and white are


def preview(noisy: NDArray[Any], denoised: NDArray[Any]) -> bytes:
    """A PNG file: the noisy frame beside the denoised one, each at its own contrast.

    Parameters
    ----------
    noisy, denoised : ndarray, shape (height, width)
        In any units.

    Returns
    -------
    bytes
    """
    shown = []
    for frame in (noisy, denoised):
        low, high = (float(v) for v in np.percentile(frame, PERCENT))
        shown.append(grey(frame, Limits(low, high if high > low else low + 1)))
    white = np.full((len(noisy), GAP), 255, np.uint8)
    data = io.BytesIO()
    Image.fromarray(np.hstack([shown[0], white, shown[1]])).save(data, "PNG")
    return data.getvalue()
