"""Where a denoised movie says something that the movie's own counts refute, over times of several lengths."""

from __future__ import annotations

import heapq
from array import array
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from tdenoise.inference.evidence import Evidence, corners
from tdenoise.inference.refutation import MATTERS, SIZES, Refuted, contrasts, refuted, significance
from tdenoise.network.split_blind import Architecture
from tdenoise.noise.noise import NoiseStatistics

from ..inputs.bad_pixels import movie_stand_ins
from ..inputs.model_fit import movie_drift
from ..inputs.paired import Slab
from ..store import store
from .evaluation_result import RefutedFigures, RefutedPlace

# Frames of a stretch, and what is looked for in it: a few frames tell nothing of single pixels.
STRETCHES: dict[int, tuple[str, ...]] = {4: ("column",), 16: ("column", "patch"), 64: tuple(SIZES)}
MAX_NAMED = 100  # places that are told one by one
MAX_KEPT = 10_000  # clearest places that are kept; of others, only how much each shows too much or too little


@dataclass
class _Stretch:
    """Sums over some successive frames."""

    length: int | None  # None: all frames
    sums: Evidence
    first: int = 0
    n_frames: int = 0


class Refutation:
    """Sums of the residual over the movie and over stretches of it, slab by slab; memory is that of some frames."""

    def __init__(self, movie: store.Store, denoised: store.Store) -> None:
        n_frames = movie.shape[0]
        self._corners, scene = scene_corners(movie)
        bad = movie_stand_ins(movie)
        self._sound = None if bad is None else ~np.isfinite(bad)
        measured = movie.attributes["noise"]
        known = [] if measured is None else NoiseStatistics.from_json(measured).correlations
        self._correlations = [(c.y, c.x, c.value) for c in known if c.t == 0 and c.matters]
        bits = denoised.attributes["settings"].get("kept_bits")
        # Rounding is the same in every frame where the scene is, and does not average out.
        self._rounding = 0.0 if bits is None else 2.0 ** -(bits + 1) / 3**0.5
        lengths = [length for length in STRETCHES if 2 * length <= n_frames]
        # Half of the chance to be wrong goes to the sums over all frames, half to the many over stretches.
        self._n_looks = 2 * sum(len(STRETCHES[n]) * (n_frames / n) for n in lengths)
        self._stretches = [_Stretch(n, Evidence.empty(scene)) for n in (*lengths, None)]
        self._found: list[tuple[float, int, Refuted, int, int]] = []  # a heap, the least clear place first
        self._n_found = 0
        self._others = {size: array("d") for size in SIZES}  # amounts

    def add(self, slab: Slab) -> None:
        """Take in the next slab."""
        levels = np.ones((len(slab.counts), 1, 1)) if slab.levels is None else slab.levels
        for number, k in zip(range(*slab.frames), range(slab.own.start, slab.own.stop), strict=True):
            row, column = self._corners[number].tolist()
            for stretch in self._stretches:
                if slab.sound[k] and np.isfinite(slab.denoised[k, 0, 0]):
                    frame = slab.counts[k], slab.denoised[k]
                    stretch.sums.add(*frame, levels[k], (row, column), self._sound)
                    stretch.n_frames += 1
                if number + 1 - stretch.first == stretch.length:
                    self._look(stretch, number + 1)

    def _look(self, stretch: _Stretch, stop: int) -> None:
        sizes = tuple(SIZES) if stretch.length is None else STRETCHES[stretch.length]
        if stretch.n_frames:
            floor = self._rounding * float(stretch.sums.image.mean())
            n_looks = 2 * len(SIZES) if stretch.length is None else self._n_looks
            places = refuted(stretch.sums, sizes, self._correlations, floor, n_looks)
            for place in places:
                self._keep(place, stretch.first, stop)
        if stretch.length is not None:
            stretch.sums = Evidence.empty(stretch.sums.residual.shape)
            stretch.first, stretch.n_frames = stop, 0

    def _keep(self, place: Refuted, first: int, stop: int) -> None:
        self._n_found += 1
        heapq.heappush(self._found, (abs(place.z), -self._n_found, place, first, stop))
        if len(self._found) > MAX_KEPT:
            lost = heapq.heappop(self._found)[2]
            self._others[lost.size].append(lost.amount)

    def result(self) -> tuple[RefutedFigures, NDArray[np.float32]]:
        """What was found, as plain values; and the map of all frames for what is as large as a column.

        Returns
        -------
        RefutedFigures
        ndarray, shape (rows, columns)
            Mean residual over its noise.
        """
        whole = self._stretches[-1]
        for stretch in self._stretches:  # the last one of a length may not have come to its end
            if stretch.n_frames:
                self._look(stretch, len(self._corners))
        contrast = contrasts(whole.sums.image)
        places: list[RefutedPlace] = []
        for *_, place, first, stop in sorted(self._found, reverse=True):
            share = place.amount / contrast[place.size] if contrast[place.size] > 0 else float("inf")
            if abs(share) >= MATTERS:
                places.append(_told(place, first, stop, share))
        others = np.concatenate([self._matter(size, contrast[size]) for size in SIZES])
        z = significance(
            whole.sums, "column", self._correlations, self._rounding * float(whole.sums.image.mean())
        )
        found: RefutedFigures = {
            "n_places": len(places) + len(others),
            "n_missing": sum(place["z"] > 0 for place in places) + int((others > 0).sum()),
            "places": places[:MAX_NAMED],
            "largest_z": float(np.abs(z).max()),
            "corner": self._corners[0].tolist(),
        }
        return found, z.astype(np.float32)

    def _matter(self, size: str, contrast: float) -> NDArray[np.float64]:
        """Amounts of the places of a size that were not kept, of those that matter."""
        amounts = np.array(self._others[size])
        return amounts[np.abs(amounts) >= MATTERS * contrast] if contrast > 0 else amounts


def scene_corners(movie: store.Store) -> tuple[NDArray[np.intp], tuple[int, int]]:
    """Where every frame lies in the frame of the scene, and the shape of that; see `tdenoise.inference.evidence`."""
    n_frames, height, width = movie.shape
    return corners(movie_drift(movie, Architecture()), n_frames, (height, width))


def _told(place: Refuted, first: int, stop: int, share: float) -> RefutedPlace:
    return {
        "frames": [first, stop],
        "size": place.size,
        "row": place.row,
        "column": place.column,
        "z": place.z,
        "amount": place.amount,
        "chance": place.chance,
        "share": share,
    }
