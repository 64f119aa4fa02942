"""What napari calls to open a store, or the folder of a run; `napari.yaml` tells it so. napari itself is not needed."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from .errors import InputError
from .inputs.found_events import changes_beside
from .inputs.shown import Shown, shown_movies
from .settings.results import is_run_folder

POINT_PIXELS = 14

LayerData = tuple[Any, dict[str, Any], str]


def get_reader(path: str | list[str]) -> Callable[[str | list[str]], list[LayerData]] | None:
    """A function that reads a path, or None where this is no store of tdenoise and no folder of a run.

    Parameters
    ----------
    path : str or list of str
    """
    try:
        for each in _paths(path):
            if not is_run_folder(each):
                shown_movies(each)
    except InputError:
        return None
    return read


def read(path: str | list[str]) -> list[LayerData]:
    """Layers of stores: the denoised movie with all its levels, and the counts below it where they lie beside it.

    Both have the same scale, contrast of their own, and no frame in memory before it is shown. The changes that
    `events` found are points above them.

    Raises
    ------
    InputError
        If a store is damaged.
    """
    layers = []
    for each in _paths(path):
        movies = shown_movies(each)
        layers += [_layer(shown) for shown in movies]
        top = movies[-1].store
        if "movie" in top.attributes and (found := changes_beside(top)):
            layers.append(_points(movies[-1], found))
    return layers


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
