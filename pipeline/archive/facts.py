"""What a card says of a movie, a denoised movie or a model, so that it can be found by it."""

from __future__ import annotations

import datetime
import os
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ..files.sealed_json import read_unbroken

Facts = dict[str, Any]

# As files of cameras call the date of a recording, without what is no letter.
NAMES_OF_DATES = {
    "datetime",
    "datetimeoriginal",
    "acquisitiondate",
    "acquisitiondatetime",
    "acquisitionstartdatetime",
}
FIRST_YEAR = 1980


def movie_facts(attributes: Mapping[str, Any], path: Path) -> Facts:
    """Of a movie store, from its attributes."""
    detector, noise = attributes.get("detector") or {}, attributes.get("noise") or {}
    brightness, drift = attributes.get("brightness") or {}, attributes.get("drift")
    lags = [[c["t"], c["y"], c["x"], c["value"]] for c in noise.get("correlations", [])]
    correlations = [abs(value) for *_, value in lags if value is not None]
    dose = attributes.get("dose") or {}
    return {
        "source": attributes["source"],
        "recorded": _recorded(attributes["source"].get("metadata")),
        "mean": attributes["mean"],
        "dose": _dose(attributes),
        "dose_per_area": dose.get("per_square_angstrom"),
        "stated_dose_rate": dose.get("stated_e_per_nm2_s"),  # per nm^2 and second
        "gain": detector.get("counts_per_electron"),
        "fano": noise.get("fano"),
        "correlation": max(correlations, default=None),
        "correlations": [lag for lag in lags if None not in lag],  # frames, rows, columns, and how much
        "flicker": brightness.get("flicker"),
        "drift": None if drift is None else drift["largest"],  # None: it could not be measured
        "drift_units": None if drift is None else drift["units"],
        "voltage_kv": detector.get("voltage_kv"),
        "camera": detector.get("camera"),
        "exposure_s": detector.get("exposure_s"),
        "warnings": attributes.get("warnings", []),
        "bytes": size_on_disk(path),
    }


def _dose(attributes: Mapping[str, Any]) -> float | None:
    """Electrons per pixel and frame: as stated, or from the counts where one count is known to be an electron."""
    stated = (attributes.get("dose") or {}).get("per_pixel")
    if stated is not None:
        return float(stated)
    mean, gain = attributes["mean"], (attributes.get("detector") or {}).get("counts_per_electron")
    noise = attributes.get("noise") or {}
    if mean is None:
        return None
    if gain is not None:
        return float(mean / gain)
    fano, error = noise.get("fano"), noise.get("fano_error")
    counted = fano is not None and error is not None and abs(fano - 1) < max(0.05, 3 * error)
    return float(mean) if counted else None


def denoised_facts(denoised_id: str, path: Path) -> Facts:
    """Of a denoised store, what the report of its run measured, if it lies in the folder of one."""
    metrics = read_unbroken(path.parent / "metrics.json")
    made_from = metrics.get("made_from")
    found: Facts = {"bytes": size_on_disk(path)}
    if isinstance(made_from, dict) and made_from.get("denoised") == denoised_id:
        explained = metrics.get("explained") or {}
        found["signal_shown"], found["signal_shown_interval"] = _estimate(explained.get("denoised"))
        found["error"], found["error_interval"] = _estimate(metrics.get("nmse"))
        found["smallest_event"] = (metrics.get("knowable") or {}).get("dated_step")
        found["refuted_places"] = (metrics.get("refuted") or {}).get("n_places")
        found["report"] = "report.html"
    return found


def _estimate(found: Mapping[str, Any] | None) -> tuple[float | None, list[float] | None]:
    """A figure and its interval."""
    if not found:
        return None, None
    ends: list[float] = [end for name in ("low", "high") if (end := found.get(name)) is not None]
    return found.get("estimate"), ends if len(ends) == 2 else None


def _recorded(metadata: Any) -> str | None:
    """When a movie was recorded, where its file says so in a way that can be read in one way only."""
    if not isinstance(metadata, dict):
        return None
    for name, value in metadata.items():
        if isinstance(value, dict):
            if (found := _recorded(value)) is not None:
                return found
        elif (
            re.sub("[^a-z]", "", str(name).lower()) in NAMES_OF_DATES
            and (found := _date(str(value))) is not None
        ):
            return found
    return None


def _date(text: str) -> str | None:
    """A date that begins with the year, or seconds since 1970.

    Examples
    --------
    >>> _date("2025:06:01 18:30:00"), _date("2025-06-01T18:30:00Z"), _date("1748802600"), _date("6/1/2025")
    ('2025-06-01T18:30:00', '2025-06-01T18:30:00', '2025-06-01T18:30:00', None)
    """
    try:
        if re.fullmatch(r"[0-9]{9,10}(\.[0-9]*)?", text):
            when = datetime.datetime.fromtimestamp(int(float(text)), datetime.UTC)
        else:
            parts = re.match(
                r"([0-9]{4})[-:/]([0-9]{2})[-:/]([0-9]{2})(?:[T ]([0-9]{2}):([0-9]{2}):([0-9]{2}))?", text
            )
            if parts is None:
                return None
            when = datetime.datetime(*(int(part or 0) for part in parts.groups()))  # type: ignore[arg-type]
    except (ValueError, OverflowError, OSError):
        return None
    return when.strftime("%Y-%m-%dT%H:%M:%S") if when.year >= FIRST_YEAR else None


def model_facts(card: Mapping[str, Any], path: Path) -> Facts:
    """Of a model, from its own card."""
    metrics = card.get("metrics") or {}
    return {
        "model_kind": card["kind"],
        "version": (card.get("learned") or {}).get("version"),  # of the archive's base model
        "steps": card.get("steps"),
        "held_out_error": metrics.get("held_out_error"),
        "learned_from": [movie["name"] for movie in card["movies"] if "name" in movie],
        "bytes": size_on_disk(path),
    }


def size_on_disk(path: Path) -> int:
    """Bytes of all files in a folder."""
    return sum((Path(folder) / name).lstat().st_size for folder, _, names in os.walk(path) for name in names)
