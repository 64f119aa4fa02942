"""The changes that `events` found, for marks in viewers and in the report."""

from __future__ import annotations

import csv
import io
from typing import Any

from ..errors import InputError
from ..files.sealed_json import read_json
from ..store import store

FOLDER, SUMMARY, TABLE = "events", "events.json", "events.csv"
MOST_BYTES = 2**27
MOST = 5000  # marks: of more, the most probable


def changes_beside(denoised: store.Store) -> list[dict[str, Any]] | None:
    """What `events` found in a denoised movie, if its folder lies beside it; None if there is none.

    Parameters
    ----------
    denoised : Store
        A folder that tells of another one, or of another recording, is passed over.

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
    folder = denoised.path.parent / FOLDER
    told = read_json(folder / SUMMARY)
    of = (_id(told.get("movie")), _id(told.get("denoised")))
    if told.get("kind") != "events" or of != (denoised.attributes["movie"]["id"], denoised.id):
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


def _id(told: Any) -> Any:
    return told.get("id") if isinstance(told, dict) else None


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
