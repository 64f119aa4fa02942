"""Denoise a movie that a program holds: the steps of the command line, on arrays."""

from __future__ import annotations

import dataclasses
import difflib
import logging
import os
import shutil
import weakref
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, overload

import numpy as np
import xarray
import zarr
from numpy.typing import NDArray

from tdenoise.files.atomic import make_folder
from tdenoise.network import checkpoint, torch_setup
from tdenoise.noise.noise import NoiseStatistics

from ..apply import block_work
from ..apply.apply import apply
from ..apply.apply_plan import usable_gpus
from ..errors import InputError, UsageError
from ..files.write_errors import named_failures
from ..ingest.ingest import ingest
from ..inputs.model_fit import movie_noise, open_model, too_correlated
from ..settings.denoise_settings import ApplyConfig, TrainConfig
from ..settings.ingest_settings import IngestConfig, Preparation
from ..settings.results import OUTPUTS
from ..settings.workers import LOCAL, Workers
from ..step_control import Control
from ..store import store
from ..train.train import train_model
from ..workers.main_guard import check_main_guard
from .array_reader import Held, hold
from .opening import dask_of
from .progress import shown
from .scratch import make_scratch

log = logging.getLogger(__name__)

BASE, ADAPT = "base", "adapt"
# Settings that are passed on; the others are arguments of their own, or have no meaning here.
INGEST = {f.name for f in dataclasses.fields(Preparation)}
TRAIN = {f.name for f in dataclasses.fields(TrainConfig)} - {
    *("movie", "output", "model", "device", "force"),
    "archive",
}
APPLY = {f.name for f in dataclasses.fields(ApplyConfig)} - {
    *("movie", "output", "model", "device", "force"),
    *("share", "variance", "resume", "archive"),
}
OF_FILES = {"dataset", "channel", "allow_truncated"}  # settings that an array has no use for


@dataclass(frozen=True)
class Measured:
    """What was measured on a movie, and how it was denoised.

    Attributes
    ----------
    noise : NoiseStatistics
        The noise law: ``fano`` (variance over mean, 1 for counted electrons), ``correlations`` of neighbours, and more.
    mean : float
        Counts per pixel and frame.
    dose : float or None
        Electrons per pixel and frame; None where ``counts_per_electron`` is not known.
    frame_level : ndarray of float, shape (n_frames,)
        Brightness of every frame, 1 being the mean. It is put back into the result.
    frame_valid : ndarray of bool, shape (n_frames,)
        Frames that were recorded whole. The others are predicted from the frames around them.
    drift : ndarray of float, shape (n_frames, 2), or None
        Rows and columns that the scene has moved by since the first frame [pixels]; None where it does not show. The
        frames of the result are not shifted.
    bad_pixels : ndarray of bool, shape (height, width)
        Hot, dead, lost or listed pixels.
    warnings : tuple of str
        What you should know before you trust the result; a sentence each.
    model : str
        sha256 of the model that denoised it.
    movie, denoised : dict
        All that the movie store and the denoised store say about themselves.
    """

    noise: NoiseStatistics
    mean: float
    dose: float | None
    frame_level: NDArray[np.float64]
    frame_valid: NDArray[np.bool_]
    drift: NDArray[np.float64] | None
    bad_pixels: NDArray[np.bool_]
    warnings: tuple[str, ...]
    model: str
    movie: Mapping[str, Any] = dataclasses.field(repr=False)
    denoised: Mapping[str, Any] = dataclasses.field(repr=False)


@overload
def denoise(
    movie: Any, model: str | Path = ..., *, return_measured: Literal[True], **rest: Any
) -> tuple[Any, Measured]: ...


@overload
def denoise(
    movie: Any, model: str | Path = ..., *, return_measured: Literal[False] = ..., **rest: Any
) -> Any: ...


def denoise(
    movie: Any,
    model: str | Path = BASE,
    *,
    time_limit: str | float = "5m",
    device: str = "auto",
    output: str | Path | None = None,
    progress: bool = True,
    return_measured: bool = False,
    force: bool = False,
    **settings: Any,
) -> Any:
    """Denoise a movie: the same kind of array comes out as went in.

    Its noise, drift, brightness and bad pixels are measured first. The values equal those of the command line on the
    same machine, bit for bit.

    Parameters
    ----------
    movie : numpy.ndarray, dask.array.Array, xarray.DataArray, xarray.Dataset, str or Path
        Counts, (frames, rows, columns). Of a Dataset, ``counts`` or its only movie. A path is that of a raw file.
    model : str or Path, optional
        ``"base"``, the model that comes with tdenoise; ``"adapt"``, that model adapted to this movie; or a folder.
    time_limit : str or float, optional
        For ``"adapt"``, of the training: ``"5m"``, or seconds.
    device : str, optional
        ``"cpu"``, ``"cuda"``, or ``"auto"``: a GPU if there is one.
    output : str or Path, optional
        Folder to keep, like that of a run. Without, a temporary one is used for as long as the result needs it.
    progress : bool, optional
        Show how far it is, under the cell of a notebook or on the terminal.
    return_measured : bool, optional
        Also return what was measured.
    force : bool, optional
        Replace what is in ``output``.
    **settings
        Those of ``ingest``, ``train`` and ``apply`` on the command line, such as ``counts_per_electron=1.0``.

    Returns
    -------
    numpy.ndarray, dask.array.Array, xarray.DataArray or xarray.Dataset
        Expected counts, float32. Lazy if the movie was, or if it lay in a file; with its coordinates, if it had some.
    Measured
        Only with ``return_measured=True``.

    Raises
    ------
    PipelineError
        If a setting has no meaning, it is no movie, or memory or disk do not suffice.
    """
    chosen = _Settings.of(model, settings, time_limit, device, force, isinstance(movie, str | os.PathLike))
    made = _denoised(movie, chosen, output, progress)
    return made if return_measured else made[0]


def _denoised(
    movie: Any, chosen: _Settings, output: str | Path | None, progress: bool
) -> tuple[Any, Measured]:
    """The denoised movie, and what was measured; what is temporary goes with the last who needs it."""
    held = None if isinstance(movie, str | os.PathLike) else hold(_movie_of(movie))
    folder, temporary = _folder(output)
    try:
        with torch_setup.restored(), shown(progress) as control:
            _steps(movie if held is None else held, folder, chosen, control)
        measured = _measured(folder)
        result, source = _result(movie, held, folder)
        if temporary and source is not None:
            weakref.finalize(source, shutil.rmtree, folder, ignore_errors=True)
            temporary = False
    finally:
        if temporary:
            shutil.rmtree(folder, ignore_errors=True)
    return result, measured


@dataclass(frozen=True)
class _Settings:
    """What each step is told."""

    model: str | Path
    ingest: dict[str, Any]
    train: dict[str, Any]
    apply: dict[str, Any]

    @classmethod
    def of(
        cls,
        model: str | Path,
        given: dict[str, Any],
        time_limit: str | float,
        device: str,
        force: bool,
        from_file: bool,
    ) -> _Settings:
        adapts = model == ADAPT
        known = INGEST | APPLY | TRAIN
        for name in given:
            if name not in known:
                close = difflib.get_close_matches(name, known, 1)
                hint = f"Did you mean {close[0]}?" if close else f"Known: {', '.join(sorted(known))}."
                raise UsageError(f"denoise has no setting {name!r}. {hint}")
            if name in OF_FILES and not from_file:
                raise UsageError(f"{name} is for files, and the movie is an array. Leave it out.")
            if name in TRAIN - APPLY and not adapts:
                raise UsageError(f"{name} is for training. Add model='adapt', or leave it out.")
        common = {"device": device, "force": force}
        train = {name: given[name] for name in TRAIN & given.keys()}
        if adapts:
            train |= {"time_limit": time_limit, **common}
        return cls(
            model,
            {name: given[name] for name in INGEST & given.keys()} | {"force": force},
            train,
            {name: given[name] for name in APPLY & given.keys()} | common,
        )


def _movie_of(movie: Any) -> Any:
    """The movie of a Dataset; all else is one already."""
    if not isinstance(movie, xarray.Dataset):
        return movie
    movies = [name for name, array in movie.data_vars.items() if array.ndim == 3]
    if store.MOVIE in movies:
        return movie[store.MOVIE]
    if len(movies) != 1:
        names = ", ".join(map(str, movies)) or "none"
        raise UsageError(
            f"the Dataset should hold one movie, of three dimensions; it holds: {names}. Give one DataArray."
        )
    return movie[movies[0]]


def _folder(output: str | Path | None) -> tuple[Path, bool]:
    """Where the steps write, and whether that is for this call only."""
    if output is None:
        return make_scratch(), True
    folder = Path(output)
    with named_failures(folder):
        make_folder(folder)
    return folder, False


def _steps(movie: Held | str | os.PathLike[str], folder: Path, chosen: _Settings, control: Control) -> None:
    """Ingest, train where it was asked for, apply."""
    counts, trained, denoised = (folder / OUTPUTS[step] for step in ("ingest", "train", "apply"))
    held = movie if isinstance(movie, Held) else None
    raw = Path(movie.name if isinstance(movie, Held) else movie)
    model = {BASE: checkpoint.BASE, ADAPT: trained}.get(str(chosen.model), Path(chosen.model))
    # All settings are checked before the first step, and a model is looked at.
    reading = IngestConfig(raw=raw, output=counts, **chosen.ingest)
    training = TrainConfig(movie=(counts,), output=trained, **chosen.train) if model == trained else None
    applying = ApplyConfig(movie=counts, model=model, output=denoised, **chosen.apply)
    if training is None:
        open_model(applying.model or model)
    ingest(reading, control, held=None if held is None else held.reader())
    if training is not None:
        train_model(training, control)
    elif model == checkpoint.BASE:
        _check_base(raw, counts)
    try:
        apply(_placed(applying), control)
    finally:
        # What a worker keeps for its next block would stay in this process.
        block_work.load.cache_clear()
        block_work.movie_counts.cache_clear()


def _check_base(raw: Path, counts: Path) -> None:
    """Refuse a movie whose noise the base model would take for signal."""
    if (reason := too_correlated(store.open_store(counts, store.MOVIE))) is not None:
        raise InputError(
            raw,
            f"the base model hides one pixel, and here that is not enough: {reason}. Use model='adapt', which trains "
            "a model for this movie.",
        )


def _placed(config: ApplyConfig) -> ApplyConfig:
    """The settings with the place where the blocks are computed, unless it was given.

    One block, or one GPU, needs no other process.
    """
    if config.workers != LOCAL:
        return config
    here = dataclasses.replace(config, share="0/1")
    n_gpus = len(usable_gpus(config.device))
    shape = store.open_store(config.movie, store.MOVIE).shape
    is_small = all(n <= limit for n, limit in zip(shape, store.DASK_CHUNK, strict=True))
    if n_gpus == 1 or (is_small and config.tile is None):
        return here
    try:
        check_main_guard()
    except UsageError:
        log.warning(
            "denoise is called by a line of a script that has no 'if __name__ == \"__main__\":', so it uses one core. "
            "Put the call into a function, and call that behind this line, to use all cores."
        )
        return here
    return dataclasses.replace(config, workers=Workers("local", n_gpus))


def _result(movie: Any, held: Held | None, folder: Path) -> tuple[Any, Any]:
    """The denoised movie as the kind of array that was given, and what reads it later, if it is lazy."""
    path = folder / OUTPUTS["apply"]
    opened = store.open_store(path, store.DENOISED, deep=False)
    if held is not None and not held.is_lazy:
        values, source = opened.array[...], None
    else:
        values, source = dask_of(opened), opened.array
    if held is not None and not held.is_xarray:
        return values, source
    attributes = {"units": opened.units, "long_name": "denoised per pixel and frame"}
    if held is None:
        coordinates = _coordinates(path)
        return xarray.DataArray(values, coordinates, ("t", "y", "x"), store.DENOISED, attributes), source
    given: xarray.DataArray = held.array
    names = [given.dims[axis] for axis in held.axes]
    made = xarray.DataArray(values, dims=names, name=store.DENOISED, attrs=attributes)
    if made.shape == held.info.shape:
        made = made.assign_coords(given.coords)
    else:  # frames or pixels were left out or summed
        found = _coordinates(path)
        made = made.assign_coords(
            {name: (name, *found[axis][1:]) for name, axis in zip(names, "tyx", strict=True)}
        )
    made = made.transpose(*given.dims)
    return (made.to_dataset() if isinstance(movie, xarray.Dataset) else made), source


def _coordinates(path: Path) -> dict[str, tuple[str, NDArray[Any], dict[str, Any]]]:
    """The axes of a store, with their units."""
    group = zarr.open_group(path, mode="r")
    return {axis: (axis, group[axis][:], {"units": group[axis].attrs["units"]}) for axis in "tyx"}


def _measured(folder: Path) -> Measured:
    """What the stores say."""
    path = folder / OUTPUTS["ingest"]
    movie, denoised = store.open_store(path, store.MOVIE), store.read_attributes(folder / OUTPUTS["apply"])
    said = movie.attributes
    group = zarr.open_group(path, mode="r")
    drift = None
    if "drift" in group:
        size = movie.coordinates.pixel_size_nm
        drift = group["drift"][:] / np.asarray((1.0, 1.0) if size is None else size)
    return Measured(
        noise=movie_noise(movie),
        mean=said["mean"] or 0.0,
        dose=said["dose"]["per_pixel"],
        frame_level=group["frame_level"][:],
        frame_valid=group["frame_valid"][:],
        drift=drift,
        bad_pixels=group["bad_pixels"][:] if "bad_pixels" in group else np.zeros(movie.shape[1:], bool),
        warnings=tuple(said["warnings"]),
        model=denoised["model"]["id"],
        movie=said,
        denoised=denoised,
    )
