"""The changes that `events` found, for marks in viewers and in the report."""

from __future__ import annotations

import csv
import io
from pathlib import Path
from typing import Any

from ..errors import InputError
from ..files.sealed_json import read_json

FOLDER, SUMMARY, TABLE = "events", "events.json", "events.csv"
MOST_BYTES = 2**27
MOST = 5000  # marks: of more, the most probable


def changes_beside(denoised: Path, movie_id: str) -> list[dict[str, Any]] | None:
    """What `events` found in a movie, if its folder lies beside the denoised store; None if there is none.

    Parameters
    ----------
    denoised : Path
    movie_id : str
        Of the movie store: a folder that tells of another movie is passed over.

    Returns
    -------
    list of dict, or None
        In order of time: ``t``, ``first`` and ``last`` [frames], ``y`` and ``x`` [pixels], ``before`` and ``after``
        [counts], and ``p``, the probability.

    Raises
    ------
    InputError
        If the table is damaged.
    """
    folder = denoised.parent / FOLDER
    told = read_json(folder / SUMMARY)
    movie = told.get("movie")
    if told.get("kind") != "events" or not isinstance(movie, dict) or movie.get("id") != movie_id:
        return None
    try:
        if (folder / TABLE).stat().st_size > MOST_BYTES:
            raise ValueError("it is too long")
        rows = list(csv.DictReader(io.StringIO((folder / TABLE).read_text())))
        found = [_change(row) for row in rows]
    except (OSError, ValueError, KeyError, TypeError, csv.Error) as error:
        raise InputError(
            folder / TABLE, f"is not a table that 'events' wrote ({error}). Run 'events --force' again."
        ) from None
    kept = sorted(found, key=lambda change: -change["p"])[:MOST]
    return sorted(kept, key=lambda change: change["t"])


def _change(row: dict[str, str]) -> dict[str, Any]:
    return {
        "t": int(row["frame"]),
        "first": int(row["earliest_frame"]),
        "last": int(row["latest_frame"]),
        "y": float(row["row_px"]),
        "x": float(row["column_px"]),
        "before": float(row["before"]),
        "after": float(row["after"]),
        "p": float(row["probability"]),
    }
