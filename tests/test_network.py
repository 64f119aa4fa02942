"""The one property that everything rests on: no pixel is predicted from itself."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from small import TINY, counts, drifting, network

from tdenoise.inference.denoising import denoise
from tdenoise.inference.tile import Tile
from tdenoise.network.split_blind import Architecture, SplitBlind, cell_reach, stack_window
from tdenoise.noise.neighbour_frames import window_indices
from tdenoise.noise.noise import Scale

RADII = [0, 1, 2, None]


def architecture(radius: int | None, window: int = 4, bins: tuple[int, ...] = (1, 1, 2)) -> Architecture:
    return Architecture(
        window=window, bins=bins, unshuffle=2, widths=(4, 6), features=3, centre_width=4, fusion_width=5,
        blind_radius=radius,
    )  # fmt: skip


def gradient(
    made: SplitBlind, n_frames: int, centre: int, rows: slice, columns: slice, size: int
) -> torch.Tensor:
    """Absolute gradient of the summed prediction of some pixels, with respect to every pixel of the movie."""
    generator = torch.Generator().manual_seed(1)
    frames = torch.randn((n_frames, size, size), dtype=torch.float64, generator=generator, requires_grad=True)
    indices = window_indices(centre, n_frames, made.architecture.window)
    neighbours = stack_window(frames, indices, made.architecture.bins)
    output = made(neighbours[None], frames[centre][None, None])
    output[0, 0, rows, columns].sum().backward()
    assert frames.grad is not None
    return frames.grad.abs()


def made_for_gradients(arch: Architecture) -> SplitBlind:
    torch.manual_seed(3)
    made = SplitBlind(arch).double()
    made.head.float()  # the last layer always works in float32
    return made


@pytest.mark.parametrize("radius", RADII)
@pytest.mark.parametrize("n_frames", [3, 5, 12])
@pytest.mark.parametrize("where", ["first", "second", "middle", "last"])
def test_no_pixel_depends_on_its_own_blind_region(radius: int | None, n_frames: int, where: str) -> None:
    centre = {"first": 0, "second": 1, "middle": n_frames // 2, "last": n_frames - 1}[where]
    made = made_for_gradients(architecture(radius))
    size = 48
    for row, column in [(24, 24), (23, 26), (0, 0), (47, 1), (25, 47)]:
        slope = gradient(made, n_frames, centre, slice(row, row + 1), slice(column, column + 1), size)
        reach = size if radius is None else radius
        blind = slope[
            centre, max(0, row - reach) : row + reach + 1, max(0, column - reach) : column + reach + 1
        ]
        assert blind.max() == 0
        nearest = centre + 1 if centre + 1 < n_frames else centre - 1
        assert slope[nearest, row, column] > 0, "the same pixel of the next frame must be seen"
        if radius is not None:
            beyond = min(size - 1, row + radius + 1) if row + radius + 1 < size else row - radius - 1
            assert slope[centre, beyond, column] > 0, "the pixel next to the blind region must be seen"


@pytest.mark.parametrize("radius", RADII)
@pytest.mark.parametrize("step", [0.0, 3.0])
def test_a_changed_pixel_leaves_its_own_prediction_alone_with_all_symmetries(
    radius: int | None, step: float
) -> None:
    made = network(architecture(radius))
    frames = counts((9, 24, 24))
    scale = Scale(2.0, 1.4, 0.3)
    drift = drifting(9, step=step) if step else None
    for centre in (0, 4, 8):
        changed = frames.copy()
        changed[centre, 11, 13] = 200
        before, after = (
            next(
                denoise(
                    made, f, Tile.whole(f.shape), scale, range(centre, centre + 1), drift=drift, ensemble=16
                )
            )
            for f in (frames, changed)
        )
        assert before[11, 13] == after[11, 13]
        if radius is not None:
            assert before[11, 13 + radius + 1] != after[11, 13 + radius + 1]


@given(n_frames=st.integers(3, 60), window=st.integers(1, 25), data=st.data())
def test_a_window_never_holds_its_centre_and_stays_in_the_movie(
    n_frames: int, window: int, data: st.DataObject
) -> None:
    centre = data.draw(st.integers(0, n_frames - 1))
    indices = window_indices(centre, n_frames, window)
    assert len(indices) == 2 * window
    assert centre not in indices
    assert indices.min() >= max(0, centre - window) and indices.max() <= min(n_frames - 1, centre + window)
    for offset, index in zip([*range(-window, 0), *range(1, window + 1)], indices, strict=True):
        if 0 <= centre + offset < n_frames:
            assert index == centre + offset


def test_one_or_two_frames_are_refused() -> None:
    for n_frames in (1, 2):
        with pytest.raises(ValueError, match="at least 3 frames"):
            window_indices(0, n_frames, 20)


def test_flipping_the_channels_reverses_time() -> None:
    frames = torch.randn(9, 4, 4)
    forward = stack_window(frames, window_indices(4, 9, 3), (1, 2))
    backward = stack_window(frames.flip(0), window_indices(4, 9, 3), (1, 2))
    torch.testing.assert_close(forward, backward.flip(0))


def test_binned_frames_keep_the_variance_of_the_noise() -> None:
    frames = torch.randn(41, 100, 100)
    stacked = stack_window(frames, window_indices(20, 41, 20), Architecture().bins)
    assert stacked.shape[0] == 18
    torch.testing.assert_close(stacked.var(dim=(1, 2)), torch.ones(18), atol=0.06, rtol=0)


@pytest.mark.parametrize(
    "arch", [Architecture(), Architecture(blind_radius=2), TINY], ids=["default", "r2", "tiny"]
)
def test_the_spatial_halo_covers_everything_that_a_pixel_sees(arch: Architecture) -> None:
    made = made_for_gradients(arch)
    halo, stride = arch.spatial_halo, arch.stride
    size = 2 * (halo + stride) + stride
    cell = slice(halo + stride, halo + 2 * stride)  # every phase of the sampling grid
    slope = gradient(made, 3, 1, cell, cell, size).amax(dim=0)
    seen = torch.nonzero(slope)
    assert seen.min() >= cell.start - halo
    assert seen.max() < cell.stop + halo


def test_a_patch_is_predicted_as_if_the_others_of_its_batch_were_not_there() -> None:
    made = network(Architecture())
    neighbours, centre = torch.randn(3, 18, 32, 48), torch.randn(3, 1, 32, 48)
    alone = made(neighbours[1:2], centre[1:2])
    torch.testing.assert_close(made(neighbours, centre)[1:2], alone, rtol=1e-5, atol=1e-5)


@given(radius=st.integers(0, 8), cell=st.integers(1, 8))
def test_no_sum_of_steps_between_cells_leads_to_a_hidden_pixel(radius: int, cell: int) -> None:
    hidden, ring, dilation = cell_reach(radius, cell)
    axis = np.arange(-ring, ring + 1)
    steps = {(a, b) for a in axis for b in axis if max(abs(a), abs(b)) > hidden}
    far = {(a + dilation * i, b + dilation * j) for a, b in steps for i in (-1, 0, 1) for j in (-1, 0, 1)}
    nearest = min(max(abs(a), abs(b)) for a, b in steps | far)
    assert (nearest - 1) * cell + 1 > radius, "even from the border of its cell"


def test_a_centre_frame_that_is_seen_is_an_input_like_its_neighbours() -> None:
    made = made_for_gradients(replace(architecture(0), centre="seen"))
    slope = gradient(made, 5, 2, slice(20, 21), slice(20, 21), 32)
    assert slope[2, 20, 20] > 0


def test_architecture_survives_the_card() -> None:
    assert Architecture.from_json(Architecture(blind_radius=None).to_json()) == Architecture(
        blind_radius=None
    )
    with pytest.raises(ValueError, match="do not match"):
        Architecture.from_json({"window": 3})
    with pytest.raises(ValueError, match="add up to"):
        Architecture(window=21)
