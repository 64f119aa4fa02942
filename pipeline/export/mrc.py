"""MRC: a header that mrcfile makes, with the size of pixels, then the frames. IMOD and motion correction read it."""

from __future__ import annotations

import itertools
from pathlib import Path

import mrcfile
import numpy as np

from .values import Values

ANGSTROM = 10.0  # per nanometre
LABEL_LENGTH, MOST_LABELS = 80, 10  # that the format has room for


def write(file: Path, values: Values) -> None:
    """Write a stack of frames.

    Rows are stored from the first to the last; programs that count rows from below, such as IMOD, show them mirrored.
    Smallest, largest and mean value in the header are those of all frames. MRC has no room for the time of a frame: a
    label tells it.
    """
    frames = values.frames()
    first = next(frames)
    with mrcfile.new(file, overwrite=True) as made:
        made.set_data(first[np.newaxis])
        made.set_image_stack()
        if values.pixel_size_nm is not None:
            tall, wide = (ANGSTROM * size for size in values.pixel_size_nm)
            made.voxel_size = (wide, tall, wide)
        header = made.header.copy()
    header.nz = values.shape[0]
    seen = _Statistics()
    with file.open("r+b") as handle:
        handle.seek(header.nbytes)
        for frame in itertools.chain([first], frames):
            seen.add(frame)
            handle.write(frame.data)
        header.dmin, header.dmax, header.dmean, header.rms = seen.low, seen.high, seen.mean, seen.rms
        labels = _labels(values)
        header.nlabl = len(labels)
        header.label[:] = b""
        header.label[: len(labels)] = [text.encode("ascii", "replace")[:LABEL_LENGTH] for text in labels]
        handle.seek(0)
        handle.write(header.tobytes())


def _labels(values: Values) -> list[str]:
    """What the header says in words."""
    lines = [f"tdenoise: {values.title} [{values.units}]"]
    if values.frame_time_s is not None:
        lines.append(f"frame time {values.frame_time_s:.9g} s")
    return [*lines, *(f"{key}: {value}" for key, value in values.notes.items())][:MOST_LABELS]


class _Statistics:
    """Smallest, largest and mean value, and deviation, of what was seen; pixels without a number do not count."""

    def __init__(self) -> None:
        self.low, self.high = np.inf, -np.inf
        self._n, self._sum, self._squares, self._about = 0, 0.0, 0.0, 0.0

    def add(self, frame: np.ndarray) -> None:
        sound = frame[np.isfinite(frame)].astype(np.float64)
        if not sound.size:
            return
        if not self._n:
            self._about = float(sound.mean())  # squares of large numbers would lose the small ones
        self._n += sound.size
        self._sum += float((sound - self._about).sum())
        self._squares += float(np.square(sound - self._about).sum())
        self.low, self.high = min(self.low, float(sound.min())), max(self.high, float(sound.max()))

    @property
    def mean(self) -> float:
        return self._about + self._sum / self._n if self._n else 0.0

    @property
    def rms(self) -> float:
        if not self._n:
            return -1.0  # which the format has for "unknown"
        return float(np.sqrt(max(0.0, self._squares / self._n - (self._sum / self._n) ** 2)))
