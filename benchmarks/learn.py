"""Does a model that learned from an archive do better on new movies? And does the next version forget the first?

    taskset -c 0 python benchmarks/learn.py --save

Families of simulated movies differ in structure, lens, camera and dose; movies of one family in everything else. A
version learns from several movies of four families, noisy as they are. Then the version and the shipped model denoise
new movies of these families, and of one that was left out; the truth says which is closer. A second version learns the
fifth family, with and without replay.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import tifffile
from common import parser, save, scratch
from numpy.typing import NDArray
from scipy import stats
from tdenoise_pipeline.archive.add import add
from tdenoise_pipeline.files.sealed_json import read_sealed
from tdenoise_pipeline.ingest.ingest import ingest
from tdenoise_pipeline.inputs.bad_pixels import movie_stand_ins
from tdenoise_pipeline.inputs.model_fit import movie_brightness, movie_drift, movie_scale, open_model
from tdenoise_pipeline.settings.config import ArchiveAddConfig, IngestConfig, TrainConfig
from tdenoise_pipeline.store import store
from tdenoise_pipeline.workflow.learn import LEARNED, train

from tdenoise.inference.denoising import denoise
from tdenoise.inference.tile import Tile
from tdenoise.network import checkpoint, torch_setup
from tdenoise.simulation import varied_scenes
from tdenoise.simulation.nanoparticle import simulate
from tdenoise.simulation.particle import SimulationSettings

Array = NDArray[Any]

SIZE = 128  # rows and columns
JUDGED = 12  # frames in the middle of a new movie
FIRST_NEW = 1000  # seed of the first movie that no model learned from


@dataclass(frozen=True)
class Family:
    """Movies of one structure, lens, camera and dose."""

    structure: Callable[[int, int], Array]  # of a seed and a number of frames: clean movie, vacuum is about 1
    dose: float  # electrons per pixel and frame
    gain: float = 1.0  # counts per electron; above 1, the camera adds up what electrons leave, which differs
    read: float = 0.0  # standard deviation of the read-out [counts]
    focus: float | None = None  # frequency [cycles per pixel] at which the lens first shows nothing
    sign: int = 1  # -1: what was bright is dark

    def clean(self, seed: int, n_frames: int) -> Array:
        """Expected electrons over the dose."""
        movie = self.structure(seed, n_frames).astype(np.float32)
        if self.focus is not None:
            height, width = movie.shape[1:]
            frequency = np.hypot(np.fft.fftfreq(height)[:, None], np.fft.rfftfreq(width))
            transfer = np.cos(np.pi / 2 * (frequency / self.focus) ** 2) * np.exp(-((frequency / 0.3) ** 2))
            level, contrast = movie.mean(), movie.std()
            movie = np.fft.irfft2(np.fft.rfft2(movie - level) * transfer, (height, width))
            movie = level + movie * (contrast / movie.std())
        return np.asarray(np.maximum(1 + self.sign * (movie - 1), 0.02), np.float32)

    def counts(self, clean: Array, seed: int) -> Array:
        """What the camera gives."""
        rng = np.random.default_rng([seed, 91])
        electrons = rng.poisson(self.dose * clean)
        if self.gain == 1:
            return np.asarray(electrons, np.uint16)
        # The charge of an electron varies by half of its mean.
        charge = self.gain * (electrons + 0.5 * np.sqrt(electrons) * rng.standard_normal(clean.shape))
        return np.asarray(
            np.clip(np.round(charge + self.read * rng.standard_normal(clean.shape) + 100), 0, 65535),
            np.uint16,
        )


def particle(pixel_size_nm: float) -> Callable[[int, int], Array]:
    """A crystalline particle whose columns come and go."""

    def make(seed: int, n_frames: int) -> Array:
        settings = SimulationSettings(
            n_frames=n_frames, height=SIZE, width=SIZE, seed=seed, pixel_size_nm=pixel_size_nm
        )
        return simulate(settings).clean

    return make


def of_kind(kind: str) -> Callable[[int, int], Array]:
    """A scene of one kind of `tdenoise.simulation.varied_scenes`."""

    def make(seed: int, n_frames: int) -> Array:
        known = dict(varied_scenes.KINDS)
        varied_scenes.KINDS.clear()
        varied_scenes.KINDS[kind] = 1.0
        try:
            return varied_scenes.varied_scene(5 * 10**7 + seed, n_frames=n_frames, size=SIZE).clean
        finally:
            varied_scenes.KINDS.clear()
            varied_scenes.KINDS.update(known)

    return make


FAMILIES = {
    "particle, counted": Family(particle(0.012), 0.5),
    "particle, dark, defocused": Family(particle(0.016), 1.0, focus=0.12, sign=-1),
    "lattice, integrated": Family(of_kind("lattice"), 2.0, gain=25.0, read=12.0),
    "film, defocused": Family(of_kind("film"), 0.7, focus=0.16),
    "moving particles, integrated, defocused": Family(
        of_kind("particles"), 1.0, gain=40.0, read=20.0, focus=0.2, sign=-1
    ),
}
LEFT_OUT = list(FAMILIES)[-1]


def main() -> None:
    options = parser(__doc__ or "")
    options.add_argument("--n-learned", type=int, default=2, help="movies of each family to learn from")
    options.add_argument("--n-new", type=int, default=3, help="new movies of each family")
    options.add_argument("--n-frames", type=int, default=96)
    options.add_argument("--steps", type=int, default=200, help="of the first version")
    options.add_argument("--update", type=int, default=60, help="steps of each update")
    chosen = options.parse_args()
    if chosen.quick:
        chosen.n_learned, chosen.n_new, chosen.n_frames, chosen.steps, chosen.update = 1, 1, 34, 1, 1
        for name in list(FAMILIES)[1:-1]:
            del FAMILIES[name]
    began = time.process_time()
    with scratch(chosen.folder) as folder:
        results = measure(folder, chosen)
    results["core_s"] = round(time.process_time() - began)
    if chosen.save:
        save("learn", results)


def measure(folder: Path, chosen: Any) -> dict[str, Any]:
    """Learn, compare on new movies, and update with and without replay."""
    archive = folder / "archive"
    names = [name for name in FAMILIES if name != LEFT_OUT]
    for name in names:
        for seed in range(chosen.n_learned):
            keep(archive, made(folder, name, seed, chosen.n_frames)[0])
    settings = {"movie": archive, "device": "cpu", "processes": 1}
    one = folder / "version-1"
    _, first = train(TrainConfig(output=one, steps=chosen.steps, **settings))
    assert first is not None
    print(f"version 1: {first['reason']}", flush=True)
    zero_shot = {}
    for name in FAMILIES:
        seeds = range(FIRST_NEW, FIRST_NEW + chosen.n_new)
        gains = [gain(folder, name, seed, chosen.n_frames, one) for seed in seeds]
        zero_shot[name] = gains
        print(f"{name}: {told(gains)}", flush=True)
    for seed in range(chosen.n_learned):
        keep(archive, made(folder, LEFT_OUT, seed, chosen.n_frames)[0])
    updates = {}
    for replay in (0.5, 0.0):
        output = folder / f"replay-{replay}"
        config = TrainConfig(output=output, steps=chosen.update, replay=replay, from_model=one, **settings)
        train(config)
        updates[str(replay)] = report = read_sealed(output / LEARNED)
        assert report is not None
        print(f"replay {replay}: {report['reason']}", flush=True)
    known = [value for name in names for value in zero_shot[name]]
    card = checkpoint.read_card(one)
    summary = {
        "steps": card["steps"],
        "kept_share": card["metrics"].get("share"),
        "families_learned_db": interval(known),
        "left_out_db": interval(zero_shot[LEFT_OUT]),
    }
    print(summary, flush=True)
    return {
        "summary": summary,
        "gain_over_base_db": {name: [round(v, 4) for v in values] for name, values in zero_shot.items()},
        "by_family_db": {name: interval(values) for name, values in zero_shot.items()},
        "version_1": first,
        "updates": updates,
    }


def made(folder: Path, name: str, seed: int, n_frames: int) -> tuple[Path, Array]:
    """A movie store of a family, and the clean movie [counts above the offset]."""
    family, number = FAMILIES[name], list(FAMILIES).index(name)
    path = folder / f"family{number}-{seed}.zarr"
    clean = family.clean(100 * number + seed, n_frames)
    if not path.exists():
        raw = folder / f"{path.stem}.tif"
        tifffile.imwrite(raw, family.counts(clean, seed))
        ingest(IngestConfig(raw=raw, output=path))
        raw.unlink()
    return path, family.gain * family.dose * clean + (0 if family.gain == 1 else 100)


def keep(archive: Path, movie: Path) -> None:
    add(ArchiveAddConfig(store=(movie,), archive=archive))


def gain(folder: Path, name: str, seed: int, n_frames: int, model: Path) -> float:
    """By how many dB a model is closer to the truth of a new movie than the shipped one."""
    path, truth = made(folder, name, seed, n_frames)
    errors = [mean_square_error(path, truth, place) for place in (checkpoint.BASE, model)]
    return 10 * math.log10(errors[0] / errors[1])


def mean_square_error(path: Path, truth: Array, model: Path) -> float:
    torch_setup.prepare(n_threads=1)
    movie, opened = store.open_store(path, store.MOVIE), open_model(model)
    n_frames = movie.shape[0]
    first = (n_frames - min(JUDGED, n_frames)) // 2
    frames = range(first, first + min(JUDGED, n_frames))
    counts = np.asarray(movie.array[:])
    shown = denoise(
        opened.network,
        counts,
        Tile.whole(counts.shape),
        movie_scale(movie, opened.card),
        frames,
        ensemble=1,
        stand_ins=movie_stand_ins(movie),
        drift=movie_drift(movie, opened.network.architecture),
        brightness=movie_brightness(movie),
    )
    return float(np.mean([np.square(f - truth[t]).mean() for t, f in zip(frames, shown, strict=True)]))


def interval(values: list[float]) -> dict[str, float]:
    """Mean and the half width of its 95 % interval (Student's t), movies as independent."""
    if len(values) < 2:
        return {"mean": values[0], "half": math.nan}
    half = float(stats.t.ppf(0.975, len(values) - 1)) * float(np.std(values, ddof=1)) / math.sqrt(len(values))
    return {"mean": round(float(np.mean(values)), 4), "half": round(half, 4)}


def told(values: list[float]) -> str:
    found = interval(values)
    return f"{found['mean']:+.3f} ± {found['half']:.3f} dB over the shipped model"


if __name__ == "__main__":
    main()
