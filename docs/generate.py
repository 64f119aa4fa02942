"""The pages of the reference that are made from the code itself, each time the site is built."""

from __future__ import annotations

import ast
import base64
import contextlib
import inspect
import io
import json
import os
from pathlib import Path

import tdenoise_pipeline
from tdenoise_pipeline.cli import main
from tdenoise_pipeline.cli.commands import COMMANDS

import tdenoise

WIDTH = "100"


def help_of(*words: str) -> str:
    """What `tdenoise-pipeline WORDS --help` prints."""
    printed = io.StringIO()
    before = os.environ.get("COLUMNS")
    os.environ["COLUMNS"] = WIDTH  # the same page whatever the terminal
    try:
        with contextlib.redirect_stdout(printed), contextlib.suppress(SystemExit):
            main([*words, "--help"])
    finally:
        if before is None:
            del os.environ["COLUMNS"]
        else:
            os.environ["COLUMNS"] = before
    return printed.getvalue().rstrip()


def command_line() -> str:
    """Every command with its help."""
    lines = [
        "# Command line and settings",
        "",
        "This page is made from the program: it shows what `tdenoise-pipeline COMMAND --help` prints.",
        "A settings file (`-c FILE.yaml`) takes the same names as the flags, without the dashes in front.",
        "Durations are written `90s`, `20m`, `1h30m` or `13ms`.",
        "",
    ]
    for name in ["", *COMMANDS, "submit"]:
        title = f"`{name}`" if name else "All commands"
        lines += [f"## {title}", "", "```text", help_of(*name.split()), "```", ""]
    return "\n".join(lines)


def modules() -> str:
    """Every module with the first line of its docstring, package by package."""
    lines = [
        "# Modules",
        "",
        "This page is made from the code: every module with the first sentence of its docstring.",
        "`tdenoise` is the science, functions on arrays. `tdenoise_pipeline` is the plumbing.",
        "",
    ]
    for package in (tdenoise, tdenoise_pipeline):
        lines += [
            f"## `{package.__name__}`",
            "",
            _first_line(package.__doc__),
            "",
            "| module | what it is for |",
            "|---|---|",
        ]
        root = Path(package.__path__[0])
        for path in sorted(root.rglob("*.py")):
            parts = path.relative_to(root).with_suffix("").parts
            name = ".".join([package.__name__, *parts]).removesuffix(".__init__")
            if name != package.__name__:
                lines.append(f"| `{name}` | {_docstring(path)} |")
        lines.append("")
    return "\n".join(lines)


def notebook_page(notebook: Path, pictures: Path) -> str:
    """A notebook as it was run: its text, its code and what that showed; pictures go to a folder."""
    lines = []
    for number, cell in enumerate(json.loads(notebook.read_text())["cells"]):
        source = "".join(cell["source"])
        if cell["cell_type"] == "markdown":
            lines += [source, ""]
            continue
        language = "bash" if source.startswith("!") else "python"
        plain = "\n".join(line.removeprefix("!") for line in source.splitlines())
        lines += [f"```{language}", plain, "```", ""]
        for output in cell["outputs"]:
            data = output.get("data", {})
            if "image/png" in data:
                picture = pictures / f"{notebook.stem}_{number}.png"
                picture.write_bytes(base64.b64decode(data["image/png"]))
                lines += [f"![What the cell above shows]({picture.name})", ""]
            elif text := "".join(output.get("text", data.get("text/plain", ""))).rstrip():
                lines += ["```text", text, "```", ""]
    lines += [f"*The notebook itself: {{download}}`{notebook.name}`.*", ""]
    return "\n".join(lines)


def _docstring(path: Path) -> str:
    # Read, not imported: some modules need an extra that may be missing.
    return _first_line(ast.get_docstring(ast.parse(path.read_text())))


def _first_line(text: str | None) -> str:
    return inspect.cleandoc(text or "").partition("\n")[0].replace("``", "`").replace("|", "\\|")


def write_generated_pages(folder: Path) -> None:
    """Write them, unless they are the same already: then Sphinx need not read them again."""
    tutorial = folder.parent / "tutorial"
    pages = {folder / "command_line.md": command_line(), folder / "modules.md": modules()}
    for notebook in sorted(tutorial.glob("*.ipynb")):
        pages[tutorial / f"{notebook.stem}_notebook.md"] = notebook_page(notebook, tutorial)
    for page, text in pages.items():
        if not page.exists() or page.read_text() != text:
            page.write_text(text)
