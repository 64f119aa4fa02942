"""A bit that flips in what a batch run or a report leaves is told, counts as not there, and stops nothing."""

from __future__ import annotations

import logging
import random
from pathlib import Path

import pytest
from tdenoise_pipeline.files.sealed_json import read_unbroken, write_sealed
from tdenoise_pipeline.jobs import local_queue, run_folder
from tdenoise_pipeline.runs.lease import this_process

RUN = "tdn-1"


@pytest.mark.parametrize("name", ["jobs.jsonl", local_queue.PROCESS, "metrics.json"])
def test_a_flipped_bit_in_a_record_is_neither_obeyed_nor_in_the_way(
    tmp_path: Path, name: str, caplog: pytest.LogCaptureFixture
) -> None:
    for step in ("ingest", "train"):
        run_folder.append(tmp_path, event="submitting", name=f"{RUN}-{step}", kind=step, run=RUN)
        run_folder.append(tmp_path, event="submitted", name=f"{RUN}-{step}", id="pid-7", submitted="now")
    write_sealed(tmp_path / local_queue.PROCESS, this_process() | {"run": RUN, "names": [f"{RUN}-ingest"]})
    write_sealed(tmp_path / "metrics.json", {"explained": 0.93, "made_from": {"truth": None}})

    def found() -> tuple[set[object], list[object], dict[str, object]]:
        return (
            set(run_folder.records(tmp_path)),
            list(run_folder.jobs(tmp_path, RUN)),
            read_unbroken(tmp_path / "metrics.json"),
        )

    jobs, running, metrics = found()
    assert len(jobs) == 2 and len(running) == 1 and metrics["explained"] == 0.93
    file = tmp_path / name
    whole, rng = file.read_bytes(), random.Random(0)
    caplog.set_level(logging.CRITICAL)
    for _ in range(200):
        data = bytearray(whole)
        place = rng.randrange(8 * len(data))
        data[place // 8] ^= 1 << place % 8
        file.write_bytes(data)
        less, still, told = found()
        assert {job.name for job in less} <= {job.name for job in jobs}
        assert all(job in jobs or job.id is None for job in less), "what is left is as it was"
        assert still in (running, []) and told.get("explained") in (metrics["explained"], None)
    file.write_bytes(b"[" * 100_000)
    found()


def test_a_damaged_record_is_told(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    (tmp_path / "metrics.json").write_bytes(b'{"seal": "00", "explained": 1}')
    assert read_unbroken(tmp_path / "metrics.json") == {}
    assert "metrics.json: is damaged" in caplog.text


def test_a_record_of_an_earlier_version_is_read(tmp_path: Path) -> None:
    (tmp_path / "jobs.jsonl").write_text(
        '{"event": "submitting", "time": "then", "name": "a", "kind": "ingest", "run": "tdn-1"}\n'
    )
    assert [job.name for job in run_folder.records(tmp_path)] == ["a"]
