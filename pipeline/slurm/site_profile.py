"""Profiles: what jobs ask of a cluster, from a file, from a name, and from the command line."""

from __future__ import annotations

import difflib
import os
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any, Literal

from ..errors import UsageError
from ..settings.fields import setting
from ..settings.parse import Count, Gpus, Lines, Options, TimeLimit, Word
from ..settings.setting import SettingError, Settings, settings, shown
from ..settings.workers import Workers
from ..settings.yaml_file import read_yaml

BUILT_IN = Path(__file__).with_name("profiles")
SECTIONS = ("ingest", "train", "apply", "report", "driver", "workers")
SUBMIT = {"slurm": "sbatch", "pbs": "qsub", "lsf": "bsub"}  # what hands in a job of a batch system
SCHEDULERS = (*SUBMIT, "local")  # local: this machine, without any


@settings()
class JobProfile(Settings):
    """What one job asks of a batch system. None leaves the choice to the site's defaults."""

    scheduler: Literal["slurm", "pbs", "lsf", "local"] = setting(
        "slurm", "batch system of all jobs of a profile; local is this machine, without any"
    )
    partition: Word | None = setting(None, "partition; the queue of PBS and LSF")
    account: Word | None = setting(None, "account to charge")
    qos: Word | None = setting(None, "quality of service")
    time: TimeLimit = setting("04:00:00", "time limit, such as 04:00:00, 1-12:00:00 or 4h")
    cpus: Count = setting(4, "cores")
    memory_gib: Count = setting(6, "host memory in GiB; a block with its halo needs up to 4")
    gpus: Gpus | None = setting(None, "GPUs of a node, as for sbatch --gpus: 1, or a100:1")
    nodes: Count = setting(1, "nodes for one training; all other jobs use one node")
    extra: Options = setting((), "further options of the batch system, such as --constraint=a100_80")
    setup: Lines = setting((), "shell lines before Python starts, such as module load mamba")
    stop_early_s: Count = setting(120, "seconds before its time limit at which a batch job stops")
    max_requeues: Count = setting(50, "how many times at most a batch job continues by itself")
    interface: Word | None = setting(None, "network interface of workers, such as ib0")
    local_directory: str | None = setting(None, "fast local folder of each node for workers, such as $TMPDIR")
    queue_wait_min: Count = setting(720, "longest time without any worker, in minutes")

    @property
    def worker_memory_bytes(self) -> int:
        """What a worker may use of its job's memory [bytes]; the rest is for Python and Dask themselves."""
        return int(0.85 * self.memory_gib * 2**30)

    @property
    def time_s(self) -> int:
        """The time limit [s], read as Slurm reads it."""
        return seconds(self.time)

    @property
    def n_gpus(self) -> int:
        """How many GPUs that is."""
        return sum(int(part.rpartition(":")[2]) for part in self.gpus.split(",")) if self.gpus else 0


# What counts where it is not Slurm: a line that would be ignored is an error.
_NOT_SLURM = {each.name for each in fields(JobProfile)} - {"qos", "nodes", "max_requeues"}
_COUNTING = {"pbs": _NOT_SLURM, "lsf": _NOT_SLURM, "local": {"scheduler", "setup"}}


@dataclass(frozen=True)
class Site:
    """A whole profile: the lines for all jobs, and for each kind of job the lines that differ."""

    common: Mapping[str, Any] = field(default_factory=dict)
    sections: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)

    @property
    def scheduler(self) -> str:
        """One of `SCHEDULERS`."""
        return self.of(None).scheduler

    @property
    def kinds(self) -> tuple[str, ...]:
        """The sections that count: on PBS and LSF, tdenoise hands in worker jobs only."""
        return {"slurm": SECTIONS, "local": SECTIONS[:4]}.get(self.scheduler, ("workers",))

    def asks(self, section: str) -> dict[str, Any]:
        """What the jobs of one kind ask for, as plain data, as far as it counts."""
        counting = _COUNTING.get(self.scheduler)
        return {k: v for k, v in asdict(self.of(section)).items() if counting is None or k in counting}

    def of(self, section: str | None) -> JobProfile:
        """What the jobs of one kind ask for."""
        chosen = {**self.common, **self.sections.get(section or "", {})}
        return JobProfile(**{key: value for key, value in chosen.items() if value is not None})

    def over(self, other: Site) -> Site:
        """These lines where there are any, those of another profile elsewhere."""
        names = dict.fromkeys([*other.sections, *self.sections])
        return Site(
            {**other.common, **self.common},
            {name: {**other.sections.get(name, {}), **self.sections.get(name, {})} for name in names},
        )

    def to_json(self) -> dict[str, Any]:
        """As plain data, for a record."""
        return {**self.common, **{name: dict(lines) for name, lines in self.sections.items()}}

    @classmethod
    def from_json(cls, document: object, where: str) -> Site:
        """From what a file or a record holds."""
        common = dict(_mapping(document, where))
        sections = {name: _mapping(common.pop(name, None), f"{where}: {name}") for name in SECTIONS}
        if any("scheduler" in lines for lines in sections.values()):
            raise UsageError(f"{where}: scheduler is the same for all jobs: write it at the top, once.")
        return cls(
            _checked(common, where),
            {name: _checked(lines, f"{where}: {name}") for name, lines in sections.items() if lines},
        )


def load_profile(profile: Path | None, section: str | None = None) -> JobProfile:
    """What one kind of job asks for.

    Parameters
    ----------
    profile : Path or None
        See `load_site`.
    section : str, optional
        One of `SECTIONS`; None gives the lines for all jobs.

    Returns
    -------
    JobProfile
    """
    return load_site(profile).of(section)


def worker_profile(profile: Path | None, workers: Workers) -> JobProfile:
    """What each worker job asks for.

    Parameters
    ----------
    profile : Path or None
        See `load_site`.
    workers : Workers
        Jobs of a batch system.

    Raises
    ------
    UsageError
        If the profile is that of another batch system.
    """
    site = load_site(profile)
    if profile is not None and site.scheduler != workers.system:
        raise UsageError(
            f"--workers {workers}: the profile {profile} says scheduler: {site.scheduler}. Give one that says "
            f"scheduler: {workers.system}."
        )
    return site.of("workers")


def load_site(profile: Path | None, changes: Sequence[str] = ()) -> Site:
    """Read a profile.

    Parameters
    ----------
    profile : Path or None
        A YAML file, or the name of a profile: a file ``NAME.yaml`` in the user's folder, whose lines win over
        those of the profile of that name that comes along. None gives the defaults.
    changes : sequence of str
        ``[SECTION.]KEY=VALUE`` as on the command line; they win over everything.

    Returns
    -------
    Site

    Raises
    ------
    UsageError
        If a file cannot be read, or holds an unknown setting or a value of the wrong type.
    """
    site = Site()
    for path in profile_files(profile):
        site = _read(path).over(site)
    for change in changes:
        name, equals, text = change.partition("=")
        section, dot, key = name.rpartition(".")
        if not equals or (dot and (section not in SECTIONS or key == "scheduler")):
            raise UsageError(f"--set {change!r}: write it as KEY=VALUE or SECTION.KEY=VALUE.")
        value: object = text or None
        if key in ("extra", "setup") and text:
            value = [text]
        checked = _checked({key: value}, "--set")
        # A change for all jobs holds for all: it must not lose against a section of the file.
        own = (
            {section: checked}
            if dot
            else {name: checked for name, has in site.sections.items() if key in has}
        )
        site = Site({} if dot else checked, own).over(site)
    _check_scheduler(site, f"the profile {profile}" if profile else "--set")
    return site


def profile_files(profile: Path | None) -> list[Path]:
    """The files that make up a profile, the last one winning.

    Raises
    ------
    UsageError
        If there is no profile of that name.
    """
    if profile is None:
        return []
    if len(profile.parts) != 1 or profile.suffix in (".yaml", ".yml"):
        return [profile]
    found = [folder / f"{profile}.yaml" for folder in (BUILT_IN, user_folder())]
    found = [path for path in found if path.is_file()]
    if not found:
        known = ", ".join(names())
        raise UsageError(
            f"there is no profile {str(profile)!r}. Known: {known}; or give a file, my_site.yaml."
        )
    return found


def names() -> list[str]:
    """Names of the profiles that come along and of the user's own."""
    return sorted({path.stem for folder in (BUILT_IN, user_folder()) for path in folder.glob("*.yaml")})


def user_folder() -> Path:
    """Where a user keeps profiles."""
    base = os.environ.get("XDG_CONFIG_HOME")
    return (Path(base) if base else Path.home() / ".config") / "tdenoise" / "profiles"


def seconds(time: str) -> int:
    """A time limit in seconds, as Slurm reads it.

    Examples
    --------
    >>> seconds("1-12"), seconds("04:00:00"), seconds("90:00"), seconds("30")
    (129600, 14400, 5400, 1800)
    """
    days, dash, rest = time.rpartition("-")
    parts = [int(part) for part in rest.split(":")]
    if dash:  # DAYS-HOURS[:MINUTES[:SECONDS]]
        hours, minutes, last = [*parts, 0, 0][:3]
    elif len(parts) == 3:
        hours, minutes, last = parts
    else:  # MINUTES[:SECONDS]
        hours, (minutes, last) = 0, [*parts, 0][:2]
    return ((int(days or 0) * 24 + hours) * 60 + minutes) * 60 + last


def _check_scheduler(site: Site, where: str) -> None:
    """Refuse what the scheduler of a profile would ignore."""
    counting = _COUNTING.get(site.scheduler)
    if counting is None:
        return
    for section, lines in [("", site.common), *site.sections.items()]:
        known = counting if not section or section in site.kinds else set()
        for key, value in lines.items():
            name = f"{section}.{key}" if section else key
            if value is not None and key not in known:
                raise UsageError(
                    f"{where}: {name} means nothing with scheduler: {site.scheduler}. Remove it."
                )
            if key == "gpus" and value is not None and not value.isdecimal():
                raise UsageError(
                    f"{where}: {name} is {value!r}, but with scheduler: {site.scheduler} it must be a number. "
                    "Name the kind "
                    "as your site does, in a line under extra."
                )


def _read(path: Path) -> Site:
    return Site.from_json(read_yaml(path), f"the profile {path}")


def _mapping(document: object, what: str) -> Mapping[str, object]:
    if document is None:
        return {}
    if not isinstance(document, dict):
        raise UsageError(f"{what} must hold lines of the form 'setting: value', not {document!r}.")
    return document


def _checked(lines: Mapping[str, object], where: str) -> dict[str, Any]:
    """The lines with their values checked; None stays None."""
    known = [each.name for each in fields(JobProfile)]
    for key in lines:
        if key not in known:
            close = difflib.get_close_matches(str(key), [*known, *SECTIONS], n=1)
            hint = f"Did you mean '{close[0]}'?" if close else f"The settings are: {', '.join(known)}."
            raise UsageError(f"{where}: '{key}' is not a setting of a profile. {hint}")
    given: dict[str, Any] = {key: value for key, value in lines.items() if value is not None}
    try:
        job = JobProfile(**given)
    except SettingError as error:
        value = shown(lines[error.name])
        raise UsageError(f"{where}: {error.name} is {value}, but {error.reason}.") from None
    return {key: getattr(job, key) if key in given else None for key in lines}
