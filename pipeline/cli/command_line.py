"""The command line ``tdenoise-pipeline``: parse, run one step, print."""

from __future__ import annotations

import dataclasses
import difflib
import json
import sys
from collections.abc import Callable, Sequence
from contextlib import closing
from pathlib import Path
from typing import Any

from ..errors import PipelineError, ResourceError, Stopped, UsageError
from ..files.write_errors import of_writing
from ..settings.fields import flag_of, is_required, takes_several
from ..step_control import Control
from . import show
from .commands import COMMANDS, GROUPS, SUBMITTABLE, SUMMARIES, Command
from .parser import Parser, build_parser, completion
from .suggestions import PROGRAM, refuse_command, refuse_flag, refuse_old
from .terminal import Signals, log_to_stderr, one_line, say, shown_progress, tell

# Flags that may stand before the command, too.
EARLY = ("-h", "--help", "--version", "--json", "-q", "--quiet", "-v", "--verbose", "--debug")


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
        tell(f"{PROGRAM}: {one_line(message)}")
        return code


def _main(words: list[str]) -> int:
    name, options = _parse(build_parser(), words)
    if name == "submit":
        return _submit(options)
    command = COMMANDS[name]
    config = _configure(command, options, name)
    log_to_stderr(options)
    if options.get("dry_run"):
        assert command.dry_run is not None  # the parser gives the flag to no other
        _print(command.dry_run(config), show.plan, options)
        return 0
    with closing(shown_progress(options)) as progress:
        control = Control(progress=progress, note=progress.note)
        with Signals(control):
            result = command.run(config, control)
    if result:  # of several processes the first has it; logs prints as it goes
        _print(result, command.show, options)
    return int(result.get("exit_code", 0))


def _parse(parser: Parser, words: list[str]) -> tuple[str, dict[str, Any]]:
    """The command and its options; help, versions and completions are answered here."""
    _check_first(words)
    options, unknown = parser.parse_known_args(words)
    values = vars(options)
    if values.pop("version", False):
        from importlib.metadata import version

        say(f"tdenoise {version('tdenoise')}")
        raise SystemExit(0)
    name = values.pop("command", None)
    if name is None:
        parser.print_help()
        raise SystemExit(2)
    if name in GROUPS:
        verb = values.pop("verb", None)
        if verb is None:
            _show_help(parser, [name])
        name = f"{name} {verb}"
    if name == "help":
        _show_help(parser, values.get("words", []))
    if unknown:
        _refuse(name, unknown)
    if name == "completion":
        say(completion(parser, values["shell"]))
        raise SystemExit(0)
    return name, values


def _check_first(words: list[str]) -> None:
    """Refuse what is no command before argparse lists all that there are."""
    rest = list(words)
    while rest and rest[0] in EARLY:
        rest.pop(0)
    if not rest:
        return
    if rest[0].startswith("-"):
        flag = rest[0].partition("=")[0]
        refuse_old(flag)
        raise UsageError(f"{flag!r} is not known before a command. See '{PROGRAM} --help'.")
    if rest[0] not in SUMMARIES:
        refuse_command(rest)
    verb = rest[1] if len(rest) > 1 else "-"
    if rest[0] in GROUPS and not verb.startswith("-") and f"{rest[0]} {verb}" not in COMMANDS:
        refuse_command(rest)


def _refuse(name: str, unknown: list[str]) -> None:
    if unknown[0].startswith("-") and name in COMMANDS:
        refuse_flag(name, unknown[0].partition("=")[0])
    elif name in COMMANDS:
        first = next((f for f in dataclasses.fields(COMMANDS[name].config) if f.metadata["positional"]), None)
        if first is not None and takes_several(first):
            raise UsageError(
                f"{name} needs all names in one place, but {unknown[0]!r} comes after an option."
            )
        raise UsageError(
            f"{name} takes only one name, and {unknown[0]!r} is another. Write a name with spaces, and a "
            "pattern such as "
            "'frames/*.tif', in quotes."
        )
    raise UsageError(f"{name} does not know {unknown[0]!r}. See '{PROGRAM} {name} --help'.")


def _show_help(parser: Parser, words: list[str]) -> None:
    """Show the help of a command, of a group of them, or of all."""
    if words:
        _check_first(words[:2])
    parser.parse_known_args([*words[:2], "--help"])  # ends the program


def _configure(command: Command, options: dict[str, Any], name: str) -> Any:
    """Settings from the defaults, the --config file and the flags, the later ones winning."""
    return _configured(command, _given(command, options, name), name)


def _given(command: Command, options: dict[str, Any], name: str) -> dict[str, tuple[Any, str]]:
    """What the --config file and the flags say, and where each comes from."""
    fields = {f.name: f for f in dataclasses.fields(command.config)}
    given: dict[str, tuple[Any, str]] = {}
    if "config" in options:
        from ..settings.yaml_file import read_yaml

        path = Path(options["config"])
        names = {flag_of(f).removeprefix("--").replace("-", "_"): f.name for f in fields.values()}
        for key, value in read_yaml(path).items():
            plain = key.replace("-", "_")
            if plain not in names:
                close = difflib.get_close_matches(plain, names, 1)
                hint = f" Did you mean {close[0]}?" if close else f" Known: {', '.join(sorted(names))}."
                raise UsageError(f"{path}: unknown setting {key!r} for {name}.{hint}")
            if value not in (None, []):
                given[names[plain]] = (value, f"{path}: {key}")
    for key, field in fields.items():
        if options.get(key) not in (None, []):
            given[key] = (options[key], key if field.metadata["positional"] else flag_of(field))
    return given


def _configured(command: Command, given: dict[str, tuple[Any, str]], name: str) -> Any:
    """The settings, checked."""
    from ..settings.setting import SettingError, shown

    fields = {f.name: f for f in dataclasses.fields(command.config)}

    def missing(key: str) -> UsageError:
        meta = fields[key].metadata
        what = meta["metavar"] if meta["positional"] else flag_of(fields[key])
        return UsageError(f"{name} needs {what}: {meta['description']}. See '{PROGRAM} {name} --help'.")

    for key, field in fields.items():
        if key not in given:
            if is_required(field):
                raise missing(key)
            continue
        value, origin = given[key]
        if isinstance(value, dict):
            raise UsageError(f"{origin} holds names and values of its own. Give one value.")
        if isinstance(value, list) and not takes_several(field):
            raise UsageError(f"{origin} is a list of {len(value)}. Give one value.")
    try:
        return command.config(**{key: value for key, (value, _) in given.items()})
    except SettingError as error:
        if error.name not in given:  # needed, unless another setting says it
            raise missing(error.name) from None
        if not error.reason:  # the sentence says all, such as of two settings that belong together
            raise UsageError(str(error)) from None
        value, origin = given[error.name]
        raise UsageError(f"{origin} {shown(value)} is not valid: {error.reason}.") from None


def _submit(options: dict[str, Any]) -> int:
    """Queue another command as batch jobs, or print their scripts and what they cost."""
    words = options["words"]
    dry = options.get("print", False) or options.get("dry_run", False) or "--print" in words
    words = [word for word in words if word != "--print"]
    if not words or words[0] not in SUBMITTABLE:
        raise UsageError(f"submit needs one of {', '.join(SUBMITTABLE)}, followed by its arguments.")
    profile = Path(options["profile"]) if "profile" in options else None
    # Wrong arguments are found now, not when the job starts.
    name, inner = _parse(build_parser(), words)
    options = {**options, **inner}
    dry = inner.pop("dry_run", False) or dry
    command = COMMANDS[name]
    given = _given(command, inner, name)
    if profile is None and "profile" in given:
        profile = Path(given["profile"][0])
    elif profile is not None and "profile" in {f.name for f in dataclasses.fields(command.config)}:
        given.setdefault("profile", (str(profile), "--profile"))  # worker jobs are described by it, too
    config = _configured(command, given, name)
    from ..jobs import submit
    from ..settings.denoise_settings import RunConfig
    from ..workflow.costs import sizes

    if isinstance(config, RunConfig):
        from ..workflow.run import check

        check(config)
    # From the settings as they are now: a --config file may be another one when the job starts.
    resolved = _words(command, given, name, inner)
    submission = submit.plan(name, resolved, config, profile, options.get("changes", []))
    costs = submit.estimate(submission, sizes(config))
    if dry:
        answer = {"costs": costs, "jobs": submit.preview(submission)}
        _print(answer, show.scripts, options)
        return 0
    answer = submit.submit(submission, {key: value for key, (value, _) in given.items()}) | {"costs": costs}
    _print(answer, show.submit, options)
    return 0


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
            words += [flag_of(field)] if str(value).lower() == "true" else []
        else:
            words += [f"{flag_of(field)}={v}" for v in values]
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
    if isinstance(error, OSError) and (named := of_writing(error)) is not None:
        return named.exit_code, str(named)
    if isinstance(error, OSError):
        where = f"{error.filename}: " if error.filename else ""
        reason = error.strerror or str(error)
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
    say("\n".join(map(one_line, text.split("\n"))))
