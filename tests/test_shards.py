from __future__ import annotations

import io
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import zarr
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from numcodecs.blosc import Blosc
from tdenoise_pipeline.errors import VerificationError
from tdenoise_pipeline.store import integrity, shards, store, writing
from tdenoise_pipeline.store.blocks import Region
from tdenoise_pipeline.store.shards import shards_in

VALUES = np.random.default_rng(0).poisson(3.0, (6, 20, 30)).astype(np.uint16)
LAYOUT = shards.Layout((8, 32, 32), (4, 16, 16), np.dtype("<u2"), 65535)


def packed(*parts: np.ndarray[Any, Any]) -> shards.ShardWriter:
    writer = shards.ShardWriter(LAYOUT)
    for part in parts:
        writer.append(part)
    return writer


@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    st.tuples(st.integers(1, 40), st.integers(1, 1100), st.integers(1, 530)),
    st.sampled_from(["u1", "i2", "u4", "f4", "f8"]),
)
def test_zarr_reads_what_is_written(tmp_path: Path, shape: tuple[int, int, int], dtype: str) -> None:
    values = np.random.default_rng(0).integers(0, 100, shape).astype(dtype)
    if dtype[0] == "f":
        values[0, 0, 0] = np.nan
    path = tmp_path / f"{shape}-{dtype}"
    geometry = store.Geometry.of(shape)
    if not path.exists():
        unknown = store.Coordinates(None, None)
        writing.create(path, store.MOVIE, shape, values.dtype, geometry, unknown, "count")
    array = zarr.open_array(path / store.MOVIE, mode="r+")
    for region in shards_in(Region(*((0, n) for n in shape)), geometry.shard):
        writing.write_shard(path / store.MOVIE, array, region, values[region.slices])
    np.testing.assert_array_equal(array[:], values)


def test_threads_that_pack_side_by_side_write_the_same_bytes(tmp_path: Path) -> None:
    values = np.random.default_rng(3).poisson(3.0, (8, 32, 32)).astype(np.uint16)
    written = []
    with ThreadPoolExecutor(4) as pool:
        for number, for_each in enumerate((map, pool.map)):
            writer = shards.ShardWriter(LAYOUT, for_each)
            writer.append(values[:4])
            writer.append(values[4:])
            digest = writer.write(tmp_path, (number,))
            written.append((digest, (tmp_path / f"c/{number}").read_bytes()))
    assert written[0] == written[1]


def test_every_flipped_bit_is_noticed_when_a_shard_is_read_back(tmp_path: Path) -> None:
    digests = packed(VALUES)._digests
    packed(VALUES).write(tmp_path, (0,))
    sound = (tmp_path / "c/0").read_bytes()

    def holds(data: bytes, expected: dict[int, int]) -> bool:
        return shards._holds(io.BytesIO(data), expected, LAYOUT)

    assert holds(sound, digests)
    rng = np.random.default_rng(1)
    for position in rng.integers(0, len(sound), 200):
        damaged = bytearray(sound)
        damaged[position] ^= 1 << int(rng.integers(8))
        assert not holds(bytes(damaged), digests)
    assert not holds(sound[:-1], digests)
    assert not holds(b"", digests)
    assert not holds(sound, packed(VALUES + 1)._digests)


def test_a_compressor_that_errs_is_found_out(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    class Wrong:
        encode = staticmethod(lambda chunk: Blosc().encode(chunk + 1))
        decode = staticmethod(Blosc().decode)

    monkeypatch.setattr(shards, "_BLOSC", Wrong)
    with pytest.raises(VerificationError, match="differs from what was written"):
        packed(VALUES).write(tmp_path, (0,))


def test_the_same_values_give_the_same_bytes_in_any_memory_order(tmp_path: Path) -> None:
    arrays: list[np.ndarray[Any, Any]] = [
        VALUES,
        np.asfortranarray(VALUES),
        np.repeat(VALUES, 2, axis=2)[:, :, ::2],
    ]
    for number, values in enumerate(arrays):
        packed(values).write(tmp_path, (number,))
    assert len({(tmp_path / "c" / str(number)).read_bytes() for number in range(3)}) == 1
    assert not list(tmp_path.rglob("*.partial"))


def test_a_shard_that_is_packed_bit_by_bit_is_the_one_that_is_packed_at_once(tmp_path: Path) -> None:
    one = packed(VALUES).write(tmp_path, (0,))
    two = packed(VALUES[:4], VALUES[4:]).write(tmp_path, (1,))
    assert one == two == integrity.content_hash(VALUES)
    assert (tmp_path / "c/0").read_bytes() == (tmp_path / "c/1").read_bytes()


def test_frames_that_would_tear_a_chunk_are_refused() -> None:
    writer = packed(VALUES[:3])
    with pytest.raises(ValueError, match="do not fill chunks"):
        writer.append(VALUES[3:])
