"""What the writer of a TIFF movie noted in it: number of frames, frame time, pixel size.

ImageJ, OME, DigitalMicrograph and tifffile each have their own way. The resolution tags of plain TIFF are
not used: they give the dots per inch of a print.
"""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import numpy as np
from numpy.typing import NDArray

from tdenoise.files.json_documents import parse_json

from ..errors import InputError
from .axes import Axis, calibration_lost
from .declared import AS_STORED, Declared, packed
from .gatan import calibrated_brightness
from .tiff_pages import (
    BITS,
    COMPRESSION,
    DESCRIPTION,
    SAMPLE_FORMAT,
    X_RESOLUTION,
    Y_RESOLUTION,
    Page,
)
from .tiff_planes import AXES, Wanted, choose_planes, n_planes
from .timestamps import frame_time, told_apart
from .units import not_understood, pixel_size, to_nanometres, to_seconds

EER = {65000: "EER", 65001: "EER", 65002: "EER"}  # compressions
_EER_METADATA = 65001  # a tag of the same number
_METAMORPH = 33629  # UIC2Tag: six words for each frame
_GDAL_METADATA, _GDAL_NO_DATA = 42112, 42113  # tags
_PACKED_LABEL = "image, 4 bits packed"
_NOT_CALIBRATED = 20  # ImageJ's number of the function
_DM_UNITS = (65003, 65004, 65005)  # of x, y and z
_DM_SCALES = (65009, 65010, 65011)
_DM_BRIGHTNESS_UNIT, _DM_ORIGIN, _DM_FACTOR = 65022, 65024, 65025
_NO_TIME = {
    "A": "an angle",
    "E": "a wavelength",
    "H": "a lifetime",
    "P": "a phase",
    "R": "tiles",
    "M": "tiles",
}
_OTHERS = {
    37706: "TVIPS",
    34680: "FEI",
    34682: "FEI",
    33560: "Olympus SIS",
    34118: "Zeiss",
}  # who calibrates there


@dataclass(frozen=True)
class Description:
    """What the first page of a file says about the whole."""

    writer: str = ""
    n_frames: int | None = None  # pages, of all channels and slices
    planes: range | None = None  # those of them that are the movie; None for all
    one_page: bool = False  # the frames may follow the first one without directories of their own
    frame_time_s: float | None = None
    pixel_size_nm: tuple[float, float] | None = None
    exposure_s: float | None = None
    timestamps_s: NDArray[np.float64] | None = None
    declared: Declared = AS_STORED  # of the numbers
    warnings: tuple[str, ...] = ()
    metadata: dict[str, Any] = field(default_factory=dict)


def describe(path: Path, page: Page, wanted: Wanted = Wanted()) -> Description:  # noqa: B008  a constant
    """Read the description of the first page.

    Raises
    ------
    InputError
        If it says that the file has more axes than (frame, row, column), and ``wanted`` does not choose; or if it
        declares something of the numbers that is not applied here.
    UsageError
        If ``wanted`` asks for what is not there.
    """
    text = page.text(DESCRIPTION)
    if _PACKED_LABEL in text and page.number(BITS, 1) == 8:
        raise InputError(
            path,
            "its label says that each byte holds two pixels of 4 bits (SerialEM), which is read in MRC only.",
        )
    found = _by_writer(path, page, text, wanted)
    if found.declared == AS_STORED:
        found = replace(found, declared=_gdal(path, page))
    if found.planes is None:
        choose_planes(path, (), wanted)  # there is nothing to choose from
    if found.writer == "DigitalMicrograph":
        return found
    # HyperSpy writes these beside the description of ImageJ, which has no place for all of them.
    scales = _digitalmicrograph(page)
    pixel = found.pixel_size_nm or scales.pixel_size_nm
    unread = sorted({name for code, name in _OTHERS.items() if page.count(code)}) if pixel is None else []
    return replace(
        found,
        frame_time_s=found.frame_time_s or scales.frame_time_s,
        pixel_size_nm=pixel,
        warnings=found.warnings
        + scales.warnings
        + tuple(
            f"it has tags of {name}, which are not read: if they give a pixel size, --pixel-size does, too."
            for name in unread
        ),
    )


def _gdal(path: Path, page: Page) -> Declared:
    """What GDAL's tags declare of the numbers: one that stands for no value, a scale and an offset."""
    told = {}
    if empty := page.text(_GDAL_NO_DATA).strip():
        told["_FillValue"] = empty
    for item in re.finditer(r'role="(scale|offset)"\s*>([^<]*)<', page.text(_GDAL_METADATA)):
        told[{"scale": "scale_factor", "offset": "add_offset"}[item[1]]] = item[2].strip()
    return packed(path, "of pixels", np.dtype("f8"), told) if told else AS_STORED


def _by_writer(path: Path, page: Page, text: str, wanted: Wanted) -> Description:
    if text.startswith("ImageJ="):
        return _imagej(path, page, text, wanted)
    if text.startswith('{"shape":'):
        return _tifffile(path, text, wanted)
    if "<OME" in text and "<!ENTITY" not in text:
        try:
            return _ome(path, ElementTree.fromstring(text), wanted)
        except ElementTree.ParseError:
            return Description(metadata={"description": text})
    if page.count(_METAMORPH):
        return _metamorph(page, text)
    if page.number(COMPRESSION, 1) in EER:
        return _eer(page)
    if page.array(_DM_SCALES[0]) is not None:
        return _digitalmicrograph(page)
    return Description(metadata={"description": text} if text else {})


def _imagej(path: Path, page: Page, text: str, wanted: Wanted) -> Description:
    entries = dict(line.split("=", 1) for line in text.splitlines() if "=" in line)
    # Channels run fastest, then slices.
    axes = [(name, _positive(entries.get(name))) for name in ("frames", "slices", "channels")]
    whole = n_planes(axes) == _positive(entries.get("images"))  # else ImageJ takes it for a plain stack, too
    unit = entries.get("unit")
    frame_time = to_seconds(entries.get("finterval"), entries.get("tunit", "s"))
    said = not_understood(entries.get("finterval"), entries.get("tunit"), "frame time")
    rate = to_seconds(entries.get("fps"), "s")  # a positive number or None; frames per second
    if frame_time is None and rate:
        frame_time = to_seconds(1 / rate, "s")
    column, row = (
        (_per_pixel(page, X_RESOLUTION), unit),
        (_per_pixel(page, Y_RESOLUTION), entries.get("yunit", unit)),
    )
    return Description(
        writer="ImageJ",
        n_frames=_positive(entries.get("images")),
        planes=choose_planes(path, axes, wanted) if whole else None,
        one_page=True,
        frame_time_s=frame_time,
        pixel_size_nm=pixel_size(to_nanometres(*row), to_nanometres(*column)),
        warnings=_unknown(() if frame_time else said, row, column),
        declared=_imagej_calibration(path, page, entries),
        metadata={"ImageJ": entries},
    )


def _unknown(said: tuple[str, ...], *pixels: tuple[Any, Any]) -> tuple[str, ...]:
    """These warnings, and those for steps of pixels in units that are not understood."""
    return tuple(dict.fromkeys((*said, *(w for step in pixels for w in not_understood(*step, "pixel size")))))


def _imagej_calibration(path: Path, page: Page, entries: dict[str, str]) -> Declared:
    """How ImageJ makes values of the numbers: along a straight line, in images of whole numbers.

    It stores signed 16-bit counts with 32768 added and a line that takes this away again.
    """
    names = [name for name in ("c0", "c1", "c2", "c3", "c4") if name in entries]
    function = _finite(entries.get("cf", _NOT_CALIBRATED))
    if function == _NOT_CALIBRATED or (function == 0 and len(names) < 2):
        return AS_STORED
    line = [number for name in names if (number := _finite(entries[name])) is not None]
    if function != 0 or len(names) != 2 or len(line) != 2 or line[1] == 0:
        told = ", ".join(f"{name}={entries[name]}" for name in ("cf", *names))
        raise InputError(
            path,
            f"its numbers are calibrated by a function of ImageJ that is not a straight line ({told}), which is not "
            "applied here. Save the movie without it (Analyze > Calibrate, function None).",
        )
    offset, factor = line
    sample_format = page.number(SAMPLE_FORMAT, 1)
    if (sample_format, factor, offset) == (2, 1.0, -32768.0):
        return AS_STORED  # stored as signed in the first place: ImageJ adds as much when it opens it
    if sample_format == 3 and (factor, offset) != (1.0, 0.0):
        line_told = f"{factor:g} x + {offset:g}"
        said = f"ImageJ's calibration ({line_told}) is not applied: ImageJ itself ignores it for floats."
        return Declared(warnings=(said,))
    return Declared(factor, offset)


def _tifffile(path: Path, text: str, wanted: Wanted) -> Description:
    entries = parse_json(text)
    letters = str(entries.get("axes", "")).ljust(len(entries["shape"]), "?")
    long = [letter for letter, n in zip(letters[:-2], entries["shape"], strict=False) if n > 1]
    other = _NO_TIME.get(long[0]) if len(long) == 1 else None
    axes = [
        (AXES.get(letter, f"axis{k}"), n)
        for k, (letter, n) in enumerate(zip(letters, entries["shape"], strict=True))
    ]
    return Description(
        n_frames=n_planes(axes[:-2]),
        planes=choose_planes(path, axes[:-2], wanted),
        one_page=True,
        warnings=(f"it holds a stack over {other}, not a movie over time.",) if other else (),
        metadata=entries,
    )


def _ome(path: Path, root: ElementTree.Element, wanted: Wanted) -> Description:
    images = [node for node in root.iter() if _name(node) == "Pixels"]
    if not images:
        return Description(writer="OME")
    if len(images) > 1:
        raise InputError(path, f"holds {len(images)} OME images; save the one you want as its own file.")
    pixels = images[0].attrib
    order = str(pixels.get("DimensionOrder", "XYZCT"))[2:]  # the fastest first
    if sorted(order) != ["C", "T", "Z"]:
        raise InputError(path, f"damaged: its OME entry gives the order of axes XY{order[:20]}.")
    axes = [(AXES[letter], _positive(pixels.get(f"Size{letter}"))) for letter in reversed(order)]
    planes = choose_planes(path, axes, wanted)
    files = {node.get("FileName") for node in images[0].iter() if _name(node) == "UUID"} - {None}
    if len(files) > 1:
        raise InputError(
            path, f"one of {len(files)} files of an OME-TIFF set; save the movie as a single file."
        )
    for number, plane in enumerate(node for node in images[0] if _name(node) == "TiffData"):
        position = _position(plane.attrib, "First", axes)
        if plane.get("IFD") is not None and int(plane.get("IFD", 0)) != position:
            raise InputError(path, f"its OME entry {number} puts frames out of order, which is not read.")
    stamps, exposure = _ome_planes(images[0], axes, planes)
    told = to_seconds(pixels.get("TimeIncrement"), pixels.get("TimeIncrementUnit", "s"))
    time, uneven = frame_time(stamps, 1e-6, told)
    row, column = (
        (pixels.get(f"PhysicalSize{axis}"), pixels.get(f"PhysicalSize{axis}Unit", "um")) for axis in "YX"
    )
    lost = not_understood(pixels.get("TimeIncrement"), pixels.get("TimeIncrementUnit", "s"), "frame time")
    return Description(
        writer="OME",
        n_frames=n_planes(axes),
        planes=planes,
        frame_time_s=time,
        exposure_s=exposure,
        timestamps_s=told_apart(stamps),
        warnings=uneven + _unknown(() if time else lost, row, column),
        pixel_size_nm=pixel_size(to_nanometres(*row), to_nanometres(*column)),
        metadata={"OME": {_name(node): dict(node.attrib) for node in root.iter() if node.attrib}},
    )


def _position(entry: dict[str, str], prefix: str, axes: Sequence[tuple[str, int]]) -> int:
    """Number of the page that an entry of OME means."""
    position = 0
    for name, n in axes:
        letter = next(letter for letter, axis in AXES.items() if axis == name)
        index = entry.get(prefix + letter, "0").strip()
        position = position * n + (int(index) if index.isdecimal() else 0)
    return position


def _ome_planes(
    pixels: ElementTree.Element, axes: Sequence[tuple[str, int]], frames: range
) -> tuple[NDArray[np.float64] | None, float | None]:
    """When each frame was taken [s], if the entries of all planes say so, and how long the first was exposed [s]."""
    planes = [node.attrib for node in pixels if _name(node) == "Plane"]
    if not planes:
        return None, None
    exposure = to_seconds(planes[0].get("ExposureTime"), planes[0].get("ExposureTimeUnit", "s"))
    stamps: dict[int, float] = {}
    for plane in planes:
        number = _position(plane, "The", axes)
        unit_s = to_seconds(1, plane.get("DeltaTUnit", "s"))
        delta = _finite(plane.get("DeltaT"))
        if unit_s is None or delta is None:
            return None, exposure
        stamps[number] = delta * unit_s
    if not all(number in stamps for number in frames):
        return None, exposure
    return np.array([stamps[number] for number in frames]), exposure


def _digitalmicrograph(page: Page) -> Description:
    values = [page.array(code) for code in _DM_SCALES]
    scales = [float(f"{v[0]:.7g}") if v is not None and v.size else None for v in values]
    units = [page.text(code) for code in _DM_UNITS]
    axes = [Axis(unit=unit, step=scale) for scale, unit in zip(scales, units, strict=True)]
    column, row, time = axes
    numbers = (page.array(code) for code in (_DM_ORIGIN, _DM_FACTOR))
    origin, factor = (float(v[0]) if v is not None and v.size else None for v in numbers)
    return Description(
        writer="DigitalMicrograph",
        frame_time_s=time.seconds,
        pixel_size_nm=pixel_size(row.nanometres, column.nanometres),
        warnings=calibrated_brightness(
            {"Scale": factor, "Origin": origin or 0.0}, page.text(_DM_BRIGHTNESS_UNIT)
        )
        + calibration_lost(time, row, column),
    )


def _metamorph(page: Page, text: str) -> Description:
    """MetaMorph STK: one page, and the other frames behind its pixels; date and time of each in a tag."""
    n_frames = page.count(_METAMORPH)
    words = (
        np.frombuffer(page.raw(_METAMORPH, 24 * n_frames), page.order + "u4").reshape(-1, 6).astype(np.int64)
    )
    stamps = (words[:, 2] - words[0, 2]) * 86400.0 + words[:, 3] / 1000
    exposure = re.search(r"Exposure:\s*([0-9.]+)\s*(\w+)", text)
    time, uneven = frame_time(stamps, 1e-3)
    return Description(
        writer="MetaMorph",
        n_frames=n_frames,
        one_page=True,
        frame_time_s=time,
        exposure_s=to_seconds(exposure[1], exposure[2]) if exposure else None,
        timestamps_s=told_apart(stamps),
        warnings=uneven,
        metadata={"description": text},
    )


def _eer(page: Page) -> Description:
    """EER: what the camera says of the whole recording."""
    text = page.text(_EER_METADATA)
    try:
        items = list(ElementTree.fromstring(text)) if text and "<!ENTITY" not in text else []
    except ElementTree.ParseError:
        items = []
    told = {item.get("name", ""): (item.text or "", item.get("unit", "")) for item in items}
    total = to_seconds(*told.get("exposureTime", ("", "s")))
    n_frames = _positive(told.get("numberOfFrames", ("",))[0])
    # Each frame is exposed all the time until the next one.
    frame = to_seconds(total / n_frames, "s") if total and n_frames > 1 else None
    lengths = (to_nanometres(*told.get(f"sensorPixelSize.{side}", ("", ""))) for side in ("height", "width"))
    row, column = lengths
    return Description(
        writer="EER",
        frame_time_s=frame,
        exposure_s=frame,
        pixel_size_nm=pixel_size(row or column, column or row),
        metadata={"EER": {name: " ".join(value).strip() for name, value in told.items()}},
    )


def _per_pixel(page: Page, code: int) -> float | None:
    """Length of a pixel from a resolution tag, which counts pixels per length."""
    values = page.array(code)
    if values is None or values.size == 0 or values.dtype.names is None:
        return None
    pixels, length = (int(n) for n in values[0])
    return length / pixels if pixels else None


def _positive(value: Any) -> int:
    """An integer of at least 1; 1 where there is none."""
    return max(int(value), 1) if str(value or "").strip().isdigit() else 1


def _finite(value: Any) -> float | None:
    try:
        number = float(value)
    except (TypeError, ValueError):
        return None
    return number if math.isfinite(number) else None


def _name(node: ElementTree.Element) -> str:
    return node.tag.rpartition("}")[2]
