"""The charts of a report, as PNG images inside the page. Made without pyplot, which keeps every figure."""

from __future__ import annotations

import base64
import io
import itertools
from typing import Any

import matplotlib as mpl
import matplotlib.image
import numpy as np
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.patches import Circle
from numpy.typing import NDArray
from scipy.ndimage import maximum_filter

from tdenoise.inference.refutation import LEAST_Z

from .evaluation_result import ModelChecks, RefutedFigures, ResidualFigures
from .scenes import Moment
from .training import Training

Array = NDArray[Any]

DPI = 140
FLATTEST, TALLEST = 0.1, 1.5  # height over width of a panel, whatever that of the frame
EVIDENCE_RANGE = 4.0  # standard deviations shown in full colour, at least
REFUTED_RANGE = 6.0  # standard deviations shown in full colour, at least
INK, ACCENT, SECOND, PALE, MIDDLE = "#22303c", "#1b6ca8", "#c8571b", "#d5dce2", "#8b99a5"
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


def render(figure: Figure) -> str:
    """A figure as the ``src`` of an image."""
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=DPI)
    return "data:image/png;base64," + base64.b64encode(buffer.getvalue()).decode()


def decode(source: str) -> bytes:
    """The PNG file in the ``src`` of an image."""
    return base64.b64decode(source.partition(",")[2])


def row(moment: Moment) -> str:
    """The pictures of a moment side by side, the scale bar below the first, where it hides nothing."""
    n = len(moment.pictures)
    height, width = moment.pictures[0].size
    panel = 9.6 / n
    tall = panel * min(TALLEST, max(FLATTEST, height / width)) + 0.6
    with mpl.rc_context(STYLE):
        figure, axes = _axes(1, n, (9.6, tall))
        for axis, shown in zip(axes[0], moment.pictures, strict=True):
            axis.imshow(mpl.image.imread(io.BytesIO(decode(shown.source))), cmap="gray", vmin=0, vmax=1)
            axis.set_title(shown.label, loc="left", fontsize=8)
            axis.set_axis_off()
        first, below = axes[0, 0], axes[0, 0].transAxes
        first.plot([0, moment.bar.share], [-0.04, -0.04], color=INK, lw=2.5, transform=below, clip_on=False)
        first.text(0, -0.07, moment.bar.label, color=INK, va="top", fontsize=8, transform=below)
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
            (ring["raw"], "two raw halves", MIDDLE),
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


def residual(result: ResidualFigures) -> str:
    """Autocorrelation of the residual as a map, and its power spectrum against that of white noise."""
    half = np.array(result["map"], float)  # None, where the frame is too narrow for a lag, becomes NaN
    limit, lag = result["limit"], half.shape[0] - 1
    # The other half follows by symmetry.
    whole = np.concatenate([half[:0:-1, ::-1], half])
    whole[lag, lag] = np.nan
    extent = max(2 * limit, float(np.nanmax(np.abs(whole), initial=0)))
    with mpl.rc_context(STYLE):
        figure, axes = _axes(1, 2, (9.6, 3.5), width_ratios=[1, 1.7])
        left, right = axes[0]
        edges = (-lag - 0.5, lag + 0.5, lag + 0.5, -lag - 0.5)
        image = left.imshow(whole, cmap="RdBu_r", vmin=-extent, vmax=extent, extent=edges)
        left.set(xlabel="lag along x [pixels]", ylabel="lag along y [pixels]", title="autocorrelation")
        colours = figure.colorbar(image, ax=left, shrink=0.85)
        colours.outline.set_visible(False)
        colours.ax.axhspan(-limit, limit, color=INK, alpha=0.18, lw=0)
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


def training(shown: Training) -> str:
    """Held-out error and training loss over steps, in units of the noise variance, and the noise floor."""
    history, best_step = shown.history, shown.card.get("best_step", 0)
    with mpl.rc_context(STYLE):
        figure, axes = _axes(1, 1, (9.6, 3.2))
        chart = axes[0, 0]
        parts = [list(part) for _, part in itertools.groupby(history, lambda r: r.get("candidate"))]
        patches = "training patches, simulated ones too" if shown.rehearsed else "training patches"
        for number, part in enumerate(parts):
            # What goes on after the comparison of candidates may follow its own first part directly.
            steps = [record["step"] for record in part]
            named = number == 0
            losses, errors = ([record[key] for record in part] for key in ("loss", "held_out"))
            chart.plot(steps, losses, color=MIDDLE, lw=1.2, label=patches if named else None)
            label = "held-out frames" if named else None
            chart.plot(steps, errors, color=ACCENT, lw=1.6, marker="o", ms=3, label=label)
            if "candidate" in part[0]:
                place = (float(np.mean(steps)), 0.02)
                name = str(part[0]["candidate"]).replace("$", r"\$")  # else it would be set as a formula
                chart.annotate(name, place, xycoords=("data", "axes fraction"), ha="center", size=8)
        chart.axhline(1, color=INK, lw=0.8, ls=":", label="noise floor")
        chart.axvline(best_step, color=SECOND, lw=1, ls="--", label=f"model kept (step {best_step:,})")
        # The first values of a training are far above the rest and would hide it.
        values = [r[key] for r in history for key in ("held_out", "loss")]
        low, high = min([*values, 1.0]), max(1.0, float(np.percentile(values, 90)))
        room = max(high - low, 1e-4)
        chart.set_ylim(low - 0.2 * room, high + 0.6 * room)
        chart.set(xlabel="step", ylabel="squared difference\nto the counts")
        chart.ticklabel_format(axis="y", useOffset=False)
        chart.grid(color=PALE, lw=0.5)
        chart.legend(loc="upper right", ncols=4, fontsize=7.5)
        return render(figure)


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
