"""Batch scripts, profiles, and workers on this machine: everything about clusters that needs no Slurm."""

from __future__ import annotations

import ipaddress
import json
import os
import re
import signal
import stat
import subprocess
import sys
import threading
import time
from dataclasses import replace
from pathlib import Path

import dask
import psutil
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from tdenoise_pipeline.errors import PipelineError, ResourceError, Stopped, UsageError
from tdenoise_pipeline.settings.workers import Workers
from tdenoise_pipeline.slurm.batch_script import BatchJob, render_script, submit_script
from tdenoise_pipeline.slurm.profile_checks import check_profile, show_profile
from tdenoise_pipeline.slurm.site_profile import JobProfile, load_profile, load_site, names
from tdenoise_pipeline.workers import cluster

HOSTILE = [
    "my movie (1).dm4",
    "it's",
    'say "hi"',
    "$(touch pwned)",
    "`touch pwned`",
    "a;touch pwned",
    "line\n#SBATCH --partition=nowhere\nbreak",
    "$HOME",
    "*",
    "!history",
    "back\\slash",
    "-n",
    "",
    "µm Å",
]
REPOSITORY = Path(__file__).parent.parent


@pytest.fixture
def tools(tmp_path, monkeypatch):
    """A folder of stand-ins for Slurm's commands, first on PATH."""
    folder = tmp_path / "tools"
    folder.mkdir()
    monkeypatch.setenv("PATH", f"{folder}:{os.environ['PATH']}")

    def add(name: str, body: str) -> None:
        file = folder / name
        file.write_text(f"#!{sys.executable}\nimport json, os, sys, time\n{body}\n")
        file.chmod(file.stat().st_mode | stat.S_IXUSR)

    return add


def script_for(tmp_path: Path, command: list[str], **settings) -> Path:
    script = tmp_path / "job.sh"
    text = render_script(
        BatchJob(command, name="test", profile=JobProfile(**settings), log_dir=tmp_path, work_dir=tmp_path)
    )
    script.write_text(text)
    return script


def recorder(tmp_path: Path, code: int = 0) -> list[str]:
    """A command that writes down what it was given."""
    program = (
        f"import json, os, sys; json.dump([sys.argv[1:], os.getcwd()], open('seen', 'w')); sys.exit({code})"
    )
    return [sys.executable, "-c", program]


def test_hostile_arguments_arrive_as_they_are(tmp_path):
    script = script_for(tmp_path, [*recorder(tmp_path), *HOSTILE])
    assert subprocess.run(["bash", "-n", script], check=True, capture_output=True).stderr == b""
    subprocess.run(["bash", script], cwd="/", check=True)
    assert json.loads((tmp_path / "seen").read_text()) == [HOSTILE, str(tmp_path)]
    assert not (tmp_path / "pwned").exists()


def test_a_hostile_working_folder_is_entered(tmp_path):
    folder = tmp_path / "it's $(touch pwned)\n`x`"
    folder.mkdir()
    text = render_script(
        BatchJob(recorder(tmp_path), name="x", profile=JobProfile(), log_dir=tmp_path, work_dir=folder)
    )
    subprocess.run(["bash", "-c", text], cwd=tmp_path, check=True)
    assert json.loads((folder / "seen").read_text()) == [[], str(folder)]
    assert not (tmp_path / "pwned").exists()


def test_the_script_asks_for_what_the_profile_says():
    profile = JobProfile(
        partition="gpu", account="lab", qos="long", time="1-00:00:00", cpus=8, memory_gib=64, gpus="a100:1",
        extra=("--constraint=a100_80",), setup=("module load mamba",), stop_early_s=300,
    )  # fmt: skip
    text = render_script(
        BatchJob(
            ["true"],
            name="apply my movie",
            profile=profile,
            log_dir=Path("/logs/50% 'new'"),
            work_dir=Path("/w"),
        )
    )
    lines = text.splitlines()
    options = {line.removeprefix("#SBATCH ") for line in lines if line.startswith("#SBATCH ")}
    assert options == {
        "--job-name=apply-my-movie",
        "--output=\"/logs/50%% 'new'/apply-my-movie-%j.log\"",
        "--open-mode=append",
        "--export=NONE",
        "--requeue",
        "--kill-on-invalid-dep=yes",
        "--signal=B:USR1@300",
        "--nodes=1",
        "--ntasks=1",
        "--cpus-per-task=8",
        "--mem=64G",
        "--time=1-00:00:00",
        "--partition=gpu",
        "--account=lab",
        "--qos=long",
        "--gpus=a100:1",
        "--constraint=a100_80",
    }
    # Slurm reads options up to the first command, and environment lines come before the program.
    assert max(i for i, line in enumerate(lines) if line.startswith("#SBATCH")) < lines.index(
        "cd -- /w || exit 1"
    )
    assert lines.index("module load mamba") < lines.index("true &")


def test_a_log_folder_that_slurm_cannot_name_is_refused():
    with pytest.raises(UsageError, match="line breaks"):
        render_script(BatchJob(["true"], name="x", profile=JobProfile(), log_dir=Path("/a\nb")))


@pytest.mark.parametrize("code", [0, 1, 2, 75])
def test_the_script_ends_with_the_commands_code_and_requeues_only_75(tmp_path, tools, monkeypatch, code):
    tools("scontrol", f"open({str(tmp_path / 'requeued')!r}, 'w').write(' '.join(sys.argv[1:]))")
    monkeypatch.setenv("SLURM_JOB_ID", "17")
    done = subprocess.run(
        ["bash", script_for(tmp_path, recorder(tmp_path, code))], capture_output=True, check=False
    )
    assert done.returncode == code
    requeued = tmp_path / "requeued"
    assert requeued.exists() == (code == 75)
    assert code != 75 or requeued.read_text() == "requeue 17"


def test_a_job_that_slurm_ends_in_order_to_requeue_it_knows_that_it_was_requeued(
    tmp_path, tools, monkeypatch
):
    tools(
        "scontrol",
        "import signal\nos.killpg(0, signal.SIGTERM)\ntime.sleep(0.3)\n"
        f"open({str(tmp_path / 'requeued')!r}, 'w')",
    )
    monkeypatch.setenv("SLURM_JOB_ID", "17")
    done = subprocess.run(
        ["bash", script_for(tmp_path, recorder(tmp_path, 75))],
        capture_output=True,
        text=True,
        check=False,
        start_new_session=True,
    )
    assert (tmp_path / "requeued").exists()
    assert done.returncode == 75 and "job 17 is queued again" in done.stderr


def test_a_job_that_never_gets_further_is_not_requeued_for_ever(tmp_path, tools, monkeypatch):
    tools("scontrol", f"open({str(tmp_path / 'requeued')!r}, 'w')")
    monkeypatch.setenv("SLURM_JOB_ID", "17")
    monkeypatch.setenv("SLURM_RESTART_COUNT", "3")
    script = script_for(tmp_path, recorder(tmp_path, 75), max_requeues=3)
    done = subprocess.run(["bash", script], capture_output=True, text=True, check=False)
    assert done.returncode == 75
    assert "requeued 3 times already" in done.stderr
    assert not (tmp_path / "requeued").exists()


STOPPABLE = """
import signal, sys, time
signal.signal(signal.SIGTERM, lambda *_: (time.sleep(0.3), sys.exit(75)))
print("ready", flush=True)
time.sleep(60)
"""


@pytest.mark.parametrize("warning, requeued", [(signal.SIGUSR1, True), (signal.SIGTERM, False)])
def test_the_early_warning_reaches_the_command_and_a_cancelled_job_stays_cancelled(
    tmp_path, tools, monkeypatch, warning, requeued
):
    tools("scontrol", f"open({str(tmp_path / 'requeued')!r}, 'w')")
    monkeypatch.setenv("SLURM_JOB_ID", "17")
    script = script_for(tmp_path, [sys.executable, "-c", STOPPABLE])
    with subprocess.Popen(
        ["bash", script], stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, start_new_session=True
    ) as job:
        assert job.stdout is not None
        assert job.stdout.readline() == b"ready\n"
        if warning == signal.SIGUSR1:
            job.send_signal(warning)  # as --signal=B: does
        else:
            os.killpg(job.pid, warning)  # as scancel does
        assert job.wait(timeout=20) == 75
    assert (tmp_path / "requeued").exists() == requeued


def test_submit_gives_the_job_id_and_lets_no_variable_steer(tmp_path, tools, monkeypatch):
    seen = tmp_path / "seen"
    tools(
        "sbatch",
        f"json.dump([sys.argv[1:], dict(os.environ)], open({str(seen)!r}, 'w')); print('123;cluster')",
    )
    for name in ("SBATCH_PARTITION", "SLURM_JOB_ID", "SLURM_CPU_BIND", "SQUEUE_FORMAT", "PMIX_RANK"):
        monkeypatch.setenv(name, "x")
    monkeypatch.setenv("SLURM_CONF", "/etc/slurm.conf")
    script = script_for(tmp_path, ["true"])
    assert submit_script(script) == "123"
    arguments, environment = json.loads(seen.read_text())
    assert arguments == ["--parsable", str(script)]
    steering = [name for name in environment if name.startswith(("SBATCH_", "SLURM_", "SQUEUE_", "PMIX_"))]
    assert steering == ["SLURM_CONF"]


def test_a_refusal_is_told_in_slurms_words(tmp_path, tools):
    tools("sbatch", "sys.exit('sbatch: error: invalid partition specified: gpuu')")
    with pytest.raises(PipelineError, match="invalid partition specified: gpuu"):
        submit_script(script_for(tmp_path, ["true"]))


def test_a_machine_without_slurm_is_told_to_print(tmp_path, monkeypatch):
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(UsageError, match="--print"):
        submit_script(script_for(tmp_path, ["true"]))


def write_profile(tmp_path: Path, text: str) -> Path:
    path = tmp_path / "profile.yaml"
    path.write_text(text)
    return path


def test_workers_ask_for_what_the_batch_job_asks_for_unless_told_otherwise(tmp_path):
    path = write_profile(
        tmp_path,
        "partition: public\ngpus: 1\nsetup: [module load x]\n"
        "workers:\n  gpus: a100:1\n  partition:\n  cpus: 2\n",
    )
    assert load_profile(path) == JobProfile(partition="public", gpus="1", setup=("module load x",))
    assert load_profile(path, "workers") == JobProfile(gpus="a100:1", setup=("module load x",), cpus=2)


@pytest.mark.parametrize(
    "text, message",
    [
        ("partiton: public", "'partiton' is not a setting .*Did you mean 'partition'?"),
        ("workers:\n  memory: 3", "workers: 'memory' is not a setting .*Did you mean 'memory_gib'?"),
        ("colour: red", "The settings are: scheduler, partition"),
        ("time: 30", "time is '30', .* needs a unit"),
        ("time: 'tomorrow'", "a time limit such as 04:00:00"),
        ("cpus: 1.5", "whole number"),
        ("cpus: 0", "a positive number"),
        ("cpus: true", "whole number"),
        ("partition: 'a b'", "partition is 'a b'"),
        ("partition: [a]", "must be text"),
        ("setup: module load x", "a list of lines"),
        ("extra: [gres=gpu:1]", "with its dashes"),
        ('setup: ["a\\nb"]', "a list of lines"),
        ("- 1", "name: value"),
        ("workers: 3", "setting: value"),
        ("a: [", "is not valid YAML"),
        ("!!python/object/apply:os.system [touch pwned]", "has the tag"),
        ("scheduler: sge", "one of slurm, pbs, lsf, local"),
        ("workers:\n  scheduler: pbs", "at the top, once"),
        ("scheduler: pbs\nqos: long", "qos means nothing with scheduler: pbs"),
        ("scheduler: pbs\ntrain:\n  cpus: 2", "train.cpus means nothing with scheduler: pbs"),
        ("scheduler: lsf\ngpus: a100:1", "gpus is 'a100:1', but with scheduler: lsf it must be a number"),
        ("scheduler: local\ntime: '1:00:00'", "time means nothing with scheduler: local"),
    ],
)
def test_a_profile_with_a_mistake_is_refused(tmp_path, text, message):
    with pytest.raises(UsageError, match=f"(?s){message}"):
        load_profile(write_profile(tmp_path, text))


@pytest.mark.parametrize(
    ("text", "time", "seconds"),
    [
        ("time: 12:00:00", "12:00:00", 43_200),
        ("time: 1-12", "1-12", 129_600),
        ("time: 8h", "0-08:00:00", 28_800),
        ("time: 1h30m", "0-01:30:00", 5400),
        ("time: 2d", "2-00:00:00", 172_800),
    ],
)
def test_a_time_limit_is_written_as_slurm_does_or_as_a_duration(tmp_path, text, time, seconds):
    profile = load_profile(write_profile(tmp_path, text))
    assert (profile.time, profile.time_s) == (time, seconds)


def test_a_profile_from_python_is_checked_too():
    for wrong in ({"cpus": 0}, {"scheduler": "sge"}, {"extra": ("gres=1",)}, {"gpus": "a b"}, {"cpu": 3}):
        with pytest.raises(UsageError):
            JobProfile(**wrong)


def test_a_missing_profile_is_named(tmp_path):
    with pytest.raises(UsageError, match=r"nowhere\.yaml"):
        load_profile(tmp_path / "nowhere.yaml")


def test_the_profile_that_comes_along_is_valid():
    path = REPOSITORY / "deploy" / "profiles" / "slurm.yaml"
    assert load_profile(path).memory_gib == 32
    assert load_profile(path, "workers").time == "02:00:00"
    assert load_profile(Path("slurm"), "workers") == load_profile(path, "workers")


@pytest.mark.parametrize("name", ["slurm", "sol", "local", "pbs", "lsf"])
def test_every_profile_that_comes_along_is_sound_and_known_by_its_name(name):
    assert name in names()
    site = load_site(Path(name))
    assert site.scheduler == ("slurm" if name == "sol" else name)
    assert site.kinds and all(site.of(kind).scheduler == site.scheduler for kind in site.kinds)
    assert (REPOSITORY / "deploy/profiles" / f"{name}.yaml").is_file()


def test_a_profile_of_ones_own_changes_lines_of_the_one_of_that_name(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path))
    mine = tmp_path / "tdenoise/profiles"
    mine.mkdir(parents=True)
    (mine / "sol.yaml").write_text("account: lab\ncpus: 2\ntrain:\n  gpus: a100:2\n")
    (mine / "pbs.yaml").write_text("partition: long\n")
    before, train = (
        load_profile(REPOSITORY / "deploy/profiles/sol.yaml", "train"),
        load_profile(Path("sol"), "train"),
    )
    assert (before.gpus, train.gpus) == ("a100:1", "a100:2")
    assert train == replace(
        before, account="lab", gpus="a100:2"
    )  # a section of theirs wins over a line of mine
    assert load_profile(Path("sol"), "report").cpus == 2
    assert load_profile(Path("pbs"), "workers").partition == "long"
    assert load_site(Path("sol"), ["train.gpus=a100:4"]).of("train").gpus == "a100:4"
    assert set(names()) == {"local", "lsf", "pbs", "slurm", "sol"}


@pytest.mark.parametrize("change", ["train.scheduler=pbs", "scheduler=sge"])
def test_a_scheduler_is_of_the_whole_profile_and_known(change):
    with pytest.raises(UsageError, match="--set"):
        load_site(None, [change])


def test_profiles_of_other_systems_are_checked_for_their_commands(tmp_path, tools):
    with pytest.raises(UsageError, match="no qsub here"):
        check_profile(Path("pbs"))
    tools("qsub", "")
    found = check_profile(Path("pbs"))
    assert found["exit_code"] == 0 and "not asked" in found["jobs"]["workers"]["notes"][0]
    late = write_profile(tmp_path, "scheduler: pbs\ntime: '00:01:00'\nstop_early_s: 90")
    assert "raise time" in check_profile(late)["jobs"]["workers"]["problems"][0]
    assert check_profile(Path("local"))["exit_code"] == 0
    assert list(show_profile(Path("lsf"))) == ["workers"]


@pytest.mark.parametrize(
    "text, parsed",
    [
        ("local", Workers("local", 0)),
        ("local:1", Workers("local", 1)),
        ("slurm:64", Workers("slurm", 64)),
        ("array:8", Workers("array", 8)),
        ("pbs:3", Workers("pbs", 3)),
        ("lsf:3", Workers("lsf", 3)),
        ("tls://[::1]:8786", Workers("address", address="tls://[::1]:8786")),
        ("tls://node7.cluster:8786", Workers("address", address="tls://node7.cluster:8786")),
    ],
)
def test_workers_are_understood(text, parsed):
    assert Workers.of(text) == parsed and str(parsed) == text


@pytest.mark.parametrize(
    "text",
    ["", "4", "local:", "local:0", "local:-1", "local:1.5", "local:٣", "local:1\n", "slurm", "slurm:0",
     "Local:1", "pbs:0", "sge:3", "tls://", "tls://host", "tls://host:0", "tls://host:99999", "tls://:80", "tls://host:80/path",
     "tls://me@host:80", "http://host:80", "tls://ho st:80"],
)  # fmt: skip
def test_other_workers_are_refused(text):
    with pytest.raises(UsageError, match="--workers"):
        Workers.of(text)


@pytest.mark.parametrize("host", ["10.0.0.1", "node7", "[fe80::1]", "127.0.0.1", "localhost", "[::1]"])
def test_unencrypted_connections_are_refused_to_this_machine_too(host):
    with pytest.raises(UsageError, match="tls://"):
        Workers.of(f"tcp://{host}:8786").check_secure(insecure=False)
    Workers.of(f"tcp://{host}:8786").check_secure(insecure=True)


@given(
    st.text(max_size=30)
    | st.from_regex(r"(local|slurm|pbs|lsf|array|tcp|tls):(//)?[\w.:\[\]@-]{0,20}", fullmatch=True)
)
@example("tls://[:1")
@settings(max_examples=300, deadline=None)
def test_any_text_is_understood_or_refused(text):
    try:
        parsed = Workers.of(text)
    except UsageError:
        return
    assert str(parsed) == text


def test_reading_options_imports_no_dask():
    program = "import sys, tdenoise_pipeline.workers.cluster; sys.exit('dask' in sys.modules)"
    subprocess.run([sys.executable, "-c", program], check=True)


def listening(process: psutil.Process) -> set[str]:
    """Addresses on which a process and its children accept connections."""
    family = [process, *process.children(recursive=True)]
    connections = [connection for member in family for connection in member.net_connections("inet")]
    return {connection.laddr for connection in connections if connection.status == psutil.CONN_LISTEN}


@pytest.fixture
def local(tmp_path):
    return lambda workers, memory=None: cluster.connect(
        Workers.of(workers),
        scratch=tmp_path / "scratch",
        worker_memory_bytes=memory,
        profile=None,
        log_dir=tmp_path / "logs",
    )


def test_local_workers_listen_on_loopback_only_and_leave_no_trace(local, monkeypatch):
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    me = psutil.Process()
    before, earlier = dict(os.environ), listening(me)  # other tests keep a cluster for the session
    with local("local:2", memory=2**30) as client:
        assert client.gather(client.map(lambda i: i + 1, range(8), pure=False)) == list(range(1, 9))
        assert cluster.n_workers(client) == 2
        workers = client.scheduler_info(n_workers=-1)["workers"].values()
        assert [(w["memory_limit"], w["nthreads"]) for w in workers] == [(2**30, 1)] * 2
        opened = listening(me) - earlier
        assert opened and all(ipaddress.ip_address(address.ip).is_loopback for address in opened)
        workers_here = [psutil.Process(pid) for pid in client.run(os.getpid).values()]
    _, alive = psutil.wait_procs(workers_here, timeout=10)
    assert not alive
    assert listening(me) <= earlier
    assert dict(os.environ) == before


def test_two_runs_on_one_machine_do_not_meet(local):
    with local("local:1") as first, local("local:1") as second:
        assert first.scheduler.address != second.scheduler.address
        assert first.submit(abs, -1).result() == second.submit(abs, -1).result() == 1


def test_a_killed_local_worker_is_replaced(local):
    with local("local:1") as client:
        future = client.submit(time.sleep, 1, pure=False, retries=2)
        [pid] = client.run(os.getpid).values()
        os.kill(pid, signal.SIGKILL)
        future.result(timeout=60)
        [replacement] = client.run(os.getpid).values()
        assert replacement != pid


def test_ctrl_c_in_a_terminal_is_the_drivers_to_answer(local):
    with local("local:1") as client:
        future = client.submit(time.sleep, 1, pure=False)
        [pid] = client.run(os.getpid).values()
        os.kill(pid, signal.SIGINT)
        future.result(timeout=60)
        assert list(client.run(os.getpid).values()) == [pid]


def test_workers_and_their_replacements_are_born_deaf_to_ctrl_c(local):
    before = signal.pthread_sigmask(signal.SIG_BLOCK, [])
    with local("local:2") as client:
        assert signal.pthread_sigmask(signal.SIG_BLOCK, []) == before, "the driver hears again"
        pids = list(client.run(os.getpid).values())
        os.kill(pids[0], signal.SIGKILL)
        deadline = time.monotonic() + 60
        while len(after := set(client.run(os.getpid, on_error="ignore").values()) | {pids[1]}) < 2:
            assert time.monotonic() < deadline
            time.sleep(0.2)
        for pid in after | {pids[1]}:
            [blocked] = re.findall(r"(?m)^SigBlk:\t(\w+)", Path(f"/proc/{pid}/status").read_text())
            assert int(blocked, 16) & 1 << signal.SIGINT - 1


def test_a_ctrl_c_while_workers_start_is_kept_and_is_a_stop(tmp_path, monkeypatch):
    import distributed

    stop = threading.Event()
    before = signal.signal(signal.SIGINT, lambda *_: stop.set())

    def interrupted(**settings):
        os.kill(os.getpid(), signal.SIGINT)
        raise RuntimeError("a worker died")

    monkeypatch.setattr(distributed, "LocalCluster", interrupted)
    options = {"scratch": tmp_path, "worker_memory_bytes": None, "profile": None, "log_dir": tmp_path}
    try:
        with pytest.raises(Stopped), cluster.connect(Workers.of("local:1"), **options, stop=stop):
            pass
    finally:
        signal.signal(signal.SIGINT, before)


def test_workers_that_were_killed_while_all_are_started_are_started_again(tmp_path, monkeypatch, caplog):
    import distributed

    real, calls = distributed.LocalCluster, []

    def dies_once(**settings):
        calls.append(settings)
        if len(calls) == 1:
            raise RuntimeError("a worker died")
        return real(**settings)

    monkeypatch.setattr(distributed, "LocalCluster", dies_once)
    options = {"scratch": tmp_path, "worker_memory_bytes": None, "profile": None, "log_dir": tmp_path}
    caplog.set_level("WARNING", logger="tdenoise_pipeline")  # other tests leave another behind
    with cluster.connect(Workers.of("local:1"), **options) as client:
        assert client.submit(sum, [1, 2]).result() == 3
    assert len(calls) == 2 and "trying again" in caplog.text


def test_an_exception_in_the_step_still_stops_the_workers(local):
    with pytest.raises(ZeroDivisionError), local("local:1") as client:
        [pid] = client.run(os.getpid).values()
        raise ZeroDivisionError
    assert not psutil.pid_exists(pid) or psutil.Process(pid).status() == psutil.STATUS_ZOMBIE


def test_a_silent_scheduler_is_an_error(local, monkeypatch):
    no_keys = dask.config.set({"distributed.comm.tls.ca-file": None})  # other tests have some
    with no_keys, pytest.raises(UsageError, match="certificates"), local("tls://localhost:1"):
        pass
    monkeypatch.setattr(cluster, "CONNECT_TIMEOUT_S", 1)
    with (
        pytest.raises(ResourceError, match="no Dask scheduler answers"),
        local("tcp://127.0.0.1:1"),
    ):
        pass


def test_worker_cluster_without_slurm_are_refused(local, monkeypatch, tmp_path):
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(UsageError, match="needs sbatch"), local("slurm:2"):
        pass


def test_a_worker_larger_than_its_job_is_refused(local):
    with pytest.raises(UsageError, match="requests 6 GiB"), local("slurm:2", memory=17 * 2**30):
        pass


def test_a_training_on_several_nodes_is_started_by_srun_and_stopped_by_what_srun_hands_on(tmp_path):
    profile = JobProfile(nodes=2, gpus="a100:4", cpus=16, interface="ib0")
    script = render_script(
        BatchJob(
            ["train", *HOSTILE], name="test", profile=profile, log_dir=tmp_path, work_dir=tmp_path, nodes=2
        )
    )
    assert (
        subprocess.run(["bash", "-n"], input=script, text=True, check=True, capture_output=True).stderr == ""
    )
    for option in ("nodes=2", "ntasks-per-node=4", "cpus-per-task=4", "gpus-per-node=a100:4"):
        assert f"#SBATCH --{option}\n" in script
    assert "kill -USR1 " in script and "kill -TERM " not in script
    assert "\nenv GLOO_SOCKET_IFNAME=ib0 NCCL_SOCKET_IFNAME=ib0 srun " in script
    assert script.count("--processes slurm &\n") == 1
    one = render_script(
        BatchJob(["train"], name="test", profile=profile, log_dir=tmp_path, work_dir=tmp_path)
    )
    assert "#SBATCH --nodes=1\n" in one and "srun" not in one and "#SBATCH --gpus=a100:4\n" in one
