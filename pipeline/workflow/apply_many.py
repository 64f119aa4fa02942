"""One model for several movies, or for an archive: each in its turn, on the same workers."""

from __future__ import annotations

import contextlib
import logging
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from tdenoise.network import checkpoint
from tdenoise.network.registry import architecture_of
from tdenoise.noise.drift import largest_shift

from ..apply.apply import apply
from ..apply.apply_plan import describe_plan, followed_drift, lay_out
from ..archive.card import Card
from ..archive.index import cards
from ..errors import InputError, PipelineError, Stopped, UsageError
from ..inputs.model_fit import open_model
from ..resources import budget
from ..settings.denoise_settings import ApplyConfig, ApplyManyConfig
from ..settings.results import AUTO, is_archive
from ..settings.steps import is_single, one_movie, single
from ..step_control import Control
from ..store import blocks, store
from ..workers.executors import Connect
from .chosen import chosen

log = logging.getLogger(__name__)


def apply_many(config: ApplyManyConfig, control: Control | None = None) -> dict[str, Any]:
    """Denoise one movie or several; one that fails does not keep the others from being done.

    Returns
    -------
    dict
        Of one movie: ``store`` and its attributes. Of several: ``movies``, a record of each, and ``exit_code``,
        the highest of theirs.

    Raises
    ------
    PipelineError
        Where it is one movie; of several only if they cannot be told apart, or if a stop was asked for.
    """
    control = control or Control()
    if is_single(config):
        with chosen(single(config), control) as job:
            return {"store": str(job.output), **apply(job, control)}
    for _ in jobs(config):  # whether all can be told apart, before the first is begun
        pass
    records = []
    with _Shared(config, control) as shared:
        for number, (job, identity) in enumerate(jobs(config), start=1):
            log.info("movie %d: %s", number, job.movie)
            records.append(_attempt(job, identity, control, shared.connect))
    return {"movies": records, "exit_code": max((r["exit_code"] for r in records), default=0)}


def describe_plans(config: ApplyManyConfig) -> dict[str, Any]:
    """What ``--dry-run`` prints; of an archive from its cards alone, so that no movie is opened.

    The cards do not tell a drift, which takes somewhat more memory: ``n_movies_drift_not_counted``.
    """
    if is_single(config):
        with chosen(single(config), Control()) as job:
            return describe_plan(job)
    # Of models that are chosen for each movie, the one that comes with tdenoise stands for all.
    model = open_model(checkpoint.BASE if config.model in (None, AUTO) else config.model).card
    architecture = architecture_of(model)
    total = {"n_movies": 0, "n_blocks": 0, "n_files": 0, "disk_estimate_bytes": 0, "worker_memory_bytes": 0}
    total["n_movies_drift_not_counted"] = 0
    for shape, shard_frames, itemsize, opened, _, identity in _movies(config):
        drift = None if opened is None else followed_drift(config, opened, model)
        laid = lay_out(
            config.tile,
            config.ensemble,
            config.lossless,
            shape,
            shard_frames,
            itemsize,
            architecture,
            2 if config.variance else 1,
            largest_shift(drift, architecture.window),
        )
        total["n_movies"] += 1
        total["n_movies_drift_not_counted"] += identity is not None
        total["n_blocks"] += blocks.n_blocks(shape, laid.core)
        total["n_files"] += blocks.n_blocks(shape, laid.geometry.shard)
        total["disk_estimate_bytes"] += laid.disk_bytes
        total["worker_memory_bytes"] = max(total["worker_memory_bytes"], laid.worker_bytes)
    return total | {"free_bytes": budget.free_bytes(config.output)}


def jobs(config: ApplyManyConfig) -> Iterator[tuple[ApplyConfig, str | None]]:
    """The settings for every movie, and (from an archive) its id; made one by one; no movie is opened.

    Raises
    ------
    UsageError
        If two movies would have the same name, or ``-o`` is no name for a folder.
    """
    if config.output.suffix == ".zarr":
        raise UsageError(
            f"{config.output}: this names one store, but there are several movies. Name a folder."
        )
    taken: dict[Path, Path] = {}
    for *_, path, identity in _movies(config):
        # In an archive, names need not differ.
        name = path.name if identity is None else f"{path.stem}-{identity[:12]}.zarr"
        output = config.output / name
        if output in taken:
            raise UsageError(
                f"{taken[output]} and {path} would both become {output}. Apply to them in different folders."
            )
        taken[output] = path
        yield one_movie(config, path, output), identity


Found = tuple[tuple[int, int, int], int, int, store.Store | None, Path, str | None]


def _movies(config: ApplyManyConfig) -> Iterator[Found]:
    """Shape, frames of a shard, bytes of a number, opened store (or from an archive not), path and id (or else not)."""
    for path in config.movie:
        if is_archive(path):
            for card in cards(path, metadata=False):
                if card["kind"] == "movie":
                    yield _of_card(card, path)
        else:
            opened = store.open_store(path, store.MOVIE) if path.exists() else None
            if opened is None:  # told in its turn, with the others done
                yield (1, 1, 1), 1, 1, None, path, None
                continue
            yield opened.shape, opened.geometry.shard[0], opened.array.dtype.itemsize, opened, path, None


def _of_card(card: Card, folder: Path) -> Found:
    import numpy as np

    n_frames, height, width = card["shape"]
    place = folder / card["path"]
    if ".." in Path(card["path"]).parts:
        raise InputError(place, "is not a path that an archive may contain")
    itemsize = np.dtype(card["dtype"]).itemsize
    return (n_frames, height, width), card["shard"][0], itemsize, None, place, card["id"]


def _attempt(
    job: ApplyConfig, identity: str | None, control: Control, connect: Callable[[Connect], Connect]
) -> dict[str, Any]:
    """Denoise one of several movies, and say how it went."""
    record: dict[str, Any] = {
        "movie": str(job.movie),
        "store": str(job.output),
        "error": None,
        "exit_code": 0,
    }
    try:
        if identity is not None and store.read_attributes(job.movie)["id"] != identity:
            raise InputError(job.movie, f"is not the movie {identity[:12]} of the archive")
        with chosen(job, control) as decided:
            apply(decided, control, connect)
    except Stopped:
        raise
    except (PipelineError, OSError) as error:
        code = error.exit_code if isinstance(error, PipelineError) else 1
        return record | {"error": str(error), "exit_code": code}
    return record


class _Shared:
    """Workers that stay from movie to movie, until they are lost."""

    def __init__(self, config: ApplyManyConfig, control: Control) -> None:
        self._folder = config.output.absolute() / ".tdenoise" / "workers"
        self._stack = contextlib.ExitStack()
        self._client: Any = None

    def __enter__(self) -> _Shared:
        return self

    def __exit__(self, *error: object) -> None:
        self._stack.close()
        shutil.rmtree(self._folder, ignore_errors=True)
        with contextlib.suppress(OSError):
            self._folder.parent.rmdir()  # if nothing else is there

    def connect(self, start: Connect) -> Connect:
        """Instead of starting workers for every movie: those that are there, or new ones."""

        @contextlib.contextmanager
        def shared() -> Iterator[Any]:
            if self._client is None:
                self._client = self._stack.enter_context(start(self._folder))
            try:
                yield self._client
            except BaseException:
                self._client = None
                self._stack.close()  # lost, or stopped: the next attempt needs new ones
                raise

        return shared
