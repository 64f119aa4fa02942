"""HyperSpy's own file: HDF5 that `hyperspy.api.load` opens as a Signal2D, frames to navigate, with axes and units."""

from __future__ import annotations

from pathlib import Path

import h5py
import numpy as np

from .hdf5 import fill, opened, packing
from .values import Axis, Values

VERSION = "3.1"  # of the layout: HyperSpy 1.5 and later read it
UNNAMED = "__unnamed__"
_NAMES = {"t": "time", "y": "y", "x": "x"}


def write(file: Path, values: Values) -> None:
    """Write one signal."""
    with opened(file) as target, h5py.File(target, "w") as made:
        made.attrs.update({"file_format": "HyperSpy", "file_format_version": VERSION})
        # A slash would begin another group.
        title = values.title.replace("/", "-") or UNNAMED
        signal = made.create_group(f"Experiments/{title}")
        for number, axis in enumerate(values.axes):
            _write_axis(signal.create_group(f"axis-{number}"), axis)
        metadata = signal.create_group("metadata")
        metadata.create_group("General").attrs.update({"title": title, "notes": values.words})
        about = metadata.create_group("Signal")
        about.attrs.update({"signal_type": "", "quantity": f"{values.name} ({values.units})"})
        original = signal.create_group("original_metadata")
        original.create_group("tdenoise").attrs.update(values.notes)
        signal.create_group("learning_results")
        data = signal.create_dataset("data", values.shape, values.dtype, **packing(values))
        fill(data, values, target)


def _write_axis(group: h5py.Group, axis: Axis) -> None:
    step = 1.0 if axis.step is None else axis.step
    group.attrs.update(
        {
            "_type": "UniformDataAxis",
            "name": _NAMES[axis.name],
            "size": axis.size,
            "scale": step,
            "offset": axis.first * step,
            "units": axis.unit if axis.step is not None else "_None_",
            "navigate": np.bool_(axis.name == "t"),
            "is_binned": np.bool_(False),
        }
    )
