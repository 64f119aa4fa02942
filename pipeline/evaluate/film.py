"""The film of a report: a clip of the movie, raw, denoised and removed side by side, as H.264 within the page.

Where the encoder is missing, some frames of the clip stand in for it.
"""

from __future__ import annotations

import base64
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from fractions import Fraction
from importlib.util import find_spec
from pathlib import Path
from typing import Any, TypedDict

import numpy as np
from numpy.typing import NDArray

from ..pictures import contrast
from ..pictures.panels import Footage, Panel, shrink
from ..pictures.video import write_h264
from ..store.blocks import Region
from .changes import Change
from .scenes import RESIDUAL_RANGE, Part, Picture, ScaleBar, Scenes, picture

Array = NDArray[Any]
Strip = NDArray[np.uint8]

PANELS: tuple[Panel, ...] = ("raw", "denoised", "difference")
FRAMES = 96  # of the clip, at most
RATE, LEAST_RATE, LEAST_S = (
    12,
    2,
    4,
)  # frames per second at the usual speed; a short clip plays slower, some seconds
CODED = 16  # a panel fills whole blocks of so many pixels, so that none spills into the next
STILLS = 8  # frames that stand in for a film
QUALITIES = (18, 22, 26, 30, 34, 38)  # constant rate factors of x264, from good to bad
MARKED = 0.5  # probability of a change from which on it is marked
TRIED = 12  # frames that a quality is tried on
MOST_BYTES = (
    2_900_000  # of the film, also where the page has room for more; within the page it takes a third more
)


class Mark(TypedDict):
    """A change in the clip, as the script of the page reads it."""

    first: int  # frames of the movie in which it is marked, the last one included
    last: int
    row: float  # of its middle [pixels of a panel]
    column: float
    label: str


@dataclass(frozen=True)
class Film:
    """A clip within the page."""

    source: str | None  # ``src`` of the video; None where its encoder is missing
    stills: tuple[Picture, ...]  # strips of some frames, where there is no film
    poster: Picture  # the strip of one frame, for print
    shown: int  # number in the clip of the frame to begin with
    rate: int  # frames per second at the usual speed
    numbers: tuple[int, ...]  # of the frames of the clip, or of the stills, in the movie
    size: tuple[int, int]  # height and width of a panel
    stride: int  # columns from one panel to the next in a strip
    bar: ScaleBar  # for a panel
    strip_bar: ScaleBar  # for a whole strip
    part: str  # what is shown, in words
    marks: tuple[Mark, ...]  # changes that `events` found there
    missing: str | None  # why there is no film, in words


def film(scenes: Scenes, changes: Sequence[Change], room: int, found: Sequence[dict[str, Any]] = ()) -> Film:
    """The clip around the largest change, or in the middle of the movie where none was found.

    Memory is that of the strips of the clip, whatever the movie's length.

    Parameters
    ----------
    scenes : Scenes
    changes : sequence of Change
        The largest first.
    room : int
        What the page has left for it [bytes].
    found : sequence of dict
        Changes that `events` found, as `changes_beside` gives them: marked where they lie in the clip.
    """
    n_frames, height, width = scenes.movie.shape
    frame, row, column = n_frames // 2, height // 2, width // 2
    if changes:
        frame, row, column = changes[0].frame, changes[0].row, changes[0].column
    first = min(max(0, frame - FRAMES // 2), max(0, n_frames - FRAMES))
    part = scenes.part_around(row, column)
    numbers = range(first, min(n_frames, first + FRAMES))
    strips = list(_strips(scenes, part, numbers))
    shown = min(max(0, frame - first), len(strips) - 1)
    encoded = None
    if find_spec("av") is not None:
        most = min(MOST_BYTES, room * 3 // 4)
        encoded, strips, numbers, shown = _encode(strips, numbers, shown, most)
    stills: tuple[Picture, ...] = ()
    kept = list(numbers)
    if encoded is None:
        chosen = np.unique(np.linspace(0, len(strips) - 1, STILLS).round().astype(int)).tolist()
        stills = tuple(
            picture(
                strips[i], scenes.when(numbers[i]), f"raw, denoised and removed, {scenes.when(numbers[i])}"
            )
            for i in chosen
        )
        kept = [numbers[i] for i in chosen]
    poster = picture(strips[shown], scenes.when(numbers[shown]), "raw, denoised and removed")
    if encoded is None:
        shown = int(np.argmin(np.abs(np.array(kept) - numbers[shown])))
    bar = scenes.bar(part)
    return Film(
        source=None if encoded is None else f"data:video/mp4;base64,{base64.b64encode(encoded).decode()}",
        stills=stills,
        poster=poster,
        shown=shown,
        rate=rate_of(len(numbers)),
        numbers=tuple(kept),
        size=part.size,
        stride=_whole_blocks(part.size[1]),
        bar=bar,
        strip_bar=replace(bar, share=bar.share * part.size[1] / (len(PANELS) * _whole_blocks(part.size[1]))),
        part=_in_words(scenes, part, numbers),
        marks=tuple(_marks(found, part, numbers)),
        missing=None if encoded is not None else MISSING,
    )


MISSING = (
    "There is no film here, because the package av is missing, which encodes it. These are single frames. For a film, "
    "install tdenoise with its extra [video] and make the report again."
)


def _strips(scenes: Scenes, part: Part, numbers: range) -> Iterator[Strip]:
    """Raw, denoised and removed, side by side, frame by frame."""
    region = Region((numbers.start, numbers.stop), part.rows, part.columns)
    footage = Footage(scenes.movie, scenes.denoised, region)
    height, width = part.size
    stride = _whole_blocks(width)
    removed = contrast.Limits(-RESIDUAL_RANGE, RESIDUAL_RANGE)
    for _, frames in footage.frames(("raw", "denoised")):
        raw, smooth = frames["raw"], frames["denoised"]
        noise = shrink(scenes.in_noise(raw, smooth), part.averaged)
        shades = [contrast.grey(shrink(frame, part.averaged), scenes.limits) for frame in (raw, smooth)]
        strip = np.zeros((_whole_blocks(height), len(PANELS) * stride), np.uint8)
        for k, panel in enumerate((*shades, contrast.grey(noise, removed))):
            # What fills a block up goes on as the panel ends: an edge would cost bytes.
            filled = np.pad(panel, ((0, len(strip) - height), (0, stride - width)), mode="edge")
            strip[:, k * stride : (k + 1) * stride] = filled
        yield strip


def _encode(
    strips: list[Strip], numbers: range, shown: int, most_bytes: int
) -> tuple[bytes, list[Strip], range, int]:
    """The best film that is small enough; of a clip that stays too large, only the frames around the one shown."""
    while True:
        if len(strips) == 1:
            return _h264(strips, QUALITIES[-1], rate_of(1)), strips, numbers, shown
        for quality in QUALITIES:
            tried = strips[:TRIED]
            if len(_h264(tried, quality, RATE)) * len(strips) > 1.3 * most_bytes * len(tried):
                continue
            encoded = _h264(strips, quality, rate_of(len(strips)))
            if len(encoded) <= most_bytes:
                return encoded, strips, numbers, shown
        half = max(1, len(strips) // 2)
        first = min(max(0, shown - half // 2), len(strips) - half)
        strips, numbers, shown = strips[first : first + half], numbers[first : first + half], shown - first


def rate_of(n_frames: int) -> int:
    """Frames per second of a clip.

    Examples
    --------
    >>> rate_of(96), rate_of(24), rate_of(3)
    (12, 6, 2)
    """
    return max(LEAST_RATE, min(RATE, n_frames // LEAST_S))


def _h264(strips: Sequence[Strip], quality: int, rate: int) -> bytes:
    with tempfile.TemporaryDirectory(prefix="tdenoise-film-") as folder:
        file = Path(folder) / "film.mp4"
        write_h264(file, strips, Fraction(rate), quality=quality)
        return file.read_bytes()


def _marks(found: Sequence[dict[str, Any]], part: Part, numbers: range) -> Iterator[Mark]:
    for change in found:
        first, last = min(change["first"], change["t"] - 1), max(change["last"], change["t"] + 1)
        row, column = (
            (change[axis] + 0.5 - start) / part.averaged - 0.5
            for axis, (start, _) in (("y", part.rows), ("x", part.columns))
        )
        inside = 0 <= row < part.size[0] and 0 <= column < part.size[1]
        if change["p"] >= MARKED and inside and first < numbers.stop and last >= numbers.start:
            more = "more" if change["after"] > change["before"] else "less"
            yield {
                "first": first,
                "last": last,
                "row": round(row, 2),
                "column": round(column, 2),
                "label": f"{more} ({change['p']:.0%})",
            }


def _whole_blocks(n: int) -> int:
    return -(-n // CODED) * CODED


def _in_words(scenes: Scenes, part: Part, numbers: range) -> str:
    """What is shown of the movie."""
    n_frames = scenes.movie.shape[0]
    frames = f"all {n_frames} frames"
    if len(numbers) < n_frames:
        frames = f"frames {numbers.start} to {numbers.stop - 1} of {n_frames}"
    return f"The film: {frames}. {scenes.part_in_words(part)}"
