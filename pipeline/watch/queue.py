"""Runs of accepted recordings: handed in with `submit`, one after the other where they are for this machine."""

from __future__ import annotations

import subprocess
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from typing import IO

from ..errors import LockedError, PipelineError
from ..ingest.ingest_many import movies_meant
from ..jobs import job_status, run_folder
from ..slurm.batch_script import NoAnswer, pipeline_command
from .recordings import Folder
from .session import Record, Session

ASK_S = {"local": 2.0, "slurm": 30.0}  # between two questions how the runs stand
UNDER_WAY = ("submitting", "running", "pending", "unknown")
OVER = ("done", "refused")  # what failed may be resumed
PATIENCE_S = 60.0  # for a `submit`, when the command ends


@dataclass
class _Errand:
    """A `submit` that runs."""

    name: str
    process: subprocess.Popen[bytes]
    said: IO[bytes]


class Queue:
    """Hands in the runs of a session, and asks how they stand.

    Parameters
    ----------
    session : Session
    profile : str
        As ``submit --profile`` takes it.
    scheduler : str
        Of that profile.
    run_config : Path or None
        Settings of the runs.
    """

    def __init__(self, session: Session, profile: str, scheduler: str, run_config: Path | None) -> None:
        self._session, self._profile, self._run_config = session, profile, run_config
        self._is_local = scheduler == "local"
        self._ask_s = ASK_S["local" if self._is_local else "slurm"]
        self._asked = 0.0
        self._to_ask: list[str] = []  # names of recordings whose runs are asked about, one at each step
        self._errand: _Errand | None = None

    def step(self, folder: Folder) -> None:
        """Do what is to be done now; comes back at once.

        Raises
        ------
        PipelineError
            If what happened cannot be kept.
        """
        if self._errand is not None:
            if self._errand.process.poll() is None:
                return
            self._back(self._errand)
        if not self._to_ask and time.monotonic() - self._asked > self._ask_s:
            self._to_ask = [r.name for r in self._session.records.values() if r.run not in (None, *OVER)]
            self._asked = time.monotonic()
        while self._to_ask:
            self._ask(self._session.records.get(self._to_ask.pop()))
            if not self._is_local:  # a cluster may take its time to answer: one at a time
                break
        if (record := self._next(folder)) is not None:
            self._submit(record, folder.recordings[record.name].path)

    def finish(self) -> None:
        """Wait for a `submit` that runs, and keep how it ended."""
        if self._errand is None:
            return
        try:
            self._errand.process.wait(PATIENCE_S)
        except subprocess.TimeoutExpired:
            return  # the next watch of this session finds out
        self._back(self._errand)

    def _next(self, folder: Folder) -> Record | None:
        records = list(self._session.records.values())
        if self._is_local and any(r.run in UNDER_WAY for r in records):
            return None
        ready = (
            r
            for r in records
            if r.decision == "accepted" and r.run is None and r.problem is None and r.finished
            if (seen := folder.recordings.get(r.name)) is not None and seen.state == "finished"
        )
        return min(ready, key=lambda r: (r.first_seen, r.name), default=None)

    def _submit(self, record: Record, path: Path) -> None:
        with self._session.lock:
            if self._session.records[record.name].decision != "accepted":  # changed just now
                return
            self._session.change(record.name, run="submitting", why=None)
        movies = movies_meant([path])
        raw = movies[0] if len(movies) == 1 else path  # of a capture, the file that directs to its frames
        words = ["submit", "--profile", self._profile, "run", str(raw.absolute())]
        words += ["-o", str(self._session.run_folder(record).absolute())]
        if self._run_config is not None:
            words += ["--config", str(self._run_config.absolute())]
        said = tempfile.TemporaryFile()  # noqa: SIM115 - closed when the errand is back
        process = subprocess.Popen(
            pipeline_command(words),
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=said,
            start_new_session=True,  # Ctrl-C is not for it
        )
        self._errand = _Errand(record.name, process, said)

    def _back(self, errand: _Errand) -> None:
        """Keep how a `submit` ended; that of a run that is there already is as good."""
        self._errand = None
        code = errand.process.returncode
        with errand.said:
            errand.said.seek(0)
            lines = errand.said.read().decode(errors="replace").split("\n")
        if code in (0, LockedError.exit_code):
            self._session.change(errand.name, run="pending", why=None)
            self._asked = 0.0
            return
        last = next((line for line in reversed(lines) if line.strip()), f"submit ended with {code}")
        self._session.change(errand.name, run="refused", why=last.removeprefix("tdenoise-pipeline: "))

    def _ask(self, record: Record | None) -> None:
        """Ask how a run stands that is not over."""
        if record is None or record.run is None or record.run in OVER:
            return
        if record.run == "submitting" and self._errand is None:  # of a watch that was killed
            there = run_folder.find(self._session.run_folder(record)) is not None
            self._session.change(record.name, run="pending" if there else None)
            return
        try:
            found = job_status.describe(self._session.run_folder(record))
        except NoAnswer:
            self._to_ask.clear()
            return
        except OSError:  # of this run, such as a marker that went while it was looked at
            return
        except PipelineError as error:
            self._session.change(record.name, run="refused", why=str(error))
            return
        why = next((job["why"] for job in found["jobs"] if job["state"] == found["state"]), None)
        if found["state"] in ("failed", "interrupted"):
            why = next((job["why"] for job in found["jobs"] if job["state"] not in ("done",)), why)
        self._session.change(record.name, run=found["state"], why=why)
