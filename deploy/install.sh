#!/bin/bash
# Install tdenoise into a folder of its own, on a file system that the nodes share. In the repository, on Linux:
#   module load mamba/latest        # or any other Python 3.11 or newer
#   bash deploy/install.sh ~/tdenoise-env
# With mamba (or conda) a Python 3.12 is made first; without, the python3 that is there is used.
set -euo pipefail
env=${1:?usage: install.sh FOLDER}
here=$(cd -- "$(dirname -- "${BASH_SOURCE[0]}")/.." && pwd)
if command -v mamba >/dev/null; then
    mamba create --yes --prefix "$env" python=3.12
else
    python3 -m venv "$env"
fi
# On Linux, torch of the Python package index is the CUDA build. PIP_* of the environment are respected.
"$env/bin/python" -m pip install --disable-pip-version-check -c "$here/constraints.txt" "$here[slurm,video]"
"$env/bin/tdenoise-pipeline" doctor "${TMPDIR:-/tmp}" || echo "doctor found something: see the lines with !!" >&2
echo "done: $env/bin/tdenoise-pipeline"
