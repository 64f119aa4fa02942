"""What a page may ask about a movie and what was made of it."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from tdenoise.inference.local_means import noise_gain
from tdenoise.noise.noise import NoiseLaw, noise_law

from ..errors import InputError
from ..inputs.found_events import changes_beside
from ..inputs.model_fit import movie_noise
from ..inputs.shown import Shown
from ..store import store
from .frames import Disc, Frames, Packed, View, means_in

LARGEST_RADIUS = 64  # of a disc [pixels]
TRACE_FRAMES = 512  # at once
COARSEST = 64
BAND = 1.96  # standard deviations: 95 of 100 counts lie within


class Movies:
    """The counts and the denoised movie, or one of them.

    Parameters
    ----------
    shown : list of Shown
        One or both, of the same shape.
    """

    def __init__(self, shown: list[Shown]) -> None:
        self.layers = {each.store.name: Frames(each) for each in shown}
        self.title = shown[-1].store.path.parent.name + "/" + shown[-1].store.path.name
        self.store = shown[-1].store
        self.changes = changes_beside(self.store) if "movie" in self.store.attributes else None
        self.law, self.correlations = _noise(self.layers.get(store.MOVIE))

    def about(self) -> dict[str, Any]:
        """What there is to see."""
        coordinates = self.store.coordinates
        return {
            "title": self.title,
            "shape": self.store.shape,
            "frame_time_s": coordinates.frame_time_s,
            "first_frame": coordinates.first[0],
            "pixel_size_nm": None if coordinates.pixel_size_nm is None else coordinates.pixel_size_nm[1],
            "units": self.store.units,
            "layers": {name: {"window": frames.shown.window} for name, frames in self.layers.items()},
            "changes": self.changes,
            "noise": None if self.law is None else [self.law.gain, self.law.read_variance],
        }

    def frame(self, layer: str, *, t: int, pixels: int, y0: int, y1: int, x0: int, x1: int) -> Packed:
        """A part of a frame at a resolution.

        Raises
        ------
        ValueError
            If it lies outside the movie.
        InputError
            If it is damaged.
        """
        n_frames, height, width = self.store.shape
        if not (0 <= t < n_frames and 0 <= y0 < y1 <= height and 0 <= x0 < x1 <= width):
            raise ValueError("outside the movie")
        if not 1 <= pixels <= COARSEST or pixels & (pixels - 1) or y0 % pixels or x0 % pixels:
            raise ValueError("no resolution")
        return self.layers[layer].packed(t, View((y0, y1), (x0, x1), pixels))

    def trace(self, *, y: int, x: int, radius: int, t0: int, t1: int) -> dict[str, Any]:
        """Mean over a disc of both movies in some frames, and where the counts lie if the denoised movie is right.

        Raises
        ------
        ValueError
            If it lies outside the movie.
        InputError
            If a frame is damaged.
        """
        n_frames, height, width = self.store.shape
        inside = 0 <= y < height and 0 <= x < width and 0 <= radius <= LARGEST_RADIUS
        if not (inside and 0 <= t0 < t1 <= n_frames and t1 - t0 <= TRACE_FRAMES):
            raise ValueError("outside the movie")
        disc = Disc(y, x, radius, (height, width))
        found: dict[str, Any] = {"t0": t0, "n_pixels": int(disc.inside.sum())}
        means = {
            name: means_in(frames.shown.levels[0].array, (t0, t1), disc)
            for name, frames in self.layers.items()
        }
        found |= {name: _listed(values) for name, values in means.items()}
        if self.law is not None and store.DENOISED in means:
            expected = np.maximum(means[store.DENOISED], 0)
            # Neighbours whose noise is alike say less than as many that are not.
            gain = noise_gain(disc.inside / found["n_pixels"], self.correlations)
            variance = (self.law.gain * expected + self.law.read_variance) * gain
            found["half_width"] = _listed(BAND * np.sqrt(np.maximum(variance, 0)))
        return found


def _noise(movie: Frames | None) -> tuple[NoiseLaw | None, list[tuple[int, int, float]]]:
    """How the noise of the counts grows, None where that is not known and no band is drawn; and how alike it is."""
    if movie is None:
        return None, []
    opened = movie.shown.store
    try:
        noise = movie_noise(opened)
    except InputError:
        return None, []
    law = noise_law(noise, opened.attributes["detector"]["counts_per_electron"])
    return law, [(c.y, c.x, c.value) for c in noise.correlations if c.t == 0 and c.matters]


def _listed(values: NDArray[np.float64]) -> list[float | None]:
    """For JSON, which has no NaN."""
    return [float(f"{value:.6g}") if np.isfinite(value) else None for value in values.tolist()]
