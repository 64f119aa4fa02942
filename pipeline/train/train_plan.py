"""The plan of a training: the network, its settings, and the movies that it learns from, known before it starts."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from tdenoise.network import checkpoint, torch_setup
from tdenoise.network.card import ModelCard
from tdenoise.network.registry import Architecture, architecture_of, build, kind, kind_of
from tdenoise.network.split_blind import Architecture as SplitBlindArchitecture
from tdenoise.noise import thinning
from tdenoise.noise.noise import NoiseStatistics, choose, widest
from tdenoise.training.candidates import CANDIDATES, SHARE
from tdenoise.training.patches import POOL_BYTES
from tdenoise.training.regions import REGION_FRAMES, REGION_PIXELS
from tdenoise.training.train import TrainingSettings
from tdenoise.training.training_movie import hold_out

from ..errors import InputError, UsageError
from ..inputs.gamma_head import check_gamma, has_gamma_head
from ..inputs.model_fit import movie_drift, movie_noise, movie_pixel_size_nm, open_model
from ..resources import memory
from ..settings.denoise_settings import TrainConfig
from ..settings.results import SCRATCH, SHIPPED
from ..store import integrity, store
from .material import Material, Stores

FAR_BINS = (1, 2, 4, 8)  # sections of 20 frames, from the centre outwards
FAR_LEAST_FRAMES = 100  # of a movie
UNLIMITED = 10**9  # steps, where the time limit ends the training
LEAST_STEPS, LEAST_TIME_S = 100, 60.0  # to compare candidates; in less, none of them learns much
REGION_BYTES = (
    2 * (REGION_FRAMES + 40) * (REGION_PIXELS + 96) ** 2
)  # of 16-bit counts, with what is around it
GAIN_SHARE = 0.15  # of the time, when a model is adapted
REHEARSED_GAIN_SHARE = 0.05  # who rehearses forgets little: all weights may learn sooner, as fast as new ones


@dataclass(frozen=True)
class Plan:
    """Everything that decides the model, known before training starts."""

    movies: Sequence[store.Store]
    architecture: Architecture
    reason: str  # why it is blind as it is
    settings: TrainingSettings
    device: str
    start: Path | None  # the model whose weights are adapted
    parent: ModelCard | None  # its card
    ignore_drift: bool  # as `apply` then does, too
    rehearses: bool  # simulated scenes beside the movies
    compares: bool  # several ways to a model, before one of them goes on; see `tdenoise.training.candidates`
    identity: dict[str, Any]
    material: Material | None = None  # where the movies are those of an archive

    def drift(self, movie: store.Store) -> NDArray[np.float64] | None:
        """Of the scene of a movie, which windows follow; None where they do not."""
        return None if self.ignore_drift else movie_drift(movie, self.architecture)

    def held_out(self, number: int) -> tuple[int, ...]:
        """Frames of a movie that are never a target."""
        if self.material is not None:
            return self.material.held_out[number]
        return hold_out(self.movies[number].shape[0])

    @property
    def memory_bytes(self) -> int:
        """Memory that the training will need."""
        at_once = 0 if self.material is None else self.settings.batch
        return memory_bytes(self.movies, self.rehearses, at_once)

    @property
    def n_devices(self) -> int:
        """GPUs to use here, or 1 for the processor, of which one process uses all cores."""
        return torch.cuda.device_count() if self.device == "cuda" else 1


def make_plan(config: TrainConfig, material: Material | None = None) -> Plan:
    """Check the movies and choose what the settings leave open."""
    movies = _opened(config, material)
    device = checkpoint.default_device() if config.device == "auto" else config.device
    if not checkpoint.is_usable(device):
        raise UsageError(
            f"--device {device}, but no such GPU is usable here. Use --device cpu, or ask for a GPU node."
        )
    given = None if config.from_model in (None, SCRATCH, SHIPPED) else config.from_model
    architecture, reason = choose_architecture(
        config, movies, None if given is None else open_model(given).card, material
    )
    start = _start(config, given, architecture)
    parent = None if start is None else open_model(start).card
    _check_noise(config, movies, architecture)
    rehearses = not config.movie_only and _can_rehearse(architecture, parent)
    settings = _settings(config, architecture, device, parent is not None, rehearses)
    drifts = [None if config.ignore_drift else _hash(movie_drift(movie, architecture)) for movie in movies]
    long_enough = settings.steps >= LEAST_STEPS and (config.time_limit or LEAST_TIME_S) >= LEAST_TIME_S
    compares = rehearses and config.from_model is None and long_enough
    identity = _identity(movies, architecture, settings, parent)
    if compares:
        identity["candidates"] = [SHARE, *(candidate.name for candidate in CANDIDATES)]
    if rehearses:
        identity["rehearses"] = [movie_pixel_size_nm(movie) for movie in movies]
    if any(drift is not None for drift in drifts):
        identity["drifts"] = drifts
    if material is not None:
        stride = architecture.stride
        settings = replace(settings, patch=min(settings.patch, -(-material.largest // stride) * stride))
        identity |= {"mix": asdict(material.mix), "held_out": [list(held) for held in material.held_out]}
    return Plan(
        movies,
        architecture,
        reason,
        settings,
        device,
        start,
        parent,
        config.ignore_drift,
        rehearses,
        compares,
        identity,
        material,
    )


def _hash(drift: NDArray[np.float64] | None) -> str | None:
    return None if drift is None else integrity.content_hash(drift)


def _opened(config: TrainConfig, material: Material | None) -> Sequence[store.Store]:
    """The movies, every shard of which is there."""
    movies: Sequence[store.Store] = Stores(config.movie)
    if material is None:
        movies = list(movies)
    ids = set()
    for movie in movies:
        movie.array.check_all()  # a short training may never come to the shard that is lost
        ids.add(movie.id)
    if len(ids) < len(movies):
        raise UsageError("you gave the same movie twice. Name each movie once.")
    return movies


def _start(config: TrainConfig, given: Path | None, architecture: Architecture) -> Path | None:
    """The model whose weights are adapted; None where they are new."""
    start = given
    if config.from_model in (None, SHIPPED) and kind_of(architecture) == "split-blind":
        start = checkpoint.BASE
    if config.from_model == SHIPPED and start is None:
        raise UsageError(f"--from base: the model that comes with tdenoise is not {kind_of(architecture)}.")
    return start


def _settings(
    config: TrainConfig, architecture: Architecture, device: str, adapts: bool, rehearses: bool
) -> TrainingSettings:
    own = kind(kind_of(architecture))
    learning_rate = own.learning_rate or TrainingSettings.learning_rate
    usual = TrainingSettings.batch, TrainingSettings.patch
    batch, patch = own.cpu_batch or usual if device == "cpu" else usual
    return TrainingSettings(
        batch=batch,
        patch=patch,
        steps=config.steps or (TrainingSettings.steps if config.time_limit is None else UNLIMITED),
        time_limit_s=config.time_limit,
        seed=config.seed,
        learning_rate=learning_rate / (4 if adapts and not rehearses else 1),
        gain_share=None if not adapts else REHEARSED_GAIN_SHARE if rehearses else GAIN_SHARE,
        mixed_precision=device == "cuda" or torch_setup.fast_bfloat16(device),
        least_dose=config.least_dose,
    )


def _identity(
    movies: Sequence[store.Store],
    architecture: Architecture,
    settings: TrainingSettings,
    parent: ModelCard | None,
) -> dict[str, Any]:
    """What tells one training from another."""
    # Not the precision and the device: a job that is queued again may land on another kind of node.
    decisive = {k: v for k, v in asdict(settings).items() if k != "mixed_precision"}
    if settings.least_dose == 1:
        del decisive["least_dose"]  # as in plans of versions that did not know it
    return {
        "step": "train",
        "movies": [movie.id for movie in movies],
        "architecture": architecture.to_json(),
        "settings": decisive,
        "parent": None if parent is None else parent["sha256"],
    }


def describe_plan(config: TrainConfig, material: Material | None = None) -> dict[str, Any]:
    """What ``--dry-run`` prints."""
    plan = make_plan(config, material)
    for movie in plan.movies:
        movie_noise(movie)
    return {
        **plan.identity,
        "reason": plan.reason,
        "device": plan.device,
        "n_parameters": sum(p.numel() for p in build(plan.architecture).parameters()),
        "held_out": [list(plan.held_out(number)) for number in range(len(plan.movies))],
        "memory_bytes": plan.memory_bytes,
    }


def memory_bytes(movies: Sequence[store.Store], rehearses: bool, at_once: int = 0) -> int:
    """Memory that a training will need, whatever the number of movies."""
    held = sum(len(hold_out(m.shape[0])) * m.shape[1] * m.shape[2] for m in movies)
    n_bytes = sum(int(np.prod(m.shape)) * m.array.dtype.itemsize for m in movies)
    # Of an archive, every patch of a batch has a region of another movie.
    return memory.train_bytes(held, min(n_bytes, max(POOL_BYTES, at_once * REGION_BYTES)), rehearses)


def choose_architecture(
    config: TrainConfig,
    movies: Sequence[store.Store],
    parent: ModelCard | None,
    material: Material | None = None,
) -> tuple[Architecture, str]:
    """The parent's architecture, or the standard one with a blind spot that fits the noise; and why.

    UDVD has the blind spot of the script that is used for it, 3 x 3 pixels, whatever the noise. The head may be
    another one than the parent's.
    """
    architecture, reason = _choose_blindness(config, movies, parent)
    if (config.far_frames or architecture.far_bins) and material is not None:
        raise UsageError(
            "a model for an archive sees no far frames. Remove --far-frames, or start from another model."
        )
    if config.far_frames or architecture.far_bins:
        architecture = _with_far_frames(config, movies, architecture)
    if config.head is None:
        return architecture, reason
    if isinstance(architecture, SplitBlindArchitecture) and architecture.centre == "blind":
        return replace(architecture, head=config.head), reason
    if config.head == "gamma":
        raise UsageError(f"--head gamma: only a split-blind model can have it, not {kind_of(architecture)}.")
    return architecture, reason


def _with_far_frames(
    config: TrainConfig, movies: Sequence[store.Store], architecture: Architecture
) -> Architecture:
    """The architecture, which also sees far frames."""
    if not isinstance(architecture, SplitBlindArchitecture) or architecture.centre != "blind":
        raise UsageError(f"--far-frames: only a split-blind model sees them, not {kind_of(architecture)}.")
    if config.least_dose < 1:
        raise UsageError("far frames and --least-dose: sums of frames are not thinned. Remove one of them.")
    for movie in movies:
        if movie.shape[0] < FAR_LEAST_FRAMES:
            raise InputError(
                movie.path,
                f"has {movie.shape[0]} frames; far frames need {FAR_LEAST_FRAMES} or more. Remove --far-frames, or "
                "start from another model.",
            )
    return replace(architecture, far_bins=architecture.far_bins or FAR_BINS)


def _choose_blindness(
    config: TrainConfig, movies: Sequence[store.Store], parent: ModelCard | None
) -> tuple[Architecture, str]:
    if parent is not None:
        inherited = architecture_of(parent)
        if config.model not in (None, kind_of(inherited)):
            raise UsageError(f"--model {config.model}: the model given with --from is {kind_of(inherited)}.")
        if config.blind_radius not in (
            "auto",
            "frame" if inherited.blind_radius is None else inherited.blind_radius,
        ):
            raise UsageError("--blind-radius cannot change the blind spot of the model given with --from.")
        return inherited, "blind as the model given with --from"
    if config.model is not None and (choose_by_name := kind(config.model).choose) is not None:
        try:
            return choose_by_name(config.blind_radius)
        except ValueError as error:
            raise UsageError(str(error)) from None
    measured = [NoiseStatistics.from_json(m.attributes["noise"]) for m in movies if m.attributes["noise"]]
    choices = [choose(statistics) for statistics in measured]
    fitting = widest(choice.blind_radius for choice in choices)
    if config.blind_radius != "auto":
        wanted = None if config.blind_radius == "frame" else int(config.blind_radius)
        reason = f"--blind-radius {config.blind_radius}"
        if widest([wanted, fitting]) != wanted:
            advised = "frame" if fitting is None else fitting
            reason += f", less than the {advised} that the measured noise needs"
        return SplitBlindArchitecture(blind_radius=wanted), reason
    deciding = [choice.reason for choice in choices if choice.blind_radius == fitting]
    return SplitBlindArchitecture(blind_radius=fitting), deciding[0] if deciding else "the noise is not known"


def _can_rehearse(architecture: Architecture, parent: ModelCard | None) -> bool:
    """Whether simulated scenes taught the given weights, and can go on to do so.

    Noise that neighbours share is not simulated, and a clean frame does not tell a gamma head what counts tell.
    """
    if parent is None or not (parent.get("simulated") or parent.get("rehearsed")):
        return False
    is_split_blind = isinstance(architecture, SplitBlindArchitecture) and architecture.centre == "blind"
    return is_split_blind and architecture.blind_radius == 0 and not has_gamma_head(architecture)


def _check_noise(config: TrainConfig, movies: Sequence[store.Store], architecture: Architecture) -> None:
    """Refuse movies whose noise is not what the settings are for."""
    if kind_of(architecture) == "thinned":
        _check_thinning(movies, "--model thinned", "Use --model split-blind.")
    if config.least_dose < 1:
        _check_thinning(movies, "--least-dose", "Remove it.")
    if has_gamma_head(architecture):
        for movie in movies:
            check_gamma(movie, "--head gamma", "Use --head mean.")


def _check_thinning(movies: Sequence[store.Store], what: str, instead: str) -> None:
    """Refuse movies whose counts cannot be split into independent frames."""
    for movie in movies:
        refused = thinning.refusal(movie_noise(movie), movie.attributes["detector"]["counts_per_electron"])
        if refused is not None:
            raise InputError(movie.path, f"{what} is not valid here: {refused}. {instead}")
