"""Which frames and which part of a movie a report shows, and in what contrast."""

from __future__ import annotations

import base64
import io
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import matplotlib as mpl
import numpy as np
from numpy.typing import NDArray
from PIL import Image

from ..inputs.movie_facts import valid_frames
from ..pictures import contrast
from ..pictures.panels import HALF, shrink
from ..pictures.sheet import in_units, round_length, time_in_words
from ..store import store
from ..store.blocks import Region
from .changes import WINDOW, Change
from .estimates import NoiseLaw
from .refutation import scene_corners

Array = NDArray[Any]

SHOWN_PIXELS = 256  # rows and columns of a picture, at most
LEAST_PLANES = 5  # pixels of a picture from one lattice plane to the next: fewer hide the columns
BAR_SHARE = 0.3  # of the width of a picture that its scale bar has, at most
CANDIDATES = 64  # frames looked at in search of the one where most changes
CANDIDATE_PIXELS = 512  # extent of the part looked at, in the middle
RESIDUAL_RANGE = 3.0  # standard deviations of the noise, black to white
CONTRAST_PERCENT = (0.3, 99.7)  # of the denoised frames: shown black and white
SAMPLES = 16  # denoised frames that the contrast is measured on


@dataclass(frozen=True)
class Part:
    """What a picture shows of a frame, and how coarsely."""

    rows: tuple[int, int]
    columns: tuple[int, int]
    averaged: int  # pixels of the movie whose mean is one of the picture, along each side

    @property
    def size(self) -> tuple[int, int]:
        """Height and width of the picture."""
        return (
            (self.rows[1] - self.rows[0]) // self.averaged,
            (self.columns[1] - self.columns[0]) // self.averaged,
        )

    def is_whole(self, shape: tuple[int, ...]) -> bool:
        """Whether it is all of a frame."""
        return (self.rows, self.columns) == ((0, shape[-2]), (0, shape[-1]))


@dataclass(frozen=True)
class Picture:
    """A part of a frame, as the page holds it."""

    source: str  # ``src`` of an image
    size: tuple[int, int]  # height and width
    label: str
    alt: str
    mark: tuple[float, float] | None = None  # row and column that a ring is drawn around


@dataclass(frozen=True)
class ScaleBar:
    """Drawn below a picture, where it hides nothing."""

    share: float  # of the width of the picture
    label: str


@dataclass(frozen=True)
class Moment:
    """A frame that is shown, and why."""

    title: str
    reason: str
    pictures: tuple[Picture, ...]
    bar: ScaleBar
    part: str  # which part of the frame it is, in words


@dataclass(frozen=True)
class Scenes:
    """Where to look: the frames, the contrast that all pictures share, the distance of lattice planes."""

    movie: store.Store
    denoised: store.Store
    noise: NoiseLaw
    limits: contrast.Limits
    planes: float | None  # distance of lattice planes [pixels]
    corners: NDArray[np.intp]  # row and column of every frame in that of the scene, which may drift

    def part_around(self, row: int, column: int) -> Part:
        """The whole frame, or of a large one as much as still shows columns."""
        height, width = self.movie.shape[1:]
        factor = math.ceil(max(height, width) / SHOWN_PIXELS)
        if self.planes is not None:
            factor = max(1, min(factor, int(self.planes / LEAST_PLANES)))
        factor = min(factor, height, width)
        rows, columns = (
            _around(middle, n, factor * SHOWN_PIXELS) for middle, n in ((row, height), (column, width))
        )
        return Part(rows, columns, factor)

    def whole(self) -> Part:
        """All of the frame, however coarse."""
        height, width = self.movie.shape[1:]
        factor = min(math.ceil(max(height, width) / SHOWN_PIXELS), height, width)
        return Part((0, height), (0, width), factor)

    def frame(self, opened: store.Store, k: int, part: Part) -> Array:
        """A part of a frame, averaged down [counts]."""
        region = Region((k, k + 1), part.rows, part.columns)
        return shrink(store.read_region(opened, region)[0], part.averaged)

    def moment(self, k: int, title: str, reason: str, row: int, column: int, *, step: bool) -> Moment:
        """The pictures of one frame; with a step, denoised frames before and after it."""
        part = self.part_around(row, column)
        first, stop = max(0, k - HALF), min(self.movie.shape[0], k + HALF + 1)
        around = store.read_region(self.movie, Region((first, stop), part.rows, part.columns))
        raw, smooth = around[k - first], self._whole(k, part)
        whole = around[sound_mask(self.movie)[first:stop]]
        whole = whole if len(whole) else around
        mean = shrink(whole.astype(np.float32).mean(axis=0), part.averaged)
        pictures = [self.grey(shrink(raw, part.averaged), f"raw, {self.when(k)}")]
        pictures.append(self.grey(mean, f"raw, mean of {len(whole)} frames"))
        if step:
            last = self.movie.shape[0] - 1
            for name, at in (("before", max(0, k - WINDOW)), ("after", min(last, k + WINDOW - 1))):
                label = f"denoised, {name}: {self.when(at)}"
                down, right = (self.corners[k] - self.corners[at]).tolist()  # the ring goes with the scene
                mark = (
                    (row + down - part.rows[0]) / part.averaged,
                    (column + right - part.columns[0]) / part.averaged,
                )
                pictures.append(self.grey(self.frame(self.denoised, at, part), label, mark))
        else:
            pictures.append(self.grey(shrink(smooth, part.averaged), f"denoised, {self.when(k)}"))
        removed = shrink(self.in_noise(raw, smooth), part.averaged)
        limits = contrast.Limits(-RESIDUAL_RANGE, RESIDUAL_RANGE)
        pictures.append(picture(contrast.grey(removed, limits), f"removed, {self.when(k)}", ""))
        return Moment(title, reason, tuple(pictures), self.bar(part), self.part_in_words(part))

    def _whole(self, k: int, part: Part) -> Array:
        region = Region((k, k + 1), part.rows, part.columns)
        return np.asarray(store.read_region(self.denoised, region)[0])

    def in_noise(self, raw: Array, smooth: Array) -> Array:
        """What was removed of a frame, in standard deviations of its noise."""
        variance = self.noise.gain * smooth + self.noise.read_variance
        if not self.noise.gain > 0:
            variance = np.full(smooth.shape, self.noise.variance)
        return np.asarray((raw - smooth) / np.sqrt(np.maximum(variance, 1e-3)))

    def grey(self, frame: Array, label: str, mark: tuple[float, float] | None = None) -> Picture:
        """A picture in the contrast of the page."""
        return picture(contrast.grey(frame, self.limits), label, "", mark)

    def when(self, k: int) -> str:
        """Number and time of a frame."""
        time = self.movie.coordinates.frame_time_s
        first = self.movie.coordinates.first[0]
        return f"frame {k}" if time is None else f"frame {k} ({time_in_words(k + first, time)})"

    def bar(self, part: Part) -> ScaleBar:
        """A scale bar for pictures of a part."""
        size = self.movie.coordinates.pixel_size_nm
        pixel, unit = (1.0, "px") if size is None else (size[1], "nm")
        width = (part.columns[1] - part.columns[0]) * pixel
        length = round_length(BAR_SHARE * width)
        return ScaleBar(length / width, in_units(length, unit))

    def part_in_words(self, part: Part) -> str:
        """Which part of a frame it is."""
        shown = "Shown is the whole frame"
        if not part.is_whole(self.movie.shape):
            (top, bottom), (left, right) = part.rows, part.columns
            shown = f"Shown are rows {top} to {bottom - 1} and columns {left} to {right - 1} of the frame"
        if part.averaged > 1:
            n = part.averaged
            shown += f", averaged over {n} × {n} pixels, which lowers the noise of the raw frames, too"
        return f"{shown}."


def choose(movie: store.Store, denoised: store.Store, noise: NoiseLaw, planes: float | None) -> Scenes:
    """What a report shows of a movie, in a contrast measured on denoised frames that are spread over it."""
    numbers = sound_frames(movie)
    numbers = numbers[np.unique(np.linspace(0, len(numbers) - 1, SAMPLES).round().astype(int))]
    seen = []
    for k in numbers.tolist():
        frame = store.read_frames(denoised, k, k + 1)[0]
        stride = math.ceil(frame.size / contrast.SAMPLE_PIXELS)
        seen.append(frame.ravel()[:: stride + (stride > 1 and frame.shape[1] % stride == 0)])
    low, high = np.percentile(np.concatenate(seen), CONTRAST_PERCENT)
    limits = contrast.Limits(float(low), float(high) if high > low else float(low) + 1)
    return Scenes(movie, denoised, noise, limits, planes, scene_corners(movie)[0])


def moments(scenes: Scenes, changes: Sequence[Change]) -> list[Moment]:
    """The frames of the changes found; where the counts confirm none, the one where most changes."""
    shown = []
    for change in changes:
        way = "brighter" if change.step > 0 else "darker"
        title = f"{_begun(scenes.when(change.frame))}: {way} near row {change.row}, column {change.column}"
        n = WINDOW * change.group
        reason = (
            f"Over {n} frames, the denoised movie steps by {_signed(change.step)} counts per pixel at the ring. The "
            f"counts themselves step the same way, by {abs(change.counts_z):.1f} standard deviations of their noise"
        )
        if change.confirmed:
            reason += ": more than noise does."
        else:
            reason += "; among so many places, noise alone may do that."
        shown.append(scenes.moment(change.frame, title, reason, change.row, change.column, step=True))
    if not shown:
        k = most_changing(scenes.denoised, sound_mask(scenes.movie))
        height, width = scenes.movie.shape[1:]
        title = f"{_begun(scenes.when(k))}: where the denoised movie changes most"
        reason = "Nothing of the size of a column changes by more than noise does: this frame may show nothing special."
        shown.append(scenes.moment(k, title, reason, height // 2, width // 2, step=False))
    return shown


def sound_mask(movie: store.Store) -> NDArray[np.bool_]:
    """Which frames were recorded whole."""
    valid = valid_frames(movie)
    return np.ones(movie.shape[0], dtype=bool) if valid is None else valid


def sound_frames(movie: store.Store) -> NDArray[np.intp]:
    """Numbers of the frames that were recorded whole."""
    return np.flatnonzero(sound_mask(movie))


def most_changing(denoised: store.Store, valid: NDArray[np.bool_] | None = None) -> int:
    """The frame around which the denoised movie changes most, of some spread over it."""
    n_frames = denoised.shape[0]
    middle = [
        slice(max(0, (n - CANDIDATE_PIXELS) // 2), (n + CANDIDATE_PIXELS) // 2) for n in denoised.shape[1:]
    ]
    # Not at the ends, where a frame changes because its neighbours are missing on one side.
    edge = max(1, n_frames // 5)
    candidates = np.unique(np.linspace(edge, n_frames - 1 - edge, CANDIDATES).round().astype(int))
    if valid is not None:
        around = valid[candidates - 1] & valid[candidates] & valid[candidates + 1]
        candidates = candidates[around] if around.any() else np.flatnonzero(valid)[1:-1]

    def change(k: int) -> float:
        before, _, after = denoised.array[k - 1 : k + 2, middle[0], middle[1]]
        return float(np.mean((after - before) ** 2, dtype=np.float64))

    return int(max(candidates, key=change))


def picture(
    shades: NDArray[np.uint8], label: str, alt: str, mark: tuple[float, float] | None = None
) -> Picture:
    """A grey or coloured image as the page holds it."""
    file = io.BytesIO()
    Image.fromarray(shades).save(file, "PNG", optimize=True)
    encoded = base64.b64encode(file.getvalue()).decode()
    return Picture(f"data:image/png;base64,{encoded}", shades.shape[:2], label, alt or label, mark)


def coloured(values: Array, extent: float, colours: str) -> NDArray[np.uint8]:
    """Values from ``-extent`` to ``extent`` in the colours of a map of matplotlib, shape (height, width, 3)."""
    shares = np.clip((np.asarray(values, np.float64) + extent) / (2 * extent), 0, 1)
    shades: NDArray[np.uint8] = mpl.colormaps[colours](shares, bytes=True)[..., :3]
    return shades


def _begun(text: str) -> str:
    """As it stands at the beginning of a sentence."""
    return text[:1].upper() + text[1:]


def _signed(value: float) -> str:
    return f"{value:+.2g}".replace("-", "−")


def _around(middle: int, n: int, extent: int) -> tuple[int, int]:
    """At most so many pixels around one, inside a frame."""
    extent = min(extent, n)
    first = min(max(0, middle - extent // 2), n - extent)
    return first, first + extent
