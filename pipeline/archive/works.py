"""The works that a result builds on: read from CITATION.cff, which has them all, and written as BibTeX."""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..errors import PipelineError

CITATION = "CITATION.cff"
# What each work is cited for, by its DOI or address.
OF_METHOD = {
    "denoising": "10.1126/science.ads2688",  # of such movies, by networks that learn from them
    "blind spot": "https://arxiv.org/abs/1901.10277",
    "video": "https://arxiv.org/abs/2011.15045",  # blind spots with neighbouring frames
    "neighbours seen": "10.1038/s41592-023-02005-8",  # only the centre frame is blind
    "umse": "https://arxiv.org/abs/2210.05553",
}
_ENTRY = {"article": "article", "conference-paper": "inproceedings", "software": "software"}
_SPECIAL = re.compile(r"([&%$#_])")


@dataclass(frozen=True)
class Work:
    """One work, field by field as CITATION.cff has it."""

    fields: dict[str, Any]

    @property
    def id(self) -> str:
        """DOI, or else address."""
        return str(self.fields.get("doi") or self.fields.get("url") or "")

    @property
    def year(self) -> str:
        return str(self.fields.get("year", ""))

    @property
    def authors(self) -> list[str]:
        """As "Family, Given"; an institution is one name."""
        return [
            author.get("name") or f"{author['family-names']}, {author['given-names']}"
            for author in self.fields["authors"]
        ]

    @property
    def key(self) -> str:
        """For BibTeX.

        Examples
        --------
        >>> Work({"authors": [{"family-names": "Marcos Morales", "given-names": "A."}], "year": 2023}).key
        'marcosmorales2023'
        """
        if self.fields.get("type") == "software":
            return "tdenoise"
        plain = unicodedata.normalize("NFKD", self.fields["authors"][0]["family-names"])
        return "".join(c for c in plain if c.isascii() and c.isalpha()).lower() + self.year

    @property
    def short(self) -> str:
        """As it is cited in a text, such as "Laine et al. 2019"."""
        if self.fields.get("type") == "software":
            return f"tdenoise {self.fields['version']}"
        family = self.fields["authors"][0]["family-names"]
        return f"{family} et al. {self.year}" if len(self.fields["authors"]) > 1 else f"{family} {self.year}"

    def bibtex(self) -> str:
        """An entry of BibTeX, in UTF-8."""
        f = self.fields
        pages = "--".join(str(f[k]) for k in ("start", "end") if k in f)
        arxiv = re.fullmatch(r"https://arxiv\.org/abs/(\S+)", str(f.get("url", "")))
        values = {
            "title": "{" + str(f["title"]) + "}",
            "author": " and ".join("{" + a + "}" if "," not in a else a for a in self.authors),
            "journal": f.get("journal"),
            "booktitle": f.get("collection-title"),
            "volume": f.get("volume"),
            "number": f.get("issue"),
            "pages": pages,
            "year": f.get("year"),
            "version": f.get("version"),
            "license": f.get("license"),
            "doi": f.get("doi"),
            "eprint": arxiv[1] if arxiv else None,
            "archiveprefix": "arXiv" if arxiv else None,
            "url": f.get("url"),
        }
        lines = [f"  {name:<13} = {{{_escaped(name, value)}}}," for name, value in values.items() if value]
        return "\n".join([f"@{_ENTRY[f['type']]}{{{self.key},", *lines, "}"])


def _escaped(name: str, value: Any) -> str:
    # Addresses are taken as they are.
    return str(value) if name in ("url", "doi", "eprint") else _SPECIAL.sub(r"\\\1", str(value))


def citation_file() -> Path:
    """CITATION.cff: in a checkout beside the packages, in a wheel inside this one.

    Raises
    ------
    PipelineError
        If the installation lacks it.
    """
    package = Path(__file__).parents[1]
    for folder in (package, package.parent):
        if (folder / CITATION).is_file():
            return folder / CITATION
    raise PipelineError(f"{package / CITATION}: is missing. Install tdenoise again.")


def all_works() -> tuple[Work, list[Work]]:
    """tdenoise itself, and what it builds on."""
    from ruamel.yaml import YAML

    document = YAML(typ="safe", pure=True).load(citation_file().read_text(encoding="utf-8"))
    own = {
        key: value for key, value in document.items() if key not in ("references", "message", "cff-version")
    }
    return Work(own), [Work(dict(fields)) for fields in document["references"]]


def works_for(methods: Sequence[str]) -> dict[str, Work]:
    """The works that methods were taken from, by the name of the method."""
    by_id = {work.id: work for work in all_works()[1]}
    return {method: by_id[OF_METHOD[method]] for method in methods}
