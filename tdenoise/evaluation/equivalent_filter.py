"""The filter that a network amounts to at one pixel: how it weighs every pixel it sees.

A denoised pixel is nearly a weighted mean of the counts around it, with weights that the network fits to the scene.
They are a row of its Jacobian, by one backward pass [1]_.

References
----------
.. [1] Mohan et al., "Robust and interpretable blind image denoising via bias-free convolutional neural networks",
   ICLR 2020; for video, Sheth et al. 2021.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

Array = NDArray[Any]


@dataclass(frozen=True)
class EquivalentFilter:
    """Weights of all pixels in one denoised pixel."""

    weights: Array  # (n_frames, height, width), d prediction / d count
    pixel: tuple[int, int, int]  # frame, row and column that is predicted

    @property
    def per_frame(self) -> Array:
        """Sum of the weights of each frame, shape (n_frames,)."""
        total: Array = self.weights.sum(axis=(1, 2), dtype=np.float64)
        return total

    @property
    def total(self) -> float:
        """Sum of all weights; 1 for a mean. Less where the network adds what it knows of the movie."""
        return float(self.per_frame.sum())

    @property
    def n_averaged(self) -> float:
        """Number of equally weighed pixels that leave as much noise: ``sum(w)**2 / sum(w**2)``."""
        squares = float(np.sum(np.square(self.weights, dtype=np.float64)))
        return self.total**2 / squares if squares else 0.0

    @property
    def shifts(self) -> Array:
        """Centre of the absolute weights of each frame, from the pixel, shape (n_frames, 2) [pixels].

        Follows the scene where it moves; NaN for frames without weight.
        """
        size = np.abs(self.weights).astype(np.float64)
        total = size.sum(axis=(1, 2))
        rows = size.sum(axis=2) @ np.arange(size.shape[1])
        columns = size.sum(axis=1) @ np.arange(size.shape[2])
        with np.errstate(invalid="ignore", divide="ignore"):
            return np.stack([rows / total - self.pixel[1], columns / total - self.pixel[2]], axis=-1)

    def own(self, radius: int = 0) -> float:
        """Largest absolute weight in the blind spot: 0, or the network sees what it must not."""
        frame, row, column = self.pixel
        near = self.weights[
            frame,
            max(0, row - radius) : row + radius + 1,
            max(0, column - radius) : column + radius + 1,
        ]
        return float(np.abs(near).max())


def equivalent_filter(
    predict: Callable[[Tensor], Tensor], frames: Array, pixel: tuple[int, int, int]
) -> EquivalentFilter:
    """The weights with which a prediction depends on every pixel.

    Parameters
    ----------
    predict : function of a Tensor, shape (n_frames, height, width), that returns one of shape (height, width)
        Frames [counts] to the prediction of frame ``pixel[0]`` [counts], differentiable.
    frames : ndarray, shape (n_frames, height, width)
        [counts]
    pixel : tuple of int
        Frame, row and column to predict.
    """
    seen = torch.from_numpy(np.asarray(frames, np.float32)).requires_grad_(True)
    with torch.enable_grad():
        (gradient,) = torch.autograd.grad(predict(seen)[pixel[1], pixel[2]], seen)
    return EquivalentFilter(gradient.numpy(), pixel)
