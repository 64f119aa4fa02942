"""MRC: a header that mrcfile makes, with the size of pixels, then the frames. IMOD and motion correction read it."""

from __future__ import annotations

from pathlib import Path

import mrcfile
import numpy as np

from .values import Statistics, Values

ANGSTROM = 10.0  # per nanometre
LABEL_LENGTH, MOST_LABELS = 80, 10  # that the format has room for
RANGE_AT, RMS_AT = (
    76,
    216,
)  # bytes of the header before smallest, largest and mean value, and before their deviation
UNKNOWN = (np.inf, -np.inf, 0.0, -1.0)  # a deviation below 0 stands for that


def begin(file: Path, values: Values) -> int:
    """Begin a stack of frames.

    Rows are stored from the first to the last; programs that count rows from below, such as IMOD, show them mirrored.
    MRC has no room for the time of a frame: a label tells it.
    """
    with mrcfile.new(file) as made:
        made.set_data(np.zeros((1, *values.shape[1:]), values.dtype))
        made.set_image_stack()
        if values.pixel_size_nm is not None:
            tall, wide = (ANGSTROM * size for size in values.pixel_size_nm)
            made.voxel_size = (wide, tall, wide)
        header = made.header.copy()
    header.nz = values.shape[0]
    labels = _labels(values)
    header.nlabl = len(labels)
    header.label[:] = b""
    header.label[: len(labels)] = [text.encode("ascii", "replace")[:LABEL_LENGTH] for text in labels]
    file.write_bytes(header.tobytes())
    return int(header.nbytes)


def end(file: Path, seen: Statistics) -> None:
    """Smallest, largest and mean value in the header are those of all frames."""
    low, high, mean, deviation = seen.known or UNKNOWN
    with file.open("r+b") as handle:
        handle.seek(RANGE_AT)
        handle.write(np.array([low, high, mean], np.float32).tobytes())
        handle.seek(RMS_AT)
        handle.write(np.float32(deviation).tobytes())


def _labels(values: Values) -> list[str]:
    """What the header says in words."""
    lines = [f"tdenoise: {values.title} [{values.units}]"]
    if values.frame_time_s is not None:
        lines.append(f"frame time {values.frame_time_s:.9g} s")
    return [*lines, *(f"{key}: {value}" for key, value in values.notes.items())][:MOST_LABELS]
