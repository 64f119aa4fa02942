"""The parser of the command line, made from the settings; a command's own part only when it is asked for."""

from __future__ import annotations

import argparse
import dataclasses
from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal, NoReturn, get_args, get_origin, get_type_hints

from ..errors import UsageError
from ..settings.fields import flag_of, is_required, takes_several
from .commands import COMMANDS, GROUPS, PURPOSES, SUBMITTABLE, SUMMARIES
from .suggestions import PROGRAM
from .terminal import say

GENERAL = "general"
# What shtab completes with the names of files.
_FILES = {"bash": "_shtab_compgen_files", "zsh": "_files", "tcsh": "f"}


class Parser(argparse.ArgumentParser):
    """A parser whose errors are ours, and that fills itself when it is first needed."""

    def __init__(self, *, fill: Callable[[Parser], None] | None = None, **options: Any) -> None:
        super().__init__(allow_abbrev=False, argument_default=argparse.SUPPRESS, add_help=False, **options)
        self._fill = fill

    def filled(self) -> Parser:
        """This parser with all its arguments."""
        if self._fill is not None:
            fill, self._fill = self._fill, None
            fill(self)
        return self

    def parse_known_args(self, args: Any = None, namespace: Any = None) -> Any:
        return super(Parser, self.filled()).parse_known_args(args, namespace)

    def format_help(self) -> str:
        return super(Parser, self.filled()).format_help()

    def error(self, message: str) -> NoReturn:
        raise UsageError(f"{message[0].lower()}{message[1:].rstrip('.')}. See '{self.prog} --help'.")

    def _print_message(self, message: str, file: Any = None) -> None:
        say(message.rstrip("\n"))


def build_parser() -> Parser:
    """The parser of all commands."""
    parser = Parser(
        prog=PROGRAM,
        usage=f"{PROGRAM} COMMAND ... [options]",
        description="Denoise in situ electron microscopy movies.",
        epilog=_overview(),
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    general = parser.add_argument_group(GENERAL)
    _add_help(general)
    general.add_argument("--version", action="store_true", help="show the version")
    _add_verbosity(general)
    # The epilog lists the commands, grouped by what they are for.
    commands = parser.add_subparsers(
        dest="command", metavar="COMMAND", help=argparse.SUPPRESS, parser_class=Parser
    )
    groups: dict[str, Any] = {}
    for name in SUMMARIES:
        if name in GROUPS:
            inner = _add(commands, name, _show_group)
            groups[name] = inner.add_subparsers(
                title="commands", dest="verb", metavar="COMMAND", parser_class=Parser
            )
            inner.usage = f"{PROGRAM} {name} COMMAND ... [options]"
        elif name in COMMANDS:
            _add(commands, name, _fill_command(name))
        else:
            _add(commands, name, _FILL[name])
    for name, command in COMMANDS.items():
        group, _, verb = name.partition(" ")
        if verb:
            groups[group].add_parser(
                verb,
                prog=f"{PROGRAM} {name}",
                help=command.summary,
                description=command.summary,
                fill=_fill_command(name),
            )
    return parser


def _add(commands: Any, name: str, fill: Callable[[Parser], None]) -> Any:
    summary = SUMMARIES[name]
    return commands.add_parser(name, prog=f"{PROGRAM} {name}", help=summary, description=summary, fill=fill)


def _overview() -> str:
    """All commands with a sentence each, under what a user wants to do."""
    width = max(map(len, SUMMARIES))
    lines = []
    for purpose, names in PURPOSES.items():
        lines += [f"{purpose}:", *(f"  {name:<{width}}  {SUMMARIES[name]}" for name in names), ""]
    return "\n".join([*lines, f"'{PROGRAM} COMMAND --help' shows the options of a command."])


def _fill_command(name: str) -> Callable[[Parser], None]:
    def fill(parser: Parser) -> None:
        command = COMMANDS[name]
        fields = dataclasses.fields(command.config)
        hints = get_type_hints(command.config, include_extras=True)
        parser.usage = f"{parser.prog} {_usage(fields)}"
        titles = dict.fromkeys(["what to read", *(field.metadata["group"] for field in fields)])
        groups = {title: parser.add_argument_group(title) for title in filter(None, titles)}
        for field in sorted(fields, key=is_required, reverse=True):
            title = "what to read" if field.metadata["positional"] else field.metadata["group"]
            _add_argument(groups[title], field, hints[field.name])
        general = parser.add_argument_group(GENERAL)
        _add_help(general)
        general.add_argument(
            "-c", "--config", metavar="FILE.yaml", help="read settings from a file; flags override it"
        )
        if command.dry_run is not None:
            general.add_argument(
                "-n", "--dry-run", action="store_true", help="show the plan and change nothing"
            )
        _add_verbosity(general)

    return fill


def _usage(fields: tuple[dataclasses.Field[Any], ...]) -> str:
    """What has to be given, as it is typed."""
    words: list[str] = []
    for field in fields:
        metavar = field.metadata["metavar"]
        if field.metadata["positional"]:
            word = f"{metavar} ..." if takes_several(field) else metavar
            words.insert(0, word if is_required(field) else f"[{word}]")
        elif is_required(field):
            words.append(f"{field.metadata['short'] or flag_of(field)} {metavar}")
    return " ".join([*words, "[options]"])


def _add_argument(group: Any, field: dataclasses.Field[Any], hint: Any) -> None:
    meta = field.metadata
    text = meta["description"].replace("%", "%%")
    default = meta["default_text"] or field.default
    if is_required(field):
        text += " (required)"
    elif default is not None and not isinstance(default, bool):
        text += f" (default: {default})".replace("%", "%%")
    metavar = meta["metavar"] or "|".join(_choices(hint)) or "VALUE"
    if meta["positional"]:
        # Optional for the parser: a --config file may hold it. What is missing is named later.
        nargs = "*" if takes_several(field) else "?"
        action = group.add_argument(field.name, metavar=metavar, nargs=nargs, help=text)
    elif isinstance(field.default, bool):
        group.add_argument(flag_of(field), dest=field.name, action=argparse.BooleanOptionalAction, help=text)
        return
    else:
        names = [meta["short"], flag_of(field)] if meta["short"] else [flag_of(field)]
        several = {"action": "extend", "nargs": 1} if takes_several(field) else {}  # given again, it adds
        action = group.add_argument(*names, dest=field.name, metavar=metavar, help=text, **several)
    if Path in _types(hint):
        action.complete = _FILES


def _types(hint: Any) -> set[Any]:
    """All plain types that a hint is made of."""
    inner = [each for part in get_args(hint) for each in _types(part)] if get_args(hint) else []
    return {hint if get_origin(hint) is None else get_origin(hint), *inner} if _hashable(hint) else set(inner)


def _hashable(hint: Any) -> bool:
    return isinstance(hint, type) or get_origin(hint) is not None


def _choices(hint: Any) -> list[str]:
    """The words that a setting may be; none where it may be anything."""
    if get_origin(hint) is Literal:
        return [str(word) for word in get_args(hint)]
    return next((found for part in get_args(hint) if (found := _choices(part))), [])


def _add_help(group: Any) -> None:
    group.add_argument("-h", "--help", action="help", help="show this help")


def _add_verbosity(group: Any) -> None:
    group.add_argument("--json", action="store_true", help="print one JSON object")
    group.add_argument("-q", "--quiet", action="store_true", help="show no progress")
    group.add_argument("-v", "--verbose", action="store_true", help="show more messages")
    group.add_argument("--debug", action="store_true", help="show tracebacks of errors")


def _show_group(parser: Parser) -> None:
    _add_help(parser.add_argument_group(GENERAL))


def _fill_submit(parser: Parser) -> None:
    parser.usage = (
        f"{parser.prog} [--profile NAME] [--set KEY=VALUE] [--print] {{{','.join(SUBMITTABLE)}}} ..."
    )
    jobs = parser.add_argument_group("jobs")
    jobs.add_argument(
        "--profile",
        metavar="NAME",
        help="name or YAML file of the profile that describes the jobs; local runs them on this machine, in the "
        "background ('profiles list' shows all)",
    )
    jobs.add_argument(
        "--set",
        dest="changes",
        action="append",
        metavar="KEY=VALUE",
        help="change a line of the profile, such as time=8h or train.gpus=a100:2; can be repeated",
    )
    jobs.add_argument(
        "--print", action="store_true", help="show the scripts and what they cost, and submit nothing"
    )
    jobs.add_argument("-n", "--dry-run", action="store_true", help="the same as --print")
    jobs.add_argument(
        "words",
        nargs=argparse.REMAINDER,
        metavar="COMMAND ...",
        help=f"one of {', '.join(SUBMITTABLE)}, and its arguments; run becomes one job for each step",
    )
    general = parser.add_argument_group(GENERAL)
    _add_help(general)
    _add_verbosity(general)


def _fill_completion(parser: Parser) -> None:
    parser.usage = f"{parser.prog} {{bash,zsh,tcsh}}"
    parser.description = (
        "Print a script that completes commands and options when you press Tab. For bash, add this line to ~/.bashrc: "
        f'eval "$({PROGRAM} completion bash)"'
    )
    group = parser.add_argument_group("what to print")
    group.add_argument("shell", choices=("bash", "zsh", "tcsh"), help="your shell")
    _add_help(parser.add_argument_group(GENERAL))


def _fill_help(parser: Parser) -> None:
    parser.usage = f"{parser.prog} [COMMAND ...]"
    group = parser.add_argument_group("what to show")
    group.add_argument("words", nargs="*", metavar="COMMAND", help="a command, such as ingest or archive add")
    _add_help(parser.add_argument_group(GENERAL))


_FILL = {"submit": _fill_submit, "completion": _fill_completion, "help": _fill_help}


def completion(parser: Parser, shell: str) -> str:
    """The script that completes all commands and options in a shell."""
    import shtab

    _open_all(parser)
    script: str = shtab.complete(parser, shell)
    return script


def _open_all(parser: Parser) -> None:
    """Fill a parser and all those within it, and hide none of them."""
    for action in parser.filled()._actions:
        if isinstance(action, argparse._SubParsersAction):
            action.help = None
            for inner in action.choices.values():
                _open_all(inner)
