"""The tables of `events`: changes, columns, and the traces frame by frame."""

from __future__ import annotations

import csv
import importlib.util
import io
import json
import shutil
import warnings
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from tdenoise.files.atomic import exchange, fsync, fsync_tree, make_folder, unique_partial, write_atomically

from ..errors import UsageError
from ..files.sealed_json import read_json
from ..files.write_errors import named_failures
from ..store import store
from .found import Found

SUMMARY = "events.json"
EVENTS = (
    "time_s", "frame", "earliest_frame", "latest_frame", "column", "row_px", "column_px", "row_nm", "column_nm",
    "before", "after", "share", "probability",
)  # fmt: skip
COLUMNS = (
    "column", "row_px", "column_px", "row_nm", "column_nm", "intensity", "error", "error_per_frame",
    "probability_that_it_changes",
)  # fmt: skip


def check_output(output: Path, *, force: bool, parquet: bool) -> None:
    """Refuse, before anything is computed, what could not be written in the end.

    Only a folder that `events` made is ever replaced.
    """
    for folder in output.absolute().parents:
        if (folder / "zarr.json").exists():
            raise UsageError(f"{output}: lies in the store {folder.name}. Choose another place.")
    if parquet and importlib.util.find_spec("pyarrow") is None:
        raise UsageError("--parquet needs the package pyarrow. Install tdenoise with its extra 'parquet'.")
    if output.exists():
        if not force:
            raise UsageError(f"{output}: exists already. Choose another name, or --force to replace it.")
        if read_json(output / SUMMARY).get("kind") != "events":
            raise UsageError(f"{output}: is not a folder that 'events' made. Choose another name.")


def write_tables(
    output: Path, found: Found, result: dict[str, Any], movie: store.Store, *, force: bool, parquet: bool
) -> None:
    """Write the folder of tables; it is there as a whole or not at all."""
    events, columns = list(_events(found, movie)), list(_columns(found, movie))
    with named_failures(output):
        make_folder(output.parent)
        partial = unique_partial(output)
        partial.mkdir()
        try:
            for name, header, rows in (("events", EVENTS, events), ("columns", COLUMNS, columns)):
                write_atomically(partial / f"{name}.csv", _csv(header, rows))
                if parquet:
                    _write_parquet(partial / f"{name}.parquet", header, rows)
            _write_traces(partial / "traces.zarr", found, movie)
            write_atomically(partial / SUMMARY, json.dumps(result, indent=2, allow_nan=False).encode())
            fsync_tree(partial)
            check_output(output, force=force, parquet=parquet)  # somebody may have written there meanwhile
            if output.exists() and exchange(partial, output):
                shutil.rmtree(partial)
            else:
                before = unique_partial(output)
                if output.exists():
                    output.rename(before)
                partial.rename(output)
                shutil.rmtree(before, ignore_errors=True)
            fsync(output.parent)
        except BaseException:
            shutil.rmtree(partial, ignore_errors=True)
            raise


def _csv(header: Sequence[str], rows: list[list[Any]]) -> bytes:
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(header)
    writer.writerows([["" if v is None else _short(v) for v in row] for row in rows])
    return text.getvalue().encode()


def _short(value: Any) -> Any:
    return f"{value:.6g}" if isinstance(value, float) else value


def _write_parquet(file: Path, header: Sequence[str], rows: list[list[Any]]) -> None:
    import pandas as pd

    pd.DataFrame(rows, columns=list(header)).to_parquet(file, index=False)


def _in_nm(place: Any, movie: store.Store) -> list[float | None]:
    """A place as the coordinates of the store have it; of a part of a movie they go on from those of the whole."""
    size, first = movie.coordinates.pixel_size_nm, movie.coordinates.first[1:]
    if size is None:
        return [None, None]
    return [float((f + p) * s) for f, p, s in zip(first, place, size, strict=True)]


def _events(found: Found, movie: store.Store) -> Iterator[list[Any]]:
    first, step = movie.coordinates.first[0], movie.coordinates.frame_time_s
    means, _ = found.traces.means()
    typical = float(np.median(means)) if len(means) else 1.0
    for c in found.states.changes:
        place = found.columns.positions[c.column] - found.corner[c.frame] + found.moved[c.frame, c.column]
        yield [
            None if step is None else (first + c.frame) * step, c.frame, c.earliest, c.latest, c.column,
            *map(float, place), *_in_nm(place, movie), c.before, c.after, (c.after - c.before) / typical,
            c.probability,
        ]  # fmt: skip


def _columns(found: Found, movie: store.Store) -> Iterator[list[Any]]:
    traces = found.traces
    for n, place in enumerate(found.places):
        seen = np.isfinite(traces.intensity[:, n])
        errors = traces.error[seen, n] * found.states.excess
        mean = float(traces.intensity[seen, n].mean()) if seen.any() else None
        error = float(np.sqrt(np.square(errors).sum()) / seen.sum()) if seen.any() else None
        each = float(np.median(errors)) if seen.any() else None
        yield [n, *map(float, place), *_in_nm(place, movie), mean, error, each, float(found.states.jumps[n])]


def _write_traces(file: Path, found: Found, movie: store.Store) -> None:
    """Intensity, its noise, what it is expected to be, and the place of every column in every frame."""
    import xarray as xr

    axes = ("frame", "column")
    traces = found.traces
    values = {
        "intensity": (traces.intensity, f"height over the surroundings, as counted [{movie.units}]"),
        "error": (traces.error * found.states.excess, "standard deviation of the intensity"),
        "expected": (found.states.expected, "mean intensity that the states found give"),
        "row_px": (found.centres[..., 0], "row in the frame as recorded, from the denoised movie"),
        "column_px": (found.centres[..., 1], "column in the frame as recorded, from the denoised movie"),
    }
    data = xr.Dataset(
        {
            name: (axes, np.asarray(v, np.float32), {"long_name": about})
            for name, (v, about) in values.items()
        },
        coords={"frame": np.arange(movie.shape[0]), "column": np.arange(len(found.columns.positions))},
    )
    with warnings.catch_warnings():
        # Not in the specification yet; without it, `xarray.open_zarr` warns.
        warnings.filterwarnings("ignore", message="Consolidated metadata is currently not part")
        data.to_zarr(file, zarr_format=3, consolidated=True)
