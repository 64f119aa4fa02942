"""Open a raw movie; a store of tdenoise that is read as one is believed as little as anywhere else."""

from __future__ import annotations

import json
from pathlib import Path
from types import TracebackType
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..files.sealed_json import read_json
from ..readers import Reader, open_raw
from ..store.blocks import Region
from ..store.store import Store, open_store


def open_movie_of(raw: Path, **choices: Any) -> Reader:
    """Open a raw movie as `readers.open_raw` does, and compare all that is read of a store with its record.

    Parameters
    ----------
    raw : Path
    **choices
        As of `readers.open_raw`.

    Raises
    ------
    InputError
        Also if it is a store made here whose metadata are damaged; of a shard, when it is read.
    """
    reader = open_raw(raw, **choices)
    try:
        opened = open_store(raw, reader.info.metadata["dataset"]) if is_ours(raw) else None
    except BaseException:
        reader.close()
        raise
    return reader if opened is None or opened.array.shards is None else _Compared(reader, opened)


def is_ours(raw: Path) -> bool:
    """Whether a folder is a store made here, whichever of the two files that say so is damaged.

    One that xarray cut out of such a store has its attributes, but no record of hashes.
    """
    files = [read_json(raw / file) for file in ("zarr.json", "integrity/zarr.json")]
    if not files[1] and '"integrity' not in json.dumps(files[0].get("consolidated_metadata")):
        return False
    told = (file.get("attributes") for file in files)
    return any(isinstance(attributes, dict) and "tdenoise" in attributes for attributes in told)


class _Compared:
    """A reader of a store, whose shards must be those that were written."""

    def __init__(self, reader: Reader, opened: Store) -> None:
        self.info = reader.info
        self._reader, self._opened = reader, opened

    def read(self, start: int, stop: int, out: NDArray[np.generic]) -> None:
        self._reader.read(start, stop, out)
        _, height, width = self._opened.shape
        self._opened.array.check(Region((start, stop), (0, height), (0, width)))

    def close(self) -> None:
        self._reader.close()

    def __enter__(self) -> Reader:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()
