"""Ingest of a raw movie against the least that it could cost.

Times the whole command ``tdenoise-pipeline ingest``, start of Python included, and in the same round: reading
the raw file once (a memory map, summed), copying it (with fsync), its sha256 (one thread), and the
compression alone (blosc zstd-3 bitshuffle in the store's chunks, as many threads as ingest uses). The page
cache is warm. The start is what ingesting three frames takes; nothing is subtracted. Prints medians of the
ratios within each round, first of all against copying and compressing together (target: 1.5), and peak memory.
Of a TIFF packed with LZW (an eighth of the size) it times ingest on one core and on all of them.

    python benchmarks/ingest.py [--megabytes 2048] [--repeats 3] [--formats tif mrc dm4 lzw] [--save] [--quick]
"""

from __future__ import annotations

import hashlib
import os
import shutil
import struct
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import tifffile
from common import (
    Spent,
    command_line,
    frames,
    interleaved,
    median,
    parser,
    ratio,
    rounded,
    save,
    scratch,
    spent,
    write_mrc,
    write_tiff,
)
from numcodecs.blosc import BITSHUFFLE, Blosc
from tdenoise_pipeline.resources import budget
from tdenoise_pipeline.store import store
from tdenoise_pipeline.store.blocks import Region
from tdenoise_pipeline.store.shards import shards_in

from tdenoise.files.atomic import fsync

SIZE = 1024  # rows and columns of a frame [pixels]


def write_dm4(path: Path, shape: tuple[int, int, int]) -> Path:
    """A DigitalMicrograph 4 movie of uint16 counts: tags around one block of pixels. On the disk on return."""
    n_bytes = int(np.prod(shape)) * 2

    def entry(kind: int, name: str, body: bytes) -> bytes:
        return struct.pack(">BH", kind, len(name)) + name.encode() + struct.pack(">Q", len(body)) + body

    def value(name: str, description: tuple[int, ...], content: bytes) -> bytes:
        words = struct.pack(f">{len(description) + 1}Q", len(description), *description)
        return entry(21, name, b"%%%%" + words + content)

    def count(n: int) -> bytes:
        return b"\0\0" + struct.pack(">Q", n)

    # What lies behind the pixels, and then, from the innermost group outwards, what lies before them.
    sizes = b"".join(value("", (5,), struct.pack("<I", n)) for n in reversed(shape))
    tail = value("DataType", (5,), struct.pack("<I", 10)) + entry(20, "Dimensions", count(3) + sizes)
    words = b"%%%%" + struct.pack(">4Q", 3, 20, 4, n_bytes // 2)
    head = struct.pack(">BH", 21, 4) + b"Data" + struct.pack(">Q", len(words) + n_bytes) + words
    for name, n in (("ImageData", 3), ("", 1), ("ImageList", 1)):
        size = 10 + len(head) + n_bytes + len(tail)
        head = struct.pack(">BH", 20, len(name)) + name.encode() + struct.pack(">Q", size) + count(n) + head
    root = count(1) + head
    with path.open("wb") as file:
        file.write(struct.pack(">IQI", 4, len(root) + n_bytes + len(tail), 1) + root)
        for frame in frames(shape, "uint16"):
            file.write(frame.data)
        file.write(tail)
    fsync(path)
    return path


FORMATS: dict[str, tuple[Callable[[Path, tuple[int, int, int]], Path], type]] = {
    "tif": (write_tiff, np.uint8),
    "mrc": (write_mrc, np.uint16),
    "dm4": (write_dm4, np.uint16),
}


def main() -> None:
    options = parser(__doc__ or "")
    options.add_argument("--megabytes", type=int, default=2048, help="size of the raw movie [MiB]")
    options.add_argument("--repeats", type=int, default=3)
    known = (*FORMATS, "lzw")
    options.add_argument("--formats", nargs="+", choices=known, default=known)
    chosen = options.parse_args()
    n_bytes = (32 if chosen.quick else chosen.megabytes) * 2**20
    repeats = 1 if chosen.quick else chosen.repeats
    results = {}
    for suffix in chosen.formats:
        with scratch(chosen.folder) as folder:
            if suffix == "lzw":
                results[suffix] = scaling(folder, n_bytes // 8, repeats)
            else:
                results[suffix] = measure(folder, suffix, n_bytes, repeats)
    if chosen.save:
        save("ingest", results)


def measure(folder: Path, suffix: str, n_bytes: int, repeats: int) -> dict[str, Any]:
    """Ingest one movie and do the cheaper things to it, in turn."""
    write, dtype = FORMATS[suffix]
    shape = (n_bytes // (SIZE * SIZE * np.dtype(dtype).itemsize), SIZE, SIZE)
    raw = write(folder / f"movie.{suffix}", shape)
    few = write(folder / f"few.{suffix}", (3, SIZE, SIZE))
    output = folder / "movie.zarr"
    peaks = []
    print(f"{suffix}: {shape[0]} frames of {SIZE} x {SIZE}, {np.dtype(dtype)}, {n_bytes / 2**20:.0f} MiB")

    def ingest(path: Path) -> Spent:
        shutil.rmtree(output, ignore_errors=True)
        done = command_line("ingest", path, "-o", output, "--quiet")
        peaks.append(done.peak_bytes)
        return done.time

    read(raw)
    taken = interleaved(
        {
            "read": lambda: spent(lambda: read(raw)),
            "copy": lambda: spent(lambda: copy(raw, folder / "copy")),
            "sha256": lambda: spent(lambda: digest(raw)),
            "compress": lambda: spent(lambda: compress(raw, shape, dtype)),
            "start": lambda: ingest(few),
            "ingest": lambda: ingest(raw),
        },
        repeats,
    )
    pairs = zip(taken["copy"], taken["compress"], strict=True)
    taken["copy and compress"] = [Spent(a.wall + b.wall, a.cpu + b.cpu) for a, b in pairs]
    stored = sum(file.stat().st_size for file in output.rglob("*") if file.is_file())
    result: dict[str, Any] = {
        "shape": shape,
        "dtype": np.dtype(dtype).name,
        "megabytes": n_bytes / 1e6,
        "seconds": rounded(taken),
        "ratio": {name: ratio(taken["ingest"], values) for name, values in taken.items() if name != "ingest"},
        "megabytes_per_s": round(n_bytes / 1e6 / median(taken["ingest"]), 1),
        "stored_share": round(stored / n_bytes, 3),
        "peak_megabytes": {"start": round(max(peaks[0::2]) / 1e6), "ingest": round(max(peaks[1::2]) / 1e6)},
    }
    ratios = ", ".join(f"{r['wall']} x {name}" for name, r in result["ratio"].items())
    both = result["ratio"]["copy and compress"]
    print(
        f"  ingest takes {both['wall']} x as long as copying and compressing ({both['cpu']} x the CPU time)"
    )
    print(f"  that is {ratios}")
    print(f"  {result['megabytes_per_s']} MB/s, start included; peak {result['peak_megabytes']} MB")
    return result


def scaling(folder: Path, n_bytes: int, repeats: int) -> dict[str, Any]:
    """Ingest a TIFF packed with LZW on one core and on all of them, in turn."""
    shape = (n_bytes // (SIZE * SIZE * 2), SIZE, SIZE)
    raw, output = folder / "movie.tif", folder / "movie.zarr"
    with tifffile.TiffWriter(raw) as file:
        for frame in frames(shape, "uint16"):
            file.write(frame, compression="lzw", photometric="minisblack", metadata=None)
    fsync(raw)
    cores = os.sched_getaffinity(0)

    def ingest(used: set[int]) -> Spent:
        shutil.rmtree(output, ignore_errors=True)
        os.sched_setaffinity(0, used)
        try:
            return command_line("ingest", raw, "-o", output, "--quiet").time
        finally:
            os.sched_setaffinity(0, cores)

    read(raw)
    all_cores = f"{len(cores)} cores"
    taken = interleaved({"1 core": lambda: ingest({min(cores)}), all_cores: lambda: ingest(cores)}, repeats)
    result = {
        "shape": shape,
        "megabytes": n_bytes / 1e6,
        "packed_megabytes": raw.stat().st_size / 1e6,
        "seconds": rounded(taken),
        "speed_up": ratio(taken["1 core"], taken[all_cores]),
    }
    faster = result["speed_up"]["wall"]
    print(f"lzw: {shape[0]} frames, {n_bytes / 2**20:.0f} MiB: {all_cores} are {faster} x as fast as one")
    return result


def read(path: Path) -> int:
    """Touch every byte of a file."""
    n_words = path.stat().st_size // 8
    return int(np.memmap(path, np.uint64, "r", shape=(n_words,)).sum())


def copy(source: Path, target: Path) -> None:
    """Copy a file and wait until it is on the disk."""
    shutil.copyfile(source, target)
    fsync(target)
    target.unlink()


def digest(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def compress(path: Path, shape: tuple[int, int, int], dtype: type) -> int:
    """Compress a movie in the chunks of its store, and throw the result away; its size in bytes."""
    codec = Blosc(cname="zstd", clevel=3, shuffle=BITSHUFFLE)
    header = path.stat().st_size - int(np.prod(shape)) * np.dtype(dtype).itemsize
    # The few bytes before the pixels do not matter here: TIFF's directories come after the first frames.
    movie = np.memmap(path, dtype, "r", offset=header - header % np.dtype(dtype).itemsize, shape=shape)
    geometry = store.Geometry.of(shape)
    whole = Region(*((0, n) for n in shape))

    def one(chunk: Region) -> int:
        return len(codec.encode(np.ascontiguousarray(movie[chunk.slices])))

    with ThreadPoolExecutor(min(budget.n_cores(), 8)) as pool:
        return sum(pool.map(one, shards_in(whole, geometry.chunk)))


if __name__ == "__main__":
    main()
