"""One output built by several processes that share nothing but the file system: no network, no locks.

They hold one lease together. In it, each of them has a file whose time says that it lives, and every block in hand is
a folder that bears the name of the process that works on it. Folders get their names by a rename, which one of several
wins, on NFS too. What a dead process had in hand is taken over; a process that was only believed dead finds its file
gone, and writes no more.
"""

from __future__ import annotations

import contextlib
import functools
import logging
import os
import threading
import uuid
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

from tdenoise.files.atomic import make_shared_folder

from ..errors import LockedError, Stopped, UsageError
from ..files import ownership
from ..files.sealed_json import read_json, read_sealed, write_sealed
from . import lease, markers
from . import lease as leases
from .progress import OutputRun

log = logging.getLogger(__name__)

LOST_S = 120.0  # a process elsewhere that shows no sign of life for so long has lost its block [s]


class SharedRun(OutputRun):
    """The right to build one output together with the other processes of a group, held as a context.

    Parameters
    ----------
    output, plan, inputs, force, stop
        As of `OutputRun`.
    group : str
        Name of the group; a process of any other is refused, as is a run that does not share.
    afresh : bool
        Make an output again that is finished under the very same plan.
    """

    def __init__(
        self,
        output: Path,
        plan: dict[str, Any],
        inputs: Sequence[Path] = (),
        *,
        group: str,
        force: bool = False,
        afresh: bool = False,
        stop: threading.Event | None = None,
    ) -> None:
        super().__init__(output, plan, inputs, force=force, stop=stop)
        self.group = group
        self._afresh = afresh
        self._member = uuid.uuid4().hex
        self._watch = leases.Watch()  # of the others

    def __enter__(self) -> SharedRun:
        self._check_output()
        self._check_place()
        self._take_lease()
        threading.Thread(target=self._beat, name="heartbeat", daemon=True).start()
        try:
            ownership.check_place(self.folder, self.partial)
            self.once("plan", self._begin)
            if (read_sealed(self.folder / "plan.json") or {}).get("id") != self.id:
                raise UsageError(
                    f"{self.output}: the processes that share this work have other settings or another input."
                )
        except BaseException:
            self._stop_heartbeat.set()
            self._release_lease()
            raise
        return self

    @property
    def member(self) -> str:
        """The name of this process in the group."""
        return self._member

    def prepare(self, create: Callable[[Path], None]) -> None:
        """Create the partial output, unless that is done."""
        self.once("prepare", functools.partial(super().prepare, create))

    def commit(self) -> None:
        """Give the output its name, and take the right to write from all, at once."""
        super().commit()
        super()._release_lease()

    def holds(self) -> bool:
        """Whether this process may still write."""
        return lease.holds_lease(self.folder, self.token, self.member)

    def check(self) -> None:
        """Raise an error if this process may write no longer."""
        if self.holds():
            return
        if lease.holds_lease(self.folder, self.token):
            raise Stopped(
                "this process was silent for so long that others took over its work, or its sign of life was damaged; "
                "run the same command again"
            )
        raise LockedError(f"{self.output}: it is finished, or another run has taken it over.")

    def once(self, name: str, function: Callable[[], object]) -> None:
        """Let one process do what must be done once, while the others wait."""
        flag = self.lease / f"did-{name}"
        with self.alone(name):
            if not flag.exists():
                function()
                flag.touch()

    @contextlib.contextmanager
    def alone(self, name: str) -> Iterator[None]:
        """Wait until no other process does what bears this name, and keep it.

        Raises
        ------
        Stopped
            If a stop was asked for while another process has it; giving back what the counts refute takes long.
        """
        stop = self._stop or threading.Event()
        while not self.take(name):
            if stop.wait(0.2):
                raise Stopped(
                    "stopped while another process completes the output; run the same command again"
                )
        try:
            yield
        finally:
            self.leave(name)

    def take(self, name: str) -> bool:
        """Take a piece of work in hand; False if another process that lives has it.

        Raises
        ------
        LockedError, Stopped
            If this process may work no longer.
        """
        place, fresh = self._claims / name, self._claims / f"new-{self.member}"
        try:
            fresh.mkdir(exist_ok=True)
            (fresh / self.member).touch()
            fresh.rename(place)  # fails on a folder that is not empty
            self.check()
            return True
        except OSError:
            self.check()
        try:
            [holder] = [f.name for f in place.iterdir()]
        except (OSError, ValueError):
            return False  # just being left
        if holder == self.member:
            return True
        if self._lives(holder):
            return False
        log.info("taking over %s from a process that was lost", name)
        (self._members / f"{holder}.json").unlink(missing_ok=True)  # from now on it cannot write
        # The grave has a name of its own: a second process that saw the same dead cannot bury the living.
        with contextlib.suppress(OSError):
            place.rename(self._claims / f"dead-{name}-{holder}")
        return False  # the next try may get it

    def leave(self, name: str) -> None:
        """Give a piece of work back, or done."""
        place = self._claims / name
        with contextlib.suppress(OSError):  # taken over, or all of it finished
            (place / self.member).unlink()
            place.rmdir()

    def deaths(self, name: str) -> int:
        """How many processes have died with this piece of work in hand."""
        ended = list(self._claims.glob(f"dead-{name}-*"))
        for kind in (f"dead-{name}-*", name):  # and when none was left, who had it in hand then
            ended += self.folder.glob(f"dead-*/claims/{kind}")
        return len(ended)

    def is_done(self, number: int) -> bool:
        """Whether a block has a marker; cheap, for `once` the markers were looked into."""
        return markers.marker_path(self.folder, number).exists()

    @property
    def _members(self) -> Path:
        return self.lease / "members"

    @property
    def _claims(self) -> Path:
        return self.lease / "claims"

    def _begin(self) -> None:
        store = read_json(self.output / "zarr.json").get("attributes", {}).get("tdenoise", {})
        if store.get("plan") == self.id and not self.begun and not self._afresh:
            raise LockedError(f"{self.output}: the processes that share this work have just finished it.")
        self._check_plan()
        make_shared_folder(self.folder / "done")

    def _take_lease(self) -> None:
        """Join the lease of the group, or take the lease for it."""
        name = f"{self.member}.json"

        def join() -> bool:
            owner = leases.read_record(self.lease / "owner.json") or {}
            if owner.get("group") != self.group or leases.look(self.lease, self._watch).holder is None:
                return False  # where nobody is left, what was done once is looked at again
            try:
                write_sealed(self._members / name, lease.this_process())
            except FileNotFoundError:  # it is just being left
                return False
            self.token = str(owner["token"])
            return self.holds()

        def fill(fresh: Path) -> None:
            self.token = uuid.uuid4().hex
            for inner in ("members", "claims"):
                make_shared_folder(fresh / inner)
            write_sealed(fresh / "members" / name, lease.this_process())
            write_sealed(fresh / "owner.json", {"token": self.token, "group": self.group})

        leases.take(self.folder, self.member, fill, self._taken, self._stop, join)

    def _release_lease(self) -> None:
        # The lease stays for the others; without any it is dead.
        with contextlib.suppress(OSError):
            (self._members / f"{self.member}.json").unlink()
            if not (self.folder / "plan.json").exists() and not any(self._members.glob("*.json")):
                super()._release_lease()

    def _beat(self) -> None:
        while not self._stop_heartbeat.wait(lease.HEARTBEAT_S):
            with contextlib.suppress(OSError):
                os.utime(self._members / f"{self.member}.json")  # does not bring it back, as touch would

    def _lives(self, member: str) -> bool:
        file = self._members / f"{member}.json"
        if (beat := leases.sign_of_life(file)) is None:
            return False
        silence = self._watch.silence(file, beat)
        record = leases.read_record(file)
        return record is not None and silence < LOST_S and leases.process_holder(record, silence) is not None
