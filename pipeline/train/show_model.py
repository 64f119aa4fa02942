"""Show what a model is: its card, its size and what it was trained on."""

from __future__ import annotations

from tdenoise.network.card import ModelCard
from tdenoise.network.registry import kind
from tdenoise.noise.drift import MAX_SHIFT

from ..inputs.model_fit import open_model
from ..settings.result_settings import ModelsShowConfig


class ShownModel(ModelCard):
    """A card, and what only the weights tell."""

    n_parameters: int


def show_model(config: ModelsShowConfig) -> ShownModel:
    """The card of a model whose weights are whole, with the number of its parameters.

    Raises
    ------
    InputError
        If it is missing or damaged.
    """
    model = open_model(config.model)
    architecture = model.network.architecture
    return {
        **model.card,
        "halo": {"frames": architecture.window, "pixels": architecture.spatial_halo},
        "n_parameters": sum(p.numel() for p in model.network.parameters()),
    }


def summary(card: ShownModel) -> list[str]:
    """The main facts of a card, a line each."""
    # Blocks of a drifting movie are read with so many more.
    follows = kind(card["kind"]).follows_drift and not card.get("ignore_drift", False)
    further = f", {MAX_SHIFT} more where the scene drifts" if follows else ""
    lines = [
        f"model {card['sha256'][:12]}: {card['kind']}, {card['n_parameters']:,} parameters",
        f"never sees: {_hidden(card)}",
        f"sees: {card['halo']['frames']} frames to each side, at most {card['halo']['pixels']} pixels away"
        + further,
    ]
    if "imported" in card:
        lines.append(
            f"imported from: {card['imported']['name']} (sha256 {card['imported']['sha256'][:12]}); "
            "what it was trained on is not known"
        )
    if learned := card.get("learned"):
        lines.append(
            f"version {learned['version']} of the model of {learned['archive']}, from {learned['from']}"
        )
    if card.get("simulated"):
        lines.append("trained on: simulated movies")
    for movie in card["movies"]:
        lines.append(
            f"trained on: {movie.get('name', movie['id'][:12])} (signal to noise ratio {movie['snr']:.3g} per "
            f"pixel, {len(movie['held_out'])} frames held out)"
        )
    if card["ancestors"]:
        lines.append(f"before that on: {', '.join(m.get('name', m['id'][:12]) for m in card['ancestors'])}")
    if "best_step" in card:  # of the model that comes with tdenoise no frames were held out
        lines.append(
            f"training: {card['steps']} steps, best at {card['best_step']}, held-out error "
            f"{card['metrics']['held_out_error']:.5f} of the noise variance"
        )
    return lines


def _hidden(card: ModelCard) -> str:
    radius = card["blind_radius"]
    if not isinstance(radius, int):
        return "the centre frame" if radius is None else "nothing is hidden"
    size = 2 * radius + 1
    pixels = "the pixel itself" if size == 1 else f"{size} x {size} pixels around it"
    return f"{pixels}, in {'all five frames' if card['kind'] == 'udvd' else 'the centre frame'}"
