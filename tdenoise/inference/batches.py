"""Frames through a network: as many at once as fit, and what the windows of successive frames share only once."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ..network.split_blind import LEAK, SplitBlind, pointwise, shifted
from ..network.windows import transform, transform_back
from ..noise.far_frames import Key
from .memory import GPU_PIXELS, RUN, halo_with_shift, most_far_looks, most_looks, pixels_together
from .tile import SeenFar, Wanted, Window

PRECISIONS = ("float32", "tf32", "bfloat16")
Symmetry = tuple[int, int, int]  # quarter turns, mirror image, time reversal


def batches_of(
    network: SplitBlind,
    frames: Tensor,
    wanted: Wanted,
    members: list[Symmetry],
    precision: str,
    moments: Callable[[Tensor], Tensor] = lambda outputs: outputs[:, :1],
    check: Callable[[], None] = lambda: None,
) -> Iterator[Tensor]:
    """Sums over the members, shape (some frames, moments, height, width), one run of frames after the other.

    What is summed, ``moments`` makes of the outputs of the network: by default, the prediction. ``check`` is called
    before every batch, and may raise.
    """
    architecture, windows, centres = network.architecture, wanted.windows, wanted.centres
    gains = None if wanted.gains is None else torch.from_numpy(wanted.gains)
    largest = max(1, pixels_together(architecture, frames.device) // frames[0].numel())
    groups = _groups(members, largest)
    # On a CPU frames together are no faster than one.
    together = 1 if frames.device.type == "cpu" else max(1, largest // len(groups[0]))
    for chosen in runs_of(windows, centres, max(RUN, together), wanted.far):
        numbers = torch.tensor(np.stack([window.frames for window in windows[chosen]]))
        shifts = torch.tensor(np.stack([window.shifts for window in windows[chosen]]))
        own = torch.tensor(centres[chosen])
        needed = slice(min(int(numbers.min()), int(own.min())), max(int(numbers.max()), int(own.max())) + 1)
        numbers, own = numbers - needed.start, own - needed.start
        shown, far = _with_far(frames[needed], wanted.far, chosen)
        totals: Tensor | None = None
        for group in groups:

            def predict(seen: Tensor, group: list[Symmetry] = group) -> Tensor:
                # Called before the next run.
                own_gains = None if gains is None else gains[chosen]  # noqa: B023
                run = _Run(network, seen, numbers, shifts, own, own_gains, group, moments, far)  # noqa: B023
                # Time reversals share their looks also where they do not go through the network together.
                reversals = [run.reversals] if len(group) <= largest else [[r] for r in run.reversals]
                parts = torch.split(torch.arange(len(own)), together)  # noqa: B023

                def summed(part: Tensor) -> Tensor:
                    check()
                    return _sum(run.predict(part, some) for some in reversals)

                return torch.cat([summed(part) for part in parts])

            with _precision(frames.device, precision):
                part = in_parts(
                    predict,
                    shown,
                    stride=architecture.stride,
                    halo=halo_with_shift(architecture, int(shifts.abs().max())),
                )
            totals = part if totals is None else totals.add_(part)
        assert totals is not None
        yield totals


def runs_of(
    windows: list[Window], centres: list[int], length: int, far: SeenFar | None = None
) -> Iterator[slice]:
    """Runs of so many frames; shorter ones where a drift would have them hold too many looks, near or far."""
    start, held, held_far = 0, set[tuple[int, ...]](), set[Key]()
    for number, (window, centre) in enumerate(zip(windows, centres, strict=True)):
        looks = {(centre, 0, 0), *map(tuple, np.column_stack(window).tolist())}
        looks_far = set() if far is None else {far.keys[number]}
        most = most_looks(length, len(window.frames) // 2, drifts=True)
        too_many = len(held | looks) > most or len(held_far | looks_far) > most_far_looks(length)
        if number == start + length or (number > start and too_many):
            yield slice(start, number)
            start, held, held_far = number, set(), set()
        held |= looks
        held_far |= looks_far
    if windows:
        yield slice(start, len(windows))


def _with_far(frames: Tensor, far: SeenFar | None, chosen: slice) -> tuple[Tensor, Tensor | None]:
    """Frames followed by what centre frames see of far ones; and where that is, (centre frames, channels)."""
    if far is None:
        return frames, None
    keys = far.keys[chosen]
    maps = {key: far.channels(key, frames) for key in keys}
    n, places = 2 * len(far.bins), {key: number for number, key in enumerate(maps)}
    first = torch.tensor([len(frames) + n * places[key] for key in keys])
    return torch.cat([frames, *maps.values()]), first[:, None] + torch.arange(n)


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
        far: Tensor | None,
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
        # By the first of their channels, and direction of time.
        self._far: dict[tuple[int, int], Tensor] = {}
        self._far_of = None if far is None else far[:, 0].tolist()
        for channels in () if far is None else torch.unique(far, dim=0):
            found = self._look(frames[channels.to(frames.device)]) + self._bias
            torch.nn.functional.leaky_relu_(found, LEAK)
            for reverse in self.reversals:
                x = (found.flip(1) if reverse else found).permute(0, 1, 4, 2, 3).flatten(1, 2)
                assert network.far is not None
                x = pointwise(network.far, x.contiguous(memory_format=torch.channels_last))
                self._far[int(channels[0]), reverse] = x

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
        given = [
            inputs.flatten(0, 2).flatten(-2).permute(0, 3, 1, 2),
            centre.flatten(0, 2).contiguous(memory_format=torch.channels_last),
        ]
        if self._far_of is not None:
            given.append(torch.cat([self._far[self._far_of[i], r] for i in part.tolist() for r in reversals]))
        outputs = _in_halves(lambda *x: self._moments(self._network.from_looks(*x)), *given)
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


def streamed(
    network: Any,
    frames: Tensor,
    wanted: Wanted,
    members: list[Symmetry],
    precision: str,
    check: Callable[[], None] = lambda: None,
) -> Iterator[Tensor]:
    """The same for a network that streams frames, all of them for one mirror image and direction of time at a time.

    Such networks have no biases, so it does not matter at which dose they see a frame.
    """
    windows, centres = wanted.windows, wanted.centres
    gains = torch.tensor(np.sqrt(wanted.around), dtype=torch.float32, device=frames.device)[:, None, None]
    totals = frames.new_zeros((len(centres), *frames.shape[1:]))
    half = network.architecture.window
    for mirror, reverse in sorted({member[1:] for member in members}):
        turns = [turn for turn, *others in members if tuple(others) == (mirror, reverse)]
        ordered = [
            [*window.frames[:half].tolist(), centre, *window.frames[half:].tolist()][:: -1 if reverse else 1]
            for window, centre in zip(windows, centres, strict=True)
        ]

        def predict(seen: Tensor, ordered: list[list[int]] = ordered, turns: list[int] = turns) -> Tensor:
            out = seen.new_empty((len(ordered), *seen.shape[1:]))
            for total, output in zip(out, network.stream(seen, ordered, turns), strict=True):
                total.copy_(output)
                check()
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


def _groups(members: list[Symmetry], largest: int) -> list[list[Symmetry]]:
    """Symmetries that are taken together: those that keep, or turn, height and width, with both directions of time."""
    both = len({member[2] for member in members}) == 2  # they share their looks
    size = next((n for n in (8, 4, 2) if n <= largest), 2 if both else 1)
    groups = []
    for odd in (0, 1):
        chosen = sorted((m for m in members if m[0] % 2 == odd), key=lambda m: members.index((*m[:2], 0)))
        groups += [chosen[i : i + size] for i in range(0, len(chosen), size)]
    return groups
