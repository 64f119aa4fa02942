"""Types of settings: what each value may be, and how its text is read.

Text comes from the command line and from YAML, other values from Python. Times and lengths from Python are in seconds
and nanometres.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BeforeValidator, Field, InstanceOf, Strict

from .results import part_of_run
from .workers import Workers

_UNITS_S = {"us": 1e-6, "µs": 1e-6, "ms": 1e-3, "s": 1.0, "m": 60.0, "min": 60.0, "h": 3600.0, "d": 86_400.0}
_UNITS_NM = {"pm": 1e-3, "a": 0.1, "å": 0.1, "nm": 1.0, "um": 1e3, "µm": 1e3}
_NUMBER = r"(?:[0-9]+\.?[0-9]*|\.[0-9]+)(?:[eE][-+]?[0-9]+)?"
FRAME_TIMES_S = (1e-6, 10.0)  # that cameras have
PIXEL_SIZES_NM = (1e-3, 100.0)  # that a bare number is taken for
# Of all formats of readers/__init__.py, which --help has no time to import.
_RAW_SUFFIXES = (
    ".npy", ".tif", ".tiff", ".btf", ".tf8", ".stk", ".eer", ".mrc", ".mrcs", ".map", ".st", ".ccp4", ".dm3", ".dm4",
    ".h5", ".hdf5", ".hdf", ".emd", ".de5", ".dm5", ".hspy", ".nxs", ".nx5", ".nc", ".ser", ".tvips", ".mib", ".seq",
    ".gz", ".bz2", ".mp4", ".m4v", ".mov", ".avi",
)  # fmt: skip


def seconds(text: str) -> float:
    """A duration such as ``90s``, ``20m``, ``1h30m`` or ``13ms`` in seconds.

    A bare number is refused: nobody can tell whether it means seconds or minutes.

    Examples
    --------
    >>> seconds("1h30m"), seconds("13ms"), seconds("90s")
    (5400.0, 0.013, 90.0)
    """
    if _is_bare(text):
        number = text.strip()
        raise ValueError(f"it needs a unit, such as {number}s, {number}ms or {number}m")
    return _positive(_measure(text, _UNITS_S, "write it as 90s, 20m, 1h30m or 13ms"))


def frame_seconds(text: str) -> float:
    """The time of a frame: a duration with its unit.

    Examples
    --------
    >>> frame_seconds("13.3ms"), frame_seconds("75s")
    (0.0133, 75.0)
    """
    if _is_bare(text):
        number = text.strip()
        rate = f"; {number} frames per second are {1 / float(number):.4g}s" if float(number) > 0 else ""
        raise ValueError(f"it needs a unit, such as {number}s or {number}ms{rate}")
    return seconds(text)


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
            f"a pixel of {value:g} nanometres is unlikely. Write {text}nm if you mean it, or {text}pm for picometres"
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
        raise ValueError("it must be a size such as 4GiB or 500M")
    power = " KMGT".index(match[2].upper() or " ")
    return int(float(match[1]) * (1024 if match[3] else 1000) ** power)


def _positive(value: float) -> float:
    if not 0 < value < float("inf"):
        raise ValueError("it must be a positive number")
    return value


def _interval(text: str) -> tuple[int, int | None]:
    first, colon, last = text.partition(":")
    if not colon or not all(re.fullmatch(r" *-?[0-9]* *", part) for part in (first, last)):
        raise ValueError("write it as A:B, two whole numbers; you can leave out either")
    return int(first.strip() or 0), int(last) if last.strip() else None


def _ordered(interval: tuple[int, int | None]) -> tuple[int, int | None]:
    start, stop = interval
    if start < 0 or (stop is not None and stop <= start):
        raise ValueError("the second number must be larger than the first, and neither may be negative")
    return start, stop


def _box(text: str) -> tuple[tuple[int, int | None], tuple[int, int | None]]:
    rows, comma, columns = text.partition(",")
    if not comma:
        raise ValueError("write it as Y0:Y1,X0:X1")
    return _interval(rows), _interval(columns)


def _of_text(read: Callable[[str], Any]) -> BeforeValidator:
    """Read text; leave everything else to the type."""
    return BeforeValidator(lambda value: read(value) if isinstance(value, str) else value)


def _number(value: Any) -> Any:
    """True is not a number, though Python thinks so."""
    if isinstance(value, bool):
        raise ValueError("it must be a number")
    return value


def _yes_or_no(text: str) -> bool:
    if text.lower() not in ("true", "false"):
        raise ValueError("it must be true or false")
    return text.lower() == "true"


def _several(value: Any) -> Any:
    """One name stands for a list of one."""
    return (value,) if isinstance(value, (str, Path)) else value


def _radius(value: Any) -> Any:
    if value in ("frame", "auto"):
        return value
    if str(value) not in ("0", "1", "2"):
        raise ValueError("it must be 0, 1, 2, frame or auto")
    return int(value)


def _processes(value: Any) -> Any:
    if value == "slurm":
        return value
    if not re.fullmatch("[1-9][0-9]*", str(value)):
        raise ValueError("it must be a positive whole number, or slurm")
    return int(value)


def _counts_or(word: str) -> BeforeValidator:
    """Whole numbers in ascending order, each once, and a word for the largest that there is."""

    def read(value: Any) -> tuple[int | str, ...]:
        parts = value.split(",") if isinstance(value, str) else value
        parts = (parts,) if isinstance(parts, int) else parts
        found: set[int] = set()
        try:
            words = [str(part).strip() for part in parts]
        except TypeError:
            words = [""]
        for part in words:
            if part != word and not re.fullmatch("[1-9][0-9]{0,8}", part):
                raise ValueError(f"write whole numbers, with commas between them, and {word} for the whole")
            found |= set() if part == word else {int(part)}
        return (*sorted(found), *([word] if word in words else []))

    return BeforeValidator(read)


def _one_of(*numbers: int) -> BeforeValidator:
    """One of some whole numbers."""
    words = [str(number) for number in numbers]

    def read(value: Any) -> int:
        if str(value) not in words:
            raise ValueError(f"it is {', '.join(words[:-1])} or {words[-1]}")
        return int(value)

    return BeforeValidator(read)


def _seed(number: int) -> int:
    if not 0 <= number < 2**63:
        raise ValueError("it must lie between 0 and 2**63 - 1")
    return number


def _time_limit(text: str) -> str:
    """A time limit as Slurm writes it; a duration becomes one."""
    if re.fullmatch(r"[0-9]+-[0-9]+(:[0-9]{2}){0,2}|[0-9]+(:[0-9]{2}){1,2}", text):
        return text
    if _is_bare(text):
        raise ValueError("it needs a unit: write a time limit such as 04:00:00, 1-12:00:00 or 4h")
    try:
        total = round(seconds(text))
    except ValueError:
        raise ValueError("it must be a time limit such as 04:00:00, 1-12:00:00 or 4h") from None
    hours, rest = divmod(total, 3600)
    return f"{hours // 24}-{hours % 24:02d}:{rest // 60:02d}:{rest % 60:02d}"


def _word(text: str) -> str:
    if not re.fullmatch(r"[^\s\"'#\\]+", text):
        raise ValueError("it must be one word, without quotes")
    return text


def _gpus(value: Any) -> Any:
    text = str(value)
    if isinstance(value, bool) or not re.fullmatch(r"([\w.-]+:)?[0-9]+(,([\w.-]+:)?[0-9]+)*", text):
        raise ValueError("it must be a number of GPUs, or KIND:NUMBER such as a100:1")
    return text


def _line(text: str) -> str:
    if "\n" in text:
        raise ValueError("it must be a list of lines, each of one line")
    return text


def _option(text: str) -> str:
    if not text.startswith("-"):
        raise ValueError("it must be a list of options of the batch system, each with its dashes")
    return text


def _list(value: Any) -> Any:
    if not isinstance(value, (list, tuple)) or not all(isinstance(line, str) for line in value):
        raise ValueError("it must be a list of lines of text")
    return value


def _ends_in_a_name(path: Path) -> Path:
    """What is written is built beside the place where it will lie, so it needs a name."""
    if path.name in ("", ".."):
        raise ValueError("it must end in the name of the output")
    return path


def _no_url(value: Any) -> Any:
    if re.match(r"[A-Za-z][A-Za-z0-9+.-]+:/", str(value)):
        raise ValueError("it must be a local path, not an address; copy remote files yourself")
    return value


def _is_no_picture(path: Path) -> Path:
    """A store is a folder, whatever its name; one that is called a picture would surprise every program."""
    if path.suffix.lower() in (*_RAW_SUFFIXES, ".png"):
        raise ValueError(f"a store is a Zarr folder; call it {path.stem}.zarr")
    return path


def _not_empty(value: Any) -> Any:
    if value == "":
        raise ValueError("it must name a folder")
    return value


def _in_run(step: str) -> AfterValidator:
    """The folder of a run stands for what that step made."""
    return AfterValidator(lambda path: part_of_run(path, step))


YesNo = Annotated[bool, Strict(), _of_text(_yes_or_no)]
Whole = Annotated[int, BeforeValidator(_number)]
Count = Annotated[Whole, Field(gt=0)]
Index = Annotated[Whole, Field(ge=0)]
Port = Annotated[Whole, Field(ge=1, le=65535)]
Seed = Annotated[Whole, AfterValidator(_seed)]
Number = Annotated[float, BeforeValidator(_number), Field(allow_inf_nan=False)]
Positive = Annotated[Number, Field(gt=0)]
Share = Annotated[Number, Field(ge=0, lt=1)]
DoseShare = Annotated[Number, Field(ge=0.01, le=1)]
Duration = Annotated[Positive, _of_text(seconds)]  # [s]
FrameTime = Annotated[Positive, _of_text(frame_seconds)]  # [s]
Nanometres = Annotated[Positive, _of_text(nanometres)]
Size = Annotated[Count, _of_text(size)]  # [bytes]
Interval = Annotated[tuple[int, int | None], _of_text(_interval), AfterValidator(_ordered)]
Box = Annotated[
    tuple[
        Annotated[tuple[int, int | None], AfterValidator(_ordered)],
        Annotated[tuple[int, int | None], AfterValidator(_ordered)],
    ],
    _of_text(_box),
]
Radius = Annotated[int | str, BeforeValidator(_radius)]
Processes = Annotated[int | str, BeforeValidator(_processes)]
WorkersSetting = Annotated[InstanceOf[Workers], _of_text(Workers.of)]
Symmetries = Annotated[int, _one_of(1, 2, 4, 8, 16)]
Device = Literal["auto", "cpu", "cuda", "mps", "xpu"]
FrameNumbers = Annotated[tuple[int | str, ...], _counts_or("all"), Field(min_length=1)]
FrameSizes = Annotated[tuple[int | str, ...], _counts_or("full"), Field(min_length=1)]
UdvdRadius = Annotated[int, _one_of(0, 1)]
RawPath = Annotated[Path, BeforeValidator(_no_url)]
RawPaths = Annotated[tuple[RawPath, ...], BeforeValidator(_several), Field(min_length=1)]
NewPath = Annotated[Path, AfterValidator(_ends_in_a_name), BeforeValidator(_no_url)]
NewStore = Annotated[NewPath, AfterValidator(_is_no_picture)]
NewFolder = Annotated[Path, BeforeValidator(_not_empty), BeforeValidator(_no_url)]
MovieStore = Annotated[Path, _in_run("ingest")]
DenoisedStore = Annotated[Path, _in_run("apply")]
Model = Annotated[Path, _in_run("train")]
Paths = Annotated[tuple[Path, ...], BeforeValidator(_several), Field(min_length=1)]
MoviePaths = Annotated[tuple[MovieStore, ...], BeforeValidator(_several), Field(min_length=1)]
Words = Annotated[tuple[str, ...], BeforeValidator(_several), Field(min_length=1)]
OptionalWords = Annotated[tuple[str, ...], BeforeValidator(_several)]

# Of profiles.
Word = Annotated[str, AfterValidator(_word)]
TimeLimit = Annotated[str, AfterValidator(_time_limit)]
Gpus = Annotated[str, BeforeValidator(_gpus)]
Lines = Annotated[tuple[Annotated[str, AfterValidator(_line)], ...], BeforeValidator(_list)]
Options = Annotated[
    tuple[Annotated[str, AfterValidator(_line), AfterValidator(_option)], ...], BeforeValidator(_list)
]
