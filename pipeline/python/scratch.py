"""Temporary folders for the stores of a call, and the end of those that a killed process has left."""

from __future__ import annotations

import re
import shutil
import socket
import tempfile
from pathlib import Path

import psutil

_NAME = re.compile(r"tdenoise-(?P<host>.+)-(?P<pid>\d+)-(?P<began>\d+)-[^-]+")
_SAME_S = 2  # that the beginning of a process may seem to move by, when the clock is set


def make_scratch() -> Path:
    """A new folder, named after this process; those of processes that are gone are removed.

    Returns
    -------
    Path
    """
    place = Path(tempfile.gettempdir())
    for folder in place.glob("tdenoise-*"):
        if _is_left(folder):
            shutil.rmtree(folder, ignore_errors=True)  # also where it is not ours to remove
    own = psutil.Process()
    prefix = f"tdenoise-{socket.gethostname()}-{own.pid}-{int(own.create_time())}-"
    return Path(tempfile.mkdtemp(prefix=prefix, dir=place))


def _is_left(folder: Path) -> bool:
    """Whether a folder is of a process of this machine that has ended."""
    found = _NAME.fullmatch(folder.name)
    if found is None or found["host"] != socket.gethostname() or folder.is_symlink():
        return False
    try:
        began = psutil.Process(int(found["pid"])).create_time()
    except psutil.NoSuchProcess:
        return True
    except psutil.Error:
        return False
    return bool(abs(began - int(found["began"])) > _SAME_S)
