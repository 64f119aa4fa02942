"""The coarser copies of a denoised movie: what they hold, after kills and damage too."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import zarr
from hypothesis import given
from hypothesis import strategies as st
from small import counts, model_folder, movie_store
from tdenoise_pipeline.apply.apply import apply
from tdenoise_pipeline.archive.verify import verify
from tdenoise_pipeline.errors import VerificationError
from tdenoise_pipeline.ingest.ingest import ingest
from tdenoise_pipeline.settings.config import ApplyConfig, IngestConfig, VerifyConfig
from tdenoise_pipeline.store import pyramid, store, writing
from tdenoise_pipeline.workflow.repair import repair
from trials import contents

SHAPE = (70, 24, 400)


@pytest.fixture(scope="module")
def sources(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    folder = tmp_path_factory.mktemp("sources")
    return movie_store(folder, counts(SHAPE)), model_folder(folder / "model")


def config(sources: tuple[Path, Path], output: Path, **settings: object) -> ApplyConfig:
    chosen = {"ensemble": 1, "share": "0/1", **settings}
    return ApplyConfig(movie=sources[0], model=sources[1], output=output, **chosen)  # type: ignore[arg-type]


@pytest.fixture(scope="module")
def whole(sources: tuple[Path, Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    output = tmp_path_factory.mktemp("whole") / "d.zarr"
    apply(config(sources, output))
    return output


@given(
    st.tuples(st.integers(1, 9), st.integers(1, 9), st.integers(1, 9)),
    st.sampled_from([(1, 2, 2), (4, 1, 1)]),
)
def test_a_point_of_a_level_is_the_mean_of_what_lies_in_it(
    shape: tuple[int, int, int], steps: tuple[int, int, int]
) -> None:
    values = np.random.default_rng(0).normal(5, 1, shape).astype(np.float32)
    found = pyramid.mean(values, steps)
    assert found.shape == tuple(-(-n // step) for n, step in zip(shape, steps, strict=True))
    for index in np.ndindex(found.shape):
        box = values[tuple(slice(i * step, (i + 1) * step) for i, step in zip(index, steps, strict=True))]
        assert found[index] == pytest.approx(box.astype(np.float64).mean(), rel=1e-5)


@given(st.tuples(st.integers(1, 5000), st.integers(1, 9000), st.integers(1, 9000)))
def test_a_pyramid_has_at_most_thirty_five_hundredths_of_the_points_of_a_movie(
    shape: tuple[int, int, int],
) -> None:
    levels = pyramid.levels_of("denoised", shape)
    # What is left over at the edges counts for little in frames that have a pyramid, unless they are stripes.
    if min(shape) > 100:
        assert sum(np.prod(level.shape, dtype=float) for level in levels) < 0.36 * np.prod(shape, dtype=float)
    if max(shape[1:]) < 2 * pyramid.SMALLEST:
        assert not levels
    else:
        coarsest = max(levels, key=lambda level: level.pixels)
        assert coarsest.pixels == 8 or max(coarsest.shape[1:]) < 2 * pyramid.SMALLEST


@pytest.fixture(scope="module")
def recorded(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, np.ndarray]:
    """A movie store of several slabs, the last one short, and its counts."""
    frames = counts((70, 12, 800))
    return movie_store(tmp_path_factory.mktemp("recorded"), frames), frames


def test_every_level_of_a_movie_store_holds_the_means_of_its_counts(
    recorded: tuple[Path, np.ndarray],
) -> None:
    path, frames = recorded
    told = store.read_attributes(path)["pyramid"]
    assert [(level["frames"], level["pixels"]) for level in told.values()] == [(1, 4), (4, 4), (16, 4)]
    for name, level in told.items():
        exact = pyramid.mean(frames.astype(np.float32), (level["frames"], level["pixels"], level["pixels"]))
        found = np.asarray(zarr.open_array(path / name, mode="r")[:])
        uncut = slice(len(frames) // level["frames"])
        assert found.shape == exact.shape
        np.testing.assert_allclose(found[uncut], exact[uncut], rtol=3 * 2.0**-7)
    verify(VerifyConfig(store=path, deep=True))


def test_whoever_is_killed_while_counts_are_copied_leaves_the_same_pyramid(
    recorded: tuple[Path, np.ndarray], tmp_path: Path
) -> None:
    path, _ = recorded
    command = [sys.executable, "-m", "tdenoise_pipeline.cli", "ingest", str(path.parent / "raw.npy"), "-q"]
    command += ["-o", str(tmp_path / "movie.zarr")]
    crash = {**os.environ, "TDENOISE_CRASH": "shard.checked:7"}
    assert subprocess.run(command, env=crash, capture_output=True, check=False).returncode not in (0, 1, 2)
    assert list((tmp_path / "movie.zarr-partial/pyramid").rglob("c/*/0/0"))
    ingest(IngestConfig(raw=path.parent / "raw.npy", output=tmp_path / "movie.zarr"))
    assert contents(tmp_path / "movie.zarr") == contents(path)


def test_a_damaged_level_of_a_movie_store_is_named(recorded: tuple[Path, np.ndarray], tmp_path: Path) -> None:
    copied = tmp_path / "movie.zarr"
    shutil.copytree(recorded[0], copied)
    (copied / "pyramid/2/counts/c/1/0/0").unlink()
    with pytest.raises(VerificationError, match=r"pyramid/2/counts.*is missing"):
        verify(VerifyConfig(store=copied))
    repair(VerifyConfig(store=copied, repair=True, raw=recorded[0].parent / "raw.npy"))
    assert contents(copied) == contents(recorded[0])


@given(st.integers(1, 400), st.integers(1, 9000), st.integers(1, 9000), st.integers(1, 8))
def test_slabs_of_counts_own_whole_shards_of_every_level(n: int, height: int, width: int, fours: int) -> None:
    # As `ingest` has it: of one slab any multiple of four frames, of several a power of two.
    slab = 4 * fours if n <= 4 * fours else 4 << (fours % 4)
    for level in pyramid.levels_of("counts", (n, height, width), slab_frames=slab):
        slabs = -(-n // slab)
        assert slabs == 1 or slab % level.frames == 0
        assert level.geometry.shard[0] % level.geometry.chunk[0] == 0
        assert -(-level.shape[0] // level.geometry.shard[0]) == slabs


def test_every_level_holds_the_means_of_the_denoised_movie(whole: Path) -> None:
    full = np.asarray(zarr.open_array(whole / "denoised", mode="r")[:])
    told = store.read_attributes(whole)["pyramid"]
    assert [(level["frames"], level["pixels"]) for level in told.values()] == [(1, 2), (4, 2), (16, 2)]
    source = {path: level.source for level in pyramid.levels_of("denoised", SHAPE) for path in [level.path]}
    for path in told:
        level = next(level for level in pyramid.levels_of("denoised", SHAPE) if level.path == path)
        made_of = np.asarray(zarr.open_array(whole / source[path], mode="r")[:])
        found = store.open_store(whole, path).array[:]
        expected = writing.round_mantissa(pyramid.mean(made_of, level.steps), store.PYRAMID_BITS)
        np.testing.assert_array_equal(found, expected)
        exact = pyramid.mean(full, (level.frames, level.pixels, level.pixels))
        uncut = slice(SHAPE[0] // level.frames)
        np.testing.assert_allclose(found[uncut], exact[uncut], atol=3 * 2.0**-7 * np.abs(full).max())


# Before them are written three shards of the draft, and three of the movie that is made of it.
@pytest.mark.parametrize("n_shards", [7, 8, 9, 10])
def test_whoever_is_killed_while_the_pyramid_is_made_leaves_the_same_bytes(
    sources: tuple[Path, Path], whole: Path, tmp_path: Path, n_shards: int
) -> None:
    output = tmp_path / "d.zarr"
    command = [sys.executable, "-m", "tdenoise_pipeline.cli", "apply", str(sources[0]), "-o", str(output)]
    command += ["--model", str(sources[1]), "--ensemble", "1", "--share", "0/1", "-q"]
    killed = subprocess.run(
        command,
        env={**os.environ, "TDENOISE_CRASH": f"shard.checked:{n_shards}"},
        capture_output=True,
        check=False,
    )
    assert killed.returncode not in (0, 1, 2) and not output.exists()
    marks = list((tmp_path / ".tdenoise/d.zarr/done/pyramid").rglob("*.json"))
    assert len(marks) >= n_shards - 8, "it was killed while the pyramid was made"
    apply(config(sources, output))
    assert contents(output) == contents(whole)


def test_a_damaged_level_is_named_and_repaired(
    sources: tuple[Path, Path], whole: Path, tmp_path: Path
) -> None:
    output = tmp_path / "d.zarr"
    apply(config(sources, output))
    assert contents(output) == contents(whole), "the same bytes each time"
    file = output / "pyramid/1/denoised/c/0/0/0"
    data = bytearray(file.read_bytes())
    data[20] ^= 1
    file.write_bytes(data)
    with pytest.raises(VerificationError, match=r"pyramid/1/denoised.*frames 0 to"):
        verify(VerifyConfig(store=output, deep=True))
    repair(VerifyConfig(store=output, repair=True, movie=sources[0], model=sources[1]))
    assert contents(output) == contents(whole)
    (output / "pyramid/2/denoised/c/0/0/0").unlink()
    with pytest.raises(VerificationError, match=r"pyramid/2/denoised.*is missing"):
        verify(VerifyConfig(store=output))
