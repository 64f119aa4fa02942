"""Simulated scenes among the patches of a movie, so that an adaptation forgets nothing of what they taught.

Counts teach little of what is rare: a network that is adapted to one movie soon takes changes for as rare as its noise
makes them look. Old examples among the new ones keep what they taught (rehearsal; Robins 1995, Connection Science 7,
123-146). Here they are scenes of the simulator at the movie's own dose, with the clean frame as target.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import fields, replace
from typing import Any

import numpy as np
import torch

from .kinds import Architecture
from .patches import Batch, PatchLoader, TrainingMovie
from .pretraining import noisy, scene

N_SCENES = 32  # then they come again
STEPS_PER_SCENE = 32  # each is made when it is first wanted: as much work as some ten steps
N_FRAMES, SIZE = 64, 96
FIRST_SEED = 2 * 10**7  # other scenes than in pre-training
WEIGHT = 3  # of the errors in a patch of a scene, on average, over those in one of a movie
DOSES = 0.8, 1.25  # of a scene, over the movie's; from 0.05 to 100 electrons per pixel and frame


class RehearsedLoader(PatchLoader):
    """Draw patches of movies, and half as many of simulated scenes.

    The parameters are those of `PatchLoader`. Each scene has the dose of one of the movies: the electrons that would
    give its ratio of mean to noise.
    """

    def __init__(
        self,
        movies: Sequence[TrainingMovie],
        architecture: Architecture,
        *,
        batch: int = 8,
        seed: int = 0,
        least_dose: float = 1.0,
        share: tuple[int, int] = (0, 1),
        **others: Any,
    ) -> None:
        super().__init__(
            movies, architecture, batch=batch, seed=seed, least_dose=least_dose, share=share, **others
        )
        self._share_of_scenes = share
        self._n_scene_patches = max(1, batch // 2)
        parts = np.array_split(np.arange(self._n_scene_patches), share[1])
        self.shares = [own + len(part) for own, part in zip(self.shares, parts, strict=True)]
        self._takes_part = len(parts[share[0]]) > 0
        self._scenes: dict[int, PatchLoader] = {}

    def draw(self, step: int) -> Batch:
        """The batch of one step, or this process's share: those of the movies, then those of a scene."""
        own = super().draw(step)
        if not self._takes_part:
            return own
        of_scene = self._scene(step // STEPS_PER_SCENE % N_SCENES).draw(step)
        return Batch(
            *(torch.cat([getattr(b, field.name) for b in (own, of_scene)]) for field in fields(Batch))
        )

    def _scene(self, number: int) -> PatchLoader:
        if number not in self._scenes:
            movie = self._movies[number % len(self._movies)]
            seed = FIRST_SEED + N_SCENES * self._seed + number
            made = scene(seed, n_frames=N_FRAMES, size=max(SIZE, self.patch), at_events=True)
            dose = float(np.clip((movie.scale.mean / movie.scale.noise) ** 2, 0.05, 100))
            low, high = self._least_dose * DOSES[0] * dose, DOSES[1] * dose
            seen = noisy(made, seed, doses=(low, high))
            importance = (made.importance * (WEIGHT / made.importance.mean())).astype(np.float16)
            self._scenes[number] = PatchLoader(
                [replace(seen, importance=importance)],
                self._architecture,
                patch=self.patch,
                batch=self._n_scene_patches,
                seed=seed,
                share=self._share_of_scenes,
            )
        return self._scenes[number]
