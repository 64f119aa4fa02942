"""Two packages, one arrow; and nothing heavy where --help is answered."""

from __future__ import annotations

import ast
import re
import subprocess
import sys
import time
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
HEAVY = {"torch", "xarray", "distributed", "dask", "zarr", "numpy", "scipy", "matplotlib", "rich"}
UNHARMFUL = re.compile(r"\.eval\(\)|torch\.load\(.*, weights_only=True\)")
COMMANDS = ["ingest", "train", "apply", "run", "evaluate", "report", "verify", "status", "simulate", "submit"]
COMMANDS += ["models import", "models show", "doctor", "resume", "cancel", "logs"]
COMMANDS += ["profiles list", "profiles show", "profiles check"]
COMMANDS += [f"archive {verb}" for verb in ("add", "list", "find", "show", "verify", "index")]


def imports(path: Path) -> list[tuple[int, str]]:
    """Line and absolute name of every import of a module, relative ones included."""
    package = "tdenoise" if "tdenoise" in path.relative_to(ROOT).parts else "tdenoise_pipeline"
    found = []
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            found += [(node.lineno, alias.name) for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            found.append((node.lineno, package if node.level else node.module or ""))
    return found


def test_the_science_never_imports_the_plumbing() -> None:
    forbidden = {"tdenoise_pipeline", "pipeline", "dask", "distributed", "zarr", "xarray", "dask_jobqueue"}
    wrong = [
        f"{path.relative_to(ROOT)}:{line} imports {name}"
        for path in sorted((ROOT / "tdenoise").rglob("*.py"))
        for line, name in imports(path)
        if name.partition(".")[0] in forbidden
    ]
    assert wrong == []


def test_only_the_command_line_prints() -> None:
    wrong = [
        f"{path.relative_to(ROOT)}:{node.lineno}"
        for folder in ("tdenoise", "pipeline")
        for path in sorted((ROOT / folder).rglob("*.py"))
        if path.name not in ("cli.py", "commands.py", "terminal.py")
        for node in ast.walk(ast.parse(path.read_text()))
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id == "print"
    ]
    assert wrong == []


def test_nothing_is_ever_unpickled_or_evaluated() -> None:
    banned = (
        "pickle.load",
        "torch.load",
        "weights_only=False",
        "yaml.load(",
        "eval(",
        "exec(",
        "shell=True",
        "os.system",
    )
    wrong = [
        f"{path.relative_to(ROOT)}: {word}"
        for folder in ("tdenoise", "pipeline")
        for path in sorted((ROOT / folder).rglob("*.py"))
        for word in banned
        if word in UNHARMFUL.sub("", path.read_text())
    ]
    assert wrong == []


@pytest.mark.parametrize("command", [[], *[c.split() for c in COMMANDS]])
def test_help_imports_nothing_heavy(command: list[str]) -> None:
    code = (
        "import sys\n"
        "from tdenoise_pipeline.cli import main\n"
        "try:\n    main(sys.argv[1:])\nexcept SystemExit as e:\n    assert not e.code\n"
        "print(sorted({name.partition('.')[0] for name in sys.modules}), file=sys.stderr)"
    )
    result = subprocess.run(
        [sys.executable, "-c", code, *command, "--help"], capture_output=True, text=True, check=True
    )
    assert result.stdout.startswith("usage: tdenoise-pipeline")
    assert not HEAVY & set(ast.literal_eval(result.stderr.splitlines()[-1]))


def test_help_answers_at_once() -> None:
    # Not a benchmark: ten times what it takes, to catch a heavy import that has another name.
    def once() -> float:
        start = time.perf_counter()
        subprocess.run(
            [sys.executable, "-m", "tdenoise_pipeline.cli", "--help"], capture_output=True, check=True
        )
        return time.perf_counter() - start

    assert min(once() for _ in range(3)) < 2.0
