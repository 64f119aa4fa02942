"""Other people's parsers in a process of their own: a crash, a hang or a flood of memory ends there, not here."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Never

from ..errors import InputError

try:
    import resource
except ImportError:  # Windows
    resource = None  # type: ignore[assignment]

_REFUSED = 3  # exit code of a child that says in one sentence why


def command(module: str, *arguments: str) -> list[str]:
    """The command line that runs a module of this package in a new process."""
    # -P: never import what lies in the user's folder.
    return [sys.executable, "-P", "-m", f"{__package__}.{module}", *arguments]


def environment() -> dict[str, str]:
    """One thread, and no plug-in of the HDF5 library: those are code that a file could ask for."""
    return {**os.environ, "OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1", "HDF5_PLUGIN_PRELOAD": "::"}


def ask(
    path: Path, module: str, *arguments: str, pass_fds: Sequence[int] = (), patience_s: float = 600
) -> bytes:
    """What a child process finds out about a file.

    Parameters
    ----------
    path : Path
        The file, for the error message.
    module : str
        Of this package; its ``main`` is run by ``answer``.
    *arguments : str
        For it.
    pass_fds : sequence of int, optional
        Open files that it inherits.
    patience_s : float, optional
        For a file system that is slow; what computes too long is stopped by its CPU limit.

    Returns
    -------
    bytes
        What it wrote.

    Raises
    ------
    InputError
        If it refuses the file, crashes, computes for too long or takes too much memory.
    """
    try:
        done = subprocess.run(
            command(module, *arguments),
            env=environment(),
            stdin=subprocess.DEVNULL,
            capture_output=True,
            pass_fds=pass_fds,
            timeout=patience_s,
        )
    except subprocess.TimeoutExpired:
        raise InputError(path, f"opening it took over {patience_s:g} s. Copy it to a faster disk.") from None
    if done.returncode != 0:
        refuse(path, done.returncode, done.stdout)
    return done.stdout


def refuse(path: Path, code: int, said: bytes) -> Never:
    """Raise the error that the end of a child process stands for."""
    if code == _REFUSED:
        raise InputError(path, said.decode(errors="replace").strip())
    how = f"signal {-code}" if code < 0 else f"exit code {code}"
    raise InputError(
        path,
        f"damaged or hostile: the library that reads it crashed or used too much ({how}). Copy it again.",
    )


def answer(main: Callable[..., Any], arguments: Sequence[str], *, cpu_s: int, memory_bytes: int) -> Never:
    """In the child: run ``main`` within limits; a ``ValueError`` is a refusal, its text the reason."""
    if resource is not None:
        _limit(cpu_s, memory_bytes)
    try:
        main(*arguments)
        sys.stdout.flush()
    except ValueError as error:
        said = " ".join(str(error).split())[:500]
    except MemoryError:
        said = "damaged or hostile: its header asks for more memory than a movie needs. Copy it again."
    except Exception as error:  # noqa: BLE001  whatever a parser of damaged bytes may raise
        text = " ".join(str(error).split())[:200]
        said = f"damaged, it cannot be read ({type(error).__name__}: {text}). Copy it again."
    else:
        os._exit(0)  # no clean-up: libraries have crashed on closing what is damaged
    sys.stdout.write(said)
    sys.stdout.flush()
    os._exit(_REFUSED)


def write(value: Any, binary: bytes | memoryview = b"") -> None:
    """In the child: send one JSON value, and bytes after it."""
    sys.stdout.buffer.write(json.dumps(value).encode() + b"\n")
    sys.stdout.buffer.write(binary)
    sys.stdout.buffer.flush()


def split(answered: bytes) -> tuple[Any, memoryview]:
    """The JSON value and the bytes that ``write`` sent."""
    end = answered.index(b"\n")
    return json.loads(answered[:end]), memoryview(answered)[end + 1 :]


def _limit(cpu_s: int, memory_bytes: int) -> None:
    """Bound what this process may use."""
    limits = {resource.RLIMIT_CPU: cpu_s, resource.RLIMIT_CORE: 0}
    memory = Path("/proc/self/statm")
    if memory.exists():  # elsewhere than on Linux a limit of addresses is not kept
        used = int(memory.read_text().split()[0]) * resource.getpagesize()
        limits[resource.RLIMIT_AS] = used + memory_bytes
    for limit, value in limits.items():
        hard = resource.getrlimit(limit)[1]
        resource.setrlimit(limit, (value if hard < 0 else min(value, hard), hard))
