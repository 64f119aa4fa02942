"""Programs of others that judge our files, in an environment of their own (`make validators`)."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

import pytest

ENVIRONMENT = Path(__file__).parents[2] / ".venv-validators"

needs_validators = pytest.mark.skipif(
    not (ENVIRONMENT / ".ready").exists(),
    reason="the validators are not installed: 'make validators' does it",
)


def judged(*words: object, home: Path, codes: tuple[int, ...] = (0,)) -> str:
    """Run a program of the environment of the validators; what it says, if it is content.

    ``home`` is a folder for what it keeps; ``codes`` are the exit codes that it may end with.
    """
    program, *others = map(str, words)
    unset = ("PYTHONPATH", "PYTHONWARNINGS", "VIRTUAL_ENV")
    environment = {name: value for name, value in os.environ.items() if name not in unset}
    environment |= {"HOME": str(home), "XDG_CACHE_HOME": str(home / "cache"), "NO_COLOR": "1"}
    done = subprocess.run(
        [ENVIRONMENT / "bin" / program, *others],
        capture_output=True,
        text=True,
        timeout=300,
        env=environment,
        cwd=home,
    )
    assert done.returncode in codes, f"{done.stdout}\n{done.stderr}"
    return done.stdout
