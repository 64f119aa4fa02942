"""What lies on the disk is obeyed only if it is the user's own: in a shared folder others may have put it there."""

from __future__ import annotations

import contextlib
import os
import stat
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

from ..errors import UsageError
from .sealed_json import unsealed

try:
    import pwd
except ImportError:  # Windows, whose files have no such owner and mode
    pwd = None  # type: ignore[assignment]

OTHERS_WRITE = stat.S_IWGRP | stat.S_IWOTH
# A pipe, or a link, is not followed; Windows has no such flags.
_FLAGS = os.O_RDONLY | sum(
    getattr(os, f"O_{name}", 0) for name in ("NOFOLLOW", "NONBLOCK", "CLOEXEC", "BINARY")
)


def stranger(path: Path, found: os.stat_result | None = None) -> str | None:
    """In words, why a file or folder may be somebody else's doing; None if it is the user's own.

    Parameters
    ----------
    path : Path
        Itself, not what a link leads to.
    found : stat_result, optional
        Of the file that was opened, so that nobody can exchange it between the question and its use.
    """
    found = path.lstat() if found is None else found
    if not is_mine(path, found):
        return f"belongs to {_user(found.st_uid)}, and you are {_user(os.geteuid())}"
    if stat.S_ISLNK(found.st_mode):
        return "is a symbolic link"
    if found.st_mode & OTHERS_WRITE and pwd is not None:
        return f"can be changed by others (mode {stat.S_IMODE(found.st_mode):04o})"
    return None


def is_mine(path: Path, found: os.stat_result | None = None) -> bool:
    """Whether this user owns a path itself, not what a link leads to."""
    if pwd is None:
        return True
    owner = (path.lstat() if found is None else found).st_uid
    return owner == os.geteuid() or owner == _owner_of_new(path.parent)


def read_own(file: Path, read: Callable[[bytes], dict[str, Any] | None] = unsealed) -> dict[str, Any]:
    """The object in a JSON file that tells this process what to do; empty where it is missing or damaged.

    Parameters
    ----------
    file : Path
    read : callable
        Makes the object of the bytes; None if they are not whole.

    Raises
    ------
    UsageError
        If the file may be somebody else's doing.
    """
    try:
        # A pipe, or a link to one, would never answer.
        handle = os.open(file, _FLAGS)
    except OSError:
        if file.is_symlink():
            raise UsageError(f"{file}: is a symbolic link, so it is ignored. {ADVICE}") from None
        return {}
    with os.fdopen(handle, "rb") as opened:
        found = os.fstat(handle)
        if (why := stranger(file, found)) is not None:
            raise UsageError(f"{file}: {why}, so it is ignored. {ADVICE}")
        if not stat.S_ISREG(found.st_mode):
            return {}
        try:
            return read(opened.read()) or {}
        except (OSError, ValueError):
            return {}


ADVICE = "If you trust it, run the command again yourself; it continues where it stopped."


def check_place(folder: Path, partial: Path) -> None:
    """Refuse to write where somebody else chose that it goes, or into what somebody else owns.

    Asked before the lease is taken, and again with it in hand, when nobody can slip in any more.

    Parameters
    ----------
    folder : Path
        The work folder of an output.
    partial : Path
        Where the output lies while it is built.

    Raises
    ------
    UsageError
    """
    above = folder.parent
    with contextlib.suppress(FileNotFoundError, NotADirectoryError):
        if above.is_symlink() and not is_mine(above):
            raise UsageError(f"{above}: is a symbolic link that is not yours. Remove it, or write elsewhere.")
    for path in (folder, partial):
        # The mode of an output is for its owner to choose; what steers a run is not.
        with contextlib.suppress(FileNotFoundError, NotADirectoryError):
            found = path.lstat()
            why = stranger(path, found)
            if why is not None and (not is_mine(path, found) or stat.S_ISLNK(found.st_mode)):
                raise UsageError(
                    f"{path}: {why}, so nothing is written there. Remove it or choose another name."
                )
            if path == folder and found.st_mode & stat.S_IWOTH:
                raise UsageError(f"{path}: can be changed by everybody. Close it: chmod o-w {path.name}.")


def make_own_folder(folder: Path, mode: int = 0o755) -> None:
    """Make a folder that this user alone may change: for scripts, keys, and the files of workers.

    Around it others may write. One that is there already is this user's, and is closed to others, or is refused.

    Raises
    ------
    UsageError
    """
    folder.parent.mkdir(parents=True, exist_ok=True)
    with contextlib.suppress(FileExistsError):
        folder.mkdir(mode=mode)
    found = folder.lstat()
    if not stat.S_ISDIR(found.st_mode) or not is_mine(folder, found):
        why = stranger(folder, found) or "is no folder"
        raise UsageError(f"{folder}: {why}, so nothing is started from there. Remove it.")
    if found.st_mode & OTHERS_WRITE:  # of a umask that leaves it to the group
        folder.chmod(stat.S_IMODE(found.st_mode) & ~OTHERS_WRITE)


def _owner_of_new(folder: Path) -> int | None:
    """Whom what this process makes in a folder belongs to: on some network mounts that is nobody, or one for all."""
    try:
        probe = Path(tempfile.mkdtemp(prefix=".owner-", dir=folder))
    except OSError:
        return None
    try:
        return probe.lstat().st_uid
    finally:
        with contextlib.suppress(OSError):
            probe.rmdir()


def _user(number: int) -> str:
    try:
        return pwd.getpwuid(number).pw_name
    except KeyError:
        return f"user {number}"
