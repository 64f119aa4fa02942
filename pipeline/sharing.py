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
import re
import threading
import time
import uuid
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tdenoise.atomic import make_shared_folder

from . import lease as leases
from . import progress, trust
from .blocks import spans
from .control import Control
from .driver import Item, Outcome
from .errors import LockedError, PipelineError, Stopped, UsageError
from .progress import OutputRun
from .sealed import read_sealed, write_sealed

log = logging.getLogger(__name__)

LOST_S = 120.0  # a process elsewhere that shows no sign of life for so long has lost its block [s]
DEATHS = 4  # a block that ends so many processes is given up
PAUSE_S = 2.0  # at most, between two looks for work while others do the last blocks
COUNT_S = 5.0  # between two counts of what is done


@dataclass(frozen=True)
class Share:
    """Which part of the blocks a process begins with, and with whom it works."""

    number: int  # from 0
    count: int
    group: str

    def of(self, items: Sequence[Item]) -> Sequence[Item]:
        """The items this share begins with: neighbours, which read the same files."""
        first, last = (len(items) * i // self.count for i in (self.number, self.number + 1))
        return items[first:last]


def parse_share(text: str, environment: Mapping[str, str] = os.environ) -> Share:
    """Read the ``--share`` option.

    Parameters
    ----------
    text : str
        ``I/N`` counted from 0, or ``array`` inside a job array; ``@NAME`` after it names the run whose
        processes work together (default: the array's job id, or the number of shares).
    environment : mapping
        Tells the number of the array task.

    Raises
    ------
    UsageError
        If it is none of these.

    Examples
    --------
    >>> parse_share("2/8@monday", {})
    Share(number=2, count=8, group='monday')
    >>> parse_share("array", {"SLURM_ARRAY_JOB_ID": "7", "SLURM_ARRAY_TASK_ID": "3", "SLURM_ARRAY_TASK_COUNT": "4",
    ...                       "SLURM_ARRAY_TASK_MIN": "0"})
    Share(number=3, count=4, group='job-7')
    """
    where, _, group = text.partition("@")
    if group and not re.fullmatch(r"[\w.-]{1,60}", group):
        raise UsageError(f"--share {text!r}: a name has letters, digits, '.', '_' and '-' only.")
    if where == "array":
        try:
            number = int(environment["SLURM_ARRAY_TASK_ID"]) - int(environment["SLURM_ARRAY_TASK_MIN"])
            count = int(environment["SLURM_ARRAY_TASK_COUNT"])
            job = environment["SLURM_ARRAY_JOB_ID"]
        except (KeyError, ValueError):
            raise UsageError(
                "--share array works inside a Slurm job array only. Elsewhere say which share: --share 0/4."
            ) from None
        # Of an array that was submitted again in part, numbers may lie beyond the count: any share will do.
        return Share(number % count, count, group or f"job-{job}")
    if match := re.fullmatch(r"([0-9]{1,6})/([1-9][0-9]{0,5})", where):
        number, count = int(match[1]), int(match[2])
        if number < count:
            return Share(number, count, group or f"{count}-shares")
    raise UsageError(f"--share {text!r} is not I/N with I from 0 to N - 1, nor array.")


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
        self.member = uuid.uuid4().hex
        self._watch = leases.Watch()  # of the others

    def __enter__(self) -> SharedRun:
        self._check_output()
        self._check_place()
        self._take_lease()
        threading.Thread(target=self._beat, name="heartbeat", daemon=True).start()
        try:
            trust.check_place(self.folder, self.partial)
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

    def prepare(self, create: Callable[[Path], None]) -> None:
        """Create the partial output, unless that is done."""
        self.once("prepare", functools.partial(super().prepare, create))

    def commit(self) -> None:
        """Give the output its name, and take the right to write from all, at once."""
        super().commit()
        super()._release_lease()

    def holds(self) -> bool:
        """Whether this process may still write."""
        return progress.holds_lease(self.folder, self.token, self.member)

    def check(self) -> None:
        """Raise an error if this process may write no longer."""
        if self.holds():
            return
        if progress.holds_lease(self.folder, self.token):
            raise Stopped(
                "this process was silent for so long that others took over its work; run the same command again"
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
        """Wait until no other process does what bears this name, and keep it."""
        while not self.take(name):
            time.sleep(0.2)
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
        return progress.marker_path(self.folder, number).exists()

    @property
    def _members(self) -> Path:
        return self.lease / "members"

    @property
    def _claims(self) -> Path:
        return self.lease / "claims"

    def _begin(self) -> None:
        store = progress.read_json(self.output / "zarr.json").get("attributes", {}).get("tdenoise", {})
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
                write_sealed(self._members / name, progress.this_process())
            except FileNotFoundError:  # it is just being left
                return False
            self.token = str(owner["token"])
            return self.holds()

        def fill(fresh: Path) -> None:
            self.token = uuid.uuid4().hex
            for inner in ("members", "claims"):
                make_shared_folder(fresh / inner)
            write_sealed(fresh / "members" / name, progress.this_process())
            write_sealed(fresh / "owner.json", {"token": self.token, "group": self.group})

        leases.take(self.folder, self.member, fill, self._taken, self._stop, join)

    def _release_lease(self) -> None:
        # The lease stays for the others; without any it is dead.
        with contextlib.suppress(OSError):
            (self._members / f"{self.member}.json").unlink()
            if not (self.folder / "plan.json").exists():
                super()._release_lease()

    def _beat(self) -> None:
        while not self._stop_heartbeat.wait(progress.HEARTBEAT_S):
            with contextlib.suppress(OSError):
                os.utime(self._members / f"{self.member}.json")  # does not bring it back, as touch would

    def _lives(self, member: str) -> bool:
        file = self._members / f"{member}.json"
        if (beat := leases.sign_of_life(file)) is None:
            return False
        silence = self._watch.silence(file, beat)
        record = leases.read_record(file) or {}
        return silence < LOST_S and leases.process_holder(record, silence) is not None


def work(
    run: SharedRun, share: Share, items: Sequence[Item], function: Callable[[Item], Any], control: Control
) -> Iterator[Outcome[Item]]:
    """Run ``function`` on the items of a share, then on what the others have not come to.

    Ends when every item is done or has failed here: whatever others have in hand is waited for, and done here
    if they are lost.

    Parameters
    ----------
    run : SharedRun
    share : Share
    items : sequence
        All of them, the same in all processes.
    function : callable
        Does its own output and leaves a marker; may run twice for one item.
    control : Control

    Yields
    ------
    Outcome
        Of the items done here.

    Raises
    ------
    Stopped
        After a stop request, once the item in hand is finished; or where others took this process for dead.
    LockedError
        If the output is finished, or another run has taken it over.
    """
    failed: set[int] = set()
    n_left, counted = len(items), -COUNT_S

    def attempt(item: Item) -> Iterator[Outcome[Item]]:
        nonlocal n_left, counted
        control.check("apply")
        name = f"{item.number:08d}"
        if run.is_done(item.number) or not run.take(name):
            return
        error: BaseException | None = None
        try:
            if run.is_done(item.number):
                return
            if run.deaths(name) >= DEATHS:
                raise PipelineError("it ended every process that tried it, most likely for lack of memory")
            function(item)
        except (PipelineError, OSError, RuntimeError, ValueError, MemoryError) as raised:
            run.check()
            error = raised
            failed.add(item.number)
        finally:
            run.leave(name)
        if time.monotonic() - counted > COUNT_S:
            n_left, counted = len(items) - len(run.done_numbers()), time.monotonic()
        yield Outcome(item, error, n_left)

    for item in share.of(items):
        yield from attempt(item)
    pause_s = 0.1
    while True:
        done = run.done_numbers()
        missing = [i for i in items if i.number not in done and i.number not in failed]
        if not missing:
            return
        # From the end of another share each, against the order in which its owner goes.
        parts = [missing[slice(*s)] for s in spans(len(missing), -(-len(missing) // share.count))]
        turn = (share.number + 1) % len(parts)
        tried = 0
        for item in (i for part in (*parts[turn:], *parts[:turn]) for i in reversed(part)):
            for outcome in attempt(item):
                tried += 1
                yield outcome
        if tried == 0:
            control.check("apply")
            run.check()
            time.sleep(pause_s)
            pause_s = min(2 * pause_s, PAUSE_S)
