"""Movies for the base model: simulated scenes in many variations, whose clean frames are the training target.

A network that is trained on a noisy movie has to find out, from noise, what atomic columns look like and how they
come and go. Simulated movies can teach it both beforehand, with targets free of noise; the movie at hand then only
has to correct what the simulation got wrong. So what matters is variety, not likeness: pixel sizes, orientations,
bright and dark columns, blur, backgrounds, drift, dwell times and doses are drawn anew for every scene.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

from ..network.split_blind import OUTPUT_UNIT
from ..noise.brightness import Brightness
from ..noise.noise import Scale
from ..simulation.nanoparticle import Simulation, simulate
from ..simulation.particle import MASK_RADIUS_NM, SimulationSettings
from ..simulation.rendering import near
from ..simulation.varied_scenes import Scene, varied_scene
from .training_movie import TrainingMovie

__all__ = ["Scene", "noisy", "scene", "varied_scene"]

Array = NDArray[Any]

PIXEL_SIZES_NM = 0.009, 0.024
DRIFT_SPEEDS_PX = 0.02, 0.6  # per frame, at most, along each axis
FAINTEST = 0.02  # of the vacuum level: no pixel is darker
# Weight of the error near columns that come and go, and in the frames beside their changes; elsewhere it is 1.
CHANGING_IMPORTANCE, CHANGE_IMPORTANCE = 4, 40
BESIDE = 4  # frames before a change, and from it on
FOLLOWED = 0.9  # of the movies; of the others nobody knows how they drift
TRANSFERRED = (
    0.6  # of the scenes are seen through another lens than that of `tdenoise.simulation.nanoparticle`
)
DRIFT_ERROR_PX = 0.3  # standard deviation of a measured drift in the worst movies
DRIFT_FRAMES = 8  # between two measurements of the drift, as at ingest
LEVEL_PIXELS = 128**2  # of a small movie, whose levels are measured with this many pixels
UNSTEADY = 0.3  # of the movies are made with a beam that flickers, steps or decays
DOSES = (0.05, 1.0), (1.0, 10.0)  # [electrons per pixel and frame], half of the movies in each range


def scene(
    seed: int,
    *,
    n_frames: int = 96,
    size: int = 160,
    at_events: bool = False,
    pixel_sizes_nm: tuple[float, float] = PIXEL_SIZES_NM,
    drift_speeds_px: tuple[float, float] = DRIFT_SPEEDS_PX,
) -> Scene:
    """Clean movie of a random scene.

    Parameters
    ----------
    seed : int
    n_frames : int
    size : int
        Height and width [pixels].
    at_events : bool
        Cut the scene around columns that come and go, and let more of them do so: such places are rare in a
        whole field, and learning from them takes longest.
    pixel_sizes_nm, drift_speeds_px : (float, float)
        Least and largest.

    Returns
    -------
    Scene
    """
    rng = np.random.default_rng([seed, 77, at_events])
    margin = math.ceil(size * (math.sqrt(2) - 1) / 2) + 1  # so that a turned cut has no empty corner
    extent = size + 2 * margin
    field = extent if not at_events else int(rng.integers(extent + 10, max(extent + 11, 260)))
    movie = _simulated(rng, seed, n_frames, field, at_events, pixel_sizes_nm, drift_speeds_px)
    places = np.argwhere(movie.changing_mask) if at_events else np.empty((0, 2), int)
    middle = places[rng.integers(len(places))] if len(places) else np.array([field // 2, field // 2])
    top, left = np.clip(middle - extent // 2, 0, field - extent)
    cut = movie.clean[:, top : top + extent, left : left + extent]
    importance = _importance(movie)[:, top : top + extent, left : left + extent]
    drift = movie.drift_px.astype(np.float64)
    if rng.uniform() < 0.6:
        angle = rng.uniform(0, 360)
        cut = ndimage.rotate(cut, angle, axes=(1, 2), reshape=False, order=3, mode="nearest")
        importance = ndimage.rotate(importance, angle, axes=(1, 2), reshape=False, order=0, mode="nearest")
        drift = drift @ _turn(angle)
    if rng.uniform() < TRANSFERRED:
        cut = _transferred(rng, cut, movie.settings.pixel_size_nm)
    inner = slice(margin, margin + size)
    clean = _as_imaged(rng, cut[:, inner, inner], size, drift)
    return Scene(
        np.asarray(np.maximum(clean, FAINTEST), np.float16), importance[:, inner, inner].copy(), drift
    )


def _simulated(
    rng: np.random.Generator,
    seed: int,
    n_frames: int,
    field: int,
    at_events: bool,
    pixel_sizes_nm: tuple[float, float],
    drift_speeds_px: tuple[float, float],
) -> Simulation:
    """A particle of a random kind, whole."""
    shortest = _log_uniform(rng, 2, 12)
    return simulate(
        SimulationSettings(
            n_frames=n_frames,
            height=field,
            width=field,
            seed=seed,
            pixel_size_nm=_log_uniform(rng, *pixel_sizes_nm),
            changing_share=rng.uniform(0.5, 1.0) if at_events else rng.uniform(0.2, 0.9),
            dwell_frames=(shortest, shortest * _log_uniform(rng, 1.5, 10)),
            drift_speed_px=rng.uniform(*drift_speeds_px),
            rotation_every_frames=(20.0, rng.uniform(40, 200)),
        )
    )


def _as_imaged(rng: np.random.Generator, clean: Array, size: int, drift: Array) -> Array:
    """A scene at some focus, on a support of uneven thickness."""
    contrast = rng.uniform(0.4, 1.6) * rng.choice([1, 1, 1, -1])  # at some focus, columns are dark
    clean = 1 + contrast * (clean - 1)
    if rng.uniform() < 0.4:
        blur = rng.uniform(0.3, 1.2)
        clean = ndimage.gaussian_filter(clean, (0, blur, blur))
    thickness = _texture(rng, size, rng.uniform(10, 50), drift)
    clean = clean * (1 + rng.uniform(0, 0.08) * thickness)
    if rng.uniform() < 0.4:
        amorphous = _texture(rng, size, rng.uniform(2, 6), drift)
        clean = clean + rng.uniform(0.005, 0.04) * amorphous
    return clean


def noisy(made: Scene, seed: int, doses: tuple[float, float] | None = None) -> TrainingMovie:
    """Counts of a clean movie at a random dose, with the clean movie as target.

    Without ``doses``, half of them lie below one electron per pixel and frame, half above: where changes are plain to
    see, a network learns to look for them. Errors near columns that come and go weigh more, most of all beside a
    change: they are few, and what users look for. The mean square is lowest for one who takes a change for as rare as
    it is, and smears those that the counts leave in doubt.

    The windows of the network follow the drift as well as it would be measured.

    Parameters
    ----------
    made : Scene
    seed : int
    doses : (float, float), optional
        Least and largest dose [electrons per pixel and frame]. The beam is then steady.

    Returns
    -------
    TrainingMovie
    """
    rng = np.random.default_rng([seed, 78])
    low, high = doses or DOSES[int(rng.uniform() < 0.5)]
    dose = _log_uniform(rng, low, high)
    clean, brightness = made.clean, None
    if doses is None and rng.uniform() < UNSTEADY:
        levels = _levels(rng, len(clean))
        clean = (clean * levels[:, None, None]).astype(np.float16)
        error = rng.normal(0, 1 / math.sqrt(dose * LEVEL_PIXELS), len(clean))  # as measured on a whole frame
        brightness = Brightness(levels * np.exp(error), np.ones(len(clean), dtype=bool))
    expected = clean.astype(np.float32) * dose
    counts = rng.poisson(expected)
    mean = float(made.clean.mean(dtype=np.float64)) * dose
    scale = Scale(mean, math.sqrt(mean), OUTPUT_UNIT * math.sqrt(mean))
    drift = _measured(made.drift, rng) if rng.uniform() < FOLLOWED else None
    return TrainingMovie(
        counts.astype(np.uint8 if counts.max() < 256 else np.uint16),
        scale,
        (),
        clean,
        dose,
        drift=drift,
        importance=made.importance,
        brightness=brightness,
    )


def _levels(rng: np.random.Generator, n_frames: int) -> NDArray[np.float64]:
    """Brightness of every frame under a beam that is not steady, of mean 1."""
    how, levels = rng.integers(4), np.ones(n_frames)
    if how == 0:
        levels = np.linspace(1, _log_uniform(rng, 0.1, 0.8), n_frames)[:: rng.choice([1, -1])]
    elif how == 1:
        levels[int(rng.integers(1, n_frames)) :] = _log_uniform(rng, 0.3, 3.0)
    if how >= 2:
        levels = levels * np.exp(rng.normal(0, _log_uniform(rng, 0.02, 0.35), n_frames))
    return np.asarray(levels / levels.mean())


def _importance(movie: Simulation) -> NDArray[np.uint8]:
    """Weight of an error at every place of a movie, shape (n_frames, height, width)."""
    shape, radius = movie.clean.shape[1:], MASK_RADIUS_NM / movie.settings.pixel_size_nm
    changes = np.diff(movie.col_occ.astype(float), axis=0, prepend=movie.col_occ[:1]) != 0
    weights = np.where(movie.changing_mask, CHANGING_IMPORTANCE, 1).astype(np.uint8)
    weights = np.repeat(weights[None], len(movie.clean), axis=0)
    for frame, (weight, places) in enumerate(zip(weights, movie.col_pos, strict=True)):
        beside = changes[max(0, frame - BESIDE + 1) : frame + BESIDE + 1].any(axis=0)
        weight[near(shape, places[beside], radius)] = CHANGE_IMPORTANCE
    return weights


def _log_uniform(rng: np.random.Generator, low: float, high: float) -> float:
    return float(np.exp(rng.uniform(math.log(low), math.log(high))))


def _turn(angle: float) -> Array:
    """Matrix that (row, column) is multiplied with from the right, as `scipy.ndimage.rotate` turns an image."""
    cos, sin = math.cos(math.radians(angle)), math.sin(math.radians(angle))
    return np.array([[cos, sin], [-sin, cos]])


def _transferred(rng: np.random.Generator, movie: Array, pixel_size_nm: float) -> Array:
    """Movie as another lens shows it: fine detail stronger or weaker, and of the other sign beyond some frequency.

    The contrast of a phase object is transferred by a factor that varies, and at last oscillates, with the square of
    the spatial frequency (Williams & Carter 2009, chapter 28). The strength of the contrast stays as it was.
    """
    height, width = movie.shape[1:]
    rows, columns = np.fft.fftfreq(height, pixel_size_nm)[:, None], np.fft.rfftfreq(width, pixel_size_nm)
    frequency = np.minimum(np.hypot(rows, columns), 14.0)  # [1/nm]; beyond it there is nothing
    transfer = np.exp(rng.uniform(-0.8, 1.4) * (frequency - 5) / 5)
    nodes = np.arange(0, 16, 2.0)
    transfer *= np.interp(frequency, nodes, np.exp(rng.normal(0, 0.35, len(nodes))))
    if rng.uniform() < 0.4:
        transfer *= np.cos(np.pi / 2 * (frequency / rng.uniform(5, 12)) ** 2)
    level = movie.mean(dtype=np.float64)
    transfer[0, 0] = 1.0
    seen = np.fft.irfft2(np.fft.rfft2(movie - level) * transfer, (height, width))
    return np.asarray(level + seen * (movie.std() / seen.std()), np.float32)


def _measured(drift: NDArray[np.float64], rng: np.random.Generator) -> NDArray[np.float64]:
    """A drift with the errors of measuring it, which are alike in frames next to each other."""
    n_frames = len(drift)
    knots = np.arange(0, n_frames + DRIFT_FRAMES, DRIFT_FRAMES)
    errors = rng.normal(0, rng.uniform(0, DRIFT_ERROR_PX), (2, len(knots)))
    between = [np.interp(np.arange(n_frames), knots, error) for error in errors]
    return np.asarray(drift + np.stack(between, axis=-1))


def _texture(rng: np.random.Generator, size: int, grain: float, drift: NDArray[np.float64]) -> Array:
    """A random image of mean 0 and variance 1 that varies over some pixels, and drifts: (n_frames, size, size)."""
    margin = math.ceil(np.abs(drift).max()) + 2
    image = ndimage.gaussian_filter(rng.standard_normal((size + 2 * margin,) * 2), grain)
    image = (image - image.mean()) / image.std()
    inside = slice(margin, margin + size)
    return np.stack([ndimage.shift(image, moved, order=1)[inside, inside] for moved in drift])
