"""Models on disk: ``weights.safetensors`` and ``card.json``. Nothing is ever unpickled."""

from __future__ import annotations

import hashlib
import json
import re
from dataclasses import dataclass
from pathlib import Path
from typing import cast

import torch
from safetensors import SafetensorError
from safetensors.torch import load, save

from ..files.atomic import SEAL, is_sealed, seal, write_atomically
from ..files.json_documents import parse_json
from .card import CARD, WEIGHTS, CardDetails, ModelCard
from .kinds import KINDS
from .registry import Network, architecture_of, blind_radius, build, kind_of

PROFILE = 2  # version of the card's layout
BASE = (
    Path(__file__).parents[1] / "base"
)  # the model that comes with the package; see `tdenoise.training.pretraining`

SPREAD = BASE / "spread.safetensors"  # the second output of a gamma head on it; see benchmarks/spread.py


class ModelError(ValueError):
    """A model folder is missing, damaged or of another version."""


@dataclass(frozen=True)
class Model:
    """A trained network and its card."""

    network: Network
    card: ModelCard

    @property
    def id(self) -> str:
        """sha256 of the weights file, which is the model's name."""
        return self.card["sha256"]


def save_model(folder: Path, network: Network, details: CardDetails) -> ModelCard:
    """Write a model folder; the card is written last, by one rename.

    Parameters
    ----------
    folder : Path
        Created if missing.
    network : SplitBlind or Udvd
    details : CardDetails
        JSON-able.

    Returns
    -------
    ModelCard
        As written.
    """
    folder.mkdir(parents=True, exist_ok=True)
    weights = save({k: v.detach().cpu().contiguous() for k, v in network.state_dict().items()})
    architecture = network.architecture
    card: ModelCard = {
        "profile": PROFILE,
        "kind": kind_of(architecture),
        "architecture": architecture.to_json(),
        "blind_radius": blind_radius(architecture),
        "halo": {"frames": architecture.window, "pixels": architecture.spatial_halo},
        **details,
        "sha256": hashlib.sha256(weights).hexdigest(),
        "seal": SEAL,
    }
    write_atomically(folder / WEIGHTS, weights)
    document = seal((json.dumps(card, indent=1, sort_keys=True) + "\n").encode())
    write_atomically(folder / CARD, document)
    written: ModelCard = json.loads(document)
    return written


def read_card(folder: Path) -> ModelCard:
    """The card of a model folder.

    Raises
    ------
    ModelError
        If the folder holds no card of this version.
    """
    try:
        document = (folder / CARD).read_bytes()
        card = parse_json(document)
    except FileNotFoundError:
        raise ModelError(f"{folder}: holds no {CARD}, so it is not a (finished) model") from None
    except (ValueError, OSError) as error:
        raise ModelError(f"{folder / CARD}: cannot be read ({error})") from None
    if not isinstance(card, dict) or card.get("profile") != PROFILE or card.get("kind") not in tuple(KINDS):
        raise ModelError(f"{folder / CARD}: is not a {' or '.join(KINDS)} model of profile {PROFILE}")
    found = cast(ModelCard, card)
    try:
        _check_card(found)
    except (KeyError, TypeError, ValueError) as error:
        raise ModelError(f"{folder / CARD}: is damaged ({type(error).__name__}: {error})") from None
    if not is_sealed(document):
        raise ModelError(f"{folder / CARD}: was changed or damaged, its seal is not the sha256 of its text")
    return found


def _check_card(card: ModelCard) -> None:
    """Every entry that others rely on; raises whatever comes first."""
    architecture = architecture_of(card)
    if card["blind_radius"] != blind_radius(architecture) or not re.fullmatch("[0-9a-f]{64}", card["sha256"]):
        raise ValueError("its blind radius or its sha256 cannot be right")
    imported = card.get("imported")
    if imported is not None and not re.fullmatch("[0-9a-f]{64}", imported["sha256"]):
        raise ValueError("the sha256 of the file it was imported from cannot be right")
    if not card["movies"] and imported is None and not card.get("simulated"):
        raise ValueError("it names no training movie")
    for movie in (*card["movies"], *card["ancestors"]):
        if not (isinstance(movie["id"], str) and isinstance(movie["source"], str)):
            raise ValueError("the ids of its training movies are not text")
        if not (movie["snr"] > 0 and all(type(frame) is int for frame in movie["held_out"])):
            raise ValueError("what it says of its training movies is not a number")


def load_model(folder: Path, sha256: str | None = None) -> Model:
    """Load a model after checking its bytes against the sha256 in its card.

    Parameters
    ----------
    folder : Path
    sha256 : str, optional
        The model that is expected; another one in the same folder is refused.

    Raises
    ------
    ModelError
        If the folder is not a model, was damaged or changed, or is not the expected one.
    """
    card = read_card(folder)
    try:
        weights = (folder / WEIGHTS).read_bytes()
    except OSError as error:
        raise ModelError(f"{folder / WEIGHTS}: cannot be read ({error.strerror})") from None
    digest = hashlib.sha256(weights).hexdigest()
    if digest != card.get("sha256"):
        raise ModelError(f"{folder / WEIGHTS}: was changed or damaged, its sha256 is not the one in {CARD}")
    if sha256 is not None and digest != sha256:
        raise ModelError(f"{folder}: holds model {digest[:12]}, not the expected {sha256[:12]}")
    try:
        architecture, tensors = architecture_of(card), load(weights)
        with torch.device("meta"):  # a card may claim any size: compare before memory is taken
            expected = {k: v.shape for k, v in build(architecture).state_dict().items()}
        if expected != {k: v.shape for k, v in tensors.items()}:
            raise ValueError("names or shapes of the tensors differ")
        if not all(torch.isfinite(tensor).all() for tensor in tensors.values()):
            raise ValueError("the weights hold NaN or Inf")
        network = build(architecture)
        network.load_state_dict(tensors)
    except (SafetensorError, RuntimeError, ValueError, KeyError, TypeError) as error:
        reason = " ".join(str(error).split())[:200]
        raise ModelError(f"{folder}: weights and card do not fit together ({reason})") from None
    return Model(network.eval().requires_grad_(False), card)


def base_spread() -> dict[str, torch.Tensor]:
    """Weights of the layer that tells how uncertain the base model is, where it is given a gamma head."""
    return load(SPREAD.read_bytes())


def default_device() -> str:
    """The accelerator of this machine as torch calls it, such as ``cuda`` or Apple's ``mps``; else ``cpu``."""
    found = torch.accelerator.current_accelerator(check_available=True)
    return "cpu" if found is None else found.type


def is_usable(device: str) -> bool:
    """Whether torch can compute there."""
    return device in ("cpu", default_device())
