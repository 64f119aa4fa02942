"""`cite`: what it says is what the stores say, and every work of CITATION.cff has its use."""

from __future__ import annotations

import json
import re
import shutil
from pathlib import Path

import numpy as np
import pytest
from small import counts, model_folder
from tdenoise_pipeline.archive.works import OF_METHOD, all_works
from tdenoise_pipeline.cli.command_line import main
from tdenoise_pipeline.store import store

from tdenoise.network.checkpoint import read_card


@pytest.fixture(scope="module")
def result(tmp_path_factory: pytest.TempPathFactory, workers: str) -> Path:
    """The folder of a run, whose movie has a hot pixel."""
    folder = tmp_path_factory.mktemp("cite")
    frames = counts((40, 48, 48))
    frames[:, 3, 5] = 200
    np.save(folder / "raw.npy", frames)
    line = (
        f"run {folder}/raw.npy -o {folder}/results --steps 3 --blind-radius 0 --frame-time 13ms --pixel-size 14pm "
        f"--counts-per-electron 1 --voltage 300 --camera Celeritas --ensemble 2 --workers {workers} -q"
    )
    assert main(line.split()) == 0
    return folder / "results"


def said(capsys: pytest.CaptureFixture[str], *words: object) -> str:
    capsys.readouterr()
    assert main(["cite", *map(str, words)]) == 0
    return capsys.readouterr().out


@pytest.mark.slow
def test_the_paragraph_says_what_the_stores_and_the_report_say(
    result: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    text = json.loads(said(capsys, result, "--json"))["text"]
    movie, denoised = (store.read_attributes(result / name) for name in ("movie.zarr", "denoised.zarr"))
    metrics = json.loads((result / "metrics.json").read_text())
    nmse = metrics["nmse"]
    error = nmse["estimate"] if nmse["resolvable"] else nmse["high"]
    for words in (
        "raw.npy", "40 frames of 48 x 48 pixels", "13 ms per frame", "0.014 nm per pixel", "Celeritas", "300 kV",
        f"{movie['dose']['per_pixel']:.3g} electrons per pixel and frame", *movie["corrections"],
        f"{movie['noise']['fano']:.3f}", "3 steps", "seed 0", "the model that comes with tdenoise",
        "mean of 2 passes", f"{len(denoised['held_out_frames'])} frames of this movie were held out",
        f"{100 * error:.3g} % of the variance of the noise", denoised["id"][:12], denoised["model"]["id"][:12],
        movie["id"][:12], "Laine et al. 2019", "Crozier et al. 2025", "does not see the count that it predicts",
    ):  # fmt: skip
        assert words in text, words
    assert not re.search(r"None|nan|\{|\bNaN\b|\s\s", text)


@pytest.mark.slow
def test_text_comes_with_an_entry_for_each_work_that_it_cites(
    result: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    printed = said(capsys, result)
    found = json.loads(said(capsys, result, "--format", "json"))
    bibtex = said(capsys, result, "--format", "bibtex")
    assert printed.replace("\n", " ").startswith(found["text"][:300].replace("\n", " "))
    assert printed.strip().endswith(bibtex.strip()) and found["bibtex"] == bibtex.strip()
    keys = re.findall(r"^@\w+\{(\w+),$", bibtex, flags=re.M)
    assert keys == [work["key"] for work in found["works"]] and len(set(keys)) == len(keys)
    assert keys[0] == "tdenoise" and {"laine2019", "sheth2021", "eom2023", "crozier2025"} <= set(keys)
    for entry in bibtex.strip().split("\n\n"):
        assert entry.count("{") == entry.count("}") and "title" in entry and "author" in entry, entry
        assert not re.search(r"(?<!\\)[&%$#]", entry), "BibTeX would take it for a command"


def test_every_work_of_the_citation_file_has_its_use_and_every_use_a_work() -> None:
    own, works = all_works()
    assert own.fields["title"].startswith("tdenoise")
    assert sorted(work.id for work in works) == sorted(OF_METHOD.values())


@pytest.mark.slow
def test_only_what_was_used_is_cited(
    result: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    movie = json.loads(said(capsys, result / "movie.zarr", "--json"))
    assert [work["key"] for work in movie["works"]] == ["tdenoise"]
    assert "denoised" not in movie["text"].replace("Before denoising", "")
    alone = json.loads(said(capsys, result / "denoised.zarr", "--json"))  # no report: no figure, no uMSE
    assert "marcosmorales2023" not in [work["key"] for work in alone["works"]]
    assert "mean squared error" not in alone["text"] and "40 frames" in alone["text"]
    model = model_folder(tmp_path / "model")
    other = tmp_path / "other.zarr"
    line = f"apply {result}/movie.zarr --model {model} -o {other} --share 0/1 -q"
    assert main(line.split()) == 0
    assert read_card(model)["sha256"][:12] in json.loads(said(capsys, other, "--json"))["text"]


@pytest.mark.slow
def test_figures_of_another_result_are_never_taken_for_those_of_this_one(
    result: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    copy = tmp_path / "copy"
    shutil.copytree(result, copy)
    metrics = json.loads((copy / "metrics.json").read_text())
    metrics["made_from"]["denoised"] = "another"
    (copy / "metrics.json").write_text(json.dumps(metrics))
    shutil.rmtree(copy / "model")
    model_folder(copy / "model")
    text = json.loads(said(capsys, copy, "--json"))["text"]
    assert "mean squared error" not in text and "3 steps" not in text


@pytest.mark.slow
def test_the_model_as_it_comes_is_said_to_know_simulated_movies_only(
    result: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "base.zarr"
    line = f"apply {result}/movie.zarr -o {out} --ensemble 1 --share 0/1 -q"
    assert main(line.split()) == 0
    text = json.loads(said(capsys, out, "--json"))["text"]
    assert "trained on simulated movies only, and not adapted" in text and "one pass" in text


def test_what_cannot_be_cited_is_told(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for path, code in ((tmp_path / "missing", 3), (model_folder(tmp_path / "model"), 3)):
        assert main(["cite", str(path)]) == code
        assert "Traceback" not in (error := capsys.readouterr().err) and str(path) in error
    assert main(["cite", str(tmp_path), "--format", "docx"]) == 2
