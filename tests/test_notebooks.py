"""The notebooks run as they are, in a kernel of their own, and what they show is what they showed."""

from __future__ import annotations

import os
import re
import sys
from pathlib import Path
from typing import Any

import pytest
from pages import NOTEBOOKS, ROOT

nbformat = pytest.importorskip("nbformat")
nbclient = pytest.importorskip("nbclient")

# A test has no half minute to train.
SHORTER = {'"adapt", time_limit="30s"': '"adapt", steps=2'}
# Not of the machine that ran it: folders of users, hosts of packages.
PRIVATE = re.compile(r"/(home|root|work|tmp|Users)/|https?://(?!xarray|docs)")


def read(notebook: Path) -> Any:
    return nbformat.read(notebook, as_version=4)


def kinds(cell: Any) -> set[str]:
    """What a cell shows: text or pictures. (Tables for the browser are not kept.)"""
    found = {kind for output in cell.get("outputs", []) for kind in output.get("data", {"stream": ""})}
    return found - {"text/html"}


def shown(cell: Any) -> str:
    """The text under a cell."""
    found = [output.get("text") or output.get("data", {}).get("text/plain", "") for output in cell.outputs]
    return "\n".join(found)


def first_movie(text: str) -> None:
    assert "ingest: done in" in text and "apply: done in" in text, "progress is under the cell"
    gain = re.search(r"raw (-?[\d.]+) dB, denoised ([\d.]+) dB", text)
    assert gain is not None and float(gain[2]) > float(gain[1]) + 15


def counts_to_events(text: str) -> None:
    right = re.search(r"(\d+) of (\d+) sure changes are true", text)
    assert right is not None and int(right[2]) > 5 and int(right[1]) > 0.8 * int(right[2])


def archive_with_xarray(text: str) -> None:
    assert re.search(r"first: dose 2\.\d+, Fano factor (1\.0|0\.9)", text)
    assert "second.zarr" in text and "first.zarr  movie" not in text, "the query chose one"


# What each must say when it is run.
SAYS = {check.__name__: check for check in (first_movie, counts_to_events, archive_with_xarray)}


@pytest.mark.parametrize("notebook", NOTEBOOKS, ids=lambda path: path.name)
def test_a_notebook_holds_its_results_and_nothing_of_the_machine_that_made_them(notebook: Path) -> None:
    kept = read(notebook)
    nbformat.validate(kept)
    for cell in kept.cells:
        assert not PRIVATE.search(str(cell)), cell.source
        assert all(output.output_type != "error" for output in cell.get("outputs", []))
    assert any("image/png" in kinds(cell) for cell in kept.cells)
    assert notebook.stat().st_size < 1e6


@pytest.mark.slow
@pytest.mark.parametrize("notebook", NOTEBOOKS, ids=lambda path: path.name)
# Of the libraries that run notebooks.
@pytest.mark.filterwarnings("default::DeprecationWarning")
@pytest.mark.filterwarnings("default::ResourceWarning")
@pytest.mark.filterwarnings("default::pytest.PytestUnraisableExceptionWarning")
def test_a_notebook_runs_and_shows_what_it_showed(
    notebook: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from ipykernel.kernelspec import install

    install(prefix=str(tmp_path / "jupyter"), kernel_name="python3")  # of this very environment
    place = tmp_path / "place"
    place.mkdir()
    scratch = tmp_path / "scratch"
    scratch.mkdir()
    monkeypatch.setenv("JUPYTER_PATH", str(tmp_path / "jupyter/share/jupyter"))
    monkeypatch.setenv("JUPYTER_PREFER_ENV_PATH", "0")
    monkeypatch.setenv("TMPDIR", str(scratch))
    monkeypatch.setenv("IPYTHONDIR", str(tmp_path / "ipython"))
    monkeypatch.setenv("PATH", f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}")
    kept, ran = read(notebook), read(notebook)
    for cell in ran.cells:
        for words, instead in SHORTER.items():
            cell.source = cell.source.replace(words, instead)
    nbclient.NotebookClient(
        ran, timeout=500, kernel_name="python3", resources={"metadata": {"path": str(place)}}
    ).execute()
    for before, after in zip(kept.cells, ran.cells, strict=True):
        if before.cell_type == "code":
            assert kinds(before) == kinds(after), after.source
    SAYS[notebook.stem]("\n".join(shown(cell) for cell in ran.cells if cell.cell_type == "code"))


def test_there_are_notebooks_and_the_pages_lead_to_them() -> None:
    assert {path.stem for path in NOTEBOOKS} == set(SAYS)
    for path in NOTEBOOKS:
        assert path.name in (ROOT / "docs/how_to/notebook.md").read_text()
        assert f"tutorial/{path.stem}_notebook" in (ROOT / "docs/index.md").read_text()
