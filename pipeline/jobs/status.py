"""Status: how far a run has come, read from what lies on the disk."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

from ..errors import InputError
from ..files.sealed_json import read_json
from ..runs import lease, paths
from ..runs.lease import HEARTBEAT_S
from ..settings.job_settings import StatusConfig
from ..store import store
from . import job_status, run_folder, training_status

WATCH_S = 3 * HEARTBEAT_S  # how long a sign of life of a process elsewhere is waited for [s]


def status(config: StatusConfig) -> dict[str, Any]:
    """State of one output, or of all outputs in a folder.

    Returns
    -------
    dict
        ``outputs``: a list with ``output``, ``state`` (``complete``, ``damaged``, ``running``, ``interrupted``),
        ``done`` and ``total`` blocks (None where a step has no blocks), ``holder``, ``damage`` (what is wrong with a
        finished store as far as a short look tells, or None), ``training`` (of an unfinished model, see
        `tdenoise_pipeline.jobs.training_status.describe`, or None); and ``batch``, the state of the batch run that
        writes it, or None.

    Raises
    ------
    InputError
        If nothing is there.
    """
    path = config.output.resolve()  # "." has no name
    batch_run = None if run_folder.find(path) is None else job_status.describe(path)
    if batch_run is not None and run_folder.find(path) == path:
        path = Path(batch_run["output"])
    work = path / ".tdenoise"
    begun = (
        sorted(path / folder.name for folder in work.iterdir() if folder.is_dir()) if work.is_dir() else []
    )
    # os.path.exists: the work folder of another user is closed, which pathlib takes for an error.
    unfinished = [p for p in (*begun, path) if os.path.exists(paths.work_folder(p) / "plan.json")]  # noqa: PTH110
    finished = [p for p in (path, *_children(path)) if _is_complete(p) and p not in unfinished]
    found = [_state(p) for p in unfinished] + [_complete(p) for p in finished]
    if not found and batch_run is None:
        raise InputError(config.output, "nothing was started or finished here")
    return {"outputs": found, "batch": batch_run}


def is_at_work(found: dict[str, Any]) -> bool:
    """Whether anything that `status` told of goes on."""
    live = found["batch"] is not None and found["batch"]["state"] in ("running", "pending")
    return live or any(item["state"] == "running" for item in found["outputs"])


def _children(path: Path) -> list[Path]:
    if not path.is_dir() or (path / "zarr.json").exists() or _is_complete(path):
        return []  # a store holds no outputs, whatever its parts say
    return sorted(path.iterdir())


def _is_complete(path: Path) -> bool:
    if path.name.endswith("-partial"):
        return False
    if (path / "zarr.json").exists():
        try:
            return store.read_attributes(path).get("status") == "complete"
        except InputError:
            return _is_store(path)
    return (path / "card.json").exists() or _is_store(path)


def _complete(output: Path) -> dict[str, Any]:
    damage = None
    if (output / "zarr.json").exists() or _is_store(output):
        try:
            n_absent = store.n_absent(output)
            damage = f"{n_absent} of its files are missing" if n_absent else None
        except InputError:
            damage = "its zarr.json is missing or was changed"
    return {
        "output": str(output),
        "state": "damaged" if damage else "complete",
        "done": None,
        "total": None,
        "holder": None,
        "damage": damage,
        "training": None,
    }


def _is_store(path: Path) -> bool:
    """Whether a store was finished here, whatever happened to its metadata since."""
    return (path / "integrity" / "zarr.json").exists()


def _state(output: Path) -> dict[str, Any]:
    """State of an output that has a plan."""
    folder = paths.work_folder(output)
    holder = _holder(folder)
    if holder is None and _is_complete(output) and not paths.partial_path(output).exists():
        return _complete(output)  # its run was killed after the last rename, before it had tidied up
    total = _n_blocks(folder / "plan.json")
    return {
        "output": str(output),
        "state": "running" if holder else "interrupted",
        "done": None if total is None else len(list((folder / "done").glob("*.json"))),
        "total": total,
        "holder": holder,
        "damage": None,
        "training": training_status.describe(output),
    }


def _holder(folder: Path) -> str | None:
    try:
        return lease.lease_holder(folder, WATCH_S)
    except OSError:  # not ours to read
        return None


def _n_blocks(file: Path) -> int | None:
    """Number of blocks in a plan; None if it has none or cannot be read."""
    plan = read_json(file).get("plan")
    total = plan.get("n_blocks") if isinstance(plan, dict) else None
    return total if isinstance(total, int) else None
