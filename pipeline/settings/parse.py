"""Values of settings, from the text in which they are given: on the command line, or in a YAML file."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ..errors import UsageError

_UNITS_S = {"us": 1e-6, "µs": 1e-6, "ms": 1e-3, "s": 1.0, "m": 60.0, "min": 60.0, "h": 3600.0, "d": 86_400.0}
_UNITS_NM = {"pm": 1e-3, "a": 0.1, "å": 0.1, "nm": 1.0, "um": 1e3, "µm": 1e3}
_NUMBER = r"(?:[0-9]+\.?[0-9]*|\.[0-9]+)(?:[eE][-+]?[0-9]+)?"
FRAME_TIMES_S = (1e-6, 10.0)  # that a bare number is taken for
PIXEL_SIZES_NM = (1e-3, 100.0)


def seconds(text: str) -> float:
    """A duration such as ``90``, ``90s``, ``20m``, ``1h30m`` or ``13ms`` in seconds.

    Examples
    --------
    >>> seconds("1h30m"), seconds("13ms"), seconds("90")
    (5400.0, 0.013, 90.0)
    """
    return _positive(_measure(text, _UNITS_S, "write it as 90s, 20m, 1h30m or 13ms"))


def frame_seconds(text: str) -> float:
    """The time of a frame: seconds, or a duration with its unit.

    A bare number that no camera has is asked about: it is more likely frames per second, or milliseconds.

    Examples
    --------
    >>> frame_seconds("0.0133"), frame_seconds("13.3ms"), frame_seconds("75s")
    (0.0133, 0.0133, 75.0)
    """
    value = _positive(_measure(text, _UNITS_S, "write seconds, or a duration such as 13ms"))
    if _is_bare(text) and not FRAME_TIMES_S[0] <= value <= FRAME_TIMES_S[1]:
        raise ValueError(
            f"{value:g} seconds for a frame are hardly meant. Write {text}s if they are, {text}ms for milliseconds, "
            f"{1 / value:.4g} for {text} frames per second"
        )
    return value


def nanometres(text: str) -> float:
    """A pixel size: nanometres, or a length with its unit.

    Examples
    --------
    >>> nanometres("0.014"), nanometres("14pm"), nanometres("0.14A")
    (0.014, 0.014, 0.014)
    """
    value = _positive(_measure(text, _UNITS_NM, "write nanometres, or a length such as 14pm or 0.14A"))
    if _is_bare(text) and not PIXEL_SIZES_NM[0] <= value <= PIXEL_SIZES_NM[1]:
        raise ValueError(
            f"{value:g} nanometres for a pixel are hardly meant. Write {text}nm if they are, {text}pm for picometres"
        )
    return value


def _measure(text: str, units: Mapping[str, float], advice: str) -> float:
    """A number, or numbers with units one after another, in the unit whose factor is 1."""
    if _is_bare(text):
        return float(text)
    parts = re.findall(rf"({_NUMBER}) ?([^\W\d_]+)", text)
    if not parts or "".join(text.split()) != "".join(number + unit for number, unit in parts):
        raise ValueError(advice)
    # Two characters look like a micro sign.
    names = [unit.replace("\u03bc", "\u00b5") for _, unit in parts]
    names = [name if name in units else name.lower() for name in names]
    if not set(names) <= set(units) or len(set(names)) < len(names):
        raise ValueError(advice)
    # 0.0133 and not 0.013300000000000001
    return float(
        f"{sum(float(number) * units[name] for (number, _), name in zip(parts, names, strict=True)):.12g}"
    )


def _is_bare(text: str) -> bool:
    return re.fullmatch(rf" *[-+]?{_NUMBER} *", text) is not None


def size(text: str) -> int:
    """Bytes from text such as ``4GiB``, ``500M`` or ``2e9``.

    Examples
    --------
    >>> size("4GiB"), size("1.5G"), size("1000")
    (4294967296, 1500000000, 1000)
    """
    match = re.fullmatch(r"\s*([0-9.]+(?:[eE][0-9]+)?)\s*([KMGT]?)(I?)B?\s*", text, re.IGNORECASE)
    if match is None:
        raise ValueError(f"{text!r} is not a size such as 4GiB or 500M")
    power = " KMGT".index(match[2].upper() or " ")
    return int(float(match[1]) * (1024 if match[3] else 1000) ** power)


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
