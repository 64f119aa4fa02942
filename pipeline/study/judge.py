"""How well a model predicts frames that no cell has trained on, and what it draws in the vacuum, without a truth."""

from __future__ import annotations

import time
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tdenoise.evaluation.fringes import Found, Fringes
from tdenoise.evaluation.metrics import block_sums
from tdenoise.evaluation.residuals import lattice_spots
from tdenoise.inference.denoising import denoise
from tdenoise.inference.memory import halo_with_shift
from tdenoise.inference.tile import Tile
from tdenoise.network import checkpoint, torch_setup
from tdenoise.noise.brightness import Brightness
from tdenoise.noise.drift import largest_shift

from ..errors import InputError, UsageError
from ..evaluate.estimates import NoiseLaw, noise_law
from ..inputs.bad_pixels import movie_stand_ins
from ..inputs.model_fit import movie_brightness, movie_drift, movie_noise, movie_scale
from ..step_control import Control
from ..store import store
from ..store.blocks import Region, spans
from .study_plan import Plan

Array = NDArray[Any]

AT_ONCE = 32  # frames that are predicted together
BLOCK = (8, 32, 32)  # frames, rows and columns of what is taken as independent


@dataclass(frozen=True)
class Judged:
    """What was found of one model."""

    squares: Array  # sums of the squared difference to the counts over blocks
    frame: NDArray[np.float32]  # one prediction, to be looked at [counts]
    fringes: Found | None
    seconds: float  # for all frames


class Judge:
    """The judged frames, and all that is known of the movie without any model: the same for every cell.

    Parameters
    ----------
    plan : Plan
    device : str
        ``auto``, ``cpu`` or ``cuda``.

    Raises
    ------
    UsageError
        If no GPU is usable, and one was asked for.
    InputError
        If the noise of the movie is not known.
    """

    def __init__(self, plan: Plan, device: str) -> None:
        torch_setup.prepare(n_threads=1)
        self._plan, movie = plan, plan.movie
        self._device = checkpoint.default_device() if device == "auto" else device
        if not checkpoint.is_usable(self._device):
            raise UsageError(
                f"--device {self._device}, but no such GPU is usable here. Use --device cpu, or ask for a GPU node."
            )
        self.law: NoiseLaw = noise_law(movie)
        self._stand_ins, self._brightness = movie_stand_ins(movie), movie_brightness(movie)
        self._inner = plan.judged.within(plan.looked).slices[
            1:
        ]  # of the frames looked at, where errors count
        frames, rows, columns = plan.looked.frames, plan.looked.rows, plan.looked.columns
        known = self._brightness or Brightness.steady(movie.shape[0])
        # The noise law may need the frame before and the one behind; there are such.
        around, own = (frames[0] - 1, frames[1] + 1), slice(1, -1)
        counts = _read(movie, around, rows, columns)
        levels = np.broadcast_to(known.at(slice(*around), rows, columns), counts.shape)
        self.counts, self._levels = counts[own], levels[own]
        self.sound = known.valid[slice(*frames)].copy()
        if self.law.estimator == "temporal":
            # Without both neighbours, nothing tells the noise of a frame.
            valid = known.valid[slice(*around)]
            self.sound &= valid[2:] & valid[:-2]
        self._used = np.ones(self.counts.shape[1:], bool)
        if self._stand_ins is not None:
            self._used = ~np.isfinite(self._stand_ins[slice(*rows), slice(*columns)])
        if not self._mask().any():
            raise InputError(
                movie.path,
                f"of frames {frames[0]} to {frames[1] - 1}, which would judge, none can: too many frames were not "
                "recorded, or all pixels are bad",
            )
        self.noise, self.weights = self._noise(counts, levels)
        # Number of the frame to look at.
        self.shown = frames[0] + int(np.flatnonzero(self.sound)[self.sound.sum() // 2])
        mean = np.zeros(self.counts.shape[1:])
        for k in np.flatnonzero(self.sound):
            mean += self.counts[k] / self._levels[k] / self.sound.sum()
        self._variance = movie_noise(movie).noise_variance
        self.spots = lattice_spots(mean, self._variance / int(self.sound.sum()))

    def _noise(self, counts: Array, levels: Array) -> tuple[Array, Array]:
        """Sums over blocks of what the noise of the counts is, and of their pixels; a few frames at a time."""
        found, mask = [], self._mask()
        for start, stop in spans(len(self.counts), BLOCK[0]):
            part = slice(start, stop + 2)
            terms = _noise_terms(self.law, self.inner(counts[part]), self.inner(levels[part]))
            found.append(block_sums(terms, BLOCK, mask[start:stop]))
        sums, weights = (np.concatenate(parts) for parts in zip(*found, strict=True))
        return sums, weights

    def _mask(self) -> Array:
        return self.sound[:, None, None] & self._used[self._inner][None]

    def inner(self, frame: Array) -> Array:
        """The part of a frame, or of frames, in which errors count."""
        return frame[..., *self._inner]

    def predictions(self, model: checkpoint.Model, control: Control | None = None) -> Iterator[Array]:
        """What a model predicts of every judged frame, one after the other [counts].

        One pass of the network, without what the counts of the whole movie would give back: no pixel has seen itself.
        """
        movie, network = self._plan.movie, model.network.to(self._device)
        network.eval()
        architecture = network.architecture
        drift = None if model.card.get("ignore_drift") else movie_drift(movie, architecture)
        halo = halo_with_shift(architecture, largest_shift(drift, architecture.window))
        field = [
            _with_halo(span, halo, n, architecture.stride)
            for span, n in zip(
                (self._plan.judged.rows, self._plan.judged.columns), movie.shape[1:], strict=True
            )
        ]
        corner = field[0][0], field[1][0]
        core = [
            (span[0] - start, span[1] - start)
            for span, start in zip((self._plan.looked.rows, self._plan.looked.columns), corner, strict=True)
        ]
        bad = None if self._stand_ins is None else self._stand_ins[slice(*field[0]), slice(*field[1])]
        first, last = self._plan.judged.frames
        for start, stop in spans(last - first, AT_ONCE):
            if control is not None:
                control.check("study")
            frames = range(first + start, first + stop)
            begin = max(0, frames.start - architecture.window)
            held = _read(movie, (begin, min(movie.shape[0], frames.stop + architecture.window)), *field)
            yield from denoise(
                network,
                held,
                Tile(movie.shape[0], begin, core[0], core[1], corner),
                movie_scale(movie, model.card),
                frames,
                ensemble=1,
                device=self._device,
                stand_ins=bad,
                drift=drift,
                brightness=self._brightness,
            )

    def judge(self, model: checkpoint.Model, control: Control | None = None) -> Judged:
        """Look at all predictions of a model."""
        looked = Fringes(self._plan.vacuum & self._used, self.spots, self._variance)
        mask, squares = self._mask(), []
        shown = np.empty(0, np.float32)
        slab: list[Array] = []
        began = time.perf_counter()
        for number, frame in enumerate(self.predictions(model, control)):
            if number + self._plan.judged.frames[0] == self.shown:
                shown = frame.copy()
            difference = (self.counts[number] - frame) / self._levels[number]
            slab.append(np.square(self.inner(difference), dtype=np.float64))
            if looked.possible and self.sound[number]:
                looked.add(self.counts[number].astype(np.float64), frame.astype(np.float64))
            if len(slab) == BLOCK[0] or number + 1 == len(self.counts):
                first = number + 1 - len(slab)
                squares.append(block_sums(np.stack(slab), BLOCK, mask[first : number + 1])[0])
                slab = []
        return Judged(np.concatenate(squares), shown, looked.result(), time.perf_counter() - began)


def _noise_terms(law: NoiseLaw, counts: Array, levels: Array) -> Array:
    """Terms whose mean is the variance of the noise of all frames but the outer two, at one brightness."""
    y = counts / levels
    if law.estimator == "poisson":
        return np.asarray((law.gain * y / levels + law.read_variance / np.square(levels))[1:-1])
    return np.asarray(np.square(y[2:] - y[:-2]) / 2)


def _read(
    movie: store.Store, frames: tuple[int, int], rows: tuple[int, int], columns: tuple[int, int]
) -> Array:
    return store.read_region(movie, Region(frames, rows, columns))


def _with_halo(span: tuple[int, int], halo: int, n: int, stride: int) -> tuple[int, int]:
    """An interval with what surrounds it; it begins on a stride, and ends on one or at the edge."""
    start = max(0, span[0] - halo) // stride * stride
    stop = min(n, -(-(span[1] + halo) // stride) * stride)
    return start, stop
