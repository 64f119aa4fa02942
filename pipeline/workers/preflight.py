"""Run at the start of a job, before any work: is the software there, and is it that of the driver?

python -P -m tdenoise_pipeline.workers.preflight '{"python": "3.12.1", "torch": "2.13.0", ...}'
"""

from __future__ import annotations

import json
import platform
import sys
from importlib.metadata import PackageNotFoundError, version

PACKAGES = (
    "tdenoise",
    "torch",
    "zarr",
    "dask",
    "distributed",
)  # what decides the bytes, or is spoken between them


def versions() -> dict[str, str]:
    """Versions here; nothing is imported for it, as torch alone takes seconds."""
    found = {"python": platform.python_version()}
    for name in PACKAGES:
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            found[name] = "missing"
    return found


def command() -> list[str]:
    """The command that compares the versions on another machine with those here."""
    return [sys.executable, "-P", "-m", "tdenoise_pipeline.workers.preflight", json.dumps(versions())]


def difference(expected: dict[str, str], here: dict[str, str]) -> str | None:
    """What differs, in words.

    Examples
    --------
    >>> difference({"torch": "2.13.0"}, {"torch": "2.12.0"})
    'torch is 2.12.0 here, but 2.13.0 where the run was started'
    """
    wrong = [
        f"{name} is {here.get(name, 'missing')} here, but {wanted} where the run was started"
        for name, wanted in expected.items()
        if here.get(name) != wanted
    ]
    return "; ".join(wrong) or None


if __name__ == "__main__":
    if found := difference(json.loads(sys.argv[1]), versions()):
        sys.exit(
            f"{platform.node()}: {found}. All machines must use one environment: see setup: in the profile"
        )
