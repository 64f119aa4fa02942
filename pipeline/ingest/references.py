"""Files that describe the camera: dark and gain references, defect maps."""

from __future__ import annotations

import hashlib
from importlib import import_module
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..errors import InputError
from ..readers import Reader, open_raw, recognise
from ..readers.rawfile import RawFile
from ..settings.ingest_settings import ORIENTATIONS

PIECE_BYTES = 2**25  # of a reference movie, read at once


def read_reference(
    path: Path, kind: str, shape: tuple[int, int], orientation: str = "as-is"
) -> NDArray[np.float64]:
    """A reference image, turned as asked; the mean over the frames where the file is a movie.

    Raises
    ------
    InputError
        If it cannot be read, or is not as large as the frames of the movie.
    """
    with _open_image(path) as reader:
        n_frames, height, width = reader.info.shape
        total = np.zeros((height, width))
        step = max(1, PIECE_BYTES // (height * width * reader.info.dtype.itemsize))
        for start in range(0, n_frames, step):
            stop = min(start + step, n_frames)
            piece = np.empty((stop - start, height, width), dtype=reader.info.dtype)
            reader.read(start, stop, piece)
            total += piece.sum(axis=0, dtype=np.float64)
    image = orient(total / n_frames, orientation)
    if image.shape != shape:
        turned = "" if orientation == "as-is" else f" once turned ({orientation})"
        hint = ""
        if image.shape == shape[::-1] and kind == "gain reference":
            hint = " It would fit with another --gain-orientation, such as rot90 or transpose."
        raise InputError(
            path,
            f"the {kind} has {image.shape[0]} x {image.shape[1]} pixels{turned}, and the frames of the movie have "
            f"{shape[0]} x {shape[1]}.{hint}",
        )
    return image


def orient(image: NDArray[Any], orientation: str) -> NDArray[Any]:
    """Turn an image: ``rot90`` is anticlockwise, ``flip-y`` puts the last row first.

    Examples
    --------
    >>> orient(np.array([[1, 2], [3, 4]]), "rot90").tolist()
    [[2, 4], [1, 3]]
    """
    number = ORIENTATIONS.index(orientation)
    turned: NDArray[Any] = (
        np.rot90(image, number)
        if number < 4
        else (image[::-1], image[:, ::-1], image.T, np.rot90(image, 2).T)[number - 4]
    )
    return np.ascontiguousarray(turned)


def read_defects(path: Path, shape: tuple[int, int]) -> NDArray[np.bool_]:
    """A defect map: an image that is not 0 where a pixel is bad, or lines of text ``x y [width height]``.

    Raises
    ------
    InputError
        If it cannot be read, or does not fit the movie.
    """
    if path.suffix.lower() != ".txt":
        return np.asarray(read_reference(path, "defect map", shape) != 0)
    bad = np.zeros(shape, dtype=bool)
    try:
        lines = path.read_text().splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(path, f"cannot be read ({error}).") from None
    for number, line in enumerate(lines, start=1):
        words = line.partition("#")[0].split()
        if not words:
            continue
        try:
            x, y, width, height = (int(w) for w in (words if len(words) == 4 else [*words, "1", "1"]))
        except ValueError:
            raise InputError(path, f"line {number} is not 'x y' or 'x y width height': {line!r}.") from None
        if min(x, y) < 0 or min(width, height) < 1 or x + width > shape[1] or y + height > shape[0]:
            raise InputError(
                path,
                f"line {number} lies outside of the movie, {shape[0]} rows by {shape[1]} columns: {line!r}.",
            )
        bad[y : y + height, x : x + width] = True
    return bad


def _open_image(path: Path) -> Reader:
    """Open a movie, or a file with a single image as a movie of one frame."""
    if path.is_dir():
        raise InputError(path, "a folder; a reference is one file.")
    try:
        return open_raw(path)
    except InputError as error:
        if "single image" not in str(error):
            raise
    file = RawFile(path)
    try:
        module = import_module(f"..readers.{recognise(file).module}", __package__)
        reader: Reader = module.open_movie(file, False, single=True)
    except TypeError:
        file.close()
        raise InputError(
            path, "a single image in this format is not supported; save it as TIFF or MRC."
        ) from None
    return reader


def file_sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
