"""What napari calls to open a store, a run or a raw movie; `napari.yaml` tells it so. napari itself is not needed."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import zarr

from tdenoise.simulation.nanoparticle import simulate
from tdenoise.simulation.particle import SimulationSettings

from .errors import InputError
from .inputs.found_events import changes_beside
from .inputs.shown import Shown, shown_movies
from .readers import CAMERA_SUFFIXES
from .settings.results import is_run_folder
from .store import ome

POINT_PIXELS = 14

LayerData = tuple[Any, dict[str, Any], str]


def get_reader(path: str | list[str]) -> Callable[[str | list[str]], list[LayerData]] | None:
    """A function that reads a path, or None where this is no store of tdenoise, no run, and no raw movie of a camera.

    Parameters
    ----------
    path : str or list of str
    """
    try:
        for each in _paths(path):
            if not is_run_folder(each) and not _is_raw(each):
                shown_movies(each)
    except InputError:
        return None
    return read


def read(path: str | list[str]) -> list[LayerData]:
    """Layers of stores: the denoised movie with all its levels, and the counts below it where they lie beside it.

    Both have the same scale, contrast of their own, and no frame in memory before it is shown. The changes that
    `events` found are points above them; what the counts gave back is a hidden image. A raw movie is one layer.

    Raises
    ------
    InputError
        If a store is damaged.
    """
    layers = []
    for each in _paths(path):
        if _is_raw(each):
            layers.append(_raw_layer(each))
            continue
        movies = shown_movies(each)
        layers += [_layer(shown) for shown in movies]
        top = movies[-1].store
        if (given := _given_back(movies[-1])) is not None:
            layers.append(given)
        if "movie" in top.attributes and (found := changes_beside(top)):
            layers.append(_points(movies[-1], found))
    return layers


def sample() -> list[LayerData]:
    """A simulated movie with its truth, to try napari with."""
    scene = simulate(SimulationSettings(dose=2.0, seed=1))
    pixel = scene.settings.pixel_size_nm
    told: dict[str, Any] = {"scale": [scene.settings.frame_time_s, pixel, pixel], "colormap": "gray"}
    truth = scene.clean * scene.settings.dose
    return [
        (truth, {**told, "name": "truth"}, "image"),
        (scene.counts, {**told, "name": "raw counts"}, "image"),
    ]


def _is_raw(path: Path) -> bool:
    """Whether this is a movie in a format that only cameras write; of others napari has readers of its own."""
    return path.is_file() and path.suffix.lower() in CAMERA_SUFFIXES


def _raw_layer(path: Path) -> LayerData:
    import xarray

    counts = xarray.open_dataset(path, engine="tdenoise", chunks={})["counts"]
    window = ome.omero(path.stem, counts.data)["channels"][0]["window"]
    told = {
        "name": f"{path.stem}: counts",
        "scale": [
            float(counts[axis][1] - counts[axis][0]) if counts[axis].size > 1 else 1.0 for axis in "tyx"
        ],
        "contrast_limits": (window["start"], window["end"]),
        "colormap": "gray",
    }
    return counts.data, told, "image"


def _given_back(shown: Shown) -> LayerData | None:
    """What the counts of the whole movie gave back; None where the scene drifts, or where it is nothing."""
    place = shown.store.path / "given_back"
    if not place.is_dir():
        return None
    given = zarr.open_array(place, mode="r")
    if given.shape != shown.store.shape[1:] or not (largest := float(np.abs(given[:]).max())):
        return None
    where = {name: values[1:] for name, values in _place(shown).items()}
    told = {
        **where,
        "name": f"{shown.store.path.stem}: given back by the counts",
        "colormap": "PiYG",
        "contrast_limits": (-largest, largest),
        "opacity": 0.5,
        "visible": False,
    }
    return np.asarray(given[:]), told, "image"


def _paths(path: str | list[str]) -> list[Path]:
    return [Path(each) for each in ([path] if isinstance(path, str) else path)]


def _place(shown: Shown) -> dict[str, list[float]]:
    """Where a layer lies, in s and nm."""
    steps = [1.0 if step is None else step for _, step, _ in shown.store.coordinates.axes]
    starts = [step * first for step, (*_, first) in zip(steps, shown.store.coordinates.axes, strict=True)]
    return {"scale": steps, "translate": starts}


def _points(shown: Shown, found: list[dict[str, Any]]) -> LayerData:
    told = {
        **_place(shown),
        "name": f"{shown.store.path.stem}: changes",
        "symbol": "square",
        "size": POINT_PIXELS,
        "face_color": "transparent",
        "features": {
            name: [change[key] for change in found]
            for name, key in (("probability", "p"), ("before", "before"), ("after", "after"))
        },
    }
    return [[change[axis] for axis in "tyx"] for change in found], told, "points"


def _layer(shown: Shown) -> LayerData:
    told = {
        **_place(shown),
        "name": shown.title,
        "multiscale": len(shown.levels) > 1,
        "contrast_limits": shown.window,
        "colormap": "gray",
        "metadata": {"tdenoise": dict(shown.store.attributes)},
    }
    arrays = [level.array for level in shown.levels]
    return (arrays if len(arrays) > 1 else arrays[0], told, "image")
