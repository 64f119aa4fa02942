"""The command line ``tdenoise-pipeline``: parse, run one step, print. The only module that prints."""

from __future__ import annotations

import argparse
import dataclasses
import difflib
import json
import logging
import signal
import sys
import time
from collections.abc import Callable, Sequence
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NoReturn

from . import config as settings
from .control import Control
from .errors import PipelineError, ResourceError, UsageError

PROGRAM = "tdenoise-pipeline"
LOG_LINE_S = 30.0  # between progress lines where there is no terminal

# Flags of the script that this tool replaces, and what to write instead.
OLD_FLAGS = {
    "--data": "the raw movie is the first argument: run RAW -o FOLDER",
    "--num-epochs": "use --steps N, the number of optimiser steps",
    "--epochs": "use --steps N, the number of optimiser steps",
    "--batch-size": "not needed: the batch is fixed",
    "--image-size": "not needed: patches are drawn by themselves",
    "--include-neighbor": "use --blind-radius 1",
    "--multiply": "use --counts-per-electron G",
    "--save-model": "not needed: the model is always saved",
    "--transforms": "not needed: patches are always flipped and turned",
    "--no-transforms": "not needed: patches are always flipped and turned",
}


@dataclass(frozen=True)
class Command:
    """A verb of the command line."""

    config: type[Any]
    run: Callable[[Any, Control], dict[str, Any]]
    show: Callable[[dict[str, Any]], str]
    dry_run: Callable[[Any], dict[str, Any]] | None = None


# Every step is imported when it runs: torch, xarray and distributed take seconds, --help must not.


def _ingest(config: Any, control: Control) -> dict[str, Any]:
    from .ingest_many import ingest_many

    return ingest_many(config, control)


def _ingest_plan(config: Any) -> dict[str, Any]:
    from .ingest_many import describe_plans

    return describe_plans(config)


def _show_ingest(result: dict[str, Any]) -> str:
    if "movies" in result:
        return _table(result["movies"])
    noise = result["noise"] or {}
    fano = noise.get("fano")
    shown = "not measured" if fano is None else f"{fano:.3f}"
    return f"{result['store']}: mean {result['mean']:.4g} counts per pixel and frame, Fano factor {shown}"


def _table(movies: list[dict[str, Any]]) -> str:
    """A line for each of several movies, and then what went wrong, in full."""
    head = ("movie", "frames", "size", "type", "mean", "Fano", "warnings", "result")
    lines = [head]
    for movie in movies:
        if movie["error"] is not None:
            lines.append((_one_line(movie["name"]), *6 * ("",), f"failed ({movie['exit_code']})"))
            continue
        n_frames, height, width = movie["shape"]
        figures = ("" if v is None else f"{v:.4g}" for v in (movie["mean"], movie["fano"]))
        size = (str(n_frames), f"{height} x {width}", movie["dtype"])
        name, made = _one_line(movie["name"]), _one_line(Path(movie["store"]).name)
        lines.append((name, *size, *figures, str(len(movie["warnings"])), made))
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    table = [
        "  ".join(f"{word:<{w}}" for word, w in zip(line, widths, strict=True)).rstrip() for line in lines
    ]
    return "\n".join([*table, *(_one_line(movie["error"]) for movie in movies if movie["error"] is not None)])


def _train(config: Any, control: Control) -> dict[str, Any]:
    from .train import train_model

    card = train_model(config, control)
    return {"model": str(config.output), **card} if card else {}


def _train_plan(config: Any) -> dict[str, Any]:
    from .train import describe_plan

    return describe_plan(config)


def _show_train(result: dict[str, Any]) -> str:
    error = result["metrics"]["held_out_error"]
    return (
        f"{result['model']}: model {result['sha256'][:12]}, {result['steps']} steps, best at "
        f"{result['best_step']} (held-out error {error:.5f} of the noise variance)"
    )


def _apply(config: Any, control: Control) -> dict[str, Any]:
    from .apply_many import apply_many

    return apply_many(config, control)


def _apply_plan(config: Any) -> dict[str, Any]:
    from .apply_many import describe_plans

    return describe_plans(config)


def _show_apply(result: dict[str, Any]) -> str:
    if "movies" not in result:
        return f"{result['store']}: denoised with model {result['model']['id'][:12]}"
    failed = [m for m in result["movies"] if m["error"] is not None]
    done = f"{len(result['movies']) - len(failed)} of {len(result['movies'])} movies denoised"
    return "\n".join([done, *(f"failed ({m['exit_code']}): {m['error']}" for m in failed)])


def _archive(name: str) -> Callable[[Any, Control], dict[str, Any]]:
    def run(config: Any, control: Control) -> dict[str, Any]:
        from . import archive

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
    from .run import run

    return run(config, control)


def _show_run(result: dict[str, Any]) -> str:
    if "metrics" not in result:  # one step only
        return "\n".join(result.values())
    return "\n".join(
        [*_figures(result["metrics"]), f"denoised store: {result['denoised']}", f"report: {result['report']}"]
    )


def _evaluate(config: Any, control: Control) -> dict[str, Any]:
    from .evaluate import evaluate

    return evaluate(config, control)


def _show_evaluate(result: dict[str, Any]) -> str:
    return "\n".join(_figures(result))


def _figures(metrics: dict[str, Any]) -> list[str]:
    """The main figures of an evaluation, a line each."""
    from .words import summary

    return summary(metrics)


def _report(config: Any, control: Control) -> dict[str, Any]:
    from .report import write_report

    return {"report": str(config.output), "metrics": write_report(config, control)}


def _show_report(result: dict[str, Any]) -> str:
    return str(result["report"])


def _verify(config: Any, control: Control) -> dict[str, Any]:
    from .verify import verify

    return verify(config, control)


def _show_verify(result: dict[str, Any]) -> str:
    how = "decoded and compared" if result["deep"] else "found whole by their index"
    mended = f", {result['repaired']} damaged files mended" if result["repaired"] else ""
    return f"{result['store']}: {result['n_shards']} shards {how}{mended}"


def _status(config: Any, control: Control) -> dict[str, Any]:
    from .status import status

    return status(config)


def _show_status(result: dict[str, Any]) -> str:
    lines = [] if result["batch"] is None else _batch_lines(result["batch"])
    for item in result["outputs"]:
        share = "" if item["done"] is None else f", {item['done']} of {item['total']} blocks done"
        holder = f", held by {item['holder']}" if item["holder"] else ""
        lines.append(f"{item['output']}: {item['state']}{share}{holder}")
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
    from . import batch, submit
    from .resume import resume

    # Jobs of a batch run are queued again; what was begun without a batch system goes on in this process.
    return resume(config.output, control) if batch.find(config.output) is None else submit.resume(config)


def _show_resume(result: dict[str, Any]) -> str:
    if "resumed" in result:
        return (
            "\n".join(f"{output}: complete" for output in result["resumed"]) or "nothing is unfinished here"
        )
    return _show_submit(result) if result["jobs"] else f"{result['folder']}: nothing is missing"


def _show_submit(result: dict[str, Any]) -> str:
    jobs = [f"{job['kind']}: job {job['id']}" for job in result["jobs"]]
    where = f"tdenoise-pipeline status, logs, cancel or resume {result['folder']}"
    return "\n".join([*result.get("costs", []), *jobs, where])


def _cancel(config: Any, control: Control) -> dict[str, Any]:
    from .batch_status import cancel

    return cancel(config)


def _show_cancel(result: dict[str, Any]) -> str:
    ids = ", ".join(result["cancelled"])
    return f"cancelled: {ids}" if ids else "no job was there to cancel"


def _logs(config: Any, control: Control) -> dict[str, Any]:
    from .batch_status import logs

    for line in logs(config, control):
        print(line, flush=True)
    return {}


def _profiles_list(config: Any, control: Control) -> dict[str, Any]:
    from .site_profile import names, user_folder

    return {"profiles": names(), "user_folder": str(user_folder())}


def _show_profiles_list(result: dict[str, Any]) -> str:
    return "\n".join([*result["profiles"], f"your own: {result['user_folder']}"])


def _profiles_show(config: Any, control: Control) -> dict[str, Any]:
    from .slurm_checks import show_profile

    return show_profile(config.profile)


def _show_profiles_show(result: dict[str, Any]) -> str:
    lines = []
    for section, asks in result.items():
        shown = (f"{key}={value}" for key, value in asks.items() if value not in (None, ()))
        lines.append(f"{section:<8} {', '.join(shown)}")
    return "\n".join(lines)


def _profiles_check(config: Any, control: Control) -> dict[str, Any]:
    from .slurm_checks import check_profile

    return check_profile(config.profile)


def _show_profiles_check(result: dict[str, Any]) -> str:
    lines = []
    for section, job in result["jobs"].items():
        fine = "accepted" if result["scheduler"] == "slurm" else "nothing wrong was found"
        words = [f"wrong: {text}" for text in job["problems"]] or [fine]
        lines.append(f"{section:<8} " + "; ".join([*words, *job["notes"]]))
    return "\n".join(lines)


def _models_import(config: Any, control: Control) -> dict[str, Any]:
    from .models import import_model

    return {"model": str(config.output), **import_model(config)}


def _show_models_import(result: dict[str, Any]) -> str:
    return f"{result['model']}: model {result['sha256'][:12]}, imported from {result['imported']['name']}"


def _models_show(config: Any, control: Control) -> dict[str, Any]:
    from .models import show_model

    return show_model(config)


def _show_models_show(result: dict[str, Any]) -> str:
    from .models import summary

    return "\n".join(summary(result))


def _simulate(config: Any, control: Control) -> dict[str, Any]:
    from .simulate import write_simulation

    return write_simulation(config)


def _show_simulate(result: dict[str, Any]) -> str:
    return f"{result['raw']} and {result['truth']}"


def _doctor(config: Any, control: Control) -> dict[str, Any]:
    from .doctor import examine

    return examine(config)


def _show_doctor(result: dict[str, Any]) -> str:
    from .doctor import lines

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


class _Parser(argparse.ArgumentParser):
    """A parser whose errors are ours."""

    def error(self, message: str) -> NoReturn:
        raise UsageError(f"{message[0].lower()}{message[1:]}. See '{self.prog} --help'.")


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command; return its exit code."""
    words = list(sys.argv[1:] if arguments is None else arguments)
    debug = "--debug" in words
    try:
        return _main(words)
    except (PipelineError, KeyboardInterrupt, Exception) as error:
        if debug and not isinstance(error, KeyboardInterrupt):
            raise
        code, message = _explain(error)
        print(f"{PROGRAM}: {_one_line(message)}", file=sys.stderr)
        return code


def _one_line(text: str) -> str:
    """A text with what would break a line or a terminal spelled out: file names may hold anything."""
    return "".join(c if c.isprintable() else repr(c)[1:-1] for c in text)


def _main(words: list[str]) -> int:
    parser = _build_parser()
    if words and words[0] == "submit":
        return _submit(words[1:])
    name, options = _parse(parser, words)
    command = COMMANDS[name]
    config = _configure(command, options, name)
    _log_to_stderr(options)
    if options.get("dry_run"):
        if command.dry_run is None:
            raise UsageError(f"{name} has no dry run.")
        _print(command.dry_run(config), _show_plan, options)
        return 0
    with closing(_progress(options)) as progress:
        control = Control(progress=progress)
        with _Signals(control):
            result = command.run(config, control)
    if result:  # of several processes the first has it; logs prints as it goes
        _print(result, command.show, options)
    return int(result.get("exit_code", 0))


def _build_parser() -> _Parser:
    parser = _Parser(
        prog=PROGRAM, description="Denoise in situ electron microscopy movies.", allow_abbrev=False
    )
    parser.add_argument("--version", action="store_true", help="print the version and exit")
    commands = parser.add_subparsers(dest="command", metavar="COMMAND", title="commands")
    for name, command in COMMANDS.items():
        summary = (command.config.__doc__ or "").splitlines()[0]
        sub = commands.add_parser(
            name, help=summary, description=summary, allow_abbrev=False, argument_default=argparse.SUPPRESS
        )
        for field in sorted(dataclasses.fields(command.config), key=_is_required, reverse=True):
            _add_argument(sub, field)
        sub.add_argument("-c", "--config", metavar="FILE.yaml", help="read settings from a file; flags win")
        if command.dry_run is not None:
            sub.add_argument("-n", "--dry-run", action="store_true", help="print the plan and do nothing")
        sub.add_argument("--json", action="store_true", help="print one JSON object")
        sub.add_argument("-q", "--quiet", action="store_true", help="no progress")
        sub.add_argument("-v", "--verbose", action="store_true", help="more messages")
        sub.add_argument("--debug", action="store_true", help="show tracebacks")
    commands.add_parser(
        "submit", help="Queue ingest, train, apply or run as a Slurm batch job.", add_help=False
    )
    return parser


def _flag(field: dataclasses.Field[Any]) -> str:
    return field.metadata["flag"] or "--" + field.name.replace("_", "-")


def _is_required(field: dataclasses.Field[Any]) -> bool:
    return field.default is dataclasses.MISSING


def _add_argument(parser: argparse.ArgumentParser, field: dataclasses.Field[Any]) -> None:
    meta = field.metadata
    text = meta["help"]
    if not _is_required(field) and field.default not in (None, False):
        text += f" (default: {field.default})"
    options: dict[str, Any] = {"help": text, "dest": field.name}
    if meta["positional"]:
        del options["dest"]
        # Optional here, for a --config file may hold it; missing ones are named in _configure.
        options["nargs"] = "*" if _takes_several(field) else "?"
        parser.add_argument(field.name, metavar=meta["metavar"], **options)
    elif isinstance(field.default, bool):
        parser.add_argument(_flag(field), action="store_const", const="true", **options)
    else:
        names = [meta["short"], _flag(field)] if meta["short"] else [_flag(field)]
        metavar = meta["metavar"] or ("|".join(meta["choices"]) if meta["choices"] else "VALUE")
        parser.add_argument(*names, metavar=metavar, **options)


def _takes_several(field: dataclasses.Field[Any]) -> bool:
    return str(field.type).startswith(("tuple[Path", "tuple[str"))


def _parse(parser: _Parser, words: list[str]) -> tuple[str, dict[str, Any]]:
    first = words[0].partition("=")[0] if words else ""
    if first.startswith("-") and first not in ("-h", "--help", "--version"):
        _refuse_old(first)
        raise UsageError(f"{first!r} is not known before a command. See '{PROGRAM} --help'.")
    if " ".join(words[:2]) in COMMANDS:  # a command of two words
        words = [" ".join(words[:2]), *words[2:]]
    options, unknown = parser.parse_known_args(words)
    values = vars(options)
    if values.pop("version", False):
        from importlib.metadata import version

        print(f"tdenoise {version('tdenoise')}")
        raise SystemExit(0)
    name = values.pop("command", None)
    if name is None:
        parser.print_help()
        raise SystemExit(2)
    if unknown:
        flag = unknown[0].partition("=")[0]
        _refuse_old(flag)
        known = [_flag(f) for f in dataclasses.fields(COMMANDS[name].config)]
        close = difflib.get_close_matches(flag, known, 1)
        hint = f" Did you mean {close[0]}?" if close else f" See '{PROGRAM} {name} --help'."
        raise UsageError(f"{name} does not know {flag!r}.{hint}")
    return name, values


def _refuse_old(flag: str) -> None:
    if flag in OLD_FLAGS:
        raise UsageError(f"{flag} belongs to the old script; {OLD_FLAGS[flag]}.")


def _configure(command: Command, options: dict[str, Any], name: str) -> Any:
    """Settings from the defaults, the --config file and the flags, the later ones winning."""
    return _configured(command, _given(command, options, name), name)


def _given(command: Command, options: dict[str, Any], name: str) -> dict[str, tuple[Any, str]]:
    """What the --config file and the flags say, as text, and where each comes from."""
    fields = {f.name: f for f in dataclasses.fields(command.config)}
    given: dict[str, tuple[Any, str]] = {}
    if "config" in options:
        path = Path(options["config"])
        names = {_flag(f).removeprefix("--").replace("-", "_"): f.name for f in fields.values()}
        for key, value in settings.read_yaml(path).items():
            plain = key.replace("-", "_")
            if plain not in names:
                close = difflib.get_close_matches(plain, names, 1)
                hint = f" Did you mean {close[0]}?" if close else f" Known: {', '.join(sorted(names))}."
                raise UsageError(f"{path}: unknown setting {key!r} for {name}.{hint}")
            if value not in (None, []):
                given[names[plain]] = (value, f"{path}: {key}")
    for key in fields:
        if options.get(key) not in (None, []):
            given[key] = (options[key], _flag(fields[key]) if not fields[key].metadata["positional"] else key)
    return given


def _configured(command: Command, given: dict[str, tuple[Any, str]], name: str) -> Any:
    """The settings, checked."""
    fields = {f.name: f for f in dataclasses.fields(command.config)}
    missing = [f for f in fields.values() if _is_required(f) and f.name not in given]
    if missing:
        shown = missing[0].metadata["metavar"] if missing[0].metadata["positional"] else _flag(missing[0])
        raise UsageError(
            f"{name} needs {shown}: {missing[0].metadata['help']}. See '{PROGRAM} {name} --help'."
        )
    return command.config(
        **{key: _convert(fields[key], value, origin) for key, (value, origin) in given.items()}
    )


def _convert(field: dataclasses.Field[Any], value: str | list[str], origin: str) -> Any:
    meta = field.metadata
    if _takes_several(field):
        return tuple(meta["parse"](v) for v in (value if isinstance(value, list) else [value]))
    if isinstance(value, list):
        raise UsageError(f"{origin} is a list of {len(value)}: give one value.")
    text = value
    if meta["choices"] and text not in meta["choices"]:
        raise UsageError(f"{origin} {text!r}: it is one of {', '.join(meta['choices'])}.")
    try:
        return meta["parse"](text)
    except ValueError as error:
        raise UsageError(f"{origin} {text!r} is not valid: {error}.") from None


def _submit(words: list[str]) -> int:
    """Queue another command as batch jobs, or print their scripts and what they cost."""
    dry = "--print" in words
    words = [w for w in words if w != "--print"]
    profile, changes = None, []
    while words and words[0].partition("=")[0] in ("--profile", "--set"):
        flag, equals, value = words.pop(0).partition("=")
        if not equals:
            if not words:
                raise UsageError(f"submit {flag} needs a value.")
            value = words.pop(0)
        if flag == "--profile":
            profile = Path(value)
        else:
            changes.append(value)
    if not words or words[0] not in SUBMITTABLE:
        if words[:1] in (["-h"], ["--help"]):
            print(
                f"usage: {PROGRAM} submit [--profile NAME] [--set KEY=VALUE]... {{{','.join(SUBMITTABLE)}}} ... "
                "[--print]\n\n"
                "Queue a command as Slurm batch jobs; run becomes one job for each step. --profile describes the jobs\n"
                "(see profiles list; local runs them on this machine, in the background), --set changes a line of it\n"
                "(--set time=08:00:00 --set train.gpus=a100:2); --print or --dry-run shows the scripts and what they\n"
                "cost, and submits nothing."
            )
            return 0
        raise UsageError(f"submit is followed by one of {', '.join(SUBMITTABLE)} and its arguments.")
    # Wrong arguments are found now, not when the job starts.
    name, options = _parse(_build_parser(), words)
    dry = options.pop("dry_run", False) or dry
    command = COMMANDS[name]
    given = _given(command, options, name)
    if profile is None and "profile" in given:
        profile = Path(given["profile"][0])
    elif profile is not None and "profile" in {f.name for f in dataclasses.fields(command.config)}:
        given.setdefault("profile", (str(profile), "--profile"))  # worker jobs are described by it, too
    config = _configured(command, given, name)
    if isinstance(config, settings.RunConfig):
        from .run import check

        check(config)
    elif isinstance(config, settings.ApplyManyConfig):
        from .cluster import parse_workers

        parse_workers(config.workers, insecure=config.insecure)
    from . import submit
    from .costs import sizes

    # From the settings as they are now: a --config file may be another one when the job starts.
    resolved = _words(command, given, name, options)
    submission = submit.plan(name, resolved, config, profile, changes)
    costs = submit.estimate(submission, sizes(config))
    if dry:
        answer = {"costs": costs, "jobs": submit.preview(submission)}
        _print(answer, _show_scripts, options)
        return 0
    answer = submit.submit(submission, {key: value for key, (value, _) in given.items()}) | {"costs": costs}
    _print(answer, _show_submit, options)
    return 0


def _show_scripts(answer: dict[str, Any]) -> str:
    """Scripts that could be copied, with what is not part of them as comments."""
    texts = [
        job["script"] + (f"# queued with {job['after']}\n" if job["after"] else "") for job in answer["jobs"]
    ]
    return "\n".join([*texts, *(f"# {line}" for line in answer["costs"])])


def _words(command: Command, given: dict[str, Any], name: str, options: dict[str, Any]) -> list[str]:
    """The command line that gives these settings, whatever their values hold."""
    words = name.split()
    for field in dataclasses.fields(command.config):
        if field.name not in given:
            continue
        value, _ = given[field.name]
        values = value if isinstance(value, list) else [value]
        if field.metadata["positional"]:
            # A name that begins with a dash would be taken for a flag.
            words += [f"./{v}" if v.startswith("-") else v for v in values]
        elif isinstance(field.default, bool):
            words += [_flag(field)] if field.metadata["parse"](value) else []
        else:
            words += [f"{_flag(field)}={v}" for v in values]
    return [*words, *(f"--{key}" for key in ("verbose", "debug") if options.get(key))]


def _explain(error: BaseException) -> tuple[int, str]:
    """Exit code and one line for an error."""
    if isinstance(error, PipelineError):
        return error.exit_code, str(error)
    if isinstance(error, KeyboardInterrupt):
        return 130, "interrupted twice; run the same command again to continue"
    if isinstance(error, OSError):
        import errno

        where = f"{error.filename}: " if error.filename else ""
        reason = error.strerror or str(error)
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            advice = "free some space, then run the same command again to continue"
            return (
                ResourceError.exit_code,
                f"{where}the disk is full or your quota is used up ({reason}); {advice}",
            )
        return 1, f"{where}{reason[:1].lower()}{reason[1:]}. Check the path and your permissions"
    if isinstance(error, MemoryError) or type(error).__name__ == "OutOfMemoryError":
        return ResourceError.exit_code, f"out of memory ({error}). Use fewer workers or a smaller --tile"
    kind = type(error).__name__
    return (
        1,
        f"this should not have happened ({kind}: {error}). Run again with --debug and report what it shows",
    )


def _print(result: dict[str, Any], show: Callable[[dict[str, Any]], str], options: dict[str, Any]) -> None:
    text = json.dumps(result, sort_keys=True) if options.get("json") else show(result)
    print("\n".join(map(_one_line, text.split("\n"))))


def _show_plan(plan: dict[str, Any]) -> str:
    width = max(map(len, plan))
    return "\n".join(f"{key:<{width}}  {value}" for key, value in plan.items() if key != "metadata")


def _log_to_stderr(options: dict[str, Any]) -> None:
    level = logging.INFO if options.get("verbose") else logging.WARNING
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(logging.Formatter("%(message)s"))
    # Our own loggers only: Dask and Zarr tell their inner life.
    for package in ("tdenoise", "tdenoise_pipeline"):
        logger = logging.getLogger(package)
        logger.handlers = [handler]
        logger.setLevel(logging.ERROR if options.get("quiet") else level)
    logging.getLogger("tifffile").setLevel(logging.CRITICAL)  # it logs what it also raises


def _progress(options: dict[str, Any]) -> _Silence:
    if options.get("quiet"):
        return _Silence()
    return _Bar() if sys.stderr.isatty() else _Lines()


class _Silence:
    """No progress. Also what every progress has: a call, and a close that leaves the terminal as it was."""

    def __call__(self, what: str, done: int, total: int) -> None:
        return None

    def close(self) -> None:
        return None


class _Lines(_Silence):
    """One line every half minute, for logs."""

    def __init__(self) -> None:
        self._began: dict[str, tuple[float, int]] = {}
        self._last = 0.0

    def __call__(self, what: str, done: int, total: int) -> None:
        now = time.monotonic()
        began, first = self._began.setdefault(what, (now, done))
        if done < total and now - self._last < LOG_LINE_S and now != began:
            return
        self._last = now
        left = _remaining(now - began, done - first, total - done)
        print(
            f"{time.strftime('%H:%M:%S')} {what} {100 * done / total:.1f} %{left}",
            file=sys.stderr,
            flush=True,
        )


class _Bar(_Silence):
    """A bar with the time that is left, on a terminal."""

    def __init__(self) -> None:
        from rich.console import Console
        from rich.progress import (
            BarColumn,
            Progress,
            TaskID,
            TaskProgressColumn,
            TextColumn,
            TimeRemainingColumn,
        )

        self._bars = Progress(
            TextColumn("{task.description}"),
            BarColumn(),
            TaskProgressColumn(),
            TimeRemainingColumn(elapsed_when_finished=True),
            console=Console(stderr=True),
        )
        self._tasks: dict[str, TaskID] = {}

    def __call__(self, what: str, done: int, total: int) -> None:
        if what not in self._tasks:
            self._bars.start()
            self._tasks[what] = self._bars.add_task(what, total=total, completed=done)
        self._bars.update(self._tasks[what], completed=done, total=total)
        if all(task.finished for task in self._bars.tasks):
            self._bars.stop()

    def close(self) -> None:
        self._bars.stop()  # shows the cursor again


def _remaining(elapsed_s: float, done: int, left: int) -> str:
    if done <= 0 or left <= 0:
        return ""
    minutes, rest = divmod(round(elapsed_s / done * left), 60)
    return f", {minutes // 60}:{minutes % 60:02d}:{rest:02d} left"


class _Signals:
    """Turn the first signal into a stop request, and a second Ctrl-C into an end at once."""

    def __init__(self, control: Control) -> None:
        self._control = control
        self._before: dict[int, Any] = {}

    def __enter__(self) -> None:
        for number in (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1):
            self._before[number] = signal.signal(number, self._handle)

    def __exit__(self, *_: object) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)
        if self._control.stop.is_set():
            signal.signal(signal.SIGINT, signal.SIG_IGN)  # an impatient Ctrl-C must not change the exit code

    def _handle(self, number: int, frame: object) -> None:
        if number == signal.SIGINT and self._control.stop.is_set():
            raise KeyboardInterrupt
        self._control.stop.set()
        print("stopping once the work in hand is done; Ctrl-C again stops now", file=sys.stderr)


if __name__ == "__main__":
    sys.exit(main())
