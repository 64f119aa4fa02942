"""Denoise a block of frames with a trained network."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from ..network.registry import Network
from ..network.split_blind import SplitBlind
from ..network.windows import put_stand_ins
from ..noise.brightness import Brightness
from ..noise.far_frames import FarFrames, n_sections
from ..noise.gamma_poisson import pool, prior_variance
from ..noise.noise import Scale
from .batches import Symmetry, batches_of, streamed
from .tile import Array, Tile, Wanted

ORDER = 2  # of the symmetries, counted up when it changes: part of what identifies a result


def symmetries(number: int) -> list[Symmetry]:
    """The first ``number`` (1, 2, 4, 8 or 16) symmetries to average over, as (turn, mirror, reverse).

    Averaging over the symmetries of the training patches (self-ensemble, Timofte et al. 2016) lowers the error
    of the network. It stays blind, because every pass is. Mirror image and half turn bring the most, reversed
    time next to nothing (`benchmarks/passes.py`), so it comes last.
    """
    order = [(turn, mirror, reverse) for reverse in (0, 1) for turn in (0, 2, 1, 3) for mirror in (0, 1)]
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
    ensemble: int = 4,
    device: str | torch.device = "cpu",
    stand_ins: NDArray[np.float32] | None = None,
    drift: NDArray[np.floating] | None = None,
    brightness: Brightness | None = None,
    precision: str = "float32",
    far: FarFrames | None = None,
    check: Callable[[], None] = lambda: None,
) -> Iterator[NDArray[np.float32]]:
    """Denoised frames of a block, one at a time.

    One call gives the same bits on one device with one torch; other tiles, frames or devices equal to rounding.

    Parameters
    ----------
    network : SplitBlind or Udvd
        In evaluation mode, on ``device``.
    block : ndarray, shape (n, height, width)
        Raw frames [counts] with halo, which begins on a multiple of the stride and ends on one or at the edge.
    tile, scale, frames : Tile, Scale, range
        Where the block lies; of the whole movie; which frames to denoise: their windows lie in ``block``.
    ensemble, device, precision, check : int, str or torch.device, str, callable
        Symmetries to average over: 1, 2, 4, 8 or 16. Convolutions are in ``float32``, ``tf32`` or ``bfloat16``; after
        the rounding of the latter two a block is no longer equal to the same part of the whole movie. The last is
        called before every batch, and may raise.
    stand_ins : ndarray, shape (height, width), optional
        Shown in place of bad pixels; see `tdenoise.noise.camera_pattern.stand_ins`.
    drift : ndarray, shape (frames of the movie, 2), optional
        Which the windows follow [pixels]; see `tdenoise.noise.drift`. UDVD does not.
    brightness : Brightness, optional
        Of all frames: divided out of the windows and multiplied back. Frames that are not valid are predicted; or NaN.
    far : FarFrames, optional
        Of the movie, its place moved to that of the block, for a network that sees them and a part of the movie.

    Yields
    ------
    ndarray, shape (core rows, core columns), float32
        Expected counts; a FloatingPointError if the network returns NaN or Inf.
    """
    wanted, padded = _begun(network, block, tile, scale, stand_ins, drift, brightness, far, frames, device)
    members = symmetries(ensemble)
    rows, columns = slice(*tile.core_rows), slice(*tile.core_columns)

    def predicted() -> Iterator[Tensor]:
        first = 0
        for total in _totals(network, padded, wanted, members, precision, check):
            level, contrast = wanted.back(scale, slice(first, first + len(total)), total)
            first += len(total)
            yield level * scale.mean + (contrast / len(members)) * total[:, rows, columns]

    missing = np.full((rows.stop - rows.start, columns.stop - columns.start), np.nan, np.float32)
    yield from wanted.in_order(_without_gradients(_finite(predicted(), wanted.numbers)), missing.copy)


def _begun(
    network: Network,
    block: NDArray[Any],
    tile: Tile,
    scale: Scale,
    stand_ins: NDArray[np.float32] | None,
    drift: NDArray[np.floating] | None,
    brightness: Brightness | None,
    far: FarFrames | None,
    frames: range,
    device: str | torch.device,
) -> tuple[Wanted, Tensor]:
    """What is wanted of a block, and its frames as the network sees them."""
    far = far or _far_of(network, block, tile, stand_ins, drift, brightness)
    wanted = Wanted.of(network, tile, frames, scale, drift, brightness, far)
    return wanted, _prepare(network, block, tile, scale, device, stand_ins, brightness)


def _totals(
    network: Network,
    padded: Tensor,
    wanted: Wanted,
    members: list[Symmetry],
    precision: str,
    check: Callable[[], None],
) -> Iterator[Tensor]:
    """Sums over the symmetries, of some frames at a time."""
    if not isinstance(network, SplitBlind):
        return streamed(network, padded, wanted, members, precision, check)
    return (total[:, 0] for total in batches_of(network, padded, wanted, members, precision, check=check))


def denoise_with_variance(
    network: SplitBlind,
    block: NDArray[Any],
    tile: Tile,
    scale: Scale,
    frames: range,
    *,
    ensemble: int = 4,
    device: str | torch.device = "cpu",
    stand_ins: NDArray[np.float32] | None = None,
    drift: NDArray[np.floating] | None = None,
    brightness: Brightness | None = None,
    precision: str = "float32",
    far: FarFrames | None = None,
    check: Callable[[], None] = lambda: None,
) -> Iterator[tuple[NDArray[np.float32], NDArray[np.float32]]]:
    """Denoised frames of a block and their variance, from a network with a gamma head.

    The variance is that of the expected counts, given all that the denoised frame was made from. For the model see
    `tdenoise.noise.gamma_poisson`, and its `pool` for how the members of an ensemble are joined.

    Parameters
    ----------
    network, block, tile, scale, frames, ensemble, device, stand_ins, drift, brightness, precision, far, check
        As for `denoise`.

    Yields
    ------
    denoised, variance : ndarray, shape (core rows, core columns), float32
        [counts], [counts^2]

    Raises
    ------
    ValueError
        If the network has no gamma head.
    """
    if getattr(network.architecture, "head", None) != "gamma":
        raise ValueError("only a network with a gamma head knows the variance of what it predicts")
    wanted, padded = _begun(network, block, tile, scale, stand_ins, drift, brightness, far, frames, device)
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
        for sums in batches_of(network, padded, wanted, members, precision, _gamma_moments, check):
            yield both(sums, slice(first, first + len(sums)))
            first += len(sums)

    shape = (2, core[0].stop - core[0].start, core[1].stop - core[1].start)
    found = _without_gradients(_finite(results(), wanted.numbers))
    for result in wanted.in_order(found, lambda: np.full(shape, np.nan, np.float32)):
        yield result[0], result[1]


def _without_gradients(results: Iterator[NDArray[np.float32]]) -> Iterator[NDArray[np.float32]]:
    """Results that are computed in PyTorch's inference mode, which ends before the caller goes on.

    A generator that holds the mode while it waits leaves it on for a caller who takes no more of its results.
    """
    while True:
        with torch.inference_mode():
            result = next(results, None)
        if result is None:
            return
        yield result


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


def _far_of(
    network: Network,
    block: NDArray[Any],
    tile: Tile,
    stand_ins: NDArray[np.float32] | None,
    drift: NDArray[np.floating] | None,
    brightness: Brightness | None,
) -> FarFrames | None:
    """Far frames of a block that is a whole movie; None where the network sees none."""
    if not network.architecture.far_bins:
        return None
    if tile.n_frames != len(block):
        raise ValueError("the network sees far frames, and a part of a movie does not tell them")
    if n_sections(len(block)) < 2:
        raise ValueError(f"the network sees far frames, and {len(block)} frames are too few")
    return FarFrames.of(block, drift=drift, brightness=brightness, stand_ins=stand_ins)


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
    elif device.type != "cpu":
        counts = counts.float()  # other accelerators do not know all types of counts
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
        if batch.device.type != "cuda":
            yield from _frames_of(batch.cpu(), finite.cpu())
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


def _gamma_moments(outputs: Tensor) -> Tensor:
    """Of a gamma head: prediction, its square, and variance; in float64, for the square loses digits."""
    if outputs.device.type == "mps":
        outputs = outputs.cpu()  # it has no float64
    mean = outputs[:, :1].double()
    return torch.cat([mean, mean.square(), prior_variance(outputs[:, 1:], 1.0)], dim=1)
