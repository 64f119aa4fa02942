"""Small movies kept as arrays in HDF5 files, Zarr stores and videos, for tests and for the fuzzer."""

from __future__ import annotations

import json
import os
import shutil
import struct
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import av
import h5py
import imagecodecs
import numcodecs
import numpy as np
import zarr
from numpy.typing import NDArray
from tdenoise_pipeline.readers import child, hdf5_child, video_child
from zarr.codecs import BloscCodec, Crc32cCodec, GzipCodec, TransposeCodec, ZstdCodec

SHAPE = (7, 18, 19)


def write_hdf5(
    path: Path, data: NDArray[Any], *, libver: str = "earliest", block: int = 0, **settings: Any
) -> None:
    with h5py.File(path, "w", libver=libver, userblock_size=block) as file:
        file.create_dataset("entry/data/frames", data=data, **settings)


def write_filtered(path: Path, data: NDArray[Any], number: int, values: tuple[int, ...], encode: Any) -> None:
    """An HDF5 file with one frame per chunk, encoded here as a filter would that HDF5 does not bring."""
    with h5py.File(path, "w") as file:
        settings = h5py.h5p.create(h5py.h5p.DATASET_CREATE)
        settings.set_chunk((1, *data.shape[1:]))
        settings.set_filter(number, h5py.h5z.FLAG_OPTIONAL, values)
        kind = h5py.h5t.py_create(data.dtype)
        array = h5py.h5d.create(file.id, b"frames", kind, h5py.h5s.create_simple(data.shape), settings)
        for k, frame in enumerate(data):
            array.write_direct_chunk((k, 0, 0), encode(frame), 0)


def write_velox(path: Path, data: NDArray[Any], *, scale: str = "8e-12", step_us: int = 800_000) -> None:
    with h5py.File(path, "w") as file:
        group = file.create_group("Data/Image/26f6")
        group.create_dataset(
            "Data", data=data.transpose(1, 2, 0), chunks=(*data.shape[1:], 1), compression="gzip"
        )
        records = group.create_dataset("Metadata", (6000, len(data)), "u1", chunks=(6000, 1))
        for k in range(len(data)):
            record = {
                "BinaryResult": {
                    "Detector": "BM-Ceta", "PixelSize": {"width": scale, "height": "1e-11"}, "PixelUnitX": "m",
                    "PixelUnitY": "m",
                },
                "Optics": {"AccelerationVoltage": "300000"},
                "Scan": {"ScanSize": {"width": "0", "height": "0"}},
                "Detectors": {"Detector-0": {"DetectorName": "BM-Ceta", "ExposureTime": "0.8"}},
                "CustomProperties": {
                    "Detectors[BM-Ceta].TimeStamp": {"type": "int64", "value": str(10**15 + k * step_us)}
                },
            }  # fmt: skip
            text = json.dumps(record).encode()
            records[: len(text), k] = np.frombuffer(text, "u1")


def write_ncem(path: Path, data: NDArray[Any], axes: list[tuple[str, str, NDArray[Any] | float]]) -> None:
    """NCEM EMD, the array as it comes; an axis is its name, unit, and values or step."""
    with h5py.File(path, "w") as file:
        file.attrs["version_major"] = 0
        group = file.create_group("data/movie")
        group.attrs["emd_group_type"] = 1
        group["data"] = data
        file.create_group("microscope").attrs["voltage"] = 300_000
        for k, ((name, unit, step), size) in enumerate(zip(axes, data.shape, strict=True)):
            group[f"dim{k + 1}"] = np.arange(size) * step if np.isscalar(step) else step
            group[f"dim{k + 1}"].attrs.update({"name": name, "units": unit})


def write_scales(path: Path, data: NDArray[Any], *, nexus: bool) -> None:
    """HDF5 with axes as h5py and netCDF attach them, or as NeXus names them."""
    with h5py.File(path, "w") as file:
        group = file.create_group("entry")
        array = group.create_dataset("frames", data=data)
        for k, (name, unit, step) in enumerate((("time", "ms", 20.0), ("y", "nm", 0.5), ("x", "nm", 0.25))):
            group[name] = np.arange(data.shape[k]) * step
            group[name].attrs["units"] = unit
            if not nexus:
                group[name].make_scale(name)
                array.dims[k].attach_scale(group[name])
        if nexus:
            group.attrs.update({"NX_class": "NXdata", "signal": "frames", "axes": ["time", "y", "x"]})


def write_hyperspy(
    path: Path, data: NDArray[Any], navigated: tuple[bool, ...], units: tuple[str, ...]
) -> None:
    with h5py.File(path, "w") as file:
        file.attrs.update({"file_format": "HyperSpy", "file_format_version": "3.3"})
        group = file.create_group("Experiments/rain")
        group.create_dataset("data", data=data, chunks=True, compression="gzip")
        for k, (navigate, unit) in enumerate(zip(navigated, units, strict=True)):
            told = {"name": "", "units": unit, "scale": 0.5, "navigate": navigate, "size": data.shape[k]}
            group.create_group(f"axis-{k}").attrs.update(told)
        group.create_group("metadata/Acquisition_instrument/TEM").attrs["beam_energy"] = 80.0
        group.create_group("metadata/Acquisition_instrument/TEM/Detector/Camera").attrs["exposure"] = 0.4


def bitshuffled(compress: Any, block: int = 64) -> Callable[[NDArray[Any]], bytes]:
    """Encoder of HDF5 filter 32008: blocks of 64 values, what is left of a group of 8 as it is."""

    def encode(frame: NDArray[Any]) -> bytes:
        raw, item = frame.tobytes(), frame.dtype.itemsize
        whole = len(raw) // (8 * item) * 8 * item
        out = struct.pack(">QI", len(raw), block * item)
        for at in range(0, whole, block * item):
            part = raw[at : min(at + block * item, whole)]
            packed = compress(imagecodecs.bitshuffle_encode(part, itemsize=item, blocksize=len(part) // item))
            out += struct.pack(">I", len(packed)) + packed
        return out + raw[whole:]

    return encode


def lz4_blocks(frame: NDArray[Any]) -> bytes:
    raw = frame.tobytes()
    out = struct.pack(">QI", len(raw), 200)
    for at in range(0, len(raw), 200):
        packed = imagecodecs.lz4_encode(raw[at : at + 200], header=False)
        packed = packed if len(packed) < len(raw[at : at + 200]) else raw[at : at + 200]
        out += struct.pack(">I", len(packed)) + packed
    return out


HDF5: dict[str, dict[str, Any]] = {
    "contiguous": {},
    "behind a block of the user": {"block": 512},
    "one frame per chunk, all filters": {
        "chunks": (1, 18, 19), "compression": "gzip", "shuffle": True, "fletcher32": True,
    },
    "chunks that divide nothing": {
        "chunks": (3, 5, 8), "compression": "lzf", "shuffle": True, "fletcher32": True,
    },
    "one chunk": {"chunks": SHAPE, "compression": "gzip"},
    "newest, fixed": {"libver": "latest", "chunks": (2, 9, 19)},
    "newest, growing": {"libver": "latest", "chunks": (2, 9, 19), "maxshape": (None, 18, 19)},
    "newest, growing both ways": {"libver": "latest", "chunks": (2, 9, 19), "maxshape": (None, None, 19)},
    "newest, one chunk": {"libver": "latest", "chunks": SHAPE, "compression": "gzip"},
}  # fmt: skip


ZARR: dict[str, dict[str, Any]] = {
    "v2": {"zarr_format": 2},
    "v2, Fortran order": {"zarr_format": 2, "order": "F", "compressors": numcodecs.Zlib()},
    "v2, plain": {
        "zarr_format": 2,
        "compressors": None,
        "chunk_key_encoding": {"name": "v2", "separator": "/"},
    },
    "v2, Blosc": {
        "zarr_format": 2,
        "compressors": numcodecs.Blosc("lz4", shuffle=numcodecs.Blosc.BITSHUFFLE),
    },
    "v2, LZ4": {"zarr_format": 2, "compressors": numcodecs.LZ4()},
    "v2, bzip2": {"zarr_format": 2, "compressors": numcodecs.BZ2(), "filters": [numcodecs.Shuffle(2)]},
    "v3": {},
    "v3, plain": {"compressors": None},
    "v3, gzip, transposed": {"compressors": GzipCodec(), "filters": [TransposeCodec(order=(2, 0, 1))]},
    "v3, Blosc, checksum": {"compressors": [BloscCodec(cname="zstd"), Crc32cCodec()]},
    "v3, shards": {"shards": (6, 20, 32), "compressors": [ZstdCodec(), Crc32cCodec()]},
}


def write_zarr(path: Path, data: NDArray[Any], **settings: Any) -> None:
    shutil.rmtree(path, ignore_errors=True)
    array = zarr.create_array(path, shape=data.shape, dtype=data.dtype, chunks=(3, 10, 16), **settings)
    array[:] = data


def write_video(path: Path, frames: list[NDArray[Any]], codec: str, pixels: str, given: str) -> None:
    with av.open(str(path), "w") as container:
        stream = container.add_stream(codec, rate=25)
        stream.height, stream.width, stream.pix_fmt = *frames[0].shape[:2], pixels
        for frame in frames:
            container.mux(stream.encode(av.VideoFrame.from_ndarray(frame, format=given)))
        container.mux(stream.encode())


def _contents(number: int) -> Callable[[Path, NDArray[Any]], None]:
    """Writer of an HDF5 file in one of the ways of HDF5, its chunks cut to the movie."""

    def write(path: Path, data: NDArray[Any]) -> None:
        settings = dict(list(HDF5.values())[number])
        for name in ("chunks", "maxshape"):
            if name in settings:
                sizes = zip(settings[name], data.shape, strict=True)
                settings[name] = tuple(None if n is None else min(n, size) for n, size in sizes)
        write_hdf5(path, data, **settings)

    return write


# What the fuzzer damages: for each family the name of a file or folder, and how it is written.
SEEDS: dict[str, list[tuple[str, Callable[[Path, NDArray[Any]], None]]]] = {
    "hdf5": [
        *((f"a{k}.h5", _contents(k)) for k in range(len(HDF5))),
        ("scales.h5", lambda path, data: write_scales(path, data, nexus=False)),
        ("a.emd", write_velox),
        ("b.emd", lambda path, data: write_ncem(path, data.T, [("", "", 1)] * 3)),
        ("a.hspy", lambda path, data: write_hyperspy(path, data, (True, False, False), ("s", "nm", "nm"))),
    ],
    "zarr_store": [
        (f"a{k}.zarr", lambda path, data, settings=settings: write_zarr(path, data, **settings))
        for k, settings in enumerate(ZARR.values())
    ],
    "video": [
        (
            "a.avi",
            lambda path, data: write_video(path, list((data >> 8).astype("u1")), "mjpeg", "yuvj420p", "gray"),
        ),
        ("b.avi", lambda path, data: write_video(path, list(data), "ffv1", "gray16le", "gray16le")),
    ],
}


def ask_forked(
    path: Path, module: str, *arguments: str, pass_fds: Sequence[int] = (), patience_s: float = 0
) -> bytes:
    """``child.ask`` with a copy of this process as the child, which starts ten times as fast."""
    receive, send = os.pipe()
    if (process := os.fork()) == 0:
        os.dup2(send, 1)
        sys.stdout = open(1, "w", closefd=False)  # noqa: SIM115
        main: Callable[..., None] = video_child.decode
        cpu_s, memory_bytes = 5, 600 * 2**20
        if module == "hdf5_child":
            task, *rest = arguments
            main, arguments = getattr(hdf5_child, task), tuple(rest[:-1])
            cpu_s, memory_bytes = 3, 400 * 2**20
        child.answer(main, arguments, cpu_s=cpu_s + int(time.process_time()), memory_bytes=memory_bytes)
    os.close(send)
    with os.fdopen(receive, "rb") as pipe:
        said = pipe.read()
    code = os.waitstatus_to_exitcode(os.waitpid(process, 0)[1])
    if code:
        child.refuse(path, code, said)
    return said
