"""Attributes of a store as netCDF and HDF5 can hold them: text and numbers, nothing nested, and none too long."""

from __future__ import annotations

import json
from typing import Any

MOST_BYTES = 60_000  # of an attribute: HDF5 holds 64 KiB
LEFT_OUT = "left_out"


def plain_attributes(attributes: dict[str, Any]) -> dict[str, Any]:
    """What the attributes of a store say, for a file of another format.

    Parameters
    ----------
    attributes : dict
        Of the root of a store.

    Returns
    -------
    dict
        Without ``ome``, which describes the Zarr store. What is nested becomes JSON text. If that is too long, its
        longest entries are left out, and named in its entry ``left_out``; the store has them.

    Examples
    --------
    >>> plain_attributes({"Conventions": "CF-1.12", "ome": {}, "tdenoise": {"kind": "movie"}})
    {'Conventions': 'CF-1.12', 'tdenoise': '{"kind": "movie"}'}
    """
    return {
        key: _text(value) if isinstance(value, dict | list) else value
        for key, value in attributes.items()
        if key != "ome"
    }


def _text(value: Any) -> str:
    text = json.dumps(value)
    kept, left_out = dict(value) if isinstance(value, dict) else {}, list[str]()
    while len(text.encode()) > MOST_BYTES and kept:
        longest = max(kept, key=lambda key: len(json.dumps(kept[key])))
        del kept[longest]
        left_out.append(longest)
        text = json.dumps({**kept, LEFT_OUT: left_out})
    return text
