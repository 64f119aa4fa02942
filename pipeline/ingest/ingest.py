"""Ingest: a raw movie becomes a movie store, in one pass and bounded memory."""

from __future__ import annotations

import logging
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import zarr
from numpy.typing import NDArray

from ..errors import InputError
from ..readers import MovieInfo, Reader
from ..resources import budget
from ..runs import markers, plans, progress
from ..settings import recorded_settings
from ..settings.ingest_settings import IngestConfig
from ..step_control import Control
from ..store import integrity, pyramid, store, writing
from ..store.store_attributes import LevelAttributes, MovieAttributes
from .copying import copy_slabs, edges_of
from .corrections import Corrections, bin_pixels, plan_corrections
from .fingerprint import Digest, Source
from .ingest_plan import (
    IngestPlan,
    describe_plan,
    disk_estimate,
    open_movie,
    plan_ingest,
    select,
    settings_plan,
)
from .measurements import measure_brightness, measure_drift, sample_pixels, timing
from .movie_attributes import Findings, describe

__all__ = ["describe_plan", "ingest", "select"]
log = logging.getLogger(__name__)


def ingest(
    config: IngestConfig,
    control: Control | None = None,
    expected: str | None = None,
    held: Reader | None = None,
) -> dict[str, Any]:
    """Write a movie store from a raw file; safe to stop and start again.

    Parameters
    ----------
    config : IngestConfig
    control : Control, optional
    expected : str, optional
        The id that the store must have; another one is not committed.
    held : Reader, optional
        A movie that a program holds, instead of the raw file; ``config.raw`` is what it is called then.

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
    with open_movie(config) if held is None else held as reader:
        plan = plan_ingest(reader.info, config, select(reader.info, config))
        source = (Source.of if held is None else Source.held)(config.raw, reader.info)
        settings = settings_plan(config, reader.info, plan, source)
        if store.already_done(config.output, plans.plan_id(settings)) and not config.force:
            progress.tidy_up(config.output)
            return store.read_attributes(config.output)
        budget.check_disk(config.output.parent, disk_estimate(plan), str(config.output))
        files = (config.raw if held is None else None, config.dark, config.gain, config.defects)
        inputs = [path for path in files if path is not None]
        with progress.OutputRun(
            config.output, settings, inputs, force=config.force, command=config, stop=control.stop
        ) as run:
            run.prepare(lambda path: _create(path, config, plan))
            attributes = _build(config, reader, plan, source, run, control)
            if expected is not None and attributes["id"] != expected:
                raise InputError(
                    config.raw,
                    "gives a different movie from the one stored: the file or the settings differ.",
                )
            run.commit()
    for warning in attributes["warnings"]:
        log.warning("%s: %s", config.raw.name, warning)
    return store.read_attributes(config.output)


def _create(path: Path, config: IngestConfig, plan: IngestPlan) -> None:
    units = "electron" if config.counts_per_electron == 1.0 else "count"
    writing.create(
        path, store.MOVIE, plan.shape, plan.dtype, plan.geometry, plan.coordinates, units, plan.levels
    )


def _build(
    config: IngestConfig,
    reader: Reader,
    plan: IngestPlan,
    source: Source,
    run: progress.OutputRun,
    control: Control,
) -> MovieAttributes:
    """Fill the partial store, measure the movie, and complete the store; return its attributes."""
    n_threads = budget.n_cores()
    digest = Digest(source)
    try:
        corrections = _decide(config, reader, plan, n_threads, control)
        records = copy_slabs(reader, plan, corrections, run, control, digest)
        sha256 = digest.result(control)
    finally:
        digest.cancel()
    source.check_unchanged()
    array = zarr.open_array(run.partial / store.MOVIE, mode="r")
    found = _survey(array, reader.info, plan, corrections, records, n_threads, control)
    if len(found.not_finite) == plan.shape[0]:
        raise InputError(
            config.raw,
            "each of its frames holds NaN, Inf or numbers beyond 1e30, which are not counts, so no frame is usable. "
            "Name the pixels with --defects, or fix the file.",
        )
    _add_arrays(run.partial, plan, found)
    hashes = markers.hashes(records)
    id = integrity.content_id(store.MOVIE, array, hashes)
    attributes: MovieAttributes = {
        # Of a movie without files, its counts are the source.
        **describe(config, reader.info, plan, source, sha256 or id, found),
        "plan": run.id,
        "id": id,
    }
    if levels := pyramid.levels_in(run.partial, plan.levels):
        attributes["pyramid"] = _record_levels(run.partial, levels, records)
    if plan.notes:
        attributes["notes"] = plan.notes
    run.check()
    writing.finish(run.partial, store.MOVIE, attributes, hashes, recorded_settings.record(config))
    return attributes


def _record_levels(
    path: Path, levels: list[pyramid.Level], records: list[dict[str, Any]]
) -> dict[str, LevelAttributes]:
    """Write the hashes of the shards of every level beside it; what the store says of the levels."""
    told: dict[str, LevelAttributes] = {}
    for level in levels:
        hashes = markers.hashes(records, level.path)
        writing.record_hashes(path, level.path, hashes)
        id = integrity.content_id(level.path, zarr.open_array(path / level.path, mode="r"), hashes)
        told[level.path] = {"id": id, "frames": level.frames, "pixels": level.pixels}
    return told


def _decide(
    config: IngestConfig, reader: Reader, plan: IngestPlan, n_threads: int, control: Control
) -> Corrections:
    """Look at some frames of the movie and decide what is to be corrected."""
    statistics = sample_pixels(reader, plan.selection, n_threads, lambda: control.check("ingest"))
    field = (slice(*plan.selection.rows), slice(*plan.selection.columns))
    n_frames = plan.selection.shape[0]
    return plan_corrections(config, plan.references, reader.info.dtype, field, n_frames, statistics)


def _survey(
    array: Any,
    info: MovieInfo,
    plan: IngestPlan,
    corrections: Corrections,
    records: list[dict[str, Any]],
    n_threads: int,
    control: Control,
) -> Findings:
    """Measure the movie that is stored, and gather what was seen while it was copied."""
    length = plan.geometry.shard[0]
    not_finite = [number * length + i for number, r in enumerate(records) for i in r["not_finite"]]
    blank, repeated = _lost_frames(records, plan.selection.frames[0], corrections.group)
    torn = [number * length + i for number, r in enumerate(records) for i in r["torn"]]
    unsound = {*not_finite, *blank, *repeated, *torn}
    if plan.shape[0] - len(unsound) < 3:
        unsound = set(not_finite)  # a movie that never changes: that is measured, too
    valid = np.ones(plan.shape[0], dtype=bool)
    valid[sorted(unsound)] = False
    # JSON has no NaN.
    parts = np.array([means for r in records for means in r["part_means"]], dtype=np.float64)
    edges = edges_of(plan.shape[1]), edges_of(plan.shape[2])
    stamps = None
    if info.timestamps_s is not None:
        stamps = info.timestamps_s[slice(*plan.selection.frames)].reshape(plan.shape[0], -1).mean(axis=1)
    with ThreadPoolExecutor(1) as pool:  # beside the noise

        def check() -> None:
            control.check("ingest")

        drift = pool.submit(measure_drift, array, unsound, _bad_pixels(corrections), check)
        brightness, noise = measure_brightness(parts, edges, valid, array, n_threads, check)
    return Findings(
        corrections=corrections,
        frame_means=[mean for r in records for mean in r["frame_means"]],
        low=min((r["low"] for r in records if r["low"] is not None), default=None),
        high=max((r["high"] for r in records if r["high"] is not None), default=None),
        not_finite=not_finite,
        blank=blank,
        repeated=repeated,
        torn=torn,
        brightness=brightness,
        hits=[tuple(hit) for r in records for hit in r["hits"]],
        n_hits=sum(r["n_hits"] for r in records),
        noise=noise,
        drift=drift.result(),
        timestamps=stamps,
        timing=timing(stamps),
    )


def _lost_frames(records: list[dict[str, Any]], first: int, group: int) -> tuple[list[int], list[int]]:
    """Frames of the store that hold a blank raw frame, and those that hold a copy of the raw frame before."""
    blank: set[int] = set()
    repeated: set[int] = set()
    before = None
    for record in records:
        blank.update((f - first) // group for f in record["blank"])
        again = list(record["repeated"])
        if record["first_hash"] == before and record["first"] not in record["blank"]:
            again.append(record["first"])
        repeated.update((f - first) // group for f in again)
        before = record["last_hash"]
    return sorted(blank), sorted(repeated)


def _bad_pixels(corrections: Corrections) -> NDArray[np.bool_]:
    """Pixels of the store that hold a bad one of the camera."""
    return np.asarray(bin_pixels(corrections.bad.astype(np.uint8)[None], corrections.bin)[0] > 0)


def _add_arrays(path: Path, plan: IngestPlan, found: Findings) -> None:
    """Store what is known of every pixel or frame, where there is anything to say."""
    bad = _bad_pixels(found.corrections)
    if bad.any():
        words = "hot, dead or listed as defect" + (
            "" if found.corrections.bin == 1 else ", one of the summed pixels at least"
        )
        writing.add_array(path, "bad_pixels", bad, ("y", "x"), {"long_name": words})
    if found.drift is not None:
        steps = plan.coordinates.pixel_size_nm
        writing.add_array(
            path,
            "drift",
            found.drift.moved * (1.0 if steps is None else np.asarray(steps)),
            ("t", "yx"),
            {
                "units": "pixel" if steps is None else "nm",
                "long_name": "rows and columns that the scene has moved by since the first frame; not applied",
            },
        )
    writing.add_brightness(path, found.brightness.levels, found.brightness.valid, found.brightness.tilts)
    if found.timestamps is not None:
        described = {"units": "s", "long_name": "time stamp of the camera"}
        writing.add_array(path, "timestamp", found.timestamps, ("t",), described)
