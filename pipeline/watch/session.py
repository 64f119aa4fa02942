"""A session: what was seen in a folder, and what its user decided; small sealed files that survive a kill."""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
import re
import shutil
import threading
import time
import uuid
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, get_args

from tdenoise.files.atomic import make_folder

from ..errors import InputError, PipelineError, UsageError
from ..files import ownership
from ..files.sealed_json import write_sealed
from ..files.write_errors import failure, named_failures
from ..runs import lease

Decision = Literal["accepted", "rejected"]

FILE, RECORDINGS, RUNS = "session.json", "recordings", "runs"
LONGEST_NOTE = 4000  # characters


@dataclass(frozen=True)
class Record:
    """What is kept of a recording."""

    name: str
    first_seen: str  # UTC
    finished: bool = False
    shape: tuple[int, int, int] | None = None  # known once it is finished
    format: str | None = None
    frame_time_s: float | None = None
    problem: str | None = None  # why it is no movie, or cannot be read as a whole
    decision: Decision | None = None
    note: str = ""
    n_bytes: int = 0  # when it was finished
    changed_ns: int = 0  # when it was written to last, as far as was known then
    run: str | None = None  # state of its run: "submitting", "refused", or as `status` says it
    why: str | None = None  # of that state, in words

    @property
    def id(self) -> str:
        """A name for files and questions, whatever the name of the recording holds."""
        return hashlib.sha256(self.name.encode(errors="surrogateescape")).hexdigest()[:16]

    @property
    def run_name(self) -> str:
        """Name of the folder of its run."""
        stem = re.sub(r"[^\w-]+", "_", self.name.rpartition(".")[0] or self.name, flags=re.ASCII).strip("_")
        return f"{stem[-60:]}-{self.id[:6]}"

    @classmethod
    def of_json(cls, document: dict[str, Any]) -> Record:
        """Inverse of `dataclasses.asdict`; TypeError where it is none."""
        shape = document.get("shape")
        made = cls(**{**document, "shape": None if shape is None else tuple(shape)})
        if made.decision not in (None, *get_args(Decision)) or not isinstance(made.name, str):
            raise TypeError("no record")
        return made


class Session:
    """The records of a folder, in memory as on the disk.

    Attributes
    ----------
    path : Path
    records : dict
        By the name of the recording.
    damaged : list of str
        Files whose content is lost, a sentence each.
    lock : threading.RLock
        Held by who asks first and changes then.
    """

    def __init__(self, path: Path, token: str) -> None:
        self.path = path
        self.records: dict[str, Record] = {}
        self.damaged: list[str] = []
        self.lock = threading.RLock()
        self._token = token

    def decide(self, number: str, document: dict[str, Any]) -> Record:
        """Keep what the user decided of a recording, or noted.

        Parameters
        ----------
        number : str
            Id of its record.
        document : dict
            ``decision`` ("accepted", "rejected" or None) or ``note``, or both.

        Raises
        ------
        LookupError, TypeError, ValueError
            If it has no meaning.
        PipelineError
            If its run was handed in, or it cannot be written.
        """
        changes: dict[str, Any] = {}
        with self.lock:
            record = self.by_id(number)
            if "note" in document:
                changes["note"] = str(document["note"])[:LONGEST_NOTE]
            if "decision" in document:
                if document["decision"] not in (None, *get_args(Decision)):
                    raise ValueError("no decision")
                changes["decision"] = document["decision"]
                if record.run == "refused":  # and so it was not handed in
                    changes |= {"run": None, "why": None}
                elif record.run is not None and document["decision"] != record.decision:
                    raise UsageError(
                        f"{record.name}: its run was handed in. To end it: "
                        f"tdenoise-pipeline cancel {self.run_folder(record)}"
                    )
            return self.change(record.name, **changes)

    def run_folder(self, record: Record) -> Path:
        """Where the run of a recording writes."""
        return self.path / RUNS / record.run_name

    def change(self, name: str, **changes: Any) -> Record:
        """Change what is kept of a recording: on the disk first, so that what is shown was kept.

        Raises
        ------
        LookupError
            If there is none of this name.
        PipelineError
            If it cannot be written, and why.
        """
        with self.lock:
            known = self.records[name]
            made = dataclasses.replace(known, **changes)
            if made != known or not self._file(made).exists():
                self._write(made)
                self.records[name] = made
            return made

    def add(self, name: str) -> Record:
        """Keep a recording that was not known."""
        with self.lock:
            made = Record(name, time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()))
            self._write(made)
            self.records[name] = made
            return made

    def forget(self, name: str) -> None:
        """Keep nothing of a recording that turned out to be none."""
        with self.lock:
            self._file(self.records.pop(name)).unlink(missing_ok=True)

    def by_id(self, number: str) -> Record:
        """The record with an id; LookupError if there is none."""
        with self.lock:
            found = next((r for r in self.records.values() if r.id == number), None)
        if found is None:
            raise LookupError(number)
        return found

    def load(self) -> None:
        """Read what was kept; a damaged file is told and not obeyed."""
        for left in (self.path / RECORDINGS).glob(".*.partial"):  # of a process that was killed
            left.unlink(missing_ok=True)
        for file in sorted((self.path / RECORDINGS).glob("*.json")):
            try:
                record = Record.of_json(ownership.read_own(file))
            except TypeError:
                self.damaged.append(f"{file}: is damaged, so what it said of a recording is lost.")
                continue
            self.records[record.name] = record

    def _file(self, record: Record) -> Path:
        return self.path / RECORDINGS / f"{record.id}.json"

    def _write(self, record: Record) -> None:
        work = self.path / ".tdenoise" / "watch"
        file = self._file(record)
        try:
            write_sealed(
                file,
                dataclasses.asdict(record),
                lambda: lease.check_lease(work, self._token),
                mode=0o644,  # whatever the umask: what others may change is not obeyed
            )
        except OSError as error:
            told = failure(error, file) or PipelineError(f"{file}: cannot be written ({error.strerror}).")
            raise told from error


@contextlib.contextmanager
def opened(path: Path, folder: Path, stop: threading.Event) -> Iterator[Session]:
    """The session of a folder, which one process has at a time.

    Raises
    ------
    InputError, UsageError
        If there is no such folder, or the session lies in it, or is that of another one.
    LockedError
        If another `watch` has it.
    """
    if not folder.is_dir():
        raise InputError(folder, "no such folder. Name the one that the microscope writes into.")
    own, watched = path.resolve(), folder.resolve()
    if any(p.exists() and p.samefile(watched) for p in (own, *own.parents)) or watched.is_relative_to(own):
        raise UsageError(
            f"{path}: lies in {folder}, or around it, where nothing is ever written. Choose another place for -o."
        )
    if path.is_dir() and any(path.iterdir()) and not (path / FILE).exists():
        started = {p.name for p in path.iterdir()} <= {".tdenoise", RECORDINGS, RUNS}
        if not started:
            raise UsageError(
                f"{path}: is no session, and holds something. Name an empty folder, or a new one."
            )
    work, token = path / ".tdenoise" / "watch", uuid.uuid4().hex
    lease.take(
        work,
        token,
        lambda fresh: lease.write_owner(fresh, token),
        lambda holder: (
            f"{path}: another watch has this session ({holder}). Stop it first, or choose another -o."
        ),
        stop,
    )
    ended = threading.Event()
    beat = threading.Thread(target=_beat, args=(work, token, ended), name="heartbeat", daemon=True)
    beat.start()
    try:
        with named_failures(path):
            _check_folder(path, folder)
            for name in (RECORDINGS, RUNS):
                make_folder(path / name)
        session = Session(path, token)
        session.load()
        yield session
    finally:
        ended.set()
        lease.release(work, token)
        for left in work.glob("dead-*"):  # of those that were killed
            shutil.rmtree(left, ignore_errors=True)
        for empty in (work, work.parent):
            with contextlib.suppress(OSError):
                empty.rmdir()


def _check_folder(path: Path, folder: Path) -> None:
    """Refuse the session of another folder; write down of which one it is."""
    file = path / FILE
    if not file.exists():
        write_sealed(file, {"kind": "watch", "folder": str(folder.resolve())}, mode=0o644)
        return
    known = ownership.read_own(file)
    if known.get("kind") != "watch":
        raise InputError(
            file, "is damaged. Choose a new session, or remove this file if the session is yours."
        )
    if known["folder"] != str(folder.resolve()):
        raise UsageError(f"{path}: is the session of {known['folder']}, not of {folder}. Choose another -o.")


def _beat(work: Path, token: str, ended: threading.Event) -> None:
    while not ended.wait(lease.HEARTBEAT_S):
        with contextlib.suppress(OSError):  # a file system that hangs for a moment
            if lease.holds_lease(work, token):
                (work / "lease" / "heartbeat").touch()
