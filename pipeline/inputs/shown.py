"""The movies that a viewer shows for a path: the counts and what was made of them, each with its coarser copies."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import zarr

from ..errors import InputError
from ..settings.results import OUTPUTS, part_of_run
from ..store import ome, store


@dataclass(frozen=True)
class ShownLevel:
    """A movie at one resolution."""

    pixels: int  # side of the square that one of its pixels is the mean of
    array: Any  # `checked_array.CheckedArray`, shape (n_frames, height, width)


@dataclass(frozen=True)
class Shown:
    """A movie to look at."""

    title: str
    store: store.Store
    levels: list[ShownLevel]  # from full resolution down
    window: tuple[float, float]  # values that are shown black and white


def shown_movies(path: Path, movie: Path | None = None) -> list[Shown]:
    """The movies of a store or a run: the counts, and the denoised movie above them, where both are there.

    Parameters
    ----------
    path : Path
        Movie store, denoised store, or the folder of a run.
    movie : Path, optional
        Where the counts of a denoised store are; otherwise they are looked for beside it.

    Raises
    ------
    InputError
        If a store is missing or damaged, or the counts are not those that the denoised movie was made from.
    """
    place = part_of_run(path, "apply")
    if place != path and not place.exists():
        place = part_of_run(path, "ingest")  # a run that is not so far
    if store.read_attributes(place)["kind"] == "movie":
        return [_shown(place, store.MOVIE)]
    denoised = _shown(place, store.DENOISED)
    counts = _counts_of(denoised.store, movie)
    return [denoised] if counts is None else [_shown(counts, store.MOVIE), denoised]


def _counts_of(denoised: store.Store, movie: Path | None) -> Path | None:
    """The movie store that a denoised movie was made from; None where it does not lie beside it."""
    wanted, found = denoised.attributes["movie"], None
    for candidate in (
        [movie]
        if movie
        else [denoised.path.parent / wanted["name"], denoised.path.parent / OUTPUTS["ingest"]]
    ):
        try:
            if store.read_attributes(candidate)["id"] == wanted["id"]:
                found = candidate
                break
        except InputError:
            if movie is not None:
                raise
    if movie is not None and found is None:
        raise InputError(denoised.path, f"was made from another movie ({wanted['name']}), not from {movie}.")
    return found


def _shown(path: Path, name: str) -> Shown:
    opened = store.open_store(path, name, deep=False)
    levels = [ShownLevel(1, opened.array)]
    for level, told in opened.attributes.get(store.PYRAMID, {}).items():
        if told["frames"] == 1:
            levels.append(ShownLevel(told["pixels"], store.open_store(path, level, deep=False).array))
    return Shown(f"{path.stem}: {name}", opened, levels, _window(path, name, opened))


def _window(path: Path, name: str, opened: store.Store) -> tuple[float, float]:
    """Contrast limits as recorded; stores of old versions have none, so some frames are looked at."""
    told = dict(zarr.open_group(path, mode="r").attrs).get("ome")
    found = told.get("omero") if isinstance(told, dict) else None
    try:
        window = (found or ome.omero(name, opened.array))["channels"][0]["window"]
        return float(window["start"]), float(window["end"])
    except (LookupError, TypeError, ValueError) as error:
        raise InputError(path / "zarr.json", f"has damaged contrast limits ({error})") from None
