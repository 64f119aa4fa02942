"""A new kind of network is one module and one line in the registry."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import xarray as xr
from small import counts, movie_store

MODULE = '''
"""The mean of the frame before and the frame after, times a number that is learnt."""
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import nn

from tdenoise.network.kind import Kind


@dataclass(frozen=True)
class MeanArchitecture:
    blind_radius: None = None
    kind: ClassVar[str] = "mean"
    window: ClassVar[int] = 1
    bins: ClassVar[tuple[int, ...]] = (1,)
    far_bins: ClassVar[tuple[int, ...]] = ()
    reach: ClassVar[int] = 1
    stride: ClassVar[int] = 1
    spatial_halo: ClassVar[int] = 0

    def scale(self, measured):
        return measured

    def memory_bytes(self, n_frames, height, width):
        return 8 * n_frames * height * width

    def to_json(self):
        return {"blind_radius": None}

    @classmethod
    def from_json(cls, values):
        return cls(**values)


class MeanNetwork(nn.Module):
    def __init__(self, architecture):
        super().__init__()
        self.architecture = architecture
        self.factor = nn.Parameter(torch.ones(1))

    def forward(self, neighbours, centre):
        return self.factor * neighbours.mean(dim=1, keepdim=True)

    def stream(self, frames, windows, turns=(0,)):
        for before, _, after in windows:
            yield len(turns) * self.factor * (frames[before] + frames[after]) / 2


KIND = Kind(MeanArchitecture, MeanNetwork, lambda blind_radius: (MeanArchitecture(), "it sees neighbours only"))
'''
PROGRAM = """
import sys
from typing import Literal
from tdenoise.network import kinds
# As if the line stood in the registry, which is read when it is imported.
kinds.KINDS["mean"] = "mean_network:KIND"
kinds.KindName = Literal[tuple(kinds.KINDS)]
from tdenoise_pipeline.cli import main
sys.exit(main(sys.argv[1:]))
"""


def test_a_new_kind_of_network_is_trained_applied_and_shown(tmp_path: Path) -> None:
    (tmp_path / "mean_network.py").write_text(MODULE)
    movie, model = movie_store(tmp_path, counts((40, 32, 48))), tmp_path / "model"

    def command(*words: object) -> str:
        path = os.pathsep.join([str(tmp_path), os.environ.get("PYTHONPATH", "")])
        done = subprocess.run(
            [sys.executable, "-c", PROGRAM, *map(str, words)],
            env={**os.environ, "PYTHONPATH": path},
            capture_output=True,
            text=True,
            timeout=240,
        )
        assert done.returncode == 0, done.stderr
        return done.stdout

    command("train", movie, "-o", model, "--model", "mean", "--steps", "3", "--device", "cpu", "-q")
    card = json.loads((model / "card.json").read_text())
    assert card["kind"] == "mean" and card["reason"] == "it sees neighbours only"
    assert "mean, 1 parameters" in command("models", "show", model)
    output = tmp_path / "d.zarr"
    command("apply", movie, "--model", model, "-o", output, "--share", "0/1", "--draft-only", "-q")
    frames, denoised = xr.open_zarr(movie)["counts"].values, xr.open_zarr(output)["denoised"].values
    mean = (frames[:-2].astype(float) + frames[2:]) / 2
    np.testing.assert_allclose(np.corrcoef(mean.ravel(), denoised[1:-1].ravel())[0, 1], 1, atol=1e-3)
