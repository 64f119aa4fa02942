"""The code blocks of README and of the pages in docs/, and how tests run them."""

from __future__ import annotations

import re
from pathlib import Path

ROOT = Path(__file__).parents[1]
DOCS = ROOT / "docs"
NOTEBOOKS = sorted(path for path in DOCS.rglob("*.ipynb") if "_build" not in path.parts)
# By docs/generate.py.
GENERATED = ("command_line.md", "modules.md", *(f"{notebook.stem}_notebook.md" for notebook in NOTEBOOKS))
PAGES = [
    ROOT / "README.md",
    *sorted(p for p in DOCS.rglob("*.md") if "_build" not in p.parts and p.name not in GENERATED),
]
# Their commands need a cluster: tests/slurm/test_cluster_pages.py runs them.
CLUSTER_PAGES = [DOCS / "how_to/sol.md", DOCS / "how_to/slurm.md"]
BLOCK = re.compile(r"^```(\S*)\n(.*?)^```$", flags=re.M | re.S)


def blocks(page: Path, *languages: str) -> list[tuple[str, str]]:
    """Language and text of the code blocks of a page; of these languages, or of all."""
    found = [(m[1], m[2]) for m in BLOCK.finditer(page.read_text())]
    return [block for block in found if not languages or block[0] in languages]


def name_of(page: Path) -> str:
    """A page, as it is named in the repository."""
    return page.relative_to(ROOT).as_posix()
