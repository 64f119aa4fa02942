"""What MRC movies say beside the standard header: in extended headers, and in Direct Electron's text file.

FEI1 and FEI2 are described in Thermo Fisher's MRC2014 specification, Agard's header in the documentation of
IMOD. Of other kinds, such as SerialEM's SERI, only the name and size are recorded.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from .rawfile import RawFile
from .timestamps import frame_time, told_apart
from .units import bounded_json, pixel_size, to_nanometres

_HEADER = 1024
_FEI = {  # name: (position in a record, type)
    "record_bytes": (0, "i4"),
    "timestamp_days": (12, "f8"),
    "microscope": (20, "S16"),
    "high_tension_v": (84, "f8"),
    "dose_e_per_m2": (92, "f8"),
    "alpha_tilt_deg": (100, "f8"),
    "pixel_size_x_m": (156, "f8"),
    "pixel_size_y_m": (164, "f8"),
    "magnification": (289, "f8"),
    "integration_time_s": (419, "f8"),
    "camera": (435, "S16"),
    "is_dose_fraction": (655, "u1"),
}
_FEI_BYTES = 768  # of the shorter record, FEI1
_DAY_S = 86_400
_AGARD = (
    "alpha_tilt_deg", "beta_tilt_deg", "stage_x_m", "stage_y_m", "stage_z_m", "shift_x_m", "shift_y_m",
    "defocus_m", "exposure_s", "mean", "tilt_axis_deg", "pixel_size_m", "magnification",
)  # fmt: skip
_OLD_FEI_BYTES = 2**17  # 1024 records of Agard's kind, which early FEI software wrote without a name
_TILT_FLAG = 1  # of SerialEM: each record begins with the tilt
_LEAST_TILT = 1.0  # over which the stage of a movie does not tilt [degrees]
_MAX_PIXEL_M = 1e-3
_MAX_TEXT_BYTES = 2**20


@dataclass(frozen=True)
class Notes:
    """What was found; unknown stays None."""

    frame_time_s: float | None = None
    pixel_size_nm: tuple[float, float] | None = None
    exposure_s: float | None = None
    voltage_kv: float | None = None
    camera: str | None = None
    timestamps_s: NDArray[np.float64] | None = None
    warnings: tuple[str, ...] = ()
    metadata: dict[str, Any] = field(default_factory=dict)


def extended_header(file: RawFile, header: bytes, order: str, n_bytes: int, n_frames: int) -> Notes:
    """Read the extended header.

    Parameters
    ----------
    file : RawFile
        The open file.
    header : bytes
        Its standard header of 1024 bytes.
    order : str
        Byte order, "<" or ">".
    n_bytes : int
        Size of the extended header, known to be in the file.
    n_frames : int
        Frames of the movie.
    """
    kind = header[104:108].decode("latin-1").strip("\0 ")
    n_integers, n_reals = (int(n) for n in np.frombuffer(header, f"{order}i2", 2, 128))
    if kind in {"FEI1", "FEI2"} and n_bytes >= _FEI_BYTES:
        return _fei(file, order, n_bytes, n_frames)
    unnamed = kind == "" and n_bytes == _OLD_FEI_BYTES and (n_integers, n_reals) == (0, 32)
    if (kind == "AGAR" or unnamed) and n_integers >= 0 and n_reals >= len(_AGARD):
        record_bytes = 4 * (n_integers + n_reals)
        if record_bytes <= n_bytes:
            n_records = min(n_bytes // record_bytes, n_frames)
            records = np.frombuffer(file.read_at(_HEADER, n_records * record_bytes), f"{order}f4")
            records = records.reshape(n_records, -1)[:, n_integers : n_integers + len(_AGARD)]
            return _agard(records[0].tolist(), records[:, 0])
    warnings: tuple[str, ...] = ()
    if (
        kind == "SERI" and n_reals & _TILT_FLAG and 1 < n_integers <= n_bytes
    ):  # bytes of a record, and what is in it
        n_records = min(n_bytes // n_integers, n_frames)
        records = np.frombuffer(file.read_at(_HEADER, n_records * n_integers), "u1").reshape(n_records, -1)
        warnings = _tilted(records[:, :2].copy().view(f"{order}i2")[:, 0] / 100)
    found = {"extended_header": {"kind": kind, "bytes": n_bytes}} if n_bytes else {}
    return Notes(warnings=warnings, metadata=found)


def _tilted(tilts: NDArray[Any]) -> tuple[str, ...]:
    """A warning where the stage tilts from frame to frame."""
    known = tilts[np.isfinite(tilts) & (np.abs(tilts) <= 180)]
    if not np.any(known[1:]):  # only the first record was filled
        return ()
    if known.size < max(len(tilts), 2) or np.ptp(known) <= _LEAST_TILT:
        return ()
    return (
        f"its extended header gives tilts of the stage from {known.min():.4g} to {known.max():.4g} degrees: it is a "
        "tilt series, not a movie over time.",
    )


def _fei(file: RawFile, order: str, n_bytes: int, n_frames: int) -> Notes:
    record_bytes = int(np.frombuffer(file.read_at(_HEADER, 4), f"{order}i4")[0])
    if not _FEI_BYTES <= record_bytes <= n_bytes:
        return Notes(metadata={"extended_header": {"kind": "FEI", "bytes": n_bytes, "damaged": True}})
    positions, kinds = zip(*_FEI.values(), strict=True)
    layout = np.dtype(
        {
            "names": list(_FEI),
            "offsets": list(positions),
            "formats": [kind if kind[0] == "S" else order + kind for kind in kinds],
            "itemsize": record_bytes,
        }
    )
    n_records = min(n_bytes // record_bytes, n_frames)
    records = np.frombuffer(file.read_at(_HEADER, n_records * record_bytes), layout)
    first = {name: records[name][0].item() for name in _FEI}
    first |= {name: first[name].decode("latin-1").strip("\0 ") for name in ("microscope", "camera")}
    stamps = records["timestamp_days"] * _DAY_S
    known = n_records == n_frames and np.isfinite(stamps).all() and bool(stamps.any())
    time, warnings = frame_time(stamps, 1e-3) if known else (None, ())
    high_tension, exposure = _plausible(first["high_tension_v"]), _plausible(first["integration_time_s"])
    return Notes(
        frame_time_s=time,
        pixel_size_nm=pixel_size(_nanometres(first["pixel_size_y_m"]), _nanometres(first["pixel_size_x_m"])),
        exposure_s=None if first["is_dose_fraction"] else exposure,  # else it is that of the whole movie
        voltage_kv=None if high_tension is None else high_tension / 1000,
        camera=first["camera"] or None,
        timestamps_s=told_apart(stamps) if known and n_frames > 1 else None,
        warnings=warnings + _tilted(records["alpha_tilt_deg"]),
        metadata=bounded_json({"extended_header": {"kind": "FEI", "bytes": n_bytes, "first_frame": first}}),
    )


def _agard(values: list[float], tilts: NDArray[Any]) -> Notes:
    first = dict(zip(_AGARD, values, strict=True))
    nanometres = _nanometres(first["pixel_size_m"])
    return Notes(
        pixel_size_nm=pixel_size(nanometres, nanometres),
        exposure_s=_plausible(first["exposure_s"]),
        warnings=_tilted(tilts),
        metadata=bounded_json({"extended_header": {"kind": "Agard", "first_frame": first}}),
    )


def direct_electron(file: RawFile) -> Notes | None:
    """What the text that Direct Electron's software writes beside a movie says; None if there is none.

    The text of ``NAME_movie.mrc`` is ``NAME_info.txt``.
    """
    stem, _, part = file.path.stem.rpartition("_")
    path = file.path.with_name(f"{stem}_info.txt")
    try:
        if part != "movie" or not path.is_file() or path.stat().st_size > _MAX_TEXT_BYTES:
            return None
        lines = path.read_text("utf-8", "replace").splitlines()
    except OSError:
        return None
    pairs = (line.partition("=") for line in lines)
    entries = {name.strip(): value.strip() for name, found, value in pairs if found}
    rate, volts = (
        _number(entries.get(name)) for name in ("Frames Per Second", "Instrument Accelerating Voltage (V)")
    )
    summed = _number(entries.get("Autosave Movie Sum Count")) or 1
    y, x = (to_nanometres(entries.get(f"Specimen Pixel Size {axis} (nanometers)"), "nm") for axis in "YX")
    scan = entries.get("Scan - Enable", "").lower() in {"on", "enable", "enabled", "true"}
    return Notes(
        frame_time_s=None if rate is None else float(f"{summed / rate:.7g}"),
        pixel_size_nm=pixel_size(y, x),
        voltage_kv=None if volts is None else volts / 1000,
        camera=entries.get("Camera Model") or entries.get("Camera Name") or None,
        warnings=(f"{path.name} says that the beam was scanned: its frames may be points of a scan.",)
        if scan
        else (),
        metadata=bounded_json({path.name: entries}),
    )


def _nanometres(metres: float) -> float | None:
    value = to_nanometres(metres, "m") if 0 < metres < _MAX_PIXEL_M else None
    return None if value is None else float(f"{value:.7g}")


def _plausible(value: float) -> float | None:
    return float(f"{value:.7g}") if 0 < value < 1e9 else None


def _number(text: str | None) -> float | None:
    try:
        return _plausible(float(text or ""))
    except ValueError:
        return None
