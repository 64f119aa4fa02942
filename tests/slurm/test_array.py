"""Apply as a job array, without any network, on a real Slurm."""

from __future__ import annotations

import json
import threading
import time
from pathlib import Path

import pytest
from small import counts, model_folder, movie_store
from tdenoise_pipeline.apply.apply import apply
from tdenoise_pipeline.cli.command_line import main
from tdenoise_pipeline.errors import PipelineError, Stopped
from tdenoise_pipeline.runs import paths
from tdenoise_pipeline.settings.config import ApplyConfig
from tdenoise_pipeline.step_control import Control
from tdenoise_pipeline.workers import job_array

pytestmark = [pytest.mark.slurm, pytest.mark.slow]


@pytest.fixture(scope="module")
def sources(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """A movie store of 15 blocks and a model."""
    folder = tmp_path_factory.mktemp("sources")
    return movie_store(folder, counts((480, 30, 44))), model_folder(folder / "model")


@pytest.fixture(scope="module")
def local(sources, tmp_path_factory) -> Path:
    output = tmp_path_factory.mktemp("local") / "d.zarr"
    apply(ApplyConfig(movie=sources[0], model=sources[1], output=output, workers="local:2"))
    return output


@pytest.fixture
def config(sources, tmp_path, monkeypatch):
    monkeypatch.setattr(job_array, "LOOK_S", 0.2)
    monkeypatch.setattr(job_array, "ASK_S", 2.0)

    def make(extra: str = "", workers: str = "array:3", **settings) -> ApplyConfig:
        profile = tmp_path / "profile.yaml"
        profile.write_text(f"cpus: 1\nmemory_gib: 2\ntime: '00:10:00'\n{extra}\n")
        return ApplyConfig(
            movie=sources[0],
            model=sources[1],
            output=tmp_path / "it's an output.zarr",
            workers=workers,
            profile=profile,
            **settings,
        )

    return make


def tree(path: Path) -> dict[str, bytes]:
    return {str(p.relative_to(path)): p.read_bytes() for p in sorted(path.rglob("*")) if p.is_file()}


def in_background(config: ApplyConfig, control: Control) -> tuple[threading.Thread, list[BaseException]]:
    errors: list[BaseException] = []

    def run() -> None:
        try:
            apply(config, control)
        except PipelineError as error:
            errors.append(error)

    thread = threading.Thread(target=run)
    thread.start()
    return thread, errors


def claimed(output: Path) -> list[str]:
    return [p.name for p in (paths.work_folder(output) / "lease" / "claims").glob("0*")]


def test_tasks_cancelled_and_requeued_in_mid_block_change_nothing_but_the_clock(slurm, config, local):
    plan = config()
    thread, errors = in_background(plan, Control())
    deadline = time.monotonic() + 120
    while len(claimed(plan.output)) < 2 and thread.is_alive():
        assert time.monotonic() < deadline
        time.sleep(0.01)
    [name] = set(slurm.jobs().values())
    tasks = [
        line.split()[0]
        for line in slurm.run("squeue", "-h", "-r", "-t", "R", "-o", "%i", "-n", name).splitlines()
    ]
    slurm.cancel("--signal=KILL", "--full", tasks[0])
    slurm.run("scontrol", "requeue", tasks[1])
    thread.join(timeout=240)
    assert not thread.is_alive() and not errors
    assert tree(plan.output) == tree(local)
    apply(plan)  # nothing is left to do


def test_the_command_may_stop_watching_and_watch_again_while_strangers_are_refused(
    slurm, config, local, monkeypatch
):
    monkeypatch.setenv("TDENOISE_RUN", "tdn-0123abcd")  # as in a batch run, whose status and cancel go by it
    control = Control()
    thread, errors = in_background(config(workers="array:2"), control)
    while not (names := {name for name in slurm.jobs().values() if name.startswith("tdn-0123abcd-")}):
        assert thread.is_alive(), errors
        time.sleep(0.1)
    [name] = names
    with pytest.raises(PipelineError, match="another run holds it") as refused:
        apply(config(workers="local:1"))
    assert refused.value.exit_code == 6
    control.stop.set()
    thread.join(timeout=60)
    assert isinstance(errors[0], Stopped) and "continues without this command" in str(errors[0])
    apply(config(workers="array:2"))
    assert tree(config().output) == tree(local)
    submitted = slurm.run("squeue", "-h", "-t", "all", "-o", "%F", "-n", name).split()
    assert len(set(submitted)) == 1


def test_tasks_that_cannot_run_are_an_error_with_their_log(slurm, config):
    with pytest.raises(PipelineError, match=r"(?s)15 of 15 blocks are not done.*no such environment"):
        apply(config("setup: ['echo no such environment; exit 1']"))
    with pytest.raises(PipelineError, match="invalid partition specified: nowhere"):
        apply(config("partition: nowhere"))


def test_an_array_of_other_versions_says_so_and_does_nothing(slurm, config, tmp_path):
    other = tmp_path / "other" / "torch-1.0.dist-info"
    other.mkdir(parents=True)
    (other / "METADATA").write_text("Metadata-Version: 2.1\nName: torch\nVersion: 1.0\n")
    with pytest.raises(PipelineError, match=r"torch is 1\.0 here, but .* where the run was started"):
        apply(config(f"setup: ['export PYTHONPATH={other.parent}']", "array:1"))


def test_submit_hands_in_the_array_itself_and_its_verbs_know_the_tasks(
    slurm, config, local, tmp_path, capsys
):
    plan = config()

    def tool(*words: object) -> str:
        capsys.readouterr()
        assert main([str(word) for word in words]) == 0
        return capsys.readouterr().out

    def status() -> dict:
        return json.loads(tool("status", plan.output, "--json"))["batch"]

    def wait_for(*states: str) -> dict:
        deadline = time.monotonic() + 240
        while (run := status())["state"] not in states:
            assert time.monotonic() < deadline, run
            time.sleep(0.2)
        return run

    words = ["apply", plan.movie, "--model", plan.model, "-o", plan.output, "--workers", "array:3"]
    shown = tool("submit", "--profile", plan.profile, *words)
    assert "workers: 3 jobs" in shown and "15 blocks" in shown
    run = wait_for("running")
    mine = {name for name in slurm.jobs().values() if name.startswith(run["run"])}
    assert mine == {f"{run['run']}-apply-1"}, "no job that only watches"
    assert 1 <= run["workers"]["running"] <= 3
    assert tool("cancel", plan.output) == f"cancelled: {run['jobs'][0]['id']}\n"
    assert not any(name.startswith(run["run"]) for name in slurm.jobs().values())
    assert status()["jobs"][0]["state"] in ("cancelled", "done")
    tool("resume", plan.output)
    [script] = Path(run["folder"]).glob("scripts/*-apply-2.sh")  # what jobs on other nodes held is free
    assert f"export TDENOISE_ENDED_JOBS={run['jobs'][0]['id']}\n" in script.read_text()
    # One that is killed without a word does not make the whole of it a failure.
    deadline = time.monotonic() + 120
    while not claimed(plan.output) and not plan.output.exists():
        assert time.monotonic() < deadline
        time.sleep(0.01)
    lease = paths.work_folder(plan.output) / "lease" / "members"
    members = [json.loads(file.read_text()) for file in lease.glob("*.json")]
    slurm.cancel("--signal=KILL", "--full", str(members[-1]["job"]))
    run = wait_for("done", "failed")
    assert run["state"] == "done", tool("logs", plan.output)
    assert tree(plan.output) == tree(local)
    assert tool("logs", plan.output).count(f"{run['run']}-apply-2-{run['jobs'][0]['id']}_") >= 2
    assert tool("resume", plan.output).rstrip().endswith("nothing is missing")
