"""Open a store with a library for OME-Zarr, and tell what it found as JSON: `python ome_stores.py LIBRARY STORE`."""

import json
import sys
from collections.abc import Callable
from typing import Any


def ome_zarr_models(store: str) -> dict[str, Any]:
    """The models check every entry of the metadata."""
    import ome_zarr_models
    import zarr

    image = ome_zarr_models.open_ome_zarr(zarr.open_group(store, mode="r"))
    ome = image.attributes.ome
    return {"type": type(image).__name__, "version": ome.version, "omero": ome.omero is not None}


def ome_zarr(store: str) -> dict[str, Any]:
    """The reader that napari-ome-zarr uses."""
    from ome_zarr import io, reader

    (node,) = list(reader.Reader(io.parse_url(store))())
    return {
        "shapes": [level.shape for level in node.data],
        "contrast_limits": node.metadata["contrast_limits"],
        "axes": [axis["name"] for axis in node.metadata["axes"]],
        "not_negative": bool((node.data[-1][3].compute() >= 0).all()),
    }


def ngff_zarr(store: str) -> dict[str, Any]:
    """Validates while it opens."""
    import ngff_zarr

    image = ngff_zarr.from_ngff_zarr(store, validate=True).images[0]
    return {"shape": image.data.shape, "scale": image.scale}


LIBRARIES: dict[str, Callable[[str], dict[str, Any]]] = {
    f.__name__: f for f in (ome_zarr_models, ome_zarr, ngff_zarr)
}

if __name__ == "__main__":
    print(json.dumps(LIBRARIES[sys.argv[1]](sys.argv[2])))
