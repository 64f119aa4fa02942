"""What ingest will do with a raw movie, decided before anything is written."""

from __future__ import annotations

import json
import os
from dataclasses import dataclass, fields
from typing import Any

import numpy as np

from ..errors import InputError, UsageError
from ..readers import MovieInfo, Reader
from ..resources import budget
from ..settings.denoise_settings import RunConfig
from ..settings.ingest_settings import IngestConfig, Preparation
from ..settings.notes import notes_beside
from ..settings.parse import FRAME_TIMES_S, PIXEL_SIZES_NM
from ..store import pyramid, store
from ..store.blocks import Region, spans
from .corrections import References, summed_type
from .fingerprint import Source
from .own_store import open_movie_of

SLAB_BYTES = 2**29  # all shards of one stretch of time, held at once by one thread
PIECE_BYTES = 2**24  # of raw frames, read and corrected at once
BASE_BYTES = 3 * 2**26  # Python and its libraries
PROCESS_BYTES = 80_000_000  # that ingest takes for the smallest movie
FIELD_BYTES, FIELD_PIXEL_BYTES = 130_000_000, 700  # to look at samples of the movie, at most and per pixel
LEVEL_BYTES = 12  # per pixel of the pyramid of a slab, which is computed, rounded and packed
PIXEL_BYTES = 64  # per pixel of a frame, for what is known of every pixel
MIN_FRAMES = 3
CONTRADICTION = 0.05  # relative difference of a setting and what the file says, from which on it is told
LONGEST_NAME = 240  # bytes of a store: file systems hold 255, and runs add a suffix


@dataclass(frozen=True)
class Selection:
    """The part of a raw movie that is kept."""

    frames: tuple[int, int]
    rows: tuple[int, int]
    columns: tuple[int, int]

    @property
    def shape(self) -> tuple[int, int, int]:
        return Region(self.frames, self.rows, self.columns).shape


@dataclass(frozen=True)
class IngestPlan:
    """All that is known before the first frame is read."""

    selection: Selection  # of the raw movie
    left_out: tuple[str, ...]  # what does not fill a pixel or a group, in words
    doubts: tuple[str, ...]  # about the calibration, likewise
    shape: tuple[int, int, int]  # of the store
    dtype: np.dtype[Any]  # of the store
    geometry: store.Geometry
    coordinates: store.Coordinates
    references: References
    levels: list[pyramid.Level]  # coarser copies of the counts
    n_threads: int  # slabs in memory at once
    memory_bytes: int  # peak, predicted
    notes: dict[str, str]  # of the user, that lie beside the raw movie


def open_movie(config: IngestConfig | RunConfig) -> Reader:
    """Open the raw movie that the settings name."""
    return open_movie_of(
        config.raw, allow_truncated=config.allow_truncated, dataset=config.dataset, channel=config.channel
    )


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
    n_frames, height, width = _stored_shape(selection, config)
    if n_frames < MIN_FRAMES:
        grouped = "" if config.group == 1 else f" of {config.group}"
        raise InputError(
            config.raw,
            f"has {n_frames} frame(s){grouped} to ingest; a movie needs at least {MIN_FRAMES}, because each "
            "frame is denoised from its neighbours.",
        )
    if min(height, width) < 1:
        raise UsageError(
            f"--bin {config.bin}: a pixel of that size does not fit into the field. Use a smaller number."
        )
    return selection


def stored_shape(info: MovieInfo, config: IngestConfig | RunConfig) -> tuple[int, int, int]:
    """Shape that a raw movie has once it is ingested."""
    return _stored_shape(select(info, config), config)


def _stored_shape(selection: Selection, config: Preparation) -> tuple[int, int, int]:
    n_frames, height, width = selection.shape
    return n_frames // config.group, height // config.bin, width // config.bin


def plan_ingest(info: MovieInfo, config: IngestConfig, chosen: Selection) -> IngestPlan:
    """Decide on everything but the bad pixels, which are looked for in the movie.

    Raises
    ------
    InputError, UsageError
        If a reference does not fit, or no type holds the counts.
    ResourceError
        If the memory of the machine does not suffice.
    """
    if len(os.fsencode(config.output.name)) > LONGEST_NAME:
        raise UsageError(
            f"{config.output}: the name is longer than {LONGEST_NAME} bytes. Give a shorter one, with -o NAME.zarr."
        )
    references = References.of(config, (info.shape[1], info.shape[2]))
    shape = _stored_shape(chosen, config)
    steps = (config.group, config.bin, config.bin)
    intervals = (chosen.frames, chosen.rows, chosen.columns)
    kept = [(start, start + n * step) for (start, _), n, step in zip(intervals, shape, steps, strict=True)]
    selection = Selection(*kept)
    field = (slice(*selection.rows), slice(*selection.columns))
    corrected = references.linear(*field).result_type(info.dtype)
    dtype = summed_type(corrected, config.bin**2 * config.group)
    geometry = plan_geometry(shape, dtype)
    levels = levels_of(shape, geometry)
    n_threads, memory_bytes = _threads(info, shape, dtype, corrected, geometry, levels)
    return IngestPlan(
        selection=selection,
        left_out=_left_out(chosen, selection, config),
        doubts=_doubts(config, info),
        shape=shape,
        dtype=dtype,
        geometry=geometry,
        coordinates=calibration(config, info, selection),
        levels=levels,
        references=references,
        n_threads=n_threads,
        memory_bytes=memory_bytes,
        notes=notes_beside(config.raw),
    )


def levels_of(shape: tuple[int, int, int], geometry: store.Geometry) -> list[pyramid.Level]:
    """The pyramid of a movie store: a slab of counts owns whole shards of each level."""
    return pyramid.levels_of(store.MOVIE, shape, slab_frames=geometry.shard[0])


def plan_geometry(shape: tuple[int, int, int], dtype: np.dtype[Any]) -> store.Geometry:
    """Shards of the standard size, shorter in time where the frames are so large that a slab would not fit."""
    frames = store.SHARD_FRAMES
    while frames > store.CHUNK_FRAMES and frames * shape[1] * shape[2] * dtype.itemsize > SLAB_BYTES:
        frames //= 2
    return store.Geometry.of(shape, frames, store.MOVIE_SHARD_PIXELS)


def _left_out(chosen: Selection, kept: Selection, config: Preparation) -> tuple[str, ...]:
    """What the sums leave over, in words."""
    found = []
    for name, option, (_, wanted), (_, stop) in (
        ("frames", f"group of {config.group} frames", chosen.frames, kept.frames),
        ("rows", f"pixel of {config.bin} x {config.bin}", chosen.rows, kept.rows),
        ("columns", f"pixel of {config.bin} x {config.bin}", chosen.columns, kept.columns),
    ):
        if stop < wanted:
            found.append(f"the last {wanted - stop} {name} do not fill a {option} and are left out.")
    return tuple(found)


def _doubts(config: Preparation, info: MovieInfo) -> tuple[str, ...]:
    """Where settings and file contradict each other, or the file says what hardly any movie has."""
    pixel = None if info.pixel_size_nm is None else sum(info.pixel_size_nm) / 2
    found = []
    for option, name, unit, given, told, (low, high) in (
        ("--frame-time", "frame time", "s", config.frame_time, info.frame_time_s, FRAME_TIMES_S),
        ("--exposure", "exposure", "s", config.exposure, info.exposure_s, FRAME_TIMES_S),
        ("--pixel-size", "pixel size", "nm", config.pixel_size, pixel, PIXEL_SIZES_NM),
    ):
        if given and told and abs(given / told - 1) > CONTRADICTION:
            found.append(
                f"the raw file gives a {name} of {told:g} {unit}; {option} {given:g} {unit} is used instead."
            )
        elif told and not given and not low <= told <= high:
            found.append(
                f"the raw file gives a {name} of {told:g} {unit}, which is unusual; {option} overrides it."
            )
    return tuple(found)


def _threads(
    info: MovieInfo,
    shape: tuple[int, int, int],
    dtype: np.dtype[Any],
    corrected: np.dtype[Any],
    geometry: store.Geometry,
    levels: list[pyramid.Level],
) -> tuple[int, int]:
    """Slabs that fit into memory at once (one more than there are cores, so that reading never waits); peak memory."""
    frame_pixels = info.shape[1] * info.shape[2]
    slab = geometry.shard[0] * shape[1] * shape[2] * dtype.itemsize
    slab += sum(int(np.prod(level.geometry.shard[:1] + level.shape[1:])) * LEVEL_BYTES for level in levels)
    piece = max(PIECE_BYTES, frame_pixels * info.dtype.itemsize) // info.dtype.itemsize
    reading = slab + piece * (2 * info.dtype.itemsize + 2 * corrected.itemsize)
    # A writer holds a shard as it was packed, at worst as large as it is.
    writing = int(np.prod(geometry.shard)) * dtype.itemsize
    fixed = BASE_BYTES + PIXEL_BYTES * frame_pixels + budget.n_cores() * writing
    limit = budget.machine_memory_bytes()
    budget.check_memory(
        fixed + reading,
        limit,
        f"ingest of frames of {info.shape[1]} x {info.shape[2]} {info.dtype}",
        "Keep a part of the field with --roi, sum pixels with --bin, or use a machine with more memory.",
    )
    n_threads = max(1, min(budget.n_cores() + 1, 8, (limit - fixed) // (2 * reading)))
    n_slabs = -(-shape[0] // geometry.shard[0])
    # The limit above is for the worst case. This is what benchmarks/memory.py finds where nothing is corrected.
    pieces = 0 if corrected == info.dtype == dtype else reading - slab
    looking = min(FIELD_BYTES, FIELD_PIXEL_BYTES * frame_pixels)
    return n_threads, PROCESS_BYTES + looking + min(n_threads, n_slabs) * (slab + pieces)


def settings_plan(config: IngestConfig, info: MovieInfo, plan: IngestPlan, source: Source) -> dict[str, Any]:
    """All that decides the bytes of the movie store."""
    apart = {"frames", "roi", "dark", "gain", "defects", "allow_truncated"}
    return {
        "step": "ingest",
        "raw": {
            "name": config.raw.name,
            "bytes": source.n_bytes,
            "mtime_ns": source.changed_ns,
            "n_files": len(source.files),
        },
        "format": info.format,
        "shape": list(info.shape),
        "dtype": info.dtype.str,
        "selection": [list(plan.selection.frames), list(plan.selection.rows), list(plan.selection.columns)],
        "references": plan.references.sources,
        "preparation": {f.name: getattr(config, f.name) for f in fields(Preparation) if f.name not in apart},
        "shard": list(plan.geometry.shard),
        "chunk": list(plan.geometry.chunk),
        "n_blocks": len(list(spans(plan.shape[0], plan.geometry.shard[0]))),
        "profile": store.PROFILE,
    }


def calibration(config: Preparation, info: MovieInfo, selection: Selection) -> store.Coordinates:
    """Settings where they are given, else what the file says, else unknown.

    Summed pixels and groups lie at the middle of what they were summed from; all is counted from the first pixel
    and frame of the raw movie.
    """
    pixel = (config.pixel_size, config.pixel_size) if config.pixel_size else info.pixel_size_nm
    frame_time = config.frame_time or info.frame_time_s
    steps = (config.group, config.bin, config.bin)
    starts = (selection.frames[0], selection.rows[0], selection.columns[0])
    first = [(start + (n - 1) / 2) / n for start, n in zip(starts, steps, strict=True)]
    return store.Coordinates(
        None if frame_time is None else frame_time * config.group,
        None if pixel is None else (pixel[0] * config.bin, pixel[1] * config.bin),
        (first[0], first[1], first[2]),
    )


def disk_estimate(plan: IngestPlan) -> int:
    """Half of the size: counts shrink 2 to 8 times, floats of a camera less. The coarser copies come to it."""
    counts = int(np.prod(plan.shape)) * plan.dtype.itemsize // (1 if plan.dtype.kind == "f" else 2)
    return counts + sum(int(np.prod(level.shape)) for level in plan.levels)  # a byte of a pixel, about


def describe_plan(config: IngestConfig) -> dict[str, Any]:
    """What ``--dry-run`` prints."""
    with open_movie(config) as reader:
        info = reader.info
        plan = plan_ingest(info, config, select(info, config))
        shard = plan.geometry.shard
        return {
            "raw": str(config.raw),
            "format": info.format,
            "shape": list(plan.shape),
            "dtype": str(plan.dtype),
            "frame_time_s": plan.coordinates.frame_time_s,
            "pixel_size_nm": plan.coordinates.pixel_size_nm,
            "missing_frames": info.missing_frames,
            "left_out": list(plan.left_out),
            "warnings": [*info.warnings, *plan.doubts],
            "references": plan.references.sources,
            "shard": list(shard),
            "chunk": list(plan.geometry.chunk),
            "n_files": int(np.prod([-(-n // s) for n, s in zip(plan.shape, shard, strict=True)])),
            "memory_bytes": plan.memory_bytes,
            "disk_estimate_bytes": disk_estimate(plan),
            "metadata": json.loads(json.dumps(info.metadata)),
        }
