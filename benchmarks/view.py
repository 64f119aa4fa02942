"""How soon `view` shows a picture of a large movie, and how many frames a second it plays, measured in Chromium.

The movie is made up: a Poisson pattern, and a smooth one in the place of the denoised movie, with its pyramid. The page
is asked to play 30 frames a second, at the whole frame and zoomed in; the first round reads every frame from the disk.

    python benchmarks/view.py [--size 4096] [--frames 64] [--save] [--quick]
"""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import zarr
from common import frames, parser, save, scratch
from tdenoise_pipeline.ingest.ingest import ingest
from tdenoise_pipeline.settings.config import IngestConfig
from tdenoise_pipeline.store import integrity, pyramid, store, writing
from tdenoise_pipeline.store.blocks import Region
from tdenoise_pipeline.store.shards import shards_in

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "tests"))
from chromium import Page

FIRST_S, RATE = 1.5, 10  # targets: seconds to the first picture, frames per second
ROUND_S = 3.0


def main() -> None:
    options = parser(__doc__ or "")
    options.add_argument("--size", type=int, default=4096)
    options.add_argument("--frames", type=int, default=64)
    chosen = options.parse_args()
    if chosen.quick:
        chosen.size, chosen.frames = 400, 8
    with scratch(chosen.folder) as folder:
        make(folder, (chosen.frames, chosen.size, chosen.size))
        result = measure(folder / "denoised.zarr")
    print(
        f"{chosen.size} x {chosen.size}: first picture after {result['first_picture_s']} s (target {FIRST_S}); "
        f"frames/s (target {RATE}): {result['frames_per_s_first_round']} when read for the first time, "
        f"{result['frames_per_s']} later, {result['frames_per_s_zoomed']} zoomed in"
    )
    if chosen.save:
        save("view", {"shape": [chosen.frames, chosen.size, chosen.size], **result})


def make(folder: Path, shape: tuple[int, int, int]) -> None:
    """A movie store and a denoised store of this shape."""
    raw = np.lib.format.open_memmap(folder / "raw.npy", "w+", np.uint8, shape)
    tile = (shape[0], *(min(512, n) for n in shape[1:]))
    for frame, small in zip(raw, frames(tile, "uint8"), strict=True):
        copies = [-(-n // size) for n, size in zip(shape[1:], small.shape, strict=True)]
        frame[:] = np.tile(small, copies)[: shape[1], : shape[2]]
    raw.flush()
    ingest(
        IngestConfig(raw=folder / "raw.npy", output=folder / "movie.zarr", frame_time=0.01, pixel_size=0.02)
    )
    movie, path = store.open_store(folder / "movie.zarr", store.MOVIE), folder / "denoised.zarr"
    geometry, levels = store.Geometry.of(shape), pyramid.levels_of(store.DENOISED, shape)
    dtype = np.dtype(np.float32)
    writing.create(path, store.DENOISED, shape, dtype, geometry, movie.coordinates, movie.units, levels)
    array = zarr.open_array(path / store.DENOISED, mode="r+")
    y, x = np.ogrid[: geometry.shard[1], : geometry.shard[2]]
    waves = 2 + np.sin(x / 3.0) * np.cos(y / 4.0)
    smooth = np.stack([waves + 0.1 * np.sin(x / 50 + t) for t in range(geometry.shard[0])])
    smooth = writing.round_mantissa(smooth.astype(np.float32))
    hashes = {
        store.DENOISED: dict(
            writing.write_shard(
                path / store.DENOISED, array, region, smooth[tuple(slice(n) for n in region.shape)]
            )
            for region in shards_in(Region(*((0, n) for n in shape)), geometry.shard)
        )
    }
    hashes |= pyramid.build(
        path, levels, folder / "done", writing.pyramid_values, lambda: None, lambda: None, 2
    )
    ids = {
        name: integrity.content_id(name, zarr.open_array(path / name, mode="r"), found)
        for name, found in hashes.items()
    }
    told = {
        level.path: {"id": ids[level.path], "frames": level.frames, "pixels": level.pixels}
        for level in levels
    }
    for level in levels:
        writing.record_hashes(path, level.path, hashes[level.path])
    attributes: dict[str, Any] = {"kind": "denoised", "plan": "none", "id": ids[store.DENOISED]}
    attributes |= {store.PYRAMID: told, "movie": {"id": movie.id, "name": "movie.zarr", "source": "raw.npy"}}
    writing.finish(path, store.DENOISED, attributes, hashes[store.DENOISED])


def measure(denoised: Path) -> dict[str, float]:
    """Times that a browser sees."""
    words = [sys.executable, "-m", "tdenoise_pipeline.cli", "view", str(denoised), "--no-browser"]
    server = subprocess.Popen(words, stdout=subprocess.PIPE, text=True)
    try:
        assert server.stdout is not None
        found = re.search(r"http://\S+", server.stdout.readline())
        assert found is not None
        with Page(1280, 900) as page:
            began = time.perf_counter()
            page.go(found[0])
            page.wait_for("typeof state !== 'undefined' && state.shown !== null")
            first = time.perf_counter() - began
            page.value("document.getElementById('speed').value = '30'; toggle()")
            rounds = [_rate(page) for _ in range(3)]
            page.value("toggle(); zoom(1000)")
            page.wait_for("state.shown.where.pixels === 1")
            page.value("toggle()")
            zoomed = _rate(page)
    finally:
        server.terminate()
        server.wait(30)
    return {
        "first_picture_s": round(first, 2),
        "frames_per_s_first_round": rounds[0],
        "frames_per_s": rounds[-1],
        "frames_per_s_zoomed": zoomed,
    }


def _rate(page: Page) -> float:
    before, began = page.value("state.drawn"), time.perf_counter()
    time.sleep(ROUND_S)
    return round((page.value("state.drawn") - before) / (time.perf_counter() - began), 1)


if __name__ == "__main__":
    if shutil.which("chromium") is None:
        sys.exit("view.py needs Chromium")
    main()
