"""Small raw files of every format that can be written in a few lines, for tests and for the fuzzer."""

from __future__ import annotations

import bz2
import gzip
import struct
from collections.abc import Callable
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

import numpy as np
import tifffile
from numpy.typing import NDArray


def movie(dtype: str = "<u2", shape: tuple[int, int, int] = (5, 6, 7)) -> NDArray[Any]:
    """Counts that use the whole range of an integer type."""
    rng = np.random.default_rng(7)
    if np.dtype(dtype).kind == "f":
        return rng.normal(100, 50, shape).astype(dtype)
    limits = np.iinfo(dtype)
    return rng.integers(limits.min, limits.max, shape, endpoint=True).astype(dtype)


def write_mrc(
    path: Path,
    data: NDArray[Any],
    mode: int,
    *,
    extended: int = 0,
    cell: float = 2.0,
    kind: bytes = b"",
    content: bytes = b"",
) -> None:
    order = ">" if data.dtype.str[0] == ">" else "<"
    n, height, width = data.shape
    header = struct.pack(
        f"{order}10i6f3i3f2i", width, height, n, mode, 0, 0, 0, width, height, 1,
        cell * width, cell * height, cell, 90, 90, 90, 1, 2, 3, 0, 0, 0, 0, max(extended, len(content)),
    )  # fmt: skip
    header = header.ljust(104, b"\0") + kind
    stamp = b"\x11\x11\0\0" if order == ">" else b"DD\0\0"
    header = (header.ljust(208, b"\0") + b"MAP " + stamp).ljust(1024, b"\0")
    path.write_bytes((header + content).ljust(1024 + extended, b"\0") + data.tobytes())


def write_dm(
    path: Path,
    data: NDArray[Any],
    version: int,
    *,
    time_unit: str = "ms",
    recorded: int | None = None,
    name: str = "made up",
    units: tuple[tuple[str, float], ...] | None = None,
    brightness: tuple[float, float, str] | None = None,
) -> None:
    """A DigitalMicrograph file with its groups in the usual order: pixels first, then their sizes.

    ``recorded`` writes the tag of an in situ capture, the number of frames; ``units`` are those of the axes and
    their steps, the fastest first; ``brightness`` is origin, scale and unit of the counts.
    """
    word = ">Q" if version == 4 else ">I"
    codes = {"u1": (6, 10), "i1": (9, 9), "i2": (1, 2), "u2": (10, 4), "f4": (2, 6), "i4": (7, 3)}
    data_type, encoded = codes[data.dtype.str[1:]]

    def entry(kind: int, name: str, body: bytes) -> bytes:
        size = struct.pack(word, len(body)) if version == 4 else b""
        return struct.pack(">BH", kind, len(name)) + name.encode() + size + body

    def group(name: str, *entries: bytes) -> bytes:
        return entry(20, name, b"\0\0" + struct.pack(word, len(entries)) + b"".join(entries))

    def value(name: str, description: tuple[int, ...], content: bytes) -> bytes:
        words = b"".join(struct.pack(word, n) for n in (len(description), *description))
        return entry(21, name, b"%%%%" + words + content)

    def text(name: str, string: str) -> bytes:
        return value(name, (20, 4, len(string)), string.encode("utf-16-le"))

    def number(name: str, content: float) -> bytes:
        return value(name, (6,), struct.pack("<f", content))

    units = (units or (("nm", 0.5), ("nm", 0.25), (time_unit, 2.5)))[: data.ndim]
    dimensions = [group("", number("Scale", scale), text("Units", unit)) for unit, scale in units]
    sizes = [value("", (5,), struct.pack("<I", n)) for n in reversed(data.shape)]
    tags = [
        text("Name", name),
        group("Microscope Info", number("Voltage", 300_000.0)),
        group(
            "Acquisition",
            group("Device", text("Name", "K3")),
            group("Parameters", group("High Level", number("Exposure (s)", 0.0125))),
        ),
    ]
    if recorded is not None:
        frames = value("# Frames", (5,), struct.pack("<I", recorded))
        tags.append(group("In-situ", group("Recorded", frames)))
    calibrations = [group("Dimension", *dimensions)]
    if brightness is not None:
        origin, scale, unit = brightness
        calibrations.append(
            group("Brightness", number("Origin", origin), number("Scale", scale), text("Units", unit))
        )
    image = group(
        "ImageData",
        group("Calibrations", *calibrations),
        value("Data", (20, encoded, data.size), data.tobytes()),
        value("DataType", (5,), struct.pack("<I", data_type)),
        group("Dimensions", *sizes),
    )
    root = group("", group("ImageList", group("", image, group("ImageTags", *tags))))
    root_body = root[3 + (8 if version == 4 else 0) :]
    path.write_bytes(struct.pack(">I", version) + struct.pack(word, len(root_body)) + b"\0\0\0\1" + root_body)


def write_npy(path: Path, data: NDArray[Any]) -> None:
    np.save(path, data)


def write_ser(
    path: Path, data: NDArray[Any], *, version: int = 0x210, kind: int = 0x4122, pixel_m: float = 1e-10
) -> None:
    """A TIA series: header, offsets, then images from bottom to top with a time behind each."""
    word = "q" if version == 0x220 else "i"
    codes = {"u1": 1, "u2": 2, "u4": 3, "i1": 4, "i2": 5, "i4": 6, "f4": 7, "f8": 8}
    n, height, width = data.shape
    dimension = struct.pack("<iddii", n, 0.0, 1.0, 0, 6) + b"Number" + struct.pack("<i", 0)
    start = 22 + struct.calcsize(f"<{word}i") + len(dimension)
    first = start + 2 * n * struct.calcsize(f"<{word}")
    step = 50 + data[0].nbytes + 8
    offsets = [first + k * step for k in range(n)]
    raw = struct.pack(f"<3h4i{word}i", 0x4949, 0x0197, version, kind, 0x4152, n, n, start, 1) + dimension
    raw += struct.pack(f"<{2 * n}{word}", *offsets, *(at + step - 8 for at in offsets))
    calibration = struct.pack("<ddiddi", 0.0, pixel_m, 0, 0.0, 2 * pixel_m, 0)
    for k, frame in enumerate(data):
        raw += calibration + struct.pack("<hii", codes[data.dtype.str[1:]], width, height)
        raw += frame[::-1].tobytes() + struct.pack("<Ii", 0x4152, 1_400_000_000 + k)
    path.write_bytes(raw)


def write_tvips(path: Path, data: NDArray[Any], *, parts: int = 1, first_counter: int = 0) -> None:
    """A TVIPS recording NAME_000.tvips with its later parts beside it."""
    n, height, width = data.shape
    bits = 8 * data.dtype.itemsize
    header = struct.pack("<13i", 256, 2, width, height, bits, 0, 0, 1, 1, 15_500, 300, 80_000, 64)
    frames = [
        struct.pack("<4If2I5f", first_counter + k, 1_400_000_000, 25 * k, 0, 1.0, 80_000, 1, *[0.0] * 5)
        .ljust(64, b"\0") + frame.tobytes()
        for k, frame in enumerate(data)
    ]  # fmt: skip
    for number, chosen in enumerate(np.array_split(np.arange(n), parts)):
        lead = header.ljust(256, b"\0") if number == 0 else b""
        name = path.name.replace("_000", f"_{number:03d}")
        path.with_name(name).write_bytes(lead + b"".join(frames[k] for k in chosen))


def write_mib(path: Path, data: NDArray[Any], *, raw_bits: int = 0, announced: int | None = None) -> None:
    """A Merlin movie, rows from bottom to top, and the HDR file that says how many frames it has."""
    n, height, width = data.shape
    kind = "R64" if raw_bits else f"U{8 * data.dtype.itemsize:02d}"
    raw = b""
    for k, frame in enumerate(data[:, ::-1]):
        time = datetime(2021, 5, 7, 18, 56, 59) + timedelta(milliseconds=10 * k)
        text = (
            f"MQ1,{k + 1:06d},00384,01,{width:04d},{height:04d},{kind},   1x1,01,"
            f"{time:%Y-%m-%d %H:%M:%S.%f},0.010000,0,0,0,2.000000E+0"
        )
        raw += f"{text},3RX,MQ1A,{raw_bits or 8}".encode().ljust(384, b"\0")
        if raw_bits == 1:
            words = np.packbits(frame.reshape(-1, 64), axis=1, bitorder="little")
            raw += words[:, ::-1].tobytes()
        elif raw_bits:
            words = frame.astype("u1" if raw_bits == 6 else ">u2")
            raw += words.reshape(-1, 8 // words.itemsize)[:, ::-1].tobytes()
        else:
            raw += frame.astype(data.dtype.newbyteorder(">")).tobytes()
    path.write_bytes(raw)
    notes = f"HDR,\nFrames in Acquisition (Number):\t{n if announced is None else announced}\nEnd"
    path.with_suffix(".hdr").write_text(notes)


def write_seq(path: Path, data: NDArray[Any], *, step_s: float = 0.025, rate: float = 40.0) -> None:
    """A NorPix movie of version 5 with a time behind each frame."""
    n, height, width = data.shape
    bits, n_bytes = 8 * data.dtype.itemsize, data[0].nbytes
    head = struct.pack("<I24sii", 0xFEED, "Norpix seq".encode("utf-16-le"), 5, 1024)
    numbers = struct.pack("<9Id", width, height, bits, bits, n_bytes, 100, n, 0, n_bytes + 32, rate)
    raw = (head.ljust(548, b"\0") + numbers).ljust(8192, b"\0")
    for k, frame in enumerate(data):
        microseconds = round(k * step_s * 1e6)
        seconds, rest = 1_400_000_000 + microseconds // 10**6, microseconds % 10**6
        stamp = struct.pack("<IHH", seconds, rest // 1000, rest % 1000)
        raw += frame.tobytes() + stamp.ljust(32, b"\0")
    path.write_bytes(raw)


def write_packed(path: Path, data: NDArray[Any]) -> None:
    """An MRC movie in gzip or bzip2, as the suffix says."""
    write_mrc(path, data, 6)
    pack = gzip.compress if path.suffix == ".gz" else bz2.compress
    path.write_bytes(pack(path.read_bytes()))


def write_tiff(path: Path, data: NDArray[Any], **options: Any) -> None:
    tifffile.imwrite(path, data, photometric="minisblack", **options)


Writer = tuple[str, Callable[[Path, NDArray[Any]], None]]
TIFF_WRITERS: dict[str, Writer] = {
    "TIFF": ("a.tif", write_tiff),
    "TIFF, big-endian": ("a.tif", lambda p, d: write_tiff(p, d, byteorder=">")),
    "BigTIFF": ("a.tif", lambda p, d: write_tiff(p, d, bigtiff=True)),
    "ImageJ TIFF": ("a.tif", lambda p, d: tifffile.imwrite(p, d, imagej=True, metadata={"axes": "TYX"})),
    "LZW": ("a.tif", lambda p, d: write_tiff(p, d, compression="lzw")),
    "LZW, no description": (
        "a.tif",
        lambda p, d: write_tiff(p, d, compression="lzw", byteorder="<", metadata=None),
    ),
    "deflate, predictor": (
        "a.tif",
        lambda p, d: write_tiff(p, d, compression="zlib", predictor=True, rowsperstrip=4),
    ),
    "zstd, tiles, big-endian": (
        "a.tif",
        lambda p, d: write_tiff(p, d, compression="zstd", tile=(16, 16), byteorder=">"),
    ),
    "PackBits": ("a.tif", lambda p, d: write_tiff(p, d, compression="packbits")),
    "tiles": ("a.tif", lambda p, d: write_tiff(p, d, tile=(16, 16))),
}
WRITERS: dict[str, Writer] = {
    "npy": ("a.npy", write_npy),
    "npy, Fortran order": ("a.npy", lambda p, d: write_npy(p, np.asfortranarray(d))),
    "npy, big-endian": ("a.npy", lambda p, d: write_npy(p, d.astype(d.dtype.newbyteorder(">")))),
    "DM3": ("a.dm3", lambda p, d: write_dm(p, d, 3)),
    "DM4": ("a.dm4", lambda p, d: write_dm(p, d, 4)),
    "SER": ("a.ser", write_ser),
    "SER, 64 bit": ("a.ser", lambda p, d: write_ser(p, d, version=0x220)),
    **TIFF_WRITERS,
}
# Formats for unsigned integers only.
COUNT_WRITERS: dict[str, Writer] = {
    "MRC": ("a.mrc", lambda p, d: write_mrc(p, d, 6)),
    "MRC, gzip": ("a.mrc.gz", write_packed),
    "MRC, bzip2": ("a.mrc.bz2", write_packed),
    "TVIPS": ("a_000.tvips", write_tvips),
    "MIB": ("a.mib", write_mib),
    "SEQ": ("a.seq", write_seq),
}


def write_folder(folder: Path, data: NDArray[Any], name: str = "frame_{}.tif", **options: Any) -> Path:
    """One file for each frame; the suffix of the name gives the format."""
    folder.mkdir(parents=True, exist_ok=True)
    for number, frame in enumerate(data):
        path = folder / name.format(number)
        if path.suffix == ".tif":
            write_tiff(path, frame, **options)
        elif path.suffix == ".dm4":
            write_dm(path, frame, 4, **options)
        else:
            np.save(path, frame)
    return folder


def write_capture(folder: Path, data: NDArray[Any], cuts: tuple[int, ...] = ()) -> Path:
    """A Gatan capture of a director and raw files, cut at these bytes without regard to frames."""
    folder.mkdir(parents=True, exist_ok=True)
    write_dm(folder / "cap 1.dm4", data[0], 4, recorded=len(data))
    raw = data.tobytes()
    for number, (start, stop) in enumerate(zip((0, *cuts), (*cuts, len(raw)), strict=True)):
        suffix = f".raw_{number}" if number else ".raw"
        (folder / f"cap 1{suffix}").write_bytes(raw[start:stop])
    return folder / "cap 1.dm4"


def write_clock(folder: Path, data: NDArray[Any], per_second: int, start_s: int = 0) -> Path:
    """A Gatan capture of folders for hours, minutes and seconds."""
    for number, frame in enumerate(data):
        second, index = divmod(number, per_second)
        hour, minute, second = (
            (start_s + second) // 3600,
            (start_s + second) // 60 % 60,
            (start_s + second) % 60,
        )
        place = folder / f"Hour_{hour:02d}/Minute_{minute:02d}/Second_{second:02d}"
        place.mkdir(parents=True, exist_ok=True)
        name = f"cap_Hour_{hour:02d}_Minute_{minute:02d}_Second_{second:02d}_Frame_{index:04d}.dm4"
        write_dm(place / name, frame, 4)
    return folder
