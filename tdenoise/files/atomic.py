"""Files that are whole at any moment, written without torch, which takes seconds to import."""

from __future__ import annotations

import contextlib
import ctypes
import errno
import hashlib
import os
import re
import stat
import time
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TypeVar

TRIES = 4  # of an operation that a storage server may answer better a moment later
WAIT_S = 0.2  # before the second try; five times as long before each further one
TRANSIENT = (errno.EIO, errno.ESTALE)
NO_LINKS = (errno.EPERM, errno.ENOTSUP, errno.EOPNOTSUPP, errno.ENOSYS, errno.EMLINK)
EMPTY_S = 5.0  # after which a name that somebody took belongs to nobody
AT_FDCWD, RENAME_EXCHANGE = -100, 2  # as Linux has them

SEAL = "0" * 64  # stands in a file for its own sha256, until it is sealed

_SEALED = re.compile(rb'"seal": ?"([0-9a-f]{64})"')

ON_WINDOWS = os.name == "nt"  # folders cannot be synced there, and files only by who may write them

T = TypeVar("T")


def write_atomically(
    path: Path, data: bytes, before: Callable[[], None] | None = None, mode: int = 0o666
) -> None:
    """Write a file so that after a crash or a power cut it is the old one or the new one, whole.

    Parameters
    ----------
    path : Path
    data : bytes
    before : callable, optional
        Called when all is on the disk but the name; what it raises leaves the old file.
    mode : int
        Permissions, of which the umask takes some away.
    """
    patiently(lambda: _write(path, data, before, mode))


def _write(path: Path, data: bytes, before: Callable[[], None] | None, mode: int) -> None:
    partial = unique_partial(path)
    try:
        with open(partial, "xb", opener=lambda name, flags: os.open(name, flags, mode)) as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        if before is not None:
            before()
        partial.replace(path)
    except BaseException as error:
        partial.unlink(missing_ok=True)
        if isinstance(error, OSError):
            error.filename = error.filename or str(path)
        raise
    fsync(path.parent)


def write_new(path: Path, data: bytes, mode: int = 0o666) -> bool:
    """Write a file that is not there, whole and durably; of several processes that do so at once, one succeeds.

    Returns
    -------
    bool
        False where the file is there already; it stays as it is.
    """
    partial = unique_partial(path)
    write_atomically(partial, data, mode=mode)
    try:
        os.link(partial, path)  # fails if it is there
    except FileExistsError:
        return False
    except OSError as error:
        if error.errno not in NO_LINKS:
            raise
        if not _taken(path):  # a file system without hard links, such as exFAT and some of file servers
            return False
        partial.replace(path)
    finally:
        partial.unlink(missing_ok=True)
    fsync(path.parent)
    return True


def _taken(path: Path) -> bool:
    """Take a name, as an empty file; one that stays empty is of a process that was killed."""
    try:
        os.close(os.open(path, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o600))
        return True
    except FileExistsError:
        begun = time.monotonic()
        while path.stat().st_size == 0:
            if time.monotonic() - begun > EMPTY_S:
                return True
            time.sleep(0.05)
        return False


@contextlib.contextmanager
def written_whole(path: Path) -> Iterator[Path]:
    """A name beside a file, to write what shall be that file: large, or by a library that wants a name.

    At the end of the block the file is the new one, whole and durable; if the block raises, it is the old one, or none.

    Parameters
    ----------
    path : Path

    Yields
    ------
    Path
        Nothing is there yet.
    """
    partial = unique_partial(path)
    try:
        yield partial
        fsync(partial)
        partial.replace(path)
    except BaseException as error:
        partial.unlink(missing_ok=True)
        if isinstance(error, OSError) and error.filename in (None, str(partial)):
            error.filename = str(path)
        raise
    fsync(path.parent)


def unique_partial(path: Path) -> Path:
    """A name beside a file for what shall replace it; no two writers share it.

    Whoever takes an output over removes all ``*.partial`` in it. A writer from before, that was paused and wakes
    up, then has nothing left that it could give the name of the file.
    """
    return path.with_name(f".{path.name}.{uuid.uuid4().hex}.partial")


def exchange(one: Path, other: Path) -> bool:
    """Let two folders change names in one step, so that nobody finds either name free.

    Returns
    -------
    bool
        False where the system or the file system cannot do that; nothing is changed then.

    Raises
    ------
    OSError
        Where it could, but is not allowed to, or one of them is not there.
    """
    try:
        renameat2 = ctypes.CDLL(None, use_errno=True).renameat2
    except (AttributeError, OSError, TypeError):
        return False
    if renameat2(AT_FDCWD, os.fsencode(one), AT_FDCWD, os.fsencode(other), RENAME_EXCHANGE) == 0:
        return True
    number = ctypes.get_errno()
    if number in (errno.ENOSYS, errno.EINVAL, errno.ENOTSUP, errno.EXDEV):
        return False
    raise OSError(number, os.strerror(number), str(other))


def fsync(path: Path) -> None:
    """Wait until a file, or the names in a folder, are on the disk."""
    if ON_WINDOWS and path.is_dir():
        return
    handle = os.open(path, os.O_RDWR if ON_WINDOWS else os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def fsync_tree(path: Path) -> None:
    """Wait until everything in a folder is on the disk."""
    for inner in path.rglob("*"):
        fsync(inner)
    fsync(path)


def fsync_folders(path: Path) -> None:
    """Wait until the names of all that lies in a folder, at any depth, are on the disk."""
    for folder, _, _ in os.walk(path, topdown=False):
        fsync(Path(folder))


def make_folder(path: Path) -> None:
    """Make a folder, and those it lies in, durably; one that is there stays as it is."""
    if path.is_dir():
        return
    if not path.parent.exists():
        make_folder(path.parent)
    with contextlib.suppress(FileExistsError):
        path.mkdir()
    fsync(path.parent)


def make_shared_folder(path: Path, *, everybody: bool = False) -> None:
    """Make a folder for whoever may use the folder it lies in: durably, with the same group and rights, never more.

    One that is there stays as it is. Those it lies in are made likewise, and there everybody may make folders where
    everybody may around them; in the folder itself only with ``everybody``.
    """
    if path.is_dir():
        return
    if not path.parent.exists():
        make_shared_folder(path.parent, everybody=True)
    try:
        path.mkdir(mode=0o700)
    except FileExistsError:
        if not path.is_dir():
            raise
        return  # by another process, just now
    around, own = path.parent.stat(), path.stat()
    mode = stat.S_IMODE(around.st_mode) & ~(stat.S_ISUID | (0 if everybody else stat.S_IWOTH))
    try:
        if own.st_gid != around.st_gid and hasattr(os, "chown"):
            os.chown(path, -1, around.st_gid)
    except OSError:  # not a member: what the folder allows its own group is not for ours
        mode = mode & 0o1707 | (mode & 0o007) << 3
    with contextlib.suppress(OSError):  # a file system without rights
        path.chmod(mode | stat.S_IRWXU)
    fsync(path.parent)


def patiently(function: Callable[[], T]) -> T:
    """Call a function that touches the disk, again where the error may pass: a file server that is starting anew."""
    for attempt in range(1, TRIES):
        try:
            return function()
        except OSError as error:
            if error.errno not in TRANSIENT:
                raise
        time.sleep(WAIT_S * 5 ** (attempt - 1))
    return function()


def seal(data: bytes) -> bytes:
    """Put the sha256 of a JSON file in the place of ``"seal": "000..."`` in it.

    Raises
    ------
    ValueError
        If there is not exactly one such place.
    """
    if _SEALED.findall(data) != [SEAL.encode()]:
        raise ValueError("there must be one place for the seal")
    return data.replace(SEAL.encode(), hashlib.sha256(data).hexdigest().encode())


def is_sealed(data: bytes) -> bool:
    """Whether a file that was sealed is the same to the last bit.

    Examples
    --------
    >>> is_sealed(seal(b'{"seal": "' + SEAL.encode() + b'", "n": 1}'))
    True
    """
    found = _SEALED.findall(data)
    return (
        len(found) == 1
        and hashlib.sha256(data.replace(found[0], SEAL.encode())).hexdigest().encode() == (found[0])
    )
