"""What it costs that a block survives a power cut: apply with its whole protocol against apply without.

``with`` is `run_block` as it is, on every block of a movie: each shard waits for the disk (as its folder does), is read
back and compared, has its content hashed, and is given its name only under the lease; a marker follows. ``without``
computes the same blocks and writes the same files, byte for byte, but does none of this. Both in one process, in turn;
one compute thread and one that writes. Prints medians of the ratios within each round, and per shard and block
where the time goes: on the clock, which includes waiting for the disk and for the core, and of the CPU.

    python benchmarks/protocol.py [--size 192] [--frames 192] [--repeats 3] [--save] [--quick]
"""

from __future__ import annotations

import hashlib
import os
import shutil
import statistics
import struct
import threading
import time
from collections import defaultdict
from collections.abc import Callable
from contextlib import ExitStack
from functools import partial
from pathlib import Path
from typing import Any
from unittest.mock import patch

import google_crc32c
import numpy as np
from common import (
    Spent,
    at_both_ensembles,
    interleaved,
    random_model,
    ratio,
    rounded,
    spent,
    write_mrc,
)
from numcodecs.blosc import BITSHUFFLE, Blosc
from tdenoise_pipeline.apply import apply_plan
from tdenoise_pipeline.apply.block_work import Job, run_block
from tdenoise_pipeline.ingest.ingest import ingest
from tdenoise_pipeline.inputs.model_fit import movie_scale, open_model
from tdenoise_pipeline.runs import lease, markers, progress
from tdenoise_pipeline.settings.config import ApplyConfig, IngestConfig
from tdenoise_pipeline.store import shards, store, writing
from tdenoise_pipeline.store.shards import ShardWriter

TARGET = 1.05  # times apply without the protocol
CODEC = Blosc(cname="zstd", clevel=shards.LEVEL, shuffle=BITSHUFFLE)


def measure(folder: Path, shape: tuple[int, int, int], ensemble: int, repeats: int) -> dict[str, Any]:
    """Denoise one movie in both ways, in turn."""
    folder.mkdir(parents=True)
    movie = folder / "movie.zarr"
    ingest(IngestConfig(raw=write_mrc(folder / "movie.mrc", shape), output=movie))
    model = random_model(folder / "model", movie)
    config = ApplyConfig(
        movie=movie, model=model, output=folder / "d.zarr", workers="local:1", ensemble=ensemble, device="cpu"
    )
    opened, card = store.open_store(movie, store.MOVIE), open_model(model).card
    plan = apply_plan.make_plan(config, opened, card)
    n_blocks, n_shards = len(plan.blocks), shape[0] // plan.geometry.shard[0]
    print(f"ensemble {ensemble}: movie of {shape}, {n_blocks} blocks, {n_shards} shards")

    def create(path: Path) -> None:
        kind = np.dtype("float32")
        writing.create(path, store.DENOISED, shape, kind, plan.geometry, opened.coordinates, opened.units)

    content: dict[str, str] = {}
    parts: dict[str, list[Parts]] = {"with": [], "without": []}

    def blocks(way: str) -> Spent:
        """Time of all blocks of an output that was just begun, and is gone afterwards."""
        with progress.OutputRun(config.output, plan.identity) as run, ExitStack() as patched:
            run.prepare(create)
            job = Job(
                movie=movie,
                output=run.partial,
                folder=run.folder,
                token=run.token,
                model=model,
                model_id=card["sha256"],
                scale=movie_scale(opened, card),
                ensemble=ensemble,
                precision="auto",
                kept_bits=store.KEPT_BITS,
                device="cpu",
                movie_id=opened.id,
            )
            run_block(job, plan.blocks[0])  # loads the model
            shutil.rmtree(run.partial / store.DENOISED / "c")
            markers.forget(run.folder, plan.blocks[0].number)
            times = Parts()
            (observe if way == "with" else strip)(times, patched)
            took = spent(lambda: [run_block(job, block) for block in plan.blocks])
            patched.close()
            check(way, times, n_blocks, n_shards)
            parts[way].append(times)
            found = sha256(run.partial)
            if content.setdefault("sha256", found) != found:
                raise RuntimeError(f"{way} wrote other files than were written before")
            shutil.rmtree(run.partial)
            shutil.rmtree(run.folder / "done")
            (run.folder / "created").unlink()
        return took

    taken = interleaved({way: partial(blocks, way) for way in parts}, repeats)
    result = {
        "shape": shape,
        "blocks": n_blocks,
        "shards": n_shards,
        "ratio": ratio(taken["with"], taken["without"]),
        "target": TARGET,
        "microseconds": where_it_goes(parts, n_blocks, n_shards),
        "seconds": rounded(taken),
    }
    print(f"  with the protocol: {result['ratio']} x without (target {TARGET})")
    for name, values in result["microseconds"].items():
        print(f"  {name}: {values}")
    return result


# ---- the two ways ------------------------------------------------------------------------------------------


class Parts:
    """Time spent in functions, without that in others of them that they call."""

    def __init__(self) -> None:
        self.spent: dict[str, Spent] = defaultdict(lambda: Spent(0.0, 0.0))  # CPU: of the calling thread
        self.calls: dict[str, int] = defaultdict(int)
        self._open = threading.local()
        self._lock = threading.Lock()

    def timed(self, name: str, function: Callable[..., Any]) -> Callable[..., Any]:
        """The same function, watched."""

        def call(*arguments: Any, **named: Any) -> Any:
            stack: list[Spent] = self._open.__dict__.setdefault("stack", [])
            stack.append(Spent(0.0, 0.0))  # of those called
            wall, cpu = time.perf_counter(), time.thread_time()
            try:
                return function(*arguments, **named)
            finally:
                whole = Spent(time.perf_counter() - wall, time.thread_time() - cpu)
                own = whole - stack.pop()
                with self._lock:
                    self.spent[name] = added(self.spent[name], own)
                    self.calls[name] += 1
                if stack:
                    stack[-1] = added(stack[-1], whole)

        return call


def observe(times: Parts, patched: ExitStack) -> None:
    """Leave everything as it is, and see how long its parts take. A name that is gone raises AttributeError."""
    for module, function, name in (
        (os, "fsync", "fsync"),
        (ShardWriter, "append", "append"),
        (ShardWriter, "write", "write"),
        (lease, "check_lease", "lease"),
        (markers, "mark", "marker"),
    ):
        patched.enter_context(patch.object(module, function, times.timed(name, getattr(module, function))))


def strip(times: Parts, patched: ExitStack) -> None:
    """Take the protocol away. Whatever of it is left calls `os.fsync`, which then raises."""
    for module, function, name, other in (
        (os, "fsync", "fsync", refuse),
        (ShardWriter, "append", "append", pack_plainly),
        (ShardWriter, "write", "write", write_plainly),
        (lease, "check_lease", "lease", nothing),
        (markers, "mark", "marker", nothing),
    ):
        patched.enter_context(patch.object(module, function, times.timed(name, other)))


def nothing(*_: Any) -> None:
    """Instead of a lease check or a marker."""


def refuse(*_: Any) -> None:
    """Instead of waiting for the disk."""
    raise RuntimeError("something still waits for the disk: this benchmark has to learn about it")


def pack_plainly(writer: ShardWriter, values: Any) -> None:
    """`ShardWriter.append` without hashes; of whole chunks only."""
    step = writer._layout.chunk[0]
    for start in range(0, len(values), step):
        content = CODEC.encode(np.ascontiguousarray(values[start : start + step]))
        writer._parts += [content, checksum(content)]
        writer._index[writer._n_frames // step + start // step] = writer._size, len(content) + 4
        writer._size += len(content) + 4
    writer._n_frames += len(values)


def write_plainly(writer: ShardWriter, array: Path, index: tuple[int, ...], *_: Any) -> str:
    """`ShardWriter.write` without anything but writing."""
    table = writer._index.tobytes()
    file = array.joinpath("c", *map(str, index))
    file.parent.mkdir(parents=True, exist_ok=True)
    with file.open("wb") as handle:
        handle.writelines([*writer._parts, table, checksum(table)])
    return ""


def checksum(data: bytes) -> bytes:
    """crc32c, as it stands in a shard."""
    return struct.pack("<I", google_crc32c.value(data))


def check(way: str, times: Parts, n_blocks: int, n_shards: int) -> None:
    """Whether what was watched, or taken away, is what the blocks went through."""
    calls = dict(times.calls)
    expected = {"write": n_shards, "marker": n_blocks}
    if any(calls.get(name) != number for name, number in expected.items()) or not calls.get("lease"):
        raise RuntimeError(
            f"{way}: {calls} calls, not {expected} and some of the lease: blocks work otherwise now"
        )
    if (calls.get("fsync", 0) == 0) == (way == "with"):
        raise RuntimeError(f"{way}: {calls.get('fsync', 0)} calls of fsync")


# ---- results -----------------------------------------------------------------------------------------------


def where_it_goes(parts: dict[str, list[Parts]], n_blocks: int, n_shards: int) -> dict[str, dict[str, float]]:
    """Medians of the rounds [us]: per shard, and the marker with its lease check and fsync per block."""

    def medians(way: str, name: str, per: int) -> dict[str, float]:
        spents = [times.spent[name] for times in parts[way]]
        return {
            "wall": round(1e6 * statistics.median(s.wall for s in spents) / per),
            "cpu": round(1e6 * statistics.median(s.cpu for s in spents) / per),
        }

    def more(name: str) -> dict[str, float]:
        own, plain = medians("with", name, n_shards), medians("without", name, n_shards)
        return {k: own[k] - plain[k] for k in own}

    return {
        "fsync, all of them, per shard": medians("with", "fsync", n_shards),
        "read back, compare, rename, per shard": more("write"),
        "hashes of chunks and content, per shard": more("append"),
        "lease, all looks at it, per shard": medians("with", "lease", n_shards),
        "marker without its fsync, per block": medians("with", "marker", n_blocks),
        "for comparison: encode, per shard": medians("without", "append", n_shards),
        "for comparison: write, per shard": medians("without", "write", n_shards),
    }


def added(a: Spent, b: Spent) -> Spent:
    """Both times together."""
    return Spent(a.wall + b.wall, a.cpu + b.cpu)


def sha256(path: Path) -> str:
    """Of all shard files, which hold the same when decoded if they are the same."""
    digest = hashlib.sha256()
    for file in sorted((path / store.DENOISED / "c").rglob("*")):
        if file.is_file():
            digest.update(f"{file.relative_to(path)}\n".encode())
            digest.update(file.read_bytes())
    return digest.hexdigest()


if __name__ == "__main__":
    at_both_ensembles("protocol", __doc__ or "", measure, store.SHARD_FRAMES)
