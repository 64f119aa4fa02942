"""What depends on the address of the repository: README's links, which PyPI needs absolute, and the project's own.
And the copy of CITATION.cff that a wheel holds.

    TDENOISE_URL=https://github.com/NAME/tdenoise python -m build

All else is in pyproject.toml. Without an address, links stay relative, as they are right in a checkout.
"""

import os
import re
from pathlib import Path

from setuptools import setup
from setuptools.command.build_py import build_py

URL = os.environ.get("TDENOISE_URL", "").rstrip("/")


def readme() -> str:
    text = Path(__file__).with_name("README.md").read_text(encoding="utf-8")
    if not URL:
        return text
    text = re.sub(r"(!\[[^]]*\])\((?!\w+:)([^)]+)\)", rf"\1({URL}/raw/main/\2)", text)
    return re.sub(r"(\])\((?!\w+:|#)([^)]+)\)", rf"\1({URL}/blob/main/\2)", text)


class BuildWithCitation(build_py):
    """CITATION.cff is at the root, where programs look for it; `tdenoise-pipeline cite` of a wheel reads a copy."""

    def run(self) -> None:
        super().run()
        if not self.editable_mode:
            source = Path(__file__).with_name("CITATION.cff")
            self.copy_file(str(source), str(Path(self.build_lib, "tdenoise_pipeline", source.name)))


PLACES = {
    "Source": URL,
    "Documentation": f"{URL}/blob/main/docs/index.md",
    "Changelog": f"{URL}/blob/main/CHANGELOG.md",
    "Issues": f"{URL}/issues",
}
setup(
    long_description=readme(),
    long_description_content_type="text/markdown",
    cmdclass={"build_py": BuildWithCitation},
    project_urls=PLACES if URL else {},
)
