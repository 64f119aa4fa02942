"""Readers of raw movies: one small module per file format, one way to use them all.

A reader opens a file read-only, checks every size in its header against the size of the file before it
allocates anything, and then fills arrays of frames that the caller owns.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from importlib import import_module
from pathlib import Path
from types import TracebackType
from typing import Any, NamedTuple, Protocol

import numpy as np
from numpy.typing import NDArray

from ..errors import InputError, PipelineError, UsageError
from .rawfile import RawFile, RawFolder, is_pattern


@dataclass(frozen=True)
class MovieInfo:
    """What a raw file says about itself; unknown stays None."""

    shape: tuple[int, int, int]  # (n_frames, height, width) [pixels]
    dtype: np.dtype[Any]  # of the frames that read() delivers, native byte order
    format: str  # for example "MRC mode 6"
    reader: str  # library and version that decodes it, for example "mrcfile 1.5.4"
    frame_time_s: float | None = None  # time from frame to frame [s]
    pixel_size_nm: tuple[float, float] | None = None  # (row, column) distance of pixel centres [nm]
    exposure_s: float | None = None  # time that one frame collects electrons [s]
    dose_rate_e_per_nm2_s: float | None = None  # [electrons / nm2 / s]
    voltage_kv: float | None = None  # [kV]
    camera: str | None = None
    timestamps_s: NDArray[np.float64] | None = None  # (n_frames,), of each frame, counted from any origin [s]
    missing_frames: int = 0  # frames the header announces and the file lacks (--allow-truncated)
    warnings: tuple[str, ...] = ()  # one sentence each: what to know before one trusts the numbers
    files: tuple[Path, ...] = ()  # all files of a movie of several, in the order of frames; else empty
    metadata: dict[str, Any] = field(default_factory=dict)  # the original metadata, JSON-able


class Reader(Protocol):
    """An open raw movie. ``read`` may be called from several threads at once."""

    info: MovieInfo

    def read(self, start: int, stop: int, out: NDArray[Any]) -> None:
        """Decode frames ``[start, stop)`` into ``out``, C-contiguous, (stop - start, height, width)."""

    def close(self) -> None: ...

    def __enter__(self) -> Reader: ...

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None: ...


class Format(NamedTuple):
    """How one file format is recognised, and the module whose ``open_movie`` reads it.

    That is a function ``def open_movie(file: RawFile, allow_truncated: bool, *, single=False, dataset=None,
    channel=None) -> Reader``, with only those keywords that are listed in ``choices``.
    """

    name: str
    module: str
    magic: tuple[tuple[int, bytes], ...]  # any of these (position, bytes) in the first KiB
    suffixes: tuple[str, ...]
    choices: tuple[str, ...] = ()  # which of "dataset", "channel" and "single" its open_movie understands


# Modules are imported when a file needs them: tifffile alone takes longer to import than --help may.
FORMATS = (
    Format("NumPy", "npy", ((0, b"\x93NUMPY"),), (".npy",), ("single",)),
    Format(
        "TIFF",
        "tiff",
        ((0, b"II*\0"), (0, b"MM\0*"), (0, b"II+\0"), (0, b"MM\0+")),
        (".tif", ".tiff", ".btf", ".tf8", ".stk", ".eer"),
        ("dataset", "channel", "single"),
    ),
    Format("MRC", "mrc", ((208, b"MAP"),), (".mrc", ".mrcs", ".map", ".st", ".ccp4"), ("single",)),
    Format(
        "DigitalMicrograph",
        "dm",
        ((0, b"\0\0\0\3"), (0, b"\0\0\0\4")),
        (".dm3", ".dm4"),
        ("dataset", "single"),
    ),
    Format(
        "HDF5",
        "hdf5",
        ((0, b"\x89HDF\r\n\x1a\n"), (512, b"\x89HDF\r\n\x1a\n")),  # 512: behind a block of the user's own
        (".h5", ".hdf5", ".hdf", ".emd", ".de5", ".dm5", ".hspy", ".nxs", ".nx5", ".nc"),
        ("dataset", "channel"),
    ),
    Format("TIA SER", "ser", ((0, b"II\x97\x01"),), (".ser",)),
    Format("TVIPS", "tvips", ((0, b"\0\1\0\0\1\0\0\0"), (0, b"\0\1\0\0\2\0\0\0")), (".tvips",)),
    Format("Merlin", "mib", ((0, b"MQ1,"),), (".mib",)),
    Format("NorPix", "seq", ((0, b"\xed\xfe\0\0N\0o\0r\0p\0i\0x\0"),), (".seq",)),
    Format("compressed MRC", "mrc_packed", ((0, b"\x1f\x8b"), (0, b"BZh")), (".gz", ".bz2")),
    Format(
        "MP4", "video", ((4, b"ftyp"), (4, b"moov"), (4, b"mdat")), (".mp4", ".m4v", ".mov"), ("channel",)
    ),
    Format("AVI", "video", ((8, b"AVI "),), (".avi",), ("channel",)),
)
ZARR = Format("Zarr", "zarr_store", (), (".zarr", ".zspy"), ("dataset", "channel"))
FRAME_FILES = Format("folder of frames", "sequence", (), ())
HDF5_FILES = Format("several HDF5", "hdf5_files", (), (".h5", ".hdf5", ".nxs"))
# Of formats that nobody but cameras writes.
CAMERA_SUFFIXES = (
    ".dm3",
    ".dm4",
    ".dm5",
    ".mrc",
    ".mrcs",
    ".ser",
    ".tvips",
    ".mib",
    ".seq",
    ".emd",
    ".de5",
    ".eer",
)
_ZARR_FILES = ("zarr.json", ".zarray", ".zgroup")


def open_raw(
    path: str | Path,
    *,
    allow_truncated: bool = False,
    dataset: str | None = None,
    channel: int | None = None,
    single: bool = False,
) -> Reader:
    """Open a raw movie of any supported format, recognised by its content rather than its name.

    Parameters
    ----------
    path : str or Path
        The raw file, opened read-only; the folder that holds a Zarr store; or the folder, or the pattern
        ("folder/*.tif"), of a movie with one file for each frame.
    allow_truncated : bool, optional
        Keep the whole frames of a file that is cut short, and count the others in ``missing_frames``.
    dataset : str, optional
        Path within the file of the array to read, where a file holds several.
    channel : int, optional
        Which of several channels or colours to read, counted from 0.
    single : bool, optional
        The file is one of many and holds one frame of the movie.

    Returns
    -------
    Reader
        The open movie; close it, or use it in a ``with`` statement.

    Raises
    ------
    InputError
        If the file is missing, damaged, cut short, of no supported format, or not a movie.
    UsageError
        If a data set or channel is named that the format has not.
    """
    many = Path(path).is_dir() or is_pattern(path)
    file = RawFolder(path) if many else RawFile(path)
    try:
        format = _recognise_folder(file) if isinstance(file, RawFolder) else recognise(file)
        named = {"dataset": dataset, "channel": channel}
        choices: dict[str, Any] = {name: value for name, value in named.items() if value is not None}
        for name in choices:
            if name not in format.choices:
                raise UsageError(
                    f"{path}: {format.name} files have no {name}s to choose from; leave --{name} out."
                )
        if single and "single" not in format.choices:
            raise InputError(path, f"holds {format.name}, which cannot be read as one file for each frame.")
        if single:
            choices["single"] = True
        module = import_module(f".{format.module}", __name__)
        reader: Reader = module.open_movie(file, allow_truncated, **choices)
    except BaseException as error:
        file.close()
        if isinstance(error, PipelineError) or not isinstance(error, Exception):
            raise
        # Damaged headers make libraries fail in every possible way; the user needs one sentence.
        raise InputError(path, f"damaged, it cannot be read ({_one_line(error)}). Copy it again.") from error
    return reader


def _recognise_folder(folder: RawFolder) -> Format:
    if any((folder.path / name).is_file() for name in _ZARR_FILES):
        return ZARR
    several = is_pattern(folder.path) and folder.path.suffix.lower() in HDF5_FILES.suffixes
    return HDF5_FILES if several else FRAME_FILES


def joined(movies: list[Path]) -> list[Path]:
    """Movies, those in several HDF5 files as one each."""
    if not any(path.suffix.lower() in HDF5_FILES.suffixes for path in movies):
        return movies
    found: list[Path] = import_module(f".{HDF5_FILES.module}", __name__).joined(movies)
    return found


def recognise(file: RawFile) -> Format:
    if file.size == 0:
        raise InputError(file.path, "the file is empty (0 bytes). Copy it again.")
    head = file.read_at(0, min(file.size, 1024))
    suffix = file.path.suffix.lower()
    named = next((f for f in FORMATS if suffix in f.suffixes), None)
    found = next((f for f in FORMATS if any(head.startswith(m, at) for at, m in f.magic)), None)
    if found is None and named is not None and named.module == "mrc":
        found = named  # writers before MRC2000 put no identifier; the header is checked for sense later
    if found is None and head[:3] == b"CDF":
        raise InputError(
            file.path,
            "is a netCDF file of version 3, which is not read. Save it as netCDF 4: nccopy -k nc4 OLD NEW.",
        )
    if found is None:
        readable = ", ".join(f"{f.name} ({' '.join(f.suffixes)})" for f in FORMATS)
        raise InputError(file.path, f"its format is not supported. Supported formats: {readable}.")
    if named is not None and named is not found:
        raise InputError(
            file.path,
            f"its name says {named.name} ({suffix}) but its content is {found.name}. "
            f"Rename it to {found.suffixes[0]} if that is what it is.",
        )
    return found


def _one_line(error: BaseException) -> str:
    text = " ".join(str(error).split())
    return f"{type(error).__name__}: {text[:200]}" if text else type(error).__name__
