"""Windows and macOS, emulated: what the operating system lacks there is taken away, from our modules alone."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from small import counts, model_folder
from tdenoise_pipeline.files import ownership
from tdenoise_pipeline.runs import lease

from tdenoise.files import atomic
from tdenoise.network import checkpoint, torch_setup

# Packages of others are loaded first: on Windows, they have their own ways.
WINDOWS = """
import os, signal, sys
from pathlib import Path
import distributed, h5netcdf, matplotlib.figure, numpy, scipy.ndimage, tifffile, torch, xarray, zarr
for name in ("preadv", "pread", "geteuid", "getuid", "getgid", "chown", "killpg", "fork"):
    if hasattr(os, name):
        delattr(os, name)
for name in ("O_NOFOLLOW", "O_NONBLOCK", "O_CLOEXEC"):
    delattr(os, name)
for name in ("SIGUSR1", "SIGUSR2", "SIGKILL", "SIGHUP", "pthread_sigmask"):
    delattr(signal, name)
for name in ("resource", "pwd", "grp", "fcntl", "termios"):
    sys.modules[name] = None
usual = os.open

def no_folders(path, flags, *rest, **more):
    caller = sys._getframe(1).f_globals["__name__"]
    if caller.startswith("tdenoise") and os.path.isdir(path):
        raise PermissionError(13, "Permission denied", str(path))
    return usual(path, flags, *rest, **more)

os.open = no_folders
from tdenoise.files import atomic
atomic.ON_WINDOWS = True
from tdenoise_pipeline import cli
raw, model, folder = sys.argv[1:]
for words in (
    ["ingest", raw, "-o", f"{folder}/m.zarr"],
    ["apply", f"{folder}/m.zarr", "--model", model, "-o", f"{folder}/d.zarr", "--share", "0/1", "--ensemble", "1"],
    ["export", f"{folder}/d.zarr", "-o", f"{folder}/d.nc"],
    ["verify", f"{folder}/d.zarr", "--deep"],
):
    code = cli.main([*words, "-q"])
    assert code == 0, words
assert numpy.isfinite(xarray.open_zarr(f"{folder}/d.zarr")["denoised"].values).all()
assert xarray.open_dataset(f"{folder}/d.nc")["denoised"].shape == (24, 32, 32)
"""


def test_a_movie_is_read_denoised_and_exported_without_what_windows_lacks(tmp_path: Path) -> None:
    np.save(tmp_path / "raw.npy", counts((24, 32, 32)))
    arguments = [tmp_path / "raw.npy", model_folder(tmp_path / "model"), tmp_path]
    done = subprocess.run(
        [sys.executable, "-c", WINDOWS, *map(str, arguments)], capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr[-3000:]


def test_where_folders_cannot_be_synced_files_are(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(atomic, "ON_WINDOWS", True)
    atomic.write_atomically(tmp_path / "file", b"whole")
    assert (tmp_path / "file").read_bytes() == b"whole"


def test_files_of_a_system_without_owners_are_ones_own(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(ownership, "pwd", None)
    assert ownership.is_mine(tmp_path) and ownership.stranger(tmp_path) is None


def test_a_process_is_known_again_where_there_is_no_proc(monkeypatch: pytest.MonkeyPatch) -> None:
    usual = Path.exists
    monkeypatch.setattr(Path, "exists", lambda p, **k: not str(p).startswith("/proc") and usual(p, **k))
    own = lease.this_process()
    assert own["process_start"] is not None
    assert lease.process_start(own["pid"]) == own["process_start"]
    assert lease.process_start(2**22 + 1) is None


@pytest.mark.parametrize("name", ["cuda", "mps", "xpu", None])
def test_the_accelerator_that_torch_names_is_the_device(
    name: str | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    found = None if name is None else torch.device(name)
    monkeypatch.setattr(torch.accelerator, "current_accelerator", lambda check_available: found)
    assert checkpoint.default_device() == (name or "cpu")
    assert checkpoint.is_usable("cpu") and checkpoint.is_usable(name or "cpu")
    assert not checkpoint.is_usable("hpu")
    if name in ("mps", "xpu"):
        assert not torch_setup.fast_bfloat16(name), "not known, so float32"
