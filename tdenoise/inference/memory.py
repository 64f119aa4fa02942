"""Memory of a block while it is denoised, how many frames fit at once, and how far a block reads around itself."""

from __future__ import annotations

import torch

from ..network.registry import Architecture
from ..network.split_blind import Architecture as SplitBlindArchitecture

# Symmetries of a frame go through the network together while they hold at most this many pixels; on a GPU frames
# too. More fill no GPU better.
CPU_PIXELS, GPU_PIXELS = 2**18, 2**24
OTHER_PIXELS = (
    2**21
)  # on other accelerators, which tell nothing of their memory or share it with the processor
RUN = 16  # frames that share what the first layer makes of the frames in their windows


def most_looks(length: int, window: int, drifts: bool) -> int:
    """Looks that a run of so many frames holds: one at every frame, or half more where they are shifted."""
    still = length + 2 * window
    return still + still // 2 if drifts else still


def most_far_looks(length: int) -> int:
    """Looks at far frames that a run of so many frames holds."""
    return max(1, length // 4)


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
    if not isinstance(architecture, SplitBlindArchitecture):
        return architecture.memory_bytes(n_frames, height, width)
    # Of those that turn height and width alike: four, or eight with both directions of time, which share their looks.
    most = min(ensemble, 4) if ensemble < 16 else 8
    group = next((n for n in (8, 4, 2) if n <= most and n * height * width <= CPU_PIXELS), 1)
    looks = (group if ensemble < 16 else max(1, group // 2)) * _look_maps(architecture, drifts=shift > 0)
    far = _far_maps(architecture, group) if architecture.far_bins else 0
    return int(4 * height * width * (n_frames + looks + far + 3 * RUN + group * _maps(architecture)))


def _look_maps(a: SplitBlindArchitecture, drifts: bool) -> float:
    """Numbers per pixel that are kept of the frames of a run and their windows; twice while they are joined."""
    return 2 * most_looks(RUN, a.window, drifts) * a.frame_width / a.unshuffle**2


def _far_maps(a: SplitBlindArchitecture, group: int) -> float:
    """Numbers per pixel that are kept of far frames: what a run sees of them, and what the network makes of it."""
    channels = 2 * len(a.far_bins)
    # Sums and numbers of frames while they are read; twice, and with the frames of the run, while they are joined.
    read = 4 * channels + most_looks(RUN, a.window, drifts=True)
    kept = group * (channels * a.frame_width + 2 * a.widths[0]) / a.unshuffle**2
    return most_far_looks(RUN) * (2 * channels + kept) + read


def _maps(a: SplitBlindArchitecture) -> float:
    """Numbers per pixel that a prediction holds at once, beyond the block itself and what is kept of its frames."""
    # Window, what the branches hand to the fusion, the fusion, and a margin: measured peaks of whole blocks are 0.7 to
    # 0.8 of `memory_bytes`.
    return 1.3 * (2 * len(a.bins) + 2 * a.features + 3 * a.centre_width + 2 * a.fusion_width)


def pixels_together(architecture: SplitBlindArchitecture, device: torch.device) -> int:
    """Pixels that go through the network together: on a GPU as many as fill it, fewer where it has little memory.

    Results differ in their last bit with the batch. So it follows from the kind of GPU, not from what is free at the
    moment; if that is not enough, `_in_halves` and `in_parts` go on with less.
    """
    if device.type == "cpu":
        return CPU_PIXELS
    if device.type != "cuda":
        return OTHER_PIXELS
    total = torch.cuda.get_device_properties(device).total_memory
    return min(GPU_PIXELS, int(total / (2 * 4 * _maps(architecture))))
