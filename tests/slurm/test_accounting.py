"""Costs and limits, on a real Slurm that keeps accounts."""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from small import counts
from tdenoise_pipeline.cli.command_line import main

pytestmark = [pytest.mark.slurm, pytest.mark.slow]


def test_costs_come_from_the_accounts_and_limits_are_told_in_words(accounted, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    np.save(tmp_path / "raw.npy", counts((12, 32, 32)))
    (tmp_path / "site.yaml").write_text(
        "cpus: 1\nmemory_gib: 2\ntime: '00:10:00'\ngpus: a100:1\nqos: debug\n"
    )

    def submit(output: str, *changes: str) -> tuple[int, str]:
        flags = [word for change in changes for word in ("--set", change)]
        code = main(["submit", "--profile", "site.yaml", *flags, "ingest", "raw.npy", "-o", output])
        shown = capsys.readouterr()
        return code, shown.out + shown.err

    def wait_for(output: str, true: Callable[[dict[str, Any]], object]) -> dict[str, Any]:
        deadline = time.monotonic() + 120
        while True:
            assert main(["status", output, "--json"]) == 0
            run: dict[str, Any] = json.loads(capsys.readouterr().out)["batch"]
            if true(run):
                return run
            assert time.monotonic() < deadline, run
            time.sleep(0.2)

    def why(output: str, text: str) -> None:
        wait_for(output, lambda run: text in str(run["jobs"][0]["why"]))
        assert main(["cancel", output]) == 0
        capsys.readouterr()

    assert submit("done.zarr", "gpus=a100:2", "setup=sleep 3")[0] == 0
    run = wait_for("done.zarr", lambda run: run["state"] == "done" and run["gpu_hours"])
    assert 6 / 3600 <= run["gpu_hours"] < 0.2 and run["cpu_hours"] == pytest.approx(
        run["gpu_hours"] / 2, abs=1e-3
    )
    assert main(["status", "done.zarr"]) == 0
    assert (
        f"done, {run['gpu_hours']:.3g} GPU-hours and {run['cpu_hours']:.3g} core-hours so far"
        in capsys.readouterr().out
    )

    # What is known before is refused before; what only the queue knows is explained while it waits.
    code, shown = submit("long.zarr", "time=01:00:00")
    assert code == 2 and "QOS debug allows 00:15:00" in shown
    code, shown = submit("other.zarr", "account=nobody")
    assert code == 1 and "Slurm refused" in shown and "account" in shown
    assert submit("long.zarr", "extra=--time=01:00:00")[0] == 0
    why(
        "long.zarr", "it never starts: the time limit is longer than your account or QOS may have: lower time"
    )
    sleep = [
        "sbatch",
        "--qos=debug",
        "--gpus=a100:2",
        "--mem=10M",
        "--time=10",
        "-o",
        "/dev/null",
        "--wrap",
        "sleep 90",
    ]
    accounted.run(*sleep)
    assert submit("third.zarr")[0] == 0
    why("third.zarr", "you use as many GPUs as the QOS allows; it starts when others of yours end")
    accounted.run("sacctmgr", "-i", "-Q", "modify", "account", "lab", "set", "GrpTRES=gres/gpu=2")
    assert submit("group.zarr", "qos=public")[0] == 0
    why("group.zarr", "your group uses as many GPUs as it may; it starts when others of the group end")
