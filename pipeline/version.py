"""Versions that are recorded with every result."""

from __future__ import annotations

import platform
from importlib.metadata import version

PACKAGES = ("tdenoise", "torch", "zarr", "numcodecs", "dask", "numpy")
VERSION: dict[str, str] = {"python": platform.python_version(), **{name: version(name) for name in PACKAGES}}
