"""How the files that are HDF5 inside are cut and packed: a chunk for each frame, or parts of a large one."""

from __future__ import annotations

from typing import Any

from .values import Values

CHUNK_PIXELS = 1024  # of a chunk, along each side, at most
LEVEL = 1  # of gzip: levels above take much longer for little


def packing(values: Values) -> dict[str, Any]:
    """Settings of a dataset that every reader of HDF5 can unpack; those of h5py and h5netcdf alike."""
    _, height, width = values.shape
    return {
        "chunks": (1, min(height, CHUNK_PIXELS), min(width, CHUNK_PIXELS)),
        "compression": "gzip",
        "compression_opts": LEVEL,
        "shuffle": True,
    }
