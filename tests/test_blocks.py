from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from tdenoise_pipeline.errors import UsageError
from tdenoise_pipeline.store.blocks import Halo, Region, core_frames, plan_blocks
from tdenoise_pipeline.store.shards import shards_in

triple = st.tuples(st.integers(1, 40), st.integers(1, 40), st.integers(1, 40))


@given(shape=triple, core=triple, frames=st.integers(0, 9), pixels=st.integers(0, 9))
def test_cores_cover_every_pixel_once(
    shape: tuple[int, int, int], core: tuple[int, int, int], frames: int, pixels: int
) -> None:
    seen = np.zeros(shape, dtype=int)
    blocks = plan_blocks(shape, core, Halo(frames, pixels))
    for block in blocks:
        seen[block.core.slices] += 1
        for inner, outer, size, halo in zip(
            (block.core.frames, block.core.rows, block.core.columns),
            (block.padded.frames, block.padded.rows, block.padded.columns),
            shape,
            (frames, pixels, pixels),
            strict=True,
        ):
            assert outer == (max(0, inner[0] - halo), min(size, inner[1] + halo))
    assert (seen == 1).all()
    assert [b.number for b in blocks] == list(range(len(blocks)))


@given(shape=triple, shard=triple, times=st.tuples(st.integers(1, 3), st.integers(1, 3), st.integers(1, 3)))
def test_every_shard_has_one_block_that_owns_it(
    shape: tuple[int, int, int], shard: tuple[int, int, int], times: tuple[int, int, int]
) -> None:
    core = tuple(s * n for s, n in zip(shard, times, strict=True))
    owners: dict[tuple[int, ...], int] = {}
    for block in plan_blocks(shape, core, Halo(1, 1)):  # type: ignore[arg-type]
        for region in shards_in(block.core, shard):
            starts = (region.frames[0], region.rows[0], region.columns[0])
            index = tuple(s // n for s, n in zip(starts, shard, strict=True))
            assert all(s % n == 0 for s, n in zip(starts, shard, strict=True))
            assert index not in owners
            owners[index] = block.number
    assert len(owners) == np.prod([-(-n // s) for n, s in zip(shape, shard, strict=True)])


@given(shard=st.integers(1, 64), halo=st.integers(0, 80))
def test_a_long_halo_costs_less_than_a_third_of_the_reads(shard: int, halo: int) -> None:
    core = core_frames(shard, halo)
    assert core % shard == 0
    assert 2 * halo / (core + 2 * halo) < 1 / 3
    assert core == shard or 2 * halo / (core - shard + 2 * halo) >= 1 / 3, "no longer than it must be"


def test_tiles_must_begin_on_the_models_grid() -> None:
    with pytest.raises(UsageError, match="multiple of the model's stride 16"):
        plan_blocks((10, 100, 100), (10, 40, 100), Halo(2, 16), stride=16)
    plan_blocks((10, 100, 100), (10, 100, 100), Halo(2, 16), stride=16)


def test_a_plan_of_100_000_blocks_takes_a_moment() -> None:
    blocks = plan_blocks((3200, 32000, 32000), (32, 1024, 1000), Halo(20, 112), stride=8)
    assert len(blocks) == 100 * 32 * 32
    assert blocks[-1].core == Region((3168, 3200), (31744, 32000), (31000, 32000))
