"""Copy a raw movie into its store, slab by slab, and look at every frame on the way."""

from __future__ import annotations

import threading
from collections.abc import Callable
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from dataclasses import astuple, dataclass, field
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import xxhash
import zarr
from numpy.typing import NDArray

from tdenoise.files.atomic import patiently
from tdenoise.noise.bad_pixels import LARGEST_COUNT, is_lost

from ..files.fault_points import maybe_crash
from ..readers import Reader
from ..resources import budget
from ..runs import markers, progress
from ..step_control import Control
from ..store import pyramid, store, writing
from ..store.blocks import Region, spans
from ..store.shards import shard_damage, shards_in
from .corrections import Corrections, bin_pixels
from .fingerprint import Digest
from .ingest_plan import (
    PIECE_BYTES,
    IngestPlan,
)

PARTS = 4  # of a frame along each axis, whose means are measured
TORN_ROWS = 6  # successive ones that are gone from the border of a torn frame, at least
TORN_COUNTS = 20  # in a row, at least, where chance empties none


def copy_slabs(
    reader: Reader,
    plan: IngestPlan,
    corrections: Corrections,
    run: progress.OutputRun,
    control: Control,
    digest: Digest,
) -> list[dict[str, Any]]:
    """Copy slabs (all shards of one stretch of time), some at once; return the markers of all of them."""
    slabs = list(spans(plan.shape[0], plan.geometry.shard[0]))
    # A marker counts only while the shards it names are whole.
    records = {number: found for number, found in run.done().items() if _is_whole(run.partial, plan, found)}
    todo = [(number, slab) for number, slab in enumerate(slabs) if number not in records]
    control.progress("ingest", len(records), len(slabs))
    with (
        ThreadPoolExecutor(budget.n_cores(), thread_name_prefix="write") as writers,
        ThreadPoolExecutor(plan.n_threads, thread_name_prefix="read") as readers,
    ):
        copier = _Copier(reader, plan, corrections, run.partial, writers, run.check)

        def work(number: int, slab: tuple[int, int]) -> tuple[int, dict[str, Any]]:
            seen = copier.copy(slab)
            markers.mark(run.folder, number, seen, run.token)
            return number, seen

        # At most one slab per thread is in memory; a failure or a stop lets those in hand finish.
        running: set[Future[tuple[int, dict[str, Any]]]] = set()
        while todo or running:
            while todo and len(running) < plan.n_threads and not control.stop.is_set():
                running.add(readers.submit(work, *todo.pop(0)))
            if not running:
                control.check("ingest")
            finished, running = wait(running, return_when=FIRST_COMPLETED)
            for future in finished:
                number, seen = future.result()
                records[number] = seen
            digest.advance(len(records) / len(slabs))
            control.progress("ingest", len(records), len(slabs))
    return [records[number] for number in range(len(slabs))]


def _is_whole(path: Path, plan: IngestPlan, found: dict[str, Any]) -> bool:
    arrays = [("shards", store.MOVIE, plan.geometry)]
    arrays += [(level.path, level.path, level.geometry) for level in pyramid.levels_in(path, plan.levels)]
    return all(
        shard_damage((path / array).joinpath("c", *key.split(".")), geometry.shard, geometry.chunk, 1) is None
        for kept_as, array, geometry in arrays
        for key in found.get(kept_as, {})
    )


@dataclass
class _Copier:
    """Reads, corrects and writes slabs; each thread that calls it keeps its memory from slab to slab."""

    reader: Reader
    plan: IngestPlan
    corrections: Corrections
    path: Path  # of the store
    writers: ThreadPoolExecutor
    allowed: Callable[[], None]  # to write
    _own: threading.local = field(default_factory=threading.local)

    def __post_init__(self) -> None:
        self._array = zarr.open_array(self.path / store.MOVIE, mode="r+")
        self._levels = pyramid.levels_in(self.path, self.plan.levels)

    def copy(self, slab: tuple[int, int]) -> dict[str, Any]:
        """Read one slab, write its shards, and say what was seen."""
        if not hasattr(self._own, "slab"):
            self._own.slab = np.empty((self.plan.geometry.shard[0], *self.plan.shape[1:]), self.plan.dtype)
        frames = self._own.slab[: slab[1] - slab[0]]
        seen = _Seen()
        self._fill(frames, slab, seen)
        whole = Region(slab, (0, frames.shape[1]), (0, frames.shape[2]))

        def write(region: Region) -> tuple[str, str]:
            part = frames[:, region.slices[1], region.slices[2]]
            return writing.write_shard(self.path / store.MOVIE, self._array, region, part, self.allowed)

        shards = self.writers.map(write, shards_in(whole, self._array.shards))
        coarser = self._write_levels(frames, slab[0])
        known = seen.record() | _statistics(frames)
        return {"shards": dict(shards), **coarser, **known}

    def _write_levels(self, frames: NDArray[Any], start: int) -> dict[str, dict[str, str]]:
        """Write the shards of the pyramid that a slab owns; their hashes."""
        written: dict[str, dict[str, str]] = {}
        for level, values in pyramid.of_slab(self._levels, store.MOVIE, frames, writing.pyramid_values):
            first, target = start // level.frames, self.path / level.path
            array = zarr.open_array(target, mode="r+")
            own = Region((first, first + len(values)), (0, level.shape[1]), (0, level.shape[2]))
            written[level.path] = dict(
                writing.write_shard(target, array, region, values[:, *region.slices[1:]], self.allowed)
                for region in shards_in(own, level.geometry.shard)
            )
        return written

    def _fill(self, frames: NDArray[Any], slab: tuple[int, int], seen: _Seen) -> None:
        """Read the raw frames of a slab piece by piece, correct them, and sum them into ``frames``."""
        group, first = self.corrections.group, self.plan.selection.frames[0]
        start, stop = first + slab[0] * group, first + slab[1] * group
        info = self.reader.info
        step = max(1, PIECE_BYTES // (info.shape[1] * info.shape[2] * info.dtype.itemsize))
        whole_field = self.plan.selection.shape[1:] == info.shape[1:]
        for begin in range(start, stop, step):
            end = min(begin + step, stop)
            if self.corrections.changes_nothing and whole_field:
                raw = frames[begin - start : end - start]
                self._read_raw(begin, end, raw)
                seen.look(raw, begin)
                seen.strike(self.corrections.apply(raw, begin)[1], self.plan)
                continue
            raw = self._read(begin, end)
            seen.look(raw, begin)
            counts, hits = self.corrections.apply(raw, begin)
            seen.strike(hits, self.plan)
            _sum_groups(bin_pixels(counts, self.corrections.bin), begin - start, group, frames)

    def _read_raw(self, begin: int, end: int, frames: NDArray[Any]) -> None:
        """Read raw frames, again if the file server stumbles."""

        def read() -> None:
            maybe_crash("raw.read")
            self.reader.read(begin, end, frames)

        patiently(read)

    def _read(self, begin: int, end: int) -> NDArray[Any]:
        """The field of some raw frames, in memory that the next call overwrites."""
        info = self.reader.info
        if getattr(self._own, "piece", np.empty(0)).shape[0] < end - begin:
            self._own.piece = np.empty((end - begin, *info.shape[1:]), dtype=info.dtype)
        piece = self._own.piece[: end - begin]
        self._read_raw(begin, end, piece)
        chosen = self.plan.selection
        return np.ascontiguousarray(piece[:, slice(*chosen.rows), slice(*chosen.columns)])


def _sum_groups(counts: NDArray[Any], position: int, group: int, frames: NDArray[Any]) -> None:
    """Add successive frames, the first of which is number ``position``, to their groups."""
    if group == 1:
        frames[position : position + len(counts)] = counts
        return
    for number in range(position // group, -(-(position + len(counts)) // group)):
        begin = max(0, number * group - position)
        total = counts[begin : (number + 1) * group - position].sum(axis=0, dtype=frames.dtype)
        if number * group >= position:
            frames[number] = total
        else:
            frames[number] += total


class _Seen:
    """What is seen on raw frames while they pass: blank and repeated ones, X-ray hits."""

    def __init__(self) -> None:
        self._hashes: list[int] = []
        self._first = -1
        self._blank: list[int] = []
        self._repeated: list[int] = []
        self._hits: list[list[float]] = []

    def look(self, raw: NDArray[Any], first: int) -> None:
        """Look at successive frames before they are corrected."""
        if self._first < 0:
            self._first = first
        for number, frame in enumerate(raw, start=first):
            value = xxhash.xxh3_64_intdigest(frame.data)
            blank = bool((frame[0] == frame[0, 0]).all() and (frame == frame[0, 0]).all())
            if blank:
                self._blank.append(number)
            elif self._hashes and value == self._hashes[-1]:
                self._repeated.append(number)
            self._hashes.append(value)

    def strike(self, hits: list[Any], plan: IngestPlan) -> None:
        """Note X-ray hits, at their place in the raw movie."""
        for hit in hits:
            frame, row, column, value = astuple(hit)
            self._hits.append(
                [frame, row + plan.selection.rows[0], column + plan.selection.columns[0], value]
            )

    def record(self) -> dict[str, Any]:
        """For the marker of the slab."""
        return {
            "first": self._first,
            "first_hash": self._hashes[0],
            "last_hash": self._hashes[-1],
            "blank": self._blank,
            "repeated": self._repeated,
            "n_hits": len(self._hits),
            "hits": self._hits[:1000],
        }


def _statistics(frames: NDArray[Any]) -> dict[str, Any]:
    """Mean of every frame and of its parts, and range of all, of the counts that are stored.

    Frames that hold numbers that are no counts are named, and those that end before their last row.
    """
    with np.errstate(invalid="ignore", over="ignore"):
        rows, edges = _row_sums(frames)
        starts = edges_of(frames.shape[1])
        parts = np.add.reduceat(rows, starts[:-1], axis=1)
    sums = parts.sum(axis=(1, 2))
    bad = np.flatnonzero(~(np.abs(parts) < LARGEST_COUNT).all(axis=(1, 2))).tolist()
    finite = frames[~is_lost(frames)] if bad else frames
    n_pixels = np.diff(starts)[:, None] * np.diff(edges)
    return {
        "frame_means": [None if n in bad else float(s) / frames[0].size for n, s in enumerate(sums)],
        "part_means": [
            [None] * mean.size if n in bad else mean.ravel().tolist()
            for n, mean in enumerate(parts / n_pixels)
        ],
        "torn": [] if bad else _torn(rows.sum(axis=2)),
        "not_finite": bad,
        "low": float(finite.min()) if finite.size else None,
        "high": float(finite.max()) if finite.size else None,
    }


def edges_of(size: int) -> NDArray[np.intp]:
    """Borders of the parts along an axis, whose means are measured."""
    return np.asarray(np.unique(np.linspace(0, size, PARTS + 1).astype(np.intp)))


def _torn(rows: NDArray[np.float64]) -> list[int]:
    """Frames that end before their last row, or begin after their first: empty there, or as in the frame before.

    Told only where a row holds so many counts that chance does not empty it, nor repeat the sums of several.
    """
    if np.median(rows) < TORN_COUNTS:
        return []
    lost = np.zeros(len(rows), dtype=int)
    for ordered in (rows, rows[:, ::-1]):
        again = np.zeros(rows.shape, dtype=bool)
        again[1:] = (ordered[1:] == ordered[:-1]) & (ordered[1:] != 0)
        empty = (ordered == 0) & (np.median(ordered, axis=0) >= TORN_COUNTS)
        for gone in (again, empty):
            lost = np.maximum(lost, np.where(gone.all(axis=1), 0, (~gone).argmax(axis=1)))
    return [int(i) for i in np.flatnonzero(lost >= TORN_ROWS)]


def _row_sums(frames: NDArray[Any]) -> tuple[NDArray[np.float64], NDArray[np.intp]]:
    """Sums over parts of every row, shape (n_frames, height, n_parts), and the borders of these parts."""
    edges = edges_of(frames.shape[2])
    # A row of 16-bit counts fits into 32 bits, and that is summed twice as fast.
    short = frames.dtype.kind in "ui" and frames.dtype.itemsize <= 2
    dtype = np.dtype(f"{frames.dtype.kind}4") if short else np.dtype(np.float64)
    parts = [frames[:, :, a:b].sum(axis=2, dtype=dtype) for a, b in pairwise(edges.tolist())]
    return np.stack(parts, axis=2).astype(np.float64), edges
