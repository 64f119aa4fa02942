"""TIFF and BigTIFF movies, one page per frame: plain, ImageJ, OME, DigitalMicrograph exports, STK and EER."""

from __future__ import annotations

import logging
from array import array
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np
import tifffile
from numpy.typing import NDArray

from ..errors import InputError
from . import MovieInfo, Reader
from .declared import as_declared
from .frames import (
    FlatReader,
    FrameReader,
    check_movie,
    frame_size,
    library,
    unexplained,
    whole_frames,
)
from .rawfile import RawFile
from .tiff_description import EER, Description, describe
from .tiff_pages import SEGMENT_TAGS, Layout, Page, Pages
from .tiff_planes import Wanted
from .units import bounded_json

logging.getLogger("tifffile").setLevel(logging.CRITICAL)  # what matters is raised here, in one sentence

_COMPRESSIONS = {
    1: "uncompressed", 5: "LZW", 8: "deflate", 32946: "deflate", 32773: "PackBits", 34925: "LZMA",
    34926: "zstd", 50000: "zstd", **EER,
}  # fmt: skip
_MAX_RATIO = 10_000  # of decoded to stored bytes; LZW and deflate stay below 1,500
_GAP, _RUN = 2**12, 2**24  # between strips that are read in one go, and of all of them [bytes]
_WHITE_IS_ZERO = 0  # photometric interpretation
_UNDEFINED = 4  # sample format
_COLOUR = {2: "RGB", 3: "palette", 5: "CMYK", 6: "YCbCr", 8: "CIELab"}


def open_movie(
    file: RawFile,
    allow_truncated: bool,
    *,
    dataset: str | None = None,
    channel: int | None = None,
    single: bool = False,
) -> Reader:
    """Open a TIFF file whose pages are frames; just one page, if ``single``.

    Of a hyperstack ``dataset`` says which axis runs and where on the others, as in "frames,slices=2".
    """
    pages = Pages(file)
    first = pages.page(pages.first)
    if first is None:
        raise InputError(file.path, "damaged or cut short: its first TIFF directory is not in the file.")
    layout = first.layout()
    _check_layout(file, layout)
    note = describe(file.path, first, Wanted(dataset, channel))
    more: tuple[str, ...] = ()
    starts, offsets, broken = _walk(file, pages, layout)
    announced = max(note.n_frames or 0, len(starts) + broken)
    if note.one_page and len(starts) == 1 < announced and offsets is not None:
        offsets, more = _after_first(file, first, offsets[0], layout.plain_bytes, announced)
    dtype, decode, tags = _first_frame(file, layout)
    present = len(starts) if offsets is None else len(offsets)
    # A chain of directories that breaks off does not tell how long it was.
    at_least = broken and announced > (note.n_frames or 0)
    warnings = note.warnings + _more_pages(note, announced) + more + _doubtful(layout, dtype)
    if note.planes is not None and len(note.planes) != note.n_frames:
        there = _there(note.planes, present)
        announced, present = len(note.planes), len(there)
        if offsets is None:
            starts = array("q", [starts[number] for number in there])
        else:
            offsets = [offsets[number] for number in there]
    check_movie(file, (announced + broken, layout.height, layout.width), dtype, single=single)
    n_frames = whole_frames(file, announced, present, allow_truncated, at_least=at_least)
    shape = (n_frames, layout.height, layout.width)
    _check_size(file, shape, dtype)
    info = MovieInfo(
        shape=shape,
        dtype=dtype,
        format=_format(pages, layout, note),
        reader=library("tifffile"),
        frame_time_s=note.frame_time_s,
        pixel_size_nm=note.pixel_size_nm,
        exposure_s=note.exposure_s,
        timestamps_s=None if note.timestamps_s is None else note.timestamps_s[:n_frames],
        warnings=warnings,
        missing_frames=announced - n_frames,
        metadata=bounded_json({**note.metadata, "tags": tags}),
    )
    if offsets is not None:
        return as_declared(FlatReader(file, info, dtype.newbyteorder(pages.order), offsets), note.declared)
    reader = SegmentReader(file, info, pages, layout, starts, decode)
    if not single:
        last = np.empty((1, *shape[1:]), dtype)
        reader.read(n_frames - 1, n_frames, last)  # what cannot be decoded should show now, not at the end
    return as_declared(reader, note.declared)


def _first_frame(file: RawFile, layout: Layout) -> tuple[np.dtype[Any], Callable[..., Any], dict[str, Any]]:
    """Type of the numbers, what decodes them, and the tags of the first page."""
    with tifffile.TiffFile(file.path) as tif:
        key = tif.pages.first
        if key.dtype is None:
            raise InputError(file.path, f"its pixels of {layout.bits} bits are of no known type.")
        dtype, decode = np.dtype(key.dtype).newbyteorder("="), key.decode
        if layout.compression in EER:
            dtype = np.dtype(np.uint8)  # electrons, which are given as true and false
        return dtype, decode, {tag.name: tag.value for tag in key.tags if tag.code not in SEGMENT_TAGS}


def _after_first(
    file: RawFile, first: Page, start: int, n_bytes: int, announced: int
) -> tuple[Sequence[int], tuple[str, ...]]:
    """Where frames begin that follow the first without pages of their own, and a word on what follows these."""
    offsets = _follow(file, first, start, n_bytes, announced)
    beyond = file.size - offsets[0] - announced * n_bytes
    known = beyond < n_bytes or first.offset >= offsets[0]
    return offsets, () if known else unexplained(beyond, n_bytes)


def _there(planes: range, present: int) -> range:
    """Of the pages that were asked for, those that the file holds."""
    return planes[: max(0, -(-(present - planes.start) // planes.step))]


def _doubtful(layout: Layout, dtype: np.dtype[Any]) -> tuple[str, ...]:
    """What is said of numbers that other programs may take for others."""
    said: tuple[str, ...] = ()
    if layout.photometric == _WHITE_IS_ZERO and layout.compression not in EER:
        said += (
            "it says that 0 is white, which programs interpret differently: the numbers are kept as stored. If "
            "the movie looks like a negative, invert it and save it again before you ingest it.",
        )
    if layout.sample_format == _UNDEFINED:
        said += (
            f"it does not say what its numbers are (SampleFormat 4): they are read as {dtype.name}. Check that the "
            "mean is what you expect.",
        )
    return said


def _check_size(file: RawFile, shape: tuple[int, int, int], dtype: np.dtype[Any]) -> None:
    """Refuse a file that is far too small for its movie."""
    n_frames, height, width = shape
    if n_frames * frame_size(shape, dtype) > _MAX_RATIO * file.size:
        raise InputError(
            file.path,
            f"its {file.size} bytes claim to hold {n_frames} frames of {height} x {width}, "
            f"over {_MAX_RATIO} times as much: refused as a decompression bomb.",
        )


class SegmentReader(FrameReader):
    """Frames in compressed or tiled pieces, decoded by tifffile.

    Only the offset of each frame's directory is kept: strips of one row would need more memory than pixels.
    """

    def __init__(
        self,
        file: RawFile,
        info: MovieInfo,
        pages: Pages,
        layout: Layout,
        starts: Sequence[int],
        decode: Callable[..., Any],
    ) -> None:
        super().__init__(file, info)
        self._pages = pages
        self._layout = layout
        self._starts = starts
        self._decode = decode

    def _fill(self, start: int, stop: int, out: NDArray[Any]) -> None:
        for number in range(start, stop):
            try:
                self._fill_frame(self._starts[number], out[number - start])
            except InputError:
                raise
            except Exception as error:
                raise InputError(
                    self._file.path, f"frame {number} is damaged and cannot be decoded ({error})."
                ) from error

    def _fill_frame(self, directory: int, frame: NDArray[Any]) -> None:
        page = self._pages.page(directory)
        segments = None if page is None else page.segments(self._layout)
        if segments is None:
            raise InputError(self._file.path, "the file has changed since it was opened.")
        for index, packed in enumerate(self._packed(segments)):
            piece, (_, _, y, x, _), _ = self._decode(packed, index)
            height, width = min(piece.shape[1], frame.shape[0] - y), min(piece.shape[2], frame.shape[1] - x)
            frame[y : y + height, x : x + width] = piece[0, :height, :width, 0]

    def _packed(self, segments: NDArray[np.int64]) -> Iterator[bytes]:
        """The bytes of each strip or tile; those that follow one another are read in one go."""
        first, start = 0, int(segments[0, 0])
        ends = segments.sum(axis=1)
        for number in range(1, len(segments) + 1):
            if (
                number < len(segments)
                and ends[number - 1] <= segments[number, 0] <= ends[number - 1] + _GAP
                and ends[number] - start <= _RUN
            ):
                continue
            run = self._file.read_at(start, int(ends[number - 1]) - start)
            for offset, n_bytes in segments[first:number].tolist():
                yield run[offset - start : offset - start + n_bytes]
            if number < len(segments):
                first, start = number, int(segments[number, 0])


def _check_layout(file: RawFile, layout: Layout) -> None:
    """Refuse pages that are not frames of counts, in words."""
    size = f"{layout.height} x {layout.width}"
    if layout.samples != 1 or layout.photometric in _COLOUR:
        kind = _COLOUR.get(layout.photometric, f"{layout.samples}-channel")
        raise InputError(file.path, f"holds {kind} colour images ({size}), not a movie of counts.")
    if layout.compression not in _COMPRESSIONS:
        try:
            name = tifffile.COMPRESSION(layout.compression).name
        except ValueError:
            name = f"number {layout.compression}"
        known = ", ".join(sorted(set(_COMPRESSIONS.values())))
        raise InputError(file.path, f"its TIFF compression {name} is not read; {known} are.")
    if min(layout.width, layout.height, layout.segment_width, layout.segment_height) < 1:
        raise InputError(file.path, f"damaged: its first TIFF directory gives the frame size {size}.")


def _walk(file: RawFile, pages: Pages, layout: Layout) -> tuple[array[int], Sequence[int] | None, bool]:
    """Where the whole frames are, from the first one on.

    Returns
    -------
    starts : array of int
        Offset of each frame's directory.
    offsets : sequence of int or None
        Offset of each frame's pixels, if each frame is one unbroken run of uncompressed bytes.
    broken : bool
        Whether more frames should follow.
    """
    starts, offsets, flat = array("q"), array("q"), layout.plain_bytes > 0
    for number, page in enumerate(pages.chain()):
        if page is None:
            return starts, offsets if flat else None, True
        if (found := page.layout()) != layout:
            differing = [name for name in Layout._fields if getattr(found, name) != getattr(layout, name)]
            raise InputError(
                file.path,
                f"page {number} differs from the first one in {', '.join(differing)}: the pages of a movie "
                "are alike. Save the frames of one kind as a separate file.",
            )
        segments = page.segments(layout)
        if segments is None:
            # Later frames may still be whole, but a movie with a hole would shift in time.
            return starts, offsets if flat else None, True
        starts.append(page.offset)
        offset, ends = int(segments[0, 0]), segments.sum(axis=1)
        flat = flat and (ends[:-1] == segments[1:, 0]).all() and ends[-1] - offset >= layout.plain_bytes
        offsets.append(offset)
    return starts, offsets if flat else None, False


def _follow(file: RawFile, first: Page, offset: int, frame_bytes: int, announced: int) -> Sequence[int]:
    """Offsets of the frames that follow the first one without directories of their own."""
    end = offset + announced * frame_bytes
    if offset < first.following < end:
        return [offset]  # a directory lies between the frames
    room = (file.size - offset) // frame_bytes
    return range(offset, offset + min(room, announced) * frame_bytes, frame_bytes)


def _more_pages(note: Description, announced: int) -> tuple[str, ...]:
    """A warning if the pages are more than the description of the first one says."""
    if (note.n_frames or 1) == 1 or note.n_frames == announced:
        return ()
    return (
        f"its description names {note.n_frames} frames, and {announced} pages alike are there: all are read, "
        "as one movie.",
    )


def _format(pages: Pages, layout: Layout, note: Description) -> str:
    kind = "BigTIFF" if pages.big else "TIFF"
    writer = f" {note.writer}" if note.writer else ""
    return f"{kind}{writer}, {_COMPRESSIONS[layout.compression]}"
