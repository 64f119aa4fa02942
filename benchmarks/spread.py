"""Teach the base model how uncertain it is, on simulated scenes only; what it predicts stays as it is.

How large the error of a good prediction is cannot be learnt from one noisy movie: at 2 electrons per pixel the noise is
a thousand times larger. With the clean frame at hand, the squared error itself is the target.

It writes tdenoise/base/spread.safetensors, which `train --head gamma` begins with. To be made anew with the base model.

python benchmarks/spread.py
"""

from __future__ import annotations

import argparse
from concurrent.futures import ProcessPoolExecutor
from dataclasses import replace
from functools import partial

import torch
from safetensors.torch import save

from tdenoise.files.atomic import write_atomically
from tdenoise.network import checkpoint, torch_setup
from tdenoise.network.split_blind import Architecture, SplitBlind
from tdenoise.noise.gamma_poisson import prior_variance
from tdenoise.training.patches import PatchLoader
from tdenoise.training.pretraining import noisy, scene

FIELDS, CUTS = 8, 24  # scenes
BATCHES = 60
PASSES = 2000  # of the optimiser over all that was collected
LEAST_ERROR = 1e-6  # in units of the noise variance, added to squared errors


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument(
        "--seed", type=int, default=10**7, help="of the first scene: other ones than in training"
    )
    options = parser.parse_args()
    torch_setup.prepare(n_threads=1)
    base = checkpoint.load_model(checkpoint.BASE)
    architecture = base.network.architecture
    assert isinstance(architecture, Architecture)
    network = SplitBlind(replace(architecture, head="gamma"))
    network.load_state_dict(network.state_dict() | base.network.state_dict())
    features, errors = collect(network.eval(), options.seed)
    fit(network, features, errors)
    layer = {name: value for name, value in network.state_dict().items() if name.startswith("spread.")}
    write_atomically(checkpoint.SPREAD, save(layer, {"base": base.id}))


@torch.inference_mode()
def collect(network: SplitBlind, seed: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Features of the last layer, shape (pixels, features), and squared errors in the unit of the output."""
    cut = partial(scene, n_frames=64, size=96, at_events=True)
    with ProcessPoolExecutor(2) as pool:
        cleans = [*pool.map(scene, range(seed, seed + FIELDS)), *pool.map(cut, range(seed, seed + CUTS))]
    movies = [noisy(clean, seed=seed + number) for number, clean in enumerate(cleans)]
    loader = PatchLoader(movies, network.architecture, seed=seed, pool_bytes=2**30)
    features, errors = [], []
    # With a last layer that leaves them as they are, the features come out.
    last = network.head
    width = last.in_channels
    network.head = torch.nn.Conv2d(width, width, 1)
    network.head.weight.data[:] = torch.eye(width)[:, :, None, None]
    network.head.bias.data.zero_()
    for step in range(BATCHES):
        batch = loader.draw(step)
        seen = network(batch.neighbours, batch.centre)[:, :width]
        inside = batch.weight[:, 0] > 0
        squares = (last(seen)[:, 0] - (batch.target / batch.contrast)[:, 0]).square()[inside]
        chosen = torch.randperm(len(squares), generator=torch.Generator().manual_seed(step))[:10_000]
        features.append(seen.movedim(1, -1)[inside][chosen])
        errors.append(squares[chosen])
    network.head = last
    return torch.cat(features).clone(), torch.cat(errors).clone()


def fit(network: SplitBlind, features: torch.Tensor, errors: torch.Tensor) -> None:
    """The spread layer for which the errors are likeliest."""
    assert network.spread is not None and network.spread.bias is not None
    weight = torch.zeros(features.shape[1], requires_grad=True)
    bias = (0.5 * errors.mean().log()).clone().requires_grad_()
    optimizer = torch.optim.Adam([weight, bias], lr=3e-3)
    for step in range(PASSES):
        rows = torch.randint(len(errors), (20_000,), generator=torch.Generator().manual_seed(step))
        variance = prior_variance(features[rows] @ weight + bias, 1.0)
        loss = (variance.log() + (errors[rows] + LEAST_ERROR) / variance).mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        if step % 200 == 0:
            print(f"step {step}, loss {float(loss.detach()):.4f}", flush=True)
    network.spread.weight.data[0, :, 0, 0] = weight.detach()
    network.spread.bias.data[0] = bias.detach()


if __name__ == "__main__":
    main()
