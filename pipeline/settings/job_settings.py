"""Settings of what follows runs and clusters: status, resume, cancel, logs, profiles and doctor."""

from __future__ import annotations

from pathlib import Path

from .fields import CLUSTER, OUTPUT, WHAT, setting
from .parse import Count, NewPath, WorkersSetting, YesNo
from .setting import Settings, settings


@settings()
class StatusConfig(Settings):
    """Show the progress of a run."""

    output: Path = setting(
        help="store, model or folder that a command writes", metavar="OUTPUT", positional=True
    )
    watch: YesNo = setting(
        False, "show it anew every few seconds, until nothing runs any more or you press Ctrl-C", group=WHAT
    )


@settings()
class ResumeConfig(Settings):
    """Continue what was interrupted; of a batch run, queue again what is missing."""

    output: Path = setting(
        help="folder of a run, or whatever a command writes", metavar="OUTPUT", positional=True
    )
    profile: Path | None = setting(
        None,
        "profile for the new jobs",
        group=CLUSTER,
        metavar="NAME",
        default_text="that of the first submission",
    )
    force: YesNo = setting(
        False,
        "continue even if jobs of the run are queued or Slurm does not answer, and replace what is there if the "
        "interrupted command was to replace it",
        group=OUTPUT,
    )
    workers: WorkersSetting | None = setting(
        None,
        "where to compute",
        group=CLUSTER,
        metavar="WHERE",
        default_text="as before, unless that was the address of a scheduler",
    )
    insecure: YesNo = setting(
        False, "accept a scheduler without TLS, in a network where you trust everyone", group=CLUSTER
    )

    def __post_init__(self) -> None:
        if self.workers is not None:
            self.workers.check_secure(self.insecure)


@settings()
class CancelConfig(Settings):
    """Cancel the jobs of a batch run; finished work is kept."""

    output: Path = setting(
        help="folder of a run, or whatever the run writes", metavar="FOLDER", positional=True
    )


@settings()
class LogsConfig(Settings):
    """Show the logs of the jobs of a batch run."""

    output: Path = setting(
        help="folder of a run, or whatever the run writes", metavar="FOLDER", positional=True
    )
    failed: YesNo = setting(False, "show only jobs that failed, in full", group=WHAT)
    follow: YesNo = setting(False, "keep showing new lines until the run is over", group=WHAT)


@settings()
class ProfilesListConfig(Settings):
    """List the names that --profile accepts."""


@settings()
class ProfilesShowConfig(Settings):
    """Show the resources that a profile requests for each kind of job."""

    profile: Path = setting(help="name or file of a profile", metavar="NAME", positional=True)


@settings()
class ProfilesCheckConfig(Settings):
    """Ask the cluster whether it would accept the jobs of a profile."""

    profile: Path = setting(help="name or file of a profile", metavar="NAME", positional=True)


@settings()
class DoctorConfig(Settings):
    """Check whether this machine, a shared folder and the nodes of a cluster are ready for work."""

    folder: Path = setting(
        Path(),
        "folder for the results, on a disk that the nodes share",
        metavar="FOLDER",
        positional=True,
        default_text="the current folder",
    )
    profile: Path | None = setting(
        None, "name or YAML file of the profile that describes the cluster", group=CLUSTER, metavar="NAME"
    )
    nodes: Count | None = setting(
        None, "also check N nodes, with a small Slurm job; waits for it to end", group=CLUSTER, metavar="N"
    )
    answer: NewPath | None = setting(
        None, "also write the findings to this file", group=OUTPUT, metavar="FILE"
    )
