"""Values of settings, from the text in which they are given: on the command line, or in a YAML file."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from .errors import UsageError


def seconds(text: str) -> float:
    """A time such as ``90``, ``90s``, ``20m`` or ``2h`` in seconds."""
    factor = {"s": 1, "m": 60, "h": 3600, "d": 86400}.get(text[-1:])
    value = float(text[:-1]) * factor if factor else float(text)
    return _positive(value)


def size(text: str) -> int:
    """A size such as ``4GiB`` in bytes."""
    from .budget import parse_size

    return parse_size(text)


def interval(text: str) -> tuple[int, int | None]:
    """``A:B`` as whole numbers; either may be left out."""
    first, colon, last = text.partition(":")
    if not colon:
        raise ValueError("write it as A:B")
    start, stop = int(first or 0), int(last) if last else None
    if start < 0 or (stop is not None and stop <= start):
        raise ValueError("B must lie behind A, and neither may be negative")
    return start, stop


def box(text: str) -> tuple[tuple[int, int | None], tuple[int, int | None]]:
    """``Y0:Y1,X0:X1`` as two intervals."""
    rows, comma, columns = text.partition(",")
    if not comma:
        raise ValueError("write it as Y0:Y1,X0:X1")
    return interval(rows), interval(columns)


def positive(text: str) -> float:
    """A positive number."""
    return _positive(float(text))


def count(text: str) -> int:
    """A positive whole number."""
    return int(_positive(int(text)))


def index(text: str) -> int:
    """A whole number from 0."""
    value = int(text)
    if value < 0:
        raise ValueError("it is counted from 0")
    return value


def processes(text: str) -> int | str:
    """A number of processes, or ``slurm``."""
    return text if text == "slurm" else count(text)


def radius(text: str) -> int | str:
    """A blind radius in pixels, ``frame`` or ``auto``."""
    if text in ("frame", "auto"):
        return text
    value = int(text)
    if value not in (0, 1, 2):
        raise ValueError("it is 0, 1, 2, frame or auto")
    return value


def share(text: str) -> float:
    """A share of a dose."""
    value = float(text)
    if not 0.01 <= value <= 1:
        raise ValueError("it lies between 0.01 and 1")
    return value


def udvd_radius(text: str) -> int:
    """A blind radius that UDVD can have."""
    if text not in ("0", "1"):
        raise ValueError("it is 0 or 1")
    return int(text)


def seed(text: str) -> int:
    """What a random generator starts from."""
    value = int(text)
    if not 0 <= value < 2**63:
        raise ValueError("it lies between 0 and 2**63 - 1")
    return value


def new_path(text: str) -> Path:
    """A file or folder to write. It is built beside the place where it will lie, so it needs a name."""
    path = Path(text)
    if path.name in ("", ".."):
        raise ValueError("it must end in the name of what is written")
    return path


def new_folder(text: str) -> Path:
    """A folder to write into, which may be there already."""
    if not text:
        raise ValueError("it must name a folder")
    return Path(text)


def ensemble(text: str) -> int:
    """Number of symmetries to average over."""
    if text not in ("1", "2", "4", "8", "16"):
        raise ValueError("it is 1, 2, 4, 8 or 16")
    return int(text)


def _positive(value: float) -> float:
    if not 0 < value < float("inf"):
        raise ValueError("it must be a positive number")
    return value


def flag(text: str) -> bool:
    """Yes or no, for YAML files."""
    if text.lower() not in ("true", "false"):
        raise ValueError("it is true or false")
    return text.lower() == "true"


def read_yaml(path: Path) -> dict[str, str | list[str] | None]:
    """The settings in a YAML file as text, as on the command line; None where a value is left empty.

    YAML's own reading of plain words is not used: it makes 650 of the frames ``10:50``.

    Raises
    ------
    UsageError
        If it cannot be read, is not a mapping of names to values, or names a setting twice.
    """
    import yaml

    try:
        root = yaml.compose(path.read_text(), Loader=yaml.BaseLoader)
    except (OSError, UnicodeDecodeError) as error:
        raise UsageError(f"{path}: cannot be read ({error})") from None
    except RecursionError:
        raise UsageError(f"{path}: is nested too deeply. Settings are names and their values.") from None
    except yaml.YAMLError as error:
        raise UsageError(f"{path}: is not valid YAML ({' '.join(str(error).split())})") from None
    if not isinstance(root, yaml.MappingNode):
        raise UsageError(f"{path}: must be a mapping of setting names to values")
    values: dict[str, str | list[str] | None] = {}
    for key_node, node in root.value:
        key = _yaml_text(path, key_node)
        if key is None:
            raise UsageError(f"{path}: must be a mapping of setting names to values")
        if key.replace("-", "_") in {k.replace("-", "_") for k in values}:
            raise UsageError(f"{path}: {key} is set twice. Keep one of the two.")
        if isinstance(node, yaml.SequenceNode) and node.tag == yaml.BaseLoader.DEFAULT_SEQUENCE_TAG:
            values[key] = [_yaml_text(path, item) or "" for item in node.value]
        else:
            values[key] = _yaml_text(path, node)
    return values


def _yaml_text(path: Path, node: Any) -> str | None:
    """The text of a YAML scalar; None for an empty one and for null."""
    import yaml

    if not isinstance(node, yaml.ScalarNode) or node.tag != yaml.BaseLoader.DEFAULT_SCALAR_TAG:
        line = node.start_mark.line + 1
        raise UsageError(f"{path}: line {line} is neither a word or number nor a list of them")
    if "\0" in node.value:  # no file can have such a name
        raise UsageError(f"{path}: line {node.start_mark.line + 1} holds a NUL character. Take it out.")
    # Words in quotes have a style, and stay what they are.
    return None if node.style is None and node.value in ("", "~", "null") else str(node.value)
