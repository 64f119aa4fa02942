"""A few seconds of the real work on a part of this movie, on this machine: how long each kind of it takes.

Nothing here is a constant of a machine: what is told ahead of a step follows from what was measured just now. All is
written into a temporary folder, which goes.
"""

from __future__ import annotations

import hashlib
import subprocess
import sys
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
import zarr

from tdenoise.inference.memory import CPU_PIXELS, RUN
from tdenoise.network import checkpoint, torch_setup
from tdenoise.network.card import ModelCard

from ..apply.apply_plan import followed_drift
from ..apply.block_work import Job, denoise_block
from ..evaluate.report import write_report
from ..ingest.ingest import ingest
from ..ingest.ingest_plan import open_movie, select
from ..inputs.model_fit import movie_brightness, movie_scale
from ..settings.denoise_settings import ApplyConfig
from ..settings.ingest_settings import IngestConfig
from ..settings.result_settings import ReportConfig
from ..step_control import Control
from ..store import store, writing
from ..store.blocks import Block, Region

ENOUGH_S = 0.7  # that a part must take to be told from the noise of the clock
CUT_BYTES, CUT_FRAMES = 48 * 2**20, 96  # of a raw movie that is ingested, at most
HASHED_BYTES = 32 * 2**20
SMALLEST = 64  # rows and columns of the first part that is tried [pixels]

Clock = Callable[[], float]


@dataclass(frozen=True)
class Ingested:
    """Of an ingest: what it takes however short the movie is, every further frame, and to hash the raw file."""

    n_frames: int
    first_s: float  # with all that is done once
    frame_s: float
    hash_byte_s: float


@dataclass(frozen=True)
class Denoised:
    """Of the network on this movie: seconds for one pixel of one frame, while as many others are at work."""

    fixed_s: float  # whatever the number of passes
    pass_s: float
    written_s: float  # to pack, write and read back, for one pixel of one frame
    start_s: float  # of a process

    def pixel_s(self, ensemble: int) -> float:
        """With so many passes."""
        return self.fixed_s + ensemble * self.pass_s


@dataclass(frozen=True)
class Reported:
    """Of a report: what it reads frame by frame, and the rest."""

    pixel_s: float
    rest_s: float


def try_ingest(config: IngestConfig, folder: Path, clock: Clock = time.perf_counter) -> tuple[Ingested, Path]:
    """Ingest two beginnings of a raw movie for real; what was measured, and the store of the longer one."""
    with open_movie(config) as reader:
        chosen = select(reader.info, config)
        itemsize = reader.info.dtype.itemsize
    group = config.group
    frame_bytes = itemsize * int(np.prod(chosen.shape[1:])) * group
    most = max(6, min(CUT_FRAMES, CUT_BYTES // max(1, frame_bytes)))
    n = min(chosen.shape[0] // group, most)

    def timed(n_frames: int, name: str) -> float:
        begins = chosen.frames[0]
        cut = replace(
            config, frames=(begins, begins + n_frames * group), output=folder / f"{name}.zarr", force=False
        )
        before = clock()
        ingest(cut, held=open_movie(cut))
        return clock() - before

    half = max(3, n // 2)
    first = timed(half, "first")
    again, whole = timed(half, "again"), timed(n, "cut")
    slope = max(0.0, whole - again) / max(1, n - half)
    return Ingested(half, first, slope, _hash_s(clock)), folder / "cut.zarr"


def _hash_s(clock: Clock) -> float:
    data = bytes(HASHED_BYTES)
    before = clock()
    hashlib.sha256(data).digest()
    return (clock() - before) / HASHED_BYTES


def try_denoise(
    config: ApplyConfig,
    card: ModelCard,
    folder: Path,
    device: str,
    n_at_once: int,
    clock: Clock = time.perf_counter,
) -> Denoised:
    """Denoise a part of a movie with one pass, and with as many as are asked for, as often at once as workers do."""
    movie = store.open_store(config.movie, store.MOVIE)
    model = config.model or checkpoint.BASE
    loaded = checkpoint.load_model(model, card["sha256"])
    loaded.network.to(device, memory_format=torch.channels_last)  # type: ignore[call-overload]
    job = _job(config, movie, card, folder, device)
    side, most = SMALLEST, min(*movie.shape[1:])
    several = config.ensemble if config.ensemble > 1 else 2

    def timed(ensemble: int) -> tuple[float, int]:
        block = _part(movie.shape, side)
        before = clock()
        with ThreadPoolExecutor(n_at_once) as pool:
            for found in [
                pool.submit(_denoise, loaded, movie, replace(job, ensemble=ensemble), block, device)
                for _ in range(n_at_once)
            ]:
                found.result()
        n_pixels = int(np.prod(block.core.shape)) * n_at_once
        return (clock() - before) / n_pixels, n_pixels

    with torch_setup.restored():
        torch_setup.prepare(n_threads=1)
        timed(1)  # what is done once
        while True:
            one, n_pixels = timed(1)
            if one * n_pixels >= ENOUGH_S or side >= most or 4 * side**2 > CPU_PIXELS:
                break
            side = min(most, 2 * side)
        many, _ = timed(several)
    # Of `n_at_once` parts at once: seconds of each of them.
    slope = max(0.0, many - one) / (several - 1)
    written = _written_s(
        _denoise(loaded, movie, replace(job, ensemble=1), _part(movie.shape, side), device), folder, clock
    )
    return Denoised(n_at_once * max(0.0, one - slope), n_at_once * slope, written, start_s(clock))


def _job(config: ApplyConfig, movie: store.Store, card: ModelCard, folder: Path, device: str) -> Job:
    drift, brightness = followed_drift(config, movie, card), movie_brightness(movie)

    def save(name: str, values: Any) -> Path | None:
        if values is None:
            return None
        np.save(folder / name, values)
        return folder / f"{name}.npy"

    return Job(
        movie=movie.path,
        output=folder,
        folder=folder,
        token="",
        model=config.model or checkpoint.BASE,
        model_id=card["sha256"],
        scale=movie_scale(movie, card),
        ensemble=1,
        precision=config.precision,
        kept_bits=None if config.lossless else store.KEPT_BITS,
        device=device,
        drift=save("drift", drift),
        brightness=save("brightness", None if brightness is None else brightness.stacked),
    )


def _part(shape: tuple[int, int, int], side: int) -> Block:
    """A run of frames in the middle of a movie, of a square in the middle of the field, read with all their windows."""
    n, height, width = shape
    run = min(RUN, n)
    first = (n - run) // 2
    # A tile begins on the stride of the network, whatever that is.
    rows, columns = ((0, min(size, side)) for size in (height, width))
    core = Region((first, first + run), rows, columns)
    return Block(0, core, Region((max(0, first - 2 * RUN), min(n, first + run + 2 * RUN)), rows, columns))


def _denoise(loaded: checkpoint.Model, movie: store.Store, job: Job, block: Block, device: str) -> Any:
    """The denoised core of a block."""
    found = [result[0] for _, _, result in denoise_block(loaded, movie.array, job, block, device, RUN)]
    return np.concatenate(found)


def _written_s(frames: Any, folder: Path, clock: Clock) -> float:
    """Seconds to write a pixel of a denoised frame as `apply` does, which reads it back."""
    shape = frames.shape
    geometry = store.Geometry.of(shape)
    plain = store.Coordinates(None, None)
    place = folder / "written.zarr"
    writing.create(place, store.DENOISED, shape, np.dtype(np.float32), geometry, plain, "count")
    array = zarr.open_array(place / store.DENOISED, mode="r+")
    before = clock()
    whole = Region(*((0, size) for size in shape))
    writing.write_shard(place / store.DENOISED, array, whole, writing.round_mantissa(frames, store.KEPT_BITS))
    return float((clock() - before) / frames.size)


def start_s(clock: Clock, module: str = "apply.block_work") -> float:
    """Seconds that a worker, or a command, takes until it can begin."""
    before = clock()
    subprocess.run([sys.executable, "-P", "-c", f"import tdenoise_pipeline.{module}"], check=True)
    return clock() - before


def try_report(
    movie: Path, denoised: Path, model: Path, folder: Path, clock: Clock = time.perf_counter
) -> Reported:
    """Write the report of a short movie; what it spent on frames, and on the rest."""
    marks: list[float] = []

    def note(what: str, done: int, total: int) -> None:
        if what == "evaluate":
            marks.append(clock())

    before = clock()
    settings = ReportConfig(
        denoised=denoised, movie=movie, output=folder / "report.html", model=model, force=True
    )
    write_report(settings, Control(progress=note))
    spent, slabs = clock() - before, marks[-1] - marks[0]
    return Reported(slabs / int(np.prod(store.open_store(movie, store.MOVIE).shape)), spent - slabs)
