"""What a network is shown: frames in units of the noise, their sums over time, turned and mirrored."""

from __future__ import annotations

from itertools import pairwise
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from ..noise.far_frames import SECTION, far_sections, n_sections, section_place
from ..noise.noise import Scale
from .split_blind import shifted


def summed_window(
    frames: NDArray[Any], indices: NDArray[np.intp], bins: tuple[int, ...], scale: Scale, size: int
) -> Tensor:
    """What `normalise` and `stack_window` give, to rounding, at a third of their cost.

    Counts are summed before they are normalised, not after: half as many numbers to convert.
    """
    n_frames = np.array((*bins[::-1], *bins), dtype=np.float32)[:, None, None]
    starts = np.cumsum([0, *bins[::-1], *bins[:-1]])
    sums = np.add.reduceat(frames[indices], starts, axis=0, dtype=np.float32)
    sums -= n_frames * np.float32(scale.mean)
    sums /= np.sqrt(n_frames) * np.float32(scale.noise)
    out = torch.zeros((len(sums), size, size))
    out[:, : sums.shape[1], : sums.shape[2]] = torch.from_numpy(sums)
    return out


def shifted_window(
    frames: NDArray[Any],
    indices: NDArray[np.intp],
    shifts: NDArray[np.intp],
    corner: tuple[int, int],
    bins: tuple[int, ...],
    scale: Scale,
    size: int,
) -> Tensor:
    """The same for frames that are shifted, of which the patch at ``corner`` is wanted; 0 where they have no pixels."""
    sizes = (*bins[::-1], *bins)
    sums = np.zeros((len(sizes), size, size), dtype=np.float32)
    channels = np.repeat(np.arange(len(sizes)), sizes)
    height, width = frames.shape[1:]
    for channel, index, (rows, columns) in zip(channels, indices, shifts.tolist(), strict=True):
        top, left = corner[0] + rows, corner[1] + columns
        # A frame that is shifted by more than a patch ends before it begins.
        bottom, right = (max(0, min(a + size, n)) for a, n in ((top, height), (left, width)))
        seen = frames[index, max(0, top) : bottom, max(0, left) : right]
        inner = sums[channel, max(0, -top) :, max(0, -left) :][: seen.shape[0], : seen.shape[1]]
        inner += seen - np.float32(scale.mean)
    sums /= np.sqrt(np.array(sizes, dtype=np.float32))[:, None, None] * np.float32(scale.noise)
    return torch.from_numpy(sums)


def normalise(frames: NDArray[Any], scale: Scale, height: int, width: int) -> Tensor:
    """Frames in units of the noise, padded with zeros (the mean level) below and to the right.

    Parameters
    ----------
    frames : ndarray, shape (n, at most height, at most width)
        Raw frames [counts].
    scale : Scale
    height, width : int
        Size of the result [pixels].

    Returns
    -------
    Tensor, shape (n, height, width), float32
    """
    out = torch.zeros((frames.shape[0], height, width), dtype=torch.float32)
    values = np.asarray(frames, dtype=np.float32)
    out[:, : values.shape[1], : values.shape[2]] = torch.from_numpy(
        (values - scale.mean) / np.float32(scale.noise)
    )
    return out


def far_window(
    frames: Tensor, centre: int, bins: tuple[int, ...], drift: NDArray[np.floating] | None = None
) -> Tensor:
    """What `tdenoise.noise.far_frames` gives of a whole movie, as a function that can be differentiated.

    Parameters
    ----------
    frames : Tensor, shape (n, height, width)
        From `normalise`, all frames of the movie.
    centre : int
    bins : tuple of int
        Sections per channel, from the centre outwards.
    drift : ndarray, shape (n, 2), optional
        Of the scene [pixels].

    Returns
    -------
    Tensor, shape (2 * len(bins), height, width)
    """
    if not bins:
        return frames[:0]
    n = n_sections(len(frames))
    if n == 1:
        return torch.zeros_like(frames[:1]).expand(2 * len(bins), -1, -1)
    places = np.stack([section_place(section, drift) for section in range(n)])
    moved = np.zeros((len(frames), 2)) if drift is None else drift
    seen = torch.stack([frames, torch.ones_like(frames)], dim=1)
    sums = []
    for section in range(n):
        own = range(section * SECTION, min((section + 1) * SECTION, len(frames)))
        steps = np.rint(moved[own] - places[section]).astype(int).tolist()
        sums.append(sum(shifted(seen[i], *step) for i, step in zip(own, steps, strict=True)))
    own_section = centre // SECTION
    sections = far_sections(own_section, n, sum(bins))
    steps = np.rint(places[sections] - places[own_section]) + np.rint(places[own_section] - moved[centre])
    parts = [shifted(sums[k], *step) for k, step in zip(sections, steps.astype(int).tolist(), strict=True)]
    totals = torch.stack([torch.stack(some).sum(dim=0) for some in _split(parts, (*bins[::-1], *bins))])
    means: Tensor = SECTION**0.5 * totals[:, 0] / totals[:, 1].clamp(min=1)
    return means


def _split(parts: list[Tensor], sizes: tuple[int, ...]) -> list[list[Tensor]]:
    edges = np.cumsum([0, *sizes]).tolist()
    return [parts[a:b] for a, b in pairwise(edges)]


def put_stand_ins(
    frames: Tensor, levels: NDArray[np.float32], scale: Scale, bins: tuple[int, ...] | None = None
) -> tuple[NDArray[np.intp], NDArray[np.intp]]:
    """Show levels that tell nothing in place of bad pixels; changes the frames in place.

    The same in training and in use, and the same for any block that a pixel is read with.

    Parameters
    ----------
    frames : Tensor, shape (n, height, width)
        From `normalise`; or from `stack_window` if ``bins`` are given.
    levels : ndarray, shape (at most height, at most width)
        From `tdenoise.noise.camera_pattern.stand_ins` [counts]; NaN where the pixel is sound.
    scale : Scale
    bins : tuple of int, optional
        Frames summed per channel, from the centre outwards.

    Returns
    -------
    rows, columns : ndarray of int
        Of the bad pixels.
    """
    rows, columns = np.nonzero(np.isfinite(levels))
    values = torch.from_numpy((levels[rows, columns] - np.float32(scale.mean)) / np.float32(scale.noise))
    n_summed = torch.ones(len(frames)) if bins is None else torch.tensor([*bins[::-1], *bins])
    frames[:, rows, columns] = (n_summed.sqrt()[:, None] * values).to(frames.device)
    return rows, columns


def transform(frames: Tensor, turn: int, mirror: int, reverse: int) -> Tensor:
    """One of the 16 symmetries: quarter turns, mirror image, time reversal (channels are in order of time)."""
    if reverse:
        frames = frames.flip(-3)
    if mirror:
        frames = frames.flip(-1)
    return torch.rot90(frames, turn, (-2, -1))


def transform_back(frames: Tensor, turn: int, mirror: int) -> Tensor:
    """Inverse of `transform` for a predicted frame."""
    frames = torch.rot90(frames, -turn, (-2, -1))
    return frames.flip(-1) if mirror else frames
