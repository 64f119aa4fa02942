"""Submit: a command as a batch job, or a run as a chain of jobs; and resume: the jobs that are missing."""

from __future__ import annotations

import shutil
import socket
import uuid
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from tdenoise.files.atomic import write_atomically

from ..errors import LockedError, PipelineError, UsageError
from ..files.sealed_json import write_sealed
from ..resources.budget import in_words
from ..settings.denoise_settings import ApplyConfig, RunConfig
from ..settings.job_settings import ResumeConfig
from ..settings.results import OUTPUTS, STUDY
from ..settings.steps import apply_settings, is_single, single
from ..settings.workers import LOCAL, Workers
from ..slurm import job_queue
from ..slurm.batch_script import BatchJob, NoAnswer, pipeline_command, render_script
from ..slurm.profile_checks import limits
from ..slurm.site_profile import JobProfile, Site, load_site
from ..version import VERSION
from ..workers import job_array
from . import local_queue, run_folder


@dataclass(frozen=True)
class Step:
    """One job of a chain; it starts when the one before it has ended well."""

    kind: str
    section: str  # of the profile
    words: tuple[str, ...]  # after the program's name
    array: int | None = None  # tasks of a job array that share its work

    def starts(self, job: str) -> str:
        """When the step after it may start: of an array some tasks may fail, and the output be whole all the same."""
        return f"afterok:{job}" if self.array is None else f"afterany:{job}"


@dataclass(frozen=True)
class Submission:
    """Everything about a run of jobs, known before anything is written."""

    id: str
    command: str
    words: tuple[str, ...]
    output: Path
    work_dir: Path
    site: Site
    steps: tuple[Step, ...]

    @property
    def folder(self) -> Path:
        """The run folder."""
        return run_folder.folder_of(self.command, self.output)

    def profile(self, step: Step) -> JobProfile:
        """What the job of a step asks for."""
        return self.site.of(step.section)


def plan(
    command: str, words: Sequence[str], config: Any, profile: Path | None, changes: Sequence[str] = ()
) -> Submission:
    """Decide what jobs a command becomes.

    Parameters
    ----------
    command : str
        ``ingest``, ``train``, ``apply``, ``report``, ``study`` or ``run``.
    words : sequence of str
        The command line after the program's name, already checked.
    config : dataclass
        The settings that these words give.
    profile : Path or None
        Describes the jobs.
    changes : sequence of str
        Changes of the profile, as on the command line.

    Returns
    -------
    Submission

    Raises
    ------
    UsageError
        If the profile is wrong, or for PBS or LSF, or its jobs and those of ``--workers`` do not fit together.
    """
    site = load_site(profile, changes)
    workers: Workers = getattr(config, "workers", LOCAL)
    _check_scheduler(site.scheduler, command, workers)
    kinds = [command]
    if command == "run":
        untrained = () if config.model is None else ("train",)
        kinds = [step for step in OUTPUTS if config.step in (None, step) and step not in untrained]
    steps = []
    for kind in kinds:
        # Workers in jobs of their own: the job of the step itself computes nothing.
        section = "driver" if kind == "apply" and workers.system == "slurm" else kind
        if kind == "study":
            section = "train"  # each of its tasks does nothing else
        one_step = command == "run" and config.step is None
        step = Step(kind, section, (*words, "--step", kind) if one_step else tuple(words))
        if kind == "apply" and workers.kind == "array" and (movie := _movie(config)) is not None:
            step = Step(kind, "workers", tuple(job_array.task_words(movie)), workers.count)
        if kind == "study" and workers.kind == "array":
            step = Step(kind, section, tuple(words), workers.count)
        steps.append(step)
    return Submission(
        id=f"tdn-{uuid.uuid4().hex[:8]}",
        command=command,
        words=tuple(words),
        output=config.output.absolute(),
        work_dir=Path.cwd(),
        site=site,
        steps=tuple(steps),
    )


def _check_scheduler(scheduler: str, command: str, workers: Workers) -> None:
    if scheduler in ("pbs", "lsf"):
        raise UsageError(
            f"submit supports only Slurm and this machine, but the profile says scheduler: {scheduler}. Write a "
            "job script "
            f"that runs 'tdenoise-pipeline {command} ...'; if you run it again, it continues where it stopped."
        )
    if workers.system not in (None, scheduler):
        raise UsageError(
            f"--workers {workers.kind}:N does not fit the profile, which says scheduler: {scheduler}."
        )


def _movie(config: Any) -> ApplyConfig | None:
    """The settings for the one movie whose tasks need nobody to begin for them; None where somebody must."""
    if config.force:  # tasks cannot tell what was there before from what others of them have just made
        return None
    if isinstance(config, RunConfig):
        # A model that is given has first to be chosen, and copied.
        return apply_settings(config, force=False) if config.model is None else None
    return single(config) if is_single(config) else None


def scripts(
    submission: Submission, attempt: int = 1, steps: Sequence[Step] = (), ended: Sequence[str] = ()
) -> dict[str, tuple[str, str]]:
    """Name and batch script of the job of every step, by kind.

    Parameters
    ----------
    submission : Submission
    attempt : int
        Number of the time that the run is handed in.
    steps : sequence of Step
        The steps to do; by default all.
    ended : sequence of str
        Ids of earlier jobs of the run that have surely ended: what they held is free.
    """
    exports = {"TDENOISE_RUN": submission.id}
    if ended:
        exports["TDENOISE_ENDED_JOBS"] = " ".join(ended)
    made = {}
    for step in steps or submission.steps:
        name = f"{submission.id}-{step.kind}-{attempt}"
        profile = submission.profile(step)
        log_dir, work_dir = submission.folder / "logs", submission.work_dir
        exit_file = submission.folder / "exit" / name
        if profile.scheduler == "local":
            script = local_queue.render_script(
                pipeline_command(step.words),
                work_dir=work_dir,
                exports=exports,
                setup=profile.setup,
                exit_file=exit_file,
            )
        elif step.array is not None:
            script = job_array.render(
                step.words,
                step.array,
                name=name,
                profile=profile,
                exports=exports,
                exit_file=exit_file,
                log_dir=log_dir,
                work_dir=work_dir,
            )
        else:
            job = BatchJob(
                pipeline_command(step.words),
                name=name,
                profile=profile,
                exports=exports,
                exit_file=exit_file,
                nodes=profile.nodes if step.kind == "train" else 1,
                log_dir=log_dir,
                work_dir=work_dir,
            )
            script = render_script(job)
        made[step.kind] = (name, script)
    return made


def preview(submission: Submission) -> list[dict[str, Any]]:
    """``kind``, ``name`` and ``script`` of the job of every step, and what it would wait for (``after``)."""
    shown: list[dict[str, Any]] = []
    waits: dict[str, str | None] = {"after": None}
    for step, (kind, (name, script)) in zip(submission.steps, scripts(submission).items(), strict=True):
        shown.append({"kind": kind, "name": name, "script": script, **waits})
        waits = {"after": f"--dependency={step.starts('JOB-ID')}, the id of {name}"}
        if submission.site.scheduler == "local":
            waits = {"after": None}
    return shown


def submit(submission: Submission, settings: Mapping[str, Any]) -> dict[str, Any]:
    """Queue the jobs of a submission.

    Parameters
    ----------
    submission : Submission
        From `plan`.
    settings : mapping
        The resolved settings, for the record.

    Returns
    -------
    dict
        ``run``, ``folder`` and ``jobs``: ``kind``, ``id`` and ``name`` of each.

    Raises
    ------
    UsageError
        If this machine has no Slurm, or the jobs ask for more than their partition allows.
    LockedError
        If jobs of an earlier submit of the same output are still there.
    PipelineError
        If Slurm refuses a job; then none is left in the queue.
    """
    made = scripts(submission)
    if submission.site.scheduler == "slurm" and shutil.which("sbatch") is None:
        raise UsageError(
            "there is no sbatch on this machine. Submit from a machine with Slurm, or use --print and copy the "
            "script there."
        )
    problems = [f"{s.kind}: {problem}" for s in submission.steps for problem in limits(submission.profile(s))]
    if problems:
        raise UsageError(f"the jobs would wait forever: {'; '.join(dict.fromkeys(problems))}")
    folder = submission.folder
    with run_folder.locked(folder):
        _refuse_live(folder, sorted({job.run for job in run_folder.records(folder)}), force=False)
        record = {
            "id": submission.id,
            "command": submission.command,
            "words": submission.words,
            "settings": {key: str(value) for key, value in settings.items()},
            "output": str(submission.output),
            "work_dir": str(submission.work_dir),
            "steps": [asdict(step) for step in submission.steps],
            "profile": submission.site.to_json(),
            "software": VERSION,
            "host": socket.gethostname(),
            "submitted": run_folder.now(),
        }
        write_sealed(folder / run_folder.RUN_FILE, record, mode=0o644)
        return _queue(submission, made)


def resume(config: ResumeConfig) -> dict[str, Any]:
    """Queue what is missing of a batch run.

    Returns
    -------
    dict
        As `submit`; no ``jobs`` where nothing is missing.

    Raises
    ------
    InputError
        If no batch run was submitted there.
    LockedError
        If jobs of the run are still queued or running.
    NoAnswer
        If Slurm does not answer, or the run is on another machine: jobs may be there.
    """
    folder, run = run_folder.open_run(config.output, obey=True)
    if config.profile is not None:
        site = load_site(config.profile)
        _check_scheduler(site.scheduler, run["command"], LOCAL)
    else:
        site = Site.from_json(run["profile"], str(folder / run_folder.RUN_FILE))
    submission = Submission(
        id=run["id"],
        command=run["command"],
        words=tuple(run["words"]),
        output=Path(run["output"]),
        work_dir=Path(run["work_dir"]),
        site=site,
        steps=tuple(
            Step(step["kind"], step["section"], tuple(step["words"]), step.get("array"))
            for step in run["steps"]
        ),
    )
    if submission.folder != folder:  # it was moved: what the scripts name is elsewhere
        raise UsageError(f"{folder}: was moved from {submission.folder}. Submit the command again.")
    with run_folder.locked(folder):
        live = _refuse_live(folder, [submission.id], force=config.force)
        known = [job for job in run_folder.records(folder) if job.run == submission.id]
        missing = [
            step
            for step in submission.steps
            if not is_done(submission, step, run_folder.latest(folder, run["id"]))
        ]
        if not missing:
            return {"run": submission.id, "folder": str(folder), "jobs": []}
        attempt = 1 + max((int(job.name.rpartition("-")[2]) for job in known), default=0)
        ended = [job.id for job in known if job.id is not None and job.id not in live and job.id.isdecimal()]
        return _queue(submission, scripts(submission, attempt, missing, ended))


def is_done(submission: Submission, step: Step, latest: Mapping[str, run_folder.JobRecord]) -> bool:
    """Whether the job of a step has ended well and what it made is there."""
    return step.kind in latest and latest[step.kind].exit_code == 0 and output_of(submission, step).exists()


def output_of(submission: Submission, step: Step) -> Path:
    """What a step makes, once it is whole."""
    if submission.command == "study":  # its folder is there from the first task on
        return submission.output / STUDY
    return submission.output / OUTPUTS[step.kind] if submission.command == "run" else submission.output


def estimate(submission: Submission, sizes: Mapping[str, Any]) -> list[str]:
    """What the jobs will cost, a line each.

    Parameters
    ----------
    submission : Submission
    sizes : mapping
        ``disk_bytes``, ``n_blocks``, ``block_bytes``, ``n_workers`` and ``train_s``, where they are known.
    """
    lines = []
    for step in submission.steps:
        asks = submission.profile(step)
        n_nodes = asks.nodes if step.kind == "train" else 1  # the others use one, whatever the profile says
        n_gpus = n_nodes * asks.n_gpus
        gpus = f"{asks.gpus} GPU" if asks.gpus else "no GPU"
        shared = f"{n_nodes} nodes with " if n_nodes > 1 else ""
        lines.append(
            f"{step.kind}: {shared}{gpus}, {asks.cpus} cores, {asks.memory_gib} GiB, at most {asks.time} at a time"
        )
        if step.kind == "study":
            jobs = f"{step.array} jobs, each with " if step.array else ""
            lines[-1] = lines[-1].replace("study: ", f"study: {jobs}", 1)
        elif step.array is not None:  # its tasks are told as workers, below
            lines.pop()
        elif asks.scheduler == "local":
            lines[-1] = f"{step.kind}: on this machine"
        elif step.kind == "train" and sizes.get("train_s") and n_gpus:
            lines[-1] += f"; about {n_gpus * sizes['train_s'] / 3600:.2g} GPU-hours"
        elif n_gpus:
            lines[-1] += f", that is {n_gpus * asks.time_s / 3600:.3g} GPU-hours"
        if step.kind == "apply" and "n_blocks" in sizes:
            told = f"{sizes['n_blocks']} blocks of {in_words(sizes['block_bytes'])} of memory"
            if step.array is None:
                lines[-1] += f"; {told}"
            else:
                lines.append(f"{step.kind}: {told}")
    if n := sizes.get("n_workers"):
        asks = submission.site.of("workers")
        hours = n * asks.n_gpus * asks.time_s / 3600
        lines.append(
            f"workers: {n} jobs with {f'{asks.gpus} GPU' if asks.gpus else 'no GPU'}, {asks.cpus} cores, "
            f"{asks.memory_gib} GiB each, at most {asks.time} at a time"
            + (f", that is {hours:.3g} GPU-hours" if hours else "")
        )
    if "disk_bytes" in sizes:
        lines.append(f"disk: about {in_words(sizes['disk_bytes'])} in {submission.output.parent}")
    return lines


def _refuse_live(folder: Path, runs: Sequence[str], *, force: bool) -> set[str]:
    """Ids of the jobs that are still there; refuses if there are any, unless forced."""
    try:
        live = {job.id: job for run in runs for job in run_folder.jobs(folder, run) if job.live}
    except NoAnswer as error:
        if force:
            return {job.id for job in run_folder.records(folder) if job.id is not None}
        raise NoAnswer(
            f"no answer ({error}), so jobs of this run may be queued or running. Try again later, or "
            "resume --force if you know that there are none."
        ) from None
    if live and not force:
        shown = ", ".join(f"{job.name} ({job.id}, {job.state.lower()})" for job in live.values())
        raise LockedError(
            f"{folder}: jobs of this run are still queued or running: {shown}. Wait for them, or "
            "'tdenoise-pipeline cancel' first."
        )
    return set(live)


def _queue(submission: Submission, made: Mapping[str, tuple[str, str]]) -> dict[str, Any]:
    """Hand in jobs, each after the one before it; all of them or none."""
    folder = submission.folder
    for name in ("logs", "exit", "scripts"):
        (folder / name).mkdir(exist_ok=True)
    steps = {step.kind: step for step in submission.steps}
    queued: list[dict[str, Any]] = []
    if submission.site.scheduler == "local":
        return _start(submission, made)
    (folder / local_queue.PROCESS).unlink(missing_ok=True)  # of an attempt on this machine, which is over
    for kind, (name, script) in made.items():
        path = folder / "scripts" / f"{name}.sh"
        write_atomically(path, script.encode())
        run_folder.append(folder, event="submitting", name=name, kind=kind, run=submission.id)
        after = [steps[job["kind"]].starts(job["id"]) for job in queued[-1:]]
        try:
            number = job_queue.submit_once(path, name, after)
        except NoAnswer:
            raise  # it may be queued: only the record of its name is sure
        except PipelineError as error:
            run_folder.append(folder, event="refused", name=name, error=str(error))
            if queued:  # in reverse, so that none starts when the one before it goes
                job_queue.cancel(submission.id)
            raise
        run_folder.append(
            folder, event="submitted", name=name, id=number, kind=kind, submitted=run_folder.now()
        )
        queued.append({"kind": kind, "id": number, "name": name})
    return {"run": submission.id, "folder": str(folder), "jobs": queued}


def _start(submission: Submission, made: Mapping[str, tuple[str, str]]) -> dict[str, Any]:
    """Begin to work through the steps on this machine."""
    folder = submission.folder
    for name, script in made.values():
        write_atomically(folder / "scripts" / f"{name}.sh", script.encode())
    for kind, (name, _) in made.items():
        run_folder.append(folder, event="submitting", name=name, kind=kind, run=submission.id)
    process = local_queue.start(folder, submission.id, [name for name, _ in made.values()])
    jobs = [{"kind": kind, "id": process, "name": name} for kind, (name, _) in made.items()]
    for job in jobs:
        run_folder.append(folder, event="submitted", submitted=run_folder.now(), **job)
    return {"run": submission.id, "folder": str(folder), "jobs": jobs}
