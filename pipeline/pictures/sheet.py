"""One picture for each moment: panels side by side, titles above, scale bar and time below, where they hide nothing.

Black on white and shades of grey, so that it prints.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont

Array = NDArray[Any]
Grey = NDArray[np.uint8]

LEAST_SIDE = 320  # of a panel, longer side, as shown: smaller ones are enlarged by a whole number [pixels]
TEXT, LEAST_TEXT = 24, 13  # height of letters: that of a panel over so many, at least [pixels]
GAP = 0.5  # between panels and around them, in heights of a letter
PAPER, INK = 255, 0
BAR_SHARE = 0.3  # of the width of a panel that a scale bar has at most
ROUND = (1, 2, 5)  # what the length of a scale bar begins with
MOST_DIGITS = 6  # of a time, behind the point


@dataclass(frozen=True)
class Sheet:
    """How panels are put on a sheet; the same for all frames of a movie.

    Parameters
    ----------
    panel : tuple of int
        Height and width of a panel in the movie [pixels].
    titles : tuple of str
        Of the panels, one for each. None are written where all are empty.
    pixel : float
        Width of a pixel of the movie, in `unit`.
    unit : str
        ``nm``, or ``px`` where the size of pixels is unknown.
    scale_bar, clock : bool
        What stands below the panels.
    at_most : tuple of int, optional
        Height and width of a sheet that must not be exceeded: larger panels are averaged down by a whole number.
    even : bool
        Add a row and a column of paper where their number is odd, as H.264 needs.
    """

    panel: tuple[int, int]
    titles: tuple[str, ...]
    pixel: float = 1.0
    unit: str = "px"
    scale_bar: bool = True
    clock: bool = True
    at_most: tuple[int, int] | None = None
    even: bool = False

    @functools.cached_property
    def enlarged(self) -> int:
        """Pixels of the sheet for one of the movie, along each side."""
        return 1 if max(self.panel) >= LEAST_SIDE else -(-LEAST_SIDE // max(self.panel))

    @functools.cached_property
    def averaged(self) -> int:
        """Pixels of the movie whose mean is one of the sheet, along each side."""
        factor = 1
        while self.at_most is not None and factor < min(self.panel):
            height, width = self._size(factor)
            if height <= self.at_most[0] and width <= self.at_most[1]:
                break
            factor += 1
        return factor

    @property
    def shape(self) -> tuple[int, int]:
        """Height and width of the sheet [pixels]."""
        return self._size(self.averaged)

    def draw(self, panels: Sequence[Grey], time: str = "") -> Grey:
        """The sheet of one moment.

        Parameters
        ----------
        panels : sequence of ndarray of uint8, shape (height, width)
            Shades of every panel, averaged down by `averaged`.
        time : str
            Written below the last panel, if there is a clock.

        Returns
        -------
        ndarray of uint8, shape (height, width)
        """
        height, width = self._shown(self.averaged)
        sheet = self._blank.copy()
        for number, panel in enumerate(panels):
            top, left = self._corner(number)
            larger = panel.repeat(self.enlarged, axis=0).repeat(self.enlarged, axis=1)
            sheet[top : top + height, left : left + width] = larger
        if self.clock and time:
            self._write_clock(sheet, time)
        return sheet

    @functools.cached_property
    def text_height(self) -> int:
        """Height of the letters [pixels]."""
        height, width = self._shown(self.averaged)
        return max(LEAST_TEXT, min(height, width) // TEXT)

    def _shown(self, factor: int) -> tuple[int, int]:
        """Height and width of a panel on the sheet."""
        height, width = self.panel
        return height // factor * self.enlarged, width // factor * self.enlarged

    def _size(self, factor: int) -> tuple[int, int]:
        height, width = self._shown(factor)
        text = max(LEAST_TEXT, min(height, width) // TEXT)
        gap = self._gap(text)
        n = len(self.titles)
        tall = height + 2 * gap
        tall += _line(text) if any(self.titles) else 0
        tall += _line(text) if self.scale_bar or self.clock else 0
        wide = n * width + (n + 1) * gap
        return (tall + tall % 2, wide + wide % 2) if self.even else (tall, wide)

    def _gap(self, text: int) -> int:
        bare = len(self.titles) == 1 and not any(self.titles) and not self.scale_bar and not self.clock
        return 0 if bare else round(GAP * text)

    def _corner(self, number: int) -> tuple[int, int]:
        """Row and column where a panel begins."""
        gap = self._gap(self.text_height)
        top = gap + (_line(self.text_height) if any(self.titles) else 0)
        return top, gap + number * (self._shown(self.averaged)[1] + gap)

    @functools.cached_property
    def _blank(self) -> Grey:
        """The sheet without panels and time: titles and scale bar."""
        image = Image.new("L", self.shape[::-1], PAPER)
        draw = ImageDraw.Draw(image)
        font = _font(self.text_height)
        height, width = self._shown(self.averaged)
        for number, title in enumerate(self.titles):
            top, left = self._corner(number)
            middle = top - _line(self.text_height) // 2
            draw.text((left, middle), _fitted(title, font, width), fill=INK, font=font, anchor="lm")
        if self.scale_bar:
            top, left = self._corner(0)
            middle = top + height + _line(self.text_height) // 2
            length, label = self._bar(width)
            thick = max(2, self.text_height // 4)
            draw.rectangle(
                (left, middle - thick // 2, left + length - 1, middle - thick // 2 + thick - 1), fill=INK
            )
            draw.text(
                (left + length + self.text_height // 2, middle), label, fill=INK, font=font, anchor="lm"
            )
        return np.array(image)

    def _bar(self, width: int) -> tuple[int, str]:
        """Length of the scale bar on the sheet [pixels], and what it stands for."""
        pixel = self.pixel * self.averaged / self.enlarged
        length = round_length(BAR_SHARE * width * pixel)
        return max(1, round(length / pixel)), in_units(length, self.unit)

    def _write_clock(self, sheet: Grey, time: str) -> None:
        height, width = self._shown(self.averaged)
        top, left = self._corner(len(self.titles) - 1)
        line = _line(self.text_height)
        image = Image.new("L", (width, line), PAPER)
        font = _font(self.text_height)
        ImageDraw.Draw(image).text((width - 1, line // 2), time, fill=INK, font=font, anchor="rm")
        strip = sheet[top + height : top + height + line, left : left + width]
        np.minimum(strip, np.asarray(image), out=strip)


def montage(sheets: Sequence[Grey], columns: int) -> Grey:
    """Sheets of the same size in rows of so many, on paper.

    Parameters
    ----------
    sheets : sequence of ndarray of uint8, shape (height, width)
    columns : int
    """
    rows = -(-len(sheets) // columns)
    height, width = sheets[0].shape
    made = np.full((rows * height, min(columns, len(sheets)) * width), PAPER, np.uint8)
    for number, sheet in enumerate(sheets):
        row, column = divmod(number, columns)
        made[row * height : (row + 1) * height, column * width : (column + 1) * width] = sheet
    return made


def round_length(at_most: float) -> float:
    """The largest round number that is at most so large.

    Examples
    --------
    >>> round_length(4.2), round_length(0.99), round_length(200)
    (2.0, 0.5, 200.0)
    """
    power = 10.0 ** math.floor(math.log10(at_most))
    # 0.5 and not 0.5000000000000001
    fitting = (float(f"{step * power:.6g}") for step in (*ROUND, 10) if step * power <= at_most * (1 + 1e-9))
    return max(fitting)


def in_units(length: float, unit: str) -> str:
    """A length in words, in the unit that suits it.

    Examples
    --------
    >>> in_units(0.5, "nm"), in_units(2000, "nm"), in_units(0.02, "nm"), in_units(50, "px")
    ('0.5 nm', '2 µm', '20 pm', '50 px')
    """
    if unit == "nm" and length >= 1e3:
        length, unit = length / 1e3, "µm"
    elif unit == "nm" and length < 0.1:
        length, unit = length * 1e3, "pm"
    return f"{length:.6g} {unit}"


def time_in_words(frame: float, frame_time_s: float | None) -> str:
    """The time of a frame, with so many digits that successive frames differ.

    Parameters
    ----------
    frame : float
        Counted from the first frame of the raw movie.
    frame_time_s : float or None
        Time from one frame to the next [s]; None: unknown, and the number of the frame is told.

    Examples
    --------
    >>> [time_in_words(*f) for f in ((12, 0.0133), (7200, 1.0), (5, None), (3, 2e-5), (3, 2.5))]
    ['0.160 s', '7200 s', 'frame 5', '0.06 ms', '7.5 s']
    """
    if frame_time_s is None:
        return f"frame {frame:g}"
    step, unit = (frame_time_s, "s") if frame_time_s >= 1e-3 else (frame_time_s * 1e3, "ms")
    digits = next((n for n in range(MOST_DIGITS) if abs(round(step, n) - step) < 0.05 * step), MOST_DIGITS)
    return f"{frame * step:.{digits}f} {unit}"


def _line(text: int) -> int:
    """Height of a line of text."""
    return round(1.7 * text)


def _fitted(text: str, font: ImageFont.FreeTypeFont, width: int) -> str:
    """A title that is no wider than its panel."""
    while text and font.getlength(text) > width:
        text = text[:-2] + "…" if len(text) > 2 else ""
    return text


@functools.lru_cache(maxsize=8)
def _font(height: int) -> ImageFont.FreeTypeFont:
    """DejaVu Sans, which comes with matplotlib, so that pictures look the same everywhere."""
    return ImageFont.truetype(Path(matplotlib.get_data_path()) / "fonts" / "ttf" / "DejaVuSans.ttf", height)
