"""The split-blind network: a U-Net over the neighbour frames and a blind branch over the centre frame.

Self-supervised denoising rests on one property: the prediction of a pixel must not depend on that pixel's own
noisy value (Laine et al. 2019; Sheth et al. 2021, UDVD). UDVD hides the pixel in *every* frame it sees. Frames
of a counting camera are independent, so only the centre frame needs a blind spot (SUPPORT, Eom et al. 2023):
the neighbour branch is then an ordinary, cheap U-Net, and only the small centre branch is blind.
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional as F

LEAK = 0.1  # slope of LeakyReLU for negative values


@dataclass(frozen=True)
class Architecture:
    """Everything that fixes the shape of a split-blind network; saved in the model's card."""

    window: int = 20  # frames seen on each side of the centre frame
    bins: tuple[int, ...] = (1, 1, 1, 1, 1, 2, 3, 5, 5)  # frames summed per channel, from the centre outwards
    unshuffle: int = 4  # neighbour frames are folded by this factor into channels [pixels]
    widths: tuple[int, ...] = (32, 48, 64)  # channels of the U-Net, one per level
    features: int = 8  # full-resolution channels that the U-Net hands to the fusion
    centre_width: int = 8  # channels of the centre branch
    fusion_width: int = 16  # channels between the two 1x1 convolutions
    blind_radius: int | None = 0  # the (2r+1) x (2r+1) pixels never seen; None hides the whole centre frame

    def __post_init__(self) -> None:
        numbers = (self.window, self.unshuffle, self.features, self.centre_width, self.fusion_width)
        if not all(type(n) is int and 1 <= n <= 4096 for n in (*numbers, *self.bins, *self.widths)):
            raise ValueError("the numbers of an architecture are whole and lie between 1 and 4096")
        if not (1 <= len(self.widths) <= 8 and type(self.blind_radius) in (int, type(None))):
            raise ValueError("an architecture has 1 to 8 widths, and a blind radius in pixels or none")
        if sum(self.bins) != self.window:
            raise ValueError(
                f"bins {self.bins} add up to {sum(self.bins)} frames, the window is {self.window}"
            )
        if self.blind_radius is not None and not 0 <= self.blind_radius <= 8:
            raise ValueError(f"blind radius {self.blind_radius} is outside 0 to 8 pixels (None: whole frame)")

    @property
    def stride(self) -> int:
        """Frames are cut and padded on this grid [pixels], else a tile would be sampled differently."""
        return int(self.unshuffle * 2 ** (len(self.widths) - 1))

    @property
    def spatial_halo(self) -> int:
        """Pixels around a tile that can change its result, rounded up to the stride."""
        # Nearest upsampling and folding look at most one stride beyond their cell; the first layer, one cell.
        reach = self.stride + self.unshuffle
        for level in range(len(self.widths)):
            step = self.unshuffle * 2**level
            last = level == len(self.widths) - 1
            reach += step * (2 if last else 5)  # two convolutions down, one to the next level, two up
        return max(
            -(-reach // self.stride) * self.stride, self.stride * -(-self._centre_reach // self.stride)
        )

    @property
    def _centre_reach(self) -> int:
        return 0 if self.blind_radius is None else sum(centre_dilations(self.blind_radius))

    def to_json(self) -> dict[str, Any]:
        """Plain values for ``card.json``."""
        return dataclasses.asdict(self)

    @classmethod
    def from_json(cls, values: dict[str, Any]) -> Architecture:
        """Inverse of `to_json`; unknown names are refused."""
        known = {f.name for f in dataclasses.fields(cls)}
        if set(values) != known:
            raise ValueError(f"architecture names {sorted(set(values) ^ known)} do not match this version")
        plain: dict[str, Any] = {k: tuple(v) if isinstance(v, list) else v for k, v in values.items()}
        return cls(**plain)


def centre_dilations(blind_radius: int) -> tuple[int, int, int]:
    """Reach of the ring convolution and the two dilations after it, in pixels.

    Each dilation is larger than everything reached before plus the blind radius, so no sum of steps leads
    back into the blind region.
    """
    ring = blind_radius + 2
    first = ring + blind_radius + 1
    second = ring + first + blind_radius + 1
    return ring, first, second


def window_indices(centre: int, n_frames: int, window: int) -> NDArray[np.intp]:
    """Frames that stand around a centre frame, never the centre frame itself.

    Where the movie ends, the missing neighbour at distance ``d`` is replaced by the one at distance ``d`` on
    the other side. Mirroring about the movie's end would, for some distances, show the network its own
    target. Where neither side has a frame at that distance, the distance is folded back into the reach.

    Parameters
    ----------
    centre : int
        Number of the frame to predict, from 0.
    n_frames : int
        Length of the movie, at least 3 frames.
    window : int
        Neighbours on each side.

    Returns
    -------
    ndarray of int, shape (2 * window,)
        Frame numbers for the offsets ``-window..-1, 1..window``.

    Examples
    --------
    >>> window_indices(0, 30, 2).tolist()
    [2, 1, 1, 2]
    >>> window_indices(1, 3, 3).tolist()
    [0, 0, 0, 2, 2, 2]
    """
    if n_frames < 3:
        raise ValueError(
            f"a movie needs at least 3 frames to be denoised from its neighbours, it has {n_frames}"
        )
    reach = max(centre, n_frames - 1 - centre)
    distance = np.arange(1, window + 1)
    if reach == 1:
        distance = np.ones_like(distance)
    else:
        fold = (distance - 1) % (2 * reach - 2)
        distance = 1 + np.where(fold < reach, fold, 2 * reach - 2 - fold)
    before, after = centre - distance, centre + distance
    left = np.where(before >= 0, before, after)
    right = np.where(after < n_frames, after, before)
    return np.concatenate([left[::-1], right])


def stack_window(frames: Tensor, indices: NDArray[np.intp], bins: tuple[int, ...]) -> Tensor:
    """Neighbour frames as channels, the far ones summed in bins of unit noise variance.

    Parameters
    ----------
    frames : Tensor, shape (n, height, width)
        Normalised frames, noise variance 1.
    indices : ndarray, shape (2 * window,)
        From `window_indices`, counted from the first of ``frames``.
    bins : tuple of int
        Frames per channel, from the centre outwards.

    Returns
    -------
    Tensor, shape (2 * len(bins), height, width)
        In order of time, so that flipping the channels reverses time.
    """
    sizes = (*bins[::-1], *bins)
    channels = []
    position = 0
    for size in sizes:
        chosen = indices[position : position + size]
        total = frames[int(chosen[0])]
        for index in chosen[1:]:
            total = total + frames[int(index)]
        channels.append(total / size**0.5 if size > 1 else total)
        position += size
    return torch.stack(channels)


class _Pair(nn.Module):
    """Two 3x3 convolutions without bias."""

    def __init__(self, n_in: int, n_out: int) -> None:
        super().__init__()
        self.first = nn.Conv2d(n_in, n_out, 3, padding=1, bias=False)
        self.second = nn.Conv2d(n_out, n_out, 3, padding=1, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        x = F.leaky_relu(self.first(x), LEAK)
        return F.leaky_relu(self.second(x), LEAK)


class _CentreBranch(nn.Module):
    """Convolutions over the centre frame whose joint field of view has a hole around each pixel."""

    hole: Tensor

    def __init__(self, width: int, blind_radius: int) -> None:
        super().__init__()
        ring, first, second = centre_dilations(blind_radius)
        self.ring = nn.Conv2d(1, width, 2 * ring + 1, padding=ring, bias=False)
        self.near = nn.Conv2d(width, width, 3, padding=first, dilation=first, bias=False)
        self.far = nn.Conv2d(width, width, 3, padding=second, dilation=second, bias=False)
        hole = torch.ones(2 * ring + 1, 2 * ring + 1)
        hole[ring - blind_radius : ring + blind_radius + 1, ring - blind_radius : ring + blind_radius + 1] = 0
        self.register_buffer("hole", hole, persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        # Zero padding, never reflection: a reflected edge would show a pixel to itself.
        x = F.leaky_relu(F.conv2d(x, self.ring.weight * self.hole, padding=self.ring.padding), LEAK)
        x = x + F.leaky_relu(self.near(x), LEAK)
        return x + F.leaky_relu(self.far(x), LEAK)


class SplitBlind(nn.Module):
    """Predict the centre frame from its neighbour frames and from its own pixels outside the blind spot.

    Bias-free and without normalisation layers. Heights and widths must be multiples of
    ``architecture.stride``; `tdenoise.infer` pads and crops.
    """

    def __init__(self, architecture: Architecture) -> None:
        super().__init__()
        self.architecture = architecture
        a = architecture
        folded = 2 * len(a.bins) * a.unshuffle**2
        self.squeeze = nn.Conv2d(folded, a.widths[0], 3, padding=1, bias=False)
        self.down = nn.ModuleList([_Pair(width, width) for width in a.widths])
        pairs = list(zip(a.widths, a.widths[1:], strict=False))
        self.halve = nn.ModuleList([nn.Conv2d(n, m, 3, stride=2, padding=1, bias=False) for n, m in pairs])
        self.lift = nn.ModuleList([nn.Conv2d(m, n, 1, bias=False) for n, m in pairs])
        self.up = nn.ModuleList([_Pair(n, n) for n, _ in pairs])
        self.unfold = nn.Conv2d(a.widths[0], a.features * a.unshuffle**2, 1, bias=False)
        n_centre = 0 if a.blind_radius is None else a.centre_width
        self.centre = None if a.blind_radius is None else _CentreBranch(a.centre_width, a.blind_radius)
        self.fuse = nn.Conv2d(a.features + n_centre, a.fusion_width, 1, bias=False)
        self.head = nn.Conv2d(a.fusion_width, 1, 1, bias=False)

    def forward(self, neighbours: Tensor, centre: Tensor) -> Tensor:
        """Predicted centre frames.

        Parameters
        ----------
        neighbours : Tensor, shape (batch, 2 * len(bins), height, width)
            From `stack_window`.
        centre : Tensor, shape (batch, 1, height, width)
            The noisy centre frame, normalised in the same way.

        Returns
        -------
        Tensor, shape (batch, 1, height, width)
            In units of the movie's signal; see `tdenoise.noise.Scale`.
        """
        a = self.architecture
        x = F.leaky_relu(self.squeeze(F.pixel_unshuffle(neighbours, a.unshuffle)), LEAK)
        kept = []
        for level, pair in enumerate(self.down):
            x = pair(x)
            if level < len(self.halve):
                kept.append(x)
                x = F.leaky_relu(self.halve[level](x), LEAK)
        for level in reversed(range(len(self.up))):
            x = F.interpolate(self.lift[level](x), scale_factor=2.0, mode="nearest") + kept[level]
            x = self.up[level](x)
        x = F.pixel_shuffle(self.unfold(x), a.unshuffle)
        if self.centre is not None:
            x = torch.cat([x, self.centre(centre)], dim=1)
        x = F.leaky_relu(self.fuse(x), LEAK)
        return F.conv2d(x.float(), self.head.weight.float())
