"""How Sphinx builds these pages: `make docs`. Nothing is loaded from another host."""

from __future__ import annotations

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))

from generate import write_generated_pages

project = "tdenoise"
author = "The tdenoise developers"
project_copyright = author
extensions = ["myst_parser", "sphinx.ext.autodoc", "sphinx.ext.napoleon"]
source_suffix = {".md": "markdown"}
exclude_patterns = ["_build"]
nitpicky = True
# Types of other libraries, whose pages are not at hand offline.
nitpick_ignore_regex = [
    (
        "py:.*",
        r"(xarray|pathlib|numpy|np|torch|dask|optional|\w+Error|str|Path|NDArray|ndarray|Any|list|mapping).*",
    ),
    ("py:class", r"shape|n_frames|height|width|\d+"),  # words of numpydoc that its parser takes for types
    ("py:class", r"NoiseStatistics|Evaluation"),  # the page of modules has them
]
myst_heading_anchors = 3
autodoc_typehints = "none"  # numpydoc says them
html_theme = "furo"
html_title = "tdenoise"
html_show_sourcelink = False
html_copy_source = False

write_generated_pages(Path(__file__).parent / "reference")
