"""Denoise a block of frames with a trained network."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from ..network import udvd
from ..network.registry import Architecture, Network
from ..network.split_blind import LEAK, SplitBlind, shifted
from ..network.split_blind import Architecture as SplitBlindArchitecture
from ..network.windows import put_stand_ins, transform, transform_back
from ..noise.brightness import Brightness, Span
from ..noise.drift import window_shifts
from ..noise.gamma_poisson import pool, prior_variance
from ..noise.noise import Scale

# Symmetries of a frame go through the network together while they hold at most this many pixels; on a GPU frames
# too. More fill no GPU better.
CPU_PIXELS, GPU_PIXELS = 2**18, 2**24
RUN = 16  # frames that share what the first layer makes of the frames in their windows
PRECISIONS = ("float32", "tf32", "bfloat16")

Array = NDArray[Any]
Symmetry = tuple[int, int, int]  # quarter turns, mirror image, time reversal


@dataclass(frozen=True)
class Tile:
    """Where a block lies in its movie, so that its result does not depend on how the movie was cut."""

    n_frames: int  # of the whole movie
    first_frame: int  # of the movie, that the block's first frame is
    core_rows: tuple[int, int]  # rows of the block's array that are wanted
    core_columns: tuple[int, int]
    corner: tuple[int, int] = (0, 0)  # row and column of the movie that the block's array begins at

    @classmethod
    def whole(cls, shape: tuple[int, ...]) -> Tile:
        """The whole movie as one block."""
        return cls(n_frames=shape[0], first_frame=0, core_rows=(0, shape[1]), core_columns=(0, shape[2]))

    def in_movie(self, rows: tuple[int, int], columns: tuple[int, int]) -> tuple[Span, Span]:
        """Where rows and columns of the block's array lie in the movie."""
        row, column = self.corner
        return (rows[0] + row, rows[1] + row), (columns[0] + column, columns[1] + column)


def symmetries(number: int) -> list[Symmetry]:
    """The first ``number`` (1, 2, 4, 8 or 16) symmetries to average over, as (turn, mirror, reverse).

    Averaging over the symmetries of the training patches (self-ensemble, Timofte et al. 2016) lowers the error
    of the network by about 0.6 to 1.2 dB. It stays blind, because every pass is.
    """
    order = [(turn, mirror, reverse) for turn in (0, 2, 1, 3) for mirror in (0, 1) for reverse in (0, 1)]
    if number not in (1, 2, 4, 8, 16):
        raise ValueError(f"an ensemble has 1, 2, 4, 8 or 16 members, not {number}")
    return order[:number]


def denoise(
    network: Network,
    block: NDArray[Any],
    tile: Tile,
    scale: Scale,
    frames: range,
    *,
    ensemble: int = 16,
    device: str | torch.device = "cpu",
    stand_ins: NDArray[np.float32] | None = None,
    drift: NDArray[np.floating] | None = None,
    brightness: Brightness | None = None,
    precision: str = "float32",
) -> Iterator[NDArray[np.float32]]:
    """Denoised frames of a block, one at a time.

    On one device with one version of torch, the same call gives the same bits. Other tiles, more or fewer frames,
    another device, or a GPU whose memory was short give other orders of summation: equal to the rounding of float32.

    Parameters
    ----------
    network : SplitBlind or Udvd
        In evaluation mode, on ``device``.
    block : ndarray, shape (n, height, width)
        Raw frames [counts] with their halo. Rows and columns must begin on multiples of the network's stride
        in the movie, and end on one or at the movie's edge.
    tile : Tile
        Where the block lies.
    scale : Scale
        Of the whole movie.
    frames : range
        Frames of the movie to denoise; their windows, as far as the movie goes, must lie in ``block``.
    ensemble : int
        Number of symmetries to average over: 1, 2, 4, 8 or 16.
    device : str or torch.device
    stand_ins : ndarray, shape (height, width), optional
        What is shown in place of bad pixels; see `tdenoise.noise.camera_pattern.stand_ins`.
    drift : ndarray, shape (frames of the movie, 2), optional
        How the scene moves [pixels], which the windows follow; see `tdenoise.noise.drift`. UDVD does not.
    brightness : Brightness, optional
        Of all frames of the movie. Levels are divided out of the windows and multiplied back; a frame that is not
        valid is predicted from those around it, and is NaN where there are none.
    precision : str
        Of the convolutions: ``float32``, ``tf32`` or ``bfloat16``. The latter two are faster on a GPU; after their
        coarser rounding a block is no longer equal to the same part of the whole movie.

    Yields
    ------
    ndarray, shape (core rows, core columns), float32
        Expected counts.

    Raises
    ------
    FloatingPointError
        If the network returns NaN or Inf.
    """
    wanted = _Wanted.of(network, tile, frames, drift, brightness)
    padded = _prepare(network, block, tile, scale, device, stand_ins, brightness)
    members = symmetries(ensemble)
    rows, columns = slice(*tile.core_rows), slice(*tile.core_columns)

    def predicted() -> Iterator[Tensor]:
        if isinstance(network, udvd.Udvd):
            totals = _streamed(network, padded, wanted, members, precision)
        else:
            totals = (total[:, 0] for total in _batches(network, padded, wanted, members, precision))
        first = 0
        for total in totals:
            level, contrast = wanted.back(scale, slice(first, first + len(total)), total)
            first += len(total)
            yield level * scale.mean + (contrast / len(members)) * total[:, rows, columns]

    with torch.inference_mode():
        found = _finite(predicted(), wanted.numbers)
        yield from wanted.in_order(
            found, lambda: np.full((rows.stop - rows.start, columns.stop - columns.start), np.nan, np.float32)
        )


def denoise_with_variance(
    network: SplitBlind,
    block: NDArray[Any],
    tile: Tile,
    scale: Scale,
    frames: range,
    *,
    ensemble: int = 16,
    device: str | torch.device = "cpu",
    stand_ins: NDArray[np.float32] | None = None,
    drift: NDArray[np.floating] | None = None,
    brightness: Brightness | None = None,
    precision: str = "float32",
) -> Iterator[tuple[NDArray[np.float32], NDArray[np.float32]]]:
    """Denoised frames of a block and their variance, from a network with a gamma head.

    The variance is that of the expected counts, given everything that the denoised frame was made from. See
    `tdenoise.noise.gamma_poisson` for the model, and its `pool` for how the members of an ensemble are joined: into one
    mean and one variance.

    Parameters
    ----------
    network, block, tile, scale, frames, ensemble, device, stand_ins, drift, brightness, precision
        As for `denoise`.

    Yields
    ------
    denoised, variance : ndarray, shape (core rows, core columns), float32
        [counts], [counts^2]

    Raises
    ------
    ValueError
        If the network has no gamma head.
    FloatingPointError
        If the network returns NaN or Inf.
    """
    if getattr(network.architecture, "head", None) != "gamma":
        raise ValueError("only a network with a gamma head knows the variance of what it predicts")
    wanted = _Wanted.of(network, tile, frames, drift, brightness)
    padded = _prepare(network, block, tile, scale, device, stand_ins, brightness)
    members = symmetries(ensemble)
    core = slice(*tile.core_rows), slice(*tile.core_columns)

    def both(sums: Tensor, part: slice) -> Tensor:
        mean, square, variance = (sums[:, :, *core] / len(members)).unbind(dim=1)
        level, contrast = wanted.back(scale, part, mean)
        predicted = level * scale.mean + contrast * mean
        variance = contrast**2 * pool(variance, (square - mean.square()).clamp(min=0), len(members))
        return torch.stack([predicted, variance], dim=1).float()

    def results() -> Iterator[Tensor]:
        first = 0
        for sums in _batches(network, padded, wanted, members, precision, moments=_gamma_moments):
            yield both(sums, slice(first, first + len(sums)))
            first += len(sums)

    shape = (2, core[0].stop - core[0].start, core[1].stop - core[1].start)
    with torch.inference_mode():
        found = _finite(results(), wanted.numbers)
        for result in wanted.in_order(found, lambda: np.full(shape, np.nan, np.float32)):
            yield result[0], result[1]


@dataclass(frozen=True)
class _Wanted:
    """The frames to denoise, and what each of them is made from."""

    frames: range  # all that were asked for
    numbers: list[int]  # those of them that there are frames to denoise from
    windows: list[Window]
    centres: list[int]  # shown as the centre frame, counted from the first frame of the block
    levels: tuple[Array, Array]  # of the core of every one of them; see `Brightness.along`
    around: NDArray[
        np.float64
    ]  # mean level of the frames around, the share of the dose that they are seen at

    @classmethod
    def of(
        cls,
        network: Network,
        tile: Tile,
        frames: range,
        drift: NDArray[np.floating] | None,
        brightness: Brightness | None,
    ) -> _Wanted:
        window = network.architecture.window
        known = brightness or Brightness.steady(tile.n_frames)
        numbers, windows, centres = [], [], []
        for frame in frames:
            try:
                indices, own = known.window(frame, window)
            except LookupError:
                continue
            numbers.append(frame)
            windows.append(Window(indices - tile.first_frame, window_shifts(drift, frame, indices)))
            centres.append(own - tile.first_frame)
        wanted = np.array(numbers, dtype=np.intp)
        levels = known.along(wanted, *tile.in_movie(tile.core_rows, tile.core_columns))
        return cls(frames, numbers, windows, centres, levels, known.around(window)[wanted])

    @property
    def gains(self) -> NDArray[np.float32] | None:
        """What normalised frames are multiplied by, so that their noise is that of the dose they are seen at."""
        return None if (self.around == 1).all() else np.sqrt(self.around).astype(np.float32)

    def back(self, scale: Scale, part: slice, like: Tensor) -> tuple[Tensor, Tensor]:
        """Levels of some frames, and the unit of their outputs [counts], for a tensor of frames."""
        down, right = self.levels
        level = torch.tensor(down[part], dtype=like.dtype, device=like.device)
        if (right != 1).any():
            level = level * torch.tensor(right[part], dtype=like.dtype, device=like.device)
        gain = torch.tensor(np.sqrt(self.around[part]), dtype=like.dtype, device=like.device)
        return level, level * scale.contrast / gain[:, None, None]

    def in_order(
        self, found: Iterator[NDArray[np.float32]], nothing: Callable[[], NDArray[np.float32]]
    ) -> Iterator[NDArray[np.float32]]:
        """All frames that were asked for, ``nothing`` in place of those that could not be denoised."""
        known = set(self.numbers)
        for frame in self.frames:
            yield next(found) if frame in known else nothing()
        next(found, None)  # so that what it holds is released


def _prepare(
    network: Network,
    block: NDArray[Any],
    tile: Tile,
    scale: Scale,
    device: str | torch.device,
    stand_ins: NDArray[np.float32] | None,
    brightness: Brightness | None,
) -> Tensor:
    """Normalised and padded frames of a block, all of one brightness."""
    stride = network.architecture.stride
    height, width = (-(-n // stride) * stride for n in block.shape[1:])
    levels = None
    if brightness is not None and not brightness.is_even:
        frames = slice(tile.first_frame, tile.first_frame + len(block))
        levels = brightness.along(frames, *tile.in_movie((0, block.shape[1]), (0, block.shape[2])))
    padded = _normalise_on(torch.device(device), block, scale, height, width, levels)
    if stand_ins is not None:
        put_stand_ins(padded, stand_ins, scale)
    return padded


def _finite(batches: Iterator[Tensor], frames: list[int]) -> Iterator[NDArray[np.float32]]:
    """Frame by frame on the host; refuses what is NaN or Inf."""
    for centre, (result, finite) in zip(frames, _to_host(batches), strict=True):
        if not finite:
            raise FloatingPointError(f"the network returned NaN or Inf in frame {centre}")
        yield result


def _normalise_on(
    device: torch.device,
    block: NDArray[Any],
    scale: Scale,
    height: int,
    width: int,
    levels: tuple[Array, Array] | None = None,
) -> Tensor:
    """`tdenoise.network.windows.normalise`, done where the frames are used: counts travel in a quarter of the bytes."""
    native = np.require(block, block.dtype.newbyteorder("="), ["C", "W"])  # what torch can share
    counts = torch.from_numpy(native)
    if device.type == "cuda":
        counts = counts.pin_memory()  # which torch keeps until the copy is done
    frames = torch.zeros((len(block), height, width), device=device)
    inner = frames[:, : block.shape[1], : block.shape[2]]
    inner.copy_(counts.to(device, non_blocking=True))
    if levels is not None:
        for factor in levels:
            if (factor != 1).any():
                inner.div_(torch.tensor(factor, dtype=torch.float32, device=device))
    inner.sub_(scale.mean).div_(scale.noise)
    return frames


def _to_host(batches: Iterator[Tensor]) -> Iterator[tuple[NDArray[np.float32], bool]]:
    """Frame by frame with whether it is finite; a GPU computes the next batch before one is waited for."""
    before: tuple[Tensor, Tensor, torch.cuda.Event] | None = None
    for batch in batches:
        finite = batch.isfinite().flatten(1).all(dim=1)
        if batch.device.type == "cpu":
            yield from _frames_of(batch, finite)
            continue
        # Never used again by torch while an array made of it lives: nothing can overwrite a frame.
        pinned = [torch.empty(x.shape, dtype=x.dtype, pin_memory=True) for x in (batch, finite)]
        for host, x in zip(pinned, (batch, finite), strict=True):
            host.copy_(x, non_blocking=True)
        copied = torch.cuda.Event()  # type: ignore[no-untyped-call]
        copied.record(torch.cuda.current_stream(batch.device))
        if before is not None:
            before[2].synchronize()
            yield from _frames_of(*before[:2])
        before = (pinned[0], pinned[1], copied)
    if before is not None:
        before[2].synchronize()
        yield from _frames_of(*before[:2])


def _frames_of(batch: Tensor, finite: Tensor) -> Iterator[tuple[NDArray[np.float32], bool]]:
    return zip(batch.numpy(), finite.tolist(), strict=True)


class Window(NamedTuple):
    """What a wanted frame is predicted from."""

    frames: NDArray[np.intp]  # counted from the first frame of the block
    shifts: NDArray[np.intp]  # rows and columns, (n, 2)


def _batches(
    network: SplitBlind,
    frames: Tensor,
    wanted: _Wanted,
    members: list[Symmetry],
    precision: str,
    moments: Callable[[Tensor], Tensor] = lambda outputs: outputs[:, :1],
) -> Iterator[Tensor]:
    """Sums over the members, shape (some frames, moments, height, width), one run of frames after the other.

    What is summed, ``moments`` makes of the outputs of the network: by default, the prediction.
    """
    architecture, windows, centres = network.architecture, wanted.windows, wanted.centres
    gains = None if wanted.gains is None else torch.from_numpy(wanted.gains)
    largest = max(1, _pixels_together(architecture, frames.device) // frames[0].numel())
    groups = _groups(members, largest)
    # On a CPU frames together are no faster than one.
    together = 1 if frames.device.type == "cpu" else max(1, largest // len(groups[0]))
    for chosen in _runs(windows, centres, max(RUN, together)):
        numbers = torch.tensor(np.stack([window.frames for window in windows[chosen]]))
        shifts = torch.tensor(np.stack([window.shifts for window in windows[chosen]]))
        own = torch.tensor(centres[chosen])
        needed = slice(min(int(numbers.min()), int(own.min())), max(int(numbers.max()), int(own.max())) + 1)
        numbers, own = numbers - needed.start, own - needed.start
        totals: Tensor | None = None
        for group in groups:

            def predict(seen: Tensor, group: list[Symmetry] = group) -> Tensor:
                # Called before the next run.
                own_gains = None if gains is None else gains[chosen]  # noqa: B023
                run = _Run(network, seen, numbers, shifts, own, own_gains, group, moments)  # noqa: B023
                # Time reversals share their looks also where they do not go through the network together.
                reversals = [run.reversals] if len(group) <= largest else [[r] for r in run.reversals]
                parts = torch.split(torch.arange(len(own)), together)  # noqa: B023
                return torch.cat([_sum(run.predict(part, some) for some in reversals) for part in parts])

            with _precision(frames.device, precision):
                part = in_parts(
                    predict,
                    frames[needed],
                    stride=architecture.stride,
                    halo=halo_with_shift(architecture, int(shifts.abs().max())),
                )
            totals = part if totals is None else totals.add_(part)
        assert totals is not None
        yield totals


def _runs(windows: list[Window], centres: list[int], length: int) -> Iterator[slice]:
    """Runs of so many frames; shorter ones where a drift would have them hold too many looks."""
    start, held = 0, set[tuple[int, ...]]()
    for number, (window, centre) in enumerate(zip(windows, centres, strict=True)):
        looks = {(centre, 0, 0), *map(tuple, np.column_stack(window).tolist())}
        most = _most_looks(length, len(window.frames) // 2, drifts=True)
        if number == start + length or (number > start and len(held | looks) > most):
            yield slice(start, number)
            start, held = number, set()
        held |= looks
    if windows:
        yield slice(start, len(windows))


def _most_looks(length: int, window: int, drifts: bool) -> int:
    """Looks that a run of so many frames holds: one at every frame, or half more where they are shifted."""
    still = length + 2 * window
    return still + still // 2 if drifts else still


class _Run:
    """Successive frames, under symmetries that give one shape; holds what they need of every frame once."""

    def __init__(
        self,
        network: SplitBlind,
        frames: Tensor,
        windows: Tensor,
        shifts: Tensor,
        centres: Tensor,
        gains: Tensor | None,
        members: list[Symmetry],
        moments: Callable[[Tensor], Tensor],
    ) -> None:
        self._network, self._moments, self._gains = network, moments, gains
        self._frames, self._centres = frames, centres
        self._turns = list(dict.fromkeys(member[:2] for member in members))
        self.reversals = sorted({member[2] for member in members})
        assert network.look.bias is not None
        # A frame is looked at once for every shift that it is seen with; a centre frame that is seen, as it is.
        wanted = torch.cat([windows[..., None], shifts], dim=2).flatten(0, 1)
        if network.architecture.centre == "seen":
            wanted = torch.cat([wanted, torch.nn.functional.pad(centres[:, None], (0, 2))])
        unique, places = torch.unique(wanted, dim=0, return_inverse=True)
        self._windows, self._own = places[: windows.numel()].reshape(windows.shape), places[windows.numel() :]
        n_looked = 1 if frames.device.type == "cpu" else max(1, GPU_PIXELS // frames[0].numel())
        looks = []
        for some in torch.split(unique, n_looked):
            moved = [shifted(frames[number], rows, columns) for number, rows, columns in some.tolist()]
            looks.append(self._look(torch.stack(moved)))
        self._looks = torch.cat(looks, dim=1)
        self._bias = network.look.bias.to(self._looks.dtype)

    def _look(self, frames: Tensor) -> Tensor:
        """Shape (turns, frames, rows of cells, columns, channels)."""
        turned = torch.stack([transform(frames, turn, mirror, 0) for turn, mirror in self._turns])
        looks = self._network.look_at(turned.flatten(0, 1)).permute(0, 2, 3, 1)
        return looks.reshape(*turned.shape[:2], *looks.shape[1:])

    def predict(self, part: Tensor, reversals: list[int]) -> Tensor:
        """Sum over turns and these directions of time for some frames, shape (frames, moments, height, width)."""
        a = self._network.architecture
        looks = self._looks
        sizes = (*a.bins[::-1], *a.bins)
        n_inputs = len(sizes) + (a.centre == "seen")
        shape = (len(part), len(reversals), len(self._turns), *looks.shape[2:4], n_inputs, looks.shape[4])
        inputs = looks.new_empty(shape)

        gains = None if self._gains is None else self._gains[part].to(looks.device)

        def put(total: Tensor, places: list[int]) -> None:
            if gains is not None:
                total = total * gains[:, None, None, None].to(total.dtype)
            for i, place in enumerate(places):
                torch.add(total.transpose(0, 1), self._bias, out=inputs[:, i, ..., place, :])

        position = 0
        for number, size in enumerate(sizes):
            columns = self._windows[part, position : position + size].T
            position += size
            total = _choose(looks, columns[0])
            for column in columns[1:]:
                total = total + _choose(looks, column)
            total = total / size**0.5 if size > 1 else total
            put(total, [len(sizes) - 1 - number if reverse else number for reverse in reversals])
        if a.centre == "seen":
            put(_choose(looks, self._own[part]), [len(sizes)] * len(reversals))
        torch.nn.functional.leaky_relu_(inputs, LEAK)
        own = _choose(self._frames[None], self._centres[part])[0]
        if gains is not None:
            own = own * gains[:, None, None]
        centre = torch.stack([transform(own, turn, mirror, 0) for turn, mirror in self._turns], dim=1)
        centre = centre[:, None, :, None].expand(-1, len(reversals), -1, -1, -1, -1)
        outputs = _in_halves(
            lambda x, y: self._moments(self._network.from_looks(x, y)),
            inputs.flatten(0, 2).flatten(-2).permute(0, 3, 1, 2),
            centre.flatten(0, 2).contiguous(memory_format=torch.channels_last),
        )
        sums = outputs.reshape(*shape[:3], *outputs.shape[1:]).sum(dim=1).unbind(dim=1)
        return _sum(transform_back(x, *turn) for x, turn in zip(sums, self._turns, strict=True))


def _sum(terms: Iterable[Tensor]) -> Tensor:
    """Their sum, taken in the order they come, in memory of its own."""
    first, *others = terms
    total = first.clone(memory_format=torch.contiguous_format)
    for term in others:
        total.add_(term)
    return total


def _choose(stack: Tensor, numbers: Tensor) -> Tensor:
    """Entries along the second dimension; no copy of successive ones, as most are where nothing drifts."""
    first, n = int(numbers[0]), len(numbers)
    if torch.equal(numbers, torch.arange(first, first + n)):
        return stack[:, first : first + n]
    return stack[:, numbers.to(stack.device)]


def _gamma_moments(outputs: Tensor) -> Tensor:
    """Of a gamma head: prediction, its square, and variance; in float64, for the square loses digits."""
    mean = outputs[:, :1].double()
    return torch.cat([mean, mean.square(), prior_variance(outputs[:, 1:], 1.0)], dim=1)


def _streamed(
    network: udvd.Udvd,
    frames: Tensor,
    wanted: _Wanted,
    members: list[Symmetry],
    precision: str,
) -> Iterator[Tensor]:
    """The same for UDVD, all frames for one mirror image and direction of time before the next.

    It has no biases, so it does not matter at which dose it sees a frame.
    """
    windows, centres = wanted.windows, wanted.centres
    gains = torch.tensor(np.sqrt(wanted.around), dtype=torch.float32, device=frames.device)[:, None, None]
    totals = frames.new_zeros((len(centres), *frames.shape[1:]))
    for mirror, reverse in sorted({member[1:] for member in members}):
        turns = [turn for turn, *others in members if tuple(others) == (mirror, reverse)]
        ordered = [
            [*window.frames[:2].tolist(), centre, *window.frames[2:].tolist()][:: -1 if reverse else 1]
            for window, centre in zip(windows, centres, strict=True)
        ]

        def predict(seen: Tensor, ordered: list[list[int]] = ordered, turns: list[int] = turns) -> Tensor:
            out = seen.new_empty((len(ordered), *seen.shape[1:]))
            for total, output in zip(out, udvd.stream(network, seen, ordered, turns), strict=True):
                total.copy_(output)
            return out

        with _precision(frames.device, precision):
            outputs = in_parts(
                predict,
                frames.flip(-1) if mirror else frames,
                stride=network.architecture.stride,
                halo=network.architecture.spatial_halo,
            )
        totals += outputs.flip(-1) if mirror else outputs
    yield totals * gains if wanted.gains is not None else totals


def _in_halves(function: Callable[..., Tensor], *inputs: Tensor) -> Tensor:
    """``function(*inputs)`` of independent samples; where the memory of the GPU is short, of half of them at a time."""
    try:
        return function(*inputs)
    except torch.OutOfMemoryError:
        if len(inputs[0]) == 1:
            raise
    # Out of the handler: the error held on to the memory of the attempt.
    middle = len(inputs[0]) // 2
    halves = [x[:middle] for x in inputs], [x[middle:] for x in inputs]
    return torch.cat([_in_halves(function, *half) for half in halves])


def in_parts(function: Callable[[Tensor], Tensor], frames: Tensor, *, stride: int, halo: int) -> Tensor:
    """``function(frames)``; where the memory of the GPU is short, in overlapping tiles that give the same.

    Of a tile, only what the cut does not reach is kept.

    Parameters
    ----------
    function : callable
        To a tensor of the same height and width, the last two dimensions.
    frames : Tensor
        Height and width are multiples of ``stride``.
    stride : int
        Where frames may be cut [pixels].
    halo : int
        Reach of the function, a multiple of the stride [pixels].

    Returns
    -------
    Tensor

    Raises
    ------
    torch.OutOfMemoryError
        If even tiles that are mostly halo do not fit.
    """
    try:
        return function(frames)
    except torch.OutOfMemoryError as error:
        reason = str(error)
    axis = -2 if frames.shape[-2] >= frames.shape[-1] else -1
    size = frames.shape[axis]
    middle = size // 2 // stride * stride
    if size - middle + halo > 0.75 * size:
        shape = " x ".join(map(str, frames.shape[-2:]))
        raise torch.OutOfMemoryError(
            f"a part of {shape} pixels does not fit the free memory of the GPU. Free some, or use --device cpu. "
            f"({reason})"
        )
    parts = []
    for begin, end, kept in ((0, middle + halo, 0), (middle - halo, size, halo)):
        part = in_parts(function, frames.narrow(axis, begin, end - begin), stride=stride, halo=halo)
        parts.append(part.narrow(axis, kept, middle if kept == 0 else size - middle))
    return torch.cat(parts, dim=axis)


@contextmanager
def _precision(device: torch.device, precision: str) -> Iterator[None]:
    """Arithmetic of the convolutions, whatever the process has set; algorithms that give the same bits again."""
    if precision not in PRECISIONS:
        raise ValueError(f"the precision is one of {', '.join(PRECISIONS)}, not {precision!r}")
    with (
        torch.backends.cudnn.flags(
            enabled=True, benchmark=False, deterministic=True, allow_tf32=precision == "tf32"
        ),
        torch.autocast(device.type, torch.bfloat16, enabled=precision == "bfloat16"),
    ):
        yield


def halo_with_shift(architecture: Architecture, shift: int) -> int:
    """Pixels around a tile that can change its result where frames are shifted by so many pixels at most."""
    return int(architecture.spatial_halo + -(-shift // architecture.stride) * architecture.stride)


def memory_bytes(
    architecture: Architecture,
    n_frames: int,
    height: int,
    width: int,
    ensemble: int = 16,
    shift: int = 0,
) -> int:
    """Memory that `denoise` takes for a block beyond the block itself, on the high side [bytes].

    Frames are shifted by ``shift`` pixels at most; a drift costs about the same however fast it is.
    """
    if isinstance(architecture, udvd.UdvdArchitecture):
        return udvd.memory_bytes(n_frames, height, width)
    group = next((n for n in (8, 4, 2) if n <= ensemble and n * height * width <= CPU_PIXELS), 1)
    looks = max(1, group // 2) * _look_maps(architecture, drifts=shift > 0)
    return int(4 * height * width * (n_frames + looks + 3 * RUN + group * _maps(architecture)))


def _look_maps(a: SplitBlindArchitecture, drifts: bool) -> float:
    """Numbers per pixel that are kept of the frames of a run and their windows; twice while they are joined."""
    return 2 * _most_looks(RUN, a.window, drifts) * a.frame_width / a.unshuffle**2


def _maps(a: SplitBlindArchitecture) -> float:
    """Numbers per pixel that a prediction holds at once, beyond the block itself and what is kept of its frames."""
    # Window, what the branches hand to the fusion, the fusion, and a margin: measured peaks of whole blocks are 0.7 to
    # 0.8 of `memory_bytes`.
    return 1.3 * (2 * len(a.bins) + 2 * a.features + 3 * a.centre_width + 2 * a.fusion_width)


def _pixels_together(architecture: SplitBlindArchitecture, device: torch.device) -> int:
    """Pixels that go through the network together: on a GPU as many as fill it, fewer where it has little memory.

    Results differ in their last bit with the batch. So it follows from the kind of GPU, not from what is free at the
    moment; if that is not enough, `_in_halves` and `in_parts` go on with less.
    """
    if device.type == "cpu":
        return CPU_PIXELS
    total = torch.cuda.get_device_properties(device).total_memory
    return min(GPU_PIXELS, int(total / (2 * 4 * _maps(architecture))))


def _groups(members: list[Symmetry], largest: int) -> list[list[Symmetry]]:
    """Symmetries that are taken together: those that keep, or turn, height and width, with both directions of time."""
    size = next((n for n in (8, 4) if n <= largest), 2)
    groups = []
    for odd in (0, 1):
        chosen = [m for m in members if m[0] % 2 == odd]
        groups += [chosen[i : i + size] for i in range(0, len(chosen), size)]
    return groups
