"""Every kind of file that a movie is exported to, by the end of its name; a new kind is a module and a line here."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path

from ..pictures import video
from ..pictures.sheet import Grey
from . import hspy, mrc, netcdf, npy, tiff
from .values import DataFile


@dataclass(frozen=True)
class VideoFile:
    """A kind of file that plays."""

    name: str  # for people
    write: Callable[[Path, Iterable[Grey], Fraction, str, str], None]  # pictures per second, title, comment
    at_most: tuple[int, int]  # height and width that players show [pixels]
    most_per_second: int  # pictures that players show
    even: bool = False  # whether height and width must be


def _mp4(file: Path, pictures: Iterable[Grey], rate: Fraction, title: str, comment: str) -> None:
    video.write_h264(file, pictures, rate, title=title, comment=comment)


def _gif(file: Path, pictures: Iterable[Grey], rate: Fraction, title: str, comment: str) -> None:
    video.write_gif(file, pictures, rate)


def _webp(file: Path, pictures: Iterable[Grey], rate: Fraction, title: str, comment: str) -> None:
    video.write_webp(file, pictures, rate)


VIDEOS = {
    ".mp4": VideoFile("MP4 (H.264)", _mp4, (2304, 4096), video.MOST_FPS, even=True),
    ".gif": VideoFile("GIF", _gif, (1080, 1920), video.MOST_GIF_FPS),
    ".webp": VideoFile("WebP", _webp, (1080, 1920), video.MOST_GIF_FPS),
}
OME_TIFF = DataFile(
    "OME-BigTIFF", begin=tiff.begin_ome, types=("u1", "u2", "u4", "i1", "i2", "i4", "f4", "f8")
)
IMAGEJ_TIFF = DataFile("ImageJ TIFF", begin=tiff.begin_imagej, types=("u1", "u2", "i2", "f4"))
DATA = {
    # The longer ends first: the first that fits counts.
    ".imagej.tif": IMAGEJ_TIFF,
    ".imagej.tiff": IMAGEJ_TIFF,
    ".tif": OME_TIFF,
    ".tiff": OME_TIFF,
    ".mrc": DataFile("MRC", begin=mrc.begin, end=mrc.end, types=("i1", "i2", "u2", "f4")),
    ".hspy": DataFile("HyperSpy", hspy.write, packed=True),
    ".nc": DataFile(
        "netCDF-4",
        netcdf.write,
        types=("u1", "u2", "u4", "u8", "i1", "i2", "i4", "i8", "f4", "f8"),
        packed=True,
    ),
    ".npy": DataFile("NumPy", begin=npy.begin),
}


def data_file(output: Path) -> DataFile:
    """The kind of a file of data, by the end of its name."""
    name = output.name.lower()
    return next(kind for end, kind in DATA.items() if name.endswith(end))
