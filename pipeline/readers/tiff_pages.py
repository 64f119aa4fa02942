"""The directories of a TIFF file, walked with every offset checked against the file's size.

tifffile decodes the pixels; it reads a cut or damaged chain of directories as a shorter movie, so the
chain is walked here.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any, Literal, NamedTuple

import numpy as np
from numpy.typing import NDArray

from ..errors import InputError
from .rawfile import RawFile

# Codes of the tags that are needed to find and to lay out pixels.
WIDTH, HEIGHT, BITS, COMPRESSION, PHOTOMETRIC, FILL_ORDER = 256, 257, 258, 259, 262, 266
DESCRIPTION, SAMPLES, ROWS_PER_STRIP, X_RESOLUTION, Y_RESOLUTION = 270, 277, 278, 282, 283
PREDICTOR, TILE_WIDTH, TILE_HEIGHT, SAMPLE_FORMAT = 317, 322, 323, 339
SEGMENT_TAGS = (273, 279, 324, 325)  # offsets and byte counts of strips, of tiles

_TYPES = {
    1: "u1", 2: "u1", 3: "u2", 4: "u4", 5: "u4,u4", 6: "i1", 7: "u1", 8: "i2", 9: "i4", 10: "i4,i4",
    11: "f4", 12: "f8", 13: "u4", 16: "u8", 17: "i8", 18: "u8",
}  # fmt: skip
_MAX_TAGS = 4096  # of one directory; real ones have fewer than 100
_WINDOW = 4096


class Layout(NamedTuple):
    """What all frames of a movie have in common."""

    width: int
    height: int
    bits: tuple[int, ...]
    sample_format: int
    samples: int
    compression: int
    photometric: int
    predictor: int
    fill_order: int
    segment_width: int  # of a strip or tile [pixels]
    segment_height: int

    @property
    def n_segments(self) -> int:
        """Number of strips or tiles of one frame."""
        return math.ceil(self.width / self.segment_width) * math.ceil(self.height / self.segment_height)

    @property
    def plain_bytes(self) -> int:
        """Size of one frame if the stored bytes are its pixels, row by row; else 0."""
        plain = (self.compression, self.predictor, self.fill_order) == (1, 1, 1)
        if not plain or self.segment_width != self.width or self.bits not in {(8,), (16,), (32,), (64,)}:
            return 0
        return self.width * self.height * self.bits[0] // 8

    def strip_bytes(self) -> NDArray[np.int64] | None:
        """Size of every strip [bytes], if they are uncompressed."""
        if not self.plain_bytes:
            return None
        row = self.plain_bytes // self.height
        starts = np.arange(0, self.height, self.segment_height)
        return np.minimum(self.segment_height, self.height - starts).astype(np.int64) * row


class Page:
    """One directory: its tags, read when asked for."""

    def __init__(
        self, pages: Pages, offset: int, tags: dict[int, tuple[int, int, bytes]], following: int
    ) -> None:
        self.offset = offset
        self.following = following  # offset of the next directory, 0 at the end
        self._pages = pages
        self._tags = tags

    def array(self, code: int) -> NDArray[Any] | None:
        """All values of a tag, or None if there is no such tag."""
        if code not in self._tags:
            return None
        kind, count, content = self._tags[code]
        dtype = np.dtype(_TYPES.get(kind, "u1")).newbyteorder(self._pages.order)
        n_bytes = count * dtype.itemsize
        if n_bytes > len(content):
            start = int.from_bytes(content, self._pages.order_name)
            content = self._pages.file.read_at(start, n_bytes)
        return np.frombuffer(content, dtype, count)

    def count(self, code: int) -> int:
        """Number of values of a tag; 0 where it is missing."""
        return self._tags[code][1] if code in self._tags else 0

    def raw(self, code: int, n_bytes: int) -> bytes:
        """The bytes where a tag points, of one whose values are longer than their type says."""
        return self._pages.file.read_at(int.from_bytes(self._tags[code][2], self._pages.order_name), n_bytes)

    @property
    def order(self) -> Literal["<", ">"]:
        """Byte order of the file."""
        return self._pages.order

    def number(self, code: int, default: int) -> int:
        """The first value of an integer tag."""
        kind, count, content = self._tags.get(code, (0, 0, b""))
        if count == 1 and kind in {3, 4}:  # nearly always; this runs a dozen times for every page
            return int.from_bytes(content[: 2 * kind - 4], self._pages.order_name)
        values = self.array(code)
        return default if values is None or values.size == 0 else int(values[0])

    def text(self, code: int) -> str:
        """A text tag; empty where it is missing or lies outside the file."""
        try:
            values = self.array(code)
        except InputError:
            return ""
        raw = b"" if values is None else values.tobytes().partition(b"\0")[0]
        try:
            return raw.decode("utf-8")
        except UnicodeDecodeError:
            return raw.decode("latin-1")

    def layout(self) -> Layout:
        """How the pixels of this page are stored."""
        width, height = self.number(WIDTH, 0), self.number(HEIGHT, 0)
        bits = self.array(BITS)
        rows = self.number(ROWS_PER_STRIP, height) or height
        return Layout(
            width=width,
            height=height,
            bits=(1,) if bits is None else tuple(bits.tolist()),
            sample_format=self.number(SAMPLE_FORMAT, 1),
            samples=self.number(SAMPLES, 1),
            compression=self.number(COMPRESSION, 1),
            photometric=self.number(PHOTOMETRIC, 1),
            predictor=self.number(PREDICTOR, 1),
            fill_order=self.number(FILL_ORDER, 1),
            segment_width=self.number(TILE_WIDTH, width),
            segment_height=self.number(TILE_HEIGHT, min(rows, height)),
        )

    def segments(self, layout: Layout) -> NDArray[np.int64] | None:
        """(offset, byte count) of each strip or tile, (n_segments, 2); None if any is not in the file.

        Where byte counts are missing or 0, those of uncompressed strips follow from their size.
        """
        n_segments = layout.n_segments
        offset_tag, count_tag = SEGMENT_TAGS[2:] if SEGMENT_TAGS[2] in self._tags else SEGMENT_TAGS[:2]
        try:
            offsets, counts = self.array(offset_tag), self.array(count_tag)
        except InputError:
            return None
        if offsets is not None and (counts is None or not counts.any()):
            counts = layout.strip_bytes()
            if counts is None:
                raise InputError(
                    self._pages.file.path,
                    "its directory lacks the byte counts of its strips (StripByteCounts), without which "
                    "compressed or tiled data cannot be found. Save it again with the program that wrote it.",
                )
        if offsets is None or counts is None or min(offsets.size, counts.size) < n_segments:
            return None
        pairs = np.column_stack([offsets[:n_segments], counts[:n_segments]]).astype(np.float64)
        # Compared as floats, which 64-bit nonsense cannot overflow; files are far below 2**53 bytes.
        if pairs.min() < 1 or pairs.sum(axis=1).max() > self._pages.file.size:
            return None
        return pairs.astype(np.int64)


class Pages:
    """The chain of directories of an open TIFF or BigTIFF file."""

    def __init__(self, file: RawFile) -> None:
        self.file = file
        head = file.read_at(0, min(file.size, 16))
        self.order_name: Literal["little", "big"] = "little" if head[:2] == b"II" else "big"
        self.order: Literal["<", ">"] = "<" if self.order_name == "little" else ">"
        self.big = head[2:4] in {b"+\0", b"\0+"}
        start, size = (8, 8) if self.big else (4, 4)
        if len(head) < start + size:
            raise InputError(file.path, f"cut short: {file.size} bytes, less than a TIFF header.")
        self.first = int.from_bytes(head[start : start + size], self.order_name)

    def page(self, offset: int) -> Page | None:
        """The directory at ``offset``, or None if it is not wholly in the file."""
        count_bytes, entry_bytes, value_bytes = (8, 20, 8) if self.big else (2, 12, 4)
        if offset < 8 or offset + count_bytes > self.file.size:
            return None
        window = self.file.read_at(offset, min(_WINDOW, self.file.size - offset))
        n_tags = int.from_bytes(window[:count_bytes], self.order_name)
        n_bytes = count_bytes + n_tags * entry_bytes + value_bytes
        if not 0 < n_tags <= _MAX_TAGS or offset + n_bytes > self.file.size:
            return None
        if n_bytes > len(window):
            window = self.file.read_at(offset, n_bytes)
        tags: dict[int, tuple[int, int, bytes]] = {}
        for at in range(count_bytes, n_bytes - value_bytes, entry_bytes):
            entry = window[at : at + entry_bytes]
            code, kind = (int.from_bytes(entry[k : k + 2], self.order_name) for k in (0, 2))
            count = int.from_bytes(entry[4:-value_bytes], self.order_name)
            tags.setdefault(code, (kind, count, entry[-value_bytes:]))
        following = int.from_bytes(window[n_bytes - value_bytes : n_bytes], self.order_name)
        return Page(self, offset, tags, following)

    def chain(self) -> Iterator[Page | None]:
        """All directories in order; None stands for one that is not in the file, and ends the chain."""
        seen = set()
        offset = self.first
        while offset:
            if offset in seen:
                raise InputError(self.file.path, "damaged: its TIFF directories form a loop.")
            seen.add(offset)
            page = self.page(offset)
            yield page
            if page is None:
                return
            offset = page.following
