"""Why a job waits or ended, in words."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from pathlib import Path

log = logging.getLogger(__name__)

LOG_LINES = 15

# What waiting never helps against. Part of the reason that squeue gives, and what to change in the profile.
NEVER = {
    "MaxWallDuration": "the time limit is longer than your account or QOS may have: lower time",
    "PartitionTimeLimit": "the time limit is longer than the partition allows: lower time, or choose another partition",
    "PartitionNodeLimit": "it needs more nodes than the partition allows",
    "PerJobLimit": "it asks for more than one job of your account or QOS may have: lower cpus, memory_gib or gpus",
    "MaxCpuPerNode": "it asks for more cores of a node than the partition allows: lower cpus",
    "MaxMemPerNode": "it asks for more memory of a node than your QOS allows: lower memory_gib",
    "InvalidAccount": "the account is not known: correct account",
    "InvalidQOS": "the QOS is not known, or not yours: correct qos",
    "AccountNotAllowed": "the account may not use this partition: correct account or partition",
    "QOSNotAllowed": "the QOS may not be used in this partition: correct qos or partition",
    "BadConstraints": "no node has what it asks for: correct extra, gpus or partition",
    "DependencyNeverSatisfied": "the job it depends on has failed",
    "PartitionInactive": "the partition is closed: choose another partition",
    "PartitionDown": "the partition is closed: choose another partition",
}


def never(reason: str) -> str | None:
    """Why a job with this reason will not start, and what to do about it; None if it may start.

    Examples
    --------
    >>> never("QOSMaxWallDurationPerJobLimit")
    'the time limit is longer than your account or QOS may have: lower time'
    >>> never("Priority") is None
    True
    """
    return next((text for part, text in NEVER.items() if part in reason), None)


class Pending:
    """Tells once about each reason for which jobs wait without hope."""

    def __init__(self) -> None:
        self._told: set[str] = set()

    def tell(self, states: Mapping[str, str]) -> None:
        """Log what is new among the states and reasons of some jobs, as `slurm.queue` gives them."""
        for state in states.values():
            reason = state.removeprefix("PENDING ")
            if reason != state and reason not in self._told and (text := never(reason)):
                self._told.add(reason)
                log.warning("jobs of this run wait for ever (%s): %s.", reason, text)


def hopeless(states: Mapping[str, str]) -> str | None:
    """Why none of some jobs will ever start; None if one runs or may start, or there is none."""
    reasons = {state.removeprefix("PENDING ") for state in states.values()}
    if not states or any(not s.startswith("PENDING ") for s in states.values()):
        return None
    texts = {reason: never(reason) for reason in reasons}
    if None in texts.values():
        return None
    return "; ".join(f"{reason}: {text}" for reason, text in sorted(texts.items()))


def newest_log(folder: Path, name: str) -> str:
    """Name and last lines of the newest log of the jobs of one name."""
    logs = sorted(folder.glob(f"{name}-*.log"), key=lambda path: path.stat().st_mtime)
    if not logs:
        return f"none of its jobs has written a log to {folder}"
    lines = logs[-1].read_text(encoding="utf-8", errors="replace").splitlines()
    return "\n".join([f"{logs[-1]} ends with:", *lines[-LOG_LINES:]])
