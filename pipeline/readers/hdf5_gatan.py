"""Gatan's DM5: the tags of a DM4 file as groups and attributes of an HDF5 file."""

from __future__ import annotations

import re
from typing import Any

import numpy as np

from . import MovieInfo, Reader
from .axes import Axis, calibration_lost
from .gatan import calibrated_brightness, open_capture
from .hdf5_profiles import Contents, Movie
from .rawfile import RawFile
from .units import bounded_json, pixel_size, single, to_seconds

_PIXELS = "/ImageData/Data"


def is_dm5(contents: Contents) -> bool:
    """Whether a file has the image list of DigitalMicrograph."""
    return any(contents.is_array(group + _PIXELS) for group in contents.children("ImageList"))


def dm5(contents: Contents) -> list[Movie]:
    """The images of a file, without the small copies that browsers show."""
    thumbnails = {_tag(contents, group, "ImageIndex") for group in contents.children("Thumbnails")}
    groups = sorted(contents.children("ImageList"), key=_place)
    return [
        _image(contents, group)
        for group in groups
        if contents.is_array(group + _PIXELS) and _place(group) not in thumbnails
    ]


def open_director(file: RawFile, contents: Contents, library: str, allow_truncated: bool) -> Reader | None:
    """The in situ capture that an image directs to; None where no image does."""
    for image in dm5(contents) if is_dm5(contents) else ():
        group = image.name.removesuffix(_PIXELS)
        recorded = _tag(contents, f"{group}/ImageTags/In-situ/Recorded", "# Frames")
        shape, dtype = contents.shape(image.name), contents.objects[image.name]["dtype"]
        if len(shape) != 2 or not isinstance(recorded, int) or dtype is None:
            continue
        row, column = image.axes
        time = contents.attributes(f"{group}/ImageData/Calibrations/Dimension/[2]")
        info = MovieInfo(
            shape=(recorded, *shape),
            dtype=np.dtype(dtype).newbyteorder("="),
            format=image.format,
            reader=library,
            frame_time_s=to_seconds(_single(time.get("Scale")), time.get("Units")),
            pixel_size_nm=pixel_size(row.nanometres, column.nanometres),
            exposure_s=image.exposure_s,
            voltage_kv=image.voltage_kv,
            camera=image.camera,
            warnings=image.warnings + calibration_lost(None, row, column),
            metadata=bounded_json(image.metadata),
        )
        return open_capture(file, info, np.dtype(dtype), allow_truncated)
    return None


def _image(contents: Contents, group: str) -> Movie:
    name, tags = group + _PIXELS, f"{group}/ImageTags"
    calibrations = f"{group}/ImageData/Calibrations"
    dimensions = sorted(contents.children(f"{calibrations}/Dimension"), key=_place)
    brightness = contents.attributes(f"{calibrations}/Brightness")
    n_axes = len(contents.shape(name))
    axes = [
        Axis(unit=str(told.get("Units") or ""), step=_single(told.get("Scale")))
        for told in map(contents.attributes, dimensions)
    ]
    axes += [Axis()] * n_axes
    acquisition = f"{tags}/Acquisition"
    exposure = _tag(contents, f"{acquisition}/Parameters/High Level", "Exposure (s)")
    if exposure is None:
        exposure = _tag(contents, f"{tags}/DataBar", "Exposure Time (s)")
    volts = _tag(contents, f"{tags}/Microscope Info", "Voltage")
    camera = _tag(contents, f"{acquisition}/Device", "Name")
    return Movie(
        name,
        "DM5",
        tuple(axes[:n_axes][::-1]),  # DigitalMicrograph counts axes from the fastest on
        label=str(_tag(contents, group, "Name") or group),
        exposure_s=to_seconds(_single(exposure), "s"),
        voltage_kv=volts / 1000 if isinstance(volts, int | float) and 0 < volts < 1e7 else None,
        camera=str(camera) if camera else None,
        warnings=calibrated_brightness(brightness, str(brightness.get("Units") or "")),
        metadata=contents.tree(group, but=name),
    )


def _tag(contents: Contents, group: str, name: str) -> Any:
    """A tag, which is an attribute or an array of one value."""
    found = contents.attributes(group).get(name)
    return single(contents.value(f"{group}/{name}") if found is None else found)


def _single(value: Any) -> float | None:
    """A number of single precision: 0.0125 and not 0.012500000186."""
    return float(f"{value:.7g}") if isinstance(value, int | float) else None


def _place(group: str) -> int:
    """Number of an entry of a list: the groups are named [0], [1], ..."""
    digits = re.findall("[0-9]+", group.rpartition("/")[2])
    return int(digits[0]) if digits else -1
