"""What every command of the command line does."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from ..step_control import Control
from . import keeping, show
from .terminal import one_line, say, say_anew

WATCH_S, ASK_S = 3.0, 30.0  # between two looks of status --watch; a batch system is asked less often


@dataclass(frozen=True)
class Command:
    """A verb of the command line."""

    settings: str  # the name of their class
    summary: str  # what it gives, in one sentence
    run: Callable[[Any, Control], dict[str, Any]]
    show: Callable[[Any], str]
    dry_run: Callable[[Any], dict[str, Any]] | None = None

    @property
    def config(self) -> type[Any]:
        """The class of its settings."""
        from ..settings import config

        kind: type[Any] = getattr(config, self.settings)
        return kind


# Every step is imported when it runs: torch, xarray and distributed take seconds, --help must not. So are the settings,
# for pydantic takes a tenth of a second.


def _ingest(config: Any, control: Control) -> dict[str, Any]:
    from ..ingest.ingest_many import ingest_many

    return ingest_many(config, control)


def _ingest_plan(config: Any) -> dict[str, Any]:
    from ..ingest.ingest_many import describe_plans
    from ..workflow.forecast import with_times

    return with_times(describe_plans(config), config)


def _train(config: Any, control: Control) -> dict[str, Any]:
    from ..workflow.learn import train

    card, learned = train(config, control)
    if card is None:
        return {}
    told = {} if learned is None else {"versions": learned, "exit_code": 0 if learned["accepted"] else 1}
    return {"model": str(config.output), **card, **told}


def _train_plan(config: Any) -> dict[str, Any]:
    from ..workflow.forecast import with_times
    from ..workflow.learn import describe

    return with_times(describe(config), config)


def _apply(config: Any, control: Control) -> dict[str, Any]:
    from ..workflow.apply_many import apply_many

    return apply_many(config, control)


def _apply_plan(config: Any) -> dict[str, Any]:
    from ..workflow.apply_many import describe_plans
    from ..workflow.forecast import with_times

    return with_times(describe_plans(config), config)


def _run(config: Any, control: Control) -> dict[str, Any]:
    from ..workflow.run import run

    return run(config, control)


def _run_plan(config: Any) -> dict[str, Any]:
    from ..workflow.forecast import with_times
    from ..workflow.run_plan import describe_plan

    return with_times(describe_plan(config), config)


def _evaluate(config: Any, control: Control) -> dict[str, Any]:
    from ..evaluate.evaluate import evaluate

    return {**evaluate(config, control)}


def _export(config: Any, control: Control) -> dict[str, Any]:
    from ..export.export import export

    return export(config, control)


def _export_plan(config: Any) -> dict[str, Any]:
    from ..export.export import describe_plan

    return describe_plan(config)


def _report(config: Any, control: Control) -> dict[str, Any]:
    from ..evaluate.report import write_report

    return {"report": str(config.output), "metrics": write_report(config, control)}


def _view(config: Any, control: Control) -> dict[str, Any]:
    from ..view.server import view

    for line in view(config, control):
        say(line)
    return {}


def _watch(config: Any, control: Control) -> dict[str, Any]:
    from ..watch.watch import watch

    for line in watch(config, control):
        say(line)
    return {}


def _events(config: Any, control: Control) -> dict[str, Any]:
    from ..events.find_events import events

    return events(config, control)


def _verify(config: Any, control: Control) -> dict[str, Any]:
    from ..archive.verify_run import verify_all

    if config.repair:
        from ..workflow.repair import repair

        return verify_all(config, control, repair)
    from ..archive.verify import verify

    return verify_all(config, control, verify)


def _cite(config: Any, control: Control) -> dict[str, Any]:
    from ..archive.cite import cite

    return cite(config, control)


def _status(config: Any, control: Control) -> dict[str, Any]:
    from ..jobs.status import is_at_work, status

    while config.watch:
        found = status(config)
        say_anew("\n".join(map(one_line, show.status(found).split("\n"))))
        until = time.monotonic() + (ASK_S if found.get("batch") else WATCH_S)
        while time.monotonic() < until and not control.stop.is_set():
            time.sleep(0.1)
        if control.stop.is_set() or not is_at_work(found):
            return {}
    return status(config)


def _resume(config: Any, control: Control) -> dict[str, Any]:
    from ..jobs import run_folder, submit
    from ..workflow.resume import resume

    # Jobs of a batch run are queued again; what was begun without a batch system goes on in this process.
    if run_folder.find(config.output) is not None:
        return submit.resume(config)
    return resume(
        config.output, control, force=config.force, workers=config.workers, insecure=config.insecure
    )


def _cancel(config: Any, control: Control) -> dict[str, Any]:
    from ..jobs.job_status import cancel

    return cancel(config)


def _logs(config: Any, control: Control) -> dict[str, Any]:
    from ..jobs.job_status import logs

    for line in logs(config, control):
        say(line)
    return {}


def _profiles_list(config: Any, control: Control) -> dict[str, Any]:
    from ..slurm.site_profile import names, user_folder

    return {"profiles": names(), "user_folder": str(user_folder())}


def _profiles_show(config: Any, control: Control) -> dict[str, Any]:
    from ..slurm.profile_checks import show_profile

    return show_profile(config.profile)


def _profiles_check(config: Any, control: Control) -> dict[str, Any]:
    from ..slurm.profile_checks import check_profile

    return check_profile(config.profile)


def _simulate(config: Any, control: Control) -> dict[str, Any]:
    from ..workflow.simulate import write_simulation

    return write_simulation(config)


def _study(config: Any, control: Control) -> dict[str, Any]:
    from ..study.study import study

    return study(config, control)


def _study_plan(config: Any) -> dict[str, Any]:
    from ..study.study import describe_plan

    return describe_plan(config)


def _doctor(config: Any, control: Control) -> dict[str, Any]:
    from ..jobs.doctor import examine

    return examine(config)


COMMANDS = {
    "run": Command(
        "RunConfig",
        "Go from a raw movie to a denoised movie and a report, in one folder.",
        _run,
        show.run,
        _run_plan,
    ),
    "ingest": Command(
        "IngestManyConfig",
        "Read raw movies, calibrate and correct them, and write each as a movie store.",
        _ingest,
        show.ingest,
        _ingest_plan,
    ),
    "train": Command(
        "TrainConfig",
        "Train a model on one or several noisy movies, or on those of an archive.",
        _train,
        show.train,
        _train_plan,
    ),
    "apply": Command(
        "ApplyManyConfig",
        "Denoise movies with a model; you can stop it and start it again.",
        _apply,
        show.apply,
        _apply_plan,
    ),
    "resume": Command(
        "ResumeConfig",
        "Continue what was interrupted; for a batch run, queue the missing jobs again.",
        _resume,
        show.resume,
    ),
    "report": Command(
        "ReportConfig", "Write a page with pictures and figures of a denoised movie.", _report, show.report
    ),
    "export": Command(
        "ExportConfig",
        "Write a movie as a video, as pictures, or as data for other programs.",
        _export,
        show.export,
        _export_plan,
    ),
    "view": Command("ViewConfig", "Look at movies of any size in your browser.", _view, str),
    "watch": Command("WatchConfig", "See recordings while the microscope writes them.", _watch, str),
    "evaluate": Command(
        "EvaluateConfig",
        "Measure how good a denoised movie is, with or without a truth.",
        _evaluate,
        show.evaluate,
    ),
    "events": Command(
        "EventsConfig",
        "Find the atomic columns of a movie, and list when they change and how sure that is.",
        _events,
        show.events,
    ),
    "verify": Command(
        "VerifyConfig",
        "Check that a store, a model or a whole run is complete and undamaged; repair it.",
        _verify,
        show.verify,
    ),
    "cite": Command(
        "CiteConfig",
        "Write the methods paragraph of a paper, and the works to cite as BibTeX.",
        _cite,
        show.cite,
    ),
    "status": Command("StatusConfig", "Show the progress of a run.", _status, show.status),
    "logs": Command("LogsConfig", "Show the logs of the jobs of a batch run.", _logs, str),
    "cancel": Command(
        "CancelConfig", "Cancel the jobs of a batch run; finished work is kept.", _cancel, show.cancel
    ),
    "profiles list": Command(
        "ProfilesListConfig", "List the names that --profile accepts.", _profiles_list, show.profiles_list
    ),
    "profiles show": Command(
        "ProfilesShowConfig",
        "Show the resources that a profile requests for each kind of job.",
        _profiles_show,
        show.profiles_show,
    ),
    "profiles check": Command(
        "ProfilesCheckConfig",
        "Ask the cluster whether it would accept the jobs of a profile.",
        _profiles_check,
        show.profiles_check,
    ),
    "doctor": Command(
        "DoctorConfig",
        "Check whether this machine, a shared disk and the nodes of a cluster are ready.",
        _doctor,
        show.doctor,
    ),
    "models show": Command(
        "ModelsShowConfig",
        "Show the architecture, training and figures of a model.",
        keeping.models_show,
        show.models_show,
    ),
    "models import": Command(
        "ModelsImportConfig",
        "Make a model of a file that 'models export' wrote, or of UDVD weights.",
        keeping.models_import,
        show.models_import,
    ),
    "models export": Command(
        "ModelsExportConfig",
        "Write a model as a file that other programs open: a package of bioimage.io.",
        keeping.models_export,
        show.models_export,
    ),
    "archive add": Command(
        "ArchiveAddConfig",
        "Add finished stores and models to an archive.",
        keeping.archive_add,
        show.archive_add,
    ),
    "archive list": Command(
        "ArchiveConfig",
        "List everything in an archive.",
        keeping.archive_cards("list_all"),
        show.archive_list,
    ),
    "archive find": Command(
        "ArchiveFindConfig",
        "Find movies, models and results in an archive.",
        keeping.archive_cards("find"),
        show.archive_find,
    ),
    "archive html": Command(
        "ArchiveHtmlConfig",
        "Write a page of an archive, with pictures and what was made from what.",
        keeping.archive_html,
        show.archive_html,
    ),
    "archive crate": Command(
        "ArchiveCrateConfig",
        "Describe an archive for others: RO-Crate metadata beside the stores.",
        keeping.archive_crate,
        show.archive_crate,
    ),
    "archive suggest": Command(
        "ArchiveSuggestConfig",
        "Rank the models of an archive for a movie.",
        keeping.archive_suggest,
        show.archive_suggest,
    ),
    "archive tag": Command(
        "ArchiveTagConfig", "Write notes on an item of an archive.", keeping.archive_tag, show.archive_tag
    ),
    "archive show": Command(
        "ArchiveShowConfig",
        "Show one item, what it was made from and what was made from it.",
        keeping.archive_cards("show"),
        show.archive_show,
    ),
    "archive verify": Command(
        "ArchiveVerifyConfig",
        "Check every card of an archive and everything that the cards refer to.",
        keeping.archive_verify,
        show.archive_count,
    ),
    "archive index": Command(
        "ArchiveIndexConfig",
        "Rebuild the index of an archive from its cards.",
        keeping.archive_cards("index"),
        show.archive_count,
    ),
    "study": Command(
        "StudyConfig", "Find out how many frames your movie needs.", _study, show.study, _study_plan
    ),
    "simulate": Command(
        "SimulateConfig", "Write a simulated raw movie and its noise-free truth.", _simulate, show.simulate
    ),
}
SUBMITTABLE = ("ingest", "train", "apply", "report", "study", "run")

# Commands of two words, by the first.
GROUPS = {
    "profiles": "List, show and check the descriptions of clusters that --profile accepts.",
    "models": "Show a model, export it for other programs, or import it.",
    "archive": "Keep movies, models and results together, and find them again.",
}
# What a user wants to do, and the first words of the commands for it.
PURPOSES = {
    "denoise a movie": ("run", "ingest", "train", "apply", "resume"),
    "record at the microscope": ("watch",),
    "look at the result": ("view", "report", "export", "evaluate", "events", "verify", "cite"),
    "work on a cluster": ("submit", "status", "logs", "cancel", "profiles", "doctor"),
    "keep and find": ("models", "archive"),
    "try and learn": ("study", "simulate", "completion", "help"),
}
_OWN = {
    "submit": "Queue ingest, train, apply, report, study or run as Slurm jobs, or run it in the background.",
    "completion": "Print a script that completes commands and options in your shell.",
    "help": "Show the help of a command.",
}
SUMMARIES = {
    name: _OWN.get(name) or GROUPS.get(name) or COMMANDS[name].summary
    for names in PURPOSES.values()
    for name in names
}
