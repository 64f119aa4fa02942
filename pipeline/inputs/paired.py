"""A movie and the denoised movie that was made from it, read side by side in bounded memory."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..errors import InputError
from ..step_control import Control
from ..store import store
from ..store.blocks import spans
from .movie_facts import movie_brightness

Array = NDArray[Any]

SLAB_FRAMES = 8  # held at once; also the length of a block of the bootstrap
SLAB_PIXELS = 2**26  # of larger frames, only those of one chunk are held


def open_pair(movie_path: Path, denoised_path: Path, *, deep: bool = True) -> tuple[store.Store, store.Store]:
    """A movie and the denoised movie that was made from it.

    Parameters
    ----------
    movie_path, denoised_path : Path
    deep : bool
        Compare the content of every shard that is read, as `store.open_store` does.

    Raises
    ------
    InputError
        If one is missing, or the denoised one was made from another movie.
    """
    movie = store.open_store(movie_path, store.MOVIE, deep=deep)
    denoised = store.open_store(denoised_path, store.DENOISED, deep=deep)
    made_from = denoised.attributes["movie"]
    if made_from["id"] != movie.id or denoised.shape != movie.shape:
        raise InputError(
            denoised_path, f"was made from another movie ({made_from['name']}), not from {movie_path}."
        )
    for opened in (movie, denoised):
        opened.array.check_all()
    return movie, denoised


@dataclass(frozen=True)
class Slab:
    """A few frames of both movies, and of those around them what the estimators need."""

    frames: tuple[int, int]
    before: int  # frames ahead of the slab in both arrays: 1, or 0 at the beginning of the movie
    counts: Array  # and one frame behind the slab, if there is one
    denoised: Array
    variance: Array | None = None  # of the slab's own frames, where the store states it
    # Brightness of all frames in the arrays, (n, 1, 1), or of their pixels; None: all alike.
    levels: Array | None = None
    valid: Array | None = None  # which of them were recorded whole; None: all

    @property
    def own(self) -> slice:
        """The slab's own frames, in both arrays."""
        return slice(self.before, self.before + self.frames[1] - self.frames[0])

    @property
    def sound(self) -> NDArray[np.bool_]:
        """Which of all frames in the arrays were recorded whole."""
        return np.ones(len(self.counts), dtype=bool) if self.valid is None else self.valid


def slab_frames(shape: tuple[int, int, int]) -> int:
    """Frames of a slab of a movie."""
    return SLAB_FRAMES if SLAB_FRAMES * shape[1] * shape[2] <= SLAB_PIXELS else store.CHUNK_FRAMES


def slabs(movie: store.Store, denoised: store.Store, control: Control) -> Iterator[Slab]:
    """Both movies from beginning to end; every chunk is decoded once."""
    n_frames = movie.shape[0]
    counts, smooth = store.read_frames(movie, 0, 0), store.read_frames(denoised, 0, 0)
    stated = None
    if denoised.attributes.get(store.VARIANCE) is not None:
        stated = store.open_store(denoised.path, store.VARIANCE)
    done = 0  # frames of the movie so far
    brightness = movie_brightness(movie)
    for start, stop in spans(n_frames, slab_frames(movie.shape)):
        control.check("evaluate")
        control.progress("evaluate", start, n_frames)
        before = min(1, start)
        # Whole chunks, though one frame behind the slab would do.
        upto = min(n_frames, stop + store.CHUNK_FRAMES)
        first = done - len(counts)
        counts = np.concatenate([counts[start - before - first :], store.read_frames(movie, done, upto)])
        done = upto
        smooth = np.concatenate([smooth[len(smooth) - before :], store.read_frames(denoised, start, stop)])
        variance = None if stated is None else store.read_frames(stated, start, stop)
        levels = valid = None
        if brightness is not None:
            around = slice(start - before, min(n_frames, stop + 1))
            levels = brightness.at(around, *((0, n) for n in movie.shape[1:]))
            valid = brightness.valid[around]
        shown = slice(None) if valid is None else valid[before : before + stop - start]
        if not all(
            np.isfinite(a[-(stop - start) :][shown]).all() for a in (smooth, variance) if a is not None
        ):
            raise InputError(
                denoised.path, f"holds NaN or Inf in frames {start} to {stop - 1}. Check it with 'verify'."
            )
        yield Slab(
            (start, stop), before, counts[: before + stop - start + 1], smooth, variance, levels, valid
        )
    control.progress("evaluate", n_frames, n_frames)
