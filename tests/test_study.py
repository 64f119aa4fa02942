"""`study`: cells nested in time and field, one judge for all, and no more said than the intervals tell."""

from __future__ import annotations

import csv
import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import tdenoise_pipeline
import xarray as xr
from hypothesis import given
from hypothesis import strategies as st
from small import movie_store
from tdenoise_pipeline.cli.command_line import main
from tdenoise_pipeline.errors import Stopped, UsageError
from tdenoise_pipeline.ingest.ingest import ingest
from tdenoise_pipeline.inputs.model_fit import open_model
from tdenoise_pipeline.settings.config import IngestConfig, StudyConfig
from tdenoise_pipeline.settings.setting import SettingError
from tdenoise_pipeline.step_control import Control
from tdenoise_pipeline.store import store
from tdenoise_pipeline.study import compare, figures
from tdenoise_pipeline.study.cells import Result
from tdenoise_pipeline.study.judge import Judge
from tdenoise_pipeline.study.study import describe_plan, study
from tdenoise_pipeline.study.study_plan import Cell, grown, judged_frames, make_plan, place

from tdenoise.evaluation.fringes import Fringes

SHAPE = (44, 48, 48)
GRID = {"frames": (8, "all"), "sizes": (32, "full"), "steps": 2}
FLAGS = ["--frames", "8,all", "--sizes", "32,full", "--steps", "2", "-q"]


def scene(seed: int = 0) -> np.ndarray:
    """Counts of a lattice beside vacuum."""
    _, y, x = np.ogrid[: SHAPE[0], : SHAPE[1], : SHAPE[2]]
    clean = 2 + np.where(x < 20, 0, np.cos(2 * np.pi * y / 6) * np.cos(2 * np.pi * x / 6))
    return np.random.default_rng(seed).poisson(np.broadcast_to(clean, SHAPE)).astype(np.uint8)


@pytest.fixture(scope="module")
def movie(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return movie_store(tmp_path_factory.mktemp("movie"), scene())


@pytest.fixture(scope="module")
def done(movie: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A study of four cells."""
    folder = tmp_path_factory.mktemp("study") / "out"
    assert main(["study", str(movie), "-o", str(folder), *FLAGS]) == 0
    return folder


@pytest.fixture
def again(done: Path, tmp_path: Path) -> Iterator[Path]:
    """A copy of it, to be broken."""
    yield Path(shutil.copytree(done, tmp_path / "out"))


def contents(folder: Path) -> dict[str, bytes]:
    return {str(f.relative_to(folder)): f.read_bytes() for f in sorted(folder.rglob("*")) if f.is_file()}


# ---- the plan ------------------------------------------------------------------------------------------------


@given(st.integers(20, 5000))
def test_frames_that_judge_lie_within_the_movie_with_frames_on_both_sides(n_frames: int) -> None:
    first, last = judged_frames(n_frames)
    assert 8 <= first < last < n_frames
    assert last - first <= 128 and n_frames - first <= max(9, 0.16 * n_frames)


@given(st.data())
def test_larger_fields_hold_smaller_ones(data: st.DataObject) -> None:
    whole = data.draw(st.integers(4, 600))
    sizes = sorted(data.draw(st.lists(st.integers(1, whole), min_size=3, max_size=3)))
    start = data.draw(st.integers(0, whole - sizes[0]))
    inner = (start, start + sizes[0])
    spans = [inner, *(grown(inner, size, whole) for size in sizes[1:])]
    for (a, b), (c, d), size in zip(spans, spans[1:], sizes[1:], strict=False):
        assert 0 <= c <= a and b <= d <= whole and d - c == size


def test_the_judged_field_shows_vacuum_and_structure() -> None:
    vacuum = np.zeros((100, 200), bool)
    vacuum[:, 150:] = True
    rows, columns = place(vacuum, (40, 40))
    assert 0.2 < vacuum[slice(*rows), slice(*columns)].mean() < 0.6
    assert rows == (30, 70)  # the nearest to the middle
    assert place(np.zeros((100, 200), bool), (40, 40)) == ((30, 70), (80, 120))


def test_no_cell_trains_on_frames_that_judge_and_cells_are_nested(movie: Path, tmp_path: Path) -> None:
    plan = make_plan(
        StudyConfig(movie=movie, output=tmp_path / "x", frames=(8, 20, "all"), sizes=(32, 40, "full"))
    )
    assert len(plan.cells) == 9
    (first, last), rows, columns = plan.judged.frames, plan.judged.rows, plan.judged.columns
    for cell in plan.cells:
        assert cell.region.frames == (first - cell.n_frames, first) and first < last
        for inner, outer in ((rows, cell.region.rows), (columns, cell.region.columns)):
            assert outer[0] <= inner[0] and inner[1] <= outer[1]
    for one in plan.cells:
        for other in plan.cells:
            if one.n_frames <= other.n_frames and one.region.shape[1] <= other.region.shape[1]:
                for a, b in zip(one.region.slices, other.region.slices, strict=True):
                    assert b.start <= a.start and a.stop <= b.stop


def test_the_dry_run_lists_the_cells_and_writes_nothing(
    movie: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["study", str(movie), "-o", str(tmp_path / "x"), *FLAGS, "-n"]) == 0
    text = capsys.readouterr().out
    assert text.count("to do") == 4 and "8_frames_32_pixels_seed_0" in text
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (["--frames", "4000"], "frames, of which 35 are left to train on"),
        (["--frames", "4"], "at least 8 frames"),
        (["--frames", "ten"], "write whole numbers, with commas between them, and all for the whole"),
        (["--sizes", "64"], "has frames of 48 x 48 pixels"),
        (["--sizes", "16"], "at least 32 rows and columns"),
        (["--seeds", "0"], "positive"),
        (["--share", "2/2"], "--share"),
    ],
)
def test_what_cannot_be_studied_is_refused_in_one_sentence(
    movie: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], words: list[str], says: str
) -> None:
    assert main(["study", str(movie), "-o", str(tmp_path / "x"), "--steps", "2", *words]) == 2
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == 1 and says in lines[0]
    assert list(tmp_path.iterdir()) == []


def test_numbers_are_sorted_and_told_once() -> None:
    config = StudyConfig(movie="m", output="o", frames="400, all,25,400", sizes=64)
    assert config.frames == (25, 400, "all") and config.sizes == (64,)
    with pytest.raises(SettingError, match="full for the whole"):
        StudyConfig(movie="m", output="o", sizes="all")


# ---- the study -----------------------------------------------------------------------------------------------


def test_a_study_leaves_figures_a_table_numbers_and_a_page(done: Path) -> None:
    told = json.loads((done / "study.json").read_text())
    assert [(p["frames"], p["size"]) for p in told["points"]] == [
        (8, "32"),
        (35, "32"),
        (8, "full"),
        (35, "full"),
    ]
    assert told["sentence"].endswith(".") and "at this dose" in told["sentence"]
    rows = list(csv.DictReader((done / "cells.csv").read_text().splitlines()))
    assert [r["folder"] for r in rows] == [
        f"cells/{r['frames']}_frames_{r['size']}_pixels_seed_0" for r in rows
    ]
    assert len(rows) == 4 and all((done / r["folder"] / "model" / "card.json").exists() for r in rows)
    for name in ("frames", "sizes"):
        assert (done / f"{name}.png").read_bytes().startswith(b"\x89PNG")
        assert "<svg" in (done / f"{name}.svg").read_text()
    left = {f.name for f in (done / "cells" / "8_frames_32_pixels_seed_0").iterdir()}
    assert left == {"model", "result.json", "frame.npy"}, "the copy of the frames is taken away"


def test_the_page_runs_no_script_and_loads_nothing(done: Path) -> None:
    text = (done / "report.html").read_text()
    assert "default-src 'none'; img-src data:; style-src &#39;sha256-" in text or "style-src 'sha256-" in text
    assert "<script" not in text and not re.search(r"(src|href)=\"(?!data:)", text)
    assert json.loads((done / "study.json").read_text())["sentence"] in text


def test_a_finished_study_is_not_done_again(movie: Path, again: Path) -> None:
    before, times = contents(again), {f: f.stat().st_mtime_ns for f in again.rglob("result.json")}
    study(StudyConfig(movie=movie, output=again, **GRID))
    assert contents(again) == before
    assert {f: f.stat().st_mtime_ns for f in again.rglob("result.json")} == times


def test_a_stopped_study_goes_on_and_leaves_finished_cells_as_they_are(movie: Path, again: Path) -> None:
    whole = contents(again)
    for name in ("35_frames_32_pixels_seed_0", "8_frames_full_pixels_seed_0"):
        shutil.rmtree(again / "cells" / name)
    (again / "report.html").unlink()
    control = Control()

    def stop(what: str, finished: int, total: int) -> None:
        if finished > total / 4:  # the second cell, the first of those that are missing
            control.stop.set()

    control.progress = stop
    with pytest.raises(Stopped):
        study(StudyConfig(movie=movie, output=again, **GRID), control)
    assert not (again / "report.html").exists()
    study(StudyConfig(movie=movie, output=again, **GRID))
    now = contents(again)
    assert set(now) == set(whole)
    for name in whole:  # times differ, in what was done anew
        if "weights" in name or "seed_0/frame" in name or name.startswith("cells/8_frames_32"):
            assert now[name] == whole[name], name


def test_a_study_that_was_killed_between_two_shares_is_completed(
    movie: Path, tmp_path: Path, done: Path
) -> None:
    folder = tmp_path / "out"
    words = ["study", str(movie), "-o", str(folder), *FLAGS]
    assert main([*words, "--share", "0/2"]) == 0
    assert sorted(f.parent.name for f in folder.rglob("result.json")) == [
        "8_frames_32_pixels_seed_0",
        "8_frames_full_pixels_seed_0",
    ]
    first = contents(folder)
    command = [sys.executable, "-m", "tdenoise_pipeline.cli", *words, "--share", "1/2"]
    killed = subprocess.run(command, env={**os.environ, "TDENOISE_CRASH": "model.saved"}, capture_output=True)
    assert killed.returncode != 0 and len(list(folder.rglob("result.json"))) == 2
    assert main([*words, "--share", "1/2"]) == 0
    now = contents(folder)
    assert first.items() <= now.items()
    assert (folder / "report.html").exists(), "whoever comes last writes the page"
    one, other = (json.loads((f / "study.json").read_text())["points"] for f in (folder, done))
    assert [p["error"] for p in one] == [p["error"] for p in other]


def test_a_torn_result_is_done_again(movie: Path, again: Path) -> None:
    cell = again / "cells" / "8_frames_32_pixels_seed_0"
    before = (again / "cells.csv").read_bytes()
    data = (cell / "result.json").read_bytes()
    (cell / "result.json").write_bytes(data[: len(data) // 2])
    (cell / "frame.npy").unlink()
    study(StudyConfig(movie=movie, output=again, **GRID))
    assert (cell / "frame.npy").exists()
    errors = [[r["error_of_noise_variance"] for r in csv.DictReader(t.decode().splitlines())] for t in
              (before, (again / "cells.csv").read_bytes())]  # fmt: skip
    assert errors[0] == errors[1]


def test_other_settings_are_refused_in_one_sentence(
    movie: Path, again: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    before = contents(again)
    assert main(["study", str(movie), "-o", str(again), *FLAGS, "--seeds", "2"]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert "seeds was 1, is 2" in line and "same settings" in line
    assert line.count("seeds") == 1, "once is enough"
    assert contents(again) == before


def test_a_folder_that_holds_something_else_is_refused(movie: Path, tmp_path: Path) -> None:
    (tmp_path / "thesis.txt").write_text("mine")
    with pytest.raises(UsageError, match="holds something else than a study"):
        study(StudyConfig(movie=movie, output=tmp_path, **GRID))


def test_the_judge_sees_what_apply_would_write(movie: Path, done: Path, tmp_path: Path, workers: str) -> None:
    plan = make_plan(StudyConfig(movie=movie, output=done, **GRID))
    model = done / "cells" / plan.cells[-1].name / "model"
    words = [
        "--draft-only",
        "--lossless",
        "--precision",
        "float32",
        "--ensemble",
        "1",
        "--workers",
        workers,
        "-q",
    ]
    assert main(["apply", str(movie), "--model", str(model), "-o", str(tmp_path / "d.zarr"), *words]) == 0
    written = np.asarray(xr.open_zarr(tmp_path / "d.zarr")["denoised"][plan.looked.slices])
    judge = Judge(plan, "cpu")
    predicted = np.stack(list(judge.predictions(open_model(model))))
    np.testing.assert_allclose(predicted, written, rtol=1e-5, atol=1e-5)
    assert np.array_equal(judge.counts, scene()[plan.looked.slices])
    judged = judge.judge(open_model(model))
    squares = np.square(judge.inner(judge.counts - predicted), dtype=np.float64)
    assert judged.squares.sum() == pytest.approx(squares.sum())
    assert judge.weights.sum() == squares.size


def test_the_steps_have_a_function_for_it(movie: Path, again: Path) -> None:
    made = tdenoise_pipeline.study(movie, again, progress=False, **GRID)
    assert made.path == again and made.facts["points"][0]["frames"] == 8
    assert "4 trainings" in describe_plan(StudyConfig(movie=movie, output=again, **GRID))["effort"]


def test_the_noise_is_known_whatever_its_law(tmp_path: Path) -> None:
    rng = np.random.default_rng(3)
    level = 4 * np.linspace(1.3, 0.7, SHAPE[0])[:, None, None]  # the beam fades
    electrons = rng.poisson(np.broadcast_to(level, SHAPE)).astype(np.uint16)
    smeared = (electrons + rng.normal(20, 3, SHAPE)).astype(np.float32)  # noise that is not that of electrons
    for name, frames, wanted in (("electrons", electrons, 4 / 0.8), ("smeared", smeared, 12.6)):
        made = movie_store(tmp_path / name, frames)
        judge = Judge(
            make_plan(StudyConfig(movie=made, output=tmp_path / "x", frames=(8,), sizes=("full",))), "cpu"
        )
        assert judge.law.estimator == ("poisson" if name == "electrons" else "temporal")
        assert judge.noise.sum() / judge.weights.sum() == pytest.approx(wanted, rel=0.15)


def test_bad_pixels_of_the_movie_are_bad_in_every_cell(tmp_path: Path) -> None:
    frames = scene()
    frames[:, 20, 22] = 200
    made = movie_store(tmp_path, frames)
    assert np.asarray(xr.open_zarr(made)["bad_pixels"])[20, 22]
    told = study(StudyConfig(movie=made, output=tmp_path / "out", frames=(10,), sizes=("full",), steps=1))
    assert abs(told["points"][0]["error"]) < 0.5, "a hot pixel would dominate it"


def test_a_movie_store_can_be_ingested_again(movie: Path, tmp_path: Path) -> None:
    ingest(IngestConfig(raw=movie, output=tmp_path / "again.zarr", xray="keep", keep_defects=True))
    one, other = (store.open_store(path, store.MOVIE) for path in (movie, tmp_path / "again.zarr"))
    assert one.id == other.id


# ---- what is said of it ----------------------------------------------------------------------------------------


def results(errors: dict[tuple[int, str], list[float]], noise: float, n_blocks: int = 400) -> tuple[Any, Any]:
    """Cells of known errors, judged on the same noise, and their judge; the noise variance of a pixel is 1."""
    rng = np.random.default_rng(0)
    weights = np.full(n_blocks, 100.0)
    common = rng.normal(0, noise, n_blocks)
    judge = SimpleNamespace(law=SimpleNamespace(variance=1.0), weights=weights, noise=weights.copy())
    facts = {"fringes": None, "training_s": 1.0, "inference_s_per_megapixel": 1.0, "kept_share": None}
    found = []
    for (n, size), means in errors.items():
        for seed, mean in enumerate(means):
            own = rng.normal(0, noise / 1000, n_blocks)
            cell: Any = Cell(len(found), n, size, seed, SimpleNamespace())  # type: ignore[arg-type]
            found.append(
                Result(cell, weights * (1 + mean + common + own), np.zeros((2, 2), np.float32), facts)
            )
    return found, judge


CURVE = {(25, "full"): [0.04], (100, "full"): [0.025], (400, "full"): [0.0202], (1000, "full"): [0.02]}


def test_the_knee_is_where_the_curve_becomes_flat() -> None:
    found = compare.points(*results(CURVE, 0.02))
    said = compare.conclude(found, "2 electrons per pixel and frame")
    assert said["knee"] == 400
    assert said["sentence"] == (
        "Beyond about 400 frames nothing is gained at this dose (2 electrons per pixel and frame); 100 frames lose "
        "1.0 dB."
    )


def test_a_curve_that_still_falls_has_no_knee() -> None:
    said = compare.conclude(compare.points(*results(CURVE | {(1000, "full"): [0.015]}, 0.02)), "")
    assert said["knee"] is None and "still falls" in said["sentence"]
    assert re.search(r"400 instead of 1000 frames lose 1\.[234] dB", said["sentence"])


def test_smaller_frames_lose_what_they_lose() -> None:
    small = {(n, "128"): [mean * 1.1 for mean in means] for (n, _), means in CURVE.items()}
    said = compare.conclude(compare.points(*results(small | CURVE, 0.02)), "")
    assert said["sentence"].endswith("; frames of 128 pixels lose 0.4 dB.") and said["size_knee"] is None
    alike = {(n, "128"): [mean * 1.01 for mean in means] for (n, _), means in CURVE.items()}
    said = compare.conclude(compare.points(*results(alike | CURVE, 0.02)), "")
    assert said["sentence"].endswith("; frames of 128 pixels lose nothing.") and said["size_knee"] == "128"


def test_nothing_is_said_of_what_the_luck_of_trainings_explains() -> None:
    luck = {key: [means[0] * f for f in (0.6, 1.0, 1.4)] for key, means in CURVE.items()}
    found = compare.points(*results(luck, 0.02))
    assert compare.conclude(found, "")["knee"] is None
    assert "not resolved" in compare.conclude(found, "")["sentence"]


def test_an_error_that_may_be_nothing_gives_no_decibels() -> None:
    found = compare.points(*results(CURVE, 1.0))
    assert not any(p["resolvable"] for p in found)
    assert found[0]["fewer"] is not None and found[0]["fewer"]["decibels"] is None
    assert found[0]["fewer"]["state"] == "worse", "the difference is known all the same"
    assert "% of the noise variance" in compare.conclude(found, "")["sentence"]
    assert any(
        "too small to tell from zero" in text for text in compare.warnings(found, results(CURVE, 1.0)[0], 1)
    )


def test_figures_have_the_same_bytes_each_time() -> None:
    found = compare.points(*results(CURVE, 0.02))
    one, other = (figures.draw(found, {"full": (64, 64)}, compare.conclude(found, "")) for _ in range(2))
    assert one == other and set(one) == {"frames", "sizes"}
    assert b"<dc:date>" not in one["frames"]["svg"]


# ---- fringes -------------------------------------------------------------------------------------------------


def fringes_of(drawn: float, real: float) -> Any:
    """Fringes in vacuum: as strong as they are drawn, and as they are in the counts."""
    rng = np.random.default_rng(1)
    y, x = np.mgrid[:96, :96]
    wave = np.cos(2 * np.pi * (y / 8 + x / 16))
    looked = Fringes(x < 60, np.array([[1 / 8, 1 / 16]]), 2.0)
    for _ in range(60):
        looked.add(rng.poisson(2 + real * wave), 2 + drawn * wave + 0.02 * rng.standard_normal(wave.shape))
    return looked.result()


def test_fringes_that_are_invented_stand_out_and_the_counts_do_not_show_them() -> None:
    found = fringes_of(0.1, 0.0)
    assert found.ratio > 2 * found.chance
    assert abs(found.supported) < 4 * found.supported_error < 0.5
    assert found.amplitude == pytest.approx(0.1 / np.sqrt(2), rel=0.3)


def test_fringes_that_are_real_are_shown_by_the_counts() -> None:
    found = fringes_of(0.1, 0.1)
    assert found.ratio > 2 * found.chance and abs(found.supported - 1) < 4 * found.supported_error


def test_a_vacuum_without_fringes_is_within_chance() -> None:
    assert fringes_of(0.0, 0.0).ratio < 1.3 * fringes_of(0.0, 0.0).chance


def test_without_vacuum_or_lattice_nothing_is_said() -> None:
    none = np.empty((0, 2))
    assert not Fringes(np.ones((64, 64), bool), none, 1.0).possible
    assert not Fringes(np.zeros((64, 64), bool), np.array([[0.1, 0.1]]), 1.0).possible
    assert Fringes(np.ones((64, 64), bool), none, 1.0).result() is None
