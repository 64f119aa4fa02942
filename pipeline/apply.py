"""Apply: a trained model denoises a movie, block by block, on Dask workers.

The plan is pure. A task reads the core and the halo of one block, denoises, writes its own whole shards, makes
them durable, reads them back and leaves a marker. The driver only hands out blocks that have no marker.
"""

from __future__ import annotations

import contextlib
import functools
import io
import logging
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
import zarr
from distributed import Worker, WorkerPlugin
from numpy.typing import NDArray

from tdenoise import checkpoint, runtime, thinning
from tdenoise.atomic import write_atomically
from tdenoise.infer import Tile, denoise, memory_bytes
from tdenoise.kinds import Architecture, architecture_of, kind_of, scale_for
from tdenoise.network import Architecture as SplitBlindArchitecture
from tdenoise.noise import NoiseStatistics, Scale, choose

from . import array, blocks, budget, cluster, driver, progress, sharing, store
from .blocks import Block, Halo, Region
from .config import ApplyConfig
from .control import Control
from .errors import InputError, PipelineError, ResourceError, UsageError
from .ingest import already_done
from .pixels import movie_stand_ins
from .slurm import load_profile
from .version import VERSION

log = logging.getLogger(__name__)

TILE_BYTES = 3 * 2**30  # memory that the automatic tile size allows one block


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
    kept_bits: int | None
    device: str
    stand_ins: Path | None = None  # what is shown in place of bad pixels, an array of the size of a frame
    member: str | None = None  # who writes, where several processes share the lease


@dataclass(frozen=True)
class Plan:
    """Everything that `apply` will do, known before a worker starts."""

    identity: dict[str, Any]  # all that decides the bytes
    blocks: list[Block]
    geometry: store.Geometry
    worker_bytes: int  # memory that the largest block needs
    disk_bytes: int


def apply(config: ApplyConfig, control: Control | None = None) -> dict[str, Any]:
    """Denoise a whole movie, block by block; safe to stop and start again.

    Parameters
    ----------
    config : ApplyConfig
    control : Control, optional

    Returns
    -------
    dict
        What the denoised store says about itself.

    Raises
    ------
    InputError
        If movie or model are missing or damaged, or do not fit together.
    ResourceError
        If a block does not fit the workers' memory, or the output the disk.
    Stopped
        If a signal came, or the workers were lost too often.
    """
    control = control or Control()
    kind, count = cluster.parse_workers(config.workers)  # before anything slow
    share = None if config.share is None else _parse_share(config)
    movie = store.open_store(config.movie, store.MOVIE)
    model = config.model or checkpoint.BASE
    card = open_model(model).card
    scale = movie_scale(movie, card)
    if config.model is None:
        _check_as_it_is(movie)
    bad = movie_stand_ins(movie)
    plan = make_plan(config, movie, card, bad)
    id = progress.plan_id(plan.identity)
    if already_done(config.output, id) and not (config.force and (share is None or _begun(config.output))):
        return store.read_attributes(config.output)
    _check_budget(config, plan)
    if kind == "array" and isinstance(count, int):
        array.apply_array(config, count, plan.identity, functools.partial(_create, plan, movie), control)
        return store.read_attributes(config.output)
    try:
        with _open_run(config, plan, share, [config.movie, model]) as run:
            _build(config, plan, movie, card, scale, bad, run, share, control)
    except PipelineError:
        if share is None or not already_done(config.output, id):
            raise  # else: the others who share the work have finished it
    return store.read_attributes(config.output)


def _parse_share(config: ApplyConfig) -> sharing.Share:
    if config.workers != "local":
        raise UsageError(f"--share does its part in this process: leave --workers {config.workers} away.")
    return sharing.parse_share(config.share or "")


def _begun(output: Path) -> bool:
    """Whether an output is being made; a share that is told --force must not begin again what was just finished."""
    return (progress.work_folder(output) / "created").exists()


def _open_run(
    config: ApplyConfig, plan: Plan, share: sharing.Share | None, inputs: list[Path]
) -> progress.OutputRun:
    if share is None:
        return progress.OutputRun(config.output, plan.identity, inputs, force=config.force)
    return sharing.SharedRun(config.output, plan.identity, inputs, group=share.group, force=config.force)


def _create(plan: Plan, movie: store.Store, path: Path) -> None:
    store.create(
        path,
        store.DENOISED,
        movie.shape,
        np.dtype(np.float32),
        plan.geometry,
        movie.coordinates,
        movie.units,
    )


def _build(
    config: ApplyConfig,
    plan: Plan,
    movie: store.Store,
    card: dict[str, Any],
    scale: Scale,
    bad: NDArray[np.float32] | None,
    run: progress.OutputRun,
    share: sharing.Share | None,
    control: Control,
) -> None:
    """Denoise what is not done, and give the output its name."""
    model = config.model or checkpoint.BASE
    if config.resume and not run.begun:
        raise UsageError(f"{config.output}: there is nothing to resume. Leave --resume away to start.")
    run.prepare(functools.partial(_create, plan, movie))
    job = Job(
        movie=config.movie.absolute(),
        output=run.partial.absolute(),
        folder=run.folder.absolute(),
        token=run.token,
        model=model.absolute(),
        model_id=card["sha256"],
        scale=scale,
        ensemble=config.ensemble,
        kept_bits=None if config.lossless else store.KEPT_BITS,
        device=config.device,
        stand_ins=None if bad is None else _save_stand_ins(run.folder.absolute(), bad),
        member=run.member if isinstance(run, sharing.SharedRun) else None,
    )
    _run_blocks(config, job, plan, run, share, control)
    with run.alone("commit") if isinstance(run, sharing.SharedRun) else contextlib.nullcontext():
        if share is not None and already_done(config.output, run.id):
            return
        attributes = _describe(movie, card, plan, config, run)
        hashes = progress.hashes(run.done().values())
        _check_complete(run.partial, plan.geometry, hashes)
        store.finish(run.partial, store.DENOISED, attributes, hashes)
        run.commit()


def make_plan(
    config: ApplyConfig, movie: store.Store, card: dict[str, Any], bad: NDArray[np.float32] | None = None
) -> Plan:
    """Blocks, memory and disk; the same for any number of workers."""
    architecture = architecture_of(card)
    halo = Halo(architecture.window, architecture.spatial_halo)  # not the card's: no one checks that
    geometry = store.Geometry.of(movie.shape, movie.geometry.shard[0])
    if config.tile is not None:
        geometry = _tiled_geometry(movie.shape, config.tile, architecture.stride, geometry)
    shard_frames = geometry.shard[0]
    core = [blocks.core_frames(shard_frames, halo.frames), geometry.shard[1], geometry.shard[2]]
    itemsize = movie.array.dtype.itemsize
    if config.tile is None:
        core[1:] = _largest_tile(movie.shape, geometry, halo, architecture, itemsize)
    planned = blocks.plan_blocks(movie.shape, (core[0], core[1], core[2]), halo, architecture.stride)
    largest = max(planned, key=lambda b: b.padded.shape[1] * b.padded.shape[2]).padded.shape
    identity = {
        "step": "apply",
        "movie": movie.id,
        "model": card["sha256"],
        "ensemble": config.ensemble,
        "kept_bits": None if config.lossless else store.KEPT_BITS,
        "core": core,
        "halo": [halo.frames, halo.pixels],
        "shard": list(geometry.shard),
        "chunk": list(geometry.chunk),
        "n_blocks": len(planned),
        "profile": store.PROFILE,
        **({} if bad is None else {"stand_ins": store.content_hash(bad)}),
    }
    n_pixels = int(np.prod(movie.shape))
    return Plan(
        identity,
        planned,
        geometry,
        _block_bytes(
            architecture, shard_frames + 2 * halo.frames, largest[1], largest[2], itemsize, shard_frames
        ),
        int(n_pixels * (3.0 if config.lossless else 1.1)),
    )


def describe_plan(config: ApplyConfig) -> dict[str, Any]:
    """What ``--dry-run`` prints."""
    cluster.parse_workers(config.workers)
    movie = store.open_store(config.movie, store.MOVIE)
    card = open_model(config.model or checkpoint.BASE).card
    movie_scale(movie, card)
    plan = make_plan(config, movie, card, movie_stand_ins(movie))
    read = sum(int(np.prod(b.padded.shape)) for b in plan.blocks)
    return {
        **plan.identity,
        "shape": list(movie.shape),
        "reads_per_pixel": round(read / int(np.prod(movie.shape)), 3),
        "worker_memory_bytes": plan.worker_bytes,
        "disk_estimate_bytes": plan.disk_bytes,
        "n_files": int(np.prod([-(-n // s) for n, s in zip(movie.shape, plan.geometry.shard, strict=True)])),
    }


def _tiled_geometry(
    shape: tuple[int, int, int], tile: int, stride: int, standard: store.Geometry
) -> store.Geometry:
    """Shards as large as the tiles that were asked for."""
    if tile % stride:
        raise UsageError(
            f"--tile {tile} is not a multiple of the model's stride {stride}. Use --tile {-(-tile // stride) * stride}."
        )
    sizes = [min(tile, n) for n in shape[1:]]
    chunks = [s // 2 if s > store.CHUNK_PIXELS and s % 2 == 0 else s for s in sizes]
    return store.Geometry((standard.shard[0], *sizes), (standard.chunk[0], *chunks))  # type: ignore[arg-type]


def _largest_tile(
    shape: tuple[int, int, int],
    geometry: store.Geometry,
    halo: Halo,
    architecture: Architecture,
    itemsize: int,
) -> tuple[int, int]:
    """Whole frames where they fit `TILE_BYTES`, else as many shards as do; one shard at least."""
    n_frames = geometry.shard[0] + 2 * halo.frames

    def fits(rows: int, columns: int) -> bool:
        height = min(shape[1], rows + (2 * halo.pixels if rows < shape[1] else 0))
        width = min(shape[2], columns + (2 * halo.pixels if columns < shape[2] else 0))
        return _block_bytes(architecture, n_frames, height, width, itemsize, geometry.shard[0]) <= TILE_BYTES

    rows, columns = geometry.shard[1:]
    if fits(shape[1], shape[2]):
        return shape[1], shape[2]
    while columns < shape[2] and fits(rows, columns + geometry.shard[2]):
        columns += geometry.shard[2]
    while rows < shape[1] and fits(rows + geometry.shard[1], columns):
        rows += geometry.shard[1]
    return rows, columns


def _block_bytes(
    architecture: Architecture, n_frames: int, height: int, width: int, itemsize: int, shard_frames: int
) -> int:
    """Peak memory of a worker: raw frames, the network on one frame, one row of shards twice."""
    return (
        budget.WORKER_BASE_BYTES
        + n_frames * height * width * itemsize
        + memory_bytes(architecture, n_frames, height, width)
        + 3 * shard_frames * height * width * 4
    )


def _check_budget(config: ApplyConfig, plan: Plan) -> None:
    kind, count = cluster.parse_workers(config.workers)
    budget.check_disk(config.output.parent, plan.disk_bytes, str(config.output))
    limit = config.worker_memory
    if limit is None and not isinstance(count, str) and kind == "local" and config.share is None:
        limit = budget.machine_memory_bytes() // (count or budget.n_cores())
    if limit is None and kind in ("slurm", "array"):
        limit = load_profile(config.profile, workers=True).worker_memory_bytes
    if limit is not None:
        core = " x ".join(map(str, plan.identity["core"]))
        budget.check_memory(
            plan.worker_bytes,
            limit,
            f"a block of {core} and its halo",
            "Use fewer workers, a smaller --tile, or a larger --worker-memory.",
        )


def open_model(folder: Path) -> checkpoint.Model:
    """A model whose bytes are the ones in its card, or a sentence what is wrong with it."""
    try:
        return checkpoint.load_model(folder)
    except checkpoint.ModelError as error:
        raise InputError(*str(error).split(": ", 1)) from None


def movie_noise(movie: store.Store) -> NoiseStatistics:
    """The noise of a movie as measured at ingest; refuses movies that no model can work on."""
    attributes = movie.attributes
    if attributes["not_finite_frames"]:
        shown = ", ".join(map(str, attributes["not_finite_frames"][:5]))
        raise InputError(
            movie.path, f"frames {shown} hold NaN or Inf. Ingest it again without them (--frames A:B)."
        )
    try:
        if attributes["noise"] is None:
            raise ValueError("its noise could not be measured")
        noise = NoiseStatistics.from_json(attributes["noise"])
        Scale.of(noise)  # refuses a movie without noise
    except ValueError as error:
        raise InputError(movie.path, f"{error}.") from None
    return noise


def _check_as_it_is(movie: store.Store) -> None:
    """Say that the model was never adapted to this movie; refuse where it would take noise for signal."""
    choice = choose(movie_noise(movie))
    if choice.blind_radius != 0:
        raise InputError(
            movie.path,
            f"the model that comes with tdenoise hides one pixel, and here that is not enough: {choice.reason}. "
            "Train a model on this movie and give it with --model.",
        )
    log.warning(
        "no --model: %s is denoised with the model that comes with tdenoise, which knows simulated movies only. "
        "A model that 'train' has adapted to this movie does better.",
        movie.path,
    )


def signal_to_noise(noise: NoiseStatistics) -> float:
    """Contrast of a movie in units of its noise, per pixel."""
    scale = Scale.of(noise)
    return scale.contrast / scale.noise


def movie_scale(movie: store.Store, card: dict[str, Any] | None = None) -> Scale:
    """How the counts of a movie become inputs of a model (without a card: of a split-blind network).

    Warns where the movie is unlike those the model was trained on; of an imported model nobody knows these.
    """
    noise = movie_noise(movie)
    if card is None:
        return scale_for(SplitBlindArchitecture(), noise)
    trained = [m["snr"] for m in card["movies"]]
    snr = signal_to_noise(noise)
    if trained and not min(trained) / 4 < snr < max(trained) * 4:
        log.warning(
            "the signal to noise ratio of %s is %.3g per pixel, the model was trained at %.3g. "
            "Train on this movie, or adapt the model with 'train --from'.",
            movie.path,
            snr,
            trained[0],
        )
    architecture = architecture_of(card)
    if kind_of(architecture) == "thinned":
        refused = thinning.refusal(noise, movie.attributes["detector"]["counts_per_electron"])
        if refused is not None:
            log.warning("%s: a thinned model is for pure counts, but %s.", movie.path, refused)
    return scale_for(architecture, noise)


def _save_stand_ins(folder: Path, bad: NDArray[np.float32]) -> Path:
    """A file that all workers read their part of."""
    path = folder / "done" / "stand_ins.npy"  # beside the markers, which go when the output is whole
    data = io.BytesIO()
    np.save(data, bad)
    write_atomically(path, data.getvalue())
    return path


def _run_blocks(
    config: ApplyConfig,
    job: Job,
    plan: Plan,
    run: progress.OutputRun,
    share: sharing.Share | None,
    control: Control,
) -> None:
    """Hand out the blocks that have no valid marker until all have one."""

    def remaining() -> list[Block]:
        done = run.done()
        # A marker counts only while the shards it names are whole.
        return [
            b
            for b in plan.blocks
            if b.number not in done or not _whole(job.output, plan.geometry, done[b.number])
        ]

    def forget_broken() -> None:
        for block in remaining():
            (run.folder / "done" / f"{block.number:08d}.json").unlink(missing_ok=True)

    n_blocks = len(plan.blocks)
    if isinstance(run, sharing.SharedRun):
        run.once("markers", forget_broken)  # from then on, a marker is enough for all who share the work
        done = run.done_numbers()
        todo = [b for b in plan.blocks if b.number not in done]
    else:
        todo = remaining()
    control.progress("apply", n_blocks - len(todo), n_blocks)

    workers = config.workers
    if workers == "local" and job.device != "cpu" and checkpoint.default_device() == "cuda":
        workers = "local:1"  # one GPU has room for one worker; on a CPU it is one per core

    def connect() -> Any:
        return cluster.connect(
            workers,
            scratch=run.folder / "scratch",
            worker_memory_bytes=config.worker_memory,
            profile=config.profile,
            log_dir=run.folder / "logs",
            stop=control.stop,
        )

    plugin = ModelPlugin(job.model, job.model_id, job.device)
    task = functools.partial(run_block, job)
    # Worker jobs that were preempted wait in the queue again; they must not lose their place in it.
    patience, resources = driver.NO_WORKERS_S, None
    if config.workers.startswith("slurm:"):
        from .drain import TOKEN

        resources = {TOKEN: 1.0}  # which a worker that is about to leave has no more
        patience = 60.0 * load_profile(config.profile, workers=True).queue_wait_min
    outcomes: Iterator[driver.Outcome[Block]]
    if isinstance(run, sharing.SharedRun) and share is not None:
        outcomes = sharing.work(run, share, plan.blocks, task, control)
    else:
        outcomes = driver.drive(connect, plugin, task, todo, remaining, control, patience, resources)
    failures: dict[int, str] = {}
    for outcome in outcomes:
        if isinstance(outcome.error, OSError) and outcome.error.errno in driver.DISK_FULL:
            raise ResourceError(
                f"{job.output}: the disk is full or your quota is used up ({outcome.error.strerror}). "
                "Free some space, then run the same command again to continue."
            )
        if isinstance(outcome.error, PipelineError) and outcome.error.exit_code != 1:
            raise outcome.error
        if outcome.error is not None:
            failures[outcome.item.number] = str(outcome.error) or type(outcome.error).__name__
            log.error(
                "block %d (frames %d to %d) failed: %s",
                outcome.item.number,
                *outcome.item.core.frames,
                failures[outcome.item.number],
            )
        control.progress("apply", n_blocks - outcome.n_left, n_blocks)
    if failures:
        number, reason = next(iter(failures.items()))
        raise PipelineError(
            f"{len(failures)} of {n_blocks} blocks failed, first block {number}: {reason}. The others are done; "
            "run the same command again to try the failed ones once more."
        )


def _shard_file(output: Path, key: str) -> Path:
    return output.joinpath(store.DENOISED, "c", *key.split("."))


def _whole(output: Path, geometry: store.Geometry, record: dict[str, Any]) -> bool:
    return all(
        store.shard_damage(_shard_file(output, key), geometry.shard, geometry.chunk, 1) is None
        for key in record["shards"]
    )


def _check_complete(output: Path, geometry: store.Geometry, hashes: dict[str, str]) -> None:
    for key in hashes:
        damage = store.shard_damage(_shard_file(output, key), geometry.shard, geometry.chunk, 1)
        if damage is not None:
            raise PipelineError(
                f"{_shard_file(output, key)} {damage}. Run the same command again to redo it."
            )


def _describe(
    movie: store.Store, card: dict[str, Any], plan: Plan, config: ApplyConfig, run: progress.OutputRun
) -> dict[str, Any]:
    records = run.done().values()
    array = zarr.open_array(run.partial / store.DENOISED, mode="r")
    held_out = [m["held_out"] for m in card["movies"] if m["id"] == movie.id]
    seen = [*card["movies"], *card["ancestors"]]
    same = [m for m in seen if movie.id == m["id"] or movie.attributes["source"]["sha256"] == m["source"]]
    trained: bool | None = bool(same)
    if card.get("imported") is not None:
        # Nobody knows what imported weights were trained on: any frame may be among it, any movie too.
        held_out, trained = [], trained or None
    return {
        "kind": "denoised",
        "plan": run.id,
        "id": store.content_id(store.DENOISED, array, progress.hashes(records)),
        "movie": {"id": movie.id, "name": movie.path.name, "source": movie.attributes["source"]["name"]},
        "model": {"id": card["sha256"], "kind": card["kind"], "blind_radius": card["blind_radius"]},
        "held_out_frames": held_out[0] if held_out else [],
        # Also by a model it was adapted from, or on another cut of the same raw file.
        "trained_on_this": trained,
        "settings": plan.identity,
        "devices": sorted({r["device"] for r in records}),
        "software": VERSION,
    }


# ---- what runs on a worker ----------------------------------------------------------------------------------


class ModelPlugin(WorkerPlugin):  # type: ignore[misc]
    """Load the model when a worker joins, also one that joins late."""

    name = "tdenoise-model"

    def __init__(self, model: Path, model_id: str, device: str) -> None:
        self.arguments = (model, model_id, device)

    def setup(self, worker: Worker) -> None:
        load(*self.arguments)


@functools.lru_cache(maxsize=1)
def load(model: Path, model_id: str, device: str) -> tuple[checkpoint.Model, str]:
    """The model, by path and sha256, once per worker process."""
    runtime.prepare(n_threads=1)
    chosen = checkpoint.default_device() if device == "auto" else device
    loaded = checkpoint.load_model(model, model_id)
    loaded.network.to(chosen, memory_format=torch.channels_last)  # type: ignore[call-overload]
    return loaded, chosen


def run_block(job: Job, block: Block) -> int:
    """Denoise and write one block; pure and idempotent, so that it may run twice. Returns its number."""
    model, device = load(job.model, job.model_id, job.device)
    zarr.config.set({"threading.max_workers": 1})
    source = zarr.open_array(job.movie / store.MOVIE, mode="r")
    target = zarr.open_array(job.output / store.DENOISED, mode="r+")
    hashes: dict[str, str] = {}
    # One row of shards is written, and waits for the disk, while the next is computed.
    with ThreadPoolExecutor(1, thread_name_prefix="write") as writer:
        writing: Future[dict[str, str]] | None = None
        for frames, result in denoise_block(model, source, job, block, device, target.shards[0]):
            row = Region(frames, block.core.rows, block.core.columns)
            if writing is not None:
                hashes |= writing.result()
            writing = writer.submit(_write_row, job, target, row, result)
        if writing is not None:
            hashes |= writing.result()
    progress.mark(job.folder, block.number, {"shards": hashes, "device": _device_name(device)})
    return block.number


def _write_row(job: Job, target: Any, row: Region, result: NDArray[np.float32]) -> dict[str, str]:
    """Write the shards of one row; their hashes by grid position."""
    hashes = {}
    for region in store.shards_in(row, target.shards):
        rows = slice(region.rows[0] - row.rows[0], region.rows[1] - row.rows[0])
        columns = slice(region.columns[0] - row.columns[0], region.columns[1] - row.columns[0])
        if not progress.holds_lease(job.folder, job.token, job.member):
            raise PipelineError("another run has taken over this output")
        part = np.ascontiguousarray(result[:, rows, columns])
        key, digest = store.write_shard(job.output / store.DENOISED, target, region, part)
        hashes[key] = digest
    return hashes


def denoise_block(
    model: checkpoint.Model, source: Any, job: Job, block: Block, device: str, shard_frames: int
) -> Iterator[tuple[tuple[int, int], NDArray[np.float32]]]:
    """Denoised core of a block, one row of shards after the other.

    Yields
    ------
    frames : tuple of int
        First and last (excluded) frame.
    result : ndarray, shape (n_frames, core rows, core columns), float32
    """
    halo = model.network.architecture.window
    rows, columns = block.padded.rows, block.padded.columns
    core_rows = (block.core.rows[0] - rows[0], block.core.rows[1] - rows[0])
    core_columns = (block.core.columns[0] - columns[0], block.core.columns[1] - columns[0])
    n_frames = source.shape[0]
    bad: NDArray[np.float32] | None = None
    if job.stand_ins is not None:
        bad = np.array(np.load(job.stand_ins, mmap_mode="r")[slice(*rows), slice(*columns)])
    held: NDArray[Any] | None = None
    first_held = 0
    for start, stop in blocks.spans(block.core.shape[0], shard_frames):
        start, stop = start + block.core.frames[0], stop + block.core.frames[0]
        first, last = max(0, start - halo), min(n_frames, stop + halo)
        # The halo of the previous shards is still here; only what follows it is read.
        known = 0 if held is None else max(0, first_held + len(held) - first)
        fresh = source[first + known : last, slice(*rows), slice(*columns)]
        held = fresh if not known or held is None else np.concatenate([held[-known:], fresh])
        first_held = first
        tile = Tile(n_frames, first, core_rows, core_columns)
        result = np.empty(
            (stop - start, core_rows[1] - core_rows[0], core_columns[1] - core_columns[0]), np.float32
        )
        wanted = denoise(
            model.network,
            held,
            tile,
            job.scale,
            range(start, stop),
            ensemble=job.ensemble,
            device=device,
            stand_ins=bad,
        )
        for number, frame in enumerate(wanted):
            result[number] = frame if job.kept_bits is None else store.round_mantissa(frame, job.kept_bits)
        yield (start, stop), result


def _device_name(device: str) -> str:
    return torch.cuda.get_device_name() if device == "cuda" else "cpu"
