"""What the benchmarks share: timing, peak memory of a process tree, made-up movies, saved results."""

from __future__ import annotations

import argparse
import contextlib
import datetime
import hashlib
import json
import os
import platform
import resource
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import mrcfile
import numpy as np
import tdenoise_pipeline
import tifffile
from tdenoise_pipeline.inputs import model_fit
from tdenoise_pipeline.resources import budget
from tdenoise_pipeline.store import store
from tdenoise_pipeline.version import VERSION

import tdenoise
from tdenoise.files.atomic import fsync
from tdenoise.network.checkpoint import save_model
from tdenoise.network.split_blind import Architecture, SplitBlind

RESULTS = Path(__file__).parent / "results"
SAMPLE_S = 0.02  # between two looks at the memory of a process tree
DISTINCT_FRAMES = 16  # of a made-up movie; more than a chunk holds, so compression gains nothing from it
PACKAGES = [Path(package.__file__).resolve().parent for package in (tdenoise, tdenoise_pipeline)]


# ---- command line and results ------------------------------------------------------------------------------


def parser(description: str) -> argparse.ArgumentParser:
    """A command line with the options that all benchmarks have."""
    made = argparse.ArgumentParser(description=description.splitlines()[0])
    made.add_argument("--quick", action="store_true", help="a few seconds: does it run, not how fast is it")
    made.add_argument("--save", action="store_true", help="write benchmarks/results/NAME.json")
    made.add_argument("--folder", type=Path, help="where the temporary movies lie (default: the system's)")
    return made


Measure = Callable[[Path, tuple[int, int, int], int, int], dict[str, Any]]


def at_both_ensembles(name: str, description: str, measure: Measure, frames_step: int = 1) -> None:
    """The command line of a benchmark of `apply`: one movie at ensemble 1, and one of a quarter the length at 16.

    Parameters
    ----------
    name : str
        Of the results.
    description : str
    measure : callable
        Takes a folder, the shape of the movie, the ensemble and the number of repeats.
    frames_step : int
        What the number of frames has to be a multiple of.
    """
    options = parser(description)
    options.add_argument("--size", type=int, default=192, help="rows and columns [pixels]")
    options.add_argument("--frames", type=int, default=192, help="at ensemble 16; four times as many at 1")
    options.add_argument("--repeats", type=int, default=3)
    chosen = options.parse_args()
    size, n_frames, repeats = chosen.size, chosen.frames, chosen.repeats
    if chosen.quick:
        size, n_frames, repeats = 64, 32, 1
    if n_frames % frames_step or size > store.CHUNK_PIXELS:
        options.error(f"--frames: a multiple of {frames_step}; --size: at most {store.CHUNK_PIXELS}")
    results = {}
    with scratch(chosen.folder) as folder:
        for ensemble, factor in ((1, 4), (16, 1)):
            shape = (factor * n_frames, size, size)
            results[f"ensemble {ensemble}"] = measure(folder / str(ensemble), shape, ensemble, repeats)
    if chosen.save:
        save(name, results)


def save(name: str, results: Any) -> None:
    """Write results with what is needed to judge and repeat them.

    Raises
    ------
    RuntimeError
        If the code is no longer the one that was there at the start: every command that a benchmark starts
        imports it anew, so the results would be of neither version.
    """
    if source_hash() != SOURCE_AT_START:
        raise RuntimeError("the code changed while it was measured; nothing was saved. Measure again.")
    record = {**circumstances(), "results": results}
    RESULTS.mkdir(exist_ok=True)
    (RESULTS / f"{name}.json").write_text(json.dumps(record, indent=1) + "\n")


def circumstances() -> dict[str, Any]:
    """When, where and of what something was measured, and by which command."""
    return {
        "date": datetime.date.today().isoformat(),
        "device": {"cpu": cpu_model(), "cores": budget.n_cores()},
        "versions": VERSION,
        "commit": commit(),
        "command": " ".join(["python", f"benchmarks/{Path(sys.argv[0]).name}", *map(_bare, sys.argv[1:])]),
    }


def source_hash() -> str:
    """sha256 of the code that is measured."""
    digest = hashlib.sha256()
    for package in PACKAGES:
        for file in sorted(package.rglob("*.py")):
            digest.update(file.read_bytes())
    return digest.hexdigest()


def commit() -> str | None:
    """The commit of the code that is measured, with a mark if the code differs from it."""
    folder = PACKAGES[0].parent

    def git(*words: object) -> str:
        command = ["git", "-C", str(folder), *map(str, words)]
        return subprocess.run(command, check=True, capture_output=True, text=True).stdout.strip()

    try:
        changed = git("status", "--porcelain", "--", *PACKAGES)
        return git("rev-parse", "--short", "HEAD") + ("-changed" if changed else "")
    except (OSError, subprocess.CalledProcessError):
        return None  # an installed copy


def cpu_model() -> str:
    """The processor, by the name the kernel gives it."""
    with contextlib.suppress(OSError):
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()


def _bare(word: str) -> str:
    """A path without its folder, which means nothing elsewhere."""
    return Path(word).name if word.startswith(("/", "~")) else word


@contextlib.contextmanager
def scratch(folder: Path | None) -> Iterator[Path]:
    """A temporary folder that is gone afterwards."""
    with tempfile.TemporaryDirectory(prefix="tdenoise-benchmark-", dir=folder) as name:
        yield Path(name)


SOURCE_AT_START = source_hash()


# ---- time --------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Spent:
    """What one call took, processes that it started and waited for included."""

    wall: float  # [s]
    cpu: float  # of all cores together [s]; suffers less than the wall time where others use the machine

    def __sub__(self, other: Spent) -> Spent:
        return Spent(self.wall - other.wall, self.cpu - other.cpu)


Rounds = Mapping[str, Sequence[Spent]]


def spent(function: Callable[[], Any]) -> Spent:
    """Time of one call."""
    wall, cpu = time.perf_counter(), _cpu_seconds()
    function()
    return Spent(time.perf_counter() - wall, _cpu_seconds() - cpu)


def interleaved(measures: Mapping[str, Callable[[], Spent]], repeats: int) -> dict[str, list[Spent]]:
    """Take every measure in turn, several times over: what disturbs the machine disturbs all alike."""
    taken: dict[str, list[Spent]] = {name: [] for name in measures}
    for repeat in range(repeats):
        for name, measure in measures.items():
            taken[name].append(measure())
        shown = ", ".join(f"{name} {values[-1].wall:.3g} s" for name, values in taken.items())
        print(f"  round {repeat + 1} of {repeats}: {shown}", flush=True)
    return taken


def ratio(above: Sequence[Spent], below: Sequence[Spent]) -> dict[str, float]:
    """Medians of the ratios within each round, of the wall time and of the CPU time."""
    pairs = list(zip(above, below, strict=True))
    return {
        "wall": round(statistics.median(a.wall / b.wall for a, b in pairs), 3),
        "cpu": round(statistics.median(a.cpu / b.cpu for a, b in pairs), 3),
    }


def median(values: Sequence[Spent]) -> float:
    """Median wall time [s]."""
    return statistics.median(value.wall for value in values)


def rounded(taken: Rounds) -> dict[str, dict[str, list[float]]]:
    """Times of all rounds, to be saved."""
    return {
        name: {"wall": [round(v.wall, 3) for v in values], "cpu": [round(v.cpu, 3) for v in values]}
        for name, values in taken.items()
    }


def _cpu_seconds() -> float:
    used = resource.getrusage(resource.RUSAGE_SELF)
    return used.ru_utime + used.ru_stime + _children_cpu_seconds()


def _children_cpu_seconds() -> float:
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


# ---- memory ------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Finished:
    """What a command took."""

    time: Spent
    peak_bytes: int  # resident memory of the process and all its children together
    child_bytes: int  # of the largest of its children


def command_line(*words: object) -> Finished:
    """Run ``tdenoise-pipeline`` in a process of its own.

    Raises
    ------
    RuntimeError
        With its messages, if it fails.
    """
    command = [sys.executable, "-m", "tdenoise_pipeline.cli", *map(str, words)]
    peak = child = 0
    ended = threading.Event()
    with tempfile.TemporaryFile() as messages:
        began, cpu = time.perf_counter(), _children_cpu_seconds()
        process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=messages)

        def watch() -> None:
            nonlocal peak, child
            while not ended.wait(SAMPLE_S):
                total, largest = tree_bytes(process.pid)
                peak, child = max(peak, total), max(child, largest)

        watcher = threading.Thread(target=watch)
        watcher.start()
        code = process.wait()
        took = time.perf_counter() - began
        ended.set()
        watcher.join()
        if code != 0:
            messages.seek(0)
            raise RuntimeError(f"{' '.join(command)} failed:\n{messages.read().decode()}")
    return Finished(Spent(took, _children_cpu_seconds() - cpu), peak, child)


def tree_bytes(pid: int) -> tuple[int, int]:
    """Resident memory of a process and all its children; and the most that one of its children ever had."""
    now, highest, child = 0, 0, 0
    for number in _tree(pid):
        try:
            lines = Path(f"/proc/{number}/status").read_text().splitlines()
        except OSError:
            continue  # ended in between
        fields = dict(line.split(":", 1) for line in lines)
        now += _kib(fields.get("VmRSS"))
        highest = max(highest, _kib(fields.get("VmHWM")))
        if number != pid:
            child = max(child, _kib(fields.get("VmHWM")))
    return 1024 * max(now, highest), 1024 * child


def resident_bytes() -> int:
    """Resident memory of this process."""
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")


def _tree(pid: int) -> Iterator[int]:
    yield pid
    with contextlib.suppress(OSError):
        for file in Path(f"/proc/{pid}/task").glob("*/children"):
            for child in file.read_text().split():
                yield from _tree(int(child))


def _kib(field: str | None) -> int:
    return int(field.split()[0]) if field else 0


# ---- movies and models -------------------------------------------------------------------------------------


def frames(shape: tuple[int, int, int], dtype: str, dose: float = 2.0) -> Iterator[np.ndarray]:
    """Poisson counts of a scene that drifts, over and over the same few frames to be quick."""
    n_frames, height, width = shape
    t, y, x = np.ogrid[: min(n_frames, DISTINCT_FRAMES), :height, :width]
    clean = dose * (1 + 0.3 * np.sin((x + 0.2 * t) / 3.0) * np.cos(y / 4.0))
    distinct = np.random.default_rng(0).poisson(clean).astype(dtype)
    for number in range(n_frames):
        yield distinct[number % len(distinct)]


def write_mrc(path: Path, shape: tuple[int, int, int]) -> Path:
    """A movie of uint16 counts, on the disk when this returns."""
    with mrcfile.new_mmap(path, shape, mrc_mode=6, overwrite=True) as file:
        for number, frame in enumerate(frames(shape, "uint16")):
            file.data[number] = frame
        file.set_image_stack()
    fsync(path)
    return path


def write_tiff(path: Path, shape: tuple[int, int, int]) -> Path:
    """An uncompressed movie of uint8 counts, on the disk when this returns."""
    tifffile.imwrite(path, frames(shape, "uint8"), shape=shape, dtype="uint8", photometric="minisblack")
    fsync(path)
    return path


def random_model(folder: Path, movie: Path) -> Path:
    """The standard network with random weights: as fast as a trained one, and here at once."""
    scale = model_fit.movie_scale(store.open_store(movie, store.MOVIE))
    snr = scale.contrast / scale.noise
    details = {
        "movies": [{"id": "none", "source": "none", "snr": snr, "held_out": []}],
        "ancestors": [],
        "plan": "none",
    }
    save_model(folder, SplitBlind(Architecture()), details)
    return folder
