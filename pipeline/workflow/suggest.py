"""Which model of an archive is best for a movie: first by what the cards tell, then by the movie's own counts."""

from __future__ import annotations

import logging
import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tdenoise.network import checkpoint, torch_setup
from tdenoise.network.card import ModelCard
from tdenoise.network.registry import Architecture, architecture_of, kind_of
from tdenoise.noise.far_frames import n_sections
from tdenoise.noise.noise import choose, widest
from tdenoise.training.validation import HeldOut, Sums, compare

from ..archive.card import Card
from ..archive.facts import movie_facts
from ..archive.index import cards
from ..archive.place import place_of
from ..errors import InputError, UsageError
from ..inputs.bad_pixels import movie_stand_ins
from ..inputs.model_fit import movie_drift, movie_noise, movie_pixel_size_nm, open_model, signal_to_noise
from ..settings.archive_settings import ArchiveSuggestConfig
from ..settings.results import SHIPPED
from ..step_control import Control
from ..store import store
from ..train.train import training_movie

log = logging.getLogger(__name__)

CERTAIN = 2.0  # standard errors by which a model must be better than the one that comes with tdenoise
SIGNATURE = ("dose", "pixel_size_nm", "fano", "snr")  # what makes movies alike, each compared by its ratio


@dataclass(frozen=True)
class Candidate:
    """A model that may be good for the movie."""

    name: str
    id: str
    path: Path
    card: ModelCard
    distance: float | None  # of the nearest movie that it learned from [octaves]; None where nothing is known


def suggest(config: ArchiveSuggestConfig, control: Control | None = None) -> dict[str, Any]:
    """Rank the models of an archive, and the one that comes with tdenoise, for a movie.

    The cards tell which models learned from movies like this one: of its dose, pixel size, Fano factor and signal to
    noise ratio. The best few of these, and the model that comes with tdenoise, then predict frames of this movie
    without seeing them; who does so with the least error comes first.

    Parameters
    ----------
    config : ArchiveSuggestConfig
    control : Control, optional

    Returns
    -------
    dict
        ``movie``; ``models``, the best first, each with ``name``, ``id``, ``model`` (what to give as ``--model``),
        ``distance`` [octaves], ``error_above_best`` and ``standard_error`` (of the noise variance), ``learned_from_it``
        (whether it learned from this recording); ``not_tried``: those whose movies are less like this one;
        ``left_out``: the others, and why; ``suggested``: the ``model`` to use, None if none fits; ``reason``.

    Raises
    ------
    InputError
        If the movie or the archive is missing or damaged.
    """
    control = control or Control()
    movie = store.open_store(config.movie, store.MOVIE)
    everything = list(cards(config.archive))
    fitting, left_out = _candidates(movie, everything, config.archive)
    fitting.sort(key=lambda c: (math.inf if c.distance is None else c.distance, c.id))
    tried, not_tried = fitting[: config.try_models], fitting[config.try_models :]
    base = checkpoint.read_card(checkpoint.BASE)
    refused = refusal(movie, base)
    if refused is None:
        tried = [Candidate("base", base["sha256"], SHIPPED, base, None), *tried]
    else:
        left_out = [{"name": "base", "reason": refused}, *left_out]
    found: dict[str, Any] = {
        "movie": str(config.movie),
        "models": [],
        "not_tried": [{"name": c.name, "id": c.id, "distance": c.distance} for c in not_tried],
        "left_out": left_out,
        "suggested": None,
        "reason": "no model fits the noise of this movie: train one on it",
    }
    if tried:
        errors = _errors(movie, tried, config, control)
        ranked = rank(errors)
        own = {c.id: c for c in tried}
        found["models"] = [_told(own[id], movie, above, error) for id, above, error in ranked]
        chosen, found["reason"] = decide(errors, base["sha256"])
        found["suggested"] = str(own[chosen].path)
    return found


def rank(errors: Mapping[str, Sums]) -> list[tuple[str, float, float]]:
    """Models by their error on the same blocks of pixels.

    Returns
    -------
    list of (str, float, float)
        Of each model its id, by how much its error exceeds that of the best, and the standard error of that; the best
        first.
    """
    means = {id: float(s.errors.sum() / s.weights.sum()) for id, s in errors.items()}
    order = sorted(means, key=lambda id: (means[id], id))
    return [(id, *compare(errors[id], errors[order[0]])) for id in order]


def decide(errors: Mapping[str, Sums], base: str) -> tuple[str, str]:
    """The model to use, and why: the best, but the one that comes with tdenoise where that is not clearly worse."""
    best = rank(errors)[0][0]
    if base not in errors:
        return best, "it predicts this movie best; the model that comes with tdenoise does not fit its noise"
    if best == base:
        return (
            base,
            "no model of the archive predicts this movie better than the one that comes with tdenoise",
        )
    more, error = compare(errors[base], errors[best])
    if more <= CERTAIN * error:
        return base, (
            "the best model of the archive is not clearly better than the one that comes with tdenoise "
            f"({more:.2g} ± {error:.2g} of the noise variance)"
        )
    return best, (
        f"its error is lower than that of the model that comes with tdenoise by {more:.2g} ± {error:.2g} of the noise "
        "variance"
    )


def distance(one: Mapping[str, Any], other: Mapping[str, Any]) -> float | None:
    """How unlike two movies are: the root mean square of the ratios of what is known of both [octaves].

    Examples
    --------
    >>> distance({"dose": 1.0, "snr": 0.2}, {"dose": 4.0, "snr": 0.2, "fano": 1.0})
    1.4142135623730951
    """
    squares = [
        math.log2(one[key] / other[key]) ** 2
        for key in SIGNATURE
        if _is_ratio(one.get(key)) and _is_ratio(other.get(key))
    ]
    return math.sqrt(sum(squares) / len(squares)) if squares else None


def _is_ratio(value: Any) -> bool:
    return isinstance(value, int | float) and math.isfinite(value) and value > 0


def _candidates(
    movie: store.Store, everything: list[Card], archive: Path
) -> tuple[list[Candidate], list[dict[str, str]]]:
    """Models of the archive that can be compared on the movie, and the others with the reason."""
    known = {card["id"]: card for card in everything}
    own = {**movie_facts(movie.attributes, movie.path), **_measured(movie)}
    fitting, left_out = [], []
    for card in known.values():
        if card["kind"] != "model":
            continue
        try:
            place = place_of(card, archive)
            model = open_model(place).card
        except InputError as error:
            left_out.append({"name": card["name"], "reason": str(error)})
            continue
        if (refused := refusal(movie, model)) is not None:
            left_out.append({"name": card["name"], "reason": refused})
            continue
        source = movie.attributes["source"]["sha256"]
        if any(
            m["source"] == source and m["id"] != movie.id for m in [*model["movies"], *model["ancestors"]]
        ):
            reason = (
                "it learned from another cut of this recording, so the frames of this one cannot judge it"
            )
            left_out.append({"name": card["name"], "reason": reason})
            continue
        signatures = [_signature(learned, known) for learned in model["movies"]]
        distances = [d for s in signatures if (d := distance(own, s)) is not None]
        nearest = min(distances, default=None)
        fitting.append(Candidate(card["name"], card["id"], place, model, nearest))
    return fitting, left_out


def _measured(movie: store.Store) -> dict[str, Any]:
    pixel = movie_pixel_size_nm(movie)
    return {"snr": signal_to_noise(movie_noise(movie)), "pixel_size_nm": pixel}


def _signature(learned: Mapping[str, Any], known: Mapping[str, Card]) -> dict[str, Any]:
    """What is known of a movie that a model learned from: of its card, and of the model's own."""
    card = known.get(learned["id"], {})
    pixel = card.get("pixel_size_nm")
    size = None if pixel is None else math.sqrt(pixel[0] * pixel[1])
    return {**card, "pixel_size_nm": size, "snr": learned.get("snr")}


def refusal(movie: store.Store, model: ModelCard) -> str | None:
    """Why a model cannot be compared on this movie."""
    kind, radius = kind_of(architecture_of(model)), model["blind_radius"]
    if kind != "split-blind" or radius == "seen":
        return f"only split-blind models are compared, and it is {kind}"
    if architecture_of(model).far_bins and n_sections(movie.shape[0]) < 2:
        return "it sees far frames, and this movie has none"
    needed = choose(movie_noise(movie))
    if widest([radius, needed.blind_radius]) != radius:
        return f"its blind spot is too small for this movie: {needed.reason}"
    return None


def _errors(
    movie: store.Store, tried: list[Candidate], config: ArchiveSuggestConfig, control: Control
) -> dict[str, Sums]:
    """Error of every candidate over the same blocks of held-out frames."""
    torch_setup.prepare(n_threads=1)
    device = checkpoint.default_device() if config.device == "auto" else config.device
    if not checkpoint.is_usable(device):
        raise UsageError(
            f"--device {device}, but no such GPU is usable here. Use --device cpu, or ask for a GPU node."
        )
    noise, bad = movie_noise(movie), movie_stand_ins(movie)
    movie.array.check_all()
    samples: dict[tuple[Architecture, bool], HeldOut] = {}
    errors: dict[str, Sums] = {}
    for number, candidate in enumerate(tried):
        control.check("archive suggest")
        control.progress("archive suggest", number, len(tried))
        architecture = architecture_of(candidate.card)
        still = bool(candidate.card.get("ignore_drift"))
        key = (architecture, still)
        if key not in samples:
            drift = None if still else movie_drift(movie, architecture)
            shown = training_movie(movie, architecture, drift, noise, bad)
            samples[key] = HeldOut([shown], architecture, device, torch_setup.fast_bfloat16())
        place = checkpoint.BASE if candidate.path == SHIPPED else candidate.path
        errors[candidate.id] = samples[key].by_block(open_model(place).network.to(device), squares=True)
    control.progress("archive suggest", len(tried), len(tried))
    sizes = {s.weights.shape for s in errors.values()}
    if len(sizes) > 1:
        raise UsageError(
            f"{config.archive}: the models look at frames in too different ways to be compared on {movie.path}"
        )
    return errors


def _told(candidate: Candidate, movie: store.Store, above: float, error: float) -> dict[str, Any]:
    source = movie.attributes["source"]["sha256"]
    learned = [*candidate.card["movies"], *candidate.card["ancestors"]]
    return {
        "name": candidate.name,
        "id": candidate.id,
        "model": str(candidate.path),
        "distance": candidate.distance,
        "error_above_best": above,
        "standard_error": error,
        "learned_from_it": any(m["id"] == movie.id or m.get("source") == source for m in learned),
    }
