"""UDVD, the reference: blind-spot video denoising as published, and as users of it have it.

The architecture of Sheth et al. (ICCV 2021). Five frames form three overlapping triplets; one U-Net turns each
triplet into features, a second one joins the three. Each of its convolutions sees a pixel and what lies above it,
never what lies below, so after a shift by one row the output depends on the pixels above alone. This is done for four
quarter turns of the frames, with the same weights; 1x1 convolutions join the four half planes. The pixel is hidden in
*all five* frames, not in the centre frame alone: compare `tdenoise.network.split_blind`.

Layers have the names and shapes of the script that users train UDVD with (crozier-del/UDVD-MF-Denoising), so that its
weights fit: see docs/reference/networks.md. What is computed is the same; how often, is not.
"""

from __future__ import annotations

import hashlib
import io
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, ClassVar

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ..noise.noise import Scale
from .kind import Kind

LEAK = 0.1  # slope of LeakyReLU for negative values
FEATURES = 32  # channels that the first stage makes of a triplet
BRANCH = 96  # channels of one turn after the second stage
MAX_FILE_BYTES = 64 * 2**20  # of a state dict; the weights alone take 8.5 MB

# Turns go through a U-Net together while they hold at most this many pixels; more do not fit a CPU's caches.
CPU_PIXELS, GPU_PIXELS = 2**16, 2**22


@dataclass(frozen=True)
class UdvdArchitecture:
    """What can be chosen of UDVD: the blind spot."""

    blind_radius: int = 1  # 0: one pixel, as published; 1: 3 x 3 pixels, the default of the users' script

    kind: ClassVar[str] = "udvd"
    window: ClassVar[int] = 2  # frames seen on each side of the centre frame
    reach: ClassVar[int] = 2
    bins: ClassVar[tuple[int, ...]] = (1, 1)
    far_bins: ClassVar[tuple[int, ...]] = ()
    stride: ClassVar[int] = 4  # two poolings: frames are cut and padded on this grid [pixels]
    # Pixels around a core on that grid that can change it: 145, rounded up to the grid.
    spatial_halo: ClassVar[int] = 148

    def __post_init__(self) -> None:
        if type(self.blind_radius) is not int or self.blind_radius not in (0, 1):
            raise ValueError(f"UDVD has a blind radius of 0 or 1 pixels, not {self.blind_radius}")

    def scale(self, measured: Scale) -> Scale:
        """How counts become inputs of the network, and outputs counts.

        Its output is never negative, so the counts keep their zero. What they are divided by plays no part: the
        weights of the users' script, which takes counts as they are, give the same prediction in counts.
        """
        return Scale(mean=0.0, noise=measured.noise, contrast=measured.noise)

    def memory_bytes(self, n_frames: int, height: int, width: int) -> int:
        """Memory that denoising takes for a block beyond the block itself, on the high side [bytes]."""
        # Frames and sums; and 3000 maps: features of three triplets, half planes, the widest decoder or the join, and
        # their copies. Measured peaks are at most 0.97 of it.
        return int(4 * height * width * (2 * n_frames + 3000))

    def to_json(self) -> dict[str, Any]:
        """Plain values for ``card.json``."""
        return asdict(self)

    @classmethod
    def from_json(cls, values: dict[str, Any]) -> UdvdArchitecture:
        """Inverse of `to_json`; unknown names are refused."""
        if set(values) != {"blind_radius"}:
            raise ValueError(f"architecture names {sorted(values)} do not match this version")
        return cls(**values)


class _Convolution(nn.Module):
    """3x3 convolution that sees its own row and the two above it."""

    def __init__(self, n_in: int, n_out: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(n_in, n_out, 3, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        # The columns at the edges are repeated; above the frame there is nothing.
        x = F.pad(x, (1, 1, 2, 0), mode="replicate")
        x[:, :, :2] = 0
        return F.leaky_relu(self.conv(x), LEAK, inplace=True)


class _Encoder(nn.Module):
    """Three convolutions; `_shrink` follows all but the last encoder."""

    def __init__(self, n_in: int, n_between: int, n_out: int) -> None:
        super().__init__()
        self.conv1 = _Convolution(n_in, n_between)
        self.conv2 = _Convolution(n_between, n_between)
        self.conv3 = _Convolution(n_between, n_out)

    def forward(self, x: Tensor) -> Tensor:
        return self.conv3(self.conv2(self.conv1(x)))  # type: ignore[no-any-return]


class _Decoder(nn.Module):
    """Doubles the size, joins what was kept at that size, four convolutions."""

    def __init__(self, n_in: int, n_between: int, n_out: int) -> None:
        super().__init__()
        self.conv1 = _Convolution(n_in, n_between)
        self.conv2 = _Convolution(n_between, n_between)
        self.conv3 = _Convolution(n_between, n_between)
        self.conv4 = _Convolution(n_between, n_out)

    def forward(self, x: Tensor, kept: Tensor) -> Tensor:
        x = torch.cat([F.interpolate(x, scale_factor=2.0, mode="nearest"), kept], dim=1)
        return self.conv4(self.conv3(self.conv2(self.conv1(x))))  # type: ignore[no-any-return]


class _UNet(nn.Module):
    """U-Net of two poolings in which a pixel depends on its own row and those above."""

    def __init__(self, n_in: int, n_out: int) -> None:
        super().__init__()
        self.enc1 = _Encoder(n_in, 48, 48)
        self.enc2 = _Encoder(48, 48, 48)
        self.enc3 = _Encoder(48, 96, 48)
        self.dec2 = _Decoder(96, 96, 96)
        self.dec1 = _Decoder(96 + n_in, 96, n_out)

    def forward(self, x: Tensor) -> Tensor:
        half = _shrink(self.enc1(x))
        return self.dec1(self.dec2(self.enc3(_shrink(self.enc2(half))), half), x)  # type: ignore[no-any-return]


def _shrink(x: Tensor) -> Tensor:
    """Largest of every 2 x 2 pixels, one row higher: the lower row of the result's pixel is its own."""
    return F.max_pool2d(_lower(x, 1), 2)


def _lower(x: Tensor, rows: int) -> Tensor:
    """Move frames down; zeros come in from above."""
    return F.pad(x, (0, 0, rows, -rows))


class Udvd(nn.Module):
    """Predict the centre frame from five frames, of which it never sees the pixel that it predicts.

    Bias-free and never negative: twice the counts give twice the prediction, so the scale of the input plays no
    part. Heights and widths must be multiples of four; `tdenoise.inference.denoising` pads and crops.
    """

    def __init__(self, architecture: UdvdArchitecture) -> None:
        super().__init__()
        self.architecture = architecture
        self.denoiser_1 = _UNet(3, FEATURES)
        self.denoiser_2 = _UNet(3 * FEATURES, BRANCH)
        self.nin_A = nn.Conv2d(4 * BRANCH, 4 * BRANCH, 1, bias=False)
        self.nin_B = nn.Conv2d(4 * BRANCH, BRANCH, 1, bias=False)
        self.nin_C = nn.Conv2d(BRANCH, 1, 1, bias=False)
        # Weights of either sign leave some fresh networks below zero everywhere, where they learn nothing.
        self.nin_C.weight.data.abs_()

    def forward(self, neighbours: Tensor, centre: Tensor) -> Tensor:
        """Predicted centre frames.

        Parameters
        ----------
        neighbours : Tensor, shape (batch, 4, height, width)
            Frames t-2, t-1, t+1, t+2.
        centre : Tensor, shape (batch, 1, height, width)
            Frame t.

        Returns
        -------
        Tensor, shape (batch, 1, height, width)
            In the units of the frames.
        """
        frames = torch.cat([neighbours[:, :2], centre, neighbours[:, 2:]], dim=1)
        return self.join(self.second_stage([self.first_stage(frames[:, i : i + 3]) for i in range(3)]))

    def first_stage(self, triplet: Tensor) -> list[Tensor]:
        """Features of three successive frames in four turns.

        Parameters
        ----------
        triplet : Tensor, shape (batch, 3, height, width)

        Returns
        -------
        list of Tensor
            Turns that go through the network together, one after the other along the batch; see `_TOGETHER`.
        """
        batch, _, height, width = triplet.shape
        n_groups = 1 if height == width else 2
        if 4 * batch * height * width > (CPU_PIXELS if triplet.device.type == "cpu" else GPU_PIXELS):
            n_groups = 4
        return [
            self.denoiser_1(
                torch.cat([torch.rot90(triplet, -turn, (2, 3)) for turn in turns]).contiguous(
                    memory_format=torch.channels_last
                )
            )
            for turns in _TOGETHER[n_groups]
        ]

    def second_stage(self, triplets: Sequence[list[Tensor]]) -> list[Tensor]:
        """The four half planes of each pixel, upright again.

        Parameters
        ----------
        triplets : sequence of 3 lists of Tensor
            From `first_stage`, in order of time.

        Returns
        -------
        list of 4 Tensor, shape (batch, BRANCH, height, width)
            What lies above, to the left, below and to the right of each pixel, blind spot left out.
        """
        upright: dict[int, Tensor] = {}
        for turns, *features in zip(_TOGETHER[len(triplets[0])], *triplets, strict=True):
            x = _lower(self.denoiser_2(torch.cat(features, dim=1)), 1 + self.architecture.blind_radius)
            for turn, part in zip(turns, x.chunk(len(turns)), strict=True):
                upright[turn] = torch.rot90(part, turn, (2, 3)).contiguous(memory_format=torch.channels_last)
        return [upright[turn] for turn in range(4)]

    def join(self, branches: Sequence[Tensor]) -> Tensor:
        """The prediction from the four half planes."""
        x = torch.cat(list(branches), dim=1)
        x = F.leaky_relu(self.nin_A(x), LEAK, inplace=True)
        x = F.leaky_relu(self.nin_B(x), LEAK, inplace=True)
        return F.relu(self.nin_C(x).float())

    def stream(
        self, frames: Tensor, windows: Iterable[Sequence[int]], turns: Sequence[int] = (0,)
    ) -> Iterator[Tensor]:
        """Predictions for successive frames, no triplet computed twice.

        The first stage is kept for the two triplets that the next frame needs again: 4.33 instead of 7.78 million
        multiplications per pixel. A frame that is turned by quarters takes the same way through both stages, with the
        half planes in another order; so the mean over four turns costs little more than one of them.

        Parameters
        ----------
        frames : Tensor, shape (n, height, width)
            Normalised frames.
        windows : iterable of sequences of 5 int
            Frames t-2 to t+2 of every frame t that is wanted, counted from the first of ``frames``.
        turns : sequence of int
            Quarter turns to add up, 0 to 3.

        Yields
        ------
        Tensor, shape (height, width)
            Sum of the predictions over ``turns``, all upright.
        """
        known: dict[tuple[int, ...], list[Tensor]] = {}
        for window in windows:
            triplets = [tuple(window[i : i + 3]) for i in range(3)]
            known = {t: features for t, features in known.items() if t in triplets}
            for triplet in triplets:
                if triplet not in known:
                    known[triplet] = self.first_stage(frames[list(triplet)][None])
            branches = self.second_stage([known[triplet] for triplet in triplets])
            outputs = [self.join([branches[(k - turn) % 4] for k in range(4)])[0, 0] for turn in turns]
            yield torch.stack(outputs).sum(dim=0)


# Turns by the number of groups: all, those of equal shape, one at a time.
_TOGETHER = {1: ((0, 1, 2, 3),), 2: ((0, 2), (1, 3)), 4: ((0,), (1,), (2,), (3,))}


def read_weights(path: Path, blind_radius: int) -> tuple[Udvd, str]:
    """UDVD with the weights that the users' script saved (``torch.save`` of the state dict).

    Nothing but tensors is read from the file: it cannot run code.

    Parameters
    ----------
    path : Path
        The ``.pth`` file.
    blind_radius : int
        0 or 1; the file does not say which. See `UdvdArchitecture`.

    Returns
    -------
    network : Udvd
    sha256 : str
        Of the file.

    Raises
    ------
    ValueError
        If the file holds something else, or weights of another network.
    """
    n_bytes = path.stat().st_size
    if n_bytes > MAX_FILE_BYTES:
        raise ValueError(
            f"holds {n_bytes / 1e6:.0f} MB, the weights of UDVD 8.5 MB; save model.state_dict() alone"
        )
    data = path.read_bytes()
    try:
        loaded = torch.load(io.BytesIO(data), map_location="cpu", weights_only=True)
    except Exception as error:  # noqa: BLE001 - a damaged file makes it fail in every possible way
        raise ValueError(
            f"cannot be read as weights alone ({type(error).__name__}); save it again with "
            "torch.save(model.state_dict(), FILE)"
        ) from None
    if not (isinstance(loaded, dict) and all(isinstance(value, Tensor) for value in loaded.values())):
        raise ValueError(
            "is not a state dict, which maps names of layers to tensors; save model.state_dict()"
        )
    # Saved from several GPUs, all names begin with "module.".
    tensors = {str(name).removeprefix("module."): value for name, value in loaded.items()}
    network = Udvd(UdvdArchitecture(blind_radius))
    _check_fit(tensors, network.state_dict())
    network.load_state_dict(tensors)
    return network, hashlib.sha256(data).hexdigest()


def _check_fit(tensors: dict[str, Tensor], expected: dict[str, Tensor]) -> None:
    only = "only UDVD for grey movies of five frames at a time is imported, not for colour or 4D data"
    if missing := sorted(expected.keys() - tensors.keys()):
        raise ValueError(f"lacks {len(missing)} of {len(expected)} layers, first {missing[0]}; {only}")
    if unknown := sorted(tensors.keys() - expected.keys()):
        raise ValueError(f"holds {len(unknown)} layers that UDVD does not have, first {unknown[0]}; {only}")
    for name, tensor in tensors.items():
        found, wanted = tuple(tensor.shape), tuple(expected[name].shape)
        if found != wanted:
            raise ValueError(f"the layer {name} has shape {found}, not {wanted}; {only}")
        plain = tensor.layout is torch.strided and tensor.device.type == "cpu" and tensor.is_floating_point()
        if not (plain and bool(tensor.isfinite().all())):
            raise ValueError(f"the layer {name} holds NaN, Inf or no real numbers; train it again")


def _choose(blind_radius: int | str) -> tuple[UdvdArchitecture, str]:
    if blind_radius not in ("auto", 0, 1):
        raise ValueError(f"--blind-radius {blind_radius}: udvd takes 0, 1 or auto (which is 1).")
    return UdvdArchitecture(0 if blind_radius == 0 else 1), "udvd hides the same pixels of all its frames"


# On a CPU a step of the usual size takes 10 s and more.
KIND = Kind(
    UdvdArchitecture,
    Udvd,
    _choose,
    learning_rate=5e-4,
    cpu_batch=(2, 64),
    follows_drift=False,
    checked_pixels=64,
)
