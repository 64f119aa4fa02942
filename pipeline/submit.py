"""Submit: the same command as a batch job."""

from __future__ import annotations

import uuid
from collections.abc import Sequence
from pathlib import Path

from tdenoise.atomic import write_atomically

from .slurm import load_profile, pipeline_command, render_script, submit_script


def submit(words: Sequence[str], output: Path, profile: Path | None, *, dry: bool) -> dict[str, str]:
    """Queue ``tdenoise-pipeline WORDS`` on Slurm.

    Parameters
    ----------
    words : sequence of str
        The command line after the program's name, already checked.
    output : Path
        What the command writes; the script and the log lie beside it in ``.tdenoise/jobs``.
    profile : Path or None
        Describes the job.
    dry : bool
        Only render the script.

    Returns
    -------
    dict
        ``script``, ``log_dir`` and, unless dry, the ``job`` id.
    """
    log_dir = (output.parent / ".tdenoise" / "jobs").absolute()
    name = f"tdenoise-{words[0]}"
    settings = load_profile(profile)
    script = render_script(
        pipeline_command(words),
        job_name=name,
        profile=settings,
        log_dir=log_dir,
        nodes=settings.nodes if words[0] == "train" else 1,
    )
    answer = {"script": script, "log_dir": str(log_dir)}
    if not dry:
        log_dir.mkdir(parents=True, exist_ok=True)
        path = log_dir / f"{name}-{uuid.uuid4().hex[:8]}.sh"
        write_atomically(path, script.encode())
        answer["job"] = submit_script(path)
    return answer
