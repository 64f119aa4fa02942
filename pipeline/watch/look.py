"""Looks at the newest frame, one after another: raw, denoised in one pass, and what can be told of it."""

from __future__ import annotations

import logging
import threading
import time
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tdenoise.inference.denoising import denoise
from tdenoise.inference.tile import Tile
from tdenoise.network import checkpoint, torch_setup
from tdenoise.network.registry import kind, kind_of, scale_for
from tdenoise.noise.brightness import Brightness
from tdenoise.noise.drift import largest_shift

from ..errors import PipelineError
from ..pictures.contrast import PERCENT, Limits, grey
from ..settings.denoise_settings import RunConfig
from .figures import Measured, course, figures
from .newest_frames import Newest, NotYet
from .recordings import Recording
from .shown import Look, Shown

log = logging.getLogger(__name__)

LOOK_S = 0.2  # between two looks that find nothing new


class Looker:
    """Looks at what `Shown` names, for as long as it is not stopped.

    Parameters
    ----------
    shown : Shown
    model : Model
    device : str
    part : int
        Rows and columns in the middle of the field that are looked at, at most [pixels].
    calibration : RunConfig
    """

    def __init__(
        self, shown: Shown, model: checkpoint.Model, device: str, part: int, calibration: RunConfig
    ) -> None:
        self._shown, self._model, self._device, self._calibration = shown, model, device, calibration
        self._newest = Newest(part)
        self._measured: Measured | None = None
        self._before: tuple[str, int] = ("", 0)  # recording and frame that were shown last
        self._number = 0
        fast = torch_setup.fast_bfloat16(device)
        self._precision = "bfloat16" if fast else "float32"

    def run(self, stop: threading.Event) -> None:
        """Look until a stop is asked for."""
        while not stop.is_set():
            recording = self._shown.wanted()
            if recording is None or not self._look(recording):
                stop.wait(LOOK_S)

    def _look(self, recording: Recording) -> bool:
        """Whether there was anything new."""
        try:
            if not self._newest.update(recording):
                return False
        except NotYet as reason:
            self._shown.told(recording.name, str(reason))
            return False
        except (PipelineError, OSError) as error:  # not one whole frame yet, or the folder is away
            self._shown.told(recording.name, str(error))
            return False
        try:
            look = self._make(recording)
        except (ArithmeticError, ValueError, RuntimeError, MemoryError) as error:
            log.warning("%s: %s", recording.path, error)
            self._shown.told(recording.name, f"its newest frames cannot be shown ({error}).")
            return True
        self._shown.publish(look)
        return True

    def _make(self, recording: Recording) -> Look:
        newest, frames = self._newest, self._newest.frames
        assert newest.info is not None
        first = self._before[0] != recording.name or self._measured is None
        if first or self._measured is None or self._measured.is_old or self._measured.noise is None:
            self._measured = Measured.of(frames)
        measured, frame = self._measured, newest.n_frames - 1
        moved = course(frames)
        denoised, problem = self._denoised(frames, measured, moved)
        rows, columns = newest.middle(newest.info)
        every = 1 if first else max(1, frame - self._before[1])
        self._before = recording.name, frame
        self._number += 1
        told = figures(frames, denoised, measured, moved, self._calibration, newest.info.frame_time_s)
        return Look(
            number=self._number,
            recording=recording.name,
            frame=frame,
            n_frames=newest.n_frames,
            finished=recording.state == "finished",
            every=every,
            part=(rows.start, columns.start),
            shape=(newest.info.shape[1], newest.info.shape[2]),
            raw=_picture(frames[-1]),
            denoised=None if denoised is None else _picture(denoised),
            problem=problem,
            figures=told,
            delay_s=time.monotonic() - newest.seen_at,
        )

    def _denoised(
        self, frames: NDArray[Any], measured: Measured, moved: NDArray[np.float64] | None
    ) -> tuple[NDArray[np.float32] | None, str | None]:
        """The newest frame from those before it, in one pass; or why not."""
        architecture = self._model.network.architecture
        if measured.noise is None:
            return None, "Its noise cannot be measured yet: there are too few frames."
        if not measured.noise.noise_variance > 0:
            return None, "It has no noise: it is constant, or was denoised before."
        own = frames[-min(len(frames), architecture.window + 1) :]
        level = measured.brightness(frames)
        level = Brightness(level.levels[-len(own) :], level.valid[-len(own) :])
        drift = None
        if kind(kind_of(architecture)).follows_drift and largest_shift(moved, architecture.window):
            assert moved is not None
            drift = moved[-len(own) :]
        last = len(own) - 1
        try:
            (found,) = denoise(
                self._model.network,
                own,
                Tile.whole(own.shape),
                scale_for(architecture, measured.noise),
                range(last, last + 1),
                ensemble=1,
                device=self._device,
                drift=drift,
                brightness=level,
                precision=self._precision,
            )
        except (FloatingPointError, LookupError, ValueError) as error:
            return None, f"It cannot be denoised: {error}."
        return found, None


def _picture(frame: NDArray[Any]) -> NDArray[np.uint8]:
    """A frame in shades between its own percentiles."""
    finite = frame[np.isfinite(frame)]
    low, high = np.percentile(finite, PERCENT) if finite.size else (0.0, 1.0)
    return grey(frame, Limits(float(low), float(high) if high > low else float(low) + 1))
