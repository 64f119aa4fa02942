"""Events: the atomic columns of a movie, and when they change, with the raw counts as the witness."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from tdenoise.columns.finding import Columns, ColumnSearch
from tdenoise.columns.states import ColumnChange, find_states
from tdenoise.columns.traces import Traces, TraceSums
from tdenoise.columns.tracking import Tracks
from tdenoise.evaluation.ideal_observer import told_dwell
from tdenoise.inference.evidence import corners
from tdenoise.network.split_blind import Architecture
from tdenoise.noise import noise as noise_laws

from ..errors import InputError
from ..inputs.bad_pixels import movie_stand_ins
from ..inputs.model_fit import movie_brightness, movie_drift, movie_noise
from ..inputs.paired import Slab, open_pair, slabs
from ..resources import budget
from ..settings.result_settings import EventsConfig
from ..step_control import Control
from ..store import store
from .found import Found
from .tables import check_output, write_tables

Array = NDArray[Any]

BYTES_A_TRACE, BYTES_A_PAIR = 200, 24  # of memory, for a column in a frame, and for two columns
STRETCH_FRAMES = 16  # a column that is there for so many frames is found
UNMEASURED_PX = 2.0  # of drift that is told
MEAN_FRAMES = 256  # that the mean is taken from, at most: evenly over the movie


def events(config: EventsConfig, control: Control | None = None) -> dict[str, Any]:
    """Find columns and their changes, and write the tables.

    Parameters
    ----------
    config : EventsConfig
    control : Control, optional

    Returns
    -------
    dict
        ``kind``, ``output``, ``n_columns``, ``n_changes`` (listed), ``n_expected`` (sum of their probabilities),
        ``least_dwell_frames``: a typical column must be gone for so many frames to be told (None: more than 64),
        ``notes``.

    Raises
    ------
    InputError
        If the stores are missing, damaged, or not of one movie.
    UsageError
        If the output exists.
    """
    control = control or Control()
    output = config.output
    check_output(output, force=config.force, parquet=config.parquet)
    movie, denoised = open_pair(config.movie, config.denoised)
    found = look(movie, denoised, control)
    result = describe(found, movie, denoised)
    write_tables(output, found, result, movie, force=config.force, parquet=config.parquet)
    return {**result, "output": str(output)}


def look(movie: store.Store, denoised: store.Store, control: Control) -> Found:
    """Find the columns of a movie in its denoised version, and what its counts tell of them."""
    n_frames, height, width = movie.shape
    drift = movie_drift(movie, Architecture())
    whole, scene = corners(drift, n_frames, (height, width))
    columns, shown = _columns(movie, denoised, whole, scene, control)
    n = len(columns.positions)
    budget.check_memory(
        BYTES_A_TRACE * n_frames * n + BYTES_A_PAIR * n * n,
        budget.machine_memory_bytes(),
        "what follows the columns",
        "Ingest a part of the movie with --roi or --frames.",
    )
    corner = whole.astype(np.float64)
    if drift is not None:
        corner = np.rint(drift).max(axis=0) - drift
    tracks = Tracks(columns, n_frames)
    for start in range(0, n_frames if len(columns.positions) else 0, store.CHUNK_FRAMES):
        control.check("events")
        stop = min(start + store.CHUNK_FRAMES, n_frames)
        for k, frame in zip(range(start, stop), store.read_frames(denoised, start, stop), strict=True):
            if np.isfinite(frame[0, 0]):
                tracks.add(k, frame, corner[k])
    places = tracks.places()
    sums = TraceSums(columns, n_frames)
    law = _noise_law(movie)
    bad = movie_stand_ins(movie)
    sound = np.ones((height, width), bool) if bad is None else ~np.isfinite(bad)
    for slab in slabs(movie, denoised, control):
        _add(sums, slab, law, sound, places)
    control.check("events")
    traces = sums.traces()
    return Found(columns, traces, find_states(traces), corner, tracks.found, tracks.moved(), shown)


def _add(sums: TraceSums, slab: Slab, law: tuple[float, float], sound: Array, places: Array) -> None:
    for number, k in zip(range(*slab.frames), range(slab.own.start, slab.own.stop), strict=True):
        if slab.sound[k] and np.isfinite(slab.denoised[k, 0, 0]):
            level = 1.0 if slab.levels is None else slab.levels[k].astype(np.float64)
            shown = slab.denoised[k].astype(np.float64)
            counts = np.where(sound, slab.counts[k], np.nan) / level
            variance = np.maximum(law[0] * shown + law[1], 0.0) / np.square(level)
            sums.add(number, counts, shown / level, variance, places[number])


def _columns(
    movie: store.Store, denoised: store.Store, corner: Array, scene: tuple[int, int], control: Control
) -> tuple[Columns, Array]:
    """Columns that stand out in the mean of the denoised movie, or in that of any stretch of it."""
    brightness = movie_brightness(movie)
    n_frames, height, width = movie.shape

    def add(total: Array, seen: Array, start: int, stop: int) -> None:
        for k, frame in zip(range(start, stop), store.read_frames(denoised, start, stop), strict=True):
            if np.isfinite(frame[0, 0]) and (brightness is None or brightness.valid[k]):
                level = 1.0 if brightness is None else brightness.levels[k]
                r, c = corner[k]
                total[r : r + height, c : c + width] += frame / level
                seen[r : r + height, c : c + width] += 1

    def sums() -> tuple[Array, Array]:
        return np.zeros(scene), np.zeros(scene)

    def mean(total: Array, seen: Array, least: float) -> Array:
        with np.errstate(invalid="ignore", divide="ignore"):
            return np.where(seen >= least, total / seen, np.nan)

    total, seen = sums()
    every = max(1, n_frames // MEAN_FRAMES)
    for start in range(0, n_frames, store.CHUNK_FRAMES * every):
        control.check("events")
        add(total, seen, start, min(start + store.CHUNK_FRAMES, n_frames))
    if not seen.any():
        raise InputError(denoised.path, "shows no frame that was recorded whole.")
    shown = mean(total, seen, 1)
    search = ColumnSearch(shown)
    for start in range(0, n_frames, STRETCH_FRAMES):
        control.check("events")
        control.progress("events", start, n_frames)
        total, seen = sums()
        stop = min(start + STRETCH_FRAMES, n_frames)
        for first in range(start, stop, store.CHUNK_FRAMES):
            add(total, seen, first, min(first + store.CHUNK_FRAMES, stop))
        if seen.max() >= min(STRETCH_FRAMES, n_frames) / 2:
            search.add(np.where(seen > 0, mean(total, seen, 1), shown))
    return search.columns(), shown


def _noise_law(movie: store.Store) -> tuple[float, float]:
    """Variance per count, and the part of it that does not depend on the signal."""
    measured = movie_noise(movie)
    law = noise_laws.noise_law(measured, movie.attributes["detector"]["counts_per_electron"])
    if law is not None:
        return law.gain, law.read_variance
    return 0.0, measured.noise_variance


def describe(found: Found, movie: store.Store, denoised: store.Store) -> dict[str, Any]:
    """What was found, as plain values."""
    changes, traces = found.states.changes, found.traces
    typical = _typical_index(traces)
    dwell = told_dwell(typical) if typical else None
    notes = _notes(found, movie, dwell)
    return {
        "kind": "events",
        "movie": {"id": movie.id, "name": movie.path.name, "source": movie.attributes["source"]["name"]},
        "denoised": {"id": denoised.id, "name": denoised.path.name},
        "n_frames": movie.shape[0],
        "n_columns": len(found.columns.positions),
        "column_sigma_px": found.columns.sigma_px,
        "columns_are": "bright" if found.columns.bright else "dark",
        "n_changing": int(np.sum(found.states.jumps > 0.5)),
        "n_changes": len(changes),
        "n_sure": sum(c.probability >= 0.9 for c in changes),
        "n_expected": float(sum(c.probability for c in changes)),
        "noise_excess": found.states.excess,
        "detection_index": typical,
        "least_dwell_frames": dwell,
        "notes": notes,
    }


def _typical_index(traces: Traces) -> float | None:
    """By how many standard deviations a typical column stands out in one frame."""
    means, errors = traces.means()
    seen = errors > 0
    typical = float(np.median(means[seen] / errors[seen])) if seen.any() else 0.0
    return typical if typical > 0 else None


def _notes(found: Found, movie: store.Store, dwell: int | None) -> list[str]:
    if not len(found.columns.positions):
        return ["No atomic column stands out in this movie, so nothing can be said about changes."]
    frame_s = movie.coordinates.frame_time_s
    lasting = "" if frame_s is None or dwell is None else f" ({dwell * frame_s:.3g} s)"
    notes = [
        "At this dose, a typical column must be gone for more than 64 frames before the counts tell it."
        if dwell is None
        else f"At this dose, a typical column must be gone for {dwell} frames{lasting} before the counts tell it."
    ]
    if found.states.excess > 1.1:
        notes.append(
            f"From frame to frame the columns vary {found.states.excess:.2f} times as much as the noise law expects. "
            "The probabilities take this into account."
        )
    wandered = float(np.ptp(np.median(found.moved, axis=1), axis=0).max())
    if wandered > UNMEASURED_PX:
        notes.append(
            f"The columns wander by {wandered:.1f} pixels more than the drift that 'ingest' measured. They were "
            "followed, but columns that are blurred in the denoised movie may have been missed."
        )
    sudden = _together(found.states.changes, movie.shape[0], len(found.columns.positions))
    if sudden:
        frames = ", ".join(map(str, sudden[:5])) + (" and others" if len(sudden) > 5 else "")
        notes.append(
            f"Many columns change together at frame {frames}. This is more likely a tilt or a change of focus than "
            "atoms that come or go."
        )
    return notes


def _together(changes: list[ColumnChange], n_frames: int, n_columns: int) -> list[int]:
    """Frames at which at least a quarter of all columns, and four, change at once."""
    number = np.zeros(n_frames + 1)
    for change in changes:
        number[change.frame] += change.probability
    around = np.convolve(number, np.ones(5), mode="same")
    many = around >= max(4.0, n_columns / 4)
    peaks = many & (around == np.array([around[max(0, k - 4) : k + 5].max() for k in range(len(around))]))
    return [int(k) for k in np.flatnonzero(peaks & ~np.roll(peaks, 1))]
