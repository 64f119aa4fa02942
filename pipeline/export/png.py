"""PNG: a numbered picture for each frame, or all frames on one sheet."""

from __future__ import annotations

import logging
from collections.abc import Iterable
from pathlib import Path

from PIL import Image

from tdenoise.files.atomic import written_whole

from ..errors import ResourceError, UsageError
from ..pictures.sheet import Grey, montage

log = logging.getLogger(__name__)

DIGITS = 4  # of a number, at least
MOST_PIXELS = 2**28  # of one picture, which lies in memory as a whole


def numbered(file: Path, frames: tuple[int, int]) -> list[Path]:
    """The names of the pictures: the number of the frame in the movie after a dash; none where it is one frame.

    Examples
    --------
    >>> [str(p) for p in numbered(Path("a.png"), (9, 11))], numbered(Path("a.png"), (5, 6))
    (['a-0009.png', 'a-0010.png'], [PosixPath('a.png')])
    """
    first, last = frames
    if last - first == 1:
        return [file]
    digits = max(DIGITS, len(str(last - 1)))
    return [file.with_name(f"{file.stem}-{k:0{digits}}{file.suffix}") for k in range(first, last)]


def tell_others(files: list[Path]) -> None:
    """Tell of pictures with such names that are none of these."""
    others = set(files[0].parent.glob(f"{files[0].stem.rpartition('-')[0]}-*{files[0].suffix}")) - set(files)
    if len(files) > 1 and others:
        log.warning("%s: %d other pictures with such names stay beside them.", files[0], len(others))


def montage_size(sheet: tuple[int, int], n_frames: int, columns: int, file: Path) -> tuple[int, int]:
    """Height and width of all frames on one sheet [pixels].

    Raises
    ------
    UsageError, ResourceError
        If there are fewer frames than columns, or it were too large.
    """
    if columns > n_frames:
        raise UsageError(f"--columns {columns}: there are only {n_frames} frames.")
    height, width = -(-n_frames // columns) * sheet[0], columns * sheet[1]
    if height * width > MOST_PIXELS:
        raise ResourceError(
            f"{file}: all {n_frames} frames on one sheet would be {height} x {width} pixels. Choose fewer frames with "
            "--frames A:B, or a part of them with --roi."
        )
    return height, width


def write_montage(file: Path, pictures: Iterable[Grey], columns: int) -> None:
    """Write all pictures on one sheet, so many side by side."""
    sheet = montage(list(pictures), columns)
    with written_whole(file) as partial:
        save(partial, sheet)


def save(file: Path, picture: Grey) -> None:
    """Write one picture."""
    Image.fromarray(picture).save(file, format="PNG")
