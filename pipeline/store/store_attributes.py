"""The ``tdenoise`` attributes of stores, field by field: what a movie store and a denoised store say of themselves.

Frames, rows and columns are counted from 0. Stores of old versions lack what is marked so.
"""

from __future__ import annotations

from typing import Any, Literal, NotRequired, TypedDict


class FinishedAttributes(TypedDict):
    """What `writing.finish` adds to the attributes of every store."""

    profile: int  # version of the layout
    status: str  # "complete"
    arrays: dict[str, str]  # sha256 of each small array, by its name
    files: NotRequired[dict[str, str]]  # sha256 of each file but the shards, by its path; not in old stores
    seal: NotRequired[str]  # sha256 of zarr.json, apart from itself; not in old stores
    command: NotRequired[dict[str, Any]]  # settings that made the store, without paths; not in old stores


class IdentifiedAttributes(TypedDict):
    """What tells a store from every other."""

    plan: str  # sha256 of the plan that made it
    id: str  # sha256 of the content


class MadeAttributes(TypedDict):
    """What every step says of the store it makes."""

    kind: str  # "movie" or "denoised"
    software: dict[str, str]  # versions of packages, by their names


# Of a movie store ----------------------------------------------------------------------------------------


class SourceAttributes(TypedDict):
    """The raw movie."""

    name: str
    n_files: int
    bytes: int
    sha256: str  # of all files
    format: str  # for people, such as "MRC"
    reader: str
    shape: list[int]  # n_frames, height, width
    selection: list[list[int]]  # what was taken: the first and the one after the last frame, row and column
    missing_frames: int  # that the header lists and the file does not hold
    metadata: dict[str, Any]  # as the file has them; every format has its own


class DetectorAttributes(TypedDict):
    """The detector and how it was used, as the file or the user states it; None where neither does."""

    counts_per_electron: float | None
    camera: str | None
    exposure_s: float | None  # of a stored frame
    voltage_kv: float | None


class DoseAttributes(TypedDict):
    """Electrons in a stored frame; None where unknown."""

    per_pixel: float | None  # as measured
    per_square_angstrom: float | None  # as measured
    stated_e_per_nm2_s: float | None  # dose rate that the file or the user states


class BrightnessRange(TypedDict):
    """How much the brightness of frames differs, as shares of its mean."""

    steady: bool
    lowest: float
    highest: float
    flicker: float  # standard deviation from frame to frame
    across: NotRequired[
        float
    ]  # largest change at the edges of the field, where the beam moves; not in old stores


class TimingAttributes(TypedDict):
    """What the time stamps of raw frames say."""

    interval_s: float | None  # the usual one
    uneven: bool  # whether intervals vary by over a tenth
    dropped_after: list[int]  # frames that a gap follows
    n_dropped: int  # frames that seem to be lost


class HitsAttributes(TypedDict):
    """X-ray hits: single pixels of single frames that electrons cannot explain."""

    n: int
    replaced: bool  # by sound neighbours
    hits: list[list[float]]  # frame, row, column and counts in the raw movie; of many, only the first


class DriftAttributes(TypedDict):
    """How the scene moves; the array ``drift`` has it for every frame."""

    units: str  # "nm", or "pixel" where the size of pixels is unknown
    end: list[float]  # rows and columns of the last frame, from the first [units]
    largest: float  # distance from the first frame [units]
    applied: bool  # whether frames were moved: never
    every_n_frames: int  # that it was measured at


class LevelAttributes(TypedDict):
    """A level of the pyramid: a coarser copy of the movie."""

    id: str  # sha256 of its content
    frames: int  # that one of its frames is the mean of
    pixels: int  # side of the square that one of its pixels is the mean of


class MovieDescription(MadeAttributes):
    """Where a movie comes from, what was done and measured.

    Frames are counted in the store, pixels and hits in the raw movie.
    """

    source: SourceAttributes
    detector: DetectorAttributes
    dose: DoseAttributes
    mean: float | None  # [counts per pixel and frame]; None where no frame is sound
    range: list[float | None]  # the smallest and the largest count
    frame_means: list[float | None]  # [counts per pixel]; None where a frame holds none
    noise: dict[str, Any] | None  # `NoiseStatistics.to_json`; None where it could not be measured
    not_finite_frames: NotRequired[list[int]]  # that hold NaN or Inf; these four not in old stores
    blank_frames: NotRequired[list[int]]  # without any contrast
    repeated_frames: NotRequired[list[int]]  # equal to the frame before, bit by bit
    torn_frames: NotRequired[list[int]]  # without their first or last rows
    brightness: NotRequired[BrightnessRange]  # not in old stores
    timing: TimingAttributes | None  # None without time stamps
    hot_pixels: list[list[int]]  # row and column; of many, only some
    dead_pixels: list[list[int]]
    lost_pixels: list[list[int]]  # without counts in any frame
    n_bad_pixels: int  # all of them, and those of the references
    xray_hits: HitsAttributes
    drift: DriftAttributes | None  # None where it was not measured
    references: dict[str, dict[str, Any]]  # name, sha256 and orientation of the file of each kind
    corrections: list[str]  # what was done to the counts, in order, in words
    warnings: list[str]  # what to know before use
    pyramid: NotRequired[dict[str, LevelAttributes]]  # by paths; of large frames, and not in old stores
    notes: NotRequired[dict[str, str]]  # of the user, that lay beside the raw movie; only where there were


class MovieAttributes(MovieDescription, IdentifiedAttributes):
    """What a movie store says of itself."""


# Of a denoised store -------------------------------------------------------------------------------------


class MovieOfStore(TypedDict):
    """The movie that was denoised."""

    id: str  # of the movie store
    name: str  # of its folder
    source: str  # name of the raw movie


class ModelOfStore(TypedDict):
    """The model that denoised it."""

    id: str  # sha256 of its weights
    kind: str  # of network
    blind_radius: int | Literal["seen"] | None  # [pixels]; None hides the whole frame, "seen" hides nothing


class VarianceAttributes(TypedDict):
    """The array of variances beside the denoised one."""

    id: str  # sha256 of its content


class DenoisedAttributes(MadeAttributes, IdentifiedAttributes):
    """What a denoised store says of itself."""

    movie: MovieOfStore
    model: ModelOfStore
    variance: NotRequired[VarianceAttributes]  # only where it was asked for
    pyramid: NotRequired[dict[str, LevelAttributes]]  # by paths; of large frames, and not in old stores
    held_out_frames: list[int]  # of this movie, in the training of the model
    trained_on_this: NotRequired[bool | None]  # whether the model learned from this movie; None: nobody knows
    chosen: NotRequired[dict[str, Any]]  # where the model was chosen by itself: from what, and why
    settings: dict[str, Any]  # the plan: all that decides the bytes
    devices: list[str]  # that blocks were denoised on


class StoreAttributes(MovieAttributes, DenoisedAttributes, FinishedAttributes):
    """What may be read of a store that was opened: of the fields of a kind, those of its own are there."""
