"""The report: one file that loads nothing, trusts no name, and never replaces a page unasked."""

from __future__ import annotations

import json
import re
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest
from small import TINY, model_folder
from stores import blind_gaussian, denoised_store, movie_store, truth_file
from tdenoise_pipeline.errors import InputError, UsageError
from tdenoise_pipeline.evaluate import evaluate, figures
from tdenoise_pipeline.evaluate.report import most_changing, write_report
from tdenoise_pipeline.evaluate.sentences import summary
from tdenoise_pipeline.settings.config import EvaluateConfig, ReportConfig
from tdenoise_pipeline.store import store

from tdenoise.files.atomic import SEAL, seal
from tdenoise.network import checkpoint
from tdenoise.simulation.nanoparticle import simulate
from tdenoise.simulation.particle import SimulationSettings

SCENE = SimulationSettings(n_frames=16, height=64, width=80, dose=2.0, seed=6, dwell_frames=(4.0, 10.0))
HOSTILE = "<script>alert('x')<img src=x onerror=alert(1)>"


def card(sha256: str) -> dict[str, object]:
    """The card of a model."""
    return {
        "profile": checkpoint.PROFILE,
        "kind": "split-blind",
        "sha256": sha256,
        "architecture": TINY.to_json(),
        "blind_radius": TINY.blind_radius,
        "movies": [{"id": "none", "source": "none", "snr": 0.2, "held_out": []}],
        "ancestors": [],
        "best_step": 500,
    }


class Page(HTMLParser):
    """What a browser would find in a page."""

    def __init__(self, path: Path) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.words: list[str] = []
        self.text = path.read_text(encoding="utf-8")
        self.feed(self.text)

    def handle_starttag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))

    def handle_data(self, data):
        self.words.append(data)

    @property
    def shown(self) -> str:
        return " ".join(" ".join(self.words).split())


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A hostile movie, its denoised store, truth and model."""
    folder = tmp_path_factory.mktemp("report")
    scene = simulate(SCENE)
    movie = movie_store(folder / f"{HOSTILE}.zarr", scene.counts, pixel_size=0.014, frame_time=0.02)
    prediction = blind_gaussian(scene.counts, (1.0, 1.0, 1.0))
    model_folder(folder / "model")
    made_by = checkpoint.read_card(folder / "model")["sha256"]
    denoised_store(folder / "denoised.zarr", movie, prediction, held_out=(7, 8), model_id=made_by)
    truth_file(folder / "truth.npz", scene)
    records = [{"step": 250.0 * k, "loss": 1 + 0.1 / k, "held_out": 1 + 0.2 / k} for k in range(1, 4)]
    (folder / "model" / "metrics.jsonl").write_text("".join(json.dumps(r) + "\n" for r in records))
    return folder


def settings(folder: Path, output: Path, **changes: object) -> ReportConfig:
    values = {"denoised": folder / "denoised.zarr", "movie": folder / f"{HOSTILE}.zarr", "output": output}
    return ReportConfig(**{**values, **changes})  # type: ignore[arg-type]


@pytest.fixture(scope="module")
def full(folder, tmp_path_factory):
    """A report with everything in it."""
    output = tmp_path_factory.mktemp("full") / "new" / "report.html"
    extras = {"model": folder / "model", "truth": folder / "truth.npz", "baseline": True}
    write_report(settings(folder, output, **extras))
    return Page(output)


@pytest.fixture(scope="module")
def bare(folder, tmp_path_factory):
    """A report of the stores alone."""
    output = tmp_path_factory.mktemp("bare") / "report.html"
    write_report(settings(folder, output))
    return Page(output)


def test_page_loads_nothing_and_runs_nothing(full):
    sources = [attrs["src"] for _, attrs in full.tags if "src" in attrs]
    assert len(sources) == 8
    assert all(source.startswith("data:image/png;base64,") for source in sources)
    assert not {"script", "link", "iframe", "object", "embed", "base"} & {tag for tag, _ in full.tags}
    assert not any(name.startswith("on") or name == "href" for _, attrs in full.tags for name in attrs)
    assert not re.search(r"https?://|url\(|@import", full.text)
    policies = [attrs["content"] for _, attrs in full.tags if attrs.get("http-equiv")]
    assert policies == ["default-src 'none'; img-src data:; style-src 'unsafe-inline'"]


def test_hostile_name_is_shown_and_not_run(full):
    assert "<script" not in full.text and "onerror=" in full.shown
    assert "<img src=x" not in full.text
    assert HOSTILE in full.shown


def test_images_say_what_they_show(full):
    assert all(attrs.get("alt") for tag, attrs in full.tags if tag == "img")


def test_page_tells_what_a_reader_needs(full):
    for words in (
        "Signal shown",
        "Refuted by the counts",
        "Remaining error",
        "Fano factor",
        "Blind radius",
        "sha256",
        "PSNR",
    ):
        assert words in full.shown
    assert "Sudden changes of columns" in full.shown and "Best 3D Gaussian" in full.shown
    assert "Ideal observer" in full.shown and "What is detectable at this dose" in full.shown
    assert "64 × 80 pixels of 0.014 nm, 0.02 s per frame" in full.shown
    assert "None" not in full.shown.split("Provenance")[0] and "nan" not in full.shown.lower().split()


def test_page_without_truth_and_model_claims_nothing_of_them(bare):
    assert "PSNR" not in bare.shown.replace("uPSNR", "") and "Sudden changes" not in bare.shown
    assert "Training" not in bare.shown
    assert "Tests of the model" not in bare.shown
    assert len([tag for tag, _ in bare.tags if tag == "img"]) == 6


def test_numbers_are_those_of_evaluate(folder, tmp_path):
    config = settings(folder, tmp_path / "r.html")
    assert write_report(config) == evaluate.evaluate(EvaluateConfig(config.denoised, config.movie))


def test_page_is_replaced_only_by_force(folder, tmp_path):
    output = tmp_path / "report.html"
    output.write_text("mine")
    with pytest.raises(UsageError, match="--force"):
        write_report(settings(folder, output))
    assert output.read_text() == "mine"
    write_report(settings(folder, output, force=True))
    assert "Denoising report" in output.read_text()
    assert sorted(p.name for p in tmp_path.iterdir()) == ["report.html", "report.png"]


def test_picture_is_replaced_only_by_force(folder, tmp_path):
    picture = tmp_path / "fig.png"
    picture.write_text("mine")
    with pytest.raises(UsageError, match=r"fig\.png: exists already"):
        write_report(settings(folder, tmp_path / "fig.html"))
    assert picture.read_text() == "mine" and list(tmp_path.iterdir()) == [picture]
    write_report(settings(folder, tmp_path / "fig.html", force=True))
    assert picture.read_bytes().startswith(b"\x89PNG")


@pytest.mark.parametrize("name", ["fig.png", "fig.PNG"])
@pytest.mark.parametrize("force", [False, True])
def test_page_under_the_name_of_a_picture_is_refused(folder, tmp_path, name, force):
    with pytest.raises(UsageError, match="names a picture"):
        write_report(settings(folder, tmp_path / name, force=force))
    assert not list(tmp_path.iterdir())


def test_failure_leaves_the_old_page_alone(folder, tmp_path):
    output = tmp_path / "report.html"
    output.write_text("mine")
    with pytest.raises(InputError):
        write_report(settings(folder, output, truth=tmp_path / "none.npz", force=True))
    assert output.read_text() == "mine"
    assert list(tmp_path.iterdir()) == [output]


def test_curve_of_another_model_is_refused(folder, tmp_path):
    sealed = seal(json.dumps(card("0" * 64) | {"seal": SEAL}).encode())
    (tmp_path / "card.json").write_bytes(sealed)
    with pytest.raises(InputError, match="is not the model"):
        write_report(settings(folder, tmp_path / "r.html", model=tmp_path))


@pytest.mark.parametrize("line", ["{", '{"step": 1}', '{"step": 1, "loss": "low", "held_out": 1}', "[1]"])
def test_damaged_history_is_refused(folder, tmp_path, line):
    (tmp_path / "card.json").write_text((folder / "model" / "card.json").read_text())
    (tmp_path / "metrics.jsonl").write_text(line)
    with pytest.raises(InputError, match="history"):
        write_report(settings(folder, tmp_path / "r.html", model=tmp_path))


def test_frame_where_most_changes_is_found(tmp_path):
    scene = np.ones((21, 40, 40))
    scene[14:, 10:20, 10:20] = 5
    movie = movie_store(tmp_path / "m.zarr", np.random.default_rng(0).poisson(scene).astype(np.uint8))
    assert most_changing(denoised_store(tmp_path / "d.zarr", movie, scene)) in (13, 14)


@pytest.mark.parametrize("size", [(33, 47), (20, 20)])
def test_movie_of_three_frames_without_calibration_has_a_report(tmp_path, size):
    counts = np.random.default_rng(0).poisson(2.0, (3, *size)).astype(np.uint8)
    movie = movie_store(tmp_path / "m.zarr", counts)
    denoised = denoised_store(tmp_path / "d.zarr", movie, np.full(counts.shape, 2.0))
    result = write_report(ReportConfig(denoised.path, movie.path, tmp_path / "r.html"))
    assert summary(result)
    page = Page(tmp_path / "r.html")
    assert "pixel size unknown" in page.shown and "frame time unknown" in page.shown


NARROW = [(3, 1, 1), (9, 1, 1), (3, 2, 40), (12, 40, 1), (5, 1, 1500)]


@pytest.mark.parametrize(("shape", "copied"), [*((shape, False) for shape in NARROW), ((9, 1, 1), True)])
def test_movie_of_hardly_any_pixels_has_a_report(tmp_path, shape, copied):
    counts = np.random.default_rng(0).poisson(3.0, shape).astype(np.uint8)
    movie = movie_store(tmp_path / "m.zarr", counts)
    prediction = counts if copied else np.full(shape, 3.0)
    denoised = denoised_store(tmp_path / "d.zarr", movie, prediction, held_out=(1,))
    arrays = {f"{name}_mask": np.zeros(shape[1:], bool) for name in ("particle", "changing", "vacuum")}
    attrs = json.dumps({"noise": [{"dose": float(counts.mean())}]})
    columns = {
        "col_pos": np.zeros((shape[0], 0, 2)),
        "col_occ": np.zeros((shape[0], 0)),
        "col_n_full": np.zeros(0),
    }
    events = {"events": np.zeros((0, 4)), **columns}
    np.savez(tmp_path / "t.npz", clean=np.ones(shape, np.float16), attrs=attrs, **arrays, **events)
    files = denoised.path, movie.path, tmp_path / "r.html"
    result = write_report(ReportConfig(*files, truth=tmp_path / "t.npz", baseline=True))
    assert summary(result)
    if copied:  # nothing was removed, so nothing can be said of it
        assert result["residual"]["white"] is None
        assert any("too few pixels to tell" in line for line in summary(result))
    shown = Page(tmp_path / "r.html").shown.split("Provenance")[0]
    assert "None" not in shown and "nan" not in shown.lower().split()


def test_page_says_of_which_frames_the_error_is(folder, tmp_path):
    movie = store.open_store(folder / f"{HOSTILE}.zarr", store.MOVIE)
    counts = np.asarray(movie.array[:]).astype(float)
    prediction = blind_gaussian(counts, (1.0, 1.0, 1.0))
    trained = np.delete(np.arange(len(counts)), (7, 8))
    prediction[trained] += 0.3 * (counts - prediction)[trained]
    denoised = denoised_store(tmp_path / "d.zarr", movie, prediction, held_out=(7, 8))
    output = tmp_path / "r.html"
    write_report(settings(folder, output, denoised=denoised.path, truth=folder / "truth.npz"))
    shown = Page(output).shown
    assert "Remaining error in the held-out frames:" in shown and "of its variance, held-out frames" in shown
    assert "True mean squared error, held-out frames" in shown and "by heart" in shown


def test_large_frames_are_averaged_down():
    frame = np.arange(1500 * 900, dtype=float).reshape(1500, 900)
    factor = figures.shrink_factor(frame.shape)
    small = figures.shrink(frame)
    assert factor == 3 and small.shape == (500, 300)
    assert small[0, 0] == frame[:3, :3].mean()
    assert figures.shrink(small) is small


@pytest.mark.parametrize("size", [(2000, 1), (1, 2000), (2, 3000)])
def test_narrow_frames_are_not_averaged_away(size):
    assert figures.shrink(np.ones(size)).min() == 1
