"""From the frames of a movie to finished pictures: averaged down, made grey, put on a sheet."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

from . import contrast
from .panels import TITLES, Footage, Panel, shrink
from .sheet import Grey, Sheet, time_in_words


@dataclass(frozen=True)
class Rendering:
    """How the frames of a movie become pictures.

    Parameters
    ----------
    footage : Footage
    panels : tuple of str
    sheet : Sheet
    limits : mapping of str to Limits
        Which counts are black and white, for each panel.
    """

    footage: Footage
    panels: tuple[Panel, ...]
    sheet: Sheet
    limits: Mapping[Panel, contrast.Limits]

    def pictures(self) -> Iterator[tuple[int, Grey]]:
        """Every frame as a sheet, with its number in the movie; one after the other, in bounded memory."""
        axes = self.footage.one.coordinates
        for k, shown in self.footage.frames(self.panels):
            shades = [
                contrast.grey(shrink(shown[name], self.sheet.averaged), self.limits[name])
                for name in self.panels
            ]
            yield k, self.sheet.draw(shades, time_in_words(k + axes.first[0], axes.frame_time_s))


def plan_sheet(
    footage: Footage,
    panels: Sequence[Panel],
    *,
    scale_bar: bool = True,
    clock: bool = True,
    at_most: tuple[int, int] | None = None,
    even: bool = False,
) -> Sheet:
    """A sheet for panels of a movie, with its scale; titles where there are several panels."""
    size = footage.one.coordinates.pixel_size_nm
    return Sheet(
        panel=footage.shape[1:],
        titles=tuple(TITLES[name] if len(panels) > 1 else "" for name in panels),
        pixel=1.0 if size is None else size[1],
        unit="px" if size is None else "nm",
        scale_bar=scale_bar,
        clock=clock,
        at_most=at_most,
        even=even,
    )


def render(
    footage: Footage,
    panels: Sequence[Panel],
    made: Sheet,
    limits: tuple[float, float] | None = None,
    percent: tuple[float, float] = contrast.PERCENT,
) -> Rendering:
    """Pictures of a movie, with limits that are given or measured.

    Parameters
    ----------
    footage : Footage
    panels : sequence of str
    made : Sheet
        From `plan_sheet`.
    limits : tuple of float, optional
        What is shown black and white [counts].
    percent : tuple of float
        Percentiles that are, where no limits are given.
    """
    if limits is None:
        found = contrast.measure(footage, panels, percent, made.averaged)
    else:
        found = contrast.given(panels, *limits)
    return Rendering(footage, tuple(panels), made, found)
