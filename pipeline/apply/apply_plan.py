"""The plan of apply: blocks, memory and disk, known before a worker starts. Pure but for looking at the machine."""

from __future__ import annotations

import dataclasses
import math
import os
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from tdenoise.inference.denoising import ORDER
from tdenoise.inference.evidence import corners
from tdenoise.inference.last_word import RULE
from tdenoise.inference.memory import halo_with_shift, memory_bytes
from tdenoise.network import checkpoint
from tdenoise.network.card import ModelCard
from tdenoise.network.registry import Architecture, architecture_of
from tdenoise.noise.brightness import Brightness
from tdenoise.noise.drift import largest_shift
from tdenoise.noise.far_frames import n_sections

from ..errors import InputError, UsageError
from ..inputs import far_sums
from ..inputs.bad_pixels import movie_stand_ins
from ..inputs.gamma_head import check_uncertainty
from ..inputs.model_fit import movie_brightness, movie_drift, movie_scale, open_model
from ..resources import budget
from ..settings.denoise_settings import ApplyConfig, ApplyManyConfig
from ..settings.workers import LOCAL, Workers
from ..slurm.site_profile import load_profile
from ..store import blocks, integrity, store
from ..store.blocks import Block, Halo

TILE_BYTES = int(2.7 * 2**30)  # memory that the automatic tile size allows one block
MARGIN = 1.15  # over the predicted memory of a worker, that it must have: one that exceeds its limit is ended
LARGEST_SCENE = 4.0  # over the field: beyond it, hardly any place is seen for long
DRAFT_BYTES = 2.5  # of a pixel of the draft and its sums, on the disk until the output is whole
DRIVER_BYTES = 300 * 2**20  # the driver, the scheduler in it, and what watches the workers
# The driver finds and writes what is given back: bytes per pixel of the scene, and per pixel of the frames that one
# thread holds; as many threads as fit into the last of these.
SCENE_BYTES, PIECE_BYTES, PIECES_BYTES = 150, 32, 2 * 2**30
PIECE_FRAMES = 16


@dataclass(frozen=True)
class Plan:
    """Everything that `apply` will do, known before a worker starts."""

    identity: dict[str, Any]  # all that decides the bytes
    blocks: list[Block]
    geometry: store.Geometry
    worker_bytes: int  # memory that the largest block needs
    disk_bytes: int
    layers: tuple[str, ...]  # names of the arrays to write
    drift: NDArray[np.float64] | None  # that the windows follow [pixels], (n_frames, 2)
    brightness: Brightness | None  # None where all frames are there and equally bright
    gives_back: bool  # whether the counts have the last word; see `given_back`
    sees_far: bool  # whether the network sees far frames, which have to be summed first
    giving_back_bytes: int  # memory of the driver while it gives back

    @property
    def drafted(self) -> tuple[str, ...]:
        """Names of the arrays that blocks write."""
        return (store.DRAFT, *self.layers[1:]) if self.gives_back else self.layers


def make_plan(
    config: ApplyConfig, movie: store.Store, card: ModelCard, bad: NDArray[np.float32] | None = None
) -> Plan:
    """Blocks, memory and disk; the same for any number of workers."""
    architecture = architecture_of(card)
    _check_far_frames(movie, architecture)
    drift = followed_drift(config, movie, card)
    brightness = movie_brightness(movie)
    gives_back = not config.draft_only and may_give_back(movie.shape, drift)
    laid = lay_out(
        config.tile,
        config.ensemble,
        config.lossless,
        movie.shape,
        movie.geometry.shard[0],
        movie.array.dtype.itemsize,
        architecture,
        2 if config.variance else 1,
        largest_shift(drift, architecture.window),
    )
    planned = blocks.plan_blocks(movie.shape, laid.core, laid.halo, architecture.stride)
    identity = {
        "step": "apply",
        "movie": movie.id,
        "model": card["sha256"],
        "ensemble": config.ensemble,
        "symmetries": ORDER,
        "precision": config.precision,
        "kept_bits": None if config.lossless else store.KEPT_BITS,
        "core": list(laid.core),
        "halo": [laid.halo.frames, laid.halo.pixels],
        "shard": list(laid.geometry.shard),
        "chunk": list(laid.geometry.chunk),
        "n_blocks": len(planned),
        "profile": store.PROFILE,
        **({} if bad is None else {"stand_ins": integrity.content_hash(bad)}),
        **({} if drift is None else {"drift": integrity.content_hash(drift)}),
        **({} if brightness is None else {"brightness": integrity.content_hash(brightness.stacked)}),
        "gives_back": RULE if gives_back else False,
    }
    layers: tuple[str, ...] = (store.DENOISED,)
    if config.variance:
        check_uncertainty(card, movie)
        layers = (store.DENOISED, store.VARIANCE)
        identity["variance"] = True
    return Plan(
        identity,
        planned,
        laid.geometry,
        laid.worker_bytes,
        laid.disk_bytes + (far_sums.disk_bytes(movie.shape) if architecture.far_bins else 0),
        layers,
        drift,
        brightness,
        gives_back,
        bool(architecture.far_bins),
        _giving_back_bytes(movie.shape, drift, laid.geometry) if gives_back else 0,
    )


def _check_far_frames(movie: store.Store, architecture: Architecture) -> None:
    """Refuse a movie that has none, for a network that sees them."""
    if architecture.far_bins and n_sections(movie.shape[0]) < 2:
        raise InputError(
            movie.path,
            f"has {movie.shape[0]} frames, and the model sees frames that lie further away. Train without "
            "--far-frames, or use the model that comes with tdenoise.",
        )


def may_give_back(shape: tuple[int, int, int], drift: NDArray[np.float64] | None) -> bool:
    """Whether places stay in the field for so long that sums over time tell anything."""
    _, scene = corners(drift, shape[0], shape[1:])
    return scene[0] * scene[1] <= LARGEST_SCENE * shape[1] * shape[2]


def followed_drift(
    config: ApplyConfig | ApplyManyConfig, movie: store.Store, card: ModelCard
) -> NDArray[np.float64] | None:
    """The drift that the windows of a model follow: as it learned to see."""
    ignored = config.ignore_drift or card.get("ignore_drift", False)
    return None if ignored else movie_drift(movie, architecture_of(card))


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
    shift: int = 0,
) -> Layout:
    """Cut a movie of a shape into blocks for a model, which sees frames shifted by so many pixels at most."""
    # Not the card's halo: no one checks that.
    halo = Halo(architecture.window, halo_with_shift(architecture, shift))
    geometry = store.Geometry.of(shape, _long(shape, shard_frames))
    if tile is not None:
        geometry = _tiled_geometry(shape, tile, architecture.stride, geometry)
    frames, rows, columns = geometry.shard
    if tile is None:
        rows, columns = _largest_tile(shape, geometry, halo, architecture, itemsize, shift)
    # The largest block lies in the middle.
    height = min(shape[1], rows + (2 * halo.pixels if rows < shape[1] else 0))
    width = min(shape[2], columns + (2 * halo.pixels if columns < shape[2] else 0))
    read = min(shape[0], min(frames, blocks.ROW_FRAMES) + 2 * halo.frames)
    n_pixels = shape[0] * shape[1] * shape[2]
    # Of the movie's shards, those frames that are compared with their hash at a time.
    plane = math.prod(min(n, store.MOVIE_SHARD_PIXELS) for n in shape[1:])
    compared = store.CHUNK_FRAMES * plane * itemsize
    return Layout(
        geometry,
        (blocks.core_frames(frames, halo.frames), rows, columns),
        halo,
        _block_bytes(architecture, read, height, width, itemsize, frames, ensemble, shift, n_layers, lossless)
        + compared,
        int(n_pixels * (n_layers * _packed_bytes(lossless) + DRAFT_BYTES)),
    )


def _packed_bytes(lossless: bool) -> float:
    """Of a pixel of a denoised movie on the disk."""
    return 3.0 if lossless else 1.1


def _long(shape: tuple[int, int, int], frames: int) -> int:
    """Frames of a shard of a denoised movie: the more the fewer files, while there are blocks enough for many workers.

    Examples
    --------
    >>> _long((4470, 4096, 4096), 32), _long((1000, 512, 512), 32)
    (128, 32)
    """
    per_row = math.prod(-(-n // store.SHARD_PIXELS) for n in shape[1:])
    while 2 * frames <= store.LONG_SHARD_FRAMES and shape[0] // (2 * frames) * per_row >= store.MANY_SHARDS:
        frames *= 2
    return frames


def describe_plan(config: ApplyConfig) -> dict[str, Any]:
    """What ``--dry-run`` prints."""
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
    if config.workers.kind != "local":
        return {}
    count = config.workers.count or budget.n_cores()
    busy = min(count, len(plan.blocks))
    idle = count - busy
    at_work = busy * plan.worker_bytes + idle * budget.WORKER_BASE_BYTES
    giving_back = plan.giving_back_bytes + count * budget.WORKER_BASE_BYTES
    return {"memory_bytes": DRIVER_BYTES + max(at_work, giving_back)}


def giving_back_threads(shard: tuple[int, int, int]) -> int:
    """Shards of the result that are made at once."""
    return max(1, min(budget.n_cores(), PIECES_BYTES // (PIECE_BYTES * PIECE_FRAMES * shard[1] * shard[2])))


def _giving_back_bytes(
    shape: tuple[int, int, int], drift: NDArray[np.float64] | None, geometry: store.Geometry
) -> int:
    """Memory of the process that gives back, whatever the length of the movie."""
    _, scene = corners(drift, shape[0], shape[1:])
    frames = PIECE_BYTES * PIECE_FRAMES * geometry.shard[1] * geometry.shard[2]
    return SCENE_BYTES * scene[0] * scene[1] + giving_back_threads(geometry.shard) * frames


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
    shift: int,
) -> tuple[int, int]:
    """Whole frames where they fit `TILE_BYTES`, else as many shards as do; one shard at least."""
    n_frames = min(geometry.shard[0], blocks.ROW_FRAMES) + 2 * halo.frames

    def fits(rows: int, columns: int) -> bool:
        height = min(shape[1], rows + (2 * halo.pixels if rows < shape[1] else 0))
        width = min(shape[2], columns + (2 * halo.pixels if columns < shape[2] else 0))
        # As for the largest ensemble: the blocks are the same for all.
        needed = _block_bytes(architecture, n_frames, height, width, itemsize, geometry.shard[0], 16, shift)
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
    shift: int,
    n_layers: int = 1,
    lossless: bool = False,
) -> int:
    """Peak memory of a worker: raw frames while more are read, the network on one frame, rows of frames, shards."""
    row = min(shard_frames, blocks.ROW_FRAMES)
    packed = 0 if shard_frames == row else int(_packed_bytes(lossless) * shard_frames)
    # Raw frames twice where those of one row are joined to their halo; those of the next row are read meanwhile.
    return (
        budget.WORKER_BASE_BYTES
        + (2 * n_frames + 2 * row) * height * width * itemsize
        + memory_bytes(architecture, n_frames, height, width, ensemble, shift)
        + n_layers * (3 * row * 4 + packed) * height * width
    )


def check_budget(config: ApplyConfig, plan: Plan, movie: store.Store, card: ModelCard) -> None:
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
    workers = workers_of(config)
    if workers.system is not None and config.worker_memory is None:
        return load_profile(config.profile, "workers").worker_memory_bytes
    if workers.kind != "local":
        return config.worker_memory
    alone = config.share is not None  # a share is this process
    count = 1 if alone else workers.count or budget.n_cores()
    share = (budget.machine_memory_bytes() - DRIVER_BYTES) // count
    return share if config.worker_memory is None else min(config.worker_memory, share)


def _remedy(config: ApplyConfig, plan: Plan, limit: int, movie: store.Store, card: ModelCard) -> str:
    """What to change so that the plan fits, looked for and not guessed."""
    found = []
    workers = workers_of(config)
    if workers.kind == "local":
        room = budget.machine_memory_bytes() - DRIVER_BYTES
        n_workers = min(room // _with_margin(plan), workers.count or budget.n_cores())
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
    if workers.system is not None:
        found.append(f"a profile with memory_gib: {-(-_with_margin(plan) // 2**30) + 1}")
    return f"Use {', or '.join(found)}." if found else "Use a machine with more memory."


def usable_gpus(device: str) -> list[str]:
    """GPUs of this machine that may be used, by the names that CUDA_VISIBLE_DEVICES has for them."""
    if device == "cpu" or checkpoint.default_device() != "cuda":
        return []
    named = os.environ.get("CUDA_VISIBLE_DEVICES")
    names = named.split(",") if named else map(str, range(torch.cuda.device_count()))
    return list(names)[: torch.cuda.device_count()]


def workers_of(config: ApplyConfig) -> Workers:
    """``--workers``, with ``local`` meaning one for each GPU where there are some; else it is one per core."""
    n_gpus = len(usable_gpus(config.device)) if config.workers == LOCAL else 0
    if (
        config.workers == LOCAL
        and config.device != "cpu"
        and checkpoint.default_device() not in ("cpu", "cuda")
    ):
        n_gpus = 1  # which workers could only share
    return Workers("local", n_gpus) if n_gpus else config.workers
