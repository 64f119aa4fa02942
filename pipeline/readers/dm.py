"""Gatan DigitalMicrograph movies (DM3, DM4): image series with calibrated axes."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import replace
from typing import Any, NamedTuple

import numpy as np

from ..errors import InputError
from . import MovieInfo, Reader
from .dm_tags import TagArray, TagTree, read_tags
from .frames import FlatReader, check_movie, frame_size, library, unexplained, whole_frames
from .gatan import open_capture
from .rawfile import RawFile
from .units import bounded_json, pixel_size, to_nanometres, to_seconds

_TYPES = {
    1: "i2", 2: "f4", 3: "c8", 6: "u1", 7: "i4", 9: "i1", 10: "u2", 11: "u4", 12: "f8", 13: "c16",
    39: "i8", 40: "u8",
}  # fmt: skip
_PACKED_COMPLEX = {5, 27, 28}
_COLOUR = {8, 23}
_ELECTRONS = {"e", "e-", "electron", "electrons"}
_ENERGY_UNITS = {"ev", "kev", "mev"}


class Image(NamedTuple):
    """One entry of a file's image list."""

    tags: dict[str, Any]
    shape: tuple[int, ...]  # slowest axis first
    type_code: int
    pixels: TagArray


def open_movie(file: RawFile, allow_truncated: bool, *, single: bool = False) -> Reader:
    """Open a DM3 or DM4 file that holds one image series, or just one image, if ``single``.

    An image with the tag of an in situ capture is the director of one: its frames lie in other files.
    """
    tree = read_tags(file)
    image = _movie_of(file, tree, list(_images(tree)))
    stored = np.dtype(tree.byte_order + _TYPES[image.type_code])
    recorded = _group(_group(_group(image.tags, "ImageTags"), "In-situ"), "Recorded").get("# Frames")
    if len(image.shape) == 2 and isinstance(recorded, int) and not single:
        check_movie(file, (max(recorded, 2), *image.shape), stored)
        if not tree.complete and not allow_truncated:
            raise InputError(file.path, "cut short within its tags. Copy it anew, or try --allow-truncated.")
        return open_capture(file, _info(tree, image, stored, recorded), stored, allow_truncated)
    announced, height, width = check_movie(file, image.shape, stored, single=single)
    frame_bytes = frame_size((announced, height, width), stored)
    if image.pixels.n_bytes < announced * frame_bytes:
        raise InputError(
            file.path,
            f"damaged: its pixel block has {image.pixels.n_bytes} bytes, and {announced} frames of "
            f"{height} x {width} {stored} need {announced * frame_bytes}.",
        )
    present = (file.size - image.pixels.offset) // frame_bytes
    n_frames = whole_frames(file, announced, present, allow_truncated)
    if not tree.complete and not allow_truncated:
        raise InputError(
            file.path,
            f"cut short within its tags: {n_frames} of {announced} frames are there as a whole. "
            "Copy it anew, or keep these frames with --allow-truncated.",
        )

    info = replace(
        _info(tree, image, stored, announced),
        shape=(n_frames, height, width),
        missing_frames=announced - n_frames,
    )
    info = replace(
        info,
        warnings=info.warnings + unexplained(image.pixels.n_bytes - announced * frame_bytes, frame_bytes),
    )
    first = image.pixels.offset
    return FlatReader(file, info, stored, range(first, first + n_frames * frame_bytes, frame_bytes))


def _info(tree: TagTree, image: Image, stored: np.dtype[Any], n_frames: int) -> MovieInfo:
    """What the tags say about a movie of ``n_frames`` of the image's frames."""
    *time, row, column = _axes(tree, image)
    height, width = image.shape[-2:]
    tags = _group(image.tags, "ImageTags")
    acquisition = _group(tags, "Acquisition")
    exposure = _group(_group(acquisition, "Parameters"), "High Level").get("Exposure (s)")
    if exposure is None:
        exposure = _group(tags, "DataBar").get("Exposure Time (s)")
    volts = _group(tags, "Microscope Info").get("Voltage")
    kilovolts = float(f"{volts / 1000:.7g}") if isinstance(volts, float | int) else 0.0
    return MovieInfo(
        shape=(n_frames, height, width),
        dtype=stored.newbyteorder("="),
        format=f"DM{tree.version}",
        reader=library("tdenoise"),
        frame_time_s=to_seconds(*time[0]) if time else None,
        pixel_size_nm=pixel_size(to_nanometres(*row), to_nanometres(*column)),
        exposure_s=to_seconds(f"{exposure:.7g}", "s") if isinstance(exposure, float | int) else None,
        voltage_kv=kilovolts if 0 < kilovolts < 10_000 else None,
        camera=_text(tree, _group(acquisition, "Device").get("Name")) or None,
        warnings=_brightness(tree, image),
        metadata=_metadata(tree, image),
    )


def _images(tree: TagTree) -> Iterator[Image]:
    """The images of a file, without the small copies that browsers show."""
    thumbnails = {
        entry.get("ImageIndex")
        for entry in _group(tree.root, "Thumbnails").values()
        if isinstance(entry, dict)
    }
    for number, tags in enumerate(_group(tree.root, "ImageList").values()):
        data = _group(tags, "ImageData")
        sizes = [n for n in _group(data, "Dimensions").values() if isinstance(n, int)]
        pixels, code = data.get("Data"), data.get("DataType")
        if number in thumbnails or not sizes or not isinstance(pixels, TagArray) or not isinstance(code, int):
            continue
        yield Image(tags, tuple(reversed(sizes)), code, pixels)


def _movie_of(file: RawFile, tree: TagTree, images: list[Image]) -> Image:
    if not images and not tree.complete:
        raise InputError(
            file.path,
            "cut short: it ends before the tags behind the pixels that give the size of a frame, "
            "so no frame can be kept. Copy it anew.",
        )
    if not images:
        raise InputError(file.path, "its tags name no image.")
    series = [image for image in images if len(image.shape) > 2]
    if len(series) > 1:
        raise InputError(
            file.path, f"holds {len(series)} image series; save the one you want as its own file."
        )
    image = series[0] if series else images[-1]
    size = " x ".join(str(n) for n in image.shape)
    units = [str(unit) for _, unit in _axes(tree, image)]
    meta = _group(_group(image.tags, "ImageTags"), "Meta Data")
    kind = _text(tree, meta.get("Format"))
    if "spectrum" in kind.lower() or any(unit.strip().lower() in _ENERGY_UNITS for unit in units):
        what = "a spectrum image" if len(image.shape) > 2 else "a spectrum"
        named = ", ".join(unit or "no unit" for unit in units)
        raise InputError(file.path, f"holds {what} ({size}, axes in {named}), not a movie.")
    if image.type_code in _COLOUR:
        raise InputError(file.path, f"holds an RGB colour image ({size}), not a movie of counts.")
    if image.type_code in _PACKED_COMPLEX:
        raise InputError(file.path, f"holds complex numbers ({size}), not a movie of counts.")
    if image.type_code not in _TYPES:
        raise InputError(file.path, f"its pixels are of the unknown DM type {image.type_code}.")
    if len(image.shape) == 1 or (len(image.shape) == 2 and 1 in image.shape):
        raise InputError(file.path, f"holds one line of values ({size}), not a movie.")
    return image


def _axes(tree: TagTree, image: Image) -> list[tuple[Any, str]]:
    """(scale, unit) of every axis, slowest first; (None, "") where the calibration list is too short."""
    calibrations = _group(_group(image.tags, "ImageData"), "Calibrations")
    axes: list[tuple[Any, str]] = []
    for entry in _group(calibrations, "Dimension").values():
        scale = entry.get("Scale") if isinstance(entry, dict) else None
        if isinstance(scale, float) and math.isfinite(scale):
            scale = float(f"{scale:.7g}")  # single precision in the file: 0.0125 and not 0.012500000186
        axes.append((scale, _text(tree, entry.get("Units")) if isinstance(entry, dict) else ""))
    axes += [(None, "")] * len(image.shape)
    return axes[: len(image.shape)][::-1]


def _brightness(tree: TagTree, image: Image) -> tuple[str, ...]:
    """A warning where the numbers are calibrated in another unit: that is no part of the counts."""
    told = _group(_group(_group(image.tags, "ImageData"), "Calibrations"), "Brightness")
    scale, origin = told.get("Scale"), told.get("Origin", 0.0)
    unit = _text(tree, told.get("Units"))
    if not isinstance(scale, float) or not isinstance(origin, float) or not 0 < scale < math.inf:
        return ()
    if (scale, origin) == (1.0, 0.0):
        return ()
    counted = unit.strip().lower() in _ELECTRONS
    advice = f" --counts-per-electron {1 / scale:.6g} says the same." if counted and origin == 0 else ""
    number = f"(number - {origin:g})" if origin else "number"
    value = f"{number} x {scale:.6g} {unit}".rstrip()
    return (
        f"its brightness is calibrated, {value}, which is not applied: the numbers are kept as counts.{advice}",
    )


def _metadata(tree: TagTree, image: Image) -> dict[str, Any]:
    calibrations = _group(_group(image.tags, "ImageData"), "Calibrations")
    return bounded_json(
        {
            "Name": _readable(tree, image.tags.get("Name")),
            "Calibrations": _readable(tree, calibrations),
            "tags_complete": tree.complete,
            **_readable(tree, _group(image.tags, "ImageTags")),
        }
    )


def _readable(tree: TagTree, value: Any) -> Any:
    if isinstance(value, dict):
        return {name: _readable(tree, item) for name, item in value.items()}
    if isinstance(value, TagArray):
        text = _text(tree, value)
        return text if text.isprintable() else f"left out: {value.n_bytes} bytes"
    return value


def _text(tree: TagTree, value: Any) -> str:
    if isinstance(value, TagArray):
        return value.text(tree.byte_order)
    return value if isinstance(value, str) else ""


def _group(tags: Any, name: str) -> dict[str, Any]:
    found = tags.get(name) if isinstance(tags, dict) else None
    return found if isinstance(found, dict) else {}
