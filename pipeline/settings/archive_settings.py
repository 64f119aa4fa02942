"""Settings of the commands of an archive."""

from __future__ import annotations

from pathlib import Path

from .fields import MODEL, OUTPUT, WHAT, WHERE, setting
from .parse import Count, Device, MovieStore, NewPath, OptionalWords, Paths, Words, YesNo
from .setting import Settings, settings


@settings()
class ArchiveAddConfig(Settings):
    """Add finished stores and models to an archive."""

    store: Paths = setting(
        help="movie stores, denoised stores, models, or folders of runs", metavar="STORE", positional=True
    )
    archive: NewPath = setting(
        help="archive folder; created if it does not exist", group=OUTPUT, metavar="ARCHIVE", short="-A"
    )
    note: OptionalWords = setting(
        (),
        "what no file tells, such as sample=Pt/CeO2; on every card that is added",
        group=WHAT,
        metavar="NAME=VALUE",
    )


@settings()
class ArchiveConfig(Settings):
    """List everything in an archive."""

    archive: Path = setting(help="archive folder", group=WHAT, metavar="ARCHIVE", short="-A")


@settings()
class ArchiveIndexConfig(ArchiveConfig):
    """Rebuild the index of an archive from its cards."""


@settings()
class ArchiveFindConfig(Settings):
    """Find movies, models and results in an archive."""

    query: Words = setting(
        help="such as 'dose < 1 and sample like \"Pt%\"'; a word on its own must occur",
        metavar="QUERY",
        positional=True,
    )
    archive: Path = setting(help="archive folder", group=WHAT, metavar="ARCHIVE", short="-A")


@settings()
class ArchiveSuggestConfig(Settings):
    """Rank the models of an archive for a movie."""

    movie: MovieStore = setting(
        help="movie store, or the folder of a run", metavar="MOVIE.zarr", positional=True
    )
    archive: Path = setting(help="archive folder", group=WHAT, metavar="ARCHIVE", short="-A")
    try_models: Count = setting(
        5, "models to try on the movie: those whose own movies are most like it", group=MODEL, metavar="N"
    )
    device: Device = setting(
        "auto",
        "cpu, cuda (a GPU), mps (of Apple), xpu (of Intel), or auto: whichever of these there is, else cpu",
        group=WHERE,
    )


@settings()
class ArchiveTagConfig(Settings):
    """Write notes on an item of an archive."""

    id: str = setting(help="id, the beginning of one, or a name", metavar="ID", positional=True)
    archive: Path = setting(help="archive folder", group=WHAT, metavar="ARCHIVE", short="-A")
    note: Words = setting(
        help="such as sample=Pt/CeO2; an empty value takes a note away", group=WHAT, metavar="NAME=VALUE"
    )


@settings()
class ArchiveShowConfig(Settings):
    """Show one item, what it was made from and what was made from it."""

    id: str = setting(help="id, the beginning of one, or a name", metavar="ID", positional=True)
    archive: Path = setting(help="archive folder", group=WHAT, metavar="ARCHIVE", short="-A")


@settings()
class ArchiveHtmlConfig(Settings):
    """Write a page of an archive, with pictures and what was made from what."""

    archive: Path = setting(help="archive folder", group=WHAT, metavar="ARCHIVE", short="-A")
    output: NewPath = setting(help="HTML file to write", group=OUTPUT, metavar="PAGE.html", short="-o")
    query: OptionalWords = setting(
        (), "only what fits, as for find", metavar="QUERY", positional=True, default_text="everything"
    )
    force: YesNo = setting(False, "replace the output if it exists", group=OUTPUT)


@settings()
class ArchiveCrateConfig(Settings):
    """Describe an archive for a repository such as Zenodo: RO-Crate metadata beside the stores."""

    archive: Path = setting(help="archive folder", group=WHAT, metavar="ARCHIVE", short="-A")
    output: Path = setting(
        help="folder that holds the stores; ro-crate-metadata.json is written there",
        group=OUTPUT,
        metavar="FOLDER",
        short="-o",
    )
    license: str | None = setting(
        None,
        "licence of the whole, such as CC-BY-4.0, an address, or words of your own",
        group=WHAT,
        metavar="LICENCE",
        default_text="the note 'license', if it is the same on everything",
    )
    force: YesNo = setting(False, "replace the metadata if they exist", group=OUTPUT)


@settings()
class ArchiveVerifyConfig(Settings):
    """Check every card of an archive and everything that the cards refer to."""

    archive: Path = setting(help="archive folder", group=WHAT, metavar="ARCHIVE", short="-A")
    deep: YesNo = setting(False, "decode everything and compare it with the recorded hashes", group=WHAT)
