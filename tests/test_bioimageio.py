"""Models as packages of bioimage.io: other programs compute what we compute, and the way back gives the same model."""

from __future__ import annotations

import hashlib
import io
import json
import shutil
import warnings
import zipfile
from pathlib import Path

import numpy as np
import pytest
import torch
from ruamel.yaml import YAML
from small import TINY, model_folder, network
from tdenoise_pipeline.cli.command_line import main
from test_udvd import state_dict
from validators import judged, needs_validators

from tdenoise.inference.denoising import denoise
from tdenoise.inference.standalone import Standalone, to_torchscript
from tdenoise.inference.tile import Tile
from tdenoise.network import checkpoint
from tdenoise.network.split_blind import Architecture, SplitBlind
from tdenoise.network.udvd import Udvd, UdvdArchitecture
from tdenoise.noise.noise import Scale

GAMMA = Architecture.from_json({**TINY.to_json(), "head": "gamma"})
SEEN = Architecture.from_json({**TINY.to_json(), "centre": "seen"})


def udvd() -> Udvd:
    torch.manual_seed(0)
    return Udvd(UdvdArchitecture(1)).eval().requires_grad_(False)


NETWORKS = {"tiny": network, "gamma": lambda: network(GAMMA), "thinned": lambda: network(SEEN), "udvd": udvd}


def exported(folder: Path, *words: str, made: SplitBlind | None = None, name: str = "model") -> Path:
    model_folder(folder / name, made)
    words = ("--license", "cc-by-4.0", "--author", "A. Nobody", *words)
    assert main(["models", "export", str(folder / name), "-o", str(folder / "m.zip"), "-q", *words]) == 0
    return folder / "m.zip"


def described(package: Path) -> dict:
    with zipfile.ZipFile(package) as opened:
        return YAML(typ="safe", pure=True).load(opened.read("rdf.yaml"))


def rewrite(package: Path, **changes: bytes | None) -> None:
    """Replace files of a package, or take them away; `_` in a name stands for a dot."""
    new = {name.replace("__", "."): content for name, content in changes.items()}
    with zipfile.ZipFile(package) as opened:
        files = {name: opened.read(name) for name in opened.namelist()}
    with zipfile.ZipFile(package, "w") as opened:
        for name, content in {**files, **new}.items():
            if content is not None:
                opened.writestr(name, content)


@pytest.mark.parametrize("kind", NETWORKS)
def test_a_standalone_network_gives_what_denoise_gives(kind: str) -> None:
    made = NETWORKS[kind]()
    a = made.architecture
    n_frames, side = 2 * a.window + 1, 4 * a.stride
    counts = np.random.default_rng(1).poisson(2.0, (n_frames, side, side)).astype(np.float32)
    noise = float(np.sqrt(np.mean(np.diff(counts.astype(np.float64), axis=0) ** 2) / 2))
    scale = a.scale(Scale(float(counts.mean(dtype=np.float64)), noise, noise))
    (expected,) = denoise(
        made, counts, Tile.whole(counts.shape), scale, range(a.window, a.window + 1), ensemble=1
    )
    found = Standalone(made)(torch.from_numpy(counts[None]))[0, 0].numpy()
    np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("kind", NETWORKS)
def test_torchscript_gives_the_same_at_sizes_that_it_was_not_made_at(kind: str) -> None:
    made = NETWORKS[kind]()
    a = made.architecture
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # see `to_torchscript`
        loaded = torch.jit.load(io.BytesIO(to_torchscript(made)))
    for batch, rows, columns in ((1, 3, 4), (2, 5, 5), (1, 6, 3)):
        frames = torch.poisson(
            torch.full((batch, 2 * a.window + 1, rows * a.stride, columns * a.stride), 2.0)
        )
        torch.testing.assert_close(loaded(frames), Standalone(made)(frames))


def test_a_package_says_what_is_in_it_and_every_hash_is_true(tmp_path: Path) -> None:
    package = exported(tmp_path)
    told = described(package)
    assert (told["type"], told["license"], told["authors"]) == ("model", "CC-BY-4.0", [{"name": "A. Nobody"}])
    (counts,), (denoised,) = told["inputs"], told["outputs"]
    files = [
        counts["test_tensor"],
        denoised["test_tensor"],
        told["weights"]["torchscript"],
        *told["attachments"],
    ]
    with zipfile.ZipFile(package) as opened:
        assert opened.testzip() is None
        names = set(opened.namelist())
        for file in files:
            assert hashlib.sha256(opened.read(file["source"])).hexdigest() == file["sha256"]
    assert {file["source"] for file in files} | {"rdf.yaml", "README.md"} == names
    assert str(tmp_path) not in json.dumps(told)


def test_a_model_comes_back_bit_for_bit(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    package = exported(tmp_path)
    words = ["models", "import", str(package), "-o", str(tmp_path / "back")]
    assert main(words) == 0
    assert f"model {checkpoint.read_card(tmp_path / 'back')['sha256'][:12]}" in capsys.readouterr().out
    for name in ("card.json", "weights.safetensors"):
        assert (tmp_path / "back" / name).read_bytes() == (tmp_path / "model" / name).read_bytes()
    assert main([*words, "-q"]) == 0, "the same again is no fault"
    other = exported(tmp_path / "other", made=network(seed=1))
    assert main(["models", "import", str(other), "-o", str(tmp_path / "back"), "-q"]) == 2
    assert main(["verify", str(tmp_path / "back"), "-q"]) == 0


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"card__json": None}, "another program wrote"),
        ({"weights__safetensors": b"x"}, "was changed or damaged"),
        ({"card__json": b"{}"}, "is not a"),
        ({"card__json": b'{"a": 1'}, "cannot be read"),
    ],
)
def test_what_this_tool_did_not_export_is_refused_in_a_sentence(
    tmp_path: Path, changes: dict[str, bytes | None], said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    package = exported(tmp_path)
    rewrite(package, **changes)
    assert main(["models", "import", str(package), "-o", str(tmp_path / "back"), "-q"]) == 3
    error = capsys.readouterr().err
    assert said in error and str(package) in error and error.count("\n") == 1
    assert not (tmp_path / "back").exists()


def test_a_package_that_is_cut_or_too_large_is_refused(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    package = exported(tmp_path)
    from tdenoise_pipeline.archive import bioimageio

    monkeypatch.setitem(bioimageio.MOST_BYTES, "card.json", 10)
    assert main(["models", "import", str(package), "-o", str(tmp_path / "back"), "-q"]) == 3
    assert "more than a model can have" in capsys.readouterr().err
    package.write_bytes(package.read_bytes()[:-400])
    assert main(["models", "import", str(package), "-o", str(tmp_path / "back"), "-q"]) == 3
    assert str(package) in capsys.readouterr().err


def test_weights_of_udvd_are_still_told_from_packages(tmp_path: Path) -> None:
    torch.save(state_dict(), tmp_path / "a.zip")  # which is a ZIP file of PyTorch
    assert main(["models", "import", str(tmp_path / "a.zip"), "-o", str(tmp_path / "m"), "-q"]) == 0
    assert checkpoint.read_card(tmp_path / "m")["kind"] == "udvd"
    package = exported(tmp_path)
    words = ["models", "import", str(package), "-o", str(tmp_path / "n"), "--blind-radius", "0", "-q"]
    assert main(words) == 2


def test_an_export_that_cannot_be_right_is_refused(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    exported(tmp_path)
    for words, said in (
        (["-o", str(tmp_path / "m.zip")], "exists already"),
        (["-o", str(tmp_path / "m.tar")], "ends in .zip"),
        (["-o", str(tmp_path / "n.zip"), "--license", "mine"], "names of SPDX"),
        (["-o", str(tmp_path / "n.zip"), "--author", "a/b"], "has no / and no"),
    ):
        assert main(["models", "export", str(tmp_path / "model"), *words, "-q"]) == 2
        assert said in capsys.readouterr().err
    assert main(["models", "export", str(tmp_path / "model"), "-o", str(tmp_path / "n.zip")]) == 0
    assert "a licence, which bioimage.io asks for. Use --license" in capsys.readouterr().out
    assert main(["models", "export", str(tmp_path / "none"), "-o", str(tmp_path / "o.zip"), "-q"]) == 3


def test_a_hostile_name_stays_harmless(tmp_path: Path) -> None:
    package = exported(tmp_path, "--author", 'x" - y: &a [*a]', name="a: 'b'\n- {c} \"é\" #d")
    told = described(package)
    assert told["authors"][1] == {"name": 'x" - y: &a [*a]'}
    assert set(told["name"]) <= set("abcdefghijklmnopqrstuvwxyz0123456789 -")
    assert len(exported(tmp_path / "long", name="n" * 200).read_bytes()) > 0


@needs_validators
@pytest.mark.slow
def test_the_validator_of_bioimageio_runs_the_network_and_gets_the_same(tmp_path: Path) -> None:
    package = exported(tmp_path, name="a: 'b'\n- {c} \"é\" #d")
    home = tmp_path / "home"
    home.mkdir()
    judged(
        "python",
        "-c",
        "import sys, importlib.util as u; sys.exit(u.find_spec('tdenoise') is not None)",
        home=home,
    )
    judged("bioimageio", "test", package, "--summary", home / "summary.json", home=home)
    summary = json.loads((home / "summary.json").read_text())
    assert summary["status"] == "passed"
    runs = [detail["name"] for detail in summary["details"] if "inference for inputs" in detail["name"]]
    assert len(runs) > 3, "at several sizes"
    # It notices when the test output is not what the network gives.
    wrong = tmp_path / "wrong.zip"
    shutil.copy(package, wrong)
    with zipfile.ZipFile(package) as opened:
        shown = np.load(io.BytesIO(opened.read("test_output.npy")))
        text = opened.read("rdf.yaml").decode()
    file = io.BytesIO()
    np.save(file, shown * 1.1)
    old, new = described(package)["outputs"][0]["test_tensor"]["sha256"], hashlib.sha256(file.getvalue())
    rewrite(wrong, test_output__npy=file.getvalue(), rdf__yaml=text.replace(old, new.hexdigest()).encode())
    with pytest.raises(AssertionError):
        judged("bioimageio", "test", wrong, "--summary", home / "wrong.json", home=home)
    assert json.loads((home / "wrong.json").read_text())["status"] != "passed"
