"""An export that can be gone on with: what is whole of it stays, under the name and the lease of an unfinished output.

Of files whose frames lie one behind the other, or in a file each. Others begin again (`written_whole`).
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, BinaryIO

from tdenoise.files.atomic import fsync

from ..errors import UsageError
from ..runs import markers, paths, progress
from ..runs.lease import holds_lease
from ..step_control import Control
from .values import DataFile, Statistics, Values

BLOCK_BYTES = 2**28  # of frames that are on the disk before they count as done
BLOCK_PICTURES = 64
BYTES_OF_STAT = 512  # of what `os.stat` counts


class UnfinishedFiles(progress.OutputRun):
    """The right to write some files, held as a context; where nothing is done or wanted at its end, nothing is left.

    Parameters
    ----------
    output : Path
        That was asked for; `partial` is a folder for the files.
    plan : dict
        JSON-able; all that decides the bytes of the files.
    force : bool
        Begin again where the unfinished files were begun with other settings.
    control : Control
    """

    def __init__(self, output: Path, plan: dict[str, Any], *, force: bool, control: Control) -> None:
        super().__init__(output, plan, force=force, stop=control.stop)

    def __enter__(self) -> UnfinishedFiles:
        super().__enter__()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if isinstance(error, OSError) and Path(error.filename or self.partial / "any").parent == self.partial:
            error.filename = str(self.output)
        useless = isinstance(error, UsageError) or not self.done_numbers()
        if error is not None and useless and holds_lease(self.folder, self.token):
            shutil.rmtree(self.partial, ignore_errors=True)
            self.tidy()
        super().__exit__(kind, error, trace)

    def records(self, files: Sequence[Path]) -> list[dict[str, Any]]:
        """What the markers of the blocks that are done say, from the first block to the first that is not.

        Where one of the files that they speak of is gone or was cut short, nothing is done.
        """
        self.prepare(lambda path: path.mkdir())
        found = self.done()
        known: list[dict[str, Any]] = []
        while len(known) in found:
            known.append(found[len(known)])
        wanted = files if known and "offset" in known[0] else files[: known[-1]["upto"] if known else 0]
        least = known[-1].get("bytes", 0) if known else 0
        there = [self.partial / file.name for file in wanted]
        if not all(file.exists() and file.stat().st_size >= least for file in there):
            self._start_over()
            return self.records(files)
        return known

    def give_names(self, files: Sequence[Path]) -> None:
        """Give whole files their names, the first of them last."""
        self.check()
        for file in reversed(files):
            (self.partial / file.name).replace(file)
        fsync(files[0].parent)
        shutil.rmtree(self.partial)
        self.tidy()

    def _check_output(self) -> None:
        """Whoever planned the export has looked."""


def frames_of_block(n_bytes: int) -> int:
    """How many frames of so many bytes are on the disk before they count as done."""
    return max(1, BLOCK_BYTES // n_bytes)


def bytes_there(output: Path) -> int:
    """What the disk holds of an unfinished file."""
    try:
        return (paths.partial_path(output) / output.name).stat().st_blocks * BYTES_OF_STAT
    except OSError:
        return 0


def write_data(output: Path, kind: DataFile, values: Values, run: UnfinishedFiles) -> None:
    """Write a file of data, but for its name, from the first frame that is not done on.

    Parameters
    ----------
    output : Path
    kind : DataFile
        That says how it begins.
    values : Values
    run : UnfinishedFiles
    """
    assert kind.begin is not None
    known, file = run.records([output]), run.partial / output.name
    if known:
        offset, first, seen = known[-1]["offset"], known[-1]["upto"], Statistics(known[-1]["seen"])
    else:
        file.unlink(missing_ok=True)  # of one that was killed before any of it was done
        offset, first, seen = kind.begin(file, values), 0, Statistics()
    n_bytes = values.n_bytes // values.shape[0]
    several = frames_of_block(n_bytes)
    with file.open("r+b") as handle:
        handle.seek(offset + first * n_bytes)
        for number, frame in enumerate(values.frames(first), first + 1):
            if kind.end is not None:
                seen.add(frame)
            handle.write(frame.data)
            if number % several == 0 or number == values.shape[0]:
                _settle(handle)
                record = {"offset": offset, "upto": number, "bytes": handle.tell(), "seen": seen.state}
                markers.mark(run.folder, (number - 1) // several, record, run.token)
    if kind.end is not None:
        kind.end(file, seen)
    fsync(file)


def write_pictures(
    files: Sequence[Path],
    pictures: Callable[[int], Iterator[Any]],
    save: Callable[[Path, Any], None],
    run: UnfinishedFiles,
) -> None:
    """Write a file for each picture, but for their names, from the first that is not done on."""
    known = run.records(files)
    first = known[-1]["upto"] if known else 0
    for number, picture in enumerate(pictures(first), first + 1):
        place = run.partial / files[number - 1].name
        save(place, picture)
        fsync(place)
        if number % BLOCK_PICTURES == 0 or number == len(files):
            markers.mark(run.folder, (number - 1) // BLOCK_PICTURES, {"upto": number}, run.token)


def _settle(handle: BinaryIO) -> None:
    handle.flush()
    os.fsync(handle.fileno())
