"""What can be known of deploy/ without building an image or having a cluster."""

from __future__ import annotations

import re
import shlex
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest
from ruamel.yaml import YAML

ROOT = Path(__file__).parents[1]
DEPLOY = ROOT / "deploy"
DOCKERFILE, DEFINITION = (DEPLOY / "Dockerfile").read_text(), (DEPLOY / "tdenoise.def").read_text()
SCRIPTS = sorted([*DEPLOY.rglob("*.sh"), *DEPLOY.rglob("*.sbatch")])


def test_everything_that_goes_into_an_image_is_there() -> None:
    copied = [
        word for line in re.findall(r"^COPY (.*)$", DOCKERFILE, flags=re.M) for word in shlex.split(line)[:-1]
    ]
    files = re.search(r"%files\n(.*?)\n\n", DEFINITION, flags=re.S)
    assert files is not None
    taken = [line.split()[0] for line in files[1].splitlines()]
    assert sorted(copied) == sorted(taken)
    assert {"pyproject.toml", "constraints.txt", "tdenoise", "pipeline"} <= set(copied)
    for name in copied:
        assert (ROOT / name).exists(), name
    declared = (ROOT / "pyproject.toml").read_text()
    assert all(name in copied for name in re.findall(r'"(README.md|LICENSE)"', declared))


def test_images_run_as_a_user_with_python_3_12_and_the_tested_versions() -> None:
    for recipe in (DOCKERFILE, DEFINITION):
        assert re.search(r"^From:? python:3\.12", recipe, flags=re.M | re.I)
        assert "-c /opt/tdenoise/constraints.txt" in recipe
    assert re.search(r"^USER (?!root)\w+$", DOCKERFILE, flags=re.M)
    assert "\ntorch==" in (ROOT / "constraints.txt").read_text()


@pytest.mark.parametrize("recipe", [DOCKERFILE, DEFINITION, (DEPLOY / "install.sh").read_text()])
def test_what_recipes_install_resolves_within_the_constraints(recipe: str) -> None:
    found = re.search(r"pip install .*?-c \S+ ['\"](\S+?)(\[[a-z,]+\])['\"]", recipe)
    assert found is not None
    # Offline: what is installed here must satisfy the package, its extras and the constraints together.
    command = [sys.executable, "-m", "pip", "install", "--dry-run", "--no-index", "--no-build-isolation"]
    command += ["--disable-pip-version-check", "-c", str(ROOT / "constraints.txt"), f"{ROOT}{found[2]}"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    would = re.findall(r"^Would install (.*)$", done.stdout, flags=re.M)
    assert would == [] or re.fullmatch(r"tdenoise-[\w.]+", would[0])


def test_the_conda_recipe_asks_for_what_the_package_does() -> None:
    recipe = YAML(typ="safe").load(DEPLOY / "conda" / "recipe.yaml")
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    of_conda = {
        "torch": "pytorch",
        "xxhash": "python-xxhash",
        "dask": "dask-core",
        "matplotlib": "matplotlib-base",
    }

    def bounds(requirements: list[str]) -> dict[str, str]:
        parts = [re.fullmatch(r"([\w.-]+) *>=([\w.]+)", entry) for entry in requirements]
        return {part[1]: part[2] for part in parts if part is not None}

    wanted = {of_conda.get(name, name): bound for name, bound in bounds(project["dependencies"]).items()}
    assert len(wanted) == len(project["dependencies"])
    python = project["requires-python"].removeprefix(">=")
    assert bounds(recipe["requirements"]["run"]) == wanted | {"python": python}
    extras = project["optional-dependencies"]
    besides = [entry for extra in ("slurm", "parquet", "video") for entry in extras[extra]]
    assert bounds(recipe["requirements"]["run_constraints"]) == bounds(besides)
    assert str(recipe["context"]["version"]) == project["version"]
    scripts = [f"{name} = {target}" for name, target in project["scripts"].items()]
    assert recipe["build"]["python"]["entry_points"] == scripts
    assert (DEPLOY / "conda" / recipe["source"]["path"] / recipe["about"]["license_file"]).exists()


@pytest.mark.parametrize("script", SCRIPTS, ids=lambda path: path.name)
def test_scripts_are_sound_and_their_commands_are_known(script: Path) -> None:
    subprocess.run(["bash", "-n", script], check=True)
    from tdenoise_pipeline.cli.command_line import COMMANDS

    for command in re.findall(r"tdenoise-pipeline\"? ([a-z]+)", script.read_text()):
        assert command in COMMANDS


def test_install_says_how_it_is_used() -> None:
    done = subprocess.run(["bash", DEPLOY / "install.sh"], capture_output=True, text=True)
    assert done.returncode != 0 and "usage: install.sh FOLDER" in done.stderr
