"""How a movie is shown, as the flags of ``export`` say it: panels, speed, contrast, and the name of the file."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BeforeValidator, Field, InstanceOf

from .parse import NewPath

PICTURES = (".mp4", ".gif", ".webp", ".png")  # files that hold pictures of a movie
DATA = (".tif", ".tiff", ".mrc", ".hspy", ".nc", ".npy")  # files that hold its values

_NUMBER = r"[-+]?(?:[0-9]+\.?[0-9]*|\.[0-9]+)(?:[eE][-+]?[0-9]+)?"


@dataclass(frozen=True)
class Speed:
    """How fast a movie plays: frames per second, or times as fast as it was recorded."""

    value: float
    unit: Literal["fps", "x"]

    def __str__(self) -> str:
        return f"{self.value:g}{self.unit}"

    @classmethod
    def of(cls, text: str) -> Speed:
        """Read the ``--speed`` option.

        Examples
        --------
        >>> Speed.of("25fps"), Speed.of("0.1x")
        (Speed(value=25.0, unit='fps'), Speed(value=0.1, unit='x'))
        """
        match = re.fullmatch(rf" *({_NUMBER}) *(fps|x) *", text)
        if match is None or not 0 < float(match[1]) < float("inf"):
            raise ValueError("write frames per second such as 25fps, or times real time such as 0.1x")
        return cls(float(match[1]), "fps" if match[2] == "fps" else "x")


@dataclass(frozen=True)
class Contrast:
    """What is shown black and what white: counts, or percentiles of the frames."""

    low: float
    high: float
    percent: bool

    def __str__(self) -> str:
        sign = "%" if self.percent else ""
        return f"{self.low:g}{sign},{self.high:g}{sign}"

    @classmethod
    def of(cls, value: Any) -> Any:
        """Read the ``--contrast`` option: two counts, two percentiles, or ``percentiles`` for the usual two.

        Examples
        --------
        >>> Contrast.of("0,7.5"), Contrast.of("1%,99%"), str(Contrast.of("percentiles"))
        (Contrast(low=0.0, high=7.5, percent=False), Contrast(low=1.0, high=99.0, percent=True), '0.3%,99.7%')
        """
        if value == "percentiles":
            return PERCENTILES
        if isinstance(value, str):
            match = re.fullmatch(rf" *({_NUMBER}) *(%?) *, *({_NUMBER}) *(%?) *", value)
            if match is None or match[2] != match[4]:
                raise ValueError(
                    "write two counts such as 0,7.5, two percentiles such as 1%,99%, or percentiles"
                )
            made = cls(float(match[1]), float(match[3]), match[2] == "%")
        elif isinstance(value, tuple | list) and len(value) == 2:
            made = cls(float(value[0]), float(value[1]), False)
        else:
            return value
        if not made.low < made.high or (made.percent and not 0 <= made.low < made.high <= 100):
            raise ValueError(
                "the second number must be larger than the first, and percentiles lie in 0 to 100"
            )
        return made


PERCENTILES = Contrast(0.3, 99.7, True)


def is_picture(output: Path) -> bool:
    """Whether a file of this name holds pictures of a movie; else it holds its values."""
    return output.suffix.lower() in PICTURES


def _several(value: Any) -> Any:
    return tuple(part.strip() for part in value.split(",")) if isinstance(value, str) else value


def _all_different(panels: tuple[str, ...]) -> tuple[str, ...]:
    if len(set(panels)) < len(panels):
        raise ValueError("a panel is named twice")
    return panels


def _speed(value: Any) -> Any:
    return Speed.of(value) if isinstance(value, str) else value


def _known(path: Path) -> Path:
    if path.suffix.lower() not in (*PICTURES, *DATA):
        known = [suffix for suffix in (*PICTURES, *DATA) if suffix != ".tiff"]
        raise ValueError(f"its name must end in {', '.join(known[:-1])} or {known[-1]}")
    return path


Panels = Annotated[
    tuple[Literal["raw", "mean9", "denoised", "difference"], ...],
    BeforeValidator(_several),
    AfterValidator(_all_different),
    Field(min_length=1),
]
SpeedSetting = Annotated[InstanceOf[Speed], BeforeValidator(_speed)]
ContrastSetting = Annotated[InstanceOf[Contrast], BeforeValidator(Contrast.of)]
NewExport = Annotated[NewPath, AfterValidator(_known)]
