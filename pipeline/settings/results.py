"""What a run leaves in its folder, so that the folder can be given wherever one of its parts is meant."""

from __future__ import annotations

from pathlib import Path

from ..files.sealed_json import read_json, read_unbroken

# What each step leaves in the folder.
STUDY = "study.json"  # in the folder of a study, once all its trainings are judged
OUTPUTS = {"ingest": "movie.zarr", "train": "model", "apply": "denoised.zarr", "report": "report.html"}
# In place of a model: random weights; the model that comes with tdenoise, which is not compared with others then; the
# one of an archive that suits the movie best.
SCRATCH, SHIPPED, AUTO = Path("scratch"), Path("base"), Path("auto")
WORDS = (SCRATCH, SHIPPED, AUTO)
ARCHIVE_MARK = "archive.json"  # in the folder of an archive


def is_archive(path: Path) -> bool:
    """Whether a folder is an archive."""
    return read_json(path / ARCHIVE_MARK).get("kind") == "archive"


def is_run_folder(path: Path) -> bool:
    """Whether a folder is that of a run, and not itself a store, a model or an archive."""
    own = ("zarr.json", "card.json", ARCHIVE_MARK)
    try:
        return (
            path.is_dir()
            and not any((path / name).exists() for name in own)
            and any((path / name).exists() for step, name in OUTPUTS.items() if step != "report")
        )
    except OSError:  # closed to us, or no name at all: whoever opens it says so
        return False


def part_of_run(path: Path, step: str) -> Path:
    """What a step of a run made, if ``path`` is the folder of a run; else ``path`` itself."""
    return path / OUTPUTS[step] if path not in WORDS and is_run_folder(path) else path


def parts_of_run(path: Path) -> list[Path]:
    """The stores and models that are there in the folder of a run; any other path stands for itself."""
    if not is_run_folder(path):
        return [path]
    parts = [path / name for step, name in OUTPUTS.items() if step != "report"]
    return [part for part in parts if part.exists()]


def beside_in_run(denoised: Path, step: str, exists: bool = True) -> Path | None:
    """What another step of the same run made; None if a denoised store lies in no folder of a run."""
    made = denoised.parent / OUTPUTS[step]
    if denoised.name != OUTPUTS["apply"] or not is_run_folder(denoised.parent):
        return None
    return made if made.exists() or not exists else None


def was_compared(folder: Path) -> bool:
    """Whether the report of a run compares its result with a truth."""
    made_from = read_unbroken(folder / "metrics.json").get("made_from")
    return isinstance(made_from, dict) and made_from.get("truth") is not None
