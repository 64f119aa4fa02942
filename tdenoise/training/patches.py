"""Random training patches, drawn from movies that need not fit in memory.

A movie is cut into regions: some successive frames with their temporal context, over a part of the field. A
few regions lie in memory at a time; a patch is drawn from one of them. What is drawn at a step depends on the
seed and the step alone, so a training that was killed goes on exactly where it was.

Every patch of a batch has its own part of what lies in memory: the first of eight patches comes from the first
eighth, and so on. So processes that share a batch draw what one process would draw, and each reads its part.
"""

from __future__ import annotations

import queue
import threading
from collections.abc import Callable, Generator, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from ..network.registry import Architecture
from ..network.windows import normalise, put_stand_ins, shifted_window, summed_window, transform
from ..noise.brightness import Span
from ..noise.drift import largest_shift, window_shifts
from ..noise.noise import Scale
from ..noise.thinning import thin
from .regions import REGION_FRAMES, REGION_PIXELS, Region, regions_of
from .training_movie import TrainingMovie

FULL_DOSE = 0.5  # of the patches, where the others are thinned
POOL_BYTES = 96 * 2**20  # regions kept in memory


# Of a centre frame: the part that is shown, the part that is its target, and the weight of that.
Split = Callable[[NDArray[Any], np.random.Generator], tuple[NDArray[np.float32], NDArray[np.float32], float]]


@dataclass(frozen=True)
class Batch:
    """Patches of one optimiser step."""

    neighbours: Tensor  # (batch, channels, height, width)
    centre: Tensor  # (batch, 1, height, width)
    target: Tensor  # (batch, 1, height, width), the centre itself or, where it is known, what it should be
    contrast: Tensor  # (batch, 1, 1, 1), Scale.contrast / Scale.noise
    weight: Tensor  # (batch, 1, height, width), 0 at bad pixels and outside of a small frame
    electrons: Tensor  # (batch, 2, 1, 1), Scale.mean and Scale.noise in electrons


@dataclass(frozen=True)
class Place:
    """Where a patch lies, and how it is turned: all of its chance."""

    region: int  # number
    span: tuple[int, int]  # centre frames [first, last) of the region that this process draws from
    centre: int  # frame
    row: int  # in the region
    column: int
    turn: int
    mirror: int
    reverse: int
    rng: np.random.Generator  # for the electrons that it holds


class _Held(NamedTuple):
    """What of a region lies in memory, with the pixels around it that its frames may be shifted by."""

    frames: NDArray[Any]
    first: int  # frame
    corner: tuple[int, int]  # row and column of the movie
    clean: NDArray[Any] | None


class _Cut(NamedTuple):
    """What one patch is made from; it may end below and to the right before the patch does."""

    frames: NDArray[Any]  # (n, height, width) [counts], of the patch and of pixels around it
    corner: tuple[int, int]  # row and column of the patch in the frames
    size: int  # of the patch
    indices: NDArray[np.intp]  # the window's frames
    shifts: NDArray[np.intp]  # of those [pixels]
    own: int  # the centre frame
    counts: NDArray[Any]  # of the centre frame as they were recorded, (1, height, width) of the patch
    factor: NDArray[np.float32]  # that takes its level out of them, (1, 1, 1) or as they are
    share: float  # of the movie's dose that the frames are seen at
    clean: NDArray[np.float32] | None  # (1, height, width), of all that is cut
    importance: NDArray[np.float32] | None  # of the patch
    levels: NDArray[np.float32] | None  # stand-ins [counts], of all that is cut

    @property
    def inner(self) -> tuple[slice, slice]:
        row, column = self.corner
        return slice(row, row + self.size), slice(column, column + self.size)


class BatchLoader:
    """Draw batches for given steps; a background thread reads ahead."""

    patch: int  # height and width of a patch [pixels]
    shares: list[int]  # patches of a batch that every process draws
    _movies: Sequence[TrainingMovie]
    _architecture: Architecture
    _seed: int
    _least_dose: float

    def draw(self, step: int) -> Batch:
        """The batch of one step, or this process's share: a pure function of the seed and the step."""
        raise NotImplementedError

    def batches(self, start: int, stop: int) -> Generator[Batch, None, None]:
        """Batches for steps ``[start, stop)``, prepared ahead in a background thread."""
        ready: queue.Queue[Batch | BaseException] = queue.Queue(maxsize=4)
        cancelled = threading.Event()

        def put(item: Batch | BaseException) -> None:
            while not cancelled.is_set():
                try:
                    ready.put(item, timeout=0.2)
                    return
                except queue.Full:
                    continue

        def produce() -> None:
            try:
                for step in range(start, stop):
                    if cancelled.is_set():
                        return
                    put(self.draw(step))
            except BaseException as error:  # noqa: BLE001 - handed to the consumer, which raises it
                put(error)

        thread = threading.Thread(target=produce, name="patches", daemon=True)
        thread.start()
        try:
            for _ in range(start, stop):
                item = ready.get()
                if isinstance(item, BaseException):
                    raise item
                yield item
        finally:
            cancelled.set()
            thread.join()


class PatchLoader(BatchLoader):
    """Draw batches from regions of movies.

    Parameters
    ----------
    movies : sequence of TrainingMovie
    architecture : Architecture
    patch : int
        Height and width of a patch [pixels], a multiple of the stride.
    batch : int
        Patches per step.
    seed : int
    pool_bytes : int
        Bound on the memory of the regions.
    split : callable, optional
        What is shown of a centre frame, and what is its target; see `tdenoise.noise.thinning.split`. Without it both
        are the whole frame, for a network that is blind.
    least_dose : float
        Half of the patches hold a random share of the movie's electrons, down to this one; see
        `tdenoise.noise.thinning.thin`. 1: all hold them all.
    share : (int, int)
        Number of this process, and how many there are that share every batch.
    padded : bool
        Keep the size of patches also where all frames are smaller; nothing outside of them is a target.
    """

    def __init__(
        self,
        movies: Sequence[TrainingMovie],
        architecture: Architecture,
        *,
        patch: int = 96,
        batch: int = 8,
        seed: int = 0,
        pool_bytes: int = POOL_BYTES,
        split: Split | None = None,
        least_dose: float = 1.0,
        share: tuple[int, int] = (0, 1),
        padded: bool = False,
    ) -> None:
        stride = architecture.stride
        largest = patch if padded else max(max(m.frames.shape[1:]) for m in movies)
        self.patch = min(patch, -(-largest // stride) * stride)
        self._movies = movies
        self._architecture = architecture
        self._batch = batch
        self._seed = seed
        self._split = split
        self._least_dose = least_dose
        self._shifts = [largest_shift(m.drift, architecture.window) for m in movies]
        self._brightness = [(m.seen, m.seen.around(architecture.window)) for m in movies]
        parts = np.array_split(np.arange(batch), share[1])
        self._own = parts[share[0]]  # patches of a batch
        self.shares = [len(part) for part in parts]  # patches of every process
        regions = regions_of(movies, self.patch)
        if not regions:
            raise ValueError("every frame is held out; nothing is left to train on")
        order = np.random.default_rng([seed, 1]).permutation(len(regions))
        self._regions = [regions[i] for i in order]
        context = REGION_FRAMES + 2 * architecture.window
        bytes_each = max(
            min(context, m.frames.shape[0])
            * min(REGION_PIXELS + self.patch + 2 * shift, m.frames.shape[1])
            * min(REGION_PIXELS + self.patch + 2 * shift, m.frames.shape[2])
            * (m.frames.dtype.itemsize + (0 if m.clean is None else m.clean.dtype.itemsize))
            for m, shift in zip(movies, self._shifts, strict=True)
        )
        self._pool_size = int(min(len(regions), max(min(2, batch), pool_bytes // bytes_each)))
        self._steps_per_region = max(1, round(256 / batch))
        self._cache: dict[int, _Held] = {}  # by number of region

    def draw(self, step: int) -> Batch:
        """The batch of one step, or this process's share: a pure function of the seed and the step."""
        parts = [self._patch(place) for place in self._places(step)]
        return Batch(*(torch.stack(tensors) for tensors in zip(*parts, strict=True)))

    def _places(self, step: int) -> list[Place]:
        """Where this process's patches of a step lie. The chance of the others is drawn too, and left."""
        rng = np.random.default_rng([self._seed, 2, step])
        n = self._batch
        pool = self._pool_at(step)
        weights = np.array([self._weight(self._regions[i]) for i in pool], dtype=float)
        edges = np.cumsum([0.0, *weights]) / weights.sum()
        where = (np.arange(n) + rng.random(n)) / n
        corners = rng.random((n, 2))
        turns = rng.integers((4, 2, 2), size=(n, 3))
        own_chance = rng.spawn(n)
        begin, end = self._own[0] / n, (self._own[-1] + 1) / n
        places = []
        for i in self._own:
            k = min(int(np.searchsorted(edges, where[i], side="right")) - 1, len(pool) - 1)
            region = self._regions[pool[k]]
            targets = self._targets(region)
            # The part of the region that this process draws from, as far as the place in the pool decides it.
            inside = (np.array([where[i], begin, end]) - edges[k]) / (edges[k + 1] - edges[k])
            at, first, last = np.clip(np.floor(inside * len(targets)), 0, len(targets) - 1).astype(int)
            spans = (
                region.rows[1] - region.rows[0] - self.patch,
                region.columns[1] - region.columns[0] - self.patch,
            )
            row, column = (int(c * max(1, span + 1)) for c, span in zip(corners[i], spans, strict=True))
            whole = len(self._own) == n
            span = (region.first, region.last) if whole else (targets[first], targets[last] + 1)
            turn, mirror, reverse = turns[i].tolist()
            places.append(
                Place(pool[k], span, targets[at], row, column, turn, mirror, reverse, own_chance[i])
            )
        return places

    def _targets(self, region: Region) -> list[int]:
        held = self._movies[region.movie].not_targets
        return [t for t in range(region.first, region.last) if t not in held]

    def _pool_at(self, step: int) -> list[int]:
        """Numbers of the regions in memory at a step: a window that moves over the shuffled list.

        A region keeps its place in the pool as long as it is there, so that the same process draws from it.
        """
        n, size = len(self._regions), self._pool_size
        if size == n:
            return list(range(n))
        first = step // self._steps_per_region
        pool = [i % n for i in sorted(range(first, first + size), key=lambda i: i % size)]
        for number in set(self._cache) - set(pool):
            del self._cache[number]
        return pool

    def _weight(self, region: Region) -> int:
        return (
            (region.last - region.first)
            * (region.rows[1] - region.rows[0])
            * (region.columns[1] - region.columns[0])
        )

    def _read(self, place: Place) -> _Held:
        """What this process needs of a region."""
        region = self._regions[place.region]
        movie = self._movies[region.movie]
        window = self._architecture.window
        first = max(0, place.span[0] - window)
        last = min(movie.frames.shape[0], place.span[1] + window)
        known = self._cache.get(place.region)
        # The parts of processes shift a little when a region of another size comes into the pool.
        if known is None or first < known.first or last > known.first + len(known.frames):
            shift = self._shifts[region.movie]
            rows, columns = (
                (max(0, a - shift), min(n, b + shift))
                for (a, b), n in zip((region.rows, region.columns), movie.frames.shape[1:], strict=True)
            )
            part = slice(first, last), slice(*rows), slice(*columns)
            clean = None if movie.clean is None else np.asarray(movie.clean[part])
            corner = rows[0], columns[0]
            known = self._cache[place.region] = _Held(np.asarray(movie.frames[part]), first, corner, clean)
        return known

    def _patch(self, place: Place) -> tuple[Tensor, ...]:
        region = self._regions[place.region]
        movie = self._movies[region.movie]
        size = self.patch
        share = self._share(place.rng)
        cut = self._cut(place, share)
        scale = movie.scale.at_share(cut.share)
        centre = cut.frames[cut.own, *cut.inner][None]
        height, width = centre.shape[1:]
        levels = None if cut.levels is None else cut.levels[cut.inner]

        noisy = target = normalise(centre, scale, size, size)
        if cut.clean is not None:
            target = normalise(share * movie.clean_unit * cut.clean[:, *cut.inner], scale, size, size)
        weight = torch.zeros_like(target)
        weight[:, :height, :width] = 1 if cut.importance is None else torch.from_numpy(cut.importance)
        if self._split is not None and cut.clean is None:
            shown, held, worth = self._split(cut.counts, place.rng)
            noisy, target = (normalise(cut.factor * part, scale, size, size) for part in (shown, held))
            weight *= worth
        if cut.clean is None:
            weight[:, :height, :width] /= torch.from_numpy(cut.factor)  # a dark frame is a noisy target
        if levels is not None:
            bad = put_stand_ins(noisy, levels, scale)
            if cut.clean is None:
                weight[:, *bad] = 0
        corner = region.rows[0] + place.row, region.columns[0] + place.column
        window = movie.with_far(
            self._neighbours(cut, scale), place.centre, corner, self._architecture.far_bins
        )
        return (
            transform(window, place.turn, place.mirror, place.reverse).contiguous(),
            transform(noisy, place.turn, place.mirror, 0).contiguous(),
            transform(target, place.turn, place.mirror, 0).contiguous(),
            torch.full((1, 1, 1), scale.contrast / scale.noise),
            transform(weight, place.turn, place.mirror, 0).contiguous(),
            movie.electrons(cut.share),
        )

    def _cut(self, place: Place, share: float) -> _Cut:
        """What one patch is made from, with a share of its electrons."""
        region = self._regions[place.region]
        movie = self._movies[region.movie]
        held = self._read(place)
        seen, around_centre = self._brightness[region.movie]
        indices, _ = seen.window(place.centre, self._architecture.window)
        shifts = window_shifts(movie.drift, place.centre, indices)
        shift = self._shifts[region.movie]
        bright = float(around_centre[place.centre])
        # The patch in the frames, and that with the pixels around it that frames are shifted by.
        starts = region.rows[0] + place.row, region.columns[0] + place.column
        bounds = [
            (max(0, start - shift), min(n, start + self.patch + shift))
            for start, n in zip(starts, movie.frames.shape[1:], strict=True)
        ]
        around = tuple(slice(*bound) for bound in bounds)
        here = tuple(
            slice(a - corner, b - corner) for (a, b), corner in zip(bounds, held.corner, strict=True)
        )
        patch = tuple(slice(start, start + self.patch) for start in starts)

        def factors(frames: slice, rows: Span, columns: Span) -> NDArray[np.float32]:
            """That take the levels out of frames."""
            return np.asarray(bright / seen.at(frames, rows, columns), np.float32)

        row, column = (start - first for start, (first, _) in zip(starts, bounds, strict=True))
        frames, centre = held.frames[:, *here], slice(place.centre, place.centre + 1)
        indices, own = indices - held.first, place.centre - held.first
        clean = importance = levels = None
        if held.clean is not None:
            clean = factors(centre, *bounds) * held.clean[own : own + 1, *here].astype(np.float32)
        if movie.importance is not None:
            importance = movie.importance[place.centre, *patch].astype(np.float32)
        if movie.stand_ins is not None:
            levels = np.float32(share * bright) * movie.stand_ins[around[0], around[1]]
        if share < 1:
            # Of the frames that are seen only, the same electrons wherever one is seen twice.
            first, last = min(int(indices.min()), own), max(int(indices.max()), own)
            frames = thin(frames[first : last + 1], share, place.rng)
            indices, own = indices - first, own - first
        counts = frames[own : own + 1, row : row + self.patch, column : column + self.patch]
        if not seen.is_even:
            first = place.centre - own
            frames = frames * factors(slice(first, first + len(frames)), *bounds)
        rows, columns = ((start, start + n) for start, n in zip(starts, counts.shape[1:], strict=True))
        return _Cut(
            frames,
            (row, column),
            self.patch,
            indices,
            shifts,
            own,
            counts,
            factors(centre, rows, columns),
            share * bright,
            clean,
            importance,
            levels,
        )

    def _neighbours(self, cut: _Cut, scale: Scale) -> Tensor:
        """The window of one patch, shape (channels, patch, patch)."""
        bins = self._architecture.bins
        if cut.shifts.any():
            frames = cut.frames
            if cut.levels is not None:
                frames = np.where(np.isfinite(cut.levels), cut.levels, frames)
            return shifted_window(frames, cut.indices, cut.shifts, cut.corner, bins, scale, self.patch)
        window = summed_window(cut.frames[:, *cut.inner], cut.indices, bins, scale, self.patch)
        if cut.levels is not None:
            put_stand_ins(window, cut.levels[cut.inner], scale, bins)
        return window

    def _share(self, rng: np.random.Generator) -> float:
        """Share of the dose that a patch holds: evenly in the logarithm, as doses differ."""
        if self._least_dose == 1 or rng.random() < FULL_DOSE:
            return 1.0
        return float(self._least_dose ** rng.random())
