"""Open what shall be shown: the stores that the panels need, and the part of them that was asked for."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TypeAlias

from ..errors import UsageError
from ..inputs.movie_facts import measured_drift, valid_frames
from ..inputs.paired import open_pair
from ..store import store
from ..store.blocks import Region
from .panels import Footage, Panel, follow, needs_denoised, needs_movie

Interval: TypeAlias = tuple[int, int | None]


def open_footage(
    source: Path,
    movie: Path | None,
    panels: Sequence[Panel],
    frames: Interval | None = None,
    roi: tuple[Interval, Interval] | None = None,
    follow_drift: bool = False,
) -> Footage:
    """The part of a movie that was asked for, in the stores that the panels need.

    Parameters
    ----------
    source : Path
        A movie store or a denoised store.
    movie : Path or None
        The recording of a denoised store.
    panels : sequence of str
    frames : tuple of int, optional
        The first, and the one after the last.
    roi : tuple of tuple of int, optional
        The first row and the one after the last; the same of columns.
    follow_drift : bool
        Hold the scene still: of every frame, the part that shows the same scene.

    Raises
    ------
    UsageError
        If the stores do not have what was asked for.
    InputError
        If a store is missing or damaged, or two do not belong together.
    """
    recording, denoised = open_stores(source, movie, panels, follow_drift)
    opened = denoised or recording
    assert opened is not None
    rows, columns = roi or ((0, None), (0, None))
    chosen = []
    for (start, stop), size, name in zip(
        (frames or (0, None), rows, columns), opened.shape, ("frames", "rows", "columns"), strict=True
    ):
        end = size if stop is None else stop
        if end > size or start >= end:
            raise UsageError(f"{name} {start}:{end} are not all in the movie, which has {size} {name}.")
        chosen.append((start, end))
    region = Region(*chosen)
    valid = None if recording is None else valid_frames(recording)
    if not follow_drift:
        return Footage(recording, denoised, region, valid=valid)
    assert recording is not None
    moved = measured_drift(recording)
    if moved is None:
        raise UsageError(
            f"--follow-drift: no drift was measured in {recording.path.name}, so there is nothing to follow. "
            "Leave it out."
        )
    return Footage(recording, denoised, *follow(moved, region, opened.shape, "mean9" in panels), valid)


def open_stores(
    source: Path, movie: Path | None, panels: Sequence[Panel], follow_drift: bool
) -> tuple[store.Store | None, store.Store | None]:
    """The recording and the denoised movie, each where it is needed; every shard is there."""
    if store.read_attributes(source)["kind"] == "movie":
        if needs_denoised(panels):
            raise UsageError(
                f"{source}: is a movie store, which has no denoised frames. Give the denoised store, or the panels "
                "raw and mean9 only."
            )
        return _opened(source, store.MOVIE), None
    wants_movie = needs_movie(panels) or follow_drift
    if wants_movie and movie is None:
        why = (
            "--follow-drift"
            if follow_drift and not needs_movie(panels)
            else f"the panels {', '.join(panels)}"
        )
        raise UsageError(f"{source}: {why} need the movie store that it was made from. Give it with --movie.")
    if wants_movie and movie is not None:
        return open_pair(movie, source, deep=False)
    return None, _opened(source, store.DENOISED)


def _opened(path: Path, name: str) -> store.Store:
    # Every chunk has a checksum, and every shard the mark of what was written: comparing all of it would take twice
    # the time.
    opened = store.open_store(path, name, deep=False)
    opened.array.check_all()
    return opened
