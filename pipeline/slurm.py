"""Batch jobs for Slurm: what a job may ask for, its script, and handing it to ``sbatch``."""

from __future__ import annotations

import difflib
import os
import re
import shlex
import subprocess
import sys
import typing
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from pathlib import Path

import yaml

from .errors import PipelineError, UsageError

SBATCH_TIMEOUT_S = 120  # a busy controller may take a minute

# Slurm's commands read options from these, and they beat the lines of a script: a driver that runs
# inside a job, or a shell with SBATCH_PARTITION set, would send its jobs elsewhere than the profile says.
_STEERING_PREFIXES = ("SBATCH_", "SLURM_", "SQUEUE_", "SCANCEL_", "PMI_", "PMIX_")


@dataclass(frozen=True)
class SlurmProfile:
    """What one job asks of Slurm. None leaves the choice to the site's defaults."""

    partition: str | None = None
    account: str | None = None
    qos: str | None = None
    time: str = "04:00:00"  # time limit, [DAYS-]HH:MM:SS
    cpus: int = 4  # cores
    memory_gib: int = 6  # host memory [GiB]; a block with its halo needs up to 4
    gpus: str | None = None  # as in sbatch --gpus: "1" or "a100:1"
    extra: tuple[str, ...] = ()  # further sbatch options, such as "--constraint=a100_80"
    setup: tuple[str, ...] = ()  # shell lines to run before python, such as "module load mamba"
    stop_early_s: int = 120  # batch job: warned this long before its time limit [s]
    max_requeues: int = 50  # batch job: goes on by itself at most so often
    interface: str | None = None  # workers: network interface, such as "ib0"
    local_directory: str | None = None  # workers: fast folder of the node, such as "$TMPDIR"
    queue_wait_min: int = 720  # workers: longest time without any worker [minutes]

    @property
    def worker_memory_bytes(self) -> int:
        """What a worker may use of its job's memory [bytes]; the rest is for Python and Dask themselves."""
        return int(0.85 * self.memory_gib * 2**30)


def load_profile(path: Path | None, *, workers: bool = False) -> SlurmProfile:
    """Read a Slurm profile.

    Parameters
    ----------
    path : Path or None
        YAML file with the settings of `SlurmProfile`; None gives the defaults.
    workers : bool
        Return the settings for Dask worker jobs: those of the batch job, changed by what stands
        under ``workers:``.

    Returns
    -------
    SlurmProfile

    Raises
    ------
    UsageError
        If the file cannot be read, or holds an unknown setting or a value of the wrong type.
    """
    if path is None:
        return SlurmProfile()
    try:
        document = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        raise UsageError(f"cannot read the Slurm profile {path}: {error}") from error
    job = dict(_mapping(document, f"the Slurm profile {path}"))
    for_workers = _mapping(job.pop("workers", None), f"{path}: workers")
    settings = _checked(job, str(path))
    worker_settings = _checked(for_workers, f"{path}: workers")  # checked even when not asked for
    if workers:
        settings |= worker_settings
    return SlurmProfile(**{key: value for key, value in settings.items() if value is not None})


def render_script(
    command: Sequence[str],
    *,
    job_name: str,
    profile: SlurmProfile,
    log_dir: Path,
    work_dir: Path | None = None,
    array: int | None = None,
) -> str:
    """The batch script that runs a command, and runs it again when it stopped in good order.

    Slurm warns the script ``profile.stop_early_s`` before the time limit; the script hands that on as
    SIGTERM. A command that then ends with exit code 75 is requeued and goes on where it stopped, unless
    the job was cancelled.

    Parameters
    ----------
    command : sequence of str
        Program and arguments; any text is safe in them. See `pipeline_command`.
    job_name : str
        Shown by ``squeue``, and the start of the log's name.
    profile : SlurmProfile
        What to ask for.
    log_dir : Path
        Existing folder for the log, ``NAME-JOBID.log``. Slurm fails a job without a word when it is
        missing.
    work_dir : Path, optional
        Where the command runs; by default where this is called.
    array : int, optional
        Run the command in so many tasks of a job array.

    Returns
    -------
    str
        The script.

    Raises
    ------
    UsageError
        If the name of the log folder holds a line break.
    """
    name = safe_job_name(job_name)
    options = [
        f"--job-name={name}",
        output_option(log_dir, f"{name}-%j.log" if array is None else f"{name}-%A_%a.log"),
        *([] if array is None else [f"--array=0-{array - 1}"]),
        "--open-mode=append",
        "--export=NONE",
        "--requeue",
        f"--signal=B:USR1@{profile.stop_early_s}",
        "--nodes=1",
        "--ntasks=1",
        f"--cpus-per-task={profile.cpus}",
        f"--mem={profile.memory_gib}G",
        f"--time={profile.time}",
        *site_options(profile),
    ]
    if profile.partition:
        options.append(f"--partition={profile.partition}")
    if profile.account:
        options.append(f"--account={profile.account}")
    return _SCRIPT.format(
        options="\n".join(f"#SBATCH {option}" for option in options),
        log_dir=log_dir.absolute(),
        work_dir=shlex.quote(str((work_dir or Path.cwd()).absolute())),
        setup="\n".join(profile.setup),
        command=shlex.join(command),
        max_requeues=profile.max_requeues,
    )


_SCRIPT = """\
#!/bin/bash
{options}

# The folder of the log must be there when the job starts: {log_dir}

# Slurm warns only this shell ahead of the time limit: hand it on, the command then stops in good order.
trap 'kill -TERM "$child" 2>/dev/null' USR1
# The job is being cancelled or preempted. Slurm tells every process of it; do not bring it back from here.
trap 'cancelled=1' TERM
cancelled=0

cd -- {work_dir} || exit 1
{setup}

{command} &
child=$!
# A signal cuts the first wait short; the last one has the command's own exit code.
while wait "$child"; kill -0 "$child" 2>/dev/null; do :; done
wait "$child"
code=$?

if [ "$code" -eq 75 ] && [ "$cancelled" -eq 0 ]; then
    if [ "${{SLURM_RESTART_COUNT:-0}}" -ge {max_requeues} ]; then
        echo "stopped in good order, but requeued {max_requeues} times already: submit it again to go on" >&2
    elif scontrol requeue "$SLURM_JOB_ID"; then
        echo "stopped in good order; job $SLURM_JOB_ID is queued again and goes on from here" >&2
    else
        echo "stopped in good order, but Slurm does not requeue it: submit it again to go on" >&2
    fi
fi
exit "$code"
"""


def pipeline_command(arguments: Sequence[str]) -> list[str]:
    """The full command for ``tdenoise-pipeline ARGUMENTS`` on another machine.

    Examples
    --------
    >>> pipeline_command(["apply", "m.zarr"])[1:]
    ['-P', '-m', 'tdenoise_pipeline.cli', 'apply', 'm.zarr']
    """
    # -P: without it, a file of the user's such as yaml.py or zarr.py in the folder would be imported
    return [sys.executable, "-P", "-m", "tdenoise_pipeline.cli", *arguments]


def submit_script(script: Path) -> str:
    """Hand a batch script to Slurm.

    Parameters
    ----------
    script : Path
        The script; Slurm keeps its own copy.

    Returns
    -------
    str
        The job id.

    Raises
    ------
    UsageError
        If this machine has no ``sbatch``.
    PipelineError
        If Slurm refuses the job, in Slurm's words.
    """
    try:
        done = subprocess.run(
            ["sbatch", "--parsable", str(script)],
            env=clean_environment(os.environ),
            capture_output=True,
            text=True,
            timeout=SBATCH_TIMEOUT_S,
            check=False,
        )
    except FileNotFoundError:
        raise UsageError(
            "no sbatch here. Submit from a machine with Slurm, or use --print and copy the script there."
        ) from None
    except subprocess.TimeoutExpired:
        raise PipelineError(
            f"sbatch did not answer within {SBATCH_TIMEOUT_S} s. The job may be queued all the same: look at "
            "squeue --me before you submit again."
        ) from None
    if done.returncode != 0:
        raise PipelineError(f"Slurm refused {script}: {done.stderr.strip()}")
    return done.stdout.strip().split(";")[0]  # ID, or ID;CLUSTER


def queue(name: str) -> dict[str, str]:
    """State and reason of every job of ours that bears a name, by job id; array tasks one by one.

    Raises
    ------
    PipelineError
        If Slurm does not answer, which says nothing about the jobs.
    """
    command = [
        "squeue",
        "--noheader",
        "--array",
        "--format=%i %T %r",
        f"--user={os.getuid()}",
        f"--name={name}",
    ]
    try:
        done = subprocess.run(
            command,
            env=clean_environment(os.environ),
            capture_output=True,
            text=True,
            timeout=SBATCH_TIMEOUT_S,
            check=False,
        )
    except (OSError, subprocess.TimeoutExpired) as error:
        raise PipelineError(f"squeue does not answer: {error}") from None
    if done.returncode != 0:
        raise PipelineError(f"squeue does not answer: {done.stderr.strip()}")
    return dict(line.split(" ", 1) for line in done.stdout.splitlines())


def clean_environment(environment: Mapping[str, str]) -> dict[str, str]:
    """An environment in which Slurm's commands do what they are told, and only that.

    Examples
    --------
    >>> clean_environment({"HOME": "/home/a", "SBATCH_PARTITION": "htc", "SLURM_CONF": "/etc/slurm.conf"})
    {'HOME': '/home/a', 'SLURM_CONF': '/etc/slurm.conf'}
    """
    return {
        key: value
        for key, value in environment.items()
        if key == "SLURM_CONF" or not key.startswith(_STEERING_PREFIXES)
    }


def site_options(profile: SlurmProfile) -> list[str]:
    """The ``sbatch`` options of a profile that batch jobs and Dask worker jobs write alike."""
    options = []
    if profile.qos:
        options.append(f"--qos={profile.qos}")
    if profile.gpus:
        options.append(f"--gpus={profile.gpus}")
    return [*options, *profile.extra]


def output_option(log_dir: Path, pattern: str) -> str:
    """``--output`` for a file name pattern of Slurm in a folder of any name without a line break."""
    folder = str(log_dir.absolute())
    if "\n" in folder or "\\" in folder:
        raise UsageError(
            f"Slurm cannot write its log to {folder!r}: choose a folder without line breaks and backslashes."
        )
    folder = folder.replace("%", "%%").replace('"', '\\"')
    return f'--output="{folder}/{pattern}"'


def time_limit_s(text: str) -> int:
    """A time limit as Slurm reads it, in seconds.

    Examples
    --------
    >>> time_limit_s("04:00:00"), time_limit_s("1-12"), time_limit_s("90"), time_limit_s("5:30")
    (14400, 129600, 5400, 330)
    """
    days, dash, rest = text.rpartition("-")
    parts = [int(part) for part in rest.split(":")]
    if dash:  # hours first
        hours, minutes, seconds = [*parts, 0, 0][:3]
    elif len(parts) == 1:
        hours, minutes, seconds = 0, parts[0], 0
    else:
        hours, minutes, seconds = [0, *parts][-3:]
    return 86400 * int(days or 0) + 3600 * hours + 60 * minutes + seconds


def safe_job_name(name: str) -> str:
    """A job name that needs no quoting anywhere.

    Examples
    --------
    >>> safe_job_name("apply my movie.zarr")
    'apply-my-movie.zarr'
    """
    return re.sub(r"[^A-Za-z0-9._-]+", "-", name).strip("-.")[:60] or "tdenoise"


def _mapping(document: object, what: str) -> Mapping[str, object]:
    if document is None:
        return {}
    if not isinstance(document, dict):
        raise UsageError(f"{what} must hold lines of the form 'setting: value', not {document!r}.")
    return document


def _checked(settings: Mapping[str, object], where: str) -> dict[str, typing.Any]:
    """The settings with their values checked; None stays None."""
    names = [field.name for field in fields(SlurmProfile)]
    for key in settings:
        if key not in names:
            close = difflib.get_close_matches(str(key), names, n=1)
            hint = f"Did you mean '{close[0]}'?" if close else f"The settings are: {', '.join(names)}."
            raise UsageError(f"{where}: '{key}' is not a setting of a Slurm profile. {hint}")
    hints = typing.get_type_hints(SlurmProfile)
    return {key: _value(hints[key], key, value, where) for key, value in settings.items()}


def _value(hint: object, key: str, value: object, where: str) -> object:
    wanted = "text"
    if value is None:
        return None
    if hint is int:
        wanted = "a whole number above 0"
        if isinstance(value, int) and not isinstance(value, bool) and value > 0:
            return value
    elif hint == tuple[str, ...]:
        wanted = "a list of lines of text"
        if isinstance(value, list) and all(isinstance(line, str) and "\n" not in line for line in value):
            if key != "extra" or all(line.startswith("-") for line in value):
                return tuple(value)
            wanted = "a list of sbatch options, each with its dashes"
    elif key == "time":
        wanted = 'a time limit in quotes, such as "04:00:00" or "1-12:00:00"'  # YAML reads 12:00:00 as 43200
        if isinstance(value, str) and re.fullmatch(r"([0-9]+-)?[0-9]+(:[0-9]{2}){0,2}", value):
            return value
    elif key == "gpus" and isinstance(value, int) and not isinstance(value, bool):
        return str(value)
    elif isinstance(value, str) and (key == "local_directory" or re.fullmatch(r"[^\s\"'#\\]+", value)):
        return value
    raise UsageError(f"{where}: {key} is {value!r}, but it must be {wanted}.")
