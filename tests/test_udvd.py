"""UDVD: what is computed is what the description says, however it is computed."""

from __future__ import annotations

import json
import os
from collections import OrderedDict
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from small import counts, model_folder, movie_store
from tdenoise_pipeline.cli import command_line
from tdenoise_pipeline.inputs.model_fit import movie_scale
from tdenoise_pipeline.settings.config import TrainConfig
from tdenoise_pipeline.store import store
from tdenoise_pipeline.store.blocks import Halo, plan_blocks
from tdenoise_pipeline.train import train_plan
from torch import Tensor, nn

from tdenoise.inference.denoising import denoise, symmetries
from tdenoise.inference.tile import Tile
from tdenoise.network import udvd
from tdenoise.network.checkpoint import load_model, read_card
from tdenoise.network.split_blind import stack_window
from tdenoise.network.udvd import Udvd, UdvdArchitecture
from tdenoise.network.windows import transform, transform_back
from tdenoise.noise.neighbour_frames import window_indices
from tdenoise.noise.noise import Scale

SCALE = Scale(0.0, 1.4, 1.4)
RADII = [0, 1]


# ---- the description, pixel by pixel; slow, and in float64 --------------------------------------------------


def u_net_shapes(prefix: str, n_in: int, n_out: int) -> dict[str, tuple[int, ...]]:
    """Layers of one U-Net as the users' script names them: docs/reference/networks.md."""
    widths = {
        "enc1": (n_in, 48, 48, 48),
        "enc2": (48, 48, 48, 48),
        "enc3": (48, 96, 96, 48),
        "dec2": (96, 96, 96, 96, 96),
        "dec1": (96 + n_in, 96, 96, 96, n_out),
    }
    return {
        f"{prefix}.{part}.conv{k}.conv.weight": (n, m, 3, 3)
        for part, sizes in widths.items()
        for k, (m, n) in enumerate(pairwise(sizes), start=1)
    }


SHAPES = {
    **u_net_shapes("denoiser_1", 3, 32),
    **u_net_shapes("denoiser_2", 96, 96),
    "nin_A.weight": (384, 384, 1, 1),
    "nin_B.weight": (96, 384, 1, 1),
    "nin_C.weight": (1, 96, 1, 1),
}


def state_dict(seed: int = 0) -> OrderedDict[str, Tensor]:
    """Random weights, of a size that keeps the signal alive through all layers."""
    rng = np.random.default_rng(seed)
    made = OrderedDict()
    for name, shape in SHAPES.items():
        weights = rng.normal(0, (1.4 / np.prod(shape[1:])) ** 0.5, shape)
        made[name] = torch.from_numpy(abs(weights) if name == "nin_C.weight" else weights).float()
    return made


def leaky(x: np.ndarray) -> np.ndarray:
    return np.where(x > 0, x, 0.1 * x)


def look(x: np.ndarray, rows: np.ndarray, columns: np.ndarray) -> np.ndarray:
    """Pixels at rows and columns; beside the frame its edge is repeated, above it there is nothing."""
    seen = x[:, rows.clip(0)][:, :, columns.clip(0, x.shape[2] - 1)]
    return seen * (rows >= 0)[None, :, None]


def convolved(x: np.ndarray, weight: np.ndarray) -> np.ndarray:
    i, j = np.arange(x.shape[1]), np.arange(x.shape[2])
    total = np.zeros((len(weight), len(i), len(j)))
    for a in range(3):
        for b in range(3):
            total += np.einsum("oc,cij->oij", weight[:, :, a, b], look(x, i - 2 + a, j - 1 + b))
    return leaky(total)


def halved(x: np.ndarray) -> np.ndarray:
    i, j = np.arange(x.shape[1] // 2), np.arange(x.shape[2] // 2)
    return np.max([look(x, 2 * i + a, 2 * j + b) for a in (-1, 0) for b in (0, 1)], axis=0)


def doubled(x: np.ndarray) -> np.ndarray:
    i, j = np.arange(2 * x.shape[1]), np.arange(2 * x.shape[2])
    return look(x, i // 2, j // 2)


def u_net(weights: dict[str, np.ndarray], prefix: str, x: np.ndarray) -> np.ndarray:
    def layers(part: str, value: np.ndarray, number: int) -> np.ndarray:
        for k in range(1, number + 1):
            value = convolved(value, weights[f"{prefix}.{part}.conv{k}.conv.weight"])
        return value

    half = halved(layers("enc1", x, 3))
    quarter = halved(layers("enc2", half, 3))
    up = layers("dec2", np.concatenate([doubled(layers("enc3", quarter, 3)), half]), 4)
    return layers("dec1", np.concatenate([doubled(up), x]), 4)


def plain(tensors: dict[str, Tensor], frames: np.ndarray, blind_radius: int) -> np.ndarray:
    """The prediction of the third of five frames."""
    weights = {name: tensor.numpy().astype(np.float64) for name, tensor in tensors.items()}
    upright = []
    for turn in range(4):
        turned = np.rot90(frames.astype(np.float64), -turn, axes=(1, 2))
        triplets = [u_net(weights, "denoiser_1", turned[k : k + 3]) for k in range(3)]
        x = u_net(weights, "denoiser_2", np.concatenate(triplets))
        above = look(x, np.arange(x.shape[1]) - 1 - blind_radius, np.arange(x.shape[2]))
        upright.append(np.rot90(above, turn, axes=(1, 2)))
    x = np.concatenate(upright)
    for name in ("nin_A", "nin_B"):
        x = leaky(np.einsum("oc,cij->oij", weights[f"{name}.weight"][:, :, 0, 0], x))
    return np.einsum("oc,cij->oij", weights["nin_C.weight"][:, :, 0, 0], x)[0].clip(0)


# -------------------------------------------------------------------------------------------------------------


def network(blind_radius: int = 1, seed: int = 0) -> Udvd:
    made = Udvd(UdvdArchitecture(blind_radius))
    made.load_state_dict(state_dict(seed))
    made.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    return made.eval().requires_grad_(False)


def forward(made: Udvd, frames: Tensor) -> Tensor:
    """Prediction of the third of five frames, without any cache."""
    with torch.inference_mode():
        return made(frames[None, [0, 1, 3, 4]], frames[None, 2:3])[0, 0]


def whole(made: Udvd, frames: np.ndarray, ensemble: int = 1, scale: Scale = SCALE) -> np.ndarray:
    tile = Tile.whole(frames.shape)
    return np.stack(list(denoise(made, frames, tile, scale, range(len(frames)), ensemble=ensemble)))


def assert_same(found: Any, expected: Any) -> None:
    """To the rounding of float32 through some 40 layers."""
    found, expected = np.asarray(found), np.asarray(expected)
    assert found.shape == expected.shape
    assert np.ptp(expected) > 0.01, "a prediction that is flat shows nothing"
    assert np.abs(found - expected).max() <= 1e-5 * np.abs(expected).max()


@pytest.mark.parametrize("radius", RADII)
@pytest.mark.parametrize("size", [(16, 16), (12, 20), (20, 8)])
@pytest.mark.parametrize("together", [True, False])
def test_the_prediction_is_what_the_description_says(
    radius: int, size: tuple[int, int], together: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(udvd, "CPU_PIXELS", 10**9 if together else 0)
    frames = counts((5, *size))
    assert_same(
        forward(network(radius), torch.from_numpy(frames).float()), plain(state_dict(), frames, radius)
    )


def macs(made: Udvd) -> list[int]:
    """Multiplications of every convolution that is called from now on."""
    counted: list[int] = []

    def count(layer: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> None:
        assert isinstance(layer, nn.Conv2d)
        counted.append(layer.weight[0].numel() * output.numel())

    for layer in made.modules():
        if isinstance(layer, nn.Conv2d):
            layer.register_forward_hook(count)
    return counted


def test_its_size_and_cost_are_those_published_and_the_cache_saves_what_it_should() -> None:
    made = network()
    assert sum(p.numel() for p in made.parameters()) == 2_123_664
    counted = macs(made)
    frames = torch.from_numpy(counts((12, 16, 24))).float()
    forward(made, frames[:5])
    assert sum(counted) == 7_778_976 * 16 * 24
    counted.clear()
    windows = [range(k, k + 5) for k in range(8)]
    list(made.stream(frames, windows))
    first_stage = 4 * 430_704
    assert sum(counted) == (8 * 4_333_344 + 2 * first_stage) * 16 * 24


@pytest.mark.parametrize("radius", RADII)
@pytest.mark.parametrize("pixel", [(12, 12), (12, 13), (13, 12), (13, 13)])
def test_no_pixel_depends_on_its_blind_spot_in_any_of_the_five_frames(
    radius: int, pixel: tuple[int, int]
) -> None:
    made = network(radius).double()
    frames = torch.from_numpy(counts((5, 24, 28))).double().requires_grad_()
    row, column = pixel
    made(frames[None, [0, 1, 3, 4]], frames[None, 2:3])[0, 0, row, column].backward()
    assert frames.grad is not None
    slope = frames.grad.abs()
    spot = slope[:, row - radius : row + radius + 1, column - radius : column + radius + 1]
    assert spot.max() == 0
    around = slope[:, row - radius - 1 : row + radius + 2, column - radius - 1 : column + radius + 2]
    assert (around.flatten(1).count_nonzero(dim=1) == around[0].numel() - spot[0].numel()).all()


@pytest.mark.parametrize("radius", RADII)
def test_a_changed_pixel_leaves_its_own_prediction_alone_with_all_symmetries(radius: int) -> None:
    made = network(radius)
    frames = counts((5, 12, 16))
    changed = frames.copy()
    changed[2, 6, 9] = 200
    before, after = whole(made, frames, 16), whole(made, changed, 16)
    # All predictions of the pixel itself: this frame's and those of the frames around.
    np.testing.assert_array_equal(before[:, 6, 9], after[:, 6, 9])
    assert (before[:, 6, 9 + radius + 1] != after[:, 6, 9 + radius + 1]).all()


@pytest.mark.parametrize("radius", RADII)
def test_the_halo_is_what_a_pixel_sees(radius: int) -> None:
    made = network(radius).double()
    reach = 0
    for turned in (False, True):
        shape = (5, 8, 308) if turned else (5, 308, 8)
        frames = torch.from_numpy(counts(shape)).double().requires_grad_()
        output = made(frames[None, [0, 1, 3, 4]], frames[None, 2:3])[0, 0]
        cell = output[:, 152:156] if turned else output[152:156]  # every phase of the sampling grid
        cell.sum().backward()
        assert frames.grad is not None
        seen = torch.nonzero(frames.grad.abs().amax(dim=(0, 1 if turned else 2)))
        reach = max(reach, 152 - int(seen.min()), int(seen.max()) - 155)
    assert reach == 145 <= UdvdArchitecture(radius).spatial_halo < 145 + UdvdArchitecture.stride


@pytest.mark.parametrize(("shape", "ensemble"), [((5, 322, 7), 1), ((4, 8, 320), 2)])
def test_denoised_in_blocks_equals_denoised_whole(shape: tuple[int, int, int], ensemble: int) -> None:
    made = network()
    architecture = made.architecture
    frames = counts(shape)
    expected = whole(made, frames, ensemble)
    halo = Halo(architecture.window, architecture.spatial_halo)
    blocks = plan_blocks(shape, (3, 160, 160), halo, architecture.stride)
    assert all(block.padded.shape[1:] != shape[1:] for block in blocks), "every block is cut from its frame"
    for block in blocks:
        (top, _), (left, _) = block.padded.rows, block.padded.columns
        rows = (block.core.rows[0] - top, block.core.rows[1] - top)
        columns = (block.core.columns[0] - left, block.core.columns[1] - left)
        tile = Tile(len(frames), block.padded.frames[0], rows, columns)
        result = denoise(
            made, frames[block.padded.slices], tile, SCALE, range(*block.core.frames), ensemble=ensemble
        )
        assert_same(np.stack(list(result)), expected[block.core.slices])


@pytest.mark.parametrize("size", [(16, 16), (12, 20)])
def test_streaming_equals_one_frame_after_the_other_to_the_last_bit(size: tuple[int, int]) -> None:
    made = network()
    movie = counts((7, *size))
    frames = torch.from_numpy(movie / np.float32(SCALE.noise)).float()
    for centre, streamed in enumerate(whole(made, movie)):
        around = window_indices(centre, len(frames), 2)
        window = frames[[*around[:2], centre, *around[2:]]]
        assert np.array_equal(streamed, (SCALE.contrast * forward(made, window)).numpy())


def test_the_ensemble_is_the_mean_over_all_symmetries() -> None:
    made = network()
    movie = counts((5, 12, 16))
    frames = torch.from_numpy(movie).float()
    expected = np.zeros(movie.shape)
    for centre in range(len(movie)):
        neighbours = stack_window(frames, window_indices(centre, len(movie), 2), (1, 1))
        for turn, mirror, reverse in symmetries(16):
            with torch.inference_mode():
                output = made(
                    transform(neighbours, turn, mirror, reverse)[None],
                    transform(frames[centre][None], turn, mirror, 0)[None],
                )
            expected[centre] += transform_back(output[0, 0], turn, mirror).numpy() / 16
    assert_same(whole(made, movie, 16), expected)


def test_a_radius_that_it_has_not_is_refused() -> None:
    with pytest.raises(ValueError, match="0 or 1 pixels, not 2"):
        UdvdArchitecture(2)
    with pytest.raises(ValueError, match="do not match this version"):
        UdvdArchitecture.from_json({"window": 2})


def test_no_fresh_network_starts_below_zero() -> None:
    frames = torch.from_numpy(counts((5, 8, 8))).float()
    for seed in range(5):
        torch.manual_seed(seed)
        assert forward(Udvd(UdvdArchitecture()).eval(), frames).min() > 0


# ---- weights from elsewhere ---------------------------------------------------------------------------------


def run(*words: object) -> int:
    return command_line.main([str(word) for word in words])


@pytest.mark.parametrize(("prefix", "radius"), [("", 1), ("module.", 0)])
def test_weights_of_the_users_script_give_the_prediction_of_the_users_script(
    prefix: str, radius: int, tmp_path: Path
) -> None:
    torch.save({prefix + k: v for k, v in state_dict(3).items()}, tmp_path / "lab.pth")
    assert run("models", "import", tmp_path / "lab.pth", "-o", tmp_path / "m", "--blind-radius", radius) == 0
    model = load_model(tmp_path / "m")
    assert model.card["blind_radius"] == radius and model.card["kind"] == "udvd"
    movie = movie_store(tmp_path, counts((6, 12, 16)))
    scale = movie_scale(store.open_store(movie, store.MOVIE), model.card)
    assert isinstance(model.network, Udvd)
    denoised = whole(model.network, counts((6, 12, 16)), scale=scale)
    for centre in (2, 3):  # counts as they are, as the script takes them
        frames = counts((6, 12, 16))[centre - 2 : centre + 3]
        assert_same(denoised[centre], plain(state_dict(3), frames, radius))


class Evil:
    """Creates a file when it is unpickled."""

    def __reduce__(self) -> Any:
        return os.mkdir, ("evil",)


def refused(changes: dict[str, Any]) -> dict[str, Any]:
    changed: dict[str, Any] = {**state_dict(), **changes}
    return {name: value for name, value in changed.items() if value is not None}


@pytest.mark.parametrize(
    ("content", "says"),
    [
        (
            refused({"denoiser_1.dec1.conv4.conv.weight": torch.zeros(24, 96, 3, 3)}),
            "(24, 96, 3, 3), not (32, 96",
        ),
        (refused({"nin_A.weight": None, "nin_B.weight": None}), "lacks 2 of 37 layers, first nin_A.weight"),
        (
            refused({"sigma_net.weight": torch.zeros(1)}),
            "holds 1 layers that UDVD does not have, first sigma_net",
        ),
        (refused({"nin_C.weight": torch.full((1, 96, 1, 1), torch.nan)}), "nin_C.weight holds NaN"),
        (refused({"nin_C.weight": torch.zeros((1, 96, 1, 1), dtype=torch.int32)}), "no real numbers"),
        (refused({"nin_C.weight": torch.zeros((1, 96, 1, 1)).to_sparse()}), "no real numbers"),
        (refused({"nin_C.weight": torch.zeros((1, 96, 1, 1), device="meta")}), "no real numbers"),
        (refused({"nin_C.weight": Evil()}), "cannot be read as weights alone"),
        (Evil(), "cannot be read as weights alone"),
        ({"model": state_dict()}, "is not a state dict"),
        (torch.zeros(3), "is not a state dict"),
        ({"weight": torch.zeros(20_000_000)}, "holds 80 MB"),
        (b"", "cannot be read as weights alone"),
        (b"not a model at all", "cannot be read as weights alone"),
        (None, "no such file"),
    ],
)
def test_what_is_no_state_dict_of_udvd_is_refused_in_one_sentence(
    content: Any,
    says: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    if isinstance(content, bytes):
        Path("lab.pth").write_bytes(content)
    elif content is not None:
        torch.save(content, "lab.pth")
    before = sorted(tmp_path.iterdir())
    assert run("models", "import", "lab.pth", "-o", "model") in (1, 3)
    message = capsys.readouterr().err
    assert says in message and message.count("\n") == 1
    assert sorted(tmp_path.iterdir()) == before, "no code was run, nothing half-made is left"


def test_an_imported_model_says_what_it_is(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    torch.save(state_dict(), tmp_path / "lab.pth")
    for _ in range(2):  # the second time, it is there already
        assert run("models", "import", tmp_path / "lab.pth", "-o", tmp_path / "model") == 0
    torch.save(state_dict(1), tmp_path / "other.pth")
    assert run("models", "import", tmp_path / "other.pth", "-o", tmp_path / "model") == 2
    capsys.readouterr()
    assert run("models", "show", tmp_path / "model") == 0
    shown = capsys.readouterr().out
    assert "udvd, 2,123,664 parameters" in shown
    assert "3 x 3 pixels around it, in all five frames" in shown
    assert "imported from: lab.pth" in shown
    assert run("models", "show", tmp_path / "nowhere") == 3
    assert run("models", "show", model_folder(tmp_path / "other")) == 0
    assert "split-blind" in (shown := capsys.readouterr().out)
    assert "never sees: the pixel itself, in the centre frame" in shown


# ---- through the pipeline -----------------------------------------------------------------------------------


@pytest.fixture
def short(monkeypatch: pytest.MonkeyPatch) -> None:
    """Training with small batches."""

    class Short(train_plan.TrainingSettings):
        def __init__(self, **given: Any) -> None:
            super().__init__(**{**given, "batch": 2, "patch": 16})

    monkeypatch.setattr(train_plan, "TrainingSettings", Short)


def test_it_trains_and_denoises_like_any_model(
    short: None, workers: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    movie = movie_store(tmp_path, counts((12, 16, 20)))
    words = (
        "train",
        movie,
        "--model",
        "udvd",
        "--blind-radius",
        "0",
        "--steps",
        "3",
        "-o",
        tmp_path / "model",
    )
    assert run(*words) == 0
    card = read_card(tmp_path / "model")
    assert card["kind"] == "udvd" and card["architecture"] == {"blind_radius": 0} and card["steps"] == 3
    assert card["movies"][0]["snr"] < 1
    out = tmp_path / "d.zarr"
    assert run("apply", movie, "--model", tmp_path / "model", "-o", out, "--workers", workers) == 0
    attributes = store.read_attributes(out)
    assert attributes["held_out_frames"] == card["movies"][0]["held_out"]
    assert attributes["trained_on_this"] is True
    assert run("evaluate", out, "--movie", movie) == 0
    assert run("models", "show", tmp_path / "model") == 0
    assert "trained on: movie.zarr" in capsys.readouterr().out


def test_on_a_cpu_its_steps_are_small(tmp_path: Path) -> None:
    movie = movie_store(tmp_path, counts((12, 24, 24)))
    sizes = {}
    for kind in ("udvd", "split-blind"):
        plan = train_plan.make_plan(
            TrainConfig(movie=(movie,), output=tmp_path / "m", model=kind, device="cpu")
        )
        sizes[kind] = plan.settings.batch * plan.settings.patch**2
    assert sizes["udvd"] < sizes["split-blind"] / 8


def test_nobody_knows_what_an_imported_model_was_trained_on(
    short: None, workers: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    movie = movie_store(tmp_path, counts((12, 16, 20)))
    torch.save(state_dict(), tmp_path / "lab.pth")
    assert run("models", "import", tmp_path / "lab.pth", "-o", tmp_path / "lab") == 0
    assert run("train", movie, "--from", tmp_path / "lab", "--steps", "2", "-o", tmp_path / "adapted") == 0
    assert read_card(tmp_path / "adapted")["imported"] == read_card(tmp_path / "lab")["imported"]
    for name, trained, note in [
        ("lab", None, "It is not known whether the model has seen these frames"),
        ("adapted", True, "no frames are known to be held out"),
    ]:
        out = tmp_path / f"{name}.zarr"
        words = (
            "apply",
            movie,
            "--model",
            tmp_path / name,
            "-o",
            out,
            "--ensemble",
            "1",
            "--workers",
            workers,
        )
        assert run(*words) == 0
        attributes = store.read_attributes(out)
        assert attributes["held_out_frames"] == [] and attributes["trained_on_this"] is trained
        capsys.readouterr()
        assert run("evaluate", out, "--movie", movie, "--json") == 0
        result = json.loads(capsys.readouterr().out)
        assert result["held_out"] is None
        assert any(note in line for line in result["notes"])


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (("--model", "udvd", "--blind-radius", "2"), "udvd takes 0, 1 or auto"),
        (("--model", "udvd", "--blind-radius", "frame"), "udvd takes 0, 1 or auto"),
        (("--from", "lab", "--model", "split-blind"), "the model given with --from is udvd"),
        (("--from", "lab", "--blind-radius", "0"), "cannot change the blind spot"),
        (("--model", "unet"), "'unet' is not valid: it must be one of"),
    ],
)
def test_settings_that_do_not_go_with_udvd_are_refused(
    words: tuple[str, ...],
    says: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    movie = movie_store(tmp_path, counts((12, 16, 20)))
    torch.save(state_dict(), "lab.pth")
    assert run("models", "import", "lab.pth", "-o", "lab") == 0
    assert run("train", movie, "-o", "model", *words) == 2
    assert says in capsys.readouterr().err
