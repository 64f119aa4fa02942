"""JSON from files that anybody may have written."""

from __future__ import annotations

import json
from typing import Any


def parse_json(data: bytes | str) -> Any:
    """What a JSON document says; every way in which it can be wrong is a ``ValueError``.

    Parameters
    ----------
    data : bytes or str

    Raises
    ------
    ValueError
        Also if it is nested so deeply that Python gives up, or holds a number of thousands of digits.

    Examples
    --------
    >>> parse_json('{"n": 1}')
    {'n': 1}
    >>> parse_json("[" * 100_000)
    Traceback (most recent call last):
    ValueError: it is nested too deeply
    """
    try:
        return json.loads(data)
    except RecursionError:
        raise ValueError("it is nested too deeply") from None
