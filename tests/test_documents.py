"""Documents: every link leads somewhere, what is generated is whole, and nothing is loaded from elsewhere."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest
from pages import DOCS, GENERATED, PAGES, ROOT, name_of
from tdenoise_pipeline.cli.commands import COMMANDS

BESIDE = [
    ROOT / name for name in ("CONTRIBUTING.md", "DESIGN.md", "deploy/README.md", "benchmarks/README.md")
]
# What a browser fetches by itself; links that a reader clicks are no harm.
ELSEWHERE = re.compile(r"<(?:script|img|iframe|link)[^>]*(?:src|href)=\"((?:https?:)?//[^\"]+)\"")
LINK = re.compile(r"\]\(([^)\s]+)\)")
SOURCES = [
    *(ROOT / "pipeline").rglob("*.py"),
    *(ROOT / "tdenoise").rglob("*.py"),
    *(ROOT / "deploy").rglob("*.*"),
]


def anchors(page: Path) -> set[str]:
    """The headings of a page as GitHub and MyST name them."""
    titles = re.findall(r"^#+ (.*)$", page.read_text(), flags=re.M)
    return {re.sub(r"[^\w\- ]", "", title.lower()).strip().replace(" ", "-") for title in titles}


@pytest.mark.parametrize("page", [*PAGES, *BESIDE], ids=name_of)
def test_every_link_leads_somewhere(page: Path) -> None:
    for link in LINK.findall(page.read_text()):
        if re.match(r"[a-z]+:", link):
            continue
        path, _, anchor = link.partition("#")
        target = (page.parent / path).resolve() if path else page
        if target.name in GENERATED:
            continue
        assert target.exists(), f"{name_of(page)}: {link}"
        assert not anchor or anchor in anchors(target), f"{name_of(page)}: {link}"


def test_every_file_that_a_page_names_is_there() -> None:
    """Names in code of scripts, results and tests: `benchmarks/quality.py`."""
    named = re.compile(
        r"(?<![\w/])((?:benchmarks|tests|docs|deploy|tdenoise|pipeline)/[\w/.-]+\.(?:py|json|md|yaml|sh))"
    )
    made_elsewhere = {
        "benchmarks/results/gpu_cuda.json",
        "tdenoise/deploy/install.sh",
    }  # by a GPU; from outside
    for page in [*PAGES, *BESIDE]:
        for name in set(named.findall(page.read_text())) - made_elsewhere:
            assert (ROOT / name).exists(), f"{name_of(page)}: {name}"


def test_readme_is_short_and_nothing_asks_for_a_package_of_the_index() -> None:
    assert len((ROOT / "README.md").read_text().split()) <= 900
    for file in [*PAGES, *BESIDE, *SOURCES]:
        if file.is_file():
            assert not re.search(r"pip install [\"']?tdenoise", file.read_text(errors="replace")), file


def test_the_picture_moves_and_is_small() -> None:
    from PIL import Image

    picture = DOCS / "demo.webp"
    assert picture.stat().st_size < 1.5e6
    with Image.open(picture) as shown:
        assert getattr(shown, "n_frames", 1) > 20


def test_the_picture_of_the_rooms_has_all_of_them() -> None:
    picture = re.search(r"```mermaid\n(.*?)```", (ROOT / "DESIGN.md").read_text(), flags=re.S)
    assert picture is not None
    drawn = set(re.findall(r"\w+", picture[1]))
    rooms = {
        p.parent.name for package in ("pipeline", "tdenoise") for p in (ROOT / package).glob("*/__init__.py")
    }
    assert rooms <= drawn, rooms - drawn


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The pages as a site, built as `make docs` does."""
    pytest.importorskip("sphinx")
    folder = tmp_path_factory.mktemp("site")
    command = [sys.executable, "-m", "sphinx", "--fail-on-warning", "--nitpicky", "--quiet", "-b", "html"]
    done = subprocess.run([*command, str(DOCS), str(folder)], capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, done.stderr
    return folder


@pytest.mark.slow
def test_the_site_loads_nothing_from_other_hosts(site: Path) -> None:
    for page in site.rglob("*.html"):
        loaded = re.findall(
            r"<(?:script|img|iframe|link)[^>]*(?:src|href)=\"((?:https?:)?//[^\"]+)\"", page.read_text()
        )
        assert not loaded, page
    for sheet in site.rglob("*.css"):
        assert not re.search(r"url\([\"']?(https?:)?//", sheet.read_text()), sheet


@pytest.mark.slow
def test_the_site_holds_every_command_with_its_help(site: Path) -> None:
    text = re.sub(r"<[^>]+>", "", (site / "reference/command_line.html").read_text())
    for name in [*COMMANDS, "submit"]:
        assert f"usage: tdenoise-pipeline {name} " in text, name


def test_citation_names_every_work_that_readme_does() -> None:
    cited = (ROOT / "CITATION.cff").read_text()
    sentence = re.search(r"builds on (.*?); please", (ROOT / "README.md").read_text().replace("\n", " "))
    assert sentence is not None
    works = re.findall(r"([A-Z][\w-]+)\s+et\s+al\. (\d{4})", sentence[1])
    assert len(works) == 5
    for family, year in works:
        assert re.search(rf"family-names: \"?{family.replace('-', '[- ]')}", cited), family
        assert f"year: {year}" in cited
