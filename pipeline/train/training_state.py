"""The checkpoint of a training: all its state as bytes, written so that a crash leaves the previous one."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load as load_tensors
from safetensors.torch import save as save_tensors

from tdenoise.files.atomic import SEAL, is_sealed, patiently, seal, write_atomically
from tdenoise.files.json_documents import parse_json
from tdenoise.network.registry import Network
from tdenoise.training.train import TrainingState

from ..files.fault_points import maybe_crash


def snapshot(state: TrainingState, path: Path, allowed: Callable[[], None] = lambda: None) -> None:
    """Write a checkpoint, unless ``allowed`` raises; a crash while writing leaves the previous one."""

    def before() -> None:
        maybe_crash("checkpoint.synced")
        allowed()

    write_atomically(path, seal(state_bytes(state)), before)
    maybe_crash("checkpoint.written")


def state_bytes(state: TrainingState) -> bytes:
    """A training state as safetensors, with a place for a seal."""
    tensors: dict[str, torch.Tensor] = {}
    networks = {"network": state.network, "averaged": state.averaged, "best": state.best}
    for prefix, network in networks.items():
        tensors |= {f"{prefix}.{k}": v.detach().cpu().contiguous() for k, v in network.state_dict().items()}
    moments = state.optimizer.state_dict()["state"]
    for number, values in moments.items():
        tensors |= {
            f"optimizer.{number}.{k}": v.detach().cpu().contiguous().clone() for k, v in values.items()
        }
    rest = {
        "step": state.step,
        "elapsed_s": state.elapsed_s,
        "best_step": state.best_step,
        "best_error": state.best_error if math.isfinite(state.best_error) else None,
        "annealing_since": state.annealing_since,
        "history": state.history,
        "done": state.done,
    }
    return save_tensors(tensors, {"state": json.dumps(rest), "seal": SEAL})


def restore(state: TrainingState, path: Path) -> bool:
    """Fill a fresh state from a checkpoint; False if that is damaged: the state is not to be used then."""
    data = patiently(path.read_bytes)
    if not is_sealed(data):
        return False
    try:
        fill(state, data)
    except (SafetensorError, KeyError, ValueError, RuntimeError):  # of another version
        return False
    return True


def fill(state: TrainingState, data: bytes) -> None:
    """Fill a fresh state from what `state_bytes` gave."""
    tensors = load_tensors(data)
    header = parse_json(data[8 : 8 + int.from_bytes(data[:8], "little")])
    rest = parse_json(header["__metadata__"]["state"])
    networks: dict[str, Network] = {
        "network": state.network,
        "averaged": state.averaged,
        "best": state.best,
    }
    for prefix, network in networks.items():
        network.load_state_dict(_under(tensors, prefix))
    moments: dict[int, dict[str, torch.Tensor]] = {}
    for name, value in _under(tensors, "optimizer").items():
        number, _, key = name.partition(".")
        moments.setdefault(int(number), {})[key] = value
    optimizer = state.optimizer.state_dict()
    state.optimizer.load_state_dict({"state": moments, "param_groups": optimizer["param_groups"]})
    state.step = rest["step"]
    state.elapsed_s = rest["elapsed_s"]
    state.best_step = rest["best_step"]
    state.best_error = math.inf if rest["best_error"] is None else rest["best_error"]
    state.annealing_since = rest["annealing_since"]
    state.history = rest["history"]
    state.done = rest["done"]


def _under(tensors: dict[str, torch.Tensor], prefix: str) -> dict[str, torch.Tensor]:
    return {k.removeprefix(prefix + "."): v for k, v in tensors.items() if k.startswith(prefix + ".")}
