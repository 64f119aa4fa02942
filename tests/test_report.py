"""The report: one file that loads nothing, trusts no name, and never replaces a page unasked."""

from __future__ import annotations

import base64
import hashlib
import io
import json
import re
from html.parser import HTMLParser
from pathlib import Path
from types import SimpleNamespace

import av
import numpy as np
import pytest
from small import TINY, model_folder
from stores import blind_gaussian, denoised_store, movie_store, truth_file
from tdenoise_pipeline.errors import InputError, UsageError
from tdenoise_pipeline.evaluate import evaluate, film, page, report
from tdenoise_pipeline.evaluate.report import write_report
from tdenoise_pipeline.evaluate.scenes import Scenes, most_changing
from tdenoise_pipeline.evaluate.sentences import summary
from tdenoise_pipeline.ingest.ingest import ingest
from tdenoise_pipeline.settings.config import EvaluateConfig, IngestConfig, ReportConfig
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


def test_page_loads_nothing_and_runs_its_own_script_only(full):
    sources = [attrs["src"] for _, attrs in full.tags if "src" in attrs]
    assert all(source.startswith(("data:image/png;base64,", "data:video/mp4;base64,")) for source in sources)
    assert [tag for tag, attrs in full.tags if "src" in attrs].count("video") == 1
    assert not {"link", "iframe", "object", "embed", "base", "form"} & {tag for tag, _ in full.tags}
    assert not any(name.startswith("on") or name == "style" for _, attrs in full.tags for name in attrs)
    links = [attrs["href"] for _, attrs in full.tags if "href" in attrs]
    named = {attrs["id"] for _, attrs in full.tags if "id" in attrs}
    assert links and all(link.startswith("#") and link[1:] in named for link in links)
    assert not re.search(r"https?://|url\(|@import", full.text)


def test_policy_names_the_script_and_the_style_by_their_hashes(full):
    [policy] = [attrs["content"] for _, attrs in full.tags if attrs.get("http-equiv")]
    assert policy.startswith("default-src 'none'; ") and "unsafe" not in policy
    for tag in ("script", "style"):
        [text] = re.findall(rf"<{tag}>(.*?)</{tag}>", full.text, flags=re.S)
        digest = base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()
        assert f"{tag}-src 'sha256-{digest}'" in policy


def test_hostile_name_is_shown_and_not_run(full):
    assert full.text.count("<script") == 1 and "onerror=" in full.shown
    assert "<img src=x" not in full.text
    assert HOSTILE in full.shown


def test_the_page_is_named_after_the_recording_and_not_after_the_store(tmp_path):
    scene = simulate(SCENE)
    np.save(tmp_path / "Pt on ceria, 3.npy", scene.counts)
    ingest(IngestConfig(raw=tmp_path / "Pt on ceria, 3.npy", output=tmp_path / "movie.zarr"))
    movie = store.open_store(tmp_path / "movie.zarr", store.MOVIE)
    denoised = denoised_store(tmp_path / "d.zarr", movie, blind_gaussian(scene.counts, (1.0, 1.0, 1.0)))
    write_report(ReportConfig(denoised.path, movie.path, tmp_path / "r.html"))
    text = (tmp_path / "r.html").read_text()
    assert "<h1>Pt on ceria, 3.npy</h1>" in text
    assert "<title>Pt on ceria, 3.npy: denoising report</title>" in text


def test_without_the_encoder_the_page_shows_frames_and_says_so(folder, tmp_path, monkeypatch):
    monkeypatch.setattr(film, "find_spec", lambda name: None)
    write_report(settings(folder, tmp_path / "r.html"))
    shown = Page(tmp_path / "r.html")
    assert "There is no film here, because the package av is missing" in shown.shown
    assert not [tag for tag, _ in shown.tags if tag == "video"]
    stills = [
        attrs for tag, attrs in shown.tags if tag == "img" and "raw, denoised and removed," in attrs["alt"]
    ]
    assert len(stills) == film.STILLS


def test_a_film_that_is_too_large_gets_coarser_and_then_shorter():
    strips = [np.random.default_rng(k).integers(0, 255, (64, 192), dtype=np.uint8) for k in range(24)]
    sizes = []
    for most in (10**7, 120_000, 30_000):
        encoded, kept, numbers, shown = film._encode(list(strips), range(100, 124), 20, most)
        assert len(encoded) <= most and len(kept) == len(numbers)
        assert numbers[shown] == 120 and np.array_equal(kept[shown], strips[20])
        sizes.append((len(kept), len(encoded)))
    assert sizes == sorted(sizes, reverse=True) and sizes[0][0] == 24 > sizes[2][0]


def test_the_film_has_every_frame_of_the_clip(full):
    [video] = [attrs["src"] for tag, attrs in full.tags if tag == "video"]
    with av.open(io.BytesIO(base64.b64decode(video.partition(",")[2]))) as opened:
        pictures = [frame.to_ndarray(format="gray") for frame in opened.decode(video=0)]
        assert opened.streams.video[0].codec_context.name == "h264"
        assert opened.streams.video[0].codec_context.pix_fmt == "yuv420p"
    assert len(pictures) == SCENE.n_frames
    assert pictures[0].shape == (64, 3 * 80)


def test_no_pixel_is_hidden_by_a_scale_bar(full):
    assert full.text.count('class="bar"') >= 3
    assert "<text" not in full.text


def test_images_say_what_they_show(full):
    assert all(attrs.get("alt") for tag, attrs in full.tags if tag == "img")


def test_page_tells_what_a_reader_needs(full):
    for words in (
        "What you can trust",
        "What was lost or invented",
        "What to do next",
        "What this means:",
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


def test_the_limit_that_is_shown_is_the_one_that_was_tested(full):
    residual = json.loads(full.shown.split("All figures as JSON")[1].split("(() =>")[0])["residual"]
    assert residual["white"] == (residual["largest"] <= residual["limit"])
    assert f"limit of the test {residual['limit']:.4f}" in full.shown


def test_every_section_says_what_it_means_and_is_in_the_table_of_contents(full):
    folded = [attrs["id"] for tag, attrs in full.tags if tag == "details" and attrs.get("class") == "section"]
    assert folded == [
        "recording",
        "removed",
        "counts",
        "detectable",
        "model",
        "error",
        "truth",
        "training",
        "provenance",
    ]
    assert full.shown.count("What this means:") == len(folded)
    contents = full.text.split("<nav")[1].split("</nav>")[0]
    assert all(f'href="#{name}"' in contents for name in folded)


def test_page_without_truth_and_model_claims_nothing_of_them(bare):
    assert "PSNR" not in bare.shown.replace("uPSNR", "") and "Sudden changes" not in bare.shown
    assert "Tests of the model" not in bare.shown and "Held-out error and training loss" not in bare.text
    assert "Make the report again with --model." in bare.shown


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
    assert "denoising report" in output.read_text()
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
    assert "Remaining error in the held-out frames:" in shown
    assert "True mean squared error, held-out frames" in shown and "by heart" in shown


def scenes(shape: tuple[int, int, int], planes: float | None) -> Scenes:
    """Scenes of a movie of a shape, of which only that is looked at."""
    return Scenes(SimpleNamespace(shape=shape), None, None, None, planes, np.zeros((shape[0], 2), int))  # type: ignore[arg-type]


def test_of_large_frames_as_much_is_shown_as_still_shows_columns():
    whole = scenes((9, 2048, 1024), None).part_around(500, 500)
    assert whole.is_whole((9, 2048, 1024)) and whole.averaged == 8 and whole.size == (256, 128)
    near = scenes((9, 2048, 1024), 16.0).part_around(2000, 500)
    assert near.averaged == 3 and near.rows == (2048 - 768, 2048) and near.columns == (116, 884)
    assert scenes((9, 100, 120), 3.0).part_around(0, 0).is_whole((9, 100, 120))


@pytest.mark.parametrize("size", [(2000, 1), (1, 2000), (2, 3000)])
def test_narrow_frames_are_not_averaged_away(size):
    assert min(scenes((9, *size), None).part_around(0, 0).size) == 1


def test_the_page_of_a_large_movie_is_small(tmp_path):
    generator = np.random.default_rng(0)
    counts = generator.poisson(2.0, (40, 600, 600)).astype(np.uint8)
    movie = movie_store(tmp_path / "m.zarr", counts)
    denoised = denoised_store(tmp_path / "d.zarr", movie, 2 + 0.1 * generator.normal(size=counts.shape))
    write_report(ReportConfig(denoised.path, movie.path, tmp_path / "r.html"))
    assert (tmp_path / "r.html").stat().st_size <= report.MOST_BYTES


def test_a_film_that_takes_all_the_room_it_is_given_keeps_the_page_small(folder, tmp_path, monkeypatch):
    rooms = []

    def spied(look, changes, room, found):
        rooms.append(room)
        return film.film(look, changes, room, found)

    monkeypatch.setattr(report, "film", spied)
    extras = {"model": folder / "model", "truth": folder / "truth.npz", "baseline": True}
    write_report(settings(folder, tmp_path / "r.html", **extras))
    written = Page(tmp_path / "r.html")
    [video] = [attrs["src"] for tag, attrs in written.tags if tag == "video"]
    assert len(written.text.encode()) - len(video) + rooms[0] <= report.MOST_BYTES


def test_what_cannot_be_written_is_told_before_the_work(folder, tmp_path, monkeypatch):
    monkeypatch.setattr(evaluate, "measure", lambda *_: pytest.fail("hours of work"))
    (tmp_path / "folder.html").mkdir()
    with pytest.raises(UsageError, match=r"folder\.html: is a folder"):
        write_report(settings(folder, tmp_path / "folder.html", force=True))
    (tmp_path / "file").write_text("")
    with pytest.raises(UsageError, match="file: is no folder"):
        write_report(settings(folder, tmp_path / "file/r.html"))


def test_a_film_that_no_quality_makes_small_ends_with_one_frame(monkeypatch):
    monkeypatch.setattr(film, "_h264", lambda strips, quality, rate: bytes(9000 * len(strips)))
    strips = [np.zeros((16, 48), np.uint8)] * 20
    encoded, kept, numbers, shown = film._encode(strips, range(5, 25), 7, -1)
    assert (len(encoded), len(kept), list(numbers), shown) == (9000, 1, [12], 0)


def test_figures_are_typeset():
    assert (
        page.number(-1234.5) == "−1,234" and page.percent(None) == "–" and page.decimals(float("nan")) == "–"
    )
