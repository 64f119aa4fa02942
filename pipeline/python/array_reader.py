"""Movies that a program holds, read like files: NumPy, Dask and xarray arrays."""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import dask
import dask.array
import numpy as np
import xarray
from numpy.typing import NDArray

from ..errors import InputError, UsageError
from ..readers import MovieInfo
from ..readers.axes import Axis, clean_unit, pixel_size_of, place_movie
from ..readers.frames import FrameReader, check_movie, library
from ..readers.rawfile import RawFolder
from ..readers.units import to_seconds

KEPT_BYTES = 2**29  # of what Dask computed, and may be asked for again
# Attributes of a DataArray that say what a file would; `xarray_engine` writes them.
TOLD = {
    "exposure_s": float,
    "voltage_kv": float,
    "dose_rate_e_per_nm2_s": float,
    "camera": str,
}
TIMESTAMP = "timestamp"  # the coordinate of the camera's time stamps [s]
Part = Callable[[int, int], NDArray[Any]]  # frames of a movie, in its own order of axes


@dataclass(frozen=True)
class Held:
    """A movie that a program holds."""

    array: Any  # as it was given: numpy.ndarray, dask.array.Array or xarray.DataArray
    axes: tuple[int, int, int]  # of it: time, rows, columns
    info: MovieInfo
    is_lazy: bool  # whether its values lie elsewhere until they are asked for

    @property
    def name(self) -> str:
        """What the store calls its source."""
        return str(getattr(self.array, "name", None) or "array") if self.is_xarray else "array"

    @property
    def is_xarray(self) -> bool:
        """Whether it has names and coordinates."""
        return isinstance(self.array, xarray.DataArray)

    def reader(self) -> ArrayReader:
        """Its frames, as a file would give them."""
        return ArrayReader(self)


def hold(movie: Any) -> Held:
    """Look at a movie that a program holds.

    Parameters
    ----------
    movie : numpy.ndarray, dask.array.Array or xarray.DataArray
        Of three axes: frames, rows, columns. A DataArray may have them in another order, if their names tell it.

    Raises
    ------
    InputError
        If it is no movie.
    UsageError
        If it is no such array.
    """
    if isinstance(movie, xarray.DataArray):
        return _hold_xarray(movie)
    _refuse_masked(movie)
    lazy = isinstance(movie, dask.array.Array)
    if not lazy and not isinstance(movie, np.ndarray):
        raise UsageError(
            f"the movie is a {type(movie).__name__}. Give a NumPy array, a Dask array, an xarray DataArray or Dataset, "
            "or the path of a file."
        )
    if any(not float(n).is_integer() for n in movie.shape):  # NaN
        raise UsageError("the sizes of the Dask array are not known. Call its compute_chunk_sizes() first.")
    shape = check_movie(RawFolder("array"), movie.shape, movie.dtype)
    kind, package = ("Dask array", "dask") if lazy else ("NumPy array", "numpy")
    info = MovieInfo(shape, movie.dtype.newbyteorder("="), kind, library(package))
    return Held(movie, (0, 1, 2), info, lazy)


def _refuse_masked(array: Any) -> None:
    """Masked pixels have no counts, and would be read as if they had; of Dask arrays, their chunks are masked."""
    if isinstance(getattr(array, "_meta", array), np.ma.MaskedArray):
        raise UsageError(
            "the movie is a masked array, and masked pixels have no counts. Give its data, and name bad pixels with "
            "defects=FILE."
        )


def _hold_xarray(movie: xarray.DataArray) -> Held:
    name = str(movie.name or "array")
    if dask.is_dask_collection(movie.variable) or movie.variable._in_memory:
        _refuse_masked(movie.variable.data)
    if movie.ndim != 3:
        sizes = ", ".join(f"{dim}: {size}" for dim, size in movie.sizes.items())
        raise InputError(
            name,
            f"has {movie.ndim} dimensions ({sizes}), a movie has three. Choose one of each other with isel.",
        )
    axes = [_axis(movie, str(dim)) for dim in movie.dims]
    place = place_movie(RawFolder(name), name, movie.shape, movie.dtype, axes, lenient=True)
    t, y, x = place.movie_axes
    shape = check_movie(RawFolder(name), (movie.shape[t], movie.shape[y], movie.shape[x]), movie.dtype)
    time = axes[t]
    stamps = _stamps(movie, str(movie.dims[t]))
    times = time.times_s if stamps is None else stamps
    info = MovieInfo(
        shape=shape,
        dtype=movie.dtype.newbyteorder("="),
        format="xarray DataArray",
        reader=library("xarray"),
        frame_time_s=time.seconds,
        pixel_size_nm=pixel_size_of(axes, place),
        timestamps_s=times if stamps is not None or not _is_even(time) else None,
        warnings=place.warnings,
        **_told(movie),
    )
    lazy = not movie.variable._in_memory
    return Held(movie, place.movie_axes, info, lazy)


def _told(movie: xarray.DataArray) -> dict[str, Any]:
    """What its attributes say, as far as they can be read."""
    found = {}
    for key, kind in TOLD.items():
        try:
            found[key] = kind(movie.attrs[key])
        except (KeyError, TypeError, ValueError):
            continue
    return found


def _axis(movie: xarray.DataArray, dim: str) -> Axis:
    """A dimension as a file would describe it."""
    if dim not in movie.coords or movie.coords[dim].ndim != 1:
        return Axis(dim)
    values, unit = movie.coords[dim].values, str(movie.coords[dim].attrs.get("units", ""))
    if values.dtype.kind in "mM":  # times that xarray has decoded
        values, unit = (values - values[:1]).astype("timedelta64[ns]").astype(np.float64) / 1e9, "s"
    if values.dtype.kind not in "uif":
        return Axis(dim, unit)
    values = values.astype(np.float64)
    step = abs(float(values[-1] - values[0])) / (len(values) - 1) if len(values) > 1 else None
    return Axis(dim, unit, step, values=values)


def _stamps(movie: xarray.DataArray, dim: str) -> NDArray[np.float64] | None:
    """Time stamps of the camera, one for each frame [s]; None where there are none that can be read."""
    found = movie.coords.get(TIMESTAMP)
    if found is None or found.dims != (dim,):
        return None
    values, unit = found.values, str(found.attrs.get("units", "s"))
    if values.dtype.kind in "mM":  # times that xarray has decoded
        return np.asarray((values - values[:1]).astype("timedelta64[ns]").astype(np.float64) / 1e9)
    factor = to_seconds(1.0, clean_unit(unit))
    return np.asarray(values, np.float64) * factor if values.dtype.kind in "uif" and factor else None


def _is_even(axis: Axis) -> bool:
    """Whether the places along an axis lie at equal steps, to a thousandth of one."""
    if axis.values is None or axis.step is None:
        return True
    even = axis.values[0] + np.copysign(axis.step, axis.values[-1] - axis.values[0]) * np.arange(
        len(axis.values)
    )
    return bool((np.abs(axis.values - even) <= 1e-3 * axis.step).all())


class ArrayReader(FrameReader):
    """The frames of a movie that a program holds."""

    def __init__(self, held: Held) -> None:
        super().__init__(RawFolder(held.name), held.info)
        self._order = held.axes
        self._part = _parts(held)

    def _fill(self, start: int, stop: int, out: NDArray[Any]) -> None:
        out[...] = np.transpose(self._part(start, stop), self._order)


def _parts(held: Held) -> Part:
    """How some frames are read, whatever holds them."""
    data = held.array.variable if held.is_xarray else held.array
    time = held.axes[0]
    before = (slice(None),) * time
    dask_array = data.data if held.is_xarray and held.is_lazy and dask.is_dask_collection(data) else data
    if isinstance(dask_array, dask.array.Array):
        return _DaskParts(dask_array, time)

    def part(start: int, stop: int) -> NDArray[Any]:
        # Of a file that xarray opened: a new variable each time, which keeps nothing in memory.
        return np.asarray(data[(*before, slice(start, stop))])

    return part


class _DaskParts:
    """Frames of a Dask array; those that Dask computes together are kept for the next call, while there is room."""

    def __init__(self, array: dask.array.Array, time: int) -> None:
        self._array, self._before = array, (slice(None),) * time
        self._edges = np.cumsum([0, *array.chunks[time]])
        frame_bytes = array.nbytes // max(1, array.shape[time])
        longest = max(array.chunks[time], default=0)
        self._room = KEPT_BYTES // max(1, frame_bytes * longest)  # chunks of frames
        self._kept: OrderedDict[int, NDArray[Any]] = OrderedDict()
        self._lock = threading.Lock()

    def __call__(self, start: int, stop: int) -> NDArray[Any]:
        if self._room < 1:
            return self._computed(start, stop)
        first, last = np.searchsorted(self._edges, (start, stop - 1), side="right") - 1
        with self._lock:
            pieces = []
            for number in range(int(first), int(last) + 1):
                begin, end = (int(edge) for edge in self._edges[number : number + 2])
                chunk = self._chunk(number, begin, end)
                wanted = slice(max(start, begin) - begin, min(stop, end) - begin)
                pieces.append(chunk[(*self._before, wanted)])
        return pieces[0] if len(pieces) == 1 else np.concatenate(pieces, axis=len(self._before))

    def _chunk(self, number: int, begin: int, end: int) -> NDArray[Any]:
        if number not in self._kept:
            while len(self._kept) >= self._room:
                self._kept.popitem(last=False)
            self._kept[number] = self._computed(begin, end)
        self._kept.move_to_end(number)
        return self._kept[number]

    def _computed(self, start: int, stop: int) -> NDArray[Any]:
        found = self._array[(*self._before, slice(start, stop))].compute()
        _refuse_masked(found)
        return np.asarray(found)
