"""Stores open in programs that are not ours: xarray's trees, netCDF, OME viewers and validators."""

from __future__ import annotations

import json
import shutil
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tdenoise_pipeline
import xarray as xr
import zarr
from small import counts, model_folder, movie_store
from tdenoise_pipeline.apply.apply import apply
from tdenoise_pipeline.errors import InputError, UsageError
from tdenoise_pipeline.settings.config import ApplyConfig
from tdenoise_pipeline.store import store
from tdenoise_pipeline.store.netcdf import LEFT_OUT, MOST_BYTES, plain_attributes
from validators import judged, needs_validators

SHAPE = (40, 24, 800)  # wide enough for a pyramid, of counts too
STORES = ("movie", "denoised")


@pytest.fixture(scope="module")
def stores(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """What the pipeline writes: a movie, and the movie denoised."""
    folder = tmp_path_factory.mktemp("viewers")
    movie = movie_store(folder, counts(SHAPE), frame_time=0.02, pixel_size=0.05)
    model = model_folder(folder / "model")
    denoised = folder / "denoised.zarr"
    apply(ApplyConfig(movie=movie, model=model, output=denoised, ensemble=1, share="0/1"))
    return {"movie": movie, "denoised": denoised}


@pytest.mark.parametrize("name", STORES)
def test_every_array_of_a_store_names_its_dimensions(stores: dict[str, Path], name: str) -> None:
    files = [file for file in stores[name].rglob("zarr.json") if b'"array"' in file.read_bytes()]
    arrays = {
        file: document for file in files if (document := json.loads(file.read_text()))["node_type"] == "array"
    }
    assert len(arrays) > 5
    for file, document in arrays.items():
        named = document.get("dimension_names") or []
        assert len(named) == len(document["shape"]) and all(named), file


@pytest.mark.parametrize("name", STORES)
def test_xarray_opens_a_store_as_a_dataset_as_a_tree_and_as_groups(
    stores: dict[str, Path], name: str
) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        main = {"movie": "counts", "denoised": "denoised"}[name]
        dataset = xr.open_zarr(stores[name])
        with xr.open_datatree(stores[name], engine="zarr") as tree:
            assert tree[main].shape == dataset[main].shape == SHAPE
            assert main in tree["integrity"]
            assert tree["pyramid/1"].to_dataset()[main].sizes["t"] == SHAPE[0]
        groups = xr.open_groups(stores[name], engine="zarr")
    levels = store.read_attributes(stores[name])["pyramid"]
    assert set(groups) == {"/", "/integrity", "/pyramid", *(f"/{path.rpartition('/')[0]}" for path in levels)}
    np.testing.assert_array_equal(groups["/"][main][3], dataset[main][3])


@pytest.mark.parametrize("name", STORES)
def test_a_store_is_written_as_netcdf_and_read_back(
    stores: dict[str, Path], name: str, tmp_path: Path
) -> None:
    pytest.importorskip("h5netcdf")
    dataset = tdenoise_pipeline.open(stores[name])
    dataset.to_netcdf(tmp_path / "a.nc", engine="h5netcdf")
    with xr.open_dataset(tmp_path / "a.nc", engine="h5netcdf") as back:
        xr.testing.assert_equal(back.load(), dataset.load())
        told = json.loads(back.attrs["tdenoise"])
    assert told["id"] == store.read_attributes(stores[name])["id"]
    # By xarray alone, without what is nested at the root.
    plain = xr.open_zarr(stores[name]).drop_attrs(deep=False)
    plain.to_netcdf(tmp_path / "b.nc", engine="h5netcdf")
    with xr.open_dataset(tmp_path / "b.nc", engine="h5netcdf") as back:
        xr.testing.assert_equal(back.load(), plain.load())


@pytest.mark.parametrize("name", STORES)
def test_the_engine_opens_a_store_so_that_all_of_it_can_be_written_as_netcdf(
    stores: dict[str, Path], name: str, tmp_path: Path
) -> None:
    pytest.importorskip("h5netcdf")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        dataset = xr.open_dataset(stores[name], engine="tdenoise")
        xr.testing.assert_identical(dataset, tdenoise_pipeline.open(stores[name]))
        groups = xr.open_groups(stores[name], engine="tdenoise")
        tree = xr.open_datatree(stores[name], engine="tdenoise")
        assert set(groups) == {"/", "/integrity"} == set(tree.groups)
        tree.to_netcdf(tmp_path / "tree.nc", engine="h5netcdf")
    with xr.open_datatree(tmp_path / "tree.nc", engine="h5netcdf") as back:
        for group in groups:
            xr.testing.assert_equal(back[group].to_dataset(inherit=False).load(), groups[group].load())
        assert json.loads(back["integrity"].attrs["tdenoise"])["status"] == "complete"
    assert set(xr.open_dataset(stores[name], engine="tdenoise", drop_variables="t").coords) < set(
        dataset.coords
    )
    with pytest.raises(UsageError, match="is a store"):
        xr.open_dataset(stores[name], engine="tdenoise", channel=0)


def test_the_engine_opens_a_run_and_refuses_a_damaged_store(stores: dict[str, Path], tmp_path: Path) -> None:
    run = stores["movie"].parent
    assert "denoised" in xr.open_dataset(run, engine="tdenoise")
    shutil.copytree(stores["movie"], tmp_path / "damaged.zarr")
    with (tmp_path / "damaged.zarr/zarr.json").open("a") as file:
        file.write(" ")
    with pytest.raises(InputError, match="was changed since"):
        xr.open_dataset(tmp_path / "damaged.zarr", engine="tdenoise")


def test_attributes_too_long_for_hdf5_lose_their_longest_entries_and_say_so() -> None:
    attributes = {"tdenoise": {"kind": "movie", "frame_means": [0.123456789] * 9000, "noise": {"gain": 1.0}}}
    text = plain_attributes(attributes)["tdenoise"]
    assert len(text) < MOST_BYTES
    assert json.loads(text) == {"kind": "movie", "noise": {"gain": 1.0}, LEFT_OUT: ["frame_means"]}


@pytest.mark.parametrize("name", STORES)
def test_levels_are_found_through_the_group_and_by_themselves(stores: dict[str, Path], name: str) -> None:
    """The first is how napari-ome-zarr opens them, the second how others do."""
    root = zarr.open_group(stores[name], mode="r")
    for image in root.attrs["ome"]["multiscales"]:
        axes = tuple(axis["name"] for axis in image["axes"])
        for level in image["datasets"]:
            alone = zarr.open_array(stores[name] / level["path"], mode="r")
            assert alone.metadata.dimension_names == axes
            np.testing.assert_array_equal(root[level["path"]][:2], alone[:2])


def test_levels_of_an_image_have_the_places_that_the_metadata_say(stores: dict[str, Path]) -> None:
    root = zarr.open_group(stores["denoised"], mode="r")
    images = root.attrs["ome"]["multiscales"]
    assert [image["name"] for image in images] == [
        "denoised",
        "denoised, mean of 4 frames",
        "denoised, mean of 16 frames",
    ]
    full = np.asarray(root["denoised"][:])
    for image in images:
        for level in image["datasets"]:
            scale, shift = (t[t["type"]] for t in level["coordinateTransformations"])
            array = zarr.open_array(stores["denoised"] / level["path"], mode="r")
            frames, pixels = round(scale[0] / 0.02), round(scale[2] / 0.05)
            assert shift == pytest.approx([0.02 * (frames - 1) / 2, *[0.05 * (pixels - 1) / 2] * 2])
            first = full[:frames, :pixels, :pixels].astype(np.float64).mean()
            assert array[0, 0, 0] == pytest.approx(first, rel=2e-2)


@pytest.mark.parametrize("name", STORES)
def test_contrast_limits_are_those_of_the_values(stores: dict[str, Path], name: str) -> None:
    root = zarr.open_group(stores[name], mode="r")
    (channel,) = root.attrs["ome"]["omero"]["channels"]
    window, values = channel["window"], np.asarray(root[channel["label"]][:])
    assert values.min() <= window["start"] < values.mean() < window["end"] <= values.max()
    assert window["end"] < 15, "counts of 0 to 10 would be black"
    assert window["min"] <= window["start"] and window["max"] >= window["end"]


def looked_at(library: str, store: Path, home: Path) -> dict[str, Any]:
    """What a library in the environment of the validators says of a store."""
    script = Path(__file__).parent / "validators/ome_stores.py"
    return json.loads(judged("python", script, library, store, home=home).splitlines()[-1])


@needs_validators
@pytest.mark.parametrize("name", STORES)
def test_the_models_of_ome_zarr_find_nothing_wrong(
    stores: dict[str, Path], name: str, tmp_path: Path
) -> None:
    found = looked_at("ome_zarr_models", stores[name], tmp_path)
    assert found == {"type": "Image", "version": "0.5", "omero": True}


@needs_validators
def test_the_models_of_ome_zarr_find_what_is_wrong(stores: dict[str, Path], tmp_path: Path) -> None:
    shutil.copytree(stores["movie"], tmp_path / "wrong.zarr")
    file = tmp_path / "wrong.zarr/zarr.json"
    text = file.read_text()
    assert '"multiscales"' in text
    file.write_text(text.replace('"multiscales"', '"multiscale"'))
    with pytest.raises(AssertionError, match="multiscales"):
        looked_at("ome_zarr_models", tmp_path / "wrong.zarr", tmp_path)


@needs_validators
@pytest.mark.parametrize("name", STORES)
def test_the_reader_of_napari_ome_zarr_finds_levels_and_contrast(
    stores: dict[str, Path], name: str, tmp_path: Path
) -> None:
    found = looked_at("ome_zarr", stores[name], tmp_path)
    coarser = [[40, 6, 200]] if name == "movie" else [[40, 12, 400], [40, 6, 200]]
    assert found["shapes"] == [list(SHAPE), *coarser]
    (limits,) = found["contrast_limits"]
    assert 0 <= limits[0] < limits[1] < 15
    assert found["axes"] == ["t", "y", "x"] and found["not_negative"]


@needs_validators
@pytest.mark.parametrize("name", STORES)
def test_ngff_zarr_opens_and_validates_a_store(stores: dict[str, Path], name: str, tmp_path: Path) -> None:
    found = looked_at("ngff_zarr", stores[name], tmp_path)
    assert found["shape"] == list(SHAPE)
    assert found["scale"] == pytest.approx({"t": 0.02, "y": 0.05, "x": 0.05})
