"""Doctor: is this machine fit for work, and are the folder and the nodes? One line for each question."""

from __future__ import annotations

import contextlib
import importlib.util
import json
import multiprocessing
import os
import shlex
import shutil
import socket
import subprocess
import tempfile
import threading
import time
import uuid
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from tdenoise.files.atomic import fsync, write_atomically

from ..errors import PipelineError, ResourceError, UsageError
from ..files.sealed_json import read_json
from ..resources import budget
from ..settings.job_settings import DoctorConfig
from ..slurm.batch_script import clean_environment, pipeline_command, site_options
from ..slurm.site_profile import JobProfile, load_profile
from ..version import VERSION

try:
    import resource
except ImportError:  # Windows
    resource = None  # type: ignore[assignment]

MEMORY_BYTES = 4 * 2**30  # one block with its halo
DISK_BYTES = 10 * 10**9
TRIAL_BYTES = 16 * 2**20  # written and read back; shows a quota that is used up
SKEW_S = 5.0
OPEN_FILES = 1024
RACES, RACERS = 20, 3
NODES_WAIT_S = 1800.0
OPTIONAL = {
    "dask_jobqueue": "--workers slurm:N, pbs:N and lsf:N (the extra slurm: pip install '.[slurm]' in a checkout)",
    "av": "video files (the extra video)",
}


@dataclass(frozen=True)
class Finding:
    """The answer to one question."""

    what: str
    ok: bool
    says: str
    remedy: str = ""  # what to do, where it is not ok


def examine(config: DoctorConfig) -> dict[str, Any]:
    """Ask all questions.

    Parameters
    ----------
    config : DoctorConfig

    Returns
    -------
    dict
        ``findings`` (see `Finding`), ``versions``, ``host``, ``exit_code`` (1 if something is not ok).

    Raises
    ------
    UsageError
        If the folder is missing, or the profile wrong.
    """
    profile = load_profile(config.profile)
    if not config.folder.is_dir():
        raise UsageError(f"{config.folder}: is not a folder. Name the folder for the results.")
    folder = config.folder.absolute()
    questions: list[Callable[[], Finding]] = [
        _software,
        _gpu,
        _memory,
        _open_files,
        _loopback,
        lambda: _disk(folder),
        lambda: _folder(folder),
        lambda: _clock(folder),
    ]
    if profile.interface is not None:
        questions.append(lambda: _interface(str(profile.interface)))
    if config.nodes is not None and profile.scheduler != "slurm":
        raise UsageError(
            f"--nodes checks nodes through Slurm, but the profile says scheduler: {profile.scheduler}."
        )
    if (config.profile is not None or config.nodes is not None) and profile.scheduler == "slurm":
        questions.append(_slurm)
    findings = [_asked(question) for question in questions]
    if config.nodes is not None:
        findings += _nodes(config.nodes, folder, profile, config.profile)
    result = {
        "findings": [asdict(finding) for finding in findings],
        "versions": VERSION,
        "host": socket.gethostname(),
        "exit_code": 0 if all(finding.ok for finding in findings) else 1,
    }
    if config.answer is not None:
        write_atomically(config.answer, json.dumps(result).encode())
    return result


def lines(result: dict[str, Any]) -> list[str]:
    """The findings for people: ``ok`` or ``!!``, what, how it is, and what to do."""
    findings = [Finding(**finding) for finding in result["findings"]]
    width = max(len(finding.what) for finding in findings)
    return [
        f"{'ok' if f.ok else '!!'}  {f.what:<{width}}  {f.says}" + ("" if f.ok else f". {f.remedy}")
        for f in findings
    ]


def _asked(question: Callable[[], Finding]) -> Finding:
    try:
        return question()
    except (OSError, PipelineError, subprocess.SubprocessError) as error:
        name = getattr(question, "__name__", "").strip("_").replace("<lambda>", "folder")
        return Finding(
            name,
            False,
            f"could not be checked: {error}",
            "Look at the message; then ask your site's support.",
        )


def _software() -> Finding:
    missing = [use for name, use in OPTIONAL.items() if importlib.util.find_spec(name) is None]
    without = f"; without {' and '.join(missing)}" if missing else ""
    return Finding("software", True, ", ".join(f"{k} {v}" for k, v in VERSION.items()) + without)


def _gpu() -> Finding:
    """GPU, driver and torch: they must agree, or the work is done by the processor, a hundred times slower."""
    import torch

    asked = ["nvidia-smi", "--query-gpu=name,driver_version", "--format=csv,noheader"]
    found = ""
    with contextlib.suppress(OSError, subprocess.SubprocessError):
        found = subprocess.run(asked, capture_output=True, text=True, timeout=60, check=True).stdout.strip()
    promised = os.environ.get("SLURM_JOB_GPUS") or os.environ.get("SLURM_STEP_GPUS")
    if torch.cuda.is_available():
        names = ", ".join(torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count()))
        try:
            wrong = not bool(
                (torch.ones(64, 64, device="cuda") @ torch.ones(64, 64, device="cuda") == 64).all()
            )
        except RuntimeError as error:
            return Finding(
                "GPU", False, f"{names}: {error}", "Install the torch build for this driver and GPU."
            )
        says = f"{names}; torch {torch.__version__} for CUDA {torch.version.cuda}"
        return Finding(
            "GPU",
            not wrong,
            says,
            "It computes wrong numbers: use another one, and report it to your site's support.",
        )
    if found:
        driver = found.splitlines()[0]
        if torch.version.cuda is None:
            remedy = "Install its CUDA build: see deploy/README.md."
            return Finding(
                "GPU",
                False,
                f"{driver} is there, but torch {torch.__version__} is built for CPUs only",
                remedy,
            )
        says = f"{driver} is there, but torch {torch.__version__} for CUDA {torch.version.cuda} cannot use it"
        return Finding(
            "GPU", False, says, "Install a torch build for this driver, or ask for a newer driver."
        )
    if promised:
        says = f"the job was given GPU {promised}, but no driver answers (nvidia-smi)"
        return Finding(
            "GPU", False, says, "Use another node (--exclude), and report it to your site's support."
        )
    return Finding("GPU", True, "none here; the CPU is used")


def _memory() -> Finding:
    memory = budget.machine_memory_bytes()
    says = f"{budget.n_cores()} cores, {budget.in_words(memory)} of memory"
    return Finding(
        "processor", memory >= MEMORY_BYTES, says, "Request 4 GiB or more (memory_gib in the profile)."
    )


def _open_files() -> Finding:
    if resource is None:
        return Finding("open files", True, "this system sets no limit", "")
    limit = resource.getrlimit(resource.RLIMIT_NOFILE)[0]
    return Finding(
        "open files", limit >= OPEN_FILES, f"at most {limit}", f"Run 'ulimit -n {OPEN_FILES}' first."
    )


def _loopback() -> Finding:
    """Workers of one machine and their driver talk over loopback."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        server.settimeout(10)
        with socket.create_connection(server.getsockname(), timeout=10):
            server.accept()[0].close()
    return Finding("loopback", True, "ports can be opened and reached")


def _interface(name: str) -> Finding:
    known = [interface for _, interface in socket.if_nameindex()]
    remedy = f"The profile's interface is one of {', '.join(known)}."
    return Finding("network", name in known, f"interface {name}", remedy)


def _slurm() -> Finding:
    done = subprocess.run(
        ["sinfo", "--noheader", "--format=%P"],
        env=clean_environment(os.environ),
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    partitions = " ".join(dict.fromkeys(done.stdout.split()))
    says = f"partitions {partitions}" if done.returncode == 0 else done.stderr.strip()
    return Finding(
        "Slurm", done.returncode == 0, says, "Run this on a machine from which jobs are submitted."
    )


def _disk(folder: Path) -> Finding:
    free = shutil.disk_usage(folder).free
    with _probe_folder(folder) as probe:
        try:
            write_atomically(probe / "trial", os.urandom(TRIAL_BYTES))
        except OSError as error:
            remedy = "Free some space, or have your quota raised."
            return Finding("disk", False, f"{folder}: {error.strerror}", remedy)
    says = f"{folder}: {budget.in_words(free)} free"
    return Finding(
        "disk", free >= DISK_BYTES, says, "A movie, its model and result take up to three times its size."
    )


def _folder(folder: Path) -> Finding:
    """What leases, markers and outputs rely on: mkdir and rename happen once, and fsync works."""
    with _probe_folder(folder) as probe:
        spawn = multiprocessing.get_context("spawn")
        racers = [spawn.Process(target=race, args=(probe, n)) for n in range(RACERS)]
        with _seen_whole(probe) as torn:
            for racer in racers:
                racer.start()
            for racer in racers:
                racer.join(120)
            if any(racer.exitcode != 0 for racer in racers):
                for racer in racers:
                    racer.kill()
                raise ResourceError("its helper processes did not finish")
        wins = [len(list(probe.glob(f"won-{i}-*"))) for i in range(RACES)]
        fsync(probe)
        (probe / "full").mkdir()
        (probe / "full" / "file").touch()
        (probe / "other").mkdir()
        try:
            (probe / "other").rename(probe / "full")
            replaced = True
        except OSError:
            replaced = False
    wrong = []
    if wins != [1] * RACES:
        wrong.append("several processes could make the same folder")
    if torn:
        wrong.append("a file was seen half replaced")
    if replaced:
        wrong.append("a folder with files in it was replaced")
    remedy = "Use another file system for results: runs could not be kept apart on this one."
    says = f"{folder}: " + ("mkdir, rename and fsync work reliably" if not wrong else "; ".join(wrong))
    return Finding("file system", not wrong, says, remedy)


def race(probe: Path, number: int) -> None:
    """Try to be the first to make every folder, and replace a file again and again."""
    (probe / f"ready-{number}").touch()
    deadline = time.monotonic() + 60
    while len(list(probe.glob("ready-*"))) < RACERS and time.monotonic() < deadline:
        time.sleep(0.001)
    for i in range(RACES):
        with contextlib.suppress(FileExistsError):
            (probe / f"taken-{i}").mkdir()
            (probe / f"won-{i}-{number}").touch()
        write_atomically(probe / "replaced", str(number).encode() * 10_000)


@contextlib.contextmanager
def _seen_whole(probe: Path) -> Iterator[list[int]]:
    """Watch the file that is being replaced; sizes other than that of a whole one."""
    torn: list[int] = []
    over = threading.Event()

    def watch() -> None:
        seen = False
        while not over.is_set():
            try:
                size = len((probe / "replaced").read_bytes())
            except FileNotFoundError:
                size = 0 if seen else 10_000
            seen = seen or (probe / "replaced").exists()
            if size != 10_000:
                torn.append(size)

    watcher = threading.Thread(target=watch, daemon=True)
    watcher.start()
    try:
        yield torn
    finally:
        over.set()
        watcher.join()


def _clock(folder: Path) -> Finding:
    """Times on files are compared with each other only, but those in logs with the clock on the wall."""
    with _probe_folder(folder) as probe:
        before = time.time()
        (probe / "now").touch()
        stamp, after = (probe / "now").stat().st_mtime, time.time()
    skew = max(before - stamp, stamp - after, 0.0)
    says = f"the file system's differs by {skew:.1f} s"
    return Finding(
        "clock",
        skew <= SKEW_S,
        says,
        "Report it to your site's support; times in logs and reports are off by as much. Leases do not depend on it.",
    )


def _nodes(n_nodes: int, folder: Path, profile: JobProfile, path: Path | None) -> list[Finding]:
    """Let nodes answer the same questions, into the shared folder; a small job that is waited for."""
    with _probe_folder(folder) as probe:
        one = replace(profile, nodes=1)
        options = [
            f"--nodes={n_nodes}",
            "--ntasks-per-node=1",
            f"--cpus-per-task={profile.cpus}",
            "--time=10",
        ]
        options += [f"--mem={profile.memory_gib}G", "--export=NONE", "--quiet", "--job-name=tdenoise-doctor"]
        options += [f"--{k}={v}" for k, v in (("partition", one.partition), ("account", one.account)) if v]
        options += site_options(one, n_nodes)
        script = probe / "answer.sh"
        words = [
            "doctor",
            str(folder),
            *([] if path is None else ["--profile", str(path.absolute() if path.exists() else path)]),
        ]
        setup = "\n".join(profile.setup)
        command = shlex.join(pipeline_command([*words, "--answer"]))
        script.write_text(
            f"#!/bin/bash\n{setup}\n{command} {shlex.quote(str(probe))}/node-$SLURM_PROCID.json >/dev/null\nexit 0\n"
        )
        script.chmod(0o700)
        try:
            done = subprocess.run(
                ["srun", *options, str(script)],
                env=clean_environment(os.environ),
                capture_output=True,
                text=True,
                timeout=NODES_WAIT_S,
                check=False,
            )
        except FileNotFoundError:
            raise UsageError("--nodes needs srun, which this machine does not have.") from None
        except subprocess.TimeoutExpired:
            raise ResourceError(
                f"no {n_nodes} nodes within {NODES_WAIT_S / 60:.0f} minutes. Try fewer, or a shorter queue."
            ) from None
        answers = [read_json(probe / f"node-{number}.json") for number in range(n_nodes)]
        if done.returncode != 0 or not all(answers):
            n_there = sum(map(bool, answers))
            says = (
                f"{n_there} of {n_nodes} answered in {folder}: {done.stderr.strip()[-500:] or 'no message'}"
            )
            remedy = (
                "The folder, this Python and its packages must be seen from the nodes under the same path."
            )
            return [Finding("nodes", False, says, remedy)]
        return [finding for answer in answers for finding in _of_node(answer)]


def _of_node(answer: dict[str, Any]) -> list[Finding]:
    """What is not well on a node, or one line that all is."""
    name = f"node {answer['host']}"
    other = [f"{k} {v}" for k, v in answer["versions"].items() if VERSION.get(k) != v]
    found = [Finding(**f) for f in answer["findings"]]
    wrong = [replace(f, what=f"{name}: {f.what}") for f in found if not f.ok]
    if other:
        remedy = "Driver and workers must use one installation."
        wrong.append(Finding(f"{name}: software", False, f"{', '.join(other)}, unlike here", remedy))
    gpu = next((f.says for f in found if f.what == "GPU"), "")
    return wrong or [Finding(name, True, f"sees {len(found)} things as here; GPU: {gpu}")]


@contextlib.contextmanager
def _probe_folder(folder: Path) -> Iterator[Path]:
    """A folder for trials, which leaves nothing."""
    with tempfile.TemporaryDirectory(prefix=f".tdenoise-doctor-{uuid.uuid4().hex[:6]}-", dir=folder) as probe:
        yield Path(probe)
