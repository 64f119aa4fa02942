"""The split-blind network: a U-Net over the neighbour frames and a blind branch over the centre frame.

Self-supervised denoising rests on one property: the prediction of a pixel must not depend on that pixel's own
noisy value (Laine et al. 2019; Sheth et al. 2021, UDVD). UDVD hides the pixel in *every* frame it sees. Frames
of a counting camera are independent, so only the centre frame needs a blind spot (SUPPORT, Eom et al. 2023):
the neighbour branch is then an ordinary, cheap U-Net, and only two small branches that see the centre frame are
blind.
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

from ..noise.far_frames import SECTION
from ..noise.noise import Scale
from .kind import Kind

LEAK = 0.1  # slope of LeakyReLU for negative values


# In units of the noise. Not of the contrast: one network is to serve many doses, and whether a column has changed
# depends on how far its counts stand out of the noise.
OUTPUT_UNIT = 0.3


@dataclass(frozen=True)
class Architecture:
    """Everything that fixes the shape of a split-blind network; saved in the model's card."""

    window: int = 20  # frames seen on each side of the centre frame
    bins: tuple[int, ...] = (1, 1, 1, 1, 1, 2, 3, 5, 5)  # frames summed per channel, from the centre outwards
    unshuffle: int = 4  # neighbour frames are folded by this factor into channels [pixels]
    frame_width: int = 16  # channels that every frame is turned into before frames are compared
    widths: tuple[int, ...] = (48, 64, 96)  # channels of the U-Net, one per level
    features: int = 8  # full-resolution channels that the U-Net hands to the fusion
    centre_width: int = 8  # channels of the centre branch
    fusion_width: int = 16  # channels between the two 1x1 convolutions
    cell_width: int = 48  # channels of the branch that compares the centre frame with its neighbours; 0: none
    centre: str = "blind"  # or "seen": an input like its neighbours, for models trained on thinned counts
    blind_radius: int | None = 0  # the (2r+1) x (2r+1) pixels never seen; None hides the whole centre frame
    head: str = "mean"  # or "gamma": also how uncertain the mean is; see `tdenoise.noise.gamma_poisson`
    far_bins: tuple[
        int, ...
    ] = ()  # sections of frames per channel, beyond the window; see `..noise.far_frames`

    def __post_init__(self) -> None:
        numbers = (
            self.window,
            self.unshuffle,
            self.frame_width,
            self.features,
            self.centre_width,
            self.fusion_width,
        )
        if not all(type(n) is int and 1 <= n <= 4096 for n in (*numbers, *self.bins, *self.widths)):
            raise ValueError("the numbers of an architecture are whole and lie between 1 and 4096")
        if not (1 <= len(self.widths) <= 8 and type(self.blind_radius) in (int, type(None))):
            raise ValueError("an architecture has 1 to 8 widths, and a blind radius in pixels or none")
        if not all(type(n) is int and 1 <= n <= 4096 for n in self.far_bins):
            raise ValueError("the far bins of an architecture are whole numbers of sections, 1 to 4096")
        if sum(self.bins) != self.window:
            raise ValueError(
                f"bins {self.bins} add up to {sum(self.bins)} frames, the window is {self.window}"
            )
        if self.centre not in ("blind", "seen") or not (
            type(self.cell_width) is int and 0 <= self.cell_width <= 4096
        ):
            raise ValueError("the centre frame is blind or seen, and the cell branch has 0 to 4096 channels")
        if self.head not in ("mean", "gamma") or (self.head == "gamma" and self.centre == "seen"):
            raise ValueError("the head is mean or, of a blind network, gamma")
        if self.blind_radius is not None and not 0 <= self.blind_radius <= 8:
            raise ValueError(f"blind radius {self.blind_radius} is outside 0 to 8 pixels (None: whole frame)")

    @property
    def kind(self) -> str:
        """The name of the kind in cards."""
        return "thinned" if self.centre == "seen" else "split-blind"

    def scale(self, measured: Scale) -> Scale:
        """How counts become inputs of the network, and outputs counts."""
        return Scale(measured.mean, measured.noise, OUTPUT_UNIT * measured.noise)

    @property
    def reach(self) -> int:
        """Frames to each side that are seen in any way."""
        return max(self.window, (sum(self.far_bins) + 1) * SECTION if self.far_bins else 0)

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
        if self.compares:
            reach += self.unshuffle * sum(cell_reach(self.blind_radius or 0, self.unshuffle)[1:])
        return -(-max(reach, self._centre_reach) // self.stride) * self.stride

    @property
    def sees_around(self) -> bool:
        """Whether pixels of the centre frame outside the blind spot are used."""
        return self.centre == "blind" and self.blind_radius is not None

    @property
    def compares(self) -> bool:
        """Whether the centre frame is compared, cell by cell, with what its neighbour frames predict."""
        return self.sees_around and self.cell_width > 0

    @property
    def _centre_reach(self) -> int:
        return centre_reach(self.blind_radius or 0) if self.sees_around else 0

    def to_json(self) -> dict[str, Any]:
        """Plain values for ``card.json``; far bins are named only where there are some."""
        values = dataclasses.asdict(self)
        if not self.far_bins:
            del values["far_bins"]
        return values

    @classmethod
    def from_json(cls, values: dict[str, Any]) -> Architecture:
        """Inverse of `to_json`; unknown names are refused."""
        known = {f.name for f in dataclasses.fields(cls)}
        values = {"far_bins": (), **values}
        if set(values) != known:
            raise ValueError(f"architecture names {sorted(set(values) ^ known)} do not match this version")
        plain: dict[str, Any] = {k: tuple(v) if isinstance(v, list) else v for k, v in values.items()}
        return cls(**plain)


def centre_reach(blind_radius: int) -> int:
    """Reach of the convolution with a hole over the centre frame, in pixels."""
    return blind_radius + 3


def cell_reach(blind_radius: int, cell: int) -> tuple[int, int, int]:
    """Of the branch that compares cells: how many are hidden around the own one, reach of the ring, dilation.

    The pixels of the own cell are hidden. With a blind radius also cells around it: a pixel at the border of its cell
    has its neighbours there. The dilation is larger than all that was reached before and what is hidden, so no sum
    of steps leads back.
    """
    hidden = -(-blind_radius // cell)
    return hidden, hidden + 1, 2 * hidden + 2


def shifted(frame: Tensor, rows: int, columns: int) -> Tensor:
    """A frame whose pixels come from so many rows and columns further on; 0, the mean, where there are none.

    Examples
    --------
    >>> shifted(torch.tensor([[1.0, 2.0], [3.0, 4.0]]), 1, 0).tolist()
    [[3.0, 4.0], [0.0, 0.0]]
    """
    if rows == columns == 0:
        return frame
    height, width = frame.shape[-2:]
    out = torch.zeros_like(frame)
    if abs(rows) < height and abs(columns) < width:
        inside, seen = (
            (
                slice(max(0, -sign * rows), height - max(0, sign * rows)),
                slice(max(0, -sign * columns), width - max(0, sign * columns)),
            )
            for sign in (1, -1)
        )
        out[..., *inside] = frame[..., *seen]
    return out


def stack_window(
    frames: Tensor,
    indices: NDArray[np.intp],
    bins: tuple[int, ...],
    shifts: NDArray[np.intp] | None = None,
) -> Tensor:
    """Neighbour frames as channels, the far ones summed in bins of unit noise variance.

    Parameters
    ----------
    frames : Tensor, shape (n, height, width)
        Normalised frames, noise variance 1.
    indices : ndarray, shape (2 * window,)
        From `window_indices`, counted from the first of ``frames``.
    bins : tuple of int
        Frames per channel, from the centre outwards.
    shifts : ndarray, shape (2 * window, 2), optional
        By which the frames are `shifted`; see `tdenoise.noise.drift.window_shifts`.

    Returns
    -------
    Tensor, shape (2 * len(bins), height, width)
        In order of time, so that flipping the channels reverses time.
    """
    sizes = (*bins[::-1], *bins)
    moves = np.zeros((len(indices), 2), int) if shifts is None else shifts
    chosen = [shifted(frames[int(i)], int(dy), int(dx)) for i, (dy, dx) in zip(indices, moves, strict=True)]
    channels = []
    position = 0
    for size in sizes:
        total = chosen[position]
        for frame in chosen[position + 1 : position + size]:
            total = total + frame
        channels.append(total / size**0.5 if size > 1 else total)
        position += size
    return torch.stack(channels)


def pointwise(layer: nn.Module, x: Tensor) -> Tensor:
    """A 1x1 convolution. On one core, torch's own copies channels-last tensors to another layout and back."""
    assert isinstance(layer, nn.Conv2d)
    if x.device.type != "cpu":
        return layer(x)  # type: ignore[no-any-return]
    return F.linear(x.permute(0, 2, 3, 1), layer.weight[:, :, 0, 0], layer.bias).permute(0, 3, 1, 2)


class _Pair(nn.Module):
    """Two 3x3 convolutions."""

    def __init__(self, n_in: int, n_out: int) -> None:
        super().__init__()
        self.first = nn.Conv2d(n_in, n_out, 3, padding=1)
        self.second = nn.Conv2d(n_out, n_out, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        x = F.leaky_relu(self.first(x), LEAK)
        return F.leaky_relu(self.second(x), LEAK)


def _hole(reach: int, hidden: int) -> Tensor:
    """Mask of a convolution kernel: 0 within ``hidden`` of its middle, else 1."""
    mask = torch.ones(2 * reach + 1, 2 * reach + 1)
    mask[reach - hidden : reach + hidden + 1, reach - hidden : reach + hidden + 1] = 0
    return mask


def _with_hole(ring: nn.Conv2d, hole: Tensor, x: Tensor) -> Tensor:
    """A convolution without the middle of its kernel.

    It pads with zeros, never by reflection: a reflected edge would show a pixel to itself.
    """
    return F.conv2d(x, ring.weight * hole, ring.bias, padding=ring.padding)


class _CentreBranch(nn.Module):
    """A convolution over the centre frame with a hole: the pixels of the own cell that are not hidden."""

    hole: Tensor

    def __init__(self, width: int, blind_radius: int) -> None:
        super().__init__()
        reach = centre_reach(blind_radius)
        self.ring = nn.Conv2d(1, width, 2 * reach + 1, padding=reach)
        self.register_buffer("hole", _hole(reach, blind_radius), persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        return F.leaky_relu(_with_hole(self.ring, self.hole, x), LEAK)


class _CellBranch(nn.Module):
    """What the centre frame says that its neighbour frames do not: has a column come or gone?

    The frame is folded into cells. In each, its counts meet the features of the neighbour frames in layers
    that see nothing but this cell: a learned likelihood ratio between what was expected here and what came.
    A ring convolution then gathers this evidence from the cells around the one that is predicted, whose own
    counts stay hidden.
    """

    hole: Tensor

    def __init__(self, n_features: int, cell: int, width: int, blind_radius: int) -> None:
        super().__init__()
        hidden, ring, dilation = cell_reach(blind_radius, cell)
        self.compare = nn.Conv2d(n_features + cell**2, width, 1)
        self.weigh = nn.Conv2d(width, width, 1)
        self.ring = nn.Conv2d(width, width, 2 * ring + 1, padding=ring)
        self.far = nn.Conv2d(width, width, 3, padding=dilation, dilation=dilation)
        self.join = nn.Conv2d(n_features + width, n_features, 1)
        self.settle = nn.Conv2d(n_features, n_features, 1)
        self.register_buffer("hole", _hole(ring, hidden), persistent=False)

    def forward(self, features: Tensor, cells: Tensor) -> Tensor:
        x = F.leaky_relu(pointwise(self.compare, torch.cat([features, cells], dim=1)), LEAK)
        x = F.leaky_relu(pointwise(self.weigh, x), LEAK)
        x = F.leaky_relu(_with_hole(self.ring, self.hole, x), LEAK)
        x = x + F.leaky_relu(self.far(x), LEAK)
        x = features + F.leaky_relu(pointwise(self.join, torch.cat([features, x], dim=1)), LEAK)
        return x + F.leaky_relu(pointwise(self.settle, x), LEAK)


class SplitBlind(nn.Module):
    """Predict the centre frame from its neighbour frames and from its own pixels outside the blind spot.

    Without normalisation layers: statistics of a patch or tile would make seams, and show a pixel to itself. With
    biases: whether a column has changed is decided by how far its counts stand out of a noise of known size, and
    that needs thresholds. Heights and widths must be multiples of
    ``architecture.stride``; `tdenoise.inference.denoising` pads and crops.
    """

    def __init__(self, architecture: Architecture) -> None:
        super().__init__()
        self.architecture = architecture
        a = architecture
        n_inputs = 2 * len(a.bins) + (a.centre == "seen")
        # The same for all frames: what a column looks like does not depend on when it is looked at.
        self.look = nn.Conv2d(a.unshuffle**2, a.frame_width, 3, padding=1)
        self.squeeze = nn.Conv2d(n_inputs * a.frame_width, a.widths[0], 1)
        n_far = 2 * len(a.far_bins) * a.frame_width
        self.far = nn.Conv2d(n_far, a.widths[0], 1, bias=False) if n_far else None
        if self.far is not None:
            nn.init.zeros_(
                self.far.weight
            )  # a network without them becomes one with them, and starts as it was
        self.down = nn.ModuleList([_Pair(width, width) for width in a.widths])
        pairs = list(zip(a.widths, a.widths[1:], strict=False))
        self.halve = nn.ModuleList([nn.Conv2d(n, m, 3, stride=2, padding=1) for n, m in pairs])
        self.lift = nn.ModuleList([nn.Conv2d(m, n, 1) for n, m in pairs])
        self.up = nn.ModuleList([_Pair(n, n) for n, _ in pairs])
        self.unfold = nn.Conv2d(a.widths[0], a.features * a.unshuffle**2, 1)
        radius = a.blind_radius or 0
        n_centre = a.centre_width if a.sees_around else 0
        self.cells = _CellBranch(a.widths[0], a.unshuffle, a.cell_width, radius) if a.compares else None
        self.centre = _CentreBranch(a.centre_width, radius) if a.sees_around else None
        self.fuse = nn.Conv2d(a.features + n_centre, a.fusion_width, 1)
        self.head = nn.Conv2d(a.fusion_width, 1, 1)
        self.spread = nn.Conv2d(a.fusion_width, 1, 1) if a.head == "gamma" else None
        if self.spread is not None:
            # At first the same everywhere: `Scale.contrast`.
            nn.init.zeros_(self.spread.weight)
            nn.init.zeros_(self.spread.bias)  # type: ignore[arg-type]

    def _look(self, frames: Tensor) -> Tensor:
        """Features of every frame on its own, shape (batch, frames * frame_width, cells, cells)."""
        n_frames = frames.shape[1]
        cells = F.pixel_unshuffle(frames, self.architecture.unshuffle)
        # One convolution in groups: frames as a batch would be copied from layout to layout, for twice the time.
        assert self.look.bias is not None
        weight, bias = self.look.weight.repeat(n_frames, 1, 1, 1), self.look.bias.repeat(n_frames)
        cells = cells.contiguous(memory_format=torch.channels_last)
        x = F.conv2d(cells, weight, bias, padding=1, groups=n_frames)
        return F.leaky_relu(x, LEAK)

    def forward(self, neighbours: Tensor, centre: Tensor) -> Tensor:
        """Predicted centre frames.

        Parameters
        ----------
        neighbours : Tensor, shape (batch, 2 * len(bins), height, width)
            From `stack_window`; with far bins, between the far frames before and those after, as
            `tdenoise.noise.far_frames` has them.
        centre : Tensor, shape (batch, 1, height, width)
            The noisy centre frame, normalised in the same way.

        Returns
        -------
        Tensor, shape (batch, 1, height, width)
            In units of ``Scale.contrast``; see `tdenoise.network.registry.scale_for`. A gamma head has a second
            channel, the logarithm of the standard deviation of the first.
        """
        a = self.architecture
        if a.centre == "seen":
            neighbours = torch.cat([neighbours, centre], dim=1)
        if self.far is None:
            return self.from_looks(self._look(neighbours), centre)
        n, end = len(a.far_bins), len(a.far_bins) + 2 * len(a.bins)
        far = torch.cat([neighbours[:, :n], neighbours[:, end : end + n]], dim=1)
        near = torch.cat([neighbours[:, n:end], neighbours[:, end + n :]], dim=1)
        return self.from_looks(self._look(near), centre, pointwise(self.far, self._look(far)))

    def look_at(self, frames: Tensor) -> Tensor:
        """The part of the first layer that a frame needs once, however many windows it stands in.

        It is linear: of frames that are summed, the sum is taken afterwards, and then comes the bias.

        Parameters
        ----------
        frames : Tensor, shape (n, height, width)

        Returns
        -------
        Tensor, shape (n, frame_width, height / unshuffle, width / unshuffle)
        """
        cells = F.pixel_unshuffle(frames[:, None], self.architecture.unshuffle)
        return F.conv2d(cells.contiguous(memory_format=torch.channels_last), self.look.weight, padding=1)

    def from_looks(self, looks: Tensor, centre: Tensor, far: Tensor | None = None) -> Tensor:
        """All layers after the first; see `forward`.

        Parameters
        ----------
        looks : Tensor, shape (batch, n_inputs * frame_width, height / unshuffle, width / unshuffle)
            What the first layer makes of the neighbours.
        centre : Tensor, shape (batch, 1, height, width)
        far : Tensor, optional
            What layer `far` makes of what the first makes of far frames; the same for many centre frames.
        """
        a = self.architecture
        x = pointwise(self.squeeze, looks)
        x = F.leaky_relu(x if far is None else x + far, LEAK)
        kept = []
        for level, pair in enumerate(self.down):
            x = pair(x)
            if level < len(self.halve):
                kept.append(x)
                x = F.leaky_relu(self.halve[level](x), LEAK)
        for level in reversed(range(len(self.up))):
            x = F.interpolate(pointwise(self.lift[level], x), scale_factor=2.0, mode="nearest") + kept[level]
            x = self.up[level](x)
        if self.cells is not None:
            x = self.cells(x, F.pixel_unshuffle(centre, a.unshuffle))
        x = F.pixel_shuffle(pointwise(self.unfold, x), a.unshuffle)
        if self.centre is not None:
            x = torch.cat([x, self.centre(centre)], dim=1)
        x = F.leaky_relu(pointwise(self.fuse, x), LEAK)
        mean = _in_float32(self.head, x)
        return mean if self.spread is None else torch.cat([mean, _in_float32(self.spread, x)], dim=1)


def _in_float32(layer: nn.Conv2d, x: Tensor) -> Tensor:
    assert layer.bias is not None
    with torch.autocast(x.device.type, enabled=False):
        return F.conv2d(x.float(), layer.weight.float(), layer.bias.float())


def _choose_thinned(blind_radius: int | str) -> tuple[Architecture, str]:
    if blind_radius != "auto":
        raise ValueError("--blind-radius: a thinned model has no blind spot. Remove this option.")
    reason = "not blind: single electrons (Fano factor 1, no correlations) can be split at random"
    return Architecture(centre="seen"), reason


KIND = Kind(Architecture, SplitBlind)
THINNED = Kind(Architecture, SplitBlind, _choose_thinned)
