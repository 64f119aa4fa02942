"""What `evaluate` returns, field by field: the object behind ``--json`` and ``metrics.json``.

Numbers that could not be measured are NaN while a result is made, and None in the one that is returned. Frames, rows
and columns are counted from 0. Errors are mean squared ones, in counts squared unless a field says otherwise.
"""

from __future__ import annotations

from typing import Literal, NotRequired, TypedDict

from ..store.store_attributes import BrightnessRange, ModelOfStore
from .truth_result import Baseline, EventsFound

# Figures and their intervals -----------------------------------------------------------------------------


class Estimate(TypedDict):
    """A figure and its 95 % interval, in the unit of the field that holds it."""

    estimate: float
    low: float
    high: float


class ResolvedEstimate(Estimate):
    """An estimate of what cannot be below zero."""

    resolvable: bool  # whether all of the interval is above zero


class PooledEstimate(ResolvedEstimate):
    """An estimate from the pixels of many frames, which a truth may stand beside."""

    n_pixels: int  # number of terms, one for each pixel of each frame
    true: NotRequired[float]  # the same figure from the truth; only with one
    agrees: NotRequired[bool | None]  # whether it lies in the interval; None where the truth is not exact


class ErrorEstimate(TypedDict):
    """An error; None where there are too few pixels."""

    mse: PooledEstimate | None  # [counts^2]
    nmse: PooledEstimate | None  # the same as a share of the noise variance


class FramesError(ErrorEstimate):
    """The error in some frames."""

    n_frames: int  # that it was estimated from


class StatedError(ErrorEstimate):
    """The error to state."""

    frames: Literal["all", "held_out"]  # that it was estimated from


class PeakRatio(TypedDict):
    """Peak signal-to-noise ratio and its 95 % interval [dB]; None where it is infinite."""

    estimate: float | None
    low: float | None
    high: float | None


class Errors(StatedError):
    """Every estimate of the error that needs no truth."""

    estimator: str  # "poisson": from the noise law; "temporal": from neighbouring frames
    gain: float  # variance per count [counts]
    noise_variance: float  # of the whole movie, on average [counts^2]
    noise_excess: (
        PooledEstimate | None
    )  # between neighbouring frames, beyond the law; share of the noise variance
    all_frames: FramesError
    held_out: FramesError | None  # None where no frame was held out
    regions: dict[str, ErrorEstimate]  # by the name of a region of the truth; empty without one
    blind: bool  # whether the model predicts a pixel without its own count; of others no error is known
    umse: PooledEstimate | None  # from neighbouring frames as references [counts^2]
    umse_references: list[int]  # offsets of those frames
    upsnr: PeakRatio | None  # of the uMSE; None where that is not resolvable
    peak: float  # that uPSNR refers to [counts]
    peak_is: str  # what the peak is, in words


# The residual --------------------------------------------------------------------------------------------


class Autocorrelation(TypedDict):
    """Of the residual, along the axes; 0 for white noise, None where the movie is too small for a lag."""

    y: list[float | None]  # lags of 1 pixel and more
    x: list[float | None]
    t: float | None  # of successive frames


class ResidualFigures(TypedDict):
    """What was removed, in standard deviations of the noise."""

    mean: float  # 0 is ideal
    variance: float  # 1 plus the share of the noise that remains
    autocorrelation: Autocorrelation
    map: list[list[float | None]]  # autocorrelation: row lags from 0, column lags from the most negative
    bound: float  # two standard deviations of a correlation by chance
    limit: float  # of the test: the largest correlation that counts as chance, as one of many lags
    largest: float | None  # absolute correlation at any lag
    white: bool | None  # whether the largest is within the limit; None where there are too few pixels to tell
    frequency: list[float]  # of the rings [cycles per pixel]
    power: list[float]  # mean of each ring; 1 for white noise
    n_pixels: int  # that were looked at


class LatticeFigures(TypedDict):
    """What was removed at the spots of the movie's lattice."""

    n_spots: int
    spots: list[list[float]]  # row and column of each [cycles per pixel], the strongest first
    ratio: float | None  # power of the residual at the spots over that around; None without spots
    sd: float | None  # standard deviation of the ratio by chance
    amplitude_lost: float  # share of the lattice's amplitude that was removed
    removed: bool  # whether lattice was removed with the noise
    noise_kept: bool  # whether noise was kept as lattice


class RemovedFigures(TypedDict):
    """What the residual shows."""

    residual: ResidualFigures
    lattice: LatticeFigures


# Against the counts --------------------------------------------------------------------------------------


class RefutedPlace(TypedDict):
    """A place where the summed counts say something else than the denoised movie."""

    frames: list[int]  # the first, and the one after the last
    size: str  # what is as large: "pixel", "column" or "patch"
    row: int  # in the frame of the scene [pixels]
    column: int
    z: float  # mean residual over its noise; positive where the counts hold more than is shown
    amount: float  # mean residual at a level of 1 [counts]
    chance: float  # number of places of a perfect movie that are as far off
    share: float | None  # of the movie's contrast; None where that is zero


class RefutedFigures(TypedDict):
    """Where the counts, summed over time, refute what is shown."""

    n_places: int  # that matter
    n_missing: int  # of these, where more was counted than is shown
    places: list[RefutedPlace]  # the most significant first; of many, only some
    largest_z: float  # anywhere, over all frames [standard deviations]
    corner: list[int]  # row and column of the first frame in that of the scene [pixels]


class LevelFigures(TypedDict):
    """Whether the denoised frames are as bright as the recorded ones."""

    ratio: float  # mean of the denoised movie over that of the recorded one
    worst_frame: int  # which is furthest off
    worst_ratio: float  # its mean, denoised over recorded
    worst_z: float  # the same [standard deviations of the noise]; above 0 it is shown too bright
    kept: bool  # whether no frame is off by more than 1 % and by more than chance


class UncertaintyGroup(TypedDict):
    """Pixels that are said to be about equally uncertain."""

    share: float  # of all pixels
    stated: float  # variance, on average [counts^2]
    measured: float  # mean squared error [counts^2]
    true: float | None  # the same against the truth; None without one


class UncertaintyFigures(TypedDict):
    """The variance that a denoised store states, beside its errors."""

    stated: float  # on average [counts^2]
    ratio: Estimate  # mean squared error over the mean stated variance; 1 if that is right
    groups: list[UncertaintyGroup]  # from the most to the least certain
    true_ratio: float | None  # as `ratio`, against the truth; None without one
    covered_95: float | None  # share of the pixels whose truth lies within 1.96 stated standard deviations
    standardised_error: float | None  # root mean square of error over stated standard deviation


class GaussianFigures(Estimate):
    """The best of some Gaussian filters."""

    sigma_t_frames: float
    sigma_xy_pixels: float


class ExplainedFigures(TypedDict):
    """Share of the signal's variance that is explained: 1 is perfect, 0 as good as a blank image."""

    signal_variance: float  # [counts^2]
    denoised: Estimate
    gaussian: GaussianFigures
    over_filter: Estimate  # by how much the denoised movie explains more than the filter
    n_pixels: int  # that were looked at


class FarthestWindow(TypedDict):
    """The window that the counts fit worst."""

    frame: int
    row: int  # of its first pixel
    column: int
    misfit: float  # [standard deviations]


class EvidenceFigures(TypedDict):
    """Whether the counts of single frames support the denoised ones."""

    window_pixels: int  # side of a window
    n_windows: int
    n_frames: int
    misfit_sd: float  # of all windows; 1 if the denoised frames are right
    misfit_far: float  # share of the windows that are off by more than 3; 0.0027 by chance
    support_mean: float  # evidence for the columns [standard deviations]
    farthest: FarthestWindow


class TypicalIndex(TypedDict):
    """Detection index d' of the columns in a single raw frame."""

    low: float  # 10th percentile
    high: float  # 90th percentile
    typical: float  # median


class ToldAfter(TypedDict):
    """Frames that a visit must last to be told; None where 64 are too few."""

    whole_column: int | None
    half_column: int | None
    quarter_column: int | None


class KnowableFigures(TypedDict):
    """Which changes an ideal observer can tell at the dose of the movie."""

    plane_distance_pixels: float  # of the lattice
    n_columns: float  # in a frame
    index: TypicalIndex
    told_after_frames: ToldAfter
    dated_step: float  # smallest lasting step that can be dated to the frame [typical columns]
    single_frame_step: float  # smallest step that shows in a single frame [typical columns]
    dose_for_dated_column: float  # at which a whole column can be dated, over that of the movie


class FrameChecks(TypedDict):
    """What is looked at in single frames; None where the movie shows no lattice, or electrons cannot be counted."""

    evidence: EvidenceFigures | None
    knowable: KnowableFigures | None


# With the model ------------------------------------------------------------------------------------------


class FilterShown(TypedDict):
    """How a model weighs all counts for one pixel."""

    pixel: list[int]  # frame, row and column of the movie
    per_frame: list[float]  # sum of the weights of each frame looked at
    first_frame: int  # of those
    sum: float  # of all weights; 1 for a mean
    n_averaged: float  # number of equally weighed pixels that leave as much noise
    shifts: list[
        list[float | None]
    ]  # rows and columns from the pixel to the centre of each frame's weights [pixels]
    own: float  # weight of the pixel itself; 0 if the model is blind


class SingleImages(TypedDict):
    """uMSE of half-size images; PSNR in dB, None where it is infinite or undefined."""

    umse: float  # as published [counts^2]
    upsnr: float | None
    legacy_umse: float | None  # as the script of UDVD's users computes it
    legacy_upsnr: float | None
    n_windows: int


class RingCorrelation(TypedDict):
    """Fourier ring correlation of halves of the counts, ring by ring; None in a ring where it is unknown."""

    frequency: list[float]  # [cycles per pixel]
    raw: list[float | None]  # of two raw halves
    denoised: list[float | None]  # of two denoised halves
    denoised_with_raw: list[float | None]  # of a denoised half with the other raw one
    with_truth: list[float | None]  # of the denoised with the noise-free movie, as inferred
    limit_denoised: float | None  # where it first falls below 1/7 [cycles per pixel]; None if never
    limit_raw: float | None
    with_truth_at_spots: list[float | None]  # of the movie's lattice
    denoised_at_spots: list[float | None]


class HeldBack(TypedDict):
    """The error as electrons tell that the model did not see."""

    share: float  # of the electrons, held back
    mse: ResolvedEstimate  # at the dose that is left [counts^2]


class VacuumFigures(TypedDict):
    """What a model makes of a movie of pure noise; None where the movie shows no lattice."""

    std: float  # of the result, as a share of its level; 0 is perfect
    spot_ratio: float | None  # power at the lattice's spots over that around; 1 where nothing is invented
    spot_sd: float | None  # standard deviation of that by chance
    fringes: float | None  # amplitude of an invented lattice, as a share of the level


class AtomsFigures(TypedDict):
    """What is left of atoms that were put in or taken out."""

    strength: float  # at the centre, as a share of the local level; below 0: taken out
    index: float  # detection index d' of a single raw frame
    recovered: float  # share of the change that is shown
    auc: float  # how well the change is told from none in a frame; 0.5 is chance
    n_sites: int


class PutIn(AtomsFigures):
    """Atoms that were put in."""

    columns: float  # strength in typical columns


class FlashFigures(TypedDict):
    """An event of a single frame."""

    columns: float  # strength in typical columns
    offsets: list[int]  # frames from the event
    response: list[float]  # share of the event that each of them shows
    strength: float  # as a share of the local level


class AtomProbes(TypedDict):
    """Atoms put into real counts, or taken out."""

    typical_contrast: float  # of a column, as a share of the local level
    dwell_frames: int  # for which atoms are there, or away
    put_in: list[PutIn]  # from weak to strong
    taken_out: list[AtomsFigures]
    flash: FlashFigures


class ModelCheck(TypedDict, total=False):
    """One of the checks of a model; None where electrons cannot be counted, or the movie shows no lattice."""

    ring_correlation: RingCorrelation | None
    held_back: HeldBack | None
    vacuum: VacuumFigures | None
    atoms: AtomProbes | None
    filters: dict[str, FilterShown]  # at a "flat" place and at a "column"
    single_image: SingleImages | None  # None where pixels are bad


class ModelChecks(ModelCheck):
    """All of them, and the part of the movie that they are made in."""

    frames: list[int]  # the first, and the one after the last
    corner: list[int]  # first row and column
    size: list[int]  # height and width [pixels]
    ensemble: int  # symmetries averaged over


# All of it -----------------------------------------------------------------------------------------------


class MovieMeasured(TypedDict):
    """Which movie was measured."""

    id: str  # of the movie store
    name: str  # of its folder
    source: str  # name of the raw movie


class DenoisedMeasured(TypedDict):
    """Which denoised store was measured."""

    id: str
    name: str


class WithoutTruth(Errors, RemovedFigures, FrameChecks):
    """What is measured of every denoised movie."""

    kind: Literal["evaluation"]
    movie: MovieMeasured
    denoised: DenoisedMeasured
    model: ModelOfStore
    shape: list[int]  # n_frames, height, width
    units: str  # of the movie's values
    mean: float  # of the sound raw frames [counts per pixel and frame]
    uncertainty: UncertaintyFigures | None  # None where no variance is stated, or the noise law is unknown
    brightness: BrightnessRange | None  # of the movie's frames, as measured at ingest
    level: LevelFigures | None  # None where no frame holds counts
    refuted: RefutedFigures
    explained: ExplainedFigures | None  # None where no signal is seen, or the noise law is unknown
    model_checks: ModelChecks | None  # None where no model was given
    notes: list[str]  # what a reader must know to take the estimates for what they are


class Evaluation(WithoutTruth, total=False):
    """All that `evaluate` returns; what follows is there with a truth only."""

    dose: float  # these as in `truth_result.AgainstTruthFigures`
    psnr: dict[str, float | None]
    psnr_noisy: dict[str, float | None]
    range: float
    vacuum_std: float | None
    vacuum_std_clean: float | None
    n_events: int
    n_events_isolated: int
    events: EventsFound
    baseline: Baseline | None  # None where it was not asked for
