"""Decoders of compressed chunks (HDF5, Zarr) that can give no more bytes than a chunk has."""

from __future__ import annotations

import bz2
import struct
import zlib
from typing import Any

import google_crc32c
import imagecodecs
import numcodecs
import numpy as np
from numcodecs.fletcher32 import Fletcher32
from numpy.typing import NDArray

# Every function takes the stored bytes and the most bytes that they may stand for, and raises ValueError.


def inflate(data: bytes, n_bytes: int) -> bytes:
    """Zlib or gzip."""
    decoder = zlib.decompressobj(wbits=47)  # 47: either header
    try:
        decoded = decoder.decompress(data, n_bytes + 1)
    except zlib.error as error:
        raise ValueError(str(error)) from error
    return _bounded(decoded, n_bytes)


def bunzip(data: bytes, n_bytes: int) -> bytes:
    """Bzip2."""
    try:
        return _bounded(bz2.BZ2Decompressor().decompress(data, n_bytes + 1), n_bytes)
    except OSError as error:
        raise ValueError(str(error)) from error


def unzstd(data: bytes, n_bytes: int) -> bytes:
    """Zstandard."""
    return _imagecodecs(imagecodecs.zstd_decode, data, n_bytes)


def unlz4(data: bytes, n_bytes: int) -> bytes:
    """LZ4 behind its length in four bytes, as numcodecs writes it."""
    if len(data) < 4 or struct.unpack("<I", data[:4])[0] > n_bytes:
        raise ValueError("its length is not that of a chunk")
    return _imagecodecs(imagecodecs.lz4_decode, data[4:], n_bytes)


def unlzf(data: bytes, n_bytes: int) -> bytes:
    """LZF, as h5py writes it."""
    return _imagecodecs(imagecodecs.lzf_decode, data, n_bytes)


def unblosc(data: bytes, n_bytes: int) -> bytes:
    """Blosc 1, any of its compressors."""
    if len(data) < 16:
        raise ValueError("too short for Blosc")
    decoded_bytes, _, stored_bytes = struct.unpack("<3I", data[4:16])
    if decoded_bytes > n_bytes or stored_bytes != len(data):
        raise ValueError("its length is not that of a chunk")
    try:
        return bytes(numcodecs.blosc.decompress(data))
    except RuntimeError as error:
        raise ValueError(str(error)) from error


def unlz4_hdf5(data: bytes, n_bytes: int) -> bytes:
    """LZ4 in blocks, each behind its length (HDF5 filter 32004)."""
    total, block_bytes = struct.unpack(">QI", _start(data, 12))
    _check_blocks(total, block_bytes, n_bytes)
    decoded, at = bytearray(), 12
    while len(decoded) < total:
        stored, at = _block(data, at)
        expected = min(block_bytes, total - len(decoded))
        # A block that LZ4 does not shorten is stored as it is.
        decoded += (
            stored if len(stored) == expected else _imagecodecs(imagecodecs.lz4_decode, stored, expected)
        )
    return _bounded(bytes(decoded), n_bytes)


def unbitshuffle_hdf5(data: bytes, n_bytes: int, values: list[int]) -> bytes:
    """Bitshuffle, alone or with LZ4 or zstd in blocks (HDF5 filter 32008)."""
    item_bytes, block_items, compressor = (values + [0] * 5)[2:5]
    if not 0 < item_bytes <= 16 or compressor not in (0, 2, 3):
        raise ValueError("its bitshuffle settings make no sense")
    if compressor == 0:
        return _unbitshuffle(data, item_bytes, block_items or _default_block(item_bytes))
    total, block_bytes = struct.unpack(">QI", _start(data, 12))
    _check_blocks(total, block_bytes, n_bytes)
    if block_bytes % (8 * item_bytes):
        raise ValueError("its bitshuffle blocks make no sense")
    decompress = imagecodecs.lz4_decode if compressor == 2 else imagecodecs.zstd_decode
    plain_bytes = total % (8 * item_bytes)  # what fills no group of 8 values follows as it is
    decoded, at = bytearray(), 12
    while len(decoded) < total - plain_bytes:
        stored, at = _block(data, at)
        expected = min(block_bytes, total - plain_bytes - len(decoded))
        block = _imagecodecs(decompress, stored, expected)
        decoded += _unbitshuffle(block, item_bytes, len(block) // item_bytes)
    decoded += data[at : at + plain_bytes]
    return _bounded(bytes(decoded), n_bytes)


def unshuffle(data: bytes, item_bytes: int) -> bytes:
    """Bytes of equal weight stored together; what fills no value follows as it is."""
    n_items = len(data) // item_bytes
    whole = np.frombuffer(data, np.uint8, n_items * item_bytes)
    return whole.reshape(item_bytes, n_items).T.tobytes() + data[n_items * item_bytes :]


def check_fletcher32(data: bytes) -> bytes:
    """The bytes before HDF5's Fletcher checksum, if it is right."""
    if len(data) < 4:
        raise ValueError("it is too short")
    try:
        return bytes(Fletcher32().decode(data))
    except RuntimeError as error:
        raise ValueError("its checksum is wrong") from error


def check_crc32c(data: bytes) -> bytes:
    """The bytes before a CRC32C, if it is right."""
    body, stored = data[:-4], data[-4:]
    if google_crc32c.value(body) != int.from_bytes(stored, "little"):
        raise ValueError("its checksum is wrong")
    return body


def _imagecodecs(decode: Any, data: bytes, n_bytes: int) -> bytes:
    try:
        return bytes(decode(data, out=bytearray(n_bytes)))
    except Exception as error:  # every codec has an error type of its own
        raise ValueError(str(error) or type(error).__name__) from error


def _unbitshuffle(data: bytes, item_bytes: int, block_items: int) -> bytes:
    items: NDArray[np.uint8] = np.frombuffer(data, np.uint8)
    whole = len(items) // (8 * item_bytes) * 8 * item_bytes
    if whole == 0:
        return data
    decoded = imagecodecs.bitshuffle_decode(data[:whole], itemsize=item_bytes, blocksize=block_items)
    return bytes(decoded) + data[whole:]


def _default_block(item_bytes: int) -> int:
    """Values of a block where the filter does not say: 8 KiB, in groups of 8, at least 128."""
    return max(8192 // item_bytes // 8 * 8, 128)


def _bounded(decoded: bytes, n_bytes: int) -> bytes:
    if len(decoded) > n_bytes:
        raise ValueError("it holds more than its chunk")
    return decoded


def _start(data: bytes, n_bytes: int) -> bytes:
    if len(data) < n_bytes:
        raise ValueError("it is too short")
    return data[:n_bytes]


def _block(data: bytes, at: int) -> tuple[bytes, int]:
    """A block behind its length, and where the next one starts."""
    end = at + 4 + int.from_bytes(data[at : at + 4], "big")
    if at + 4 > len(data) or end > len(data) or end == at + 4:
        raise ValueError("it ends within a block")
    return data[at + 4 : end], end


def _check_blocks(total: int, block_bytes: int, n_bytes: int) -> None:
    if total > n_bytes or block_bytes == 0:
        raise ValueError("its length is not that of a chunk")
