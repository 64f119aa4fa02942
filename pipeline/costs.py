"""How much there is to do, as far as it is known before a command starts: for what its jobs will cost."""

from __future__ import annotations

import math
from contextlib import suppress
from types import SimpleNamespace
from typing import Any

import numpy as np

from tdenoise import checkpoint

from . import apply, store
from .cluster import parse_workers
from .config import ApplyConfig, IngestManyConfig, RunConfig
from .errors import PipelineError
from .ingest_many import plan_jobs
from .ingest_plan import open_movie, plan_geometry, stored_shape


def sizes(config: Any) -> dict[str, Any]:
    """What is known: ``disk_bytes``, ``n_blocks``, ``block_bytes``, ``n_workers``, ``train_s``.

    Parameters
    ----------
    config : dataclass
        Settings of any command. What cannot be known yet is left out: a model or a store that an earlier job will
        make.
    """
    found: dict[str, Any] = {}
    if limit := getattr(config, "time_limit", None):
        found["train_s"] = limit
    if workers := getattr(config, "workers", None):
        kind, count = parse_workers(workers)
        if kind not in ("local", "address"):
            found["n_workers"] = count
    with suppress(PipelineError, OSError):
        if isinstance(config, IngestManyConfig):
            found["disk_bytes"] = sum(_raw_size(job) for job in plan_jobs(config))
        elif isinstance(config, RunConfig):
            with open_movie(config) as reader:
                shape, dtype = stored_shape(reader.info, config), reader.info.dtype
            movie = SimpleNamespace(
                shape=shape, id="", array=SimpleNamespace(dtype=dtype), geometry=plan_geometry(shape, dtype)
            )
            found |= _apply(config, movie, checkpoint.BASE)
            found["disk_bytes"] += math.prod(shape) * dtype.itemsize
        elif isinstance(config, ApplyConfig):
            found |= _apply(
                config, store.open_store(config.movie, store.MOVIE), config.model or checkpoint.BASE
            )
    return found


def _apply(config: Any, movie: Any, model: Any) -> dict[str, Any]:
    settings = ApplyConfig(
        movie=config.output, output=config.output, ensemble=config.ensemble, tile=getattr(config, "tile", None),
        lossless=getattr(config, "lossless", False),
    )  # fmt: skip
    planned = apply.make_plan(settings, movie, apply.open_model(model).card)
    return {
        "n_blocks": len(planned.blocks),
        "block_bytes": planned.worker_bytes,
        "disk_bytes": planned.disk_bytes,
    }


def _raw_size(job: Any) -> int:
    with open_movie(job) as reader:
        return int(math.prod(stored_shape(reader.info, job)) * np.dtype(reader.info.dtype).itemsize)
