"""The noise of a raw movie, measured on the movie itself."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.ndimage import median_filter

MIN_SNR = 0.02  # floor of Scale.contrast / Scale.noise, for movies in which nothing is seen


@dataclass(frozen=True)
class NoiseStatistics:
    """Noise from pairs of successive frames; the scene cancels in their difference.

    A counting camera has ``fano`` 1 and all correlations 0. ``fano`` above 1 means an integrating camera or a
    gain; correlation between neighbours means charge spread or resampling, and asks for a larger blind spot.
    """

    mean: float  # [counts per pixel and frame]
    noise_variance: float  # half the variance of frame differences [counts^2]
    signal_variance: float  # covariance of successive frames: what is not noise [counts^2]
    fano: float  # noise_variance / mean; NaN where the mean is not positive
    correlation_x: float  # of the noise of neighbours along a row
    correlation_y: float  # along a column
    correlation_t: float  # of successive noise samples in time
    n_pixels: int  # pixel pairs measured

    def to_json(self) -> dict[str, Any]:
        """Plain values; numbers that could not be measured are None."""
        return {k: (v if np.isfinite(v) else None) for k, v in asdict(self).items()}

    @classmethod
    def from_json(cls, values: dict[str, Any]) -> NoiseStatistics:
        """Inverse of `to_json`."""
        filled: dict[str, Any] = {k: (float("nan") if v is None else v) for k, v in values.items()}
        return cls(**filled)

    @property
    def is_poisson(self) -> bool:
        """True where the counts behave as independent electrons, so that variance equals mean."""
        white = max(abs(self.correlation_x), abs(self.correlation_y), abs(self.correlation_t))
        return bool(abs(self.fano - 1.0) < 0.05 + self.uncertainty and white < 0.03 + self.uncertainty)

    @property
    def uncertainty(self) -> float:
        """Three standard deviations of a correlation that is measured on this many pixels."""
        return float(3 / np.sqrt(self.n_pixels)) if self.n_pixels else float("inf")


@dataclass(frozen=True)
class Scale:
    """How counts of one movie become numbers near 1 for the network, and back.

    Inputs are ``(counts - mean) / noise``; the prediction is ``mean + contrast * output``. Fixed for a whole
    movie: a scale per block or per patch would make seams and would show a pixel to itself.
    """

    mean: float
    noise: float
    contrast: float

    @classmethod
    def of(cls, statistics: NoiseStatistics) -> Scale:
        """The scale of a movie with these statistics.

        Raises
        ------
        ValueError
            If the movie has no noise at all: it is constant, or was denoised before.
        """
        if not statistics.noise_variance > 0:
            raise ValueError(
                "successive frames do not differ anywhere: a constant movie has nothing to learn from"
            )
        noise = float(np.sqrt(statistics.noise_variance))
        contrast = 2.0 * float(np.sqrt(max(statistics.signal_variance, 0.0)))
        return cls(mean=float(statistics.mean), noise=noise, contrast=max(contrast, MIN_SNR * noise))


class NoiseAccumulator:
    """Collect `NoiseStatistics` from groups of successive frames, a few at a time.

    Examples
    --------
    >>> accumulator = NoiseAccumulator()
    >>> accumulator.add(np.random.default_rng(0).poisson(1.0, (4, 64, 64)))
    >>> abs(accumulator.result().fano - 1) < 0.1
    True
    """

    def __init__(self) -> None:
        self._sums = np.zeros(10)

    def add(self, frames: NDArray[Any]) -> None:
        """Add successive frames, shape (at least 2, height, width) [counts]."""
        movie = np.asarray(frames, dtype=np.float64)
        first, second = movie[:-1], movie[1:]
        difference = second - first
        centre = difference - difference.mean()
        sums = self._sums
        sums[0] += movie.sum()
        sums[1] += movie.size
        sums[2] += np.square(centre).sum()
        sums[3] += centre.size
        sums[4] += (centre[:, :, 1:] * centre[:, :, :-1]).sum() * _share(centre.shape[2])
        sums[5] += (centre[:, 1:] * centre[:, :-1]).sum() * _share(centre.shape[1])
        # Successive differences share one frame: white noise gives -1/2 of the variance.
        if len(centre) > 1:
            sums[6] += (centre[1:] * centre[:-1]).sum()
            sums[7] += np.square(centre[1:]).sum() / 2 + np.square(centre[:-1]).sum() / 2
        level = movie.mean()
        sums[8] += ((first - level) * (second - level)).sum()

    def sums(self) -> list[float]:
        """The running sums, to be added to those of other parts of the movie."""
        return [float(s) for s in self._sums]

    def merge(self, sums: list[float]) -> None:
        """Add the sums of another part."""
        self._sums += np.asarray(sums)

    def result(self) -> NoiseStatistics:
        """Statistics of everything added so far."""
        s = self._sums
        if s[3] == 0:
            raise ValueError("no pair of frames was added")
        mean, spread = s[0] / s[1], s[2]
        nan = float("nan")
        return NoiseStatistics(
            mean=float(mean),
            noise_variance=float(spread / s[3] / 2),
            signal_variance=float(s[8] / s[3]),
            fano=float(spread / s[3] / 2 / mean) if mean > 0 else nan,
            correlation_x=float(s[4] / spread) if spread > 0 else nan,
            correlation_y=float(s[5] / spread) if spread > 0 else nan,
            # In units of the noise itself: 0 for white noise, towards 1 for noise that persists.
            correlation_t=float(1 + 2 * s[6] / s[7]) if s[7] > 0 else nan,
            n_pixels=int(s[3]),
        )


def _share(length: int) -> float:
    """Factor that makes a sum over ``length - 1`` neighbour pairs comparable with one over ``length`` pixels."""
    return length / (length - 1) if length > 1 else 0.0


def find_hot_pixels(frames: NDArray[Any]) -> NDArray[np.intp]:
    """Pixels that are far brighter than their neighbours in the mean of some frames.

    Parameters
    ----------
    frames : ndarray, shape (n, height, width)
        Raw frames [counts]; some ten or more.

    Returns
    -------
    ndarray, shape (n_hot, 2)
        Row and column of each.
    """
    mean = frames.mean(axis=0, dtype=np.float64)
    excess = mean - median_filter(mean, 3, mode="nearest")
    # A robust standard deviation, so that the hot pixels do not hide themselves.
    spread = max(1.4826 * float(np.median(np.abs(excess))), 1e-9 * float(np.abs(mean).max()))
    return np.argwhere(excess > 20 * spread) if spread > 0 else np.empty((0, 2), dtype=np.intp)


def choose_blind_radius(statistics: NoiseStatistics, threshold: float = 0.02) -> int:
    """Smallest blind radius that hides pixels with correlated noise.

    A correlation of 5 % between neighbours already costs a one-pixel blind spot over 1 dB, for it lets the
    network predict noise; see docs/model.md. Correlations further than one pixel were not measured, so a
    strong one is answered with a radius of 2.
    """
    worst = max(abs(statistics.correlation_x), abs(statistics.correlation_y))
    if not np.isfinite(worst) or worst < threshold + statistics.uncertainty:
        return 0
    return 1 if worst < 0.2 else 2
