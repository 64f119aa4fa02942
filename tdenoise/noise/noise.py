"""The noise of a raw movie in numbers, and what follows from it for a model."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import asdict, dataclass, fields, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

Array = NDArray[Any]

MIN_SNR = 0.02  # floor of Scale.contrast / Scale.noise, for movies in which nothing is seen
REACH = 3  # largest distance at which the noise of two pixels is compared [pixels]
WIDEST = 2  # largest blind radius below the whole frame [pixels]
FEWEST_BLOCKS = 7  # of a movie, whose scatter is trusted
CORRELATED = 0.01  # a correlation that costs a blind-spot network quality; see docs/explanation/noise.md


@dataclass(frozen=True)
class Correlation:
    """How alike the noise of two samples is that lie this far apart."""

    t: int  # distance [frames]
    y: int  # [pixels]
    x: int
    value: float
    error: float  # half the width of its 95 % interval

    @property
    def matters(self) -> bool:
        """True where it costs quality and is no chance: twice the interval, for many distances are tested."""
        return bool(np.isfinite(self.error) and abs(self.value) > max(CORRELATED, 2 * self.error))


@dataclass(frozen=True)
class NoiseStatistics:
    """Noise from differences of successive frames, in which the scene cancels.

    A counting camera has ``fano`` 1 and all correlations 0. ``fano`` above 1 means an integrating camera or a
    gain; correlation between neighbours means charge spread or resampling, and asks for a larger blind spot.
    Errors are half the width of 95 % intervals, from the scatter of blocks of 16 x 16 pixels.
    """

    mean: float  # [counts per pixel and frame]
    noise_variance: float  # [counts^2]
    signal_variance: float  # covariance of successive frames: what is not noise [counts^2]
    fano: float  # noise_variance / mean; NaN where the mean is not positive
    correlation_x: float  # of the noise of neighbours along a row
    correlation_y: float  # along a column
    correlation_t: float  # of successive noise samples in time
    n_pixels: int  # differences measured
    fano_error: float = float("nan")
    gain: float = float("nan")  # g of variance = g * mean + s^2; NaN where too uniform to fit
    gain_error: float = float("nan")
    read_variance: float = float("nan")  # s^2 [counts^2]
    read_variance_error: float = float("nan")
    whole: bool | None = None  # all values are whole numbers; None: not known
    correlations: tuple[Correlation, ...] = ()  # at every distance; empty in stores of old versions

    def to_json(self) -> dict[str, Any]:
        """Plain values; numbers that could not be measured are None."""
        values = asdict(self)
        values["correlations"] = [
            {k: _finite_or_none(v) for k, v in asdict(c).items()} for c in self.correlations
        ]
        return {k: _finite_or_none(v) for k, v in values.items()}

    @classmethod
    def from_json(cls, values: dict[str, Any]) -> NoiseStatistics:
        """Inverse of `to_json`; what a store of an old version does not tell is left unknown."""
        known = {f.name for f in fields(cls)} - {"correlations", "whole"}
        filled: dict[str, Any] = {k: _number(v) for k, v in values.items() if k in known}
        correlations = tuple(
            Correlation(**{k: _number(v) for k, v in c.items()}) for c in values.get("correlations", ())
        )
        return cls(**filled, whole=values.get("whole"), correlations=correlations)

    @property
    def is_poisson(self) -> bool:
        """True where the counts behave as independent electrons, so that variance equals mean."""
        white = max(abs(self.correlation_x), abs(self.correlation_y), abs(self.correlation_t))
        return bool(abs(self.fano - 1.0) < 0.05 + self.uncertainty and white < 0.03 + self.uncertainty)

    @property
    def uncertainty(self) -> float:
        """Three standard deviations of a correlation that is measured on this many pixels."""
        return float(3 / np.sqrt(self.n_pixels)) if self.n_pixels else float("inf")

    @property
    def calibrated(self) -> bool:
        """True where gain and read noise are known well enough to say how noisy a pixel is.

        A negative read variance that is more than chance means that another law holds, such as the one of a
        camera that loses coincident electrons.
        """
        return bool(
            self.gain > 0
            and self.gain_error < 0.1 * self.gain
            and self.read_variance > -max(2 * self.read_variance_error, 0.01 * self.noise_variance)
        )

    def strongest(self, *, in_time: bool) -> Correlation | None:
        """The strongest correlation, between pixels of one frame or of a pixel with itself in other frames."""
        chosen = [c for c in self.correlations if (c.t > 0) == in_time and np.isfinite(c.value)]
        return max(chosen, key=lambda c: abs(c.value), default=None)


def _finite_or_none(value: Any) -> Any:
    return None if isinstance(value, float) and not np.isfinite(value) else value


def _number(value: Any) -> Any:
    return float("nan") if value is None else value


@dataclass(frozen=True)
class Scale:
    """How counts of one movie become numbers near 1 for the network, and back.

    Inputs are ``(counts - mean) / noise``; the prediction is ``mean + contrast * output``. Fixed for a whole
    movie: a scale per block or per patch would make seams and would show a pixel to itself.
    """

    mean: float
    noise: float
    contrast: float

    @classmethod
    def of(cls, statistics: NoiseStatistics) -> Scale:
        """The scale of a movie with these statistics.

        Raises
        ------
        ValueError
            If the movie has no noise at all: it is constant, or was denoised before.
        """
        if not statistics.noise_variance > 0:
            raise ValueError(
                "successive frames do not differ anywhere: a constant movie has nothing to learn from"
            )
        noise = float(np.sqrt(statistics.noise_variance))
        contrast = 2.0 * float(np.sqrt(max(statistics.signal_variance, 0.0)))
        return cls(mean=float(statistics.mean), noise=noise, contrast=max(contrast, MIN_SNR * noise))

    def at_share(self, share: float) -> Scale:
        """Of counts that hold a share of the dose: their noise, and with it the unit of the output, is smaller."""
        return Scale(self.mean * share, self.noise * share**0.5, self.contrast * share**0.5)


@dataclass(frozen=True)
class NoiseLaw:
    """How the variance of a pixel grows with its expected counts: ``gain * mean + read_variance``."""

    gain: float  # [counts per electron]
    read_variance: float  # [counts^2]


def noise_law(statistics: NoiseStatistics, counts_per_electron: float | None = None) -> NoiseLaw | None:
    """The law that the measured noise follows.

    That of single electrons where the Fano factor is 1, or the gain of the camera as given; else the one
    measured by photon transfer; None where that could not be measured well.

    The error of a blind prediction ``f`` is then ``mean((y - f)^2 - gain * y - read_variance)``.

    Examples
    --------
    >>> from tdenoise.noise.noise_measurement import NoiseAccumulator
    >>> frames = np.random.default_rng(0).poisson(3.0, (5, 64, 64))
    >>> accumulator = NoiseAccumulator()
    >>> accumulator.add(frames)
    >>> noise_law(accumulator.result())
    NoiseLaw(gain=1.0, read_variance=0.0)
    """
    for gain in (1.0, counts_per_electron):
        if gain is not None and replace(statistics, fano=statistics.fano / gain).is_poisson:
            return NoiseLaw(gain, 0.0)
    if statistics.calibrated:
        return NoiseLaw(statistics.gain, statistics.read_variance)
    return None


@dataclass(frozen=True)
class Choice:
    """What the noise asks of a blind-spot model, and why."""

    blind_radius: int | None  # None hides the whole centre frame
    counting: bool  # every count is one electron, so likelihoods of counts and thinning are valid
    reason: str  # one line


def choose(statistics: NoiseStatistics) -> Choice:
    """Blind radius and law of the noise that fit what was measured.

    The radius is the smallest that hides every pixel whose noise goes with that of the predicted one, at any of
    the 24 distances up to three pixels; noise that reaches three pixels or more hides the whole centre frame.
    A correlation of 5 % between neighbours already costs a one-pixel blind spot more than 1 dB, for it lets the
    network predict noise; see docs/explanation/noise.md.

    Stores of old versions know the nearest neighbours alone; a strong correlation of these is answered with a
    radius of 2.
    """
    near = _neighbours(statistics)
    counting = statistics.is_poisson
    reach = max((max(abs(c.y), abs(c.x)) for c in near if c.matters), default=0)
    if not statistics.correlations and reach and max(abs(c.value) for c in near) > 0.2:
        reach = WIDEST
    radius = reach if reach <= WIDEST else None
    if reach == 0:
        text = f"the noise of neighbouring pixels is independent ({_worst(near)}): the pixel alone is hidden"
    else:
        hidden = (
            "the whole centre frame is hidden"
            if radius is None
            else f"{2 * radius + 1} x {2 * radius + 1} pixels are hidden"
        )
        counted = [c for c in near if c.matters]
        text = f"the noise of neighbouring pixels is correlated ({_worst(counted)}): {hidden}"
    if counting:
        text += f"; single electrons (Fano factor {_with_error(statistics.fano, statistics.fano_error)})"
    elif statistics.calibrated:
        text += (
            f"; variance = {_with_error(statistics.gain, statistics.gain_error)} x mean "
            f"+ {_with_error(statistics.read_variance, statistics.read_variance_error)}"
        )
    else:
        text += f"; not single electrons (Fano factor {_with_error(statistics.fano, statistics.fano_error)})"
    # The lowest mean square is at the expected counts for any of these laws.
    return Choice(radius, counting, f"{text}; loss: mean square, head: expected counts")


def widest(radii: Iterable[int | None]) -> int | None:
    """The blind radius that covers all of these: a model of several movies must suit each.

    Examples
    --------
    >>> widest([0, 2, 1]), widest([1, None]), widest([])
    (2, None, 0)
    """
    found = list(radii)
    known = [radius for radius in found if radius is not None]
    return None if len(known) < len(found) else max(known, default=0)


def persistence_warning(statistics: NoiseStatistics) -> str | None:
    """What must be said where noise goes on from frame to frame: the neighbour frames would show it."""
    strongest = statistics.strongest(in_time=True)
    if strongest is None or not (strongest.matters and strongest.value > 0):
        return None
    return (
        f"frames that are {strongest.t} apart share noise, or the sample moves fast (correlation "
        f"{_with_error(strongest.value, strongest.error)}). A model sees the frames around and will keep "
        "what they share as if it were signal; sum such frames before ingest if the camera has afterglow."
    )


def _neighbours(statistics: NoiseStatistics) -> list[Correlation]:
    if statistics.correlations:
        return [c for c in statistics.correlations if c.t == 0 and np.isfinite(c.value)]
    error = 2 / 3 * statistics.uncertainty
    nearest = ((0, 1, statistics.correlation_x), (1, 0, statistics.correlation_y))
    return [Correlation(0, y, x, value, error) for y, x, value in nearest if np.isfinite(value)]


def _worst(correlations: list[Correlation]) -> str:
    if not correlations:
        return "not measured"
    c = max(correlations, key=lambda c: abs(c.value))
    return f"at most {_with_error(c.value, c.error, sign=True)} at {c.y} rows and {c.x} columns"


def _with_error(value: float, error: float, *, sign: bool = False) -> str:
    form = "+.3f" if sign else ".3f"
    return f"{value:{form}}" if not np.isfinite(error) else f"{value:{form}} +- {error:.3f}"
