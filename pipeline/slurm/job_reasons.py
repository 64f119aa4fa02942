"""Why a job waits or ended, in words."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from pathlib import Path

log = logging.getLogger(__name__)

LOG_LINES = 15

# Slurm's reasons for waiting that waiting never helps against: part of the reason, and what to change in the profile.
NEVER = {
    "MaxWallDuration": "the time limit is longer than your account or QOS may have: lower time",
    "PartitionTimeLimit": "the time limit is longer than the partition allows: lower time, or choose another partition",
    "PartitionNodeLimit": "it needs more nodes than the partition allows",
    "PerJobLimit": "it requests more than one job of your account or QOS may have: lower cpus, memory_gib or gpus",
    "MaxCpuPerNode": "it requests more cores of a node than the partition allows: lower cpus",
    "MaxMemPerNode": "it requests more memory of a node than your QOS allows: lower memory_gib",
    "InvalidAccount": "the account is not known: correct account",
    "InvalidQOS": "the QOS is not known, or not yours: correct qos",
    "AccountNotAllowed": "the account may not use this partition: correct account or partition",
    "QOSNotAllowed": "the QOS may not be used in this partition: correct qos or partition",
    "BadConstraints": "no node has what it requests: correct extra, gpus or partition",
    "DependencyNeverSatisfied": "the step before it did not finish: cancel and resume",
    "PartitionInactive": "the partition is closed: choose another partition",
    "PartitionDown": "the partition is closed: choose another partition",
}
# Those that pass, or that a person can lift; what is in neither is shown as it is.
WAITS = {
    "None": "Slurm has not looked at it yet",
    "Priority": "other jobs come first",
    "Resources": "waits for free nodes",
    "Dependency": "waits for the step before it",
    "BeginTime": "queued again, starts in a moment",
    "Cleaning": "queued again, Slurm is cleaning up the last attempt",
    "JobHeldUser": "held by you: scontrol release",
    "JobHeldAdmin": "held by an administrator: ask your site's support",
    "launch failed requeued held": "it could not be started on its node and is held: scontrol release",
    "ReqNodeNotAvail": "the nodes it could use are down or reserved",
    "Reservation": "waits for a reservation",
    "Licenses": "waits for a licence",
    "QOSMaxGRESPerUser": "you use as many GPUs as the QOS allows; it starts when others of yours end",
    "QOSMaxJobsPerUserLimit": "you have as many jobs as the QOS allows; it starts when others of yours end",
    "AssocGrpGRES": "your group uses as many GPUs as it may; it starts when others of the group end",
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


def in_words(reason: str) -> str:
    """Why a job waits, for people.

    Examples
    --------
    >>> in_words("Priority")
    'other jobs come first'
    >>> in_words("BadConstraints")
    'it never starts: no node has what it requests: correct extra, gpus or partition'
    """
    plain = reason.strip("()").partition(",")[0]
    if text := never(plain):
        return f"it never starts: {text}"
    if plain in WAITS:
        return WAITS[plain]
    if plain.startswith(("QOS", "Assoc")):
        return f"a limit of your QOS or account holds it back ({plain})"
    return f"Slurm says {plain}"


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
                log.warning("jobs of this run wait forever (%s): %s.", reason, text)


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
