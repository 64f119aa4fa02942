"""How well `ingest` knows how a scene moves: error against the truth, and drifts of scenes that stay.

Movies: the simulated ones with a true drift (FILE.npz, all doses), and the scenes of ``stress_scenes.py``
(``--scenes FILE``): those that stay, for which every drift is false, and those whose motion can be drawn again from
their seed, a film that drifts and a particle that is shaken. What is not there is named and left out.

    python benchmarks/drift.py [FILE.npz ...] [--seed 401 402 ...] [--dose 1 0.25] [--save] [--quick]
"""

from __future__ import annotations

import zlib
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
from common import parser, save
from honesty import SCENES, load
from numpy.typing import NDArray
from tdenoise_pipeline.ingest.measurements import measure_drift

STILL = (
    "usual", "bars", "vacancy_static", "vacancy_hopping", "flicker", "dose_step", "decay", "one_frame_events",
)  # fmt: skip


def main() -> None:
    options = parser(__doc__ or "")
    options.add_argument("movies", type=Path, nargs="*", metavar="FILE.npz")
    options.add_argument("--scenes", type=Path, default=SCENES, metavar="FILE.py")
    options.add_argument("--seed", type=int, nargs="+", default=list(range(401, 409)))
    options.add_argument("--dose", type=float, nargs="+", default=[1.0, 0.25])
    chosen = options.parse_args()
    if chosen.quick:
        chosen.seed, chosen.dose = [0], [1.0]
    results: dict[str, Any] = {}
    for file in chosen.movies:
        results |= _simulated(file)
    if chosen.scenes.exists():
        results |= _scenes(load(chosen.scenes), chosen.seed, chosen.dose)
    else:
        print(f"{chosen.scenes}: is not there, so its scenes are left out")
    if chosen.save:
        save("drift", results)


def _simulated(file: Path) -> dict[str, Any]:
    """Errors over a whole movie, at every dose of a file."""
    found = {}
    with np.load(file, allow_pickle=False) as arrays:
        for name in (n for n in arrays.files if n.startswith("counts_")):
            found[f"{file.stem} {name}"] = error = _error(arrays[name], arrays["drift_px"])
            print(f"{file.stem} {name}: error {error} pixels (rows, columns)", flush=True)
    return found


def _scenes(made: Any, seeds: list[int], doses: list[float]) -> dict[str, Any]:
    """How often a scene that stays has a drift, and the errors of those that move."""
    found: dict[str, Any] = {}
    for dose in doses:
        moves = [_measured(made.make(name, seed, dose)[1]) for name in STILL for seed in seeds]
        n_false = sum(moved is not None and bool(moved.any()) for moved in moves)
        found[f"still {dose:g}"] = {"movies": len(moves), "false": n_false}
        print(f"dose {dose:g}: {n_false} of {len(moves)} scenes that stay have a drift", flush=True)
        for name, motion in (("amorphous_drift", _walk), ("vibration", _shaking)):
            errors = [_error(made.make(name, seed, dose)[1], motion(made, name, seed)) for seed in seeds]
            found[f"{name} {dose:g}"] = errors
            print(f"dose {dose:g}, {name}: errors {errors} pixels", flush=True)
    return found


def _walk(made: Any, name: str, seed: int) -> NDArray[np.float64]:
    """How the film of this seed moves."""
    rng = np.random.default_rng([zlib.crc32(name.encode()), seed])
    made.film(rng, 256)
    return np.asarray(np.cumsum(rng.normal(0, 0.25, (made.T, 2)), 0))


def _shaking(made: Any, name: str, seed: int) -> NDArray[np.float64]:
    """How the particle of this seed moves."""
    rng = np.random.default_rng([zlib.crc32(name.encode()), seed])
    made._usual(rng)
    return np.asarray(rng.normal(0, 2, (made.T, 2)))


def _measured(counts: NDArray[Any]) -> NDArray[np.float64] | None:
    """The drift of a movie in memory; None where it does not show."""

    class Chunked(SimpleNamespace):
        def __getitem__(self, key: Any) -> Any:
            return counts[key]

    found = measure_drift(Chunked(shape=counts.shape, chunks=(16, *counts.shape[1:])), ())
    return None if found is None else found.moved


def _error(counts: NDArray[Any], truth: NDArray[Any]) -> list[float] | None:
    """Root mean square over all frames, rows and columns [pixels]; None where nothing was measured."""
    found = _measured(counts)
    if found is None:
        return None
    off = found - truth
    return [float(x) for x in (off - off.mean(axis=0)).std(axis=0).round(2)]


if __name__ == "__main__":
    main()
