"""Whoever reads a store finds what was written there, or says that it is something else."""

from __future__ import annotations

import hashlib
import json
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tdenoise_pipeline
import zarr
from distributed.protocol.pickle import dumps, loads
from small import counts, model_folder, movie_store
from stores import denoised_store
from tdenoise_pipeline.apply.apply import apply
from tdenoise_pipeline.archive.add import add
from tdenoise_pipeline.archive.verify import verify
from tdenoise_pipeline.errors import InputError, PipelineError, VerificationError
from tdenoise_pipeline.evaluate.evaluate import evaluate
from tdenoise_pipeline.settings.config import (
    ApplyConfig,
    ArchiveAddConfig,
    EvaluateConfig,
    TrainConfig,
    VerifyConfig,
)
from tdenoise_pipeline.store import integrity, shards, store
from tdenoise_pipeline.train.train import train_model

from tdenoise.files.atomic import SEAL, seal

SHAPE = (70, 40, 50)


@pytest.fixture
def movie(tmp_path: Path) -> Path:
    return movie_store(tmp_path, counts(SHAPE))


def swapped(movie: Path) -> None:
    first, second, spare = (movie / f"counts/c/{n}/0/0" for n in (0, 1, 9))
    spare.parent.mkdir(parents=True)
    first.rename(spare)
    second.rename(first)
    spare.rename(second)
    shutil.rmtree(movie / "counts/c/9")


def lost(movie: Path) -> None:
    (movie / "counts/c/2/0/0").unlink()


def lying(movie: Path) -> None:
    """The metadata say that what is missing was never counted."""
    lost(movie)
    for file in (movie / "zarr.json", movie / "counts/zarr.json"):
        text = file.read_text()
        file.write_text(re.sub('"fill_value": ?255', '"fill_value":0', text))
        assert file.read_text() != text


def readers(folder: Path, movie: Path) -> dict[str, Callable[[], Any]]:
    """Every step that reads a movie."""
    denoised, model = folder / "known.zarr", model_folder(folder / "model")
    opened = store.open_store(movie, store.MOVIE)
    denoised_store(denoised, opened, np.full(SHAPE, 2.0, np.float32))
    made = {"movie": movie, "model": model, "output": folder / "out.zarr", "share": "0/1"}
    short: dict[str, Any] = {
        "output": folder / "trained",
        "model": "split-blind",
        "steps": 1,
        "device": "cpu",
    }
    return {
        "verify": lambda: verify(VerifyConfig(store=movie)),
        "apply": lambda: apply(ApplyConfig(**made)),
        "train": lambda: train_model(TrainConfig(movie=(movie,), **short)),
        "evaluate": lambda: evaluate(EvaluateConfig(movie=movie, denoised=denoised)),
        "archive add": lambda: add(ArchiveAddConfig(store=(movie,), archive=folder / "archive")),
        "open": lambda: tdenoise_pipeline.open(movie)["counts"].values,
    }


@pytest.mark.parametrize("damage", [swapped, lost, lying])
def test_no_step_reads_a_movie_that_is_not_what_was_written(
    movie: Path, tmp_path: Path, damage: Callable[[Path], None]
) -> None:
    steps = readers(tmp_path, movie)
    damage(movie)
    for name, step in steps.items():
        with pytest.raises(PipelineError) as caught:
            step()
        assert caught.value.exit_code == (4 if name == "verify" else 3), name
    assert not (tmp_path / "out.zarr").exists()
    assert not (tmp_path / "trained").exists()


def test_swapped_shards_whose_chunks_are_equally_long_are_told_apart(tmp_path: Path) -> None:
    noise = np.random.default_rng(0).integers(0, 255, (64, 16, 16), np.uint8)  # does not compress
    movie = movie_store(tmp_path, noise)
    files = [movie / f"counts/c/{n}/0/0" for n in (0, 1)]
    index = 16 * 8 + 4
    assert files[0].read_bytes()[-index:] == files[1].read_bytes()[-index:]
    swapped(movie)
    with pytest.raises(VerificationError, match="2 of 2 shards"):
        verify(VerifyConfig(store=movie))


def test_shards_swapped_in_a_store_of_an_old_version_are_found_when_they_are_read(movie: Path) -> None:
    made_old(movie)
    assert (store.open_store(movie, store.MOVIE).array[...] == counts(SHAPE)).all()
    swapped(movie)
    verify(
        VerifyConfig(store=movie)
    )  # each is whole, and there is no record of which is which but the content's
    opened = store.open_store(movie, store.MOVIE)
    assert (opened.array[64:] == counts(SHAPE)[64:]).all()
    with pytest.raises(InputError, match="holds other data than was written there"):
        opened.array[5]


def made_old(movie: Path) -> None:
    """As versions before wrote it: nothing but its content tells one shard from another."""
    folder = movie / "integrity/counts"
    table = zarr.open_array(folder, mode="r")[..., :2]
    shutil.rmtree(folder)
    zarr.create_array(folder, data=table, chunks=table.shape, compressors=None)
    document = json.loads((movie / "zarr.json").read_text())
    files = [name for name in integrity.small_files(movie) if name != "zarr.json"]
    hashes = {name: hashlib.sha256((movie / name).read_bytes()).hexdigest() for name in files}
    document["attributes"]["tdenoise"] |= {"files": hashes, "seal": SEAL}
    (movie / "zarr.json").write_bytes(seal(json.dumps(document).encode()))


def test_every_small_file_is_compared_when_a_store_is_opened(movie: Path) -> None:
    for name in ("zarr.json", *integrity.small_files(movie)):
        file = movie / name
        sound = file.read_bytes()
        file.write_bytes(sound.replace(b"0", b"1", 1) if b"0" in sound else sound + b" ")
        with pytest.raises(InputError):
            store.open_store(movie, store.MOVIE)
        file.write_bytes(sound)
    store.open_store(movie, store.MOVIE)


def test_a_shard_is_decoded_for_its_hash_once(movie: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    decoded: list[str] = []
    original = shards.content_of

    def content_of(file: Path, *rest: Any) -> str | None:
        decoded.append(file.parent.parent.name)
        return original(file, *rest)

    monkeypatch.setattr(shards, "content_of", content_of)
    array = store.open_store(movie, store.MOVIE).array
    for _ in range(3):
        array[0:40, 3:9]
        array[33, ..., 2]
    assert decoded == ["0", "1"]
    np.testing.assert_array_equal(array[..., 3:5], counts(SHAPE)[..., 3:5])
    np.testing.assert_array_equal(np.asarray(array), counts(SHAPE))


def test_what_was_opened_can_go_to_another_process(movie: Path) -> None:
    lazy = tdenoise_pipeline.open(movie)["counts"]
    again = loads(dumps(lazy))
    np.testing.assert_array_equal(again.values, counts(SHAPE))
