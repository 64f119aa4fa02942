"""Report: one HTML page that shows a denoised movie and says how far it can be trusted.

The page holds its pictures and style, runs no script and loads nothing, so that it can be mailed and kept.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from importlib import resources
from pathlib import Path
from typing import Any

import jinja2
import numpy as np
from numpy.typing import NDArray

from tdenoise.files.atomic import write_atomically
from tdenoise.files.json_documents import parse_json
from tdenoise.network.card import CURVE, ModelCard
from tdenoise.network.checkpoint import ModelError, read_card

from ..errors import InputError, UsageError
from ..inputs.model_fit import movie_brightness, movie_noise
from ..inputs.paired import open_pair
from ..resources import memory
from ..settings.result_settings import EvaluateConfig, ReportConfig
from ..step_control import Control
from ..store import store
from . import evaluate, figures, frame_checks, sentences
from .estimates import NoiseLaw, noise_law
from .evaluation_result import Evaluation
from .truth import MOVING_AVERAGE, load_truth

Array = NDArray[Any]

CANDIDATES = 64  # frames looked at in search of the one where most changes
CANDIDATE_PIXELS = 512  # extent of the part looked at, in the middle
CONTRAST_PERCENT = (0.3, 99.7)  # of the denoised pictures: shown black and white


def write_report(config: ReportConfig, control: Control | None = None) -> Evaluation:
    """Measure a denoised movie and write the page, and its main picture as a PNG file beside it.

    Parameters
    ----------
    config : ReportConfig
    control : Control, optional

    Returns
    -------
    Evaluation
        What `tdenoise_pipeline.evaluate.evaluate` measured.

    Raises
    ------
    UsageError
        If the page or its picture exists already, or the page is named as a picture is.
    InputError
        If stores, truth or model are missing or damaged, or do not belong together.
    """
    control = control or Control()
    if config.output.suffix.lower() == ".png":
        raise UsageError(f"{config.output}: names a picture. Name a page, such as REPORT.html.")
    picture_file = config.output.with_suffix(".png")
    for file in (config.output, picture_file):
        if file.exists() and not config.force:
            raise UsageError(f"{file}: exists already. Choose another name, or --force to replace it.")
    movie, denoised = open_pair(config.movie, config.denoised)
    memory.check_evaluate(movie, truth=config.truth is not None, report=True)
    training = None if config.model is None else read_training(config.model, denoised)
    settings = EvaluateConfig(config.denoised, config.movie, config.truth, config.baseline, config.model)
    result, maps = evaluate.measure(settings, control)
    control.progress("report", 0, 1)
    truth = None if config.truth is None else load_truth(config.truth, movie)
    clean = None if truth is None else lambda k: truth.level * truth.clean[k]
    page, picture = render(movie, denoised, result, maps, training, clean)
    config.output.parent.mkdir(parents=True, exist_ok=True)
    write_atomically(picture_file, picture)
    write_atomically(config.output, page.encode())
    control.progress("report", 1, 1)
    return result


@dataclass(frozen=True)
class Training:
    """What is known of the training of a model."""

    card: ModelCard
    history: list[dict[str, Any]]  # a record for each validation


def read_training(folder: Path, denoised: store.Store) -> Training:
    """The card of the model and its history, checked to be that of the denoised movie."""
    try:
        card = read_card(folder)
    except ModelError as error:
        raise InputError(*str(error).split(": ", 1)) from None
    if card["sha256"] != denoised.attributes["model"]["id"]:
        raise InputError(folder, f"is not the model that made {denoised.path}.")
    file = folder / CURVE
    try:
        history = [parse_json(line) for line in file.read_text().splitlines()]
        history = [
            {k: float(r[k]) for k in ("step", "loss", "held_out")}
            | ({"candidate": str(r["candidate"])} if "candidate" in r else {})
            for r in history
        ]
    except FileNotFoundError:
        history = []  # a model from elsewhere may come without
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise InputError(file, f"is not a history of a training ({error})") from None
    return Training(card, history)


def render(
    movie: store.Store,
    denoised: store.Store,
    result: Evaluation,
    maps: evaluate.Pictures,
    training: Training | None,
    clean: Callable[[int], Array] | None = None,
) -> tuple[str, bytes]:
    """The page as text, and the picture of one frame in a row as PNG."""
    brightness = movie_brightness(movie)
    valid = np.ones(movie.shape[0], dtype=bool) if brightness is None else brightness.valid
    sound = np.flatnonzero(valid)
    numbers = {"first": int(sound[0]), "middle": int(sound[len(sound) // 2]), "last": int(sound[-1])}
    busiest = most_changing(denoised, valid)
    noise = noise_law(movie)
    moments = [moment(movie, denoised, noise, k, f"{name} frame") for name, k in numbers.items()]
    closest = moment(movie, denoised, noise, busiest, "frame where most changes")
    look = choose_look(movie, [*moments, closest])
    history = [] if training is None else training.history
    best_step = 0 if training is None else training.card.get("best_step", 0)
    environment = jinja2.Environment(autoescape=True, undefined=jinja2.StrictUndefined, trim_blocks=True)
    environment.filters |= {"number": number, "percent": percent, "decimals": decimals}
    template = resources.files(__package__).joinpath("report.html.jinja").read_text(encoding="utf-8")
    page = environment.from_string(template).render(
        movie=movie,
        denoised=denoised,
        result=result,
        error=sentences.error_in_words(result, result["blind"]),
        explained=sentences.explained_in_words(result["explained"]),
        refuted=sentences.refuted_in_words(result["refuted"]),
        lattice=sentences.lattice_in_words(result["lattice"]),
        knowable=sentences.knowable_in_words(result["knowable"]) if result["knowable"] else "",
        evidence=sentences.evidence_in_words(result["evidence"]) if result["evidence"] else "",
        uncertainty=sentences.uncertainty_in_words(result["uncertainty"]) if result["uncertainty"] else "",
        events=sentences.events_of(result) if "events" in result else {},
        checks=sentences.checks_in_words(result["model_checks"]) if result["model_checks"] else [],
        noise=movie_noise(movie),
        look=look,
        pictures={
            "closest": figures.moments([closest], look, MOVING_AVERAGE, columns=2),
            "moments": figures.moments(moments, look, MOVING_AVERAGE, columns=4),
            "mean": figures.mean_frame(figures.shrink(maps.mean), look),
            "refuted": figures.refuted(maps.refuted, result["refuted"]),
            "residual": figures.residual(result["residual"]),
            "evidence": evidence_picture(movie, denoised, noise, result, busiest, look, clean),
            "checks": figures.model_checks(result["model_checks"]) if result["model_checks"] else None,
            "training": figures.training(history, best_step) if len(history) > 1 else None,
        },
        busiest=busiest,
        shrunk=figures.shrink_factor(movie.shape),
        removed_range=figures.RESIDUAL_RANGE,
        average=MOVING_AVERAGE,
        provenance=provenance(movie, denoised, training),
        everything=json.dumps(result, indent=1),
    )
    single = replace(closest, label=f"frame {busiest}")
    return page, figures.decode(figures.moments([single], look, MOVING_AVERAGE, columns=4))


def most_changing(denoised: store.Store, valid: NDArray[np.bool_] | None = None) -> int:
    """The frame around which the denoised movie changes most, of some spread over it."""
    n_frames = denoised.shape[0]
    middle = [
        slice(max(0, (n - CANDIDATE_PIXELS) // 2), (n + CANDIDATE_PIXELS) // 2) for n in denoised.shape[1:]
    ]
    # Not at the ends, where a frame changes because its neighbours are missing on one side.
    edge = max(1, n_frames // 5)
    candidates = np.unique(np.linspace(edge, n_frames - 1 - edge, CANDIDATES).round().astype(int))
    if valid is not None:
        around = valid[candidates - 1] & valid[candidates] & valid[candidates + 1]
        candidates = candidates[around] if around.any() else np.flatnonzero(valid)[1:-1]

    def change(k: int) -> float:
        before, _, after = denoised.array[k - 1 : k + 2, middle[0], middle[1]]
        return float(np.mean((after - before) ** 2, dtype=np.float64))

    return int(max(candidates, key=change))


def moment(movie: store.Store, denoised: store.Store, noise: NoiseLaw, k: int, name: str) -> figures.Moment:
    """The pictures of one frame."""
    half = MOVING_AVERAGE // 2
    first = max(0, k - half)
    around = store.read_frames(movie, first, min(movie.shape[0], k + half + 1))
    smooth = store.read_frames(denoised, k, k + 1)[0]
    raw = around[k - first]
    deviation = np.sqrt(np.maximum(noise.gain * smooth, 1e-3) if noise.gain > 0 else noise.variance)
    time = movie.coordinates.frame_time_s
    when = f"{name}, {k}" if time is None else f"{name}, {k} ({k * time:.4g} s)"
    pictures = (raw, around.mean(axis=0), smooth, (raw - smooth) / deviation)
    return figures.Moment(when, *(figures.shrink(p) for p in pictures))


def evidence_picture(
    movie: store.Store,
    denoised: store.Store,
    noise: NoiseLaw,
    result: Evaluation,
    k: int,
    look: figures.Look,
    clean: Callable[[int], Array] | None,
) -> str | None:
    """Raw, denoised and, with a truth, clean frame, beside what the counts say of it; None where that is unknown."""
    if result["knowable"] is None or result["evidence"] is None:
        return None
    raw, smooth = (store.read_frames(s, k, k + 1)[0] for s in (movie, denoised))
    distance = result["knowable"]["plane_distance_pixels"]
    found = frame_checks.evidence_of(raw / noise.gain, smooth / noise.gain, distance)
    frames = {"raw": raw, "denoised": smooth} | ({} if clean is None else {"clean": clean(k)})
    return figures.evidence(
        {name: figures.shrink(frame) for name, frame in frames.items()}, found.support, look
    )


def choose_look(movie: store.Store, shown: list[figures.Moment]) -> figures.Look:
    """One contrast for all pictures, from the denoised ones."""
    low, high = np.percentile(np.stack([m.denoised for m in shown]), CONTRAST_PERCENT)
    size = movie.coordinates.pixel_size_nm
    factor = figures.shrink_factor(movie.shape)
    return figures.Look(
        float(low), float(high), factor * (1 if size is None else size[1]), "px" if size is None else "nm"
    )


def provenance(
    movie: store.Store, denoised: store.Store, training: Training | None
) -> dict[str, dict[str, str]]:
    """Where everything came from, as groups of names and values."""
    source, made = movie.attributes["source"], denoised.attributes
    model: dict[str, Any] = {**made["model"]}
    if training is not None:
        card = training.card
        model |= {key: card.get(key) for key in ("steps", "best_step", "seed", "parent", "architecture")}
        model |= {f"training {k}": v for k, v in card.get("software", {}).items()}
    groups = {
        "Source": {key: value for key, value in source.items() if key != "metadata"},
        "Movie store": {
            "name": movie.path.name,
            "id": movie.id,
            "shape": movie.shape,
            "type": str(movie.array.dtype),
            "corrections": movie.attributes["corrections"],
            **_prefixed("software", movie.attributes["software"]),
        },
        "Model": model,
        "Denoised store": {
            "name": denoised.path.name,
            "id": denoised.id,
            **_prefixed("setting", made["settings"]),
            "devices": made["devices"],
            **_prefixed("software", made["software"]),
        },
    }
    return {name: {key: _plainly(value) for key, value in group.items()} for name, group in groups.items()}


def _plainly(value: Any) -> str:
    if value is None or value == []:
        return "–"
    if isinstance(value, list | tuple) and all(isinstance(v, str | int) for v in value):
        return ", ".join(map(str, value))
    return json.dumps(value) if isinstance(value, list | tuple | dict) else str(value)


def _prefixed(prefix: str, values: Mapping[str, Any]) -> dict[str, Any]:
    return {f"{prefix} {key}": value for key, value in values.items()}


def number(value: float | None, digits: int = 3) -> str:
    """A number for people, an en dash where there is none.

    Examples
    --------
    >>> number(-0.0123456), number(1234.0), number(None)
    ('−0.0123', '1,234', '–')
    """
    return _typeset(None if value is None else sentences.number(value, digits))


def percent(value: float | None, digits: int = 3) -> str:
    """A share in percent, an en dash where there is none."""
    return _typeset(None if value is None else sentences.percent(value, digits))


def decimals(value: float | None, places: int = 2) -> str:
    """A number with a fixed number of decimals, an en dash where there is none."""
    return _typeset(None if value is None else f"{value:.{places}f}")


def _typeset(text: str | None) -> str:
    return "–" if text is None or text.startswith("nan") else text.replace("-", "−")
