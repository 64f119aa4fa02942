"""Errors a user can meet. Each carries the exit code that the command ends with."""

from __future__ import annotations

from pathlib import Path


class PipelineError(Exception):
    """The command failed for a reason the user can read. One sentence what, one sentence what to do."""

    exit_code = 1


class UsageError(PipelineError):
    """The command line or the configuration is wrong."""

    exit_code = 2


class InputError(PipelineError):
    """The input data are missing, damaged or not a movie."""

    exit_code = 3

    def __init__(self, path: str | Path, reason: str) -> None:
        super().__init__(path, reason)  # both kept, so that it survives the way from a worker

    def __str__(self) -> str:
        return f"{self.args[0]}: {self.args[1]}"


class VerificationError(PipelineError):
    """A store does not hold what its own record says it holds."""

    exit_code = 4


class ResourceError(PipelineError):
    """Not enough disk, memory or GPU."""

    exit_code = 5


class LockedError(PipelineError):
    """Another run holds the output."""

    exit_code = 6


class Stopped(PipelineError):
    """Stopped cleanly on a signal or a time limit; the same command goes on from here."""

    exit_code = 75
