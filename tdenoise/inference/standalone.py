"""A network that takes counts, gives counts, and needs none of our code: for other programs, as TorchScript."""

from __future__ import annotations

import io
import warnings

import torch
from torch import Tensor, nn

from ..network.registry import Network
from ..noise.noise import Scale


class Standalone(nn.Module):
    """The frame in the middle of a window, from the counts of the whole window.

    Mean and noise, which `tdenoise.inference.denoising` is told of the whole movie, are measured on the window itself:
    the noise by the differences of successive frames. Nothing else that a movie may need is done: no drift, no
    bad pixels, no change of brightness, one pass, and the counts have no last word.

    Parameters
    ----------
    network : SplitBlind or Udvd
        In evaluation mode.
    """

    def __init__(self, network: Network) -> None:
        super().__init__()
        self.network = network

    def forward(self, frames: Tensor) -> Tensor:
        """Expected counts of the frame in the middle.

        Parameters
        ----------
        frames : Tensor, shape (batch, 2 * window + 1, height, width)
            Successive raw frames [counts]; height and width are multiples of the stride of the network.

        Returns
        -------
        Tensor, shape (batch, 1, height, width)
            [counts]
        """
        architecture = self.network.architecture
        window = architecture.window
        mean = frames.mean(dim=(1, 2, 3), keepdim=True)
        variance = (frames[:, 1:] - frames[:, :-1]).square().mean(dim=(1, 2, 3), keepdim=True) / 2
        noise = variance.clamp(min=1e-12).sqrt()
        scale = architecture.scale(Scale(mean, noise, noise))  # type: ignore[arg-type]  # one for each of the batch
        seen = (frames - scale.mean) / scale.noise
        channels, first = [], 0
        for size in (*architecture.bins[::-1], *architecture.bins):
            first += first == window  # the centre frame is no neighbour
            channels.append(seen[:, first : first + size].sum(dim=1) / size**0.5)
            first += size
        output = self.network(torch.stack(channels, dim=1), seen[:, window : window + 1])
        return scale.mean + scale.contrast * output[:, :1]  # type: ignore[no-any-return]


def to_torchscript(network: Network) -> bytes:
    """A network as a TorchScript file, which takes frames of any size; see `Standalone`.

    Parameters
    ----------
    network : SplitBlind or Udvd
        In evaluation mode, on the CPU.

    Returns
    -------
    bytes
    """
    a = network.architecture
    example = torch.rand(
        1, 2 * a.window + 1, 3 * a.stride, 4 * a.stride
    )  # not square: no turn may be taken for another
    file = io.BytesIO()
    with warnings.catch_warnings(), torch.no_grad():
        # torch recommends torch.export, but TorchScript is what other programs for microscopists load.
        warnings.simplefilter("ignore", DeprecationWarning)
        # Tests run it at other sizes.
        warnings.simplefilter("ignore", torch.jit.TracerWarning)  # type: ignore[attr-defined]
        whole = Standalone(network).eval()
        traced = torch.jit.trace(whole, example, check_trace=False)  # type: ignore[no-untyped-call]
        torch.jit.save(traced, file)
    return file.getvalue()
