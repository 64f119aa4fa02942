"""Make the gallery: eight recordings, each simulated, denoised and judged by the real steps.

Writes ``docs/gallery/NAME.webp`` (one frame: raw, mean of nine, denoised), ``docs/gallery/NAME.json`` (what the report
said) and, from all of these, ``docs/gallery.md``. Scenes come from `tdenoise.simulation` and from this file; the same
seed gives the same movie.

    python docs/make_gallery.py [NAME ...] [--frames 64] [--size 96] [--steps 0] [--page-only]

With ``--steps N`` the model that comes with tdenoise is adapted to every movie first; with 0 it is used as it is. What
was used is written on the page.
"""

from __future__ import annotations

import argparse
import json
import tempfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from scipy import ndimage

Array = NDArray[Any]
FOLDER, PAGE = Path(__file__).parent / "gallery", Path(__file__).parent / "gallery.md"
MOST_BYTES = 60_000


def particle(n: int, size: int, dose: float, **given: Any) -> Array:
    """Counts of a platinum particle on ceria."""
    from tdenoise.simulation.nanoparticle import simulate
    from tdenoise.simulation.particle import SimulationSettings

    return simulate(
        SimulationSettings(n_frames=n, height=size, width=size, dose=dose, seed=3, **given)
    ).counts


def flickering(n: int, size: int) -> Array:
    """The particle under a beam that is up to 40 % too bright or too dark, and off in two frames."""
    from tdenoise.simulation.nanoparticle import simulate
    from tdenoise.simulation.particle import SimulationSettings

    clean = simulate(SimulationSettings(n_frames=n, height=size, width=size, dose=1.0, seed=3)).clean
    rng = np.random.default_rng(5)
    level = 1 + 0.3 * np.sin(np.arange(n) / 4) + 0.1 * rng.standard_normal(n).clip(-1, 1)
    level[[n // 3, 2 * n // 3]] = 0
    return rng.poisson(2 * level[:, None, None] * clean).astype(np.uint8)


def amorphous(n: int, size: int) -> Array:
    """Grains without a lattice; clusters of few atoms move on an amorphous film."""
    rng = np.random.default_rng(7)
    film = ndimage.gaussian_filter(rng.standard_normal((size, size)), 1.3, mode="wrap")
    film = 1 + 0.08 * film / film.std()
    places = rng.uniform(10, size - 10, (7, 2)) + np.cumsum(rng.normal(0, 0.25, (n, 7, 2)), axis=0)
    frames = np.array([film - sum(_spot(size, p, 2.0, 0.35) for p in spots) for spots in places])
    return rng.poisson(3 * frames.clip(0.05)).astype(np.uint8)


def diffusion(n: int, size: int) -> Array:
    """Particles of some nanometres, at low magnification, that move at random over a support with a slope."""
    rng = np.random.default_rng(9)
    support = 1 + 0.15 * np.linspace(-1, 1, size)[:, None] * np.ones(size)
    places = rng.uniform(8, size - 8, (12, 2)) + np.cumsum(rng.normal(0, 0.7, (n, 12, 2)), axis=0)
    radii = rng.uniform(2.0, 4.5, 12)
    frames = np.array(
        [
            support * np.prod([1 - _disc(size, p, r, 0.5) for p, r in zip(spots, radii, strict=True)], axis=0)
            for spots in places
        ]
    )
    return rng.poisson(1.5 * frames.clip(0.05)).astype(np.uint8)


def unrelated(n: int, size: int) -> Array:
    """Spots that are somewhere else in every frame: nothing that a network could learn from other frames."""
    rng = np.random.default_rng(11)
    frames = np.array(
        [1 - sum(_spot(size, p, 1.5, 0.6) for p in rng.uniform(5, size - 5, (20, 2))) for _ in range(n)]
    )
    return rng.poisson(1.0 * frames.clip(0.05)).astype(np.uint8)


def _spot(size: int, place: Array, width: float, height: float) -> Array:
    y, x = np.mgrid[:size, :size]
    return np.asarray(height * np.exp(-((y - place[0]) ** 2 + (x - place[1]) ** 2) / (2 * width**2)))


def _disc(size: int, place: Array, radius: float, depth: float) -> Array:
    y, x = np.mgrid[:size, :size]
    return np.asarray(depth / (1 + np.exp(3 * (np.hypot(y - place[0], x - place[1]) - radius))))


# Name: title, what is recorded, counts, pixel size [nm], whether a blind spot of the movie's own must be trained.
SCENES: Mapping[str, tuple[str, str, Callable[[int, int], Array], float, bool]] = {
    "high_dose": (
        "A particle at high dose",
        "Platinum on ceria, 10 electrons per pixel and frame.",
        lambda n, size: particle(n, size, 10.0),
        0.014,
        False,
    ),
    "low_dose": (
        "The same at low dose",
        "Half an electron per pixel and frame: single frames show nothing.",
        lambda n, size: particle(n, size, 0.5),
        0.014,
        False,
    ),
    "drifting": (
        "A drifting scene",
        "The whole scene moves by up to one pixel per frame, at 2 electrons per pixel and frame.",
        lambda n, size: particle(n, size, 2.0, drift_share=0.15, drift_speed_px=1.0),
        0.014,
        False,
    ),
    "flickering": (
        "A flickering beam",
        "The brightness of frames varies by 40 %, and two frames are dark.",
        flickering,
        0.014,
        False,
    ),
    "correlated": (
        "A correlated detector",
        "The camera spreads every electron over its neighbours, so that their noise is alike. The model was trained "
        "with a larger blind spot, from the start.",
        lambda n, size: particle(n, size, 2.0, blur_px=0.6),
        0.014,
        True,
    ),
    "amorphous": (
        "An amorphous support",
        "Small clusters move on a film without any lattice, 3 electrons per pixel and frame.",
        amorphous,
        0.02,
        False,
    ),
    "diffusion": (
        "Diffusion at low magnification",
        "Particles of some nanometres move at random, 1.5 electrons per pixel and frame.",
        diffusion,
        0.8,
        False,
    ),
    "unrelated": (
        "Where denoising does not help",
        "Spots that are somewhere else in every frame: no other frame tells anything of them.",
        unrelated,
        0.014,
        False,
    ),
}


def make(name: str, n: int, size: int, steps: int, own_steps: int) -> None:
    """Simulate, ingest, denoise and judge one recording; keep its picture and what the report says."""
    import tdenoise_pipeline as tdp
    from tdenoise_pipeline.evaluate.report import recording_of
    from tdenoise_pipeline.evaluate.sentences import summary
    from tdenoise_pipeline.evaluate.verdicts import verdicts
    from tdenoise_pipeline.store import store

    from tdenoise.network.checkpoint import BASE

    _, _, counts, pixel, needs_own = SCENES[name]
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        np.save(folder / "movie.npy", counts(n, size))
        movie = tdp.ingest(
            folder / "movie.npy", folder / "movie.zarr", pixel_size=pixel, frame_time=0.02, progress=False
        )
        n_steps = own_steps if needs_own else steps
        model: Any = BASE
        if n_steps:
            start = {"from_model": "scratch"} if needs_own else {}
            model = tdp.train(movie, folder / "model", steps=n_steps, progress=False, **start)
        denoised = tdp.apply(movie, folder / "denoised.zarr", model=model, share="0/1", progress=False)
        metrics = tdp.evaluate(denoised, movie=movie, model=model, progress=False)
        opened = [
            store.open_store(Path(p), kind) for p, kind in ((movie, store.MOVIE), (denoised, store.DENOISED))
        ]
        said = verdicts(metrics, recording_of(opened[0], opened[1], None))
        picture = folder / "picture.png"
        tdp.export(
            denoised,
            picture,
            movie=movie,
            panels="raw,mean9,denoised",
            frames=f"{n // 2}:{n // 2 + 1}",
            columns=1,
            progress=False,
        )
        _shrink(picture, FOLDER / f"{name}.webp")
    found = {
        "shape": [n, size, size],
        "steps": n_steps,
        "verdicts": [{"question": v.question, "word": v.word, "headline": v.headline} for v in said],
        "summary": summary(metrics)[:2],
        "notes": metrics["notes"],
    }
    (FOLDER / f"{name}.json").write_text(json.dumps(found, indent=1) + "\n")


def _shrink(picture: Path, output: Path) -> None:
    """Keep a picture small."""
    with Image.open(picture) as opened:
        grey = opened.convert("L")
    for quality in (80, 60, 40, 20):
        grey.save(output, quality=quality, method=6)
        if output.stat().st_size < MOST_BYTES:
            return
    raise RuntimeError(f"{output} is larger than {MOST_BYTES} bytes; use a smaller --size")


def write_page() -> None:
    """The page, from what lies in the folder."""
    lines = [
        "# Gallery",
        "",
        "Eight recordings, and what the report says of each. All are simulated; each was ingested, denoised and judged",
        "by the same commands as your movies. From left to right: a raw frame, the mean of nine frames, the denoised",
        "frame.",
        "`python docs/make_gallery.py` makes this page and its pictures.",
    ]
    for name, (title, what, *_) in SCENES.items():
        found = json.loads((FOLDER / f"{name}.json").read_text())
        n, height, width = found["shape"]
        how = (
            f"adapted for {found['steps']} steps"
            if found["steps"]
            else "the model that comes with tdenoise, as it is"
        )
        if SCENES[name][4]:
            how = f"trained on this movie alone for {found['steps']} steps"
        lines += ["", f"## {title}", "", f"{what} {n} frames of {height} x {width} pixels; {how}.", ""]
        lines += [
            f"![{title}: raw, mean of nine frames, denoised](gallery/{name}.webp)",
            "",
            "The report says:",
            "",
        ]
        lines += [f"- {v['question']} **{v['word']}** {v['headline']}" for v in found["verdicts"]]
        lines += [f"- {line[:1].upper()}{line[1:]}" for line in found["summary"]]
        lines += [f"- Note: {line}" for line in found["notes"]]
    PAGE.write_text("\n".join(lines) + "\n")


def main() -> None:
    """Make what is named, or all of it."""
    options = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    options.add_argument("name", nargs="*", help=f"of {', '.join(SCENES)}")
    options.add_argument("--frames", type=int, default=64)
    options.add_argument("--size", type=int, default=96)
    options.add_argument("--steps", type=int, default=0, help="to adapt the model to each movie")
    options.add_argument("--own-steps", type=int, default=400, help="where a model of its own is needed")
    options.add_argument("--page-only", action="store_true", help="write the page from what is there")
    chosen = options.parse_args()
    FOLDER.mkdir(exist_ok=True)
    for name in () if chosen.page_only else chosen.name or SCENES:
        make(name, chosen.frames, chosen.size, chosen.steps, chosen.own_steps)
        print(name, flush=True)  # the user waits
    if all((FOLDER / f"{name}.json").exists() for name in SCENES):
        write_page()


if __name__ == "__main__":
    main()
