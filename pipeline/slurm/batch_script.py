"""Batch jobs for Slurm: the script of a job, and handing it to ``sbatch``."""

from __future__ import annotations

import os
import re
import shlex
import signal
import subprocess
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from ..errors import PipelineError, UsageError
from .site_profile import JobProfile

SBATCH_TIMEOUT_S = 120  # a busy controller may take a minute

# Slurm's commands read options from these, and they beat the lines of a script: a driver that runs
# inside a job, or a shell with SBATCH_PARTITION set, would send its jobs elsewhere than the profile says.
_STEERING_PREFIXES = ("SBATCH_", "SLURM_", "SQUEUE_", "SCANCEL_", "PMI_", "PMIX_")


@dataclass(frozen=True)
class BatchJob:
    """A command, and how Slurm is to run it."""

    command: Sequence[str]  # program and arguments; any text is safe in them. See `pipeline_command`
    name: str  # shown by ``squeue``, and the start of the log's name
    profile: JobProfile  # what to ask for
    # Existing folder for the log, NAME-JOBID.log. Slurm fails a job without a word when it is missing.
    log_dir: Path
    work_dir: Path = field(default_factory=Path.cwd)  # where the command runs
    exports: Mapping[str, str] = field(default_factory=dict)  # environment variables for the command
    # Where the job leaves its exit code when it is over for good; of a job that ends without a word there is none.
    exit_file: Path | None = None
    nodes: int = 1  # that share the command; see `across_nodes`
    # Tasks of a job array that each run the command. Each leaves its own exit code, under the name of the file and
    # its number.
    array: int | None = None


def render_script(job: BatchJob) -> str:
    """The batch script that runs a command, and runs it again when it stopped cleanly.

    Slurm warns the script ``profile.stop_early_s`` before the time limit; the script hands that on as
    SIGTERM. A command that then ends with exit code 75 is requeued and goes on where it stopped, unless
    the job was cancelled.

    Raises
    ------
    UsageError
        If the name of the log folder holds a line break.
    """
    profile, several_nodes = job.profile, job.nodes > 1
    exports = [f"export {key}={shlex.quote(value)}" for key, value in job.exports.items()]
    return _SCRIPT.format(
        options="\n".join(f"#SBATCH {option}" for option in _options(job)),
        log_dir=job.log_dir.absolute(),
        work_dir=shlex.quote(str(job.work_dir.absolute())),
        setup="\n".join([*exports, *profile.setup]),
        note_exit=_note_exit(job),
        command=across_nodes(job.command, profile) if several_nodes else shlex.join(job.command),
        # srun hands on a USR1, but kills its tasks on a TERM.
        stop_signal="USR1" if several_nodes else "TERM",
        stop_code=128 + (signal.SIGUSR1 if several_nodes else signal.SIGTERM),
        max_requeues=profile.max_requeues,
        # The last task of an array has the number of the array as its own, and would requeue all of them by it.
        me="${SLURM_JOB_ID}" if job.array is None else "${SLURM_ARRAY_JOB_ID}_${SLURM_ARRAY_TASK_ID}",
    )


def _options(job: BatchJob) -> list[str]:
    """The options of ``sbatch`` in the script of a job."""
    name, profile, several_nodes = safe_job_name(job.name), job.profile, job.nodes > 1
    options = [
        f"--job-name={name}",
        output_option(job.log_dir, f"{name}-%j.log" if job.array is None else f"{name}-%A_%a.log"),
        *([] if job.array is None else [f"--array=0-{job.array - 1}"]),
        "--open-mode=append",
        "--export=NONE",
        "--requeue",
        # What waits for a job that failed is cancelled too, instead of waiting for ever.
        "--kill-on-invalid-dep=yes",
        f"--signal=B:USR1@{profile.stop_early_s}",
        f"--nodes={job.nodes}",
        f"--ntasks-per-node={tasks_per_node(profile)}" if several_nodes else "--ntasks=1",
        f"--cpus-per-task={cpus_per_task(profile) if several_nodes else profile.cpus}",
        f"--mem={profile.memory_gib}G",
        f"--time={profile.time}",
        *site_options(profile, job.nodes),
    ]
    if profile.partition:
        options.append(f"--partition={profile.partition}")
    if profile.account:
        options.append(f"--account={profile.account}")
    return options


def _note_exit(job: BatchJob) -> str:
    """The line of the script that leaves the exit code."""
    if job.exit_file is None:
        return ""
    of_task = "" if job.array is None else '-"$SLURM_ARRAY_TASK_ID"'
    return f'echo "$code" >{shlex.quote(str(job.exit_file.absolute()))}{of_task}\n'


_SCRIPT = """\
#!/bin/bash
{options}

# The folder of the log must be there when the job starts: {log_dir}

# Slurm warns only this shell ahead of the time limit: hand it on, the command then stops cleanly.
trap 'warned=1; kill -{stop_signal} "$child" 2>/dev/null' USR1
# The job is being cancelled or preempted. Slurm tells every process of it; do not bring it back from here.
trap 'cancelled=1' TERM
warned=0
cancelled=0
child=

cd -- {work_dir} || exit 1
{setup}

{command} &
child=$!
[ "$warned" -eq 0 ] || kill -{stop_signal} "$child"
# A signal cuts the first wait short; the last one has the command's own exit code.
while wait "$child"; kill -0 "$child" 2>/dev/null; do :; done
wait "$child"
code=$?
# Warned while Python was still starting: it could not stop cleanly, but had not begun either.
[ "$warned" -eq 0 ] || [ "$code" -ne {stop_code} ] || code=75

if [ "$code" -eq 75 ] && [ "$cancelled" -eq 0 ]; then
    if [ "${{SLURM_RESTART_COUNT:-0}}" -ge {max_requeues} ]; then
        echo "stopped cleanly, but requeued {max_requeues} times already: submit it again to continue" >&2
    # Slurm ends the job for it, scontrol included: that one must live to say whether it worked.
    elif (trap '' TERM; exec scontrol requeue "{me}"); then
        echo "stopped cleanly; job {me} is queued again and continues from here" >&2
        exit 75
    else
        echo "stopped cleanly, but Slurm does not requeue it: submit it again to continue" >&2
    fi
fi
{note_exit}exit "$code"
"""


def across_nodes(command: Sequence[str], profile: JobProfile) -> str:
    """Shell line that starts a training on every node of the job, with one process for each GPU.

    The processes open ports to each other on the nodes of the job, on ``profile.interface`` where it is set.

    Examples
    --------
    >>> across_nodes(["train"], JobProfile(gpus="a100:4", cpus=16)).partition(" --ntasks")[2]
    '-per-node=4 --cpus-per-task=4 train --processes slurm'
    """
    start = [
        "srun",
        "--export=ALL",  # the job's own environment, which began clean
        "--kill-on-bad-exit=0",  # a task that stops cleanly must not end the others out of order
        "--wait=300",
        f"--ntasks-per-node={tasks_per_node(profile)}",
        f"--cpus-per-task={cpus_per_task(profile)}",
        *command,
        "--processes",
        "slurm",
    ]
    if profile.interface:
        names = ("GLOO_SOCKET_IFNAME", "NCCL_SOCKET_IFNAME")
        start = ["env", *(f"{name}={profile.interface}" for name in names), *start]
    return shlex.join(start)


def tasks_per_node(profile: JobProfile) -> int:
    """Processes of a training on one of several nodes: one for each GPU, or one that uses all cores."""
    return max(1, profile.n_gpus)


def cpus_per_task(profile: JobProfile) -> int:
    """Cores of one process of a training on several nodes."""
    return max(1, profile.cpus // tasks_per_node(profile))


def pipeline_command(arguments: Sequence[str]) -> list[str]:
    """The full command for ``tdenoise-pipeline ARGUMENTS`` on another machine.

    Examples
    --------
    >>> pipeline_command(["apply", "m.zarr"])[1:]
    ['-P', '-m', 'tdenoise_pipeline.cli', 'apply', 'm.zarr']
    """
    # -P: without it, a file of the user's such as yaml.py or zarr.py in the folder would be imported
    return [sys.executable, "-P", "-m", "tdenoise_pipeline.cli", *arguments]


def submit_script(script: Path, after: Sequence[str] = ()) -> str:
    """Hand a batch script to Slurm.

    Parameters
    ----------
    script : Path
        The script; Slurm keeps its own copy.
    after : sequence of str
        What it waits for, such as ``afterok:ID``.

    Returns
    -------
    str
        The job id.

    Raises
    ------
    UsageError
        If this machine has no ``sbatch``.
    NoAnswer
        If Slurm does not answer in time. The job may be queued all the same.
    PipelineError
        If Slurm refuses the job, in Slurm's words.
    """
    options = [f"--dependency={','.join(after)}"] if after else []
    try:
        answer = ask(["sbatch", "--parsable", *options, str(script)], SBATCH_TIMEOUT_S)
    except FileNotFoundError:
        raise UsageError(
            "there is no sbatch on this machine. Submit from a machine with Slurm, or use --print and copy the "
            "script there."
        ) from None
    except NoAnswer:
        raise
    except PipelineError as error:
        raise PipelineError(f"Slurm refused {script}: {error}") from None
    return answer.strip().split(";")[0]  # ID, or ID;CLUSTER


class NoAnswer(PipelineError):
    """Slurm does not answer: nothing is known about the jobs."""


def ask(command: Sequence[str], timeout_s: float = 60.0) -> str:
    """Output of one of Slurm's commands.

    Raises
    ------
    FileNotFoundError
        If this machine does not have it.
    NoAnswer
        If the controller cannot be reached. What was asked may have been done, or may be done yet.
    PipelineError
        If the command fails otherwise, in its words.
    """
    try:
        done = subprocess.run(
            command,
            env=clean_environment(os.environ),
            capture_output=True,
            text=True,
            timeout=timeout_s,
            check=False,
        )
    except subprocess.TimeoutExpired:
        raise NoAnswer(f"{command[0]} did not answer within {timeout_s:g} s") from None
    words = " ".join(done.stderr.split())
    if done.returncode != 0 and any(sign in words.lower() for sign in _OUTAGE):
        raise NoAnswer(words)
    if done.returncode != 0:
        raise PipelineError(words or f"{command[0]} ended with code {done.returncode}")
    return done.stdout


_OUTAGE = (
    "timed out", "unable to contact slurm controller", "connection refused", "connection reset",
    "configuration source", "communication", "zero bytes were transmitted", "unexpected message received",
    "temporarily unable",
)  # fmt: skip


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
    return dict(line.split(" ", 1) for line in ask(command).splitlines())


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


def site_options(profile: JobProfile, nodes: int = 1) -> list[str]:
    """The ``sbatch`` options of a profile that batch jobs and Dask worker jobs write alike."""
    options = []
    if profile.qos:
        options.append(f"--qos={profile.qos}")
    if profile.gpus:
        options.append(f"--gpus{'-per-node' if nodes > 1 else ''}={profile.gpus}")
    return [*options, *profile.extra]


def output_option(log_dir: Path, pattern: str) -> str:
    """``--output`` for a file name pattern of Slurm in a folder of any name without a line break."""
    folder = log_folder(log_dir).replace("%", "%%").replace('"', '\\"')
    return f'--output="{folder}/{pattern}"'


def log_folder(log_dir: Path) -> str:
    """A folder for logs that batch systems can name.

    Raises
    ------
    UsageError
        If its name would break a line of a script that a batch system reads.
    """
    folder = str(log_dir.absolute())
    if "\n" in folder or "\\" in folder:
        raise UsageError(
            f"a batch system cannot write its log to {folder!r}: choose a folder without line breaks and backslashes."
        )
    return folder


def safe_job_name(name: str) -> str:
    """A job name that needs no quoting anywhere.

    Examples
    --------
    >>> safe_job_name("apply my movie.zarr")
    'apply-my-movie.zarr'
    """
    return re.sub(r"[^A-Za-z0-9._-]+", "-", name).strip("-.")[:60] or "tdenoise"
