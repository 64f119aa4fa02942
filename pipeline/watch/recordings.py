"""What lies below a folder: its recordings, whether they grow or rest, told by one look after another.

Only names, sizes and times are looked at here, and they are compared only with those of the look before: the clock of
the file server is not asked.
"""

from __future__ import annotations

import os
import re
import time
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from ..errors import InputError, PipelineError
from ..readers import FORMATS, open_raw
from ..readers.numbering import natural
from ..readers.sequence import CAPTURE
from ..readers.tvips import belongs_to

State = Literal["new", "growing", "finished", "gone"]

_SUFFIXES = {suffix for form in FORMATS for suffix in form.suffixes}
_ZARR = {"zarr.json", ".zarray", ".zgroup"}
_RAW_OF_DM = re.compile(r"(.*)\.raw(_[0-9]+)?", re.IGNORECASE)


@dataclass(frozen=True)
class Signature:
    """By what a recording that was written to differs from before."""

    n_files: int
    n_bytes: int
    changed_ns: int  # the newest time on its files, by the clock of whoever wrote them
    first: int  # inode of its first file: another one is another recording

    @classmethod
    def of(cls, files: list[os.DirEntry[str]]) -> Signature:
        stats = [file.stat() for file in files]
        return cls(
            len(stats), sum(s.st_size for s in stats), max(s.st_mtime_ns for s in stats), stats[0].st_ino
        )

    def is_more_than(self, before: Signature) -> bool:
        """Whether something was appended since, and nothing replaced."""
        more = (self.n_files, self.n_bytes) != (before.n_files, before.n_bytes)
        return more and self.first == before.first and self.n_bytes > before.n_bytes


@dataclass
class Recording:
    """A recording, as far as it was seen."""

    name: str  # its path below the folder, as POSIX writes it
    path: Path
    signature: Signature
    since: float  # since when the signature is what it is, by the monotonic clock of this process [s]
    state: State = "new"

    def see(self, signature: Signature, now: float, rest_s: float) -> None:
        """Take in what a look found."""
        if signature != self.signature:
            # What is as large as before was written in place: nothing tells which of its frames are whole.
            grows = signature.is_more_than(self.signature) or (
                self.state == "growing" and signature.first == self.signature.first
            )
            self.state = "growing" if grows else "new"
            self.signature, self.since = signature, now
        elif now - self.since >= rest_s:
            self.state = "finished"
        elif self.state == "gone":
            self.state = "new"


@dataclass
class Folder:
    """The folder that a microscope writes into.

    Attributes
    ----------
    path : Path
    rest_s : float
        A recording that has not changed for so long is finished [s].
    recordings : dict
        By name, those that were ever seen.
    problems : list of str
        What could not be looked at in the last look, a sentence each.
    """

    path: Path
    rest_s: float
    recordings: dict[str, Recording] = field(default_factory=dict)
    problems: list[str] = field(default_factory=list)
    _single: dict[tuple[Path, int], bool] = field(default_factory=dict)
    _away: bool = False

    def look(self) -> None:
        """Look once. A folder that is away for a while changes nothing but ``problems``."""
        self.problems = []
        try:
            found = dict(self._scan())
        except OSError as error:
            self.problems = [
                f"{self.path}: cannot be read ({error.strerror}). Waiting until it is there again."
            ]
            self._away = True
            return
        now = time.monotonic()
        paths = {path for path, _ in found.values()}
        for name, recording in list(self.recordings.items()):
            if self._away:
                recording.since = now  # nobody saw whether it rested
            if name not in found:
                recording.state, recording.since = "gone", now
                if recording.path.parent in paths:
                    del self.recordings[name]  # it was the first of many frames
        self._away = False
        for name, (path, signature) in found.items():
            if name in self.recordings:
                self.recordings[name].see(signature, now, self.rest_s)
            else:
                self.recordings[name] = Recording(name, path, signature, now)

    def newest(self) -> Recording | None:
        """The recording that was written to last: one that grows, else one that is finished."""
        for state in ("growing", "finished"):
            found = [r for r in self.recordings.values() if r.state == state]
            if found:
                return max(
                    found, key=lambda r: (r.since if state == "growing" else 0, r.signature.changed_ns)
                )
        return None

    def _scan(self) -> Iterator[tuple[str, tuple[Path, Signature]]]:
        """Every recording by its name."""
        waiting = [self.path]
        while waiting:
            folder = waiting.pop()
            try:
                with os.scandir(folder) as entries:
                    inside = sorted((e for e in entries if not e.name.startswith(".")), key=lambda e: e.name)
                    names = {e.name for e in inside}
                hidden_zarr = any((folder / name).is_file() for name in _ZARR)
                folders = [e for e in inside if e.is_dir(follow_symlinks=False)]
                whole = hidden_zarr or any(CAPTURE.fullmatch(e.name) for e in folders)
                files = list(files_below(folder)) if whole else [e for e in inside if _is_file(e)]
                if whole:
                    found = [(folder, files)] if files else []
                else:
                    found = self._of_files(folder, files, names)
                    waiting += [Path(e.path) for e in folders]
                for path, own in found:
                    try:
                        signature = Signature.of(own)
                    except (
                        FileNotFoundError
                    ):  # of one of its files, between two questions: the next look tells
                        if (seen := self.recordings.get(self._name(path))) is None:
                            continue
                        signature = seen.signature
                    yield self._name(path), (path, signature)
            except FileNotFoundError:
                if folder == self.path and not self.path.is_dir():
                    raise
                continue  # it went away between two questions
            except OSError as error:
                if folder == self.path:
                    raise
                self.problems.append(f"{folder}: cannot be read ({error.strerror}), so it is not watched.")

    def _name(self, path: Path) -> str:
        return path.relative_to(self.path).as_posix() if path != self.path else self.path.name

    def _of_files(
        self, folder: Path, files: list[os.DirEntry[str]], names: set[str]
    ) -> list[tuple[Path, list[os.DirEntry[str]]]]:
        """The recordings among the files of a folder, each with all its files."""
        own: dict[Path, list[os.DirEntry[str]]] = {}
        known = [e for e in files if Path(e.name).suffix.lower() in _SUFFIXES]
        known.sort(key=lambda e: natural(Path(e.name)))
        kinds = [_unnumbered(e.name) for e in known]
        usual = Counter(kinds).most_common(1)[0][0] if kinds else ""
        alike = [e for e, kind in zip(known, kinds, strict=True) if kind == usual]
        if len(alike) > 1 and all(self._is_single(e) for e in alike[:2]):
            own[folder] = alike  # what else lies there is no frame of it
            known = [e for e, kind in zip(known, kinds, strict=True) if kind != usual]
        for entry in known:
            path = Path(entry.path)
            first = belongs_to(path)
            if first is not None and first.name in names:
                own.setdefault(first, []).append(entry)
            else:
                own.setdefault(path, []).insert(0, entry)
        for entry in files:
            if (raw := _RAW_OF_DM.fullmatch(entry.name)) is None:
                continue
            for suffix in (".dm4", ".dm3"):
                if (director := folder / f"{raw[1]}{suffix}") in own:
                    own[director].append(entry)
        return list(own.items())

    def _is_single(self, entry: os.DirEntry[str]) -> bool:
        """Whether a file holds one image; asked once for a size."""
        key = Path(entry.path), entry.stat().st_size
        if key not in self._single:
            if len(self._single) > 4096:
                self._single.clear()
            self._single[key] = _holds_one(key[0])
        return self._single[key]


def _holds_one(path: Path) -> bool:
    try:
        open_raw(path, allow_truncated=True).close()
    except InputError as error:
        return "single image" in str(error)
    except PipelineError:
        pass
    return False


def files_below(folder: Path) -> Iterator[os.DirEntry[str]]:
    """All files below a folder."""
    with os.scandir(folder) as entries:
        for entry in sorted(entries, key=lambda e: e.name):
            if entry.is_dir(follow_symlinks=False):
                yield from files_below(Path(entry.path))
            elif _is_file(entry):
                yield entry


def _is_file(entry: os.DirEntry[str]) -> bool:
    try:
        return entry.is_file()
    except OSError:
        if entry.is_symlink():  # one that leads nowhere
            return False
        raise


def _unnumbered(name: str) -> str:
    """A name without its numbers."""
    return re.sub(r"-?[0-9]+", "0", name.lower())
