"""What a version of a base model learns from: movies of an archive, of which only a few are open at a time."""

from __future__ import annotations

import functools
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, overload

from tdenoise.training.many_movies import Mix
from tdenoise.training.training_movie import hold_out

from ..settings.denoise_settings import TrainConfig
from ..store import store

OPEN = 4  # stores that stay open


@dataclass(frozen=True)
class Material:
    """What a version learns from, beside the paths in the settings of the training.

    Attributes
    ----------
    held_out : tuple of tuple of int
        Of every movie, frames that are never a target, in this version and all later ones.
    mix : Mix
    largest : int
        Rows or columns of the largest frame.
    told : dict
        What the card says of it.
    command : TrainConfig
        As it was given, to go on with.
    """

    held_out: tuple[tuple[int, ...], ...]
    mix: Mix
    largest: int
    told: dict[str, Any]
    command: TrainConfig


class Stores(Sequence[store.Store]):
    """Movie stores that are opened when they are asked for."""

    def __init__(self, paths: Sequence[Path]) -> None:
        self._paths = paths
        self._open = functools.lru_cache(OPEN)(lambda path: store.open_store(path, store.MOVIE))

    def __len__(self) -> int:
        return len(self._paths)

    @overload
    def __getitem__(self, number: int) -> store.Store: ...
    @overload
    def __getitem__(self, number: slice) -> list[store.Store]: ...
    def __getitem__(self, number: int | slice) -> store.Store | list[store.Store]:
        if isinstance(number, slice):
            return [self[i] for i in range(*number.indices(len(self)))]
        return self._open(self._paths[number])

    def __iter__(self) -> Iterator[store.Store]:
        return (self[number] for number in range(len(self)))


def for_choosing(held_out: Sequence[int]) -> tuple[int, ...]:
    """Of the held-out frames, those that decide which weights are kept."""
    return tuple(held_out[::2])


def for_judging(held_out: Sequence[int]) -> tuple[int, ...]:
    """Of the held-out frames, those that judge a version: their noise had no part in choosing its weights."""
    return tuple(held_out[1::2]) or tuple(held_out)


def held_out_of(movie: store.Store, known: Sequence[int] | None) -> tuple[int, ...]:
    """Frames of a movie that are held out for ever: those that an earlier version held out."""
    return hold_out(movie.shape[0]) if known is None else tuple(known)
