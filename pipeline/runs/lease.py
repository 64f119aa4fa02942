"""Who works on an output: the folder ``lease`` in a work folder, which one run has at a time.

A folder gets that name by a rename, which one of several wins, on NFS too. Whoever has it touches a file in it every
few seconds. A process of this machine is looked up; of any other it is watched whether its sign of life changes, by the
clock of the one who watches. The times on the files are compared with each other only: the clocks of two machines may
be days apart.
"""

from __future__ import annotations

import contextlib
import errno
import json
import logging
import os
import re
import shutil
import socket
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil

from tdenoise.files.atomic import fsync, make_folder, make_shared_folder, patiently

from ..errors import LockedError, Stopped
from ..files.sealed_json import unbroken, write_sealed
from ..files.write_errors import DENIED, named_failures, owner_name

log = logging.getLogger(__name__)

HEARTBEAT_S = 5.0
STALE_S = 600.0  # a process that cannot be looked up is dead once we saw no sign of life for so long [s]
QUIET_S = 60.0  # the same where it ran on this machine, before a reboot or in another container [s]
LOOK_S = 0.5  # between two looks at a sign of life [s]
TRIES = 100  # to get a lease that others take and leave at the same moment

TAKEN = (errno.ENOTEMPTY, errno.EEXIST)  # what a rename onto a lease says


class Watch:
    """Sees signs of life, and tells by this machine's own clock for how long one has stood still."""

    def __init__(self) -> None:
        self._seen: dict[Path, tuple[object, float]] = {}
        self._lives: set[Path] = set()

    def silence(self, of: Path, sign: object) -> float:
        """For how long a sign of life has been the one that it is now, as far as we saw [s]."""
        now = time.monotonic()
        before = self._seen.get(of)
        if before is not None and before[0] == sign:
            return now - before[1]
        if before is not None:
            self._lives.add(of)
        self._seen[of] = sign, now
        return 0.0

    def lives(self, of: Path) -> bool:
        """Whether its sign of life has changed while we looked."""
        return of in self._lives


def sign_of_life(file: Path) -> int | None:
    """The time on a file [ns]; None where there is no file. It is good for telling whether it changes, only."""
    try:
        with file.open(
            "rb"
        ) as handle:  # opened, a file server tells its newest time and not one from a cache
            return os.fstat(handle.fileno()).st_mtime_ns
    except FileNotFoundError:
        return None
    except PermissionError:
        return file.stat().st_mtime_ns


@dataclass(frozen=True)
class Look:
    """What one look at a lease says."""

    token: str | None = None  # of the lease; None where there is none
    holder: str | None = None  # in words, who holds it; None where nobody who lives does
    sure: bool = True  # whether a holder was seen to live; else it was only not seen to be dead


def look(lease: Path, watch: Watch) -> Look:
    """Look once at a lease."""
    try:
        number = lease.stat().st_ino
    except FileNotFoundError:
        return Look()
    record = read_record(lease / "owner.json") or {}
    token = str(record.get("token", ""))
    if not re.fullmatch(r"[\w-]{1,80}", token):
        # Whoever made it finds that it holds nothing: a power cut has cut it short, or it is damaged.
        return Look(f"nameless-{number}")
    members = lease / "members"
    signs: list[tuple[Path, dict[str, Any], object]]
    if members.is_dir() or "group" in record:  # shared: it lives as long as one of them does
        # One that is damaged holds nothing: its process finds that, too.
        records = [(file, read_record(file)) for file in members.glob("*.json")]
        signs = [(file, record, sign_of_life(file)) for file, record in records if record is not None]
    else:
        beats = tuple(sign_of_life(lease / name) for name in ("owner.json", "heartbeat"))
        signs = [(lease, record, (token, *beats))]
    seen = []
    for of, process, sign in signs:
        if (holder := process_holder(process, watch.silence(of, sign))) is not None:
            seen.append(Look(token, holder, is_here(process) or watch.lives(of)))
    return max(seen, key=lambda one: one.sure, default=Look(token))


def read_record(file: Path) -> dict[str, Any] | None:
    """What a lease says about a process; None where it is missing or damaged.

    One without a seal is of a process that runs an earlier version. Of one that is closed to us only
    its owner is known.
    """
    try:
        data = patiently(file.read_bytes)
    except (FileNotFoundError, NotADirectoryError):
        return None
    except PermissionError:
        host = f"an unknown host, started by {owner_name(file)}"
        return {"token": f"closed-{file.stat().st_ino}", "host": host}
    return unbroken(data)


def process_holder(record: dict[str, Any], silence: float) -> str | None:
    """In words, the process of which `this_process` made a record; None if it no longer lives.

    Parameters
    ----------
    record : dict
    silence : float
        For how long we have seen no sign of life [s].
    """
    owner = {"host": "an unknown host", "pid": None, "process_start": None, "job": None} | record
    job = owner["job"]
    if is_here(record):
        dead = not isinstance(owner["pid"], int) or process_start(owner["pid"]) != owner["process_start"]
    else:
        # A job that was queued again runs elsewhere only after it has ended there; of others 'resume' says so.
        ended = os.environ.get("TDENOISE_ENDED_JOBS", "").split()
        limit = QUIET_S if owner["host"] == socket.gethostname() else STALE_S
        dead = silence > limit or (
            job is not None and (job == _slurm_job() or str(job).partition("_")[0] in ended)
        )
    if dead:
        return None
    process = "a process" if owner["pid"] is None else f"process {owner['pid']}"
    of_job = f", Slurm job {job}" if job else ""
    silent = f", no sign of life for {silence:.0f} s" if silence > 2 * HEARTBEAT_S else ""
    return f"{process} on {owner['host']}{of_job}{silent}"


def is_here(record: dict[str, Any]) -> bool:
    """Whether the process of a record can be looked up: it began on this machine, since it was started, and not in
    another container, where other processes have the same numbers.
    """
    mine = this_process()
    return record.get("host") == mine["host"] and all(
        record.get(name, mine[name]) == mine[name] for name in ("boot", "pids")
    )


def this_process() -> dict[str, Any]:
    """What tells this process from all others."""
    return {
        "host": socket.gethostname(),
        "boot": _boot(),
        "pids": _pids(),
        "pid": os.getpid(),
        "process_start": process_start(os.getpid()),
        "job": _slurm_job(),
    }


def _boot() -> str | None:
    """What Linux gives a machine anew whenever it starts."""
    with contextlib.suppress(OSError):
        return Path("/proc/sys/kernel/random/boot_id").read_text().strip()
    return None


def _pids() -> str | None:
    """Name of the set of processes that this one can see; a container has its own."""
    with contextlib.suppress(OSError):
        return str(Path("/proc/self/ns/pid").readlink())
    return None


def _slurm_job() -> str | None:
    """Id of the Slurm job that this process is in, as Slurm's commands take it; None outside one."""
    array, task = (os.environ.get(f"SLURM_ARRAY_{name}_ID") for name in ("JOB", "TASK"))
    return f"{array}_{task}" if array and task else os.environ.get("SLURM_JOB_ID")


def process_start(pid: int) -> str | None:
    """When a process began, in clock ticks since boot; None where it does not run. Tells a reused pid."""
    if not Path("/proc/self/stat").exists():  # elsewhere than on Linux
        try:
            return str(psutil.Process(pid).create_time())
        except psutil.Error:
            return None
    try:
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return None
    return None if fields[0] in "ZX" else fields[19]


def holds_lease(folder: Path, token: str, member: str | None = None) -> bool:
    """Whether the lease in a work folder still has this token: a driver that was replaced must not write.

    Of a lease that several processes share (`shared_run.SharedRun`), ``member`` is the one who asks.
    """
    try:
        if member is not None and read_record(folder / "lease" / "members" / f"{member}.json") is None:
            return False
        owner = json.loads(patiently((folder / "lease" / "owner.json").read_text))
        return bool(owner["token"] == token)
    except (FileNotFoundError, NotADirectoryError, ValueError, KeyError, TypeError, RecursionError):
        return False


def check_lease(folder: Path, token: str, member: str | None = None) -> None:
    """Raise unless the lease in a work folder still has this token, and this member.

    Raises
    ------
    LockedError
    """
    if not holds_lease(folder, token, member):
        raise LockedError(f"{folder}: another run has taken over this output. This process stops here.")


def lease_holder(
    folder: Path, patience_s: float = float("inf"), stop: threading.Event | None = None
) -> str | None:
    """In words, who is at work in a work folder; None if nobody alive is.

    Parameters
    ----------
    folder : Path
    patience_s : float
        How long to watch a process that cannot be looked up [s]; after that it counts as alive.
    stop : threading.Event, optional
        Ends the watch.
    """
    watch, begun = Watch(), time.monotonic()
    while True:
        seen = look(folder / "lease", watch)
        if seen.holder is None or seen.sure or time.monotonic() - begun >= patience_s:
            return seen.holder
        if stop is not None and stop.is_set():
            return seen.holder
        time.sleep(LOOK_S)


def began_here(folder: Path) -> bool:
    """Whether the holders of a lease all ran on a machine of this name, maybe before it was started again."""
    members = list((folder / "lease" / "members").glob("*.json"))
    records = [read_record(file) or {} for file in members or [folder / "lease" / "owner.json"]]
    return all(record.get("host") == socket.gethostname() for record in records)


def take(
    folder: Path,
    name: str,
    fill: Callable[[Path], None],
    taken: Callable[[str], str],
    stop: threading.Event | None = None,
    join: Callable[[], bool] = lambda: False,
) -> None:
    """Take the lease of a work folder, which is made if need be; a dead one is moved away.

    A holder that cannot be looked up is watched: if it shows a sign of life, it has the lease; if it shows none for
    long enough, it is dead.

    Parameters
    ----------
    folder : Path
        The work folder.
    name : str
        That no other lease has.
    fill : callable
        Writes what says whose it is into a folder, before that becomes the lease.
    taken : callable
        From who holds it, what to tell the user.
    stop : threading.Event, optional
        Ends the watch.
    join : callable
        Asked first: whether a share in the lease that is there will do.

    Raises
    ------
    LockedError
        If another process holds it.
    UsageError, ResourceError
        If the folder cannot be written to, and why.
    Stopped
        If ``stop`` was set.
    """
    fresh = folder / f"lease-{name}"
    try:
        with named_failures(folder):
            _take(folder, fresh, fill, taken, stop, join)
    finally:
        shutil.rmtree(fresh, ignore_errors=True)


def _take(
    folder: Path,
    fresh: Path,
    fill: Callable[[Path], None],
    taken: Callable[[str], str],
    stop: threading.Event | None,
    join: Callable[[], bool],
) -> None:
    lease, watch, tries, told = folder / "lease", Watch(), 0, False
    while tries < TRIES:
        try:
            if join():
                return
            make_folder(folder.parent.parent)
            make_shared_folder(folder)
            make_shared_folder(fresh)
            if not (fresh / "owner.json").exists():
                fill(fresh)
            for place in (folder.parent.parent, folder.parent):  # a power cut must not forget where this lies
                fsync(place)
            fresh.rename(lease)  # fails on a folder that is not empty, on local disks and on NFS
            fsync(folder)
            return
        except FileNotFoundError:
            tries += 1
            continue  # the run before us is just tidying up
        except OSError as error:
            # In a folder where each may remove only his own, the lease of another user cannot be written over.
            if error.errno not in (*TAKEN, *DENIED):
                raise
            seen = look(lease, watch)
            if seen.token is None and error.errno in DENIED:
                if tries >= 3:
                    raise
                time.sleep(0.05)  # another run may be making the folder, and open it in a moment
        if seen.holder is None:
            tries += 1
            if seen.token is not None:
                bury(lease, seen.token)
            continue
        if seen.sure:
            if join():  # one of our own took it in this very moment
                return
            raise LockedError(taken(seen.holder))
        if stop is not None and stop.is_set():
            raise Stopped("stopped before anything was started; run the same command again")
        if not told:
            output = folder.parent.parent / folder.name
            says = "%s: %s may still hold it. Watching for a sign of life, for at most %.0f s"
            log.warning(says, output, seen.holder, STALE_S)
            told = True
        time.sleep(LOOK_S)
    raise LockedError(f"{folder}: its lease keeps changing hands. Try again in a moment.")


def bury(lease: Path, token: str) -> None:
    """Move a dead lease away.

    Its grave has a name of its own and stays until the output is finished: a second run that saw the same dead lease
    cannot move away the living one that has taken its place.
    """
    try:
        if token.startswith("nameless-"):
            (lease / "nameless").touch()  # an empty grave would not stop the second run
        lease.rename(lease.with_name(f"dead-{token}"))
    except OSError as error:
        if error.errno not in (*TAKEN, errno.ENOENT):
            raise


def release(folder: Path, token: str) -> None:
    """Give a lease back, if it is still ours."""
    if holds_lease(folder, token):
        grave = folder / f"dead-{token}"
        (folder / "lease").rename(grave)
        shutil.rmtree(grave, ignore_errors=True)  # the next run may be sweeping here already


def write_owner(folder: Path, token: str) -> None:
    """Say in a lease that this process holds it."""
    write_sealed(folder / "owner.json", {"token": token, **this_process()})
