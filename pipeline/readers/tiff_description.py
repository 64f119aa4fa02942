"""What the writer of a TIFF movie noted in it: number of frames, frame time, pixel size.

ImageJ, OME, DigitalMicrograph and tifffile each have their own way. The resolution tags of plain TIFF are
not used: they give the dots per inch of a print.
"""

from __future__ import annotations

import math
import re
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import numpy as np
from numpy.typing import NDArray

from tdenoise.documents import parse_json

from ..errors import InputError
from .declared import AS_STORED, Declared, packed
from .tiff_pages import BITS, DESCRIPTION, SAMPLE_FORMAT, X_RESOLUTION, Y_RESOLUTION, Page
from .timestamps import frame_time, told_apart
from .units import pixel_size, to_nanometres, to_seconds

_GDAL_METADATA, _GDAL_NO_DATA = 42112, 42113  # tags
_PACKED_LABEL = "image, 4 bits packed"
_NOT_CALIBRATED = 20  # ImageJ's number of the function
_PLANE = ("TheC", "TheZ", "TheT")
_DM_UNITS = (65003, 65004, 65005)  # of x, y and z
_DM_SCALES = (65009, 65010, 65011)


@dataclass(frozen=True)
class Description:
    """What the first page of a file says about the whole."""

    writer: str = ""
    n_frames: int | None = None
    one_page: bool = False  # the frames may follow the first one without directories of their own
    frame_time_s: float | None = None
    pixel_size_nm: tuple[float, float] | None = None
    exposure_s: float | None = None
    timestamps_s: NDArray[np.float64] | None = None
    declared: Declared = AS_STORED  # of the numbers
    warnings: tuple[str, ...] = ()
    metadata: dict[str, Any] = field(default_factory=dict)


def describe(path: Path, page: Page) -> Description:
    """Read the description of the first page.

    Raises
    ------
    InputError
        If it says that the file has more axes than (frame, row, column), or declares something of the numbers that
        is not applied here.
    """
    text = page.text(DESCRIPTION)
    if _PACKED_LABEL in text and page.number(BITS, 1) == 8:
        raise InputError(
            path,
            "its label says that each byte holds two pixels of 4 bits (SerialEM), which is read in MRC only.",
        )
    found = _by_writer(path, page, text)
    return found if found.declared != AS_STORED else replace(found, declared=_gdal(path, page))


def _gdal(path: Path, page: Page) -> Declared:
    """What GDAL's tags declare of the numbers: one that stands for no value, a scale and an offset."""
    told = {}
    if empty := page.text(_GDAL_NO_DATA).strip():
        told["_FillValue"] = empty
    for item in re.finditer(r'role="(scale|offset)"\s*>([^<]*)<', page.text(_GDAL_METADATA)):
        told[{"scale": "scale_factor", "offset": "add_offset"}[item[1]]] = item[2].strip()
    return packed(path, "of pixels", np.dtype("f8"), told) if told else AS_STORED


def _by_writer(path: Path, page: Page, text: str) -> Description:
    if text.startswith("ImageJ="):
        return _imagej(path, page, text)
    if text.startswith('{"shape":'):
        return _tifffile(path, text)
    if "<OME" in text and "<!ENTITY" not in text:
        try:
            return _ome(path, ElementTree.fromstring(text))
        except ElementTree.ParseError:
            return Description(metadata={"description": text})
    if page.array(_DM_SCALES[0]) is not None:
        return _digitalmicrograph(page)
    return Description(metadata={"description": text} if text else {})


def _imagej(path: Path, page: Page, text: str) -> Description:
    entries = dict(line.split("=", 1) for line in text.splitlines() if "=" in line)
    lengths = {name: _positive(entries.get(name)) for name in ("channels", "slices", "frames")}
    _only_one_axis(path, lengths)
    unit = entries.get("unit")
    frame_time = to_seconds(entries.get("finterval"), entries.get("tunit", "s"))
    rate = to_seconds(entries.get("fps"), "s")  # a positive number or None; frames per second
    if frame_time is None and rate:
        frame_time = to_seconds(1 / rate, "s")
    return Description(
        writer="ImageJ",
        n_frames=_positive(entries.get("images")),
        one_page=True,
        frame_time_s=frame_time,
        pixel_size_nm=pixel_size(
            to_nanometres(_per_pixel(page, Y_RESOLUTION), entries.get("yunit", unit)),
            to_nanometres(_per_pixel(page, X_RESOLUTION), unit),
        ),
        declared=_imagej_calibration(path, page, entries),
        metadata={"ImageJ": entries},
    )


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
        said = f"ImageJ's calibration ({line_told}) is not applied: ImageJ itself passes over it in floats."
        return Declared(warnings=(said,))
    return Declared(factor, offset)


def _tifffile(path: Path, text: str) -> Description:
    entries = parse_json(text)
    shape = [n for n in entries["shape"][:-2] if n != 1]
    _only_one_axis(path, dict(enumerate(shape)))
    return Description(n_frames=math.prod(shape), one_page=True, metadata=entries)


def _ome(path: Path, root: ElementTree.Element) -> Description:
    images = [node for node in root.iter() if _name(node) == "Pixels"]
    if not images:
        return Description(writer="OME")
    if len(images) > 1:
        raise InputError(path, f"holds {len(images)} OME images; save the one you want as its own file.")
    pixels = images[0].attrib
    lengths = {axis: _positive(pixels.get(f"Size{axis}")) for axis in "CZT"}
    _only_one_axis(path, lengths)
    files = {node.get("FileName") for node in images[0].iter() if _name(node) == "UUID"} - {None}
    if len(files) > 1:
        raise InputError(
            path, f"one of {len(files)} files of an OME-TIFF set; save the movie as a single file."
        )
    for number, plane in enumerate(node for node in images[0] if _name(node) == "TiffData"):
        position = max(int(plane.get(name, 0)) for name in ("FirstC", "FirstZ", "FirstT"))
        if plane.get("IFD") is not None and int(plane.get("IFD", 0)) != position:
            raise InputError(path, f"its OME entry {number} puts frames out of order, which is not read.")
    n_frames = math.prod(lengths.values())
    stamps, exposure = _ome_planes(images[0], n_frames)
    told = to_seconds(pixels.get("TimeIncrement"), pixels.get("TimeIncrementUnit", "s"))
    time, uneven = frame_time(stamps, 1e-6, told)
    return Description(
        writer="OME",
        n_frames=n_frames,
        frame_time_s=time,
        exposure_s=exposure,
        timestamps_s=told_apart(stamps),
        warnings=uneven,
        pixel_size_nm=pixel_size(
            to_nanometres(pixels.get("PhysicalSizeY"), pixels.get("PhysicalSizeYUnit", "um")),
            to_nanometres(pixels.get("PhysicalSizeX"), pixels.get("PhysicalSizeXUnit", "um")),
        ),
        metadata={"OME": {_name(node): dict(node.attrib) for node in root.iter() if node.attrib}},
    )


def _ome_planes(
    pixels: ElementTree.Element, n_frames: int
) -> tuple[NDArray[np.float64] | None, float | None]:
    """When each frame was taken [s], if the entries of all planes say so, and how long the first was exposed [s]."""
    planes = [node.attrib for node in pixels if _name(node) == "Plane"]
    if not planes:
        return None, None
    exposure = to_seconds(planes[0].get("ExposureTime"), planes[0].get("ExposureTimeUnit", "s"))
    stamps: dict[int, float] = {}
    for plane in planes:
        number = max((_positive(plane.get(name)) if plane.get(name) != "0" else 0) for name in _PLANE)
        unit_s = to_seconds(1, plane.get("DeltaTUnit", "s"))
        delta = _finite(plane.get("DeltaT"))
        if unit_s is None or delta is None:
            return None, exposure
        stamps[number] = delta * unit_s
    if sorted(stamps) != list(range(n_frames)):
        return None, exposure
    return np.array([stamps[k] for k in range(n_frames)]), exposure


def _digitalmicrograph(page: Page) -> Description:
    values = [page.array(code) for code in _DM_SCALES]
    scales = [float(f"{v[0]:.7g}") if v is not None and v.size else None for v in values]
    units = [page.text(code) for code in _DM_UNITS]
    return Description(
        writer="DigitalMicrograph",
        frame_time_s=to_seconds(scales[2], units[2]),
        pixel_size_nm=pixel_size(to_nanometres(scales[1], units[1]), to_nanometres(scales[0], units[0])),
    )


def _only_one_axis(path: Path, lengths: dict[Any, int]) -> None:
    """Refuse a file with more than one axis beside rows and columns."""
    axes = {name: n for name, n in lengths.items() if n > 1}
    colours = next((n for name, n in axes.items() if name in {"channels", "C"}), None)
    if colours or len(axes) > 1:
        found = " x ".join(f"{n} {name}" for name, n in axes.items())
        raise InputError(path, f"holds {found}, not one axis of frames; save the movie you want alone.")


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
