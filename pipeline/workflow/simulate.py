"""Simulate: write a raw movie and its truth, as a microscope's computer would leave the movie."""

from __future__ import annotations

from typing import Any

import mrcfile
import numpy as np
import tifffile

from tdenoise.files.atomic import write_atomically
from tdenoise.simulation.nanoparticle import simulate, truth_arrays
from tdenoise.simulation.particle import SimulationSettings

from ..errors import UsageError
from ..settings.ingest_settings import SimulateConfig


def write_simulation(config: SimulateConfig) -> dict[str, Any]:
    """Write ``movie.tif`` (ImageJ, calibrated) or ``movie.mrc``, and ``truth.npz``.

    Returns
    -------
    dict
        Paths ``raw`` and ``truth``, and the settings.

    Raises
    ------
    UsageError
        If the files exist, or the settings cannot be simulated.
    """
    raw = config.output / ("movie.tif" if config.format == "tiff" else "movie.mrc")
    truth = config.output / "truth.npz"
    if not config.force and (raw.exists() or truth.exists()):
        raise UsageError(f"{config.output}: holds a simulation already. Choose another folder, or --force.")
    try:
        settings = SimulationSettings(
            n_frames=config.n_frames,
            height=config.size,
            width=config.size,
            dose=config.dose,
            seed=config.seed,
            blur_px=config.blur,
            hot_pixels=config.hot_pixels,
        )
    except ValueError as error:
        raise UsageError(str(error)) from None
    simulation = simulate(settings)
    config.output.mkdir(parents=True, exist_ok=True)
    if config.format == "tiff":
        _write_tiff(raw, simulation.counts, settings)
    else:
        _write_mrc(raw, simulation.counts, settings)
    partial = truth.with_name(".truth.partial.npz")
    arrays: dict[str, Any] = truth_arrays(simulation)
    np.savez_compressed(partial, **arrays)
    write_atomically(truth, partial.read_bytes())
    partial.unlink()
    return {"raw": str(raw), "truth": str(truth), "dose": config.dose, "shape": list(simulation.counts.shape)}


def _write_tiff(path: Any, counts: Any, settings: SimulationSettings) -> None:
    per_nm = 1 / settings.pixel_size_nm
    tifffile.imwrite(
        path,
        counts,
        imagej=True,
        resolution=(per_nm, per_nm),
        metadata={"axes": "TYX", "unit": "nm", "finterval": settings.frame_time_s, "tunit": "s"},
    )


def _write_mrc(path: Any, counts: Any, settings: SimulationSettings) -> None:
    # MRC knows int8 but not uint8; uint16 holds any count.
    values = counts if counts.dtype.kind == "f" else counts.astype(np.uint16)
    with mrcfile.new(path, overwrite=True) as file:
        file.set_data(values)
        file.set_image_stack()
        file.voxel_size = settings.pixel_size_nm * 10  # [angstrom]
