"""The plug-in for napari opens stores and runs, and leaves alone what is not ours."""

from __future__ import annotations

import shutil
import tomllib
from importlib import import_module
from importlib.resources import files
from pathlib import Path

import numpy as np
import pytest
from raw_files import write_dm
from ruamel.yaml import YAML
from small import counts, model_folder, movie_store
from stores import events_beside
from tdenoise_pipeline.apply.apply import apply
from tdenoise_pipeline.events.tables import EVENTS
from tdenoise_pipeline.napari_plugin import get_reader, sample
from tdenoise_pipeline.settings.config import ApplyConfig

ROOT = Path(__file__).parents[1]


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("run")
    movie_store(folder, counts((6, 24, 400)), frame_time=0.02, pixel_size=0.05)
    model = model_folder(folder / "model")
    apply(
        ApplyConfig(
            movie=folder / "movie.zarr", model=model, output=folder / "denoised.zarr", ensemble=1, share="0/1"
        )
    )
    return folder


def test_the_manifest_names_a_function_that_is_there() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())
    package, file = project["project"]["entry-points"]["napari.manifest"]["tdenoise"].split(":")
    assert file in project["tool"]["setuptools"]["package-data"][package]
    manifest = YAML(typ="safe").load((files(package) / file).read_text())
    assert manifest["name"] == "tdenoise", "as the distribution is named"
    commands = {command["id"]: command["python_name"] for command in manifest["contributions"]["commands"]}
    for reader in manifest["contributions"]["readers"]:
        module, function = commands[reader["command"]].split(":")
        assert getattr(import_module(module), function) is get_reader
    (offered,) = manifest["contributions"]["sample_data"]
    assert commands[offered["command"]] == "tdenoise_pipeline.napari_plugin:sample"


def test_the_sample_is_a_movie_and_its_truth_in_one_place() -> None:
    (truth, above, _), (raw, below, _) = sample()
    assert truth.shape == raw.shape and above["scale"] == below["scale"]
    assert abs(float(raw.mean()) / float(truth.mean()) - 1) < 0.01


def test_a_raw_movie_of_a_camera_is_one_layer_read_when_it_is_needed(tmp_path: Path) -> None:
    write_dm(tmp_path / "m.dm4", counts((6, 24, 20)).astype(np.uint16), 4)
    read = get_reader(str(tmp_path / "m.dm4"))
    assert read is not None
    ((found, told, kind),) = read(str(tmp_path / "m.dm4"))
    assert kind == "image" and hasattr(found, "compute") and len(told["scale"]) == 3
    np.testing.assert_array_equal(np.asarray(found[2]), counts((6, 24, 20))[2])
    assert told["contrast_limits"][0] < told["contrast_limits"][1] < 20


def test_a_run_is_two_layers_in_one_place_with_contrast(run: Path) -> None:
    read = get_reader(str(run))
    assert read is not None
    (raw, below, kind), (denoised, above, _), (given, overlay, _) = read(str(run))
    assert given.shape == (24, 400) and overlay["scale"] == above["scale"][1:] and not overlay["visible"]
    assert kind == "image" and (below["name"], above["name"]) == ("movie: counts", "denoised: denoised")
    assert below["scale"] == above["scale"] == pytest.approx([0.02, 0.05, 0.05])
    assert above["multiscale"] and not below["multiscale"]
    assert [level.shape for level in denoised] == [(6, 24, 400), (6, 12, 200)]
    np.testing.assert_array_equal(raw[3], counts((6, 24, 400))[3])
    assert np.isfinite(np.asarray(denoised[1][3, 2:5, :])).all()
    assert 0 <= below["contrast_limits"][0] < below["contrast_limits"][1] < 15


def test_changes_that_events_found_are_points(run: Path, tmp_path: Path) -> None:
    folder = tmp_path / "run"
    shutil.copytree(run, folder)
    row = dict.fromkeys(EVENTS, "0") | {"frame": "3", "row_px": "4.5", "column_px": "7", "probability": "0.9"}
    events_beside(folder / "denoised.zarr", [",".join(row.values())])
    read = get_reader(str(folder))
    assert read is not None
    *_, (points, found, kind) = read(str(folder))
    assert kind == "points" and points == [[3, 4.5, 7.0]] and found["features"]["probability"] == [0.9]
    assert found["scale"] == pytest.approx([0.02, 0.05, 0.05])


def test_a_movie_alone_is_one_layer(run: Path) -> None:
    read = get_reader(str(run / "movie.zarr"))
    assert read is not None and len(read(str(run / "movie.zarr"))) == 1


def test_what_is_not_ours_is_left_to_other_plugins(tmp_path: Path) -> None:
    (tmp_path / "picture.tif").write_bytes(b"II*\0")
    (tmp_path / "other.zarr").mkdir()
    for path in ("picture.tif", "other.zarr", "nothing.zarr"):
        assert get_reader(str(tmp_path / path)) is None
