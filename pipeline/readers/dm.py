"""Gatan DigitalMicrograph movies (DM3, DM4): image series with calibrated axes."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import replace
from typing import Any, NamedTuple

import numpy as np

from ..errors import InputError, UsageError
from . import MovieInfo, Reader
from .axes import Axis, Place, calibration_lost, place_movie
from .chunked import ChunkedReader, Layout, Run, slabs
from .dm_tags import TagArray, TagTree, read_tags
from .frames import FlatReader, check_movie, frame_size, library, unexplained, whole_frames
from .gatan import calibrated_brightness, open_capture
from .rawfile import RawFile
from .units import bounded_json, pixel_size, to_seconds

_TYPES = {
    1: "i2", 2: "f4", 3: "c8", 6: "u1", 7: "i4", 9: "i1", 10: "u2", 11: "u4", 12: "f8", 13: "c16",
    39: "i8", 40: "u8",
}  # fmt: skip
_PACKED_COMPLEX = {5, 27, 28}
_COLOUR = {8, 23}
_ENERGY_UNITS = {"ev", "kev", "mev"}


class Image(NamedTuple):
    """One entry of a file's image list."""

    name: str  # by which --dataset means it
    tags: dict[str, Any]
    shape: tuple[int, ...]  # slowest axis first
    type_code: int
    pixels: TagArray


def open_movie(
    file: RawFile, allow_truncated: bool, *, dataset: str | None = None, single: bool = False
) -> Reader:
    """Open a DM3 or DM4 file that holds one image series, or just one image, if ``single``.

    An image with the tag of an in situ capture is the director of one: its frames lie in other files.
    """
    tree = read_tags(file)
    image = _movie_of(file, tree, list(_images(tree)), dataset)
    stored = np.dtype(tree.byte_order + _TYPES[image.type_code])
    recorded = _group(_group(_group(image.tags, "ImageTags"), "In-situ"), "Recorded").get("# Frames")
    if len(image.shape) == 2 and isinstance(recorded, int) and not single:
        check_movie(file, (max(recorded, 2), *image.shape), stored)
        if not tree.complete and not allow_truncated:
            raise InputError(file.path, "cut short within its tags. Copy it again, or try --allow-truncated.")
        return open_capture(file, _info(tree, image, stored, recorded), stored, allow_truncated)
    if single or len(image.shape) < 3:
        check_movie(file, image.shape, stored, single=single)
        place = Place((0, len(image.shape) - 2, len(image.shape) - 1), {})
        announced, height, width = 1, *image.shape[-2:]
    else:
        axes = _axes(tree, image)
        place = place_movie(file, image.name, image.shape, stored, axes, lenient=True)
        layout = Layout(image.shape, slabs(image.shape, stored.itemsize), place.movie_axes, place.fixed)
        announced, height, width = check_movie(file, layout.movie_shape, stored)
    frame_bytes = frame_size((announced, height, width), stored)
    if image.pixels.n_bytes < announced * frame_bytes:
        raise InputError(
            file.path,
            f"damaged: its pixel block has {image.pixels.n_bytes} bytes, and {announced} frames of "
            f"{height} x {width} {stored} need {announced * frame_bytes}.",
        )
    present = (file.size - image.pixels.offset) // frame_bytes
    turned = list(place.movie_axes) != sorted(place.movie_axes)
    if turned and present < announced:
        present = 0  # each frame is spread over the whole file
    n_frames = whole_frames(file, announced, present, allow_truncated)
    if not tree.complete and not allow_truncated:
        raise InputError(
            file.path,
            f"cut short within its tags: {n_frames} of {announced} frames are complete. "
            "Copy it again, or keep these frames with --allow-truncated.",
        )

    info = _info(tree, image, stored, announced, None if single else place)
    spare = image.pixels.n_bytes - announced * frame_bytes
    info = replace(
        info,
        shape=(n_frames, height, width),
        missing_frames=announced - n_frames,
        warnings=info.warnings + place.warnings + unexplained(spare, frame_bytes),
    )
    first = image.pixels.offset
    if turned:
        return ChunkedReader(file, info, layout, Run(file, first, layout, stored).fetch)
    return FlatReader(file, info, stored, range(first, first + n_frames * frame_bytes, frame_bytes))


def _info(
    tree: TagTree, image: Image, stored: np.dtype[Any], n_frames: int, place: Place | None = None
) -> MovieInfo:
    """What the tags say about a movie of ``n_frames`` of the image's frames, the image itself one without a place."""
    axes = _axes(tree, image)
    row, column = (axes[axis] for axis in (place.movie_axes[1:] if place else (-2, -1)))
    time = axes[place.movie_axes[0]] if place else axes[0] if len(axes) > 2 else Axis()
    height, width = image.shape[-2:]
    tags = _group(image.tags, "ImageTags")
    brightness = _group(_group(_group(image.tags, "ImageData"), "Calibrations"), "Brightness")
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
        frame_time_s=time.seconds,
        pixel_size_nm=pixel_size(row.nanometres, column.nanometres),
        exposure_s=to_seconds(f"{exposure:.7g}", "s") if isinstance(exposure, float | int) else None,
        voltage_kv=kilovolts if 0 < kilovolts < 10_000 else None,
        camera=_text(tree, _group(acquisition, "Device").get("Name")) or None,
        warnings=calibrated_brightness(brightness, _text(tree, brightness.get("Units")))
        + (() if place else calibration_lost(time, row, column)),
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
        yield Image(f"ImageList/{number}", tags, tuple(reversed(sizes)), code, pixels)


def _movie_of(file: RawFile, tree: TagTree, images: list[Image], dataset: str | None) -> Image:
    if not images and not tree.complete:
        raise InputError(
            file.path,
            "cut short: it ends before the tags behind the pixels that give the size of a frame, "
            "so no frame can be kept. Copy it again.",
        )
    if not images:
        raise InputError(file.path, "its tags name no image.")
    series = [image for image in images if len(image.shape) > 2]
    listed = ", ".join(f"{image.name} ({_size(image)})" for image in images)
    if dataset is not None:
        series = [
            image
            for image in images
            if dataset.strip("/") in (image.name, _text(tree, image.tags.get("Name")))
        ]
        if len(series) != 1:
            raise UsageError(f"{file.path}: has no image {dataset} or several; its images are {listed}.")
    if len(series) > 1:
        raise InputError(file.path, f"holds {len(series)} image series; name one with --dataset: {listed}.")
    image = series[0] if series else images[-1]
    size = _size(image)
    units = [axis.unit for axis in _axes(tree, image)]
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


def _size(image: Image) -> str:
    return " x ".join(str(n) for n in image.shape)


def _axes(tree: TagTree, image: Image) -> list[Axis]:
    """Every axis, slowest first; without step and unit where the calibration list is too short."""
    calibrations = _group(_group(image.tags, "ImageData"), "Calibrations")
    axes: list[Axis] = []
    for entry in _group(calibrations, "Dimension").values():
        scale = entry.get("Scale") if isinstance(entry, dict) else None
        if isinstance(scale, float) and math.isfinite(scale):
            scale = float(f"{scale:.7g}")  # single precision in the file: 0.0125 and not 0.012500000186
        unit = _text(tree, entry.get("Units")) if isinstance(entry, dict) else ""
        axes.append(Axis(unit=unit, step=scale if isinstance(scale, int | float) else None))
    axes += [Axis()] * len(image.shape)
    return axes[: len(image.shape)][::-1]


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
