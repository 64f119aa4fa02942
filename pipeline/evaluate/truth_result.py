"""What a truth tells of a denoised movie, field by field; part of `evaluation_result.Evaluation`.

Numbers that could not be measured are None; levels are shares of that in vacuum.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TypedDict, final


class PartOccupied(TypedDict):
    """Steady columns that are part-occupied."""

    ratio: float | None  # their contrast over that of the truth
    n_columns: int
    n_frames: int


class Told(TypedDict):
    """How well states and changes of columns are told."""

    auc: float | None  # of the states of columns in a frame; 0.5 is guessing, 1 is perfect
    delay: float | None  # between a change and where it is seen, on average [frames]
    missed: float | None  # share of the changes


class EventFigures(Told):
    """What becomes of changes of columns. Offsets from the change are named "-2", ..., "0", "+1", ... [frames]."""

    bleed: dict[str, float | None]  # share of the step on the wrong side of the change, by offset


@final
class MovieEvents(EventFigures):
    """In a movie."""

    bleed_interval: dict[
        str, Sequence[float] | None
    ]  # low and high limit, 95 %, by offset; None of a single event
    n_changes: int
    part_occupied: PartOccupied


@final
class EventLimit(EventFigures):
    """To an ideal observer."""

    bleed_with_mixed_frame: dict[str, float | None]  # where the change falls inside a frame
    bleed_on_these_counts: dict[str, float | None]  # where columns also change before and after


class EventsFound(TypedDict):
    """Of the ideal observer, the denoised movie and a filter."""

    limit: EventLimit
    denoised: MovieEvents
    moving_average_9: MovieEvents


class Baseline(TypedDict):
    """The best that a Gaussian in space and time can do."""

    filter: str  # what it is, in words
    sigma_t_frames: float
    sigma_xy_pixels: float
    psnr: dict[str, float | None]  # by region [dB]
    vacuum_std: float | None
    events: MovieEvents


class AgainstTruthFigures(TypedDict):
    """What only a truth can tell."""

    dose: float  # in vacuum [electrons per pixel and frame]
    psnr: dict[str, float | None]  # of the denoised movie by region: "all", "particle", "changing" [dB]
    psnr_noisy: dict[str, float | None]  # of the raw movie
    range: float  # largest less smallest value of the truth
    vacuum_std: float | None  # standard deviation of the denoised movie in vacuum
    vacuum_std_clean: float | None  # of the truth there
    n_events: int
    n_events_isolated: int  # that no other event of the same column is near
    events: EventsFound
