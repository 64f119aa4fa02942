"""The one reader of YAML 1.2: settings, profiles and whatever lies beside a movie.

Values stay text, as on the command line, and the type of each setting reads it: `10:50` is not a number of seconds, and
`007` no 7.
"""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import Any

from ..errors import UsageError

Value = str | None | list[Any] | dict[str, Any]  # of text, None where a value is left empty

DEEPEST = 3  # levels: a profile has sections, and lists in them
_TAGS = {
    f"tag:yaml.org,2002:{name}" for name in ("str", "int", "float", "bool", "null", "timestamp", "seq", "map")
}


def read_yaml(path: Path) -> dict[str, Value]:
    """Read a file of names and their values.

    Parameters
    ----------
    path : Path

    Returns
    -------
    dict
        Text, lists and mappings of it; None where a value is left empty or is null.

    Raises
    ------
    UsageError
        If it cannot be read, is not a mapping, sets a name twice (``a-b`` and ``a_b`` are the same name), or holds a
        tag or a NUL character.
    """
    from ruamel.yaml import YAML
    from ruamel.yaml.error import YAMLError

    try:
        text = path.read_text(encoding="utf-8")
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of an anchor that is used again: the last one holds
            root = YAML(typ="safe", pure=True).compose(text)
    except (OSError, UnicodeDecodeError) as error:
        raise UsageError(f"{path}: cannot be read ({error}).") from None
    except RecursionError:
        raise UsageError(f"{path}: is nested too deeply. Write names and their values.") from None
    except (YAMLError, ValueError, OverflowError) as error:
        raise UsageError(f"{path}: is not valid YAML ({' '.join(str(error).split())}).") from None
    if root is None:  # an empty file, or comments only
        return {}
    value = _value(path, root, 0)
    if not isinstance(value, dict):
        raise UsageError(f"{path}: must hold lines of the form 'name: value'.")
    return value


def _value(path: Path, node: Any, depth: int) -> Value:
    line = node.start_mark.line + 1
    if str(node.tag) not in _TAGS:
        raise UsageError(f"{path}: line {line} has the tag {node.tag}. Write the value without it.")
    if depth > DEEPEST:
        raise UsageError(f"{path}: line {line} is nested too deeply. Write names and their values.")
    if node.id == "mapping":
        return _mapping(path, node, depth)
    if node.id == "sequence":
        return [_value(path, item, depth + 1) for item in node.value]
    if "\0" in node.value:  # neither a file nor a line of a script can hold it
        raise UsageError(f"{path}: line {line} holds a NUL character. Take it out.")
    # Words in quotes have a style, and stay what they are.
    return None if not node.style and node.value in ("", "~", "null", "Null", "NULL") else str(node.value)


def _mapping(path: Path, node: Any, depth: int) -> dict[str, Value]:
    values: dict[str, Value] = {}
    for key_node, value_node in node.value:
        key = _value(path, key_node, depth + 1)
        if not isinstance(key, str):
            raise UsageError(f"{path}: line {key_node.start_mark.line + 1} has no name before its colon.")
        if key.replace("-", "_") in {known.replace("-", "_") for known in values}:
            raise UsageError(f"{path}: {key} is set twice. Keep one of the two.")
        values[key] = _value(path, value_node, depth + 1)
    return values
