"""The examples in docstrings, README and pages are true."""

from __future__ import annotations

import doctest
import importlib
import pkgutil
import re
import shlex
import shutil
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import tdenoise_pipeline
import torch
from pages import CLUSTER_PAGES, PAGES, ROOT, blocks, name_of
from raw_files import write_dm, write_folder, write_mrc
from small import counts, model_folder, movie_store
from tdenoise_pipeline import cli
from test_udvd import state_dict

import tdenoise

MODULES = [
    module.name
    for package in (tdenoise, tdenoise_pipeline)
    for module in pkgutil.walk_packages(package.__path__, package.__name__ + ".")
    if not module.name.endswith((".job_cluster", ".worker_jobs"))  # they need the extra [slurm]
]


@pytest.mark.parametrize("name", MODULES)
def test_examples_hold(name: str) -> None:
    failed, _ = doctest.testmod(importlib.import_module(name))
    assert failed == 0


def test_there_are_examples() -> None:
    finder = doctest.DocTestFinder()
    assert sum(len(t.examples) for name in MODULES for t in finder.find(importlib.import_module(name))) > 20


SHAPE = (24, 24, 24)
# What a page takes for granted: which of the stand-ins below lie in the folder that its blocks are run in.
GIVEN = {
    "README.md": ("movie.dm4", "movie.npy", "my_frames"),
    "docs/tutorial/first_movie.md": ("movie.dm4", "movie.mrc", "my_frames"),
    "docs/tutorial/demo.md": (),
    "docs/how_to/corrections.md": ("movie.mrc", "dark.mrc", "gain.mrc", "defects.txt"),
    "docs/how_to/damaged_files.md": ("movie.mrc", "my_frames"),
    "docs/how_to/many_movies.md": ("day1", "day2"),
    "docs/how_to/let_it_learn.md": ("day1", "day2"),
    "docs/how_to/notebook.md": ("movie.dm4", "movie.npy"),
    "docs/how_to/paper.md": ("results",),
    "docs/how_to/share.md": ("results",),
    "docs/how_to/repair.md": ("movie.dm4", "results"),
    "docs/how_to/udvd_weights.md": ("movie.zarr", "movie_udvd_mf.pth"),
    "docs/how_to/export.md": ("results",),
    "docs/how_to/how_many_frames.md": (),
    "docs/how_to/events.md": ("results",),
    "docs/how_to/read_the_report.md": ("results",),
    "docs/how_to/viewers.md": ("results",),
    "docs/how_to/watch.md": (),
    "docs/reference/api.md": ("movie.dm4", "results"),
    "docs/reference/metrics.md": ("results",),
    "docs/reference/model_card.md": ("results",),
}
# Lines of other programs, and what looks at them.
NOT_RUN_HERE = {
    "tdenoise-pipeline view results": "it goes on until Ctrl-C; tests/test_view.py starts it",
    "tdenoise-pipeline watch camera -o session": "it goes on until Ctrl-C; tests/test_watch.py starts it",
    "tdenoise-pipeline watch camera -o session --run-config runs.yaml": "the same, with a file of settings",
    "make demo": "its commands are run below",
    "python3 -m venv .venv": "the tests run in an environment",
    ". .venv/bin/activate": "the tests run in an environment",
    "pip install -c constraints.txt '.[slurm,video]'": "tests/test_deploy.py resolves it",
}
# A test has no half hour: few steps, one pass, and workers that run already.
APPLIES = ("run", "apply")
IN_PYTHON = [(r'time_limit="\w+"', "steps=2, blind_radius=0"), (r'workers="local:\d"', 'workers="WORKERS"')]
SHORTER = [(r" --time-limit \S+", ""), (r"--size 160 --n-frames 96", "--size 64 --n-frames 34")]


def with_code() -> list[Path]:
    return [p for p in PAGES if p not in CLUSTER_PAGES and blocks(p, "bash", "python")]


@pytest.fixture(scope="module")
def stand_ins(tmp_path_factory: pytest.TempPathFactory, workers: str) -> Path:
    """Small files and folders under the names that the pages use."""
    folder = tmp_path_factory.mktemp("given")
    frames = counts(SHAPE).astype(np.uint16)
    write_dm(folder / "movie.dm4", frames, 4)
    np.save(folder / "movie.npy", frames)
    write_mrc(folder / "movie.mrc", frames, 6)
    write_mrc(folder / "dark.mrc", np.zeros((1, *SHAPE[1:]), np.uint16), 6)
    write_mrc(folder / "gain.mrc", np.ones((1, *SHAPE[1:]), np.uint16), 6)
    (folder / "defects.txt").write_text("3 4\n10 2 2 1\n")
    write_folder(folder / "my_frames", frames, name="frame_{:03}.tif")
    for day, name in (("day1", "a"), ("day1", "b"), ("day2", "c")):
        (folder / day).mkdir(exist_ok=True)
        write_dm(folder / day / f"{name}.dm4", counts(SHAPE, seed=ord(name)).astype(np.uint16), 4)
    torch.save(state_dict(), folder / "movie_udvd_mf.pth")
    movie_store(folder / "ingested", counts((6, 24, 24)))
    (folder / "ingested/movie.zarr").rename(folder / "movie.zarr")
    model_folder(folder / "model")
    assert (
        run_line(f"tdenoise-pipeline run {folder}/movie.dm4 -o {folder}/results --time-limit 2m", workers)
        == 0
    )
    return folder


@pytest.fixture
def place(
    stand_ins: Path, tmp_path: Path, request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch
) -> Iterator[Path]:
    """An empty folder but for what the page takes for granted."""
    monkeypatch.setenv("MPLBACKEND", "Agg")
    monkeypatch.chdir(tmp_path)
    for name in GIVEN[name_of(request.getfixturevalue("page"))]:
        source = stand_ins / name
        (shutil.copytree if source.is_dir() else shutil.copy)(source, tmp_path / name)
    yield tmp_path


def run_line(line: str, workers: str) -> int:
    """Run a line of a page in this process, where torch is loaded; its exit code."""
    for pattern, instead in SHORTER:
        line = re.sub(pattern, instead, line)
    line = re.sub(r"--workers local:\d", f"--workers {workers}", line)
    words = shlex.split(line)
    assert words[0] == "tdenoise-pipeline", f"a test would have to know how to run: {line}"
    command = words[1]
    if command == "submit":
        assert "--print" in words, f"nothing is to be queued: {line}"
        return cli.main(words[1:])
    if command in ("run", "train", "study"):  # what a settings file allows is shortened too
        words += ["--steps", "2"]
    if command in APPLIES and "--ensemble" not in words:
        words += ["--ensemble", "1"]
    if (command in APPLIES or "--repair" in words or command == "resume") and "--workers" not in words:
        words += ["--workers", workers]
    return cli.main([*words[1:], *([] if "--json" in words else ["-q"])])


@pytest.mark.slow
@pytest.mark.parametrize("page", with_code(), ids=name_of)
def test_the_blocks_of_a_page_run_one_after_the_other(page: Path, place: Path, workers: str) -> None:
    names: dict[str, object] = {"__name__": "__main__"}
    for language, text in blocks(page, "bash", "python", "yaml"):
        if language == "python":
            for pattern, instead in IN_PYTHON:
                text = re.sub(pattern, instead.replace("WORKERS", workers), text)
            exec(compile(text, name_of(page), "exec"), names)
        elif language == "yaml":
            (place / text.splitlines()[0].removeprefix("# ")).write_text(text)
        else:
            for line in text.splitlines():
                # In two steps nothing is learned, and a version that is no better is not accepted.
                fine = (0, 1) if line.startswith("tdenoise-pipeline train archive") else (0,)
                assert line in NOT_RUN_HERE or run_line(line, workers) in fine, line


def test_every_block_says_what_it_is() -> None:
    for page in PAGES:
        for language, text in blocks(page):
            assert language in ("bash", "python", "yaml", "text", "mermaid") or language.startswith("{"), text


def test_what_is_not_run_here_is_still_on_the_pages() -> None:
    lines = {line for page in PAGES for _, text in blocks(page, "bash") for line in text.splitlines()}
    assert set(NOT_RUN_HERE) <= lines
    assert set(GIVEN) == {name_of(page) for page in with_code()}


def test_install_line_of_readme_names_extras_that_exist() -> None:
    declared = (ROOT / "pyproject.toml").read_text()
    (line,) = (line for line in NOT_RUN_HERE if line.startswith("pip install"))
    for extra in re.findall(r"\w+", line.partition("[")[2].partition("]")[0]):
        assert re.search(rf"^{extra} = \[", declared, flags=re.M), extra
