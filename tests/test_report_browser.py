"""The report in a browser, opened from disk: the film plays, wipe and slider show, and nothing hostile runs."""

from __future__ import annotations

import base64
import json
import os
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from chromium import PROGRAM, Tab, chromium
from small import model_folder
from stores import blind_gaussian, denoised_store, events_beside, movie_store
from tdenoise_pipeline.evaluate import film, report
from tdenoise_pipeline.evaluate.report import write_report
from tdenoise_pipeline.settings.config import ReportConfig

from tdenoise.network import checkpoint
from tdenoise.simulation.nanoparticle import simulate
from tdenoise.simulation.particle import SimulationSettings

pytestmark = [
    pytest.mark.browser,
    pytest.mark.skipif(PROGRAM is None, reason="Chromium is not installed"),
]

SCENE = SimulationSettings(n_frames=24, height=64, width=80, dose=2.0, seed=6, dwell_frames=(4.0, 10.0))
# What would run if it were not text: in an element, an attribute, a script, a style.
HOSTILE = "<script>window.ran=1</script><img src=x onerror=window.ran=2>\"'--><svg onload=window.ran=3>"
FIRST_SCREENS = {400: 800, 800: 1000, 1280: 900}


def everything_hostile(attributes: dict) -> dict:
    """Attributes of a movie whose every text is hostile."""
    attributes["source"] = attributes["source"] | {"name": HOSTILE, "format": HOSTILE}
    attributes["warnings"] = [HOSTILE, "</style><script>window.ran=4</script>", "{{ 7 * 191 }}"]
    attributes["corrections"] = [HOSTILE]
    return attributes


@pytest.fixture(scope="module")
def pages(tmp_path_factory):
    """A report with a film, one without, and one whose texts are hostile."""
    folder = tmp_path_factory.mktemp("pages")
    scene = simulate(SCENE)
    movie = movie_store(folder / "movie.zarr", scene.counts, pixel_size=0.014, frame_time=0.02)
    model_folder(folder / "model")
    made_by = checkpoint.read_card(folder / "model")["sha256"]
    records = [
        {"step": 250.0 * k, "loss": 1 + 0.1 / k, "held_out": 1 + 0.2 / k, "candidate": HOSTILE}
        for k in (1, 2, 3)
    ]
    (folder / "model" / "metrics.jsonl").write_text("".join(json.dumps(r) + "\n" for r in records))
    prediction = blind_gaussian(scene.counts, (1.0, 1.0, 1.0))
    denoised = denoised_store(folder / "denoised.zarr", movie, prediction, model_id=made_by)
    write_report(ReportConfig(denoised.path, movie.path, folder / "film.html", model=folder / "model"))
    (folder / "told").mkdir()
    told = denoised_store(folder / "told/denoised.zarr", movie, prediction)
    changes = ["0.24,12,12,13,0,30,40,0.4,0.6,5,0.5,-1,0.97", "0.1,5,5,5,1,20,20,0.3,0.3,1,2,1,0.3"]
    events_beside(told.path, changes)
    write_report(ReportConfig(told.path, movie.path, folder / "events.html"))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(film, "find_spec", lambda name: None)
        write_report(ReportConfig(denoised.path, movie.path, folder / "stills.html"))
        patch.undo()
        hostile = replace(movie, attributes=everything_hostile(dict(movie.attributes)), units=HOSTILE)
        patch.setattr(report, "open_pair", lambda *paths: (hostile, denoised))
        write_report(ReportConfig(denoised.path, movie.path, folder / "hostile.html", model=folder / "model"))
    return folder


@pytest.fixture(scope="module")
def browser(tmp_path_factory):
    with chromium(tmp_path_factory.mktemp("profile")) as opened:
        yield opened


@pytest.fixture
def opened(browser, pages):
    """The report in a window of 1280 x 900 pixels, with its film stopped."""
    tab = Tab(browser, 1280, 900)
    tab.open(pages / "film.html")
    tab.wait_for("document.querySelector('video').currentTime > 0")
    tab.value("document.querySelector('video').pause()")
    yield tab
    tab.close()


def at(tab: Tab, index: int) -> None:
    """Move the slider to a frame of the clip, and wait until that is shown."""
    tab.value(
        f"(() => {{ const s = document.getElementById('frame'); s.value = {index};"
        "s.dispatchEvent(new Event('input')); })()"
    )
    tab.wait_for(f"document.getElementById('now').textContent.startsWith('frame {index} ')")
    tab.wait_for("!document.querySelector('video') || !document.querySelector('video').seeking")
    tab.value("new Promise((done) => requestAnimationFrame(() => requestAnimationFrame(done)))")


def test_the_film_plays_by_itself(browser, pages):
    tab = Tab(browser, 1280, 900)
    tab.open(pages / "film.html")
    tab.wait_for("document.querySelector('video').currentTime > 0")
    before = tab.value("document.querySelector('video').currentTime")
    tab.wait_for(f"document.querySelector('video').currentTime !== {before}")
    assert tab.value("document.getElementById('play').getAttribute('aria-label')") == "Pause"
    tab.click("#play")
    tab.wait_for("document.getElementById('play').getAttribute('aria-label') === 'Play'")
    assert tab.value("document.querySelector('video').paused")
    tab.close()


def test_the_page_loads_nothing_and_throws_nothing(browser, pages):
    for name in ("film.html", "stills.html"):
        tab = Tab(browser, 1280, 900)
        tab.open(pages / name)
        browser.listen(0.5)
        asked = {e["request"]["url"].partition(":")[0] for e in tab.told("Network.requestWillBeSent")}
        assert asked <= {"file", "data", "blob"}
        assert tab.told("Runtime.exceptionThrown") == [] and tab.told("Log.entryAdded") == []
        tab.close()


def test_the_slider_shows_another_frame(opened):
    at(opened, 3)
    one = opened.picture("canvas")
    at(opened, 17)
    other = opened.picture("canvas")
    assert one.shape == other.shape and np.mean(one != other) > 0.1
    at(opened, 3)
    assert np.array_equal(opened.picture("canvas"), one)
    assert opened.value("document.getElementById('now').textContent") == "frame 3 (0.06 s)"


def test_raw_is_on_the_left_and_denoised_on_the_right(opened):
    at(opened, 5)
    shown = opened.picture("canvas").astype(float).mean(axis=2)
    half = shown.shape[1] // 2
    raw, denoised = shown[:, : half - 20], shown[:, half + 20 :]
    # Raw counts are black and white; neighbours of a denoised pixel are like it.
    assert np.mean((raw < 5) | (raw > 250)) > 0.5 > np.mean((denoised < 5) | (denoised > 250))


def test_the_wipe_moves_the_border_between_raw_and_denoised(opened):
    at(opened, 5)
    opened.click("[data-mode=wipe]")
    assert opened.value("document.querySelector('[data-mode=wipe]').getAttribute('aria-pressed')") == "true"

    def shown(percent: int) -> np.ndarray:
        opened.value(
            f"(() => {{ const s = document.getElementById('cut'); s.value = {percent};"
            "s.dispatchEvent(new Event('input')); })()"
        )
        return opened.picture("canvas")

    denoised, half, raw = shown(0), shown(50), shown(100)
    middle = half.shape[1] // 2
    assert np.array_equal(half[:, : middle - 12], raw[:, : middle - 12])
    assert np.array_equal(half[:, middle + 12 :], denoised[:, middle + 12 :])
    assert np.mean(raw != denoised) > 0.3
    opened.click("canvas", (0.25, 0.5))
    assert abs(int(opened.value("document.getElementById('cut').value")) - 25) <= 1


def test_a_click_shows_the_difference_and_another_one_hides_it(opened):
    at(opened, 5)
    opened.click("[data-mode=wipe]")
    half_raw_half_denoised = opened.picture("canvas")
    opened.click("[data-mode=beside]")
    opened.click("canvas")
    assert "removed" in opened.value("document.querySelector('.titles').textContent")
    removed = opened.picture("canvas")
    assert np.mean(removed != half_raw_half_denoised) > 0.5
    assert 110 < removed.mean() < 145  # noise about zero, which is shown grey
    opened.click("canvas")
    assert opened.value("document.querySelector('.titles').textContent") == "rawdenoised"


def test_changes_that_events_found_are_boxed_in_their_frames_and_listed(browser, pages):
    tab = Tab(browser, 1280, 900)
    tab.open(pages / "events.html")
    tab.wait_for("document.querySelector('video').readyState >= 2")

    def boxed(index: int) -> np.ndarray:
        """Pixels of the colour of marks."""
        at(tab, index)
        return np.abs(tab.picture("canvas").astype(int) - (0x7D, 0xFF, 0x8A)).max(axis=2) < 40

    assert not boxed(5).any(), "30 % is no change"
    assert not boxed(20).any()
    marked = boxed(12)
    rows, columns = np.nonzero(marked)
    height, width = marked.shape
    assert rows.min() / height == pytest.approx((30.5 - 3) / 64, abs=0.03)
    gap = max(2, round(SCENE.width / 64))
    for half in (columns < width / 2, columns > width / 2):
        left = columns[half].min() / width * (2 * SCENE.width + gap)
        assert left % (SCENE.width + gap) == pytest.approx(40.5 - 3, abs=1.5)
    text = tab.value("document.getElementById('pictures').textContent")
    assert "found 2 changes, 1 of them" in " ".join(text.split())
    if kept := os.environ.get("REVIEW_IMAGES"):
        Path(kept).mkdir(parents=True, exist_ok=True)
        (Path(kept) / "report-events.png").write_bytes(tab.png())
    tab.close()


def test_the_film_is_at_your_keys(opened):
    at(opened, 5)
    opened.value("document.getElementById('film').focus()")
    opened.press("ArrowRight", "ArrowRight", 39)
    opened.wait_for("document.getElementById('now').textContent.startsWith('frame 6 ')")
    opened.press("End", "End", 35)
    opened.wait_for(f"document.getElementById('now').textContent.startsWith('frame {SCENE.n_frames - 1} ')")
    for key, code, number, mode in (
        ("d", "KeyD", 68, "difference"),
        ("w", "KeyW", 87, "wipe"),
        ("s", "KeyS", 83, "beside"),
    ):
        opened.press(key, code, number)
        assert opened.value("document.querySelector('[aria-pressed=true]').dataset.mode") == mode
    opened.press(" ", "Space", 32)
    opened.wait_for("!document.querySelector('video').paused")


def test_speed_is_that_of_the_list(opened):
    opened.value("document.getElementById('speed').value = '0.5'")
    opened.value("document.getElementById('speed').dispatchEvent(new Event('change'))")
    assert opened.value("document.querySelector('video').playbackRate") == 0.5


def test_without_a_film_slider_and_wipe_work_on_single_frames(browser, pages):
    tab = Tab(browser, 1280, 900)
    tab.open(pages / "stills.html")
    tab.wait_for("document.getElementById('now').textContent.startsWith('frame')")
    assert "package av is missing" in tab.value("document.body.innerText")
    one = tab.picture("canvas")
    tab.value(
        "(() => { const s = document.getElementById('frame'); s.value = 1; s.dispatchEvent(new Event('input')); })()"
    )
    assert np.mean(tab.picture("canvas") != one) > 0.1
    tab.click("[data-mode=wipe]")
    assert tab.picture("canvas").shape != one.shape
    tab.close()


def test_nothing_hostile_runs(browser, pages):
    tab = Tab(browser, 1280, 900)
    tab.open(pages / "hostile.html")
    browser.listen(1.0)
    assert tab.value("window.ran") is None
    assert tab.told("Page.javascriptDialogOpening") == []
    text = tab.value("document.body.innerText")
    assert tab.value("document.querySelector('h1').textContent") == HOSTILE
    assert HOSTILE in text and "{{ 7 * 191 }}" in text and "1337" not in text
    assert tab.value("document.querySelectorAll('script').length") == 1
    assert tab.value("[...document.querySelectorAll('img')].every((i) => i.src.startsWith('data:'))")
    # The film and its controls are still there.
    tab.wait_for("document.querySelector('video').currentTime > 0")
    tab.close()


@pytest.mark.parametrize(("width", "height"), FIRST_SCREENS.items())
@pytest.mark.parametrize("dark", [False, True])
def test_the_first_screen_has_name_film_and_verdicts(browser, pages, tmp_path, width, height, dark):
    tab = Tab(browser, width, height, dark=dark)
    tab.open(pages / "film.html")
    tab.wait_for("document.querySelector('video').currentTime > 0")
    for selector in ("h1", "canvas", "#frame", "#play", "[data-mode=wipe]", "#verdict-trust .headline",
                     "#verdict-loss .headline", "#verdict-next .headline"):  # fmt: skip
        box = tab.value(
            f"(() => {{ const b = document.querySelector('{selector}').getBoundingClientRect();"
            "return [b.left, b.top, b.right, b.bottom]; })()"
        )
        assert 0 <= box[0] <= box[2] <= width and 0 <= box[1] < box[3] <= height, (selector, box)
    assert tab.value("document.documentElement.scrollWidth") <= width
    shown = tab.picture()
    assert (shown.mean() < 128) == dark
    keep_for_review(tab, f"report_{width}_{'dark' if dark else 'light'}.png")
    tab.close()


def keep_for_review(tab: Tab, name: str) -> None:
    """Keep a picture of the window where CI collects what people look at."""
    folder = os.environ.get("REVIEW_IMAGES")
    if folder:
        Path(folder).mkdir(parents=True, exist_ok=True)
        (Path(folder) / name).write_bytes(tab.png())


def test_links_open_the_section_they_lead_to(opened):
    assert not opened.value("document.getElementById('removed').open")
    opened.click("nav a[href='#removed']")
    opened.wait_for("document.getElementById('removed').open")


def test_on_paper_all_sections_are_open_and_the_picture_is_on_page_1(opened):
    data = opened.ask("Page.printToPDF", preferCSSPageSize=True)["data"]
    pdf = base64.b64decode(data)
    assert pdf.startswith(b"%PDF")
    opened.ask("Emulation.setEmulatedMedia", media="print")
    assert opened.value("getComputedStyle(document.querySelector('img.poster')).display") == "block"
    assert opened.value("document.querySelector('img.poster').getBoundingClientRect().bottom") < 900
    assert opened.value("getComputedStyle(document.querySelector('.controls')).display") == "none"
    opened.value("dispatchEvent(new Event('beforeprint'))")
    assert opened.value("[...document.querySelectorAll('.section')].every((s) => s.open)")
    opened.value("dispatchEvent(new Event('afterprint'))")
    assert not opened.value("document.getElementById('removed').open")


def test_without_scripts_the_film_plays_in_the_browsers_own_player(browser, pages):
    tab = Tab(browser, 1280, 900)
    tab.ask("Emulation.setScriptExecutionDisabled", value=True)
    tab.ask("Page.navigate", url=(pages / "film.html").as_uri())
    browser.listen(1.5)
    shown = tab.ask("DOM.getDocument", depth=-1)
    assert "video" in json.dumps(shown)
    picture = tab.picture()
    assert picture.std() > 20
    tab.ask("Emulation.setScriptExecutionDisabled", value=False)
    tab.close()
