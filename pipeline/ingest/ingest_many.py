"""Several raw movies at once: which ones are meant, what their stores are called, and a record of each."""

from __future__ import annotations

import dataclasses
import glob
import logging
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from ..errors import InputError, PipelineError, Stopped, UsageError
from ..readers import FORMATS, joined, open_raw
from ..readers.numbering import natural
from ..readers.rawfile import is_pattern
from ..settings.ingest_settings import IngestConfig, IngestManyConfig
from ..step_control import Control
from ..store import store
from .ingest import describe_plan, ingest

log = logging.getLogger(__name__)


def ingest_many(config: IngestManyConfig, control: Control | None = None) -> dict[str, Any]:
    """Ingest one movie or several; one that fails does not keep the others from being done.

    Parameters
    ----------
    config : IngestManyConfig
    control : Control, optional

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
    jobs = plan_jobs(config)
    if len(jobs) == 1 and jobs[0].output == config.output:
        return {"store": str(config.output), **ingest(jobs[0], control)}
    records = []
    for number, job in enumerate(jobs, start=1):
        log.info("movie %d of %d: %s", number, len(jobs), job.raw)
        records.append(_attempt(job, control))
    return {"movies": records, "exit_code": max(record["exit_code"] for record in records)}


def describe_plans(config: IngestManyConfig) -> dict[str, Any]:
    """What ``--dry-run`` prints."""
    jobs = plan_jobs(config)
    if len(jobs) == 1 and jobs[0].output == config.output:
        return describe_plan(jobs[0])
    return {str(job.output): describe_plan(job) for job in jobs}


def plan_jobs(config: IngestManyConfig) -> list[IngestConfig]:
    """The settings of every single ingest.

    One movie that is named as such goes to ``-o``; several, and those of a folder or pattern, go into ``-o`` as a
    folder, each under its own name. Files of single frames, as the shell makes them of a pattern, are one movie.

    Raises
    ------
    UsageError
        If two movies would have the same name there, or ``-o`` is no name for a folder.
    """
    movies = movies_meant(config.raw)
    values = {f.name: getattr(config, f.name) for f in dataclasses.fields(config)}
    named = len(config.raw) > 1 or movies == list(config.raw) or config.output.suffix == ".zarr"
    if len(movies) == 1 and named:
        return [IngestConfig(**{**values, "raw": movies[0]})]
    if config.output.suffix == ".zarr":
        raise UsageError(
            f"{config.output}: this names one store, but there are {len(movies)} movies. Name a folder."
        )
    outputs: dict[Path, Path] = {}
    for movie in movies:
        output = config.output / f"{_stem(movie)}.zarr"
        if output in outputs:
            raise UsageError(
                f"{outputs[output]} and {movie} would both become {output}. Ingest them into different folders."
            )
        outputs[output] = movie
    return [IngestConfig(**{**values, "raw": movie, "output": output}) for output, movie in outputs.items()]


def movies_meant(paths: Iterable[Path]) -> list[Path]:
    """The movies that files, folders and patterns stand for together; files of single frames are one movie.

    Raises
    ------
    InputError
        If a pattern fits nothing.
    """
    movies = [movie for path in paths for movie in movies_in(path)]
    return (_one_of_frames(movies) or joined(movies)) if len(movies) > 1 else movies


def movies_in(path: Path) -> list[Path]:
    """The movies that a file, folder or pattern stands for, in natural order.

    A folder, or a pattern, whose first file is a movie is many movies. One whose first file is a single image, or
    without any file of a known format (a Zarr store, a capture in folders of its own), is one movie.

    Raises
    ------
    InputError
        If a pattern fits nothing.
    """
    if any(sign in str(path) for sign in "*?[") and not path.exists():
        # The name of a folder that is there may hold brackets.
        top = path.parent if path.parent.is_dir() else Path(path.anchor)
        files = sorted(top.glob(str(path.relative_to(top))), key=natural)
        if not files:
            raise InputError(path, "matches no file. Check the pattern and the folder.")
    elif path.is_dir():
        known = {suffix for form in FORMATS for suffix in form.suffixes}
        found = (p for p in path.iterdir() if p.suffix.lower() in known and not p.name.startswith("."))
        files = sorted(found, key=natural)
    else:
        return [path]
    return files if files and not _is_single_image(files[0]) else [path]


def _one_of_frames(files: list[Path]) -> list[Path]:
    """The one movie whose frames are files that the shell made of a pattern; empty if they are movies.

    Raises
    ------
    InputError
        If no pattern stands for just these files.
    """
    if not all(path.is_file() for path in files) or not _is_single_image(files[0]):
        return []
    first, last = min(path.name for path in files), max(path.name for path in files)
    n_alike = next((k for k, (a, b) in enumerate(zip(first, last, strict=False)) if a != b), len(first))
    pattern = files[0].parent / f"{glob.escape(first[:n_alike])}*{glob.escape(files[0].suffix)}"
    if set(files) != set(pattern.parent.glob(pattern.name)):
        raise InputError(
            files[0],
            f"holds a single image, as the other {len(files) - 1} files may, but no pattern matches only these. "
            "Name the frames of one movie by their folder, or by a pattern in quotes.",
        )
    return [pattern]


def _is_single_image(path: Path) -> bool:
    """Whether a file holds one frame. One that cannot be read is taken for a movie, and reported as such."""
    try:
        open_raw(path, allow_truncated=True).close()
    except InputError as error:
        return "single image" in str(error)
    except UsageError:
        pass
    return False


def _stem(path: Path) -> str:
    """Name of a movie without the suffixes of its format."""
    name = path.absolute().parent.name if is_pattern(path) else path.name
    known = sorted({suffix for form in FORMATS for suffix in form.suffixes} | {".ome"}, key=len)
    while name.lower().endswith(tuple(known)):
        name = name[: name.rindex(".")]
    return name or path.absolute().name


def _attempt(job: IngestConfig, control: Control) -> dict[str, Any]:
    """Ingest one of several movies, and say how it went."""
    record: dict[str, Any] = {
        "raw": str(job.raw),
        "name": job.raw.name,
        "store": str(job.output),
        "error": None,
        "exit_code": 0,
        "warnings": [],
    }
    try:
        attributes = ingest(job, control)
    except Stopped:
        raise
    except (PipelineError, OSError) as error:
        if isinstance(error, PipelineError):
            return record | {"error": str(error), "exit_code": error.exit_code}
        return record | {"error": f"{error.filename or job.raw}: {error.strerror}", "exit_code": 1}
    opened = store.open_store(job.output, store.MOVIE)
    return record | {
        "shape": list(opened.shape),
        "dtype": str(opened.array.dtype),
        "mean": attributes["mean"],
        "fano": (attributes["noise"] or {}).get("fano"),
        "warnings": attributes["warnings"],
    }
