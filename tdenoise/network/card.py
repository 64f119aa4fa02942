"""The card of a model, field by field: ``card.json``, which says what the model is and how it was made."""

from __future__ import annotations

from typing import Any, Literal, NotRequired, TypedDict

CARD, WEIGHTS, CURVE = "card.json", "weights.safetensors", "metrics.jsonl"  # the files of a model


class TrainedMovie(TypedDict):
    """A movie that a model learned from."""

    id: str  # sha256 of the content of the movie store
    source: str  # sha256 of the raw movie
    name: NotRequired[str]  # of the movie store
    shape: NotRequired[list[int]]  # n_frames, height, width
    scale: NotRequired[dict[str, float]]  # `Scale`, field by field [counts]
    snr: float  # contrast over noise, per pixel
    held_out: list[int]  # frames that were never a target


class ImportedFile(TypedDict):
    """The file that the weights were imported from."""

    name: str
    sha256: str


class CandidatesCompared(TypedDict):
    """The ways to a model that were tried for a short time."""

    chosen: str  # name of the one that training went on with
    worse_by: dict[str, dict[str, float]]  # of each, in every kind of place: than the best [standard errors]


class KeptMetrics(TypedDict, total=False):
    """What was measured of the weights that are kept; errors in units of the noise variance."""

    candidates: CandidatesCompared  # where they were compared
    share: float  # of the change from the given weights, that is kept; where weights were given
    held_out_error: float  # mean squared difference to the counts of the held-out frames
    contradiction: float  # how far the held-out counts contradict what is shown
    held_out_nll: float  # negative log-likelihood per pixel; of a gamma head


class TrainingMetrics(KeptMetrics):
    """What was measured of a training."""

    elapsed_s: float  # time that it took [s]


class HaloOfCard(TypedDict):
    """What a block needs around it, where the movie does not drift."""

    frames: int  # before and after
    pixels: int  # to each side


class CardDetails(TypedDict):
    """How a model was made: what a training, an import or a simulation says of it."""

    movies: list[
        TrainedMovie
    ]  # learned from last; empty where the weights were imported, or scenes simulated
    ancestors: list[TrainedMovie]  # that the models it was adapted from learned from
    plan: NotRequired[str]  # sha256 of the plan that made it
    imported: NotRequired[ImportedFile]  # also of a model that was adapted from imported weights
    simulated: NotRequired[dict[str, Any]]  # scenes it learned from, and the program that made them
    lineage: NotRequired[list[dict[str, Any]]]  # how those before it were made, the first of all first
    settings: NotRequired[dict[str, Any]]  # `TrainingSettings`, field by field
    ignore_drift: NotRequired[bool]  # whether windows did not follow the drift, as `apply` then does, too
    rehearsed: NotRequired[bool]  # whether simulated scenes were shown beside the movies
    reason: NotRequired[str]  # why it is blind as it is
    steps: NotRequired[int]  # optimiser steps, of all stages
    best_step: NotRequired[int]  # whose weights are kept; only where frames were held out
    seed: NotRequired[int]
    device: NotRequired[str]  # "cpu" or "cuda"
    parent: NotRequired[str | None]  # sha256 of the model it was adapted from
    learned: NotRequired[dict[str, Any]]  # of a version of an archive's base model: its number, and from what
    chosen: NotRequired[dict[str, Any]]  # where the parent was chosen by itself: from what, and why
    metrics: NotRequired[TrainingMetrics]
    curve_sha256: NotRequired[str]  # of the file with the training curve
    software: NotRequired[dict[str, str]]  # versions of packages, by their names


class ModelCard(CardDetails):
    """All that a card says; `save_model` adds what the network and its weights tell."""

    profile: int  # version of the card's layout
    kind: str  # of network, one of `KINDS`
    architecture: dict[str, Any]  # as `to_json` of the architecture of this kind
    blind_radius: (
        int | Literal["seen"] | None
    )  # [pixels]; None hides the whole centre frame, "seen" hides nothing
    halo: HaloOfCard
    sha256: str  # of the weights file, which is the model's id
    seal: str  # sha256 of the card, apart from itself
