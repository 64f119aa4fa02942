"""Two versions of a model on frames that neither learned from, movie by movie; one movie is in memory at a time."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from itertools import combinations

from tdenoise.network import torch_setup
from tdenoise.network.registry import Network
from tdenoise.training.acceptance import Difference
from tdenoise.training.validation import HeldOut, compare

from ..settings.denoise_settings import TrainConfig
from ..step_control import Control
from .material import Material, for_judging
from .train import opened
from .train_plan import make_plan


@dataclass(frozen=True)
class Judged:
    """What was found on one movie.

    Attributes
    ----------
    id, name : str
        Of the movie store.
    earlier : bool
        Whether the old version learned from it.
    over : dict
        By names of two networks, the error of the second over that of the first.
    """

    id: str
    name: str
    earlier: bool
    over: dict[tuple[str, str], Difference]


@torch_setup.restored()
def judge(
    config: TrainConfig, material: Material, networks: Mapping[str, Network], control: Control
) -> Iterator[Judged]:
    """Compare networks of one architecture on the held-out frames of every movie that judge, not choose.

    Parameters
    ----------
    config : TrainConfig
        With the paths of the movies.
    material : Material
    networks : mapping of str to Network
        The oldest first.
    control : Control
    """
    torch_setup.prepare(n_threads=1)
    plan = make_plan(config, material)
    placed = {name: network.to(plan.device) for name, network in networks.items()}
    n_movies = len(plan.movies)
    for number, movie in enumerate(opened(plan, quiet=True)):
        control.check("train")
        control.progress("compare versions", number, n_movies)
        shown = replace(movie, held_out=for_judging(movie.held_out))
        held = HeldOut([shown], plan.architecture, plan.device, plan.settings.mixed_precision)
        sums = {name: held.by_block(network, squares=True) for name, network in placed.items()}
        yield Judged(
            plan.movies[number].id,
            plan.movies[number].path.name,
            material.mix.earlier[number],
            {(old, new): Difference(*compare(sums[new], sums[old])) for old, new in combinations(placed, 2)},
        )
    control.progress("compare versions", n_movies, n_movies)
