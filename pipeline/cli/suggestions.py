"""What a user most likely meant by a command or a flag that there is not."""

from __future__ import annotations

import dataclasses
import difflib
from pathlib import Path

from ..errors import UsageError
from ..settings.fields import flag_of
from .commands import COMMANDS, GROUPS, SUMMARIES

PROGRAM = "tdenoise-pipeline"

# Flags of the script that this tool replaces, and what to write instead.
OLD_FLAGS = {
    "--data": "the raw movie is the first argument: run RAW -o FOLDER",
    "--num-epochs": "use --steps N, the number of training steps",
    "--epochs": "use --steps N, the number of training steps",
    "--batch-size": "you do not need it: the batch is fixed",
    "--image-size": "you do not need it: patches are chosen automatically",
    "--include-neighbor": "use --blind-radius 1",
    "--multiply": "use --counts-per-electron G",
    "--save-model": "you do not need it: the model is always saved",
    "--transforms": "you do not need it: patches are always flipped and turned",
    "--no-transforms": "you do not need it: patches are always flipped and turned",
}

# Commands that other programs have, and ours.
OTHER_COMMANDS = {
    "denoise": "run (from a raw movie to a result) or apply (a movie store and a model)",
    "process": "run (from a raw movie to a result)",
    "infer": "apply",
    "predict": "apply",
    "fit": "train",
    "learn": "train",
    "finetune": "train --from MODEL",
    "adapt": "train --from MODEL",
    "convert": "ingest",
    "import": "ingest (a raw movie) or models import (a model of others)",
    "read": "ingest",
    "load": "ingest",
    "check": "verify (a store) or doctor (this machine)",
    "validate": "verify",
    "repair": "verify --repair",
    "list": "archive list",
    "find": "archive find",
    "search": "archive find",
    "add": "archive add",
    "show": "status, models show, profiles show or archive show",
    "info": "status, models show or archive show",
    "kill": "cancel",
    "stop": "cancel",
    "abort": "cancel",
    "continue": "resume",
    "restart": "resume",
    "queue": "submit",
    "sbatch": "submit",
    "metrics": "evaluate",
    "measure": "evaluate",
    "score": "evaluate",
    "html": "report",
    "plot": "report",
    "save": "export",
    "video": "export -o FILE.mp4",
    "tiff": "export -o FILE.tif",
    "play": "export -o FILE.mp4",
    "log": "logs",
    "citation": "cite",
    "bibtex": "cite --format bibtex",
    "reference": "cite",
    "methods": "cite",
    "demo": "simulate",
    "generate": "simulate",
    "version": "--version",
}

# Flags that other programs have, and ours (of those, the first that the command has).
OTHER_FLAGS = {
    "--gpu": ("--device cuda",),
    "--gpus": ("--device cuda",),
    "--cuda": ("--device cuda",),
    "--cpu": ("--device cpu",),
    "--out": ("--output",),
    "--out-dir": ("--output",),
    "--outdir": ("--output",),
    "--output-dir": ("--output",),
    "--overwrite": ("--force",),
    "--threads": ("--workers local:N", "--processes N"),
    "--cores": ("--workers local:N", "--processes N"),
    "--jobs": ("--workers local:N", "--processes N"),
    "--num-workers": ("--workers local:N", "--processes N"),
    "--n-workers": ("--workers local:N", "--processes N"),
    "--nproc": ("--processes N", "--workers local:N"),
    "--memory": ("--worker-memory",),
    "--mem": ("--worker-memory",),
    "--time": ("--time-limit",),
    "--timeout": ("--time-limit",),
    "--max-time": ("--time-limit",),
    "--iterations": ("--steps",),
    "--iters": ("--steps",),
    "--n-steps": ("--steps",),
    "--fps": ("--frame-time", "--speed"),
    "--crop": ("--roi",),
    "--binning": ("--bin",),
    "--pretrained": ("--from",),
    "--checkpoint": ("--from", "--model"),
    "--weights": ("--model", "--from"),
    "--uncertainty": ("--variance",),
    "--dose": ("--dose-rate",),
}
INPUTS = ("--input", "--in", "--infile", "--raw", "--movie", "--file", "--path", "-i")
NOT_NEEDED = {
    "--lr": "the learning rate is chosen for you; --steps or --time-limit say how long to train",
    "--learning-rate": "the learning rate is chosen for you; --steps or --time-limit say how long to train",
    "--patch-size": "patches are chosen automatically",
    "--loss": "the loss follows from the kind of model; see --head",
    "--optimizer": "the optimiser is chosen for you",
}
COMMON = ("--config", "--dry-run", "--json", "--quiet", "--verbose", "--debug", "--help")


def refuse_command(words: list[str]) -> None:
    """Refuse a command that there is not, with the one that was most likely meant.

    Raises
    ------
    UsageError
    """
    name = words[0]
    if name in GROUPS:
        verbs = [each.split()[1] for each in COMMANDS if each.startswith(f"{name} ")]
        what, known, asked = f"{name} has no command {words[1]!r}.", verbs, words[1]
    else:
        what, known, asked = f"there is no command {name!r}.", list(SUMMARIES), name
    if name not in GROUPS and (meant := OTHER_COMMANDS.get(asked.lower())):
        raise UsageError(f"{what} Did you mean {meant}?")
    if close := difflib.get_close_matches(asked.lower(), known, 1):
        prefix = f"{name} " if name in GROUPS else ""
        raise UsageError(f"{what} Did you mean {prefix}{close[0]}?")
    if name not in GROUPS and Path(name).exists():
        raise UsageError(f"{what} To denoise a movie, write: {PROGRAM} run {name} -o FOLDER.")
    raise UsageError(f"{what} It is one of {', '.join(known)}.")


def refuse_old(flag: str) -> None:
    """Refuse a flag of the old script, with the new spelling.

    Raises
    ------
    UsageError
    """
    if flag in OLD_FLAGS:
        raise UsageError(f"{flag} belongs to the old script; {OLD_FLAGS[flag]}.")


def refuse_flag(command: str, flag: str) -> None:
    """Refuse a flag that a command does not have, with the one that was most likely meant.

    Raises
    ------
    UsageError
    """
    refuse_old(flag)
    what = f"{command} does not know {flag!r}."
    fields = dataclasses.fields(COMMANDS[command].config)
    known = [flag_of(field) for field in fields if not field.metadata["positional"]]
    first = next((field.metadata["metavar"] for field in fields if field.metadata["positional"]), None)
    if flag in INPUTS and first is not None and flag not in known:
        raise UsageError(f"{what} Write {first} without a flag: {command} {first} ...")
    if flag in NOT_NEEDED:
        raise UsageError(f"{what} You do not need it: {NOT_NEEDED[flag]}.")
    for meant in OTHER_FLAGS.get(flag, ()):
        if meant.split()[0] in known:
            raise UsageError(f"{what} Did you mean {meant}?")
    if close := difflib.get_close_matches(flag, [*known, *COMMON], 1, cutoff=0.75):
        raise UsageError(f"{what} Did you mean {close[0]}?")
    theirs = [meant.split()[0] for meant in OTHER_FLAGS.get(flag, ())] or [flag]
    owners = [name for name in COMMANDS if _has(name, theirs[0])]
    if owners:
        raise UsageError(f"{what} {theirs[0]} belongs to {_listed(owners)}.")
    raise UsageError(f"{what} See '{PROGRAM} {command} --help'.")


def _has(command: str, flag: str) -> bool:
    return any(
        flag_of(field) == flag
        for field in dataclasses.fields(COMMANDS[command].config)
        if not field.metadata["positional"]
    )


def _listed(names: list[str]) -> str:
    return names[0] if len(names) == 1 else f"{', '.join(names[:-1])} and {names[-1]}"
