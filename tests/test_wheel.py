"""The wheel, installed, where the user has files of their own."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from small import counts

ROOT = Path(__file__).parents[1]
ADDRESS = "https://example.org/tdenoise"  # of the repository, as a release is built with it


@pytest.fixture(scope="module")
def installed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with nothing but the installed wheel."""
    source, wheels, target = (tmp_path_factory.mktemp(name) for name in ("source", "wheels", "target"))
    for name in ("tdenoise", "pipeline"):
        shutil.copytree(ROOT / name, source / name, ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("pyproject.toml", "setup.py", "README.md", "LICENSE", "CITATION.cff"):
        shutil.copy(ROOT / name, source)
    environment = {**os.environ, "TDENOISE_URL": ADDRESS}
    pip = [sys.executable, "-m", "pip", "-q", "--disable-pip-version-check"]
    build = [*pip, "wheel", ".", "--no-deps", "--no-build-isolation", "-w", wheels]
    subprocess.run(build, cwd=source, env=environment, check=True)
    (wheel,) = wheels.glob("*.whl")
    subprocess.run([*pip, "install", "--no-deps", "--no-index", "--target", target, wheel], check=True)
    return target


@pytest.mark.slow
def test_the_wheel_does_a_whole_small_job_where_the_user_has_a_pipeline_py(
    installed: Path, tmp_path: Path
) -> None:
    np.save(tmp_path / "raw.npy", counts((12, 32, 32)))
    for name in ("pipeline", "tdenoise_config", "store", "blocks"):
        (tmp_path / f"{name}.py").write_text(f"raise SystemExit('the user\\'s {name}.py was imported')\n")
    environment = {**os.environ, "PYTHONPATH": str(installed)}

    def python(*words: str) -> str:
        result = subprocess.run(
            [sys.executable, *words],
            cwd=tmp_path,
            env=environment,
            capture_output=True,
            text=True,
            timeout=240,
        )
        assert result.returncode == 0, result.stderr
        return result.stdout

    where = python("-c", "import tdenoise, tdenoise_pipeline as p; print(tdenoise.__file__, p.__file__)")
    assert where.count(str(installed)) == 2
    python(
        "-m",
        "tdenoise_pipeline.cli",
        "run",
        "raw.npy",
        "-o",
        "out",
        "--steps",
        "2",
        "--workers",
        "local:2",
        "-q",
    )
    shape = python("-c", "import xarray; print(xarray.open_zarr('out/denoised.zarr')['denoised'].shape)")
    assert shape.strip() == "(12, 32, 32)"
    assert (tmp_path / "out/report.html").stat().st_size > 1000


@pytest.mark.slow
def test_the_wheel_brings_its_profiles(installed: Path, tmp_path: Path) -> None:
    np.save(tmp_path / "raw.npy", counts((12, 32, 32)))
    words = [sys.executable, "-m", "tdenoise_pipeline.cli"]
    environment = {**os.environ, "PYTHONPATH": str(installed), "XDG_CONFIG_HOME": str(tmp_path)}

    def tool(*more: str) -> str:
        result = subprocess.run(
            [*words, *more], cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=60
        )
        assert result.returncode == 0, result.stderr
        return result.stdout

    assert tool("profiles", "list").split()[:5] == ["local", "lsf", "pbs", "slurm", "sol"]
    script = tool("submit", "--profile", "sol", "run", "raw.npy", "-o", "out", "--print")
    assert "#SBATCH --partition=public\n" in script and "#SBATCH --gpus=a100:1\n" in script
    where = subprocess.run(
        [sys.executable, "-c", "import tdenoise_pipeline.slurm.site_profile as p; print(p.BUILT_IN)"],
        cwd=tmp_path,
        env=environment,
        capture_output=True,
        text=True,
        check=True,
    )
    assert where.stdout.startswith(str(installed))


@pytest.mark.slow
def test_links_and_pictures_of_the_wheel_are_absolute_where_the_repository_has_an_address(
    installed: Path,
) -> None:
    (metadata,) = installed.glob("tdenoise-*.dist-info/METADATA")
    text = metadata.read_text()
    assert f"Project-URL: Source, {ADDRESS}\n" in text
    assert f"]({ADDRESS}/raw/main/docs/demo.webp)" in text
    assert re.findall(r"\]\((?!https://)[^)]*\)", text) == []
