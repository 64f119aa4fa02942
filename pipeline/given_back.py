"""The counts have the last word: a draft of a denoised movie becomes the movie.

A network drafts every frame. Each block also leaves sums over time of what was removed; together they say where the
network has painted or erased something that the counts of the whole movie refute, and that is given back
(`tdenoise.last_word`). This is done once all blocks are drafted, in the process that gives the output its name: shard
by shard, each from its draft, so that it can be killed and started again at any time.
"""

from __future__ import annotations

import io
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import zarr

from tdenoise.atomic import patiently, write_atomically
from tdenoise.brightness import Brightness
from tdenoise.last_word import Evidence, GivenBack, Lags, corners, give_back

from . import budget, progress, store
from .block_work import Job, evidence_file, movie_brightness, movie_counts, read_counts
from .blocks import Block, Region
from .control import Control
from .errors import PipelineError
from .faults import maybe_crash
from .sealed import read_sealed, write_sealed
from .shards import Layout, ShardWriter

MAPS = {
    "given_back": "what the counts gave back to every frame, at a level of 1",
    "given_back_own": "share of its own residual that a pixel has in it, which is left out",
    "given_back_level": "sum of the levels of the frames that show this place",
}
DIMS = ("scene_y", "scene_x")
PIECE = 32  # frames of a shard that are in memory at once


def finish_draft(
    job: Job,
    blocks: Iterable[Block],
    geometry: store.Geometry,
    correlations: Lags,
    run: progress.OutputRun,
    control: Control,
    known: GivenBack | None = None,
) -> tuple[GivenBack, dict[str, str]]:
    """Make the denoised array from its draft.

    Parameters
    ----------
    job : Job
    blocks : iterable of Block
        All of them, each with its draft and its sums.
    geometry : store.Geometry
    correlations : iterable of (int, int, float)
        Of the noise of neighbouring pixels.
    run : progress.OutputRun
    control : Control
    known : GivenBack, optional
        What was given back to the store that is repaired; otherwise it follows from the sums.

    Returns
    -------
    given : GivenBack
    hashes : dict
        Of the shards of the denoised array, by grid position.
    """
    source = movie_counts(job.movie, job.movie_id)
    shape = source.shape
    drift = None if job.drift is None else np.load(job.drift)
    places, scene = corners(drift, shape[0], shape[1:])
    # Once the first shard is made, the sums are history: a crash must not change what is given back.
    kept = job.folder / "done" / "given_back.npy"
    if known is not None:
        given = known
    elif kept.exists():
        given = GivenBack(*np.load(kept))
    else:
        given = give_back(_gather(job, blocks, places, scene), correlations)
        data = io.BytesIO()
        np.save(data, np.stack([given.mean, given.own, given.level]))
        write_atomically(kept, data.getvalue(), run.check)
    maybe_crash("given_back.known")
    whole = Region((0, shape[0]), (0, shape[1]), (0, shape[2]))
    shards = list(store.shards_in(whole, geometry.shard))
    brightness = movie_brightness(job) or Brightness.steady(shape[0])
    make = partial(_make, job, geometry, source, given, places, brightness, run)
    hashes = {}
    with ThreadPoolExecutor(budget.n_cores(), thread_name_prefix="give-back") as pool:
        for key, digest in pool.map(partial(_unless_stopped, control, make), shards):
            hashes[key] = digest
    return given, hashes


def add_maps(path: Path, given: GivenBack, units: str) -> None:
    """Store what was given back, for who wants to know, and for a repair."""
    for name, values in zip(MAPS, (given.mean, given.own, given.level), strict=True):
        described = {"units": units if name == "given_back" else "1", "long_name": MAPS[name]}
        store.add_array(path, name, values, DIMS, described)


def read_maps(path: Path) -> GivenBack | None:
    """What was given back to a denoised store; None if nothing was."""
    if not all((path / name).is_dir() for name in MAPS):
        return None
    return GivenBack(*(np.asarray(zarr.open_array(path / name, mode="r")[:]) for name in MAPS))


def adopt(folder: Path, key: str, digest: str) -> None:
    """Say that a shard of the output is made."""
    file = _marker(folder, key)
    file.parent.mkdir(parents=True, exist_ok=True)
    write_sealed(file, {"shard": digest})


def is_made(folder: Path, key: str) -> bool:
    """Whether a shard of the output is said to be made."""
    return _marker(folder, key).exists()


def _gather(job: Job, blocks: Iterable[Block], places: Any, scene: tuple[int, int]) -> Evidence:
    """Sums over the whole movie, of the blocks in the order of their numbers."""
    total = Evidence.empty(scene)
    for block in sorted(blocks, key=lambda block: block.number):
        file = evidence_file(job.folder, block.number)
        try:
            sums = patiently(partial(np.load, file))
        except (OSError, ValueError) as error:
            progress.forget(job.folder, block.number)
            raise PipelineError(
                f"{file}: cannot be read ({error}). Run the same command again to do this block once more."
            ) from None
        row, column = (places[slice(*block.core.frames)].min(axis=0)).tolist()
        total.merge(Evidence(*sums), (block.core.rows[0] + row, block.core.columns[0] + column))
    return total


def _unless_stopped(control: Control, make: Any, shard: Region) -> tuple[str, str]:
    control.check("apply")
    return make(shard)  # type: ignore[no-any-return]


def _make(
    job: Job,
    geometry: store.Geometry,
    source: Any,
    given: GivenBack,
    places: Any,
    brightness: Brightness,
    run: progress.OutputRun,
    shard: Region,
) -> tuple[str, str]:
    """One shard of the denoised array; its grid position and hash. Nothing is done where it is there."""
    key = store.shard_key(shard, geometry.shard)
    target = job.output / store.DENOISED
    file = target.joinpath("c", *key.split("."))
    before = (read_sealed(_marker(job.folder, key)) or {}).get("shard")
    if before is not None and store.shard_damage(file, geometry.shard, geometry.chunk, 1) is None:
        return key, str(before)
    draft = zarr.open_array(job.array(store.DRAFT), mode="r")
    writer = ShardWriter(Layout.of(zarr.open_array(target, mode="r")))
    for first in range(*shard.frames, PIECE):
        part = Region((first, min(first + PIECE, shard.frames[1])), shard.rows, shard.columns)
        drafted = np.asarray(draft[part.slices])
        counts = read_counts(source, part)
        for number, frame in zip(range(*part.frames), range(len(drafted)), strict=True):
            row, column = places[number].tolist()
            drafted[frame] = given.to_frame(
                counts[frame],
                drafted[frame],
                float(brightness.levels[number]),
                (row + shard.rows[0], column + shard.columns[0]),
                bool(brightness.valid[number]),
            )
        writer.append(drafted if job.kept_bits is None else store.round_mantissa(drafted, job.kept_bits))
    digest = writer.write(target, store.shard_index(key), run.check)
    adopt(job.folder, key, digest)
    maybe_crash("given_back.marked")
    return key, digest


def _marker(folder: Path, key: str) -> Path:
    return folder / "done" / "given-back" / f"{key}.json"
