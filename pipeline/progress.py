"""Who works on an output, and what of it is done.

An output is built under a ``-partial`` name. Beside it, ``.tdenoise/NAME/`` holds the plan, the lease of the run
that works on it, and one marker per finished block. The markers are the only truth: a driver that is started
again looks at them and does the rest.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import shutil
import socket
import threading
import time
import uuid
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any

from tdenoise.atomic import fsync, fsync_tree, patiently, write_atomically
from tdenoise.documents import parse_json

from . import recorded, trust
from .errors import LockedError, UsageError
from .faults import maybe_crash
from .recorded import COMMAND

HEARTBEAT_S = 5.0
STALE_S = 600.0  # a lease without a heartbeat for this long is dead, wherever its owner ran


def plan_id(plan: dict[str, Any]) -> str:
    """sha256 of the plan as canonical JSON: equal plans give equal bytes."""
    return hashlib.sha256(json.dumps(plan, sort_keys=True).encode()).hexdigest()


def partial_path(output: Path) -> Path:
    """Where an output lies while it is built."""
    return output.with_name(output.name + "-partial")


def work_folder(output: Path) -> Path:
    """Where the progress of an output is kept while it is built."""
    return output.parent / ".tdenoise" / output.name


class OutputRun:
    """The right to build one output, held as a context.

    Parameters
    ----------
    output : Path
        The folder to be made.
    plan : dict
        JSON-able; all that decides the bytes of the output.
    inputs : sequence of Path
        What the output is made from; it must not be among them, nor hold one of them.
    force : bool
        Replace an output that exists, or an unfinished one that was begun with other settings.
    command : IngestConfig, TrainConfig or ApplyConfig, optional
        Kept while the output is unfinished, for `resume`.

    Raises
    ------
    LockedError
        If another run is at work on the output.
    UsageError
        If the output exists, was begun under another plan, or is something that is not ours to replace.
    """

    def __init__(
        self,
        output: Path,
        plan: dict[str, Any],
        inputs: Sequence[Path] = (),
        *,
        force: bool = False,
        command: Any = None,
    ) -> None:
        self.output = output
        self.partial = partial_path(output)
        self.folder = work_folder(output)
        self.id = plan_id(plan)
        self.token = uuid.uuid4().hex
        self._plan = plan
        self._inputs = inputs
        self._force = force
        self._command = command
        self._stop_heartbeat = threading.Event()

    def __enter__(self) -> OutputRun:
        self._check_output()
        self.output.parent.mkdir(parents=True, exist_ok=True)
        trust.check_place(self.folder, self.partial)
        self._take_lease()
        maybe_crash("lease.taken")
        try:
            trust.check_place(self.folder, self.partial)
            self._check_plan()
            (self.folder / "done").mkdir(exist_ok=True)
            maybe_crash("plan.written")
        except BaseException:
            self._release_lease()
            raise
        threading.Thread(target=self._beat, name="heartbeat", daemon=True).start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._stop_heartbeat.set()
        self._release_lease()
        maybe_crash("lease.released")

    @property
    def lease(self) -> Path:
        """The folder whose existence is the lease."""
        return self.folder / "lease"

    @property
    def begun(self) -> bool:
        """Whether an interrupted run of the same plan left something to go on from."""
        return (self.folder / "created").exists() and self.partial.exists()

    def prepare(self, create: Callable[[Path], None]) -> None:
        """Create the partial output unless an interrupted run of the same plan left it."""
        if self.begun:
            # Of writers that were killed. Nor can one that only sleeps give them a name any more.
            for folder in (self.partial, self.folder / "done"):
                for orphan in folder.rglob("*.partial"):
                    orphan.unlink(missing_ok=True)
            return
        self._remove_partial()
        shutil.rmtree(self.folder / "done", ignore_errors=True)
        (self.folder / "done").mkdir(exist_ok=True)
        create(self.partial)
        maybe_crash("output.created")
        fsync_tree(self.partial)
        write_atomically(self.folder / "created", b"")
        maybe_crash("output.begun")

    def done(self) -> dict[int, dict[str, Any]]:
        """What the markers say, by block number. One that cannot be read counts as not there."""
        return {n: found for n in self.done_numbers() if (found := marker(self.folder, n)) is not None}

    def done_numbers(self) -> set[int]:
        """Numbers of the blocks that have a marker; cheap, for no marker is looked into."""
        return {int(f.stem) for f in (self.folder / "done").glob("*.json") if f.stem.isdigit()}

    def check(self) -> None:
        """Refuse to go on where another run has taken over; asked before anything gets its name."""
        check_lease(self.folder, self.token)

    def commit(self) -> None:
        """Give the output its name, in one rename; a reader sees nothing or everything."""
        fsync(self.partial)
        self.check()
        maybe_crash("commit.checked")
        # Under a name of its own it can no longer be taken for that of the run that may have taken over meanwhile.
        staged, trash = self.folder / f"ready-{self.token}", self.folder / f"replaced-{self.token}"
        try:
            self.partial.rename(staged)
            maybe_crash("commit.staged")
            if not holds_lease(self.folder, self.token):
                staged.rename(self.partial)
                self.check()
            if self.output.exists():
                if not self._force:
                    raise FileNotFoundError
                self.output.rename(trash)
                maybe_crash("commit.replaced")
            staged.rename(self.output)
        except FileNotFoundError:
            if trash.exists() and not self.output.exists():
                trash.rename(self.output)
            raise LockedError(f"{self.output}: another run has taken over this output.") from None
        fsync(self.output.parent)
        maybe_crash("commit.renamed")
        self.tidy()

    def unstage(self) -> None:
        """Take up again what a run has left that was killed while it gave the output its name."""
        for staged in self.folder.glob("ready-*"):
            if not self.partial.exists():
                staged.rename(self.partial)

    def tidy(self) -> None:
        """Take away all that served to make the output; the plan last, which says that there is something left."""
        for left in (
            *(self.folder / name for name in ("done", "scratch", "logs")),
            *self.folder.glob("dead-*"),
            *self.folder.glob("replaced-*"),
            *(fresh for fresh in self.folder.glob("lease-*") if fresh.is_dir()),
        ):
            shutil.rmtree(left, ignore_errors=True)
        for name in ("created", "array.json", COMMAND, "plan.json"):
            (self.folder / name).unlink(missing_ok=True)
        for orphan in self.folder.glob(".*.partial"):
            orphan.unlink(missing_ok=True)
        maybe_crash("commit.tidied")

    def _check_output(self) -> None:
        place = self.output.resolve()
        for source in self._inputs:
            if place == source.resolve() or place in source.resolve().parents:
                raise UsageError(f"{self.output}: is, or holds, the input {source}. Choose another name.")
        if not os.path.lexists(self.output):
            return
        if not is_ours(self.output):
            raise UsageError(
                f"{self.output}: exists already and is nothing that tdenoise made, so it is not replaced. "
                "Choose another name."
            )
        if not self._force:
            raise UsageError(
                f"{self.output}: exists already, made with other settings or from another input. "
                "Choose another name, or --force to replace it."
            )

    def _remove_partial(self) -> None:
        shutil.rmtree(self.partial, ignore_errors=True)
        if os.path.lexists(self.partial):
            raise UsageError(f"{self.partial}: is in the way and cannot be removed. Move it or remove it.")

    def _check_plan(self) -> None:
        self.unstage()
        file = self.folder / "plan.json"
        begun_as = read_json(file) if file.exists() else None
        if begun_as is None:
            if os.path.lexists(self.partial):
                raise UsageError(
                    f"{self.partial}: is in the way and belongs to no run. Move it or remove it."
                )
        elif begun_as.get("id") != self.id:
            if not self._force:
                raise UsageError(
                    f"{self.partial}: was begun with {_difference(begun_as.get('plan'), self._plan)}. "
                    "Finish it as it was begun, or start over with --force."
                )
            self._remove_partial()
            (self.folder / "created").unlink(missing_ok=True)
        if self._command is not None:
            recorded.write(self.folder / COMMAND, self._command)
        write_atomically(file, json.dumps({"id": self.id, "plan": self._plan}, indent=1).encode())

    def _take_lease(self) -> None:
        # The owner's file is in the folder before the folder gets its name: a lease always says whose it is.
        fresh = self.folder / f"lease-{self.token}"
        for _ in range(100):
            try:
                self.folder.mkdir(mode=0o700, parents=True, exist_ok=True)  # keys and logs lie here
                fresh.mkdir(exist_ok=True)
                (fresh / "owner.json").write_text(json.dumps(owner(self.token)))
                fresh.rename(self.lease)  # fails on a folder that is not empty, on local disks and on NFS
                return
            except FileNotFoundError:
                continue  # the run before us is just tidying up
            except OSError:
                token, holder = _holder(self.lease)
                if holder is not None:
                    shutil.rmtree(fresh, ignore_errors=True)
                    raise LockedError(
                        f"{self.output}: another run holds it ({holder}). Wait for it, or stop it first."
                    ) from None
                if token is not None:
                    self._bury(token)
        shutil.rmtree(fresh, ignore_errors=True)
        raise LockedError(f"{self.output}: its lease keeps changing hands. Try again in a moment.")

    def _bury(self, token: str) -> None:
        """Move a dead lease away.

        Its grave has a name of its own and stays until the output is finished: a second run that saw the same
        dead lease cannot move away the living one that has taken its place.
        """
        with contextlib.suppress(OSError):
            self.lease.rename(self.folder / f"dead-{token or 'nameless'}")

    def _release_lease(self) -> None:
        finished = not (self.folder / "plan.json").exists()
        if holds_lease(self.folder, self.token):
            if finished:
                with contextlib.suppress(OSError):
                    (self.folder / "done").rmdir()  # while it is ours: the next run makes its own
            grave = self.folder / f"dead-{self.token}"
            self.lease.rename(grave)
            shutil.rmtree(grave, ignore_errors=True)  # the next run may be sweeping here already
        if finished:
            for folder in (self.folder, self.folder.parent):  # only if empty: someone may have moved in
                with contextlib.suppress(OSError):
                    folder.rmdir()

    def _beat(self) -> None:
        while not self._stop_heartbeat.wait(HEARTBEAT_S):
            if holds_lease(self.folder, self.token):
                with contextlib.suppress(OSError):  # a file system that hangs for a moment
                    (self.lease / "heartbeat").touch()


def holds_lease(folder: Path, token: str, member: str | None = None) -> bool:
    """Whether the lease in a work folder still has this token: a driver that was replaced must not write.

    Of a lease that several processes share (`sharing.SharedRun`), ``member`` is the one who asks.
    """
    try:
        if member is not None:
            patiently((folder / "lease" / "members" / f"{member}.json").stat)
        owner = json.loads(patiently((folder / "lease" / "owner.json").read_text))
        return bool(owner["token"] == token)
    except (FileNotFoundError, NotADirectoryError, ValueError, KeyError, TypeError):
        return False


def owner(token: str) -> dict[str, Any]:
    """What a lease says about who holds it."""
    return {"token": token, **this_process()}


def check_lease(folder: Path, token: str, member: str | None = None) -> None:
    """Raise unless the lease in a work folder still has this token, and this member.

    Raises
    ------
    LockedError
    """
    if not holds_lease(folder, token, member):
        raise LockedError(f"{folder}: another run has taken over this output. Leave it to that one.")


def mark(folder: Path, number: int, record: dict[str, Any], token: str, member: str | None = None) -> None:
    """Say, durably, that a block is done, if the lease has this token."""

    def before() -> None:
        maybe_crash("marker.synced")
        check_lease(folder, token, member)

    write_atomically(marker_path(folder, number), json.dumps(record).encode(), before)
    maybe_crash("marker.written")


def marker(folder: Path, number: int) -> dict[str, Any] | None:
    """What the marker of a block says; None if there is none that can be read."""
    record = read_json(marker_path(folder, number))
    return record if isinstance(record.get("shards"), dict) else None


def forget(folder: Path, number: int) -> None:
    """Take the marker of a block away, whose shards turned out to be broken."""
    marker_path(folder, number).unlink(missing_ok=True)


def marker_path(folder: Path, number: int) -> Path:
    """Where the marker of a block lies."""
    return folder / "done" / f"{number:08d}.json"


def tidy_up(output: Path) -> None:
    """Take away what a run left that was killed after it had given its output its name."""
    folder = work_folder(output)
    if not folder.exists() or partial_path(output).exists() or any(folder.glob("ready-*")):
        return
    run = OutputRun(output, {})
    with contextlib.suppress(LockedError, UsageError):
        trust.check_place(run.folder, run.partial)
        run._take_lease()
        try:
            run.tidy()
        finally:
            run._release_lease()


def hashes(records: Iterable[dict[str, Any]], layer: str = "denoised") -> dict[str, str]:
    """Shard hashes of one array of all markers together; those of others than the denoised one have its name."""
    name = "shards" if layer == "denoised" else layer
    return {key: digest for record in records for key, digest in record[name].items()}


def lease_holder(folder: Path) -> str | None:
    """In words, who is at work in a work folder; None if nobody alive is."""
    return _holder(folder / "lease")[1]


def _holder(lease: Path) -> tuple[str | None, str | None]:
    """Token of a lease (None: there is none), and in words who holds it (None: nobody who lives)."""
    members = lease / "members"
    if members.is_dir():  # shared: it lives as long as one of them does
        token = str(read_json(lease / "owner.json").get("token", ""))
        for member in members.glob("*.json"):
            with contextlib.suppress(FileNotFoundError):
                if holder := process_holder(read_json(member), time.time() - member.stat().st_mtime):
                    return token, holder
        return token, None
    try:
        age = time.time() - max(f.stat().st_mtime for f in lease.iterdir())
    except (FileNotFoundError, ValueError):
        return None, None
    owner = read_json(lease / "owner.json")
    return str(owner.get("token", "")), process_holder(owner, age)


def process_holder(record: dict[str, Any], age: float) -> str | None:
    """In words, the process of which `this_process` made a record; None if it no longer lives.

    Parameters
    ----------
    record : dict
    age : float
        Time since its last sign of life [s].
    """
    owner = {"host": "an unknown host", "pid": None, "process_start": None, "job": None} | record
    job = owner["job"]
    here = owner["host"] == socket.gethostname()
    if here:
        dead = not isinstance(owner["pid"], int) or process_start(owner["pid"]) != owner["process_start"]
    else:
        # A job that was queued again runs elsewhere only after it has ended there; of others 'resume' says so.
        ended = os.environ.get("TDENOISE_ENDED_JOBS", "").split()
        dead = age > STALE_S or (
            job is not None and (job == _slurm_job() or str(job).partition("_")[0] in ended)
        )
    if dead:
        return None
    of_job = f", Slurm job {job}" if job else ""
    return f"process {owner['pid']} on {owner['host']}{of_job}, last sign of life {age:.0f} s ago"


def this_process() -> dict[str, Any]:
    """What tells this process from all others."""
    return {
        "host": socket.gethostname(),
        "pid": os.getpid(),
        "process_start": process_start(os.getpid()),
        "job": _slurm_job(),
    }


def _slurm_job() -> str | None:
    """Id of the Slurm job that this process is in, as Slurm's commands take it; None outside one."""
    array, task = (os.environ.get(f"SLURM_ARRAY_{name}_ID") for name in ("JOB", "TASK"))
    return f"{array}_{task}" if array and task else os.environ.get("SLURM_JOB_ID")


def read_json(file: Path) -> dict[str, Any]:
    """The object in a JSON file; empty where the file is missing or damaged."""
    try:
        value = parse_json(file.read_bytes())
    except (OSError, ValueError):
        return {}
    return value if isinstance(value, dict) else {}


def is_ours(path: Path) -> bool:
    """Whether a folder is empty, or a store or model of tdenoise: what may be replaced on request."""
    if path.is_symlink() or path.is_file():
        return False
    for file in (path / "zarr.json", path / "integrity" / "zarr.json"):  # one of them may be damaged
        metadata = read_json(file).get("attributes")
        if isinstance(metadata, dict) and "tdenoise" in metadata:
            return True
    try:
        return "architecture" in read_json(path / "card.json") or not any(path.iterdir())
    except FileNotFoundError:  # another run is just replacing it
        return True


def _difference(before: Any, now: dict[str, Any]) -> str:
    """What differs between two plans, in words."""
    if not isinstance(before, dict):
        return "other settings or another input"
    if isinstance(before.get("settings"), dict) and isinstance(now.get("settings"), dict):
        before, now = before | before["settings"], now | now["settings"]
    names = [k for k in sorted(before | now) if k != "settings" and before.get(k) != now.get(k)]
    return "other settings or another input: " + "; ".join(
        f"{name} was {str(before.get(name))[:60]}, is {str(now.get(name))[:60]}" for name in names[:4]
    )


def process_start(pid: int) -> str | None:
    """When a process began, in clock ticks since boot; None where it does not run. Tells a reused pid."""
    try:
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return None
    return None if fields[0] in "ZX" else fields[19]
