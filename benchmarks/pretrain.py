"""Train the base model that comes with tdenoise, on simulated scenes only.

python benchmarks/pretrain.py --time-limit 60m -o base                                  from random weights
python benchmarks/pretrain.py --from tdenoise/base --seed 1 --time-limit 60m -o base     goes on, on other scenes

Half of what it learns from are movies of the simulator (Pt on CeO2), half are scenes of all kinds
(`tdenoise.simulation.varied_scenes`). The model's card holds command, seed and commit.
"""

from __future__ import annotations

import argparse
import logging
from concurrent.futures import ProcessPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any

from common import circumstances
from tdenoise_pipeline.settings import parse
from tdenoise_pipeline.version import VERSION

from tdenoise.network import checkpoint, torch_setup
from tdenoise.network.split_blind import Architecture
from tdenoise.training.patches import PatchLoader
from tdenoise.training.pretraining import DOSES, Scene, noisy, scene, varied_scene
from tdenoise.training.train import TrainingSettings, TrainingState, train

# Scenes of a whole field, scenes cut around changing columns, and scenes of all kinds.
FIELDS, CUTS, VARIED = 60, 160, 320
STEPS_PER_NOISE = 6000  # then counts are drawn anew, at new doses
POOL_BYTES = 12 * 2**30  # all scenes at once

log = logging.getLogger("pretrain")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("-o", "--output", type=Path, required=True, help="model folder to write")
    parser.add_argument("--time-limit", type=parse.seconds, default=3600.0)
    parser.add_argument("--scenes", type=float, default=1.0, help="share of the usual number of scenes")
    parser.add_argument("--seed", type=int, default=0, help="of scenes and noise")
    parser.add_argument("--from", type=Path, dest="start", help="model whose weights are trained further")
    parser.add_argument("--learning-rate", type=float, default=3e-3)
    parser.add_argument("--threads", type=int, default=1, help="cores that share every batch")
    options = parser.parse_args()
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s")

    made_by = {k: v for k, v in circumstances().items() if k in ("command", "commit", "date", "device")}
    scenes = make_scenes(options.scenes, options.seed)
    device = checkpoint.default_device()
    torch_setup.prepare(n_threads=1)
    settings = TrainingSettings(
        steps=10**9,
        time_limit_s=options.time_limit,
        learning_rate=options.learning_rate,
        average=0.999,
        validate_every=500,
        patience=10**9,
        seed=options.seed,
        mixed_precision=device == "cuda" or torch_setup.fast_bfloat16(),
    )
    architecture = Architecture()
    parent = None if options.start is None else checkpoint.load_model(options.start)
    state = TrainingState.start(
        architecture, settings, device, None if parent is None else parent.network.state_dict()
    )
    while state.elapsed_s < options.time_limit:
        round_ = state.step // STEPS_PER_NOISE
        movies = [
            noisy(made, seed=(options.seed * 100 + round_) * 10**5 + number)
            for number, made in enumerate(scenes)
        ]
        loader = PatchLoader(movies, architecture, seed=options.seed + round_, pool_bytes=POOL_BYTES)
        end = (round_ + 1) * STEPS_PER_NOISE
        before = state.step
        for record in train(
            state,
            loader,
            lambda network: 0.0,  # nothing is held out: every patch has new noise
            settings,
            device,
            stopped=lambda end=end: state.step >= end,
            n_threads=options.threads,
        ):
            log.info("step %d, loss %.5f, %.0f s", record["step"], record["loss"], record["elapsed_s"])
        state.best, state.best_step = state.averaged, state.step
        save(options.output, state, len(scenes), parent, {**made_by, "seed": options.seed})
        if state.step == before:  # time is up
            break


def make_scenes(share: float, seed: int) -> list[Scene]:
    """Scenes without noise, on all cores."""
    fields, cuts, others = (max(1, round(share * number)) for number in (FIELDS, CUTS, VARIED))
    cut = partial(scene, n_frames=80, size=96, at_events=True)
    with ProcessPoolExecutor() as pool:
        first = 10**6 * seed
        made = [
            *pool.map(scene, range(first, first + fields)),
            *pool.map(cut, range(first, first + cuts)),
            *pool.map(varied_scene, range(first, first + others)),
        ]
    log.info("%d scenes", len(made))
    return made


def save(
    folder: Path,
    state: TrainingState,
    n_scenes: int,
    parent: checkpoint.Model | None,
    made: dict[str, Any],
) -> None:
    """Write the model with what a card tells."""
    checkpoint.save_model(
        folder,
        state.averaged,
        {
            "movies": [],
            "ancestors": [],
            "simulated": {
                "scenes": n_scenes,
                "doses": f"{DOSES[0][0]} to {DOSES[1][1]} electrons per pixel and frame",
                **made,
                "made_by": "benchmarks/pretrain.py",
            },
            "steps": state.step,
            "parent": None if parent is None else parent.card["sha256"],
            # How those before it were made, the first of all first.
            "lineage": [] if parent is None else [*parent.card.get("lineage", []), made_as(parent.card)],
            "metrics": {"elapsed_s": state.elapsed_s},
            "software": VERSION,
        },
    )


def made_as(card: dict[str, Any]) -> dict[str, Any]:
    """What a card tells of the making of its model."""
    told = {key: card.get(key) for key in ("sha256", "parent", "steps")}
    return told | {key: card["simulated"].get(key) for key in ("command", "commit", "seed", "made_by")}


if __name__ == "__main__":
    main()
