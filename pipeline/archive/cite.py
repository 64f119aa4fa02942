"""Cite: a paragraph for the methods section, from what the stores say, and the works to cite."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tdenoise.network import checkpoint
from tdenoise.network.card import ModelCard

from ..errors import InputError
from ..files.sealed_json import read_unbroken
from ..settings.result_settings import CiteConfig
from ..settings.results import OUTPUTS, is_run_folder
from ..step_control import Control
from ..store import store
from .works import Work, all_works, works_for

ENTERED = 12  # characters of an id that tell it from all others


@dataclass(frozen=True)
class _Told:
    """What is there of a result: what its stores, its model and its report say."""

    movie: Mapping[str, Any] | None
    n_frames: int
    size: tuple[int, int]
    coordinates: store.Coordinates
    denoised: Mapping[str, Any] | None
    card: ModelCard | None
    metrics: Mapping[str, Any]


def cite(config: CiteConfig, control: Control | None = None) -> dict[str, Any]:
    """A paragraph for the methods section, and BibTeX of all works that were used.

    Parameters
    ----------
    config : CiteConfig
    control : Control, optional
        Nothing takes long.

    Returns
    -------
    dict
        ``text``, the paragraph; ``works``, a list of what it cites, with ``key``, ``title``, ``authors``, ``year``,
        ``doi`` and ``url``; ``bibtex``, an entry for each.

    Raises
    ------
    InputError
        If there is neither a store nor a run.
    """
    told = _look(config.store)
    methods = _methods(told)
    cited = works_for(methods)
    own, _ = all_works()
    text = " ".join([*_recording(told), *_denoising(told, own, cited), *_figures(told, cited), _ids(told)])
    works = [own, *cited.values()]
    return {
        "store": str(config.store),
        "format": config.format,
        "text": text,
        "works": [_described(work) for work in works],
        "bibtex": "\n\n".join(work.bibtex() for work in works),
    }


def _described(work: Work) -> dict[str, Any]:
    fields = work.fields
    return {
        "key": work.key,
        "title": fields["title"],
        "authors": work.authors,
        "year": fields.get("year"),
        "doi": fields.get("doi"),
        "url": fields.get("url"),
    }


def _look(path: Path) -> _Told:
    """Open the stores of a run, or the one store that was given."""
    denoised = movie = card = None
    metrics: Mapping[str, Any] = {}
    if is_run_folder(path):
        parts = {step: path / name for step, name in OUTPUTS.items()}
        if parts["apply"].exists():
            denoised = store.open_store(parts["apply"], store.DENOISED, deep=False)
        if parts["ingest"].exists():
            movie = store.open_store(parts["ingest"], store.MOVIE, deep=False)
        card = _card(parts["train"])
        metrics = read_unbroken(path / "metrics.json")
    elif store.read_attributes(path)["kind"] == "movie":
        movie = store.open_store(path, store.MOVIE, deep=False)
    else:
        denoised = store.open_store(path, store.DENOISED, deep=False)
    opened = denoised or movie
    if opened is None:
        raise InputError(path, "holds no movie store and no denoised store; ingest a raw movie first")
    result = None if denoised is None else denoised.attributes
    if result is not None:
        # Another movie, model or result may have taken their place since.
        if movie is not None and movie.id != result["movie"]["id"]:
            movie = None
        if card is None or card["sha256"] != result["model"]["id"]:
            base = _card(checkpoint.BASE)
            card = base if base is not None and base["sha256"] == result["model"]["id"] else None
        if metrics.get("made_from", {}).get("denoised") != result["id"]:
            metrics = {}
    return _Told(
        None if movie is None else movie.attributes,
        opened.shape[0],
        opened.shape[1:],
        opened.coordinates,
        result,
        card,
        metrics,
    )


def _card(folder: Path) -> ModelCard | None:
    try:
        return checkpoint.read_card(folder)
    except checkpoint.ModelError:
        return None


def _methods(told: _Told) -> list[str]:
    """What was used, by the names of `works.OF_METHOD`."""
    if told.denoised is None:
        return []
    kind, radius = told.denoised["model"]["kind"], told.denoised["model"]["blind_radius"]
    used = ["denoising"]
    if radius != "seen":
        used += ["blind spot", "video"]
    if radius != "seen" and kind != "udvd":
        used.append("neighbours seen")
    if told.metrics.get("umse") is not None:
        used.append("umse")
    return used


def _recording(told: _Told) -> list[str]:
    """What was recorded, and what was done to the counts."""
    height, width = told.size
    time, pixel = told.coordinates.frame_time_s, told.coordinates.pixel_size_nm
    calibrated = []
    if time is not None:
        calibrated.append(f"{_time(time)} per frame")
    if pixel is not None:
        size = f"{pixel[0]:.4g}" if pixel[0] == pixel[1] else f"{pixel[0]:.4g} x {pixel[1]:.4g}"
        calibrated.append(f"{size} nm per pixel")
    movie = told.movie
    frames = f"{told.n_frames} frames of {height} x {width} pixels"
    if movie is None:
        name = "" if told.denoised is None else f" ({told.denoised['movie']['source']})"
        return [
            f"The movie{name} has {', '.join([f'{told.n_frames} frames of {height} x {width} pixels', *calibrated])}."
        ]
    detector, dose = movie["detector"], movie["dose"]
    means = [f"with a {detector['camera']} camera" if detector["camera"] else ""]
    means.append(f"at {detector['voltage_kv']:g} kV" if detector["voltage_kv"] else "")
    if dose["per_pixel"] is not None:
        area = dose["per_square_angstrom"]
        per_area = "" if area is None else f" ({area:.3g} electrons per square angstrom and frame)"
        calibrated.append(f"{dose['per_pixel']:.3g} electrons per pixel and frame{per_area}")
    elif movie["mean"] is not None:
        calibrated.append(f"{movie['mean']:.3g} counts per pixel and frame on average")
    recorded = f"; it was recorded {' '.join(filter(None, means))}" if any(means) else ""
    said = [f"The movie {movie['source']['name']} has {', '.join([frames, *calibrated])}{recorded}."]
    if movie["corrections"]:
        done = "; ".join(movie["corrections"])
        said.append(f"Before denoising, its counts were corrected: {done}.")
    noise = movie["noise"] or {}
    if noise.get("fano") is not None:
        error = "" if noise.get("fano_error") is None else f" +- {noise['fano_error']:.2g}"
        said.append(
            f"The variance of its noise, measured from differences of successive frames, is {noise['fano']:.3f}{error} "
            "times its mean (1 for counted electrons)."
        )
    return said


def _time(seconds: float) -> str:
    return f"{1000 * seconds:.4g} ms" if seconds < 1 else f"{seconds:.4g} s"


def _denoising(told: _Told, own: Work, cited: Mapping[str, Work]) -> list[str]:
    """How the network was trained, and how it was applied."""
    denoised = told.denoised
    if denoised is None:
        return [f"It was read and measured with {own.short}."]
    model, settings = denoised["model"], denoised["settings"]
    names = "; ".join(work.short for method, work in cited.items() if method not in ("umse", "denoising"))
    blind = {
        None: "which does not see the frame that it predicts",
        0: "which does not see the count that it predicts",
        "seen": "which was trained on thinned counts",
    }.get(
        model["blind_radius"],
        f"which does not see the counts within {model['blind_radius']} pixel(s) of the one that it predicts",
    )
    said = [
        f"It was denoised with {own.short} ({cited['denoising'].short}), by a self-supervised network of the kind "
        f"{model['kind']}{f' ({names})' if names else ''}, {blind}.",
        *_training(told),
    ]
    passes = settings["ensemble"]
    averaged = "one pass" if passes == 1 else f"the mean of {passes} passes over turned and mirrored copies"
    said.append(f"Each frame is {averaged} of the network.")
    if settings.get("drift") is not None:
        said.append(
            "The windows of the network followed the measured drift of the scene; no frame was shifted."
        )
    if settings.get("brightness") is not None:
        said.append("The measured changes of brightness were divided out before, and put back after.")
    if settings.get("gives_back"):
        said.append("What the counts, summed over the movie, refuted was given back to the result.")
    if settings.get("kept_bits") is not None:
        said.append(f"Values are rounded to {settings['kept_bits']} bits of the mantissa.")
    return said


def _training(told: _Told) -> list[str]:
    """What the network learned from."""
    card, denoised = told.card, told.denoised or {}
    if card is None:
        known = {"True": "It learned from this movie.", "False": "It did not learn from this movie."}
        return [known[key]] if (key := str(denoised.get("trained_on_this"))) in known else []
    if not card["movies"] and "imported" not in card:
        return ["It was trained on simulated movies only, and not adapted to this one."]
    on = "this movie" if denoised.get("trained_on_this") else f"{len(card['movies'])} other movie(s)"
    if denoised.get("trained_on_this") and len(card["movies"]) > 1:
        on = f"{len(card['movies'])} movies, this one among them"
    steps = f" in {card['steps']} steps" if card.get("steps") else ""
    start = (
        "from random weights" if card.get("parent") is None else f"from model {str(card['parent'])[:ENTERED]}"
    )
    base = _card(checkpoint.BASE)
    if base is not None and card.get("parent") == base["sha256"]:
        start = "from the model that comes with tdenoise, which was trained on simulated movies"
    seed = f" (seed {card['seed']})" if card.get("seed") is not None else ""
    held = denoised.get("held_out_frames") or []
    out = f"; {len(held)} frames of this movie were held out to choose the weights" if held else ""
    said = [f"The network was trained on {on}{steps}{seed}, starting {start}{out}."]
    share = card.get("metrics", {}).get("share", 1.0)
    if share == 0:
        said.append("None of the change from the start was kept, so the model is the one it started from.")
    elif share < 1:
        said.append(f"Of the change from the start, {_percent(share)} is kept.")
    return said


def _figures(told: _Told, cited: Mapping[str, Work]) -> list[str]:
    """How good it is, as the report says."""
    found, said = told.metrics, []
    of = "held-out frames" if found.get("frames") == "held_out" else "all frames"
    nmse = found.get("nmse")
    if nmse is not None:
        value = f"{_percent(nmse['estimate'])} of the variance of the noise (95 % interval {_percent(nmse['low'])} to "
        value += f"{_percent(nmse['high'])})"
        if not nmse["resolvable"]:
            value = f"below {_percent(nmse['high'])} of the variance of the noise (95 % confidence; not resolvable)"
        said.append(f"The mean squared error, estimated without a ground truth on {of}, is {value}.")
    if "umse" in cited:
        umse = found["umse"]
        below = (
            f"{umse['estimate']:.3g}" if umse["resolvable"] else f"not resolvable, below {umse['high']:.3g}"
        )
        said.append(f"The uMSE ({cited['umse'].short}) is {below} counts squared.")
    refuted = found.get("refuted")
    if refuted is not None:
        n = refuted["n_places"]
        places = {0: "no place", 1: "one place"}.get(n, f"{n} places")
        said.append(f"The counts, summed over time, refute the result at {places}.")
    return said


def _percent(share: float) -> str:
    return f"{100 * share:.3g} %"


def _ids(told: _Told) -> str:
    """What makes it possible to find the very data again."""
    said = told.denoised or told.movie or {}
    software = said["software"]
    known = [name for name in ("python", "torch", "numpy", "zarr") if name in software]
    ids: dict[str, str] = {"movie": said["id"]}
    if told.denoised is not None:
        ids = {"movie": said["movie"]["id"], "model": said["model"]["id"], "result": said["id"]}
    packages = ", ".join(f"{name} {software[name]}" for name in known)
    listed = ", ".join(f"{name} {id[:ENTERED]}" for name, id in ids.items())
    return f"Software: {packages}. sha256 of the data: {listed}."
