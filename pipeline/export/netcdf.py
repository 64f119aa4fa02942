"""netCDF-4, described by the CF conventions: xarray, MATLAB, Octave, Julia and R read it."""

from __future__ import annotations

from pathlib import Path

import h5netcdf

from .hdf5 import fill, opened, packing
from .values import Axis, Values

CONVENTIONS = "CF-1.11"
_LONG = {
    "t": "time since the start of the raw movie",
    "y": "distance along rows",
    "x": "distance along columns",
}


def write(file: Path, values: Values) -> None:
    """Write one variable with the dimensions t, y, x and their coordinates."""
    with opened(file) as target, h5netcdf.File(target, "w") as made:
        made.attrs.update(
            {
                "Conventions": CONVENTIONS,
                "title": values.title,
                "source": values.words,
                **_plain(values.notes),
            }
        )
        made.dimensions = {axis.name: axis.size for axis in values.axes}
        for axis in values.axes:
            _write_axis(made, axis)
        variable = made.create_variable(
            values.name, tuple(axis.name for axis in values.axes), values.dtype, **packing(values)
        )
        variable.attrs.update({"long_name": values.title, "units": values.units})
        fill(variable, values, target)


def _write_axis(made: h5netcdf.File, axis: Axis) -> None:
    variable = made.create_variable(axis.name, (axis.name,), "f8", data=axis.coordinate)
    counted = "number of the frame" if axis.name == "t" else "number of the pixel"
    variable.attrs.update(
        {"axis": axis.name.upper(), "long_name": counted if axis.step is None else _LONG[axis.name]}
    )
    variable.attrs["units"] = "1" if axis.step is None else axis.unit


def _plain(notes: dict[str, str]) -> dict[str, str]:
    return {key.replace(" ", "_"): value for key, value in notes.items()}
