"""Would the jobs of a profile be taken? What Slurm refuses, and what it would let wait for ever."""

from __future__ import annotations

import re
import shutil
import tempfile
from contextlib import suppress
from pathlib import Path
from typing import Any

from ..errors import PipelineError, UsageError
from .batch_script import BatchJob, NoAnswer, ask, render_script
from .site_profile import SUBMIT, JobProfile, load_site, seconds


def show_profile(path: Path) -> dict[str, Any]:
    """What every kind of job asks for with a profile."""
    site = load_site(path)
    return {section: site.asks(section) for section in site.kinds}


def check_profile(path: Path) -> dict[str, Any]:
    """Ask Slurm about every kind of job of a profile. Of others it looks whether their commands are here.

    Returns
    -------
    dict
        ``profile``, ``scheduler``, and ``jobs``: for each kind ``problems`` and ``notes`` in words; ``exit_code`` is
        2 where there are problems.

    Raises
    ------
    UsageError
        If the profile is wrong, or its batch system is not here.
    NoAnswer
        If Slurm does not answer.
    """
    site = load_site(path)
    command = SUBMIT.get(site.scheduler)
    if command is not None and shutil.which(command) is None:
        raise UsageError(f"no {command} here: check the profile on a machine from which jobs are submitted.")
    jobs = {}
    for section in site.kinds:
        profile = site.of(section)
        notes = []
        if site.scheduler == "local":
            notes.append("it uses what this machine has: see 'tdenoise-pipeline doctor FOLDER'")
        elif site.scheduler != "slurm":
            notes.append(f"{command} was not asked, because it has no such check")
        if site.scheduler != "local" and section in ("train", "apply", "workers") and not profile.gpus:
            notes.append("no gpus: it computes on the processor, which takes many times as long")
        problems = [*limits(profile), *(_refusals(profile) if site.scheduler == "slurm" else [])]
        jobs[section] = {"problems": problems, "notes": notes}
    wrong = any(job["problems"] for job in jobs.values())
    return {"profile": str(path), "scheduler": site.scheduler, "jobs": jobs, "exit_code": 2 if wrong else 0}


def limits(profile: JobProfile) -> list[str]:
    """What would let a job wait for ever, or never do any work, in words.

    ``sbatch --test-only`` sees neither the time limit of a partition nor those of a QOS. What Slurm does not tell
    is not checked.
    """
    found: list[str] = []
    if profile.scheduler == "local":  # it has no limits
        return found
    if profile.stop_early_s >= profile.time_s:
        found.append(
            f"it would stop {profile.stop_early_s} s (stop_early_s) before a time limit of {profile.time}, that "
            "is at once: raise time"
        )
    if profile.scheduler != "slurm":
        return found
    with suppress(FileNotFoundError, PipelineError):
        found += [*_partition_limits(profile), *_qos_limits(profile)]
    return found


def _partition_limits(profile: JobProfile) -> list[str]:
    listing = ask(["scontrol", "--oneliner", "show", "partition"])
    partitions = [dict(re.findall(r"(\w+)=(\S*)", line)) for line in listing.splitlines()]
    wanted = profile.partition.split(",") if profile.partition else []
    chosen = [
        p for p in partitions if (p["PartitionName"] in wanted if wanted else p.get("Default") == "YES")
    ]
    if wanted and not chosen:
        known = ", ".join(p["PartitionName"] for p in partitions)
        return [f"there is no partition {profile.partition} here. There are: {known}"]
    problems: list[list[str]] = []
    for partition in chosen:
        name, longest, state = (
            partition["PartitionName"],
            partition.get("MaxTime", ""),
            partition.get("State"),
        )
        mine = []
        if longest[:1].isdecimal() and profile.time_s > seconds(longest):
            mine.append(
                f"it requests {profile.time}, but partition {name} allows {longest}, so it would never start: lower "
                "time (a job that is not finished is queued again), or use another partition"
            )
        if state not in (None, "UP"):
            mine.append(f"partition {name} is {state.lower()}: ask your site's support")
        allowed = partition.get("AllowQos", "ALL")
        if profile.qos and allowed not in ("ALL", "N/A") and profile.qos not in allowed.split(","):
            mine.append(f"partition {name} does not take QOS {profile.qos}, only {allowed}")
        problems.append(mine)
    # Of several partitions one that takes it is enough.
    return [] if not problems or [] in problems else problems[0]


def _qos_limits(profile: JobProfile) -> list[str]:
    """Against the limits of the QOS; nothing where there is no accounting."""
    if profile.qos is None or shutil.which("sacctmgr") is None:
        return []
    command = [
        "sacctmgr",
        "--noheader",
        "--parsable2",
        "show",
        "qos",
        "format=Name,MaxWall,MaxTRESPU,MaxTRES",
    ]
    rows = {line.split("|")[0]: line.split("|")[1:] for line in ask(command).splitlines()}
    if profile.qos not in rows:
        return [f"there is no QOS {profile.qos} here. There are: {', '.join(rows)}"] if rows else []
    longest, *most = rows[profile.qos]
    found = []
    if longest and profile.time_s > seconds(longest):
        found.append(
            f"it requests {profile.time}, but QOS {profile.qos} allows {longest}, so it would never start: lower time"
        )
    gpus = [int(n) for text in most for n in re.findall(r"gres/gpu=(\d+)", text)]
    if gpus and profile.n_gpus > min(gpus):
        found.append(f"it requests {profile.n_gpus} GPUs, but QOS {profile.qos} allows {min(gpus)}")
    return found


def _refusals(profile: JobProfile) -> list[str]:
    """What Slurm would refuse at once."""
    with tempfile.TemporaryDirectory() as folder:
        script = Path(folder) / "check.sh"
        script.write_text(render_script(BatchJob(["true"], "check", profile, log_dir=Path(folder))))
        try:
            ask(["sbatch", "--test-only", str(script)])
        except NoAnswer:
            raise
        except PipelineError as error:
            words = str(error).replace("allocation failure: ", "").replace("sbatch: error: ", "")
            if "node configuration is not available" in words:
                return [f"{words}. {_largest(profile)}"]
            return [f"Slurm refuses it: {words}"]
    return []


def _largest(profile: JobProfile) -> str:
    """What the nodes have, beside what is asked for."""
    partition = ["--partition", profile.partition] if profile.partition else []
    try:
        rows = [line.split("|") for line in ask(["sinfo", "-h", *partition, "-o", "%c|%m|%G"]).splitlines()]
        cores, memory = (max(int(row[k].rstrip("+")) for row in rows) for k in (0, 1))
        gpus = (
            ", ".join(sorted({row[2].partition("(")[0] for row in rows if row[2] != "(null)"})) or "no GPUs"
        )
    except (FileNotFoundError, PipelineError, ValueError):
        return "Ask for less."
    return (
        f"It requests {profile.cpus} cores, {profile.memory_gib} GiB and {profile.gpus or 'no'} GPU; the nodes have "
        f"at most {cores} cores, {memory / 1024:.4g} GiB and {gpus}"
    )
