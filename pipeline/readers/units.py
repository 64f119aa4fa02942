"""Units as raw files spell them, and metadata that fits into a JSON record."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Mapping
from typing import Any

import numpy as np

_NANOMETRES = {
    **dict.fromkeys(("pm", "picometer", "picometre"), 1e-3),
    **dict.fromkeys(("a", "å", "angstrom", "ångström", "ångstrom"), 0.1),
    **dict.fromkeys(("nm", "nanometer", "nanometre"), 1.0),
    **dict.fromkeys(("um", "micron", "micrometer", "micrometre"), 1e3),
    **dict.fromkeys(("mm", "millimeter", "millimetre"), 1e6),
    **dict.fromkeys(("cm", "centimeter", "centimetre"), 1e7),
    **dict.fromkeys(("m", "meter", "metre"), 1e9),
}
_SECONDS = {
    **dict.fromkeys(("ns", "nsec", "nanosecond"), 1e-9),
    **dict.fromkeys(("us", "usec", "microsecond"), 1e-6),
    **dict.fromkeys(("ms", "msec", "millisecond"), 1e-3),
    **dict.fromkeys(("s", "sec", "second"), 1.0),
    **dict.fromkeys(("min", "minute"), 60.0),
    **dict.fromkeys(("h", "hr", "hour"), 3600.0),
    **dict.fromkeys(("d", "day"), 86_400.0),
}
# In the singular: what stands for no unit, or counts pixels and frames.
_NO_UNIT = {
    "",
    "1",
    "px",
    "pix",
    "pixel",
    "frame",
    "image",
    "slice",
    "index",
    "none",
    "null",
    "undefined",
    "unknown",
}
_NO_UNIT |= {"#", "a.u.", "arb. unit", "arbitrary unit", "t.u.", "reference frame", "unit", "dimensionless"}
_NO_UNIT |= {"inch", "inche"}  # of a print: ImageJ writes it where nothing was calibrated
_MAX_TEXT = 100_000  # characters of one string
_MAX_ITEMS = 1_000  # entries of one list
_MAX_DEPTH = 40
_MAX_JSON = 1_000_000  # characters of the whole record


def to_nanometres(value: Any, unit: Any) -> float | None:
    """A length in nm, or None where the number or the unit does not say one.

    Examples
    --------
    >>> to_nanometres(2, "A"), to_nanometres(0.5, "µm"), to_nanometres(-1, "nm"), to_nanometres(1, "1/nm")
    (0.2, 500.0, None, None)
    """
    return _convert(value, unit, _NANOMETRES)


def to_seconds(value: Any, unit: Any) -> float | None:
    """A time in s, or None where the number or the unit does not say one.

    Dates as netCDF and xarray write them count from a moment, "milliseconds since 2024-01-01".

    Examples
    --------
    >>> to_seconds(25, "ms"), to_seconds(0, "s"), to_seconds(2, "deg"), to_seconds(8, "ms since 2024-01-01")
    (0.025, None, None, 0.008)
    """
    return _convert(value, str(unit).partition(" since ")[0], _SECONDS)


def not_understood(step: Any, unit: Any, what: str) -> tuple[str, ...]:
    """A warning for a step that a file gives in words that are not understood; empty where it gives none.

    Parameters
    ----------
    step, unit : object
        As the file has them.
    what : {"frame time", "pixel size"}
        What is unknown without it.

    Examples
    --------
    >>> not_understood(2, "1/nm", "pixel size")[0].partition(",")[0]
    'its pixels are 2 1/nm apart'
    >>> not_understood(2, "ms", "frame time"), not_understood(1, "pixels", "pixel size")
    ((), ())
    """
    told = str(unit or "").strip().strip("<>[]()")
    try:
        number = float(single(step))
    except (TypeError, ValueError):
        return ()
    convert = to_seconds if what == "frame time" else to_nanometres
    if not math.isfinite(number) or number == 0 or convert(number, told) is not None:
        return ()
    plain = told.lower()
    if plain in _NO_UNIT or (len(plain) > 1 and plain.removesuffix("s") in _NO_UNIT):
        return ()
    things, kind, doubt = ("frames", "time", "it may be no movie over time, and ")
    if what == "pixel size":
        things, kind, doubt = ("pixels", "length", "")
    return (
        f"its {things} are {number:g} {told[:40]} apart, which is no {kind} that is understood, so {doubt}its {what} "
        f"is unknown. --{what.replace(' ', '-')} gives it.",
    )


def _convert(value: Any, unit: Any, factors: Mapping[str, float]) -> float | None:
    # ImageJ writes what is not ASCII as an escape sequence.
    name = re.sub(r"\\u([0-9A-Fa-f]{4})", lambda match: chr(int(match[1], 16)), str(unit))
    # Two characters look like a micro sign, and two like that of an angstrom.
    name = name.replace("\u00b5", "u").replace("\u03bc", "u").replace("\u212b", "\u00e5").strip().lower()
    factor = factors.get(name, factors.get(name.removesuffix("s")))
    try:
        number = float(single(value))
    except (TypeError, ValueError):
        return None
    if factor is None or not math.isfinite(number) or number <= 0:
        return None
    return float(f"{number * factor:.12g}")  # 1.14 and not 1.1400000000000001


def single(value: Any) -> Any:
    """The only element of a list, as many programs write a number; all else as it is."""
    return value[0] if isinstance(value, list) and len(value) == 1 else value


def pixel_size(row_nm: float | None, column_nm: float | None) -> tuple[float, float] | None:
    """The pair (row, column) if both are known."""
    return None if row_nm is None or column_nm is None else (row_nm, column_nm)


def bounded_json(metadata: Mapping[str, Any]) -> dict[str, Any]:
    """Original metadata as plain JSON values under 1 MB: big arrays and the largest entries are left out."""
    record = {str(key): _plain(value, 1) for key, value in metadata.items()}
    sizes = {key: len(json.dumps(value)) for key, value in record.items()}
    for key in sorted(sizes, key=lambda key: sizes[key], reverse=True):
        if sum(sizes.values()) <= _MAX_JSON:
            break
        record[key] = f"left out: {sizes[key]} characters"
        sizes[key] = len(record[key])
    return record


def _plain(value: Any, depth: int) -> Any:
    if depth > _MAX_DEPTH:
        return "left out: nested too deeply"
    if isinstance(value, np.ndarray | np.generic):
        return _plain(value.tolist(), depth) if value.size <= _MAX_ITEMS else f"left out: {value.size} values"
    if isinstance(value, bool) or value is None:
        return value
    if isinstance(value, int):
        return int(value)  # not the enumerations of libraries
    if isinstance(value, float):
        return value if math.isfinite(value) else str(value)  # JSON has no NaN
    if isinstance(value, Mapping):
        return {str(key): _plain(item, depth + 1) for key, item in value.items()}
    if isinstance(value, list | tuple):
        if len(value) > _MAX_ITEMS:
            return f"left out: {len(value)} values"
        return [_plain(item, depth + 1) for item in value]
    if isinstance(value, bytes):
        return f"left out: {len(value)} bytes"
    return str(value)[:_MAX_TEXT]
