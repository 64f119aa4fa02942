"""How much there is to do, as far as it is known before a command starts: for what its jobs will cost."""

from __future__ import annotations

import math
from contextlib import suppress
from typing import Any

import numpy as np

from tdenoise.network import checkpoint
from tdenoise.network.registry import architecture_of

from ..apply.apply_plan import lay_out
from ..errors import PipelineError
from ..ingest.ingest_many import plan_jobs
from ..ingest.ingest_plan import open_movie, plan_geometry, stored_shape
from ..settings.denoise_settings import ApplyManyConfig, RunConfig
from ..settings.ingest_settings import IngestManyConfig
from ..settings.study_settings import StudyConfig
from ..store.blocks import n_blocks
from .apply_many import describe_plans


def sizes(config: Any) -> dict[str, Any]:
    """What is known: ``disk_bytes``, ``n_blocks``, ``block_bytes``, ``n_workers``, ``train_s``.

    Parameters
    ----------
    config : dataclass
        Settings of any command. What cannot be known yet is left out: a model or a store that an earlier job will
        make, or a drift that ``run`` will measure (it takes somewhat more memory).
    """
    found: dict[str, Any] = {}
    if limit := getattr(config, "time_limit", None):
        found["train_s"] = limit
    if isinstance(config, StudyConfig):
        return {}  # what a cell takes, its training does
    if (workers := getattr(config, "workers", None)) and workers.system is not None:
        found["n_workers"] = workers.count
    with suppress(PipelineError, OSError):
        if isinstance(config, IngestManyConfig):
            found["disk_bytes"] = sum(_raw_size(job) for job in plan_jobs(config))
        elif isinstance(config, RunConfig):
            with open_movie(config) as reader:
                shape, dtype = stored_shape(reader.info, config), reader.info.dtype
            laid = lay_out(
                None,
                config.ensemble,
                False,
                shape,
                plan_geometry(shape, dtype).shard[0],
                dtype.itemsize,
                architecture_of(checkpoint.read_card(checkpoint.BASE)),
                2 if config.variance else 1,
            )
            found["n_blocks"] = n_blocks(shape, laid.core)
            found["block_bytes"] = laid.worker_bytes
            found["disk_bytes"] = laid.disk_bytes + math.prod(shape) * dtype.itemsize
        elif isinstance(config, ApplyManyConfig):
            planned = describe_plans(config)
            found["n_blocks"] = planned["n_blocks"]
            found["block_bytes"] = planned["worker_memory_bytes"]
            found["disk_bytes"] = planned["disk_estimate_bytes"]
    return found


def _raw_size(job: Any) -> int:
    with open_movie(job) as reader:
        return int(math.prod(stored_shape(reader.info, job)) * np.dtype(reader.info.dtype).itemsize)
