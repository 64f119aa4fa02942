"""Writers such as cameras have: they append frames at a rate, each in two halves. Tests start them as processes.

    python tests/writers.py KIND PATH [--frames 100] [--rate 25] [--size 64 64] [--wait 0] [--until FILE] [--dose 2]

It prints number and time of every frame that is whole. ``--wait`` is its pause within a frame.
"""

from __future__ import annotations

import argparse
import functools
import os
import struct
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
from numpy.typing import NDArray
from raw_files import write_clock, write_mrc, write_seq, write_tiff, write_tvips

Put = Callable[[int, NDArray[Any]], None]


@functools.cache
def scene(shape: tuple[int, int], dose: float) -> NDArray[np.float64]:
    """Columns of atoms on a lattice [electrons]."""
    y, x = np.ogrid[: shape[0], : shape[1]]
    return np.asarray(dose * (1 + 0.4 * np.cos(2 * np.pi * x / 9) * np.cos(2 * np.pi * y / 9)))


def frame(number: int, shape: tuple[int, int], dose: float = 2.0) -> NDArray[np.uint16]:
    """The frame of a number: the same for everybody."""
    return np.random.default_rng(number).poisson(scene(shape, dose)).astype(np.uint16)


class InOneFile:
    """Frames behind one another in a file."""

    def __init__(
        self, path: Path, head: bytes, before: Callable[[int], bytes], behind: Callable[[int], bytes]
    ) -> None:
        self._file: BinaryIO = path.open("wb", buffering=0)
        self._file.write(head)
        self._before, self._behind = before, behind

    def put(self, number: int, data: NDArray[Any], wait_s: float) -> None:
        content = self._before(number) + data.tobytes() + self._behind(number)
        half = len(content) // 2
        self._file.write(content[:half])
        time.sleep(wait_s)
        self._file.write(content[half:])


def in_halves(path: Path, content: bytes, wait_s: float) -> None:
    """A file as it comes over a slow network."""
    with path.open("wb", buffering=0) as file:
        file.write(content[: len(content) // 2])
        time.sleep(wait_s)
        file.write(content[len(content) // 2 :])


def head_of(
    write: Callable[[Path, NDArray[Any]], None], path: Path, shape: tuple[int, int], n_bytes: int
) -> bytes:
    """The header of a file with one frame."""
    own = path.with_name(f".{path.name}.head{path.suffix}")
    write(own, np.zeros((1, *shape), np.uint16))
    head = own.read_bytes()[:n_bytes]
    own.unlink()
    return head


def tvips_lead(number: int) -> bytes:
    """What stands before a frame."""
    words = (number, 1_400_000_000 + number // 40, 25 * (number % 40), 0, 1.0, 80_000, 1, *[0.0] * 5)
    return struct.pack("<4If2I5f", *words).ljust(64, b"\0")


def seq_tail(number: int) -> bytes:
    """The time behind a frame."""
    return struct.pack("<IHH", 1_400_000_000 + number // 40, 25 * (number % 40), 0).ljust(32, b"\0")


def writer(kind: str, path: Path, shape: tuple[int, int], wait_s: float) -> Put:
    """What takes a frame after the other."""
    if kind == "mrc":
        head = head_of(lambda p, d: write_mrc(p, d, 6), path, shape, 1024)
        head = head[:8] + struct.pack("<i", 0) + head[12:]  # as programs do that count at the end
        made = InOneFile(path, head, lambda _: b"", lambda _: b"")
        return lambda k, data: made.put(k, data, wait_s)
    if kind == "tvips":
        head = head_of(lambda p, d: write_tvips(p, d), path, shape, 256)
        made = InOneFile(path, head, tvips_lead, lambda _: b"")
        return lambda k, data: made.put(k, data, wait_s)
    if kind == "seq":
        head = head_of(lambda p, d: write_seq(p, d), path, shape, 8192)
        head = head[:572] + struct.pack("<I", 0) + head[576:]  # frames: told at the end
        made = InOneFile(path, head, lambda _: b"", seq_tail)
        return lambda k, data: made.put(k, data, wait_s)
    path.mkdir(parents=True, exist_ok=True)
    aside = path.with_name(f".{path.name}.aside")
    aside.mkdir(exist_ok=True)

    def put(number: int, data: NDArray[Any]) -> None:
        if kind == "tiff":
            place = path / f"frame_{number:05d}.tif"
            write_tiff(aside / "one.tif", data)
            in_halves(place, (aside / "one.tif").read_bytes(), wait_s)
            return
        second, index = divmod(number, 25)
        place = path / f"Hour_00/Minute_{second // 60:02d}/Second_{second % 60:02d}"
        place.mkdir(parents=True, exist_ok=True)
        write_clock(aside, data[None], 1)
        (one,) = aside.rglob("*.dm4")
        name = f"cap_Hour_00_Minute_{second // 60:02d}_Second_{second % 60:02d}_Frame_{index:04d}.dm4"
        in_halves(place / name, one.read_bytes(), wait_s)

    return put


def main() -> None:
    options = argparse.ArgumentParser()
    options.add_argument("kind", choices=("mrc", "tvips", "seq", "tiff", "gatan"))
    options.add_argument("path", type=Path)
    options.add_argument("--frames", type=int, default=100)
    options.add_argument("--rate", type=float, default=25.0)
    options.add_argument("--size", type=int, nargs=2, default=(64, 64))
    options.add_argument("--wait", type=float, default=0.0)
    options.add_argument("--until", type=Path, help="file that ends it, once it is there")
    options.add_argument("--dose", type=float, default=2.0)
    chosen = options.parse_args()
    shape = tuple(chosen.size)
    put = writer(chosen.kind, chosen.path, shape, chosen.wait)
    made = [frame(k, shape, chosen.dose) for k in range(min(chosen.frames, 64))]
    began = time.monotonic()
    for number in range(chosen.frames):
        time.sleep(max(0.0, began + number / chosen.rate - time.monotonic()))
        put(number, made[number % len(made)])
        print(number, time.monotonic(), flush=True)
        if chosen.until is not None and chosen.until.exists():
            break
    if chosen.kind == "mrc":
        with os.fdopen(os.open(chosen.path, os.O_WRONLY), "wb") as file:
            file.seek(8)
            file.write(struct.pack("<i", number + 1))


if __name__ == "__main__":
    main()
