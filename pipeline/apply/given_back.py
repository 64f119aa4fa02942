"""The counts have the last word: a draft of a denoised movie becomes the movie.

A network drafts every frame. Each block also leaves sums over time of what was removed; together they say where the
network has painted or erased something that the counts refute, and that is given back
(`tdenoise.inference.last_word`): first what the whole movie asks for, then what a stretch of a long movie asks for
beyond that. This is done once all blocks are drafted, in the process that gives the output its name: shard by shard,
each from its draft, so that it can be killed and started again at any time.
"""

from __future__ import annotations

import functools
import io
import math
import shutil
import uuid
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import xxhash
import zarr
from numpy.typing import NDArray

from tdenoise.files.atomic import make_folder, patiently, write_atomically
from tdenoise.inference.evidence import Evidence, GivenBack, corners
from tdenoise.inference.last_word import (
    NoiseOfShown,
    give_back,
    give_back_briefly,
    give_back_what_stands_out,
    n_stretches,
    stretch_of,
)
from tdenoise.inference.local_means import Lags
from tdenoise.noise.brightness import Brightness

from ..errors import PipelineError
from ..files.fault_points import maybe_crash
from ..files.sealed_json import read_sealed, write_sealed
from ..runs import markers, progress
from ..step_control import Control
from ..store import integrity, store, writing
from ..store.blocks import Block, Region
from ..store.shards import Layout, ShardWriter, shard_damage, shard_index, shard_key, shards_in
from .apply_plan import PIECE_FRAMES, giving_back_threads
from .block_work import (
    Job,
    draft_store,
    evidence_file,
    movie_brightness,
    movie_counts,
    read_counts,
)

MAPS = {
    "given_back": "what the counts gave back to every frame, at a level of 1",
    "given_back_own": "share of its own residual that a pixel has in it, which is left out",
    "given_back_level": "sum of the levels of the frames that show this place",
}
STRETCHES = {
    "given_back_later": "what the counts gave back to the frames of a stretch besides, at a level of 1",
    "given_back_later_own": "share of its own residual that a pixel has in it, which is left out",
    "given_back_later_level": "sum of the levels of the frames of a stretch that show this place",
}
DIMS = ("scene_y", "scene_x")
IN_MEMORY = 4  # stretches


def finish_draft(
    job: Job,
    blocks: Iterable[Block],
    geometry: store.Geometry,
    correlations: Lags,
    noise_offset: float,
    run: progress.OutputRun,
    control: Control,
    known: Given | None = None,
) -> dict[str, str]:
    """Make the denoised array from its draft, and store what was given back.

    Parameters
    ----------
    job : Job
    blocks : iterable of Block
        All of them, each with its draft and its sums.
    geometry : store.Geometry
    correlations : iterable of (int, int, float)
        Of the noise of neighbouring pixels.
    noise_offset : float
        Noise of the camera, as if so many counts more had come [counts].
    run : progress.OutputRun
    control : Control
    known : Given, optional
        What was given back to the store that is repaired; otherwise it follows from the sums.

    Returns
    -------
    dict
        Hashes of the shards of the denoised array, by grid position.
    """
    source = movie_counts(job.movie, job.movie_id)
    shape = source.shape
    places, scene = corners(None if job.drift is None else np.load(job.drift), shape[0], shape[1:])
    if known is None:
        _ask_the_counts(job, blocks, places, scene, correlations, noise_offset, run, control)
    else:
        known.copy_to(run.partial)
    given = Given.read(run.partial)
    assert given is not None
    maybe_crash("given_back.known")
    brightness = movie_brightness(job, shape[1:]) or Brightness.steady(shape[0])
    draft = _Draft(job, geometry, source, given, places, brightness, run)
    shards = list(shards_in(Region((0, shape[0]), (0, shape[1]), (0, shape[2])), geometry.shard))
    make = functools.partial(_make_or_forget, draft, blocks, control)
    with ThreadPoolExecutor(giving_back_threads(geometry.shard), thread_name_prefix="give-back") as pool:
        return dict(pool.map(make, shards))


def prepare_draft(folder: Path, shape: tuple[int, int, int], geometry: store.Geometry) -> None:
    """The empty store of a draft in a work folder; of one that is there, what is damaged is made again."""
    target, fresh = draft_store(folder), folder / "done" / f"draft-{uuid.uuid4().hex}.zarr"
    zarr.create_group(fresh)
    writing.add_sharded(fresh, store.DRAFT, shape, np.dtype(np.float32), geometry, {})
    for file in fresh.rglob("zarr.json"):
        place, data = target / file.relative_to(fresh), file.read_bytes()
        if not place.exists() or place.read_bytes() != data:
            make_folder(place.parent)
            write_atomically(place, data)
    shutil.rmtree(fresh)


def read_evidence(folder: Path, number: int, digest: str | None) -> NDArray[np.float32] | None:
    """The sums of a block by stretches, shape (n_stretches, 4, rows, columns).

    None where they are missing or not what the marker says.
    """
    try:
        data = patiently(evidence_file(folder, number).read_bytes)
    except OSError:
        return None
    if xxhash.xxh3_128_hexdigest(data) != digest:
        return None
    return np.asarray(np.load(io.BytesIO(data)))


class Given:
    """What was given back to a denoised store; of the stretches, those in use are in memory."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self.whole = GivenBack(*(np.asarray(zarr.open_array(path / name, mode="r")[:]) for name in MAPS))
        later = [path / name for name in STRETCHES]
        self._later = [zarr.open_array(p, mode="r") for p in later] if all(p.is_dir() for p in later) else []
        self.stretch = functools.lru_cache(maxsize=IN_MEMORY)(self._stretch)
        told = zarr.open_array(path / "given_back", mode="r").attrs
        self.noise = NoiseOfShown(float(told["noise_factor"]), float(told["noise_offset"]))
        self.correlations = [
            (int(y), int(x), float(value))
            for y, x, value in np.reshape(told.get("noise_correlations", []), (-1, 3))
        ]

    @classmethod
    def read(cls, path: Path) -> Given | None:
        """Of a store; None if nothing was given back."""
        return cls(path) if all((path / name).is_dir() for name in MAPS) else None

    def _stretch(self, number: int) -> GivenBack | None:
        """What the counts of a stretch asked for besides; None where nothing."""
        if not self._later:
            return None
        found = GivenBack(*(np.asarray(array[number]) for array in self._later))
        return found if found.mean.any() else None

    def hashes(self) -> dict[str, str]:
        """Of the content of every array."""
        names = [*MAPS, *(STRETCHES if self._later else ())]
        return {name: integrity.array_hash(zarr.open_array(self._path / name, mode="r")) for name in names}

    def copy_to(self, path: Path) -> None:
        """Give the arrays to a store that is being made."""
        for name in self.hashes():
            array = zarr.open_array(self._path / name, mode="r")
            dims = tuple(str(dim) for dim in array.metadata.dimension_names)
            copy = writing.create_array(
                path, name, array.shape, array.dtype, array.chunks, dims, dict(array.attrs)
            )
            for first in range(0, array.shape[0], array.chunks[0]):
                copy[first : first + array.chunks[0]] = array[first : first + array.chunks[0]]


def _ask_the_counts(
    job: Job,
    blocks: Iterable[Block],
    places: NDArray[np.intp],
    scene: tuple[int, int],
    correlations: Lags,
    noise_offset: float,
    run: progress.OutputRun,
    control: Control,
) -> None:
    """Store what the whole movie gives back, and what its stretches do besides."""
    path, n_frames, units = run.partial, len(places), movie_counts(job.movie, job.movie_id).attrs["units"]
    total = _gather(job, blocks, places, scene)
    whole, known = give_back(total, correlations), NoiseOfShown.of(total, noise_offset)
    noise: dict[str, float | list[float]] = {
        "noise_factor": known.factor,
        "noise_offset": known.offset,
    }
    if lags := [float(number) for lag in correlations for number in lag]:
        noise["noise_correlations"] = lags  # flat, and only where there are any: netCDF holds no other lists
    for name, values in zip(MAPS, (whole.mean, whole.own, whole.level), strict=True):
        described = {"units": units if name == "given_back" else "1", "long_name": MAPS[name]}
        described |= noise if name == "given_back" else {}
        writing.add_array(path, name, values, DIMS, described)
    n = n_stretches(n_frames)
    later = [
        writing.create_array(
            path,
            name,
            (n, *scene),
            np.dtype(np.float32),
            (1, *scene),
            ("stretch", *DIMS),
            {"units": units if name == "given_back_later" else "1", "long_name": STRETCHES[name]},
        )
        for name in (STRETCHES if n else ())
    ]
    anything = False
    for stretch in range(n):
        control.check("apply")
        run.check()
        left = _gather(job, blocks, places, scene, stretch).after(whole)
        found = give_back_what_stands_out(left, correlations, n)
        anything |= bool(found.mean.any())
        for array, values in zip(later, (found.mean, found.own, found.level), strict=True):
            array[stretch] = values
    if not anything:
        for array in later:
            shutil.rmtree(path / array.basename)


def adopt(folder: Path, key: str, digest: str) -> None:
    """Say that a shard of the output is made."""
    file = _marker(folder, key)
    file.parent.mkdir(parents=True, exist_ok=True)
    write_sealed(file, {"shard": digest})


def is_made(folder: Path, key: str) -> bool:
    """Whether a shard of the output is said to be made."""
    return _marker(folder, key).exists()


def _gather(
    job: Job,
    blocks: Iterable[Block],
    places: NDArray[np.intp],
    scene: tuple[int, int],
    stretch: int | None = None,
) -> Evidence:
    """Sums over the whole movie, or over a stretch of it, of the blocks in the order of their numbers."""
    total, lost = Evidence.empty(scene), []
    for block in sorted(blocks, key=lambda block: block.number):
        first, last = (
            stretch_of(number, len(places)) for number in (block.core.frames[0], block.core.frames[1] - 1)
        )
        if stretch is not None and not first <= stretch <= last:
            continue
        told = (markers.marker(job.folder, block.number) or {}).get("evidence")
        sums = read_evidence(job.folder, block.number, told)
        if sums is None:
            markers.forget(job.folder, block.number)
            lost.append(block.number)
            continue
        row, column = (places[slice(*block.core.frames)].min(axis=0)).tolist()
        corner = (block.core.rows[0] + row, block.core.columns[0] + column)
        for part in sums if stretch is None else sums[stretch - first : stretch - first + 1]:
            total.merge(Evidence(*part), corner)
    if lost:
        raise PipelineError(
            f"{evidence_file(job.folder, lost[0])}: is missing or damaged, and so are {len(lost) - 1} others. Run the "
            "same command again to compute these blocks again."
        )
    return total


def _forget(job: Job, blocks: Iterable[Block], shard: Region) -> None:
    """Take away the marker of the block that drafted a shard."""
    for block in blocks:
        if all(
            first <= start < last
            for (first, last), (start, _) in zip(
                (block.core.frames, block.core.rows, block.core.columns),
                (shard.frames, shard.rows, shard.columns),
                strict=True,
            )
        ):
            markers.forget(job.folder, block.number)


@dataclass(frozen=True)
class _Draft:
    """What all shards of the denoised array are made of."""

    job: Job
    geometry: store.Geometry
    source: Any  # the counts of the movie
    given: Given
    places: NDArray[np.intp]  # of every frame in the scene
    brightness: Brightness
    run: progress.OutputRun


def _make_or_forget(
    draft: _Draft, blocks: Iterable[Block], control: Control, shard: Region
) -> tuple[str, str]:
    """One shard of the denoised array; where its draft is damaged, the block that drafted it is to be done again."""
    control.check("apply")
    try:
        return _make(draft, shard)
    except integrity.UNREADABLE as error:
        if isinstance(error, OSError) and error.errno is not None:
            raise  # of the disk, not of what is on it
        _forget(draft.job, blocks, shard)
        raise PipelineError(
            f"{draft.job.array(store.DRAFT)}: a shard of the draft cannot be read ({error}). Run the same command "
            "again to make it again."
        ) from None


def _make(draft: _Draft, shard: Region) -> tuple[str, str]:
    """One shard of the denoised array; its grid position and hash. Nothing is done where it is there."""
    job, geometry, given = draft.job, draft.geometry, draft.given
    places, brightness = draft.places, draft.brightness
    key = shard_key(shard, geometry.shard)
    target = job.output / store.DENOISED
    file = target.joinpath("c", *key.split("."))
    before = (read_sealed(_marker(job.folder, key)) or {}).get("shard")
    if before is not None and shard_damage(file, geometry.shard, geometry.chunk, 1) is None:
        return key, str(before)
    frames = zarr.open_array(job.array(store.DRAFT), mode="r")
    sound = None
    if job.stand_ins is not None:
        sound = ~np.isfinite(np.load(job.stand_ins, mmap_mode="r")[shard.slices[1:]])
    writer = ShardWriter(Layout.of(zarr.open_array(target, mode="r")))
    for first in range(*shard.frames, PIECE_FRAMES):
        part = Region((first, min(first + PIECE_FRAMES, shard.frames[1])), shard.rows, shard.columns)
        drafted = np.asarray(frames[part.slices])
        counts = read_counts(draft.source, part)
        for number, frame in zip(range(*part.frames), range(len(drafted)), strict=True):
            row, column = places[number].tolist()
            corner = (row + shard.rows[0], column + shard.columns[0])
            level = brightness.at(slice(number, number + 1), shard.rows, shard.columns)[0]
            valid = bool(brightness.valid[number])
            shown = given.whole.to_frame(counts[frame], drafted[frame], level, corner, valid, sound)
            if (besides := given.stretch(stretch_of(number, len(places)))) is not None:
                shown = besides.to_frame(counts[frame], shown, level, corner, valid, sound)
            drafted[frame] = shown
        _briefly(draft, part, counts, drafted, sound)
        writer.append(drafted if job.kept_bits is None else writing.round_mantissa(drafted, job.kept_bits))
    digest = writer.write(target, shard_index(key), draft.run.check)
    adopt(job.folder, key, digest)
    maybe_crash("given_back.marked")
    return key, digest


def _briefly(
    draft: _Draft,
    part: Region,
    counts: NDArray[Any],
    shown: NDArray[np.float32],
    sound: NDArray[np.bool_] | None,
) -> None:
    """Give back to some frames of a shard, in place, what is there in a few of them only."""
    given, brightness = draft.given, draft.brightness
    numbers = [
        k
        for k, number in enumerate(range(*part.frames))
        if brightness.valid[number] and np.isfinite(shown[k, 0, 0])
    ]
    changed = shown[numbers]
    give_back_briefly(
        counts[numbers],
        changed,
        brightness.at(slice(*part.frames), part.rows, part.columns)[numbers],
        draft.places[[part.frames[0] + k for k in numbers]],
        given.noise,
        given.correlations,
        math.prod(draft.source.shape) / math.prod(part.shape[1:]),
        sound,
    )
    shown[numbers] = changed


def _marker(folder: Path, key: str) -> Path:
    return folder / "done" / "given-back" / f"{key}.json"
