"""What the arrays in an HDF5 file mean: Velox EMD, NCEM EMD and .de5, HyperSpy, or none of them."""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np

from tdenoise.files.json_documents import parse_json

from ..errors import InputError, UsageError
from .axes import Axis, interpreted
from .declared import packed
from .timestamps import usual_step
from .units import single, to_nanometres, to_seconds

_LISTED = 8  # arrays named in an error message


@dataclass(frozen=True)
class Contents:
    """What hdf5_child has listed."""

    path: Path
    objects: dict[str, dict[str, Any]]  # by name, without the first slash; the root is ""
    links: dict[str, str]  # links that are not followed, and where they point
    external: dict[str, list[str]] = field(default_factory=dict)  # of these: file and name in it

    def attributes(self, name: str) -> dict[str, Any]:
        found = self.objects.get(name, {}).get("attributes", {})
        return found if isinstance(found, dict) else {}

    def value(self, name: str) -> Any:
        return self.objects.get(name, {}).get("value")

    def children(self, name: str) -> list[str]:
        prefix = f"{name}/" if name else ""
        return [n for n in self.objects if n.startswith(prefix) and n and "/" not in n[len(prefix) :]]

    def is_array(self, name: str) -> bool:
        return self.objects.get(name, {}).get("shape") is not None

    def holds_counts(self, name: str) -> bool:
        dtype = self.objects[name]["dtype"]
        return dtype is not None and np.dtype(dtype).kind in "iuf"

    def shape(self, name: str) -> tuple[int, ...]:
        return tuple(self.objects[name]["shape"])

    def tree(self, name: str, but: str) -> dict[str, Any]:
        """Attributes and values below a group, but not those of one array's pixels."""
        record: dict[str, Any] = dict(self.attributes(name))
        for child in self.children(name):
            key = child.rpartition("/")[2]
            if self.is_array(child):
                record[key] = {**self.attributes(child), "shape": list(self.shape(child))}
                if child != but and "value" in self.objects[child]:
                    record[key]["value"] = self.value(child)
            else:
                record[key] = self.tree(child, but)
        return record


@dataclass(frozen=True)
class Movie:
    """An array that may be a movie, and what its file says about it."""

    name: str  # of the array
    format: str
    axes: tuple[Axis, ...]
    label: str = ""  # by which a person knows it
    custom: tuple[int, ...] = (0, 1, 2)
    frame_time_s: float | None = None
    exposure_s: float | None = None
    dose_rate_e_per_nm2_s: float | None = None
    voltage_kv: float | None = None
    camera: str | None = None
    warnings: tuple[str, ...] = ()
    metadata: Mapping[str, Any] = field(default_factory=dict)


Profile = tuple[Callable[[Contents], bool], Callable[[Contents], list[Movie]]]


def find_movie(contents: Contents, dataset: str | None, more: Sequence[Profile] = ()) -> Movie:
    """The movie of a file, or the array that the user names; ``more`` profiles are tried before those here.

    Raises
    ------
    InputError
        If there is no movie, or more than one and none is named.
    UsageError
        If the array that is named is not there.
    """
    profile = next((p for recognises, p in (*more, *PROFILES) if recognises(contents)), _generic)
    found = profile(contents)
    if dataset is not None:
        return _named(contents, found, dataset.strip("/"))
    stacks = [movie for movie in found if _is_stack(contents.shape(movie.name))]
    # The Fourier transform that Velox keeps beside a movie is complex.
    stacks = [movie for movie in stacks if contents.holds_counts(movie.name)] or stacks
    if len(stacks) == 1:
        return stacks[0]
    if stacks:
        raise InputError(
            contents.path,
            f"holds {len(stacks)} movies; name one with --dataset: {_list(contents, stacks)}.",
        )
    if len(found) == 1 and len(contents.shape(found[0].name)) > 1:
        return found[0]  # to be refused by what it is
    outside = [f"{name} -> {target}" for name, target in contents.links.items()]
    if outside:
        raise InputError(
            contents.path,
            "holds no movie itself, only links, which are not followed: "
            f"{', '.join(outside[:_LISTED])}. Name the file with the frames.",
        )
    arrays = [Movie(name, "", ()) for name in contents.objects if contents.is_array(name)]
    what = f"; its arrays are {_list(contents, arrays)}" if arrays else ""
    raise InputError(contents.path, f"holds no array of (frame, row, column){what}.")


def _named(contents: Contents, found: list[Movie], dataset: str) -> Movie:
    for movie in found:
        if dataset in (movie.name, movie.name.rpartition("/")[0]):
            return movie
    labelled = [movie for movie in found if movie.label == dataset]
    if len(labelled) == 1:
        return labelled[0]
    if contents.is_array(dataset):
        axes = tuple(Axis() for _ in contents.shape(dataset))
        return Movie(dataset, "HDF5", axes, metadata={"attributes": contents.attributes(dataset)})
    if dataset in contents.links:
        raise UsageError(
            f"{contents.path}: {dataset} is a link to {contents.links[dataset]}; links are not followed, "
            "name the array itself."
        )
    arrays = found or _generic(contents)
    raise UsageError(
        f"{contents.path}: has no array {dataset}; its arrays are {_list(contents, arrays) or 'none'}."
    )


def _list(contents: Contents, movies: list[Movie]) -> str:
    words = []
    for movie in movies[:_LISTED]:
        size = " x ".join(str(n) for n in contents.shape(movie.name))
        words.append(f"{movie.name} ({', '.join(w for w in (movie.label, size) if w)})")
    more = len(movies) - _LISTED
    return ", ".join(words) + (f" and {more} more" if more > 0 else "")


def _is_stack(shape: tuple[int, ...]) -> bool:
    return sum(n > 1 for n in shape) > 2


# Velox


def _is_velox(contents: Contents) -> bool:
    return any(n.startswith("Data/Image/") and n.endswith("/Data") for n in contents.objects)


def _velox(contents: Contents) -> list[Movie]:
    """Images are stored (row, column, frame), each with a JSON record per frame."""
    return [
        _velox_image(contents, group)
        for group in contents.children("Data/Image")
        if contents.is_array(f"{group}/Data")
    ]


def _velox_image(contents: Contents, group: str) -> Movie:
    name = f"{group}/Data"
    record = _json(contents.value(f"{group}/Metadata"))
    result = _mapping(record.get("BinaryResult"))
    detector = str(result.get("Detector", ""))
    detectors = [_mapping(d) for d in _mapping(record.get("Detectors")).values()]
    of_image = next((d for d in detectors if d.get("DetectorName") == detector), {})
    exposure = to_seconds(of_image.get("ExposureTime"), "s")
    scan_time = to_seconds(_mapping(record.get("Scan")).get("FrameTime"), "s")
    pixel = _mapping(result.get("PixelSize"))
    axes = (
        Axis("y", str(result.get("PixelUnitY", "")), _number(pixel.get("height"))),
        Axis("x", str(result.get("PixelUnitX", "")), _number(pixel.get("width"))),
        Axis("time"),
    )
    return Movie(
        name,
        "Velox EMD",
        axes if len(contents.shape(name)) == 3 else tuple(Axis() for _ in contents.shape(name)),
        label=detector,
        custom=(2, 0, 1),
        # A scan takes its frame time; a camera that streams exposes all the time.
        frame_time_s=scan_time or exposure,
        exposure_s=exposure,
        voltage_kv=_kilovolts(_mapping(record.get("Optics")).get("AccelerationVoltage")),
        camera=detector or None,
        metadata=record,
    )


# NCEM EMD and Direct Electron .de5


def _is_ncem(contents: Contents) -> bool:
    return any(str(o["attributes"].get("emd_group_type")) == "1" for o in contents.objects.values())


def _ncem(contents: Contents) -> list[Movie]:
    """Groups marked as data, with one array, and a vector dim1, dim2, ... for each of its axes."""
    found = []
    for group, entry in contents.objects.items():
        if str(entry["attributes"].get("emd_group_type")) != "1":
            continue
        arrays = [n for n in contents.children(group) if contents.is_array(n) and len(contents.shape(n)) > 1]
        if f"{group}/data" in arrays:
            arrays = [f"{group}/data"]
        found += [_ncem_array(contents, group, name) for name in arrays]
    return found


def _ncem_array(contents: Contents, group: str, name: str) -> Movie:
    axes = tuple(_ncem_axis(contents, f"{group}/dim{k + 1}") for k in range(len(contents.shape(name))))
    microscope = next((n for n in contents.objects if n.rpartition("/")[2] == "microscope"), "")
    told = (
        {key.lower(): value for key, value in contents.attributes(microscope).items()} if microscope else {}
    )
    voltage = next((told[k] for k in ("voltage", "high tension", "accelerating voltage") if k in told), None)
    camera = next((told[k] for k in ("camera", "detector") if told.get(k)), None)
    kind = "DE5" if contents.path.suffix.lower() == ".de5" else "NCEM EMD"
    return Movie(
        name,
        kind,
        axes,
        label=group.rpartition("/")[2],
        custom=(2, 1, 0),  # x is the slowest axis where the axes have no names
        voltage_kv=_kilovolts(voltage),
        camera=str(camera) if camera else None,
        metadata=contents.tree("", but=name),
    )


def _axis(contents: Contents, name: str, called: str) -> Axis:
    """An axis whose values are an array of their own."""
    told, listed = contents.attributes(name), contents.value(name)
    dtype, values = contents.objects.get(name, {}).get("dtype"), None
    if isinstance(listed, list) and listed and dtype is not None and np.dtype(dtype).kind in "iuf":
        stored = np.array(listed, np.dtype(dtype).newbyteorder("="))
        if stored.ndim == 1:
            values = packed(contents.path, name, stored.dtype, told).values(stored)
    step = None if values is None else usual_step(values, digits=7)
    return Axis(called, str(told.get("units", "")), step, values=values)


def _ncem_axis(contents: Contents, name: str) -> Axis:
    return _axis(contents, name, str(contents.attributes(name).get("name", "")))


# HyperSpy


def _is_hyperspy(contents: Contents) -> bool:
    return "file_format" in contents.attributes("") and "Experiments" in contents.objects


def _hyperspy(contents: Contents) -> list[Movie]:
    return [
        _hyperspy_signal(contents, group)
        for group in contents.children("Experiments")
        if contents.is_array(f"{group}/data")
    ]


def _hyperspy_signal(contents: Contents, group: str) -> Movie:
    name = f"{group}/data"
    told = [contents.attributes(f"{group}/axis-{k}") for k in range(len(contents.shape(name)))]
    navigated = [k for k, axis in enumerate(told) if axis.get("navigate") in (True, "True", 1)]
    signal = [k for k in range(len(told)) if k not in navigated]
    roles: dict[int, str] = {}
    if len(signal) == 2 and navigated:
        # What one axis is navigated over, its name and unit say; two are a scan.
        roles = {signal[0]: "row", signal[1]: "column"}
        along = [k for k in navigated if contents.shape(name)[k] > 1]
        roles |= dict.fromkeys(along, "scan") if len(along) > 1 else {}
    elif len(signal) == 1 and len(navigated) == 2:  # a spectrum at every point
        roles = {signal[0]: "other", navigated[0]: "row", navigated[1]: "column"}
    axes = []
    for k, a in enumerate(told):
        axis = Axis(str(a.get("name", "")), str(a.get("units", "")), _number(a.get("scale")), roles.get(k))
        listed = f"{group}/axis-{k}/axis"
        if contents.is_array(listed):  # an axis that is not uniform
            values = _axis(contents, listed, axis.name)
            axis = replace(axis, step=values.step, values=values.values)
        axes.append(axis)
    formulas = [
        f"{a.get('name') or k} = {str(a['expression'])[:60]}" for k, a in enumerate(told) if "expression" in a
    ]
    microscope = contents.attributes(f"{group}/metadata/Acquisition_instrument/TEM")
    camera = contents.attributes(f"{group}/metadata/Acquisition_instrument/TEM/Detector/Camera")
    return Movie(
        name,
        f"HyperSpy {contents.attributes('').get('file_format_version', '')}".strip(),
        tuple(axes),
        label=group.rpartition("/")[2],
        exposure_s=to_seconds(camera.get("exposure"), "s"),
        voltage_kv=_positive(microscope.get("beam_energy")),
        camera=str(camera["name"]) if camera.get("name") else None,
        warnings=(
            (
                f"it gives axes as formulas ({', '.join(formulas)}), which are not evaluated: the frame time or "
                "pixel size they give is unknown.",
            )
            if formulas
            else ()
        ),
        metadata=contents.tree(group, but=name),
    )


# Anything else


def _named_axes(contents: Contents, name: str) -> list[Axis]:
    """The axes of an array, from its dimension scales (netCDF, h5py) or the axes that its group names (NeXus)."""
    n_axes, group = len(contents.shape(name)), name.rpartition("/")[0]
    scales = contents.objects[name].get("scales") or []
    told, own = contents.attributes(group), contents.attributes(name)
    named = told.get("axes") if told.get("signal") == name.rpartition("/")[2] else own.get("axes")
    if isinstance(named, str):
        named = re.split("[:,]", named)
    if not any(scales) and isinstance(named, list):
        scales = ["" if axis == "." else f"{group}/{axis}".lstrip("/") for axis in named]
    axes = [Axis()] * n_axes
    if len(scales) == n_axes:
        axes = [_axis(contents, scale, scale.rpartition("/")[2]) if scale else Axis() for scale in scales]
    return interpreted(axes, own.get("interpretation", told.get("interpretation")))


def _generic(contents: Contents) -> list[Movie]:
    """Arrays of three and more dimensions, described by attributes whose names say their unit."""
    found = []
    for name, entry in contents.objects.items():
        if not contents.is_array(name) or len(contents.shape(name)) < 3 or entry["dtype"] is None:
            continue
        # Of the array, else of the group around it, else of the whole file.
        told = (
            contents.attributes("") | contents.attributes(name.rpartition("/")[0]) | contents.attributes(name)
        )
        pixel = told.get("pixel_size_nm")
        rows, columns = pixel[-2:] if isinstance(pixel, list) and len(pixel) > 1 else (pixel, pixel)
        micrometres = told.get("element_size_um")  # (z, y, x), as ImageJ and ilastik write it
        if pixel is None and isinstance(micrometres, list) and len(micrometres) > 1:
            rows, columns = (to_nanometres(v, "um") for v in micrometres[-2:])
        plain = _named_axes(contents, name)
        if len(plain) == 3 and rows is not None and not any(axis.name for axis in plain):
            plain[1:] = [Axis("y", "nm", _number(rows)), Axis("x", "nm", _number(columns))]
        found.append(
            Movie(
                name,
                "HDF5",
                tuple(plain),
                frame_time_s=_positive(told.get("frame_time_s")),
                exposure_s=_positive(told.get("exposure_s")),
                dose_rate_e_per_nm2_s=_positive(told.get("dose_rate_e_per_nm2_s")),
                voltage_kv=_positive(told.get("voltage_kv")),
                camera=str(told["camera"]) if told.get("camera") else None,
                metadata=contents.tree("", but=name),
            )
        )
    return found


PROFILES: tuple[Profile, ...] = (
    (_is_velox, _velox),
    (_is_ncem, _ncem),
    (_is_hyperspy, _hyperspy),
)


def _json(text: Any) -> dict[str, Any]:
    try:
        return _mapping(parse_json(text)) if isinstance(text, str) else {}
    except ValueError:
        return {}


def _mapping(value: Any) -> dict[str, Any]:
    return value if isinstance(value, dict) else {}


def _number(value: Any) -> float | None:
    try:
        return float(single(value))
    except (TypeError, ValueError):
        return None


def _positive(value: Any) -> float | None:
    number = _number(value)
    return number if number is not None and math.isfinite(number) and number > 0 else None


def _kilovolts(value: Any) -> float | None:
    """Volts or kilovolts: microscopes run at 1 kV to 3 MV, so that the number tells."""
    number = _positive(value)
    return None if number is None else number / 1000 if number >= 5000 else number
