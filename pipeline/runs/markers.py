"""Markers: which blocks of an output are done, and the hashes of the shards that each has written."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Any

from ..files.fault_points import maybe_crash
from ..files.sealed_json import read_sealed, write_sealed
from .lease import check_lease


def mark(folder: Path, number: int, record: dict[str, Any], token: str, member: str | None = None) -> None:
    """Say, durably, that a block is done, if the lease has this token."""

    def before() -> None:
        maybe_crash("marker.synced")
        check_lease(folder, token, member)

    write_sealed(marker_path(folder, number), record, before)
    maybe_crash("marker.written")


def marker(folder: Path, number: int) -> dict[str, Any] | None:
    """What the marker of a block says; None if there is none that can be trusted."""
    return read_sealed(marker_path(folder, number))


def forget(folder: Path, number: int) -> None:
    """Take the marker of a block away, whose shards turned out to be broken."""
    marker_path(folder, number).unlink(missing_ok=True)


def marker_path(folder: Path, number: int) -> Path:
    """Where the marker of a block lies."""
    return folder / "done" / f"{number:08d}.json"


def hashes(records: Iterable[dict[str, Any]], layer: str = "denoised") -> dict[str, str]:
    """Shard hashes of one array of all markers together; those of others than the denoised one have its name."""
    name = "shards" if layer in ("denoised", "draft") else layer
    return {key: digest for record in records for key, digest in record[name].items()}
