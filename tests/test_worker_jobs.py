"""Workers as jobs of PBS and LSF, on stand-ins for their commands that really run the jobs."""

from __future__ import annotations

import os
import subprocess
import time
from pathlib import Path

import fake_batch
import pytest
from small import counts, model_folder, movie_store
from tdenoise_pipeline.apply.apply import apply
from tdenoise_pipeline.errors import ResourceError, UsageError
from tdenoise_pipeline.settings.config import ApplyConfig
from tdenoise_pipeline.workers import cluster

pytest.importorskip("dask_jobqueue")

HOSTILE = 'it\'s $(touch pwned) `x`; "y" #PBS -q evil 100% & *'
SMALL = "cpus: 1\nmemory_gib: 2\ntime: '00:10:00'\n"


@pytest.fixture(scope="module")
def sources(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path, Path]:
    """A movie store, a model, and what workers of this machine make of them."""
    folder = tmp_path_factory.mktemp("sources")
    movie, model = movie_store(folder, counts((192, 30, 44))), model_folder(folder / "model")
    apply(ApplyConfig(movie=movie, model=model, output=folder / "local.zarr", workers="local:2"))
    return movie, model, folder / "local.zarr"


@pytest.fixture(params=["pbs", "lsf"])
def system(request, tmp_path, monkeypatch) -> str:
    from tdenoise_pipeline.workers import job_cluster

    monkeypatch.setattr(job_cluster, "CHECK_INTERVAL_S", 3.0)
    fake_batch.install(request.param, tmp_path / "bin", tmp_path / "jobs")
    monkeypatch.setenv("PATH", f"{tmp_path / 'bin'}:{os.environ['PATH']}")
    monkeypatch.chdir(tmp_path)
    return request.param


@pytest.fixture
def config(sources, tmp_path):
    def make(system: str, lines: str = "", folder: str = "out", workers: str | None = None) -> ApplyConfig:
        (tmp_path / folder).mkdir(exist_ok=True)
        profile = tmp_path / "site.yaml"
        profile.write_text(f"scheduler: {system}\n{SMALL}{lines}\n")
        movie, model, _ = sources
        return ApplyConfig(
            movie=movie,
            model=model,
            output=tmp_path / folder / "d.zarr",
            workers=workers or f"{system}:2",
            profile=profile,
        )

    return make


def tree(path: Path) -> dict[str, bytes]:
    return {str(p.relative_to(path)): p.read_bytes() for p in sorted(path.rglob("*")) if p.is_file()}


ASKED = {
    "pbs": [
        "-q long", "-A lab", "-l select=1:ncpus=3:mem=2gb:ngpus=1", "-l walltime=26:00:30", "-S /bin/bash", "-j oe",
        "-o /dev/null", "-r n", "-W umask=077",
    ],
    "lsf": [
        "-q long", '-P "lab"', "-n 3", '-R "span[hosts=1]"', "-W 26:01", "-o /dev/null", "-rn", "-env none",
        '-gpu "num=1"', "-W umask=077",
    ],
}  # fmt: skip


@pytest.mark.slow
def test_a_denoised_store_by_jobs_of_pbs_or_lsf_is_that_of_local_workers(system, config, sources, tmp_path):
    lines = (
        "partition: long\naccount: lab\ngpus: 1\nextra: ['-W umask=077']\n"
        f"workers:\n  cpus: 3\n  time: 1-02:00:30\n"
        f"  setup: ['mkdir {tmp_path}/once 2>/dev/null && exit 3 || true']"  # the first job dies on arrival
    )
    wanted = config(system, lines, HOSTILE)
    apply(wanted)
    assert tree(wanted.output) == tree(sources[2])
    jobs = sorted((tmp_path / "jobs").glob("[0-9]*"))
    assert len(jobs) >= 2 and not any(fake_batch.alive(job) for job in jobs)
    script = (jobs[0] / "script").read_text()
    directive = "#PBS " if system == "pbs" else "#BSUB "
    asked = [line.removeprefix(directive) for line in script.splitlines() if line.startswith(directive)]
    name = asked.pop(0)
    assert name.startswith(("-N tdn-", "-J tdn-")) and len(name) <= 3 + 15  # what an old PBS takes
    memory = [line for line in asked if line.startswith("-M ")]
    assert [line for line in asked if line not in memory] == ASKED[system]
    assert len(memory) == (system == "lsf")
    assert not list(tmp_path.rglob("pwned")) and not list(tmp_path.rglob("*.pem"))
    assert subprocess.run(["bash", "-n"], input=script, text=True, capture_output=True).stderr == ""


def test_a_cancelled_worker_job_is_replaced_and_what_bears_the_name_is_ended(system, config, tmp_path):
    settings = config(system)
    (tmp_path / "logs").mkdir()
    connected = cluster.connect(
        settings.workers,
        scratch=tmp_path / "scratch",
        worker_memory_bytes=None,
        profile=settings.profile,
        log_dir=tmp_path / "logs",
    )
    submit = fake_batch.COMMANDS[system][0]
    with connected as client:
        client.wait_for_workers(2, timeout=60)
        first, *_ = sorted((tmp_path / "jobs").glob("[0-9]*"))
        futures = client.map(lambda i: (time.sleep(0.2), i * i)[1], range(30), pure=False, retries=3)
        subprocess.run([tmp_path / "bin" / {"pbs": "qdel", "lsf": "bkill"}[system], first.name], check=True)
        # As after a submission that timed out and was done all the same: a job nobody knows the number of.
        directive = {"pbs": "#PBS -N", "lsf": "#BSUB -J"}[system]
        stray = f"#!/bin/bash\n{directive} {client.cluster.job_name}\nsleep 60\n"
        subprocess.run([tmp_path / "bin" / submit], input=stray, text=True, check=True, capture_output=True)
        assert client.gather(futures) == [i * i for i in range(30)]
        client.wait_for_workers(2, timeout=60)
        assert client.scheduler.address.startswith("tls://") and len(list(tmp_path.rglob("*.pem"))) == 3
    jobs = sorted((tmp_path / "jobs").glob("[0-9]*"))
    assert 4 <= len(jobs) < 8  # a slow machine may lose another one
    deadline = time.monotonic() + 10
    while any(map(fake_batch.alive, jobs)):
        assert time.monotonic() < deadline
        time.sleep(0.1)
    assert not list(tmp_path.rglob("*.pem"))


def test_a_chunk_of_ones_own_stands_in_for_ours(config, sources, tmp_path):
    from tdenoise_pipeline.slurm.site_profile import JobProfile
    from tdenoise_pipeline.workers.worker_jobs import PBSWorkerJob

    own = "-l select=1:ncpus=2:gpu_model=a100"
    options = PBSWorkerJob.options(JobProfile(extra=(own,)), tmp_path, "tdn-1")
    script = PBSWorkerJob(
        "tls://host:1", "w", cores=1, memory="1GiB", job_name="tdn-1", **options
    ).job_script()
    assert script.count("select=") == 1 and f"#PBS {own}\n" in script


def test_a_refusal_and_a_job_that_cannot_run_are_told_in_full(system, config, tmp_path):
    with pytest.raises(ResourceError, match=r"(?s)ended before a worker was ready.*no such environment"):
        apply(config(system, "setup: ['echo no such environment; exit 1']"))
    (tmp_path / "jobs" / "refuse").touch()
    words = {
        "pbs": "PBS refused .* qsub: the queue is closed",
        "lsf": "LSF refused .* bsub: the queue is closed",
    }
    with pytest.raises(ResourceError, match=words[system]):
        apply(config(system))


def test_what_does_not_fit_together_is_refused(system, config, monkeypatch, tmp_path):
    with pytest.raises(UsageError, match=f"says scheduler: {system}. Give one that says scheduler: slurm"):
        apply(config(system, workers="slurm:2"))
    with pytest.raises(UsageError, match="without line breaks"):
        apply(config(system, folder="line\n#PBS -q evil"))
    monkeypatch.setenv("PATH", "/nowhere")
    with pytest.raises(UsageError, match=f"--workers {system}:2 needs [qb]sub"):
        apply(config(system))
