"""What a worker does: it reads core and halo of a block, denoises, writes its own whole shards, and marks it done."""

from __future__ import annotations

import functools
import io
import os
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
import xxhash
import zarr
from distributed import Worker, WorkerPlugin
from numpy.typing import NDArray

from tdenoise.files.atomic import patiently, write_atomically
from tdenoise.inference.denoising import denoise, denoise_with_variance
from tdenoise.inference.evidence import Evidence, corners
from tdenoise.inference.last_word import stretch_of
from tdenoise.inference.tile import Tile
from tdenoise.network import checkpoint, torch_setup
from tdenoise.network.split_blind import SplitBlind
from tdenoise.noise.brightness import Brightness
from tdenoise.noise.far_frames import FarFrames
from tdenoise.noise.noise import Scale

from ..errors import InputError, Stopped
from ..files.fault_points import maybe_crash
from ..inputs.far_sums import read_far_sums
from ..resources import budget
from ..runs import lease, markers
from ..store import blocks, store, writing
from ..store.blocks import Block, Region
from ..store.shards import Layout as ShardLayout
from ..store.shards import ShardWriter, shard_index, shard_key, shards_in


@dataclass(frozen=True)
class Job:
    """What all blocks of one output have in common; small enough to travel with every task."""

    movie: Path
    output: Path  # the partial store
    folder: Path  # of markers and lease
    token: str
    model: Path
    model_id: str
    scale: Scale
    ensemble: int
    precision: str  # float32, bfloat16, or auto
    kept_bits: int | None
    device: str
    stand_ins: Path | None = None  # what is shown in place of bad pixels, an array of the size of a frame
    drift: Path | None = None  # of the scene, which the windows follow [pixels], (frames of the movie, 2)
    member: str | None = None  # who writes, where several processes share the lease
    movie_id: str = ""  # of the content: the movie must not be replaced while its blocks are denoised
    # The arrays that are written, all of one geometry. Of a draft, the evidence is summed, too; see `given_back`.
    layers: tuple[str, ...] = (store.DENOISED,)
    brightness: Path | None = None  # of all frames; see `Brightness.stacked`
    far: Path | None = None  # folder of the sums of far frames; see `..inputs.far_sums`

    def array(self, layer: str) -> Path:
        """Folder of an array. The draft lies beside the markers, and goes with them when the output is whole."""
        return draft_store(self.folder) / layer if layer == store.DRAFT else self.output / layer


def save_for_blocks(folder: Path, name: str, values: NDArray[Any] | None) -> Path | None:
    """A file that the work on all blocks reads its part of."""
    if values is None:
        return None
    path = folder / "done" / f"{name}.npy"  # beside the markers, which go when the output is whole
    data = io.BytesIO()
    np.save(data, values)
    write_atomically(path, data.getvalue())
    return path


def draft_store(folder: Path) -> Path:
    """Where the draft of an output lies, from its work folder."""
    return folder / "done" / "draft.zarr"


class ModelPlugin(WorkerPlugin):  # type: ignore[misc]
    """Load the model when a worker joins, also one that joins late."""

    name = "tdenoise-model"

    def __init__(self, model: Path, model_id: str, device: str, gpus: list[str]) -> None:
        self.arguments = (model, model_id, device)
        self.gpus = gpus

    def setup(self, worker: Worker) -> None:
        if self.gpus:
            # Before this process touches CUDA, which looks at it once. "cuda" is then this worker's own GPU.
            os.environ["CUDA_VISIBLE_DEVICES"] = own_gpu(worker.name, self.gpus)
        load(*self.arguments)


def own_gpu(worker: object, gpus: list[str]) -> str:
    """The GPU of a worker on this machine, which are numbered from 0; one that is started anew keeps its number.

    Examples
    --------
    >>> [own_gpu(worker, ["0", "1"]) for worker in range(4)]
    ['0', '1', '0', '1']
    """
    return gpus[int(str(worker)) % len(gpus)]


@functools.lru_cache(maxsize=1)
def load(model: Path, model_id: str, device: str) -> tuple[checkpoint.Model, str]:
    """The model, by path and sha256, once per worker process."""
    torch_setup.prepare(n_threads=1)
    chosen = checkpoint.default_device() if device == "auto" else device
    loaded = checkpoint.load_model(model, model_id)
    loaded.network.to(chosen, memory_format=torch.channels_last)  # type: ignore[call-overload]
    return loaded, chosen


# Tokens of the runs that were asked to stop, as far as this process was told.
_stopped: set[str] = set()


def stop_blocks(token: str) -> None:
    """End the block of a run that this process has in hand before its next batch, and any other before its first."""
    _stopped.add(token)


def check_running(job: Job, stopping: Callable[[], bool]) -> None:
    """Raise `Stopped` where the run was asked to stop."""
    if job.token in _stopped or stopping():
        raise Stopped("stopped in apply; run the same command again to continue")


def run_block(job: Job, block: Block, stopping: Callable[[], bool] = lambda: False) -> int:
    """Denoise and write one block; pure and idempotent, so that it may run twice. Returns its number.

    A worker may be killed after it has marked a block and before it could say so: nothing is left to do then.
    """
    lease.check_lease(job.folder, job.token, job.member)
    if markers.marker(job.folder, block.number) is not None:
        return block.number
    (check := functools.partial(check_running, job, stopping))()
    model, device = load(job.model, job.model_id, job.device)
    # `load` may answer from memory, and the caller have set the threads back.
    torch_setup.prepare(n_threads=1)
    # A GPU keeps more than one core busy with its input and output; of CPU workers there is one per core.
    n_threads = 1 if device == "cpu" else max(1, budget.n_cores() // max(1, torch.cuda.device_count()))
    source = movie_counts(job.movie, job.movie_id)
    targets = {layer: zarr.open_array(job.array(layer), mode="r+") for layer in job.layers}
    hashes: dict[str, dict[str, str]] = {layer: {} for layer in job.layers}
    shard_shape = targets[job.layers[0]].shards
    evidence = None if job.layers[0] != store.DRAFT else BlockEvidence.of(job, block, source.shape)
    shards = list(shards_in(block.core, shard_shape))
    # A row of frames is packed while the next is computed, its chunks side by side: a block often has but one shard.
    few = zarr.config.set({"threading.max_workers": n_threads})
    with (
        few,
        ThreadPoolExecutor(n_threads, thread_name_prefix="write") as pool,
        ThreadPoolExecutor(n_threads, thread_name_prefix="pack") as packers,
    ):
        for_each: Callable[..., Iterable[Any]] = packers.map if n_threads > 1 else map
        in_hand: dict[tuple[str, Region], ShardWriter] = {}
        packing: list[tuple[str, Future[tuple[str, str] | None]]] = []

        def collect() -> None:
            for layer, future in packing:
                if (written := future.result()) is not None:
                    key, digest = written
                    hashes[layer][key] = digest

        rows = denoise_block(model, source, job, block, device, shard_shape[0], check)
        for frames, counts, results in rows:
            row = Region(frames, block.core.rows, block.core.columns)
            collect()
            packing = []
            if evidence is not None:
                evidence.add(frames, counts, results[0])
            for (layer, target), result in zip(targets.items(), results, strict=True):
                for shard in shards:
                    if not shard.frames[0] <= frames[0] < shard.frames[1]:
                        continue
                    if frames[0] == shard.frames[0]:
                        in_hand[layer, shard] = ShardWriter(ShardLayout.of(target), for_each)
                    last = frames[1] == shard.frames[1]
                    writer = in_hand.pop((layer, shard)) if last else in_hand[layer, shard]
                    part = result[Region(frames, shard.rows, shard.columns).within(row).slices]
                    key = shard_key(shard, shard_shape) if last else None
                    packing.append((layer, pool.submit(_pack, job, layer, writer, part, key)))
        collect()
    summed = {} if evidence is None else {"evidence": evidence.save(job, block.number)}
    record = marker_of(hashes, _device_name(device)) | summed
    markers.mark(job.folder, block.number, record, job.token, job.member)
    return block.number


def movie_brightness(job: Job, field: tuple[int, int]) -> Brightness | None:
    """Brightness of all frames of the movie, of so many rows and columns; None where they are all alike."""
    return None if job.brightness is None else Brightness.of_stacked(np.load(job.brightness), field)


@dataclass
class BlockEvidence:
    """What was removed from the frames of a block, summed in the frame of the scene, by stretches of frames."""

    sums: Evidence  # of the stretch at hand
    corners: NDArray[np.intp]  # of every frame of the movie, from that of the sums
    brightness: Brightness
    core: tuple[tuple[int, int], tuple[int, int]]  # its rows and columns
    sound: NDArray[np.bool_] | None  # pixels of the core that count
    stretch: int  # number of the one at hand
    summed: list[NDArray[np.float32]] = field(default_factory=list)  # those before

    @classmethod
    def of(cls, job: Job, block: Block, shape: tuple[int, int, int]) -> BlockEvidence:
        drift = None if job.drift is None else np.load(job.drift)
        found, _ = corners(drift, shape[0], shape[1:])
        here = found[slice(*block.core.frames)]
        extent = here.max(axis=0) - here.min(axis=0)
        core = block.core.shape[1:]
        sound = None
        if job.stand_ins is not None:
            sound = ~np.isfinite(np.load(job.stand_ins)[block.core.slices[1:]])
        return cls(
            Evidence.empty((core[0] + int(extent[0]), core[1] + int(extent[1]))),
            found - here.min(axis=0),
            movie_brightness(job, shape[1:]) or Brightness.steady(shape[0]),
            (block.core.rows, block.core.columns),
            sound,
            stretch_of(block.core.frames[0], shape[0]),
        )

    def add(self, frames: tuple[int, int], counts: NDArray[Any], denoised: NDArray[np.float32]) -> None:
        """Take in successive frames of the core; those that were not recorded whole tell nothing."""
        for number, recorded, result in zip(range(*frames), counts, denoised, strict=True):
            if (stretch := stretch_of(number, len(self.corners))) != self.stretch:
                self._next(stretch)
            if self.brightness.valid[number]:
                row, column = self.corners[number].tolist()
                level = self.brightness.at(slice(number, number + 1), *self.core)[0]
                self.sums.add(recorded, result, level, (row, column), self.sound)

    def _next(self, stretch: int) -> None:
        """Begin another stretch."""
        self.summed.append(np.stack(self.sums.arrays).astype(np.float32))
        self.sums, self.stretch = Evidence.empty(self.sums.residual.shape), stretch

    def save(self, job: Job, number: int) -> str:
        """Keep the sums until those of all blocks are there; their hash."""
        self._next(self.stretch)
        data = io.BytesIO()
        np.save(data, np.stack(self.summed))
        write_atomically(evidence_file(job.folder, number), data.getvalue())
        return xxhash.xxh3_128_hexdigest(data.getvalue())


def evidence_file(folder: Path, number: int) -> Path:
    """Where the sums of a block lie until the output is whole."""
    return folder / "done" / f"evidence-{number:08d}.npy"


def marker_of(hashes: dict[str, dict[str, str]], device: str) -> dict[str, Any]:
    """What a marker says: hashes of the denoised shards under ``shards``, of others under the name of the array."""
    main = store.DRAFT if store.DRAFT in hashes else store.DENOISED
    others = {layer: found for layer, found in hashes.items() if layer != main}
    return {"shards": hashes[main], **others, "device": device}


def _pack(
    job: Job, layer: str, writer: ShardWriter, part: NDArray[np.float32], key: str | None
) -> tuple[str, str] | None:
    """Add frames to a shard. With its grid position: they are its last, so write it; that position, and its hash."""
    kept_bits = job.kept_bits
    if layer == store.DRAFT and kept_bits is not None:
        kept_bits = store.DRAFT_BITS
    writer.append(
        np.ascontiguousarray(part) if kept_bits is None else writing.round_mantissa(part, kept_bits)
    )
    if key is None:
        return None
    allowed = functools.partial(lease.check_lease, job.folder, job.token, job.member)
    return key, writer.write(job.array(layer), shard_index(key), allowed)


def denoise_block(
    model: checkpoint.Model,
    source: Any,
    job: Job,
    block: Block,
    device: str,
    row_frames: int,
    check: Callable[[], None] = lambda: None,
) -> Iterator[tuple[tuple[int, int], NDArray[Any], NDArray[np.float32]]]:
    """Denoised core of a block, one row of frames after the other.

    Yields
    ------
    frames : tuple of int
        First and last (excluded) frame.
    counts : ndarray, shape (n_frames, core rows, core columns)
        What was recorded.
    result : ndarray, shape (n_layers, n_frames, core rows, core columns), float32
        Of every one of ``job.layers``.
    """
    halo = model.network.architecture.window
    rows, columns = block.padded.rows, block.padded.columns
    core_rows = (block.core.rows[0] - rows[0], block.core.rows[1] - rows[0])
    core_columns = (block.core.columns[0] - columns[0], block.core.columns[1] - columns[0])
    n_frames = source.shape[0]
    drift = None if job.drift is None else np.load(job.drift)
    brightness = movie_brightness(job, source.shape[1:])
    bad: NDArray[np.float32] | None = None
    if job.stand_ins is not None:
        bad = np.array(np.load(job.stand_ins, mmap_mode="r")[slice(*rows), slice(*columns)])
    far = None
    if job.far is not None:
        far = read_far_sums(job.far, source.shape, drift, brightness).part(0, rows[0], columns[0])
    for start, stop, first, held in _rows_of_frames(
        functools.partial(read_counts, source), block, halo, min(row_frames, blocks.ROW_FRAMES)
    ):
        tile = Tile(n_frames, first, core_rows, core_columns, (rows[0], columns[0]))
        core = (core_rows[1] - core_rows[0], core_columns[1] - core_columns[0])
        result = np.empty((len(job.layers), stop - start, *core), np.float32)
        for number, layers in enumerate(
            _denoised(model, held, tile, job, range(start, stop), device, bad, drift, brightness, far, check)
        ):
            for layer, frame in enumerate(layers):
                result[layer, number] = frame
        counts = held[start - first : stop - first, slice(*core_rows), slice(*core_columns)]
        yield (start, stop), counts, result


def _denoised(
    model: checkpoint.Model,
    held: NDArray[Any],
    tile: Tile,
    job: Job,
    frames: range,
    device: str,
    bad: NDArray[np.float32] | None,
    drift: NDArray[np.float64] | None,
    brightness: Brightness | None,
    far: FarFrames | None,
    check: Callable[[], None],
) -> Iterator[tuple[NDArray[np.float32], ...]]:
    """Every layer of a job, frame by frame."""
    precision = job.precision
    if precision == "auto":  # of this worker: another one may run on another kind of processor
        coarse = job.kept_bits is not None and store.VARIANCE not in job.layers
        precision = "bfloat16" if coarse and torch_setup.fast_bfloat16(device) else "float32"
    given: dict[str, Any] = {"ensemble": job.ensemble, "precision": precision, "device": device}
    given |= {"stand_ins": bad, "drift": drift, "brightness": brightness, "far": far, "check": check}
    if store.VARIANCE not in job.layers:
        for frame in denoise(model.network, held, tile, job.scale, frames, **given):
            yield (frame,)
    else:
        assert isinstance(model.network, SplitBlind)
        yield from denoise_with_variance(model.network, held, tile, job.scale, frames, **given)


def _rows_of_frames(
    read_region: Callable[[Region], NDArray[Any]], block: Block, halo: int, row_frames: int
) -> Iterator[tuple[int, int, int, NDArray[Any]]]:
    """Raw frames of a block, one row with its halo after the other; the next is read meanwhile.

    Yields
    ------
    start, stop : int
        First and last (excluded) frame of the row.
    first : int
        First frame of its halo.
    frames : ndarray, shape (n_frames, rows, columns)
        The row with its halo.
    """
    begin, end = block.core.frames
    first_read, last_read = block.padded.frames

    def read(row: tuple[int, int]) -> NDArray[Any]:
        """What the rows before have not brought along."""
        known = first_read if row[0] == begin else min(last_read, row[0] + halo)
        last = min(last_read, row[1] + halo)
        return read_region(Region((known, last), block.padded.rows, block.padded.columns))

    spans = [(begin + a, begin + b) for a, b in blocks.spans(end - begin, row_frames)]
    with ThreadPoolExecutor(1, thread_name_prefix="read") as reader:
        reading = reader.submit(read, spans[0])
        held: NDArray[Any] | None = None
        first = first_read
        for number, (start, stop) in enumerate(spans):
            fresh = reading.result()
            if number + 1 < len(spans):
                reading = reader.submit(read, spans[number + 1])
            wanted = max(first_read, start - halo)
            # The halo of the previous row is still here; only what follows it is read.
            held = fresh if held is None else np.concatenate([held[wanted - first :], fresh])
            first = wanted
            yield start, stop, first, held


@functools.lru_cache(maxsize=1)
def movie_counts(movie: Path, movie_id: str) -> Any:
    """The counts of a movie, once per process, so that each shard is compared with its hash but once.

    Raises
    ------
    InputError
        If it is another movie than the one that the work was begun with.
    """
    opened = store.open_store(movie, store.MOVIE)
    if opened.id != movie_id:
        raise InputError(movie, "was replaced while it was being denoised. Run the same command again.")
    return opened.array


def read_counts(source: Any, region: Region) -> NDArray[Any]:
    """Counts of a movie, again where the file server stumbles; refused where a shard is not as it was written."""

    def read() -> NDArray[Any]:
        maybe_crash("movie.read")
        return np.asarray(source[region.slices])

    return patiently(read)


def _device_name(device: str) -> str:
    return torch.cuda.get_device_name() if device == "cuda" else device
