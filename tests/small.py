"""Small movies and small networks that many tests share."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import torch
from tdenoise_pipeline.ingest.ingest import ingest
from tdenoise_pipeline.settings.config import IngestConfig

from tdenoise.network.checkpoint import save_model
from tdenoise.network.split_blind import Architecture, SplitBlind

SHARED = Path(__file__).parents[2] / "shared"

TINY = Architecture(
    window=3,
    bins=(1, 2),
    unshuffle=2,
    widths=(4, 6),
    features=2,
    centre_width=3,
    fusion_width=4,
    blind_radius=0,
)


def counts(shape: tuple[int, int, int], seed: int = 0, dose: float = 2.0) -> np.ndarray:
    """Poisson counts of a scene that drifts."""
    t, y, x = np.ogrid[: shape[0], : shape[1], : shape[2]]
    clean = 1 + 0.3 * np.sin((x + 0.2 * t) / 3.0) * np.cos(y / 4.0)
    return np.random.default_rng(seed).poisson(dose * clean).astype(np.uint8)


def drifting(n_frames: int, seed: int = 0, step: float = 1.0) -> np.ndarray:
    """A random walk of the scene, rows and columns for every frame [pixels]."""
    return np.cumsum(np.random.default_rng(seed).normal(0, step, (n_frames, 2)), axis=0)


def network(architecture: Architecture = TINY, seed: int = 0) -> SplitBlind:
    """A network with random weights, large enough that its output is not lost in rounding."""
    torch.manual_seed(seed)
    made = SplitBlind(architecture)
    for parameter in made.parameters():
        parameter.data *= 2
    return made.eval().requires_grad_(False)


def movie_store(folder: Path, frames: np.ndarray, /, **settings: Any) -> Path:
    """Ingest an array as a movie store, by way of a raw file."""
    folder.mkdir(parents=True, exist_ok=True)
    raw = folder / "raw.npy"
    np.save(raw, frames)
    ingest(IngestConfig(raw=raw, output=folder / "movie.zarr", **settings))
    return folder / "movie.zarr"


def model_folder(folder: Path, made: SplitBlind | None = None) -> Path:
    """Save a network as a model that was trained on nothing in particular."""
    save_model(
        folder,
        made or network(),
        {
            "movies": [{"id": "none", "source": "none", "snr": 0.2, "held_out": []}],
            "ancestors": [],
            "plan": "none",
        },
    )
    return folder
