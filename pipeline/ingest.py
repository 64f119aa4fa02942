"""Ingest: a raw movie becomes a movie store, in one pass and bounded memory."""

from __future__ import annotations

import hashlib
import json
import logging
import threading
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import zarr
from numpy.typing import NDArray

from tdenoise.noise import NoiseAccumulator, NoiseStatistics, find_hot_pixels

from . import budget, progress, store
from .blocks import Region, spans
from .config import IngestConfig, RunConfig
from .control import Control
from .errors import InputError, UsageError
from .readers import MovieInfo, Reader, open_raw
from .version import VERSION

log = logging.getLogger(__name__)

SLAB_BYTES = 512 * 2**20  # frames of one shard in time, held at once by one thread
NOISE_PAIRS = 4  # pairs of successive frames measured per slab, at least
NOISE_BUDGET = 2**20  # pixels measured per slab, where frames are small
NOISE_SLABS = 32  # slabs measured per movie, evenly spread
MAX_HOT_PIXELS = 1000  # named in the store
NOISE_PIXELS = 512  # extent of the part measured, in the middle


@dataclass(frozen=True)
class Selection:
    """The part of a raw movie that is kept."""

    frames: tuple[int, int]
    rows: tuple[int, int]
    columns: tuple[int, int]

    @property
    def shape(self) -> tuple[int, int, int]:
        return Region(self.frames, self.rows, self.columns).shape


def ingest(config: IngestConfig, control: Control | None = None) -> dict[str, Any]:
    """Write a movie store from a raw file; safe to stop and start again.

    Parameters
    ----------
    config : IngestConfig
    control : Control, optional

    Returns
    -------
    dict
        What the store says about itself (its ``tdenoise`` attributes).

    Raises
    ------
    InputError
        If the raw file is missing, damaged or not a movie, or changes while it is read.
    """
    control = control or Control()
    with open_raw(config.raw, allow_truncated=config.allow_truncated) as reader:
        chosen = select(reader.info, config)
        geometry = plan_geometry(chosen.shape, reader.info.dtype)
        before = config.raw.stat()
        plan = make_plan(config, reader.info, chosen, geometry, before.st_size, before.st_mtime_ns)
        if already_done(config.output, progress.plan_id(plan)) and not config.force:
            return store.read_attributes(config.output)
        budget.check_disk(config.output.parent, _disk_estimate(chosen, reader.info.dtype), str(config.output))
        with progress.OutputRun(config.output, plan, [config.raw], force=config.force) as run:
            run.prepare(lambda path: _create(path, config, reader.info, chosen, geometry))
            digest = _Digest(config.raw)
            records = _copy(reader, chosen, geometry, run, control)
            sha256 = digest.result(control)
            after = config.raw.stat()
            if (after.st_size, after.st_mtime_ns) != (before.st_size, before.st_mtime_ns):
                raise InputError(
                    config.raw, "changed while it was read. Ingest it again once it is complete."
                )
            array = zarr.open_array(run.partial / store.MOVIE, mode="r")
            hashes = progress.hashes(records)
            attributes = describe(config, reader.info, chosen, records, sha256)
            attributes |= {"plan": run.id, "id": store.content_id(store.MOVIE, array, hashes)}
            store.finish(run.partial, store.MOVIE, attributes, hashes)
            run.commit()
    for warning in attributes["warnings"]:
        log.warning("%s", warning)
    return store.read_attributes(config.output)


def select(info: MovieInfo, config: IngestConfig | RunConfig) -> Selection:
    """The frames and the field that the settings keep, checked against the movie."""
    rows, columns = config.roi or ((0, None), (0, None))
    chosen = []
    wanted = (config.frames or (0, None), rows, columns)
    for (start, stop), size, name in zip(wanted, info.shape, ("frames", "rows", "columns"), strict=True):
        stop = size if stop is None else stop
        if stop > size or start >= stop:
            raise UsageError(f"{name} {start}:{stop} are not all in the movie, which has {size} {name}.")
        chosen.append((start, stop))
    selection = Selection(*chosen)
    if selection.shape[0] < 3:
        raise InputError(
            config.raw,
            f"has {selection.shape[0]} frame(s) to ingest; a movie needs at least 3, for a frame is denoised "
            "from its neighbours.",
        )
    return selection


def plan_geometry(shape: tuple[int, int, int], dtype: np.dtype[Any]) -> store.Geometry:
    """Shards of the standard size, shorter in time where the frames are so large that a slab would not fit."""
    frames = store.SHARD_FRAMES
    while frames > store.CHUNK_FRAMES and frames * shape[1] * shape[2] * dtype.itemsize > SLAB_BYTES:
        frames //= 2
    return store.Geometry.of(shape, frames)


def make_plan(
    config: IngestConfig,
    info: MovieInfo,
    chosen: Selection,
    geometry: store.Geometry,
    n_bytes: int,
    mtime_ns: int,
) -> dict[str, Any]:
    """All that decides the bytes of the movie store."""
    return {
        "step": "ingest",
        "raw": {"name": config.raw.name, "bytes": n_bytes, "mtime_ns": mtime_ns},
        "format": info.format,
        "shape": list(info.shape),
        "dtype": info.dtype.str,
        "selection": [list(chosen.frames), list(chosen.rows), list(chosen.columns)],
        "calibration": [config.frame_time, config.pixel_size, config.counts_per_electron],
        "shard": list(geometry.shard),
        "chunk": list(geometry.chunk),
        "n_blocks": -(-chosen.shape[0] // geometry.shard[0]),
        "profile": store.PROFILE,
    }


def already_done(output: Path, plan: str) -> bool:
    """Whether an output is there and was made by this very plan."""
    try:
        return bool(store.read_attributes(output).get("plan") == plan)
    except InputError:
        return False


def calibration(config: IngestConfig, info: MovieInfo, chosen: Selection) -> store.Coordinates:
    """Settings where they are given, else what the file says, else unknown; counted from the raw movie's start."""
    pixel = (config.pixel_size, config.pixel_size) if config.pixel_size else info.pixel_size_nm
    first = (chosen.frames[0], chosen.rows[0], chosen.columns[0])
    return store.Coordinates(config.frame_time or info.frame_time_s, pixel, first)


def _create(
    path: Path, config: IngestConfig, info: MovieInfo, chosen: Selection, geometry: store.Geometry
) -> None:
    units = "electron" if config.counts_per_electron == 1.0 else "count"
    store.create(
        path, store.MOVIE, chosen.shape, info.dtype, geometry, calibration(config, info, chosen), units
    )


def _disk_estimate(chosen: Selection, dtype: np.dtype[Any]) -> int:
    """Half of the raw size: counts shrink 2 to 8 times, floats of a camera less."""
    return int(np.prod(chosen.shape)) * dtype.itemsize // (1 if dtype.kind == "f" else 2)


def _copy(
    reader: Reader, chosen: Selection, geometry: store.Geometry, run: progress.OutputRun, control: Control
) -> list[dict[str, Any]]:
    """Copy slabs (all shards of one stretch of time), some at once; return the markers of all of them."""
    array = zarr.open_array(run.partial / store.MOVIE, mode="r+")
    slabs = list(spans(chosen.shape[0], geometry.shard[0]))
    records = run.done()
    todo = [(number, slab) for number, slab in enumerate(slabs) if number not in records]
    measured = {int(i) for i in np.linspace(0, len(slabs) - 1, NOISE_SLABS).round()}
    n_threads = min(budget.n_cores(), 8)
    control.progress("ingest", len(records), len(slabs))

    def work(number: int, slab: tuple[int, int]) -> tuple[int, dict[str, Any]]:
        record = _copy_slab(reader, chosen, array, run.partial / store.MOVIE, slab, number in measured)
        progress.mark(run.folder, number, record)
        return number, record

    # At most one slab per thread is in memory; a failure or a stop lets those in hand finish.
    with ThreadPoolExecutor(n_threads, thread_name_prefix="ingest") as pool:
        running: set[Future[tuple[int, dict[str, Any]]]] = set()
        while todo or running:
            while todo and len(running) < n_threads and not control.stop.is_set():
                running.add(pool.submit(work, *todo.pop(0)))
            if not running:
                control.check("ingest")
            finished, running = wait(running, return_when=FIRST_COMPLETED)
            for future in finished:
                number, record = future.result()
                records[number] = record
            control.progress("ingest", len(records), len(slabs))
    return [records[number] for number in range(len(slabs))]


def _copy_slab(
    reader: Reader, chosen: Selection, array: Any, path: Path, slab: tuple[int, int], measure: bool
) -> dict[str, Any]:
    """Read one slab, write its shards, and say what was seen."""
    frames = np.empty((slab[1] - slab[0], *reader.info.shape[1:]), dtype=reader.info.dtype)
    reader.read(chosen.frames[0] + slab[0], chosen.frames[0] + slab[1], frames)
    frames = frames[:, slice(*chosen.rows), slice(*chosen.columns)]
    height, width = frames.shape[1:]
    whole = Region(slab, (0, height), (0, width))
    hashes = {}
    for region in store.shards_in(whole, array.shards):
        part = frames[:, region.slices[1], region.slices[2]]
        key, digest = store.write_shard(path, array, region, part)
        hashes[key] = digest
    sums = frames.sum(axis=(1, 2), dtype=np.float64)
    bad = [slab[0] + int(i) for i in np.flatnonzero(~np.isfinite(sums))]
    finite = frames[np.isfinite(frames)] if bad else frames
    record: dict[str, Any] = {
        "shards": hashes,
        "frame_means": [float(s) / (height * width) if np.isfinite(s) else None for s in sums],
        "not_finite": bad,
        "low": float(finite.min()) if finite.size else None,
        "high": float(finite.max()) if finite.size else None,
    }
    if measure and not bad and len(frames) > 1:
        record["noise"] = _measure(frames)
    if slab[0] == 0 and not bad:
        record["hot_pixels"] = find_hot_pixels(frames).tolist()
    return record


def _measure(frames: NDArray[Any]) -> list[float]:
    """Noise sums of some successive frames in the middle of a slab and of the field."""
    rows, columns = (
        slice(max(0, (n - NOISE_PIXELS) // 2), (n + NOISE_PIXELS) // 2) for n in frames.shape[1:]
    )
    part = frames[:, rows, columns]
    n_pairs = max(NOISE_PAIRS, NOISE_BUDGET // part[0].size)
    start = max(0, (len(part) - n_pairs - 1) // 2)
    accumulator = NoiseAccumulator()
    accumulator.add(part[start : start + n_pairs + 1])
    return accumulator.sums()


def describe(
    config: IngestConfig, info: MovieInfo, chosen: Selection, records: list[dict[str, Any]], sha256: str
) -> dict[str, Any]:
    """The ``tdenoise`` attributes of a movie store."""
    accumulator = NoiseAccumulator()
    for record in records:
        if "noise" in record:
            accumulator.merge(record["noise"])
    hot = records[0].get("hot_pixels", [])
    not_finite = [frame for record in records for frame in record["not_finite"]]
    try:
        noise: NoiseStatistics | None = accumulator.result()
    except ValueError:
        noise = None
    means = [mean for record in records for mean in record["frame_means"]]
    known = [m for m in means if m is not None]
    coordinates = calibration(config, info, chosen)
    mean = float(np.mean(known)) if known else None
    dose = None if config.counts_per_electron is None or mean is None else mean / config.counts_per_electron
    area = None if coordinates.pixel_size_nm is None else np.prod(coordinates.pixel_size_nm) * 100
    return {
        "kind": "movie",
        "source": {
            "name": config.raw.name,
            "bytes": config.raw.stat().st_size,
            "sha256": sha256,
            "format": info.format,
            "reader": info.reader,
            "shape": list(info.shape),
            "selection": [list(chosen.frames), list(chosen.rows), list(chosen.columns)],
            "missing_frames": info.missing_frames,
            "metadata": info.metadata,
        },
        "detector": {"counts_per_electron": config.counts_per_electron},
        "dose": {
            "per_pixel": dose,
            "per_square_angstrom": None if dose is None or area is None else dose / area,
        },
        "mean": mean,
        "range": [
            min((r["low"] for r in records if r["low"] is not None), default=None),
            max((r["high"] for r in records if r["high"] is not None), default=None),
        ],
        "frame_means": means,
        "noise": None if noise is None else noise.to_json(),
        "not_finite_frames": not_finite,
        "hot_pixels": hot[:MAX_HOT_PIXELS],
        "corrections": [],
        "warnings": _warnings(config, info, noise, not_finite, hot),
        "software": VERSION,
    }


def _warnings(
    config: IngestConfig,
    info: MovieInfo,
    noise: NoiseStatistics | None,
    not_finite: list[int],
    hot: list[list[int]],
) -> list[str]:
    found = []
    if info.missing_frames:
        found.append(
            f"{config.raw.name}: {info.missing_frames} frames that the header announces are missing."
        )
    if not_finite:
        found.append(f"frames {_some(not_finite)} hold NaN or Inf; a model cannot be trained on them.")
    if hot:
        found.append(
            f"{len(hot)} pixels are far brighter than their neighbours in all frames (hot pixels; the first in row "
            f"{hot[0][0]}, column {hot[0][1]}). They spoil the noise that is measured and the model: correct the raw "
            "movie first."
        )
    if noise is not None and noise.noise_variance > 0 and not noise.is_poisson:
        found.append(
            f"the noise is not that of single electrons: Fano factor {noise.fano:.3f}, correlation of neighbours "
            f"{noise.correlation_x:+.3f} along x, {noise.correlation_y:+.3f} along y. "
            "The blind radius is chosen accordingly unless --blind-radius says otherwise."
        )
    return found


def _some(numbers: list[int]) -> str:
    shown = ", ".join(map(str, numbers[:5]))
    return shown if len(numbers) <= 5 else f"{shown} and {len(numbers) - 5} more"


class _Digest:
    """sha256 of a file, computed beside the copy so that the page cache serves both."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._hash = hashlib.sha256()
        self._error: OSError | None = None
        self._cancelled = threading.Event()
        self._thread = threading.Thread(target=self._run, name="sha256", daemon=True)
        self._thread.start()

    def _run(self) -> None:
        try:
            with self._path.open("rb") as file:
                while (part := file.read(2**22)) and not self._cancelled.is_set():
                    self._hash.update(part)
        except OSError as error:
            self._error = error

    def result(self, control: Control) -> str:
        """The hex digest, once the file is read."""
        while self._thread.is_alive():
            self._thread.join(0.2)
            if control.stop.is_set():
                self._cancelled.set()
                control.check("ingest")
        if self._error is not None:
            raise InputError(self._path, f"cannot be read ({self._error.strerror})")
        return self._hash.hexdigest()


def describe_plan(config: IngestConfig) -> dict[str, Any]:
    """What ``--dry-run`` prints."""
    with open_raw(config.raw, allow_truncated=config.allow_truncated) as reader:
        chosen = select(reader.info, config)
        geometry = plan_geometry(chosen.shape, reader.info.dtype)
        coordinates = calibration(config, reader.info, chosen)
        return {
            "raw": str(config.raw),
            "format": reader.info.format,
            "shape": list(chosen.shape),
            "dtype": str(reader.info.dtype),
            "frame_time_s": coordinates.frame_time_s,
            "pixel_size_nm": coordinates.pixel_size_nm,
            "missing_frames": reader.info.missing_frames,
            "shard": list(geometry.shard),
            "chunk": list(geometry.chunk),
            "n_files": int(np.prod([-(-n // s) for n, s in zip(chosen.shape, geometry.shard, strict=True)])),
            "disk_estimate_bytes": _disk_estimate(chosen, reader.info.dtype),
            "metadata": json.loads(json.dumps(reader.info.metadata)),
        }
