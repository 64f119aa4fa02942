"""What can be seen of a denoiser only with the model at hand: probes, Fourier ring correlation, equivalent filters.

Made in a part of the movie whose size does not depend on the movie's, with a single pass of the network: without the
average over symmetries that `apply` may take.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from tdenoise.evaluation import probes
from tdenoise.evaluation.columns import ColumnsSeen, find_columns, plane_distance
from tdenoise.evaluation.equivalent_filter import EquivalentFilter, equivalent_filter
from tdenoise.evaluation.frc import RingSums, binomial_halves, truth_correlation
from tdenoise.evaluation.metrics import block_sums, bootstrap_interval
from tdenoise.evaluation.umse import single_image_error
from tdenoise.inference.denoising import denoise
from tdenoise.inference.tile import Tile
from tdenoise.network.checkpoint import ModelError, load_model
from tdenoise.network.registry import Network, kind, scale_for
from tdenoise.network.split_blind import stack_window
from tdenoise.network.windows import far_window, put_stand_ins
from tdenoise.noise.brightness import Brightness
from tdenoise.noise.drift import window_shifts
from tdenoise.noise.far_frames import SECTION, n_sections, section_gains
from tdenoise.noise.neighbour_frames import window_indices
from tdenoise.noise.noise import Scale

from ..errors import InputError
from ..inputs.bad_pixels import movie_stand_ins
from ..inputs.model_fit import movie_brightness, movie_drift, movie_noise
from ..step_control import Control
from ..store import store
from .estimates import NoiseLaw, interval
from .evaluation_result import (
    AtomProbes,
    AtomsFigures,
    FilterShown,
    HeldBack,
    ModelCheck,
    ModelChecks,
    RingCorrelation,
    SingleImages,
    VacuumFigures,
)

Array = NDArray[Any]

FRAMES = 48  # of the movie's middle
MOST_PIXELS = 128  # rows and columns of the field's middle; fewer for a kind that is slow
HELD_BACK = 0.1  # share of the electrons that a model does not get to see, to be tested on
ATOMS = (0.25, 0.5, 1.0, 2.0)  # put in, in typical columns
DWELL = 8  # frames
FLASH = 4.0  # typical columns, in a single frame
SITES = 6
SINGLE_IMAGES = 8  # windows


@dataclass(frozen=True)
class Checked:
    """A model, and the part of a movie that it is looked at in."""

    network: Network
    kind: str
    counts: Array  # (n_frames, height, width) [counts]
    corner: tuple[int, int, int]  # frame, row and column of the movie at which the part begins
    scale: Scale
    stand_ins: NDArray[np.float32] | None = None  # shown in place of bad pixels [counts]
    drift: NDArray[np.float64] | None = None  # that windows follow [pixels], (n_frames, 2)
    brightness: Brightness | None = None  # of these frames, which were all recorded whole

    @property
    def sound(self) -> NDArray[np.bool_]:
        """Pixels that measure something, (height, width)."""
        if self.stand_ins is None:
            return np.ones(self.counts.shape[1:], bool)
        return ~np.isfinite(self.stand_ins)

    def shown(self, counts: Array, share: float = 1.0) -> Array:
        """What a network is shown of frames that hold a share of the dose [counts]."""
        if self.stand_ins is None:
            return counts
        return np.where(self.sound, counts, np.float32(share) * self.stand_ins)

    def denoise(self, counts: Array, share: float = 1.0, steady: bool = False) -> Array:
        """Frames that hold a share of the movie's dose [counts], as a movie of their own; all bright if ``steady``."""
        frames = denoise(
            self.network,
            counts,
            Tile.whole(counts.shape),
            self.scale.at_share(share),
            range(len(counts)),
            ensemble=1,
            stand_ins=None if self.stand_ins is None else self.stand_ins * np.float32(share),
            drift=self.drift,
            brightness=None if steady else self.brightness,
        )
        return np.stack(list(frames))

    def predict(self, centre: int) -> Callable[[torch.Tensor], torch.Tensor]:
        """The prediction of one frame as a differentiable function of all [counts]."""
        architecture, scale = self.network.architecture, self.scale
        indices = window_indices(centre, len(self.counts), architecture.window)
        shifts = window_shifts(self.drift, centre, indices)
        known = self.brightness or Brightness.steady(len(self.counts))
        height, width = self.counts.shape[1:]
        levels = torch.from_numpy(known.at(slice(None), (0, height), (0, width)))
        gain = float(known.around(architecture.window)[centre]) ** 0.5
        far_gain = float(section_gains(self.brightness, len(self.counts))[centre // SECTION])

        def prediction(frames: torch.Tensor) -> torch.Tensor:
            seen = (frames / levels.to(frames) - scale.mean) / scale.noise
            stride = architecture.stride
            seen = torch.nn.functional.pad(seen, (0, -width % stride, 0, -height % stride))
            if self.stand_ins is not None:
                put_stand_ins(seen, self.stand_ins, scale)
            far = far_gain * far_window(seen, centre, architecture.far_bins, self.drift)
            n, seen = len(architecture.far_bins), gain * seen
            window = torch.cat([far[:n], stack_window(seen, indices, architecture.bins, shifts), far[n:]])
            found: torch.Tensor = self.network(window[None], seen[centre][None, None])[0, 0, :height, :width]
            result: torch.Tensor = levels[centre].to(found) * (scale.mean + scale.contrast / gain * found)
            return result

        return prediction


def open_checked(folder: Path, movie: store.Store, denoised: store.Store) -> Checked:
    """The model that made a denoised movie, and the middle of the movie.

    Raises
    ------
    InputError
        If the model is missing, damaged, or another one.
    """
    try:
        model = load_model(folder)
    except ModelError as error:
        raise InputError(*str(error).split(": ", 1)) from None
    if model.id != denoised.attributes["model"]["id"]:
        raise InputError(folder, f"is not the model that made {denoised.path}.")
    name = str(model.card["kind"])
    extent = kind(name).checked_pixels or MOST_PIXELS
    sizes = [min(n, m) for n, m in zip(movie.shape, (FRAMES, extent, extent), strict=True)]
    corner = [(n - m) // 2 for n, m in zip(movie.shape, sizes, strict=True)]
    frames = store.read_frames(movie, corner[0], corner[0] + sizes[0])
    counts = frames[:, corner[1] : corner[1] + sizes[1], corner[2] : corner[2] + sizes[2]]
    scale = scale_for(model.network.architecture, movie_noise(movie))
    bad = movie_stand_ins(movie)
    if bad is not None:
        bad = bad[corner[1] : corner[1] + sizes[1], corner[2] : corner[2] + sizes[2]]
    drift = None
    if "drift" in denoised.attributes["settings"]:  # else it was made without
        drift = movie_drift(movie, model.network.architecture)
        drift = None if drift is None else drift[corner[0] : corner[0] + sizes[0]]
    brightness = movie_brightness(movie)
    if brightness is not None:
        valid = brightness.valid[corner[0] : corner[0] + sizes[0]]
        if valid.sum() < 3 or (model.network.architecture.far_bins and n_sections(int(valid.sum())) < 2):
            raise InputError(
                movie.path, "the frames in its middle are incomplete, so the model cannot be checked."
            )
        counts, drift = counts[valid], None if drift is None else drift[valid]
        rows, columns = ((first, first + n) for first, n in zip(corner[1:], sizes[1:], strict=True))
        brightness = brightness.part(corner[0] + np.flatnonzero(valid), rows, columns)
    place = corner[0], corner[1], corner[2]
    return Checked(model.network, name, counts, place, scale, bad, drift, brightness)


def check(model: Checked, noise: NoiseLaw, spots: Array, control: Control) -> ModelChecks:
    """All checks of a model.

    Parameters
    ----------
    model : Checked
    noise : NoiseLaw
    spots : ndarray, shape (n, 2)
        Of the movie's lattice [cycles per pixel].
    control : Control

    Returns
    -------
    ModelChecks
    """
    found: ModelCheck = {
        "ring_correlation": None,
        "held_back": None,
        "vacuum": None,
        "atoms": None,
        "filters": {},
        "single_image": None,
    }
    steps: list[Callable[[], ModelCheck]] = [
        lambda: {"filters": _filters(model, spots)},
        lambda: {"single_image": _single_image(model)},
    ]
    if noise.estimator == "poisson" and np.issubdtype(model.counts.dtype, np.integer) and noise.gain == 1:
        reference = model.denoise(model.counts)
        steps += [
            lambda: {"ring_correlation": _ring_correlation(model, spots)},
            lambda: {"held_back": _held_back(model)},
            lambda: {"vacuum": _vacuum_figures(model, spots)},
            lambda: {"atoms": _atoms(model, reference, spots)},
        ]
    for number, step in enumerate(steps):
        control.check("check the model")
        control.progress("check the model", number, len(steps))
        found |= step()
    control.progress("check the model", len(steps), len(steps))
    return {
        "frames": [model.corner[0], model.corner[0] + len(model.counts)],
        "corner": list(model.corner[1:]),
        "size": list(model.counts.shape[1:]),
        "ensemble": 1,
        **found,
    }


def _vacuum(model: Checked) -> tuple[tuple[int, int, int], float]:
    """Shape and level of a movie of noise that is as bright as the real one."""
    n_frames, height, width = model.counts.shape
    return (n_frames, height, width), float(model.counts[:, model.sound].mean())


def _vacuum_figures(model: Checked, spots: Array) -> VacuumFigures:
    found = probes.vacuum_probe(partial(model.denoise, steady=True), *_vacuum(model), spots)
    return {
        "std": found.std,
        "spot_ratio": found.spot_ratio,
        "spot_sd": found.spot_sd,
        "fringes": found.fringes,
    }


def _ring_correlation(model: Checked, spots: Array) -> RingCorrelation:
    """Of halves of the counts, each denoised on its own, and of a denoised with the other raw half."""
    halves = binomial_halves(model.counts, np.random.default_rng(0))
    smooth = [model.denoise(half, 0.5) for half in halves]
    raw = [model.shown(half, 0.5) for half in halves]  # a hot pixel is the same in both
    pairs = {"raw": tuple(raw), "denoised": tuple(smooth), "denoised_with_raw": (smooth[0], raw[1])}
    curves = {}
    for name, (one, other) in pairs.items():
        sums = RingSums()
        sums.add(one, other)
        curves[name] = sums.result()
    truth = truth_correlation(curves["denoised_with_raw"], curves["raw"])
    at_spots = [int(np.argmin(np.abs(curves["raw"].frequency - np.hypot(*spot)))) for spot in spots]
    return {
        "frequency": curves["raw"].frequency.tolist(),
        "raw": curves["raw"].correlation.tolist(),
        "denoised": curves["denoised"].correlation.tolist(),
        "denoised_with_raw": curves["denoised_with_raw"].correlation.tolist(),
        "with_truth": truth.tolist(),
        "limit_denoised": curves["denoised"].limit(),  # [cycles per pixel], threshold 1/7
        "limit_raw": curves["raw"].limit(),
        "with_truth_at_spots": [float(truth[i]) for i in at_spots],
        "denoised_at_spots": [float(curves["denoised"].correlation[i]) for i in at_spots],
    }


def _held_back(model: Checked) -> HeldBack:
    """Error at a little less than the dose, tested on electrons that the model did not see: for any model.

    With a of Bin(y, q) held back and f from the rest: ``mean((a / q - f / (1 - q))**2 - a / q**2)``.
    """
    q = HELD_BACK
    held = np.random.default_rng(1).binomial(model.counts, q).astype(model.counts.dtype)
    smooth = model.denoise(model.counts - held, 1 - q).astype(np.float64) / (1 - q)
    terms = (held / q - smooth) ** 2 - held / q**2
    error = bootstrap_interval(*block_sums(terms, mask=model.sound))
    return {"share": q, "mse": {**interval(error), "resolvable": bool(error.low > 0)}}


def _atoms(model: Checked, reference: Array, spots: Array) -> AtomProbes | None:
    """Atoms put in where the frame is flat, columns taken out, and a flash of a single frame."""
    distance = plane_distance(spots)
    if distance is None or len(model.counts) < 3 * DWELL:
        return None
    flat, columns = _places(model, reference, distance, SITES)
    if not len(flat) or not len(columns.sites):
        return None
    contrast = float(np.median(columns.contrasts))
    sigma = probes.ADATOM_SHARE * distance
    movie = model.denoise, model.counts, reference
    drift = model.drift
    put_in = probes.adatom_probe(*movie, flat, [n * contrast for n in ATOMS], sigma, DWELL, drift=drift)
    taken = _apart(columns, distance)
    taken_out = probes.adatom_probe(*movie, taken, [-contrast / (1 + contrast)], sigma, DWELL, drift=drift)
    flash = probes.flash_probe(*movie, flat, FLASH * contrast, sigma, drift=drift)
    if not put_in or flash is None:  # the scene moves out of the part
        return None
    return {
        "typical_contrast": contrast,
        "dwell_frames": DWELL,
        "put_in": [{"columns": n, **_figures(probe)} for n, probe in zip(ATOMS, put_in, strict=True)],
        "taken_out": [_figures(probe) for probe in taken_out],
        "flash": {
            "columns": FLASH,
            "offsets": list(flash.offsets),
            "response": list(flash.response),
            "strength": flash.strength,
        },
    }


def _figures(probe: probes.AdatomProbe) -> AtomsFigures:
    return {
        "strength": probe.strength,
        "index": probe.index,
        "recovered": probe.recovered,
        "auc": probe.auc,
        "n_sites": probe.n_sites,
    }


def _places(model: Checked, movie: Array, distance: float, n_flat: int) -> tuple[Array, ColumnsSeen]:
    """Flat sites and columns in the middle frame of a movie, where the part shows the scene at all times."""
    middle = len(movie) // 2
    seen = probes.always_seen(movie.shape[1:], middle, model.drift)
    mean = probes.level_at(movie, middle, model.drift)[seen]
    if not mean.size:
        return np.zeros((0, 2), int), ColumnsSeen(np.zeros((0, 2), int), np.zeros(0), np.zeros(0))
    corner = np.array([seen[0].start, seen[1].start])
    columns = find_columns(mean, distance)
    return probes.flat_sites(mean, distance, n_flat) + corner, replace(columns, sites=columns.sites + corner)


def _apart(columns: ColumnsSeen, distance: float) -> Array:
    """The strongest columns that do not touch each other."""
    chosen: list[Array] = []
    for site in columns.sites:
        if all(np.hypot(*(site - other)) >= 2 * distance for other in chosen) and len(chosen) < SITES:
            chosen.append(site)
    return np.array(chosen)


def _filters(model: Checked, spots: Array) -> dict[str, FilterShown]:
    """Of the flattest place and of the strongest column."""
    centre = len(model.counts) // 2
    flat, columns = _places(model, model.shown(model.counts), plane_distance(spots) or 8.0, 1)
    places = {}
    if len(flat):
        places["flat"] = flat[0]
    if len(columns.sites):
        places["column"] = columns.sites[0]
    radius = model.network.architecture.blind_radius
    found: dict[str, FilterShown] = {}
    for name, (row, column) in places.items():
        filtered = filter_at(model, (centre, int(row), int(column)))
        found[name] = {
            "pixel": [model.corner[0] + centre, model.corner[1] + int(row), model.corner[2] + int(column)],
            "per_frame": filtered.per_frame.tolist(),
            "first_frame": model.corner[0],
            "sum": filtered.total,
            "n_averaged": filtered.n_averaged,
            "shifts": filtered.shifts.tolist(),
            "own": filtered.own(radius if type(radius) is int else 0),
        }
    return found


def filter_at(model: Checked, pixel: tuple[int, int, int]) -> EquivalentFilter:
    """The equivalent filter at a pixel of the part."""
    return equivalent_filter(model.predict(pixel[0]), model.counts, pixel)


def _single_image(model: Checked) -> SingleImages | None:
    """uMSE of half-size images as published, and as the users' script computes it.

    None where there are bad pixels: their counts would be among the references, and dealt to any of the images.
    """
    if not model.sound.all():
        return None
    length = 2 * model.network.architecture.window + 1
    n_frames, height, width = model.counts.shape
    if n_frames < length or min(height, width) < 2 * model.network.architecture.stride:
        return None
    starts = np.unique(np.linspace(0, n_frames - length, SINGLE_IMAGES).round().astype(int))

    drift = model.drift
    # Of each window in turn, at half the size.
    moved = iter([None if drift is None else drift[start : start + length] / 2 for start in starts])

    def middle(window: Array) -> Array:
        tile = Tile.whole(window.shape)
        centre = range(length // 2, length // 2 + 1)
        return next(denoise(model.network, window, tile, model.scale, centre, ensemble=1, drift=next(moved)))

    windows = (model.counts[start : start + length] for start in starts)
    peak = float(np.percentile(model.counts.mean(axis=0), 99.9))
    error = single_image_error(middle, windows, peak)
    return {
        "umse": error.umse,
        "upsnr": error.upsnr,
        "legacy_umse": error.legacy_umse,
        "legacy_upsnr": error.legacy_upsnr,
        "n_windows": error.n_windows,
    }
