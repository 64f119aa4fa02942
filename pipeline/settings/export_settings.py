"""Settings of what takes a movie away as a file of another kind: export."""

from __future__ import annotations

from .fields import OUTPUT, PICTURE, WHAT, setting
from .parse import Box, Count, DenoisedStore, Interval, MovieStore, YesNo
from .results import beside_in_run
from .setting import SettingError, Settings, settings
from .showing import ContrastSetting, NewExport, Panels, SpeedSetting, is_picture

_OF_PICTURES = ("speed", "contrast", "columns")


@settings(kw_only=True)
class ExportConfig(Settings):
    """Write a movie as a video, as pictures, or as data for other programs."""

    store: DenoisedStore = setting(
        help="denoised store, movie store, or the folder of a run", metavar="STORE.zarr", positional=True
    )
    output: NewExport = setting(
        help="file to write: a video (.mp4, .gif, .webp), pictures (.png), or data (.tif, .mrc, .hspy, .nc, .npy)",
        group=OUTPUT,
        metavar="FILE",
        short="-o",
    )
    movie: MovieStore | None = setting(
        None,
        "movie store that a denoised store was made from",
        group=WHAT,
        metavar="MOVIE.zarr",
        default_text="that of the run, if you give the folder of a run",
    )
    panels: Panels | None = setting(
        None,
        "what to show side by side: raw, mean9 (the mean of 9 raw frames), denoised, difference (raw less denoised); "
        "one of them for a file of data",
        group=WHAT,
        metavar="PANEL,...",
        default_text="raw,denoised in pictures if the movie store is known; else denoised, or raw of a movie store",
    )
    frames: Interval | None = setting(
        None,
        "frames A to B - 1 only, counted from 0; you can leave out A or B",
        group=WHAT,
        metavar="A:B",
    )
    roi: Box | None = setting(None, "these rows and columns only", group=WHAT, metavar="Y0:Y1,X0:X1")
    follow_drift: YesNo = setting(
        False,
        "hold the scene still: follow the measured drift by whole pixels, and keep what all frames show",
        group=WHAT,
    )
    speed: SpeedSetting | None = setting(
        None,
        "how fast a video plays: frames per second such as 25fps, or times real time such as 0.1x",
        group=PICTURE,
        metavar="SPEED",
        default_text="25fps",
    )
    contrast: ContrastSetting | None = setting(
        None,
        "what is black and white: two counts such as 0,7.5, or two percentiles such as 1%,99%; the same for all frames",
        group=PICTURE,
        metavar="LOW,HIGH",
        default_text="percentiles, which are 0.3%,99.7%",
    )
    scale_bar: YesNo = setting(True, "a scale bar below the pictures", group=PICTURE)
    clock: YesNo = setting(True, "the time of the frame below the pictures", group=PICTURE)
    columns: Count | None = setting(
        None,
        "put all frames into one .png, so many side by side; else each frame gets a numbered .png",
        group=PICTURE,
        metavar="N",
    )
    force: YesNo = setting(False, "replace the output if it exists", group=OUTPUT)

    def __post_init__(self) -> None:
        suffix = self.output.suffix.lower()
        if self.movie is None:
            object.__setattr__(self, "movie", beside_in_run(self.store, "ingest"))
        if not is_picture(self.output):
            for name in _OF_PICTURES:
                self._refuse_if_given(name, f"{suffix} holds values and no pictures; leave it out")
            if self.panels is not None and len(self.panels) > 1:
                raise self._error("panels", f"{suffix} holds the values of one panel; name one")
        if suffix == ".png":
            self._refuse_if_given("speed", "pictures do not play; leave it out")
        else:
            self._refuse_if_given("columns", "it is for .png only; leave it out")

    def _refuse_if_given(self, name: str, reason: str) -> None:
        if getattr(self, name) is not None:
            raise self._error(name, reason)

    def _error(self, name: str, reason: str) -> SettingError:
        text = f"ExportConfig: {name} {getattr(self, name)!r} is not valid: {reason}."
        return SettingError.of(text, name, reason)
