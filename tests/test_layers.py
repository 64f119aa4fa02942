"""Rooms on floors: who may import whom; and nothing heavy where --help is answered."""

from __future__ import annotations

import ast
import functools
import re
import subprocess
import sys
import time
import tomllib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
FOLDERS = {"tdenoise_pipeline": ROOT / "pipeline", "tdenoise": ROOT / "tdenoise"}

# From the top. A room may import the rooms on lower floors, and none on its own: steps never import steps.
# "front" is what a program imports: the package itself. A module outside the rooms is its own room.
FLOORS = {
    "tdenoise_pipeline": (
        ("front",),
        ("python",),
        ("cli", "napari_plugin"),
        ("study",),
        ("watch", "workflow"),
        ("apply", "archive", "evaluate", "events", "export", "ingest", "jobs", "train", "view"),
        ("pictures",),
        ("inputs", "workers"),
        ("resources",),
        ("runs", "slurm", "store"),
        ("settings",),
        ("files", "local_page", "readers"),
        ("step_control", "version"),
        ("errors",),
    ),
    "tdenoise": (
        ("training",),
        ("inference",),
        ("network",),
        ("columns", "evaluation", "noise", "simulation"),
        ("files",),
        ("front",),
    ),
}

# The science knows nothing of the plumbing, but for one name that its front hands on when it is asked for.
HANDED_ON = {("tdenoise", "tdenoise_pipeline"): "`tdenoise.denoise` measures as ingest does"}

# An import inside a function is for packages that take long to load or may be missing, and for these modules.
HEAVY = {"torch", "xarray", "distributed", "dask", "zarr", "numpy", "scipy", "matplotlib", "pandas", "rich"}
LATE = {
    *HEAVY,
    "av",
    "cryptography",
    "dask_jobqueue",
    "h5py",
    "imagecodecs",
    "jinja2",
    "ruamel",
    "shtab",
    "tifffile",
}
LATE_MODULES = {
    "tdenoise": "every module of the science imports its package, and `denoise` alone needs the plumbing",
    "tdenoise_pipeline": "every module imports its package, and nobody needs all of its functions",
    "tdenoise_pipeline.python.accessor": "xarray loads it with every engine, and torch takes a second",
    "tdenoise_pipeline.python.xarray_engine": "xarray loads it with every engine, and zarr and Dask take a second",
    "tdenoise_pipeline.cli.command_line": "--help answers at once",
    "tdenoise_pipeline.cli.commands": "--help answers at once",
    "tdenoise_pipeline.cli.keeping": "--help answers at once",
    "tdenoise_pipeline.cli.show": "--help answers at once",
    "tdenoise_pipeline.ingest.ingest_many": "only HDF5 files need h5py",
    "tdenoise_pipeline.workers.cluster": "only jobs of a batch system need the extra [slurm]",
}

UNHARMFUL = re.compile(r"\.eval\(\)|torch\.load\(.*, weights_only=True\)")
COMMANDS = [
    "ingest",
    "train",
    "apply",
    "run",
    "evaluate",
    "report",
    "export",
    "events",
    "verify",
    "cite",
    "status",
    "simulate",
    "study",
    "submit",
    "view",
    "watch",
]
COMMANDS += ["models import", "models export", "models show", "doctor", "resume", "cancel", "logs"]
COMMANDS += ["profiles list", "profiles show", "profiles check"]
COMMANDS += [
    f"archive {verb}"
    for verb in ("add", "list", "find", "suggest", "html", "crate", "tag", "show", "verify", "index")
]

# So that a function fits on a screen, and a module holds one idea.
MOST_LINES = {"module": 450, "function": 60}

Sources = Mapping[str, str]  # of all modules, by their full names; those of packages end with ".__init__"


@dataclass(frozen=True)
class Import:
    """One name that a module imports."""

    line: int
    module: str  # full name: a module of this project, or what stands in the statement
    name: str | None  # out of that module; None for the module itself
    late: bool  # inside a function


def sources() -> dict[str, str]:
    """The text of every module of both packages."""
    found = {}
    for package, folder in FOLDERS.items():
        for path in sorted(folder.rglob("*.py")):
            found[".".join([package, *path.relative_to(folder).with_suffix("").parts])] = path.read_text()
    return found


def modules_of(code: Sources) -> dict[str, str]:
    """The name to import each module by, and its text."""
    return {name.removesuffix(".__init__"): text for name, text in code.items()}


@functools.cache
def tree_of(text: str) -> ast.Module:
    return ast.parse(text)


def imports(module: str, code: Sources, known: Sources) -> Iterator[Import]:
    """Every import of a module, with relative ones resolved."""
    package = module if f"{module}.__init__" in code else module.rpartition(".")[0]
    tree = tree_of(known[module])
    functions = (
        n for n in ast.walk(tree) if isinstance(n, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda)
    )
    late = {id(inner) for function in functions for inner in ast.walk(function)}
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            for alias in node.names:
                yield Import(node.lineno, alias.name, None, id(node) in late)
        elif isinstance(node, ast.ImportFrom):
            parts = package.split(".")[: len(package.split(".")) - node.level + 1] if node.level else []
            base = ".".join([*parts, *filter(None, [node.module])])
            for alias in node.names:
                full = f"{base}.{alias.name}"
                if full in known:
                    yield Import(node.lineno, full, None, id(node) in late)
                else:
                    yield Import(node.lineno, base, alias.name, id(node) in late)


def place(module: str) -> tuple[str, str]:
    """Package and room of a module."""
    package, *inner = module.split(".")
    return package, inner[0] if inner and inner[0] != "__main__" else "front"


def floor(module: str) -> int:
    """Number of the floor of a module, from the top."""
    package, room = place(module)
    return next(i for i, rooms in enumerate(FLOORS[package]) if room in rooms)


def upward(code: Sources) -> list[str]:
    """Imports of a module on the same floor or above, but in another room; and of the plumbing by the science."""
    wrong = []
    known = modules_of(code)
    for module in known:
        for found in imports(module, code, known):
            if found.module not in known or place(module) == place(found.module):
                continue
            if (module, found.module) in HANDED_ON:
                continue
            here, there = place(module)[0], place(found.module)[0]
            if here == there and floor(module) < floor(found.module):
                continue
            if (here, there) != ("tdenoise_pipeline", "tdenoise"):
                wrong.append(f"{module}:{found.line} imports {found.module}")
    return wrong


def circles(code: Sources) -> list[list[str]]:
    """Modules that import each other, also by way of others."""
    known = modules_of(code)
    arrows = {m: {i.module for i in imports(m, code, known) if i.module in known} - {m} for m in known}
    found: list[list[str]] = []
    done: set[str] = set()

    def follow(module: str, path: list[str]) -> None:
        if module in path:
            found.append([*path[path.index(module) :], module])
        elif module not in done:
            for each in sorted(arrows[module]):
                follow(each, [*path, module])
            done.add(module)

    for module in known:
        follow(module, [])
    return found


def late(code: Sources) -> list[str]:
    """Imports inside a function that need not be there."""
    wrong = []
    known = modules_of(code)
    for module in known:
        for found in imports(module, code, known):
            heavy = found.module.partition(".")[0] in LATE
            if found.late and not heavy and module not in LATE_MODULES:
                wrong.append(f"{module}:{found.line} imports {found.module} inside a function")
    return wrong


def private(code: Sources) -> list[str]:
    """Names with an underscore that a module takes out of another."""
    wrong = []
    known = modules_of(code)
    for module, text in known.items():
        found = [i for i in imports(module, code, known) if i.module in known]
        wrong += [
            f"{module}:{i.line} imports {i.module}.{i.name}" for i in found if (i.name or "").startswith("_")
        ]
        names = {i.module.rpartition(".")[2] for i in found if i.name is None}
        aliases = [node for node in ast.walk(tree_of(text)) if isinstance(node, ast.alias) and node.asname]
        names |= {alias.asname or "" for alias in aliases if alias.name.rpartition(".")[2] in names}
        for node in ast.walk(tree_of(text)):
            if not isinstance(node, ast.Attribute) or not re.match("_[^_]", node.attr):
                continue
            if isinstance(node.value, ast.Name) and node.value.id in names:
                wrong.append(f"{module}:{node.lineno} uses {node.value.id}.{node.attr}")
    return wrong


def lengthy(code: Sources) -> list[str]:
    """Modules and functions, docstrings included, that are longer than a reader can hold."""
    wrong = []
    for module, text in modules_of(code).items():
        n_lines = len(text.splitlines())
        if n_lines > MOST_LINES["module"]:
            wrong.append(f"{module} has {n_lines} lines")
        for node in ast.walk(tree_of(text)):
            if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
                n_lines = (node.end_lineno or node.lineno) - node.lineno + 1
                if n_lines > MOST_LINES["function"]:
                    wrong.append(f"{module}:{node.lineno} {node.name} has {n_lines} lines")
    return wrong


def test_every_room_imports_only_what_lies_below_it() -> None:
    assert upward(sources()) == []


def test_no_modules_import_each_other() -> None:
    assert circles(sources()) == []


def test_the_science_hands_on_one_name_of_the_plumbing_and_only_when_it_is_asked_for() -> None:
    code = sources()
    known = modules_of(code)
    found = [(m, i) for m in known if place(m)[0] == "tdenoise" for i in imports(m, code, known)]
    upwards = [(module, i) for module, i in found if i.module.startswith("tdenoise_pipeline")]
    assert {(module, i.module) for module, i in upwards} == set(HANDED_ON)
    assert [i.name for _, i in upwards if not i.late] == ["denoise"]  # for type checkers only
    light = "import sys, tdenoise; assert 'tdenoise_pipeline' not in sys.modules; tdenoise.denoise"
    subprocess.run([sys.executable, "-c", light], check=True)


def test_only_what_is_heavy_is_imported_inside_a_function() -> None:
    assert late(sources()) == []


def test_no_module_uses_the_private_names_of_another() -> None:
    assert private(sources()) == []


def test_no_module_and_no_function_is_longer_than_a_reader_can_hold() -> None:
    assert lengthy(sources()) == []


def test_what_is_too_long_is_found() -> None:
    long = "def f():\n" + "    pass\n" * 60
    assert lengthy({"tdenoise_pipeline.errors": long}) == ["tdenoise_pipeline.errors:1 f has 61 lines"]
    assert lengthy({"tdenoise_pipeline.errors": "#\n" * 451}) == ["tdenoise_pipeline.errors has 451 lines"]


A_CIRCLE = {
    "tdenoise_pipeline.store.shards": "from .blocks import Region\n",
    "tdenoise_pipeline.store.blocks": "def f():\n    from tdenoise_pipeline.store import shards\n",
}
UPWARD = {
    "tdenoise_pipeline.store.shards": "import numpy\nfrom tdenoise_pipeline.apply.apply import apply\n",
    "tdenoise_pipeline.apply.apply": "",
}
UPWARD_RELATIVE = {
    "tdenoise_pipeline.runs.lease": "from ..workers.driver import drive as d\n",
    "tdenoise_pipeline.workers.driver": "",
}
SIDEWAYS = {
    "tdenoise_pipeline.apply.apply": "from .. import ingest\n",
    "tdenoise_pipeline.ingest.__init__": "",
}
TO_THE_PLUMBING = {
    "tdenoise.noise.drift": "from tdenoise_pipeline import errors\n",
    "tdenoise_pipeline.errors": "",
}
A_PRIVATE_NAME = {
    "tdenoise_pipeline.apply.apply": "from ..store import store as s\ns._open_once\nfrom ..store.store import _grid\n",
    "tdenoise_pipeline.store.store": "",
}


@pytest.mark.parametrize(
    ("planted", "found"),
    [
        (A_CIRCLE, [0, 1, 1, 0]),
        (UPWARD, [1, 0, 0, 0]),
        (UPWARD_RELATIVE, [1, 0, 0, 0]),
        (SIDEWAYS, [1, 0, 0, 0]),
        (TO_THE_PLUMBING, [1, 0, 0, 0]),
        (A_PRIVATE_NAME, [0, 0, 0, 2]),
        ({"tdenoise_pipeline.errors": "def f():\n    import json, torch\n"}, [0, 0, 1, 0]),
    ],
)
def test_what_is_planted_is_found(planted: dict[str, str], found: list[int]) -> None:
    assert [len(look(planted)) for look in (upward, circles, late, private)] == found


def test_every_room_is_on_a_floor_and_says_what_it_is_for() -> None:
    for package, folder in FOLDERS.items():
        rooms = {path.parent.name for path in folder.glob("*/__init__.py")}
        assert rooms <= {room for rooms_of_floor in FLOORS[package] for room in rooms_of_floor}
        for room in rooms:
            tree = ast.parse((folder / room / "__init__.py").read_text())
            assert (ast.get_docstring(tree) or "").count(".") == 1 or room == "readers", room
            assert len(tree.body) == 1 or room in ("cli", "readers"), f"{room}/__init__.py does something"


def test_the_wheel_holds_every_room() -> None:
    listed = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["setuptools"]["packages"]
    assert sorted(listed) == sorted(n.removesuffix(".__init__") for n in sources() if n.endswith(".__init__"))


def test_the_science_knows_nothing_of_stores_and_clusters() -> None:
    forbidden = {"dask", "distributed", "zarr", "xarray", "dask_jobqueue"}
    code = sources()
    known = modules_of(code)
    wrong = [
        f"{module}:{found.line} imports {found.module}"
        for module in known
        if place(module)[0] == "tdenoise"
        for found in imports(module, code, known)
        if found.module.partition(".")[0] in forbidden
    ]
    assert wrong == []


def test_only_the_command_line_prints() -> None:
    wrong = [
        f"{module}:{node.lineno}"
        for module, text in modules_of(sources()).items()
        if not module.startswith("tdenoise_pipeline.cli.")
        for node in ast.walk(tree_of(text))
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
