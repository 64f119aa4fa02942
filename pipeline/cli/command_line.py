"""The command line ``tdenoise-pipeline``: parse, run one step, print."""

from __future__ import annotations

import argparse
import dataclasses
import difflib
import json
import sys
from collections.abc import Callable, Sequence
from contextlib import closing
from pathlib import Path
from typing import Any, NoReturn

from ..errors import PipelineError, ResourceError, Stopped, UsageError
from ..settings.config import ApplyManyConfig, RunConfig
from ..settings.parse import read_yaml
from ..step_control import Control
from .commands import COMMANDS, SUBMITTABLE, Command, show_submit
from .terminal import Signals, log_to_stderr, one_line, shown_progress

PROGRAM = "tdenoise-pipeline"

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
        print(f"{PROGRAM}: {one_line(message)}", file=sys.stderr)
        return code


def _main(words: list[str]) -> int:
    parser = _build_parser()
    if words and words[0] == "submit":
        return _submit(words[1:])
    name, options = _parse(parser, words)
    command = COMMANDS[name]
    config = _configure(command, options, name)
    log_to_stderr(options)
    if options.get("dry_run"):
        if command.dry_run is None:
            raise UsageError(f"{name} has no dry run.")
        _print(command.dry_run(config), _show_plan, options)
        return 0
    with closing(shown_progress(options)) as progress:
        control = Control(progress=progress)
        with Signals(control):
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
        if not unknown[0].startswith("-"):
            raise UsageError(
                f"{name} takes one name, and {unknown[0]!r} is one more. If the shell made them of a pattern, write it "
                "in quotes, as in 'frames/*.tif'."
            )
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
        for key, value in read_yaml(path).items():
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
    if isinstance(config, RunConfig):
        from ..workflow.run import check

        check(config)
    elif isinstance(config, ApplyManyConfig):
        from ..workers.cluster import parse_workers

        parse_workers(config.workers, insecure=config.insecure)
    from ..jobs import submit
    from ..workflow.costs import sizes

    # From the settings as they are now: a --config file may be another one when the job starts.
    resolved = _words(command, given, name, options)
    submission = submit.plan(name, resolved, config, profile, changes)
    costs = submit.estimate(submission, sizes(config))
    if dry:
        answer = {"costs": costs, "jobs": submit.preview(submission)}
        _print(answer, _show_scripts, options)
        return 0
    answer = submit.submit(submission, {key: value for key, (value, _) in given.items()}) | {"costs": costs}
    _print(answer, show_submit, options)
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
    if (
        type(error).__module__.partition(".")[0] == "distributed"
    ):  # many of its errors are OSErrors, of no file
        return (
            Stopped.exit_code,
            f"the connection to the workers broke ({error}). Run the same command again to continue",
        )
    if isinstance(error, OSError):
        import errno

        where = f"{error.filename}: " if error.filename else ""
        reason = error.strerror or str(error)
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            advice = "free some space, then run the same command again to continue"
            return (
                ResourceError.exit_code,
                f"{where}the disk is full, can hold no more files, or your quota is used up ({reason}); {advice}",
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
    print("\n".join(map(one_line, text.split("\n"))))


def _show_plan(plan: dict[str, Any]) -> str:
    width = max(map(len, plan))
    return "\n".join(f"{key:<{width}}  {value}" for key, value in plan.items() if key != "metadata")
