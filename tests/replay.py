"""What a disk may hold after a power cut: the file operations of a command, and what each model may lose of them.

`recorded` runs a function and writes down every operation on files below a folder. `after_power_cut` gives the files
and folders that may be there if the power went at some moment:

- ``journal`` (ext4, xfs): names in their order, up to any moment after the last fsync.
- ``posix``: a name that no fsync of its folder made durable may be there or not, each by itself.
- ``worst``: no such name is there.

- ``whole``: nothing is lost.

In the first two, content that no fsync of its file made durable may be the old one, the new one, cut,
or zeros; in the worst it is the old one.
"""

from __future__ import annotations

import builtins
import io
import os
import random
import shutil
import threading
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

MODELS = ("journal", "posix", "worst")
ROOT = 0  # number of the folder itself


@dataclass(frozen=True)
class Name:
    """A name in a folder that becomes that of an inode (``number``), or no longer is (None)."""

    folder: int
    name: str
    number: int | None
    before: tuple[int, str] | None = None  # where it was, of a rename


@dataclass(frozen=True)
class Data:
    number: int
    content: bytes


@dataclass(frozen=True)
class Synced:
    number: int


@dataclass
class Recording:
    """All operations in their order, and which inodes are folders."""

    operations: list[Name | Data | Synced] = field(default_factory=list)
    folders: set[int] = field(default_factory=lambda: {ROOT})


class Recorder:
    """Stands before the functions of `os` that change files, and before `open`."""

    def __init__(self, root: Path) -> None:
        self.root = os.path.realpath(root)
        self.found = Recording()
        self.tree: dict[int, dict[str, int]] = {ROOT: {}}
        self.last: dict[int, bytes] = {}
        self.open: dict[int, Any] = {}  # files that may be written to, and what they were opened as
        self.lock = threading.RLock()
        self.real = {
            n: getattr(os, n) for n in ("mkdir", "rename", "unlink", "rmdir", "link", "open", "fsync")
        }
        self.real_open, self.real_replace = io.open, os.replace
        self.n = ROOT

    def install(self) -> None:
        for name in ("mkdir", "rename", "unlink", "rmdir", "link", "open", "fsync"):
            setattr(os, name, getattr(self, f"_{name}"))
        os.replace, os.remove = self._rename, self._unlink  # type: ignore[assignment]
        io.open = builtins.open = self._io_open  # type: ignore[assignment]

    def remove(self) -> None:
        for name, function in self.real.items():
            setattr(os, name, function)
        os.replace, os.remove = self.real_replace, self.real["unlink"]
        io.open = builtins.open = self.real_open  # type: ignore[assignment]

    def place(self, path: Any, dir_fd: int | None = None) -> tuple[int, str] | None:
        """Folder and name of a path below the root; None for any other."""
        around = Path.cwd() if dir_fd is None else _opened(dir_fd)
        path = os.path.normpath(around / (_opened(path) if isinstance(path, int) else path))
        if not path.startswith(self.root + "/"):
            return None
        *parts, name = path[len(self.root) + 1 :].split("/")
        number: int | None = ROOT
        for part in parts:
            number = self.tree.get(number, {}).get(part)  # type: ignore[arg-type]
            if number is None:
                return None
        return number, name  # type: ignore[return-value]

    def path(self, number: int) -> str | None:
        """Where an inode lies now."""
        stack = [(ROOT, self.root)]
        while stack:
            folder, path = stack.pop()
            for name, inner in self.tree[folder].items():
                if inner == number:
                    return f"{path}/{name}"
                if inner in self.tree:
                    stack.append((inner, f"{path}/{name}"))
        return None

    def look(self) -> None:
        """Write down what was written since the last operation."""
        for number, handle in list(self.open.items()):
            closed = handle is None or handle.closed
            if (path := self.path(number)) is not None:
                with self.real_open(path, "rb") as file:
                    content = file.read()
                if content != self.last.get(number):
                    self.last[number] = content
                    self.found.operations.append(Data(number, content))
            if closed:
                del self.open[number]

    def add(self, place: tuple[int, str], folder: bool = False) -> int:
        self.n += 1
        if folder:
            self.tree[self.n] = {}
            self.found.folders.add(self.n)
        self.tree[place[0]][place[1]] = self.n
        self.found.operations.append(Name(*place, self.n))
        return self.n

    def _mkdir(self, path: Any, mode: int = 0o777, *, dir_fd: int | None = None) -> None:
        with self.lock:
            self.look()
            self.real["mkdir"](path, mode, dir_fd=dir_fd)
            if (place := self.place(path, dir_fd)) is not None:
                self.add(place, folder=True)

    def _rename(self, a: Any, b: Any, **given: Any) -> None:
        with self.lock:
            self.look()
            source, target = self.place(a), self.place(b)
            self.real["rename"](a, b, **given)
            if source is not None and target is not None:
                number = self.tree[source[0]].pop(source[1])
                self.tree[target[0]][target[1]] = number
                self.found.operations.append(Name(*target, number, source))

    def _gone(self, how: str, path: Any, dir_fd: int | None) -> None:
        with self.lock:
            self.look()
            place = self.place(path, dir_fd)
            self.real[how](path, dir_fd=dir_fd)
            if place is not None:
                self.tree[place[0]].pop(place[1])
                self.found.operations.append(Name(*place, None))

    def _unlink(self, path: Any, *, dir_fd: int | None = None) -> None:
        self._gone("unlink", path, dir_fd)

    def _rmdir(self, path: Any, *, dir_fd: int | None = None) -> None:
        self._gone("rmdir", path, dir_fd)

    def _link(self, a: Any, b: Any, **given: Any) -> None:
        with self.lock:
            self.look()
            self.real["link"](a, b, **given)
            source, target = self.place(a), self.place(b)
            if target is not None:
                assert source is not None, "a link from elsewhere"
                number = self.tree[source[0]][source[1]]
                self.tree[target[0]][target[1]] = number
                self.found.operations.append(Name(*target, number))

    def opened(self, place: tuple[int, str] | None, handle: Any) -> None:
        if place is None:
            return
        number = self.tree[place[0]].get(place[1])
        self.open[self.add(place) if number is None else number] = handle

    def _open(self, path: Any, flags: int, mode: int = 0o777, *, dir_fd: int | None = None) -> int:
        with self.lock:
            self.look()
            fd: int = self.real["open"](path, flags, mode, dir_fd=dir_fd)
            if flags & (os.O_WRONLY | os.O_RDWR | os.O_CREAT):
                self.opened(self.place(path, dir_fd), None)
            return fd

    def _io_open(self, file: Any, mode: str = "r", *rest: Any, **given: Any) -> Any:
        with self.lock:
            self.look()
            handle = self.real_open(file, mode, *rest, **given)
            if set(mode) & set("wax+") and not isinstance(file, int):
                self.opened(self.place(file), handle)
            return handle

    def _fsync(self, fd: Any) -> None:
        with self.lock:
            self.look()
            self.real["fsync"](fd)
            path = _opened(fd)
            place = self.place(path)
            if str(path) == self.root:
                self.found.operations.append(Synced(ROOT))
            elif place is not None and place[1] in self.tree[place[0]]:
                self.found.operations.append(Synced(self.tree[place[0]][place[1]]))


def _opened(handle: Any) -> Path:
    """What an open file or folder is called now."""
    return Path(f"/proc/self/fd/{handle if isinstance(handle, int) else handle.fileno()}").readlink()


def recorded(root: Path, function: Callable[[], Any]) -> tuple[Any, Recording]:
    """Call a function; what it gave, and all it did below ``root``."""
    recorder = Recorder(root)
    recorder.install()
    try:
        result = function()
        recorder.look()
    finally:
        recorder.remove()
    return result, recorder.found


Files = dict[str, bytes | None]  # what is where; None is a folder


def after_power_cut(found: Recording, moment: int, model: str, rng: random.Random) -> Files:
    """What may be there if the power went after so many operations."""
    operations = found.operations[:moment]
    synced: dict[int, int] = {op.number: i for i, op in enumerate(operations) if isinstance(op, Synced)}
    journal = rng.randint(max(synced.values(), default=0), moment)
    tree: dict[int, dict[str, int]] = {number: {} for number in found.folders}
    for i, op in enumerate(operations):
        if not isinstance(op, Name):
            continue
        durable = synced.get(op.folder, -1) > i
        lost = {
            "journal": i >= journal,
            "posix": not durable and rng.random() < 0.5,
            "worst": not durable,
            "whole": False,
        }
        if lost[model]:
            continue
        if op.before is not None and tree[op.before[0]].get(op.before[1]) == op.number:
            del tree[op.before[0]][op.before[1]]
        if op.number is None:
            tree[op.folder].pop(op.name, None)
            continue
        if op.number in found.folders:  # which has one name
            for names in tree.values():
                for name in [n for n, number in names.items() if number == op.number]:
                    del names[name]
        tree[op.folder][op.name] = op.number
    contents: dict[int, bytes] = {}
    kept: dict[int, bytes] = {}
    for i, op in enumerate(operations):
        if isinstance(op, Data):
            contents[op.number] = op.content
            if synced.get(op.number, -1) > i:
                kept[op.number] = op.content
    files: Files = {}
    stack = [(ROOT, "")]
    while stack:
        folder, path = stack.pop()
        for name, number in tree[folder].items():
            if number in found.folders:
                files[f"{path}{name}"] = None
                stack.append((number, f"{path}{name}/"))
                continue
            new, old = contents.get(number, b""), kept.get(number, b"")
            cut = new[: rng.randint(0, len(new))]
            may_be = {"worst": [old], "whole": [new]}.get(model, [old, new, cut, bytes(len(new)), b""])
            may_be = [new] if new == old else may_be
            files[f"{path}{name}"] = rng.choice(may_be)
    return files


def on_disk(root: Path) -> Files:
    """What is below a folder."""
    return {p.relative_to(root).as_posix(): p.read_bytes() if p.is_file() else None for p in root.rglob("*")}


def put(files: Files, root: Path) -> None:
    """Make a folder hold just this."""
    shutil.rmtree(root, ignore_errors=True)
    root.mkdir()
    for name, content in sorted(files.items()):
        if content is None:
            (root / name).mkdir()
        else:
            (root / name).write_bytes(content)
