"""NumPy's own file: a header, then the values."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from numpy.lib import format as npy

from .values import Values


def begin(file: Path, values: Values) -> int:
    """Begin an array (t, y, x) that `numpy.load` reads, also in parts with ``mmap_mode``."""
    header: dict[str, Any] = {
        "descr": npy.dtype_to_descr(values.dtype),
        "fortran_order": False,
        "shape": values.shape,
    }
    with file.open("wb") as handle:
        npy.write_array_header_1_0(handle, header)
        return handle.tell()
