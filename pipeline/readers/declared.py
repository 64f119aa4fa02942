"""What a file declares about its numbers (CF packing, ImageJ's calibration): applied to every pixel, or refused.

A reader that leaves such a declaration alone delivers other values than the program that wrote the file shows.
"""

from __future__ import annotations

import base64
import binascii
import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..errors import InputError
from . import MovieInfo, Reader
from .frames import FrameReader

_PIECE_BYTES = 2**24  # of stored numbers, converted at once
_NO_VALUE = ("_FillValue", "missing_value")
_RANGES = ("valid_range", "valid_min", "valid_max")
_INTEGERS = ("u1", "i1", "u2", "i2", "u4", "i4", "u8", "i8")


@dataclass(frozen=True)
class Declared:
    """How stored numbers become values: ``factor * stored + offset``, and which of them stand for no value.

    Examples
    --------
    >>> Declared(offset=-32768).dtype(np.dtype("u2")), Declared(factor=0.5).dtype(np.dtype("i2"))
    (dtype('int16'), dtype('float32'))
    """

    factor: float = 1.0
    offset: float = 0.0
    no_value: tuple[float, ...] = ()  # stored numbers that become NaN
    other_sign: bool = False  # the stored integers are signed where their type says unsigned, or the reverse
    warnings: tuple[str, ...] = ()

    def changes(self, stored: np.dtype[Any]) -> bool:
        """Whether any number is another value than the one that is stored."""
        return (self.factor, self.offset) != (1.0, 0.0) or self.other_sign or bool(self._no_value(stored))

    def dtype(self, stored: np.dtype[Any]) -> np.dtype[Any]:
        """The smallest type that holds all values: integers stay integers where they can."""
        true = self._true(stored)
        if true.kind == "f":
            return np.dtype(f"f{max(true.itemsize, 4)}")
        if float(self.factor).is_integer() and float(self.offset).is_integer() and not self._no_value(stored):
            limits = np.iinfo(true)
            ends = [int(end) * int(self.factor) + int(self.offset) for end in (limits.min, limits.max)]
            for name in _INTEGERS:
                room = np.iinfo(name)
                if room.min <= min(ends) and max(ends) <= room.max:
                    return np.dtype(name)
        return np.dtype("f4" if true.itemsize <= 2 else "f8")

    def apply(self, stored: NDArray[Any], out: NDArray[Any]) -> None:
        """Write the values of stored numbers into ``out``, which has the type that ``dtype`` says."""
        with np.errstate(over="ignore", invalid="ignore"):  # a factor of 1e300 makes Inf, which ingest tells
            self._apply(stored, out)

    def _apply(self, stored: NDArray[Any], out: NDArray[Any]) -> None:
        true = stored.view(self._true(stored.dtype))
        if out.dtype.kind == "f":
            np.multiply(true, out.dtype.type(self.factor), out=out, dtype=out.dtype, casting="unsafe")
            out += out.dtype.type(self.offset)
            for number in self._no_value(stored.dtype):
                out[true == true.dtype.type(number)] = np.nan
            return
        # Modulo the range of the type, which holds the result: no step in between overflows.
        out[...] = true.astype(out.dtype, casting="unsafe")
        modulus = 2 ** (8 * out.dtype.itemsize)
        for number, operation in ((self.factor, np.multiply), (self.offset, np.add)):
            wrapped = np.array(int(number) % modulus, f"u{out.dtype.itemsize}").astype(out.dtype)
            operation(out, wrapped, out=out)

    def values(self, stored: NDArray[Any]) -> NDArray[np.float64]:
        """The values of a coordinate; whole numbers too large for a float are counted from the first one."""
        true = stored.view(self._true(stored.dtype))
        missing = np.isin(true, self._no_value(stored.dtype))
        known = true[~missing]
        large = known.dtype.kind in "iu" and known.size and abs(int(known[0])) > 2**53
        with np.errstate(over="ignore", invalid="ignore"):
            out = np.asarray((true - known[0]) if large else true, np.float64) * self.factor
            out += 0.0 if large else self.offset
        out[missing] = np.nan
        return out

    def _true(self, stored: np.dtype[Any]) -> np.dtype[Any]:
        return (
            np.dtype(f"{'i' if stored.kind == 'u' else 'u'}{stored.itemsize}") if self.other_sign else stored
        )

    def _no_value(self, stored: np.dtype[Any]) -> tuple[float, ...]:
        """Those that occur in the type; NaN is what it is."""
        true = self._true(stored)
        found = []
        for number in self.no_value:
            if true.kind == "f" and math.isfinite(number):
                found.append(number)
            elif true.kind in "iu" and math.isfinite(number) and float(number).is_integer():
                limits = np.iinfo(true)
                if self.other_sign and number < 0 <= limits.min:
                    number = int(number) + 2 ** (8 * true.itemsize)
                if limits.min <= number <= limits.max:
                    found.append(int(number))
        return tuple(found)


AS_STORED = Declared()


def packed(path: Path, name: str, stored: np.dtype[Any], attributes: Mapping[str, Any]) -> Declared:
    """What the attributes of an array declare in the words of netCDF's CF conventions, which xarray writes too.

    Parameters
    ----------
    path : Path
        For error messages.
    name : str
        Of the array, likewise.
    stored : dtype
        Of the array.
    attributes : mapping
        Of the array.

    Raises
    ------
    InputError
        If a declaration makes no sense.
    """

    def numbers(key: str) -> list[float]:
        value = attributes.get(key)
        listed = value if isinstance(value, list) else [] if value is None else [value]
        try:
            return [_number(item) for item in listed]
        except (TypeError, ValueError, OverflowError, binascii.Error):
            raise InputError(
                path,
                f"its array {name} has the attribute {key} = {str(value)[:60]!r}, which is not a number.",
            ) from None

    found = {"scale_factor": 1.0, "add_offset": 0.0}
    for key in found:
        if listed := numbers(key):
            found[key] = listed[0]
            if len(listed) > 1 or not math.isfinite(listed[0]) or (key == "scale_factor" and listed[0] == 0):
                raise InputError(
                    path,
                    f"its array {name} has the attribute {key} = {attributes[key]}, which makes no sense.",
                )
    unsigned = str(attributes.get("_Unsigned", "")).lower()
    ranges = [f"{key} = {attributes[key]}" for key in _RANGES if key in attributes]
    return Declared(
        factor=found["scale_factor"],
        offset=found["add_offset"],
        no_value=tuple(number for key in _NO_VALUE for number in numbers(key)),
        other_sign=(stored.kind, unsigned) in {("i", "true"), ("u", "false")},
        warnings=(f"its attributes give {', '.join(ranges)}: values outside it are kept.",) if ranges else (),
    )


def _number(value: Any) -> float:
    """A number of JSON; xarray writes those of floats to Zarr as base64."""
    if isinstance(value, bool):
        raise ValueError
    if isinstance(value, int) and abs(value) < 2**64:
        return value  # exact, where a float may not be
    if isinstance(value, str):
        try:
            return float(value)
        except ValueError:
            content = base64.b64decode(value, validate=True)
            return float(np.frombuffer(content, "<f8", 1)[0])
    return float(value)


class DeclaredReader(FrameReader):
    """A movie whose stored numbers become values as its file declares."""

    def __init__(self, reader: Reader, declared: Declared) -> None:
        self._reader = reader
        self._declared = declared
        stored = reader.info
        self.info: MovieInfo = replace(
            stored,
            dtype=declared.dtype(stored.dtype),
            warnings=stored.warnings + declared.warnings,
            metadata=stored.metadata
            | {
                "stored_numbers": {
                    "dtype": stored.dtype.str,
                    "factor": declared.factor,
                    "offset": declared.offset,
                    "no_value": [
                        number if math.isfinite(number) else str(number) for number in declared.no_value
                    ],
                }
            },
        )

    def _fill(self, start: int, stop: int, out: NDArray[Any]) -> None:
        stored = self._reader.info
        step = max(1, _PIECE_BYTES // (stored.shape[1] * stored.shape[2] * stored.dtype.itemsize))
        piece = np.empty((min(step, stop - start), *stored.shape[1:]), stored.dtype)
        for begin in range(start, stop, step):
            frames = piece[: min(step, stop - begin)]
            self._reader.read(begin, begin + len(frames), frames)
            self._declared.apply(frames, out[begin - start : begin - start + len(frames)])

    def close(self) -> None:
        """Close the file; harmless if done twice."""
        self._reader.close()


def as_declared(reader: Reader, declared: Declared) -> Reader:
    """The reader of the values, which is ``reader`` itself where the stored numbers are the values."""
    if declared.changes(reader.info.dtype):
        return DeclaredReader(reader, declared)
    if declared.warnings:
        reader.info = replace(reader.info, warnings=reader.info.warnings + declared.warnings)
    return reader
