"""What every command of the command line does, and how its result is shown to a person."""

from __future__ import annotations

import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..settings import config as settings
from ..step_control import Control
from .terminal import one_line


@dataclass(frozen=True)
class Command:
    """A verb of the command line."""

    config: type[Any]
    run: Callable[[Any, Control], dict[str, Any]]
    show: Callable[[dict[str, Any]], str]
    dry_run: Callable[[Any], dict[str, Any]] | None = None


# Every step is imported when it runs: torch, xarray and distributed take seconds, --help must not.


def _ingest(config: Any, control: Control) -> dict[str, Any]:
    from ..ingest.ingest_many import ingest_many

    return ingest_many(config, control)


def _ingest_plan(config: Any) -> dict[str, Any]:
    from ..ingest.ingest_many import describe_plans

    return describe_plans(config)


def _show_ingest(result: dict[str, Any]) -> str:
    if "movies" in result:
        return _table(result["movies"])
    noise = result["noise"] or {}
    fano = noise.get("fano")
    shown = "not measured" if fano is None else f"{fano:.3f}"
    mean = "unknown" if result["mean"] is None else f"{result['mean']:.4g} counts per pixel and frame"
    return f"{result['store']}: mean {mean}, Fano factor {shown}"


def _table(movies: list[dict[str, Any]]) -> str:
    """A line for each of several movies, and then what went wrong, in full."""
    head = ("movie", "frames", "size", "type", "mean", "Fano", "warnings", "result")
    lines = [head]
    for movie in movies:
        if movie["error"] is not None:
            lines.append((one_line(movie["name"]), *6 * ("",), f"failed ({movie['exit_code']})"))
            continue
        n_frames, height, width = movie["shape"]
        figures = ("" if v is None else f"{v:.4g}" for v in (movie["mean"], movie["fano"]))
        size = (str(n_frames), f"{height} x {width}", movie["dtype"])
        name, made = one_line(movie["name"]), one_line(Path(movie["store"]).name)
        lines.append((name, *size, *figures, str(len(movie["warnings"])), made))
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    table = [
        "  ".join(f"{word:<{w}}" for word, w in zip(line, widths, strict=True)).rstrip() for line in lines
    ]
    return "\n".join([*table, *(one_line(movie["error"]) for movie in movies if movie["error"] is not None)])


def _train(config: Any, control: Control) -> dict[str, Any]:
    from ..train.train import train_model

    card = train_model(config, control)
    return {"model": str(config.output), **card} if card else {}


def _train_plan(config: Any) -> dict[str, Any]:
    from ..train.train_plan import describe_plan

    return describe_plan(config)


def _show_train(result: dict[str, Any]) -> str:
    error = result["metrics"]["held_out_error"]
    return (
        f"{result['model']}: model {result['sha256'][:12]}, {result['steps']} steps, best at "
        f"{result['best_step']} (held-out error {error:.5f} of the noise variance)"
    )


def _apply(config: Any, control: Control) -> dict[str, Any]:
    from ..workflow.apply_many import apply_many

    return apply_many(config, control)


def _apply_plan(config: Any) -> dict[str, Any]:
    from ..workflow.apply_many import describe_plans

    return describe_plans(config)


def _show_apply(result: dict[str, Any]) -> str:
    if "movies" not in result:
        return f"{result['store']}: denoised with model {result['model']['id'][:12]}"
    failed = [m for m in result["movies"] if m["error"] is not None]
    done = f"{len(result['movies']) - len(failed)} of {len(result['movies'])} movies denoised"
    return "\n".join([done, *(f"failed ({m['exit_code']}): {m['error']}" for m in failed)])


def _archive(name: str) -> Callable[[Any, Control], dict[str, Any]]:
    def run(config: Any, control: Control) -> dict[str, Any]:
        from ..archive import archive

        if name in ("add", "check"):
            return dict(getattr(archive, name)(config, control))
        return dict(getattr(archive, name)(config))

    return run


def _show_archive_add(result: dict[str, Any]) -> str:
    lines = [f"added {_card(card)}" for card in result["added"]]
    return "\n".join([*lines, *(f"known already: {id[:12]}" for id in result["known"])])


def _show_archive_list(result: dict[str, Any]) -> str:
    return "\n".join(map(_card, result["cards"])) or "nothing"


def _show_archive_show(result: dict[str, Any]) -> str:
    lines = [_card(result), *(f"  made from {_card(c)}" for c in result["made_from"])]
    lines += [f"  made from {id[:12]}, which is not in the archive" for id in result["missing"]]
    return "\n".join([*lines, *(f"  of it was made {_card(c)}" for c in result["made_of_it"])])


def _card(card: dict[str, Any]) -> str:
    size = " x ".join(map(str, card.get("shape", [])))
    return "  ".join(filter(None, [card["id"][:12], f"{card['kind']:<8}", card["name"], size, card["path"]]))


def _show_archive_count(result: dict[str, Any]) -> str:
    return f"{result['archive']}: {result['n_cards']} cards"


def _run(config: Any, control: Control) -> dict[str, Any]:
    from ..workflow.run import run

    return run(config, control)


def _show_run(result: dict[str, Any]) -> str:
    if "metrics" not in result:  # one step only
        return "\n".join(result.values())
    return "\n".join(
        [*_figures(result["metrics"]), f"denoised store: {result['denoised']}", f"report: {result['report']}"]
    )


def _evaluate(config: Any, control: Control) -> dict[str, Any]:
    from ..evaluate.evaluate import evaluate

    return evaluate(config, control)


def _show_evaluate(result: dict[str, Any]) -> str:
    return "\n".join(_figures(result))


def _figures(metrics: dict[str, Any]) -> list[str]:
    """The main figures of an evaluation, a line each."""
    from ..evaluate.sentences import summary

    return summary(metrics)


def _report(config: Any, control: Control) -> dict[str, Any]:
    from ..evaluate.report import write_report

    return {"report": str(config.output), "metrics": write_report(config, control)}


def _show_report(result: dict[str, Any]) -> str:
    return str(result["report"])


def _verify(config: Any, control: Control) -> dict[str, Any]:
    if config.repair:
        from ..workflow.repair import repair

        return repair(config, control)
    from ..archive.verify import verify

    return verify(config, control)


def _show_verify(result: dict[str, Any]) -> str:
    how = "decoded and compared" if result["deep"] else "found whole by their index"
    mended = f", {result['repaired']} damaged files mended" if result["repaired"] else ""
    return f"{result['store']}: {result['n_shards']} shards {how}{mended}"


def _status(config: Any, control: Control) -> dict[str, Any]:
    from ..jobs.status import status

    return status(config)


def _show_status(result: dict[str, Any]) -> str:
    lines = [] if result["batch"] is None else _batch_lines(result["batch"])
    for item in result["outputs"]:
        share = "" if item["done"] is None else f", {item['done']} of {item['total']} blocks done"
        holder = f", held by {item['holder']}" if item["holder"] else ""
        name = item["output"].rpartition("/")[2]
        damage = f", {item['damage']}. Run 'verify {name} --repair' to mend it." if item["damage"] else ""
        lines.append(f"{item['output']}: {item['state']}{share}{holder}{damage}")
    return "\n".join(lines)


def _batch_lines(run: dict[str, Any]) -> list[str]:
    """A batch run and each of its jobs."""
    spent = (
        ""
        if run["gpu_hours"] is None
        else (f", {run['gpu_hours']:.3g} GPU-hours and {run['cpu_hours']:.3g} core-hours so far")
    )
    lines = [f"{run['command']} {run['run']}: {run['state']}{spent}"]
    for job in run["jobs"]:
        number = f"job {job['id']}" if job["id"] else ""
        done = "" if job["percent"] is None else f"{job['percent']} %"
        left = "" if job["left"] is None else f"{job['left']} left"
        lines.append(
            f"  {job['kind']:<7} {job['state']:<9} "
            + ", ".join(part for part in (number, done, left, job["why"]) if part)
        )
        if job["state"] == "failed":
            lines.append(f"          log: {job['log']}")
    if any(run["workers"].values()):
        lines.append(f"  workers {run['workers']['running']} running, {run['workers']['pending']} pending")
    if run["blocks"] is not None:
        blocks = run["blocks"]
        rate = "" if blocks["per_hour"] is None else f", {blocks['per_hour']} in an hour"
        left = "" if blocks["left_s"] is None else f", about {blocks['left_s'] / 3600:.1f} h left"
        lines.append(f"  blocks  {blocks['done']} of {blocks['total']}{rate}{left}")
    return lines


def _resume(config: Any, control: Control) -> dict[str, Any]:
    from ..jobs import run_folder, submit
    from ..workflow.resume import resume

    # Jobs of a batch run are queued again; what was begun without a batch system goes on in this process.
    if run_folder.find(config.output) is not None:
        return submit.resume(config)
    return resume(
        config.output, control, force=config.force, workers=config.workers, insecure=config.insecure
    )


def _show_resume(result: dict[str, Any]) -> str:
    if "resumed" in result:
        return (
            "\n".join(f"{output}: complete" for output in result["resumed"]) or "nothing is unfinished here"
        )
    return show_submit(result) if result["jobs"] else f"{result['folder']}: nothing is missing"


def show_submit(result: dict[str, Any]) -> str:
    """Jobs that were handed in, what they may cost, and how to follow them."""
    jobs = [f"{job['kind']}: job {job['id']}" for job in result["jobs"]]
    where = f"tdenoise-pipeline status, logs, cancel or resume {result['folder']}"
    return "\n".join([*result.get("costs", []), *jobs, where])


def _cancel(config: Any, control: Control) -> dict[str, Any]:
    from ..jobs.job_status import cancel

    return cancel(config)


def _show_cancel(result: dict[str, Any]) -> str:
    ids = ", ".join(result["cancelled"])
    return f"cancelled: {ids}" if ids else "no job was there to cancel"


def _logs(config: Any, control: Control) -> dict[str, Any]:
    from ..jobs.job_status import logs

    for line in logs(config, control):
        print(line, flush=True)
    return {}


def _profiles_list(config: Any, control: Control) -> dict[str, Any]:
    from ..slurm.site_profile import names, user_folder

    return {"profiles": names(), "user_folder": str(user_folder())}


def _show_profiles_list(result: dict[str, Any]) -> str:
    return "\n".join([*result["profiles"], f"your own: {result['user_folder']}"])


def _profiles_show(config: Any, control: Control) -> dict[str, Any]:
    from ..slurm.profile_checks import show_profile

    return show_profile(config.profile)


def _show_profiles_show(result: dict[str, Any]) -> str:
    lines = []
    for section, asks in result.items():
        shown = (f"{key}={value}" for key, value in asks.items() if value not in (None, ()))
        lines.append(f"{section:<8} {', '.join(shown)}")
    return "\n".join(lines)


def _profiles_check(config: Any, control: Control) -> dict[str, Any]:
    from ..slurm.profile_checks import check_profile

    return check_profile(config.profile)


def _show_profiles_check(result: dict[str, Any]) -> str:
    lines = []
    for section, job in result["jobs"].items():
        fine = "accepted" if result["scheduler"] == "slurm" else "nothing wrong was found"
        words = [f"wrong: {text}" for text in job["problems"]] or [fine]
        lines.append(f"{section:<8} " + "; ".join([*words, *job["notes"]]))
    return "\n".join(lines)


def _models_import(config: Any, control: Control) -> dict[str, Any]:
    from ..train.import_udvd import import_model

    return {"model": str(config.output), **import_model(config)}


def _show_models_import(result: dict[str, Any]) -> str:
    return f"{result['model']}: model {result['sha256'][:12]}, imported from {result['imported']['name']}"


def _models_show(config: Any, control: Control) -> dict[str, Any]:
    from ..train.show_model import show_model

    return show_model(config)


def _show_models_show(result: dict[str, Any]) -> str:
    from ..train.show_model import summary

    return "\n".join(summary(result))


def _simulate(config: Any, control: Control) -> dict[str, Any]:
    from ..workflow.simulate import write_simulation

    return write_simulation(config)


def _show_simulate(result: dict[str, Any]) -> str:
    return f"{result['raw']} and {result['truth']}"


def _doctor(config: Any, control: Control) -> dict[str, Any]:
    from ..jobs.doctor import examine

    return examine(config)


def _show_doctor(result: dict[str, Any]) -> str:
    from ..jobs.doctor import lines

    screen = lines(result)
    if not sys.stdout.isatty():
        return "\n".join(screen)
    from rich.console import Console
    from rich.text import Text

    console = Console()
    with console.capture() as captured:
        for line in screen:
            console.print(Text(line, style="green" if line.startswith("ok") else "red"))
    return captured.get().rstrip("\n")


COMMANDS = {
    "ingest": Command(settings.IngestManyConfig, _ingest, _show_ingest, _ingest_plan),
    "train": Command(settings.TrainConfig, _train, _show_train, _train_plan),
    "apply": Command(settings.ApplyManyConfig, _apply, _show_apply, _apply_plan),
    "run": Command(settings.RunConfig, _run, _show_run),
    "evaluate": Command(settings.EvaluateConfig, _evaluate, _show_evaluate),
    "report": Command(settings.ReportConfig, _report, _show_report),
    "verify": Command(settings.VerifyConfig, _verify, _show_verify),
    "status": Command(settings.StatusConfig, _status, _show_status),
    "models import": Command(settings.ModelsImportConfig, _models_import, _show_models_import),
    "models show": Command(settings.ModelsShowConfig, _models_show, _show_models_show),
    "archive add": Command(settings.ArchiveAddConfig, _archive("add"), _show_archive_add),
    "archive list": Command(settings.ArchiveConfig, _archive("list_all"), _show_archive_list),
    "archive find": Command(settings.ArchiveFindConfig, _archive("find"), _show_archive_list),
    "archive show": Command(settings.ArchiveShowConfig, _archive("show"), _show_archive_show),
    "archive verify": Command(settings.ArchiveVerifyConfig, _archive("check"), _show_archive_count),
    "archive index": Command(settings.ArchiveIndexConfig, _archive("index"), _show_archive_count),
    "doctor": Command(settings.DoctorConfig, _doctor, _show_doctor),
    "simulate": Command(settings.SimulateConfig, _simulate, _show_simulate),
    "resume": Command(settings.ResumeConfig, _resume, _show_resume),
    "cancel": Command(settings.CancelConfig, _cancel, _show_cancel),
    "logs": Command(settings.LogsConfig, _logs, str),
    "profiles list": Command(settings.ProfilesListConfig, _profiles_list, _show_profiles_list),
    "profiles show": Command(settings.ProfilesShowConfig, _profiles_show, _show_profiles_show),
    "profiles check": Command(settings.ProfilesCheckConfig, _profiles_check, _show_profiles_check),
}
SUBMITTABLE = ("ingest", "train", "apply", "report", "run")
