"""Who works on an output, and what of it is done.

An output is built under a ``-partial`` name. Beside it, ``.tdenoise/NAME/`` holds the plan, the lease of the run
that works on it, and one marker per finished block. The markers are the only truth: a driver that is started
again looks at them and does the rest.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import logging
import os
import shutil
import threading
import uuid
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from pathlib import Path
from types import TracebackType
from typing import Any

from tdenoise.files.atomic import (
    exchange,
    fsync,
    fsync_folders,
    fsync_tree,
    make_folder,
    make_shared_folder,
    write_atomically,
)

from ..errors import LockedError, PipelineError, UsageError
from ..files import ownership
from ..files.fault_points import maybe_crash
from ..files.sealed_json import read_json, read_sealed, write_sealed
from ..files.write_errors import named_failures, owner_name
from ..settings import recorded_settings
from ..settings.recorded_settings import COMMAND, record
from . import lease as leases
from .choices import CHOICE
from .lease import HEARTBEAT_S, check_lease, holds_lease, lease_holder
from .markers import marker
from .paths import partial_path, work_folder
from .plans import plan_difference, plan_id

log = logging.getLogger(__name__)


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
    stop : threading.Event, optional
        Ends the wait for a sign of life of another run that may have died.

    Raises
    ------
    LockedError
        If another run is at work on the output.
    UsageError
        If the output exists, was begun under another plan, or is something that is not ours to replace; or where
        nothing may be written.
    ResourceError
        If the disk is full.
    """

    def __init__(
        self,
        output: Path,
        plan: dict[str, Any],
        inputs: Sequence[Path] = (),
        *,
        force: bool = False,
        command: Any = None,
        stop: threading.Event | None = None,
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
        self._stop = stop
        self._stop_heartbeat = threading.Event()

    def __enter__(self) -> OutputRun:
        self._check_output()
        self._check_place()
        self._take_lease()
        maybe_crash("lease.taken")
        try:
            ownership.check_place(self.folder, self.partial)
            self._check_plan()
            make_shared_folder(self.folder / "done")
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
        return self.partial.exists() and self._created() is not None

    @property
    def member(self) -> str | None:
        """Who of those that share the run this is; None where it is not shared."""
        return None

    def once(self, name: str, function: Callable[[], object]) -> None:
        """Do what must be done once, whoever works on the output."""
        function()

    def alone(self, name: str) -> AbstractContextManager[None]:
        """Keep others from doing at the same time what bears this name: here there are none."""
        return contextlib.nullcontext()

    def prepare(self, create: Callable[[Path], None]) -> None:
        """Create the partial output unless an interrupted run of the same plan left it.

        ``create`` gives the same files whenever it is called: one of them that is damaged is made again.
        """
        created = self._created() if self.partial.exists() else None
        if created is not None and self._mend(create, created):
            # Of writers that were killed. Nor can one that only sleeps give them a name any more.
            for folder in (self.partial, self.folder / "done"):
                for orphan in folder.rglob("*.partial"):
                    orphan.unlink(missing_ok=True)
            return
        self._start_over()
        make_shared_folder(self.folder / "done")
        with named_failures(self.partial):
            create(self.partial)
        maybe_crash("output.created")
        fsync_tree(self.partial)
        fsync(self.partial.parent)
        write_sealed(self.folder / "created", {"files": _hashes(self.partial)})
        maybe_crash("output.begun")

    def begin_completion(self, create: Callable[[Path], None]) -> None:
        """Take away what a completion that was cut off has left, before the output is completed.

        Of those who share an output, one that comes after such an end joins the others and prepares nothing.
        """
        self.unstage()
        if not self.partial.exists():
            raise PipelineError(f"{self.partial}: is gone. Run the same command again; it starts over.")
        if not self._mend(create, self._created() or {}):
            raise PipelineError(
                f"{self.partial}: is damaged and cannot be completed. Start over with --force."
            )

    def _created(self) -> dict[str, str] | None:
        """sha256 of the files that the partial output was begun with; None if it was not."""
        files = (read_sealed(self.folder / "created") or {}).get("files")
        return files if isinstance(files, dict) else None

    def _mend(self, create: Callable[[Path], None], created: dict[str, str]) -> bool:
        """Make the partial output what it was when it was begun, and leave its shards; False if that fails."""
        begun_with = {Path(name).parts[0] for name in created}
        for inner in self.partial.iterdir():
            # Of a store that was being completed when the run ended; that is done anew. A model has no folders.
            if created and inner.is_dir() and not inner.is_symlink() and inner.name not in begun_with:
                shutil.rmtree(inner)
        wrong = [name for name, digest in created.items() if _sha256(self.partial / name) != digest]
        if not wrong:
            return True
        log.warning(
            "%s: changed since they were written, so written again: %s", self.partial, ", ".join(wrong)
        )
        fresh = self.folder / f"fresh-{self.token}"
        create(fresh)
        if any(_sha256(fresh / name) != created[name] for name in wrong):
            log.warning("%s: cannot be continued; starting over", self.partial)
            return False
        for name in wrong:
            make_folder((self.partial / name).parent)
            write_atomically(self.partial / name, (fresh / name).read_bytes())
        shutil.rmtree(fresh)
        return True

    def _start_over(self) -> None:
        """Forget what was begun."""
        (self.folder / "created").unlink(missing_ok=True)
        self._remove_partial()
        shutil.rmtree(self.folder / "done", ignore_errors=True)

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
        """Give the output its name, in one rename; a reader sees nothing or everything.

        An output that is replaced changes names with the new one, in one step where the file system can do that.
        """
        fsync_folders(self.partial)  # also those that Zarr made
        self.check()
        maybe_crash("commit.checked")
        # Under a name of its own it can no longer be taken for that of the run that may have taken over meanwhile.
        trash = self.folder / f"replaced-{self.token}"
        try:
            # The number of its inode tells after a crash whether it has changed names with the old output.
            staged = self.folder / f"ready-{self.token}-{self.partial.stat().st_ino}"
            self.partial.rename(staged)
            maybe_crash("commit.staged")
            if not holds_lease(self.folder, self.token):
                staged.rename(self.partial)
                self.check()
            if self.output.exists() and not self._force:
                raise FileNotFoundError
            if self.output.exists() and exchange(staged, self.output):
                maybe_crash("commit.replaced")
                staged.rename(trash)
            else:
                if self.output.exists():
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
            if _was_exchanged(staged, self.output):
                staged.rename(self.folder / f"replaced-{staged.name.removeprefix('ready-')}")
            elif not self.partial.exists():
                staged.rename(self.partial)

    def tidy(self) -> None:
        """Take away all that served to make the output; the plan last, which says that there is something left."""
        for left in (
            *(self.folder / name for name in ("done", "scratch", "logs")),
            *(left for kind in ("dead", "replaced", "fresh") for left in self.folder.glob(f"{kind}-*")),
            *(fresh for fresh in self.folder.glob("lease-*") if fresh.is_dir()),
        ):
            shutil.rmtree(left, ignore_errors=True)
        for name in ("created", "array.json", COMMAND, CHOICE, "plan.json"):
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
                f"{self.output}: exists already and was not made by tdenoise, so it is not replaced. "
                "Choose another name."
            )
        if not self._force:
            raise UsageError(
                f"{self.output}: exists already, made with other settings or from another input, or changed since. "
                "Choose another name, or --force to replace it."
            )
        if not os.access(self.output, os.W_OK):  # a folder goes nowhere without that right
            raise UsageError(
                f"{self.output}: you may not replace it; it belongs to {owner_name(self.output)}. Choose another name."
            )

    def _remove_partial(self) -> None:
        shutil.rmtree(self.partial, ignore_errors=True)
        if os.path.lexists(self.partial):
            raise UsageError(f"{self.partial}: is in the way and cannot be removed. Move it or remove it.")

    def _check_plan(self) -> None:
        self.unstage()
        file = self.folder / "plan.json"
        begun_as = read_sealed(file)
        if not file.exists():
            if os.path.lexists(self.partial):
                raise UsageError(
                    f"{self.partial}: is in the way and does not belong to a run. Move it or remove it."
                )
        elif begun_as is None:
            log.warning("%s: starting over, because its settings are not on record", self.partial)
            self._start_over()
        elif begun_as.get("id") != self.id:
            if self._is_outdated(begun_as.get("plan")):
                log.warning("%s: its raw file has changed; starting over.", self.output)
            elif not self._force:
                raise UsageError(
                    f"{self.partial}: was started with {plan_difference(begun_as.get('plan'), self._plan)}. "
                    "Finish it with the same settings, or start over with --force."
                )
            self._start_over()
        if self._command is not None:
            recorded_settings.write(self.folder / COMMAND, self._command)
        write_sealed(file, {"id": self.id, "plan": self._plan})

    def _is_outdated(self, before: Any) -> bool:
        """Whether what is unfinished was made by this very command from a raw file as it is no more."""
        begun_by = (read_sealed(self.folder / COMMAND) or {}).get("settings")
        if self._command is None or not isinstance(before, dict) or not isinstance(begun_by, dict):
            return False
        # By way of JSON, as what was begun came.
        now = json.loads(json.dumps(record(self._command)["settings"]))
        same = begun_by | {"force": None} == now | {"force": None}
        return same and "raw" in self._plan and before.get("raw") != self._plan["raw"]

    def _take_lease(self) -> None:
        leases.take(
            self.folder,
            self.token,
            lambda fresh: leases.write_owner(fresh, self.token),
            self._taken,
            self._stop,
        )

    def _check_place(self) -> None:
        """Refuse a place that is somebody else's; who is at work there is named first."""
        try:
            ownership.check_place(self.folder, self.partial)
        except UsageError:
            if (holder := lease_holder(self.folder, 0.0)) is not None:
                raise LockedError(self._taken(holder)) from None
            raise

    def _taken(self, holder: str) -> str:
        return f"{self.output}: another run holds it ({holder}). Wait for it, or stop it first."

    def _release_lease(self) -> None:
        finished = not (self.folder / "plan.json").exists()
        if finished and holds_lease(self.folder, self.token):
            with contextlib.suppress(OSError):
                (self.folder / "done").rmdir()  # while it is ours: the next run makes its own
        leases.release(self.folder, self.token)
        if finished:
            for folder in (self.folder, self.folder.parent):  # only if empty: someone may have moved in
                with contextlib.suppress(OSError):
                    folder.rmdir()

    def _beat(self) -> None:
        while not self._stop_heartbeat.wait(HEARTBEAT_S):
            if holds_lease(self.folder, self.token):
                with contextlib.suppress(OSError):  # a file system that hangs for a moment
                    (self.lease / "heartbeat").touch()


def tidy_up(output: Path) -> None:
    """Take away what a run left that was killed after it had given its output its name."""
    folder = work_folder(output)
    with contextlib.suppress(PipelineError, PermissionError):  # of another user: it is in nobody's way
        if not folder.exists():
            with contextlib.suppress(OSError):
                folder.parent.rmdir()  # only if empty: then its run was killed as it removed both
            return
        staged = [ready for ready in folder.glob("ready-*") if not _was_exchanged(ready, output)]
        if partial_path(output).exists() or staged:
            return
        # After a power cut this machine knows soon that it holds nothing. No other one is worth a wait.
        patience = leases.QUIET_S + 2 * leases.LOOK_S if leases.began_here(folder) else 0.0
        if lease_holder(folder, patience) is not None:
            return
        run = OutputRun(output, {})
        ownership.check_place(run.folder, run.partial)
        run._take_lease()
        try:
            run.unstage()
            run.tidy()
        finally:
            run._release_lease()


def _was_exchanged(staged: Path, output: Path) -> bool:
    """Whether a folder is no more the one that was made ready, but the old output, which has got its name.

    Copied to another disk, the one that was made ready has another number, too; but then it still waits for its name.
    """
    number = staged.name.rpartition("-")[2]
    return number.isdigit() and output.exists() and staged.stat().st_ino != int(number)


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


def _hashes(path: Path) -> dict[str, str]:
    """sha256 of every file in a folder, by its name from there."""
    return {
        file.relative_to(path).as_posix(): _sha256(file) for file in sorted(path.rglob("*")) if file.is_file()
    }


def _sha256(file: Path) -> str:
    """sha256 of a file; empty where it cannot be read."""
    try:
        return hashlib.sha256(file.read_bytes()).hexdigest()
    except OSError:
        return ""
