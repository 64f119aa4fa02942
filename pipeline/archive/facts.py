"""What a card says of a movie, a denoised movie or a model, so that it can be found by it."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ..files.sealed_json import read_unbroken

Facts = dict[str, Any]


def movie_facts(attributes: Mapping[str, Any], path: Path) -> Facts:
    """Of a movie store, from its attributes."""
    detector, noise = attributes.get("detector") or {}, attributes.get("noise") or {}
    brightness, drift = attributes.get("brightness") or {}, attributes.get("drift")
    correlations = [abs(c["value"]) for c in noise.get("correlations", [])]
    return {
        "source": attributes["source"],
        "mean": attributes["mean"],
        "dose": _dose(attributes),
        "fano": noise.get("fano"),
        "correlation": max(correlations, default=None),
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
        found["signal_shown"] = (explained.get("denoised") or {}).get("estimate")
        found["refuted_places"] = (metrics.get("refuted") or {}).get("n_places")
        found["report"] = "report.html"
    return found


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
