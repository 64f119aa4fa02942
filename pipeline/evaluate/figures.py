"""The pictures of a report, as PNG images inside the page. Made without pyplot, which keeps every figure."""

from __future__ import annotations

import base64
import io
import itertools
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import matplotlib as mpl
import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.patches import Circle, Rectangle
from numpy.typing import NDArray
from scipy.ndimage import maximum_filter

from tdenoise.inference.refutation import LEAST_Z

from .evaluation_result import ModelChecks, RefutedFigures, ResidualFigures

Array = NDArray[Any]

DPI = 140
FLATTEST, TALLEST = 0.1, 1.5  # height over width of a panel, whatever that of the frame
SHOWN_PIXELS = 640  # of a picture; larger frames are averaged down to it
EVIDENCE_RANGE = 4.0  # standard deviations shown in full colour, at least
REFUTED_RANGE = 6.0  # standard deviations shown in full colour, at least
RESIDUAL_RANGE = 3.0  # standard deviations of the noise, black to white
INK, ACCENT, SECOND, PALE = "#22303c", "#1b6ca8", "#c8571b", "#d5dce2"
STYLE: Any = {
    "font.size": 9,
    "axes.edgecolor": PALE,
    "axes.labelcolor": INK,
    "axes.titlecolor": INK,
    "axes.titlesize": 9,
    "xtick.color": INK,
    "ytick.color": INK,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "legend.frameon": False,
}


@dataclass(frozen=True)
class Moment:
    """One frame of the movie, raw and denoised [counts], averaged down by `shrink`."""

    label: str
    raw: Array
    averaged: Array  # mean of the raw frames around
    denoised: Array
    residual: Array  # (raw - denoised), in standard deviations of the noise


@dataclass(frozen=True)
class Look:
    """How pictures are shown: one contrast for all of a page, and a scale bar."""

    low: float  # shown black [counts]
    high: float  # shown white
    pixel: float  # length of a pixel as shown
    unit: str  # of that length: nm, or px of the movie


def render(figure: Figure) -> str:
    """A figure as the ``src`` of an image."""
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=DPI)
    return "data:image/png;base64," + base64.b64encode(buffer.getvalue()).decode()


def decode(source: str) -> bytes:
    """The PNG file in the ``src`` of an image."""
    return base64.b64decode(source.partition(",")[2])


def moments(shown: Sequence[Moment], look: Look, averaged: int, columns: int) -> str:
    """Raw, averaged, denoised and removed, side by side; one row per moment, or two for a closer look."""
    per_moment = 4 // columns
    panel = 9.6 / columns
    rows = len(shown) * per_moment
    tall = panel * _shape(shown[0].raw) + 0.28
    noise = replace(look, low=-RESIDUAL_RANGE, high=RESIDUAL_RANGE)
    with mpl.rc_context(STYLE):
        figure, axes = _axes(rows, columns, (9.6, rows * tall))
        panels = axes.reshape(len(shown), 4)
        for row, moment in zip(panels, shown, strict=True):
            _picture(row[0], moment.raw, f"{moment.label}: raw", look)
            _picture(row[1], moment.averaged, f"raw, mean of {averaged} frames", look)
            _picture(row[2], moment.denoised, "denoised", look)
            _picture(row[3], moment.residual, "removed", noise, bar=False)
        return render(figure)


def evidence(frames: Mapping[str, Array], support: Array, look: Look) -> str:
    """Pictures of one frame, and the support of its windows by the counts [standard deviations]."""
    columns = len(frames) + 1
    panel = 9.6 / columns
    first = next(iter(frames.values()))
    with mpl.rc_context(STYLE):
        figure, axes = _axes(1, columns, (9.6, panel * _shape(first) + 0.3))
        for panel_axes, (name, frame) in zip(axes[0], frames.items(), strict=False):
            _picture(panel_axes, frame, name, look)
        last = axes[0, -1]
        extent = max(EVIDENCE_RANGE, float(np.abs(support).max(initial=0)))
        image = last.imshow(support, cmap="RdBu", vmin=-extent, vmax=extent)
        last.set_title("evidence of the counts", loc="left")
        last.set_axis_off()
        colours = figure.colorbar(image, ax=last, shrink=0.7, pad=0.02)
        colours.outline.set_visible(False)
        return render(figure)


def model_checks(checks: ModelChecks) -> str | None:
    """Fourier ring correlation, recovery of atoms that were put in, and an event of a single frame."""
    ring, atoms = checks["ring_correlation"], checks["atoms"]
    if ring is None:
        return None
    with mpl.rc_context(STYLE):
        figure, axes = _axes(1, 3, (9.6, 3.0))
        left, middle, right = axes[0]
        for curve, label, colour in (
            (ring["denoised"], "two denoised halves", ACCENT),
            (ring["with_truth"], "with the noise-free movie", SECOND),
            (ring["raw"], "two raw halves", PALE),
        ):
            left.plot(ring["frequency"], np.array(curve, float), color=colour, lw=1.4, label=label)
        left.axhline(1 / 7, color=INK, lw=0.6, ls=":")
        left.set(
            xlabel="frequency [cycles per pixel]", title="ring correlation", xlim=(0, 0.5), ylim=(-0.1, 1.15)
        )
        left.legend(loc="upper right", fontsize=7)
        if atoms is not None:
            columns = [a["columns"] for a in atoms["put_in"]]
            for values, label, colour in (
                ([a["recovered"] for a in atoms["put_in"]], "share shown", ACCENT),
                ([a["auc"] for a in atoms["put_in"]], "detection (AUC)", SECOND),
            ):
                middle.plot(columns, values, color=colour, marker="o", ms=3, label=label)
            middle.axhline(1, color=PALE, lw=0.8)
            middle.set(xlabel="strength [typical columns]", title="atoms put in", ylim=(0, 1.3))
            middle.legend(loc="lower right", fontsize=7)
            right.bar(atoms["flash"]["offsets"], atoms["flash"]["response"], color=ACCENT)
            right.set(xlabel="frames from the event", title="shown share of a single-frame event")
        return render(figure)


def mean_frame(mean: Array, look: Look) -> str:
    """The mean of all raw frames, at its own contrast."""
    low, high = np.percentile(mean, [0.2, 99.8])
    with mpl.rc_context(STYLE):
        tall = 4.6 * _shape(mean) + 0.1
        figure, axes = _axes(1, 1, (4.6, tall))
        _picture(axes[0, 0], mean, "", replace(look, low=float(low), high=float(high)))
        return render(figure)


def residual(result: ResidualFigures) -> str:
    """Autocorrelation of the residual as a map, and its power spectrum against that of white noise."""
    half = np.array(result["map"], float)  # None, where the frame is too narrow for a lag, becomes NaN
    bound, lag = result["bound"], half.shape[0] - 1
    # The other half follows by symmetry.
    whole = np.concatenate([half[:0:-1, ::-1], half])
    whole[lag, lag] = np.nan
    extent = max(4 * bound, float(np.nanmax(np.abs(whole), initial=0)))
    with mpl.rc_context(STYLE):
        figure, axes = _axes(1, 2, (9.6, 3.5), width_ratios=[1, 1.7])
        left, right = axes[0]
        edges = (-lag - 0.5, lag + 0.5, lag + 0.5, -lag - 0.5)
        image = left.imshow(whole, cmap="RdBu_r", vmin=-extent, vmax=extent, extent=edges)
        left.set(xlabel="lag along x [pixels]", ylabel="lag along y [pixels]", title="autocorrelation")
        colours = figure.colorbar(image, ax=left, shrink=0.85)
        colours.outline.set_visible(False)
        colours.ax.axhspan(-bound, bound, color=INK, alpha=0.18, lw=0)
        right.axhline(1, color=SECOND, lw=1.2, label="white noise")
        right.plot(result["frequency"], result["power"], color=ACCENT, lw=1.4, label="what was removed")
        right.set(xlabel="frequency [cycles per pixel]", title="power, mean of rings", xlim=(0, 0.5))
        right.set_ylim(0, max(1.5, 1.1 * max(result["power"], default=0)))
        right.grid(color=PALE, lw=0.5)
        right.legend(loc="lower right")
        return render(figure)


def refuted(significance: Array, found: RefutedFigures) -> str:
    """Map of the residual that is summed over all frames, in units of its noise.

    Refuted places are marked, and by thin rings those that stand out but may be chance.
    """
    with mpl.rc_context(STYLE):
        figure, axes = _axes(1, 1, (6.4, 5.6 * _shape(significance) + 0.4))
        panel = axes[0, 0]
        extent = max(REFUTED_RANGE, float(np.abs(significance).max(initial=0)))
        image = panel.imshow(significance, cmap="RdBu_r", vmin=-extent, vmax=extent)
        for place in found["places"]:
            panel.add_patch(Circle((place["column"], place["row"]), 6, fill=False, color=INK, lw=1.6))
        size = np.abs(significance)
        for row, column in np.argwhere((size > LEAST_Z) & (size == maximum_filter(size, 9))).tolist():
            if all(np.hypot(place["row"] - row, place["column"] - column) > 6 for place in found["places"]):
                panel.add_patch(Circle((column, row), 6, fill=False, color=INK, lw=0.6, ls=":"))
        panel.set_axis_off()
        colours = figure.colorbar(image, ax=panel, shrink=0.85)
        colours.outline.set_visible(False)
        colours.set_label("counts less denoised, over the noise")
        return render(figure)


def training(history: list[dict[str, Any]], best_step: int) -> str:
    """Held-out error and training loss over steps, in units of the noise variance."""
    with mpl.rc_context(STYLE):
        figure, axes = _axes(1, 1, (9.6, 3.0))
        chart = axes[0, 0]
        parts = [list(part) for _, part in itertools.groupby(history, lambda r: r.get("candidate"))]
        for number, part in enumerate(parts):
            # What goes on after the comparison of candidates may follow its own first part directly.
            steps = [record["step"] for record in part]
            named = number == 0
            chart.plot(
                steps,
                [r["loss"] for r in part],
                color=PALE,
                lw=1.2,
                label="training patches" if named else None,
            )
            chart.plot(
                steps,
                [r["held_out"] for r in part],
                color=ACCENT,
                lw=1.6,
                marker="o",
                ms=3,
                label="held-out frames" if named else None,
            )
            if "candidate" in part[0]:
                place = (float(np.mean(steps)), 0.02)
                chart.annotate(
                    str(part[0]["candidate"]), place, xycoords=("data", "axes fraction"), ha="center", size=8
                )
        held = [r["held_out"] for r in history]
        chart.axvline(best_step, color=SECOND, lw=1, ls="--", label=f"model kept (step {best_step:,})")
        # The first values of a training are far above the rest and would hide it.
        shown = held + [r["loss"] for r in history]
        low, high = min(shown), float(np.percentile(shown, 90))
        room = max(high - low, 1e-4)
        chart.set_ylim(low - 0.2 * room, high + 0.6 * room)
        chart.set(xlabel="step", ylabel="squared difference\nto the counts")
        chart.ticklabel_format(axis="y", useOffset=False)
        chart.grid(color=PALE, lw=0.5)
        chart.legend(loc="upper right", ncols=3)
        return render(figure)


def shrink_factor(shape: tuple[int, ...]) -> int:
    """The whole number by which a frame is averaged down for a picture."""
    return min(math.ceil(max(shape[-2:]) / SHOWN_PIXELS), *shape[-2:])


def shrink(frame: Array) -> Array:
    """A frame averaged down to what a picture can show."""
    factor = shrink_factor(frame.shape)
    if factor == 1:
        return frame
    height, width = (n // factor for n in frame.shape)
    cut = frame[: height * factor, : width * factor]
    averaged: Array = cut.reshape(height, factor, width, factor).mean(axis=(1, 3))
    return averaged


def scale_bar(length: float) -> float:
    """A round number, about a quarter of a length.

    Examples
    --------
    >>> scale_bar(4.0), scale_bar(200)
    (1.0, 50.0)
    """
    target = 0.3 * length
    power = 10.0 ** math.floor(math.log10(target))
    return max(step * power for step in (1, 2, 5) if step * power <= target)


def _shape(frame: Array) -> float:
    """Height over width of the panel of a frame."""
    height, width = frame.shape
    return min(TALLEST, max(FLATTEST, float(height / width)))


def _axes(
    rows: int, columns: int, size: tuple[float, float], **settings: Any
) -> tuple[Figure, NDArray[np.object_]]:
    figure = Figure(figsize=size, layout="constrained")
    FigureCanvasAgg(figure)
    return figure, figure.subplots(rows, columns, squeeze=False, gridspec_kw=settings or None)


def _picture(axes: Axes, frame: Array, title: str, look: Look, *, bar: bool = True) -> None:
    axes.imshow(frame, cmap="gray", vmin=look.low, vmax=look.high)
    axes.set_title(title, loc="left")
    axes.set_axis_off()
    if bar:
        height, width = frame.shape
        length = scale_bar(width * look.pixel)
        x, y, extent = 0.05 * width, 0.945 * height, length / look.pixel
        # On a dark plate: over the noise of a raw frame neither bar nor label could be read.
        plate = (x - 0.025 * width, y - 0.085 * height), extent + 0.05 * width, 0.12 * height
        axes.add_patch(Rectangle(*plate, color="black", alpha=0.7, lw=0))
        axes.add_patch(Rectangle((x, y), extent, 0.012 * height, color="white", lw=0))
        label = f"{length:g} {look.unit}"
        axes.text(
            x + extent / 2, y - 0.012 * height, label, color="white", ha="center", va="bottom", fontsize=8
        )
