"""Everything that is to be known about a GPU, in one call of less than nine minutes.

Each section is a process of its own with its own share of the time; one that fails or takes too long is recorded, and
the others go on. `--device cpu --quick` runs the same code on a small scale within this process: so it is tested.

    python benchmarks/gpu.py [--movie TRUTH.npz] [--save] [--device cpu] [--quick]

Sections: what the device is and its measured peak; blindness (gradients) and equality of blocks; `udvd` and
`split-blind` trained for equal time; throughput and memory of the models; variants of the bare network; where the time
of a block goes; `apply` from store to store. docs/how_to/gpu.md explains the figures.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import time
import traceback
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from common import frames, parser, save, scratch, spent
from tdenoise_pipeline.apply.apply import apply
from tdenoise_pipeline.ingest.ingest import ingest
from tdenoise_pipeline.inputs.model_fit import movie_scale
from tdenoise_pipeline.settings.config import (
    ApplyConfig,
    IngestConfig,
    SimulateConfig,
    TrainConfig,
)
from tdenoise_pipeline.store import store, writing
from tdenoise_pipeline.store.blocks import Region
from tdenoise_pipeline.store.shards import shards_in
from tdenoise_pipeline.train.train import train_model
from tdenoise_pipeline.workflow.simulate import write_simulation
from throughput import MODELS, SCALE, denoised, made, megamac_per_pixel

from tdenoise.evaluation.metrics import psnr
from tdenoise.inference.batches import PRECISIONS
from tdenoise.inference.denoising import denoise
from tdenoise.inference.memory import RUN
from tdenoise.inference.tile import Tile
from tdenoise.network.checkpoint import BASE, load_model
from tdenoise.network.split_blind import stack_window
from tdenoise.noise.neighbour_frames import window_indices

GOAL = 75  # frames of 4096 x 4096 per second, read to write: the camera's full rate


@dataclass(frozen=True)
class Setting:
    """What all sections are told."""

    device: str
    quick: bool
    folder: Path
    movie: Path | None

    @property
    def sizes(self) -> tuple[int, int]:
        """Small and large frames [pixels]."""
        return (32, 64) if self.quick else (1024, 4096)

    @property
    def training(self) -> float:
        """Time for the training of one model [s]."""
        return 1.0 if self.quick else 70.0


def synchronize(device: str) -> None:
    """Wait for a GPU, whose work is only queued by a call."""
    if device == "cuda":
        torch.cuda.synchronize()


def seconds(setting: Setting, function: Callable[[], Any], repeats: int = 3) -> float:
    """Shortest time of a call after one that does not count [s]."""

    def call() -> None:
        function()
        synchronize(setting.device)

    call()
    return min(spent(call).wall for _ in range(1 if setting.quick else repeats))


# ---- sections ----------------------------------------------------------------------------------------------


def peak(setting: Setting) -> dict[str, Any]:
    """The device, and how fast it multiplies large matrices: the peak that shares are taken of."""
    found: dict[str, Any] = {"device": "cpu", "threads": torch.get_num_threads()}
    if setting.device == "cuda":
        properties = torch.cuda.get_device_properties(0)
        found = {
            "device": properties.name,
            "memory_gigabytes": round(properties.total_memory / 1e9, 1),
            "cuda": torch.version.cuda,
            "cudnn": torch.backends.cudnn.version(),
        }
    n = 256 if setting.quick else 8192
    teraflops = {}
    for precision in PRECISIONS:
        a = torch.randn(n, n, device=setting.device)
        a = a.bfloat16() if precision == "bfloat16" else a
        torch.backends.cuda.matmul.allow_tf32 = precision == "tf32"
        teraflops[precision] = round(2 * n**3 / seconds(setting, lambda a=a: a @ a) / 1e12, 3)
    return {**found, "matmul_teraflops": teraflops}


def correct(setting: Setting) -> dict[str, Any]:
    """Blindness by gradients, blocks against the whole, and the same bits again."""
    found: dict[str, Any] = {}
    for name, architecture in MODELS.items():
        if name == "thinned":
            continue  # sees its pixel, by design
        network = made(architecture).to(setting.device)
        size = 2 * architecture.stride if setting.quick else 96
        movie = torch.rand(9, size, size, device=setting.device, requires_grad=True)
        window = stack_window(movie, window_indices(4, 9, architecture.window), architecture.bins)
        row, column = size // 2 + 1, size // 2
        network(window[None], movie[4][None, None])[0, 0, row, column].backward()
        assert movie.grad is not None
        slope, radius = movie.grad[4].abs(), architecture.blind_radius
        hidden = slope[row - radius : row + radius + 1, column - radius : column + radius + 1]
        # A block of one core and its halo, cut out of a frame that goes on below it.
        halo, core, n_frames = architecture.spatial_halo, 2 * architecture.stride, 2 if setting.quick else 8
        shape = (8, core + 2 * halo, core if setting.quick else 256)
        made_up = np.stack(list(frames(shape, "uint8")))
        whole, again = (
            np.stack(list(denoised(network, made_up, n_frames, device=setting.device))) for _ in range(2)
        )
        first = min(architecture.window, 8 - n_frames)
        tile, wanted = Tile(8, 0, (0, core), (0, shape[2])), range(first, first + n_frames)
        part = denoise(
            network, made_up[:, : core + halo], tile, SCALE, wanted, ensemble=1, device=setting.device
        )
        difference = np.abs(np.stack(list(part)) - whole[:, :core]).max() / np.abs(whole).max()
        found[name] = {
            "largest_gradient_in_the_blind_spot": float(hidden.max()),
            "largest_gradient_elsewhere_in_the_frame": float(slope.max()),
            "blind": bool(hidden.max() == 0 and slope.max() > 0),
            "block_to_whole_relative": float(difference),
            "block_equals_whole": bool(difference <= 1e-5),
            "same_bits_again": bool(np.array_equal(whole, again)),
        }
    return found


def training(setting: Setting) -> dict[str, Any]:
    """`udvd` and `split-blind` from random weights for the same time on a movie with known truth; PSNR in one pass."""
    folder = setting.folder / "training"
    if setting.movie is None:
        size, n_frames = (32, 24) if setting.quick else (192, 160)
        made_up = SimulateConfig(output=folder, size=size, n_frames=n_frames, dose=2.0)
        write_simulation(made_up)
    truth_file = setting.movie or folder / "truth.npz"
    folder.mkdir(exist_ok=True)
    with np.load(truth_file, allow_pickle=False) as arrays:
        entry = json.loads(str(arrays["attrs"]))["noise"][-1]
        noisy, clean = arrays[entry["key"]], arrays["clean"]
    np.save(folder / "movie.npy", noisy)
    ingest(IngestConfig(raw=folder / "movie.npy", output=folder / "movie.zarr"))
    movie = store.open_store(folder / "movie.zarr", store.MOVIE)
    found: dict[str, Any] = {"movie": truth_file.name, "dose": entry["dose"], "seconds": setting.training}
    for name in ("split-blind", "udvd"):
        card = train_model(
            TrainConfig(
                movie=(folder / "movie.zarr",),
                output=folder / name,
                model=name,
                blind_radius=0,
                time_limit=setting.training,
                steps=4 if setting.quick else None,
                from_model=Path("scratch"),
                device=setting.device,
            )
        )
        network = load_model(folder / name).network.to(setting.device)
        whole, scale = Tile.whole(noisy.shape), movie_scale(movie, card)
        result = denoise(network, noisy, whole, scale, range(len(noisy)), ensemble=1, device=setting.device)
        error = np.mean([np.mean((f / entry["dose"] - c) ** 2) for f, c in zip(result, clean, strict=True)])
        found[name] = {
            "steps": card["steps"],
            "psnr": round(psnr(float(error), float(clean.max() - clean.min())), 2),
        }
    return found


def speed(setting: Setting) -> dict[str, Any]:
    """Frames per second of `denoise`, from counts to frames on the host, one pass; memory and share of the peak."""
    teraflops = peak(setting)["matmul_teraflops"]
    found: dict[str, Any] = {}
    for size in setting.sizes:
        for name, architecture in MODELS.items():
            if name == "udvd" and size == setting.sizes[1]:
                continue  # a minute per frame would be no news
            n_frames = 2 if name == "udvd" else RUN if setting.quick or size > 1024 else 4 * RUN
            movie = counts(n_frames + 2 * architecture.window, size)
            network = made(architecture).to(setting.device)
            small = np.ascontiguousarray(movie[:, :32, :32])
            megamac = megamac_per_pixel(
                lambda n, network=network, small=small: [*denoised(network, small, n, device=setting.device)],
                n_frames // 2, 32 * 32,
            )  # fmt: skip
            for precision in PRECISIONS:
                key = f"{name}, {size} x {size}, {precision}"
                if setting.device == "cuda":
                    torch.cuda.reset_peak_memory_stats()
                try:
                    took = seconds(
                        setting,
                        lambda network=network, movie=movie, n=n_frames, precision=precision: [
                            *denoised(network, movie, n, device=setting.device, precision=precision)
                        ],
                        repeats=2,
                    )
                except (RuntimeError, torch.OutOfMemoryError) as error:
                    found[key] = {"failed": str(error)[:300]}
                    continue
                done = 2e-6 * megamac * size**2 * n_frames / took
                found[key] = {
                    "frames_per_s": round(n_frames / took, 2),
                    "megamac_per_pixel": megamac,
                    "teraflops": round(done, 4),
                    "share_of_matmul_peak": round(done / teraflops[precision], 4),
                }
                if setting.device == "cuda":
                    found[key]["gpu_gigabytes"] = round(torch.cuda.max_memory_allocated() / 1e9, 2)
            del network
    return found


def variants(setting: Setting) -> dict[str, Any]:
    """The bare split-blind network on one frame: memory layout, torch.compile, CUDA graphs, in each precision."""
    size = setting.sizes[0]
    architecture = MODELS["split-blind"]
    looks = len(architecture.bins) * 2 * architecture.frame_width
    found: dict[str, Any] = {}
    for layout, memory_format in (
        ("contiguous", torch.contiguous_format),
        ("channels_last", torch.channels_last),
    ):
        for precision in PRECISIONS:
            torch.backends.cudnn.allow_tf32 = torch.backends.cuda.matmul.allow_tf32 = precision == "tf32"
            network = made(architecture).to(setting.device, memory_format=memory_format)
            cells = size // architecture.unshuffle
            x = torch.randn(1, looks, cells, cells, device=setting.device)
            x = x.contiguous(memory_format=memory_format)
            y = torch.randn(1, 1, size, size, device=setting.device)

            def bare(function: Any = network.from_looks, x: Any = x, y: Any = y, to: str = precision) -> Any:
                with (
                    torch.inference_mode(),
                    torch.autocast(setting.device, torch.bfloat16, enabled=to == "bfloat16"),
                ):
                    return function(x, y)

            key = f"{layout}, {precision}"
            found[key] = {"plain": _milliseconds(setting, bare)}
            if setting.device == "cuda" and layout == "channels_last":
                found[key]["cuda_graph"] = _attempt(lambda bare=bare: _milliseconds(setting, _graph(bare)))
                compiled = torch.compile(network.from_looks, mode="max-autotune-no-cudagraphs")
                found[key]["compiled"] = _attempt(
                    lambda bare=bare, compiled=compiled: _milliseconds(setting, lambda: bare(compiled))
                )
    return {"size": size, "milliseconds_per_frame": found}


def _milliseconds(setting: Setting, function: Callable[[], Any]) -> float:
    return round(1e3 * seconds(setting, function, repeats=10), 4)


def _graph(function: Callable[[], Any]) -> Callable[[], None]:
    """The same kernels, launched as one."""
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        for _ in range(3):
            function()
    torch.cuda.current_stream().wait_stream(stream)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        function()
    return graph.replay


def _attempt(function: Callable[[], Any]) -> Any:
    try:
        return function()
    except Exception as error:  # noqa: BLE001 - what fails is recorded, the rest goes on
        return {"failed": f"{type(error).__name__}: {error}"[:300]}


def split(setting: Setting) -> dict[str, Any]:
    """Frames per second that each stage of `apply` would reach alone, on large frames, one thread each on the host."""
    size, n_frames = setting.sizes[1], store.SHARD_FRAMES
    path = _movie_store(setting, "split", (n_frames + 40, size, size))
    movie = store.open_store(path, store.MOVIE)
    shards = [p for p in (path / store.MOVIE / "c").rglob("*") if p.is_file()]
    network = load_model(BASE).network.to(setting.device, memory_format=torch.channels_last)
    raw = movie.array[:]
    output = setting.folder / "split_denoised.zarr"
    geometry = store.Geometry.of(movie.shape, n_frames)
    writing.create(
        output, store.DENOISED, movie.shape, np.dtype("f4"), geometry, movie.coordinates, movie.units
    )
    target = store.zarr.open_array(output / store.DENOISED, mode="r+")
    wanted = denoise(
        network, raw, Tile.whole(raw.shape), movie_scale(movie), range(n_frames), ensemble=1,
        device=setting.device,
    )  # fmt: skip
    result = np.stack(list(wanted))
    on_device = torch.from_numpy(result).to(setting.device)
    regions = list(shards_in(Region((0, n_frames), (0, size), (0, size)), target.shards))

    def write() -> None:
        for region in regions:
            part = writing.round_mantissa(result[region.slices])
            writing.write_shard(output / store.DENOISED, target, region, part)

    stages: dict[str, tuple[int, Callable[[], Any]]] = {
        "read the files": (len(raw), lambda: [p.read_bytes() for p in shards]),
        "read and decompress": (len(raw), lambda: movie.array[:]),
        "to the device": (len(raw), lambda: torch.from_numpy(raw).to(setting.device)),
        "compute, host to host": (
            n_frames,
            lambda: [*denoised(network, raw, n_frames, device=setting.device)],
        ),
        "from the device": (n_frames, lambda: on_device.cpu()),
        "round to 7 bits": (n_frames, lambda: [writing.round_mantissa(frame) for frame in result]),
        "round, compress, write, read back": (n_frames, write),
    }
    rates = {
        name: round(n / seconds(setting, function, repeats=1), 1) for name, (n, function) in stages.items()
    }
    limit = min(rates, key=lambda name: rates[name])
    return {"size": size, "frames_per_s": rates, "slowest": limit, "goal": GOAL}


def store_to_store(setting: Setting) -> dict[str, Any]:
    """Frames per second of `apply` with one worker, one pass; less what the same call takes on three small frames."""
    found: dict[str, Any] = {}
    few = _movie_store(setting, "few", (3, 32, 32))
    for size in setting.sizes[:1] if setting.quick else setting.sizes:
        n_frames = 8 if setting.quick else 256 if size == 1024 else 96
        path = _movie_store(setting, f"all_{size}", (n_frames, size, size))

        def run(source: Path) -> None:
            config = ApplyConfig(
                movie=source,
                model=BASE,
                output=setting.folder / "denoised.zarr",
                workers="local:1",
                ensemble=1,
                device=setting.device,
                force=True,
            )
            apply(config)

        start, whole = spent(lambda: run(few)).wall, spent(lambda path=path: run(path)).wall
        found[f"{size} x {size}"] = {
            "frames": n_frames,
            "seconds": round(whole, 2),
            "seconds_to_start": round(start, 2),
            "frames_per_s": round(n_frames / (whole - start), 2) if whole > start else None,
            "frames_per_s_with_start": round(n_frames / whole, 2),
        }
    return found


def counts(n_frames: int, size: int) -> np.ndarray:
    """Made-up counts; large frames repeat a smaller one, which compresses no better for it."""
    side = 1024 if size % 1024 == 0 else size
    return np.tile(np.stack(list(frames((n_frames, side, side), "uint8"))), (1, size // side, size // side))


def _movie_store(setting: Setting, name: str, shape: tuple[int, int, int]) -> Path:
    folder = setting.folder / name
    folder.mkdir(parents=True)
    np.save(folder / "movie.npy", counts(*shape[:2]))
    ingest(IngestConfig(raw=folder / "movie.npy", output=folder / "movie.zarr"))
    (folder / "movie.npy").unlink()
    return folder / "movie.zarr"


# In order, with the most time each may take [s]; together less than nine minutes.
SECTIONS: dict[str, tuple[Callable[[Setting], dict[str, Any]], int]] = {
    "peak": (peak, 25),
    "correct": (correct, 35),
    "speed": (speed, 85),
    "split": (split, 65),
    "store_to_store": (store_to_store, 80),
    "training": (training, 190),
    "variants": (variants, 45),
}


def main() -> None:
    options = parser(__doc__ or "")
    options.add_argument("--device", choices=("cuda", "cpu"), default="cuda")
    options.add_argument(
        "--movie", type=Path, metavar="TRUTH.npz", help="for the training (default: simulated)"
    )
    options.add_argument("--section", choices=tuple(SECTIONS), nargs="+", default=list(SECTIONS))
    options.add_argument(
        "--apart", action="store_true", help="sections in processes of their own also if --quick"
    )
    options.add_argument("--into", type=Path, help=argparse.SUPPRESS)
    chosen = options.parse_args()
    if chosen.device == "cuda" and not torch.cuda.is_available():
        options.error("this machine has no GPU that torch can use; --device cpu measures the same on the CPU")
    results: dict[str, Any] = {}
    with scratch(chosen.folder) as folder:
        setting = Setting(chosen.device, chosen.quick, folder, chosen.movie)
        if chosen.into is not None:  # a section in a process of its own
            chosen.into.write_text(json.dumps(SECTIONS[chosen.section[0]][0](setting)))
            return
        for name in chosen.section:
            began = time.perf_counter()
            results[name] = apart(name, setting) if chosen.apart or not chosen.quick else here(name, setting)
            results[name]["took_s"] = round(time.perf_counter() - began, 1)
            print(f"{name}: {json.dumps(results[name], indent=1)}", flush=True)
            if chosen.save:
                save(f"gpu_{chosen.device}", results)  # at once: whoever ends this loses nothing
    failed = [name for name, found in results.items() if "failed" in found]
    if failed:
        sys.exit(f"these sections failed: {', '.join(failed)}")


def here(name: str, setting: Setting) -> dict[str, Any]:
    """A section in this process."""
    try:
        return SECTIONS[name][0](setting)
    except Exception:  # noqa: BLE001 - what fails is recorded, the rest goes on
        return {"failed": traceback.format_exc()[-2000:]}


def apart(name: str, setting: Setting) -> dict[str, Any]:
    """A section in a process of its own: it may hang, or take its GPU down with it."""
    into = setting.folder / f"{name}.json"
    words = ["--section", name, "--into", into, "--device", setting.device, "--folder", setting.folder]
    words += ["--movie", setting.movie] if setting.movie else []
    words += ["--quick"] if setting.quick else []
    limit = SECTIONS[name][1] * (10 if setting.quick else 1)  # quick says whether it runs, not how fast
    try:
        done = subprocess.run(
            [sys.executable, __file__, *map(str, words)],
            stderr=subprocess.PIPE,
            text=True,
            timeout=limit,
            check=False,
        )
    except subprocess.TimeoutExpired:
        return {"failed": f"took longer than {limit} s"}
    if done.returncode != 0 or not into.exists():
        return {"failed": done.stderr[-2000:] or f"ended with {done.returncode}"}
    found: dict[str, Any] = json.loads(into.read_text())
    return found


if __name__ == "__main__":
    main()
