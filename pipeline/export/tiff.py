"""TIFF: OME-BigTIFF of any size, which Fiji opens by Bio-Formats; and ImageJ's own, which it opens by itself."""

from __future__ import annotations

import io
import uuid
from fractions import Fraction
from pathlib import Path
from typing import Any

import tifffile

from ..version import VERSION
from .values import Values

CLASSIC_BYTES = (
    2**32 - 2**25
)  # of frames in a TIFF that is no BigTIFF, where each shall have an entry of its own
NM_PER_CM = 1e7
LARGEST = 2**31 - 1  # of the two numbers of a resolution: programs in Java know no larger ones


def begin_ome(file: Path, values: Values) -> int:
    """Begin an OME-BigTIFF: a page for each frame, size of pixels and time of frames in the OME-XML of the first."""
    described: dict[str, Any] = {
        "axes": "TYX",
        "Name": values.title,
        "Description": values.words,
        "Creator": f"tdenoise {VERSION['tdenoise']}",
        # The same movie gives the same file.
        "UUID": str(uuid.uuid5(uuid.NAMESPACE_OID, f"{values.words} {values.shape} {values.name}")),
    }
    options: dict[str, Any] = {}
    if values.pixel_size_nm is not None:
        tall, wide = values.pixel_size_nm
        described |= {"PhysicalSizeY": tall, "PhysicalSizeX": wide}
        described |= {"PhysicalSizeYUnit": "nm", "PhysicalSizeXUnit": "nm"}
        per_cm = NM_PER_CM / wide, NM_PER_CM / tall
        if max(per_cm) < LARGEST:  # for programs that know nothing of OME
            options = {"resolution": tuple(map(_rational, per_cm)), "resolutionunit": "CENTIMETER"}
    if values.frame_time_s is not None:
        described |= {"TimeIncrement": values.frame_time_s, "TimeIncrementUnit": "s"}
    with _Target(file) as target, tifffile.TiffWriter(target, bigtiff=True, ome=True, byteorder="<") as made:
        return _room(made, values, metadata=described, **options)


def begin_imagej(file: Path, values: Values) -> int:
    """Begin a TIFF by the rules of ImageJ: all frames one after the other, and what they are in the first description.

    Frames of more than 4 GB have no pages of their own: ImageJ finds them by their number, other programs see the first
    one only.
    """
    described: dict[str, Any] = {"axes": "TYX", "Info": values.words, "loop": False}
    options: dict[str, Any] = {}
    if values.pixel_size_nm is not None:
        tall, wide = values.pixel_size_nm
        described |= {"unit": "nm", "spacing": 1.0}
        options = {"resolution": (_rational(1 / wide), _rational(1 / tall))}
    if values.frame_time_s is not None:
        described |= {"finterval": values.frame_time_s, "tunit": "sec"}
    with _Target(file) as target, tifffile.TiffWriter(target, imagej=True) as made:
        truncate = values.n_bytes > CLASSIC_BYTES
        return _room(made, values, metadata=described, truncate=truncate, **options)


class _Target(io.BufferedRandom):
    """A new file that NumPy does not write to by its own way, which says of a full disk only how much it wrote."""

    def __init__(self, file: Path) -> None:
        super().__init__(io.FileIO(file, "x+"))

    def fileno(self) -> int:
        raise io.UnsupportedOperation("fileno")


def _rational(number: float) -> tuple[int, int]:
    """A positive number as a fraction of small whole numbers.

    Examples
    --------
    >>> _rational(1 / 0.014)
    (500, 7)
    """
    nearest = Fraction(number).limit_denominator(max(1, min(LARGEST, int(LARGEST / number))))
    return nearest.numerator, nearest.denominator


def _room(made: tifffile.TiffWriter, values: Values, **options: Any) -> int:
    """Make room for all frames, one behind the other; where the first begins."""
    told = made.write(
        shape=values.shape, dtype=values.dtype, photometric="minisblack", returnoffset=True, **options
    )
    assert told is not None
    return int(told[0])
