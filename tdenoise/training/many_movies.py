"""Patches of many movies, of which only a few are open at a time: first a movie is drawn, then a patch of it.

So a long movie does not drown a short one, nor do many movies of one kind drown those of another: movies are drawn
evenly by strata, which are those of like dose, pixel size and camera. While a model learns from new movies, a part of
every batch is of earlier ones, so that these are not forgotten (replay; Robins 1995, Connection Science 7, 123-146).
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields
from typing import overload

import numpy as np
import torch

from ..network.registry import Architecture
from .patches import POOL_BYTES, Batch, BatchLoader, PatchLoader, Split
from .training_movie import TrainingMovie

TURN = 256  # steps that a place of the batch stays with one movie; they change one after another
OPEN = 4  # movies that stay open beside those that are drawn from


@dataclass(frozen=True)
class Mix:
    """What batches are made of.

    Attributes
    ----------
    strata : tuple of int
        Stratum of every movie.
    earlier : tuple of bool
        Whether the model has learned from a movie before.
    replay : float
        Share of the patches that are of earlier movies, where there are both.
    """

    strata: tuple[int, ...]
    earlier: tuple[bool, ...]
    replay: float

    def places(self, batch: int) -> list[list[list[int]]]:
        """For every place of a batch, the movies that it is drawn from, by strata."""
        new, known = (self._by_strata(earlier) for earlier in (False, True))
        n_replayed = round(self.replay * batch) if new and known else 0 if new else batch
        return [new] * (batch - n_replayed) + [known] * n_replayed

    def _by_strata(self, earlier: bool) -> list[list[int]]:
        found: dict[int, list[int]] = {}
        for number, (stratum, known) in enumerate(zip(self.strata, self.earlier, strict=True)):
            if known == earlier:
                found.setdefault(stratum, []).append(number)
        return [found[stratum] for stratum in sorted(found)]


def drawn(strata: Sequence[Sequence[int]], number: int, seed: int) -> int:
    """The movie of one draw: every stratum comes once in a round, and every movie of it once in as many of its turns.

    Examples
    --------
    >>> sorted(drawn([[0, 1, 2, 3], [4]], k, seed=0) for k in range(8))
    [0, 1, 2, 3, 4, 4, 4, 4]
    """
    turn, position = divmod(number, len(strata))
    which = int(np.random.default_rng([seed, 4, turn]).permutation(len(strata))[position])
    movies = strata[which]
    over, position = divmod(turn, len(movies))
    return movies[int(np.random.default_rng([seed, 5, which, over]).permutation(len(movies))[position])]


class OpenedWhenNeeded(Sequence[TrainingMovie]):
    """Movies that are opened when they are asked for; few stay open.

    Parameters
    ----------
    n_movies : int
    open_movie : callable
        Opens the movie of a number.
    """

    def __init__(self, n_movies: int, open_movie: Callable[[int], TrainingMovie]) -> None:
        self._n, self._open_movie = n_movies, open_movie
        self._open: OrderedDict[int, TrainingMovie] = OrderedDict()

    def __len__(self) -> int:
        return self._n

    @overload
    def __getitem__(self, number: int) -> TrainingMovie: ...
    @overload
    def __getitem__(self, number: slice) -> list[TrainingMovie]: ...
    def __getitem__(self, number: int | slice) -> TrainingMovie | list[TrainingMovie]:
        if isinstance(number, slice):
            return [self[i] for i in range(*number.indices(self._n))]
        if not 0 <= number < self._n:
            raise IndexError(number)
        if number not in self._open:
            self._open[number] = self._open_movie(number)
        self._open.move_to_end(number)
        while len(self._open) > OPEN:
            self._open.popitem(last=False)
        return self._open[number]


class BalancedLoader(BatchLoader):
    """Draw the patches of a batch from as many movies; see the module.

    The parameters are those of `PatchLoader`, with a `Mix`.
    """

    def __init__(
        self,
        movies: Sequence[TrainingMovie],
        architecture: Architecture,
        *,
        mix: Mix,
        patch: int = 96,
        batch: int = 8,
        seed: int = 0,
        split: Split | None = None,
        least_dose: float = 1.0,
        share: tuple[int, int] = (0, 1),
        pool_bytes: int = POOL_BYTES,
    ) -> None:
        self.patch, self._split, self._least_dose = patch, split, least_dose
        self._pool_bytes = pool_bytes // batch
        self._movies, self._architecture, self._seed, self._batch = movies, architecture, seed, batch
        self._places = mix.places(batch)
        parts = np.array_split(np.arange(batch), share[1])
        self._own = parts[share[0]].tolist()
        self.shares = [len(part) for part in parts]
        self._loaders: dict[int, tuple[int, PatchLoader]] = {}  # of every place of the batch, with its turn

    def draw(self, step: int) -> Batch:
        """The batch of one step, or this process's share: a pure function of the seed and the step."""
        parts = [self._loader(place, step).draw(step) for place in self._own]
        return Batch(*(torch.cat([getattr(part, field.name) for part in parts]) for field in fields(Batch)))

    def movie_at(self, place: int, step: int) -> int:
        """Number of the movie that a place of the batch is drawn from at a step."""
        strata = self._places[place]
        alike = [i for i, other in enumerate(self._places) if other is strata]
        number = self._turn(place, step) * len(alike) + alike.index(place)
        return drawn(strata, number, self._seed)

    def _turn(self, place: int, step: int) -> int:
        return (step + place * TURN // self._batch) // TURN

    def _loader(self, place: int, step: int) -> PatchLoader:
        turn = self._turn(place, step)
        if place not in self._loaders or self._loaders[place][0] != turn:
            self._loaders.pop(place, None)  # before the next one is opened
            movie = self._movies[self.movie_at(place, step)]
            seed = int(np.random.SeedSequence([self._seed, 6, place, turn]).generate_state(1)[0])
            loader = PatchLoader(
                [movie],
                self._architecture,
                patch=self.patch,
                batch=1,
                seed=seed,
                pool_bytes=self._pool_bytes,
                split=self._split,
                least_dose=self._least_dose,
                padded=True,
            )
            self._loaders[place] = turn, loader
        return self._loaders[place][1]
