"""Watch: look at a folder, show what is newest in it, keep what is decided, and hand in the runs."""

from __future__ import annotations

import dataclasses
import errno
import logging
import secrets
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from tdenoise.network import checkpoint, torch_setup

from ..errors import InputError, LockedError, PipelineError, UsageError
from ..inputs.model_fit import open_model
from ..local_page.server import open_server, serving
from ..readers import open_raw
from ..resources.budget import n_cores
from ..settings.denoise_settings import RunConfig
from ..settings.watch_settings import WatchConfig
from ..settings.yaml_file import read_yaml
from ..slurm.site_profile import load_site
from ..step_control import Control
from . import session as sessions
from .look import Looker
from .queue import Queue
from .recordings import Folder, Recording
from .server import WatchHandler
from .session import Record, Session
from .shown import Shown

log = logging.getLogger(__name__)

LOOK_S = 0.5  # between two looks at the folder
SHARE = 0.3  # of the time, at most, that is spent on looking at it
LONGEST_S = 10.0  # between two looks, also when the folder hung
KEEP_S = 2.0  # spent on what is kept of recordings before the page is told, about
NO_ANSWER = (
    errno.EIO,
    errno.ESTALE,
    errno.ETIMEDOUT,
    errno.EHOSTDOWN,
    errno.EHOSTUNREACH,
    errno.ENOTCONN,
    errno.EMFILE,
)
LISTED = 300  # recordings on the page, the newest


def watch(config: WatchConfig, control: Control | None = None) -> Iterator[str]:
    """Show recordings while they are written, and queue runs of those that are accepted, until a stop is asked for.

    Parameters
    ----------
    config : WatchConfig
    control : Control, optional

    Yields
    ------
    str
        What to tell the user: first the address of the page, at the end what was decided.

    Raises
    ------
    PipelineError
        If a setting has no meaning, the folder or the model cannot be read, or another `watch` has the session.
    """
    control = control or Control()
    calibration = run_settings(config.run_config)
    scheduler = load_site(Path(config.profile)).scheduler
    if scheduler not in ("local", "slurm"):
        raise UsageError(
            f"--profile {config.profile}: runs are queued on this machine or with Slurm, not {scheduler}."
        )
    model = open_model(config.model or checkpoint.BASE)
    if model.network.architecture.far_bins:
        raise UsageError(
            f"{config.model}: sees frames that are not recorded yet. Choose another model to watch with."
        )
    device = checkpoint.default_device() if config.device == "auto" else config.device
    model.network.to(device)
    torch_setup.prepare(n_cores())
    with sessions.opened(config.output, config.folder, control.stop) as session:
        shown, stop = Shown(), threading.Event()
        looker = Looker(shown, model, device, config.part, calibration)
        looking = threading.Thread(target=looker.run, args=(stop,), name="look", daemon=True)
        queue = Queue(session, config.profile, scheduler, config.run_config)
        watched = Watched(Folder(config.folder, config.rest), session, queue, shown, looking)
        token = secrets.token_urlsafe(24)
        server = open_server(WatchHandler, config.port or 0, token=token, shown=shown, session=session)
        with serving(server, token, config.browser) as lines:
            yield from lines
            yield f"Accepted recordings become runs in {config.output / sessions.RUNS}. It ends with Ctrl-C."
            try:
                looking.start()
                watched.run(control.stop)
            finally:
                stop.set()
                shown.end()
                looking.join(LONGEST_S)  # a file server that does not answer holds nobody
                queue.finish()
        yield _summary(session)


def run_settings(file: Path | None) -> RunConfig:
    """The settings that all runs will have; a wrong one is found before anything is recorded.

    Raises
    ------
    UsageError
    """
    given: dict[str, Any] = {} if file is None else dict(read_yaml(file))
    plain = {name.replace("-", "_"): value for name, value in given.items() if value is not None}
    own = {"raw", "output"} & set(plain)
    if own:
        raise UsageError(f"{file}: {own.pop()} differs from recording to recording. Take it out.")
    try:
        return RunConfig(raw=Path("raw"), output=Path("output"), **plain)
    except UsageError as error:
        raise UsageError(f"{file}: {error}") from None


class Watched:
    """The folder, what is kept of it, and what is done about it: one look after another.

    Parameters
    ----------
    folder : Folder
    session : Session
    queue : Queue
    shown : Shown
    looking : threading.Thread
        That looks at the newest frames.
    """

    def __init__(
        self, folder: Folder, session: Session, queue: Queue, shown: Shown, looking: threading.Thread
    ) -> None:
        self._looking = looking
        self._folder, self._session, self._queue, self._shown = folder, session, queue, shown
        self._told: list[str] = []
        self._unread: list[str] = []
        self._kept: set[str] = set()  # recordings that were brought up to date since the last one was

    def run(self, stop: threading.Event) -> None:
        """Look until a stop is asked for."""
        while not stop.is_set():
            began = time.monotonic()
            self.step()
            # A folder of a hundred thousand frames takes its time.
            stop.wait(min(LONGEST_S, max(LOOK_S, (time.monotonic() - began) * (1 / SHARE - 1))))

    def step(self) -> None:
        """Look once."""
        folder = self._folder
        folder.look()
        self._unread = []
        problems = [*self._tried(self._keep_all), *self._tried(lambda: self._queue.step(folder))]
        problems += self._unread
        if not self._looking.is_alive():
            problems.append("No more frames are shown, for an unexpected reason. Start watch again.")
        problems = [*folder.problems, *problems, *self._session.damaged]
        for problem in problems:
            if problem not in self._told:
                log.warning("%s", problem)
        self._told = problems
        self._shown.list(folder, self._listed(), problems)

    def _tried(self, work: Callable[[], None]) -> list[str]:
        """Why some work could not be done now; it is done later. A full disk ends nothing."""
        try:
            work()
        except LockedError:
            raise
        except PipelineError as error:
            return [str(error)]
        except OSError as error:
            return [f"{error.filename or self._session.path}: {error.strerror or error}"]
        return []

    def _keep_all(self) -> None:
        """Bring up to date what is kept, first of what grows; of very many recordings, the rest at the next look."""
        until = time.monotonic() + KEEP_S
        turns = sorted(
            self._folder.recordings.values(), key=lambda r: (r.state != "growing", r.name in self._kept)
        )
        for recording in turns:
            self._kept.add(recording.name)
            self._keep(recording)
            if time.monotonic() > until:
                break
        else:
            self._kept.clear()
        for record in list(self._session.records.values()):
            self._forget(record)

    def _keep(self, recording: Recording) -> None:
        """Bring what is kept of a recording up to date."""
        record = self._session.records.get(recording.name)
        if record is None:
            if recording.state in ("growing", "finished"):
                record = self._session.add(recording.name)
            else:
                return
        now = recording.signature
        known = record.n_bytes == now.n_bytes and record.changed_ns in (0, now.changed_ns)
        if recording.state == "finished" and not (record.finished and known):
            facts = _facts(recording)
            if facts is None:  # the next look asks again
                self._unread.append(f"{recording.path}: cannot be read now. It is tried again.")
                return
            if record.finished and record.changed_ns and record.run not in (None, "refused"):
                facts["problem"] = (
                    "it was written to after its run was handed in, which may lack its last frames. Hand in a run of "
                    "the whole movie yourself."
                    if record.n_bytes != now.n_bytes
                    else "the time of its files changed after its run was handed in. If they were written to, hand in "
                    "a run yourself."
                )
            self._session.change(record.name, finished=True, **facts)

    def _forget(self, record: Record) -> None:
        """Forget what is gone and was never seen to be a movie, such as the first of many frames."""
        seen = self._folder.recordings.get(record.name)
        untouched = (record.shape, record.decision, record.note, record.run) == (None, None, "", None)
        if untouched and not self._folder.problems and (seen is None or seen.state == "gone"):
            self._session.forget(record.name)
            self._folder.recordings.pop(record.name, None)

    def _listed(self) -> list[dict[str, Any]]:
        """What the page lists, the newest first."""
        states = {name: recording.state for name, recording in self._folder.recordings.items()}
        records = sorted(self._session.records.values(), key=lambda r: (r.first_seen, r.name), reverse=True)
        left_out = ("n_bytes", "changed_ns", "finished")
        return [
            {k: v for k, v in dataclasses.asdict(record).items() if k not in left_out}
            | {"id": record.id, "state": states.get(record.name, "gone"), "total": len(records)}
            for record in records[:LISTED]
        ]


def _facts(recording: Recording) -> dict[str, Any] | None:
    """What a finished recording says of itself, or why it is no movie; None where the disk does not answer."""
    n_bytes, changed_ns = recording.signature.n_bytes, recording.signature.changed_ns
    try:
        with open_raw(recording.path) as reader:
            info = reader.info
    except (InputError, UsageError) as error:
        if isinstance(error.__cause__, OSError) and error.__cause__.errno in NO_ANSWER:
            return None
        return {"problem": str(error), "shape": None, "n_bytes": n_bytes, "changed_ns": changed_ns}
    return {
        "problem": None,
        "shape": info.shape,
        "format": info.format,
        "frame_time_s": info.frame_time_s,
        "n_bytes": n_bytes,
        "changed_ns": changed_ns,
    }


def _summary(session: Session) -> str:
    records = session.records.values()
    decided = {d: sum(r.decision == d for r in records) for d in ("accepted", "rejected")}
    waiting = sum(r.decision == "accepted" and r.run is None and r.problem is None for r in records)
    more = f"; {waiting} wait for their run until you start watch again" if waiting else ""
    n = len(records)
    return (
        f"Stopped. {session.path}: {n} recording{'' if n == 1 else 's'}, {decided['accepted']} accepted, "
        f"{decided['rejected']} rejected{more}."
    )
