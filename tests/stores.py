"""Pairs of a movie store and a denoised store with a known prediction, without any training."""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import zarr
from scipy.ndimage import gaussian_filter, gaussian_filter1d
from tdenoise_pipeline.events.tables import EVENTS
from tdenoise_pipeline.ingest.ingest import ingest
from tdenoise_pipeline.settings.config import IngestConfig
from tdenoise_pipeline.store import integrity, store, writing
from tdenoise_pipeline.store.blocks import Region
from tdenoise_pipeline.store.shards import shards_in

from tdenoise.simulation.nanoparticle import Simulation, truth_arrays

MODEL_ID = "5" * 64


def movie_store(path: Path, counts: np.ndarray, **settings: Any) -> store.Store:
    """Ingest an array of counts as a movie store."""
    raw = path.with_suffix(".npy")
    np.save(raw, counts)
    ingest(IngestConfig(raw=raw, output=path, **{"force": True, **settings}))
    return store.open_store(path, store.MOVIE)


def denoised_store(
    path: Path,
    movie: store.Store,
    denoised: np.ndarray,
    held_out: Sequence[int] = (),
    blind_radius: int | str | None = 0,
    model_id: str = MODEL_ID,
    variance: np.ndarray | None = None,
) -> store.Store:
    """Write a prediction, and what it states of its variance, as the denoised store of a movie."""
    geometry = store.Geometry.of(movie.shape)
    writing.create(
        path, store.DENOISED, movie.shape, np.dtype("float32"), geometry, movie.coordinates, movie.units
    )
    layers = {store.DENOISED: denoised}
    if variance is not None:
        layers[store.VARIANCE] = variance
        described = {"units": f"{movie.units}^2"}
        writing.add_sharded(path, store.VARIANCE, movie.shape, np.dtype("float32"), geometry, described)
    whole = Region(*((0, n) for n in movie.shape))
    ids, hashes = {}, {}
    for name, values in layers.items():
        array = zarr.open_array(path / name, mode="r+")
        hashes[name] = dict(
            writing.write_shard(path / name, array, region, values[region.slices].astype(np.float32))
            for region in shards_in(whole, geometry.shard)
        )
        ids[name] = integrity.content_id(name, array, hashes[name])
    if variance is not None:
        writing.record_hashes(path, store.VARIANCE, hashes[store.VARIANCE])
    attributes = {
        "kind": "denoised",
        "plan": "none",
        "id": ids[store.DENOISED],
        **({store.VARIANCE: {"id": ids[store.VARIANCE]}} if variance is not None else {}),
        "movie": {
            "id": movie.id,
            "name": movie.path.name,
            "source": movie.attributes["source"]["name"],
        },
        "model": {"id": model_id, "kind": "split-blind", "blind_radius": blind_radius},
        "held_out_frames": list(held_out),
        "settings": {"step": "apply"},
        "devices": ["cpu"],
        "software": {"tdenoise": "0"},
    }
    writing.finish(path, store.DENOISED, attributes, hashes[store.DENOISED])
    return store.open_store(path, store.DENOISED)


def truth_file(path: Path, simulation: Simulation, **changes: Any) -> Path:
    """The truth of a simulation as a file, with some arrays replaced, or left out where None is given."""
    arrays = {**truth_arrays(simulation), **changes}
    np.savez_compressed(path, **{name: array for name, array in arrays.items() if array is not None})
    return path


def blind_gaussian(counts: np.ndarray, sigma: tuple[float, float, float]) -> np.ndarray:
    """A Gaussian average of all pixels but the one that is predicted."""
    y = counts.astype(np.float64)
    own = np.ones(())
    for size, width in zip(y.shape, sigma, strict=True):
        own = own[..., None] * np.diag(gaussian_filter1d(np.eye(size), width, axis=0))
    return (gaussian_filter(y, sigma) - own * y) / (1 - own)


def events_beside(path: Path, rows: Iterable[str], **other: Any) -> None:
    """The folder that `events` writes beside a denoised store, with these changes."""
    folder, opened = path.parent, store.open_store(path, store.DENOISED)
    told = {"kind": "events", "movie": opened.attributes["movie"], "denoised": {"id": opened.id}, **other}
    (folder / "events").mkdir()
    (folder / "events/events.json").write_text(json.dumps(told))
    (folder / "events/events.csv").write_text("\n".join([",".join(EVENTS), *rows, ""]))
