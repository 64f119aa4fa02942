"""The two figures of a study: what depends on the number of frames, and what on their size."""

from __future__ import annotations

import io
from collections.abc import Callable, Sequence
from typing import Any

import matplotlib as mpl
import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.ticker import FixedLocator, NullLocator

from ..evaluate.figures import DPI, INK, MIDDLE, PALE, SECOND, STYLE
from .compare import Conclusion, Point

FIXED: Any = {"svg.hashsalt": "tdenoise", "svg.fonttype": "path"}  # the same bytes each time
COLOURS = ("#9ecae1", "#4a97c9", "#1b6ca8", "#0b4a7a", "#07304f")
MOST_CURVES = 5


def draw(
    found: Sequence[Point], extents: dict[str, tuple[int, int]], said: Conclusion
) -> dict[str, dict[str, bytes]]:
    """Figures as files, by name and by the ending of the file.

    Parameters
    ----------
    found : sequence of Point
        The smallest frames first, and of each size the fewest frames first.
    extents : dict
        Rows and columns of every size.
    said : Conclusion
        Where the knees are.
    """
    sizes = list(dict.fromkeys(p["size"] for p in found))
    numbers = sorted({p["frames"] for p in found})
    side = {size: float(np.sqrt(extents[size][0] * extents[size][1])) for size in sizes}
    of_sizes = _few(sizes)
    of_numbers = _few(numbers)
    by_frames = [(f"{_name(s, extents)} pixels", [p for p in found if p["size"] == s]) for s in of_sizes]
    by_size = [(f"{n} frames", [p for p in found if p["frames"] == n]) for n in of_numbers]
    words = None if said["knee"] is None else f"knee: {said['knee']} frames"
    smallest = said["size_knee"]
    small = None if smallest is None else f"knee: {_name(smallest, extents)} pixels"
    ticks, names = [side[s] for s in sizes], [_name(s, extents) for s in sizes]
    return {
        "frames": _figure(
            by_frames, lambda p: p["frames"], numbers, list(map(str, numbers)), "frames", said["knee"], words
        ),
        "sizes": _figure(
            by_size,
            lambda p: side[p["size"]],
            ticks,
            names,
            "rows and columns of a frame",
            None if smallest is None else side[smallest],
            small,
        ),
    }


def _few(values: list[Any]) -> list[Any]:
    """At most five, evenly spread, the last among them."""
    chosen = np.unique(np.linspace(0, len(values) - 1, min(MOST_CURVES, len(values))).round().astype(int))
    return [values[i] for i in chosen]


def _name(size: str, extents: dict[str, tuple[int, int]]) -> str:
    rows, columns = extents[size]
    return str(rows) if rows == columns else f"{rows} x {columns}"


def _figure(
    curves: Sequence[tuple[str, Sequence[Point]]],
    place: Callable[[Point], float],
    ticks: Sequence[float],
    labels: Sequence[str],
    title: str,
    knee: float | None,
    words: str | None,
) -> dict[str, bytes]:
    with mpl.rc_context(STYLE | FIXED):
        figure = Figure(figsize=(9.6, 3.6), layout="constrained")
        FigureCanvasAgg(figure)
        left, right = figure.subplots(1, 2)
        colours = [COLOURS[round(i)] for i in np.linspace(len(COLOURS) - 1, 0, len(curves))][::-1]
        everything = [p for _, curve in curves for p in curve]
        for (name, curve), colour in zip(curves, colours, strict=True):
            _errors(left, [place(p) for p in curve], curve, colour, name, _resolved(everything))
            _fringes(right, [place(p) for p in curve], curve, colour, name)
        if _resolved(everything):
            _logarithmic(left, everything)
            left.set(ylabel="error [% of the noise variance]", title="error of frames that no model has seen")
        else:
            left.axhline(0, color=MIDDLE, lw=0.8)
            left.yaxis.set_major_formatter(lambda value, _: f"{100 * value:.3g}")
            above = "error above that of all frames, at the largest size"
            left.set(ylabel="difference [% of the noise variance]", title=above)
        left.set(xlabel=title)
        right.set(
            xlabel=title,
            ylabel="power at the spots, over that elsewhere",
            title="lattice fringes in the vacuum",
        )
        for axis in (left, right):
            axis.set_xscale("log")
            axis.xaxis.set_major_locator(FixedLocator(list(ticks)))
            axis.xaxis.set_minor_locator(NullLocator())
            axis.set_xticks(list(ticks), list(labels))
            axis.grid(color=PALE, lw=0.5)
            if knee is not None:
                axis.axvline(knee, color=SECOND, lw=1, ls="--")
        if knee is not None:
            left.annotate(
                words or "", (knee, 0.97), xycoords=("data", "axes fraction"), color=SECOND, fontsize=8,
                rotation=90, va="top", ha="right",
            )  # fmt: skip
        left.legend(fontsize=7.5, loc="upper right")
        if not any(p["fringes"] for p in everything):
            none = "no vacuum, or no lattice"
            right.text(0.5, 0.5, none, transform=right.transAxes, ha="center", color=INK)
        return {ending: _saved(figure, ending) for ending in ("svg", "png")}


def _resolved(found: Sequence[Point]) -> bool:
    """Whether every error is clearly above zero, so that errors themselves can be drawn."""
    return all(p["resolvable"] for p in found)


def _logarithmic(axis: Axes, found: Sequence[Point]) -> None:
    axis.set_yscale("log")
    axis.yaxis.set_minor_locator(NullLocator())
    shown = np.geomspace(min(p["low"] for p in found), max(p["high"] for p in found), 5)
    axis.yaxis.set_major_locator(FixedLocator(shown.tolist()))
    axis.yaxis.set_major_formatter(lambda value, _: f"{100 * value:.2g}")


def _errors(
    axis: Axes, x: Sequence[float], curve: Sequence[Point], colour: str, name: str, absolute: bool
) -> None:
    none = {"estimate": 0.0, "low": 0.0, "high": 0.0}
    of = [
        {"estimate": p["error"], "low": p["low"], "high": p["high"]} if absolute else p["above"] or none
        for p in curve
    ]
    y, low, high = (np.array([f[key] for f in of]) for key in ("estimate", "low", "high"))
    axis.errorbar(
        x, y, yerr=(y - low, high - y), color=colour, marker="o", ms=3.5, lw=1.4, capsize=2, label=name
    )


def _fringes(axis: Axes, x: Sequence[float], curve: Sequence[Point], colour: str, name: str) -> None:
    known = [(at, p["fringes"]) for at, p in zip(x, curve, strict=True) if p["fringes"] is not None]
    if known:
        places = [at for at, _ in known]
        axis.plot(
            places, [f["ratio"] for _, f in known], color=colour, marker="o", ms=3.5, lw=1.4, label=name
        )
        axis.plot(places, [f["chance"] for _, f in known], color=colour, lw=0.9, ls=":")


def _saved(figure: Figure, ending: str) -> bytes:
    data = io.BytesIO()
    metadata: Any = {"Date": None, "Creator": None} if ending == "svg" else {"Software": None}
    figure.savefig(data, format=ending, dpi=DPI, metadata=metadata)
    return data.getvalue()
