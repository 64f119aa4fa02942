"""Apply: a trained model denoises a movie, block by block, on Dask workers.

The plan is pure. A task reads the core and the halo of one block, denoises, writes its own whole shards, makes
them durable, reads them back and leaves a marker. The driver only hands out blocks that have no marker.
"""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import io
import logging
import os
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
import zarr
from distributed import Worker, WorkerPlugin
from numpy.typing import NDArray

from tdenoise import checkpoint, runtime, thinning
from tdenoise.atomic import patiently, write_atomically
from tdenoise.infer import Tile, denoise, denoise_with_variance, memory_bytes
from tdenoise.kinds import Architecture, architecture_of, kind_of, scale_for
from tdenoise.network import Architecture as SplitBlindArchitecture
from tdenoise.network import SplitBlind
from tdenoise.noise import NoiseStatistics, Scale, choose

from . import array, blocks, budget, cluster, driver, progress, sharing, store
from .blocks import Block, Halo, Region
from .config import ApplyConfig
from .control import Control
from .errors import InputError, PipelineError, ResourceError, UsageError, VerificationError
from .faults import maybe_crash
from .heads import check_uncertainty, electron_counts
from .ingest import already_done
from .pixels import movie_stand_ins
from .recorded import record
from .site_profile import load_profile
from .version import VERSION

log = logging.getLogger(__name__)

Connect = Callable[..., AbstractContextManager[Any]]  # starts workers; may be given the folder of their files

TILE_BYTES = int(2.7 * 2**30)  # memory that the automatic tile size allows one block
MARGIN = 1.15  # over the predicted memory of a worker, that it must have: one that exceeds its limit is ended
DRIVER_BYTES = 300 * 2**20  # the driver, the scheduler in it, and what watches the workers


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
    layers: tuple[str, ...] = (store.DENOISED,)  # the arrays that are written, all of one geometry
    posterior: bool = False  # whether the own count of a pixel joins in
    gain: float = 1.0  # [counts per electron]
    member: str | None = None  # who writes, where several processes share the lease


@dataclass(frozen=True)
class Plan:
    """Everything that `apply` will do, known before a worker starts."""

    identity: dict[str, Any]  # all that decides the bytes
    blocks: list[Block]
    geometry: store.Geometry
    worker_bytes: int  # memory that the largest block needs
    disk_bytes: int
    layers: tuple[str, ...]  # names of the arrays to write


@dataclass(frozen=True)
class Known:
    """What is sound of a damaged denoised store, for its repair."""

    path: Path
    ids: tuple[str, ...]  # of the content of its arrays, which the repaired store must have
    hashes: dict[str, dict[str, str]]  # of its sound shards, by array and grid position
    device: str  # that computed them


def apply(
    config: ApplyConfig,
    control: Control | None = None,
    reconnect: Callable[[Connect], Connect] = lambda start: start,
    known: Known | None = None,
) -> dict[str, Any]:
    """Denoise a whole movie, block by block; safe to stop and start again.

    Parameters
    ----------
    config : ApplyConfig
    control : Control, optional
    reconnect : callable, optional
        Given what starts workers, returns what is used instead, such as workers that are there already.
    known : Known, optional
        Results that need not be computed again.

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
    kind, count = cluster.parse_workers(config.workers, insecure=config.insecure)  # before anything slow
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
        progress.tidy_up(config.output)
        return store.read_attributes(config.output)
    _check_budget(config, plan, movie, card)
    create = functools.partial(_create, movie=movie, plan=plan)
    if kind == "array" and isinstance(count, int):
        array.apply_array(config, count, plan.identity, create, control)
        return store.read_attributes(config.output)
    try:
        with _open_run(config, plan, share, [config.movie, model]) as run:
            if config.resume and not run.begun:
                raise UsageError(
                    f"{config.output}: there is nothing to resume. Leave --resume away to start."
                )
            run.prepare(create)
            if known is not None:
                _take_over(known, plan, run)
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
                layers=plan.layers,
                posterior=config.posterior,
                gain=electron_counts(movie),
                member=run.member if isinstance(run, sharing.SharedRun) else None,
            )
            _run_blocks(config, job, plan, run, share, control, reconnect)
            with run.alone("commit") if isinstance(run, sharing.SharedRun) else contextlib.nullcontext():
                if share is None or not already_done(config.output, run.id):
                    _finish(config, plan, movie, card, run, known)
    except PipelineError:
        if share is None or not already_done(config.output, id):
            raise  # else: the others who share the work have finished it
    return store.read_attributes(config.output)


def _finish(
    config: ApplyConfig,
    plan: Plan,
    movie: store.Store,
    card: dict[str, Any],
    run: progress.OutputRun,
    known: Known | None,
) -> None:
    """Give the output, all of whose blocks are done, its attributes, its hashes and its name."""
    attributes = _describe(movie, card, plan, config, run)
    hashes = {layer: progress.hashes(run.done().values(), layer) for layer in plan.layers}
    for layer in plan.layers:
        _check_complete(run.partial / layer, plan.geometry, hashes[layer], movie.shape)
    if known is not None and content_ids(attributes) != known.ids:
        raise VerificationError(
            f"{config.output}: what was computed anew is not what was there, as on another kind of device or "
            "with another version. The store was left as it is; apply the model again with --force."
        )
    run.check()
    if store.VARIANCE in hashes:
        store.record_hashes(run.partial, store.VARIANCE, hashes[store.VARIANCE])
    store.finish(run.partial, store.DENOISED, attributes, hashes[store.DENOISED], record(config))
    run.commit()


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
        return progress.OutputRun(config.output, plan.identity, inputs, force=config.force, command=config)
    return sharing.SharedRun(config.output, plan.identity, inputs, group=share.group, force=config.force)


def _create(path: Path, movie: store.Store, plan: Plan) -> None:
    """An empty store with all arrays that will be written."""
    dtype = np.dtype(np.float32)
    store.create(path, store.DENOISED, movie.shape, dtype, plan.geometry, movie.coordinates, movie.units)
    if store.VARIANCE in plan.layers:
        described = {"units": f"{movie.units}^2", "long_name": "variance of the expected counts"}
        store.add_sharded(path, store.VARIANCE, movie.shape, dtype, plan.geometry, described)


def content_ids(attributes: dict[str, Any]) -> tuple[str, ...]:
    """Ids of the content of all arrays of a denoised store."""
    variance = attributes.get(store.VARIANCE)
    return attributes["id"], *([] if variance is None else [variance["id"]])


def _take_over(known: Known, plan: Plan, run: progress.OutputRun) -> None:
    """Put the sound shards of a store, and markers for the blocks that need no more, into the partial store."""
    done = run.done()
    for block in plan.blocks:
        keys = [
            store.shard_key(region, plan.geometry.shard)
            for region in store.shards_in(block.core, plan.geometry.shard)
        ]
        sound = all(known.hashes.get(layer, {}).keys() >= set(keys) for layer in plan.layers)
        if block.number in done or not sound:
            continue
        hashes = {layer: {key: known.hashes[layer][key] for key in keys} for layer in plan.layers}
        for layer in plan.layers:
            for key in keys:
                store.adopt_shard(_shard_file(known.path / layer, key), _shard_file(run.partial / layer, key))
        progress.mark(run.folder, block.number, _record(hashes, known.device), run.token)


def make_plan(
    config: ApplyConfig, movie: store.Store, card: dict[str, Any], bad: NDArray[np.float32] | None = None
) -> Plan:
    """Blocks, memory and disk; the same for any number of workers."""
    architecture = architecture_of(card)
    laid = lay_out(
        config.tile,
        config.ensemble,
        config.lossless,
        movie.shape,
        movie.geometry.shard[0],
        movie.array.dtype.itemsize,
        architecture,
        2 if config.variance or config.posterior else 1,
    )
    planned = blocks.plan_blocks(movie.shape, laid.core, laid.halo, architecture.stride)
    identity = {
        "step": "apply",
        "movie": movie.id,
        "model": card["sha256"],
        "ensemble": config.ensemble,
        "kept_bits": None if config.lossless else store.KEPT_BITS,
        "core": list(laid.core),
        "halo": [laid.halo.frames, laid.halo.pixels],
        "shard": list(laid.geometry.shard),
        "chunk": list(laid.geometry.chunk),
        "n_blocks": len(planned),
        "profile": store.PROFILE,
        **({} if bad is None else {"stand_ins": store.content_hash(bad)}),
    }
    layers: tuple[str, ...] = (store.DENOISED,)
    if config.variance or config.posterior:
        check_uncertainty(card, movie, config.posterior)
        layers = (store.DENOISED, store.VARIANCE)
        identity |= {"variance": True, "posterior": config.posterior}
    return Plan(identity, planned, laid.geometry, laid.worker_bytes, laid.disk_bytes, layers)


@dataclass(frozen=True)
class Layout:
    """How a movie is cut and what that takes; pure arithmetic, for a movie that nobody opened."""

    geometry: store.Geometry
    core: tuple[int, int, int]
    halo: Halo
    worker_bytes: int
    disk_bytes: int


def lay_out(
    tile: int | None,
    ensemble: int,
    lossless: bool,
    shape: tuple[int, int, int],
    shard_frames: int,
    itemsize: int,
    architecture: Architecture,
    n_layers: int = 1,
) -> Layout:
    """Cut a movie of a shape into blocks for a model."""
    halo = Halo(architecture.window, architecture.spatial_halo)  # not the card's: no one checks that
    geometry = store.Geometry.of(shape, shard_frames)
    if tile is not None:
        geometry = _tiled_geometry(shape, tile, architecture.stride, geometry)
    frames, rows, columns = geometry.shard
    if tile is None:
        rows, columns = _largest_tile(shape, geometry, halo, architecture, itemsize)
    # The largest block lies in the middle.
    height = min(shape[1], rows + (2 * halo.pixels if rows < shape[1] else 0))
    width = min(shape[2], columns + (2 * halo.pixels if columns < shape[2] else 0))
    read = min(shape[0], frames + 2 * halo.frames)
    n_pixels = shape[0] * shape[1] * shape[2]
    return Layout(
        geometry,
        (blocks.core_frames(frames, halo.frames), rows, columns),
        halo,
        _block_bytes(architecture, read, height, width, itemsize, frames, ensemble, n_layers),
        int(n_layers * n_pixels * (3.0 if lossless else 1.1)),
    )


def describe_plan(config: ApplyConfig) -> dict[str, Any]:
    """What ``--dry-run`` prints."""
    cluster.parse_workers(config.workers, insecure=config.insecure)
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
        **_machine_bytes(config, plan),
        "disk_estimate_bytes": plan.disk_bytes,
        "n_files": len(plan.layers)
        * int(np.prod([-(-n // s) for n, s in zip(movie.shape, plan.geometry.shard, strict=True)])),
    }


def _machine_bytes(config: ApplyConfig, plan: Plan) -> dict[str, int]:
    """Peak memory of the driver and its workers, where all are on this machine."""
    kind, count = cluster.parse_workers(config.workers, insecure=config.insecure)
    if kind != "local" or isinstance(count, str):
        return {}
    busy = min(count or budget.n_cores(), len(plan.blocks))
    idle = (count or budget.n_cores()) - busy
    return {"memory_bytes": DRIVER_BYTES + busy * plan.worker_bytes + idle * budget.WORKER_BASE_BYTES}


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
        # As for the largest ensemble: the blocks are the same for all.
        needed = _block_bytes(architecture, n_frames, height, width, itemsize, geometry.shard[0], 16)
        return needed <= TILE_BYTES

    rows, columns = geometry.shard[1:]
    if fits(shape[1], shape[2]):
        return shape[1], shape[2]
    while columns < shape[2] and fits(rows, columns + geometry.shard[2]):
        columns += geometry.shard[2]
    while rows < shape[1] and fits(rows + geometry.shard[1], columns):
        rows += geometry.shard[1]
    return rows, columns


def _block_bytes(
    architecture: Architecture,
    n_frames: int,
    height: int,
    width: int,
    itemsize: int,
    shard_frames: int,
    ensemble: int,
    n_layers: int = 1,
) -> int:
    """Peak memory of a worker: raw frames while more are read, the network on one frame, rows of shards."""
    # Raw frames twice where those of one row are joined to their halo; those of the next row are read meanwhile.
    return (
        budget.WORKER_BASE_BYTES
        + (2 * n_frames + 2 * shard_frames) * height * width * itemsize
        + memory_bytes(architecture, n_frames, height, width, ensemble)
        + 3 * n_layers * shard_frames * height * width * 4
    )


def _check_budget(config: ApplyConfig, plan: Plan, movie: store.Store, card: dict[str, Any]) -> None:
    budget.check_disk(config.output.parent, plan.disk_bytes, str(config.output))
    limit = _worker_limit(config)
    if limit is None or _with_margin(plan) <= limit:
        return
    core = " x ".join(map(str, plan.identity["core"]))
    remedy = _remedy(config, plan, limit, movie, card)
    budget.check_memory(_with_margin(plan), limit, f"a block of {core} and its halo", remedy)


def _with_margin(plan: Plan) -> int:
    return int(MARGIN * plan.worker_bytes)


def _worker_limit(config: ApplyConfig) -> int | None:
    """Memory that a worker may use; None where only its scheduler knows."""
    kind, count = cluster.parse_workers(_workers(config), insecure=config.insecure)
    if kind in ("slurm", "array") and config.worker_memory is None:
        return load_profile(config.profile, "workers").worker_memory_bytes
    if kind != "local" or isinstance(count, str):
        return config.worker_memory
    count = 1 if config.share is not None else count or budget.n_cores()  # a share is this process alone
    share = (budget.machine_memory_bytes() - DRIVER_BYTES) // count
    return share if config.worker_memory is None else min(config.worker_memory, share)


def _remedy(config: ApplyConfig, plan: Plan, limit: int, movie: store.Store, card: dict[str, Any]) -> str:
    """What to change so that the plan fits, looked for and not guessed."""
    found = []
    kind, count = cluster.parse_workers(_workers(config), insecure=config.insecure)
    if kind == "local" and not isinstance(count, str):
        room = budget.machine_memory_bytes() - DRIVER_BYTES
        n_workers = min(room // _with_margin(plan), count or budget.n_cores())
        if n_workers >= 1:
            larger = f" --worker-memory {-(-_with_margin(plan) // 2**20)}MiB" if config.worker_memory else ""
            found.append(f"--workers local:{n_workers}{larger}")
    stride = architecture_of(card).stride
    tile = max(movie.shape[1:]) // 2
    while tile >= max(64, stride):
        tile = tile // stride * stride
        smaller = make_plan(dataclasses.replace(config, tile=tile), movie, card)
        if _with_margin(smaller) <= limit:
            found.append(f"--tile {tile}")
            break
        tile //= 2
    if kind in ("slurm", "array"):
        found.append(f"a profile with memory_gib: {-(-_with_margin(plan) // 2**30) + 1}")
    return f"Use {', or '.join(found)}." if found else "Use a machine with more memory."


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
    least_dose = card.get("settings", {}).get("least_dose", 1.0)  # which it has seen thinned counts of
    if trained and not min(trained) * least_dose**0.5 / 4 < snr < max(trained) * 4:
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
    reconnect: Callable[[Connect], Connect],
) -> None:
    """Hand out the blocks that have no valid marker until all have one."""

    def remaining() -> list[Block]:
        done = run.done()
        # A marker counts only while the shards it names are whole.
        return [
            b for b in plan.blocks if b.number not in done or not _whole(job, plan.geometry, done[b.number])
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

    workers = _workers(config)

    def connect(folder: Path = run.folder) -> Any:
        return cluster.connect(
            workers,
            scratch=folder / "scratch",
            worker_memory_bytes=config.worker_memory,
            profile=config.profile,
            log_dir=folder / "logs",
            stop=control.stop,
            insecure=config.insecure,
        )

    gpus = _gpus(job.device) if workers.startswith("local") else []
    plugin = ModelPlugin(job.model, job.model_id, job.device, gpus)
    task = functools.partial(run_block, job)
    # Worker jobs that were preempted wait in the queue again; they must not lose their place in it.
    patience, resources = driver.NO_WORKERS_S, None
    if config.workers.startswith("slurm:"):
        from .drain import TOKEN

        resources = {TOKEN: 1.0}  # which a worker that is about to leave has no more
        patience = 60.0 * load_profile(config.profile, "workers").queue_wait_min
    outcomes: Iterator[driver.Outcome[Block]]
    if isinstance(run, sharing.SharedRun) and share is not None:
        outcomes = sharing.work(run, share, plan.blocks, task, control)
    else:
        outcomes = driver.drive(
            reconnect(connect), plugin, task, todo, remaining, control, patience, resources
        )
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


def _gpus(device: str) -> list[str]:
    """GPUs of this machine that may be used, by the names that CUDA_VISIBLE_DEVICES has for them."""
    if device == "cpu" or checkpoint.default_device() != "cuda":
        return []
    named = os.environ.get("CUDA_VISIBLE_DEVICES")
    names = named.split(",") if named else map(str, range(torch.cuda.device_count()))
    return list(names)[: torch.cuda.device_count()]


def _workers(config: ApplyConfig) -> str:
    """``--workers``, with ``local`` meaning one for each GPU where there are some; else it is one per core."""
    n_gpus = len(_gpus(config.device)) if config.workers == "local" else 0
    return f"local:{n_gpus}" if n_gpus else config.workers


def _shard_file(array: Path, key: str) -> Path:
    return array.joinpath("c", *key.split("."))


def _whole(job: Job, geometry: store.Geometry, record: dict[str, Any]) -> bool:
    return all(
        store.shard_damage(_shard_file(job.output / layer, key), geometry.shard, geometry.chunk, 1) is None
        for layer in job.layers
        for key in progress.hashes([record], layer)
    )


def _check_complete(
    array: Path, geometry: store.Geometry, hashes: dict[str, str], shape: tuple[int, int, int]
) -> None:
    n_shards = int(np.prod([-(-n // s) for n, s in zip(shape, geometry.shard, strict=True)]))
    if len(hashes) != n_shards:
        raise PipelineError(
            f"{array}: {n_shards - len(hashes)} of {n_shards} shards have no marker. Run the same command again."
        )
    for key in hashes:
        file = _shard_file(array, key)
        damage = store.shard_damage(file, geometry.shard, geometry.chunk, 1)
        if damage is not None:
            raise PipelineError(f"{file} {damage}. Run the same command again to redo it.")


def _describe(
    movie: store.Store, card: dict[str, Any], plan: Plan, config: ApplyConfig, run: progress.OutputRun
) -> dict[str, Any]:
    records = run.done().values()

    def content(layer: str) -> str:
        array = zarr.open_array(run.partial / layer, mode="r")
        return store.content_id(layer, array, progress.hashes(records, layer))

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
        "id": content(store.DENOISED),
        # Only where there is one, and whether the own count of a pixel has joined in: then it is not blind.
        **({store.VARIANCE: {"id": content(store.VARIANCE)}} if store.VARIANCE in plan.layers else {}),
        "posterior": config.posterior,
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
    runtime.prepare(n_threads=1)
    chosen = checkpoint.default_device() if device == "auto" else device
    loaded = checkpoint.load_model(model, model_id)
    loaded.network.to(chosen, memory_format=torch.channels_last)  # type: ignore[call-overload]
    return loaded, chosen


def run_block(job: Job, block: Block) -> int:
    """Denoise and write one block; pure and idempotent, so that it may run twice. Returns its number."""
    progress.check_lease(job.folder, job.token, job.member)
    model, device = load(job.model, job.model_id, job.device)
    # A GPU keeps more than one core busy with its input and output; of CPU workers there is one per core.
    n_threads = 1 if device == "cpu" else max(1, budget.n_cores() // torch.cuda.device_count())
    zarr.config.set({"threading.max_workers": n_threads})
    source = zarr.open_array(job.movie / store.MOVIE, mode="r")
    targets = {layer: zarr.open_array(job.output / layer, mode="r+") for layer in job.layers}
    hashes: dict[str, dict[str, str]] = {layer: {} for layer in job.layers}
    # One row of shards is written, and waits for the disk, while the next is computed.
    with ThreadPoolExecutor(n_threads, thread_name_prefix="write") as writers:
        writing: list[tuple[str, Future[tuple[str, str]]]] = []

        def collect() -> None:
            for layer, shard in writing:
                key, digest = shard.result()
                hashes[layer][key] = digest

        shard_frames = targets[store.DENOISED].shards[0]
        for frames, results in denoise_block(model, source, job, block, device, shard_frames):
            row = Region(frames, block.core.rows, block.core.columns)
            collect()
            writing = [
                (
                    layer,
                    writers.submit(
                        _write_shard, job, target, layer, region, result[region.within(row).slices]
                    ),
                )
                for (layer, target), result in zip(targets.items(), results, strict=True)
                for region in store.shards_in(row, target.shards)
            ]
        collect()
    progress.mark(job.folder, block.number, _record(hashes, _device_name(device)), job.token, job.member)
    return block.number


def _record(hashes: dict[str, dict[str, str]], device: str) -> dict[str, Any]:
    """What a marker says: hashes of the denoised shards under ``shards``, of others under the name of the array."""
    others = {layer: found for layer, found in hashes.items() if layer != store.DENOISED}
    return {"shards": hashes[store.DENOISED], **others, "device": device}


def _write_shard(
    job: Job, target: Any, layer: str, region: Region, part: NDArray[np.float32]
) -> tuple[str, str]:
    """Write one shard of one array; its grid position and hash."""
    rounded = (
        np.ascontiguousarray(part) if job.kept_bits is None else store.round_mantissa(part, job.kept_bits)
    )
    allowed = functools.partial(progress.check_lease, job.folder, job.token, job.member)
    return store.write_shard(job.output / layer, target, region, rounded, allowed)


def denoise_block(
    model: checkpoint.Model, source: Any, job: Job, block: Block, device: str, shard_frames: int
) -> Iterator[tuple[tuple[int, int], NDArray[np.float32]]]:
    """Denoised core of a block, one row of shards after the other.

    Yields
    ------
    frames : tuple of int
        First and last (excluded) frame.
    result : ndarray, shape (n_layers, n_frames, core rows, core columns), float32
        Of every one of ``job.layers``.
    """
    halo = model.network.architecture.window
    rows, columns = block.padded.rows, block.padded.columns
    core_rows = (block.core.rows[0] - rows[0], block.core.rows[1] - rows[0])
    core_columns = (block.core.columns[0] - columns[0], block.core.columns[1] - columns[0])
    n_frames = source.shape[0]
    bad: NDArray[np.float32] | None = None
    if job.stand_ins is not None:
        bad = np.array(np.load(job.stand_ins, mmap_mode="r")[slice(*rows), slice(*columns)])
    for start, stop, first, held in _rows_of_frames(
        functools.partial(_read, job.movie, source), block, halo, shard_frames
    ):
        tile = Tile(n_frames, first, core_rows, core_columns)
        core = (core_rows[1] - core_rows[0], core_columns[1] - core_columns[0])
        result = np.empty((len(job.layers), stop - start, *core), np.float32)
        for number, layers in enumerate(_denoised(model, held, tile, job, range(start, stop), device, bad)):
            for layer, frame in enumerate(layers):
                result[layer, number] = frame
        yield (start, stop), result


def _denoised(
    model: checkpoint.Model,
    held: NDArray[Any],
    tile: Tile,
    job: Job,
    frames: range,
    device: str,
    bad: NDArray[np.float32] | None,
) -> Iterator[tuple[NDArray[np.float32], ...]]:
    """Every layer of a job, frame by frame."""
    given: dict[str, Any] = {"ensemble": job.ensemble, "device": device, "stand_ins": bad}
    if store.VARIANCE not in job.layers:
        for frame in denoise(model.network, held, tile, job.scale, frames, **given):
            yield (frame,)
    else:
        assert isinstance(model.network, SplitBlind)
        given |= {"gain": job.gain, "own_counts": job.posterior}
        yield from denoise_with_variance(model.network, held, tile, job.scale, frames, **given)


def _rows_of_frames(
    read_region: Callable[[Region], NDArray[Any]], block: Block, halo: int, shard_frames: int
) -> Iterator[tuple[int, int, int, NDArray[Any]]]:
    """Raw frames of a block, one row of shards with its halo after the other; the next is read meanwhile.

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

    spans = [(begin + a, begin + b) for a, b in blocks.spans(end - begin, shard_frames)]
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


def _read(movie: Path, source: Any, region: Region) -> NDArray[Any]:
    """Counts of a movie; a missing shard, which reads as the type's maximum, is refused."""
    for shard in store.shards_touching(region, source.shape, source.shards):
        key = store.shard_key(shard, source.shards)
        file = (movie / store.MOVIE).joinpath("c", *key.split("."))
        used = store.n_chunks(shard, source.chunks)
        damage = patiently(functools.partial(store.shard_damage, file, source.shards, source.chunks, used))
        if damage is not None:
            raise InputError(file, f"{damage}. Verify the movie store, and repair it from the raw movie.")

    def read() -> NDArray[Any]:
        maybe_crash("movie.read")
        return np.asarray(source[region.slices])

    return patiently(read)


def _device_name(device: str) -> str:
    return torch.cuda.get_device_name() if device == "cuda" else "cpu"
