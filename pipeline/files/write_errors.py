"""Why nothing can be written at a place, in words, and what to do about it."""

from __future__ import annotations

import contextlib
import errno
import os
import stat
from collections.abc import Iterator
from pathlib import Path

from ..errors import PipelineError, ResourceError, UsageError

DENIED = (errno.EACCES, errno.EPERM)
DISK_FULL = (errno.ENOSPC, errno.EDQUOT)


@contextlib.contextmanager
def named_failures(place: Path) -> Iterator[None]:
    """Say why nothing can be written at a place, and what to do.

    Raises
    ------
    UsageError, ResourceError
    """
    try:
        yield
    except OSError as error:
        if (named := failure(error, place)) is not None:
            raise named from error
        raise


def failure(error: OSError, place: Path) -> PipelineError | None:
    """Why nothing can be written at a place, and what to do; None if the error says nothing about the place."""
    file = Path(os.fsdecode(error.filename)) if isinstance(error.filename, str | bytes) else place
    if error.errno in DENIED:
        folder = next(p for p in (file, *file.absolute().parents) if _is_open_folder(p))
        mode = stat.filemode(folder.stat().st_mode)
        return UsageError(
            f"{folder}: you may not write here; it belongs to {owner_name(folder)} and has the permissions "
            f"{mode}. Ask {owner_name(folder)} for access (chmod g+rwxs), or choose another place for the output."
        )
    if error.errno == errno.EROFS:
        return UsageError(f"{file}: this file system is read-only. Choose another place for the output.")
    if error.errno in (errno.ENOTDIR, errno.EEXIST):
        return UsageError(f"{file}: a folder is needed here, but a file is in the way. Move the file.")
    if error.errno in (errno.ENAMETOOLONG, errno.ELOOP):
        return UsageError(f"{place.name}: {error.strerror}. Choose another name for the output.")
    if error.errno in DISK_FULL:
        return ResourceError(
            f"{file}: the disk is full, can hold no more files, or your quota is used up ({error.strerror}). "
            "Remove something, then run the same command again to continue."
        )
    if error.errno in (errno.EMFILE, errno.ENFILE, errno.ENOMEM, errno.EMLINK):
        return ResourceError(
            f"{file}: {error.strerror}. Raise the limit (ulimit -a), then run the same command again."
        )
    return None


def of_writing(error: OSError) -> PipelineError | None:
    """What `failure` says of an error that can only come from writing; None if it may come from reading."""
    if error.errno == errno.EROFS or error.errno in DISK_FULL:
        return failure(error, Path())
    if error.errno not in DENIED or not isinstance(error.filename, str | bytes):
        return None
    file = Path(os.fsdecode(error.filename))
    folder = file.absolute().parent
    effective = os.access in os.supports_effective_ids
    # Who may look into a folder is told of a file that is not there; so it was to be made.
    creates = (
        _is_open_folder(folder)
        and os.access(folder, os.X_OK, effective_ids=effective)
        and not os.path.lexists(file)
    )
    return (
        failure(error, file) if creates and not os.access(folder, os.W_OK, effective_ids=effective) else None
    )


def _is_open_folder(path: Path) -> bool:
    try:
        return path.is_dir()
    except OSError:
        return False


def owner_name(path: Path) -> str:
    """The user whom a file belongs to."""
    with contextlib.suppress(OSError, KeyError):
        return path.owner()
    with contextlib.suppress(OSError):
        return f"user {path.stat().st_uid}"
    return "another user"
