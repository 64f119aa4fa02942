"""Settings of watch."""

from __future__ import annotations

from pathlib import Path

from .fields import CLUSTER, MODEL, OUTPUT, WHAT, WHERE, setting
from .parse import Count, Device, Duration, Model, NewPath, Port, RawPath, YesNo
from .setting import Settings, settings


@settings()
class WatchConfig(Settings):
    """Watch recordings while the microscope writes them, and queue runs of those that you accept."""

    folder: RawPath = setting(
        help="folder that the microscope writes into; nothing is ever written there",
        metavar="FOLDER",
        positional=True,
    )
    output: NewPath = setting(
        help="folder of the session: your decisions, and the runs",
        group=OUTPUT,
        metavar="SESSION",
        short="-o",
    )
    model: Model | None = setting(
        None,
        "model folder, for the page",
        group=MODEL,
        metavar="MODEL",
        default_text="the model that comes with tdenoise",
    )
    part: Count = setting(
        512,
        "rows and columns in the middle of the frame that the page shows, in pixels, at most",
        group=WHAT,
        metavar="N",
    )
    rest: Duration = setting(
        10.0,
        "a recording that has not changed for so long is finished",
        group=WHAT,
        metavar="TIME",
        default_text="10s",
    )
    run_config: Path | None = setting(
        None,
        "YAML file with settings of the runs, as run takes it with --config; its calibration holds for the page, too",
        group=WHAT,
        metavar="FILE.yaml",
    )
    profile: str = setting(
        "local",
        "name or YAML file of the profile for the runs: local (one after the other on this machine), or a cluster",
        group=CLUSTER,
        metavar="NAME",
    )
    device: Device = setting(
        "auto",
        "cpu, cuda (a GPU), mps (of Apple), xpu (of Intel), or auto: whichever of these there is, else cpu",
        group=WHERE,
    )
    port: Port | None = setting(
        None, "port of this machine to listen on", group=WHERE, metavar="N", default_text="any that is free"
    )
    browser: YesNo = setting(True, "open the page, where this machine has a screen", group=WHERE)
