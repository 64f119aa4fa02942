"""Simulated scenes among the patches of a movie, so that an adaptation forgets nothing of what they taught.

Counts teach little of what is rare: a network that is adapted to one movie soon takes changes for as rare as its noise
makes them look. Old examples among the new ones keep what they taught (rehearsal; Robins 1995, Connection Science 7,
123-146). Here they are scenes at the movie's own dose, with the clean frame as target. Half of them are of the
simulator, their pixels as large as the movie's, and the lattice drifts no faster: what is learnt of columns that come
and go is learnt for such columns. The others are of all kinds, so that nobody takes every movie for a perfect crystal.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import fields, replace
from typing import Any

import numpy as np
import torch

from ..evaluation.columns import plane_distance
from ..evaluation.residuals import lattice_spots
from ..network.registry import Architecture
from ..noise.far_frames import FarFrames
from ..simulation.particle import PT_LATTICE_NM
from .many_movies import BalancedLoader
from .patches import Batch, BatchLoader, PatchLoader
from .pretraining import DRIFT_SPEEDS_PX, PIXEL_SIZES_NM, noisy, scene, varied_scene
from .training_movie import TrainingMovie

# A training begins with few scenes; more are made as it goes on, each with as much work as some five steps.
FIRST_SCENES, N_SCENES = 2, 32
STEPS_PER_SCENE = 16
N_FRAMES, SIZE = 64, 96
FIRST_SEED = 2 * 10**7  # other scenes than in pre-training
WEIGHT = 3  # of the errors in a patch of a scene, on average, over those in one of a movie
DOSES = 0.8, 1.25  # of a scene, over the movie's; from 0.05 to 100 electrons per pixel and frame
# Between those of (111) and of (200), of which a scene shows either most.
PLANES_NM = PT_LATTICE_NM / 3**0.25 / math.sqrt(2)
ALIKE = 1.2  # ratio, up to which lattice planes are about as far apart
AS_CALIBRATED = 1.1  # ratio of the size of a scene's pixels to what the movie says of its own, at most
AVERAGED = 16  # frames over which a scene that is shaken does not move, but drifts
MEAN_SPEED = 0.3  # of a scene that drifts, over its largest
LOOKED_AT = 16, 1024, 1024  # at most, of frames, rows and columns in the middle of a movie


class Rehearsing(BatchLoader):
    """Draw patches of movies, and half as many of simulated scenes.

    The parameters are those of the loader of movies that it is joined with. Each scene has the dose of one of the
    movies: the electrons that would give its ratio of mean to noise. Those of the simulator have lattice planes about
    as far apart, and drift no faster.
    """

    def __init__(
        self,
        movies: Sequence[TrainingMovie],
        architecture: Architecture,
        *,
        batch: int = 8,
        share: tuple[int, int] = (0, 1),
        **others: Any,
    ) -> None:
        super().__init__(movies, architecture, batch=batch, share=share, **others)  # type: ignore[call-arg]
        self._n_of_scenes = max(1, batch // 2)
        parts = np.array_split(np.arange(self._n_of_scenes), share[1])
        self._own_of_scenes = parts[share[0]].tolist()
        self.shares = [own + len(part) for own, part in zip(self.shares, parts, strict=True)]
        self._scenes: dict[int, PatchLoader] = {}
        self._pixel_sizes: dict[int, tuple[float, float]] = {}  # of scenes like a movie

    def draw(self, step: int) -> Batch:
        """The batch of one step, or this process's share: those of the movies, then those of scenes."""
        n = self._n_of_scenes
        known = min(N_SCENES, FIRST_SCENES + step // STEPS_PER_SCENE)
        numbers = np.random.default_rng([self._seed, 3, step]).integers(known, size=n).tolist()
        parts = [super().draw(step)]
        parts += [self._scene(numbers[i]).draw(n * step + i) for i in self._own_of_scenes]
        return Batch(*(torch.cat([getattr(part, field.name) for part in parts]) for field in fields(Batch)))

    def _scene(self, number: int) -> PatchLoader:
        if number not in self._scenes:
            turn, which = divmod(number, len(self._movies))
            movie = self._movies[which]
            seed, size = FIRST_SEED + N_SCENES * self._seed + number, max(SIZE, self.patch)
            if (turn + which) % 2:  # half of them, however many movies there are
                made = varied_scene(seed, n_frames=N_FRAMES, size=size)
            else:
                made = scene(
                    seed,
                    n_frames=N_FRAMES,
                    size=size,
                    at_events=True,
                    pixel_sizes_nm=self._pixel_sizes_nm(which),
                    drift_speeds_px=drift_speeds_px(movie),
                )
            dose = float(np.clip((movie.scale.mean / movie.scale.noise) ** 2, 0.05, 100))
            low, high = self._least_dose * DOSES[0] * dose, DOSES[1] * dose
            seen = noisy(made, seed, doses=(low, high))
            if self._architecture.far_bins:
                seen = replace(
                    seen, far=FarFrames.of(seen.frames, drift=seen.drift, brightness=seen.brightness)
                )
            importance = (made.importance * (WEIGHT / made.importance.mean())).astype(np.float16)
            self._scenes[number] = PatchLoader(
                [replace(seen, importance=importance)],
                self._architecture,
                patch=self.patch,
                batch=1,
                seed=seed,
            )
        return self._scenes[number]

    def _pixel_sizes_nm(self, number: int) -> tuple[float, float]:
        if number not in self._pixel_sizes:
            self._pixel_sizes[number] = pixel_sizes_nm(self._movies[number])
        return self._pixel_sizes[number]


class RehearsedLoader(Rehearsing, PatchLoader):
    """Patches of movies, and of simulated scenes like them."""


class RehearsedBalancedLoader(Rehearsing, BalancedLoader):
    """Patches of many movies, balanced, and of simulated scenes like them."""


def pixel_sizes_nm(movie: TrainingMovie) -> tuple[float, float]:
    """Least and largest of scenes whose lattice looks about as large as that of a movie.

    So changes are learnt at the size that they have in the movie. The planes that it shows most may be of one kind or
    another, and tell the size to some 20 % only; what the movie says of its pixels narrows it, unless the two do not
    fit: then it shows another crystal than scenes do, or is badly calibrated. Without a lattice, of all scenes.
    """
    low, high = _by_lattice(movie)
    if movie.pixel_size_nm is not None:
        least, largest = movie.pixel_size_nm / AS_CALIBRATED, movie.pixel_size_nm * AS_CALIBRATED
        if low <= largest and least <= high:
            return max(low, least), min(high, largest)
    return low, high


def _by_lattice(movie: TrainingMovie) -> tuple[float, float]:
    """Pixel sizes of scenes whose lattice planes are about as far apart as those that a movie shows most."""
    middle = [
        slice((n - size) // 2, (n + size) // 2)
        for n, size in zip(movie.frames.shape, map(min, movie.frames.shape, LOOKED_AT), strict=True)
    ]
    valid = movie.seen.valid[middle[0]]
    frames = np.asarray(movie.frames[tuple(middle)])[valid]
    if not len(frames):
        return PIXEL_SIZES_NM
    mean = frames.mean(axis=0, dtype=np.float64)
    if movie.stand_ins is not None:
        levels = movie.stand_ins[tuple(middle[1:])]
        mean = np.where(np.isfinite(levels), levels, mean)
    distance = plane_distance(lattice_spots(mean, movie.scale.noise**2 / len(frames)))
    if distance is None:
        return PIXEL_SIZES_NM
    low, high = np.clip([PLANES_NM / distance / ALIKE, PLANES_NM / distance * ALIKE], *PIXEL_SIZES_NM)
    return float(low), float(high)


def drift_speeds_px(movie: TrainingMovie) -> tuple[float, float]:
    """Least and largest of scenes that drift no faster than a movie; of all where no drift is followed."""
    if movie.drift is None or len(movie.drift) < 2:
        return DRIFT_SPEEDS_PX
    steps = np.diff(movie.drift, axis=0)
    if len(steps) >= 3 * AVERAGED and (steps[1:] * steps[:-1]).mean() < -0.3 * np.square(steps).mean():
        # It is shaken: half of a jump that is new in every frame is undone by the next. That is no drift.
        n = len(movie.drift) // AVERAGED
        means = movie.drift[: n * AVERAGED].reshape(n, AVERAGED, 2).mean(axis=1)
        steps = np.diff(means, axis=0) / AVERAGED
    largest = float(np.abs(steps).mean()) / MEAN_SPEED
    low, high = np.clip([largest / 3, largest], *DRIFT_SPEEDS_PX)
    return float(low), float(high)
