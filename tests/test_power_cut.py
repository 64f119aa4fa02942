"""A step as small as can be, whose power is cut at every moment, and whose files lose a bit."""

from __future__ import annotations

import hashlib
import json
import os
import random
from pathlib import Path

import pytest
import replay
from tdenoise_pipeline.runs import lease, markers, progress
from tdenoise_pipeline.runs.progress import OutputRun

from tdenoise.files.atomic import write_atomically

PLAN = {"step": "test", "n_blocks": 3}


def sha256(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


def create(path: Path) -> None:
    """Metadata, written as Zarr does: without a word to the disk."""
    for folder in ("t", "counts"):
        (path / folder).mkdir(parents=True)
        (path / folder / "zarr.json").write_text(json.dumps({"shape": [3], "name": folder}))
    (path / "zarr.json").write_text(json.dumps({"attributes": {}}))


def step(output: Path) -> None:
    """Make an output of three shards, and put what the markers and the metadata say into it."""
    metadata = output / "zarr.json"
    if metadata.exists() and json.loads(metadata.read_text())["attributes"]["tdenoise"]["plan"] == PLAN:
        progress.tidy_up(output)
        return
    with OutputRun(output, PLAN) as run:
        run.prepare(create)
        done = run.done()
        for number in range(3):
            shard = run.partial / "counts" / "c" / str(number) / "0"
            content = bytes([number]) * 40
            if number not in done or not shard.exists():
                shard.parent.mkdir(parents=True, exist_ok=True)
                write_atomically(shard, content)
                markers.mark(run.folder, number, {"shards": {str(number): sha256(content)}}, run.token)
        hashes = markers.hashes(run.done()[number] for number in range(3))
        group = json.loads((run.partial / "zarr.json").read_text())
        axis = json.loads((run.partial / "t/zarr.json").read_text())
        (run.partial / "integrity").mkdir()
        write_atomically(run.partial / "integrity/zarr.json", json.dumps(hashes).encode())
        group["attributes"]["tdenoise"] = {"plan": PLAN, "axis": axis}
        write_atomically(run.partial / "zarr.json", json.dumps(group).encode())
        run.commit()


@pytest.fixture
def disk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder, on a machine that was just started again and does not wait for its disk."""
    monkeypatch.setattr(lease, "QUIET_S", -1.0)
    monkeypatch.setattr(os, "fsync", lambda handle: None)
    monkeypatch.setattr(lease, "_boot", lambda: os.urandom(8).hex())
    return tmp_path / "disk"


def recorded(disk: Path) -> tuple[replay.Recording, replay.Files]:
    """All that the step does to the files, and what it leaves."""
    disk.mkdir()
    _, found = replay.recorded(disk, lambda: step(disk / "out"))
    end = replay.on_disk(disk)
    everything = len(found.operations)
    assert replay.after_power_cut(found, everything, "whole", random.Random(0)) == end, (
        "operations are missing"
    )
    assert set(end) >= {"out", "out/zarr.json", "out/counts/c/2/0"} and ".tdenoise" not in end
    return found, end


def test_after_a_power_cut_at_any_moment_a_small_step_goes_on(disk: Path) -> None:
    found, end = recorded(disk)
    for model in replay.MODELS:
        for moment in range(len(found.operations) + 1):
            rng = random.Random(f"{model} {moment}")
            replay.put(replay.after_power_cut(found, moment, model, rng), disk)
            before = replay.on_disk(disk)
            if "out" in before:
                shown = {name: content for name, content in before.items() if name.startswith("out")}
                assert shown.items() <= end.items() and set(end) == set(shown), (
                    model,
                    moment,
                    "shown in part",
                )
            step(disk / "out")
            assert replay.on_disk(disk) == end, (model, moment)


@pytest.mark.parametrize("n_trials", [600])
def test_a_flipped_bit_anywhere_but_in_a_shard_changes_nothing(disk: Path, n_trials: int) -> None:
    found, end = recorded(disk)
    rng = random.Random(0)
    flipped: set[str] = set()
    for trial in range(n_trials):
        moment = rng.randint(0, len(found.operations))
        files = replay.after_power_cut(found, moment, "whole", rng)
        names = [n for n, content in files.items() if content and "/c/" not in n and not n.startswith("out/")]
        if not names:
            continue
        name = rng.choice(sorted(names))
        data, bit = bytearray(files[name] or b""), rng.randrange(8 * len(files[name] or b""))
        data[bit // 8] ^= 1 << bit % 8
        replay.put({**files, name: bytes(data)}, disk)
        flipped.add(Path(name).name)
        step(disk / "out")
        assert replay.on_disk(disk) == end, (trial, moment, name, bit)
    assert flipped >= {"owner.json", "plan.json", "created", "zarr.json", "00000000.json"}
